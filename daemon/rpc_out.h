/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_out.h - calls out, over a socket that is already connected (dial.h). The other door to gRPC core.
 *
 * A socket carries one call and goes with it. Never an ordinary channel: those back off for two minutes, obey
 * http_proxy, and hide whether a port refuses.
 *
 *     struct rpc_out   a stream of messages, driven by an rpc thread of rpc.h; nothing waits
 *     struct rpc_ask   the same for whoever may wait: each function blocks up to its timeout; any thread, its own queue
 */
#pragma once
#include "bytes.h"
#include "err.h"
#include "rpc.h"

#define RPC_OUT_METADATA_MAX 8
struct rpc_out_target {
    int fd;                /* connected, non-blocking; gRPC's from here, also when it fails */
    const char *authority; /* dial_authority() */
    const char *path;      /* "/cairn.Peer/Messages" */
    struct rpc_out_pair {
        const char *key, *value;
    } metadata[RPC_OUT_METADATA_MAX]; /* key NULL ends it */
};

/* ---- on an rpc thread ----------------------------------------------------------------------------- */

struct rpc_out;

struct rpc_out_options {
    struct rpc *rpc;
    unsigned thread;
    struct rpc_out_target target;
    /* All on that thread. */
    void (*received)(void *ctx, struct slice bytes); /* a message; borrowed for the call */
    void (*sent)(void *ctx);                         /* the last one was taken; the next may be sent */
    /* The stream is over, whoever ended it: once, the last of all; o is gone then. text: borrowed for the call. */
    void (*ended)(void *ctx, enum status status, struct slice text);
    void *ctx;
};
/* On that thread. NULL: no memory; ended does not come then. */
struct rpc_out *rpc_out_open(const struct rpc_out_options *o);
bool rpc_out_busy(const struct rpc_out *o); /* a message is on its way, or the stream is over */
/* Memory for the next message, to be filled before rpc_out_send. Not while busy. */
uint8_t *rpc_out_buffer(struct rpc_out *o, size_t n);
void rpc_out_send(struct rpc_out *o);
/* Ends it, also when the other side reads nothing; ended comes soon. */
void rpc_out_cut(struct rpc_out *o);

/* ---- for whoever may wait --------------------------------------------------------------------------- */

struct rpc_ask;

/* 0, or -errno with the descriptor closed. */
int rpc_ask_open(const struct rpc_out_target *target, struct rpc_ask **ret_ask);
/* Copies bytes. 0; -ETIMEDOUT: not taken in time, only rpc_ask_end is left; -EPIPE: the other side has ended the call,
 * rpc_ask_end says how. */
int rpc_ask_send(struct rpc_ask *a, struct slice bytes, uint32_t timeout_ms);
/* The next message, in heap memory of the caller's. 0, -EPIPE or -ETIMEDOUT as above. */
int rpc_ask_receive(struct rpc_ask *a, uint32_t timeout_ms, struct slice *ret_bytes);
/* Says that no more is sent, waits for the status, which is STATUS_DEADLINE_EXCEEDED when it does not come, and frees
 * a. text (may be NULL): what the other side said. */
enum status rpc_ask_end(struct rpc_ask *a, uint32_t timeout_ms, char *text, size_t text_size);
/* Cuts the call off and frees a. Takes NULL. */
void rpc_ask_cut(struct rpc_ask *a);
