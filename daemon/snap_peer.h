/* SPDX-License-Identifier: Apache-2.0 */
/* snap_peer.h - snapshots between members: given to who lags, taken from who leads.
 *
 *     turn --snapshot_send--> a sending thread ==chunks==> cairn.Peer/Snapshot --> the receiving thread
 *                                                                  the message, stepped --> turn --> WAL thread: install
 *
 * A connection of its own carries each transfer, at the rate its receiver takes it; messages between members never wait
 * behind one. At most LIMIT_SNAP_SENDS are given and one is taken at a time. Whoever makes no progress for
 * LIMIT_SNAP_STALL_MS fails, and Raft asks again.
 */
#pragma once
#include "apply.h"
#include "datadir.h"
#include "peers.h"
#include "snap_install.h"
#include "turn.h"

struct snap;

struct snap_options {
    struct clock *clock;
    struct apply *apply;
    struct store *store;
    struct snap_place place;
    uint64_t cluster_id, member_id;
    bool faulty;              /* DIR/FAULTY is to be removed once Raft says that this member is sound */
    /* On the receiving thread: this member's state is not that of the others, says a majority. */
    void (*damaged)(void *ctx, const char *what);
    void *damaged_ctx;
};

/* Made before turn and peers, which want its functions; joined with them before snap_start. */
int snap_new(const struct snap_options *o, struct snap **ret_snap);
void snap_join(struct snap *s, struct turn *t, struct peers *p);
int snap_start(struct snap *s);
/* Before peers_stop and turn_stop: transfers end, nothing more is taken or given. */
void snap_stop(struct snap *s);
void snap_free(struct snap *s); /* takes NULL; after peers_free and turn_free */

/* turn_options.snap_stepped, .snap_install (snap_ctx) and .snapshot_send (snapshot_ctx), with the struct snap. */
void snap_turn_stepped(void *ctx, uint64_t index, bool taken);
int snap_turn_install(void *ctx, uint64_t index, uint64_t term, const struct wal_state *hard);
void snap_turn_send(void *ctx, struct peer_msg *m);

/* turn_options.state_hash (state_hash_ctx). */
void snap_turn_hash(void *ctx, const struct peer_msg *m);
size_t snap_members(const struct snap *s); /* any thread: how many members there are; 0: not yet looked at */
/* Any thread: there are other members than before. */
void snap_members_changed(struct snap *s);

/* peers_options.snapshot; snapshot_ctx is the struct snap. */
extern const struct rpc_method snap_method;

struct snap_stats {
    uint64_t sent, send_failures, received, receive_failures; /* transfers */
    uint64_t sent_bytes, received_bytes;
};
void snap_stats(const struct snap *s, struct snap_stats *ret_stats); /* any thread */
