/* SPDX-License-Identifier: Apache-2.0 */
/* hub.c - the hub's thread: follows what apply publishes, takes the clients' requests, ticks.
 *
 * A step reads as a list: open a view; feed the live watchers up to its revision; cancel who is below a compaction;
 * take requests; feed one batch to those catching up; send what is due of progress notices; wake the streams that got
 * something. All in one view and on one thread, so a watcher passes from catching up to live without a gap: whoever
 * has been fed everything up to `seen` is live, and live means exactly that.
 *
 * Live watchers need changes that a compaction may have passed already, when a put and a compaction came in one burst:
 * they are fed as long as base's sweep has not come that far (base_meta.swept); only then are they cancelled.
 *
 * Owner: the hub thread (after hub_start); hub_nudge and hub_stats any thread.
 * Not here: reading and handing out (hub_feed.c), queues (hub_stream.c), ranges (hub_index.c), bytes (hub_packet.c).
 * Source: reference 02-semantics 2.3; etcd v3.7.1 server/storage/mvcc/watchable_store.go, api/v3rpc/watch.go.
 */
#include <errno.h>
#include "err.h"
#include "hub_impl.h"
#include "log.h"

enum { RETRY_MS = 1000 }; /* after a reading that failed */

#define EMPTY_RANGE "mvcc: watcher range is empty"
#define DUPLICATE_ID "mvcc: duplicate watch ID provided on the WatchStream"
#define TOO_MANY "cairn: too many watchers"

struct response_head hub_head(const struct hub *h, int64_t revision)
{
    return (struct response_head){.cluster_id = h->o.cluster_id, .member_id = h->o.member_id,
                                  .term = h->o.term(h->o.term_ctx), .revision = revision};
}

void hub_note_woken(struct hub *h, struct watch_stream *s)
{
    if (s->woken)
        return;
    s->woken = true;
    s->woken_next = h->woken;
    h->woken = s;
}

static void wake_all(struct hub *h)
{
    while (h->woken) {
        struct watch_stream *s = h->woken;

        h->woken = s->woken_next;
        s->woken = false;
        stream_wake(s);
    }
}

/* A response without events. No memory: the client misses a word of the protocol, so the log says it. */
static void say(struct watch_stream *s, int64_t watch_id, const struct response_head *head)
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

static void group_leave(struct hub *h, struct watcher *w)
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
        group_leave(h, w);
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
static uint64_t tick_after(struct hub *h, uint64_t now_ms)
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
    s->next_tick_ms = tick_after(h, h->o.clock->now_ms(h->o.clock));
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
    say(s, -1, &head);
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
    say(w->stream, w->id, &head);
}

static void cancel(struct hub *h, const struct watch_request *r, int64_t rev)
{
    struct watcher *w = id_find(h, r->head.stream, r->watch_id);
    struct response_head head = hub_head(h, rev);

    if (w == NULL)
        return; /* an unknown id is not answered */
    watcher_free(h, w);
    head.canceled = true;
    say(r->head.stream, r->watch_id, &head);
}

static bool is_synced(const struct hub *h, const struct watcher *w)
{
    return w->state == WATCHER_LIVE && w->start_rev <= h->seen;
}

static void progress(struct hub *h, struct watch_stream *s)
{
    struct response_head head = hub_head(h, h->seen);

    if (s->watchers == NULL)
        return;
    for (struct watcher *w = s->watchers; w; w = w->stream_next) {
        if (!is_synced(h, w))
            return;
    }
    say(s, -1, &head);
}

static void close_stream(struct hub *h, struct watch_stream *s)
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

static void take_requests(struct hub *h, struct mail *mail, int64_t rev)
{
    while (mail) {
        struct hub_mail *m = (struct hub_mail *)mail;
        struct watch_request *r = (struct watch_request *)mail;

        mail = mail->next;
        if (m->kind == REQUEST_CLOSE) {
            close_stream(h, m->stream);
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

/* ---- compaction ------------------------------------------------------------------------------------ */

static void cancel_compacted(struct hub *h, struct watcher *w, int64_t compact_rev)
{
    struct response_head head = hub_head(h, 0);

    group_leave(h, w);
    head.canceled = true;
    head.compact_revision = compact_rev;
    say(w->stream, w->id, &head);
}

static void cancel_catching_below(struct hub *h, int64_t compact_rev)
{
    for (struct watcher *w = h->catching, *next; w; w = next) {
        next = w->catching_next;
        if (w->min_rev < compact_rev)
            cancel_compacted(h, w, compact_rev);
    }
}

/* The hub lagged, and what it was to read next is swept already: every live watcher that needs it is cancelled. */
static int check_swept(struct hub *h, struct view *v)
{
    struct base_meta meta;
    int err;

    if (h->seen + 1 >= v->compact_rev)
        return 0;
    err = base_reader_meta(v->reader, &meta);
    if (err || meta.swept <= h->seen + 1)
        return err;
    for (struct watch_stream *s = h->streams; s; s = s->next) {
        for (struct watcher *w = s->watchers; w; w = w->stream_next) {
            if (w->state == WATCHER_LIVE && w->min_rev < v->compact_rev)
                cancel_compacted(h, w, v->compact_rev);
        }
    }
    h->seen = v->compact_rev - 1;
    return 0;
}

/* ---- ticks --------------------------------------------------------------------------------------------- */

static void tick_stream(struct hub *h, struct watch_stream *s)
{
    for (struct watcher *w = s->watchers; w; w = w->stream_next) {
        if (!w->progress_notify)
            continue;
        if (w->progress_due && is_synced(h, w)) {
            struct response_head head = hub_head(h, h->seen);

            say(s, w->id, &head);
        }
        w->progress_due = true;
    }
}

static void tick(struct hub *h, uint64_t now_ms)
{
    uint64_t next = UINT64_MAX;

    if (now_ms < h->next_tick_ms)
        return;
    for (struct watch_stream *s = h->streams; s; s = s->next) {
        if (s->next_tick_ms <= now_ms) {
            tick_stream(h, s);
            s->next_tick_ms = tick_after(h, now_ms);
        }
        if (s->next_tick_ms < next)
            next = s->next_tick_ms;
    }
    h->next_tick_ms = next;
}

/* ---- the step --------------------------------------------------------------------------------------------- */

static void cancel_one_damaged(struct hub *h, struct watcher *w)
{
    struct response_head head = hub_head(h, 0);

    group_leave(h, w);
    head.canceled = true;
    head.cancel_reason = err_info(ERR_DAMAGED).text;
    say(w->stream, w->id, &head);
}

/* Who was to be fed from what cannot be read is told; to try again for ever would keep all others waiting too. */
static void cancel_damaged_catching(struct hub *h)
{
    for (struct watcher *w = h->catching, *next; w; w = next) {
        next = w->catching_next;
        if (w->in_batch)
            cancel_one_damaged(h, w);
    }
}

/* Of what is new only the values before are read from the disk. */
static void cancel_damaged_live(struct hub *h)
{
    for (struct watch_stream *s = h->streams; s; s = s->next)
        for (struct watcher *w = s->watchers, *next; w; w = next) {
            next = w->stream_next;
            if (w->state == WATCHER_LIVE && w->prev_kv)
                cancel_one_damaged(h, w);
        }
}

/* Half of the time at most goes into catching up: the other half is the puts'. */
static int catch_up(struct hub *h, struct view *v, bool *ret_more)
{
    uint64_t start = h->o.clock->now_us(h->o.clock);
    int err;

    *ret_more = h->catching != NULL;
    if (!*ret_more || start < h->catch_after_us)
        return 0;
    cancel_catching_below(h, v->compact_rev);
    err = feed_catching(h, v, ret_more);
    if (err == -EUCLEAN)
        cancel_damaged_catching(h);
    h->catch_after_us = h->o.clock->now_us(h->o.clock);
    h->catch_after_us += h->catch_after_us - start;
    return err;
}

/* What is done in one view. again: call the step without waiting. */
static int step_in_view(struct hub *h, struct view *v, struct mail *mail, bool *ret_again, bool *ret_catching)
{
    int err = check_swept(h, v);

    if (err == 0)
        err = feed_live(h, v);
    if (err == -EUCLEAN)
        cancel_damaged_live(h);
    /* Requests are taken even when reading fails: a stream must be able to close. */
    take_requests(h, mail, v->rev);
    if (!atomic_load(&h->listening) && h->root) {
        atomic_store(&h->listening, true);
        *ret_again = true; /* what was published meanwhile did not nudge */
    } else if (h->root == NULL && atomic_load(&h->listening)) {
        atomic_store(&h->listening, false);
    }
    if (err == 0)
        err = catch_up(h, v, ret_catching);
    *ret_again |= err == 0 && h->seen < v->rev;
    return err;
}

static void note_error(struct hub *h, int err)
{
    if (err == -EUCLEAN && !h->damage_logged)
        log_error("hub: the store is damaged; watches that need what cannot be read are cancelled");
    else if (err && err != -EUCLEAN && err != h->last_err)
        log_error("hub: reading changes failed, trying again", LOG_STR("error", strerror(-err)));
    h->damage_logged |= err == -EUCLEAN;
    h->last_err = err;
}

uint64_t hub_step(struct hub *h)
{
    struct mail *mail = mailbox_take(&h->box);
    bool again = false, catching = false;
    uint64_t now_ms, deadline;
    struct view v;
    int err;

    h->step_number++;
    err = view_open(h->o.store, h->slot, &v);
    if (err == 0) {
        err = step_in_view(h, &v, mail, &again, &catching);
        view_close(&v);
    } else {
        take_requests(h, mail, h->seen);
    }
    note_error(h, err);
    now_ms = h->o.clock->now_ms(h->o.clock);
    tick(h, now_ms);
    wake_all(h);

    deadline = h->next_tick_ms;
    if (again)
        deadline = 0;
    else if (err)
        deadline = now_ms + RETRY_MS < deadline ? now_ms + RETRY_MS : deadline;
    else if (catching && h->catch_after_us / 1000 + 1 < deadline)
        deadline = h->catch_after_us / 1000 + 1;
    return deadline;
}

static void *hub_run(void *arg)
{
    struct hub *h = arg;

    while (!atomic_load(&h->stopping)) {
        uint64_t deadline = hub_step(h);

        if (deadline)
            mailbox_wait(&h->box, deadline);
    }
    return NULL;
}

void hub_nudge(struct hub *h)
{
    /* The addition orders the publish before the load of listening, as a fence would: either the hub, which sets
     * listening and then opens a view, sees the publish, or it is nudged here. */
    (void)atomic_fetch_add(&h->nudge_fence, 1);
    if (atomic_load(&h->listening))
        mailbox_nudge(&h->box);
}

void hub_stats(const struct hub *h, struct hub_stats *ret_stats)
{
    *ret_stats = (struct hub_stats){
        .streams = atomic_load(&h->n_streams),
        .watchers = atomic_load(&h->n_watchers),
        .slow_watchers = atomic_load(&h->n_slow),
        .events_sent = atomic_load(&h->events_sent),
        .pending_events = atomic_load(&h->queued_responses),
    };
}

/* ---- life ------------------------------------------------------------------------------------------------------ */

int hub_new(const struct hub_options *o, struct hub **ret_hub)
{
    struct hub *h = calloc(1, sizeof *h);

    if (h == NULL)
        return -ENOMEM;
    h->o = *o;
    h->cap_ids = 1024;
    h->ids = calloc(h->cap_ids, sizeof *h->ids);
    h->slot = slot_new(o->store);
    if (h->ids == NULL || h->slot == NULL) {
        if (h->slot)
            slot_free(o->store, h->slot);
        free(h->ids);
        free(h);
        return -ENOMEM;
    }
    mailbox_init(&h->box, -1);
    h->seen = store_revision(o->store);
    h->next_tick_ms = UINT64_MAX;
    *ret_hub = h;
    return 0;
}

int hub_start(struct hub *h)
{
    int err = thread_start(&h->thread, "hub", hub_run, h);

    h->started = err == 0;
    return err;
}

void hub_stop(struct hub *h)
{
    if (!h->started)
        return;
    atomic_store(&h->stopping, true);
    mailbox_nudge(&h->box);
    pthread_join(h->thread, NULL);
    h->started = false;
}

void hub_free(struct hub *h)
{
    if (h == NULL)
        return;
    assert(!h->started);
    take_requests(h, mailbox_take(&h->box), h->seen); /* the closes that came after the stop */
    while (h->streams) /* of calls that were given up */
        close_stream(h, h->streams);
    assert(h->root == NULL);
    slot_free(h->o.store, h->slot);
    batch_fini(&h->batch);
    free(h->ids);
    free(h);
}
