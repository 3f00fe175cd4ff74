/* SPDX-License-Identifier: Apache-2.0 */
/* http.h - the one door to HTTP/1.1: /health /livez /readyz /version /metrics on the clients' port.
 *
 * libmicrohttpd runs one thread; it gets sockets that the pump has found to speak HTTP/1.1. No handler waits: what
 * needs a linearizable read suspends its connection until http_read_done.
 * Source: reference 05-http.
 */
#pragma once
#include <stdio.h>
#include <sys/socket.h>
#include "bytes.h"

struct http;
struct http_read; /* a request that waits for a linearizable read */

enum http_alarm { HTTP_ALARM_NOSPACE = 1u << 0, HTTP_ALARM_CORRUPT = 1u << 1 };

struct http_options {
    const char *version, *cluster_version; /* "3.7.1", "3.7.0"; must outlive http */
    void (*metrics)(void *ctx, FILE *f);   /* writes the text of /metrics; NULL: 404 */
    unsigned (*alarms)(void *ctx);         /* enum http_alarm; NULL: none */
    bool (*has_leader)(void *ctx);         /* NULL: yes */
    bool (*is_learner)(void *ctx);         /* NULL: no */
    /* Begins a linearizable read of anything and calls http_read_done(r, err) once it is done, or has failed, from any
     * thread, also before it returns. NULL: succeeds at once. */
    void (*read)(void *ctx, struct http_read *r);
    void *ctx;
};

int http_new(const struct http_options *o, struct http **ret_http);
int http_start(struct http *h);
/* Any thread. Takes the socket. */
void http_add(struct http *h, int fd, const struct sockaddr *addr, socklen_t len);
/* Any thread. err: 0 or ERR_x, which is told. */
void http_read_done(struct http_read *r, int err);
/* Closes the connections. Requests that still wait are given up: http_read_done is harmless until http_free. */
void http_stop(struct http *h);
void http_free(struct http *h); /* takes NULL; nobody may call http_read_done any more */
