/* SPDX-License-Identifier: Apache-2.0 */
/* sim_crash.c - the log against every state that a power cut may leave (RELIABILITY C2).
 *
 * Short scripts of appends, replaced tails, votes, releases and restarts run over a fakedisk; after each call to it,
 * every crash state (tests/sim/explore.h) is recovered from. Proves RestartPreservesAcked and DirEntryDurable: the log
 * opens; it is exactly what the last sync left, or that with the one batch that was under way; what it says can be
 * read; and it goes on from there: a batch appended after the recovery is there at the next one. Some recoveries are
 * cut themselves. In some states blocks that were never written hold what older segments held, or noise: they change
 * nothing. And in some a batch of another segment, whole, stands where the next one would (a misdirected write): it is
 * refused, or does not matter, and is never believed.
 *
 *     SEED=7 build/tests/unit/sim_crash        STATES=200000 for more than the default
 */
#include "../sim/explore.h"
#include "daemon/wal_impl.h"
#include "splitmix.h"
#include "tap.h"
#include <unistd.h>

#define STATES_DEFAULT 50000
#define ENTRIES_MAX    400

enum { PAST_MAX = 16, IMAGE_BYTES = 64 << 10 };

/* A log's contents. */
struct content {
    uint64_t first, last, term, vote;
    uint64_t term_of[ENTRIES_MAX], print_of[ENTRIES_MAX]; /* by index */
};

static struct {
    struct fakedisk disk;
    struct disk real; /* fakedisk's own functions */
    struct explorer x;
    struct rng rng;
    uint64_t seed, dice;
    struct wal *wal;
    struct content synced, next; /* what a sync has promised; that and the batch under way */
    uint64_t released;
    bool exploring, created, made;
    unsigned depth; /* 1: a cut within a recovery */
    uint64_t nested, torn, fails, offered, refused;
    struct image { /* what segments that are gone held; the oldest makes room */
        size_t n;
        uint8_t bytes[IMAGE_BYTES];
    } past[PAST_MAX];
    uint64_t n_past;
} g;

static uint64_t dice(uint64_t below)
{
    return splitmix64(&g.dice) % below;
}

static uint64_t rng_next(struct rng *r)
{
    (void)r;
    return dice(UINT64_MAX) + 1;
}

static uint64_t print(const uint8_t *p, size_t n)
{
    uint64_t h = n;

    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 1099511628211u;
    return h;
}

static struct wal_options options(struct fakedisk *d)
{
    return (struct wal_options){.disk = &d->disk,
                                .dir = "wal",
                                .segment_bytes = 32 << 10,
                                .rng = &g.rng,
                                .cluster_id = 1,
                                .member_id = 2};
}

/* ---- judging ------------------------------------------------------------------------------------------- */

static void wrong(const char *what, uint64_t a, uint64_t b)
{
    if (++g.fails <= 5)
        printf("# SEED=%llu, state %llu: %s (%llu, %llu)\n", (unsigned long long)g.seed,
               (unsigned long long)g.x.states, what, (unsigned long long)a, (unsigned long long)b);
}

static bool is_content(struct wal *w, const struct wal_state *st, const struct content *c)
{
    if (st->term != c->term || st->vote != c->vote || st->last_index != c->last || st->first_index > c->last)
        return false;
    for (uint64_t i = st->first_index + 1; i <= c->last; i++) {
        struct entry *e;
        bool same;

        if (wal_read(w, i, &e) != 0)
            return false;
        same = e->term == c->term_of[i] && print(e->payload, e->len) == c->print_of[i];
        entry_unref(e);
        if (!same)
            return false;
    }
    return true;
}

static struct entry *entry_make(uint64_t index, uint64_t term, size_t len)
{
    struct entry *e = entry_new(len);

    for (size_t i = 0; i < len; i++)
        e->payload[i] = (uint8_t)dice(256);
    e->index = index;
    e->term = term;
    return e;
}

/* One more batch, and another restart. */
static void goes_on(struct fakedisk *d, struct wal *w, const struct wal_state *st)
{
    struct entry *e = entry_make(st->last_index + 1, st->term + 1, dice(2000));
    struct wal_state hard = {.term = st->term + 1, .vote = 9}, again;
    struct wal_options o = options(d);
    char why[256];
    int err = wal_append(w, &e, 1, &hard, 0);

    err = err ? err : wal_sync(w);
    wal_close(w);
    fakedisk_crash(d, FAKE_LOSE_ALL);
    if (err == 0)
        err = wal_open(&o, &w, &again, why, sizeof why);
    if (err)
        wrong("the recovered log does not go on", (uint64_t)-err, 0);
    else if (again.last_index != e->index || again.last_term != e->term || again.vote != 9)
        wrong("the recovered log loses a batch", again.last_index, e->index);
    if (err == 0)
        wal_close(w);
    entry_unref(e);
}

static void after_call(struct fakedisk *d);

/* ---- bytes of other segments ---------------------------------------------------------------------------- */

static void remember(struct disk *disk, const char *path)
{
    struct image *to = &g.past[g.n_past % PAST_MAX];
    struct fake_inode *i = fakedisk_file((struct fakedisk *)disk, path);

    if (i == NULL || g.depth || i->view_size > sizeof to->bytes)
        return;
    memcpy(to->bytes, i->view, i->view_size);
    to->n = i->view_size;
    g.n_past++;
}

/* A segment that is gone, or another that is there. */
static struct slice some_segment(const struct fakedisk *d, uint64_t random)
{
    uint64_t past = g.n_past < PAST_MAX ? g.n_past : PAST_MAX, pick = random >> 8;

    if (past && random % 2)
        return slice_of(g.past[pick % past].bytes, g.past[pick % past].n);
    for (size_t k = 0; k < d->n_names; k++) {
        const struct fake_name *n = &d->name[(k + pick) % d->n_names];

        if (n->now && strstr(n->path, ".wal"))
            return slice_of(n->now->view, n->now->view_size);
    }
    return SLICE_NONE;
}

static struct slice stale(void *ctx, const struct fakedisk *d, uint64_t random)
{
    static uint8_t noise[IMAGE_BYTES];

    (void)ctx;
    if (random >> 60)
        return some_segment(d, random);
    for (size_t i = 0; i < sizeof noise; i += 8)
        put_u64le(noise + i, random = (random ^ random >> 27) * 0x94d049bb133111ebu);
    return slice_of(noise, sizeof noise);
}

/* The newest segment that was begun, and where its next batch would stand; NULL: there is none, or it has no room. */
static struct fake_inode *end_of_log(struct fakedisk *d, uint64_t *ret_at)
{
    struct wal_segment_head h, newest = {0};
    struct fake_inode *i = NULL;
    struct wal_batch b;

    for (size_t k = 0; k < d->n_names; k++) {
        struct fake_inode *o = strstr(d->name[k].path, ".wal") ? d->name[k].now : NULL;

        if (o && wal_segment_head_parse(slice_of(o->view, o->view_size), &h) == WAL_GOOD &&
            h.segment > newest.segment) {
            newest = h;
            i = o;
        }
    }
    *ret_at = WAL_SECTOR_BYTES;
    while (i && *ret_at + WAL_SECTOR_BYTES <= i->view_size &&
           wal_batch_parse(slice_of(i->view, i->view_size), *ret_at, newest.nonce, &b) == WAL_GOOD)
        *ret_at += wal_batch_bytes(b.body_bytes);
    return i && *ret_at + WAL_SECTOR_BYTES <= i->view_size ? i : NULL;
}

/* Puts a whole batch of another segment there, from the same place in that one. False: none lies there. */
static bool misdirect(struct fakedisk *d)
{
    struct slice from = some_segment(d, dice(UINT64_MAX));
    struct wal_batch b;
    uint64_t at;
    struct fake_inode *i = end_of_log(d, &at);

    if (i == NULL || !wal_batch_head_parse(from, at, 0, &b) || at + wal_batch_bytes(b.body_bytes) > i->view_size ||
        memcmp(i->view + at, from.ptr + at, WAL_BATCH_HEAD_BYTES) == 0)
        return false;
    fakedisk_poke(i, at, from.ptr + at, wal_batch_bytes(b.body_bytes));
    g.offered++;
    return true;
}

/* ---- judging a state ------------------------------------------------------------------------------------ */

/* A crash state: recovered, judged, used. */
static void check(void *ctx, struct fakedisk *d)
{
    bool foreign = g.created && g.depth == 0 && g.x.states % 5 == 1 && misdirect(d);
    struct wal_options o = options(d);
    struct wal_state st;
    char why[256] = "";
    struct wal *w;
    int err;

    (void)ctx;
    if (g.depth == 0 && g.x.states % 40 == 0) { /* the recovery is cut too, after each of its calls */
        struct disk hooked = g.disk.disk;

        g.depth = 1;
        d->disk = hooked;
        err = wal_open(&o, &w, &st, why, sizeof why);
        d->disk = g.real;
        g.depth = 0;
        g.nested++;
    } else {
        d->disk = g.real;
        err = wal_open(&o, &w, &st, why, sizeof why);
    }
    if (err && !g.created) { /* nothing points to it yet: it is made anew, over what is left */
        struct wal_state hard = {.term = 1};

        err = wal_create(&o, 0, 0, &hard);
        err = err ? err : wal_open(&o, &w, &st, why, sizeof why);
    }
    if (err == -EUCLEAN && foreign) {
        g.refused++;
        return;
    }
    if (err) {
        wrong(why, (uint64_t)-err, 0);
        return;
    }
    g.torn += st.cut_bytes > 0;
    if (!is_content(w, &st, &g.synced) && !is_content(w, &st, &g.next))
        wrong("the log is neither what was synced nor that and one batch", st.last_index, g.synced.last);
    if (st.first_index > g.released)
        wrong("entries are gone that nobody released", st.first_index, g.released);
    if (g.depth == 0 && g.x.states % 3 == 0)
        goes_on(d, w, &st);
    else
        wal_close(w);
}

/* ---- the disk seam, with a look after each call --------------------------------------------------------- */

static void after_call(struct fakedisk *d)
{
    if (g.exploring || g.depth)
        explore(&g.x, d, g.next.last * 131 + g.synced.last * 7 + g.synced.term + g.released * 17 + g.depth);
}

#define HOOK(name, params, args)                                                                             \
    static int hook_##name params                                                                            \
    {                                                                                                        \
        int err = g.real.name args;                                                                          \
        after_call((struct fakedisk *)disk);                                                                 \
        return err;                                                                                          \
    }
HOOK(pwrite, (struct disk * disk, struct disk_file *f, const void *buf, size_t n, uint64_t at),
     (disk, f, buf, n, at))
HOOK(fdatasync, (struct disk * disk, struct disk_file *f), (disk, f))
HOOK(fallocate, (struct disk * disk, struct disk_file *f, uint64_t size), (disk, f, size))
HOOK(truncate, (struct disk * disk, struct disk_file *f, uint64_t size), (disk, f, size))
HOOK(rename, (struct disk * disk, const char *from, const char *to), (disk, from, to))
HOOK(mkdir, (struct disk * disk, const char *path, mode_t mode), (disk, path, mode))
HOOK(fsync_dir, (struct disk * disk, const char *path), (disk, path))
HOOK(open, (struct disk * disk, const char *path, int flags, mode_t mode, struct disk_file **ret),
     (disk, path, flags, mode, ret))

static int hook_unlink(struct disk *disk, const char *path)
{
    int err;

    remember(disk, path);
    err = g.real.unlink(disk, path);
    after_call((struct fakedisk *)disk);
    return err;
}

static void hook(void)
{
    g.real = g.disk.disk;
    g.disk.disk.pwrite = hook_pwrite;
    g.disk.disk.fdatasync = hook_fdatasync;
    g.disk.disk.fallocate = hook_fallocate;
    g.disk.disk.truncate = hook_truncate;
    g.disk.disk.rename = hook_rename;
    g.disk.disk.unlink = hook_unlink;
    g.disk.disk.mkdir = hook_mkdir;
    g.disk.disk.fsync_dir = hook_fsync_dir;
    g.disk.disk.open = hook_open;
}

/* ---- scripts ------------------------------------------------------------------------------------------------ */

static void append_some(void)
{
    struct entry *e[6];
    uint64_t n = dice(6), first = g.synced.last + 1, commit = g.wal->state.commit;
    struct wal_state hard;
    bool vote = n == 0 || dice(4) == 0;

    g.next = g.synced;
    if (g.synced.last > commit && n && dice(4) == 0) { /* another leader's log */
        first = commit + 1 + dice(g.synced.last - commit);
        g.next.term++;
        vote = true;
    }
    if (vote) {
        g.next.term += dice(2);
        g.next.vote = g.next.term > g.synced.term ? dice(4) : g.synced.vote;
    }
    hard = (struct wal_state){.term = g.next.term, .vote = g.next.vote};
    for (uint64_t i = 0; i < n; i++) {
        e[i] = entry_make(first + i, g.next.term, dice(3) == 0 ? dice(2500) : dice(200));
        g.next.term_of[first + i] = e[i]->term;
        g.next.print_of[first + i] = print(e[i]->payload, e[i]->len);
        g.next.last = first + i;
    }
    REQUIRE(wal_append(g.wal, e, n, vote ? &hard : NULL, commit + dice(3)) == 0);
    REQUIRE(wal_sync(g.wal) == 0);
    g.synced = g.next;
    for (uint64_t i = 0; i < n; i++)
        entry_unref(e[i]);
}

static void reopen(void)
{
    struct wal_options o = options(&g.disk);
    struct wal_state st;
    char why[256];

    wal_close(g.wal);
    fakedisk_crash(&g.disk, FAKE_RANDOM);
    REQUIRE(wal_open(&o, &g.wal, &st, why, sizeof why) == 0);
    REQUIRE(is_content(g.wal, &st, &g.synced));
}

static void script(uint64_t seed)
{
    struct wal_options o = options(&g.disk);
    struct wal_state hard = {.term = 1}, st;
    char why[256];

    g.dice = seed;
    g.synced = g.next = (struct content){.term = 1};
    g.created = false;
    g.released = 0;
    fakedisk_init(&g.disk, seed);
    hook();
    g.exploring = true;
    REQUIRE(wal_create(&o, 0, 0, &hard) == 0);
    g.created = true;
    REQUIRE(wal_open(&o, &g.wal, &st, why, sizeof why) == 0);
    for (int step = 0; step < 14 && g.synced.last + 10 < ENTRIES_MAX; step++) {
        uint64_t what = dice(12);

        if (what == 0) {
            reopen();
        } else if (what <= 2 && g.wal->state.commit > 2) {
            uint64_t to = g.wal->state.commit - dice(2);

            if (to > g.released) /* what went stays gone when a later release asks for less */
                g.released = to;
            REQUIRE(wal_release(g.wal, to) == 0);
        } else {
            append_some();
        }
        REQUIRE(wal_idle(g.wal) == 0);
    }
    g.exploring = false;
    wal_close(g.wal);
    fakedisk_fini(&g.disk);
}

static void every_crash_state(void)
{
    const char *want = getenv("STATES");
    uint64_t states = want ? strtoull(want, NULL, 0) : STATES_DEFAULT, scripts = 0;

    g.x = (struct explorer){.check = check, .stale = stale, .seed = g.seed,
                            .seen = calloc(EXPLORE_SEEN, sizeof(uint64_t))};
    while (g.x.states < states && g.fails == 0 && scripts < 10000) {
        memset(g.x.seen, 0, EXPLORE_SEEN * sizeof(uint64_t));
        script(g.seed + scripts++);
    }
    free(g.x.seen);
    printf(
        "# %llu crash states of %llu scripts, %llu moments; %llu with a torn tail, %llu with stale blocks, %llu recoveries "
        "cut too; of %llu batches of another segment %llu were refused\n",
        (unsigned long long)g.x.states, (unsigned long long)scripts, (unsigned long long)g.x.points,
        (unsigned long long)g.torn, (unsigned long long)g.x.with_stale, (unsigned long long)g.nested,
        (unsigned long long)g.offered, (unsigned long long)g.refused);
    CHECK(g.fails == 0);
    CHECK(g.fails || (g.x.states >= states && g.torn > 100 && g.nested > 100));
    CHECK(g.fails || (g.x.with_stale > 100 && g.offered > 100));
}

int main(void)
{
    const char *seed = getenv("SEED");

    g.seed = seed ? strtoull(seed, NULL, 0) : (uint64_t)getpid() * 1000003u;
    g.rng.next = rng_next;
    printf("# SEED=%llu\n", (unsigned long long)g.seed);
    TEST(every_crash_state);
    return tap_done();
}
