/* SPDX-License-Identifier: Apache-2.0 */
/* mvcc_model.c - proves that Range (every option), HashKV, the log and the keys of a lease answer as a plain array of
 * all changes does, through freezes, flushes, sweeps, compactions and changes of base, and with a txn's scratch on
 * top. 10,000 random operations (OPS, SEED). The reference is written from the rules of etcd's range.go and hash.go,
 * with etcd's compaction done to the array at once. */
#include <errno.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "daemon/crc32c.h"
#include "daemon/mvcc.h"
#include "err.h"
#include "tap.h"

#define KEYS      70
#define MAX       60000
#define VALUE_MAX 7000

static uint64_t seed;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static size_t below(size_t n)
{
    return (size_t)(rnd() % n);
}

/* ---- the reference ------------------------------------------------------------------- */

struct past {
    int key;
    struct rev rev;
    bool tombstone, removed; /* removed: etcd's compaction has deleted it */
    int64_t create, version, lease;
    uint32_t value_len, value_seed;
};

static struct slice keys[KEYS]; /* ascending */
static struct past past[MAX];
static int n_past;
static int64_t R = 1, C = -1;

static uint8_t values[1 << 16];

static struct slice value_of(const struct past *p)
{
    return slice_of(values + p->value_seed, p->value_len);
}

/* The newest change of key at or below r, -1: none. */
static int find(int key, int64_t r)
{
    for (int i = n_past - 1; i >= 0; i--)
        if (past[i].key == key && past[i].rev.main <= r)
            return i;
    return -1;
}

static int find_live(int key, int64_t r)
{
    int i = find(key, r);

    return i >= 0 && !past[i].tombstone ? i : -1;
}

static void compact_reference(int64_t c)
{
    for (int i = 0; i < n_past; i++) {
        struct past *p = &past[i];
        int newest = p->rev.main <= c ? find(p->key, c) : i;

        if (p->rev.main <= c && (i != newest || (p->tombstone && p->rev.main != c)))
            p->removed = true;
    }
    C = c;
}

static int compare_rows(const struct past *a, const struct past *b, int target)
{
    int c = 0;

    switch (target) {
    case 1:
        c = (a->version > b->version) - (a->version < b->version);
        break;
    case 2:
        c = (a->create > b->create) - (a->create < b->create);
        break;
    case 3:
        c = (a->rev.main > b->rev.main) - (a->rev.main < b->rev.main);
        break;
    case 4:
        c = slice_cmp(value_of(a), value_of(b));
        break;
    }
    return c;
}

/* Insertion sort: stable, so that equals stay by key ascending. */
static void sort_rows(const struct past **row, int n, int target, bool down)
{
    for (int i = 1; i < n; i++)
        for (int k = i; k > 0; k--) {
            int c = target == 0 ? slice_cmp(keys[row[k]->key], keys[row[k - 1]->key])
                                : compare_rows(row[k], row[k - 1], target);
            const struct past *swap = row[k];

            if (down ? c <= 0 : c >= 0)
                break;
            row[k] = row[k - 1];
            row[k - 1] = swap;
        }
}

struct want {
    int err;
    const struct past *row[KEYS];
    int n, count;
    bool more;
};

static void drop_filtered(struct want *w, const Etcdserverpb__RangeRequest *q)
{
    int n = 0;

    for (int i = 0; i < w->n; i++) {
        const struct past *p = w->row[i];

        if ((q->max_mod_revision && p->rev.main > q->max_mod_revision) ||
            (q->min_mod_revision && p->rev.main < q->min_mod_revision) ||
            (q->max_create_revision && p->create > q->max_create_revision) ||
            (q->min_create_revision && p->create < q->min_create_revision))
            continue;
        w->row[n++] = p;
    }
    w->n = n;
}

static void range_reference(const Etcdserverpb__RangeRequest *q, int64_t now, struct want *w)
{
    int64_t rev = q->revision <= 0 ? now : q->revision;
    struct slice key = {q->key.data, q->key.len}, end = {q->range_end.data, q->range_end.len};
    bool plain = q->sort_order == 0 || (q->sort_order == 1 && q->sort_target == 0);
    bool filters =
        q->min_mod_revision || q->max_mod_revision || q->min_create_revision || q->max_create_revision;
    int order = q->sort_order;

    *w = (struct want){.err = rev > now ? ERR_FUTURE_REV : rev < C ? ERR_COMPACTED : 0};
    if (w->err)
        return;
    for (int k = 0; k < KEYS; k++) {
        bool in = end.len == 0 ? slice_eq(keys[k], key)
                               : slice_cmp(keys[k], key) >= 0 &&
                                     (slice_eq(end, slice_of("", 1)) || slice_cmp(keys[k], end) < 0);
        int i = in ? find_live(k, rev) : -1;

        if (i >= 0)
            w->row[w->count++] = &past[i];
    }
    w->n = w->count;
    if (q->count_only) {
        w->n = 0;
        return;
    }
    if (plain && !filters && q->limit > 0 && w->n - 1 > q->limit)
        w->n = (int)q->limit + 1;
    drop_filtered(w, q);
    if (q->sort_target != 0 && order == 0)
        order = 1;
    if (order)
        sort_rows(w->row, w->n, q->sort_target, order == 2);
    if (q->limit > 0 && w->n > q->limit) {
        w->n = (int)q->limit;
        w->more = true;
    }
}

static uint32_t hash_past(uint32_t crc, const struct past *p)
{
    static uint8_t body[VALUE_MAX + 2000];
    struct change c = {.key = keys[p->key],
                       .rev = p->rev,
                       .tombstone = p->tombstone,
                       .create_revision = p->create,
                       .version = p->version,
                       .lease = p->lease};
    uint8_t k[18];

    put_u64be(k, (uint64_t)p->rev.main);
    k[8] = '_';
    put_u64be(k + 9, p->rev.sub);
    k[17] = 't';
    crc = crc32c(crc, k, p->tombstone ? 18 : 17);
    body_encode(&c, value_of(p), body);
    return crc32c(crc, body, body_size(&c, value_of(p)));
}

/* kvHasher, over the records etcd would still have. */
static uint32_t hash_reference(int64_t rev)
{
    uint32_t crc = crc32c(0, "key", 3);
    bool any = false;

    for (int k = 0; k < KEYS; k++)
        any = any || find_live(k, rev) >= 0;
    for (int i = 0; i < n_past; i++) {
        const struct past *p = &past[i];

        if (p->removed || p->rev.main > rev)
            continue;
        if (p->rev.main <= C && any && find_live(p->key, rev) != i)
            continue;
        if (p->rev.main == C && p->tombstone)
            continue;
        crc = hash_past(crc, p);
    }
    return crc;
}

/* ---- the store ----------------------------------------------------------------------------- */

static struct store *store;
static struct slot *slot;
static struct base *base;
static struct delta *frozen, *scratch;
static char dir[64];
static int n_bases;

static void open_base(struct base **ret, bool copy)
{
    char path[96];
    struct base_options o = {
        .path = path, .map_bytes = 1ull << 30, .readers_max = STORE_SLOTS_MAX + 6, .no_sync = true};

    snprintf(path, sizeof path, "%s/base-%d", dir, n_bases++);
    REQUIRE(mkdir(path, 0700) == 0);
    REQUIRE((copy ? base_copy(base, path) : base_create(&o, 1, 2, S("conf"))) == 0);
    REQUIRE(base_open(&o, ret) == 0);
}

static void make_keys(void)
{
    static uint8_t storage[KEYS][1300];
    static const char letters[] = {'\0', 'a', 'b', '\xff'};

    for (int i = 0; i < KEYS;) {
        size_t n = 1 + below(4);
        struct slice k = {storage[i], n};
        int at = i;

        for (size_t j = 0; j < n; j++)
            storage[i][j] = (uint8_t)letters[below(4)];
        if (i % 5 == 0) { /* long ones, that agree over several chunks of base's index */
            size_t more = 499 + below(4) + 500 * below(2);

            memset(storage[i], 'l', more);
            memcpy(storage[i] + more, letters + 1, 1 + below(3));
            k.len = more + 1 + below(3);
        }
        for (int j = 0; j < i; j++)
            if (slice_eq(keys[j], k))
                at = -1;
        if (at < 0)
            continue;
        for (; at > 0 && slice_cmp(k, keys[at - 1]) < 0; at--)
            keys[at] = keys[at - 1];
        keys[at] = k;
        i++;
    }
}

/* Appends a change to the array and to d; what it says of create and version follows from the array. */
static void change(struct delta *d, int key, struct rev rev, bool tombstone)
{
    int before = find_live(key, rev.main);
    static uint8_t body[VALUE_MAX + 2000];
    struct past *p = &past[n_past];
    struct change c;

    REQUIRE(n_past < MAX);
    *p = (struct past){.key = key, .rev = rev, .tombstone = tombstone};
    if (!tombstone) {
        p->create = before >= 0 ? past[before].create : rev.main;
        p->version = before >= 0 ? past[before].version + 1 : 1;
        p->lease = below(3) ? 0 : 1 + (int64_t)below(5);
        p->value_len = (uint32_t)(below(20) ? below(12) : below(VALUE_MAX));
        p->value_seed = (uint32_t)below(sizeof values - VALUE_MAX);
    }
    n_past++;
    c = (struct change){.key = keys[key],
                        .rev = rev,
                        .tombstone = tombstone,
                        .create_revision = p->create,
                        .version = p->version,
                        .lease = p->lease};
    c.body = slice_of(body, body_size(&c, value_of(p)));
    body_encode(&c, value_of(p), body);
    REQUIRE(delta_put(d, &c) == 0);
}

/* Some changes of revision rev; returns how many. Deletes only what is there, as apply does. */
static uint32_t change_some(struct delta *d, int64_t rev)
{
    uint32_t sub = 0;

    for (size_t n = below(4) ? 1 : 1 + below(6); n > 0; n--) {
        int key = (int)below(KEYS);
        bool tombstone = below(3) == 0 && find_live(key, rev) >= 0;

        change(d, key, (struct rev){rev, sub++}, tombstone);
        if (below(10) == 0 && find_live(key, rev) >= 0)
            change(d, key, (struct rev){rev, sub++}, true);
    }
    return sub;
}

static void publish(void)
{
    static uint64_t index;

    store_publish(store, ++index, C, R);
}

static void freeze(void)
{
    struct seal s = {
        .applied_index = store_applied(store), .revision = R, .compact_revision = C, .conf = S("conf")};

    if (store_frozen(store))
        return;
    for (int k = 0; k < KEYS; k++)
        s.key_count += find_live(k, R) >= 0;
    REQUIRE(store_freeze(store, &s, &frozen) == 0);
}

static void flush(void)
{
    if (store_frozen(store) == NULL)
        return;
    REQUIRE(base_flush(base, frozen) == 0);
    if (below(2)) { /* in base and yet still in layers: a reader may see that */
        struct view v;

        REQUIRE(view_open(store, slot, &v) == 0);
        view_close(&v);
    }
    store_flushed(store);
    (void)store_reclaim(store);
}

static void swap_base(void)
{
    struct base *copy;

    open_base(&copy, true);
    base = copy;
    REQUIRE(store_swap_base(store, base) == 0);
    CHECK(store_reclaim(store) == 0);
}

/* ---- one operation each, checked --------------------------------------------------------------- */

static ProtobufCBinaryData data(struct slice s)
{
    return (ProtobufCBinaryData){.len = s.len, .data = (uint8_t *)(uintptr_t)s.ptr};
}

static int64_t some_rev(void)
{
    return below(4) ? (int64_t)below((size_t)R + 3) : -(int64_t)below(3);
}

static void random_request(Etcdserverpb__RangeRequest *q)
{
    static uint8_t end[4];

    etcdserverpb__range_request__init(q);
    q->key = data(keys[below(KEYS)]);
    if (below(4) == 0)
        q->key = data(S("\0"));
    switch (below(6)) {
    case 0:
        q->range_end = data(S("\0"));
        break;
    case 1:
        q->range_end = data(keys[below(KEYS)]);
        break;
    case 2:
        end[0] = "\0ab\xff"[below(4)];
        end[1] = (uint8_t)rnd();
        q->range_end = data(slice_of(end, 1 + below(2)));
        break;
    case 3:
        q->range_end = data(S("\xff\xff\xff\xff\xff"));
        break;
    }
    q->revision = below(3) ? 0 : some_rev();
    q->limit = below(3) ? 0 : below(8) ? (int64_t)below(12) : below(2) ? -1 : INT64_MAX;
    if (below(3) == 0)
        q->sort_order = (int)below(3);
    if (below(3) == 0)
        q->sort_target = (int)below(5);
    if (below(5) == 0)
        q->min_mod_revision = some_rev();
    if (below(5) == 0)
        q->max_mod_revision = some_rev();
    if (below(5) == 0)
        q->min_create_revision = some_rev();
    if (below(5) == 0)
        q->max_create_revision = some_rev();
    q->keys_only = below(4) == 0;
    q->count_only = below(6) == 0;
}

static void say_request(const Etcdserverpb__RangeRequest *q)
{
    printf("# key[%zu] end[%zu] revision %lld (C %lld R %lld) limit %lld order %d target %d mod %lld..%lld "
           "create "
           "%lld..%lld keys_only %d count_only %d\n",
           q->key.len, q->range_end.len, (long long)q->revision, (long long)C, (long long)R,
           (long long)q->limit, q->sort_order, q->sort_target, (long long)q->min_mod_revision,
           (long long)q->max_mod_revision, (long long)q->min_create_revision,
           (long long)q->max_create_revision, q->keys_only, q->count_only);
}

static bool same_row(const Mvccpb__KeyValue *kv, const struct past *p, bool keys_only)
{
    struct slice value = keys_only ? SLICE_NONE : value_of(p);

    return slice_eq(slice_of(kv->key.data, kv->key.len), keys[p->key]) && kv->create_revision == p->create &&
           kv->mod_revision == p->rev.main && kv->version == p->version && kv->lease == p->lease &&
           slice_eq(slice_of(kv->value.data, kv->value.len), value);
}

static void check_range(void)
{
    static const struct mvcc_limits none = {0};
    Etcdserverpb__RangeRequest q;
    Etcdserverpb__RangeResponse got;
    struct want want;
    struct arena a;
    struct view v;
    int n_before = n_past, rc;
    int64_t now = R;

    arena_init(&a, 16 << 20, NULL, 0);
    random_request(&q);
    REQUIRE(mvcc_check_range(&q) == 0);
    REQUIRE(view_open(store, slot, &v) == 0);
    REQUIRE(v.rev == R && v.compact_rev == C);
    if (below(8) == 0) { /* as a txn sees it: its own changes on top, at the revision it will get */
        delta_reset(scratch);
        (void)change_some(scratch, R + 1);
        v.scratch = scratch;
        now = R + 1;
    }
    range_reference(&q, now, &want);
    etcdserverpb__range_response__init(&got);
    rc = mvcc_range(&v, now, &q, &none, &a, &got);
    if (rc != want.err ||
        (rc == 0 && (got.count != want.count || got.more != want.more || got.n_kvs != (size_t)want.n))) {
        say_request(&q);
        printf("# %d count %lld more %d n %zu, should be %d count %d more %d n %d\n", rc,
               (long long)got.count, got.more, got.n_kvs, want.err, want.count, want.more, want.n);
        CHECK(!"the answer's size");
    } else if (rc == 0) {
        for (int i = 0; i < want.n; i++)
            if (!same_row(got.kvs[i], want.row[i], q.keys_only)) {
                say_request(&q);
                printf("# row %d\n", i);
                CHECK(!"a row");
            }
    }
    n_past = n_before; /* the scratch is forgotten */
    view_close(&v);
    arena_fini(&a);
}

static void check_hash(void)
{
    int64_t rev = some_rev(), compact_rev = -7, hash_rev = -7;
    uint32_t hash = 0;
    int rc = mvcc_hashkv(store, slot, rev, &hash, &compact_rev, &hash_rev);

    if (rev > R) {
        CHECK(rc == ERR_FUTURE_REV);
    } else if (rev > 0 && rev < C) {
        CHECK(rc == ERR_COMPACTED);
    } else {
        REQUIRE(rc == 0);
        CHECK(compact_rev == C && hash_rev == (rev ? rev : R));
        CHECK(hash == hash_reference(hash_rev));
    }
}

struct log_walk {
    int at; /* in past */
    int n_bad;
};

static int walk_log(void *ctx, const struct change *c)
{
    struct log_walk *w = ctx;
    const struct past *p = &past[w->at++];

    w->n_bad += w->at > n_past || rev_cmp(c->rev, p->rev) || !slice_eq(c->key, keys[p->key]) ||
                c->tombstone != p->tombstone || c->lease != p->lease || c->version != p->version;
    return 0;
}

static void check_log(void)
{
    int64_t from = (C < 0 ? 0 : C + 1) + (int64_t)below((size_t)(R - C) + 2), to = some_rev();
    struct log_walk w = {0};
    struct arena a;
    struct view v;
    int end;

    arena_init(&a, 16 << 20, NULL, 0);
    REQUIRE(view_open(store, slot, &v) == 0);
    while (w.at < n_past && past[w.at].rev.main < from)
        w.at++;
    for (end = w.at; end < n_past && past[end].rev.main <= to; end++)
        continue;
    CHECK(view_log_scan(&v, from, to, &a, walk_log, &w) == 0);
    CHECK(w.n_bad == 0 && w.at == end);
    view_close(&v);
    arena_fini(&a);
}

static void check_lease(void)
{
    int64_t lease = 1 + (int64_t)below(6);
    struct slice *got;
    struct arena a;
    struct view v;
    size_t n, want = 0;

    arena_init(&a, 1 << 20, NULL, 0);
    REQUIRE(view_open(store, slot, &v) == 0);
    REQUIRE(view_lease_keys(&v, lease, &a, &got, &n) == 0);
    for (int k = 0; k < KEYS; k++) {
        int i = find_live(k, R);

        if (i >= 0 && past[i].lease == lease) {
            CHECK(want < n && slice_eq(got[want], keys[k]));
            want++;
        }
    }
    CHECK(n == want);
    view_close(&v);
    arena_fini(&a);
}

/* Then no key is alive: HashKV's odd case, until the next put. */
static void delete_all(void)
{
    uint32_t sub = 0;

    for (int k = 0; k < KEYS; k++)
        if (find_live(k, R) >= 0)
            change(store_live(store), k, (struct rev){R + 1, sub++}, true);
    R += sub > 0;
    publish();
    if (below(2) && R > C + 1)
        compact_reference(C + 1 + (int64_t)below((size_t)(R - C)));
    publish();
    check_hash();
}

static void step(void)
{
    size_t what = below(1000);

    if (what < 350) {
        (void)change_some(store_live(store), R + 1);
        R++;
        publish();
    } else if (what < 351) {
        delete_all();
    } else if (what < 354 && R > C + 1) {
        compact_reference(C + 1 + (int64_t)below((size_t)(R - C)));
        publish();
    } else if (what < 380) {
        freeze();
    } else if (what < 410) {
        flush();
    } else if (what < 430) {
        REQUIRE(base_sweep(base, NULL) >= 0);
    } else if (what < 432 && store_frozen(store) == NULL) {
        swap_base();
    } else if (what < 500) {
        check_log();
    } else if (what < 550) {
        check_lease();
    } else if (what < 570) {
        check_hash();
    } else {
        check_range();
    }
}

static void start(void)
{
    snprintf(dir, sizeof dir, "%s/cairn-mvcc-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    REQUIRE(mkdtemp(dir) != NULL);
    for (size_t i = 0; i < sizeof values; i++)
        values[i] = (uint8_t)("ab"[below(2)]);
    make_keys();
    open_base(&base, false);
    REQUIRE(store_new(base, &store) == 0);
    REQUIRE((slot = slot_new(store)) != NULL);
    REQUIRE((scratch = delta_new()) != NULL);
}

static void finish(void)
{
    char command[128];

    flush();
    slot_free(store, slot);
    CHECK(store_reclaim(store) == 0);
    store_free(store);
    delta_free(scratch);
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    CHECK(system(command) == 0);
}

/* ---- the tests ----------------------------------------------------------------------------------- */

static void fresh_store_hashes_as_etcds(void)
{
    uint32_t hash;
    int64_t compact_rev, hash_rev;

    REQUIRE(mvcc_hashkv(store, slot, 0, &hash, &compact_rev, &hash_rev) == 0);
    CHECK(hash == 1084519789 && compact_rev == -1 && hash_rev == 1); /* reference 2.10, seen on 3.7.1 */
    REQUIRE(mvcc_hashkv(store, slot, -5, &hash, &compact_rev, &hash_rev) == 0);
    CHECK(hash == 1084519789 && hash_rev == -5);
}

static void answers_as_the_array(void)
{
    int ops = getenv("OPS") ? atoi(getenv("OPS")) : 10000;

    for (int i = 0; i < ops && tap_bad == 0; i++)
        step();
    printf("# %d changes, R %lld, C %lld, %d bases\n", n_past, (long long)R, (long long)C, n_bases);
}

static void checks_need_no_state(void)
{
    Etcdserverpb__RangeRequest q = ETCDSERVERPB__RANGE_REQUEST__INIT;

    CHECK(mvcc_check_range(&q) == ERR_KEY_EMPTY);
    q.key = data(S("k"));
    CHECK(mvcc_check_range(&q) == 0);
    q.sort_order = 3;
    CHECK(mvcc_check_range(&q) == ERR_SORT_OPTION);
    q.sort_order = 2, q.sort_target = 5;
    CHECK(mvcc_check_range(&q) == ERR_SORT_OPTION);
    q.sort_target = -1;
    CHECK(mvcc_check_range(&q) == ERR_SORT_OPTION);
}

static void long_reads_are_sent_away(void)
{
    Etcdserverpb__RangeRequest q = ETCDSERVERPB__RANGE_REQUEST__INIT;
    Etcdserverpb__RangeResponse got = ETCDSERVERPB__RANGE_RESPONSE__INIT;
    struct mvcc_limits lim = {.rows_max = 3};
    struct arena a;
    struct view v;

    q.key = q.range_end = data(S("\0"));
    arena_init(&a, 1 << 20, NULL, 0);
    R++;
    for (int i = 0; i < 10; i++)
        change(store_live(store), i, (struct rev){R, (uint32_t)i}, false);
    publish();
    REQUIRE(view_open(store, slot, &v) == 0);
    CHECK(mvcc_range(&v, R, &q, &lim, &a, &got) == MVCC_TOO_LONG);
    lim.rows_max = KEYS;
    CHECK(mvcc_range(&v, R, &q, &lim, &a, &got) == 0 && got.count >= 10);
    arena_fini(&a);
    arena_init(&a, 700, NULL, 0);
    CHECK(mvcc_range(&v, R, &q, &lim, &a, &got) == ERR_ARENA_FULL);
    view_close(&v);
    arena_fini(&a);
}

int main(void)
{
    seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 0)
                          : (uint64_t)time(NULL) * 2654435761u + (uint64_t)getpid();
    printf("# SEED=%llu\n", (unsigned long long)seed);
    start();
    TEST(checks_need_no_state);
    TEST(fresh_store_hashes_as_etcds);
    TEST(answers_as_the_array);
    TEST(long_reads_are_sent_away);
    finish();
    return tap_done();
}
