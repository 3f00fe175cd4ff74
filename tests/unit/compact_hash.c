/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: HashKV(C) of a compaction to C is etcd's, and the same before its flush, while it is computed, after its
 * sweep and, with others on top, as long as it is one of the ten newest; the sweep waits for it. The reference is
 * etcd's own way (hash what there is while deleting) over a plain list of records. Random operations (SEED). */
#include "apply_rig.h"
#include "daemon/crc32c.h"

enum { KEYS = 12, RECORDS = 20000, KEPT = 10 };

struct record {
    struct rev rev;
    char key[8];
    bool tombstone;
    uint8_t body[64];
    size_t body_len;
};

struct kept {
    int64_t rev, prev;
    uint32_t hash;
};

/* ---- etcd: a file of records -------------------------------------------------------------------- */

static struct record file[RECORDS];
static size_t n_file;
static struct kept kept[RECORDS];
static size_t n_kept;

static int take_record(void *ctx, const struct change *c)
{
    struct record *x = &file[n_file++];

    (void)ctx;
    REQUIRE(n_file < RECORDS && c->key.len < sizeof x->key && c->body.len <= sizeof x->body);
    *x = (struct record){.rev = c->rev, .tombstone = c->tombstone, .body_len = c->body.len};
    memcpy(x->key, c->key.ptr, c->key.len);
    memcpy(x->body, c->body.ptr, c->body.len);
    return 0;
}

static void take_news(struct rig *r)
{
    int64_t from = n_file ? file[n_file - 1].rev.main + 1 : 0;
    struct slot *sl = slot_new(r->store);
    struct arena a;
    struct view v;

    arena_init(&a, 1 << 20, NULL, 0);
    REQUIRE(view_open(r->store, sl, &v) == 0);
    REQUIRE(view_log_scan(&v, from, INT64_MAX, &a, take_record, NULL) == 0);
    view_close(&v);
    slot_free(r->store, sl);
    arena_fini(&a);
}

/* The index of etcd: of each key its newest at or below rev, unless that is a tombstone below rev. */
static bool is_kept(size_t at, int64_t rev)
{
    if (file[at].rev.main > rev || (file[at].tombstone && file[at].rev.main < rev))
        return false;
    for (size_t i = at + 1; i < n_file && file[i].rev.main <= rev; i++)
        if (strcmp(file[i].key, file[at].key) == 0)
            return false;
    return true;
}

static uint32_t hash_record(uint32_t crc, const struct record *x)
{
    uint8_t key[18] = {0};

    put_u64be(key, (uint64_t)x->rev.main);
    key[8] = '_';
    put_u64be(key + 9, x->rev.sub);
    key[17] = 't';
    return crc32c(crc32c(crc, key, x->tombstone ? 18 : 17), x->body, x->body_len);
}

static void compact_file(int64_t prev, int64_t rev)
{
    uint32_t crc = crc32c(0, "key", 3);
    static bool keep[RECORDS];
    size_t n_keep = 0, n = 0;

    for (size_t i = 0; i < n_file; i++)
        n_keep += keep[i] = is_kept(i, rev);
    for (size_t i = 0; i < n_file && file[i].rev.main <= rev; i++) {
        bool skip = file[i].rev.main <= prev && n_keep && !keep[i];

        if (!skip && !(file[i].rev.main == prev && file[i].tombstone))
            crc = hash_record(crc, &file[i]);
    }
    for (size_t i = 0; i < n_file; i++)
        if (file[i].rev.main > rev || keep[i])
            file[n++] = file[i];
    n_file = n;
    kept[n_kept++] = (struct kept){rev, prev, crc};
}

/* ---- both ------------------------------------------------------------------------------------------ */

static void check_kept(struct rig *r)
{
    struct slot *sl = slot_new(r->store);

    for (size_t i = 0; i < n_kept; i++) {
        int64_t prev = -7, rev = -7;
        uint32_t hash = 0;
        int rc = apply_hashkv(r->apply, sl, kept[i].rev, &hash, &prev, &rev);

        if (i + KEPT < n_kept) {
            CHECK(rc == ERR_COMPACTED);
            continue;
        }
        if (rc || hash != kept[i].hash || prev != kept[i].prev || rev != kept[i].rev)
            printf("# compaction %zu of %zu to %ld after %ld: %d, hash %u, compacted %ld, revision %ld\n", i, n_kept,
                   (long)kept[i].rev, (long)kept[i].prev, rc, hash, (long)prev, (long)rev);
        CHECK(rc == 0 && hash == kept[i].hash && prev == kept[i].prev && rev == kept[i].rev);
    }
    slot_free(r->store, sl);
}

static void compact(struct rig *r, int64_t rev)
{
    int64_t prev = r->apply->compact_rev;

    take_news(r);
    REQUIRE(rig_compact(r, rev, false) == 0);
    compact_file(prev, rev);
}

static void reset(void)
{
    n_file = n_kept = 0;
}

static void hashes_are_etcds(void)
{
    uint64_t seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 0) : (uint64_t)time(NULL);
    struct rig r;
    int64_t from;

    printf("# SEED=%lu\n", (unsigned long)seed);
    srandom((unsigned)seed);
    rig_new(&r);
    reset();
    for (int round = 0; round < 60; round++) {
        for (long i = random() % (round % 20 == 7 ? 3000 : 60); i >= 0; i--) {
            char key[8] = {'k', (char)('a' + random() % KEYS), 0}, end[8] = {'k', (char)(key[1] + random() % 4), 0};
            int rc = random() % 3 ? rig_put(&r, key, "value", 0) : rig_delete(&r, key, random() % 2 ? end : "");

            REQUIRE(rc == 0);
        }
        if (random() % 8 == 0) /* nothing alive */
            REQUIRE(rig_delete(&r, "a", "z") == 0);
        from = r.apply->compact_rev > 0 ? r.apply->compact_rev : 0; /* that to 0 is compaction_to_0's */
        if (from < r.apply->rev)
            compact(&r, random() % 2 ? r.apply->rev : from + 1 + random() % (r.apply->rev - from));
        if (random() % 3 == 0) /* twice, with nothing written to disk in between */
            continue;
        check_kept(&r);
        rig_flush(&r);
        check_kept(&r);
    }
    rig_free(&r);
}

/* One step of flush after the other: nothing is swept before the hash is there. */
static void sweep_waits_for_it(void)
{
    struct rig r;
    bool swept = false, ready = false;

    rig_new(&r);
    reset();
    for (int i = 0; i < 5000; i++)
        REQUIRE(rig_put(&r, i % 2 ? "a" : "b", "value", 0) == 0);
    compact(&r, r.apply->rev - 1);
    r.apply->freeze_now = true;
    for (int i = 0; i < 100 && !swept; i++) {
        (void)apply_step(r.apply);
        (void)apply_flush_step(r.apply);
        ready = r.apply->hashes[0].ready;
        swept = atomic_load(&r.apply->compacted_records) > 0;
        CHECK(ready || !swept);
        if (i % 3 == 0)
            check_kept(&r);
        r.clock.ms++;
    }
    CHECK(ready && swept);
    CHECK(r.apply->hashing.n_records < 5000); /* it took more than one step */
    check_kept(&r);
    rig_free(&r);
}

/* After a restart the hash is one of what is left, as etcd's. */
static void restart_forgets(void)
{
    struct slot *sl;
    int64_t prev = 0, rev = 0;
    uint32_t hash;
    struct rig r;

    rig_new(&r);
    reset();
    for (int i = 0; i < 10; i++)
        REQUIRE(rig_put(&r, "a", "value", 0) == 0);
    REQUIRE(rig_compact(&r, 5, true) == 0);
    rig_restart(&r);
    sl = slot_new(r.store);
    CHECK(apply_hashkv(r.apply, sl, 5, &hash, &prev, &rev) == 0 && prev == 5 && rev == 5);
    CHECK(apply_hashkv(r.apply, sl, 4, &hash, &prev, &rev) == ERR_COMPACTED);
    CHECK(apply_hashkv(r.apply, sl, 99, &hash, &prev, &rev) == ERR_FUTURE_REV);
    CHECK(rig_compact(&r, 0, false) == ERR_COMPACTED);
    slot_free(r.store, sl);
    rig_free(&r);
}

/* HashKV(0) is of now, also after a compaction to 0, which etcd does not refuse. */
static void compaction_to_0(void)
{
    struct slot *sl;
    int64_t prev = 0, rev = 0;
    uint32_t hash;
    struct rig r;

    rig_new(&r);
    REQUIRE(rig_compact(&r, 0, false) == 0);
    REQUIRE(rig_put(&r, "a", "value", 0) == 0);
    sl = slot_new(r.store);
    CHECK(apply_hashkv(r.apply, sl, 0, &hash, &prev, &rev) == 0 && rev == 2);
    slot_free(r.store, sl);
    rig_free(&r);
}

int main(void)
{
    TEST(hashes_are_etcds);
    TEST(sweep_waits_for_it);
    TEST(restart_forgets);
    TEST(compaction_to_0);
    return tap_done();
}
