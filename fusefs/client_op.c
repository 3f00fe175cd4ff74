/* SPDX-License-Identifier: Apache-2.0 */
/* client_op.c - one call or stream as gRPC sees it: its messages, its batches, what it borrows meanwhile. */
#include "client_private.h"

const struct method client_methods[CLIENT_METHODS] = {
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
    [CLIENT_TREE_RENAME] = {"/cairn.Tree/Rename", &cairn__rename_response__descriptor, false, true},
    [CLIENT_WATCH] = {"/etcdserverpb.Watch/Watch", &etcdserverpb__watch_response__descriptor, false, false},
    [CLIENT_LEASE_KEEPALIVE] = {"/etcdserverpb.Lease/LeaseKeepAlive",
                                &etcdserverpb__lease_keep_alive_response__descriptor, false, false},
};

bool client_op_proves(const struct client_op *op)
{
    return op->only == NULL && client_methods[op->method].quorum && !op->serializable;
}

void client_op_unlink(struct client *c, struct client_op *op)
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

void client_op_wait(struct client *c, struct client_op *op)
{
    op->prev = c->waiting_end;
    *c->waiting_end = op;
    c->waiting_end = &op->next;
}

static void client_op_run(struct client *c, struct client_op *op)
{
    op->next = c->running;
    if (op->next)
        op->next->prev = &op->next;
    op->prev = &c->running;
    c->running = op;
}

/* ---- ops --------------------------------------------------------------------------- */

struct message *client_message_pack(const ProtobufCMessage *msg)
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

void client_message_free(struct message *m)
{
    grpc_byte_buffer_destroy(m->bytes);
    free(m);
}

struct client_op *client_op_new(struct client *c, enum client_method m, const ProtobufCMessage *msg,
                                int64_t timeout_ms)
{
    struct client_op *op = calloc(1, sizeof *op);

    if (op == NULL)
        abort();
    op->client = c;
    op->method = m;
    op->out = client_message_pack(msg);
    op->n_bytes = grpc_byte_buffer_length(op->out->bytes);
    op->out_end = &op->out->next;
    op->first_ms = client_now_ms();
    op->deadline_ms = op->first_ms + (timeout_ms ? timeout_ms : c->timeout_ms);
    op->details = grpc_empty_slice();
    c->n_ops++;
    return op;
}

/* Gives back what one attempt borrowed, so that the op can be freed or tried again. */
void client_op_reset(struct client_op *op)
{
    if (op->gcall == NULL)
        return;
    grpc_call_unref(op->gcall);
    op->gcall = NULL;
    grpc_metadata_array_destroy(&op->initial);
    grpc_metadata_array_destroy(&op->trailing);
    grpc_slice_unref(op->details);
    op->details = grpc_empty_slice();
    if (op->sending)
        grpc_byte_buffer_destroy(op->sending);
    op->sending = NULL;
    if (op->received)
        grpc_byte_buffer_destroy(op->received);
    op->received = NULL;
    if (op->reply)
        protobuf_c_message_free_unpacked(op->reply, NULL);
    op->reply = NULL;
}

void client_op_free(struct client *c, struct client_op *op)
{
    assert(op->n_tags == 0);
    client_op_unlink(c, op);
    client_op_reset(op);
    while (op->out) {
        struct message *m = op->out;

        op->out = m->next;
        client_message_free(m);
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

/* gRPC empties the buffer that it sends from: it gets one of its own, so that the request can be sent again. */
static void start_call(struct client_op *op)
{
    op->sending = grpc_byte_buffer_copy(op->out->bytes); /* shares the bytes */

    const grpc_op ops[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = op->sending},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata.recv_initial_metadata = &op->initial},
        {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &op->received},
        {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
         .data.recv_status_on_client = {.trailing_metadata = &op->trailing,
                                        .status = &op->status,
                                        .status_details = &op->details}},
    };

    op->status_tag = (struct tag){.arrived = client_call_arrived, .polled = client_unpack_reply, .op = op};
    batch(op, &op->status_tag, ops, sizeof ops / sizeof *ops);
}

void client_stream_receive(struct client_op *op)
{
    const grpc_op recv = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &op->received};

    op->recv_tag = (struct tag){.arrived = client_stream_received, .polled = client_unpack_reply, .op = op};
    batch(op, &op->recv_tag, &recv, 1);
}

/* One message at a time is with gRPC: the first of op->out. */
void client_stream_transmit(struct client_op *op)
{
    const grpc_op send = {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = op->out->bytes};

    op->send_tag = (struct tag){.arrived = client_stream_sent, .op = op};
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

    op->open_tag = (struct tag){.arrived = client_stream_opened, .op = op};
    op->status_tag = (struct tag){.arrived = client_stream_ended, .op = op};
    batch(op, &op->status_tag, &status, 1);
    batch(op, &op->open_tag, open, 2);
    client_stream_transmit(op);
    client_stream_receive(op);
}

/* The endpoint is connected: from here on the request counts as sent. */
void client_op_start(struct client *c, struct client_op *op)
{
    struct endpoint *e = op->only ? op->only : client_current(c);
    int64_t now_ms = client_now_ms();
    gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);

    client_op_unlink(c, op);
    client_op_run(c, op);
    op->endpoint = e;
    op->moved = false;
    if (!op->is_stream)
        client_note_asked(c, op);
    op->started_ms = now_ms;
    op->tries++;
    if (!op->is_stream)
        deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                gpr_time_from_millis(op->deadline_ms - now_ms, GPR_TIMESPAN));
    grpc_metadata_array_init(&op->initial);
    grpc_metadata_array_init(&op->trailing);
    op->gcall = grpc_channel_create_call(e->channel, NULL, GRPC_PROPAGATE_DEFAULTS, c->cq,
                                         grpc_slice_from_static_string(client_methods[op->method].path), NULL,
                                         deadline, NULL);
    assert(op->gcall);
    if (op->is_stream)
        start_stream(op);
    else
        start_call(op);
}

struct slice client_op_text(const struct client_op *op)
{
    return slice_of(GRPC_SLICE_START_PTR(op->details), GRPC_SLICE_LENGTH(op->details));
}

enum err client_op_err(const struct client_op *op)
{
    char text[CLIENT_TEXT_BYTES];
    struct slice s = client_op_text(op);
    size_t n = s.len < sizeof text ? s.len : sizeof text - 1;

    if (n)
        memcpy(text, s.ptr, n);
    text[n] = 0;
    return client_err_of_text(text);
}
