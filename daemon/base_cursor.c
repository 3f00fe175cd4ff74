/* SPDX-License-Identifier: Apache-2.0 */
/* base_cursor.c - keys in order, over the rows of index and the children in long.
 *
 * The cursor stands on one row. Level 0 is index, level d > 0 the child ids[d - 1] in long. One LMDB cursor stays on
 * index's row while the other walks the children; going back up into long seeks the parent's row anew by its bytes,
 * which are in key[]. The order: a row's own key, then all in its child, then the next row.
 */
#include <errno.h>
#include "base_db.h"

struct base_cursor {
    struct base_reader *reader;
    MDB_cursor *index, *lng;
    struct index_row row;   /* of the row the cursor stands on */
    struct slice chunk;     /* its bytes of the key, in the map */
    size_t depth;           /* children entered */
    uint64_t *ids;          /* [depth], owned */
    size_t ids_cap;
    uint8_t *key;           /* the whole key when depth > 0: depth * 500 bytes of the way, then chunk; owned */
    size_t key_cap;
};

int base_cursor_new(struct base_reader *r, struct base_cursor **ret_cur)
{
    struct base_cursor *cur = calloc(1, sizeof *cur);
    int err;

    assert(r->reading);
    if (cur == NULL)
        return -ENOMEM;
    cur->reader = r;
    err = base_error(mdb_cursor_open(r->txn, r->base->dbi[BASE_INDEX], &cur->index));
    if (err == 0)
        err = base_error(mdb_cursor_open(r->txn, r->base->dbi[BASE_LONG], &cur->lng));
    if (err) {
        base_cursor_free(cur);
        return err;
    }
    *ret_cur = cur;
    return 0;
}

void base_cursor_free(struct base_cursor *cur)
{
    if (cur == NULL)
        return;
    if (cur->index)
        mdb_cursor_close(cur->index);
    if (cur->lng)
        mdb_cursor_close(cur->lng);
    free(cur->ids);
    free(cur->key);
    free(cur);
}

static uint64_t level_id(const struct base_cursor *cur)
{
    return cur->depth ? cur->ids[cur->depth - 1] : 0;
}

/* Takes in the row that LMDB's cursor is at. ERR_KEY_NOT_FOUND: none, or one of the next child. */
static int take(struct base_cursor *cur, int rc, MDB_val k, MDB_val v)
{
    uint64_t id = level_id(cur);
    struct slice key = val_slice(k), value;
    int err;

    if (rc == MDB_NOTFOUND)
        return ERR_KEY_NOT_FOUND;
    if (rc)
        return base_error(rc);
    if (id && (key.len <= 8 || get_u64be(key.ptr) != id))
        return key.len <= 8 ? -EUCLEAN : ERR_KEY_NOT_FOUND;
    err = base_row_check(cur->reader->base, id ? BASE_LONG : BASE_INDEX, key, val_slice(v), &value);
    if (err == 0)
        err = index_row_decode(value, &cur->row);
    if (err)
        return err;
    cur->chunk = id ? slice_of(key.ptr + 8, key.len - 8) : key;
    if (cur->row.child && (cur->row.child <= id || cur->chunk.len != BASE_CHUNK_BYTES))
        return -EUCLEAN;
    if (id == 0)
        return 0;
    err = base_room(&cur->key, &cur->key_cap, (cur->depth + 1) * BASE_CHUNK_BYTES, 1);
    if (err == 0)
        memcpy(cur->key + cur->depth * BASE_CHUNK_BYTES, cur->chunk.ptr, cur->chunk.len);
    return err;
}

/* At this level, to the first row whose bytes are >= the first 500 of rest. */
static int level_seek(struct base_cursor *cur, struct slice rest)
{
    struct path p;
    MDB_val k, v;
    int rc;

    path_at(&p, level_id(cur), rest);
    k = val(path_key(&p));
    /* LMDB has no empty key: an empty one asks for the first. */
    rc = mdb_cursor_get(cur->depth ? cur->lng : cur->index, &k, &v, k.mv_size ? MDB_SET_RANGE : MDB_FIRST);
    return take(cur, rc, k, v);
}

static int level_next(struct base_cursor *cur)
{
    MDB_val k, v;
    int rc = mdb_cursor_get(cur->depth ? cur->lng : cur->index, &k, &v, MDB_NEXT);

    return take(cur, rc, k, v);
}

/* Into the child of the row the cursor stands on, to its first row >= rest. */
static int enter(struct base_cursor *cur, struct slice rest)
{
    int err = base_room(&cur->ids, &cur->ids_cap, cur->depth + 1, sizeof *cur->ids);

    if (err == 0 && cur->depth == 0) {
        err = base_room(&cur->key, &cur->key_cap, BASE_CHUNK_BYTES, 1);
        if (err == 0)
            memcpy(cur->key, cur->chunk.ptr, BASE_CHUNK_BYTES);
    }
    if (err)
        return err;
    cur->ids[cur->depth++] = cur->row.child;
    return level_seek(cur, rest);
}

/* To the row after all that begins with this one; the child is not entered. */
static int over(struct base_cursor *cur)
{
    for (;;) {
        int err = level_next(cur);

        if (err != ERR_KEY_NOT_FOUND || cur->depth == 0)
            return err;
        cur->depth--;
        if (cur->depth == 0)
            continue; /* index's cursor still stands on the parent */
        err = level_seek(cur, slice_of(cur->key + cur->depth * BASE_CHUNK_BYTES, BASE_CHUNK_BYTES));
        if (err)
            return err == ERR_KEY_NOT_FOUND ? -EUCLEAN : err;
    }
}

/* From a row that may be only a way: down to the first that is a key. */
static int settle(struct base_cursor *cur)
{
    while (!cur->row.has) {
        int err = enter(cur, SLICE_NONE);

        if (err)
            return err == ERR_KEY_NOT_FOUND ? -EUCLEAN : err; /* a child has at least one row */
    }
    return 0;
}

int base_cursor_seek(struct base_cursor *cur, struct slice from, bool after)
{
    struct slice rest = from;
    int err;

    cur->depth = 0;
    err = level_seek(cur, rest);
    while (err == 0) {
        size_t n = rest.len < BASE_CHUNK_BYTES ? rest.len : BASE_CHUNK_BYTES;

        if (rest.len == 0 || !slice_eq(cur->chunk, slice_of(rest.ptr, n)))
            return settle(cur); /* already beyond from */
        if (rest.len == n) {
            if (cur->row.has && !after)
                return 0;
            if (cur->row.has || cur->row.child == 0)
                return base_cursor_next(cur);
            return settle(cur);
        }
        if (cur->row.child == 0)
            break;
        rest = slice_of(rest.ptr + n, rest.len - n);
        err = enter(cur, rest);
    }
    if (err == 0 || (err == ERR_KEY_NOT_FOUND && cur->depth > 0)) {
        /* Nothing >= from in this child, or no child to look in: on with what follows its parent's row. */
        if (err) {
            cur->depth--;
            err = cur->depth ? level_seek(cur, slice_of(cur->key + cur->depth * BASE_CHUNK_BYTES, BASE_CHUNK_BYTES))
                             : 0;
            if (err)
                return err == ERR_KEY_NOT_FOUND ? -EUCLEAN : err;
        }
        err = over(cur);
        if (err == 0)
            err = settle(cur);
    }
    return err;
}

int base_cursor_next(struct base_cursor *cur)
{
    int err;

    if (cur->row.child) {
        err = enter(cur, SLICE_NONE);
        if (err == ERR_KEY_NOT_FOUND)
            err = -EUCLEAN; /* a child has at least one row */
    } else {
        err = over(cur);
    }
    return err ? err : settle(cur);
}

struct slice base_cursor_key(const struct base_cursor *cur)
{
    if (cur->depth == 0)
        return cur->chunk;
    return slice_of(cur->key, cur->depth * BASE_CHUNK_BYTES + cur->chunk.len);
}

int base_cursor_get(struct base_cursor *cur, int64_t rev_max, int64_t compact_rev, unsigned flags, struct arena *a,
                    struct change *ret)
{
    assert(rev_max >= compact_rev);
    return row_lookup(cur->reader, &cur->row, base_cursor_key(cur), rev_max, compact_rev, flags, a, ret);
}
