/* SPDX-License-Identifier: Apache-2.0 */
/* base.h - the store on disk: LMDB behind one door.
 *
 * base is at every moment the exact state at its applied index, except that the sweep may lag.
 * Rows, the P/L pointers and why lookups never step on a swept record: top of base.c.
 * LMDB's codes are translated here: -ENOSPC (also MAP_FULL), -EUCLEAN (a crc, a missing record,
 * LMDB's own CORRUPTED/PAGE_NOTFOUND), -EIO, -ENOMEM.
 *
 * Threads: readers each with a base_reader of their own; flush and sweep only from the flush thread.
 */
#pragma once
#include "change.h"
#include "delta.h"

struct base;

struct base_options {
    const char *path;        /* the directory base-N, exists */
    uint64_t map_bytes;      /* reserved once; 1 TiB */
    unsigned readers_max;
    bool no_sync;            /* tests and the simulator only */
};

struct base_meta {
    uint64_t cluster_id, member_id;
    struct seal seal;        /* as of the applied index; conf lives as long as the reader's txn */
    int64_t swept;           /* S: the sweep goes on from this revision, inclusive ... */
    uint32_t swept_sub;
    int64_t swept_upto;      /* ... and what is before S was swept as of this compaction */
};

/* A fresh base has revision 1, compact revision -1, applied index 0. */
int base_create(const struct base_options *o, uint64_t cluster_id, uint64_t member_id, struct slice conf);
int base_open(const struct base_options *o, struct base **ret_base);
void base_close(struct base *b); /* no reader may be open */

/* ---- reading ---- */
struct base_reader;                                              /* one LMDB read txn, one thread at a time */
int base_reader_new(struct base *b, struct base_reader **ret_r); /* not yet reading */
int base_reader_renew(struct base_reader *r);                    /* begin reading the newest commit */
void base_reader_reset(struct base_reader *r);
void base_reader_free(struct base_reader *r);
int base_reader_meta(struct base_reader *r, struct base_meta *ret_meta);

enum base_flags { BASE_NO_BODY = 1u << 0 /* change.body is not wanted */ };

/* lookup(key, rev): the key's value as of rev_max, rev_max >= compact_rev. ERR_KEY_NOT_FOUND when absent or
 * deleted at rev_max. Slices of ret point into the map (until reset) or into a (bodies of several parts;
 * a full arena: ERR_ARENA_FULL). ret->key is the key asked for. */
int base_get(struct base_reader *r, struct slice key, int64_t rev_max, int64_t compact_rev, unsigned flags,
             struct arena *a, struct change *ret);

/* Keys in order. The key slice lives until the next move. */
struct base_cursor;
int base_cursor_new(struct base_reader *r, struct base_cursor **ret_cur);
void base_cursor_free(struct base_cursor *cur);
/* To the first key >= from (> from when after). 0, or ERR_KEY_NOT_FOUND: no more keys. */
int base_cursor_seek(struct base_cursor *cur, struct slice from, bool after);
int base_cursor_next(struct base_cursor *cur);
struct slice base_cursor_key(const struct base_cursor *cur);
/* base_get of the key the cursor is at, without a second descent. */
int base_cursor_get(struct base_cursor *cur, int64_t rev_max, int64_t compact_rev, unsigned flags, struct arena *a,
                    struct change *ret);

/* Changes by rev: calls fn for each with from <= rev and rev.main <= to_main, ascending. The change lives during
 * fn. A non-zero fn ends the scan and is returned. */
int base_log_scan(struct base_reader *r, struct rev from, int64_t to_main, struct arena *a,
                  int (*fn)(void *ctx, const struct change *), void *ctx);

/* The keys whose newest change in base carries this lease; the change lives during fn; no body. */
int base_lease_scan(struct base_reader *r, int64_t lease, struct arena *a,
                    int (*fn)(void *ctx, const struct change *), void *ctx);

int base_row_get(struct base_reader *r, enum table t, struct slice id, struct slice *ret_value); /* -ENOENT */
int base_row_scan(struct base_reader *r, enum table t, int (*fn)(void *ctx, struct slice id, struct slice value),
                  void *ctx);

/* ---- writing: the flush thread ---- */
/* One LMDB txn, committed with full sync: everything in d and its seal. -ENOSPC: aborted, nothing changed,
 * try again. Anything else: the member stops. */
int base_flush(struct base *b, const struct delta *d);

/* One batch of the sweep (at most ~2,048 pages). 1: there is more to do, 0: done up to C of base's meta, or -errno.
 * ret_removed counts the records removed (may be NULL). */
int base_sweep(struct base *b, uint64_t *ret_removed);

/* ---- housekeeping ---- */
int base_sizes(struct base *b, uint64_t *ret_file_bytes, uint64_t *ret_in_use_bytes);
int base_check_readers(struct base *b); /* clears slots of dead processes; never blocks */
/* Copies base compacted into path (a directory that exists): defragmentation. */
int base_copy(struct base *b, const char *path);
/* Any thread: the copy under way, and any later one, ends soon with -ECANCELED; what it has written stays. */
void base_copy_give_up(struct base *b);
/* A base that base_flush has filled, with no_sync, from another member's records is whole: it also takes over how far
 * that member's sweep was, and all of it is on disk when this returns 0. path: its directory. */
int base_import_end(struct base *b, const char *path, struct rev swept, int64_t swept_upto);
/* Reads every row of every table and checks them against each other; time grows with the store. 0, or -EUCLEAN with
 * a word on the first damage in ret_what (may be NULL; a literal). Not while flush or sweep run. */
int base_check(struct base *b, const char **ret_what);

/* The same a little at a time while base lives on, with the counts if nothing is committed meanwhile: up to n rows a
 * call, each in a read txn of its own. 1: more to do; 0: the pass is over, the next call begins another; -EUCLEAN with
 * a word as above, or -errno. The flush thread; base may be another copy of the same from call to call. */
struct base_scrub;
struct base_scrub *base_scrub_new(void); /* NULL: no memory */
void base_scrub_free(struct base_scrub *s);
int base_scrub(struct base *b, struct base_scrub *s, unsigned n, const char **ret_what);

/* The base at o->path, which this process has not opened, read so by a child process, which may crash on it. 0;
 * -EUCLEAN: damaged, or the child crashed; -EIO, -errno: it could not be read. Neither 0: a word on it in ret_what. */
int base_check_apart(const struct base_options *o, char *ret_what, size_t size);

/* ---- a crash inside LMDB (base_guard.c) ---- */
void base_guard_init(void);
/* In the handler of a fatal signal, with its ucontext_t: whether it struck inside LMDB or on its map.
 * Async-signal-safe. */
bool base_guard_struck(int sig, const void *ucontext);
