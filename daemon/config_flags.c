/* SPDX-License-Identifier: Apache-2.0 */
/* config_flags.c - the table that names every flag, and a flag's text made its value.
 *
 * Three kinds of rows: what we have; what etcd has and we accept only at its default (LATER: any other value is refused
 * by name, so that nobody believes in a setting that does nothing); what etcd ignores (IGNORED). Source: reference
 * 04-flags, checked on etcd 3.7.1.
 *
 * Not here: where the text comes from, and what the values must be together (config.c); URLs and durations
 * (config_value.c). */
#include "config_flags.h"
#include <ctype.h>
#include <errno.h>

#define LATER_FLAG(name, initial) {name, LATER, 0, initial, NULL, NULL}
#define LATER_SWITCH(name, initial) {name, LATER_BOOL, 0, initial, NULL, NULL}
#define IGNORED_FLAG(name) {name, IGNORED, 0, NULL, NULL, NULL}

const struct flag config_flags[] = {
    {"name", STRING, AT(name), "default", NULL, "Human-readable name for this member."},
    {"data-dir", STRING, AT(data_dir), "", NULL, "Path to the data directory (${name}.etcd)."},
    {"wal-dir", STRING, AT(wal_dir), "", NULL, "Path to the directory for the log, if not in the data directory."},
    {"listen-client-urls", URLS, AT(listen_client), "http://localhost:2379", NULL,
     "Client URLs to listen on: http://IP:port, unix:///path."},
    {"advertise-client-urls", URLS, AT(advertise_client), "http://localhost:2379", NULL,
     "Client URLs told to clients; required with --listen-client-urls."},
    {"listen-peer-urls", URLS, AT(listen_peer), "http://localhost:2380", NULL, "Peer URLs to listen on."},
    {"initial-advertise-peer-urls", URLS, AT(advertise_peer), "http://localhost:2380", NULL,
     "This member's peer URLs, told to the cluster."},
    {"initial-cluster", STRING, AT(initial_cluster), "", NULL, "name=peerURL of each founding member."},
    {"initial-cluster-state", ENUM, AT(initial_cluster_state), "new", "new|existing", "new or existing."},
    {"initial-cluster-token", STRING, AT(initial_cluster_token), "etcd-cluster", NULL, "Makes the cluster's ids its own."},
    {"strict-reconfig-check", BOOL, AT(strict_reconfig), "true", NULL,
     "Refuse changes of members that would risk the quorum."},
    {"max-learners", UINT, AT(max_learners), "1", NULL, "Learners the cluster may have."},
    {"force-new-cluster", BOOL, AT(force_new_cluster), "false", NULL,
     "Disaster recovery: go on alone with this member's data; the other members are removed."},
    {"snapshot-count", UINT, AT(snapshot_count), "10000", NULL,
     "Accepted for etcd's sake: the store is flushed by size and age, not by count."},
    {"snapshot-catchup-entries", UINT, AT(catchup_entries), "5000", NULL, "Entries kept for slow followers."},
    {"heartbeat-interval", UINT, AT(heartbeat_ms), "100", NULL, "Milliseconds between heartbeats."},
    {"election-timeout", UINT, AT(election_ms), "1000", NULL, "Milliseconds for an election to time out."},
    {"quota-backend-bytes", INT, AT(quota_bytes), "0", NULL, "Size limit of the store; 0 is 2 GiB, negative is none."},
    {"max-request-bytes", UINT, AT(max_request_bytes), "1572864", NULL, "Largest client request."},
    {"max-txn-ops", UINT, AT(max_txn_ops), "128", NULL, "Most operations in a transaction."},
    {"max-concurrent-streams", UINT, AT(max_streams), "4294967295", NULL, "Streams a client may have open at a time."},
    {"grpc-keepalive-min-time", DURATION, AT(keepalive_min_ms), "5s", NULL, "Least time between a client's pings."},
    {"grpc-keepalive-interval", DURATION, AT(keepalive_interval_ms), "2h", NULL, "Time between our pings; 0: none."},
    {"grpc-keepalive-timeout", DURATION, AT(keepalive_timeout_ms), "20s", NULL, "Wait for their answer."},
    {"watch-progress-notify-interval", DURATION, AT(progress_interval_ms), "10m", NULL,
     "Time between progress notifications of idle watches."},
    {"auto-compaction-mode", ENUM, AT(compaction_mode), "periodic", "periodic|revision", "periodic or revision."},
    {"auto-compaction-retention", STRING, AT(compaction_retention), "0", NULL,
     "What compaction keeps: a duration or hours (periodic), a number (revision); 0: off."},
    {"cert-file", STRING, AT(client_tls.cert), "", NULL, "Clients' port: this server's certificate, and its chain."},
    {"key-file", STRING, AT(client_tls.key), "", NULL, "Its key."},
    {"client-cert-auth", BOOL, AT(client_tls.client_cert_auth), "false", NULL, "Clients must show a certificate."},
    {"trusted-ca-file", STRING, AT(client_tls.trusted_ca), "", NULL, "Who signs clients' certificates."},
    {"client-crl-file", STRING, AT(client_tls.crl), "", NULL, "Clients' certificates that are revoked."},
    {"client-cert-allowed-hostname", STRING, AT(client_tls.allowed_hostnames), "", NULL,
     "Names of which a client's certificate must have one."},
    {"client-cert-file", STRING, AT(client_tls.client_cert), "", NULL, "Accepted for etcd's sake: nothing here dials clients' ports."},
    {"client-key-file", STRING, AT(client_tls.client_key), "", NULL, "Its key."},
    {"auto-tls", BOOL, AT(client_auto_tls), "false", NULL, "Clients' port: a certificate of its own making."},
    {"peer-cert-file", STRING, AT(peer_tls.cert), "", NULL, "Between members: this member's certificate, and its chain."},
    {"peer-key-file", STRING, AT(peer_tls.key), "", NULL, "Its key."},
    {"peer-client-cert-auth", BOOL, AT(peer_tls.client_cert_auth), "false", NULL, "Members that dial must show a certificate."},
    {"peer-trusted-ca-file", STRING, AT(peer_tls.trusted_ca), "", NULL, "Who signs members' certificates."},
    {"peer-crl-file", STRING, AT(peer_tls.crl), "", NULL, "Members' certificates that are revoked."},
    {"peer-cert-allowed-cn", STRING, AT(peer_tls.allowed_cns), "", NULL,
     "Common names of which a member's certificate must have one."},
    {"peer-cert-allowed-hostname", STRING, AT(peer_tls.allowed_hostnames), "", NULL,
     "Names of which a member's certificate must have one."},
    {"peer-client-cert-file", STRING, AT(peer_tls.client_cert), "", NULL, "What is shown when dialing, if not --peer-cert-file."},
    {"peer-client-key-file", STRING, AT(peer_tls.client_key), "", NULL, "Its key."},
    {"peer-auto-tls", BOOL, AT(peer_auto_tls), "false", NULL,
     "Between members: a certificate of its own making; the others' are not verified."},
    {"peer-skip-client-san-verification", BOOL, AT(peer_skip_san), "false", NULL,
     "Members' certificates need not name the address that they come from."},
    {"self-signed-cert-validity", UINT, AT(self_signed_years), "1", NULL, "Years, of what is of its own making."},
    {"cipher-suites", STRING, AT(cipher_suites), "", NULL, "TLS 1.2's suites, by the names of the RFCs."},
    {"tls-min-version", STRING, AT(tls_min_version), "TLS1.2", NULL, "TLS1.2 or TLS1.3."},
    {"tls-max-version", STRING, AT(tls_max_version), "", NULL, "TLS1.2, TLS1.3, or the newest."},
    {"log-level", ENUM, AT(log_level), "info", "debug|info|warn|error|panic|fatal", "Least level logged."},
    {"config-file", STRING, AT(config_file), "", NULL, "YAML file; other flags and the environment are then ignored."},
    {"version", ACTION_VERSION, 0, NULL, NULL, "Print the version and exit."},
    {"help", ACTION_HELP, 0, NULL, NULL, "Print this and exit."},
    {"h", ACTION_HELP, 0, NULL, NULL, NULL},

    LATER_SWITCH("initial-election-tick-advance", "true"), LATER_SWITCH("pre-vote", "true"),
    LATER_SWITCH("enable-grpc-gateway", "true"),
    LATER_SWITCH("socket-reuse-port", "false"), LATER_SWITCH("socket-reuse-address", "false"),
    LATER_SWITCH("memory-mlock", "false"), LATER_SWITCH("enable-pprof", "false"),
    LATER_SWITCH("enable-log-rotation", "false"),
    LATER_SWITCH("enable-distributed-tracing", "false"), LATER_SWITCH("discovery-insecure-transport", "true"),
    LATER_SWITCH("discovery-insecure-skip-tls-verify", "false"),
    LATER_SWITCH("enable-v2", "false"), LATER_SWITCH("debug", "false"), LATER_SWITCH("unsafe-no-fsync", "false"),
    LATER_FLAG("listen-client-http-urls", ""), LATER_FLAG("listen-metrics-urls", ""), LATER_FLAG("metrics", "basic"),
    LATER_FLAG("feature-gates", ""),
    LATER_FLAG("max-snapshots", "5"), LATER_FLAG("max-wals", "5"), LATER_FLAG("backend-bbolt-freelist-type", "map"),
    LATER_FLAG("backend-batch-interval", "0s"), LATER_FLAG("backend-batch-limit", "0"),
    LATER_FLAG("raft-read-timeout", "5s"), LATER_FLAG("raft-write-timeout", "5s"),
    LATER_FLAG("cors", "*"), LATER_FLAG("host-whitelist", "*"),
    LATER_FLAG("logger", "zap"), LATER_FLAG("log-outputs", "default"), LATER_FLAG("log-format", "json"),
    LATER_FLAG("log-rotation-config-json", ""), LATER_FLAG("warning-unary-request-duration", "300ms"),
    LATER_FLAG("warning-apply-duration", "100ms"), LATER_FLAG("distributed-tracing-address", "localhost:4317"),
    LATER_FLAG("distributed-tracing-service-name", "etcd"), LATER_FLAG("distributed-tracing-instance-id", ""),
    LATER_FLAG("distributed-tracing-sampling-rate", "0"), LATER_FLAG("auth-token", "simple"),
    LATER_FLAG("bcrypt-cost", "10"), LATER_FLAG("auth-token-ttl", "300"), LATER_FLAG("corrupt-check-time", "0s"),
    LATER_FLAG("compact-hash-check-time", "1m"), LATER_FLAG("compaction-batch-limit", "0"),
    LATER_FLAG("compaction-sleep-interval", "0s"), LATER_FLAG("bootstrap-defrag-threshold-megabytes", "0"),
    LATER_FLAG("downgrade-check-time", "5s"), LATER_FLAG("v2-deprecation", "write-only"), LATER_FLAG("discovery-fallback", "exit"),
    LATER_FLAG("discovery-srv", ""), LATER_FLAG("discovery-srv-name", ""), LATER_FLAG("discovery-token", ""),
    LATER_FLAG("discovery-endpoints", ""), LATER_FLAG("discovery-dial-timeout", "2s"),
    LATER_FLAG("discovery-request-timeout", "5s"), LATER_FLAG("discovery-keepalive-time", "2s"),
    LATER_FLAG("discovery-keepalive-timeout", "6s"), LATER_FLAG("discovery-cert", ""), LATER_FLAG("discovery-key", ""),
    LATER_FLAG("discovery-cacert", ""), LATER_FLAG("discovery-user", ""), LATER_FLAG("discovery-password", ""),

    IGNORED_FLAG("cluster-active-size"), IGNORED_FLAG("cluster-remove-delay"), IGNORED_FLAG("cluster-sync-interval"),
    IGNORED_FLAG("config"), IGNORED_FLAG("force"), IGNORED_FLAG("max-result-buffer"), IGNORED_FLAG("max-retry-attempts"),
    IGNORED_FLAG("peer-heartbeat-interval"), IGNORED_FLAG("peer-election-timeout"), IGNORED_FLAG("retry-interval"),
    IGNORED_FLAG("snapshot"), IGNORED_FLAG("v"), IGNORED_FLAG("vv"),
    /* Compares with the other members at start: here members compare at each step, always. */
    IGNORED_FLAG("experimental-initial-corrupt-check"),
};
const size_t config_n_flags = sizeof config_flags / sizeof *config_flags;
_Static_assert(sizeof config_flags / sizeof *config_flags <= FLAGS_MAX, "config_flags.h");

int flag_find(const char *name, size_t len)
{
    for (size_t i = 0; i < config_n_flags; i++)
        if (strlen(config_flags[i].name) == len && memcmp(config_flags[i].name, name, len) == 0)
            return (int)i;
    return -1;
}

bool flag_is_switch(const struct flag *f)
{
    return f->kind == BOOL || f->kind == LATER_BOOL || f->kind == IGNORED || f->kind == ACTION_HELP ||
           f->kind == ACTION_VERSION;
}

/* Go's strconv.ParseBool. */
int flag_parse_bool(const char *s)
{
    static const char *const words[2][6] = {{"0", "f", "F", "false", "FALSE", "False"},
                                            {"1", "t", "T", "true", "TRUE", "True"}};

    for (int v = 0; v < 2; v++)
        for (int i = 0; i < 6; i++)
            if (strcmp(s, words[v][i]) == 0)
                return v;
    return -1;
}

const char *flag_parse_integer(const char *s, bool is_signed, uint64_t *ret_v)
{
    char *end;

    if (!isdigit((unsigned char)*s) && !(is_signed && *s == '-' && isdigit((unsigned char)s[1])))
        return "parse error";
    errno = 0;
    *ret_v = is_signed ? (uint64_t)strtoll(s, &end, 0) : strtoull(s, &end, 0);
    return errno || *end ? "parse error" : NULL;
}

static const char *parse_choice(const char *choices, const char *s)
{
    size_t n = strlen(s);

    for (const char *p = choices; *p; p += strcspn(p, "|"), p += *p == '|')
        if (strcspn(p, "|") == n && strncmp(p, s, n) == 0)
            return NULL;
    return "invalid value";
}

/* heartbeat_ms and election_ms are 32 bits wide: everything else that counts is 64. */
static const char *store_uint(const struct flag *f, char *at, uint64_t v)
{
    if (f->offset != AT(heartbeat_ms) && f->offset != AT(election_ms)) {
        memcpy(at, &v, sizeof v);
        return NULL;
    }
    if (v > UINT32_MAX)
        return "value out of range";
    memcpy(at, &(uint32_t){(uint32_t)v}, sizeof(uint32_t));
    return NULL;
}

const char *flag_store(struct config *c, const struct flag *f, const char *text, bool ns)
{
    char *at = (char *)c + f->offset;
    const char *bad = NULL;
    uint64_t v = 0;
    int64_t t = 0;

    switch (f->kind) {
    case ENUM:
        bad = parse_choice(f->choices, text);
        /* fall through */
    case STRING:
        if (f->offset == AT(compaction_retention))
            return NULL; /* its meaning depends on the mode: finish() in config.c */
        memcpy(at, &text, sizeof text);
        return bad;
    case UINT:
    case INT:
        bad = flag_parse_integer(text, f->kind == INT, &v);
        return bad ? bad : store_uint(f, at, v);
    case DURATION:
        bad = ns ? flag_parse_integer(text, true, (uint64_t *)&t) : config_parse_duration(&c->arena, text, &t);
        if (bad == NULL && t < 0)
            bad = "must not be negative";
        v = (uint64_t)t / 1000000;
        memcpy(at, &v, sizeof v);
        return bad;
    case BOOL:
        if (flag_parse_bool(text) < 0)
            return "parse error";
        *(bool *)at = flag_parse_bool(text);
        return NULL;
    case URLS:
        return config_parse_urls(&c->arena, *text ? text : f->initial, (struct url_list *)at);
    default:
        return NULL;
    }
}
