/* SPDX-License-Identifier: Apache-2.0 */
/* progress.h - what a leader knows of one follower, and how much it may send it now.
 *
 *     PROBE ---- accepted ----> REPLICATE     probe: one APPEND at a time, to find where logs agree
 *       ^ <---- refused, lost ----  |         replicate: a window of APPENDs, `next` runs ahead
 *       |                           |         snapshotting: nothing until the transfer has ended
 *       +--- SNAPSHOTTING <---------+ (next is before the log)
 *
 * Source: T 10.2.1 (pipelining); etcd-io/raft tracker.
 */
#pragma once
#include "raft.h"

struct progress {
    uint64_t id;
    uint64_t match; /* known to be stored there; match < next */
    uint64_t next;  /* the next entry to send */
    enum raft_peer_state state;
    bool recent_active; /* heard from since the last quorum check */
    bool paused;        /* PROBE: one is on its way. REPLICATE: the window is full */
    uint64_t read_ack;  /* the newest read round it has confirmed */
    bool read_quick;    /* a voter that had confirmed the last round by the time a majority had */
    /* The last index of each APPEND on its way, oldest at head; ascending. */
    uint64_t window[RAFT_INFLIGHT_MAX];
    uint32_t window_head, window_n;
    uint32_t window_max; /* 1 ... RAFT_INFLIGHT_MAX */
};

void progress_init(struct progress *p, uint64_t id, uint64_t next, uint32_t window_max);
void progress_probe(struct progress *p);
void progress_replicate(struct progress *p);
void progress_snapshot(struct progress *p);
/* A transfer ended: ok says whether everything up to index has arrived. */
void progress_snapshot_ended(struct progress *p, bool ok, uint64_t index);

/* May an APPEND go out at all, and may it carry entries? */
bool progress_may_send(const struct progress *p);
bool progress_window_full(const struct progress *p);
/* An APPEND of n entries from `next` on is going out. */
void progress_sent(struct progress *p, uint64_t n);
/* Everything up to index is stored there. True: that is news, or ends a probe. */
bool progress_accepted(struct progress *p, uint64_t index);
/* An APPEND after `refused` was refused; hint: the highest index that may agree. False: an old refusal. */
bool progress_refused(struct progress *p, uint64_t refused, uint64_t hint);
