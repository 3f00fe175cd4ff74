/* SPDX-License-Identifier: Apache-2.0 */
/* apply.h - the only writer of state: check, execute, insert, publish, answer.
 *
 * Takes committed entries in order, from the entry cache or the WAL; owns the live delta, the lease table,
 * alarms and the member table; decides freezes; a flush thread (also here) moves the frozen delta into base and
 * sweeps. A failed entry publishes its applied index and nothing else.
 *
 * Owner: the apply thread, but for what is marked "any thread".
 */
#pragma once
#include "base.h"
#include "datadir.h"
#include "entry.h"
#include "lease.h"
#include "mailbox.h"
#include "proposal.h"
#include "seam.h"
#include "store.h"
#include "wal.h"

struct apply;
struct turn;

struct apply_options {
    struct clock *clock;
    struct store *store;
    struct entry_cache *cache;
    struct wal *wal;              /* for entries no longer cached */
    struct account *account;
    struct lease_table *leases;
    uint64_t cluster_id, member_id;
    int64_t quota_bytes;          /* < 0: none */
    uint32_t max_txn_ops;
    struct datadir *datadir;      /* where a defragmented base goes; NULL: cannot defragment */
    struct base_options base;     /* how to open it; path is not read */
    void (*fatal)(void *ctx, int err, const char *what);
    void (*damaged)(void *ctx, const char *what); /* whichever thread has met damage in base (store_damaged). Or NULL */
    void *fatal_ctx;              /* of both */
};

int apply_new(const struct apply_options *o, struct apply **ret_apply); /* loads leases, alarms, members from the
                                                                         * store */
void apply_set_turn(struct apply *a, struct turn *t); /* before start: whom to tell of flushes and propose alarms to */
int apply_start(struct apply *a);  /* the apply and flush threads */
void apply_stop(struct apply *a);  /* freezes, flushes, joins */
void apply_free(struct apply *a);
uint64_t apply_step(struct apply *a);       /* for a simulator; the next deadline in ms */
uint64_t apply_flush_step(struct apply *a);

/* The turn thread: entries up to index are committed and stored here; term of the newest. */
void apply_commit(struct apply *a, uint64_t index);
/* The same for whoever calls apply_help next: apply's thread is not woken. */
void apply_commit_quietly(struct apply *a, uint64_t index);
/* Steps apply once on this thread, unless somebody does already (he then steps again); what is left over is its own
 * thread's. Proposals and waits may be answered on this thread. */
void apply_help(struct apply *a);

/* Any thread: wait until applied >= index; done as in struct read_wait. 0: already so (done is not called); 1:
 * later. */
struct apply_wait {
    struct mail mail;
    uint64_t index;
    void (*done)(struct apply_wait *w);
};
int apply_wait(struct apply *a, struct apply_wait *w);

/* Any thread: called on the apply thread after each publish (the hub's nudge). Set before start. */
void apply_on_publish(struct apply *a, void (*fn)(void *ctx), void *ctx);

/* Any thread: alarms and members as of now, copied into the arena. */
struct alarm { uint64_t member_id; int type; };
size_t apply_alarms(struct apply *a, struct arena *ar, struct alarm **ret_alarms);
struct member {
    uint64_t id;
    struct slice name;
    struct slice *peer_urls, *client_urls;
    size_t n_peer_urls, n_client_urls;
    bool is_learner;
};
size_t apply_members(struct apply *a, struct arena *ar, struct member **ret_members);
/* The ids that were members and are none any more. */
size_t apply_removed(struct apply *a, struct arena *ar, uint64_t **ret_ids);
/* fn is called on the apply thread whenever members (or what they tell of themselves) have changed, and must not wait.
 * Set before start. */
void apply_on_members(struct apply *a, void (*fn)(void *ctx), void *ctx);

/* Any thread: compaction's sweep has finished up to this revision (for physical=true), and counters for metrics. */
struct apply_stats {
    uint64_t puts, deletes, ranges, txns, compacted_records, slow_applies;
    int64_t put_bytes, keys;
    uint64_t db_bytes, db_in_use_bytes;
    bool nospace;
    bool damaged; /* damage in base has been met */
};
void apply_stats(const struct apply *a, struct apply_stats *ret_stats);

/* Any thread: what the state hashes to after the entry at index. False: not applied yet, or longer than
 * STATE_HASHES_KEPT entries ago. */
#define STATE_HASHES_KEPT 4096
bool apply_state_hash(const struct apply *a, uint64_t index, uint64_t *ret_hash);

/* A scan thread: HashKV at rev (0: now), as mvcc_hashkv; of a compaction, its hash as of before the sweep. */
int apply_hashkv(struct apply *a, struct slot *sl, int64_t rev, uint32_t *ret_hash, int64_t *ret_compact_rev,
                 int64_t *ret_hash_rev);

/* Any thread: proposes on this member's own behalf; nobody hears what comes of it. ERR_TOO_MANY_REQUESTS, -ENOMEM. */
int apply_propose(struct apply *a, enum entry_kind kind, struct slice body);
/* Any thread: the quota has room for a write of this cost (txn_cost). When not, the NOSPACE alarm is proposed. */
bool apply_quota_admits(struct apply *a, int64_t cost);
/* Any thread: the disk is full: proposes the NOSPACE alarm of this member, unless it is set or on its way. */
void apply_raise_nospace(struct apply *a);

/* Any thread: the sweep stands still until as many releases have come; a batch of it under way is waited for (some
 * milliseconds). */
void apply_hold_sweep(struct apply *a);
void apply_release_sweep(struct apply *a);

/* The WAL thread: a snapshot is about to be installed: from here on no entry is applied, the log may lose them. */
void apply_install_begin(struct apply *a);
/* The WAL thread, then: CURRENT names this base; it takes the place of all there is. Apply's, soon. */
void apply_install(struct apply *a, struct base *b);
void apply_install_end(struct apply *a); /* or: nothing came of it, the log is as it was */

/* Any thread: freeze and flush now; done when base holds everything applied before the call (stop, defrag, Hash). */
struct flush_wait {
    struct mail mail;
    int err;
    void (*done)(struct flush_wait *w);
};
void apply_flush(struct apply *a, struct flush_wait *w);
/* Any thread: rewrite base compacted and switch to it; reads and writes go on meanwhile. done on the apply thread.
 * err: -EOPNOTSUPP without a datadir, -ENOSPC, -ECANCELED by a stop, or -EIO. */
void apply_defragment(struct apply *a, struct flush_wait *w);
