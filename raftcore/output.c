/* SPDX-License-Identifier: Apache-2.0 */
/* output.c - what a step leaves behind: messages, what is to be stored, and what may be said once it is.
 *
 * Promise: nothing that speaks for this member's disk leaves before the STORED that covers it. There are
 * three such things: replies to votes (held, by store_seq), replies to appends (said from `stable`, never
 * from `last`) and our own vote and match (counted from vote_seq and `stable`).
 */
#include <errno.h>
#include "core.h"

void raft_drop(struct raft *r)
{
    r->dropped++;
}

bool raft_room_for_append(const struct raft *r)
{
    return r->out.n_msgs + MSGS_RESERVED < RAFT_MSGS_MAX;
}

struct raft_msg *raft_send(struct raft *r, enum raft_msg_type type, uint64_t to)
{
    struct raft_msg *m;

    if (r->out.n_msgs == RAFT_MSGS_MAX) {
        raft_drop(r); /* as if the network had lost it */
        return NULL;
    }
    m = &r->msgs[r->out.n_msgs++];
    *m = (struct raft_msg){.type = type, .from = r->id, .to = to, .term = r->term};
    return m;
}

void raft_send_held(struct raft *r, enum raft_msg_type type, uint64_t to, uint64_t term)
{
    if (r->stored_seq == r->last_seq) {
        struct raft_msg *m = raft_send(r, type, to);

        if (m)
            m->term = term;
        return;
    }
    if (r->n_held == HELD_MAX) {
        raft_drop(r); /* who asked asks again */
        return;
    }
    r->held[r->n_held++] = (struct held_msg){
        .seq = r->last_seq, /* what is still to come in this step promises nothing about the vote */
        .msg = {.type = type, .from = r->id, .to = to, .term = term},
    };
}

/* ---- what is stored ---------------------------------------------------------------------------- */

uint64_t raft_store_seq(struct raft *r)
{
    if (r->out.store_seq == 0)
        r->out.store_seq = ++r->last_seq;
    return r->out.store_seq;
}

void raft_set_state(struct raft *r, uint64_t term, uint64_t vote)
{
    if (term == r->term && vote == r->vote)
        return;
    assert(term >= r->term);
    assert(term > r->term || r->vote == 0); /* one vote a term */
    r->term = term;
    r->vote = vote;
    r->state_seq = raft_store_seq(r);
    r->out.flags |= RAFT_OUT_STATE;
}

bool raft_may_store(const struct raft *r, uint64_t first, uint64_t term, uint32_t new_runs)
{
    return r->stores_n < RAFT_STORES_MAX - STORES_RESERVED && termlog_has_room(&r->log, first, term, new_runs);
}

static void push_store(struct raft *r, uint64_t last)
{
    assert(r->stores_n < RAFT_STORES_MAX);
    r->stores[(r->stores_head + r->stores_n++) % RAFT_STORES_MAX] =
        (struct store_mark){raft_store_seq(r), last};
}

/* The log has been cut at first: what waits to be stored beyond it will never stand there. */
static void clip_stores(struct raft *r, uint64_t first)
{
    for (uint32_t i = 0; i < r->stores_n; i++) {
        struct store_mark *s = &r->stores[(r->stores_head + i) % RAFT_STORES_MAX];

        if (s->last >= first)
            s->last = first - 1;
    }
    if (r->stable >= first)
        r->stable = first - 1;
}

void raft_store_entries(struct raft *r, uint64_t first, uint64_t last, enum raft_entries whose)
{
    assert(r->out.entries == RAFT_ENTRIES_NONE); /* one input, one run of entries */
    assert(first > r->commit);
    assert(last == r->log.last);
    clip_stores(r, first);
    push_store(r, last);
    r->out.first = first;
    r->out.last = last;
    r->out.entries = whose;
    r->out.entries_term = r->term;
}

/* T 5: the log gives way to a snapshot. It counts as ours when it is stored. */
void raft_restore(struct raft *r, uint64_t index, uint64_t term, const struct raft_conf *conf)
{
    assert(index > r->commit);
    termlog_reset(&r->log, index, term);
    r->stable = 0; /* nothing of the new log, before the STORED */
    for (uint32_t i = 0; i < r->stores_n; i++)
        r->stores[(r->stores_head + i) % RAFT_STORES_MAX].last = 0;
    push_store(r, index);
    r->snapshot_index = index;
    r->snapshot_seq = raft_store_seq(r);
    r->commit = index;
    r->conf_index = r->conf_pending = index;
    raft_set_conf(r, conf);
    r->out.first = index + 1;
    r->out.flags |= RAFT_OUT_SNAPSHOT;
}

int raft_stored(struct raft *r, uint64_t seq)
{
    uint32_t kept = 0;

    if (seq > r->last_seq)
        return -EINVAL;
    if (seq <= r->stored_seq)
        return 0;
    r->stored_seq = seq;
    while (r->stores_n && r->stores[r->stores_head].seq <= seq) {
        if (r->stores[r->stores_head].last > r->stable)
            r->stable = r->stores[r->stores_head].last;
        r->stores_head = (r->stores_head + 1) % RAFT_STORES_MAX;
        r->stores_n--;
    }
    assert(r->stable <= r->log.last);
    if (r->snapshot_index && r->snapshot_seq <= seq) {
        if (r->applied < r->snapshot_index)
            r->applied = r->snapshot_index;
        if (r->apply_to < r->snapshot_index)
            r->apply_to = r->snapshot_index;
        r->snapshot_index = 0;
    }
    for (uint32_t i = 0; i < r->n_held; i++) {
        struct raft_msg *m;

        if (r->held[i].seq > seq) {
            r->held[kept++] = r->held[i];
            continue;
        }
        m = raft_send(r, r->held[i].msg.type, r->held[i].msg.to);
        if (m)
            *m = r->held[i].msg;
    }
    r->n_held = kept;
    switch (r->role) {
    case RAFT_LEADER:
        leader_stored(r);
        break;
    case RAFT_CANDIDATE:
        election_vote_stored(r);
        break;
    case RAFT_FOLLOWER:
    case RAFT_PRE_CANDIDATE:
        follower_stored(r);
        break;
    }
    election_try(r); /* a snapshot may have been waited for */
    return 0;
}

void raft_set_commit(struct raft *r, uint64_t commit)
{
    assert(commit <= r->log.last);
    if (commit > r->commit)
        r->commit = commit;
}
