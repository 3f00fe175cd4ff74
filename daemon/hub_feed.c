/* SPDX-License-Identifier: Apache-2.0 */
/* hub_feed.c - reading changes by revision and handing them to the watchers they concern.
 *
 * A batch is a run of whole revisions [from, to], read in one view:
 *
 *   read        each change that lies in a watched range is encoded as an event, once, and noted with every group of
 *               watchers around its key; a change that nobody watches costs one descent of the index
 *   hand out    group by group. Live: each revision is a response of its own. Catching up: all events of the batch
 *               are one response. Watchers of a group that take the same get the same packet.
 *
 * A watcher's responses are in the order of revisions, since it belongs to one group; no revision is ever split
 * between two responses (but for fragments); a watcher whose stream is full is left exactly where it was: min_rev
 * names the first revision it has not been fed.
 *
 * Owner: the hub thread.
 */
#include <errno.h>
#include "err.h"
#include "hub_impl.h"

/* A record read back: its size was bounded when it was written, perhaps by another setting. */
#define ONE_VALUE_BYTES ((size_t)1 << 30)

/* ---- reading a batch --------------------------------------------------------------- */

static int grow(void **p, size_t *cap, size_t need, size_t size)
{
    size_t n = *cap ? *cap : 64;
    void *q;

    if (need <= *cap)
        return 0;
    while (n < need)
        n *= 2;
    q = realloc(*p, n * size);
    if (q == NULL)
        return -ENOMEM;
    *p = q;
    *cap = n;
    return 0;
}

static int buf_reserve(struct batch *b, size_t n)
{
    return grow((void **)&b->buf, &b->cap, b->len + n, 1);
}

struct reading {
    struct hub *hub;
    struct batch *batch;
    const struct change *change;
    bool wanted; /* by some group */
};

/* One group around the key of the change. */
static int note_group(void *ctx, struct watch_group *g)
{
    struct reading *r = ctx;
    size_t cap = g->cap_events;
    int err;

    if (r->batch->live ? g->n == g->n_catching : g->n_catching == 0)
        return 0;
    err = grow((void **)&g->events, &cap, g->n_events + 1, sizeof *g->events);
    g->cap_events = cap;
    if (err)
        return err;
    if (g->n_events == 0) {
        g->touched_next = r->batch->touched;
        r->batch->touched = g;
    }
    g->events[g->n_events++] = (uint32_t)r->batch->n_events;
    r->wanted = true;
    return 0;
}

static int add_event(struct batch *b, const struct change *c)
{
    struct batch_event *e;
    size_t len = event_size(c);
    int err = grow((void **)&b->events, &b->cap_events, b->n_events + 1, sizeof *b->events);

    if (err == 0)
        err = buf_reserve(b, len + c->key.len);
    if (err)
        return err;
    e = &b->events[b->n_events++];
    *e = (struct batch_event){.main = c->rev.main, .tombstone = c->tombstone,
                              .created = !c->tombstone && c->create_revision == c->rev.main,
                              .offset = b->len, .len = len};
    event_encode(c, b->buf + b->len);
    b->len += len;
    e->key_offset = b->len;
    e->key_len = c->key.len;
    memcpy(b->buf + b->len, c->key.ptr, c->key.len);
    b->len += c->key.len;
    return 0;
}

enum { BATCH_FULL = 1 };

static int read_change(void *ctx, const struct change *c)
{
    struct reading *r = ctx;
    struct batch *b = r->batch;
    int err;

    /* Full, but never inside a revision. */
    if (c->rev.main > b->to) {
        if (b->len >= LIMIT_WATCH_BATCH_BYTES || b->n_revs >= LIMIT_WATCH_BATCH_REVS ||
            b->n_changes >= LIMIT_WATCH_SCAN_CHANGES)
            return BATCH_FULL;
        b->to = c->rev.main;
    }
    b->n_changes++;
    r->wanted = false;
    err = ranges_find(r->hub->root, c->key, note_group, r, &r->hub->looked_at);
    if (err || !r->wanted)
        return err;
    if (b->n_events == 0 || b->events[b->n_events - 1].main != c->rev.main)
        b->n_revs++;
    return add_event(b, c);
}

/* Reads [from, limit] or the first part of it; b->to says how far it came. */
static int batch_read(struct hub *h, struct batch *b, int64_t from, int64_t limit)
{
    struct reading r = {.hub = h, .batch = b};
    int rc;

    b->from = from;
    b->to = from - 1;
    b->len = b->n_events = b->n_changes = b->n_revs = 0;
    b->touched = NULL;
    arena_init(&b->arena, ONE_VALUE_BYTES, NULL, 0);
    rc = view_log_scan(b->view, from, limit, &b->arena, read_change, &r);
    arena_fini(&b->arena);
    if (rc == 0)
        b->to = limit;
    return rc == BATCH_FULL ? 0 : rc;
}

static void batch_reset(struct batch *b)
{
    while (b->touched) {
        struct watch_group *g = b->touched;

        b->touched = g->touched_next;
        g->n_events = 0;
    }
    for (size_t i = 0; i < b->n_events; i++) {
        packet_unref(b->events[i].packet[0]);
        packet_unref(b->events[i].packet[1]);
    }
    b->n_events = 0;
    /* One huge revision must not cost memory for ever. */
    if (b->cap > 4 * LIMIT_WATCH_BATCH_BYTES) {
        free(b->buf);
        b->buf = NULL;
        b->cap = 0;
    }
}

void batch_fini(struct batch *b)
{
    free(b->buf);
    free(b->events);
}

/* ---- previous values ------------------------------------------------------------------ */

/* The event again, with its previous value. */
static int add_prev(struct batch *b, struct batch_event *e)
{
    struct change prev;
    struct arena a;
    int err;

    arena_init(&a, ONE_VALUE_BYTES, NULL, 0);
    err = view_get(b->view, slice_of(b->buf + e->key_offset, e->key_len), e->main - 1, 0, &a, &prev);
    if (err == ERR_KEY_NOT_FOUND) {
        e->prev = PREV_NONE;
        err = 0;
    } else if (err == 0) {
        e->prev_len = event_prev_size(slice_of(b->buf + e->offset, e->len), prev.body);
        err = buf_reserve(b, e->prev_len); /* may move buf */
        if (err == 0) {
            event_prev_encode(slice_of(b->buf + e->offset, e->len), prev.body, b->buf + b->len);
            e->prev_offset = b->len;
            b->len += e->prev_len;
            e->prev = PREV_SOME;
        }
    }
    arena_fini(&a);
    return err;
}

static int need_prev(struct batch *b, struct batch_event *e)
{
    if (e->prev != PREV_UNKNOWN)
        return 0;
    if (e->created || e->main - 1 < b->view->compact_rev) {
        e->prev = PREV_NONE;
        return 0;
    }
    return add_prev(b, e);
}

/* ---- packets ------------------------------------------------------------------------------ */

static bool passes(const struct watcher *w, const struct batch_event *e)
{
    return e->tombstone ? !w->no_delete : !w->no_put;
}

static struct slice event_bytes(const struct batch *b, const struct batch_event *e, bool prev)
{
    if (prev && e->prev == PREV_SOME)
        return slice_of(b->buf + e->prev_offset, e->prev_len);
    return slice_of(b->buf + e->offset, e->len);
}

/* The events of g in [first, end) that w takes, as one packet. ret_n 0: it takes none. */
static int pack(struct hub *h, const struct watch_group *g, size_t first, size_t end, const struct watcher *w,
                int64_t revision, bool fragment, struct packet **ret_packet, size_t *ret_n)
{
    struct batch *b = &h->batch;
    struct response_head head = hub_head(h, revision);
    size_t bytes = 0, n = 0;
    struct packet *p;
    uint8_t *at;

    for (size_t i = first; i < end; i++) {
        struct batch_event *e = &b->events[g->events[i]];
        int err = 0;

        if (!passes(w, e))
            continue;
        if (w->prev_kv)
            err = need_prev(b, e);
        if (err)
            return err;
        bytes += event_bytes(b, e, w->prev_kv).len;
        n++;
    }
    *ret_n = n;
    if (n == 0)
        return 0;
    head.fragment = fragment;
    p = packet_response(&head, bytes, &at);
    if (p == NULL)
        return -ENOMEM;
    for (size_t i = first; i < end; i++) {
        const struct batch_event *e = &b->events[g->events[i]];
        struct slice s = event_bytes(b, e, w->prev_kv);

        if (passes(w, e)) {
            memcpy(at, s.ptr, s.len);
            at += s.len;
        }
    }
    *ret_packet = p;
    return 0;
}

/* ---- handing out ----------------------------------------------------------------------------- */

/* What was packed last for a group: the next watcher mostly takes the same. */
struct packed {
    struct packet *packet; /* NULL with n 0: these watchers take nothing of it */
    uint32_t refs;         /* held and not yet given away: taken many at a time, as rpc threads give back meanwhile */
    size_t first, n;
    bool valid;
};

enum { PACKET_REFS = 4096 };

struct handing {
    struct packed by_variant[8]; /* prev_kv, no_put, no_delete */
};

static struct packed *variant_of(struct handing *hd, const struct watcher *w)
{
    return &hd->by_variant[w->prev_kv | w->no_put << 1 | w->no_delete << 2];
}

static void handing_fini(struct handing *hd)
{
    for (int i = 0; i < 8; i++)
        packet_unref_n(hd->by_variant[i].packet, hd->by_variant[i].refs);
    memset(hd, 0, sizeof *hd);
}

/* A single event goes to all groups in the same packet. */
static struct packet **shared_packet(struct batch *b, const struct watch_group *g, size_t first, size_t end,
                                     const struct watcher *w)
{
    return b->live && end == first + 1 ? &b->events[g->events[first]].packet[w->prev_kv] : NULL;
}

static int packed_for(struct hub *h, struct handing *hd, const struct watch_group *g, size_t first, size_t end,
                      const struct watcher *w, int64_t revision, struct packed **ret)
{
    struct packed *v = variant_of(hd, w);
    struct packet **shared = shared_packet(&h->batch, g, first, end, w), *p = NULL;
    size_t n = 1;
    int err = 0;

    *ret = v;
    if (v->valid && v->first == first)
        return 0;
    packet_unref_n(v->packet, v->refs);
    *v = (struct packed){0};
    if (shared && *shared && passes(w, &h->batch.events[g->events[first]])) {
        packet_ref(*shared, 1);
        p = *shared;
    } else {
        err = pack(h, g, first, end, w, revision, false, &p, &n);
    }
    if (err)
        return err;
    *v = (struct packed){.packet = p, .refs = p != NULL, .first = first, .n = n, .valid = true};
    if (shared && p && *shared == NULL) {
        packet_ref(p, 1);
        *shared = p;
    }
    return 0;
}

/* Bytes of the whole response for w, beside the events. */
static size_t frame_bytes(const struct batch *b, const struct watch_group *g, size_t first, size_t end,
                          const struct watcher *w, const struct packet *whole)
{
    uint8_t id[HUB_HEAD_BYTES];
    size_t events = 0;

    for (size_t i = first; i < end; i++) {
        const struct batch_event *e = &b->events[g->events[i]];

        events += passes(w, e) ? event_bytes(b, e, w->prev_kv).len : 0;
    }
    return whole->len - events + watch_id_encode(w->id, id);
}

/* Splits what is too large for one message: a fragment ends before the event that would make it so; one event is never
 * split. All of them go, or, on a full stream, none. */
static int hand_fragments(struct hub *h, const struct watch_group *g, size_t first, size_t end, struct watcher *w,
                          int64_t revision, const struct packet *whole, bool *ret_ok)
{
    struct batch *b = &h->batch;
    size_t frame = frame_bytes(b, g, first, end, w, whole) + 2; /* the fragment flag */

    *ret_ok = !stream_is_full(w->stream);
    for (size_t from = first, to; *ret_ok && from < end; from = to) {
        size_t bytes = frame, taken = 0, n;
        struct packet *p = NULL;
        int err;

        for (to = from; to < end; to++) {
            const struct batch_event *e = &b->events[g->events[to]];
            size_t len = passes(w, e) ? event_bytes(b, e, w->prev_kv).len : 0;

            if (len && taken && bytes + len >= h->o.fragment_bytes)
                break;
            bytes += len;
            taken += len != 0;
        }
        err = pack(h, g, from, to, w, revision, to < end, &p, &n);
        if (err)
            return err;
        if (p)
            *ret_ok = stream_push(w->stream, p, w->id, true);
    }
    return 0;
}

/* Gives w the events [first, end) of its group; false: refused, it has none of them. */
static int hand_to(struct hub *h, struct handing *hd, const struct watch_group *g, size_t first, size_t end,
                   struct watcher *w, int64_t revision, bool *ret_ok)
{
    uint8_t id[HUB_HEAD_BYTES];
    struct packed *v;
    int err = packed_for(h, hd, g, first, end, w, revision, &v);

    *ret_ok = true;
    if (err || v->n == 0)
        return err;
    if (w->fragment && v->n > 1 && v->packet->len + watch_id_encode(w->id, id) >= h->o.fragment_bytes) {
        err = hand_fragments(h, g, first, end, w, revision, v->packet, ret_ok);
        if (err)
            return err;
    } else {
        if (v->refs == 1) {
            packet_ref(v->packet, PACKET_REFS);
            v->refs += PACKET_REFS;
        }
        v->refs--;
        *ret_ok = stream_push(w->stream, v->packet, w->id, false);
    }
    if (*ret_ok) {
        w->progress_due = false;
        atomic_fetch_add_explicit(&h->events_sent, v->n, memory_order_relaxed);
    }
    return 0;
}

/* One revision's events of one group to its live watchers. */
static int hand_live(struct hub *h, struct watch_group *g, size_t first, size_t end)
{
    int64_t main = h->batch.events[g->events[first]].main;
    struct handing hd = {0};
    int err = 0;

    for (struct watcher *w = g->watchers, *next; w && err == 0; w = next) {
        bool ok = true;

        next = w->group_next; /* a refusal moves w to those catching up, but not out of its group */
        if (w->state != WATCHER_LIVE || w->min_rev > main)
            continue;
        err = hand_to(h, &hd, g, first, end, w, main, &ok);
        /* Noted at once: should a later watcher's turn fail, the batch is read again and w has this already. */
        w->min_rev = err || !ok ? main : main + 1;
        if (!ok)
            watcher_set_state(h, w, WATCHER_CATCHING);
    }
    handing_fini(&hd);
    return err;
}

static int hand_group_live(struct hub *h, struct watch_group *g)
{
    const struct batch_event *e = h->batch.events;
    int err = 0;

    for (size_t first = 0, end; first < g->n_events && err == 0; first = end) {
        for (end = first + 1; end < g->n_events && e[g->events[end]].main == e[g->events[first]].main;)
            end++;
        err = hand_live(h, g, first, end);
    }
    return err;
}

int feed_live(struct hub *h, struct view *v)
{
    struct batch *b = &h->batch;
    int err;

    if (v->rev <= h->seen)
        return 0;
    if (h->root == NULL) { /* nobody: nothing to read */
        h->seen = v->rev;
        return 0;
    }
    b->live = true;
    b->view = v;
    err = batch_read(h, b, h->seen + 1, v->rev);
    for (struct watch_group *g = b->touched; g && err == 0; g = g->touched_next)
        err = hand_group_live(h, g);
    if (err == 0)
        h->seen = b->to;
    batch_reset(b);
    return err;
}

/* ---- catching up --------------------------------------------------------------------------------- */

/* Where the next batch begins: upwards from where the last one ended, else from the lowest. -1: nobody can be fed. */
static int64_t catch_from(struct hub *h)
{
    int64_t above = INT64_MAX, lowest = INT64_MAX;

    for (struct watcher *w = h->catching; w; w = w->catching_next) {
        if (stream_is_full(w->stream))
            continue;
        if (w->min_rev < lowest)
            lowest = w->min_rev;
        if (w->min_rev >= h->catch_pos && w->min_rev < above)
            above = w->min_rev;
    }
    if (above != INT64_MAX)
        return above;
    return lowest != INT64_MAX ? lowest : -1;
}

static int hand_group_catching(struct hub *h, struct watch_group *g)
{
    const struct batch_event *e = h->batch.events;
    struct handing hd = {0};
    int err = 0;

    for (struct watcher *w = g->watchers; w && err == 0; w = w->group_next) {
        size_t first = 0;
        bool ok;

        if (!w->in_batch)
            continue;
        while (first < g->n_events && e[g->events[first]].main < w->min_rev)
            first++;
        if (first == g->n_events)
            continue;
        err = hand_to(h, &hd, g, first, g->n_events, w, h->seen, &ok);
        w->refused = err || !ok;
        if (!w->refused)
            w->min_rev = h->batch.to + 1; /* at once, as above */
    }
    handing_fini(&hd);
    return err;
}

/* Who was fed (or had nothing in it for him) goes on behind the batch; who is level with the live ones joins them. */
static void settle_catching(struct hub *h, int err)
{
    for (struct watcher *w = h->catching, *next; w; w = next) {
        next = w->catching_next;
        if (!w->in_batch)
            continue;
        w->in_batch = err != 0; /* left for the hub, which may tell who cannot be fed */
        if (w->refused)
            continue;
        if (err == 0 && w->min_rev <= h->batch.to)
            w->min_rev = h->batch.to + 1;
        if (w->min_rev > h->seen)
            watcher_set_state(h, w, WATCHER_LIVE);
    }
}

int feed_catching(struct hub *h, struct view *v, bool *ret_more)
{
    struct batch *b = &h->batch;
    int64_t from = h->catching ? catch_from(h) : -1;
    int err;

    *ret_more = false;
    if (from < 0)
        return 0;
    for (struct watcher *w = h->catching; w; w = w->catching_next) {
        w->in_batch = w->min_rev >= from && !stream_is_full(w->stream);
        w->refused = false;
    }
    b->live = false;
    b->view = v;
    assert(from <= h->seen); /* whoever needs nothing below it is live */
    err = batch_read(h, b, from, h->seen);
    for (struct watch_group *g = b->touched; g && err == 0; g = g->touched_next)
        err = hand_group_catching(h, g);
    settle_catching(h, err);
    h->catch_pos = b->to + 1;
    batch_reset(b);
    *ret_more = h->catching != NULL;
    return err;
}
