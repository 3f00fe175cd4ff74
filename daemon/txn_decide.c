/* SPDX-License-Identifier: Apache-2.0 */
/* txn_decide.c - which branch each txn of a tree takes, and all that can refuse the branches taken.
 *
 * By the state before the first change, as etcd does: compares of a nested txn do not see what the ops before it put.
 * So the whole tree is decided in one walk and checked in a second one, and only then does anything change (txn.c).
 *
 * Owner:  as txn.h.
 * Source: etcd v3.7.1 server/etcdserver/txn/txn.go (compareToPath, checkTxn).
 */
#include <errno.h>
#include "msg.h"
#include "txn.h"

typedef Etcdserverpb__TxnRequest TxnRequest;
typedef Etcdserverpb__RequestOp RequestOp;

static size_t count_txns(const TxnRequest *req);

static size_t count_list(RequestOp *const *ops, size_t n)
{
    size_t count = 0;

    for (size_t i = 0; i < n; i++)
        if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN)
            count += count_txns(ops[i]->request_txn);
    return count;
}

static size_t count_txns(const TxnRequest *req)
{
    return 1 + count_list(req->success, req->n_success) + count_list(req->failure, req->n_failure);
}

static int order(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

/* A member of the union that does not fit the target counts as zero, an unknown target as equal. */
static int compare_fields(const Etcdserverpb__Compare *c, const struct change *have, struct slice value)
{
    int union_case = (int)c->target_union_case;

    switch ((int)c->target) {
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__VERSION:
        return order(have->version, union_case == ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION ? c->version : 0);
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE:
        return order(have->create_revision,
                     union_case == ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION ? c->create_revision : 0);
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD:
        return order(have->rev.main,
                     union_case == ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION ? c->mod_revision : 0);
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__LEASE:
        return order(have->lease, union_case == ETCDSERVERPB__COMPARE__TARGET_UNION_LEASE ? c->lease : 0);
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE:
        return slice_cmp(value,
                         union_case == ETCDSERVERPB__COMPARE__TARGET_UNION_VALUE ? msg_slice(c->value) : SLICE_NONE);
    default:
        return 0;
    }
}

static bool compare_holds(const Etcdserverpb__Compare *c, const struct change *have, struct slice value)
{
    int result = compare_fields(c, have, value);

    switch ((int)c->result) {
    case ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL:
        return result == 0;
    case ETCDSERVERPB__COMPARE__COMPARE_RESULT__NOT_EQUAL:
        return result != 0;
    case ETCDSERVERPB__COMPARE__COMPARE_RESULT__GREATER:
        return result > 0;
    case ETCDSERVERPB__COMPARE__COMPARE_RESULT__LESS:
        return result < 0;
    default:
        return true;
    }
}

/* A key that is there. */
static int compare_present(const Etcdserverpb__Compare *c, const struct change *have, bool *ret_holds)
{
    Mvccpb__KeyValue kv = MVCCPB__KEY_VALUE__INIT;

    if ((int)c->target == ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE && body_decode(have->body, &kv) != 0)
        return -EUCLEAN;
    *ret_holds = compare_holds(c, have, msg_slice(kv.value));
    return 0;
}

static int compare_span(struct txn_run *x, const Etcdserverpb__Compare *c, struct slice from, struct slice end,
                        unsigned flags, bool *ret_any, bool *ret_holds)
{
    struct view_cursor *cur = NULL;
    uint32_t rows = 0;
    int err = view_cursor_new(x->view, from, end, x->rev, flags, &cur);

    *ret_holds = true;
    while (!err && *ret_holds) {
        struct change have;

        err = view_cursor_next(cur, &x->row, &have);
        if (!err) {
            *ret_any = true;
            err = compare_present(c, &have, ret_holds);
        }
        if (!err && x->limits && x->limits->rows_max && ++rows > x->limits->rows_max)
            err = MVCC_TOO_LONG;
        arena_fini(&x->row);
    }
    view_cursor_free(cur);
    return err == ERR_KEY_NOT_FOUND ? 0 : err;
}

static int compare(struct txn_run *x, const Etcdserverpb__Compare *c, bool *ret_holds)
{
    bool is_value = (int)c->target == ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE;
    unsigned flags = is_value ? 0 : BASE_NO_BODY;
    struct slice from, end;
    bool single, any = false;
    int err;

    mvcc_bounds(msg_slice(c->key), msg_slice(c->range_end), &from, &end, &single);
    if (single) {
        struct change have;

        err = view_get(x->view, from, x->rev, flags, &x->row, &have);
        any = err == 0;
        if (any)
            err = compare_present(c, &have, ret_holds);
        else if (err == ERR_KEY_NOT_FOUND)
            err = 0;
        arena_fini(&x->row);
    } else {
        err = compare_span(x, c, from, end, flags, &any, ret_holds);
    }
    if (!err && !any) /* all zero; but a value that is not there is unlike any */
        *ret_holds = !is_value && compare_holds(c, &(struct change){0}, SLICE_NONE);
    return err;
}

/* The branch of this txn, then of the txns in that branch, into path. */
static int decide(struct txn_run *x, const TxnRequest *req)
{
    bool holds = true;
    RequestOp *const *ops;
    size_t n;
    int err = 0;

    for (size_t i = 0; !err && holds && i < req->n_compare; i++)
        err = compare(x, req->compare[i], &holds);
    if (err)
        return err;
    x->path[x->path_n++] = holds;
    ops = holds ? req->success : req->failure;
    n = holds ? req->n_success : req->n_failure;
    for (size_t i = 0; !err && i < n; i++)
        if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN)
            err = decide(x, ops[i]->request_txn);
    return err;
}

static int check_state_range(const struct txn_run *x, const Etcdserverpb__RangeRequest *req)
{
    if (req->revision == 0)
        return 0;
    if (req->revision > x->rev)
        return ERR_FUTURE_REV;
    return req->revision < x->view->compact_rev ? ERR_COMPACTED : 0;
}

static int check_state_put(struct txn_run *x, const Etcdserverpb__PutRequest *req)
{
    struct change prev;
    int err;

    if (req->lease && !lease_exists(x->leases, req->lease))
        return ERR_LEASE_NOT_FOUND;
    if (!req->ignore_value && !req->ignore_lease)
        return 0;
    err = view_get(x->view, msg_slice(req->key), x->rev, BASE_NO_BODY, &x->row, &prev);
    arena_fini(&x->row);
    return err;
}

/* What can refuse the branches taken. */
static int check_state(struct txn_run *x, const TxnRequest *req)
{
    bool holds = x->path[x->path_at++];
    RequestOp *const *ops = holds ? req->success : req->failure;
    size_t n = holds ? req->n_success : req->n_failure;
    int err = 0;

    for (size_t i = 0; !err && i < n; i++) {
        if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE)
            err = check_state_range(x, ops[i]->request_range);
        else if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT)
            err = check_state_put(x, ops[i]->request_put);
        else if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN)
            err = check_state(x, ops[i]->request_txn);
    }
    return err;
}

int txn_decide(struct txn_run *x, const TxnRequest *req)
{
    int err;

    x->path = arena_alloc(x->work, count_txns(req) * sizeof *x->path);
    if (x->path == NULL)
        return x->into ? -ENOMEM : ERR_ARENA_FULL;
    x->path_n = x->path_at = 0;
    err = decide(x, req);
    if (!err)
        err = check_state(x, req);
    x->path_at = 0;
    return err;
}
