/* SPDX-License-Identifier: Apache-2.0 */
/* handle_txn.c - one change of the store (see handle_txn.h).
 *
 * One whose outcome is unknown is handed to handle_doubt.c, which finds out, or sends it again.
 *
 * After each put the transaction reads the key's metadata back (keys_only), so that version, lease and
 * create_revision are known without another question.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/random.h>

#include "handle_txn_private.h"

struct txn *txn_new(struct fs *fs, txn_done_fn *done, void *arg)
{
    struct txn *t = calloc(1, sizeof *t);

    if (t == NULL)
        return NULL;
    t->fs = fs;
    t->done = done;
    t->arg = arg;
    arena_init(&t->arena, TXN_ARENA_BYTES, NULL, 0);
    etcdserverpb__txn_request__init(&t->req);
    t->req.compare = t->compares;
    t->req.success = t->success;
    t->req.failure = t->failure;
    return t;
}

static void txn_free(struct txn *t)
{
    session_timer_clear(&t->fs->session, &t->timer);
    for (unsigned i = 0; i < t->n_puts; i++)
        value_unref(t->puts[i].value);
    for (unsigned i = 0; i < t->n_current; i++)
        value_unref(t->current[i]);
    arena_fini(&t->arena);
    free(t);
}

void txn_cancel(struct txn *t)
{
    if (t)
        txn_free(t);
}

/* ---- building ---------------------------------------------------------------------- */

static void *txn_alloc(struct txn *t, size_t n)
{
    void *p = arena_alloc(&t->arena, n);

    if (p == NULL)
        t->no_memory = true;
    return p;
}

static struct slice txn_copy(struct txn *t, struct slice s)
{
    struct slice copy = arena_copy(&t->arena, s);

    if (s.len && copy.ptr == NULL)
        t->no_memory = true;
    return copy;
}

void txn_compare(struct txn *t, struct slice key, struct slice end, enum txn_target target,
                 enum txn_test test, int64_t rev)
{
    Etcdserverpb__Compare *c = txn_alloc(t, sizeof *c);

    if (c == NULL || t->req.n_compare == sizeof t->compares / sizeof *t->compares) {
        t->no_memory = true;
        return;
    }
    etcdserverpb__compare__init(c);
    c->key = pb_of(txn_copy(t, key));
    c->range_end = pb_of(txn_copy(t, end));
    c->result = test == TXN_EQUAL     ? ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL
                : test == TXN_GREATER ? ETCDSERVERPB__COMPARE__COMPARE_RESULT__GREATER
                                      : ETCDSERVERPB__COMPARE__COMPARE_RESULT__LESS;
    if (target == TXN_CREATE_REV) {
        c->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE;
        c->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION;
        c->create_revision = rev;
    } else {
        c->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD;
        c->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION;
        c->mod_revision = rev;
    }
    t->compares[t->req.n_compare++] = c;
}

static Etcdserverpb__RequestOp *add_op(struct txn *t, bool on_success)
{
    Etcdserverpb__RequestOp *op = txn_alloc(t, sizeof *op);
    size_t *n = on_success ? &t->req.n_success : &t->req.n_failure;
    size_t room =
        on_success ? sizeof t->success / sizeof *t->success : sizeof t->failure / sizeof *t->failure;

    if (op == NULL || *n == room) {
        t->no_memory = true;
        return NULL;
    }
    etcdserverpb__request_op__init(op);
    (on_success ? t->success : t->failure)[(*n)++] = op;
    return op;
}

static void add_range(struct txn *t, struct slice key, bool on_success, bool keys_only)
{
    Etcdserverpb__RangeRequest *r = txn_alloc(t, sizeof *r);
    Etcdserverpb__RequestOp *op = r ? add_op(t, on_success) : NULL;

    if (op == NULL)
        return;
    etcdserverpb__range_request__init(r);
    r->key = pb_of(key);
    r->keys_only = keys_only;
    op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
    op->request_range = r;
}

static void put_add(struct txn *t, struct slice key, struct value *value, int64_t lease, bool fresh)
{
    Etcdserverpb__PutRequest *p = txn_alloc(t, sizeof *p);
    Etcdserverpb__RequestOp *op = p && t->n_puts < TXN_OPS_MAX ? add_op(t, true) : NULL;

    if (op == NULL) {
        t->no_memory = true;
        return;
    }
    key = txn_copy(t, key);
    etcdserverpb__put_request__init(p);
    p->key = pb_of(key);
    p->value = pb_of(slice_of(value->bytes, value->meta.size));
    p->ignore_lease = lease == TXN_IGNORE_LEASE;
    p->lease = p->ignore_lease ? 0 : lease;
    op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
    op->request_put = p;
    t->puts[t->n_puts++] =
        (struct put){.key = key, .value = value_ref(value), .fresh = fresh, .lease = lease};
    if (!fresh)
        add_range(t, key, true, true);
}

void txn_put(struct txn *t, struct slice key, struct value *value, int64_t lease)
{
    put_add(t, key, value, lease, false);
}

void txn_put_lease(struct txn *t, struct slice key, struct value *value, int64_t lease)
{
    Etcdserverpb__PutRequest *p;

    put_add(t, key, value, lease, false);
    if (t->no_memory)
        return;
    p = t->success[t->req.n_success - 2]->request_put; /* the metadata's range follows it */
    p->ignore_value = true;
    p->value = (ProtobufCBinaryData){0};
}

void txn_put_new(struct txn *t, struct slice key, struct value *value, int64_t lease)
{
    put_add(t, key, value, lease, true);
}

void txn_delete_range(struct txn *t, struct slice key, struct slice end)
{
    Etcdserverpb__DeleteRangeRequest *d = txn_alloc(t, sizeof *d);
    Etcdserverpb__RequestOp *op = d ? add_op(t, true) : NULL;

    if (op == NULL)
        return;
    etcdserverpb__delete_range_request__init(d);
    d->key = pb_of(txn_copy(t, key));
    d->range_end = pb_of(txn_copy(t, end));
    op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
    op->request_delete_range = d;
}

void txn_note_delete(struct txn *t, struct slice key)
{
    if (t->n_deletes == TXN_OPS_MAX)
        t->no_memory = true;
    else
        t->deletes[t->n_deletes++] = txn_copy(t, key);
}

void txn_delete(struct txn *t, struct slice key)
{
    txn_delete_range(t, key, SLICE_NONE);
    txn_note_delete(t, key);
}

void txn_read_on_failure(struct txn *t, struct slice key)
{
    add_range(t, txn_copy(t, key), false, false);
}

void txn_look_on_failure(struct txn *t, struct slice key)
{
    add_range(t, txn_copy(t, key), false, true);
    t->now_rev = -1;
}

void txn_new_lease(struct txn *t, int64_t ttl, enum keep_mode mode)
{
    t->new_ttl = ttl;
    t->keep = mode;
}

void txn_teaches_nothing(struct txn *t)
{
    t->teaches_nothing = true;
}

void txn_exclusive(struct txn *t)
{
    t->exclusive = true;
}

size_t txn_size(const struct txn *t)
{
    return protobuf_c_message_get_packed_size(&t->req.base);
}

/* ---- running --------------------------------------------------------------------------- */

static void tell_feed(struct txn *t, bool begin)
{
    if (begin == t->told_feed)
        return;
    t->told_feed = begin;
    for (unsigned i = 0; i < t->n_puts + t->n_deletes; i++) {
        struct slice key = i < t->n_puts ? t->puts[i].key : t->deletes[i - t->n_puts];

        if (begin)
            feed_own_begin(t->fs->feed, key);
        else
            feed_own_end(t->fs->feed, key, t->rev);
    }
}

static void revoked(struct client_call *call)
{
    free(call);
}

/* A lease that nothing came to hang on. */
static void revoke(struct fs *fs, int64_t lease)
{
    Etcdserverpb__LeaseRevokeRequest r = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;
    struct client_call *call = calloc(1, sizeof *call);

    if (call == NULL)
        return; /* it expires */
    r.id = lease;
    call->done = revoked;
    client_start(fs->client, call, CLIENT_LEASE_REVOKE, &r.base, 0);
}

/* Before any reply: the kernel may hold the old sizes. */
static void teach(struct txn *t)
{
    for (unsigned i = 0; i < t->n_deletes; i++)
        tree_learn_delete(t->fs->tree, t->deletes[i], t->rev, true);
    for (unsigned i = 0; i < t->n_puts; i++) {
        struct put *p = &t->puts[i];
        struct node *n;

        if (p->meta.mod_rev == 0)
            continue; /* the watch will tell */
        n = tree_learn_put(t->fs->tree, p->key, &p->meta, p->value, true);
        if (n && t->new_lease && p->lease == t->new_lease)
            (void)keep_set(t->fs->keeper, n, t->keep); /* too many: it expires */
        if (n && n->nlookup)
            notify_attributes(t->fs->notify, n->nodeid);
    }
}

void txn_finish(struct txn *t, int err)
{
    if (err == 0) {
        if (!t->teaches_nothing)
            teach(t);
        t->fs->nospace = false;
    } else
        t->rev = 0;
    if (err && err != ETIMEDOUT && t->new_lease)
        revoke(t->fs, t->new_lease);
    tell_feed(t, false);
    *t->prev = t->next;
    if (t->next)
        t->next->prev = t->prev;
    t->fs->commits_in_flight--;
    t->fs->n_commits += err == 0;
    t->fs->n_commits_failed += err > 0;
    t->done(t, t->arg, err);
    txn_free(t);
}

static void take_success(struct txn *t, const Etcdserverpb__TxnResponse *r)
{
    size_t at = 0;

    for (unsigned i = 0; i < t->n_puts; i++) {
        struct put *p = &t->puts[i];

        while (!p->fresh && at < r->n_responses &&
               r->responses[at]->response_case != ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE)
            at++;
        if (p->fresh)
            p->meta =
                (struct key_meta){.create_rev = t->rev, .mod_rev = t->rev, .version = 1, .lease = p->lease};
        else if (at < r->n_responses && r->responses[at]->response_range->n_kvs == 1)
            p->meta = meta_of(r->responses[at]->response_range->kvs[0]);
        at += !p->fresh;
        p->meta.size = p->value->meta.size;
        p->meta.hash = p->value->meta.hash;
        if (p->value->meta.mod_rev == 0)
            p->value->meta = p->meta; /* made for this commit: it is this revision's value from now on */
    }
}

static void take_failure(struct txn *t, const Etcdserverpb__TxnResponse *r)
{
    while (t->n_current) /* of an earlier attempt */
        value_unref(t->current[--t->n_current]);
    if (t->now_rev)
        t->now_rev = -1;
    for (size_t i = 0; i < r->n_responses && t->n_current < sizeof t->current / sizeof *t->current; i++) {
        const Etcdserverpb__ResponseOp *op = r->responses[i];
        struct value *v = NULL;

        if (op->response_case == ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE &&
            op->response_range->n_kvs == 1) {
            const Mvccpb__KeyValue *kv = op->response_range->kvs[0];
            struct key_meta meta = meta_of(kv);

            if (t->now_rev) { /* looked at only */
                t->now_rev = kv->mod_revision;
                return;
            }
            v = value_new(slice_of(kv->value.data, kv->value.len), &meta);
            if (v)
                (void)tree_learn_put(t->fs->tree, slice_of(kv->key.data, kv->key.len), &v->meta, v, false);
        }
        t->current[t->n_current++] = v;
    }
}

static void txn_send(struct gate *g, int err);

static void txn_answered(struct client_call *call)
{
    struct txn *t = (struct txn *)((char *)call - offsetof(struct txn, call));
    const Etcdserverpb__TxnResponse *r = (const void *)call->reply;

    if (call->outcome == CLIENT_OK && r->succeeded) {
        t->rev = r->header ? r->header->revision : 0;
        take_success(t, r);
        txn_finish(t, 0);
        return;
    }
    if (call->outcome == CLIENT_OK) {
        take_failure(t, r);
    } else {
        memcpy(t->text, call->text, sizeof t->text);
        t->fs->nospace |= call->err == ERR_NOSPACE;
    }
    if (call->outcome == CLIENT_UNKNOWN && (t->n_puts || t->n_deletes))
        doubt_settle(t);
    else if (t->sent_again && call->outcome == CLIENT_NOT_SENT)
        doubt_wait(t);
    else if (t->sent_again) /* perhaps it was we who changed it */
        doubt_refused(t, call->outcome == CLIENT_OK ? -1 : client_errno(call, CLIENT_USE_WRITE));
    else
        txn_finish(t, call->outcome == CLIENT_OK ? -1 : client_errno(call, CLIENT_USE_WRITE));
}

void txn_post(struct txn *t)
{
    int64_t left = t->deadline_ms - client_now_ms();
    int64_t attempt_ms = COMMIT_ATTEMPT_MS + (int64_t)(txn_size(t) / COMMIT_BYTES_PER_MS);

    if (left > attempt_ms && t->pin_key.ptr)
        left = attempt_ms;
    t->verdict = 0;
    /* One that must be the only one waits an election out where it is: there the answer will come, and what is read
     * elsewhere may not tell. */
    t->call = (struct client_call){.done = txn_answered, .impatient = t->pin_key.ptr != NULL && !t->exclusive};
    client_start(t->fs->client, &t->call, CLIENT_TXN, &t->req.base, left > 0 ? left : 1);
}

static void grant(struct txn *t);

static void grant_fire(struct timer *timer)
{
    grant((struct txn *)((char *)timer - offsetof(struct txn, timer)));
}

static void txn_granted(struct client_call *call)
{
    struct txn *t = (struct txn *)((char *)call - offsetof(struct txn, call));
    bool there = t->grants > 1 && call->err == ERR_LEASE_EXISTS; /* by the first request, then */

    if (call->outcome == CLIENT_UNKNOWN && client_now_ms() < t->deadline_ms) {
        t->timer.fire = grant_fire;
        session_timer_set(&t->fs->session, &t->timer, t->grants > 1 ? COMMIT_REREAD_MS : 0);
        return;
    }
    if (call->outcome != CLIENT_OK && !there) {
        memcpy(t->text, call->text, sizeof t->text);
        txn_finish(t, client_errno(call, CLIENT_USE_LEASE));
        return;
    }
    t->new_lease = t->lease_asked;
    for (size_t i = 0, k = 0; i < t->req.n_success; i++) {
        Etcdserverpb__RequestOp *op = t->success[i];

        if (op->request_case != ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT)
            continue;
        if (t->puts[k].lease == 0)
            op->request_put->lease = t->puts[k].lease = t->new_lease;
        k++;
    }
    txn_send(&t->gate, 0);
}

/* Its number is ours to choose, so that one whose grant is in doubt can be asked for again. */
static void grant(struct txn *t)
{
    Etcdserverpb__LeaseGrantRequest r = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;
    int64_t left = t->deadline_ms - client_now_ms();

    if (t->grants++ == 0 && getrandom(&t->lease_asked, sizeof t->lease_asked, 0) < 0)
        t->lease_asked = client_now_ms();
    t->lease_asked &= INT64_MAX;
    t->lease_asked |= t->lease_asked == 0;
    r.id = t->lease_asked;
    r.ttl = t->new_ttl;
    t->call = (struct client_call){.done = txn_granted, .impatient = true};
    client_start(t->fs->client, &t->call, CLIENT_LEASE_GRANT, &r.base,
                 left > COMMIT_ATTEMPT_MS ? COMMIT_ATTEMPT_MS : left > 0 ? left : 1);
}

static void txn_send(struct gate *g, int err)
{
    struct txn *t = (struct txn *)((char *)g - offsetof(struct txn, gate));
    struct client_health h;

    if (err == 0 && t->new_ttl && t->new_lease == 0) {
        grant(t);
        return;
    }
    if (err) {
        txn_finish(t, err);
        return;
    }
    client_get_health(t->fs->client, &h);
    t->before_rev = h.last_revision;
    tell_feed(t, true);
    doubt_find_pin(t);
    txn_post(t);
}

static void txn_no_memory(struct timer *timer)
{
    txn_finish((struct txn *)((char *)timer - offsetof(struct txn, timer)), ENOMEM);
}

static void txn_start(struct timer *timer)
{
    struct txn *t = (struct txn *)((char *)timer - offsetof(struct txn, timer));

    t->gate = (struct gate){.fs = t->fs, .done = txn_send};
    gate_pass(&t->gate, false);
}

void txn_run(struct txn *t)
{
    struct client_health h;

    t->fs->commits_in_flight++;
    t->next = t->fs->txns;
    if (t->next)
        t->next->prev = &t->next;
    t->prev = &t->fs->txns;
    t->fs->txns = t;
    t->deadline_ms = client_now_ms() + t->fs->opt.timeout_ms;
    client_get_health(t->fs->client, &h);
    if (t->no_memory || h.in_doubt) { /* may end at once: from the loop, never inside the caller */
        t->timer.fire = t->no_memory ? txn_no_memory : txn_start;
        session_timer_set(&t->fs->session, &t->timer, 0);
        return;
    }
    t->gate = (struct gate){.fs = t->fs};
    txn_send(&t->gate, 0);
}

int64_t txn_rev(const struct txn *t)
{
    return t->rev;
}

const struct key_meta *txn_put_meta(const struct txn *t, unsigned i)
{
    return i < t->n_puts && t->puts[i].meta.mod_rev ? &t->puts[i].meta : NULL;
}

struct value *txn_current(const struct txn *t, unsigned i)
{
    return i < t->n_current && t->current[i] ? value_ref(t->current[i]) : NULL;
}

int64_t txn_now_rev(const struct txn *t)
{
    return t->now_rev > 0 ? t->now_rev : 0;
}

const char *txn_text(const struct txn *t)
{
    return t->text;
}

bool txns_below(const struct fs *fs, struct slice prefix)
{
    for (const struct txn *t = fs->txns; t; t = t->next)
        for (unsigned i = 0; i < t->n_puts + t->n_deletes; i++) {
            struct slice key = i < t->n_puts ? t->puts[i].key : t->deletes[i - t->n_puts];

            if (key.len >= prefix.len && memcmp(key.ptr, prefix.ptr, prefix.len) == 0)
                return true;
        }
    return false;
}
