/* SPDX-License-Identifier: Apache-2.0 */
/* tree_unload.c - forgetting listings that nobody needs, so that memory does not follow the size of the store.
 *
 * A listed directory can be listed again. Its names can be forgotten while the kernel knows none of them, and
 * nobody here refers to one: then no cached answer depends on the watch finding them. The directory itself may
 * be known; an event in it lists it again, as of just before (tree_apply.c). First go those that the kernel
 * has forgotten, then those that nobody has entered for a while, each the longest unused first.
 *
 * What the kernel knows is not ours to forget: it says when it does.
 */
#include <errno.h>

#include "tree_private.h"

struct candidate {
    struct node *dir;
    bool known;
    int64_t used_ms;
};

static bool is_known(const struct node *n)
{
    return n->nlookup || n->ext || n->unsent;
}

/* Of a directory, its own .value belongs to the listing that it is in itself. */
static bool is_free(const struct node *n)
{
    uint32_t n_children = 0;

    if (is_known(n))
        return false;
    if (n->dir == NULL)
        return n->refs == 0;
    if (n->dir->state != DIR_UNLOADED || n->dir->load)
        return false;
    for (const struct node *c = n->dir->children; c; c = c->next, n_children++)
        if (c->kind != NODE_VALUE || !is_free(c))
            return false;
    return n->refs == n_children;
}

static bool may_unload(const struct tree *t, const struct node *n, int64_t now_ms)
{
    const struct dir *d = n->dir;
    bool has_names = false;

    if (n->kind != NODE_DIR || !n->present || d->state != DIR_LOADED || d->load || d->lingers ||
        d->n_injections)
        return false;
    if (n->nlookup && (n == t->root || now_ms - d->used_ms < TREE_UNLOAD_IDLE_MS))
        return false;
    for (const struct node *c = d->children; c; c = c->next) {
        if (c->kind == NODE_VALUE)
            continue;
        if (!is_free(c))
            return false;
        has_names = true;
    }
    return has_names;
}

static void unload(struct tree *t, struct node *n)
{
    struct dir *d = n->dir;
    const struct timespec mtime = d->mtime;

    for (struct node *c = d->children; c; c = c->next) {
        if (c->kind == NODE_VALUE)
            continue;
        for (struct node *v = c->dir ? c->dir->children : NULL; v; v = v->next)
            node_vanish(t, v, 0);
        node_vanish(t, c, 0);
    }
    d->mtime = mtime; /* no name changed */
    d->state = DIR_UNLOADED;
    d->n_keys = -1;
    d->rev = 0;
    t->stats.unloads++;
}

static int oldest_first(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;

    if (x->known != y->known)
        return x->known - y->known;
    return (x->used_ms > y->used_ms) - (x->used_ms < y->used_ms);
}

static size_t collect(struct tree *t, struct candidate *list, int64_t now_ms)
{
    size_t n = 0;

    for (size_t i = 0; i < t->size; i++)
        for (struct node *c = t->by_id[i]; c; c = c->hash_id)
            if (may_unload(t, c, now_ms)) {
                if (list)
                    list[n] = (struct candidate){c, c->nlookup > 0, c->dir->used_ms};
                n++;
            }
    return n;
}

/* The parents of what goes may go in the next pass. */
void tree_unload(struct tree *t, size_t n_nodes)
{
    int64_t now_ms = client_now_ms();
    size_t before = t->n_nodes + 1;

    while (t->n_nodes > n_nodes && t->n_nodes < before) {
        size_t n = collect(t, NULL, now_ms);
        struct candidate *list = n ? malloc(n * sizeof *list) : NULL;

        before = t->n_nodes;
        if (list == NULL)
            return;
        (void)collect(t, list, now_ms);
        qsort(list, n, sizeof *list, oldest_first);
        for (size_t i = 0; i < n && t->n_nodes > n_nodes; i++) {
            unload(t, list[i].dir);
            tree_bury(t);
        }
        free(list);
    }
}
