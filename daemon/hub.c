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
 * Not here: requests (hub_request.c), reading and handing out (hub_feed.c), queues (hub_stream.c), ranges
 * (hub_index.c), bytes (hub_packet.c).
 * Source: reference 02-semantics 2.3; etcd v3.7.1 server/storage/mvcc/watchable_store.go, api/v3rpc/watch.go.
 */
#include <errno.h>
#include "err.h"
#include "hub_impl.h"
#include "log.h"

enum { RETRY_MS = 1000 }; /* after a reading that failed */

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

/* ---- compaction ------------------------------------------------------------------------------------ */

static void cancel_compacted(struct hub *h, struct watcher *w, int64_t compact_rev)
{
    struct response_head head = hub_head(h, 0);

    watcher_leave(h, w);
    head.canceled = true;
    head.compact_revision = compact_rev;
    hub_say(w->stream, w->id, &head);
}

static void cancel_catching_below(struct hub *h, int64_t compact_rev)
{
    for (struct watcher *w = h->catching, *next; w; w = next) {
        next = w->catching_next;
        if (w->min_rev < compact_rev)
            cancel_compacted(h, w, compact_rev);
    }
}

/* The hub lagged, and what it was to read next is swept already: every live watcher that needs it is cancelled. In a
 * state that came from another member, replaced, any sweep may have begun. */
static int check_swept(struct hub *h, struct view *v, bool replaced)
{
    struct base_meta meta;
    int err;

    if (h->seen + 1 >= v->compact_rev)
        return 0;
    err = base_reader_meta(v->reader, &meta);
    if (err || (meta.swept <= h->seen + 1 && !replaced))
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
        if (w->progress_due && watcher_is_synced(h, w)) {
            struct response_head head = hub_head(h, h->seen);

            hub_say(s, w->id, &head);
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
            s->next_tick_ms = hub_tick_after(h, now_ms);
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

    watcher_leave(h, w);
    head.canceled = true;
    head.cancel_reason = err_info(ERR_DAMAGED).text;
    hub_say(w->stream, w->id, &head);
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
static int step_in_view(struct hub *h, struct view *v, struct mail *mail, bool replaced, bool *ret_again,
                        bool *ret_catching)
{
    int err = check_swept(h, v, replaced);

    if (err == 0)
        err = feed_live(h, v);
    if (err == -EUCLEAN)
        cancel_damaged_live(h);
    /* Requests are taken even when reading fails: a stream must be able to close. */
    hub_take_requests(h, mail, v->rev);
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
    if (err == -EUCLEAN)
        store_damaged(h->o.store, "read for a watch; watches that need it are cancelled");
    else if (err && err != h->last_err)
        log_error("hub: reading changes failed, trying again", LOG_STR("error", strerror(-err)));
    h->last_err = err;
}

uint64_t hub_step(struct hub *h)
{
    struct mail *mail = mailbox_take(&h->box);
    bool again = false, catching = false;
    uint64_t epoch, now_ms, deadline;
    struct view v;
    int err;

    h->step_number++;
    epoch = store_epoch(h->o.store); /* before the view: that one may already be of a newer state */
    err = view_open(h->o.store, h->slot, &v);
    if (err == 0) {
        err = step_in_view(h, &v, mail, store_epoch(h->o.store) != h->epoch, &again, &catching);
        h->epoch = epoch;
        view_close(&v);
    } else {
        hub_take_requests(h, mail, h->seen);
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
    hub_take_requests(h, mailbox_take(&h->box), h->seen); /* the closes that came after the stop */
    while (h->streams) /* of calls that were given up */
        hub_close_stream(h, h->streams);
    assert(h->root == NULL);
    slot_free(h->o.store, h->slot);
    batch_fini(&h->batch);
    free(h->ids);
    free(h);
}
