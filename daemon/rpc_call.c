/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_call.c - one call's life: arrival, messages in and out, the answer, the end.
 *
 *      arrived -> start() -> ... -> answered or gone -> all operations back -> gcall freed -> last reference -> release()
 *
 * Promise: release() runs once for every call whose handler was started, on the call's thread. RECV_CLOSE is asked for
 * exactly once: inside a unary's answer, or alone at the start where the method wants to hear that its client is gone.
 * A stream has one send in flight; of the messages that wait behind it all but the last go with GRPC_WRITE_BUFFER_HINT,
 * the last never: core then writes them to the socket together (1.5 us a message for 7).
 *
 * Owner:    the call's rpc thread.
 * Not here: queues and threads (rpc.c), decoding (pb.c).
 */
#include <errno.h>
#include <stdio.h>
#include "log.h"
#include "pb.h"
#include "rpc_impl.h"

#define CALL_OF(op, member) ((struct call *)((char *)(op) - offsetof(struct call, member)))

enum { OPS_MAX = 4 };

/* ---- memory and references ---------------------------------------------------- */

static bool has_first(const struct rpc_method *m)
{
    return m->kind == RPC_UNARY;
}

static struct call *call_new(struct rpc_thread *t, const struct rpc_method *m)
{
    size_t first = has_first(m) ? RPC_CALL_FIRST_BYTES : 0;
    struct call *c = first ? t->free_calls : NULL;

    if (c) {
        t->free_calls = c->next;
        t->n_free_calls--;
    } else {
        c = malloc(sizeof *c + first);
        if (c == NULL)
            return NULL;
    }
    memset(c, 0, sizeof *c);
    c->thread = t;
    c->method = m;
    c->refs = 1;
    c->out_last = &c->out_first;
    arena_init(&c->arena, 2 * t->rpc->message_max_bytes + LIMIT_DECODE_SLACK_BYTES, first ? c->first : NULL, first);
    c->next = t->calls;
    if (t->calls)
        t->calls->prev = c;
    t->calls = c;
    atomic_fetch_add_explicit(&t->rpc->n_calls, 1, memory_order_relaxed);
    return c;
}

void call_memory_free(struct call *c)
{
    arena_fini(&c->arena);
    free(c);
}

/* gRPC's part is over: the metadata and the connection are let go. */
static void call_drop_gcall(struct call *c)
{
    grpc_metadata_array_destroy(&c->metadata);
    c->metadata = (grpc_metadata_array){0};
    if (c->receiving)
        grpc_byte_buffer_destroy(c->receiving);
    c->receiving = NULL;
    grpc_call_unref(c->gcall);
    c->gcall = NULL;
}

static void call_dispose(struct call *c)
{
    struct rpc_thread *t = c->thread;

    if (c->started && c->method->release)
        c->method->release(c);
    if (c->prev)
        c->prev->next = c->next;
    else
        t->calls = c->next;
    if (c->next)
        c->next->prev = c->prev;
    atomic_fetch_sub_explicit(&t->rpc->n_calls, 1, memory_order_relaxed);
    free(c->status_text);
    if (!has_first(c->method) || t->n_free_calls >= RPC_FREE_CALLS) {
        call_memory_free(c);
        return;
    }
    arena_fini(&c->arena);
    c->next = t->free_calls;
    t->free_calls = c;
    t->n_free_calls++;
}

void call_ref(struct call *c)
{
    c->refs++;
}

void call_unref(struct call *c)
{
    assert(c->refs > 0);
    if (--c->refs == 0)
        call_dispose(c);
}

/* ---- batches -------------------------------------------------------------------- */

static void call_batch(struct call *c, const grpc_op *ops, size_t n, struct op *op)
{
    grpc_call_error err = grpc_call_start_batch(c->gcall, ops, n, op, NULL);

    assert(err == GRPC_CALL_OK);
    c->refs++;
    c->ops++;
}

/* The call's own reference goes once it is answered or its client is gone. */
static void call_settle(struct call *c)
{
    if (c->ended || !(c->answered || c->gone) || c->ops)
        return;
    c->ended = true;
    if (c->gcall)
        call_drop_gcall(c);
    call_unref(c);
}

/* Ends every op's done(): its reference goes. */
static void op_back(struct call *c)
{
    assert(c->ops > 0);
    c->ops--;
    call_settle(c);
    call_unref(c);
}

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

static void answer_done(struct op *op, bool ok)
{
    struct call *c = CALL_OF(op, op_answer);

    (void)ok; /* a client that went away meanwhile misses its answer */
    sending_free(c);
    op_back(c);
}

static struct rpc_method_stats *stats_of(const struct call *c)
{
    return &c->thread->stats[c->method - c->thread->rpc->options.methods];
}

static grpc_op op_status(struct call *c, enum status status, grpc_slice *text)
{
    count_up(&stats_of(c)->handled[status]);
    return (grpc_op){.op = GRPC_OP_SEND_STATUS_FROM_SERVER,
                     .data.send_status_from_server = {.status = (grpc_status_code)status, .status_details = text}};
}

static grpc_op op_close(struct call *c)
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
        ops[n++] = op_close(c);
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
    count_up(&stats_of(c)->sent);
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
    count_up(&stats_of(c)->sent);
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

/* Once in a process's life: whoever reads the damaged row again and again must not fill the log. */
static void damage_log(struct call *c)
{
    if (!atomic_exchange(&c->thread->rpc->damage_logged, true))
        log_error("rpc: the store is damaged: what was read does not have its checksum. It is not answered, the rest is; "
                  "save what can be read, then restore the member from a backup",
                  LOG_STR("service", c->method->service), LOG_STR("method", c->method->name));
}

void call_fail(struct call *c, int err)
{
    char text[160];

    assert(err != 0);
    if (err == -EUCLEAN) {
        damage_log(c);
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
static void send_next(struct call *c)
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

static void send_done(struct op *op, bool ok)
{
    struct call *c = CALL_OF(op, op_send);

    (void)ok; /* RECV_CLOSE says it again */
    sending_free(c);
    send_next(c);
    if (c->sending == NULL && !c->gone && !c->answered && c->method->drained)
        c->method->drained(c);
    op_back(c);
}

void calls_flush(struct rpc_thread *t)
{
    while (t->dirty && !atomic_load_explicit(&t->rpc->abandoned, memory_order_relaxed)) {
        struct call *c = t->dirty;

        t->dirty = c->dirty_next;
        c->dirty = false;
        send_next(c);
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
    count_up(&stats_of(c)->sent);
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

/* ---- receiving ------------------------------------------------------------------------ */

/* The message's bytes: mostly gRPC's own piece of memory, else put together in t->request. */
static bool request_bytes(struct rpc_thread *t, grpc_byte_buffer *payload)
{
    grpc_slice *s = &payload->data.raw.slice_buffer.slices[0];
    grpc_byte_buffer_reader reader;

    if (payload->data.raw.slice_buffer.count != 1) {
        if (!grpc_byte_buffer_reader_init(&reader, payload))
            return false;
        t->joined = grpc_byte_buffer_reader_readall(&reader);
        grpc_byte_buffer_reader_destroy(&reader);
        s = &t->joined;
    }
    t->request = slice_of(GRPC_SLICE_START_PTR(*s), GRPC_SLICE_LENGTH(*s));
    return true;
}

static void request_over(struct rpc_thread *t, grpc_byte_buffer *payload)
{
    grpc_slice_unref(t->joined);
    t->joined = (grpc_slice){0}; /* the empty one: nothing to unref */
    t->request = SLICE_NONE;
    grpc_byte_buffer_destroy(payload);
}

/* Checks and decodes what came; answers the call itself, and returns false, when it will not do. */
static bool receive(struct call *c, struct arena *a, grpc_byte_buffer *payload, ProtobufCMessage **ret_msg)
{
    size_t max = c->thread->rpc->message_max_bytes, n = payload ? grpc_byte_buffer_length(payload) : 0;
    char text[96];
    int err;

    if (payload == NULL) {
        call_fail_text(c, STATUS_INTERNAL, "cairn: the call ended before its request message");
        return false;
    }
    if (n > max) {
        snprintf(text, sizeof text, "grpc: received message larger than max (%zu vs. %zu)", n, max);
        call_fail_text(c, STATUS_RESOURCE_EXHAUSTED, text);
        return false;
    }
    if (payload->data.raw.compression != GRPC_COMPRESS_NONE) {
        call_fail_text(c, STATUS_UNIMPLEMENTED, "cairn: compressed messages are not supported");
        return false;
    }
    err = request_bytes(c->thread, payload) ? 0 : ERR_BAD_REQUEST;
    if (err == 0 && c->method->request)
        err = pb_unpack(c->method->request, a, c->thread->request, ret_msg);
    if (err)
        call_fail(c, err);
    else
        count_up(&stats_of(c)->received);
    return err == 0;
}

static void receive_next(struct call *c)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &c->receiving};

    call_batch(c, &op, 1, &c->op_recv);
}

void call_hold(struct call *c)
{
    c->held = true;
}

void call_go_on(struct call *c)
{
    assert(c->held);
    c->held = false;
    if (!c->answered && !c->gone)
        receive_next(c);
}

static void recv_done(struct op *op, bool ok)
{
    struct call *c = CALL_OF(op, op_recv);
    struct rpc_thread *t = c->thread;
    grpc_byte_buffer *payload = c->receiving;
    ProtobufCMessage *m = NULL;

    c->receiving = NULL;
    if (payload == NULL || !ok) {
        if (!c->answered && !c->gone && c->method->half_closed)
            c->method->half_closed(c);
    } else if (!c->answered && !c->gone && receive(c, &t->scratch, payload, &m)) {
        c->method->message(c, m);
    }
    if (payload) {
        request_over(t, payload);
        arena_fini(&t->scratch);
        if (!c->answered && !c->gone && !c->held)
            receive_next(c);
    }
    op_back(c);
}

/* ---- arrival and end ------------------------------------------------------------------- */

static void close_done(struct op *op, bool ok)
{
    struct call *c = CALL_OF(op, op_close);

    bool answered = c->answered;

    (void)ok; /* never false */
    if (!answered || c->cancelled)
        c->gone = true;
    if (!answered)
        count_up(&stats_of(c)->handled[STATUS_CANCELLED]);
    if (c->started && c->method->gone && (!answered || c->method->kind != RPC_UNARY))
        c->method->gone(c);
    if (c->gone)
        send_next(c);
    op_back(c);
}

static void initial_done(struct op *op, bool ok)
{
    (void)ok;
    op_back(CALL_OF(op, op_initial));
}

static uint64_t deadline_of(const struct call *c, gpr_timespec deadline)
{
    uint32_t server_ms = c->thread->rpc->options.request_timeout_ms;
    uint64_t ours = UINT64_MAX, theirs = UINT64_MAX;

    if (c->method->kind == RPC_UNARY && server_ms)
        ours = rpc_now_ms() + server_ms;
    if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) != 0) {
        deadline = gpr_convert_clock_type(deadline, GPR_CLOCK_MONOTONIC);
        theirs = deadline.tv_sec < 0 ? 0 : (uint64_t)deadline.tv_sec * 1000 + (uint64_t)deadline.tv_nsec / 1000000;
    }
    return ours < theirs ? ours : theirs;
}

/* Streams tell their head at once; whoever wants to hear of the end listens from the start. */
static void open_call(struct call *c)
{
    grpc_op op;

    if (c->method->kind != RPC_UNARY) {
        op = (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA};
        call_batch(c, &op, 1, &c->op_initial);
    }
    if (c->method->kind != RPC_UNARY || c->method->gone) {
        op = op_close(c);
        call_batch(c, &op, 1, &c->op_close);
    }
}

static void serve(struct call *c, grpc_byte_buffer *payload)
{
    const struct rpc_options *o = &c->thread->rpc->options;
    ProtobufCMessage *m = NULL;
    int err = 0;

    if (c->thread->stopping) {
        call_fail(c, ERR_STOPPED);
        return;
    }
    if (atomic_load_explicit(&c->thread->rpc->n_calls, memory_order_relaxed) > LIMIT_CALLS) {
        call_fail_text(c, STATUS_RESOURCE_EXHAUSTED, "cairn: too many calls at once");
        return;
    }
    if (c->method->kind != RPC_BIDI && !receive(c, &c->arena, payload, &m))
        return;
    if (o->admit)
        err = o->admit(c, m);
    if (err) {
        call_fail(c, err);
        return;
    }
    c->arena.limit_bytes += LIMIT_RESPONSE_BYTES; /* what was bounded so far is the request */
    c->started = true;
    c->method->start(c, m);
    if (c->method->kind == RPC_BIDI && !c->answered)
        receive_next(c);
}

void call_arrived(struct rpc_thread *t, const struct rpc_method *m, grpc_call *gcall, gpr_timespec deadline,
                  grpc_metadata_array *metadata, grpc_byte_buffer *payload)
{
    struct call *c = call_new(t, m);

    if (c == NULL) {
        call_refuse(t, gcall, metadata, STATUS_RESOURCE_EXHAUSTED, "cairn: no memory for another call");
    } else {
        c->gcall = gcall;
        c->metadata = *metadata;
        c->deadline_ms = deadline_of(c, deadline);
        c->op_answer.done = answer_done;
        c->op_close.done = close_done;
        c->op_initial.done = initial_done;
        c->op_send.done = send_done;
        c->op_recv.done = recv_done;
        count_up(&stats_of(c)->started);
        open_call(c);
        serve(c, payload);
    }
    if (payload)
        request_over(t, payload);
}

void call_stop(struct call *c)
{
    if (!c->answered && !c->gone)
        call_fail(c, ERR_STOPPED);
}

/* ---- calls that no handler sees ----------------------------------------------------------- */

struct refusal {
    struct op op;
    grpc_call *gcall;
    grpc_metadata_array metadata;
    int cancelled;
};

static void refusal_done(struct op *op, bool ok)
{
    struct refusal *f = (struct refusal *)op;

    (void)ok;
    grpc_metadata_array_destroy(&f->metadata);
    grpc_call_unref(f->gcall);
    free(f);
}

void call_refuse(struct rpc_thread *t, grpc_call *gcall, grpc_metadata_array *metadata, enum status status,
                 const char *text)
{
    struct refusal *f = malloc(sizeof *f);
    grpc_slice details;
    grpc_op ops[3];
    grpc_call_error err;

    (void)t;
    if (f == NULL) { /* the client hears nothing but the end of the stream */
        grpc_metadata_array_destroy(metadata);
        grpc_call_cancel(gcall, NULL);
        grpc_call_unref(gcall);
        return;
    }
    *f = (struct refusal){.op.done = refusal_done, .gcall = gcall, .metadata = *metadata};
    details = grpc_slice_from_copied_string(text);
    ops[0] = (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA};
    ops[1] = (grpc_op){.op = GRPC_OP_SEND_STATUS_FROM_SERVER,
                       .data.send_status_from_server = {.status = (grpc_status_code)status,
                                                        .status_details = &details}};
    ops[2] = (grpc_op){.op = GRPC_OP_RECV_CLOSE_ON_SERVER, .data.recv_close_on_server.cancelled = &f->cancelled};
    err = grpc_call_start_batch(gcall, ops, 3, &f->op, NULL);
    assert(err == GRPC_CALL_OK);
    grpc_slice_unref(details);
}

/* ---- what a handler may ask ------------------------------------------------------------------ */

void *call_state(struct call *c)
{
    return c->state;
}

void *call_service(struct call *c)
{
    return c->thread->rpc->options.service;
}

struct arena *call_arena(struct call *c)
{
    return &c->arena;
}

struct slice call_request(struct call *c)
{
    return c->thread->request;
}

const struct rpc_method *call_method(struct call *c)
{
    return c->method;
}

struct slot *call_slot(struct call *c)
{
    return c->thread->slot;
}

unsigned call_thread(const struct call *c)
{
    return c->thread->number;
}

void call_gathered(struct call *c)
{
    c->thread->n_gathered++;
}

bool call_gone(const struct call *c)
{
    return c->gone || c->answered;
}

uint64_t call_deadline_ms(const struct call *c)
{
    return c->deadline_ms;
}

struct slice call_metadata(struct call *c, const char *key)
{
    struct slice want = slice_str(key);

    for (size_t i = 0; i < c->metadata.count; i++) {
        const grpc_metadata *m = &c->metadata.metadata[i];

        if (slice_eq(slice_of(GRPC_SLICE_START_PTR(m->key), GRPC_SLICE_LENGTH(m->key)), want))
            return slice_of(GRPC_SLICE_START_PTR(m->value), GRPC_SLICE_LENGTH(m->value));
    }
    return SLICE_NONE;
}
