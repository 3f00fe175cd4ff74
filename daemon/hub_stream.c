/* SPDX-License-Identifier: Apache-2.0 */
/* hub_stream.c - a Watch call seen from the hub: requests in, a bounded queue of responses out.
 *
 * The queue holds (packet, watch id) pairs; many watchers of a stream may share one packet, whose bytes then count
 * once. Beyond LIMIT_WATCH_STREAM_BYTES the hub is refused: it lets the watcher catch up later.
 *
 * Owner: the rpc thread of the call for the functions of hub.h; the hub for those of hub_impl.h.
 */
#include <errno.h>
#include "err.h"
#include "hub_impl.h"

enum { QUEUED_BYTES = 64 /* what one entry counts, besides its packet */ };

struct watch_stream *hub_stream_new(struct hub *h, void (*wake)(void *ctx), void *ctx)
{
    struct watch_stream *s = calloc(1, sizeof *s);

    if (s == NULL)
        return NULL;
    s->hub = h;
    s->wake = wake;
    s->wake_ctx = ctx;
    (void)pthread_mutex_init(&s->mu, NULL); /* cannot fail with default attributes on Linux */
    atomic_fetch_add(&h->n_streams, 1);
    return s;
}

/* ---- requests ------------------------------------------------------------------------ */

static int post(struct watch_stream *s, struct watch_request *r)
{
    r->head.stream = s;
    atomic_fetch_add(&s->request_bytes, r->total);
    mailbox_post(&s->hub->box, &r->head.mail);
    return 0;
}

static struct watch_request *request_new(size_t extra)
{
    struct watch_request *r = calloc(1, sizeof *r + extra);

    if (r)
        r->total = sizeof *r + extra;
    return r;
}

static int post_create(struct watch_stream *s, const Etcdserverpb__WatchCreateRequest *c)
{
    static uint8_t zero[1];
    /* The empty key stands for the lowest one; the end "\0" for none. */
    ProtobufCBinaryData key = c->key.len ? c->key : (ProtobufCBinaryData){.len = 1, .data = zero}, end = c->range_end;
    struct watch_request *r = request_new(key.len + end.len);

    if (r == NULL)
        return -ENOMEM;
    r->head.kind = REQUEST_CREATE;
    r->watch_id = c->watch_id;
    r->start_rev = c->start_revision;
    r->progress_notify = c->progress_notify;
    r->prev_kv = c->prev_kv;
    r->fragment = c->fragment;
    for (size_t i = 0; i < c->n_filters; i++) {
        r->no_put |= c->filters[i] == ETCDSERVERPB__WATCH_CREATE_REQUEST__FILTER_TYPE__NOPUT;
        r->no_delete |= c->filters[i] == ETCDSERVERPB__WATCH_CREATE_REQUEST__FILTER_TYPE__NODELETE;
    }
    r->open_end = end.len == 1 && end.data[0] == 0;
    r->key_len = key.len;
    r->end_len = r->open_end ? 0 : end.len;
    memcpy(r->bytes, key.data, key.len);
    if (r->end_len)
        memcpy(r->bytes + key.len, end.data, end.len);
    return post(s, r);
}

static int post_plain(struct watch_stream *s, enum request_kind kind, int64_t watch_id)
{
    struct watch_request *r = request_new(0);

    if (r == NULL)
        return -ENOMEM;
    r->head.kind = kind;
    r->watch_id = watch_id;
    return post(s, r);
}

static size_t stream_bytes(struct watch_stream *s)
{
    size_t bytes;

    pthread_mutex_lock(&s->mu);
    bytes = s->bytes;
    pthread_mutex_unlock(&s->mu);
    return bytes;
}

int hub_stream_request(struct watch_stream *s, const Etcdserverpb__WatchRequest *req)
{
    /* What the hub must say in answer is not refused by the queue, so here is where its bound holds. */
    if (atomic_load(&s->request_bytes) > LIMIT_WATCH_STREAM_BYTES || stream_bytes(s) > 2 * LIMIT_WATCH_STREAM_BYTES)
        return ERR_TOO_MANY_REQUESTS;
    switch (req->request_union_case) {
    case ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST:
        return post_create(s, req->create_request);
    case ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CANCEL_REQUEST:
        return post_plain(s, REQUEST_CANCEL, req->cancel_request->watch_id);
    case ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_PROGRESS_REQUEST:
        return post_plain(s, REQUEST_PROGRESS, 0);
    default:
        return 0; /* an empty request is ignored */
    }
}

void hub_stream_close(struct watch_stream *s)
{
    if (s == NULL)
        return;
    pthread_mutex_lock(&s->mu);
    s->closed = true;
    pthread_mutex_unlock(&s->mu);
    /* The last message of this stream: what was posted before still finds it. */
    s->close = (struct hub_mail){.kind = REQUEST_CLOSE, .stream = s};
    mailbox_post(&s->hub->box, &s->close.mail);
}

/* ---- the queue ---------------------------------------------------------------------------- */

static bool ring_grow(struct watch_stream *s)
{
    size_t cap = s->cap ? s->cap * 2 : 16;
    struct queued *ring = malloc(cap * sizeof *ring);

    if (ring == NULL)
        return false;
    for (size_t i = 0; i < s->n; i++)
        ring[i] = s->ring[(s->first + i) & (s->cap - 1)];
    free(s->ring);
    s->ring = ring;
    s->cap = cap;
    s->first = 0;
    return true;
}

/* mu is held. */
static bool is_full(const struct watch_stream *s)
{
    return s->n > 0 && (s->bytes >= LIMIT_WATCH_STREAM_BYTES ||
                        atomic_load_explicit(&s->hub->queued_bytes, memory_order_relaxed) >= LIMIT_WATCH_ALL_BYTES);
}

bool stream_push(struct watch_stream *s, struct packet *p, int64_t watch_id, bool control)
{
    size_t bytes = QUEUED_BYTES;
    bool ok = false, first = false;

    pthread_mutex_lock(&s->mu);
    if (s->closed || (!control && is_full(s)) || (s->n == s->cap && !ring_grow(s))) {
        s->full_told = true;
        goto out;
    }
    if (s->n == 0 || s->last != p)
        bytes += p->len;
    s->ring[(s->first + s->n) & (s->cap - 1)] = (struct queued){p, watch_id};
    first = s->n++ == 0;
    s->last = p;
    s->bytes += bytes;
    ok = true;
out:
    pthread_mutex_unlock(&s->mu);
    if (!ok) {
        packet_unref(p);
        return false;
    }
    atomic_fetch_add_explicit(&s->hub->queued_bytes, bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&s->hub->queued_responses, 1, memory_order_relaxed);
    if (first)
        hub_note_woken(s->hub, s);
    return true;
}

bool stream_is_full(struct watch_stream *s)
{
    bool full;

    if (s->full_step == s->hub->step_number)
        return true;
    pthread_mutex_lock(&s->mu);
    full = s->closed || is_full(s);
    s->full_told |= full;
    pthread_mutex_unlock(&s->mu);
    if (full)
        s->full_step = s->hub->step_number;
    return full;
}

void stream_wake(struct watch_stream *s)
{
    pthread_mutex_lock(&s->mu);
    if (!s->closed)
        s->wake(s->wake_ctx);
    pthread_mutex_unlock(&s->mu);
}

size_t hub_stream_take(struct watch_stream *s, struct hub_response *ret, size_t max, size_t bytes)
{
    size_t n = 0, got = 0, freed = 0;
    bool room = false;

    pthread_mutex_lock(&s->mu);
    for (; n < max && n < s->n && got < bytes; n++) {
        struct queued *q = &s->ring[(s->first + n) & (s->cap - 1)];
        bool shared = n + 1 < s->n && s->ring[(s->first + n + 1) & (s->cap - 1)].packet == q->packet;

        ret[n].packet = q->packet;
        ret[n].head_len = (uint8_t)watch_id_encode(q->watch_id, ret[n].head);
        got += q->packet->len;
        freed += QUEUED_BYTES + (shared ? 0 : q->packet->len); /* the last of a row of one packet */
    }
    s->first = (s->first + n) & (s->cap ? s->cap - 1 : 0);
    s->n -= n;
    assert(s->n ? freed <= s->bytes : freed == s->bytes);
    s->bytes -= freed;
    if (s->n == 0 && s->cap > 1024) {
        free(s->ring);
        s->ring = NULL;
        s->cap = s->first = 0;
    }
    if (s->full_told && s->bytes < LIMIT_WATCH_STREAM_BYTES / 2) {
        s->full_told = false;
        room = true;
    }
    pthread_mutex_unlock(&s->mu);
    atomic_fetch_sub_explicit(&s->hub->queued_bytes, freed, memory_order_relaxed);
    atomic_fetch_sub_explicit(&s->hub->queued_responses, n, memory_order_relaxed);
    if (room)
        mailbox_nudge(&s->hub->box);
    return n;
}

/* The hub, when the close has reached it. */
void stream_free(struct watch_stream *s)
{
    atomic_fetch_sub_explicit(&s->hub->queued_bytes, s->bytes, memory_order_relaxed);
    atomic_fetch_sub_explicit(&s->hub->queued_responses, s->n, memory_order_relaxed);
    atomic_fetch_sub(&s->hub->n_streams, 1);
    for (size_t i = 0; i < s->n; i++)
        packet_unref(s->ring[(s->first + i) & (s->cap - 1)].packet);
    free(s->ring);
    (void)pthread_mutex_destroy(&s->mu); /* closed: nobody takes it any more */
    free(s);
}
