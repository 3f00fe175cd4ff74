/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: what other members and calls can pile up in a turn has a bound, and who comes beyond it is dropped, sent back
 * or refused, as limits.h says: LIMIT_PEER_INBOX and _BYTES, LIMIT_PEER_ENTRIES, LIMIT_PROPOSE_ENTRIES and _BYTES,
 * LIMIT_FOREIGN_PROPOSALS and _BYTES, LIMIT_LEASE_ASKS, LIMIT_LEASE_QUERIES, LIMIT_UNCOMMITTED. Afterwards all goes
 * on. */
#include <errno.h>
#include "cluster_rig.h"
#include "err.h"

/* ---- what a member sends ----------------------------------------------------------------------------- */

/* In place of the network: counts, and lets go. */
static struct {
    int proposes, refused_ids, renewed;
    uint32_t entries_max;
    size_t bytes_max;
} seen;

static size_t payload_bytes(const struct peer_msg *m)
{
    size_t n = 0;

    for (uint32_t i = 0; i < m->n_entries; i++)
        n += m->entries[i]->len;
    return n;
}

static void watching_send(struct transport *t, struct peer_msg *m)
{
    if (m->kind == PEER_PROPOSE) {
        seen.proposes++;
        if (m->n_entries > seen.entries_max)
            seen.entries_max = m->n_entries;
        if (payload_bytes(m) > seen.bytes_max)
            seen.bytes_max = payload_bytes(m);
    }
    seen.refused_ids += m->kind == PEER_REFUSED ? (int)m->n_ids : 0;
    seen.renewed += m->kind == PEER_LEASE_RENEWED;
    cr_send(t, m);
}

static void watch(int id)
{
    memset(&seen, 0, sizeof seen);
    cr.member[id].transport.transport.send = watching_send;
}

/* A PROPOSE of member `from` with n writes of so many bytes, as the leader gets it. */
static struct peer_msg *propose_msg(int from, int to, uint32_t n, size_t bytes)
{
    static uint64_t id = 1000, request = 1u << 20;
    struct peer_msg *m = peer_msg_new(PEER_PROPOSE, (uint64_t)from, (uint64_t)to);
    Etcdserverpb__PutRequest req = ETCDSERVERPB__PUT_REQUEST__INIT;
    uint8_t *body = calloc(1, bytes + 64);
    char *value = calloc(1, bytes);

    REQUIRE(m && body && value);
    req.key = (ProtobufCBinaryData){1, (uint8_t *)"k"};
    req.value = (ProtobufCBinaryData){bytes, (uint8_t *)value};
    m->id = id++;
    m->hash = 99;
    m->index = cr.member[to].turn->status.term;
    m->entries = calloc(n, sizeof *m->entries);
    REQUIRE(m->entries != NULL);
    for (; m->n_entries < n; m->n_entries++) {
        struct entry_head h = {.kind = ENTRY_PUT, .origin = (uint64_t)from, .request_id = request++};
        struct entry *e;

        h.body = slice_of(body, etcdserverpb__put_request__pack(&req, body));
        e = entry_new(entry_size(&h));
        REQUIRE(e != NULL);
        entry_encode(&h, e->payload);
        m->entries[m->n_entries] = e;
    }
    free(body);
    free(value);
    return m;
}

/* ---- the tests ----------------------------------------------------------------------------------------- */

static void inbox(void)
{
    struct cr_member *m;
    int f;

    cr_new(3, 1);
    (void)cr_await_leader();
    f = cr_follower();
    m = &cr.member[f];
    for (int i = 0; i < LIMIT_PEER_INBOX + 5; i++)
        turn_receive(m->turn, peer_msg_new(PEER_STATE_HASH, 1, (uint64_t)f));
    CHECK(m->turn->pub_dropped == 5);
    (void)turn_step(m->turn);
    CHECK(m->turn->inbox == 0 && m->turn->inbox_bytes == 0);
    for (int i = 0; i < 70; i++) /* a follower sends them back, once they are stepped */
        turn_receive(m->turn, propose_msg(1, f, 1, 1 << 20));
    CHECK(m->turn->pub_dropped == 5 + 70 - 64);
    cr_run(50);
    CHECK(m->turn->inbox == 0 && m->turn->inbox_bytes == 0);
    cr_free();
}

static void entries_of_a_message(void)
{
    struct peer_msg *m = peer_msg_new(PEER_PROPOSE, 1, 2), *back;
    uint8_t *bytes;
    size_t n;

    REQUIRE(m != NULL);
    m->entries = calloc(LIMIT_PEER_ENTRIES + 1, sizeof *m->entries);
    for (; m->n_entries < LIMIT_PEER_ENTRIES + 1; m->n_entries++)
        REQUIRE((m->entries[m->n_entries] = entry_new(0)) != NULL);
    n = peer_msg_size(m);
    bytes = malloc(n);
    REQUIRE(bytes != NULL);
    peer_msg_encode(m, bytes);
    CHECK(peer_msg_decode(slice_of(bytes, n), &back) == -EBADMSG);
    put_u32le(bytes + 4, LIMIT_PEER_ENTRIES);
    CHECK(peer_msg_decode(slice_of(bytes, n - 4), &back) == 0);
    peer_msg_free(back);
    peer_msg_free(m);
    free(bytes);
}

static struct cr_call calls[2000];

static void proposals_of_a_message(void)
{
    static char big[300 << 10];
    Etcdserverpb__PutRequest req = ETCDSERVERPB__PUT_REQUEST__INIT;
    int f, good = 0;

    cr_new(3, 2);
    (void)cr_await_leader();
    f = cr_follower();
    watch(f);
    for (int i = 0; i < 2000; i++)
        cr_put_key(f, &calls[i], i);
    cr_run(100);
    CHECK(seen.entries_max == LIMIT_PROPOSE_ENTRIES && seen.proposes == 4);
    for (int i = 0; i < 2000; i++) {
        good += calls[i].answers == 1 && calls[i].p.err == 0;
        cr_call_fini(&calls[i]);
    }
    CHECK(good == 2000);
    watch(f);
    req.key = (ProtobufCBinaryData){1, (uint8_t *)"k"};
    req.value = (ProtobufCBinaryData){sizeof big, (uint8_t *)big};
    for (int i = 0; i < 20; i++)
        cr_propose_message(f, &calls[i], ENTRY_PUT, &req);
    cr_run(100);
    CHECK(seen.proposes == 5); /* of four each: the one that goes past the limit is still with it */
    CHECK(seen.bytes_max >= LIMIT_PROPOSE_BYTES && seen.bytes_max < LIMIT_PROPOSE_BYTES + sizeof big + 100);
    for (int i = 0; i < 20; i++) {
        CHECK(calls[i].answers == 1 && calls[i].p.err == 0);
        cr_call_fini(&calls[i]);
    }
    cr_free();
}

/* The leader's log takes nothing for now. */
static void foreign_proposals(void)
{
    struct cr_member *m;
    int leader, f;

    cr_new(3, 3);
    leader = cr_await_leader();
    m = &cr.member[leader];
    f = cr_follower();
    watch(leader);
    m->disk_hangs = true;
    for (int i = 0; i < 3; i++) { /* fills the WAL thread's queue */
        turn_receive(m->turn, propose_msg(f, leader, 7, 1 << 20));
        (void)turn_step(m->turn);
    }
    REQUIRE(turn_room_bytes(m->turn) == 0);
    for (int i = 0; i < LIMIT_FOREIGN_PROPOSALS / 500 + 3; i++) {
        turn_receive(m->turn, propose_msg(f, leader, 500, 10));
        (void)turn_step(m->turn);
    }
    CHECK(m->turn->n_foreign <= LIMIT_FOREIGN_PROPOSALS && m->turn->n_foreign > LIMIT_FOREIGN_PROPOSALS - 500);
    CHECK(seen.refused_ids >= 3 * 500 && seen.refused_ids <= 5 * 500);
    m->disk_hangs = false;
    cr_run(300);
    CHECK(m->turn->n_foreign == 0 && m->turn->foreign_bytes == 0);

    m->disk_hangs = true;
    watch(leader);
    for (int i = 0; i < 16; i++) {
        turn_receive(m->turn, propose_msg(f, leader, 7, 1 << 20));
        (void)turn_step(m->turn);
    }
    CHECK(m->turn->foreign_bytes <= LIMIT_FOREIGN_BYTES && m->turn->foreign_bytes > LIMIT_FOREIGN_BYTES - (8 << 20));
    CHECK(seen.refused_ids > 0);
    m->disk_hangs = false;
    cr_run(300);
    CHECK(m->turn->n_foreign == 0 && m->turn->foreign_bytes == 0);
    cr_check_equal();
    cr_free();
}

static void uncommitted_entries(void)
{
    struct raft_status *st;
    struct cr_member *m;
    int leader, f;

    cr_new(3, 4);
    leader = cr_await_leader();
    m = &cr.member[leader];
    f = cr_follower();
    cr_partition(1u << leader);
    for (int i = 0; i < LIMIT_UNCOMMITTED / 500 + 10; i++) {
        turn_receive(m->turn, propose_msg(f, leader, 500, 10));
        (void)turn_step(m->turn);
        (void)turn_wal_step(m->turn);
    }
    st = &m->turn->status;
    CHECK(st->last_index - st->commit <= LIMIT_UNCOMMITTED && st->last_index - st->commit > LIMIT_UNCOMMITTED - 500);
    CHECK(m->turn->n_foreign > 0);
    cr_partition(0);
    cr_run(1000);
    CHECK(m->turn->n_foreign == 0);
    cr_check_equal();
    cr_free();
}

/* ---- leases ------------------------------------------------------------------------------------------------ */

static int asks_done, asks_refused;

static void ask_done(struct lease_ask *a)
{
    asks_done++;
    asks_refused += a->err == ERR_TOO_MANY_REQUESTS;
}

static void lease_asks(void)
{
    static struct lease_ask asks[LIMIT_LEASE_ASKS + 3];
    struct cr_member *m;
    int f;

    cr_new(3, 5);
    (void)cr_await_leader();
    f = cr_follower();
    m = &cr.member[f];
    asks_done = asks_refused = 0;
    for (int i = 0; i < LIMIT_LEASE_ASKS + 3; i++) {
        asks[i] = (struct lease_ask){.lease = i + 1, .deadline_ms = cr.clock.ms + 7000, .done = ask_done};
        turn_lease_ask(m->turn, &asks[i]);
    }
    (void)turn_step(m->turn);
    CHECK(asks_done == 3 && asks_refused == 3);
    cr_run(5000); /* the inbox drops many: they are asked again */
    CHECK(asks_done == LIMIT_LEASE_ASKS + 3 && asks_refused == 3);
    cr_free();
}

/* Of a leader that does not yet know the leases. */
static void lease_queries(void)
{
    struct cr_member *m = NULL;

    cr_new(3, 6);
    for (int i = 0; i < 400 && m == NULL; i++) { /* like cr_run, but nothing is applied */
        cr.clock.ms += 10;
        for (int k = 1; k <= 3; k++) {
            (void)turn_step(cr.member[k].turn);
            (void)turn_wal_step(cr.member[k].turn);
            if (cr.member[k].turn->status.role == RAFT_LEADER)
                m = &cr.member[k];
        }
        (void)cr_deliver();
    }
    REQUIRE(m != NULL && !m->turn->own_applied);
    watch((int)m->id);
    for (int i = 0; i < LIMIT_LEASE_QUERIES + 1000; i++) {
        struct peer_msg *q = peer_msg_new(PEER_LEASE_RENEW, m->id % 3 + 1, m->id);

        REQUIRE(q != NULL);
        q->lease = i + 1;
        turn_receive(m->turn, q);
        if (i % 1000 == 0)
            (void)turn_step(m->turn);
    }
    (void)turn_step(m->turn);
    CHECK(m->turn->n_queries == LIMIT_LEASE_QUERIES);
    cr_run(1000);
    CHECK(m->turn->n_queries == 0 && seen.renewed == LIMIT_LEASE_QUERIES);
    cr_free();
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TEST(inbox);
    TEST(entries_of_a_message);
    TEST(proposals_of_a_message);
    TEST(foreign_proposals);
    TEST(uncommitted_entries);
    TEST(lease_asks);
    TEST(lease_queries);
    return tap_done();
}
