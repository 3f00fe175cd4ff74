/* SPDX-License-Identifier: Apache-2.0 */
/* svc_watch.c - etcdserverpb.Watch: one call, a stream of the hub.
 *
 * Requests go to the hub as they come; responses are taken out of the stream's queue when the call has room for them.
 * The hub wakes the call when its queue is no longer empty: one resume at a time is under way, and the call is held
 * by a reference until gone has been told and that resume has come.
 *
 * Owner: the call's rpc thread; watch_wake alone runs on the hub's.
 * Not here: everything that watches mean (hub.c).
 */
#include <stdatomic.h>
#include "limits.h"
#include "svc.h"

enum {
    TAKE_MAX = 64,
    COPY_MAX_BYTES = 4096, /* a smaller response is copied once more; a larger one is shared by all who get it */
};

struct watch {
    struct watch_stream *stream; /* NULL: closed */
    struct call_resume resume;
    _Atomic bool resuming;       /* resume is under way */
};
_Static_assert(sizeof(struct watch) <= CALL_STATE_BYTES, "it lies in the call");

static void packet_done(void *owner)
{
    packet_unref(owner);
}

static void send_response(struct call *c, struct hub_response *r)
{
    struct slice head = slice_of(r->head, r->head_len), bytes = slice_of(r->packet->bytes, r->packet->len);
    uint8_t copy[COPY_MAX_BYTES];

    if (head.len + bytes.len > sizeof copy) {
        call_send_joined(c, head, bytes, packet_done, r->packet);
        return;
    }
    memcpy(copy, bytes.ptr, bytes.len);
    memcpy(copy + bytes.len, head.ptr, head.len); /* fields come in any order */
    call_send_packed(c, slice_of(copy, head.len + bytes.len));
    packet_unref(r->packet);
}

/* Everything there is room for. */
static void watch_pump(struct call *c)
{
    struct watch *w = call_state(c);
    struct hub_response r[TAKE_MAX];
    size_t n = 1;

    while (w->stream && n > 0 && call_send_room(c)) {
        n = hub_stream_take(w->stream, r, TAKE_MAX, LIMIT_SEND_BURST_BYTES);
        for (size_t i = 0; i < n; i++)
            send_response(c, &r[i]);
    }
}

static void watch_resumed(struct call *c, struct call_resume *r)
{
    struct watch *w = call_state(c);

    (void)r;
    atomic_store(&w->resuming, false);
    if (w->stream)
        watch_pump(c);
    else
        call_unref(c); /* it was closed while this was under way */
}

static void watch_wake(void *ctx)
{
    struct watch *w = ctx;

    if (!atomic_exchange(&w->resuming, true))
        call_resume(&w->resume);
}

static void watch_start(struct call *c, const ProtobufCMessage *m)
{
    struct watch *w = call_state(c);
    struct svc *s = call_service(c);

    (void)m;
    w->resume = (struct call_resume){.call = c, .fn = watch_resumed};
    w->stream = hub_stream_new(s->hub, watch_wake, w);
    if (w->stream == NULL)
        call_fail(c, ERR_TOO_MANY_REQUESTS);
    else
        call_ref(c);
}

static void watch_message(struct call *c, const ProtobufCMessage *m)
{
    struct watch *w = call_state(c);
    int err = w->stream ? hub_stream_request(w->stream, (const Etcdserverpb__WatchRequest *)m) : 0;

    if (err)
        call_fail(c, err);
}

static void watch_gone(struct call *c)
{
    struct watch *w = call_state(c);

    if (w->stream == NULL)
        return;
    hub_stream_close(w->stream);
    w->stream = NULL;
    if (!atomic_load(&w->resuming)) /* no wake after the close: it stays so */
        call_unref(c);
}

static const struct rpc_method methods[] = {
    {.service = "etcdserverpb.Watch", .name = "Watch", .kind = RPC_BIDI, .access = ACCESS_KEYS,
     .request = &etcdserverpb__watch_request__descriptor, .start = watch_start, .message = watch_message,
     .gone = watch_gone, .drained = watch_pump},
};

const struct svc_service svc_watch = {methods, sizeof methods / sizeof methods[0]};
