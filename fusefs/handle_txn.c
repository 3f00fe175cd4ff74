/* SPDX-License-Identifier: Apache-2.0 */
/* handle_txn.c - one change of the store (see handle_txn.h).
 *
 * A pin is a compare with the exact revision of a key that the transaction itself changes: such a transaction
 * can take effect once at most, however often it is sent. So when its outcome is unknown and the key still has
 * that revision, it is sent again. One without a pin never is: the first may still be on its way, and would
 * undo what others did meanwhile. That a key is absent is no pin: it can have been made and deleted since.
 * When others have changed the key since, ours can take effect no more; whether it had is seen by going back
 * through the key's revisions to the pin.
 *
 * After each put the transaction reads the key's metadata back (keys_only), so that version, lease and
 * create_revision are known without another question.
 */
#include "handle_txn.h"

#include <errno.h>
#include <stdio.h>

#include "ops.h"
#include "rpc.pb-c.h"

#define TXN_ARENA_BYTES (4u << 20) /* keys and messages of one transaction; values are elsewhere */

struct put {
    struct slice key;
    struct value *value;
    bool fresh; /* not read back: it did not exist before */
    int64_t lease;
    struct key_meta meta; /* mod_rev 0: not told */
};

struct txn {
    struct fs *fs;
    txn_done_fn *done;
    void *arg;
    struct arena arena;
    Etcdserverpb__TxnRequest req;
    Etcdserverpb__Compare *compares[TXN_OPS_MAX + 2];
    Etcdserverpb__RequestOp *success[2 * TXN_OPS_MAX + 2], *failure[TXN_OPS_MAX];
    struct put puts[TXN_OPS_MAX];
    struct slice deletes[TXN_OPS_MAX];
    unsigned n_puts, n_deletes;
    struct value *current[4];
    unsigned n_current;
    int64_t rev, lease_doubt;
    struct slice pin_key; /* ptr NULL: no pin */
    int64_t pin_rev, now_rev;
    int64_t past_rev;           /* its outcome is looked for at this revision; 0: at the newest */
    int64_t new_ttl, new_lease; /* 0: no lease of its own; not granted yet */
    enum keep_mode keep;
    bool no_memory, told_feed, sent_again, teaches_nothing;
    int64_t deadline_ms;
    struct gate gate;
    struct client_call call;
    struct timer reread;
    char text[CLIENT_TEXT_BYTES];
};

static ProtobufCBinaryData pb_of(struct slice s)
{
    return (ProtobufCBinaryData){s.len, (uint8_t *)s.ptr};
}

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
    session_timer_clear(&t->fs->session, &t->reread);
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

static void txn_finish(struct txn *t, int err)
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
    t->fs->commits_in_flight--;
    t->fs->n_commits += err == 0;
    t->fs->n_commits_failed += err > 0;
    t->done(t, t->arg, err);
    txn_free(t);
}

static struct key_meta meta_of(const Mvccpb__KeyValue *kv)
{
    return (struct key_meta){.create_rev = kv->create_revision,
                             .mod_rev = kv->mod_revision,
                             .version = kv->version,
                             .lease = kv->lease,
                             .size = kv->value.len};
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

/* ---- an unknown outcome ------------------------------------------------------------------- */

static void reread_done(struct client_call *call);
static void txn_answered(struct client_call *call);
static void txn_post(struct txn *t);
static void txn_send(struct gate *g, int err);

static struct put *put_of(struct txn *t, struct slice key)
{
    for (unsigned i = 0; i < t->n_puts; i++)
        if (slice_eq(t->puts[i].key, key))
            return &t->puts[i];
    return NULL;
}

static void reread_fire(struct timer *timer)
{
    struct txn *t = (struct txn *)((char *)timer - offsetof(struct txn, reread));
    Etcdserverpb__RangeRequest r = ETCDSERVERPB__RANGE_REQUEST__INIT;
    int64_t left = t->deadline_ms - client_now_ms();

    if (left <= 0) {
        txn_finish(t, ETIMEDOUT);
        return;
    }
    r.key = pb_of(t->pin_key.ptr ? t->pin_key : t->n_puts ? t->puts[0].key : t->deletes[0]);
    r.revision = t->past_rev;
    t->call = (struct client_call){.done = reread_done};
    client_start(t->fs->client, &t->call, CLIENT_RANGE, &r.base,
                 left > COMMIT_ATTEMPT_MS ? COMMIT_ATTEMPT_MS : left);
}

static bool put_happened(struct txn *t, struct put *p, const Mvccpb__KeyValue *kv)
{
    if (kv == NULL || kv->mod_revision <= t->lease_doubt ||
        !slice_eq(slice_of(kv->value.data, kv->value.len), slice_of(p->value->bytes, p->value->meta.size)))
        return false;
    p->meta = meta_of(kv);
    p->meta.hash = p->value->meta.hash;
    if (p->value->meta.mod_rev == 0)
        p->value->meta = p->meta;
    t->rev = kv->mod_revision;
    return true;
}

static void reread_in(struct txn *t, uint64_t ms)
{
    t->reread.fire = reread_fire;
    session_timer_set(&t->fs->session, &t->reread, ms);
}

/* The key that we put is not as it was pinned, and kv (NULL: absent) is not ours: what was there before? */
static void look_back(struct txn *t, const Mvccpb__KeyValue *kv)
{
    if (kv && kv->mod_revision > t->pin_rev) {
        t->past_rev = kv->mod_revision - 1;
        reread_in(t, 0);
    } else
        txn_finish(t, ETIMEDOUT); /* deleted since: nobody knows, and nobody will */
}

/* Did it happen? A put: the key holds our bytes with a revision that is news. A delete: the key is gone. If
 * not, and the pin holds, it may be sent once more. Once more too if the first change since the pin is of
 * others: only so that it fails in the usual way. */
static void reread_done(struct client_call *call)
{
    struct txn *t = (struct txn *)((char *)call - offsetof(struct txn, call));
    const Etcdserverpb__RangeResponse *r = call->outcome == CLIENT_OK ? (const void *)call->reply : NULL;
    const Mvccpb__KeyValue *kv = r && r->n_kvs == 1 ? r->kvs[0] : NULL;
    struct put *p = t->pin_key.ptr ? put_of(t, t->pin_key) : t->n_puts ? &t->puts[0] : NULL;
    bool happened = false;

    if (kv && t->pin_key.ptr && kv->mod_revision == t->pin_rev) {
        t->sent_again = t->past_rev == 0;
        t->past_rev = 0;
        txn_post(t);
        return;
    }
    if (r && p) {
        happened = put_happened(t, p, kv);
    } else if (r) {
        happened = kv == NULL;
        t->rev = happened && r->header ? r->header->revision : 0;
    }
    if (happened)
        txn_finish(t, 0);
    else if (r && p && t->pin_key.ptr)
        look_back(t, kv);
    else if (t->past_rev && call->outcome == CLIENT_REFUSED)
        txn_finish(t, ETIMEDOUT); /* compacted since */
    else
        reread_in(t, COMMIT_REREAD_MS);
}

static void txn_answered(struct client_call *call)
{
    struct txn *t = (struct txn *)((char *)call - offsetof(struct txn, call));
    const Etcdserverpb__TxnResponse *r = (const void *)call->reply;

    if (call->outcome == CLIENT_OK && !r->succeeded && t->sent_again) { /* perhaps it was we who changed it */
        reread_in(t, 0);
        return;
    }
    if (call->outcome == CLIENT_OK) {
        t->rev = r->header ? r->header->revision : 0;
        if (r->succeeded)
            take_success(t, r);
        else
            take_failure(t, r);
        txn_finish(t, r->succeeded ? 0 : -1);
        return;
    }
    memcpy(t->text, call->text, sizeof t->text);
    t->fs->nospace |= call->err == ERR_NOSPACE;
    if (call->outcome == CLIENT_UNKNOWN && (t->n_puts || t->n_deletes)) {
        reread_in(t, 0);
        return;
    }
    txn_finish(t, client_errno(call, CLIENT_USE_WRITE));
}

static bool changes_key(const struct txn *t, struct slice key)
{
    for (unsigned i = 0; i < t->n_puts + t->n_deletes; i++)
        if (slice_eq(key, i < t->n_puts ? t->puts[i].key : t->deletes[i - t->n_puts]))
            return true;
    return false;
}

static void find_pin(struct txn *t)
{
    for (size_t i = 0; i < t->req.n_compare && t->pin_key.ptr == NULL; i++) {
        const Etcdserverpb__Compare *c = t->compares[i];
        struct slice key = slice_of(c->key.data, c->key.len);

        if (c->result == ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL && c->range_end.len == 0 &&
            c->target == ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD && c->mod_revision > 0 &&
            changes_key(t, key)) {
            t->pin_key = key;
            t->pin_rev = c->mod_revision;
        }
    }
}

static void txn_post(struct txn *t)
{
    int64_t left = t->deadline_ms - client_now_ms();
    int64_t attempt_ms = COMMIT_ATTEMPT_MS + (int64_t)(txn_size(t) / COMMIT_BYTES_PER_MS);

    t->call = (struct client_call){.done = txn_answered, .impatient = t->pin_key.ptr != NULL};
    client_start(t->fs->client, &t->call, CLIENT_TXN, &t->req.base,
                 t->pin_key.ptr && left > attempt_ms ? attempt_ms : left);
}

static void txn_granted(struct client_call *call)
{
    struct txn *t = (struct txn *)((char *)call - offsetof(struct txn, call));

    if (call->outcome != CLIENT_OK) {
        memcpy(t->text, call->text, sizeof t->text);
        txn_finish(t, client_errno(call, CLIENT_USE_LEASE));
        return;
    }
    t->new_lease = ((const Etcdserverpb__LeaseGrantResponse *)call->reply)->id;
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

static void grant(struct txn *t)
{
    Etcdserverpb__LeaseGrantRequest r = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;

    r.ttl = t->new_ttl;
    t->call = (struct client_call){.done = txn_granted};
    client_start(t->fs->client, &t->call, CLIENT_LEASE_GRANT, &r.base, t->deadline_ms - client_now_ms());
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
    t->lease_doubt = h.last_revision;
    tell_feed(t, true);
    find_pin(t);
    txn_post(t);
}

static void txn_no_memory(struct timer *timer)
{
    txn_finish((struct txn *)((char *)timer - offsetof(struct txn, reread)), ENOMEM);
}

static void txn_start(struct timer *timer)
{
    struct txn *t = (struct txn *)((char *)timer - offsetof(struct txn, reread));

    t->gate = (struct gate){.fs = t->fs, .done = txn_send};
    gate_pass(&t->gate, false);
}

void txn_run(struct txn *t)
{
    struct client_health h;

    t->fs->commits_in_flight++;
    t->deadline_ms = client_now_ms() + t->fs->opt.timeout_ms;
    client_get_health(t->fs->client, &h);
    if (t->no_memory || h.in_doubt) { /* may end at once: from the loop, never inside the caller */
        t->reread.fire = t->no_memory ? txn_no_memory : txn_start;
        session_timer_set(&t->fs->session, &t->reread, 0);
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
