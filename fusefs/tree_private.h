/* SPDX-License-Identifier: Apache-2.0 */
/* tree_private.h - what the files tree*.c and feed.c share. Owner: the core thread. */
#pragma once
#include "client.h"
#include "codec.h"
#include "feed.h"
#include "rpc.pb-c.h"
#include "tree.h"
#include "tree_read.h"

struct anchor {
    int64_t rev, ns; /* at wall time ns the store stood at rev */
};

/* A change of the tree, as the code that applies one finds it. The feed turns it into a struct
 * change_event. */
struct tree_change {
    enum change_kind kind; /* never MOVE: the feed pairs */
    bool is_dir;
    bool silent;           /* tell the kernel, never inject (a lingering directory was forgotten) */
    bool gap;
    /* The key itself did not change: it is shown elsewhere, since a file became a directory or back. */
    bool reshaped;
    int64_t rev;
    struct node *dir, *node;
    struct key_meta meta;  /* of a file: the new one; DELETE: the last one */
};

/* Where a put or delete comes from: decides what is told, and what an emptied directory does. */
enum origin {
    FROM_WATCH, /* tell everything */
    FROM_GAP,   /* found by listing anew: tell the difference */
    FROM_LOAD,  /* first listing: nothing to tell */
    FROM_OWN,   /* an own commit: nothing to tell, the watch will; emptied directories linger */
    FROM_ANSWER /* learned from a Range ahead of the watch: nothing to tell, the watch will */
};

struct tree {
    struct client *client;
    uint8_t *prefix;
    size_t prefix_len;
    struct tree_config cfg;
    struct node *root;
    uint64_t next_id, next_serial;
    struct node **by_id, **by_name; /* chained hash tables of `size` heads each */
    size_t size, n_nodes;
    struct node *graves;            /* nodes that nothing holds, freed when the loop comes round */
    struct node *lru_first, *lru_last;
    uint64_t lru_bytes;
    struct anchor anchors[TREE_ANCHORS];
    unsigned n_anchors;
    struct node **tombs;            /* ghosts kept until the watch has passed their deletion */
    size_t n_tombs, tombs_size;
    struct tree_stats stats;
    char *scratch;                  /* an encoded name */
    size_t scratch_size;

    /* The feed listens. */
    void (*changed)(void *ctx, const struct tree_change *change);
    void (*settled)(void *ctx); /* changes made outside of a watch batch are complete */
    /* True when rev is, or may be, an own commit of that key. */
    bool (*is_own)(void *ctx, struct slice key, int64_t rev);
    void *feed;

    struct dir_load *loads;
    unsigned n_loads;               /* with a call under way */
    struct read *unsent, **unsent_end, *sent;
    struct lookup *lookups;
    unsigned n_reads;
    int64_t unload_ms;              /* when tree_unload may look again */
    struct wait *waits;             /* all of them, for deadlines */
    int64_t next_deadline_ms;
    enum read_mode mode;
};

static inline struct slice node_name(const struct node *n)
{
    return slice_of(n->name, n->name_len);
}

/* tree.c */
struct node *node_find(struct tree *t, const struct node *dir, struct slice name, enum node_kind kind);
struct node *node_get(struct tree *t, struct node *dir, struct slice name,
                      enum node_kind kind); /* or makes a ghost */
/* Another parent and name; what else follows from that is tree_move.c's. -ENOMEM: nothing has changed. */
int node_move(struct tree *t, struct node *n, struct node *dir, struct slice name);
void node_appear(struct tree *t, struct node *n);
void node_vanish(struct tree *t, struct node *n, int64_t rev);
void dir_touch(struct tree *t, struct node *dir);
void tree_bury(struct tree *t);
void tree_tomb(struct tree *t, struct node *n);
void tree_passed(struct tree *t, int64_t rev); /* the watch has brought everything up to rev */

/* tree_names.c */
int tree_scratch(struct tree *t, struct slice component, const struct node *dir, struct slice *ret_name);

/* tree_value.c */
#define FNV_BASIS 0xcbf29ce484222325ull
uint64_t hash_bytes(uint64_t h, struct slice s);
uint64_t hash_mix(uint64_t h);
void node_set_value(struct tree *t, struct node *n, struct value *v); /* borrowed; NULL drops what is there */
void node_touch_value(struct tree *t, struct node *n);                /* it was just used */
void tree_anchor(struct tree *t, int64_t rev);                        /* the store stands at rev now */
struct timespec tree_time(struct tree *t, int64_t rev);
struct timespec tree_now_after(struct timespec old);

/* tree_apply.c */
struct key_change {
    struct slice key; /* whole */
    bool is_delete;
    struct key_meta meta; /* of a delete: mod_rev alone */
    struct value *value;  /* may be NULL; borrowed */
    /* The value where there is no struct value; ptr NULL: not known, only meta.size and meta.hash. */
    struct slice bytes;
};
/* The node that the key is now shown as (a marker: its directory), NULL if it is in no listed directory. */
struct node *tree_apply(struct tree *t, const struct key_change *kc, enum origin origin);
/* As above for one directory whose children are being listed: rest is the key after the directory's. Of a
 * deeper key only the subdirectory is made to exist, and returned. */
struct node *tree_apply_in(struct tree *t, struct node *dir, struct slice rest, const struct key_change *kc,
                           enum origin origin);
/* What a key was is now shown under another node. */
void move_leaf(struct tree *t, struct node *from, struct node *to, int64_t rev);
/* It becomes a ghost, with all that is in it but its .value, and nobody is told. */
void dir_forsake(struct tree *t, struct node *n);
void dir_vanish(struct tree *t, struct node *n, int64_t rev, enum origin origin);
void dir_unmark(struct dir *d); /* its marker has gone */
void dir_check_empty(struct tree *t, struct node *n, int64_t rev, enum origin origin);
void node_delete(struct tree *t, struct node *n, int64_t rev, enum origin origin);

/* tree_load.c */
enum load_kind { LOAD_FIRST, LOAD_AGAIN, LOAD_COUNT };
void load_start(struct tree *t, struct node *dir, enum load_kind kind, int64_t at_rev);
void load_backlog(struct tree *t, struct dir_load *l, const struct key_change *kc);
void load_cancel(struct tree *t, struct dir_load *l);
void load_moved(struct tree *t, struct dir_load *l); /* its directory was renamed here: begins anew */
void tree_reload(struct tree *t, int64_t at_rev); /* after a gap: every loaded directory */
struct wait **load_waits(struct dir_load *l);
void load_tick(struct tree *t);
int64_t loads_deadline_ms(const struct tree *t);
void loads_close(struct tree *t);
bool load_is_count(const struct dir_load *l);

/* tree_unload.c: down to so many nodes, as far as it goes. Only between turns: nodes are freed. */
void tree_unload(struct tree *t, size_t n_nodes);

/* tree_read.c */
void wait_add(struct tree *t, struct wait *w, struct wait **queue, int64_t default_ms);
void wait_finish(struct wait *w, int err);
void reads_close(struct tree *t);
void reads_moved(struct tree *t, const struct node *dir); /* asks anew what is asked below dir */
bool tree_in_doubt(const struct tree *t);                 /* the server cannot be asked, as far as is known */
void meta_of(const Mvccpb__KeyValue *kv, struct key_meta *ret_meta);

/* tree_lookup.c */
void lookup_loaded(struct tree *t, struct wait *w); /* WAIT_LOOKUP_LOAD: the directory is listed now */
void lookup_leave(struct wait *w);                  /* nobody waits for its answer any more */
void lookups_moved(struct tree *t, const struct node *dir);
void lookups_close(struct tree *t);
