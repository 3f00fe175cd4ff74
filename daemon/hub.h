/* SPDX-License-Identifier: Apache-2.0 */
/* hub.h - watches: a reader that follows what apply publishes and feeds watchers.
 *
 * Not part of apply: it has a thread and a slot of its own, so an event never leaves before a read can see it, and
 * fan-out never delays a put. A watcher is live (fed as revisions appear) or catching up (fed from the log, all of
 * them by one shared scan, then handed over without loss or duplicate). A stream's queue is bounded in bytes; a slow
 * reader falls back to catching up. Semantics: reference 02-semantics 2.3.
 *
 * Owner: the hub thread; calls below are "any thread" (they post to its mailbox), but those of one stream come from
 * one thread at a time.
 */
#pragma once
#include "mailbox.h"
#include "rpc.pb-c.h"
#include "seam.h"
#include "store.h"

struct hub;
struct watch_stream; /* one Watch call */

struct hub_options {
    struct clock *clock;
    struct rng *rng;
    struct store *store;
    uint64_t cluster_id, member_id;
    uint64_t (*term)(void *ctx);      /* for response headers */
    void *term_ctx;
    size_t fragment_bytes;            /* max-request-bytes + 512 KiB */
    uint32_t progress_interval_ms;    /* 10 min */
};

int hub_new(const struct hub_options *o, struct hub **ret_hub);
int hub_start(struct hub *h);
void hub_stop(struct hub *h);      /* joins the thread; streams may still be closed afterwards, but get nothing more */
void hub_free(struct hub *h);      /* takes NULL; every stream must have been closed */
uint64_t hub_step(struct hub *h);  /* for a simulator; the next deadline in ms, 0: at once */
void hub_nudge(struct hub *h);     /* any thread: apply has published. Costs nothing while nobody watches */

/* wake: called (hub's thread, must not block) when hub_stream_take has something after it had nothing. */
struct watch_stream *hub_stream_new(struct hub *h, void (*wake)(void *ctx), void *ctx); /* NULL: no memory */
void hub_stream_close(struct watch_stream *s); /* no wake after it returns; s is gone. Takes NULL */

/* The messages of the client, in order. The request is copied. ERR_TOO_MANY_REQUESTS: it sends and does not read. */
int hub_stream_request(struct watch_stream *s, const Etcdserverpb__WatchRequest *req);

/* Counted bytes: the same may go to many watchers. */
struct packet {
    _Atomic uint32_t refs;
    uint32_t len;
    uint8_t bytes[];
};
void packet_unref(struct packet *p); /* any thread; takes NULL */

/* A WatchResponse: head (its watch_id, encoded), then the packet's bytes. Parsers take fields in any order. */
enum { HUB_HEAD_BYTES = 11 };
struct hub_response {
    struct packet *packet; /* the taker's reference */
    uint8_t head_len;
    uint8_t head[HUB_HEAD_BYTES];
};
/* Up to max responses, and no more once they make up `bytes`. 0: nothing waits, wake will be called. */
size_t hub_stream_take(struct watch_stream *s, struct hub_response *ret, size_t max, size_t bytes);

struct hub_stats { uint64_t streams, watchers, slow_watchers, events_sent, pending_events; };
void hub_stats(const struct hub *h, struct hub_stats *ret_stats); /* any thread */
