/* SPDX-License-Identifier: Apache-2.0 */
/* tls_impl.h - what the parts of TLS share, and with it OpenSSL. Nobody else's.
 *
 *     tls.c         one connection
 *     tls_keys.c    files into OpenSSL's contexts, and again when they have changed
 *     tls_verify.c  whose certificate is let in
 *     tls_self.c    a certificate of our own making
 */
#pragma once
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include "tls.h"

/* What the files held at one moment. Constant once made; counted, since connections stay when the files change. */
struct tls_keys {
    _Atomic unsigned refs;
    SSL_CTX *server, *client; /* server: NULL without a certificate */
    X509_CRL *crl;            /* NULL: none */
};

enum { KEY_FILES = 6 };

/* A file as it was when it was read. */
struct tls_stamp {
    struct timespec mtime, ctime;
    off_t size;
    ino_t inode;
};

struct tls_ctx {
    struct arena arena;
    struct tls_options o;
    pthread_mutex_t mu; /* protects all below. A mailbox would not do: whoever begins a handshake needs the keys at
                         * once */
    struct tls_keys *keys;
    struct tls_stamp stamps[KEY_FILES];
    bool crl_bad;       /* it cannot be read now: nobody is let in by it */
    char said[TLS_TEXT_BYTES];
};

struct tls {
    SSL *ssl;
    struct tls_ctx *ctx; /* for tls_verify.c, during the handshake */
    struct tls_keys *keys;
    enum tls_side side;
    int fd;
    bool more;
    char text[TLS_TEXT_BYTES];
    uint8_t peeked[TLS_PEEK_BYTES]; /* taken by tls_peek, not yet by tls_recv */
    size_t peeked_at, n_peeked;
};

/* OpenSSL's oldest error, in words; clears the queue. what: "cert.pem: ". */
void tls_say(char text[TLS_TEXT_BYTES], const char *what);

/* ---- tls_keys.c ---- */
/* Of the files as they are now, with a reference. 0 or -errno with the reason. */
int tls_keys_get(struct tls_ctx *c, struct tls_keys **ret_keys, char text[TLS_TEXT_BYTES]);
void tls_keys_unref(struct tls_keys *k); /* takes NULL */

/* ---- tls_verify.c ---- */
/* OpenSSL's callback: the chain, then the rest. */
int tls_verify(X509_STORE_CTX *x, void *unused);
/* Calls fn for each item of a comma list, borrowed for the call, until it says true. */
bool tls_any_of(const char *list, bool (*fn)(void *ctx, const char *item), void *ctx);
