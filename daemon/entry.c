/* SPDX-License-Identifier: Apache-2.0 */
/* entry.c - encoding of a log entry, counted entries, and the cache of the newest ones.
 *
 * The layout of a payload stands in entry.h. The cache is a ring of pointers for the indexes [first, first + n).
 * Owner: see entry.h; the ring is protected by a mutex.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include "entry.h"

size_t entry_size(const struct entry_head *h)
{
    return ENTRY_HEAD_BYTES + h->user.len + h->body.len;
}

void entry_encode(const struct entry_head *h, uint8_t *dst)
{
    assert(h->user.len <= UINT16_MAX);
    assert(h->kind > ENTRY_NOOP && h->kind < ENTRY_KINDS);
    dst[0] = ENTRY_VERSION;
    dst[1] = (uint8_t)h->kind;
    put_u16le(dst + 2, (uint16_t)h->user.len);
    put_u32le(dst + 4, 0);
    put_u64le(dst + 8, h->origin);
    put_u64le(dst + 16, h->request_id);
    put_u64le(dst + 24, h->auth_revision);
    put_u64le(dst + 32, h->proposal_term);
    if (h->user.len)
        memcpy(dst + ENTRY_HEAD_BYTES, h->user.ptr, h->user.len);
    if (h->body.len)
        memcpy(dst + ENTRY_HEAD_BYTES + h->user.len, h->body.ptr, h->body.len);
}

enum entry_kind entry_payload_kind(const uint8_t *payload)
{
    return (enum entry_kind)payload[1];
}

int entry_decode(struct slice payload, struct entry_head *ret_head)
{
    const uint8_t *p = payload.ptr;
    size_t user_len;

    if (payload.len == 0) {
        *ret_head = (struct entry_head){.kind = ENTRY_NOOP};
        return 0;
    }
    if (payload.len < ENTRY_HEAD_BYTES || p[0] != ENTRY_VERSION || p[1] == ENTRY_NOOP || p[1] >= ENTRY_KINDS)
        return -EBADMSG;
    user_len = get_u16le(p + 2);
    if (get_u32le(p + 4) != 0 || user_len > payload.len - ENTRY_HEAD_BYTES)
        return -EBADMSG;
    *ret_head = (struct entry_head){
        .kind = (enum entry_kind)p[1],
        .origin = get_u64le(p + 8),
        .request_id = get_u64le(p + 16),
        .auth_revision = get_u64le(p + 24),
        .proposal_term = get_u64le(p + 32),
        .user = slice_of(p + ENTRY_HEAD_BYTES, user_len),
        .body = slice_of(p + ENTRY_HEAD_BYTES + user_len, payload.len - ENTRY_HEAD_BYTES - user_len),
    };
    return 0;
}

/* ---- counted entries -------------------------------------------------------- */

struct entry *entry_new(size_t payload_len)
{
    struct entry *e;

    if (payload_len > UINT32_MAX)
        return NULL;
    e = malloc(sizeof *e + payload_len);
    if (e == NULL)
        return NULL;
    atomic_init(&e->refs, 1);
    e->len = (uint32_t)payload_len;
    e->index = e->term = 0;
    return e;
}

struct entry *entry_ref(struct entry *e)
{
    atomic_fetch_add_explicit(&e->refs, 1, memory_order_relaxed);
    return e;
}

void entry_unref(struct entry *e)
{
    /* acq_rel: what other holders did with the bytes is over before they are freed. */
    if (e && atomic_fetch_sub_explicit(&e->refs, 1, memory_order_acq_rel) == 1)
        free(e);
}

/* ---- the cache ---------------------------------------------------------------- */

struct entry_cache {
    pthread_mutex_t mu;
    struct entry **ring;  /* protected by mu, like all that follows; size is a power of two */
    size_t ring_size;
    uint64_t first;       /* index of the oldest one kept */
    size_t n;
    size_t bytes, limit_bytes;
    uint64_t keep_from;   /* entries from here on are never dropped to hold the limit */
};

static struct entry **cache_at(struct entry_cache *c, uint64_t index)
{
    return &c->ring[index & (c->ring_size - 1)];
}

static size_t entry_bytes(const struct entry *e)
{
    return sizeof *e + e->len;
}

static void cache_drop(struct entry_cache *c, uint64_t index)
{
    struct entry **e = cache_at(c, index);

    c->bytes -= entry_bytes(*e);
    entry_unref(*e);
    *e = NULL;
    c->n--;
}

struct entry_cache *entry_cache_new(size_t limit_bytes)
{
    struct entry_cache *c = calloc(1, sizeof *c);

    if (c == NULL)
        return NULL;
    c->ring_size = 1024;
    c->ring = calloc(c->ring_size, sizeof *c->ring);
    if (c->ring == NULL) {
        free(c);
        return NULL;
    }
    (void)pthread_mutex_init(&c->mu, NULL); /* cannot fail with default attributes on Linux */
    c->limit_bytes = limit_bytes;
    return c;
}

void entry_cache_free(struct entry_cache *c)
{
    if (c == NULL)
        return;
    while (c->n)
        cache_drop(c, c->first + c->n - 1);
    (void)pthread_mutex_destroy(&c->mu); /* nobody holds it any more */
    free(c->ring);
    free(c);
}

/* False: no memory. */
static bool cache_grow(struct entry_cache *c)
{
    struct entry **old = c->ring, **ring = calloc(c->ring_size * 2, sizeof *ring);
    size_t old_size = c->ring_size;

    if (ring == NULL)
        return false;
    c->ring = ring;
    c->ring_size *= 2;
    for (uint64_t i = c->first; i < c->first + c->n; i++)
        *cache_at(c, i) = old[i & (old_size - 1)];
    free(old);
    return true;
}

/* Drops old ones that nobody needs until the limit holds. */
static void cache_trim(struct entry_cache *c)
{
    while (c->n && c->bytes > c->limit_bytes && c->first < c->keep_from) {
        cache_drop(c, c->first);
        c->first++;
    }
}

void entry_cache_put(struct entry_cache *c, struct entry *e)
{
    assert(e->index != 0);
    pthread_mutex_lock(&c->mu);
    while (c->n && c->first + c->n > e->index)
        cache_drop(c, c->first + c->n - 1);
    /* A gap (a snapshot came) or a cut to below the oldest: begin anew. */
    if (c->n && c->first + c->n < e->index) {
        while (c->n)
            cache_drop(c, c->first + c->n - 1);
    }
    if (c->n == 0)
        c->first = e->index;
    if (e->index < c->keep_from)
        c->keep_from = e->index; /* what is stored there is what it replaces */
    /* Without memory for a larger ring the oldest gives way: its readers turn to the WAL. */
    if (c->n == c->ring_size && !cache_grow(c)) {
        cache_drop(c, c->first);
        c->first++;
    }
    *cache_at(c, e->index) = entry_ref(e);
    c->n++;
    c->bytes += entry_bytes(e);
    cache_trim(c);
    pthread_mutex_unlock(&c->mu);
}

struct entry *entry_cache_get(struct entry_cache *c, uint64_t index)
{
    struct entry *e = NULL;

    pthread_mutex_lock(&c->mu);
    if (index >= c->first && index - c->first < c->n)
        e = entry_ref(*cache_at(c, index));
    pthread_mutex_unlock(&c->mu);
    return e;
}

void entry_cache_forget(struct entry_cache *c, uint64_t index)
{
    pthread_mutex_lock(&c->mu);
    if (index > c->keep_from)
        index = c->keep_from;
    while (c->n && c->first < index) {
        cache_drop(c, c->first);
        c->first++;
    }
    pthread_mutex_unlock(&c->mu);
}

void entry_cache_done(struct entry_cache *c, uint64_t index)
{
    pthread_mutex_lock(&c->mu);
    if (index > c->keep_from)
        c->keep_from = index;
    cache_trim(c);
    pthread_mutex_unlock(&c->mu);
}
