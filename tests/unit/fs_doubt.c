/* SPDX-License-Identifier: Apache-2.0 */
/* fs_doubt.c - proves of changes whose answers are lost: who is told that it was done did it, once, and who is told
 * that it was not did not; several who want to be the only one are never told so twice; and what can be sent again is,
 * without waiting for the deadline. The server is a small model that carries requests out, loses them, answers or does
 * not, or does it much later, in any order. SEED=n picks the random numbers; ROUNDS=n how many of each kind. */
#include <errno.h>

#include "fusefs/ops.h"
#include "rpc.pb-c.h"

static int64_t now_ms;
static void model_start(struct client_call *call, enum client_method method, const ProtobufCMessage *req);
static void model_health(struct client_health *h);
static void timer_set(struct timer *t, uint64_t after_ms);
static void timer_clear(struct timer *t);

/* What a transaction asks of the rest of the mount. */
#define client_now_ms()                   now_ms
#define client_start(c, call, m, req, ms) ((void)(c), (void)(ms), model_start(call, m, req))
#define client_get_health(c, h)           model_health(h)
#define session_timer_set(s, t, ms)       timer_set(t, ms)
#define session_timer_clear(s, t)         timer_clear(t)
#define feed_own_begin(f, key)            ((void)(key))
#define feed_own_end(f, key, rev)         ((void)(key))
#define tree_learn_put(t, k, m, v, own)   ((void)(k), (void)(m), (struct node *)NULL)
#define tree_learn_delete(t, k, rev, own) ((void)(k), (void)(rev))
#include "../../fusefs/handle_doubt.c"
#include "../../fusefs/handle_txn.c"
#include "tap.h"

#define ACTORS    3
#define CALLS_MAX 64
#define LOSSY     2    /* so many requests of one transaction may be lost, and so many looks at its key ... */
#define LOSS_MS   200  /* ... which is noticed within so long */
#define PROMPT_MS 3000 /* and then it has ended by then */

enum kind { CREATE_ONLY, CREATE_ONLY_LEASED, CREATE, SAVE, CLAIM, CLAIM_ALIKE, MOVE_NOREPLACE, UNLINK, KINDS };

static const char *const kind_names[] = {"created by one only", "the same, with a lease", "created", "saved", "claimed by a rename",
                                         "claimed alike, not replacing", "renamed to one name, not replacing", "removed"};

static struct fs fs;
static uint64_t state;
static unsigned in_doubt[KINDS], done[KINDS];

static uint32_t dice(uint32_t n)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % n;
}

/* ---- the store ---------------------------------------------------------------------------------- */

struct change {
    int64_t rev, create_rev, version, lease;
    char key, value[4];
    bool gone;
};

static struct change history[256];
static unsigned n_history;
static int64_t revision, leases[64];
static unsigned n_leases;

/* What key holds at a revision; NULL: it is absent. */
static const struct change *store_at(char key, int64_t rev)
{
    for (unsigned i = n_history; i-- > 0;)
        if (history[i].key == key && history[i].rev <= rev)
            return history[i].gone ? NULL : &history[i];
    return NULL;
}

static void store_put(char key, const char *value, int64_t lease, int64_t rev)
{
    const struct change *old = store_at(key, rev);
    struct change c = {.rev = rev, .create_rev = old ? old->create_rev : rev, .version = old ? old->version + 1 : 1};

    REQUIRE(n_history < sizeof history / sizeof *history);
    c.key = key;
    c.lease = lease;
    snprintf(c.value, sizeof c.value, "%s", value);
    history[n_history++] = c;
}

static bool lease_exists(int64_t id)
{
    for (unsigned i = 0; i < n_leases; i++)
        if (leases[i] == id)
            return true;
    return false;
}

/* ---- who changes it ----------------------------------------------------------------------------- */

struct actor {
    char value[4];
    bool ended;
    int err;
    unsigned requests, looks, applied;
    int64_t began_ms, ended_ms, rev, applied_rev;
};
static struct actor actors[ACTORS];

static struct actor *actor_of(struct client_call *call)
{
    return ((struct txn *)((char *)call - offsetof(struct txn, call)))->arg;
}

static void actor_done(struct txn *t, void *arg, int err)
{
    struct actor *a = arg;

    CHECK(!a->ended);
    a->ended = true;
    a->err = err;
    a->rev = txn_rev(t);
    a->ended_ms = now_ms;
}

/* ---- the server ------------------------------------------------------------------------------------ */

/* A request on its way. call NULL: whoever sent it does not wait for it any more. */
struct request {
    struct client_call *call;
    struct actor *actor;
    enum client_method method;
    ProtobufCMessage *msg;
};
static struct request requests[CALLS_MAX];
static unsigned n_requests;

static void model_health(struct client_health *h)
{
    *h = (struct client_health){.connected = true, .last_revision = revision};
}

static void model_start(struct client_call *call, enum client_method method, const ProtobufCMessage *req)
{
    uint8_t *bytes = malloc(protobuf_c_message_get_packed_size(req) + 1);
    size_t n;

    REQUIRE(bytes && n_requests < CALLS_MAX);
    n = protobuf_c_message_pack(req, bytes);
    requests[n_requests++] = (struct request){
        .call = call,
        .actor = method == CLIENT_LEASE_REVOKE ? NULL : actor_of(call),
        .method = method,
        .msg = protobuf_c_message_unpack(req->descriptor, NULL, n, bytes),
    };
    free(bytes);
}

/* An answer, valid until the next one. */
static struct {
    Etcdserverpb__ResponseHeader header;
    Etcdserverpb__TxnResponse txn;
    Etcdserverpb__RangeResponse range[8];
    Etcdserverpb__ResponseOp op[8], *ops[8];
    Etcdserverpb__LeaseGrantResponse grant;
    Mvccpb__KeyValue kv[8], *kvs[8];
} answer;

static Etcdserverpb__RangeResponse *do_range(const Etcdserverpb__RangeRequest *r, size_t slot)
{
    const struct change *c = store_at((char)r->key.data[0], r->revision ? r->revision : revision);
    Etcdserverpb__RangeResponse *res = &answer.range[slot];
    Mvccpb__KeyValue *kv = &answer.kv[slot];

    etcdserverpb__range_response__init(res);
    res->header = &answer.header;
    if (c == NULL)
        return res;
    mvccpb__key_value__init(kv);
    kv->key = (ProtobufCBinaryData){1, (uint8_t *)&c->key};
    kv->value = (ProtobufCBinaryData){r->keys_only ? 0 : strlen(c->value), (uint8_t *)c->value};
    kv->create_revision = c->create_rev;
    kv->mod_revision = c->rev;
    kv->version = c->version;
    kv->lease = c->lease;
    answer.kvs[slot] = kv;
    res->kvs = &answer.kvs[slot];
    res->n_kvs = 1;
    return res;
}

static bool do_compare(const Etcdserverpb__Compare *c)
{
    const struct change *now = store_at((char)c->key.data[0], revision);
    bool create = c->target == ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE;
    int64_t is = now == NULL ? 0 : create ? now->create_rev : now->rev;
    int64_t wanted = create ? c->create_revision : c->mod_revision;

    return c->result == ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL     ? is == wanted
           : c->result == ETCDSERVERPB__COMPARE__COMPARE_RESULT__GREATER ? is > wanted
                                                                         : is < wanted;
}

/* False: refused for the lease. */
static bool do_txn(const Etcdserverpb__TxnRequest *t, struct actor *a)
{
    Etcdserverpb__RequestOp **ops;
    size_t n;

    etcdserverpb__txn_response__init(&answer.txn);
    answer.txn.header = &answer.header;
    answer.txn.succeeded = true;
    for (size_t i = 0; i < t->n_compare; i++)
        answer.txn.succeeded &= do_compare(t->compare[i]);
    ops = answer.txn.succeeded ? t->success : t->failure;
    n = answer.txn.succeeded ? t->n_success : t->n_failure;
    for (size_t i = 0; i < n; i++)
        if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT && ops[i]->request_put->lease &&
            !lease_exists(ops[i]->request_put->lease))
            return false;
    if (answer.txn.succeeded) {
        a->applied++;
        a->applied_rev = ++revision;
    }
    for (size_t i = 0; i < n; i++) {
        Etcdserverpb__ResponseOp *op = answer.ops[i] = &answer.op[i];

        etcdserverpb__response_op__init(op);
        if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE) {
            op->response_case = ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE;
            op->response_range = do_range(ops[i]->request_range, i);
        } else if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT) {
            const Etcdserverpb__PutRequest *p = ops[i]->request_put;
            char value[4] = "";

            if (p->value.len)
                memcpy(value, p->value.data, p->value.len);
            store_put((char)p->key.data[0], value, p->lease, revision);
        } else {
            history[n_history++] = (struct change){
                .rev = revision, .key = (char)ops[i]->request_delete_range->key.data[0], .gone = true};
        }
    }
    answer.txn.responses = answer.ops;
    answer.txn.n_responses = n;
    answer.header.revision = revision;
    return true;
}

/* Carries it out; the answer, or NULL with the reason. */
static ProtobufCMessage *serve(const struct request *q, enum err *ret_err)
{
    const Etcdserverpb__LeaseGrantRequest *grant = (const void *)q->msg;

    etcdserverpb__response_header__init(&answer.header);
    answer.header.revision = revision;
    switch ((int)q->method) {
    case CLIENT_RANGE:
        return &do_range((const void *)q->msg, 0)->base;
    case CLIENT_TXN:
        if (do_txn((const void *)q->msg, q->actor))
            return &answer.txn.base;
        *ret_err = ERR_LEASE_NOT_FOUND;
        return NULL;
    case CLIENT_LEASE_GRANT:
        if (lease_exists(grant->id)) {
            *ret_err = ERR_LEASE_EXISTS;
            return NULL;
        }
        REQUIRE(n_leases < sizeof leases / sizeof *leases);
        leases[n_leases++] = grant->id;
        etcdserverpb__lease_grant_response__init(&answer.grant);
        answer.grant.id = grant->id;
        return &answer.grant.base;
    default: /* CLIENT_LEASE_REVOKE */
        for (unsigned i = 0; i < n_leases; i++)
            if (leases[i] == ((const Etcdserverpb__LeaseRevokeRequest *)(const void *)q->msg)->id)
                leases[i] = 0;
        return NULL;
    }
}

static void tell(struct client_call *call, enum client_outcome outcome, enum err err, ProtobufCMessage *reply)
{
    call->outcome = outcome;
    call->err = err;
    call->reply = reply;
    call->done(call);
}

/* One request: carried out and answered, carried out, lost, or to be carried out later. */
static void request_step(void)
{
    unsigned i = dice(n_requests);
    struct request q = requests[i];
    bool loses = q.actor && dice(2) && (q.method == CLIENT_RANGE ? q.actor->looks : q.actor->requests) < LOSSY;
    bool served = q.call == NULL || !loses || dice(2);
    enum err err = ERR_NONE;
    ProtobufCMessage *reply = served ? serve(&q, &err) : NULL;

    if (q.actor && q.call)
        *(q.method == CLIENT_RANGE ? &q.actor->looks : &q.actor->requests) += 1;
    if (!served && dice(2)) {
        requests[i].call = NULL; /* it lies somewhere */
    } else {
        requests[i] = requests[--n_requests];
        protobuf_c_message_free_unpacked(q.msg, NULL);
    }
    now_ms += loses ? dice(LOSS_MS) : 1;
    if (q.call == NULL)
        return;
    if (loses)
        tell(q.call, CLIENT_UNKNOWN, ERR_NONE, NULL);
    else
        tell(q.call, reply ? CLIENT_OK : CLIENT_REFUSED, err, reply);
}

/* ---- time --------------------------------------------------------------------------------------------- */

static struct timer *timers[CALLS_MAX];
static unsigned n_timers;

static void timer_clear(struct timer *t)
{
    for (unsigned i = n_timers; i-- > 0;)
        if (timers[i] == t)
            timers[i] = timers[--n_timers];
}

static void timer_set(struct timer *t, uint64_t after_ms)
{
    timer_clear(t);
    REQUIRE(n_timers < CALLS_MAX);
    t->at_ms = (uint64_t)now_ms + after_ms;
    timers[n_timers++] = t;
}

static void timer_step(void)
{
    struct timer *first = timers[0];

    for (unsigned i = 1; i < n_timers; i++)
        if (timers[i]->at_ms < first->at_ms)
            first = timers[i];
    if ((int64_t)first->at_ms > now_ms)
        now_ms = (int64_t)first->at_ms;
    timer_clear(first);
    first->fire(first);
}

/* ---- one round ------------------------------------------------------------------------------------------ */

static void actor_start(enum kind kind, unsigned i)
{
    static const char *const names[] = {"a", "b", "c", "d"};
    struct actor *a = &actors[i];
    struct txn *t = txn_new(&fs, actor_done, a);
    struct slice from = slice_str(names[kind == MOVE_NOREPLACE ? i + 1 : 0]);
    struct slice to = slice_str(names[kind == MOVE_NOREPLACE ? 0 : kind == CLAIM ? i + 1 : 1]);
    const struct change *there = store_at((char)from.ptr[0], revision);
    struct value *v;

    REQUIRE(t != NULL);
    *a = (struct actor){.began_ms = now_ms};
    snprintf(a->value, sizeof a->value, kind == CREATE || kind == SAVE ? "v%u" : kind >= CLAIM ? "j" : "", i);
    v = value_new(slice_str(a->value), &(struct key_meta){0});
    REQUIRE(v != NULL);
    if (kind <= CREATE) {
        txn_compare(t, S("a"), SLICE_NONE, TXN_CREATE_REV, TXN_EQUAL, 0);
        txn_put(t, S("a"), v, 0);
        if (kind != CREATE)
            txn_exclusive(t);
        if (kind == CREATE_ONLY_LEASED)
            txn_new_lease(t, 60, KEEP_NONE);
        txn_look_on_failure(t, S("a"));
    } else {
        txn_compare(t, from, SLICE_NONE, TXN_MOD_REV, TXN_EQUAL, there ? there->rev : -1);
        if (kind == CLAIM_ALIKE || kind == MOVE_NOREPLACE) {
            txn_compare(t, to, SLICE_NONE, TXN_CREATE_REV, TXN_EQUAL, 0);
            txn_exclusive(t);
        }
        if (kind != UNLINK)
            txn_put(t, kind == SAVE ? from : to, v, 0);
        if (kind != SAVE)
            txn_delete(t, from);
    }
    value_unref(v);
    txn_run(t);
}

/* Is it all right that nobody knows? */
static bool may_doubt(enum kind kind, const struct actor *a)
{
    const struct change *c = store_at('a', revision);

    switch ((int)kind) {
    case CREATE_ONLY: /* whoever made it, it is there, and nothing else shows who did */
        return c && c->value[0] == 0 && c->version == 1;
    case CLAIM_ALIKE: /* the same of a rename */
        return c == NULL;
    case MOVE_NOREPLACE:
        return a->applied > 0;
    default:
        return false;
    }
}

static void actor_check(enum kind kind, const struct actor *a)
{
    done[kind]++;
    CHECK(a->ended);
    CHECK(a->applied <= 1);
    CHECK(a->ended_ms - a->began_ms < PROMPT_MS);
    if (a->err == 0 && kind != UNLINK) {
        CHECK(a->applied == 1);
        CHECK(a->rev == a->applied_rev);
    } else if (a->err == -1) {
        CHECK(a->applied == 0);
    } else if (a->err) {
        CHECK(a->err == ETIMEDOUT);
        CHECK(may_doubt(kind, a));
        in_doubt[kind]++;
    }
}

static void one_round(enum kind kind, uint64_t seed)
{
    unsigned n = 1 + dice(ACTORS), started = 0;
    int bad = tap_bad;

    n_history = n_leases = n_requests = n_timers = 0;
    revision = 10;
    store_put('z', "", 0, ++revision);
    if (kind == MOVE_NOREPLACE)
        for (const char *key = "bcd"; *key; key++)
            store_put(*key, "j", 0, ++revision);
    else if (kind >= SAVE)
        store_put('a', "j", 0, ++revision);
    while (started < n || n_requests || n_timers) {
        unsigned what = dice(6);

        if (started < n && (what == 0 || (n_requests == 0 && n_timers == 0)))
            actor_start(kind, started++);
        else if (n_requests && (what < 5 || n_timers == 0))
            request_step();
        else if (n_timers)
            timer_step();
        if ((kind == CREATE || kind == SAVE) && store_at('a', revision) && dice(20) == 0)
            store_put('a', "zz", 0, ++revision); /* others save, too */
    }
    for (unsigned i = 0; i < n; i++)
        actor_check(kind, &actors[i]);
    CHECK(fs.txns == NULL);
    if (tap_bad != bad)
        printf("# %s: SEED=%llu ROUNDS=1 shows it\n", kind_names[kind], (unsigned long long)seed);
}

static void rounds(enum kind kind)
{
    const char *n = getenv("ROUNDS");

    if (getenv("SEED"))
        state = strtoull(getenv("SEED"), NULL, 10);
    for (unsigned i = n ? (unsigned)atoi(n) : 3000; i > 0 && tap_bad < 10; i--)
        one_round(kind, state);
    printf("# %s: %u of %u in doubt\n", kind_names[kind], in_doubt[kind], done[kind]);
}

#define KIND(name, kind) \
    static void name(void) \
    { \
        rounds(kind); \
    }
KIND(created_by_one_only, CREATE_ONLY)
KIND(created_by_one_only_with_a_lease, CREATE_ONLY_LEASED)
KIND(created, CREATE)
KIND(saved, SAVE)
KIND(claimed_by_a_rename, CLAIM)
KIND(claimed_alike, CLAIM_ALIKE)
KIND(renamed_to_one_name, MOVE_NOREPLACE)
KIND(removed, UNLINK)

int main(void)
{
    const char *seed = getenv("SEED");
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    state = seed ? strtoull(seed, NULL, 10) : (uint64_t)ts.tv_nsec;
    printf("# SEED=%llu\n", (unsigned long long)state);
    fs.opt.timeout_ms = 10000;
    now_ms = 1000;
    TEST(created_by_one_only);
    TEST(created_by_one_only_with_a_lease);
    TEST(created);
    TEST(saved);
    TEST(claimed_by_a_rename);
    TEST(claimed_alike);
    TEST(renamed_to_one_name);
    TEST(removed);
    return tap_done();
}
