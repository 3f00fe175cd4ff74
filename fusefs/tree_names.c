/* SPDX-License-Identifier: Apache-2.0 */
/* tree_names.c - the names and keys of nodes, their attributes, and what a directory lists. */
#include "tree.h"

#include <errno.h>

#include "tree_private.h"

#define BLOCK_BYTES (1u << 20) /* st_blksize: one WRITE for most values */

/* ---- keys and names --------------------------------------------------------------------- */

/* The encoded name of a component, in the tree's scratch memory until the next call. */
int tree_scratch(struct tree *t, struct slice component, const struct node *dir, struct slice *ret_name)
{
    size_t need = component.len * CODEC_EXPANSION + 8;
    int n;

    if (need > t->scratch_size) {
        char *p = realloc(t->scratch, need);

        if (p == NULL)
            return -ENOMEM;
        t->scratch = p;
        t->scratch_size = need;
    }
    n = codec_encode(component, dir == t->root, t->scratch, t->scratch_size);
    if (n < 0)
        return n;
    *ret_name = slice_of(t->scratch, (size_t)n);
    return 0;
}

/* An upper bound: decoding never lengthens. */
static size_t key_bound(const struct tree *t, const struct node *n)
{
    size_t len = t->prefix_len + 1;

    for (; n; n = n->parent)
        len += n->name_len + 1;
    return len;
}

/* Appends the keys of a directory and those above it: "app/db/". */
static size_t dir_key(const struct tree *t, const struct node *n, uint8_t *buf)
{
    size_t at, len = 0;
    int r;

    if (n->parent == NULL) {
        if (t->prefix_len)
            memcpy(buf, t->prefix, t->prefix_len);
        return t->prefix_len;
    }
    at = dir_key(t, n->parent, buf);
    r = codec_decode(node_name(n), n->parent == t->root, buf + at, &len);
    assert(r == 0); /* names in the tree came from codec_encode or passed codec_decode */
    buf[at + len] = '/';
    return at + len + 1;
}

int node_key(const struct tree *t, const struct node *n, uint8_t **ret_key, size_t *ret_len)
{
    uint8_t *buf = malloc(key_bound(t, n));
    size_t at, len = 0;

    if (buf == NULL)
        return -ENOMEM;
    if (n->kind == NODE_DIR) {
        at = dir_key(t, n, buf);
    } else if (n->kind == NODE_VALUE) {
        at = dir_key(t, n->parent, buf) - 1; /* the directory's own key, without the slash */
    } else {
        at = dir_key(t, n->parent, buf);
        (void)codec_decode(node_name(n), n->parent == t->root, buf + at, &len); /* as above: never fails */
        at += len;
    }
    *ret_key = buf;
    *ret_len = at;
    return 0;
}

int node_child_key(const struct tree *t, const struct node *dir, struct slice name, bool is_dir,
                   uint8_t **ret_key, size_t *ret_len)
{
    bool is_value = slice_eq(name, S(CODEC_VALUE_NAME));
    size_t at, len = 0;
    uint8_t *buf;
    int r;

    if (name.len > t->cfg.name_max)
        return -ENAMETOOLONG;
    if (is_value && (is_dir || dir == t->root))
        return -EPERM;
    buf = malloc(key_bound(t, dir) + name.len + 2);
    if (buf == NULL)
        return -ENOMEM;
    at = dir_key(t, dir, buf);
    if (is_value) {
        at--;
    } else {
        r = codec_decode(name, dir == t->root, buf + at, &len);
        if (r < 0) {
            free(buf);
            return r;
        }
        at += len;
        if (is_dir)
            buf[at++] = '/';
    }
    *ret_key = buf;
    *ret_len = at;
    return 0;
}

char *node_path(const struct node *n)
{
    size_t len = 0, at;
    char *path;

    for (const struct node *p = n; p->parent; p = p->parent)
        len += p->name_len + 1;
    path = malloc(len + 1);
    if (path == NULL)
        return NULL;
    at = len ? len - 1 : 0;
    path[at] = 0;
    for (const struct node *p = n; p->parent; p = p->parent) {
        at -= p->name_len;
        memcpy(path + at, p->name, p->name_len);
        if (at)
            path[--at] = '/';
    }
    return path;
}

struct node *tree_child(struct tree *t, const struct node *dir, struct slice name)
{
    static const enum node_kind kinds[] = {NODE_DIR, NODE_FILE, NODE_VALUE};

    for (int i = 0; i < 3; i++) {
        struct node *n = node_find(t, dir, name, kinds[i]);

        if (n && n->present)
            return n;
    }
    return NULL;
}

struct node *tree_find_key(struct tree *t, struct slice key)
{
    struct slice prefix = slice_of(t->prefix, t->prefix_len), name;
    struct node *dir = t->root, *n;

    if (!slice_has_prefix(key, prefix))
        return NULL;
    key = slice_of(key.ptr + prefix.len, key.len - prefix.len);
    for (;;) {
        const uint8_t *slash = memchr(key.ptr, '/', key.len);
        struct slice part = slash ? slice_of(key.ptr, (size_t)(slash - key.ptr)) : key;

        if (tree_scratch(t, part, dir, &name) < 0)
            return NULL;
        n = node_find(t, dir, name, NODE_DIR);
        if (slash == NULL)
            break;
        if (n == NULL || !n->present)
            return NULL;
        dir = n;
        key = slice_of(slash + 1, key.len - part.len - 1);
    }
    n = n && n->present ? node_find(t, n, S(CODEC_VALUE_NAME), NODE_VALUE)
                        : node_find(t, dir, name, NODE_FILE);
    return n && n->present ? n : NULL;
}

/* ---- attributes ---------------------------------------------------------------------------- */

void node_stat(const struct tree *t, const struct node *n, struct stat *ret_st)
{
    struct stat st = {.st_ino = n->ino, .st_nlink = 1, .st_uid = t->cfg.uid, .st_gid = t->cfg.gid};

    st.st_blksize = BLOCK_BYTES;
    if (n->kind == NODE_DIR) {
        st.st_mode = S_IFDIR | t->cfg.dir_mode;
        st.st_mtim = n->dir->mtime;
    } else {
        st.st_mode = S_IFREG | t->cfg.file_mode;
        st.st_size = (off_t)n->meta.size;
        st.st_blocks = (blkcnt_t)((n->meta.size + 511) / 512);
        st.st_mtim = n->mtime;
    }
    st.st_ctim = st.st_atim = st.st_mtim;
    *ret_st = st;
}

/* ---- listing ---------------------------------------------------------------------------------- */

static int entry_cmp(const void *a, const void *b)
{
    uint64_t x = ((const struct list_entry *)a)->nodeid, y = ((const struct list_entry *)b)->nodeid;

    return (x > y) - (x < y);
}

static bool is_listed(const struct tree *t, const struct node *n)
{
    return n->present && n->name_len <= t->cfg.name_max;
}

int tree_list(struct tree *t, const struct node *dir, struct listing *ret_list)
{
    struct listing l = {0};
    size_t n = 0, bytes = 0;
    char *at;

    for (const struct node *c = dir->dir->children; c; c = c->next)
        if (is_listed(t, c)) {
            n++;
            bytes += c->name_len + 1;
        }
    l.entries = calloc(n + 1, sizeof *l.entries);
    l.names = at = malloc(bytes + 1);
    if (l.entries == NULL || l.names == NULL) {
        listing_fini(&l);
        return -ENOMEM;
    }
    for (const struct node *c = dir->dir->children; c; c = c->next) {
        if (!is_listed(t, c))
            continue;
        l.entries[l.n++] =
            (struct list_entry){.nodeid = c->nodeid, .ino = c->ino, .kind = c->kind, .name = at};
        memcpy(at, c->name, c->name_len + 1);
        at += c->name_len + 1;
    }
    qsort(l.entries, l.n, sizeof *l.entries, entry_cmp);
    *ret_list = l;
    return 0;
}

void listing_fini(struct listing *l)
{
    free(l->entries);
    free(l->names);
    *l = (struct listing){0};
}
