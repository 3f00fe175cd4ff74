/* SPDX-License-Identifier: Apache-2.0 */
/* hub.h - watches: a reader that follows what apply publishes and feeds watchers.
 *
 * Not part of apply: it has a thread and a slot of its own, so an event never leaves before a read can see it, and
 * fan-out never delays a put. A watcher is synced (fed as revisions appear) or catching up (fed from the log at a
 * bounded rate, all of them by one shared scan, then handed over without loss or duplicate). A stream's queue is
 * bounded in bytes; a slow reader falls back to catching up. Semantics: reference 02-semantics 2.3.
 *
 * Owner: the hub thread; calls below are "any thread" (they post to its mailbox) but for stream_take.
 */
#pragma once
#include "mailbox.h"
#include "rpc.pb-c.h"
#include "seam.h"
#include "store.h"

struct hub;
struct watch_stream; /* one Watch call; counted: the call's and the hub's reference */

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
void hub_stop(struct hub *h);
void hub_free(struct hub *h);
uint64_t hub_step(struct hub *h);  /* for a simulator; next deadline */
void hub_nudge(struct hub *h);     /* any thread: apply has published */

/* wake: called (hub's thread, must not block) when stream_take has something after it had nothing. */
struct watch_stream *hub_stream_new(struct hub *h, void (*wake)(void *ctx), void *ctx);
void hub_stream_close(struct watch_stream *s); /* no wake after it returns */

/* The messages of the client, in order. The request is copied. */
int hub_stream_request(struct watch_stream *s, const Etcdserverpb__WatchRequest *req);

/* The rpc thread: the next packed WatchResponse, or NULL. The buffer is counted: the same bytes may go to many. */
struct packet {
    _Atomic uint32_t refs;
    uint32_t len;
    uint8_t bytes[];
};
struct packet *hub_stream_take(struct watch_stream *s);
void packet_unref(struct packet *p);

struct hub_stats { uint64_t streams, watchers, slow_watchers, events_sent, pending_events; };
void hub_stats(const struct hub *h, struct hub_stats *ret_stats);
