/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_call.c - one call's life: arrival, messages in, the end.
 *
 *      arrived -> start() -> ... -> answered or gone -> all operations back -> gcall freed -> last reference -> release()
 *
 * Promise: release() runs once for every call whose handler was started, on the call's thread. RECV_CLOSE is asked for
 * exactly once: inside a unary's answer, or alone at the start where the method wants to hear that its client is gone.
 *
 * Owner:    the call's rpc thread.
 * Not here: what a call sends (rpc_answer.c), queues and threads (rpc.c), decoding (pb.c).
 */
#include <errno.h>
#include <stdio.h>
#include "log.h"
#include "pb.h"
#include "rpc_impl.h"

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

void call_batch(struct call *c, const grpc_op *ops, size_t n, struct op *op)
{
    grpc_call_error err = grpc_call_start_batch(c->gcall, ops, n, op, NULL);

    assert(err == GRPC_CALL_OK);
    c->refs++;
    c->ops++;
}

/* The call's own reference goes once it is answered or its client is gone. */
void call_settle(struct call *c)
{
    if (c->ended || !(c->answered || c->gone) || c->ops)
        return;
    c->ended = true;
    if (c->gcall)
        call_drop_gcall(c);
    call_unref(c);
}

/* Ends every op's done(): its reference goes. */
void call_op_back(struct call *c)
{
    assert(c->ops > 0);
    c->ops--;
    call_settle(c);
    call_unref(c);
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
        count_up(&call_stats(c)->received);
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
    call_op_back(c);
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
        count_up(&call_stats(c)->handled[STATUS_CANCELLED]);
    if (c->started && c->method->gone && (!answered || c->method->kind != RPC_UNARY))
        c->method->gone(c);
    if (c->gone)
        call_send_next(c);
    call_op_back(c);
}

static void initial_done(struct op *op, bool ok)
{
    (void)ok;
    call_op_back(CALL_OF(op, op_initial));
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
        op = call_op_close(c);
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
        c->op_answer.done = call_answer_done;
        c->op_close.done = close_done;
        c->op_initial.done = initial_done;
        c->op_send.done = call_send_done;
        c->op_recv.done = recv_done;
        count_up(&call_stats(c)->started);
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
