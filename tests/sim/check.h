/* SPDX-License-Identifier: Apache-2.0 */
/* check.h - what must hold after every step of a member, and the steps themselves.
 *
 * The invariants of RELIABILITY A.3, each with where it is checked (a function here if no file is named), or why not
 * here:
 *
 * RAFT        ElectionSafety check_leader, transfer_judge (client.h) · LogMatching oracle_see (oracle.h), of all that is stored
 *             LeaderCompleteness check_leader, check_leader_commit · StateMachineSafety check_commit, oracle_commit
 *             CommitMonotone check_commit · TermMonotone check_turn · VoteOncePerTermDurable net_check (net.h), at each
 *             restart member_check_recovered (member.h) · ReadIndexFresh read_done, read_now (client.h)
 *             ConfChangeSingleStep/Joint, LearnerNeverCounts check_quorum: by what all have applied, in both halves
 *             NonVoterNeverElected check_leader · NoSelfElectionWhileFaulty check_turn, net_check
 * DURABILITY  AckImpliesQuorumFsync check_quorum, net_check, member_note_durable, write_judge
 *             NoReadOfUndurable check_applied, read_now, created_judge (watch.h)
 *             RestartPreservesAcked member_check_recovered · DirEntryDurable: the disk (fakedisk.h) loses entries that were
 *             not synced, then the same; each crash state of it tests/unit/sim_crash.c
 * APPLY       AppliedIndexInSameTxn member_start: base fits the log, power cut between two commits too · AppliedContiguous,
 *             ApplyDeterministic check_applied, and by the members themselves (damage.h) · ApplyIndependentOfLocalState:
 *             the same, as members compact, flush, restart and are given snapshots at different times
 *             OneIndexPerEntry oracle_note_request
 * MVCC        RevisionStrictlyMonotone write_judge, check_applied · OneRevisionPerWritingTxn, CreateRev<=ModRev,
 *             VersionCountsSinceCreate, FailedTxnLeavesNothing: reads and events are those of the model (oracle.h)
 *             A rename of a directory is one revision, or nothing: the same, by what rename.h says that it means
 *             IndexMatchesStore member_check_base, at each start: there is no index but in base · ReadAtRevStable read_compare
 *             CompactedAlwaysErrors read_compacted (client.h), events_judge (watch.h)
 * WATCH       watch.h: Filter, Ordered, Unique, Atomic, Reliable, Resumable, Bookmarkable, PrevKV, IsCreate, FutureRevSilent
 *             SlowWatcherEitherAllOrCancelled: a full queue is megabytes, tests/unit/hub.c slow_reader
 * LEASE       NeverExpiresEarly model_expire · ExpiresWithinBound liveness (sim.c) · RevokeOnlyByCurrentQuorumLeader: an
 *             expiry of another term is nothing to the model · KeyGoneIffLeaseGone: the model's keys · RenewAfterRevokeFails
 *             renew_judge
 * AUTH        no part of a cluster's agreement: tests of the services
 * MEMBERSHIP  SameOnAllMembers ApplyDeterministic (the rows are hashed), model_alarm · NoZombie: one that was removed leads
 *             no more, check_leader, and is asked all the same until it is ended · QuorumNeverLostByAcceptedChange liveness
 *             IdNeverReused model_conf_check: the members must refuse it too · AnswersAreAskedFor (of states) net_check
 * RESOURCE    by tests of each limit (ARCHITECTURE.md), no matter of a schedule
 * LIVENESS    LeaderWithin, Progress, EveryMemberCatchesUp liveness · ShutdownWithin: real threads, tests/unit/rpc.c
 */
#pragma once
#include "net.h"

static inline void watches_taken(struct sim_member *m, unsigned pct); /* watch.h */

/* ---- raft ------------------------------------------------------------------------------------------ */

/* AckImpliesQuorumFsync, LearnerNeverCounts: what becomes known as committed lies on the platters of a majority of the
 * voters, in both halves. */
static inline bool conf_has_stored(const struct sim_member *m, const struct raft_conf *conf, uint64_t index,
                                   uint64_t term)
{
    const struct raft_set *halves[] = {&conf->voters, &conf->outgoing};

    for (int h = 0; h < 2; h++) {
        uint32_t have = 0;

        for (uint32_t i = 0; i < halves[h]->n; i++)
            have += member_has_durable(&m->s->m[halves[h]->ids[i]], index, term);
        if (halves[h]->n && have < halves[h]->n / 2 + 1)
            return false;
    }
    return true;
}

/* By the configuration in force before the step, or after it. */
static inline void check_quorum(struct sim_member *m, uint64_t index, uint64_t term)
{
    if (!conf_has_stored(m, raft_conf_of(m->turn->raft), index, term) &&
        !conf_has_stored(m, &m->conf_seen, index, term))
        world_fail(m->w, "AckImpliesQuorumFsync",
                   "member %" PRIu64 " commits %" PRIu64 "/%" PRIu64 " before a majority has it", m->id,
                   index, term);
}

static inline struct entry *member_entry(struct sim_member *m, uint64_t index)
{
    struct entry *e = entry_cache_get(m->cache, index);

    return e ? e : member_read(m, index);
}

/* A leader commits by count, and only entries of its own term. */
static inline void check_leader_commit(struct sim_member *m)
{
    const struct raft_status *st = &m->turn->status;
    uint64_t term;

    if (st->role != RAFT_LEADER || st->commit <= m->count_seen)
        return;
    m->count_seen = st->commit;
    term = raft_term_of(m->turn->raft, st->commit);
    if (st->commit <= m->s->o.committed || st->commit <= m->commit_seen)
        return; /* known before it led */
    check_quorum(m, st->commit, term);
    if (term != st->term)
        world_fail(m->w, "LeaderCompleteness",
                   "member %" PRIu64 " commits %" PRIu64 " of term %" PRIu64 " by count in term %" PRIu64,
                   m->id, st->commit, term, st->term);
}

static inline void check_commit(struct sim_member *m)
{
    const struct raft_status *st = &m->turn->status;
    struct oracle *o = &m->s->o;

    if (st->commit < m->commit_seen && m->commit_seen > m->applied_seen)
        world_fail(m->w, "CommitMonotone", "member %" PRIu64 ": %" PRIu64 " after %" PRIu64, m->id,
                   st->commit, m->commit_seen);
    if (m->commit_seen < st->first_index)
        m->commit_seen = st->first_index; /* came by a snapshot: its state is compared */
    for (uint64_t i = m->commit_seen + 1; i <= st->commit && !m->w->failed; i++) {
        struct entry *e = member_entry(m, i);

        if (e == NULL) {
            world_fail(m->w, "StateMachineSafety",
                       "member %" PRIu64 " has committed %" PRIu64 " and cannot read it", m->id, i);
            return;
        }
        (void)oracle_commit(m->w, o, m->id, st->term, e);
        entry_unref(e);
        m->commit_seen = i;
    }
}

static inline void check_leader(struct sim_member *m)
{
    const struct raft_status *st = &m->turn->status;
    struct oracle *o = &m->s->o;
    uint64_t *leader, row = term_row(st->term);

    if (st->role != RAFT_LEADER || row == SIM_TERMS_MAX)
        return;
    leader = &o->leader_of[row];
    if (!st->is_voter && !(m->led && m->leads_term == st->term))
        world_fail(m->w, "NonVoterNeverElected", "member %" PRIu64 " leads term %" PRIu64, m->id, st->term);
    if (*leader == m->id && m->led && m->leads_term == st->term)
        return;
    if (*leader)
        world_fail(m->w, "ElectionSafety", "members %" PRIu64 " and %" PRIu64 " lead in term %" PRIu64,
                   *leader, m->id, st->term);
    *leader = m->id;
    m->led = true;
    m->leads_term = st->term;
    m->w->did.elections++;
    world_line(m->w, "m%" PRIu64 " leads term %" PRIu64, m->id, st->term);
    for (uint64_t i = st->first_index + 1; i <= o->committed; i++) {
        /* One elected late owes nothing to what later terms have committed. */
        if (o->log[i].in < st->term && raft_term_of(m->turn->raft, i) != o->log[i].term) {
            world_fail(m->w, "LeaderCompleteness",
                       "member %" PRIu64 " leads term %" PRIu64 " without entry %" PRIu64, m->id, st->term,
                       i);
            return;
        }
    }
}

static inline void check_turn(struct sim_member *m)
{
    const struct raft_status *st = &m->turn->status;

    if (st->term < m->term_seen)
        world_fail(m->w, "TermMonotone", "member %" PRIu64 ": %" PRIu64 " after %" PRIu64, m->id, st->term,
                   m->term_seen);
    m->term_seen = st->term;
    if (st->faulty && st->role != RAFT_FOLLOWER)
        world_fail(m->w, "NoSelfElectionWhileFaulty", "member %" PRIu64 " stands in term %" PRIu64, m->id, st->term);
    check_leader(m);
    check_leader_commit(m);
    check_commit(m);
    m->conf_seen = *raft_conf_of(m->turn->raft);
}

/* ---- state ------------------------------------------------------------------------------------------ */

/* ApplyDeterministic, RevisionStrictlyMonotone, NoReadOfUndurable. */
static inline void check_applied(struct sim_member *m)
{
    struct apply *a = m->apply;
    struct oracle *o = &m->s->o;
    struct agreed *at;

    if (a->applied == m->applied_seen)
        return;
    if (a->applied < m->applied_seen || a->applied > o->committed || a->rev < m->rev_seen) {
        world_fail(m->w, "AppliedContiguous",
                   "member %" PRIu64 " applied %" PRIu64 " after %" PRIu64 ", committed %" PRIu64, m->id,
                   a->applied, m->applied_seen, o->committed);
        return;
    }
    m->applied_seen = a->applied;
    m->rev_seen = a->rev;
    at = &o->log[a->applied];
    if (a->rev != at->rev || a->compact_rev != at->compact_rev)
        world_fail(m->w, "ApplyDeterministic",
                   "member %" PRIu64 " at %" PRIu64 ": revision %" PRId64 ", compacted %" PRId64
                   "; the model %" PRId64 ", %" PRId64,
                   m->id, a->applied, a->rev, a->compact_rev, at->rev, at->compact_rev);
    if (m->diverges)
        return; /* for the members themselves to find out */
    if (at->state_hash == 0)
        at->state_hash = a->hash;
    else if (at->state_hash != a->hash)
        world_fail(m->w, "ApplyDeterministic", "member %" PRIu64 " at %" PRIu64 ": another state hash", m->id,
                   a->applied);
}

/* ---- steps -------------------------------------------------------------------------------------------- */

static inline bool box_called(struct mailbox *b)
{
    return atomic_load(&b->wakes) != 0 || atomic_load(&b->head) != NULL;
}

static inline void member_call(struct sim_member *m, enum thread t, uint64_t at_us)
{
    if (at_us < m->at[t])
        m->at[t] = at_us;
}

static inline uint64_t member_disk_delay(struct sim_member *m)
{
    uint64_t d = world_delay(m->w, m->disk_us);

    return m->stall_until_us > m->w->now_us + d ? m->stall_until_us - m->w->now_us : d;
}

/* Whoever was nudged comes round soon. A thread that has been called already is not called again. */
static inline void member_poll(struct sim_member *m)
{
    uint64_t now = m->w->now_us, late = m->s->thread_us;

    if (box_called(&m->turn->box) && m->at[T_TURN] > now + late)
        member_call(m, T_TURN, now + world_random(m->w, late));
    if (box_called(&m->turn->wal_box) && m->at[T_WAL] > now + 30 * 1000 * 1000)
        member_call(m, T_WAL, now + member_disk_delay(m));
    if (box_called(&m->apply->box) && m->at[T_APPLY] > now + late + m->s->apply_us)
        member_call(m, T_APPLY, now + world_random(m->w, late + m->s->apply_us));
    if (box_called(&m->hub->box) && m->at[T_HUB] > now + late + m->s->hub_us)
        member_call(m, T_HUB, now + world_random(m->w, late + m->s->hub_us));
    if (box_called(&m->snap->box) && m->at[T_SNAP] > now + late)
        member_call(m, T_SNAP, now + world_random(m->w, late));
    if (box_called(&m->apply->flusher) && m->at[T_FLUSH] > now + 10 * late + m->disk_us)
        member_call(m, T_FLUSH, now + world_random(m->w, 10 * late + m->disk_us));
}

static inline void wal_moment(struct sim_member *m)
{
    uint64_t stored, deadline_ms, first = m->wal->state.first_index, last = m->wal->state.last_index;
    size_t segments = m->wal->n_segments;

    atomic_store(&m->turn->wal_box.wakes, 0);
    if (m->wal_crash_at && m->disk.fail_call == 0 && box_called(&m->turn->wal_box)) {
        m->disk.fail_call = m->disk.calls + m->wal_crash_at;
        m->disk.fail_err = -EIO;
        m->disk.fail_for_ever = true;
    }
    stored = atomic_load(&m->turn->stored);
    deadline_ms = turn_wal_step(m->turn);
    m->at[T_WAL] = member_when(m, deadline_ms);
    if (m->failed)
        return;
    m->w->did.log_cuts += m->wal->state.last_index < last;
    m->w->did.log_releases += m->wal->n_segments < segments || m->wal->state.first_index > first;
    if (atomic_load(&m->turn->stored) != stored)
        member_note_durable(m);
}

/* All that a batch of commits brings, or entry by entry: then every index can be compared. */
static inline void apply_moment(struct sim_member *m)
{
    uint64_t commit = atomic_load(&m->apply->commit), deadline_ms;

    check_commit(m); /* what a start already knew: apply may come round before the turn */
    atomic_store(&m->apply->box.wakes, 0);
    if (world_chance(m->w, 70) && m->apply->applied + 1 < commit) {
        uint64_t one = m->apply->applied + 1;

        atomic_store(&m->apply->commit, one);
        deadline_ms = apply_step(m->apply);
        if (atomic_load(&m->apply->commit) == one)
            atomic_store(&m->apply->commit, commit);
        deadline_ms = 0;
    } else {
        deadline_ms = apply_step(m->apply);
    }
    m->at[T_APPLY] = deadline_ms ? member_when(m, deadline_ms) : m->w->now_us + 1;
    check_applied(m);
}

static inline void flush_moment(struct sim_member *m)
{
    bool had_work = atomic_load(&m->apply->to_flush) != NULL;
    uint64_t deadline_ms;

    atomic_store(&m->apply->flusher.wakes, 0);
    flushing = m;
    flush_commits = 0;
    deadline_ms = apply_flush_step(m->apply);
    flushing = NULL;
    m->w->did.flushes += had_work && atomic_load(&m->apply->to_flush) == NULL;
    m->at[T_FLUSH] = deadline_ms ? member_when(m, deadline_ms) : m->w->now_us + 1;
}

static inline void hub_moment(struct sim_member *m)
{
    uint64_t deadline_ms;

    atomic_store(&m->hub->box.wakes, 0);
    deadline_ms = hub_step(m->hub);
    m->at[T_HUB] = deadline_ms ? member_when(m, deadline_ms) : m->w->now_us + 1;
    watches_taken(m, 85);
}

static inline void snap_moment(struct sim_member *m)
{
    uint64_t half_second = m->w->now_us + 500000;

    atomic_store(&m->snap->box.wakes, 0);
    snap_members_changed(m->snap); /* whether or not */
    m->at[T_SNAP] = member_when(m, snap_check(m->snap));
    if (m->at[T_SNAP] > half_second)
        m->at[T_SNAP] = half_second;
    atomic_store(&m->snap->box.wakes, 0);
    if (m->faulty && !m->snap->o.faulty) {
        m->faulty = false;
        m->bootstrap.fence_term = 0;
        m->w->did.sound_again++;
        world_line(m->w, "m%" PRIu64 " is sound again", m->id);
    }
}

static inline void member_step(struct sim_member *m, enum thread t)
{
    if (m->paused) {
        m->at[t] = m->w->now_us + 10000;
        return;
    }
    m->at[t] = NEVER;
    m->w->did.steps++;
    switch (t) {
    case T_TURN:
        atomic_store(&m->turn->box.wakes, 0);
        m->at[T_TURN] = member_when(m, turn_step(m->turn));
        check_turn(m);
        break;
    case T_WAL:
        wal_moment(m);
        break;
    case T_APPLY:
        apply_moment(m);
        break;
    case T_HUB:
        hub_moment(m);
        break;
    case T_SNAP:
        snap_moment(m);
        break;
    default:
        flush_moment(m);
        break;
    }
    if (m->failed) {
        if (!m->excused)
            world_fail(m->w, "member", "member %" PRIu64 " stops: %s", m->id, m->fatal);
        else
            m->crash_soon = 2;
        return;
    }
    member_poll(m);
}
