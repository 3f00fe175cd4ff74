/* SPDX-License-Identifier: Apache-2.0 */
/* trace_server.c - the traces of mvcc, txn and watch, asked of a server over gRPC.
 *
 *     trace_server ADDRESS FILE     the server is new, and nobody else's
 *
 * Responses of a watch come when they come: after each command it waits, at most WAIT_MS, for as many as the file says,
 * and a moment longer for one too many; who comes later is seen at the next command. "tick", "hold" and "go" are
 * refused: such traces are not for a server. */
#include "oracle_wire.inc"
#include "../trace/kv.h"

enum { WAIT_MS = 10000, MOMENT_MS = 20 };

static struct remote {
    struct kv_server server;
    struct answer answer;
    ProtobufCMessage *m;
    int taken; /* responses, of this command */

    grpc_completion_queue *cq; /* the watch's */
    grpc_call *call;           /* NULL: no watch yet */
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *received;
    grpc_slice details;
    grpc_status_code status;
    Etcdserverpb__WatchResponse *response;
} remote;

static const struct {
    const char *method;
    const ProtobufCMessageDescriptor *response;
} methods[] = {
    [KV_RANGE] = {"/etcdserverpb.KV/Range", &etcdserverpb__range_response__descriptor},
    [KV_PUT] = {"/etcdserverpb.KV/Put", &etcdserverpb__put_response__descriptor},
    [KV_DELETE] = {"/etcdserverpb.KV/DeleteRange", &etcdserverpb__delete_range_response__descriptor},
    [KV_TXN] = {"/etcdserverpb.KV/Txn", &etcdserverpb__txn_response__descriptor},
    [KV_COMPACT] = {"/etcdserverpb.KV/Compact", &etcdserverpb__compaction_response__descriptor},
    [LEASE_GRANT] = {"/etcdserverpb.Lease/LeaseGrant", &etcdserverpb__lease_grant_response__descriptor},
    [LEASE_REVOKE] = {"/etcdserverpb.Lease/LeaseRevoke", &etcdserverpb__lease_revoke_response__descriptor},
    [LEASE_TTL] = {"/etcdserverpb.Lease/LeaseTimeToLive",
                   &etcdserverpb__lease_time_to_live_response__descriptor},
    [LEASE_LIST] = {"/etcdserverpb.Lease/LeaseLeases", &etcdserverpb__lease_leases_response__descriptor},
};

static void remote_call(struct kv_server *s, enum kv_method method, const ProtobufCMessage *req,
                        struct kv_answer *ret)
{
    struct remote *r = (struct remote *)s;

    if (r->m)
        protobuf_c_message_free_unpacked(r->m, NULL);
    r->m = NULL;
    answer_free(&r->answer);
    unary_start(&servers[0], methods[method].method, req);
    (void)wait_one(CALL_S + 5);
    r->answer = take(&servers[0]);
    call_close(&servers[0]);
    if (r->answer.status == GRPC_STATUS_OK)
        r->m = protobuf_c_message_unpack(methods[method].response, NULL, r->answer.len, r->answer.bytes);
    if (r->answer.status == GRPC_STATUS_OK && r->m == NULL)
        die("not ok - %s answers what is no message", methods[method].method);
    *ret = (struct kv_answer){(enum status)r->answer.status, r->answer.details, r->m};
}

/* ---- the watch ------------------------------------------------------------------------------- */

static void stream_post(struct remote *r, const grpc_op *ops, size_t n, void *tag)
{
    if (grpc_call_start_batch(r->call, ops, n, tag, NULL) != GRPC_CALL_OK)
        die("watch: grpc_call_start_batch");
}

static void stream_receive(struct remote *r)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &r->received};

    stream_post(r, &op, 1, &r->received);
}

static void stream_open(struct remote *r)
{
    grpc_op start[] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
                       {.op = GRPC_OP_RECV_INITIAL_METADATA,
                        .data.recv_initial_metadata.recv_initial_metadata = &r->initial}};
    grpc_op end = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                   .data.recv_status_on_client = {.trailing_metadata = &r->trailing,
                                                  .status = &r->status,
                                                  .status_details = &r->details}};

    r->call = grpc_channel_create_call(servers[0].channel, NULL, GRPC_PROPAGATE_DEFAULTS, r->cq,
                                       grpc_slice_from_static_string("/etcdserverpb.Watch/Watch"), NULL,
                                       gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    grpc_metadata_array_init(&r->initial);
    grpc_metadata_array_init(&r->trailing);
    stream_post(r, start, 2, r);
    stream_post(r, &end, 1, r);
    stream_receive(r);
}

static void remote_send(struct kv_server *s, const Etcdserverpb__WatchRequest *req)
{
    struct remote *r = (struct remote *)s;
    grpc_byte_buffer *b = pack(&req->base);
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = b};

    if (r->call == NULL)
        stream_open(r);
    stream_post(r, &op, 1, r);
    grpc_byte_buffer_destroy(b);
}

static int responses_wanted(void)
{
    int n = 0;

    for (const char *p = trace_want; p && (p = strstr(p, "  watch ")) != NULL; p++)
        n++;
    return n;
}

static Etcdserverpb__WatchResponse *remote_take(struct kv_server *s)
{
    struct remote *r = (struct remote *)s;
    int ms = r->taken < responses_wanted() ? WAIT_MS : MOMENT_MS;
    gpr_timespec until = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(ms, GPR_TIMESPAN));
    grpc_byte_buffer_reader reader;
    grpc_event e;
    grpc_slice all;

    if (r->response)
        etcdserverpb__watch_response__free_unpacked(r->response, NULL);
    r->response = NULL;
    if (r->call == NULL)
        return NULL;
    do
        e = grpc_completion_queue_next(r->cq, until, NULL);
    while (e.type == GRPC_OP_COMPLETE && e.tag != &r->received);
    if (e.type != GRPC_OP_COMPLETE) {
        r->taken = 0;
        return NULL;
    }
    r->taken++;
    if (r->received == NULL)
        die("not ok - the watch has ended");
    grpc_byte_buffer_reader_init(&reader, r->received);
    all = grpc_byte_buffer_reader_readall(&reader);
    r->response =
        etcdserverpb__watch_response__unpack(NULL, GRPC_SLICE_LENGTH(all), GRPC_SLICE_START_PTR(all));
    grpc_slice_unref(all);
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(r->received);
    r->received = NULL;
    if (r->response == NULL)
        die("not ok - a watch response that is none");
    stream_receive(r);
    return r->response;
}

/* The first call waits until the server is there. */
static void wait_ready(void)
{
    Etcdserverpb__RangeRequest q = ETCDSERVERPB__RANGE_REQUEST__INIT;
    struct kv_answer a;

    q.key = (ProtobufCBinaryData){1, (uint8_t *)"x"};
    remote_call(&remote.server, KV_RANGE, &q.base, &a);
    if (a.status)
        die("not ok - %s: %s", servers[0].address, a.text);
}

/* ---- the run ----------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
    grpc_channel_credentials *plain;
    int bad, ran = 0;

    if (argc != 3) {
        fprintf(stderr, "usage: trace_server ADDRESS FILE\n");
        return 2;
    }
    grpc_init();
    cq = grpc_completion_queue_create_for_next(NULL);
    plain = grpc_insecure_credentials_create();
    servers[0].address = argv[1];
    servers[0].channel = grpc_channel_create(argv[1], plain, NULL);
    grpc_channel_credentials_release(plain);
    remote.server =
        (struct kv_server){.call = remote_call, .watch_send = remote_send, .watch_take = remote_take};
    remote.cq = grpc_completion_queue_create_for_next(NULL);
    wait_ready();
    bad = trace_run(argv[2], kv_command, &remote.server, &ran);
    printf("# %s: %d commands, %d differ\n", argv[2], ran, bad);
    return bad != 0; /* what gRPC holds ends with the process */
}
