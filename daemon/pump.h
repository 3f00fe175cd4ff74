/* SPDX-License-Identifier: Apache-2.0 */
/* pump.h - every byte between a client's socket and gRPC, and the guard that watches them.
 *
 *      client <--socket--> pump (guard) <--socketpair--> gRPC core
 *                            |
 *                            +--> http: the untouched socket, when the first bytes are not HTTP/2's preface
 *
 * On a listener that may, a client that begins with TLS first shakes hands (handshake.h); then its bytes are decrypted
 * on their way. A client whose bytes are then not HTTP/2 is relayed to http, by a socketpair as well.
 *
 * One thread. It accepts, waits for a connection to show its protocol, then moves bytes; a direction is read only
 * while the other side takes what is read. The guard's first objection ends that connection and no other.
 */
#pragma once
#include <sys/socket.h>
#include "guard.h"
#include "handshake.h"
#include "listen.h"

struct pump;

struct pump_options {
    uint32_t streams_max;                /* a connection's, of the guard; 0: LIMIT_OPEN_STREAMS */
    void (*grpc)(void *ctx, int fd);     /* takes one end of a socketpair, non-blocking */
    /* Takes an untouched client socket, non-blocking; its bytes are still to be read. NULL: such clients are closed. */
    void (*http)(void *ctx, int fd, const struct sockaddr *addr, socklen_t len);
    /* Takes a client that has shaken hands and speaks no HTTP/2, with its connection. NULL: it is relayed to http. */
    void (*stream)(void *ctx, int fd, struct tls *tls);
    void *ctx;
    struct tls_ctx *tls;          /* NULL: TLS is not spoken; borrowed, as is the next */
    struct handshakes *handshakes;
};

/* Takes the listeners' descriptors (not their paths): stops accepting on them, but does not close them. */
int pump_new(const struct pump_options *o, struct pump **ret_pump);
void pump_free(struct pump *p);          /* after pump_stop, or before pump_start; takes NULL */
int pump_listen(struct pump *p, const struct listener *l); /* before pump_start; borrowed */
int pump_start(struct pump *p);
/* Any thread. A connection that has shaken hands, both given away, becomes a plain one: the end of a socketpair,
 * non-blocking. 0 or -errno; nothing is open then. */
int pump_relay(struct pump *p, int fd, struct tls *tls, int *ret_fd);
void pump_stop_accepting(struct pump *p); /* any thread; nothing is accepted once it has returned */
void pump_cut(struct pump *p);            /* any thread; closes every connection soon */
void pump_stop(struct pump *p);           /* closes every connection, ends the thread; the handshakes have stopped
                                           * before */

struct pump_stats {
    _Atomic uint64_t accepted, open, client_bytes, server_bytes; /* bytes: from the client, to it */
    _Atomic uint64_t guarded[GUARD_COUNT];                       /* connections ended, by reason */
    _Atomic uint64_t sniffed_late;                               /* closed: no protocol within LIMIT_SNIFF_MS */
    _Atomic uint64_t incomplete_bytes;                           /* of messages, in all */
    _Atomic uint64_t handshakes_failed, handshakes_late;         /* TLS: refused by either side; given up */
};
const struct pump_stats *pump_stats(const struct pump *p);
