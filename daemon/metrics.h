/* SPDX-License-Identifier: Apache-2.0 */
/* metrics.h - the text of /metrics: etcd's family names, Prometheus text format 0.0.4, sorted by name.
 *
 * Holds nothing: it asks the modules. What is not there yet (peers, snapshots, Go's runtime) is absent, not zero.
 * Source: reference 06-metrics.
 */
#pragma once
#include <stdio.h>
#include "apply.h"
#include "histogram.h"
#include "hub.h"
#include "lease.h"
#include "peers.h"
#include "rpc.h"
#include "snap_peer.h"
#include "turn.h"

/* Durations that other threads observe; the modules get pointers into it. */
struct metrics_histograms {
    struct histogram wal_fsync;      /* turn's WAL thread */
    struct histogram wal_write;
    struct histogram backend_commit; /* apply's flush thread */
};
void metrics_histograms_init(struct metrics_histograms *h);

struct metrics {
    const struct turn *turn;
    struct apply *apply;
    struct hub *hub;
    struct lease_table *leases;
    const struct rpc *rpc;
    const struct store *store;
    const struct account *account;
    const struct peers *peers;
    const struct snap *snap;
    const struct metrics_histograms *histograms;
    const struct rpc_method *methods;
    size_t n_methods;
    uint64_t member_id;
    int64_t quota_bytes;
    int64_t start_s; /* since 1970 */
};

void metrics_write(const struct metrics *m, FILE *f);
