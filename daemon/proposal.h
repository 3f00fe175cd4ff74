/* SPDX-License-Identifier: Apache-2.0 */
/* proposal.h - a write on its way from its call to apply and back; the account that bounds them.
 *
 * rpc thread: account_take -> fill -> turn_propose.   turn: appends, or refuses with err.
 * apply: finds the waiting proposal by request id, fills the result, calls done.
 *
 * On a member that does not lead the turn sends a proposal's entry to the leader; apply here finds it all the same, by
 * origin and request id. A proposal that is known not to be in the log, and that never will be, is the turn's again
 * (account_retake) and is tried anew; of any other nobody knows what came of it until apply meets it, or its deadline.
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
    /* The turn's own: when it came; the term in which it was appended here or sent to the leader, and which PROPOSE
     * took it there (0: appended here). */
    uint64_t since_ms, sent_term, sent_seq;
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

#define PROPOSAL_NEVER_AGAIN UINT64_MAX

/* The turn, for each proposal it has appended or sent on: from now on it may expire. (Before, a list still points to
 * it: whoever answered it then would free what the turn is about to read.) */
static inline void proposal_taken(struct proposal *p, uint64_t term, uint64_t seq)
{
    p->sent_term = term;
    p->sent_seq = seq;
    atomic_store_explicit(&p->with_turn, true, memory_order_relaxed);
}

/* The turn: the proposal of this id, if it was sent on by this PROPOSE and nobody has answered it; NULL otherwise. It
 * stays in the table, and does not expire before the next proposal_taken. */
struct proposal *account_retake(struct account *a, uint64_t request_id, uint64_t seq);
/* The same for all that were sent or appended in a term before this one: chained by their mail. */
struct proposal *account_retake_older(struct account *a, uint64_t term);
/* The turn: whatever has been sent or appended so far is not retaken by term: a snapshot may hold it. */
void account_keep_unknown(struct account *a);

/* The turn, now and then: claims each proposal it has taken whose deadline is past and calls fn with it. */
void account_expire(struct account *a, uint64_t now_ms, void (*fn)(void *ctx, struct proposal *), void *ctx);

uint32_t account_pending(const struct account *a);
