/* SPDX-License-Identifier: Apache-2.0 */
/* turn_impl.h - what the files of the turn share.
 *
 * turn.c       the turn thread: steps the core, hands out what follows
 * turn_wal.c   the WAL thread: append, sync once, answer
 * turn_snap.c  a snapshot on its way through turn and WAL thread
 * turn_read.c  linearizable reads
 */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include "token.h"
#include "turn.h"

/* What one step of the core wants stored; heap; the turn makes it, the WAL thread frees it. */
struct store_job {
    struct mail mail;
    uint64_t seq, commit;
    bool has_hard;
    uint64_t term, vote;
    uint64_t snap_index, snap_term; /* a snapshot takes the place of the log before these entries; 0: none */
    size_t bytes;
    uint32_t n;
    struct entry *entries[]; /* n references */
};

/* A configuration entry was applied; heap; apply makes it, the turn frees it. */
struct conf_event {
    struct mail mail;
    uint64_t index;
    struct raft_conf_change change;
};

/* Reads first to last, chained by their mail. */
struct read_list {
    struct read_wait *head, *tail;
};

struct turn {
    struct turn_options o;

    /* Of whoever holds the token: mostly the turn thread. */
    struct raft *raft; /* in this allocation, after the struct */
    struct raft_status status; /* after the last step */
    uint64_t now_ms, raft_deadline_ms, tick_ms; /* tick_ms: when to look for what is past its deadline */
    uint64_t stored_seq;       /* stepped */
    uint64_t commit_told;      /* to apply */
    uint64_t own_index;        /* the first entry of our term, while we lead; 0: we do not */
    bool own_applied;          /* and it is applied: this member knows all that was acknowledged */
    struct proposal *waiting, *waiting_tail; /* not yet appended, chained by their mail */
    struct store_job *job;     /* the entries of the step under way */
    struct read_list reads;    /* for the next round */
    struct read_list round;    /* waiting for the round under way */
    uint64_t round_ctx, round_ms;
    struct entry *expire;      /* an expiry entry that raft has not taken yet */
    uint64_t expire_term;
    uint64_t lease_look_ms;    /* something was committed: look at the leases then */
    uint64_t compacted;
    uint64_t term_seen, leader_seen;
    bool apply_waits;          /* commits are told to apply without waking it: the WAL thread steps it next */

    /* One wait for apply at a time. */
    struct apply_wait applied_wait;
    uint64_t conf_index;       /* newest configuration entry handed to the core */

    /* The WAL thread's own. */
    struct {
        struct entry **entries; /* n references: the batch */
        size_t n, cap, bytes;
        bool any, has_hard;
        struct wal_state hard;
        uint64_t commit, seq, released;
        uint64_t snap_index, snap_term; /* to be installed before the entries are written; 0: none */
        bool full;             /* the last append found no room */
        bool failed;           /* fatal was called */
    } batch;

    /* ---- shared ---- */
    struct token token;
    _Atomic bool shared;       /* both threads run: others may take the token. A simulator steps by hand */
    struct mailbox box;        /* proposals; nudged for everything below */
    struct mailbox read_box, conf_box;
    struct mailbox wal_box;    /* struct store_job */
    _Atomic uint64_t stored;   /* by the WAL thread: highest durable store_seq */
    _Atomic size_t unstored_bytes;
    _Atomic uint64_t applied;  /* by apply's wait */
    _Atomic bool applied_waits;
    _Atomic uint64_t flushed, release_to;
    _Atomic uint32_t read_waits;
    _Atomic bool reads_free;   /* turn_read may say: go */
    _Atomic bool stopping, stopped;
    bool started;
    pthread_t thread, wal_thread;
    pthread_mutex_t stop_mu;   /* who answers what comes after the stop: there is no thread left to mail it to */

    /* The status, relaxed. */
    _Atomic uint64_t pub_term, pub_leader, pub_commit, pub_last, pub_changes, pub_failed, pub_fsyncs, pub_bytes;
    _Atomic bool pub_is_leader, pub_is_learner;
};

/* turn.c: one input. 0, or what raft_step refused with. */
int turn_raft(struct turn *t, struct raft_in in);

/* Steps the turn on this thread instead of waking its own, unless somebody does already: he then steps again.
 * by_wal: commits are told to apply quietly, if it is us who steps; true then, and apply_help is owed. */
bool turn_help(struct turn *t, bool by_wal);

/* turn_wal.c */
struct store_job *store_job_new(uint32_t n);
void store_job_free(struct store_job *j); /* takes NULL */
void turn_wal_fini(struct turn *t);

/* turn_snap.c */
void turn_snap_stepped(struct turn *t, const struct raft_msg *m, const struct raft_out *out); /* after the step */
void turn_snap_job(struct turn *t, const struct raft_out *out, struct store_job *j);          /* the turn */
void turn_snap_merge(struct turn *t, const struct store_job *j);                              /* the WAL thread, as next */
int turn_snap_install(struct turn *t); /* 0, also when there is none; -ENOSPC: try again; -errno */

/* turn_read.c */
void turn_reads_step(struct turn *t);
void turn_reads_done(struct turn *t, const struct raft_read *done, uint32_t n);
void turn_reads_lost(struct turn *t);
void turn_reads_expire(struct turn *t);
void turn_reads_stop(struct turn *t); /* answers all that wait here */
