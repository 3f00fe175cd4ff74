/* SPDX-License-Identifier: Apache-2.0 */
/* election.c - standing, voting, winning (T 3.4, 3.6.1, 4.2.3, 9.6).
 *
 * A campaign has two halves: the pre-vote asks whether we could win, and changes nothing anywhere; the
 * vote raises the term. Votes are asked for only when our own is stored: a candidate that crashed and
 * stood again in the same term, with a log that lost its tail, could otherwise count votes that were
 * given to the longer log.
 *
 * Unlike etcd-io/raft, which looks for configuration entries between applied and commit, a member stands
 * only when everything it knows to be committed is applied: the core does not know what entries hold.
 * The election is then one of the newest configuration it can know.
 *
 * The election timeout tells when a leader is lost; once it is, there is no reason to wait that long again. For one
 * more timeout a pre-vote is asked anew after a quarter to half of a heartbeat (it costs nothing, and somebody may only
 * now have noticed) and a vote that came to nothing is tried again after one or so, then two, four, ... (a slow disk
 * must have its time to store a vote). Who gave way stays out of the way for as long.
 */
#include "core.h"

static bool may_stand(const struct raft *r)
{
    /* A learner, a removed member, a faulty one and one without a log of its own cannot lead; a new leader
     * needs room for the first entry of its term. */
    return r->role != RAFT_LEADER && raft_is_voter(r, r->id) && r->fence == 0 && r->snapshot_index == 0 &&
           r->stores_n < RAFT_STORES_MAX - STORES_RESERVED && r->log.n_runs < RAFT_RUNS_MAX;
}

static void record_vote(struct raft *r, uint64_t from, bool grant)
{
    for (uint32_t i = 0; i < r->n_prs; i++)
        if (r->prs[i].id == from && !r->voted[i]) {
            r->voted[i] = true;
            r->granted[i] = grant;
        }
}

static enum quorum_vote half_vote(const struct raft *r, const struct raft_set *s)
{
    uint32_t yes = 0, no = 0;

    for (uint32_t i = 0; i < r->n_prs; i++) {
        if (!r->voted[i] || !raft_set_has(s, r->prs[i].id))
            continue;
        yes += r->granted[i];
        no += !r->granted[i];
    }
    return quorum_vote(yes, no, s->n);
}

static void ask_votes(struct raft *r, enum raft_msg_type type, uint64_t term)
{
    for (uint32_t i = 0; i < r->n_prs; i++) {
        struct raft_msg *m;

        if (r->prs[i].id == r->id || !raft_is_voter(r, r->prs[i].id))
            continue;
        m = raft_send(r, type, r->prs[i].id);
        if (m == NULL)
            return;
        m->term = term;
        m->index = r->log.last;
        m->log_term = termlog_last_term(&r->log);
        m->transfer = r->campaign == CAMPAIGN_TRANSFER;
    }
}

/* ---- when to try again ------------------------------------------------------------------------- */

static bool in_hurry(const struct raft *r)
{
    return r->now < r->hurry_until;
}

static void begin_hurry(struct raft *r)
{
    r->hurry_until = r->now + r->election_ms;
    r->hurry_n = 0;
}

static void stand_before(struct raft *r, uint64_t at)
{
    if (r->election_at > at)
        r->election_at = at;
}

/* How long a pre-vote, which waits for no disk, may take. */
static uint64_t pre_vote_patience(struct raft *r)
{
    return r->heartbeat_ms / 4 + 1 + raft_random(r, r->heartbeat_ms / 4 + 1);
}

/* How long a vote may take: longer each time. */
static uint64_t vote_patience(struct raft *r)
{
    uint32_t doubled = r->hurry_n < 8 ? r->hurry_n : 8;

    return (r->heartbeat_ms / 2 + 1 + raft_random(r, r->heartbeat_ms)) << doubled;
}

void election_leader_heard(struct raft *r)
{
    r->heard_at = r->now;
    r->deny_until = r->now + r->election_ms;
    r->hurry_until = 0;
    if (r->wanted != CAMPAIGN_TRANSFER || r->now >= r->wanted_until)
        r->wanted = CAMPAIGN_NONE; /* a transfer it asked for itself, perhaps after it sent this */
    raft_reset_election(r);
}

/* ---- campaigns --------------------------------------------------------------------------------- */

static void stand(struct raft *r, enum campaign how);

/* The campaign is over; the next is due when it was. */
static void lose(struct raft *r)
{
    uint64_t at = r->election_at;

    raft_become_follower(r, r->term, 0);
    if (in_hurry(r))
        stand_before(r, at);
}

static void count_votes(struct raft *r)
{
    switch (quorum_joint(half_vote(r, &r->conf.voters), half_vote(r, &r->conf.outgoing))) {
    case QUORUM_WON:
        if (r->role == RAFT_PRE_CANDIDATE)
            stand(r, CAMPAIGN_REAL);
        else
            leader_begin(r);
        break;
    case QUORUM_LOST:
        lose(r);
        break;
    case QUORUM_PENDING:
        break;
    }
}

static void stand(struct raft *r, enum campaign how)
{
    raft_become_follower(r, r->term, 0); /* forget whatever went on */
    memset(r->voted, 0, sizeof(r->voted));
    memset(r->granted, 0, sizeof(r->granted));
    r->campaign = how;
    r->out.flags |= RAFT_OUT_ROLE;
    if (how == CAMPAIGN_PRE) {
        if (in_hurry(r))
            stand_before(r, r->now + pre_vote_patience(r));
        r->role = RAFT_PRE_CANDIDATE;
        record_vote(r, r->id, true); /* promises nothing, so it counts at once */
        ask_votes(r, RAFT_PRE_VOTE, r->term + 1);
        count_votes(r);
        return;
    }
    if (in_hurry(r))
        stand_before(r, r->now + vote_patience(r));
    r->hurry_n++;
    r->role = RAFT_CANDIDATE;
    raft_set_state(r, r->term + 1, r->id);
    r->vote_seq = r->state_seq;
    r->verified = r->commit_heard = 0;
    r->append_from = 0;
    r->reply_owed = false;
}

void election_vote_stored(struct raft *r)
{
    assert(r->role == RAFT_CANDIDATE);
    if (r->vote_seq == 0 || r->stored_seq < r->vote_seq)
        return;
    r->vote_seq = 0;
    record_vote(r, r->id, true);
    ask_votes(r, RAFT_VOTE, r->term);
    count_votes(r);
}

void election_want(struct raft *r, enum campaign how)
{
    if (may_stand(r) && how > r->wanted)
        r->wanted = how;
    election_try(r);
}

void election_try(struct raft *r)
{
    enum campaign how = r->wanted;

    if (how == CAMPAIGN_NONE || r->applied < r->commit || !may_stand(r) ||
        (election_promised(r) && how != CAMPAIGN_TRANSFER))
        return;
    stand(r, how);
}

void election_timeout(struct raft *r)
{
    raft_reset_election(r);
    if (r->leader) {
        read_lose(r);
        r->leader = 0;
        r->out.flags |= RAFT_OUT_ROLE;
        begin_hurry(r);
    }
    election_want(r, CAMPAIGN_PRE);
}

/* ---- the voter's side -------------------------------------------------------------------------- */

bool election_promised(const struct raft *r)
{
    return r->lease_reads && r->now < r->deny_until && !raft_is_sole_voter(r);
}

static bool leader_lives(const struct raft *r)
{
    if (r->role == RAFT_LEADER)
        return true; /* it would have stepped down had it lost its quorum */
    return r->leader && r->now < r->heard_at + r->election_ms;
}

/* T 4.2.3: while a leader lives, unless it is the leader that asks, who then is none any more. */
bool election_disturbs(const struct raft *r, const struct raft_msg *m)
{
    if (m->transfer)
        return false;
    return election_promised(r) || (leader_lives(r) && m->from != r->leader);
}

/* Nobody leads, and who asks cannot win against our better log: no use to wait for our own timeout. Unless it is late,
 * and we have voted meanwhile. */
static void stand_instead(struct raft *r, const struct raft_msg *m)
{
    if (r->role == RAFT_FOLLOWER && m->term > r->term && !leader_lives(r) &&
        (r->voted_at == 0 || r->now >= r->voted_at + r->election_ms))
        stand_before(r, r->now);
}

/* A refusal says what is committed. Without it a cluster could stand still for ever: a removed member, which has
 * applied its removal and never stands again, refuses everybody whose log is shorter, while those do not know
 * that it is committed and go on asking. (The simulation found this; etcd-io/raft has no remedy.) */
void election_refuse(struct raft *r, enum raft_msg_type answer, uint64_t to)
{
    struct raft_msg *a = raft_send(r, answer, to);

    if (a == NULL)
        return;
    a->reject = true;
    a->index = r->commit;
    a->log_term = termlog_term(&r->log, r->commit);
}

/* That an entry is committed is true everywhere and for ever; and if our log has this very entry, it has all
 * before it (T 3.5, Log Matching). */
void election_learn_commit(struct raft *r, const struct raft_msg *m)
{
    if (r->role != RAFT_LEADER && m->reject && m->log_term && m->index <= r->log.last &&
        termlog_term(&r->log, m->index) == m->log_term)
        raft_set_commit(r, m->index);
}

void election_on_vote(struct raft *r, const struct raft_msg *m)
{
    bool pre = m->type == RAFT_PRE_VOTE;
    enum raft_msg_type answer = pre ? RAFT_PRE_VOTE_REPLY : RAFT_VOTE_REPLY;
    uint64_t last_term = termlog_last_term(&r->log);
    bool free_to = r->vote == m->from || (r->vote == 0 && r->leader == 0) || (pre && m->term > r->term);
    /* T 3.6.1: the log with the later last term, then the longer one, is the more up-to-date. */
    bool up_to_date = m->log_term > last_term || (m->log_term == last_term && m->index >= r->log.last);

    if (election_promised(r) && !m->transfer)
        return;
    if (!free_to || !up_to_date || r->fence) {
        election_refuse(r, answer, m->from);
        if (pre && !up_to_date)
            stand_instead(r, m);
        return;
    }
    if (pre) {
        struct raft_msg *a = raft_send(r, answer, m->from); /* promises nothing: waits for no disk */

        if (a)
            a->term = m->term;
        if (in_hurry(r) && r->role == RAFT_FOLLOWER && r->election_at < r->now + r->heartbeat_ms)
            r->election_at = r->now + r->heartbeat_ms / 2 + pre_vote_patience(r); /* it goes first */
        return;
    }
    raft_set_state(r, r->term, m->from);
    r->voted_at = r->now;
    raft_reset_election(r);
    if (in_hurry(r))
        stand_before(r, r->now + r->heartbeat_ms / 2 + vote_patience(r));
    raft_send_held(r, answer, m->from, m->term);
}

/* ---- the candidate's side ---------------------------------------------------------------------- */

void election_on_vote_reply(struct raft *r, const struct raft_msg *m)
{
    bool ours;

    if (m->type == RAFT_PRE_VOTE_REPLY)
        ours = r->role == RAFT_PRE_CANDIDATE && (m->reject || m->term == r->term + 1);
    else
        ours = r->role == RAFT_CANDIDATE && r->vote_seq == 0;
    if (!ours)
        return; /* of a campaign that is over */
    record_vote(r, m->from, !m->reject);
    count_votes(r);
}

void election_on_timeout_now(struct raft *r, const struct raft_msg *m)
{
    if (r->role != RAFT_FOLLOWER || (r->leader && r->leader != m->from)) {
        raft_drop(r);
        return;
    }
    r->wanted_until = r->now + r->election_ms;
    begin_hurry(r);
    election_want(r, CAMPAIGN_TRANSFER); /* T 3.10: no pre-vote, the leader itself asks for it */
}

/* The host saw the leader's process end: nobody will hear from it, so the timeout would only be lost
 * time. Followers go one after the other, by rank, so that their campaigns do not meet. */
void election_suspect(struct raft *r, uint64_t id)
{
    uint64_t rank = 0;

    if (r->role != RAFT_FOLLOWER || id == 0 || r->leader != id || r->lease_reads)
        return;
    for (uint32_t i = 0; i < r->conf.voters.n; i++)
        rank += r->conf.voters.ids[i] < r->id && r->conf.voters.ids[i] != id;
    read_lose(r);
    r->leader = 0;
    r->out.flags |= RAFT_OUT_ROLE;
    begin_hurry(r);
    stand_before(r, r->now + rank * (r->heartbeat_ms / 2));
}
