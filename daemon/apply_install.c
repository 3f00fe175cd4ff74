/* SPDX-License-Identifier: Apache-2.0 */
/* apply_install.c - a snapshot takes the place of everything: base, deltas, the tables in memory.
 *
 *     WAL thread   installing: entries may vanish from the log from here on, so none is applied
 *                  base-N+1, wal-M+1, CURRENT: the new state is what a restart finds; then the base is handed over
 *     apply        the flush thread is made to stand still: what it was to write belongs to a state that is over
 *                  store_replace_base; alarms, members, leases loaded anew; whoever asked for a flush is answered
 *     flush        goes on, with nothing to flush; when the old base is closed it is removed
 *
 * Who waits for an index is answered: it is applied. Proposals of ours whose entries lie under the snapshot find their
 * deadline: what they would have been told is not in a snapshot. Between the deletion of the old leases and the loading
 * of the new ones a question about a lease is answered "not found"; this member does not lead, so it grants and expires
 * none.
 *
 * Owner: the apply thread, but for what apply.h says of the WAL thread.
 */
#include <errno.h>
#include "apply_state.h"
#include "log.h"
#include "turn.h"

void apply_install_begin(struct apply *a)
{
    atomic_store(&a->installing, true);
}

void apply_install(struct apply *a, struct base *b)
{
    assert(atomic_load(&a->installing));
    atomic_store(&a->install_base, b);
    mailbox_nudge(&a->box);
}

void apply_install_end(struct apply *a)
{
    atomic_store(&a->installing, false);
    mailbox_nudge(&a->box);
}

bool apply_installing(const struct apply *a)
{
    return atomic_load(&a->installing);
}

/* ---- the flush thread stands still --------------------------------------------------------- */

bool flush_parks(struct apply *a)
{
    if (!atomic_load(&a->flush_park))
        return false;
    if (!atomic_exchange(&a->flush_parked, true))
        mailbox_nudge(&a->box);
    return true;
}

static bool park_flush(struct apply *a)
{
    if (!atomic_exchange(&a->flush_park, true)) {
        if (a->defragmenting) /* a copy is not waited for */
            base_copy_give_up(store_base(a->o.store));
        mailbox_nudge(&a->flusher);
    }
    return atomic_load(&a->flush_parked);
}

/* What it was asked for, or has done, is of the old state. */
static void forget_flush(struct apply *a)
{
    atomic_store(&a->to_flush, NULL);
    atomic_store(&a->flush_done, false);
    atomic_store(&a->no_space, false);
    a->flush_blocked = a->freeze_now = false;
    a->live_bytes = a->frozen_bytes = 0;
    if (atomic_exchange(&a->defrag_done, false))
        base_close(a->defrag_base);
    a->defrag_base = NULL;
    a->defragmenting = false;
    atomic_store(&a->defrag_wanted, false);
    defrag_give_up(a);
    a->hashing = (struct mvcc_hash){0};
    pthread_mutex_lock(&a->hash_mu);
    a->n_hashes = 0;
    pthread_mutex_unlock(&a->hash_mu);
}

static void unpark_flush(struct apply *a)
{
    atomic_store(&a->flush_parked, false);
    atomic_store(&a->flush_park, false);
    mailbox_nudge(&a->flusher);
}

/* ---- the new state --------------------------------------------------------------------------- */

static int leases_clear(struct apply *a)
{
    struct arena ar;
    int64_t *ids;
    size_t n;
    int err;

    arena_init(&ar, SIZE_MAX / 2, NULL, 0);
    err = lease_list(a->o.leases, &ar, &ids, &n);
    for (size_t i = 0; err == 0 && i < n; i++)
        (void)lease_revoke(a->o.leases, ids[i]); /* it was listed, and only apply removes */
    arena_fini(&ar);
    return err ? -ENOMEM : 0;
}

static int reload(struct apply *a)
{
    int err = leases_clear(a);

    rows_free(a);
    return err ? err : state_load(a);
}

static void installed(struct apply *a)
{
    a->last_entry_ms = a->o.clock->now_ms(a->o.clock);
    a->retired_dir = a->o.datadir != NULL; /* the base before, and perhaps a copy that nobody wants */
    atomic_store(&a->installing, false);
    atomic_store(&a->damaged, false);
    note_sizes(a);
    unpark_flush(a);
    log_info("apply: another member's state took the place of this one's", LOG_UINT("index", a->applied),
             LOG_INT("revision", a->rev), LOG_INT("keys", a->key_count));
    if (a->on_publish)
        a->on_publish(a->on_publish_ctx);
    if (a->on_members)
        a->on_members(a->on_members_ctx);
    if (a->turn)
        turn_flushed(a->turn, a->applied);
}

static int read_meta(struct base *b, struct base_meta *ret)
{
    struct base_reader *r;
    int err = base_reader_new(b, &r);

    if (err)
        return err;
    err = base_reader_renew(r);
    if (err == 0)
        err = base_reader_meta(r, ret);
    base_reader_free(r);
    return err;
}

bool install_collect(struct apply *a)
{
    struct base *b = atomic_load(&a->install_base);
    struct base_meta m;
    int err;

    if (b == NULL || a->failed || !park_flush(a))
        return false; /* who is waited for nudges */
    err = read_meta(b, &m);
    if (err == 0 && m.seal.applied_index <= a->applied)
        err = -EUCLEAN; /* Raft does not let an older state take the place of a newer one */
    if (err == 0) {
        apply_view_close(a);
        err = store_replace_base(a->o.store, b, m.seal.compact_revision, m.seal.revision, m.seal.applied_index);
        if (err == -EBUSY || err == -ENOMEM)
            return true; /* the base before the present one is still being read */
    }
    atomic_store(&a->install_base, NULL);
    forget_flush(a);
    if (err)
        base_close(b); /* it never became the store's */
    else
        err = reload(a);
    if (err)
        apply_fail(a, err, "a snapshot that was installed cannot be used");
    else
        installed(a);
    return false;
}
