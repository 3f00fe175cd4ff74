/* SPDX-License-Identifier: Apache-2.0 */
/* delta_map.c - an ordered map with one writer and lock-free readers, and the memory it lies in.
 *
 * A skip list (order, and always right) with a hash beside it once it has more than HASH_MIN entries: one probe instead
 * of fifteen comparisons. A hash chain longer than CHAIN_MAX is not walked further: the skip list answers, so that
 * keys chosen to collide cost a logarithm and not the whole chain.
 *
 * Promise: everything in an entry is filled in before a pointer to it is stored with release; readers load with
 * acquire; nothing is changed or freed while the map lives.
 *
 * Source: Pugh 1990 (p = 1/4).
 */
#include <errno.h>
#include <sys/mman.h>
#include "delta_map.h"

enum {
    CHUNK_FIRST_BYTES = 64 << 10, /* all a txn's scratch needs, as a rule */
    CHUNK_BYTES = 1 << 20,
    CHUNK_OWN_BYTES = 128 << 10, /* what is larger gets a chunk of its own */
    CHUNK_HEAD_BYTES = (sizeof(struct chunk) + 15) & ~15,
    HASH_MIN = 64,
    CHAIN_MAX = 16,
};

/* ---- memory ------------------------------------------------------------------ */

static void *map_bytes(size_t n)
{
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

static struct chunk *chunk_new(size_t size)
{
    struct chunk *c = map_bytes(size);

    if (c)
        *c = (struct chunk){.size = size, .used = CHUNK_HEAD_BYTES};
    return c;
}

void *chunks_take(struct chunks *chunks, size_t n)
{
    struct chunk *c = chunks->first;
    void *p;

    n = (n + 7) & ~(size_t)7;
    if (n > c->size - c->used) {
        bool own = n > CHUNK_OWN_BYTES;
        struct chunk *fresh = chunk_new(own ? (n + CHUNK_HEAD_BYTES + 4095) & ~(size_t)4095 : CHUNK_BYTES);

        if (fresh == NULL)
            return NULL;
        /* A chunk of its own goes behind the one being filled, which still has room. */
        if (own && c->next != NULL) {
            fresh->next = c->next;
            c->next = fresh;
        } else {
            fresh->next = c;
            chunks->first = fresh;
        }
        c = fresh;
    }
    p = (uint8_t *)c + c->used;
    c->used += n;
    return p;
}

void chunks_count(struct chunks *chunks, size_t n)
{
    /* One writer: a plain sum; atomic only for those who look on. */
    atomic_store_explicit(&chunks->bytes, atomic_load_explicit(&chunks->bytes, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

int chunks_init(struct chunks *chunks)
{
    chunks->first = chunk_new(CHUNK_FIRST_BYTES);
    atomic_init(&chunks->bytes, 0);
    return chunks->first ? 0 : -ENOMEM;
}

static void chunks_drop(struct chunks *chunks, const struct chunk *keep)
{
    while (chunks->first && chunks->first != keep) {
        struct chunk *next = chunks->first->next;

        (void)munmap(chunks->first, chunks->first->size); /* our own mapping: cannot fail */
        chunks->first = next;
    }
}

void chunks_fini(struct chunks *chunks)
{
    chunks_drop(chunks, NULL);
}

void chunks_reset(struct chunks *chunks)
{
    struct chunk *oldest = chunks->first;

    while (oldest->next)
        oldest = oldest->next;
    chunks_drop(chunks, oldest);
    oldest->used = CHUNK_HEAD_BYTES;
    atomic_store_explicit(&chunks->bytes, 0, memory_order_relaxed);
}

/* ---- a map -------------------------------------------------------------------- */

uint32_t map_hash(struct slice s)
{
    uint64_t h = s.len * UINT64_C(0x9e3779b97f4a7c15), last = 0;

    for (; s.len >= 8; s = slice_of(s.ptr + 8, s.len - 8)) {
        h = (h ^ get_u64le(s.ptr)) * UINT64_C(0xff51afd7ed558ccd);
        h ^= h >> 32;
    }
    if (s.len)
        memcpy(&last, s.ptr, s.len);
    h = (h ^ last) * UINT64_C(0xc4ceb9fe1a85ec53);
    return (uint32_t)(h >> 32);
}

static _Atomic(struct entry *) *chain_of(const struct map *m, _Atomic(struct entry *) *hash, uint32_t h)
{
    return &hash[h >> (32 - m->hash_bits)];
}

/* The first entry >= key (> key when after), and into path, unless NULL, the link before it on each level. */
static struct entry *seek(const struct map *m, struct slice key, bool after, _Atomic(struct entry *) **path)
{
    _Atomic(struct entry *) *links = (_Atomic(struct entry *) *)(uintptr_t)m->head;
    struct entry *e = NULL, *beyond = NULL;

    for (int level = HEIGHT_MAX - 1; level >= 0; level--) {
        for (;;) {
            int c;

            e = atomic_load_explicit(&links[level], memory_order_acquire);
            /* What ended the level above ends this one too: no need to compare it again. */
            if (e == NULL || e == beyond)
                break;
            c = slice_cmp(e->key, key);
            if (c > 0 || (c == 0 && !after))
                break;
            links = e->next;
        }
        beyond = e;
        if (path)
            path[level] = &links[level];
    }
    return e;
}

struct entry *map_seek(const struct map *m, struct slice key, bool after)
{
    return seek(m, key, after, NULL);
}

struct entry *map_find(const struct map *m, struct slice key, uint32_t h)
{
    _Atomic(struct entry *) *hash = atomic_load_explicit(&m->hash, memory_order_acquire);
    struct entry *e;

    if (hash) {
        e = atomic_load_explicit(chain_of(m, hash, h), memory_order_acquire);
        for (int i = 0; i < CHAIN_MAX; i++) {
            if (e == NULL || (e->hash == h && slice_eq(e->key, key)))
                return e;
            e = atomic_load_explicit(&e->chain, memory_order_acquire);
        }
    }
    e = seek(m, key, false, NULL);
    return e && slice_eq(e->key, key) ? e : NULL;
}

static void hash_link(struct map *m, _Atomic(struct entry *) *hash, struct entry *e)
{
    _Atomic(struct entry *) *chain = chain_of(m, hash, e->hash);

    /* Relaxed to read: this thread wrote it. */
    atomic_store_explicit(&e->chain, atomic_load_explicit(chain, memory_order_relaxed), memory_order_relaxed);
    atomic_store_explicit(chain, e, memory_order_release);
}

/* Without memory for it, the skip list alone goes on. */
static void hash_start(struct map *m)
{
    _Atomic(struct entry *) *hash = map_bytes(sizeof *hash << m->hash_bits);

    if (hash == NULL)
        return;
    for (struct entry *e = atomic_load(&m->head[0]); e; e = atomic_load(&e->next[0]))
        hash_link(m, hash, e);
    atomic_store_explicit(&m->hash, hash, memory_order_release);
}

static uint32_t random_height(struct map *m)
{
    uint32_t height = 1;

    m->seed ^= m->seed << 13;
    m->seed ^= m->seed >> 17;
    m->seed ^= m->seed << 5;
    for (uint32_t bits = m->seed; height < HEIGHT_MAX && (bits & 3) == 0; bits >>= 2)
        height++;
    return height;
}

struct entry *map_entry_new(struct map *m, struct chunks *c, uint32_t h)
{
    uint32_t height = random_height(m);
    struct entry *e = chunks_take(c, sizeof *e + height * sizeof e->next[0]);

    if (e == NULL)
        return NULL;
    e->hash = h;
    e->height = height;
    atomic_init(&e->newest, NULL);
    atomic_init(&e->chain, NULL);
    chunks_count(c, sizeof *e + height * sizeof e->next[0]);
    return e;
}

void map_link(struct map *m, struct entry *e)
{
    _Atomic(struct entry *) *path[HEIGHT_MAX];
    _Atomic(struct entry *) *hash = atomic_load_explicit(&m->hash, memory_order_relaxed);
    size_t n = atomic_load_explicit(&m->n, memory_order_relaxed) + 1;

    seek(m, e->key, false, path);
    /* From the bottom: what is on a level is on all levels below it. */
    for (uint32_t i = 0; i < e->height; i++) {
        atomic_init(&e->next[i], atomic_load_explicit(path[i], memory_order_relaxed));
        atomic_store_explicit(path[i], e, memory_order_release);
    }
    atomic_store_explicit(&m->n, n, memory_order_relaxed);
    if (hash)
        hash_link(m, hash, e);
    else if (n > HASH_MIN)
        hash_start(m);
}

void map_fini(struct map *m)
{
    _Atomic(struct entry *) *hash = atomic_load_explicit(&m->hash, memory_order_relaxed);

    if (hash)
        (void)munmap((void *)hash, sizeof *hash << m->hash_bits); /* our own mapping: cannot fail */
}

void map_init(struct map *m, unsigned hash_bits)
{
    for (int i = 0; i < HEIGHT_MAX; i++)
        atomic_init(&m->head[i], NULL);
    atomic_init(&m->hash, NULL);
    atomic_init(&m->n, 0);
    m->hash_bits = hash_bits;
    m->seed = 2463534242;
}
