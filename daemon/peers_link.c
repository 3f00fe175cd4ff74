/* SPDX-License-Identifier: Apache-2.0 */
/* peers_link.c - one connection to a member: its lane, what leaves next, and what follows when it breaks.
 *
 *      dialing --connected--> head sent --accepted--> up --broken--> dialing, at once
 *         ^ \                     |refused                              |port refuses
 *         |  +--20..200 ms--+ <---+                                     +--> suspect()
 *
 * Who sends a message writes it, with all that waits, when nobody else is just writing; what is long (many entries, a
 * full socket) is left to the peers' thread, so a sender never spends more than some microseconds here.
 *
 * Two connections to each member, urgent and bulk: with one, what has been given to the socket, up to a megabyte,
 * stands before every heartbeat, and a lost packet of the entries holds the heartbeats too.
 *
 * Not a stream of gRPC's: there a message that goes alone costs 45 us on both sides together, a thread of ours and one
 * of core's to wake, and a window update back; here it costs 12, and the reply leaves on the thread that it came on.
 *
 * Owner:    the peers' thread, but for what peers_impl.h says.
 * Not here: connecting (peers_dial.c, dial.c).
 */
#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include "log.h"
#include "peers_impl.h"

enum {
    BACKOFF_MIN_MS = 20,
    BACKOFF_MAX_MS = 200,
    DIRECT_ENTRIES = 64,      /* waiting in a lane: more than that is the peers' thread's to send */
    SMALL_BYTES = 16 << 10,   /* a batch that needs no memory of its own */
};

/* ---- queues --------------------------------------------------------------------------------------- */

static bool is_append(const struct peer_msg *m)
{
    return m->kind == PEER_RAFT && m->raft.type == RAFT_APPEND;
}

static size_t queue_cost(const struct peer_msg *m)
{
    return is_append(m) ? 0 : peer_msg_size(m);
}

static void queue_push(struct msg_queue *q, struct peer_msg *m)
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

static void queue_push_front(struct msg_queue *q, struct peer_msg *m)
{
    m->mail.next = q->first ? &q->first->mail : NULL;
    q->first = m;
    if (q->last == NULL)
        q->last = m;
    q->n++;
    q->bytes += queue_cost(m);
}

static struct peer_msg *queue_pop(struct msg_queue *q)
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

/* A message is not sent, and the core shall know: the peers' thread tells it. */
static void lose(struct link *l, struct peer_msg *m)
{
    peers_add(&l->peer->counters->sent_failures, 1);
    if (!atomic_exchange(&l->peer->lost, true))
        io_wake(l->peer->peers);
    peer_msg_free(m);
}

/* Once for all that was lost meanwhile. */
void peer_tell_lost(struct peer *peer)
{
    const struct peers_sink *s = &peer->peers->sink;

    if (!atomic_load_explicit(&peer->lost, memory_order_relaxed) || peer->gone || atomic_load(&peer->peers->stopping))
        return;
    atomic_store(&peer->lost, false);
    s->unreachable(s->ctx, peer->id);
}

/* mu is held. */
static void lane_put(struct link *l, struct peer_msg *m)
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
    int err =
        needs_entries(m) ? peer_msg_fill(m, l->peer->peers->options.cache, NULL, LIMIT_PEER_BATCH_BYTES - b->bytes) : 0;

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

/* ---- writing: mu is held ------------------------------------------------------------------------------- */

static void watch(struct link *l, bool blocked)
{
    struct epoll_event ev = {.events = EPOLLIN | (blocked ? EPOLLOUT : 0u), .data.ptr = &l->end};

    if (l->blocked == blocked)
        return;
    l->blocked = blocked;
    (void)epoll_ctl(l->peer->peers->epoll_fd, EPOLL_CTL_MOD, l->fd, &ev); /* it is registered: cannot fail */
}

/* How many bytes the socket took. A broken one takes all: that it is broken comes by epoll. */
static size_t give(struct link *l, const uint8_t *b, size_t n)
{
    ssize_t done;

    do
        done = l->tls ? tls_send(l->tls, b, n) : send(l->fd, b, n, MSG_NOSIGNAL);
    while (done < 0 && errno == EINTR);
    if (done >= 0)
        return (size_t)done;
    if (errno == EAGAIN)
        return 0;
    (void)shutdown(l->fd, SHUT_RDWR); /* so that it does */
    return n;
}

/* True: nothing is left over. */
static bool give_rest(struct link *l)
{
    size_t n;

    if (l->left == NULL)
        return true;
    n = give(l, l->left + l->left_at, l->left_n);
    l->left_at += n;
    l->left_n -= n;
    if (l->left_n) {
        watch(l, true);
        return false;
    }
    free(l->left);
    l->left = NULL;
    watch(l, false);
    return true;
}

static void batch_encode(struct batch *b, uint8_t *at)
{
    for (size_t i = 0; i < b->n; i++) {
        size_t n = peer_msg_size(b->msgs[i]);

        put_u32le(at, (uint32_t)n);
        peer_msg_encode(b->msgs[i], at + 4);
        at += 4 + n;
    }
}

/* False: the socket is full. */
static bool batch_give(struct link *l, struct batch *b)
{
    struct peer_counters *c = l->peer->counters;
    uint8_t small[SMALL_BYTES], *bytes = b->bytes <= sizeof small ? small : malloc(b->bytes);
    size_t n = 0;

    if (bytes) {
        batch_encode(b, bytes);
        n = give(l, bytes, b->bytes);
        peers_add(&c->sent_messages, b->n);
        peers_add(&c->sent_bytes, b->bytes);
    }
    if (bytes && n < b->bytes) {
        l->left_at = 0;
        l->left_n = b->bytes - n;
        l->left = malloc(l->left_n);
        if (l->left)
            memcpy(l->left, bytes + n, l->left_n);
        else
            (void)shutdown(l->fd, SHUT_RDWR); /* half a message cannot be followed by another */
    }
    for (size_t i = 0; i < b->n; i++)
        bytes ? peer_msg_free(b->msgs[i]) : lose(l, b->msgs[i]);
    if (bytes != small)
        free(bytes);
    return give_rest(l);
}

/* Too much for whoever just has something to send. */
static bool is_long(const struct link *l)
{
    size_t entries = 0, n = 0;

    for (const struct peer_msg *m = l->queue.first; m && entries <= DIRECT_ENTRIES;
         m = (struct peer_msg *)m->mail.next) {
        entries += is_append(m) ? (size_t)(m->raft.last - m->raft.index) : m->n_entries;
        if (++n > DIRECT_ENTRIES)
            return true;
    }
    return entries > DIRECT_ENTRIES;
}

static void link_write(struct link *l, bool io)
{
    if (l->fetching || (l->blocked && !io))
        return; /* what was read, or room in the socket, is waited for */
    while (l->fd >= 0 && give_rest(l)) {
        struct batch b = {.n = 0, .bytes = 0};

        if (!io && is_long(l)) {
            if (!atomic_exchange(&l->wants_io, true))
                io_wake(l->peer->peers);
            return;
        }
        batch_gather(l, &b);
        if (b.n == 0 || !batch_give(l, &b))
            return;
    }
}

static void take_box(struct link *l)
{
    struct mail *m, *next;

    for (m = mailbox_take(&l->box); m; m = next) {
        next = m->next;
        atomic_fetch_sub_explicit(&l->n_box, 1, memory_order_relaxed);
        if (l->peer->gone)
            peer_msg_free((struct peer_msg *)m);
        else
            lane_put(l, (struct peer_msg *)m);
    }
}

/* Whoever finds the lock taken goes: its holder looks at the box once more after letting go. */
static void link_run(struct link *l, bool io)
{
    do {
        if (pthread_mutex_trylock(&l->mu))
            return;
        take_box(l);
        link_write(l, io);
        pthread_mutex_unlock(&l->mu);
        atomic_thread_fence(memory_order_seq_cst);
    } while (atomic_load(&l->box.head));
}

void link_send(struct link *l, struct peer_msg *m)
{
    if (atomic_fetch_add_explicit(&l->n_box, 1, memory_order_relaxed) >= LIMIT_PEER_OUTBOX) {
        atomic_fetch_sub_explicit(&l->n_box, 1, memory_order_relaxed);
        lose(l, m);
        return;
    }
    mailbox_post_quietly(&l->box, &m->mail, &m->mail);
    if (io_is_me(l->peer->peers)) {
        atomic_store(&l->wants_io, true); /* with all that follows from this round's events */
        return;
    }
    atomic_thread_fence(memory_order_seq_cst);
    link_run(l, false);
}

void link_flush(struct link *l)
{
    pthread_mutex_lock(&l->mu);
    take_box(l);
    link_write(l, true);
    pthread_mutex_unlock(&l->mu);
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&l->box.head))
        link_run(l, true);
}

void link_fetched(struct link *l)
{
    struct peer_msg *m;

    pthread_mutex_lock(&l->mu);
    m = l->fetch.msg;
    l->fetching = false;
    l->fetch.msg = NULL;
    if (l->peer->gone || atomic_load(&l->peer->peers->stopping))
        peer_msg_free(m);
    else if (l->fetch.err)
        lose(l, m);
    else
        queue_push_front(&l->queue, m);
    pthread_mutex_unlock(&l->mu);
    link_flush(l);
}

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
    struct peer_msg *m;

    pthread_mutex_lock(&l->mu);
    if (l->fd >= 0)
        (void)close(l->fd); /* epoll forgets it with that */
    l->fd = -1;
    tls_free(l->tls);
    l->tls = NULL;
    l->blocked = false;
    free(l->left);
    l->left = NULL;
    take_box(l);
    if (l->heartbeat)
        lose(l, l->heartbeat);
    l->heartbeat = NULL;
    while ((m = queue_pop(&l->queue)))
        lose(l, m);
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
