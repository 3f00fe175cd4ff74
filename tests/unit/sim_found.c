/* SPDX-License-Identifier: Apache-2.0 */
/* sim_found.c - the making of a data directory against every state that a power cut may leave (RELIABILITY C2).
 *
 * A member starts where there is nothing, not even the directory: as the founder of a cluster, or to join one (then
 * a snapshot is installed); in a third of the scripts its log has a directory of its own. Then it acknowledges entries.
 * Each call by which that changes the disk is recorded (tests/crashfs.h), and after each of them crash states are made
 * and started in again. Proves, for each: the start succeeds, whatever was left; what it finds is a member whole, with
 * the same ids, one configuration, a store that passes its check and a log that fits it; and no entry that was
 * acknowledged is missing, so nothing is made anew once something was promised. Some starts follow a kill that lost
 * nothing, so that what the process before had not synced is still at risk when this one promises something.
 *
 *     SEED=7 build/tests/unit/sim_found        STATES=100000 for more than the default
 */
#include "crashfs_cuts.h"

enum { OLD = 5, STORED = 6, SNAP = 20, LAST = 30, SEGMENT_BYTES = 64 << 10 };
#include "member_rig.h"
#include "splitmix.h"

#define STATES_DEFAULT 3000

enum { PER_POINT = 40, ENTRIES_MAX = 6 };

static const char *const urls[] = {"http://127.0.0.1:2380", "http://127.0.0.1:2390"};

static struct {
    struct crashfs_cuts cuts;
    char root[64], work[96], place[128], log[128];
    bool joins, split;
    uint64_t dice, states, scripts, fails, want, anew, joined, whole, kills;
    uint64_t promised[64], next; /* the log's last entry, by promise, and the one under way */
    uint32_t promised_at[64], n_promised;
    uint64_t lo, hi;
} g;

static uint64_t dice(uint64_t below)
{
    return splitmix64(&g.dice) % below;
}

static void wrong(const char *what, uint64_t a, uint64_t b)
{
    if (++g.fails <= 5)
        printf("# SEED=%llu, state %llu: %s (%llu, %llu)%s%s\n", (unsigned long long)seed, (unsigned long long)g.states,
               what, (unsigned long long)a, (unsigned long long)b, g.joins ? ", joining" : "",
               g.split ? ", --wal-dir" : "");
    fflush(stdout);
}

/* ---- a start --------------------------------------------------------------------------------------------- */

static const char *ask(void *ctx, struct arena *a, const struct roster *r, struct bootstrap_cluster *ret)
{
    static bool started[] = {false, true};
    static struct roster_known known[] = {{.id = RIG_MEMBER, .urls = urls, .n_urls = 1},
                                          {.id = RIG_MEMBER + 1, .urls = urls + 1, .n_urls = 1}};

    (void)ctx;
    (void)a;
    (void)r;
    *ret = (struct bootstrap_cluster){.id = 1, .members = known, .started = started, .n = g.joins ? 2 : 1};
    return NULL;
}

static void flags(struct config *c)
{
    *c = (struct config){.name = "m", .data_dir = g.place, .wal_dir = g.split ? g.log : "",
                         .initial_cluster = g.joins ? "m=http://127.0.0.1:2380,n=http://127.0.0.1:2390" : "",
                         .initial_cluster_state = g.joins ? "existing" : "new", .initial_cluster_token = "a token",
                         .token_given = true, .name_given = true};
    arena_init(&c->arena, 1 << 20, NULL, 0);
    REQUIRE(config_parse_urls(&c->arena, urls[0], &c->advertise_peer) == NULL);
}

/* 0, and what is found is whole; or it has been said what is wrong, and nothing is open. */
static int start(struct bootstrap *b, struct config *c)
{
    uint64_t cluster = 1, member = RIG_MEMBER;
    struct roster r;

    flags(c);
    *b = (struct bootstrap){.ask = ask, .segment_bytes = SEGMENT_BYTES};
    if (bootstrap_open(b, c) != 0) {
        wrong(b->error, 0, 0);
        arena_fini(&c->arena);
        return -1;
    }
    if (!g.joins) {
        REQUIRE(roster_read(c, &r) == NULL);
        cluster = r.cluster_id;
        member = r.self->id;
    }
    if (b->cluster_id != cluster || b->member_id != member)
        wrong("it is another member", b->cluster_id, b->member_id);
    else if (!g.joins && (b->applied_index != 1 || b->conf.voters.n != 1 || b->conf.voters.ids[0] != member))
        wrong("it was founded otherwise", b->applied_index, b->conf.voters.n);
    else if (g.joins && b->applied_index != 0 && (b->applied_index != SNAP || b->conf.voters.n != 1))
        wrong("it has joined with a state that never was", b->applied_index, b->conf.voters.n);
    else if (base_check(b->base, NULL) != 0)
        wrong("the store fails its check", 0, 0);
    else
        return 0;
    bootstrap_close(b);
    arena_fini(&c->arena);
    return -1;
}

static void stop(struct bootstrap *b, struct config *c)
{
    bootstrap_close(b);
    arena_fini(&c->arena);
}

/* ---- a life ------------------------------------------------------------------------------------------------ */

static void promise(const struct crashfs *f, uint64_t last)
{
    REQUIRE(g.n_promised < 64);
    g.promised[g.n_promised] = last;
    g.promised_at[g.n_promised++] = f->n_ops;
}

static void append(struct bootstrap *b, const struct crashfs *f)
{
    uint64_t n = 1 + dice(2), last = b->wal_state.last_index;
    struct wal_state hard = {.term = b->wal_state.term ? b->wal_state.term : 1, .vote = b->wal_state.vote};

    REQUIRE(wal_append(b->wal, &sender.log[last + 1], n, &hard, last) == 0 && wal_sync(b->wal) == 0);
    b->wal_state.term = hard.term;
    b->wal_state.last_index += n;
    promise(f, b->wal_state.last_index);
}

static void install(struct bootstrap *b, const struct crashfs *f)
{
    struct member_rig m = {.boot = *b};
    struct base_options o = bootstrap_base_options();

    m.rig = (struct rig){.clock = {{rig_now_ms, rig_now_us, rig_wall_ms}, 1000000}, .quota = -1};
    rig_open_base(&m.rig, m.boot.base);
    m.rig.apply->o.datadir = &m.boot.dir;
    m.rig.apply->o.base = o;
    m.boot.base = NULL;
    member_receive(&m, NULL);
    REQUIRE(member_install(&m) == 0);
    promise(f, SNAP);
    member_settle(&m);
    member_tidy(&m);
    rig_close(&m.rig);
    *b = m.boot;
}

/* ---- crash states -------------------------------------------------------------------------------------------- */

static bool check(struct crashfs *f, const struct crashfs_tree *t)
{
    struct bootstrap b;
    struct config c;
    uint64_t last;

    (void)f;
    g.states++;
    crashfs_place(f, t, false);
    if (start(&b, &c) != 0)
        return false;
    last = b.wal_state.last_index;
    /* As long as nothing is promised, nothing but its founding may be there. */
    if (last != g.lo && last != g.hi && !(g.lo == 0 && last <= 1))
        wrong("an entry that was acknowledged is gone", last, g.lo);
    g.anew += g.lo == 0;
    g.joined += g.joins && last >= SNAP;
    g.whole += g.lo > 0;
    stop(&b, &c);
    if (g.fails == 0 && dice(8) == 0) { /* and once more */
        if (start(&b, &c) != 0)
            return false;
        if (b.wal_state.last_index != last)
            wrong("two starts find two logs", b.wal_state.last_index, last);
        stop(&b, &c);
    }
    return g.fails == 0;
}

/* What is promised after k calls, and what may be there besides. */
static void expect(uint32_t k)
{
    uint32_t i = 0;

    g.lo = 0;
    for (; i < g.n_promised && g.promised_at[i] <= k; i++)
        g.lo = g.promised[i];
    g.hi = i < g.n_promised ? g.promised[i] : g.lo;
}

static void cut_from(struct crashfs *f, uint32_t from, unsigned per_point, uint64_t salt)
{
    for (uint32_t k = from; k <= f->n_ops && g.fails == 0; k++) {
        expect(k);
        crashfs_cut(&g.cuts, f, k, per_point, g.lo * 100 + g.hi + salt);
    }
}

/* The process is killed after k calls, and another one starts and promises something. */
static void kill_at(struct crashfs *f, uint32_t k)
{
    struct crashfs *second = calloc(1, sizeof *second);
    struct crashfs_tree *t = crashfs_after(f, k, NULL);
    uint64_t lo, hi;
    struct bootstrap b;
    struct config c;

    REQUIRE(second);
    expect(k);
    lo = g.lo;
    hi = g.hi;
    crashfs_branch(second, f, k);
    crashfs_place(second, t, true);
    g.kills++;
    crashfs_recording = second;
    if (start(&b, &c) == 0) {
        g.n_promised = 0;
        promise(second, lo);
        g.promised_at[0] = 0;
        if (hi != b.wal_state.last_index && lo != b.wal_state.last_index && b.wal_state.last_index > 1)
            wrong("an entry that was acknowledged is gone after a kill", b.wal_state.last_index, lo);
        if (b.wal_state.last_index != lo && b.wal_state.last_index > 1) { /* what was under way is promised now */
            promise(second, b.wal_state.last_index);
            g.promised_at[1] = second->n_ops;
        }
        append(&b, second);
        crashfs_recording = NULL;
        stop(&b, &c);
        cut_from(second, k, 6, k * 7919);
    }
    crashfs_recording = NULL;
    crashfs_tree_free(t, CRASHFS_INODES);
    free(t);
    crashfs_fini(second);
    free(second);
}

static void script(void)
{
    struct crashfs *f = calloc(1, sizeof *f);
    struct bootstrap b;
    struct config c;
    uint64_t entries, promised[64];
    uint32_t promised_at[64], n_promised;

    REQUIRE(f);
    g.joins = dice(2);
    g.split = dice(3) == 0;
    g.n_promised = 0;
    crashfs_remove(g.work);
    REQUIRE(mkdir(g.work, 0700) == 0);
    crashfs_init(f, g.work);
    crashfs_recording = f;
    REQUIRE(start(&b, &c) == 0);
    if (g.joins && dice(3))
        install(&b, f);
    entries = 1 + dice(3);
    for (uint64_t i = 0; i < entries; i++)
        append(&b, f);
    REQUIRE(crashfs_is_true(f));
    crashfs_recording = NULL;
    stop(&b, &c);
    crashfs_cuts_forget(&g.cuts);
    cut_from(f, 0, PER_POINT, 0);
    memcpy(promised, g.promised, sizeof promised);
    memcpy(promised_at, g.promised_at, sizeof promised_at);
    n_promised = g.n_promised;
    for (uint32_t k = 0; k <= f->n_ops && g.fails == 0; k++) {
        if (dice(10))
            continue;
        memcpy(g.promised, promised, sizeof promised);
        memcpy(g.promised_at, promised_at, sizeof promised_at);
        g.n_promised = n_promised;
        kill_at(f, k);
    }
    crashfs_fini(f);
    free(f);
}

static void every_crash_state(void)
{
    while (g.states < g.want && g.fails == 0 && g.scripts < 10000) {
        g.dice = seed + g.scripts++;
        script();
    }
    printf("# %llu crash states of %llu scripts, %llu moments; in %llu nothing was promised yet, %llu have joined, "
           "%llu kills\n",
           (unsigned long long)g.states, (unsigned long long)g.scripts, (unsigned long long)g.cuts.moments,
           (unsigned long long)g.anew, (unsigned long long)g.joined, (unsigned long long)g.kills);
    CHECK(g.fails == 0);
    CHECK(g.fails || (g.states >= g.want && g.anew > g.want / 10 && g.whole > g.want / 100));
}

int main(void)
{
    g.want = member_begin(STATES_DEFAULT, g.root, sizeof g.root);
    snprintf(g.work, sizeof g.work, "%s/w", g.root);
    snprintf(g.place, sizeof g.place, "%s/var/cairn", g.work);
    snprintf(g.log, sizeof g.log, "%s/log", g.work);
    crashfs_cuts_init(&g.cuts, check, dice);
    sender_new();
    TEST(every_crash_state);
    sender_free();
    crashfs_cuts_fini(&g.cuts);
    crashfs_remove(g.root);
    return tap_done();
}
