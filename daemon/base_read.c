/* SPDX-License-Identifier: Apache-2.0 */
/* base_read.c - one reader's view of base: lookups, records by revision, keys of a lease, small rows.
 *
 * Owner:  each base_reader belongs to one thread at a time.
 * Slices: point into LMDB's map and live until the reader is reset, or into the arena given.
 */
#include <errno.h>
#include "base_db.h"

/* ---- the reader ---- */

int base_reader_new(struct base *b, struct base_reader **ret_r)
{
    struct base_reader *r = calloc(1, sizeof *r);
    int err;

    if (r == NULL)
        return -ENOMEM;
    r->base = b;
    err = base_error(mdb_txn_begin(b->env, NULL, MDB_RDONLY, &r->txn));
    if (err) {
        free(r);
        return err;
    }
    mdb_txn_reset(r->txn);
    *ret_r = r;
    return 0;
}

int base_reader_renew(struct base_reader *r)
{
    int err;

    assert(!r->reading);
    err = base_error(mdb_txn_renew(r->txn));
    r->reading = err == 0;
    return err;
}

void base_reader_reset(struct base_reader *r)
{
    if (r->reading)
        mdb_txn_reset(r->txn);
    r->reading = false;
}

void base_reader_free(struct base_reader *r)
{
    if (r == NULL)
        return;
    mdb_txn_abort(r->txn);
    free(r);
}

int base_reader_meta(struct base_reader *r, struct base_meta *ret_meta)
{
    struct sweep_mark mark;
    uint64_t child_next;

    assert(r->reading);
    return base_meta_read(r->base, r->txn, ret_meta, &mark, &child_next);
}

/* ---- records ---- */

int log_head_read(const struct base *b, MDB_txn *txn, struct rev rev, struct log_head *ret_h)
{
    uint8_t key[BASE_LOG_KEY_BYTES];
    struct slice v;
    int err;

    log_key(rev, 0, key);
    err = base_row_read(b, txn, BASE_LOG, slice_of(key, sizeof key), &v);
    return err ? err : log_head_decode(v, ret_h);
}

/* Bytes [offset, offset + n) of a body, over its parts. */
static int body_copy(const struct base *b, MDB_txn *txn, struct rev rev, const struct log_head *h, size_t offset,
                     size_t n, uint8_t *dst)
{
    uint8_t key[BASE_LOG_KEY_BYTES];

    assert(offset + n <= h->body_len);
    while (n > 0) {
        struct slice part = h->first;
        size_t from = offset, take;

        if (offset >= h->first.len) {
            size_t i = (offset - h->first.len) / BASE_PART_BODY;
            int err;

            from = (offset - h->first.len) % BASE_PART_BODY;
            log_key(rev, (unsigned)i + 1, key);
            err = base_row_read(b, txn, BASE_LOG, slice_of(key, sizeof key), &part);
            if (err)
                return err == -ENOENT ? -EUCLEAN : err;
        }
        if (from >= part.len)
            return -EUCLEAN;
        take = part.len - from < n ? part.len - from : n;
        memcpy(dst, part.ptr + from, take);
        dst += take;
        offset += take;
        n -= take;
    }
    return 0;
}

/* Bytes of a body, in place when part 0 has them all. */
static int body_slice(const struct base *b, MDB_txn *txn, struct rev rev, const struct log_head *h, size_t offset,
                      size_t n, struct arena *a, struct slice *ret)
{
    uint8_t *p;
    int err;

    if (offset > h->body_len || n > h->body_len - offset)
        return -EUCLEAN;
    if (offset + n <= h->first.len) {
        *ret = slice_of(h->first.ptr + offset, n);
        return 0;
    }
    p = arena_alloc(a, n);
    if (p == NULL)
        return ERR_ARENA_FULL;
    err = body_copy(b, txn, rev, h, offset, n, p);
    if (err == 0)
        *ret = slice_of(p, n);
    return err;
}

int log_record_key(const struct base *b, MDB_txn *txn, struct rev rev, const struct log_head *h, struct arena *a,
                   struct slice *ret_key)
{
    size_t offset, len;
    int err = body_key_at(h->first, &offset, &len);

    return err ? err : body_slice(b, txn, rev, h, offset, len, a, ret_key);
}

/* create_revision and version of a put; c->rev is set. */
static int record_numbers(const struct base *b, MDB_txn *txn, const struct log_head *h, struct change *c)
{
    uint8_t buf[BODY_NUMBERS_MAX];
    size_t offset, len, n;
    int err = body_key_at(h->first, &offset, &len);

    if (err)
        return err;
    if (len > h->body_len - offset)
        return -EUCLEAN;
    offset += len;
    n = h->body_len - offset < sizeof buf ? h->body_len - offset : sizeof buf;
    if (offset + n <= h->first.len)
        return body_numbers(slice_of(h->first.ptr + offset, n), c);
    err = body_copy(b, txn, c->rev, h, offset, n, buf);
    return err ? err : body_numbers(slice_of(buf, n), c);
}

/* Everything of the record at rev but the key; the body if wanted. */
static int record_fill(const struct base *b, MDB_txn *txn, struct rev rev, const struct log_head *h, unsigned flags,
                       struct arena *a, struct change *c)
{
    int err = 0;

    c->rev = rev;
    c->tombstone = h->tombstone;
    c->lease = h->lease;
    if (!h->tombstone)
        err = record_numbers(b, txn, h, c);
    if (err == 0 && !(flags & BASE_NO_BODY))
        err = body_slice(b, txn, rev, h, 0, h->body_len, a, &c->body);
    return err;
}

/* ---- by key ---- */

int index_find(const struct base *b, MDB_txn *txn, struct slice key, struct index_row *ret_row)
{
    struct path p;
    int err = path_walk(b, txn, key, NULL, &p, ret_row);

    if (err)
        return err;
    return ret_row->has ? 0 : ERR_KEY_NOT_FOUND;
}

/* The highest of n revisions that is above rev_max, or n: none. */
static unsigned highest_above(const struct rev *revs, unsigned n, int64_t rev_max)
{
    for (unsigned j = n; j-- > 0;)
        if (revs[j].main > rev_max)
            return j;
    return n;
}

/* The rev of the key's newest change with main <= rev_max, for a key whose newest is above; main 0: none. */
static int step_back(struct base_reader *r, const struct index_row *row, int64_t rev_max, struct rev *ret_rev)
{
    struct rev at = row->level[highest_above(row->level, BASE_LEVELS, rev_max)];
    struct log_head h;

    for (;;) {
        int err = log_head_read(r->base, r->txn, at, &h);
        unsigned j;

        if (err)
            return err == -ENOENT ? -EUCLEAN : err;
        j = highest_above(h.pointer, h.n_pointers, rev_max);
        if (j == h.n_pointers)
            break;
        if (rev_cmp(h.pointer[j], at) >= 0)
            return -EUCLEAN;
        at = h.pointer[j];
    }
    *ret_rev = h.pointer[0];
    return 0;
}

/* A record that is the answer carries the key that was asked: a row of another store's past has not. */
static int check_key(const struct log_head *h, struct slice key)
{
    size_t offset, len, n;
    int err = body_key_at(h->first, &offset, &len);

    if (err)
        return err;
    n = len < h->first.len - offset ? len : h->first.len - offset;
    return len != key.len || memcmp(h->first.ptr + offset, key.ptr, n) ? -EUCLEAN : 0;
}

int row_lookup(struct base_reader *r, const struct index_row *row, struct slice key, int64_t rev_max,
               int64_t compact_rev, unsigned flags, struct arena *a, struct change *ret)
{
    struct change c = {.key = key, .rev = row->newest, .create_revision = row->create_revision,
                       .version = row->version, .lease = row->lease};
    struct log_head h;
    int err;

    if (row->newest.main <= rev_max) {
        if (row->tombstone)
            return ERR_KEY_NOT_FOUND;
        if (!(flags & BASE_NO_BODY)) {
            err = log_head_read(r->base, r->txn, c.rev, &h);
            if (err == -ENOENT || (err == 0 && h.tombstone))
                return -EUCLEAN;
            if (err || (err = check_key(&h, key)) ||
                (err = body_slice(r->base, r->txn, c.rev, &h, 0, h.body_len, a, &c.body)))
                return err;
        }
        *ret = c;
        return 0;
    }
    if (row->n == 1)
        return ERR_KEY_NOT_FOUND;
    err = step_back(r, row, rev_max, &c.rev);
    if (err)
        return err;
    if (c.rev.main == 0)
        return ERR_KEY_NOT_FOUND;
    err = log_head_read(r->base, r->txn, c.rev, &h);
    if (err == -ENOENT)
        return c.rev.main < compact_rev ? ERR_KEY_NOT_FOUND : -EUCLEAN;
    if (err)
        return err;
    if (h.tombstone)
        return ERR_KEY_NOT_FOUND;
    if ((err = check_key(&h, key)) || (err = record_fill(r->base, r->txn, c.rev, &h, flags, a, &c)))
        return err;
    *ret = c;
    return 0;
}

int base_get(struct base_reader *r, struct slice key, int64_t rev_max, int64_t compact_rev, unsigned flags,
             struct arena *a, struct change *ret)
{
    struct index_row row;
    int err;

    assert(r->reading);
    assert(rev_max >= compact_rev);
    err = index_find(r->base, r->txn, key, &row);
    return err ? err : row_lookup(r, &row, key, rev_max, compact_rev, flags, a, ret);
}

/* ---- by rev ---- */

/* Reads the record whose part 0 is (k, v) and calls fn. What spans parts lies in an arena of the call's own, so
 * that a long scan needs no more room than its largest record. */
static int log_scan_one(struct base_reader *r, struct slice k, struct slice v, struct arena *a,
                        int (*fn)(void *ctx, const struct change *), void *ctx)
{
    struct arena one;
    struct change c = {0};
    struct log_head h;
    size_t offset, len;
    struct slice value;
    int err;

    if ((err = base_row_check(r->base, BASE_LOG, k, v, &value)) || (err = log_head_decode(value, &h)))
        return err;
    arena_init(&one, a->limit_bytes - a->used_bytes, NULL, 0);
    err = record_fill(r->base, r->txn, log_key_rev(k.ptr), &h, 0, &one, &c);
    if (err == 0)
        err = body_key_at(c.body, &offset, &len);
    if (err == 0 && len > c.body.len - offset)
        err = -EUCLEAN;
    if (err == 0) {
        c.key = slice_of(c.body.ptr + offset, len);
        err = fn(ctx, &c);
    }
    arena_fini(&one);
    return err;
}

/* Each main from next up to (not with) main is missing. Rightly so only up to C, and above R; the first ever is 2. */
static int log_gap(struct base_reader *r, int64_t next, int64_t main)
{
    struct base_meta m;
    int err = base_reader_meta(r, &m);

    if (err)
        return err;
    if (next <= m.seal.compact_revision)
        next = m.seal.compact_revision + 1;
    if (next < 2)
        next = 2;
    return next < main && next <= m.seal.revision ? -EUCLEAN : 0;
}

int base_log_scan(struct base_reader *r, struct rev from, int64_t to_main, struct arena *a,
                  int (*fn)(void *ctx, const struct change *), void *ctx)
{
    uint8_t start[BASE_LOG_KEY_BYTES];
    MDB_val k = {sizeof start, start}, v;
    MDB_cursor *cur;
    int64_t next;
    int rc, err;

    assert(r->reading);
    if (from.main < 0)
        from = (struct rev){0};
    next = from.main + (from.sub > 0);
    log_key(from, 0, start);
    err = base_error(mdb_cursor_open(r->txn, r->base->dbi[BASE_LOG], &cur));
    if (err)
        return err;
    for (rc = mdb_cursor_get(cur, &k, &v, MDB_SET_RANGE); rc == 0; rc = mdb_cursor_get(cur, &k, &v, MDB_NEXT)) {
        const uint8_t *p = k.mv_data;

        if (k.mv_size != BASE_LOG_KEY_BYTES || !base_page_in_place(r->base, p)) {
            err = -EUCLEAN;
            break;
        }
        if (log_key_rev(p).main > to_main)
            break;
        if (get_u16be(p + 12) != 0)
            continue;
        if (log_key_rev(p).main > next && (err = log_gap(r, next, log_key_rev(p).main)) != 0)
            break;
        next = log_key_rev(p).main + 1;
        err = log_scan_one(r, val_slice(k), val_slice(v), a, fn, ctx);
        if (err)
            break;
    }
    if (err == 0 && (rc == 0 || rc == MDB_NOTFOUND) && next <= to_main)
        err = log_gap(r, next, to_main == INT64_MAX ? INT64_MAX : to_main + 1);
    mdb_cursor_close(cur);
    return err || rc == 0 || rc == MDB_NOTFOUND ? err : base_error(rc);
}

/* ---- by lease ---- */

static int lease_scan_one(struct base_reader *r, int64_t lease, struct slice k, struct slice v, struct arena *a,
                          int (*fn)(void *ctx, const struct change *), void *ctx)
{
    struct change c = {0};
    struct arena one;
    struct log_head h;
    struct rev rev;
    int err;

    if (k.len != BASE_LEASE_KEY_BYTES || base_row_check(r->base, BASE_LEASE_KEYS, k, v, &v))
        return -EUCLEAN;
    rev = log_key_rev(k.ptr + 8);
    err = log_head_read(r->base, r->txn, rev, &h);
    if (err == -ENOENT || (err == 0 && (h.tombstone || h.lease != lease)))
        return -EUCLEAN;
    if (err)
        return err;
    arena_init(&one, a->limit_bytes - a->used_bytes, NULL, 0);
    if ((err = log_record_key(r->base, r->txn, rev, &h, &one, &c.key)) == 0 &&
        (err = record_fill(r->base, r->txn, rev, &h, BASE_NO_BODY, &one, &c)) == 0)
        err = fn(ctx, &c);
    arena_fini(&one);
    return err;
}

int base_lease_scan(struct base_reader *r, int64_t lease, struct arena *a,
                    int (*fn)(void *ctx, const struct change *), void *ctx)
{
    uint8_t start[BASE_LEASE_KEY_BYTES];
    MDB_val k = {sizeof start, start}, v;
    MDB_cursor *cur;
    int rc, err;

    assert(r->reading);
    lease_key(lease, (struct rev){0}, start);
    err = base_error(mdb_cursor_open(r->txn, r->base->dbi[BASE_LEASE_KEYS], &cur));
    if (err)
        return err;
    for (rc = mdb_cursor_get(cur, &k, &v, MDB_SET_RANGE); rc == 0; rc = mdb_cursor_get(cur, &k, &v, MDB_NEXT)) {
        if (!slice_has_prefix(val_slice(k), slice_of(start, 8)))
            break;
        err = lease_scan_one(r, lease, val_slice(k), val_slice(v), a, fn, ctx);
        if (err)
            break;
    }
    mdb_cursor_close(cur);
    return err || rc == 0 || rc == MDB_NOTFOUND ? err : base_error(rc);
}

/* ---- small tables ---- */

int base_row_get(struct base_reader *r, enum table t, struct slice id, struct slice *ret_value)
{
    assert(r->reading);
    return base_row_read(r->base, r->txn, (enum base_table)t, id, ret_value);
}

int base_row_scan(struct base_reader *r, enum table t, int (*fn)(void *ctx, struct slice id, struct slice value),
                  void *ctx)
{
    MDB_cursor *cur;
    MDB_val k, v;
    int rc, err;

    assert(r->reading);
    err = base_error(mdb_cursor_open(r->txn, r->base->dbi[t], &cur));
    if (err)
        return err;
    while (err == 0 && (rc = mdb_cursor_get(cur, &k, &v, MDB_NEXT)) == 0) {
        struct slice value;

        err = base_row_check(r->base, (enum base_table)t, val_slice(k), val_slice(v), &value);
        if (err == 0)
            err = fn(ctx, val_slice(k), value);
    }
    mdb_cursor_close(cur);
    return err || rc == MDB_NOTFOUND ? err : base_error(rc);
}
