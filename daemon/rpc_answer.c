/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_answer.c - what a call sends: a unary's answer, a stream's messages, the status.
 *
 * Promise: an answer is packed once; one that was passed shared is given back by done(), whatever becomes of it. A
 * stream has one send in flight; of the messages that wait behind it all but the last go with GRPC_WRITE_BUFFER_HINT,
 * the last never: core then writes them to the socket together (1.5 us a message for 7). What waits for slow clients is
 * counted and has limits, in all and for each connection.
 *
 * Owner:    the call's rpc thread.
 * Not here: arrival, receiving and the end (rpc_call.c).
 */
#include <errno.h>
#include <stdio.h>
#include "pb.h"
#include "rpc_impl.h"

enum { OPS_MAX = 4 };

/* ---- what waits for its client ---------------------------------------------------- */

static void add_bytes(_Atomic uint64_t *n, uint64_t bytes)
{
    atomic_fetch_add_explicit(n, bytes, memory_order_relaxed);
}

static uint64_t bytes_in(_Atomic uint64_t *n)
{
    return atomic_load_explicit(n, memory_order_relaxed);
}

/* bytes: of a message that is now queued; with a minus, of one that has left. */
static void account_message(struct call *c, uint64_t bytes)
{
    add_bytes(&c->thread->rpc->response_bytes, bytes);
    if (c->conn_bytes)
        add_bytes(c->conn_bytes, bytes);
}

static void sending_free(struct call *c)
{
    if (c->sending == NULL)
        return;
    grpc_byte_buffer_destroy(c->sending);
    c->sending = NULL;
    account_message(c, -(uint64_t)c->sending_bytes);
}

/* ---- packing -------------------------------------------------------------------- */

static grpc_byte_buffer *buffer_of_slice(grpc_slice s)
{
    grpc_byte_buffer *b = grpc_raw_byte_buffer_create(&s, 1);

    grpc_slice_unref(s);
    return b;
}

static grpc_byte_buffer *buffer_pack(const ProtobufCMessage *m, size_t *ret_bytes)
{
    size_t n = protobuf_c_message_get_packed_size(m);
    grpc_slice s = grpc_slice_malloc(n);

    protobuf_c_message_pack(m, GRPC_SLICE_START_PTR(s));
    *ret_bytes = n;
    return buffer_of_slice(s);
}

/* ---- the answer ------------------------------------------------------------------- */

void call_answer_done(struct op *op, bool ok)
{
    struct call *c = CALL_OF(op, op_answer);

    (void)ok; /* a client that went away meanwhile misses its answer */
    sending_free(c);
    call_op_back(c);
}

struct rpc_method_stats *call_stats(const struct call *c)
{
    return &c->thread->stats[c->method - c->thread->rpc->options.methods];
}

static grpc_op op_status(struct call *c, enum status status, grpc_slice *text)
{
    count_up(&call_stats(c)->handled[status]);
    return (grpc_op){.op = GRPC_OP_SEND_STATUS_FROM_SERVER,
                     .data.send_status_from_server = {.status = (grpc_status_code)status, .status_details = text}};
}

grpc_op call_op_close(struct call *c)
{
    c->listening = true;
    return (grpc_op){.op = GRPC_OP_RECV_CLOSE_ON_SERVER, .data.recv_close_on_server.cancelled = &c->cancelled};
}

/* Unary calls: head, message if any, status, and the close if it was not asked for before: one batch. */
static void answer_unary(struct call *c, enum status status, const char *text)
{
    grpc_slice details = grpc_slice_from_copied_string(text ? text : "");
    grpc_op ops[OPS_MAX] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}};
    size_t n = 1;

    c->answered = true;
    if (c->sending)
        ops[n++] = (grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = c->sending};
    ops[n++] = op_status(c, status, text ? &details : NULL);
    if (!c->listening)
        ops[n++] = call_op_close(c);
    call_batch(c, ops, n, &c->op_answer);
    grpc_slice_unref(details);
}

/* Where the bytes of this call's connection are counted. Core names it by its descriptor; two connections that share a
 * row share its limit. */
static _Atomic uint64_t *conn_row(struct call *c)
{
    char *peer = grpc_call_get_peer(c->gcall);
    uint32_t h = 2166136261u; /* FNV-1a */

    for (const char *p = peer; p && *p; p++)
        h = (h ^ (uint8_t)*p) * 16777619u;
    gpr_free(peer);
    return &c->thread->rpc->conn_bytes[h % RPC_CONN_ROWS];
}

/* Whether an answer of this size may be held until its client takes it, and counts it; fails the call when not. Small
 * ones are not counted: open streams bound them. A client that asks for much and reads nothing uses up its own part. */
static bool answer_fits(struct call *c, size_t bytes)
{
    struct rpc *r = c->thread->rpc;
    _Atomic uint64_t *row;

    c->sending_bytes = 0;
    if (bytes <= RPC_SMALL_ANSWER_BYTES)
        return true;
    row = conn_row(c);
    if ((bytes_in(row) && bytes_in(row) + bytes > LIMIT_CONN_RESPONSE_BYTES) ||
        bytes_in(&r->response_bytes) + bytes > LIMIT_RESPONSE_BYTES) {
        call_fail_text(c, STATUS_RESOURCE_EXHAUSTED, "cairn: too many bytes of responses wait for their clients");
        return false;
    }
    c->conn_bytes = row;
    c->sending_bytes = bytes;
    account_message(c, bytes);
    return true;
}

void call_answer_shared(struct call *c, struct slice bytes, void (*done)(void *owner), void *owner)
{
    void *p = (void *)(uintptr_t)bytes.ptr; /* gRPC reads it only */

    if (c->answered || c->gone || !answer_fits(c, bytes.len)) {
        done(owner);
        if (c->answered || c->gone)
            call_settle(c);
        return;
    }
    assert(c->method->kind == RPC_UNARY);
    c->sending = buffer_of_slice(grpc_slice_new_with_user_data(p, bytes.len, done, owner));
    count_up(&call_stats(c)->sent);
    answer_unary(c, STATUS_OK, NULL);
}

void call_answer(struct call *c, const ProtobufCMessage *m)
{
    size_t bytes;

    if (c->answered || c->gone) {
        call_settle(c);
        return;
    }
    assert(c->method->kind == RPC_UNARY);
    bytes = protobuf_c_message_get_packed_size(m);
    if (!answer_fits(c, bytes))
        return;
    c->sending = buffer_pack(m, &bytes);
    count_up(&call_stats(c)->sent);
    answer_unary(c, STATUS_OK, NULL);
}

/* Has calls_flush look at the call when this event is done. */
static void call_mark(struct call *c)
{
    if (c->dirty)
        return;
    c->dirty = true;
    c->dirty_next = c->thread->dirty;
    c->thread->dirty = c;
    call_ref(c);
}

/* A stream's status goes out when its last message has; a later one says nothing new. */
static void answer_stream(struct call *c, enum status status, const char *text)
{
    c->answered = c->status_waits = true;
    c->status = status;
    c->status_text = text ? strdup(text) : NULL;
    call_mark(c);
}

void call_fail_text(struct call *c, enum status status, const char *text)
{
    if (c->answered || c->gone) {
        call_settle(c);
        return;
    }
    if (c->method->kind == RPC_UNARY)
        answer_unary(c, status, text);
    else
        answer_stream(c, status, text);
}

void call_fail(struct call *c, int err)
{
    char text[160];

    assert(err != 0);
    if (err == -EUCLEAN) {
        const struct rpc_options *o = &c->thread->rpc->options;

        if (o->damaged)
            o->damaged(o->service, c->method->name);
        err = ERR_DAMAGED;
    }
    if (err > 0) {
        struct err_info info = err_info(err);

        call_fail_text(c, info.status, info.text);
        return;
    }
    snprintf(text, sizeof text, "cairn: %s", strerror(-err));
    call_fail_text(c, STATUS_INTERNAL, text);
}

/* ---- streams: sending --------------------------------------------------------------- */

static void send_drop_queue(struct call *c)
{
    while (c->out_first) {
        struct outgoing *o = c->out_first;

        c->out_first = o->next;
        account_message(c, -(uint64_t)o->bytes);
        grpc_byte_buffer_destroy(o->buffer);
        free(o);
    }
    c->out_last = &c->out_first;
    c->out_bytes = 0;
}

static void send_status(struct call *c)
{
    grpc_slice details = grpc_slice_from_copied_string(c->status_text ? c->status_text : "");
    grpc_op op = op_status(c, c->status, c->status_text ? &details : NULL);

    c->status_waits = false;
    call_batch(c, &op, 1, &c->op_answer);
    grpc_slice_unref(details);
}

/* Starts the next send, when none is in flight; or the status, when nothing waits before it. */
void call_send_next(struct call *c)
{
    struct outgoing *o = c->out_first;
    grpc_op op;

    if (c->sending)
        return;
    if (c->gone) {
        send_drop_queue(c);
        c->status_waits = false;
        return;
    }
    if (o == NULL) {
        if (c->status_waits)
            send_status(c);
        return;
    }
    c->out_first = o->next;
    if (o->next == NULL)
        c->out_last = &c->out_first;
    c->sending = o->buffer;
    c->sending_bytes = o->bytes;
    op = (grpc_op){.op = GRPC_OP_SEND_MESSAGE,
                   .flags = o->next ? GRPC_WRITE_BUFFER_HINT : 0,
                   .data.send_message.send_message = o->buffer};
    c->out_bytes -= o->bytes;
    free(o);
    call_batch(c, &op, 1, &c->op_send);
}

void call_send_done(struct op *op, bool ok)
{
    struct call *c = CALL_OF(op, op_send);

    (void)ok; /* RECV_CLOSE says it again */
    sending_free(c);
    call_send_next(c);
    if (c->sending == NULL && !c->gone && !c->answered && c->method->drained)
        c->method->drained(c);
    call_op_back(c);
}

void calls_flush(struct rpc_thread *t)
{
    while (t->dirty && !atomic_load_explicit(&t->rpc->abandoned, memory_order_relaxed)) {
        struct call *c = t->dirty;

        t->dirty = c->dirty_next;
        c->dirty = false;
        call_send_next(c);
        call_settle(c);
        call_unref(c);
    }
}

bool call_send_room(const struct call *c)
{
    if (c->gone || c->answered)
        return false;
    if (c->sending == NULL && c->out_first == NULL)
        return true;
    return c->out_bytes < LIMIT_SEND_BURST_BYTES &&
           bytes_in(&c->thread->rpc->response_bytes) < LIMIT_RESPONSE_BYTES;
}

static void send_queue(struct call *c, grpc_byte_buffer *b, size_t bytes)
{
    struct outgoing *o;

    assert(c->method->kind != RPC_UNARY);
    o = c->gone || c->answered ? NULL : malloc(sizeof *o);
    if (o == NULL) {
        bool lost = !c->gone && !c->answered;

        grpc_byte_buffer_destroy(b);
        if (lost)
            call_fail(c, -ENOMEM);
        return;
    }
    *o = (struct outgoing){.buffer = b, .bytes = bytes};
    *c->out_last = o;
    c->out_last = &o->next;
    c->out_bytes += bytes;
    account_message(c, bytes);
    count_up(&call_stats(c)->sent);
    call_mark(c);
}

void call_send(struct call *c, const ProtobufCMessage *m)
{
    size_t bytes;
    grpc_byte_buffer *b = buffer_pack(m, &bytes);

    send_queue(c, b, bytes);
}

void call_send_packed(struct call *c, struct slice bytes)
{
    send_queue(c, buffer_of_slice(grpc_slice_from_copied_buffer((const char *)bytes.ptr, bytes.len)), bytes.len);
}

void call_send_shared(struct call *c, struct slice bytes, void (*done)(void *owner), void *owner)
{
    call_send_joined(c, SLICE_NONE, bytes, done, owner);
}

void call_send_joined(struct call *c, struct slice head, struct slice bytes, void (*done)(void *owner), void *owner)
{
    void *p = (void *)(uintptr_t)bytes.ptr; /* gRPC reads it only */
    grpc_slice parts[2] = {grpc_slice_from_copied_buffer((const char *)head.ptr, head.len),
                           grpc_slice_new_with_user_data(p, bytes.len, done, owner)};
    size_t skip = head.len == 0;

    send_queue(c, grpc_raw_byte_buffer_create(parts + skip, 2 - skip), head.len + bytes.len);
    grpc_slice_unref(parts[0]);
    grpc_slice_unref(parts[1]);
}

void call_end(struct call *c)
{
    if (!c->answered && !c->gone)
        answer_stream(c, STATUS_OK, NULL);
}
