/* SPDX-License-Identifier: Apache-2.0 */
/* dial.c - one thread connects, another asks for names; what they share is under one lock.
 *
 * protected by dialer->mu: every dial. A mailbox would not do: asking, names that arrive and giving up meet in the same
 * few rows, a handful of times a second at most.
 *
 * Names that were once known are used again while they are asked for anew, so a dead name server stops nobody from
 * coming back. A numeric address is never asked for.
 *
 * Owner:    the dialer's threads.
 * Not here: when to try again, what is said on a connection (peers_link.c, rpc_ask.c).
 */
#include "dial.h"
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/un.h>
#include <unistd.h>
#include "limits.h"
#include "seam.h"

enum {
    ADDRESSES_MAX = 8,    /* of one name; further ones are not tried */
    NAMES_AGAIN_MS = 5000,
    USER_TIMEOUT_MS = 1500, /* bytes nobody acknowledges: after a partition a new connection is faster than a retry */
    KEEPALIVE_S = 1,      /* between members that have nothing to say: a vote must not find a dead connection */
    NOTSENT_BYTES = 128 << 10, /* in the kernel, not yet on the wire: what is urgent waits behind no more */
};

struct address {
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        struct sockaddr_un un;
    } sa;
    socklen_t len;
};

struct target {
    struct url url;
    struct address addresses[ADDRESSES_MAX];
    unsigned n_addresses;
    bool fixed;                 /* numeric, or a path: nobody is asked */
    bool wanted, asking;        /* names: the resolver should, is just */
    uint64_t asked_ms;          /* 0: never */
};

struct dial {
    struct dialer *dialer;
    struct dial *next;
    struct arena arena; /* strings of the URLs */
    struct target *targets;
    size_t n_targets;
    void (*done)(void *ctx, int fd, int err, size_t url);
    void *ctx;
    enum { IDLE, ASKED, AWAITS_NAMES, CONNECTING, SAYING } state;
    bool freed;
    uint64_t at_ms;             /* ASKED: not before; else: gives up then */
    size_t target;              /* where the attempt is */
    unsigned address;
    int fd;
    bool all_refused;
    int err;
};

struct dialer {
    struct clock *clock;
    pthread_mutex_t mu;
    pthread_cond_t names;       /* some target is wanted, or stop */
    struct dial *dials;
    int event_fd;
    pthread_t thread, resolver;
    bool started, stop;
};

/* ---- sockets --------------------------------------------------------------------------------- */

static void set_options(int fd)
{
    int on = 1, user_ms = USER_TIMEOUT_MS, idle = KEEPALIVE_S, unsent = NOTSENT_BYTES;

    /* A unix socket knows none of these, and needs none. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_ms, sizeof user_ms);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &idle, sizeof idle);
}

/* Starts to connect: a descriptor, with *ret_done when it is connected at once; or -errno. */
static int connect_start(const struct address *a, bool *ret_done)
{
    int fd = socket(a->sa.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), err;

    if (fd < 0)
        return -errno;
    set_options(fd);
    *ret_done = connect(fd, &a->sa.any, a->len) == 0;
    if (*ret_done || errno == EINPROGRESS)
        return fd;
    err = -errno;
    (void)close(fd); /* nothing was sent */
    return err;
}

static int connect_result(int fd)
{
    int err = 0;
    socklen_t len = sizeof err;

    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) ? -errno : -err;
}

/* 0 or -errno of getaddrinfo's; numeric: without asking anybody. */
static int lookup(const char *host, const char *port, bool numeric, struct address *addresses, unsigned *ret_n)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | (numeric ? AI_NUMERICHOST : 0)};
    struct addrinfo *list, *a;
    unsigned n = 0;

    if (getaddrinfo(*host ? host : "localhost", port, &hints, &list))
        return -EHOSTUNREACH;
    for (a = list; a && n < ADDRESSES_MAX; a = a->ai_next) {
        if (a->ai_addrlen > sizeof addresses[n].sa)
            continue;
        memcpy(&addresses[n].sa, a->ai_addr, a->ai_addrlen);
        addresses[n++].len = a->ai_addrlen;
    }
    freeaddrinfo(list);
    *ret_n = n;
    return 0;
}

static int unix_address(const struct url *u, struct address *a)
{
    size_t n = strlen(u->path);

    if (n >= sizeof a->sa.un.sun_path)
        return -ENAMETOOLONG;
    *a = (struct address){.sa.un.sun_family = AF_UNIX, .len = sizeof a->sa.un};
    memcpy(a->sa.un.sun_path, u->path, n + 1);
    return 0;
}

void dial_authority(const struct url *u, char *dst, size_t size)
{
    if (url_is_unix(u))
        (void)snprintf(dst, size, "localhost");
    else
        (void)snprintf(dst, size, strchr(u->host, ':') ? "[%s]:%s" : "%s:%s", u->host, u->port);
}

int dial_blocking(const struct url *u, uint32_t timeout_ms)
{
    struct address addresses[ADDRESSES_MAX];
    unsigned n = 1;
    int err = url_is_unix(u) ? unix_address(u, addresses) : lookup(u->host, u->port, false, addresses, &n);

    for (unsigned i = 0; i < n && (err == 0 || i > 0); i++) {
        bool done;
        int fd = connect_start(&addresses[i], &done);
        struct pollfd pf = {.fd = fd, .events = POLLOUT};

        if (fd < 0) {
            err = fd;
            continue;
        }
        if (!done)
            err = poll(&pf, 1, (int)timeout_ms) == 1 ? connect_result(fd) : -ETIMEDOUT;
        if (done || err == 0)
            return fd;
        (void)close(fd); /* nothing was sent */
    }
    return err ? err : -EHOSTUNREACH;
}

/* ---- names ----------------------------------------------------------------------------------- */

static void dialer_wake(struct dialer *d)
{
    uint64_t one = 1;

    (void)!write(d->event_fd, &one, sizeof one); /* full: it is awake already */
}

static struct target *wanted_target(struct dialer *d, struct dial **ret_dial)
{
    for (struct dial *dial = d->dials; dial; dial = dial->next)
        for (size_t i = 0; i < dial->n_targets && !dial->freed; i++)
            if (dial->targets[i].wanted) {
                *ret_dial = dial;
                return &dial->targets[i];
            }
    return NULL;
}

static void *resolver_main(void *arg)
{
    struct dialer *d = arg;

    pthread_mutex_lock(&d->mu);
    while (!d->stop) {
        struct address found[ADDRESSES_MAX];
        struct dial *dial;
        struct target *t = wanted_target(d, &dial);
        unsigned n = 0;

        if (t == NULL) {
            pthread_cond_wait(&d->names, &d->mu);
            continue;
        }
        t->wanted = false;
        t->asking = true; /* the dial's memory stays while this is set */
        pthread_mutex_unlock(&d->mu);
        if (lookup(t->url.host, t->url.port, false, found, &n))
            n = 0;
        pthread_mutex_lock(&d->mu);
        t->asking = false;
        t->asked_ms = d->clock->now_ms(d->clock);
        if (n) { /* else what was known before is still the best we have */
            memcpy(t->addresses, found, n * sizeof *found);
            t->n_addresses = n;
        }
        dialer_wake(d);
    }
    pthread_mutex_unlock(&d->mu);
    return NULL;
}

/* Numeric hosts and paths are known at once; a name is asked for, and meanwhile what is known is used. */
static void target_prepare(struct dialer *d, struct target *t, uint64_t now)
{
    if (t->fixed || t->wanted || t->asking || (t->asked_ms && now - t->asked_ms < NAMES_AGAIN_MS))
        return;
    if (url_is_unix(&t->url)) {
        t->fixed = true;
        t->n_addresses = unix_address(&t->url, t->addresses) == 0;
    } else if (lookup(t->url.host, t->url.port, true, t->addresses, &t->n_addresses) == 0) {
        t->fixed = true;
    } else {
        t->wanted = true;
        pthread_cond_signal(&d->names);
    }
}

/* ---- attempts: mu is held ---------------------------------------------------------------------- */

static bool refused(int err)
{
    return err == -ECONNREFUSED || err == -ENOENT; /* ENOENT: a unix socket that is gone */
}

/* The attempt is over: says so, without the lock. */
static void dial_say(struct dialer *d, struct dial *dial, int fd, int err)
{
    size_t url = dial->target;

    dial->state = SAYING;
    dial->fd = -1;
    pthread_mutex_unlock(&d->mu);
    dial->done(dial->ctx, fd, err, url);
    pthread_mutex_lock(&d->mu);
    if (dial->state == SAYING) /* else it has been asked again meanwhile */
        dial->state = IDLE;
}

static void address_failed(struct dial *dial, int err)
{
    if (dial->fd >= 0)
        (void)close(dial->fd); /* nothing was sent */
    dial->fd = -1;
    dial->all_refused &= refused(err);
    dial->err = err;
    dial->address++;
}

/* Goes on with the next address. True: something is awaited. */
static bool dial_go_on(struct dialer *d, struct dial *dial, uint64_t now)
{
    for (; dial->target < dial->n_targets; dial->target++, dial->address = 0) {
        struct target *t = &dial->targets[dial->target];

        if (t->n_addresses == 0 && (t->wanted || t->asking) && now < dial->at_ms) {
            dial->state = AWAITS_NAMES;
            return true;
        }
        if (t->n_addresses == 0)
            address_failed(dial, -EHOSTUNREACH);
        while (dial->address < t->n_addresses) {
            bool connected;
            int fd = connect_start(&t->addresses[dial->address], &connected);

            if (fd < 0) {
                address_failed(dial, fd);
                continue;
            }
            if (connected) {
                dial_say(d, dial, fd, 0);
                return true;
            }
            dial->fd = fd;
            dial->state = CONNECTING;
            dial->at_ms = now + LIMIT_PEER_CONNECT_MS;
            return true;
        }
    }
    return false;
}

static void dial_attempt(struct dialer *d, struct dial *dial, uint64_t now)
{
    if (!dial_go_on(d, dial, now))
        dial_say(d, dial, -1, dial->all_refused ? -ECONNREFUSED : dial->err);
}

static void dial_begin(struct dialer *d, struct dial *dial, uint64_t now)
{
    dial->target = dial->address = 0;
    dial->all_refused = true;
    dial->err = -EHOSTUNREACH;
    dial->at_ms = now + LIMIT_PEER_CONNECT_MS;
    for (size_t i = 0; i < dial->n_targets; i++)
        target_prepare(d, &dial->targets[i], now);
    dial_attempt(d, dial, now);
}

/* events: what poll saw at its socket. */
static void dial_step(struct dialer *d, struct dial *dial, short events, uint64_t now)
{
    struct target *t = &dial->targets[dial->target];
    int fd = dial->fd, err;

    switch (dial->state) {
    case ASKED:
        if (now >= dial->at_ms)
            dial_begin(d, dial, now);
        return;
    case AWAITS_NAMES:
        if (now >= dial->at_ms || t->n_addresses || !(t->wanted || t->asking))
            dial_attempt(d, dial, now);
        return;
    case CONNECTING:
        if (events == 0 && now < dial->at_ms)
            return;
        err = events ? connect_result(fd) : -ETIMEDOUT;
        if (err == 0) {
            dial_say(d, dial, fd, 0);
            return;
        }
        address_failed(dial, err);
        dial_attempt(d, dial, now);
        return;
    case IDLE:
    case SAYING:
        return;
    }
}

static void dial_destroy(struct dial *dial)
{
    if (dial->fd >= 0)
        (void)close(dial->fd); /* nothing was sent */
    free(dial->targets);
    arena_fini(&dial->arena);
    free(dial);
}

static bool is_asking(const struct dial *dial)
{
    for (size_t i = 0; i < dial->n_targets; i++)
        if (dial->targets[i].asking)
            return true;
    return false;
}

static void bury(struct dialer *d)
{
    for (struct dial **p = &d->dials; *p;) {
        struct dial *dial = *p;

        if (dial->freed && !is_asking(dial)) {
            *p = dial->next;
            dial_destroy(dial);
        } else {
            p = &dial->next;
        }
    }
}

/* ---- the thread --------------------------------------------------------------------------------- */

enum { POLLS_MAX = 128 }; /* attempts at once; more dials than that wait for their turn */

static int wait_ms(const struct dialer *d, uint64_t now)
{
    uint64_t until = UINT64_MAX;

    for (const struct dial *dial = d->dials; dial; dial = dial->next)
        if (dial->state != IDLE && dial->state != SAYING && !dial->freed && dial->at_ms < until)
            until = dial->at_ms;
    if (until == UINT64_MAX)
        return -1;
    return until <= now ? 0 : (int)(until - now);
}

static void *dialer_main(void *arg)
{
    struct dialer *d = arg;
    struct pollfd polls[POLLS_MAX];
    struct dial *who[POLLS_MAX];

    pthread_mutex_lock(&d->mu);
    while (!d->stop) {
        uint64_t now = d->clock->now_ms(d->clock), drained;
        nfds_t n = 1;
        int timeout_ms;

        polls[0] = (struct pollfd){.fd = d->event_fd, .events = POLLIN};
        for (struct dial *dial = d->dials; dial && n < POLLS_MAX; dial = dial->next)
            if (dial->state == CONNECTING && !dial->freed) {
                polls[n] = (struct pollfd){.fd = dial->fd, .events = POLLOUT};
                who[n++] = dial;
            }
        timeout_ms = wait_ms(d, now);
        pthread_mutex_unlock(&d->mu);
        (void)poll(polls, n, timeout_ms); /* EINTR: another round */
        pthread_mutex_lock(&d->mu);
        if (polls[0].revents)
            (void)!read(d->event_fd, &drained, sizeof drained);
        now = d->clock->now_ms(d->clock);
        for (nfds_t i = 1; i < n; i++)
            if (polls[i].revents && !who[i]->freed)
                dial_step(d, who[i], polls[i].revents, now);
        for (struct dial *dial = d->dials; dial; dial = dial->next)
            if (!dial->freed)
                dial_step(d, dial, 0, now);
        bury(d);
    }
    pthread_mutex_unlock(&d->mu);
    return NULL;
}

/* ---- the outside --------------------------------------------------------------------------------- */

int dialer_new(struct dialer **ret_dialer)
{
    struct dialer *d = calloc(1, sizeof *d);

    if (d == NULL)
        return -ENOMEM;
    d->clock = clock_real();
    d->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (d->event_fd < 0) {
        int err = -errno;

        free(d);
        return err;
    }
    pthread_mutex_init(&d->mu, NULL);
    pthread_cond_init(&d->names, NULL);
    *ret_dialer = d;
    return 0;
}

int dialer_start(struct dialer *d)
{
    int err = thread_start(&d->thread, "dial", dialer_main, d);

    if (err)
        return err;
    err = thread_start(&d->resolver, "resolve", resolver_main, d);
    d->started = err == 0;
    if (err) {
        d->stop = true;
        dialer_wake(d);
        pthread_join(d->thread, NULL);
    }
    return err;
}

void dialer_stop(struct dialer *d)
{
    if (d == NULL || !d->started)
        return;
    pthread_mutex_lock(&d->mu);
    d->stop = true;
    pthread_cond_signal(&d->names);
    pthread_mutex_unlock(&d->mu);
    dialer_wake(d);
    pthread_join(d->thread, NULL);
    pthread_join(d->resolver, NULL);
    d->started = false;
}

void dialer_free(struct dialer *d)
{
    if (d == NULL)
        return;
    dialer_stop(d);
    while (d->dials) {
        struct dial *next = d->dials->next;

        dial_destroy(d->dials);
        d->dials = next;
    }
    (void)close(d->event_fd); /* holds nothing */
    pthread_cond_destroy(&d->names);
    pthread_mutex_destroy(&d->mu);
    free(d);
}

static const char *copy_str(struct arena *a, const char *s)
{
    return s ? (const char *)arena_copy(a, slice_of(s, strlen(s) + 1)).ptr : "";
}

int dial_new(struct dialer *d, const struct dial_options *o, struct dial **ret_dial)
{
    struct dial *dial = calloc(1, sizeof *dial);

    if (dial == NULL)
        return -ENOMEM;
    *dial = (struct dial){.dialer = d, .n_targets = o->n_urls, .done = o->done, .ctx = o->ctx, .fd = -1};
    arena_init(&dial->arena, SIZE_MAX / 2, NULL, 0);
    dial->targets = calloc(o->n_urls + 1, sizeof *dial->targets);
    for (size_t i = 0; i < o->n_urls && dial->targets; i++) {
        struct url *u = &dial->targets[i].url;

        *u = (struct url){.scheme = o->urls[i].scheme,
                          .text = copy_str(&dial->arena, o->urls[i].text),
                          .host = copy_str(&dial->arena, o->urls[i].host),
                          .port = copy_str(&dial->arena, o->urls[i].port),
                          .path = copy_str(&dial->arena, o->urls[i].path)};
        if (!u->text || !u->host || !u->port || !u->path) {
            dial_destroy(dial);
            return -ENOMEM;
        }
    }
    if (dial->targets == NULL) {
        dial_destroy(dial);
        return -ENOMEM;
    }
    pthread_mutex_lock(&d->mu);
    dial->next = d->dials;
    d->dials = dial;
    pthread_mutex_unlock(&d->mu);
    *ret_dial = dial;
    return 0;
}

void dial_ask(struct dial *dial, uint32_t delay_ms)
{
    struct dialer *d = dial->dialer;

    pthread_mutex_lock(&d->mu);
    assert(dial->state == IDLE || dial->state == SAYING);
    dial->state = ASKED;
    dial->at_ms = d->clock->now_ms(d->clock) + delay_ms;
    pthread_mutex_unlock(&d->mu);
    dialer_wake(d);
}

void dial_hurry(struct dial *dial)
{
    struct dialer *d = dial->dialer;

    pthread_mutex_lock(&d->mu);
    if (dial->state == ASKED)
        dial->at_ms = 0;
    pthread_mutex_unlock(&d->mu);
    dialer_wake(d);
}

void dial_free(struct dial *dial)
{
    struct dialer *d;

    if (dial == NULL)
        return;
    d = dial->dialer;
    pthread_mutex_lock(&d->mu);
    dial->freed = true;
    pthread_mutex_unlock(&d->mu);
    dialer_wake(d);
}
