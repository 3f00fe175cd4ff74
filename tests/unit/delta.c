/* SPDX-License-Identifier: Apache-2.0 */
/* delta.c - proves that a delta answers by key, by rev, by lease and by row as a plain array does, that an
 * old revision of a key changed very often is found, that a reset delta is as a new one, and that readers
 * beside the writer see every change up to what was published, and whole ones only (with TSan: without a race). */
#include <errno.h>
#include <pthread.h>
#include <time.h>
#include "../../daemon/delta.c"
#include "tap.h"

static uint64_t seed;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

#define N    4000
#define KEYS 300

static struct model {
    char key[24], body[48];
    struct change c;
} model[N];

static void put_one(struct delta *d, struct model *m, int64_t main, uint32_t sub)
{
    int body;

    snprintf(m->key, sizeof m->key, "key/%llu", (unsigned long long)(rnd() % KEYS));
    body = snprintf(m->body, sizeof m->body, "%s%s@%lld.%u", rnd() % 2 ? "\n\x05" : "", m->key,
                    (long long)main, sub);
    m->c = (struct change){.key = slice_str(m->key),
                           .rev = {main, sub},
                           .tombstone = rnd() % 4 == 0,
                           .lease = rnd() % 3 == 0 ? (int64_t)(rnd() % 20) : 0,
                           .body = slice_of(m->body, (size_t)body)};
    REQUIRE(delta_put(d, &m->c) == 0);
    memset(m->key + strlen(m->key) + 1, 0xee, sizeof m->key - strlen(m->key) - 1);
}

static struct delta *fill(struct delta *d)
{
    int64_t main = 10;
    uint32_t sub = 0;

    for (int i = 0; i < N; i++) {
        put_one(d, &model[i], main, sub++);
        if (rnd() % 3)
            main += 1 + (int64_t)(rnd() % 2), sub = 0;
    }
    return d;
}

static bool same(const struct change *a, const struct change *b)
{
    if (a == NULL || b == NULL)
        return a == b;
    return slice_eq(a->key, b->key) && rev_cmp(a->rev, b->rev) == 0 && a->tombstone == b->tombstone &&
           a->lease == b->lease && slice_eq(a->body, b->body);
}

static const struct change *model_find(struct slice key, int64_t rev_max)
{
    for (int i = N - 1; i >= 0; i--)
        if (model[i].c.rev.main <= rev_max && slice_eq(model[i].c.key, key))
            return &model[i].c;
    return NULL;
}

static void check_finds(const struct delta *d)
{
    int64_t last = model[N - 1].c.rev.main;

    for (int i = 0; i < 5000; i++) {
        char key[24];
        int64_t rev = (int64_t)(rnd() % (uint64_t)(last + 10));

        snprintf(key, sizeof key, "key/%llu", (unsigned long long)(rnd() % (KEYS + 10)));
        REQUIRE(same(delta_find(d, slice_str(key), rev), model_find(slice_str(key), rev)));
        REQUIRE(same(delta_find(d, slice_str(key), INT64_MAX), model_find(slice_str(key), INT64_MAX)));
    }
    CHECK(delta_find(d, S(""), INT64_MAX) == NULL);
}

static void check_order(const struct delta *d)
{
    struct delta_cursor cur;
    const struct change *c, *before = NULL;
    size_t n = 0, keys = 0;

    for (c = delta_seek(&cur, d, SLICE_NONE, false); c; c = delta_next(&cur)) {
        int order = before ? slice_cmp(before->key, c->key) : -1;

        CHECK(order < 0 || (order == 0 && rev_cmp(before->rev, c->rev) > 0));
        keys += order < 0;
        n++;
        before = c;
    }
    CHECK(n == N && keys == delta_keys(d));
    n = 0;
    for (c = delta_seek(&cur, d, SLICE_NONE, false); c; c = delta_next_key(&cur), n++)
        CHECK(same(c, model_find(c->key, INT64_MAX)));
    CHECK(n == keys);
    c = delta_seek(&cur, d, S("key/17"), false);
    REQUIRE(c && slice_eq(c->key, S("key/17")));
    c = delta_seek(&cur, d, S("key/17"), true);
    CHECK(c && slice_cmp(c->key, S("key/17")) > 0);
    CHECK(delta_seek(&cur, d, S("l"), false) == NULL);
    CHECK(delta_next(&cur) == NULL && delta_next_key(&cur) == NULL);
}

static void check_log(const struct delta *d)
{
    REQUIRE(delta_changes(d) == N);
    for (size_t i = 0; i < N; i++)
        REQUIRE(same(delta_at(d, i), &model[i].c));
    for (int64_t main = 0; main < model[N - 1].c.rev.main + 3; main++) {
        size_t want = 0;

        while (want < N && model[want].c.rev.main < main)
            want++;
        REQUIRE(delta_lower_bound(d, main) == want);
    }
}

struct found {
    int64_t lease;
    int n;
};

static int note_lease(void *ctx, const struct change *c)
{
    struct found *f = ctx;

    CHECK(c->lease == f->lease);
    CHECK(same(c, model_find(c->key, INT64_MAX)));
    f->n++;
    return 0;
}

static void check_leases(const struct delta *d)
{
    for (int64_t lease = 1; lease < 22; lease++) {
        struct found f = {.lease = lease};
        int want = 0;

        for (int i = 0; i < N; i++)
            want += model[i].c.lease == lease && model_find(model[i].c.key, INT64_MAX) == &model[i].c;
        CHECK(delta_lease_changes(d, lease, INT64_MAX, note_lease, &f) == 0);
        CHECK(f.n == want);
    }
}

static void answers_as_the_model(void)
{
    struct delta *d = delta_new();

    REQUIRE(d != NULL);
    for (int round = 0; round < 2; round++) {
        fill(d);
        check_finds(d);
        check_order(d);
        check_log(d);
        check_leases(d);
        delta_reset(d);
        CHECK(delta_keys(d) == 0 && delta_changes(d) == 0 && delta_bytes(d) == 0 && delta_rows(d) == 0);
        CHECK(delta_find(d, S("key/1"), INT64_MAX) == NULL);
    }
    delta_free(d);
    delta_free(NULL);
}

static void long_histories_are_found(void)
{
    struct delta *d = delta_new();
    uint8_t body[] = "\n\x03hot";
    int steps = 0;

    for (int64_t main = 2; main <= 100001; main++) {
        struct change c = {.key = S("hot"), .rev = {main, 0}, .body = slice_of(body, 5)};

        REQUIRE(delta_put(d, &c) == 0);
    }
    for (int64_t main = 2; main <= 100001; main += 97) {
        const struct node *n = map_find(&d->keys, S("hot"), map_hash(S("hot")))->newest;
        int here = 0;

        CHECK(delta_find(d, S("hot"), main)->rev.main == main);
        for (; n->c.rev.main > main; here++)
            n = n->jump && n->jump->c.rev.main > main ? n->jump : n->older;
        steps = here > steps ? here : steps;
    }
    CHECK(delta_find(d, S("hot"), 1) == NULL);
    printf("# at most %d steps among 100,000\n", steps);
    CHECK(steps < 60);
    delta_free(d);
}

/* Keys whose hash is the same by force: the chain is long, the skip list answers. */
static void collisions_are_found(void)
{
    struct delta *d = delta_new();
    struct map *m = &d->keys;
    char key[16];

    for (int i = 0; i < 2000; i++) {
        struct entry *e = map_entry_new(m, &d->chunks, 7);
        uint8_t *p = chunks_take(&d->chunks, 8);

        snprintf(key, sizeof key, "%07d", (i * 7919) % 2000);
        memcpy(p, key, 8);
        e->key = slice_of(p, 7);
        map_link(m, e);
    }
    for (int i = 0; i < 2000; i++) {
        snprintf(key, sizeof key, "%07d", i);
        REQUIRE(map_find(m, slice_str(key), 7) != NULL);
    }
    CHECK(map_find(m, S("absent"), 7) == NULL);
    delta_free(d);
}

static int count_rows(void *ctx, enum table t, struct slice id, struct slice value)
{
    int *n = ctx;

    if (t == TABLE_LEASE && slice_eq(id, S("a")))
        CHECK(slice_eq(value, S("three")));
    else if (t == TABLE_LEASE && slice_eq(id, S("b")))
        CHECK(value.ptr == NULL);
    else if (t == TABLE_ALARM && slice_eq(id, S("a")))
        CHECK(value.ptr != NULL && value.len == 0);
    else
        CHECK(t == TABLE_MEMBER);
    ++*n;
    return 0;
}

static void rows_keep_their_last_image(void)
{
    struct delta *d = delta_new();
    struct slice value;
    int n = 0;

    CHECK(delta_row(d, TABLE_LEASE, S("a"), S("one")) == 0);
    CHECK(delta_row(d, TABLE_LEASE, S("b"), S("two")) == 0);
    CHECK(delta_row(d, TABLE_ALARM, S("a"), S("")) == 0);
    CHECK(delta_row(d, TABLE_LEASE, S("a"), S("three")) == 0);
    CHECK(delta_row(d, TABLE_LEASE, S("b"), SLICE_NONE) == 0);
    for (uint8_t i = 0; i < 200; i++)
        CHECK(delta_row(d, TABLE_MEMBER, slice_of(&i, 1), S("m")) == 0);
    CHECK(delta_rows(d) == 203);
    CHECK(delta_row_scan(d, count_rows, &n) == 0);
    CHECK(n == 203);
    CHECK(delta_row_find(d, TABLE_LEASE, S("a"), &value) && slice_eq(value, S("three")));
    CHECK(delta_row_find(d, TABLE_LEASE, S("b"), &value) && value.ptr == NULL);
    CHECK(!delta_row_find(d, TABLE_ALARM, S("b"), &value));
    delta_free(d);
}

static void a_seal_owns_its_configuration(void)
{
    struct delta *d = delta_new();
    uint8_t conf[] = "conf";
    struct seal s = {.applied_index = 9, .revision = 4, .compact_revision = -1, .conf = slice_of(conf, 4)};

    CHECK(delta_sealed(d) == NULL);
    delta_seal(d, &s);
    conf[0] = 'x';
    CHECK(delta_sealed(d)->applied_index == 9 && slice_eq(delta_sealed(d)->conf, S("conf")));
    delta_reset(d);
    CHECK(delta_sealed(d) == NULL);
    delta_free(d);
}

static void large_bodies_fit(void)
{
    struct delta *d = delta_new();
    size_t len = 3 << 20;
    uint8_t *body = malloc(len);

    REQUIRE(body != NULL);
    memset(body, 'x', len);
    for (int64_t main = 2; main < 12; main++) {
        struct change c = {.key = S("big"), .rev = {main, 0}, .body = slice_of(body, len - (size_t)main)};

        REQUIRE(delta_put(d, &c) == 0);
        c.key = S("small"), c.rev.sub = 1, c.body = S("\n\5small");
        REQUIRE(delta_put(d, &c) == 0);
    }
    for (int64_t main = 2; main < 12; main++)
        CHECK(slice_eq(delta_find(d, S("big"), main)->body, slice_of(body, len - (size_t)main)));
    CHECK(delta_bytes(d) > 10 * (len - 12) && delta_bytes(d) < 11 * len);
    delta_free(d);
    free(body);
}

/* ---- beside the writer ---- */

static _Atomic int64_t published;
static struct delta *shared;

/* At revision m, key number m % 500 is put with the body "\n<len><key>:<m>". */
static void *read_beside(void *arg)
{
    uint64_t r = (uintptr_t)arg * 7919 + 1;
    long bad = 0;

    while (atomic_load(&published) < 60000) {
        int64_t now = atomic_load_explicit(&published, memory_order_acquire);
        int64_t rev, k, want;
        const struct change *c;
        char key[24];

        if (now < 600)
            continue;
        r = r * 6364136223846793005ULL + 1442695040888963407ULL;
        rev = 501 + (int64_t)((r >> 33) % (uint64_t)(now - 500));
        k = (int64_t)(r >> 40) % 500;
        want = rev - (rev % 500 - k + 500) % 500;
        snprintf(key, sizeof key, "k%03lld", (long long)k);
        c = delta_find(shared, slice_str(key), rev);
        bad += c == NULL || c->rev.main != want || !slice_eq(c->key, slice_str(key));
        c = delta_at(shared, delta_lower_bound(shared, rev));
        bad += c->rev.main != rev;
        if (r % 64 == 0) {
            struct delta_cursor cur;
            int n = 0;

            for (c = delta_seek(&cur, shared, SLICE_NONE, false); c; c = delta_next_key(&cur))
                n++;
            bad += n != 500;
        }
    }
    return (void *)(uintptr_t)bad;
}

static void readers_beside_the_writer(void)
{
    pthread_t t[3];

    shared = delta_new();
    atomic_store(&published, 1);
    for (uintptr_t i = 0; i < 3; i++)
        REQUIRE(pthread_create(&t[i], NULL, read_beside, (void *)(i + 1)) == 0);
    for (int64_t main = 2; main <= 60000; main++) {
        char body[24];
        int n = snprintf(body, sizeof body, "\n\4k%03lld:%lld", (long long)(main % 500), (long long)main);
        struct change c = {.key = slice_of(body + 2, 4),
                           .rev = {main, 0},
                           .lease = main % 7,
                           .body = slice_of(body, (size_t)n)};

        REQUIRE(delta_put(shared, &c) == 0);
        atomic_store_explicit(&published, main, memory_order_release);
    }
    for (int i = 0; i < 3; i++) {
        void *bad;

        pthread_join(t[i], &bad);
        CHECK(bad == NULL);
    }
    delta_free(shared);
}

static void a_put_is_cheap(void)
{
    struct delta *d = delta_new();
    struct timespec from, to;
    static uint8_t body[300] = "\n\x10";
    double us;

    clock_gettime(CLOCK_MONOTONIC, &from);
    for (int64_t main = 2; main < 80002; main++) {
        struct change c = {.key = {body + 2, 16}, .rev = {main, 0}, .body = {body, sizeof body}};

        put_u64be(body + 2, 0x2f72656769737472);
        put_u64be(body + 10, rnd());
        REQUIRE(delta_put(d, &c) == 0);
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    us = (double)(to.tv_sec - from.tv_sec) * 1e6 + (double)(to.tv_nsec - from.tv_nsec) / 1e3;
    printf("# %.2f us a put of a new key, %zu bytes a put\n", us / 80000, delta_bytes(d) / 80000);
    CHECK(delta_keys(d) == 80000);
    delta_free(d);
}

int main(void)
{
    seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 0) : 0x9e3779b97f4a7c15;
    printf("# SEED=%llu\n", (unsigned long long)seed);
    TEST(answers_as_the_model);
    TEST(long_histories_are_found);
    TEST(collisions_are_found);
    TEST(rows_keep_their_last_image);
    TEST(a_seal_owns_its_configuration);
    TEST(large_bodies_fit);
    TEST(readers_beside_the_writer);
    TEST(a_put_is_cheap);
    return tap_done();
}
