/* SPDX-License-Identifier: Apache-2.0 */
/* raft_progress.c - what a leader knows of a follower, and the log as runs of terms.
 *
 * Proves: match < next always; a probe sends one message at a time; a full window pauses and a reply opens it; old
 * refusals are ignored; a snapshot stops everything until it has ended. The runs answer as a plain array of terms
 * does, on random cuts, appends and compactions. */
#include <errno.h>
#include "raftcore/progress.h"
#include "raftcore/termlog.h"
#include "tap.h"

static struct progress p;

static void a_probe_sends_one(void)
{
    progress_init(&p, 2, 11, RAFT_INFLIGHT_MAX);
    CHECK(p.state == RAFT_PROBE && p.match == 0 && p.next == 11 && progress_may_send(&p));
    progress_sent(&p, 5);
    CHECK(!progress_may_send(&p) && p.next == 11); /* next moves when it is accepted */
    CHECK(!progress_refused(&p, 7, 3));            /* not what was asked */
    CHECK(progress_refused(&p, 10, 4));
    CHECK(p.next == 5 && progress_may_send(&p));
    progress_sent(&p, 1);
    CHECK(!progress_refused(&p, 10, 4)); /* the same refusal again */
    CHECK(progress_accepted(&p, 5));
    CHECK(p.match == 5 && p.next == 6);
    CHECK(progress_may_send(&p));
    CHECK(progress_accepted(&p, 5)); /* while it probes, that is what ends the probe */
}

static void a_hint_never_leads_below_match(void)
{
    progress_init(&p, 2, 11, RAFT_INFLIGHT_MAX);
    CHECK(progress_accepted(&p, 8));
    p.next = 11;
    CHECK(progress_refused(&p, 10, 2));
    CHECK(p.next == 9);
    CHECK(p.match < p.next);
    p.next = 12;
    CHECK(progress_refused(&p, 11, UINT64_MAX)); /* no hint takes it up */
    CHECK(p.next <= 12);
}

static void a_window_fills_and_opens(void)
{
    progress_init(&p, 2, 1, RAFT_INFLIGHT_MAX);
    progress_replicate(&p);
    for (int i = 0; i < RAFT_INFLIGHT_MAX; i++) {
        CHECK(progress_may_send(&p));
        progress_sent(&p, 10);
    }
    CHECK(!progress_may_send(&p) && progress_window_full(&p));
    CHECK(p.next == 1 + 10 * RAFT_INFLIGHT_MAX);
    CHECK(progress_accepted(&p, 25)); /* two of them */
    CHECK(p.window_n == RAFT_INFLIGHT_MAX - 2 && progress_may_send(&p));
    CHECK(!progress_accepted(&p, 20)); /* old */
    CHECK(p.match == 25);
    progress_sent(&p, 0); /* an empty one takes no room */
    CHECK(p.window_n == RAFT_INFLIGHT_MAX - 2);
    CHECK(!progress_refused(&p, 25, 1)); /* accepted meanwhile */
    CHECK(progress_refused(&p, 300, 1));
    CHECK(p.state == RAFT_PROBE && p.next == 26 && p.window_n == 0);
}

static void a_snapshot_stops_everything(void)
{
    progress_init(&p, 2, 100, RAFT_INFLIGHT_MAX);
    progress_snapshot(&p);
    CHECK(!progress_may_send(&p));
    CHECK(!progress_refused(&p, 99, 0));
    progress_snapshot_ended(&p, false, 150);
    CHECK(p.state == RAFT_PROBE && p.next == 1 && p.paused);
    progress_snapshot(&p);
    progress_snapshot_ended(&p, true, 150);
    CHECK(p.state == RAFT_PROBE && p.next == 151 && p.paused);
    progress_snapshot_ended(&p, true, 900); /* of a transfer nobody waits for */
    CHECK(p.next == 151);
}

/* ---- the log ------------------------------------------------------------------------------------ */

static struct termlog l;

static void what_disks_say_is_checked(void)
{
    static const struct {
        uint64_t base, base_term, last;
        uint32_t n;
        struct raft_run runs[3];
        bool ok;
    } t[] = {
        {0, 0, 0, 0, {{0, 0}}, true},
        {0, 0, 5, 2, {{1, 1}, {4, 3}}, true},
        {10, 2, 15, 1, {{11, 2}}, true},
        {0, 0, 5, 0, {{0, 0}}, false},         /* no terms for five entries */
        {0, 0, 5, 1, {{2, 1}}, false},         /* none for the first */
        {10, 3, 15, 1, {{11, 2}}, false},      /* terms go back */
        {0, 0, 5, 2, {{1, 2}, {3, 1}}, false},
        {0, 0, 5, 2, {{1, 1}, {6, 2}}, false}, /* beyond the last */
        {0, 0, 5, 2, {{1, 1}, {1, 2}}, false},
        {0, 0, 5, 1, {{1, 0}}, false},
        {5, 1, 4, 0, {{0, 0}}, false},
        {5, 0, 5, 0, {{0, 0}}, false},
        {0, 1, 0, 0, {{0, 0}}, false},
    };

    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++)
        CHECK((termlog_init(&l, t[i].base, t[i].base_term, t[i].last, t[i].runs, t[i].n) == 0) == t[i].ok);
}

static void room_has_an_end(void)
{
    REQUIRE(termlog_init(&l, 0, 0, 0, NULL, 0) == 0);
    for (uint64_t term = 1; term <= RAFT_RUNS_MAX; term++) {
        CHECK(termlog_has_room(&l, l.last + 1, term, 1));
        termlog_append(&l, 1, term);
    }
    CHECK(!termlog_has_room(&l, l.last + 1, RAFT_RUNS_MAX + 1, 1));
    CHECK(termlog_has_room(&l, l.last + 1, RAFT_RUNS_MAX, 1)); /* the same term takes no room */
    CHECK(termlog_has_room(&l, l.last, RAFT_RUNS_MAX + 1, 1)); /* nor does one that replaces the last */
    CHECK(!termlog_has_room(&l, l.last, RAFT_RUNS_MAX + 1, 2));
    termlog_compact(&l, 100);
    CHECK(termlog_has_room(&l, l.last + 1, RAFT_RUNS_MAX + 1, 100));
    CHECK(l.runs[0].first == 101 && termlog_term(&l, 101) == 101 && termlog_term(&l, 100) == 100);
}

#define MODEL_MAX 400

static uint64_t model[MODEL_MAX + 1]; /* terms by index */

static void check_against_model(uint64_t rng)
{
    struct raft_run runs[3];
    uint64_t term, to, i = l.base + rng % (l.last - l.base + 1), limit = rng >> 20 & 31;
    uint32_t n;

    for (uint64_t k = l.base; k <= l.last; k++)
        CHECK(termlog_term(&l, k) == model[k]);
    CHECK(termlog_term(&l, l.last + 1) == 0);
    CHECK(l.base == 0 || termlog_term(&l, l.base - 1) == 0);
    to = termlog_runs(&l, i, l.last, runs, 3, &n);
    CHECK(to <= l.last && (to > i || i == l.last) && (to == l.last || n == 3));
    for (uint64_t k = i + 1, r = 0; k <= to; k++) {
        while (r + 1 < n && runs[r + 1].first <= k)
            r++;
        CHECK(runs[r].term == model[k]);
    }
    /* the highest entry <= i of a term <= limit */
    to = i;
    while (to > l.base && model[to] > limit)
        to--;
    CHECK(termlog_at_or_below(&l, i, limit, &term) == to);
    CHECK(term == (model[to] <= limit ? model[to] : 0));
}

static void runs_answer_as_an_array(void)
{
    const char *env = getenv("SEED");
    uint64_t rng = env ? strtoull(env, NULL, 10) : 1, term = 1;

    printf("# SEED=%llu\n", (unsigned long long)rng);
    rng = rng * 0x9e3779b97f4a7c15u | 1;
    for (int round = 0; round < 200; round++) {
        REQUIRE(termlog_init(&l, 0, 0, 0, NULL, 0) == 0);
        model[0] = 0;
        term = 1;
        while (l.last < MODEL_MAX - 20) {
            rng ^= rng << 13, rng ^= rng >> 7, rng ^= rng << 17;
            switch (rng >> 50 & 7) {
            case 0:
                term++;
                break;
            case 1: {
                uint64_t first = l.base + 1 + (rng >> 8) % 8 + (l.last > l.base + 10 ? l.last - l.base - 8 : 0);

                termlog_cut(&l, first);
                term++;
                break;
            }
            case 2:
                termlog_compact(&l, l.base + (rng >> 8) % (l.last - l.base + 1) / 4);
                break;
            default:
                for (uint64_t k = 0; k < 1 + (rng >> 30 & 7); k++)
                    model[l.last + 1 + k] = term;
                termlog_append(&l, 1 + (rng >> 30 & 7), term);
                break;
            }
            check_against_model(rng);
        }
    }
}

int main(void)
{
    TEST(a_probe_sends_one);
    TEST(a_hint_never_leads_below_match);
    TEST(a_window_fills_and_opens);
    TEST(a_snapshot_stops_everything);
    TEST(what_disks_say_is_checked);
    TEST(room_has_an_end);
    TEST(runs_answer_as_an_array);
    return tap_done();
}
