/* SPDX-License-Identifier: Apache-2.0 */
/* turn_take.c - what the core is told of the disk and of the state machine: entries stored, applied, flushed,
 * configurations applied; and when apply is to wake the turn.
 *
 * Owner: the turn thread, but for on_applied.
 */
#include "limits.h"
#include "store.h"
#include "turn_impl.h"

void turn_take_stored(struct turn *t)
{
    uint64_t stored = atomic_load(&t->stored);

    if (stored == t->stored_seq)
        return;
    t->stored_seq = stored;
    (void)turn_raft(t, (struct raft_in){.type = RAFT_IN_STORED, .store_seq = stored}); /* it is what was asked for */
    raft_status(t->raft, &t->status);
    /* What is stored can be read again from the log; the rest only the cache has. */
    entry_cache_done(t->o.cache, t->status.stable + 1);
    if (t->status.sole_voter)
        entry_cache_forget(t->o.cache, store_applied(t->o.store) + 1); /* it was kept for followers */
}

static void on_applied(struct apply_wait *w)
{
    struct turn *t = (struct turn *)((char *)w - offsetof(struct turn, applied_wait));

    atomic_store(&t->applied, w->index);
    atomic_store(&t->applied_waits, false);
    mailbox_nudge(&t->box);
}

/* What the core, or we, wait for apply to reach; 0: nothing. Each wake-up costs, so none is asked for the
 * ordinary entry. */
static uint64_t applied_goal(const struct turn *t)
{
    uint64_t goal = t->conf_index, clear = turn_leases_goal(t);

    if (t->status.role != RAFT_LEADER && (t->status.leader == 0 || t->may_stand))
        goal = t->status.commit; /* a candidate stands when all it knows is applied */
    else if (t->status.role == RAFT_LEADER && !t->own_applied && t->own_index <= t->status.commit &&
             goal < t->own_index)
        goal = t->own_index;
    else if (t->settled_term < t->status.term && account_pending(t->o.account) > 0 && goal < t->status.commit)
        goal = t->status.commit; /* what an older term has cut can be tried again */
    if (goal < clear)
        goal = clear;
    return goal > t->status.applied ? goal : 0;
}

void turn_wait_for_apply(struct turn *t)
{
    uint64_t goal = applied_goal(t);

    if (goal == 0 || goal > t->commit_told || atomic_load(&t->applied_waits))
        return;
    t->applied_wait = (struct apply_wait){.index = goal, .done = on_applied};
    atomic_store(&t->applied_waits, true);
    if (apply_wait(t->o.apply, &t->applied_wait) == 0)
        on_applied(&t->applied_wait); /* nudges ourselves: the next turn takes it */
}

/* How far apply is; looked at before turn_take_confs (as is what has been flushed), so that the configurations up to there
 * are all stepped. Among other members it is looked at each time, as an election may come at any time. */
uint64_t turn_look_applied(struct turn *t)
{
    uint64_t applied = atomic_load(&t->applied), published;

    if (t->o.transport == NULL || t->status.sole_voter)
        return applied;
    published = store_applied(t->o.store);
    return published > applied ? published : applied;
}

/* Nobody else is told of commits, not even a learner: what is acknowledged, our own apply has acknowledged. */
static bool is_alone(const struct turn *t)
{
    const struct raft_conf *c = raft_conf_of(t->raft);

    return t->status.sole_voter && c->learners.n == 0 && c->learners_next.n == 0;
}

void turn_take_applied(struct turn *t, uint64_t applied)
{
    if (applied <= t->status.applied)
        return;
    (void)turn_raft(t, (struct raft_in){.type = RAFT_IN_APPLIED, .index = applied}); /* refuses nothing */
    raft_status(t->raft, &t->status);
    turn_proposals_settle(t);
    if (t->own_index == 0 || t->own_applied || t->status.applied < t->own_index)
        return;
    /* All that any leader has acknowledged is in our state now: leases may run out, and a sole voter reads
     * without asking anybody. */
    t->own_applied = true;
    if (t->o.leases) /* nobody could renew since the last leader was lost: an election may take so long */
        lease_promote(t->o.leases, t->status.sole_voter ? t->o.election_ms : 2 * t->o.election_ms);
    t->checkpoint_ms = t->now_ms;
    atomic_store_explicit(&t->reads_free, is_alone(t), memory_order_release);
}

void turn_take_confs(struct turn *t)
{
    struct mail *m = mailbox_take(&t->conf_box), *next;

    for (; m; m = next) {
        struct conf_event *e = (struct conf_event *)m;

        next = m->next;
        (void)turn_raft(t, (struct raft_in){.type = RAFT_IN_CONF, .index = e->index, .change = &e->change});
        t->conf_index = e->index;
        raft_status(t->raft, &t->status);
        atomic_store_explicit(&t->reads_free, t->own_applied && is_alone(t), memory_order_release);
        free(e);
    }
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* The log may forget what base holds, but for the tail that followers may ask for. Not the tail of a log that begins at
 * index 0: it was made before the founding configuration counted as entry 1, and a member that joins and was given all
 * of it would never learn who founded the cluster. It is given a snapshot. */
void turn_take_flushed(struct turn *t, uint64_t flushed)
{
    bool crowded = t->status.n_runs > RAFT_RUNS_MAX / 2; /* a restart loop: terms with few entries fill the core's
                                                          * runs */
    uint64_t to = flushed, bytes_to;

    if (flushed <= t->compacted)
        return;
    bytes_to = least(flushed, wal_within(t->o.wal, LIMIT_CATCHUP_BYTES));
    if (!crowded)
        to = most(flushed > t->o.catchup_entries ? flushed - t->o.catchup_entries : 0, bytes_to);
    to = most(turn_snap_floor(t, to), least(flushed, wal_within(t->o.wal, LIMIT_SNAP_LOG_BYTES)));
    to = most(to, 1);
    if (to <= t->compacted || to <= t->status.first_index)
        return;
    if (to - t->compacted < t->o.snapshot_count && to > bytes_to && !crowded && t->compacted > 0)
        return;
    if (flushed > t->status.applied)
        (void)turn_raft(t, (struct raft_in){.type = RAFT_IN_APPLIED, .index = flushed}); /* refuses nothing */
    if (turn_raft(t, (struct raft_in){.type = RAFT_IN_COMPACT, .index = to}) != 0)
        return; /* not stored here yet: another flush will come */
    t->compacted = to;
    atomic_store(&t->release_to, to);
    mailbox_nudge(&t->wal_box);
}
