/* SPDX-License-Identifier: Apache-2.0 */
/* member_again.c - a member whose store is damaged while it runs: it is marked, and the process begins anew.
 *
 * Every thread may be in the middle of something that stands on the damaged state; a new process image has none of that,
 * keeps the process id (so whoever supervises it notices nothing), and goes the same way as a start that finds the damage
 * (bootstrap_rebuild.c). All descriptors are close-on-exec, the locks of the data directory go with them.
 *
 * LMDB reads through a map of its file and believes what it finds there: a damaged page may name one beyond the file's end,
 * and touching that is SIGBUS. Nothing else in this process maps a file that is written, so SIGBUS says that the store is
 * damaged. (SIGSEGV may say so too, or that we have a bug: it stays fatal.)
 *
 * Owner: any thread. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>
#include "log.h"
#include "member_impl.h"

enum { ARGS_BYTES = 1 << 20, ARGS_MAX = 4096 };

/* Returns only when it fails. */
static void start_anew(void)
{
    static char text[ARGS_BYTES];
    static char *args[ARGS_MAX + 1];
    int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    size_t n_args = 0;

    if (fd >= 0)
        (void)close(fd); /* only read */
    for (ssize_t at = 0; at < n && n_args < ARGS_MAX; at += (ssize_t)strlen(text + at) + 1)
        args[n_args++] = text + at;
    if (n_args)
        (void)execv("/proc/self/exe", args);
}

void member_damaged(void *ctx, const char *what)
{
    static _Atomic bool once;
    struct member_process *m = ctx;
    int err;

    if (m == NULL || m->snap == NULL || !snap_has_others(m->snap))
        return;
    if (atomic_exchange(&once, true))
        for (;;)
            (void)pause(); /* another thread is about to end this image */
    err = datadir_mark(&m->boot.dir, m->boot.fence_term, true);
    log_error("the store is damaged; this member starts anew, to be rebuilt from the others", LOG_STR("found", what),
              LOG_STR("marked", err ? strerror(-err) : "yes"));
    if (err == 0)
        start_anew();
    _exit(1);
}

/* ---- SIGBUS ------------------------------------------------------------------------------------------------- */

static _Atomic(struct member_process *) guarded; /* a signal handler is given nothing */

/* On the thread that touched the page: it was in LMDB, so it holds no lock that what follows takes. */
static void on_bus_error(int sig)
{
    struct member_process *m = atomic_load(&guarded);

    if (m)
        member_damaged(m, "a page of the store names one beyond its end");
    (void)signal(sig, SIG_DFL);
    (void)raise(sig);
}

void member_guard_store(struct member_process *m)
{
    /* Not blocked within: a process image begun anew would inherit that. */
    struct sigaction sa = {.sa_handler = on_bus_error, .sa_flags = SA_NODEFER};

    atomic_store(&guarded, m);
    (void)sigaction(SIGBUS, m ? &sa : &(struct sigaction){.sa_handler = SIG_DFL}, NULL); /* cannot fail */
}
