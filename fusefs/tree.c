/* SPDX-License-Identifier: Apache-2.0 */
/* tree.c - nodes: their names, lives, attributes and values.
 *
 * Two hash tables hold every node: by nodeid, and by (parent, kind, name). A node dies when it is not
 * present, the kernel does not know it and nobody refers to it; it is buried when the loop comes round
 * (tree_flush), so that a node just answered or just deleted can still be named in the same turn.
 *
 * Times: the store has no clock. An anchor says at which wall time we saw which revision. The time of a
 * revision is that of the first anchor at or after it, less a nanosecond for each revision in between: so
 * times order files as their revisions do, and a later revision is never given an earlier time.
 */
#include "tree.h"

#include <errno.h>
#include <stdio.h>
#include <sys/utsname.h>

#include "tree_private.h"

#define FNV_BASIS   0xcbf29ce484222325ull
#define FNV_PRIME   0x100000001b3ull
#define BLOCK_BYTES (1u << 20) /* st_blksize: one WRITE for most values */
#define NS_PER_S    1000000000ll
#define TABLE_FIRST 1024

static uint64_t hash_bytes(uint64_t h, struct slice s)
{
    for (size_t i = 0; i < s.len; i++)
        h = (h ^ s.ptr[i]) * FNV_PRIME;
    return h;
}

/* Spreads the bits: FNV's low ones are weak. */
static uint64_t hash_mix(uint64_t h)
{
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdull;
    h ^= h >> 33;
    h *= 0xc4ceb9fe1a85ec53ull;
    return h ^ h >> 33;
}

/* Eight bytes at a time: values are long. Only ever compared within this process. */
uint64_t value_hash(struct slice s)
{
    uint64_t h = FNV_BASIS ^ s.len;
    size_t i = 0;

    for (; i + 8 <= s.len; i += 8)
        h = hash_mix(h ^ get_u64le(s.ptr + i));
    return hash_mix(hash_bytes(h, slice_of(s.ptr + i, s.len - i)));
}

/* ---- times ------------------------------------------------------------------------ */

static int64_t wall_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

static int64_t timespec_ns(struct timespec ts)
{
    return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

static struct timespec ns_timespec(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S};
}

/* Now, but later than `old`: a time that moved must be seen to move. */
struct timespec tree_now_after(struct timespec old)
{
    int64_t now = wall_ns(), before = timespec_ns(old);

    return ns_timespec(now > before ? now : before + 1);
}

/* The store stands at rev now. Anchors are thinned to one a second; when full, every second one of the older
 * half goes. */
void tree_anchor(struct tree *t, int64_t rev)
{
    struct anchor *last = t->n_anchors ? &t->anchors[t->n_anchors - 1] : NULL;
    int64_t ns = wall_ns();

    if (last && (rev <= last->rev || ns - last->ns < TREE_ANCHOR_GAP_MS * 1000000ll))
        return;
    if (t->n_anchors == TREE_ANCHORS) {
        unsigned kept = 1;

        for (unsigned i = 2; i < TREE_ANCHORS; i += i < TREE_ANCHORS / 2 ? 2 : 1)
            t->anchors[kept++] = t->anchors[i];
        t->n_anchors = kept;
    }
    t->anchors[t->n_anchors++] = (struct anchor){rev, ns};
}

struct timespec tree_time(struct tree *t, int64_t rev)
{
    unsigned lo = 0, hi = t->n_anchors;
    int64_t now = wall_ns();

    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;

        if (t->anchors[mid].rev < rev)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo < t->n_anchors)
        return ns_timespec(t->anchors[lo].ns - (t->anchors[lo].rev - rev));
    if (t->n_anchors == 0)
        return ns_timespec(now);

    const struct anchor *last = &t->anchors[t->n_anchors - 1];
    int64_t floor = last->ns + (rev - last->rev);

    return ns_timespec(now > floor ? now : floor);
}

/* ---- the two tables ------------------------------------------------------------------ */

static size_t id_slot(const struct tree *t, uint64_t id)
{
    return hash_mix(id) & (t->size - 1);
}

static size_t name_slot(const struct tree *t, uint64_t dir_id, struct slice name, enum node_kind kind)
{
    return hash_mix(hash_bytes(FNV_BASIS ^ dir_id << 2 ^ kind, name)) & (t->size - 1);
}

static struct slice node_name(const struct node *n)
{
    return slice_of(n->name, n->name_len);
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
    n->parent = dir;
    n->name_len = (uint32_t)name.len;
    if (name.len)
        memcpy(n->name, name.ptr, name.len);
    n->ino = dir ? hash_mix(hash_bytes(dir->ino ^ ((uint64_t)kind + 1), name)) : TREE_ROOT_ID;
    if (dir && n->ino <= TREE_ROOT_ID)
        n->ino += 2;
    if (dir) {
        n->next = dir->dir->children;
        if (n->next)
            n->next->prev = n;
        dir->dir->children = n;
        dir->refs++;
    }
    table_insert(t, n);
    t->n_nodes++;
    table_grow(t);
    return n;
}

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

static void node_free(struct tree *t, struct node *n)
{
    struct node *dir = n->parent;

    assert(n->ext == NULL);
    assert(n->unsent == NULL);
    node_set_value(t, n, NULL);
    table_remove(t, n);
    t->n_nodes--;
    if (dir) {
        if (n->prev)
            n->prev->next = n->next;
        else
            dir->dir->children = n->next;
        if (n->next)
            n->next->prev = n->prev;
        dir->refs--;
        bury_later(t, dir);
    }
    if (n->dir) {
        assert(n->dir->load == NULL);
        free(n->dir);
    }
    free(n);
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

/* ---- values -------------------------------------------------------------------------------------- */

struct value *value_new(struct slice bytes, const struct key_meta *meta)
{
    struct value *v = malloc(sizeof *v + bytes.len);

    if (v == NULL)
        return NULL;
    v->refs = 1;
    v->meta = *meta;
    v->meta.size = bytes.len;
    v->meta.hash = value_hash(bytes);
    if (bytes.len)
        memcpy(v->bytes, bytes.ptr, bytes.len);
    return v;
}

struct value *value_ref(struct value *v)
{
    if (v)
        v->refs++;
    return v;
}

void value_unref(struct value *v)
{
    if (v && --v->refs == 0)
        free(v);
}

static void lru_remove(struct tree *t, struct node *n)
{
    *(n->lru_prev ? &n->lru_prev->lru_next : &t->lru_first) = n->lru_next;
    *(n->lru_next ? &n->lru_next->lru_prev : &t->lru_last) = n->lru_prev;
    n->lru_next = n->lru_prev = NULL;
}

static void lru_push(struct tree *t, struct node *n)
{
    n->lru_next = t->lru_first;
    n->lru_prev = NULL;
    *(t->lru_first ? &t->lru_first->lru_prev : &t->lru_last) = n;
    t->lru_first = n;
}

/* v: borrowed, or NULL to drop what is there. */
void node_set_value(struct tree *t, struct node *n, struct value *v)
{
    if (n->value) {
        lru_remove(t, n);
        t->lru_bytes -= n->value->meta.size + sizeof *n->value;
        value_unref(n->value);
        n->value = NULL;
    }
    if (v == NULL)
        return;
    n->value = value_ref(v);
    t->lru_bytes += v->meta.size + sizeof *v;
    lru_push(t, n);
    while (t->lru_bytes > TREE_VALUES_BYTES && t->lru_last != n)
        node_set_value(t, t->lru_last, NULL);
}

/* It was just used. */
void node_touch_value(struct tree *t, struct node *n)
{
    if (n->value == NULL || t->lru_first == n)
        return;
    lru_remove(t, n);
    lru_push(t, n);
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
            free(n);
        }
    free(t->by_id);
    free(t->by_name);
    free(t->tombs);
    free(t->scratch);
    free(t->prefix);
    free(t);
}
