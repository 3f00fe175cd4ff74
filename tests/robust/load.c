/* SPDX-License-Identifier: Apache-2.0 */
/* load.c - clients: each on a thread, with one member, one call at a time, chosen by the seed.
 *
 *     k/00 .. k/11    puts, deletes, transactions over them, reads of one and of all
 *     l/LEASE/0..2    keys of leases; only a lease's end deletes them
 *     r/NEW/0..3      directories that are renamed, to a name that nobody has used before
 *
 * Every value is unique ("CLIENT.NUMBER." and padding), so that who wrote what is always known. A transaction that
 * deletes also puts, for the same reason.
 */
#include "load.h"

enum { KEYS = 12, LEASES_KEPT = 8, CALL_MS_LEAST = 200, CALL_MS_MORE = 300, CALL_MS_MOST = 2700 };

struct client {
    struct load *load;
    struct caller caller;
    uint64_t seed;
    uint32_t number, member, values, leases, dirs;
    struct { int64_t id; uint32_t keys; } lease[LEASES_KEPT];
    Mvccpb__KeyValue last; /* something read not long ago: for comparisons; value is ours */
};

uint64_t draw(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed >> 11;
}

uint64_t below(uint64_t *seed, uint64_t n) { return draw(seed) % n; }

ProtobufCBinaryData bin(const void *p, size_t n)
{
    ProtobufCBinaryData b = {n, malloc(n + 1)};

    assert(b.data);
    memcpy(b.data, p, n);
    return b;
}

static void *message(const ProtobufCMessageDescriptor *d)
{
    ProtobufCMessage *m = malloc(d->sizeof_message);

    assert(m);
    protobuf_c_message_init(d, m);
    return m;
}

void saw(struct load *l, int64_t rev)
{
    int64_t old = atomic_load(&l->rev_seen);

    while (rev > old && !atomic_compare_exchange_weak(&l->rev_seen, &old, rev))
        ;
}

int64_t lease_id_new(int client, uint32_t n) { return (int64_t)client << 32 | n; }

/* ---- one call -------------------------------------------------------------------------------------- */

/* What says that a call was not done, and will not be. All else may have been, or may yet be. */
static bool is_refusal(int status, const char *text)
{
    switch (status) {
    case GRPC_STATUS_INVALID_ARGUMENT:
    case GRPC_STATUS_NOT_FOUND:
    case GRPC_STATUS_FAILED_PRECONDITION:
    case GRPC_STATUS_OUT_OF_RANGE:
    case GRPC_STATUS_RESOURCE_EXHAUSTED:
    case GRPC_STATUS_UNIMPLEMENTED: /* a rename, of an etcd */
        return true;
    default:
        return strstr(text, "failed to connect") != NULL;
    }
}

int load_call(struct load *l, struct caller *caller, int client, int member, enum rec_kind kind, ProtobufCMessage *req,
              int timeout_ms, struct rec *ret_rec)
{
    _Atomic uint32_t *incarnation = &l->cluster->members[member].incarnation;
    struct rec r = {.kind = kind, .client = (uint32_t)client, .member = (uint32_t)member, .req = req,
                    .incarnation = atomic_load(incarnation)};
    const Etcdserverpb__ResponseHeader *header;
    char text[CALL_TEXT];

    r.start_ns = now_ns();
    r.status = caller_ask(caller, rec_path(kind), req, rec_response(kind), timeout_ms, &r.resp, text);
    r.end_ns = now_ns();
    if (r.incarnation != atomic_load(incarnation) || r.incarnation % 2 == 0)
        r.incarnation = 0;
    r.outcome = r.status == 0 ? DONE : is_refusal(r.status, text) ? REFUSED : UNKNOWN;
    r.compacted = strstr(text, "has been compacted") != NULL;
    if (r.outcome == DONE)
        atomic_fetch_add(&l->done, 1);
    header = rec_header(&r);
    if (header)
        saw(l, header->revision);
    history_add(l->history, &r);
    if (ret_rec)
        *ret_rec = r;
    return r.status;
}

static int ask(struct client *c, enum rec_kind kind, void *req, struct rec *ret_rec)
{
    /* Mostly short: a stopped member then has calls before it that began after others went on without it. */
    int timeout_ms = CALL_MS_LEAST + (int)below(&c->seed, below(&c->seed, 3) ? CALL_MS_MORE : CALL_MS_MOST);

    return load_call(c->load, &c->caller, (int)c->number, (int)c->member, kind, req, timeout_ms, ret_rec);
}

/* ---- what is asked --------------------------------------------------------------------------------- */

static ProtobufCBinaryData key_n(uint64_t n)
{
    char key[8];

    return bin(key, (size_t)snprintf(key, sizeof key, "k/%02u", (unsigned)(n % KEYS)));
}

static ProtobufCBinaryData value_new(struct client *c)
{
    char value[4200];
    size_t n = (size_t)snprintf(value, 32, "%u.%u.", c->number, c->values++), pad = below(&c->seed, 100);

    if (below(&c->seed, 60) == 0)
        pad = 4000;
    memset(value + n, 'a' + (int)(c->values % 26), pad);
    return bin(value, n + pad);
}

static Etcdserverpb__PutRequest *new_put(struct client *c, ProtobufCBinaryData key)
{
    Etcdserverpb__PutRequest *put = message(&etcdserverpb__put_request__descriptor);

    put->key = key;
    put->value = value_new(c);
    put->prev_kv = below(&c->seed, 3) == 0;
    return put;
}

static Etcdserverpb__RangeRequest *new_range(struct client *c, bool all)
{
    Etcdserverpb__RangeRequest *r = message(&etcdserverpb__range_request__descriptor);

    r->key = all ? bin("k/", 2) : key_n(draw(&c->seed));
    if (all)
        r->range_end = bin("k0", 2);
    if (all && below(&c->seed, 3) == 0)
        r->limit = 1 + (int64_t)below(&c->seed, KEYS);
    r->count_only = all && below(&c->seed, 8) == 0;
    return r;
}

static void remember(struct client *c, const Mvccpb__KeyValue *kv)
{
    free(c->last.key.data);
    free(c->last.value.data);
    c->last = *kv;
    c->last.key = bin(kv->key.data, kv->key.len);
    c->last.value = bin(kv->value.data, kv->value.len);
}

static void do_put(struct client *c)
{
    (void)ask(c, REC_PUT, new_put(c, key_n(draw(&c->seed))), NULL);
}

static void do_delete(struct client *c)
{
    Etcdserverpb__DeleteRangeRequest *d = message(&etcdserverpb__delete_range_request__descriptor);

    d->key = key_n(draw(&c->seed));
    d->prev_kv = below(&c->seed, 2);
    (void)ask(c, REC_DELETE, d, NULL);
}

static void do_range(struct client *c)
{
    Etcdserverpb__RangeRequest *req = new_range(c, below(&c->seed, 3) == 0);
    uint64_t how = below(&c->seed, 10);
    struct rec r;

    req->serializable = how < 3;
    if (how == 3 && atomic_load(&c->load->rev_seen) > 300)
        req->revision = atomic_load(&c->load->rev_seen) - (int64_t)below(&c->seed, 300);
    if (ask(c, REC_RANGE, req, &r) == 0 && ((Etcdserverpb__RangeResponse *)r.resp)->n_kvs)
        remember(c, ((Etcdserverpb__RangeResponse *)r.resp)->kvs[0]);
}

static Etcdserverpb__Compare *new_compare(struct client *c)
{
    Etcdserverpb__Compare *m = message(&etcdserverpb__compare__descriptor);

    m->key = c->last.key.len ? bin(c->last.key.data, c->last.key.len) : key_n(draw(&c->seed));
    m->result = (int)below(&c->seed, 8) < 5 ? ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL
                                            : (Etcdserverpb__Compare__CompareResult)below(&c->seed, 4);
    switch (below(&c->seed, 5)) {
    case 0:
        m->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__VERSION;
        m->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION;
        m->version = c->last.version;
        break;
    case 1:
        m->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE;
        m->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION;
        m->create_revision = c->last.create_revision;
        break;
    case 2:
        m->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__LEASE;
        m->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_LEASE;
        m->lease = (int64_t)below(&c->seed, 2);
        break;
    case 3:
        m->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE;
        m->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VALUE;
        m->value = bin(c->last.value.data, c->last.value.len);
        break;
    default:
        m->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD;
        m->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION;
        m->mod_revision = c->last.mod_revision;
        break;
    }
    return m;
}

/* Up to two puts; then perhaps a delete of a part of the keys that none of them is in, and a read between them. */
static size_t new_ops(struct client *c, Etcdserverpb__RequestOp ***ret_ops)
{
    Etcdserverpb__RequestOp **ops = calloc(4, sizeof *ops);
    uint64_t at = below(&c->seed, KEYS);
    size_t n = 0, puts = 1 + below(&c->seed, 2);

    assert(ops);
    for (size_t i = 0; i < 4; i++)
        ops[i] = message(&etcdserverpb__request_op__descriptor);
    for (size_t i = 0; i < puts; i++, n++) {
        ops[n]->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
        ops[n]->request_put = new_put(c, key_n(at + i));
    }
    if (below(&c->seed, 2)) {
        ops[n]->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
        ops[n++]->request_range = new_range(c, below(&c->seed, 2));
    }
    if (below(&c->seed, 4) == 0) {
        Etcdserverpb__DeleteRangeRequest *d = message(&etcdserverpb__delete_range_request__descriptor);

        d->prev_kv = below(&c->seed, 2);
        if (at + 4 < KEYS && below(&c->seed, 2)) {
            d->key = key_n(at + 2);
            d->range_end = key_n(at + 4);
        } else {
            d->key = key_n(at + 5);
        }
        ops[n]->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
        ops[n++]->request_delete_range = d;
    }
    for (size_t i = n; i < 4; i++)
        free(ops[i]);
    *ret_ops = ops;
    return n;
}

static void do_txn(struct client *c)
{
    Etcdserverpb__TxnRequest *t = message(&etcdserverpb__txn_request__descriptor);

    t->n_compare = below(&c->seed, 3);
    t->compare = calloc(3, sizeof *t->compare);
    assert(t->compare);
    for (size_t i = 0; i < t->n_compare; i++)
        t->compare[i] = new_compare(c);
    t->n_success = new_ops(c, &t->success);
    if (below(&c->seed, 2))
        t->n_failure = new_ops(c, &t->failure);
    (void)ask(c, REC_TXN, t, NULL);
}

static void do_lease(struct client *c)
{
    size_t i = below(&c->seed, LEASES_KEPT);
    int64_t id = c->lease[i].id;
    uint64_t what = id ? 1 + below(&c->seed, 10) : 0;

    if (what == 0) {
        Etcdserverpb__LeaseGrantRequest *g = message(&etcdserverpb__lease_grant_request__descriptor);

        c->lease[i].id = g->id = lease_id_new((int)c->number, ++c->leases);
        c->lease[i].keys = 0;
        g->ttl = 2 + (int64_t)below(&c->seed, 3);
        if (ask(c, REC_GRANT, g, NULL) != 0)
            c->lease[i].id = 0;
    } else if (what == 1) {
        Etcdserverpb__LeaseRevokeRequest *r = message(&etcdserverpb__lease_revoke_request__descriptor);

        r->id = id;
        c->lease[i].id = 0;
        (void)ask(c, REC_REVOKE, r, NULL);
    } else if (what < 7) {
        Etcdserverpb__LeaseKeepAliveRequest *k = message(&etcdserverpb__lease_keep_alive_request__descriptor);
        struct rec r;

        k->id = id;
        if (ask(c, REC_KEEPALIVE, k, &r) == 0 && ((Etcdserverpb__LeaseKeepAliveResponse *)r.resp)->ttl <= 0)
            c->lease[i].id = 0;
    } else {
        char key[40];
        Etcdserverpb__PutRequest *put = new_put(c, bin(key, (size_t)snprintf(key, sizeof key, "l/%llx/%u",
                                                        (unsigned long long)id, (unsigned)below(&c->seed, 3))));

        put->lease = id;
        if (ask(c, REC_PUT, put, NULL) == GRPC_STATUS_NOT_FOUND)
            c->lease[i].id = 0;
    }
}

static void do_compact(struct client *c)
{
    int64_t most = atomic_load(&c->load->rev_witness) - (int64_t)below(&c->seed, 400);
    Etcdserverpb__CompactionRequest *r;

    if (most < 1)
        return;
    r = message(&etcdserverpb__compaction_request__descriptor);
    r->revision = most;
    r->physical = below(&c->seed, 4) == 0;
    (void)ask(c, REC_COMPACT, r, NULL);
}

/* The directory of a key, or its own new one. */
static ProtobufCBinaryData dir_of(struct client *c, const Mvccpb__KeyValue *kv)
{
    char name[40];
    const uint8_t *slash = kv ? memrchr(kv->key.data, '/', kv->key.len) : NULL;

    if (slash)
        return bin(kv->key.data, (size_t)(slash + 1 - kv->key.data));
    return bin(name, (size_t)snprintf(name, sizeof name, "r/%u.%u/", c->number, c->dirs++));
}

/* As at a mount: files come and go, and all of a directory is moved, if it is still as it was read. */
static void do_dir(struct client *c)
{
    Etcdserverpb__RangeRequest *all = message(&etcdserverpb__range_request__descriptor);
    const Etcdserverpb__RangeResponse *found;
    const Mvccpb__KeyValue *kv;
    uint64_t what = below(&c->seed, 10);
    struct rec r;

    all->key = bin("r/", 2);
    all->range_end = bin("r0", 2);
    if (ask(c, REC_RANGE, all, &r) != 0)
        return;
    found = (const void *)r.resp;
    kv = found->n_kvs ? found->kvs[below(&c->seed, found->n_kvs)] : NULL;
    if (kv == NULL || what < 5) {
        ProtobufCBinaryData dir = dir_of(c, found->n_kvs < 8 && what < 2 ? NULL : kv);
        char key[80];

        (void)ask(c, REC_PUT, new_put(c, bin(key, (size_t)snprintf(key, sizeof key, "%.*s%u", (int)dir.len, dir.data,
                                                                   (unsigned)below(&c->seed, 4)))), NULL);
        free(dir.data);
    } else if (what == 5) {
        Etcdserverpb__DeleteRangeRequest *d = message(&etcdserverpb__delete_range_request__descriptor);

        d->key = bin(kv->key.data, kv->key.len);
        (void)ask(c, REC_DELETE, d, NULL);
    } else {
        Cairn__RenameRequest *m = message(&cairn__rename_request__descriptor);

        m->from = dir_of(c, kv);
        m->to = dir_of(c, NULL);
        m->revision = found->header->revision - (int64_t)(below(&c->seed, 4) ? 0 : below(&c->seed, 50));
        (void)ask(c, REC_RENAME, m, NULL);
    }
}

static void *client_main(void *arg)
{
    struct worker *w = arg;
    struct load *l = w->load;
    struct client c = {.load = l, .number = (uint32_t)w->number};

    c.member = 1 + c.number % (uint32_t)l->cluster->n;
    c.seed = l->seed * 1000003 + (uint64_t)w->number * 7919 + 1;
    free(w);
    caller_open(&c.caller, l->cluster->members[c.member].address);
    while (!atomic_load(&l->stop)) {
        uint64_t done = atomic_load(&l->done), what = below(&c.seed, 100);

        if (what < 25)
            do_put(&c);
        else if (what < 32)
            do_delete(&c);
        else if (what < 48)
            do_txn(&c);
        else if (what < 56)
            do_dir(&c);
        else if (what < 80)
            do_range(&c);
        else if (what < 99)
            do_lease(&c);
        else if (below(&c.seed, 4) == 0)
            do_compact(&c);
        if (atomic_load(&l->done) == done) /* nobody gets anything: do not spin */
            pause_ms(20);
        pause_ms((int64_t)below(&c.seed, 2 * (uint64_t)l->rest_us) / 1000);
    }
    caller_close(&c.caller);
    free(c.last.key.data);
    free(c.last.value.data);
    return NULL;
}

/* ---- all of them ------------------------------------------------------------------------------------- */

static void spawn(struct load *l, pthread_t *thread, void *(*run)(void *), int number)
{
    struct worker *w = malloc(sizeof *w);
    int r;

    assert(w);
    *w = (struct worker){l, number};
    r = pthread_create(thread, NULL, run, w);
    assert(r == 0);
    (void)r;
}

void load_start(struct load *l)
{
    for (int i = 0; i < l->watchers; i++)
        spawn(l, &l->watch_threads[i], watcher_main, i);
    for (int i = 0; i < l->clients; i++)
        spawn(l, &l->client_threads[i], client_main, CLIENT_FIRST + i);
}

void load_stop_clients(struct load *l)
{
    atomic_store(&l->stop, true);
    for (int i = 0; i < l->clients; i++)
        (void)pthread_join(l->client_threads[i], NULL);
}

void load_stop_watchers(struct load *l)
{
    for (int i = 0; i < l->watchers; i++)
        (void)pthread_join(l->watch_threads[i], NULL);
}
