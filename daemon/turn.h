/* SPDX-License-Identifier: Apache-2.0 */
/* turn.h - the thread that owns struct raft: takes all that waits, steps the core, hands out what follows.
 *
 * A turn reads as a list (turn_step): drain the mailbox; step each input; hand the batch to the WAL
 * thread; send messages; publish commit and term; answer reads; say when to call again.
 * The WAL thread (also here: it is ten lines around wal.h) appends, syncs once, answers STORED.
 *
 * Owner: the turn thread, but for what is marked "any thread".
 */
#pragma once
#include "apply.h"
#include "entry.h"
#include "mailbox.h"
#include "proposal.h"
#include "raft.h"
#include "seam.h"
#include "wal.h"

struct turn;

struct turn_options {
    struct clock *clock;
    struct rng *rng;
    struct wal *wal;
    struct wal_state wal_state;
    struct entry_cache *cache;
    struct account *account;
    struct apply *apply;          /* told of commits by apply_commit(); see apply.h */
    uint64_t member_id;
    struct raft_conf conf;        /* as of applied_index */
    uint64_t applied_index;       /* base's */
    uint32_t heartbeat_ms, election_ms;
    /* Called on the turn or WAL thread when the member must stop: a failed fsync, a corrupt log. */
    void (*fatal)(void *ctx, int err, const char *what);
    void *fatal_ctx;
};

int turn_new(const struct turn_options *o, struct turn **ret_turn);
int turn_start(struct turn *t);   /* the turn and WAL threads */
void turn_stop(struct turn *t);   /* joins them; what waits is answered ERR_STOPPED */
void turn_free(struct turn *t);

/* For a simulator: one step of each thread by hand; returns the next deadline in ms. */
uint64_t turn_step(struct turn *t);
uint64_t turn_wal_step(struct turn *t);

/* Any thread. Gives p to the turn; p->done comes later, always, exactly once. */
void turn_propose(struct turn *t, struct proposal *p);

/* A read that must be linearizable. */
struct read_wait {
    struct mail mail;
    uint64_t deadline_ms;
    int err;              /* 0, ERR_TIMEOUT, ERR_LEADER_CHANGED, ERR_STOPPED, ERR_TOO_MANY_REQUESTS */
    uint64_t read_index;
    void (*done)(struct read_wait *w); /* on the turn or apply thread, once applied >= read_index */
};
/* Any thread. 0: go now, w is not kept (a sole voter that has committed in its term: every
 * acknowledged write is already published). 1: done will be called, later. */
int turn_read(struct turn *t, struct read_wait *w);

/* Any thread; what was last published (atomics). */
struct turn_status {
    uint64_t term, leader, commit, applied, last_index;
    bool is_leader, is_learner, sole_leader;
    uint64_t leader_changes, proposals_failed, wal_fsyncs, wal_bytes;
};
void turn_status(const struct turn *t, struct turn_status *ret_status);

/* apply's thread: base has flushed up to index, entries below may leave the WAL. */
void turn_flushed(struct turn *t, uint64_t index);
