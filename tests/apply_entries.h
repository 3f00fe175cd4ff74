/* SPDX-License-Identifier: Apache-2.0 */
/* apply_entries.h - random entries for an apply_rig: puts, deletes, txns, renames, leases, compactions over a few
 * keys, some of them longer than an index row. The same seed makes the same entries. */
#pragma once
#include "apply_rig.h"
#include "tree.pb-c.h"

enum { KEYS = 40, LEASES = 8 };

static struct arena ar;

static uint64_t draw(uint64_t *s, uint64_t n)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s % n;
}

static char *key(uint64_t *s)
{
    char *k = arena_alloc(&ar, 1600);
    uint64_t n = draw(s, KEYS);

    if (n % 10 == 9) { /* longer than an index row */
        memset(k, 'l', 500 + 100 * (n / 10));
        k[500 + 100 * (n / 10)] = (char)('a' + n % 3);
    } else {
        snprintf(k, 1600, "key/%02d", (int)n);
    }
    return k;
}

static char *value(uint64_t *s)
{
    size_t n = draw(s, 50) == 0 ? 5000 : draw(s, 100);
    char *v = arena_alloc(&ar, n + 1);

    memset(v, (int)('a' + draw(s, 26)), n);
    return v;
}

static Etcdserverpb__PutRequest *put(uint64_t *s)
{
    Etcdserverpb__PutRequest *req = msg_new(&ar, &etcdserverpb__put_request__descriptor);

    req->key = rig_bytes(key(s));
    req->value = rig_bytes(value(s));
    req->prev_kv = draw(s, 2);
    if (draw(s, 3) == 0)
        req->lease = 1 + (int64_t)draw(s, LEASES);
    else if (draw(s, 8) == 0)
        req->ignore_lease = true;
    return req;
}

static Etcdserverpb__DeleteRangeRequest *delete(uint64_t *s)
{
    Etcdserverpb__DeleteRangeRequest *req = msg_new(&ar, &etcdserverpb__delete_range_request__descriptor);

    req->key = rig_bytes(key(s));
    if (draw(s, 2))
        req->range_end = rig_bytes(key(s));
    req->prev_kv = draw(s, 2);
    return req;
}

static Etcdserverpb__TxnRequest *txn(uint64_t *s, int depth);

static Etcdserverpb__RequestOp *op(uint64_t *s, int depth)
{
    Etcdserverpb__RequestOp *o = msg_new(&ar, &etcdserverpb__request_op__descriptor);
    uint64_t what = draw(s, depth < 3 ? 10 : 8);

    if (what < 4) {
        o->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
        o->request_put = put(s);
    } else if (what < 6) {
        o->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
        o->request_delete_range = delete(s);
    } else if (what < 8) {
        o->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
        o->request_range = msg_new(&ar, &etcdserverpb__range_request__descriptor);
        o->request_range->key = rig_bytes(key(s));
        o->request_range->range_end = rig_bytes(key(s));
    } else {
        o->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN;
        o->request_txn = txn(s, depth + 1);
    }
    return o;
}

static size_t ops(uint64_t *s, int depth, Etcdserverpb__RequestOp ***ret)
{
    size_t n = draw(s, 4);

    *ret = arena_alloc(&ar, (n + 1) * sizeof **ret);
    for (size_t i = 0; i < n; i++)
        (*ret)[i] = op(s, depth);
    return n;
}

/* Not checked for keys put twice: apply takes them in order, twice or not. */
static Etcdserverpb__TxnRequest *txn(uint64_t *s, int depth)
{
    Etcdserverpb__TxnRequest *req = msg_new(&ar, &etcdserverpb__txn_request__descriptor);

    req->n_compare = draw(s, 2);
    req->compare = arena_alloc(&ar, 2 * sizeof *req->compare);
    for (size_t i = 0; i < req->n_compare; i++) {
        Etcdserverpb__Compare *c = msg_new(&ar, &etcdserverpb__compare__descriptor);

        c->key = rig_bytes(key(s));
        c->target = (Etcdserverpb__Compare__CompareTarget)draw(s, 5);
        c->result = (Etcdserverpb__Compare__CompareResult)draw(s, 4);
        c->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION;
        c->version = (int64_t)draw(s, 3);
        if (draw(s, 4) == 0)
            c->range_end = rig_bytes(key(s));
        req->compare[i] = c;
    }
    req->n_success = ops(s, depth, &req->success);
    req->n_failure = ops(s, depth, &req->failure);
    return req;
}

/* A directory of at most ten keys, there or back. */
static Cairn__RenameRequest *rename_some(uint64_t *s, const struct rig *r)
{
    Cairn__RenameRequest *req = msg_new(&ar, &cairn__rename_request__descriptor);
    char *from = arena_alloc(&ar, 8), *to = arena_alloc(&ar, 8);
    int n = (int)draw(s, KEYS / 10);

    snprintf(from, 8, "key/%d", n);
    snprintf(to, 8, "dir/%d", n);
    req->from = rig_bytes(draw(s, 2) ? from : to);
    req->to = rig_bytes((char *)req->from.data == from ? to : from);
    req->revision = r->apply->rev - (int64_t)draw(s, 20);
    return req;
}

static inline void entry(struct rig *r, uint64_t *s, bool wait)
{
    uint64_t what = draw(s, 100);

    if (what < 50) {
        (void)rig_message(r, ENTRY_PUT, put(s), wait);
    } else if (what < 60) {
        (void)rig_message(r, ENTRY_DELETE_RANGE, delete(s), wait);
    } else if (what < 64) {
        (void)rig_message(r, ENTRY_RENAME, rename_some(s, r), wait);
    } else if (what < 90) {
        (void)rig_message(r, ENTRY_TXN, txn(s, 0), wait);
    } else if (what < 94) {
        Etcdserverpb__LeaseGrantRequest req = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;

        req.id = 1 + (int64_t)draw(s, LEASES);
        req.ttl = 100;
        (void)rig_message(r, ENTRY_LEASE_GRANT, &req, wait);
    } else if (what < 96) {
        Etcdserverpb__LeaseRevokeRequest req = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;

        req.id = 1 + (int64_t)draw(s, LEASES);
        (void)rig_message(r, ENTRY_LEASE_REVOKE, &req, wait);
    } else if (what < 97) {
        uint8_t ids[16];

        put_u64le(ids, 1 + draw(s, LEASES));
        put_u64le(ids + 8, 1 + draw(s, LEASES));
        (void)rig_entry(r, ENTRY_LEASE_EXPIRE, slice_of(ids, 16), 1, wait);
    } else {
        Etcdserverpb__CompactionRequest req = ETCDSERVERPB__COMPACTION_REQUEST__INIT;

        req.revision = 1 + (int64_t)draw(s, 2000);
        (void)rig_message(r, ENTRY_COMPACT, &req, wait);
    }
    arena_fini(&ar);
}
