/* SPDX-License-Identifier: Apache-2.0 */
/* tree_lookup.c - entering a directory, and looking a name up in it (tree_read.h).
 *
 * A directory is listed before a name in it is looked up. A name that it then lacks is asked of the server, since the
 * watch may not have told of it yet: one transaction of two ranges, for the key and for whatever lies below it.
 *
 * Owner:    the core thread.
 * Not here: waiting and deadlines (tree_read.c), listing (tree_load.c).
 */
#include <errno.h>

#include "tree_private.h"

struct lookup {
    struct lookup *next, **prev; /* in t->lookups */
    struct tree *tree;
    struct node *dir; /* ref'd */
    struct wait *wait; /* NULL: nobody any more */
    uint8_t *key;
    size_t key_len;
    bool again; /* its directory was renamed since it was sent */
    struct client_call call;
    uint32_t name_len;
    char name[];
};

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

void tree_enter(struct tree *t, struct node *dir, struct wait *w)
{
    w->kind = WAIT_ENTER;
    w->node = dir;
    w->tree = t;
    dir->dir->used_ms = client_now_ms();
    if (!dir->present) {
        wait_finish(w, ENOENT);
    } else if (dir->dir->state == DIR_LOADED) {
        w->stale = tree_in_doubt(t);
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

    if (n || !dir->present || tree_in_doubt(t)) {
        w->kind = WAIT_LOOKUP;
        w->node = n;
        wait_finish(w, n ? 0 : ENOENT);
    } else {
        lookup_ask(t, dir, name, w);
    }
}

void lookup_loaded(struct tree *t, struct wait *w)
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

void lookup_leave(struct wait *w)
{
    w->lookup->wait = NULL;
    w->lookup = NULL;
}

void lookups_moved(struct tree *t, const struct node *dir)
{
    for (struct lookup *q = t->lookups; q; q = q->next)
        q->again |= node_is_below(q->dir, dir);
}

void lookups_close(struct tree *t)
{
    while (t->lookups) {
        client_abandon(t->client, &t->lookups->call);
        lookup_free(t, t->lookups);
    }
}
