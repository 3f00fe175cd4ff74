/* SPDX-License-Identifier: Apache-2.0 */
/* member_peers.c - a member among others: who they are, what comes from them, and whom to ask before there is a
 * cluster.
 *
 * Owner: the main thread, but for what the peers' thread (sink), apply's (members_changed) and rpc's (connected)
 * call. */
#include <errno.h>
#include <poll.h>
#include <unistd.h>
#include "limits.h"
#include "log.h"
#include "member_impl.h"
#include "peer.pb-c.h"

enum { ASK_MS = 3000, ASK_AGAIN_MS = 500 };

/* ---- asking a running cluster ------------------------------------------------------------------- */

/* What one answer says. */
static const char *take_answer(struct arena *a, const Cairn__MembersResponse *resp, struct bootstrap_cluster *ret)
{
    struct bootstrap_cluster k = {.id = resp->cluster_id,
                                  .members = arena_alloc(a, (resp->n_members + 1) * sizeof *k.members),
                                  .started = arena_alloc(a, (resp->n_members + 1) * sizeof *k.started)};

    if (k.members == NULL || k.started == NULL)
        return "out of memory";
    for (; k.n < resp->n_members; k.n++) {
        const Cairn__PeerMember *from = resp->members[k.n];
        const char **urls = arena_alloc(a, (from->n_peer_urls + 1) * sizeof *urls);

        if (urls == NULL)
            return "out of memory";
        for (size_t i = 0; i < from->n_peer_urls; i++) {
            struct slice s = slice_str(from->peer_urls[i]);

            urls[i] = (const char *)arena_copy(a, slice_of(s.ptr, s.len + 1)).ptr;
            if (urls[i] == NULL)
                return "out of memory";
        }
        k.members[k.n] = (struct roster_known){from->id, urls, from->n_peer_urls};
        k.started[k.n] = from->started;
    }
    if (k.n == 0)
        return "failed to get raft cluster member(s) from the given URLs";
    *ret = k;
    return NULL;
}

const char *member_ask(void *ctx, struct arena *a, const struct roster *r, struct bootstrap_cluster *ret_cluster)
{
    struct member_process *me = ctx;
    bool loud = strcmp(me->config->initial_cluster_state, "existing") == 0;
    const char *why = "could not retrieve cluster information from the given URLs";

    for (size_t i = 0; i < r->n; i++) {
        const struct roster_member *m = &r->members[i];

        for (size_t k = 0; k < m->urls.n && m != r->self; k++) {
            Cairn__MembersResponse *resp;
            char error[TLS_TEXT_BYTES];
            const char *bad;
            int rc = peers_ask_members(&m->urls.urls[k], me->peer_tls, ASK_MS, &resp, error);

            if (rc && loud)
                log_warn("failed to get cluster response", LOG_STR("address", m->urls.urls[k].text), LOG_STR("error", error));
            if (rc)
                continue;
            bad = take_answer(a, resp, ret_cluster);
            cairn__members_response__free_unpacked(resp, NULL);
            if (bad == NULL)
                return NULL;
            why = bad; /* it joins too, perhaps: another one knows */
        }
    }
    return why;
}

/* Not while a signal waits to be read: whoever starts this member takes it from there. */
bool member_wait_others(void *ctx)
{
    struct pollfd fd = {.fd = ((struct member_process *)ctx)->signal_fd, .events = POLLIN};

    return poll(&fd, 1, ASK_AGAIN_MS) == 0;
}

/* ---- who they are --------------------------------------------------------------------------------- */

static const char *text(struct arena *a, struct slice s)
{
    char *p = arena_alloc(a, s.len + 1);

    if (p && s.len)
        memcpy(p, s.ptr, s.len);
    return p;
}

static bool peer_of(struct arena *a, const struct member *from, struct peers_member *to)
{
    const char **urls = arena_alloc(a, (from->n_peer_urls + 1) * sizeof *urls);

    *to = (struct peers_member){.id = from->id,
                                .name = text(a, from->name),
                                .urls = urls,
                                .learner = from->is_learner,
                                .started = from->n_client_urls > 0};
    for (; urls && to->n_urls < from->n_peer_urls; to->n_urls++)
        if ((urls[to->n_urls] = text(a, from->peer_urls[to->n_urls])) == NULL)
            return false;
    return urls && to->name;
}

static int tell_peers(struct member_process *m, struct arena *a)
{
    struct member *members = NULL;
    uint64_t *removed = NULL;
    size_t n = apply_members(m->svc.apply, a, &members), n_removed = apply_removed(m->svc.apply, a, &removed);
    struct peers_member *peers = arena_alloc(a, (n + 1) * sizeof *peers);

    for (size_t i = 0; i < n; i++)
        if (peers == NULL || !peer_of(a, &members[i], &peers[i]))
            return -ENOMEM;
    for (size_t i = 0; i < n_removed; i++)
        if (removed[i] == m->svc.member_id)
            member_removed(m);
    return peers && removed ? peers_set_members(m->peers, peers, n, removed, n_removed) : -ENOMEM;
}

/* Apply's thread, or the main one before the start. */
void member_members_changed(void *ctx)
{
    struct member_process *m = ctx;
    struct arena a;
    int rc;

    arena_init(&a, TABLE_BYTES, NULL, 0);
    rc = tell_peers(m, &a);
    arena_fini(&a);
    snap_members_changed(m->snap);
    atomic_store(&m->members_changed, true);
    member_notify(m); /* the main thread notes them */
    if (rc)
        member_fatal(m, rc, "telling the transport who the members are");
}

/* ---- what comes of them ------------------------------------------------------------------------------ */

void member_removed(void *ctx)
{
    struct member_process *m = ctx;

    if (!atomic_exchange(&m->removed, true))
        member_notify(m);
}

static void receive(void *ctx, struct peer_msg *msg)
{
    turn_receive(((struct member_process *)ctx)->svc.turn, msg);
}

static void suspect(void *ctx, uint64_t member)
{
    turn_suspect(((struct member_process *)ctx)->svc.turn, member);
}

static void unreachable(void *ctx, uint64_t member)
{
    turn_unreachable(((struct member_process *)ctx)->svc.turn, member);
}

/* Who was removed stays refused. */
static int set_peers(struct member_process *m, const struct peers_member *peers, size_t n)
{
    uint64_t *removed = NULL;
    struct arena a;
    size_t n_removed;
    int rc;

    arena_init(&a, TABLE_BYTES, NULL, 0);
    n_removed = apply_removed(m->svc.apply, &a, &removed);
    rc = peers_set_members(m->peers, peers, n, removed, n_removed);
    arena_fini(&a);
    return rc;
}

/* A joiner does not know its cluster's members from its own state: only where they were when it asked. */
static int tell_peers_running(struct member_process *m)
{
    const struct bootstrap_cluster *k = &m->boot.running;
    struct peers_member peers[PEERS_STATS_MAX];
    size_t n = 0;

    for (; n < k->n && n < PEERS_STATS_MAX; n++)
        peers[n] = (struct peers_member){.id = k->members[n].id,
                                         .name = "",
                                         .urls = k->members[n].urls,
                                         .n_urls = k->members[n].n_urls,
                                         .started = k->started[n]};
    return set_peers(m, peers, n);
}

/* How many members the state has; *ret_found: one of them is that. */
static size_t state_members(struct member_process *m, uint64_t id, bool *ret_found)
{
    struct member *members = NULL;
    struct arena a;
    size_t n;

    *ret_found = false;
    arena_init(&a, TABLE_BYTES, NULL, 0);
    n = apply_members(m->svc.apply, &a, &members);
    for (size_t i = 0; i < n; i++)
        *ret_found |= members[i].id == id;
    arena_fini(&a);
    return n;
}

bool member_is_alone(struct member_process *m)
{
    bool found;

    return state_members(m, m->svc.member_id, &found) == 1 && found;
}

/* Who was down or cut off while the leader was added hears it and cannot answer: where it is stands in the entries that it is to
 * be given. So the others are asked. Nobody is a member by that: as soon as the state changes it says who is. */
void member_meet_leader(struct member_process *m)
{
    struct bootstrap_cluster before = m->boot.running;
    struct config c = *m->config; /* with an arena of its own: this may come often */
    struct turn_status t;
    const char *why;
    bool known;

    turn_status(m->svc.turn, &t);
    (void)state_members(m, t.leader, &known);
    if (t.leader == 0 || m->boot.joining || known)
        return;
    arena_init(&c.arena, TABLE_BYTES, NULL, 0);
    if (bootstrap_ask_others(&m->boot, &c, false, &why) == 0 && tell_peers_running(m) == 0)
        log_info("the leader is not known here yet; another member has said where it is", LOG_HEX("leader", t.leader));
    m->boot.running = before;
    arena_fini(&c.arena);
}

int member_peers_start(struct member_process *m)
{
    int rc = 0;
    struct peers_sink sink = {
        .receive = receive, .suspect = suspect, .unreachable = unreachable, .removed = member_removed, .ctx = m};

    m->note_due = true;
    /* Forced to be alone: the others are told of when their removal is applied, moments from now. */
    if (m->boot.joining)
        rc = tell_peers_running(m);
    else if (!m->config->force_new_cluster)
        member_members_changed(m);
    rc = rc ? rc : peers_start(m->peers, &sink);
    return rc ? rc : snap_start(m->snap);
}

static uint64_t connected_ms(void *ctx, uint64_t member)
{
    struct member_process *m = ctx;
    uint64_t now_ms = m->svc.clock->now_ms(m->svc.clock), since_ms = peers_active_since(m->peers, member);

    return since_ms == 0 ? 0 : now_ms > since_ms ? now_ms - since_ms : 1;
}

int member_snap_new(struct member_process *m)
{
    struct snap_options o = {.clock = m->svc.clock,
                             .apply = m->svc.apply,
                             .store = m->svc.store,
                             .place = {.dir = &m->boot.dir,
                                       .disk = m->boot.disk,
                                       .wal = m->boot.wal,
                                       .wal_options = {.segment_bytes = LIMIT_WAL_SEGMENT_BYTES,
                                                       .cluster_id = m->svc.cluster_id,
                                                       .member_id = m->svc.member_id},
                                       .base = bootstrap_base_options()},
                             .cluster_id = m->svc.cluster_id,
                             .member_id = m->svc.member_id,
                             .faulty = m->boot.fence_term != 0,
                             .damaged = member_damaged,
                             .damaged_ctx = m};

    return snap_new(&o, &m->snap);
}

int member_peers_new(struct member_process *m)
{
    const struct url *bad = NULL;
    struct peers_options o = {.clock = m->svc.clock,
                              .rng = m->svc.rng,
                              .listen = &m->config->listen_peer,
                              .tls = m->peer_tls,
                              .cluster_id = m->svc.cluster_id,
                              .member_id = m->svc.member_id,
                              .cache = m->cache,
                              .wal = m->boot.wal,
                              .snapshot = &snap_method,
                              .snapshot_ctx = m->snap,
                              .damaged = member_damaged,
                              .damaged_ctx = m};
    int rc = peers_new(&o, &m->peers, &bad);

    m->svc.connected_ms = connected_ms;
    m->svc.connected_ctx = m;
    if (rc)
        log_error("cannot listen for the other members", LOG_STR("url", bad ? bad->text : ""), LOG_STR("error", strerror(-rc)),
                  LOG_STR("do", rc == -EADDRINUSE ? "stop the program that has this port, or choose another --listen-peer-urls"
                                                  : "check --listen-peer-urls"));
    return rc;
}

/* ---- leaving gracefully -------------------------------------------------------------------------------- */

static void handed_over(struct transfer_wait *w)
{
    struct member_process *m = (struct member_process *)((char *)w - offsetof(struct member_process, handover));

    atomic_store(&m->handover_done, true);
    member_notify(m);
}

/* A leader that stops makes another one lead first: nobody waits for an election then. */
void member_hand_over(struct member_process *m)
{
    uint64_t now_ms = m->svc.clock->now_ms(m->svc.clock), deadline_ms = now_ms + HANDOVER_MS;
    struct member *members = NULL;
    struct turn_status t;
    struct arena a;
    size_t voters = 0, n;

    turn_status(m->svc.turn, &t);
    if (!t.is_leader)
        return;
    arena_init(&a, TABLE_BYTES, NULL, 0);
    n = apply_members(m->svc.apply, &a, &members);
    for (size_t i = 0; i < n; i++)
        voters += !members[i].is_learner;
    arena_fini(&a);
    if (voters < 2) {
        log_info("skipped leadership transfer for single voting member cluster", LOG_HEX("local-member-id", m->svc.member_id));
        return;
    }
    log_info("leadership transfer starting", LOG_HEX("local-member-id", m->svc.member_id));
    m->handover = (struct transfer_wait){.done = handed_over};
    turn_transfer(m->svc.turn, &m->handover);
    while (!atomic_load(&m->handover_done) && now_ms < deadline_ms) {
        member_wait_note(m, deadline_ms - now_ms);
        now_ms = m->svc.clock->now_ms(m->svc.clock);
    }
    if (atomic_load(&m->handover_done) && m->handover.err == 0)
        log_info("leadership transfer finished", LOG_HEX("local-member-id", m->svc.member_id));
    else
        log_warn("leadership transfer failed; the others elect a leader", LOG_HEX("local-member-id", m->svc.member_id));
}
