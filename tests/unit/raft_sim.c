/* SPDX-License-Identifier: Apache-2.0 */
/* raft_sim.c - whole clusters from one seed: safety under arbitrary faults, then life when they end.
 *
 * Proves, on random schedules: ElectionSafety, LogMatching, LeaderCompleteness, StateMachineSafety, CommitMonotone,
 * TermMonotone, VoteOncePerTermDurable, AckImpliesQuorumFsync, NoReadOfUndurable, ReadIndexFresh (all checked in
 * tests/sim/cluster.h at every step), and LeaderWithin, Progress, EveryMemberCatchesUp after the network heals.
 * Faults: lost, doubled, late packets, partitions (also one-way), crashes that lose unsynced writes, slow disks,
 * pauses, compaction, membership changes (single and joint), transfers, forgotten and suspected leaders, and disks that
 * lose everything (one at a time: NoSelfElectionWhileFaulty). Every fifth run reads by leases.
 *
 *     SEED=7 build/tests/unit/raft_sim       one run      RUNS=1000 SEED=1 ...      many      VERBOSE=1
 */
#include "../sim/cluster.h"
#include "tap.h"

#define FAULTY_MS 20000
#define HEALED_MS 20000

static struct cluster c; /* large: not for the stack */
static struct {
    uint64_t commits, leader_changes, crashes, lost_writes, reads, reads_lost, snapshots, cuts, confs, transfers, steps,
        compactions, dropped, losses, repaired;
} total;

static struct node *any_node(void)
{
    return &c.nodes[1 + cluster_random(&c, (uint32_t)c.n)];
}

/* The leader as often as not: that is where it hurts. */
static struct node *victim(void)
{
    struct node *leader = cluster_leader(&c);

    return leader && cluster_chance(&c, 50) ? leader : any_node();
}

static void propose(struct node *n, uint32_t count)
{
    if (n->up && !n->paused && n->last + count + 100 < LOG_MAX)
        node_raft(&c, n, (struct raft_in){.type = RAFT_IN_PROPOSE, .n_entries = count});
}

static void begin_read(struct node *n)
{
    if (n->up && !n->paused && n->n_reads < READS_WAIT_MAX / 2)
        node_raft(&c, n, (struct raft_in){.type = RAFT_IN_READ});
}

static void change_members(struct node *n)
{
    struct raft_conf_change ch = {.n = 1};

    if (!n->up || n->paused)
        return;
    if (cluster_chance(&c, 30)) {
        ch.n = 1 + cluster_random(&c, 3);
        ch.transition = (enum raft_transition)cluster_random(&c, 3);
    }
    for (uint32_t i = 0; i < ch.n; i++) {
        ch.changes[i].id = any_node()->id;
        ch.changes[i].op = (enum raft_change_op)(1 + cluster_random(&c, 3));
    }
    if (raft_conf_of(n->raft)->outgoing.n)
        ch.n = 0;
    node_raft(&c, n, (struct raft_in){.type = RAFT_IN_PROPOSE_CONF, .change = &ch});
}

static void heal(void)
{
    memset(c.cut, 0, sizeof c.cut);
}

/* Its disk is gone. Only one at a time and of three voters or more: the others must be able to elect without it. */
static void lose_disk(struct node *n)
{
    if (!n->up || n->writes_n > WRITES_MAX / 2)
        return;
    for (int i = 1; i <= c.n; i++)
        if (c.nodes[i].fence)
            return;
    node_lose(&c, n);
}

static void partition(void)
{
    uint32_t side = cluster_random(&c, 1u << c.n);
    bool one_way = cluster_chance(&c, 20);

    for (int a = 1; a <= c.n; a++)
        for (int b = 1; b <= c.n; b++) {
            bool apart = ((side >> (a - 1)) & 1) != ((side >> (b - 1)) & 1);

            c.cut[a][b] = apart && (!one_way || a < b);
        }
}

/* Who is down or paused comes back; true: somebody was. A cluster that lies still has nothing to get wrong. */
static bool revive(void)
{
    for (int i = 0; i < 3; i++) {
        struct node *n = any_node();

        if (n->up && !n->paused)
            continue;
        n->paused = false;
        if (!n->up)
            node_start(&c, n);
        return true;
    }
    return false;
}

static void cut_off(struct node *n)
{
    for (int i = 1; i <= c.n; i++)
        c.cut[i][n->id] = c.cut[n->id][i] = (uint64_t)i != n->id;
}

/* A leader that is cut off, with one that still believes in it. */
static void strand(struct node *leader, struct node *with)
{
    for (int i = 1; i <= c.n; i++)
        c.cut[with->id][i] = c.cut[i][with->id] = c.cut[leader->id][i] && (uint64_t)i != with->id;
    c.cut[leader->id][with->id] = c.cut[with->id][leader->id] = false;
}

/* Everybody who does not hear it takes the leader's process for dead, whatever it is; it goes on reading. */
static void slander(struct node *leader)
{
    for (int i = 1; i <= c.n; i++) {
        struct node *n = &c.nodes[i];

        if (n->up && !n->paused && n->st.leader == leader->id && c.cut[leader->id][i])
            node_raft(&c, n, (struct raft_in){.type = RAFT_IN_SUSPECT, .member = leader->id});
    }
}

/* The leader of a lease is cut off, perhaps while it hands over, and answers travel slowly: it reads on while everybody
 * else tries to replace it at every moment. */
static void tempt(struct node *leader)
{
    unsigned delay = c.delay_max;

    c.delay_max = c.delay_min + c.heartbeat_ms * (1 + cluster_random(&c, 6));
    for (uint32_t ms = 2 * c.heartbeat_ms; ms && !c.failed; ms--)
        cluster_tick(&c);
    c.delay_max = delay;
    if (cluster_chance(&c, 50)) {
        node_raft(&c, leader, (struct raft_in){.type = RAFT_IN_TRANSFER, .member = any_node()->id});
        for (uint32_t ms = cluster_random(&c, c.heartbeat_ms); ms && !c.failed; ms--)
            cluster_tick(&c);
    }
    cut_off(leader);
    for (uint32_t ms = 12 * c.heartbeat_ms; ms && !c.failed; ms--) {
        struct node *other = any_node();

        cluster_tick(&c);
        begin_read(leader);
        propose(other, 1);
        if (other != leader && other->up && !other->paused && other->st.role == RAFT_FOLLOWER && ms % 8 == 0)
            node_raft(&c, other, (struct raft_in){.type = RAFT_IN_CAMPAIGN});
    }
    heal();
}

/* What is rare by chance, and where the rules matter most: a leader falls right after its election, before or in the
 * middle of its first entry; or is cut off and replaced at once, while old answers still travel to it. */
static void ambush(uint64_t *elections)
{
    struct node *leader = cluster_leader(&c);

    if (leader == NULL || leader->paused)
        return;
    if (c.elections != *elections) {
        unsigned drop = c.drop_pct, split = c.split_pct;

        *elections = c.elections;
        if (!cluster_chance(&c, 60))
            return;
        c.drop_pct = 50; /* what it inherited arrives without what it made, or the other way round */
        c.split_pct = 100;
        for (uint32_t ms = cluster_random(&c, 2 * c.heartbeat_ms); ms && !c.failed; ms--)
            cluster_tick(&c);
        c.drop_pct = drop;
        c.split_pct = split;
        if (!leader->up)
            return;
        (void)revive(); /* the last one to fall may know better than who voted meanwhile */
        if (cluster_chance(&c, 50))
            node_crash(&c, leader);
        else
            cut_off(leader);
    } else if (c.lease_reads && cluster_random(&c, 600) == 0) {
        tempt(leader);
    } else if (cluster_random(&c, 600) == 0) {
        struct node *with = any_node();

        cut_off(leader);
        if (with != leader && c.n > 3)
            strand(leader, with);
        slander(leader);
        for (uint32_t ms = 5 * c.heartbeat_ms; ms && !c.failed; ms--) {
            struct node *other = any_node();

            cluster_tick(&c);
            begin_read(cluster_chance(&c, 50) ? leader : with);
            if (other != leader && other != with)
                propose(other, 1);
        }
        heal();
    }
}

/* Something happens to somebody. */
static void disturb(bool members)
{
    struct node *n = victim();

    if (cluster_chance(&c, 40) && revive())
        return;
    if (cluster_chance(&c, 15)) {
        heal();
        return;
    }
    if (!members && c.n >= 3 && cluster_chance(&c, 10)) {
        lose_disk(n);
        return;
    }
    switch (cluster_random(&c, 15)) {
    case 0:
    case 1:
        if (n->up)
            node_crash(&c, n);
        break;
    case 2:
    case 3:
        if (!n->up)
            node_start(&c, n);
        break;
    case 4:
        partition();
        break;
    case 5:
        heal();
        break;
    case 6:
        n->paused = n->up && !n->paused;
        break;
    case 7:
        c.disk_max = cluster_chance(&c, 20) ? 600 : 1 + cluster_random(&c, 30);
        break;
    case 8:
        c.drop_pct = cluster_random(&c, 30);
        c.dup_pct = cluster_random(&c, 20);
        c.delay_max = c.delay_min + cluster_random(&c, c.heartbeat_ms * (cluster_chance(&c, 20) ? 10 : 1));
        c.split_pct = cluster_chance(&c, 50) ? cluster_random(&c, 100) : 0;
        c.straggle_pct = cluster_chance(&c, 50) ? cluster_random(&c, 20) : 0;
        break;
    case 9:
        if (n->up && !n->paused) {
            node_raft(&c, n, (struct raft_in){.type = RAFT_IN_TRANSFER, .member = any_node()->id});
            c.transfers++;
        }
        break;
    case 10:
        if (n->up && !n->paused)
            node_raft(&c, n, (struct raft_in){.type = cluster_chance(&c, 50) ? RAFT_IN_FORGET : RAFT_IN_SUSPECT,
                                              .member = n->st.leader});
        break;
    case 11:
        if (n->up && !n->paused)
            node_raft(&c, n, (struct raft_in){.type = RAFT_IN_UNREACHABLE, .member = any_node()->id});
        break;
    case 12: /* alone */
        cut_off(n);
        break;
    default:
        if (members)
            change_members(n);
        break;
    }
}

static void faulty(bool members, unsigned calm, bool ambushes)
{
    uint64_t until = c.now + FAULTY_MS, elections = 0;

    while (c.now < until && !c.failed) {
        cluster_tick(&c);
        if (cluster_random(&c, 100) < 15)
            propose(any_node(), 1 + cluster_random(&c, 4));
        if (cluster_random(&c, 100) < 8)
            begin_read(victim());
        if (cluster_random(&c, calm) == 0)
            disturb(members);
        if (ambushes)
            ambush(&elections);
    }
}

/* Every member that the newest configuration names has applied up to index. */
static bool all_applied(const struct raft_conf *conf, uint64_t index)
{
    for (int i = 1; i <= c.n; i++)
        if ((raft_set_has(&conf->voters, (uint64_t)i) || raft_set_has(&conf->learners, (uint64_t)i)) &&
            c.nodes[i].applied < index)
            return false;
    return true;
}

/* No faults any more: there must be a leader, what it takes must reach everybody, and reads must be answered. */
static void healed(void)
{
    uint64_t until = c.now + HEALED_MS, goal = 0, goal_term = 0, reads = 0;
    struct node *leader = NULL;

    heal();
    c.drop_pct = c.dup_pct = c.straggle_pct = 0;
    c.delay_max = c.delay_min + 5;
    c.disk_max = c.disk_min + 5;
    for (int i = 1; i <= c.n; i++) {
        c.nodes[i].paused = false;
        if (!c.nodes[i].up)
            node_start(&c, &c.nodes[i]);
    }
    for (; c.now < until && !c.failed; cluster_tick(&c)) {
        leader = cluster_leader(&c);
        if (leader == NULL || !leader->st.confirmed)
            continue;
        /* An explicit joint configuration is the operator's to leave. */
        if (raft_conf_of(leader->raft)->outgoing.n && c.now % 50 == 0) {
            struct raft_conf_change leave = {.n = 0};

            node_raft(&c, leader, (struct raft_in){.type = RAFT_IN_PROPOSE_CONF, .change = &leave});
        }
        if (goal == 0 || goal_term != leader->st.term) { /* an entry dies with a leader that was deposed already */
            uint64_t before = leader->last;

            propose(leader, 1);
            if (leader->last > before) {
                goal = leader->last;
                goal_term = leader->st.term;
                reads = c.reads_done;
            }
            continue;
        }
        if (c.now % 100 == 0)
            begin_read(any_node());
        if (c.committed >= goal && c.reads_done > reads && raft_conf_of(leader->raft)->outgoing.n == 0 &&
            all_applied(raft_conf_of(leader->raft), goal))
            return;
    }
    if (c.failed)
        return;
    if (leader == NULL)
        cluster_fail(&c, "LeaderWithin", "nobody leads %d ms after the last fault", HEALED_MS);
    else if (goal == 0 || c.committed < goal)
        cluster_fail(&c, "Progress", "committed %llu of %llu", U(c.committed), U(goal));
    else if (c.reads_done == reads)
        cluster_fail(&c, "Progress", "no read was answered");
    else
        cluster_fail(&c, "EveryMemberCatchesUp", "goal %llu", U(goal));
}

static const char *run(uint64_t seed)
{
    static const struct { int n, voters; } sizes[] = {{1, 1}, {3, 3}, {3, 3}, {5, 3}, {5, 5}, {4, 1}, {6, 4}};
    size_t size = seed % (sizeof sizes / sizeof sizes[0]);
    struct cluster_shape shape = {
        .n = sizes[size].n,
        .voters = sizes[size].voters,
        .heartbeat_ms = 20 + (uint32_t)(seed / 7 % 3) * 30,
        .inflight_max = (uint32_t)(seed / 3 % 4), /* 0: as many as there may be */
        .lease_reads = seed % 5 == 4,
    };
    bool members;

    cluster_init(&c, seed, &shape);
    members = (uint32_t)c.n != c.nodes[1].disk.conf.voters.n || cluster_chance(&c, 30);
    c.drop_pct = cluster_random(&c, 10);
    c.compact_pct = cluster_chance(&c, 70) ? 20 : 0;
    faulty(members, 20 + cluster_random(&c, 300), cluster_chance(&c, 50));
    healed();
    if (getenv("VERBOSE"))
        printf("# seed %llu: n=%d commits=%llu elections=%llu crashes=%llu reads=%llu snapshots=%llu cuts=%llu confs=%llu\n",
               U(seed), c.n, U(c.commits), U(c.elections), U(c.crashes), U(c.reads_done), U(c.snapshots), U(c.cuts),
               U(c.conf_changes));
    total.commits += c.commits;
    total.leader_changes += c.leader_changes;
    total.crashes += c.crashes;
    total.lost_writes += c.lost_writes;
    total.reads += c.reads_done;
    total.reads_lost += c.reads_lost;
    total.snapshots += c.snapshots;
    total.cuts += c.cuts;
    total.confs += c.conf_changes;
    total.transfers += c.transfers;
    total.steps += c.steps;
    total.compactions += c.compactions;
    total.dropped += c.dropped;
    total.losses += c.losses;
    total.repaired += c.repaired;
    cluster_fini(&c);
    return c.failed;
}

static void properties_hold(void)
{
    const char *seed_env = getenv("SEED"), *runs_env = getenv("RUNS");
    uint64_t seed = seed_env ? strtoull(seed_env, NULL, 10) : 1;
    uint64_t runs = runs_env ? strtoull(runs_env, NULL, 10) : seed_env ? 1 : 300;

    printf("# SEED=%llu RUNS=%llu\n", U(seed), U(runs));
    for (uint64_t i = 0; i < runs; i++)
        if (run(seed + i)) {
            CHECK(!"a property does not hold");
            return;
        }
    printf("# steps %llu commits %llu leader changes %llu crashes %llu (lost writes %llu) reads %llu (lost %llu)\n",
           U(total.steps), U(total.commits), U(total.leader_changes), U(total.crashes), U(total.lost_writes),
           U(total.reads), U(total.reads_lost));
    printf("# snapshots %llu compactions %llu conflicts cut %llu conf changes %llu packets lost %llu\n",
           U(total.snapshots), U(total.compactions), U(total.cuts), U(total.confs), U(total.dropped));
    printf("# disks lost %llu, members repaired %llu\n", U(total.losses), U(total.repaired));
    if (runs < 300)
        return;
    /* Vacuity: a run in which nothing happened proves nothing. */
    CHECK(total.commits > 100 * runs);
    CHECK(total.leader_changes > runs);
    CHECK(total.crashes > runs);
    CHECK(total.lost_writes > runs / 2);
    CHECK(total.reads > 10 * runs);
    CHECK(total.reads_lost > 0);
    CHECK(total.snapshots > runs / 4);
    CHECK(total.cuts > 0);
    CHECK(total.confs > runs / 2);
    CHECK(total.transfers > 0);
    CHECK(total.dropped > 0);
    CHECK(total.losses > runs / 3);
    CHECK(total.repaired > runs / 4);
}

int main(void)
{
    TEST(properties_hold);
    return tap_done();
}
