/* SPDX-License-Identifier: Apache-2.0 */
/* base_model.h - a random history of a small store, kept twice: in base, and in an array that anybody can read.
 *
 * What base says at any revision >= C must be what the array says. Used by tests/unit/base*.c.
 */
#pragma once
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "daemon/base.h"
#include "daemon/base_db.h"
#include "err.h"
#include "splitmix.h"
#include "tap.h"

/* ---- dice: splitmix64, the seed from SEED or the clock ---- */
static uint64_t dice_state;

static uint64_t dice(void)
{
    return splitmix64(&dice_state);
}

static size_t below(size_t n)
{
    return (size_t)(dice() % n);
}

static inline void dice_seed(void)
{
    const char *s = getenv("SEED");

    dice_state = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL) * 1000003 + (uint64_t)getpid();
    printf("# SEED=%llu\n", (unsigned long long)dice_state);
}

/* ---- the model ---- */
struct mchange {
    size_t key;
    struct rev rev;
    bool tombstone;
    int64_t create, version, lease;
    uint8_t *value;
    size_t value_len;
};

struct model {
    struct slice *keys; /* sorted, distinct */
    size_t n_keys;
    struct mchange *c;
    size_t n, cap, flushed; /* changes; of them in base */
    int64_t rev, compact;
    uint64_t applied, hash; /* hash: as last flushed */
    char dir[64];
    struct base *base;
    struct delta *delta; /* not yet flushed */
    size_t value_max;
};

static inline int slice_order(const void *a, const void *b)
{
    return slice_cmp(*(const struct slice *)a, *(const struct slice *)b);
}

static inline void model_add_key(struct model *m, const void *p, size_t n)
{
    uint8_t *copy = malloc(n);

    REQUIRE(copy != NULL);
    memcpy(copy, p, n);
    m->keys = realloc(m->keys, (m->n_keys + 1) * sizeof *m->keys);
    REQUIRE(m->keys != NULL);
    m->keys[m->n_keys++] = slice_of(copy, n);
}

static inline void model_sort_keys(struct model *m)
{
    size_t n = 0;

    qsort(m->keys, m->n_keys, sizeof *m->keys, slice_order);
    for (size_t i = 0; i < m->n_keys; i++) {
        if (n && slice_eq(m->keys[n - 1], m->keys[i]))
            free((void *)m->keys[i].ptr);
        else
            m->keys[n++] = m->keys[i];
    }
    m->n_keys = n;
}

static inline struct base_options model_options(struct model *m)
{
    return (struct base_options){.path = m->dir, .map_bytes = 1ull << 40, .readers_max = 16, .no_sync = true};
}

static inline void model_open(struct model *m)
{
    struct base_options o = model_options(m);

    REQUIRE(base_open(&o, &m->base) == 0);
    if (below(2)) { /* a sweep of many steps and rounds, which stop anywhere, also inside one main */
        m->base->sweep_max.pages = 1 + (unsigned)below(4);
        m->base->sweep_max.records = 1 + (unsigned)below(30);
        m->base->sweep_max.victims = 1 + below(40);
    }
}

static inline void model_new(struct model *m)
{
    struct base_options o;
    const char *tmp = getenv("TMPDIR");

    snprintf(m->dir, sizeof m->dir, "%s/cairn-base-XXXXXX", tmp ? tmp : "/tmp");
    REQUIRE(mkdtemp(m->dir) != NULL);
    o = model_options(m);
    m->rev = 1;
    m->compact = -1;
    if (m->value_max == 0)
        m->value_max = 60;
    REQUIRE(base_create(&o, 11, 22, S("conf")) == 0);
    model_open(m);
    m->delta = delta_new();
    REQUIRE(m->delta != NULL);
}

static inline void model_free(struct model *m)
{
    char path[100];

    base_close(m->base);
    delta_free(m->delta);
    for (size_t i = 0; i < m->n; i++)
        free(m->c[i].value);
    for (size_t i = 0; i < m->n_keys; i++)
        free((void *)m->keys[i].ptr);
    free(m->c);
    free(m->keys);
    snprintf(path, sizeof path, "%s/data.mdb", m->dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/lock.mdb", m->dir);
    unlink(path);
    rmdir(m->dir);
}

/* The newest change of key with main <= rev; among the first n. NULL: none. */
static inline const struct mchange *model_find(const struct model *m, size_t key, int64_t rev)
{
    for (size_t i = m->n; i-- > 0;)
        if (m->c[i].key == key && m->c[i].rev.main <= rev)
            return &m->c[i];
    return NULL;
}

static inline struct slice model_body(const struct mchange *x, struct slice key)
{
    struct change c = {.key = key, .rev = x->rev, .tombstone = x->tombstone, .create_revision = x->create,
                       .version = x->version, .lease = x->lease};
    struct slice value = slice_of(x->value, x->value_len);
    size_t n = body_size(&c, value);
    uint8_t *p = malloc(n);

    REQUIRE(p != NULL);
    body_encode(&c, value, p);
    return slice_of(p, n);
}

static inline void model_change(struct model *m, size_t key, uint32_t sub, bool tombstone)
{
    const struct mchange *old = model_find(m, key, INT64_MAX);
    struct mchange x = {.key = key, .rev = {m->rev, sub}, .tombstone = tombstone};
    struct change c;

    if (!tombstone) {
        bool live = old && !old->tombstone;

        x.create = live ? old->create : m->rev;
        x.version = live ? old->version + 1 : 1;
        x.lease = below(3) ? 0 : (int64_t[]){1, 7, INT64_MAX, 0x1234}[below(4)];
        x.value_len = below(40) ? below(m->value_max) : below(12000);
        x.value = malloc(x.value_len + 1);
        REQUIRE(x.value != NULL);
        for (size_t i = 0; i < x.value_len; i++)
            x.value[i] = i ? (uint8_t)(x.value[i - 1] * 31 + 7) : (uint8_t)dice();
    }
    if (m->n == m->cap) {
        m->cap = m->cap ? 2 * m->cap : 256;
        m->c = realloc(m->c, m->cap * sizeof *m->c);
        REQUIRE(m->c != NULL);
    }
    m->c[m->n++] = x;
    c = (struct change){.key = m->keys[key], .rev = x.rev, .tombstone = tombstone, .create_revision = x.create,
                        .version = x.version, .lease = x.lease, .body = model_body(&x, m->keys[key])};
    REQUIRE(delta_put(m->delta, &c) == 0);
    free((void *)c.body.ptr);
}

/* One transaction of 1 to 4 changes; hot keys change often. */
static inline void model_step(struct model *m)
{
    size_t n = 1 + (below(4) ? 0 : below(4)), key = 0;

    m->rev++;
    for (uint32_t sub = 0; sub < n; sub++) {
        const struct mchange *old;

        if (sub == 0 || below(3)) /* else: the same key again, in one main */
            key = below(4) ? below(m->n_keys) : below(m->n_keys < 5 ? m->n_keys : 5);
        old = model_find(m, key, INT64_MAX);
        model_change(m, key, sub, old && !old->tombstone && below(3) == 0);
    }
    m->applied++;
}

static inline int64_t model_count(const struct model *m, int64_t rev)
{
    int64_t n = 0;

    for (size_t k = 0; k < m->n_keys; k++) {
        const struct mchange *x = model_find(m, k, rev);

        n += x && !x->tombstone;
    }
    return n;
}

static inline void model_seal(struct model *m)
{
    struct seal s = {.applied_index = m->applied, .applied_term = 3, .revision = m->rev,
                     .compact_revision = m->compact, .key_count = model_count(m, m->rev),
                     .state_hash = 0x5ea1 ^ m->applied, .conf = S("conf of the cluster")};

    delta_seal(m->delta, &s);
}

static inline void model_flush(struct model *m)
{
    model_seal(m);
    REQUIRE(base_flush(m->base, m->delta) == 0);
    delta_free(m->delta);
    m->delta = delta_new();
    m->flushed = m->n;
    m->hash = 0x5ea1 ^ m->applied;
}

/* ---- comparing ---- */
static inline bool change_is(const struct change *c, const struct mchange *x, struct slice key, bool body)
{
    bool ok = slice_eq(c->key, key) && rev_cmp(c->rev, x->rev) == 0 && c->tombstone == x->tombstone &&
              c->create_revision == x->create && c->version == x->version && c->lease == x->lease;

    if (ok && body) {
        struct slice b = model_body(x, key);

        ok = slice_eq(b, c->body);
        free((void *)b.ptr);
    }
    return ok;
}

static inline void compare_gets(struct model *m, struct base_reader *r, int64_t rev)
{
    for (size_t k = 0; k < m->n_keys; k++) {
        const struct mchange *x = model_find(m, k, rev);
        bool want_body = below(2);
        struct change c;
        struct arena a;
        int err;

        arena_init(&a, 4 << 20, NULL, 0);
        err = base_get(r, m->keys[k], rev, m->compact, want_body ? 0 : BASE_NO_BODY, &a, &c);
        if (x == NULL || x->tombstone)
            CHECK(err == ERR_KEY_NOT_FOUND);
        else
            CHECK(err == 0 && change_is(&c, x, m->keys[k], want_body));
        arena_fini(&a);
    }
}

/* From a random key on, in order, all that lives. */
static inline void compare_cursor(struct model *m, struct base_reader *r, int64_t rev)
{
    struct base_cursor *cur;
    size_t k = below(m->n_keys);
    bool after = below(2);
    struct slice from = below(4) ? m->keys[k] : SLICE_NONE;
    int err;

    if (from.len == 0)
        k = 0;
    else if (below(3) == 0 && from.len > 1)
        from.len = 1 + below(from.len - 1); /* a prefix of a key: mostly none itself */
    k = 0;
    while (k < m->n_keys && (slice_cmp(m->keys[k], from) < 0 || (after && slice_eq(m->keys[k], from))))
        k++;
    REQUIRE(base_cursor_new(r, &cur) == 0);
    for (err = base_cursor_seek(cur, from, after); err == 0; err = base_cursor_next(cur)) {
        struct slice key = base_cursor_key(cur);
        const struct mchange *x;
        struct change c;
        struct arena a;

        /* What the model knows as dead may be in base or not; what lives must be there. */
        for (; k < m->n_keys && slice_cmp(m->keys[k], key) < 0; k++) {
            x = model_find(m, k, rev);
            CHECK(x == NULL || x->tombstone);
        }
        CHECK(k < m->n_keys && slice_eq(m->keys[k], key));
        if (k == m->n_keys)
            break;
        x = model_find(m, k, rev);
        arena_init(&a, 4 << 20, NULL, 0);
        err = base_cursor_get(cur, rev, m->compact, 0, &a, &c);
        if (x == NULL || x->tombstone)
            CHECK(err == ERR_KEY_NOT_FOUND);
        else
            CHECK(err == 0 && change_is(&c, x, m->keys[k], true));
        arena_fini(&a);
        k++;
    }
    CHECK(err == ERR_KEY_NOT_FOUND);
    for (; k < m->n_keys; k++) {
        const struct mchange *x = model_find(m, k, rev);

        CHECK(x == NULL || x->tombstone);
    }
    base_cursor_free(cur);
}

struct log_check {
    struct model *m;
    size_t at;       /* the next change expected */
    int64_t compact;
};

/* A change of the model may be missing in the log only if it is swept: not after C, and hidden or dead at C. */
static inline bool may_be_swept(const struct model *m, size_t i)
{
    const struct mchange *x = &m->c[i];

    if (x->rev.main > m->compact)
        return false;
    return x != model_find(m, x->key, m->compact) || (x->tombstone && x->rev.main < m->compact);
}

static inline int log_check_fn(void *ctx, const struct change *c)
{
    struct log_check *lc = ctx;
    struct model *m = lc->m;

    while (lc->at < m->n && rev_cmp(m->c[lc->at].rev, c->rev) < 0) {
        CHECK(may_be_swept(m, lc->at));
        lc->at++;
    }
    if (lc->at == m->n || !change_is(c, &m->c[lc->at], m->keys[m->c[lc->at].key], true)) {
        CHECK(!"a change in the log that never was");
        return -EINVAL;
    }
    lc->at++;
    return 0;
}

static inline void compare_log(struct model *m, struct base_reader *r)
{
    struct rev from = {(int64_t)below((size_t)m->rev + 1), (uint32_t)below(3)};
    int64_t to = from.main + (int64_t)below((size_t)(m->rev - from.main) + 1);
    struct log_check lc = {.m = m};
    struct arena a;

    arena_init(&a, 4 << 20, NULL, 0);
    while (lc.at < m->n && rev_cmp(m->c[lc.at].rev, from) < 0)
        lc.at++;
    CHECK(base_log_scan(r, from, to, &a, log_check_fn, &lc) == 0);
    for (; lc.at < m->n && m->c[lc.at].rev.main <= to; lc.at++)
        CHECK(may_be_swept(m, lc.at));
    arena_fini(&a);
}

struct lease_check {
    struct model *m;
    int64_t lease;
    size_t n;
};

static inline int lease_check_fn(void *ctx, const struct change *c)
{
    struct lease_check *lc = ctx;
    struct slice *k = bsearch(&c->key, lc->m->keys, lc->m->n_keys, sizeof *lc->m->keys, slice_order);
    const struct mchange *x = k ? model_find(lc->m, (size_t)(k - lc->m->keys), INT64_MAX) : NULL;

    CHECK(x && x->lease == lc->lease && change_is(c, x, *k, false));
    lc->n++;
    return 0;
}

static inline void compare_leases(struct model *m, struct base_reader *r)
{
    static const int64_t leases[] = {1, 7, INT64_MAX, 0x1234, 5};
    struct arena a;

    arena_init(&a, 4 << 20, NULL, 0);
    for (size_t i = 0; i < sizeof leases / sizeof *leases; i++) {
        struct lease_check lc = {m, leases[i], 0};
        size_t want = 0;

        for (size_t k = 0; k < m->n_keys; k++) {
            const struct mchange *x = model_find(m, k, INT64_MAX);

            want += x && x->lease == leases[i];
        }
        CHECK(base_lease_scan(r, leases[i], &a, lease_check_fn, &lc) == 0);
        CHECK(lc.n == want);
    }
    arena_fini(&a);
}

/* Everything flushed must be right at a few random revisions. Needs an empty delta. */
static inline void model_compare(struct model *m, int revisions)
{
    int64_t low = m->compact > 1 ? m->compact : 1;
    struct base_reader *r;
    struct base_meta meta;

    REQUIRE(m->flushed == m->n);
    REQUIRE(base_reader_new(m->base, &r) == 0);
    REQUIRE(base_reader_renew(r) == 0);
    CHECK(base_reader_meta(r, &meta) == 0);
    CHECK(meta.cluster_id == 11 && meta.member_id == 22);
    CHECK(meta.seal.revision == m->rev && meta.seal.compact_revision == m->compact);
    CHECK(meta.seal.applied_index == m->applied && meta.seal.state_hash == m->hash);
    for (int i = 0; i < revisions; i++) {
        int64_t rev = i == 0 ? m->rev : i == 1 ? low : low + (int64_t)below((size_t)(m->rev - low) + 1);

        compare_gets(m, r, rev);
        compare_cursor(m, r, rev);
        compare_log(m, r);
    }
    compare_leases(m, r);
    base_reader_reset(r);
    base_reader_free(r);
}
