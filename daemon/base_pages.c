/* SPDX-License-Identifier: Apache-2.0 */
/* base_pages.c - looks at LMDB's pages themselves: whether its trees hang together.
 *
 * Rows have checksums, LMDB's pages have none: a damaged branch page hides rows whose own checksums are right, and a
 * page that the list of free pages names wrongly is overwritten by the next commit. What must hold, of each page
 * reached from the roots: it says its own number and kind; its entries lie in it, in ascending order, between the
 * separators above; its level is the tree's depth; no page is reached twice, nor is it in the list of free pages; a
 * tree has as many pages as it says. So a branch page as an older commit left it is seen too: what it leads to is free
 * since, or somebody else's.
 *
 *     a page      0 u64le number   8 u16 -   10 u16le flags   12 u16le lower   14 u16le upper   16 u16le entries' places ...
 *                 flags: 1 branch, 2 leaf, 4 overflow (then 12 u32le pages), 0x10 dirty, which does not count
 *     an entry    0 u16le low   2 u16le high   4 u16le flags   6 u16le key's length   8 key, value
 *                 branch: the child is low, high, flags (48 bits); its first key is not read. Leaf: low, high the value's
 *                 length; flags: 1 the value is the number of an overflow page, 2 a table's root
 *     a root      4 u16le -   6 u16le depth   8 u64le branch, leaf, overflow pages, rows   40 u64le page, all ones: none
 *     a meta page 40 root of the free list, 88 root of the table of tables, 136 u64le last page, 144 u64le transaction
 *     free list   u64le transaction -> u64le n, n times u64le page
 *
 * At an opening the leaves of the large tables are not read, only counted: it costs a read of a hundredth of the file,
 * and none if there are very many. Nothing of LMDB is called that reads a page, so nothing here crashes on one.
 *
 * Owner: the main thread, or the one whose base_check it is; no commit meanwhile.
 * Source: LMDB 0.9 (mdb.c: MDB_page, MDB_node, MDB_db, MDB_meta).
 */
#include <errno.h>
#include "base_db.h"

enum { PAGE_HEAD = 16, NODE_HEAD = 8, ROOT_BYTES = 48, DEPTH_MAX = 32, BRANCH_MAX = 1 << 15 };
enum { FLAG_BRANCH = 1, FLAG_LEAF = 2, FLAG_OVERFLOW = 4, FLAG_KINDS = 0x4f };
enum { NODE_BIG = 1, NODE_TABLE = 2 };
enum { META_FREE = 40, META_MAIN = 88, META_LAST = 136, META_TXN = 144 };

enum tree { TREE_FREE, TREE_MAIN, TREE_TABLE };

struct pages {
    const struct base *base;
    uint64_t last;
    uint8_t *seen;             /* a bit a page; owned */
    bool leaves;               /* of the tables are read too */
    enum tree tree;
    uint64_t n_branch, n_leaf; /* of this tree */
    const char *what;
};

/* Between which keys all of a page must be; no pointer: no bound. */
struct bounds {
    struct slice from, to;
};

static int bad(struct pages *x, const char *what)
{
    if (x->what == NULL)
        x->what = what;
    return -EUCLEAN;
}

static const uint8_t *page_at(const struct pages *x, uint64_t n)
{
    return (const uint8_t *)(x->base->map + n * x->base->page_bytes);
}

static int see(struct pages *x, uint64_t n)
{
    if (n < 2 || n > x->last)
        return bad(x, "a page beyond the last one");
    if (x->seen[n / 8] & 1u << n % 8)
        return bad(x, "a page that two lead to");
    x->seen[n / 8] |= (uint8_t)(1u << n % 8);
    return 0;
}

static int key_cmp(const struct pages *x, struct slice a, struct slice b)
{
    if (x->tree == TREE_FREE)
        return (get_u64le(a.ptr) > get_u64le(b.ptr)) - (get_u64le(a.ptr) < get_u64le(b.ptr));
    return slice_cmp(a, b);
}

/* ---- one page ---- */

struct page {
    const uint8_t *p;
    unsigned n; /* entries */
};

static int page_open(struct pages *x, uint64_t number, unsigned flag, struct page *ret)
{
    const uint8_t *p = page_at(x, number);
    unsigned lower = get_u16le(p + 12), upper = get_u16le(p + 14);

    if (get_u64le(p) != number)
        return bad(x, "a page in another's place");
    if ((get_u16le(p + 10) & FLAG_KINDS) != flag)
        return bad(x, "a page of another kind");
    if (lower < PAGE_HEAD || lower % 2 || lower > upper || upper > x->base->page_bytes)
        return bad(x, "a page's head");
    *ret = (struct page){p, (lower - PAGE_HEAD) / 2};
    return 0;
}

/* The i-th entry, whose head and key lie in the page. */
static int node_at(struct pages *x, const struct page *pg, unsigned i, const uint8_t **ret_node, struct slice *ret_key)
{
    unsigned at = get_u16le(pg->p + PAGE_HEAD + 2 * i), key_len;

    if (at < get_u16le(pg->p + 14) || at + NODE_HEAD > x->base->page_bytes)
        return bad(x, "an entry outside of its page");
    key_len = get_u16le(pg->p + at + 6);
    if (at + NODE_HEAD + key_len > x->base->page_bytes || (x->tree == TREE_FREE && key_len != 8 && key_len != 0))
        return bad(x, "an entry outside of its page");
    *ret_node = pg->p + at;
    *ret_key = slice_of(pg->p + at + NODE_HEAD, key_len);
    return 0;
}

static int check_order(struct pages *x, struct slice before, struct slice key, const struct bounds *in)
{
    if (x->tree == TREE_FREE && key.len != 8)
        return bad(x, "a key of the free list");
    if ((before.ptr && key_cmp(x, before, key) >= 0) || (in->from.ptr && key_cmp(x, key, in->from) < 0) ||
        (in->to.ptr && key_cmp(x, key, in->to) >= 0))
        return bad(x, "the order of a page's keys");
    return 0;
}

/* ---- leaves ---- */

/* The value of a leaf's entry, in one piece; overflow pages are seen. */
static int node_value(struct pages *x, const struct page *pg, const uint8_t *node, struct slice key, struct slice *ret)
{
    size_t len = get_u16le(node) | (size_t)get_u16le(node + 2) << 16, page = x->base->page_bytes;
    const uint8_t *at = key.ptr + key.len;
    bool big = get_u16le(node + 4) & NODE_BIG;
    uint64_t first, n;
    int err;

    if (at + (big ? 8 : len) > pg->p + page)
        return bad(x, "a value outside of its page");
    *ret = slice_of(at, len);
    if (!big)
        return 0;
    first = get_u64le(at);
    n = (PAGE_HEAD + len + page - 1) / page;
    for (uint64_t i = 0; i < n; i++)
        if ((err = see(x, first + i)) != 0)
            return err;
    if (get_u64le(page_at(x, first)) != first || (get_u16le(page_at(x, first) + 10) & FLAG_KINDS) != FLAG_OVERFLOW)
        return bad(x, "an overflow page");
    *ret = slice_of(page_at(x, first) + PAGE_HEAD, len);
    return 0;
}

static int check_tree(struct pages *x, enum tree tree, const uint8_t *root);

static int check_table(struct pages *x, struct slice value)
{
    struct pages of_main = *x;
    int err;

    if (value.len != ROOT_BYTES)
        return bad(x, "the root of a table");
    err = check_tree(x, TREE_TABLE, value.ptr);
    x->tree = of_main.tree;
    x->n_branch = of_main.n_branch;
    x->n_leaf = of_main.n_leaf;
    return err;
}

static int check_free(struct pages *x, struct slice value)
{
    uint64_t n = value.len >= 8 ? get_u64le(value.ptr) : UINT64_MAX;
    int err = 0;

    if (n > value.len / 8 - 1 || value.len < 8)
        return bad(x, "the list of free pages");
    for (uint64_t i = 1; i <= n && err == 0; i++)
        err = see(x, get_u64le(value.ptr + 8 * i));
    return err;
}

static int check_leaf(struct pages *x, uint64_t number, const struct bounds *in)
{
    struct slice before = SLICE_NONE, key, value;
    const uint8_t *node;
    struct page pg;
    int err;

    x->n_leaf++;
    if (x->tree == TREE_TABLE && !x->leaves)
        return 0;
    err = page_open(x, number, FLAG_LEAF, &pg);
    for (unsigned i = 0; i < pg.n && err == 0; i++, before = key) {
        if ((err = node_at(x, &pg, i, &node, &key)) || (err = check_order(x, before, key, in)) ||
            (err = node_value(x, &pg, node, key, &value)))
            break;
        if (x->tree == TREE_FREE)
            err = check_free(x, value);
        else if (x->tree == TREE_MAIN)
            err = get_u16le(node + 4) & NODE_TABLE ? check_table(x, value) : bad(x, "the table of tables");
    }
    return err;
}

/* ---- branches ---- */

static int check_page(struct pages *x, uint64_t number, unsigned levels, const struct bounds *in);

static int check_branch(struct pages *x, uint64_t number, unsigned levels, const struct bounds *in)
{
    struct slice before = SLICE_NONE, key, next = SLICE_NONE;
    const uint8_t *node, *following;
    struct page pg;
    int err = page_open(x, number, FLAG_BRANCH, &pg);

    x->n_branch++;
    if (err)
        return err;
    if (pg.n < 2)
        return bad(x, "a branch that does not fork");
    err = node_at(x, &pg, 0, &node, &key);
    for (unsigned i = 0; i < pg.n && err == 0; i++, before = key, node = following, key = next) {
        struct bounds below = {i ? key : in->from, in->to};

        if (i && (err = check_order(x, i > 1 ? before : SLICE_NONE, key, in)) != 0)
            break;
        following = NULL;
        if (i + 1 < pg.n && (err = node_at(x, &pg, i + 1, &following, &next)) == 0 && x->tree == TREE_FREE &&
            next.len != 8)
            err = bad(x, "a key of the free list");
        if (err)
            break;
        if (following)
            below.to = next;
        err = check_page(x, get_u16le(node) | (uint64_t)get_u16le(node + 2) << 16 | (uint64_t)get_u16le(node + 4) << 32,
                         levels - 1, &below);
    }
    return err;
}

static int check_page(struct pages *x, uint64_t number, unsigned levels, const struct bounds *in)
{
    int err = see(x, number);

    if (err)
        return err;
    return levels == 1 ? check_leaf(x, number, in) : check_branch(x, number, levels, in);
}

static int check_tree(struct pages *x, enum tree tree, const uint8_t *root)
{
    uint64_t number = get_u64le(root + 40);
    unsigned depth = get_u16le(root + 6);
    const struct bounds all = {SLICE_NONE, SLICE_NONE};
    int err;

    x->tree = tree;
    x->n_branch = x->n_leaf = 0;
    if (number == UINT64_MAX)
        return depth ? bad(x, "a root that is lost") : 0;
    if (depth == 0 || depth > DEPTH_MAX)
        return bad(x, "the depth of a tree");
    err = check_page(x, number, depth, &all);
    if (err == 0 && (x->n_branch != get_u64le(root + 8) || x->n_leaf != get_u64le(root + 16)))
        err = bad(x, "a tree's number of pages");
    return err;
}

/* ---- all ---- */

/* Where this transaction's roots stand; NULL: in neither of LMDB's two meta pages. */
static const uint8_t *meta_of(const struct pages *x, MDB_txn *txn)
{
    for (uint64_t n = 0; n < 2; n++)
        if (get_u64le(page_at(x, n) + META_TXN) == mdb_txn_id(txn))
            return page_at(x, n);
    return NULL;
}

static int too_many(const struct base *b, MDB_txn *txn, bool *ret_too_many)
{
    uint64_t n = 0;
    MDB_stat st;

    for (int t = 0; t < BASE_TABLES; t++) {
        int rc = mdb_stat(txn, b->dbi[t], &st);

        if (rc)
            return base_error(rc);
        n += st.ms_branch_pages;
    }
    *ret_too_many = n > BRANCH_MAX;
    return 0;
}

int base_pages_check(const struct base *b, MDB_txn *txn, bool leaves, const char **ret_what)
{
    struct pages x = {.base = b, .leaves = leaves};
    const uint8_t *meta = meta_of(&x, txn);
    bool many = false;
    int err = leaves ? 0 : too_many(b, txn, &many);

    if (err || many)
        return err;
    if (meta == NULL || get_u64le(meta + META_LAST) >= b->map_bytes / b->page_bytes)
        return -EUCLEAN;
    x.last = get_u64le(meta + META_LAST);
    x.seen = calloc(x.last / 8 + 1, 1);
    if (x.seen == NULL)
        return -ENOMEM;
    err = check_tree(&x, TREE_FREE, meta + META_FREE);
    if (err == 0)
        err = check_tree(&x, TREE_MAIN, meta + META_MAIN);
    free(x.seen);
    if (err && ret_what)
        *ret_what = x.what;
    return err;
}
