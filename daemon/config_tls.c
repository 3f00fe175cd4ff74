/* SPDX-License-Identifier: Apache-2.0 */
/* config_tls.c - what the flags of TLS must be together, and their names in a configuration file.
 *
 * Source: etcd v3.7.1's server/embed (config.go: Validate, securityConfig; etcd.go: configureClientListeners). */
#include "config.h"

static const char *check_versions(struct config *c)
{
    const char *const given[] = {c->tls_min_version, c->tls_max_version};
    struct arena *a = &c->arena;

    for (int i = 0; i < 2; i++)
        if (*given[i] && strcmp(given[i], "TLS1.2") != 0 && strcmp(given[i], "TLS1.3") != 0)
            return config_say(a, "unexpected TLS version \"%s\" (must be one of: TLS1.2, TLS1.3)", given[i]);
    if (*given[1] && strcmp(given[0], given[1]) > 0)
        return config_say(a, "min version (%s) is greater than max version (%s)", given[0], given[1]);
    if (strcmp(given[0], "TLS1.3") == 0 && *c->cipher_suites)
        return "cipher suites cannot be configured when only TLS1.3 is enabled";
    return NULL;
}

static bool is_empty(const struct tls_options *o)
{
    return *o->cert == '\0' && *o->key == '\0';
}

static const char *check_urls(struct config *c)
{
    struct arena *a = &c->arena;

    for (size_t i = 0; i < c->listen_client.n; i++) {
        const struct url *u = &c->listen_client.urls[i];

        if (url_is_tls(u) && is_empty(&c->client_tls) && !c->client_auto_tls)
            return config_say(a, "TLS key/cert (--cert-file, --key-file) must be provided for client url %s with HTTPS "
                                 "scheme", u->text);
    }
    for (size_t i = 0; i < c->listen_peer.n; i++) {
        const struct url *u = &c->listen_peer.urls[i];

        if (u->scheme == URL_UNIXS)
            return config_say(a, "--listen-peer-urls %s: members do not speak TLS over unix sockets; use unix://", u->text);
        if (u->scheme == URL_HTTPS && is_empty(&c->peer_tls) && !c->peer_auto_tls)
            return config_say(a, "cannot listen on TLS for %s:%s: KeyFile and CertFile are not presented", u->host,
                              u->port);
    }
    return NULL;
}

static const char *check_pair(struct arena *a, const struct tls_options *o)
{
    if ((*o->cert == '\0') != (*o->key == '\0'))
        return config_say(a, "KeyFile and CertFile must both be present[key: %s, cert: %s]", o->key, o->cert);
    if ((*o->client_cert == '\0') != (*o->client_key == '\0'))
        return config_say(a, "ClientKeyFile and ClientCertFile must both be present or both absent: key: %s, cert: %s]",
                          o->client_key, o->client_cert);
    if (*o->allowed_cns && *o->allowed_hostnames)
        return config_say(a, "AllowedCNs and AllowedHostnames are mutually exclusive (cns=%s, hostnames=%s)",
                          o->allowed_cns, o->allowed_hostnames);
    return NULL;
}

const char *config_tls_check(struct config *c)
{
    const char *bad = check_versions(c);

    if (c->client_tls.allowed_cns == NULL)
        c->client_tls.allowed_cns = ""; /* it has no flag, so no default */
    bad = bad ? bad : check_urls(c);
    bad = bad ? bad : check_pair(&c->arena, &c->client_tls);
    bad = bad ? bad : check_pair(&c->arena, &c->peer_tls);
    if (bad == NULL && (c->client_auto_tls || c->peer_auto_tls) &&
        (c->self_signed_years == 0 || c->self_signed_years > 1000))
        bad = "selfSignedCertValidity is invalid,it should be greater than 0";
    return bad;
}

const char *config_tls_key(struct config *c, const char *key, const char ***ret_field)
{
    static const struct {
        const char *key, *client, *peer;
    } keys[] = {
        {"cert-file", "cert-file", "peer-cert-file"},
        {"key-file", "key-file", "peer-key-file"},
        {"client-cert-file", "client-cert-file", "peer-client-cert-file"},
        {"client-key-file", "client-key-file", "peer-client-key-file"},
        {"client-cert-auth", "client-cert-auth", "peer-client-cert-auth"},
        {"trusted-ca-file", "trusted-ca-file", "peer-trusted-ca-file"},
        {"crl-file", "client-crl-file", "peer-crl-file"},
        {"auto-tls", "auto-tls", "peer-auto-tls"},
        {"allowed-cn", NULL, "peer-cert-allowed-cn"},
        {"allowed-hostname", "client-cert-allowed-hostname", "peer-cert-allowed-hostname"},
        {"skip-client-san-verification", "peer-skip-client-san-verification", "peer-skip-client-san-verification"},
    };
    bool client = strncmp(key, "client-transport-security.", 26) == 0, peer = strncmp(key, "peer-transport-security.", 24) == 0;

    *ret_field = NULL;
    for (size_t i = 0; (client || peer) && i < sizeof keys / sizeof *keys; i++) {
        if (strcmp(strchr(key, '.') + 1, keys[i].key) != 0)
            continue;
        if (client && keys[i].client == NULL)
            *ret_field = &c->client_tls.allowed_cns;
        return client ? keys[i].client : keys[i].peer;
    }
    return NULL;
}
