/* SPDX-License-Identifier: Apache-2.0 */
/* tree_apply.c - what a put or delete of one key does to the tree.
 *
 * One way in for all news: the watch, a listing, an own commit, an answer that knows more than the watch has
 * told yet. News older than what a node has changes nothing; but the watch's events are told all the same,
 * each once: what an event is (CREATE, MODIFY ...) follows from the event itself, not from whether the tree
 * had heard of it before.
 *
 * Directories come and go with the keys below them:
 *
 *     first key below a/      a appears; was there a file a, it goes, and its key becomes a/.value
 *     last key below a/ goes  a vanishes; was there a/.value, the file a appears
 *     key "a/", empty         the marker: keeps a alive, is no child      key "a/" with a value: the file a/%
 */
#include "tree_private.h"

#define VALUE_NAME S(CODEC_VALUE_NAME)
#define EMPTY_NAME S("%")

static void tell_as(struct tree *t, enum origin origin, enum change_kind kind, int64_t rev, struct node *n,
                    const struct key_meta *meta, bool reshaped)
{
    struct tree_change change = {.kind = kind,
                                 .is_dir = n->kind == NODE_DIR,
                                 .silent = origin == FROM_OWN,
                                 .gap = origin == FROM_GAP,
                                 .reshaped = reshaped,
                                 .rev = rev,
                                 .dir = n->parent,
                                 .node = n};

    if (meta)
        change.meta = *meta;
    if (t->changed)
        t->changed(t->feed, &change);
}

static void tell(struct tree *t, enum origin origin, enum change_kind kind, int64_t rev, struct node *n,
                 const struct key_meta *meta)
{
    tell_as(t, origin, kind, rev, n, meta, false);
}

static bool tells(enum origin origin)
{
    return origin == FROM_WATCH || origin == FROM_GAP;
}

/* ---- files ------------------------------------------------------------------------ */

/* The node that shows the key: the directory of its name wins. With make, a ghost is made where there is
 * none. */
static struct node *leaf_node(struct tree *t, struct node *dir, struct slice name, bool make)
{
    struct node *sub = node_find(t, dir, name, NODE_DIR);
    bool is_value = sub && sub->present;

    if (is_value) {
        dir = sub;
        name = VALUE_NAME;
    }
    return make ? node_get(t, dir, name, is_value ? NODE_VALUE : NODE_FILE)
                : node_find(t, dir, name, is_value ? NODE_VALUE : NODE_FILE);
}

static struct timespec later(struct timespec a, struct timespec than)
{
    if (a.tv_sec > than.tv_sec || (a.tv_sec == than.tv_sec && a.tv_nsec > than.tv_nsec))
        return a;
    than.tv_nsec++;
    if (than.tv_nsec == 1000000000) {
        than.tv_nsec = 0;
        than.tv_sec++;
    }
    return than;
}

/* Values are kept for those who are likely to read them: what a listing or an answer brought, and what the
 * watch brings for a node that the kernel knows. */
static void take_value(struct tree *t, struct node *n, const struct key_change *kc, enum origin origin)
{
    struct value *v;

    if (kc->value) {
        node_set_value(t, n, kc->value);
        return;
    }
    if (kc->bytes.ptr == NULL || (origin == FROM_WATCH && n->value == NULL && n->nlookup == 0)) {
        node_set_value(t, n, NULL);
        return;
    }
    v = value_new(kc->bytes, &kc->meta);
    node_set_value(t, n, v);
    value_unref(v);
}

static enum change_kind put_kind(bool ahead, bool was_present, const struct key_meta *old,
                                 const struct key_meta *meta)
{
    if (ahead)
        return meta->version == 1 ? CHANGE_CREATE : CHANGE_MODIFY;
    if (!was_present)
        return CHANGE_CREATE;
    if (old->lease != meta->lease && old->size == meta->size && old->hash == meta->hash)
        return CHANGE_ATTRIB;
    return CHANGE_MODIFY;
}

static struct node *leaf_put(struct tree *t, struct node *dir, struct slice name, const struct key_change *kc,
                             enum origin origin)
{
    struct node *n = leaf_node(t, dir, name, true);

    if (n == NULL)
        return NULL;

    const struct key_meta old = n->meta;
    bool ahead = old.mod_rev >= kc->meta.mod_rev, was_present = n->present;
    struct timespec mtime = tree_time(t, kc->meta.mod_rev);

    if (!ahead) {
        n->meta = kc->meta;
        n->mtime = n->mtime.tv_sec ? later(mtime, n->mtime) : mtime;
        if (!was_present)
            n->btime = tree_time(t, kc->meta.create_rev);
        take_value(t, n, kc, origin);
        node_appear(t, n);
    } else if (old.mod_rev == kc->meta.mod_rev && n->value == NULL && n->present && kc->value) {
        node_set_value(t, n, kc->value); /* nothing new, but now the bytes are here */
    }
    if (origin == FROM_WATCH || (origin == FROM_GAP && !ahead))
        tell(t, origin, put_kind(ahead, was_present, &old, &kc->meta), kc->meta.mod_rev, n, &kc->meta);
    return n;
}

/* The key of n is absent as of rev. */
void node_delete(struct tree *t, struct node *n, int64_t rev, enum origin origin)
{
    const struct key_meta old = n->meta;
    bool was_present = n->present;

    if (old.mod_rev <= rev) {
        node_vanish(t, n, rev);
        n->meta.mod_rev = rev;
        if (!tells(origin))
            tree_tomb(t, n);
    }
    /* The watch's word counts if the tree had the key, or had heard of this deletion ahead of it: from an
     * answer, or by a listing made later. */
    if ((was_present && old.mod_rev <= rev && tells(origin)) ||
        (origin == FROM_WATCH && (old.mod_rev >= rev || n->parent->dir->rev >= rev)))
        tell(t, origin, CHANGE_DELETE, rev, n, &old);
}

static struct node *leaf_delete(struct tree *t, struct node *dir, struct slice name, int64_t rev,
                                enum origin origin)
{
    struct node *n = leaf_node(t, dir, name, origin == FROM_WATCH);

    if (n)
        node_delete(t, n, rev, origin);
    return n;
}

/* ---- directories --------------------------------------------------------------------- */

/* What a key was is now shown under another node: the file becomes .value of the directory, or back. */
void move_leaf(struct tree *t, struct node *from, struct node *to, int64_t rev)
{
    struct value *v = value_ref(from->value);

    to->meta = from->meta;
    to->mtime = from->mtime;
    to->btime = from->btime;
    to->seen = from->seen;
    node_appear(t, to);
    node_set_value(t, to, v);
    value_unref(v);
    node_vanish(t, from, rev);
}

static void dir_reset(struct dir *d)
{
    d->state = DIR_UNLOADED;
    d->n_keys = -1;
    d->rev = d->announce_rev = d->placed_rev = 0;
    d->lingers = d->was_marked = false;
    d->marker = (struct key_meta){0};
}

/* Makes the directory exist, because there is a key below it as of rev. NULL: known to have gone later, or no
 * memory. */
static struct node *dir_appear(struct tree *t, struct node *dir, struct slice name, int64_t rev,
                               enum origin origin)
{
    struct node *n = node_get(t, dir, name, NODE_DIR);
    struct node *file, *value;

    if (n == NULL)
        return NULL;
    if (n->present) {
        if (origin == FROM_WATCH && n->dir->announce_rev >= rev) {
            n->dir->announce_rev = 0;
            tell(t, origin, CHANGE_CREATE, rev, n, NULL);
        }
        return n;
    }
    if (n->meta.mod_rev > rev)
        return NULL;
    dir_reset(n->dir);
    if (origin == FROM_WATCH)
        n->dir->n_keys = 0; /* the one that makes it exist is counted next */
    else if (!tells(origin) && origin != FROM_LOAD)
        n->dir->announce_rev = rev;
    file = node_find(t, dir, name, NODE_FILE);
    value = file && file->present ? node_get(t, n, VALUE_NAME, NODE_VALUE) : NULL;
    node_appear(t, n);
    dir_touch(t, n);
    if (value) {
        const struct key_meta meta = file->meta;

        move_leaf(t, file, value, rev);
        if (tells(origin))
            tell_as(t, origin, CHANGE_DELETE, rev, file, &meta, true);
    }
    if (tells(origin))
        tell(t, origin, CHANGE_CREATE, rev, n, NULL);
    if (value && tells(origin))
        tell_as(t, origin, CHANGE_CREATE, rev, value, &value->meta, true);
    return n;
}

/* One file is gone along with its directory. */
static void vanish_leaf(struct tree *t, struct node *n, int64_t rev, enum origin origin)
{
    const struct key_meta old = n->meta;

    node_vanish(t, n, rev);
    if (tells(origin))
        tell(t, origin, CHANGE_DELETE, rev, n, &old);
}

/* The directory ends; what lay in it is gone already. */
static void dir_end(struct tree *t, struct node *n, int64_t rev, enum origin origin)
{
    if (n->dir->load)
        load_cancel(t, n->dir->load);
    node_vanish(t, n, rev);
    dir_reset(n->dir);
    if (tells(origin) || origin == FROM_OWN)
        tell(t, origin, CHANGE_DELETE, rev, n, NULL);
}

/* A directory is found gone as a whole, after a gap: all keys below it are. */
static void vanish_children(struct tree *t, struct node *n, int64_t rev, enum origin origin, bool value_too)
{
    for (struct node *c = n->dir->children; c; c = c->next) {
        if (!c->present || (c->kind == NODE_VALUE && !value_too))
            continue;
        if (c->kind != NODE_DIR) {
            vanish_leaf(t, c, rev, origin);
            continue;
        }
        vanish_children(t, c, rev, origin, true);
        dir_end(t, c, rev, origin);
    }
}

void dir_vanish(struct tree *t, struct node *n, int64_t rev, enum origin origin)
{
    struct node *dir = n->parent, *value, *file = NULL;

    if (!n->present)
        return;
    node_ref(n);
    vanish_children(t, n, rev, origin, false);
    value = node_find(t, n, VALUE_NAME, NODE_VALUE);
    if (value && value->present)
        file = node_get(t, dir, slice_of(n->name, n->name_len), NODE_FILE);
    if (file) {
        const struct key_meta meta = value->meta;

        move_leaf(t, value, file, rev);
        if (tells(origin))
            tell_as(t, origin, CHANGE_DELETE, rev, value, &meta, true);
    }
    dir_end(t, n, rev, origin);
    if (file && tells(origin))
        tell_as(t, origin, CHANGE_CREATE, rev, file, &file->meta, true);
    node_unref(t, n);
    dir_check_empty(t, dir, rev, origin);
}

static bool dir_is_empty(const struct dir *d)
{
    if (d->state == DIR_LOADED)
        return d->n_present == 0 && d->marker.mod_rev == 0;
    return d->state == DIR_UNLOADED && d->n_keys == 0;
}

/* Lets a directory go that has lost its last key. One that this mount emptied itself stays while the kernel
 * knows it, so that rm -r and a working directory in it go on (A.3). */
void dir_check_empty(struct tree *t, struct node *n, int64_t rev, enum origin origin)
{
    struct dir *d = n->dir;

    if (n == t->root || !n->present || d->lingers || d->load || !dir_is_empty(d))
        return; /* one that is being listed is looked at when that is done */
    if (origin == FROM_ANSWER)
        return; /* the watch will tell, and this with it */
    if (origin == FROM_OWN && n->nlookup > 0) {
        d->lingers = true;
        return;
    }
    dir_vanish(t, n, rev, origin);
}

/* ---- keys within one directory ---------------------------------------------------------- */

void dir_unmark(struct dir *d)
{
    d->was_marked |= d->marker.mod_rev != 0;
    d->marker = (struct key_meta){0};
}

/* Key "dir/": the marker while it is empty, else the file "%". */
static struct node *apply_marker(struct tree *t, struct node *dir, const struct key_change *kc,
                                 enum origin origin)
{
    struct dir *d = dir->dir;
    struct node *n = leaf_node(t, dir, EMPTY_NAME, false);
    bool shown = n && n->present;

    if (kc->is_delete) {
        if (d->marker.mod_rev && d->marker.mod_rev <= kc->meta.mod_rev)
            dir_unmark(d);
        if (shown)
            node_delete(t, n, kc->meta.mod_rev, origin);
        return dir;
    }
    if (kc->meta.size) {
        if (d->marker.mod_rev < kc->meta.mod_rev)
            dir_unmark(d);
        return leaf_put(t, dir, EMPTY_NAME, kc, origin);
    }
    if (d->marker.mod_rev < kc->meta.mod_rev)
        d->marker = kc->meta;
    if (shown)
        node_delete(t, n, kc->meta.mod_rev, origin);
    return dir;
}

struct node *tree_apply_in(struct tree *t, struct node *dir, struct slice rest, const struct key_change *kc,
                           enum origin origin)
{
    const uint8_t *slash = memchr(rest.ptr, '/', rest.len);
    struct slice name;

    if (rest.len == 0)
        return apply_marker(t, dir, kc, origin);
    if (slash)
        rest.len = (size_t)(slash - rest.ptr);
    if (tree_scratch(t, rest, dir, &name) < 0)
        return NULL;
    if (slash && kc->is_delete) {
        struct node *sub = node_find(t, dir, name, NODE_DIR);

        return sub && sub->present ? sub : NULL;
    }
    if (slash)
        return dir_appear(t, dir, name, kc->meta.mod_rev, origin);
    return kc->is_delete ? leaf_delete(t, dir, name, kc->meta.mod_rev, origin)
                         : leaf_put(t, dir, name, kc, origin);
}

/* ---- the walk down a key ------------------------------------------------------------------ */

static bool is_own(struct tree *t, const struct key_change *kc)
{
    return t->is_own && t->is_own(t->feed, kc->key, kc->meta.mod_rev);
}

/* After a deletion in dir. */
static void check_after(struct tree *t, struct node *dir, const struct key_change *kc, enum origin origin)
{
    bool stays = origin == FROM_WATCH && dir->nlookup > 0 && dir_is_empty(dir->dir) && is_own(t, kc);

    if (stays)
        dir->dir->lingers = true;
    else
        dir_check_empty(t, dir, kc->meta.mod_rev, origin);
}

/* The watch tells of a key below a directory that was never entered. What matters is whether the directory
 * still exists; and if the kernel knows it, somebody may be watching it: then it is listed as it was
 * before. */
static void apply_unloaded(struct tree *t, struct node *dir, const struct key_change *kc)
{
    struct dir *d = dir->dir;

    if (dir->nlookup > 0 || dir == t->root) {
        load_start(t, dir, LOAD_FIRST, kc->meta.mod_rev - 1);
        if (d->load)
            load_backlog(t, d->load, kc);
        return;
    }
    if (d->n_keys >= 0) {
        d->n_keys += kc->is_delete ? -1 : kc->meta.version == 1;
        if (d->n_keys < 0)
            d->n_keys = 0;
        check_after(t, dir, kc, FROM_WATCH);
    } else if (kc->is_delete) {
        load_start(t, dir, LOAD_COUNT, kc->meta.mod_rev);
    }
}

/* True when the news stops here, because the directory is not listed, or is just being listed. */
static bool stops_at(struct tree *t, struct node *dir, const struct key_change *kc, enum origin origin)
{
    struct dir *d = dir->dir;

    if (origin == FROM_WATCH && d->load) {
        load_backlog(t, d->load, kc);
        return true;
    }
    if (d->state == DIR_LOADED)
        return false;
    if (origin == FROM_WATCH)
        apply_unloaded(t, dir, kc);
    return true;
}

struct node *tree_apply(struct tree *t, const struct key_change *kc, enum origin origin)
{
    struct slice prefix = tree_prefix(t), rest;
    struct node *dir = t->root, *n;

    if (!slice_has_prefix(kc->key, prefix))
        return NULL;
    rest = slice_of(kc->key.ptr + prefix.len, kc->key.len - prefix.len);
    while (!stops_at(t, dir, kc, origin)) {
        const uint8_t *slash = memchr(rest.ptr, '/', rest.len);
        bool existed = false;

        if (slash && !kc->is_delete) {
            struct slice name;

            if (tree_scratch(t, slice_of(rest.ptr, (size_t)(slash - rest.ptr)), dir, &name) == 0) {
                n = node_find(t, dir, name, NODE_DIR);
                existed = n && n->present;
            }
        }
        n = tree_apply_in(t, dir, rest, kc, origin);
        if (slash == NULL) {
            if (kc->is_delete)
                check_after(t, dir, kc, origin);
            return n;
        }
        if (n == NULL) { /* what was below it has gone already: moved elsewhere by this mount, perhaps */
            if (kc->is_delete && origin == FROM_WATCH)
                check_after(t, dir, kc, origin);
            return NULL;
        }
        dir = n;
        rest = slice_of(slash + 1, rest.len - (size_t)(slash + 1 - rest.ptr));
        /* An own mkdir: nothing but the marker can be in it, as of its revision. */
        if (origin == FROM_OWN && !existed && !kc->is_delete && rest.len == 0) {
            dir->dir->state = DIR_LOADED;
            dir->dir->rev = kc->meta.mod_rev;
        }
    }
    return NULL;
}

/* ---- what own commits and answers teach ------------------------------------------------------ */

struct node *tree_learn_put(struct tree *t, struct slice key, const struct key_meta *meta,
                            struct value *value, bool own)
{
    struct key_change kc = {.key = key, .meta = *meta, .value = value};

    if (value) {
        kc.meta.size = value->meta.size;
        kc.meta.hash = value->meta.hash;
    }
    return tree_apply(t, &kc, own ? FROM_OWN : FROM_ANSWER);
}

void tree_learn_delete(struct tree *t, struct slice key, int64_t rev, bool own)
{
    const struct key_change kc = {.key = key, .is_delete = true, .meta.mod_rev = rev};

    (void)tree_apply(t, &kc, own ? FROM_OWN : FROM_ANSWER);
}

struct node *tree_mkdir_local(struct tree *t, struct node *dir, struct slice name)
{
    struct node *n = node_get(t, dir, name, NODE_DIR);

    if (n == NULL || n->present)
        return n;
    dir_reset(n->dir);
    n->dir->state = DIR_LOADED;
    n->dir->lingers = true;
    node_appear(t, n);
    return n;
}

void dir_forsake(struct tree *t, struct node *n)
{
    if (n->dir->load)
        load_cancel(t, n->dir->load);
    vanish_children(t, n, 0, FROM_LOAD, false);
    node_vanish(t, n, 0);
    dir_reset(n->dir);
}

void tree_dir_renew(struct tree *t, struct node *n)
{
    const struct key_meta marker = n->dir->marker;
    struct node *value = node_find(t, n, VALUE_NAME, NODE_VALUE), *made, *made_value;

    dir_forsake(t, n);
    tree_retire(n);
    made = node_get(t, n->parent, slice_of(n->name, n->name_len), NODE_DIR);
    if (made == NULL)
        return; /* the next listing brings it back */
    made->dir->marker = marker;
    node_appear(t, made);
    dir_touch(t, made);
    made_value = value && value->present ? node_get(t, made, VALUE_NAME, NODE_VALUE) : NULL;
    if (made_value)
        move_leaf(t, value, made_value, value->meta.mod_rev);
}

/* Is there a key in it that came after rev? Directories alone say nothing: they may linger. */
static bool made_since(const struct node *n, int64_t rev)
{
    if (n->dir->marker.mod_rev > rev)
        return true;
    for (const struct node *c = n->dir->children; c; c = c->next)
        if (c->present && c->kind != NODE_VALUE && (c->dir ? made_since(c, rev) : c->meta.mod_rev > rev))
            return true;
    return false;
}

void tree_rmdir(struct tree *t, struct node *n, int64_t rev)
{
    tree_tomb(t, n);
    n->dir->lingers = false;
    if (n->present && made_since(n, rev)) {
        tree_dir_renew(t, n);
        return;
    }
    dir_vanish(t, n, rev, FROM_OWN);
    tree_retire(n);
}
