/* SPDX-License-Identifier: Apache-2.0 */
/* tls_verify.c - whose certificate is let in: a chain to what is trusted, in its time, for this use; then, in this
 * order, names that are allowed, where a client comes from, and the list of revoked ones.
 *
 * Names of hosts are asked for only by certificates that have passed so far, on the handshake's thread.
 *
 * Source: etcd v3.7.1's client/pkg/transport/listener.go (allowed names) and listener_tls.go (address, revoked serials:
 * of every certificate shown, by number alone).
 */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>
#include "tls_impl.h"

bool tls_any_of(const char *list, bool (*fn)(void *ctx, const char *item), void *ctx)
{
    char item[300];

    while (list && *list) {
        size_t n = strcspn(list, ",");

        (void)snprintf(item, sizeof item, "%.*s", n >= sizeof item ? (int)sizeof item - 1 : (int)n, list);
        if (*item && fn(ctx, item))
            return true;
        list += n + (list[n] == ',');
    }
    return false;
}

/* ---- names --------------------------------------------------------------------------------------------- */

static void common_name(X509 *cert, char *name, size_t size)
{
    if (X509_NAME_get_text_by_NID(X509_get_subject_name(cert), NID_commonName, name, (int)size) < 0)
        name[0] = '\0';
}

static bool cn_is(void *cert, const char *item)
{
    char name[300];

    common_name(cert, name, sizeof name);
    return strcmp(name, item) == 0;
}

static bool host_is(void *cert, const char *item)
{
    unsigned char address[16];

    if (inet_pton(AF_INET, item, address) == 1 || inet_pton(AF_INET6, item, address) == 1)
        return X509_check_ip_asc(cert, item, 0) == 1;
    return X509_check_host(cert, item, 0, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, NULL) == 1;
}

static bool names_allowed(const struct tls_options *o, X509 *cert)
{
    if (*o->allowed_cns)
        return tls_any_of(o->allowed_cns, cn_is, cert);
    return *o->allowed_hostnames == '\0' || tls_any_of(o->allowed_hostnames, host_is, cert);
}

/* ---- where it comes from ------------------------------------------------------------------------------- */

struct remote {
    union {
        struct sockaddr any;
        struct sockaddr_storage storage;
    } addr;
    socklen_t len;
    char text[64]; /* the address */
    char name[256]; /* by reverse lookup; "" none */
};

/* "*.x" fits what the address is called; any other name fits that, or leads to the address. */
static bool name_leads_here(const struct remote *r, const char *name)
{
    size_t n = strlen(r->name), tail = strlen(name);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list, *a;
    bool found = false;

    if (name[0] == '*' && name[1] == '.')
        return n >= tail - 1 && strcmp(r->name + n - (tail - 1), name + 1) == 0;
    if (strcmp(r->name, name) == 0)
        return true;
    if (getaddrinfo(name, NULL, &hints, &list))
        return false;
    for (a = list; a && !found; a = a->ai_next) {
        char text[64];

        found = getnameinfo(a->ai_addr, a->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST) == 0 &&
                strcmp(text, r->text) == 0;
    }
    freeaddrinfo(list);
    return found;
}

static bool remote_fits(struct tls *t, X509 *cert)
{
    struct remote r = {.len = sizeof r.addr};
    GENERAL_NAMES *names;
    unsigned n_ips = 0, n_dns = 0;
    bool fits = false;

    if (getpeername(t->fd, &r.addr.any, &r.len) || r.addr.any.sa_family == AF_UNIX)
        return true;
    if (getnameinfo(&r.addr.any, r.len, r.text, sizeof r.text, NULL, 0, NI_NUMERICHOST))
        return false;
    names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        n_ips += sk_GENERAL_NAME_value(names, i)->type == GEN_IPADD;
        n_dns += sk_GENERAL_NAME_value(names, i)->type == GEN_DNS;
    }
    fits = (n_ips == 0 && n_dns == 0) || (n_ips && X509_check_ip_asc(cert, r.text, 0) == 1);
    if (!fits && n_dns)
        (void)getnameinfo(&r.addr.any, r.len, r.name, sizeof r.name, NULL, 0, NI_NAMEREQD);
    for (int i = 0; i < sk_GENERAL_NAME_num(names) && !fits; i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        char text[256];

        if (name->type != GEN_DNS)
            continue;
        (void)snprintf(text, sizeof text, "%.*s", ASN1_STRING_length(name->d.dNSName),
                       (const char *)ASN1_STRING_get0_data(name->d.dNSName));
        fits = name_leads_here(&r, text);
    }
    GENERAL_NAMES_free(names);
    if (!fits)
        (void)snprintf(t->text, sizeof t->text, "the client's certificate does not name the address that it comes from, %s",
                       r.text);
    return fits;
}

/* ---- revoked ------------------------------------------------------------------------------------------- */

static bool is_revoked(X509_CRL *crl, X509 *cert)
{
    STACK_OF(X509_REVOKED) *rows = crl ? X509_CRL_get_REVOKED(crl) : NULL;

    for (int i = 0; i < sk_X509_REVOKED_num(rows); i++)
        if (ASN1_INTEGER_cmp(X509_REVOKED_get0_serialNumber(sk_X509_REVOKED_value(rows, i)),
                             X509_get0_serialNumber(cert)) == 0)
            return true;
    return false;
}

static bool any_revoked(X509_CRL *crl, X509_STORE_CTX *x)
{
    STACK_OF(X509) *shown = X509_STORE_CTX_get0_untrusted(x);

    if (is_revoked(crl, X509_STORE_CTX_get0_cert(x)))
        return true;
    for (int i = 0; i < sk_X509_num(shown); i++)
        if (is_revoked(crl, sk_X509_value(shown, i)))
            return true;
    return false;
}

/* ---- the verdict --------------------------------------------------------------------------------------- */

static int refuse(struct tls *t, X509_STORE_CTX *x, int error, const char *why)
{
    char name[100] = "";

    X509_STORE_CTX_set_error(x, error);
    if (X509_STORE_CTX_get0_cert(x))
        common_name(X509_STORE_CTX_get0_cert(x), name, sizeof name);
    if (*t->text == '\0')
        (void)snprintf(t->text, sizeof t->text, "the certificate of \"%s\" is refused: %s", name, why);
    return 0;
}

int tls_verify(X509_STORE_CTX *x, void *unused)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(x, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct tls *t = SSL_get_app_data(ssl);
    const struct tls_options *o = &t->ctx->o;
    bool unverified = t->side == TLS_CLIENT && o->self_made;
    X509 *cert = X509_STORE_CTX_get0_cert(x);

    (void)unused;
    if (unverified)
        return 1;
    if (X509_verify_cert(x) != 1)
        return refuse(t, x, X509_STORE_CTX_get_error(x), X509_verify_cert_error_string(X509_STORE_CTX_get_error(x)));
    if (!names_allowed(o, cert))
        return refuse(t, x, X509_V_ERR_CERT_REJECTED,
                      "client certificate authentication failed: its name is not an allowed one");
    if (t->side == TLS_CLIENT)
        return 1;
    if (o->check_remote && !remote_fits(t, cert))
        return refuse(t, x, X509_V_ERR_CERT_REJECTED, "it does not fit its address");
    if (any_revoked(t->keys->crl, x))
        return refuse(t, x, X509_V_ERR_CERT_REVOKED, "it has been revoked");
    return 1;
}
