/* SPDX-License-Identifier: Apache-2.0 */
/* snap_import.c - a stream of chunks becomes a base of our own.
 *
 * The records come as they were made, oldest first, and go the way any change goes: into a delta, and when that has
 * LIMIT_SNAP_DELTA_BYTES or LIMIT_DELTA_FREEZE_KEYS, into base by base_flush, which gives ordinals and pointers and
 * keeps index, long and lease_keys. So there is one way to write a base, and memory is bounded by that delta. Nothing
 * is synced on the way: until the last chunk has agreed with all before it, the directory is nothing; then it is
 * synced whole.
 *
 * The chunks come from another member over a checked stream, which is the world all the same: each field is looked at
 * before anything is done with it.
 *
 * Owner: one thread at a time. The bytes are drawn at the top of snap_export.c.
 */
#include <errno.h>
#include "crc32c.h"
#include "limits.h"
#include "raftconf.h"
#include "snap.h"
#include "txn.h"

enum { ID_MAX = 500 }; /* of a small table's row: what delta and base take */

struct snap_import {
    struct snap_import_options o;
    char *path;           /* owned; o's paths are this */
    struct base *base;
    struct delta *delta;
    struct snap_head head;
    uint8_t conf[RAFTCONF_BYTES_MAX];
    enum snap_kind phase; /* of the last chunk; 0: none yet */
    bool failed;
    struct rev last;
    uint64_t n_chunks, n_rows, n_records, hash;
};

int snap_import_new(const struct snap_import_options *o, struct snap_import **ret_im)
{
    struct snap_import *im = calloc(1, sizeof *im);

    if (im == NULL)
        return -ENOMEM;
    im->o = *o;
    im->path = strdup(o->path);
    im->o.path = im->o.base.path = im->path;
    im->o.base.no_sync = true;
    im->delta = delta_new();
    if (im->delta == NULL || im->path == NULL) {
        snap_import_free(im);
        return -ENOMEM;
    }
    *ret_im = im;
    return 0;
}

void snap_import_free(struct snap_import *im)
{
    if (im == NULL)
        return;
    base_close(im->base);
    delta_free(im->delta);
    free(im->path);
    free(im);
}

const struct snap_head *snap_import_head(const struct snap_import *im)
{
    return &im->head;
}

/* ---- writing ---- */

/* What has been gathered goes into base. Until the last flush its seal says only that nothing is sealed yet. */
static int flush(struct snap_import *im, bool last)
{
    struct seal seal = {.revision = im->last.main ? im->last.main : 1, .compact_revision = -1};
    struct delta *fresh = delta_new();
    int err;

    if (fresh == NULL)
        return -ENOMEM;
    if (last)
        seal = (struct seal){.applied_index = im->head.index, .applied_term = im->head.term,
                             .revision = im->head.revision, .compact_revision = im->head.compact_revision,
                             .key_count = im->head.key_count, .state_hash = im->head.state_hash,
                             .conf = im->head.conf};
    delta_seal(im->delta, &seal);
    err = base_flush(im->base, im->delta);
    delta_free(im->delta);
    im->delta = fresh;
    return err;
}

static int flush_if_full(struct snap_import *im)
{
    bool full = delta_bytes(im->delta) >= LIMIT_SNAP_DELTA_BYTES || delta_keys(im->delta) >= LIMIT_DELTA_FREEZE_KEYS;

    return full ? flush(im, false) : 0;
}

/* ---- chunks ---- */

static int take_head(struct snap_import *im, struct slice b)
{
    struct snap_head *h = &im->head;
    struct raft_conf conf;
    int err;

    if (b.len < SNAP_HEAD_BYTES || memcmp(b.ptr, SNAP_MAGIC, 8) != 0 || get_u32le(b.ptr + 8) != SNAP_FORMAT ||
        b.len - SNAP_HEAD_BYTES > sizeof im->conf)
        return -EBADMSG;
    *h = (struct snap_head){
        .swept = {(int64_t)get_u64le(b.ptr + 72), get_u32le(b.ptr + 12)}, .cluster_id = get_u64le(b.ptr + 16),
        .index = get_u64le(b.ptr + 24), .term = get_u64le(b.ptr + 32), .revision = (int64_t)get_u64le(b.ptr + 40),
        .compact_revision = (int64_t)get_u64le(b.ptr + 48), .key_count = (int64_t)get_u64le(b.ptr + 56),
        .state_hash = get_u64le(b.ptr + 64), .swept_upto = (int64_t)get_u64le(b.ptr + 80),
        .conf = slice_of(im->conf, b.len - SNAP_HEAD_BYTES),
    };
    memcpy(im->conf, b.ptr + SNAP_HEAD_BYTES, h->conf.len);
    if (h->cluster_id != im->o.cluster_id || h->index == 0 || h->term == 0 || h->revision < 1 || h->key_count < 0 ||
        h->compact_revision < -1 || h->compact_revision > h->revision || h->swept.main < 0 || h->swept_upto < -1 ||
        h->swept_upto > h->compact_revision || h->swept.main > h->revision + 1 || raftconf_decode(h->conf, &conf) != 0)
        return -EBADMSG;
    err = base_create(&im->o.base, im->o.cluster_id, im->o.member_id, h->conf);
    return err ? err : base_open(&im->o.base, &im->base);
}

static int take_rows(struct snap_import *im, struct slice b)
{
    while (b.len) {
        size_t id_len, value_len;
        struct slice value;
        int err;

        if (b.len < SNAP_ROW_BYTES || b.ptr[0] < TABLE_LEASE || b.ptr[0] > TABLE_MEMBER)
            return -EBADMSG;
        id_len = get_u32le(b.ptr + 1);
        value_len = get_u32le(b.ptr + 5);
        if (id_len == 0 || id_len > ID_MAX || id_len > b.len - SNAP_ROW_BYTES ||
            value_len > b.len - SNAP_ROW_BYTES - id_len)
            return -EBADMSG;
        value = slice_of(b.ptr + SNAP_ROW_BYTES + id_len, value_len);
        err = delta_row(im->delta, (enum table)b.ptr[0], slice_of(b.ptr + SNAP_ROW_BYTES, id_len), value);
        if (err || (err = flush_if_full(im)) != 0)
            return err;
        im->n_rows++;
        b = slice_of(value.ptr + value_len, b.len - SNAP_ROW_BYTES - id_len - value_len);
    }
    return 0;
}

/* A record as a change; body_decode looks at all of its bytes. */
static int change_of(struct rev rev, bool tombstone, struct slice body, struct change *ret)
{
    Mvccpb__KeyValue kv;

    if (body_decode(body, &kv) != 0)
        return -EBADMSG;
    if (tombstone ? kv.create_revision || kv.mod_revision || kv.version || kv.value.len || kv.lease
                  : kv.mod_revision != rev.main || kv.create_revision < 1 || kv.create_revision > rev.main ||
                        kv.version < 1)
        return -EBADMSG;
    *ret = (struct change){.key = slice_of(kv.key.data, kv.key.len), .rev = rev, .tombstone = tombstone,
                           .create_revision = kv.create_revision, .version = kv.version, .lease = kv.lease,
                           .body = body};
    return 0;
}

static int take_log(struct snap_import *im, struct slice b)
{
    while (b.len) {
        struct change c;
        struct rev rev;
        size_t n;
        int err;

        if (b.len < SNAP_RECORD_BYTES)
            return -EBADMSG;
        rev = (struct rev){(int64_t)get_u64le(b.ptr), get_u32le(b.ptr + 8)};
        n = get_u32le(b.ptr + 13);
        if (n > b.len - SNAP_RECORD_BYTES || rev.main < 1 || rev.main > im->head.revision ||
            rev_cmp(rev, im->last) <= 0 || b.ptr[12] > 1)
            return -EBADMSG;
        if ((err = change_of(rev, b.ptr[12], slice_of(b.ptr + SNAP_RECORD_BYTES, n), &c)) != 0 ||
            (err = delta_put(im->delta, &c)) != 0)
            return err;
        im->last = rev;
        im->n_records++;
        if ((err = flush_if_full(im)) != 0)
            return err;
        b = slice_of(b.ptr + SNAP_RECORD_BYTES + n, b.len - SNAP_RECORD_BYTES - n);
    }
    return 0;
}

static int take_end(struct snap_import *im, struct slice b)
{
    int err;

    if (b.len != SNAP_END_BYTES || get_u64le(b.ptr) != im->n_rows || get_u64le(b.ptr + 8) != im->n_records ||
        get_u64le(b.ptr + 16) != im->hash)
        return -EBADMSG;
    err = flush(im, true);
    if (err == 0)
        err = base_import_end(im->base, im->o.path, im->head.swept, im->head.swept_upto);
    return err ? err : 1;
}

static int take(struct snap_import *im, enum snap_kind kind, struct slice body)
{
    /* Head, rows, log, end; rows and log as often as they like, also never. */
    if (kind < im->phase || (kind == SNAP_HEAD) != (im->phase == 0) || im->phase == SNAP_END)
        return -EBADMSG;
    im->phase = kind;
    switch (kind) {
    case SNAP_HEAD: return take_head(im, body);
    case SNAP_ROWS: return take_rows(im, body);
    case SNAP_LOG: return take_log(im, body);
    case SNAP_END: return take_end(im, body);
    }
    return -EBADMSG;
}

int snap_import_feed(struct snap_import *im, struct slice chunk)
{
    int err;

    if (im->failed || chunk.len < SNAP_CHUNK_HEAD ||
        get_u32le(chunk.ptr) != crc32c(0, chunk.ptr + 4, chunk.len - 4) || get_u64le(chunk.ptr + 8) != im->n_chunks) {
        im->failed = true;
        return -EBADMSG;
    }
    im->n_chunks++;
    err = take(im, (enum snap_kind)chunk.ptr[4], slice_of(chunk.ptr + SNAP_CHUNK_HEAD, chunk.len - SNAP_CHUNK_HEAD));
    im->hash = state_hash_bytes(im->hash, chunk.ptr[4], slice_of(chunk.ptr + 4, chunk.len - 4));
    im->failed = err < 0;
    return err;
}
