/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: no bytes of a peer's make the decoding of a message touch memory that is not theirs or hit an assertion; and
 * what was decoded is encoded to bytes that decode to the same again. */
#include <errno.h>
#include "daemon/peer.h"

#define FUZZ_NAME "peer"
#define FUZZ_SEED_INPUTS peer_seed_input

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

static struct slice encoded(const struct peer_msg *m)
{
    size_t n = peer_msg_size(m);
    uint8_t *p = malloc(n);

    assert(p != NULL);
    peer_msg_encode(m, p);
    return slice_of(p, n);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    struct peer_msg *m, *again;
    struct slice first, second;
    int err = peer_msg_decode(slice_of(bytes, n), &m);

    assert(err == 0 || err == -EBADMSG);
    if (err)
        return 0;
    first = encoded(m);
    assert(peer_msg_decode(first, &again) == 0);
    second = encoded(again);
    assert(slice_eq(first, second));
    peer_msg_free(m);
    peer_msg_free(again);
    free((void *)first.ptr);
    free((void *)second.ptr);
    return 0;
}

static void add_entries(struct peer_msg *m, uint32_t n)
{
    m->entries = calloc(n, sizeof *m->entries);
    assert(m->entries != NULL);
    for (m->n_entries = 0; m->n_entries < n; m->n_entries++) {
        struct entry *e = m->entries[m->n_entries] = entry_new(m->n_entries * 10);

        assert(e != NULL);
        memset(e->payload, 'a', e->len);
    }
}

/* A good message of each kind, and of each of Raft's types. */
static size_t peer_seed_input(unsigned i, uint8_t *buf, size_t size)
{
    unsigned kind = i < RAFT_MSG_TYPES - 1 ? PEER_RAFT : i - (RAFT_MSG_TYPES - 1) + PEER_PROPOSE;
    struct peer_msg *m;
    size_t n;

    if (kind >= PEER_KINDS)
        return 0;
    m = peer_msg_new((enum peer_kind)kind, 1, 2);
    assert(m != NULL);
    if (kind == PEER_RAFT) {
        m->raft = (struct raft_msg){.type = (enum raft_msg_type)(i + 1), .from = 1, .to = 2, .term = 7, .index = 5,
                                    .log_term = 3, .last = 9, .commit = 4, .ctx = i};
        if (m->raft.type == RAFT_APPEND) {
            m->raft.n_runs = 2;
            m->raft.runs[0] = (struct raft_run){6, 3};
            m->raft.runs[1] = (struct raft_run){8, 7};
            add_entries(m, 4);
        }
        if (m->raft.type == RAFT_SNAPSHOT) {
            m->conf = (struct raft_conf){.voters = {.n = 3, .ids = {1, 2, 3}}};
            m->raft.conf = &m->conf;
        }
    }
    if (kind == PEER_PROPOSE)
        add_entries(m, 3);
    if (kind == PEER_REFUSED) {
        m->n_ids = 3;
        m->ids = calloc(3, sizeof *m->ids);
        assert(m->ids != NULL);
    }
    n = peer_msg_size(m);
    assert(n <= size);
    peer_msg_encode(m, buf);
    peer_msg_free(m);
    return n;
}

#include "replay.inc"
