/* SPDX-License-Identifier: Apache-2.0 */
/* apply_kv.c - puts, deletes, transactions, renames and compactions, as entries.
 *
 * Order of refusals: the CORRUPT alarm, the NOSPACE alarm, then what the state says. A quota that is exceeded at this
 * point refuses nothing: the entry is applied, its caller gets the error and the alarm is raised, as in etcd; else
 * members with files of different sizes would come to different states.
 *
 * Owner: the apply thread.
 */
#include <errno.h>
#include "apply_state.h"

/* The alarms' say, for what writes. */
static int alarm_check(const struct apply *a, bool puts)
{
    if (a->corrupt)
        return ERR_CORRUPT;
    return puts && a->nospace ? ERR_NOSPACE : 0;
}

static void quota_check(struct apply *a, struct applying *x, int64_t cost)
{
    if (!apply_quota_admits(a, cost))
        x->err = ERR_NOSPACE;
}

void apply_ran(struct apply *a)
{
    a->rev += a->run.n_changes > 0;
    a->key_count += a->run.keys_added;
    a->hash = a->run.hash;
    a->live_bytes += a->run.put_bytes;
    atomic_fetch_add_explicit(&a->puts, a->run.n_puts, memory_order_relaxed);
    atomic_fetch_add_explicit(&a->deletes, a->run.n_deletes, memory_order_relaxed);
    atomic_fetch_add_explicit(&a->ranges, a->run.n_ranges, memory_order_relaxed);
    atomic_fetch_add_explicit(&a->put_bytes, a->run.put_bytes, memory_order_relaxed);
    atomic_store_explicit(&a->keys, a->key_count, memory_order_relaxed);
}

/* The run begins at the state as it is, writing into the live delta. */
static int begin(struct apply *a, struct applying *x)
{
    struct view *v;
    int err = apply_view(a, &v);

    if (err)
        return err;
    txn_run_begin(&a->run, v, store_live(a->o.store), a->rev, &a->work, x->out);
    a->run.hash = a->hash;
    return 0;
}

/* The alarms allow it, its request is read, and its run begins. grows: it may add to the store. */
static int start(struct apply *a, struct applying *x, bool grows, const ProtobufCMessageDescriptor *d, void *ret_req)
{
    int err = alarm_check(a, grows);

    if (!err)
        err = apply_decode(a, x, d, ret_req);
    return err ? err : begin(a, x);
}

/* It is done: what has changed is taken over, and the caller is told. */
static void ran(struct apply *a, struct applying *x, void *resp)
{
    apply_ran(a);
    x->response = resp;
    x->err = a->run.out_err;
}

/* A single put reads what it replaces and then inserts: nothing fails in between, so it needs no scratch. */
int apply_put(struct apply *a, struct applying *x)
{
    Etcdserverpb__PutRequest *req;
    Etcdserverpb__PutResponse *resp;
    int err = start(a, x, true, &etcdserverpb__put_request__descriptor, &req);

    if (!err)
        err = txn_put(&a->run, req, &resp);
    if (err)
        return err;
    ran(a, x, resp);
    quota_check(a, x, txn_cost_put(req));
    return 0;
}

int apply_delete_range(struct apply *a, struct applying *x)
{
    Etcdserverpb__DeleteRangeRequest *req;
    Etcdserverpb__DeleteRangeResponse *resp;
    int err = start(a, x, false, &etcdserverpb__delete_range_request__descriptor, &req);

    if (!err)
        err = txn_delete(&a->run, req, &resp);
    if (err)
        return err;
    ran(a, x, resp);
    return 0;
}

/* What the scratch holds goes into the live delta, in the same order. */
static int insert_scratch(struct apply *a)
{
    struct delta *live = store_live(a->o.store);
    size_t n = delta_changes(a->scratch);
    int err = 0;

    for (size_t i = 0; !err && i < n; i++)
        err = delta_put(live, delta_at(a->scratch, i));
    return err;
}

int apply_txn(struct apply *a, struct applying *x)
{
    Etcdserverpb__TxnRequest *req;
    Etcdserverpb__TxnResponse *resp = NULL;
    int64_t cost = 0;
    int err = alarm_check(a, false);

    if (!err)
        err = apply_decode(a, x, &etcdserverpb__txn_request__descriptor, &req);
    if (!err) {
        cost = txn_cost(req);
        err = alarm_check(a, cost > 0);
    }
    if (!err)
        err = begin(a, x);
    if (err)
        return err;

    a->run.into = a->scratch;
    a->view.scratch = a->scratch;
    err = txn_decide(&a->run, req);
    if (!err)
        err = txn_execute(&a->run, req, &resp);
    if (!err)
        err = insert_scratch(a);
    a->view.scratch = NULL;
    delta_reset(a->scratch);
    if (err)
        return err;
    ran(a, x, resp);
    atomic_fetch_add_explicit(&a->txns, 1, memory_order_relaxed);
    quota_check(a, x, cost);
    return 0;
}

/* As a single put, it needs no scratch. Over the quota it only raises the alarm: who asked must know what was done. */
int apply_rename(struct apply *a, struct applying *x)
{
    Cairn__RenameRequest *req;
    Cairn__RenameResponse *resp;
    int err = start(a, x, true, &cairn__rename_request__descriptor, &req);

    if (!err)
        err = txn_rename(&a->run, req, &resp);
    if (err)
        return err;
    ran(a, x, resp);
    atomic_fetch_add_explicit(&a->txns, 1, memory_order_relaxed);
    (void)apply_quota_admits(a, a->run.put_bytes);
    return 0;
}

/* Logical at once: C in the seal and in what is published. Physical: when the flush thread has swept up to it. */
int apply_compact(struct apply *a, struct applying *x)
{
    Etcdserverpb__CompactionRequest *req;
    int err = alarm_check(a, false);

    if (!err)
        err = apply_decode(a, x, &etcdserverpb__compaction_request__descriptor, &req);
    if (err)
        return err;
    if (req->revision <= a->compact_rev) {
        err = ERR_COMPACTED;
    } else if (req->revision > a->rev) {
        return ERR_FUTURE_REV;
    } else {
        hash_note(a, a->compact_rev, req->revision);
        a->compact_rev = req->revision;
        x->response = answer_new(x, &etcdserverpb__compaction_response__descriptor);
    }
    if (req->physical && x->p) { /* also when it had been compacted before: whoever asks wants the room */
        struct physical_wait *w = malloc(sizeof *w);

        if (w == NULL)
            return -ENOMEM;
        *w = (struct physical_wait){.next = a->physical, .compact_rev = a->compact_rev, .p = x->p};
        a->physical = w;
        a->freeze_now = true;
        x->hold = true;
    }
    return err;
}
