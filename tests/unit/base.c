/* SPDX-License-Identifier: Apache-2.0 */
/* base.c - proves that base answers like a plain array of changes at every revision >= C.
 *
 * Random histories (puts, deletes, re-creations, one key several times in one main), flushed in random batches, with
 * compactions, sweeps that are interrupted by flushes and by reopening, are compared with the model: base_get,
 * cursors, log scans, lease scans, meta, and base_check.
 */
#include <sys/stat.h>
#include "base_model.h"

static void short_keys(struct model *m, size_t n)
{
    static const uint8_t bytes[] = {0x00, 0xff, 'a', '/', 0x01, 0xfe};

    for (size_t i = 0; i < n; i++) {
        uint8_t key[8];
        size_t len = 1 + below(sizeof key);

        for (size_t j = 0; j < len; j++)
            key[j] = bytes[below(sizeof bytes)];
        model_add_key(m, key, len);
    }
    model_sort_keys(m);
}

static void reopen(struct model *m)
{
    base_close(m->base);
    model_open(m);
}

/* Slices of any size between whatever else happens: nothing is wrong. */
static void some_scrub(struct model *m, struct base_scrub *s)
{
    const char *what = "";

    for (size_t n = below(4); n-- > 0;) {
        if (base_scrub(m->base, s, 1 + (unsigned)below(40), &what) < 0) {
            printf("# scrub: %s\n", what);
            CHECK(!"base_scrub");
        }
    }
}

static void history(struct model *m, int rounds)
{
    struct base_scrub *scrub = base_scrub_new();
    const char *what = "";

    for (int i = 0; i < rounds && tap_bad == 0; i++) {
        for (size_t n = below(60); n-- > 0;)
            model_step(m);
        if (below(4) == 0) {
            int64_t low = m->compact > 1 ? m->compact : 1;

            m->compact = low + (int64_t)below((size_t)(m->rev - low) + 1);
            m->applied++;
        }
        model_flush(m);
        if (below(8) == 0)
            reopen(m);
        some_scrub(m, scrub);
        for (size_t n = below(6); n-- > 0;) {
            CHECK(base_sweep(m->base, NULL) >= 0);
            some_scrub(m, scrub);
        }
        model_compare(m, 3);
        if (base_check(m->base, &what)) {
            printf("# check: %s\n", what);
            CHECK(!"base_check");
        }
    }
    base_scrub_free(scrub);
}

/* Sweeps to the end, then nothing that may go is left. */
struct swept { struct model *m; size_t extra; };

static int swept_fn(void *ctx, const struct change *c)
{
    struct swept *s = ctx;

    for (size_t i = 0; i < s->m->n; i++)
        if (rev_cmp(s->m->c[i].rev, c->rev) == 0)
            s->extra += may_be_swept(s->m, i);
    return 0;
}

static void sweep_all(struct model *m)
{
    struct swept s = {m, 0};
    struct base_reader *r;
    struct arena a;
    int err;

    while ((err = base_sweep(m->base, NULL)) == 1)
        ;
    CHECK(err == 0);
    arena_init(&a, 4 << 20, NULL, 0);
    REQUIRE(base_reader_new(m->base, &r) == 0);
    REQUIRE(base_reader_renew(r) == 0);
    CHECK(base_log_scan(r, (struct rev){0}, INT64_MAX, &a, swept_fn, &s) == 0);
    CHECK(s.extra == 0);
    base_reader_free(r);
    model_compare(m, 10);
}

static void random_histories(void)
{
    for (int i = 0; i < 6 && tap_bad == 0; i++) {
        struct model m = {0};

        short_keys(&m, i % 2 ? 60 : 8);
        model_new(&m);
        history(&m, 40);
        sweep_all(&m);
        model_free(&m);
    }
}

/* A key with thousands of changes: the pointers reach all of them. */
static void one_hot_key(void)
{
    struct model m = {.value_max = 8};

    model_add_key(&m, "k", 1);
    model_new(&m);
    for (int i = 0; i < 40; i++) {
        for (int j = 0; j < 100; j++)
            model_step(&m);
        model_flush(&m);
    }
    model_compare(&m, 400);
    m.compact = m.rev / 2;
    model_flush(&m);
    sweep_all(&m);
    model_compare(&m, 400);
    model_free(&m);
}

static int row_count(void *ctx, struct slice id, struct slice value)
{
    (void)id;
    (void)value;
    ++*(int *)ctx;
    return 0;
}

static void small_tables(void)
{
    struct model m = {0};
    struct base_reader *r;
    struct slice v;
    int n = 0;

    model_add_key(&m, "k", 1);
    model_new(&m);
    CHECK(delta_row(m.delta, TABLE_LEASE, S("one"), S("1")) == 0);
    CHECK(delta_row(m.delta, TABLE_LEASE, S("two"), S("")) == 0);
    CHECK(delta_row(m.delta, TABLE_ALARM, S("one"), S("alarm")) == 0);
    CHECK(delta_row(m.delta, TABLE_MEMBER, S("never"), SLICE_NONE) == 0);
    model_flush(&m);
    CHECK(delta_row(m.delta, TABLE_LEASE, S("one"), SLICE_NONE) == 0);
    CHECK(delta_row(m.delta, TABLE_LEASE, S("three"), S("3")) == 0);
    model_flush(&m);
    reopen(&m);
    REQUIRE(base_reader_new(m.base, &r) == 0);
    REQUIRE(base_reader_renew(r) == 0);
    CHECK(base_row_get(r, TABLE_LEASE, S("one"), &v) == -ENOENT);
    CHECK(base_row_get(r, TABLE_LEASE, S("two"), &v) == 0 && v.len == 0);
    CHECK(base_row_get(r, TABLE_LEASE, S("three"), &v) == 0 && slice_eq(v, S("3")));
    CHECK(base_row_get(r, TABLE_ALARM, S("one"), &v) == 0 && slice_eq(v, S("alarm")));
    CHECK(base_row_scan(r, TABLE_LEASE, row_count, &n) == 0 && n == 2);
    base_reader_free(r);
    model_free(&m);
}

/* A copy is the same store, opens, and goes on. */
static void copy(void)
{
    struct model m = {0};
    char dir[80], path[100];
    uint64_t file, in_use, file2, in_use2;

    short_keys(&m, 40);
    model_new(&m);
    history(&m, 20);
    m.compact = m.rev;
    model_flush(&m);
    sweep_all(&m);
    snprintf(dir, sizeof dir, "%s.copy", m.dir);
    REQUIRE(mkdir(dir, 0700) == 0);
    CHECK(base_sizes(m.base, &file, &in_use) == 0 && in_use <= file);
    CHECK(base_copy(m.base, dir) == 0);
    base_close(m.base);
    for (int i = 0; i < 2; i++) {
        const char *name = i ? "lock.mdb" : "data.mdb";
        char to[100];

        snprintf(path, sizeof path, "%s/%s", dir, name);
        snprintf(to, sizeof to, "%s/%s", m.dir, name);
        REQUIRE(rename(path, to) == 0);
    }
    rmdir(dir);
    model_open(&m);
    CHECK(base_sizes(m.base, &file2, &in_use2) == 0 && file2 <= file);
    model_compare(&m, 10);
    CHECK(base_check(m.base, NULL) == 0);
    history(&m, 5);
    model_free(&m);
}

struct copying {
    struct model *m;
    const char *dir;
    int err;
};

static void *copy_main(void *arg)
{
    struct copying *c = arg;

    c->err = base_copy(c->m->base, c->dir);
    return NULL;
}

/* Somebody who does not want the copy any more need not wait for it; the next one is not even begun. Whether it ends
 * in the middle is a matter of luck: tried until it does. */
static void copy_given_up(void)
{
    struct model m = {.value_max = 1 << 20};
    char dir[80], path[100];
    struct copying c = {&m, dir, 0};

    short_keys(&m, 40);
    model_new(&m);
    for (int i = 0; i < 150; i++)
        model_step(&m);
    model_flush(&m);
    snprintf(dir, sizeof dir, "%s.copy", m.dir);
    snprintf(path, sizeof path, "%s/data.mdb", dir);
    for (int i = 0; i < 20 && c.err == 0; i++) {
        struct stat st = {0};
        pthread_t thread;

        REQUIRE(mkdir(dir, 0700) == 0);
        REQUIRE(pthread_create(&thread, NULL, copy_main, &c) == 0);
        while (stat(path, &st) < 0 || st.st_size == 0)
            sched_yield();
        base_copy_give_up(m.base);
        pthread_join(thread, NULL);
        REQUIRE(unlink(path) == 0);
        CHECK(base_copy(m.base, dir) == -ECANCELED);
        (void)unlink(path);
        snprintf(path, sizeof path, "%s/lock.mdb", dir);
        (void)unlink(path);
        snprintf(path, sizeof path, "%s/data.mdb", dir);
        REQUIRE(rmdir(dir) == 0);
        base_close(m.base);
        model_open(&m);
    }
    CHECK(c.err == -ECANCELED);
    CHECK(base_check(m.base, NULL) == 0);
    model_free(&m);
}

/* A full map is -ENOSPC, changes nothing, and may be tried again. */
static void no_space(void)
{
    struct model m = {.value_max = 4000};
    struct base_options o;
    int err = 0;

    short_keys(&m, 40);
    model_new(&m);
    base_close(m.base);
    o = model_options(&m);
    o.map_bytes = 1 << 20;
    REQUIRE(base_open(&o, &m.base) == 0);
    for (int i = 0; i < 300 && err == 0; i++) {
        for (int j = 0; j < 10; j++)
            model_step(&m);
        model_seal(&m);
        err = base_flush(m.base, m.delta);
        if (err == 0) {
            delta_free(m.delta);
            m.delta = delta_new();
            m.flushed = m.n;
        }
    }
    CHECK(err == -ENOSPC);
    CHECK(base_flush(m.base, m.delta) == -ENOSPC);
    CHECK(base_check(m.base, NULL) == 0);
    reopen(&m); /* a map of 1 TiB again */
    CHECK(base_flush(m.base, m.delta) == 0);
    m.flushed = m.n;
    m.hash = 0x5ea1 ^ m.applied;
    model_compare(&m, 5);
    model_free(&m);
}

/* LMDB writes to its lock file through a mapping: a hole in it would be SIGBUS on a full disk. */
static void lock_file_has_its_blocks(void)
{
    struct model m = {.value_max = 100};
    char path[100];
    struct stat st;

    short_keys(&m, 1);
    model_new(&m);
    snprintf(path, sizeof path, "%s/lock.mdb", m.dir);
    REQUIRE(stat(path, &st) == 0);
    CHECK(st.st_size > 0);
    CHECK((off_t)st.st_blocks * 512 >= st.st_size);
    model_free(&m);
}

int main(void)
{
    dice_seed();
    TEST(small_tables);
    TEST(one_hot_key);
    TEST(random_histories);
    TEST(copy);
    TEST(copy_given_up);
    TEST(no_space);
    TEST(lock_file_has_its_blocks);
    return tap_done();
}
