/* SPDX-License-Identifier: Apache-2.0 */
/* feed.c - the watch and what comes of it.
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
 * A batch: the raw events go to the streams; then, revision by revision, puts before deletes (so that a
 * directory in which one key replaces another does not vanish in between), each is applied to the tree, which
 * calls note_change() for what changes; then pairs become moves; then all is told.
 */
#include "feed.h"

#include <errno.h>

#include "tree_private.h"

enum feed_state { START, OPENING, WATCHING, PAUSED };

#define OWN_SLOTS FEED_OWN_REVS
_Static_assert((OWN_SLOTS & (OWN_SLOTS - 1)) == 0, "own revisions are found by their low bits");

/* A key with commits of ours under way. */
struct inflight {
    struct inflight *next;
    unsigned count;
    size_t len;
    uint8_t key[];
};

/* A change not told yet, or (held) told without its injection. */
struct pending {
    struct pending *next;
    struct change_event *ev;
    struct key_meta meta;
    bool reshaped;
    struct inflight *inflight;
};

/* A message that came while the feed was held. */
struct kept {
    struct kept *next;
    Etcdserverpb__WatchResponse *batch;
};

struct feed {
    struct tree *tree;
    struct client *client;
    struct feed_sink sink;
    enum feed_state state;
    bool after_gap, was_ready, in_batch;
    int64_t next_rev, retry_ms, open_until_ms;
    int64_t created_ms; /* when the watch came to stand */
    struct client_call start_call;
    struct client_stream stream;
    struct pending *pending, **pending_end;
    struct pending *held, **held_end;
    struct inflight *inflight;
    bool holding;
    struct kept *kept, **kept_end;
    size_t kept_bytes;
    int64_t own[OWN_SLOTS];
    struct feed_stats stats;
};

static void deliver(struct feed *f);

/* ---- own commits ---------------------------------------------------------------------- */

static bool is_own_rev(const struct feed *f, int64_t rev)
{
    return f->own[rev & (OWN_SLOTS - 1)] == rev;
}

static struct inflight *find_inflight(struct feed *f, struct slice key, bool is_dir)
{
    for (struct inflight *k = f->inflight; k; k = k->next) {
        struct slice s = slice_of(k->key, k->len);

        if (is_dir ? slice_has_prefix(s, key) : slice_eq(s, key))
            return k;
    }
    return NULL;
}

void feed_own_begin(struct feed *f, struct slice key)
{
    struct inflight *k = find_inflight(f, key, false);

    if (k) {
        k->count++;
        return;
    }
    k = malloc(sizeof *k + key.len);
    if (k == NULL)
        return; /* worst case: one of our own changes is injected */
    *k = (struct inflight){.next = f->inflight, .count = 1, .len = key.len};
    memcpy(k->key, key.ptr, key.len);
    f->inflight = k;
}

/* What was held back because of this key is ours and dropped, or injected now. */
static void release_held(struct feed *f, const struct inflight *k)
{
    struct pending **p = &f->held, *h;

    while ((h = *p)) {
        if (h->inflight != k) {
            p = &h->next;
            continue;
        }
        *p = h->next;
        if (h->ev && (is_own_rev(f, h->ev->rev) || f->sink.change == NULL))
            change_free(f->tree, h->ev);
        else if (h->ev)
            f->sink.change(f->sink.ctx, h->ev);
        free(h);
    }
    f->held_end = p;
}

void feed_own_end(struct feed *f, struct slice key, int64_t rev)
{
    struct inflight **p = &f->inflight, *k;

    if (rev > 0 && !is_own_rev(f, rev)) {
        f->own[rev & (OWN_SLOTS - 1)] = rev;
        f->stats.own++;
    }
    while ((k = *p) && !slice_eq(slice_of(k->key, k->len), key))
        p = &k->next;
    if (k == NULL || --k->count > 0)
        return;
    *p = k->next;
    release_held(f, k);
    free(k);
}

static bool maybe_own(void *ctx, struct slice key, int64_t rev)
{
    struct feed *f = ctx;

    return is_own_rev(f, rev) || find_inflight(f, key, false);
}

/* ---- change events ----------------------------------------------------------------------- */

void change_free(struct tree *t, struct change_event *ev)
{
    if (ev == NULL)
        return;
    node_unref(t, ev->dir);
    node_unref(t, ev->node);
    node_unref(t, ev->from_dir);
    node_unref(t, ev->from_node);
    free(ev->path);
    free(ev->from_path);
    free(ev);
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static struct change_event *change_new(const struct tree_change *c)
{
    struct change_event *ev = calloc(1, sizeof *ev);

    if (ev == NULL)
        return NULL;
    ev->path = node_path(c->node);
    if (ev->path == NULL) {
        free(ev);
        return NULL;
    }
    ev->name = last_part(ev->path);
    ev->kind = c->kind;
    ev->rev = c->rev;
    ev->size = c->meta.size;
    ev->dir = node_ref(c->dir);
    ev->node = node_ref(c->node);
    ev->dir_id = c->dir->nodeid;
    ev->node_id = c->node->nodeid;
    ev->ino = c->node->ino;
    return ev;
}

static struct change_event *change_copy(const struct change_event *ev)
{
    struct change_event *copy = calloc(1, sizeof *copy);

    if (copy == NULL)
        return NULL;
    *copy = *ev;
    copy->next = NULL;
    copy->path = strdup(ev->path);
    copy->from_path = ev->from_path ? strdup(ev->from_path) : NULL;
    if (copy->path == NULL || (ev->from_path && copy->from_path == NULL)) {
        free(copy->path);
        free(copy->from_path);
        free(copy);
        return NULL;
    }
    copy->name = last_part(copy->path);
    copy->from_name = copy->from_path ? last_part(copy->from_path) : NULL;
    node_ref(copy->dir);
    node_ref(copy->node);
    node_ref(copy->from_dir);
    node_ref(copy->from_node);
    return copy;
}

/* The commit of ours that may be behind a change of this node. */
static struct inflight *inflight_of(struct feed *f, const struct node *n)
{
    struct inflight *k;
    uint8_t *key;
    size_t len;

    if (f->inflight == NULL || node_key(f->tree, n, &key, &len) < 0)
        return NULL;
    k = find_inflight(f, slice_of(key, len), n->kind == NODE_DIR);
    free(key);
    return k;
}

/* The tree calls this for each change it makes for the watch. */
static void note_change(void *ctx, const struct tree_change *c)
{
    struct feed *f = ctx;
    struct pending *p;

    if (f->sink.change == NULL)
        return;
    p = calloc(1, sizeof *p);
    if (p == NULL)
        return;
    p->ev = change_new(c);
    if (p->ev == NULL) {
        free(p);
        return;
    }
    p->meta = c->meta;
    p->reshaped = c->reshaped;
    p->ev->flags = CHANGE_INVALIDATE | (c->is_dir ? CHANGE_DIR : 0) | (c->gap ? CHANGE_GAP : 0);
    if (c->silent || is_own_rev(f, c->rev)) {
        p->ev->flags |= CHANGE_OWN;
    } else {
        p->ev->flags |= CHANGE_INJECT;
        p->inflight = inflight_of(f, c->node);
    }
    *f->pending_end = p;
    f->pending_end = &p->next;
}

static void settled(void *ctx)
{
    struct feed *f = ctx;

    if (!f->in_batch)
        deliver(f);
}

/* ---- moves ----------------------------------------------------------------------------------- */

/* A put of a file, not yet the end of a move. */
static bool is_made(const struct pending *p)
{
    return p->ev && !p->reshaped && !(p->ev->flags & (CHANGE_DIR | CHANGE_GAP)) &&
           (p->ev->kind == CHANGE_CREATE || p->ev->kind == CHANGE_MODIFY);
}

static bool is_pair(const struct pending *gone, const struct pending *made)
{
    return is_made(made) && made->ev->rev == gone->ev->rev && made->ev->node != gone->ev->node &&
           made->meta.size == gone->meta.size && made->meta.hash == gone->meta.hash &&
           made->meta.lease == gone->meta.lease;
}

static void make_move(struct pending *gone, struct pending *made)
{
    struct change_event *to = made->ev, *from = gone->ev;

    to->flags |= to->kind == CHANGE_MODIFY ? CHANGE_REPLACED : 0;
    to->kind = CHANGE_MOVE;
    to->from_dir_id = from->dir_id;
    to->from_id = from->node_id;
    to->from_path = from->path;
    to->from_name = from->name;
    to->from_dir = from->dir;
    to->from_node = from->node;
    free(from);
    gone->ev = NULL;
}

/* Among the changes of one revision (from *first on): a deleted file and a put of the same bytes are one
 * move. A renamed directory has both in the same order: then the first put left is the one. */
static void pair_moves(struct pending *first)
{
    struct pending *left = first;

    for (struct pending *gone = first; gone; gone = gone->next) {
        if (gone->ev == NULL || gone->reshaped || gone->ev->kind != CHANGE_DELETE ||
            gone->ev->flags & (CHANGE_DIR | CHANGE_GAP))
            continue;
        while (left && !is_made(left))
            left = left->next;
        for (struct pending *made = left; made; made = made->next)
            if (is_pair(gone, made)) {
                make_move(gone, made);
                break;
            }
    }
}

/* ---- telling ----------------------------------------------------------------------------------- */

/* A commit of ours may be behind it: invalidate now, inject when that is known. */
static void hold_injection(struct feed *f, struct pending *p)
{
    p->ev = change_copy(p->ev);
    if (p->ev == NULL) {
        free(p);
        return;
    }
    p->ev->flags &= ~(unsigned)CHANGE_INVALIDATE;
    p->next = NULL;
    *f->held_end = p;
    f->held_end = &p->next;
}

static bool is_inflight(const struct feed *f, const struct inflight *k)
{
    for (const struct inflight *i = f->inflight; i; i = i->next)
        if (i == k)
            return true;
    return false;
}

static void deliver(struct feed *f)
{
    struct pending *p = f->pending, *next;
    int64_t rev = f->stats.rev;

    f->pending = NULL;
    f->pending_end = &f->pending;
    for (; p; p = next) {
        struct change_event *ev = p->ev;

        next = p->next;
        if (ev == NULL) {
            free(p);
            continue;
        }
        f->stats.changes++;
        if (p->inflight && is_inflight(f, p->inflight)) {
            hold_injection(f, p);
            ev->flags &= ~(unsigned)CHANGE_INJECT;
        } else {
            free(p);
        }
        f->sink.change(f->sink.ctx, ev);
    }
    if (f->sink.batch_end)
        f->sink.batch_end(f->sink.ctx, rev);
}

/* ---- a batch --------------------------------------------------------------------------------------- */

static void key_change_of(const Mvccpb__Event *e, struct key_change *ret_kc)
{
    const Mvccpb__KeyValue *kv = e->kv;

    *ret_kc = (struct key_change){.key = slice_of(kv->key.data, kv->key.len)};
    if (e->type == MVCCPB__EVENT__EVENT_TYPE__DELETE) {
        ret_kc->is_delete = true;
        ret_kc->meta.mod_rev = kv->mod_revision;
    } else {
        ret_kc->bytes = slice_of(kv->value.data ? kv->value.data : (uint8_t *)"", kv->value.len);
        meta_of(kv, &ret_kc->meta);
    }
}

static void tell_key(struct feed *f, const struct key_change *kc)
{
    const struct key_event ev = {
        .is_delete = kc->is_delete, .key = kc->key, .value = kc->bytes, .meta = kc->meta};

    f->stats.events++;
    if (f->sink.key_event)
        f->sink.key_event(f->sink.ctx, &ev);
}

/* A nested transaction can put a key and delete it again in one revision: then the order counts. */
static int by_key(const void *a, const void *b)
{
    const Mvccpb__KeyValue *x = (*(Mvccpb__Event *const *)a)->kv, *y = (*(Mvccpb__Event *const *)b)->kv;

    return slice_cmp(slice_of(x->key.data, x->key.len), slice_of(y->key.data, y->key.len));
}

static bool has_twice(Mvccpb__Event *const *events, size_t n)
{
    Mvccpb__Event **sorted = malloc(n * sizeof *sorted);
    bool twice = sorted == NULL; /* without memory, the order of the events will do */

    if (sorted) {
        memcpy(sorted, events, n * sizeof *sorted);
        qsort(sorted, n, sizeof *sorted, by_key);
    }
    for (size_t i = 1; i < n && !twice; i++)
        twice = by_key(&sorted[i - 1], &sorted[i]) == 0;
    free(sorted);
    return twice;
}

static void apply_where(struct feed *f, Mvccpb__Event *const *events, size_t n, int deletes)
{
    for (size_t i = 0; i < n; i++) {
        struct key_change kc;

        if (deletes >= 0 && (events[i]->type == MVCCPB__EVENT__EVENT_TYPE__DELETE) != deletes)
            continue;
        key_change_of(events[i], &kc);
        (void)tree_apply(f->tree, &kc, FROM_WATCH);
    }
}

/* All events of one revision. */
static void apply_revision(struct feed *f, Mvccpb__Event *const *events, size_t n)
{
    struct pending **first = f->pending_end;

    if (n > 1 && !has_twice(events, n)) {
        apply_where(f, events, n, 0);
        apply_where(f, events, n, 1);
    } else {
        apply_where(f, events, n, -1);
    }
    if (n > 1)
        pair_moves(*first);
    f->stats.rev = events[0]->kv->mod_revision;
    f->next_rev = f->stats.rev + 1;
}

void feed_apply(struct feed *f, const Etcdserverpb__WatchResponse *batch)
{
    size_t n = batch->n_events;

    if (n == 0)
        return;
    f->in_batch = true;
    for (size_t i = 0; i < n; i++) {
        struct key_change kc;

        key_change_of(batch->events[i], &kc);
        tell_key(f, &kc);
    }
    for (size_t i = 0, k; i < n; i = k) {
        for (k = i + 1; k < n && batch->events[k]->kv->mod_revision == batch->events[i]->kv->mod_revision;)
            k++;
        apply_revision(f, batch->events + i, k - i);
    }
    f->in_batch = false;
    tree_anchor(f->tree, f->stats.rev);
    tree_passed(f->tree, f->stats.rev);
    deliver(f);
}

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
    t->feed = f;
    t->changed = note_change;
    t->settled = settled;
    t->is_own = maybe_own;
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
