/* SPDX-License-Identifier: Apache-2.0 */
/* turn.h - the thread that owns struct raft: takes all that waits, steps the core, hands out what follows.
 *
 * A turn reads as a list (turn_step): what is stored; what is applied; configurations; messages; time; proposals;
 * reads; leases; publish; say when to call again. The WAL thread (turn_wal.c) takes what turns handed it, appends,
 * syncs once, answers STORED: while one batch is being written the next one gathers.
 *
 * Owner: the turn thread, but for what is marked "any thread".
 */
#pragma once
#include "apply.h"
#include "entry.h"
#include "histogram.h"
#include "lease.h"
#include "mailbox.h"
#include "peer.h"
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
    const struct store *store;    /* store_applied(), for the status */
    struct lease_table *leases;   /* expired ones are proposed while this member leads; NULL: none */
    uint64_t member_id;
    struct raft_conf conf;        /* as of applied_index */
    uint64_t applied_index;       /* base's */
    uint64_t fence_term;          /* not 0: this member is faulty, see raft_params */
    uint64_t catchup_entries;     /* kept in the log behind base for followers; --snapshot-catchup-entries */
    uint64_t snapshot_count;      /* so many leave the log at a time, at least; --snapshot-count */
    uint32_t heartbeat_ms, election_ms;
    struct histogram *wal_write, *wal_fsync; /* observed by the WAL thread; NULL: nobody asks */
    /* Called on the turn or WAL thread when the member must stop: a failed fsync, a corrupt log. */
    void (*fatal)(void *ctx, int err, const char *what);
    /* Called on the WAL thread when the log finds no room on its disk, each second, and once (false) when it
     * does again. Nothing was lost, proposals wait. NULL: nobody asks. */
    void (*nospace)(void *ctx, bool full);
    void *fatal_ctx;              /* of both */
    /* Snapshots (snap.h); NULL: none are taken. stepped: the turn thread, for each SNAPSHOT message, once the core has
     * seen it: it is taken, and install will be called, or it is not wanted. install: the WAL thread; the state that
     * the message named takes the place of base and log, with this hard state, and is on disk when it returns 0.
     * -ENOSPC: tried again each second; all else stops the member. */
    void (*snap_stepped)(void *ctx, uint64_t index, bool taken);
    int (*snap_install)(void *ctx, uint64_t index, uint64_t term, const struct wal_state *hard);
    void *snap_ctx;

    struct transport *transport;  /* to the other members; NULL: there are none */
    /* The turn thread: m is a SNAPSHOT the core wants sent, of at least m->raft.index; it is the callee's. It ends with
     * turn_snapshot_sent. NULL: this member sends none. */
    void (*snapshot_send)(void *ctx, struct peer_msg *m);
    void *snapshot_ctx;
    /* The turn thread: a member says what its state hashes to. NULL: nobody asks. */
    void (*state_hash)(void *ctx, const struct peer_msg *m);
    void *state_hash_ctx;
};

/* -ENOMEM; -EUCLEAN: base, log and configuration contradict each other. */
int turn_new(const struct turn_options *o, struct turn **ret_turn);
int turn_start(struct turn *t);   /* the turn and WAL threads */
void turn_stop(struct turn *t);   /* joins them; what waits, and what comes later, is answered ERR_STOPPED */
void turn_free(struct turn *t);   /* takes NULL; after apply_stop: apply may still hold reads of ours until then */

/* For a simulator: one step of each thread by hand; returns the next deadline in ms. */
uint64_t turn_step(struct turn *t);
uint64_t turn_wal_step(struct turn *t);

/* Any thread. Gives p to the turn; p->done comes later, always, exactly once (after turn_stop: perhaps at
 * once, on this thread). Its entry is referenced, not copied. */
void turn_propose(struct turn *t, struct proposal *p);
/* The same for several, chained by their mail from the newest to the oldest: the turn is woken once; for a single
 * one not even that, it is stepped on this thread, which may therefore not hold a lock. */
void turn_propose_all(struct turn *t, struct proposal *newest, struct proposal *oldest);

/* A read that must be linearizable. */
struct read_wait {
    struct mail mail;
    uint64_t deadline_ms;
    int err;              /* 0, ERR_TIMEOUT, ERR_LEADER_CHANGED, ERR_STOPPED, ERR_TOO_MANY_REQUESTS, -ENOMEM */
    uint64_t read_index;
    void (*done)(struct read_wait *w); /* on the turn or apply thread, once applied >= read_index */
};
/* Any thread. 0: go now, w is not kept (a sole voter that has applied an entry of its term: every
 * acknowledged write is already published). 1: done will be called, later. */
int turn_read(struct turn *t, struct read_wait *w);
/* Any thread: turn_read would answer 0. */
bool turn_reads_free(const struct turn *t);

/* ---- other members --------------------------------------------------------------------------------
 * All of these on any thread, but not on one that holds a lock the transport's send takes. */

/* A message has come from its sender (m->from is checked by the transport, m->to is this member). m is the turn's.
 * Beyond LIMIT_PEER_INBOX messages or bytes it is dropped, as if the network had lost it. A SNAPSHOT comes when all of
 * its bytes have arrived. */
void turn_receive(struct turn *t, struct peer_msg *m);
/* The member's process is gone: its connection ended and its port refuses. */
void turn_suspect(struct turn *t, uint64_t member);
/* Messages to it were lost. */
void turn_unreachable(struct turn *t, uint64_t member);
/* The transfer that snapshot_send began has ended; index: of what was sent, when ok. */
void turn_snapshot_sent(struct turn *t, uint64_t member, bool ok, uint64_t index);

/* Any thread. What is in the log above index stays there for the receiver of a snapshot, as long as that is no more
 * than LIMIT_SNAP_LOG_ENTRIES; a_while: until it has some of it, or for LIMIT_SNAP_LOG_MS from now. slot: below
 * LIMIT_SNAP_SENDS, one for each transfer. */
void turn_keep_log(struct turn *t, unsigned slot, uint64_t member, uint64_t index);
void turn_keep_log_a_while(struct turn *t, unsigned slot);

/* Any thread: sends m by the turn, whose transport it is. m is the turn's. */
void turn_post(struct turn *t, struct peer_msg *m);

/* Hands leadership to a voter. */
struct transfer_wait {
    struct mail mail;
    uint64_t member;      /* 0: whoever is best */
    uint64_t deadline_ms; /* the turn's: an election timeout from when it begins */
    int err;              /* 0: it leads now (whoever, for 0); ERR_NOT_LEADER, ERR_BAD_TRANSFEREE, ERR_TIMEOUT,
                           * ERR_LEADER_CHANGED (somebody else leads), ERR_STOPPED */
    void (*done)(struct transfer_wait *w); /* on the turn thread; must not block */
};
/* Any thread. done will be called, once. */
void turn_transfer(struct turn *t, struct transfer_wait *w);

/* Any thread. Stand for election now (force-new-cluster, tests). */
void turn_campaign(struct turn *t);

/* Asks the leader, wherever it is, of a lease. */
struct lease_ask {
    struct mail mail;
    int64_t lease;
    bool renew;           /* a keep-alive; else only what is left of it */
    uint64_t deadline_ms;
    uint64_t id;          /* the turn's */
    int err;              /* 0, ERR_LEASE_NOT_FOUND, LEASE_PAST (renew: not yet revoked, ask again), ERR_NO_LEADER,
                           * ERR_TIMEOUT, ERR_STOPPED, ERR_TOO_MANY_REQUESTS */
    int64_t ttl_s, left_ms; /* granted; remaining, may be negative */
    void (*done)(struct lease_ask *a); /* on the turn thread; must not block */
};
/* Any thread. done will be called, once. Who answers has led after it was asked, as a quorum has confirmed: a renewal
 * holds whoever leads next. A leader that is asked while it is not yet confirmed is waited for. */
void turn_lease_ask(struct turn *t, struct lease_ask *a);

/* Any thread: how far a follower is, as this leader last knew; false: not the leader, or no such member. */
bool turn_peer(const struct turn *t, uint64_t member, struct raft_peer *ret_peer);

/* Any thread; what was last published (atomics). */
struct turn_status {
    uint64_t term, leader, commit, applied, last_index;
    bool is_leader, is_learner, is_faulty, sole_leader; /* sole_leader: turn_read answers 0 */
    uint64_t leader_changes, proposals_failed, wal_fsyncs, wal_bytes;
};
void turn_status(const struct turn *t, struct turn_status *ret_status);

/* Any thread: base has flushed up to index, entries below may leave the WAL. */
void turn_flushed(struct turn *t, uint64_t index);

/* ---- configuration entries (ENTRY_CONF) -----------------------------------------------------------
 *
 *      0  u8     transition (enum raft_transition)
 *      1  u8     n, the number of changes; 0 leaves the joint configuration
 *      2  n x    u8 op (enum raft_change_op), u64le member id
 *         ...    what apply makes of it besides: the packed etcdserverpb.Member; may be absent
 */
#define TURN_CONF_BYTES_MAX (2 + 9 * RAFT_MEMBERS_MAX)
size_t turn_conf_encode(const struct raft_conf_change *c, uint8_t dst[TURN_CONF_BYTES_MAX]); /* bytes used */
/* ret_rest: what follows the change, in body; may be NULL. 0, or -EBADMSG. */
int turn_conf_decode(struct slice body, struct raft_conf_change *ret_change, struct slice *ret_rest);
/* apply's thread, for each ENTRY_CONF, before it publishes the entry. -ENOMEM: the member must stop. */
int turn_conf_applied(struct turn *t, uint64_t index, const struct raft_conf_change *c);
