/* SPDX-License-Identifier: Apache-2.0 */
/* client.c - calls and streams behind client.h (client_private.h shows how the parts go together). */
#include <signal.h>

#include "client_private.h"

#define RETRY_FIRST_MS 20
#define RETRY_MAX_MS   500

static void stream_over(struct client *c, struct client_op *op, enum err err, enum status code,
                        const char *text);

/* ---- calls ---------------------------------------------------------------------------- */

/* Tells the owner. `text` is borrowed from op. The reply stays op's, unless done takes it. */
static void call_done(struct client *c, struct client_op *op, enum client_outcome outcome, enum err err,
                      enum status code, struct slice text)
{
    struct client_call *call = op->call;
    size_t n = text.len < CLIENT_TEXT_BYTES ? text.len : CLIENT_TEXT_BYTES - 1;

    client_op_unlink(c, op);
    if (call) {
        call->outcome = outcome;
        call->err = err;
        call->code = code;
        if (n)
            memcpy(call->text, text.ptr, n);
        call->text[n] = 0;
        call->started_ms = op->started_ms;
        call->answered_ms = client_now_ms();
        call->reply = op->reply;
        call->op = NULL;
        call->answered = op;
        c->health.failed_total += outcome != CLIENT_OK && op->only == NULL;
        call->done(call); /* may free the call, or start it again */
    }
    client_op_free(c, op);
}

ProtobufCMessage *client_take_reply(struct client_call *call)
{
    call->answered->reply = NULL;
    return call->reply;
}

static bool may_repeat(const struct client_op *op)
{
    return client_methods[op->method].reads || (op->method == CLIENT_TXN && op->call && op->call->reads_only);
}

/* Refused before it was proposed to anybody, as nobody led. */
static bool is_leaderless(enum err err)
{
    return err == ERR_NO_LEADER || err == ERR_PROPOSAL_DROPPED;
}

/* Whether another attempt is allowed, and may help. */
static bool worth_a_retry(const struct client_op *op, enum client_outcome outcome, enum err err,
                          enum status code)
{
    if (op->call == NULL || op->only || op->started_ms == 0 ||
        client_now_ms() + RETRY_FIRST_MS >= op->deadline_ms)
        return false;
    if (err == ERR_TOO_MANY_REQUESTS)
        return true;          /* refused before it was proposed: anything may be sent again */
    if (is_leaderless(err)) /* the same; an election is waited out, but no longer than the grace */
        return may_repeat(op) || client_now_ms() < op->first_ms + op->client->grace_ms;
    return may_repeat(op) && outcome == CLIENT_UNKNOWN && (code == STATUS_UNAVAILABLE || op->moved);
}

/* Into the queue, and looked at when it can go on. */
static void wait_in_queue(struct client *c, struct client_op *op)
{
    bool usable = endpoint_usable(op->only ? op->only : client_current(c));

    client_op_wait(c, op);
    client_timer_by(c, usable && op->not_before_ms < op->deadline_ms ? op->not_before_ms : op->deadline_ms);
}

/* At once elsewhere, later where it was. */
static void retry(struct client *c, struct client_op *op)
{
    int64_t pause_ms = RETRY_FIRST_MS << (op->tries < 6 ? op->tries - 1 : 5);

    client_op_unlink(c, op);
    client_op_reset(op);
    if (op->moved && endpoint_usable(client_current(c))) {
        client_op_start(c, op);
        return;
    }
    op->not_before_ms = client_now_ms() + (pause_ms < RETRY_MAX_MS ? pause_ms : RETRY_MAX_MS);
    wait_in_queue(c, op);
}

/* The server's own words, not gRPC's about it. */
static bool is_answer(enum err err, enum status code)
{
    return err != ERR_NONE || (code != STATUS_UNAVAILABLE && code != STATUS_DEADLINE_EXCEEDED &&
                               code != STATUS_CANCELLED && code != STATUS_INTERNAL);
}

void client_call_arrived(struct client *c, struct tag *t)
{
    struct client_op *op = t->op;
    enum status code = (enum status)op->status;
    enum err err = code == STATUS_OK ? ERR_NONE : client_op_err(op);
    enum client_outcome outcome = client_outcome_of(err, code);

    if (outcome == CLIENT_OK && op->reply == NULL) {
        code = STATUS_INTERNAL; /* bytes that are no answer: whatever was asked may have been done */
        outcome = CLIENT_UNKNOWN;
    }
    client_note_back(c, op);
    if (is_answer(err, code))
        client_heard(op->endpoint);
    client_note_header(c, op->reply);
    if (client_op_proves(op) && op->endpoint == client_current(c)) {
        if (outcome == CLIENT_OK)
            client_note_quorum(c);
        else if ((outcome == CLIENT_UNKNOWN && !op->moved) || is_leaderless(err))
            client_question(c, op->endpoint);
    }
    if (worth_a_retry(op, outcome, err, code))
        retry(c, op);
    else
        call_done(c, op, outcome, err, code, client_op_text(op));
}

/* Starts what waits, if there is somebody to talk to, and ends what has waited too long. */
void client_run_waiting(struct client *c)
{
    int64_t now_ms = client_now_ms();
    struct client_op *op, *next, *late = NULL;

    for (op = c->waiting; op; op = next) {
        next = op->next;
        if (now_ms >= op->deadline_ms) {
            client_op_unlink(c, op);
            op->next = late;
            late = op;
        } else if (endpoint_usable(op->only ? op->only : client_current(c)) && now_ms >= op->not_before_ms) {
            client_op_start(c, op);
        }
    }
    /* Owners are told last: they may start calls of their own. */
    for (op = late; op; op = next) {
        next = op->next;
        op->next = NULL;
        if (op->is_stream)
            stream_over(c, op, ERR_NONE, STATUS_UNAVAILABLE, "no endpoint is connected");
        else
            call_done(c, op, op->started_ms ? CLIENT_UNKNOWN : CLIENT_NOT_SENT, ERR_NONE, STATUS_UNAVAILABLE,
                      S("no endpoint is connected"));
    }
}

/* Sends it if there is somebody to send it to; else it waits for that. */
static void submit(struct client *c, struct client_op *op)
{
    if ((op->only ? endpoint_connected(op->only) : endpoint_usable(client_current(c))) &&
        c->n_ops <= CLIENT_CALLS_MAX) {
        client_op_start(c, op);
        return;
    }
    if (c->n_ops > CLIENT_CALLS_MAX)
        op->deadline_ms = 0; /* ends as not sent at the next tick */
    wait_in_queue(c, op);
}

void client_start(struct client *c, struct client_call *call, enum client_method method,
                  const ProtobufCMessage *req, int64_t timeout_ms)
{
    struct client_op *op = client_op_new(c, method, req, timeout_ms);

    assert(call->op == NULL);
    call->op = op;
    op->call = call;
    op->serializable = call->serializable;
    c->health.calls_total++;
    submit(c, op);
}

void client_start_only(struct client *c, struct client_call *call, enum client_method method,
                       const ProtobufCMessage *req, int64_t timeout_ms, struct endpoint *e)
{
    struct client_op *op = client_op_new(c, method, req, timeout_ms);

    assert(call->op == NULL);
    call->op = op;
    op->call = call;
    op->only = e;
    submit(c, op);
}

void client_abandon(struct client *c, struct client_call *call)
{
    struct client_op *op = call->op;

    call->op = NULL;
    if (op == NULL)
        return;
    op->call = NULL;
    if (op->gcall == NULL)
        client_op_free(c, op);
    else if (client_methods[op->method].reads)
        grpc_call_cancel(op->gcall, NULL); /* what only reads may as well stop */
}

/* ---- streams --------------------------------------------------------------------------- */

/* Tells the owner, once; the op goes when its last tag is back. */
static void stream_over(struct client *c, struct client_op *op, enum err err, enum status code,
                        const char *text)
{
    struct client_stream *s = op->stream;

    op->stream = NULL;
    op->closing = true;
    if (s) {
        s->op = NULL;
        s->closed(s, err, code, text);
    }
    if (op->n_tags == 0)
        client_op_free(c, op);
}

/* True when the op is at its end and this tag was the last. */
static bool stream_gone(struct client *c, struct client_op *op)
{
    if (!op->closing)
        return false;
    if (op->n_tags == 0)
        client_op_free(c, op);
    return true;
}

void client_stream_opened(struct client *c, struct tag *t)
{
    (void)stream_gone(c, t->op);
}

void client_stream_sent(struct client *c, struct tag *t)
{
    struct client_op *op = t->op;
    struct message *m = op->out;

    op->out = m->next;
    if (op->out == NULL)
        op->out_end = &op->out;
    client_message_free(m);
    if (!stream_gone(c, op) && t->ok && op->out)
        client_stream_transmit(op);
}

void client_stream_received(struct client *c, struct tag *t)
{
    struct client_op *op = t->op;
    ProtobufCMessage *msg = op->reply;

    op->reply = NULL;
    if (msg)
        client_heard(op->endpoint);
    if (msg && op->stream) {
        client_note_header(c, msg);
        op->stream->message(op->stream, msg); /* may close the stream: the op stays until the status is in */
    }
    if (msg)
        protobuf_c_message_free_unpacked(msg, NULL);
    if (!stream_gone(c, op) && t->ok && msg)
        client_stream_receive(op);
    /* No message: the status says why, and it is on its way. */
}

void client_stream_ended(struct client *c, struct tag *t)
{
    struct client_op *op = t->op;
    char text[CLIENT_TEXT_BYTES];
    struct slice s = client_op_text(op);
    size_t n = s.len < sizeof text ? s.len : sizeof text - 1;

    if (n)
        memcpy(text, s.ptr, n);
    text[n] = 0;
    if (c->n_endpoints > 1 && op->stream && !op->moved)
        client_question(c, op->endpoint);
    stream_over(c, op, client_err_of_text(text), (enum status)op->status, text);
}

void client_stream_open(struct client *c, struct client_stream *s, enum client_method method,
                        const ProtobufCMessage *first, int64_t timeout_ms)
{
    struct client_op *op = client_op_new(c, method, first, timeout_ms);

    assert(s->op == NULL);
    s->op = op;
    op->stream = s;
    op->is_stream = true;
    submit(c, op);
}

void client_stream_send(struct client *c, struct client_stream *s, const ProtobufCMessage *msg)
{
    struct client_op *op = s->op;
    struct message *m;
    bool idle;

    (void)c;
    if (op == NULL)
        return;
    m = client_message_pack(msg);
    idle = op->out == NULL;
    *op->out_end = m;
    op->out_end = &m->next;
    if (idle && op->gcall)
        client_stream_transmit(op);
}

void client_stream_close(struct client *c, struct client_stream *s)
{
    struct client_op *op = s->op;

    s->op = NULL;
    if (op == NULL)
        return;
    op->stream = NULL;
    op->closing = true;
    if (op->gcall)
        grpc_call_cancel(op->gcall, NULL);
    else if (op->n_tags == 0)
        client_op_free(c, op);
}

/* ---- what has arrived ------------------------------------------------------------------- */

void client_dispatch(struct client *c)
{
    struct tag *t, *next;

    assert(!c->dispatching);
    c->dispatching = true;
    t = client_mail_take(c);
    for (; t; t = next) {
        next = t->next; /* the tag goes with its op */
        if (t->op)
            t->op->n_tags--;
        t->arrived(c, t);
    }
    if (c->due_ms && client_now_ms() >= c->due_ms)
        client_tick(c);
    c->dispatching = false;
}

/* ---- opening and closing ------------------------------------------------------------------ */

/* Signals are the core thread's: gRPC's threads and ours start with all of them blocked. */
static void block_signals(sigset_t *ret_old)
{
    sigset_t all;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, ret_old);
}

static void close_all(struct client *c, bool polling)
{
    struct client_op *op;

    while (c->waiting)
        client_op_free(c, c->waiting);
    for (op = c->running; op; op = op->next)
        grpc_call_cancel(op->gcall, NULL);
    client_endpoints_close(c);
    client_poll_close(c, polling);
    grpc_shutdown();
    free(c);
}

int client_open(const struct client_config *cfg, struct client **ret_client)
{
    struct client *c = calloc(1, sizeof *c);
    bool polling = false;
    sigset_t old;
    int r;

    if (c == NULL)
        return -ENOMEM;
    c->waiting_end = &c->waiting;
    c->grace_ms = cfg->grace_ms;
    c->timeout_ms = cfg->timeout_ms ? cfg->timeout_ms : CLIENT_CALL_TIMEOUT_MS;
    /* gRPC's own tracing writes to standard error for every call; a mount inherits such variables by
     * accident. */
    unsetenv("GRPC_TRACE");
    unsetenv("GRPC_VERBOSITY");
    block_signals(&old);
    grpc_init();
    r = client_poll_open(c);
    if (r == 0)
        r = client_endpoints_open(c, cfg);
    if (r == 0) {
        r = client_poll_start(c);
        polling = r == 0;
    }
    if (r == 0)
        client_endpoints_connect(c);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r < 0)
        close_all(c, polling);
    else
        *ret_client = c;
    return r;
}

void client_close(struct client *c)
{
    if (c)
        close_all(c, true);
}
