/* SPDX-License-Identifier: Apache-2.0 */
/* snap_export.c - base as a stream of chunks, while flushes go on.
 *
 * Every chunk:   0  u32le crc32c of all that follows   4  u8 kind   5  3 x 0   8  u64le number, from 0   16  body
 *
 *   1 head  0 "CAIRNSNP"   8 u32le format, 1   12 u32le S.sub   16 u64le cluster id   24 applied index   32 its term
 *           40 R   48 C   56 key count   64 state hash   72 S.main   80 the C that S is of   88 u64le 0   96 Raft's
 *           configuration, as in base's meta
 *   2 rows  of the small tables:  0 u8 table   1 u32le bytes of the id   5 u32le bytes of the value   9 id, value
 *   3 log   records, ascending:   0 u64le main   8 u32le sub   12 u8 tombstone   13 u32le bytes of the body   17 body
 *   4 end   0 u64le rows   8 u64le records   16 u64le hash: a chain over all chunks before, but for their crcs
 *
 * A chunk of rows or records holds as many as fit in LIMIT_SNAP_CHUNK_BYTES, and at least one. The head is under the
 * hash, so a stream's end belongs to one cluster, index, term and configuration.
 *
 * Base alone is read: it is at every moment the exact state at its applied index. One short view fixes the head and
 * copies the small tables; the log is then read a chunk at a time, a view each, so that no page of base is pinned for
 * long. At or below R nothing is added to it, and nothing removed: the sweep is held back. Would it go on, a record
 * could be sent and the tombstone above it be gone when its turn comes. A copy of base (defragmentation) has the same
 * records; another state put in its place is noticed.
 *
 * Owner: one thread at a time. Not here: how the chunks travel (snap_peer.c).
 */
#include <errno.h>
#include "crc32c.h"
#include "limits.h"
#include "snap.h"
#include "txn.h"

#define CHUNK_FULL 300000 /* no other call's number */

struct buffer {
    uint8_t *p;
    size_t n, cap;
};

struct snap_export {
    struct apply *apply;
    struct store *store;
    struct clock *clock;
    struct slot *slot;
    struct snap_head head;
    uint8_t *conf;           /* head.conf's bytes */
    uint64_t epoch, hold_end_ms;
    enum snap_kind phase;
    bool over;
    struct buffer rows;      /* the small tables, encoded */
    size_t rows_at;
    struct rev next;         /* of the log */
    struct buffer chunk;
    uint64_t n_chunks, n_rows, n_records, hash;
};

static int room(struct buffer *b, size_t more)
{
    size_t cap = b->cap ? b->cap : 4096;
    uint8_t *p;

    if (more <= b->cap - b->n)
        return 0;
    while (cap - b->n < more)
        cap *= 2;
    p = realloc(b->p, cap);
    if (p == NULL)
        return -ENOMEM;
    b->p = p;
    b->cap = cap;
    return 0;
}

static void add(struct buffer *b, const void *p, size_t n)
{
    if (n)
        memcpy(b->p + b->n, p, n);
    b->n += n;
}

/* ---- the beginning: one view ---- */

struct copying {
    struct snap_export *x;
    enum table table;
};

static int copy_row(void *ctx, struct slice id, struct slice value)
{
    struct copying *c = ctx;
    struct buffer *b = &c->x->rows;
    uint8_t head[SNAP_ROW_BYTES];
    int err = room(b, sizeof head + id.len + value.len);

    if (err)
        return err;
    head[0] = (uint8_t)c->table;
    put_u32le(head + 1, (uint32_t)id.len);
    put_u32le(head + 5, (uint32_t)value.len);
    add(b, head, sizeof head);
    add(b, id.ptr, id.len);
    add(b, value.ptr, value.len);
    c->x->n_rows++;
    return 0;
}

static int begin_at(struct snap_export *x, struct view *v)
{
    struct base_meta m;
    int err = base_reader_meta(v->reader, &m);

    if (err)
        return err;
    if (m.seal.applied_index == 0)
        return -ENODATA; /* nothing has been flushed yet: the log has it all, and nobody would take this */
    x->conf = malloc(m.seal.conf.len + 1);
    if (x->conf == NULL)
        return -ENOMEM;
    if (m.seal.conf.len)
        memcpy(x->conf, m.seal.conf.ptr, m.seal.conf.len);
    x->head = (struct snap_head){
        .cluster_id = m.cluster_id, .index = m.seal.applied_index, .term = m.seal.applied_term,
        .revision = m.seal.revision, .compact_revision = m.seal.compact_revision, .key_count = m.seal.key_count,
        .state_hash = m.seal.state_hash, .swept = {m.swept, m.swept_sub}, .swept_upto = m.swept_upto,
        .conf = slice_of(x->conf, m.seal.conf.len),
    };
    for (enum table t = TABLE_LEASE; t <= TABLE_MEMBER && err == 0; t++) {
        struct copying c = {x, t};

        err = base_row_scan(v->reader, t, copy_row, &c);
    }
    return err;
}

int snap_export_new(struct apply *a, struct store *s, struct clock *clock, struct snap_export **ret_x)
{
    struct snap_export *x = calloc(1, sizeof *x);
    struct view v;
    int err;

    if (x == NULL)
        return -ENOMEM;
    *x = (struct snap_export){.apply = a, .store = s, .clock = clock, .phase = SNAP_HEAD};
    apply_hold_sweep(a);
    x->epoch = store_epoch(s);
    x->hold_end_ms = clock->now_ms(clock) + LIMIT_SNAP_HOLD_MS;
    x->slot = slot_new(s);
    err = x->slot ? view_open(s, x->slot, &v) : -ENOMEM;
    if (err == 0) {
        err = begin_at(x, &v);
        view_close(&v);
    }
    if (err) {
        snap_export_free(x);
        return err;
    }
    *ret_x = x;
    return 0;
}

void snap_export_free(struct snap_export *x)
{
    if (x == NULL)
        return;
    slot_free(x->store, x->slot);
    apply_release_sweep(x->apply);
    free(x->conf);
    free(x->rows.p);
    free(x->chunk.p);
    free(x);
}

const struct snap_head *snap_export_head(const struct snap_export *x)
{
    return &x->head;
}

/* ---- bodies ---- */

static int put_head(struct snap_export *x)
{
    const struct snap_head *h = &x->head;
    uint8_t p[SNAP_HEAD_BYTES] = {0};
    int err = room(&x->chunk, sizeof p + h->conf.len);

    if (err)
        return err;
    memcpy(p, SNAP_MAGIC, 8);
    put_u32le(p + 8, SNAP_FORMAT);
    put_u32le(p + 12, h->swept.sub);
    put_u64le(p + 16, h->cluster_id);
    put_u64le(p + 24, h->index);
    put_u64le(p + 32, h->term);
    put_u64le(p + 40, (uint64_t)h->revision);
    put_u64le(p + 48, (uint64_t)h->compact_revision);
    put_u64le(p + 56, (uint64_t)h->key_count);
    put_u64le(p + 64, h->state_hash);
    put_u64le(p + 72, (uint64_t)h->swept.main);
    put_u64le(p + 80, (uint64_t)h->swept_upto);
    add(&x->chunk, p, sizeof p);
    add(&x->chunk, h->conf.ptr, h->conf.len);
    return 0;
}

/* So many whole rows as fit. */
static int put_rows(struct snap_export *x)
{
    size_t end = x->rows_at;
    int err;

    while (end < x->rows.n) {
        const uint8_t *p = x->rows.p + end;
        size_t n = SNAP_ROW_BYTES + get_u32le(p + 1) + get_u32le(p + 5);

        if (end > x->rows_at && end + n - x->rows_at > LIMIT_SNAP_CHUNK_BYTES)
            break;
        end += n;
    }
    err = room(&x->chunk, end - x->rows_at);
    if (err)
        return err;
    add(&x->chunk, x->rows.p + x->rows_at, end - x->rows_at);
    x->rows_at = end;
    return 0;
}

static int put_record(void *ctx, const struct change *c)
{
    struct snap_export *x = ctx;
    uint8_t head[SNAP_RECORD_BYTES];
    size_t n = sizeof head + c->body.len;
    int err;

    if (x->chunk.n > SNAP_CHUNK_HEAD && x->chunk.n + n > LIMIT_SNAP_CHUNK_BYTES)
        return CHUNK_FULL;
    if ((err = room(&x->chunk, n)) != 0)
        return err;
    put_u64le(head, (uint64_t)c->rev.main);
    put_u32le(head + 8, c->rev.sub);
    head[12] = c->tombstone;
    put_u32le(head + 13, (uint32_t)c->body.len);
    add(&x->chunk, head, sizeof head);
    add(&x->chunk, c->body.ptr, c->body.len);
    x->next = (struct rev){c->rev.main, c->rev.sub + 1};
    x->n_records++;
    return 0;
}

/* Records from where the last chunk ended. None left: the chunk stays empty. */
static int put_log(struct snap_export *x)
{
    struct arena a;
    struct view v;
    int err = view_open(x->store, x->slot, &v);

    if (err)
        return err;
    arena_init(&a, LIMIT_SNAP_RECORD_BYTES, NULL, 0);
    /* The epoch moves before the base does: a view of another state sees it moved. */
    err = store_epoch(x->store) == x->epoch ? 0 : -ESTALE;
    if (err == 0)
        err = base_log_scan(v.reader, x->next, x->head.revision, &a, put_record, x);
    view_close(&v);
    arena_fini(&a);
    return err == CHUNK_FULL ? 0 : err > 0 ? -EUCLEAN : err;
}

static int put_end(struct snap_export *x)
{
    uint8_t p[SNAP_END_BYTES];
    int err = room(&x->chunk, sizeof p);

    if (err)
        return err;
    put_u64le(p, x->n_rows);
    put_u64le(p + 8, x->n_records);
    put_u64le(p + 16, x->hash);
    add(&x->chunk, p, sizeof p);
    return 0;
}

/* ---- chunks ---- */

/* Fills the chunk with what comes next; the phase is that of the chunk. */
static int put_next(struct snap_export *x)
{
    int err = 0;

    if (x->n_chunks == 0)
        return put_head(x);
    if (x->phase == SNAP_HEAD)
        x->phase = SNAP_ROWS;
    if (x->phase == SNAP_ROWS && x->rows_at == x->rows.n)
        x->phase = SNAP_LOG;
    if (x->phase == SNAP_ROWS)
        return put_rows(x);
    err = put_log(x);
    if (err || x->chunk.n > SNAP_CHUNK_HEAD)
        return err;
    x->phase = SNAP_END;
    return put_end(x);
}

int snap_export_next(struct snap_export *x, struct slice *ret_chunk)
{
    int err;

    if (x->phase == SNAP_END)
        return 1;
    if (x->clock->now_ms(x->clock) >= x->hold_end_ms)
        return -ETIMEDOUT;
    x->chunk.n = 0;
    if ((err = room(&x->chunk, SNAP_CHUNK_HEAD)) != 0)
        return err;
    x->chunk.n = SNAP_CHUNK_HEAD;
    if ((err = put_next(x)) != 0)
        return err;
    memset(x->chunk.p + 4, 0, 4);
    x->chunk.p[4] = (uint8_t)x->phase;
    put_u64le(x->chunk.p + 8, x->n_chunks++);
    x->hash = state_hash_bytes(x->hash, x->phase, slice_of(x->chunk.p + 4, x->chunk.n - 4));
    put_u32le(x->chunk.p, crc32c(0, x->chunk.p + 4, x->chunk.n - 4));
    *ret_chunk = slice_of(x->chunk.p, x->chunk.n);
    return 0;
}
