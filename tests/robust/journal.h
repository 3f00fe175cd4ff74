/* SPDX-License-Identifier: Apache-2.0 */
/* journal.h - what a member's write-ahead log says, read by who did not write it.
 *
 * A reader of its own: it shares no line with daemon/, only the formats that are drawn at the top of daemon/wal.c and
 * of daemon/entry.h. It forgives nothing, not even a torn end: the members have been still for a while when it comes.
 */
#pragma once
#include <stdbool.h>
#include "bytes.h"

struct journal_entry {
    uint64_t index, term;
    struct slice payload; /* owned by the log; empty: of a new leader */
};

struct journal {
    bool there;                    /* there is one */
    uint64_t base;                 /* index of the last entry before the first one it has */
    struct journal_entry *entries; /* [i] has index base + 1 + i: the log as it ends */
    size_t n, room;
    struct journal_entry *cut;     /* written, and cut off again for a new leader's */
    size_t n_cut, room_cut;
    uint64_t term, vote, commit;   /* as its last batch says */
    char error[200];               /* "": it is sound */
};

/* Reads the log of the data directory of a cairnd that does not run. The caller frees. Not there is not an error, for
 * another program may have been running; journal->error tells of all else. */
void journal_read(struct journal *l, const char *data_dir);
/* Copies the payload. What the log has from that index on is cut off. */
void journal_add(struct journal *l, uint64_t index, uint64_t term, struct slice payload);
void journal_fini(struct journal *l);

static inline uint64_t journal_last(const struct journal *l) { return l->base + l->n; }
/* NULL: it has none of that index. */
static inline const struct journal_entry *journal_at(const struct journal *l, uint64_t index)
{
    return index > l->base && index <= journal_last(l) ? &l->entries[index - l->base - 1] : NULL;
}

/* Numbers of enum entry_kind in daemon/entry.h: they are on disks, and never change. */
enum journal_kind {
    JOURNAL_NOOP = 0,
    JOURNAL_PUT = 1,
    JOURNAL_DELETE = 2,
    JOURNAL_TXN = 3,
    JOURNAL_COMPACT = 4,
    JOURNAL_GRANT = 5,
    JOURNAL_REVOKE = 6,
    JOURNAL_EXPIRE = 7, /* n x u64le lease ids */
    JOURNAL_ALARM = 9,
    JOURNAL_RENAME = 13,
    JOURNAL_KINDS = 14
};

/* Of an entry's payload; ret_term: it means nothing in another one; 0: it does in any. false: it is none of ours. */
bool journal_parse(struct slice payload, enum journal_kind *ret_kind, uint64_t *ret_term, struct slice *ret_body);
