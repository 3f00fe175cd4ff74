/* SPDX-License-Identifier: Apache-2.0 */
/* turn_snap.c - a snapshot on its way through turn and WAL thread.
 *
 *     message stepped   the core empties its log after the snapshot's index and asks for it to be stored: a job like any
 *                       other, in the order of store_seq
 *     job merged        entries gathered before it are void, they leave the batch; those behind it follow it
 *     batch written     first the snapshot is installed (base, a new log with the hard state, CURRENT), then the
 *                       entries are appended to the new log; then STORED, for all of it at once
 *
 * Not here: receiving it and what installing means (snap.c).
 */
#include "limits.h"
#include "turn_impl.h"

void turn_snap_stepped(struct turn *t, const struct raft_msg *m, const struct raft_out *out)
{
    if (m->type == RAFT_SNAPSHOT && t->o.snap_stepped)
        t->o.snap_stepped(t->o.snap_ctx, m->index, out->flags & RAFT_OUT_SNAPSHOT);
}

void turn_snap_job(struct turn *t, const struct raft_out *out, struct store_job *j)
{
    if (!(out->flags & RAFT_OUT_SNAPSHOT))
        return;
    assert(out->first > 1);
    j->snap_index = out->first - 1;
    j->snap_term = raft_term_of(t->raft, j->snap_index);
}

void turn_snap_merge(struct turn *t, const struct store_job *j)
{
    if (j->snap_index == 0)
        return;
    while (t->batch.n)
        entry_unref(t->batch.entries[--t->batch.n]);
    t->batch.snap_index = j->snap_index;
    t->batch.snap_term = j->snap_term;
}

int turn_snap_install(struct turn *t)
{
    struct wal_state hard = t->batch.hard;
    int err;

    if (t->batch.snap_index == 0)
        return 0;
    hard.commit = t->batch.snap_index;
    err = t->o.snap_install(t->o.snap_ctx, t->batch.snap_index, t->batch.snap_term, &hard);
    if (err == 0)
        t->batch.snap_index = t->batch.released = 0;
    return err;
}

/* ---- the log behind a snapshot ---------------------------------------------------------------- */

void turn_keep_log(struct turn *t, unsigned slot, uint64_t member, uint64_t index)
{
    atomic_store(&t->keeps[slot].member, member);
    atomic_store(&t->keeps[slot].index, index);
    atomic_store(&t->keeps[slot].until_ms, UINT64_MAX);
}

void turn_keep_log_a_while(struct turn *t, unsigned slot)
{
    if (atomic_load(&t->keeps[slot].until_ms))
        atomic_store(&t->keeps[slot].until_ms, t->o.clock->now_ms(t->o.clock) + LIMIT_SNAP_LOG_MS);
}

/* The receiver has what the snapshot brought, and takes entries: the log is kept for it as for any follower. */
static bool is_level(const struct turn *t, uint64_t member, uint64_t index)
{
    struct raft_peer p;

    return raft_peer(t->raft, member, &p) && p.state == RAFT_REPLICATE && p.match >= index;
}

void turn_snap_tick(struct turn *t)
{
    for (size_t i = 0; i < LIMIT_SNAP_SENDS; i++) {
        uint64_t until_ms = atomic_load(&t->keeps[i].until_ms);

        if (until_ms && until_ms != UINT64_MAX &&
            is_level(t, atomic_load(&t->keeps[i].member), atomic_load(&t->keeps[i].index)))
            (void)atomic_compare_exchange_strong(&t->keeps[i].until_ms, &until_ms,
                                                 0); /* unless the next one has begun */
    }
}

uint64_t turn_snap_floor(const struct turn *t, uint64_t to)
{
    for (size_t i = 0; i < LIMIT_SNAP_SENDS; i++) {
        uint64_t index = atomic_load_explicit(&t->keeps[i].index, memory_order_relaxed);

        if (atomic_load_explicit(&t->keeps[i].until_ms, memory_order_relaxed) > t->now_ms && index < to &&
            to - index <= LIMIT_SNAP_LOG_ENTRIES)
            to = index;
    }
    return to;
}
