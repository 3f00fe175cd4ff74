/* SPDX-License-Identifier: Apache-2.0 */
/* config.c - proves that flags, environment and file give the values, precedence, exit classes and words of etcd. */
#include "daemon/config.h"
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
#include "tap.h"

static struct config c;
static char said[8192];

/* Runs config_read with stderr caught in said. args and env are NULL-terminated. */
static enum config_result read_with(char **args, char **env)
{
    char path[] = "/tmp/cairn-config-XXXXXX";
    int fd = mkstemp(path), saved = dup(STDERR_FILENO), n = 0;
    enum config_result rc;
    ssize_t len;

    REQUIRE(fd >= 0);
    (void)unlink(path);
    while (args[n])
        n++;
    (void)dup2(fd, STDERR_FILENO);
    rc = config_read(&c, n, args, env);
    (void)dup2(saved, STDERR_FILENO);
    len = pread(fd, said, sizeof said - 1, 0);
    said[len > 0 ? len : 0] = '\0';
    (void)close(fd);
    (void)close(saved);
    return rc;
}
#define READ(...) read_with((char *[]){"cairnd" __VA_OPT__(, ) __VA_ARGS__, NULL}, (char *[]){NULL})
#define SAID(text) CHECK(strstr(said, text) != NULL)

static void defaults(void)
{
    CHECK(READ() == CONFIG_RUN);
    CHECK(strcmp(c.data_dir, "default.etcd") == 0);
    CHECK(c.heartbeat_ms == 100 && c.election_ms == 1000);
    CHECK(c.quota_bytes == INT64_C(2) << 30);
    CHECK(c.max_request_bytes == 1572864 && c.max_txn_ops == 128);
    CHECK(c.keepalive_interval_ms == 7200000);
    CHECK(c.listen_client.n == 1 && strcmp(c.listen_client.urls[0].port, "2379") == 0);
    config_fini(&c);
}

static void go_syntax(void)
{
    CHECK(READ("-name", "a", "--heartbeat-interval=50", "--election-timeout", "500", "--quota-backend-bytes=-1",
               "--pre-vote", "--vv") == CONFIG_RUN);
    CHECK(strcmp(c.name, "a") == 0 && strcmp(c.data_dir, "a.etcd") == 0);
    CHECK(c.heartbeat_ms == 50 && c.election_ms == 500 && c.quota_bytes == -1);
    config_fini(&c);
}

static void refusals(void)
{
    CHECK(READ("--foo") == CONFIG_USAGE);
    SAID("flag provided but not defined: -foo\n");
    CHECK(READ("extra") == CONFIG_BAD);
    SAID("\\\"extra\\\" is not a valid flag");
    CHECK(READ("--heartbeat-interval=abc") == CONFIG_USAGE);
    SAID("invalid value \"abc\" for flag -heartbeat-interval: parse error");
    CHECK(READ("--pre-vote=x") == CONFIG_USAGE);
    SAID("invalid boolean value \"x\" for -pre-vote: parse error");
    CHECK(READ("--initial-cluster-state", "old") == CONFIG_USAGE);
    SAID("invalid value");
    CHECK(READ("--name") == CONFIG_USAGE);
    SAID("flag needs an argument: -name");
    CHECK(READ("--election-timeout=100") == CONFIG_BAD);
    SAID("--election-timeout[100ms] should be at least as 5 times as --heartbeat-interval[100ms]");
    CHECK(READ("--listen-client-urls=http://127.0.0.1:1") == CONFIG_BAD);
    SAID("--advertise-client-urls is required when --listen-client-urls is set explicitly");
    CHECK(READ("--listen-client-urls=http://example.com:1", "--advertise-client-urls=http://a:1") == CONFIG_BAD);
    SAID("expected IP in URL for binding (http://example.com:1)");
    CHECK(READ("--listen-client-urls=https://127.0.0.1:1", "--advertise-client-urls=http://a:1") == CONFIG_BAD);
    SAID("TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1 with HTTPS scheme");
    CHECK(READ("--listen-peer-urls=https://127.0.0.1:2") == CONFIG_BAD);
    SAID("cannot listen on TLS for 127.0.0.1:2: KeyFile and CertFile are not presented");
    CHECK(READ("--listen-peer-urls=unixs:///x") == CONFIG_BAD);
    SAID("members do not speak TLS over unix sockets");
    CHECK(READ("--cert-file=x.pem") == CONFIG_BAD);
    SAID("KeyFile and CertFile must both be present[key: , cert: x.pem]");
    CHECK(READ("--tls-min-version=TLS1.1") == CONFIG_BAD);
    SAID("unexpected TLS version \\\"TLS1.1\\\" (must be one of: TLS1.2, TLS1.3)");
    CHECK(READ("--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2") == CONFIG_BAD);
    SAID("min version (TLS1.3) is greater than max version (TLS1.2)");
    CHECK(READ("--tls-min-version=TLS1.3", "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256") == CONFIG_BAD);
    SAID("cipher suites cannot be configured when only TLS1.3 is enabled");
    CHECK(READ("--peer-cert-allowed-cn=a", "--peer-cert-allowed-hostname=b") == CONFIG_BAD);
    SAID("mutually exclusive");
    CHECK(READ("--metrics=extensive") == CONFIG_BAD);
    SAID("--metrics=extensive: this version of cairnd does not have this setting");
    CHECK(READ("--auto-compaction-retention=abc") == CONFIG_BAD);
    SAID("invalid duration");
    CHECK(READ("--heartbeat-interval=99999999999") == CONFIG_USAGE);
    SAID("value out of range");
}

/* Those of a cluster: switches of ours, and which flags were given. */
static void members(void)
{
    CHECK(READ("--force-new-cluster", "--strict-reconfig-check=false", "--max-learners=3") == CONFIG_RUN);
    CHECK(c.force_new_cluster && !c.strict_reconfig && c.max_learners == 3 && !c.token_given && !c.name_given);
    config_fini(&c);
    CHECK(READ("--name", "a", "--initial-cluster-token", "etcd-cluster") == CONFIG_RUN);
    CHECK(!c.force_new_cluster && c.strict_reconfig && c.max_learners == 1 && c.token_given && c.name_given);
    config_fini(&c);
    CHECK(READ("--force-new-cluster=x") == CONFIG_USAGE);
    SAID("invalid boolean value \"x\" for -force-new-cluster: parse error");
}

static void environment(void)
{
    char *args[] = {"cairnd", NULL}, *both[] = {"cairnd", "--name=x", NULL};

    CHECK(read_with(args, (char *[]){"ETCD_NAME=env", "ETCD_MAX_TXN_OPS=7", "HOME=/", NULL}) == CONFIG_RUN);
    CHECK(strcmp(c.name, "env") == 0 && c.max_txn_ops == 7);
    config_fini(&c);
    CHECK(read_with(both, (char *[]){"ETCD_NAME=env", NULL}) == CONFIG_BAD);
    SAID("conflicting environment variable is shadowed");
    CHECK(read_with(args, (char *[]){"ETCD_MAX_TXN_OPS=x", NULL}) == CONFIG_BAD);
    SAID("ETCD_MAX_TXN_OPS: parse error");
    CHECK(read_with(args, (char *[]){"ETCD_WHATEVER=x", NULL}) == CONFIG_RUN);
    SAID("unrecognized environment variable");
    config_fini(&c);
}

static void retention(void)
{
    CHECK(READ("--auto-compaction-retention=2") == CONFIG_RUN && c.compaction_retention == 7200000);
    config_fini(&c);
    CHECK(READ("--auto-compaction-retention=90m") == CONFIG_RUN && c.compaction_retention == 5400000);
    config_fini(&c);
    CHECK(READ("--auto-compaction-mode=revision", "--auto-compaction-retention=1000") == CONFIG_RUN &&
          c.compaction_retention == 1000);
    config_fini(&c);
}

static void file(void)
{
    char path[] = "/tmp/cairn-config-XXXXXX", flag[64];
    int fd = mkstemp(path);
    static const char text[] = "name: fromfile\nmax-txn-ops: 9\nheartbeat-interval: 200\nelection-timeout: 2000\n"
                               "grpc-keepalive-interval: 60000000000\nclient-transport-security:\n  cert-file: ''\n"
                               "  client-cert-auth: false\nlog-outputs: [default]\nunknown-thing: 3\n";
    static const char tls[] = "peer-transport-security:\n  cert-file: p.pem\n  key-file: p.key\n  client-cert-auth: true\n"
                              "  allowed-cn: [a, b]\nclient-transport-security:\n  trusted-ca-file: ca.pem\n  auto-tls: true\n"
                              "  allowed-cn: [me]\n";

    REQUIRE(fd >= 0 && write(fd, text, sizeof text - 1) > 0);
    (void)snprintf(flag, sizeof flag, "--config-file=%s", path);
    CHECK(READ(flag, "--name=ignored") == CONFIG_RUN);
    CHECK(strcmp(c.name, "fromfile") == 0 && c.max_txn_ops == 9 && c.keepalive_interval_ms == 60000);
    CHECK(strcmp(c.data_dir, "fromfile.etcd") == 0 && c.heartbeat_ms == 200);
    config_fini(&c);
    CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, "a: [b\n", 6, 0) == 6);
    CHECK(READ(flag) == CONFIG_BAD);
    SAID("yaml: line");
    CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, tls, sizeof tls - 1, 0) > 0);
    CHECK(READ(flag) == CONFIG_RUN);
    CHECK(strcmp(c.peer_tls.cert, "p.pem") == 0 && strcmp(c.peer_tls.key, "p.key") == 0 && c.peer_tls.client_cert_auth);
    CHECK(strcmp(c.peer_tls.allowed_cns, "a,b") == 0 && strcmp(c.client_tls.trusted_ca, "ca.pem") == 0 && c.client_auto_tls);
    CHECK(strcmp(c.client_tls.allowed_cns, "me") == 0 && !c.client_tls.client_cert_auth);
    config_fini(&c);
    CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, "peer-transport-security:\n  cert-fill: x\n", 40, 0) == 40);
    CHECK(READ(flag) == CONFIG_BAD);
    SAID("peer-transport-security.cert-fill");
    CHECK(READ("--config-file=/does/not/exist") == CONFIG_BAD);
    SAID("open /does/not/exist: No such file or directory");
    (void)unlink(path);
    (void)close(fd);
}

static void urls(void)
{
    struct arena a;
    struct url_list l;

    arena_init(&a, 1 << 20, NULL, 0);
    CHECK(config_parse_urls(&a, "http://b:2,http://a:1, http://b:2", &l) == NULL);
    CHECK(l.n == 2 && strcmp(l.urls[0].host, "a") == 0 && strcmp(l.urls[1].port, "2") == 0);
    CHECK(config_parse_urls(&a, "http://[::1]:5", &l) == NULL && strcmp(l.urls[0].host, "::1") == 0);
    CHECK(config_parse_urls(&a, "unix:///run/x.sock", &l) == NULL && strcmp(l.urls[0].path, "/run/x.sock") == 0);
    CHECK(strstr(config_parse_urls(&a, "ftp://a:1", &l), "URL scheme must be"));
    CHECK(strstr(config_parse_urls(&a, "http://a", &l), "does not have the form"));
    CHECK(strstr(config_parse_urls(&a, "http://a:99999", &l), "does not have the form"));
    CHECK(strstr(config_parse_urls(&a, "http://a:1/x", &l), "must not contain a path"));
    arena_fini(&a);
}

static void durations(void)
{
    int64_t ns;

    CHECK(config_parse_duration(NULL, "1h30m", &ns) == NULL && ns == INT64_C(5400000000000));
    CHECK(config_parse_duration(NULL, "1\xc2\xb5s", &ns) == NULL && ns == 1000);
    CHECK(config_parse_duration(NULL, "1.5s", &ns) == NULL && ns == 1500000000);
    CHECK(config_parse_duration(NULL, "-2ms", &ns) == NULL && ns == -2000000);
    CHECK(config_parse_duration(NULL, "0", &ns) == NULL && ns == 0);
    CHECK(config_parse_duration(NULL, "5", &ns) != NULL);
    CHECK(config_parse_duration(NULL, "", &ns) != NULL);
    CHECK(config_parse_duration(NULL, "1.2.3s", &ns) != NULL);
    CHECK(config_parse_duration(NULL, "1x", &ns) != NULL);
}

int main(void)
{
    TEST(defaults);
    TEST(go_syntax);
    TEST(refusals);
    TEST(members);
    TEST(environment);
    TEST(retention);
    TEST(file);
    TEST(urls);
    TEST(durations);
    return tap_done();
}
