/* SPDX-License-Identifier: Apache-2.0 */
/* store_view.c - reading through a view: one key, keys in order, changes in order, leases, rows.
 *
 * A view is up to four layers, each with changes newer than the next: a txn's scratch, the live delta, the frozen
 * delta, base. The first that has a change of the key at or below the asked revision has the answer; a delta
 * that knows the key only above it knows nothing.
 *
 * Owner: the thread whose slot the view is in.
 * Not here: how a view comes about (store.c).
 */
#include <errno.h>
#include "err.h"
#include "store.h"

enum { DELTAS = 3 };

/* The deltas of a view, newest first; returns how many. */
static int view_deltas(const struct view *v, const struct delta *ret[DELTAS])
{
    int n = 0;

    if (v->scratch)
        ret[n++] = v->scratch;
    ret[n++] = v->live;
    if (v->frozen)
        ret[n++] = v->frozen;
    return n;
}

/* A delta has the body at no cost; who wanted none gets none all the same, as from base. */
static int answer(const struct change *c, unsigned base_flags, struct change *ret)
{
    if (c->tombstone)
        return ERR_KEY_NOT_FOUND;
    *ret = *c;
    if (base_flags & BASE_NO_BODY)
        ret->body = SLICE_NONE;
    return 0;
}

int view_get(struct view *v, struct slice key, int64_t rev, unsigned base_flags, struct arena *a,
             struct change *ret)
{
    const struct change *c = v->scratch ? delta_find(v->scratch, key, rev) : NULL;

    if (c == NULL)
        c = delta_find(v->live, key, rev);
    if (c == NULL && v->frozen)
        c = delta_find(v->frozen, key, rev);
    return c ? answer(c, base_flags, ret) : base_get(v->reader, key, rev, v->compact_rev, base_flags, a, ret);
}

/* ---- keys in order ------------------------------------------------------------------ */

struct view_cursor {
    struct view *view;
    struct slice end; /* ptr NULL: none */
    int64_t rev;
    unsigned base_flags;
    int n_deltas;
    struct {
        struct delta_cursor cur;
        const struct change *c; /* of the key it stands at; NULL: past its last */
        bool used;              /* its key has been looked at: move before the next look */
    } deltas[DELTAS];
    struct base_cursor *base;
    struct slice base_key;
    bool base_done, base_used;
};

/* Notes where base's cursor stands now. */
static int base_stand(struct view_cursor *cur, int rc)
{
    cur->base_done = rc != 0;
    cur->base_used = false;
    if (rc == 0)
        cur->base_key = base_cursor_key(cur->base);
    return rc == ERR_KEY_NOT_FOUND ? 0 : rc;
}

int view_cursor_new(struct view *v, struct slice from, struct slice end, int64_t rev, unsigned base_flags,
                    struct view_cursor **ret_cur)
{
    struct view_cursor *cur = calloc(1, sizeof *cur);
    const struct delta *deltas[DELTAS];
    int rc;

    if (cur == NULL)
        return -ENOMEM;
    cur->view = v;
    cur->end = end;
    cur->rev = rev;
    cur->base_flags = base_flags;
    cur->n_deltas = view_deltas(v, deltas);
    for (int i = 0; i < cur->n_deltas; i++)
        cur->deltas[i].c = delta_seek(&cur->deltas[i].cur, deltas[i], from, false);
    rc = base_cursor_new(v->reader, &cur->base);
    if (rc == 0)
        rc = base_stand(cur, base_cursor_seek(cur->base, from, false));
    if (rc) {
        view_cursor_free(cur);
        return rc;
    }
    *ret_cur = cur;
    return 0;
}

void view_cursor_free(struct view_cursor *cur)
{
    if (cur == NULL)
        return;
    base_cursor_free(cur->base);
    free(cur);
}

void view_cursor_set_flags(struct view_cursor *cur, unsigned base_flags)
{
    cur->base_flags = base_flags;
}

/* Moves what stood at the key of the last look. */
static int cursor_move(struct view_cursor *cur)
{
    for (int i = 0; i < cur->n_deltas; i++)
        if (cur->deltas[i].used) {
            cur->deltas[i].c = delta_next_key(&cur->deltas[i].cur);
            cur->deltas[i].used = false;
        }
    return cur->base_used ? base_stand(cur, base_cursor_next(cur->base)) : 0;
}

/* The lowest key any layer stands at, all that stand there marked used. False: the end. */
static bool cursor_lowest(struct view_cursor *cur, struct slice *ret_key)
{
    struct slice low = cur->base_done ? SLICE_NONE : cur->base_key;

    for (int i = 0; i < cur->n_deltas; i++) {
        const struct change *c = cur->deltas[i].c;

        if (c && (low.ptr == NULL || slice_cmp(c->key, low) < 0))
            low = c->key;
    }
    if (low.ptr == NULL || (cur->end.ptr && slice_cmp(low, cur->end) >= 0))
        return false;
    for (int i = 0; i < cur->n_deltas; i++)
        cur->deltas[i].used = cur->deltas[i].c && slice_eq(cur->deltas[i].c->key, low);
    cur->base_used = !cur->base_done && slice_eq(cur->base_key, low);
    *ret_key = low;
    return true;
}

int view_cursor_next(struct view_cursor *cur, struct arena *a, struct change *ret)
{
    for (;;) {
        const struct change *c = NULL;
        struct slice key;
        int rc = cursor_move(cur);

        if (rc)
            return rc;
        if (!cursor_lowest(cur, &key))
            return ERR_KEY_NOT_FOUND;
        for (int i = 0; i < cur->n_deltas && c == NULL; i++)
            if (cur->deltas[i].used)
                c = delta_cursor_find(&cur->deltas[i].cur, cur->rev);
        if (c)
            rc = answer(c, cur->base_flags, ret);
        else if (cur->base_used)
            rc = base_cursor_get(cur->base, cur->rev, cur->view->compact_rev, cur->base_flags, a, ret);
        else
            continue;
        if (rc != ERR_KEY_NOT_FOUND)
            return rc;
    }
}

/* ---- changes in order ---------------------------------------------------------------- */

static int delta_log_scan(const struct delta *d, int64_t from, int64_t to,
                          int (*fn)(void *ctx, const struct change *), void *ctx)
{
    size_t n = delta_changes(d);
    int rc = 0;

    for (size_t i = delta_lower_bound(d, from); i < n && rc == 0; i++) {
        const struct change *c = delta_at(d, i);

        if (c->rev.main > to)
            break;
        rc = fn(ctx, c);
    }
    return rc;
}

int view_log_scan(struct view *v, int64_t from_main, int64_t to_main, struct arena *a,
                  int (*fn)(void *ctx, const struct change *), void *ctx)
{
    int64_t to = to_main < v->rev ? to_main : v->rev, above;
    struct base_meta meta;
    int rc = 0;

    /* A view near the present seldom needs base: not when a delta starts at or below from. */
    if (v->frozen && delta_changes(v->frozen) && delta_at(v->frozen, 0)->rev.main <= from_main)
        above = from_main;
    else if (!v->frozen && delta_changes(v->live) && delta_at(v->live, 0)->rev.main <= from_main)
        above = from_main;
    else {
        rc = base_reader_meta(v->reader, &meta);
        if (rc)
            return rc;
        above = meta.seal.revision + 1;
        if (from_main < above)
            rc =
                base_log_scan(v->reader, (struct rev){from_main, 0}, to < above ? to : above - 1, a, fn, ctx);
        else
            above = from_main;
    }
    if (rc == 0 && v->frozen)
        rc = delta_log_scan(v->frozen, above, to, fn, ctx);
    if (rc == 0)
        rc = delta_log_scan(v->live, above, to, fn, ctx);
    return rc;
}

/* ---- the keys of a lease --------------------------------------------------------------- */

struct lease_keys {
    struct view *view;
    int64_t rev;
    const struct delta *over[2]; /* the layers above the one being scanned */
    struct arena *arena;
    struct slice *keys;
    size_t n, room;
};

static int lease_key_add(struct lease_keys *k, struct slice key)
{
    struct slice copy = arena_copy(k->arena, key);

    if (copy.ptr == NULL)
        return ERR_ARENA_FULL;
    if (k->n == k->room) {
        size_t room = k->room ? 2 * k->room : 16;
        struct slice *keys = arena_alloc(k->arena, room * sizeof *keys);

        if (keys == NULL)
            return ERR_ARENA_FULL;
        if (k->n)
            memcpy(keys, k->keys, k->n * sizeof *keys);
        k->keys = keys;
        k->room = room;
    }
    k->keys[k->n++] = copy;
    return 0;
}

static int lease_key_found(void *ctx, const struct change *c)
{
    struct lease_keys *k = ctx;

    for (int i = 0; i < 2; i++)
        if (k->over[i] && delta_find(k->over[i], c->key, k->rev))
            return 0;
    return lease_key_add(k, c->key);
}

static int by_key(const void *a, const void *b)
{
    return slice_cmp(*(const struct slice *)a, *(const struct slice *)b);
}

int view_lease_keys(struct view *v, int64_t lease, struct arena *a, struct slice **ret_keys, size_t *ret_n)
{
    /* What is inserted but not yet published is not there for anyone. A delta sealed meanwhile is all published. */
    struct lease_keys k = {.view = v, .rev = store_revision(v->store), .arena = a};
    int rc = delta_lease_changes(v->live, lease, k.rev, lease_key_found, &k);

    k.over[0] = v->live;
    if (rc == 0 && v->frozen)
        rc = delta_lease_changes(v->frozen, lease, k.rev, lease_key_found, &k);
    k.over[1] = v->frozen;
    if (rc == 0)
        rc = base_lease_scan(v->reader, lease, a, lease_key_found, &k);
    if (rc)
        return rc;
    if (k.n)
        qsort(k.keys, k.n, sizeof *k.keys, by_key);
    *ret_keys = k.keys;
    *ret_n = k.n;
    return 0;
}

/* ---- rows ----------------------------------------------------------------------------------- */

struct row_scan {
    enum table table;
    const struct delta *over[2];
    int (*fn)(void *ctx, struct slice id, struct slice value);
    void *ctx;
};

static int row_found(void *ctx, struct slice id, struct slice value)
{
    struct row_scan *s = ctx;
    struct slice newer;

    for (int i = 0; i < 2; i++)
        if (s->over[i] && delta_row_find(s->over[i], s->table, id, &newer))
            return 0;
    return value.ptr ? s->fn(s->ctx, id, value) : 0;
}

static int delta_row_found(void *ctx, enum table t, struct slice id, struct slice value)
{
    struct row_scan *s = ctx;

    return t == s->table ? row_found(ctx, id, value) : 0;
}

int view_row_scan(struct view *v, enum table t, int (*fn)(void *ctx, struct slice id, struct slice value),
                  void *ctx)
{
    struct row_scan s = {.table = t, .fn = fn, .ctx = ctx};
    int rc = delta_row_scan(v->live, delta_row_found, &s);

    s.over[0] = v->live;
    if (rc == 0 && v->frozen)
        rc = delta_row_scan(v->frozen, delta_row_found, &s);
    s.over[1] = v->frozen;
    return rc ? rc : base_row_scan(v->reader, t, row_found, &s);
}
