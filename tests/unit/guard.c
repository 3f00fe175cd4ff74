/* SPDX-License-Identifier: Apache-2.0 */
/* guard.c - proves that the guard counts open streams, unfinished bytes, header blocks, resets and control frames
 * exactly, objects to the first byte too much and not before, and sees the same however the bytes are split.
 */
#include <stdio.h>
#include "daemon/guard.h"
#include "daemon/limits.h"
#include "tap.h"

enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4, PADDED = 8 };
enum { STREAMS_MAX = 100 };

/* ---- frames by hand ----------------------------------------------------------------- */

static uint8_t out[1 << 20];
static size_t n_out;

static void reset(void)
{
    n_out = 0;
}

static void put(const void *p, size_t n)
{
    REQUIRE(n_out + n <= sizeof out);
    memcpy(out + n_out, p, n);
    n_out += n;
}

static void head(size_t len, int type, int flags, uint32_t stream)
{
    uint8_t h[9] = {(uint8_t)(len >> 16), (uint8_t)(len >> 8), (uint8_t)len, (uint8_t)type, (uint8_t)flags};

    put_u32be(h + 5, stream);
    put(h, sizeof h);
}

static void frame(int type, int flags, uint32_t stream, size_t len)
{
    static const uint8_t zeros[65536];

    head(len, type, flags, stream);
    put(zeros, len);
}

/* A gRPC message of `claims` bytes of which `sent` are here. */
static void data(int flags, uint32_t stream, uint32_t claims, size_t sent)
{
    static const uint8_t zeros[65536];
    uint8_t h[5] = {0};

    put_u32be(h + 1, claims);
    head(5 + sent, DATA, flags, stream);
    put(h, 5);
    put(zeros, sent);
}

static struct guard *guard_after_preface(void)
{
    struct guard *g = guard_new(STREAMS_MAX);

    REQUIRE(g != NULL);
    REQUIRE(guard_client(g, S("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 0) == GUARD_OK);
    return g;
}

static enum guard_verdict client(struct guard *g, uint64_t now_ms)
{
    enum guard_verdict v = guard_client(g, slice_of(out, n_out), now_ms);

    reset();
    return v;
}

static void server(struct guard *g)
{
    guard_server(g, slice_of(out, n_out));
    reset();
}

/* ---- tests ------------------------------------------------------------------------------ */

static void streams_open_and_close(void)
{
    struct guard *g = guard_after_preface();

    frame(SETTINGS, 0, 0, 0);
    frame(HEADERS, END_HEADERS, 1, 30);
    frame(HEADERS, END_HEADERS | END_STREAM, 3, 30);
    frame(HEADERS, END_HEADERS, 5, 30);
    data(END_STREAM, 1, 10, 10);
    CHECK(client(g, 0) == GUARD_OK);
    CHECK(guard_open_streams(g) == 3);
    CHECK(guard_incomplete_bytes(g) == 0);
    frame(HEADERS, END_HEADERS, 1, 10);
    frame(DATA, 0, 1, 100);
    frame(HEADERS, END_HEADERS | END_STREAM, 1, 5);
    server(g);
    CHECK(guard_open_streams(g) == 2);
    frame(HEADERS, END_HEADERS | END_STREAM, 5, 10); /* the server is first, and then resets what it will not read */
    server(g);
    CHECK(guard_open_streams(g) == 2);
    frame(RST_STREAM, 0, 5, 4);
    server(g);
    CHECK(guard_open_streams(g) == 1);
    frame(RST_STREAM, 0, 3, 4);
    CHECK(client(g, 0) == GUARD_OK);
    CHECK(guard_open_streams(g) == 0);
    CHECK(guard_last_stream(g) == 5);
    frame(HEADERS, END_HEADERS, 5, 10); /* closed before: does not open again */
    CHECK(client(g, 0) == GUARD_OK);
    CHECK(guard_open_streams(g) == 0);
    guard_free(g);
}

static void unfinished_bytes(void)
{
    struct guard *g = guard_after_preface();

    frame(HEADERS, END_HEADERS, 1, 30);
    frame(HEADERS, END_HEADERS, 3, 30);
    data(0, 1, 1000, 400);
    data(0, 3, 50, 20);
    CHECK(client(g, 0) == GUARD_OK);
    CHECK(guard_incomplete_bytes(g) == 420);
    frame(DATA, 0, 1, 599);
    CHECK(client(g, 0) == GUARD_OK);
    CHECK(guard_incomplete_bytes(g) == 1019);
    head(1 + 5 + 7, DATA, 0, 1); /* the end of one message and the begin of the next */
    put("x\0\0\0\0\x08" "1234567", 13);
    CHECK(client(g, 0) == GUARD_OK);
    CHECK(guard_incomplete_bytes(g) == 27);
    frame(RST_STREAM, 0, 3, 4);
    CHECK(client(g, 0) == GUARD_OK);
    CHECK(guard_incomplete_bytes(g) == 7);
    frame(DATA, 0, 1, 1);
    CHECK(client(g, 0) == GUARD_OK);
    CHECK(guard_incomplete_bytes(g) == 0);
    guard_free(g);
}

static void large_messages(void)
{
    struct guard *g = guard_after_preface();

    frame(HEADERS, END_HEADERS, 1, 30);
    data(0, 1, LIMIT_CONN_INCOMPLETE_BYTES, 0);
    CHECK(client(g, 0) == GUARD_OK);
    frame(HEADERS, END_HEADERS, 3, 30);
    data(0, 3, LIMIT_CONN_INCOMPLETE_BYTES + 1, 0);
    CHECK(client(g, 0) == GUARD_MESSAGE);
    CHECK(client(g, 0) == GUARD_MESSAGE); /* for good */
    guard_free(g);

    g = guard_after_preface();
    for (uint32_t id = 1; id <= 5; id += 2)
        frame(HEADERS, END_HEADERS, id, 30);
    data(0, 1, LIMIT_CONN_INCOMPLETE_BYTES, 0);
    data(0, 3, LIMIT_CONN_INCOMPLETE_BYTES, 0);
    CHECK(client(g, 0) == GUARD_OK);
    for (size_t n = 0; n < LIMIT_CONN_INCOMPLETE_BYTES; n += 32768) {
        frame(DATA, 0, n / 32768 % 2 ? 1 : 3, 32768);
        CHECK(client(g, 0) == GUARD_OK);
    }
    CHECK(guard_incomplete_bytes(g) == LIMIT_CONN_INCOMPLETE_BYTES);
    frame(DATA, 0, 1, 1);
    CHECK(client(g, 0) == GUARD_INCOMPLETE);
    guard_free(g);
}

static void header_blocks(void)
{
    struct guard *g = guard_after_preface();
    enum guard_verdict v = GUARD_OK;
    int n;

    frame(HEADERS, END_HEADERS, 1, LIMIT_HEADER_BLOCK_BYTES - 9);
    CHECK(client(g, 0) == GUARD_OK);
    frame(HEADERS, END_HEADERS, 3, LIMIT_HEADER_BLOCK_BYTES - 8);
    CHECK(client(g, 0) == GUARD_HEADERS);
    guard_free(g);

    g = guard_after_preface();
    frame(HEADERS, 0, 1, 10);
    v = client(g, 0);
    for (n = 0; v == GUARD_OK && n < 100000; n++) { /* empty ones, without end */
        frame(CONTINUATION, 0, 1, 0);
        v = client(g, 0);
    }
    CHECK(v == GUARD_HEADERS);
    CHECK(n == (LIMIT_HEADER_BLOCK_BYTES - 19) / 9 + 1); /* the HEADERS frame counts 9 + 10 */
    guard_free(g);

    g = guard_after_preface();
    frame(HEADERS, 0, 1, 10);
    frame(DATA, 0, 1, 0);
    CHECK(client(g, 0) == GUARD_FRAMING);
    guard_free(g);
    g = guard_after_preface();
    frame(CONTINUATION, END_HEADERS, 1, 0);
    CHECK(client(g, 0) == GUARD_FRAMING);
    guard_free(g);
    g = guard_after_preface();
    frame(HEADERS, END_HEADERS, 1, 0);
    frame(DATA, PADDED, 1, 10);
    CHECK(client(g, 0) == GUARD_FRAMING);
    guard_free(g);
}

static void floods(void)
{
    struct guard *g = guard_after_preface();
    uint32_t id = 1;

    for (int i = 0; i < STREAMS_MAX + LIMIT_OPEN_STREAMS_SLACK; i++, id += 2) {
        frame(HEADERS, END_HEADERS, id, 1);
        CHECK(client(g, 0) == GUARD_OK);
    }
    frame(HEADERS, END_HEADERS, id, 1);
    CHECK(client(g, 0) == GUARD_STREAMS);
    guard_free(g);

    g = guard_after_preface();
    frame(SETTINGS, ACK, 0, 0);
    for (id = 1; id < 2 * STREAMS_MAX; id += 2)
        frame(HEADERS, END_HEADERS, id, 1);
    CHECK(client(g, 0) == GUARD_OK);
    frame(HEADERS, END_HEADERS, id, 1);
    CHECK(client(g, 0) == GUARD_STREAMS);
    guard_free(g);

    g = guard_after_preface();
    id = 1;
    for (uint64_t second = 0; second < 3; second++)
        for (int i = 0; i < LIMIT_RST_PER_SECOND; i++, id += 2) {
            frame(HEADERS, END_HEADERS, id, 1);
            frame(RST_STREAM, 0, id, 4);
            CHECK(client(g, second * 1000) == GUARD_OK);
        }
    CHECK(guard_open_streams(g) == 0);
    frame(RST_STREAM, 0, 1, 4);
    CHECK(client(g, 2999) == GUARD_RESETS);
    guard_free(g);

    g = guard_after_preface();
    for (int i = 0; i < LIMIT_CONTROL_PER_SECOND; i++) {
        static const int types[] = {PING, SETTINGS, PRIORITY, DATA, 77};

        frame(types[i % 5], 0, 1, i % 5 == 3 ? 0 : 8);
        frame(WINDOW_UPDATE, 0, 0, 4);
        CHECK(client(g, 0) == GUARD_OK);
    }
    frame(PING, 0, 0, 8);
    CHECK(client(g, 0) == GUARD_CONTROL);
    guard_free(g);
}

/* Rows are moved when one in a run of them goes: none may be lost. */
static void table_survives_any_order(void)
{
    struct guard *g = guard_new(LIMIT_OPEN_STREAMS);
    uint32_t seed = getenv("SEED") ? (uint32_t)strtoul(getenv("SEED"), NULL, 10) : 7;
    static uint32_t open[4000];
    uint32_t n = 0, id = 1;

    printf("# SEED=%u\n", seed);
    REQUIRE(g && guard_client(g, S("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 0) == GUARD_OK);
    for (int i = 0; i < 100000; i++) {
        seed = seed * 1664525 + 1013904223;
        if (n < 4000 && (n == 0 || seed >> 31)) {
            open[n++] = id;
            frame(HEADERS, END_HEADERS, id, 1);
            id += 2 * (1 + (seed >> 8) % 50);
            CHECK(client(g, (uint64_t)i * 10) == GUARD_OK);
        } else {
            uint32_t k = (seed >> 8) % n;

            frame(RST_STREAM, 0, open[k], 4);
            open[k] = open[--n];
            CHECK(client(g, (uint64_t)i * 10) == GUARD_OK);
        }
        REQUIRE(guard_open_streams(g) == n);
    }
    guard_free(g);
}

/* The same conversation in one piece, byte by byte, and in two pieces cut at every byte. */
static void splits_do_not_matter(void)
{
    static uint8_t up[4096], down[4096];
    size_t n_up, n_down;

    reset();
    put("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    frame(SETTINGS, 0, 0, 12);
    frame(HEADERS, 0, 1, 20);
    frame(CONTINUATION, END_HEADERS, 1, 7);
    data(0, 1, 300, 100);
    frame(HEADERS, END_HEADERS | END_STREAM, 3, 9);
    frame(DATA, 0, 1, 200);
    data(0, 1, 77, 33);
    frame(RST_STREAM, 0, 9, 4);
    frame(HEADERS, END_HEADERS, 5, 9);
    memcpy(up, out, n_up = n_out);
    reset();
    frame(SETTINGS, 0, 0, 6);
    frame(HEADERS, END_HEADERS, 3, 9);
    frame(DATA, END_STREAM, 3, 50);
    memcpy(down, out, n_down = n_out);
    reset();
    for (size_t cut = 0; cut <= n_up; cut++) {
        struct guard *g = guard_new(STREAMS_MAX);
        size_t cut_down = cut < n_down ? cut : n_down;

        CHECK(guard_client(g, slice_of(up, cut), 0) == GUARD_OK);
        CHECK(guard_client(g, slice_of(up + cut, n_up - cut), 0) == GUARD_OK);
        guard_server(g, slice_of(down, cut_down));
        guard_server(g, slice_of(down + cut_down, n_down - cut_down));
        CHECK(guard_open_streams(g) == 2);
        CHECK(guard_incomplete_bytes(g) == 33);
        CHECK(guard_at_boundary(g));
        guard_free(g);
    }
    {
        struct guard *g = guard_new(STREAMS_MAX);

        for (size_t i = 0; i < n_up; i++)
            CHECK(guard_client(g, slice_of(up + i, 1), 0) == GUARD_OK);
        for (size_t i = 0; i < n_down; i++)
            guard_server(g, slice_of(down + i, 1));
        CHECK(guard_open_streams(g) == 2);
        CHECK(guard_incomplete_bytes(g) == 33);
        guard_server(g, slice_of(down, 3));
        CHECK(!guard_at_boundary(g));
        guard_free(g);
    }
}

int main(void)
{
    TEST(streams_open_and_close);
    TEST(unfinished_bytes);
    TEST(large_messages);
    TEST(header_blocks);
    TEST(floods);
    TEST(table_survives_any_order);
    TEST(splits_do_not_matter);
    return tap_done();
}
