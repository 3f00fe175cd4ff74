/* SPDX-License-Identifier: Apache-2.0 */
/* tls.h - TLS over sockets, on both sides: the one door to OpenSSL.
 *
 * A tls_ctx is made from files; each handshake looks whether they have changed, so a renewed certificate needs no
 * restart. TLS 1.2 and 1.3, AEAD only unless suites are named; no tickets, no session cache, no renegotiation: who is
 * let in is asked anew each time.
 *
 * A struct tls is one connection over a non-blocking socket, which stays its maker's. It has no thread and keeps no
 * bytes but those of one record that nobody has asked for yet. OpenSSL writes to the socket with write(2): the process
 * ignores SIGPIPE. Handshakes cost a millisecond of CPU: handshake.h does them.
 *
 * Source: etcd v3.7.1's client/pkg/transport, for what is verified and in which order.
 */
#pragma once
#include <sys/types.h>
#include "bytes.h"

/* Files and names; NULL and "" mean none. Lists are joined by commas. */
struct tls_options {
    const char *cert, *key;
    const char *client_cert, *client_key; /* shown when we dial; none: cert and key */
    const char *trusted_ca;               /* none: what the system trusts */
    const char *crl;                      /* clients' certificates that are no longer good: DER or PEM */
    const char *allowed_cns, *allowed_hostnames; /* the other side's certificate must name one of them */
    const char *cipher_suites;            /* by their names in the RFCs, for TLS 1.2 */
    const char *min_version, *max_version; /* "TLS1.2", "TLS1.3"; none: 1.2, the newest */
    bool client_cert_auth;                /* clients must show a certificate; also when trusted_ca is given */
    bool check_remote;                    /* the names in a client's certificate must fit where it comes from */
    bool self_made;                       /* the servers that we dial are not verified */
};

enum { TLS_TEXT_BYTES = 256 };

/* Copies o, reads the files. 0; else -errno, or -EINVAL, with a sentence that names the file or the value. */
struct tls_ctx;
int tls_ctx_new(const struct tls_options *o, struct tls_ctx **ret_ctx, char text[TLS_TEXT_BYTES]);
void tls_ctx_free(struct tls_ctx *c); /* takes NULL; connections that were made from it go on */

/* Makes cert.pem and key.pem in dir (made too, with what leads there) unless both are there; hosts: names and addresses
 * in the certificate. */
int tls_make_self(const char *dir, const char *const *hosts, size_t n_hosts, unsigned years, char text[TLS_TEXT_BYTES]);

enum tls_side { TLS_SERVER, TLS_CLIENT };

/* The next functions: any thread, one at a time on one connection. */
struct tls;
/* Any thread; reads the files again if they have changed. host: of the server that is dialed, which its certificate
 * must name; "" for none. fd is borrowed. */
int tls_new(struct tls_ctx *c, enum tls_side side, int fd, const char *host, struct tls **ret_tls,
            char text[TLS_TEXT_BYTES]);
void tls_free(struct tls *t); /* takes NULL; says nothing to the other side */

/* One step. 0: done; POLLIN or POLLOUT: again when the socket is that; -errno with the reason in tls_text. */
int tls_handshake(struct tls *t);
const char *tls_text(const struct tls *t); /* "" while nothing is wrong with TLS itself; also after EPROTO of the next
                                            * ones */

/* As recv(2) and send(2): how many bytes, 0 the end, or -1 with errno, EAGAIN among them. tls_recv fills the buffer as
 * far as there is something, so fewer bytes than asked for, or EAGAIN, say that a byte to come will wake epoll: unless
 * tls_more, when the end or an error is still to be read. */
ssize_t tls_recv(struct tls *t, void *buffer, size_t n);
ssize_t tls_send(struct tls *t, const void *bytes, size_t n);
bool tls_more(const struct tls *t);
/* From here on a record costs one system call and not two: for whoever calls tls_recv until there is no more. */
void tls_read_ahead(struct tls *t);
/* Bytes that were taken off the socket and not yet asked for: epoll will not tell of them. Without read-ahead. */
size_t tls_pending(const struct tls *t);
/* The first bytes without taking them, as far as they have come, at most TLS_PEEK_BYTES. */
enum { TLS_PEEK_BYTES = 64 };
ssize_t tls_peek(struct tls *t, void *buffer, size_t n);
/* Tells the other side that we send no more. */
void tls_bye(struct tls *t);
