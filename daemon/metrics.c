/* SPDX-License-Identifier: Apache-2.0 */
/* metrics.c - the text of /metrics. */
#include "metrics.h"
#include <dirent.h>
#include <inttypes.h>
#include <sys/resource.h>
#include <unistd.h>
#include "config.h"

void metrics_histograms_init(struct metrics_histograms *h)
{
    static const struct histogram shape = HISTOGRAM(0.001, 2, 14);

    h->wal_fsync = shape;
    h->wal_write = shape;
    h->backend_commit = shape;
}

static void head(FILE *f, const char *name, const char *type, const char *help)
{
    (void)fprintf(f, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void gauge(FILE *f, const char *name, const char *help, double v)
{
    head(f, name, "gauge", help);
    (void)fprintf(f, "%s %.17g\n", name, v);
}

static void counter(FILE *f, const char *name, const char *help, uint64_t v)
{
    head(f, name, "counter", help);
    (void)fprintf(f, "%s %" PRIu64 "\n", name, v);
}

static void histogram(FILE *f, const char *name, const char *help, const struct histogram *h)
{
    uint64_t total = 0;
    double bound = h->first;

    head(f, name, "histogram", help);
    for (unsigned i = 0; i <= h->n; i++, bound *= h->factor) {
        total += atomic_load_explicit(&h->counts[i], memory_order_relaxed);
        if (i < h->n)
            (void)fprintf(f, "%s_bucket{le=\"%g\"} %" PRIu64 "\n", name, bound, total);
        else
            (void)fprintf(f, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, total);
    }
    (void)fprintf(f, "%s_sum %.9g\n%s_count %" PRIu64 "\n", name,
                  (double)atomic_load_explicit(&h->sum_us, memory_order_relaxed) / 1e6, name, total);
}

/* ---- debugging, disk ------------------------------------------------------------- */

static void write_debugging(const struct metrics *m, FILE *f, const struct apply_stats *a, const struct hub_stats *h)
{
    gauge(f, "etcd_debugging_mvcc_compact_revision", "Compact revision.",
          (double)store_compact_revision(m->store));
    gauge(f, "etcd_debugging_mvcc_current_revision", "Current revision.", (double)store_revision(m->store));
    counter(f, "etcd_debugging_mvcc_db_compaction_keys_total", "Records removed by compaction.", a->compacted_records);
    counter(f, "etcd_debugging_mvcc_events_total", "Events sent to watchers.", h->events_sent);
    gauge(f, "etcd_debugging_mvcc_keys_total", "Live keys.", (double)a->keys);
    gauge(f, "etcd_debugging_mvcc_pending_events_total", "Events waiting for slow watchers.",
          (double)h->pending_events);
    gauge(f, "etcd_debugging_mvcc_slow_watcher_total", "Watchers that are catching up.", (double)h->slow_watchers);
    gauge(f, "etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes of keys and values put since the start.",
          (double)a->put_bytes);
    gauge(f, "etcd_debugging_mvcc_watch_stream_total", "Open watch streams.", (double)h->streams);
    gauge(f, "etcd_debugging_mvcc_watcher_total", "Watchers.", (double)h->watchers);
}

static void write_mvcc(FILE *f, const struct apply_stats *a)
{
    gauge(f, "etcd_mvcc_db_total_size_in_bytes", "Bytes the store takes on disk.",
          (double)a->db_bytes);
    gauge(f, "etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of it in use.",
          (double)a->db_in_use_bytes);
    counter(f, "etcd_mvcc_delete_total", "Delete operations applied.", a->deletes);
    counter(f, "etcd_mvcc_put_total", "Puts applied.", a->puts);
    counter(f, "etcd_mvcc_range_total", "Ranges served.", a->ranges);
    counter(f, "etcd_mvcc_txn_total", "Transactions of more than one operation.", a->txns);
}

/* ---- server ------------------------------------------------------------------------ */

static void write_server(const struct metrics *m, FILE *f, const struct apply_stats *a)
{
    struct turn_status t;

    turn_status(m->turn, &t);
    gauge(f, "etcd_server_has_leader", "1 when a leader is known.", t.leader != 0);
    head(f, "etcd_server_id", "gauge", "1; the label is this member's id in hexadecimal.");
    (void)fprintf(f, "etcd_server_id{server_id=\"%" PRIx64 "\"} 1\n", m->member_id);
    gauge(f, "etcd_server_is_leader", "1 when this member leads.", t.is_leader);
    gauge(f, "etcd_server_is_learner", "1 when this member is a learner.", t.is_learner);
    counter(f, "etcd_server_leader_changes_seen_total", "Changes of leader seen.", t.leader_changes);
    gauge(f, "etcd_server_proposals_applied_total", "Applied index.", (double)t.applied);
    gauge(f, "etcd_server_proposals_committed_total", "Committed index.", (double)t.commit);
    counter(f, "etcd_server_proposals_failed_total", "Proposals that failed.", t.proposals_failed);
    gauge(f, "etcd_server_proposals_pending", "Proposals that wait for their answer.",
          account_pending(m->account));
    gauge(f, "etcd_server_quota_backend_bytes", "Quota in force.", (double)m->quota_bytes);
    counter(f, "etcd_server_slow_apply_total", "Entries that took longer than 100 ms to apply.",
            a->slow_applies);
    head(f, "etcd_server_version", "gauge", "1; the label is the version whose API is spoken.");
    (void)fprintf(f, "etcd_server_version{server_version=\"%s\"} 1\n", CAIRN_ETCD_VERSION);
}

/* ---- the other members ---------------------------------------------------------------- */

/* One family, a line for each of the others; field is the value's place in struct peers_stats. */
static void write_peers_one(FILE *f, const struct peers_stats *s, size_t n, const char *name, const char *help,
                            const char *label, size_t field)
{
    head(f, name, "counter", help);
    for (size_t i = 0; i < n; i++) {
        uint64_t v;

        memcpy(&v, (const char *)&s[i] + field, sizeof v);
        (void)fprintf(f, "%s{%s=\"%" PRIx64 "\"} %" PRIu64 "\n", name, label, s[i].member, v);
    }
}

static void write_connections(const struct metrics *m, FILE *f, const struct peers_stats *s, size_t n)
{
    head(f, "etcd_network_active_peers", "gauge", "1 when this member is connected to the other one.");
    for (size_t i = 0; i < n; i++)
        (void)fprintf(f, "etcd_network_active_peers{Local=\"%" PRIx64 "\",Remote=\"%" PRIx64 "\"} %d\n", m->member_id, s[i].member,
                      s[i].active);
    head(f, "etcd_network_disconnected_peers_total", "counter", "Connections to the other member that were lost.");
    for (size_t i = 0; i < n; i++)
        (void)fprintf(f, "etcd_network_disconnected_peers_total{Local=\"%" PRIx64 "\",Remote=\"%" PRIx64 "\"} %" PRIu64 "\n",
                      m->member_id, s[i].member, s[i].disconnects);
}

/* Absent, as in etcd, while there are no others. */
static void write_peers(const struct metrics *m, FILE *f)
{
    struct peers_stats s[PEERS_STATS_MAX];
    struct snap_stats t;
    size_t n = peers_stats(m->peers, s);

    if (n == 0)
        return;
    snap_stats(m->snap, &t);
    write_connections(m, f, s, n);
    write_peers_one(f, s, n, "etcd_network_peer_received_bytes_total", "Bytes received from the member.", "From",
                    offsetof(struct peers_stats, received_bytes));
    write_peers_one(f, s, n, "etcd_network_peer_received_failures_total", "What it sent and was not taken.", "From",
                    offsetof(struct peers_stats, received_failures));
    write_peers_one(f, s, n, "etcd_network_peer_sent_bytes_total", "Bytes sent to the member.", "To",
                    offsetof(struct peers_stats, sent_bytes));
    write_peers_one(f, s, n, "etcd_network_peer_sent_failures_total", "Messages to the member that were dropped.", "To",
                    offsetof(struct peers_stats, sent_failures));
    counter(f, "cairn_snapshots_sent_total", "Snapshots given to other members.", t.sent);
    counter(f, "cairn_snapshots_sent_failures_total", "Snapshots that could not be given.", t.send_failures);
    counter(f, "cairn_snapshots_received_total", "Snapshots taken from other members.", t.received);
    counter(f, "cairn_snapshots_received_failures_total", "Snapshots that could not be taken.", t.receive_failures);
}

/* ---- gRPC ---------------------------------------------------------------------------- */

static const char *const kinds[] = {[RPC_UNARY] = "unary", [RPC_SERVER_STREAM] = "server_stream", [RPC_BIDI] = "bidi_stream"};

static void write_handled(const struct metrics *m, FILE *f)
{
    static const char *const codes[STATUS_COUNT] = {
        "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
        "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable",
        "DataLoss", "Unauthenticated"};

    head(f, "grpc_server_handled_total", "counter",
         "Calls ended, by status.");
    for (size_t i = 0; i < m->n_methods; i++) {
        const struct rpc_method_stats *s = rpc_stats(m->rpc, i);

        for (int c = 0; c < STATUS_COUNT; c++)
            (void)fprintf(
                f,
                "grpc_server_handled_total{grpc_code=\"%s\",grpc_method=\"%s\",grpc_service=\"%s\",grpc_type=\"%s\"} "
                "%" PRIu64 "\n",
                codes[c], m->methods[i].name, m->methods[i].service, kinds[m->methods[i].kind], s->handled[c]);
    }
}

static void write_grpc_one(const struct metrics *m, FILE *f, const char *name, const char *help, size_t offset)
{
    head(f, name, "counter", help);
    for (size_t i = 0; i < m->n_methods; i++) {
        uint64_t v;

        memcpy(&v, (const char *)rpc_stats(m->rpc, i) + offset, sizeof v);
        (void)fprintf(f, "%s{grpc_method=\"%s\",grpc_service=\"%s\",grpc_type=\"%s\"} %" PRIu64 "\n", name, m->methods[i].name,
                      m->methods[i].service, kinds[m->methods[i].kind], v);
    }
}

static void write_grpc(const struct metrics *m, FILE *f)
{
    write_handled(m, f);
    write_grpc_one(m, f, "grpc_server_msg_received_total", "Messages received.",
                   offsetof(struct rpc_method_stats, received));
    write_grpc_one(m, f, "grpc_server_msg_sent_total", "Messages sent.",
                   offsetof(struct rpc_method_stats, sent));
    write_grpc_one(m, f, "grpc_server_started_total", "Calls started.",
                   offsetof(struct rpc_method_stats, started));
}

/* ---- the process ---------------------------------------------------------------------- */

static unsigned open_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    unsigned n = 0;

    if (d == NULL)
        return 0;
    while (readdir(d))
        n++;
    (void)closedir(d);
    return n > 3 ? n - 3 : 0; /* ".", ".." and the directory itself */
}

static void write_process(const struct metrics *m, FILE *f, unsigned fds, uint64_t fd_limit)
{
    long pages_virtual = 0, pages_resident = 0, page = sysconf(_SC_PAGESIZE);
    FILE *statm = fopen("/proc/self/statm", "r");
    struct rusage u;

    if (statm && fscanf(statm, "%ld %ld", &pages_virtual, &pages_resident) != 2)
        pages_virtual = pages_resident = 0;
    if (statm)
        (void)fclose(statm);
    (void)getrusage(RUSAGE_SELF, &u);
    head(f, "process_cpu_seconds_total", "counter", "User and system time used.");
    (void)fprintf(f, "process_cpu_seconds_total %.2f\n",
                  (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                      (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6);
    gauge(f, "process_max_fds", "Limit of open file descriptors.", (double)fd_limit);
    gauge(f, "process_open_fds", "File descriptors open.", fds);
    gauge(f, "process_resident_memory_bytes", "Resident memory.", (double)pages_resident * (double)page);
    gauge(f, "process_start_time_seconds", "When the process started, since 1970.", (double)m->start_s);
    gauge(f, "process_virtual_memory_bytes", "Virtual memory.", (double)pages_virtual * (double)page);
}

void metrics_write(const struct metrics *m, FILE *f)
{
    struct rlimit fd_limit = {0};
    struct apply_stats a;
    struct hub_stats h = {0};
    unsigned fds = open_fds();

    apply_stats(m->apply, &a);
    hub_stats(m->hub, &h);
    (void)getrlimit(RLIMIT_NOFILE, &fd_limit);
    head(f, "etcd_cluster_version", "gauge", "1; the label is the cluster's version.");
    (void)fprintf(f, "etcd_cluster_version{cluster_version=\"3.7\"} 1\n");
    write_debugging(m, f, &a, &h);
    histogram(f, "etcd_disk_backend_commit_duration_seconds", "Time a commit of the store took.",
              &m->histograms->backend_commit);
    histogram(f, "etcd_disk_wal_fsync_duration_seconds", "Time a sync of the log took.",
              &m->histograms->wal_fsync);
    histogram(f, "etcd_disk_wal_write_duration_seconds", "Time a write to the log took.",
              &m->histograms->wal_write);
    write_mvcc(f, &a);
    write_peers(m, f);
    write_server(m, f, &a);
    write_grpc(m, f);
    gauge(f, "os_fd_limit", "Limit of open file descriptors.", (double)fd_limit.rlim_cur);
    gauge(f, "os_fd_used", "File descriptors open.", fds);
    write_process(m, f, fds, fd_limit.rlim_cur);
}
