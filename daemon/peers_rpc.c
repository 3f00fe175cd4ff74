/* SPDX-License-Identifier: Apache-2.0 */
/* peers_rpc.c - the service cairn.Peer, by gRPC on the peer port: who the members are, and whatever else one member
 * asks of another that is no stream of messages (Snapshot is snap_receive.c's).
 *
 * Every call but Members carries who calls whom in its metadata, which is checked as the head of a stream is.
 *
 * Owner: an rpc thread of its own.
 */
#include <errno.h>
#include "msg.h"
#include "peer.pb-c.h"
#include "peers_impl.h"

enum { WINDOW_BYTES = 1 << 20, REQUEST_MS = 5000, KEEPALIVE_MIN_MS = 1000 };

static bool hex_of(struct slice s, uint64_t *ret)
{
    uint64_t v = 0;

    if (s.len == 0 || s.len > 16)
        return false;
    for (size_t i = 0; i < s.len; i++) {
        uint8_t c = s.ptr[i];

        if (c >= '0' && c <= '9')
            v = v << 4 | (uint64_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            v = v << 4 | (uint64_t)(c - 'a' + 10);
        else
            return false;
    }
    *ret = v;
    return true;
}

bool peers_admit(struct call *c, uint64_t *ret_from)
{
    struct peers *p = call_service(c);
    char text[STREAM_ANSWER_TEXT_MAX];
    uint64_t cluster, from, to;
    enum status status;

    if (!hex_of(call_metadata(c, "cairn-cluster"), &cluster) || !hex_of(call_metadata(c, "cairn-from"), &from) ||
        !hex_of(call_metadata(c, "cairn-to"), &to)) {
        call_fail_text(c, STATUS_FAILED_PRECONDITION, "cairn: the call's metadata name no cluster and members");
        return false;
    }
    status = peers_check(p, call_metadata(c, "cairn-version"), cluster, from, to, text);
    if (status) {
        call_fail_text(c, status, text);
        return false;
    }
    *ret_from = from;
    return true;
}

/* p->roster_mu is held: what the rows name is copied by the answer. */
static void answer_members(struct call *c, struct peers *p)
{
    const struct roster *r = p->roster;
    struct arena *a = call_arena(c);
    Cairn__MembersResponse m = CAIRN__MEMBERS_RESPONSE__INIT;
    Cairn__PeerMember **rows = r ? arena_alloc(a, (r->n + 1) * sizeof *rows) : NULL;

    if (rows == NULL) {
        call_fail_text(c, STATUS_UNAVAILABLE, "cairn: this member does not know its cluster yet");
        return;
    }
    for (size_t i = 0; i < r->n; i++) {
        rows[i] = msg_new(a, &cairn__peer_member__descriptor);
        if (rows[i] == NULL) {
            call_fail(c, -ENOMEM);
            return;
        }
        rows[i]->id = r->members[i].id;
        rows[i]->name = (char *)(uintptr_t)r->members[i].name;
        rows[i]->learner = r->members[i].learner;
        rows[i]->started = r->members[i].started;
        rows[i]->n_peer_urls = r->members[i].n_urls;
        rows[i]->peer_urls = (char **)(uintptr_t)r->members[i].urls;
    }
    m.cluster_id = p->options.cluster_id;
    m.member_id = p->options.member_id;
    m.n_members = r->n;
    m.members = rows;
    m.n_removed = r->n_removed;
    m.removed = r->removed;
    call_answer(c, &m.base);
}

static void members_start(struct call *c, const ProtobufCMessage *req)
{
    struct peers *p = call_service(c);

    (void)req;
    pthread_mutex_lock(&p->roster_mu);
    answer_members(c, p);
    pthread_mutex_unlock(&p->roster_mu);
}

static const struct rpc_method members_method = {
    .service = "cairn.Peer",
    .name = "Members",
    .kind = RPC_UNARY,
    .access = ACCESS_OPEN,
    .request = &cairn__members_request__descriptor,
    .start = members_start,
};

static void cut(void *ctx)
{
    struct peers *p = ctx;

    pump_cut(p->pump);
}

static bool deserted(void *ctx)
{
    const struct peers *p = ctx;

    return atomic_load(&pump_stats(p->pump)->open) == 0;
}

int peers_rpc_new(struct peers *p)
{
    struct rpc_options o = {.methods = p->methods,
                            .n_methods = 1,
                            .service = p,
                            .name = "peers-rpc",
                            .threads = 1,
                            .max_request_bytes = LIMIT_PEER_MESSAGE_BYTES - LIMIT_REQUEST_SLACK_BYTES,
                            .max_concurrent_streams = LIMIT_PEER_STREAMS,
                            .keepalive_min_ms = KEEPALIVE_MIN_MS,
                            .request_timeout_ms = REQUEST_MS,
                            .lookahead_bytes = WINDOW_BYTES,
                            .deserted = deserted,
                            .deserted_ctx = p,
                            .cut = cut,
                            .cut_ctx = p};

    p->methods[0] = members_method;
    if (p->options.snapshot)
        p->methods[o.n_methods++] = *p->options.snapshot;
    return rpc_new(&o, &p->rpc);
}
