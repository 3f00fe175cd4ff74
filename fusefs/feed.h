/* SPDX-License-Identifier: Apache-2.0 */
/* feed.h - the watch: what happens in the store becomes changes of the tree, and changes become news for the
 * kernel.
 *
 *     watch on the prefix ---> tree (applied) ---> sink: key_event  for .etcd/events and the like, every key
 *                                                        change     for the notify layer: invalidate, then
 *                                                        inject
 *                                                        batch_end
 *
 * A batch is what one watch response holds; all of it is applied to the tree before the first `change` of it
 * is told (A.10: apply, invalidate, inject). A change names what a local program would have done to cause it:
 *
 *     PUT, version 1                      CREATE           a file appears; its directories first
 *     PUT, later, other bytes             MODIFY
 *     PUT, later, same bytes              ATTRIB if the lease differs, else MODIFY
 *     DELETE, expiry                      DELETE           then the directories it empties, inner first
 *     DELETE and PUT of the same value    MOVE             in one transaction (one revision), same lease
 *     a key becomes a directory (or back) DELETE of the one, CREATE of the other, two nodeids
 *
 * Own commits: the door that commits says feed_own_begin() before it sends and feed_own_end() with the
 * revision. Changes of that revision come with CHANGE_OWN and without CHANGE_INJECT. The watch may beat the
 * answer: while a commit of a key is under way, the changes of that key are told with CHANGE_INVALIDATE only,
 * and again with CHANGE_INJECT alone once it is known whether they are ours.
 *
 * Lost watch: opened anew from the revision after the last one seen; nothing is missed. Compacted in between:
 * a gap. Then every loaded directory is listed anew at one revision, the difference is told as changes, and
 * sink->gap is called first.
 *
 * Owner: the core thread.
 */
#pragma once
#include "client.h"
#include "tree.h"

struct feed;

enum change_kind { CHANGE_CREATE, CHANGE_MODIFY, CHANGE_ATTRIB, CHANGE_DELETE, CHANGE_MOVE };
enum change_flags {
    CHANGE_INVALIDATE = 1u << 0, /* tell the kernel: never skipped */
    CHANGE_INJECT = 1u << 1,     /* produce the inotify event, if anybody can be watching */
    CHANGE_OWN = 1u << 2,        /* made by this mount; never with CHANGE_INJECT */
    CHANGE_DIR = 1u << 3,        /* node is a directory */
    CHANGE_GAP = 1u << 4,        /* found by listing anew, not seen in the watch */
    CHANGE_REPLACED = 1u << 5,   /* MOVE onto a key that existed */
    CHANGE_LOOK = 1u << 6,       /* the notify layer's: let the kernel look, without an event */
};

/* One change. Handed over by sink->change: the notify layer owns it and frees it with change_free() on the
 * core thread. The ids, names and sizes are copies and may be read by any thread; dir and node are the core
 * thread's alone (each a reference: so a deleted node is still there to answer the injector with). */
struct change_event {
    struct change_event *next; /* free for its owner */
    enum change_kind kind;
    unsigned flags;            /* enum change_flags */
    int64_t rev;
    uint64_t dir_id, node_id, ino;
    uint64_t size;             /* CREATE, MODIFY: the new size */
    char *path;                /* of the object, from the mount's root, encoded: "app/db/host" */
    const char *name;          /* its last component, within path */
    struct node *dir, *node;   /* parent and object */
    /* MOVE: where it came from. The object keeps no identity: node is the target's. */
    uint64_t from_dir_id, from_id;
    char *from_path;
    const char *from_name;
    struct node *from_dir, *from_node;
    /* The order of injections (inject_order.h): its own. */
    uint64_t turn;
    uint32_t below;
    struct change_event *removal_next;
};
void change_free(struct tree *t, struct change_event *ev); /* NULL is fine */

/* One key's event as the watch told it, for the streams. Valid during the call. */
struct key_event {
    bool is_delete, expired; /* expired is never set: etcd does not say why */
    struct slice key, value;
    struct key_meta meta;    /* of a delete: mod_rev = the revision of the delete */
};

struct feed_sink {
    void *ctx;
    void (*key_event)(void *ctx, const struct key_event *ev); /* any may be NULL */
    void (*change)(void *ctx, struct change_event *ev);       /* NULL: the feed frees it */
    void (*batch_end)(void *ctx, int64_t rev);                /* after the changes of one batch */
    void (*gap)(void *ctx, int64_t from_rev, int64_t to_rev); /* events in (from, to] were not seen */
    void (*ready)(void *ctx);                                 /* once: the first watch stands; reads are up */
};

/* Asks for the current revision and opens the watch from the one after; goes on trying for ever. */
int feed_open(struct tree *t, struct client *c, const struct feed_sink *sink, struct feed **ret_feed);
void feed_close(struct feed *f);

/* Timers, as with the tree. */
int64_t feed_deadline_ms(const struct feed *f);
void feed_tick(struct feed *f, int64_t now_ms);

/* ---- own commits ---------------------------------------------------------------- */

/* A commit that may change `key` is about to be sent. Nests. */
void feed_own_begin(struct feed *f, struct slice key);
/* It ended. rev: its revision (then the caller has also called tree_learn_put/_delete), or 0: it changed
 * nothing, or nobody knows. For a commit of several keys, begin and end each of them with the same rev. */
void feed_own_end(struct feed *f, struct slice key, int64_t rev);

/* While a rename of a directory is under way, what the watch brings waits: the answer tells whether nodes move, and by
 * the events alone they would die and others be born. What is opened or looked up goes to the server all the same.
 * Does not nest. */
void feed_hold(struct feed *f);
void feed_release(struct feed *f);

/* ---- numbers -------------------------------------------------------------------- */

struct feed_stats {
    bool ready, watching;      /* watching: the stream stands now */
    int64_t rev;               /* of the last event applied, or the start */
    int64_t header_rev;        /* newest revision any watch answer told */
    int64_t stale_since_ms;    /* client_now_ms() when the stream broke; 0: it stands */
    uint64_t events, changes, gaps, restarts, own;
    int64_t compact_rev;       /* as far as known */
};
void feed_get_stats(const struct feed *f, struct feed_stats *ret_stats);

/* Used by tests and by the feed itself: apply one batch as if the watch had told it. */
struct Etcdserverpb__WatchResponse;
void feed_apply(struct feed *f, const struct Etcdserverpb__WatchResponse *batch);
