/* SPDX-License-Identifier: Apache-2.0 */
/* raft.c - the step: takes one input, leaves one output; who we are; how it all begins.
 *
 * Owner:    the host's one thread.
 * Not here: messages (receive.c), what is stored (output.c), members (members.c), elections (election.c),
 *           the leader's side (leader.c), the follower's (follower.c), reads (read.c).
 */
#include <errno.h>
#include "core.h"

/* ---- roles ------------------------------------------------------------------------------------- */

uint64_t raft_random(struct raft *r, uint64_t below)
{
    r->rng ^= r->rng << 13; /* xorshift64: enough to keep candidates apart */
    r->rng ^= r->rng >> 7;
    r->rng ^= r->rng << 17;
    return r->rng % below;
}

/* T 3.4: spread over [timeout, 2 x timeout), so that one candidate is alone. */
void raft_reset_election(struct raft *r)
{
    r->election_at = r->now + r->election_ms + raft_random(r, r->election_ms);
}

void raft_become_follower(struct raft *r, uint64_t term, uint64_t leader)
{
    if (term != r->term || leader != r->leader || r->role != RAFT_FOLLOWER) {
        r->out.flags |= RAFT_OUT_ROLE;
        read_lose(r);
    }
    if (term != r->term) {
        raft_set_state(r, term, 0);
        r->verified = r->commit_heard = 0;
        r->append_from = 0;
        r->reply_owed = false;
    }
    r->role = RAFT_FOLLOWER;
    r->leader = leader;
    r->heard_at = r->now;
    r->wanted = CAMPAIGN_NONE;
    r->campaign = CAMPAIGN_NONE;
    r->vote_seq = 0;
    r->transferee = 0;
    r->heartbeat_at = r->quorum_at = r->transfer_at = UINT64_MAX;
    raft_reset_election(r);
}

/* ---- the step ---------------------------------------------------------------------------------- */

static void on_applied(struct raft *r, uint64_t index)
{
    if (index > r->apply_to)
        index = r->apply_to;
    if (index <= r->applied)
        return;
    r->applied = index;
    if (r->role == RAFT_LEADER)
        leader_applied(r);
    election_try(r);
}

static int on_compact(struct raft *r, uint64_t index)
{
    if (index > r->applied || index > r->log.last)
        return -EINVAL;
    if (index > r->log.base)
        termlog_compact(&r->log, index);
    return 0;
}

static void on_time(struct raft *r)
{
    if (r->role == RAFT_LEADER)
        leader_deadlines(r);
    else if (r->now >= r->election_at)
        election_timeout(r);
}

static int dispatch(struct raft *r, const struct raft_in *in)
{
    switch (in->type) {
    case RAFT_IN_TIME:
        on_time(r);
        return 0;
    case RAFT_IN_MSG:
        raft_receive(r, in->msg);
        return 0;
    case RAFT_IN_STORED:
        return raft_stored(r, in->store_seq);
    case RAFT_IN_APPLIED:
        on_applied(r, in->index);
        return 0;
    case RAFT_IN_PROPOSE:
        return leader_propose(r, in->n_entries);
    case RAFT_IN_PROPOSE_CONF:
        return leader_propose_conf(r, in->change);
    case RAFT_IN_CONF:
        raft_conf_entry(r, in->index, in->change);
        return 0;
    case RAFT_IN_READ:
        return read_begin(r);
    case RAFT_IN_TRANSFER:
        return leader_transfer(r, in->member);
    case RAFT_IN_CAMPAIGN:
        if (!election_promised(r))
            election_want(r, CAMPAIGN_PRE);
        return 0;
    case RAFT_IN_SUSPECT:
        election_suspect(r, in->member);
        return 0;
    case RAFT_IN_FORGET:
        if (r->role == RAFT_FOLLOWER && r->leader && !r->lease_reads) {
            read_lose(r);
            r->leader = 0;
            r->out.flags |= RAFT_OUT_ROLE;
        }
        return 0;
    case RAFT_IN_UNREACHABLE:
        leader_on_unreachable(r, in->member);
        return 0;
    case RAFT_IN_SNAPSHOT_SENT:
        leader_on_snapshot_sent(r, in->member, in->ok, in->index);
        return 0;
    case RAFT_IN_COMPACT:
        return on_compact(r, in->index);
    }
    return -EINVAL;
}

static uint64_t next_deadline(const struct raft *r)
{
    uint64_t at = r->heartbeat_at < r->quorum_at ? r->heartbeat_at : r->quorum_at;

    at = r->read_at < at ? r->read_at : at;
    if (r->role != RAFT_LEADER && r->wanted != CAMPAIGN_NONE && r->applied < r->commit) {
        /* To stand it waits for its state machine, which wakes nobody: look again soon. */
        uint64_t soon = r->now + r->heartbeat_ms / 50 + 1;

        return soon < r->election_at ? soon : r->election_at;
    }
    if (r->role != RAFT_LEADER)
        return r->election_at;
    if (r->n_prs == 1)
        return UINT64_MAX; /* nobody to send to or hear from: an idle member sleeps */
    return r->transfer_at < at ? r->transfer_at : at;
}

static void finish_output(struct raft *r)
{
    uint64_t can_apply = r->commit < r->stable ? r->commit : r->stable;

    /* The log's tail may be cut and the disk's with it, but never below what is committed; while a
     * snapshot is being installed there is nothing to apply from. */
    if (r->snapshot_index == 0 && can_apply > r->apply_to)
        r->apply_to = can_apply;
    /* Faulty no more: see raft_params.fence_term. */
    if (r->fence && r->snapshot_index == 0 && termlog_term(&r->log, r->apply_to) > r->fence) {
        r->fence = 0;
        r->out.flags |= RAFT_OUT_ROLE;
    }
    assert(r->applied <= r->apply_to);
    assert(r->apply_to <= r->commit);
    assert(r->commit <= r->log.last);
    assert(r->stable <= r->log.last);
    assert(r->log.base <= r->commit);
    r->out.term = r->term;
    r->out.vote = r->vote;
    r->out.commit = r->commit;
    r->out.msgs = r->msgs;
    r->out.reads = r->done_reads;
    r->out.apply_to = r->apply_to;
    r->out.deadline_ms = next_deadline(r);
}

int raft_step(struct raft *r, const struct raft_in *in, struct raft_out *ret_out)
{
    int err;

    if (in->now_ms > r->now)
        r->now = in->now_ms;
    r->out = (struct raft_out){0};
    err = dispatch(r, in);
    if (err)
        return err;
    finish_output(r);
    *ret_out = r->out;
    return 0;
}

/* ---- the beginning and the asking -------------------------------------------------------------- */

size_t raft_size(void)
{
    return sizeof(struct raft);
}

static bool params_valid(const struct raft_params *p)
{
    return p->id && p->heartbeat_ms && p->election_ms > p->heartbeat_ms && raft_conf_valid(&p->conf) &&
           p->first_index <= p->applied && p->applied <= p->last_index && p->commit <= p->last_index &&
           p->inflight_max <= RAFT_INFLIGHT_MAX && p->last_index < UINT64_MAX / 2 && p->term < UINT64_MAX / 2 &&
           p->term >= p->fence_term;
}

int raft_init(void *mem, const struct raft_params *p, struct raft **ret_raft)
{
    struct raft *r = mem;

    if (!params_valid(p))
        return -EINVAL;
    memset(r, 0, sizeof(*r));
    if (termlog_init(&r->log, p->first_index, p->first_term, p->last_index, p->runs, p->n_runs))
        return -EINVAL;
    if (termlog_last_term(&r->log) > p->term)
        return -EINVAL; /* an entry of a term this member has never seen */
    r->id = p->id;
    r->heartbeat_ms = p->heartbeat_ms;
    r->election_ms = p->election_ms;
    r->uncommitted_max = p->uncommitted_max;
    r->inflight_max = p->inflight_max ? p->inflight_max : RAFT_INFLIGHT_MAX;
    r->fence = p->fence_term;
    r->lease_reads = p->lease_reads;
    r->deny_until = p->now_ms + p->election_ms; /* what it promised before it started is forgotten */
    r->rng = (p->seed ^ p->id * 0x9e3779b97f4a7c15u) | 1;
    r->read_ctx = p->seed * 0x2545f4914f6cdd1du;
    r->now = p->now_ms;
    r->term = p->term;
    r->vote = p->vote;
    r->applied = p->applied;
    r->commit = p->commit > p->applied ? p->commit : p->applied;
    r->apply_to = r->commit;
    r->stable = p->last_index;
    r->conf_index = p->applied;
    r->heartbeat_at = r->quorum_at = r->transfer_at = r->read_at = UINT64_MAX;
    raft_set_conf(r, &p->conf);
    raft_reset_election(r);
    /* Nobody else could be the leader, so there is nothing to wait for. */
    if (raft_is_sole_voter(r))
        r->election_at = r->now;
    r->out = (struct raft_out){0};
    *ret_raft = r;
    return 0;
}

void raft_status(const struct raft *r, struct raft_status *ret_status)
{
    *ret_status = (struct raft_status){
        .id = r->id,
        .term = r->term,
        .vote = r->vote,
        .leader = r->leader,
        .commit = r->commit,
        .applied = r->applied,
        .stable = r->stable,
        .first_index = r->log.base,
        .last_index = r->log.last,
        .role = r->role,
        .is_voter = raft_is_voter(r, r->id),
        .is_learner = raft_set_has(&r->conf.learners, r->id),
        .sole_voter = raft_is_sole_voter(r),
        .confirmed = leader_confirmed(r),
        .faulty = r->fence != 0,
        .transferee = r->transferee,
        .n_runs = r->log.n_runs,
        .dropped = r->dropped,
        .stored_seq = r->stored_seq,
        .last_seq = r->last_seq,
    };
}

const struct raft_conf *raft_conf_of(const struct raft *r)
{
    return &r->conf;
}

uint64_t raft_term_of(const struct raft *r, uint64_t index)
{
    return termlog_term(&r->log, index);
}

bool raft_peer(const struct raft *r, uint64_t id, struct raft_peer *ret_peer)
{
    for (uint32_t i = 0; i < r->n_prs && r->role == RAFT_LEADER; i++) {
        const struct progress *p = &r->prs[i];

        if (p->id != id)
            continue;
        *ret_peer = (struct raft_peer){p->id, p->match, p->next, p->state, p->recent_active, p->paused};
        return true;
    }
    return false;
}
