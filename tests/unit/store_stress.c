/* SPDX-License-Identifier: Apache-2.0 */
/* store_stress.c - proves the view protocol: one writer puts, freezes, compacts and reclaims at full speed while a
 * flush thread flushes, sweeps and now and then copies base, and readers on other threads open views and check every
 * answer against a function of (key, revision): no gap, no duplicate, nothing wrong called compacted, nothing from
 * the future, no revision that goes back. Under TSan: without a race.
 *
 * Revision m changes key m % KEYS (sub 0), a tombstone in each third round of that key, and when m % 5 == 0 it also
 * puts key m * 7 % KEYS (sub 1), which may be the same one. So who was changed last at or before r takes at most KEYS
 * steps to find. */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <stdatomic.h>
#include "daemon/base.h"
#include "err.h"
#include "tap.h"

/* store.c is compiled in here with its atomic operations and the renewal of a txn made to stumble: before one of
 * them a reader may stand still until layers have been replaced once or twice. Without it the windows are a few
 * instructions wide and a protocol with a step left out passes for hours. */
static void stumble(void);
#undef atomic_load
#undef atomic_load_explicit
#undef atomic_compare_exchange_strong
#define atomic_load(p)                 (stumble(), __atomic_load_n(p, __ATOMIC_SEQ_CST))
#define atomic_load_explicit(p, order) (stumble(), __atomic_load_n(p, order))
#define atomic_compare_exchange_strong(p, old, new)                                                          \
    (stumble(), __atomic_compare_exchange_n(p, old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
#define base_reader_renew(r) (stumble(), base_reader_renew(r))
#include "../../daemon/store.c"
#undef base_reader_renew
#undef atomic_load
#define atomic_load(p) __atomic_load_n(p, __ATOMIC_SEQ_CST)

#define KEYS    61
#define READERS 3

static struct store *store;
static char dir[64];
static struct base_options options = {
    .map_bytes = 1ull << 30, .readers_max = STORE_SLOTS_MAX + 6, .no_sync = true};
static _Atomic bool done;
static _Atomic long n_bad, n_views, n_gets, n_scans, n_logs;

#define BAD(...)                                                                                             \
    do {                                                                                                     \
        if (atomic_fetch_add(&n_bad, 1) < 20)                                                                \
            printf("# " __VA_ARGS__);                                                                        \
    } while (0)

static uint64_t next(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

static _Thread_local uint64_t stumble_seed; /* 0: not a reader */
static _Atomic int n_freezes;

static void stumble(void)
{
    int freezes = n_freezes;

    if (stumble_seed == 0 || next(&stumble_seed) % 64 != 0)
        return;
    freezes += (int)(next(&stumble_seed) % 3);
    for (int i = 0; i < 200 && n_freezes <= freezes; i++)
        sched_yield();
}

/* ---- the function --------------------------------------------------------------- */

struct fact {
    struct rev rev; /* main 0: never changed */
    bool tombstone;
    int64_t create, version;
};

/* The change of key at revision m, if there is one; the last when there are two. */
static bool changed(int key, int64_t m, struct rev *ret_rev, bool *ret_tombstone)
{
    if (m % 5 == 0 && m * 7 % KEYS == key) {
        *ret_rev = (struct rev){m, 1};
        *ret_tombstone = false;
        return true;
    }
    if (m % KEYS == key) {
        *ret_rev = (struct rev){m, 0};
        *ret_tombstone = m / KEYS % 3 == 2;
        return true;
    }
    return false;
}

static struct fact fact_at(int key, int64_t r)
{
    struct fact f = {0};
    struct rev rev;
    bool tombstone;

    for (; r > 1; r--) {
        if (!changed(key, r, &rev, &tombstone))
            continue;
        if (f.rev.main == 0) {
            f.rev = rev;
            f.tombstone = tombstone;
        }
        if (tombstone)
            return f;
        f.version++;
        f.create = r;
        if (rev.sub == 1 && r % KEYS == key) { /* both changes of r are of this key: sub 0 lies below */
            if (r / KEYS % 3 == 2)
                return f;
            f.version++;
        }
    }
    return f;
}

static void key_name(int key, char name[8])
{
    snprintf(name, 8, "k%02d", key);
}

/* ---- the writer's side -------------------------------------------------------------- */

static void put(struct delta *d, int key, struct rev rev, bool tombstone)
{
    struct fact f = fact_at(key, rev.main);
    char name[8], value[300];
    uint8_t body[400];
    struct change c;
    struct slice v;

    key_name(key, name);
    v = slice_of(value, (size_t)snprintf(value, sizeof value, "%s@%lld.%u%*s", name, (long long)rev.main,
                                         rev.sub, (int)(rev.main % 100), ""));
    if (rev.sub == 0 && f.rev.sub == 1) /* what fact_at says is of the second change */
        f.version--, f.create = f.version ? f.create : rev.main;
    c = (struct change){.key = slice_str(name), .rev = rev, .tombstone = tombstone};
    if (!tombstone) {
        c.create_revision = f.create;
        c.version = f.version;
        c.lease = rev.main % 4;
    }
    c.body = slice_of(body, body_size(&c, v));
    REQUIRE(c.body.len <= sizeof body);
    body_encode(&c, v, body);
    REQUIRE(delta_put(d, &c) == 0);
}

static void write_revision(int64_t m)
{
    struct delta *d = store_live(store);

    put(d, (int)(m % KEYS), (struct rev){m, 0}, m / KEYS % 3 == 2);
    if (m % 5 == 0)
        put(d, (int)(m * 7 % KEYS), (struct rev){m, 1}, false);
}

static int64_t live_keys(int64_t r)
{
    int64_t n = 0;

    for (int k = 0; k < KEYS; k++) {
        struct fact f = fact_at(k, r);

        n += f.rev.main != 0 && !f.tombstone;
    }
    return n;
}

/* ---- the flush thread ------------------------------------------------------------------ */

static struct flush {
    pthread_mutex_t mu; /* what the daemon does by mailbox */
    pthread_cond_t go;
    struct delta *todo;  /* protected by mu */
    bool stop;           /* protected by mu */
    struct base *copy;   /* protected by mu; a compacted copy, for the writer to swap in; then NULL again */
    _Atomic int flushed; /* told and not yet taken note of */
    _Atomic uint64_t removed;
    _Atomic int n_copies;
} flush = {.mu = PTHREAD_MUTEX_INITIALIZER, .go = PTHREAD_COND_INITIALIZER};

static struct base *base_now; /* the flush thread's: what it writes into */

static void copy_base(int n)
{
    static char path[96];
    struct base_options o = options;
    struct base *b;

    snprintf(path, sizeof path, "%s/base-%d", dir, n);
    REQUIRE(mkdir(path, 0700) == 0);
    REQUIRE(base_copy(base_now, path) == 0);
    o.path = path;
    REQUIRE(base_open(&o, &b) == 0);
    base_now = b;
    pthread_mutex_lock(&flush.mu);
    flush.copy = b;
    /* Nothing may be flushed until apply has swapped: the old base would miss it. */
    while (flush.copy)
        pthread_cond_wait(&flush.go, &flush.mu);
    pthread_mutex_unlock(&flush.mu);
}

static void *flush_main(void *arg)
{
    int n = 0, rc;

    (void)arg;
    for (;;) {
        struct delta *d;

        pthread_mutex_lock(&flush.mu);
        while (flush.todo == NULL && !flush.stop)
            pthread_cond_wait(&flush.go, &flush.mu);
        d = flush.todo;
        flush.todo = NULL;
        pthread_mutex_unlock(&flush.mu);
        if (d == NULL)
            return NULL;
        REQUIRE(base_flush(base_now, d) == 0);
        atomic_store(&flush.flushed, 1);
        n++;
        for (int i = 0; i < 4; i++) {
            uint64_t removed = 0;

            rc = base_sweep(base_now, &removed);
            REQUIRE(rc >= 0);
            atomic_fetch_add(&flush.removed, removed);
            if (rc == 0)
                break;
        }
        if (n % 250 == 0)
            copy_base(atomic_fetch_add(&flush.n_copies, 1) + 1);
    }
}

static void flush_give(struct delta *d)
{
    pthread_mutex_lock(&flush.mu);
    flush.todo = d;
    flush.stop = d == NULL;
    pthread_cond_signal(&flush.go);
    pthread_mutex_unlock(&flush.mu);
}

/* Apply's reaction to what flush says. */
static void take_note(void)
{
    pthread_mutex_lock(&flush.mu);
    if (flush.copy && store_swap_base(store, flush.copy) == 0) {
        flush.copy = NULL;
        pthread_cond_signal(&flush.go);
    }
    pthread_mutex_unlock(&flush.mu);
    if (atomic_exchange(&flush.flushed, 0))
        store_flushed(store);
    (void)store_reclaim(store);
}

/* ---- the readers -------------------------------------------------------------------------- */

static void check_change(const char *how, int key, int64_t r, const struct view *v, int rc,
                         const struct change *c)
{
    struct fact f = fact_at(key, r);
    bool there = f.rev.main != 0 && !f.tombstone;
    Mvccpb__KeyValue kv;
    char value[40];

    if (rc != (there ? 0 : ERR_KEY_NOT_FOUND)) {
        BAD("%s k%02d at %lld (c %lld r %lld): %d, should be %lld.%u%s\n", how, key, (long long)r,
            (long long)v->compact_rev, (long long)v->rev, rc, (long long)f.rev.main, f.rev.sub,
            f.tombstone ? " tombstone" : "");
        return;
    }
    if (!there)
        return;
    if (rev_cmp(c->rev, f.rev) || c->create_revision != f.create || c->version != f.version ||
        c->lease != f.rev.main % 4)
        BAD("%s k%02d at %lld: rev %lld.%u create %lld version %lld, should be %lld.%u %lld %lld\n", how, key,
            (long long)r, (long long)c->rev.main, c->rev.sub, (long long)c->create_revision,
            (long long)c->version, (long long)f.rev.main, f.rev.sub, (long long)f.create,
            (long long)f.version);
    if (c->body.ptr == NULL)
        return;
    snprintf(value, sizeof value, "k%02d@%lld.%u", key, (long long)f.rev.main, f.rev.sub);
    if (body_decode(c->body, &kv) || kv.mod_revision != f.rev.main ||
        !slice_has_prefix(slice_of(kv.value.data, kv.value.len), slice_str(value)))
        BAD("%s k%02d at %lld: not the body of %s\n", how, key, (long long)r, value);
}

static int64_t some_rev(const struct view *v, uint64_t *seed)
{
    int64_t low = v->compact_rev < 1 ? 1 : v->compact_rev;

    switch (next(seed) % 4) {
    case 0:
        return v->rev;
    case 1:
        return low;
    default:
        return low + (int64_t)(next(seed) % (uint64_t)(v->rev - low + 1));
    }
}

static void check_gets(struct view *v, uint64_t *seed, struct arena *a)
{
    for (int i = 0; i < 20; i++) {
        int key = (int)(next(seed) % KEYS);
        int64_t r = some_rev(v, seed);
        struct change c;
        char name[8];
        int rc;

        key_name(key, name);
        rc = view_get(v, slice_str(name), r, i % 2 ? BASE_NO_BODY : 0, a, &c);
        check_change("get", key, r, v, rc, &c);
        if (rc == 0 && (c.body.ptr == NULL) != (i % 2 == 1))
            BAD("get k%02d: a body where none was wanted, or none\n", key);
    }
    atomic_fetch_add(&n_gets, 20);
}

static void check_keys(struct view *v, uint64_t *seed, struct arena *a)
{
    int64_t r = some_rev(v, seed);
    int from = (int)(next(seed) % KEYS), key = from;
    struct view_cursor *cur;
    struct change c;
    char name[8];
    int rc;

    key_name(from, name);
    rc = view_cursor_new(v, slice_str(name), SLICE_NONE, r, 0, &cur);
    if (rc) {
        BAD("view_cursor_new: %d\n", rc);
        return;
    }
    while ((rc = view_cursor_next(cur, a, &c)) == 0) {
        int here = c.key.len == 3 ? (c.key.ptr[1] - '0') * 10 + c.key.ptr[2] - '0' : -1;

        if (here < key || here >= KEYS) {
            BAD("scan at %lld: k%02d after k%02d\n", (long long)r, here, key - 1);
            break;
        }
        for (; key < here; key++)
            check_change("scan", key, r, v, ERR_KEY_NOT_FOUND, NULL);
        check_change("scan", key++, r, v, 0, &c);
    }
    for (; rc == ERR_KEY_NOT_FOUND && key < KEYS; key++)
        check_change("scan", key, r, v, rc, NULL);
    if (rc && rc != ERR_KEY_NOT_FOUND)
        BAD("scan at %lld: %d\n", (long long)r, rc);
    view_cursor_free(cur);
    atomic_fetch_add(&n_scans, 1);
}

struct log_check {
    struct rev want;
    int64_t to;
};

static void log_step(struct log_check *l)
{
    if (l->want.main % 5 == 0 && l->want.sub == 0)
        l->want.sub = 1;
    else
        l->want = (struct rev){l->want.main + 1, 0};
}

static int check_log_change(void *ctx, const struct change *c)
{
    struct log_check *l = ctx;
    char name[8];

    if (rev_cmp(c->rev, l->want)) {
        BAD("log: %lld.%u, should be %lld.%u\n", (long long)c->rev.main, c->rev.sub, (long long)l->want.main,
            l->want.sub);
        return 1;
    }
    key_name((int)(c->rev.sub ? c->rev.main * 7 % KEYS : c->rev.main % KEYS), name);
    if (!slice_eq(c->key, slice_str(name)) ||
        c->tombstone != (c->rev.sub == 0 && c->rev.main / KEYS % 3 == 2))
        BAD("log: wrong change at %lld.%u\n", (long long)c->rev.main, c->rev.sub);
    log_step(l);
    return 0;
}

/* Above C every change of every revision is there, once, in order. */
static void check_log(struct view *v, uint64_t *seed, struct arena *a)
{
    int64_t from = some_rev(v, seed) + 1, to = next(seed) % 2 ? v->rev : from + (int64_t)(next(seed) % 300);
    struct log_check l = {.want = {from, 0}};
    int rc;

    if (from < 2)
        from = l.want.main = 2;
    if (to - from > 500)
        to = from + 500;
    rc = view_log_scan(v, from, to, a, check_log_change, &l);
    if (to > v->rev)
        to = v->rev;
    if (rc == 0 && from <= to && (l.want.main != to + 1 || l.want.sub != 0))
        BAD("log: ends at %lld.%u, should at %lld\n", (long long)l.want.main, l.want.sub, (long long)to);
    if (rc != 0 && rc != 1)
        BAD("log: %d\n", rc);
    atomic_fetch_add(&n_logs, 1);
}

static void *read_main(void *arg)
{
    uint64_t seed = (uintptr_t)arg * 0x9e3779b97f4a7c15;
    struct slot *sl = slot_new(store);
    int64_t rev = 0, compact_rev = -1;

    stumble_seed = seed;
    REQUIRE(sl != NULL);
    while (!atomic_load(&done)) {
        int rounds = next(&seed) % 64 == 0 ? 50 : 1; /* some views live long */
        struct view v;
        struct arena a;
        int rc = view_open(store, sl, &v);

        if (rc) {
            BAD("view_open: %d\n", rc);
            break;
        }
        if (v.rev < rev || v.compact_rev < compact_rev || v.compact_rev > v.rev)
            BAD("view goes back: r %lld after %lld, c %lld after %lld\n", (long long)v.rev, (long long)rev,
                (long long)v.compact_rev, (long long)compact_rev);
        rev = v.rev;
        compact_rev = v.compact_rev;
        arena_init(&a, 8 << 20, NULL, 0);
        for (; rounds > 0; rounds--) {
            uint64_t what = next(&seed) % 8;

            if (what < 5)
                check_gets(&v, &seed, &a);
            else if (what < 7)
                check_keys(&v, &seed, &a);
            else
                check_log(&v, &seed, &a);
        }
        view_close(&v);
        arena_fini(&a);
        atomic_fetch_add(&n_views, 1);
        if (next(&seed) % 512 == 0) {
            slot_free(store, sl);
            sl = slot_new(store);
            REQUIRE(sl != NULL);
        }
    }
    slot_free(store, sl);
    return NULL;
}

/* ---- the test ---------------------------------------------------------------------------------- */

static void remove_tree(const char *path)
{
    DIR *d = opendir(path);
    struct dirent *e;
    char name[400];

    while (d && (e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(name, sizeof name, "%s/%s", path, e->d_name);
        if (unlink(name) != 0)
            remove_tree(name);
    }
    if (d)
        closedir(d);
    (void)rmdir(path); /* a leftover in /tmp harms nobody */
}

static void open_store(void)
{
    struct base_options o = options;
    char path[96];

    snprintf(dir, sizeof dir, "%s/cairn-stress-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    REQUIRE(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/base-0", dir);
    REQUIRE(mkdir(path, 0700) == 0);
    o.path = path;
    REQUIRE(base_create(&o, 1, 2, S("conf")) == 0);
    REQUIRE(base_open(&o, &base_now) == 0);
    REQUIRE(store_new(base_now, &store) == 0);
}

/* Nobody writes now: the keys of each lease are those the function says. */
static void check_leases(int64_t r)
{
    struct slot *sl = slot_new(store);
    struct view v;
    struct arena a;

    arena_init(&a, 1 << 20, NULL, 0);
    REQUIRE(sl && view_open(store, sl, &v) == 0);
    CHECK(v.rev == r);
    for (int64_t lease = 1; lease < 5; lease++) {
        struct slice *keys;
        size_t n, want = 0;

        REQUIRE(view_lease_keys(&v, lease, &a, &keys, &n) == 0);
        for (int k = 0; k < KEYS; k++) {
            struct fact f = fact_at(k, r);
            char name[8];

            key_name(k, name);
            if (f.rev.main && !f.tombstone && f.rev.main % 4 == lease) {
                CHECK(want < n && slice_eq(keys[want], slice_str(name)));
                want++;
            }
        }
        CHECK(n == want);
    }
    view_close(&v);
    slot_free(store, sl);
    arena_fini(&a);
}

static void readers_see_one_store(void)
{
    int rounds = getenv("ROUNDS") ? atoi(getenv("ROUNDS")) : getenv("TSAN") && *getenv("TSAN") ? 600 : 4000;
    uint64_t seed =
        getenv("SEED") ? strtoull(getenv("SEED"), NULL, 0) : (uint64_t)time(NULL) * 2654435761u + 1;
    pthread_t readers[READERS], flusher;
    int64_t r = 1, c = -1;
    int n = 0;

    printf("# SEED=%llu ROUNDS=%d\n", (unsigned long long)seed, rounds);
    open_store();
    REQUIRE(pthread_create(&flusher, NULL, flush_main, NULL) == 0);
    for (uintptr_t i = 0; i < READERS; i++)
        REQUIRE(pthread_create(&readers[i], NULL, read_main, (void *)(i + seed)) == 0);
    while (n_freezes < rounds) {
        r++;
        write_revision(r);
        if (next(&seed) % 50 == 0 && r - c > 20)
            c = r - (int64_t)(next(&seed) % (uint64_t)(r - (c < 0 ? 0 : c)) / (next(&seed) % 2 ? 1 : 20));
        store_publish(store, (uint64_t)r, c, r);
        take_note();
        if (++n >= 10 && store_frozen(store) == NULL && next(&seed) % 8 == 0) {
            struct seal seal = {.applied_index = (uint64_t)r,
                                .applied_term = 1,
                                .revision = r,
                                .compact_revision = c,
                                .key_count = live_keys(r),
                                .conf = S("conf")};
            struct delta *frozen;

            REQUIRE(store_freeze(store, &seal, &frozen) == 0);
            flush_give(frozen);
            n_freezes++;
            n = 0;
        }
        /* As apply does when the live delta is full. */
        while (n > 100 && store_frozen(store)) {
            sched_yield();
            take_note();
        }
        if (atomic_load(&n_bad))
            break;
    }
    atomic_store(&done, true);
    for (int i = 0; i < READERS; i++)
        pthread_join(readers[i], NULL);
    while (store_frozen(store) && !atomic_load(&n_bad)) {
        take_note();
        sched_yield();
    }
    check_leases(r);
    printf("# %lld revisions, %d freezes, %llu records swept, %d copies, %ld views, %ld gets, %ld scans, %ld "
           "log scans\n",
           (long long)r, n_freezes, (unsigned long long)atomic_load(&flush.removed), atomic_load(&flush.n_copies),
           atomic_load(&n_views), atomic_load(&n_gets), atomic_load(&n_scans), atomic_load(&n_logs));
    CHECK(atomic_load(&n_bad) == 0);
    CHECK(atomic_load(&n_views) > 100);
    flush_give(NULL);
    while (pthread_tryjoin_np(flusher, NULL) != 0) { /* a copy may still wait to be swapped in */
        take_note();
        sched_yield();
    }
    CHECK(store_reclaim(store) == 0);
    store_free(store);
    remove_tree(dir);
}

int main(void)
{
    TEST(readers_see_one_store);
    return tap_done();
}
