/* SPDX-License-Identifier: Apache-2.0 */
/* txn.h - puts, deletes and transactions: argument checks, state checks, execution over a view.
 *
 * Three steps, each a walk over the same tree:
 *
 *     txn_check_args   needs no state; on the rpc thread, before anything is proposed
 *     txn_decide       which branch each txn of the tree takes, and all that can refuse it: by the state
 *                      before the first change. Nothing is written.
 *     txn_execute      the ops of the branches taken, in order; later ops see earlier ones through the view's scratch
 *
 * A put or delete outside a txn is txn_put / txn_delete alone, a directory renamed txn_rename (txn_rename.c). Nothing
 * here publishes or answers.
 *
 * Owner: whoever runs it (apply for writes; an rpc or scan thread for txns that only read).
 * Source: reference 02-semantics 2.2; etcd v3.7.1 server/etcdserver/api/v3rpc/key.go (argument checks),
 * server/etcdserver/txn/txn.go (order of evaluation).
 */
#pragma once
#include "err.h"
#include "lease.h"
#include "mvcc.h"
#include "rpc.pb-c.h"
#include "store.h"
#include "tree.pb-c.h"

/* ---- argument checks: 0 or ERR_x -------------------------------------------------- */

int txn_check_put(const Etcdserverpb__PutRequest *req);
int txn_check_delete(const Etcdserverpb__DeleteRangeRequest *req);
int txn_check_rename(const Cairn__RenameRequest *req);
/* The whole tree: ops, sizes, depth (ERR_TOO_DEEP), then keys put twice; or -ENOMEM. */
int txn_check_args(const Etcdserverpb__TxnRequest *req, uint32_t max_ops);

/* All ops of both branches are ranges (an empty txn too): it is answered without the log. */
bool txn_read_only(const Etcdserverpb__TxnRequest *req);
/* ... and none of the ranges asks for linearizability. */
bool txn_serializable(const Etcdserverpb__TxnRequest *req);
/* What the quota counts for it; 0: no put in the whole tree. */
#define TXN_COST_OF_PUT 256 /* and its key and value */
int64_t txn_cost_put(const Etcdserverpb__PutRequest *req);
int64_t txn_cost(const Etcdserverpb__TxnRequest *req);
/* Of the keys that the view shows, as far as they may be moved at all. It reads them: long. 0 or -errno. */
int txn_cost_rename(struct view *v, const Cairn__RenameRequest *req, struct arena *a, int64_t *ret_cost);

/* ---- execution --------------------------------------------------------------------- */

struct txn_run {
    struct view *view;     /* open; its scratch set when a txn writes */
    struct delta *into;    /* where changes go; NULL: nothing may change */
    struct lease_table *leases;
    int64_t rev;           /* R before the first change */
    struct arena *out;     /* responses; NULL: nobody waits, ranges are not even read */
    bool borrow;           /* values in responses may point into the view: they are packed before it closes */
    const struct mvcc_limits *limits; /* of ranges; NULL: none */

    /* What came of it. */
    uint32_t n_changes;
    int64_t keys_added;    /* may be negative */
    uint64_t hash;         /* in: of the state before; out: with the changes */
    int out_err;           /* ERR_x: executed all the same, but there is no response (it did not fit) */
    uint64_t n_puts, n_deletes, n_ranges; /* for metrics */
    int64_t put_bytes;

    struct arena row;      /* of one lookup, emptied after it */
    uint8_t *buf;          /* the body being made; kept from run to run */
    size_t buf_bytes;
    bool *path;            /* the branch of each txn met, in the order of the walk; in `work` */
    size_t path_n, path_at;
    struct arena *work;    /* lives as long as the run */
};

void txn_run_init(struct txn_run *x);  /* once */
void txn_run_fini(struct txn_run *x);
/* Before each entry: forgets what the last one left. */
void txn_run_begin(struct txn_run *x, struct view *v, struct delta *into, int64_t rev, struct arena *work,
                   struct arena *out);

/* Each: 0, ERR_x with nothing changed (txn_execute: what the scratch holds is to be dropped), or -errno: the member
 * must stop. *ret is NULL when nobody waits. */
int txn_put(struct txn_run *x, const Etcdserverpb__PutRequest *req, Etcdserverpb__PutResponse **ret);
int txn_delete(struct txn_run *x, const Etcdserverpb__DeleteRangeRequest *req,
               Etcdserverpb__DeleteRangeResponse **ret);
/* Deletes exactly this key, if it is there: the keys of a revoked lease. */
int txn_delete_key(struct txn_run *x, struct slice key);
/* What it came to is in the answer; 0 also when nothing has changed. */
int txn_rename(struct txn_run *x, const Cairn__RenameRequest *req, Cairn__RenameResponse **ret);
int txn_decide(struct txn_run *x, const Etcdserverpb__TxnRequest *req);
int txn_execute(struct txn_run *x, const Etcdserverpb__TxnRequest *req, Etcdserverpb__TxnResponse **ret);

/* One change of a run: gives c its revision, encodes, puts and hashes it. c->body is valid until the next one. */
int txn_change(struct txn_run *x, struct change *c, struct slice value);

/* The revision a header shows now. */
static inline int64_t txn_rev_now(const struct txn_run *x)
{
    return x->rev + (x->n_changes > 0);
}

/* The chain of state hashes: 64 bits, the same on every member. */
uint64_t state_hash_begin(uint64_t h, uint64_t index);
uint64_t state_hash_bytes(uint64_t h, uint64_t tag, struct slice bytes);
