/* SPDX-License-Identifier: Apache-2.0 */
/* pump.c - accepts, sniffs, and moves bytes between clients and gRPC core, through the guard.
 *
 *      accepted --sniff--> open --end of either side, or the guard objects--> closing --250 ms--> closed
 *                   \----> http's, no longer ours
 *
 * Edge-triggered epoll: each descriptor is registered once; what is ready is remembered in struct end. All reading goes
 * through one buffer; a connection owns memory for bytes only while the other side does not take them, and is not
 * read meanwhile. A visit moves at most VISIT_BYTES, so that a busy connection does not starve the rest.
 *
 * Owner:    the pump's thread; other threads set flags and wake it.
 * Not here: what is allowed (guard.c), which protocol it is (sniff.c), TLS: it would sit between a client's
 *           descriptor and its flows, in client_read and client_write.
 */
#include "pump.h"
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include "limits.h"
#include "log.h"
#include "seam.h"
#include "sniff.h"

enum {
    LISTENERS_MAX = 16,
    EVENTS = 256,
    ACCEPTS = 64,                /* of a listener in one round */
    VISIT_BYTES = 256 << 10,
    CLOSE_MS = 250,              /* for the client to read what we said before the socket goes */
    ACCEPT_PAUSE_MS = 100,       /* no descriptors left: wait for some to be closed */
    RESERVED_FDS = 256,          /* for everything else in the process */
    FDS_A_CONNECTION = 3,
    HELD_BYTES = LIMIT_PUMP_BUFFER_BYTES, /* a connection with less of unfinished messages is never held */
    KEEPALIVE_S = 30,
    USER_TIMEOUT_MS = 20000,
};

struct end {
    enum { END_WAKE, END_LISTENER, END_CLIENT, END_GRPC } kind;
    int fd;
    bool readable, writable, hung_up;
};

/* One direction. */
struct flow {
    struct end *from, *to;
    uint8_t *left; /* what `to` did not take; NULL: none */
    size_t left_at, left_n;
    bool ended; /* nothing more comes, or nothing more is wanted */
};

struct conn {
    struct conn *prev, *next;
    struct conn_list *list;
    struct conn *ready_next;
    bool in_ready, held, dead;
    struct end client, grpc;
    struct flow up, down; /* client to gRPC, gRPC to client */
    struct guard *guard;
    size_t incomplete_bytes; /* its part of stats.incomplete_bytes */
    uint64_t deadline_ms;    /* while sniffing or closing */
    uint64_t read_ms;        /* when its client last sent something */
};

struct conn_list {
    struct conn *first, *last; /* oldest first */
};

struct pump {
    struct pump_options options;
    int epoll_fd;
    struct end wake, listeners[LISTENERS_MAX];
    unsigned n_listeners;
    uint64_t conns_max;
    pthread_t thread;
    bool started;
    uint64_t now_ms;
    uint64_t paused_until_ms; /* accepting; 0: not paused */
    bool accepting;
    unsigned n_held;
    struct conn_list sniffing, open, closing, dead;
    struct conn *ready; /* more to do without waiting */
    _Atomic bool want_stop, want_cut, want_no_accept;
    sem_t accept_stopped;
    struct pump_stats stats;
    uint8_t buffer[LIMIT_PUMP_BUFFER_BYTES];
};

static struct conn *conn_of(struct end *e)
{
    return (struct conn *)((char *)e - (e->kind == END_CLIENT ? offsetof(struct conn, client) : offsetof(struct conn, grpc)));
}

static uint64_t clock_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void count(_Atomic uint64_t *n, uint64_t add)
{
    atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + add, memory_order_relaxed);
}

/* ---- lists, and the end of a connection ------------------------------------------- */

static void list_move(struct conn *c, struct conn_list *to)
{
    struct conn_list *from = c->list;

    if (from) {
        *(c->prev ? &c->prev->next : &from->first) = c->next;
        *(c->next ? &c->next->prev : &from->last) = c->prev;
    }
    c->list = to;
    c->prev = to->last;
    c->next = NULL;
    *(to->last ? &to->last->next : &to->first) = c;
    to->last = c;
}

static void set_incomplete(struct pump *p, struct conn *c, size_t bytes)
{
    count(&p->stats.incomplete_bytes, bytes - c->incomplete_bytes); /* modulo 2^64: may well be less */
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
    guard_free(c->guard);
    c->guard = NULL;
}

/* The row stays until the round is over: events of this round may still name it. */
static void conn_close(struct pump *p, struct conn *c)
{
    if (c->dead)
        return;
    conn_release(p, c);
    if (c->client.fd >= 0)
        (void)close(c->client.fd); /* the client has what it has */
    c->client.fd = -1;
    c->dead = true;
    count(&p->stats.open, -1ull);
    list_move(c, &p->dead);
}

/* What was said to the client gets time to arrive: closing with unread bytes at once would reset the connection. */
static void conn_finish(struct pump *p, struct conn *c)
{
    conn_release(p, c);
    if (c->client.hung_up || shutdown(c->client.fd, SHUT_WR)) {
        conn_close(p, c);
        return;
    }
    c->deadline_ms = p->now_ms + CLOSE_MS;
    list_move(c, &p->closing);
}

static void conn_wants_more(struct pump *p, struct conn *c)
{
    if (c->in_ready || c->dead)
        return;
    c->in_ready = true;
    c->ready_next = p->ready;
    p->ready = c;
}

/* ---- the guard ------------------------------------------------------------------------ */

/* A GOAWAY frame, if one may stand here; it must fit into the socket, nobody waits for this client. */
static void say_goaway(struct conn *c, enum guard_verdict v)
{
    const char *text = guard_text(v);
    uint32_t n = (uint32_t)strlen(text);
    uint8_t frame[9 + 8 + 64];

    if (c->down.left || !guard_at_boundary(c->guard) || n > 64)
        return;
    put_u32be(frame, (8 + n) << 8);
    frame[3] = 7; /* GOAWAY */
    put_u16be(frame + 4, 0);
    frame[4] = 0;
    put_u32be(frame + 5, 0);
    put_u32be(frame + 9, guard_last_stream(c->guard));
    put_u32be(frame + 13, guard_code(v));
    memcpy(frame + 17, text, n);
    (void)!send(c->client.fd, frame, 17 + n, MSG_NOSIGNAL);
}

static void conn_refuse(struct pump *p, struct conn *c, enum guard_verdict v)
{
    char peer[64] = "unix";
    struct sockaddr_in6 addr;
    socklen_t len = sizeof addr;

    if (getpeername(c->client.fd, (struct sockaddr *)&addr, &len) == 0 && len >= sizeof(struct sockaddr_in))
        snprintf(peer, sizeof peer, "port %u", ntohs(addr.sin6_port)); /* same place in IPv4 and IPv6 */
    log_warn("pump: connection closed", LOG_STR("reason", guard_text(v)), LOG_STR("client", peer));
    count(&p->stats.guarded[v], 1);
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

/* How many bytes the end took, 0 when it is full, -errno when it is gone. */
static ssize_t end_write(struct end *e, const uint8_t *b, size_t n)
{
    ssize_t done = send(e->fd, b, n, MSG_NOSIGNAL);

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

/* True when nothing is left over. *ret_lost: the other side is gone. */
static bool flow_flush(struct flow *f, bool *ret_lost)
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
static bool flow_put(struct flow *f, const uint8_t *b, size_t n)
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
static ssize_t flow_get(struct pump *p, struct flow *f)
{
    ssize_t n = recv(f->from->fd, p->buffer, sizeof p->buffer, 0);

    if (n > 0) {
        if ((size_t)n < sizeof p->buffer && !f->from->hung_up)
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
            conn_wants_more(p, c);
            return;
        }
        n = flow_get(p, &c->up);
        if (n == 0)
            continue;
        if (n < 0)
            break;
        moved += (size_t)n;
        c->read_ms = p->now_ms;
        count(&p->stats.client_bytes, (uint64_t)n);
        v = guard_client(c->guard, slice_of(p->buffer, (size_t)n), p->now_ms);
        if (v) {
            conn_refuse(p, c, v);
            return;
        }
        set_incomplete(p, c, guard_incomplete_bytes(c->guard));
        if (!flow_put(&c->up, p->buffer, (size_t)n))
            break;
    }
    if (!c->up.ended && (lost || c->up.left == NULL))
        up_ends(c);
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
            conn_wants_more(p, c);
            return;
        }
        n = flow_get(p, &c->down);
        if (n == 0)
            continue;
        if (n < 0) {
            conn_finish(p, c);
            return;
        }
        moved += (size_t)n;
        count(&p->stats.server_bytes, (uint64_t)n);
        guard_server(c->guard, slice_of(p->buffer, (size_t)n));
        if (!flow_put(&c->down, p->buffer, (size_t)n)) {
            conn_close(p, c);
            return;
        }
    }
    if (lost)
        conn_close(p, c);
}

static void conn_move(struct pump *p, struct conn *c)
{
    if (c->list == &p->open)
        move_down(p, c);
    if (c->list == &p->open)
        move_up(p, c);
}

/* ---- new connections ----------------------------------------------------------------------- */

static int watch(struct pump *p, struct end *e, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.ptr = e};

    return epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, e->fd, &ev) ? -errno : 0;
}

enum { EDGES = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET };

static void to_grpc(struct pump *p, struct conn *c)
{
    int fd[2] = {-1, -1};

    c->guard = guard_new(p->options.streams_max);
    if (c->guard == NULL || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd)) {
        conn_close(p, c);
        return;
    }
    c->grpc = (struct end){.kind = END_GRPC, .fd = fd[0], .writable = true};
    if (watch(p, &c->grpc, EDGES)) {
        (void)close(fd[1]);
        conn_close(p, c);
        return;
    }
    c->up = (struct flow){.from = &c->client, .to = &c->grpc};
    c->down = (struct flow){.from = &c->grpc, .to = &c->client};
    c->read_ms = p->now_ms;
    list_move(c, &p->open);
    p->options.grpc(p->options.ctx, fd[1]);
}

static void to_http(struct pump *p, struct conn *c)
{
    union {
        struct sockaddr any;
        struct sockaddr_storage storage;
    } addr = {.any.sa_family = AF_UNIX};
    socklen_t len = sizeof addr;
    int fd = c->client.fd;

    (void)epoll_ctl(p->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    if (p->options.http == NULL || getpeername(fd, &addr.any, &len)) {
        conn_close(p, c);
        return;
    }
    c->client.fd = -1;
    conn_close(p, c);
    p->options.http(p->options.ctx, fd, &addr.any, len);
}

/* Looks without taking, so that http gets the socket untouched and gRPC's bytes go the one way. */
static void conn_sniff(struct pump *p, struct conn *c)
{
    uint8_t b[SNIFF_BYTES];
    ssize_t n = recv(c->client.fd, b, sizeof b, MSG_PEEK);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    switch (n > 0 ? sniff(slice_of(b, (size_t)n)) : SNIFF_BAD) {
    case SNIFF_GRPC:
        to_grpc(p, c);
        if (!c->dead)
            conn_move(p, c);
        break;
    case SNIFF_HTTP:
        to_http(p, c);
        break;
    case SNIFF_MORE:
        if (c->client.hung_up)
            conn_close(p, c);
        break;
    case SNIFF_TLS: /* an http:// or unix:// listener has no certificate to show */
    case SNIFF_BAD:
        conn_close(p, c);
        break;
    }
}

static void set_options(int fd)
{
    int on = 1, idle = KEEPALIVE_S, user_ms = USER_TIMEOUT_MS;

    /* A unix socket knows none of these, and needs none. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &idle, sizeof idle);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_ms, sizeof user_ms);
}

static void conn_accepted(struct pump *p, int fd)
{
    struct conn *c = calloc(1, sizeof *c);

    if (c == NULL) {
        (void)close(fd);
        return;
    }
    set_options(fd);
    c->client = (struct end){.kind = END_CLIENT, .fd = fd, .writable = true};
    c->grpc = (struct end){.kind = END_GRPC, .fd = -1};
    c->up = c->down = (struct flow){.ended = true};
    c->deadline_ms = p->now_ms + LIMIT_SNIFF_MS;
    count(&p->stats.accepted, 1);
    count(&p->stats.open, 1);
    list_move(c, &p->sniffing);
    if (watch(p, &c->client, EDGES))
        conn_close(p, c);
}

static void accept_pause(struct pump *p)
{
    for (unsigned i = 0; i < p->n_listeners && !p->paused_until_ms; i++)
        (void)epoll_ctl(p->epoll_fd, EPOLL_CTL_DEL, p->listeners[i].fd, NULL);
    p->paused_until_ms = p->now_ms + ACCEPT_PAUSE_MS;
}

static void accept_resume(struct pump *p)
{
    if (!p->accepting || !p->paused_until_ms || p->now_ms < p->paused_until_ms)
        return;
    if (p->stats.open >= p->conns_max) {
        p->paused_until_ms = p->now_ms + ACCEPT_PAUSE_MS;
        return;
    }
    p->paused_until_ms = 0;
    for (unsigned i = 0; i < p->n_listeners; i++)
        (void)watch(p, &p->listeners[i], EPOLLIN); /* was registered before: cannot fail for want of memory twice */
}

static void accept_some(struct pump *p, struct end *listener)
{
    for (int i = 0; i < ACCEPTS && p->accepting && !p->paused_until_ms; i++) {
        int fd = p->stats.open < p->conns_max ? accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
                                              : (errno = EMFILE, -1);

        if (fd >= 0) {
            conn_accepted(p, fd);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
            accept_pause(p);
        if (errno != EINTR && errno != ECONNABORTED)
            return;
    }
}

/* ---- the thread -------------------------------------------------------------------------------- */

static void on_event(struct pump *p, struct end *e, uint32_t events)
{
    struct conn *c;
    uint64_t n;

    if (e->kind == END_WAKE) {
        (void)!read(e->fd, &n, sizeof n);
        return;
    }
    if (e->kind == END_LISTENER) {
        accept_some(p, e);
        return;
    }
    c = conn_of(e);
    if (c->dead)
        return;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        e->readable = true;
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
        e->writable = true;
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        e->hung_up = true;
    if (c->list == &p->sniffing)
        conn_sniff(p, c);
    else if (c->list == &p->closing && e->hung_up)
        conn_close(p, c);
    else
        conn_move(p, c);
}

static void check_deadlines(struct pump *p)
{
    while (p->sniffing.first && p->sniffing.first->deadline_ms <= p->now_ms) {
        count(&p->stats.sniffed_late, 1);
        conn_close(p, p->sniffing.first);
    }
    while (p->closing.first && p->closing.first->deadline_ms <= p->now_ms)
        conn_close(p, p->closing.first);
    if (over_total(p)) {
        struct conn *c = oldest_incomplete(p);

        if (c && p->now_ms - c->read_ms > LIMIT_STALL_MS)
            conn_refuse(p, c, GUARD_INCOMPLETE);
    }
}

/* Connections that were held because of the total, or had more than one visit's bytes. */
static void visit_again(struct pump *p)
{
    struct conn *c = p->ready, *next;

    p->ready = NULL;
    for (; c; c = next) {
        next = c->ready_next;
        c->in_ready = false;
        conn_move(p, c); /* does nothing with one that has closed meanwhile */
    }
    if (p->n_held == 0)
        return;
    for (c = p->open.first; c; c = next) {
        next = c->next;
        if (c->held)
            conn_move(p, c);
    }
}

static void obey(struct pump *p)
{
    if (p->accepting && atomic_load(&p->want_no_accept)) {
        for (unsigned i = 0; i < p->n_listeners && !p->paused_until_ms; i++)
            (void)epoll_ctl(p->epoll_fd, EPOLL_CTL_DEL, p->listeners[i].fd, NULL);
        p->accepting = false;
        sem_post(&p->accept_stopped);
    }
    if (atomic_load(&p->want_cut) || atomic_load(&p->want_stop)) {
        while (p->sniffing.first)
            conn_close(p, p->sniffing.first);
        while (p->open.first)
            conn_close(p, p->open.first);
        while (p->closing.first)
            conn_close(p, p->closing.first);
    }
}

static void bury(struct pump *p)
{
    struct conn *c, *next;

    for (c = p->dead.first; c; c = next) {
        next = c->next;
        if (!c->in_ready)
            continue;
        /* Still named by the ready list: it goes with the next round. */
        return;
    }
    for (c = p->dead.first; c; c = next) {
        next = c->next;
        free(c);
    }
    p->dead = (struct conn_list){0};
}

static int wait_ms(struct pump *p)
{
    uint64_t until = UINT64_MAX;

    if (p->ready)
        return 0;
    if (p->sniffing.first)
        until = p->sniffing.first->deadline_ms;
    if (p->closing.first && p->closing.first->deadline_ms < until)
        until = p->closing.first->deadline_ms;
    if (p->accepting && p->paused_until_ms && p->paused_until_ms < until)
        until = p->paused_until_ms;
    if (p->n_held && p->now_ms + ACCEPT_PAUSE_MS < until)
        until = p->now_ms + ACCEPT_PAUSE_MS;
    if (until == UINT64_MAX)
        return -1;
    return until <= p->now_ms ? 0 : (int)(until - p->now_ms) + 1;
}

static void *pump_main(void *arg)
{
    struct pump *p = arg;
    struct epoll_event events[EVENTS];

    while (!atomic_load(&p->want_stop)) {
        int n = epoll_wait(p->epoll_fd, events, EVENTS, wait_ms(p));

        p->now_ms = clock_ms();
        for (int i = 0; i < n; i++)
            on_event(p, events[i].data.ptr, events[i].events);
        visit_again(p);
        check_deadlines(p);
        accept_resume(p);
        obey(p);
        bury(p);
    }
    obey(p);
    p->ready = NULL;
    for (struct conn *c = p->dead.first; c; c = c->next)
        c->in_ready = false;
    bury(p);
    return NULL;
}

/* ---- the outside ---------------------------------------------------------------------------------- */

static void pump_wake(struct pump *p)
{
    uint64_t one = 1;

    (void)!write(p->wake.fd, &one, sizeof one); /* full: it is awake already */
}

int pump_new(const struct pump_options *o, struct pump **ret_pump)
{
    struct pump *p = calloc(1, sizeof *p);
    uint64_t fds = listen_raise_limit();
    int err;

    if (p == NULL)
        return -ENOMEM;
    p->options = *o;
    if (p->options.streams_max == 0 || p->options.streams_max > INT32_MAX)
        p->options.streams_max = LIMIT_OPEN_STREAMS;
    p->conns_max = fds > RESERVED_FDS + FDS_A_CONNECTION ? (fds - RESERVED_FDS) / FDS_A_CONNECTION : 1;
    sem_init(&p->accept_stopped, 0, 0);
    p->wake = (struct end){.kind = END_WAKE, .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    p->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    err = p->wake.fd < 0 || p->epoll_fd < 0 ? -errno : watch(p, &p->wake, EPOLLIN);
    if (err) {
        pump_free(p);
        return err;
    }
    *ret_pump = p;
    return 0;
}

void pump_free(struct pump *p)
{
    if (p == NULL)
        return;
    if (p->epoll_fd >= 0)
        (void)close(p->epoll_fd);
    if (p->wake.fd >= 0)
        (void)close(p->wake.fd);
    sem_destroy(&p->accept_stopped);
    free(p);
}

int pump_listen(struct pump *p, const struct listener *l)
{
    struct end *e = &p->listeners[p->n_listeners];
    int err;

    assert(!p->started);
    if (p->n_listeners == LISTENERS_MAX)
        return -E2BIG;
    *e = (struct end){.kind = END_LISTENER, .fd = l->fd};
    err = watch(p, e, EPOLLIN);
    if (err == 0)
        p->n_listeners++;
    return err;
}

int pump_start(struct pump *p)
{
    int err;

    p->now_ms = clock_ms();
    p->accepting = true;
    err = thread_start(&p->thread, "pump", pump_main, p);
    p->started = err == 0;
    return err;
}

void pump_stop_accepting(struct pump *p)
{
    if (!p->started || atomic_exchange(&p->want_no_accept, true))
        return;
    pump_wake(p);
    while (sem_wait(&p->accept_stopped))
        ;
}

void pump_cut(struct pump *p)
{
    atomic_store(&p->want_cut, true);
    pump_wake(p);
}

void pump_stop(struct pump *p)
{
    if (!p->started)
        return;
    pump_stop_accepting(p);
    atomic_store(&p->want_stop, true);
    pump_wake(p);
    pthread_join(p->thread, NULL);
    p->started = false;
}

const struct pump_stats *pump_stats(const struct pump *p)
{
    return &p->stats;
}
