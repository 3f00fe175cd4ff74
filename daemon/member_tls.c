/* SPDX-License-Identifier: Apache-2.0 */
/* member_tls.c - the two sets of certificates of a member: for clients, and among members.
 *
 * Owner:    the main thread.
 * Source:   etcd v3.7.1's server/embed/etcd.go for what is warned of; --auto-tls puts aside all other flags of TLS. */
#include <errno.h>
#include <stdio.h>
#include "log.h"
#include "member_impl.h"

enum { HOSTS_MAX = 64, PATH_BYTES = 4096 };

/* What differs between the two. */
struct side {
    const char *name, *dir;
    const struct tls_options *given;
    const struct url_list *urls;
    bool auto_tls;
};

static void warn_plain(const struct side *s)
{
    for (size_t i = 0; i < s->urls->n; i++) {
        const struct url *u = &s->urls->urls[i];

        if (url_is_tls(u))
            continue;
        if (*s->given->cert)
            log_warn("scheme is http or unix while key and cert files are present; ignoring key and cert files",
                     LOG_STR("for", s->name), LOG_STR("url", u->text));
        if (s->given->client_cert_auth)
            log_warn("scheme is http or unix while client cert auth is enabled; ignoring client cert auth for this URL",
                     LOG_STR("for", s->name), LOG_STR("url", u->text));
    }
}

/* The options for a certificate of our own; its paths are in the arena. */
static int make_own(struct config *c, const struct side *s, struct tls_options *ret_o, char text[TLS_TEXT_BYTES])
{
    const char *hosts[HOSTS_MAX];
    char *dir = arena_alloc(&c->arena, PATH_BYTES), *cert = arena_alloc(&c->arena, PATH_BYTES),
         *key = arena_alloc(&c->arena, PATH_BYTES);
    size_t n = 0;
    int rc;

    (void)snprintf(text, TLS_TEXT_BYTES, "out of memory");
    if (dir == NULL || cert == NULL || key == NULL)
        return -ENOMEM;
    for (; n < s->urls->n && n < HOSTS_MAX; n++)
        hosts[n] = s->urls->urls[n].host;
    (void)snprintf(dir, PATH_BYTES - 16, "%s/fixtures/%s", c->data_dir, s->dir);
    (void)snprintf(cert, PATH_BYTES, "%s/cert.pem", dir);
    (void)snprintf(key, PATH_BYTES, "%s/key.pem", dir);
    log_warn("tls: certificates of our own making encrypt, and prove to nobody who is who", LOG_STR("for", s->name));
    rc = tls_make_self(dir, hosts, n, (unsigned)c->self_signed_years, text);
    *ret_o = (struct tls_options){
        .cert = cert, .key = key, .trusted_ca = "", .crl = "", .self_made = true};
    return rc;
}

static int make(struct config *c, const struct side *s, bool wanted, struct tls_ctx **ret_ctx)
{
    struct tls_options o = *s->given;
    char text[TLS_TEXT_BYTES];
    int rc = 0;

    warn_plain(s);
    if (s->auto_tls && *o.cert)
        log_warn("ignoring auto TLS since certs given", LOG_STR("for", s->name));
    else if (s->auto_tls)
        rc = make_own(c, s, &o, text);
    o.cipher_suites = c->cipher_suites;
    o.min_version = c->tls_min_version;
    o.max_version = c->tls_max_version;
    if (rc == 0 && (wanted || *o.cert))
        rc = tls_ctx_new(&o, ret_ctx, text);
    if (rc)
        log_error("cannot use the certificates", LOG_STR("for", s->name), LOG_STR("error", text));
    else if (*o.cert)
        log_info("starting with TLS", LOG_STR("for", s->name), LOG_STR("cert", o.cert), LOG_STR("key", o.key),
                 LOG_STR("trusted-ca", o.trusted_ca), LOG_BOOL("client-cert-auth", o.client_cert_auth),
                 LOG_STR("crl-file", o.crl));
    return rc;
}

int member_tls_new(struct member_process *m)
{
    struct config *c = m->config;
    struct side client = {"clients", "client", &c->client_tls, &c->listen_client, c->client_auto_tls};
    struct side peer = {"members", "peer", &c->peer_tls, &c->listen_peer, c->peer_auto_tls};
    bool dials = strstr(c->initial_cluster, "https://") || *c->peer_tls.trusted_ca;
    int rc;

    c->peer_tls.check_remote = !c->peer_skip_san;
    rc = make(c, &client, false, &m->client_tls);
    return rc ? rc : make(c, &peer, dials, &m->peer_tls);
}

void member_tls_free(struct member_process *m)
{
    tls_ctx_free(m->client_tls);
    tls_ctx_free(m->peer_tls);
}
