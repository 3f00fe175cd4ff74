/* SPDX-License-Identifier: Apache-2.0 */
/* follower.c - taking entries, heartbeats and snapshots from the leader of our term (T 3.5, 5).
 *
 * A reply says "stored here, and equal to yours, up to match": the lower of `verified` (compared with
 * this leader's log) and `stable` (on this disk). When entries have to be stored first, the reply waits
 * for the STORED; replies to several APPENDs become one.
 */
#include "core.h"

/* The reply that is owed, if what it says is stored by now. */
static void reply_if_stored(struct raft *r)
{
    uint64_t match = r->verified < r->stable ? r->verified : r->stable;
    struct raft_msg *m;

    if (!r->reply_owed || r->stored_seq < r->state_seq || r->snapshot_index)
        return;
    m = raft_send(r, RAFT_APPEND_REPLY, r->append_from);
    if (m)
        m->index = match;
    r->reply_owed = match < r->verified;
}

void follower_stored(struct raft *r)
{
    if (r->role == RAFT_FOLLOWER && r->append_from)
        reply_if_stored(r);
}

/* What the leader has committed is committed here as far as our log is known to be its. It may be heard of before the
 * entries come: messages overtake each other. */
static void hear_commit(struct raft *r, uint64_t commit)
{
    if (r->commit_heard < commit)
        r->commit_heard = commit;
    raft_set_commit(r, r->commit_heard < r->verified ? r->commit_heard : r->verified);
}

void follower_on_commit(struct raft *r, const struct raft_msg *m)
{
    hear_commit(r, m->commit);
}

static void owe_reply(struct raft *r, uint64_t verified)
{
    assert(verified <= r->log.last);
    if (r->verified < verified)
        r->verified = verified;
    r->reply_owed = true;
    if (r->verified <= r->stable) /* else half an answer now would be followed by the whole one */
        reply_if_stored(r);
}

static void refuse(struct raft *r, const struct raft_msg *m)
{
    struct raft_msg *a = raft_send(r, RAFT_APPEND_REPLY, m->from);

    if (a == NULL)
        return;
    a->reject = true;
    a->index = m->index;
    /* T 3.5, the shortcut: nothing of ours above a term that is not later than the leader's can agree. */
    a->hint = termlog_at_or_below(&r->log, m->index, m->log_term, &a->log_term);
}

static uint64_t msg_term(const struct raft_msg *m, uint64_t index)
{
    uint32_t i = m->n_runs - 1;

    while (m->runs[i].first > index)
        i--;
    return m->runs[i].term;
}

/* Do the logs agree up to the message's index? What is committed agrees with every leader's log, so a message that
 * begins before that is compared at our commit. */
static bool agrees(const struct raft *r, const struct raft_msg *m)
{
    if (m->index < r->commit)
        return msg_term(m, r->commit) == termlog_term(&r->log, r->commit);
    return m->index <= r->log.last && termlog_term(&r->log, m->index) == m->log_term;
}

/* The first entry of the message that our log does not have; last + 1: it has them all. */
static uint64_t first_new(const struct raft *r, const struct raft_msg *m)
{
    uint64_t i = (m->index < r->commit ? r->commit : m->index) + 1;

    while (i <= m->last && i <= r->log.last && termlog_term(&r->log, i) == msg_term(m, i))
        i++;
    return i;
}

/* T 3.5: "if an existing entry conflicts with a new one, delete it and all that follow". False: no room. */
static bool take_entries(struct raft *r, const struct raft_msg *m, uint64_t first)
{
    if (!raft_may_store(r, first, msg_term(m, first), m->n_runs))
        return false;
    termlog_cut(&r->log, first);
    for (uint32_t i = 0; i < m->n_runs; i++) {
        uint64_t from = m->runs[i].first, to = i + 1 < m->n_runs ? m->runs[i + 1].first - 1 : m->last;

        if (from < first)
            from = first;
        if (to >= from)
            termlog_append(&r->log, to - from + 1, m->runs[i].term);
    }
    raft_store_entries(r, first, m->last, RAFT_ENTRIES_MSG);
    return true;
}

void follower_on_append(struct raft *r, const struct raft_msg *m)
{
    uint64_t first;

    if (m->index < r->commit && m->last <= r->commit) {
        owe_reply(r, r->commit); /* old */
        return;
    }
    if (!agrees(r, m)) {
        refuse(r, m);
        return;
    }
    first = first_new(r, m);
    if (first <= m->last) {
        /* Contradicts what is committed or what this leader itself has said, or comes when nothing
         * can be taken. */
        if (first <= r->commit || first <= r->verified || !take_entries(r, m, first)) {
            raft_drop(r);
            return;
        }
    }
    if (r->verified < m->last)
        r->verified = m->last;
    hear_commit(r, m->commit);
    owe_reply(r, m->last);
}

void follower_on_heartbeat(struct raft *r, const struct raft_msg *m)
{
    struct raft_msg *a;

    /* A leader sends the lower of commit and our match, which is in our log: else it is not Raft. */
    if (m->commit > r->log.last) {
        raft_drop(r);
        return;
    }
    raft_set_commit(r, m->commit);
    hear_commit(r, m->index);
    a = raft_send(r, RAFT_HEARTBEAT_REPLY, m->from);
    if (a)
        a->ctx = m->ctx;
}

void follower_on_snapshot(struct raft *r, const struct raft_msg *m)
{
    if (m->index <= r->commit) {
        owe_reply(r, r->commit);
        return;
    }
    if (termlog_term(&r->log, m->index) == m->log_term) {
        raft_set_commit(r, m->index); /* we have all of it as entries */
        owe_reply(r, m->index);
        return;
    }
    /* One at a time; one that contradicts what this leader has said makes no sense; and one that does not know us
     * cannot be for us. */
    if (r->snapshot_index || m->index <= r->verified || r->stores_n >= RAFT_STORES_MAX - STORES_RESERVED ||
        !(raft_set_has(&m->conf->voters, r->id) || raft_set_has(&m->conf->outgoing, r->id) ||
          raft_set_has(&m->conf->learners, r->id))) {
        raft_drop(r);
        return;
    }
    raft_restore(r, m->index, m->log_term, m->conf);
    owe_reply(r, m->index);
}
