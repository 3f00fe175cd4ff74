/* SPDX-License-Identifier: Apache-2.0 */
/* hub_rig.h - a hub over a real store, a writer that remembers every change, and clients that check what they get.
 *
 * The writer plays apply: it inserts into the live delta, publishes, freezes, flushes, sweeps and compacts. rig.log is
 * all it ever wrote; what a watcher must see follows from it. client_take reads responses from a stream as an rpc
 * thread would and checks each one: order, whole revisions, no gap, no duplicate, filters, values, previous values,
 * headers, forms of created and cancelled.
 */
#pragma once
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/hub_impl.h"
#include "err.h"
#include "splitmix.h"
#include "tap.h"

enum { RIG_KEYS = 24, RIG_LOG_MAX = 1 << 18, CLIENT_WATCHERS = 32 };

struct rig_change {
    int64_t main, create, version;
    uint32_t sub;
    uint32_t value_bytes;
    uint8_t key;
    bool tombstone;
};

struct rig_clock {
    struct clock clock;
    uint64_t ms;
};

static struct rig {
    char dir[64];
    struct base *base;
    struct store *store;
    struct hub *hub;
    struct rig_clock clock;
    struct clock *real; /* NULL: rig.clock */
    struct rng rng;
    _Atomic int64_t rev;
    _Atomic int64_t compact;
    struct rig_change *log;
    size_t first[RIG_LOG_MAX + 2]; /* of revision m: log[first[m]] .. log[first[m + 1]] */
    size_t n_log;
    struct { int64_t create, version; } now[RIG_KEYS];
    uint64_t seed;
    size_t value_bytes; /* 0: small ones */
} rig;

static uint64_t rig_random(uint64_t *s)
{
    return splitmix64(s);
}

static void (*rig_on_random)(void); /* called once, where the hub takes a random number */

static uint64_t rig_rng_next(struct rng *r)
{
    static uint64_t s = 99; /* the hub's thread alone */
    void (*fn)(void) = rig_on_random;

    (void)r;
    rig_on_random = NULL;
    if (fn)
        fn();
    return rig_random(&s);
}

static uint64_t rig_now_ms(struct clock *c)
{
    return ((struct rig_clock *)c)->ms;
}

static uint64_t rig_now_us(struct clock *c)
{
    return ((struct rig_clock *)c)->ms * 1000;
}

static uint64_t rig_term(void *ctx)
{
    (void)ctx;
    return 3;
}

/* k00 .. k23: a prefix of two characters takes ten of them. */
static struct slice rig_key(int k, char name[4])
{
    (void)snprintf(name, 4, "k%02u", (unsigned)k % 100);
    return slice_of(name, 3);
}

static struct slice rig_value(const struct rig_change *c, uint8_t *dst)
{
    int n = snprintf((char *)dst, 64, "%" PRId64 ".%u", c->main, c->sub);

    if (c->value_bytes > (size_t)n) {
        memset(dst + n, 'v', c->value_bytes - (size_t)n);
        n = (int)c->value_bytes;
    }
    return slice_of(dst, (size_t)n);
}

/* ---- the writer ------------------------------------------------------------------------ */

static void rig_write_change(int64_t main, uint32_t sub, int k, bool tombstone)
{
    static uint8_t body[1 << 21], value[1 << 21];
    struct rig_change *l = &rig.log[rig.n_log++];
    char name[4];
    struct change c = {.key = rig_key(k, name), .rev = {main, sub}, .tombstone = tombstone};
    struct slice v;

    if (tombstone) {
        rig.now[k].version = rig.now[k].create = 0;
    } else {
        if (rig.now[k].version++ == 0)
            rig.now[k].create = main;
        c.create_revision = rig.now[k].create;
        c.version = rig.now[k].version;
    }
    *l = (struct rig_change){.main = main, .sub = sub, .key = (uint8_t)k, .tombstone = tombstone,
                             .create = c.create_revision, .version = c.version,
                             .value_bytes = (uint32_t)rig.value_bytes};
    v = rig_value(l, value);
    c.body = slice_of(body, body_size(&c, v));
    REQUIRE(c.body.len <= sizeof body);
    body_encode(&c, v, body);
    REQUIRE(delta_put(store_live(rig.store), &c) == 0);
}

static void rig_publish(void)
{
    store_publish(rig.store, (uint64_t)rig.rev, rig.compact, rig.rev);
    hub_nudge(rig.hub);
}

/* One revision of n changes at random keys, some of them the same key twice. */
static inline void rig_write(int n)
{
    int64_t main = rig.rev + 1;

    REQUIRE(rig.n_log + (size_t)n < RIG_LOG_MAX && main < RIG_LOG_MAX);
    for (int i = 0; i < n; i++) {
        int k = (int)(rig_random(&rig.seed) % RIG_KEYS);

        rig_write_change(main, (uint32_t)i, k, rig.now[k].version && rig_random(&rig.seed) % 4 == 0);
    }
    rig.first[main + 1] = rig.n_log;
    atomic_store(&rig.rev, main);
    rig_publish();
}

static inline void rig_put(int k)
{
    rig_write_change(rig.rev + 1, 0, k, false);
    rig.first[rig.rev + 2] = rig.n_log;
    atomic_fetch_add(&rig.rev, 1);
    rig_publish();
}

static inline void rig_compact(int64_t to)
{
    if (to <= rig.compact || to > rig.rev)
        return;
    atomic_store(&rig.compact, to);
    rig_publish();
}

static inline void rig_freeze(void)
{
    struct seal seal = {.applied_index = (uint64_t)rig.rev, .applied_term = 1, .revision = rig.rev,
                        .compact_revision = rig.compact};
    struct delta *d;

    if (store_frozen(rig.store) == NULL)
        REQUIRE(store_freeze(rig.store, &seal, &d) == 0);
}

static inline void rig_flush(void)
{
    if (store_frozen(rig.store) == NULL)
        return;
    REQUIRE(base_flush(rig.base, store_frozen(rig.store)) == 0);
    store_flushed(rig.store);
    (void)store_reclaim(rig.store);
}

static inline void rig_sweep(void)
{
    while (base_sweep(rig.base, NULL) == 1)
        ;
}

static void rig_begin(uint64_t seed, struct clock *real)
{
    struct base_options o = {.map_bytes = 1ull << 32, .readers_max = STORE_SLOTS_MAX + 6, .no_sync = true};
    struct hub_options ho = {.cluster_id = 0xc1, .member_id = 0x11, .term = rig_term, .fragment_bytes = 400,
                             .progress_interval_ms = 1000};
    static struct rig_change log[RIG_LOG_MAX];

    memset(&rig, 0, sizeof rig);
    rig.log = log;
    rig.seed = seed;
    strcpy(rig.dir, "/tmp/cairn-hub-XXXXXX");
    REQUIRE(mkdtemp(rig.dir) != NULL);
    o.path = rig.dir;
    REQUIRE(base_create(&o, 0xc1, 0x11, SLICE_NONE) == 0);
    REQUIRE(base_open(&o, &rig.base) == 0);
    REQUIRE(store_new(rig.base, &rig.store) == 0);
    rig.rev = 1;
    rig.compact = -1;
    rig.first[2] = 0;
    rig.clock = (struct rig_clock){.clock = {.now_ms = rig_now_ms, .now_us = rig_now_us}, .ms = 1000};
    rig.rng.next = rig_rng_next;
    ho.clock = real ? real : &rig.clock.clock;
    ho.rng = &rig.rng;
    ho.store = rig.store;
    REQUIRE(hub_new(&ho, &rig.hub) == 0);
}

static void rig_end(void)
{
    char command[100];

    hub_free(rig.hub);
    store_free(rig.store);
    (void)snprintf(command, sizeof command, "rm -rf %s", rig.dir);
    CHECK(system(command) == 0);
}

/* Steps until there is nothing to do at once. */
static inline void rig_settle(void)
{
    for (int i = 0; i < 100000; i++) {
        uint64_t deadline = hub_step(rig.hub);

        if (deadline > rig.clock.ms + 100)
            return;
        rig.clock.ms += 2;
    }
    REQUIRE(!"the hub never rests");
}

/* ---- clients ----------------------------------------------------------------------------------- */

struct client_watcher {
    int64_t id;        /* as asked, then as told */
    int64_t start;     /* asked for */
    int64_t need;      /* the first revision not yet received whole */
    int from, end;     /* keys [from, end) */
    bool prev_kv, no_put, no_delete, fragment, progress;
    enum { W_FREE, W_ASKED, W_CREATED, W_COMPACTED, W_CANCELLING } state;
    size_t n_events, in_fragment; /* events of an unfinished fragmented response */
    int64_t compacted_at;
    uint64_t n_progress;
};

struct client {
    struct watch_stream *stream;
    struct mailbox *box; /* NULL, or whom to wake */
    struct client_watcher w[CLIENT_WATCHERS];
    int asked[1024];      /* creations not yet answered, in order */
    size_t n_asked;
    uint64_t n_progress_all, n_refused;
};

static void client_wake(void *ctx)
{
    struct client *c = ctx;

    if (c->box)
        mailbox_nudge(c->box);
}

static void client_open(struct client *c, struct mailbox *box)
{
    memset(c, 0, sizeof *c);
    c->box = box;
    c->stream = hub_stream_new(rig.hub, client_wake, c);
    REQUIRE(c->stream != NULL);
}

static void client_close(struct client *c)
{
    hub_stream_close(c->stream);
    c->stream = NULL;
}

static void client_send_create(struct client *c, int i)
{
    struct client_watcher *w = &c->w[i];
    Etcdserverpb__WatchCreateRequest cr = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
    Etcdserverpb__WatchRequest r = ETCDSERVERPB__WATCH_REQUEST__INIT;
    Etcdserverpb__WatchCreateRequest__FilterType filters[2];
    char from[4], end[4];

    (void)rig_key(w->from, from);
    (void)rig_key(w->end, end);
    cr.key = (ProtobufCBinaryData){3, (uint8_t *)from};
    if (w->end >= RIG_KEYS)
        cr.range_end = (ProtobufCBinaryData){1, (uint8_t *)""};
    else if (w->end != w->from + 1)
        cr.range_end = (ProtobufCBinaryData){3, (uint8_t *)end};
    cr.start_revision = w->start;
    cr.prev_kv = w->prev_kv;
    cr.fragment = w->fragment;
    cr.progress_notify = w->progress;
    cr.watch_id = w->id;
    cr.filters = filters;
    if (w->no_put)
        filters[cr.n_filters++] = ETCDSERVERPB__WATCH_CREATE_REQUEST__FILTER_TYPE__NOPUT;
    if (w->no_delete)
        filters[cr.n_filters++] = ETCDSERVERPB__WATCH_CREATE_REQUEST__FILTER_TYPE__NODELETE;
    r.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
    r.create_request = &cr;
    w->state = W_ASKED;
    c->asked[c->n_asked++] = i;
    REQUIRE(hub_stream_request(c->stream, &r) == 0);
}

static void client_send_cancel(struct client *c, int64_t id)
{
    Etcdserverpb__WatchCancelRequest cr = ETCDSERVERPB__WATCH_CANCEL_REQUEST__INIT;
    Etcdserverpb__WatchRequest r = ETCDSERVERPB__WATCH_REQUEST__INIT;

    cr.watch_id = id;
    r.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CANCEL_REQUEST;
    r.cancel_request = &cr;
    REQUIRE(hub_stream_request(c->stream, &r) == 0);
}

static inline void client_send_progress(struct client *c)
{
    Etcdserverpb__WatchProgressRequest pr = ETCDSERVERPB__WATCH_PROGRESS_REQUEST__INIT;
    Etcdserverpb__WatchRequest r = ETCDSERVERPB__WATCH_REQUEST__INIT;

    r.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_PROGRESS_REQUEST;
    r.progress_request = &pr;
    REQUIRE(hub_stream_request(c->stream, &r) == 0);
}

static bool client_wants(const struct client_watcher *w, const struct rig_change *l)
{
    return l->key >= w->from && l->key < w->end && !(l->tombstone ? w->no_delete : w->no_put);
}

/* What should come next: the first wanted change of a revision >= w->need (skipping what a fragment brought already),
 * up to `to`. */
static const struct rig_change *client_next(const struct client_watcher *w, int64_t to, size_t skip)
{
    for (int64_t m = w->need < 2 ? 2 : w->need; m <= to; m++) {
        for (size_t i = rig.first[m]; i < rig.first[m + 1]; i++) {
            if (client_wants(w, &rig.log[i]) && skip-- == 0)
                return &rig.log[i];
        }
    }
    return NULL;
}

static const struct rig_change *rig_lookup(int key, int64_t rev)
{
    for (int64_t m = rev; m >= 2; m--) {
        for (size_t i = rig.first[m + 1]; i > rig.first[m]; i--) {
            if (rig.log[i - 1].key == key)
                return rig.log[i - 1].tombstone ? NULL : &rig.log[i - 1];
        }
    }
    return NULL;
}

static void check_kv(const Mvccpb__KeyValue *kv, const struct rig_change *l)
{
    static _Thread_local uint8_t value[1 << 21];
    struct slice v = rig_value(l, value);
    char name[4];

    CHECK(slice_eq(slice_of(kv->key.data, kv->key.len), rig_key(l->key, name)));
    CHECK(kv->mod_revision == l->main);
    CHECK(kv->create_revision == l->create && kv->version == l->version && kv->lease == 0);
    CHECK(slice_eq(slice_of(kv->value.data, kv->value.len), l->tombstone ? SLICE_NONE : v));
}

static void check_prev(const struct client_watcher *w, const Mvccpb__Event *e, const struct rig_change *l)
{
    const struct rig_change *p = rig_lookup(l->key, l->main - 1);

    if (!w->prev_kv || p == NULL || (!l->tombstone && l->create == l->main)) {
        CHECK(e->prev_kv == NULL);
    } else if (e->prev_kv) {
        check_kv(e->prev_kv, p);
    } else {
        CHECK(l->main - 1 < rig.compact); /* only a compaction takes it away */
    }
}

/* A change that a later one of the same revision hides is gone once that revision is compacted to, as in etcd: who
 * reads that revision after the sweep does not see it. */
static bool may_be_swept(const struct rig_change *l)
{
    if (l->main > rig.compact)
        return false;
    for (const struct rig_change *x = l + 1; x < &rig.log[rig.first[l->main + 1]]; x++)
        if (x->key == l->key)
            return true;
    return false;
}

/* The next one; what need not come and is not e (NULL: anything) is passed over. */
static const struct rig_change *client_expect(struct client_watcher *w, int64_t to, const Mvccpb__Event *e)
{
    const struct rig_change *l;

    while ((l = client_next(w, to, w->in_fragment)) != NULL && may_be_swept(l) &&
           (e == NULL || e->kv == NULL || e->kv->mod_revision != l->main || e->kv->version != l->version ||
            !slice_eq(slice_of(e->kv->key.data, e->kv->key.len), rig_key(l->key, (char[4]){0}))))
        w->in_fragment++;
    return l;
}

static void check_events(struct client_watcher *w, const Etcdserverpb__WatchResponse *r)
{
    int64_t to = rig.rev, last = 0;

    CHECK(w->state == W_CREATED || w->state == W_CANCELLING);
    for (size_t i = 0; i < r->n_events; i++) {
        const Mvccpb__Event *e = r->events[i];
        const struct rig_change *l = client_expect(w, to, e);

        if (l == NULL || e->kv == NULL) {
            CHECK(!"an event nobody wrote, or a second time");
            return;
        }
        CHECK((e->type == MVCCPB__EVENT__EVENT_TYPE__DELETE) == l->tombstone);
        check_kv(e->kv, l);
        check_prev(w, e, l);
        CHECK(l->main >= w->start);
        w->in_fragment++;
        w->n_events++;
        last = l->main;
    }
    CHECK(r->header->revision >= last);
    if (r->fragment) {
        CHECK(w->fragment);
        return;
    }
    /* Whole revisions: no wanted change of the last one may be missing. */
    CHECK(client_expect(w, last, NULL) == NULL);
    w->in_fragment = 0;
    w->need = last + 1;
}

static struct client_watcher *client_find(struct client *c, int64_t id)
{
    for (int i = 0; i < CLIENT_WATCHERS; i++) {
        if (c->w[i].state >= W_CREATED && c->w[i].id == id)
            return &c->w[i];
    }
    return NULL;
}

static void check_created(struct client *c, const Etcdserverpb__WatchResponse *r)
{
    struct client_watcher *w;

    REQUIRE(c->n_asked > 0);
    w = &c->w[c->asked[0]];
    memmove(c->asked, c->asked + 1, --c->n_asked * sizeof c->asked[0]);
    CHECK(r->n_events == 0 && r->compact_revision == 0);
    if (r->canceled) {
        CHECK(r->watch_id == -1 && r->cancel_reason[0] != 0);
        c->n_refused++;
        w->state = W_FREE;
        return;
    }
    CHECK(client_find(c, r->watch_id) == NULL);
    if (w->id)
        CHECK(w->id == r->watch_id);
    w->id = r->watch_id;
    w->state = W_CREATED;
    w->need = w->start ? w->start : r->header->revision + 1;
}

static void check_cancelled(struct client *c, const Etcdserverpb__WatchResponse *r)
{
    struct client_watcher *w = client_find(c, r->watch_id);

    REQUIRE(w != NULL);
    CHECK(r->n_events == 0 && r->cancel_reason[0] == 0);
    if (r->compact_revision) {
        CHECK(r->header->revision == 0);
        CHECK(w->state == W_CREATED || w->state == W_CANCELLING);
        CHECK(w->need < r->compact_revision);
        CHECK(r->compact_revision <= rig.compact);
        if (w->state == W_CREATED)
            w->state = W_COMPACTED;
        w->compacted_at = r->compact_revision;
    } else {
        CHECK(w->state == W_CANCELLING);
        CHECK(r->header->revision > 0);
        w->state = W_FREE;
    }
}

/* No event up to the revision of a progress notice is missing. */
static void check_progress(struct client *c, const Etcdserverpb__WatchResponse *r)
{
    CHECK(r->header->revision <= rig.rev);
    for (int i = 0; i < CLIENT_WATCHERS; i++) {
        struct client_watcher *w = &c->w[i];

        if (w->state != W_CREATED || (r->watch_id != -1 && w->id != r->watch_id))
            continue;
        CHECK(client_next(w, r->header->revision, w->in_fragment) == NULL);
        CHECK(w->start <= r->header->revision);
        if (r->watch_id != -1) {
            CHECK(w->progress);
            w->n_progress++;
        }
    }
    if (r->watch_id == -1)
        c->n_progress_all++;
}

static void client_response(struct client *c, const Etcdserverpb__WatchResponse *r)
{
    struct client_watcher *w;

    REQUIRE(r->header != NULL);
    CHECK(r->header->cluster_id == 0xc1 && r->header->member_id == 0x11 && r->header->raft_term == 3);
    if (r->created) {
        check_created(c, r);
    } else if (r->canceled) {
        check_cancelled(c, r);
    } else if (r->n_events == 0) {
        check_progress(c, r);
    } else {
        w = client_find(c, r->watch_id);
        REQUIRE(w != NULL);
        check_events(w, r);
    }
}

/* Reads up to max responses; returns how many there were. */
static size_t client_take(struct client *c, size_t max)
{
    struct hub_response resp[16];
    size_t total = 0, n;

    do {
        n = hub_stream_take(c->stream, resp, max - total < 16 ? max - total : 16, SIZE_MAX);
        for (size_t i = 0; i < n; i++) {
            size_t len = resp[i].head_len + resp[i].packet->len;
            uint8_t *bytes = malloc(len);
            Etcdserverpb__WatchResponse *r;

            REQUIRE(bytes != NULL);
            memcpy(bytes, resp[i].head, resp[i].head_len);
            memcpy(bytes + resp[i].head_len, resp[i].packet->bytes, resp[i].packet->len);
            r = etcdserverpb__watch_response__unpack(NULL, len, bytes);
            REQUIRE(r != NULL);
            client_response(c, r);
            etcdserverpb__watch_response__free_unpacked(r, NULL);
            packet_unref(resp[i].packet);
            free(bytes);
        }
        total += n;
    } while (n && total < max);
    return total;
}

/* Every watcher has everything. */
static bool client_complete(const struct client *c)
{
    for (int i = 0; i < CLIENT_WATCHERS; i++) {
        const struct client_watcher *w = &c->w[i];

        if (w->state == W_ASKED || w->state == W_CANCELLING)
            return false;
        if (w->state == W_CREATED && client_next(w, rig.rev, w->in_fragment) != NULL)
            return false;
    }
    return true;
}

/* A watcher of any kind, if its place is free. */
static inline void client_random_watcher(struct client *c, uint64_t r)
{
    int64_t rev = rig.rev, start;
    int i = (int)(r % CLIENT_WATCHERS), from = (int)((r >> 8) % RIG_KEYS), n = (int)((r >> 16) % 8);

    if (c->w[i].state != W_FREE || c->n_asked > 100)
        return;
    switch (r >> 24 & 7) {
    case 0:
        start = 0;
        break;
    case 1:
        start = rev + (int64_t)(r >> 32) % 20;
        break;
    case 2:
        start = rig.compact > 0 ? rig.compact : 1;
        break;
    case 3:
        start = -1;
        break;
    case 4:
        start = rev > 100 ? rev - (int64_t)(r >> 32) % 100 : 1;
        break;
    default:
        start = 1 + (int64_t)(r >> 32) % rev;
    }
    c->w[i] = (struct client_watcher){.from = from, .end = n == 0 ? from + 1 : n == 1 ? RIG_KEYS : from + n, .start = start,
                                      .prev_kv = r >> 56 & 1, .no_put = (r >> 57 & 7) == 0,
                                      .no_delete = (r >> 60 & 3) == 0, .fragment = r >> 62 & 1,
                                      .progress = r >> 63 & 1, .id = (r >> 48 & 15) == 0 ? (int64_t)(r >> 52 & 7) : 0};
    if (c->w[i].end > RIG_KEYS)
        c->w[i].end = RIG_KEYS;
    client_send_create(c, i);
}
