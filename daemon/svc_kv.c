/* SPDX-License-Identifier: Apache-2.0 */
/* svc_kv.c - etcdserverpb.KV: Range, Put, DeleteRange, Txn, Compact.
 *
 * Order of checks, as etcd's: the quota (for what may write), the arguments, the size; what depends on the state is
 * checked by apply. Source: reference 02-semantics 2.2 and 2.7; etcd v3.7.1 server/etcdserver/api/v3rpc/{quota,key}.go.
 *
 * Owner: the call's rpc thread.
 */
#include "limits.h"
#include "msg.h"
#include "svc.h"
#include "txn.h"

/* ---- Range ----------------------------------------------------------------------------------- */

struct kv_call {
    const ProtobufCMessage *req; /* in the call's arena */
};

static const ProtobufCMessage *request(struct call *c)
{
    return ((struct kv_call *)call_state(c))->req;
}

static int range_build(struct call *c, struct view *v, const struct mvcc_limits *limits, struct arena *a,
                       ProtobufCMessage **ret)
{
    Etcdserverpb__RangeResponse *resp = msg_new(a, &etcdserverpb__range_response__descriptor);
    int err = resp ? 0 : ERR_ARENA_FULL;

    if (!err)
        err = mvcc_range(v, v->rev, (const Etcdserverpb__RangeRequest *)request(c), limits, a, resp);
    if (err)
        return err;
    resp->header = svc_header_in(c, a, v->rev);
    *ret = &resp->base;
    return 0;
}

static void range_now(struct call *c)
{
    svc_answer_view(c, range_build);
}

static void range_start(struct call *c, const ProtobufCMessage *m)
{
    const Etcdserverpb__RangeRequest *req = (const Etcdserverpb__RangeRequest *)m;
    int err = mvcc_check_range(req);

    ((struct kv_call *)call_state(c))->req = m;
    if (err)
        call_fail(c, err);
    else if (req->serializable)
        range_now(c);
    else
        svc_read(c, range_now);
}

static void range_stream_start(struct call *c, const ProtobufCMessage *m)
{
    (void)m;
    call_fail_text(c, STATUS_UNIMPLEMENTED, "cairn: RangeStream is not there yet; use Range with limit and key");
}

/* ---- Put, DeleteRange ---------------------------------------------------------------------------- */

/* False: the call has been answered. */
static bool quota_admits(struct call *c, int64_t cost)
{
    struct svc *s = call_service(c);

    if (apply_quota_admits(s->apply, cost))
        return true;
    call_fail(c, ERR_NOSPACE);
    return false;
}

static void put_answer(struct call *c, struct proposal *p)
{
    Etcdserverpb__PutResponse *resp = p->response;

    resp->header = svc_header(c, resp->header->revision);
    call_answer(c, &resp->base);
}

static void put_start(struct call *c, const ProtobufCMessage *m)
{
    const Etcdserverpb__PutRequest *req = (const Etcdserverpb__PutRequest *)m;
    int err;

    if (!quota_admits(c, txn_cost_put(req)))
        return;
    err = txn_check_put(req);
    if (err)
        call_fail(c, err);
    else
        svc_propose(c, ENTRY_PUT, call_request(c), put_answer);
}

static void delete_answer(struct call *c, struct proposal *p)
{
    Etcdserverpb__DeleteRangeResponse *resp = p->response;

    resp->header = svc_header(c, resp->header->revision);
    call_answer(c, &resp->base);
}

static void delete_start(struct call *c, const ProtobufCMessage *m)
{
    int err = txn_check_delete((const Etcdserverpb__DeleteRangeRequest *)m);

    if (err)
        call_fail(c, err);
    else
        svc_propose(c, ENTRY_DELETE_RANGE, call_request(c), delete_answer);
}

/* ---- Txn ---------------------------------------------------------------------------------------------- */

static void txn_answer(struct call *c, struct proposal *p)
{
    Etcdserverpb__TxnResponse *resp = p->response;

    resp->header = svc_header(c, resp->header->revision);
    call_answer(c, &resp->base);
}

/* A txn that only reads: the same evaluation, over a view. */
static int txn_build(struct call *c, struct view *v, const struct mvcc_limits *limits, struct arena *a,
                     ProtobufCMessage **ret)
{
    const Etcdserverpb__TxnRequest *req = (const Etcdserverpb__TxnRequest *)request(c);
    Etcdserverpb__TxnResponse *resp;
    struct txn_run x;
    int err;

    txn_run_init(&x);
    x.borrow = true;
    x.limits = limits;
    txn_run_begin(&x, v, NULL, v->rev, a, a);
    err = txn_decide(&x, req);
    if (!err)
        err = txn_execute(&x, req, &resp);
    if (!err)
        err = x.out_err;
    txn_run_fini(&x);
    if (err)
        return err;
    resp->header = svc_header_in(c, a, resp->header->revision);
    *ret = &resp->base;
    return 0;
}

static void txn_now(struct call *c)
{
    svc_answer_view(c, txn_build);
}

static void txn_start(struct call *c, const ProtobufCMessage *m)
{
    const Etcdserverpb__TxnRequest *req = (const Etcdserverpb__TxnRequest *)m;
    struct svc *s = call_service(c);
    int err;

    if (!quota_admits(c, txn_cost(req)))
        return;
    err = txn_check_args(req, s->max_txn_ops);
    ((struct kv_call *)call_state(c))->req = m;
    if (err)
        call_fail(c, err);
    else if (!txn_read_only(req))
        svc_propose(c, ENTRY_TXN, call_request(c), txn_answer);
    else if (txn_serializable(req))
        txn_now(c);
    else
        svc_read(c, txn_now);
}

/* ---- Compact ---------------------------------------------------------------------------------------------- */

static void compact_answer(struct call *c, struct proposal *p)
{
    Etcdserverpb__CompactionResponse *resp = p->response;

    resp->header = svc_header(c, 0);
    call_answer(c, &resp->base);
}

static void compact_start(struct call *c, const ProtobufCMessage *m)
{
    (void)m;
    svc_propose(c, ENTRY_COMPACT, call_request(c), compact_answer);
}

/* ---- the table ------------------------------------------------------------------------------------------------ */

#define KV "etcdserverpb.KV"

static const struct rpc_method methods[] = {
    {.service = KV, .name = "Range", .kind = RPC_UNARY, .access = ACCESS_KEYS,
     .request = &etcdserverpb__range_request__descriptor, .start = range_start},
    {.service = KV, .name = "RangeStream", .kind = RPC_SERVER_STREAM, .access = ACCESS_KEYS,
     .request = &etcdserverpb__range_request__descriptor, .start = range_stream_start},
    {.service = KV, .name = "Put", .kind = RPC_UNARY, .access = ACCESS_KEYS,
     .request = &etcdserverpb__put_request__descriptor, .start = put_start},
    {.service = KV, .name = "DeleteRange", .kind = RPC_UNARY, .access = ACCESS_KEYS,
     .request = &etcdserverpb__delete_range_request__descriptor, .start = delete_start},
    {.service = KV, .name = "Txn", .kind = RPC_UNARY, .access = ACCESS_KEYS,
     .request = &etcdserverpb__txn_request__descriptor, .start = txn_start},
    {.service = KV, .name = "Compact", .kind = RPC_UNARY, .access = ACCESS_ROOT,
     .request = &etcdserverpb__compaction_request__descriptor, .start = compact_start},
};

const struct svc_service svc_kv = {methods, sizeof methods / sizeof methods[0]};
