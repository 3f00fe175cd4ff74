/* SPDX-License-Identifier: Apache-2.0 */
/* calls.c - gRPC core's C API behind calls.h. Completion queues to pluck from: each call is its thread's alone. */
#include "calls.h"
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

enum { CONNECT_MS = 1000, BACKOFF_FIRST_MS = 50, BACKOFF_MAX_MS = 200, SEND_MS = 2000, BEAT_MS = 50 };

int64_t now_ns(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void pause_ms(int64_t ms)
{
    struct timespec t = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};

    (void)nanosleep(&t, NULL); /* a signal only makes it shorter */
}

static gpr_timespec in_ms(int64_t ms)
{
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(ms, GPR_TIMESPAN));
}

/* gRPC core moves bytes only while a thread waits for it: one always does, so that a connection comes to be between two
 * calls also when all clients rest. */
static void *poll_always(void *arg)
{
    (void)grpc_completion_queue_next(arg, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL); /* nothing ever comes */
    return NULL;
}

static _Atomic int64_t lost_ns;

int64_t fair_ns(void)
{
    return now_ns() - atomic_load(&lost_ns);
}

/* Sleeps for a moment, again and again, and counts by how much it overslept. */
static void *count_lost_time(void *arg)
{
    for (;;) {
        int64_t from = now_ns(), over;

        pause_ms(BEAT_MS);
        over = now_ns() - from - 2 * BEAT_MS * INT64_C(1000000);
        if (over > 0)
            atomic_fetch_add(&lost_ns, over);
    }
    return arg;
}

void calls_init(void)
{
    pthread_t thread;
    int r;

    grpc_init();
    r = pthread_create(&thread, NULL, count_lost_time, NULL);
    assert(r == 0);
    (void)pthread_detach(thread);
    r = pthread_create(&thread, NULL, poll_always, grpc_completion_queue_create_for_next(NULL));
    assert(r == 0);
    (void)r;
    (void)pthread_detach(thread);
}

void caller_open(struct caller *c, const char *address)
{
    grpc_arg args[] = {
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS,
         .value.integer = BACKOFF_FIRST_MS},
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, .value.integer = CONNECT_MS},
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, .value.integer = BACKOFF_MAX_MS},
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, .value.integer = 1},
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_ENABLE_RETRIES, .value.integer = 0},
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_ENABLE_HTTP_PROXY, .value.integer = 0},
    };
    grpc_channel_args all = {sizeof args / sizeof args[0], args};
    grpc_channel_credentials *plain = grpc_insecure_credentials_create();

    c->cq = grpc_completion_queue_create_for_pluck(NULL);
    c->channel = grpc_channel_create(address, plain, &all);
    grpc_channel_credentials_release(plain);
}

void caller_close(struct caller *c)
{
    grpc_channel_destroy(c->channel);
    grpc_completion_queue_shutdown(c->cq);
    grpc_completion_queue_destroy(c->cq);
}

static grpc_byte_buffer *pack(const ProtobufCMessage *m)
{
    grpc_slice s = grpc_slice_malloc(protobuf_c_message_get_packed_size(m));
    grpc_byte_buffer *b;

    protobuf_c_message_pack(m, GRPC_SLICE_START_PTR(s));
    b = grpc_raw_byte_buffer_create(&s, 1);
    grpc_slice_unref(s);
    return b;
}

static ProtobufCMessage *unpack(grpc_byte_buffer *b, const ProtobufCMessageDescriptor *d)
{
    grpc_byte_buffer_reader reader;
    ProtobufCMessage *m;
    grpc_slice all;

    grpc_byte_buffer_reader_init(&reader, b);
    all = grpc_byte_buffer_reader_readall(&reader);
    m = protobuf_c_message_unpack(d, NULL, GRPC_SLICE_LENGTH(all), GRPC_SLICE_START_PTR(all));
    grpc_slice_unref(all);
    grpc_byte_buffer_reader_destroy(&reader);
    return m;
}

static void copy_text(grpc_slice details, char *ret_text)
{
    size_t n = GRPC_SLICE_LENGTH(details) < CALL_TEXT - 1 ? GRPC_SLICE_LENGTH(details) : CALL_TEXT - 1;

    memcpy(ret_text, GRPC_SLICE_START_PTR(details), n);
    ret_text[n] = 0;
}

const char *rec_path(enum rec_kind kind)
{
    static const char *const paths[REC_KINDS] = {
        [REC_PUT] = "/etcdserverpb.KV/Put",
        [REC_DELETE] = "/etcdserverpb.KV/DeleteRange",
        [REC_TXN] = "/etcdserverpb.KV/Txn",
        [REC_RANGE] = "/etcdserverpb.KV/Range",
        [REC_COMPACT] = "/etcdserverpb.KV/Compact",
        [REC_GRANT] = "/etcdserverpb.Lease/LeaseGrant",
        [REC_REVOKE] = "/etcdserverpb.Lease/LeaseRevoke",
        [REC_KEEPALIVE] = "/etcdserverpb.Lease/LeaseKeepAlive",
        [REC_LEASES] = "/etcdserverpb.Lease/LeaseLeases",
        [REC_HASH] = "/etcdserverpb.Maintenance/HashKV",
        [REC_WATCH] = "/etcdserverpb.Watch/Watch",
        [REC_RENAME] = "/cairn.Tree/Rename",
    };

    return paths[kind];
}

int caller_ask(struct caller *c, const char *path, const ProtobufCMessage *req, const ProtobufCMessageDescriptor *d,
               int timeout_ms, ProtobufCMessage **ret_resp, char *ret_text)
{
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *message = pack(req), *got = NULL;
    grpc_status_code status;
    grpc_slice details, p = grpc_slice_from_copied_string(path);
    grpc_call *call = grpc_channel_create_call(c->channel, NULL, 0, c->cq, p, NULL, in_ms(timeout_ms), NULL);
    grpc_op ops[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = message},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
        {.op = GRPC_OP_RECV_INITIAL_METADATA, .data.recv_initial_metadata.recv_initial_metadata = &initial},
        {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &got},
        {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
         .data.recv_status_on_client = {.trailing_metadata = &trailing, .status = &status, .status_details = &details}},
    };
    grpc_call_error e;

    *ret_resp = NULL;
    grpc_metadata_array_init(&initial);
    grpc_metadata_array_init(&trailing);
    e = grpc_call_start_batch(call, ops, sizeof ops / sizeof ops[0], &call, NULL);
    assert(e == GRPC_CALL_OK);
    (void)grpc_completion_queue_pluck(c->cq, &call, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    if (status == GRPC_STATUS_OK && got)
        *ret_resp = unpack(got, d);
    if (status == GRPC_STATUS_OK && *ret_resp == NULL)
        status = GRPC_STATUS_INTERNAL; /* an answer without a message */
    if (ret_text)
        copy_text(details, ret_text);
    if (got)
        grpc_byte_buffer_destroy(got);
    grpc_byte_buffer_destroy(message);
    grpc_slice_unref(details);
    grpc_slice_unref(p);
    grpc_metadata_array_destroy(&initial);
    grpc_metadata_array_destroy(&trailing);
    grpc_call_unref(call);
    return (int)status;
}

/* ---- streams ------------------------------------------------------------------------------------- */

static void start(struct stream *s, const grpc_op *ops, size_t n, void *tag)
{
    grpc_call_error e = grpc_call_start_batch(s->call, ops, n, tag, NULL);

    assert(e == GRPC_CALL_OK);
    (void)e;
}

bool stream_open(struct stream *s, struct caller *c, const char *path)
{
    grpc_slice p = grpc_slice_from_copied_string(path);
    grpc_op end = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                   .data.recv_status_on_client = {.trailing_metadata = &s->trailing, .status = &s->status,
                                                  .status_details = &s->details}};
    grpc_op begin = {.op = GRPC_OP_SEND_INITIAL_METADATA};
    grpc_op head = {.op = GRPC_OP_RECV_INITIAL_METADATA,
                    .data.recv_initial_metadata.recv_initial_metadata = &s->initial};
    grpc_op ops[] = {head, end};
    grpc_event e;

    *s = (struct stream){.caller = c};
    s->call = grpc_channel_create_call(c->channel, NULL, 0, c->cq, p, NULL, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    grpc_slice_unref(p);
    grpc_metadata_array_init(&s->initial);
    grpc_metadata_array_init(&s->trailing);
    start(s, ops, 2, &s->end_tag);
    start(s, &begin, 1, &s->send_tag);
    e = grpc_completion_queue_pluck(c->cq, &s->send_tag, in_ms(SEND_MS), NULL);
    if (e.type == GRPC_OP_COMPLETE && e.success)
        return true;
    if (e.type != GRPC_OP_COMPLETE) {
        (void)grpc_call_cancel(s->call, NULL);
        (void)grpc_completion_queue_pluck(c->cq, &s->send_tag, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    }
    stream_close(s);
    return false;
}

bool stream_send(struct stream *s, const ProtobufCMessage *m)
{
    grpc_byte_buffer *b = pack(m);
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = b};
    grpc_event e;

    start(s, &op, 1, &s->send_tag);
    e = grpc_completion_queue_pluck(s->caller->cq, &s->send_tag, in_ms(SEND_MS), NULL);
    if (e.type != GRPC_OP_COMPLETE) {
        (void)grpc_call_cancel(s->call, NULL);
        e = grpc_completion_queue_pluck(s->caller->cq, &s->send_tag, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        e.success = 0;
    }
    grpc_byte_buffer_destroy(b);
    return e.success;
}

int stream_receive(struct stream *s, const ProtobufCMessageDescriptor *d, int timeout_ms, ProtobufCMessage **ret_m)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &s->got};

    if (!s->receiving)
        start(s, &op, 1, &s->recv_tag);
    s->receiving = true;
    if (grpc_completion_queue_pluck(s->caller->cq, &s->recv_tag, in_ms(timeout_ms), NULL).type != GRPC_OP_COMPLETE)
        return 0;
    s->receiving = false;
    if (s->got == NULL)
        return -1;
    *ret_m = unpack(s->got, d);
    grpc_byte_buffer_destroy(s->got);
    s->got = NULL;
    return *ret_m ? 1 : -1;
}

void stream_close(struct stream *s)
{
    gpr_timespec forever = gpr_inf_future(GPR_CLOCK_MONOTONIC);

    (void)grpc_call_cancel(s->call, NULL);
    if (s->receiving)
        (void)grpc_completion_queue_pluck(s->caller->cq, &s->recv_tag, forever, NULL);
    (void)grpc_completion_queue_pluck(s->caller->cq, &s->end_tag, forever, NULL);
    if (s->got)
        grpc_byte_buffer_destroy(s->got);
    grpc_slice_unref(s->details);
    grpc_metadata_array_destroy(&s->initial);
    grpc_metadata_array_destroy(&s->trailing);
    grpc_call_unref(s->call);
}
