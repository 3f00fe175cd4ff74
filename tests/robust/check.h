/* SPDX-License-Identifier: Apache-2.0 */
/* check.h - is a history one that a correct etcd could have produced?
 *
 * The revision is the anchor: every answer says at which revision it is true, so the committed order is known and
 * nothing has to be searched for. The order comes from two witnesses that must agree: a watch of everything from
 * revision 1, and the members' write-ahead logs; all else is compared with it. In O(n log n):
 *
 *   order      revisions follow each other without a gap; create, mod and version are what the order makes them
 *   writes     what was acknowledged stands at its revision with exactly its effect; what was refused nowhere; what
 *              has no answer once or never, and not before it was asked for
 *   real time  what began after something had been seen at revision r has a higher one, or for a read no lower one
 *   reads      equal the state at their revision, serializable ones too, which never go back on one member
 *   watches    filter, ordered, unique, atomic, reliable, resumable, progress, prev_kv (check_watch.c)
 *   leases     keys go with their lease and only then, never early (check_lease.c)
 *   the end    all members have the same hash
 *   logs       each is sound, no two contradict each other, what is committed is on a majority; done again, entry by
 *              entry, they come to the witness' order; what was acknowledged is in them once (check_journal.c)
 */
#pragma once
#include "history.h"
#include "journal.h"

struct check_facts {
    uint64_t revisions, writes, refused, unknown, unknown_found, reads, serializable, watches, events, progress;
    uint64_t leases_expired, leases_revoked, keepalives, compactions;
    uint64_t renames, renames_none; /* answered: done; nothing was changed */
    uint64_t entries, entries_from, entries_cut, entries_revs; /* of the logs: how many, from which index; revisions */
};

/* The number of problems; each is told to `out` (the first ones of many). logs: of all members, or NULL. */
unsigned history_check(const struct history *h, const struct journal *logs, int n_logs, FILE *out,
                       struct check_facts *ret_facts);
