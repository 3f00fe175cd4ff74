/* SPDX-License-Identifier: Apache-2.0 */
/* tree_read.h - the questions a mount asks: enter a directory, look a name up, open for reading (A.3, A.4).
 *
 * Each takes a `struct wait`, embedded in the request that waits. done runs exactly once, perhaps before the
 * function returns, unless wait_cancel() comes first. err is 0 or a positive errno. Every question has a
 * deadline.
 *
 * Owner: the core thread.
 */
#pragma once
#include "client.h"
#include "tree.h"

struct lookup;

struct wait {
    void (*done)(struct wait *w, int err);
    int64_t deadline_ms; /* client_now_ms() when to answer at the latest; 0: the client's default from now */

    /* Filled before done(w, 0). */
    /* tree_lookup, tree_open_read: borrowed until done returns (ref it, or node_lookup it) */
    struct node *node;
    /* tree_open_read: one reference, the caller's. Its meta is what the handle is pinned to */
    struct value *value;
    bool moved;          /* tree_open_read: the tree learned a newer value by it */
    bool stale;          /* answered from memory because no quorum answered */
    /* tree_lookup, err ENOENT: the server said so just now, rather than the tree alone */
    bool authoritative;

    /* Private. */
    struct wait *next, **prev;         /* one queue; prev NULL: not queued */
    struct wait *all_next, **all_prev; /* all that wait, for deadlines */
    enum wait_kind { WAIT_ENTER, WAIT_LOOKUP_LOAD, WAIT_LOOKUP, WAIT_OPEN } kind;
    struct tree *tree;
    char *name;                        /* WAIT_LOOKUP_LOAD: the name, until its directory is loaded */
    struct lookup *lookup;             /* WAIT_LOOKUP: its question */
};

/* A request was interrupted: done will not run. What it asked goes on for others. */
void wait_cancel(struct wait *w);

/* Makes the directory loaded. READDIR at offset 0 calls it and then tree_list(). ENOENT: it is gone. Server
 * away: a directory that is loaded answers 0 with `stale`, one that is not ETIMEDOUT at the deadline. */
void tree_enter(struct tree *t, struct node *dir, struct wait *w);

/* LOOKUP: `name` in `dir` (loads the directory first). A name the tree has is answered at once. One it lacks
 * is asked of the server for READ_LOOKUP_MS, and not at all while the connection is in doubt: then ENOENT.
 * Not canonical: ENOENT. The kernel may never cache the ENOENT (A.4), but with option cached. Over-long:
 * ENAMETOOLONG. */
void tree_lookup(struct tree *t, struct node *dir, struct slice name, struct wait *w);

/* OPEN for reading, and the first step of OPEN for writing: the value of the node's key, linearizable. If it
 * taught the tree a new value, w->node->meta differs from before: the caller sends inval_inode(offset -1)
 * before its answer when the node's mod_rev moved (w->moved). ESTALE: the key is absent now (the node has
 * become a ghost). No quorum: a value in memory is answered with `stale` (unless strict), else ETIMEDOUT. */
void tree_open_read(struct tree *t, struct node *n, struct wait *w);

/* The value without asking (option cached): from memory if it is there, else like tree_open_read(). */
void tree_open_cached(struct tree *t, struct node *n, struct wait *w);

/* Sends what the questions of this turn of the loop have queued (opens of one key share a Range). The core
 * loop calls it before it sleeps. */
void tree_flush(struct tree *t);

/* Deadlines: the time at which tree_tick() wants to be called, 0: none; and the call. */
int64_t tree_deadline_ms(const struct tree *t);
void tree_tick(struct tree *t, int64_t now_ms);

enum read_mode { READ_LINEARIZABLE, READ_STRICT /* no stale answers */ };
void tree_set_mode(struct tree *t, enum read_mode mode);
