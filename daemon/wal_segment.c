/* SPDX-License-Identifier: Apache-2.0 */
/* wal_segment.c - the log's segments: which entry lies where, and the next one, prepared ahead of its use.
 *
 * The next segment is begun when a quarter of the newest is used and zeroed a step at a time while the thread is idle, in
 * proportion to what is used, so that it is ready in time and no batch waits long. No room for it is not the end of the
 * log: it is tried again. A file is only made once all of the segment before is known to stay. It is called `next`
 * until all of it is zero and synced: after a crash a block that was never written may hold what another file left
 * there, an older segment for one, so nothing is ever concluded from what such a file holds.
 *
 * Owner:    the WAL thread; what mu protects is said in wal_impl.h.
 * Not here: the format (top of wal.c), batches (wal.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include "wal_impl.h"

#define PREPARE_STEP_BYTES (256u << 10) /* zeroed by one wal_idle at least: a batch waits for it */

void wal_segment_path(const struct wal *w, uint64_t number, char path[WAL_PATH_MAX + 32])
{
    (void)snprintf(path, WAL_PATH_MAX + 32, "%s/%016" PRIx64 ".wal", w->dir, number); /* fits: dir < WAL_PATH_MAX */
}

void wal_next_path(const struct wal *w, char path[WAL_PATH_MAX + 32])
{
    (void)snprintf(path, WAL_PATH_MAX + 32, "%s/next", w->dir);
}

int wal_next_remove(struct wal *w)
{
    char path[WAL_PATH_MAX + 32];
    int err;

    wal_next_path(w, path);
    err = w->disk->unlink(w->disk, path);
    return err == -ENOENT ? 0 : err;
}

void wal_segment_unref(struct wal *w, struct wal_segment *s)
{
    if (s == NULL || --s->refs > 0)
        return;
    w->disk->close(w->disk, s->file);
    free(s->offsets);
    free(s);
}

int wal_segment_add(struct wal *w, struct wal_segment *s)
{
    if (w->n_segments == w->cap_segments) {
        size_t cap = w->cap_segments ? w->cap_segments * 2 : 8;
        void *p = realloc(w->segments, cap * sizeof *w->segments);

        if (p == NULL)
            return -ENOMEM;
        w->segments = p;
        w->cap_segments = cap;
    }
    w->segments[w->n_segments++] = s;
    return 0;
}

struct wal_segment *wal_newest(const struct wal *w)
{
    assert(w->n_segments > 0);
    return w->segments[w->n_segments - 1];
}

/* ---- which entry lies where ------------------------------------------------------ */

uint64_t wal_term_at(const struct wal *w, uint64_t index)
{
    size_t i = w->n_runs;

    assert(index >= w->state.first_index);
    assert(index <= w->state.last_index);
    if (index == w->state.first_index)
        return w->state.first_term;
    while (w->runs[i - 1].first > index) /* the newest are asked for; runs are few */
        i--;
    return w->runs[i - 1].term;
}

int wal_reserve(struct wal *w, size_t n)
{
    struct wal_segment *s = wal_newest(w);

    if (n > s->cap - s->n) {
        size_t cap = s->cap * 2 > s->n + n ? s->cap * 2 : s->n + n;
        void *p = realloc(s->offsets, cap * sizeof *s->offsets);

        if (p == NULL)
            return -ENOMEM;
        s->offsets = p;
        s->cap = (uint32_t)cap;
    }
    /* Each entry may begin a run. */
    if (n > w->cap_runs - w->n_runs) {
        size_t cap = w->n_runs + n + 16;
        void *p = realloc(w->runs, cap * sizeof *w->runs);

        if (p == NULL)
            return -ENOMEM;
        w->runs = p;
        w->cap_runs = cap;
    }
    return 0;
}

void wal_cut(struct wal *w, uint64_t index, uint64_t prev_term)
{
    if (index <= w->state.first_index) {
        /* The segments that held what lies before are gone: the log now begins here. */
        w->state.first_index = index - 1;
        w->state.first_term = prev_term;
        w->n_runs = 0;
    }
    while (w->n_runs && w->runs[w->n_runs - 1].first >= index)
        w->n_runs--;
    for (size_t i = w->n_segments; i > 0; i--) {
        struct wal_segment *s = w->segments[i - 1];

        if (s->first + s->n > index)
            s->n = s->first >= index ? 0 : (uint32_t)(index - s->first);
        if (s->first >= index)
            s->first = index;
    }
    w->state.last_index = index - 1;
    w->state.last_term = wal_term_at(w, index - 1);
}

void wal_note(struct wal *w, uint64_t index, uint64_t term, uint32_t offset)
{
    struct wal_segment *s = wal_newest(w);

    assert(index == w->state.last_index + 1);
    assert(term >= w->state.last_term);
    assert(s->n < s->cap);
    if (w->n_runs == 0 || w->runs[w->n_runs - 1].term != term) {
        assert(w->n_runs < w->cap_runs);
        w->runs[w->n_runs++] = (struct wal_run){index, term};
    }
    if (s->n == 0)
        s->first = index;
    assert(s->first + s->n == index);
    s->offsets[s->n++] = offset;
    w->state.last_index = index;
    w->state.last_term = term;
}

/* ---- segments to come ------------------------------------------------------------- */

/* Errors that leave the log as it was come back as -ENOSPC; all else ends it. */
static int no_space_or_fail(struct wal *w, int err)
{
    if (err == -ENOSPC || err == -EDQUOT)
        return -ENOSPC;
    w->failed = true;
    return err;
}

static int next_begin(struct wal *w)
{
    char path[WAL_PATH_MAX + 32];
    struct wal_segment *s;
    int err;

    s = calloc(1, sizeof *s);
    if (s == NULL)
        return -ENOMEM;
    s->number = wal_newest(w)->number + 1;
    s->size = wal_newest(w)->size * 2 < w->options.segment_bytes ? wal_newest(w)->size * 2 : w->options.segment_bytes;
    s->refs = 1;
    wal_next_path(w, path);
    err = w->disk->open(w->disk, path, O_RDWR | O_CREAT | O_EXCL | O_DIRECT, 0600, &s->file);
    if (err) {
        free(s);
        return no_space_or_fail(w, err);
    }
    w->next = s;
    w->next_ready = 0;
    w->next_named = false;
    return 0;
}

/* The next segment gets a segment's name, durably, or loses it again. */
static int next_name(struct wal *w, bool named)
{
    char plain[WAL_PATH_MAX + 32], segment[WAL_PATH_MAX + 32];
    int err;

    wal_next_path(w, plain);
    wal_segment_path(w, w->next->number, segment);
    err = named ? w->disk->rename(w->disk, plain, segment) : w->disk->rename(w->disk, segment, plain);
    if (err)
        return no_space_or_fail(w, err);
    err = w->disk->fsync_dir(w->disk, w->dir);
    if (err)
        w->failed = true;
    else
        w->next_named = named;
    return err;
}

/* Zero-fills the next segment up to `to` bytes, and when that is all of it, gives it its name. */
static int next_fill(struct wal *w, uint64_t to)
{
    struct wal_segment *s = w->next;
    int err;

    if (to > s->size)
        to = s->size;
    if (to <= w->next_ready)
        return 0;
    err = w->disk->fallocate(w->disk, s->file, to);
    if (err)
        return no_space_or_fail(w, err);
    if (to == s->size) { /* one commit of the file system's journal, not one a step */
        err = w->disk->fdatasync(w->disk, s->file);
        if (err) {
            w->failed = true;
            return err;
        }
        err = next_name(w, true);
        if (err)
            return err;
    }
    w->next_ready = to;
    return 0;
}

int wal_idle(struct wal *w)
{
    struct wal_segment *s = wal_newest(w);
    uint64_t begin = s->size / 4, end = s->size / 8 * 7, to;
    int err;

    if (w->failed)
        return -EIO;
    /* Not while a batch is at risk: a segment's file is only made when all of the one before is known to stay. */
    if (w->dirty || s->used <= begin)
        return 0;
    if (w->next == NULL && (err = next_begin(w)) != 0)
        return err;
    if (w->next_ready == w->next->size)
        return 0;
    /* A step at a time, so that no batch waits long; in proportion, so that the disk gets little more than twice what
     * the log needs, and it is ready when seven eighths are used. */
    to = (uint64_t)((double)w->next->size * (double)(s->used - begin) / (double)(end - begin));
    if (to < w->next_ready + PREPARE_STEP_BYTES)
        to = w->next_ready + PREPARE_STEP_BYTES;
    return next_fill(w, to / WAL_SECTOR_BYTES * WAL_SECTOR_BYTES);
}

uint64_t wal_nonce_new(struct wal *w)
{
    struct rng *r = w->options.rng ? w->options.rng : rng_real();
    uint64_t nonce = r->next(r);

    return nonce ? nonce : 1;
}

int wal_roll(struct wal *w, size_t batch_bytes)
{
    size_t need = WAL_SECTOR_BYTES + batch_bytes;
    struct wal_segment *s;
    int err;

    assert(!w->dirty);
    if (need > WAL_SEGMENT_MAX_BYTES)
        return -EFBIG;
    if (w->next == NULL && (err = next_begin(w)) != 0)
        return err;
    s = w->next;
    if (s->size < need) { /* one batch larger than a segment: the segment gives way */
        if (w->next_named && (err = next_name(w, false)) != 0)
            return err;
        s->size = need;
    }
    err = next_fill(w, s->size);
    if (err)
        return err;
    s->nonce = wal_nonce_new(w);
    s->base_index = w->state.last_index;
    s->first = w->state.last_index + 1;
    pthread_mutex_lock(&w->mu);
    err = wal_segment_add(w, s);
    pthread_mutex_unlock(&w->mu);
    if (err == 0)
        w->next = NULL;
    return err;
}
