/* SPDX-License-Identifier: Apache-2.0 */
/* peers_link.c - one connection to a member: its lane, what leaves next, and what follows when it breaks.
 *
 *      dialing --connected--> stream opened --hello--> up --broken--> dialing, at once
 *         ^ \                     |refused                               |port refuses
 *         |  +--20..200 ms--+ <---+                                      +--> suspect()
 *
 * One gRPC message is on its way at a time; what gathers meanwhile leaves in the next one, together: gRPC core's price is
 * one of messages (7 us), not of bytes. On the wire a message is a run of
 *
 *      0  u32le  bytes
 *      4  ...    a peer_msg (peer.c)
 *
 * Two connections to each member and not two streams of one: with one, what core has gathered to write and what lies in
 * the socket, up to a megabyte, stands before every heartbeat, and a lost packet of the entries holds the heartbeats too.
 *
 * Owner:    the peers' thread.
 * Not here: connecting (dial.c), the stream's mechanics (rpc_out.c).
 */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>
#include "log.h"
#include "peers_impl.h"

enum { BACKOFF_MIN_MS = 20, BACKOFF_MAX_MS = 200 };

static const char *const lane_names[LANES] = {"urgent", "bulk"};

/* ---- queues --------------------------------------------------------------------------------------- */

static bool is_append(const struct peer_msg *m)
{
    return m->kind == PEER_RAFT && m->raft.type == RAFT_APPEND;
}

static size_t queue_cost(const struct peer_msg *m)
{
    return is_append(m) ? 0 : peer_msg_size(m);
}

void queue_push(struct msg_queue *q, struct peer_msg *m)
{
    m->mail.next = NULL;
    if (q->last)
        q->last->mail.next = &m->mail;
    else
        q->first = m;
    q->last = m;
    q->n++;
    q->bytes += queue_cost(m);
}

void queue_push_front(struct msg_queue *q, struct peer_msg *m)
{
    m->mail.next = q->first ? &q->first->mail : NULL;
    q->first = m;
    if (q->last == NULL)
        q->last = m;
    q->n++;
    q->bytes += queue_cost(m);
}

struct peer_msg *queue_pop(struct msg_queue *q)
{
    struct peer_msg *m = q->first;

    if (m == NULL)
        return NULL;
    q->first = (struct peer_msg *)m->mail.next;
    if (q->first == NULL)
        q->last = NULL;
    q->n--;
    q->bytes -= queue_cost(m);
    return m;
}

enum lane msg_lane(const struct peer_msg *m)
{
    return m->kind == PEER_PROPOSE || is_append(m) ? LANE_BULK : LANE_URGENT;
}

/* A message is not sent, and the core shall know. */
static void lose(struct link *l, struct peer_msg *m)
{
    peers_count(&l->peer->counters->sent_failures, 1);
    l->peer->lost = true;
    peer_msg_free(m);
}

static void lose_all(struct link *l)
{
    struct peer_msg *m;

    if (l->heartbeat)
        lose(l, l->heartbeat);
    l->heartbeat = NULL;
    while ((m = queue_pop(&l->queue)))
        lose(l, m);
}

/* Once for all that was lost meanwhile. */
static void tell_lost(struct peer *peer)
{
    const struct peers_sink *s = &peer->peers->sink;

    if (!peer->lost || peer->gone || atomic_load(&peer->peers->stopping))
        return;
    peer->lost = false;
    s->unreachable(s->ctx, peer->id);
}

void link_put(struct link *l, struct peer_msg *m)
{
    struct msg_queue *q = &l->queue;

    if (m->kind == PEER_RAFT && m->raft.type == RAFT_HEARTBEAT) {
        peer_msg_free(l->heartbeat);
        l->heartbeat = m;
        return;
    }
    if (l->lane == LANE_BULK && (q->n >= LIMIT_PEER_BULK || q->bytes > LIMIT_PEER_BULK_BYTES)) {
        lose(l, m); /* the newest: what is before it in the log has to arrive first */
        return;
    }
    if (l->lane == LANE_URGENT && q->n >= LIMIT_PEER_URGENT)
        lose(l, queue_pop(q)); /* the oldest: it says least */
    queue_push(q, m);
}

/* ---- what leaves next ------------------------------------------------------------------------------- */

struct batch {
    struct peer_msg *msgs[LIMIT_PEER_BATCH];
    size_t n, bytes;
};

static bool batch_full(const struct batch *b)
{
    return b->n == LIMIT_PEER_BATCH || b->bytes >= LIMIT_PEER_BATCH_BYTES;
}

static void batch_add(struct batch *b, struct peer_msg *m)
{
    b->msgs[b->n++] = m;
    b->bytes += 4 + peer_msg_size(m);
}

static bool needs_entries(const struct peer_msg *m)
{
    return is_append(m) && m->n_entries == 0 && m->raft.last > m->raft.index;
}

/* Attaches an APPEND's entries; what is cut off comes next. False: nothing more can be added now. */
static bool batch_append(struct link *l, struct batch *b, struct peer_msg *m)
{
    int err = needs_entries(m) ? peer_msg_fill(m, l->peer->peers->options.cache, NULL, LIMIT_PEER_BATCH_BYTES - b->bytes)
                               : 0;

    if (err == -EAGAIN && b->n) {
        queue_push_front(&l->queue, m); /* first what is there */
        return false;
    }
    if (err == -EAGAIN) {
        fetch_ask(l, m);
        return false;
    }
    if (err) {
        lose(l, m);
        return true;
    }
    if (m->rest)
        queue_push_front(&l->queue, m->rest);
    m->rest = NULL;
    batch_add(b, m);
    return true;
}

static void batch_gather(struct link *l, struct batch *b)
{
    struct peer_msg *m;

    if (l->heartbeat)
        batch_add(b, l->heartbeat);
    l->heartbeat = NULL;
    while (!batch_full(b) && !l->fetching && (m = queue_pop(&l->queue))) {
        if (!is_append(m))
            batch_add(b, m);
        else if (!batch_append(l, b, m))
            return;
    }
}

static void batch_send(struct link *l, struct batch *b)
{
    struct peer_counters *c = l->peer->counters;
    uint8_t *at = rpc_out_buffer(l->out, b->bytes);

    for (size_t i = 0; i < b->n; i++) {
        size_t n = peer_msg_size(b->msgs[i]);

        put_u32le(at, (uint32_t)n);
        peer_msg_encode(b->msgs[i], at + 4);
        at += 4 + n;
        peer_msg_free(b->msgs[i]);
    }
    rpc_out_send(l->out);
    peers_count(&c->sent_messages, b->n);
    peers_count(&c->sent_bytes, b->bytes);
}

void link_flush(struct link *l)
{
    struct batch b = {.n = 0, .bytes = 0};

    if (l->out && !rpc_out_busy(l->out))
        batch_gather(l, &b);
    if (b.n)
        batch_send(l, &b);
    tell_lost(l->peer);
}

void link_fetched(struct link *l)
{
    struct peer_msg *m = l->fetch.msg;

    l->fetching = false;
    l->fetch.msg = NULL;
    if (l->peer->gone) {
        peer_msg_free(m);
        return;
    }
    if (l->fetch.err)
        lose(l, m);
    else
        queue_push_front(&l->queue, m);
    link_flush(l);
}

/* ---- the log: a line for each change ------------------------------------------------------------------ */

static void say_connected(struct peer *peer)
{
    if (peer->said != SAID_CONNECTED)
        log_info("peers: connected to a member", LOG_HEX("member", peer->id), LOG_STR("url", peer->first.text));
    peer->said = SAID_CONNECTED;
}

static void say_lost(struct peer *peer, struct slice text)
{
    if (peer->said == SAID_CONNECTED)
        log_warn("peers: the connection to a member is lost", LOG_HEX("member", peer->id),
                 LOG_STR("url", peer->first.text), LOG_SLICE("error", text));
    peer->said = SAID_LOST;
}

static void say_refused(struct peer *peer, struct slice text)
{
    if (peer->said != SAID_REFUSED)
        log_warn("peers: a member refuses our stream", LOG_HEX("member", peer->id), LOG_STR("url", peer->first.text),
                 LOG_SLICE("error", text));
    peer->said = SAID_REFUSED;
}

static void say_unreachable(struct peer *peer, struct slice text)
{
    if (peer->said != SAID_UNREACHABLE && peer->said != SAID_REFUSED)
        log_warn("peers: a member cannot be reached", LOG_HEX("member", peer->id), LOG_STR("url", peer->first.text),
                 LOG_SLICE("error", text));
    peer->said = SAID_UNREACHABLE;
}

/* ---- the stream ------------------------------------------------------------------------------------------ */

static uint32_t backoff(struct link *l)
{
    struct rng *rng = l->peer->peers->options.rng;
    uint32_t ms = l->backoff_ms;

    l->backoff_ms = ms ? ms * 2 : BACKOFF_MIN_MS;
    if (l->backoff_ms > BACKOFF_MAX_MS)
        l->backoff_ms = BACKOFF_MAX_MS;
    return ms ? ms / 2 + (uint32_t)(rng->next(rng) % (ms / 2 + 1)) : 0;
}

static bool stops(const struct link *l)
{
    return l->peer->gone || atomic_load(&l->peer->peers->stopping);
}

/* The other side says that it takes our messages: its first and only one. */
static void hello(void *ctx, struct slice bytes)
{
    struct link *l = ctx;
    struct clock *clock = l->peer->peers->options.clock;

    (void)bytes;
    if (l->up)
        return;
    l->up = l->was_up = true;
    l->backoff_ms = 0;
    if (l->lane == LANE_URGENT) {
        atomic_store(&l->peer->counters->since_ms, clock->now_ms(clock));
        atomic_store(&l->peer->counters->active, true);
        say_connected(l->peer);
    }
}

static void sent(void *ctx)
{
    link_flush(ctx);
}

static void ended(void *ctx, enum status status, struct slice text)
{
    struct link *l = ctx;
    struct peer *peer = l->peer;
    struct peers *p = peer->peers;
    bool was_up = l->up;

    l->out = NULL;
    l->up = false;
    p->n_out--;
    if (l->lane == LANE_URGENT)
        atomic_store(&peer->counters->active, false);
    if (stops(l)) {
        lose_all(l);
        peers_out_over(p);
        return;
    }
    if (was_up)
        peers_count(&peer->counters->disconnects, 1);
    if (was_up)
        say_lost(peer, text);
    else if (status != STATUS_UNAVAILABLE)
        say_refused(peer, text);
    else if (l->lane == LANE_URGENT)
        say_unreachable(peer, text); /* something else listens there, or it goes as we come */
    if (status == STATUS_PERMISSION_DENIED && p->sink.removed)
        p->sink.removed(p->sink.ctx);
    peer->lost = true; /* what was on its way */
    lose_all(l);
    link_dial(l, was_up ? 0 : backoff(l));
    tell_lost(peer);
}

static void open_stream(struct link *l, int fd)
{
    struct peers *p = l->peer->peers;
    struct peers_ids ids;
    char authority[300];
    struct rpc_out_options o = {.rpc = p->rpc,
                                .thread = PEERS_THREAD,
                                .target = {.fd = fd, .authority = authority, .path = "/cairn.Peer/Messages"},
                                .received = hello,
                                .sent = sent,
                                .ended = ended,
                                .ctx = l};

    dial_authority(&l->peer->first, authority, sizeof authority);
    peers_head(p, l->peer->id, lane_names[l->lane], &ids, &o.target);
    l->out = rpc_out_open(&o);
    if (l->out == NULL) {
        link_dial(l, BACKOFF_MAX_MS);
        return;
    }
    p->n_out++;
    link_flush(l);
}

/* ---- dialing ---------------------------------------------------------------------------------------------- */

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

static void dialed(struct call *c, struct call_resume *r)
{
    struct link *l = (struct link *)((char *)r - offsetof(struct link, dialed));
    int result = l->dialed_fd;

    (void)c;
    l->dialing = false;
    if (stops(l)) {
        if (result >= 0)
            (void)close(result); /* nothing was sent */
        return;
    }
    if (result >= 0) {
        open_stream(l, result);
        return;
    }
    if (result == -ECONNREFUSED)
        suspect(l);
    if (l->lane == LANE_URGENT)
        say_unreachable(l->peer, slice_str(strerror(-result)));
    lose_all(l);
    link_dial(l, backoff(l));
    tell_lost(l->peer);
}

/* The dialer's thread. */
static void dial_done(void *ctx, int fd, int err)
{
    struct link *l = ctx;

    l->dialed_fd = err ? err : fd;
    l->dialed.fn = dialed;
    rpc_post(l->peer->peers->rpc, PEERS_THREAD, &l->dialed);
}

void link_dial(struct link *l, uint32_t delay_ms)
{
    if (stops(l) || l->dial == NULL)
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

int link_init(struct link *l, struct peer *peer, enum lane lane)
{
    struct dial_options o = {.urls = peer->urls.urls, .n_urls = peer->urls.n, .done = dial_done, .ctx = l};

    *l = (struct link){.peer = peer, .lane = lane};
    return peer->urls.n ? dial_new(peer->peers->dialer, &o, &l->dial) : 0;
}

void link_drop(struct link *l)
{
    dial_free(l->dial);
    l->dial = NULL;
    if (l->out)
        rpc_out_cut(l->out);
    lose_all(l);
}

void link_fini(struct link *l)
{
    lose_all(l);
    peer_msg_free(l->fetch.msg);
    l->fetch.msg = NULL;
}
