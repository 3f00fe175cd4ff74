/* SPDX-License-Identifier: Apache-2.0 */
/* main.c - cairnd: read the configuration, run one member until a signal. */
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>
#include "log.h"
#include "member.h"

extern char **environ;

static void set_level(const char *name)
{
    static const struct {
        const char *name;
        enum log_level level;
    } levels[] = {{"debug", LOG_LEVEL_DEBUG}, {"info", LOG_LEVEL_INFO},   {"warn", LOG_LEVEL_WARN},
                  {"error", LOG_LEVEL_ERROR}, {"panic", LOG_LEVEL_FATAL}, {"fatal", LOG_LEVEL_FATAL}};

    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
        if (strcmp(levels[i].name, name) == 0)
            log_set_level(levels[i].level);
}

int main(int argc, char **argv)
{
    struct config c;
    sigset_t set;
    int signal_fd, sig = 0;
    enum member_event end;

    switch (config_read(&c, argc, argv, environ)) {
    case CONFIG_RUN:
        break;
    case CONFIG_DONE:
        return 0;
    case CONFIG_USAGE:
        return 2;
    case CONFIG_BAD:
        return 1;
    }
    set_level(c.log_level);
    (void)umask(077);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)sigprocmask(SIG_BLOCK, &set, NULL);
    /* One arena per core is plenty, and what they hold back is bounded. */
    (void)mallopt(M_ARENA_MAX, 4);
    signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
    if (signal_fd < 0) {
        log_error("cannot start", LOG_STR("error", strerror(errno)));
        config_fini(&c);
        return 1;
    }
    end = member_run(&c, signal_fd, &sig);
    config_fini(&c);
    if (end == MEMBER_FAILED)
        return 1;
    /* As etcd does: the status says by which signal. */
    if (end == MEMBER_SIGNAL && getpid() != 1) {
        (void)signal(sig, SIG_DFL);
        (void)sigprocmask(SIG_UNBLOCK, &set, NULL);
        (void)raise(sig);
    }
    return 0;
}
