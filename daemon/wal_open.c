/* SPDX-License-Identifier: Apache-2.0 */
/* wal_open.c - recovery: reads a whole log, says what it holds, cuts a torn tail, refuses anything else.
 *
 * Promise: on -EUCLEAN nothing on disk has been changed. Every batch that was ever synced is there, or the answer is
 * -EUCLEAN. The steps, for the segments in order of their numbers:
 *
 *   1. numbers without gaps; every head good, but for one last segment that was prepared and never (wholly) begun
 *   2. sync the newest, then forget the page cache of its last batch: a sync that failed before the last stop has
 *      left pages that look written and are not
 *   3. walk the batches: chain, numbers, crcs, indexes, terms, watermarks
 *   4. judge what stands behind the last good batch of the newest: nothing, a torn write, or corruption
 *   5. only now change anything: zero the torn part, remove the segment that was never begun, and one being made
 *
 * Owner: whoever opens the log. The format stands at the top of wal.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include "wal_impl.h"

struct open {
    struct wal *w;
    char *errbuf;
    size_t errbuf_size;
    uint64_t *numbers;          /* of the segments, ascending */
    size_t n_numbers, cap_numbers;
    struct wal_segment_head head; /* of the segment being walked */
    struct slice seg;           /* its bytes; owned: free with seg_free */
    struct wal_segment *newest; /* found begun by find_newest, with its bytes in newest_seg; owned until walked */
    struct slice newest_seg;
    bool unused_dirty;          /* the last, never begun segment holds something */
};

__attribute__((format(printf, 3, 4))) static int corrupt(struct open *o, uint64_t number, const char *format, ...)
{
    char path[WAL_PATH_MAX + 32], what[256];
    va_list ap;

    va_start(ap, format);
    (void)vsnprintf(what, sizeof what, format, ap); /* a cut sentence still says where */
    va_end(ap);
    wal_segment_path(o->w, number, path);
    (void)snprintf(o->errbuf, o->errbuf_size,
                   "%s: %s: nothing was changed; keep a copy, then restore this member from a backup or remove it and "
                   "add it anew", path, what);
    return -EUCLEAN;
}

static void seg_free(struct open *o)
{
    free((void *)(uintptr_t)o->seg.ptr);
    o->seg = SLICE_NONE;
}

/* ---- 1: the files ------------------------------------------------------------------ */

static int note_name(void *ctx, const char *name)
{
    struct open *o = ctx;
    uint64_t number = 0;

    if (strlen(name) != 20 || strcmp(name + 16, ".wal") != 0)
        return 0; /* not ours */
    for (int i = 0; i < 16; i++) {
        int c = name[i], digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;

        if (digit < 0)
            return 0;
        number = number << 4 | (uint64_t)digit;
    }
    if (o->n_numbers == o->cap_numbers) {
        size_t cap = o->cap_numbers ? o->cap_numbers * 2 : 16;
        void *p = realloc(o->numbers, cap * sizeof *o->numbers);

        if (p == NULL)
            return -ENOMEM;
        o->numbers = p;
        o->cap_numbers = cap;
    }
    o->numbers[o->n_numbers++] = number;
    return 0;
}

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static int list_segments(struct open *o)
{
    int err = o->w->disk->list(o->w->disk, o->w->dir, note_name, o);

    if (err)
        return err;
    if (o->n_numbers == 0)
        return -ENOENT;
    if (o->n_numbers > 1)
        qsort(o->numbers, o->n_numbers, sizeof *o->numbers, by_number);
    for (size_t i = 1; i < o->n_numbers; i++) {
        if (o->numbers[i] != o->numbers[i - 1] + 1)
            return corrupt(o, o->numbers[i - 1] + 1, "this segment is missing");
    }
    return 0;
}

/* Opens a segment and reads it whole into o->seg. */
static int load(struct open *o, uint64_t number, struct wal_segment **ret_segment)
{
    struct wal_segment *s = calloc(1, sizeof *s);
    char path[WAL_PATH_MAX + 32];
    uint8_t *p = NULL;
    ssize_t size, got;
    int err;

    if (s == NULL)
        return -ENOMEM;
    s->number = number;
    s->refs = 1;
    wal_segment_path(o->w, number, path);
    err = o->w->disk->open(o->w->disk, path, O_RDWR | O_DIRECT, 0, &s->file);
    if (err) {
        free(s);
        return err;
    }
    size = o->w->disk->size(o->w->disk, s->file);
    if (size < 0) {
        err = (int)size;
        goto out;
    }
    s->size = (uint64_t)size;
    if (s->size > WAL_SEGMENT_MAX_BYTES) {
        err = corrupt(o, number, "the file is larger than any segment");
        goto out;
    }
    p = malloc(s->size + 1); /* never 0 */
    got = p ? o->w->disk->pread(o->w->disk, s->file, p, s->size, 0) : -ENOMEM;
    if (got != size) {
        err = got < 0 ? (int)got : -EIO;
        goto out;
    }
    o->seg = slice_of(p, s->size);
    *ret_segment = s;
    return 0;
out:
    free(p);
    wal_segment_unref(o->w, s);
    return err;
}

/* ---- 2: the page cache --------------------------------------------------------------- */

/* From the newest segment's last batch on, what counts is the medium. Earlier ones were synced before it was begun. */
static int reread_tail(struct open *o, struct wal_segment *s)
{
    struct disk *d = o->w->disk;
    uint64_t at = WAL_SECTOR_BYTES, last = 0;
    size_t used = wal_used_bytes(o->seg.ptr, o->seg.len);
    struct wal_batch b;
    ssize_t got;
    int err;

    err = d->fdatasync(d, s->file);
    if (err)
        return err;
    while (at + WAL_SECTOR_BYTES <= o->seg.len && wal_batch_head_parse(o->seg, at, o->head.nonce, &b)) {
        last = at;
        at += wal_batch_bytes(b.body_bytes);
    }
    if (last <= WAL_SECTOR_BYTES)
        last = 0; /* the segment's head went out with its first batch */
    if (used <= last)
        return 0;
    d->drop_cache(d, s->file, last, used - last);
    got = d->pread(d, s->file, (void *)(uintptr_t)(o->seg.ptr + last), used - last, last);
    return got < 0 ? (int)got : (size_t)got == used - last ? 0 : -EIO;
}

/* ---- 3: the batches -------------------------------------------------------------------- */

static int check_batch(struct open *o, uint64_t number, const struct wal_batch *b)
{
    const struct wal *w = o->w;
    const struct wal_state *st = &w->state;
    unsigned long long at = b->offset;

    if (b->number != w->last_batch + 1 || b->prev_crc != w->last_crc)
        return corrupt(o, number, "the batch at byte %llu does not follow the one before it", at);
    if (b->term < st->term || b->commit < st->commit)
        return corrupt(o, number, "the batch at byte %llu goes back in term or commit", at);
    if (b->n_entries > b->body_bytes / WAL_RECORD_HEAD_BYTES) /* before memory is taken for them */
        return corrupt(o, number, "the batch at byte %llu has more entries than bytes", at);
    if (b->n_entries == 0)
        return b->body_bytes == 0 ? 0 : corrupt(o, number, "the batch at byte %llu has bytes but no entries", at);
    if (b->first_index == 0 || b->first_index > st->last_index + 1 || b->first_index <= st->commit)
        return corrupt(o, number, "the batch at byte %llu begins at index %" PRIu64 ", but the log ends at %" PRIu64
                       " and is committed up to %" PRIu64, at, b->first_index, st->last_index, st->commit);
    if (b->first_index > st->first_index && b->prev_term != wal_term_at(w, b->first_index - 1))
        return corrupt(o, number, "the batch at byte %llu names another term for the entry before it", at);
    return 0;
}

static int replay_entries(struct open *o, struct wal_segment *s, const struct wal_batch *b)
{
    uint64_t at = b->offset + WAL_BATCH_HEAD_BYTES, end = at + b->body_bytes;
    struct wal *w = o->w;
    int err = wal_reserve(w, b->n_entries);

    if (err)
        return err;
    if (b->first_index <= w->state.last_index)
        wal_cut(w, b->first_index, b->prev_term);
    for (uint32_t i = 0; i < b->n_entries; i++) {
        struct wal_record r;

        if (!wal_record_parse(o->seg.ptr + at, (size_t)(end - at), &r) || r.index != b->first_index + i ||
            r.term < w->state.last_term || r.term > b->term)
            return corrupt(o, s->number, "record %" PRIu32 " of the batch at byte %llu is not entry %" PRIu64, i,
                           (unsigned long long)b->offset, b->first_index + i);
        wal_note(w, r.index, r.term, (uint32_t)at);
        at += wal_record_bytes(r.payload.len);
        if (at > end)
            return corrupt(o, s->number, "a record leaves its batch at byte %llu", (unsigned long long)b->offset);
    }
    return at == end ? 0 : corrupt(o, s->number, "the batch at byte %llu has bytes left over",
                                   (unsigned long long)b->offset);
}

/* All good batches, in order; ret_found: what ended the walk, at s->used. */
static int walk(struct open *o, struct wal_segment *s, enum wal_found *ret_found)
{
    struct wal *w = o->w;

    s->used = WAL_SECTOR_BYTES;
    *ret_found = WAL_EMPTY; /* when the segment is full to its end */
    while (s->used + WAL_SECTOR_BYTES <= s->size) {
        struct wal_batch b;
        int err;

        *ret_found = wal_batch_parse(o->seg, s->used, s->nonce, &b);
        if (*ret_found != WAL_GOOD)
            return 0;
        err = check_batch(o, s->number, &b);
        if (err == 0 && b.n_entries)
            err = replay_entries(o, s, &b);
        if (err)
            return err;
        w->state.term = b.term;
        w->state.vote = b.vote;
        w->state.commit = b.commit;
        if (b.commit > w->state.last_index)
            return corrupt(o, s->number, "the log ends at index %" PRIu64 " but was committed up to %" PRIu64,
                           w->state.last_index, b.commit);
        w->last_batch = b.number;
        w->last_crc = b.crc;
        s->used += wal_batch_bytes(b.body_bytes);
        *ret_found = WAL_EMPTY;
    }
    return 0;
}

/* The head of a segment against what the earlier ones said. */
static int check_head(struct open *o, struct wal_segment *s, bool first)
{
    const struct wal_segment_head *h = &o->head;
    struct wal *w = o->w;

    if (h->segment != s->number || h->size != s->size || s->size % WAL_SECTOR_BYTES != 0 || h->nonce == 0)
        return corrupt(o, s->number, "the head is of another segment or size");
    if (h->cluster_id != w->options.cluster_id || h->member_id != w->options.member_id)
        return corrupt(o, s->number, "the log belongs to cluster %" PRIx64 " member %" PRIx64 ", not to cluster %" PRIx64
                       " member %" PRIx64, h->cluster_id, h->member_id, w->options.cluster_id, w->options.member_id);
    if (first) {
        w->state = (struct wal_state){.term = h->term, .vote = h->vote, .commit = h->commit,
                                      .first_index = h->base_index, .first_term = h->base_term,
                                      .last_index = h->base_index, .last_term = h->base_term};
        w->last_batch = h->prev_batch;
        w->last_crc = h->prev_crc;
    }
    if (h->prev_batch != w->last_batch || h->prev_crc != w->last_crc || h->base_index != w->state.last_index ||
        h->base_term != w->state.last_term || h->term != w->state.term || h->vote != w->state.vote ||
        h->commit != w->state.commit || h->commit > h->base_index)
        return corrupt(o, s->number, "it does not follow the segment before it, whose end is damaged or missing");
    s->nonce = h->nonce;
    s->base_index = h->base_index;
    s->first = h->base_index + 1;
    return 0;
}

/* ---- 4: the end --------------------------------------------------------------------------- */

/* 0: what stands at s->used may be cut, *ret_cut bytes of it. */
static int judge_tail(struct open *o, struct wal_segment *s, enum wal_found found, uint64_t *ret_cut)
{
    uint64_t used = wal_used_bytes(o->seg.ptr, o->seg.len);
    unsigned long long at = s->used;

    *ret_cut = used > s->used ? used - s->used : 0;
    if (*ret_cut == 0)
        return 0;
    if (wal_find_batch(o->seg, s->used + WAL_SECTOR_BYTES, s->nonce))
        return corrupt(o, s->number, "the batch at byte %llu is damaged but a later one is intact", at);
    if (found == WAL_BAD)
        return corrupt(o, s->number, "the batch at byte %llu was written whole and has changed since", at);
    if (o->unused_dirty)
        return corrupt(o, s->number, "the batch at byte %llu is damaged but the next segment was begun", at);
    return 0;
}

/* The last segment, whose head is not good: prepared and never begun, or its first write did not finish. */
static int judge_unused(struct open *o, uint64_t number, enum wal_found found)
{
    if (wal_find_batch(o->seg, 2 * WAL_SECTOR_BYTES, 0))
        return corrupt(o, number, "the head is damaged but a later batch is intact");
    if (found == WAL_BAD)
        return corrupt(o, number, "the head was written whole and has changed since");
    o->unused_dirty = !wal_is_zero(o->seg.ptr, o->seg.len);
    return 0;
}

/* ---- 5: changing ---------------------------------------------------------------------------- */

static int cut_tail(struct wal *w, struct wal_segment *s, uint64_t bytes)
{
    uint8_t *zero;
    int err;

    if (bytes == 0)
        return 0;
    zero = calloc(1, bytes);
    if (zero == NULL)
        return -ENOMEM;
    err = w->disk->pwrite(w->disk, s->file, zero, bytes, s->used);
    if (err == 0)
        err = w->disk->fdatasync(w->disk, s->file);
    free(zero);
    return err;
}

static int remove_unused(struct wal *w, uint64_t number)
{
    char path[WAL_PATH_MAX + 32];
    int err;

    wal_segment_path(w, number, path);
    err = w->disk->unlink(w->disk, path);
    return err ? err : w->disk->fsync_dir(w->disk, w->dir);
}

/* ---- the whole --------------------------------------------------------------------------------- */

/* Reads the last segment first: whether it was begun decides how the one before it may end. */
static int find_newest(struct open *o, size_t *ret_n)
{
    uint64_t number = o->numbers[o->n_numbers - 1];
    struct wal_segment *s;
    enum wal_found found;
    int err = load(o, number, &s);

    if (err)
        return err;
    found = wal_segment_head_parse(o->seg, &o->head);
    if (found == WAL_GOOD) {
        err = reread_tail(o, s);
        if (err)
            goto out;
        found = wal_segment_head_parse(o->seg, &o->head);
    }
    *ret_n = o->n_numbers;
    if (found == WAL_GOOD) {
        o->newest = s;
        o->newest_seg = o->seg;
        o->seg = SLICE_NONE;
        return 0;
    }
    if (o->n_numbers == 1)
        err = corrupt(o, number, "the first segment has no head");
    else
        err = judge_unused(o, number, found);
    --*ret_n;
out:
    seg_free(o);
    wal_segment_unref(o->w, s);
    return err;
}

static int recover_segment(struct open *o, size_t i, bool is_newest, uint64_t *ret_cut)
{
    struct wal_segment *s = is_newest ? o->newest : NULL;
    bool loaded = s == NULL;
    enum wal_found found;
    int err = 0;

    if (loaded) {
        err = load(o, o->numbers[i], &s);
    } else {
        o->seg = o->newest_seg;
        o->newest = NULL;
    }
    if (err)
        return err;
    err = wal_segment_add(o->w, s);
    if (err) {
        wal_segment_unref(o->w, s);
        goto out;
    }
    found = wal_segment_head_parse(o->seg, &o->head);
    if (found == WAL_GOOD && is_newest && loaded) {
        err = reread_tail(o, s);
        if (err)
            goto out;
        found = wal_segment_head_parse(o->seg, &o->head);
    }
    if (found != WAL_GOOD) {
        err = corrupt(o, s->number, "the head is damaged");
        goto out;
    }
    err = check_head(o, s, i == 0);
    if (err == 0)
        err = walk(o, s, &found);
    /* How an older segment ends is checked by the head of the next: its chain must meet there. */
    if (err == 0 && is_newest)
        err = judge_tail(o, s, found, ret_cut);
out:
    seg_free(o);
    return err;
}

int wal_open(const struct wal_options *options, struct wal **ret_wal, struct wal_state *ret_state, char *errbuf,
             size_t errbuf_size)
{
    struct open o = {.errbuf = errbuf, .errbuf_size = errbuf_size};
    struct wal *w = calloc(1, sizeof *w);
    uint64_t cut = 0;
    size_t n = 0;
    int err;

    if (w == NULL)
        return -ENOMEM;
    assert(strlen(options->dir) < WAL_PATH_MAX);
    (void)pthread_mutex_init(&w->mu, NULL); /* cannot fail with default attributes on Linux */
    w->disk = options->disk;
    w->options = *options;
    (void)snprintf(w->dir, sizeof w->dir, "%s", options->dir); /* fits: asserted */
    o.w = w;

    err = list_segments(&o);
    if (err == 0)
        err = find_newest(&o, &n);
    for (size_t i = 0; i < n && err == 0; i++)
        err = recover_segment(&o, i, i == n - 1, &cut);
    if (err == 0)
        err = cut_tail(w, w->segments[n - 1], cut);
    if (err == 0 && n < o.n_numbers)
        err = remove_unused(w, o.numbers[n]);
    if (err == 0)
        err = wal_next_remove(w);
    free(o.numbers);
    if (o.newest) { /* an older one was refused first */
        free((void *)(uintptr_t)o.newest_seg.ptr);
        wal_segment_unref(w, o.newest);
    }
    if (err) {
        wal_close(w);
        return err;
    }
    w->state.cut_bytes = cut;
    *ret_state = w->state;
    *ret_wal = w;
    return 0;
}
