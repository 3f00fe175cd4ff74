/* SPDX-License-Identifier: Apache-2.0 */
/* receive.c - a message comes in: is it well formed, of which term, and whose business is it?
 *
 * Whatever the network brings, nothing here or behind it fails: what makes no sense is dropped and counted.
 */
#include "core.h"

/* What the network can get wrong before Raft has a word in it. */
static bool msg_valid(const struct raft *r, const struct raft_msg *m)
{
    uint64_t term = m->log_term, next = m->index + 1;

    if (m->type < RAFT_APPEND || m->type >= RAFT_MSG_TYPES || m->to != r->id || m->from == r->id ||
        m->from == 0 || m->term == 0 || m->term >= UINT64_MAX / 2 || m->log_term > m->term ||
        m->n_runs > RAFT_MSG_RUNS_MAX || m->index >= UINT64_MAX / 2)
        return false;
    if (m->type == RAFT_SNAPSHOT)
        return m->conf && m->conf->voters.n && m->index && m->log_term && raft_conf_valid(m->conf);
    if (m->type != RAFT_APPEND)
        return true;
    if (m->last < m->index || m->last - m->index > UINT32_MAX || (m->last > m->index) != (m->n_runs > 0) ||
        (m->index > 0) != (m->log_term > 0))
        return false;
    for (uint32_t i = 0; i < m->n_runs; i++) {
        if (m->runs[i].term < term || m->runs[i].term > m->term || m->runs[i].term == 0 ||
            m->runs[i].first > m->last || (i == 0 ? m->runs[i].first != next : m->runs[i].first < next))
            return false;
        term = m->runs[i].term;
        next = m->runs[i].first + 1;
    }
    return true;
}

static bool is_leaders(const struct raft_msg *m)
{
    return m->type == RAFT_APPEND || m->type == RAFT_HEARTBEAT || m->type == RAFT_SNAPSHOT || m->type == RAFT_COMMIT;
}

/* T 3.3: whoever sees a higher term takes it. True: the message goes on. */
static bool take_higher_term(struct raft *r, const struct raft_msg *m)
{
    bool from_leader = is_leaders(m);

    switch (m->type) {
    case RAFT_VOTE:
        if (election_disturbs(r, m))
            return false;
        break;
    case RAFT_PRE_VOTE:
        return !election_disturbs(r, m); /* asks, and changes nothing (T 9.6) */
    case RAFT_PRE_VOTE_REPLY:
        if (!m->reject)
            return true; /* of the term we would campaign in */
        break;
    default:
        break;
    }
    raft_become_follower(r, m->term, from_leader ? m->from : 0);
    return true;
}

static void answer_lower_term(struct raft *r, const struct raft_msg *m)
{
    switch (m->type) {
    case RAFT_APPEND:
    case RAFT_HEARTBEAT:
    case RAFT_SNAPSHOT:
        /* A leader behind our term, whom our pre-votes do not depose: without an answer we could never
         * hear from it again (etcd-io/raft, PreVote with CheckQuorum). */
        raft_send(r, RAFT_APPEND_REPLY, m->from);
        return;
    case RAFT_PRE_VOTE:
        election_refuse(r, RAFT_PRE_VOTE_REPLY, m->from);
        return;
    default:
        return;
    }
}

static void on_leaders_msg(struct raft *r, const struct raft_msg *m)
{
    if (r->role == RAFT_LEADER || (r->append_from && r->append_from != m->from)) {
        raft_drop(r); /* two leaders of one term: not by Raft's rules */
        return;
    }
    if (r->role != RAFT_FOLLOWER || r->leader != m->from)
        raft_become_follower(r, r->term, m->from);
    r->append_from = m->from;
    election_leader_heard(r);
    switch (m->type) {
    case RAFT_APPEND:
        follower_on_append(r, m);
        break;
    case RAFT_HEARTBEAT:
        follower_on_heartbeat(r, m);
        break;
    case RAFT_COMMIT:
        follower_on_commit(r, m);
        break;
    default:
        follower_on_snapshot(r, m);
        break;
    }
}

void raft_receive(struct raft *r, const struct raft_msg *m)
{
    if (!msg_valid(r, m)) {
        raft_drop(r);
        return;
    }
    if (m->type == RAFT_VOTE_REPLY || m->type == RAFT_PRE_VOTE_REPLY)
        election_learn_commit(r, m);
    if (m->term > r->term && !take_higher_term(r, m))
        return;
    if (m->term < r->term) {
        answer_lower_term(r, m);
        return;
    }
    switch (m->type) {
    case RAFT_VOTE:
    case RAFT_PRE_VOTE:
        election_on_vote(r, m);
        return;
    case RAFT_VOTE_REPLY:
    case RAFT_PRE_VOTE_REPLY:
        election_on_vote_reply(r, m);
        return;
    case RAFT_APPEND:
    case RAFT_HEARTBEAT:
    case RAFT_SNAPSHOT:
    case RAFT_COMMIT:
        on_leaders_msg(r, m);
        return;
    case RAFT_APPEND_REPLY:
        leader_on_append_reply(r, m);
        return;
    case RAFT_HEARTBEAT_REPLY:
        leader_on_heartbeat_reply(r, m);
        return;
    case RAFT_TIMEOUT_NOW:
        election_on_timeout_now(r, m);
        return;
    case RAFT_READ:
        read_on_request(r, m);
        return;
    case RAFT_READ_REPLY:
        read_on_reply(r, m);
        return;
    case RAFT_MSG_TYPES:
        return;
    }
}
