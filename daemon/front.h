/* SPDX-License-Identifier: Apache-2.0 */
/* front.h - the member's face: listeners, pump, gRPC and HTTP/1.1 on one port, started and stopped in order. */
#pragma once
#include "http.h"
#include "listen.h"
#include "pump.h"
#include "rpc.h"

struct front;

struct front_options {
    const struct url_list *listen;
    struct tls_ctx *tls;           /* for https:// and unixs://; NULL: there are none; borrowed */
    struct rpc_options rpc;        /* cut and cut_ctx are the front's */
    struct http_options http;
};

/* Everything but threads: the ports are bound when it returns.
 *
 * Returns 0 or -errno; *ret_bad is then the URL that could not be listened on, or NULL. */
int front_new(const struct front_options *o, struct front **ret_front, const struct url **ret_bad);
int front_start(struct front *f);
/* Nothing new comes in; calls end with Unavailable; returns within LIMIT_STOP_MS. rpc threads still run what is
 * resumed, until front_free. */
void front_stop(struct front *f);
/* Takes NULL, and what was never started. Whoever resumes calls must have stopped. */
void front_free(struct front *f);

struct rpc *front_rpc(struct front *f);
const struct pump_stats *front_pump_stats(const struct front *f);
