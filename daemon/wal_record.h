/* SPDX-License-Identifier: Apache-2.0 */
/* wal_record.h - the bytes of the write-ahead log, packed and judged; no files here. Layout: top of wal.c. */
#pragma once
#include "bytes.h"
#include "entry.h"

enum {
    WAL_SECTOR_BYTES = 512,
    WAL_BATCH_HEAD_BYTES = 96,
    WAL_RECORD_HEAD_BYTES = 24,
    WAL_TRAILER_BYTES = 8,
    WAL_SEGMENT_MAX_BYTES = 1 << 30,
};

struct wal_segment_head {
    uint64_t nonce, segment, size, cluster_id, member_id;
    uint64_t base_index, base_term;    /* the log's last entry when the segment was begun */
    uint64_t term, vote, commit;       /* hard state at that moment */
    uint64_t prev_batch;               /* number of the last batch before ... */
    uint32_t prev_crc;                 /* ... and the crc of its head */
};

struct wal_batch {
    uint64_t nonce, number, offset;
    uint64_t first_index, prev_term;   /* first_index 0: no entries; prev_term: of entry first_index - 1 */
    uint64_t term, vote, commit;
    uint32_t prev_crc, body_bytes, n_entries;
    uint32_t crc;                      /* of this head, once packed or parsed */
};

/* Whole sectors a batch with this body takes. */
size_t wal_batch_bytes(size_t body_bytes);
size_t wal_record_bytes(size_t payload_len);

/* dst: one sector, all of it written. */
void wal_segment_head_pack(const struct wal_segment_head *h, uint8_t *dst);

/* Appends an entry's record at dst; returns wal_record_bytes(e->len). */
size_t wal_record_pack(const struct entry *e, uint8_t *dst);

/* dst: wal_batch_bytes(b->body_bytes) bytes with the body already in place behind the head. Writes head, trailer and
 * padding, and b->crc. */
void wal_batch_pack(struct wal_batch *b, uint8_t *dst);

/* What stands somewhere in a segment. */
enum wal_found {
    WAL_GOOD,
    WAL_EMPTY,   /* the sector holds zeros only: never written, or lost */
    WAL_TORN,    /* provably a write that did not finish: sectors or an end of it are still zero */
    WAL_BAD,     /* written and since changed */
};

/* seg: the whole segment. */
enum wal_found wal_segment_head_parse(struct slice seg, struct wal_segment_head *ret_head);
/* offset: a multiple of the sector size, inside seg. nonce 0: any (heads only, see wal_find_batch). */
enum wal_found wal_batch_parse(struct slice seg, uint64_t offset, uint64_t nonce, struct wal_batch *ret_batch);
/* Only the head, and that the batch fits the segment: all that is needed to step to the next. */
bool wal_batch_head_parse(struct slice seg, uint64_t offset, uint64_t nonce, struct wal_batch *ret_batch);
/* The first offset >= from at which a batch head stands; 0: none. nonce 0: of any segment. */
uint64_t wal_find_batch(struct slice seg, uint64_t from, uint64_t nonce);

struct wal_record {
    uint64_t index, term;
    struct slice payload;
};
/* The record at p; false: it does not fit n or its crc is wrong. */
bool wal_record_parse(const uint8_t *p, size_t n, struct wal_record *ret_record);
/* Payload bytes the record head at p (WAL_RECORD_HEAD_BYTES) announces. */
uint32_t wal_record_payload_len(const uint8_t *p);

bool wal_is_zero(const uint8_t *p, size_t n);
/* Bytes up to and with the last one that is not zero. */
size_t wal_used_bytes(const uint8_t *p, size_t n);
