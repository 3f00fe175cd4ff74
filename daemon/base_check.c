/* SPDX-License-Identifier: Apache-2.0 */
/* base_check.c - reads all of base and holds its tables against each other.
 *
 * Each crc; each record's parts, pointers and key; each key's row against its newest record; keys in order; the
 * count of keys; the leases' rows. For tests, for a file found too short, and for whoever asks. Its time grows with
 * the store: it is not part of an ordinary start.
 *
 * base_scrub is the same in slices, for a store in use: LMDB's branch pages and its free ones, the small tables, the
 * log by rev, the keys in order. Between two slices a flush or a sweep may have come: a slice goes on behind the last
 * row seen, and holds against each other only what belongs together in one commit; the counts of a pass only if none
 * has come at all.
 */
#include <errno.h>
#include "base_db.h"

struct check {
    struct base_reader *reader;
    struct base_meta meta;
    uint64_t keys, leased, records, rows_seen;
    const char *what;
};

static int bad(struct check *c, const char *what)
{
    if (c->what == NULL)
        c->what = what;
    return -EUCLEAN;
}

/* Each row's crc and the number of rows. */
static int check_rows(struct check *c, enum base_table t)
{
    struct base_reader *r = c->reader;
    uint64_t n = 0;
    MDB_cursor *cur;
    MDB_val k, v;
    MDB_stat st;
    int rc, err = base_error(mdb_cursor_open(r->txn, r->base->dbi[t], &cur));

    if (err)
        return err;
    while ((rc = mdb_cursor_get(cur, &k, &v, MDB_NEXT)) == 0 && err == 0) {
        struct slice value;

        n++;
        if (base_row_check(r->base, t, val_slice(k), val_slice(v), &value))
            err = bad(c, "a row's checksum");
    }
    mdb_cursor_close(cur);
    if (err == 0 && rc != MDB_NOTFOUND)
        err = base_error(rc);
    if (err == 0)
        err = base_error(mdb_stat(r->txn, r->base->dbi[t], &st));
    if (err == 0 && st.ms_entries != n)
        err = bad(c, "a table's number of rows");
    return err;
}

static int check_pointers(struct check *c, const struct change *x, const struct log_head *h)
{
    int64_t compact = c->meta.seal.compact_revision;

    for (unsigned j = 0; j < h->n_pointers; j++) {
        struct rev p = h->pointer[j];
        struct log_head before;
        int err;

        if (p.main == 0)
            continue;
        if (rev_cmp(p, x->rev) >= 0 || (j && rev_cmp(p, h->pointer[j - 1]) > 0))
            return bad(c, "a pointer that does not go back");
        err = log_head_read(c->reader->base, c->reader->txn, p, &before);
        /* Swept may be what is below C, or at C but hidden by a later change in the same main. */
        if (err == -ENOENT && (p.main < compact || (p.main == compact && (j > 0 || x->rev.main == compact))))
            continue;
        if (err)
            return bad(c, "a record that is pointed at");
        if (j == 0 && before.n + 1 != h->n)
            return bad(c, "an ordinal");
    }
    return 0;
}

static int check_record(void *ctx, const struct change *x)
{
    struct check *c = ctx;
    const struct base *b = c->reader->base;
    Mvccpb__KeyValue kv;
    struct index_row row;
    struct log_head h;
    int err;

    c->records++;
    if (body_decode(x->body, &kv) || kv.key.len != x->key.len || (x->tombstone && kv.mod_revision) ||
        (!x->tombstone && (kv.mod_revision != x->rev.main || kv.lease != x->lease)))
        return bad(c, "a record's body");
    err = log_head_read(b, c->reader->txn, x->rev, &h);
    if (err == 0)
        err = check_pointers(c, x, &h);
    if (err)
        return err;
    err = index_find(b, c->reader->txn, x->key, &row);
    /* The sweep takes a record before the one that hides it, and a tombstone together with its row. */
    if (err == ERR_KEY_NOT_FOUND)
        return bad(c, "a record whose key has no row");
    if (err)
        return err;
    if (rev_cmp(row.newest, x->rev) < 0 || x->rev.main > c->meta.seal.revision)
        return bad(c, "a record newer than its key's row");
    return 0;
}

static int check_key(struct check *c, struct base_cursor *cur, struct arena *a)
{
    uint8_t key[BASE_LEASE_KEY_BYTES];
    struct change x, y;
    struct slice v;
    int err = base_cursor_get(cur, INT64_MAX, INT64_MAX, 0, a, &x);

    if (err == ERR_KEY_NOT_FOUND)
        return 0;
    if (err)
        return err;
    c->keys++;
    err = base_get(c->reader, x.key, INT64_MAX, INT64_MAX, BASE_NO_BODY, a, &y);
    if (err || rev_cmp(x.rev, y.rev))
        return bad(c, "a key that is not found by name");
    if (x.lease) {
        c->leased++;
        lease_key(x.lease, x.rev, key);
        err = base_row_read(c->reader->base, c->reader->txn, BASE_LEASE_KEYS, slice_of(key, sizeof key), &v);
        if (err)
            return bad(c, "a lease's key");
    }
    return 0;
}

static int check_keys(struct check *c, struct arena *a)
{
    struct base_cursor *cur;
    uint8_t *before = NULL;
    size_t before_len = 0;
    int err = base_cursor_new(c->reader, &cur);

    if (err)
        return err;
    for (err = base_cursor_seek(cur, SLICE_NONE, false); err == 0; err = base_cursor_next(cur)) {
        struct slice key = base_cursor_key(cur);
        uint8_t *copy;

        if (before && slice_cmp(slice_of(before, before_len), key) >= 0)
            err = bad(c, "the order of keys");
        else if ((copy = realloc(before, key.len)) == NULL)
            err = -ENOMEM;
        if (err)
            break;
        before = memcpy(copy, key.ptr, key.len);
        before_len = key.len;
        err = check_key(c, cur, a);
        arena_fini(a);
        if (err)
            break;
    }
    free(before);
    base_cursor_free(cur);
    return err == ERR_KEY_NOT_FOUND ? 0 : err;
}

static int check_all(struct check *c, struct arena *a)
{
    struct base_reader *r = c->reader;
    MDB_stat st;
    int err = base_pages_check(r->base, r->txn, true, &c->what); /* first: LMDB reads what it can rely on then */

    if (err)
        return err;
    err = base_reader_meta(r, &c->meta);
    if (err)
        return bad(c, "the meta rows");
    for (int t = 0; t < BASE_TABLES && err == 0; t++)
        err = check_rows(c, (enum base_table)t);
    if (err == 0)
        err = base_log_scan(r, (struct rev){0}, INT64_MAX, a, check_record, c);
    if (err == 0)
        err = check_keys(c, a);
    if (err == 0)
        err = base_error(mdb_stat(r->txn, r->base->dbi[BASE_LEASE_KEYS], &st));
    if (err == 0 && st.ms_entries != c->leased)
        err = bad(c, "a lease's row without a key");
    if (err == 0 && c->keys != (uint64_t)c->meta.seal.key_count)
        err = bad(c, "the number of keys");
    return err;
}

int base_check(struct base *b, const char **ret_what)
{
    struct check c = {0};
    struct arena a;
    int err = base_reader_new(b, &c.reader);

    if (err)
        return err;
    arena_init(&a, (size_t)BASE_PARTS_MAX * BASE_PART_BODY, NULL, 0);
    err = base_reader_renew(c.reader);
    if (err == 0)
        err = check_all(&c, &a);
    arena_fini(&a);
    base_reader_free(c.reader);
    if (err > 0)
        err = -EUCLEAN;
    if (err && ret_what)
        *ret_what = c.what ? c.what : "a row";
    return err;
}

/* ---- a little at a time ---- */

enum { SCRUB_FULL = 100000 }; /* ends a slice; no error of anybody's */

struct base_scrub {
    enum { SCRUB_PAGES, SCRUB_TABLES, SCRUB_LOG, SCRUB_KEYS } phase;
    uint64_t txn, applied;  /* which commit the pass began with */
    uint64_t keys, leased;  /* seen in this pass */
    int table;        /* SCRUB_TABLES: this one, from behind key */
    struct rev rev;   /* SCRUB_LOG: from here on */
    uint8_t *key;     /* behind this one; len 0: from the beginning; owned */
    size_t key_len;
};

struct slice_check {
    struct check check;
    struct base_scrub *scrub;
    struct arena arena;
    unsigned left;
};

struct base_scrub *base_scrub_new(void)
{
    return calloc(1, sizeof(struct base_scrub));
}

void base_scrub_free(struct base_scrub *s)
{
    if (s)
        free(s->key);
    free(s);
}

static int scrub_stop_behind(struct slice_check *x, struct slice key)
{
    struct base_scrub *s = x->scrub;
    uint8_t *copy = realloc(s->key, key.len);

    if (copy == NULL)
        return -ENOMEM;
    s->key = memcpy(copy, key.ptr, key.len);
    s->key_len = key.len;
    return SCRUB_FULL;
}

static bool scrub_full(struct slice_check *x)
{
    if (x->left == 0)
        return true;
    x->left--;
    return false;
}

static int scrub_table(struct slice_check *x, enum base_table t)
{
    struct base_reader *r = x->check.reader;
    struct slice from = slice_of(x->scrub->key, x->scrub->key_len), last = SLICE_NONE, value;
    MDB_val k = val(from), v;
    MDB_cursor *cur;
    int rc, err = base_error(mdb_cursor_open(r->txn, r->base->dbi[t], &cur));

    if (err)
        return err;
    rc = mdb_cursor_get(cur, &k, &v, from.len ? MDB_SET_RANGE : MDB_FIRST);
    if (rc == 0 && from.len && slice_eq(val_slice(k), from))
        rc = mdb_cursor_get(cur, &k, &v, MDB_NEXT);
    for (; rc == 0 && err == 0; rc = err ? 0 : mdb_cursor_get(cur, &k, &v, MDB_NEXT)) {
        if (last.ptr && scrub_full(x))
            err = scrub_stop_behind(x, last);
        else if (base_row_check(r->base, t, val_slice(k), val_slice(v), &value))
            err = bad(&x->check, "a row's checksum");
        last = val_slice(k);
    }
    mdb_cursor_close(cur);
    return err || rc == MDB_NOTFOUND ? err : base_error(rc);
}

static int scrub_tables(struct slice_check *x)
{
    int err = 0;

    for (; x->scrub->table < BASE_TABLES && err == 0; x->scrub->table++) {
        enum base_table t = (enum base_table)x->scrub->table;

        if (t != BASE_LOG && t != BASE_INDEX && t != BASE_LONG) /* those are read by what follows */
            err = scrub_table(x, t);
        if (err)
            break;
        x->scrub->key_len = 0;
    }
    return err;
}

static int scrub_record(void *ctx, const struct change *c)
{
    struct slice_check *x = ctx;

    if (scrub_full(x)) {
        x->scrub->rev = c->rev;
        return SCRUB_FULL;
    }
    return check_record(&x->check, c);
}

static int scrub_keys(struct slice_check *x)
{
    struct slice from = slice_of(x->scrub->key, x->scrub->key_len);
    struct base_cursor *cur;
    int err = base_cursor_new(x->check.reader, &cur);

    if (err)
        return err;
    for (err = base_cursor_seek(cur, from, from.len > 0); err == 0; err = base_cursor_next(cur)) {
        err = check_key(&x->check, cur, &x->arena);
        arena_fini(&x->arena);
        if (err == 0 && scrub_full(x))
            err = scrub_stop_behind(x, base_cursor_key(cur));
        if (err)
            break;
    }
    base_cursor_free(cur);
    return err == ERR_KEY_NOT_FOUND ? 0 : err;
}

/* In one slice: a read of each branch page. */
static int scrub_pages(struct slice_check *x)
{
    const struct base_reader *r = x->check.reader;
    int err = base_pages_check(r->base, r->txn, false, &x->check.what);

    if (err)
        return err;
    *x->scrub = (struct base_scrub){
        .phase = SCRUB_TABLES, .txn = mdb_txn_id(r->txn), .applied = x->check.meta.seal.applied_index};
    return SCRUB_FULL;
}

/* The counts mean something when nothing was committed since the pass began. */
static int scrub_counts(struct slice_check *x)
{
    const struct base_reader *r = x->check.reader;
    const struct base_scrub *s = x->scrub;
    MDB_stat st;
    int rc;

    if (mdb_txn_id(r->txn) != s->txn || x->check.meta.seal.applied_index != s->applied)
        return 0;
    rc = mdb_stat(r->txn, r->base->dbi[BASE_LEASE_KEYS], &st);
    if (rc)
        return base_error(rc);
    if (s->keys + x->check.keys != (uint64_t)x->check.meta.seal.key_count)
        return bad(&x->check, "the number of keys");
    return st.ms_entries == s->leased + x->check.leased ? 0 : bad(&x->check, "a lease's row without a key");
}

/* The phases, as far as the slice goes. */
static int scrub_slice(struct slice_check *x)
{
    struct base_scrub *s = x->scrub;
    int err = base_reader_meta(x->check.reader, &x->check.meta);

    if (err)
        return bad(&x->check, "the meta rows");
    if (s->phase == SCRUB_PAGES)
        return scrub_pages(x);
    if (s->phase == SCRUB_TABLES && (err = scrub_tables(x)) == 0)
        s->phase = SCRUB_LOG;
    if (s->phase == SCRUB_LOG && err == 0 &&
        (err = base_log_scan(x->check.reader, s->rev, INT64_MAX, &x->arena, scrub_record, x)) == 0)
        s->phase = SCRUB_KEYS;
    if (s->phase == SCRUB_KEYS && err == 0 && (err = scrub_keys(x)) == 0 && (err = scrub_counts(x)) == 0) {
        free(s->key);
        *s = (struct base_scrub){0};
    }
    return err;
}

int base_scrub(struct base *b, struct base_scrub *s, unsigned n, const char **ret_what)
{
    struct slice_check x = {.scrub = s, .left = n};
    int err = base_reader_new(b, &x.check.reader);

    assert(n > 0);
    if (err)
        return err;
    arena_init(&x.arena, (size_t)BASE_PARTS_MAX * BASE_PART_BODY, NULL, 0);
    err = base_reader_renew(x.check.reader);
    if (err == 0)
        err = scrub_slice(&x);
    s->keys += err ? x.check.keys : 0; /* 0: the next pass begins */
    s->leased += err ? x.check.leased : 0;
    arena_fini(&x.arena);
    base_reader_free(x.check.reader);
    if (err == SCRUB_FULL)
        return 1;
    if (err > 0)
        err = -EUCLEAN;
    if (err && ret_what)
        *ret_what = x.check.what ? x.check.what : "a row";
    return err;
}
