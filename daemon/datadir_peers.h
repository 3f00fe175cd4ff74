/* SPDX-License-Identifier: Apache-2.0 */
/* datadir_peers.h - DIR/PEERS: who the members are and where, as this member knew it last.
 *
 * A hint, and only one: whom to ask when the store, which says it too, is damaged, and the flags do not say it or are
 * old. Nothing is decided by it: who is a member, and what is a quorum, say the store and the log; whoever is asked
 * answers for its cluster, and each connection is checked for both ids as ever. So a file that is not there, is
 * damaged, or has another format means "not known", and is no error. Its ids stand in for those of a log whose heads
 * are damaged together with the store.
 *
 * Owner: the main thread (member_note.c writes, bootstrap_ask.c reads). Apply's must not wait for a disk.
 */
#pragma once
#include "datadir.h"
#include "roster.h"

struct datadir_peers {
    uint64_t cluster_id, member_id; /* of this member */
    const struct roster_known *members; /* this one too */
    size_t n;
};

/* 0: it says just that, durably; it is written only when it says something else. A URL that has a control character,
 * and what does not fit into LIMIT_PEERS_FILE_BYTES, is left out. -errno: it says what it said before, or nothing. */
int datadir_write_peers(const struct datadir *d, const struct datadir_peers *p);
/* All of *ret_peers lies in the arena. 0; else not known: -ENOENT there is none, -EUCLEAN it is damaged,
 * -EPROTONOSUPPORT its format is not ours, -ENOMEM, -errno. */
int datadir_read_peers(const struct datadir *d, struct arena *a, struct datadir_peers *ret_peers);
