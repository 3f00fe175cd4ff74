/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_client.h - a client of an rpc in the same process: gRPC core's, on the other end of a socketpair, one operation
 * at a time. Calls go to `channel`; who has several sets it. */
#pragma once
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include "daemon/rpc.h"
#include "tap.h"

enum { AWAIT_MS = 10000 };

static grpc_completion_queue *cq;
static grpc_channel *channel;

struct client {
    grpc_call *call;
    grpc_metadata_array head, tail;
    grpc_byte_buffer *got;
    grpc_status_code status;
    grpc_slice text;
};

static inline void client_batch(struct client *k, const grpc_op *op)
{
    gpr_timespec until =
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(AWAIT_MS, GPR_TIMESPAN));

    REQUIRE(grpc_call_start_batch(k->call, op, 1, k, NULL) == GRPC_CALL_OK);
    REQUIRE(grpc_completion_queue_pluck(cq, k, until, NULL).type == GRPC_OP_COMPLETE);
}

static inline void client_open(struct client *k, const char *path, int timeout_ms)
{
    gpr_timespec deadline =
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(timeout_ms, GPR_TIMESPAN));

    grpc_slice s = grpc_slice_from_copied_string(path);

    memset(k, 0, sizeof *k);
    k->call = grpc_channel_create_call(channel, NULL, 0, cq, s, NULL, deadline, NULL);
    grpc_slice_unref(s);
}

static inline void client_send_head(struct client *k, grpc_metadata *md, size_t n_md)
{
    client_batch(k, &(grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA,
                               .data.send_initial_metadata = {.count = n_md, .metadata = md}});
}

static inline void client_send(struct client *k, const void *p, size_t n)
{
    grpc_slice s = grpc_slice_from_copied_buffer(p, n);
    grpc_byte_buffer *b = grpc_raw_byte_buffer_create(&s, 1);

    client_batch(k, &(grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = b});
    grpc_byte_buffer_destroy(b);
    grpc_slice_unref(s);
}

static inline void client_half_close(struct client *k)
{
    client_batch(k, &(grpc_op){.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT});
}

static inline void client_recv_head(struct client *k)
{
    client_batch(k, &(grpc_op){.op = GRPC_OP_RECV_INITIAL_METADATA,
                               .data.recv_initial_metadata.recv_initial_metadata = &k->head});
}

/* The next message in k->got, or NULL: the end. */
static inline void client_recv(struct client *k)
{
    if (k->got)
        grpc_byte_buffer_destroy(k->got);
    k->got = NULL;
    client_batch(k, &(grpc_op){.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &k->got});
}

static inline void client_recv_status(struct client *k)
{
    client_batch(k, &(grpc_op){.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                               .data.recv_status_on_client = {.trailing_metadata = &k->tail,
                                                              .status = &k->status,
                                                              .status_details = &k->text}});
}

static inline bool text_is(const struct client *k, const char *text)
{
    bool same = grpc_slice_str_cmp(k->text, text) == 0;

    if (!same)
        printf("# status %d: %.*s\n", (int)k->status, (int)GRPC_SLICE_LENGTH(k->text),
               GRPC_SLICE_START_PTR(k->text));
    return same;
}

static inline void client_close(struct client *k)
{
    if (k->got)
        grpc_byte_buffer_destroy(k->got);
    grpc_slice_unref(k->text);
    grpc_metadata_array_destroy(&k->head);
    grpc_metadata_array_destroy(&k->tail);
    grpc_call_unref(k->call);
}

/* A whole unary call; bytes.ptr NULL: no message. */
static inline void client_unary(struct client *k, const char *path, struct slice bytes, grpc_metadata *md,
                                size_t n_md)
{
    client_open(k, path, AWAIT_MS);
    client_send_head(k, md, n_md);
    if (bytes.ptr)
        client_send(k, bytes.ptr, bytes.len);
    client_half_close(k);
    client_recv_head(k);
    client_recv(k);
    client_recv_status(k);
}

/* The status of the HealthCheckResponse in k->got, -1: none. */
static inline int answered_status(const struct client *k)
{
    grpc_byte_buffer_reader r;
    grpc_slice all;
    int v = -1;

    if (k->got == NULL)
        return -1;
    grpc_byte_buffer_reader_init(&r, k->got);
    all = grpc_byte_buffer_reader_readall(&r);
    if (GRPC_SLICE_LENGTH(all) == 2)
        v = GRPC_SLICE_START_PTR(all)[1];
    grpc_slice_unref(all);
    grpc_byte_buffer_reader_destroy(&r);
    return v;
}

/* A new connection. */
static grpc_channel *client_connect(struct rpc *rpc)
{
    grpc_channel_credentials *creds = grpc_insecure_credentials_create();
    /* What a client does not ask for stays at the server, but for a stream's first window. */
    grpc_arg args[] = {
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_HTTP2_BDP_PROBE, .value.integer = 0},
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES,
         .value.integer = 65535},
    };
    grpc_channel_args plain = {sizeof args / sizeof *args, args};
    grpc_channel *ch;
    int fd[2];

    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd) == 0);
    rpc_add_fd(rpc, fd[0]);
    ch = grpc_channel_create_from_fd("server", fd[1], creds, &plain);
    grpc_channel_credentials_release(creds);
    return ch;
}
