/* SPDX-License-Identifier: Apache-2.0 */
/* tree.c - nodes: the tables they are found by, and their lives.
 *
 * Two hash tables hold every node: by nodeid, and by (parent, kind, name). A node dies when it is not
 * present, the kernel does not know it and nobody refers to it; it is buried when the loop comes round
 * (tree_flush), so that a node just answered or just deleted can still be named in the same turn.
 */
#include "tree.h"

#include <errno.h>
#include <stdio.h>
#include <sys/utsname.h>

#include "tree_private.h"

#define TABLE_FIRST 1024

/* ---- the two tables ------------------------------------------------------------------ */

static size_t id_slot(const struct tree *t, uint64_t id)
{
    return hash_mix(id) & (t->size - 1);
}

static size_t name_slot(const struct tree *t, uint64_t dir_id, struct slice name, enum node_kind kind)
{
    return hash_mix(hash_bytes(FNV_BASIS ^ dir_id << 2 ^ kind, name)) & (t->size - 1);
}

static void table_insert(struct tree *t, struct node *n)
{
    size_t i = id_slot(t, n->nodeid);
    size_t k = name_slot(t, n->parent ? n->parent->nodeid : 0, node_name(n), n->kind);

    n->hash_id = t->by_id[i];
    t->by_id[i] = n;
    n->hash_name = t->by_name[k];
    t->by_name[k] = n;
}

static void table_remove(struct tree *t, struct node *n)
{
    struct node **p = &t->by_id[id_slot(t, n->nodeid)];

    while (*p != n)
        p = &(*p)->hash_id;
    *p = n->hash_id;
    p = &t->by_name[name_slot(t, n->parent ? n->parent->nodeid : 0, node_name(n), n->kind)];
    while (*p != n)
        p = &(*p)->hash_name;
    *p = n->hash_name;
}

/* Doubles when there are as many nodes as heads. Without memory it stays as it is, only slower. */
static void table_grow(struct tree *t)
{
    struct node **old = t->by_id, **by_id, **by_name;
    size_t old_size = t->size;

    if (t->n_nodes < t->size)
        return;
    by_id = calloc(t->size * 2, sizeof *by_id);
    by_name = calloc(t->size * 2, sizeof *by_name);
    if (by_id == NULL || by_name == NULL) {
        free(by_id);
        free(by_name);
        return;
    }
    free(t->by_name);
    t->by_id = by_id;
    t->by_name = by_name;
    t->size *= 2;
    for (size_t i = 0; i < old_size; i++)
        for (struct node *n = old[i], *next; n; n = next) {
            next = n->hash_id;
            table_insert(t, n);
        }
    free(old);
}

struct node *tree_node(struct tree *t, uint64_t nodeid)
{
    struct node *n = t->by_id[id_slot(t, nodeid)];

    while (n && n->nodeid != nodeid)
        n = n->hash_id;
    return n;
}

struct node *node_find(struct tree *t, const struct node *dir, struct slice name, enum node_kind kind)
{
    struct node *n = t->by_name[name_slot(t, dir->nodeid, name, kind)];

    while (n && !(n->parent == dir && n->kind == kind && !n->retired && slice_eq(node_name(n), name)))
        n = n->hash_name;
    return n;
}

/* ---- life ---------------------------------------------------------------------------- */

static bool is_dead(const struct tree *t, const struct node *n)
{
    return !n->present && n->nlookup == 0 && n->refs == 0 && n != t->root;
}

static void bury_later(struct tree *t, struct node *n)
{
    if (n->buried || !is_dead(t, n))
        return;
    n->buried = true;
    n->grave_next = t->graves;
    t->graves = n;
}

static uint64_t node_ino(const struct node *dir, struct slice name, enum node_kind kind)
{
    uint64_t ino = dir ? hash_mix(hash_bytes(dir->ino ^ ((uint64_t)kind + 1), name)) : TREE_ROOT_ID;

    return dir && ino <= TREE_ROOT_ID ? ino + 2 : ino;
}

static void node_link(struct node *n, struct node *dir)
{
    n->parent = dir;
    n->prev = NULL;
    n->next = dir->dir->children;
    if (n->next)
        n->next->prev = n;
    dir->dir->children = n;
    dir->refs++;
}

static void node_unlink(struct tree *t, struct node *n)
{
    struct node *dir = n->parent;

    if (n->prev)
        n->prev->next = n->next;
    else
        dir->dir->children = n->next;
    if (n->next)
        n->next->prev = n->prev;
    dir->refs--;
    bury_later(t, dir);
}

static struct node *node_new(struct tree *t, struct node *dir, struct slice name, enum node_kind kind)
{
    struct node *n = calloc(1, sizeof *n + name.len + 1);

    if (n == NULL)
        return NULL;
    if (kind == NODE_DIR) {
        n->dir = calloc(1, sizeof *n->dir);
        if (n->dir == NULL) {
            free(n);
            return NULL;
        }
        n->dir->n_keys = -1;
        n->dir->mtime = tree_now_after((struct timespec){0});
    }
    n->nodeid = t->next_id++;
    n->generation = 1;
    n->kind = kind;
    n->name = n->first_name;
    n->name_len = (uint32_t)name.len;
    if (name.len)
        memcpy(n->name, name.ptr, name.len);
    n->ino = node_ino(dir, name, kind);
    if (dir)
        node_link(n, dir);
    table_insert(t, n);
    t->n_nodes++;
    table_grow(t);
    return n;
}

static void node_free(struct tree *t, struct node *n)
{
    assert(n->ext == NULL);
    assert(n->unsent == NULL);
    node_set_value(t, n, NULL);
    table_remove(t, n);
    t->n_nodes--;
    if (n->parent)
        node_unlink(t, n);
    if (n->dir) {
        assert(n->dir->load == NULL);
        free(n->dir);
    }
    if (n->name != n->first_name)
        free(n->name);
    free(n);
}

/* Inode numbers follow the keys: what is made under the old names must not have those of what was moved. */
static void ino_renew(struct node *n)
{
    n->old_ino = n->ino;
    n->ino = node_ino(n->parent, node_name(n), n->kind);
    for (struct node *c = n->dir ? n->dir->children : NULL; c; c = c->next)
        ino_renew(c);
}

int node_move(struct tree *t, struct node *n, struct node *dir, struct slice name)
{
    char *copy = malloc(name.len + 1);

    if (copy == NULL)
        return -ENOMEM;
    memcpy(copy, name.ptr, name.len);
    copy[name.len] = 0;
    table_remove(t, n);
    node_unlink(t, n);
    if (n->name != n->first_name)
        free(n->name);
    n->name = copy;
    n->name_len = (uint32_t)name.len;
    node_link(n, dir);
    table_insert(t, n);
    ino_renew(n);
    return 0;
}

/* Frees what died and did not come back to life since. */
void tree_bury(struct tree *t)
{
    while (t->graves) {
        struct node *n = t->graves;

        t->graves = n->grave_next;
        n->buried = false;
        if (is_dead(t, n))
            node_free(t, n);
    }
}

/* What a retired node knew: older news must not bring back the name by way of its new node. */
static int64_t absent_rev(const struct tree *t, const struct node *n)
{
    int64_t rev = 0;

    for (const struct node *o = t->by_name[name_slot(t, n->parent->nodeid, node_name(n), n->kind)]; o;
         o = o->hash_name)
        if (o->parent == n->parent && o->kind == n->kind && o->retired &&
            slice_eq(node_name(o), node_name(n)) && o->meta.mod_rev > rev)
            rev = o->meta.mod_rev;
    return rev;
}

struct node *node_get(struct tree *t, struct node *dir, struct slice name, enum node_kind kind)
{
    struct node *n = node_find(t, dir, name, kind);

    if (n == NULL) {
        n = node_new(t, dir, name, kind);
        if (n) {
            n->meta.mod_rev = absent_rev(t, n);
            bury_later(t, n);
        }
    }
    return n;
}

struct node *tree_twin(struct tree *t, const struct node *n)
{
    struct node *twin = node_new(t, n->parent, node_name(n), n->kind);

    if (twin) {
        twin->retired = true;
        bury_later(t, twin);
    }
    return twin;
}

void tree_retire(struct node *n)
{
    if (!n->present)
        n->retired = true;
}

struct node *tree_ghost(struct tree *t, struct node *dir, struct slice name, enum node_kind kind)
{
    return node_get(t, dir, name, kind);
}

struct node *node_ref(struct node *n)
{
    if (n)
        n->refs++;
    return n;
}

void node_unref(struct tree *t, struct node *n)
{
    if (n == NULL)
        return;
    assert(n->refs > 0);
    n->refs--;
    bury_later(t, n);
}

void node_lookup(struct tree *t, struct node *n)
{
    (void)t;
    n->nlookup++;
}

void node_forget(struct tree *t, struct node *n, uint64_t nlookup)
{
    if (n == t->root)
        return;
    n->nlookup -= nlookup < n->nlookup ? nlookup : n->nlookup;
    if (n->nlookup)
        return;
    /* A directory that stayed only for those inside it has nobody inside any more. */
    if (n->kind == NODE_DIR && n->present && n->dir->lingers) {
        n->dir->lingers = false;
        dir_check_empty(t, n, 0, FROM_OWN);
    }
    bury_later(t, n);
}

/* A ghost that must outlive its deletion until the watch has told it: older news would bring it back to
 * life. */
void tree_tomb(struct tree *t, struct node *n)
{
    if (t->n_tombs == t->tombs_size) {
        size_t size = t->tombs_size ? t->tombs_size * 2 : 64;
        struct node **tombs = realloc(t->tombs, size * sizeof *tombs);

        if (tombs == NULL)
            return;
        t->tombs = tombs;
        t->tombs_size = size;
    }
    t->tombs[t->n_tombs++] = node_ref(n);
}

void tree_passed(struct tree *t, int64_t rev)
{
    size_t kept = 0;

    for (size_t i = 0; i < t->n_tombs; i++)
        if (t->tombs[i]->meta.mod_rev > rev)
            t->tombs[kept++] = t->tombs[i];
        else
            node_unref(t, t->tombs[i]);
    t->n_tombs = kept;
}

void node_appear(struct tree *t, struct node *n)
{
    if (n->present)
        return;
    n->present = true;
    t->stats.present++;
    if (n->name_len > t->cfg.name_max)
        t->stats.unmapped++;
    if (n->kind != NODE_VALUE)
        n->parent->dir->n_present++;
    dir_touch(t, n->parent);
}

void node_vanish(struct tree *t, struct node *n, int64_t rev)
{
    if (!n->present)
        return;
    n->present = false;
    t->stats.present--;
    if (n->name_len > t->cfg.name_max)
        t->stats.unmapped--;
    if (n->kind != NODE_VALUE)
        n->parent->dir->n_present--;
    if (rev > n->meta.mod_rev)
        n->meta.mod_rev = rev;
    n->meta.version = 0;
    node_set_value(t, n, NULL);
    dir_touch(t, n->parent);
    bury_later(t, n);
}

void dir_touch(struct tree *t, struct node *dir)
{
    (void)t;
    dir->dir->mtime = tree_now_after(dir->dir->mtime);
}

/* ---- opening and closing ---------------------------------------------------------------------------- */

/* Names of up to 4095 bytes pass since Linux 6.15; before, up to 1024. */
static uint32_t kernel_name_max(void)
{
    struct utsname u;
    int major = 0, minor = 0;

    if (uname(&u) < 0 || sscanf(u.release, "%d.%d", &major, &minor) != 2)
        return CODEC_NAME_MAX_OLD;
    return major > 6 || (major == 6 && minor >= 15) ? CODEC_NAME_MAX : CODEC_NAME_MAX_OLD;
}

int tree_open(const struct tree_config *cfg, struct client *c, struct tree **ret_tree)
{
    struct tree *t = calloc(1, sizeof *t);

    if (t == NULL)
        return -ENOMEM;
    t->client = c;
    t->cfg = *cfg;
    if (t->cfg.name_max == 0)
        t->cfg.name_max = kernel_name_max();
    t->next_id = TREE_ROOT_ID;
    t->next_serial = 1;
    t->size = TABLE_FIRST;
    t->unsent_end = &t->unsent;
    t->prefix_len = cfg->prefix.len;
    t->prefix = malloc(cfg->prefix.len + 1);
    t->by_id = calloc(t->size, sizeof *t->by_id);
    t->by_name = calloc(t->size, sizeof *t->by_name);
    if (t->prefix == NULL || t->by_id == NULL || t->by_name == NULL)
        goto fail;
    if (cfg->prefix.len)
        memcpy(t->prefix, cfg->prefix.ptr, cfg->prefix.len);
    t->root = node_new(t, NULL, SLICE_NONE, NODE_DIR);
    if (t->root == NULL)
        goto fail;
    t->root->present = true;
    t->root->nlookup = 1; /* the kernel knows it from the mount on, without asking */
    *ret_tree = t;
    return 0;
fail:
    free(t->prefix);
    free(t->by_id);
    free(t->by_name);
    free(t);
    return -ENOMEM;
}

struct node *tree_root(struct tree *t)
{
    return t->root;
}

struct slice tree_prefix(const struct tree *t)
{
    return slice_of(t->prefix, t->prefix_len);
}

void tree_get_stats(const struct tree *t, struct tree_stats *ret_stats)
{
    *ret_stats = t->stats;
    ret_stats->nodes = t->n_nodes;
    ret_stats->dirs_loaded = 0;
    for (size_t i = 0; i < t->size; i++)
        for (const struct node *n = t->by_id[i]; n; n = n->hash_id)
            ret_stats->dirs_loaded += n->kind == NODE_DIR && n->present && n->dir->state == DIR_LOADED;
    ret_stats->value_bytes = t->lru_bytes;
}

/* Before client_close(): it gives up calls. The kernel is gone, so lookups no longer count. */
void tree_close(struct tree *t)
{
    if (t == NULL)
        return;
    reads_close(t);
    loads_close(t);
    for (size_t i = 0; i < t->size; i++)
        for (struct node *n = t->by_id[i], *next; n; n = next) {
            next = n->hash_id;
            value_unref(n->value);
            free(n->dir);
            if (n->name != n->first_name)
                free(n->name);
            free(n);
        }
    free(t->by_id);
    free(t->by_name);
    free(t->tombs);
    free(t->scratch);
    free(t->prefix);
    free(t);
}
