/* SPDX-License-Identifier: Apache-2.0 */
/* txn.c - puts, deletes and transactions over a view: executing what txn_decide.c has found to hold.
 *
 * A change goes into x->into with the revision R + 1 and the next sub number, and into the state hash. A put reads
 * what it replaces without its body, unless somebody asked for it. Reads after the first change of a txn are made
 * at R + 1, through the view's scratch; before it at R.
 *
 * Promise: what can refuse a txn is found by txn_decide, before any change, but for one case that etcd dies of: an
 * ignore_value or ignore_lease put of a key that an earlier op of the same txn has deleted. txn_execute refuses it
 * (ERR_KEY_NOT_FOUND), and as the changes are in a scratch, nothing has happened.
 *
 * Not here: argument checks (txn_args.c), deciding (txn_decide.c), when to publish (apply.c).
 */
#include "txn.h"
#include <errno.h>
#include "msg.h"

typedef Etcdserverpb__TxnRequest TxnRequest;
typedef Etcdserverpb__RequestOp RequestOp;
typedef Etcdserverpb__ResponseOp ResponseOp;

void txn_run_init(struct txn_run *x)
{
    *x = (struct txn_run){0};
    arena_init(&x->row, SIZE_MAX / 2, NULL, 0); /* bounded by the largest value there is */
}

void txn_run_fini(struct txn_run *x)
{
    arena_fini(&x->row);
    free(x->buf);
    x->buf = NULL;
    x->buf_bytes = 0;
}

void txn_run_begin(struct txn_run *x, struct view *v, struct delta *into, int64_t rev, struct arena *work,
                   struct arena *out)
{
    x->view = v;
    x->into = into;
    x->rev = rev;
    x->work = work;
    x->out = out;
    x->n_changes = 0;
    x->keys_added = 0;
    x->out_err = 0;
    x->n_puts = x->n_deletes = x->n_ranges = 0;
    x->put_bytes = 0;
    x->path_n = x->path_at = 0;
}

/* ---- the state hash ------------------------------------------------------------------- */

static inline uint64_t mix(uint64_t h, uint64_t word)
{
    h = (h ^ word) * UINT64_C(0x9e3779b97f4a7c15);
    return h ^ (h >> 29);
}

uint64_t state_hash_begin(uint64_t h, uint64_t index)
{
    return mix(h, index);
}

uint64_t state_hash_bytes(uint64_t h, uint64_t tag, struct slice bytes)
{
    size_t i = 0;

    h = mix(h, tag << 48 ^ bytes.len);
    for (; bytes.len - i >= 8; i += 8)
        h = mix(h, get_u64le(bytes.ptr + i));
    if (i < bytes.len) {
        uint8_t tail[8] = {0};

        memcpy(tail, bytes.ptr + i, bytes.len - i);
        h = mix(h, get_u64le(tail));
    }
    return h;
}

/* ---- responses ------------------------------------------------------------------------ */

/* Gives the response up, not the execution. */
static void out_give_up(struct txn_run *x, int err)
{
    x->out = NULL;
    if (x->out_err == 0)
        x->out_err = err;
}

/* NULL when nobody waits, or when there is no room (any more). */
static void *out_new(struct txn_run *x, const ProtobufCMessageDescriptor *d)
{
    void *m = x->out ? msg_new(x->out, d) : NULL;

    if (m == NULL && x->out)
        out_give_up(x, ERR_ARENA_FULL);
    return m;
}

static void *out_array(struct txn_run *x, size_t n)
{
    void *p = x->out ? arena_alloc(x->out, (n + !n) * sizeof(void *)) : NULL;

    if (p == NULL && x->out)
        out_give_up(x, ERR_ARENA_FULL);
    return p;
}

static Etcdserverpb__ResponseHeader *out_header(struct txn_run *x, int64_t revision)
{
    Etcdserverpb__ResponseHeader *h = out_new(x, &etcdserverpb__response_header__descriptor);

    if (h)
        h->revision = revision;
    return h;
}

/* A copy of what c says, in the response's memory; the view closes before the answer is packed. */
static int out_kv(struct txn_run *x, const struct change *c, Mvccpb__KeyValue **ret_kv)
{
    Mvccpb__KeyValue *kv = out_new(x, &mvccpb__key_value__descriptor);
    struct slice body;

    *ret_kv = NULL;
    if (kv == NULL)
        return 0;
    body = arena_copy(x->out, c->body);
    if (body.ptr == NULL) {
        out_give_up(x, ERR_ARENA_FULL);
        return 0;
    }
    if (body_decode(body, kv) != 0)
        return -EUCLEAN;
    *ret_kv = kv;
    return 0;
}

/* Copies the bytes of a range's answer out of the view. */
static void out_own_kvs(struct txn_run *x, Etcdserverpb__RangeResponse *resp)
{
    for (size_t i = 0; i < resp->n_kvs; i++) {
        Mvccpb__KeyValue *kv = resp->kvs[i];
        struct slice key = arena_copy(x->out, msg_slice(kv->key));
        struct slice value = arena_copy(x->out, msg_slice(kv->value));

        if ((kv->key.len && !key.ptr) || (kv->value.len && !value.ptr)) {
            out_give_up(x, ERR_ARENA_FULL);
            return;
        }
        kv->key = msg_bytes(key);
        kv->value = msg_bytes(value);
    }
}

/* ---- single operations ---------------------------------------------------------------- */

int txn_change(struct txn_run *x, struct change *c, struct slice value)
{
    size_t n;
    int err;

    assert(x->into);
    c->rev = (struct rev){x->rev + 1, x->n_changes};
    n = body_size(c, value);
    if (n > x->buf_bytes) {
        size_t size = n < 4096 ? 4096 : n + n / 4;
        uint8_t *buf = realloc(x->buf, size);

        if (buf == NULL)
            return -ENOMEM;
        x->buf = buf;
        x->buf_bytes = size;
    }
    body_encode(c, value, x->buf);
    c->body = slice_of(x->buf, n);
    err = delta_put(x->into, c);
    if (err)
        return err;
    x->hash = state_hash_bytes(x->hash, c->tombstone ? 2 : 1, c->body);
    x->n_changes++;
    return 0;
}

/* The value and lease of a put: the request's, or what was there. */
static int put_over(struct txn_run *x, const Etcdserverpb__PutRequest *req, const struct change *prev)
{
    struct change c = {
        .key = msg_slice(req->key),
        .create_revision = prev ? prev->create_revision : x->rev + 1,
        .version = prev ? prev->version + 1 : 1,
        .lease = req->ignore_lease ? prev->lease : req->lease,
    };
    struct slice value = msg_slice(req->value);

    if (req->ignore_value) {
        Mvccpb__KeyValue kv = MVCCPB__KEY_VALUE__INIT;

        if (body_decode(prev->body, &kv) != 0)
            return -EUCLEAN;
        value = msg_slice(kv.value);
    }
    x->n_puts++;
    x->put_bytes += (int64_t)(c.key.len + value.len);
    x->keys_added += prev == NULL;
    return txn_change(x, &c, value);
}

int txn_put(struct txn_run *x, const Etcdserverpb__PutRequest *req, Etcdserverpb__PutResponse **ret)
{
    bool want_prev = req->prev_kv && x->out;
    unsigned flags = want_prev || req->ignore_value ? 0 : BASE_NO_BODY;
    Etcdserverpb__PutResponse *resp;
    Mvccpb__KeyValue *prev_kv = NULL;
    struct change prev;
    bool exists;
    int err;

    *ret = NULL;
    if (req->lease && !lease_exists(x->leases, req->lease))
        return ERR_LEASE_NOT_FOUND;
    err = view_get(x->view, msg_slice(req->key), txn_rev_now(x), flags, &x->row, &prev);
    exists = err == 0;
    if (err == ERR_KEY_NOT_FOUND)
        err = req->ignore_value || req->ignore_lease ? ERR_KEY_NOT_FOUND : 0;
    if (!err && exists && want_prev)
        err = out_kv(x, &prev, &prev_kv);
    if (!err)
        err = put_over(x, req, exists ? &prev : NULL);
    arena_fini(&x->row);
    if (err)
        return err;

    resp = out_new(x, &etcdserverpb__put_response__descriptor);
    if (resp) {
        resp->header = out_header(x, txn_rev_now(x));
        resp->prev_kv = prev_kv;
    }
    *ret = resp;
    return 0;
}

static int delete_found(struct txn_run *x, struct slice key)
{
    struct change c = {.key = key, .tombstone = true};
    int err = txn_change(x, &c, SLICE_NONE);

    if (err)
        return err;
    x->n_deletes++;
    x->keys_added--;
    return 0;
}

int txn_delete_key(struct txn_run *x, struct slice key)
{
    struct change prev;
    int err = view_get(x->view, key, txn_rev_now(x), BASE_NO_BODY, &x->row, &prev);

    arena_fini(&x->row);
    if (err == ERR_KEY_NOT_FOUND)
        return 0;
    return err ? err : delete_found(x, key);
}

/* One key on its way out: kept for the answer when asked for. */
static int delete_one(struct txn_run *x, const struct change *prev, bool want_prev,
                      Etcdserverpb__DeleteRangeResponse *resp, size_t *room)
{
    int err;

    if (want_prev && x->out) {
        Mvccpb__KeyValue *kv;

        if (resp->n_prev_kvs == *room) {
            Mvccpb__KeyValue **more = out_array(x, *room * 2 + 8);

            if (more && *room)
                memcpy(more, resp->prev_kvs, *room * sizeof *more);
            resp->prev_kvs = more;
            *room = *room * 2 + 8;
        }
        err = x->out ? out_kv(x, prev, &kv) : 0;
        if (err)
            return err;
        if (x->out)
            resp->prev_kvs[resp->n_prev_kvs++] = kv;
    }
    if (resp)
        resp->deleted++;
    return delete_found(x, prev->key);
}

/* Deletes while the cursor stands: it reads at the revision before these changes, as any reader does. */
static int delete_span(struct txn_run *x, struct slice from, struct slice end, bool want_prev,
                       Etcdserverpb__DeleteRangeResponse *resp)
{
    unsigned flags = want_prev ? 0 : BASE_NO_BODY;
    struct view_cursor *cur = NULL;
    size_t room = 0;
    int err = view_cursor_new(x->view, from, end, txn_rev_now(x), flags, &cur);

    while (!err) {
        struct change prev;

        err = view_cursor_next(cur, &x->row, &prev);
        if (!err)
            err = delete_one(x, &prev, want_prev, resp, &room);
        arena_fini(&x->row);
    }
    view_cursor_free(cur);
    return err == ERR_KEY_NOT_FOUND ? 0 : err;
}

int txn_delete(struct txn_run *x, const Etcdserverpb__DeleteRangeRequest *req,
               Etcdserverpb__DeleteRangeResponse **ret)
{
    Etcdserverpb__DeleteRangeResponse *resp = out_new(x, &etcdserverpb__delete_range_response__descriptor);
    bool want_prev = resp && req->prev_kv;
    struct slice from, end;
    bool single;
    int err;

    *ret = NULL;
    mvcc_bounds(msg_slice(req->key), msg_slice(req->range_end), &from, &end, &single);
    if (single) {
        struct change prev;
        size_t room = 0;

        err = view_get(x->view, from, txn_rev_now(x), want_prev ? 0 : BASE_NO_BODY, &x->row, &prev);
        if (!err)
            err = delete_one(x, &prev, want_prev, resp, &room);
        else if (err == ERR_KEY_NOT_FOUND)
            err = 0;
        arena_fini(&x->row);
    } else {
        err = delete_span(x, from, end, want_prev, resp);
    }
    if (err)
        return err;
    if (resp)
        resp->header = out_header(x, txn_rev_now(x));
    *ret = x->out ? resp : NULL;
    return 0;
}

static int range_op(struct txn_run *x, const Etcdserverpb__RangeRequest *req, Etcdserverpb__RangeResponse **ret)
{
    static const struct mvcc_limits none;
    Etcdserverpb__RangeResponse *resp = out_new(x, &etcdserverpb__range_response__descriptor);
    int err;

    *ret = NULL;
    x->n_ranges++;
    if (resp == NULL)
        return 0;
    err = mvcc_range(x->view, txn_rev_now(x), req, x->limits ? x->limits : &none, x->out, resp);
    if (err < 0 || err == MVCC_TOO_LONG)
        return err;
    if (err) { /* for this caller alone: what the txn does must not depend on who waits for it */
        out_give_up(x, err);
        return 0;
    }
    if (!x->borrow)
        out_own_kvs(x, resp);
    resp->header = out_header(x, txn_rev_now(x));
    *ret = x->out ? resp : NULL;
    return 0;
}

/* ---- executing ---------------------------------------------------------------------------- */

static int execute(struct txn_run *x, const TxnRequest *req, Etcdserverpb__TxnResponse **ret);

/* resp may be NULL. */
static int execute_op(struct txn_run *x, const RequestOp *op, ResponseOp *resp)
{
    ResponseOp drop;
    int err;

    if (resp == NULL)
        resp = &drop;
    switch (op->request_case) {
    case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE:
        err = range_op(x, op->request_range, &resp->response_range);
        resp->response_case = ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE;
        return err;
    case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT:
        err = txn_put(x, op->request_put, &resp->response_put);
        resp->response_case = ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_PUT;
        return err;
    case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE:
        err = txn_delete(x, op->request_delete_range, &resp->response_delete_range);
        resp->response_case = ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_DELETE_RANGE;
        return err;
    case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN:
        err = execute(x, op->request_txn, &resp->response_txn);
        resp->response_case = ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_TXN;
        return err;
    default:
        return 0;
    }
}

static int execute(struct txn_run *x, const TxnRequest *req, Etcdserverpb__TxnResponse **ret)
{
    bool holds = x->path[x->path_at++];
    RequestOp *const *ops = holds ? req->success : req->failure;
    size_t n = holds ? req->n_success : req->n_failure;
    Etcdserverpb__TxnResponse *resp = out_new(x, &etcdserverpb__txn_response__descriptor);
    ResponseOp **responses = out_array(x, n);
    int err = 0;

    for (size_t i = 0; !err && i < n; i++) {
        ResponseOp *r = out_new(x, &etcdserverpb__response_op__descriptor);

        if (responses)
            responses[i] = r;
        err = execute_op(x, ops[i], r);
    }
    if (resp) {
        resp->header = out_header(x, 0); /* stays empty in a nested one, as in etcd */
        resp->succeeded = holds;
        resp->responses = responses;
        resp->n_responses = n;
    }
    *ret = x->out ? resp : NULL;
    return err;
}

int txn_execute(struct txn_run *x, const TxnRequest *req, Etcdserverpb__TxnResponse **ret)
{
    int err;

    assert(x->path_n > 0);
    x->path_at = 0;
    err = execute(x, req, ret);
    if (!err && *ret)
        (*ret)->header->revision = txn_rev_now(x);
    return err;
}
