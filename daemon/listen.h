/* SPDX-License-Identifier: Apache-2.0 */
/* listen.h - listening sockets from URLs: http(s)://host:port and unix(s)://path. */
#pragma once
#include "config.h"

struct listener {
    int fd;            /* listening, non-blocking, close-on-exec; -1: closed */
    char path[108];    /* of a unix socket, unlinked by listener_close; "" else */
    const struct url *url; /* of the first that named it; borrowed */
    bool plain, tls;   /* what may be spoken there: both, when two URLs name the same address */
};

/* Raises RLIMIT_NOFILE to its hard limit. Returns how many descriptors the process may then have. */
uint64_t listen_raise_limit(void);

/* Binds and listens. A unix socket's file that nobody listens on any more is replaced.
 *
 * Returns 0, or -errno: -EADDRINUSE somebody listens there, -EADDRNOTAVAIL not an address of this machine,
 * -EHOSTUNREACH the host name is not known, -EACCES, -ENAMETOOLONG (a unix path), ...
 */
int listener_open(const struct url *u, struct listener *ret_listener);
/* All of them, into heap memory of the caller's, also after a failure: *ret_n are open. *ret_bad: which one could not
 * be. */
int listeners_open(const struct url_list *urls, struct listener **ret_listeners, size_t *ret_n,
                   const struct url **ret_bad);
void listener_close(struct listener *l);
/* The port it is bound to, 0 for unix: for tests that ask for port 0. */
unsigned listener_port(const struct listener *l);
