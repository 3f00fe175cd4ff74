/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_ask.h - calls out to other members by gRPC, over a socket that is already connected (dial.h), for whoever may
 * wait.
 *
 * A socket carries one call and goes with it. Never an ordinary channel: those back off for two minutes, obey
 * http_proxy, and hide whether a port refuses. Any thread, one at a time; each function blocks up to its timeout.
 */
#pragma once
#include "bytes.h"
#include "err.h"

#define RPC_ASK_METADATA_MAX 8
struct rpc_ask_target {
    int fd;                /* connected, non-blocking; gRPC's from here, also when it fails */
    const char *authority; /* dial_authority() */
    const char *path;      /* "/cairn.Peer/Snapshot" */
    struct rpc_ask_pair {
        const char *key, *value;
    } metadata[RPC_ASK_METADATA_MAX]; /* key NULL ends it */
};

struct rpc_ask;

/* 0, or -errno with the descriptor closed. */
int rpc_ask_open(const struct rpc_ask_target *target, struct rpc_ask **ret_ask);
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
