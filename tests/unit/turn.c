/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: a sole voter elects itself, commits what is stored and nothing else, batches what waits into one sync,
 * answers every proposal and read exactly once (applied, late, refused, stopped), survives a full disk and dies of
 * a failed sync; a restart finds what was committed; leases run out by a proposal of the term; the log forgets
 * what base holds, but for so many entries and bytes, and never begins with the founding; how a snapshot went is told
 * without an allocation.
 *
 * Apply is a fake of this file: it answers an entry's proposal when told to. */
#include "daemon/turn_impl.h"
#include "daemon/wal_impl.h"
#include "daemon/limits.h"
#include "daemon/log.h"
#include "err.h"
#include "fakedisk.h"
#include "tap.h"
#include <sched.h>
#include <unistd.h>

#define MEMBER 0x77

/* ---- the fake apply ----------------------------------------------------------------------------- */

struct apply {
    struct account *account;
    struct entry_cache *cache;
    struct wal *wal;
    _Atomic uint64_t commit, applied;
    struct apply_wait *waits; /* the tests that step by hand have one thread */
    bool threaded;            /* applies at once, on the turn's thread */
    uint64_t expired_ids, expired_term;
    uint64_t entries;
};

static void apply_some(struct apply *a, uint64_t to)
{
    while (a->applied < to) {
        struct entry *e = entry_cache_get(a->cache, a->applied + 1);
        struct entry_head head;
        struct proposal *p;

        if (e == NULL)
            REQUIRE(wal_read(a->wal, a->applied + 1, &e) == 0);
        REQUIRE(e->index == a->applied + 1);
        REQUIRE(entry_decode(slice_of(e->payload, e->len), &head) == 0);
        a->applied++;
        a->entries++;
        if (head.kind == ENTRY_LEASE_EXPIRE) {
            a->expired_ids += head.body.len / 8;
            a->expired_term = head.proposal_term;
        }
        p = proposal_claim(a->account, head.request_id);
        if (p) {
            p->revision = (int64_t)e->index;
            p->done(p);
        }
        entry_unref(e);
    }
    while (a->waits && a->waits->index <= a->applied) {
        struct apply_wait *w = a->waits;

        a->waits = (struct apply_wait *)w->mail.next;
        w->done(w);
    }
}

void apply_commit_quietly(struct apply *a, uint64_t index)
{
    a->commit = index;
}

void apply_help(struct apply *a)
{
    if (a->threaded)
        apply_some(a, a->commit);
}

void apply_commit(struct apply *a, uint64_t index)
{
    a->commit = index;
    if (a->threaded)
        apply_some(a, index);
}

int apply_wait(struct apply *a, struct apply_wait *w)
{
    if (a->applied >= w->index)
        return 0;
    w->mail.next = (struct mail *)a->waits;
    a->waits = w;
    return 1;
}

uint64_t store_applied(const struct store *s)
{
    return ((const struct apply *)s)->applied;
}

/* ---- the rig ------------------------------------------------------------------------------------ */

static struct rig {
    struct clock clock;
    struct rng rng;
    uint64_t ms, dice;
    struct fakedisk disk;
    struct wal *wal;
    struct entry_cache *cache;
    struct account *account;
    struct lease_table *leases;
    struct apply apply;
    struct turn *turn;
    int fatal, nospace, room;
} g;

static uint64_t now_ms(struct clock *c)
{
    return ((struct rig *)c)->ms;
}

static uint64_t now_us(struct clock *c)
{
    return ((struct rig *)c)->ms * 1000;
}

static int64_t wall_ms(struct clock *c)
{
    return (int64_t)((struct rig *)c)->ms;
}

static uint64_t dice(struct rng *r)
{
    (void)r;
    return g.dice += 0x9e3779b97f4a7c15u;
}

static void on_fatal(void *ctx, int err, const char *what)
{
    (void)ctx;
    (void)err;
    (void)what;
    g.fatal++;
}

static void on_nospace(void *ctx, bool full)
{
    (void)ctx;
    if (full)
        g.nospace++;
    else
        g.room++;
}

static struct wal_options wal_opts(void)
{
    return (struct wal_options){.disk = &g.disk.disk, .dir = "wal", .segment_bytes = LIMIT_WAL_SEGMENT_BYTES,
                                .cluster_id = 1, .member_id = MEMBER, .rng = &g.rng};
}

static void rig_start(uint64_t applied)
{
    struct wal_options wo = wal_opts();
    struct turn_options o = {
        .clock = &g.clock, .rng = &g.rng, .account = g.account = account_new(LIMIT_PROPOSALS, LIMIT_PROPOSAL_BYTES, 9),
        .cache = g.cache = entry_cache_new(1 << 20), .apply = &g.apply, .store = (struct store *)&g.apply,
        .leases = g.leases = lease_table_new(&g.clock, 2), .member_id = MEMBER,
        .conf = {.voters = {.n = 1, .ids = {MEMBER}}}, .applied_index = applied, .catchup_entries = 10,
        .heartbeat_ms = 100, .election_ms = 1000, .fatal = on_fatal, .nospace = on_nospace,
    };
    char why[256];

    REQUIRE(wal_open(&wo, &g.wal, &o.wal_state, why, sizeof why) == 0);
    o.wal = g.wal;
    g.apply = (struct apply){.account = g.account, .cache = g.cache, .wal = g.wal};
    g.apply.applied = applied;
    REQUIRE(turn_new(&o, &g.turn) == 0);
}

static void rig_new(void)
{
    struct wal_options wo;
    struct wal_state hard = {0};

    memset(&g, 0, sizeof g);
    g.clock = (struct clock){now_ms, now_us, wall_ms};
    g.rng.next = dice;
    g.ms = 5000;
    fakedisk_init(&g.disk, 1);
    wo = wal_opts();
    REQUIRE(wal_create(&wo, 0, 0, &hard) == 0);
    rig_start(0);
}

static void rig_stop(void)
{
    turn_stop(g.turn);
    turn_free(g.turn);
    wal_close(g.wal);
    entry_cache_free(g.cache);
    account_free(g.account);
    lease_table_free(g.leases);
}

static void rig_free(void)
{
    rig_stop();
    fakedisk_fini(&g.disk);
}

/* Turn, WAL and apply in turn until nothing moves. */
static void settle(void)
{
    for (int i = 0; i < 20; i++) {
        (void)turn_step(g.turn);
        (void)turn_wal_step(g.turn);
        apply_some(&g.apply, g.apply.commit);
    }
}

struct call {
    struct proposal p;
    size_t bytes;
    int answers;
};

static void call_done(struct proposal *p)
{
    struct call *c = (struct call *)p;

    c->answers++;
    account_give(g.account, p, c->bytes);
    entry_unref(p->entry);
}

static void call(struct call *c, size_t body)
{
    struct entry_head head = {.kind = ENTRY_PUT, .origin = MEMBER};
    uint8_t *bytes = calloc(1, body);

    *c = (struct call){.bytes = body, .p = {.deadline_ms = g.ms + 7000, .done = call_done}};
    REQUIRE(account_take(g.account, &c->p, c->bytes) == 0);
    head.request_id = c->p.request_id;
    head.body = slice_of(bytes, body);
    c->p.entry = entry_new(entry_size(&head));
    entry_encode(&head, c->p.entry->payload);
    free(bytes);
    turn_propose(g.turn, &c->p);
}

static struct turn_status status(void)
{
    struct turn_status s;

    turn_status(g.turn, &s);
    return s;
}

static int reads_done;

static void read_done(struct read_wait *w)
{
    (void)w;
    reads_done++;
}

/* ---- tests -------------------------------------------------------------------------------------- */

static void elects_itself_and_commits(void)
{
    struct call c;

    rig_new();
    CHECK(!status().is_leader);
    settle();
    CHECK(status().is_leader && status().sole_leader);
    CHECK(status().term == 1 && status().leader == MEMBER && status().leader_changes == 1);
    CHECK(g.apply.applied == 1); /* the empty entry of its term */
    call(&c, 100);
    (void)turn_step(g.turn);
    CHECK(g.apply.commit == 1); /* handed to the WAL thread, not stored */
    (void)turn_wal_step(g.turn);
    CHECK(g.apply.commit == 1);
    (void)turn_step(g.turn);
    CHECK(g.apply.commit == 2);
    apply_some(&g.apply, 2);
    CHECK(c.answers == 1 && c.p.err == 0 && c.p.revision == 2);
    rig_free();
}

static void sleeps_when_idle(void)
{
    rig_new();
    settle();
    g.ms += 600; /* the look at the leases */
    CHECK(turn_step(g.turn) == UINT64_MAX);
    CHECK(turn_wal_step(g.turn) == UINT64_MAX);
    rig_free();
}

static void one_sync_for_all_that_waits(void)
{
    static struct call c[200];
    uint64_t before;

    rig_new();
    settle();
    before = status().wal_fsyncs;
    for (int i = 0; i < 100; i++)
        call(&c[i], 50);
    (void)turn_step(g.turn);
    for (int i = 100; i < 200; i++) { /* these come while the first batch waits for its disk */
        call(&c[i], 50);
        (void)turn_step(g.turn);
    }
    (void)turn_wal_step(g.turn);
    (void)turn_step(g.turn);
    apply_some(&g.apply, g.apply.commit);
    CHECK(status().wal_fsyncs == before + 1);
    for (int i = 0; i < 200; i++)
        CHECK(c[i].answers == 1 && c[i].p.revision == i + 2);
    rig_free();
}

static void reads_wait_for_the_first_commit(void)
{
    struct read_wait w = {.deadline_ms = 1000000, .done = read_done}, late = {.deadline_ms = 1, .done = read_done}, x;

    rig_new();
    reads_done = 0;
    CHECK(turn_read(g.turn, &w) == 1);
    CHECK(turn_read(g.turn, &late) == 1);
    (void)turn_step(g.turn);
    CHECK(reads_done == 1 && late.err == ERR_TIMEOUT);
    settle();
    CHECK(reads_done == 2 && w.err == 0);
    CHECK(turn_read(g.turn, &x) == 0);
    rig_free();
}

static void too_many_reads(void)
{
    static struct read_wait w[LIMIT_READ_WAITS + 5];
    int refused = 0;

    rig_new();
    reads_done = 0;
    for (int i = 0; i < LIMIT_READ_WAITS + 5; i++) {
        w[i] = (struct read_wait){.deadline_ms = 1000000, .done = read_done};
        CHECK(turn_read(g.turn, &w[i]) == 1);
    }
    settle();
    for (int i = 0; i < LIMIT_READ_WAITS + 5; i++)
        refused += w[i].err == ERR_TOO_MANY_REQUESTS;
    CHECK(reads_done == LIMIT_READ_WAITS + 5);
    CHECK(refused == 5);
    rig_free();
}

static void full_disk_is_waited_for(void)
{
    static struct call big[40];
    uint64_t at = 0;

    rig_new();
    settle();
    g.disk.capacity = 1; /* nothing more fits */
    for (int i = 0; i < 40; i++) /* more than the first segment holds */
        call(&big[i], 1 << 20);
    for (int i = 0; i < 60 && g.nospace == 0; i++) {
        (void)turn_step(g.turn);
        at = turn_wal_step(g.turn);
        apply_some(&g.apply, g.apply.commit);
    }
    CHECK(g.nospace > 0 && g.fatal == 0);
    CHECK(at == g.ms + 1000);
    CHECK(big[39].answers == 0);
    g.disk.capacity = 0;
    g.ms += 1000;
    for (int i = 0; i < 60; i++)
        settle();
    CHECK(g.room > 0);
    for (int i = 0; i < 40; i++)
        CHECK(big[i].answers == 1 && big[i].p.err == 0);
    rig_free();
}

static void failed_sync_is_final(void)
{
    struct call c;
    uint64_t commit;

    rig_new();
    settle();
    commit = g.apply.commit;
    call(&c, 100);
    (void)turn_step(g.turn);
    g.disk.fail_call = g.disk.calls + 1;
    g.disk.fail_err = -EIO;
    g.disk.fail_for_ever = true;
    for (int i = 0; i < 5; i++) {
        (void)turn_wal_step(g.turn);
        (void)turn_step(g.turn);
    }
    CHECK(g.fatal == 1);
    CHECK(g.apply.commit == commit && c.answers == 0);
    g.disk.fail_call = 0;
    g.disk.fail_for_ever = false;
    settle(); /* the disk works again: too late, nobody knows what it holds */
    CHECK(g.apply.commit == commit && g.fatal == 1);
    turn_stop(g.turn);
    CHECK(c.answers == 1 && c.p.err == ERR_STOPPED);
    rig_free();
}

static void late_proposals_are_answered(void)
{
    struct call before, c;

    rig_new();
    call(&before, 10); /* nobody leads: its WAL has not stored the vote */
    (void)turn_step(g.turn);
    g.ms += 7001;
    (void)turn_step(g.turn);
    CHECK(before.answers == 1 && before.p.err == ERR_DEADLINE);
    settle();
    call(&c, 10);
    (void)turn_step(g.turn); /* handed over, and the disk hangs */
    g.ms += 7001;
    (void)turn_step(g.turn);
    CHECK(c.answers == 1 && c.p.err == ERR_TIMEOUT);
    settle();
    CHECK(c.answers == 1); /* applied all the same, nobody waits */
    CHECK(status().proposals_failed == 2);
    rig_free();
}

static void gathers_no_more_than_two_batches(void)
{
    static struct call c[40];
    size_t unstored;

    rig_new();
    settle();
    for (int i = 0; i < 40; i++)
        call(&c[i], 1 << 20);
    for (int i = 0; i < 5; i++)
        (void)turn_step(g.turn);
    unstored = g.turn->unstored_bytes;
    CHECK(unstored >= 2 * (size_t)LIMIT_WAL_BATCH_BYTES);
    CHECK(unstored < 2 * (size_t)LIMIT_WAL_BATCH_BYTES + (2 << 20));
    for (int i = 0; i < 10; i++)
        settle();
    for (int i = 0; i < 40; i++)
        CHECK(c[i].answers == 1);
    rig_free();
}

static void restart_finds_what_was_committed(void)
{
    static struct call c[50];

    rig_new();
    settle();
    for (int i = 0; i < 50; i++)
        call(&c[i], 10);
    settle();
    rig_stop();
    fakedisk_crash(&g.disk, FAKE_RANDOM);
    rig_start(20); /* base had got that far */
    CHECK(!status().sole_leader);
    (void)turn_step(g.turn);
    (void)turn_wal_step(g.turn);
    CHECK(!status().is_leader); /* first apply must reach what is known to be committed */
    settle();
    CHECK(g.apply.applied == 52); /* 1 + 50, and the empty entry of the new term */
    CHECK(status().term == 2 && status().sole_leader);
    rig_free();
}

static void leases_run_out_by_proposal(void)
{
    rig_new();
    settle();
    for (int64_t i = 1; i <= 700; i++)
        REQUIRE(lease_grant(g.leases, i, 5, 0) == 0);
    g.ms += 600;
    CHECK(turn_step(g.turn) <= g.ms + 5000);
    settle();
    CHECK(g.apply.expired_ids == 0);
    for (int i = 0; i < 30; i++) {
        g.ms += 300;
        settle();
    }
    CHECK(g.apply.expired_ids >= 700);
    CHECK(g.apply.expired_term == 1);
    rig_free();
}

static void log_forgets_what_base_holds(void)
{
    static struct call c[100];
    struct entry *e;

    rig_new();
    settle();
    for (int i = 0; i < 100; i++)
        call(&c[i], 10);
    settle();
    turn_flushed(g.turn, 90);
    settle();
    CHECK(g.turn->release_to == 80); /* ten stay for followers */
    CHECK(g.turn->status.first_index == 80);
    CHECK(wal_read(g.wal, 95, &e) == 0);
    entry_unref(e);
    rig_free();
}

/* Followers are kept so many entries, but no more than so many bytes of them. */
static void large_entries_are_kept_for_nobody(void)
{
    enum { N = 40 };
    static struct call c[N];
    struct wal_segment *newest;
    uint64_t keep;

    rig_new();
    settle();
    g.turn->o.catchup_entries = g.turn->o.snapshot_count = 100000;
    turn_flushed(g.turn, 2);
    settle();
    CHECK(g.turn->release_to == 1);
    for (int i = 0; i < N; i++) {
        call(&c[i], 300 << 10);
        settle();
    }
    REQUIRE(g.wal->n_segments == 2);
    newest = g.wal->segments[1];
    keep = newest->first - 1;
    REQUIRE(keep > 1 && keep < N);
    turn_flushed(g.turn, N);
    settle();
    CHECK(g.turn->release_to == 1); /* the two are small */
    newest->size = g.wal->segments[0]->size = LIMIT_CATCHUP_BYTES - 1; /* as if they were not */
    turn_flushed(g.turn, keep - 1);
    settle();
    CHECK(g.turn->release_to == keep - 1); /* never what base has not */
    turn_flushed(g.turn, N);
    settle();
    CHECK(g.turn->release_to == keep && g.turn->status.first_index == keep);
    rig_free();
}

/* A log that begins at index 0 does not hold the founding configuration: whoever joins is given a snapshot. */
static void a_log_does_not_begin_with_the_founding(void)
{
    static struct call c[3];

    rig_new();
    settle();
    for (int i = 0; i < 3; i++)
        call(&c[i], 10);
    settle();
    REQUIRE(g.turn->status.first_index == 0);
    turn_flushed(g.turn, 3);
    settle();
    CHECK(g.turn->status.first_index == 1 && g.turn->release_to == 1);
    rig_free();
}

/* That a snapshot was sent, or not, is told without an allocation, for each member there may be. */
static void how_a_snapshot_went_is_not_lost(void)
{
    struct mail *m;
    int n = 0;

    rig_new();
    settle();
    for (int round = 0; round < 3; round++) {
        for (uint64_t i = 0; i < RAFT_MEMBERS_MAX; i++)
            turn_snapshot_sent(g.turn, 2 + i, i % 2, 1);
        for (n = 0, m = atomic_load(&g.turn->event_box.head); m; m = m->next, n++) {
            struct peer_event *e = (struct peer_event *)m;

            CHECK(e >= g.turn->sent_events && e < g.turn->sent_events + RAFT_MEMBERS_MAX);
        }
        CHECK(n == RAFT_MEMBERS_MAX);
        (void)turn_step(g.turn);
    }
    turn_snapshot_sent(g.turn, 2, true, 1); /* and what is not stepped is not freed twice */
    rig_free();
}

static void stop_answers_everybody(void)
{
    struct call waits, stored, later;
    struct read_wait r = {.deadline_ms = 1000000, .done = read_done}, r2 = r;

    rig_new();
    reads_done = 0;
    (void)turn_read(g.turn, &r);
    call(&waits, 10);
    turn_stop(g.turn);
    CHECK(waits.answers == 1 && waits.p.err == ERR_STOPPED);
    CHECK(reads_done == 1 && r.err == ERR_STOPPED);
    call(&later, 10);
    CHECK(later.answers == 1 && later.p.err == ERR_STOPPED);
    (void)turn_read(g.turn, &r2);
    CHECK(reads_done == 2 && r2.err == ERR_STOPPED);
    rig_free();

    rig_new();
    settle();
    call(&stored, 10);
    (void)turn_step(g.turn);
    (void)turn_wal_step(g.turn); /* stored, and never applied */
    turn_stop(g.turn);
    CHECK(stored.answers == 1 && stored.p.err == ERR_STOPPED);
    rig_free();
}

static void conf_entries_survive_their_bytes(void)
{
    struct raft_conf_change c = {.transition = RAFT_TRANSITION_EXPLICIT, .n = 2}, d;
    uint8_t bytes[TURN_CONF_BYTES_MAX];
    struct slice rest;
    size_t n;

    c.changes[0].op = RAFT_ADD_LEARNER;
    c.changes[0].id = 0x1122334455667788;
    c.changes[1].op = RAFT_REMOVE;
    c.changes[1].id = 3;
    n = turn_conf_encode(&c, bytes);
    CHECK(n == 20);
    CHECK(turn_conf_decode(slice_of(bytes, n), &d, NULL) == 0);
    CHECK(d.transition == c.transition && d.n == 2 && d.changes[0].id == c.changes[0].id &&
          d.changes[0].op == RAFT_ADD_LEARNER && d.changes[1].op == RAFT_REMOVE);
    CHECK(turn_conf_decode(slice_of(bytes, n + 3), &d, &rest) == 0 && rest.ptr == bytes + n && rest.len == 3);
    for (size_t i = 0; i < n; i++)
        CHECK(turn_conf_decode(slice_of(bytes, i), &d, NULL) == -EBADMSG);
    bytes[0] = 9;
    CHECK(turn_conf_decode(slice_of(bytes, n), &d, NULL) == -EBADMSG);
}

/* ---- real threads ------------------------------------------------------------------------------- */

#define PUSHERS 4
#define PUSHES 3000

static _Atomic uint64_t pushed_done;

static void push_done(struct proposal *p)
{
    account_give(g.account, p, 10);
    entry_unref(p->entry);
    free(p);
    atomic_fetch_add(&pushed_done, 1);
}

static void *pusher(void *arg)
{
    for (int i = 0; i < PUSHES; i++) {
        struct proposal *p = calloc(1, sizeof *p);
        struct entry_head head = {.kind = ENTRY_PUT, .origin = MEMBER};

        p->deadline_ms = UINT64_MAX;
        p->done = push_done;
        while (account_take(g.account, p, 10) != 0)
            sched_yield();
        head.request_id = p->request_id;
        p->entry = entry_new(entry_size(&head));
        entry_encode(&head, p->entry->payload);
        turn_propose(g.turn, p);
    }
    return arg;
}

static void every_thread_is_answered(void)
{
    pthread_t th[PUSHERS];

    rig_new();
    g.apply.threaded = true;
    g.turn->o.clock = clock_real();
    pushed_done = 0;
    REQUIRE(turn_start(g.turn) == 0);
    for (int i = 0; i < PUSHERS; i++)
        REQUIRE(pthread_create(&th[i], NULL, pusher, NULL) == 0);
    for (int i = 0; i < PUSHERS; i++)
        pthread_join(th[i], NULL);
    for (int i = 0; i < 10000 && pushed_done < PUSHERS * PUSHES; i++)
        usleep(1000);
    CHECK(pushed_done == PUSHERS * PUSHES);
    CHECK(status().wal_fsyncs < PUSHERS * PUSHES);
    printf("# %d proposals, %llu syncs\n", PUSHERS * PUSHES, (unsigned long long)status().wal_fsyncs);
    rig_free();
}

int main(void)
{
    log_set_level(LOG_LEVEL_WARN);
    TEST(elects_itself_and_commits);
    TEST(sleeps_when_idle);
    TEST(one_sync_for_all_that_waits);
    TEST(reads_wait_for_the_first_commit);
    TEST(too_many_reads);
    TEST(full_disk_is_waited_for);
    TEST(failed_sync_is_final);
    TEST(late_proposals_are_answered);
    TEST(gathers_no_more_than_two_batches);
    TEST(restart_finds_what_was_committed);
    TEST(leases_run_out_by_proposal);
    TEST(log_forgets_what_base_holds);
    TEST(large_entries_are_kept_for_nobody);
    TEST(a_log_does_not_begin_with_the_founding);
    TEST(how_a_snapshot_went_is_not_lost);
    TEST(stop_answers_everybody);
    TEST(conf_entries_survive_their_bytes);
    TEST(every_thread_is_answered);
    return tap_done();
}
