/* SPDX-License-Identifier: Apache-2.0 */
/* mvcc.h - answering Range and HashKV from a view; nothing here writes.
 *
 * Semantics: reference 02-semantics 2.2 (Range) and 2.6 (HashKV); etcd v3.7.1 server/etcdserver/txn/range.go,
 * server/storage/mvcc/hash.go, where ours differ it is written at the place.
 */
#pragma once
#include "rpc.pb-c.h"
#include "store.h"

struct mvcc_limits {
    uint32_t rows_max; /* MVCC_TOO_LONG beyond; 0: none */
    uint32_t time_us;  /* the same, by the clock; 0: none */
};
/* Not an answer to a client: this read is too long for the thread it runs on, do it on the scan pool. */
#define MVCC_TOO_LONG 100000

/* Checks that need no state: empty key, sort enums. 0 or ERR_x. */
int mvcc_check_range(const Etcdserverpb__RangeRequest *req);

/* Fills ret (kvs, more, count; header left to the caller). Values point into the view or a: pack before
 * view_close. ERR_FUTURE_REV, ERR_COMPACTED, ERR_ARENA_FULL, MVCC_TOO_LONG, -errno.
 * rev_now: the revision that "latest" means (view's, or the txn's). */
int mvcc_range(struct view *v, int64_t rev_now, const Etcdserverpb__RangeRequest *req,
               const struct mvcc_limits *lim, struct arena *a, Etcdserverpb__RangeResponse *ret);

/* The request's [key, range_end) as from/end of view_cursor_new; single: exactly one key. */
void mvcc_bounds(struct slice key, struct slice range_end, struct slice *ret_from, struct slice *ret_end,
                 bool *ret_single);

/* HashKV at rev (0: current). Long: opens views of its own, chunk by chunk; call on a scan thread. */
int mvcc_hashkv(struct store *s, struct slot *sl, int64_t rev, uint32_t *ret_hash, int64_t *ret_compact_rev,
                int64_t *ret_hash_rev);

/* The hash that stays with a compaction (apply_hash.c), as of before its sweep: valid while nothing above
 * prev_compact_rev has been swept. A step takes a few milliseconds, in a view of its own. */
struct mvcc_hash {
    struct view *view;                 /* of this step */
    int64_t rev, compact_rev;
    bool of_compaction;
    int64_t next_main;                 /* where the next step goes on */
    uint32_t sum;                      /* as when some key is alive at rev */
    uint32_t sum_if_none;              /* as when none is; meaningless once any_alive */
    bool any_alive;
    uint32_t n_records_max, n_records; /* of this step; 0: no end */
};
#define MVCC_HASH_MORE 200000          /* not done yet; no other call's number */

void mvcc_hash_compaction(struct mvcc_hash *h, int64_t prev_compact_rev, int64_t compact_rev);
int mvcc_hash_step(struct store *s, struct slot *sl, struct mvcc_hash *h); /* 0: done, MVCC_HASH_MORE, -errno */
uint32_t mvcc_hash_sum(const struct mvcc_hash *h);
