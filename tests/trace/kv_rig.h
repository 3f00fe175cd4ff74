/* SPDX-License-Identifier: Apache-2.0 */
/* kv_rig.h - a kv_server without threads or gRPC: apply over a store of its own, stepped by hand, and the hub.
 *
 * What a service does before and after apply is done here as there: argument checks, reads at a view, the revision of
 * a header. Each trace is run three times, and must say the same: with all changes in the live delta, with a flush
 * after each command, so that all is in base, and (without watches) with a restart after each command.
 *
 * Commands of its own, for what a client cannot do:
 *
 *     tick MS      that long passes
 *     hold         the hub does not run until "go": it is slow
 *     flush        what is in memory goes to disk
 */
#pragma once
#include "../apply_rig.h"
#include "daemon/hub.h"
#include "kv.h"

enum kv_mode { KV_LIVE, KV_FLUSH, KV_RESTART, KV_MODES };

static struct kv_rig {
    struct kv_server server;
    struct rig rig;
    struct slot *slot; /* reads */
    struct view view;  /* of the read being answered */
    bool view_open;
    struct arena a; /* of the last answer */
    enum kv_mode mode;
    struct hub *hub; /* NULL: a trace without watches */
    struct rng rng;
    struct watch_stream *stream;
    Etcdserverpb__WatchResponse *response;
    bool held;
} kv_rig;

static uint64_t kv_rng(struct rng *r)
{
    (void)r;
    return 0; /* no jitter */
}

static uint64_t kv_term(void *ctx)
{
    (void)ctx;
    return 1;
}

static void kv_wake(void *ctx)
{
    (void)ctx; /* each command looks */
}

/* ---- reads, as svc_kv.c and svc_lease.c do them ------------------------------------------------ */

static int kv_range(struct kv_rig *k, const ProtobufCMessage *req, ProtobufCMessage **ret)
{
    const Etcdserverpb__RangeRequest *q = (const Etcdserverpb__RangeRequest *)req;
    Etcdserverpb__RangeResponse *r = msg_new(&k->a, &etcdserverpb__range_response__descriptor);
    int err = mvcc_check_range(q);

    if (!err)
        err = mvcc_range(&k->view, k->view.rev, q, &(struct mvcc_limits){0}, &k->a, r);
    r->header = msg_new(&k->a, &etcdserverpb__response_header__descriptor);
    r->header->revision = k->view.rev;
    *ret = &r->base;
    return err;
}

static int kv_txn_read(struct kv_rig *k, const ProtobufCMessage *req, ProtobufCMessage **ret)
{
    const Etcdserverpb__TxnRequest *q = (const Etcdserverpb__TxnRequest *)req;
    Etcdserverpb__TxnResponse *r = NULL;
    struct txn_run x;
    int err;

    txn_run_init(&x);
    txn_run_begin(&x, &k->view, NULL, k->view.rev, &k->a, &k->a);
    err = txn_decide(&x, q);
    if (!err)
        err = txn_execute(&x, q, &r);
    txn_run_fini(&x);
    *ret = r ? &r->base : NULL;
    return err;
}

static int kv_lease_ttl(struct kv_rig *k, const ProtobufCMessage *req, ProtobufCMessage **ret)
{
    const Etcdserverpb__LeaseTimeToLiveRequest *q = (const Etcdserverpb__LeaseTimeToLiveRequest *)req;
    Etcdserverpb__LeaseTimeToLiveResponse *r =
        msg_new(&k->a, &etcdserverpb__lease_time_to_live_response__descriptor);
    struct lease_info info;
    struct slice *keys;
    size_t n = 0;

    *ret = &r->base;
    r->ttl = -1;
    if (lease_get(k->rig.leases, q->id, &info) != 0)
        return 0;
    r->ttl = info.remaining_ms / 1000;
    r->grantedttl = info.granted_ttl_s;
    if (q->keys)
        REQUIRE(view_lease_keys(&k->view, q->id, &k->a, &keys, &n) == 0);
    r->keys = arena_alloc(&k->a, (n + 1) * sizeof *r->keys);
    for (size_t i = 0; i < n; i++)
        r->keys[r->n_keys++] = msg_bytes(keys[i]);
    return 0;
}

static int kv_lease_list(struct kv_rig *k, ProtobufCMessage **ret)
{
    Etcdserverpb__LeaseLeasesResponse *r = msg_new(&k->a, &etcdserverpb__lease_leases_response__descriptor);
    int64_t *ids;
    size_t n;

    REQUIRE(lease_list(k->rig.leases, &k->a, &ids, &n) == 0);
    r->leases = arena_alloc(&k->a, (n + 1) * sizeof *r->leases);
    for (; r->n_leases < n; r->n_leases++) {
        r->leases[r->n_leases] = msg_new(&k->a, &etcdserverpb__lease_status__descriptor);
        r->leases[r->n_leases]->id = ids[r->n_leases];
    }
    *ret = &r->base;
    return 0;
}

/* ---- writes ------------------------------------------------------------------------------------ */

/* Through the log. Argument checks come before, as in the services. */
static int kv_write(struct kv_rig *k, enum kv_method method, const ProtobufCMessage *req,
                    ProtobufCMessage **ret)
{
    static const enum entry_kind kinds[] = {
        [KV_PUT] = ENTRY_PUT,         [KV_DELETE] = ENTRY_DELETE_RANGE,  [KV_TXN] = ENTRY_TXN,
        [KV_COMPACT] = ENTRY_COMPACT, [LEASE_GRANT] = ENTRY_LEASE_GRANT, [LEASE_REVOKE] = ENTRY_LEASE_REVOKE};
    Etcdserverpb__LeaseGrantRequest grant;
    Etcdserverpb__ResponseHeader **h;
    int err = method == KV_PUT      ? txn_check_put((const Etcdserverpb__PutRequest *)req)
              : method == KV_DELETE ? txn_check_delete((const Etcdserverpb__DeleteRangeRequest *)req)
              : method == KV_TXN    ? txn_check_args((const Etcdserverpb__TxnRequest *)req, 128)
                                    : 0;

    if (err)
        return err;
    if (method == LEASE_GRANT) {
        grant = *(const Etcdserverpb__LeaseGrantRequest *)req;
        grant.ttl = lease_effective_ttl(k->rig.leases, grant.ttl);
        req = &grant.base;
    }
    err = rig_message(&k->rig, kinds[method], req, true);
    if (err)
        return err;
    *ret = k->rig.p.response;
    /* In every response it is the first field. Some services fill it with what apply told them. */
    h = (Etcdserverpb__ResponseHeader **)((uint8_t *)*ret + (*ret)->descriptor->fields[0].offset);
    if (*h == NULL) {
        *h = msg_new(&k->a, &etcdserverpb__response_header__descriptor);
        (*h)->revision = k->rig.p.revision ? k->rig.p.revision : k->rig.apply->rev;
    }
    return 0;
}

static void kv_call(struct kv_server *s, enum kv_method method, const ProtobufCMessage *req,
                    struct kv_answer *ret)
{
    struct kv_rig *k = (struct kv_rig *)s;
    int err;

    if (method == KV_TXN && txn_read_only((const Etcdserverpb__TxnRequest *)req))
        err = txn_check_args((const Etcdserverpb__TxnRequest *)req, 128);
    else
        err = 0;
    REQUIRE(view_open(k->rig.store, k->slot, &k->view) == 0);
    k->view_open = true;
    if (!err && method == KV_RANGE)
        err = kv_range(k, req, &ret->m);
    else if (!err && method == LEASE_TTL)
        err = kv_lease_ttl(k, req, &ret->m);
    else if (!err && method == LEASE_LIST)
        err = kv_lease_list(k, &ret->m);
    else if (!err && method == KV_TXN && txn_read_only((const Etcdserverpb__TxnRequest *)req))
        err = kv_txn_read(k, req, &ret->m);
    else if (!err) {
        view_close(&k->view);
        k->view_open = false;
        err = kv_write(k, method, req, &ret->m);
    }
    if (err) {
        ret->status = err_info(err).status;
        ret->text = err_info(err).text;
    }
}

/* ---- watches ------------------------------------------------------------------------------------- */

static void kv_watch_send(struct kv_server *s, const Etcdserverpb__WatchRequest *req)
{
    REQUIRE(hub_stream_request(((struct kv_rig *)s)->stream, req) == 0);
}

static void kv_hub_run(struct kv_rig *k)
{
    for (int i = 0; i < 100000; i++)
        if (hub_step(k->hub) > k->rig.clock.ms + 100)
            return;
        else
            k->rig.clock.ms++;
    REQUIRE(!"the hub never rests");
}

static Etcdserverpb__WatchResponse *kv_watch_take(struct kv_server *s)
{
    struct kv_rig *k = (struct kv_rig *)s;
    struct hub_response r;
    uint8_t *bytes;

    if (k->response)
        etcdserverpb__watch_response__free_unpacked(k->response, NULL);
    k->response = NULL;
    if (k->held || hub_stream_take(k->stream, &r, 1, SIZE_MAX) == 0)
        return NULL;
    bytes = malloc(r.head_len + r.packet->len);
    memcpy(bytes, r.head, r.head_len);
    memcpy(bytes + r.head_len, r.packet->bytes, r.packet->len);
    k->response = etcdserverpb__watch_response__unpack(NULL, r.head_len + r.packet->len, bytes);
    REQUIRE(k->response != NULL);
    packet_unref(r.packet);
    free(bytes);
    return k->response;
}

/* ---- the whole ------------------------------------------------------------------------------------- */

static bool kv_rig_command(struct kv_server *s, FILE *out, int n, char **w)
{
    struct kv_rig *k = (struct kv_rig *)s;

    (void)out;
    if (strcmp(w[0], "tick") == 0 && n == 2)
        k->rig.clock.ms += strtoull(w[1], NULL, 10);
    else if (strcmp(w[0], "flush") == 0)
        rig_flush(&k->rig);
    else if (strcmp(w[0], "hold") == 0)
        k->held = true;
    else if (strcmp(w[0], "go") == 0)
        k->held = false;
    else
        return false;
    return true;
}

/* A trace command, and what this mode does after it. */
static void kv_rig_run(void *ctx, FILE *out, int n, char **words)
{
    struct kv_rig *k = ctx;
    char *text;
    size_t len;
    FILE *f = open_memstream(&text, &len);
    Etcdserverpb__WatchResponse *(*take)(struct kv_server *) = k->server.watch_take;

    k->server.watch_take = NULL; /* the hub has not run yet */
    kv_command(&k->server, f, n, words);
    k->server.watch_take = take;
    fclose(f);
    fputs(text, out);
    free(text);
    if (k->view_open)
        view_close(&k->view);
    k->view_open = false;
    arena_fini(&k->a);
    if (k->mode == KV_FLUSH)
        rig_flush(&k->rig);
    if (k->mode == KV_RESTART) {
        slot_free(k->rig.store, k->slot);
        rig_restart(&k->rig);
        k->slot = slot_new(k->rig.store);
    }
    if (take && !k->held) {
        hub_nudge(k->hub);
        kv_hub_run(k);
        kv_say_watches(&k->server, out);
    }
}

static void kv_rig_begin(struct kv_rig *k, enum kv_mode mode, bool watches)
{
    struct hub_options ho = {.cluster_id = 1,
                             .member_id = RIG_MEMBER,
                             .term = kv_term,
                             .fragment_bytes = 400,
                             .progress_interval_ms = 1000};

    *k = (struct kv_rig){
        .server = {.call = kv_call, .command = kv_rig_command}, .mode = mode, .rng = {kv_rng}};
    rig_new(&k->rig);
    k->slot = slot_new(k->rig.store);
    arena_init(&k->a, 64 << 20, NULL, 0);
    if (!watches)
        return;
    ho.clock = &k->rig.clock.clock;
    ho.rng = &k->rng;
    ho.store = k->rig.store;
    REQUIRE(hub_new(&ho, &k->hub) == 0);
    k->stream = hub_stream_new(k->hub, kv_wake, k);
    k->server.watch_send = kv_watch_send;
    k->server.watch_take = kv_watch_take;
}

static void kv_rig_end(struct kv_rig *k)
{
    if (k->hub) {
        hub_stream_close(k->stream);
        kv_hub_run(k);
        hub_free(k->hub);
    }
    slot_free(k->rig.store, k->slot);
    rig_free(&k->rig);
}

/* Every tests/trace/PREFIX*.trace, in each mode. UPDATE=1 rewrites by the first. */
static void kv_rig_traces(const char *prefix, bool watches)
{
    static const char *const names[KV_MODES] = {"in the delta", "flushed", "restarted"};
    char **paths;
    int n = trace_paths(prefix, &paths);

    REQUIRE(n > 0);
    for (int i = 0; i < n; i++) {
        for (int mode = 0; mode < (watches ? KV_RESTART : KV_MODES); mode++) {
            int ran = 0;

            kv_rig_begin(&kv_rig, (enum kv_mode)mode, watches);
            CHECK(trace_run(paths[i], kv_rig_run, &kv_rig, &ran) == 0);
            kv_rig_end(&kv_rig);
            printf("# %s: %d commands, %s\n", paths[i], ran, names[mode]);
            CHECK(ran > 3);
            if (getenv("UPDATE"))
                break;
        }
    }
    trace_paths_free(paths, n);
}
