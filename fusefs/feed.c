/* SPDX-License-Identifier: Apache-2.0 */
/* feed.c - the watch: its stream, and what follows when it ends.
 *
 *     START   asks for the current revision           (again after a gap)
 *     OPENING the watch is being created
 *     WATCHING
 *     PAUSED  until retry_ms
 *
 * Held (feed_hold), messages with events are kept as they came; too many, and the stream is closed and resumed later.
 *
 * The stream resumes after the last event seen, never after a revision that a header or a progress notice
 * told: before etcd 3.4.25 and 3.5.8 those can overtake events (etcd#15220).
 *
 * Owner:    the core thread.
 * Not here: what a message does (feed_batch.c).
 */
#include <errno.h>

#include "feed_private.h"

/* ---- the stream ------------------------------------------------------------------------------------- */

static void ask_revision(struct feed *f);

static void kept_drop(struct feed *f)
{
    for (struct kept *k = f->kept, *next; k; k = next) {
        next = k->next;
        protobuf_c_message_free_unpacked(&k->batch->base, NULL);
        free(k);
    }
    f->kept = NULL;
    f->kept_end = &f->kept;
    f->kept_bytes = 0;
}

/* What was kept comes again with the next stream. */
static void pause_feed(struct feed *f, int64_t ms)
{
    kept_drop(f);
    f->state = PAUSED;
    f->retry_ms = client_now_ms() + ms;
    f->stats.watching = false;
    if (f->stats.stale_since_ms == 0)
        f->stats.stale_since_ms = client_now_ms();
}

static void open_watch(struct feed *f)
{
    Etcdserverpb__WatchRequest req = ETCDSERVERPB__WATCH_REQUEST__INIT;
    Etcdserverpb__WatchCreateRequest create = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
    struct slice prefix = tree_prefix(f->tree);
    uint8_t *end = malloc(prefix.len + 1);
    static const uint8_t zero[1] = {0};

    if (end == NULL)
        abort();
    create.key = prefix.len ? (ProtobufCBinaryData){prefix.len, (uint8_t *)prefix.ptr}
                            : (ProtobufCBinaryData){1, (uint8_t *)zero};
    create.range_end = (ProtobufCBinaryData){codec_prefix_end(prefix, end), end};
    create.start_revision = f->next_rev;
    create.progress_notify = true;
    req.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
    req.create_request = &create;
    f->state = OPENING;
    f->open_until_ms = client_now_ms() + FEED_WATCH_OPEN_MS;
    client_stream_open(f->client, &f->stream, CLIENT_WATCH, &req.base, FEED_WATCH_OPEN_MS);
    free(end);
}

/* The store as it is now is the beginning; what was listed before is listed anew. */
static void revision_known(struct feed *f, int64_t rev)
{
    int64_t from = f->next_rev - 1;

    tree_anchor(f->tree, rev);
    f->stats.rev = rev;
    f->next_rev = rev + 1;
    if (f->after_gap) {
        f->after_gap = false;
        f->stats.gaps++;
        if (f->sink.gap)
            f->sink.gap(f->sink.ctx, from, rev);
    }
    /* At the very start too: a directory may have been listed before this answer came. */
    tree_reload(f->tree, rev);
    open_watch(f);
}

static void revision_answered(struct client_call *call)
{
    struct feed *f = (struct feed *)((char *)call - offsetof(struct feed, start_call));
    const Etcdserverpb__RangeResponse *res = (const Etcdserverpb__RangeResponse *)call->reply;

    if (call->outcome == CLIENT_OK && res->header)
        revision_known(f, res->header->revision);
    else
        pause_feed(f, FEED_RETRY_MS);
}

static void ask_revision(struct feed *f)
{
    f->state = START;
    f->start_call.done = revision_answered;
    client_confirm(f->client, &f->start_call, 0);
}

static void watch_created(struct feed *f)
{
    f->state = WATCHING;
    f->created_ms = client_now_ms();
    f->stats.watching = true;
    f->stats.stale_since_ms = 0;
    if (f->was_ready)
        return;
    f->was_ready = f->stats.ready = true;
    if (f->sink.ready)
        f->sink.ready(f->sink.ctx);
}

static void watch_cancelled(struct feed *f, const Etcdserverpb__WatchResponse *res)
{
    client_stream_close(f->client, &f->stream);
    pause_feed(f, FEED_RETRY_MS);
    if (res->compact_revision > 0) {
        f->stats.compact_rev = res->compact_revision;
        f->after_gap = true;
    }
}

/* A copy: the message is the stream's. */
static bool keep(struct feed *f, const Etcdserverpb__WatchResponse *res)
{
    size_t n = etcdserverpb__watch_response__get_packed_size(res);
    struct kept *k = calloc(1, sizeof *k);
    uint8_t *packed = f->kept_bytes + n > FEED_KEPT_BYTES ? NULL : malloc(n + 1);

    if (k && packed) {
        (void)etcdserverpb__watch_response__pack(res, packed);
        k->batch = etcdserverpb__watch_response__unpack(NULL, n, packed);
    }
    free(packed);
    if (k == NULL || k->batch == NULL) {
        free(k);
        return false;
    }
    *f->kept_end = k;
    f->kept_end = &k->next;
    f->kept_bytes += n;
    return true;
}

void feed_hold(struct feed *f)
{
    assert(!f->holding);
    f->holding = true;
}

void feed_release(struct feed *f)
{
    struct kept *k = f->kept;

    f->holding = false;
    f->kept = NULL;
    kept_drop(f);
    for (struct kept *next; k; k = next) {
        next = k->next;
        feed_apply(f, k->batch);
        protobuf_c_message_free_unpacked(&k->batch->base, NULL);
        free(k);
    }
}

static void watch_message(struct client_stream *s, ProtobufCMessage *msg)
{
    struct feed *f = (struct feed *)((char *)s - offsetof(struct feed, stream));
    const Etcdserverpb__WatchResponse *res = (const Etcdserverpb__WatchResponse *)msg;

    if (res->header && res->header->revision > f->stats.header_rev)
        f->stats.header_rev = res->header->revision;
    if (res->canceled)
        watch_cancelled(f, res);
    else if (res->created)
        watch_created(f);
    else if (!f->holding)
        feed_apply(f, res);
    else if (!keep(f, res)) {
        client_stream_close(f->client, &f->stream);
        pause_feed(f, FEED_RETRY_MS);
    }
}

static void watch_closed(struct client_stream *s, enum err err, enum status code, const char *text)
{
    struct feed *f = (struct feed *)((char *)s - offsetof(struct feed, stream));

    (void)err;
    (void)code;
    (void)text;
    f->stats.restarts++;
    /* One that stood for a while is opened anew at once: mostly the endpoint was left for another. */
    pause_feed(f,
               f->state == WATCHING && client_now_ms() >= f->created_ms + FEED_STOOD_MS ? 0 : FEED_RETRY_MS);
}

/* ---- timers, opening and closing ----------------------------------------------------------------------- */

int64_t feed_deadline_ms(const struct feed *f)
{
    return f->state == PAUSED ? f->retry_ms : f->state == OPENING ? f->open_until_ms : 0;
}

void feed_tick(struct feed *f, int64_t now_ms)
{
    if (f->state == OPENING && now_ms >= f->open_until_ms) {
        client_stream_close(f->client, &f->stream);
        f->stats.restarts++;
        pause_feed(f, 0);
    }
    if (f->state != PAUSED || now_ms < f->retry_ms)
        return;
    if (f->next_rev == 0 || f->after_gap)
        ask_revision(f);
    else
        open_watch(f);
}

int feed_open(struct tree *t, struct client *c, const struct feed_sink *sink, struct feed **ret_feed)
{
    struct feed *f = calloc(1, sizeof *f);

    if (f == NULL)
        return -ENOMEM;
    f->tree = t;
    f->client = c;
    f->sink = *sink;
    f->pending_end = &f->pending;
    f->held_end = &f->held;
    f->kept_end = &f->kept;
    f->stream.message = watch_message;
    f->stream.closed = watch_closed;
    feed_attach(f);
    if (c)
        ask_revision(f);
    *ret_feed = f;
    return 0;
}

static void free_list(struct feed *f, struct pending *p)
{
    while (p) {
        struct pending *next = p->next;

        change_free(f->tree, p->ev);
        free(p);
        p = next;
    }
}

void feed_close(struct feed *f)
{
    if (f == NULL)
        return;
    if (f->client) {
        client_abandon(f->client, &f->start_call);
        client_stream_close(f->client, &f->stream);
    }
    f->tree->changed = NULL;
    f->tree->settled = NULL;
    f->tree->is_own = NULL;
    f->tree->feed = NULL;
    free_list(f, f->pending);
    free_list(f, f->held);
    kept_drop(f);
    while (f->inflight) {
        struct inflight *k = f->inflight;

        f->inflight = k->next;
        free(k);
    }
    free(f);
}

void feed_get_stats(const struct feed *f, struct feed_stats *ret_stats)
{
    *ret_stats = f->stats;
}
