/* SPDX-License-Identifier: Apache-2.0 */
/* peers.h - the real transport between members: streams of messages on the peer port.
 *
 *     turn --send--> lane --> socket ==> the other's peers thread --> receive()
 *
 * To each other member there are two connections of ours: an urgent one (heartbeats, votes, replies) and a bulk one
 * (entries). What is urgent never stands behind entries, in no buffer of ours or of the kernel's. The other side has
 * two of its own to us. A stream's head names the cluster, both members and the version of the protocol; whoever does
 * not fit is refused, and told why. To an https:// URL all this goes over TLS, either side's certificate verified as
 * the flags say; without one nobody gets as far as to say a head. On the same port gRPC serves cairn.Peer: Members, and
 * Snapshot.
 *
 * A stream that breaks and a port that then refuses mean that the process is gone: suspect(), milliseconds after it
 * died.
 *
 * Owner: one thread for every socket, which never waits; connecting, names and old entries that are only on the disk
 * have threads of their own (dial.h, peers_fetch.c). Functions: any thread, unless they say otherwise.
 */
#pragma once
#include "config.h"
#include "entry.h"
#include "peer.h"
#include "rpc.h"
#include "rpc_ask.h"
#include "seam.h"
#include "tls.h"
#include "wal.h"

struct peers;

#define PEERS_VERSION 1 /* of the protocol; another one is refused */

struct peers_options {
    struct clock *clock;
    struct rng *rng;
    const struct url_list *listen;
    struct tls_ctx *tls;           /* for https://, ours and theirs; NULL: there are none; borrowed */
    uint64_t cluster_id, member_id;
    struct entry_cache *cache;
    struct wal *wal;
    /* cairn.Peer/Snapshot: a raw BIDI method, whose start calls peers_admit first. NULL: none. */
    const struct rpc_method *snapshot;
    void *snapshot_ctx;            /* peers_snapshot_ctx(call_service(c)) */
    /* A record of the log, wanted by another member, is damaged. Any thread; may not return. NULL: nobody to tell. */
    void (*damaged)(void *ctx, const char *what);
    void *damaged_ctx;
};

/* What comes out of it; none may wait, all are called on the peers' thread, which holds no lock then. */
struct peers_sink {
    void (*receive)(void *ctx, struct peer_msg *m); /* m->from is the stream's member, m->to this one; m is given
                                                     * away */
    void (*suspect)(void *ctx, uint64_t member);
    void (*unreachable)(void *ctx, uint64_t member);
    void (*removed)(void *ctx); /* a member refused us since we were removed from the cluster; may come again. Or
                                 * NULL */
    void *ctx;
};

/* The ports are bound when it returns. 0, or -errno: *ret_bad is then the URL that could not be listened on, or
 * NULL. */
int peers_new(const struct peers_options *o, struct peers **ret_peers, const struct url **ret_bad);
int peers_start(struct peers *p, const struct peers_sink *sink);
/* Closes the port and every connection, within LIMIT_STOP_MS; the sink is not called any more. */
void peers_stop(struct peers *p);
void peers_free(struct peers *p); /* takes NULL */

/* The seam of the turn: sends to whoever is a member; the rest is dropped. */
struct transport *peers_transport(struct peers *p);

struct peers_member {
    uint64_t id;
    const char *name;          /* "" before it has started */
    const char *const *urls;   /* its peer URLs; what cannot be reached (https:// without tls) is logged */
    size_t n_urls;
    bool learner;
    bool started;              /* it has told its client URLs: it has run before */
};
/* Who is in the cluster (this member too) and who no longer is: connects to new ones, drops others. Copies. 0,
 * -ENOMEM. */
int peers_set_members(struct peers *p, const struct peers_member *members, size_t n, const uint64_t *removed,
                      size_t n_removed);

/* ---- for other services between members ------------------------------------------------------------- */

/* In a gRPC stream's start: checks who calls. False: the call has been refused. */
bool peers_admit(struct call *c, uint64_t *ret_from);
void *peers_snapshot_ctx(const struct peers *p);

/* A call to a member, on a connection of its own; waits up to timeout_ms for it. 0, -ENOENT: not a member, or
 * -errno. */
int peers_call(struct peers *p, uint64_t member, const char *path, uint32_t timeout_ms, struct rpc_ask **ret_ask);

/* Asks whoever listens there who is in its cluster, before this process is a member of one; waits up to timeout_ms for
 * each step. tls: for https://, or NULL. 0: protobuf's message, to be freed by
 * cairn__members_response__free_unpacked(m, NULL); else -errno, and why. */
struct Cairn__MembersResponse;
int peers_ask_members(const struct url *u, struct tls_ctx *tls, uint32_t timeout_ms,
                      struct Cairn__MembersResponse **ret_members, char why[TLS_TEXT_BYTES]);

/* ---- what there is to see ----------------------------------------------------------------------------- */

struct peers_stats {
    uint64_t member;
    bool active;            /* our urgent stream to it is accepted, */
    uint64_t since_ms;      /* since then */
    uint64_t sent_bytes, sent_messages, sent_failures; /* failures: messages dropped */
    uint64_t received_bytes, received_messages, received_failures; /* failures: what was not its to say, or no
                                                                    * message */
    uint64_t disconnects;
};
#define PEERS_STATS_MAX 32
/* Any thread: since when (the clock's ms) our urgent stream to this member has been accepted; 0: it is not. */
uint64_t peers_active_since(const struct peers *p, uint64_t member);
/* Of members there are and were; how many. */
size_t peers_stats(const struct peers *p, struct peers_stats ret_stats[PEERS_STATS_MAX]);
