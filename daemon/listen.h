/* SPDX-License-Identifier: Apache-2.0 */
/* listen.h - listening sockets from URLs: http://host:port and unix://path. */
#pragma once
#include "config.h"

struct listener {
    int fd;            /* listening, non-blocking, close-on-exec; -1: closed */
    char path[108];    /* of a unix socket, unlinked by listener_close; "" else */
};

/* Raises RLIMIT_NOFILE to its hard limit. Returns how many descriptors the process may then have. */
uint64_t listen_raise_limit(void);

/* Binds and listens. A unix socket's file that nobody listens on any more is replaced.
 *
 * Returns 0, or -errno: -EADDRINUSE somebody listens there, -EADDRNOTAVAIL not an address of this machine,
 * -EHOSTUNREACH the host name is not known, -EACCES, -ENAMETOOLONG (a unix path), ...
 */
int listener_open(const struct url *u, struct listener *ret_listener);
void listener_close(struct listener *l);
/* The port it is bound to, 0 for unix: for tests that ask for port 0. */
unsigned listener_port(const struct listener *l);
