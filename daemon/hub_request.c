/* SPDX-License-Identifier: Apache-2.0 */
/* hub_request.c - what clients ask of the hub: watchers come, go, and are found by their ids.
 *
 * A watcher stands in up to four places: its stream's list, the table of ids (always); the group of its range, and,
 * while it needs the past, the list of those catching up (until it is compacted, or cancelled for damage: then only its
 * id is still taken, until the client cancels it or goes).
 *
 * Owner:  the hub thread.
 * Source: reference 02-semantics 2.3; etcd v3.7.1 server/etcdserver/api/v3rpc/watch.go for the words.
 */
#include <errno.h>
#include "err.h"
#include "hub_impl.h"
#include "log.h"

#define EMPTY_RANGE "mvcc: watcher range is empty"
#define DUPLICATE_ID "mvcc: duplicate watch ID provided on the WatchStream"
#define TOO_MANY "cairn: too many watchers"

/* No memory: the client misses a word of the protocol, so the log says it. */
void hub_say(struct watch_stream *s, int64_t watch_id, const struct response_head *head)
{
    uint8_t *events;
    struct packet *p = packet_response(head, 0, &events);

    if (p)
        (void)stream_push(s, p, watch_id, true); /* false: the stream is closed */
    else
        log_warn("hub: no memory for a response");
}

/* ---- watchers -------------------------------------------------------------------------- */

void watcher_set_state(struct hub *h, struct watcher *w, enum watcher_state state)
{
    if (w->state == WATCHER_CATCHING) {
        *w->catching_at = w->catching_next;
        if (w->catching_next)
            w->catching_next->catching_at = w->catching_at;
        w->group->n_catching--;
        atomic_fetch_sub_explicit(&h->n_slow, 1, memory_order_relaxed);
    }
    w->state = state;
    if (state == WATCHER_CATCHING) {
        w->catching_next = h->catching;
        w->catching_at = &h->catching;
        if (w->catching_next)
            w->catching_next->catching_at = &w->catching_next;
        h->catching = w;
        w->group->n_catching++;
        atomic_fetch_add_explicit(&h->n_slow, 1, memory_order_relaxed);
    }
}

void watcher_leave(struct hub *h, struct watcher *w)
{
    struct watch_group *g = w->group;

    watcher_set_state(h, w, WATCHER_COMPACTED);
    *w->group_at = w->group_next;
    if (w->group_next)
        w->group_next->group_at = w->group_at;
    w->group = NULL;
    if (--g->n == 0) {
        h->key_bytes -= g->from.len + g->end.len;
        ranges_remove(&h->root, g);
    }
}

static int group_join(struct hub *h, struct watcher *w, struct slice from, struct slice end)
{
    struct watch_group *g = ranges_get(&h->root, from, end, h->o.rng->next(h->o.rng));

    if (g == NULL)
        return -ENOMEM;
    if (g->n++ == 0)
        h->key_bytes += from.len + end.len;
    w->group = g;
    w->group_next = g->watchers;
    w->group_at = &g->watchers;
    if (w->group_next)
        w->group_next->group_at = &w->group_next;
    g->watchers = w;
    return 0;
}

/* ---- ids ----------------------------------------------------------------------------------- */

static size_t id_slot(const struct hub *h, const struct watch_stream *s, int64_t id)
{
    uint64_t x = (uint64_t)(uintptr_t)s * 0x9e3779b97f4a7c15u ^ (uint64_t)id * 0xbf58476d1ce4e5b9u;

    return (size_t)((x ^ x >> 29) & (h->cap_ids - 1));
}

static struct watcher *id_find(const struct hub *h, const struct watch_stream *s, int64_t id)
{
    struct watcher *w = h->ids[id_slot(h, s, id)];

    while (w && (w->stream != s || w->id != id))
        w = w->id_next;
    return w;
}

static void ids_grow(struct hub *h)
{
    size_t cap = h->cap_ids * 2, old = h->cap_ids;
    struct watcher **from = h->ids, **to = calloc(cap, sizeof *to);

    if (to == NULL)
        return; /* longer chains do */
    h->ids = to;
    h->cap_ids = cap;
    for (size_t i = 0; i < old; i++) {
        for (struct watcher *w = from[i], *next; w; w = next) {
            size_t slot = id_slot(h, w->stream, w->id);

            next = w->id_next;
            w->id_next = to[slot];
            to[slot] = w;
        }
    }
    free(from);
}

static void id_put(struct hub *h, struct watcher *w)
{
    size_t slot;

    if (h->n_ids++ >= h->cap_ids)
        ids_grow(h);
    slot = id_slot(h, w->stream, w->id);
    w->id_next = h->ids[slot];
    h->ids[slot] = w;
}

static void id_drop(struct hub *h, struct watcher *w)
{
    struct watcher **at = &h->ids[id_slot(h, w->stream, w->id)];

    while (*at != w)
        at = &(*at)->id_next;
    *at = w->id_next;
    h->n_ids--;
}

static void watcher_free(struct hub *h, struct watcher *w)
{
    struct watch_stream *s = w->stream;

    if (w->group)
        watcher_leave(h, w);
    id_drop(h, w);
    *w->stream_at = w->stream_next;
    if (w->stream_next)
        w->stream_next->stream_at = w->stream_at;
    s->n_watchers--;
    atomic_fetch_sub_explicit(&h->n_watchers, 1, memory_order_relaxed);
    free(w);
}

/* ---- requests ---------------------------------------------------------------------------------- */

/* The interval, and up to a tenth more, so that streams opened together do not tick together. */
uint64_t hub_tick_after(struct hub *h, uint64_t now_ms)
{
    return now_ms + h->o.progress_interval_ms + h->o.rng->next(h->o.rng) % (h->o.progress_interval_ms / 10 + 1);
}

static void attach(struct hub *h, struct watch_stream *s)
{
    if (s->attached)
        return;
    s->attached = true;
    s->next = h->streams;
    s->at = &h->streams;
    if (s->next)
        s->next->at = &s->next;
    h->streams = s;
    s->next_tick_ms = hub_tick_after(h, h->o.clock->now_ms(h->o.clock));
    if (s->next_tick_ms < h->next_tick_ms)
        h->next_tick_ms = s->next_tick_ms;
}

static struct watcher *watcher_new(struct hub *h, const struct watch_request *r, struct slice from, struct slice end)
{
    struct watch_stream *s = r->head.stream;
    struct watcher *w = calloc(1, sizeof *w);

    if (w == NULL)
        return NULL;
    w->stream = s;
    w->prev_kv = r->prev_kv;
    w->no_put = r->no_put;
    w->no_delete = r->no_delete;
    w->fragment = r->fragment;
    w->progress_notify = w->progress_due = r->progress_notify;
    w->start_rev = r->start_rev;
    if (group_join(h, w, from, end)) {
        free(w);
        return NULL;
    }
    w->id = r->watch_id;
    if (w->id == 0) {
        while (id_find(h, s, s->next_id))
            s->next_id++;
        w->id = s->next_id++;
    }
    id_put(h, w);
    w->stream_next = s->watchers;
    w->stream_at = &s->watchers;
    if (w->stream_next)
        w->stream_next->stream_at = &w->stream_next;
    s->watchers = w;
    s->n_watchers++;
    atomic_fetch_add_explicit(&h->n_watchers, 1, memory_order_relaxed);
    return w;
}

static void refuse(struct hub *h, struct watch_stream *s, int64_t revision, const char *reason)
{
    struct response_head head = hub_head(h, revision);

    head.created = head.canceled = true;
    head.cancel_reason = reason;
    hub_say(s, -1, &head);
}

/* NULL: no objection. */
static const char *objection(struct hub *h, const struct watch_request *r, struct slice from, struct slice end)
{
    size_t keys = from.len + (r->open_end ? 0 : r->end_len ? end.len : from.len + 1); /* as create makes of it */

    if (r->start_rev < 0)
        return err_info(ERR_COMPACTED).text;
    if (r->end_len && slice_cmp(from, end) >= 0)
        return EMPTY_RANGE;
    if (r->watch_id && id_find(h, r->head.stream, r->watch_id))
        return DUPLICATE_ID;
    if (h->n_ids >= LIMIT_WATCHERS || h->key_bytes + keys > LIMIT_WATCH_KEY_BYTES)
        return TOO_MANY;
    return NULL;
}

static void create(struct hub *h, const struct watch_request *r, int64_t rev)
{
    uint8_t *next_key = NULL;
    struct slice from = slice_of(r->bytes, r->key_len), end = slice_of(r->bytes + r->key_len, r->end_len);
    const char *reason = objection(h, r, from, end);
    struct response_head head = hub_head(h, rev);
    struct watcher *w = NULL;

    if (r->open_end) {
        end = SLICE_NONE;
    } else if (r->end_len == 0) { /* a single key is the range up to the next one there is */
        next_key = malloc(r->key_len + 1);
        if (next_key) {
            memcpy(next_key, from.ptr, from.len);
            next_key[from.len] = 0;
            end = slice_of(next_key, from.len + 1);
        }
    }
    if (reason == NULL && (r->open_end || r->end_len || next_key))
        w = watcher_new(h, r, from, end);
    free(next_key);
    if (w == NULL) {
        refuse(h, r->head.stream, rev, reason ? reason : TOO_MANY);
        return;
    }
    w->min_rev = w->start_rev == 0 ? rev + 1 : w->start_rev;
    watcher_set_state(h, w, w->min_rev > h->seen ? WATCHER_LIVE : WATCHER_CATCHING);
    head.created = true;
    hub_say(w->stream, w->id, &head);
}

static void cancel(struct hub *h, const struct watch_request *r, int64_t rev)
{
    struct watcher *w = id_find(h, r->head.stream, r->watch_id);
    struct response_head head = hub_head(h, rev);

    if (w == NULL)
        return; /* an unknown id is not answered */
    watcher_free(h, w);
    head.canceled = true;
    hub_say(r->head.stream, r->watch_id, &head);
}

bool watcher_is_synced(const struct hub *h, const struct watcher *w)
{
    return w->state == WATCHER_LIVE && w->start_rev <= h->seen;
}

static void progress(struct hub *h, struct watch_stream *s)
{
    struct response_head head = hub_head(h, h->seen);

    if (s->watchers == NULL)
        return;
    for (struct watcher *w = s->watchers; w; w = w->stream_next) {
        if (!watcher_is_synced(h, w))
            return;
    }
    hub_say(s, -1, &head);
}

void hub_close_stream(struct hub *h, struct watch_stream *s)
{
    while (s->watchers)
        watcher_free(h, s->watchers);
    if (s->attached) {
        *s->at = s->next;
        if (s->next)
            s->next->at = s->at;
    }
    if (s->woken) { /* by an earlier request of this step */
        struct watch_stream **at = &h->woken;

        while (*at != s)
            at = &(*at)->woken_next;
        *at = s->woken_next;
    }
    stream_free(s);
}

void hub_take_requests(struct hub *h, struct mail *mail, int64_t rev)
{
    while (mail) {
        struct hub_mail *m = (struct hub_mail *)mail;
        struct watch_request *r = (struct watch_request *)mail;

        mail = mail->next;
        if (m->kind == REQUEST_CLOSE) {
            hub_close_stream(h, m->stream);
            continue;
        }
        attach(h, m->stream);
        if (m->kind == REQUEST_CREATE)
            create(h, r, rev);
        else if (m->kind == REQUEST_CANCEL)
            cancel(h, r, rev);
        else
            progress(h, m->stream);
        atomic_fetch_sub(&m->stream->request_bytes, r->total);
        free(r);
    }
}
