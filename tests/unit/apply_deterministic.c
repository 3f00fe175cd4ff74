/* SPDX-License-Identifier: Apache-2.0 */
/* Proves ApplyDeterministic: the same entries give the same state hash, revision, key count and keys, whatever the
 * schedule of freezes, flushes, sweeps and restarts, and whether somebody waits for answers or not. SEED picks the
 * entries and the schedules. */
#include "apply_entries.h"

enum { ENTRIES = 3000 };

static uint64_t seed;

/* ---- schedules ---------------------------------------------------------------------------------- */

struct state {
    uint64_t hash;
    int64_t rev, compact_rev, keys;
    size_t leases;
    char *dump;
};

/* flush_in, restart_in: once in so many entries; 0: never. */
static struct state play(uint64_t flush_in, uint64_t restart_in, bool wait)
{
    static struct rig r;
    uint64_t s = seed, schedule = seed * 31 + 7;
    struct state st;

    rig_new(&r);
    for (int i = 0; i < ENTRIES; i++) {
        entry(&r, &s, wait);
        if (flush_in && draw(&schedule, flush_in) == 0)
            rig_flush(&r);
        if (restart_in && draw(&schedule, restart_in) == 0)
            rig_restart(&r);
    }
    if (restart_in) {
        rig_flush(&r);
        rig_restart(&r);
    }
    st = (struct state){r.apply->hash, r.apply->rev, r.apply->compact_rev, r.apply->key_count,
                        lease_count(r.leases), strdup(rig_dump(&r, 0))};
    rig_free(&r);
    return st;
}

static struct state first;

static void same_as_first(uint64_t flush_in, uint64_t restart_in, bool wait)
{
    struct state st = play(flush_in, restart_in, wait);

    CHECK(st.hash == first.hash);
    CHECK(st.rev == first.rev);
    CHECK(st.compact_rev == first.compact_rev);
    CHECK(st.keys == first.keys);
    CHECK(st.leases == first.leases);
    CHECK(strcmp(st.dump, first.dump) == 0);
    free(st.dump);
}

static void never_flushed(void)
{
    size_t spaces = 0;

    first = play(0, 0, false);
    for (const char *p = first.dump; *p; p++)
        spaces += *p == ' ';
    CHECK(first.rev > 1000 && first.compact_rev > 0);
    CHECK((size_t)first.keys == spaces + 1); /* the count is what is there */
}

static void somebody_waits(void)
{
    same_as_first(0, 0, true);
}

static void flushed_often(void)
{
    same_as_first(5, 0, false);
}

static void flushed_seldom_and_asked(void)
{
    same_as_first(300, 0, true);
}

static void restarted(void)
{
    same_as_first(40, 100, true);
}

int main(void)
{
    const char *s = getenv("SEED");

    seed = s ? strtoull(s, NULL, 0) : (uint64_t)getpid() * UINT64_C(0x9e3779b97f4a7c15) + 1;
    printf("# SEED=%llu\n", (unsigned long long)seed);
    arena_init(&ar, 64 << 20, NULL, 0);
    TEST(never_flushed);
    TEST(somebody_waits);
    TEST(flushed_often);
    TEST(flushed_seldom_and_asked);
    TEST(restarted);
    free(first.dump);
    return tap_done();
}
