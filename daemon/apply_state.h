/* SPDX-License-Identifier: Apache-2.0 */
/* apply_state.h - what the files of apply share: its state, and one entry on its way through it.
 *
 * apply.c      the loop: take an entry, dispatch, publish, answer; waits; what any thread may ask
 * apply_kv.c   put, delete, txn, compact
 * apply_lease.c  grant, revoke, expire, checkpoint
 * apply_rows.c alarms, loading the small tables
 * apply_member.c  members and the raft configuration
 * apply_flush.c  freezing, the flush thread, the sweep
 * apply_hash.c  the hashes of compactions
 * apply_defrag.c  a compacted copy of base in its place
 * apply_install.c  a snapshot in place of everything
 *
 * Owner: the apply thread, but for what stands under "shared".
 */
#pragma once
#include <stdatomic.h>
#include "apply.h"
#include "err.h"
#include "msg.h"
#include "mvcc.h"
#include "raftconf.h"
#include "token.h"
#include "txn.h"

#define APPLY_ENTRIES_A_STEP 256  /* then messages are looked at again */
#define MEMBERS_MAX 64
#define MEMBER_IDS_MAX 4096       /* members there are and were: no more are added */
#define ALARMS_MAX 256            /* of 64 members, and of ids that are none */
#define HASHES_KEPT 10            /* of compactions, as etcd; older ones go */

/* A physical compaction that waits for its sweep. */
struct physical_wait {
    struct physical_wait *next;
    int64_t compact_rev;
    struct proposal *p;
};

/* HashKV(rev) of a compaction to rev, over what there was before its sweep. */
struct compact_hash {
    int64_t prev_rev, rev; /* the compact revision before, and this one */
    uint32_t hash;         /* once ready */
    bool ready;
};

struct apply {
    struct apply_options o;
    struct turn *turn;
    void (*on_publish)(void *ctx);
    void *on_publish_ctx;
    void (*on_members)(void *ctx);
    void *on_members_ctx;

    /* The state as of `applied`. */
    uint64_t applied, applied_term;
    int64_t rev, compact_rev, key_count;
    uint64_t hash;
    uint8_t conf_bytes[RAFTCONF_BYTES_MAX];
    struct slice conf;                 /* in conf_bytes, as raftconf.c encodes it */
    struct alarm alarms[ALARMS_MAX];   /* written under mu */
    size_t n_alarms;
    bool nospace, corrupt;
    Etcdserverpb__Member *members[MEMBERS_MAX]; /* by id, ascending; heap; written under mu */
    size_t n_members;
    uint64_t *removed;                 /* ids that were members; heap; written under mu */
    size_t n_removed;

    /* Reading and executing. */
    struct slot *slot;
    struct view view;
    bool view_open;
    struct delta *scratch;
    struct txn_run run;
    struct arena work;                 /* of one entry */
    alignas(max_align_t) uint8_t work_first[4096];

    /* Who waits. */
    struct apply_wait *waits;
    uint64_t waits_min;                /* lowest index among them */
    struct flush_wait *flush_waits;    /* all wait for base to hold flush_goal */
    uint64_t flush_goal;
    struct physical_wait *physical;
    struct flush_wait *defrag_waits;   /* all are answered by the next copy */

    /* Freezing. */
    uint64_t frozen_index;             /* applied when the live delta began */
    uint64_t last_entry_ms;
    bool freeze_now, flush_blocked;    /* blocked: the last flush found no room */
    bool freeze_apart;                 /* the last delta was full: this member's turn among the others has come */
    bool defragmenting;                /* nothing is frozen meanwhile */
    bool retired_dir;                  /* there is a base besides the current one, which may still be open */
    bool failed;                       /* fatal was called: nothing more is applied */

    /* ---- shared ---- */
    struct token token;                /* who holds it is "the apply thread" above */
    struct mailbox box;                /* only ever nudged: messages lie in the boxes below */
    struct mailbox wait_box, flush_box, defrag_box;
    _Atomic uint64_t commit;
    _Atomic bool stopping, stopped;
    pthread_mutex_t mu;                /* alarms and members: other threads copy them; an answer is needed at once */
    _Atomic bool alarm_proposed;       /* NOSPACE is on its way through raft */
    pthread_t thread, flush_thread;
    bool started;

    /* between apply and the flush thread */
    struct mailbox flusher;            /* nudged */
    _Atomic(struct delta *) to_flush;  /* set by apply, cleared by flush when it is in base */
    _Atomic bool flush_done;           /* set by flush, cleared by apply */
    _Atomic bool no_space;             /* the last flush found no room on the disk */
    _Atomic int64_t swept_to;          /* the sweep has finished up to this compact revision */
    _Atomic bool flush_stop;
    _Atomic bool defrag_wanted;        /* set by apply, cleared by it when the copy is in use, or dropped */
    _Atomic bool defrag_done;          /* set by flush, cleared by apply */
    struct base *defrag_base;          /* flush's result, before defrag_done */
    bool tidied;                       /* the flush thread's: what a crash has left is removed */
    _Atomic bool remove_dirs;          /* a base is closed: flush removes what is not current */
    int defrag_err;
    _Atomic bool installing;           /* set by the WAL thread; cleared by apply when the new state is in use */
    _Atomic(struct base *) install_base; /* set by the WAL thread, taken by apply */
    _Atomic bool flush_park;           /* apply wants the flush thread to stand still ... */
    _Atomic bool flush_parked;         /* ... and it does */
    pthread_mutex_t sweep_mu;          /* held for a batch of the sweep: who holds it back must know that none is under
                                        * way */
    unsigned sweep_holds;              /* under sweep_mu */
    int64_t sweep_goal;                /* the flush thread's: C of the newest flush */
    uint64_t sweep_at_ms, retry_at_ms; /* the flush thread's */
    struct slot *flush_slot;           /* the flush thread's */
    struct mvcc_hash hashing;          /* the flush thread's */
    struct base_scrub *scrub;          /* the flush thread's */
    uint64_t scrub_at_us;              /* the flush thread's; UINT64_MAX: no more */
    pthread_mutex_t hash_mu;
    struct compact_hash hashes[HASHES_KEPT]; /* by rev; under hash_mu */
    size_t n_hashes;                   /* under hash_mu */

    /* the hash after each of the newest entries; index is 0 while hash is written */
    struct {
        _Atomic uint64_t index, hash;
    } state_hashes[STATE_HASHES_KEPT];

    /* counters for metrics and the quota, relaxed */
    _Atomic uint64_t puts, deletes, ranges, txns, compacted_records, slow_applies;
    _Atomic int64_t put_bytes, keys;
    _Atomic uint64_t db_bytes, db_in_use_bytes, coming_bytes; /* coming: in the deltas, not yet in the file */
    int64_t live_bytes, frozen_bytes;  /* apply's: of keys and values */
    _Atomic bool nospace_seen;
    _Atomic bool damaged;              /* met by whoever reads base */
};

/* One entry on its way. */
struct applying {
    const struct entry *entry;
    struct entry_head head;
    struct proposal *p;    /* NULL: nobody waits */
    struct arena *out;     /* p's, or NULL */
    void *response;
    int err;               /* for the caller alone: the entry was applied all the same */
    bool hold;             /* the answer comes later */
    int64_t *revoked;      /* leases to drop from the table after publishing; in work */
    size_t n_revoked;
};

/* Each applies one kind of entry: 0, ERR_x with nothing changed, or -errno: the member must stop. */
int apply_put(struct apply *a, struct applying *x);
int apply_delete_range(struct apply *a, struct applying *x);
int apply_txn(struct apply *a, struct applying *x);
int apply_rename(struct apply *a, struct applying *x);
int apply_compact(struct apply *a, struct applying *x);
int apply_lease_grant(struct apply *a, struct applying *x);
int apply_lease_revoke(struct apply *a, struct applying *x);
int apply_lease_expire(struct apply *a, struct applying *x);
int apply_lease_checkpoint(struct apply *a, struct applying *x);
int apply_alarm(struct apply *a, struct applying *x);
int apply_member_attr(struct apply *a, struct applying *x);
int apply_member_peers(struct apply *a, struct applying *x);
int apply_conf(struct apply *a, struct applying *x);

/* apply.c */
int apply_view(struct apply *a, struct view **ret_view); /* as of a->rev; stays open until apply_view_close */
void apply_view_close(struct apply *a);
void apply_fail(struct apply *a, int err, const char *what); /* the member must stop */
/* A request's body, decoded into a->work; -EBADMSG. */
int apply_decode(struct apply *a, const struct applying *x, const ProtobufCMessageDescriptor *d, void *ret_msg);
/* Takes over what a->run has changed. */
void apply_ran(struct apply *a);

/* apply_rows.c */
int row_put(struct apply *a, enum table t, struct slice id, struct slice value); /* value.ptr NULL: deleted */
int rows_load(struct apply *a);  /* all small tables, from the store; after rows_free, when there were some */
void rows_free(struct apply *a); /* alarms and members; leases are the lease table's */

/* apply_member.c */
int members_load(struct apply *a, struct view *v);
void members_free(struct apply *a);

/* apply_lease.c */
int leases_load(struct apply *a, struct view *v);

/* apply_flush.c */
void freeze_if_due(struct apply *a, uint64_t now_ms);
uint64_t freeze_deadline_ms(const struct apply *a);
void flush_collect(struct apply *a);  /* what the flush thread has finished */
void flush_answer(struct apply *a);   /* flush waits and physical compactions that are done */
void flush_give_up(struct apply *a);  /* at a stop: whoever still waits is told */
bool apply_stalled(const struct apply *a);
void *flush_main(void *arg);
void apply_damaged(void *ctx, const char *where); /* any thread; ctx: the struct apply */
void note_sizes(struct apply *a);     /* the flush thread */

/* apply_hash.c */
void hash_note(struct apply *a, int64_t prev_rev, int64_t rev);
void state_hash_note(struct apply *a); /* of a->applied */
int hash_step(struct apply *a); /* the flush thread. 0: none is due, 1: some work done, come again; -errno */

/* apply_defrag.c */
void defrags_take(struct apply *a);
void defrag_collect(struct apply *a);
void defrag_stop(struct apply *a);    /* a stop has begun: no copy is waited for */
void defrag_give_up(struct apply *a); /* at its end: whoever still waits is told */
void defrag_closed(struct apply *a);  /* replaced layers are all gone */
void defrag_copy(struct apply *a);    /* the flush thread */
void defrag_remove(struct apply *a);  /* the flush thread */

/* apply_install.c */
bool apply_installing(const struct apply *a); /* any thread; from before CURRENT is switched until the store is */
bool install_collect(struct apply *a);        /* true: it could not be done yet, come again soon */
bool flush_parks(struct apply *a);            /* the flush thread: do nothing */

/* apply.c: the state as base has it */
int state_load(struct apply *a);

/* A response for who waits; NULL when nobody does, or when it does not fit (the caller is told). */
static inline void *answer_new(struct applying *x, const ProtobufCMessageDescriptor *d)
{
    void *m = x->out ? msg_new(x->out, d) : NULL;

    if (m == NULL && x->out)
        x->err = ERR_ARENA_FULL;
    return m;
}
