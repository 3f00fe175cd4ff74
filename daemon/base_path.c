/* SPDX-License-Identifier: Apache-2.0 */
/* base_path.c - the way to a key's row: one row for each 500 bytes of the key.
 *
 *     index  "aaa...a" (500) --child 7--> long 7 "bbb...b" (500) --child 9--> long 9 "c"
 *
 * A child's id is greater than its parent's, so a damaged id cannot lead in a circle. A child has at least one row:
 * who takes its last one takes the child.
 */
#include <errno.h>
#include "base_db.h"

void path_at(struct path *p, uint64_t id, struct slice rest)
{
    size_t n = rest.len < BASE_CHUNK_BYTES ? rest.len : BASE_CHUNK_BYTES;

    p->table = id ? BASE_LONG : BASE_INDEX;
    p->key_len = 0;
    if (id) {
        put_u64be(p->key, id);
        p->key_len = 8;
    }
    if (n)
        memcpy(p->key + p->key_len, rest.ptr, n);
    p->key_len += n;
}

static int row_at(const struct base *b, MDB_txn *txn, const struct path *p, struct index_row *ret_row)
{
    struct slice v;
    int err = base_row_read(b, txn, p->table, path_key(p), &v);

    return err ? err : index_row_decode(v, ret_row);
}

int path_write(const struct base *b, MDB_txn *txn, const struct path *p, const struct index_row *row)
{
    uint8_t buf[BASE_ROW_MAX];

    return base_row_write(b, txn, p->table, path_key(p), buf, index_row_encode(row, buf), 0);
}

int path_walk(const struct base *b, MDB_txn *txn, struct slice key, uint64_t *child_next, struct path *ret_p,
              struct index_row *ret_row)
{
    uint64_t id = 0;
    int err;

    assert(key.len > 0);
    for (;;) {
        path_at(ret_p, id, key);
        err = row_at(b, txn, ret_p, ret_row);
        if (err == -ENOENT) {
            if (child_next == NULL)
                return ERR_KEY_NOT_FOUND;
            *ret_row = (struct index_row){0};
        } else if (err) {
            return err;
        }
        if (key.len <= BASE_CHUNK_BYTES)
            return 0;
        key = slice_of(key.ptr + BASE_CHUNK_BYTES, key.len - BASE_CHUNK_BYTES);
        if (ret_row->child == 0) {
            if (child_next == NULL)
                return ERR_KEY_NOT_FOUND;
            ret_row->child = (*child_next)++;
            err = path_write(b, txn, ret_p, ret_row);
            if (err)
                return err;
        }
        if (ret_row->child <= id)
            return -EUCLEAN;
        id = ret_row->child;
    }
}

/* Whether a child has any row. 1, 0, or -errno. */
static int child_has_rows(const struct base *b, MDB_txn *txn, uint64_t id)
{
    uint8_t prefix[8];
    MDB_val k = {sizeof prefix, prefix}, v;
    MDB_cursor *cur;
    int rc = mdb_cursor_open(txn, b->dbi[BASE_LONG], &cur);

    if (rc)
        return base_error(rc);
    put_u64be(prefix, id);
    rc = mdb_cursor_get(cur, &k, &v, MDB_SET_RANGE);
    mdb_cursor_close(cur);
    if (rc == MDB_NOTFOUND)
        return 0;
    return rc ? base_error(rc) : slice_has_prefix(val_slice(k), slice_of(prefix, 8));
}

static int row_delete(const struct base *b, MDB_txn *txn, const struct path *p)
{
    MDB_val k = val(path_key(p));

    return base_error(mdb_del(txn, b->dbi[p->table], &k, NULL));
}

/* The ids of the rows on the way to key; ids[0] is 0, the index. Heap; the caller frees. */
static int path_ids(const struct base *b, MDB_txn *txn, struct slice key, uint64_t **ret_ids, size_t *ret_n)
{
    size_t n = (key.len + BASE_CHUNK_BYTES - 1) / BASE_CHUNK_BYTES;
    uint64_t *ids = calloc(n, sizeof *ids);
    struct index_row row;
    struct path p;

    if (ids == NULL)
        return -ENOMEM;
    for (size_t i = 1; i < n; i++) {
        int err;

        path_at(&p, ids[i - 1], slice_of(key.ptr + (i - 1) * BASE_CHUNK_BYTES, BASE_CHUNK_BYTES));
        err = row_at(b, txn, &p, &row);
        if (err || row.child <= ids[i - 1]) {
            free(ids);
            return err && err != -ENOENT ? err : -EUCLEAN;
        }
        ids[i] = row.child;
    }
    *ret_ids = ids;
    *ret_n = n;
    return 0;
}

int path_remove(const struct base *b, MDB_txn *txn, struct slice key)
{
    struct index_row row;
    struct path p;
    uint64_t *ids;
    size_t n;
    int err = path_ids(b, txn, key, &ids, &n);

    if (err)
        return err;
    for (size_t i = n; i-- > 0;) {
        path_at(&p, ids[i], slice_of(key.ptr + i * BASE_CHUNK_BYTES, key.len - i * BASE_CHUNK_BYTES));
        err = row_at(b, txn, &p, &row);
        if (err)
            break;
        if (i == n - 1)
            row = (struct index_row){.child = row.child};
        else
            row.child = 0; /* the child below has just lost its last row */
        err = row.has || row.child ? path_write(b, txn, &p, &row) : row_delete(b, txn, &p);
        if (err || row.has || row.child || i == 0)
            break;
        err = child_has_rows(b, txn, ids[i]);
        if (err)
            break;
    }
    free(ids);
    if (err == -ENOENT)
        return -EUCLEAN;
    return err < 0 ? err : 0;
}
