/* SPDX-License-Identifier: Apache-2.0 */
/* hub_index.c - the tree of watched ranges: which groups does a key concern?
 *
 * A treap: a search tree by (from, end), a heap by random priority, so it stays balanced whatever the order of the
 * insertions. Each node knows the highest end below it: a subtree that ends before the key is not entered.
 *
 * Owner: the hub thread.
 */
#include "hub_impl.h"

/* Ends: NULL is above all others. */
static int end_cmp(struct slice a, struct slice b)
{
    if (a.ptr == NULL || b.ptr == NULL)
        return (a.ptr == NULL) - (b.ptr == NULL);
    return slice_cmp(a, b);
}

static int range_cmp(struct slice from, struct slice end, const struct watch_group *g)
{
    int c = slice_cmp(from, g->from);

    return c ? c : end_cmp(end, g->end);
}

static void update(struct watch_group *g)
{
    g->max_end = g->end;
    if (g->left && end_cmp(g->left->max_end, g->max_end) > 0)
        g->max_end = g->left->max_end;
    if (g->right && end_cmp(g->right->max_end, g->max_end) > 0)
        g->max_end = g->right->max_end;
}

static void rotate_right(struct watch_group **at)
{
    struct watch_group *g = *at, *up = g->left;

    g->left = up->right;
    up->right = g;
    update(g);
    update(up);
    *at = up;
}

static void rotate_left(struct watch_group **at)
{
    struct watch_group *g = *at, *up = g->right;

    g->right = up->left;
    up->left = g;
    update(g);
    update(up);
    *at = up;
}

static struct watch_group *group_new(struct slice from, struct slice end, uint64_t priority)
{
    struct watch_group *g = calloc(1, sizeof *g + from.len + end.len);
    uint8_t *bytes = (uint8_t *)(g + 1);

    if (g == NULL)
        return NULL;
    if (from.len)
        memcpy(bytes, from.ptr, from.len);
    if (end.len)
        memcpy(bytes + from.len, end.ptr, end.len);
    g->from = slice_of(bytes, from.len);
    g->end = end.ptr ? slice_of(bytes + from.len, end.len) : SLICE_NONE;
    g->priority = priority;
    update(g);
    return g;
}

static void insert(struct watch_group **at, struct watch_group *g)
{
    struct watch_group *here = *at;

    if (here == NULL) {
        *at = g;
        return;
    }
    if (range_cmp(g->from, g->end, here) < 0) {
        insert(&here->left, g);
        if (here->left->priority > here->priority) {
            rotate_right(at);
            return;
        }
    } else {
        insert(&here->right, g);
        if (here->right->priority > here->priority) {
            rotate_left(at);
            return;
        }
    }
    update(here);
}

struct watch_group *ranges_get(struct watch_group **root, struct slice from, struct slice end, uint64_t priority)
{
    struct watch_group *g = *root;

    while (g) {
        int c = range_cmp(from, end, g);

        if (c == 0)
            return g;
        g = c < 0 ? g->left : g->right;
    }
    g = group_new(from, end, priority);
    if (g)
        insert(root, g);
    return g;
}

/* Down to a leaf, then off. */
static void sink(struct watch_group **at)
{
    struct watch_group *g = *at;

    if (g->left == NULL || g->right == NULL) {
        *at = g->left ? g->left : g->right;
    } else if (g->left->priority > g->right->priority) {
        rotate_right(at);
        sink(&(*at)->right);
        update(*at);
    } else {
        rotate_left(at);
        sink(&(*at)->left);
        update(*at);
    }
}

static void take_out(struct watch_group **at, struct watch_group *g)
{
    struct watch_group *here = *at;

    assert(here != NULL);
    if (here == g) {
        sink(at);
        return;
    }
    take_out(range_cmp(g->from, g->end, here) < 0 ? &here->left : &here->right, g);
    update(here);
}

void ranges_remove(struct watch_group **root, struct watch_group *g)
{
    assert(g->n == 0);
    assert(g->n_events == 0);
    take_out(root, g);
    free(g->events);
    free(g);
}

int ranges_find(struct watch_group *root, struct slice key, int (*fn)(void *ctx, struct watch_group *), void *ctx,
                uint64_t *looked_at)
{
    while (root && ++*looked_at && (root->max_end.ptr == NULL || slice_cmp(key, root->max_end) < 0)) {
        int rc = ranges_find(root->left, key, fn, ctx, looked_at);

        if (rc)
            return rc;
        if (slice_cmp(key, root->from) < 0)
            return 0; /* to the right every range begins later still */
        if (root->end.ptr == NULL || slice_cmp(key, root->end) < 0) {
            rc = fn(ctx, root);
            if (rc)
                return rc;
        }
        root = root->right;
    }
    return 0;
}
