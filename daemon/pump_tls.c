/* SPDX-License-Identifier: Apache-2.0 */
/* pump_tls.c - connections on their way to the handshakes and back, and those that others bring.
 *
 * While hands are shaken a connection has no row here: only its descriptor counts (n_shaking).
 *
 * Owner:    the pump's thread; what arrives comes through a mailbox.
 * Not here: the handshake (handshake.c).
 */
#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "log.h"
#include "pump_impl.h"

enum {
    SAME_LOG_MS = 10000, /* the same failure of a handshake is logged again after this, */
    ANY_LOG_MS = 1000,   /* and another one after this: whoever is refused tries again for ever */
};

struct arrival {
    struct handshake shake; /* its mail brings it */
    struct pump *pump;
    int relay_fd;           /* one end of a socketpair: it is to be relayed; -1: it has shaken hands with us */
};

static void shaken(struct handshake *h)
{
    struct arrival *a = (struct arrival *)h;

    mailbox_post(&a->pump->arrivals, &h->mail);
}

void shake_begin(struct pump *p, struct conn *c)
{
    struct arrival *a = calloc(1, sizeof *a);

    if (a == NULL) {
        conn_close(p, c);
        return;
    }
    (void)epoll_ctl(p->epoll_fd, EPOLL_CTL_DEL, c->client.fd, NULL);
    *a = (struct arrival){.shake = {.ctx = p->options.tls, .side = TLS_SERVER, .fd = c->client.fd, .done = shaken},
                          .pump = p,
                          .relay_fd = -1};
    c->client.fd = -1;
    conn_close(p, c);
    p->n_shaking++;
    handshakes_begin(p->options.handshakes, &a->shake);
}

/* ---- back -------------------------------------------------------------------------------------------------- */

static void say_failed(struct pump *p, const struct handshake *h)
{
    uint64_t since = p->now_ms - p->shook_log_ms;
    char name[80];

    if (p->shook_text[0] && since < (strcmp(p->shook_text, h->text) == 0 ? SAME_LOG_MS : ANY_LOG_MS))
        return;
    client_name(h->fd, name, sizeof name);
    log_warn("pump: a TLS handshake failed", LOG_STR("client", name), LOG_STR("error", h->text));
    (void)snprintf(p->shook_text, sizeof p->shook_text, "%s", h->text);
    p->shook_log_ms = p->now_ms;
}

static void arrive_shaken(struct pump *p, struct handshake *h)
{
    struct conn *c;

    p->n_shaking--;
    if (h->err) {
        pump_count(h->err == -ETIMEDOUT ? &p->stats.handshakes_late : &p->stats.handshakes_failed, 1);
        if (h->err != -ECANCELED)
            say_failed(p, h);
        (void)close(h->fd); /* nothing was said */
        return;
    }
    c = conn_new(p, h->fd, h->tls);
    if (c == NULL)
        return;
    c->client.readable = true; /* what came with the handshake's last bytes makes no edge */
    conn_sniff(p, c);
}

static void arrive_relayed(struct pump *p, struct arrival *a)
{
    struct conn *c = conn_new(p, a->shake.fd, a->shake.tls);

    if (c == NULL) {
        (void)close(a->relay_fd); /* its other end learns of it */
        return;
    }
    c->client.readable = true;
    if (relay_open(p, c, a->relay_fd))
        conn_move(p, c);
}

void arrivals_take(struct pump *p)
{
    struct mail *m, *next;

    for (m = mailbox_take(&p->arrivals); m; m = next) {
        struct arrival *a = (struct arrival *)((char *)m - offsetof(struct handshake, mail));

        next = m->next;
        if (a->relay_fd >= 0)
            arrive_relayed(p, a);
        else
            arrive_shaken(p, &a->shake);
        free(a);
    }
}

void arrivals_drop(struct pump *p)
{
    struct mail *m, *next;

    for (m = mailbox_take(&p->arrivals); m; m = next) {
        struct arrival *a = (struct arrival *)((char *)m - offsetof(struct handshake, mail));

        next = m->next;
        tls_free(a->shake.tls);
        (void)close(a->shake.fd); /* nobody is left to speak there */
        if (a->relay_fd >= 0)
            (void)close(a->relay_fd);
        free(a);
    }
}

int pump_relay(struct pump *p, int fd, struct tls *tls, int *ret_fd)
{
    struct arrival *a = calloc(1, sizeof *a);
    int pair[2], err = 0;

    if (a == NULL || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair))
        err = a ? -errno : -ENOMEM;
    if (err) {
        free(a);
        tls_free(tls);
        (void)close(fd); /* nothing was said */
        return err;
    }
    *a = (struct arrival){.shake = {.fd = fd, .tls = tls}, .pump = p, .relay_fd = pair[0]};
    mailbox_post(&p->arrivals, &a->shake.mail);
    *ret_fd = pair[1];
    return 0;
}
