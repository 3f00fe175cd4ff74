/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: whatever a client and a server say, the guard's counts stay within its limits; one byte at a time it comes to
 * the same verdict and counts as in larger pieces; and what it calls a boundary between frames is one.
 *
 * The input is a run of pieces: a byte whose highest bit says who speaks and whose rest how many bytes, then those. The
 * preface goes before.
 */
#include "daemon/guard.h"
#include "daemon/limits.h"

#define FUZZ_NAME "guard"
#define FUZZ_SEED_INPUTS guard_seed_input

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

enum { STREAMS_MAX = 8, FRAME_HEAD_BYTES = 9 };

/* The client's bytes so far, parsed by other means than the guard's. */
struct script {
    uint8_t bytes[1 << 17];
    size_t n, frame_at; /* frame_at: where the frame begins that the bytes end in, or would begin next */
};

static void script_add(struct script *s, struct slice piece)
{
    memcpy(s->bytes + s->n, piece.ptr, piece.len);
    s->n += piece.len;
    while (s->n - s->frame_at >= FRAME_HEAD_BYTES) {
        size_t len = FRAME_HEAD_BYTES + (get_u32be(s->bytes + s->frame_at) >> 8);

        if (len > s->n - s->frame_at)
            break;
        s->frame_at += len;
    }
}

static void speak(struct guard *g, struct script *s, bool client, struct slice piece, bool split)
{
    size_t step = split ? 1 : piece.len;

    for (size_t at = 0; at < piece.len; at += step) {
        struct slice part = slice_of(piece.ptr + at, step);
        const uint8_t *head;
        size_t n_head = guard_partial_head(g, &head), before;

        if (!client) {
            guard_server(g, part);
            continue;
        }
        if (guard_client(g, part, 0) != GUARD_OK)
            return;
        script_add(s, part);
        /* At 0 it is where the head that was begun before this call begins. */
        if (guard_client_boundary(g, &before))
            assert(s->n - part.len + before - (before ? 0 : n_head) == s->frame_at);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct script one, two;
    struct guard *whole = guard_new(STREAMS_MAX), *split = guard_new(STREAMS_MAX);
    struct slice preface = S("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");

    assert(whole && split);
    one.n = one.frame_at = two.n = two.frame_at = 0;
    (void)guard_client(whole, preface, 0);
    (void)guard_client(split, preface, 0);
    for (size_t at = 0; at < size;) {
        bool client = data[at] < 0x80;
        size_t n = data[at] & 0x7f;

        at++;
        n = n < size - at ? n : size - at;
        speak(whole, &one, client, slice_of(data + at, n), false);
        speak(split, &two, client, slice_of(data + at, n), true);
        at += n;
        assert(guard_open_streams(whole) <= STREAMS_MAX + LIMIT_OPEN_STREAMS_SLACK);
        assert(guard_mute_streams(whole) <= guard_open_streams(whole));
    }
    assert(guard_client(whole, SLICE_NONE, 0) == guard_client(split, SLICE_NONE, 0));
    if (guard_client(whole, SLICE_NONE, 0) == GUARD_OK) {
        assert(guard_open_streams(whole) == guard_open_streams(split));
        assert(guard_mute_streams(whole) == guard_mute_streams(split));
        assert(guard_incomplete_bytes(whole) == guard_incomplete_bytes(split));
        assert(guard_incomplete_bytes(whole) <= size);
    }
    guard_free(whole);
    guard_free(split);
    return 0;
}

static size_t put_frame(uint8_t *p, unsigned type, unsigned flags, uint32_t stream, struct slice body)
{
    put_u32be(p, (uint32_t)body.len << 8 | type);
    p[4] = (uint8_t)flags;
    put_u32be(p + 5, stream);
    if (body.len)
        memcpy(p + FRAME_HEAD_BYTES, body.ptr, body.len);
    return FRAME_HEAD_BYTES + body.len;
}

/* A unary call, with its answer; and a stream that is reset in the middle of a message. */
static size_t guard_seed_input(unsigned i, uint8_t *buf, size_t size)
{
    size_t n = 1;

    if (i > 2 || size < 256)
        return 0;
    n += put_frame(buf + n, 4, i, 0, SLICE_NONE);
    n += put_frame(buf + n, 1, i == 2 ? 0 : 4, 1, S("heads"));
    if (i == 2)
        n += put_frame(buf + n, 9, 4, 1, S("more"));
    n += put_frame(buf + n, 0, i == 1, 1, S("\0\0\0\0\x05hello"));
    n += put_frame(buf + n, 0, 0, 1, S("\0\0\0\0\x09half"));
    buf[0] = (uint8_t)(n - 1);
    assert(n - 1 < 0x80);
    if (i == 1) {
        size_t at = n++;

        n += put_frame(buf + n, 1, 4, 1, S("answer"));
        n += put_frame(buf + n, 1, 5, 1, S("trailer"));
        buf[at] = (uint8_t)(0x80 | (n - at - 1));
    } else {
        size_t at = n++;

        n += put_frame(buf + n, 3, 0, 1, S("\0\0\0\x08"));
        buf[at] = (uint8_t)(n - at - 1);
    }
    return n;
}

#include "replay.inc"
