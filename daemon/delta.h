/* SPDX-License-Identifier: Apache-2.0 */
/* delta.h - all that apply has changed since the last freeze, in memory.
 *
 * One arena of mmap'd chunks holds the changes, in an ordered map by (key, rev descending) and in an
 * array by rev; for each lease the changes that attach to it; and every small-table row written.
 *
 * Writer: apply only, until sealed. Readers: any thread, lock-free (release on link, acquire on
 * read); they ignore what is above the revision they read at. No change is ever overwritten or
 * taken back. Slices handed out live as long as the delta.
 */
#pragma once
#include <stdatomic.h>
#include "change.h"

struct delta;

/* The small tables: rows of a few hundred bytes. Values are on disk: never renumber. */
enum table { TABLE_LEASE = 1, TABLE_AUTH = 2, TABLE_ALARM = 3, TABLE_MEMBER = 4 };

/* What a sealed delta says of the moment it was sealed; flush writes it into base's meta. */
struct seal {
    uint64_t applied_index, applied_term;
    int64_t revision, compact_revision; /* R, C; C is -1 before the first compaction */
    int64_t key_count;
    uint64_t state_hash;
    struct slice conf; /* raft configuration, encoded by turn.c; owned by the delta */
};

struct delta *delta_new(void); /* NULL: no memory */
void delta_free(struct delta *d);

/* ---- the writer ---- */
/* Copies key and body. -ENOMEM. rev must be above every rev in d. */
int delta_put(struct delta *d, const struct change *c);
/* value.ptr NULL: the row is deleted. The last image wins. */
int delta_row(struct delta *d, enum table t, struct slice id, struct slice value);
void delta_seal(struct delta *d, const struct seal *s);
const struct seal *delta_sealed(const struct delta *d); /* NULL: not sealed */
/* Empties a delta no reader can see (a txn's scratch), keeping its first chunk. */
void delta_reset(struct delta *d);

size_t delta_bytes(const struct delta *d); /* of the arena */
size_t delta_keys(const struct delta *d);  /* distinct */
size_t delta_changes(const struct delta *d);
size_t delta_rows(const struct delta *d);

/* ---- readers ---- */
/* The newest change of key with rev.main <= rev_max; NULL: none. */
const struct change *delta_find(const struct delta *d, struct slice key, int64_t rev_max);

/* By key, ascending; of each key the newest change first. */
struct delta_cursor {
    const struct delta *d;
    const void *node;
};
/* The first change of the first key >= from (> from when after). NULL: none. */
const struct change *delta_seek(struct delta_cursor *cur, const struct delta *d, struct slice from,
                                bool after);
const struct change *
delta_next(struct delta_cursor *cur); /* the next change: same key and older, or next key */
const struct change *delta_next_key(struct delta_cursor *cur); /* the newest change of the next key */
/* The newest change of the cursor's key with rev.main <= rev_max; NULL: none. Does not move. */
const struct change *delta_cursor_find(const struct delta_cursor *cur, int64_t rev_max);

/* By rev, ascending: position of the first change with rev.main >= main; delta_changes() if none. */
size_t delta_lower_bound(const struct delta *d, int64_t main);
const struct change *delta_at(const struct delta *d, size_t position); /* position < delta_changes() */

/* The changes that attach a key to this lease, newest first; a change counts only if it is its key's newest with
 * rev.main <= rev_max. A non-zero fn ends it and is returned. */
int delta_lease_changes(const struct delta *d, int64_t lease, int64_t rev_max,
                        int (*fn)(void *ctx, const struct change *), void *ctx);

/* Last image of each row written, by table and id; value.ptr NULL: deleted. */
int delta_row_scan(const struct delta *d,
                   int (*fn)(void *ctx, enum table t, struct slice id, struct slice value), void *ctx);
/* The last image of one row. False: no row was written under this id; ret_value->ptr NULL: deleted. */
bool delta_row_find(const struct delta *d, enum table t, struct slice id, struct slice *ret_value);
