/* SPDX-License-Identifier: Apache-2.0 */
/* kill9.c - a server is killed again and again under load; nothing it has acknowledged may be missing.
 *
 *     kill9 CAIRND DIRECTORY PORT KILLS
 *
 * Workers put, delete and write pairs of keys in transactions, some with leases, each on keys of its own and one call
 * at a time; others compact (half of them physically, which flushes and sweeps) and defragment. At a random moment the
 * server gets SIGKILL, now and then already while it starts. After each start:
 *
 *   - a key holds what was last acknowledged, with its revision and lease, or what was asked for last without an answer;
 *   - a transaction's two keys hold the same;
 *   - what was acknowledged at a revision is still read at that revision, unless compacted;
 *   - the revision is no lower than any that was ever answered, and a granted lease is there.
 *
 * SEED from the environment; printed.
 */
#include <errno.h>
#include <fcntl.h>
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "bytes.h"
#include "rpc.pb-c.h"

extern char **environ;

enum { WORKERS = 40, PAIRS = 4, NOTES = 400, LEASES = 200, VALUE_MAX = 6000, CALL_S = 30 };

static uint64_t seed;

static size_t below(size_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (size_t)((seed >> 11) % n);
}

static void die(const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    printf("not ok - ");
    vprintf(format, ap);
    printf("\n");
    va_end(ap);
    exit(1);
}

/* ---- what is known of the store ------------------------------------------------------------- */

struct state { uint64_t seq; int64_t rev, lease; }; /* seq 0: absent */

struct key {
    char name[32];
    struct state acked, asked; /* asked.seq: a write without an answer yet, or UINT64_MAX: a delete */
    bool waiting;              /* asked counts */
};

struct note { struct key *key; struct state at; }; /* acknowledged, to be read back at its revision */

static struct key keys[WORKERS][PAIRS][2];
static struct note notes[NOTES];
static size_t n_notes;
static int64_t leases[LEASES];
static size_t n_leases;
static int64_t revision_seen, compact_asked;
static uint64_t seq_next = 1, acked_writes, unknown_writes, kept_unknown;

static void saw(const Etcdserverpb__ResponseHeader *h)
{
    if (h && h->revision > revision_seen)
        revision_seen = h->revision;
}

static size_t value_of(uint64_t seq, uint8_t *dst)
{
    size_t n = 16 + (seq * 2654435761u >> 7) % (VALUE_MAX - 16);

    for (size_t i = 0; i < n; i++)
        dst[i] = (uint8_t)('a' + (seq + i) % 26);
    return (size_t)snprintf((char *)dst, 17, "%015llu", (unsigned long long)seq) == 15 ? n : 0;
}

/* ---- calls ---------------------------------------------------------------------------------- */

static grpc_completion_queue *cq;
static grpc_channel *channel;

struct rpc_call {
    grpc_call *call;
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *received;
    grpc_slice details;
    grpc_status_code status;
};

static gpr_timespec in_ms(int64_t ms)
{
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(ms, GPR_TIMESPAN));
}

static void call_start(struct rpc_call *c, const char *method, const ProtobufCMessage *req, bool wait_for_ready)
{
    size_t n = protobuf_c_message_get_packed_size(req);
    grpc_slice s = grpc_slice_malloc(n), m = grpc_slice_from_copied_string(method);
    grpc_byte_buffer *message;
    grpc_op ops[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA, .flags = wait_for_ready ? GRPC_INITIAL_METADATA_WAIT_FOR_READY : 0},
        {.op = GRPC_OP_SEND_MESSAGE},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
        {.op = GRPC_OP_RECV_INITIAL_METADATA, .data.recv_initial_metadata.recv_initial_metadata = &c->initial},
        {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &c->received},
        {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
         .data.recv_status_on_client = {.trailing_metadata = &c->trailing, .status = &c->status,
                                        .status_details = &c->details}},
    };

    protobuf_c_message_pack(req, GRPC_SLICE_START_PTR(s));
    message = grpc_raw_byte_buffer_create(&s, 1);
    grpc_slice_unref(s);
    ops[1].data.send_message.send_message = message;
    grpc_metadata_array_init(&c->initial);
    grpc_metadata_array_init(&c->trailing);
    c->received = NULL;
    c->call = grpc_channel_create_call(channel, NULL, GRPC_PROPAGATE_DEFAULTS, cq, m, NULL, in_ms(CALL_S * 1000), NULL);
    if (grpc_call_start_batch(c->call, ops, sizeof ops / sizeof ops[0], c, NULL) != GRPC_CALL_OK)
        die("grpc_call_start_batch");
    grpc_byte_buffer_destroy(message);
    grpc_slice_unref(m);
}

/* The answer, unpacked, or NULL; the call is over with it. */
static void *call_take(struct rpc_call *c, const ProtobufCMessageDescriptor *d)
{
    void *m = NULL;

    if (c->received && c->status == GRPC_STATUS_OK) {
        grpc_byte_buffer_reader reader;
        grpc_slice all;

        grpc_byte_buffer_reader_init(&reader, c->received);
        all = grpc_byte_buffer_reader_readall(&reader);
        m = protobuf_c_message_unpack(d, NULL, GRPC_SLICE_LENGTH(all), GRPC_SLICE_START_PTR(all));
        grpc_slice_unref(all);
        grpc_byte_buffer_reader_destroy(&reader);
    }
    if (c->received)
        grpc_byte_buffer_destroy(c->received);
    grpc_slice_unref(c->details);
    grpc_metadata_array_destroy(&c->initial);
    grpc_metadata_array_destroy(&c->trailing);
    grpc_call_unref(c->call);
    return m;
}

/* One call while no other runs. */
static void *ask(const char *method, const ProtobufCMessage *req, const ProtobufCMessageDescriptor *d)
{
    struct rpc_call c;
    grpc_event e;
    char *details;
    void *m;

    call_start(&c, method, req, true);
    e = grpc_completion_queue_next(cq, in_ms(CALL_S * 1000 + 5000), NULL);
    if (e.type != GRPC_OP_COMPLETE || e.tag != &c)
        die("%s: no answer", method);
    details = grpc_slice_to_c_string(c.details);
    m = call_take(&c, d);
    if (m == NULL)
        die("%s: status %d: %s", method, c.status, details);
    gpr_free(details);
    return m;
}

/* ---- the server ------------------------------------------------------------------------------ */

static const char *program, *directory;
static int port;
static pid_t server;

static void server_start(void)
{
    char data[512], client[64], peer[64], cluster[80], log[512];
    char *argv[] = {(char *)program, "--name", "k", "--data-dir", data, "--listen-client-urls", client,
                    "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls",
                    peer, "--initial-cluster", cluster, NULL};
    posix_spawn_file_actions_t fa;

    snprintf(data, sizeof data, "%s/data", directory);
    snprintf(log, sizeof log, "%s/log", directory);
    snprintf(client, sizeof client, "http://127.0.0.1:%d", port);
    snprintf(peer, sizeof peer, "http://127.0.0.1:%d", port + 1);
    snprintf(cluster, sizeof cluster, "k=%s", peer);
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_addopen(&fa, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&fa, 1, 2);
    if (posix_spawn(&server, program, &fa, NULL, argv, environ))
        die("cannot start %s", program);
    posix_spawn_file_actions_destroy(&fa);
}

static void server_kill(void)
{
    int status;

    kill(server, SIGKILL);
    if (waitpid(server, &status, 0) != server)
        die("waitpid");
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        die("the server ended by itself, status %#x", (unsigned)status);
    server = 0;
}

static void at_end(void)
{
    if (server > 0)
        kill(server, SIGKILL);
}

static void pause_us(size_t us)
{
    struct timespec t = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};

    nanosleep(&t, NULL); /* the moment of a kill is what is random, nothing is waited for */
}

/* ---- the load -------------------------------------------------------------------------------- */

enum op { OP_PUT, OP_DELETE, OP_PAIR, OP_COMPACT, OP_DEFRAGMENT, OP_GRANT };

struct worker {
    struct rpc_call call;
    struct key (*pairs)[2];
    struct key *key;
    enum op op;
    bool busy;
    int64_t lease; /* being granted */
};

static struct worker workers[WORKERS];

static void put_request(Etcdserverpb__PutRequest *req, struct key *k, uint64_t seq, int64_t lease, uint8_t *value)
{
    etcdserverpb__put_request__init(req);
    req->key = (ProtobufCBinaryData){strlen(k->name), (uint8_t *)k->name};
    req->value = (ProtobufCBinaryData){value_of(seq, value), value};
    req->lease = lease;
    k->asked = (struct state){seq, 0, lease};
    k->waiting = true;
}

static void start_put(struct worker *w)
{
    Etcdserverpb__PutRequest req;
    uint8_t value[VALUE_MAX];

    put_request(&req, w->key, seq_next++, n_leases && below(3) == 0 ? leases[below(n_leases)] : 0, value);
    call_start(&w->call, "/etcdserverpb.KV/Put", &req.base, false);
}

static void start_delete(struct worker *w)
{
    Etcdserverpb__DeleteRangeRequest req = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;

    req.key = (ProtobufCBinaryData){strlen(w->key->name), (uint8_t *)w->key->name};
    w->key->asked = (struct state){0, 0, 0};
    w->key->waiting = true;
    call_start(&w->call, "/etcdserverpb.KV/DeleteRange", &req.base, false);
}

static void start_pair(struct worker *w)
{
    Etcdserverpb__TxnRequest req = ETCDSERVERPB__TXN_REQUEST__INIT;
    Etcdserverpb__RequestOp op[2], *ops[2] = {&op[0], &op[1]};
    Etcdserverpb__PutRequest put[2];
    uint8_t value[2][VALUE_MAX];
    uint64_t seq = seq_next++;

    for (int i = 0; i < 2; i++) {
        put_request(&put[i], &w->key[i], seq, 0, value[i]);
        etcdserverpb__request_op__init(&op[i]);
        op[i].request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
        op[i].request_put = &put[i];
    }
    req.success = ops;
    req.n_success = 2;
    call_start(&w->call, "/etcdserverpb.KV/Txn", &req.base, false);
}

static void start_other(struct worker *w)
{
    Etcdserverpb__CompactionRequest compact = ETCDSERVERPB__COMPACTION_REQUEST__INIT;
    Etcdserverpb__DefragmentRequest defragment = ETCDSERVERPB__DEFRAGMENT_REQUEST__INIT;
    Etcdserverpb__LeaseGrantRequest grant = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;

    if (w->op == OP_COMPACT) {
        if (revision_seen - 500 > compact_asked)
            compact_asked = revision_seen - 500;
        compact.revision = compact_asked;
        compact.physical = below(2);
        call_start(&w->call, "/etcdserverpb.KV/Compact", &compact.base, false);
    } else if (w->op == OP_DEFRAGMENT) {
        call_start(&w->call, "/etcdserverpb.Maintenance/Defragment", &defragment.base, false);
    } else {
        w->lease = grant.id = (int64_t)(1 + seq_next++) << 20;
        grant.ttl = 3600;
        call_start(&w->call, "/etcdserverpb.Lease/LeaseGrant", &grant.base, false);
    }
}

static void worker_start(struct worker *w)
{
    size_t pair = below(PAIRS);

    w->busy = true;
    w->key = w->pairs[pair];
    if (w == &workers[0] && below(4) == 0)
        w->op = revision_seen < 600 ? OP_PUT : below(8) ? OP_COMPACT : OP_DEFRAGMENT;
    else if (n_leases < LEASES && below(100) == 0)
        w->op = OP_GRANT;
    else if (pair == 0)
        w->op = OP_PAIR; /* the first pair is only ever written as one */
    else
        w->op = below(5) ? OP_PUT : OP_DELETE;
    if (w->op == OP_PAIR)
        w->key = w->pairs[0];
    else if (pair == 0)
        w->key = w->pairs[1];
    if (w->op != OP_PAIR && w->op < OP_COMPACT)
        w->key += below(2);
    if (w->op == OP_PUT)
        start_put(w);
    else if (w->op == OP_DELETE)
        start_delete(w);
    else if (w->op == OP_PAIR)
        start_pair(w);
    else
        start_other(w);
}

static void acked(struct key *k, int64_t rev)
{
    k->acked = k->asked;
    k->acked.rev = rev;
    k->waiting = false;
    notes[n_notes < NOTES ? n_notes++ : below(NOTES)] = (struct note){k, k->acked};
}

static void worker_done(struct worker *w)
{
    static const ProtobufCMessageDescriptor *const answers[] = {
        [OP_PUT] = &etcdserverpb__put_response__descriptor,
        [OP_DELETE] = &etcdserverpb__delete_range_response__descriptor,
        [OP_PAIR] = &etcdserverpb__txn_response__descriptor,
        [OP_COMPACT] = &etcdserverpb__compaction_response__descriptor,
        [OP_DEFRAGMENT] = &etcdserverpb__defragment_response__descriptor,
        [OP_GRANT] = &etcdserverpb__lease_grant_response__descriptor,
    };
    /* Each answer but Defragment's begins with its header. */
    struct { ProtobufCMessage base; Etcdserverpb__ResponseHeader *header; } *m;

    m = call_take(&w->call, answers[w->op]);
    w->busy = false;
    if (m == NULL) {
        unknown_writes += w->op <= OP_PAIR;
        return;
    }
    if (w->op != OP_DEFRAGMENT)
        saw(m->header);
    acked_writes += w->op <= OP_PAIR;
    if (w->op <= OP_PAIR)
        acked(w->key, m->header->revision);
    if (w->op == OP_PAIR)
        acked(w->key + 1, m->header->revision);
    if (w->op == OP_GRANT && n_leases < LEASES)
        leases[n_leases++] = w->lease;
    protobuf_c_message_free_unpacked(&m->base, NULL);
}

static size_t busy(void)
{
    size_t n = 0;

    for (size_t i = 0; i < WORKERS; i++)
        n += workers[i].busy;
    return n;
}

/* Load for this long, then the kill; what has no answer by then gets none. */
static void load_and_kill(size_t ms)
{
    gpr_timespec end = in_ms((int64_t)ms);
    bool killed = false;

    for (size_t i = 0; i < WORKERS; i++)
        worker_start(&workers[i]);
    while (busy()) {
        grpc_event e = grpc_completion_queue_next(cq, killed ? in_ms(20000) : end, NULL);

        if (e.type == GRPC_OP_COMPLETE) {
            worker_done(e.tag); /* the call is the worker's first field */
            if (!killed && !((struct worker *)e.tag)->busy)
                worker_start(e.tag);
        } else if (killed) {
            die("calls to a dead server do not end");
        }
        if (!killed && gpr_time_cmp(gpr_now(GPR_CLOCK_MONOTONIC), end) >= 0) {
            server_kill();
            killed = true;
        }
    }
}

/* ---- looking --------------------------------------------------------------------------------- */

static bool holds(const struct state *s, const Etcdserverpb__RangeResponse *r, bool know_rev)
{
    uint8_t value[VALUE_MAX];
    const Mvccpb__KeyValue *kv = r->n_kvs ? r->kvs[0] : NULL;

    if (s->seq == 0 || kv == NULL)
        return s->seq == 0 && kv == NULL;
    return kv->value.len == value_of(s->seq, value) && memcmp(kv->value.data, value, kv->value.len) == 0 &&
           kv->lease == s->lease && (!know_rev || kv->mod_revision == s->rev);
}

static Etcdserverpb__RangeResponse *range(struct key *k, int64_t rev)
{
    Etcdserverpb__RangeRequest req = ETCDSERVERPB__RANGE_REQUEST__INIT;

    req.key = (ProtobufCBinaryData){strlen(k->name), (uint8_t *)k->name};
    req.revision = rev;
    return ask("/etcdserverpb.KV/Range", &req.base, &etcdserverpb__range_response__descriptor);
}

static void look_at(struct key *k)
{
    Etcdserverpb__RangeResponse *r = range(k, 0);

    saw(r->header);
    if (k->waiting && holds(&k->asked, r, false)) {
        kept_unknown++;
        k->acked = k->asked;
        k->acked.rev = r->n_kvs ? r->kvs[0]->mod_revision : 0;
    } else if (!holds(&k->acked, r, true)) {
        die("%s: acknowledged %llu at %lld, found %.16s at %lld", k->name, (unsigned long long)k->acked.seq,
            (long long)k->acked.rev, r->n_kvs ? (char *)r->kvs[0]->value.data : "nothing",
            (long long)(r->n_kvs ? r->kvs[0]->mod_revision : 0));
    }
    k->waiting = false;
    etcdserverpb__range_response__free_unpacked(r, NULL);
}

static void look_at_past(const struct note *n)
{
    Etcdserverpb__RangeResponse *r;

    if (n->at.rev <= compact_asked)
        return;
    r = range(n->key, n->at.rev);
    if (!holds(&n->at, r, true))
        die("%s at revision %lld: not %llu", n->key->name, (long long)n->at.rev, (unsigned long long)n->at.seq);
    etcdserverpb__range_response__free_unpacked(r, NULL);
}

static void look_at_leases(void)
{
    Etcdserverpb__LeaseLeasesRequest req = ETCDSERVERPB__LEASE_LEASES_REQUEST__INIT;
    Etcdserverpb__LeaseLeasesResponse *r =
        ask("/etcdserverpb.Lease/LeaseLeases", &req.base, &etcdserverpb__lease_leases_response__descriptor);

    for (size_t i = 0; i < n_leases; i++) {
        bool found = false;

        for (size_t j = 0; j < r->n_leases; j++)
            found |= r->leases[j]->id == leases[i];
        if (!found)
            die("lease %llx is gone", (unsigned long long)leases[i]);
    }
    etcdserverpb__lease_leases_response__free_unpacked(r, NULL);
}

static void look(void)
{
    int64_t before = revision_seen;
    Etcdserverpb__RangeResponse *r = range(&keys[0][0][0], 0);

    if (r->header->revision < before)
        die("revision %lld after %lld", (long long)r->header->revision, (long long)before);
    etcdserverpb__range_response__free_unpacked(r, NULL);
    for (size_t w = 0; w < WORKERS; w++)
        for (size_t p = 0; p < PAIRS; p++) {
            look_at(&keys[w][p][0]);
            look_at(&keys[w][p][1]);
            if (p == 0 && keys[w][p][0].acked.seq != keys[w][p][1].acked.seq)
                die("half of a transaction: %s and %s", keys[w][p][0].name, keys[w][p][1].name);
        }
    for (size_t i = 0; i < n_notes; i++)
        look_at_past(&notes[i]);
    look_at_leases();
}

int main(int argc, char **argv)
{
    const char *s = getenv("SEED");
    grpc_arg args[] = {
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, .value.integer = 50},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, .value.integer = 50},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, .value.integer = 50},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_ENABLE_HTTP_PROXY, .value.integer = 0},
    };
    grpc_channel_args channel_args = {sizeof args / sizeof args[0], args};
    grpc_channel_credentials *insecure;
    char address[40];
    int kills;

    if (argc != 5)
        return 2;
    program = argv[1];
    directory = argv[2];
    port = atoi(argv[3]);
    kills = atoi(argv[4]);
    seed = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL) << 16 ^ (uint64_t)getpid();
    seed |= 1;
    printf("# SEED=%llu\n", (unsigned long long)seed);
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    atexit(at_end);
    grpc_init();
    cq = grpc_completion_queue_create_for_next(NULL);
    insecure = grpc_insecure_credentials_create();
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    channel = grpc_channel_create(address, insecure, &channel_args);
    for (size_t w = 0; w < WORKERS; w++) {
        workers[w].pairs = keys[w];
        for (size_t p = 0; p < PAIRS; p++)
            for (size_t i = 0; i < 2; i++)
                snprintf(keys[w][p][i].name, sizeof keys[w][p][i].name, "w%zu/p%zu/%zu", w, p, i);
    }
    for (int k = 0; k <= kills; k++) {
        server_start();
        if (below(5) == 0) { /* killed while it starts; nothing was asked of it */
            pause_us(below(300000));
            server_kill();
            server_start();
        }
        look();
        if (k < kills)
            load_and_kill(20 + below(500));
    }
    server_kill();
    printf("ok - %d kills: %llu writes acknowledged, all there; %llu without an answer, %llu of their keys changed; "
           "revision %lld, compacted to about %lld\n", kills, (unsigned long long)acked_writes,
           (unsigned long long)unknown_writes, (unsigned long long)kept_unknown, (long long)revision_seen,
           (long long)compact_asked);
    return 0;
}
