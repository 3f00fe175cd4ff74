/* SPDX-License-Identifier: Apache-2.0 */
/* tree_read.c - opening: the question for a value, who waits for it, and what its answer teaches.
 *
 * An open waits in a struct read; those of one node share it until it is sent, in tree_flush() at the end of
 * the loop's turn. Never later: an open may not take an answer that the server can have formed before the
 * open began.
 *
 * A Range with min_mod_revision = known + 1 answers "count 1, no key" when nothing changed: then the value in
 * memory is the current one. Without a value in memory the whole value is asked for.
 *
 * Waiting and its deadlines are here for the questions of tree_lookup.c too.
 *
 * Owner: the core thread.
 */
#include <errno.h>

#include "tree_private.h"

struct read {
    struct read *next; /* in t->unsent, then in t->sent */
    struct read **prev; /* in t->sent; NULL: not sent */
    struct tree *tree;
    struct node *node;   /* ref'd */
    struct value *known; /* what min_mod_revision was based on; NULL: the value was asked for */
    bool again;          /* its key has changed since it was sent */
    struct wait *waits;
    struct client_call call;
};

void meta_of(const Mvccpb__KeyValue *kv, struct key_meta *ret_meta)
{
    *ret_meta = (struct key_meta){.create_rev = kv->create_revision,
                                  .mod_rev = kv->mod_revision,
                                  .version = kv->version,
                                  .lease = kv->lease,
                                  .size = kv->value.len,
                                  .hash = value_hash(slice_of(kv->value.data, kv->value.len))};
}

/* ---- waiting ------------------------------------------------------------------------- */

static void wait_unlink(struct wait *w)
{
    if (w->prev) {
        *w->prev = w->next;
        if (w->next)
            w->next->prev = w->prev;
        w->prev = NULL;
    }
    if (w->all_prev) {
        *w->all_prev = w->all_next;
        if (w->all_next)
            w->all_next->all_prev = w->all_prev;
        w->all_prev = NULL;
    }
    if (w->lookup)
        lookup_leave(w);
}

void wait_add(struct tree *t, struct wait *w, struct wait **queue, int64_t default_ms)
{
    w->tree = t;
    if (w->deadline_ms == 0)
        w->deadline_ms = client_now_ms() + default_ms;
    if (t->next_deadline_ms == 0 || w->deadline_ms < t->next_deadline_ms)
        t->next_deadline_ms = w->deadline_ms;
    if (queue) {
        w->next = *queue;
        if (w->next)
            w->next->prev = &w->next;
        w->prev = queue;
        *queue = w;
    }
    w->all_next = t->waits;
    if (w->all_next)
        w->all_next->all_prev = &w->all_next;
    w->all_prev = &t->waits;
    t->waits = w;
}

void wait_finish(struct wait *w, int err)
{
    struct tree *t = w->tree;

    if (w->all_prev)
        wait_unlink(w);
    if (w->kind == WAIT_LOOKUP_LOAD && err == 0) {
        lookup_loaded(t, w);
        return;
    }
    free(w->name);
    w->name = NULL;
    w->done(w, err);
}

void wait_cancel(struct wait *w)
{
    wait_unlink(w);
    free(w->name);
    w->name = NULL;
}

bool tree_in_doubt(const struct tree *t)
{
    struct client_health h;

    if (t->client == NULL)
        return true;
    client_get_health(t->client, &h);
    return h.in_doubt;
}

/* ---- opening --------------------------------------------------------------------------------- */

static void answer_open(struct wait *w, struct value *v, bool moved, bool stale)
{
    w->node->read_ms = client_now_ms();
    w->node->read_rev = v->meta.mod_rev;
    w->value = value_ref(v);
    w->moved = moved;
    w->stale = stale;
    wait_finish(w, 0);
}

static void read_free(struct tree *t, struct read *r)
{
    if (r->prev) {
        *r->prev = r->next;
        if (r->next)
            r->next->prev = r->prev;
    }
    value_unref(r->known);
    node_unref(t, r->node);
    free(r);
}

/* All who wait for it, with a value or an error. */
static void read_finish(struct tree *t, struct read *r, struct value *v, int err, bool moved, bool stale)
{
    struct wait *w;

    if (v)
        node_touch_value(t, r->node);
    while ((w = r->waits)) {
        if (v)
            answer_open(w, v, moved, stale);
        else
            wait_finish(w, err);
    }
}

static struct value *learn_value(struct tree *t, struct read *r, const Mvccpb__KeyValue *kv)
{
    struct key_meta meta;
    struct value *v;

    meta_of(kv, &meta);
    v = value_new(slice_of(kv->value.data, kv->value.len), &meta);
    if (v)
        (void)tree_learn_put(t, slice_of(kv->key.data, kv->key.len), &meta, v, false);
    (void)r;
    return v;
}

static void read_succeeded(struct tree *t, struct read *r, const Etcdserverpb__RangeResponse *res)
{
    struct node *n = r->node;
    int64_t before = n->meta.mod_rev;
    struct value *v;

    if (res->count == 0) {
        uint8_t *key;
        size_t len;

        if (node_key(t, n, &key, &len) == 0) {
            tree_learn_delete(t, slice_of(key, len), res->header ? res->header->revision : 0, false);
            free(key);
        }
        read_finish(t, r, NULL, ESTALE, false, false);
        return;
    }
    v = res->n_kvs ? learn_value(t, r, res->kvs[0]) : value_ref(r->known);
    if (n->value && v && n->value->meta.mod_rev > v->meta.mod_rev) { /* the watch was quicker */
        value_unref(v);
        v = value_ref(n->value);
    }
    /* Its key is shown elsewhere now (file and directory changed places): the kernel has to look again. */
    if (!n->present)
        read_finish(t, r, NULL, ESTALE, false, false);
    else
        read_finish(t, r, v, ENOMEM, n->meta.mod_rev != before, false);
    value_unref(v);
}

static bool read_post(struct tree *t, struct read *r);

static void read_answered(struct client_call *call)
{
    struct read *r = (struct read *)((char *)call - offsetof(struct read, call));
    struct tree *t = r->tree;
    int err = client_errno(call, CLIENT_USE_READ);

    t->n_reads--;
    if (r->again && read_post(t, r))
        return;
    if (r->again) { /* nobody waits, or no memory */
        read_finish(t, r, NULL, ENOMEM, false, false);
        read_free(t, r);
        return;
    }
    if (call->outcome == CLIENT_OK)
        read_succeeded(t, r, (const Etcdserverpb__RangeResponse *)call->reply);
    else if (r->node->value && t->mode != READ_STRICT && err == ETIMEDOUT)
        read_finish(t, r, r->node->value, 0, false, true);
    else
        read_finish(t, r, NULL, err, false, false);
    read_free(t, r);
}

/* False: nobody waits for it, or no memory. */
static bool read_post(struct tree *t, struct read *r)
{
    Etcdserverpb__RangeRequest req = ETCDSERVERPB__RANGE_REQUEST__INIT;
    uint8_t *key;
    size_t len;

    if (r->waits == NULL || node_key(t, r->node, &key, &len) < 0)
        return false;
    value_unref(r->known);
    r->known = value_ref(r->node->present ? r->node->value : NULL);
    r->again = false;
    req.key = (ProtobufCBinaryData){len, key};
    req.min_mod_revision = r->known ? r->known->meta.mod_rev + 1 : 0;
    t->n_reads++;
    r->call.done = read_answered;
    client_start(t->client, &r->call, CLIENT_RANGE, &req.base, 0);
    free(key);
    return true;
}

static void read_send(struct tree *t, struct read *r)
{
    r->node->unsent = NULL;
    if (!read_post(t, r)) {
        read_finish(t, r, NULL, ENOMEM, false, false);
        read_free(t, r);
        return;
    }
    r->next = t->sent;
    if (r->next)
        r->next->prev = &r->next;
    r->prev = &t->sent;
    t->sent = r;
}

void reads_moved(struct tree *t, const struct node *dir)
{
    for (struct read *r = t->sent; r; r = r->next)
        r->again |= node_is_below(r->node, dir);
    lookups_moved(t, dir);
}

void tree_open_read(struct tree *t, struct node *n, struct wait *w)
{
    struct read *r = n->unsent;

    w->kind = WAIT_OPEN;
    w->tree = t;
    w->node = n;
    if (n->kind == NODE_DIR) {
        wait_finish(w, EISDIR);
        return;
    }
    if (n->value && t->mode != READ_STRICT && tree_in_doubt(t)) {
        answer_open(w, n->value, false, true);
        return;
    }
    if (r == NULL) {
        r = calloc(1, sizeof *r);
        if (r == NULL) {
            wait_finish(w, ENOMEM);
            return;
        }
        r->tree = t;
        r->node = node_ref(n);
        n->unsent = r;
        *t->unsent_end = r;
        t->unsent_end = &r->next;
    }
    wait_add(t, w, &r->waits,
             n->value && t->mode != READ_STRICT ? READ_STALE_AFTER_MS : CLIENT_CALL_TIMEOUT_MS);
}

void tree_open_cached(struct tree *t, struct node *n, struct wait *w)
{
    if (n->kind == NODE_DIR || !n->present || n->value == NULL) {
        tree_open_read(t, n, w);
        return;
    }
    w->kind = WAIT_OPEN;
    w->tree = t;
    w->node = n;
    node_touch_value(t, n);
    answer_open(w, n->value, false, false);
}

void tree_flush(struct tree *t)
{
    while (t->unsent && t->n_reads < READ_CALLS_MAX) {
        struct read *r = t->unsent;

        t->unsent = r->next;
        if (t->unsent == NULL)
            t->unsent_end = &t->unsent;
        read_send(t, r);
    }
    tree_bury(t);
    if (t->n_nodes > TREE_NODES_MAX && client_now_ms() >= t->unload_ms) {
        t->unload_ms = client_now_ms() + TREE_UNLOAD_LOOK_MS;
        tree_unload(t, TREE_NODES_MAX / 4 * 3);
    }
}

/* ---- deadlines ---------------------------------------------------------------------------------- */

static void wait_expired(struct tree *t, struct wait *w)
{
    struct node *n = w->node;

    if (w->kind == WAIT_OPEN)
        client_suspect(t->client); /* so that the next ones need not wait as long */
    if (w->kind == WAIT_OPEN && n->value && t->mode != READ_STRICT)
        answer_open(w, n->value, false, true);
    else
        wait_finish(w, w->kind == WAIT_LOOKUP ? ENOENT : ETIMEDOUT);
}

int64_t tree_deadline_ms(const struct tree *t)
{
    int64_t load_ms = loads_deadline_ms(t);

    if (t->next_deadline_ms == 0 || (load_ms && load_ms < t->next_deadline_ms))
        return load_ms;
    return t->next_deadline_ms;
}

void tree_tick(struct tree *t, int64_t now_ms)
{
    struct wait *w, *due = NULL;

    load_tick(t);
    if (t->next_deadline_ms == 0 || now_ms < t->next_deadline_ms)
        return;
    /* Those due are answered one at a time, from the start of the list: an answer may change it anywhere. */
    do {
        due = NULL;
        t->next_deadline_ms = 0;
        for (w = t->waits; w; w = w->all_next) {
            if (w->deadline_ms <= now_ms)
                due = w;
            else if (t->next_deadline_ms == 0 || w->deadline_ms < t->next_deadline_ms)
                t->next_deadline_ms = w->deadline_ms;
        }
        if (due)
            wait_expired(t, due);
    } while (due);
}

/* The tree closes: nobody is told. */
void reads_close(struct tree *t)
{
    for (struct wait *w = t->waits, *next; w; w = next) {
        next = w->all_next;
        wait_cancel(w);
    }
    lookups_close(t);
    while (t->sent) {
        client_abandon(t->client, &t->sent->call);
        read_free(t, t->sent);
    }
    while (t->unsent) {
        struct read *r = t->unsent;

        t->unsent = r->next;
        r->node->unsent = NULL;
        read_free(t, r);
    }
}

void tree_set_mode(struct tree *t, enum read_mode mode)
{
    t->mode = mode;
}
