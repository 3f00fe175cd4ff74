/* SPDX-License-Identifier: Apache-2.0 */
/* pump_relay.c - a connection whose bytes are only decrypted and encrypted on their way: HTTP/1.1 over TLS, and calls
 * that this member makes to another one.
 *
 * The end of one direction is told to the other side; when the inner side closes, the connection ends as any other.
 *
 * Owner:    the pump's thread.
 * Not here: the flows (pump_conn.c). Nothing is guarded: http has limits of its own, and calls out are ours.
 */
#include <errno.h>
#include <unistd.h>
#include "pump_impl.h"

enum { VISIT_BYTES = 256 << 10 };

bool relay_open(struct pump *p, struct conn *c, int grpc_fd)
{
    c->grpc = (struct end){.kind = END_GRPC, .fd = grpc_fd, .writable = true};
    if (conn_watch(p, &c->grpc)) {
        conn_close(p, c);
        return false;
    }
    c->up = (struct flow){.from = &c->client, .to = &c->grpc};
    c->down = (struct flow){.from = &c->grpc, .to = &c->client};
    if (c->client.tls)
        tls_read_ahead(c->client.tls);
    conn_list_move(c, &p->open);
    return true;
}

static void relay_flow(struct pump *p, struct conn *c, struct flow *f)
{
    size_t moved = 0;
    bool lost = false;

    while (!f->ended && flow_flush(f, &lost)) {
        ssize_t n;

        if (!f->from->readable)
            return;
        if (moved >= VISIT_BYTES) {
            conn_wants_more(p, c, true);
            return;
        }
        n = flow_get(p, f, sizeof p->buffer);
        if (n == 0)
            continue;
        if (n < 0) {
            f->ended = true;
            break;
        }
        moved += (size_t)n;
        p->load += (uint64_t)n;
        pump_count(f == &c->up ? &p->stats.client_bytes : &p->stats.server_bytes, (uint64_t)n);
        lost = !flow_put(f, p->buffer, (size_t)n);
        if (lost)
            break;
    }
    if (lost)
        conn_close(p, c);
    else if (f->ended && f == &c->down)
        conn_finish(p, c);
    else if (f->ended)
        (void)shutdown(c->grpc.fd, SHUT_WR); /* the inner side closes when it has answered */
}

void relay_move(struct pump *p, struct conn *c)
{
    relay_flow(p, c, &c->down);
    if (c->list == &p->open)
        relay_flow(p, c, &c->up);
    if (!c->grpc.writable)
        conn_watch_out(p, c, true);
}
