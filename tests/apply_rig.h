/* SPDX-License-Identifier: Apache-2.0 */
/* apply_rig.h - an apply without threads, over a real store in a directory of its own: entries in, state out.
 *
 * The log is an array here: what was committed can be applied again after a restart, as from a WAL. */
#pragma once
#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>
#include "daemon/apply_state.h"
#include "daemon/limits.h"
#include "daemon/raftconf.h"
#include "tap.h"

#define RIG_MEMBER 7
#define RIG_LOG_MAX 20000

struct rig_clock {
    struct clock clock;
    uint64_t ms;
};

struct rig {
    char dir[64];
    struct rig_clock clock;
    struct store *store;
    struct apply *apply;
    struct entry_cache *cache;
    struct account *account;
    struct lease_table *leases;
    struct entry *log[RIG_LOG_MAX]; /* by index */
    uint64_t last;
    int64_t quota;
    uint64_t map_bytes;
    int fatal;
    /* of the last entry somebody waited for */
    struct proposal p;
    struct arena out;
    bool answered;
};

static uint64_t rig_now_ms(struct clock *c)
{
    return ((struct rig_clock *)c)->ms;
}

static uint64_t rig_now_us(struct clock *c)
{
    return ((struct rig_clock *)c)->ms * 1000;
}

static int64_t rig_wall_ms(struct clock *c)
{
    return (int64_t)((struct rig_clock *)c)->ms;
}

static inline void rig_fatal(void *ctx, int err, const char *what)
{
    printf("# fatal: %s (%d)\n", what, err);
    ((struct rig *)ctx)->fatal++;
}

static inline void rig_done(struct proposal *p)
{
    ((struct rig *)((char *)p - offsetof(struct rig, p)))->answered = true;
}

static struct base_options rig_base_options(const struct rig *r)
{
    return (struct base_options){.path = r->dir, .map_bytes = r->map_bytes, .readers_max = 126, .no_sync = true};
}

/* Everything in memory, over an open base, which is the store's now. */
static inline void rig_open_base(struct rig *r, struct base *b)
{
    struct apply_options ao;

    REQUIRE(store_new(b, &r->store) == 0);
    r->cache = entry_cache_new(1u << 30);
    r->account = account_new(5000, 64 << 20, 12345);
    r->leases = lease_table_new(&r->clock.clock, 2);
    ao = (struct apply_options){.clock = &r->clock.clock, .store = r->store, .cache = r->cache, .account = r->account,
                                .leases = r->leases, .cluster_id = 1, .member_id = RIG_MEMBER,
                                .quota_bytes = r->quota, .max_txn_ops = 128, .fatal = rig_fatal, .fatal_ctx = r};
    REQUIRE(apply_new(&ao, &r->apply) == 0);
    lease_promote(r->leases, 0);
    for (uint64_t i = 1; i <= r->last; i++)
        entry_cache_put(r->cache, r->log[i]);
    arena_init(&r->out, 64 << 20, NULL, 0);
}

/* The same from what the directory holds. */
static inline void rig_open(struct rig *r)
{
    struct base_options o = rig_base_options(r);
    struct base *b;

    REQUIRE(base_open(&o, &b) == 0);
    rig_open_base(r, b);
}

static inline void rig_close(struct rig *r)
{
    arena_fini(&r->out);
    apply_free(r->apply);
    store_free(r->store);
    entry_cache_free(r->cache);
    account_free(r->account);
    lease_table_free(r->leases);
}

static inline void rig_new(struct rig *r)
{
    struct raft_conf conf = {.voters = {.n = 1, .ids = {RIG_MEMBER}}};
    uint8_t bytes[RAFTCONF_BYTES_MAX];
    struct base_options o;

    *r = (struct rig){
        .clock = {{rig_now_ms, rig_now_us, rig_wall_ms}, 1000000}, .quota = -1, .map_bytes = UINT64_C(1) << 32};
    snprintf(r->dir, sizeof r->dir, "/tmp/cairn-apply-XXXXXX");
    REQUIRE(mkdtemp(r->dir) != NULL);
    o = rig_base_options(r);
    REQUIRE(base_create(&o, 1, RIG_MEMBER, raftconf_encode(&conf, bytes)) == 0);
    rig_open(r);
}

static inline void rig_free(struct rig *r)
{
    DIR *d;
    struct dirent *e;

    rig_close(r);
    for (uint64_t i = 1; i <= r->last; i++)
        entry_unref(r->log[i]);
    d = opendir(r->dir);
    while (d && (e = readdir(d)) != NULL)
        (void)unlinkat(dirfd(d), e->d_name, 0); /* . and .. refuse */
    if (d)
        closedir(d);
    (void)rmdir(r->dir);
}

/* Steps apply, and flush, until all that is committed is applied. */
static inline void rig_run(struct rig *r)
{
    for (int i = 0; i < 100000; i++) {
        uint64_t deadline_ms = apply_step(r->apply);

        if (deadline_ms > 0 && r->apply->applied >= r->last)
            return;
        REQUIRE(r->fatal == 0);
        (void)apply_flush_step(r->apply);
    }
    REQUIRE(!"apply gets on");
}

/* Freezes, flushes, and sweeps to the end. */
static inline void rig_flush(struct rig *r)
{
    r->apply->freeze_now = true;
    for (int i = 0; i < 100000; i++) {
        uint64_t deadline_ms;

        (void)apply_step(r->apply);
        deadline_ms = apply_flush_step(r->apply);
        if (deadline_ms > r->clock.ms + 10000 && store_frozen(r->store) == NULL && !atomic_load(&r->apply->flush_done))
            return;
        r->clock.ms++;
    }
    REQUIRE(!"the flush ends");
}

static inline void rig_restart(struct rig *r)
{
    rig_close(r);
    rig_open(r);
    apply_commit(r->apply, r->last);
    rig_run(r);
}

/* Commits one entry and applies it. With `wait` somebody waits: r->p and r->out hold the answer. */
static inline int rig_entry(struct rig *r, enum entry_kind kind, struct slice body, uint64_t proposal_term, bool wait)
{
    struct entry_head h = {.kind = kind, .origin = RIG_MEMBER, .body = body, .proposal_term = proposal_term};
    struct entry *e;

    REQUIRE(r->last + 1 < RIG_LOG_MAX);
    arena_fini(&r->out);
    r->answered = false;
    r->p = (struct proposal){.arena = &r->out, .done = rig_done};
    if (wait)
        REQUIRE(account_take(r->account, &r->p, 1) == 0);
    h.request_id = wait ? r->p.request_id : 0;
    e = entry_new(entry_size(&h));
    entry_encode(&h, e->payload);
    e->index = ++r->last;
    e->term = 1;
    r->log[e->index] = e;
    entry_cache_put(r->cache, e);
    apply_commit(r->apply, e->index);
    rig_run(r);
    if (!wait)
        return 0;
    if (!r->answered) /* a physical compaction */
        rig_flush(r);
    (void)apply_step(r->apply);
    REQUIRE(r->answered);
    account_give(r->account, &r->p, 1);
    return r->p.err;
}

static inline int rig_message(struct rig *r, enum entry_kind kind, const void *m, bool wait)
{
    size_t n = protobuf_c_message_get_packed_size(m);
    uint8_t *packed = malloc(n + 1);
    int err;

    protobuf_c_message_pack(m, packed);
    err = rig_entry(r, kind, slice_of(packed, n), 0, wait);
    free(packed);
    return err;
}

static ProtobufCBinaryData rig_bytes(const char *s)
{
    return (ProtobufCBinaryData){.len = strlen(s), .data = (uint8_t *)(uintptr_t)s};
}

static inline int rig_put(struct rig *r, const char *key, const char *value, int64_t lease)
{
    Etcdserverpb__PutRequest req = ETCDSERVERPB__PUT_REQUEST__INIT;

    req.key = rig_bytes(key);
    req.value = rig_bytes(value);
    req.lease = lease;
    req.prev_kv = true;
    return rig_message(r, ENTRY_PUT, &req, true);
}

static inline int rig_delete(struct rig *r, const char *key, const char *end)
{
    Etcdserverpb__DeleteRangeRequest req = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;

    req.key = rig_bytes(key);
    req.range_end = rig_bytes(end);
    req.prev_kv = true;
    return rig_message(r, ENTRY_DELETE_RANGE, &req, true);
}

static inline int rig_compact(struct rig *r, int64_t revision, bool physical)
{
    Etcdserverpb__CompactionRequest req = ETCDSERVERPB__COMPACTION_REQUEST__INIT;

    req.revision = revision;
    req.physical = physical;
    return rig_message(r, ENTRY_COMPACT, &req, true);
}

static inline int rig_grant(struct rig *r, int64_t id, int64_t ttl_s)
{
    Etcdserverpb__LeaseGrantRequest req = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;

    req.id = id;
    req.ttl = ttl_s;
    return rig_message(r, ENTRY_LEASE_GRANT, &req, true);
}

static inline int rig_revoke(struct rig *r, int64_t id)
{
    Etcdserverpb__LeaseRevokeRequest req = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;

    req.id = id;
    return rig_message(r, ENTRY_LEASE_REVOKE, &req, true);
}

/* "k=v@create.mod.version.lease ..." of every live key at rev (0: now), in the static buffer. */
static inline const char *rig_dump(struct rig *r, int64_t rev)
{
    static char text[1 << 20];
    static struct slot *sl;
    struct view_cursor *cur;
    struct arena a;
    struct view v;
    struct change c;
    size_t n = 0;

    sl = slot_new(r->store);
    arena_init(&a, 64 << 20, NULL, 0);
    REQUIRE(view_open(r->store, sl, &v) == 0);
    REQUIRE(view_cursor_new(&v, S("\0"), SLICE_NONE, rev ? rev : v.rev, 0, &cur) == 0);
    text[0] = 0;
    while (view_cursor_next(cur, &a, &c) == 0) {
        Mvccpb__KeyValue kv = MVCCPB__KEY_VALUE__INIT;

        REQUIRE(body_decode(c.body, &kv) == 0);
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%.*s=%.*s@%ld.%ld.%ld.%ld", n ? " " : "", (int)c.key.len,
                              (const char *)c.key.ptr, (int)kv.value.len, (const char *)kv.value.data,
                              (long)kv.create_revision, (long)kv.mod_revision, (long)kv.version, (long)kv.lease);
        REQUIRE(n < sizeof text - 4096);
    }
    view_cursor_free(cur);
    view_close(&v);
    arena_fini(&a);
    slot_free(r->store, sl);
    return text;
}
