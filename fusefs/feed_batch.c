/* SPDX-License-Identifier: Apache-2.0 */
/* feed_batch.c - what one message of the watch does: to the tree, and to who is told of changes.
 *
 * A batch: the raw events go to the streams; then, revision by revision, puts before deletes (so that a
 * directory in which one key replaces another does not vanish in between), each is applied to the tree, which
 * calls note_change() for what changes; then pairs become moves; then all is told. What may be a commit of ours
 * is told without its injection until that is known.
 *
 * Owner:    the core thread.
 * Not here: where messages come from (feed.c).
 */
#include "feed_private.h"

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

void feed_attach(struct feed *f)
{
    f->tree->feed = f;
    f->tree->changed = note_change;
    f->tree->settled = settled;
    f->tree->is_own = maybe_own;
}
