/* SPDX-License-Identifier: Apache-2.0 */
/* peers_dial.c - how a connection to a member comes to be: dialed, shaken hands if its URL is https://, and again after
 * a while if not.
 *
 * Owner:    the peers' thread; the dialer's and the handshakes' threads only bring their results.
 * Not here: what is said on it (peers_link.c, peers_lane.c), how sockets connect (dial.c).
 */
#include <errno.h>
#include <unistd.h>
#include "peers_impl.h"

/* No more of its process than a port that refuses: said once for each connection that it had. */
static void suspect(struct link *l)
{
    struct peer *peer = l->peer;
    const struct peers_sink *s = &peer->peers->sink;

    if (!peer->links[LANE_URGENT].was_up && !peer->links[LANE_BULK].was_up)
        return;
    peer->links[LANE_URGENT].was_up = peer->links[LANE_BULK].was_up = false;
    s->suspect(s->ctx, peer->id);
}

static void dial_failed(struct link *l, uint32_t again_ms, const char *why)
{
    if (l->lane == LANE_URGENT)
        peer_say_unreachable(l->peer, slice_str(why));
    link_close(l);
    link_dial(l, again_ms);
}

static void shook(struct task *t)
{
    struct link *l = (struct link *)((char *)t - offsetof(struct link, shook));
    struct handshake *h = &l->shake;

    l->dialing = false;
    if (h->err == 0 && !link_stops(l)) {
        link_open(l, h->fd, h->tls);
        return;
    }
    tls_free(h->tls);
    (void)close(h->fd); /* nothing was sent */
    if (!link_stops(l))
        dial_failed(l, h->err == -EPROTO ? LINK_TLS_AGAIN_MS : link_backoff(l), h->text);
}

/* A thread of the handshakes'. */
static void shake_done(struct handshake *h)
{
    struct link *l = (struct link *)((char *)h - offsetof(struct link, shake));

    l->shook.fn = shook;
    io_post(l->peer->peers, &l->shook);
}

static void dialed(struct task *t)
{
    struct link *l = (struct link *)((char *)t - offsetof(struct link, dialed));
    struct peers *p = l->peer->peers;
    int result = l->dialed_fd;

    if (result >= 0 && !link_stops(l) && l->dialed_url->scheme == URL_HTTPS) {
        l->shake = (struct handshake){
            .ctx = p->options.tls, .side = TLS_CLIENT, .fd = result, .host = l->dialed_url->host, .done = shake_done};
        handshakes_begin(p->handshakes, &l->shake);
        return;
    }
    l->dialing = false;
    if (link_stops(l)) {
        if (result >= 0)
            (void)close(result); /* nothing was sent */
        return;
    }
    if (result >= 0) {
        link_open(l, result, NULL);
        return;
    }
    if (result == -ECONNREFUSED)
        suspect(l);
    dial_failed(l, link_backoff(l), strerror(-result));
}

/* The dialer's thread. */
void link_dialed(void *ctx, int fd, int err, size_t url)
{
    struct link *l = ctx;

    l->dialed_fd = err ? err : fd;
    l->dialed_url = err ? NULL : &l->peer->urls.urls[url];
    l->dialed.fn = dialed;
    io_post(l->peer->peers, &l->dialed);
}

void link_dial(struct link *l, uint32_t delay_ms)
{
    if (link_stops(l) || l->dial == NULL)
        return;
    assert(!l->dialing);
    l->dialing = true;
    dial_ask(l->dial, delay_ms);
}

void link_hurry(struct link *l)
{
    if (l->dialing && l->dial)
        dial_hurry(l->dial);
}
