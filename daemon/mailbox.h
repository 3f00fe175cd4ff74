/* SPDX-License-Identifier: Apache-2.0 */
/* mailbox.h - how threads talk: many senders, one taker, no locks.
 *
 * A message embeds struct mail as its first idea of a link; the sender gives the message
 * away and the taker owns it. The bound is the sender's: see limits.h.
 *
 * The taker sleeps in mailbox_wait on a futex; a post to an empty box wakes it, a post to a
 * box that is not empty costs no system call. A thread is a loop outside its module:
 *
 *     for (;;) { mailbox_wait(&x->box, x_deadline_ms(x)); x_step(x); }
 *
 * and x_step drains the box and returns, so that a simulator can call it by hand.
 */
#pragma once
#include <stdatomic.h>
#include "bytes.h"

struct mail {
    struct mail *next;
};

struct mailbox {
    _Atomic(struct mail *) head; /* newest first */
    _Atomic uint32_t wakes;      /* futex word: 0 nothing new, 1 posted or nudged, 2 the taker sleeps */
    int event_fd;                /* -1, or an eventfd written instead of the futex (for epoll); its reader drains it
                                    before mailbox_take */
};

void mailbox_init(struct mailbox *m, int event_fd);

/* Any thread. Gives msg away. */
void mailbox_post(struct mailbox *m, struct mail *msg);

/* Any thread. Gives away a chain, newest first, in one go: the taker is woken once. */
void mailbox_post_all(struct mailbox *m, struct mail *newest, struct mail *oldest);

/* Any thread. The same without waking anybody: the caller sees to it that they are taken. */
void mailbox_post_quietly(struct mailbox *m, struct mail *newest, struct mail *oldest);

/* Any thread. Wakes the taker without a message. */
void mailbox_nudge(struct mailbox *m);

/* The taker. All that has been posted, oldest first; NULL when empty. */
struct mail *mailbox_take(struct mailbox *m);

/* The taker. Returns when something was posted or nudged, or at deadline_ms
 * (CLOCK_MONOTONIC milliseconds; UINT64_MAX: none). */
void mailbox_wait(struct mailbox *m, uint64_t deadline_ms);
