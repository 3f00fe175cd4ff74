/* SPDX-License-Identifier: Apache-2.0 */
/* pump.c - accepts, sniffs, and visits connections when there is something to move.
 *
 *      accepted --sniff--> open --end of either side, or the guard objects--> closing --250 ms--> closed
 *               ^  | \----> http's, no longer ours (over TLS: open, relayed)
 *               +--+ TLS: shakes hands
 *
 * Edge-triggered epoll: each descriptor is registered once; what is ready is remembered in struct end. All reading goes
 * through one buffer; a connection owns memory for bytes only while the other side does not take them.
 *
 * Owner:    the pump's thread; other threads set flags and wake it.
 * Not here: moving bytes (pump_conn.c, pump_relay.c), TLS's handshake (pump_tls.c), what is allowed (guard.c), which
 *           protocol it is (sniff.c).
 */
#include <errno.h>
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include "pump_impl.h"
#include "sniff.h"

enum {
    EVENTS = 256,
    ACCEPTS = 64,                /* of a listener in one round */
    ACCEPT_PAUSE_MS = 100,       /* no descriptors left: wait for some to be closed */
    RESERVED_FDS = 256,          /* for everything else in the process */
    FDS_A_CONNECTION = 3,
    KEEPALIVE_S = 30,
    USER_TIMEOUT_MS = 20000,
    TRIM_AFTER_BYTES = 16 << 20, /* of load; then, once a second has seen less than: */
    TRIM_QUIET_BYTES = 1 << 20,
    TRIM_CHECK_MS = 1000,
};

static struct conn *conn_of(struct end *e)
{
    return (struct conn *)((char *)e -
                           (e->kind == END_CLIENT ? offsetof(struct conn, client) : offsetof(struct conn, grpc)));
}

static uint64_t clock_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* ---- new connections ----------------------------------------------------------------------- */

static int watch(struct pump *p, struct end *e, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.ptr = e};

    return epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, e->fd, &ev) ? -errno : 0;
}

enum { EDGES = EPOLLIN | EPOLLRDHUP | EPOLLET };

void conn_watch_out(struct pump *p, struct conn *c, bool blocked)
{
    struct epoll_event ev = {.events = EDGES | (blocked ? EPOLLOUT : 0u), .data.ptr = &c->grpc};

    if (c->grpc.fd < 0 || c->grpc.blocked == blocked)
        return;
    c->grpc.blocked = blocked;
    (void)epoll_ctl(p->epoll_fd, EPOLL_CTL_MOD, c->grpc.fd, &ev); /* it is registered: cannot fail */
}

int conn_watch(struct pump *p, struct end *e)
{
    return watch(p, e, EDGES);
}

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
    if (c->client.tls)
        tls_read_ahead(c->client.tls);
    conn_list_move(c, &p->open);
    p->options.grpc(p->options.ctx, fd[1]);
}

/* Over TLS: http gets one end of a socketpair, and we move its bytes. */
static void to_http_relayed(struct pump *p, struct conn *c, const struct sockaddr *addr, socklen_t len)
{
    int fd[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd)) {
        conn_close(p, c);
        return;
    }
    if (!relay_open(p, c, fd[0])) {
        (void)close(fd[1]); /* nothing was said */
        return;
    }
    p->options.http(p->options.ctx, fd[1], addr, len);
    conn_move(p, c);
}

/* Over TLS: with its connection. */
static void to_stream(struct pump *p, struct conn *c)
{
    struct tls *tls = c->client.tls;
    int fd = c->client.fd;

    (void)epoll_ctl(p->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    c->client.tls = NULL;
    c->client.fd = -1;
    conn_close(p, c);
    p->options.stream(p->options.ctx, fd, tls);
}

static void to_http(struct pump *p, struct conn *c)
{
    union {
        struct sockaddr any;
        struct sockaddr_storage storage;
    } addr = {.any.sa_family = AF_UNIX};
    socklen_t len = sizeof addr;
    int fd = c->client.fd;

    if (c->client.tls && p->options.stream) {
        to_stream(p, c);
        return;
    }
    if (p->options.http == NULL || getpeername(fd, &addr.any, &len)) {
        conn_close(p, c);
        return;
    }
    if (c->client.tls) {
        to_http_relayed(p, c, &addr.any, len);
        return;
    }
    (void)epoll_ctl(p->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    c->client.fd = -1;
    conn_close(p, c);
    p->options.http(p->options.ctx, fd, &addr.any, len);
}

/* Looks without taking, so that http gets the socket untouched and gRPC's bytes go the one way. */
void conn_sniff(struct pump *p, struct conn *c)
{
    uint8_t b[SNIFF_BYTES];
    ssize_t n = c->client.tls ? tls_peek(c->client.tls, b, sizeof b) : recv(c->client.fd, b, sizeof b, MSG_PEEK);
    enum sniff kind;

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    kind = n > 0 ? sniff(slice_of(b, (size_t)n)) : SNIFF_BAD;
    if (c->client.tls ? kind == SNIFF_TLS : kind == SNIFF_TLS ? !c->client.may_tls : !c->client.may_plain)
        kind = SNIFF_BAD; /* an http:// listener has no certificate to show, an https:// one only listens to that */
    switch (kind) {
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
    case SNIFF_TLS:
        shake_begin(p, c);
        break;
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

struct conn *conn_new(struct pump *p, int fd, struct tls *tls)
{
    struct conn *c = calloc(1, sizeof *c);

    if (c == NULL) {
        (void)close(fd);
        tls_free(tls);
        return NULL;
    }
    c->client = (struct end){.kind = END_CLIENT, .fd = fd, .writable = true, .tls = tls};
    c->grpc = (struct end){.kind = END_GRPC, .fd = -1};
    c->up = c->down = (struct flow){.ended = true};
    c->deadline_ms = p->now_ms + LIMIT_SNIFF_MS;
    pump_count(&p->stats.open, 1);
    conn_list_move(c, &p->sniffing);
    if (watch(p, &c->client, EDGES | EPOLLOUT)) {
        conn_close(p, c);
        return NULL;
    }
    return c;
}

static void conn_accepted(struct pump *p, int fd, const struct end *listener)
{
    struct conn *c;

    set_options(fd);
    pump_count(&p->stats.accepted, 1);
    c = conn_new(p, fd, NULL);
    if (c) {
        c->client.may_plain = listener->may_plain;
        c->client.may_tls = listener->may_tls && p->options.tls;
    }
}

static bool has_room(const struct pump *p)
{
    return p->stats.open + p->n_shaking < p->conns_max;
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
    if (!has_room(p)) {
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
        int fd = has_room(p) ? accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC) : (errno = EMFILE, -1);

        if (fd >= 0) {
            conn_accepted(p, fd, listener);
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
    if (e->writable && e->blocked)
        conn_watch_out(p, c, false);
    if (c->list == &p->sniffing)
        conn_sniff(p, c);
    else if (c->list == &p->closing && e->hung_up)
        conn_close(p, c);
    else if (c->list == &p->open)
        conn_move(p, c);
}

/* The next few streams of each client that left many. */
static void unwind(struct pump *p)
{
    struct conn *c, *next;

    if (p->unwound_ms == p->now_ms)
        return;
    p->unwound_ms = p->now_ms;
    for (c = p->unwinding.first; c; c = next) {
        next = c->next;
        conn_unwind(p, c);
    }
}

static void check_deadlines(struct pump *p)
{
    while (p->sniffing.first && p->sniffing.first->deadline_ms <= p->now_ms) {
        pump_count(&p->stats.sniffed_late, 1);
        conn_close(p, p->sniffing.first);
    }
    while (p->closing.first && p->closing.first->deadline_ms <= p->now_ms)
        conn_close(p, p->closing.first);
    conn_check_stall(p);
}

/* Connections that were held because of the total, or had more than one visit's bytes. */
static void visit_again(struct pump *p)
{
    struct conn *c = p->ready, *next;

    p->ready = NULL;
    p->hurry = false;
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

static bool trim_due(const struct pump *p)
{
    return p->load - p->load_trimmed > TRIM_AFTER_BYTES;
}

/* After a flood malloc keeps a hundred megabytes in small pieces: a quiet second gives them back. */
static void trim(struct pump *p)
{
    bool quiet = p->load - p->load_checked < TRIM_QUIET_BYTES;

    if (!trim_due(p) || p->now_ms - p->trim_check_ms < TRIM_CHECK_MS)
        return;
    p->trim_check_ms = p->now_ms;
    p->load_checked = p->load;
    if (!quiet)
        return;
    (void)malloc_trim(0); /* 1: something went back */
    p->load_trimmed = p->load;
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
        while (p->unwinding.first)
            conn_close(p, p->unwinding.first);
        while (p->closing.first)
            conn_close(p, p->closing.first);
    }
}

/* Rows that nothing names any more. */
static void bury(struct pump *p)
{
    struct conn *c, *next;

    for (c = p->dead.first; c; c = next) {
        next = c->next;
        if (!c->in_ready)
            conn_free(c);
    }
}

static int wait_ms(struct pump *p)
{
    uint64_t until = UINT64_MAX;

    if (p->ready || p->unwinding.first)
        return p->hurry ? 0 : 1;
    if (p->sniffing.first)
        until = p->sniffing.first->deadline_ms;
    if (p->closing.first && p->closing.first->deadline_ms < until)
        until = p->closing.first->deadline_ms;
    if (p->accepting && p->paused_until_ms && p->paused_until_ms < until)
        until = p->paused_until_ms;
    if (p->n_held && p->now_ms + ACCEPT_PAUSE_MS < until)
        until = p->now_ms + ACCEPT_PAUSE_MS;
    if (trim_due(p) && p->trim_check_ms + TRIM_CHECK_MS < until)
        until = p->trim_check_ms + TRIM_CHECK_MS;
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
        arrivals_take(p);
        visit_again(p);
        unwind(p);
        check_deadlines(p);
        accept_resume(p);
        trim(p);
        obey(p);
        bury(p);
    }
    arrivals_take(p);
    obey(p);
    visit_again(p); /* all are closed: only empties the list */
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
    mailbox_init(&p->arrivals, p->wake.fd);
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
    arrivals_drop(p);
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
    if (p->n_listeners == PUMP_LISTENERS_MAX)
        return -E2BIG;
    *e = (struct end){.kind = END_LISTENER, .fd = l->fd, .may_plain = l->plain, .may_tls = l->tls};
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
