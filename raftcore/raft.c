/* SPDX-License-Identifier: Apache-2.0 */
/* raft.c - the step: takes one input, leaves one output; what is stored, who we are, who is a member.
 *
 * Promise: nothing that speaks for this member's disk leaves before the STORED that covers it. There are
 * three such things: replies to votes (held, by store_seq), replies to appends (said from `stable`, never
 * from `last`) and our own vote and match (counted from vote_seq and `stable`).
 *
 * Owner:    the host's one thread.
 * Not here: elections (election.c), the leader's side (leader.c), the follower's (follower.c).
 */
#include <errno.h>
#include "core.h"
#include "err.h"

/* ---- output ------------------------------------------------------------------------------------ */

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

static int on_stored(struct raft *r, uint64_t seq)
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

/* ---- members ----------------------------------------------------------------------------------- */

struct progress *raft_progress_of(struct raft *r, uint64_t id)
{
    for (uint32_t i = 0; i < r->n_prs; i++)
        if (r->prs[i].id == id)
            return &r->prs[i];
    return NULL;
}

bool raft_is_voter(const struct raft *r, uint64_t id)
{
    return raft_set_has(&r->conf.voters, id) || raft_set_has(&r->conf.outgoing, id);
}

bool raft_is_sole_voter(const struct raft *r)
{
    return r->conf.voters.n == 1 && r->conf.voters.ids[0] == r->id &&
           (r->conf.outgoing.n == 0 || (r->conf.outgoing.n == 1 && r->conf.outgoing.ids[0] == r->id));
}

static const struct progress *const_progress_of(const struct raft *r, uint64_t id)
{
    for (uint32_t i = 0; i < r->n_prs; i++)
        if (r->prs[i].id == id)
            return &r->prs[i];
    assert(!"every voter has a progress");
    return NULL;
}

static uint64_t half_reached(const struct raft *r, const struct raft_set *s,
                             uint64_t (*of)(const struct progress *))
{
    uint64_t vals[RAFT_MEMBERS_MAX];

    for (uint32_t i = 0; i < s->n; i++)
        vals[i] = of(const_progress_of(r, s->ids[i]));
    return quorum_reached(vals, s->n);
}

uint64_t raft_quorum_reached(const struct raft *r, uint64_t (*of)(const struct progress *))
{
    uint64_t a = half_reached(r, &r->conf.voters, of), b = half_reached(r, &r->conf.outgoing, of);

    return a < b ? a : b;
}

bool raft_quorum_of(const struct raft *r, bool (*of)(const struct progress *))
{
    const struct raft_set *halves[] = {&r->conf.voters, &r->conf.outgoing};

    for (int h = 0; h < 2; h++) {
        uint32_t yes = 0;

        for (uint32_t i = 0; i < halves[h]->n; i++)
            yes += of(const_progress_of(r, halves[h]->ids[i]));
        if (quorum_vote(yes, 0, halves[h]->n) != QUORUM_WON)
            return false;
    }
    return true;
}

/* Keep what is known of members that stay; new ones are probed from the end of the log. */
void raft_set_conf(struct raft *r, const struct raft_conf *conf)
{
    const struct raft_set *sets[] = {&conf->voters, &conf->outgoing, &conf->learners};
    bool voted[RAFT_MEMBERS_MAX] = {0}, granted[RAFT_MEMBERS_MAX] = {0};
    uint32_t n = 0;

    assert(raft_conf_valid(conf));
    for (uint32_t i = 0; i < r->n_prs; i++) { /* who left makes room */
        bool stays = false;

        for (int s = 0; s < 3; s++)
            stays |= raft_set_has(sets[s], r->prs[i].id);
        if (!stays)
            continue;
        voted[n] = r->voted[i];
        granted[n] = r->granted[i];
        if (n != i)
            r->prs[n] = r->prs[i];
        n++;
    }
    r->n_prs = n;
    for (int s = 0; s < 3; s++)
        for (uint32_t i = 0; i < sets[s]->n; i++) {
            if (raft_progress_of(r, sets[s]->ids[i]))
                continue;
            assert(r->n_prs < RAFT_MEMBERS_MAX);
            progress_init(&r->prs[r->n_prs], sets[s]->ids[i], r->log.last + 1, r->inflight_max);
            r->prs[r->n_prs++].recent_active = true; /* no quorum check before it had its chance to speak */
        }
    memcpy(r->voted, voted, sizeof(voted));
    memcpy(r->granted, granted, sizeof(granted));
    r->conf = *conf;
    r->out.flags |= RAFT_OUT_CONF;
}

static void on_conf(struct raft *r, uint64_t index, const struct raft_conf_change *change)
{
    struct raft_conf next;

    if (index <= r->conf_index)
        return; /* a snapshot's configuration had it */
    r->conf_index = index;
    if (raft_conf_apply(&r->conf, change, &next))
        return; /* every member refuses it alike */
    raft_set_conf(r, &next);
    if (r->role == RAFT_LEADER)
        leader_conf_changed(r);
    else if (!raft_is_voter(r, r->id) && r->role != RAFT_FOLLOWER)
        raft_become_follower(r, r->term, 0);
}

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
        r->verified = 0;
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

/* ---- messages ---------------------------------------------------------------------------------- */

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

/* T 3.3: whoever sees a higher term takes it. True: the message goes on. */
static bool take_higher_term(struct raft *r, const struct raft_msg *m)
{
    bool from_leader = m->type == RAFT_APPEND || m->type == RAFT_HEARTBEAT || m->type == RAFT_SNAPSHOT;

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
    default:
        follower_on_snapshot(r, m);
        break;
    }
}

static void on_msg(struct raft *r, const struct raft_msg *m)
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
        on_msg(r, in->msg);
        return 0;
    case RAFT_IN_STORED:
        return on_stored(r, in->store_seq);
    case RAFT_IN_APPLIED:
        on_applied(r, in->index);
        return 0;
    case RAFT_IN_PROPOSE:
        return leader_propose(r, in->n_entries);
    case RAFT_IN_PROPOSE_CONF:
        return leader_propose_conf(r, in->change);
    case RAFT_IN_CONF:
        on_conf(r, in->index, in->change);
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
           p->inflight_max <= RAFT_INFLIGHT_MAX && p->last_index < UINT64_MAX / 2 && p->term < UINT64_MAX / 2 && p->term >= p->fence_term;
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
    r->heartbeat_at = r->quorum_at = r->transfer_at = UINT64_MAX;
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
