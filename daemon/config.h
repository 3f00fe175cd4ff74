/* SPDX-License-Identifier: Apache-2.0 */
/* config.h - how a member is told what to be: etcd's flags, ETCD_* variables, YAML file.
 *
 * Names, defaults, precedence and the wording of errors are etcd v3.7.1's (reference 04-flags): a flag on the command
 * line and in the environment is an error; --config-file makes everything else be ignored. A flag of etcd's that we do
 * not have yet is accepted with its default value and refused, by name, with any other.
 */
#pragma once
#include "bytes.h"
#include "tls.h"

#define CAIRN_ETCD_VERSION "3.7.1"      /* whose API and semantics we speak */
#define CAIRN_CLUSTER_VERSION "3.7.0"

struct url {
    enum url_scheme { URL_HTTP, URL_HTTPS, URL_UNIX, URL_UNIXS } scheme;
    const char *text;  /* as given */
    const char *host;  /* "" for unix; without [] for IPv6 */
    const char *port;
    const char *path;  /* of a unix socket */
};

static inline bool url_is_unix(const struct url *u)
{
    return u->scheme == URL_UNIX || u->scheme == URL_UNIXS;
}

static inline bool url_is_tls(const struct url *u)
{
    return u->scheme == URL_HTTPS || u->scheme == URL_UNIXS;
}

struct url_list {
    struct url *urls; /* sorted by text, no duplicates */
    size_t n;
};

struct config {
    struct arena arena; /* owns every string below */

    const char *name, *data_dir, *wal_dir;
    struct url_list listen_client, advertise_client, listen_peer, advertise_peer;
    const char *initial_cluster, *initial_cluster_state, *initial_cluster_token;
    bool token_given, name_given; /* the flag was set, not left at its default */
    bool force_new_cluster, strict_reconfig;
    uint64_t max_learners;
    uint64_t snapshot_count, catchup_entries;
    uint32_t heartbeat_ms, election_ms;
    int64_t quota_bytes; /* 0 on the command line became 2 GiB; < 0: none */
    uint64_t max_request_bytes;
    uint64_t max_txn_ops;
    uint64_t max_streams;
    uint64_t keepalive_min_ms, keepalive_interval_ms, keepalive_timeout_ms;
    uint64_t progress_interval_ms;
    const char *compaction_mode;      /* periodic or revision */
    int64_t compaction_retention;     /* ms, or revisions; 0: off */
    struct tls_options client_tls, peer_tls; /* as given: the next are still to be added */
    bool client_auto_tls, peer_auto_tls, peer_skip_san;
    uint64_t self_signed_years;
    const char *cipher_suites, *tls_min_version, *tls_max_version;
    const char *log_level, *config_file;
};

enum config_result {
    CONFIG_RUN = 0,   /* go on */
    CONFIG_DONE = 1,  /* --version or --help was answered: exit 0 */
    CONFIG_USAGE = 2, /* said on stderr what was wrong with a flag: exit 2 */
    CONFIG_BAD = 3,   /* said what is wrong with the values: exit 1 */
};

/* env: the process's environment. Writes to stdout and stderr what etcd would. Anything but CONFIG_RUN leaves nothing
 * to free. */
enum config_result config_read(struct config *c, int argc, char **argv, char **env);
void config_fini(struct config *c);

/* config_tls.c: what is wrong with c's TLS, in the arena, or NULL; where a key of etcd's *-transport-security: blocks
 * goes: the flag's name, or NULL with the field that has no flag, or with NULL: no such key. */
const char *config_tls_check(struct config *c);
const char *config_tls_key(struct config *c, const char *key, const char ***ret_field);

/* A sentence, in the arena. */
const char *config_say(struct arena *a, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The pieces, for their tests and fuzzers. Each returns NULL, or what is wrong, in words, in the arena. */
const char *config_parse_urls(struct arena *a, const char *text, struct url_list *ret_urls);
const char *config_parse_duration(struct arena *a, const char *text, int64_t *ret_ns);
/* Calls set(ctx, key, value) for each scalar of the top level and "outer.key" for one level below. */
const char *config_parse_yaml(struct arena *a, struct slice text,
                              const char *(*set)(void *ctx, const char *key, const char *value), void *ctx);
