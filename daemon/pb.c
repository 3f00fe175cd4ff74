/* SPDX-License-Identifier: Apache-2.0 */
/* pb.c - protobuf-c meets the arena, and messages are measured before they are decoded.
 *
 * Owner:  the thread that owns the arena; no state of its own.
 * Source: protobuf encoding, https://protobuf.dev/programming-guides/encoding (wire types 0, 1, 2, 5).
 */
#include "pb.h"
#include "err.h"

struct tracked {
    struct arena *arena;
    bool full; /* some allocation was refused: tells ERR_ARENA_FULL from ERR_BAD_REQUEST */
};

static void *arena_take(void *arena, size_t n)
{
    return arena_alloc(arena, n);
}

static void *tracked_take(void *data, size_t n)
{
    struct tracked *t = data;
    void *p = arena_alloc(t->arena, n);

    if (p == NULL)
        t->full = true;
    return p;
}

static void keep(void *data, void *p)
{
    (void)data, (void)p; /* the arena frees everything at once */
}

ProtobufCAllocator pb_in(struct arena *a)
{
    return (ProtobufCAllocator){.alloc = arena_take, .free = keep, .allocator_data = a};
}

/* A type deeper than this many levels of distinct messages is taken to be recursive; ours have at most 4. */
enum { TYPE_DEPTH_MAX = 16 };

static bool deeper_than(const ProtobufCMessageDescriptor *d, int levels)
{
    if (levels == 0)
        return true;
    for (unsigned i = 0; i < d->n_fields; i++)
        if (d->fields[i].type == PROTOBUF_C_TYPE_MESSAGE && deeper_than(d->fields[i].descriptor, levels - 1))
            return true;
    return false;
}

bool pb_recursive(const ProtobufCMessageDescriptor *d)
{
    return deeper_than(d, TYPE_DEPTH_MAX);
}

/* Takes a varint off the front of s; false when it does not end within 10 bytes. */
static bool take_varint(struct slice *s, uint64_t *ret)
{
    uint64_t v = 0;

    for (size_t i = 0; i < s->len && i < 10; i++) {
        v |= (uint64_t)(s->ptr[i] & 0x7f) << (7 * i);
        if (s->ptr[i] < 0x80) {
            *s = slice_of(s->ptr + i + 1, s->len - i - 1);
            *ret = v;
            return true;
        }
    }
    return false;
}

/* Takes the payload of one field off the front of s; *ret_body is filled for wire type 2 only. */
static bool take_field(struct slice *s, unsigned wire_type, struct slice *ret_body)
{
    uint64_t n = 0;

    *ret_body = SLICE_NONE;
    switch (wire_type) {
    case 0:
        return take_varint(s, &n);
    case 1:
        n = 8;
        break;
    case 2:
        if (!take_varint(s, &n))
            return false;
        break;
    case 5:
        n = 4;
        break;
    default:
        return false;
    }
    if (n > s->len)
        return false;
    if (wire_type == 2)
        *ret_body = slice_of(s->ptr, n);
    *s = slice_of(s->ptr + n, s->len - n);
    return true;
}

/* Bounds the recursion of what is to decode s; bad bytes are left to protobuf-c to refuse. */
static int measure(const ProtobufCMessageDescriptor *d, struct slice s, int depth)
{
    if (depth > PB_DEPTH_MAX)
        return ERR_TOO_DEEP;
    while (s.len) {
        const ProtobufCFieldDescriptor *f;
        struct slice body;
        uint64_t tag;
        int err;

        if (!take_varint(&s, &tag) || !take_field(&s, tag & 7, &body))
            return ERR_BAD_REQUEST;
        if ((tag & 7) != 2 || tag >> 3 > UINT32_MAX)
            continue;
        f = protobuf_c_message_descriptor_get_field(d, (unsigned)(tag >> 3));
        if (f == NULL || f->type != PROTOBUF_C_TYPE_MESSAGE)
            continue;
        err = measure(f->descriptor, body, depth + 1);
        if (err)
            return err;
    }
    return 0;
}

int pb_unpack(const ProtobufCMessageDescriptor *d, struct arena *a, struct slice bytes, ProtobufCMessage **ret_msg)
{
    struct tracked t = {.arena = a};
    ProtobufCAllocator alloc = {.alloc = tracked_take, .free = keep, .allocator_data = &t};
    ProtobufCMessage *m;
    int err = pb_recursive(d) ? measure(d, bytes, 1) : 0;

    if (err)
        return err;
    m = protobuf_c_message_unpack(d, &alloc, bytes.len, bytes.ptr);
    if (m == NULL)
        return t.full ? ERR_ARENA_FULL : ERR_BAD_REQUEST;
    *ret_msg = m;
    return 0;
}
