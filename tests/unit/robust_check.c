/* SPDX-License-Identifier: Apache-2.0 */
/* robust_check.c - the checker of histories (tests/robust/check.c) is tried itself: it says nothing against histories
 * of a correct store, and finds nearly everything that a broken one could have done.
 *
 * A little store in memory is asked by clients whose calls overlap; each takes effect at one moment between its start
 * and its end. That history is correct by construction, and so are the logs of three members that go with it. Then one
 * thing is made wrong, of 38 kinds: in what was answered, in what the store does, in a log.
 *
 *   SEED=n    CLEAN=n histories without a fault (150)    EACH=n of each kind with one (30)
 */
#include "../robust/check.c"
#include "../robust/check_lease.c"
#include "../robust/check_journal.c"
#include "../robust/check_watch.c"
#include "../robust/check_writes.c"
#include "../robust/journal.c"
#include "../robust/history.c"
#include "tap.h"
#include <unistd.h>

enum { CALLS = 300, CLIENTS = 6, KEYS = 6, EVENTS = 2000, LEASES = 40, WATCHES = 6, MS = 1000000 };

static uint64_t seed;

static uint64_t below(uint64_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (seed >> 11) % n;
}

/* ---- the store --------------------------------------------------------------------------------- */

struct event { int64_t rev, at_ns; Mvccpb__KeyValue kv; bool deleted; };

static struct event events[EVENTS];
static size_t n_events;
static int64_t rev, now;
static struct { int64_t id, ttl_ns, until_ns; bool live; } leases[LEASES];
static size_t n_leases;
static unsigned n_values;
static int64_t member_rev[4];
static enum bug { NO_BUG, EARLY_END, HALF_END, LOST_ACK, TWICE, REFUSED_DONE, RENEWED_DEAD, BUGS } bug;
static bool bug_done;
static struct journal whole; /* what was committed; the members' logs are made of it at the end */
static uint64_t term;

static ProtobufCBinaryData bytes_dup(const void *p, size_t n)
{
    ProtobufCBinaryData b = {n, malloc(n + 1)};

    REQUIRE(b.data);
    memcpy(b.data, p, n);
    return b;
}

static ProtobufCBinaryData text(const char *format, ...)
{
    char s[64];
    va_list ap;
    int n;

    va_start(ap, format);
    n = vsnprintf(s, sizeof s, format, ap);
    va_end(ap);
    return bytes_dup(s, (size_t)n);
}

static void *made(const ProtobufCMessageDescriptor *d)
{
    ProtobufCMessage *m = malloc(d->sizeof_message);

    REQUIRE(m);
    protobuf_c_message_init(d, m);
    return m;
}

/* An entry, as daemon/entry.h draws it. */
static void log_entry(enum journal_kind kind, uint64_t proposal_term, struct slice body)
{
    uint8_t *p = calloc(1, 45 + body.len);

    REQUIRE(p);
    p[0] = 1;
    p[1] = (uint8_t)kind;
    p[2] = 5; /* the user's name */
    put_u64le(p + 32, proposal_term);
    memcpy(p + 40, "alice", 5);
    if (body.len)
        memcpy(p + 45, body.ptr, body.len);
    journal_add(&whole, journal_last(&whole) + 1, term, slice_of(p, 45 + body.len));
    free(p);
}

static void log_message(enum journal_kind kind, const ProtobufCMessage *m)
{
    size_t n = protobuf_c_message_get_packed_size(m);
    uint8_t *bytes = malloc(n + 1);

    REQUIRE(bytes);
    protobuf_c_message_pack(m, bytes);
    log_entry(kind, 0, slice_of(bytes, n));
    free(bytes);
}

static void log_call(const struct rec *r)
{
    static const enum journal_kind as[REC_KINDS] = {
        [REC_PUT] = JOURNAL_PUT,     [REC_DELETE] = JOURNAL_DELETE, [REC_TXN] = JOURNAL_TXN,
        [REC_GRANT] = JOURNAL_GRANT, [REC_REVOKE] = JOURNAL_REVOKE,
    };

    if (as[r->kind])
        log_message(as[r->kind], r->req);
}

/* Another leader, and at times something that belongs to no client, or to a term that is over. */
static void log_new_term(void)
{
    uint8_t id[8] = {1};

    term++;
    journal_add(&whole, journal_last(&whole) + 1, term, SLICE_NONE);
    if (below(2))
        log_entry(JOURNAL_EXPIRE, term - 1, slice_of(id, 8));
    if (below(2))
        log_entry(8, 0, SLICE_NONE);
}

static const Mvccpb__KeyValue *get(ProtobufCBinaryData key, int64_t at)
{
    for (size_t i = n_events; i > 0; i--)
        if (events[i - 1].rev <= at && slice_eq(bytes_of(events[i - 1].kv.key), bytes_of(key)))
            return events[i - 1].deleted ? NULL : &events[i - 1].kv;
    return NULL;
}

static Mvccpb__KeyValue *kv_dup(const Mvccpb__KeyValue *kv) { return kv ? message_copy(&kv->base) : NULL; }

static void put(ProtobufCBinaryData key, ProtobufCBinaryData value, int64_t lease, int64_t at)
{
    const Mvccpb__KeyValue *old = get(key, at);
    struct event *e = &events[n_events];

    REQUIRE(n_events < EVENTS);
    *e = (struct event){.rev = at, .at_ns = now, .kv = MVCCPB__KEY_VALUE__INIT};
    e->kv.key = bytes_dup(key.data, key.len);
    e->kv.value = bytes_dup(value.data, value.len);
    e->kv.lease = lease;
    e->kv.mod_revision = at;
    e->kv.create_revision = old ? old->create_revision : at;
    e->kv.version = old ? old->version + 1 : 1;
    n_events++;
}

static void delete(ProtobufCBinaryData key, int64_t at)
{
    REQUIRE(n_events < EVENTS);
    events[n_events] = (struct event){.rev = at, .at_ns = now, .kv = MVCCPB__KEY_VALUE__INIT, .deleted = true};
    events[n_events].kv.key = bytes_dup(key.data, key.len);
    events[n_events++].kv.mod_revision = at;
}

static ProtobufCBinaryData key_n(uint64_t i) { return text("k/%02u", (unsigned)(i % KEYS)); }

static void end_lease(size_t l)
{
    int64_t at = rev + 1;
    unsigned n = 0;

    leases[l].live = false;
    for (int k = 0; k < 3; k++) {
        ProtobufCBinaryData key = text("l/%lld/%d", (long long)leases[l].id, k);

        if (get(key, rev)) {
            if (bug == HALF_END && n == 1) {
                bug_done = true; /* the second of its keys stays */
            } else {
                delete(key, at);
            }
            n++;
        }
        free(key.data);
    }
    rev += n > 0;
}

static void run_clock(int64_t to)
{
    now = to;
    for (size_t l = 0; l < n_leases; l++) {
        bool early = bug == EARLY_END && !bug_done && now > leases[l].until_ns - leases[l].ttl_ns / 2;
        int64_t before = rev;

        if (leases[l].live && (now > leases[l].until_ns || early)) {
            uint8_t id[8];

            put_u64le(id, (uint64_t)leases[l].id);
            log_entry(JOURNAL_EXPIRE, term, slice_of(id, 8));
            end_lease(l);
            bug_done |= early && rev > before;
        }
    }
}

/* ---- calls ------------------------------------------------------------------------------------- */

static void *header(void)
{
    Etcdserverpb__ResponseHeader *h = made(&etcdserverpb__response_header__descriptor);

    h->revision = rev;
    return h;
}

static Etcdserverpb__RangeResponse *range(const Etcdserverpb__RangeRequest *req, int64_t at)
{
    Etcdserverpb__RangeResponse *r = made(&etcdserverpb__range_response__descriptor);

    r->kvs = calloc(KEYS, sizeof *r->kvs);
    for (unsigned k = 0; k < KEYS; k++) {
        ProtobufCBinaryData key = key_n(k);
        const Mvccpb__KeyValue *kv =
            in_range(bytes_of(key), bytes_of(req->key), bytes_of(req->range_end)) ? get(key, at) : NULL;

        free(key.data);
        if (kv == NULL)
            continue;
        if (req->limit == 0 || r->count < req->limit)
            r->kvs[r->n_kvs++] = kv_dup(kv);
        r->count++;
    }
    r->more = (int64_t)r->n_kvs < r->count;
    return r;
}

static Etcdserverpb__PutRequest *put_request(ProtobufCBinaryData key, int64_t lease)
{
    Etcdserverpb__PutRequest *req = made(&etcdserverpb__put_request__descriptor);

    req->key = key;
    req->value = text("v%u", n_values++);
    req->lease = lease;
    req->prev_kv = below(2);
    return req;
}

static void call_put(struct rec *r, bool acts, int64_t lease, unsigned which)
{
    Etcdserverpb__PutRequest *req =
        put_request(lease ? text("l/%lld/%u", (long long)lease, which) : key_n(below(KEYS)), lease);
    Etcdserverpb__PutResponse *resp = made(&etcdserverpb__put_response__descriptor);

    if (req->prev_kv)
        resp->prev_kv = kv_dup(get(req->key, rev));
    if (acts)
        put(req->key, req->value, lease, ++rev);
    resp->header = header();
    *r = (struct rec){.kind = REC_PUT, .req = &req->base, .resp = &resp->base};
}

static void call_delete(struct rec *r, bool acts)
{
    Etcdserverpb__DeleteRangeRequest *req = made(&etcdserverpb__delete_range_request__descriptor);
    Etcdserverpb__DeleteRangeResponse *resp = made(&etcdserverpb__delete_range_response__descriptor);
    const Mvccpb__KeyValue *old;

    req->key = key_n(below(KEYS));
    req->prev_kv = true;
    old = get(req->key, rev);
    if (old) {
        resp->deleted = 1;
        resp->n_prev_kvs = 1;
        resp->prev_kvs = calloc(1, sizeof *resp->prev_kvs);
        resp->prev_kvs[0] = kv_dup(old);
    }
    if (acts && old)
        delete(req->key, ++rev);
    resp->header = header();
    *r = (struct rec){.kind = REC_DELETE, .req = &req->base, .resp = &resp->base};
}

static void call_range(struct rec *r, bool serializable)
{
    Etcdserverpb__RangeRequest *req = made(&etcdserverpb__range_request__descriptor);
    Etcdserverpb__RangeResponse *resp;
    uint32_t member = 1 + (uint32_t)below(3);

    req->key = below(2) ? key_n(below(KEYS)) : text("k/");
    if (req->key.len == 2)
        req->range_end = text("k0");
    req->limit = below(4) ? 0 : 1 + (int64_t)below(KEYS);
    req->serializable = serializable;
    member_rev[member] =
        serializable ? member_rev[member] + (int64_t)below((uint64_t)(rev - member_rev[member]) + 1) : rev;
    resp = range(req, member_rev[member]);
    resp->header = header();
    resp->header->revision = member_rev[member];
    *r = (struct rec){.kind = REC_RANGE, .req = &req->base, .resp = &resp->base, .member = member, .incarnation = 1};
}

/* If the key is at the version it is read with (or, one in three, another): two puts; else one. */
static void call_txn(struct rec *r, bool acts)
{
    Etcdserverpb__TxnRequest *req = made(&etcdserverpb__txn_request__descriptor);
    Etcdserverpb__TxnResponse *resp = made(&etcdserverpb__txn_response__descriptor);
    Etcdserverpb__Compare *m = made(&etcdserverpb__compare__descriptor);
    uint64_t first = below(KEYS);
    const Mvccpb__KeyValue *kv;
    Etcdserverpb__RequestOp **ops;
    size_t n;

    m->key = key_n(first);
    kv = get(m->key, rev);
    m->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION;
    m->version = (kv ? kv->version : 0) + (below(3) == 0);
    req->compare = calloc(1, sizeof *req->compare);
    req->compare[req->n_compare++] = m;
    for (int b = 0; b < 2; b++) {
        n = b == 0 ? 2 : 1;
        ops = calloc(2, sizeof *ops);
        for (size_t i = 0; i < n; i++) {
            ops[i] = made(&etcdserverpb__request_op__descriptor);
            ops[i]->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
            ops[i]->request_put = put_request(key_n(first + i), 0);
        }
        if (b == 0)
            req->success = ops, req->n_success = n;
        else
            req->failure = ops, req->n_failure = n;
    }
    resp->succeeded = m->version == (kv ? kv->version : 0);
    ops = resp->succeeded ? req->success : req->failure;
    resp->n_responses = resp->succeeded ? 2 : 1;
    resp->responses = calloc(2, sizeof *resp->responses);
    for (size_t i = 0; i < resp->n_responses; i++) {
        resp->responses[i] = made(&etcdserverpb__response_op__descriptor);
        resp->responses[i]->response_case = ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_PUT;
        resp->responses[i]->response_put = made(&etcdserverpb__put_response__descriptor);
        if (ops[i]->request_put->prev_kv)
            resp->responses[i]->response_put->prev_kv = kv_dup(get(ops[i]->request_put->key, rev));
        if (acts)
            put(ops[i]->request_put->key, ops[i]->request_put->value, 0, rev + 1);
    }
    rev += acts;
    resp->header = header();
    *r = (struct rec){.kind = REC_TXN, .req = &req->base, .resp = &resp->base};
}

static void call_lease(struct rec *r)
{
    size_t l = n_leases ? below(n_leases) : 0;

    if (n_leases < LEASES && (n_leases == 0 || below(4) == 0)) {
        Etcdserverpb__LeaseGrantRequest *req = made(&etcdserverpb__lease_grant_request__descriptor);
        Etcdserverpb__LeaseGrantResponse *resp = made(&etcdserverpb__lease_grant_response__descriptor);

        l = n_leases++;
        leases[l].id = req->id = resp->id = (int64_t)l + 1;
        req->ttl = resp->ttl = 1;
        leases[l].ttl_ns = (int64_t)1000 * MS;
        leases[l].until_ns = now + leases[l].ttl_ns;
        leases[l].live = true;
        resp->header = header();
        *r = (struct rec){.kind = REC_GRANT, .req = &req->base, .resp = &resp->base};
    } else if (bug != EARLY_END && below(6) == 0) { /* a revocation under way would excuse it */
        Etcdserverpb__LeaseRevokeRequest *req = made(&etcdserverpb__lease_revoke_request__descriptor);
        Etcdserverpb__LeaseRevokeResponse *resp = made(&etcdserverpb__lease_revoke_response__descriptor);

        req->id = leases[l].id;
        *r = (struct rec){.kind = REC_REVOKE, .req = &req->base, .resp = &resp->base};
        if (leases[l].live)
            end_lease(l);
        else
            r->outcome = REFUSED;
        resp->header = header();
    } else if (below(2)) {
        Etcdserverpb__LeaseKeepAliveRequest *req = made(&etcdserverpb__lease_keep_alive_request__descriptor);
        Etcdserverpb__LeaseKeepAliveResponse *resp = made(&etcdserverpb__lease_keep_alive_response__descriptor);

        req->id = resp->id = leases[l].id;
        if (leases[l].live) {
            leases[l].until_ns = now + leases[l].ttl_ns;
            resp->ttl = 1;
        } else if (bug == RENEWED_DEAD && now > leases[l].until_ns + 200 * MS) {
            for (size_t i = 0; i < n_events; i++) /* it must have been seen to end */
                bug_done |= events[i].deleted && events[i].kv.key.data[2] == (uint8_t)('0' + leases[l].id) &&
                            events[i].kv.key.data[3] == '/' && events[i].at_ns + 100 * MS < now;
            resp->ttl = bug_done;
        }
        resp->header = header();
        *r = (struct rec){.kind = REC_KEEPALIVE, .req = &req->base, .resp = &resp->base};
    } else {
        call_put(r, leases[l].live, leases[l].id, (unsigned)below(3));
        if (!leases[l].live)
            r->outcome = REFUSED;
    }
}

struct slot { int64_t start, point, end; uint32_t client; };

static int by_point(const void *a, const void *b)
{
    const struct slot *x = a, *y = b;

    return (x->point > y->point) - (x->point < y->point);
}

static void make_call(struct history *h, const struct slot *s)
{
    uint64_t what = below(100), fate = below(20);
    enum outcome outcome = fate == 0 ? REFUSED : fate < 3 ? UNKNOWN : DONE;
    bool acts = outcome == DONE || (outcome == UNKNOWN && below(2)), hit = !bug_done && below(10) == 0;
    struct rec r;

    if (what < 60 && hit && bug == LOST_ACK && outcome == DONE && n_events > 3)
        acts = false, bug_done = true;
    if (what < 30 && hit && bug == REFUSED_DONE && outcome == REFUSED)
        acts = true, bug_done = true;
    if (what < 30)
        call_put(&r, acts, 0, 0);
    else if (what < 40)
        call_delete(&r, acts);
    else if (what < 60)
        call_txn(&r, acts);
    else if (what < 85)
        call_range(&r, what < 65), outcome = DONE;
    else
        call_lease(&r), outcome = r.outcome;
    if (bug == TWICE && hit && r.kind == REC_PUT && acts && outcome != REFUSED && what < 30) {
        const Etcdserverpb__PutRequest *p = (const void *)r.req;

        put(p->key, p->value, 0, ++rev);
        bug_done = true;
    }
    if (bug == LOST_ACK && bug_done && !acts && r.kind == REC_DELETE && outcome == DONE &&
        ((const Etcdserverpb__DeleteRangeResponse *)r.resp)->deleted == 0)
        bug_done = false; /* it would have done nothing */
    if (acts || what >= 85) /* of a lease's calls also those that were refused */
        log_call(&r);
    if (below(60) == 0)
        log_new_term();
    r.outcome = outcome;
    if (outcome != DONE) {
        protobuf_c_message_free_unpacked(r.resp, NULL);
        r.resp = NULL;
        r.status = 14;
    }
    r.client = s->client;
    r.start_ns = s->start;
    r.end_ns = s->end;
    history_add(h, &r);
}

/* ---- watches ----------------------------------------------------------------------------------- */

static int64_t rev_at(int64_t ns)
{
    int64_t at = 1;

    for (size_t i = 0; i < n_events && events[i].at_ns <= ns; i++)
        at = events[i].rev;
    return at;
}

static void notice(struct history *h, uint32_t client, uint32_t stream, Etcdserverpb__WatchResponse *m, int64_t told,
                   int64_t ns)
{
    struct rec r = {
        .kind = REC_NOTICE, .client = client, .stream = stream, .start_ns = ns, .end_ns = ns, .resp = &m->base};

    m->header = header();
    m->header->revision = told;
    history_add(h, &r);
}

static bool is_wanted(const Etcdserverpb__WatchCreateRequest *w, const struct event *e)
{
    if (w->n_filters && (int)w->filters[0] == (int)e->deleted)
        return false;
    return in_range(bytes_of(e->kv.key), bytes_of(w->key), bytes_of(w->range_end));
}

static void make_watch(struct history *h, uint32_t stream, int64_t end_ns)
{
    Etcdserverpb__WatchCreateRequest *w = made(&etcdserverpb__watch_create_request__descriptor);
    struct rec r = {
        .kind = REC_WATCH, .stream = stream, .client = stream == 1 ? CLIENT_WITNESS : 100 + stream, .req = &w->base};
    int64_t at = stream == 1 ? 0 : (int64_t)below((uint64_t)end_ns), from;
    size_t i = 0;

    r.start_ns = r.end_ns = at;
    w->key = stream == 1 ? bytes_dup("", 1) : below(3) ? text("k/") : key_n(below(KEYS));
    if (w->key.len <= 2)
        w->range_end = stream == 1 ? bytes_dup("", 1) : text("k0");
    w->start_revision = stream == 1 ? 1 : below(2) ? 0 : 1 + (int64_t)below((uint64_t)rev);
    w->prev_kv = below(2);
    if (stream > 1 && below(4) == 0) {
        w->filters = calloc(1, sizeof *w->filters);
        w->filters[w->n_filters++] = (Etcdserverpb__WatchCreateRequest__FilterType)below(2);
    }
    history_add(h, &r);
    {
        Etcdserverpb__WatchResponse *m = made(&etcdserverpb__watch_response__descriptor);

        m->created = true;
        notice(h, r.client, stream, m, rev_at(at), at);
    }
    from = w->start_revision ? w->start_revision : rev_at(at) + 1;
    while (i < n_events) {
        Etcdserverpb__WatchResponse *m = made(&etcdserverpb__watch_response__descriptor);
        int64_t until = events[i].rev + (int64_t)below(4); /* all of these revisions in one notice */

        m->events = calloc(64, sizeof *m->events);
        for (; i < n_events && events[i].rev <= until; i++) {
            Mvccpb__Event *e;

            if (events[i].rev < from || !is_wanted(w, &events[i]))
                continue;
            e = m->events[m->n_events++] = made(&mvccpb__event__descriptor);
            e->type = events[i].deleted ? MVCCPB__EVENT__EVENT_TYPE__DELETE : MVCCPB__EVENT__EVENT_TYPE__PUT;
            e->kv = kv_dup(&events[i].kv);
            if (w->prev_kv)
                e->prev_kv = kv_dup(get(events[i].kv.key, events[i].rev - 1));
            REQUIRE(m->n_events < 64);
        }
        at = (at > events[i - 1].at_ns ? at : events[i - 1].at_ns) + (int64_t)below(MS);
        if (m->n_events || (events[i - 1].rev >= from && below(3) == 0))
            notice(h, r.client, stream, m, events[i - 1].rev, at);
        else
            protobuf_c_message_free_unpacked(&m->base, NULL);
    }
    h->recs[h->n - 1].outcome = DONE;
    for (size_t k = 0; k < h->n; k++)
        if (h->recs[k].kind == REC_WATCH && h->recs[k].stream == stream)
            h->recs[k].outcome = DONE;
}

static void make_end(struct history *h, int64_t ns)
{
    for (uint32_t m = 1; m <= 3; m++) {
        Etcdserverpb__HashKVResponse *hash = made(&etcdserverpb__hash_kvresponse__descriptor);
        Etcdserverpb__LeaseLeasesResponse *all = made(&etcdserverpb__lease_leases_response__descriptor);
        struct rec r = {.kind = REC_HASH, .client = CLIENT_FINAL, .member = m, .start_ns = ns, .end_ns = ns + 1};

        hash->hash = 12345;
        r.resp = &hash->base;
        history_add(h, &r);
        all->leases = calloc(LEASES, sizeof *all->leases);
        for (size_t l = 0; l < n_leases; l++)
            if (leases[l].live) {
                all->leases[all->n_leases] = made(&etcdserverpb__lease_status__descriptor);
                all->leases[all->n_leases++]->id = leases[l].id;
            }
        r.kind = REC_LEASES;
        r.resp = &all->base;
        history_add(h, &r);
    }
}

static void make_history(struct history *h)
{
    struct slot slots[CALLS];
    int64_t free_at[CLIENTS] = {0};

    for (size_t i = 0; i < n_events; i++) {
        free(events[i].kv.key.data);
        free(events[i].kv.value.data);
    }
    n_events = n_leases = n_values = 0;
    rev = 1;
    now = 0;
    bug_done = false;
    member_rev[1] = member_rev[2] = member_rev[3] = 1;
    journal_fini(&whole);
    whole.base = term = 1;
    log_new_term();
    history_init(h);
    for (size_t i = 0; i < CALLS; i++) {
        struct slot *s = &slots[i];

        s->client = 2 + (uint32_t)(i % CLIENTS);
        s->start = free_at[i % CLIENTS] + (int64_t)below(50 * MS);
        s->point = s->start + 1 + (int64_t)below(30 * MS);
        s->end = s->point + 1 + (int64_t)below(30 * MS);
        free_at[i % CLIENTS] = s->end + 1;
    }
    qsort(slots, CALLS, sizeof slots[0], by_point);
    for (size_t i = 0; i < CALLS; i++) {
        run_clock(slots[i].point);
        make_call(h, &slots[i]);
    }
    for (uint32_t w = 1; w <= WATCHES; w++)
        make_watch(h, w, now);
    make_end(h, now + 1000 * (int64_t)MS);
}

/* ---- what is made wrong in a finished history ---------------------------------------------------- */

static struct rec *pick(struct history *h, bool (*fits)(struct history *, struct rec *))
{
    size_t from = below(h->n);

    for (size_t i = 0; i < h->n; i++)
        if (fits(h, &h->recs[(from + i) % h->n]))
            return &h->recs[(from + i) % h->n];
    return NULL;
}

static Etcdserverpb__WatchResponse *notice_of(struct rec *r) { return (void *)r->resp; }
static Etcdserverpb__RangeResponse *range_of(struct rec *r) { return (void *)r->resp; }

static bool is_told(struct history *h, struct rec *r)
{
    (void)h;
    return r->kind == REC_NOTICE && notice_of(r)->n_events;
}
static bool is_watched(struct history *h, struct rec *r) { return is_told(h, r) && r->client != CLIENT_WITNESS; }
static bool is_witnessed(struct history *h, struct rec *r) { return is_told(h, r) && r->client == CLIENT_WITNESS; }

static struct rec *next_told(struct history *h, struct rec *r)
{
    for (struct rec *n = r + 1; n < h->recs + h->n; n++)
        if (n->stream == r->stream && is_told(h, n))
            return n;
    return NULL;
}
static bool has_next(struct history *h, struct rec *r) { return is_watched(h, r) && next_told(h, r); }
static bool is_two(struct history *h, struct rec *r)
{
    return is_watched(h, r) && notice_of(r)->n_events > 1 &&
           notice_of(r)->events[0]->kv->mod_revision == notice_of(r)->events[1]->kv->mod_revision;
}
static bool has_prev(struct history *h, struct rec *r) { return is_told(h, r) && notice_of(r)->events[0]->prev_kv; }
static bool is_put_told(struct history *h, struct rec *r)
{
    return is_watched(h, r) && notice_of(r)->events[0]->type == MVCCPB__EVENT__EVENT_TYPE__PUT;
}
static bool is_read(struct history *h, struct rec *r)
{
    (void)h;
    return r->kind == REC_RANGE && r->outcome == DONE && range_of(r)->n_kvs;
}
static bool is_late_read(struct history *h, struct rec *r)
{
    return is_read(h, r) && !((const Etcdserverpb__RangeRequest *)r->req)->serializable && r->start_ns > 300 * MS &&
           range_of(r)->header->revision > 5;
}
static bool is_late_local_read(struct history *h, struct rec *r)
{
    return is_read(h, r) && ((const Etcdserverpb__RangeRequest *)r->req)->serializable && r->start_ns > 700 * MS;
}
static bool is_acked(struct history *h, struct rec *r)
{
    (void)h;
    return (r->kind == REC_PUT || r->kind == REC_TXN) && r->outcome == DONE && rec_header(r)->revision > 3;
}
static bool is_early_acked(struct history *h, struct rec *r) { return is_acked(h, r) && r->end_ns < now - 500 * MS; }
static bool is_txn(struct history *h, struct rec *r) { (void)h; return r->kind == REC_TXN && r->outcome == DONE; }
static bool is_deleted(struct history *h, struct rec *r)
{
    (void)h;
    return r->kind == REC_DELETE && r->outcome == DONE;
}
static bool is_hash(struct history *h, struct rec *r) { (void)h; return r->kind == REC_HASH; }
static bool put_prev(struct history *h, struct rec *r)
{
    (void)h;
    return r->kind == REC_PUT && r->outcome == DONE && ((Etcdserverpb__PutResponse *)r->resp)->prev_kv;
}

static void drop_event(Etcdserverpb__WatchResponse *m, size_t i)
{
    protobuf_c_message_free_unpacked(&m->events[i]->base, NULL);
    memmove(m->events + i, m->events + i + 1, (m->n_events - i - 1) * sizeof *m->events);
    m->n_events--;
}

static void read_at(struct rec *r, int64_t at)
{
    Etcdserverpb__RangeResponse *old = range_of(r), *resp = range((const void *)r->req, at);

    resp->header = header();
    resp->header->revision = at;
    protobuf_c_message_free_unpacked(&old->base, NULL);
    r->resp = &resp->base;
}

/* The revision of everything that had been answered when r began is at least this. */
static int64_t known_before(struct history *h, const struct rec *r, bool member)
{
    int64_t known = 0;

    for (size_t i = 0; i < h->n; i++) {
        const struct rec *o = &h->recs[i];
        bool counts = member ? o->kind == REC_RANGE && o->member == r->member : o->kind != REC_HASH;

        if (counts && o->outcome == DONE && rec_header(o) && o->end_ns < r->start_ns && rec_header(o)->revision > known)
            known = rec_header(o)->revision;
    }
    return known;
}

enum wrong {
    W_DROP_COMMIT,
    W_DROP_EVENT,
    W_DOUBLE_NOTICE,
    W_SWAP_NOTICES,
    W_SPLIT,
    W_WATCH_PREV,
    W_WATCH_VALUE,
    W_READ_VALUE,
    W_READ_KEY,
    W_READ_COUNT,
    W_STALE_READ,
    W_MEMBER_BACK,
    W_ACK_REV,
    W_ACK_LATE,
    W_TXN_BRANCH,
    W_DELETE_COUNT,
    W_PUT_PREV,
    W_HASH,
    WRONGS
};
static const char *const wrong_names[] = {"commit lost",
                                          "event lost",
                                          "notice doubled",
                                          "notices swapped",
                                          "revision split",
                                          "prev_kv of a watch",
                                          "value of an event",
                                          "value read",
                                          "key not read",
                                          "count read",
                                          "stale read",
                                          "member goes back",
                                          "acknowledged at another revision",
                                          "written before it began",
                                          "other branch",
                                          "deletes counted",
                                          "prev_kv of a put",
                                          "hash"};

static bool make_wrong(struct history *h, enum wrong w)
{
    static bool (*const fits[WRONGS])(struct history *, struct rec *) = {[W_DROP_COMMIT] = is_witnessed,
                                                                         [W_DROP_EVENT] = is_watched,
                                                                         [W_DOUBLE_NOTICE] = is_watched,
                                                                         [W_SWAP_NOTICES] = has_next,
                                                                         [W_SPLIT] = is_two,
                                                                         [W_WATCH_PREV] = has_prev,
                                                                         [W_WATCH_VALUE] = is_put_told,
                                                                         [W_READ_VALUE] = is_read,
                                                                         [W_READ_KEY] = is_read,
                                                                         [W_READ_COUNT] = is_read,
                                                                         [W_STALE_READ] = is_late_read,
                                                                         [W_MEMBER_BACK] = is_late_local_read,
                                                                         [W_ACK_REV] = is_acked,
                                                                         [W_ACK_LATE] = is_early_acked,
                                                                         [W_TXN_BRANCH] = is_txn,
                                                                         [W_DELETE_COUNT] = is_deleted,
                                                                         [W_PUT_PREV] = put_prev,
                                                                         [W_HASH] = is_hash};
    struct rec *r = pick(h, fits[w]);
    int64_t at;

    if (r == NULL)
        return false;
    switch (w) {
    case W_DROP_COMMIT:
        for (at = notice_of(r)->events[0]->kv->mod_revision;
             notice_of(r)->n_events && notice_of(r)->events[0]->kv->mod_revision == at;)
            drop_event(notice_of(r), 0);
        break;
    case W_DROP_EVENT:
        drop_event(notice_of(r), below(notice_of(r)->n_events));
        break;
    case W_DOUBLE_NOTICE: {
        struct rec again = *r;

        again.resp = message_copy(r->resp);
        history_add(h, &again);
        break;
    }
    case W_SWAP_NOTICES: {
        struct rec *n = next_told(h, r);
        ProtobufCMessage *m = r->resp;

        r->resp = n->resp;
        n->resp = m;
        break;
    }
    case W_SPLIT: {
        struct rec rest = *r;

        rest.resp = message_copy(r->resp);
        drop_event(notice_of(&rest), 0);
        while (notice_of(r)->n_events > 1)
            drop_event(notice_of(r), 1);
        history_add(h, &rest); /* at the end of its stream's records, so its order is wrong too, if others follow */
        break;
    }
    case W_WATCH_PREV:
        notice_of(r)->events[0]->prev_kv->value.data[0] ^= 1;
        break;
    case W_WATCH_VALUE:
        notice_of(r)->events[0]->kv->value.data[0] ^= 1;
        break;
    case W_READ_VALUE:
        range_of(r)->kvs[below(range_of(r)->n_kvs)]->value.data[0] ^= 1;
        break;
    case W_READ_KEY:
        protobuf_c_message_free_unpacked(&range_of(r)->kvs[--range_of(r)->n_kvs]->base, NULL);
        range_of(r)->count--;
        break;
    case W_READ_COUNT:
        range_of(r)->count++;
        break;
    case W_STALE_READ:
        at = known_before(h, r, false);
        if (at < 2)
            return false;
        read_at(r, at - 1);
        break;
    case W_MEMBER_BACK:
        at = known_before(h, r, true);
        if (at < 2)
            return false;
        read_at(r, at - 1);
        break;
    case W_ACK_REV:
        ((Etcdserverpb__ResponseHeader *)(uintptr_t)rec_header(r))->revision -= 1;
        break;
    case W_ACK_LATE:
        r->start_ns = now + 100 * MS;
        r->end_ns = r->start_ns + MS;
        break;
    case W_TXN_BRANCH:
        ((Etcdserverpb__TxnResponse *)r->resp)->succeeded ^= 1;
        break;
    case W_DELETE_COUNT:
        ((Etcdserverpb__DeleteRangeResponse *)r->resp)->deleted ^= 1;
        break;
    case W_PUT_PREV:
        ((Etcdserverpb__PutResponse *)r->resp)->prev_kv->mod_revision--;
        break;
    case W_HASH:
        ((Etcdserverpb__HashKVResponse *)r->resp)->hash++;
        break;
    case WRONGS:
        break;
    }
    return true;
}

/* ---- the tests ------------------------------------------------------------------------------------ */

static unsigned setting(const char *name, unsigned otherwise)
{
    const char *s = getenv(name);

    return s ? (unsigned)strtoul(s, NULL, 0) : otherwise;
}

/* ---- logs --------------------------------------------------------------------------------------- */

enum log_wrong {
    L_LOST,        /* from all of them */
    L_SWAPPED,
    L_TWICE,
    L_VALUE,
    L_OTHER_BYTES, /* in one of them */
    L_OTHER_TERM,
    L_GAP,
    L_CUT_OTHER,
    L_TWO_LEADERS,
    L_NOT_ON_MOST,
    L_ENDS_EARLY,
    L_LEASE_LIVES,
    L_DAMAGED,
    L_NOBODYS,
    LOG_WRONGS
};
static const char *const log_wrong_names[] = {
    "an entry lost", "two entries swapped", "an entry twice", "another value", "one member has other bytes",
    "one member has another term", "one member lacks an entry", "other bytes had been cut off", "two leaders in a term",
    "committed on one member", "all end early", "a lease's end lost", "a log that is not sound", "asked for by nobody"};

/* The value of a put that was acknowledged and has no lease, in its entry's payload. */
static struct slice value_in(const struct history *h, struct slice payload)
{
    struct slice body, found = SLICE_NONE;
    Etcdserverpb__PutRequest *put;
    enum journal_kind kind;
    uint64_t t;

    if (!journal_parse(payload, &kind, &t, &body) || kind != JOURNAL_PUT)
        return SLICE_NONE;
    put = etcdserverpb__put_request__unpack(NULL, body.len, body.ptr);
    REQUIRE(put);
    for (size_t i = 0; put->lease == 0 && i < h->n; i++)
        if (h->recs[i].kind == REC_PUT && h->recs[i].outcome == DONE &&
            slice_eq(bytes_of(((const Etcdserverpb__PutRequest *)h->recs[i].req)->value), bytes_of(put->value)))
            found = slice_of(memmem(body.ptr, body.len, put->value.data, put->value.len), put->value.len);
    etcdserverpb__put_request__free_unpacked(put, NULL);
    return found;
}

/* two: the next entry is such a put too; to swap it with one that does nothing would be no wrong. */
static uint64_t pick_entry(const struct history *h, bool two)
{
    uint64_t from = below(whole.n), n = whole.n;

    for (uint64_t i = 0; i < n; i++) {
        uint64_t index = whole.base + 1 + (from + i) % n;

        if (index + 2 < journal_last(&whole) && value_in(h, journal_at(&whole, index)->payload).len &&
            (!two || value_in(h, journal_at(&whole, index + 1)->payload).len))
            return index;
    }
    return 0;
}

static struct slice changed(struct slice payload, size_t at)
{
    static uint8_t bytes[5000];

    REQUIRE(payload.len <= sizeof bytes);
    memcpy(bytes, payload.ptr, payload.len);
    bytes[at] ^= 1;
    return slice_of(bytes, payload.len);
}

/* A put of a lease that there never was: it is refused, so no revision tells of it. */
static struct slice odd_entry(void)
{
    static uint8_t entry[80] = {1, JOURNAL_PUT};
    Etcdserverpb__PutRequest put = ETCDSERVERPB__PUT_REQUEST__INIT;

    put.key = (ProtobufCBinaryData){3, (uint8_t *)"odd"};
    put.lease = 9999;
    return slice_of(entry, 40 + etcdserverpb__put_request__pack(&put, entry + 40));
}

/* The next entry; what lies at or before the base came with a snapshot. */
static void next_entry(struct journal *l, uint64_t *index, uint64_t entry_term, struct slice payload)
{
    if (*index > l->base)
        journal_add(l, *index, entry_term, payload);
    ++*index;
}

/* A member's log, wrong at the entry `at`. */
static void make_log(const struct history *h, struct journal *l, int member, enum log_wrong w, uint64_t at)
{
    uint64_t index = 2, end = journal_last(&whole);

    if (w == L_ENDS_EARLY || (w == L_NOT_ON_MOST && member > 0))
        end = at - 1;
    for (uint64_t i = 2; i <= end; i++) {
        const struct journal_entry *e = journal_at(&whole, i);
        bool here = i == at, mine = here && member == 1;
        struct slice value = here ? value_in(h, e->payload) : SLICE_NONE, payload = e->payload;

        if ((here && (w == L_LOST || w == L_LEASE_LIVES)) || (mine && w == L_GAP))
            continue;
        if (here && w == L_VALUE)
            payload = changed(payload, (size_t)(value.ptr - payload.ptr));
        if (mine && w == L_OTHER_BYTES)
            payload = changed(payload, 20);
        if (mine && (w == L_CUT_OTHER || w == L_TWO_LEADERS) && index > l->base) /* and cut at once */
            journal_add(l, index, e->term, w == L_CUT_OTHER ? S("x") : SLICE_NONE);
        if (here && w == L_SWAPPED) {
            next_entry(l, &index, e[1].term, e[1].payload);
            i++;
        }
        next_entry(l, &index, e->term + (mine && w == L_OTHER_TERM), payload);
        if (here && w == L_TWICE)
            next_entry(l, &index, e->term, payload);
        if (here && w == L_NOBODYS)
            next_entry(l, &index, e->term, odd_entry());
    }
    l->commit = journal_last(l) - (w == LOG_WRONGS);
    if (w == L_DAMAGED && member == 1)
        (void)snprintf(l->error, sizeof l->error, "damaged");
}

static uint64_t pick_end_of_lease(void)
{
    for (uint64_t i = 3; i <= journal_last(&whole); i++) {
        enum journal_kind kind;
        uint64_t t;
        struct slice body;
        int64_t id;

        if (!journal_parse(journal_at(&whole, i)->payload, &kind, &t, &body) || kind != JOURNAL_EXPIRE ||
            t != journal_at(&whole, i)->term)
            continue;
        id = (int64_t)get_u64le(body.ptr);
        for (size_t e = 0; e < n_events; e++) { /* it had keys to delete */
            char prefix[24];
            size_t n = (size_t)snprintf(prefix, sizeof prefix, "l/%lld/", (long long)id);

            if (events[e].deleted && events[e].kv.key.len > n && memcmp(events[e].kv.key.data, prefix, n) == 0)
                return i;
        }
    }
    return 0;
}

/* Some begin later than the cluster did, as after a snapshot; in one of four correct histories all do. */
static bool make_logs(const struct history *h, struct journal logs[JOURNALS], enum log_wrong w)
{
    uint64_t at = w == LOG_WRONGS      ? whole.n / 2
                  : w == L_LEASE_LIVES ? pick_end_of_lease()
                                       : pick_entry(h, w == L_SWAPPED);
    uint64_t base = 1 + below(at / 2 + 1);
    bool all = w == LOG_WRONGS && below(4) == 0;

    if (at == 0)
        return false;
    for (int m = 0; m < JOURNALS; m++) {
        logs[m] = (struct journal){.there = true, .base = all || (m > 0 && below(3) == 0) ? base : 1};
        make_log(h, &logs[m], m, w, at);
    }
    return true;
}

static FILE *quiet;

static void correct_histories_pass(void)
{
    struct check_facts all = {0}, f;

    for (unsigned i = 0; i < setting("CLEAN", 150); i++) {
        struct history h;
        unsigned problems;

        bug = NO_BUG;
        make_history(&h);
        problems = history_check(&h, NULL, stdout, &f);
        CHECK(problems == 0);
        all.writes += f.writes;
        all.reads += f.reads;
        all.events += f.events;
        all.unknown_found += f.unknown_found;
        all.leases_expired += f.leases_expired;
        all.leases_revoked += f.leases_revoked;
        history_fini(&h);
        if (problems)
            return;
    }
    /* Else they would have been of nothing. */
    CHECK(all.writes && all.reads && all.events && all.unknown_found && all.leases_expired && all.leases_revoked);
}

static unsigned made_wrong, found;

static void look(struct history *h, const char *what)
{
    made_wrong++;
    if (history_check(h, NULL, quiet, NULL) > 0)
        found++;
    else
        printf("# not found: %s\n", what);
}

static void wrong_answers_are_found(void)
{
    made_wrong = found = 0;
    for (int w = 0; w < WRONGS; w++) {
        unsigned before = made_wrong;

        for (unsigned i = 0; i < setting("EACH", 30); i++) {
            struct history h;

            bug = NO_BUG;
            make_history(&h);
            if (make_wrong(&h, (enum wrong)w))
                look(&h, wrong_names[w]);
            history_fini(&h);
        }
        CHECK(made_wrong > before);
    }
    printf("# %u of %u found\n", found, made_wrong);
    CHECK((double)found >= 0.999 * made_wrong);
}

static void broken_stores_are_found(void)
{
    static const char *const bug_names[] = {
        "",           "lease ends early",  "key outlives its lease",  "acknowledged, never done",
        "done twice", "refused, and done", "renewed when it was gone"};

    made_wrong = found = 0;
    for (int b = NO_BUG + 1; b < BUGS; b++) {
        unsigned before = made_wrong;

        for (unsigned i = 0; i < setting("EACH", 30); i++) {
            struct history h;

            bug = (enum bug)b;
            make_history(&h);
            if (bug_done)
                look(&h, bug_names[b]);
            history_fini(&h);
        }
        CHECK(made_wrong > before);
    }
    printf("# %u of %u found\n", found, made_wrong);
    CHECK((double)found >= 0.999 * made_wrong);
}

static void logs_free(struct journal logs[JOURNALS])
{
    for (int m = 0; m < JOURNALS; m++)
        journal_fini(&logs[m]);
}

static void correct_logs_pass(void)
{
    struct check_facts f;
    unsigned partly = 0;

    for (unsigned i = 0; i < setting("CLEAN", 150); i++) {
        struct journal logs[JOURNALS];
        struct history h;
        unsigned problems;

        bug = NO_BUG;
        make_history(&h);
        REQUIRE(make_logs(&h, logs, LOG_WRONGS));
        problems = history_check(&h, logs, stdout, &f);
        CHECK(problems == 0);
        CHECK(f.entries_from > 2 || f.entries_revs == f.revisions);
        CHECK(f.entries_revs > f.revisions / 4);
        partly += f.entries_from > 2;
        logs_free(logs);
        history_fini(&h);
        if (problems)
            return;
    }
    CHECK(partly > 0);
}

static void wrong_logs_are_found(void)
{
    made_wrong = found = 0;
    for (int w = 0; w < LOG_WRONGS; w++) {
        unsigned before = made_wrong;

        for (unsigned i = 0; i < setting("EACH", 30); i++) {
            struct journal logs[JOURNALS];
            struct history h;

            bug = NO_BUG;
            make_history(&h);
            if (make_logs(&h, logs, (enum log_wrong)w)) {
                made_wrong++;
                if (history_check(&h, logs, quiet, NULL) > 0)
                    found++;
                else
                    printf("# not found: %s\n", log_wrong_names[w]);
                logs_free(logs);
            }
            history_fini(&h);
        }
        CHECK(made_wrong > before);
    }
    printf("# %u of %u found\n", found, made_wrong);
    CHECK(found == made_wrong);
}

static void a_saved_history_is_the_same(void)
{
    char path[] = "/tmp/robust-check-XXXXXX";
    struct history h, again;
    int fd = mkstemp(path);

    REQUIRE(fd >= 0);
    (void)close(fd);
    bug = NO_BUG;
    make_history(&h);
    history_init(&again);
    CHECK(history_save(&h, path) == 0);
    CHECK(history_load(&again, path) == 0);
    CHECK(again.n == h.n);
    CHECK(history_check(&again, NULL, stdout, NULL) == 0);
    history_fini(&h);
    history_fini(&again);
    (void)unlink(path);
}

int main(void)
{
    const char *s = getenv("SEED");

    seed = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL) << 20 ^ (uint64_t)getpid();
    seed |= 1;
    printf("# SEED=%llu\n", (unsigned long long)seed);
    quiet = fopen("/dev/null", "w");
    REQUIRE(quiet);
    TEST(correct_histories_pass);
    TEST(wrong_answers_are_found);
    TEST(broken_stores_are_found);
    TEST(correct_logs_pass);
    TEST(wrong_logs_are_found);
    TEST(a_saved_history_is_the_same);
    (void)fclose(quiet);
    return tap_done();
}
