/* SPDX-License-Identifier: Apache-2.0 */
/* rpc.c - proves that a call reaches its handler and its answer the client: unary, server stream and bidi; at once,
 * resumed from another thread, refused, cancelled, too large, malformed, compressed, unknown; that release comes once
 * for every call; and that a stop with open streams ends them in time.
 *
 * The client is gRPC core's, in the same process, on the other end of a socketpair.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>
#include "daemon/limits.h"
#include "daemon/rpc.h"
#include "health.pb-c.h"
#include "rpc.pb-c.h"
#include "rpc_client.h"
#include "tap.h"

enum { MAX_REQUEST_BYTES = 100000, OPEN_STREAMS = 2000, PARKED = 200 };

static struct rpc *rpc;
static _Atomic int started, released, gone_calls, drained_calls, shared_back;

/* ---- services with familiar names -------------------------------------------------- */

static void answer_with(struct call *c, int status)
{
    Grpc__Health__V1__HealthCheckResponse m = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

    m.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)status;
    call_answer(c, &m.base);
}

struct parked {
    struct call_resume resume;
    pthread_t thread;
};

static void parked_back(struct call *c, struct call_resume *r)
{
    pthread_join(((struct parked *)r)->thread, NULL); /* whoever resumes calls must be done before rpc_free */
    answer_with(c, 2);
    call_unref(c);
}

static void *elsewhere(void *arg)
{
    call_resume(arg);
    return NULL;
}

/* The name of the service asked for says what to do. */
static void check_start(struct call *c, const ProtobufCMessage *req)
{
    const Grpc__Health__V1__HealthCheckRequest *q = (const void *)req;
    struct parked *p = call_state(c);

    atomic_fetch_add(&started, 1);
    if (strcmp(q->service, "park") == 0) {
        p->resume = (struct call_resume){.call = c, .fn = parked_back};
        call_ref(c);
        REQUIRE(pthread_create(&p->thread, NULL, elsewhere, &p->resume) == 0);
    } else if (strcmp(q->service, "fail") == 0) {
        call_fail(c, ERR_COMPACTED);
    } else if (strcmp(q->service, "errno") == 0) {
        call_fail(c, -ENOSPC);
    } else if (strcmp(q->service, "meta") == 0) {
        answer_with(c, slice_eq(call_metadata(c, "token"), S("abc")) ? 1 : 3);
    } else {
        answer_with(c, 1);
    }
}

static void shared_done(void *owner)
{
    atomic_fetch_add((_Atomic int *)owner, 1);
}

/* As many messages as the name has letters: plain, packed and shared in turn. */
static void watch_start(struct call *c, const ProtobufCMessage *req)
{
    const Grpc__Health__V1__HealthCheckRequest *q = (const void *)req;
    Grpc__Health__V1__HealthCheckResponse m = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

    atomic_fetch_add(&started, 1);
    m.status = 1;
    for (size_t i = 0; q->service[i]; i++) {
        if (i % 3 == 0)
            call_send(c, &m.base);
        else if (i % 3 == 1)
            call_send_packed(c, S("\x08\x01"));
        else
            call_send_shared(c, S("\x08\x01"), shared_done, &shared_back);
    }
    call_end(c);
}

static void echo_start(struct call *c, const ProtobufCMessage *req)
{
    atomic_fetch_add(&started, 1);
    (void)c;
    CHECK(req == NULL);
}

static void echo_message(struct call *c, const ProtobufCMessage *req)
{
    const Etcdserverpb__LeaseKeepAliveRequest *q = (const void *)req;
    Etcdserverpb__LeaseKeepAliveResponse m = ETCDSERVERPB__LEASE_KEEP_ALIVE_RESPONSE__INIT;

    m.id = q->id;
    call_send(c, &m.base);
}

static void lock_start(struct call *c, const ProtobufCMessage *req)
{
    atomic_fetch_add(&started, 1);
    (void)c, (void)req; /* waits until its client goes */
}

static void count_gone(struct call *c)
{
    CHECK(call_gone(c));
    atomic_fetch_add(&gone_calls, 1);
}

static void count_release(struct call *c)
{
    (void)c;
    atomic_fetch_add(&released, 1);
}

static void count_drained(struct call *c)
{
    CHECK(call_send_room(c));
    atomic_fetch_add(&drained_calls, 1);
}

static const struct rpc_method methods[] = {
    {"grpc.health.v1.Health", "Check", RPC_UNARY, ACCESS_OPEN, &grpc__health__v1__health_check_request__descriptor,
     .start = check_start, .release = count_release},
    {"grpc.health.v1.Health", "Watch", RPC_SERVER_STREAM, ACCESS_OPEN,
     &grpc__health__v1__health_check_request__descriptor, .start = watch_start, .release = count_release},
    {"etcdserverpb.Lease", "LeaseKeepAlive", RPC_BIDI, ACCESS_OPEN,
     &etcdserverpb__lease_keep_alive_request__descriptor, .start = echo_start, .message = echo_message,
     .half_closed = call_end, .gone = count_gone, .drained = count_drained, .release = count_release},
    {"v3lockpb.Lock", "Lock", RPC_UNARY, ACCESS_OPEN, &grpc__health__v1__health_check_request__descriptor,
     .start = lock_start, .gone = count_gone, .release = count_release},
    {"etcdserverpb.KV", "Txn", RPC_UNARY, ACCESS_OPEN, &etcdserverpb__txn_request__descriptor,
     .start = check_start, .release = count_release},
};

/* ---- what is counted ------------------------------------------------------------------ */

/* A short poll for what another thread counts. */
static bool await_count(_Atomic int *n, int want)
{
    for (int i = 0; i < AWAIT_MS && atomic_load(n) != want; i++)
        usleep(1000);
    return atomic_load(n) == want;
}

/* How many calls have been released, once that is all that were started: the count tests begin from. */
static int released_before(void)
{
    REQUIRE(await_count(&released, atomic_load(&started)));
    return atomic_load(&released);
}

#define CHECK_PATH "/grpc.health.v1.Health/Check"
#define ECHO_PATH  "/etcdserverpb.Lease/LeaseKeepAlive"

/* ---- the tests ------------------------------------------------------------------------- */

static void unary_answers(void)
{
    struct client k;

    client_unary(&k, CHECK_PATH, S("\x0a\x02ok"), NULL, 0);
    CHECK(k.status == GRPC_STATUS_OK);
    CHECK(answered_status(&k) == 1);
    client_close(&k);
    CHECK(await_count(&released, 1));
}

static void unary_resumed_from_elsewhere(void)
{
    struct client k;

    for (int i = 0; i < PARKED; i++) {
        client_unary(&k, CHECK_PATH, S("\x0a\x04park"), NULL, 0);
        CHECK(k.status == GRPC_STATUS_OK);
        CHECK(answered_status(&k) == 2);
        client_close(&k);
    }
    CHECK(await_count(&released, 1 + PARKED));
}

static void handlers_refuse(void)
{
    struct client k;
    grpc_metadata token = {.key = grpc_slice_from_static_string("token"),
                           .value = grpc_slice_from_static_string("abc")};

    client_unary(&k, CHECK_PATH, S("\x0a\x04" "fail"), NULL, 0);
    CHECK(k.status == GRPC_STATUS_OUT_OF_RANGE);
    CHECK(text_is(&k, "etcdserver: mvcc: required revision has been compacted"));
    client_close(&k);

    client_unary(&k, CHECK_PATH, S("\x0a\x05" "errno"), NULL, 0);
    CHECK(k.status == GRPC_STATUS_INTERNAL);
    CHECK(text_is(&k, "cairn: No space left on device"));
    client_close(&k);

    client_unary(&k, CHECK_PATH, S("\x0a\x04meta"), &token, 1);
    CHECK(answered_status(&k) == 1);
    client_close(&k);
}

static void bad_requests(void)
{
    static uint8_t big[MAX_REQUEST_BYTES + LIMIT_REQUEST_SLACK_BYTES + 1];
    char text[100];
    struct client k;

    client_unary(&k, CHECK_PATH, SLICE_NONE, NULL, 0);
    CHECK(k.status == GRPC_STATUS_INTERNAL);
    CHECK(text_is(&k, "cairn: the call ended before its request message"));
    client_close(&k);

    client_unary(&k, CHECK_PATH, S("\x0a\x7fshort"), NULL, 0);
    CHECK(k.status == GRPC_STATUS_INTERNAL);
    CHECK(text_is(&k, "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data"));
    client_close(&k);

    client_unary(&k, CHECK_PATH, slice_of(big, sizeof big), NULL, 0);
    CHECK(k.status == GRPC_STATUS_RESOURCE_EXHAUSTED);
    snprintf(text, sizeof text, "grpc: received message larger than max (%zu vs. %zu)", sizeof big, sizeof big - 1);
    CHECK(text_is(&k, text));
    client_close(&k);
}

static void unknown_methods(void)
{
    static const struct {
        const char *path, *text;
    } t[] = {
        {"/grpc.health.v1.Health/Nope", "unknown method Nope for service grpc.health.v1.Health"},
        {"/no.Service/Nope", "unknown service no.Service"},
        {"/nope", "malformed method name: \"/nope\""},
    };

    for (int round = 0; round < 10; round++)
        for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
            struct client k;

            client_unary(&k, t[i].path, S(""), NULL, 0);
            CHECK(k.status == GRPC_STATUS_UNIMPLEMENTED);
            CHECK(text_is(&k, t[i].text));
            client_close(&k);
        }
}

/* Nothing of it may be inflated: core and we know only identity. */
static void compressed_requests(void)
{
    grpc_metadata md = {.key = grpc_slice_from_static_string("grpc-internal-encoding-request"),
                        .value = grpc_slice_from_static_string("gzip")};
    struct client k;

    client_open(&k, CHECK_PATH, AWAIT_MS);
    client_send_head(&k, &md, 1);
    client_send(&k, "\x0a\x20" "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 34);
    client_half_close(&k);
    client_recv_head(&k); /* core keeps the status back until somebody has asked for the head */
    client_recv_status(&k);
    CHECK(k.status == GRPC_STATUS_UNIMPLEMENTED);
    printf("# gzip: %d %.*s\n", k.status, (int)GRPC_SLICE_LENGTH(k.text), GRPC_SLICE_START_PTR(k.text));
    client_close(&k);
}

static void server_stream(void)
{
    struct client k;
    int n = 0;

    client_open(&k, "/grpc.health.v1.Health/Watch", AWAIT_MS);
    client_send_head(&k, NULL, 0);
    client_send(&k, "\x0a\x0a" "0123456789", 12);
    client_half_close(&k);
    client_recv_head(&k);
    for (client_recv(&k); k.got; client_recv(&k)) {
        CHECK(answered_status(&k) == 1);
        n++;
    }
    client_recv_status(&k);
    CHECK(k.status == GRPC_STATUS_OK);
    CHECK(n == 10);
    client_close(&k);
    CHECK(await_count(&shared_back, 3));
}

static void bidi_echo(void)
{
    int before = released_before();
    struct client k;

    client_open(&k, ECHO_PATH, AWAIT_MS);
    client_send_head(&k, NULL, 0);
    client_recv_head(&k); /* comes before any message */
    for (int i = 1; i < 100; i++) {
        uint8_t m[2] = {0x08, (uint8_t)i};

        client_send(&k, m, 2);
        client_recv(&k);
        REQUIRE(k.got != NULL);
    }
    client_half_close(&k);
    client_recv(&k);
    CHECK(k.got == NULL);
    client_recv_status(&k);
    CHECK(k.status == GRPC_STATUS_OK);
    client_close(&k);
    CHECK(await_count(&released, before + 1));
    CHECK(atomic_load(&drained_calls) > 0);
    CHECK(atomic_load(&gone_calls) == 1); /* a stream always hears of its end */
}

static void cancelled_calls_are_told(void)
{
    int before = released_before(), gone = atomic_load(&gone_calls);
    struct client k[2];

    client_open(&k[0], ECHO_PATH, AWAIT_MS);
    client_send_head(&k[0], NULL, 0);
    client_recv_head(&k[0]);
    grpc_call_cancel(k[0].call, NULL);
    client_recv_status(&k[0]);
    client_open(&k[1], "/v3lockpb.Lock/Lock", 200); /* its deadline ends it */
    client_send_head(&k[1], NULL, 0);
    client_send(&k[1], "", 0);
    client_half_close(&k[1]);
    client_recv_status(&k[1]);
    CHECK(k[1].status == GRPC_STATUS_DEADLINE_EXCEEDED);
    CHECK(await_count(&gone_calls, gone + 2));
    CHECK(await_count(&released, before + 2));
    client_close(&k[0]);
    client_close(&k[1]);
}

/* A txn nested thirty thousand times over must not recurse as deep. */
static void deep_nesting_is_refused(void)
{
    enum { LEVELS = 30000 };
    static uint8_t b[LEVELS * 12];
    size_t at = sizeof b, len = 0;
    struct client k;

    for (int i = 0; i < 2 * LEVELS; i++) { /* from the inside out: request_txn (4), success (2) */
        uint8_t head[6] = {i % 2 ? 0x12 : 0x22};
        size_t n = 1, v = len;

        for (; v >= 0x80; v >>= 7)
            head[n++] = (uint8_t)v | 0x80;
        head[n++] = (uint8_t)v;
        REQUIRE(at >= n);
        at -= n;
        memcpy(b + at, head, n);
        len += n;
    }
    client_unary(&k, "/etcdserverpb.KV/Txn", slice_of(b + at, len), NULL, 0);
    CHECK(k.status == GRPC_STATUS_INVALID_ARGUMENT);
    CHECK(text_is(&k, err_info(ERR_TOO_DEEP).text));
    client_close(&k);
}

static void stats_count(void)
{
    const struct rpc_method_stats *s = rpc_stats(rpc, 0);

    CHECK(s->started > PARKED + 6);
    CHECK(s->handled[STATUS_OK] == PARKED + 2);
    CHECK(s->handled[STATUS_OUT_OF_RANGE] == 1);
    CHECK(s->sent == PARKED + 2);
}

/* Last. */
static void stop_ends_open_streams_in_time(void)
{
    static struct client k[OPEN_STREAMS];
    int before = released_before(), took_ms;
    gpr_timespec from;

    for (int i = 0; i < OPEN_STREAMS; i++) {
        client_open(&k[i], ECHO_PATH, 60000);
        client_send_head(&k[i], NULL, 0);
        client_recv_head(&k[i]);
    }
    from = gpr_now(GPR_CLOCK_MONOTONIC);
    rpc_stop(rpc);
    took_ms = gpr_time_to_millis(gpr_time_sub(gpr_now(GPR_CLOCK_MONOTONIC), from));
    printf("# stop with %d streams: %d ms\n", OPEN_STREAMS, took_ms);
    CHECK(took_ms < LIMIT_STOP_MS);
    for (int i = 0; i < OPEN_STREAMS; i++) {
        client_recv_status(&k[i]);
        CHECK(k[i].status == GRPC_STATUS_UNAVAILABLE);
        client_close(&k[i]);
    }
    CHECK(await_count(&released, before + OPEN_STREAMS));
}

int main(void)
{
    struct rpc_options o = {.methods = methods,
                            .n_methods = sizeof methods / sizeof *methods,
                            .threads = 1,
                            .max_request_bytes = MAX_REQUEST_BYTES,
                            .keepalive_min_ms = 5000,
                            .keepalive_interval_ms = 7200000,
                            .keepalive_timeout_ms = 20000};

    REQUIRE(rpc_new(&o, &rpc) == 0);
    REQUIRE(rpc_start(rpc) == 0);
    cq = grpc_completion_queue_create_for_pluck(NULL);
    channel = client_connect(rpc);
    TEST(unary_answers);
    TEST(unary_resumed_from_elsewhere);
    TEST(handlers_refuse);
    TEST(bad_requests);
    TEST(unknown_methods);
    TEST(compressed_requests);
    TEST(server_stream);
    TEST(bidi_echo);
    TEST(cancelled_calls_are_told);
    TEST(deep_nesting_is_refused);
    TEST(stats_count);
    TEST(stop_ends_open_streams_in_time);
    grpc_channel_destroy(channel);
    grpc_completion_queue_shutdown(cq);
    grpc_completion_queue_destroy(cq);
    rpc_free(rpc);
    return tap_done();
}
