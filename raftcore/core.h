/* SPDX-License-Identifier: Apache-2.0 */
/* core.h - the state of the core and what its files ask of each other. Nobody outside raftcore sees it.
 *
 *     raft.c      init, step, roles
 *     receive.c   messages in
 *     output.c    messages out, what is stored
 *     members.c   configuration in force, majorities
 *     election.c  campaigns and votes            T 3.4, 3.6.1, 4.2.3, 9.6
 *     leader.c    proposals, replication, commit T 3.5, 3.6.2, 10.2.1
 *     follower.c  appends, heartbeats, snapshots T 3.5, 5
 *     read.c      read index                     T 6.4
 */
#pragma once
#include "progress.h"
#include "quorum.h"
#include "termlog.h"

enum {
    STORES_RESERVED = 8, /* of RAFT_STORES_MAX, for entries a leader makes by itself */
    HELD_MAX = 4 * RAFT_MEMBERS_MAX,
    MSGS_RESERVED = 6 * RAFT_MEMBERS_MAX, /* of RAFT_MSGS_MAX, for all that is not an APPEND */
};

/* Entries handed out for storing: once `seq` is stored, the log is on this disk up to `last`. */
struct store_mark {
    uint64_t seq, last;
};

/* A reply that promises durability, until seq is stored. */
struct held_msg {
    uint64_t seq;
    struct raft_msg msg;
};

/* A read round. Ours when from is our id. */
struct read_round {
    uint64_t ctx, from;
    uint64_t seq;   /* what heartbeats carry; 0: not begun, the leader has no commit of its term yet */
    uint64_t index; /* valid when seq is not 0 */
};

enum campaign { CAMPAIGN_NONE, CAMPAIGN_PRE, CAMPAIGN_REAL, CAMPAIGN_TRANSFER };

struct raft {
    uint64_t id;
    uint32_t heartbeat_ms, election_ms, uncommitted_max;
    uint32_t inflight_max;
    bool lease_reads;
    uint64_t fence; /* not 0: faulty until something of a later term is committed and stored here */
    uint64_t rng;
    uint64_t now; /* the newest now_ms; never goes back */

    /* Hard state (T figure 3.1): durable once state_seq is stored. */
    uint64_t term; /* never goes back */
    uint64_t vote; /* in this term; 0 none */
    uint64_t state_seq; /* <= last_seq */

    /* base <= applied <= apply_to <= commit <= last; stable <= last. */
    struct termlog log;
    uint64_t commit, applied, apply_to;
    uint64_t stable; /* the log is on this disk up to here, as it stands in memory */

    uint64_t last_seq, stored_seq;       /* stored_seq <= last_seq */
    struct store_mark stores[RAFT_STORES_MAX]; /* ascending in seq; their last never above what a cut left */
    uint32_t stores_head, stores_n;
    uint64_t snapshot_index, snapshot_seq; /* being installed; 0: none. Nothing is applied meanwhile */
    struct held_msg held[HELD_MAX];
    uint32_t n_held;

    /* Configuration in force: the newest one applied. */
    struct raft_conf conf;
    uint64_t conf_index;   /* entries up to here are in conf already */
    uint64_t conf_pending; /* a change may wait up to here: none is proposed until applied reaches it */
    struct progress prs[RAFT_MEMBERS_MAX]; /* one for each member of conf */
    uint32_t n_prs;

    enum raft_role role;
    uint64_t leader; /* 0: none known */

    /* Follower. */
    uint64_t append_from; /* the leader of this term, once it was heard */
    uint64_t verified;    /* the log up to here is the leader's of this term; <= last */
    uint64_t commit_heard; /* the leader of this term says that its log is committed up to here */
    bool reply_owed;      /* an APPEND waits for its reply, until what it says is stored */
    uint64_t heard_at;    /* the leader, last; valid while leader is not 0 */
    uint64_t deny_until;  /* lease_reads: no votes before, whatever else happens */

    /* Candidate. */
    enum campaign wanted; /* to stand once everything committed is applied */
    uint64_t wanted_until; /* of a TRANSFER: who asked for it has given up by then */
    uint64_t voted_at;     /* for another; 0: not since the start */
    uint64_t hurry_until;  /* the leader was lost just now: campaigns are tried again soon. 0: no hurry */
    uint32_t hurry_n;      /* votes of this hurry that came to nothing */
    enum campaign campaign;
    uint64_t vote_seq;    /* our vote for ourselves; votes are asked for once it is stored; 0: asked */
    bool voted[RAFT_MEMBERS_MAX], granted[RAFT_MEMBERS_MAX]; /* by index in prs */

    /* Leader. */
    uint64_t transferee;
    struct read_round reads[RAFT_READS_MAX]; /* oldest at head; ascending in seq, the unbegun ones last */
    uint32_t reads_head, reads_n;
    uint64_t read_seq; /* of rounds; grows as long as this struct lives */
    uint64_t read_ctx; /* of our own rounds, likewise; starts anywhere */
    uint64_t lease_seq, lease_at; /* lease_reads: the round that will extend the lease, and when it left; 0: none */
    uint64_t lease_until;         /* 0: no lease */
    bool lease_over;              /* for the rest of this term: we told somebody to campaign */

    /* Deadlines; UINT64_MAX: none. */
    uint64_t election_at, heartbeat_at, quorum_at, transfer_at, read_at;

    uint64_t dropped;

    /* The output being built. */
    struct raft_out out;
    struct raft_msg msgs[RAFT_MSGS_MAX];
    struct raft_read done_reads[RAFT_READS_MAX];
};

/* ---- raft.c ---- */
void raft_become_follower(struct raft *r, uint64_t term, uint64_t leader);
void raft_reset_election(struct raft *r);
uint64_t raft_random(struct raft *r, uint64_t below);

/* ---- receive.c ---- */
void raft_receive(struct raft *r, const struct raft_msg *m);

/* ---- output.c ---- */
struct raft_msg *raft_send(struct raft *r, enum raft_msg_type type, uint64_t to); /* NULL: no room, lost */
bool raft_room_for_append(const struct raft *r); /* may an APPEND use up room? */
/* Answer once everything handed out so far is stored. */
void raft_send_held(struct raft *r, enum raft_msg_type type, uint64_t to, uint64_t term);
bool raft_may_store(const struct raft *r, uint64_t first, uint64_t term, uint32_t new_runs);
void raft_store_entries(struct raft *r, uint64_t first, uint64_t last, enum raft_entries whose);
uint64_t raft_store_seq(struct raft *r); /* this output's */
void raft_restore(struct raft *r, uint64_t index, uint64_t term, const struct raft_conf *conf);
void raft_set_state(struct raft *r, uint64_t term, uint64_t vote);
void raft_set_commit(struct raft *r, uint64_t commit);
int raft_stored(struct raft *r, uint64_t seq);
void raft_drop(struct raft *r);

/* ---- members.c ---- */
void raft_set_conf(struct raft *r, const struct raft_conf *conf);
void raft_conf_entry(struct raft *r, uint64_t index, const struct raft_conf_change *change); /* is applied */
struct progress *raft_progress_of(struct raft *r, uint64_t id); /* NULL: not a member */
bool raft_is_voter(const struct raft *r, uint64_t id);
bool raft_is_sole_voter(const struct raft *r);
/* A majority of the configuration for which of() is true / the value of() a majority has reached. */
bool raft_quorum_of(const struct raft *r, bool (*of)(const struct progress *));
uint64_t raft_quorum_reached(const struct raft *r, uint64_t (*of)(const struct progress *));

/* ---- election.c ---- */
void election_timeout(struct raft *r);
void election_want(struct raft *r, enum campaign how); /* stand when possible */
void election_try(struct raft *r);                     /* something `wanted` waits for may have come */
void election_vote_stored(struct raft *r);
void election_on_vote(struct raft *r, const struct raft_msg *m);
void election_refuse(struct raft *r, enum raft_msg_type answer, uint64_t to);
void election_learn_commit(struct raft *r, const struct raft_msg *m);
void election_on_vote_reply(struct raft *r, const struct raft_msg *m);
bool election_disturbs(const struct raft *r, const struct raft_msg *m); /* who asks for our vote */
bool election_promised(const struct raft *r); /* lease_reads: a leader counts on our waiting */
void election_on_timeout_now(struct raft *r, const struct raft_msg *m);
void election_suspect(struct raft *r, uint64_t id);
void election_leader_heard(struct raft *r);

/* ---- leader.c ---- */
void leader_begin(struct raft *r);
int leader_propose(struct raft *r, uint32_t n);
int leader_propose_conf(struct raft *r, const struct raft_conf_change *change);
int leader_transfer(struct raft *r, uint64_t to);
void leader_deadlines(struct raft *r);
void leader_stored(struct raft *r);
void leader_applied(struct raft *r);
void leader_conf_changed(struct raft *r);
void leader_heartbeat(struct raft *r); /* to all */
void leader_heartbeat_to(struct raft *r, const struct progress *p);
void leader_on_append_reply(struct raft *r, const struct raft_msg *m);
void leader_on_heartbeat_reply(struct raft *r, const struct raft_msg *m);
void leader_on_unreachable(struct raft *r, uint64_t id);
void leader_on_snapshot_sent(struct raft *r, uint64_t id, bool ok, uint64_t index);
bool leader_confirmed(const struct raft *r); /* has committed in its term */

/* ---- follower.c ---- */
void follower_on_append(struct raft *r, const struct raft_msg *m);
void follower_on_heartbeat(struct raft *r, const struct raft_msg *m);
void follower_on_commit(struct raft *r, const struct raft_msg *m);
void follower_on_snapshot(struct raft *r, const struct raft_msg *m);
void follower_stored(struct raft *r);

/* ---- read.c ---- */
int read_begin(struct raft *r);
void read_on_request(struct raft *r, const struct raft_msg *m);
void read_on_reply(struct raft *r, const struct raft_msg *m);
void read_on_ack(struct raft *r, struct progress *p, uint64_t seq);
void read_committed(struct raft *r); /* the first commit of our term: rounds that waited begin */
void read_check(struct raft *r);     /* the quorum may be reached now */
void read_lose(struct raft *r); /* all rounds are given up, and their deadline */
void read_lease_probe(struct raft *r);    /* a heartbeat is about to leave */
void read_lease_give_up(struct raft *r);
