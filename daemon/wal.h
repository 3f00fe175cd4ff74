/* SPDX-License-Identifier: Apache-2.0 */
/* wal.h - the write-ahead log: what this member has promised, in order.
 *
 * Promise: once wal_sync() has returned 0, all that was appended before it survives a power cut.
 * A torn tail after the last synced batch is cut on open. A bad record with a valid one after it,
 * or at or below a known commit watermark, is corruption: reported, never cut.
 * A failed write or fsync is final: the member stops (RELIABILITY A.4).
 *
 * The format stands at the top of wal.c. Owner: the WAL thread after wal_open has returned;
 * wal_read may be called from any thread (it takes a lock inside: a reader of old entries needs
 * the bytes now).
 */
#pragma once
#include "entry.h"
#include "seam.h"

struct wal;

struct wal_options {
    struct disk *disk;
    const char *dir;            /* below the disk's root */
    uint64_t segment_bytes;     /* LIMIT_WAL_SEGMENT_BYTES; the first ones are smaller */
    struct rng *rng;            /* for nonces; NULL: rng_real() */
    uint64_t cluster_id, member_id; /* must match what the log was made with */
};

/* What a log says at open. */
struct wal_state {
    uint64_t term, vote, commit; /* hard state; commit: the highest watermark seen */
    uint64_t first_index;        /* the first entry it may hold is first_index + 1 ... */
    uint64_t first_term;         /* ... and this is the term of first_index */
    uint64_t last_index, last_term;
    uint64_t cut_bytes;          /* of a torn tail; 0: none */
};

/* Make a new, empty log whose first entry will be index + 1; synced, its directory too. What a creation that was broken
 * off has left makes room; -EEXIST: a log lies there that something was appended to. */
int wal_create(const struct wal_options *o, uint64_t index, uint64_t term, const struct wal_state *hard);

/* Open and check the whole log. Returns 0; -ENOENT; -errno; or -EUCLEAN: corruption, with one
 * sentence in errbuf that says where, what, and what to do. Nothing is changed in that case. */
int wal_open(const struct wal_options *o, struct wal **ret_wal, struct wal_state *ret_state, char *errbuf,
             size_t errbuf_size);
void wal_close(struct wal *w);

/* What can still be read of a log that wal_open refuses: whose it is, and the highest term in it; zeros: nothing. */
struct wal_identity {
    uint64_t cluster_id, member_id, term;
};
void wal_salvage(struct disk *disk, const char *dir, struct wal_identity *ret);

/* w becomes the log that fresh is: who holds w goes on with it. fresh is gone, the old log's files are closed. The WAL
 * thread. */
void wal_adopt(struct wal *w, struct wal *fresh);

/* The terms of the log, as runs, for raft: fn(ctx, first index, term), ascending. */
int wal_runs(struct wal *w, int (*fn)(void *ctx, uint64_t first, uint64_t term), void *ctx);

/* One batch: cut everything from entries[0]->index on if the log has it, then append. Nothing is
 * promised before wal_sync. hard (its term and vote) may be NULL: unchanged. commit is the watermark of the
 * batch; of it only what this log holds is kept. An earlier batch not yet synced is synced first: at most one is
 * ever at risk, and recovery relies on that. Entries at or below the watermark are never cut.
 * 0; -ENOSPC before anything was written (raise NOSPACE, try again); anything else: stop. */
int wal_append(struct wal *w, struct entry *const *entries, size_t n, const struct wal_state *hard, uint64_t commit);
int wal_sync(struct wal *w);

/* A new reference to the entry, read and checked. -ENOENT: outside the log; -EUCLEAN: corrupt. */
int wal_read(struct wal *w, uint64_t index, struct entry **ret_entry);

/* Any thread. Entries above the index that it returns are in the newest segments, of so many bytes in all or a single
 * one. */
uint64_t wal_within(struct wal *w, uint64_t bytes);

/* Segments that hold only entries <= index are no longer needed. */
int wal_release(struct wal *w, uint64_t index);

/* Housekeeping between batches: prepares the next segment when the current one is half full.
 * -ENOSPC: raise NOSPACE and try again each second. */
int wal_idle(struct wal *w);

uint64_t wal_bytes(struct wal *w); /* on disk, preallocation included */
