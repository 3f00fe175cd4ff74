/* SPDX-License-Identifier: Apache-2.0 */
/* turn_impl.h - what the files of the turn share.
 *
 * turn.c          the turn thread: steps the core, hands out what follows
 * turn_wal.c      the WAL thread: append, sync once, answer
 * turn_propose.c  proposals, of this member and of others
 * turn_peer.c     messages, what the transport knows of members, transfers
 * turn_snap.c     a snapshot on its way through turn and WAL thread
 * turn_read.c     linearizable reads
 * turn_lease.c    expiry, checkpoints, renewals by way of the leader
 * turn_take.c     what was stored, applied, flushed
 * turn_conf.c     a change of the configuration as bytes
 */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include "limits.h"
#include "token.h"
#include "turn.h"

#define TICK_MS 500 /* how late a deadline of a proposal or read may be noticed */

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

/* An input for the core, or a message to send, from another thread; heap; the turn frees it. */
struct peer_event {
    struct mail mail;
    struct raft_in in;
    struct peer_msg *msg; /* set: send it, in does not count */
};

/* Reads first to last, chained by their mail. */
struct read_list {
    struct read_wait *head, *tail;
};

/* Messages, proposals: the same. */
struct mail_list {
    struct mail *head, *tail;
};

static inline void mail_push(struct mail_list *l, struct mail *m)
{
    m->next = NULL;
    if (l->tail)
        l->tail->next = m;
    else
        l->head = m;
    l->tail = m;
}

static inline struct mail *mail_pop(struct mail_list *l)
{
    struct mail *m = l->head;

    if (m) {
        l->head = m->next;
        if (l->head == NULL)
            l->tail = NULL;
    }
    return m;
}

/* Which PROPOSEs of a member's boot have come: the highest number, and of the 64 before it each. */
struct heard {
    uint64_t member, boot, high, before;
};
#define HEARD_MAX (4 * RAFT_MEMBERS_MAX)

struct ask_table;

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
    uint64_t led_since_ms;
    struct store_job *job;     /* the entries of the step under way, when they are proposed */
    struct peer_msg *msg;      /* the message of the step under way */
    uint64_t compacted;
    uint64_t term_seen, leader_seen;
    bool apply_waits;          /* commits are told to apply without waking it: the WAL thread steps it next */
    bool may_stand;            /* asked to: it waits for apply, perhaps */

    /* turn_propose.c: struct proposal, and PEER_PROPOSE messages of other members. */
    struct mail_list waiting;  /* not yet appended or sent */
    struct mail_list confs;    /* the same, each a configuration entry */
    struct mail_list foreign;  /* taken from their front, which is at foreign_at of the first message */
    struct mail_list foreign_confs; /* a message each */
    uint32_t foreign_at, n_foreign, n_foreign_confs;
    size_t foreign_bytes;
    uint64_t boot, send_seq, forward_ms; /* nothing is sent to a leader before forward_ms */
    uint64_t settled_term;     /* what was sent before it has been applied, or is retaken */
    struct heard heard[HEARD_MAX];
    uint32_t heard_next;

    struct read_list reads;    /* for the next round */
    struct read_list round;    /* waiting for the round under way */
    uint64_t round_ctx, round_ms;

    /* turn_peer.c */
    struct mail_list transfers; /* struct transfer_wait under way */
    struct peer_event sent_events[RAFT_MEMBERS_MAX]; /* of turn_snapshot_sent */
    _Atomic bool sent_taken[RAFT_MEMBERS_MAX]; /* by whoever posts it, until it is stepped */
    uint64_t stall_ms, stall_seq; /* the log has not moved since: leadership is handed on at stall_ms; 0: it moves */

    /* turn_lease.c */
    uint64_t lease_look_ms;    /* something was committed: look at the leases then */
    uint64_t checkpoint_ms;    /* when to look for leases to checkpoint */
    struct ask_table *asks;    /* this member's, under way; NULL: there was never one */
    uint64_t asks_ms;          /* when to look at them again */
    struct mail_list queries;  /* of any member, that wait for us to know the leases */
    struct mail_list unsure;   /* that came since the read under way began; the next one proves that we led after */
    struct mail_list sure;     /* the same, of the read under way */
    struct read_wait sure_read;
    _Atomic bool sure_waits;   /* it is under way; its done, on any thread, ends that */
    struct mail_list clears;   /* that wait for the checkpoint of their lease to be taken back */
    struct mail_list clearing; /* the same; the entry is at clear_index */
    uint64_t clear_index;
    uint32_t n_queries;

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
    struct mailbox read_box, conf_box, transfer_box, ask_box;
    struct mailbox peer_box;   /* struct peer_msg */
    struct mailbox event_box;  /* struct peer_event */
    struct mailbox wal_box;    /* struct store_job */
    _Atomic uint64_t stored;   /* by the WAL thread: highest durable store_seq */
    _Atomic size_t unstored_bytes;
    _Atomic uint32_t inbox;    /* messages in peer_box, */
    _Atomic size_t inbox_bytes; /* and of their entries */
    _Atomic uint64_t applied;  /* by apply's wait */
    _Atomic bool applied_waits;
    _Atomic uint64_t flushed, release_to;
    struct {
        _Atomic uint64_t member, index, until_ms;
    } keeps[LIMIT_SNAP_SENDS]; /* of the log, for snapshots; until_ms 0: not */
    _Atomic uint32_t read_waits;
    _Atomic bool round_open;   /* a read that is posted wakes nobody: the round's end looks for it */
    _Atomic bool reads_alone;  /* the last round was of one read */
    _Atomic bool reads_free;   /* turn_read may say: go */
    _Atomic bool stopping, stopped;
    bool started;
    pthread_t thread, wal_thread;
    pthread_mutex_t stop_mu;   /* who answers what comes after the stop: there is no thread left to mail it to */

    /* The status, relaxed. */
    _Atomic uint64_t pub_term, pub_leader, pub_commit, pub_last, pub_changes, pub_failed, pub_fsyncs, pub_bytes;
    _Atomic uint64_t pub_dropped; /* messages beyond the inbox */
    _Atomic bool pub_is_leader, pub_is_learner, pub_is_faulty;
    struct {
        _Atomic uint64_t id, match, next;
        _Atomic uint32_t state;
        _Atomic bool active, paused;
    } pub_peers[RAFT_MEMBERS_MAX]; /* id 0: none */
};

/* turn_take.c */
void turn_take_stored(struct turn *t);
void turn_take_confs(struct turn *t);
uint64_t turn_look_applied(struct turn *t);
void turn_take_applied(struct turn *t, uint64_t applied);
void turn_take_flushed(struct turn *t, uint64_t flushed);
void turn_wait_for_apply(struct turn *t);

/* turn.c */
int turn_raft(struct turn *t, struct raft_in in); /* one input. 0, or what raft_step refused with */
size_t turn_room_bytes(struct turn *t);           /* of entries that the WAL thread's queue still takes */
bool turn_propose_own(struct turn *t, struct entry *e); /* one entry of our own; false: not now. Takes no reference */
/* After something was posted: wakes the turn, or steps it on this thread instead, where that saves a thread. */
void turn_poke(struct turn *t);
/* The same, and to be called after every post: when the turn has stopped, all that waits is answered. */
void turn_answer_late(struct turn *t);

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
void turn_snap_merge(struct turn *t, const struct store_job *j); /* the WAL thread, as next */
void turn_snap_tick(struct turn *t);                                                          /* now and then */
uint64_t turn_snap_floor(const struct turn *t, uint64_t to);                                  /* at most `to` may go */
int turn_snap_install(struct turn *t); /* 0, also when there is none; -ENOSPC: try again; -errno */

/* turn_propose.c */
void turn_proposals_step(struct turn *t);
void turn_proposals_settle(struct turn *t);             /* something was applied */
void turn_proposals_expire(struct turn *t);
void turn_proposals_stop(struct turn *t);
void turn_proposals_foreign(struct turn *t, struct peer_msg *m); /* PEER_PROPOSE; takes m */
void turn_proposals_refused(struct turn *t, const struct peer_msg *m); /* PEER_REFUSED */
void turn_proposals_demoted(struct turn *t);            /* no longer leader: what others sent goes back */
bool turn_proposals_wait(const struct turn *t);

/* turn_peer.c */
void turn_peers_step(struct turn *t);                   /* events and messages */
void turn_peers_send(struct turn *t, const struct raft_msg *msgs, uint32_t n);
void turn_send(struct turn *t, struct peer_msg *m);     /* takes m; NULL: there was no memory for it, so it is lost */
void turn_peers_watch(struct turn *t);                  /* a log that stalls, transfers that take too long */
void turn_peers_led(struct turn *t);                    /* another leader is known */
uint64_t turn_peers_deadline_ms(const struct turn *t);
void turn_peers_publish(struct turn *t);
void turn_peers_stop(struct turn *t);
void turn_peers_fini(struct turn *t);

/* turn_read.c */
void turn_reads_add(struct turn *t, struct read_wait *w); /* turn_read for the turn itself: begins in this very step */
void turn_reads_step(struct turn *t);
void turn_reads_done(struct turn *t, const struct raft_read *done, uint32_t n);
void turn_reads_lost(struct turn *t);
void turn_reads_expire(struct turn *t);
void turn_reads_stop(struct turn *t); /* answers all that wait here */

/* turn_lease.c */
void turn_leases_step(struct turn *t);
uint64_t turn_leases_deadline_ms(struct turn *t);
void turn_leases_message(struct turn *t, const struct peer_msg *m); /* PEER_LEASE_RENEW, _RENEWED */
void turn_leases_led(struct turn *t);                   /* the leader has changed: it is asked anew */
void turn_leases_demoted(struct turn *t);
void turn_leases_hand_over(struct turn *t);             /* before a transfer: what is left of each goes into the log */
uint64_t turn_leases_goal(const struct turn *t);        /* the index they wait for; 0: none */
void turn_leases_expire(struct turn *t);
void turn_leases_stop(struct turn *t);
void turn_leases_fini(struct turn *t);
