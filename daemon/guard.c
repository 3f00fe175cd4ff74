/* SPDX-License-Identifier: Apache-2.0 */
/* guard.c - counts what an HTTP/2 connection holds, by looking at nothing but heads.
 *
 *      0  u24be length | 3 type | 4 flags | 5 u32be stream      then `length` bytes      (RFC 9113, 4.1)
 *   in DATA, across frames of a stream:   0 compressed | 1 u32be length | `length` bytes (gRPC over HTTP/2)
 *
 * A stream is open from its first HEADERS until one side resets it or both have ended it. A frame for a stream that is
 * not open is forwarded and not counted: core answers it as it likes.
 *
 * Promise:  whatever the bytes, memory is bounded by the streams allowed, and no byte is looked at twice.
 * Not here: header compression: names and values are core's affair, their number of bytes is ours.
 */
#include "guard.h"
#include <errno.h>
#include "limits.h"

enum {
    PREFACE_BYTES = 24,
    FRAME_HEAD_BYTES = 9,
    MESSAGE_HEAD_BYTES = 5,
    TABLE_FIRST = 16, /* rows when the first stream opens; doubles when half full */
    SECOND_MS = 1000,
};

enum frame_type { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE,
                  CONTINUATION };
enum frame_flags { END_STREAM = 1, ACK = 1, END_HEADERS = 4 };

struct frame {
    uint8_t head[FRAME_HEAD_BYTES], have; /* bytes of head so far; all of them: inside the frame */
    uint8_t type, flags;
    uint32_t stream, left; /* payload bytes still to come */
};

struct stream {
    uint32_t id; /* 0: free row */
    uint32_t message_left, message_got;
    uint8_t head[MESSAGE_HEAD_BYTES], head_have;
    bool spoke; /* a whole message, or its end: not mute */
    bool client_ended, server_ended;
};

/* Events within the current second. */
struct rate {
    uint64_t since_ms;
    uint32_t n;
};

struct guard {
    struct frame from_client, from_server;
    uint32_t preface_left;
    size_t boundary;  /* in the last call's bytes: where the frame began that it ended in */
    bool no_boundary; /* it began before, or within a header block */
    uint32_t streams_max;
    bool acked; /* the client has acknowledged a SETTINGS frame */
    enum guard_verdict verdict;
    uint32_t block_stream, block_bytes; /* a header block goes on; 0: none */
    uint32_t last_stream;
    struct rate resets, control;
    size_t incomplete_bytes; /* the sum of message_got over the table */
    struct stream *rows;     /* open addressing, by id; n_rows is a power of two */
    uint32_t n_rows, n_open, n_mute;
};

uint32_t guard_code(enum guard_verdict v)
{
#define X(name, code, text) [GUARD_##name] = code,
    static const uint32_t codes[GUARD_COUNT] = {GUARD_TABLE(X)};
#undef X

    return codes[v];
}

const char *guard_text(enum guard_verdict v)
{
#define X(name, code, text) [GUARD_##name] = text,
    static const char *const texts[GUARD_COUNT] = {[GUARD_OK] = "", GUARD_TABLE(X)};
#undef X

    return texts[v];
}

struct guard *guard_new(uint32_t streams_max)
{
    struct guard *g = calloc(1, sizeof *g);

    if (g == NULL)
        return NULL;
    g->preface_left = PREFACE_BYTES;
    g->streams_max = streams_max;
    return g;
}

void guard_free(struct guard *g)
{
    if (g == NULL)
        return;
    free(g->rows);
    free(g);
}

size_t guard_incomplete_bytes(const struct guard *g)
{
    return g->incomplete_bytes;
}

uint32_t guard_open_streams(const struct guard *g)
{
    return g->n_open;
}

uint32_t guard_mute_streams(const struct guard *g)
{
    return g->n_mute;
}

uint32_t guard_last_stream(const struct guard *g)
{
    return g->last_stream;
}

size_t guard_partial_head(const struct guard *g, const uint8_t **ret_head)
{
    *ret_head = g->from_client.head;
    return g->from_client.have < FRAME_HEAD_BYTES ? g->from_client.have : 0;
}

bool guard_client_boundary(const struct guard *g, size_t *ret_bytes)
{
    *ret_bytes = g->boundary;
    return !g->no_boundary;
}

bool guard_at_boundary(const struct guard *g)
{
    return g->from_server.have == 0;
}

/* ---- the table of open streams ------------------------------------------------ */

/* Clients number streams 1, 3, 5...: spread them. */
static uint32_t row_of(const struct guard *g, uint32_t id)
{
    return (id * 2654435769u >> 7) & (g->n_rows - 1);
}

static struct stream *stream_find(struct guard *g, uint32_t id)
{
    if (g->n_open == 0)
        return NULL;
    for (uint32_t i = row_of(g, id); g->rows[i].id; i = (i + 1) & (g->n_rows - 1))
        if (g->rows[i].id == id)
            return &g->rows[i];
    return NULL;
}

static void row_put(struct guard *g, const struct stream *s)
{
    uint32_t i = row_of(g, s->id);

    while (g->rows[i].id)
        i = (i + 1) & (g->n_rows - 1);
    g->rows[i] = *s;
}

static bool table_resize(struct guard *g, uint32_t n)
{
    struct stream *old = g->rows;
    uint32_t n_old = g->n_rows;
    struct stream *rows = calloc(n, sizeof *rows);

    if (rows == NULL)
        return false;
    g->rows = rows;
    g->n_rows = n;
    for (uint32_t i = 0; i < n_old; i++)
        if (old[i].id)
            row_put(g, &old[i]);
    free(old);
    return true;
}

/* Before the client has acknowledged our SETTINGS it cannot know the limit. Afterwards core ends a connection that goes
 * beyond it, all streams at once, so the guard objects first. */
static enum guard_verdict stream_open(struct guard *g, uint32_t id)
{
    if (g->n_open >= g->streams_max + (g->acked ? 0 : LIMIT_OPEN_STREAMS_SLACK))
        return GUARD_STREAMS;
    if (2 * (g->n_open + 1) > g->n_rows && !table_resize(g, g->n_rows ? 2 * g->n_rows : TABLE_FIRST))
        return GUARD_MEMORY;
    row_put(g, &(struct stream){.id = id});
    g->n_open++;
    g->n_mute++;
    return GUARD_OK;
}

static void stream_speaks(struct guard *g, struct stream *s)
{
    g->n_mute -= !s->spoke;
    s->spoke = true;
}

/* Closes the gap that the row leaves, so that probing still finds the rows behind it. */
static void stream_close(struct guard *g, struct stream *s)
{
    uint32_t mask = g->n_rows - 1, gap = (uint32_t)(s - g->rows), i = gap;

    g->incomplete_bytes -= s->message_got;
    stream_speaks(g, s);
    for (;;) {
        i = (i + 1) & mask;
        if (g->rows[i].id == 0)
            break;
        if (((i - row_of(g, g->rows[i].id)) & mask) >= ((i - gap) & mask)) {
            g->rows[gap] = g->rows[i];
            gap = i;
        }
    }
    g->rows[gap].id = 0;
    if (--g->n_open == 0 && g->n_rows > TABLE_FIRST) {
        free(g->rows);
        g->rows = NULL;
        g->n_rows = 0;
    }
}

static int by_id(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

int guard_streams(const struct guard *g, uint32_t **ret_ids, uint32_t *ret_n)
{
    uint32_t *ids = calloc(g->n_open + 1, sizeof *ids), n = 0;

    if (ids == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < g->n_rows; i++)
        if (g->rows[i].id)
            ids[n++] = g->rows[i].id;
    assert(n == g->n_open);
    qsort(ids, n, sizeof *ids, by_id);
    *ret_ids = ids;
    *ret_n = n;
    return 0;
}

/* ---- what the client may do ----------------------------------------------------- */

static bool rate_exceeded(struct rate *r, uint64_t now_ms, uint32_t per_second)
{
    if (now_ms - r->since_ms >= SECOND_MS)
        *r = (struct rate){.since_ms = now_ms};
    return ++r->n > per_second;
}

/* Each frame of a header block counts with its head: empty ones without end are a flood too. */
static enum guard_verdict block_grows(struct guard *g, const struct frame *f)
{
    uint64_t bytes = (uint64_t)g->block_bytes + f->left + FRAME_HEAD_BYTES;

    if (bytes > LIMIT_HEADER_BLOCK_BYTES)
        return GUARD_HEADERS;
    g->block_bytes = (uint32_t)bytes;
    if (f->flags & END_HEADERS)
        g->block_stream = g->block_bytes = 0;
    return GUARD_OK;
}

static enum guard_verdict headers(struct guard *g, const struct frame *f)
{
    enum guard_verdict v = GUARD_OK;

    if (f->stream == 0)
        return GUARD_FRAMING;
    if (f->stream > g->last_stream) {
        g->last_stream = f->stream;
        v = stream_open(g, f->stream);
    }
    g->block_stream = f->stream;
    return v ? v : block_grows(g, f);
}

static enum guard_verdict reset(struct guard *g, const struct frame *f, uint64_t now_ms)
{
    struct stream *s = stream_find(g, f->stream);

    if (s)
        stream_close(g, s);
    return rate_exceeded(&g->resets, now_ms, LIMIT_RST_PER_SECOND) ? GUARD_RESETS : GUARD_OK;
}

static enum guard_verdict control(struct guard *g, uint64_t now_ms)
{
    return rate_exceeded(&g->control, now_ms, LIMIT_CONTROL_PER_SECOND) ? GUARD_CONTROL : GUARD_OK;
}

static enum guard_verdict client_frame_begins(struct guard *g, const struct frame *f, uint64_t now_ms)
{
    if ((g->block_stream != 0) != (f->type == CONTINUATION) || (g->block_stream && g->block_stream != f->stream))
        return GUARD_FRAMING;
    switch (f->type) {
    case DATA:
        if (f->flags & ~END_STREAM)
            return GUARD_FRAMING; /* padding: core refuses it, and it would hide where messages begin */
        return f->left || f->flags ? GUARD_OK : control(g, now_ms);
    case HEADERS:
        return headers(g, f);
    case CONTINUATION:
        return block_grows(g, f);
    case RST_STREAM:
        return reset(g, f, now_ms);
    case SETTINGS:
        g->acked |= (f->flags & ACK) != 0;
        return control(g, now_ms);
    case WINDOW_UPDATE:
        return GUARD_OK; /* one for each few kilobytes read, and nothing is kept for it */
    default:
        return control(g, now_ms);
    }
}

static void stream_ends(struct guard *g, uint32_t id, bool by_client)
{
    struct stream *s = stream_find(g, id);

    if (s == NULL)
        return;
    *(by_client ? &s->client_ended : &s->server_ended) = true;
    stream_speaks(g, s);
    if (s->client_ended && s->server_ended)
        stream_close(g, s);
}

static enum guard_verdict message_begins(struct guard *g, struct stream *s)
{
    s->head_have = 0;
    s->message_left = get_u32be(s->head + 1);
    if (s->message_left == 0)
        stream_speaks(g, s);
    return s->message_left > LIMIT_CONN_INCOMPLETE_BYTES ? GUARD_MESSAGE : GUARD_OK;
}

/* Bytes of a stream's messages, across frames. */
static enum guard_verdict message_bytes(struct guard *g, struct stream *s, struct slice b)
{
    while (b.len) {
        size_t k;

        if (s->message_left == 0) {
            enum guard_verdict v;

            s->head[s->head_have++] = *b.ptr;
            b = slice_of(b.ptr + 1, b.len - 1);
            v = s->head_have == MESSAGE_HEAD_BYTES ? message_begins(g, s) : GUARD_OK;
            if (v)
                return v;
            continue;
        }
        k = b.len < s->message_left ? b.len : s->message_left;
        b = slice_of(b.ptr + k, b.len - k);
        s->message_left -= (uint32_t)k;
        s->message_got += (uint32_t)k;
        g->incomplete_bytes += k;
        if (s->message_left == 0) {
            g->incomplete_bytes -= s->message_got;
            s->message_got = 0;
            stream_speaks(g, s);
        }
    }
    return g->incomplete_bytes > LIMIT_CONN_INCOMPLETE_BYTES ? GUARD_INCOMPLETE : GUARD_OK;
}

/* ---- frames ---------------------------------------------------------------------- */

/* Takes bytes of a head off the front; true when it is whole, and the frame begins. */
static bool head_takes(struct frame *f, struct slice *b)
{
    size_t k = FRAME_HEAD_BYTES - f->have;

    if (k > b->len)
        k = b->len;
    memcpy(f->head + f->have, b->ptr, k);
    f->have += (uint8_t)k;
    *b = slice_of(b->ptr + k, b->len - k);
    if (f->have < FRAME_HEAD_BYTES)
        return false;
    f->left = get_u32be(f->head) >> 8;
    f->type = f->head[3];
    f->flags = f->head[4];
    f->stream = get_u32be(f->head + 5) & 0x7fffffff;
    return true;
}

/* The part of the payload that is here. */
static struct slice payload_takes(struct frame *f, struct slice *b)
{
    size_t k = b->len < f->left ? b->len : f->left;
    struct slice part = slice_of(b->ptr, k);

    *b = slice_of(b->ptr + k, b->len - k);
    f->left -= (uint32_t)k;
    return part;
}

static bool ends_stream(const struct frame *f)
{
    return (f->type == DATA || f->type == HEADERS) && (f->flags & END_STREAM);
}

/* A frame begins: before its head, is whoever got all bytes so far between two frames? */
static void note_boundary(struct guard *g, const struct frame *f, size_t at)
{
    if (f->have == 0 || at == 0) { /* a head that began in the call before is counted as beginning in this */
        g->boundary = at;
        g->no_boundary = g->block_stream != 0;
    }
}

static enum guard_verdict client_bytes(struct guard *g, struct slice b, uint64_t now_ms)
{
    const uint8_t *from = b.ptr;
    struct frame *f = &g->from_client;
    enum guard_verdict v = GUARD_OK;

    g->no_boundary = true;
    while (b.len && v == GUARD_OK) {
        struct slice part;

        if (f->have < FRAME_HEAD_BYTES) {
            note_boundary(g, f, (size_t)(b.ptr - from));
            if (!head_takes(f, &b))
                return GUARD_OK;
            v = client_frame_begins(g, f, now_ms);
            if (v)
                return v;
        }
        part = payload_takes(f, &b);
        if (f->type == DATA && part.len) {
            struct stream *s = stream_find(g, f->stream);

            v = s ? message_bytes(g, s, part) : GUARD_OK;
        }
        if (f->left == 0) {
            f->have = 0;
            if (ends_stream(f))
                stream_ends(g, f->stream, true);
            if (v == GUARD_OK)
                note_boundary(g, f, (size_t)(b.ptr - from));
        }
    }
    return v;
}

enum guard_verdict guard_client(struct guard *g, struct slice bytes, uint64_t now_ms)
{
    size_t skip = bytes.len < g->preface_left ? bytes.len : g->preface_left;

    if (g->verdict)
        return g->verdict;
    g->preface_left -= (uint32_t)skip;
    g->verdict = client_bytes(g, slice_of(bytes.ptr + skip, bytes.len - skip), now_ms);
    g->boundary += skip;
    return g->verdict;
}

void guard_server(struct guard *g, struct slice b)
{
    struct frame *f = &g->from_server;

    while (b.len) {
        if (f->have < FRAME_HEAD_BYTES && !head_takes(f, &b))
            return;
        payload_takes(f, &b);
        if (f->left)
            return;
        f->have = 0;
        if (ends_stream(f)) {
            stream_ends(g, f->stream, false);
        } else if (f->type == RST_STREAM) {
            struct stream *s = stream_find(g, f->stream);

            if (s)
                stream_close(g, s);
        }
    }
}
