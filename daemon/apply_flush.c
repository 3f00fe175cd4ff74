/* SPDX-License-Identifier: Apache-2.0 */
/* apply_flush.c - the live delta is frozen, moved into base by the flush thread, and base is swept in between.
 *
 *     apply thread                          flush thread
 *     store_freeze, to_flush = delta  --->  base_flush, to_flush = NULL, flush_done
 *     store_flushed, turn_flushed     <---
 *                                           the hash of a compaction, bit by bit (apply_hash.c)
 *     answer who waited               <---  base_sweep, batch by batch; swept_to = C
 *
 * The two share a handful of atomics, not messages: at most one delta is under way. A flush always goes before the
 * sweep; between two batches of the sweep its thread rests as long as the batch took, so that the log's fdatasync
 * finds the disk free.
 *
 * With nothing to flush or sweep, the scrub: a minute after the start and once a day every row is read and held against
 * the others, so that bits that rot where nobody reads are known before the backup that would help is gone. It reads
 * little and rests long. What it finds goes the way of all damage that is met (store_damaged, apply_damaged).
 *
 * No room on the disk: the NOSPACE alarm is proposed, the delta kept, the flush tried again each second. Any other
 * failure stops the member.
 *
 * Owner: freeze_* and flush_collect are the apply thread's, apply_flush_step and flush_main the flush thread's.
 */
#include <errno.h>
#include "apply_state.h"
#include "limits.h"
#include "log.h"
#include "turn.h"

#define FLUSH_RETRY_MS 1000
#define SWEEP_REST_MAX_MS 50

/* ---- the apply thread ----------------------------------------------------------------------- */

/* Entries that base and the frozen delta do not hold. */
static bool live_dirty(const struct apply *a)
{
    return a->applied > a->frozen_index;
}

bool apply_stalled(const struct apply *a)
{
    return (store_frozen(a->o.store) || a->defragmenting) &&
           delta_bytes(store_live(a->o.store)) >= LIMIT_DELTA_STALL_BYTES;
}

static size_t freeze_bytes(const struct apply *a)
{
    enum { HOT_CHANGES_A_KEY = 4 };
    const struct delta *live = store_live(a->o.store);
    bool hot = delta_changes(live) >= HOT_CHANGES_A_KEY * delta_keys(live);

    if (!hot)
        return LIMIT_DELTA_FREEZE_BYTES;
    return a->n_members > 1 ? LIMIT_DELTA_FREEZE_SHARED_BYTES : LIMIT_DELTA_FREEZE_HOT_BYTES;
}

/* All members apply the same, and would all flush at once, and all be slow at once. So each takes turns: after a rest
 * the first of n members freezes at one n-th of what it may gather, the second at two; from then on they are apart. */
static size_t freeze_share(const struct apply *a, size_t limit)
{
    size_t rank = 0;

    if (a->freeze_apart || a->n_members < 2)
        return limit;
    while (rank + 1 < a->n_members && a->members[rank]->id < a->o.member_id)
        rank++;
    return limit * (rank + 1) / a->n_members;
}

static bool freeze_full(const struct apply *a)
{
    const struct delta *live = store_live(a->o.store);

    return delta_bytes(live) >= freeze_share(a, freeze_bytes(a)) ||
           delta_keys(live) >= freeze_share(a, LIMIT_DELTA_FREEZE_KEYS);
}

void freeze_if_due(struct apply *a, uint64_t now_ms)
{
    struct seal seal = {
        .applied_index = a->applied,
        .applied_term = a->applied_term,
        .revision = a->rev,
        .compact_revision = a->compact_rev,
        .key_count = a->key_count,
        .state_hash = a->hash,
        .conf = a->conf,
    };
    struct delta *frozen;
    bool full;
    int err;

    if (!live_dirty(a) && !store_frozen(a->o.store))
        a->freeze_now = false;
    if (!live_dirty(a) || store_frozen(a->o.store) || a->defragmenting)
        return;
    full = freeze_full(a);
    if (!full && !a->freeze_now && now_ms < a->last_entry_ms + LIMIT_FREEZE_IDLE_MS)
        return;
    apply_view_close(a); /* it is of the layers that are about to be replaced */
    err = store_freeze(a->o.store, &seal, &frozen);
    if (err) {
        apply_fail(a, err, "no memory for a new delta");
        return;
    }
    a->frozen_index = a->applied;
    a->freeze_now = false;
    a->freeze_apart = full;
    a->frozen_bytes = a->live_bytes;
    a->live_bytes = 0;
    atomic_store_explicit(&a->to_flush, frozen, memory_order_release);
    mailbox_nudge(&a->flusher);
}

uint64_t freeze_deadline_ms(const struct apply *a)
{
    if (!live_dirty(a) || store_frozen(a->o.store) || a->defragmenting)
        return UINT64_MAX; /* the flush thread nudges when it is done */
    return a->freeze_now ? 0 : a->last_entry_ms + LIMIT_FREEZE_IDLE_MS;
}

void flush_collect(struct apply *a)
{
    uint64_t index;

    if (atomic_exchange(&a->no_space, false)) {
        a->flush_blocked = true;
        apply_raise_nospace(a);
    }
    if (!atomic_exchange_explicit(&a->flush_done, false, memory_order_acquire))
        return;
    index = delta_sealed(store_frozen(a->o.store))->applied_index;
    apply_view_close(a);
    store_flushed(a->o.store);
    a->flush_blocked = false;
    a->frozen_bytes = 0;
    if (a->turn)
        turn_flushed(a->turn, index);
}

/* Base holds everything applied before the flush was asked for. */
static bool flush_reached(const struct apply *a, uint64_t index)
{
    const struct delta *frozen = store_frozen(a->o.store);

    return frozen ? false : a->frozen_index >= index;
}

static void flush_waits_answer(struct apply *a, int err)
{
    while (a->flush_waits) {
        struct flush_wait *w = a->flush_waits;

        a->flush_waits = (struct flush_wait *)w->mail.next;
        w->err = err;
        w->done(w);
    }
}

void flush_answer(struct apply *a)
{
    int64_t swept_to = atomic_load_explicit(&a->swept_to, memory_order_acquire);

    if (a->flush_waits && flush_reached(a, a->flush_goal))
        flush_waits_answer(a, 0);
    for (struct physical_wait **at = &a->physical, *w; (w = *at) != NULL;) {
        if (w->compact_rev > swept_to && !a->failed) {
            at = &w->next;
            continue;
        }
        *at = w->next;
        w->p->done(w->p);
        free(w);
    }
    if (a->failed)
        flush_waits_answer(a, -EIO);
}

void flush_give_up(struct apply *a)
{
    flush_waits_answer(a, -ECANCELED);
    while (a->physical) {
        struct physical_wait *w = a->physical;

        a->physical = w->next;
        w->p->err = ERR_STOPPED;
        w->p->done(w->p);
        free(w);
    }
}

/* ---- the flush thread ------------------------------------------------------------------------- */

void note_sizes(struct apply *a)
{
    uint64_t file, in_use;

    if (base_sizes(store_base(a->o.store), &file, &in_use) != 0)
        return; /* only figures: the next flush brings them */
    atomic_store_explicit(&a->db_bytes, file, memory_order_relaxed);
    atomic_store_explicit(&a->db_in_use_bytes, in_use, memory_order_relaxed);
}

/* Returns when to come again. */
static uint64_t flush(struct apply *a, struct delta *d, uint64_t now_ms)
{
    int64_t compact_rev = delta_sealed(d)->compact_revision;
    int err;

    if (now_ms < a->retry_at_ms)
        return a->retry_at_ms;
    err = base_flush(store_base(a->o.store), d);
    if (err == -ENOSPC) {
        log_warn("apply: no room to flush, trying again", LOG_UINT("retry-ms", FLUSH_RETRY_MS));
        atomic_store(&a->no_space, true);
        mailbox_nudge(&a->box);
        a->retry_at_ms = now_ms + FLUSH_RETRY_MS;
        return a->retry_at_ms;
    }
    if (err) {
        a->o.fatal(a->o.fatal_ctx, err, "flushing into the store failed");
        atomic_store(&a->flush_stop, true);
        return UINT64_MAX;
    }
    note_sizes(a);
    a->sweep_goal = compact_rev;
    atomic_store_explicit(&a->to_flush, NULL, memory_order_relaxed);
    atomic_store_explicit(&a->flush_done, true, memory_order_release);
    mailbox_nudge(&a->box);
    return 0;
}

void apply_hold_sweep(struct apply *a)
{
    pthread_mutex_lock(&a->sweep_mu);
    a->sweep_holds++;
    pthread_mutex_unlock(&a->sweep_mu);
}

void apply_release_sweep(struct apply *a)
{
    pthread_mutex_lock(&a->sweep_mu);
    assert(a->sweep_holds > 0);
    a->sweep_holds--;
    pthread_mutex_unlock(&a->sweep_mu);
    mailbox_nudge(&a->flusher);
}

#define SWEEP_HELD 2 /* besides what base_sweep says */

static int sweep_batch(struct apply *a, uint64_t *removed)
{
    int more;

    pthread_mutex_lock(&a->sweep_mu);
    more = a->sweep_holds ? SWEEP_HELD : base_sweep(store_base(a->o.store), removed);
    pthread_mutex_unlock(&a->sweep_mu);
    return more;
}

/* One batch. Returns when to come again. */
static uint64_t sweep(struct apply *a, uint64_t now_ms)
{
    struct clock *clock = a->o.clock;
    uint64_t removed = 0, took_ms;
    int hashed, more;

    if (a->sweep_goal <= atomic_load_explicit(&a->swept_to, memory_order_relaxed))
        return UINT64_MAX;
    if (now_ms < a->sweep_at_ms)
        return a->sweep_at_ms;
    hashed = hash_step(a);
    more = hashed ? hashed : sweep_batch(a, &removed);
    if (more == SWEEP_HELD)
        return UINT64_MAX; /* who releases it nudges */
    atomic_fetch_add_explicit(&a->compacted_records, removed, memory_order_relaxed);
    took_ms = clock->now_ms(clock) - now_ms;
    if (more == -ENOSPC) {
        a->sweep_at_ms = now_ms + FLUSH_RETRY_MS;
        return a->sweep_at_ms;
    }
    if (more < 0) {
        a->o.fatal(a->o.fatal_ctx, more, "sweeping the store failed");
        atomic_store(&a->flush_stop, true);
        return UINT64_MAX;
    }
    if (more) {
        a->sweep_at_ms = now_ms + took_ms + (took_ms < SWEEP_REST_MAX_MS ? took_ms : SWEEP_REST_MAX_MS);
        return a->sweep_at_ms;
    }
    note_sizes(a);
    atomic_store_explicit(&a->swept_to, a->sweep_goal, memory_order_release);
    mailbox_nudge(&a->box);
    return UINT64_MAX;
}

/* Whoever met it: a reader, a watch, a snapshot's sender, the scrub. A member among others begins anew, to be rebuilt
 * from them; a sole one goes on and Status says it: no damaged row is ever answered, and what is sound is all there
 * is. */
void apply_damaged(void *ctx, const char *where)
{
    struct apply *a = ctx;

    log_error("apply: the store is damaged. No damaged row is answered, the rest is; save what can be read, then "
              "restore the member from a backup",
              LOG_STR("found", where));
    atomic_store(&a->damaged, true);
    if (a->o.damaged)
        a->o.damaged(a->o.fatal_ctx, where);
}

/* One slice. Returns when to come again. */
static uint64_t scrub(struct apply *a)
{
    struct clock *clock = a->o.clock;
    uint64_t from_us = clock->now_us(clock), took_us;
    const char *what = "";
    int more;

    if (a->scrub_at_us == UINT64_MAX)
        return UINT64_MAX;
    if (from_us < a->scrub_at_us)
        return (a->scrub_at_us + 999) / 1000;
    more = base_scrub(store_base(a->o.store), a->scrub, LIMIT_SCRUB_ROWS, &what);
    if (more == -EUCLEAN) {
        store_damaged(a->o.store, what);
        a->scrub_at_us = UINT64_MAX;
        return UINT64_MAX;
    }
    /* Out of memory: as if the pass were over. */
    took_us = clock->now_us(clock) - from_us;
    a->scrub_at_us = from_us + (more == 1 ? 1000 + took_us * LIMIT_SCRUB_RESTS : LIMIT_SCRUB_EVERY_MS * UINT64_C(1000));
    return (a->scrub_at_us + 999) / 1000;
}

uint64_t apply_flush_step(struct apply *a)
{
    uint64_t now_ms = a->o.clock->now_ms(a->o.clock);
    struct delta *d = atomic_load_explicit(&a->to_flush, memory_order_acquire);

    if (atomic_load(&a->flush_stop) || flush_parks(a))
        return UINT64_MAX;
    defrag_remove(a);
    if (d)
        return flush(a, d, now_ms);
    if (!atomic_load_explicit(&a->defrag_wanted, memory_order_acquire)) {
        uint64_t sweep_ms = sweep(a, now_ms);

        return sweep_ms == UINT64_MAX ? scrub(a) : sweep_ms;
    }
    if (!atomic_load(&a->defrag_done))
        defrag_copy(a);
    return UINT64_MAX; /* until apply has taken the copy */
}

void *flush_main(void *arg)
{
    struct apply *a = arg;

    while (!atomic_load(&a->flush_stop)) {
        uint64_t deadline_ms = apply_flush_step(a);

        if (deadline_ms > 0)
            mailbox_wait(&a->flusher, deadline_ms);
    }
    return NULL;
}
