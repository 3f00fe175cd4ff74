/* SPDX-License-Identifier: Apache-2.0 */
/* handshake.c - two threads that shake hands.
 *
 * Each waits for the sockets of its own handshakes, oldest first in a list, so the next deadline is the first one's.
 *
 * Owner:    each thread its list; handshakes come through a mailbox.
 * Not here: what is said (tls.c), what becomes of the connection (pump.c, peers_link.c).
 */
#include "handshake.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "limits.h"
#include "seam.h"

enum { THREADS = 2, EVENTS = 64 };

struct shaker {
    struct handshakes *all;
    pthread_t thread;
    bool started;
    int epoll_fd, event_fd;
    struct mailbox box;
    struct handshake *first, *last; /* oldest first */
    unsigned n_clients;             /* whose side we are the server of */
};

struct handshakes {
    struct clock *clock;
    struct shaker shakers[THREADS];
    _Atomic unsigned turn;
    _Atomic bool stop;
};

/* ---- one handshake ------------------------------------------------------------------------------------- */

static void finish(struct handshake *h, int err, const char *why)
{
    h->err = err;
    if (err) {
        if (why)
            (void)snprintf(h->text, sizeof h->text, "%s", why);
        tls_free(h->tls);
        h->tls = NULL;
    }
    h->done(h);
}

static void leave(struct shaker *s, struct handshake *h, int err, const char *why)
{
    *(h->prev ? &h->prev->next : &s->first) = h->next;
    *(h->next ? &h->next->prev : &s->last) = h->prev;
    s->n_clients -= h->side == TLS_SERVER;
    if (h->events)
        (void)epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, h->fd, NULL);
    finish(h, err, why);
}

static void step(struct shaker *s, struct handshake *h)
{
    int rc = tls_handshake(h->tls);
    struct epoll_event ev = {.events = rc == POLLOUT ? EPOLLOUT : EPOLLIN, .data.ptr = h};

    if (rc <= 0) {
        leave(s, h, rc, rc ? tls_text(h->tls) : NULL);
        return;
    }
    if (h->events == ev.events)
        return;
    if (epoll_ctl(s->epoll_fd, h->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, h->fd, &ev))
        leave(s, h, -errno, strerror(errno));
    else
        h->events = ev.events;
}

static void drop_oldest_client(struct shaker *s)
{
    struct handshake *h = s->first;

    while (h->side != TLS_SERVER)
        h = h->next;
    leave(s, h, -ETIMEDOUT, "too many handshakes at a time: the oldest goes");
}

static void come(struct shaker *s, struct handshake *h, uint64_t now_ms)
{
    int err = tls_new(h->ctx, h->side, h->fd, h->host ? h->host : "", &h->tls, h->text);

    if (err) {
        finish(h, err, NULL);
        return;
    }
    h->deadline_ms = now_ms + LIMIT_HANDSHAKE_MS;
    h->prev = s->last;
    h->next = NULL;
    *(s->last ? &s->last->next : &s->first) = h;
    s->last = h;
    s->n_clients += h->side == TLS_SERVER;
    if (s->n_clients > LIMIT_HANDSHAKES / THREADS)
        drop_oldest_client(s);
    step(s, h);
}

/* ---- the threads --------------------------------------------------------------------------------------- */

static struct handshake *of_mail(struct mail *m)
{
    return (struct handshake *)((char *)m - offsetof(struct handshake, mail));
}

static void take_box(struct shaker *s, uint64_t now_ms)
{
    struct mail *m, *next;

    for (m = mailbox_take(&s->box); m; m = next) {
        next = m->next;
        if (atomic_load(&s->all->stop))
            finish(of_mail(m), -ECANCELED, "the member stops");
        else
            come(s, of_mail(m), now_ms);
    }
}

static int wait_ms(const struct shaker *s, uint64_t now_ms)
{
    if (s->first == NULL)
        return -1;
    return s->first->deadline_ms <= now_ms ? 0 : (int)(s->first->deadline_ms - now_ms);
}

static void *shaker_main(void *arg)
{
    struct shaker *s = arg;
    struct clock *clock = s->all->clock;
    struct epoll_event events[EVENTS];
    uint64_t unused;

    while (!atomic_load(&s->all->stop)) {
        int n = epoll_wait(s->epoll_fd, events, EVENTS, wait_ms(s, clock->now_ms(clock)));

        /* A step ends no handshake but its own, so no event names one that has gone. */
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr)
                step(s, events[i].data.ptr);
            else
                (void)!read(s->event_fd, &unused, sizeof unused);
        }
        take_box(s, clock->now_ms(clock));
        while (s->first && s->first->deadline_ms <= clock->now_ms(clock))
            leave(s, s->first, -ETIMEDOUT, "the handshake was not done in time");
    }
    while (s->first)
        leave(s, s->first, -ECANCELED, "the member stops");
    return NULL;
}

/* ---- the outside --------------------------------------------------------------------------------------- */

static int shaker_init(struct shaker *s)
{
    struct epoll_event ev = {.events = EPOLLIN};

    s->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (s->event_fd < 0 || s->epoll_fd < 0 || epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, s->event_fd, &ev))
        return -errno;
    mailbox_init(&s->box, s->event_fd);
    return 0;
}

int handshakes_new(struct handshakes **ret_handshakes)
{
    struct handshakes *hs = calloc(1, sizeof *hs);
    int err = 0;

    if (hs == NULL)
        return -ENOMEM;
    hs->clock = clock_real();
    for (int i = 0; i < THREADS; i++)
        hs->shakers[i] = (struct shaker){.all = hs, .epoll_fd = -1, .event_fd = -1};
    for (int i = 0; i < THREADS && err == 0; i++)
        err = shaker_init(&hs->shakers[i]);
    if (err)
        handshakes_free(hs);
    else
        *ret_handshakes = hs;
    return err;
}

int handshakes_start(struct handshakes *hs)
{
    for (int i = 0; i < THREADS; i++) {
        int err = thread_start(&hs->shakers[i].thread, "handshake", shaker_main, &hs->shakers[i]);

        if (err)
            return err; /* handshakes_stop ends the other one */
        hs->shakers[i].started = true;
    }
    return 0;
}

void handshakes_begin(struct handshakes *hs, struct handshake *h)
{
    struct shaker *s = &hs->shakers[atomic_fetch_add_explicit(&hs->turn, 1, memory_order_relaxed) % THREADS];

    h->tls = NULL;
    h->err = 0;
    h->events = 0;
    h->text[0] = '\0';
    if (atomic_load(&hs->stop))
        finish(h, -ECANCELED, "the member stops");
    else
        mailbox_post(&s->box, &h->mail); /* one that comes as all stops is taken by handshakes_free */
}

void handshakes_stop(struct handshakes *hs)
{
    if (hs == NULL)
        return;
    atomic_store(&hs->stop, true);
    for (int i = 0; i < THREADS; i++) {
        struct shaker *s = &hs->shakers[i];

        if (s->started) {
            mailbox_nudge(&s->box);
            pthread_join(s->thread, NULL);
            s->started = false;
        }
        if (s->event_fd >= 0)
            take_box(s, 0);
    }
}

void handshakes_free(struct handshakes *hs)
{
    if (hs == NULL)
        return;
    handshakes_stop(hs);
    for (int i = 0; i < THREADS; i++) {
        if (hs->shakers[i].epoll_fd >= 0)
            (void)close(hs->shakers[i].epoll_fd); /* they hold nothing */
        if (hs->shakers[i].event_fd >= 0)
            (void)close(hs->shakers[i].event_fd);
    }
    free(hs);
}

int handshake_blocking(struct tls_ctx *ctx, int fd, const char *host, uint32_t timeout_ms, struct tls **ret_tls,
                       char text[TLS_TEXT_BYTES])
{
    struct clock *clock = clock_real();
    uint64_t deadline_ms = clock->now_ms(clock) + timeout_ms;
    struct tls *t;
    int rc = tls_new(ctx, TLS_CLIENT, fd, host, &t, text);

    if (rc)
        return rc;
    while ((rc = tls_handshake(t)) > 0) {
        struct pollfd pf = {.fd = fd, .events = (short)rc};
        uint64_t now_ms = clock->now_ms(clock);

        if (now_ms >= deadline_ms) {
            (void)snprintf(text, TLS_TEXT_BYTES, "the handshake was not done in time");
            tls_free(t);
            return -ETIMEDOUT;
        }
        (void)poll(&pf, 1, (int)(deadline_ms - now_ms)); /* EINTR: another round */
    }
    if (rc) {
        (void)snprintf(text, TLS_TEXT_BYTES, "%s", tls_text(t));
        tls_free(t);
        return rc;
    }
    *ret_tls = t;
    return 0;
}
