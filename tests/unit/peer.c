/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: every field of every kind of message survives its bytes; no prefix of a good message, and none with a claim
 * larger than what follows, is taken; an APPEND is filled from the cache or the log with exactly the entries it names,
 * in pieces that follow each other when they are too many, and not at all with those of another leader's log. */
#include <errno.h>
#include "daemon/limits.h"
#include "daemon/peer.h"
#include "fakedisk.h"
#include "tap.h"

static struct peer_msg *round_trip(const struct peer_msg *m)
{
    size_t n = peer_msg_size(m);
    uint8_t *bytes = malloc(n);
    struct peer_msg *back, *none;

    REQUIRE(bytes != NULL);
    peer_msg_encode(m, bytes);
    for (size_t i = 0; i < n; i++)
        CHECK(peer_msg_decode(slice_of(bytes, i), &none) == -EBADMSG);
    REQUIRE(peer_msg_decode(slice_of(bytes, n), &back) == 0);
    CHECK(back->kind == m->kind && back->from == m->from && back->to == m->to);
    CHECK(back->n_entries == m->n_entries);
    for (uint32_t i = 0; i < m->n_entries; i++)
        CHECK(slice_eq(slice_of(back->entries[i]->payload, back->entries[i]->len),
                       slice_of(m->entries[i]->payload, m->entries[i]->len)));
    free(bytes);
    return back;
}

static struct entry *entry_at(uint64_t index, uint64_t term, size_t len)
{
    struct entry *e = entry_new(len);

    REQUIRE(e != NULL);
    memset(e->payload, (int)index, len);
    e->index = index;
    e->term = term;
    return e;
}

static struct peer_msg *append_msg(uint64_t index, uint64_t last)
{
    struct raft_msg r = {.type = RAFT_APPEND,
                         .from = 1,
                         .to = 2,
                         .term = 9,
                         .index = index,
                         .log_term = 1,
                         .last = last,
                         .commit = 3,
                         .n_runs = 2,
                         .runs = {{index + 1, 2}, {8, 4}}};
    struct peer_msg *m = peer_msg_of(&r);

    REQUIRE(m != NULL);
    return m;
}

static void raft_messages_survive(void)
{
    for (int type = RAFT_APPEND; type < RAFT_MSG_TYPES; type++) {
        struct raft_conf conf = {.voters = {.n = 2, .ids = {1, 2}}, .learners = {.n = 1, .ids = {5}}};
        struct raft_msg r = {.type = (enum raft_msg_type)type, .reject = type % 2, .transfer = type % 3 == 0, .from = 1,
                             .to = 2, .term = 1000, .index = 1001, .log_term = 999, .last = 1001, .commit = 998,
                             .hint = 997, .ctx = UINT64_MAX - 5, .conf = type == RAFT_SNAPSHOT ? &conf : NULL};
        struct peer_msg *m = peer_msg_of(&r), *back;

        REQUIRE(m != NULL);
        back = round_trip(m);
        CHECK(back->raft.type == r.type && back->raft.reject == r.reject && back->raft.transfer == r.transfer);
        CHECK(back->raft.from == 1 && back->raft.to == 2 && back->raft.term == 1000 && back->raft.index == 1001);
        CHECK(back->raft.log_term == 999 && back->raft.last == 1001 && back->raft.commit == 998);
        CHECK(back->raft.hint == 997 && back->raft.ctx == r.ctx && back->raft.n_runs == 0);
        CHECK((back->raft.conf != NULL) == (type == RAFT_SNAPSHOT));
        if (back->raft.conf)
            CHECK(memcmp(back->raft.conf, &conf, sizeof conf) == 0);
        peer_msg_free(m);
        peer_msg_free(back);
    }
}

static void other_messages_survive(void)
{
    for (int kind = PEER_PROPOSE; kind < PEER_KINDS; kind++) {
        struct peer_msg *m = peer_msg_new((enum peer_kind)kind, 7, 8), *back;

        REQUIRE(m != NULL);
        m->id = 11;
        m->index = 12;
        m->hash = 13;
        m->lease = -14;
        m->ttl = -1;
        m->left = -16;
        m->err = kind == PEER_REFUSED ? 17 : -18;
        if (kind == PEER_REFUSED) {
            m->ids = calloc(2, sizeof *m->ids);
            m->n_ids = 2;
            m->ids[1] = 19;
        }
        if (kind == PEER_PROPOSE) {
            m->entries = calloc(2, sizeof *m->entries);
            m->entries[m->n_entries++] = entry_at(0, 0, 100);
            m->entries[m->n_entries++] = entry_at(0, 0, 0);
        }
        back = round_trip(m);
        if (kind == PEER_REFUSED)
            CHECK(back->id == 11 && back->err == 17 && back->n_ids == 2 && back->ids[0] == 0 && back->ids[1] == 19);
        if (kind == PEER_LEASE_RENEW || kind == PEER_LEASE_RENEWED)
            CHECK(back->id == 11 && back->lease == -14 && back->ttl == -1);
        if (kind == PEER_LEASE_RENEWED)
            CHECK(back->left == -16 && back->err == -18);
        if (kind == PEER_PROPOSE)
            CHECK(back->id == 11 && back->index == 12 && back->hash == 13);
        if (kind >= PEER_STATE_HASH)
            CHECK(back->index == 12 && back->hash == 13);
        peer_msg_free(m);
        peer_msg_free(back);
    }
}

static void claims_are_not_believed(void)
{
    struct peer_msg *m = peer_msg_new(PEER_REFUSED, 1, 2), *none;
    uint8_t bytes[24 + 16 + 16];

    REQUIRE(m != NULL);
    m->ids = calloc(2, sizeof *m->ids);
    m->n_ids = 2;
    REQUIRE(peer_msg_size(m) == sizeof bytes);
    peer_msg_encode(m, bytes);
    put_u32le(bytes + 36, UINT32_MAX);
    CHECK(peer_msg_decode(slice_of(bytes, sizeof bytes), &none) == -EBADMSG);
    put_u32le(bytes + 36, 2);
    put_u32le(bytes + 4, UINT32_MAX);
    CHECK(peer_msg_decode(slice_of(bytes, sizeof bytes), &none) == -EBADMSG);
    put_u32le(bytes + 4, 0);
    bytes[0] = 2;
    CHECK(peer_msg_decode(slice_of(bytes, sizeof bytes), &none) == -EBADMSG);
    peer_msg_free(m);
}

/* Entries 1..12, of term 1 up to 5, 2 up to 7, then 4; those below `cached` are only in the log. */
static struct fakedisk disk;

static struct wal *log_of_twelve(struct entry_cache *c, uint64_t cached)
{
    struct wal_options o = {.disk = &disk.disk, .dir = "w", .segment_bytes = LIMIT_WAL_SEGMENT_BYTES, .cluster_id = 1,
                            .member_id = 2};
    struct entry *e[12];
    struct wal_state st;
    struct wal *w;
    char why[256];

    fakedisk_init(&disk, 1);
    REQUIRE(wal_create(&o, 0, 0, &(struct wal_state){0}) == 0);
    REQUIRE(wal_open(&o, &w, &st, why, sizeof why) == 0);
    for (uint64_t i = 1; i <= 12; i++) {
        e[i - 1] = entry_at(i, i <= 5 ? 1 : i <= 7 ? 2 : 4, 100);
        if (i >= cached)
            entry_cache_put(c, e[i - 1]);
    }
    REQUIRE(wal_append(w, e, 12, &(struct wal_state){.term = 9}, 0) == 0);
    REQUIRE(wal_sync(w) == 0);
    for (int i = 0; i < 12; i++)
        entry_unref(e[i]);
    return w;
}

static void appends_are_filled(void)
{
    struct entry_cache *c = entry_cache_new(1 << 20);
    struct wal *w = log_of_twelve(c, 7);
    struct peer_msg *m, *back;

    m = append_msg(7, 12);
    m->raft.n_runs = 1;
    m->raft.runs[0] = (struct raft_run){8, 4};
    CHECK(peer_msg_fill(m, c, NULL, 1 << 20) == 0);
    CHECK(m->n_entries == 5 && m->rest == NULL && m->entries[4]->index == 12);
    peer_msg_free(m);

    m = append_msg(5, 12);
    CHECK(peer_msg_fill(m, c, NULL, 1 << 20) == -EAGAIN && m->n_entries == 0);
    CHECK(peer_msg_fill(m, c, w, 1 << 20) == 0 && m->n_entries == 7);
    back = round_trip(m);
    for (uint32_t i = 0; i < back->n_entries; i++)
        CHECK(back->entries[i]->index == 6 + i && back->entries[i]->term == (i < 2 ? 2u : 4u));
    peer_msg_free(m);
    peer_msg_free(back);

    m = append_msg(5, 12);
    m->raft.runs[0].term = 3; /* of a log this one never was */
    CHECK(peer_msg_fill(m, c, w, 1 << 20) == -ENOENT);
    peer_msg_free(m);
    m = append_msg(5, 13);
    CHECK(peer_msg_fill(m, c, w, 1 << 20) == 0 && m->n_entries == 7 && m->raft.last == 12);
    peer_msg_free(m);

    m = append_msg(5, 12); /* pieces of 3, 3 and 1; the border of terms lies in the first */
    for (uint64_t index = 5, pieces = 1;; pieces++) {
        struct peer_msg *rest;

        CHECK(peer_msg_fill(m, c, w, 300) == 0);
        CHECK(m->raft.index == index && m->raft.last == (index + 3 < 12 ? index + 3 : 12));
        CHECK(m->raft.log_term == (index == 5 ? 1u : 4u));
        index = m->raft.last;
        back = round_trip(m); /* decoding checks the runs */
        peer_msg_free(back);
        rest = m->rest;
        m->rest = NULL;
        peer_msg_free(m);
        m = rest;
        if (m == NULL) {
            CHECK(index == 12 && pieces == 3);
            break;
        }
    }
    wal_close(w);
    fakedisk_fini(&disk);
    entry_cache_free(c);
}

int main(void)
{
    TEST(raft_messages_survive);
    TEST(other_messages_survive);
    TEST(claims_are_not_believed);
    TEST(appends_are_filled);
    return tap_done();
}
