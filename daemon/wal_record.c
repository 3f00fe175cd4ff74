/* SPDX-License-Identifier: Apache-2.0 */
/* wal_record.c - packs the log's bytes and judges what it finds: good, empty, torn or bad.
 *
 * The layout and the reasons for its odd parts stand at the top of wal.c. Nothing here trusts a byte: parsing is
 * fuzzed (tests/fuzz/wal.c). Stateless: any thread.
 */
#include "crc32c.h"
#include "wal_record.h"

#define SEGMENT_MAGIC 0x4c41574e52494143u /* "CAIRNWAL" */
#define SEGMENT_FORMAT 1u
#define BATCH_MAGIC 0x48435442u           /* "BTCH" */
#define HEAD_END 0x5a5aa5a5u              /* no zero byte in it: a head whose end reads zero was not written whole */
#define TRAILER 0x21444e4548435442u       /* "BTCHEND!" likewise */
#define SEGMENT_HEAD_BYTES 120

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

size_t wal_batch_bytes(size_t body_bytes)
{
    return round_up(WAL_BATCH_HEAD_BYTES + body_bytes + WAL_TRAILER_BYTES, WAL_SECTOR_BYTES);
}

size_t wal_record_bytes(size_t payload_len)
{
    return round_up(WAL_RECORD_HEAD_BYTES + payload_len, 8);
}

bool wal_is_zero(const uint8_t *p, size_t n)
{
    return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

size_t wal_used_bytes(const uint8_t *p, size_t n)
{
    while (n >= WAL_SECTOR_BYTES && wal_is_zero(p + n - WAL_SECTOR_BYTES, WAL_SECTOR_BYTES))
        n -= WAL_SECTOR_BYTES;
    while (n && p[n - 1] == 0)
        n--;
    return n;
}

/* ---- segment head ------------------------------------------------------------- */

void wal_segment_head_pack(const struct wal_segment_head *h, uint8_t *dst)
{
    memset(dst, 0, WAL_SECTOR_BYTES);
    put_u64le(dst, SEGMENT_MAGIC);
    put_u32le(dst + 12, SEGMENT_FORMAT);
    put_u64le(dst + 16, h->nonce);
    put_u64le(dst + 24, h->segment);
    put_u64le(dst + 32, h->size);
    put_u64le(dst + 40, h->cluster_id);
    put_u64le(dst + 48, h->member_id);
    put_u64le(dst + 56, h->base_index);
    put_u64le(dst + 64, h->base_term);
    put_u64le(dst + 72, h->term);
    put_u64le(dst + 80, h->vote);
    put_u64le(dst + 88, h->commit);
    put_u64le(dst + 96, h->prev_batch);
    put_u32le(dst + 104, h->prev_crc);
    put_u32le(dst + 112, HEAD_END);
    put_u32le(dst + 116, HEAD_END);
    put_u32le(dst + 8, crc32c(0, dst + 12, SEGMENT_HEAD_BYTES - 12));
}

enum wal_found wal_segment_head_parse(struct slice seg, struct wal_segment_head *ret_head)
{
    const uint8_t *p = seg.ptr;

    if (seg.len < WAL_SECTOR_BYTES)
        return wal_is_zero(p, seg.len) ? WAL_EMPTY : WAL_BAD;
    if (wal_is_zero(p, WAL_SECTOR_BYTES))
        return WAL_EMPTY;
    /* A head that stops before its end and nothing after it: the first write broke off inside the sector. */
    if (wal_is_zero(p + 112, 8) && wal_is_zero(p + WAL_SECTOR_BYTES, seg.len - WAL_SECTOR_BYTES))
        return WAL_TORN;
    if (get_u64le(p) != SEGMENT_MAGIC || get_u32le(p + 8) != crc32c(0, p + 12, SEGMENT_HEAD_BYTES - 12) ||
        get_u32le(p + 12) != SEGMENT_FORMAT)
        return WAL_BAD;
    *ret_head = (struct wal_segment_head){
        .nonce = get_u64le(p + 16), .segment = get_u64le(p + 24), .size = get_u64le(p + 32),
        .cluster_id = get_u64le(p + 40), .member_id = get_u64le(p + 48), .base_index = get_u64le(p + 56),
        .base_term = get_u64le(p + 64), .term = get_u64le(p + 72), .vote = get_u64le(p + 80),
        .commit = get_u64le(p + 88), .prev_batch = get_u64le(p + 96), .prev_crc = get_u32le(p + 104),
    };
    return WAL_GOOD;
}

/* ---- records -------------------------------------------------------------------- */

static uint32_t record_crc(const uint8_t *p, size_t payload_len)
{
    uint32_t len = (uint32_t)payload_len;

    return crc32c(crc32c(0, &len, sizeof len), p + 8, WAL_RECORD_HEAD_BYTES - 8 + payload_len);
}

size_t wal_record_pack(const struct entry *e, uint8_t *dst)
{
    size_t total = wal_record_bytes(e->len), end = WAL_RECORD_HEAD_BYTES + e->len;

    put_u32le(dst, e->len);
    put_u64le(dst + 8, e->index);
    put_u64le(dst + 16, e->term);
    memcpy(dst + WAL_RECORD_HEAD_BYTES, e->payload, e->len);
    memset(dst + end, 0, total - end);
    put_u32le(dst + 4, record_crc(dst, e->len));
    return total;
}

uint32_t wal_record_payload_len(const uint8_t *p)
{
    return get_u32le(p);
}

bool wal_record_parse(const uint8_t *p, size_t n, struct wal_record *ret_record)
{
    uint32_t len;

    if (n < WAL_RECORD_HEAD_BYTES)
        return false;
    len = get_u32le(p);
    if (len > n - WAL_RECORD_HEAD_BYTES || get_u32le(p + 4) != record_crc(p, len))
        return false;
    *ret_record = (struct wal_record){.index = get_u64le(p + 8), .term = get_u64le(p + 16),
                                      .payload = slice_of(p + WAL_RECORD_HEAD_BYTES, len)};
    return true;
}

/* ---- batches ---------------------------------------------------------------------- */

/* How many bytes are not zero: 0, 1, or 2 for more. */
static int nonzero_bytes(const uint8_t *p, size_t n)
{
    int found = 0;

    for (size_t i = 0; i < n && found < 2; i += 8) {
        if (get_u64le(p + i) == 0)
            continue;
        for (size_t k = i; k < i + 8; k++)
            found += p[k] != 0;
    }
    return found > 2 ? 2 : found;
}

/* Sectors of the batch, after its first, in which at most `most` bytes are not zero. */
static uint32_t sparse_sectors(const uint8_t *batch, size_t total, int most)
{
    uint32_t n = 0;

    for (size_t at = WAL_SECTOR_BYTES; at < total; at += WAL_SECTOR_BYTES)
        n += nonzero_bytes(batch + at, WAL_SECTOR_BYTES) <= most;
    return n;
}

void wal_batch_pack(struct wal_batch *b, uint8_t *dst)
{
    size_t total = wal_batch_bytes(b->body_bytes), end = WAL_BATCH_HEAD_BYTES + b->body_bytes;

    put_u64le(dst + end, TRAILER);
    memset(dst + end + WAL_TRAILER_BYTES, 0, total - end - WAL_TRAILER_BYTES);
    put_u32le(dst, BATCH_MAGIC);
    put_u64le(dst + 8, b->nonce);
    put_u64le(dst + 16, b->number);
    put_u64le(dst + 24, b->offset);
    put_u32le(dst + 32, b->prev_crc);
    put_u32le(dst + 36, b->body_bytes);
    put_u32le(dst + 40, crc32c(0, dst + WAL_BATCH_HEAD_BYTES, b->body_bytes));
    put_u32le(dst + 44, b->n_entries);
    put_u64le(dst + 48, b->first_index);
    put_u64le(dst + 56, b->prev_term);
    put_u64le(dst + 64, b->term);
    put_u64le(dst + 72, b->vote);
    put_u64le(dst + 80, b->commit);
    put_u32le(dst + 88, sparse_sectors(dst, total, 1));
    put_u32le(dst + 92, HEAD_END);
    b->crc = crc32c(0, dst + 8, WAL_BATCH_HEAD_BYTES - 8);
    put_u32le(dst + 4, b->crc);
}

bool wal_batch_head_parse(struct slice seg, uint64_t offset, uint64_t nonce, struct wal_batch *ret_batch)
{
    const uint8_t *p = seg.ptr + offset;
    struct wal_batch b;

    if (seg.len < WAL_SECTOR_BYTES || offset > seg.len - WAL_SECTOR_BYTES || get_u32le(p) != BATCH_MAGIC ||
        get_u32le(p + 92) != HEAD_END || get_u32le(p + 4) != crc32c(0, p + 8, WAL_BATCH_HEAD_BYTES - 8))
        return false;
    b = (struct wal_batch){
        .nonce = get_u64le(p + 8), .number = get_u64le(p + 16), .offset = get_u64le(p + 24),
        .prev_crc = get_u32le(p + 32), .body_bytes = get_u32le(p + 36), .n_entries = get_u32le(p + 44),
        .first_index = get_u64le(p + 48), .prev_term = get_u64le(p + 56), .term = get_u64le(p + 64),
        .vote = get_u64le(p + 72), .commit = get_u64le(p + 80), .crc = get_u32le(p + 4),
    };
    if (b.offset != offset || (nonce && b.nonce != nonce) || b.body_bytes % 8 != 0 ||
        wal_batch_bytes(b.body_bytes) > seg.len - offset)
        return false;
    *ret_batch = b;
    return true;
}

enum wal_found wal_batch_parse(struct slice seg, uint64_t offset, uint64_t nonce, struct wal_batch *ret_batch)
{
    const uint8_t *p = seg.ptr + offset, *trailer;
    struct wal_batch b;
    size_t total;

    if (wal_is_zero(p, WAL_SECTOR_BYTES))
        return WAL_EMPTY;
    if (!wal_batch_head_parse(seg, offset, nonce, &b)) {
        /* A sector is written whole or not at all, so a wrong head was changed; but allow for a write that broke off
         * inside it, byte by byte: then its end and all that follows are zero. */
        return wal_is_zero(p + 92, seg.len - offset - 92) ? WAL_TORN : WAL_BAD;
    }
    trailer = p + WAL_BATCH_HEAD_BYTES + b.body_bytes;
    if (get_u64le(trailer) == TRAILER && get_u32le(p + 40) == crc32c(0, p + WAL_BATCH_HEAD_BYTES, b.body_bytes)) {
        *ret_batch = b;
        return WAL_GOOD;
    }
    /* Its end is missing and nothing lies behind (a sector of elsewhere would). Or more sectors read as zeros than were
     * written with (nearly) nothing in them: those never reached the disk. One changed byte cannot do that, which is
     * why the head counts sectors with up to one non-zero byte. */
    total = wal_batch_bytes(b.body_bytes);
    if (wal_is_zero(trailer, (size_t)(seg.ptr + seg.len - trailer)) || sparse_sectors(p, total, 0) > get_u32le(p + 88))
        return WAL_TORN;
    return WAL_BAD;
}

uint64_t wal_find_batch(struct slice seg, uint64_t from, uint64_t nonce)
{
    struct wal_batch b;

    for (uint64_t at = round_up(from, WAL_SECTOR_BYTES); at + WAL_SECTOR_BYTES <= seg.len; at += WAL_SECTOR_BYTES) {
        if (wal_batch_head_parse(seg, at, nonce, &b))
            return at;
    }
    return 0;
}
