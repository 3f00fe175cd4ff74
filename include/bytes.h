/* SPDX-License-Identifier: Apache-2.0 */
/* bytes.h - slices, arenas and byte order: the vocabulary of every folder.
 *
 * struct slice  borrowed bytes, passed by value; says nothing about who owns them.
 * struct arena  owns the memory of one request; everything in it dies with it.
 *               Every arena has a limit in bytes; past it arena_alloc answers NULL.
 */
#pragma once
#include <assert.h>
#include <stdalign.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef NDEBUG
#error "assertions stay on in every build"
#endif

struct slice {
    const uint8_t *ptr;
    size_t len;
};

/* A slice of a string literal; S("a\0b") has 3 bytes. */
#define S(lit) ((struct slice){(const uint8_t *)"" lit, sizeof(lit) - 1})
#define SLICE_NONE ((struct slice){NULL, 0})

static inline struct slice slice_of(const void *ptr, size_t len)
{
    return (struct slice){ptr, len};
}

static inline struct slice slice_str(const char *s)
{
    return (struct slice){(const uint8_t *)s, s ? strlen(s) : 0};
}

/* Bytewise order; a prefix sorts before what it begins. */
static inline int slice_cmp(struct slice a, struct slice b)
{
    size_t n = a.len < b.len ? a.len : b.len;
    int c = n ? memcmp(a.ptr, b.ptr, n) : 0;

    return c ? c : (a.len > b.len) - (a.len < b.len);
}

static inline bool slice_eq(struct slice a, struct slice b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

static inline bool slice_has_prefix(struct slice s, struct slice prefix)
{
    return s.len >= prefix.len && (prefix.len == 0 || memcmp(s.ptr, prefix.ptr, prefix.len) == 0);
}

/* ---- arena ---------------------------------------------------------------- */

struct arena_chunk {
    struct arena_chunk *next;
    size_t size, used; /* bytes of data[] */
    alignas(max_align_t) uint8_t data[];
};

struct arena {
    struct arena_chunk *chunks; /* newest first; owned */
    uint8_t *first;             /* the caller's storage, used before any chunk; may be NULL */
    size_t first_size, first_used;
    size_t used_bytes, limit_bytes;
};

#define ARENA_CHUNK_BYTES 4096

/* first: storage of the caller's that outlives the arena, max-aligned, or NULL. */
static inline void arena_init(struct arena *a, size_t limit_bytes, void *first, size_t first_size)
{
    *a = (struct arena){.first = first, .first_size = first_size, .limit_bytes = limit_bytes};
}

/* Zeroed, max-aligned; NULL beyond limit_bytes or when the system has no memory. */
static inline void *arena_alloc(struct arena *a, size_t n)
{
    const size_t align = alignof(max_align_t);
    struct arena_chunk *c = a->chunks;
    void *p;

    if (n > a->limit_bytes)
        return NULL;
    n = (n + align - 1) & ~(align - 1);
    if (n > a->limit_bytes - a->used_bytes)
        return NULL;
    if (n <= a->first_size - a->first_used) {
        p = a->first + a->first_used;
        a->first_used += n;
    } else {
        if (c == NULL || n > c->size - c->used) {
            size_t size = n > ARENA_CHUNK_BYTES ? n : ARENA_CHUNK_BYTES;

            c = malloc(sizeof *c + size);
            if (c == NULL)
                return NULL;
            *c = (struct arena_chunk){.next = a->chunks, .size = size};
            a->chunks = c;
        }
        p = c->data + c->used;
        c->used += n;
    }
    a->used_bytes += n;
    return memset(p, 0, n);
}

/* Frees everything; the arena may be used again, with its limit and first storage. */
static inline void arena_fini(struct arena *a)
{
    while (a->chunks) {
        struct arena_chunk *next = a->chunks->next;

        free(a->chunks);
        a->chunks = next;
    }
    a->first_used = a->used_bytes = 0;
}

/* A copy in the arena; ptr is NULL (with len 0) when the arena is full and s is not empty. */
static inline struct slice arena_copy(struct arena *a, struct slice s)
{
    void *p = s.len ? arena_alloc(a, s.len) : NULL;

    if (p == NULL)
        return SLICE_NONE;
    memcpy(p, s.ptr, s.len);
    return slice_of(p, s.len);
}

/* ---- byte order ------------------------------------------------------------ */

static inline void put_u16le(void *p, uint16_t v) { memcpy(p, &v, 2); }
static inline void put_u32le(void *p, uint32_t v) { memcpy(p, &v, 4); }
static inline void put_u64le(void *p, uint64_t v) { memcpy(p, &v, 8); }
static inline uint16_t get_u16le(const void *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t get_u32le(const void *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t get_u64le(const void *p) { uint64_t v; memcpy(&v, p, 8); return v; }

static inline void put_u16be(void *p, uint16_t v) { v = __builtin_bswap16(v); memcpy(p, &v, 2); }
static inline void put_u32be(void *p, uint32_t v) { v = __builtin_bswap32(v); memcpy(p, &v, 4); }
static inline void put_u64be(void *p, uint64_t v) { v = __builtin_bswap64(v); memcpy(p, &v, 8); }
static inline uint16_t get_u16be(const void *p) { return __builtin_bswap16(get_u16le(p)); }
static inline uint32_t get_u32be(const void *p) { return __builtin_bswap32(get_u32le(p)); }
static inline uint64_t get_u64be(const void *p) { return __builtin_bswap64(get_u64le(p)); }

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the put_/get_ family assumes it");
