/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_out_impl.h - what rpc_out.c (streams on an rpc thread) and rpc_ask.c (calls that wait) share. Nobody else's. */
#pragma once
#include "rpc_impl.h"
#include "rpc_out.h"

/* One call on a channel of its own. */
struct rpc_call_out {
    grpc_channel *channel;
    grpc_call *gcall;
    grpc_metadata head[RPC_OUT_METADATA_MAX];
    size_t n_head;
    int own_fd; /* a duplicate: shut down to cut the call off */
};

/* Takes the descriptor. 0 or -errno, nothing kept. */
int rpc_call_out_open(struct rpc_call_out *c, const struct rpc_out_target *t, grpc_completion_queue *cq);
void rpc_call_out_cut(struct rpc_call_out *c);
void rpc_call_out_close(struct rpc_call_out *c); /* no operation is in flight any more */
