/* SPDX-License-Identifier: Apache-2.0 */
/* delta.c - changes in memory: three ordered maps and an array over one arena (delta_map.c).
 *
 *      keys    key            -> its changes, newest first
 *      leases  id, u64be      -> the changes that carry it, newest first
 *      rows    table, id      -> the last image
 *      log     position       -> change, in order of rev
 *
 *      entry(key) --newest--> change rev 9 --older--> rev 7 --older--> rev 4
 *                                  '-----------jump------------------>
 *
 * Changes of one key are a list with one jump pointer each, lengths as in a skew-binary number: an old
 * revision of a key that changed a million times is some twenty steps away.
 *
 * Promise: one writer, any number of readers without a lock. Everything is filled in before a pointer to it
 * is stored with release; readers load with acquire; nothing is changed or freed while the delta lives.
 * What a reader finds above its revision it passes over, so the order of the several links does not matter.
 *
 * Owner:   the apply thread writes; see store.c for who may read and for how long.
 * Source:  Myers 1983, "An applicative random-access stack", for the jumps.
 */
#include <errno.h>
#include "delta_map.h"

enum {
    LOG_FIRST = 64, /* positions in the first segment of the log; each next has twice as many */
    LOG_SEGMENTS = 40,
    ROW_ID_MAX = 500, /* base's keys end at 511 bytes */
};

struct node {
    struct change c;
    struct entry *entry;
    struct node *older, *jump; /* NULL: the oldest here */
    uint32_t depth;            /* changes of this key below it */
    struct node *lease_older;
};

struct image {
    struct slice value;
};

struct delta {
    struct map keys, leases, rows;
    _Atomic(struct node **) log[LOG_SEGMENTS];
    _Atomic size_t n_changes;
    struct chunks chunks; /* of the log, what is filled counts */
    bool is_sealed;
    struct seal seal;
};

/* ---- life ---------------------------------------------------------------------- */

static void delta_start(struct delta *d)
{
    map_init(&d->keys, 16);
    map_init(&d->leases, 12);
    map_init(&d->rows, 12);
    for (int i = 0; i < LOG_SEGMENTS; i++)
        atomic_init(&d->log[i], NULL);
    atomic_init(&d->n_changes, 0);
    d->is_sealed = false;
}

static void delta_end(struct delta *d)
{
    map_fini(&d->keys);
    map_fini(&d->leases);
    map_fini(&d->rows);
}

struct delta *delta_new(void)
{
    struct delta *d = calloc(1, sizeof *d);

    if (d && chunks_init(&d->chunks)) {
        free(d);
        return NULL;
    }
    if (d)
        delta_start(d);
    return d;
}

void delta_free(struct delta *d)
{
    if (d == NULL)
        return;
    delta_end(d);
    chunks_fini(&d->chunks);
    free(d);
}

void delta_reset(struct delta *d)
{
    if (!d->is_sealed && delta_bytes(d) == 0)
        return;
    delta_end(d);
    chunks_reset(&d->chunks);
    delta_start(d);
}

void delta_seal(struct delta *d, const struct seal *s)
{
    void *conf = chunks_take(&d->chunks, s->conf.len);

    assert(!d->is_sealed);
    d->seal = *s;
    d->seal.conf = SLICE_NONE;
    /* Without the configuration base would be wrong, and a seal has no way to fail: a page is all it asks for. */
    assert(conf != NULL);
    if (s->conf.len) {
        memcpy(conf, s->conf.ptr, s->conf.len);
        d->seal.conf = slice_of(conf, s->conf.len);
    }
    d->is_sealed = true;
}

const struct seal *delta_sealed(const struct delta *d)
{
    return d->is_sealed ? &d->seal : NULL;
}

size_t delta_bytes(const struct delta *d)
{
    return atomic_load_explicit(&d->chunks.bytes, memory_order_relaxed);
}

size_t delta_keys(const struct delta *d)
{
    return atomic_load_explicit(&d->keys.n, memory_order_relaxed);
}

size_t delta_rows(const struct delta *d)
{
    return atomic_load_explicit(&d->rows.n, memory_order_relaxed);
}

size_t delta_changes(const struct delta *d)
{
    return atomic_load_explicit(&d->n_changes, memory_order_acquire);
}

/* ---- the log --------------------------------------------------------------------- */

/* Segment s holds the positions from LOG_FIRST * (2^s - 1) on, LOG_FIRST * 2^s of them. */
static unsigned log_place(size_t position, size_t *ret_offset)
{
    size_t q = position / LOG_FIRST + 1;
    unsigned s = 63 - (unsigned)__builtin_clzll(q);

    *ret_offset = position - LOG_FIRST * (((size_t)1 << s) - 1);
    return s;
}

/* Makes sure of a place for the next change. NULL: no memory. */
static struct node **log_room(struct delta *d)
{
    size_t offset;
    unsigned s = log_place(atomic_load_explicit(&d->n_changes, memory_order_relaxed), &offset);
    struct node **segment = atomic_load_explicit(&d->log[s], memory_order_relaxed);

    assert(s < LOG_SEGMENTS);
    if (segment == NULL) {
        segment = chunks_take(&d->chunks, (sizeof *segment * LOG_FIRST) << s);
        if (segment == NULL)
            return NULL;
        atomic_store_explicit(&d->log[s], segment, memory_order_release);
    }
    return &segment[offset];
}

static const struct node *log_get(const struct delta *d, size_t position)
{
    size_t offset;
    unsigned s = log_place(position, &offset);

    return atomic_load_explicit(&d->log[s], memory_order_acquire)[offset];
}

const struct change *delta_at(const struct delta *d, size_t position)
{
    assert(position < delta_changes(d));
    return &log_get(d, position)->c;
}

size_t delta_lower_bound(const struct delta *d, int64_t main)
{
    size_t low = 0, high = delta_changes(d);

    while (low < high) {
        size_t mid = low + (high - low) / 2;

        if (log_get(d, mid)->c.rev.main < main)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* ---- changes ----------------------------------------------------------------------- */

/* A body starts with its key, so one copy does for both; a body that does not gets the key beside it. */
static struct node *node_new(struct delta *d, const struct change *c)
{
    size_t offset = 2;
    bool within;
    struct node *n;
    uint8_t *p;

    for (size_t rest = c->key.len; rest >= 0x80; rest >>= 7)
        offset++;
    within = c->body.len >= offset + c->key.len && memcmp(c->body.ptr + offset, c->key.ptr, c->key.len) == 0;
    n = chunks_take(&d->chunks, sizeof *n + c->body.len + (within ? 0 : c->key.len));
    if (n == NULL)
        return NULL;
    p = (uint8_t *)(n + 1);
    *n = (struct node){.c = *c};
    if (c->body.len)
        memcpy(p, c->body.ptr, c->body.len);
    n->c.body = slice_of(p, c->body.len);
    if (within) {
        n->c.key = slice_of(p + offset, c->key.len);
    } else {
        memcpy(p + c->body.len, c->key.ptr, c->key.len);
        n->c.key = slice_of(p + c->body.len, c->key.len);
    }
    chunks_count(&d->chunks, sizeof *n + c->body.len + (within ? 0 : c->key.len) + sizeof(struct node *));
    return n;
}

static void node_stack(struct node *n, struct node *older)
{
    n->older = older;
    if (older == NULL)
        return;
    n->depth = older->depth + 1;
    /* Two jumps of one length in a row become one of twice that and one more. */
    if (older->jump && older->jump->jump &&
        older->depth - older->jump->depth == older->jump->depth - older->jump->jump->depth)
        n->jump = older->jump->jump;
    else
        n->jump = older;
}

static struct slice lease_key(int64_t lease, uint8_t storage[8])
{
    put_u64be(storage, (uint64_t)lease);
    return slice_of(storage, 8);
}

/* The entry for a lease, linked by the caller when *ret_fresh. NULL: no memory. */
static struct entry *lease_entry(struct delta *d, int64_t lease, bool *ret_fresh)
{
    uint8_t storage[8];
    struct slice key = lease_key(lease, storage);
    uint32_t h = map_hash(key);
    struct entry *e = map_find(&d->leases, key, h);
    uint8_t *p;

    *ret_fresh = e == NULL;
    if (e)
        return e;
    e = map_entry_new(&d->leases, &d->chunks, h);
    p = chunks_take(&d->chunks, sizeof storage);
    if (e == NULL || p == NULL)
        return NULL;
    memcpy(p, storage, sizeof storage);
    e->key = slice_of(p, sizeof storage);
    return e;
}

int delta_put(struct delta *d, const struct change *c)
{
    uint32_t h = map_hash(c->key);
    size_t position = atomic_load_explicit(&d->n_changes, memory_order_relaxed);
    struct entry *e = map_find(&d->keys, c->key, h), *le = NULL;
    bool fresh = e == NULL, lease_fresh = false;
    struct node **place = log_room(d), *n;

    assert(!d->is_sealed);
    assert(c->key.len > 0);
    assert(position == 0 || rev_cmp(c->rev, log_get(d, position - 1)->c.rev) > 0);

    /* All that can fail comes first; what is taken by then stays unused until the delta goes. */
    n = node_new(d, c);
    if (fresh)
        e = map_entry_new(&d->keys, &d->chunks, h);
    if (c->lease)
        le = lease_entry(d, c->lease, &lease_fresh);
    if (place == NULL || n == NULL || e == NULL || (c->lease && le == NULL))
        return -ENOMEM;

    n->entry = e;
    node_stack(n, atomic_load_explicit(&e->newest, memory_order_relaxed));
    if (le)
        n->lease_older = atomic_load_explicit(&le->newest, memory_order_relaxed);

    *place = n;
    atomic_store_explicit(&d->n_changes, position + 1, memory_order_release);
    atomic_store_explicit(&e->newest, n, memory_order_release);
    if (fresh) {
        e->key = n->c.key;
        map_link(&d->keys, e);
    }
    if (le)
        atomic_store_explicit(&le->newest, n, memory_order_release);
    if (lease_fresh)
        map_link(&d->leases, le);
    return 0;
}

static const struct node *newest_of(const struct entry *e)
{
    return atomic_load_explicit(&e->newest, memory_order_acquire);
}

static const struct change *change_of(const struct node *n)
{
    return n ? &n->c : NULL;
}

static const struct node *node_at(const struct entry *e, int64_t rev_max)
{
    const struct node *n = newest_of(e);

    while (n && n->c.rev.main > rev_max)
        n = n->jump && n->jump->c.rev.main > rev_max ? n->jump : n->older;
    return n;
}

const struct change *delta_find(const struct delta *d, struct slice key, int64_t rev_max)
{
    const struct entry *e = map_find(&d->keys, key, map_hash(key));

    return e ? change_of(node_at(e, rev_max)) : NULL;
}

const struct change *delta_cursor_find(const struct delta_cursor *cur, int64_t rev_max)
{
    const struct node *n = cur->node;

    return n ? change_of(node_at(n->entry, rev_max)) : NULL;
}

static const struct change *cursor_enter(struct delta_cursor *cur, const struct entry *e)
{
    const struct node *n = e ? newest_of(e) : NULL;

    cur->node = n;
    return change_of(n);
}

const struct change *delta_seek(struct delta_cursor *cur, const struct delta *d, struct slice from,
                                bool after)
{
    cur->d = d;
    return cursor_enter(cur, map_seek(&d->keys, from, after));
}

const struct change *delta_next_key(struct delta_cursor *cur)
{
    const struct node *n = cur->node;

    if (n == NULL)
        return NULL;
    return cursor_enter(cur, map_next(n->entry));
}

const struct change *delta_next(struct delta_cursor *cur)
{
    const struct node *n = cur->node;

    if (n == NULL || n->older == NULL)
        return delta_next_key(cur);
    cur->node = n->older;
    return &n->older->c;
}

int delta_lease_changes(const struct delta *d, int64_t lease, int64_t rev_max,
                        int (*fn)(void *ctx, const struct change *), void *ctx)
{
    uint8_t storage[8];
    struct slice key = lease_key(lease, storage);
    const struct entry *e = map_find(&d->leases, key, map_hash(key));
    const struct node *n = e ? newest_of(e) : NULL;
    int rc = 0;

    for (; n && rc == 0; n = n->lease_older)
        if (node_at(n->entry, rev_max) == n)
            rc = fn(ctx, &n->c);
    return rc;
}

/* ---- rows ----------------------------------------------------------------------------- */

int delta_row(struct delta *d, enum table t, struct slice id, struct slice value)
{
    struct image *image = chunks_take(&d->chunks, sizeof *image + value.len + 1 + id.len);
    struct slice key;
    struct entry *e;
    uint8_t *p;
    uint32_t h;

    assert(!d->is_sealed);
    assert(id.len <= ROW_ID_MAX);
    if (image == NULL)
        return -ENOMEM;
    p = (uint8_t *)(image + 1);
    image->value = value.ptr ? slice_of(p, value.len) : SLICE_NONE;
    if (value.len)
        memcpy(p, value.ptr, value.len);
    p += value.len;
    p[0] = (uint8_t)t;
    if (id.len)
        memcpy(p + 1, id.ptr, id.len);
    key = slice_of(p, 1 + id.len);
    chunks_count(&d->chunks, sizeof *image + value.len + key.len);

    h = map_hash(key);
    e = map_find(&d->rows, key, h);
    if (e) {
        atomic_store_explicit(&e->newest, image, memory_order_release);
        return 0;
    }
    e = map_entry_new(&d->rows, &d->chunks, h);
    if (e == NULL)
        return -ENOMEM;
    e->key = key;
    atomic_store_explicit(&e->newest, image, memory_order_relaxed);
    map_link(&d->rows, e);
    return 0;
}

bool delta_row_find(const struct delta *d, enum table t, struct slice id, struct slice *ret_value)
{
    uint8_t storage[ROW_ID_MAX + 1];
    struct slice key = slice_of(storage, 1 + id.len);
    const struct entry *e;
    const struct image *image;

    assert(id.len <= ROW_ID_MAX);
    storage[0] = (uint8_t)t;
    if (id.len)
        memcpy(storage + 1, id.ptr, id.len);
    e = map_find(&d->rows, key, map_hash(key));
    if (e == NULL)
        return false;
    image = atomic_load_explicit(&e->newest, memory_order_acquire);
    *ret_value = image->value;
    return true;
}

int delta_row_scan(const struct delta *d,
                   int (*fn)(void *ctx, enum table t, struct slice id, struct slice value), void *ctx)
{
    const struct entry *e = map_first(&d->rows);
    int rc = 0;

    for (; e && rc == 0; e = map_next(e)) {
        const struct image *image = atomic_load_explicit(&e->newest, memory_order_acquire);

        rc = fn(ctx, (enum table)e->key.ptr[0], slice_of(e->key.ptr + 1, e->key.len - 1), image->value);
    }
    return rc;
}
