/* SPDX-License-Identifier: Apache-2.0 */
/* member_again.c - a member whose store is damaged while it runs: it is marked, and the process begins anew.
 *
 * Every thread may be in the middle of something that stands on the damaged state; a new process image has none of
 * that, keeps the process id (so whoever supervises it notices nothing), and goes the same way as a start that finds
 * the damage (bootstrap_rebuild.c). All descriptors are close-on-exec, the locks of the data directory go with them.
 *
 * What LMDB itself crashes on is member_suspect.c's.
 *
 * Owner: any thread. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>
#include "log.h"
#include "member_impl.h"

enum { ARGS_BYTES = 1 << 20, ARGS_MAX = 4096 };

void member_start_anew(void)
{
    static char text[ARGS_BYTES];
    static char *args[ARGS_MAX + 1];
    int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    size_t n_args = 0;
    sigset_t mask;

    if (fd >= 0)
        (void)close(fd); /* only read */
    for (ssize_t at = 0; at < n && n_args < ARGS_MAX; at += (ssize_t)strlen(text + at) + 1)
        args[n_args++] = text + at;
    /* A new image inherits the mask of the thread that made it: the one that main.c has. */
    (void)sigemptyset(&mask);
    (void)sigaddset(&mask, SIGTERM);
    (void)sigaddset(&mask, SIGINT);
    (void)pthread_sigmask(SIG_SETMASK, &mask, NULL);
    if (n_args)
        (void)execv("/proc/self/exe", args);
}

/* Until somebody has counted the members the configuration at the start says it. */
static bool has_others(const struct member_process *m)
{
    size_t n = m->snap ? snap_members(m->snap) : 0;

    return n ? n > 1 : m->boot.conf.voters.n + m->boot.conf.learners.n > 1;
}

void member_damaged(void *ctx, const char *what)
{
    static _Atomic bool once;
    struct member_process *m = ctx;
    int err;

    if (!has_others(m))
        return;
    if (atomic_exchange(&once, true))
        for (;;)
            (void)pause(); /* another thread is about to end this image */
    err = datadir_mark(&m->boot.dir, m->boot.fence_term, true);
    log_error("the store or the log is damaged; this member starts anew, to be rebuilt from the others", LOG_STR("found", what),
              LOG_STR("marked", err ? strerror(-err) : "yes"));
    if (err == 0)
        member_start_anew();
    _exit(1);
}
