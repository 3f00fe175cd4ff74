/* SPDX-License-Identifier: Apache-2.0 */
/* leader.c - proposals, replication, commit, transfer; the leader's half of configuration changes.
 *
 * Entries travel while this member still writes them (T 10.2.1); its own match counts only what is
 * stored, so an entry commits when a majority has it on disk, with or without the leader's.
 */
#include <errno.h>
#include "core.h"
#include "err.h"

/* ---- sending ----------------------------------------------------------------------------------- */

/* The log no longer has what the follower needs (T 5). */
static bool send_snapshot(struct raft *r, struct progress *p)
{
    struct raft_msg *m;

    if (!p->recent_active)
        return false; /* nobody there to take it */
    m = raft_send(r, RAFT_SNAPSHOT, p->id);
    if (m == NULL)
        return false;
    m->index = r->log.base;
    m->log_term = r->log.base_term;
    progress_snapshot(p);
    return true;
}

/* One APPEND of what the follower lacks; an empty one only when asked: it carries commit and finds out
 * whether an earlier one was lost. False: nothing was sent. */
static bool send_append(struct raft *r, struct progress *p, bool even_empty)
{
    uint64_t prev = p->next - 1, last = r->log.last;
    struct raft_msg *m;

    if (!progress_may_send(p) || !raft_room_for_append(r))
        return false;
    if (prev < r->log.base)
        return send_snapshot(r, p);
    if (last > prev + RAFT_APPEND_MAX)
        last = prev + RAFT_APPEND_MAX;
    if (progress_window_full(p))
        last = prev;
    if (last == prev && !even_empty)
        return false;
    m = raft_send(r, RAFT_APPEND, p->id);
    if (m == NULL)
        return false;
    m->index = prev;
    m->log_term = termlog_term(&r->log, prev);
    m->last = termlog_runs(&r->log, prev, last, m->runs, RAFT_MSG_RUNS_MAX, &m->n_runs);
    m->commit = r->commit;
    progress_sent(p, m->last - prev);
    return true;
}

static void broadcast(struct raft *r)
{
    for (uint32_t i = 0; i < r->n_prs; i++)
        if (r->prs[i].id != r->id)
            send_append(r, &r->prs[i], true);
}

/* What is committed is said with the entries that follow, if there are any; else by itself, for which no answer is
 * needed. */
static void tell_commit_to(struct raft *r, struct progress *p)
{
    struct raft_msg *m;

    if (send_append(r, p, p->state == RAFT_PROBE) || p->state != RAFT_REPLICATE || !raft_room_for_append(r))
        return;
    m = raft_send(r, RAFT_COMMIT, p->id);
    if (m)
        m->commit = r->commit;
}

static void tell_commit(struct raft *r)
{
    for (uint32_t i = 0; i < r->n_prs; i++)
        if (r->prs[i].id != r->id)
            tell_commit_to(r, &r->prs[i]);
}

/* The same, unless entries are under way that will be committed soon: then it is said once for all of them, or with
 * the next ones, or by the next heartbeat. */
static void commit_moved(struct raft *r)
{
    if (r->commit == r->log.last)
        tell_commit(r);
}

void leader_heartbeat_to(struct raft *r, const struct progress *p)
{
    struct raft_msg *m = raft_send(r, RAFT_HEARTBEAT, p->id);

    if (m == NULL)
        return;
    /* Never beyond what is known to agree there: a follower takes it without a comparison. */
    m->commit = p->match < r->commit ? p->match : r->commit;
    m->index = r->commit; /* for as much as it knows by itself to agree */
    m->ctx = r->read_seq;
}

void leader_heartbeat(struct raft *r)
{
    read_lease_probe(r);
    for (uint32_t i = 0; i < r->n_prs; i++)
        if (r->prs[i].id != r->id)
            leader_heartbeat_to(r, &r->prs[i]);
    r->heartbeat_at = r->now + r->heartbeat_ms;
}

/* ---- commit ------------------------------------------------------------------------------------ */

static uint64_t match_of(const struct progress *p)
{
    return p->match;
}

bool leader_confirmed(const struct raft *r)
{
    return r->role == RAFT_LEADER && termlog_term(&r->log, r->commit) == r->term;
}

/* T 3.6.2: only entries of the own term are committed by counting; older ones go with them. */
static bool advance_commit(struct raft *r)
{
    uint64_t index = raft_quorum_reached(r, match_of);
    bool confirmed = leader_confirmed(r);

    if (index <= r->commit || termlog_term(&r->log, index) != r->term)
        return false;
    raft_set_commit(r, index);
    if (!confirmed)
        read_committed(r);
    return true;
}

static void count_own(struct raft *r)
{
    struct progress *self = raft_progress_of(r, r->id);

    if (self && self->match < r->stable) {
        self->match = r->stable;
        if (self->next <= self->match)
            self->next = self->match + 1;
    }
}

void leader_stored(struct raft *r)
{
    count_own(r);
    if (advance_commit(r))
        commit_moved(r);
}

/* ---- entries ----------------------------------------------------------------------------------- */

static void append(struct raft *r, uint32_t n, enum raft_entries whose)
{
    uint64_t first = r->log.last + 1;

    termlog_append(&r->log, n, r->term);
    raft_store_entries(r, first, r->log.last, whose);
    broadcast(r);
}

void leader_begin(struct raft *r)
{
    raft_become_follower(r, r->term, 0); /* ends the campaign, clears what followers keep */
    r->role = RAFT_LEADER;
    r->leader = r->id;
    r->out.flags |= RAFT_OUT_ROLE;
    for (uint32_t i = 0; i < r->n_prs; i++)
        progress_init(&r->prs[i], r->prs[i].id, r->log.last + 1, r->inflight_max);
    raft_progress_of(r, r->id)->recent_active = true;
    r->lease_seq = r->lease_until = 0;
    r->lease_over = false;
    count_own(r);
    r->election_at = UINT64_MAX;
    r->quorum_at = r->now + r->election_ms;
    /* Any entry not yet applied may be a change of the configuration. */
    r->conf_pending = r->log.last;
    append(r, 1, RAFT_ENTRIES_EMPTY); /* T 6.4: to learn what is committed */
    r->heartbeat_at = r->now + r->heartbeat_ms;
}

static int may_propose(const struct raft *r, uint32_t n)
{
    if (r->role != RAFT_LEADER)
        return ERR_NOT_LEADER;
    if (r->transferee || !raft_is_voter(r, r->id))
        return ERR_PROPOSAL_DROPPED;
    if (n == 0 || n > UINT32_MAX / 2)
        return -EINVAL;
    if ((r->uncommitted_max && r->log.last - r->commit + n > r->uncommitted_max) ||
        !raft_may_store(r, r->log.last + 1, r->term, 1))
        return ERR_TOO_MANY_REQUESTS;
    return 0;
}

int leader_propose(struct raft *r, uint32_t n)
{
    int err = may_propose(r, n);

    if (err == 0)
        append(r, n, RAFT_ENTRIES_PROPOSED);
    return err;
}

/* T 4.1: no second change before the first is applied, else their quorums might not overlap. */
int leader_propose_conf(struct raft *r, const struct raft_conf_change *change)
{
    struct raft_conf next;
    int err = may_propose(r, 1);

    if (err)
        return err;
    if (r->conf_pending > r->applied)
        return ERR_PROPOSAL_DROPPED;
    err = raft_conf_apply(&r->conf, change, &next);
    if (err)
        return err;
    append(r, 1, RAFT_ENTRIES_PROPOSED);
    r->conf_pending = r->log.last;
    return 0;
}

/* A joint configuration that was entered with auto_leave is left as soon as it is in force (T 4.3). */
void leader_applied(struct raft *r)
{
    if (!r->conf.auto_leave || r->applied < r->conf_pending || r->transferee)
        return;
    append(r, 1, RAFT_ENTRIES_LEAVE);
    r->conf_pending = r->log.last;
}

/* ---- transfer (T 3.10) ------------------------------------------------------------------------- */

static void transfer_if_caught_up(struct raft *r, const struct progress *p)
{
    if (p->id != r->transferee || p->match != r->log.last)
        return;
    read_lease_give_up(r); /* T 6.4.1: who campaigns by our leave waits for no lease */
    raft_send(r, RAFT_TIMEOUT_NOW, p->id);
}

static void give_up_transfer(struct raft *r)
{
    r->transferee = 0;
    r->transfer_at = UINT64_MAX;
}

int leader_transfer(struct raft *r, uint64_t to)
{
    struct progress *p;

    if (r->role != RAFT_LEADER)
        return ERR_NOT_LEADER;
    if (to == r->id) {
        give_up_transfer(r);
        return 0;
    }
    p = raft_progress_of(r, to);
    if (p == NULL || !raft_set_has(&r->conf.voters, to))
        return ERR_BAD_TRANSFEREE;
    if (r->transferee == to)
        return 0;
    r->transferee = to;
    r->transfer_at = r->now + r->election_ms;
    transfer_if_caught_up(r, p);
    send_append(r, p, true);
    return 0;
}

/* ---- configuration ----------------------------------------------------------------------------- */

/* T 4.2.2: a leader that is no longer a voter leaves; first it tells what is committed, and asks the
 * voter that knows most to take over at once. What that one lacks is under way to it. */
static void step_down_removed(struct raft *r)
{
    const struct progress *best = NULL;

    tell_commit(r);
    for (uint32_t i = 0; i < r->n_prs; i++) {
        const struct progress *p = &r->prs[i];

        if (p->id != r->id && raft_set_has(&r->conf.voters, p->id) && p->recent_active &&
            (best == NULL || p->match > best->match))
            best = p;
    }
    if (best)
        raft_send(r, RAFT_TIMEOUT_NOW, best->id);
    raft_become_follower(r, r->term, 0);
}

void leader_conf_changed(struct raft *r)
{
    if (!raft_is_voter(r, r->id)) {
        step_down_removed(r);
        return;
    }
    if (r->transferee && !raft_set_has(&r->conf.voters, r->transferee))
        give_up_transfer(r);
    count_own(r);
    (void)advance_commit(r); /* a smaller quorum may have been reached */
    tell_commit(r);          /* new members are probed */
    read_check(r);
}

/* ---- deadlines --------------------------------------------------------------------------------- */

static bool is_active(const struct progress *p)
{
    return p->recent_active;
}

/* T 6.2: a leader that cannot reach a majority for an election timeout is none. */
static bool check_quorum(struct raft *r)
{
    bool ok = raft_quorum_of(r, is_active);

    for (uint32_t i = 0; i < r->n_prs; i++)
        r->prs[i].recent_active = r->prs[i].id == r->id;
    r->quorum_at = r->now + r->election_ms;
    if (!ok)
        raft_become_follower(r, r->term, 0);
    return ok;
}

void leader_deadlines(struct raft *r)
{
    if (r->now >= r->transfer_at) {
        give_up_transfer(r);
        leader_applied(r); /* leaving a joint configuration may have waited for this */
    }
    if (r->now >= r->quorum_at && !check_quorum(r))
        return;
    if (r->now >= r->heartbeat_at || r->now >= r->read_at) {
        r->read_at = UINT64_MAX; /* whoever was asked for the round is slow: all are */
        leader_heartbeat(r);
    }
}

/* ---- answers ----------------------------------------------------------------------------------- */

static void on_refused(struct raft *r, struct progress *p, const struct raft_msg *m)
{
    uint64_t hint = m->hint < m->index ? m->hint : m->index, term;

    /* Both sides skip whole terms: of our entries, none of a later term than theirs can agree. */
    if (m->log_term)
        hint = termlog_at_or_below(&r->log, hint, m->log_term, &term);
    if (progress_refused(p, m->index, hint))
        send_append(r, p, true);
}

void leader_on_append_reply(struct raft *r, const struct raft_msg *m)
{
    struct progress *p = raft_progress_of(r, m->from);
    bool was_paused;

    if (r->role != RAFT_LEADER || p == NULL)
        return;
    p->recent_active = true;
    if (m->reject) {
        on_refused(r, p, m);
        return;
    }
    if (m->index > r->log.last) {
        raft_drop(r);
        return;
    }
    was_paused = p->paused;
    if (!progress_accepted(p, m->index))
        return;
    /* After a snapshot: once the log reaches what the follower needs next. */
    if (p->state == RAFT_PROBE || (p->state == RAFT_SNAPSHOTTING && p->match >= r->log.base))
        progress_replicate(p);
    if (advance_commit(r))
        commit_moved(r);
    else if (was_paused)
        tell_commit_to(r, p);
    while (send_append(r, p, false))
        ;
    transfer_if_caught_up(r, p);
}

void leader_on_heartbeat_reply(struct raft *r, const struct raft_msg *m)
{
    struct progress *p = raft_progress_of(r, m->from);

    if (r->role != RAFT_LEADER || p == NULL)
        return;
    if (m->ctx > r->read_seq) {
        raft_drop(r);
        return;
    }
    p->recent_active = true;
    p->paused = false;
    if (p->match < r->log.last || p->state == RAFT_PROBE)
        send_append(r, p, true);
    transfer_if_caught_up(r, p); /* the first TIMEOUT_NOW may have been lost */
    read_on_ack(r, p, m->ctx);
}

void leader_on_unreachable(struct raft *r, uint64_t id)
{
    struct progress *p = raft_progress_of(r, id);

    if (r->role == RAFT_LEADER && p && p->state == RAFT_REPLICATE)
        progress_probe(p);
}

void leader_on_snapshot_sent(struct raft *r, uint64_t id, bool ok, uint64_t index)
{
    struct progress *p = raft_progress_of(r, id);

    if (r->role == RAFT_LEADER && p && index <= r->log.last)
        progress_snapshot_ended(p, ok, index);
}
