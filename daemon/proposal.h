/* SPDX-License-Identifier: Apache-2.0 */
/* proposal.h - a write on its way from its call to apply and back; the account that bounds them.
 *
 * rpc thread: account_take -> fill -> turn_propose.   turn: appends, or refuses with err.
 * apply: finds the waiting proposal by request id, fills the result, calls done.
 *
 * Whoever takes the pointer out of the account's table (proposal_claim) answers it: apply, or the
 * turn at its deadline, or the stop. Exactly one of them gets it. A call that goes away does not
 * take it out: the entry stays proposed, the answer goes nowhere.
 */
#pragma once
#include <stdatomic.h>
#include "entry.h"
#include "mailbox.h"

struct account;

struct proposal {
    struct mail mail;
    struct entry *entry;   /* payload ready to append; the proposal's reference */
    uint64_t request_id;   /* (boot-unique sequence << 13) | slot */
    uint64_t deadline_ms;
    _Atomic bool with_turn; /* proposal_taken was called: it lies in no mailbox and may expire */
    struct arena *arena;   /* the call's; apply builds the response in it, between propose and done */
    /* The result, valid in done(): */
    int err;               /* 0, ERR_x, or -errno */
    int64_t revision;      /* header revision after the operation */
    void *response;        /* a protobuf-c message in arena without header, or NULL */
    /* Called once, on the turn or apply thread; must not block: it chains the call for its rpc
     * thread (call_resume). */
    void (*done)(struct proposal *p);
};

/* limits: LIMIT_PROPOSALS entries, LIMIT_PROPOSAL_BYTES. boot_id: random, makes ids boot-unique. */
struct account *account_new(uint32_t entries_max, size_t bytes_max, uint64_t boot_id);
void account_free(struct account *a);

/* Any thread. Registers p (sets request_id) before its entry is encoded.
 * ERR_TOO_MANY_REQUESTS: the account is full. */
int account_take(struct account *a, struct proposal *p, size_t bytes);

/* Any thread. The waiting proposal of this id, removed from the table; NULL: nobody waits. */
struct proposal *proposal_claim(struct account *a, uint64_t request_id);

/* The rpc thread, after done: gives the bytes back. */
void account_give(struct account *a, struct proposal *p, size_t bytes);

/* The turn, for each proposal it takes from its mailbox: from now on it may expire. (Before, the mailbox still points
 * to it: whoever answered it then would free what the turn is about to read.) */
static inline void proposal_taken(struct proposal *p)
{
    atomic_store_explicit(&p->with_turn, true, memory_order_relaxed);
}

/* The turn, now and then: claims each proposal it has taken whose deadline is past and calls fn with it. */
void account_expire(struct account *a, uint64_t now_ms, void (*fn)(void *ctx, struct proposal *), void *ctx);

uint32_t account_pending(const struct account *a);
