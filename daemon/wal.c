/* SPDX-License-Identifier: Apache-2.0 */
/* wal.c - the write-ahead log: what this member has promised, in order.
 *
 * A log is a directory of segments, named by number in 16 hex digits (0000000000000001.wal). All integers are
 * little-endian, all crcs CRC-32C. A segment is made of 512-byte sectors, zero-filled and synced before it has that
 * name (it is `next` until then):
 *
 *   sector 0: the segment's head               then batches, each beginning at a sector:
 *     0  u64  "CAIRNWAL"                         0  u32  "BTCH"
 *     8  u32  crc of bytes 12..119               4  u32  crc of bytes 8..95
 *    12  u32  format, 1                          8  u64  nonce of the segment
 *    16  u64  nonce, random, never 0            16  u64  number of the batch, +1 each, over all segments
 *    24  u64  number of the segment             24  u64  its own offset in the segment
 *    32  u64  size of the segment               32  u32  crc of the previous batch's head
 *    40  u64  cluster id                        36  u32  bytes of the records, a multiple of 8
 *    48  u64  member id                         40  u32  crc of the records
 *    56  u64  index and                         44  u32  number of records
 *    64  u64    term of the last entry before   48  u64  index of the first; the log is cut there first
 *    72  u64  term, vote and                    56  u64  term of the entry before it
 *    80  u64    commit                          64  u64  hard state: term,
 *    88  u64    at that time                    72  u64    vote,
 *    96  u64  number of the last batch before   80  u64    commit watermark
 *   104  u32  crc of that batch's head          88  u32  sectors with at most one non-zero byte
 *   108  u32  0                                 92  u32  5a5aa5a5
 *   112  2 x 5a5aa5a5, then zeros               96  records, "BTCHEND!", zeros to the end of the sector
 *
 *   record:  0 u32 bytes of payload   4 u32 crc of those 4 bytes and of all from byte 8 to the payload's end
 *            8 u64 index   16 u64 term   24 payload (entry.h), zeros to a multiple of 8
 *
 * Why so. A batch is one pwrite into prepared bytes and one fdatasync, which writes no metadata. At most one batch
 * is unsynced at any time, and a segment is only begun when all before it is synced: so only the very last batch may
 * be incomplete. No sector holds bytes of two batches: a write that breaks off damages nothing synced. The length
 * lies under a crc of its own, so no length is believed unchecked. Nonce, number, own offset and the chain tell a
 * stale or misdirected sector from one that belongs here, and no client can forge a head, not knowing the nonce.
 *
 * What the end may look like (wal_record.c decides, wal_open.c acts). Sectors are written whole or not at all and were
 * zero before: a batch that misses sectors is torn, and cut on open by writing zeros over it. A batch with all its
 * sectors but a wrong crc was changed later: corruption. So is a bad batch with a good one anywhere behind it, a gap in
 * the numbers, and a log that ends below a commit watermark. When it cannot be told, it is corruption. What no
 * log can see is the loss of whole synced sectors at its very end; peers can.
 *
 * Owner:    the WAL thread; wal_read any thread.
 * Not here: segments and what lies in them (wal_segment.c), recovery (wal_open.c), bytes (wal_record.c), what an entry
 * means (apply.c).
 * Sources:  RELIABILITY A.4 rules 1 to 5; etcd CVE-2020-15106 (lengths), LWN 752063 (fsync is not tried again).
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include "wal_impl.h"

enum { WAL_CREATED_BYTES = 2 * WAL_SECTOR_BYTES }; /* the head, and a batch without entries */
#define FIRST_SEGMENT_PART 8          /* the first segment is an eighth; each next doubles, up to segment_bytes */

/* ---- appending --------------------------------------------------------------------- */

static void pack_segment_head(const struct wal *w, const struct wal_segment *s, uint8_t *dst)
{
    const struct wal_segment_head h = {
        .nonce = s->nonce, .segment = s->number, .size = s->size,
        .cluster_id = w->options.cluster_id, .member_id = w->options.member_id,
        .base_index = w->state.last_index, .base_term = w->state.last_term,
        .term = w->state.term, .vote = w->state.vote, .commit = w->state.commit,
        .prev_batch = w->last_batch, .prev_crc = w->last_crc,
    };

    wal_segment_head_pack(&h, dst);
}

static int buf_reserve(struct wal *w, size_t n)
{
    void *p;

    if (n <= w->buf_size)
        return 0;
    if (posix_memalign(&p, DISK_ALIGN, n))
        return -ENOMEM;
    free(w->buf); /* nothing is kept from batch to batch */
    w->buf = p;
    w->buf_size = n;
    return 0;
}

/* Packs the batch (and before it the head of a segment that has none yet) and writes it in one go. */
static int write_batch(struct wal *w, struct entry *const *entries, size_t n, struct wal_batch *b)
{
    struct wal_segment *s = wal_newest(w);
    size_t head = s->used == 0 ? WAL_SECTOR_BYTES : 0, total = head + wal_batch_bytes(b->body_bytes);
    uint8_t *p;
    int err;

    err = buf_reserve(w, total);
    if (err)
        return err;
    if (head)
        pack_segment_head(w, s, w->buf);
    b->nonce = s->nonce;
    b->offset = s->used + head;
    p = w->buf + head + WAL_BATCH_HEAD_BYTES;
    for (size_t i = 0; i < n; i++)
        p += wal_record_pack(entries[i], p);
    wal_batch_pack(b, w->buf + head);
    err = w->disk->pwrite(w->disk, s->file, w->buf, total, s->used);
    if (err)
        return err == -ENOSPC ? -EIO : err; /* the bytes were there: a disk that says this has lied before */
    s->used += total;
    return 0;
}

static void note_batch(struct wal *w, struct entry *const *entries, size_t n, const struct wal_batch *b)
{
    uint64_t offset = b->offset + WAL_BATCH_HEAD_BYTES;

    pthread_mutex_lock(&w->mu);
    if (n && b->first_index <= w->state.last_index)
        wal_cut(w, b->first_index, b->prev_term);
    for (size_t i = 0; i < n; i++) {
        wal_note(w, entries[i]->index, entries[i]->term, (uint32_t)offset);
        offset += wal_record_bytes(entries[i]->len);
    }
    w->state.term = b->term;
    w->state.vote = b->vote;
    w->state.commit = b->commit;
    pthread_mutex_unlock(&w->mu);
    w->last_batch = b->number;
    w->last_crc = b->crc;
}

int wal_append(struct wal *w, struct entry *const *entries, size_t n, const struct wal_state *hard, uint64_t commit)
{
    struct wal_batch b = {.number = w->last_batch + 1, .prev_crc = w->last_crc, .n_entries = (uint32_t)n,
                          .term = hard ? hard->term : w->state.term, .vote = hard ? hard->vote : w->state.vote};
    uint64_t last = n ? entries[n - 1]->index : w->state.last_index;
    struct wal_segment *s;
    size_t body = 0;
    int err;

    if (w->failed)
        return -EIO;
    err = wal_sync(w); /* what an earlier call appended; mostly nothing */
    if (err)
        return err;
    assert(b.term >= w->state.term);
    for (size_t i = 0; i < n; i++) {
        assert(i == 0 || entries[i]->index == entries[i - 1]->index + 1);
        body += wal_record_bytes(entries[i]->len);
    }
    if (n) {
        assert(entries[0]->index > w->state.commit);
        assert(entries[0]->index <= w->state.last_index + 1);
        b.first_index = entries[0]->index;
        b.prev_term = wal_term_at(w, b.first_index - 1);
    }
    if (body > WAL_SEGMENT_MAX_BYTES)
        return -EFBIG;
    b.body_bytes = (uint32_t)body;
    b.commit = commit < last ? commit : last;
    if (b.commit < w->state.commit)
        b.commit = w->state.commit;

    s = wal_newest(w);
    if (s->used && wal_batch_bytes(body) > s->size - s->used && (err = wal_roll(w, wal_batch_bytes(body))) != 0)
        return err;
    pthread_mutex_lock(&w->mu); /* the arrays may move */
    err = wal_reserve(w, n);
    pthread_mutex_unlock(&w->mu);
    if (err == 0)
        err = write_batch(w, entries, n, &b);
    if (err) {
        w->failed = true;
        return err;
    }
    w->dirty = true;
    note_batch(w, entries, n, &b);
    return 0;
}

int wal_sync(struct wal *w)
{
    struct wal_segment *s = wal_newest(w);
    int err;

    if (w->failed)
        return -EIO;
    if (!w->dirty)
        return 0;
    err = w->disk->fdatasync(w->disk, s->file);
    if (err) {
        w->failed = true; /* the kernel may have dropped the pages: a second fsync would say yes */
        return err == -ENOSPC ? -EIO : err;
    }
    w->dirty = false;
    return 0;
}

/* ---- reading and letting go ---------------------------------------------------------- */

/* The segment that holds index, with a reference, and the record's place. mu is held. */
static struct wal_segment *find(struct wal *w, uint64_t index, uint32_t *ret_offset)
{
    for (size_t i = w->n_segments; i > 0; i--) {
        struct wal_segment *s = w->segments[i - 1];

        if (index >= s->first && index - s->first < s->n) {
            *ret_offset = s->offsets[index - s->first];
            s->refs++;
            return s;
        }
    }
    return NULL;
}

/* 1: all n bytes; 0: not there; or -errno. */
static int read_whole(struct wal *w, struct wal_segment *s, void *buf, size_t n, uint64_t offset)
{
    ssize_t got = w->disk->pread(w->disk, s->file, buf, n, offset);

    return got < 0 ? (int)got : (size_t)got == n;
}

static int read_record(struct wal *w, struct wal_segment *s, uint32_t offset, uint64_t index, struct entry **ret_entry)
{
    uint8_t head[WAL_RECORD_HEAD_BYTES], *p = NULL;
    struct wal_record r;
    struct entry *e;
    size_t len, n;
    int ok;

    ok = read_whole(w, s, head, sizeof head, offset);
    if (ok <= 0)
        return ok ? ok : -EUCLEAN;
    len = wal_record_payload_len(head);
    if (len > s->size - offset - sizeof head) /* asked before any memory is: the length may be rotten */
        return -EUCLEAN;
    n = sizeof head + len;
    p = malloc(n);
    e = entry_new(len);
    ok = p && e ? read_whole(w, s, p, n, offset) : -ENOMEM;
    if (ok == 0 || (ok > 0 && (!wal_record_parse(p, n, &r) || r.index != index)))
        ok = -EUCLEAN;
    if (ok > 0) {
        e->index = r.index;
        e->term = r.term;
        memcpy(e->payload, r.payload.ptr, len); /* the border between disk and entries */
        *ret_entry = e;
        e = NULL;
    }
    entry_unref(e);
    free(p);
    return ok > 0 ? 0 : ok;
}

int wal_read(struct wal *w, uint64_t index, struct entry **ret_entry)
{
    struct wal_segment *s;
    uint32_t offset;
    int err;

    pthread_mutex_lock(&w->mu);
    s = find(w, index, &offset);
    pthread_mutex_unlock(&w->mu);
    if (s == NULL)
        return -ENOENT;
    err = read_record(w, s, offset, index, ret_entry);
    pthread_mutex_lock(&w->mu);
    wal_segment_unref(w, s);
    pthread_mutex_unlock(&w->mu);
    return err;
}

int wal_runs(struct wal *w, int (*fn)(void *ctx, uint64_t first, uint64_t term), void *ctx)
{
    int rc = 0;

    for (size_t i = 0; i < w->n_runs && rc == 0; i++)
        rc = fn(ctx, w->runs[i].first, w->runs[i].term);
    return rc;
}

/* The log now begins after index. mu is held. */
static void begin_after(struct wal *w, uint64_t index)
{
    size_t gone = 0;

    w->state.first_term = wal_term_at(w, index);
    w->state.first_index = index;
    while (gone + 1 < w->n_runs && w->runs[gone + 1].first <= index + 1)
        gone++;
    if (gone)
        memmove(w->runs, w->runs + gone, (w->n_runs - gone) * sizeof *w->runs);
    w->n_runs -= gone;
    if (w->n_runs && index == w->state.last_index)
        w->n_runs = 0; /* nothing is left of the last run either */
    else if (w->n_runs && w->runs[0].first <= index)
        w->runs[0].first = index + 1;
}

int wal_release(struct wal *w, uint64_t index)
{
    char path[WAL_PATH_MAX + 32];

    if (w->failed)
        return -EIO;
    while (w->n_segments > 1 && w->segments[1]->used && w->segments[1]->base_index <= index) {
        struct wal_segment *s = w->segments[0];
        int err;

        if (w->dirty && w->n_segments == 2)
            break; /* the newest may not survive yet: it cannot be all there is */
        wal_segment_path(w, s->number, path);
        err = w->disk->unlink(w->disk, path);
        /* One at a time: were a later name to vanish first, a crash would leave a gap in the numbers. */
        if (err == 0)
            err = w->disk->fsync_dir(w->disk, w->dir);
        if (err) {
            w->failed = true;
            return err;
        }
        pthread_mutex_lock(&w->mu);
        begin_after(w, w->segments[1]->first - 1);
        memmove(w->segments, w->segments + 1, (w->n_segments - 1) * sizeof *w->segments);
        w->n_segments--;
        wal_segment_unref(w, s);
        pthread_mutex_unlock(&w->mu);
    }
    return 0;
}

uint64_t wal_within(struct wal *w, uint64_t bytes)
{
    uint64_t sum = 0, index;
    size_t i;

    pthread_mutex_lock(&w->mu);
    i = w->n_segments - 1;
    sum = w->segments[i]->size;
    while (i > 0 && sum + w->segments[i - 1]->size <= bytes)
        sum += w->segments[--i]->size;
    index = i > 0 ? w->segments[i]->first - 1 : w->state.first_index;
    pthread_mutex_unlock(&w->mu);
    return index;
}

uint64_t wal_bytes(struct wal *w)
{
    uint64_t bytes = w->next ? w->next_ready : 0;

    for (size_t i = 0; i < w->n_segments; i++)
        bytes += w->segments[i]->size;
    return bytes;
}

void wal_close(struct wal *w)
{
    if (w == NULL)
        return;
    for (size_t i = 0; i < w->n_segments; i++)
        wal_segment_unref(w, w->segments[i]);
    wal_segment_unref(w, w->next);
    (void)pthread_mutex_destroy(&w->mu); /* nobody reads any more */
    free(w->segments);
    free(w->runs);
    free(w->buf);
    free(w);
}

void wal_adopt(struct wal *w, struct wal *fresh)
{
    struct wal_segment **segments;
    struct wal_run *runs;

    pthread_mutex_lock(&w->mu);
    /* Here, where their readers count them down too. */
    for (size_t i = 0; i < w->n_segments; i++)
        wal_segment_unref(w, w->segments[i]);
    segments = w->segments;
    runs = w->runs;
    w->segments = fresh->segments;
    w->n_segments = fresh->n_segments;
    w->cap_segments = fresh->cap_segments;
    w->runs = fresh->runs;
    w->n_runs = fresh->n_runs;
    w->cap_runs = fresh->cap_runs;
    w->state = fresh->state;
    fresh->segments = segments;
    fresh->runs = runs;
    fresh->n_segments = 0;
    wal_segment_unref(w, w->next);
    w->next = fresh->next;
    w->next_ready = fresh->next_ready;
    fresh->next = NULL;
    memcpy(w->dir, fresh->dir, sizeof w->dir);
    w->options = fresh->options;
    w->options.dir = w->dir;
    w->dirty = fresh->dirty;
    w->failed = fresh->failed;
    w->last_batch = fresh->last_batch;
    w->last_crc = fresh->last_crc;
    pthread_mutex_unlock(&w->mu);
    wal_close(fresh);
}

/* ---- a new log ------------------------------------------------------------------------- */

/* The directory that holds dir. */
static void parent_of(const char *dir, char parent[WAL_PATH_MAX])
{
    const char *slash = strrchr(dir, '/');

    if (slash == NULL || slash == dir)
        (void)snprintf(parent, WAL_PATH_MAX, "%s", slash ? "/" : ".");
    else
        (void)snprintf(parent, WAL_PATH_MAX, "%.*s", (int)(slash - dir), dir);
}

/* Whether more than its creation has written to a log: its first segment begins with these sectors. The creation writes
 * the head and one batch without entries, a sector each. */
static bool is_used(struct slice first)
{
    struct wal_segment_head h;
    struct wal_batch b;

    return wal_segment_head_parse(first, &h) == WAL_GOOD &&
           (first.len < WAL_CREATED_BYTES + WAL_SECTOR_BYTES ||
            !wal_is_zero(first.ptr + WAL_CREATED_BYTES, WAL_SECTOR_BYTES) ||
            (wal_batch_head_parse(first, WAL_SECTOR_BYTES, h.nonce, &b) && b.n_entries > 0));
}

/* What a creation that crashed has left may go; a log that was used may not. */
static int remove_leftover(struct wal *w)
{
    char path[WAL_PATH_MAX + 32];
    uint8_t first[WAL_CREATED_BYTES + WAL_SECTOR_BYTES];
    struct disk_file *f;
    ssize_t n;
    int err;

    wal_segment_path(w, 1, path);
    err = wal_next_remove(w);
    if (err)
        return err;
    err = w->disk->open(w->disk, path, O_RDWR, 0, &f);
    if (err)
        return err == -ENOENT ? 0 : err;
    n = w->disk->pread(w->disk, f, first, sizeof first, 0);
    w->disk->close(w->disk, f);
    if (n < 0)
        return (int)n;
    if (is_used(slice_of(first, (size_t)n)))
        return -EEXIST;
    return w->disk->unlink(w->disk, path);
}

static int create_first(struct wal *w)
{
    uint64_t size = w->options.segment_bytes / FIRST_SEGMENT_PART / WAL_SECTOR_BYTES * WAL_SECTOR_BYTES;
    struct wal_segment *s = calloc(1, sizeof *s);
    char path[WAL_PATH_MAX + 32], named[WAL_PATH_MAX + 32];
    int err;

    if (s == NULL)
        return -ENOMEM;
    s->number = s->refs = 1;
    s->size = size < 8 * WAL_SECTOR_BYTES ? 8 * WAL_SECTOR_BYTES : size;
    s->nonce = wal_nonce_new(w);
    s->base_index = w->state.last_index;
    s->first = w->state.last_index + 1;
    wal_next_path(w, path);
    err = w->disk->open(w->disk, path, O_RDWR | O_CREAT | O_EXCL | O_DIRECT, 0600, &s->file);
    if (err == 0)
        err = wal_segment_add(w, s);
    if (err) {
        if (s->file)
            w->disk->close(w->disk, s->file);
        free(s);
        return err;
    }
    err = w->disk->fallocate(w->disk, s->file, s->size);
    /* Whole before it has a name and a head: a head says that the creation came this far. */
    if (err == 0)
        err = w->disk->fdatasync(w->disk, s->file);
    wal_segment_path(w, s->number, named);
    return err ? err : w->disk->rename(w->disk, path, named);
}

int wal_create(const struct wal_options *o, uint64_t index, uint64_t term, const struct wal_state *hard)
{
    struct wal *w = calloc(1, sizeof *w);
    char parent[WAL_PATH_MAX];
    int err;

    if (w == NULL)
        return -ENOMEM;
    assert(strlen(o->dir) < WAL_PATH_MAX);
    (void)pthread_mutex_init(&w->mu, NULL); /* cannot fail with default attributes on Linux */
    w->disk = o->disk;
    w->options = *o;
    (void)snprintf(w->dir, sizeof w->dir, "%s", o->dir);
    w->state = (struct wal_state){.first_index = index, .first_term = term, .last_index = index, .last_term = term};
    if (hard) {
        w->state.term = hard->term;
        w->state.vote = hard->vote;
        w->state.commit = hard->commit < index ? hard->commit : index;
    }
    err = o->disk->mkdir(o->disk, o->dir, 0700);
    if (err == -EEXIST)
        err = remove_leftover(w);
    if (err == 0)
        err = create_first(w);
    if (err == 0)
        err = wal_append(w, NULL, 0, NULL, w->state.commit);
    if (err == 0)
        err = wal_sync(w);
    if (err == 0)
        err = o->disk->fsync_dir(o->disk, o->dir);
    parent_of(o->dir, parent);
    if (err == 0)
        err = o->disk->fsync_dir(o->disk, parent);
    wal_close(w);
    return err;
}
