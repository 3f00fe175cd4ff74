/* SPDX-License-Identifier: Apache-2.0 */
/* svc_lease.c - etcdserverpb.Lease: Grant, Revoke, KeepAlive, TimeToLive, Leases.
 *
 * On a lone member a keep-alive of a lease that is there and not past its expiry is answered at once, on this thread.
 * One that is unknown is looked for again after a linearizable read (its grant may still be on its way); one past its
 * expiry waits until it is revoked, and is then unknown: TTL 0. Among others the leader is asked, even where it is this
 * member itself: its clock alone counts, and others must confirm that it leads (turn_lease.c); likewise how long a
 * lease has left. Answers to different leases may overtake each other, as their
 * ids say whose they are; answers to one lease do not matter in order.
 *
 * A client that sends and does not read gets no room: up to LIMIT_KEEPALIVES of its requests wait, renewed when their
 * turn comes.
 *
 * Owner: the call's rpc thread; the two done functions run where the read or the revocation happens.
 * Source: reference 02-semantics 2.4.
 */
#include <errno.h>
#include "limits.h"
#include "msg.h"
#include "svc.h"

/* ---- Grant, Revoke ------------------------------------------------------------------------- */

static void grant_answer(struct call *c, struct proposal *p)
{
    Etcdserverpb__LeaseGrantResponse *resp = p->response;

    resp->header = svc_header(c, p->revision);
    call_answer(c, &resp->base);
}

static void grant_start(struct call *c, const ProtobufCMessage *m)
{
    Etcdserverpb__LeaseGrantRequest req = *(const Etcdserverpb__LeaseGrantRequest *)m;
    struct svc *s = call_service(c);

    if (!apply_quota_admits(s->apply, 64)) { /* what etcd counts for a lease */
        call_fail(c, ERR_NOSPACE);
        return;
    }
    if (lease_count(s->leases) >= LEASES_MAX) {
        call_fail(c, ERR_TOO_MANY_REQUESTS);
        return;
    }
    while (req.id == 0)
        req.id = (int64_t)(s->rng->next(s->rng) & INT64_MAX);
    req.ttl = lease_effective_ttl(s->leases, req.ttl); /* here: the minimum is this member's, the log is everyone's */
    svc_propose_message(c, ENTRY_LEASE_GRANT, &req.base, grant_answer);
}

static void revoke_answer(struct call *c, struct proposal *p)
{
    Etcdserverpb__LeaseRevokeResponse *resp = p->response;

    resp->header = svc_header(c, p->revision);
    call_answer(c, &resp->base);
}

static void revoke_start(struct call *c, const ProtobufCMessage *m)
{
    svc_propose_message(c, ENTRY_LEASE_REVOKE, m, revoke_answer);
}

/* ---- KeepAlive -------------------------------------------------------------------------------- */

/* One request that waits: for a read, then perhaps for a revocation; or for the leader's answer. */
struct renewal {
    struct renewal *next, **at; /* among the stream's that wait for a revocation; at: NULL when not */
    struct read_wait read;
    struct lease_ask ask;
    struct lease_wait lease;
    struct call_resume resume;
    int64_t id, revision;       /* of the header: as before the renewal */
};

struct keepalive {
    struct renewal *revocations;
    size_t n_waiting;           /* renewals under way */
    int64_t *ids;               /* requests that wait for room to answer; a ring of room slots */
    size_t first, n, room;
    bool half_closed;
};

static void keepalive_send(struct call *c, int64_t id, int64_t ttl_s, int64_t revision)
{
    enum { FIRST_BYTES = 256 };
    alignas(max_align_t) uint8_t first[FIRST_BYTES];
    Etcdserverpb__LeaseKeepAliveResponse resp = ETCDSERVERPB__LEASE_KEEP_ALIVE_RESPONSE__INIT;
    struct arena a;

    arena_init(&a, FIRST_BYTES, first, sizeof first); /* a stream's own arena is never emptied */
    resp.header = svc_header_in(c, &a, revision);
    resp.id = id;
    resp.ttl = ttl_s;
    call_send(c, &resp.base);
    arena_fini(&a);
}

static void keepalive_end_if_done(struct call *c)
{
    struct keepalive *k = call_state(c);

    if (k->half_closed && k->n_waiting == 0 && k->n == 0)
        call_end(c);
}

/* Out of the stream's revocations, if it is there. */
static void renewal_unlink(struct renewal *r)
{
    if (r->at == NULL)
        return;
    *r->at = r->next;
    if (r->next)
        r->next->at = r->at;
    r->at = NULL;
}

static void renewal_end(struct call *c, struct renewal *r)
{
    struct keepalive *k = call_state(c);

    renewal_unlink(r);
    k->n_waiting--;
    free(r);
    keepalive_end_if_done(c);
    call_unref(c);
}

static void renewal_ask_resumed(struct call *c, struct call_resume *resume)
{
    struct renewal *r = (struct renewal *)((uint8_t *)resume - offsetof(struct renewal, resume));

    if (r->ask.err && r->ask.err != ERR_LEASE_NOT_FOUND)
        call_fail(c, r->ask.err);
    else if (!call_gone(c))
        keepalive_send(c, r->id, r->ask.err ? 0 : r->ask.ttl_s, r->revision);
    renewal_end(c, r);
}

static void renewal_ask_done(struct lease_ask *a)
{
    struct renewal *r = (struct renewal *)((uint8_t *)a - offsetof(struct renewal, ask));

    call_resume(&r->resume);
}

/* Whoever leads renews it. */
static void renewal_ask(struct call *c, struct renewal *r)
{
    struct svc *s = call_service(c);

    r->ask = (struct lease_ask){.lease = r->id,
                                .renew = true,
                                .deadline_ms = s->clock->now_ms(s->clock) + s->request_timeout_ms,
                                .done = renewal_ask_done};
    r->resume = (struct call_resume){.call = c, .fn = renewal_ask_resumed};
    turn_lease_ask(s->turn, &r->ask);
}

/* The lease is gone; or another leads by now, and knows better. */
static void revocation_resumed(struct call *c, struct call_resume *resume)
{
    struct renewal *r = (struct renewal *)((uint8_t *)resume - offsetof(struct renewal, resume));

    if (r->lease.err && !call_gone(c)) {
        renewal_unlink(r);
        renewal_ask(c, r);
        return;
    }
    if (!call_gone(c))
        keepalive_send(c, r->id, 0, r->revision);
    renewal_end(c, r);
}

/* Where the lease was revoked. */
static void revocation_done(struct lease_wait *w)
{
    struct renewal *r = (struct renewal *)((uint8_t *)w - offsetof(struct renewal, lease));

    call_resume(&r->resume);
}

/* The lease is past its expiry: until it is revoked. */
static void renewal_await_revocation(struct call *c, struct renewal *r)
{
    struct keepalive *k = call_state(c);
    struct svc *s = call_service(c);

    r->lease = (struct lease_wait){.id = r->id, .done = revocation_done};
    r->resume = (struct call_resume){.call = c, .fn = revocation_resumed};
    r->next = k->revocations;
    r->at = &k->revocations;
    if (r->next)
        r->next->at = &r->next;
    k->revocations = r;
    if (lease_wait(s->leases, &r->lease) == 0) {
        keepalive_send(c, r->id, 0, r->revision);
        renewal_end(c, r);
    }
}

static bool is_the_leaders(int err)
{
    return err == ERR_NOT_PRIMARY_LESSOR || err == LEASE_MARKED;
}

/* Every write acknowledged before the request is applied now: what is unknown is unknown. */
static void renewal_retry(struct call *c, struct renewal *r)
{
    struct svc *s = call_service(c);
    int64_t ttl_s = 0;
    int err = lease_renew(s->leases, r->id, &ttl_s);

    if (err == LEASE_PAST) {
        renewal_await_revocation(c, r);
    } else if (is_the_leaders(err)) {
        renewal_ask(c, r);
    } else {
        keepalive_send(c, r->id, ttl_s, r->revision);
        renewal_end(c, r);
    }
}

static void renewal_read_resumed(struct call *c, struct call_resume *resume)
{
    struct renewal *r = (struct renewal *)((uint8_t *)resume - offsetof(struct renewal, resume));

    if (call_gone(c)) {
        renewal_end(c, r);
    } else if (r->read.err) {
        call_fail(c, r->read.err == ERR_TIMEOUT ? ERR_NO_LEADER : r->read.err);
        renewal_end(c, r);
    } else {
        renewal_retry(c, r);
    }
}

static void renewal_read_done(struct read_wait *w)
{
    struct renewal *r = (struct renewal *)((uint8_t *)w - offsetof(struct renewal, read));

    call_resume(&r->resume);
}

/* err: what a renewal at once has met. */
static void renewal_start(struct call *c, int64_t id, int64_t revision, int err)
{
    struct keepalive *k = call_state(c);
    struct svc *s = call_service(c);
    struct renewal *r = k->n_waiting < LIMIT_KEEPALIVES ? calloc(1, sizeof *r) : NULL;

    if (r == NULL) {
        call_fail(c, ERR_TOO_MANY_REQUESTS);
        return;
    }
    r->id = id;
    r->revision = revision;
    k->n_waiting++;
    call_ref(c);
    if (err == LEASE_PAST) {
        renewal_await_revocation(c, r);
        return;
    }
    if (is_the_leaders(err)) {
        renewal_ask(c, r);
        return;
    }
    r->read.deadline_ms = s->clock->now_ms(s->clock) + s->request_timeout_ms;
    r->read.done = renewal_read_done;
    r->resume = (struct call_resume){.call = c, .fn = renewal_read_resumed};
    if (turn_read(s->turn, &r->read) == 0)
        renewal_retry(c, r);
}

static void keepalive_one(struct call *c, int64_t id)
{
    struct svc *s = call_service(c);
    int64_t revision = store_revision(s->store), ttl_s;
    int err = turn_reads_free(s->turn) ? lease_renew(s->leases, id, &ttl_s) : ERR_NOT_PRIMARY_LESSOR;

    if (err)
        renewal_start(c, id, revision, err);
    else
        keepalive_send(c, id, ttl_s, revision);
}

static int ids_push(struct keepalive *k, int64_t id)
{
    if (k->n == k->room) {
        size_t room = k->room ? k->room * 2 : 64;
        int64_t *ids = room <= LIMIT_KEEPALIVES ? malloc(room * sizeof *ids) : NULL;

        if (ids == NULL)
            return ERR_TOO_MANY_REQUESTS;
        for (size_t i = 0; i < k->n; i++)
            ids[i] = k->ids[(k->first + i) % k->room];
        free(k->ids);
        k->ids = ids;
        k->first = 0;
        k->room = room;
    }
    k->ids[(k->first + k->n++) % k->room] = id;
    return 0;
}

static void keepalive_drained(struct call *c)
{
    struct keepalive *k = call_state(c);

    while (k->n > 0 && call_send_room(c)) {
        int64_t id = k->ids[k->first];

        k->first = (k->first + 1) % k->room;
        k->n--;
        keepalive_one(c, id);
    }
    keepalive_end_if_done(c);
}

static void keepalive_message(struct call *c, const ProtobufCMessage *m)
{
    const Etcdserverpb__LeaseKeepAliveRequest *req = (const Etcdserverpb__LeaseKeepAliveRequest *)m;
    struct keepalive *k = call_state(c);
    int err = 0;

    if (k->n == 0 && call_send_room(c))
        keepalive_one(c, req->id);
    else
        err = ids_push(k, req->id);
    if (err)
        call_fail(c, err);
}

static void keepalive_start(struct call *c, const ProtobufCMessage *m)
{
    (void)c, (void)m;
}

static void keepalive_half_closed(struct call *c)
{
    struct keepalive *k = call_state(c);

    k->half_closed = true;
    keepalive_end_if_done(c);
}

/* What waits for a revocation may wait for long: it is taken back. A read ends by itself. */
static void keepalive_gone(struct call *c)
{
    struct keepalive *k = call_state(c);
    struct svc *s = call_service(c);

    for (struct renewal *r = k->revocations, *next; r; r = next) {
        next = r->next;
        if (lease_wait_cancel(s->leases, &r->lease))
            renewal_end(c, r);
    }
}

static void keepalive_release(struct call *c)
{
    struct keepalive *k = call_state(c);

    assert(k->n_waiting == 0);
    free(k->ids);
    k->ids = NULL;
}

/* ---- TimeToLive, Leases --------------------------------------------------------------------------- */

struct ttl_call {
    const Etcdserverpb__LeaseTimeToLiveRequest *req; /* in the call's arena */
    struct lease_ask ask;
    struct call_resume resume;
    bool asked;                                      /* the leader has answered */
};

_Static_assert(sizeof(struct ttl_call) <= CALL_STATE_BYTES, "a call has room for it");

/* Of the leader: this member, or the one that was asked. ERR_LEASE_NOT_FOUND. */
static int ttl_info(struct svc *s, const struct ttl_call *t, struct lease_info *ret_info)
{
    if (!t->asked)
        return lease_get(s->leases, t->req->id, ret_info);
    *ret_info = (struct lease_info){.granted_ttl_s = t->ask.ttl_s, .remaining_ms = t->ask.left_ms};
    return t->ask.err;
}

static int ttl_keys(struct view *v, struct arena *a, Etcdserverpb__LeaseTimeToLiveResponse *resp)
{
    struct slice *keys;
    size_t n;
    int err = view_lease_keys(v, resp->id, a, &keys, &n);

    if (err)
        return err;
    resp->keys = arena_alloc(a, (n + 1) * sizeof *resp->keys);
    if (resp->keys == NULL)
        return ERR_ARENA_FULL;
    for (size_t i = 0; i < n; i++)
        resp->keys[i] = msg_bytes(keys[i]);
    resp->n_keys = n;
    return 0;
}

static int ttl_build(struct call *c, struct view *v, const struct mvcc_limits *limits, struct arena *a,
                     ProtobufCMessage **ret)
{
    const struct ttl_call *t = call_state(c);
    const Etcdserverpb__LeaseTimeToLiveRequest *req = t->req;
    Etcdserverpb__LeaseTimeToLiveResponse *resp = msg_new(a, &etcdserverpb__lease_time_to_live_response__descriptor);
    struct svc *s = call_service(c);
    struct lease_info info;
    int err = 0;

    (void)limits;
    if (resp == NULL)
        return ERR_ARENA_FULL;
    resp->header = svc_header_in(c, a, v->rev);
    resp->id = req->id;
    if (ttl_info(s, t, &info) != 0) {
        resp->ttl = -1;
    } else {
        resp->ttl = info.remaining_ms / 1000;
        resp->grantedttl = info.granted_ttl_s;
        err = req->keys ? ttl_keys(v, a, resp) : 0;
    }
    *ret = &resp->base;
    return err;
}

static void ttl_resumed(struct call *c, struct call_resume *resume)
{
    struct ttl_call *t = call_state(c);

    (void)resume;
    t->asked = true;
    if (t->ask.err && t->ask.err != ERR_LEASE_NOT_FOUND)
        call_fail(c, t->ask.err);
    else if (!call_gone(c))
        svc_answer_view(c, ttl_build);
    call_unref(c);
}

static void ttl_done(struct lease_ask *a)
{
    call_resume(&((struct ttl_call *)((uint8_t *)a - offsetof(struct ttl_call, ask)))->resume);
}

/* Every write acknowledged before the request is applied: a lease that is not here is nowhere. */
static void ttl_now(struct call *c)
{
    struct ttl_call *t = call_state(c);
    struct svc *s = call_service(c);
    struct lease_info info;

    if (lease_get(s->leases, t->req->id, &info) != 0 || info.primary) {
        svc_answer_view(c, ttl_build);
        return;
    }
    t->ask = (struct lease_ask){.lease = t->req->id, .deadline_ms = call_deadline_ms(c), .done = ttl_done};
    t->resume = (struct call_resume){.call = c, .fn = ttl_resumed};
    call_ref(c);
    turn_lease_ask(s->turn, &t->ask);
}

static void ttl_start(struct call *c, const ProtobufCMessage *m)
{
    ((struct ttl_call *)call_state(c))->req = (const Etcdserverpb__LeaseTimeToLiveRequest *)m;
    svc_read(c, ttl_now);
}

static int leases_build(struct call *c, struct view *v, const struct mvcc_limits *limits, struct arena *a,
                        ProtobufCMessage **ret)
{
    Etcdserverpb__LeaseLeasesResponse *resp = msg_new(a, &etcdserverpb__lease_leases_response__descriptor);
    struct svc *s = call_service(c);
    int64_t *ids;
    size_t n;
    int err;

    if (resp == NULL)
        return ERR_ARENA_FULL;
    if (limits->rows_max && lease_count(s->leases) > limits->rows_max)
        return MVCC_TOO_LONG;
    err = lease_list(s->leases, a, &ids, &n);
    if (err)
        return err;
    resp->header = svc_header_in(c, a, v->rev);
    resp->leases = arena_alloc(a, (n + 1) * sizeof *resp->leases);
    for (size_t i = 0; resp->leases && i < n; i++) {
        Etcdserverpb__LeaseStatus *l = msg_new(a, &etcdserverpb__lease_status__descriptor);

        if (l == NULL)
            return ERR_ARENA_FULL;
        l->id = ids[i];
        resp->leases[resp->n_leases++] = l;
    }
    *ret = &resp->base;
    return resp->leases ? 0 : ERR_ARENA_FULL;
}

static void leases_start(struct call *c, const ProtobufCMessage *m)
{
    (void)m;
    svc_answer_view(c, leases_build);
}

/* ---- the table ---------------------------------------------------------------------------------------- */

#define LEASE "etcdserverpb.Lease"

static const struct rpc_method methods[] = {
    {.service = LEASE, .name = "LeaseGrant", .kind = RPC_UNARY, .access = ACCESS_USER,
     .request = &etcdserverpb__lease_grant_request__descriptor, .start = grant_start},
    {.service = LEASE, .name = "LeaseRevoke", .kind = RPC_UNARY, .access = ACCESS_KEYS,
     .request = &etcdserverpb__lease_revoke_request__descriptor, .start = revoke_start},
    {.service = LEASE, .name = "LeaseKeepAlive", .kind = RPC_BIDI, .access = ACCESS_KEYS,
     .request = &etcdserverpb__lease_keep_alive_request__descriptor, .start = keepalive_start,
     .message = keepalive_message, .half_closed = keepalive_half_closed, .gone = keepalive_gone,
     .drained = keepalive_drained, .release = keepalive_release},
    {.service = LEASE, .name = "LeaseTimeToLive", .kind = RPC_UNARY, .access = ACCESS_KEYS,
     .request = &etcdserverpb__lease_time_to_live_request__descriptor, .start = ttl_start},
    {.service = LEASE, .name = "LeaseLeases", .kind = RPC_UNARY, .access = ACCESS_USER,
     .request = &etcdserverpb__lease_leases_request__descriptor, .start = leases_start},
};

const struct svc_service svc_lease = {methods, sizeof methods / sizeof methods[0]};
