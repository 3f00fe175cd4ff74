/* SPDX-License-Identifier: Apache-2.0 */
/* raft_fuzz.c - a core among liars: any message, in any order, with any numbers.
 *
 * Proves: no assertion is reachable from the network, no refusal changes anything, and whatever is said, term, commit
 * and apply_to never go back and what is committed stays in the log. (What liars can do to safety is another matter:
 * Raft trusts its members.)
 *
 *     SEED=7 RUNS=1000 build/tests/unit/raft_fuzz
 */
#include "raft.h"
#include "tap.h"

#define STEPS 3000

static uint64_t rng;
static struct raft *r;
static struct raft_out out;
static uint64_t now, seq_asked, roles_seen;

static uint64_t dice(uint64_t below)
{
    rng ^= rng << 13, rng ^= rng >> 7, rng ^= rng << 17;
    return (rng >> 11) % below;
}

/* Mostly near something that makes sense, sometimes anything. */
static uint64_t near(uint64_t v)
{
    switch (dice(12)) {
    case 0:
        return 0;
    case 1:
        return dice(UINT64_MAX);
    case 2:
        return UINT64_MAX - dice(3);
    default:
        return v + dice(7) > 3 ? v + dice(7) - 3 : v;
    }
}

static void random_runs(struct raft_msg *m)
{
    uint64_t first = m->index + 1, term = m->log_term ? m->log_term : 1;

    m->n_runs = (uint32_t)dice(3);
    if (dice(20) == 0)
        m->n_runs = (uint32_t)dice(UINT32_MAX);
    for (uint32_t i = 0; i < m->n_runs && i < RAFT_MSG_RUNS_MAX; i++) {
        m->runs[i] = (struct raft_run){dice(10) ? first : near(first), dice(10) ? term : near(term)};
        first += 1 + dice(3);
        term += dice(2);
    }
    if (m->n_runs && dice(5))
        m->last = first;
}

static void random_conf(struct raft_conf *c)
{
    memset(c, 0, sizeof *c);
    for (uint64_t id = 1; id <= 5; id++) {
        struct raft_set *set = dice(4) ? &c->voters : &c->learners;

        set->ids[set->n++] = dice(30) ? id : near(id);
    }
    if (dice(20) == 0)
        c->voters.n = (uint32_t)dice(UINT32_MAX);
}

static struct raft_in random_msg(const struct raft_status *s, struct raft_msg *m, struct raft_conf *conf)
{
    *m = (struct raft_msg){
        .type = (enum raft_msg_type)(dice(30) ? 1 + dice(RAFT_MSG_TYPES - 1) : dice(100)),
        .from = dice(20) ? 2 + dice(3) : near(1),
        .to = dice(50) ? 1 : near(1),
        .term = dice(4) ? s->term : near(s->term),
        .reject = dice(3) == 0,
        .transfer = dice(5) == 0,
        .index = near(dice(2) ? s->last_index : s->commit),
        .commit = near(s->commit),
        .hint = near(s->last_index),
        .ctx = dice(3) ? dice(5) : near(1),
    };
    m->log_term = dice(3) ? raft_term_of(r, m->index) : near(s->term);
    m->last = m->index + dice(4);
    random_runs(m);
    random_conf(conf);
    m->conf = dice(10) ? conf : NULL;
    return (struct raft_in){.type = RAFT_IN_MSG, .msg = m};
}

static struct raft_in random_in(const struct raft_status *s, struct raft_msg *m, struct raft_conf *conf,
                                struct raft_conf_change *ch)
{
    struct raft_in in = {.type = (enum raft_in_type)dice(RAFT_IN_COMPACT + 1), .ok = dice(2), .change = ch,
                         .member = dice(7), .n_entries = (uint32_t)dice(4), .store_seq = seq_asked};

    if (dice(3))
        return random_msg(s, m, conf);
    in.index = in.type == RAFT_IN_COMPACT ? s->applied - dice(3) : near(s->applied);
    if (in.type == RAFT_IN_STORED && dice(3))
        in.store_seq = s->stored_seq + dice(seq_asked - s->stored_seq + 1);
    if (in.type == RAFT_IN_MSG)
        return random_msg(s, m, conf);
    *ch = (struct raft_conf_change){.transition = (enum raft_transition)dice(4), .n = (uint32_t)dice(4)};
    for (uint32_t i = 0; i < ch->n; i++) {
        ch->changes[i].id = dice(7);
        ch->changes[i].op = (enum raft_change_op)dice(5);
    }
    return in;
}

static void start(void *mem)
{
    struct raft_params p = {.id = 1, .seed = dice(UINT64_MAX), .now_ms = now, .heartbeat_ms = 100, .election_ms = 1000,
                            .term = 1 + dice(3), .first_index = 1, .first_term = 1, .last_index = 1, .applied = 1,
                            .commit = 1};

    p.uncommitted_max = dice(2) ? 50 : 0;
    for (uint64_t id = 1; id <= 1 + dice(5); id++)
        p.conf.voters.ids[p.conf.voters.n++] = id;
    REQUIRE(raft_init(mem, &p, &r) == 0);
    seq_asked = 0;
}

static void among_liars(void *mem)
{
    static struct raft_msg m;
    uint64_t apply_to = 1, committed_term[2] = {1, 1}; /* index, term of something committed */

    start(mem);
    for (int i = 0; i < STEPS; i++) {
        struct raft_conf conf;
        struct raft_conf_change ch;
        struct raft_status before, after;
        struct raft_in in;
        int err;

        raft_status(r, &before);
        now += dice(10) ? dice(50) : dice(3000);
        in = random_in(&before, &m, &conf, &ch);
        in.now_ms = now;
        err = raft_step(r, &in, &out);
        raft_status(r, &after);
        if (err) {
            CHECK(after.term == before.term && after.last_index == before.last_index && after.role == before.role &&
                  after.last_seq == before.last_seq && after.commit == before.commit);
            continue;
        }
        roles_seen |= 1u << after.role;
        CHECK(after.term >= before.term && after.commit >= before.commit);
        CHECK(out.apply_to >= apply_to);
        apply_to = out.apply_to;
        if (out.store_seq) {
            CHECK(out.store_seq == seq_asked + 1);
            seq_asked = out.store_seq;
        }
        CHECK(committed_term[0] < after.first_index || raft_term_of(r, committed_term[0]) == committed_term[1]);
        committed_term[0] = after.commit;
        committed_term[1] = raft_term_of(r, after.commit);
        if (tap_bad)
            return;
    }
}

static void no_assertion_is_reachable(void)
{
    const char *seed_env = getenv("SEED"), *runs_env = getenv("RUNS");
    uint64_t seed = seed_env ? strtoull(seed_env, NULL, 10) : 1;
    uint64_t runs = runs_env ? strtoull(runs_env, NULL, 10) : 300;
    void *mem = malloc(raft_size());

    printf("# SEED=%llu RUNS=%llu\n", (unsigned long long)seed, (unsigned long long)runs);
    for (uint64_t i = 0; i < runs && tap_bad == 0; i++) {
        rng = (seed + i) * 0x9e3779b97f4a7c15u | 1;
        among_liars(mem);
        if (tap_bad)
            printf("# broken with SEED=%llu\n", (unsigned long long)(seed + i));
    }
    CHECK(roles_seen == 15);
    free(mem);
}

/* What disks say may be anything, too. */
static void no_state_of_a_disk_is_fatal(void)
{
    void *mem = malloc(raft_size());
    int ok = 0;

    rng = 12345;
    for (int i = 0; i < 20000; i++) {
        struct raft_run runs[3] = {{4, 1}, {5, 2}, {8, 3}};
        struct raft_params p = {.id = 1, .now_ms = now, .heartbeat_ms = 10, .election_ms = 100, .term = 3, .vote = 1,
                                .commit = 6, .first_index = 3, .first_term = 1, .last_index = 9, .applied = 5,
                                .runs = runs, .n_runs = 3};
        uint64_t *fields[] = {&p.id, &p.term, &p.vote, &p.commit, &p.first_index, &p.first_term, &p.last_index,
                              &p.applied, &runs[0].first, &runs[0].term, &runs[1].first, &runs[2].term};

        for (uint64_t k = dice(3); k; k--) { /* one or two things are not as they should be */
            uint64_t *f = fields[dice(sizeof fields / sizeof fields[0])];

            *f = near(*f);
        }
        if (dice(10) == 0)
            p.n_runs = (uint32_t)dice(4);
        random_conf(&p.conf);
        if (raft_init(mem, &p, &r) == 0) {
            struct raft_in in = {.type = RAFT_IN_TIME, .now_ms = now + 100};

            CHECK(raft_step(r, &in, &out) == 0);
            ok++;
        }
    }
    CHECK(ok > 500 && ok < 15000);
    free(mem);
}

int main(void)
{
    TEST(no_assertion_is_reachable);
    TEST(no_state_of_a_disk_is_fatal);
    return tap_done();
}
