/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: the arrays of the core fill up and refuse instead of overflowing, and take again when there is room: outputs
 * not yet stored (RAFT_STORES_MAX; some are kept for what a leader must store by itself), read rounds that wait
 * (RAFT_READS_MAX), entries a leader may have uncommitted (uncommitted_max), entries of one APPEND (RAFT_APPEND_MAX).
 * RAFT_RUNS_MAX, RAFT_INFLIGHT_MAX and RAFT_MEMBERS_MAX are filled in raft_progress.c and raft_confchange.c. */
#include <stdlib.h>
#include "err.h"
#include "raft.h"
#include "raftcore/core.h"
#include "tap.h"

static struct raft *r;
static struct raft_out out;
static void *mem;

static int step(struct raft_in in)
{
    in.now_ms = 1000000;
    return raft_step(r, &in, &out);
}

/* The leader of one voter, and of a learner if asked for; its first entry is not stored. */
static void lead(uint32_t uncommitted_max, bool learner)
{
    struct raft_params p = {.id = 1,
                            .seed = 5,
                            .heartbeat_ms = 100,
                            .election_ms = 1000,
                            .uncommitted_max = uncommitted_max,
                            .term = 1,
                            .commit = 1,
                            .first_index = 1,
                            .first_term = 1,
                            .last_index = 1,
                            .applied = 1,
                            .conf.voters = {1, {1}}};
    struct raft_status st;

    if (learner)
        p.conf.learners = (struct raft_set){1, {2}};
    mem = malloc(raft_size());
    REQUIRE(raft_init(mem, &p, &r) == 0);
    REQUIRE(step((struct raft_in){.type = RAFT_IN_TIME}) == 0 && out.store_seq == 1);
    REQUIRE(step((struct raft_in){.type = RAFT_IN_STORED, .store_seq = 1}) == 0);
    raft_status(r, &st);
    REQUIRE(st.role == RAFT_LEADER && out.store_seq == 2);
}

static int propose(uint32_t n)
{
    return step((struct raft_in){.type = RAFT_IN_PROPOSE, .n_entries = n});
}

static int stored(uint64_t seq)
{
    return step((struct raft_in){.type = RAFT_IN_STORED, .store_seq = seq});
}

static void stores(void)
{
    uint64_t last = 2, n = 1; /* the leader's own waits already */

    lead(0, false);
    while (n < 2 * RAFT_STORES_MAX && propose(1) == 0) {
        last = out.store_seq;
        n++;
    }
    CHECK(n == RAFT_STORES_MAX - STORES_RESERVED);
    CHECK(propose(1) == ERR_TOO_MANY_REQUESTS);
    CHECK(stored(last / 2) == 0); /* half of them */
    CHECK(propose(1) == 0);
    CHECK(stored(out.store_seq) == 0);
    CHECK(out.apply_to == 1 + n + 1);
    free(mem);
}

static void reads(void)
{
    uint64_t first, n_done = 0;
    int n = 0;

    lead(0, false);
    CHECK(step((struct raft_in){.type = RAFT_IN_READ}) == 0); /* waits for the leader's first commit */
    first = out.read_started;
    for (n = 1; n < 2 * RAFT_READS_MAX && step((struct raft_in){.type = RAFT_IN_READ}) == 0; n++)
        CHECK(out.n_reads == 0 && out.read_started == first + (uint64_t)n);
    CHECK(n == RAFT_READS_MAX);
    CHECK(step((struct raft_in){.type = RAFT_IN_READ}) == ERR_TOO_MANY_REQUESTS);
    CHECK(stored(2) == 0);
    n_done = out.n_reads;
    CHECK(n_done == RAFT_READS_MAX && out.reads[0].ctx == first &&
          out.reads[n_done - 1].ctx == first + n_done - 1);
    CHECK(step((struct raft_in){.type = RAFT_IN_READ}) == 0 && out.n_reads == 1);
    free(mem);
}

static void uncommitted(void)
{
    lead(10, false);
    CHECK(stored(2) == 0);
    CHECK(propose(10) == 0);
    CHECK(propose(1) == ERR_TOO_MANY_REQUESTS);
    CHECK(stored(out.store_seq) == 0);
    CHECK(propose(11) == ERR_TOO_MANY_REQUESTS);
    CHECK(propose(1) == 0);
    free(mem);
}

/* A learner far behind is sent pieces. */
static void one_append(void)
{
    struct raft_msg reply = {.type = RAFT_APPEND_REPLY, .from = 2, .to = 1, .term = 2, .index = 1};
    uint64_t most = 0;

    lead(0, true);
    CHECK(propose(5 * RAFT_APPEND_MAX) == 0);
    CHECK(stored(out.store_seq) == 0);
    CHECK(step((struct raft_in){.type = RAFT_IN_MSG, .msg = &reply}) == 0);
    for (uint32_t i = 0; i < out.n_msgs; i++)
        if (out.msgs[i].type == RAFT_APPEND && out.msgs[i].last - out.msgs[i].index > most)
            most = out.msgs[i].last - out.msgs[i].index;
    CHECK(most == RAFT_APPEND_MAX);
    free(mem);
}

int main(void)
{
    TEST(stores);
    TEST(reads);
    TEST(uncommitted);
    TEST(one_append);
    return tap_done();
}
