/* SPDX-License-Identifier: Apache-2.0 */
/* base_sweep.c - compaction: takes away the records no read at C or above can reach.
 *
 * Victims of a record x with main <= C: P[0] of x, which x hides; x itself if it is a tombstone with main < C, and
 * its index row if x is still the newest there. A tombstone exactly at C stays, as in etcd. Records are looked at
 * from S on, S inclusive; x is never chosen because a delta supersedes it: a crash forgets deltas.
 *
 * A round gathers up to BASE_SWEEP_VICTIMS of them, a step at a time, sorts them by rev and removes them in batches,
 * a commit each; S moves with the round's last batch. Gathering far more than one batch removes is what makes it
 * cheap: over random updates a page of the log then loses all its victims in one write, instead of one in each of
 * many. A crash within a round forgets it and the next one gathers again from S: in ascending order P[0] of x goes
 * before x, so whatever is still to go is still found; what is gone already is met with indifference.
 *
 * Stopping inside main C would pass by tombstones that a later, higher C makes victims: the mark therefore also keeps
 * the C it was made for, and goes back to the beginning of that main when C has risen.
 *
 * Owner: the flush thread. Steps are short, so that a flush never waits long.
 */
#include <errno.h>
#include "base_db.h"

/* ---- gathering ---- */

static int victim_add(struct base *b, struct rev rev, bool tombstone)
{
    if (b->round.n == b->round.cap) {
        size_t cap = b->round.cap ? 2 * b->round.cap : 1024;
        struct victim *v = realloc(b->round.v, cap * sizeof *v);

        if (v == NULL)
            return -ENOMEM;
        b->round.v = v;
        b->round.cap = cap;
    }
    b->round.v[b->round.n++] = (struct victim){rev.main, rev.sub, tombstone};
    return 0;
}

static int gather_one(struct base *b, struct slice k, struct slice v)
{
    struct rev rev = log_key_rev(k.ptr);
    struct log_head h;
    struct slice value;
    int err;

    if ((err = base_row_check(b, BASE_LOG, k, v, &value)) || (err = log_head_decode(value, &h)))
        return err;
    if (h.pointer[0].main > 0) {
        if (rev_cmp(h.pointer[0], rev) >= 0)
            return -EUCLEAN;
        err = victim_add(b, h.pointer[0], false);
    }
    if (err == 0 && h.tombstone && rev.main < b->round.next.upto)
        err = victim_add(b, rev, true);
    return err;
}

static int victim_cmp(const void *a, const void *b)
{
    const struct victim *x = a, *y = b;
    int c = rev_cmp((struct rev){x->main, x->sub}, (struct rev){y->main, y->sub});

    /* Of two that name one record, the one that knows it as a tombstone comes first and does all there is to do. */
    return c ? c : y->tombstone - x->tombstone;
}

/* Some records more, from round.next.from. The round is gathered when the log's part up to C or the room is over. */
static int gather(struct base *b, MDB_txn *txn)
{
    uint8_t start[BASE_LOG_KEY_BYTES];
    MDB_val k = {sizeof start, start}, v;
    struct sweep_mark *next = &b->round.next;
    MDB_cursor *cur;
    int rc, err;

    log_key(next->from, 0, start);
    err = base_error(mdb_cursor_open(txn, b->dbi[BASE_LOG], &cur));
    if (err)
        return err;
    rc = mdb_cursor_get(cur, &k, &v, MDB_SET_RANGE);
    for (size_t n = 0; err == 0; rc = mdb_cursor_get(cur, &k, &v, MDB_NEXT)) {
        if (rc) {
            err = rc == MDB_NOTFOUND ? 0 : base_error(rc);
            break;
        }
        if (k.mv_size != BASE_LOG_KEY_BYTES) {
            err = -EUCLEAN;
            break;
        }
        if (get_u16be((const uint8_t *)k.mv_data + 12) != 0)
            continue;
        next->from = log_key_rev(k.mv_data);
        if (next->from.main > next->upto) {
            rc = MDB_NOTFOUND;
            break;
        }
        if (n++ == b->sweep_max.records || b->round.n >= b->sweep_max.victims)
            break;
        err = gather_one(b, val_slice(k), val_slice(v));
    }
    mdb_cursor_close(cur);
    if (err)
        return err;
    if (rc == MDB_NOTFOUND) /* all up to C was seen: on from C itself, whose tombstones are still there */
        next->from = (struct rev){next->upto, 0};
    b->round.gathered = rc == MDB_NOTFOUND || b->round.n >= b->sweep_max.victims;
    /* Stopped right before main C: (C, 0) as of C would mean that all was seen. */
    if (b->round.gathered && rc != MDB_NOTFOUND && next->from.main == next->upto && next->from.sub == 0)
        next->upto--;
    if (b->round.gathered && b->round.n)
        qsort(b->round.v, b->round.n, sizeof *b->round.v, victim_cmp);
    return 0;
}

/* ---- removing ---- */

/* A tombstone that goes takes its key's row with it, unless the key has changed since. */
static int row_remove(struct base *b, MDB_txn *txn, struct rev rev)
{
    struct index_row row;
    struct log_head h;
    struct arena a;
    struct slice key;
    int err = log_head_read(b, txn, rev, &h);

    if (err)
        return err;
    arena_init(&a, h.body_len + 64, NULL, 0);
    err = log_record_key(b, txn, rev, &h, &a, &key);
    if (err == 0)
        err = index_find(b, txn, key, &row);
    if (err == 0 && rev_cmp(row.newest, rev) == 0)
        err = row.tombstone ? path_remove(b, txn, key) : -EUCLEAN;
    arena_fini(&a);
    return err > 0 ? -EUCLEAN : err; /* a tombstone in the log has a row; the arena had room */
}

/* What removing has cost so far, in pages: a page of the log is counted when the cursor comes to it. */
struct cost {
    uintptr_t page;
    unsigned pages;
};

static void cost_note(struct cost *c, const void *at)
{
    uintptr_t page = (uintptr_t)at & ~(uintptr_t)4095;

    if (page != c->page)
        c->pages++;
    c->page = page;
}

/* Removes a record, all parts of it. Gone already: nothing to do. */
static int victim_remove(struct base *b, MDB_txn *txn, MDB_cursor *cur, const struct victim *x, struct cost *cost,
                         uint64_t *removed)
{
    struct rev rev = {x->main, x->sub};
    uint8_t key[BASE_LOG_KEY_BYTES];
    MDB_val k = {sizeof key, key}, v;
    int rc, err;

    if (x->tombstone) {
        err = row_remove(b, txn, rev);
        if (err)
            return err == -ENOENT ? 0 : err;
        cost->pages++;
    }
    log_key(rev, 0, key);
    rc = mdb_cursor_get(cur, &k, &v, MDB_SET_KEY);
    if (rc == MDB_NOTFOUND)
        return 0;
    while (rc == 0 && log_key_rev(k.mv_data).main == rev.main && log_key_rev(k.mv_data).sub == rev.sub) {
        cost_note(cost, k.mv_data);
        rc = mdb_cursor_del(cur, 0);
        if (rc)
            return base_error(rc);
        /* After a delete the cursor is on what followed, in a page of this transaction's. */
        rc = mdb_cursor_get(cur, &k, &v, MDB_NEXT);
        cost->page = rc ? 0 : (uintptr_t)k.mv_data & ~(uintptr_t)4095;
    }
    ++*removed;
    return rc == MDB_NOTFOUND ? 0 : base_error(rc);
}

static int remove_batch(struct base *b, MDB_txn *txn, size_t *ret_at, uint64_t *removed)
{
    struct cost cost = {0};
    size_t at = b->round.at;
    MDB_cursor *cur;
    int err = base_error(mdb_cursor_open(txn, b->dbi[BASE_LOG], &cur));

    if (err)
        return err;
    while (err == 0 && at < b->round.n && cost.pages < b->sweep_max.pages)
        err = victim_remove(b, txn, cur, &b->round.v[at++], &cost, removed);
    mdb_cursor_close(cur);
    if (err == 0 && at == b->round.n)
        err = base_mark_write(b, txn, b->round.next);
    *ret_at = at;
    return err;
}

/* ---- a step ---- */

static bool swept_all(const struct base *b)
{
    return b->compact_rev <= 0 || (b->mark.upto == b->compact_rev && b->mark.from.main == b->compact_rev &&
                                   b->mark.from.sub == 0);
}

static void round_begin(struct base *b)
{
    b->round.active = true;
    b->round.next = b->mark;
    if (b->mark.from.main == b->mark.upto && b->compact_rev > b->mark.upto)
        b->round.next.from.sub = 0;
    b->round.next.upto = b->compact_rev;
}

static void round_end(struct base *b)
{
    b->mark = b->round.next;
    free(b->round.v);
    memset(&b->round, 0, sizeof b->round);
}

static int step_gather(struct base *b)
{
    MDB_txn *txn;
    int err = base_error(mdb_txn_begin(b->env, NULL, MDB_RDONLY, &txn));

    if (err)
        return err;
    err = gather(b, txn);
    mdb_txn_abort(txn);
    return err;
}

static int step_remove(struct base *b, uint64_t *removed)
{
    size_t at = b->round.at;
    uint64_t n = 0;
    MDB_txn *txn;
    int err = base_error(mdb_txn_begin(b->env, NULL, 0, &txn));

    if (err)
        return err;
    err = remove_batch(b, txn, &at, &n);
    if (err)
        mdb_txn_abort(txn);
    else
        err = base_commit(b, txn, b->child_next);
    if (err)
        return err;
    b->round.at = at;
    *removed = n;
    if (at == b->round.n)
        round_end(b);
    return 0;
}

int base_sweep(struct base *b, uint64_t *ret_removed)
{
    uint64_t removed = 0;
    int err = 0;

    if (b->round.active || !swept_all(b)) {
        if (!b->round.active)
            round_begin(b);
        err = b->round.gathered ? step_remove(b, &removed) : step_gather(b);
        if (err)
            return err;
    }
    if (ret_removed)
        *ret_removed = removed;
    return b->round.active || !swept_all(b);
}
