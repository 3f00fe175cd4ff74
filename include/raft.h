/* SPDX-License-Identifier: Apache-2.0 */
/* raft.h - the Raft state machine: indexes, terms and votes; no bytes, no I/O.
 *
 * The core is a function: state x input -> state x output. It reads no clock, opens no file, starts
 * no thread and allocates nothing: same inputs, same outputs, on any machine. The bytes of entries
 * never enter it: it moves indexes, the host moves bytes.
 *
 *     input --> raft_step() --> output:  store, send, apply, wait
 *
 * What the host must do:
 *   1. Store what outputs ask for, in the order of store_seq, and answer RAFT_IN_STORED.
 *   2. Send messages, in any order, whenever it likes, or not at all. They may leave before anything
 *      of the same output is stored: what promises durability is put out by the step that takes the
 *      STORED covering it.
 *   3. Apply committed entries in order and answer RAFT_IN_APPLIED; tell of a configuration entry it
 *      has applied by RAFT_IN_CONF, before the RAFT_IN_APPLIED that covers it.
 *   4. Step RAFT_IN_TIME no later than deadline_ms: nothing else acts on deadlines. What is applied by then is told
 *      before it: who wants to stand may wait for that, and for nothing else.
 *
 * Threads: one owner; no call may overlap another on the same struct raft.
 * Source:  Ongaro 2014 (thesis), cited as "T 3.4"; etcd-io/raft for PreVote, CheckQuorum, learners,
 *          joint consensus and ReadIndex.
 */
#pragma once
#include "bytes.h"

/* Every array of the core has its bound here. */
enum {
    RAFT_MEMBERS_MAX = 16,   /* members of one configuration, learners and both halves of a joint one */
    RAFT_RUNS_MAX = 8192,    /* terms in the log; when full, no entry of a new term is taken and this
                              * member does not stand, until RAFT_IN_COMPACT: see raft_status.n_runs */
    RAFT_MSG_RUNS_MAX = 8,   /* terms in one APPEND; a range of more is sent in pieces */
    RAFT_APPEND_MAX = 1024,  /* entries in one APPEND */
    RAFT_INFLIGHT_MAX = 128, /* APPENDs on their way to one follower: see raft_params.inflight_max */
    RAFT_STORES_MAX = 4096,  /* outputs not yet STORED; past it proposals and appends are refused */
    RAFT_READS_MAX = 256,    /* read rounds that wait, our own and those of followers */
    RAFT_MSGS_MAX = 256,     /* messages of one output */
    RAFT_FENCE_TERMS = 1 << 20, /* see raft_params.fence_term */
};

/* ---- configurations ---------------------------------------------------------------------------- */

/* Member ids, ascending, without duplicates, never 0. */
struct raft_set {
    uint32_t n;
    uint64_t ids[RAFT_MEMBERS_MAX];
};

/* Who votes and who follows. A decision needs a majority of voters and, while outgoing is not empty
 * (joint, T 4.3), a majority of outgoing too. Learners are in neither; learners_next become learners
 * when the joint configuration is left, until then they still vote in outgoing. */
struct raft_conf {
    struct raft_set voters, outgoing, learners, learners_next;
    bool auto_leave; /* the leader itself proposes to leave the joint configuration */
};

enum raft_change_op { RAFT_ADD_VOTER = 1, RAFT_ADD_LEARNER = 2, RAFT_REMOVE = 3 };

/* What a configuration entry asks for. No changes: leave the joint configuration. */
struct raft_conf_change {
    enum raft_transition {
        RAFT_TRANSITION_AUTO = 0,     /* simple when one voter changes, else joint with auto_leave */
        RAFT_TRANSITION_IMPLICIT = 1, /* joint, left by the leader */
        RAFT_TRANSITION_EXPLICIT = 2, /* joint, left by another entry */
    } transition;
    uint32_t n;
    struct {
        enum raft_change_op op;
        uint64_t id;
    } changes[RAFT_MEMBERS_MAX];
};

/* The configuration after a change. 0, or -EINVAL: not possible from here.
 * Pure: the host calls it too, before it proposes. */
int raft_conf_apply(const struct raft_conf *conf, const struct raft_conf_change *change,
                    struct raft_conf *ret_conf);
bool raft_conf_valid(const struct raft_conf *conf);
bool raft_set_has(const struct raft_set *set, uint64_t id);

/* ---- messages ---------------------------------------------------------------------------------- */

/* From `first` on (up to the next run) entries are of this term. */
struct raft_run {
    uint64_t first, term;
};

/* Numbers are on the wire: never renumber. */
enum raft_msg_type {
    RAFT_APPEND = 1,          /* entries (index, last], whose terms runs say; log_term is index's */
    RAFT_APPEND_REPLY = 2,    /* index: match; reject: index is the refused one, hint and log_term where to try */
    RAFT_HEARTBEAT = 3,       /* commit: the least of the leader's and what agrees there; index: the leader's; ctx: the
                               * newest read round */
    RAFT_HEARTBEAT_REPLY = 4, /* ctx echoed */
    RAFT_VOTE = 5,            /* index, log_term: the candidate's last entry; transfer */
    RAFT_VOTE_REPLY = 6,      /* reject: index, log_term are the newest entry the voter knows to be committed */
    RAFT_PRE_VOTE = 7,        /* term: the one the sender would campaign in; otherwise as VOTE */
    RAFT_PRE_VOTE_REPLY = 8,  /* the same */
    RAFT_SNAPSHOT = 9,        /* index, log_term, conf: what the host's transfer holds */
    RAFT_TIMEOUT_NOW = 10,    /* campaign at once (T 3.10) */
    RAFT_READ = 11,           /* ctx: a follower asks for a read index */
    RAFT_READ_REPLY = 12,     /* ctx echoed; index */
    RAFT_COMMIT = 13,         /* commit: the leader's; has no answer */
    RAFT_MSG_TYPES
};

struct raft_msg {
    enum raft_msg_type type;
    bool reject, transfer;
    uint64_t from, to, term;
    uint64_t index, log_term, last, commit, hint, ctx;
    uint32_t n_runs;
    struct raft_run runs[RAFT_MSG_RUNS_MAX];
    /* SNAPSHOT. Going out: NULL, and index, log_term are the least the transfer must hold; the host
     * sends newer ones and the configuration as of them. Coming in: set, valid for the call. */
    const struct raft_conf *conf;
};
/* The host attaches the bytes of entries (index, last] to an APPEND. It may send the range in
 * consecutive pieces (each with its own index, log_term and runs) when the bytes are too many. A
 * SNAPSHOT is stepped at the receiver when all of its bytes have arrived. */

/* ---- inputs ------------------------------------------------------------------------------------ */

enum raft_in_type {
    RAFT_IN_TIME,        /* nothing but now_ms */
    RAFT_IN_MSG,         /* msg */
    RAFT_IN_STORED,      /* store_seq */
    RAFT_IN_APPLIED,     /* index */
    RAFT_IN_PROPOSE,     /* n_entries */
    RAFT_IN_PROPOSE_CONF,/* change; one entry */
    RAFT_IN_CONF,        /* index, change: a configuration entry has been applied */
    RAFT_IN_READ,        /* a read round, please */
    RAFT_IN_TRANSFER,    /* member: make it leader; our own id: give up a transfer */
    RAFT_IN_CAMPAIGN,    /* stand now, with a pre-vote (tests, force-new-cluster) */
    RAFT_IN_SUSPECT,     /* member: its process is gone; when it leads, stand at once */
    RAFT_IN_FORGET,      /* forget the leader, keep following who comes: pre-votes are granted */
    RAFT_IN_UNREACHABLE, /* member: messages to it were lost, probe again */
    RAFT_IN_SNAPSHOT_SENT, /* member, ok: the transfer a SNAPSHOT message asked for has ended */
    RAFT_IN_COMPACT,     /* index: the host no longer has entries <= index, all of them applied */
};

struct raft_in {
    enum raft_in_type type;
    bool ok;
    uint64_t now_ms; /* monotonic, any origin; must not go back */
    uint64_t store_seq, index, member;
    uint32_t n_entries;
    const struct raft_msg *msg;            /* borrowed for the call */
    const struct raft_conf_change *change; /* borrowed for the call */
};

/* ---- output ------------------------------------------------------------------------------------ */

/* Whose bytes the entries first..last of an output are. */
enum raft_entries {
    RAFT_ENTRIES_NONE,
    RAFT_ENTRIES_PROPOSED, /* those of the PROPOSE or PROPOSE_CONF of this step, in order */
    RAFT_ENTRIES_MSG,      /* those of the APPEND of this step; perhaps not its first ones */
    RAFT_ENTRIES_EMPTY,    /* one, empty: a new leader's (T 6.4) */
    RAFT_ENTRIES_LEAVE,    /* one: a configuration entry with no changes */
};

enum raft_out_flags {
    RAFT_OUT_STATE = 1u << 0,      /* term or vote changed: store them with store_seq */
    RAFT_OUT_ROLE = 1u << 1,       /* role, term, leader or faulty changed */
    RAFT_OUT_CONF = 1u << 2,       /* the configuration changed: raft_conf_of() */
    RAFT_OUT_READS_LOST = 1u << 3, /* every round that waited will not be answered: ask anew */
    RAFT_OUT_SNAPSHOT = 1u << 4,   /* install the snapshot of this step's message under store_seq: the
                                    * log is empty after first - 1 = its index; applied jumps there
                                    * when STORED comes */
};

struct raft_read {
    uint64_t ctx;   /* as read_started said */
    uint64_t index; /* the read is linearizable once this is applied */
};

/* What the host owes after a step. Borrowed from the core and valid until the next call on it. */
struct raft_out {
    /* Make durable, in the order of store_seq, then answer STORED with the highest durable one. */
    uint64_t store_seq;          /* 0: nothing to store */
    uint64_t term, vote, commit; /* of this member; commit is the watermark to write with the batch */
    uint64_t first, last;        /* entries to append: cut the log at `first`, then append; 0, 0: none */
    uint64_t entries_term;       /* when there are entries that are not RAFT_ENTRIES_MSG */
    enum raft_entries entries;
    uint32_t flags;
    /* May leave at once, see above. */
    const struct raft_msg *msgs;
    uint32_t n_msgs;
    uint32_t n_reads; /* rounds that are done */
    const struct raft_read *reads;
    uint64_t read_started; /* RAFT_IN_READ: the round's context, never used before */
    /* Apply up to here: min(commit, stored on this member); never goes back. */
    uint64_t apply_to;
    /* Step RAFT_IN_TIME no later than this. */
    uint64_t deadline_ms;
};

/* ---- the core ---------------------------------------------------------------------------------- */

struct raft;

/* What the member is made of at start. The log's part comes from the WAL, the rest from base. */
struct raft_params {
    uint64_t id;
    uint64_t seed;   /* spreads election timeouts, makes read contexts of this boot unique: random */
    uint64_t now_ms;
    uint32_t heartbeat_ms, election_ms; /* election_ms > heartbeat_ms > 0 */
    uint32_t uncommitted_max;           /* entries a leader may have uncommitted; 0: no bound of its own */
    /* APPENDs on their way to one follower, <= RAFT_INFLIGHT_MAX; 0: that many. The bound in bytes is the host's, for
     * the core sees none: an APPEND is a range of indexes until it leaves, so what waits costs nothing, and what has
     * left is at most as many bytes as the host puts into one message, times this. (Its proposals the host bounds in
     * bytes before it steps them.) */
    uint32_t inflight_max;
    uint64_t term, vote, commit;        /* hard state */
    uint64_t first_index, first_term;   /* the entry before the first one in the log */
    uint64_t last_index;                /* >= first_index */
    const struct raft_run *runs;        /* ascending, of first_index + 1 ... last_index; copied */
    uint32_t n_runs;
    uint64_t applied;                   /* first_index <= applied <= last_index */
    struct raft_conf conf;              /* as of applied */
    /* Not 0: this member is FAULTY, it may have lost what it promised (a record or a row failed its check). It follows
     * and takes entries and snapshots, but never votes nor stands, until it has stored the log or a snapshot up to
     * something committed in a term after fence_term: raft_status.faulty is false from then on.
     *
     * How to make one: keep what is sound from the beginning (a base without a log, or nothing at all: every index 0);
     * choose fence_term = the highest term found anywhere (records, rows), + 1 when all of the hard state is known for
     * certain, + RAFT_FENCE_TERMS when some of it may be lost; store fence_term and, as hard state, term = fence_term +
     * 1, vote = 0, before the core starts (term < fence_term is refused; with fence_term itself, a leader of just that
     * term would stay, and nothing of a later one ever come); give the same fence_term at every start until faulty is
     * false. A running member becomes faulty by another raft_init.
     *
     * Why that is enough: no promise of before, a vote or an acknowledgement, is of a term after the fence. Leaders of
     * earlier terms are refused and step down. Those of later ones are elected without this member, by a quorum that
     * saw every committed entry (T 3.6.3), and what this member acknowledges to them it has; so its acknowledgements
     * count at once. It may vote when its own log is that of such a leader up to something committed in its term,
     * for then it holds all that it could ever have helped to commit. */
    uint64_t fence_term;
    /* Reads without a round of messages while a quorum has promised, by its clocks, not to elect another leader (T
     * 6.4.1). Wrong when a clock is off by more than a tenth, or a thread sleeps between reading the clock and the
     * step: off by default. The same for all members. With it SUSPECT and FORGET do nothing, for they would break the
     * promise. */
    bool lease_reads;
};

/* Bytes and alignment (max_align_t) of the storage that raft_init wants. */
size_t raft_size(void);

/* mem is the host's and outlives the core; there is nothing to free. A follower is born; a sole voter
 * stands at the first step. 0, or -EINVAL: the parts contradict each other (they come from disks). */
int raft_init(void *mem, const struct raft_params *p, struct raft **ret_raft);

/* Take one input, say what follows from it.
 *
 * in       not kept after the call
 * ret_out  filled on success, untouched on failure
 *
 * Returns 0, or, with nothing changed,
 *   ERR_NOT_LEADER         PROPOSE, PROPOSE_CONF, TRANSFER on a follower; forward to raft_status.leader
 *   ERR_NO_LEADER          READ without a leader
 *   ERR_PROPOSAL_DROPPED   PROPOSE while leadership is being transferred, or this member was removed;
 *                          PROPOSE_CONF while another change is not yet applied
 *   ERR_TOO_MANY_REQUESTS  uncommitted_max, RAFT_STORES_MAX, RAFT_READS_MAX or RAFT_RUNS_MAX; later
 *   ERR_BAD_TRANSFEREE     TRANSFER to a member that does not vote
 *   -EINVAL                PROPOSE_CONF of a change that raft_conf_apply refuses; COMPACT outside the
 *                          applied log; STORED beyond what was asked for
 *
 * Never fails on a message, however malformed: what Raft does not understand it drops, and counts in
 * raft_status.dropped. */
int raft_step(struct raft *r, const struct raft_in *in, struct raft_out *ret_out);

enum raft_role { RAFT_FOLLOWER, RAFT_PRE_CANDIDATE, RAFT_CANDIDATE, RAFT_LEADER };

struct raft_status {
    uint64_t id, term, vote, leader; /* leader 0: none known */
    uint64_t commit, applied, stable, first_index, last_index; /* stable: stored on this member */
    enum raft_role role;
    bool is_voter, is_learner;
    bool sole_voter;    /* and that is this member */
    bool confirmed;     /* leads, and has committed an entry of its term: a quorum follows it */
    bool faulty;        /* see raft_params.fence_term */
    uint64_t transferee;
    uint32_t n_runs;    /* past RAFT_RUNS_MAX / 2 the host should compact, whatever its floor says */
    uint64_t dropped;   /* messages that made no sense or came at a bad time */
    uint64_t stored_seq, last_seq; /* equal: nothing waits to be stored */
};
void raft_status(const struct raft *r, struct raft_status *ret_status);

/* The configuration in force; borrowed until the next step. */
const struct raft_conf *raft_conf_of(const struct raft *r);

/* The term of an entry of the log (or of first_index); 0: not there. */
uint64_t raft_term_of(const struct raft *r, uint64_t index);

/* How far a follower is, on the leader. */
struct raft_peer {
    uint64_t id, match, next;
    enum raft_peer_state { RAFT_PROBE, RAFT_REPLICATE, RAFT_SNAPSHOTTING } state;
    bool recent_active, paused;
};
/* false: no such member, or this is not the leader. */
bool raft_peer(const struct raft *r, uint64_t id, struct raft_peer *ret_peer);
