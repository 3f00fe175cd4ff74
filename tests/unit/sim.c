/* SPDX-License-Identifier: Apache-2.0 */
/* sim.c - whole clusters from one seed: real log, apply, store, leases, watches and turn over a simulated disk, network
 * and clock.
 *
 * Proves, on random schedules of faults and calls, at every step: the invariants of RELIABILITY A.3, listed with their
 * places at the top of tests/sim/check.h, and that rot is noticed; and, when all is healed, within a bound: a leader,
 * writes and linearizable reads through every member, every member at the same state, whoever was damaged whole
 * again, every watcher told all, leases that nobody renews gone.
 *
 *     SEED=7 build/tests/unit/sim              one run, VERBOSE=1 with a line per event
 *     SEED=1 SEEDS=1000 build/tests/unit/sim   many       (make sim SEED=7, make sim SEEDS=1000)
 */
#include <signal.h>
#include "../sim/faults.h"
#include "../sim/rename.h"
#include "../sim/snapshot.h"
#include "../sim/watch.h"
#include "daemon/log.h"
#include "tap.h"

/* One thread and many times slower under a sanitizer, which looks for other things than the seeds do. */
#if defined __SANITIZE_THREAD__ || defined __SANITIZE_ADDRESS__
#define SEEDS_DEFAULT 200
#else
#define SEEDS_DEFAULT 2000
#endif
#define HEALED_MS     30000

static struct sim s; /* large: not for the stack */
static struct net_options net_options;
static struct counters total;
static uint64_t simulated_us;

static bool disarm(void);

/* ---- one step of the world --------------------------------------------------------------------------- */

/* What is due first happens. limit_us: the world's own next event. False: that comes first. */
static bool world_step(uint64_t limit_us)
{
    struct sim_member *first = NULL;
    enum thread thread = T_TURN;
    uint64_t at = limit_us;

    for (unsigned i = 1; i <= s.n; i++)
        for (int t = 0; s.m[i].up && t < THREADS; t++)
            if (s.m[i].at[t] < at) {
                at = s.m[i].at[t];
                first = &s.m[i];
                thread = (enum thread)t;
            }
    if (transfer_due(s.net && s.net->at_us < at ? s.net->at_us : at)) {
        struct transfer *t = transfer_due(at);

        if (t->at_us > s.w.now_us)
            s.w.now_us = t->at_us;
        transfer_step(&s, t);
        return true;
    }
    if (s.net && s.net->at_us < at) {
        struct sim_member *to = &s.m[s.net->to];

        if (s.net->at_us > s.w.now_us)
            s.w.now_us = s.net->at_us;
        net_step(&s);
        if (to->up)
            member_poll(to);
        return true;
    }
    if (at > s.w.now_us)
        s.w.now_us = at;
    if (first == NULL)
        return false;
    member_step(first, thread);
    if (first->crash_soon) {
        bool power = first->crash_soon == 2;

        first->crash_soon = 0;
        crash_now(&s, first, power);
    }
    return true;
}

/* All who vote would know of the newest change even after a power cut: until then they may need a removed one's
 * vote. */
static bool conf_is_known(void)
{
    for (uint32_t i = 0; i < s.o.conf.voters.n; i++) {
        struct sim_member *m = &s.m[s.o.conf.voters.ids[i]];

        if (!m->up || store_frozen(m->store) || m->apply->frozen_index < s.o.conf_index)
            return false;
    }
    return s.o.conf.outgoing.n == 0;
}

/* Who was added is started, some time; who was removed is ended, some time. */
static void follow_conf(unsigned pct)
{
    for (unsigned id = 1; id < MEMBERS_SIM_MAX && !s.w.failed; id++) {
        struct sim_member *m = &s.m[id];

        if (!m->exists && !s.o.was[id] && model_is_member(&s.o, id) && world_chance(&s.w, pct)) {
            s.n = id > s.n ? id : s.n;
            member_create(m, NULL);
            s.w.did.joins++;
            world_line(&s.w, "m%u joins", id);
            (void)member_start(m);
        } else if (m->exists && s.o.was[id] && conf_is_known() && world_chance(&s.w, pct)) {
            if (m->up)
                member_crash(m, false);
            m->exists = false;
            world_line(&s.w, "m%u is ended", id);
        }
    }
}

static void play(uint64_t until_us, uint64_t ask_us, uint64_t disturb_us)
{
    uint64_t ask_at = ask_us ? s.w.now_us : NEVER,
             disturb_at = disturb_us ? s.w.now_us + world_random(&s.w, 2 * disturb_us) : NEVER;

    while (s.w.now_us < until_us && !s.w.failed) {
        uint64_t next = until_us;

        next = ask_at < next ? ask_at : next;
        next = disturb_at < next ? disturb_at : next;
        if (world_step(next))
            continue;
        if (s.w.now_us >= ask_at) {
            struct sim_member *m = any_member(&s);

            if (m->exists && m->up && !m->paused && s.o.committed < SIM_LOG_MAX - 1500)
                ask_something(&s, m);
            if (m->exists && m->up && world_chance(&s.w, 10))
                (void)disarm();
            if (m->exists && m->up && world_chance(&s.w, 15))
                watch_something(&s, m);
            ask_at = s.w.now_us + world_random(&s.w, 2 * ask_us);
        }
        if (s.w.now_us >= disturb_at) {
            follow_conf(30);
            disturb(&s);
            disturb_at = s.w.now_us + world_random(&s.w, 2 * disturb_us);
        }
    }
}

/* ---- healed ---------------------------------------------------------------------------------------------- */

static bool all_applied(uint64_t index)
{
    for (unsigned i = 1; i < MEMBERS_SIM_MAX; i++)
        if (model_is_member(&s.o, i) && (!s.m[i].exists || !s.m[i].up || s.m[i].apply->applied < index))
            return false;
    return true;
}

/* What somebody was not told within the bound. */
struct probe {
    bool asked[MEMBERS_SIM_MAX], done[MEMBERS_SIM_MAX], ok[MEMBERS_SIM_MAX];
};

/* A call through every member, again until it is answered well. */
static bool probe_step(struct probe *p, bool write)
{
    bool all = true;

    for (unsigned i = 1; i < MEMBERS_SIM_MAX; i++) {
        if (p->ok[i] || !model_is_member(&s.o, i))
            continue;
        all = false;
        if (!s.m[i].exists || !s.m[i].up || (p->asked[i] && !p->done[i]))
            continue;
        p->asked[i] = true;
        p->done[i] = false;
        if (write) {
            struct call_sim *c = ask_put(&s, &s.m[i], 1000);

            if (c) {
                c->done = &p->done[i];
                c->ok = &p->ok[i];
            } else {
                p->done[i] = true;
            }
        } else {
            (void)read_start(&s, &s.m[i], 1000, &p->done[i], &p->ok[i]);
        }
    }
    return all;
}

static bool leases_gone(void)
{
    for (int i = 1; i <= SIM_LEASES; i++)
        if (s.o.leases[i].alive)
            return false;
    return true;
}

static void set_text(char *dst, size_t n, const struct raft_set *set)
{
    size_t used = 0;

    dst[0] = 0;
    for (uint32_t i = 0; i < set->n && used + 8 < n; i++)
        used += (size_t)snprintf(dst + used, n - used, "%" PRIu64 " ", set->ids[i]);
}

/* Where everybody stands, for who reads the lines. */
static void tell_all(void)
{
    for (unsigned i = 1; i < MEMBERS_SIM_MAX; i++) {
        struct sim_member *m = &s.m[i];
        const struct raft_status *st = m->up ? &m->turn->status : NULL;
        char voters[40], outgoing[40], learners[40];

        if (st == NULL)
            continue;
        set_text(voters, sizeof voters, &raft_conf_of(m->turn->raft)->voters);
        set_text(outgoing, sizeof outgoing, &raft_conf_of(m->turn->raft)->outgoing);
        set_text(learners, sizeof learners, &raft_conf_of(m->turn->raft)->learners);
        world_line(&s.w,
                   "m%u role %d term %" PRIu64 " leader %" PRIu64 " log %" PRIu64 "..%" PRIu64
                   " commit %" PRIu64 " applied %" PRIu64 "/%" PRIu64 " voters %soutgoing %slearners %s%s",
                   i, (int)st->role, st->term, st->leader, st->first_index, st->last_index, st->commit,
                   st->applied, m->apply->applied, voters, outgoing, learners, s.o.was[i] ? "removed" : "");
    }
}

/* Nobody is damaged, or has another state, or has not yet heard that it is whole. */
static bool sound(void)
{
    for (unsigned i = 1; i < MEMBERS_SIM_MAX; i++)
        if (model_is_member(&s.o, i) && (s.m[i].damaged || s.m[i].faulty || s.m[i].diverges))
            return false;
    return true;
}

/* The operator waits until who is named has been rebuilt. True: no alarm stands. */
static bool disarm(void)
{
    struct sim_member *m = any_member(&s);

    if (!model_is_corrupt(&s.o))
        return true;
    if (m->up && !m->paused && sound())
        ask_disarm(&s, m);
    return false;
}

static void liveness(void)
{
    uint64_t until = s.w.now_us + HEALED_MS * 1000;
    static struct probe writes, reads; /* the answers that quiet() gives still point to them */
    bool wrote = false, readt = false, watched = false, alarms = false;

    memset(&writes, 0, sizeof writes);
    memset(&reads, 0, sizeof reads);
    while (s.w.now_us < until && !s.w.failed) {
        follow_conf(100);
        for (unsigned i = 1; i < MEMBERS_SIM_MAX && !s.w.failed; i++)
            if (s.m[i].exists && !s.m[i].up) /* its disk had failed before all was healed */
                (void)member_start(&s.m[i]);
        play(s.w.now_us + 50000, 0, 0);
        wrote = probe_step(&writes, true);
        readt = probe_step(&reads, false);
        watched = watches_settled(&s);
        alarms = disarm();
        if (wrote && readt && watched && sound() && alarms && leases_gone() && all_applied(s.o.committed) &&
            sim_leader(&s))
            return;
    }
    if (s.w.failed)
        return;
    tell_all();
    if (sim_leader(&s) == NULL)
        world_fail(&s.w, "LeaderWithin", "nobody leads %d ms after the last fault", HEALED_MS);
    else if (!wrote || !readt)
        world_fail(&s.w, "Progress", "%s not answered everywhere", wrote ? "reads are" : "writes are");
    else if (!leases_gone())
        world_fail(&s.w, "ExpiresWithinBound", "leases live on");
    else if (!all_applied(s.o.committed))
        world_fail(&s.w, "EveryMemberCatchesUp", "committed %" PRIu64, s.o.committed);
    else if (!sound() || !alarms)
        world_fail(&s.w, "EveryMemberCatchesUp", "%s", alarms ? "a damaged member is not rebuilt" : "an alarm stands");
    else if (!watched)
        world_fail(&s.w, "Reliable", "a watcher has not been told all");
}

/* The answers to the probes point to them: nobody may come later. */
static void quiet(void)
{
    for (unsigned i = 1; i <= s.n; i++)
        if (s.m[i].up)
            member_throw_away(&s.m[i]);
}

/* ---- one run ----------------------------------------------------------------------------------------------- */

static void remove_root(void)
{
    for (unsigned i = 1; i < MEMBERS_SIM_MAX; i++)
        if (s.m[i].dir[0])
            member_wipe(&s.m[i]);
    (void)rmdir(s.root);
}

static void draw_options(void)
{
    static const unsigned sizes[] = {1, 3, 3, 3, 5, 5, 2, 4, 3, 7};
    struct world *w = &s.w;

    s.n = sizes[w->seed % (sizeof sizes / sizeof *sizes)];
    s.heartbeat_ms = 20 + (uint32_t)world_random(w, 3) * 40;
    s.election_ms = s.heartbeat_ms * (5 + (uint32_t)world_random(w, 6));
    s.catchup = 5 + (uint32_t)world_random(w, world_chance(w, 50) ? 50 : 1000);
    s.segment_bytes = 32768u << world_random(w, 4);
    s.thread_us = 20 + world_random(w, world_chance(w, 20) ? 5000 : 200);
    s.conf_pct = world_chance(w, 40) ? 10 : 0;
    s.apply_us = world_chance(w, 30) ? (unsigned)world_random(w, 100000) : 0;
    s.hub_us = world_chance(w, 30) ? (unsigned)world_random(w, 500000) : 0;
    s.filled_us = 0;
    s.heap_keys = world_chance(w, 94) ? 0 : SIM_HEAP_LEAST * 8 / 7 + 2 + (unsigned)world_random(w, 200);
    if (s.heap_keys && world_chance(w, 16))
        s.heap_keys = 9998;
    s.o.skew_ppm = (unsigned)world_random(w, 50000);
    s.net_options = &net_options;
    memset(&net_options, 0, sizeof net_options);
    net_options.delay_us = 1000;
    fault_net(&s);
}

static const char *run(uint64_t seed, bool verbose)
{
    struct raft_conf conf = {0};

    s.w = (struct world){
        .seed = seed, .rng = seed * 0x9e3779b97f4a7c15u + 1, .now_us = 1000000, .verbose = verbose};
    oracle_init(&s.o);
    draw_options();
    s.calls = NULL;
    s.net = NULL;
    for (unsigned i = 1; i < MEMBERS_SIM_MAX; i++)
        member_init(&s, i);
    for (unsigned i = 1; i <= s.n; i++)
        conf.voters.ids[conf.voters.n++] = i;
    s.o.conf = conf;
    world_line(&s.w, "seed %" PRIu64 ": %u members, heartbeat %u ms, election %u ms", seed, s.n,
               s.heartbeat_ms, s.election_ms);
    for (unsigned i = 1; i <= s.n && !s.w.failed; i++) {
        member_create(&s.m[i], &conf);
        (void)member_start(&s.m[i]);
    }
    watches_init(&s);
    play(s.w.now_us + 6000000, 10000 + world_random(&s.w, 20000), 30000 + world_random(&s.w, 300000));
    if (!s.w.failed)
        heal_all(&s);
    liveness();
    simulated_us += s.w.now_us - 1000000;
    transfers_clear();
    quiet();
    net_clear(&s);
    assert(s.calls == NULL);
    for (unsigned i = 1; i < MEMBERS_SIM_MAX; i++)
        fakedisk_fini(&s.m[i].disk);
    if (!s.w.failed && (s.w.did.acked_writes < 1 || s.w.did.lin_reads < 1))
        world_fail(&s.w, "Vacuous", "%" PRIu64 " writes, %" PRIu64 " reads", s.w.did.acked_writes,
                   s.w.did.lin_reads);
#define X(name) total.name += s.w.did.name;
    SIM_COUNTERS(X)
#undef X
    return s.w.failed;
}

/* ---- seeds ----------------------------------------------------------------------------------------------------- */

static uint64_t first_seed, seeds;

static bool one(uint64_t seed, bool verbose)
{
    if (run(seed, verbose) == NULL)
        return true;
    printf("# SEED=%" PRIu64 " at %.3f ms: %s: %s\n", seed, (double)s.w.now_us / 1000, s.w.failed, s.w.why);
    fflush(stdout);
    return false;
}

/* An assertion of the daemon's failed: which seed was it? */
static void aborted(int sig)
{
    char line[96];
    int n = snprintf(line, sizeof line, "# SEED=%" PRIu64 ": aborted\n", s.w.seed);

    (void)!write(1, line, (size_t)n);
    (void)signal(sig, SIG_DFL);
    (void)raise(sig);
}

/* Seeds that failed once, first. */
static void corpus(void)
{
    FILE *f = fopen("tests/sim/corpus", "r");
    char line[256];

    while (f && fgets(line, sizeof line, f)) {
        char *end;
        uint64_t seed = strtoull(line, &end, 10);

        if (end != line)
            CHECK(one(seed, false));
    }
    if (f)
        fclose(f);
}

static void random_clusters(void)
{
    uint64_t failures = 0, enough = getenv("STOP") ? 1 : 3;

    for (uint64_t i = 0; i < seeds && failures < enough; i++)
        failures += !one(first_seed + i, false);
    CHECK(failures == 0);
    if (seeds < 1000 || failures)
        return;
        /* Vacuity: what never happened proves nothing. */
#define X(name)                                                                                              \
    if (total.name == 0)                                                                                     \
        printf("# never: %s\n", #name);                                                                      \
    CHECK(total.name > 0);
    SIM_COUNTERS(X)
#undef X
}

static void print_total(void)
{
    printf("# %" PRIu64 " seeds from %" PRIu64 ", %.0f s simulated:", seeds, first_seed,
           (double)simulated_us / 1e6);
#define X(name) printf(" %s=%" PRIu64, #name, total.name);
    SIM_COUNTERS(X)
#undef X
    printf("\n");
}

int main(void)
{
    const char *seed = getenv("SEED"), *many = getenv("SEEDS"),
               *shm = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";

    log_set_level(LOG_LEVEL_FATAL); /* what members say about themselves is not read here */
    (void)snprintf(s.root, sizeof s.root, "%s/cairn-sim-XXXXXX", shm);
    REQUIRE(mkdtemp(s.root) != NULL);
    (void)signal(SIGABRT, aborted);
    (void)signal(SIGSEGV, aborted);
    seeds = many ? strtoull(many, NULL, 0) : seed ? 1 : SEEDS_DEFAULT;
    first_seed = seed ? strtoull(seed, NULL, 0) : 1; /* always the same ones in the suite; `make sim SEEDS=n` takes
                                                      * others */
    if (seed && !many) {
        bool ok = one(first_seed, getenv("VERBOSE") != NULL);

        print_total();
        remove_root();
        return !ok;
    }
    printf("# SEED=%" PRIu64 " SEEDS=%" PRIu64 "\n", first_seed, seeds);
    if (getenv("STOP") == NULL) /* else what counts is how many random ones it takes */
        TEST(corpus);
    TEST(random_clusters);
    print_total();
    oracle_init(&s.o);
    remove_root();
    return tap_done();
}
