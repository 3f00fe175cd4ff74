/* SPDX-License-Identifier: Apache-2.0 */
/* svc.h - what the gRPC services stand on, and the table of their methods.
 *
 * svc_kv.c, svc_watch.c, svc_lease.c, svc_cluster.c, svc_maint.c, svc_health.c each hold one service: check the
 * request, then read at a view or propose, then answer.
 */
#pragma once
#include "apply.h"
#include "hub.h"
#include "lease.h"
#include "mvcc.h"
#include "rpc.h"
#include "scan.h"
#include "turn.h"

struct svc {
    struct store *store;
    struct turn *turn;
    struct apply *apply;
    struct account *account;
    struct lease_table *leases;
    struct hub *hub;
    struct scan_pool *scan;
    struct clock *clock;
    struct rng *rng;
    uint64_t cluster_id, member_id;
    size_t max_request_bytes;
    uint32_t max_txn_ops;
    uint32_t request_timeout_ms;
    int64_t quota_bytes;
    const char *version;
};

extern const struct rpc_method svc_methods[];
extern const size_t svc_n_methods;

/* Fills the header of a response: ids, term, and revision (0: the current one). */
Etcdserverpb__ResponseHeader *svc_header(struct call *c, int64_t revision);

/* Proposes body under kind for this call; answer is called on the call's thread with the finished proposal. Fails the
 * call itself when it cannot be proposed. */
void svc_propose(struct call *c, int kind, struct slice body, void (*answer)(struct call *c, struct proposal *p));

/* Runs fn on the call's thread once a read there is linearizable (at once when no wait is needed); fails the call else. */
void svc_read(struct call *c, void (*fn)(struct call *c));
