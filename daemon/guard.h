/* SPDX-License-Identifier: Apache-2.0 */
/* guard.h - what an HTTP/2 client may cost: a parser of frame heads in both directions of one connection.
 *
 * gRPC core 1.51 bounds none of this, so every byte passes here on its way: how large a message claims to be, how much
 * of unfinished messages it holds, how long a header block is, how many streams are open, how often streams are reset
 * and how many frames ask for an answer. The first violation is final: the pump says GOAWAY and closes.
 *
 * Pure: bytes in, a verdict out; no clock, no socket. Owner: the connection.
 */
#pragma once
#include "bytes.h"

struct guard;

#define GUARD_TABLE(X)                                                    \
    X(FRAMING, 0x1, "frames out of order")                                \
    X(MESSAGE, 0xb, "a message larger than 64 MiB")                       \
    X(INCOMPLETE, 0xb, "more than 64 MiB of unfinished messages")         \
    X(HEADERS, 0xb, "a header block larger than 64 KiB")                  \
    X(STREAMS, 0xb, "too many open streams")                              \
    X(RESETS, 0xb, "too many streams reset")                              \
    X(CONTROL, 0xb, "too many control frames")                            \
    X(MEMORY, 0xb, "no memory")
#define X(name, code, text) GUARD_##name,
enum guard_verdict { GUARD_OK, GUARD_TABLE(X) GUARD_COUNT };
#undef X

/* The HTTP/2 error code that goes into GOAWAY, and the words. */
uint32_t guard_code(enum guard_verdict v);
const char *guard_text(enum guard_verdict v);

/* streams_max: open at once; LIMIT_OPEN_STREAMS_SLACK more until the client has acknowledged our SETTINGS.
 * NULL: no memory. */
struct guard *guard_new(uint32_t streams_max);
void guard_free(struct guard *g); /* takes NULL */

/* The next bytes of the client, from its preface on; split anywhere. now_ms: monotonic. */
enum guard_verdict guard_client(struct guard *g, struct slice bytes, uint64_t now_ms);
/* The next bytes of the server: only closes streams. */
void guard_server(struct guard *g, struct slice bytes);

size_t guard_incomplete_bytes(const struct guard *g);
uint32_t guard_open_streams(const struct guard *g);
/* Open streams whose client has said nothing whole yet: they cost as much as any and do nothing. */
uint32_t guard_mute_streams(const struct guard *g);
uint32_t guard_last_stream(const struct guard *g);
/* The last bytes of the client that are the begin of a frame's head, at most 8; *ret_head: where they are kept. */
size_t guard_partial_head(const struct guard *g, const uint8_t **ret_head);
/* How many bytes of the last guard_client lie before the frame that it ended in, or objected to. False: that frame's
 * head was whole before the call, or a header block goes on: whoever got the bytes so far waits for the rest. */
bool guard_client_boundary(const struct guard *g, size_t *ret_bytes);
/* The open streams, oldest first, in heap memory of the caller's. 0 or -ENOMEM. */
int guard_streams(const struct guard *g, uint32_t **ret_ids, uint32_t *ret_n);
/* The server's bytes so far end between two frames: a GOAWAY may be put in. */
bool guard_at_boundary(const struct guard *g);
