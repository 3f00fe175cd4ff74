/* SPDX-License-Identifier: Apache-2.0 */
/* tree_move.c - a directory that this mount has renamed: its nodes go along, so that who is inside stays inside.
 *
 * Names hang on parents, so only the directory itself gets another parent and name; what lies below has other keys,
 * inode numbers and revisions from then on, but the nodeids that the kernel, handles and working directories hold. The
 * keys did not all exist here as the server had them: tree_move_dir() is followed by tree_moved_key() for each key that
 * was moved, and tree_moved_all() lets go of what was not among them.
 *
 *     known at the revision that was moved   its metadata is that of the new key
 *     known older, or as absent              left as it is; the watch brings it, as it brings what is not known
 *     not moved                              it had been deleted before
 *
 * Where the directory was there may be no key left: the watch tells, when it brings the deletions (tree_apply).
 *
 * The directory's own key (a, shown as a/.value) does not begin with "a/": it stays, and is the file a again.
 *
 * Questions on their way were asked under the old keys: they are asked anew.
 *
 * Owner: the core thread. Not here: renames by others, which are deletions and creations.
 */
#include <errno.h>

#include "tree_private.h"

#define VALUE_NAME S(CODEC_VALUE_NAME)

bool node_is_below(const struct node *n, const struct node *dir)
{
    while (n && n != dir)
        n = n->parent;
    return n != NULL;
}

/* A removal that is to be injected waits for what was told below it; that is counted by way of the parents. */
static bool removals_above(const struct node *dir)
{
    while (dir && dir->dir->removals == NULL)
        dir = dir->parent;
    return dir != NULL;
}

static bool may_move(const struct node *n, const struct node *to_dir)
{
    return n->parent && n->present && to_dir->present && !node_is_below(to_dir, n) &&
           (n->dir->n_injections == 0 || (!removals_above(n->parent) && !removals_above(to_dir)));
}

static void count_names(struct tree *t, struct node *n, bool here)
{
    uint64_t unmapped = n->name_len > t->cfg.name_max;

    n->parent->dir->n_present += here ? 1 : -1u;
    t->stats.unmapped += here ? unmapped : -unmapped;
    for (struct node *p = n->parent; p; p = p->parent)
        p->dir->n_injections += here ? n->dir->n_injections : -n->dir->n_injections;
    dir_touch(t, n->parent);
}

/* What is counted, asked or known to be absent under the old keys. */
static void unsettle(struct tree *t, struct node *dir)
{
    struct dir *d = dir->dir;

    d->announce_rev = 0;
    if (d->state == DIR_UNLOADED)
        d->n_keys = -1;
    if (d->load)
        load_moved(t, d->load);
    for (struct node *c = d->children; c; c = c->next) {
        if (!c->present)
            c->meta.mod_rev = 0;
        if (c->dir)
            unsettle(t, c);
    }
}

/* The key of a directory's .value, when the directory is shown there no more, and the other way round. */
static void value_stays(struct tree *t, struct node *value, struct node *dir, struct slice name)
{
    struct node *file = value && value->present ? node_get(t, dir, name, NODE_FILE) : NULL;

    if (file)
        move_leaf(t, value, file, 0);
}

static void value_joins(struct tree *t, struct node *leaf, struct node *dir)
{
    struct node *value;

    if (leaf == NULL || !leaf->present || (value = node_get(t, dir, VALUE_NAME, NODE_VALUE)) == NULL)
        return;
    value->meta.mod_rev = 0; /* what it knew was of another key */
    move_leaf(t, leaf, value, 0);
}

int tree_move_dir(struct tree *t, struct node *n, struct node *to_dir, struct slice to_name, int64_t rev)
{
    struct node *from_dir = n->parent, *there, *value, *old;
    struct key_meta marker = {0};
    struct slice from_name;
    char *name;
    int err;

    if (!may_move(n, to_dir))
        return -EBUSY;
    name = strndup(n->name, n->name_len);
    if (name == NULL)
        return -ENOMEM;
    from_name = slice_of(name, n->name_len);
    there = node_ref(node_find(t, to_dir, to_name, NODE_DIR));
    if (there && there->present)
        marker = there->dir->marker;
    count_names(t, n, false);
    err = node_move(t, n, to_dir, to_name);
    count_names(t, n, true);
    if (err)
        goto out;
    if (there) { /* the kernel has marked its inode dead */
        dir_forsake(t, there);
        tree_retire(there);
    }
    value_stays(t, node_find(t, n, VALUE_NAME, NODE_VALUE), from_dir, from_name);
    value = there ? node_find(t, there, VALUE_NAME, NODE_VALUE) : NULL;
    value_joins(t, value && value->present ? value : node_find(t, to_dir, to_name, NODE_FILE), n);
    if (n->dir->marker.mod_rev == 0)
        n->dir->marker = marker;
    unsettle(t, n);
    n->dir->placed_rev = rev;
    reads_moved(t, n);
    old = node_get(t, from_dir, from_name, NODE_DIR);
    if (old) { /* older news must not bring it back */
        old->meta.mod_rev = rev;
        tree_tomb(t, old);
    }
out:
    node_unref(t, there);
    free(name);
    return err;
}

/* ---- what lies in it -------------------------------------------------------------------------- */

static void meta_moved(struct key_meta *m, int64_t rev)
{
    m->create_rev = m->mod_rev = rev;
    m->version = 1;
}

static void leaf_moved(struct node *leaf, int64_t old_rev, int64_t rev)
{
    if (!leaf->present || leaf->meta.mod_rev != old_rev)
        return; /* the watch brings it */
    meta_moved(&leaf->meta, rev);
    if (leaf->value && leaf->value->meta.mod_rev == old_rev) /* the same bytes, for whoever holds them */
        meta_moved(&leaf->value->meta, rev);
}

void tree_moved_key(struct tree *t, struct node *dir, struct slice rest, int64_t old_rev, int64_t rev, uint64_t serial)
{
    const uint8_t *slash;
    struct slice name;
    struct node *n;

    while ((slash = memchr(rest.ptr, '/', rest.len)) != NULL && dir->dir->state == DIR_LOADED) {
        if (tree_scratch(t, slice_of(rest.ptr, (size_t)(slash - rest.ptr)), dir, &name) < 0)
            return;
        n = node_find(t, dir, name, NODE_DIR);
        if (n == NULL || !n->present)
            return; /* the watch brings it */
        n->seen = serial;
        dir = n;
        rest = slice_of(slash + 1, rest.len - (size_t)(slash + 1 - rest.ptr));
    }
    if (dir->dir->state != DIR_LOADED || tree_scratch(t, rest, dir, &name) < 0)
        return;
    if (rest.len == 0 && dir->dir->marker.mod_rev == old_rev) {
        meta_moved(&dir->dir->marker, rev);
        return;
    }
    n = node_find(t, dir, name, NODE_DIR);
    n = n && n->present ? node_find(t, n, VALUE_NAME, NODE_VALUE) : node_find(t, dir, name, NODE_FILE);
    if (n) {
        n->seen = serial;
        leaf_moved(n, old_rev, rev);
    }
}

/* Present, and not among what was moved. */
static bool is_stale(const struct node *n, int64_t rev, uint64_t serial)
{
    return n->present && n->seen != serial && n->meta.mod_rev < rev;
}

static void sweep(struct tree *t, struct node *dir, int64_t rev, uint64_t serial, bool top)
{
    if (dir->dir->state != DIR_LOADED)
        return;
    for (struct node *c = dir->dir->children; c; c = c->next) {
        if (c->dir && c->present) {
            sweep(t, c, rev, serial, false);
            if (c->present && c->seen != serial && !c->dir->lingers)
                dir_vanish(t, c, rev, FROM_GAP);
        } else if (c->dir == NULL && is_stale(c, rev, serial) && !(top && c->kind == NODE_VALUE)) {
            node_delete(t, c, rev, FROM_GAP);
        }
    }
}

void tree_moved_all(struct tree *t, struct node *dir, int64_t rev, uint64_t serial)
{
    sweep(t, dir, rev, serial, true);
    if (t->settled)
        t->settled(t->feed);
}

uint64_t tree_serial(struct tree *t)
{
    return t->next_serial++;
}
