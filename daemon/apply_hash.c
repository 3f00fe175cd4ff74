/* SPDX-License-Identifier: Apache-2.0 */
/* apply_hash.c - the hash of each compaction, computed before its sweep and kept; and the state's hash after each of
 * the newest entries, by which members compare (snap_check.c).
 *
 * Members compare HashKV(C) of the newest compaction C: the value must be the same whether a member has swept already
 * or not. So, as etcd since 3.5.5, it is taken over what there was before the deletion, from the compact revision
 * before C on, and HashKV(C) answers it, with that compact revision, as long as C is among the HASHES_KEPT newest.
 *
 *     apply   a compaction is noted when it is applied
 *     flush   after the flush that holds it: computed, a few milliseconds at a time; only then does the sweep begin
 *     scan    HashKV(C): the hash that is kept, or, not ready yet, computed there and then over the same records. The
 *             sweep may begin meanwhile, but then the hash is kept by now: that one is the answer
 *
 * etcd also keeps a hash of Compact(0), which HashKV(0), meant as "now", then answers for ever: not copied.
 * etcd's are lost with a restart; so are these, but for compactions that the log brings again.
 *
 * Owner:  stated at each function. The list is protected by hash_mu: a scan thread needs its answer at once.
 * Source: etcd v3.7.1 server/storage/mvcc/hash.go (hashStorage), kvstore_compaction.go.
 */
#include <errno.h>
#include "apply_state.h"

/* The apply thread. */
void hash_note(struct apply *a, int64_t prev_rev, int64_t rev)
{
    if (rev <= 0)
        return;
    pthread_mutex_lock(&a->hash_mu);
    if (a->n_hashes == HASHES_KEPT)
        memmove(&a->hashes[0], &a->hashes[1], --a->n_hashes * sizeof a->hashes[0]);
    a->hashes[a->n_hashes++] = (struct compact_hash){.prev_rev = prev_rev, .rev = rev};
    pthread_mutex_unlock(&a->hash_mu);
}

/* The newest of this revision. */
static bool hash_find(struct apply *a, int64_t rev, struct compact_hash *ret)
{
    bool found = false;

    pthread_mutex_lock(&a->hash_mu);
    for (size_t i = 0; i < a->n_hashes; i++)
        if (a->hashes[i].rev == rev) {
            *ret = a->hashes[i];
            found = true;
        }
    pthread_mutex_unlock(&a->hash_mu);
    return found;
}

/* The first not yet computed of the compactions that base knows. */
static bool hash_due(struct apply *a, struct compact_hash *ret)
{
    bool found = false;

    pthread_mutex_lock(&a->hash_mu);
    for (size_t i = 0; i < a->n_hashes && !found; i++)
        if (!a->hashes[i].ready && a->hashes[i].rev <= a->sweep_goal) {
            *ret = a->hashes[i];
            found = true;
        }
    pthread_mutex_unlock(&a->hash_mu);
    return found;
}

static void hash_keep(struct apply *a, int64_t rev, uint32_t hash)
{
    pthread_mutex_lock(&a->hash_mu);
    for (size_t i = 0; i < a->n_hashes; i++)
        if (a->hashes[i].rev == rev) {
            a->hashes[i].hash = hash;
            a->hashes[i].ready = true;
        }
    pthread_mutex_unlock(&a->hash_mu);
}

/* The flush thread, before each batch of the sweep. */
int hash_step(struct apply *a)
{
    struct compact_hash due;
    int rc;

    if (!hash_due(a, &due))
        return 0;
    if (a->hashing.rev != due.rev)
        mvcc_hash_compaction(&a->hashing, due.prev_rev, due.rev);
    rc = mvcc_hash_step(a->o.store, a->flush_slot, &a->hashing);
    if (rc == MVCC_HASH_MORE)
        return 1;
    if (rc)
        return rc < 0 ? rc : -ENOMEM; /* a body larger than any that was taken in */
    hash_keep(a, due.rev, mvcc_hash_sum(&a->hashing));
    return 1;
}

int apply_hashkv(struct apply *a, struct slot *sl, int64_t rev, uint32_t *ret_hash, int64_t *ret_compact_rev,
                 int64_t *ret_hash_rev)
{
    struct compact_hash c;
    struct mvcc_hash h;
    int rc = MVCC_HASH_MORE;

    if (!hash_find(a, rev, &c))
        return mvcc_hashkv(a->o.store, sl, rev, ret_hash, ret_compact_rev, ret_hash_rev);
    mvcc_hash_compaction(&h, c.prev_rev, c.rev);
    while (!c.ready && rc == MVCC_HASH_MORE) {
        rc = mvcc_hash_step(a->o.store, sl, &h);
        if (!hash_find(a, rev, &c)) /* ten compactions later */
            return ERR_COMPACTED;
    }
    if (!c.ready && rc)
        return rc;
    *ret_hash = c.ready ? c.hash : mvcc_hash_sum(&h);
    *ret_compact_rev = c.prev_rev;
    *ret_hash_rev = c.rev;
    return 0;
}

/* ---- the state's hash after each entry ---------------------------------------------------------- */

/* The apply thread. */
void state_hash_note(struct apply *a)
{
    size_t at = a->applied % STATE_HASHES_KEPT;

    atomic_store_explicit(&a->state_hashes[at].index, 0, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    atomic_store_explicit(&a->state_hashes[at].hash, a->hash, memory_order_relaxed);
    atomic_store_explicit(&a->state_hashes[at].index, a->applied, memory_order_release);
}

bool apply_state_hash(const struct apply *a, uint64_t index, uint64_t *ret_hash)
{
    size_t at = index % STATE_HASHES_KEPT;
    uint64_t hash;

    if (index == 0 || atomic_load_explicit(&a->state_hashes[at].index, memory_order_acquire) != index)
        return false;
    hash = atomic_load_explicit(&a->state_hashes[at].hash, memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    if (atomic_load_explicit(&a->state_hashes[at].index, memory_order_relaxed) != index)
        return false; /* it is being replaced */
    *ret_hash = hash;
    return true;
}
