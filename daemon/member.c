/* SPDX-License-Identifier: Apache-2.0 */
/* member.c - one running member: every module made, joined, started and stopped in order.
 *
 * Order of start: flags agree; ports bound; data directory opened; threads from the log upwards; the log applied; the
 * member published; only then the first byte of a client is read. Order of stop: the same backwards, so that nothing
 * answers after what it stands on has gone. */
#include <errno.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include "limits.h"
#include "log.h"
#include "member_impl.h"

/* A promise that can no longer be kept: nothing may be acknowledged after this, so nothing may run. What was
 * acknowledged is on disk; the next start recovers it, or says what is wrong. */
void member_fatal(void *ctx, int err, const char *what)
{
    if (err == -EUCLEAN)
        member_damaged(ctx, what);
    log_at(LOG_LEVEL_FATAL, "the member stops: what it promised to keep cannot be kept", LOG_STR("what", what),
           LOG_STR("error", strerror(err < 0 ? -err : err)));
    _exit(1);
}

static void log_full(void *ctx, bool full)
{
    struct member_process *m = ctx;

    if (full)
        apply_raise_nospace(m->svc.apply);
    log_warn(full ? "wal: no space left for the log; writes wait" : "wal: the log has space again",
             LOG_STR("dir", m->boot.dir.wal_root));
}

/* ---- what HTTP asks --------------------------------------------------------------------- */

static void http_metrics(void *ctx, FILE *f)
{
    metrics_write(&((struct member_process *)ctx)->metrics, f);
}

static unsigned http_alarms(void *ctx)
{
    struct member_process *m = ctx;
    struct arena a;
    struct alarm *alarms;
    unsigned set = 0;
    size_t n;

    arena_init(&a, 64 << 10, NULL, 0);
    n = apply_alarms(m->svc.apply, &a, &alarms);
    for (size_t i = 0; i < n; i++)
        set |= alarms[i].type == ETCDSERVERPB__ALARM_TYPE__CORRUPT ? HTTP_ALARM_CORRUPT : HTTP_ALARM_NOSPACE;
    arena_fini(&a);
    return set;
}

static bool http_has_leader(void *ctx)
{
    struct turn_status s;

    turn_status(((struct member_process *)ctx)->svc.turn, &s);
    return s.leader != 0;
}

static bool http_is_learner(void *ctx)
{
    struct turn_status s;

    turn_status(((struct member_process *)ctx)->svc.turn, &s);
    return s.is_learner;
}

struct http_wait {
    struct read_wait wait;
    struct http_read *read;
};

static void http_wait_done(struct read_wait *w)
{
    struct http_wait *hw = (struct http_wait *)w;

    http_read_done(hw->read, w->err);
    free(hw);
}

static void http_read_begin(void *ctx, struct http_read *r)
{
    struct member_process *m = ctx;
    struct http_wait *hw = calloc(1, sizeof *hw);

    if (hw == NULL) {
        http_read_done(r, -ENOMEM);
        return;
    }
    hw->read = r;
    hw->wait.done = http_wait_done;
    hw->wait.deadline_ms = m->svc.clock->now_ms(m->svc.clock) + m->svc.request_timeout_ms;
    if (turn_read(m->svc.turn, &hw->wait) == 0) {
        http_read_done(r, 0);
        free(hw);
    }
}

/* ---- making -------------------------------------------------------------------------------- */

static int make_front(struct member_process *m)
{
    const struct config *c = m->config;
    const struct url *bad = NULL;
    struct front_options o = {
        .listen = &c->listen_client,
        .tls = m->client_tls,
        .rpc = {.service = &m->svc,
                .threads = RPC_THREADS,
                .slots = m->slots,
                .admit = svc_admit,
                .hand_on = svc_hand_on,
                .damaged = svc_damaged,
                .max_request_bytes = c->max_request_bytes,
                .max_concurrent_streams = c->max_streams >= UINT32_MAX ? 0 : (uint32_t)c->max_streams,
                .keepalive_min_ms = (uint32_t)c->keepalive_min_ms,
                .keepalive_interval_ms = (uint32_t)c->keepalive_interval_ms,
                .keepalive_timeout_ms = (uint32_t)c->keepalive_timeout_ms,
                .request_timeout_ms = m->svc.request_timeout_ms},
        .http = {.version = CAIRN_ETCD_VERSION,
                 .cluster_version = CAIRN_CLUSTER_VERSION,
                 .metrics = http_metrics,
                 .alarms = http_alarms,
                 .has_leader = http_has_leader,
                 .is_learner = http_is_learner,
                 .read = http_read_begin,
                 .ctx = m}};
    int rc;

    o.rpc.methods = svc_methods(&o.rpc.n_methods);
    rc = front_new(&o, &m->front, &bad);
    if (rc == 0)
        return 0;
    log_error("cannot listen for clients", LOG_STR("url", bad ? bad->text : ""), LOG_STR("error", strerror(-rc)),
              LOG_STR("do", rc == -EADDRINUSE ? "stop the program that has this port, or choose another --listen-client-urls"
                                              : "check --listen-client-urls"));
    return -1;
}

static int make_compactor(struct member_process *m)
{
    const struct config *c = m->config;
    bool periodic = strcmp(c->compaction_mode, "periodic") == 0;
    struct compactor_options o = {.clock = m->svc.clock,
                                  .store = m->svc.store,
                                  .apply = m->svc.apply,
                                  .leads = compactor_turn_leads,
                                  .leads_ctx = m->svc.turn,
                                  .mode = periodic ? COMPACTOR_PERIODIC : COMPACTOR_REVISION,
                                  .retention_ms = periodic ? (uint64_t)c->compaction_retention : 0,
                                  .retention_revisions = periodic ? 0 : c->compaction_retention};

    return c->compaction_retention ? compactor_new(&o, &m->compactor) : 0;
}

static uint64_t current_term(void *ctx)
{
    struct member_process *m = ctx;
    struct turn_status t;

    turn_status(m->svc.turn, &t);
    return t.term;
}

static void published(void *ctx)
{
    hub_nudge(ctx);
}

static int make_hub(struct member_process *m)
{
    struct svc *s = &m->svc;
    struct hub_options o = {.clock = s->clock,
                            .rng = s->rng,
                            .store = s->store,
                            .cluster_id = s->cluster_id,
                            .member_id = s->member_id,
                            .term = current_term,
                            .term_ctx = m,
                            .fragment_bytes = s->max_request_bytes + LIMIT_REQUEST_SLACK_BYTES,
                            .progress_interval_ms = (uint32_t)m->config->progress_interval_ms};
    int rc = hub_new(&o, &s->hub);

    if (rc == 0)
        apply_on_publish(s->apply, published, s->hub);
    return rc;
}

/* Everything between the disk and the services, in the order in which each needs the one before. */
static int make_modules(struct member_process *m)
{
    const struct config *c = m->config;
    struct svc *s = &m->svc;
    struct turn_options to;
    struct apply_options ao;
    int rc;

    m->cache = entry_cache_new(LIMIT_ENTRY_CACHE_BYTES);
    s->account = account_new(LIMIT_PROPOSALS, LIMIT_PROPOSAL_BYTES, s->rng->next(s->rng));
    s->leases = lease_table_new(s->clock, (3 * (int64_t)c->election_ms + 1999) / 2000);
    if (m->cache == NULL || s->account == NULL || s->leases == NULL)
        return -ENOMEM;
    rc = store_new(m->boot.base, &s->store);
    if (rc)
        return rc;
    m->boot.base = NULL; /* the store's now */
    for (int i = 0; i < RPC_THREADS; i++)
        if ((m->slots[i] = slot_new(s->store)) == NULL)
            return -ENOMEM;
    ao = (struct apply_options){.clock = s->clock,
                                .store = s->store,
                                .cache = m->cache,
                                .wal = m->boot.wal,
                                .account = s->account,
                                .leases = s->leases,
                                .cluster_id = s->cluster_id,
                                .member_id = s->member_id,
                                .quota_bytes = s->quota_bytes,
                                .max_txn_ops = s->max_txn_ops,
                                .datadir = &m->boot.dir,
                                .base = bootstrap_base_options(),
                                .fatal = member_fatal,
                                .fatal_ctx = m,
                                .damaged = member_damaged};
    rc = apply_new(&ao, &s->apply);
    if (rc)
        return rc;
    apply_on_members(s->apply, member_members_changed, m);
    if ((rc = member_snap_new(m)) != 0 || (rc = member_peers_new(m)) != 0)
        return rc;
    to = (struct turn_options){.clock = s->clock,
                               .rng = s->rng,
                               .wal = m->boot.wal,
                               .wal_state = m->boot.wal_state,
                               .cache = m->cache,
                               .account = s->account,
                               .apply = s->apply,
                               .store = s->store,
                               .leases = s->leases,
                               .member_id = s->member_id,
                               .conf = m->boot.conf,
                               .applied_index = m->boot.applied_index,
                               .fence_term = m->boot.fence_term,
                               .catchup_entries = c->catchup_entries,
                               .snapshot_count = c->snapshot_count,
                               .heartbeat_ms = c->heartbeat_ms,
                               .election_ms = c->election_ms,
                               .wal_write = &m->histograms.wal_write,
                               .wal_fsync = &m->histograms.wal_fsync,
                               .fatal = member_fatal,
                               .nospace = log_full,
                               .fatal_ctx = m,
                               .snap_stepped = snap_turn_stepped,
                               .snap_install = snap_turn_install,
                               .snap_ctx = m->snap,
                               .snapshot_send = snap_turn_send,
                               .snapshot_ctx = m->snap,
                               .state_hash = snap_turn_hash,
                               .state_hash_ctx = m->snap,
                               .transport = peers_transport(m->peers)};
    rc = turn_new(&to, &s->turn);
    if (rc)
        return rc;
    apply_set_turn(s->apply, s->turn);
    snap_join(m->snap, s->turn, m->peers);
    rc = make_hub(m);
    if (rc == 0)
        rc = scan_pool_new(s->store, SCAN_THREADS, &s->scan);
    return rc ? rc : make_compactor(m);
}

static void fill_metrics(struct member_process *m)
{
    m->metrics = (struct metrics){.turn = m->svc.turn,
                                  .hub = m->svc.hub,
                                  .apply = m->svc.apply,
                                  .leases = m->svc.leases,
                                  .rpc = front_rpc(m->front),
                                  .store = m->svc.store,
                                  .account = m->svc.account,
                                  .peers = m->peers,
                                  .snap = m->snap,
                                  .histograms = &m->histograms,
                                  .member_id = m->svc.member_id,
                                  .quota_bytes = m->svc.quota_bytes,
                                  .start_s = (int64_t)time(NULL)};
    m->metrics.methods = svc_methods(&m->metrics.n_methods);
}

/* ---- starting ---------------------------------------------------------------------------- */

static int start_threads(struct member_process *m)
{
    struct svc *s = &m->svc;
    int rc = apply_start(s->apply);

    rc = rc ? rc : turn_start(s->turn);
    rc = rc ? rc : member_peers_start(m);
    rc = rc ? rc : hub_start(s->hub);
    return rc || m->compactor == NULL ? rc : compactor_start(m->compactor);
}

static int open_store(struct member_process *m)
{
    int rc;

    if (bootstrap_open(&m->boot, m->config) < 0) {
        log_error("cannot start", LOG_STR("error", m->boot.error));
        return -1;
    }
    m->svc.cluster_id = m->boot.cluster_id;
    m->svc.member_id = m->boot.member_id;
    if (m->boot.wal_state.cut_bytes)
        log_warn("wal: a torn tail was cut, nothing of it was ever acknowledged",
                 LOG_UINT("bytes", m->boot.wal_state.cut_bytes));
    rc = make_modules(m);
    if (rc == -EUCLEAN)
        member_damaged(m, "a row that each start needs");
    if (rc)
        log_error("cannot start", LOG_STR("error", rc == -EUCLEAN ? "the store is damaged at a row that each start needs; restore the "
                                                                    "data directory from a backup" : strerror(-rc)));
    return rc ? -1 : 0;
}

/* 0; -1 after logging why; or what ended the waiting. */
static enum member_event start_serving(struct member_process *m)
{
    int rc = start_threads(m);
    enum member_event e = rc ? MEMBER_FAILED : member_publish(m);

    if (e != MEMBER_NOTHING) {
        if (e == MEMBER_FAILED)
            log_error("cannot start", LOG_STR("error", rc ? strerror(-rc) : "this member cannot be published"));
        return e;
    }
    log_info("published local member to cluster through raft", LOG_HEX("local-member-id", m->svc.member_id),
             LOG_STR("name", m->config->name), LOG_HEX("cluster-id", m->svc.cluster_id));
    fill_metrics(m);
    rc = front_start(m->front);
    if (rc)
        log_error("cannot start", LOG_STR("error", strerror(-rc)));
    return rc ? MEMBER_FAILED : MEMBER_NOTHING;
}

static void log_serving(const struct config *c)
{
    log_info("enabled capabilities for version", LOG_STR("cluster-version", "3.7"));
    log_info("ready to serve client requests");
    for (size_t i = 0; i < c->listen_client.n; i++)
        log_info(url_is_tls(&c->listen_client.urls[i])
                     ? "serving client traffic securely"
                     : "serving client traffic insecurely; this is strongly discouraged!",
                 LOG_STR("traffic", "grpc+http"), LOG_STR("address", c->listen_client.urls[i].text));
}

static struct member_process *member_new(struct config *c, int signal_fd)
{
    struct member_process *m = calloc(1, sizeof *m);

    if (m == NULL)
        return NULL;
    m->config = c;
    m->signal_fd = signal_fd;
    m->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    m->boot.dir.fd = m->boot.dir.wal_fd = -1;
    m->boot.ask = member_ask;
    m->boot.guard = member_guard_store;
    m->boot.wait = member_wait_others;
    m->boot.ask_ctx = m;
    metrics_histograms_init(&m->histograms);
    m->svc = (struct svc){.clock = clock_real(),
                          .rng = rng_real(),
                          .max_request_bytes = c->max_request_bytes,
                          .max_txn_ops = (uint32_t)c->max_txn_ops,
                          .request_timeout_ms = LIMIT_SERVER_REQUEST_MS + 2 * c->election_ms,
                          .quota_bytes = c->quota_bytes,
                          .strict_reconfig = c->strict_reconfig,
                          .max_learners = c->max_learners,
                          .version = CAIRN_ETCD_VERSION};
    if (m->event_fd >= 0)
        return m;
    free(m);
    return NULL;
}

/* Until it is to end. A suspect store that has been in use for long enough is not suspect any more. Who was cut off while
 * a member was added that leads now asks where that is. */
static enum member_event serve(struct member_process *m)
{
    uint64_t now_ms = m->svc.clock->now_ms(m->svc.clock), trust_ms = now_ms + SUSPECT_MS, meet_ms = now_ms + MEET_MS;
    enum member_event e = MEMBER_NOTHING;

    while (e == MEMBER_NOTHING) {
        uint64_t until_ms = member_is_alone(m) ? UINT64_MAX : meet_ms;

        if (atomic_load(&m->suspected) && trust_ms < until_ms)
            until_ms = trust_ms;
        e = member_wait(m, until_ms == UINT64_MAX ? UINT64_MAX : until_ms > now_ms ? until_ms - now_ms : 0);
        now_ms = m->svc.clock->now_ms(m->svc.clock);
        if (atomic_load(&m->suspected) && (e == MEMBER_SIGNAL || now_ms >= trust_ms))
            member_trust_store(m);
        if (e == MEMBER_NOTHING && now_ms >= meet_ms) {
            member_meet_leader(m);
            meet_ms = now_ms + MEET_MS;
        }
    }
    return e;
}

static void member_stop(struct member_process *m);

enum member_event member_run(struct config *c, int signal_fd, int *ret_signal)
{
    struct member_process *m = member_new(c, signal_fd);
    const char *bad = bootstrap_check(c);
    enum member_event e = MEMBER_FAILED;

    if (m == NULL || bad) {
        log_error("cannot start", LOG_STR("error", bad ? bad : strerror(errno)));
        if (m)
            member_stop(m);
        return MEMBER_FAILED;
    }
    log_info("starting an etcd-compatible server", LOG_STR("version", CAIRN_ETCD_VERSION), LOG_STR("name", c->name),
             LOG_STR("data-dir", c->data_dir), LOG_UINT("snapshot-count", c->snapshot_count),
             LOG_UINT("snapshot-catchup-entries", c->catchup_entries));
    if (member_tls_new(m) == 0 && make_front(m) == 0 && open_store(m) == 0)
        e = start_serving(m);
    if (e == MEMBER_NOTHING) {
        log_serving(c);
        e = serve(m);
    }
    if (e == MEMBER_SIGNAL) {
        *ret_signal = m->signal;
        if (m->svc.turn)
            member_hand_over(m);
    }
    if (e == MEMBER_REMOVED)
        e = member_leave(m);
    member_stop(m);
    return e;
}

/* Also stops what a failed start has made so far. */
static void member_stop(struct member_process *m)
{
    struct svc *s = &m->svc;

    if (m->metrics.rpc)
        front_stop(m->front);
    if (s->hub)
        hub_stop(s->hub);
    if (m->compactor)
        compactor_stop(m->compactor);
    if (s->scan)
        scan_pool_stop(s->scan);
    if (m->snap)
        snap_stop(m->snap);
    if (m->peers)
        peers_stop(m->peers);
    if (s->turn)
        turn_stop(s->turn);
    if (s->apply)
        apply_stop(s->apply);
    member_unguard_store();
    front_free(m->front);
    hub_free(s->hub);
    compactor_free(m->compactor);
    scan_pool_free(s->scan);
    member_publish_end(m);
    turn_free(s->turn);
    peers_free(m->peers);
    snap_free(m->snap);
    apply_free(s->apply);
    for (int i = 0; i < RPC_THREADS; i++)
        if (m->slots[i])
            slot_free(s->store, m->slots[i]);
    store_free(s->store);
    lease_table_free(s->leases);
    account_free(s->account);
    entry_cache_free(m->cache);
    bootstrap_close(&m->boot);
    member_tls_free(m);
    (void)close(m->event_fd); /* an eventfd */
    log_info("closed etcd-compatible server", LOG_STR("name", m->config->name));
    free(m);
}
