/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_ask.c - a call out whose caller waits: for a joining member's question, and for a snapshot's chunks.
 *
 * Each has a completion queue of its own, and one operation of each kind in flight at most. The socket is duplicated,
 * so that it can be shut down while gRPC has it: a write that blocks holds a call for ever otherwise.
 *
 * Owner:    the thread that opened it.
 * Not here: connecting (dial.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
#include "rpc_ask.h"
#include "rpc_impl.h"

/* One call on a channel of its own. */
struct call_out {
    grpc_channel *channel;
    grpc_call *gcall;
    grpc_metadata head[RPC_ASK_METADATA_MAX];
    size_t n_head;
    int own_fd; /* a duplicate: shut down to cut the call off */
};

enum tag { TAG_HEAD = 1, TAG_SEND, TAG_RECV, TAG_END, TAG_STATUS, TAGS };

struct rpc_ask {
    struct call_out call;
    grpc_completion_queue *cq;
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *sending, *receiving;
    grpc_status_code status;
    grpc_slice text;
    bool out[TAGS], ok[TAGS]; /* in flight; how the last one ended */
    bool ending; /* messages that come now are thrown away */
};

/* ---- the call ------------------------------------------------------------------------------------------ */

static grpc_arg arg_int(const char *key, int value)
{
    return (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key, .value.integer = value};
}

static grpc_channel *channel_new(const struct rpc_ask_target *t)
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

static int call_out_open(struct call_out *c, const struct rpc_ask_target *t, grpc_completion_queue *cq)
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
    for (; c->n_head < RPC_ASK_METADATA_MAX && t->metadata[c->n_head].key; c->n_head++)
        c->head[c->n_head] = (grpc_metadata){.key = grpc_slice_from_copied_string(t->metadata[c->n_head].key),
                                             .value = grpc_slice_from_copied_string(t->metadata[c->n_head].value)};
    return 0;
}

static void call_out_cut(struct call_out *c)
{
    (void)shutdown(c->own_fd, SHUT_RDWR); /* not connected any more: just as well */
    (void)grpc_call_cancel(c->gcall, NULL);
}

static void call_out_close(struct call_out *c)
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

/* ---- waiting ------------------------------------------------------------------------------------------- */

static void ask_batch(struct rpc_ask *a, const grpc_op *ops, size_t n, enum tag tag)
{
    grpc_call_error err = grpc_call_start_batch(a->call.gcall, ops, n, (void *)(uintptr_t)tag, NULL);

    assert(err == GRPC_CALL_OK);
    a->out[tag] = true;
}

static bool any_out(const struct rpc_ask *a)
{
    for (int i = 0; i < TAGS; i++)
        if (a->out[i])
            return true;
    return false;
}

static void ask_next(struct rpc_ask *a)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &a->receiving};

    ask_batch(a, &op, 1, TAG_RECV);
}

/* Core tells the status only after all messages have been taken. */
static void ask_skip(struct rpc_ask *a)
{
    if (a->receiving == NULL)
        return;
    grpc_byte_buffer_destroy(a->receiving);
    a->receiving = NULL;
    ask_next(a);
}

/* Until this operation is back. False: not in time. */
static bool ask_wait(struct rpc_ask *a, enum tag tag, gpr_timespec until)
{
    while (a->out[tag]) {
        grpc_event ev = grpc_completion_queue_next(a->cq, until, NULL);
        enum tag got = (enum tag)(uintptr_t)ev.tag;

        if (ev.type != GRPC_OP_COMPLETE)
            return false;
        a->out[got] = false;
        a->ok[got] = ev.success != 0;
        if (got == TAG_SEND) {
            grpc_byte_buffer_destroy(a->sending);
            a->sending = NULL;
        }
        if (got == TAG_RECV && a->ending)
            ask_skip(a);
    }
    return true;
}

static gpr_timespec in_ms(uint32_t ms)
{
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(ms, GPR_TIMESPAN));
}

int rpc_ask_open(const struct rpc_ask_target *target, struct rpc_ask **ret_ask)
{
    struct rpc_ask *a = calloc(1, sizeof *a);
    grpc_op ops[2];
    int err;

    if (a == NULL) {
        (void)close(target->fd); /* nothing was sent */
        return -ENOMEM;
    }
    rpc_core_init();
    a->cq = grpc_completion_queue_create_for_next(NULL);
    err = call_out_open(&a->call, target, a->cq);
    if (err) {
        grpc_completion_queue_shutdown(a->cq);
        grpc_completion_queue_destroy(a->cq);
        grpc_shutdown();
        free(a);
        return err;
    }
    a->text = grpc_empty_slice();
    grpc_metadata_array_init(&a->initial);
    grpc_metadata_array_init(&a->trailing);
    ops[0] = (grpc_op){.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                       .data.recv_status_on_client = {.trailing_metadata = &a->trailing,
                                                      .status = &a->status,
                                                      .status_details = &a->text}};
    ask_batch(a, ops, 1, TAG_STATUS);
    ops[0] = (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA,
                       .data.send_initial_metadata = {.count = a->call.n_head, .metadata = a->call.head}};
    ops[1] = (grpc_op){.op = GRPC_OP_RECV_INITIAL_METADATA,
                       .data.recv_initial_metadata.recv_initial_metadata = &a->initial};
    ask_batch(a, ops, 2, TAG_HEAD);
    *ret_ask = a;
    return 0;
}

int rpc_ask_send(struct rpc_ask *a, struct slice bytes, uint32_t timeout_ms)
{
    grpc_slice s = grpc_slice_from_copied_buffer((const char *)bytes.ptr, bytes.len);
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE};

    assert(!a->out[TAG_SEND]);
    a->sending = op.data.send_message.send_message = grpc_raw_byte_buffer_create(&s, 1);
    grpc_slice_unref(s);
    ask_batch(a, &op, 1, TAG_SEND);
    if (!ask_wait(a, TAG_SEND, in_ms(timeout_ms)))
        return -ETIMEDOUT;
    return a->ok[TAG_SEND] ? 0 : -EPIPE;
}

int rpc_ask_receive(struct rpc_ask *a, uint32_t timeout_ms, struct slice *ret_bytes)
{
    grpc_byte_buffer_reader reader;
    grpc_byte_buffer *b;
    uint8_t *copy = NULL;
    size_t n = 0;

    if (!a->out[TAG_RECV])
        ask_next(a);
    if (!ask_wait(a, TAG_RECV, in_ms(timeout_ms)))
        return -ETIMEDOUT;
    b = a->receiving;
    a->receiving = NULL;
    if (b == NULL)
        return -EPIPE;
    if (grpc_byte_buffer_reader_init(&reader, b)) {
        grpc_slice s = grpc_byte_buffer_reader_readall(&reader);

        n = GRPC_SLICE_LENGTH(s);
        copy = malloc(n + 1);
        if (copy)
            memcpy(copy, GRPC_SLICE_START_PTR(s), n);
        grpc_slice_unref(s);
        grpc_byte_buffer_reader_destroy(&reader);
    }
    grpc_byte_buffer_destroy(b);
    if (copy == NULL)
        return -ENOMEM;
    *ret_bytes = slice_of(copy, n);
    return 0;
}

static void ask_free(struct rpc_ask *a)
{
    a->ending = true;
    if (any_out(a))
        call_out_cut(&a->call);
    for (enum tag tag = TAG_HEAD; tag < TAGS; tag++)
        (void)ask_wait(a, tag, gpr_inf_future(GPR_CLOCK_MONOTONIC)); /* a call that was cut ends at once */
    call_out_close(&a->call);
    if (a->receiving)
        grpc_byte_buffer_destroy(a->receiving);
    grpc_metadata_array_destroy(&a->initial);
    grpc_metadata_array_destroy(&a->trailing);
    grpc_slice_unref(a->text);
    grpc_completion_queue_shutdown(a->cq);
    while (grpc_completion_queue_next(a->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type != GRPC_QUEUE_SHUTDOWN)
        ;
    grpc_completion_queue_destroy(a->cq);
    grpc_shutdown();
    free(a);
}

enum status rpc_ask_end(struct rpc_ask *a, uint32_t timeout_ms, char *text, size_t text_size)
{
    grpc_op op = {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};
    enum status status = STATUS_DEADLINE_EXCEEDED;

    if (text_size)
        text[0] = '\0';
    a->ending = true;
    if (!a->out[TAG_SEND])
        ask_batch(a, &op, 1, TAG_END);
    if (!a->out[TAG_RECV])
        ask_next(a);
    if (ask_wait(a, TAG_STATUS, in_ms(timeout_ms))) {
        status = (enum status)a->status;
        if (text_size)
            (void)snprintf(text, text_size, "%.*s", (int)GRPC_SLICE_LENGTH(a->text),
                           (const char *)GRPC_SLICE_START_PTR(a->text));
    }
    ask_free(a);
    return status;
}

void rpc_ask_cut(struct rpc_ask *a)
{
    if (a)
        ask_free(a);
}
