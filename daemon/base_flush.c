/* SPDX-License-Identifier: Apache-2.0 */
/* base_flush.c - a sealed delta moves into base, in one transaction.
 *
 * By key: each change gets its ordinal and its pointers from the key's index row, which then names the newest; the
 * heads of the log records are written down meanwhile. By rev: the log is appended. Then lease_keys, the small
 * tables, meta. All sorted, so that each page is met once.
 *
 * Owner: the flush thread.
 */
#include <errno.h>
#include "base_db.h"

/* A change that is to be appended to the log. */
struct pending {
    struct rev rev;
    uint32_t head_len;
    size_t head;         /* offset into heads */
    const struct change *change;
};

/* A row of lease_keys that comes or goes. */
struct lease_move {
    uint8_t key[BASE_LEASE_KEY_BYTES];
    bool gone;
};

struct flush {
    struct base *base;
    MDB_txn *txn;
    MDB_cursor *index;
    uint64_t child_next;
    struct pending *pending;
    size_t n_pending, pending_cap;
    uint8_t *heads;
    size_t heads_len, heads_cap;
    struct lease_move *moves;
    size_t n_moves, moves_cap;
    const struct change **key_changes; /* of one key, newest first */
    size_t n_key_changes, key_changes_cap;
};

/* ---- by key ---- */

static int lease_move(struct flush *f, int64_t lease, struct rev rev, bool gone)
{
    int err = base_room(&f->moves, &f->moves_cap, f->n_moves + 1, sizeof *f->moves);

    if (err)
        return err;
    lease_key(lease, rev, f->moves[f->n_moves].key);
    f->moves[f->n_moves++].gone = gone;
    return 0;
}

/* The row takes in its key's next change, whose head is noted for the log. */
static int change_add(struct flush *f, struct index_row *row, const struct change *c)
{
    struct log_head h = {.tombstone = c->tombstone, .lease = c->lease, .n = row->n + 1, .body_len = c->body.len};
    struct pending *p;
    unsigned zeros = (unsigned)__builtin_ctzll(h.n);
    int err;

    assert(c->body.len > 0);
    assert(c->rev.main > 0);
    if (row->has && rev_cmp(c->rev, row->newest) <= 0)
        return -EUCLEAN; /* base is not what this delta was made on */
    if (c->body.len / BASE_PART_BODY + 2 > BASE_PARTS_MAX)
        return -EFBIG;
    if ((err = base_room(&f->pending, &f->pending_cap, f->n_pending + 1, sizeof *f->pending)) ||
        (err = base_room(&f->heads, &f->heads_cap, f->heads_len + BASE_HEAD_MAX, 1)))
        return err;
    h.n_pointers = zeros < BASE_LEVELS ? zeros + 1 : BASE_LEVELS;
    for (unsigned j = 0; j < h.n_pointers; j++) {
        h.pointer[j] = row->level[j];
        row->level[j] = c->rev;
    }
    row->has = true;
    row->tombstone = c->tombstone;
    row->newest = c->rev;
    row->n = h.n;
    row->create_revision = c->create_revision;
    row->version = c->version;
    row->lease = c->lease;
    p = &f->pending[f->n_pending++];
    *p = (struct pending){.rev = c->rev, .head = f->heads_len, .change = c};
    p->head_len = (uint32_t)log_head_encode(&h, f->heads + f->heads_len);
    f->heads_len += p->head_len;
    return 0;
}

/* A short key's row by the cursor, which keeps its place from key to key; a long one's by its path. */
static int row_find(struct flush *f, struct slice key, struct path *p, struct index_row *row)
{
    MDB_val k = val(key), v;
    struct slice value;
    int rc, err;

    if (key.len > BASE_CHUNK_BYTES)
        return path_walk(f->base, f->txn, key, &f->child_next, p, row);
    *row = (struct index_row){0};
    path_at(p, 0, key);
    rc = mdb_cursor_get(f->index, &k, &v, MDB_SET_KEY);
    if (rc == MDB_NOTFOUND) {
        err = base_row_absent(f->base, BASE_INDEX, key, f->index);
        return err == -ENOENT ? 0 : err;
    }
    if (rc)
        return base_error(rc);
    err = base_row_check(f->base, BASE_INDEX, key, val_slice(v), &value);
    return err ? err : index_row_decode(value, row);
}

static int row_store(struct flush *f, const struct path *p, const struct index_row *row)
{
    uint8_t buf[BASE_ROW_MAX];
    MDB_val k = val(path_key(p)), v = {0, buf};

    if (p->table != BASE_INDEX)
        return path_write(f->base, f->txn, p, row);
    v.mv_size = index_row_encode(row, buf);
    put_u32le(buf + v.mv_size, row_crc(BASE_INDEX, path_key(p), slice_of(buf, v.mv_size)));
    v.mv_size += 4;
    return base_error(mdb_cursor_put(f->index, &k, &v, 0));
}

/* All changes of one key, from key_changes. */
static int flush_key(struct flush *f)
{
    struct slice key = f->key_changes[0]->key;
    struct index_row row;
    int64_t lease_before;
    struct rev before;
    struct path p;
    int err = row_find(f, key, &p, &row);

    if (err)
        return err;
    lease_before = row.lease;
    before = row.newest;
    for (size_t i = f->n_key_changes; i-- > 0;)
        if ((err = change_add(f, &row, f->key_changes[i])))
            return err;
    if ((err = row_store(f, &p, &row)))
        return err;
    if (lease_before && (err = lease_move(f, lease_before, before, true)))
        return err;
    return row.lease ? lease_move(f, row.lease, row.newest, false) : 0;
}

static int flush_keys(struct flush *f, const struct delta *d)
{
    struct delta_cursor cur;
    const struct change *c = delta_seek(&cur, d, SLICE_NONE, false);
    int err;

    while (c) {
        struct slice key = c->key;

        f->n_key_changes = 0;
        do {
            err = base_room(&f->key_changes, &f->key_changes_cap, f->n_key_changes + 1, sizeof *f->key_changes);
            if (err)
                return err;
            f->key_changes[f->n_key_changes++] = c;
            c = delta_next(&cur);
        } while (c && slice_eq(c->key, key));
        err = flush_key(f);
        if (err)
            return err;
    }
    return 0;
}

/* ---- by rev ---- */

static int pending_cmp(const void *a, const void *b)
{
    return rev_cmp(((const struct pending *)a)->rev, ((const struct pending *)b)->rev);
}

static int log_put(MDB_cursor *cur, struct rev rev, unsigned part, uint8_t *buf, size_t n)
{
    uint8_t key[BASE_LOG_KEY_BYTES];
    MDB_val k = {sizeof key, key}, v = {n + 4, buf};

    log_key(rev, part, key);
    put_u32le(buf + n, row_crc(BASE_LOG, slice_of(key, sizeof key), slice_of(buf, n)));
    return base_error(mdb_cursor_put(cur, &k, &v, MDB_APPEND));
}

static int flush_record(struct flush *f, MDB_cursor *cur, const struct pending *p)
{
    uint8_t buf[BASE_PART_BYTES];
    struct slice body = p->change->body;
    size_t used = p->head_len;
    int err = 0;

    memcpy(buf, f->heads + p->head, p->head_len);
    for (unsigned part = 0; err == 0 && (part == 0 || body.len > 0); part++) {
        size_t n = body.len < BASE_PART_BODY - used ? body.len : BASE_PART_BODY - used;

        memcpy(buf + used, body.ptr, n);
        body = slice_of(body.ptr + n, body.len - n);
        err = log_put(cur, p->rev, part, buf, used + n);
        used = 0;
    }
    return err;
}

static int flush_log(struct flush *f)
{
    MDB_cursor *cur;
    int err = base_error(mdb_cursor_open(f->txn, f->base->dbi[BASE_LOG], &cur));

    if (err)
        return err;
    if (f->n_pending)
        qsort(f->pending, f->n_pending, sizeof *f->pending, pending_cmp);
    for (size_t i = 0; i < f->n_pending && err == 0; i++)
        err = flush_record(f, cur, &f->pending[i]);
    mdb_cursor_close(cur);
    return err;
}

/* ---- lease_keys and the small tables ---- */

static int move_cmp(const void *a, const void *b)
{
    return memcmp(((const struct lease_move *)a)->key, ((const struct lease_move *)b)->key, BASE_LEASE_KEY_BYTES);
}

static int row_delete(struct flush *f, enum base_table t, struct slice key, bool must_exist)
{
    MDB_val k = val(key);
    int rc = mdb_del(f->txn, f->base->dbi[t], &k, NULL);

    return rc == MDB_NOTFOUND && !must_exist ? 0 : base_error(rc);
}

static int flush_leases(struct flush *f)
{
    uint8_t crc[4];

    if (f->n_moves)
        qsort(f->moves, f->n_moves, sizeof *f->moves, move_cmp);
    for (size_t i = 0; i < f->n_moves; i++) {
        struct slice key = slice_of(f->moves[i].key, BASE_LEASE_KEY_BYTES);
        int err = f->moves[i].gone ? row_delete(f, BASE_LEASE_KEYS, key, true)
                                   : base_row_write(f->base, f->txn, BASE_LEASE_KEYS, key, crc, 0, 0);

        if (err)
            return err;
    }
    return 0;
}

/* Called in the order of table and id. */
static int flush_row(void *ctx, enum table t, struct slice id, struct slice value)
{
    struct flush *f = ctx;
    uint8_t *buf;
    int err;

    if (value.ptr == NULL)
        return row_delete(f, (enum base_table)t, id, false);
    buf = malloc(value.len + 4);
    if (buf == NULL)
        return -ENOMEM;
    if (value.len)
        memcpy(buf, value.ptr, value.len);
    err = base_row_write(f->base, f->txn, (enum base_table)t, id, buf, value.len, 0);
    free(buf);
    return err;
}

/* ---- the whole ---- */

static int flush_all(struct flush *f, const struct delta *d)
{
    int err = flush_keys(f, d);

    if (err == 0)
        err = flush_log(f);
    if (err == 0)
        err = flush_leases(f);
    if (err == 0)
        err = delta_row_scan(d, flush_row, f);
    if (err == 0)
        err = base_seal_write(f->base, f->txn, delta_sealed(d));
    return err;
}

int base_flush(struct base *b, const struct delta *d)
{
    struct flush f = {.base = b, .child_next = b->child_next};
    int err;

    assert(delta_sealed(d) != NULL);
    err = base_error(mdb_txn_begin(b->env, NULL, 0, &f.txn));
    if (err)
        return err;
    err = base_error(mdb_cursor_open(f.txn, b->dbi[BASE_INDEX], &f.index));
    if (err == 0)
        err = flush_all(&f, d);
    if (f.index)
        mdb_cursor_close(f.index);
    if (err)
        mdb_txn_abort(f.txn);
    else
        err = base_commit(b, f.txn, f.child_next);
    if (err == 0)
        b->compact_rev = delta_sealed(d)->compact_revision;
    free(f.pending);
    free(f.heads);
    free(f.moves);
    free(f.key_changes);
    return err;
}
