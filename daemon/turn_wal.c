/* SPDX-License-Identifier: Apache-2.0 */
/* turn_wal.c - the WAL thread: takes all that turns have handed over, appends it as one batch, syncs once,
 * answers with one number.
 *
 * Group commit needs no mechanism of its own: jobs that arrive while a batch is being synced lie in the
 * mailbox and are the next batch. A disk without room is tried again each second with the batch kept;
 * anything else that fails is final (RELIABILITY A.4).
 *
 * Owner: the WAL thread.
 */
#include <errno.h>
#include "limits.h"
#include "log.h"
#include "turn_impl.h"

#define NOSPACE_RETRY_MS 1000
#define LIGHT_ENTRIES 4
#define LIGHT_BYTES (64 << 10)

struct store_job *store_job_new(uint32_t n)
{
    struct store_job *j = calloc(1, sizeof *j + n * sizeof(j->entries[0]));

    if (j)
        j->n = n;
    return j;
}

void store_job_free(struct store_job *j)
{
    if (j == NULL)
        return;
    for (uint32_t i = 0; i < j->n; i++)
        entry_unref(j->entries[i]);
    free(j);
}

static int reserve(struct turn *t, size_t n)
{
    size_t cap = t->batch.cap ? t->batch.cap : 256;
    void *p;

    while (cap < n)
        cap *= 2;
    if (cap == t->batch.cap)
        return 0;
    p = realloc(t->batch.entries, cap * sizeof(t->batch.entries[0]));
    if (p == NULL)
        return -ENOMEM;
    t->batch.entries = p;
    t->batch.cap = cap;
    return 0;
}

/* A job is added to the batch. Entries it replaces have not been written yet: they leave it. */
static int merge(struct turn *t, struct store_job *j)
{
    int err = reserve(t, t->batch.n + j->n);

    if (err)
        return err;
    turn_snap_merge(t, j);
    while (j->n && t->batch.n && t->batch.entries[t->batch.n - 1]->index >= j->entries[0]->index)
        entry_unref(t->batch.entries[--t->batch.n]);
    for (uint32_t i = 0; i < j->n; i++)
        t->batch.entries[t->batch.n++] = j->entries[i];
    j->n = 0; /* the references are the batch's now */
    if (j->has_hard || j->snap_index) { /* a new log needs it */
        t->batch.has_hard = true;
        t->batch.hard = (struct wal_state){.term = j->term, .vote = j->vote, .commit = j->commit};
    }
    t->batch.any = true;
    t->batch.commit = j->commit;
    t->batch.seq = j->seq;
    t->batch.bytes += j->bytes;
    return 0;
}

static void fail(struct turn *t, int err, const char *what)
{
    t->batch.failed = true;
    t->o.fatal(t->o.fatal_ctx, err, what);
}

static void tell_nospace(struct turn *t, bool full)
{
    if ((full || t->batch.full) && t->o.nospace)
        t->o.nospace(t->o.fatal_ctx, full);
    t->batch.full = full;
}

/* True: the batch is durable. */
static bool write_batch(struct turn *t)
{
    uint64_t start_us = t->o.clock->now_us(t->o.clock), written_us;
    int err = turn_snap_install(t);

    if (err == 0)
        err = wal_append(t->o.wal, t->batch.entries, t->batch.n, t->batch.has_hard ? &t->batch.hard : NULL,
                         t->batch.commit);

    if (err == -ENOSPC) {
        tell_nospace(t, true);
        return false;
    }
    if (err) {
        fail(t, err, "writing the log");
        return false;
    }
    written_us = t->o.clock->now_us(t->o.clock);
    err = wal_sync(t->o.wal);
    if (err) {
        fail(t, err, "syncing the log"); /* never tried again: what the disk holds now is unknown */
        return false;
    }
    if (t->o.wal_write)
        histogram_observe_us(t->o.wal_write, written_us - start_us);
    if (t->o.wal_fsync)
        histogram_observe_us(t->o.wal_fsync, t->o.clock->now_us(t->o.clock) - written_us);
    tell_nospace(t, false);
    return true;
}

/* Whether what the batch brings about is little enough to be done here, where it would otherwise go through the turn's
 * thread and apply's: a few puts. */
static bool is_light(const struct turn *t)
{
    if (t->batch.n > LIGHT_ENTRIES || t->batch.bytes > LIGHT_BYTES)
        return false;
    for (size_t i = 0; i < t->batch.n; i++) {
        const struct entry *e = t->batch.entries[i];

        if (e->len && entry_payload_kind(e->payload) != ENTRY_PUT)
            return false;
    }
    return true;
}

/* The log holds all up to seq. */
static void tell_stored(struct turn *t, uint64_t seq, bool light)
{
    atomic_store(&t->stored, seq);
    if (!light || !atomic_load_explicit(&t->shared, memory_order_relaxed))
        mailbox_nudge(&t->box);
    else if (turn_help(t, true))
        apply_help(t->o.apply);
}

static void batch_done(struct turn *t)
{
    for (size_t i = 0; i < t->batch.n; i++)
        entry_unref(t->batch.entries[i]);
    atomic_fetch_sub(&t->unstored_bytes, t->batch.bytes);
    t->batch.n = t->batch.bytes = 0;
    t->batch.any = t->batch.has_hard = false;
}

/* Between batches: the next segment, and those nobody needs. */
static uint64_t housekeeping(struct turn *t)
{
    uint64_t release_to = atomic_load(&t->release_to);
    int err = wal_idle(t->o.wal);

    if (err == -ENOSPC) {
        tell_nospace(t, true);
        return t->o.clock->now_ms(t->o.clock) + NOSPACE_RETRY_MS;
    }
    if (err) {
        fail(t, err, "preparing the log's next segment");
        return UINT64_MAX;
    }
    tell_nospace(t, false);
    if (release_to > t->batch.released) {
        err = wal_release(t->o.wal, release_to);
        if (err)
            log_warn("wal: cannot drop what is no longer needed", LOG_INT("errno", -err));
        t->batch.released = release_to;
    }
    atomic_store_explicit(&t->pub_bytes, wal_bytes(t->o.wal), memory_order_relaxed);
    return UINT64_MAX;
}

uint64_t turn_wal_step(struct turn *t)
{
    struct mail *m = mailbox_take(&t->wal_box), *next;

    for (; m; m = next) {
        struct store_job *j = (struct store_job *)m;
        int err = t->batch.failed ? -EIO : merge(t, j);

        next = m->next;
        store_job_free(j);
        if (err && !t->batch.failed)
            fail(t, err, "gathering entries for the log");
    }
    if (t->batch.failed)
        return UINT64_MAX;
    if (t->batch.any) {
        uint64_t seq = t->batch.seq;
        bool light = is_light(t);

        if (!write_batch(t))
            return t->batch.failed ? UINT64_MAX : t->o.clock->now_ms(t->o.clock) + NOSPACE_RETRY_MS;
        batch_done(t);
        atomic_fetch_add_explicit(&t->pub_fsyncs, 1, memory_order_relaxed);
        tell_stored(t, seq, light);
    }
    return housekeeping(t);
}

void turn_wal_fini(struct turn *t)
{
    struct mail *m = mailbox_take(&t->wal_box), *next;

    for (; m; m = next) {
        next = m->next;
        store_job_free((struct store_job *)m);
    }
    batch_done(t);
    free(t->batch.entries);
}
