/* SPDX-License-Identifier: Apache-2.0 */
/* pb.h - protobuf-c over an arena: what a request decodes into dies with its arena.
 *
 * protobuf-c recurses once for every nested message and allocates before it has seen the end, so a message from the
 * network is measured first: nested deeper than PB_DEPTH_MAX it is refused before it is decoded.
 */
#pragma once
#include <protobuf-c/protobuf-c.h>
#include "bytes.h"
#include "limits.h"

/* A txn inside a txn is two messages deep (the op and its request); the rest are leaves. */
enum { PB_DEPTH_MAX = 2 * LIMIT_TXN_DEPTH + 8 };

/* An allocator that takes from the arena and never frees. The arena must outlive what is unpacked with it. */
ProtobufCAllocator pb_in(struct arena *a);

/* Whether messages of this type can contain themselves, however far down. */
bool pb_recursive(const ProtobufCMessageDescriptor *d);

/* Decodes bytes, all of them, into a. *ret_msg and what it points to live as long as the arena.
 *
 * Returns 0, or
 *   ERR_BAD_REQUEST  not a message of this type
 *   ERR_ARENA_FULL   it needs more than the arena may hold
 *   ERR_TOO_DEEP     nested deeper than PB_DEPTH_MAX
 */
int pb_unpack(const ProtobufCMessageDescriptor *d, struct arena *a, struct slice bytes, ProtobufCMessage **ret_msg);
