/* SPDX-License-Identifier: Apache-2.0 */
/* front.c - puts listeners, pump, rpc and http together.
 *
 * The order of the stop: no new connections; rpc says GOAWAY, ends calls, cancels, has the pump cut what still blocks;
 * then http and the pump end.
 *
 * Owner: the thread that starts and stops the member.
 */
#include "front.h"
#include <errno.h>

struct front {
    struct rpc *rpc;
    struct pump *pump;
    struct http *http;
    struct handshakes *handshakes; /* NULL: no TLS */
    struct listener *listeners;
    size_t n_listeners;
};

static void give_grpc(void *ctx, int fd)
{
    struct front *f = ctx;

    rpc_add_fd(f->rpc, fd);
}

static void give_http(void *ctx, int fd, const struct sockaddr *addr, socklen_t len)
{
    struct front *f = ctx;

    http_add(f->http, fd, addr, len);
}

static void cut(void *ctx)
{
    struct front *f = ctx;

    pump_cut(f->pump);
}

static int open_listeners(struct front *f, const struct url_list *urls, const struct url **ret_bad)
{
    int err = listeners_open(urls, &f->listeners, &f->n_listeners, ret_bad);

    for (size_t i = 0; i < f->n_listeners && err == 0; i++) {
        err = pump_listen(f->pump, &f->listeners[i]);
        if (err)
            *ret_bad = f->listeners[i].url;
    }
    return err;
}

int front_new(const struct front_options *o, struct front **ret_front, const struct url **ret_bad)
{
    struct front *f = calloc(1, sizeof *f);
    struct rpc_options rpc = o->rpc;
    struct pump_options pump = {
        .streams_max = rpc.max_concurrent_streams, .grpc = give_grpc, .http = give_http, .ctx = f, .tls = o->tls};
    int err = 0;

    *ret_bad = NULL;
    if (f == NULL)
        return -ENOMEM;
    rpc.cut = cut;
    rpc.cut_ctx = f;
    if (o->tls)
        err = handshakes_new(&f->handshakes);
    pump.handshakes = f->handshakes;
    if (err == 0)
        err = pump_new(&pump, &f->pump);
    if (err == 0)
        err = open_listeners(f, o->listen, ret_bad);
    if (err == 0)
        err = http_new(&o->http, &f->http);
    if (err == 0)
        err = rpc_new(&rpc, &f->rpc);
    if (err) {
        front_free(f);
        return err;
    }
    *ret_front = f;
    return 0;
}

int front_start(struct front *f)
{
    int err = rpc_start(f->rpc);

    if (err == 0)
        err = http_start(f->http);
    if (err == 0 && f->handshakes)
        err = handshakes_start(f->handshakes);
    if (err == 0)
        err = pump_start(f->pump);
    return err;
}

void front_stop(struct front *f)
{
    pump_stop_accepting(f->pump);
    for (size_t i = 0; i < f->n_listeners; i++)
        listener_close(&f->listeners[i]);
    f->n_listeners = 0;
    handshakes_stop(f->handshakes);
    rpc_stop(f->rpc);
    pump_stop(f->pump);
    http_stop(f->http);
}

void front_free(struct front *f)
{
    if (f == NULL)
        return;
    if (f->rpc)
        front_stop(f);
    for (size_t i = 0; i < f->n_listeners; i++)
        listener_close(&f->listeners[i]);
    rpc_free(f->rpc);
    http_free(f->http);
    pump_free(f->pump);
    handshakes_free(f->handshakes);
    free(f->listeners);
    free(f);
}

struct rpc *front_rpc(struct front *f)
{
    return f->rpc;
}

const struct pump_stats *front_pump_stats(const struct front *f)
{
    return pump_stats(f->pump);
}
