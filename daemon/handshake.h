/* SPDX-License-Identifier: Apache-2.0 */
/* handshake.h - TLS handshakes, away from the threads that move bytes.
 *
 * A handshake costs a millisecond of CPU, reads files when they have changed, and may ask for names: two threads do
 * nothing else. One that does not get on is given up after LIMIT_HANDSHAKE_MS; of clients' that wait, LIMIT_HANDSHAKES
 * are kept and the oldest goes when one more comes.
 *
 * Owner: the pool's from handshakes_begin until done.
 */
#pragma once
#include "mailbox.h"
#include "tls.h"

struct handshakes;

struct handshake {
    struct tls_ctx *ctx; /* borrowed */
    enum tls_side side;
    int fd;              /* connected, non-blocking; stays the caller's, who leaves it alone until done */
    const char *host;    /* TLS_CLIENT: borrowed; "" none */
    /* Once, on any thread, also from within handshakes_begin and handshakes_stop; may free this. */
    void (*done)(struct handshake *h);

    /* Filled when done: 0 and the connection, or -errno and why. */
    int err;
    struct tls *tls;
    char text[TLS_TEXT_BYTES];

    struct mail mail; /* the pool's until done, then the caller's */
    struct handshake *prev, *next;
    uint64_t deadline_ms;
    uint32_t events;
};

int handshakes_new(struct handshakes **ret_handshakes);
int handshakes_start(struct handshakes *hs);
void handshakes_begin(struct handshakes *hs, struct handshake *h); /* any thread */
void handshakes_stop(struct handshakes *hs); /* takes NULL; what is under way is done, with -ECANCELED, when it
                                              * returns */
void handshakes_free(struct handshakes *hs); /* takes NULL */

/* As a client, on the caller's thread, for whoever has nothing else to do. 0, or -errno with the reason. */
int handshake_blocking(struct tls_ctx *ctx, int fd, const char *host, uint32_t timeout_ms, struct tls **ret_tls,
                       char text[TLS_TEXT_BYTES]);
