/* SPDX-License-Identifier: Apache-2.0 */
/* thread.c - starting a named thread that takes no signals but SIGBUS (main alone does, by sigwait). */
#include <signal.h>
#include "seam.h"

int thread_start(pthread_t *ret_thread, const char *name, void *(*fn)(void *), void *arg)
{
    sigset_t all, old;
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    pthread_t t;
    int err;

    (void)sigfillset(&all);
    /* The thread's own doing. Blocked, they end the process unseen (member_suspect.c). */
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        (void)sigdelset(&all, own[i]);
    /* A new thread inherits the mask of its maker: block first, so that no signal meets it unblocked. */
    err = pthread_sigmask(SIG_SETMASK, &all, &old);
    if (err)
        return -err;
    err = pthread_create(&t, NULL, fn, arg);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL); /* cannot fail: old came from the same call */
    if (err)
        return -err;
    (void)pthread_setname_np(t, name); /* only for ps and gdb */
    *ret_thread = t;
    return 0;
}
