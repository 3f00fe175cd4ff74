/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: both modes of automatic compaction propose what etcd's do, when etcd's do, over hours of a clock set by hand:
 * periodic with retentions below, at and above an hour, revision mode; only while leading; never the same twice; again
 * after a proposal that could not be made. The reference for periodic is etcd's loop, step by step. */
#include "daemon/apply.h"
#include "daemon/turn.h"
#include "err.h"

static int64_t revision_now, compacted_now;
static int propose_rev(struct apply *a, enum entry_kind kind, struct slice body);

#define store_revision(s) ((void)(s), revision_now)
#define store_compact_revision(s) ((void)(s), compacted_now)
#define apply_propose propose_rev
#include "../../daemon/compactor.c"
#include "tap.h"

enum { MINUTE = 60 * 1000, PROPOSALS = 1000 };

static uint64_t now;
static int64_t proposed[PROPOSALS];
static uint64_t proposed_at[PROPOSALS];
static size_t n_proposed;
static int propose_err;
static bool leading;

static int propose_rev(struct apply *a, enum entry_kind kind, struct slice body)
{
    Etcdserverpb__CompactionRequest *req = etcdserverpb__compaction_request__unpack(NULL, body.len, body.ptr);

    (void)a;
    REQUIRE(req && kind == ENTRY_COMPACT && n_proposed < PROPOSALS);
    if (propose_err == 0) {
        proposed[n_proposed] = req->revision;
        proposed_at[n_proposed++] = now;
    }
    etcdserverpb__compaction_request__free_unpacked(req, NULL);
    return propose_err;
}

static uint64_t now_ms(struct clock *c)
{
    (void)c;
    return now;
}

static bool leads(void *ctx)
{
    (void)ctx;
    return leading;
}

static struct compactor *start(enum compactor_mode mode, uint64_t retention)
{
    static struct clock clock = {.now_ms = now_ms};
    struct compactor_options o = {.clock = &clock, .leads = leads, .mode = mode, .retention_ms = retention,
                                  .retention_revisions = (int64_t)retention};
    struct compactor *c;

    now = 77 * MINUTE;
    revision_now = 1;
    compacted_now = -1;
    n_proposed = 0;
    propose_err = 0;
    leading = true;
    REQUIRE(compactor_new(&o, &c) == 0);
    return c;
}

/* One revision a minute. */
static void run(struct compactor *c, int minutes)
{
    for (int i = 0; i < minutes * 60; i++) {
        uint64_t deadline_ms = compactor_step(c);

        CHECK(deadline_ms > now);
        now += 1000;
        if (i % 60 == 59)
            revision_now++;
    }
}

/* etcd's Periodic.Run: a note, a wait, a look; the same again. */
static void check_periodic(uint64_t period_ms)
{
    struct compactor *c = start(COMPACTOR_PERIODIC, period_ms);
    uint64_t begin = now, every = (period_ms < 60 * MINUTE ? period_ms : 60 * MINUTE) / 10, success = begin, t = begin;
    uint64_t base = period_ms;
    size_t keep = period_ms / every + 1, n = 0, at = 0;
    int64_t notes[2000], last = 0;
    int hours = (int)(period_ms / (60 * MINUTE)) + 5;

    run(c, hours * 60);
    while (t + every < begin + (uint64_t)hours * 60 * MINUTE) {
        int64_t rev;

        notes[n++] = 1 + (int64_t)((t - begin) / MINUTE);
        t += every;
        rev = notes[n > keep ? n - keep : 0];
        if (t - success < base || rev == last)
            continue;
        base = period_ms < 60 * MINUTE ? period_ms : 60 * MINUTE;
        if (at >= n_proposed || proposed[at] != rev || proposed_at[at] != t)
            printf("# period %lu: proposal %zu: etcd %ld at %lu, here %ld at %lu\n", (unsigned long)period_ms, at,
                   (long)rev, (unsigned long)(t - begin), (long)proposed[at], (unsigned long)(proposed_at[at] - begin));
        REQUIRE(at < n_proposed && proposed[at] == rev && proposed_at[at] == t);
        at++;
        last = rev;
        success = t;
    }
    CHECK(at == n_proposed && at > 3);
    compactor_free(c);
}

static void periodic_is_etcds(void)
{
    check_periodic(10 * MINUTE);
    check_periodic(50 * MINUTE);
    check_periodic(60 * MINUTE);
    check_periodic(120 * MINUTE);
    check_periodic(24 * 60 * MINUTE);
}

/* What is newer than the retention is never given up. */
static void periodic_keeps(void)
{
    struct compactor *c = start(COMPACTOR_PERIODIC, 30 * MINUTE);

    run(c, 600);
    for (size_t i = 0; i < n_proposed; i++)
        CHECK(proposed[i] <= 1 + (int64_t)((proposed_at[i] - 77 * MINUTE - 30 * MINUTE) / MINUTE));
    CHECK(n_proposed == 19);
    compactor_free(c);
}

/* Nothing new: nothing is proposed; something new: as soon as its note is old enough, not a whole period later. */
static void periodic_rests(void)
{
    struct compactor *c = start(COMPACTOR_PERIODIC, 10 * MINUTE);

    for (int i = 0; i < 100; i++) {
        (void)compactor_step(c);
        now += MINUTE;
    }
    CHECK(n_proposed == 1 && proposed[0] == 1);
    revision_now = 50;
    for (int i = 0; i < 13; i++) {
        (void)compactor_step(c);
        now += MINUTE;
    }
    CHECK(n_proposed == 2 && proposed[1] == 50);
    compactor_free(c);
}

/* Notes are taken meanwhile: whoever becomes leader goes on at once. */
static void only_while_leading(void)
{
    struct compactor *c = start(COMPACTOR_PERIODIC, 10 * MINUTE);

    leading = false;
    run(c, 100);
    CHECK(n_proposed == 0);
    leading = true;
    run(c, 1);
    CHECK(n_proposed == 1 && proposed[0] == 90);
    compactor_free(c);
}

static void tried_again(void)
{
    struct compactor *c = start(COMPACTOR_PERIODIC, 60 * MINUTE);

    propose_err = ERR_TOO_MANY_REQUESTS;
    run(c, 70);
    CHECK(n_proposed == 0);
    propose_err = 0;
    run(c, 6); /* not an hour later */
    CHECK(n_proposed == 1);
    /* Compacted further by somebody else: nothing to propose. */
    compacted_now = INT64_MAX;
    run(c, 200);
    CHECK(n_proposed == 1);
    compactor_free(c);
}

static void by_revision(void)
{
    struct compactor *c = start(COMPACTOR_REVISION, 100);

    run(c, 99);
    CHECK(n_proposed == 0);
    run(c, 102);
    /* Every five minutes, 100 behind. */
    CHECK(n_proposed == 21);
    for (size_t i = 0; i < n_proposed; i++) {
        int64_t then = 1 + (int64_t)((proposed_at[i] - 77 * MINUTE) / MINUTE);

        CHECK(proposed[i] == then - 100 && proposed_at[i] % (5 * MINUTE) == (77 * MINUTE) % (5 * MINUTE));
    }
    now += 60 * MINUTE; /* nothing new since */
    (void)compactor_step(c);
    now += 60 * MINUTE;
    n_proposed = 0;
    (void)compactor_step(c);
    CHECK(n_proposed == 0);
    compactor_free(c);
}

int main(void)
{
    TEST(periodic_is_etcds);
    TEST(periodic_keeps);
    TEST(periodic_rests);
    TEST(only_while_leading);
    TEST(tried_again);
    TEST(by_revision);
    return tap_done();
}
