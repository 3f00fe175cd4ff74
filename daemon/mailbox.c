/* SPDX-License-Identifier: Apache-2.0 */
/* mailbox.c - many senders push on a stack by compare-and-swap; the taker swaps it out whole and turns it round.
 *
 * Only the post that finds the stack empty touches the futex word, and only one that finds the taker asleep (2) makes
 * a system call. No wake-up is lost: the word is set after the push, and the taker goes to sleep only by moving it
 * from 0 to 2, so a push that the taker has not seen still finds 0 (the move to 2 then fails on 1) or 2 (it wakes).
 * A push may be taken before its poster sets the word: the taker then wakes once for nothing.
 */
#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "mailbox.h"

enum { WAKES_NONE, WAKES_POSTED, WAKES_ASLEEP };

void mailbox_init(struct mailbox *m, int event_fd)
{
    atomic_init(&m->head, NULL);
    atomic_init(&m->wakes, WAKES_NONE);
    m->event_fd = event_fd;
}

void mailbox_nudge(struct mailbox *m)
{
    if (m->event_fd >= 0) {
        const uint64_t one = 1;
        ssize_t n;

        do
            n = write(m->event_fd, &one, sizeof one);
        while (n < 0 && errno == EINTR);
        assert(n == (ssize_t)sizeof one || errno == EAGAIN); /* EAGAIN: the counter is full, so it is readable */
        return;
    }
    if (atomic_exchange(&m->wakes, WAKES_POSTED) == WAKES_ASLEEP)
        (void)syscall(SYS_futex, &m->wakes, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0); /* fails on nobody */
}

/* True: the stack was empty. */
static bool push(struct mailbox *m, struct mail *newest, struct mail *oldest)
{
    struct mail *head = atomic_load_explicit(&m->head, memory_order_relaxed);

    do
        oldest->next = head;
    while (!atomic_compare_exchange_weak_explicit(&m->head, &head, newest, memory_order_release, memory_order_relaxed));
    return head == NULL;
}

void mailbox_post_quietly(struct mailbox *m, struct mail *newest, struct mail *oldest)
{
    (void)push(m, newest, oldest);
}

void mailbox_post_all(struct mailbox *m, struct mail *newest, struct mail *oldest)
{
    if (push(m, newest, oldest))
        mailbox_nudge(m);
}

void mailbox_post(struct mailbox *m, struct mail *msg)
{
    mailbox_post_all(m, msg, msg);
}

struct mail *mailbox_take(struct mailbox *m)
{
    struct mail *newest, *oldest = NULL;

    if (atomic_load_explicit(&m->head, memory_order_relaxed) == NULL)
        return NULL;
    newest = atomic_exchange_explicit(&m->head, NULL, memory_order_acquire);
    while (newest) {
        struct mail *next = newest->next;

        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    return oldest;
}

void mailbox_wait(struct mailbox *m, uint64_t deadline_ms)
{
    const struct timespec at = {.tv_sec = (time_t)(deadline_ms / 1000),
                                .tv_nsec = (long)(deadline_ms % 1000) * 1000000};
    const struct timespec *until = deadline_ms == UINT64_MAX ? NULL : &at;

    assert(m->event_fd < 0);
    for (;;) {
        uint32_t none = WAKES_NONE;
        long rc;

        if (!atomic_compare_exchange_strong(&m->wakes, &none, WAKES_ASLEEP) && none == WAKES_POSTED)
            break;
        /* The absolute time of BITSET is CLOCK_MONOTONIC. */
        rc = syscall(SYS_futex, &m->wakes, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, WAKES_ASLEEP, until, NULL,
                     FUTEX_BITSET_MATCH_ANY);
        if (rc < 0 && errno == ETIMEDOUT)
            break;
    }
    atomic_exchange(&m->wakes, WAKES_NONE); /* before the take that follows: a later post sets it again */
}
