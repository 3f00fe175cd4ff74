/* SPDX-License-Identifier: Apache-2.0 */
/* txn_args.c - what can be said against a put, a delete or a txn without knowing the state.
 *
 * The rule about keys written twice: in one list of ops, no key may be put twice, and no key put may lie in a range
 * deleted by the same list, wherever in nested txns the two stand; but the branches of one nested txn are
 * alternatives, and a put in an earlier nested txn may be deleted by a later one. Deletes may overlap. A delete with
 * an inverted range or to the end of the keyspace is not looked at: etcd does not see it either, and clients rely
 * on what it accepts.
 *
 * Owner: any thread; no state.
 */
#include "txn.h"
#include <errno.h>
#include "limits.h"
#include "msg.h"

typedef Etcdserverpb__TxnRequest TxnRequest;
typedef Etcdserverpb__RequestOp RequestOp;

int txn_check_put(const Etcdserverpb__PutRequest *req)
{
    if (req->key.len == 0)
        return ERR_KEY_EMPTY;
    if (req->ignore_value && req->value.len)
        return ERR_VALUE_PROVIDED;
    if (req->ignore_lease && req->lease)
        return ERR_LEASE_PROVIDED;
    return 0;
}

int txn_check_delete(const Etcdserverpb__DeleteRangeRequest *req)
{
    return req->key.len ? 0 : ERR_KEY_EMPTY;
}

/* ---- the tree, op by op --------------------------------------------------------------- */

static int check_txn(const TxnRequest *req, int64_t max_ops, unsigned depth);

static int check_op(const RequestOp *op, int64_t max_ops, unsigned depth)
{
    switch (op->request_case) {
    case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE:
        return mvcc_check_range(op->request_range);
    case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT:
        return txn_check_put(op->request_put);
    case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE:
        return txn_check_delete(op->request_delete_range);
    case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN:
        return check_txn(op->request_txn, max_ops, depth + 1);
    default:
        return ERR_KEY_NOT_FOUND; /* an op that is nothing: etcd's words for it */
    }
}

static int check_txn(const TxnRequest *req, int64_t max_ops, unsigned depth)
{
    int64_t n = (int64_t)req->n_compare;
    int err = 0;

    if (n < (int64_t)req->n_success)
        n = (int64_t)req->n_success;
    if (n < (int64_t)req->n_failure)
        n = (int64_t)req->n_failure;
    if (n > max_ops)
        return ERR_TOO_MANY_OPS;
    if (depth > LIMIT_TXN_DEPTH)
        return ERR_TOO_DEEP;

    for (size_t i = 0; i < req->n_compare; i++)
        if (req->compare[i]->key.len == 0)
            return ERR_KEY_EMPTY;
    for (size_t i = 0; !err && i < req->n_success; i++)
        err = check_op(req->success[i], max_ops - n, depth);
    for (size_t i = 0; !err && i < req->n_failure; i++)
        err = check_op(req->failure[i], max_ops - n, depth);
    return err;
}

/* ---- keys put twice, or put and deleted ----------------------------------------------- */

/* [from, to), or [from, to] when closed: a single key. */
struct span {
    struct slice from, to;
    bool closed;
};

/* What one list of ops writes: keys sorted, spans sorted and disjoint. Owned arrays. */
struct writes {
    struct slice *puts;
    struct span *dels;
    size_t n_puts, n_dels;
};

static void writes_fini(struct writes *w)
{
    free(w->puts);
    free(w->dels);
    *w = (struct writes){0};
}

static int slice_order(const void *a, const void *b)
{
    return slice_cmp(*(const struct slice *)a, *(const struct slice *)b);
}

static int span_order(const void *a, const void *b)
{
    return slice_cmp(((const struct span *)a)->from, ((const struct span *)b)->from);
}

/* How many of the n sorted puts are < key. */
static size_t puts_below(const struct slice *puts, size_t n, struct slice key)
{
    size_t lo = 0;

    while (lo < n) {
        size_t mid = lo + (n - lo) / 2;

        if (slice_cmp(puts[mid], key) < 0)
            lo = mid + 1;
        else
            n = mid;
    }
    return lo;
}

static bool span_ends_before(const struct span *s, struct slice key)
{
    int c = slice_cmp(s->to, key);

    return c < 0 || (c == 0 && !s->closed);
}

static bool deleted(const struct writes *w, struct slice key)
{
    size_t lo = 0, hi = w->n_dels;

    while (lo < hi) { /* the first span that does not end before key */
        size_t mid = lo + (hi - lo) / 2;

        if (span_ends_before(&w->dels[mid], key))
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < w->n_dels && slice_cmp(w->dels[lo].from, key) <= 0;
}

/* ERR_DUPLICATE_KEY when a key of `puts` is put or deleted by w. */
static int puts_collide(const struct writes *w, const struct slice *puts, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t at = puts_below(w->puts, w->n_puts, puts[i]);

        if (at < w->n_puts && slice_eq(w->puts[at], puts[i]))
            return ERR_DUPLICATE_KEY;
        if (deleted(w, puts[i]))
            return ERR_DUPLICATE_KEY;
    }
    return 0;
}

/* Merges sorted puts into w, from the back, in place. A key both branches of one txn put stands there twice. */
static int puts_add(struct writes *w, const struct slice *puts, size_t n)
{
    size_t i = w->n_puts, k = w->n_puts + n;
    struct slice *all;

    if (n == 0)
        return 0;
    all = realloc(w->puts, k * sizeof *all);
    if (all == NULL)
        return -ENOMEM;
    w->puts = all;
    w->n_puts = k;
    while (n > 0) {
        if (i > 0 && slice_cmp(all[i - 1], puts[n - 1]) > 0)
            all[--k] = all[--i];
        else
            all[--k] = puts[--n];
    }
    return 0;
}

/* Appends a span that begins at or after all there are; joins it to the last when they overlap. */
static void span_push(struct writes *w, struct span s)
{
    struct span *last = w->n_dels ? &w->dels[w->n_dels - 1] : NULL;
    int c;

    if (last == NULL || span_ends_before(last, s.from)) {
        w->dels[w->n_dels++] = s;
        return;
    }
    c = slice_cmp(s.to, last->to);
    if (c > 0 || (c == 0 && s.closed)) {
        last->to = s.to;
        last->closed = s.closed;
    }
}

static int dels_add(struct writes *w, const struct span *dels, size_t n)
{
    struct writes all = {0};
    size_t i = 0, k = 0;

    if (n == 0)
        return 0;
    all.dels = malloc((w->n_dels + n) * sizeof *all.dels);
    if (all.dels == NULL)
        return -ENOMEM;
    while (i < w->n_dels || k < n) {
        if (k == n || (i < w->n_dels && slice_cmp(w->dels[i].from, dels[k].from) <= 0))
            span_push(&all, w->dels[i++]);
        else
            span_push(&all, dels[k++]);
    }
    free(w->dels);
    w->dels = all.dels;
    w->n_dels = all.n_dels;
    return 0;
}

/* The list's own deletes, not those of nested txns. */
static int list_deletes(RequestOp *const *ops, size_t n, struct writes *w)
{
    struct span *dels = malloc((n + 1) * sizeof *dels);
    size_t n_dels = 0;
    int err;

    if (dels == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        struct slice from, to;

        if (ops[i]->request_case != ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE)
            continue;
        from = msg_slice(ops[i]->request_delete_range->key);
        to = msg_slice(ops[i]->request_delete_range->range_end);
        if (to.len == 0)
            dels[n_dels++] = (struct span){from, from, true};
        else if (slice_cmp(from, to) < 0) /* inverted, or "\0" for the end: not looked at, see above */
            dels[n_dels++] = (struct span){from, to, false};
    }
    qsort(dels, n_dels, sizeof *dels, span_order);
    err = dels_add(w, dels, n_dels);
    free(dels);
    return err;
}

/* The list's own puts, against each other and against all that is in w; then added to w. */
static int list_puts(RequestOp *const *ops, size_t n, struct writes *w)
{
    struct slice *puts = malloc((n + 1) * sizeof *puts);
    size_t n_puts = 0;
    int err = 0;

    if (puts == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT)
            puts[n_puts++] = msg_slice(ops[i]->request_put->key);
    qsort(puts, n_puts, sizeof *puts, slice_order);
    for (size_t i = 1; !err && i < n_puts; i++)
        err = slice_eq(puts[i - 1], puts[i]) ? ERR_DUPLICATE_KEY : 0;
    if (!err)
        err = puts_collide(w, puts, n_puts);
    if (!err)
        err = puts_add(w, puts, n_puts);
    free(puts);
    return err;
}

static int check_writes(RequestOp *const *ops, size_t n, struct writes *ret);

/* A nested txn: both branches against what came before it, then both added. */
static int nested_writes(const TxnRequest *req, struct writes *w)
{
    struct writes then = {0}, other = {0};
    int err = check_writes(req->success, req->n_success, &then);

    if (!err)
        err = check_writes(req->failure, req->n_failure, &other);
    if (!err)
        err = puts_collide(w, then.puts, then.n_puts);
    if (!err)
        err = puts_collide(w, other.puts, other.n_puts);
    if (!err)
        err = puts_add(w, then.puts, then.n_puts);
    if (!err)
        err = puts_add(w, other.puts, other.n_puts);
    if (!err)
        err = dels_add(w, then.dels, then.n_dels);
    if (!err)
        err = dels_add(w, other.dels, other.n_dels);
    writes_fini(&then);
    writes_fini(&other);
    return err;
}

/* *ret is the caller's to finish, also after an error. */
static int check_writes(RequestOp *const *ops, size_t n, struct writes *ret)
{
    int err = list_deletes(ops, n, ret);

    for (size_t i = 0; !err && i < n; i++)
        if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN)
            err = nested_writes(ops[i]->request_txn, ret);
    return err ? err : list_puts(ops, n, ret);
}

static int check_branch(RequestOp *const *ops, size_t n)
{
    struct writes w = {0};
    int err = check_writes(ops, n, &w);

    writes_fini(&w);
    return err;
}

int txn_check_args(const TxnRequest *req, uint32_t max_ops)
{
    int err = check_txn(req, max_ops, 1);

    if (!err)
        err = check_branch(req->success, req->n_success);
    return err ? err : check_branch(req->failure, req->n_failure);
}

/* ---- what kind of txn it is --------------------------------------------------------------- */

static bool all_ranges(RequestOp *const *ops, size_t n, bool serializable)
{
    for (size_t i = 0; i < n; i++) {
        if (ops[i]->request_case != ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE)
            return false;
        if (serializable && !ops[i]->request_range->serializable)
            return false;
    }
    return true;
}

bool txn_read_only(const TxnRequest *req)
{
    return all_ranges(req->success, req->n_success, false) && all_ranges(req->failure, req->n_failure, false);
}

bool txn_serializable(const TxnRequest *req)
{
    return all_ranges(req->success, req->n_success, true) && all_ranges(req->failure, req->n_failure, true);
}

int64_t txn_cost_put(const Etcdserverpb__PutRequest *req)
{
    return TXN_COST_OF_PUT + (int64_t)req->key.len + (int64_t)req->value.len;
}

static int64_t cost_list(RequestOp *const *ops, size_t n)
{
    int64_t cost = 0;

    for (size_t i = 0; i < n; i++) {
        if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT)
            cost += txn_cost_put(ops[i]->request_put);
        else if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN)
            cost += txn_cost(ops[i]->request_txn);
    }
    return cost;
}

int64_t txn_cost(const TxnRequest *req)
{
    int64_t success = cost_list(req->success, req->n_success);
    int64_t failure = cost_list(req->failure, req->n_failure);

    return success > failure ? success : failure;
}
