/* SPDX-License-Identifier: Apache-2.0 */
/* store.h - layers and views: how any thread reads one revision without a lock.
 *
 * layers = {base, frozen delta or none, live delta}, immutable, behind one atomic pointer that only
 * apply stores. A view pins layers in its thread's slot and reads an LMDB snapshot plus the deltas, at
 * a revision. The protocol, step by step, stands at the top of store.c (DESIGN section 4).
 *
 * Reading side: any thread with a slot of its own. Writing side: the apply thread.
 */
#pragma once
#include "base.h"
#include "delta.h"

struct store;
struct slot; /* one reading thread's: pin, LMDB read txn, the base it belongs to */

enum { STORE_SLOTS_MAX = 120 }; /* reading threads; base_options.readers_max must be above it */

/* ---- reading ---- */
struct slot *slot_new(struct store *s); /* NULL: no memory or too many (STORE_SLOTS_MAX) */
void slot_free(struct store *s, struct slot *sl);

struct view {
    struct store *store;
    struct slot *slot;
    struct base_reader *reader;        /* the slot's */
    const struct delta *frozen, *live; /* frozen may be NULL */
    const struct delta *scratch;       /* NULL, or a txn's own changes on top (apply only) */
    int64_t compact_rev, rev;          /* C and R: compact_rev <= rev */
};

/* 0 or -errno. Must be closed before any wait; one at a time in a slot. */
int view_open(struct store *s, struct slot *sl, struct view *ret_view);
void view_close(struct view *v); /* takes a closed one */

/* The key's value as of rev (c <= rev; above v->rev only for apply, whose view outlives what it publishes, and for
 * a scratch). ERR_KEY_NOT_FOUND. Slices live until view_close, or in a; or, the key, as long as the one asked for. */
int view_get(struct view *v, struct slice key, int64_t rev, unsigned base_flags, struct arena *a,
             struct change *ret);

/* Live keys in [from, end) as of rev, ascending. end.ptr NULL: no upper end. */
struct view_cursor;
int view_cursor_new(struct view *v, struct slice from, struct slice end, int64_t rev, unsigned base_flags,
                    struct view_cursor **ret_cur);
void view_cursor_free(struct view_cursor *cur);
/* 0, or ERR_KEY_NOT_FOUND: the end. Slices live until the next call (key), view_close (body), or in a. from and end
 * are the caller's until the cursor is freed. */
int view_cursor_next(struct view_cursor *cur, struct arena *a, struct change *ret);
void view_cursor_set_flags(struct view_cursor *cur, unsigned base_flags); /* from the next row on */

/* Every change (tombstones too) with from <= rev.main <= to, ascending by rev, none above v->rev. The change lives
 * during fn. A non-zero fn ends the scan and is returned. */
int view_log_scan(struct view *v, int64_t from_main, int64_t to_main, struct arena *a,
                  int (*fn)(void *ctx, const struct change *), void *ctx);

/* The live keys of a lease as of what was published last, sorted by key; slices in a. */
int view_lease_keys(struct view *v, int64_t lease, struct arena *a, struct slice **ret_keys, size_t *ret_n);

/* Rows of a small table: base and deltas merged, in no order. */
int view_row_scan(struct view *v, enum table t, int (*fn)(void *ctx, struct slice id, struct slice value),
                  void *ctx);

/* Any thread: what apply last published. */
int64_t store_revision(const struct store *s);
int64_t store_compact_revision(const struct store *s);
uint64_t store_applied(const struct store *s);
/* How often another state has taken the place of all there was; it moves before a view can show the new one. */
uint64_t store_epoch(const struct store *s);

/* Any thread: base has answered -EUCLEAN, or what was read contradicts itself (where: a literal, or copied before this
 * returns). Whoever gave store_on_damage is told, on this thread, which may never return from it; only of the first
 * sighting in a state. */
void store_damaged(struct store *s, const char *where);
/* Before other threads use the store. */
void store_on_damage(struct store *s, void (*fn)(void *ctx, const char *where), void *ctx);

/* ---- writing: apply ---- */
int store_new(struct base *b, struct store **ret_store); /* on success takes the base; live delta empty */
void store_free(struct store *s);                        /* no view may be open; closes the base */
struct delta *store_live(struct store *s);
struct delta *store_frozen(struct store *s); /* NULL: none */
struct base *store_base(struct store *s);    /* also the flush thread, which knows when it may change */
/* Publish, with release, after the inserts of an entry: C, then R, then the applied index, so that who waited for
 * an index reads at a revision that has it. */
void store_publish(struct store *s, uint64_t applied_index, int64_t compact_rev, int64_t revision);
/* Seal the live delta and start a new one; frozen must be NULL. The sealed one goes to the flush thread. */
int store_freeze(struct store *s, const struct seal *seal, struct delta **ret_frozen);
/* Flush has committed the frozen delta. */
void store_flushed(struct store *s);
/* Frees replaced layers that nobody pins, and closes a replaced base. Call after a change and on a timer. Returns how
 * many still wait. */
size_t store_reclaim(struct store *s);
/* A compacted copy in place of the base it was copied from: it holds the very same, so the deltas stay. No flush or
 * sweep between the copy and this. The old directory may be removed at once: its files live until they are closed. */
int store_swap_base(struct store *s,
                    struct base *b); /* -EBUSY: the base before is still being read; try again */
/* Another state in place of all there is (a snapshot installed): the deltas go; its R and C are published with it.
 * No flush may be running. -EBUSY as above. */
int store_replace_base(struct store *s, struct base *b, int64_t compact_rev, int64_t revision,
                       uint64_t applied_index);
