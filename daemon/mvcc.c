/* SPDX-License-Identifier: Apache-2.0 */
/* mvcc.c - Range: what a request means, which keys it takes, in which order they leave.
 *
 * etcd's order of doing things is visible to clients, so it is ours:
 *
 *   1. keys of the range as of the revision, ascending; each counts, whatever comes after;
 *   2. with order NONE, or KEY ascending, and no min/max filter: the first limit + 1 of them;
 *      otherwise all of them;
 *   3. filters;
 *   4. sort, unless it is by key ascending; order NONE with another target than KEY means ascending, and comes
 *      after the limit of step 2;
 *   5. more = there are more than limit; the first limit leave.
 *
 * Equal sort keys leave by key ascending; etcd leaves that open. keys_only answers have their lease, as in
 * etcd 3.4 to 3.6 (3.7 leaves it out, unless sorted by value).
 *
 * Owner:    whose view it is. One key costs a look in each layer and one allocation in the arena.
 * Not here: the revision rules of a txn (txn.c), who may read (auth), packing (svc_kv.c).
 * Source:   etcd v3.7.1 server/etcdserver/txn/range.go and server/storage/mvcc/kvstore_txn.go.
 */
#include <errno.h>
#include <time.h>
#include "err.h"
#include "mvcc.h"

typedef Etcdserverpb__RangeRequest Request;
typedef Mvccpb__KeyValue Row;

static struct slice bytes(ProtobufCBinaryData b)
{
    return slice_of(b.data, b.len);
}

int mvcc_check_range(const Request *req)
{
    if (req->key.len == 0)
        return ERR_KEY_EMPTY;
    if (req->sort_order < ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__NONE ||
        req->sort_order > ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__DESCEND)
        return ERR_SORT_OPTION;
    if (req->sort_target < ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__KEY ||
        req->sort_target > ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VALUE)
        return ERR_SORT_OPTION;
    return 0;
}

void mvcc_bounds(struct slice key, struct slice range_end, struct slice *ret_from, struct slice *ret_end,
                 bool *ret_single)
{
    *ret_from = key;
    *ret_single = range_end.len == 0;
    *ret_end = range_end.len == 1 && range_end.ptr[0] == 0 ? SLICE_NONE : range_end;
}

/* ---- rows ------------------------------------------------------------------------ */

static bool by_value(const Request *req)
{
    return req->sort_target == ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VALUE;
}

/* The body of a row that leaves without its value need not be fetched. */
static unsigned body_flags(const Request *req)
{
    return req->count_only || (req->keys_only && !by_value(req)) ? BASE_NO_BODY : 0;
}

/* ret is in the arena; its key in the arena or where the body is. */
static int row_fill(const Request *req, const struct change *c, struct arena *a, Row *ret)
{
    if (!(body_flags(req) & BASE_NO_BODY))
        return body_decode(c->body, ret) ? -EUCLEAN : 0;
    mvccpb__key_value__init(ret);
    ret->key.data = (uint8_t *)(uintptr_t)arena_copy(a, c->key).ptr;
    ret->key.len = c->key.len;
    ret->create_revision = c->create_revision;
    ret->mod_revision = c->rev.main;
    ret->version = c->version;
    ret->lease = c->lease;
    return ret->key.data ? 0 : ERR_ARENA_FULL;
}

static bool passes(const Request *req, const struct change *c)
{
    return (req->min_mod_revision == 0 || c->rev.main >= req->min_mod_revision) &&
           (req->max_mod_revision == 0 || c->rev.main <= req->max_mod_revision) &&
           (req->min_create_revision == 0 || c->create_revision >= req->min_create_revision) &&
           (req->max_create_revision == 0 || c->create_revision <= req->max_create_revision);
}

static bool has_filters(const Request *req)
{
    return req->min_mod_revision || req->max_mod_revision || req->min_create_revision ||
           req->max_create_revision;
}

/* Pointers into an arena, in an array that doubles. */
struct rows {
    Row **row;
    size_t n, room;
};

static int rows_add(struct rows *rows, const Request *req, const struct change *c, struct arena *a)
{
    Row *row = arena_alloc(a, sizeof *row);

    if (row == NULL)
        return ERR_ARENA_FULL;
    if (rows->n == rows->room) {
        size_t room = rows->room ? 2 * rows->room : 16;
        Row **wider = arena_alloc(a, room * sizeof *wider);

        if (wider == NULL)
            return ERR_ARENA_FULL;
        if (rows->n)
            memcpy(wider, rows->row, rows->n * sizeof *wider);
        rows->row = wider;
        rows->room = room;
    }
    rows->row[rows->n++] = row;
    return row_fill(req, c, a, row);
}

/* ---- order -------------------------------------------------------------------------- */

static int compare(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

static int order_key(const void *a, const void *b)
{
    return slice_cmp(bytes((*(Row *const *)a)->key), bytes((*(Row *const *)b)->key));
}

/* One pair of functions a target: ascending and descending, both with equals by key ascending. */
#define ORDER(name, difference)                                                                              \
    static int order_##name(const void *pa, const void *pb)                                                  \
    {                                                                                                        \
        const Row *a = *(Row *const *)pa, *b = *(Row *const *)pb;                                            \
        int c = difference;                                                                                  \
                                                                                                             \
        return c ? c : order_key(pa, pb);                                                                    \
    }                                                                                                        \
    static int order_##name##_down(const void *pa, const void *pb)                                           \
    {                                                                                                        \
        const Row *a = *(Row *const *)pa, *b = *(Row *const *)pb;                                            \
        int c = difference;                                                                                  \
                                                                                                             \
        return c ? -c : order_key(pa, pb);                                                                   \
    }

ORDER(version, compare(a->version, b->version))
ORDER(create, compare(a->create_revision, b->create_revision))
ORDER(mod, compare(a->mod_revision, b->mod_revision))
ORDER(value, slice_cmp(bytes(a->value), bytes(b->value)))

static int order_key_down(const void *a, const void *b)
{
    return -order_key(a, b);
}

static void rows_sort(struct rows *rows, const Request *req)
{
    static int (*const order[][2])(const void *, const void *) = {
        [ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__KEY] = {NULL, order_key_down},
        [ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VERSION] = {order_version, order_version_down},
        [ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__CREATE] = {order_create, order_create_down},
        [ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__MOD] = {order_mod, order_mod_down},
        [ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VALUE] = {order_value, order_value_down},
    };
    bool down = req->sort_order == ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__DESCEND;
    int (*fn)(const void *, const void *) = order[req->sort_target][down];

    /* NULL: they come that way. */
    if (fn && rows->n > 1)
        qsort(rows->row, rows->n, sizeof *rows->row, fn);
}

static bool is_default_order(const Request *req)
{
    return req->sort_order == ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__NONE ||
           (req->sort_order == ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__ASCEND &&
            req->sort_target == ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__KEY);
}

/* ---- the read --------------------------------------------------------------------------- */

static int range_one(struct view *v, const Request *req, int64_t rev, struct arena *a,
                     Etcdserverpb__RangeResponse *ret)
{
    struct one {
        Row *pointer;
        Row row;
    } * one;
    struct change c;
    int rc = view_get(v, bytes(req->key), rev, body_flags(req), a, &c);

    ret->more = false;
    ret->count = rc == 0;
    ret->n_kvs = 0;
    ret->kvs = NULL;
    if (rc || req->count_only || !passes(req, &c))
        return rc == ERR_KEY_NOT_FOUND ? 0 : rc;
    one = arena_alloc(a, sizeof *one);
    if (one == NULL)
        return ERR_ARENA_FULL;
    rc = row_fill(req, &c, a, &one->row);
    if (rc)
        return rc;
    if (req->keys_only)
        one->row.value = (ProtobufCBinaryData){0};
    one->pointer = &one->row;
    ret->kvs = &one->pointer;
    ret->n_kvs = 1;
    return 0;
}

static uint64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* Steps 1 to 3: rows is what is kept, *ret_count how many the range has. */
static int collect(struct view_cursor *cur, const Request *req, const struct mvcc_limits *lim,
                   struct arena *a, struct rows *rows, uint64_t *ret_count)
{
    bool filtered = has_filters(req);
    uint64_t keep =
        req->limit > 0 && is_default_order(req) && !filtered ? (uint64_t)req->limit + 1 : UINT64_MAX;
    uint64_t start_us = lim->time_us ? now_us() : 0, n = 0;
    struct change c;
    int rc;

    if (req->count_only)
        keep = 0;
    for (;;) {
        if (rows->n >= keep)
            view_cursor_set_flags(cur, BASE_NO_BODY);
        rc = view_cursor_next(cur, a, &c);
        if (rc)
            break;
        n++;
        if (lim->rows_max && n > lim->rows_max)
            return MVCC_TOO_LONG;
        if (lim->time_us && n % 16 == 0 && now_us() - start_us > lim->time_us)
            return MVCC_TOO_LONG;
        if (rows->n < keep && passes(req, &c) && (rc = rows_add(rows, req, &c, a)) != 0)
            return rc;
    }
    *ret_count = n;
    return rc == ERR_KEY_NOT_FOUND ? 0 : rc;
}

static int range_many(struct view *v, const Request *req, struct slice from, struct slice end, int64_t rev,
                      const struct mvcc_limits *lim, struct arena *a, Etcdserverpb__RangeResponse *ret)
{
    struct view_cursor *cur;
    struct rows rows = {0};
    uint64_t count = 0;
    int rc = view_cursor_new(v, from, end, rev, body_flags(req), &cur);

    if (rc)
        return rc;
    rc = collect(cur, req, lim, a, &rows, &count);
    view_cursor_free(cur);
    if (rc)
        return rc;
    rows_sort(&rows, req);
    ret->count = (int64_t)count;
    ret->more = req->limit > 0 && rows.n > (uint64_t)req->limit;
    ret->n_kvs = ret->more ? (size_t)req->limit : rows.n;
    ret->kvs = rows.row;
    for (size_t i = 0; req->keys_only && i < ret->n_kvs; i++)
        rows.row[i]->value = (ProtobufCBinaryData){0};
    return 0;
}

int mvcc_range(struct view *v, int64_t rev_now, const Request *req, const struct mvcc_limits *lim,
               struct arena *a, Etcdserverpb__RangeResponse *ret)
{
    int64_t rev = req->revision <= 0 ? rev_now : req->revision;
    struct slice from, end;
    bool single;

    if (rev > rev_now)
        return ERR_FUTURE_REV;
    if (rev < v->compact_rev)
        return ERR_COMPACTED;
    mvcc_bounds(bytes(req->key), bytes(req->range_end), &from, &end, &single);
    if (single)
        return range_one(v, req, rev, a, ret);
    return range_many(v, req, from, end, rev, lim, a, ret);
}
