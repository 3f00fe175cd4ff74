/* SPDX-License-Identifier: Apache-2.0 */
/* tree_read.c - entering, looking up and opening: questions, who waits for them, and what the answers teach.
 *
 * An open waits in a struct read; those of one node share it until it is sent, in tree_flush() at the end of
 * the loop's turn. Never later: an open may not take an answer that the server can have formed before the
 * open began.
 *
 * A Range with min_mod_revision = known + 1 answers "count 1, no key" when nothing changed: then the value in
 * memory is the current one. Without a value in memory the whole value is asked for.
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

struct lookup {
    struct lookup *next, **prev; /* in t->lookups */
    struct tree *tree;
    struct node *dir; /* ref'd */
    struct wait *wait; /* NULL: nobody any more */
    uint8_t *key;
    size_t key_len;
    bool again; /* as of a read */
    struct client_call call;
    uint32_t name_len;
    char name[];
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
        w->lookup->wait = NULL;
    w->lookup = NULL;
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

static void lookup_loaded(struct tree *t, struct wait *w);

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

/* ---- entering --------------------------------------------------------------------------- */

/* Joins the listing of a directory that is not loaded, beginning it if need be. */
static void wait_for_load(struct tree *t, struct node *dir, struct wait *w)
{
    if (dir->dir->load == NULL)
        load_start(t, dir, LOAD_FIRST, 0);
    if (dir->dir->load == NULL) {
        w->tree = t;
        wait_finish(w, ENOMEM);
        return;
    }
    wait_add(t, w, load_waits(dir->dir->load), CLIENT_CALL_TIMEOUT_MS);
}

static bool in_doubt(const struct tree *t)
{
    struct client_health h;

    if (t->client == NULL)
        return true;
    client_get_health(t->client, &h);
    return h.in_doubt;
}

void tree_enter(struct tree *t, struct node *dir, struct wait *w)
{
    w->kind = WAIT_ENTER;
    w->node = dir;
    w->tree = t;
    dir->dir->used_ms = client_now_ms();
    if (!dir->present) {
        wait_finish(w, ENOENT);
    } else if (dir->dir->state == DIR_LOADED) {
        w->stale = in_doubt(t);
        wait_finish(w, 0);
    } else {
        wait_for_load(t, dir, w);
    }
}

/* ---- looking up ---------------------------------------------------------------------------- */

static void lookup_answered(struct client_call *call);

static void lookup_free(struct tree *t, struct lookup *q)
{
    *q->prev = q->next;
    if (q->next)
        q->next->prev = q->prev;
    node_unref(t, q->dir);
    free(q->key);
    free(q);
}

/* One transaction of two ranges: the key, and whether anything lies below it. */
static void lookup_send(struct tree *t, struct lookup *q)
{
    Etcdserverpb__RangeRequest ranges[2] = {ETCDSERVERPB__RANGE_REQUEST__INIT,
                                            ETCDSERVERPB__RANGE_REQUEST__INIT};
    Etcdserverpb__RequestOp ops[2] = {ETCDSERVERPB__REQUEST_OP__INIT, ETCDSERVERPB__REQUEST_OP__INIT};
    Etcdserverpb__RequestOp *list[2] = {&ops[0], &ops[1]};
    Etcdserverpb__TxnRequest txn = ETCDSERVERPB__TXN_REQUEST__INIT;
    uint8_t *low = malloc(2 * (q->key_len + 1)), *high = low + q->key_len + 1;

    if (low == NULL)
        abort();
    memcpy(low, q->key, q->key_len);
    memcpy(high, q->key, q->key_len);
    low[q->key_len] = '/';
    high[q->key_len] = '0';
    ranges[0].key = (ProtobufCBinaryData){q->key_len, q->key};
    ranges[1].key = (ProtobufCBinaryData){q->key_len + 1, low};
    ranges[1].range_end = (ProtobufCBinaryData){q->key_len + 1, high};
    ranges[1].limit = 1;
    ranges[1].keys_only = true;
    for (int i = 0; i < 2; i++) {
        ops[i].request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
        ops[i].request_range = &ranges[i];
    }
    txn.success = list;
    txn.n_success = slice_eq(slice_of(q->name, q->name_len), S(CODEC_VALUE_NAME)) ? 1 : 2;
    q->call.done = lookup_answered;
    q->call.reads_only = true;
    client_start(t->client, &q->call, CLIENT_TXN, &txn.base, 0);
    free(low);
}

static const Etcdserverpb__RangeResponse *range_of(const Etcdserverpb__TxnResponse *txn, size_t i)
{
    if (i >= txn->n_responses ||
        txn->responses[i]->response_case != ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE)
        return NULL;
    return txn->responses[i]->response_range;
}

static void lookup_learn(struct tree *t, struct lookup *q, const Etcdserverpb__TxnResponse *txn)
{
    const Etcdserverpb__RangeResponse *own = range_of(txn, 0), *below = range_of(txn, 1);
    struct key_change kc = {.key = slice_of(q->key, q->key_len)};

    if (!q->dir->present || q->dir->dir->state != DIR_LOADED || txn->header == NULL)
        return;
    if (own && own->n_kvs) {
        kc.bytes = slice_of(own->kvs[0]->value.data ? own->kvs[0]->value.data : (uint8_t *)"",
                            own->kvs[0]->value.len);
        meta_of(own->kvs[0], &kc.meta);
        (void)tree_apply(t, &kc, FROM_ANSWER);
    }
    if (below && below->count > 0 && below->n_kvs) {
        struct node *dir = q->dir;
        uint8_t *base;
        size_t base_len;

        if (node_key(t, dir, &base, &base_len) < 0)
            return;
        kc = (struct key_change){.key = slice_of(below->kvs[0]->key.data, below->kvs[0]->key.len),
                                 .meta.mod_rev = txn->header->revision};
        (void)tree_apply_in(t, dir, slice_of(kc.key.ptr + base_len, kc.key.len - base_len), &kc, FROM_ANSWER);
        free(base);
    }
}

/* Its directory was renamed meanwhile. */
static bool lookup_again(struct tree *t, struct lookup *q)
{
    uint8_t *key;
    size_t len;

    if (!q->again || q->wait == NULL ||
        node_child_key(t, q->dir, slice_of(q->name, q->name_len), false, &key, &len) < 0)
        return false;
    free(q->key);
    q->key = key;
    q->key_len = len;
    q->again = false;
    lookup_send(t, q);
    return true;
}

static void lookup_answered(struct client_call *call)
{
    struct lookup *q = (struct lookup *)((char *)call - offsetof(struct lookup, call));
    struct tree *t = q->tree;
    struct wait *w = q->wait;
    struct node *n;
    int err = ENOENT;

    if (lookup_again(t, q))
        return;
    if (call->outcome == CLIENT_OK && !q->again)
        lookup_learn(t, q, (const Etcdserverpb__TxnResponse *)call->reply);
    n = tree_child(t, q->dir, slice_of(q->name, q->name_len));
    if (w) {
        w->node = n;
        w->authoritative = call->outcome == CLIENT_OK;
        if (call->outcome == CLIENT_REFUSED && client_errno(call, CLIENT_USE_READ) == EACCES)
            err = EACCES;
        wait_finish(w, n ? 0 : err);
    }
    lookup_free(t, q);
}

/* The tree lacks the name: asks the server, for a short time, because LOOKUP holds its directory in the
 * kernel. */
static void lookup_ask(struct tree *t, struct node *dir, struct slice name, struct wait *w)
{
    struct lookup *q = calloc(1, sizeof *q + name.len + 1);

    if (q == NULL || node_child_key(t, dir, name, false, &q->key, &q->key_len) < 0) {
        free(q);
        wait_finish(w, ENOENT);
        return;
    }
    q->tree = t;
    q->dir = node_ref(dir);
    q->wait = w;
    q->name_len = (uint32_t)name.len;
    memcpy(q->name, name.ptr, name.len);
    w->kind = WAIT_LOOKUP;
    w->deadline_ms = client_now_ms() + READ_LOOKUP_MS;
    wait_add(t, w, NULL, 0);
    w->lookup = q;
    q->next = t->lookups;
    if (q->next)
        q->next->prev = &q->next;
    q->prev = &t->lookups;
    t->lookups = q;
    lookup_send(t, q);
}

static void lookup_in_loaded(struct tree *t, struct node *dir, struct slice name, struct wait *w)
{
    struct node *n = dir->present ? tree_child(t, dir, name) : NULL;

    if (n || !dir->present || in_doubt(t)) {
        w->kind = WAIT_LOOKUP;
        w->node = n;
        wait_finish(w, n ? 0 : ENOENT);
    } else {
        lookup_ask(t, dir, name, w);
    }
}

static void lookup_loaded(struct tree *t, struct wait *w)
{
    char *name = w->name;

    w->name = NULL;
    lookup_in_loaded(t, w->node, slice_str(name), w);
    free(name);
}

static bool is_nameable(const struct tree *t, const struct node *dir, struct slice name)
{
    uint8_t *buf;
    size_t len;
    int r;

    if (slice_eq(name, S(CODEC_VALUE_NAME)))
        return dir != t->root;
    buf = malloc(name.len + 1);
    r = buf ? codec_decode(name, dir == t->root, buf, &len) : -ENOMEM;
    free(buf);
    return r == 0;
}

void tree_lookup(struct tree *t, struct node *dir, struct slice name, struct wait *w)
{
    w->tree = t;
    w->node = dir;
    w->kind = WAIT_LOOKUP;
    dir->dir->used_ms = client_now_ms();
    if (name.len > t->cfg.name_max) {
        wait_finish(w, ENAMETOOLONG);
    } else if (!dir->present || !is_nameable(t, dir, name)) {
        wait_finish(w, ENOENT);
    } else if (dir->dir->state == DIR_LOADED) {
        lookup_in_loaded(t, dir, name, w);
    } else {
        w->name = strndup((const char *)name.ptr, name.len);
        w->kind = WAIT_LOOKUP_LOAD;
        if (w->name)
            wait_for_load(t, dir, w);
        else
            wait_finish(w, ENOMEM);
    }
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
    for (struct lookup *q = t->lookups; q; q = q->next)
        q->again |= node_is_below(q->dir, dir);
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
    if (n->value && t->mode != READ_STRICT && in_doubt(t)) {
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
    while (t->lookups) {
        client_abandon(t->client, &t->lookups->call);
        lookup_free(t, t->lookups);
    }
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
