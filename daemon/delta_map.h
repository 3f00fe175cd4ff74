/* SPDX-License-Identifier: Apache-2.0 */
/* delta_map.h - what delta.c and delta_map.c share: the arena of chunks and the ordered map over it. */
#pragma once
#include "delta.h"

enum {
    HEIGHT_MAX = 12, /* 4^12 entries: more than fit into LIMIT_DELTA_STALL_BYTES */
};

/* ---- the arena: mmap'd chunks, never zeroed, freed all at once ---------------------------------- */

struct chunk {
    struct chunk *next;
    size_t size, used; /* bytes, this header included */
};

struct chunks {
    struct chunk *first;  /* the one being filled; the oldest, CHUNK_FIRST_BYTES, is last */
    _Atomic size_t bytes; /* what is in use, as its users count it */
};

int chunks_init(struct chunks *c); /* -ENOMEM */
void chunks_fini(struct chunks *c);
void chunks_reset(struct chunks *c);           /* keeps the oldest chunk */
void *chunks_take(struct chunks *c, size_t n); /* 8-aligned, not zeroed; NULL: no memory */
void chunks_count(struct chunks *c, size_t n); /* adds n to bytes */

/* ---- a map -------------------------------------------------------------------------------------- */

struct entry {
    struct slice key;
    _Atomic(void *) newest; /* what it stands for: the owner of the map says */
    uint32_t hash, height;
    _Atomic(struct entry *) chain;
    _Atomic(struct entry *) next[];
};

struct map {
    _Atomic(struct entry *) head[HEIGHT_MAX];
    _Atomic(_Atomic(struct entry *) *) hash; /* 1 << hash_bits chains, or NULL as yet */
    unsigned hash_bits;
    uint32_t seed; /* of the heights */
    _Atomic size_t n;
};

void map_init(struct map *m, unsigned hash_bits);
void map_fini(struct map *m); /* the entries go with their chunks */
uint32_t map_hash(struct slice key);

/* The writer. An entry not yet linked, its key the caller's to fill; NULL: no memory. */
struct entry *map_entry_new(struct map *m, struct chunks *c, uint32_t hash);
void map_link(struct map *m, struct entry *e);

/* Any thread. */
struct entry *map_find(const struct map *m, struct slice key, uint32_t hash); /* NULL: not there */
struct entry *map_seek(const struct map *m, struct slice key, bool after);    /* first >= key, or > key */
static inline struct entry *map_first(const struct map *m)
{
    return atomic_load_explicit(&m->head[0], memory_order_acquire);
}
static inline struct entry *map_next(const struct entry *e)
{
    return atomic_load_explicit(&e->next[0], memory_order_acquire);
}
