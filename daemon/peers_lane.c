/* SPDX-License-Identifier: Apache-2.0 */
/* peers_lane.c - what waits to be sent to a member, what leaves next, and who writes it.
 *
 * Who sends a message writes it, with all that waits, when nobody else is just writing; what is long (many entries, a
 * full socket) is left to the peers' thread, so a sender never spends more than some microseconds here.
 *
 * Two lanes to each member, urgent and bulk, and a connection for each: with one, what has been given to the socket, up
 * to a megabyte, stands before every heartbeat, and a lost packet of the entries holds the heartbeats too.
 *
 * Owner:    whoever holds the link's mu, but for what peers_impl.h says.
 * Not here: the connection itself (peers_link.c), entries that are only on the disk (peers_fetch.c).
 */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include "peers_impl.h"

enum {
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

void link_lose_all(struct link *l)
{
    struct peer_msg *m;

    take_box(l);
    if (l->heartbeat)
        lose(l, l->heartbeat);
    l->heartbeat = NULL;
    while ((m = queue_pop(&l->queue)))
        lose(l, m);
}
