/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_out.c - a stream of messages to another member, on an rpc thread.
 *
 *      open: head, first message asked for, status asked for --> send ... --> status --> all back --> ended()
 *
 * Whatever happens to the stream is said once, by its status: a broken connection, a refusal, our own cut. The socket is
 * duplicated, so that it can be shut down while gRPC has it: a write that blocks holds a call for ever otherwise.
 *
 * Owner:    the rpc thread that it was opened on.
 * Not here: connecting (dial.c), the blocking kind (rpc_ask.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <sys/socket.h>
#include <unistd.h>
#include "rpc_out_impl.h"

struct rpc_out {
    struct rpc_out_options options;
    struct rpc_call_out call;
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *receiving, *sending;
    grpc_slice buffer;
    grpc_status_code status;
    grpc_slice text;
    bool over; /* the status has come */
    unsigned ops;
    struct op op_head, op_initial, op_send, op_recv, op_status;
};

#define OUT_OF(op, member) ((struct rpc_out *)((char *)(op) - offsetof(struct rpc_out, member)))

/* ---- what both kinds share ------------------------------------------------------------------------- */

static grpc_arg arg_int(const char *key, int value)
{
    return (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key, .value.integer = value};
}

static grpc_channel *channel_new(const struct rpc_out_target *t)
{
    grpc_channel_credentials *creds = grpc_insecure_credentials_create();
    grpc_arg args[] = {
        {.type = GRPC_ARG_STRING,
         .key = (char *)(uintptr_t)GRPC_ARG_DEFAULT_AUTHORITY,
         .value.string = (char *)(uintptr_t)t->authority},
        arg_int(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, LIMIT_PEER_ANSWER_BYTES),
        arg_int(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, -1),
        arg_int(GRPC_ARG_HTTP2_BDP_PROBE, 0),
        arg_int(GRPC_ARG_ENABLE_RETRIES, 0),
        arg_int(GRPC_ARG_ENABLE_CHANNELZ, 0),
        arg_int(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1),
    };
    grpc_channel_args channel_args = {.num_args = sizeof args / sizeof *args, .args = args};
    grpc_channel *channel = grpc_channel_create_from_fd(t->authority, t->fd, creds, &channel_args);

    grpc_channel_credentials_release(creds);
    return channel;
}

int rpc_call_out_open(struct rpc_call_out *c, const struct rpc_out_target *t, grpc_completion_queue *cq)
{
    c->own_fd = fcntl(t->fd, F_DUPFD_CLOEXEC, 0);
    if (c->own_fd < 0) {
        int err = -errno;

        (void)close(t->fd); /* nothing was sent */
        return err;
    }
    c->channel = channel_new(t);
    c->gcall = grpc_channel_create_call(c->channel, NULL, 0, cq, grpc_slice_from_copied_string(t->path), NULL,
                                        gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    for (; c->n_head < RPC_OUT_METADATA_MAX && t->metadata[c->n_head].key; c->n_head++)
        c->head[c->n_head] = (grpc_metadata){.key = grpc_slice_from_copied_string(t->metadata[c->n_head].key),
                                             .value = grpc_slice_from_copied_string(t->metadata[c->n_head].value)};
    return 0;
}

void rpc_call_out_cut(struct rpc_call_out *c)
{
    (void)shutdown(c->own_fd, SHUT_RDWR); /* not connected any more: just as well */
    (void)grpc_call_cancel(c->gcall, NULL);
}

void rpc_call_out_close(struct rpc_call_out *c)
{
    for (size_t i = 0; i < c->n_head; i++) {
        grpc_slice_unref(c->head[i].key);
        grpc_slice_unref(c->head[i].value);
    }
    grpc_call_unref(c->gcall);
    grpc_channel_destroy(c->channel);
    (void)shutdown(c->own_fd, SHUT_RDWR); /* the call is over; nothing that was said is lost by it */
    (void)close(c->own_fd);
}

/* ---- the stream --------------------------------------------------------------------------------------- */

static void out_batch(struct rpc_out *o, const grpc_op *ops, size_t n, struct op *op)
{
    grpc_call_error err = grpc_call_start_batch(o->call.gcall, ops, n, op, NULL);

    assert(err == GRPC_CALL_OK);
    o->ops++;
}

static void out_free(struct rpc_out *o)
{
    rpc_call_out_close(&o->call);
    if (o->sending)
        grpc_byte_buffer_destroy(o->sending);
    if (o->receiving)
        grpc_byte_buffer_destroy(o->receiving);
    grpc_metadata_array_destroy(&o->initial);
    grpc_metadata_array_destroy(&o->trailing);
    grpc_slice_unref(o->text);
    free(o);
}

/* Ends every op's done(). */
static void op_back(struct rpc_out *o)
{
    const struct rpc_out_options *opt = &o->options;

    if (--o->ops)
        return;
    assert(o->over);
    opt->ended(opt->ctx, (enum status)o->status, slice_of(GRPC_SLICE_START_PTR(o->text), GRPC_SLICE_LENGTH(o->text)));
    out_free(o);
}

static void nothing_done(struct op *op, bool ok)
{
    (void)ok; /* the status says it */
    op_back(OUT_OF(op, op_head));
}

static void receive_next(struct rpc_out *o)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &o->receiving};

    out_batch(o, &op, 1, &o->op_recv);
}

static void initial_done(struct op *op, bool ok)
{
    (void)ok;
    op_back(OUT_OF(op, op_initial));
}

static void recv_done(struct op *op, bool ok)
{
    struct rpc_out *o = OUT_OF(op, op_recv);
    grpc_byte_buffer *b = o->receiving;
    grpc_byte_buffer_reader reader;

    o->receiving = NULL;
    if (ok && b && !o->over && grpc_byte_buffer_reader_init(&reader, b)) {
        grpc_slice s = grpc_byte_buffer_reader_readall(&reader);

        grpc_byte_buffer_reader_destroy(&reader);
        o->options.received(o->options.ctx, slice_of(GRPC_SLICE_START_PTR(s), GRPC_SLICE_LENGTH(s)));
        grpc_slice_unref(s);
        receive_next(o);
    }
    if (b)
        grpc_byte_buffer_destroy(b);
    op_back(o);
}

static void send_done(struct op *op, bool ok)
{
    struct rpc_out *o = OUT_OF(op, op_send);

    grpc_byte_buffer_destroy(o->sending);
    o->sending = NULL;
    if (ok && !o->over)
        o->options.sent(o->options.ctx);
    op_back(o);
}

static void status_done(struct op *op, bool ok)
{
    struct rpc_out *o = OUT_OF(op, op_status);

    (void)ok; /* never false */
    o->over = true;
    op_back(o);
}

struct rpc_out *rpc_out_open(const struct rpc_out_options *opt)
{
    struct rpc_out *o = calloc(1, sizeof *o);
    grpc_op op;

    if (o == NULL) {
        (void)close(opt->target.fd); /* nothing was sent */
        return NULL;
    }
    o->options = *opt;
    if (rpc_call_out_open(&o->call, &opt->target, rpc_queue(opt->rpc, opt->thread))) {
        free(o);
        return NULL;
    }
    o->text = grpc_empty_slice();
    o->op_head.done = nothing_done;
    o->op_initial.done = initial_done;
    o->op_recv.done = recv_done;
    o->op_send.done = send_done;
    o->op_status.done = status_done;
    grpc_metadata_array_init(&o->initial);
    grpc_metadata_array_init(&o->trailing);
    op = (grpc_op){.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                   .data.recv_status_on_client = {.trailing_metadata = &o->trailing,
                                                  .status = &o->status,
                                                  .status_details = &o->text}};
    out_batch(o, &op, 1, &o->op_status);
    op = (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA,
                   .data.send_initial_metadata = {.count = o->call.n_head, .metadata = o->call.head}};
    out_batch(o, &op, 1, &o->op_head);
    op = (grpc_op){.op = GRPC_OP_RECV_INITIAL_METADATA,
                   .data.recv_initial_metadata.recv_initial_metadata = &o->initial};
    out_batch(o, &op, 1, &o->op_initial);
    receive_next(o);
    return o;
}

bool rpc_out_busy(const struct rpc_out *o)
{
    return o->sending || o->over;
}

uint8_t *rpc_out_buffer(struct rpc_out *o, size_t n)
{
    assert(!rpc_out_busy(o));
    o->buffer = grpc_slice_malloc(n);
    return GRPC_SLICE_START_PTR(o->buffer);
}

void rpc_out_send(struct rpc_out *o)
{
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE};

    o->sending = op.data.send_message.send_message = grpc_raw_byte_buffer_create(&o->buffer, 1);
    grpc_slice_unref(o->buffer);
    out_batch(o, &op, 1, &o->op_send);
}

void rpc_out_cut(struct rpc_out *o)
{
    rpc_call_out_cut(&o->call);
}
