/* SPDX-License-Identifier: Apache-2.0 */
/* tree.h - the nodes: what this mount knows of the keys below its prefix, shaped as files and directories.
 *
 * A node stands for one key as one kind:
 *
 *     NODE_FILE   key P/a/b, shown as the file a/b
 *     NODE_DIR    the keys that begin with P/a/b/, shown as the directory a/b (the root: the whole prefix)
 *     NODE_VALUE  key P/a/b while a/b is a directory, shown as the file a/b/.value   (directory wins, A.2)
 *
 * Its nodeid is never used for another key or kind. A node stays while the kernel knows it (lookups),
 * somebody holds it (node_ref) or it is `present`; deleted and made again as the same kind it is the same
 * node. A node that is not present is a ghost: OPEN of it answers ESTALE.
 *
 * Names in the tree are encoded names (codec.h), so .value cannot meet a key's component.
 *
 * A directory is UNLOADED until it is first entered; then its children are listed at one revision and from
 * there kept up by the watch (feed.h), until memory is short and it is unloaded again (tree_unload.c). A node whose
 * parent is not loaded does not exist. Markers (key "dir/" with empty value) are no child: they set dir->marker.
 *
 * tree.c       nodes, lookup counts
 * tree_names.c names, keys, attributes, listings
 * tree_value.c values, times
 * tree_apply.c what a change of one key does to the tree (used by the feed, by loads and by own commits)
 * tree_unload.c forgetting listings
 * tree_move.c  a directory renamed by this mount keeps its nodes
 * tree_load.c  listing a directory from the server
 * tree_lookup.c entering a directory, LOOKUP (tree_read.h)
 * tree_read.c  OPEN; all that wait, and their deadlines (tree_read.h)
 *
 * Owner: the core thread, all of it. Nothing here waits.
 */
#pragma once
#include <sys/stat.h>
#include <time.h>

#include "bytes.h"
#include "limits.h"

struct change_event;
struct client;
struct feed;
struct tree;
struct dir_load;
struct read;

#define TREE_ROOT_ID 1
/* Nodeids of the tree lie below this; the rest of the 64 bits is free for .etcd and the overlay. */
#define TREE_NODEID_END (1ull << 62)

enum node_kind { NODE_FILE, NODE_DIR, NODE_VALUE };
enum dir_state { DIR_UNLOADED, DIR_LOADING, DIR_LOADED };

/* What etcd says of one key. All 0: no such key known. */
struct key_meta {
    int64_t create_rev, mod_rev, version, lease;
    uint64_t size, hash; /* of the value; hash: value_hash(), tells a lease-only change from a new value */
};

/* The bytes of one key at one revision: immutable, counted. Handles pin one of these. */
struct value {
    uint32_t refs;
    struct key_meta meta;
    uint8_t bytes[]; /* meta.size */
};

struct dir {
    enum dir_state state;
    /* emptied by this mount itself, or made with dirmarkers=off: stays until rmdir or forgotten */
    bool lingers;
    bool moved;              /* renamed by this mount: it is elsewhere now */
    int64_t rev;             /* LOADED: complete at least up to here */
    int64_t used_ms;         /* when it was last entered, or a name in it asked for */
    int64_t n_keys;          /* UNLOADED: how many keys lie below, -1 unknown */
    /* learned ahead of the watch, from an answer of this revision: CREATE is still to be told */
    int64_t announce_rev;
    int64_t placed_rev;      /* renamed to here at this revision: older listings do not know it */
    struct key_meta marker;  /* of key "dir/"; mod_rev 0: no marker */
    bool was_marked;         /* it had one: what is in it may be about to go too */
    struct node *children;   /* all nodes in it, ghosts too; linked by node->next */
    uint32_t n_present;      /* of them present, .value aside */
    struct timespec mtime;   /* moves with every change of its names */
    struct dir_load *load;   /* LOADING, or LOADED and being listed anew after a gap */
    /* inject_order.c's: injections under way in it and below; of those, its own removals that wait for some */
    uint32_t n_injections;
    struct change_event *removals;
};

struct node {
    uint64_t nodeid;
    uint32_t generation;
    enum node_kind kind;
    bool present;
    bool retired;            /* a key made there again gets another node (tree_retire) */
    uint64_t nlookup;        /* the kernel's count (A.10: 0 proves that nobody watches it) */
    uint32_t refs;           /* node_ref; children count too */
    struct node *parent;     /* NULL: the root */
    struct node *next, *prev;           /* siblings */
    struct node *hash_id, *hash_name;   /* chains of the tree's two tables */
    uint64_t ino;            /* st_ino: stable hash of kind and key, never 0 */
    uint64_t old_ino;        /* before it was moved: the kernel's until it asks again; 0: never moved */
    struct timespec mtime, btime;       /* files: of meta.mod_rev and meta.create_rev */
    struct key_meta meta;    /* files; of a ghost, mod_rev is the revision at which it was absent */
    struct value *value;     /* the value of meta.mod_rev, when in memory; may be NULL */
    struct node *lru_next, *lru_prev;
    struct read *unsent;     /* a Range of this key that opens can still share */
    struct node *grave_next;
    bool buried;             /* in the tree's list of graves */
    uint64_t seen;           /* serial of the last listing that found it */
    struct dir *dir;         /* NODE_DIR */
    uint64_t notified_rev;   /* free for the notify layer */
    int64_t read_ms, read_rev; /* when an open last took a value, and which (0: never) */
    void *ext;               /* free for ops.c (its handles of this node); must be NULL when the node dies */
    uint32_t name_len;
    char *name;              /* encoded, terminated; "" for the root; at first: */
    char first_name[];
};

struct tree_config {
    struct slice prefix;     /* copied */
    mode_t file_mode, dir_mode; /* 0644, 0755 after umask options */
    uid_t uid;
    gid_t gid;
    uint32_t name_max;       /* longest encoded name the kernel takes; 0: asks uname */
};

/* Starts empty: the root alone, unloaded. client may be NULL in tests that never load. */
int tree_open(const struct tree_config *cfg, struct client *c, struct tree **ret_tree);
void tree_close(struct tree *t);

struct node *tree_root(struct tree *t);
struct slice tree_prefix(const struct tree *t);
struct node *tree_node(struct tree *t, uint64_t nodeid); /* NULL: no such node (any more) */

/* ---- life --------------------------------------------------------------------- */

/* The kernel learned of the node (LOOKUP, CREATE, MKNOD, READDIRPLUS answered with it). */
void node_lookup(struct tree *t, struct node *n);
void node_forget(struct tree *t, struct node *n, uint64_t nlookup);
/* Keeps the node (not the key) alive; may be NULL. */
struct node *node_ref(struct node *n);
void node_unref(struct tree *t, struct node *n);

/* ---- keys and names ------------------------------------------------------------ */

/* The key of the node: of a directory the part all its keys begin with, ending in '/' (root: the prefix,
 * perhaps ""). malloc'd. -ENOMEM. */
int node_key(const struct tree *t, const struct node *n, uint8_t **ret_key, size_t *ret_len);
/* The key that `name` in `dir` would have: of a file, or (is_dir) the marker key ending in '/'. ".value"
 * gives the directory's own key. Returns 0, -EINVAL (not canonical), -ENAMETOOLONG, -ENOMEM, -EPERM (.value
 * in the root). */
int node_child_key(const struct tree *t, const struct node *dir, struct slice name, bool is_dir,
                   uint8_t **ret_key, size_t *ret_len);
/* The path from the mount's root, without leading '/'; "" for the root. malloc'd; NULL: no memory. */
char *node_path(const struct node *n);

/* The present node of that name, or NULL: unknown here (the directory may be unloaded), or truly absent. */
struct node *tree_child(struct tree *t, const struct node *dir, struct slice name);
/* The node of that name and kind, ghost or present; made (as a ghost) if there is none. NULL: no memory. For
 * answering the injector in the old world, and for a name about to be created. Borrowed: it lives until the
 * core thread returns to its loop, unless ref'd or looked up. */
struct node *tree_ghost(struct tree *t, struct node *dir, struct slice name, enum node_kind kind);

/* A ghost that must never come to stand for a new key of its name, because of what the kernel did to its inode: a
 * file that was renamed has it under the new name until that is invalidated; a directory that was removed is
 * marked dead for good, and nothing can be made in it. Present nodes stay as they are. */
void tree_retire(struct node *n);
/* A ghost of its own that only looks like n: for an injector that removes what is there again. NULL: no memory. */
struct node *tree_twin(struct tree *t, const struct node *n);
/* The kernel marked the directory's inode dead, but the directory exists: another node stands for it from here,
 * to be listed when it is entered. The directory's part of a rename onto it. */
void tree_dir_renew(struct tree *t, struct node *n);

/* The node that holds `key` (with the prefix) if the tree knows it: file, value, or NULL. */
struct node *tree_find_key(struct tree *t, struct slice key);

/* ---- attributes ---------------------------------------------------------------- */

/* mode, nlink 1, ino, uid, gid, size, blocks, times. Of a ghost: its last ones. */
void node_stat(const struct tree *t, const struct node *n, struct stat *ret_st);

/* ---- listing -------------------------------------------------------------------- */

struct list_entry {
    uint64_t nodeid, ino;
    enum node_kind kind;
    char *name; /* encoded, terminated; owned by the listing */
};
/* The names of a loaded directory now, in the order of their nodeids, without "." and "..": so a nodeid is a
 * place in every listing of the directory. Take it at READDIR offset 0. The entries' nodes may be gone later:
 * look nodeid up again. -ENOMEM. */
struct listing {
    struct list_entry *entries;
    uint32_t n;
    char *names;
};
int tree_list(struct tree *t, const struct node *dir, struct listing *ret_list);
void listing_fini(struct listing *l);

/* ---- values ---------------------------------------------------------------------- */

/* NULL: no memory; sets size and hash */
struct value *value_new(struct slice bytes, const struct key_meta *meta);
struct value *value_ref(struct value *v);
void value_unref(struct value *v);
uint64_t value_hash(struct slice bytes);

/* ---- what own commits teach the tree ----------------------------------------------- */

/* One key as of meta->mod_rev: `value` may be NULL when only metadata is known (then meta->size, meta->hash
 * count). Older news than the tree has is ignored. The node that now holds the key, or NULL when its
 * directory is not known. own: made by this mount. Directories on the way that are missing appear. */
struct node *tree_learn_put(struct tree *t, struct slice key, const struct key_meta *meta,
                            struct value *value, bool own);
/* The key is absent as of rev. own: a directory that this empties lingers (A.3). */
void tree_learn_delete(struct tree *t, struct slice key, int64_t rev, bool own);

/* mkdir with dirmarkers=off: present until rmdir, or forgotten while empty. NULL: no memory. */
struct node *tree_mkdir_local(struct tree *t, struct node *dir, struct slice name);
/* rmdir done (the range compare held): the directory is gone as of rev, unless made again since. */
void tree_rmdir(struct tree *t, struct node *dir, int64_t rev);

/* ---- a directory renamed by this mount (tree_move.c) ---------------------------------------- */

/* n is dir, or below it. */
bool node_is_below(const struct node *n, const struct node *dir);
/* All keys below n's have been moved, at rev: n and what is in it are there now, with their nodeids. What was there
 * under the name, a directory without keys, is a ghost. To be followed by the next two. 0; or -EBUSY, -ENOMEM: the
 * nodes cannot be moved, and nothing has changed. */
int tree_move_dir(struct tree *t, struct node *n, struct node *to_dir, struct slice to_name, int64_t rev);
/* Of each key that was moved: its part behind the directory's, and its revision before. serial: tree_serial(). */
void tree_moved_key(struct tree *t, struct node *dir, struct slice rest, int64_t old_rev, int64_t rev, uint64_t serial);
/* There were no others. */
void tree_moved_all(struct tree *t, struct node *dir, int64_t rev, uint64_t serial);
uint64_t tree_serial(struct tree *t);

/* ---- numbers for .etcd/status ------------------------------------------------------- */

struct tree_stats {
    uint64_t nodes, present, dirs_loaded, loads, unloads, value_bytes;
    uint64_t unmapped; /* keys seen whose names are too long for the kernel */
};
void tree_get_stats(const struct tree *t, struct tree_stats *ret_stats);
