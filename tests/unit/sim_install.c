/* SPDX-License-Identifier: Apache-2.0 */
/* sim_install.c - a snapshot's installation against every state that a power cut may leave (RELIABILITY C2).
 *
 * A member with a store and a log (in a third of the scripts in a directory of its own) takes a snapshot while its old
 * log still grows and its old store is flushed, installs it, goes on from there, flushes (LMDB's commits), lets its log
 * go and removes what is over. Each call by which that changes the disk is recorded (tests/crashfs.h); after each of
 * them, crash states are made and opened as the daemon opens its data directory. Proves, for each: it is never refused;
 * it is the old state whole or the new state whole, base and log fit each other, and the state is what it was at the
 * sender after as many entries; no entry, vote or snapshot that was acknowledged is missing. Some are used: the
 * snapshot is taken again, or entries are appended, flushed and found by one more start; nothing half made stays
 * behind. Some recoveries are cut themselves; and some follow a kill that lost nothing, so that what the process before
 * had not synced is still at risk when this one goes on from it.
 *
 *     SEED=7 build/tests/unit/sim_install        STATES=100000 for more than the default
 */
#include "crashfs_cuts.h"

enum { OLD = 25, STORED = 32, SNAP = 90, LAST = 130, SEGMENT_BYTES = 128 << 10 };
#include <signal.h>
#include "daemon/wal_impl.h"
#include "member_rig.h"
#include "splitmix.h"

#define STATES_DEFAULT 10000

enum { PER_POINT = 24, LEDGER_MAX = 512 };

/* What a start may find: which log, and what it says. */
struct content {
    bool is_new;
    uint64_t term, vote, last, commit;
};

/* From when on what is promised (`lo`), and what may be there besides (`hi`): what is under way. */
struct ledger {
    struct { uint32_t ops; struct content lo, hi; } at[LEDGER_MAX];
    uint32_t n;
};

static struct {
    struct crashfs *fs;        /* the record that is being made */
    struct ledger *ledger;     /* and what it promises */
    struct content found;      /* of the last start */
    const struct content *lo, *hi; /* of the crash state being looked at */
    struct crashfs_cuts cuts;
    uint64_t dice, states, scripts, old, nested, kills, used, fails, want;
    char root[64], work[96], log[128], place[128];
    bool split;                /* the log lies in a directory of its own, --wal-dir */
    struct crashfs *template[2];
    uint32_t at;               /* the crash state being looked at: after this many operations */
    unsigned depth;
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
static struct rng rng = {rng_next};

static void wrong(const char *what, uint64_t a, uint64_t b)
{
    if (++g.fails > 5)
        return;
    printf("# SEED=%llu, state %llu: %s (%llu, %llu); cut after call %u%s\n", (unsigned long long)seed,
           (unsigned long long)g.states, what, (unsigned long long)a, (unsigned long long)b, g.at,
           g.depth ? " of a recovery" : "");
    fflush(stdout);
}

/* LMDB's map beyond the end of its file, or an assertion: said as any other failure. */
static void caught(int sig)
{
    wrong(sig == SIGABRT ? "an assertion fails" : "memory that is not there", (uint64_t)sig, 0);
    crashfs_recording = NULL;
    crashfs_remove(g.root);
    printf("not ok 1 - every_crash_state\n");
    fflush(stdout);
    _exit(1);
}

/* ---- what is promised ------------------------------------------------------------------------------------- */

static struct content content_of(const struct member_rig *m)
{
    const struct wal_state *s = &m->boot.wal_state;

    return (struct content){s->term == NEW_TERM, s->term, s->vote, s->last_index, s->commit};
}

static bool content_same(const struct content *a, const struct content *b)
{
    return a->is_new == b->is_new && a->term == b->term && a->vote == b->vote && a->last == b->last &&
           a->commit == b->commit;
}

static void note(struct content lo, struct content hi)
{
    struct ledger *l = g.ledger;

    if (l == NULL)
        return;
    REQUIRE(l->n < LEDGER_MAX);
    l->at[l->n].ops = g.fs->n_ops;
    l->at[l->n].lo = lo;
    l->at[l->n++].hi = hi;
}

static void append(struct member_rig *m, uint64_t last, uint64_t commit)
{
    struct content lo = content_of(m), hi = lo;

    hi.last = last;
    hi.commit = commit;
    note(lo, hi);
    member_append(m, last, commit);
    note(hi, hi);
}

static void install(struct member_rig *m)
{
    struct content lo = content_of(m);

    note(lo, (struct content){true, NEW_TERM, NEW_VOTE, SNAP, SNAP});
    REQUIRE(member_install(m) == 0);
    note(content_of(m), content_of(m));
    m->boot.wal->options.rng = &rng;
    member_settle(m);
}

/* ---- a life ------------------------------------------------------------------------------------------------- */

static void flush(struct member_rig *m)
{
    rig_flush(&m->rig);
    REQUIRE(wal_release(m->boot.wal, m->rig.apply->applied) == 0);
}

/* While the snapshot comes. */
static void old_life(struct member_rig *m)
{
    uint64_t last = m->boot.wal_state.last_index, commit = m->boot.wal_state.commit, to = last + dice(4);

    switch (dice(4)) {
    case 0:
        if (to < SNAP)
            append(m, to, commit + dice(last - commit + 1));
        break;
    case 1:
        if (commit > m->rig.apply->applied)
            member_apply(m, commit);
        break;
    case 2:
        flush(m);
        break;
    default:
        break;
    }
    REQUIRE(wal_idle(m->boot.wal) == 0);
}

static void new_life(struct member_rig *m, unsigned steps)
{
    for (unsigned i = 0; i < steps; i++) {
        uint64_t to = m->boot.wal_state.last_index + 1 + dice(8);

        if (to <= LAST) {
            append(m, to, to - dice(2));
            member_apply(m, m->boot.wal_state.commit);
        }
        if (dice(2))
            flush(m);
        REQUIRE(wal_idle(m->boot.wal) == 0);
    }
    member_tidy(m);
    REQUIRE(m->rig.fatal == 0);
}

/* ---- judging --------------------------------------------------------------------------------------------- */

static void expect(const struct ledger *l, uint32_t k, struct content *ret_lo, struct content *ret_hi)
{
    for (uint32_t i = 0; i < l->n && l->at[i].ops <= k; i++) {
        *ret_lo = l->at[i].lo;
        *ret_hi = l->at[i].hi;
    }
}

static bool entries_are_right(struct member_rig *m)
{
    for (uint64_t i = m->boot.wal_state.first_index + 1; i <= m->boot.wal_state.last_index; i++) {
        const struct entry *want = sender.log[i];
        struct entry *e;
        bool same;

        if (wal_read(m->boot.wal, i, &e) != 0)
            return false;
        same = e->term == want->term && e->len == want->len && memcmp(e->payload, want->payload, e->len) == 0;
        entry_unref(e);
        if (!same)
            return false;
    }
    return true;
}

/* Opens what is there. False: it is refused or not what it should be; then nothing is open. */
static bool start(struct member_rig *m, const struct content *lo, const struct content *hi)
{
    if (member_try_open(m, g.place, g.split ? g.log : "", true) != 0) {
        wrong(m->boot.error, 0, 0);
        return false;
    }
    m->boot.wal->options.rng = &rng;
    m->boot.wal->options.segment_bytes = SEGMENT_BYTES;
    g.found = content_of(m);
    if (!content_same(&g.found, lo) && !content_same(&g.found, hi))
        wrong("the log is neither what was promised nor what was under way", g.found.last, lo->last);
    else if (g.found.is_new != (m->rig.apply->applied >= SNAP))
        wrong("base and log are of two states", m->rig.apply->applied, g.found.last);
    else if (m->rig.apply->applied < lo->commit || !member_is_right(m))
        wrong("the state is none that ever was", m->rig.apply->applied, lo->commit);
    else if (!entries_are_right(m))
        wrong("the log's entries are none that ever were", m->boot.wal_state.first_index, g.found.last);
    else
        return true;
    member_close(m);
    return false;
}

/* All that a start leaves, once it has tidied up. */
static void only_what_counts(struct member_rig *m, const char *place)
{
    char base[32], wal[32];
    DIR *d = opendir(place);
    struct dirent *e;

    (void)snprintf(base, sizeof base, "base-%u", m->boot.dir.base);
    (void)snprintf(wal, sizeof wal, "wal-%u", m->boot.dir.wal);
    while (d && (e = readdir(d)) != NULL)
        if (*e->d_name != '.' && strcmp(e->d_name, "CURRENT") && strcmp(e->d_name, base) && strcmp(e->d_name, wal) &&
            strcmp(e->d_name, "CURRENT.new") && strcmp(e->d_name, "incoming"))
            wrong("something half made stays behind", (uint64_t)*e->d_name, m->boot.dir.base);
    if (d)
        closedir(d);
}

/* It is taken into use, and found by another start. */
static void use(struct member_rig *m)
{
    if (!g.found.is_new) {
        member_receive(m, NULL);
        install(m);
    }
    new_life(m, 2);
    only_what_counts(m, g.place);
    if (g.split)
        only_what_counts(m, g.log);
}

static void use_and_start_again(struct member_rig *m)
{
    struct content now;

    use(m);
    now = content_of(m);
    if (base_check(store_base(m->rig.store), NULL) != 0)
        wrong("the store fails its check", 0, 0);
    member_close(m);
    g.used++;
    if (start(m, &now, &now))
        member_close(m);
}

/* ---- crash states ------------------------------------------------------------------------------------------ */

static void explore(struct crashfs *f, const struct ledger *l, uint32_t from, unsigned per_point);

/* From the tree that is in place a start and some life, recorded and then cut as well. */
static void second_life(struct crashfs *f, const struct content *lo, const struct content *hi)
{
    struct ledger *l = calloc(1, sizeof *l);
    struct member_rig m;
    uint32_t from = f->n_ops;
    bool good;

    REQUIRE(l);
    g.fs = f;
    g.ledger = l;
    note(*lo, *hi);
    crashfs_recording = f;
    good = start(&m, lo, hi);
    if (good) {
        if (dice(2)) {
            uint64_t last = g.found.last;

            append(&m, last + 1, last);
            if (dice(2))
                flush(&m);
            member_tidy(&m);
        } else {
            use(&m);
        }
        REQUIRE(crashfs_is_true(f));
        crashfs_recording = NULL;
        member_close(&m);
    }
    crashfs_recording = NULL;
    g.ledger = NULL;
    if (good) {
        g.depth = 1;
        explore(f, l, from, 2);
        g.depth = 0;
    }
    free(l);
}

static struct crashfs *record_new(void)
{
    struct crashfs *f = calloc(1, sizeof *f);

    REQUIRE(f);
    return f;
}

/* One crash state. False: no more of them. */
static bool check(struct crashfs *f, const struct crashfs_tree *t)
{
    const struct content *lo = g.lo, *hi = g.hi;
    struct member_rig m;
    uint32_t at = g.at;

    g.states++;
    crashfs_place(f, t, false);
    if (g.depth == 0 && g.states % 97 == 0) { /* the recovery is cut too */
        struct crashfs *second = record_new();

        crashfs_init(second, g.work);
        g.nested++;
        second_life(second, lo, hi);
        g.lo = lo; /* it has looked at others */
        g.hi = hi;
        g.at = at;
        crashfs_fini(second);
        free(second);
        return g.fails == 0;
    }
    if (!start(&m, lo, hi))
        return false;
    g.old += !g.found.is_new;
    if (g.states % 37 == 0)
        use_and_start_again(&m);
    else
        member_close(&m);
    return g.fails == 0;
}

/* The process is killed after k calls: all it did is there, and what it had not synced is still at risk. */
static void kill_at(struct crashfs *f, uint32_t k, const struct content *lo, const struct content *hi)
{
    struct crashfs *second = record_new();
    struct crashfs_tree *t = crashfs_after(f, k, NULL);

    crashfs_branch(second, f, k);
    crashfs_place(second, t, true);
    g.kills++;
    g.at = k;
    second_life(second, lo, hi);
    crashfs_tree_free(t, CRASHFS_INODES);
    free(t);
    crashfs_fini(second);
    free(second);
}

static void explore_at(struct crashfs *f, const struct ledger *l, uint32_t k, unsigned per_point)
{
    struct content lo = {0}, hi = {0};

    expect(l, k, &lo, &hi);
    g.lo = &lo;
    g.hi = &hi;
    g.at = k;
    /* The same bytes, but more or less is promised of them: another state. */
    crashfs_cut(&g.cuts, f, k, per_point, (lo.last * 2 + lo.is_new) * 1000003u + hi.last * 77 + g.depth);
    if (g.depth == 0 && g.fails == 0 && dice(12) == 0)
        kill_at(f, k, &lo, &hi);
}

static void explore(struct crashfs *f, const struct ledger *l, uint32_t from, unsigned per_point)
{
    for (uint32_t k = from; k <= f->n_ops && g.fails == 0; k++)
        if (g.depth == 0 || dice(3) == 0)
            explore_at(f, l, k, per_point);
}

/* ---- scripts --------------------------------------------------------------------------------------------------- */

/* Both kinds of member, as they are before the snapshot. */
static void templates_make(void)
{
    for (int i = 0; i < 2; i++) {
        crashfs_remove(g.work);
        REQUIRE(mkdir(g.work, 0700) == 0);
        member_make(g.place, i ? g.log : "");
        g.template[i] = record_new();
        crashfs_init(g.template[i], g.work);
    }
}

static void templates_free(void)
{
    for (int i = 0; i < 2; i++) {
        crashfs_fini(g.template[i]);
        free(g.template[i]);
    }
}

static void script(void)
{
    struct crashfs *f = record_new();
    struct ledger *l = calloc(1, sizeof *l);
    struct member_rig m;

    REQUIRE(l);
    g.split = dice(3) == 0;
    crashfs_place(g.template[g.split], &g.template[g.split]->start, false);
    crashfs_init(f, g.work);
    g.fs = f;
    g.ledger = l;
    crashfs_recording = f;
    member_open(&m, g.place, g.split ? g.log : "", true);
    m.boot.wal->options.rng = &rng;
    m.boot.wal->options.segment_bytes = SEGMENT_BYTES;
    note(content_of(&m), content_of(&m));
    l->at[0].ops = 0;
    for (uint64_t i = dice(3); i > 0; i--)
        old_life(&m);
    member_receive(&m, old_life);
    install(&m);
    new_life(&m, 3);
    REQUIRE(crashfs_is_true(f));
    crashfs_recording = NULL;
    g.ledger = NULL;
    member_close(&m);
    crashfs_cuts_forget(&g.cuts);
    explore(f, l, 0, PER_POINT);
    crashfs_fini(f);
    free(f);
    free(l);
}

static void every_crash_state(void)
{
    while (g.states < g.want && g.fails == 0 && g.scripts < 10000) {
        g.dice = seed + g.scripts++;
        script();
    }
    printf("# %llu crash states of %llu scripts, %llu moments; %llu found the old state, %llu were used, %llu recoveries "
           "cut too, %llu after a kill\n",
           (unsigned long long)g.states, (unsigned long long)g.scripts, (unsigned long long)g.cuts.moments,
           (unsigned long long)g.old, (unsigned long long)g.used, (unsigned long long)g.nested,
           (unsigned long long)g.kills);
    CHECK(g.fails == 0);
    CHECK(g.fails || (g.states >= g.want && g.old > g.want / 10 && g.old < g.states * 9 / 10 && g.used > g.want / 100 &&
                      g.nested > g.want / 200 && g.kills > 0));
}

int main(void)
{
    g.want = member_begin(STATES_DEFAULT, g.root, sizeof g.root);
    snprintf(g.work, sizeof g.work, "%s/w", g.root);
    snprintf(g.place, sizeof g.place, "%s/data", g.work);
    snprintf(g.log, sizeof g.log, "%s/log", g.work);
    crashfs_cuts_init(&g.cuts, check, dice);
    sender_new();
    templates_make();
    signal(SIGBUS, caught);
    signal(SIGSEGV, caught);
    signal(SIGABRT, caught);
    TEST(every_crash_state);
    sender_free();
    templates_free();
    crashfs_cuts_fini(&g.cuts);
    crashfs_remove(g.root);
    return tap_done();
}
