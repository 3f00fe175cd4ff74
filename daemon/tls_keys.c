/* SPDX-License-Identifier: Apache-2.0 */
/* tls_keys.c - certificates, keys and lists of revoked ones, from their files; again when the files have changed.
 *
 * Whoever begins a handshake gets what the files hold now. When they cannot be read (a certificate is just being
 * replaced, its key not yet) what was read last stays in use, and that is logged once; but with a list of revoked
 * certificates that cannot be read nobody is let in.
 *
 * Owner:    tls_ctx.mu; a struct tls_keys is constant.
 * Source:   Go's crypto/tls for the suites' names, etcd v3.7.1 for what needs what.
 */
#include <errno.h>
#include <stdio.h>
#include "log.h"
#include "tls_impl.h"

enum { ARENA_BYTES = 256 << 10, CERT_LIST_BYTES = 64 << 10 }; /* certificates that the other side may show */

#define SUITES_DEFAULT "ECDHE+AESGCM:ECDHE+CHACHA20"

static bool given(const char *s)
{
    return s && *s;
}

/* ---- values ---------------------------------------------------------------------------------------- */

static int version_of(const char *text, int *ret_version)
{
    if (!given(text))
        *ret_version = 0;
    else if (strcmp(text, "TLS1.2") == 0)
        *ret_version = TLS1_2_VERSION;
    else if (strcmp(text, "TLS1.3") == 0)
        *ret_version = TLS1_3_VERSION;
    else
        return -EINVAL;
    return 0;
}

struct suites {
    char *list;
    size_t n, size;
    char bad[96]; /* the first that is none; "" */
};

/* Those of TLS 1.3 are all on, as in Go: naming them is allowed and changes nothing. */
static bool add_suite(void *ctx, const char *item)
{
    struct suites *s = ctx;
    size_t n = strlen(item);
    char name[96];
    const char *ours;

    if (strncmp(item, "TLS_AES_", 8) == 0 || strcmp(item, "TLS_CHACHA20_POLY1305_SHA256") == 0)
        return false;
    (void)snprintf(name, sizeof name, "%s%s", item, n > 9 && strcmp(item + n - 9, "_POLY1305") == 0 ? "_SHA256" : "");
    ours = OPENSSL_cipher_name(name);
    if (strcmp(ours, "(NONE)") == 0) {
        (void)snprintf(s->bad, sizeof s->bad, "%.90s", item);
        return true;
    }
    s->n += (size_t)snprintf(s->list + s->n, s->size - s->n, "%s%s", s->n ? ":" : "", ours);
    return false;
}

/* 0, or -EINVAL with the reason. */
static int set_suites(SSL_CTX *x, const char *names, char text[TLS_TEXT_BYTES])
{
    char list[4096] = "";
    struct suites s = {.list = list, .size = sizeof list};

    if (!given(names))
        return SSL_CTX_set_cipher_list(x, SUITES_DEFAULT) == 1 ? 0 : -EINVAL;
    if (strlen(names) > sizeof list / 2) {
        (void)snprintf(text, TLS_TEXT_BYTES, "the list of TLS cipher suites is too long");
        return -EINVAL;
    }
    (void)tls_any_of(names, add_suite, &s);
    if (*s.bad) {
        (void)snprintf(text, TLS_TEXT_BYTES, "unexpected TLS cipher suite \"%s\"", s.bad);
        return -EINVAL;
    }
    if (s.n && SSL_CTX_set_cipher_list(x, list) != 1) {
        tls_say(text, "TLS cipher suites: ");
        return -EINVAL;
    }
    return 0;
}

/* ---- files ------------------------------------------------------------------------------------------- */

static int say_file(char text[TLS_TEXT_BYTES], const char *what, const char *path)
{
    char begin[TLS_TEXT_BYTES];

    (void)snprintf(begin, sizeof begin, "%s %s: ", what, path);
    tls_say(text, begin);
    return -EINVAL;
}

static int load_pair(SSL_CTX *x, const char *cert, const char *key, char text[TLS_TEXT_BYTES])
{
    if (SSL_CTX_use_certificate_chain_file(x, cert) != 1)
        return say_file(text, "certificate", cert);
    if (SSL_CTX_use_PrivateKey_file(x, key, SSL_FILETYPE_PEM) != 1)
        return say_file(text, "key", key);
    return SSL_CTX_check_private_key(x) == 1 ? 0 : say_file(text, "key", key);
}

static int load_trust(SSL_CTX *x, const struct tls_options *o, char text[TLS_TEXT_BYTES])
{
    if (!given(o->trusted_ca)) {
        if (SSL_CTX_set_default_verify_paths(x) == 1)
            return 0;
        tls_say(text, "the system's trusted certificates: ");
        return -EINVAL;
    }
    if (SSL_CTX_load_verify_file(x, o->trusted_ca) != 1)
        return say_file(text, "trusted CA", o->trusted_ca);
    return 0;
}

static int load_crl(const char *path, X509_CRL **ret_crl, char text[TLS_TEXT_BYTES])
{
    BIO *b = BIO_new_file(path, "r");
    X509_CRL *crl = b ? d2i_X509_CRL_bio(b, NULL) : NULL;

    if (b && crl == NULL && BIO_seek(b, 0) == 0) {
        ERR_clear_error();
        crl = PEM_read_bio_X509_CRL(b, NULL, NULL, NULL);
    }
    BIO_free(b);
    if (crl == NULL)
        return say_file(text, "certificate revocation list", path);
    ERR_clear_error();
    *ret_crl = crl;
    return 0;
}

/* ---- contexts ------------------------------------------------------------------------------------------ */

/* HTTP/1.1 whenever it is offered, since gRPC core answers no GET; whoever offers nothing is sniffed. */
static int choose_alpn(SSL *ssl, const unsigned char **out, unsigned char *n_out, const unsigned char *in,
                       unsigned n_in, void *unused)
{
    static const unsigned char http[] = "\x08http/1.1", h2[] = "\x02h2";

    (void)ssl, (void)unused;
    if (SSL_select_next_proto((unsigned char **)(uintptr_t)out, n_out, http, sizeof http - 1, in, n_in) ==
            OPENSSL_NPN_NEGOTIATED ||
        SSL_select_next_proto((unsigned char **)(uintptr_t)out, n_out, h2, sizeof h2 - 1, in, n_in) ==
            OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_OK;
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}

static int context_new(const struct tls_options *o, const SSL_METHOD *method, SSL_CTX **ret_ctx,
                       char text[TLS_TEXT_BYTES])
{
    SSL_CTX *x = SSL_CTX_new(method);
    int min = 0, max = 0, err;

    if (x == NULL || version_of(o->min_version, &min) || version_of(o->max_version, &max)) {
        (void)snprintf(text, TLS_TEXT_BYTES, "unexpected TLS version (must be one of: TLS1.2, TLS1.3)");
        SSL_CTX_free(x);
        return -EINVAL;
    }
    (void)SSL_CTX_set_min_proto_version(x, min ? min : TLS1_2_VERSION);
    (void)SSL_CTX_set_max_proto_version(x, max);
    (void)SSL_CTX_set_options(x, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                     SSL_OP_IGNORE_UNEXPECTED_EOF | SSL_OP_CIPHER_SERVER_PREFERENCE);
    (void)SSL_CTX_set_num_tickets(x, 0);
    (void)SSL_CTX_set_session_cache_mode(x, SSL_SESS_CACHE_OFF);
    (void)SSL_CTX_set_mode(x, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
    (void)SSL_CTX_set_max_cert_list(x, CERT_LIST_BYTES);
    /* An intermediate certificate in the trusted file is trusted itself, as in Go. */
    (void)X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(x), X509_V_FLAG_PARTIAL_CHAIN);
    SSL_CTX_set_cert_verify_callback(x, tls_verify, NULL);
    err = set_suites(x, o->cipher_suites, text);
    if (err)
        SSL_CTX_free(x);
    else
        *ret_ctx = x;
    return err;
}

static int server_new(const struct tls_options *o, SSL_CTX **ret_ctx, char text[TLS_TEXT_BYTES])
{
    bool ask = o->client_cert_auth || given(o->trusted_ca);
    SSL_CTX *x = NULL;
    int err = context_new(o, TLS_server_method(), &x, text);

    err = err ? err : load_pair(x, o->cert, o->key, text);
    if (err == 0 && ask)
        err = load_trust(x, o, text);
    if (err) {
        SSL_CTX_free(x);
        return err;
    }
    if (ask)
        SSL_CTX_set_verify(x, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    if (given(o->trusted_ca))
        SSL_CTX_set_client_CA_list(x, SSL_load_client_CA_file(o->trusted_ca)); /* NULL: any may be shown */
    SSL_CTX_set_alpn_select_cb(x, choose_alpn, NULL);
    *ret_ctx = x;
    return 0;
}

static int client_new(const struct tls_options *o, SSL_CTX **ret_ctx, char text[TLS_TEXT_BYTES])
{
    const char *cert = given(o->client_cert) ? o->client_cert : o->cert;
    const char *key = given(o->client_cert) ? o->client_key : o->key;
    SSL_CTX *x = NULL;
    int err = context_new(o, TLS_client_method(), &x, text);

    if (err == 0 && given(cert))
        err = load_pair(x, cert, key, text);
    err = err ? err : load_trust(x, o, text);
    if (err) {
        SSL_CTX_free(x);
        return err;
    }
    SSL_CTX_set_verify(x, o->self_made ? SSL_VERIFY_NONE : SSL_VERIFY_PEER, NULL);
    *ret_ctx = x;
    return 0;
}

void tls_keys_unref(struct tls_keys *k)
{
    if (k == NULL || atomic_fetch_sub(&k->refs, 1) != 1)
        return;
    SSL_CTX_free(k->server);
    SSL_CTX_free(k->client);
    X509_CRL_free(k->crl);
    free(k);
}

static int keys_new(const struct tls_options *o, struct tls_keys **ret_keys, char text[TLS_TEXT_BYTES])
{
    struct tls_keys *k = calloc(1, sizeof *k);
    int err = k ? 0 : -ENOMEM;

    ERR_clear_error();
    if (k)
        k->refs = 1;
    if (err == 0 && given(o->crl))
        err = load_crl(o->crl, &k->crl, text);
    if (err == 0 && given(o->cert))
        err = server_new(o, &k->server, text);
    if (err == 0)
        err = client_new(o, &k->client, text);
    if (err) {
        tls_keys_unref(k);
        return err;
    }
    *ret_keys = k;
    return 0;
}

/* ---- changes ------------------------------------------------------------------------------------------- */

static void stamp(const char *path, struct tls_stamp *ret)
{
    struct stat st;

    *ret = (struct tls_stamp){.size = -1};
    if (given(path) && stat(path, &st) == 0)
        *ret = (struct tls_stamp){.mtime = st.st_mtim, .ctime = st.st_ctim, .size = st.st_size, .inode = st.st_ino};
}

static bool same_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

static bool same_stamps(const struct tls_stamp *a, const struct tls_stamp *b)
{
    for (int i = 0; i < KEY_FILES; i++)
        if (a[i].size != b[i].size || a[i].inode != b[i].inode || !same_time(a[i].mtime, b[i].mtime) ||
            !same_time(a[i].ctime, b[i].ctime))
            return false;
    return true;
}

/* mu is held. Looked at before it is read: what changes meanwhile is read again by the next one. */
static void read_again(struct tls_ctx *c, const struct tls_stamp now[KEY_FILES])
{
    char text[TLS_TEXT_BYTES] = "no memory", unused[TLS_TEXT_BYTES];
    struct tls_keys *k;
    X509_CRL *crl = NULL;

    memcpy(c->stamps, now, sizeof c->stamps);
    c->crl_bad = given(c->o.crl) && load_crl(c->o.crl, &crl, unused) != 0;
    X509_CRL_free(crl);
    if (keys_new(&c->o, &k, text) == 0) {
        tls_keys_unref(c->keys);
        c->keys = k;
        c->said[0] = '\0';
        log_info("tls: the certificates' files have changed and are in use", LOG_STR("certificate", c->o.cert));
        return;
    }
    if (strcmp(text, c->said) != 0)
        log_warn(c->crl_bad ? "tls: nobody is let in until this file can be read"
                            : "tls: what was read from the certificates' files before stays in use",
                 LOG_STR("error", text));
    memcpy(c->said, text, sizeof c->said);
}

int tls_keys_get(struct tls_ctx *c, struct tls_keys **ret_keys, char text[TLS_TEXT_BYTES])
{
    const char *paths[KEY_FILES] = {c->o.cert,   c->o.key,        c->o.client_cert,
                                    c->o.client_key, c->o.trusted_ca, c->o.crl};
    struct tls_stamp now[KEY_FILES];
    int err = 0;

    for (int i = 0; i < KEY_FILES; i++)
        stamp(paths[i], &now[i]);
    pthread_mutex_lock(&c->mu);
    if (c->keys && !same_stamps(now, c->stamps))
        read_again(c, now);
    if (c->keys == NULL) {
        memcpy(c->stamps, now, sizeof c->stamps);
        err = keys_new(&c->o, &c->keys, text);
    }
    if (err == 0 && c->crl_bad) {
        memcpy(text, c->said, TLS_TEXT_BYTES);
        err = -EINVAL;
    }
    if (err == 0) {
        atomic_fetch_add(&c->keys->refs, 1);
        *ret_keys = c->keys;
    }
    pthread_mutex_unlock(&c->mu);
    return err;
}

/* ---- made from options --------------------------------------------------------------------------------- */

static bool copy(struct arena *a, const char **s)
{
    const char *from = given(*s) ? *s : "";

    *s = (const char *)arena_copy(a, slice_of(from, strlen(from) + 1)).ptr;
    return *s != NULL;
}

static const char *missing(const struct tls_options *o)
{
    if (given(o->cert) != given(o->key))
        return "a certificate and its key must both be given";
    if (given(o->client_cert) != given(o->client_key))
        return "a client certificate and its key must both be given, or neither";
    if (given(o->allowed_cns) && given(o->allowed_hostnames))
        return "allowed common names and allowed hostnames exclude each other";
    return NULL;
}

int tls_ctx_new(const struct tls_options *o, struct tls_ctx **ret_ctx, char text[TLS_TEXT_BYTES])
{
    struct tls_ctx *c = calloc(1, sizeof *c);
    struct tls_keys *k = NULL;
    struct tls_options *n;
    int err = 0;

    (void)snprintf(text, TLS_TEXT_BYTES, "%s", c && missing(o) ? missing(o) : "no memory");
    if (c == NULL || missing(o)) {
        free(c);
        return c ? -EINVAL : -ENOMEM;
    }
    pthread_mutex_init(&c->mu, NULL);
    arena_init(&c->arena, ARENA_BYTES, NULL, 0);
    c->o = *o;
    n = &c->o;
    if (!copy(&c->arena, &n->cert) || !copy(&c->arena, &n->key) || !copy(&c->arena, &n->client_cert) ||
        !copy(&c->arena, &n->client_key) || !copy(&c->arena, &n->trusted_ca) || !copy(&c->arena, &n->crl) ||
        !copy(&c->arena, &n->allowed_cns) || !copy(&c->arena, &n->allowed_hostnames) ||
        !copy(&c->arena, &n->cipher_suites) || !copy(&c->arena, &n->min_version) || !copy(&c->arena, &n->max_version))
        err = -ENOMEM;
    err = err ? err : tls_keys_get(c, &k, text);
    tls_keys_unref(k);
    if (err)
        tls_ctx_free(c);
    else
        *ret_ctx = c;
    return err;
}

void tls_ctx_free(struct tls_ctx *c)
{
    if (c == NULL)
        return;
    tls_keys_unref(c->keys);
    arena_fini(&c->arena);
    pthread_mutex_destroy(&c->mu);
    free(c);
}
