/* SPDX-License-Identifier: Apache-2.0 */
/* pump_conn.c - one connection of the pump: its two flows, the guard's part, and its end.
 *
 * A flow reads only when nothing is left over from before: what the other side does not take is kept, at most one
 * buffer, and its source waits. A visit moves at most VISIT_BYTES, so that a busy connection does not starve the rest.
 *
 * Owner:    the pump's thread.
 * Not here: where connections come from, and when they are visited (pump.c); those that are not gRPC's (pump_relay.c).
 */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <unistd.h>
#include "log.h"
#include "pump_impl.h"

enum {
    VISIT_BYTES = 256 << 10,
    CLOSE_MS = 250,                       /* for the client to read what we said before the socket goes */
    WALK_BYTES = 4096,                    /* read in one round from a connection that goes at a walk */
    UNWIND_STREAMS = 256,                 /* a client that leaves more open is unwound, */
    UNWIND_STEP = 16,                     /* so many each millisecond */
    CONN_COST_BYTES = 16 << 10,           /* what core has held for one, and for each of its streams */
    STREAM_COST_BYTES = 12 << 10,
    HELD_BYTES = LIMIT_PUMP_BUFFER_BYTES, /* a connection with less of unfinished messages is never held */
};

/* ---- lists, and the end of a connection ------------------------------------------- */

static void list_take(struct conn *c)
{
    if (c->list == NULL)
        return;
    *(c->prev ? &c->prev->next : &c->list->first) = c->next;
    *(c->next ? &c->next->prev : &c->list->last) = c->prev;
}

void conn_list_move(struct conn *c, struct conn_list *to)
{
    list_take(c);
    c->list = to;
    c->prev = to->last;
    c->next = NULL;
    *(to->last ? &to->last->next : &to->first) = c;
    to->last = c;
}

static void set_incomplete(struct pump *p, struct conn *c, size_t bytes)
{
    pump_count(&p->stats.incomplete_bytes, bytes - c->incomplete_bytes); /* modulo 2^64: may well be less */
    c->incomplete_bytes = bytes;
}

static void set_held(struct pump *p, struct conn *c, bool held)
{
    if (c->held == held)
        return;
    c->held = held;
    p->n_held += held ? 1 : -1u;
}

/* gRPC's side goes, and with it all that the connection holds but its row and its client's socket. */
static void conn_release(struct pump *p, struct conn *c)
{
    if (c->grpc.fd >= 0)
        (void)close(c->grpc.fd); /* a socketpair's end: nothing to report to anybody */
    c->grpc.fd = -1;
    free(c->up.left);
    free(c->down.left);
    c->up = c->down = (struct flow){.ended = true};
    set_incomplete(p, c, 0);
    set_held(p, c, false);
    if (c->guard)
        p->load += CONN_COST_BYTES + (uint64_t)guard_open_streams(c->guard) * STREAM_COST_BYTES;
    guard_free(c->guard);
    free(c->unwind_ids);
    c->guard = NULL;
    c->unwind_ids = NULL;
}

void conn_close(struct pump *p, struct conn *c)
{
    if (c->dead)
        return;
    conn_release(p, c);
    if (c->client.fd >= 0)
        (void)close(c->client.fd); /* the client has what it has */
    c->client.fd = -1;
    tls_free(c->client.tls);
    c->client.tls = NULL;
    c->dead = true;
    pump_count(&p->stats.open, -1ull);
    conn_list_move(c, &p->dead);
}

void conn_free(struct conn *c)
{
    assert(c->dead);
    list_take(c);
    free(c);
}

/* What was said to the client gets time to arrive: closing with unread bytes at once would reset the connection. */
void conn_finish(struct pump *p, struct conn *c)
{
    bool deaf;

    if (c->client.tls && !c->client.hung_up)
        tls_bye(c->client.tls);
    deaf = c->client.hung_up || shutdown(c->client.fd, SHUT_WR);

    if (c->between_frames && guard_open_streams(c->guard) > UNWIND_STREAMS &&
        guard_streams(c->guard, &c->unwind_ids, &c->n_unwind) == 0) {
        conn_list_move(c, &p->unwinding);
        return;
    }
    conn_release(p, c);
    if (deaf) {
        conn_close(p, c);
        return;
    }
    c->deadline_ms = p->now_ms + CLOSE_MS;
    conn_list_move(c, &p->closing);
}

/* hurry: now, else in a millisecond. */
void conn_wants_more(struct pump *p, struct conn *c, bool hurry)
{
    p->hurry |= hurry;
    if (c->in_ready || c->dead)
        return;
    c->in_ready = true;
    c->ready_next = p->ready;
    p->ready = c;
}

/* ---- writing ----------------------------------------------------------------------------- */

/* How many bytes the end took, 0 when it is full, -errno when it is gone. */
static ssize_t end_write(struct end *e, const uint8_t *b, size_t n)
{
    ssize_t done = e->tls ? tls_send(e->tls, b, n) : send(e->fd, b, n, MSG_NOSIGNAL);

    if (done >= 0) {
        if ((size_t)done < n)
            e->writable = false;
        return done;
    }
    if (errno == EAGAIN || errno == EINTR) {
        e->writable = errno == EINTR;
        return 0;
    }
    return -errno;
}

/* ---- the guard ------------------------------------------------------------------------ */

/* A GOAWAY frame, where one may stand. It must fit into the socket: nobody waits for this client. */
static void say_goaway(struct conn *c, enum guard_verdict v)
{
    enum { TEXT_MAX = 64 };
    const char *text = guard_text(v);
    uint32_t n = (uint32_t)strlen(text);
    uint8_t frame[9 + 8 + TEXT_MAX] = {0}; /* stream 0, no flags */

    if (c->down.left || !guard_at_boundary(c->guard) || n > TEXT_MAX)
        return;
    put_u16be(frame + 1, (uint16_t)(8 + n));
    frame[3] = 7; /* GOAWAY */
    put_u32be(frame + 9, guard_last_stream(c->guard));
    put_u32be(frame + 13, guard_code(v));
    memcpy(frame + 17, text, n);
    (void)end_write(&c->client, frame, 17 + n);
}

/* "address:port", or "unix". */
void client_name(int fd, char *name, size_t size)
{
    union {
        struct sockaddr any;
        struct sockaddr_storage storage;
    } addr;
    socklen_t len = sizeof addr;
    char host[64], port[8];

    if (getpeername(fd, &addr.any, &len) == 0 && addr.any.sa_family != AF_UNIX &&
        getnameinfo(&addr.any, len, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) == 0)
        snprintf(name, size, "%s:%s", host, port);
    else
        snprintf(name, size, "unix");
}

static void conn_refuse(struct pump *p, struct conn *c, enum guard_verdict v)
{
    char name[80];

    client_name(c->client.fd, name, sizeof name);
    log_warn("pump: connection closed", LOG_STR("reason", guard_text(v)), LOG_STR("client", name));
    pump_count(&p->stats.guarded[v], 1);
    say_goaway(c, v);
    conn_finish(p, c);
}

/* Of the connections that hold much unfinished, the one accepted first. */
static struct conn *oldest_incomplete(struct pump *p)
{
    struct conn *c = p->open.first;

    while (c && c->incomplete_bytes <= HELD_BYTES)
        c = c->next;
    return c;
}

static bool over_total(struct pump *p)
{
    return atomic_load_explicit(&p->stats.incomplete_bytes, memory_order_relaxed) > LIMIT_ALL_INCOMPLETE_BYTES;
}

/* Above the total only the oldest is read; small requests go on. */
static bool must_hold(struct pump *p, struct conn *c)
{
    bool held = over_total(p) && c->incomplete_bytes > HELD_BYTES && oldest_incomplete(p) != c;

    set_held(p, c, held);
    return held;
}

/* ---- moving bytes ------------------------------------------------------------------------ */

/* True when nothing is left over. *ret_lost: the other side is gone. */
bool flow_flush(struct flow *f, bool *ret_lost)
{
    while (f->left) {
        ssize_t n;

        if (!f->to->writable)
            return false;
        n = end_write(f->to, f->left + f->left_at, f->left_n);
        if (n < 0) {
            *ret_lost = true;
            return false;
        }
        f->left_at += (size_t)n;
        f->left_n -= (size_t)n;
        if (f->left_n == 0) {
            free(f->left);
            f->left = NULL;
        }
    }
    return true;
}

/* Hands n bytes on; keeps what is not taken. False: the other side is gone, or there is no memory. */
bool flow_put(struct flow *f, const uint8_t *b, size_t n)
{
    ssize_t done = f->to->writable ? end_write(f->to, b, n) : 0;

    if (done < 0)
        return false;
    if ((size_t)done == n)
        return true;
    f->left = malloc(n - (size_t)done);
    if (f->left == NULL)
        return false;
    f->left_at = 0;
    f->left_n = n - (size_t)done;
    memcpy(f->left, b + done, f->left_n);
    return true;
}

/* One read from f->from into the pump's buffer: > 0 bytes, 0 nothing now, -1 the end. */
ssize_t flow_get(struct pump *p, struct flow *f, size_t max)
{
    struct tls *tls = f->from->tls;
    ssize_t n = tls ? tls_recv(tls, p->buffer, max) : recv(f->from->fd, p->buffer, max, 0);

    if (n > 0) {
        if ((size_t)n < max && !f->from->hung_up && !(tls && tls_more(tls)))
            f->from->readable = false; /* drained: the next byte makes an edge */
        return n;
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        f->from->readable = errno == EINTR;
        return 0;
    }
    return -1;
}

/* The client will send no more, or gRPC takes no more: what gRPC still says goes on until it closes. */
static void up_ends(struct conn *c)
{
    free(c->up.left);
    c->up.left = NULL;
    c->up.ended = true;
    (void)shutdown(c->grpc.fd, SHUT_WR); /* gRPC closes, and that ends the connection */
}

/* Hands on what was read, as far as the guard lets it pass. A frame's head goes on only when it is whole: so gRPC can
 * be told of a reset between what it has got and what it will not get. */
static enum guard_verdict forward(struct pump *p, struct conn *c, size_t n, bool *ret_lost)
{
    const uint8_t *head;
    size_t n_head = guard_partial_head(c->guard, &head), before;
    uint8_t *from = p->buffer - n_head;
    enum guard_verdict v;

    memcpy(from, head, n_head);
    v = guard_client(c->guard, slice_of(p->buffer, n), p->now_ms);
    c->between_frames = guard_client_boundary(c->guard, &before);
    if (v && (!c->between_frames || before == 0))
        return v;
    if (v) {
        n = before;
    } else {
        size_t n_rest = guard_partial_head(c->guard, &head);

        c->between_frames &= n_rest || before == n;
        n -= n_rest; /* modulo 2^64: a head may take more than was read now */
    }
    n += n_head;
    set_incomplete(p, c, guard_incomplete_bytes(c->guard));
    *ret_lost = n && !flow_put(&c->up, from, n);
    return v;
}

/* A connection that opens streams and says nothing on them goes at a walk: a little each millisecond, so that what it
 * costs core comes between other clients' calls and not before them. */
static bool walks(const struct conn *c)
{
    return guard_mute_streams(c->guard) > LIMIT_MUTE_STREAMS;
}

static bool must_wait(struct pump *p, struct conn *c)
{
    if (!walks(c))
        return false;
    if (c->read_ms == p->now_ms) {
        conn_wants_more(p, c, false);
        return true;
    }
    return false;
}

static void move_up(struct pump *p, struct conn *c)
{
    size_t moved = 0;
    bool lost = false;

    while (!c->up.ended && flow_flush(&c->up, &lost)) {
        enum guard_verdict v;
        ssize_t n;

        if (!c->up.from->readable || must_hold(p, c))
            return;
        if (moved >= VISIT_BYTES) {
            conn_wants_more(p, c, true);
            return;
        }
        if (must_wait(p, c))
            return;
        n = flow_get(p, &c->up, walks(c) ? WALK_BYTES : sizeof p->buffer);
        if (n == 0)
            continue;
        if (n < 0)
            break;
        moved += (size_t)n;
        c->read_ms = p->now_ms;
        p->load += (uint64_t)n;
        pump_count(&p->stats.client_bytes, (uint64_t)n);
        v = forward(p, c, (size_t)n, &lost);
        if (v) {
            conn_refuse(p, c, v);
            return;
        }
        if (lost)
            break;
    }
    if (c->up.ended || (!lost && c->up.left))
        return;
    if (lost || !c->between_frames || guard_open_streams(c->guard) <= UNWIND_STREAMS)
        up_ends(c);
    else
        conn_finish(p, c); /* its client is gone, or has half-closed: either way nobody speaks for its streams */
}

static void move_down(struct pump *p, struct conn *c)
{
    size_t moved = 0;
    bool lost = false;

    while (flow_flush(&c->down, &lost)) {
        ssize_t n;

        if (!c->down.from->readable)
            return;
        if (moved >= VISIT_BYTES) {
            conn_wants_more(p, c, true);
            return;
        }
        n = flow_get(p, &c->down, sizeof p->buffer);
        if (n == 0)
            continue;
        if (n < 0) {
            conn_finish(p, c);
            return;
        }
        moved += (size_t)n;
        p->load += (uint64_t)n;
        pump_count(&p->stats.server_bytes, (uint64_t)n);
        guard_server(c->guard, slice_of(p->buffer, (size_t)n));
        if (!flow_put(&c->down, p->buffer, (size_t)n)) {
            conn_close(p, c);
            return;
        }
    }
    if (lost)
        conn_close(p, c);
}

void conn_move(struct pump *p, struct conn *c)
{
    if (c->list == &p->open && c->guard == NULL) {
        relay_move(p, c);
        return;
    }
    if (c->list == &p->open)
        move_down(p, c);
    if (c->list == &p->open)
        move_up(p, c);
    if (!c->grpc.writable)
        conn_watch_out(p, c, true);
}

/* What core has for the streams costs the more the more of them end at once, and all clients wait for it. So it is
 * told of each by a RST_STREAM, a few at a time; what it says is thrown away. Oldest first: so that neighbours in
 * malloc's heap go together, and leave room. */
void conn_unwind(struct pump *p, struct conn *c)
{
    enum { RST_BYTES = 13 };
    size_t n = 0;
    bool lost = false;

    free(c->down.left);
    c->down.left = NULL;
    while (c->grpc.readable && flow_get(p, &c->down, sizeof p->buffer) > 0)
        ;
    if (!flow_flush(&c->up, &lost) && !lost)
        return;
    for (int i = 0; i < UNWIND_STEP && c->unwind_at < c->n_unwind; i++, n += RST_BYTES) {
        uint8_t *frame = p->buffer + n;

        put_u32be(frame, 4u << 8 | 3); /* length 4, RST_STREAM */
        frame[4] = 0;
        put_u32be(frame + 5, c->unwind_ids[c->unwind_at++]);
        put_u32be(frame + 9, 8); /* CANCEL */
    }
    if (n == 0 || lost || !flow_put(&c->up, p->buffer, n))
        conn_close(p, c);
    else if (!c->grpc.writable)
        conn_watch_out(p, c, true);
}

void conn_check_stall(struct pump *p)
{
    struct conn *c = over_total(p) ? oldest_incomplete(p) : NULL;

    if (c && p->now_ms - c->read_ms > LIMIT_STALL_MS)
        conn_refuse(p, c, GUARD_INCOMPLETE);
}
