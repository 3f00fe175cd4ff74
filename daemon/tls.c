/* SPDX-License-Identifier: Apache-2.0 */
/* tls.c - one connection: its handshake, its bytes.
 *
 * OpenSSL reads and writes the socket itself. What it has taken and nobody has asked for yet is at most one record, and
 * what is read ahead; buffers that are empty are given back.
 *
 * Owner:    whoever made the connection.
 * Not here: which thread, and for how long (handshake.c); what certificates are good for (tls_verify.c).
 */
#include <errno.h>
#include <limits.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include "tls_impl.h"

void tls_say(char text[TLS_TEXT_BYTES], const char *what)
{
    unsigned long e = ERR_get_error();
    int reason = ERR_GET_REASON(e);

    if (ERR_GET_LIB(e) == ERR_LIB_SSL && reason >= SSL_AD_REASON_OFFSET && reason < SSL_AD_REASON_OFFSET + 256)
        (void)snprintf(text, TLS_TEXT_BYTES, "%sremote error: tls: %s", what,
                       SSL_alert_desc_string_long(reason - SSL_AD_REASON_OFFSET));
    else if (ERR_SYSTEM_ERROR(e))
        (void)snprintf(text, TLS_TEXT_BYTES, "%s%s", what, strerror(reason));
    else
        (void)snprintf(text, TLS_TEXT_BYTES, "%s%s", what, e ? ERR_reason_error_string(e) : "the connection was closed");
    ERR_clear_error();
}

static bool is_address(const char *host)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST}, *list;

    if (getaddrinfo(host, NULL, &hints, &list))
        return false;
    freeaddrinfo(list);
    return true;
}

/* What the server's certificate must name. */
static bool expect_host(SSL *ssl, const char *host)
{
    if (is_address(host))
        return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), host) == 1;
    SSL_set_hostflags(ssl, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT | X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return SSL_set1_host(ssl, host) == 1 && SSL_set_tlsext_host_name(ssl, host) == 1;
}

int tls_new(struct tls_ctx *c, enum tls_side side, int fd, const char *host, struct tls **ret_tls,
            char text[TLS_TEXT_BYTES])
{
    struct tls *t = calloc(1, sizeof *t);
    int err = t ? tls_keys_get(c, &t->keys, text) : -ENOMEM;

    if (err) {
        free(t);
        return err;
    }
    t->ctx = c;
    t->side = side;
    t->fd = fd;
    ERR_clear_error();
    t->ssl = SSL_new(side == TLS_SERVER ? t->keys->server : t->keys->client);
    if (t->ssl == NULL || SSL_set_app_data(t->ssl, t) != 1 || SSL_set_fd(t->ssl, fd) != 1 ||
        (side == TLS_CLIENT && *host && !expect_host(t->ssl, host))) {
        tls_say(text, "");
        tls_free(t);
        return -EINVAL;
    }
    if (side == TLS_SERVER)
        SSL_set_accept_state(t->ssl);
    else
        SSL_set_connect_state(t->ssl);
    *ret_tls = t;
    return 0;
}

void tls_free(struct tls *t)
{
    if (t == NULL)
        return;
    SSL_free(t->ssl);
    tls_keys_unref(t->keys);
    free(t);
}

int tls_handshake(struct tls *t)
{
    int rc, saved;

    ERR_clear_error();
    errno = 0;
    rc = SSL_do_handshake(t->ssl);
    saved = errno;
    if (rc == 1)
        return 0;
    switch (SSL_get_error(t->ssl, rc)) {
    case SSL_ERROR_WANT_READ:
        return POLLIN;
    case SSL_ERROR_WANT_WRITE:
        return POLLOUT;
    case SSL_ERROR_SYSCALL:
        (void)snprintf(t->text, sizeof t->text, "%s", saved ? strerror(saved) : "the connection was closed in the handshake");
        ERR_clear_error();
        return -ECONNRESET;
    default:
        if (*t->text == '\0') /* else the certificate was refused, and that says more */
            tls_say(t->text, "");
        ERR_clear_error();
        return -EPROTO;
    }
}

const char *tls_text(const struct tls *t)
{
    return t->text;
}

/* What a call of OpenSSL's that moved nothing means to a caller of recv or send. */
static ssize_t moved_nothing(struct tls *t, int rc, int saved)
{
    switch (SSL_get_error(t->ssl, rc)) {
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        errno = EAGAIN;
        return -1;
    case SSL_ERROR_SYSCALL:
        errno = saved ? saved : ECONNRESET;
        break;
    default:
        if (*t->text == '\0')
            tls_say(t->text, "");
        errno = EPROTO;
    }
    ERR_clear_error();
    return -1;
}

/* One record at most. */
static ssize_t read_some(struct tls *t, void *buffer, size_t n)
{
    int rc, saved;

    ERR_clear_error();
    errno = 0;
    rc = SSL_read(t->ssl, buffer, n > INT_MAX ? INT_MAX : (int)n);
    saved = errno;
    return rc > 0 ? rc : moved_nothing(t, rc, saved);
}

static size_t take_peeked(struct tls *t, void *buffer, size_t n)
{
    if (n > t->n_peeked - t->peeked_at)
        n = t->n_peeked - t->peeked_at;
    memcpy(buffer, t->peeked + t->peeked_at, n);
    t->peeked_at += n;
    return n;
}

ssize_t tls_recv(struct tls *t, void *buffer, size_t n)
{
    size_t done = take_peeked(t, buffer, n);
    ssize_t got = 1;

    t->more = false;
    while (done < n) {
        got = read_some(t, (uint8_t *)buffer + done, n - done);
        if (got <= 0)
            break;
        done += (size_t)got;
    }
    if (done == 0)
        return got;
    t->more = got == 0 || (got < 0 && errno != EAGAIN);
    return (ssize_t)done;
}

void tls_read_ahead(struct tls *t)
{
    SSL_set_read_ahead(t->ssl, 1);
}

bool tls_more(const struct tls *t)
{
    return t->more;
}

size_t tls_pending(const struct tls *t)
{
    int n = SSL_pending(t->ssl);

    return t->n_peeked - t->peeked_at + (n > 0 ? (size_t)n : 0);
}

ssize_t tls_peek(struct tls *t, void *buffer, size_t n)
{
    ssize_t got = 0;

    assert(t->peeked_at == 0);
    while (t->n_peeked < sizeof t->peeked) {
        got = read_some(t, t->peeked + t->n_peeked, sizeof t->peeked - t->n_peeked);
        if (got <= 0)
            break;
        t->n_peeked += (size_t)got;
    }
    if (t->n_peeked == 0)
        return got;
    if (n > t->n_peeked)
        n = t->n_peeked;
    memcpy(buffer, t->peeked, n);
    return (ssize_t)n;
}

ssize_t tls_send(struct tls *t, const void *bytes, size_t n)
{
    size_t done = 0;

    while (done < n) {
        int rc, saved;
        ssize_t none;

        ERR_clear_error();
        errno = 0;
        rc = SSL_write(t->ssl, (const uint8_t *)bytes + done, n - done > INT_MAX ? INT_MAX : (int)(n - done));
        saved = errno;
        if (rc > 0) {
            done += (size_t)rc;
            continue;
        }
        none = moved_nothing(t, rc, saved);
        if (done)
            return (ssize_t)done; /* what ails it is said by the next call */
        if (none == 0)
            errno = EPIPE;
        return -1;
    }
    return (ssize_t)done;
}

void tls_bye(struct tls *t)
{
    ERR_clear_error();
    (void)SSL_shutdown(t->ssl); /* a full socket: the end of the connection says it too */
    ERR_clear_error();
}
