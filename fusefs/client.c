/* SPDX-License-Identifier: Apache-2.0 */
/* client.c - gRPC core's C API behind client.h.
 *
 *     core thread                               polling thread
 *     client_start -> op, waiting               grpc_completion_queue_next
 *     a channel is connected: start_batch  ---> a tag completes: unpack the answer
 *     client_dispatch <--- mailbox, eventfd <-- post the tag
 *     tag->arrived: done, message, closed
 *
 * A gRPC tag is always a struct tag inside an op or an endpoint. The polling thread touches a tag only
 * between the start of its batch and the post; everything else is the core thread's. An op lives until its
 * last tag came back, however long ago its owner lost interest.
 *
 * A timer (100 ms) runs only while something waits or the quorum is in doubt.
 *
 * Not here: what an error means (client_error.c).
 */
#include <errno.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "client_private.h"
#include "rpc.pb-c.h"

#define TICK_MS 100
#define PROBE_TIMEOUT_MS 2000
#define RETRY_FIRST_MS 20
#define RETRY_MAX_MS 500
#define HEALTHY_CONNECT_MS 3000 /* how long one attempt to connect may take */

_Static_assert((int)STATUS_UNAUTHENTICATED == (int)GRPC_STATUS_UNAUTHENTICATED, "one numbering");

struct tag {
    void (*arrived)(struct client *c, struct tag *t); /* core thread */
    void (*polled)(struct tag *t);                    /* polling thread, before the post; may be NULL */
    struct client_op *op;                             /* NULL: an endpoint's */
    bool ok;
    struct tag *next;
    /* Stored (release) before the tag goes to gRPC, loaded (acquire) when it comes back: gRPC orders the two
     * threads as well, but inside a library that thread sanitizers do not see. */
    atomic_bool lent;
};

struct endpoint {
    char *target; /* as gRPC wants it */
    char *name;   /* as the user gave it */
    grpc_channel *channel;
    grpc_connectivity_state state;
    bool watching; /* state_tag is with gRPC */
    struct tag state_tag;
    struct client *client;
};

struct message {
    struct message *next;
    grpc_byte_buffer *bytes;
};

/* A call or a stream. */
struct client_op {
    struct client_op *next, **prev; /* in c->waiting or c->running */
    struct client *client;
    enum client_method method;
    struct client_call *call;       /* NULL: abandoned, or a stream */
    struct client_stream *stream;   /* NULL: closed, or a call */
    bool is_stream, closing;
    struct message *out, **out_end; /* to be sent; of a call the one request, kept for a retry */
    int64_t deadline_ms, not_before_ms, started_ms;
    uint32_t tries;
    uint32_t n_tags; /* with gRPC or in the mailbox */

    /* Lent to gRPC while running. */
    grpc_call *gcall;
    struct endpoint *endpoint;
    struct tag open_tag, recv_tag, send_tag, status_tag;
    grpc_byte_buffer *received;
    grpc_metadata_array initial, trailing;
    grpc_status_code status;
    grpc_slice details;

    /* Made by the polling thread from `received`. */
    ProtobufCMessage *reply;
};

struct client {
    struct endpoint endpoints[CLIENT_ENDPOINTS_MAX];
    unsigned n_endpoints, current;
    int64_t timeout_ms;
    grpc_completion_queue *cq;
    pthread_t poller;
    int epoll_fd, event_fd, timer_fd;
    bool timer_on, dispatching;
    struct client_op *waiting, **waiting_end, *running;
    uint32_t n_ops;
    struct client_health health;
    struct client_call probe;

    pthread_mutex_t mu; /* the mailbox: gRPC has one consumer thread, so a plain locked list does */
    struct tag *mail, **mail_end; /* protected by mu */
};

static const struct method {
    const char *path;
    const ProtobufCMessageDescriptor *reply;
    bool reads; /* may be sent twice */
    bool quorum; /* an answer proves a quorum */
} methods[CLIENT_METHODS] = {
    [CLIENT_RANGE] = {"/etcdserverpb.KV/Range", &etcdserverpb__range_response__descriptor, true, true},
    [CLIENT_PUT] = {"/etcdserverpb.KV/Put", &etcdserverpb__put_response__descriptor, false, true},
    [CLIENT_DELETE_RANGE] = {"/etcdserverpb.KV/DeleteRange", &etcdserverpb__delete_range_response__descriptor,
                             false, true},
    [CLIENT_TXN] = {"/etcdserverpb.KV/Txn", &etcdserverpb__txn_response__descriptor, false, true},
    [CLIENT_COMPACT] = {"/etcdserverpb.KV/Compact", &etcdserverpb__compaction_response__descriptor, false,
                        true},
    [CLIENT_LEASE_GRANT] = {"/etcdserverpb.Lease/LeaseGrant", &etcdserverpb__lease_grant_response__descriptor,
                            false, true},
    [CLIENT_LEASE_REVOKE] = {"/etcdserverpb.Lease/LeaseRevoke",
                             &etcdserverpb__lease_revoke_response__descriptor, false, true},
    [CLIENT_LEASE_TTL] = {"/etcdserverpb.Lease/LeaseTimeToLive",
                          &etcdserverpb__lease_time_to_live_response__descriptor, true, false},
    [CLIENT_LEASE_LEASES] = {"/etcdserverpb.Lease/LeaseLeases",
                             &etcdserverpb__lease_leases_response__descriptor, true, false},
    [CLIENT_MEMBER_LIST] = {"/etcdserverpb.Cluster/MemberList",
                            &etcdserverpb__member_list_response__descriptor, true, false},
    [CLIENT_STATUS] = {"/etcdserverpb.Maintenance/Status", &etcdserverpb__status_response__descriptor, true,
                       false},
    [CLIENT_ALARM] = {"/etcdserverpb.Maintenance/Alarm", &etcdserverpb__alarm_response__descriptor, true,
                      false},
    [CLIENT_AUTHENTICATE] = {"/etcdserverpb.Auth/Authenticate",
                             &etcdserverpb__authenticate_response__descriptor, true, false},
    [CLIENT_WATCH] = {"/etcdserverpb.Watch/Watch", &etcdserverpb__watch_response__descriptor, false, false},
    [CLIENT_LEASE_KEEPALIVE] = {"/etcdserverpb.Lease/LeaseKeepAlive",
                                &etcdserverpb__lease_keep_alive_response__descriptor, false, false},
};

int64_t client_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* ---- lists of ops ------------------------------------------------------------- */

static void op_unlink(struct client *c, struct client_op *op)
{
    if (op->prev == NULL)
        return;
    if (c->waiting_end == &op->next)
        c->waiting_end = op->prev;
    *op->prev = op->next;
    if (op->next)
        op->next->prev = op->prev;
    op->next = NULL;
    op->prev = NULL;
}

static void op_wait(struct client *c, struct client_op *op)
{
    op->prev = c->waiting_end;
    *c->waiting_end = op;
    c->waiting_end = &op->next;
}

static void op_run(struct client *c, struct client_op *op)
{
    op->next = c->running;
    if (op->next)
        op->next->prev = &op->next;
    op->prev = &c->running;
    c->running = op;
}

/* ---- the polling thread --------------------------------------------------------- */

static void post(struct client *c, struct tag *t)
{
    const uint64_t one = 1;
    bool was_empty;

    t->next = NULL;
    pthread_mutex_lock(&c->mu);
    was_empty = c->mail == NULL;
    *c->mail_end = t;
    c->mail_end = &t->next;
    pthread_mutex_unlock(&c->mu);
    if (was_empty)
        (void)!write(c->event_fd, &one, sizeof one); /* fails only when the count is full: it is readable */
}

static void *poll_main(void *arg)
{
    struct client *c = arg;

    for (;;) {
        grpc_event ev = grpc_completion_queue_next(c->cq, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        struct tag *t = ev.tag;

        if (ev.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (ev.type != GRPC_OP_COMPLETE)
            continue;
        (void)atomic_load_explicit(&t->lent, memory_order_acquire);
        t->ok = ev.success != 0;
        if (t->polled)
            t->polled(t);
        post(c, t);
    }
}

/* Here bytes become a message: the one copy of an answer's values is protobuf-c's. */
static void unpack_reply(struct tag *t)
{
    struct client_op *op = t->op;
    grpc_byte_buffer_reader reader;
    grpc_slice slice;

    if (op->received == NULL)
        return;
    if (grpc_byte_buffer_reader_init(&reader, op->received)) {
        slice = grpc_byte_buffer_reader_readall(&reader);
        op->reply = protobuf_c_message_unpack(methods[op->method].reply, NULL, GRPC_SLICE_LENGTH(slice),
                                              GRPC_SLICE_START_PTR(slice));
        grpc_slice_unref(slice);
        grpc_byte_buffer_reader_destroy(&reader);
    }
    grpc_byte_buffer_destroy(op->received);
    op->received = NULL;
}

/* ---- health ----------------------------------------------------------------------- */

static struct endpoint *current(struct client *c)
{
    return &c->endpoints[c->current];
}

static bool is_connected(const struct endpoint *e)
{
    return e->state == GRPC_CHANNEL_READY;
}

static void timer_set(struct client *c, bool on)
{
    struct itimerspec spec = {.it_value.tv_nsec = TICK_MS * 1000000,
                              .it_interval.tv_nsec = TICK_MS * 1000000};

    if (on == c->timer_on)
        return;
    if (!on)
        memset(&spec, 0, sizeof spec);
    timerfd_settime(c->timer_fd, 0, &spec, NULL);
    c->timer_on = on;
}

static void note_doubt(struct client *c)
{
    if (!c->health.in_doubt) {
        c->health.in_doubt = true;
        c->health.lost_ms = client_now_ms();
    }
    timer_set(c, true);
}

static void note_quorum(struct client *c)
{
    c->health.quorum_ms = client_now_ms();
    c->health.in_doubt = false;
    c->health.lost_ms = 0;
}

/* Another connected endpoint, if there is one. */
static void fail_over(struct client *c)
{
    for (unsigned i = 1; i < c->n_endpoints; i++) {
        unsigned k = (c->current + i) % c->n_endpoints;

        if (is_connected(&c->endpoints[k])) {
            c->current = k;
            c->health.failovers_total++;
            return;
        }
    }
}

/* Every response's first field is the header, but for the few without one. */
static void note_header(struct client *c, const ProtobufCMessage *msg)
{
    const Etcdserverpb__ResponseHeader *h;

    if (msg == NULL || msg->descriptor->n_fields == 0 ||
        msg->descriptor->fields[0].descriptor != &etcdserverpb__response_header__descriptor)
        return;
    h = *(Etcdserverpb__ResponseHeader *const *)((const char *)msg + msg->descriptor->fields[0].offset);
    if (h == NULL)
        return;
    c->health.cluster_id = h->cluster_id;
    c->health.member_id = h->member_id;
    c->health.raft_term = h->raft_term;
    if (h->revision > c->health.last_revision)
        c->health.last_revision = h->revision;
}

/* ---- ops --------------------------------------------------------------------------- */

static struct message *message_pack(const ProtobufCMessage *msg)
{
    size_t n = protobuf_c_message_get_packed_size(msg);
    grpc_slice slice = grpc_slice_malloc(n);
    struct message *m = malloc(sizeof *m);

    if (m == NULL)
        abort(); /* gRPC aborts on no memory too: there is no one to tell */
    protobuf_c_message_pack(msg, GRPC_SLICE_START_PTR(slice));
    *m = (struct message){.bytes = grpc_raw_byte_buffer_create(&slice, 1)};
    grpc_slice_unref(slice);
    return m;
}

static void message_free(struct message *m)
{
    grpc_byte_buffer_destroy(m->bytes);
    free(m);
}

static struct client_op *op_new(struct client *c, enum client_method m, const ProtobufCMessage *msg,
                                int64_t timeout_ms)
{
    struct client_op *op = calloc(1, sizeof *op);

    if (op == NULL)
        abort();
    op->client = c;
    op->method = m;
    op->out = message_pack(msg);
    op->out_end = &op->out->next;
    op->deadline_ms = client_now_ms() + (timeout_ms ? timeout_ms : c->timeout_ms);
    op->details = grpc_empty_slice();
    c->n_ops++;
    return op;
}

/* Gives back what one attempt borrowed, so that the op can be freed or tried again. */
static void op_reset(struct client_op *op)
{
    if (op->gcall == NULL)
        return;
    grpc_call_unref(op->gcall);
    op->gcall = NULL;
    grpc_metadata_array_destroy(&op->initial);
    grpc_metadata_array_destroy(&op->trailing);
    grpc_slice_unref(op->details);
    op->details = grpc_empty_slice();
    if (op->received)
        grpc_byte_buffer_destroy(op->received);
    op->received = NULL;
    if (op->reply)
        protobuf_c_message_free_unpacked(op->reply, NULL);
    op->reply = NULL;
}

static void op_free(struct client *c, struct client_op *op)
{
    assert(op->n_tags == 0);
    op_unlink(c, op);
    op_reset(op);
    while (op->out) {
        struct message *m = op->out;

        op->out = m->next;
        message_free(m);
    }
    c->n_ops--;
    free(op);
}

static void batch(struct client_op *op, struct tag *t, const grpc_op *ops, size_t n)
{
    grpc_call_error e;

    op->n_tags++;
    atomic_store_explicit(&t->lent, true, memory_order_release);
    e = grpc_call_start_batch(op->gcall, ops, n, t, NULL);
    assert(e == GRPC_CALL_OK);
}

static void call_arrived(struct client *c, struct tag *t);
static void stream_opened(struct client *c, struct tag *t);
static void stream_received(struct client *c, struct tag *t);
static void stream_sent(struct client *c, struct tag *t);
static void stream_ended(struct client *c, struct tag *t);
static void stream_over(struct client *c, struct client_op *op, enum err err, enum status code,
                        const char *text);

static void start_call(struct client_op *op)
{
    const grpc_op ops[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = op->out->bytes},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata.recv_initial_metadata = &op->initial},
        {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &op->received},
        {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
         .data.recv_status_on_client = {.trailing_metadata = &op->trailing,
                                        .status = &op->status,
                                        .status_details = &op->details}},
    };

    op->status_tag = (struct tag){.arrived = call_arrived, .polled = unpack_reply, .op = op};
    batch(op, &op->status_tag, ops, sizeof ops / sizeof *ops);
}

static void stream_receive(struct client_op *op)
{
    const grpc_op recv = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &op->received};

    op->recv_tag = (struct tag){.arrived = stream_received, .polled = unpack_reply, .op = op};
    batch(op, &op->recv_tag, &recv, 1);
}

/* One message at a time is with gRPC: the first of op->out. */
static void stream_transmit(struct client_op *op)
{
    const grpc_op send = {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = op->out->bytes};

    op->send_tag = (struct tag){.arrived = stream_sent, .op = op};
    batch(op, &op->send_tag, &send, 1);
}

/* "hasleader": a member that has lost its leader ends the stream instead of falling silent. */
static void start_stream(struct client_op *op)
{
    grpc_metadata md = {.key = grpc_slice_from_static_string("hasleader"),
                        .value = grpc_slice_from_static_string("true")};
    const grpc_op open[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA, .data.send_initial_metadata = {.count = 1, .metadata = &md}},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata.recv_initial_metadata = &op->initial},
    };
    const grpc_op status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                            .data.recv_status_on_client = {.trailing_metadata = &op->trailing,
                                                           .status = &op->status,
                                                           .status_details = &op->details}};

    op->open_tag = (struct tag){.arrived = stream_opened, .op = op};
    op->status_tag = (struct tag){.arrived = stream_ended, .op = op};
    batch(op, &op->status_tag, &status, 1);
    batch(op, &op->open_tag, open, 2);
    stream_transmit(op);
    stream_receive(op);
}

/* The endpoint is connected: from here on the request counts as sent. */
static void op_start(struct client *c, struct client_op *op)
{
    struct endpoint *e = current(c);
    int64_t now_ms = client_now_ms();
    gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);

    op_unlink(c, op);
    op_run(c, op);
    op->endpoint = e;
    op->started_ms = now_ms;
    op->tries++;
    if (!op->is_stream)
        deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                gpr_time_from_millis(op->deadline_ms - now_ms, GPR_TIMESPAN));
    grpc_metadata_array_init(&op->initial);
    grpc_metadata_array_init(&op->trailing);
    op->gcall = grpc_channel_create_call(e->channel, NULL, GRPC_PROPAGATE_DEFAULTS, c->cq,
                                         grpc_slice_from_static_string(methods[op->method].path), NULL,
                                         deadline, NULL);
    assert(op->gcall);
    if (op->is_stream)
        start_stream(op);
    else
        start_call(op);
}

/* ---- calls ---------------------------------------------------------------------------- */

/* Tells the owner. `text` is borrowed from op. The reply stays op's, unless done takes it. */
static void call_done(struct client *c, struct client_op *op, enum client_outcome outcome, enum err err,
                      enum status code, struct slice text)
{
    struct client_call *call = op->call;
    size_t n = text.len < CLIENT_TEXT_BYTES ? text.len : CLIENT_TEXT_BYTES - 1;

    op_unlink(c, op);
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
        c->health.failed_total += outcome != CLIENT_OK;
        call->done(call); /* may free the call, or start it again */
    }
    op_free(c, op);
}

ProtobufCMessage *client_take_reply(struct client_call *call)
{
    call->answered->reply = NULL;
    return call->reply;
}

static bool may_repeat(const struct client_op *op)
{
    return methods[op->method].reads || (op->method == CLIENT_TXN && op->call && op->call->reads_only);
}

/* Whether another attempt is allowed, and may help. */
static bool worth_a_retry(const struct client_op *op, enum client_outcome outcome, enum err err,
                          enum status code)
{
    if (op->call == NULL || op->started_ms == 0 || client_now_ms() + RETRY_FIRST_MS >= op->deadline_ms)
        return false;
    if (err == ERR_TOO_MANY_REQUESTS)
        return true; /* refused before it was proposed: anything may be sent again */
    if (!may_repeat(op))
        return false;
    if (err == ERR_NO_LEADER)
        return op->client->n_endpoints > 1 && op->tries < op->client->n_endpoints;
    return outcome == CLIENT_UNKNOWN && code == STATUS_UNAVAILABLE;
}

static void retry_later(struct client *c, struct client_op *op)
{
    int64_t pause_ms = RETRY_FIRST_MS << (op->tries < 6 ? op->tries - 1 : 5);

    op_unlink(c, op);
    op_reset(op);
    op->not_before_ms = client_now_ms() + (pause_ms < RETRY_MAX_MS ? pause_ms : RETRY_MAX_MS);
    op_wait(c, op);
    timer_set(c, true);
}

static struct slice op_text(const struct client_op *op)
{
    return slice_of(GRPC_SLICE_START_PTR(op->details), GRPC_SLICE_LENGTH(op->details));
}

static enum err op_err(const struct client_op *op)
{
    char text[CLIENT_TEXT_BYTES];
    struct slice s = op_text(op);
    size_t n = s.len < sizeof text ? s.len : sizeof text - 1;

    if (n)
        memcpy(text, s.ptr, n);
    text[n] = 0;
    return client_err_of_text(text);
}

static bool proves_quorum(const struct client_op *op)
{
    return methods[op->method].quorum && !(op->call && op->call->serializable);
}

static void call_arrived(struct client *c, struct tag *t)
{
    struct client_op *op = t->op;
    enum status code = (enum status)op->status;
    enum err err = code == STATUS_OK ? ERR_NONE : op_err(op);
    enum client_outcome outcome = client_outcome_of(err, code);

    if (outcome == CLIENT_OK && op->reply == NULL) {
        code = STATUS_INTERNAL; /* bytes that are no answer: whatever was asked may have been done */
        outcome = CLIENT_UNKNOWN;
    }
    note_header(c, op->reply);
    if (outcome == CLIENT_OK && proves_quorum(op))
        note_quorum(c);
    if (proves_quorum(op) && (outcome == CLIENT_UNKNOWN || err == ERR_NO_LEADER)) {
        note_doubt(c);
        if (op->endpoint == current(c))
            fail_over(c);
    }
    if (worth_a_retry(op, outcome, err, code))
        retry_later(c, op);
    else
        call_done(c, op, outcome, err, code, op_text(op));
}

/* Starts what waits, if there is somebody to talk to, and ends what has waited too long. */
static void run_waiting(struct client *c)
{
    int64_t now_ms = client_now_ms();
    struct client_op *op, *next, *late = NULL;

    if (!is_connected(current(c)))
        fail_over(c);
    for (op = c->waiting; op; op = next) {
        next = op->next;
        if (now_ms >= op->deadline_ms) {
            op_unlink(c, op);
            op->next = late;
            late = op;
        } else if (is_connected(current(c)) && now_ms >= op->not_before_ms) {
            op_start(c, op);
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

void client_start(struct client *c, struct client_call *call, enum client_method method,
                  const ProtobufCMessage *req, int64_t timeout_ms)
{
    struct client_op *op = op_new(c, method, req, timeout_ms);

    assert(call->op == NULL);
    call->op = op;
    op->call = call;
    c->health.calls_total++;
    if (is_connected(current(c)) && c->n_ops <= CLIENT_CALLS_MAX) {
        op_start(c, op);
        return;
    }
    if (c->n_ops > CLIENT_CALLS_MAX)
        op->deadline_ms = 0; /* ends as NOT_SENT at the next tick */
    op_wait(c, op);
    timer_set(c, true);
}

void client_abandon(struct client *c, struct client_call *call)
{
    struct client_op *op = call->op;

    call->op = NULL;
    if (op == NULL)
        return;
    op->call = NULL;
    if (op->gcall == NULL)
        op_free(c, op);
    else if (methods[op->method].reads)
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
        op_free(c, op);
}

/* True when the op is at its end and this tag was the last. */
static bool stream_gone(struct client *c, struct client_op *op)
{
    if (!op->closing)
        return false;
    if (op->n_tags == 0)
        op_free(c, op);
    return true;
}

static void stream_opened(struct client *c, struct tag *t)
{
    (void)stream_gone(c, t->op);
}

static void stream_sent(struct client *c, struct tag *t)
{
    struct client_op *op = t->op;
    struct message *m = op->out;

    op->out = m->next;
    if (op->out == NULL)
        op->out_end = &op->out;
    message_free(m);
    if (!stream_gone(c, op) && t->ok && op->out)
        stream_transmit(op);
}

static void stream_received(struct client *c, struct tag *t)
{
    struct client_op *op = t->op;
    ProtobufCMessage *msg = op->reply;

    op->reply = NULL;
    if (msg && op->stream) {
        note_header(c, msg);
        op->stream->message(op->stream, msg); /* may close the stream: the op stays until the status is in */
    }
    if (msg)
        protobuf_c_message_free_unpacked(msg, NULL);
    if (!stream_gone(c, op) && t->ok && msg)
        stream_receive(op);
    /* No message: the status says why, and it is on its way. */
}

static void stream_ended(struct client *c, struct tag *t)
{
    struct client_op *op = t->op;
    char text[CLIENT_TEXT_BYTES];
    struct slice s = op_text(op);
    size_t n = s.len < sizeof text ? s.len : sizeof text - 1;

    if (n)
        memcpy(text, s.ptr, n);
    text[n] = 0;
    stream_over(c, op, client_err_of_text(text), (enum status)op->status, text);
}

void client_stream_open(struct client *c, struct client_stream *s, enum client_method method,
                        const ProtobufCMessage *first, int64_t timeout_ms)
{
    struct client_op *op = op_new(c, method, first, timeout_ms);

    assert(s->op == NULL);
    s->op = op;
    op->stream = s;
    op->is_stream = true;
    if (is_connected(current(c))) {
        op_start(c, op);
        return;
    }
    op_wait(c, op);
    timer_set(c, true);
}

void client_stream_send(struct client *c, struct client_stream *s, const ProtobufCMessage *msg)
{
    struct client_op *op = s->op;
    struct message *m;
    bool idle;

    (void)c;
    if (op == NULL)
        return;
    m = message_pack(msg);
    idle = op->out == NULL;
    *op->out_end = m;
    op->out_end = &m->next;
    if (idle && op->gcall)
        stream_transmit(op);
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
        op_free(c, op);
}

/* ---- connections ------------------------------------------------------------------------ */

static void watch_state(struct endpoint *e)
{
    e->watching = true;
    atomic_store_explicit(&e->state_tag.lent, true, memory_order_release);
    grpc_channel_watch_connectivity_state(e->channel, e->state, gpr_inf_future(GPR_CLOCK_REALTIME),
                                          e->client->cq, &e->state_tag);
}

static void state_changed(struct client *c, struct tag *t)
{
    struct endpoint *e = (struct endpoint *)((char *)t - offsetof(struct endpoint, state_tag));

    e->watching = false;
    /* 1: an idle channel connects at once, so that a connection that is lost is always being made again. */
    e->state = grpc_channel_check_connectivity_state(e->channel, 1);
    if (e == current(c) && !is_connected(e)) {
        note_doubt(c);
        fail_over(c);
    }
    watch_state(e);
    run_waiting(c);
}

void client_suspect(struct client *c)
{
    note_doubt(c);
}

static void probe_done(struct client_call *call)
{
    (void)call; /* call_arrived has noted what it shows */
}

void client_confirm(struct client *c, struct client_call *call, int64_t timeout_ms)
{
    static const uint8_t key[1] = {0};
    Etcdserverpb__RangeRequest req = ETCDSERVERPB__RANGE_REQUEST__INIT;

    req.key = (ProtobufCBinaryData){1, (uint8_t *)key};
    req.count_only = true;
    client_start(c, call, CLIENT_RANGE, &req.base, timeout_ms);
}

static void tick(struct client *c)
{
    uint64_t times;

    (void)!read(c->timer_fd, &times, sizeof times); /* nothing to read: fine */
    run_waiting(c);
    if (c->health.in_doubt && is_connected(current(c)) && c->probe.op == NULL)
        client_confirm(c, &c->probe, PROBE_TIMEOUT_MS);
    if (c->waiting == NULL && !c->health.in_doubt)
        timer_set(c, false);
}

void client_dispatch(struct client *c)
{
    uint64_t count;
    struct tag *t, *next;

    assert(!c->dispatching);
    c->dispatching = true;
    (void)!read(c->event_fd, &count, sizeof count);
    pthread_mutex_lock(&c->mu);
    t = c->mail;
    c->mail = NULL;
    c->mail_end = &c->mail;
    pthread_mutex_unlock(&c->mu);
    for (; t; t = next) {
        next = t->next; /* the tag goes with its op */
        if (t->op)
            t->op->n_tags--;
        t->arrived(c, t);
    }
    if (c->timer_on)
        tick(c);
    c->dispatching = false;
}

int client_fd(const struct client *c)
{
    return c->epoll_fd;
}

void client_get_health(const struct client *c, struct client_health *ret_health)
{
    *ret_health = c->health;
    ret_health->connected = is_connected(&c->endpoints[c->current]);
    ret_health->in_doubt = c->health.in_doubt || !ret_health->connected;
    ret_health->endpoint = c->endpoints[c->current].name;
    ret_health->calls = c->n_ops;
}

bool client_quorum_fresh(const struct client *c)
{
    return !c->health.in_doubt && c->health.quorum_ms &&
           client_now_ms() - c->health.quorum_ms <= CLIENT_QUORUM_FRESH_MS;
}

/* ---- opening and closing ------------------------------------------------------------------ */

/* "host:2379" -> "dns:///host:2379", digits -> "ipv4:...", "[::1]:2379" -> "ipv6:...", "unix:path" as it
 * is. */
static int endpoint_target(const char *name, char **ret_target)
{
    const char *host = name, *colon;
    const char *scheme = "dns:///";
    int n;

    if (strncmp(name, "unix:", 5) == 0) {
        const char *path = name + 5;

        if (strncmp(path, "//", 2) == 0)
            path += 2;
        n = *path ? asprintf(ret_target, "unix:%s", path) : -2;
        return n == -2 ? -EINVAL : n < 0 ? -ENOMEM : 0;
    }
    if (strncmp(name, "http://", 7) == 0)
        host = name + 7;
    else if (strstr(name, "://"))
        return -EINVAL;
    colon = strrchr(host, ':');
    if (colon == NULL || colon == host || colon[1] == 0 ||
        strspn(colon + 1, "0123456789") != strlen(colon + 1))
        return -EINVAL;
    if (host[0] == '[')
        scheme = "ipv6:";
    else if (strspn(host, "0123456789.:") == strlen(host))
        scheme = "ipv4:";
    return asprintf(ret_target, "%s%s", scheme, host) < 0 ? -ENOMEM : 0;
}

static int endpoint_open(struct client *c, struct endpoint *e, const char *name)
{
    grpc_arg args[] = {
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_ENABLE_HTTP_PROXY, {.integer = 0}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_ENABLE_RETRIES, {.integer = 0}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, {.integer = CLIENT_BACKOFF_MIN_MS}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, {.integer = CLIENT_BACKOFF_MAX_MS}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, {.integer = HEALTHY_CONNECT_MS}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, {.integer = CLIENT_RECV_BYTES}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, {.integer = -1}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_KEEPALIVE_TIME_MS, {.integer = CLIENT_KEEPALIVE_MS}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_KEEPALIVE_TIMEOUT_MS, {.integer = CLIENT_KEEPALIVE_TIMEOUT_MS}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, {.integer = 0}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, {.integer = 1}},
    };
    const grpc_channel_args channel_args = {sizeof args / sizeof *args, args};
    grpc_channel_credentials *creds;
    int r;

    r = endpoint_target(name, &e->target);
    if (r < 0)
        return r;
    e->name = strdup(name);
    if (e->name == NULL)
        return -ENOMEM;
    creds = grpc_insecure_credentials_create();
    e->channel = grpc_channel_create(e->target, creds, &channel_args);
    grpc_channel_credentials_release(creds);
    if (e->channel == NULL)
        return -EINVAL;
    e->client = c;
    e->state_tag = (struct tag){.arrived = state_changed};
    return 0;
}

static void endpoint_close(struct endpoint *e)
{
    if (e->channel)
        grpc_channel_destroy(e->channel);
    free(e->target);
    free(e->name);
}

static int fds_open(struct client *c)
{
    struct epoll_event ev = {.events = EPOLLIN};

    c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    c->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    c->timer_fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    if (c->epoll_fd < 0 || c->event_fd < 0 || c->timer_fd < 0)
        return -errno;
    if (epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, c->event_fd, &ev) < 0 ||
        epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, c->timer_fd, &ev) < 0)
        return -errno;
    return 0;
}

static void fds_close(struct client *c)
{
    if (c->epoll_fd >= 0)
        close(c->epoll_fd);
    if (c->event_fd >= 0)
        close(c->event_fd);
    if (c->timer_fd >= 0)
        close(c->timer_fd);
}

/* Signals are the core thread's: gRPC's threads and ours start with all of them blocked. */
static void block_signals(sigset_t *ret_old)
{
    sigset_t all;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, ret_old);
}

static int endpoints_open(struct client *c, const struct client_config *cfg)
{
    if (cfg->n_endpoints == 0 || cfg->n_endpoints > CLIENT_ENDPOINTS_MAX)
        return -EINVAL;
    while (c->n_endpoints < cfg->n_endpoints) {
        unsigned i = c->n_endpoints++;
        int r = endpoint_open(c, &c->endpoints[i], cfg->endpoints[i]);

        if (r < 0)
            return r;
    }
    return 0;
}

static void connect_all(struct client *c)
{
    for (unsigned i = 0; i < c->n_endpoints; i++) {
        c->endpoints[i].state = grpc_channel_check_connectivity_state(c->endpoints[i].channel, 1);
        watch_state(&c->endpoints[i]);
    }
    note_doubt(c);
}

static void close_all(struct client *c, bool polling);

int client_open(const struct client_config *cfg, struct client **ret_client)
{
    struct client *c = calloc(1, sizeof *c);
    bool polling = false;
    sigset_t old;
    int r;

    if (c == NULL)
        return -ENOMEM;
    c->waiting_end = &c->waiting;
    c->mail_end = &c->mail;
    c->probe.done = probe_done;
    c->timeout_ms = cfg->timeout_ms ? cfg->timeout_ms : CLIENT_CALL_TIMEOUT_MS;
    pthread_mutex_init(&c->mu, NULL);
    /* gRPC's own tracing writes to standard error for every call; a mount inherits such variables by
     * accident. */
    unsetenv("GRPC_TRACE");
    unsetenv("GRPC_VERBOSITY");
    block_signals(&old);
    grpc_init();
    c->cq = grpc_completion_queue_create_for_next(NULL);
    r = fds_open(c);
    if (r == 0)
        r = endpoints_open(c, cfg);
    if (r == 0) {
        r = -pthread_create(&c->poller, NULL, poll_main, c);
        polling = r == 0;
    }
    if (r == 0)
        connect_all(c);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r < 0)
        close_all(c, polling);
    else
        *ret_client = c;
    return r;
}

/* Tags that came back and whose owners no longer care. */
static void drop_mail(struct client *c)
{
    struct tag *t = c->mail, *next;

    for (; t; t = next) {
        struct client_op *op = t->op;

        next = t->next;
        if (op && --op->n_tags == 0)
            op_free(c, op);
    }
    c->mail = NULL;
}

static void close_all(struct client *c, bool polling)
{
    struct client_op *op;

    while (c->waiting)
        op_free(c, c->waiting);
    for (op = c->running; op; op = op->next)
        grpc_call_cancel(op->gcall, NULL);
    for (unsigned i = 0; i < c->n_endpoints; i++)
        endpoint_close(&c->endpoints[i]);
    grpc_completion_queue_shutdown(c->cq);
    if (polling)
        pthread_join(c->poller, NULL);
    else
        poll_main(c);
    drop_mail(c);
    assert(c->n_ops == 0);
    grpc_completion_queue_destroy(c->cq);
    grpc_shutdown();
    fds_close(c);
    pthread_mutex_destroy(&c->mu);
    free(c);
}

void client_close(struct client *c)
{
    if (c)
        close_all(c, true);
}
