/* SPDX-License-Identifier: Apache-2.0 */
/* peers_in.c - the service cairn.Peer: streams of messages that come in, and who the members are.
 *
 * A stream's head (metadata) is checked before anything else: version, cluster, both members. One that is accepted is
 * told so by one message of our own, "hello"; one that is not by its status:
 *
 *      FAILED_PRECONDITION   another version, cluster or member than meant
 *      PERMISSION_DENIED     the sender was removed from the cluster
 *      RESOURCE_EXHAUSTED    too many streams
 *
 * A member that this one does not know (yet) is let in: it may have been added by an entry that it brings itself.
 * A stream replaces the one that the same member had in the same lane: the older is of a connection that it has given up.
 *
 * Owner:    the peers' thread.
 * Not here: what a message says (peer.c).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include "log.h"
#include "msg.h"
#include "peer.pb-c.h"
#include "peers_impl.h"

enum { REFUSALS_LOG_MS = 10000 }; /* the same refusal is logged again after this */

/* In call_state(). */
struct incoming {
    struct incoming *prev, *next;
    struct call *call;
    struct peers *peers;
    uint64_t from;
    bool bulk, listed;
    struct peer_counters *counters;
};
_Static_assert(sizeof(struct incoming) <= CALL_STATE_BYTES, "fits into its call");

static void unlist(struct incoming *in)
{
    struct peers *p = in->peers;

    if (!in->listed)
        return;
    in->listed = false;
    *(in->prev ? &in->prev->next : &p->incoming) = in->next;
    if (in->next)
        in->next->prev = in->prev;
    p->n_incoming--;
}

/* ---- who is let in ------------------------------------------------------------------------------------ */

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

/* One line for each kind of refusal, and again after a while: whoever is refused tries again for ever. */
static void refuse(struct call *c, enum status status, const char *text)
{
    struct peers *p = call_service(c);
    uint64_t now = p->options.clock->now_ms(p->options.clock);

    if (strcmp(text, p->refused_text) != 0 || now - p->refused_ms > REFUSALS_LOG_MS) {
        log_warn("peers: a stream is refused", LOG_STR("reason", text));
        (void)snprintf(p->refused_text, sizeof p->refused_text, "%s", text);
        p->refused_ms = now;
    }
    call_fail_text(c, status, text);
}

bool peers_admit(struct call *c, uint64_t *ret_from)
{
    struct peers *p = call_service(c);
    struct slice version = call_metadata(c, "cairn-version");
    uint64_t cluster, from, to;
    char text[160];

    if (!slice_eq(version, slice_str(PEERS_VERSION))) {
        (void)snprintf(text, sizeof text, "cairn: the protocol between members is version %s here, not %.*s",
                       PEERS_VERSION, version.len > 16 ? 16 : (int)version.len, (const char *)version.ptr);
        refuse(c, STATUS_FAILED_PRECONDITION, text);
        return false;
    }
    if (!hex_of(call_metadata(c, "cairn-cluster"), &cluster) || !hex_of(call_metadata(c, "cairn-from"), &from) ||
        !hex_of(call_metadata(c, "cairn-to"), &to) || from == 0) {
        refuse(c, STATUS_FAILED_PRECONDITION, "cairn: the stream's head names no cluster and members");
        return false;
    }
    if (cluster != p->options.cluster_id) {
        (void)snprintf(text, sizeof text, "cairn: this is cluster %" PRIx64 ", not %" PRIx64 " (from member %" PRIx64 ")",
                       p->options.cluster_id, cluster, from);
        refuse(c, STATUS_FAILED_PRECONDITION, text);
        return false;
    }
    if (to != p->options.member_id || from == to) {
        (void)snprintf(text, sizeof text, "cairn: this is member %" PRIx64 ", not %" PRIx64 " (from member %" PRIx64 ")",
                       p->options.member_id, to, from);
        refuse(c, STATUS_FAILED_PRECONDITION, text);
        return false;
    }
    if (peers_is_removed(p, from)) {
        (void)snprintf(text, sizeof text, "cairn: member %" PRIx64 " was removed from the cluster", from);
        refuse(c, STATUS_PERMISSION_DENIED, text);
        return false;
    }
    *ret_from = from;
    return true;
}

/* ---- the stream ------------------------------------------------------------------------------------------ */

static void replace_older(struct peers *p, uint64_t from, bool bulk)
{
    struct incoming *in, *next;

    for (in = p->incoming; in; in = next) {
        next = in->next;
        if (in->from == from && in->bulk == bulk) {
            unlist(in);
            call_fail_text(in->call, STATUS_UNAVAILABLE, "cairn: the member has opened another stream");
        }
    }
}

static void messages_start(struct call *c, const ProtobufCMessage *req)
{
    struct peers *p = call_service(c);
    struct incoming *in = call_state(c);
    struct peer *peer;

    (void)req;
    *in = (struct incoming){.call = c, .peers = p};
    if (!peers_admit(c, &in->from))
        return;
    in->bulk = slice_eq(call_metadata(c, "cairn-lane"), S("bulk"));
    replace_older(p, in->from, in->bulk);
    if (p->n_incoming >= LIMIT_PEER_STREAMS) {
        refuse(c, STATUS_RESOURCE_EXHAUSTED, "cairn: too many streams from members");
        return;
    }
    in->counters = peers_counters(p, in->from);
    in->next = p->incoming;
    if (in->next)
        in->next->prev = in;
    p->incoming = in;
    p->n_incoming++;
    in->listed = true;
    call_send_packed(c, S("hello"));
    peer = peers_find(p, in->from);
    if (peer) {
        link_hurry(&peer->links[LANE_URGENT]);
        link_hurry(&peer->links[LANE_BULK]);
    }
}

/* One peer_msg. False: what came is none; the stream is ended. */
static bool take(struct incoming *in, struct slice bytes)
{
    struct peers *p = in->peers;
    struct peer_msg *m;
    int err = peer_msg_decode(bytes, &m);

    if (err) {
        peers_count(&in->counters->received_failures, 1);
        if (err == -ENOMEM)
            return true; /* as good as lost on the way */
        refuse(in->call, STATUS_INVALID_ARGUMENT, "cairn: what came is not a message of members");
        return false;
    }
    if (m->from != in->from || m->to != p->options.member_id) {
        peers_count(&in->counters->received_failures, 1);
        peer_msg_free(m);
        return true;
    }
    peers_count(&in->counters->received_messages, 1);
    p->sink.receive(p->sink.ctx, m);
    return true;
}

static void messages_message(struct call *c, const ProtobufCMessage *req)
{
    struct incoming *in = call_state(c);
    struct slice s = call_request(c);

    (void)req;
    if (!in->listed || atomic_load(&in->peers->stopping))
        return;
    peers_count(&in->counters->received_bytes, s.len);
    while (s.len) {
        size_t n = s.len >= 4 ? get_u32le(s.ptr) : SIZE_MAX;

        if (s.len < 4 || n > s.len - 4) {
            peers_count(&in->counters->received_failures, 1);
            refuse(c, STATUS_INVALID_ARGUMENT, "cairn: a message of members is cut short");
            return;
        }
        if (!take(in, slice_of(s.ptr + 4, n)))
            return;
        s = slice_of(s.ptr + 4 + n, s.len - 4 - n);
    }
}

static void messages_half_closed(struct call *c)
{
    call_end(c);
}

static void messages_gone(struct call *c)
{
    unlist(call_state(c));
}

static void messages_release(struct call *c)
{
    struct incoming *in = call_state(c);

    if (in->peers)
        unlist(in);
}

const struct rpc_method peers_messages_method = {
    .service = "cairn.Peer",
    .name = "Messages",
    .kind = RPC_BIDI,
    .access = ACCESS_OPEN,
    .start = messages_start,
    .message = messages_message,
    .half_closed = messages_half_closed,
    .gone = messages_gone,
    .release = messages_release,
};

void peers_drop_incoming(struct peers *p)
{
    struct incoming *in, *next;

    for (in = p->incoming; in; in = next) {
        next = in->next;
        if (!peers_is_removed(p, in->from))
            continue;
        unlist(in);
        call_fail_text(in->call, STATUS_PERMISSION_DENIED, "cairn: the member was removed from the cluster");
    }
}

/* ---- Members ----------------------------------------------------------------------------------------------- */

static void members_start(struct call *c, const ProtobufCMessage *req)
{
    struct peers *p = call_service(c);
    const struct roster *r = p->roster; /* written by this thread */
    struct arena *a = call_arena(c);
    Cairn__MembersResponse m = CAIRN__MEMBERS_RESPONSE__INIT;
    Cairn__PeerMember **rows = r ? arena_alloc(a, (r->n + 1) * sizeof *rows) : NULL;

    (void)req;
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

const struct rpc_method peers_members_method = {
    .service = "cairn.Peer",
    .name = "Members",
    .kind = RPC_UNARY,
    .access = ACCESS_OPEN,
    .request = &cairn__members_request__descriptor,
    .start = members_start,
};
