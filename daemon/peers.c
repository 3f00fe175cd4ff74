/* SPDX-License-Identifier: Apache-2.0 */
/* peers.c - the transport as a whole: made, started, stopped; who is a member; what the turn sends.
 *
 *      turn: peers_send --> outbox --> drain(), on the peers' thread --> the members' lanes --> link_flush
 *
 * A post to an outbox that has not been drained yet wakes nobody: a turn that sends to everybody wakes the thread once.
 *
 * The order of the stop: the port closes first, so that others learn at once that it refuses; then dialing and reading
 * end, then our streams, then the server with those of others.
 *
 * Owner:    the peers' thread, but for what peers_impl.h says.
 */
#include <errno.h>
#include <stdio.h>
#include <time.h>
#include "log.h"
#include "peers_impl.h"

enum { WINDOW_BYTES = 1 << 20, CUT_MS = 300, REQUEST_MS = 5000, KEEPALIVE_MIN_MS = 1000 };

/* ---- rows --------------------------------------------------------------------------------------------- */

struct peer *peers_find(struct peers *p, uint64_t id)
{
    struct peer *peer = p->all;

    while (peer && peer->id != id)
        peer = peer->next;
    return peer;
}

bool peers_is_removed(const struct peers *p, uint64_t id)
{
    for (size_t i = 0; p->roster && i < p->roster->n_removed; i++)
        if (p->roster->removed[i] == id)
            return true;
    return false;
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

    if (atomic_load_explicit(&p->stopping, memory_order_relaxed)) {
        peer_msg_free(m);
        return;
    }
    if (atomic_load_explicit(&p->n_outbox, memory_order_relaxed) >= LIMIT_PEER_OUTBOX) {
        atomic_store(&p->overflown, true);
        peer_msg_free(m);
        return;
    }
    atomic_fetch_add_explicit(&p->n_outbox, 1, memory_order_relaxed);
    mailbox_post_quietly(&p->outbox, &m->mail, &m->mail);
    if (!atomic_exchange(&p->woken, true))
        rpc_post(p->rpc, PEERS_THREAD, &p->drain);
}

static void drain(struct call *c, struct call_resume *r)
{
    struct peers *p = (struct peers *)((char *)r - offsetof(struct peers, drain));
    bool overflown;
    struct mail *mail, *next;

    (void)c;
    atomic_store(&p->woken, false); /* before the look: what comes after it posts again */
    overflown = atomic_exchange(&p->overflown, false);
    for (mail = mailbox_take(&p->outbox); mail; mail = next) {
        struct peer_msg *m = (struct peer_msg *)mail;
        struct peer *peer = peers_find(p, m->to);

        next = mail->next;
        atomic_fetch_sub_explicit(&p->n_outbox, 1, memory_order_relaxed);
        if (peer && !atomic_load(&p->stopping))
            link_put(&peer->links[msg_lane(m)], m);
        else
            peer_msg_free(m);
    }
    for (struct peer *peer = p->all; peer; peer = peer->next) {
        peer->lost |= overflown;
        link_flush(&peer->links[LANE_URGENT]);
        link_flush(&peer->links[LANE_BULK]);
    }
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
static void keep_plain_urls(struct peer *peer)
{
    size_t n = 0;

    for (size_t i = 0; i < peer->urls.n; i++) {
        const struct url *u = &peer->urls.urls[i];

        if (u->scheme == URL_HTTP || u->scheme == URL_UNIX)
            peer->urls.urls[n++] = *u;
        else
            log_error("peers: a member's URL cannot be used: there is no TLS between members yet; give it an http:// one",
                      LOG_HEX("member", peer->id), LOG_STR("url", u->text));
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
    peer->counters = peers_counters(p, m->id);
    arena_init(&peer->arena, 1 << 20, NULL, 0);
    peer->urls_text = peers_join_urls(m, &peer->arena);
    bad = peer->urls_text ? config_parse_urls(&peer->arena, peer->urls_text, &peer->urls) : "no memory";
    if (bad) {
        log_error("peers: a member's URLs are not to be understood", LOG_HEX("member", m->id), LOG_STR("error", bad));
        peer->urls.n = 0;
    }
    keep_plain_urls(peer);
    if (peer->urls.n)
        peer->first = peer->urls.urls[0];
    if (link_init(&peer->links[LANE_URGENT], peer, LANE_URGENT) || link_init(&peer->links[LANE_BULK], peer, LANE_BULK))
        log_error("peers: no memory for a member", LOG_HEX("member", m->id));
    peer->next = p->all;
    p->all = peer;
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

static void peer_drop(struct peers *p, struct peer *peer)
{
    peer->gone = true;
    atomic_store(&peer->counters->active, false);
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
static void roster_come(struct call *c, struct call_resume *task)
{
    struct roster *r = (struct roster *)((char *)task - offsetof(struct roster, task)), *old;
    struct peers *p = r->peers;

    (void)c;
    pthread_mutex_lock(&p->roster_mu);
    old = p->roster;
    p->roster = r;
    pthread_mutex_unlock(&p->roster_mu);
    roster_free(old);
    if (atomic_load(&p->stopping))
        return;
    for (struct peer **at = &p->all; *at;) {
        struct peer *peer = *at;

        if (roster_row(r, peer)) {
            at = &peer->next;
        } else {
            *at = peer->next;
            peer_drop(p, peer);
        }
    }
    for (size_t i = 0; i < r->n; i++)
        if (r->members[i].id != p->options.member_id && peers_find(p, r->members[i].id) == NULL)
            peer_add(p, &r->members[i]);
    peers_drop_incoming(p);
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
    rpc_post(p->rpc, PEERS_THREAD, &r->task);
    return 0;
}

/* ---- making ------------------------------------------------------------------------------------------------------- */

static void give_grpc(void *ctx, int fd)
{
    struct peers *p = ctx;

    rpc_add_fd(p->rpc, fd);
}

static void cut(void *ctx)
{
    struct peers *p = ctx;

    pump_cut(p->pump);
}

static int open_listeners(struct peers *p, const struct url **ret_bad)
{
    const struct url_list *urls = p->options.listen;

    p->listeners = calloc(urls->n + 1, sizeof *p->listeners);
    if (p->listeners == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < urls->n; i++) {
        int err = listener_open(&urls->urls[i], &p->listeners[i]);

        if (err == 0) {
            p->n_listeners++;
            err = pump_listen(p->pump, &p->listeners[i]);
        }
        if (err) {
            *ret_bad = &urls->urls[i];
            return err;
        }
    }
    return 0;
}

static int make_rpc(struct peers *p)
{
    struct rpc_options o = {.methods = p->methods,
                            .n_methods = 2,
                            .service = p,
                            .name = "peers",
                            .threads = 1,
                            .max_request_bytes = LIMIT_PEER_MESSAGE_BYTES - LIMIT_REQUEST_SLACK_BYTES,
                            .max_concurrent_streams = LIMIT_PEER_STREAMS,
                            .keepalive_min_ms = KEEPALIVE_MIN_MS,
                            .request_timeout_ms = REQUEST_MS,
                            .lookahead_bytes = WINDOW_BYTES,
                            .cut = cut,
                            .cut_ctx = p};

    p->methods[0] = peers_messages_method;
    p->methods[1] = peers_members_method;
    if (p->options.snapshot)
        p->methods[o.n_methods++] = *p->options.snapshot;
    return rpc_new(&o, &p->rpc);
}

static void stop_task(struct call *c, struct call_resume *r);

int peers_new(const struct peers_options *o, struct peers **ret_peers, const struct url **ret_bad)
{
    struct peers *p = calloc(1, sizeof *p);
    struct pump_options pump = {.streams_max = LIMIT_PEER_STREAMS, .grpc = give_grpc, .ctx = p};
    pthread_condattr_t attr;
    int err;

    *ret_bad = NULL;
    if (p == NULL)
        return -ENOMEM;
    p->transport.send = peers_send;
    p->options = *o;
    p->wal = o->wal;
    p->drain.fn = drain;
    p->stop.fn = stop_task;
    mailbox_init(&p->outbox, -1);
    mailbox_init(&p->fetch_box, -1);
    pthread_mutex_init(&p->roster_mu, NULL);
    pthread_mutex_init(&p->wal_mu, NULL);
    pthread_mutex_init(&p->mu, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&p->cond, &attr);
    pthread_condattr_destroy(&attr);
    err = pump_new(&pump, &p->pump);
    if (err == 0)
        err = open_listeners(p, ret_bad);
    if (err == 0)
        err = dialer_new(&p->dialer);
    if (err == 0)
        err = make_rpc(p);
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
    err = dialer_start(p->dialer);
    if (err == 0)
        err = fetch_start(p);
    if (err == 0)
        err = rpc_start(p->rpc);
    p->started = err == 0;
    return err ? err : pump_start(p->pump);
}

/* ---- the stop ------------------------------------------------------------------------------------------------------ */

static void stop_look(struct peers *p)
{
    pthread_mutex_lock(&p->mu);
    p->cut_done = p->n_out == 0;
    pthread_cond_broadcast(&p->cond);
    pthread_mutex_unlock(&p->mu);
}

void peers_out_over(struct peers *p)
{
    if (atomic_load(&p->stopping))
        stop_look(p);
}

/* On the peers' thread: every stream of ours is cut. */
static void stop_task(struct call *c, struct call_resume *r)
{
    struct peers *p = (struct peers *)((char *)r - offsetof(struct peers, stop));

    (void)c;
    for (struct peer *peer = p->all; peer; peer = peer->next) {
        link_drop(&peer->links[LANE_URGENT]);
        link_drop(&peer->links[LANE_BULK]);
    }
    stop_look(p);
}

static void await_cut(struct peers *p)
{
    uint64_t until_ms = p->options.clock->now_ms(p->options.clock) + CUT_MS;
    struct timespec until = {.tv_sec = (time_t)(until_ms / 1000), .tv_nsec = (long)(until_ms % 1000) * 1000000};

    rpc_post(p->rpc, PEERS_THREAD, &p->stop);
    pthread_mutex_lock(&p->mu);
    while (!p->cut_done && pthread_cond_timedwait(&p->cond, &p->mu, &until) != ETIMEDOUT)
        ;
    pthread_mutex_unlock(&p->mu);
}

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
    atomic_store(&p->stopping, true);
    dialer_stop(p->dialer);
    fetch_stop(p);
    await_cut(p);
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
    struct mail *m, *next;

    if (p == NULL)
        return;
    peers_stop(p);
    dialer_stop(p->dialer);
    fetch_stop(p);
    close_listeners(p);
    rpc_free(p->rpc);
    pump_free(p->pump);
    dialer_free(p->dialer);
    peers_free_list(p->all);
    peers_free_list(p->gone);
    for (m = mailbox_take(&p->outbox); m; m = next) {
        next = m->next;
        peer_msg_free((struct peer_msg *)m);
    }
    roster_free(p->roster);
    pthread_cond_destroy(&p->cond);
    pthread_mutex_destroy(&p->mu);
    pthread_mutex_destroy(&p->wal_mu);
    pthread_mutex_destroy(&p->roster_mu);
    free(p->listeners);
    free(p);
}
