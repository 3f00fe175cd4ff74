/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: of three and of five members each takes writes and linearizable reads, whoever leads; what was acknowledged
 * is there after the leader is killed, cut off or stalls, and nothing happens twice, though messages come twice; all
 * members end with the same state. Reads that come during a round wake nobody. Leadership is handed over on demand, and
 * by a leader whose disk hangs. A lease is renewed and asked of at any member, by nobody who has been replaced; it
 * never runs out early, and not much later than it should however often the leader changes. */
#include "cluster_rig.h"
#include "err.h"

static struct cr_call calls[3000];

/* The first n calls are answered; how many of them with success. */
static int answered(int from, int n)
{
    int good = 0;

    for (int i = from; i < from + n; i++) {
        CHECK(calls[i].answers == 1);
        good += calls[i].answers == 1 && calls[i].p.err == 0;
        cr_call_fini(&calls[i]);
    }
    return good;
}

static void every_member_takes_writes_n(int n, unsigned twice)
{
    cr_new(n, 7);
    cr.twice = twice;
    (void)cr_await_leader(); /* REQUIREs one */
    for (int i = 0; i < 300; i++) {
        cr_put_key(i % n + 1, &calls[i], i);
        if (i % 50 == 0)
            cr_settle();
    }
    cr_run(200);
    CHECK(answered(0, 300) == 300);
    for (int m = 1; m <= n; m++)
        for (int i = 0; i < 300; i += 37)
            CHECK(cr_versions(m, i) == 1);
    cr_check_equal();
    cr_free();
}

static void every_member_takes_writes(void)
{
    every_member_takes_writes_n(3, 0);
    every_member_takes_writes_n(5, 0);
}

static void a_message_may_come_twice(void)
{
    every_member_takes_writes_n(3, 1);
    every_member_takes_writes_n(3, 3);
}

/* ---- reads --------------------------------------------------------------------------------------------- */

static int reads_done;

static void read_done(struct read_wait *w)
{
    (void)w;
    reads_done++;
}

static void every_member_reads(void)
{
    struct read_wait w[3];
    struct cr_call c;

    cr_new(3, 1);
    (void)cr_await_leader();
    cr_put_key(1, &c, 1);
    cr_run(50);
    CHECK(c.answers == 1 && c.p.err == 0);
    cr_call_fini(&c);
    reads_done = 0;
    for (int i = 0; i < 3; i++) {
        w[i] = (struct read_wait){.deadline_ms = cr.clock.ms + 7000, .done = read_done};
        CHECK(turn_read(cr.member[i + 1].turn, &w[i]) == 1);
    }
    cr_run(50);
    CHECK(reads_done == 3);
    for (int i = 0; i < 3; i++)
        CHECK(w[i].err == 0 && w[i].read_index >= cr.member[1].apply->applied);
    cr_free();
}

/* A leader that is cut off answers no read; one that asked a leader that dies is answered by the next. */
static void reads_survive_the_leader(void)
{
    struct read_wait alone = {.done = read_done}, w = alone;
    int leader, f;

    cr_new(3, 2);
    leader = cr_await_leader();
    f = cr_follower();
    cr_partition(1u << leader);
    reads_done = 0;
    alone.deadline_ms = cr.clock.ms + 1500;
    w.deadline_ms = cr.clock.ms + 7000;
    CHECK(turn_read(cr.member[leader].turn, &alone) == 1);
    CHECK(turn_read(cr.member[f].turn, &w) == 1);
    cr_run(900);
    CHECK(reads_done == 0);
    cr_run(4000);
    CHECK(reads_done == 2 && alone.err == ERR_TIMEOUT && w.err == 0);
    cr_free();
}

/* ---- the leader goes ---------------------------------------------------------------------------------------- */

/* What comes while a round is under way wakes nobody, and is served all the same, also when the round ends without an
 * answer; who reads alone begins the round himself. */
static void a_round_is_not_disturbed(void)
{
    struct read_wait w[6];
    struct turn *t;
    int leader;

    cr_new(3, 4);
    leader = cr_await_leader();
    cr_run(100);
    t = cr.member[leader].turn;
    reads_done = 0;
    for (int i = 0; i < 6; i++)
        w[i] = (struct read_wait){.deadline_ms = cr.clock.ms + (i == 4 ? 700 : 20000), .done = read_done};
    atomic_store(&t->reads_alone, true);
    atomic_store(&t->shared, true); /* as with threads */
    CHECK(turn_read(t, &w[0]) == 1);
    atomic_store(&t->shared, false);
    CHECK(t->round.head == &w[0]);
    atomic_store(&t->box.wakes, 0);
    CHECK(turn_read(t, &w[1]) == 1 && turn_read(t, &w[2]) == 1);
    CHECK(atomic_load(&t->box.wakes) == 0 && t->round.head == t->round.tail);
    cr_run(50);
    CHECK(reads_done == 3 && w[0].err == 0 && w[1].err == 0 && w[2].err == 0);
    CHECK(turn_read(t, &w[3]) == 1);
    CHECK(atomic_load(&t->box.wakes) != 0); /* now there is none */
    cr_run(50);
    CHECK(reads_done == 4);

    cr_partition(1u << leader);
    CHECK(turn_read(t, &w[4]) == 1);
    (void)turn_step(t);
    CHECK(t->round.head == &w[4]);
    CHECK(turn_read(t, &w[5]) == 1);
    cr_run(1300);
    CHECK(reads_done == 5 && w[4].err == ERR_TIMEOUT);
    cr_partition(0);
    cr_run(2000);
    CHECK(reads_done == 6 && w[5].err == 0);
    cr_free();
}

/* Writes at all the time, through members that stay: none is lost, none happens twice, and those who wrote through a
 * follower do not even hear of it. */
static void the_leader_is_killed(void)
{
    int leader, n = 0, good, old;

    cr_new(3, 3);
    cr.twice = 5;
    leader = cr_await_leader();
    for (int round = 0; round < 4; round++) {
        int first = n;

        for (int i = 0; i < 60; i++) {
            int through = i % 3 + 1;

            if (through == leader)
                through = through % 3 + 1;
            cr_put_key(through, &calls[n], n);
            n++;
            if (i % 7 == 0)
                (void)cr_deliver(); /* some are half way */
            if (i % 11 == 0)
                for (int m = 1; m <= 3; m++)
                    (void)turn_step(cr.member[m].turn);
        }
        old = leader;
        cr_kill(leader);
        cr_run(5000);
        leader = cr_leader();
        CHECK(leader != 0 && leader != old);
        good = answered(first, 60);
        CHECK(good == 60);
        cr_start(old);
        cr_run(1000);
        cr_check_equal();
        for (int i = first; i < n; i++)
            for (int m = 1; m <= 3; m++)
                CHECK(cr_versions(m, i) == 1);
    }
    cr_free();
}

/* Those who wrote through the leader itself do not know: each happened once or never, and whoever heard "done" once. */
static void a_leader_that_is_cut_off(void)
{
    int leader, done = 0;

    cr_new(5, 4);
    leader = cr_await_leader();
    cr_partition(1u << leader);
    for (int i = 0; i < 40; i++)
        cr_put_key(i % 5 + 1, &calls[i], i);
    cr_run(1000);
    for (int i = 0; i < 40; i++)
        if (i % 5 + 1 == leader)
            CHECK(calls[i].answers == 0); /* it cannot know */
    cr_run(4000);
    cr_partition(0);
    cr_run(6000);
    for (int i = 0; i < 40; i++) {
        int64_t versions = cr_versions(1, i);

        CHECK(calls[i].answers == 1);
        if (calls[i].p.err == 0) {
            CHECK(versions == 1);
            done++;
        } else {
            CHECK(versions <= 1);
        }
        cr_call_fini(&calls[i]);
    }
    CHECK(done == 40); /* it came back in time, and knew that the first try was cut: they were made again */
    cr_check_equal();
    cr_free();
}

static int transfers_done;

static void transfer_done(struct transfer_wait *w)
{
    (void)w;
    transfers_done++;
}

static void hand_over(int to)
{
    struct transfer_wait w = {.member = (uint64_t)to, .done = transfer_done};
    int before = transfers_done;

    turn_transfer(cr.member[cr_leader()].turn, &w);
    cr_run(300);
    REQUIRE(transfers_done == before + 1);
    REQUIRE(w.err == 0 && cr_leader() == to);
}

/* A write on its way to a leader of old, who leads again when it arrives: it has been made by way of another
 * meanwhile. */
static void a_write_that_comes_late(void)
{
    int a, b, f;

    cr_new(3, 14);
    a = cr_await_leader();
    f = a % 3 + 1;
    b = f % 3 + 1;
    cr.held[f][a] = true;
    cr_put_key(f, &calls[0], 1);
    cr_run(100);
    CHECK(calls[0].answers == 0);
    hand_over(b);
    CHECK(answered(0, 1) == 1);
    CHECK(cr_versions(f, 1) == 1);
    hand_over(a);
    cr.held[f][a] = false;
    cr_run(300);
    for (int i = 1; i <= 3; i++)
        CHECK(cr_versions(i, 1) == 1);
    cr_check_equal();
    cr_free();
}

static void suspicion_is_faster_than_time(void)
{
    int leader;
    uint64_t start;

    cr_new(3, 5);
    leader = cr_await_leader();
    cr_run(300);
    start = cr.clock.ms;
    cr_kill(leader);
    for (int i = 1; i <= 3; i++)
        if (i != leader)
            turn_suspect(cr.member[i].turn, (uint64_t)leader);
    while (cr_leader() == 0 || cr_leader() == leader) {
        cr_run(10);
        REQUIRE(cr.clock.ms < start + 5000);
    }
    CHECK(cr.clock.ms <= start + 200);
    printf("# a new leader %d ms after the old one's process ended\n", (int)(cr.clock.ms - start));
    cr_free();
}

/* ---- transfers ------------------------------------------------------------------------------------------------ */

static void leadership_is_handed_over(void)
{
    struct transfer_wait w = {.done = transfer_done};
    int leader, to;

    cr_new(3, 6);
    leader = cr_await_leader();
    to = cr_follower();
    transfers_done = 0;
    w.member = (uint64_t)to;
    turn_transfer(cr.member[to].turn, &w); /* it does not lead, so it cannot */
    cr_settle();
    CHECK(transfers_done == 1 && w.err == ERR_NOT_LEADER);
    turn_transfer(cr.member[leader].turn, &w);
    for (int i = 0; i < 50; i++)
        cr_put_key(i % 3 + 1, &calls[i], i); /* refused by the core meanwhile: they wait, and go to the next */
    cr_run(200);
    CHECK(transfers_done == 2 && w.err == 0);
    CHECK(cr_leader() == to);
    CHECK(answered(0, 50) == 50);

    leader = to; /* to whoever is best */
    w = (struct transfer_wait){.done = transfer_done};
    turn_transfer(cr.member[leader].turn, &w);
    cr_run(200);
    CHECK(transfers_done == 3 && w.err == 0 && cr_leader() != leader && cr_leader() != 0);

    leader = cr_leader(); /* to one that is not there: given up */
    to = cr_follower();
    w = (struct transfer_wait){.done = transfer_done, .member = (uint64_t)to};
    cr_kill(to);
    turn_transfer(cr.member[leader].turn, &w);
    cr_run(1500);
    CHECK(transfers_done == 4 && w.err == ERR_TIMEOUT && cr_leader() == leader);
    cr_put_key(leader, &calls[0], 100);
    cr_run(100);
    CHECK(answered(0, 1) == 1);
    w = (struct transfer_wait){.done = transfer_done, .member = 77};
    turn_transfer(cr.member[leader].turn, &w);
    cr_settle();
    CHECK(transfers_done == 5 && w.err == ERR_BAD_TRANSFEREE);
    cr_check_equal();
    cr_free();
}

/* Its heartbeats go on, so only it can see that it should not lead. */
static void a_leader_whose_disk_hangs(void)
{
    int leader;

    cr_new(3, 8);
    leader = cr_await_leader();
    cr.member[leader].disk_hangs = true;
    for (int i = 0; i < 20; i++)
        cr_put_key(i % 3 + 1, &calls[i], i);
    cr_run(500);
    CHECK(cr_leader() == leader); /* the others have it on disk, but who leads waits a while */
    cr_run(1500);
    CHECK(cr_leader() != leader && cr_leader() != 0);
    cr.member[leader].disk_hangs = false;
    cr_run(500);
    CHECK(answered(0, 20) == 20);
    cr_check_equal();
    cr_free();
}

/* ---- leases ------------------------------------------------------------------------------------------------------ */

static int asks_done;

static void ask_done(struct lease_ask *a)
{
    (void)a;
    asks_done++;
}

static struct lease_ask ask(int id, int64_t lease, bool renew)
{
    struct lease_ask a = {.lease = lease, .renew = renew, .deadline_ms = cr.clock.ms + 7000, .done = ask_done};
    int before = asks_done;

    turn_lease_ask(cr.member[id].turn, &a);
    for (int i = 0; i < 800 && asks_done == before; i++)
        cr_run(10);
    REQUIRE(asks_done == before + 1);
    return a;
}

static void grant(int id, int64_t lease, int64_t ttl_s)
{
    Etcdserverpb__LeaseGrantRequest req = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;
    struct cr_call c;

    req.id = lease;
    req.ttl = ttl_s;
    cr_propose_message(id, &c, ENTRY_LEASE_GRANT, &req);
    cr_run(50);
    REQUIRE(c.answers == 1 && c.p.err == 0);
    cr_call_fini(&c);
}

static bool lease_is_there(int64_t lease)
{
    int n = 0, up = 0;

    for (int i = 1; i <= cr.n; i++) {
        up += cr.member[i].up;
        n += cr.member[i].up && lease_exists(cr.member[i].leases, lease);
    }
    return n == up;
}

static void leases_at_any_member(void)
{
    struct lease_ask a;

    cr_new(3, 9);
    (void)cr_await_leader();
    grant(1, 5, 10);
    cr_run(4000);
    for (int i = 1; i <= 3; i++) {
        a = ask(i, 5, false);
        CHECK(a.err == 0 && a.ttl_s == 10 && a.left_ms < 6100 && a.left_ms > 5800);
    }
    for (int i = 1; i <= 3; i++) {
        a = ask(i, 5, true);
        CHECK(a.err == 0 && a.ttl_s == 10);
        a = ask(i, 6, true);
        CHECK(a.err == ERR_LEASE_NOT_FOUND);
    }
    cr_run(9800);
    CHECK(lease_is_there(5));
    cr_run(1000);
    CHECK(!lease_is_there(5));
    a = ask(1, 5, true);
    CHECK(a.err == ERR_LEASE_NOT_FOUND); /* after its revocation there is no renewing */
    cr_check_equal();

    cr_partition(1u << cr_leader()); /* nobody can answer the one who is cut off, in the end */
    a = ask(cr_leader(), 6, false);
    CHECK(a.err == ERR_NO_LEADER || a.err == ERR_TIMEOUT);
    cr_free();
}

/* The leader changes every few seconds, by force or in peace; nobody renews. */
static void ttl_survives_leaders_of(bool peaceful, int ttl_s, int every_ms, int slack_ms)
{
    uint64_t start, end;
    int changes = 0;

    cr_new(3, 10);
    (void)cr_await_leader();
    start = cr.clock.ms;
    grant(2, 5, ttl_s);
    while (lease_is_there(5)) {
        int leader = cr_await_leader();

        REQUIRE(cr.clock.ms < start + 10000ull * (unsigned)ttl_s);
        if (peaceful) {
            struct transfer_wait w = {.done = transfer_done};

            turn_transfer(cr.member[leader].turn, &w);
            cr_run((uint64_t)every_ms);
        } else {
            cr_kill(leader);
            cr_run(20);
            cr_start(leader);
            for (int i = 1; i <= 3; i++)
                turn_suspect(cr.member[i].turn, (uint64_t)leader);
            cr_run((uint64_t)every_ms);
        }
        changes++;
    }
    end = cr.clock.ms;
    printf("# %s: a TTL of %d s ran out after %d ms, over %d leaders\n", peaceful ? "handed over" : "killed", ttl_s,
           (int)(end - start), changes);
    CHECK(end >= start + 1000ull * (unsigned)ttl_s);
    CHECK(end <= start + 1000ull * (unsigned)ttl_s + (unsigned)slack_ms);
    cr_check_equal();
    cr_free();
}

static void ttl_survives_leaders(void)
{
    /* Each handover adds two election timeouts, and at most a tenth of the TTL, or a second. */
    ttl_survives_leaders_of(true, 60, 15000, 8 * 3500);
    ttl_survives_leaders_of(false, 60, 20000, 30000 + 8 * 8500);
}

/* Its holder renews it in time, through any member, while leaders come and go: it never runs out. */
static void renewed_leases_live(void)
{
    cr_new(3, 11);
    (void)cr_await_leader();
    grant(1, 5, 12);
    for (int round = 0; round < 12; round++) {
        struct lease_ask a = ask(round % 3 + 1, 5, true);

        CHECK(a.err == 0 && a.ttl_s == 12);
        if (round % 2) {
            hand_over(cr_await_leader() % 3 + 1);
            cr_run(8000);
        } else {
            cr_run(10500); /* beyond its first checkpoint */
        }
        CHECK(lease_is_there(5));
    }
    cr_run(12000 + 4000);
    CHECK(!lease_is_there(5));
    cr_check_equal();
    cr_free();
}

/* Who leads in fact is asked for each renewal: a leader that is cut off promises nothing. */
static void who_is_cut_off_promises_nothing(void)
{
    struct lease_ask a = {.lease = 5, .renew = true, .done = ask_done};
    int before = asks_done, leader;

    cr_new(3, 15);
    leader = cr_await_leader();
    grant(1, 5, 10);
    cr_partition(1u << leader);
    a.deadline_ms = cr.clock.ms + 7000;
    turn_lease_ask(cr.member[leader].turn, &a);
    cr_run(900);
    CHECK(cr.member[leader].turn->status.role == RAFT_LEADER); /* as it believes */
    CHECK(asks_done == before);
    cr_partition(0);
    cr_run(3000);
    CHECK(asks_done == before + 1 && a.err == 0 && a.ttl_s == 10);
    cr_check_equal();
    cr_free();
}

/* A leader that stood still while it was replaced, and is asked as soon as it goes on, believes that it still leads:
 * the votes of its followers are of before. What it promises must hold with the next one. */
static void the_last_promise_holds(void)
{
    struct lease_ask a;
    uint64_t asked;
    int leader;

    cr_new(3, 15);
    leader = cr_await_leader();
    grant(1, 5, 10);
    cr_run(500);
    cr.member[leader].up = false;
    for (int i = 1; i <= 3; i++)
        if (i != leader)
            turn_suspect(cr.member[i].turn, (uint64_t)leader);
    cr_run(6000);
    REQUIRE(cr_leader() != leader && cr_leader() != 0 && lease_is_there(5));
    cr.member[leader].up = true;
    asked = cr.clock.ms;
    a = ask(leader, 5, true);
    CHECK(a.err == 0 && a.ttl_s == 10);
    cr_run(asked + 9990 - cr.clock.ms);
    CHECK(lease_is_there(5));
    cr_run(3000);
    CHECK(!lease_is_there(5));
    cr_check_equal();
    cr_free();
}

/* ---- members ---------------------------------------------------------------------------------------------------- */

/* A change of the configuration is proposed at any member; the next one waits for it. */
static void configurations_change_one_by_one(void)
{
    struct raft_conf_change learner = {.n = 1}, remove = {.n = 1};
    uint8_t bytes[TURN_CONF_BYTES_MAX];
    int f;

    cr_new(3, 12);
    (void)cr_await_leader();
    f = cr_follower();
    learner.changes[0].op = RAFT_ADD_LEARNER;
    learner.changes[0].id = 4;
    remove.changes[0].op = RAFT_REMOVE;
    remove.changes[0].id = 4;
    cr.n = 3;
    cr_propose(f, &calls[0], ENTRY_CONF, slice_of(bytes, turn_conf_encode(&learner, bytes)));
    cr_propose(f, &calls[1], ENTRY_CONF, slice_of(bytes, turn_conf_encode(&remove, bytes)));
    cr_run(500);
    for (int i = 0; i < 2; i++) {
        CHECK(calls[i].answers == 1);
        cr_call_fini(&calls[i]);
    }
    cr_check_equal();
    cr_put_key(f, &calls[0], 1);
    cr_run(500);
    CHECK(answered(0, 1) == 1);
    cr_free();
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TEST(every_member_takes_writes);
    TEST(a_message_may_come_twice);
    TEST(every_member_reads);
    TEST(reads_survive_the_leader);
    TEST(a_round_is_not_disturbed);
    TEST(the_leader_is_killed);
    TEST(a_leader_that_is_cut_off);
    TEST(a_write_that_comes_late);
    TEST(suspicion_is_faster_than_time);
    TEST(leadership_is_handed_over);
    TEST(a_leader_whose_disk_hangs);
    TEST(leases_at_any_member);
    TEST(ttl_survives_leaders);
    TEST(renewed_leases_live);
    TEST(who_is_cut_off_promises_nothing);
    TEST(the_last_promise_holds);
    TEST(configurations_change_one_by_one);
    return tap_done();
}
