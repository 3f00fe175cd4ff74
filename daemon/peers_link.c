/* SPDX-License-Identifier: Apache-2.0 */
/* peers_link.c - one connection to a member: its head and the answer, and what follows when it breaks.
 *
 *      dialing --connected--> head sent --accepted--> up --broken--> dialing, at once
 *         ^ \                     |refused                              |port refuses
 *         |  +--20..200 ms--+ <---+                                     +--> suspect()
 *
 * Not a stream of gRPC's: there a message that goes alone costs 45 us on both sides together, a thread of ours and one
 * of core's to wake, and a window update back; here it costs 12, and the reply leaves on the thread that it came on.
 *
 * Owner:    the peers' thread, but for what peers_impl.h says.
 * Not here: connecting (peers_dial.c, dial.c), what leaves on it and when (peers_lane.c).
 */
#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include "log.h"
#include "peers_impl.h"

enum { BACKOFF_MIN_MS = 20, BACKOFF_MAX_MS = 200 };

/* ---- the log: a line for each change ------------------------------------------------------------------ */

static void say_connected(struct peer *peer)
{
    if (peer->said != SAID_CONNECTED)
        log_info("peers: connected to a member", LOG_HEX("member", peer->id), LOG_STR("url", peer->url));
    peer->said = SAID_CONNECTED;
}

static void say_lost(struct peer *peer, struct slice text)
{
    if (peer->said == SAID_CONNECTED)
        log_warn("peers: the connection to a member is lost", LOG_HEX("member", peer->id),
                 LOG_STR("url", peer->url), LOG_SLICE("error", text));
    peer->said = SAID_LOST;
}

static void say_refused(struct peer *peer, struct slice text)
{
    if (peer->said != SAID_REFUSED)
        log_warn("peers: a member refuses our stream", LOG_HEX("member", peer->id), LOG_STR("url", peer->url),
                 LOG_SLICE("error", text));
    peer->said = SAID_REFUSED;
}

void peer_say_unreachable(struct peer *peer, struct slice text)
{
    if (peer->said != SAID_UNREACHABLE && peer->said != SAID_REFUSED)
        log_warn("peers: a member cannot be reached", LOG_HEX("member", peer->id), LOG_STR("url", peer->url),
                 LOG_SLICE("error", text));
    peer->said = SAID_UNREACHABLE;
}

/* ---- the stream ------------------------------------------------------------------------------------------ */

uint32_t link_backoff(struct link *l)
{
    struct rng *rng = l->peer->peers->options.rng;
    uint32_t ms = l->backoff_ms;

    l->backoff_ms = ms ? ms * 2 : BACKOFF_MIN_MS;
    if (l->backoff_ms > BACKOFF_MAX_MS)
        l->backoff_ms = BACKOFF_MAX_MS;
    return ms ? ms / 2 + (uint32_t)(rng->next(rng) % (ms / 2 + 1)) : 0;
}

bool link_stops(const struct link *l)
{
    return l->peer->gone || atomic_load(&l->peer->peers->stopping);
}

/* Nothing is connected any more; what waits is lost. */
void link_close(struct link *l)
{
    pthread_mutex_lock(&l->mu);
    if (l->fd >= 0)
        (void)close(l->fd); /* epoll forgets it with that */
    l->fd = -1;
    tls_free(l->tls);
    l->tls = NULL;
    l->blocked = false;
    free(l->left);
    l->left = NULL;
    link_lose_all(l);
    pthread_mutex_unlock(&l->mu);
    l->up = false;
    l->n_answer = 0;
    if (l->lane == LANE_URGENT)
        atomic_store(&l->peer->counters->active, false);
}

static void accepted(struct link *l)
{
    struct peer_counters *c = l->peer->counters;
    struct clock *clock = l->peer->peers->options.clock;

    l->up = l->was_up = true;
    l->backoff_ms = 0;
    if (l->lane == LANE_URGENT) {
        atomic_store(&c->since_ms, clock->now_ms(clock));
        atomic_store(&c->active, true);
        say_connected(l->peer);
    }
}

/* text: why; status: of a refusal, or 0. */
static void link_broken(struct link *l, enum status status, struct slice text)
{
    struct peer *peer = l->peer;
    struct peers *p = peer->peers;
    bool was_up = l->up, tls_failed = l->tls && *tls_text(l->tls);

    if (was_up)
        peers_add(&peer->counters->disconnects, 1);
    if (status)
        say_refused(peer, text);
    else if (was_up)
        say_lost(peer, text);
    else if (l->lane == LANE_URGENT)
        peer_say_unreachable(peer, text); /* something else listens there, or it goes as we come */
    link_close(l); /* text may lie in l->answer: it stays */
    if (status == STATUS_PERMISSION_DENIED && p->sink.removed)
        p->sink.removed(p->sink.ctx);
    atomic_store(&peer->lost, true); /* what was on its way */
    link_dial(l, tls_failed ? LINK_TLS_AGAIN_MS : was_up && !status ? 0 : link_backoff(l));
}

/* The answer to our head: one, at the begin; a refusal may come at any time before the end. */
static void take_answer(struct link *l)
{
    while (l->n_answer >= STREAM_ANSWER_BYTES) {
        enum status status = (enum status)l->answer[0];
        size_t n = get_u16le(l->answer + 2);

        if (n > STREAM_ANSWER_TEXT_MAX) {
            link_broken(l, 0, S("what came is no answer of a member"));
            return;
        }
        if (l->n_answer < STREAM_ANSWER_BYTES + n)
            return;
        if (status) {
            link_broken(l, status, slice_of(l->answer + STREAM_ANSWER_BYTES, n));
            return;
        }
        l->n_answer -= STREAM_ANSWER_BYTES + n;
        memmove(l->answer, l->answer + STREAM_ANSWER_BYTES + n, l->n_answer);
        if (!l->up)
            accepted(l);
    }
}

/* Others write while this thread reads: what is one object for both needs the lock. */
static ssize_t take(struct link *l, uint8_t *to, size_t n)
{
    ssize_t got;
    int saved;

    if (l->tls == NULL)
        return recv(l->fd, to, n, 0);
    pthread_mutex_lock(&l->mu);
    got = tls_recv(l->tls, to, n);
    saved = errno;
    pthread_mutex_unlock(&l->mu);
    errno = saved;
    return got;
}

/* Until there is no more, or the end. */
static void read_answer(struct link *l)
{
    while (l->fd >= 0) {
        ssize_t n = take(l, l->answer + l->n_answer, sizeof l->answer - l->n_answer);

        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            link_broken(l, 0, slice_str(n == 0 ? "the other side has closed it" :
                                        l->tls && *tls_text(l->tls) ? tls_text(l->tls) : strerror(errno)));
            return;
        }
        l->n_answer += (size_t)n;
        take_answer(l);
    }
}

void link_events(struct link *l, uint32_t events)
{
    if (l->fd < 0)
        return; /* broken by an event before this one */
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        read_answer(l);
    if (events & EPOLLOUT && l->fd >= 0)
        link_flush(l);
}

static void put_head(const struct link *l, uint8_t head[STREAM_HEAD_BYTES])
{
    const struct peers_options *o = &l->peer->peers->options;

    memset(head, 0, STREAM_HEAD_BYTES);
    memcpy(head, STREAM_MAGIC, 5);
    head[5] = PEERS_VERSION;
    head[6] = (uint8_t)l->lane;
    put_u64le(head + 8, o->cluster_id);
    put_u64le(head + 16, o->member_id);
    put_u64le(head + 24, l->peer->id);
}

void link_open(struct link *l, int fd, struct tls *tls)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &l->end};
    uint8_t head[STREAM_HEAD_BYTES];
    ssize_t n;

    put_head(l, head);
    n = tls ? tls_send(tls, head, sizeof head) : send(fd, head, sizeof head, MSG_NOSIGNAL);
    if (n != (ssize_t)sizeof head || /* a new socket has room */
        epoll_ctl(l->peer->peers->epoll_fd, EPOLL_CTL_ADD, fd, &ev)) {
        (void)close(fd); /* nobody is waiting for it */
        tls_free(tls);
        link_dial(l, BACKOFF_MAX_MS);
        return;
    }
    pthread_mutex_lock(&l->mu);
    l->fd = fd;
    l->tls = tls;
    pthread_mutex_unlock(&l->mu);
    link_flush(l);
}

/* ---- made, and gone -------------------------------------------------------------------------------------- */

int link_init(struct link *l, struct peer *peer, enum lane lane)
{
    struct dial_options o = {.urls = peer->urls.urls, .n_urls = peer->urls.n, .done = link_dialed, .ctx = l};

    *l = (struct link){.end.kind = END_LINK, .peer = peer, .lane = lane, .fd = -1};
    mailbox_init(&l->box, -1);
    pthread_mutex_init(&l->mu, NULL);
    return peer->urls.n ? dial_new(peer->peers->dialer, &o, &l->dial) : 0;
}

void link_drop(struct link *l)
{
    dial_free(l->dial);
    l->dial = NULL;
    link_close(l);
}

void link_fini(struct link *l)
{
    link_close(l);
    peer_msg_free(l->fetch.msg);
    pthread_mutex_destroy(&l->mu);
}
