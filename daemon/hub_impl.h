/* SPDX-License-Identifier: Apache-2.0 */
/* hub_impl.h - what the hub's files share: hub.c (thread), hub_request.c (requests), hub_feed.c (reading and handing
 * out events), hub_index.c (which watchers a key concerns), hub_stream.c (queues to the rpc threads), hub_packet.c
 * (bytes). */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include "hub.h"
#include "limits.h"

/* ---- watchers, and the index over their ranges -------------------------------------- */

enum watcher_state {
    WATCHER_LIVE,      /* has everything up to hub.seen, or starts above it */
    WATCHER_CATCHING,  /* in hub.catching: needs revisions from min_rev on */
    WATCHER_COMPACTED, /* told so; only its id is still taken */
};

struct watcher {
    struct watch_stream *stream;
    int64_t id;
    enum watcher_state state;
    bool prev_kv, no_put, no_delete, fragment;
    bool progress_notify, progress_due; /* due: nothing was sent to it since the last tick */
    bool in_batch, refused;             /* of the batch being handed out; refused: its stream was full */
    int64_t start_rev;                  /* asked for; 0: from now on */
    int64_t min_rev;                    /* the lowest revision it has not been fed */
    struct watch_group *group;          /* NULL once compacted */
    struct watcher *group_next, **group_at;
    struct watcher *catching_next, **catching_at;
    struct watcher *stream_next, **stream_at;
    struct watcher *id_next;            /* in the table of ids */
};

/* All watchers of one range, and a node of the tree of ranges: a treap ordered by (from, end), each node with the
 * highest end below it, so that the ranges around a key are found without looking at the others. */
struct watch_group {
    struct slice from, end; /* end.ptr NULL: no upper end */
    struct watcher *watchers;
    size_t n, n_catching;
    struct watch_group *left, *right;
    uint64_t priority;
    struct slice max_end;
    /* The batch being read: which of its events lie in the range. */
    uint32_t *events;
    size_t n_events, cap_events;
    struct watch_group *touched_next;
};

struct watch_group *ranges_get(struct watch_group **root, struct slice from, struct slice end, uint64_t priority);
void ranges_remove(struct watch_group **root, struct watch_group *g); /* has no watchers; frees it */
/* Calls fn for each group whose range holds key; a non-zero fn ends it. Adds to looked_at how many groups were. */
int ranges_find(struct watch_group *root, struct slice key, int (*fn)(void *ctx, struct watch_group *), void *ctx,
                uint64_t *looked_at);

/* ---- streams --------------------------------------------------------------------------- */

enum request_kind { REQUEST_CREATE, REQUEST_CANCEL, REQUEST_PROGRESS, REQUEST_CLOSE };

/* What comes to the hub's mailbox. */
struct hub_mail {
    struct mail mail;
    enum request_kind kind;
    struct watch_stream *stream;
};

struct queued {
    struct packet *packet;
    int64_t watch_id;
};

struct watch_stream {
    struct hub *hub;
    struct hub_mail close; /* posted last; needs no memory then */
    /* The hub's own. */
    struct watcher *watchers;
    size_t n_watchers;
    int64_t next_id;
    uint64_t next_tick_ms;
    struct watch_stream *next, **at; /* in hub.streams */
    uint64_t full_step;   /* in hub.step_number this one it was full */
    bool attached;
    struct watch_stream *woken_next;
    bool woken;
    /* protected by mu: the queue, filled by the hub, emptied by the rpc thread. A mailbox has no bound and one node for
     * each message; here 10,000 watchers share a packet. */
    pthread_mutex_t mu;
    struct queued *ring;
    size_t first, n, cap;
    size_t bytes;
    struct packet *last;  /* pushed last: one packet's bytes count once in a row. Only compared */
    bool full_told;       /* the hub was refused: nudge it when there is room */
    bool closed;
    void (*wake)(void *ctx);
    void *wake_ctx;
    _Atomic size_t request_bytes; /* posted and not yet looked at */
};

/* Takes a reference of the caller's, also when it says false: the stream is full (or gone). control: counts, but is
 * never refused. */
bool stream_push(struct watch_stream *s, struct packet *p, int64_t watch_id, bool control);
bool stream_is_full(struct watch_stream *s); /* asked once a step */
void stream_wake(struct watch_stream *s);
void stream_free(struct watch_stream *s);

struct watch_request {
    struct hub_mail head;
    int64_t watch_id, start_rev;
    bool progress_notify, prev_kv, fragment, no_put, no_delete;
    bool open_end; /* no upper end */
    size_t key_len, end_len, total;
    uint8_t bytes[]; /* key, range_end */
};

/* ---- bytes ------------------------------------------------------------------------------- */

struct response_head {
    uint64_t cluster_id, member_id, term;
    int64_t revision;
    bool created, canceled, fragment;
    int64_t compact_revision;
    const char *cancel_reason;
};

struct packet *packet_new(size_t len);
void packet_ref(struct packet *p, uint32_t n);
void packet_unref_n(struct packet *p, uint32_t n); /* takes NULL */
/* A WatchResponse without watch_id: head, then room for event_bytes at *ret_events. NULL: no memory. */
struct packet *packet_response(const struct response_head *h, size_t event_bytes, uint8_t **ret_events);
size_t watch_id_encode(int64_t id, uint8_t dst[HUB_HEAD_BYTES]);
/* One event as a field of WatchResponse. */
size_t event_size(const struct change *c);
void event_encode(const struct change *c, uint8_t *dst);
/* The same event with a previous value. */
size_t event_prev_size(struct slice event, struct slice prev_body);
void event_prev_encode(struct slice event, struct slice prev_body, uint8_t *dst);

/* ---- the hub -------------------------------------------------------------------------------- */

/* One change of the batch being handed out. */
struct batch_event {
    int64_t main;
    bool tombstone, created;
    enum { PREV_UNKNOWN, PREV_NONE, PREV_SOME } prev;
    size_t offset, len;           /* of its bytes in batch.buf, without prev_kv */
    size_t key_offset, key_len;
    size_t prev_offset, prev_len; /* with prev_kv, if PREV_SOME */
    struct packet *packet[2];     /* for watchers who get this event alone; [prev_kv] */
};

struct batch {
    bool live;                    /* for whom: live watchers or those catching up */
    struct view *view;
    int64_t from, to;             /* revisions it covers, whole */
    uint8_t *buf;                 /* grows; kept */
    size_t len, cap;
    struct batch_event *events;   /* kept */
    size_t n_events, cap_events;
    size_t n_changes, n_revs;     /* seen, and taken */
    struct watch_group *touched;
    struct arena arena;           /* of the scan */
};

struct hub {
    struct hub_options o;
    struct slot *slot;
    struct mailbox box;
    pthread_t thread;
    bool started;
    _Atomic bool stopping;
    _Atomic bool listening;       /* somebody watches: publishes must nudge */
    _Atomic uint32_t nudge_fence; /* see hub_nudge */

    uint64_t step_number;
    int64_t seen;                 /* every live watcher has been fed up to here */
    uint64_t epoch;             /* of the store's state, as of the last step */
    struct watch_group *root;
    uint64_t looked_at; /* groups, of all searches: a few for each change, however many there are */
    struct watcher **ids;         /* hash table by (stream, id) */
    size_t n_ids, cap_ids;
    size_t key_bytes;
    struct watcher *catching;
    int64_t catch_pos;            /* the scan's position: it goes up and begins again at the lowest */
    uint64_t catch_after_us;      /* not before */
    struct watch_stream *streams, *woken;
    uint64_t next_tick_ms;
    struct batch batch;
    int last_err;                 /* logged once */

    _Atomic uint64_t n_streams, n_watchers, n_slow, events_sent, queued_responses;
    _Atomic size_t queued_bytes;  /* to all streams */
};

struct response_head hub_head(const struct hub *h, int64_t revision);
void hub_note_woken(struct hub *h, struct watch_stream *s);

/* hub_request.c */
void hub_take_requests(struct hub *h, struct mail *mail, int64_t rev);
void hub_close_stream(struct hub *h, struct watch_stream *s);
/* A response without events. */
void hub_say(struct watch_stream *s, int64_t watch_id, const struct response_head *head);
uint64_t hub_tick_after(struct hub *h, uint64_t now_ms);
void watcher_set_state(struct hub *h, struct watcher *w, enum watcher_state state);
void watcher_leave(struct hub *h, struct watcher *w); /* it gets nothing any more; only its id is still taken */
bool watcher_is_synced(const struct hub *h, const struct watcher *w);

/* hub_feed.c. Each 0 or -errno. */
int feed_live(struct hub *h, struct view *v);                  /* moves seen up, to v->rev or a part of the way */
int feed_catching(struct hub *h, struct view *v, bool *ret_more); /* one batch; more: another would find work */
void batch_fini(struct batch *b);
