/* SPDX-License-Identifier: Apache-2.0 */
/* limit.c - the limit: a gRPC core server behind our pump that answers every call with a constant.
 *
 *     limit PORT [RPC-THREADS]
 *
 * What it does a second, and what CPU a call costs, is as good as the front of a member can be: `make bench` shows it
 * beside Cairn. Stops on SIGTERM, and says how long that took.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "daemon/front.h"
#include "rpc.pb-c.h"

static Etcdserverpb__ResponseHeader header = ETCDSERVERPB__RESPONSE_HEADER__INIT;

static void range(struct call *c, const ProtobufCMessage *req)
{
    static uint8_t value[256];
    Mvccpb__KeyValue kv = MVCCPB__KEY_VALUE__INIT, *kvs = &kv;
    Etcdserverpb__RangeResponse m = ETCDSERVERPB__RANGE_RESPONSE__INIT;

    kv.key = ((const Etcdserverpb__RangeRequest *)req)->key;
    kv.value = (ProtobufCBinaryData){sizeof value, value};
    kv.create_revision = kv.mod_revision = kv.version = 1;
    m.header = &header;
    m.kvs = &kvs;
    m.n_kvs = 1;
    m.count = 1;
    call_answer(c, &m.base);
}

static void put(struct call *c, const ProtobufCMessage *req)
{
    Etcdserverpb__PutResponse m = ETCDSERVERPB__PUT_RESPONSE__INIT;

    (void)req;
    m.header = &header;
    call_answer(c, &m.base);
}

/* A watch that says "created" to everything and nothing else. */
static void watch_start(struct call *c, const ProtobufCMessage *req)
{
    (void)c, (void)req;
}

static void watch_message(struct call *c, const ProtobufCMessage *req)
{
    Etcdserverpb__WatchResponse m = ETCDSERVERPB__WATCH_RESPONSE__INIT;

    (void)req;
    m.header = &header;
    m.created = 1;
    call_send(c, &m.base);
}

static const struct rpc_method methods[] = {
    {"etcdserverpb.KV", "Range", RPC_UNARY, ACCESS_OPEN, &etcdserverpb__range_request__descriptor, .start = range},
    {"etcdserverpb.KV", "Put", RPC_UNARY, ACCESS_OPEN, &etcdserverpb__put_request__descriptor, .start = put},
    {"etcdserverpb.Watch", "Watch", RPC_BIDI, ACCESS_OPEN, &etcdserverpb__watch_request__descriptor,
     .start = watch_start, .message = watch_message},
};

int main(int argc, char **argv)
{
    struct url url = {.scheme = URL_HTTP, .text = "the command line's", .host = "127.0.0.1", .port = argc > 1 ? argv[1] : "0"};
    struct front_options o = {
        .listen = &(struct url_list){&url, 1},
        .rpc = {.methods = methods,
                .n_methods = sizeof methods / sizeof *methods,
                .threads = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 1,
                .max_request_bytes = 1572864,
                .keepalive_min_ms = 5000,
                .keepalive_interval_ms = 7200000,
                .keepalive_timeout_ms = 20000},
        .http = {.version = "3.7.1", .cluster_version = "3.7.0"},
    };
    const struct url *bad;
    struct front *f;
    struct timespec from, to;
    sigset_t set;
    int err, sig;

    header.cluster_id = header.member_id = 0x123456789abcdef0;
    header.revision = header.raft_term = 2;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    err = front_new(&o, &f, &bad);
    if (err == 0)
        err = front_start(f);
    if (err) {
        fprintf(stderr, "limit: %s\n", strerror(-err));
        return 1;
    }
    printf("ready\n");
    fflush(stdout);
    sigwait(&set, &sig);
    clock_gettime(CLOCK_MONOTONIC, &from);
    front_stop(f);
    clock_gettime(CLOCK_MONOTONIC, &to);
    printf("stopped in %ld ms\n", (to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000);
    front_free(f);
    return 0;
}
