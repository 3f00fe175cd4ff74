/* SPDX-License-Identifier: Apache-2.0 */
/* member_suspect.c - a crash inside LMDB: the store is marked suspect, and is read whole before anybody uses it again.
 *
 *     the fatal signal    base_guard.c says that it struck inside LMDB: DIR/SUSPECT gets a byte, synced
 *                         the process begins anew, once, or dies of the signal, with its core and status
 *     the next start      bootstrap.c has a child process read all of the store
 *                         sound: it goes on. Damaged: a sole member refuses; one among others is rebuilt from them
 *     ten minutes on, or  DIR/SUSPECT is removed: nobody suspects any more
 *     an orderly stop
 *
 * It begins anew by itself because a member is to be mended without an operator, and not everybody has a supervisor
 * that starts a process again. Only once in ten minutes, counted over starts by DIR/SUSPECT: a process that keeps
 * crashing costs its machine more than it gives, and a supervisor, if there is one, has better rules for it. A second
 * crash dies of its signal; the start after that does not rely on the store whatever reading it says (its free pages
 * are in no row), if there are others to ask.
 *
 * Everything in the handler is async-signal-safe: the thread may hold any lock, LMDB's among them.
 *
 * Owner: the main thread; the handler runs on whichever thread crashed. */
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "log.h"
#include "member_impl.h"

static const int fatal_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
enum { FATAL_SIGNALS = sizeof fatal_signals / sizeof *fatal_signals };

static struct {
    _Atomic(struct member_process *) member; /* NULL: not guarded */
    struct sigaction before[FATAL_SIGNALS];
} guard; /* a handler is given nothing */

static void say(const char *line)
{
    ssize_t n = write(STDERR_FILENO, line, strlen(line));

    (void)n; /* nobody is left to tell */
}

/* As if there had been no handler: the instruction is done again, or what was sent is sent again. */
static void pass_on(int sig, const siginfo_t *info)
{
    for (int i = 0; i < FATAL_SIGNALS; i++)
        if (fatal_signals[i] == sig)
            (void)sigaction(sig, &guard.before[i], NULL); /* cannot fail */
    if (info->si_code <= 0)
        (void)syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), sig);
}

static void on_fatal(int sig, siginfo_t *info, void *ucontext)
{
    static _Atomic bool once;
    struct member_process *m = atomic_load(&guard.member);

    if (m == NULL || !base_guard_struck(sig, ucontext)) {
        pass_on(sig, info);
        return;
    }
    if (atomic_exchange(&once, true))
        for (;;)
            (void)pause(); /* another thread is about to end this image */
    if (datadir_suspect(&m->boot.dir) == 0 && !atomic_load(&m->suspected)) {
        say("{\"level\":\"error\",\"msg\":\"a crash inside the store: it is suspect now, and this member starts anew to read all of it\"}\n");
        member_start_anew();
    }
    say("{\"level\":\"fatal\",\"msg\":\"a crash inside the store: the next start reads all of it\"}\n");
    pass_on(sig, info);
}

void member_guard_store(void *ctx)
{
    /* Not blocked within: a process image begun anew would inherit that. */
    struct sigaction sa = {.sa_sigaction = on_fatal, .sa_flags = SA_NODEFER | SA_SIGINFO};
    struct member_process *m = ctx;

    base_guard_init();
    atomic_store(&m->suspected, datadir_suspicions(&m->boot.dir) > 0);
    atomic_store(&guard.member, m);
    for (int i = 0; i < FATAL_SIGNALS; i++)
        (void)sigaction(fatal_signals[i], &sa, &guard.before[i]); /* cannot fail */
}

void member_unguard_store(void)
{
    if (atomic_exchange(&guard.member, NULL) == NULL)
        return;
    for (int i = 0; i < FATAL_SIGNALS; i++)
        (void)sigaction(fatal_signals[i], &guard.before[i], NULL); /* cannot fail */
}

void member_trust_store(struct member_process *m)
{
    int err = atomic_load(&m->suspected) ? datadir_trust(&m->boot.dir) : 0;

    if (err)
        log_warn("the store was found sound, but its mark cannot be removed", LOG_STR("error", strerror(-err)));
    atomic_store(&m->suspected, false);
}
