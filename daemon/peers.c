/* SPDX-License-Identifier: Apache-2.0 */
/* peers.c - the transport as a whole: made, started, stopped; who is a member; what the turn sends.
 *
 * The order of the stop: the port closes first, so that others learn at once that it refuses; then dialing, handshakes
 * and reading end, then the peers' thread with every connection, then gRPC.
 *
 * Owner:    the thread that starts and stops the member, but for what peers_impl.h says.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "log.h"
#include "peers_impl.h"

/* ---- rows --------------------------------------------------------------------------------------------- */

struct peer *peers_find(struct peers *p, uint64_t id)
{
    struct peer *peer;

    pthread_mutex_lock(&p->all_mu);
    for (peer = p->all; peer && peer->id != id; peer = peer->next)
        ;
    pthread_mutex_unlock(&p->all_mu);
    return peer;
}

bool peers_is_removed(struct peers *p, uint64_t id)
{
    bool found = false;

    pthread_mutex_lock(&p->roster_mu);
    for (size_t i = 0; p->roster && i < p->roster->n_removed; i++)
        found |= p->roster->removed[i] == id;
    pthread_mutex_unlock(&p->roster_mu);
    return found;
}

struct peer_counters *peers_counters(struct peers *p, uint64_t id)
{
    for (size_t i = 0; i < PEERS_STATS_MAX; i++) {
        struct peer_counters *c = &p->counters[i];

        if (atomic_load(&c->member) == 0)
            atomic_store(&c->member, id);
        if (atomic_load(&c->member) == id)
            return c;
    }
    return &p->other;
}

size_t peers_stats(const struct peers *p, struct peers_stats ret_stats[PEERS_STATS_MAX])
{
    size_t n = 0;

    for (; n < PEERS_STATS_MAX && atomic_load(&p->counters[n].member); n++) {
        const struct peer_counters *c = &p->counters[n];

        ret_stats[n] = (struct peers_stats){.member = c->member,
                                            .active = c->active,
                                            .since_ms = c->since_ms,
                                            .sent_bytes = c->sent_bytes,
                                            .sent_messages = c->sent_messages,
                                            .sent_failures = c->sent_failures,
                                            .received_bytes = c->received_bytes,
                                            .received_messages = c->received_messages,
                                            .received_failures = c->received_failures,
                                            .disconnects = c->disconnects};
    }
    return n;
}

uint64_t peers_active_since(const struct peers *p, uint64_t member)
{
    for (size_t n = 0; n < PEERS_STATS_MAX && atomic_load(&p->counters[n].member); n++)
        if (p->counters[n].member == member)
            return atomic_load(&p->counters[n].active) ? atomic_load(&p->counters[n].since_ms) : 0;
    return 0;
}

void *peers_snapshot_ctx(const struct peers *p)
{
    return p->options.snapshot_ctx;
}

/* ---- from the turn ---------------------------------------------------------------------------------------- */

static void peers_send(struct transport *t, struct peer_msg *m)
{
    struct peers *p = (struct peers *)t;
    struct peer *peer = atomic_load_explicit(&p->stopping, memory_order_relaxed) ? NULL : peers_find(p, m->to);

    if (peer)
        link_send(&peer->links[msg_lane(m)], m);
    else
        peer_msg_free(m);
}

struct transport *peers_transport(struct peers *p)
{
    return &p->transport;
}

/* ---- members -------------------------------------------------------------------------------------------------- */

char *peers_join_urls(const struct peers_member *m, struct arena *a)
{
    size_t n = 1, at = 0;
    char *text;

    for (size_t i = 0; i < m->n_urls; i++)
        n += strlen(m->urls[i]) + 1;
    text = arena_alloc(a, n);
    for (size_t i = 0; i < m->n_urls && text; i++)
        at += (size_t)snprintf(text + at, n - at, "%s%s", i ? "," : "", m->urls[i]);
    return text;
}

static void peer_free(struct peer *peer)
{
    link_fini(&peer->links[LANE_URGENT]);
    link_fini(&peer->links[LANE_BULK]);
    arena_fini(&peer->arena);
    free(peer);
}

/* Keeps the URLs that can be dialed. */
static void keep_our_urls(struct peer *peer)
{
    size_t n = 0;

    for (size_t i = 0; i < peer->urls.n; i++) {
        const struct url *u = &peer->urls.urls[i];

        if (!url_is_tls(u) || (u->scheme == URL_HTTPS && peer->peers->options.tls))
            peer->urls.urls[n++] = *u;
        else
            log_error("peers: a member's URL cannot be used", LOG_HEX("member", peer->id), LOG_STR("url", u->text),
                      LOG_STR("do", u->scheme == URL_HTTPS ? "give this member --peer-cert-file and --peer-key-file"
                                                           : "give that member an https:// or unix:// one"));
    }
    peer->urls.n = n;
}

static void peer_add(struct peers *p, const struct peers_member *m)
{
    struct peer *peer = calloc(1, sizeof *peer);
    const char *bad;

    if (peer == NULL) {
        log_error("peers: no memory for a member", LOG_HEX("member", m->id));
        return;
    }
    peer->peers = p;
    peer->id = m->id;
    peer->url = "";
    peer->counters = peers_counters(p, m->id);
    arena_init(&peer->arena, 1 << 20, NULL, 0);
    peer->urls_text = peers_join_urls(m, &peer->arena);
    bad = peer->urls_text ? config_parse_urls(&peer->arena, peer->urls_text, &peer->urls) : "no memory";
    if (bad) {
        log_error("peers: a member's URLs are not to be understood", LOG_HEX("member", m->id), LOG_STR("error", bad));
        peer->urls.n = 0;
    }
    keep_our_urls(peer);
    if (peer->urls.n)
        peer->url = peer->urls.urls[0].text;
    if (link_init(&peer->links[LANE_URGENT], peer, LANE_URGENT) || link_init(&peer->links[LANE_BULK], peer, LANE_BULK))
        log_error("peers: no memory for a member", LOG_HEX("member", m->id));
    pthread_mutex_lock(&p->all_mu);
    peer->next = p->all;
    p->all = peer;
    pthread_mutex_unlock(&p->all_mu);
    link_dial(&peer->links[LANE_URGENT], 0);
    link_dial(&peer->links[LANE_BULK], 0);
}

static const struct peers_member *roster_row(const struct roster *r, const struct peer *peer)
{
    for (size_t i = 0; i < r->n; i++) {
        struct arena a;
        char *text;
        bool same;

        if (r->members[i].id != peer->id)
            continue;
        arena_init(&a, 1 << 20, NULL, 0);
        text = peers_join_urls(&r->members[i], &a);
        same = text && peer->urls_text && strcmp(text, peer->urls_text) == 0;
        arena_fini(&a);
        return same ? &r->members[i] : NULL;
    }
    return NULL;
}

/* at: what names it in the list. */
static void peer_drop(struct peers *p, struct peer **at)
{
    struct peer *peer = *at;

    pthread_mutex_lock(&p->all_mu);
    *at = peer->next;
    pthread_mutex_unlock(&p->all_mu);
    peer->gone = true;
    link_drop(&peer->links[LANE_URGENT]);
    link_drop(&peer->links[LANE_BULK]);
    peer->next = p->gone;
    p->gone = peer;
}

static void roster_free(struct roster *r)
{
    if (r == NULL)
        return;
    arena_fini(&r->arena);
    free(r);
}

/* A new roster has come: drops whom it does not name (or at another address), adds whom we do not have. */
static void roster_come(struct task *task)
{
    struct roster *r = (struct roster *)((char *)task - offsetof(struct roster, task)), *old;
    struct peers *p = r->peers;

    pthread_mutex_lock(&p->roster_mu);
    old = p->roster;
    p->roster = r;
    pthread_mutex_unlock(&p->roster_mu);
    roster_free(old);
    if (atomic_load(&p->stopping))
        return;
    for (struct peer **at = &p->all; *at;) {
        struct peer *peer = *at;

        if (roster_row(r, peer))
            at = &peer->next;
        else
            peer_drop(p, at);
    }
    for (size_t i = 0; i < r->n; i++)
        if (r->members[i].id != p->options.member_id && peers_find(p, r->members[i].id) == NULL)
            peer_add(p, &r->members[i]);
    incoming_drop_removed(p);
}

static char *copy_str(struct arena *a, const char *s)
{
    return (char *)(uintptr_t)arena_copy(a, slice_of(s, strlen(s) + 1)).ptr;
}

static bool copy_member(struct arena *a, const struct peers_member *from, struct peers_member *to)
{
    const char **urls = arena_alloc(a, (from->n_urls + 1) * sizeof *urls);

    *to = *from;
    to->name = copy_str(a, from->name ? from->name : "");
    to->urls = urls;
    for (size_t i = 0; i < from->n_urls && urls; i++)
        if ((urls[i] = copy_str(a, from->urls[i])) == NULL)
            return false;
    return urls && to->name;
}

int peers_set_members(struct peers *p, const struct peers_member *members, size_t n, const uint64_t *removed,
                      size_t n_removed)
{
    struct roster *r = calloc(1, sizeof *r);
    bool ok = r != NULL;

    if (!ok)
        return -ENOMEM;
    arena_init(&r->arena, 64 << 20, NULL, 0);
    r->peers = p;
    r->n = n;
    r->n_removed = n_removed;
    r->members = arena_alloc(&r->arena, (n + 1) * sizeof *r->members);
    r->removed = arena_alloc(&r->arena, (n_removed + 1) * sizeof *r->removed);
    ok = r->members && r->removed;
    for (size_t i = 0; i < n && ok; i++)
        ok = copy_member(&r->arena, &members[i], &r->members[i]);
    if (!ok) {
        roster_free(r);
        return -ENOMEM;
    }
    if (n_removed)
        memcpy(r->removed, removed, n_removed * sizeof *removed);
    r->task.fn = roster_come;
    io_post(p, &r->task);
    return 0;
}

/* ---- making
 * ------------------------------------------------------------------------------------------------------- */

static void give_grpc(void *ctx, int fd)
{
    struct peers *p = ctx;

    rpc_add_fd(p->rpc, fd);
}

/* Bytes that are no HTTP/2: a stream of messages, or nothing of ours. */
static void give_stream(void *ctx, int fd, const struct sockaddr *addr, socklen_t len)
{
    (void)addr, (void)len;
    incoming_add(ctx, fd, NULL);
}

static void give_tls_stream(void *ctx, int fd, struct tls *tls)
{
    incoming_add(ctx, fd, tls);
}

static int open_listeners(struct peers *p, const struct url **ret_bad)
{
    int err = listeners_open(p->options.listen, &p->listeners, &p->n_listeners, ret_bad);

    for (size_t i = 0; i < p->n_listeners && err == 0; i++) {
        err = pump_listen(p->pump, &p->listeners[i]);
        if (err)
            *ret_bad = p->listeners[i].url;
    }
    return err;
}

static int make_io(struct peers *p)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &p->wake};

    p->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    p->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (p->event_fd < 0 || p->epoll_fd < 0 || epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, p->event_fd, &ev))
        return -errno;
    mailbox_init(&p->tasks, p->event_fd);
    p->buffer = malloc(LIMIT_PEER_READ_BYTES);
    return p->buffer ? 0 : -ENOMEM;
}

int peers_new(const struct peers_options *o, struct peers **ret_peers, const struct url **ret_bad)
{
    struct peers *p = calloc(1, sizeof *p);
    struct pump_options pump = {.streams_max = LIMIT_PEER_STREAMS,
                                .grpc = give_grpc,
                                .http = give_stream,
                                .stream = give_tls_stream,
                                .ctx = p,
                                .tls = o->tls};
    int err;

    *ret_bad = NULL;
    if (p == NULL)
        return -ENOMEM;
    p->transport.send = peers_send;
    p->options = *o;
    p->event_fd = p->epoll_fd = -1;
    mailbox_init(&p->fetch_box, -1);
    pthread_mutex_init(&p->roster_mu, NULL);
    pthread_mutex_init(&p->all_mu, NULL);
    err = make_io(p);
    if (err == 0 && o->tls)
        err = handshakes_new(&p->handshakes);
    pump.handshakes = p->handshakes;
    if (err == 0)
        err = pump_new(&pump, &p->pump);
    if (err == 0)
        err = open_listeners(p, ret_bad);
    if (err == 0)
        err = dialer_new(&p->dialer);
    if (err == 0)
        err = peers_rpc_new(p);
    if (err) {
        peers_free(p);
        return err;
    }
    *ret_peers = p;
    return 0;
}

int peers_start(struct peers *p, const struct peers_sink *sink)
{
    int err;

    p->sink = *sink;
    p->started = true;
    err = dialer_start(p->dialer);
    if (err == 0 && p->handshakes)
        err = handshakes_start(p->handshakes);
    if (err == 0)
        err = fetch_start(p);
    if (err == 0)
        err = io_start(p);
    if (err == 0)
        err = rpc_start(p->rpc);
    return err ? err : pump_start(p->pump);
}

/* ---- the stop
 * ------------------------------------------------------------------------------------------------------ */

static void close_listeners(struct peers *p)
{
    for (size_t i = 0; i < p->n_listeners; i++)
        listener_close(&p->listeners[i]);
    p->n_listeners = 0;
}

void peers_stop(struct peers *p)
{
    if (!p->started || p->stopped)
        return;
    p->stopped = true;
    pump_stop_accepting(p->pump);
    close_listeners(p);
    dialer_stop(p->dialer);
    handshakes_stop(p->handshakes);
    fetch_stop(p);
    io_stop(p);
    rpc_stop(p->rpc);
    pump_stop(p->pump);
}

static void peers_free_list(struct peer *list)
{
    while (list) {
        struct peer *next = list->next;

        peer_free(list);
        list = next;
    }
}

void peers_free(struct peers *p)
{
    if (p == NULL)
        return;
    peers_stop(p);
    close_listeners(p);
    rpc_free(p->rpc);
    pump_free(p->pump);
    dialer_free(p->dialer);
    handshakes_free(p->handshakes);
    if (p->epoll_fd >= 0 && p->event_fd >= 0)
        io_end(p);
    peers_free_list(p->all);
    peers_free_list(p->gone);
    roster_free(p->roster);
    if (p->epoll_fd >= 0)
        (void)close(p->epoll_fd); /* they hold nothing */
    if (p->event_fd >= 0)
        (void)close(p->event_fd);
    pthread_mutex_destroy(&p->all_mu);
    pthread_mutex_destroy(&p->roster_mu);
    free(p->buffer);
    free(p->listeners);
    free(p);
}
