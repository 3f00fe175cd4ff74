/* SPDX-License-Identifier: Apache-2.0 */
/* config.c - etcd's flags, environment and configuration file, into struct config.
 *
 * One table names every flag. Three kinds of rows: what we have; what etcd has and we accept only at its default
 * (LATER: any other value is refused by name, so that nobody believes in a setting that does nothing); what etcd
 * ignores (IGNORED). Syntax and precedence are Go's flag package and etcd's pkg/flags. Source: reference 04-flags,
 * checked on etcd 3.7.1.
 *
 * Not here: what the values of TLS must be together (config_tls.c), what needs the network or the disk (listen.c,
 * datadir.c). */
#include "config.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>
#include "log.h"

enum { ARENA_LIMIT = 4 << 20, FILE_LIMIT = 1 << 20, ERROR_BYTES = 768 };

enum kind { STRING, UINT, INT, DURATION, URLS, ENUM, BOOL, LATER, LATER_BOOL, IGNORED, ACTION_HELP, ACTION_VERSION };

struct flag {
    const char *name;
    enum kind kind;
    size_t offset;         /* in struct config */
    const char *initial;   /* the default, as text; LATER: the only value accepted, besides "" */
    const char *choices;   /* ENUM: "a|b" */
    const char *help;
};

#define AT(field) offsetof(struct config, field)
#define LATER_FLAG(name, initial) {name, LATER, 0, initial, NULL, NULL}
#define LATER_SWITCH(name, initial) {name, LATER_BOOL, 0, initial, NULL, NULL}
#define IGNORED_FLAG(name) {name, IGNORED, 0, NULL, NULL, NULL}

static const struct flag flags[] = {
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
enum { N_FLAGS = sizeof flags / sizeof *flags };

struct reading {
    struct config *c;
    const char *set[N_FLAGS]; /* the text given; NULL: the default stands */
    char error[ERROR_BYTES];
};

static const char usage[] = "Usage:\n\n"
                            "  cairnd [flags]\n    Start a member.\n\n"
                            "  cairnd --version\n    Show the version.\n\n"
                            "  cairnd -h | --help\n    Show the flags.\n\n"
                            "  cairnd --config-file PATH\n"
                            "    Read the configuration from a YAML file; other flags and the environment are then ignored.\n"
                            "    Durations in it are integers, in nanoseconds.\n";

static int fail(struct reading *r, int result, const char *format, ...) __attribute__((format(printf, 3, 4)));
static int fail(struct reading *r, int result, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    (void)vsnprintf(r->error, sizeof r->error, format, ap);
    va_end(ap);
    return result;
}

static int flag_find(const char *name, size_t len)
{
    for (int i = 0; i < N_FLAGS; i++)
        if (strlen(flags[i].name) == len && memcmp(flags[i].name, name, len) == 0)
            return i;
    return -1;
}

static bool is_switch(const struct flag *f)
{
    return f->kind == BOOL || f->kind == LATER_BOOL || f->kind == IGNORED || f->kind == ACTION_HELP ||
           f->kind == ACTION_VERSION;
}

/* Go's strconv.ParseBool. */
static int parse_bool(const char *s)
{
    static const char *const words[2][6] = {{"0", "f", "F", "false", "FALSE", "False"},
                                            {"1", "t", "T", "true", "TRUE", "True"}};

    for (int v = 0; v < 2; v++)
        for (int i = 0; i < 6; i++)
            if (strcmp(s, words[v][i]) == 0)
                return v;
    return -1;
}

static const char *parse_integer(const char *s, bool is_signed, uint64_t *ret_v)
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

/* Puts text into its field. NULL, or what is wrong. ns: durations are plain nanoseconds (the file). */
static const char *flag_store(struct reading *r, const struct flag *f, const char *text, bool ns)
{
    char *at = (char *)r->c + f->offset;
    const char *bad = NULL;
    uint64_t v = 0;
    int64_t t = 0;

    switch (f->kind) {
    case ENUM:
        bad = parse_choice(f->choices, text);
        /* fall through */
    case STRING:
        if (f->offset == AT(compaction_retention))
            return NULL; /* its meaning depends on the mode: finish() */
        memcpy(at, &text, sizeof text);
        return bad;
    case UINT:
    case INT:
        bad = parse_integer(text, f->kind == INT, &v);
        return bad ? bad : store_uint(f, at, v);
    case DURATION:
        bad = ns ? parse_integer(text, true, (uint64_t *)&t) : config_parse_duration(&r->c->arena, text, &t);
        if (bad == NULL && t < 0)
            bad = "must not be negative";
        v = (uint64_t)t / 1000000;
        memcpy(at, &v, sizeof v);
        return bad;
    case BOOL:
        if (parse_bool(text) < 0)
            return "parse error";
        *(bool *)at = parse_bool(text);
        return NULL;
    case URLS:
        return config_parse_urls(&r->c->arena, *text ? text : f->initial, (struct url_list *)at);
    default:
        return NULL;
    }
}

/* etcd's own flags that do nothing here yet: only the default is honest. */
static int check_later(struct reading *r, const struct flag *f, const char *text, int result)
{
    bool same = *text == '\0' || strcmp(text, f->initial) == 0;

    if (f->kind == LATER_BOOL)
        same = parse_bool(text) == parse_bool(f->initial);
    if (same)
        return 0;
    return fail(r, result,
                "--%s=%s: this version of cairnd does not have this setting of etcd's yet; remove it, or leave it at \"%s\"",
                f->name, text, f->initial);
}

static int take(struct reading *r, int i, const char *text, const char *where, int result, bool ns)
{
    const struct flag *f = &flags[i];
    const char *bad;

    if (f->kind == IGNORED)
        return 0;
    if ((f->kind == LATER_BOOL || f->kind == BOOL) && parse_bool(text) < 0)
        return fail(r, result, "invalid boolean value \"%s\" for %s: parse error", text, where);
    if (f->kind == LATER || f->kind == LATER_BOOL)
        return check_later(r, f, text, CONFIG_BAD);
    bad = flag_store(r, f, text, ns);
    if (bad)
        return fail(r, result, "invalid value \"%s\" for %s%s: %s", text, *where == '-' ? "flag " : "", where, bad);
    r->set[i] = text;
    return 0;
}

/* ---- command line -------------------------------------------------------------- */

static int read_args(struct reading *r, int argc, char **argv)
{
    for (int n = 1; n < argc; n++) {
        const char *arg = argv[n], *name = arg, *equals, *text;
        char where[128];
        int i, rc;

        if (arg[0] != '-' || arg[1] == '\0')
            return fail(r, CONFIG_BAD, "\"%s\" is not a valid flag", arg);
        if (strcmp(arg, "--") == 0) {
            if (n + 1 < argc)
                return fail(r, CONFIG_BAD, "\"%s\" is not a valid flag", argv[n + 1]);
            return 0;
        }
        name += name[1] == '-' ? 2 : 1;
        equals = strchr(name, '=');
        i = flag_find(name, equals ? (size_t)(equals - name) : strlen(name));
        if (i < 0)
            return fail(r, CONFIG_USAGE, "flag provided but not defined: -%.*s",
                        (int)(equals ? equals - name : (int)strlen(name)), name);
        if (flags[i].kind == ACTION_HELP || flags[i].kind == ACTION_VERSION) {
            r->set[i] = "true";
            continue;
        }
        if (equals)
            text = equals + 1;
        else if (is_switch(&flags[i]))
            text = "true";
        else if (n + 1 < argc)
            text = argv[++n];
        else
            return fail(r, CONFIG_USAGE, "flag needs an argument: -%s", name);
        (void)snprintf(where, sizeof where, "-%s", flags[i].name);
        rc = take(r, i, text, where, CONFIG_USAGE, false);
        if (rc)
            return rc;
        r->set[i] = text;
    }
    return 0;
}

/* ---- environment ---------------------------------------------------------------- */

static void env_name(const char *flag, char *dst, size_t size)
{
    size_t n = (size_t)snprintf(dst, size, "ETCD_%s", flag);

    for (size_t i = 0; i < n && i < size; i++)
        dst[i] = dst[i] == '-' ? '_' : (char)toupper((unsigned char)dst[i]);
}

static int read_env_one(struct reading *r, const char *name, size_t len, const char *text)
{
    char want[128];

    for (int i = 0; i < N_FLAGS; i++) {
        env_name(flags[i].name, want, sizeof want);
        if (strlen(want) != len || memcmp(want, name, len) != 0)
            continue;
        if (flags[i].kind == ACTION_HELP || flags[i].kind == ACTION_VERSION || flags[i].kind == IGNORED)
            return 0;
        if (r->set[i])
            return fail(r, CONFIG_BAD,
                        "conflicting environment variable is shadowed by corresponding command-line flag (either unset "
                        "environment variable or disable flag)): %s",
                        want);
        return *text ? take(r, i, text, want, CONFIG_BAD, false) : 0;
    }
    log_warn("config: unrecognized environment variable", LOG_SLICE("environment-variable", slice_of(name, len)));
    return 0;
}

static int read_env(struct reading *r, char **env)
{
    for (; *env; env++) {
        const char *equals = strchr(*env, '=');
        int rc;

        if (strncmp(*env, "ETCD_", 5) != 0 || equals == NULL)
            continue;
        rc = read_env_one(r, *env, (size_t)(equals - *env), equals + 1);
        if (rc)
            return rc;
    }
    return 0;
}

/* ---- file ------------------------------------------------------------------------ */

static const char *from_file(void *ctx, const char *key, const char *value)
{
    struct reading *r = ctx;
    const char *dot = strchr(key, '.'), *name, **field = NULL;
    struct slice copied = arena_copy(&r->c->arena, slice_of(value, strlen(value) + 1));
    int i = flag_find(key, strlen(key));

    if (copied.ptr == NULL)
        return "out of memory";
    if (dot && (name = config_tls_key(r->c, key, &field)) != NULL) {
        i = flag_find(name, strlen(name));
        dot = NULL;
    } else if (field) {
        *field = (const char *)copied.ptr;
        return NULL;
    }
    if (dot) {
        if (*value == '\0' || parse_bool(value) == 0)
            return NULL;
        (void)fail(r, 0, "%s: this version of cairnd does not have this setting of etcd's yet; remove it", key);
        return r->error;
    }
    if (i < 0) {
        log_warn("config: unknown key in the configuration file is ignored", LOG_STR("key", key));
        return NULL;
    }
    if (flags[i].kind == ACTION_HELP || flags[i].kind == ACTION_VERSION || strcmp(key, "config-file") == 0)
        return NULL;
    return take(r, i, (const char *)copied.ptr, key, CONFIG_BAD, true) ? r->error : NULL;
}

static int read_file(struct reading *r, const char *path)
{
    uint8_t *text = arena_alloc(&r->c->arena, FILE_LIMIT);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    const char *bad;
    ssize_t n;

    if (fd < 0)
        return fail(r, CONFIG_BAD, "open %s: %s", path, strerror(errno));
    n = text ? read(fd, text, FILE_LIMIT) : -1;
    (void)close(fd); /* only read */
    if (n < 0 || n == FILE_LIMIT)
        return fail(r, CONFIG_BAD, "%s: %s", path, n < 0 ? "cannot be read" : "larger than 1 MiB");
    bad = config_parse_yaml(&r->c->arena, slice_of(text, (size_t)n), from_file, r);
    if (bad == r->error)
        return CONFIG_BAD;
    return bad ? fail(r, CONFIG_BAD, "%s: %s", path, bad) : 0;
}

/* ---- what the values must be together -------------------------------------------- */

static bool is_set(const struct reading *r, size_t offset)
{
    for (int i = 0; i < N_FLAGS; i++)
        if (flags[i].offset == offset && flags[i].kind <= BOOL)
            return r->set[i] != NULL;
    return false;
}

/* etcd: a number is hours (periodic) or revisions (revision); anything else is a duration. */
static int finish_retention(struct reading *r)
{
    struct config *c = r->c;
    bool periodic = strcmp(c->compaction_mode, "periodic") == 0;
    const char *text = "0";
    uint64_t n;
    int64_t ns;

    for (int i = 0; i < N_FLAGS; i++)
        if (flags[i].offset == AT(compaction_retention) && r->set[i])
            text = r->set[i];
    if (*text == '\0')
        text = "0";
    if (parse_integer(text, true, &n) == NULL) {
        if ((int64_t)n < 0)
            return fail(r, CONFIG_BAD, "--auto-compaction-retention must not be negative (set to %s)", text);
        c->compaction_retention = periodic ? (int64_t)(n > INT64_MAX / 3600000 ? INT64_MAX : n * 3600000) : (int64_t)n;
        return 0;
    }
    if (config_parse_duration(&c->arena, text, &ns) || ns < 0)
        return fail(r, CONFIG_BAD, "error parsing CompactionRetention: time: invalid duration \"%s\"", text);
    c->compaction_retention = periodic ? ns / 1000000 : ns;
    return 0;
}

static int check_listen_urls(struct reading *r, const struct url_list *l)
{
    for (size_t i = 0; i < l->n; i++) {
        const struct url *u = &l->urls[i];
        bool ip = strspn(u->host, "0123456789.") == strlen(u->host) || strchr(u->host, ':');

        if (!url_is_unix(u) && strcmp(u->host, "localhost") != 0 && (!ip || *u->host == '\0'))
            return fail(r, CONFIG_BAD, "expected IP in URL for binding (%s)", u->text);
    }
    return 0;
}

static int check_times(struct reading *r)
{
    const struct config *c = r->c;

    if (c->heartbeat_ms == 0)
        return fail(r, CONFIG_BAD, "--heartbeat-interval must be >0 (set to 0ms)");
    if (c->election_ms == 0)
        return fail(r, CONFIG_BAD, "--election-timeout must be >0 (set to 0ms)");
    if ((uint64_t)c->heartbeat_ms * 5 > c->election_ms)
        return fail(r, CONFIG_BAD, "--election-timeout[%ums] should be at least as 5 times as --heartbeat-interval[%ums]",
                    c->election_ms, c->heartbeat_ms);
    if (c->election_ms > 50000)
        return fail(r, CONFIG_BAD, "--election-timeout[%ums] is too long, and should be set less than 50000ms",
                    c->election_ms);
    return 0;
}

static int finish_defaults(struct reading *r)
{
    struct config *c = r->c;
    char *dir;

    if (*c->name == '\0')
        return fail(r, CONFIG_BAD, "--name must not be empty");
    if (*c->data_dir == '\0') {
        size_t n = strlen(c->name) + sizeof ".etcd";

        dir = arena_alloc(&c->arena, n);
        if (dir == NULL)
            return fail(r, CONFIG_BAD, "out of memory");
        (void)snprintf(dir, n, "%s.etcd", c->name);
        c->data_dir = dir;
    }
    if (c->quota_bytes == 0)
        c->quota_bytes = INT64_C(2) << 30;
    if (c->progress_interval_ms < 100)
        c->progress_interval_ms = 100;
    c->token_given = is_set(r, AT(initial_cluster_token));
    c->name_given = is_set(r, AT(name));
    return 0;
}

static int finish(struct reading *r)
{
    struct config *c = r->c;
    const char *bad;
    int rc = finish_defaults(r);

    rc = rc ? rc : finish_retention(r);
    rc = rc ? rc : check_times(r);
    rc = rc ? rc : check_listen_urls(r, &c->listen_client);
    rc = rc ? rc : check_listen_urls(r, &c->listen_peer);
    if (rc)
        return rc;
    if ((bad = config_tls_check(c)) != NULL)
        return fail(r, CONFIG_BAD, "%s", bad);
    if (is_set(r, AT(listen_client)) && !is_set(r, AT(advertise_client)))
        return fail(r, CONFIG_BAD, "--advertise-client-urls is required when --listen-client-urls is set explicitly");
    for (size_t i = 0; i < c->advertise_client.n; i++)
        if (!url_is_unix(&c->advertise_client.urls[i]) && *c->advertise_client.urls[i].host == '\0')
            return fail(r, CONFIG_BAD,
                        "--advertise-client-urls \"%s\" must be in the format \"host:port\", \"unix:/path/to/socket\" or "
                        "\"unixs:/path/to/socket\" (unexpected empty host (%s))",
                        c->advertise_client.urls[i].text, c->advertise_client.urls[i].text);
    if (c->max_request_bytes == 0 || c->max_request_bytes > (64u << 20))
        return fail(r, CONFIG_BAD, "--max-request-bytes must be from 1 to 67108864 (set to %llu)",
                    (unsigned long long)c->max_request_bytes);
    return 0;
}

static void print_help(void)
{
    (void)fputs(usage, stderr);
    for (size_t i = 0; i < N_FLAGS; i++)
        if (flags[i].help)
            (void)printf("  --%s%s%s%s\n    %s\n", flags[i].name, flags[i].initial ? " '" : "",
                         flags[i].initial ? flags[i].initial : "", flags[i].initial ? "'" : "", flags[i].help);
}

static void print_version(void)
{
    struct utsname u;

    (void)uname(&u);
    (void)printf("etcd Version: %s\nGit SHA: cairn\nGo Version: none (C11)\nGo OS/Arch: linux/%s\n", CAIRN_ETCD_VERSION,
                 strcmp(u.machine, "x86_64") == 0 ? "amd64" : u.machine);
}

enum config_result config_read(struct config *c, int argc, char **argv, char **env)
{
    struct reading r = {.c = c};
    int rc = 0;

    *c = (struct config){0};
    arena_init(&c->arena, ARENA_LIMIT, NULL, 0);
    for (size_t i = 0; i < N_FLAGS; i++)
        if (flags[i].initial && flags[i].kind <= BOOL)
            (void)flag_store(&r, &flags[i], flags[i].initial, false);
    rc = read_args(&r, argc, argv);
    for (size_t i = 0; rc == 0 && i < N_FLAGS; i++) {
        if (r.set[i] == NULL || (flags[i].kind != ACTION_HELP && flags[i].kind != ACTION_VERSION))
            continue;
        if (flags[i].kind == ACTION_HELP)
            print_help();
        else
            print_version();
        config_fini(c);
        return CONFIG_DONE;
    }
    if (rc == 0 && getenv("ETCD_CONFIG_FILE") && *c->config_file == '\0')
        c->config_file = getenv("ETCD_CONFIG_FILE");
    if (rc == 0 && *c->config_file) {
        const char *path = c->config_file;

        config_fini(c);
        *c = (struct config){.config_file = path};
        arena_init(&c->arena, ARENA_LIMIT, NULL, 0);
        memset(r.set, 0, sizeof r.set);
        for (size_t i = 0; i < N_FLAGS; i++)
            if (flags[i].initial && flags[i].kind <= BOOL && flags[i].offset != AT(config_file))
                (void)flag_store(&r, &flags[i], flags[i].initial, false);
        rc = read_file(&r, path);
    } else if (rc == 0) {
        rc = read_env(&r, env);
    }
    rc = rc ? rc : finish(&r);
    if (rc == CONFIG_USAGE)
        (void)fprintf(stderr, "%s\n%s", r.error, usage);
    else if (rc)
        log_write(LOG_LEVEL_WARN, __FILE__, __LINE__, "failed to verify flags",
                  (const struct log_field[]){{.key = ""}, LOG_STR("error", r.error), {.key = NULL}});
    if (rc)
        config_fini(c);
    return (enum config_result)rc;
}

void config_fini(struct config *c)
{
    arena_fini(&c->arena);
}
