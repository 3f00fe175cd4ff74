/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: a base made from another member's stream answers as the one it came from: every key at every revision from C
 * to R, every event above C, the keys of each lease, HashKV at each revision, the small tables, the state hash; it is
 * sound (base_check), and entries applied to both afterwards keep them equal. It holds whether the sender's sweep was
 * done, half done or not begun, and while entries go on being applied, flushed and compacted under the sender. A
 * damaged, shortened, reordered or foreign stream is refused; the sweep stands still while a stream is made, and goes
 * on after. SEED picks the entries and the schedules. */
#include <errno.h>
#include "apply_entries.h"
#include "daemon/base_db.h"
#include "daemon/snap.h"

enum { ROUNDS = 8, ENTRIES = 700 };

static uint64_t seed;

/* ---- streams ---- */

struct stream {
    uint8_t *chunk[4096];
    size_t len[4096];
    size_t n;
};

static void stream_free(struct stream *st)
{
    for (size_t i = 0; i < st->n; i++)
        free(st->chunk[i]);
    st->n = 0;
}

/* All chunks of x from here on; entries come in between when s is given. */
static int stream_take(struct stream *st, struct snap_export *x, struct rig *r, uint64_t *s)
{
    struct slice c;
    int err;

    while ((err = snap_export_next(x, &c)) == 0) {
        REQUIRE(st->n < 4096);
        st->chunk[st->n] = malloc(c.len);
        memcpy(st->chunk[st->n], c.ptr, c.len);
        st->len[st->n++] = c.len;
        for (uint64_t i = s ? draw(s, 20) : 0; i > 0; i--)
            entry(r, s, false);
        if (s && draw(s, 3) == 0)
            rig_flush(r);
    }
    return err;
}

static struct slice stream_at(const struct stream *st, size_t i)
{
    return slice_of(st->chunk[i], st->len[i]);
}

static struct snap_import_options import_options(const struct rig *b)
{
    return (struct snap_import_options){.path = b->dir, .base = rig_base_options(b), .cluster_id = 1,
                                        .member_id = RIG_MEMBER};
}

/* An empty directory, and what rig_open needs besides. */
static void receiver_new(struct rig *b)
{
    *b = (struct rig){
        .clock = {{rig_now_ms, rig_now_us, rig_wall_ms}, 1000000}, .quota = -1, .map_bytes = UINT64_C(1) << 32};
    snprintf(b->dir, sizeof b->dir, "/tmp/cairn-snap-XXXXXX");
    REQUIRE(mkdtemp(b->dir) != NULL);
}

static void receiver_clear(struct rig *b)
{
    DIR *d = opendir(b->dir);
    struct dirent *e;

    while (d && (e = readdir(d)) != NULL)
        (void)unlinkat(dirfd(d), e->d_name, 0); /* . and .. refuse */
    if (d)
        closedir(d);
}

/* Feeds all; the answer to the last chunk, or the first refusal. */
static int feed(struct rig *b, const struct stream *st, struct snap_head *ret_head)
{
    struct snap_import_options o = import_options(b);
    struct snap_import *im;
    int err = 0;

    REQUIRE(snap_import_new(&o, &im) == 0);
    for (size_t i = 0; i < st->n && err == 0; i++)
        err = snap_import_feed(im, stream_at(st, i));
    if (ret_head) {
        *ret_head = *snap_import_head(im);
        ret_head->conf = SLICE_NONE;
    }
    snap_import_free(im);
    return err;
}

/* ---- equal ---- */

struct sum {
    uint64_t h;
};

static int sum_change(void *ctx, const struct change *c)
{
    struct sum *s = ctx;

    s->h = state_hash_bytes(s->h, (uint64_t)c->rev.main << 8 ^ c->rev.sub ^ (uint64_t)c->tombstone << 7, c->body);
    return 0;
}

/* Of the events above C, of the keys of each lease, of the leases. */
static uint64_t summary(struct rig *r)
{
    struct slot *sl = slot_new(r->store);
    struct sum s = {0};
    struct arena a;
    struct view v;

    arena_init(&a, 64 << 20, NULL, 0);
    REQUIRE(view_open(r->store, sl, &v) == 0);
    REQUIRE(view_log_scan(&v, v.compact_rev + 1, v.rev, &a, sum_change, &s) == 0);
    for (int64_t id = 1; id <= LEASES; id++) {
        struct lease_info info = {0};
        struct slice *keys;
        size_t n;

        REQUIRE(view_lease_keys(&v, id, &a, &keys, &n) == 0);
        for (size_t i = 0; i < n; i++)
            s.h = state_hash_bytes(s.h, (uint64_t)id, keys[i]);
        if (lease_get(r->leases, id, &info) == 0)
            s.h = state_hash_begin(s.h, (uint64_t)info.granted_ttl_s);
    }
    view_close(&v);
    slot_free(r->store, sl);
    arena_fini(&a);
    return s.h;
}

static uint32_t hashkv(struct rig *r, int64_t rev)
{
    struct slot *sl = slot_new(r->store);
    int64_t compact, of;
    uint32_t h;

    REQUIRE(mvcc_hashkv(r->store, sl, rev, &h, &compact, &of) == 0);
    slot_free(r->store, sl);
    return h;
}

static void check_equal(struct rig *a, struct rig *b)
{
    int64_t from = a->apply->compact_rev > 1 ? a->apply->compact_rev : 1;

    CHECK(a->apply->hash == b->apply->hash);
    CHECK(a->apply->rev == b->apply->rev && a->apply->compact_rev == b->apply->compact_rev);
    CHECK(a->apply->key_count == b->apply->key_count);
    CHECK(a->apply->applied == b->apply->applied && a->apply->applied_term == b->apply->applied_term);
    CHECK(lease_count(a->leases) == lease_count(b->leases));
    CHECK(summary(a) == summary(b));
    for (int64_t rev = from; rev <= a->apply->rev; rev++) {
        char *text = strdup(rig_dump(a, rev));

        CHECK(strcmp(text, rig_dump(b, rev)) == 0);
        CHECK(hashkv(a, rev) == hashkv(b, rev));
        free(text);
    }
}

/* Sealed and flushed, swept by at most so many steps. */
static void flush_and_sweep(struct rig *r, uint64_t steps)
{
    r->apply->freeze_now = true;
    while (r->apply->applied > r->apply->frozen_index || store_frozen(r->store)) {
        (void)apply_step(r->apply);
        if (store_frozen(r->store))
            (void)apply_flush_step(r->apply);
    }
    for (; steps; steps--) {
        r->clock.ms += 100;
        (void)apply_flush_step(r->apply);
        (void)apply_step(r->apply);
    }
}

/* The same entry, committed at both. */
static void entry_both(struct rig *a, struct rig *b, uint64_t *s)
{
    struct entry *e;

    entry(a, s, false);
    e = a->log[a->last];
    b->last = a->last;
    b->log[b->last] = entry_ref(e);
    entry_cache_put(b->cache, e);
    apply_commit(b->apply, b->last);
    rig_run(b);
}

/* ---- tests ---- */

/* One history, one stream, one receiver. busy: the sender goes on while the stream is made. */
static void once(uint64_t *s, bool busy)
{
    static struct rig a, b;
    static struct stream st;
    struct snap_export *x;
    struct snap_head head;
    const char *what = "";

    rig_new(&a);
    for (uint64_t i = 0, n = draw(s, ENTRIES); i < n; i++) {
        entry(&a, s, false);
        if (draw(s, 60) == 0)
            flush_and_sweep(&a, draw(s, 5));
    }
    /* A sweep of many small steps, one of which may be the last before the stream. */
    store_base(a.store)->sweep_max.pages = 1 + (unsigned)draw(s, 3);
    store_base(a.store)->sweep_max.victims = 1 + (size_t)draw(s, 40);
    flush_and_sweep(&a, draw(s, 12));
    REQUIRE(snap_export_new(a.apply, a.store, &a.clock.clock, &x) == 0);
    head = *snap_export_head(x);
    CHECK(head.index == a.apply->applied && head.state_hash == a.apply->hash);
    receiver_new(&b);
    if (busy) { /* compare against a member that stopped there */
        REQUIRE(stream_take(&st, x, &a, s) == 1);
        snap_export_free(x);
        REQUIRE(feed(&b, &st, &head) == 1);
        rig_open(&b);
        for (uint64_t i = head.index + 1; i <= a.last; i++) {
            entry_cache_put(b.cache, a.log[i]);
            b.log[i] = entry_ref(a.log[i]);
        }
        b.last = a.last;
        apply_commit(b.apply, b.last);
        rig_run(&b);
    } else {
        REQUIRE(stream_take(&st, x, &a, NULL) == 1);
        snap_export_free(x);
        REQUIRE(feed(&b, &st, &head) == 1);
        rig_open(&b);
        b.last = a.last;
    }
    CHECK(base_check(store_base(b.store), &what) == 0);
    if (*what)
        printf("# %s\n", what);
    check_equal(&a, &b);
    rig_flush(&b); /* its own sweep */
    check_equal(&a, &b);
    for (int i = 0; i < 100; i++) {
        entry_both(&a, &b, s);
        if (draw(s, 30) == 0)
            rig_flush(draw(s, 2) ? &a : &b);
    }
    CHECK(a.apply->hash == b.apply->hash);
    rig_flush(&b);
    check_equal(&a, &b);
    for (uint64_t i = 1; i <= b.last; i++) /* what lies under the snapshot b never had */
        if (b.log[i] == NULL)
            b.log[i] = entry_ref(a.log[i]);
    stream_free(&st);
    rig_free(&b);
    rig_free(&a);
}

static void quiet_streams(void)
{
    uint64_t s = seed;

    for (int i = 0; i < ROUNDS; i++)
        once(&s, false);
}

static void streams_while_writing(void)
{
    uint64_t s = seed + 1000;

    for (int i = 0; i < ROUNDS; i++)
        once(&s, true);
}

/* Bytes changed, chunks lost, swapped and repeated, a foreign cluster: refused, and never half believed. */
static void damaged_streams(void)
{
    static struct rig a, b;
    static struct stream st;
    struct snap_import_options o;
    struct snap_export *x;
    struct snap_import *im;
    uint64_t s = seed + 2000;

    rig_new(&a);
    for (int i = 0; i < 300; i++)
        entry(&a, &s, false);
    while (a.apply->rev < 100) /* so that there is something besides the head */
        REQUIRE(rig_put(&a, "k", "v", 0) == 0);
    rig_flush(&a);
    REQUIRE(snap_export_new(a.apply, a.store, &a.clock.clock, &x) == 0);
    REQUIRE(stream_take(&st, x, &a, NULL) == 1);
    snap_export_free(x);
    REQUIRE(st.n >= 3);
    receiver_new(&b);
    for (int i = 0; i < 200; i++) {
        size_t k = draw(&s, st.n), at = draw(&s, st.len[k]);
        uint8_t bit = (uint8_t)(1u << draw(&s, 8));

        st.chunk[k][at] ^= bit;
        CHECK(feed(&b, &st, NULL) < 0);
        receiver_clear(&b);
        st.chunk[k][at] ^= bit;
    }
    for (size_t cut = 0; cut < st.n; cut++) { /* one chunk missing: the next is out of order, or the end never comes */
        o = import_options(&b);
        REQUIRE(snap_import_new(&o, &im) == 0);
        for (size_t i = 0, err = 0; i < st.n && err == 0; i++)
            if (i != cut) {
                int rc = snap_import_feed(im, stream_at(&st, i));

                CHECK(rc != 1);
                err = rc != 0;
            }
        snap_import_free(im);
        receiver_clear(&b);
    }
    o = import_options(&b);
    o.cluster_id = 2;
    REQUIRE(snap_import_new(&o, &im) == 0);
    CHECK(snap_import_feed(im, stream_at(&st, 0)) == -EBADMSG);
    CHECK(snap_import_feed(im, stream_at(&st, 0)) == -EBADMSG);
    snap_import_free(im);
    receiver_clear(&b);
    (void)rmdir(b.dir);
    stream_free(&st);
    rig_free(&a);
}

/* The sweep of a compaction waits for the stream; ten minutes are the stream's end. */
static void the_sweep_waits(void)
{
    static struct rig a;
    struct snap_export *x;
    struct slice c;

    rig_new(&a);
    for (int i = 0; i < 50; i++)
        REQUIRE(rig_put(&a, "k", "v", 0) == 0);
    flush_and_sweep(&a, 0);
    REQUIRE(snap_export_new(a.apply, a.store, &a.clock.clock, &x) == 0);
    REQUIRE(rig_compact(&a, 40, false) == 0);
    flush_and_sweep(&a, 20);
    CHECK(atomic_load(&a.apply->swept_to) < 40);
    CHECK(snap_export_next(x, &c) == 0);
    a.clock.ms += LIMIT_SNAP_HOLD_MS;
    CHECK(snap_export_next(x, &c) == -ETIMEDOUT);
    snap_export_free(x);
    flush_and_sweep(&a, 20);
    CHECK(atomic_load(&a.apply->swept_to) == 40);
    rig_free(&a);
}

int main(void)
{
    const char *text = getenv("SEED");

    seed = text ? strtoull(text, NULL, 0) : (uint64_t)getpid() * UINT64_C(0x9e3779b97f4a7c15) + 1;
    printf("# SEED=%llu\n", (unsigned long long)seed);
    arena_init(&ar, 64 << 20, NULL, 0);
    TEST(quiet_streams);
    TEST(streams_while_writing);
    TEST(damaged_streams);
    TEST(the_sweep_waits);
    return tap_done();
}
