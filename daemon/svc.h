/* SPDX-License-Identifier: Apache-2.0 */
/* svc.h - what the gRPC services stand on, and the table of their methods.
 *
 * svc_kv.c, svc_watch.c, svc_lease.c, svc_cluster.c, svc_maint.c, svc_health.c, svc_tree.c each hold one service: check
 * the request, then read at a view or propose, then answer.
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
    bool strict_reconfig;
    uint64_t max_learners;
    /* For how long, in ms, this member has been connected to that one; 0: it is not. NULL: there are no others. */
    uint64_t (*connected_ms)(void *ctx, uint64_t member);
    void *connected_ctx;
    struct svc_gathered {
        struct proposal *newest, *oldest; /* chained by their mail */
    } gathered[RPC_THREADS_MAX];          /* proposed, not yet handed to the turn; each its rpc thread's */
};

/* Every method there is, one row after the other: the arrays of the services, each beside its handlers. */
struct svc_service {
    const struct rpc_method *methods;
    size_t n;
};
const struct rpc_method *svc_methods(size_t *ret_n);

extern const struct svc_service svc_kv, svc_lease, svc_cluster, svc_maint, svc_later, svc_health, svc_watch, svc_tree;

/* What etcd's interceptors check of every call; struct rpc_options.admit. 0 or ERR_x. */
int svc_admit(struct call *c, const ProtobufCMessage *req);

/* Fills the header of a response: ids, term, and revision (0: the current one). NULL when the call's arena is full. */
Etcdserverpb__ResponseHeader *svc_header(struct call *c, int64_t revision);
/* The same in another arena; any thread that has the call for itself. */
Etcdserverpb__ResponseHeader *svc_header_in(struct call *c, struct arena *a, int64_t revision);

/* Proposes body under kind for this call; answer is called on the call's thread with the finished proposal. Fails the
 * call itself when it cannot be proposed. */
void svc_propose(struct call *c, int kind, struct slice body, void (*answer)(struct call *c, struct proposal *p));
/* Hands to the turn what calls of this rpc thread have proposed; struct rpc_options.hand_on. */
void svc_hand_on(void *service, unsigned thread);
/* rpc_options.damaged: the member hears of it at once. */
void svc_damaged(void *service, const char *method);
/* The same for a message. */
void svc_propose_message(struct call *c, int kind, const ProtobufCMessage *m,
                         void (*answer)(struct call *c, struct proposal *p));

/* Runs fn on the call's thread once a read there is linearizable (at once when no wait is needed); fails the call
 * else. */
void svc_read(struct call *c, void (*fn)(struct call *c));

/* Answers a unary call from a view: build fills a response in a, without waiting; it runs on the call's thread within
 * `limits`, or, when it returns MVCC_TOO_LONG (or its memory was not enough), again on a scan thread without any. The
 * message it returns is packed before the view closes; err as of call_fail. Ends the call. */
typedef int svc_build(struct call *c, struct view *v, const struct mvcc_limits *limits, struct arena *a,
                      ProtobufCMessage **ret);
void svc_answer_view(struct call *c, svc_build *build);
