/* SPDX-License-Identifier: Apache-2.0 */
/* dial.h - connections to other members: names resolved, sockets connected, nobody kept waiting.
 *
 * A dial is a target that is tried when it is asked for: one attempt goes through all addresses of all its URLs and
 * ends in a connected socket or in the reason. One thread does all attempts, another one asks for names, so neither a
 * dead address nor a dead name server delays anything else. No proxy, no backoff of its own: when to try again is the
 * asker's to say.
 *
 * Owner: the dialer's thread from dial_ask until done; the asker otherwise.
 */
#pragma once
#include "config.h"

struct dialer;
struct dial;

int dialer_new(struct dialer **ret_dialer);
int dialer_start(struct dialer *d);
void dialer_stop(struct dialer *d); /* takes NULL; done comes for nothing after it; a name that is being asked for is
                                     * waited for */
void dialer_free(struct dialer *d); /* takes NULL; frees what is left of the dials */

/* URLs, copied; TLS is whoever gets the socket's to speak. done, on the dialer's thread, once for each dial_ask: a
 * connected, non-blocking socket that is then the receiver's, with the number of its URL, or -errno: -ECONNREFUSED says
 * that every address refused (a unix socket that is gone has refused too), -ETIMEDOUT that none answered in time. */
struct dial_options {
    const struct url *urls;
    size_t n_urls;
    void (*done)(void *ctx, int fd, int err, size_t url);
    void *ctx;
};
int dial_new(struct dialer *d, const struct dial_options *o, struct dial **ret_dial);
/* Any thread: an attempt, delay_ms from now. Not before the last one's done. */
void dial_ask(struct dial *dial, uint32_t delay_ms);
void dial_hurry(struct dial *dial); /* any thread: what is left of the delay is dropped, if there is any */
/* Any thread, while no done is awaited, or to give one up: it does not come any more, once this has been taken up;
 * one that is just being said still comes, so ctx must outlive the dialer. */
void dial_free(struct dial *dial);

/* Connects on the caller's thread, for whoever has nothing else to do. A descriptor or -errno. */
int dial_blocking(const struct url *u, uint32_t timeout_ms);

/* host:port as a request's authority, or "localhost" for a unix socket. */
void dial_authority(const struct url *u, char *dst, size_t size);
