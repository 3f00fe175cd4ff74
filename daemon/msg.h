/* SPDX-License-Identifier: Apache-2.0 */
/* msg.h - protobuf-c messages that are made in an arena and die with it. Decoding is pb.h's. */
#pragma once
#include <protobuf-c/protobuf-c.h>
#include "bytes.h"

/* An empty message of this kind; NULL: the arena is full. */
static inline void *msg_new(struct arena *a, const ProtobufCMessageDescriptor *d)
{
    void *m = arena_alloc(a, d->sizeof_message);

    if (m)
        protobuf_c_message_init(d, m);
    return m;
}

static inline struct slice msg_slice(ProtobufCBinaryData b)
{
    return slice_of(b.data, b.len);
}

/* Borrows: protobuf-c's type has no const, packing does not write. */
static inline ProtobufCBinaryData msg_bytes(struct slice s)
{
    return (ProtobufCBinaryData){.len = s.len, .data = (uint8_t *)s.ptr};
}
