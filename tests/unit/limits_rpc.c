/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: each bound of rpc that rpc.c's test leaves alone can be filled, what happens then, and that room comes back:
 * calls in all, answers that wait for their clients (of a connection, of all), what one handler may queue on a stream,
 * the memory a request decodes into, the time a call has, leases; and that a read of more rows than
 * LIMIT_INLINE_ROWS, and no shorter one, is done on the scan pool.
 *
 * LIMIT_CALLS, LIMIT_RESPONSE_BYTES, LIMIT_CONN_RESPONSE_BYTES and LEASES_MAX are made small: rpc_call.c, rpc_answer.c
 * and svc_lease.c are compiled into this program with them. */
#include "daemon/limits.h"
#define LIMIT_CALLS               40
#define LIMIT_CONN_RESPONSE_BYTES (1 << 20)
#define LIMIT_RESPONSE_BYTES      (5 << 19)
#include "daemon/lease.h"
#undef LEASES_MAX
#define LEASES_MAX 3
#include "daemon/rpc_answer.c"
#include "daemon/rpc_call.c"
#include "daemon/svc_lease.c"
#include <unistd.h>
#include "apply_rig.h"
#include "health.pb-c.h"
#include "rpc.pb-c.h"
#include "rpc_client.h"
#include "tap.h"

enum { ANSWER_BYTES = 400 << 10, REQUEST_BYTES = 1572864, TIMEOUT_MS = 3000 };

static struct rpc *rpc;
static _Atomic int queued_bytes, queued_messages;
static struct svc svc;
static struct rig r;

/* ---- services ------------------------------------------------------------------------------------ */

/* "" answers at once, "big" with ANSWER_BYTES, "time" with the seconds it has, rounded up. */
static void check_start(struct call *c, const ProtobufCMessage *req)
{
    const Grpc__Health__V1__HealthCheckRequest *q = (const void *)req;
    Grpc__Health__V1__HealthCheckResponse m = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    static uint8_t big[ANSWER_BYTES];

    m.status = 1;
    if (strcmp(q->service, "time") == 0)
        m.status = (int)((call_deadline_ms(c) - rpc_now_ms() + 999) / 1000);
    if (strcmp(q->service, "big") == 0) {
        Etcdserverpb__SnapshotResponse s = ETCDSERVERPB__SNAPSHOT_RESPONSE__INIT;

        s.blob = (ProtobufCBinaryData){sizeof big, big};
        call_answer(c, &s.base);
        return;
    }
    call_answer(c, &m.base);
}

/* As svc_watch.c does: as long as there is room, and again when all has left. */
static void fill(struct call *c)
{
    static const uint8_t piece[10000] = {0x0a};

    while (atomic_load(&queued_messages) < 1000 && call_send_room(c)) {
        call_send_packed(c, slice_of(piece, sizeof piece));
        atomic_fetch_add(&queued_messages, 1);
        atomic_fetch_add(&queued_bytes, (int)sizeof piece);
    }
    if (atomic_load(&queued_messages) == 1000)
        call_end(c);
}

static void stream_start(struct call *c, const ProtobufCMessage *req)
{
    (void)req;
    fill(c);
}

static void bidi_start(struct call *c, const ProtobufCMessage *req)
{
    (void)c, (void)req;
}

static void bidi_message(struct call *c, const ProtobufCMessage *req)
{
    (void)c, (void)req;
}

/* Pretends to read as many rows as the limit of the request says. */
static int build_rows(struct call *c, struct view *v, const struct mvcc_limits *limits, struct arena *a,
                      ProtobufCMessage **ret)
{
    Grpc__Health__V1__HealthCheckResponse *m =
        msg_new(a, &grpc__health__v1__health_check_response__descriptor);
    int64_t rows = *(int64_t *)call_state(c);

    (void)v;
    if (limits->rows_max && rows > limits->rows_max)
        return MVCC_TOO_LONG;
    CHECK(limits->rows_max == 0 ||
          (limits->rows_max == LIMIT_INLINE_ROWS && limits->time_us == LIMIT_INLINE_US));
    m->status = 2;
    *ret = &m->base;
    return 0;
}

static void range_start(struct call *c, const ProtobufCMessage *req)
{
    *(int64_t *)call_state(c) = ((const Etcdserverpb__RangeRequest *)req)->limit;
    svc_answer_view(c, build_rows);
}

static const struct rpc_method test_methods[] = {
    {"grpc.health.v1.Health", "Check", RPC_UNARY, ACCESS_OPEN,
     &grpc__health__v1__health_check_request__descriptor, .start = check_start},
    {"grpc.health.v1.Health", "Watch", RPC_SERVER_STREAM, ACCESS_OPEN,
     &grpc__health__v1__health_check_request__descriptor, .start = stream_start, .drained = fill},
    {"etcdserverpb.Lease", "LeaseKeepAlive", RPC_BIDI, ACCESS_OPEN,
     &etcdserverpb__lease_keep_alive_request__descriptor, .start = bidi_start, .message = bidi_message,
     .half_closed = call_end},
    {"etcdserverpb.KV", "Txn", RPC_UNARY, ACCESS_OPEN, &etcdserverpb__txn_request__descriptor,
     .start = check_start},
    {"etcdserverpb.KV", "Range", RPC_UNARY, ACCESS_OPEN, &etcdserverpb__range_request__descriptor,
     .start = range_start},
    {"etcdserverpb.Lease", "LeaseGrant", RPC_UNARY, ACCESS_OPEN,
     &etcdserverpb__lease_grant_request__descriptor, .start = grant_start},
};

#define CHECK_PATH  "/grpc.health.v1.Health/Check"
#define NAMED(name) S("\x0a" name)

/* ---- the tests -------------------------------------------------------------------------------------- */

/* Awaits that so few calls are alive. */
static bool await_calls(uint32_t n)
{
    for (int i = 0; i < AWAIT_MS && atomic_load(&rpc->n_calls) > n; i++)
        usleep(1000);
    return atomic_load(&rpc->n_calls) <= n;
}

static void calls(void)
{
    static struct client k[LIMIT_CALLS + 1];

    for (int i = 0; i < LIMIT_CALLS; i++) {
        client_open(&k[i], "/etcdserverpb.Lease/LeaseKeepAlive", 60000);
        client_send_head(&k[i], NULL, 0);
        client_recv_head(&k[i]);
    }
    client_unary(&k[LIMIT_CALLS], CHECK_PATH, S(""), NULL, 0);
    CHECK(k[LIMIT_CALLS].status == GRPC_STATUS_RESOURCE_EXHAUSTED);
    CHECK(text_is(&k[LIMIT_CALLS], "cairn: too many calls at once"));
    client_close(&k[LIMIT_CALLS]);
    for (int i = 0; i < LIMIT_CALLS; i++) {
        client_half_close(&k[i]);
        client_recv_status(&k[i]);
        CHECK(k[i].status == GRPC_STATUS_OK);
        client_close(&k[i]);
    }
    CHECK(await_calls(0));
    client_unary(&k[0], CHECK_PATH, S(""), NULL, 0);
    CHECK(k[0].status == GRPC_STATUS_OK && answered_status(&k[0]) == 1);
    client_close(&k[0]);
}

/* Asks, and does not read. */
static void ask_big(struct client *k, grpc_channel *of)
{
    channel = of;
    client_open(k, CHECK_PATH, 60000);
    client_send_head(k, NULL, 0);
    client_send(k,
                NAMED("\x03"
                      "big")
                    .ptr,
                5);
    client_half_close(k);
    client_recv_head(k); /* comes with the answer */
}

static bool read_big(struct client *k)
{
    client_recv(k);
    client_recv_status(k);
    if (k->status == GRPC_STATUS_RESOURCE_EXHAUSTED)
        CHECK(text_is(k, "cairn: too many bytes of responses wait for their clients"));
    return k->status == GRPC_STATUS_OK;
}

/* Two answers of 400 KiB are all that a connection of 1 MiB may hold unread, six are all there is for all of 2.5. */
static void answers_that_wait(void)
{
    grpc_channel *ch[4] = {channel};
    struct client k[4][3];
    int fine[4] = {0};

    for (int i = 1; i < 4; i++)
        ch[i] = client_connect(rpc);
    for (int i = 0; i < 4; i++)
        for (int n = 0; n < 3; n++)
            ask_big(&k[i][n], ch[i]);
    for (int i = 0; i < 4; i++)
        for (int n = 0; n < 3; n++)
            fine[i] += read_big(&k[i][n]);
    printf("# answered: %d %d %d %d\n", fine[0], fine[1], fine[2], fine[3]);
    CHECK(fine[0] == 2 && fine[1] == 2 && fine[2] == 2); /* its own part, whoever else asks */
    CHECK(fine[3] == 0);                                 /* nothing is left of all */
    for (int i = 0; i < 4; i++)
        for (int n = 0; n < 3; n++)
            client_close(&k[i][n]);
    CHECK(await_calls(0));
    CHECK(atomic_load(&rpc->response_bytes) == 0);
    ask_big(&k[0][0], ch[3]); /* room again */
    CHECK(read_big(&k[0][0]));
    client_close(&k[0][0]);
    channel = ch[0];
    for (int i = 1; i < 4; i++)
        grpc_channel_destroy(ch[i]);
}

/* A client that takes one message after the other: what is queued for it stays in bounds, and all of it comes. */
static void a_burst_of_a_stream(void)
{
    struct client k;
    int taken = 0, most = 0;

    client_open(&k, "/grpc.health.v1.Health/Watch", 60000);
    client_send_head(&k, NULL, 0);
    client_send(&k, "", 0);
    client_half_close(&k);
    client_recv_head(&k);
    for (client_recv(&k); k.got; client_recv(&k)) {
        int waiting = atomic_load(&queued_bytes) - taken;

        most = waiting > most ? waiting : most;
        taken += (int)grpc_byte_buffer_length(k.got);
    }
    client_recv_status(&k);
    CHECK(k.status == GRPC_STATUS_OK && taken == 1000 * 10000);
    printf("# queued at most: %d bytes\n", most);
    /* Ours, and what gRPC and the socket hold of what was sent. */
    CHECK(most >= LIMIT_SEND_BURST_BYTES && most < 40 * LIMIT_SEND_BURST_BYTES);
    client_close(&k);
}

/* Two bytes of a request may become a hundred of memory. */
static void memory_of_a_request(void)
{
    size_t n = REQUEST_BYTES + LIMIT_REQUEST_SLACK_BYTES;
    uint8_t *compares = malloc(n);
    struct client k;

    for (size_t i = 0; i + 1 < n; i += 2) {
        compares[i] = 0x0a; /* compare, of no bytes */
        compares[i + 1] = 0;
    }
    client_unary(&k, "/etcdserverpb.KV/Txn", slice_of(compares, n & ~(size_t)1), NULL, 0);
    CHECK(k.status == GRPC_STATUS_RESOURCE_EXHAUSTED);
    CHECK(text_is(&k, err_info(ERR_ARENA_FULL).text));
    client_close(&k);
    free(compares);
}

static void time_of_a_call(void)
{
    struct client k;

    client_unary(&k, CHECK_PATH, NAMED("\x04time"), NULL, 0); /* the client would wait for ten seconds */
    CHECK(answered_status(&k) == TIMEOUT_MS / 1000);
    client_close(&k);
    client_open(&k, CHECK_PATH, 900);
    client_send_head(&k, NULL, 0);
    client_send(&k, NAMED("\x04time").ptr, 6);
    client_half_close(&k);
    client_recv_head(&k);
    client_recv(&k);
    client_recv_status(&k);
    CHECK(answered_status(&k) == 1);
    client_close(&k);
}

/* Leases that are there already, and one that is asked for. */
static void leases(void)
{
    struct client k;

    for (int64_t id = 1; id <= LEASES_MAX; id++)
        REQUIRE(lease_grant(svc.leases, id, 60, 0) == 0);
    client_unary(&k, "/etcdserverpb.Lease/LeaseGrant", S("\x08\x3c"), NULL, 0);
    CHECK(k.status == GRPC_STATUS_UNKNOWN && text_is(&k, err_info(ERR_TOO_MANY_REQUESTS).text));
    client_close(&k);
}

/* ---- reads ---------------------------------------------------------------------------------------------- */

static _Atomic bool pool_held, pool_go;

static void hold_pool(struct scan_job *j, struct slot *sl)
{
    (void)j, (void)sl;
    atomic_store(&pool_held, true);
    while (!atomic_load(&pool_go))
        usleep(1000);
}

static void ask_rows(struct client *k, uint8_t *limit, size_t n)
{
    client_open(k, "/etcdserverpb.KV/Range", 60000);
    client_send_head(k, NULL, 0);
    client_send(k, limit, n);
    client_half_close(k);
}

/* With the pool's one thread held, a read of 1,000 rows is answered, and one of 1,001 is not until it is let go. */
static void long_reads(void)
{
    uint8_t inline_rows[] = {0x18, (LIMIT_INLINE_ROWS & 0x7f) | 0x80, LIMIT_INLINE_ROWS >> 7},
            more_rows[] = {0x18, ((LIMIT_INLINE_ROWS + 1) & 0x7f) | 0x80, (LIMIT_INLINE_ROWS + 1) >> 7};
    struct scan_job hold = {.run = hold_pool};
    struct client k, longer;

    REQUIRE(scan_pool_post(svc.scan, &hold) == 0);
    for (int i = 0; i < AWAIT_MS && !atomic_load(&pool_held); i++)
        usleep(1000);
    ask_rows(&longer, more_rows, sizeof more_rows);
    ask_rows(&k, inline_rows, sizeof inline_rows);
    client_recv_head(&k);
    client_recv(&k);
    client_recv_status(&k);
    CHECK(k.status == GRPC_STATUS_OK && answered_status(&k) == 2);
    client_close(&k);
    CHECK(await_calls(1) && atomic_load(&rpc->n_calls) == 1); /* it came first, and waits */
    atomic_store(&pool_go, true);
    client_recv_head(&longer);
    client_recv(&longer);
    client_recv_status(&longer);
    CHECK(longer.status == GRPC_STATUS_OK && answered_status(&longer) == 2);
    client_close(&longer);
}

/* A bound on time sends away what a bound on rows would not. */
static void long_in_time(void)
{
    struct slot *sl = slot_new(svc.store);
    Etcdserverpb__RangeRequest q = ETCDSERVERPB__RANGE_REQUEST__INIT;
    Etcdserverpb__RangeResponse got = ETCDSERVERPB__RANGE_RESPONSE__INIT;
    struct mvcc_limits lim = {.time_us = 1};
    struct arena a;
    struct view v;

    for (int i = 0; i < 3000; i++) {
        char key[16];

        (void)snprintf(key, sizeof key, "%08d", i);
        REQUIRE(rig_put(&r, key, "v", 0) == 0);
    }
    q.key = q.range_end = (ProtobufCBinaryData){1, (uint8_t *)""};
    arena_init(&a, 16 << 20, NULL, 0);
    REQUIRE(view_open(svc.store, sl, &v) == 0);
    CHECK(mvcc_range(&v, v.rev, &q, &lim, &a, &got) == MVCC_TOO_LONG);
    lim.time_us = 60000000;
    got = (Etcdserverpb__RangeResponse)ETCDSERVERPB__RANGE_RESPONSE__INIT;
    CHECK(mvcc_range(&v, v.rev, &q, &lim, &a, &got) == 0 && got.count == 3000);
    view_close(&v);
    arena_fini(&a);
    slot_free(svc.store, sl);
}

int main(void)
{
    struct slot *slot;
    struct rpc_options o = {.methods = test_methods,
                            .n_methods = sizeof test_methods / sizeof *test_methods,
                            .service = &svc,
                            .threads = 1,
                            .slots = &slot,
                            .request_timeout_ms = TIMEOUT_MS,
                            .max_request_bytes = REQUEST_BYTES,
                            .keepalive_min_ms = 5000,
                            .keepalive_interval_ms = 7200000,
                            .keepalive_timeout_ms = 20000};

    rig_new(&r);
    svc = (struct svc){.store = r.store, .apply = r.apply, .leases = r.leases};
    REQUIRE(scan_pool_new(svc.store, 1, &svc.scan) == 0);
    slot = slot_new(svc.store);
    REQUIRE(rpc_new(&o, &rpc) == 0);
    REQUIRE(rpc_start(rpc) == 0);
    cq = grpc_completion_queue_create_for_pluck(NULL);
    channel = client_connect(rpc);
    TEST(calls);
    TEST(answers_that_wait);
    TEST(a_burst_of_a_stream);
    TEST(memory_of_a_request);
    TEST(time_of_a_call);
    TEST(leases);
    TEST(long_reads);
    TEST(long_in_time);
    rpc_stop(rpc);
    grpc_channel_destroy(channel);
    grpc_completion_queue_shutdown(cq);
    grpc_completion_queue_destroy(cq);
    scan_pool_stop(svc.scan); /* whoever resumes calls stops before rpc goes */
    rpc_free(rpc);
    scan_pool_free(svc.scan);
    slot_free(svc.store, slot);
    rig_free(&r);
    return tap_done();
}
