/* SPDX-License-Identifier: Apache-2.0 */
/* snapshot.h - a snapshot's transfer between simulated members. */
#pragma once
#include "net.h"

static inline void sim_snapshot_send(void *ctx, struct peer_msg *msg)
{
    struct sim_member *m = ctx;

    m->w->did.snapshots_failed++;
    turn_snapshot_sent(m->turn, msg->to, false, 0);
    peer_msg_free(msg);
}

static inline void member_snapshot_options(struct sim_member *m, struct turn_options *o)
{
    o->snapshot_send = sim_snapshot_send;
    o->snapshot_ctx = m;
}
