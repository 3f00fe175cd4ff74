/* SPDX-License-Identifier: Apache-2.0 */
/* wal_impl.h - what wal.c (appending, reading), wal_segment.c (segments) and wal_open.c (recovery) share. */
#pragma once
#include <pthread.h>
#include "wal.h"
#include "wal_record.h"

#define WAL_PATH_MAX 256

/* A segment in use. Its entries are [first, first + n): what later batches replaced is no longer counted. */
struct wal_segment {
    struct disk_file *file;
    uint64_t number, size, nonce;
    uint64_t used;       /* offset of the next batch */
    uint64_t base_index; /* of its head: no entry before this segment lies above it */
    uint64_t first;
    uint32_t n, cap;
    uint32_t *offsets;   /* of the entries' records */
    uint32_t refs;       /* the log's, and of readers between lock and unlock */
};

/* Entries from first on, to the next run's, have this term. */
struct wal_run {
    uint64_t first, term;
};

struct wal {
    struct disk *disk;
    char dir[WAL_PATH_MAX];
    struct wal_options options;

    /* The WAL thread's own. */
    bool dirty;          /* a batch was written and not yet synced */
    bool failed;         /* a write or sync failed: nothing is promised any more */
    uint64_t last_batch; /* number, and crc of the head: the chain */
    uint32_t last_crc;
    uint8_t *buf;        /* the batch being packed */
    size_t buf_size;
    struct wal_segment *next; /* being prepared; NULL: not begun */
    uint64_t next_ready;      /* bytes of it that are zero-filled and synced */
    bool next_named;          /* all are, and it has the name of a segment */

    /* protected by mu: written by the WAL thread, read by wal_read from any. A mailbox would not do: a reader of old
     * entries needs the bytes now. */
    pthread_mutex_t mu;
    struct wal_segment **segments; /* oldest first; the newest is appended to */
    size_t n_segments, cap_segments;
    struct wal_run *runs;
    size_t n_runs, cap_runs;
    struct wal_state state;
};

/* wal_segment.c */
void wal_segment_path(const struct wal *w, uint64_t number, char path[WAL_PATH_MAX + 32]);
/* Of the file that is to be the next segment, while it may hold anything. */
void wal_next_path(const struct wal *w, char path[WAL_PATH_MAX + 32]);
int wal_next_remove(struct wal *w); /* what an earlier process has left of it; no error if nothing */
void wal_segment_unref(struct wal *w, struct wal_segment *s);
int wal_segment_add(struct wal *w, struct wal_segment *s); /* -ENOMEM */
uint64_t wal_nonce_new(struct wal *w); /* never 0 */
struct wal_segment *wal_newest(const struct wal *w);
/* Makes the prepared segment the newest one, for a batch of so many bytes. -ENOSPC: the log is as it was; all else ends
 * it. Its head goes out with its first batch. */
int wal_roll(struct wal *w, size_t batch_bytes);
uint64_t wal_term_at(const struct wal *w, uint64_t index); /* first_index <= index <= last_index */
/* Room for n more entries and one more run, so that what follows a write cannot fail. */
int wal_reserve(struct wal *w, size_t n);
/* The log now ends before index; prev_term: of index - 1, used when index <= first_index. mu is held. */
void wal_cut(struct wal *w, uint64_t index, uint64_t prev_term);
/* Notes one entry, the next one, in the newest segment. Reserved before. mu is held. */
void wal_note(struct wal *w, uint64_t index, uint64_t term, uint32_t offset);
