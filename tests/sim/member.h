/* SPDX-License-Identifier: Apache-2.0 */
/* member.h - a whole member in the simulated world: log, store, apply and turn, stepped by hand.
 *
 * Its threads are moments: when the turn, the WAL thread, apply, the flush thread and the hub come round next. A nudge
 * of its mailbox calls one in a little later (the WAL thread: as late as its disk is slow); between two moments
 * anything may happen elsewhere. Its log lies on a fakedisk, its base is LMDB without syncs on a tmpfs.
 *
 * A crash throws away all memory. After a power cut the log's disk keeps what was synced and any part of the rest; a
 * cut within a write is a disk whose n-th call from now on fails. base's file is its last commit: a cut before the
 * flush thread's moment leaves the old one, one after it the new one, and member_cut_commit takes a picture in between
 * two commits of one moment.
 */
#pragma once
#include <dlfcn.h>
#include <ftw.h>
#include <sys/stat.h>
#include "daemon/apply_state.h"
#include "daemon/bootstrap.h"
#include "daemon/config.h"
#include "daemon/datadir.h"
#include "daemon/hub_impl.h"
#include "daemon/limits.h"
#include "daemon/member_row.h"
#include "daemon/raftconf.h"
#include "daemon/snap_impl.h"
#include "daemon/turn_impl.h"
#include "daemon/wal_impl.h"
#include "fakedisk.h"
#include "oracle.h"

enum thread { T_TURN, T_WAL, T_APPLY, T_FLUSH, T_HUB, T_SNAP, THREADS };

struct sim;

struct sim_member {
    struct clock clock; /* first: the seams find the member by them */
    struct rng rng;
    struct transport transport;
    struct sim *s;
    struct world *w;
    uint64_t id;
    char dir[64];          /* the data directory; its logs lie on the disk below */
    struct bootstrap bootstrap; /* .dir: while it is up; and what it was rebuilt by */
    char base_path[DATADIR_PATH_BYTES];
    struct fakedisk disk; /* outlives crashes */
    bool exists, up, paused, crashing, failed, pictured;
    bool unsynced; /* a batch was under way at the last crash */
    bool excused; /* its disk has been made to fail: it may stop */
    bool damaged; /* its log or store has been: the next start is to rebuild it */
    bool faulty;  /* it was, and is not sound again */
    bool diverges; /* its state has been made another than that of the others, */
    uint64_t diverges_at; /* after this index */
    unsigned wal_dir;

    /* The clock: ms = from_ms + (now - from_us) * ppm / 10^9. */
    uint64_t from_us, from_ms, ppm;

    struct base *base; /* the store's */
    struct store *store;
    struct slot *slot;
    struct apply *apply;
    struct turn *turn;
    struct hub *hub;
    struct snap *snap; /* only its comparison of states is used */
    struct wal *wal;
    struct entry_cache *cache;
    struct account *account;
    struct lease_table *leases;
    uint64_t boot;
    bool judges, condemned; /* in this boot: has asked the others for their state; was told that its own is wrong */
    uint64_t state_asked[MEMBERS_SIM_MAX]; /* in this boot, by each member: the highest index whose state hash it
                                            * wants */

    uint64_t at[THREADS];
    uint64_t disk_us; /* a write takes up to this */
    uint64_t stall_until_us;
    uint64_t wal_crash_at;    /* the disk call of the next write that finds the power gone; 0: none */
    unsigned commit_crash_at; /* the commit of a flush after which the power goes; 0: none */
    unsigned crash_soon;      /* at the end of this step; 2: power is lost */
    char fatal[96];

    /* What is truly on its platters: terms of [durable_first + 1, durable_last]. */
    uint64_t durable_first, durable_last, durable_term, durable_vote;
    uint64_t *durable_terms; /* [SIM_LOG_MAX] */
    /* The same, of what was lost by damage. A leader of that time may still count it. */
    uint64_t lost_first, lost_last, *lost_terms;

    /* Seen so far. */
    uint64_t term_seen, commit_seen, applied_seen, count_seen;
    int64_t rev_seen;
    bool led, removed;
    uint64_t leads_term;
    struct raft_conf conf_seen;
};

/* Everything of one run. */
struct sim {
    struct world w;
    struct oracle o;
    struct sim_member m[MEMBERS_SIM_MAX]; /* by id; [0] is nobody */
    unsigned n;                           /* the highest id in use */
    char root[48];
    uint32_t heartbeat_ms, election_ms, catchup;
    uint64_t segment_bytes, thread_us; /* how late a thread that was called comes */
    unsigned apply_us, hub_us, conf_pct;
    uint64_t filled_us; /* when the newest such directory was asked for */
    unsigned heap_keys; /* of a large directory; 0: this seed has none */
    struct datagram *net;
    struct call_sim *calls;
    struct net_options *net_options;
};

static inline void member_send(struct transport *t, struct peer_msg *msg); /* net.h */
static inline void transfers_before_crash(struct sim_member *m);           /* snapshot.h */
static inline void watches_before_crash(struct sim_member *m);             /* watch.h */
static inline void member_snapshot_options(struct sim_member *m, struct turn_options *o);

/* ---- seams ---------------------------------------------------------------------------------------- */

static inline uint64_t member_us(const struct sim_member *m)
{
    return m->from_ms * 1000 + (uint64_t)((unsigned __int128)(m->w->now_us - m->from_us) * m->ppm / 1000000);
}

static inline uint64_t sim_now_ms(struct clock *c)
{
    return member_us((struct sim_member *)c) / 1000;
}

static inline uint64_t sim_now_us(struct clock *c)
{
    return member_us((struct sim_member *)c);
}

/* When the member's clock will show ms. */
static inline uint64_t member_when(const struct sim_member *m, uint64_t ms)
{
    uint64_t us;

    if (ms > UINT64_MAX / 2000000)
        return NEVER;
    if (ms <= m->from_ms)
        return m->w->now_us;
    us = m->from_us + (uint64_t)((unsigned __int128)(ms - m->from_ms) * 1000 * 1000000 / m->ppm) + 1;
    return us > m->w->now_us ? us : m->w->now_us;
}

static inline uint64_t sim_rng_next(struct rng *r)
{
    return world_random64(((struct sim_member *)((char *)r - offsetof(struct sim_member, rng)))->w);
}

static inline void member_on_fatal(void *ctx, int err, const char *what)
{
    struct sim_member *m = ctx;

    m->failed = true;
    (void)snprintf(m->fatal, sizeof m->fatal, "%s (%d)", what, err);
}

static inline void member_on_nospace(void *ctx, bool full)
{
    struct sim_member *m = ctx;

    if (full)
        m->w->did.disks_full++;
}

/* ---- what lies on the disk -------------------------------------------------------------------------- */

static inline bool member_disk_clean(const struct sim_member *m)
{
    for (size_t i = 0; i < m->disk.n_names; i++) {
        const struct fake_name *n = &m->disk.name[i];

        if (n->now && n->now->waiting)
            return false;
    }
    return true;
}

/* The log's entry, read without meeting the faults that are meant for the member. NULL: it cannot. */
static inline struct entry *member_read(struct sim_member *m, uint64_t index)
{
    uint64_t fail_call = m->disk.fail_call, calls = m->disk.calls;
    bool for_ever = m->disk.fail_for_ever;
    struct entry *e;
    int err;

    m->disk.fail_call = 0;
    m->disk.fail_for_ever = false;
    err = wal_read(m->wal, index, &e);
    m->disk.fail_call = fail_call;
    m->disk.fail_for_ever = for_ever;
    m->disk.calls = calls;
    return err ? NULL : e;
}

static inline uint64_t wal_run_term(const struct wal *w, uint64_t index)
{
    size_t i = w->n_runs;

    if (index <= w->state.first_index)
        return index == w->state.first_index ? w->state.first_term : 0;
    while (i && w->runs[i - 1].first > index)
        i--;
    return i ? w->runs[i - 1].term : 0;
}

/* The member says that all its log is stored: is it? Then this is what its platters hold. */
static inline void member_note_durable(struct sim_member *m)
{
    const struct wal_state *st = &m->wal->state;
    uint64_t changed = st->last_index;

    if (!member_disk_clean(m)) {
        world_fail(m->w, "AckImpliesQuorumFsync",
                   "member %" PRIu64 " says stored, and its disk has unsynced writes", m->id);
        return;
    }
    while (changed > st->first_index &&
           (changed > m->durable_last || m->durable_terms[changed] != wal_run_term(m->wal, changed)))
        changed--;
    for (uint64_t i = changed + 1; i <= st->last_index; i++) {
        struct entry *e = entry_cache_get(m->cache, i);
        uint64_t term = wal_run_term(m->wal, i);

        m->durable_terms[i] = term;
        if (e && e->term != term) { /* replaced meanwhile, in memory */
            entry_unref(e);
            e = NULL;
        }
        if (e == NULL && (e = member_read(m, i)) == NULL) {
            world_fail(m->w, "RestartPreservesAcked", "member %" PRIu64 " cannot read entry %" PRIu64, m->id,
                       i);
            return;
        }
        oracle_see(m->w, &m->s->o, m->id, e, wal_run_term(m->wal, i - 1));
        entry_unref(e);
    }
    m->durable_first = st->first_index;
    m->durable_last = st->last_index;
    m->durable_term = st->term;
    m->durable_vote = st->vote;
}

static inline bool member_has_durable(const struct sim_member *m, uint64_t index, uint64_t term)
{
    if (!m->exists)
        return false;
    if (index <= m->lost_first || (index <= m->lost_last && m->lost_terms[index] == term))
        return true;
    return index <= m->durable_first || (index <= m->durable_last && m->durable_terms[index] == term);
}

/* ---- life --------------------------------------------------------------------------------------------- */

static inline struct base_options member_base_options(const struct sim_member *m)
{
    return (struct base_options){
        .path = m->base_path, .map_bytes = UINT64_C(1) << 30, .readers_max = 126, .no_sync = true};
}

static inline struct wal_options member_wal_options(struct sim_member *m, char dir[16])
{
    (void)snprintf(dir, 16, "wal-%u", m->wal_dir);
    return (struct wal_options){.disk = &m->disk.disk,
                                .dir = dir,
                                .segment_bytes = m->s->segment_bytes,
                                .cluster_id = 1,
                                .member_id = m->id,
                                .rng = &m->rng};
}

static inline int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

static inline void member_wipe(const struct sim_member *m)
{
    (void)nftw(m->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

struct member_row_bytes {
    uint8_t bytes[64];
    size_t n;
};

static inline struct member_row_bytes member_row_of(uint64_t id)
{
    Etcdserverpb__Member m = ETCDSERVERPB__MEMBER__INIT;
    struct member_row_bytes row;
    char url[24], *urls[] = {url};

    (void)snprintf(url, sizeof url, "http://m%" PRIu64, id);
    m.id = id;
    m.peerurls = urls;
    m.n_peerurls = 1;
    row.n = etcdserverpb__member__pack(&m, row.bytes);
    return row;
}

/* What the founders' bases hold: the configuration, as if it had been entry 1, and a row for each. */
static inline int member_fill_founder(const struct base_options *bo, const struct raft_conf *conf,
                                      struct slice encoded)
{
    struct seal seal = {
        .applied_index = 1, .applied_term = 1, .revision = 1, .compact_revision = -1, .conf = encoded};
    struct delta *d = delta_new();
    struct base *b = NULL;
    int err = base_open(bo, &b);

    for (uint32_t i = 0; i < conf->voters.n && !err; i++) {
        struct member_row_bytes row = member_row_of(conf->voters.ids[i]);
        uint8_t key[8];

        err =
            delta_row(d, TABLE_MEMBER, member_row_key(conf->voters.ids[i], key), slice_of(row.bytes, row.n));
    }
    delta_seal(d, &seal);
    err = err ? err : base_flush(b, d);
    if (b)
        base_close(b);
    delta_free(d);
    return err;
}

/* A data directory as at the first start, of a founder, or (conf NULL) of one who joins. */
static inline void member_create(struct sim_member *m, const struct raft_conf *conf)
{
    static const struct raft_conf nobody;
    struct base_options bo = member_base_options(m);
    uint8_t bytes[RAFTCONF_BYTES_MAX];
    struct wal_state hard = {.term = conf ? 1 : 0, .commit = conf ? 1 : 0};
    struct slice encoded = raftconf_encode(conf ? conf : &nobody, bytes);
    char dir[16];
    struct wal_options wo;
    int err;

    fakedisk_init(&m->disk,
                  world_random64(m->w)); /* it does not tear sectors: the log's format relies on that */
    m->wal_dir = 1;
    wo = member_wal_options(m, dir);
    member_wipe(m);
    (void)mkdir(m->dir, 0700);
    err = datadir_open(&m->bootstrap.dir, m->dir, "");
    err = err ? err : datadir_make_base(&m->bootstrap.dir, 1, m->base_path);
    err = err ? err : base_create(&bo, 1, m->id, encoded);
    err = err || conf == NULL ? err : member_fill_founder(&bo, conf, encoded);
    err = err ? err : wal_create(&wo, conf ? 1 : 0, conf ? 1 : 0, &hard);
    err = err ? err : datadir_commit(&m->bootstrap.dir);
    datadir_close(&m->bootstrap.dir);
    if (err)
        world_fail(m->w, "harness", "member %" PRIu64 " cannot be made: %d", m->id, err);
    m->exists = true;
    m->durable_first = m->durable_last = m->commit_seen = m->applied_seen = conf ? 1 : 0;
    m->durable_term = m->term_seen = hard.term;
    m->durable_vote = 0;
    m->rev_seen = 1;
    m->led = m->removed = false;
}

/* Called before member_create: names, clock. */
static inline void member_init(struct sim *s, uint64_t id)
{
    struct sim_member *m = &s->m[id];

    *m = (struct sim_member){.clock = {sim_now_ms, sim_now_us, NULL},
                             .rng = {sim_rng_next},
                             .transport = {member_send},
                             .s = s,
                             .w = &s->w,
                             .id = id,
                             .durable_terms = m->durable_terms,
                             .lost_terms = m->lost_terms};
    if (m->durable_terms == NULL)
        m->durable_terms = calloc(SIM_LOG_MAX, sizeof *m->durable_terms);
    if (m->lost_terms == NULL)
        m->lost_terms = calloc(SIM_LOG_MAX, sizeof *m->lost_terms);
    (void)snprintf(m->dir, sizeof m->dir, "%s/%" PRIu64, s->root, id);
    m->from_us = s->w.now_us;
    m->from_ms = 1000 + world_random(&s->w, 100000);
    m->ppm = 1000000 - s->o.skew_ppm / 2 + world_random(&s->w, s->o.skew_ppm + 1);
    m->disk_us = 200;
}

/* May the log lack this entry, which was stored? Only if a batch under way has replaced it, and not if it is
 * committed. */
static inline bool member_may_lack(const struct sim_member *m, uint64_t index)
{
    const struct oracle *o = &m->s->o;

    if (index <= o->committed && o->log[index].term == m->durable_terms[index])
        return false;
    return m->unsynced;
}

/* RestartPreservesAcked: the log has what it said it had. More is possible: writes that nobody had synced. */
static inline void member_check_recovered(struct sim_member *m, const struct wal_state *st)
{
    if (st->term < m->durable_term || (st->term == m->durable_term && m->durable_vote && st->vote != m->durable_vote))
        world_fail(m->w, "VoteOncePerTermDurable",
                   "member %" PRIu64 " restarts with term %" PRIu64 " vote %" PRIu64 ", had stored %" PRIu64
                   " and %" PRIu64,
                   m->id, st->term, st->vote, m->durable_term, m->durable_vote);
    for (uint64_t i = st->first_index + 1; i <= m->durable_last; i++) {
        uint64_t term = i <= st->last_index ? wal_run_term(m->wal, i) : 0;

        if (term != m->durable_terms[i] && !member_may_lack(m, i)) {
            world_fail(m->w, "RestartPreservesAcked",
                       "member %" PRIu64 " restarts with term %" PRIu64 " at %" PRIu64 ", had stored %" PRIu64, m->id,
                       term, i, m->durable_terms[i]);
            return;
        }
    }
    if (st->cut_bytes)
        m->w->did.torn_tails++;
}

static inline int member_meta(struct base *b, struct bootstrap *boot)
{
    struct base_reader *r = NULL;
    struct base_meta meta;
    int err = base_reader_new(b, &r);

    err = err ? err : base_reader_renew(r);
    err = err ? err : base_reader_meta(r, &meta);
    err = err ? err : raftconf_decode(meta.seal.conf, &boot->conf);
    if (!err) {
        boot->applied_index = meta.seal.applied_index;
        boot->applied_term = meta.seal.applied_term;
    }
    if (r)
        base_reader_free(r);
    return err;
}

static inline uint64_t member_boot_id(struct sim_member *m)
{
    return world_random64(m->w);
}

/* The others know this member. */
static inline const char *member_ask(void *ctx, struct arena *a, const struct roster *r,
                                     struct bootstrap_cluster *ret_cluster)
{
    static struct roster_known members[MEMBERS_SIM_MAX];
    struct sim_member *m = ctx;

    (void)a, (void)r;
    *ret_cluster = (struct bootstrap_cluster){.id = 1, .members = members};
    for (uint64_t i = 1; i < MEMBERS_SIM_MAX; i++)
        if (model_is_member(&m->s->o, i))
            members[ret_cluster->n++].id = i;
    return NULL;
}

/* What it had promised, and may not have any more. */
static inline void member_note_loss(struct sim_member *m)
{
    for (uint64_t i = m->durable_first + 1; i <= m->durable_last; i++)
        m->lost_terms[i] = m->durable_terms[i];
    if (m->durable_first > m->lost_first)
        m->lost_first = m->durable_first;
    if (m->durable_last > m->lost_last)
        m->lost_last = m->durable_last;
    m->durable_first = m->durable_last = m->bootstrap.applied_index;
    m->durable_term = m->bootstrap.fence_term + 1;
    m->durable_vote = 0;
    m->damaged = false;
    m->faulty = true;
    m->w->did.rebuilds++;
    world_line(m->w, "m%" PRIu64 " is rebuilt above %" PRIu64 ", in term %" PRIu64, m->id, m->bootstrap.applied_index,
               m->bootstrap.fence_term);
}

static inline int member_rebuild_store(struct sim_member *m)
{
    struct config c = {.name = "m", .initial_cluster = "m=http://127.0.0.1:1,n=http://127.0.0.1:2", .initial_cluster_token = ""};
    int err;

    arena_init(&c.arena, 1 << 20, NULL, 0);
    err = bootstrap_rebuild_store(&m->bootstrap, &c);
    arena_fini(&c.arena);
    datadir_base_path(&m->bootstrap.dir, m->bootstrap.dir.base, m->base_path);
    m->wal_dir = m->bootstrap.dir.wal;
    m->diverges = false;
    return err ? -EUCLEAN : 0;
}

/* As bootstrap_open does it. */
static inline int member_open_parts(struct sim_member *m, const struct base_options *bo, struct base **ret_base,
                                    struct wal_state *ret_state)
{
    bool store_damaged = false, rebuilt = false;
    char dir[16], why[256] = "";
    struct wal_options wo;
    int err = datadir_read_mark(&m->bootstrap.dir, &m->bootstrap.fence_term, &store_damaged) < 0 ? -EUCLEAN : 0;

    *ret_base = NULL;
    if (!err)
        err = store_damaged ? -EUCLEAN : base_open(bo, ret_base);
    err = err ? err : member_meta(*ret_base, &m->bootstrap);
    if (err && m->damaged) {
        if (*ret_base)
            base_close(*ret_base);
        *ret_base = NULL;
        err = member_rebuild_store(m);
        err = err ? err : base_open(bo, ret_base);
        err = err ? err : member_meta(*ret_base, &m->bootstrap);
        rebuilt = true;
    }
    if (err) {
        world_fail(m->w, "RestartPreservesAcked", "member %" PRIu64 ": base does not open: %d %s", m->id, err,
                   m->bootstrap.error);
        return err;
    }
    wo = member_wal_options(m, dir);
    err = wal_open(&wo, &m->wal, ret_state, why, sizeof why);
    if (err && m->damaged && !rebuilt) {
        err = bootstrap_rebuild_log(&m->bootstrap);
        m->wal_dir = m->bootstrap.dir.wal;
        wo = member_wal_options(m, dir);
        err = err ? err : wal_open(&wo, &m->wal, ret_state, why, sizeof why);
        rebuilt = true;
    }
    if (err)
        world_fail(m->w, "RestartPreservesAcked", "member %" PRIu64 ": log does not open: %d %s %s", m->id, err, why,
                   m->bootstrap.error);
    else if (rebuilt)
        member_note_loss(m);
    else if (m->damaged)
        world_fail(m->w, "RotIsNoticed", "member %" PRIu64 " starts from a damaged directory", m->id);
    return err;
}

/* Which base and which log; logs that are neither current nor anything go. */
static inline int member_open_dir(struct sim_member *m)
{
    char prefix[16];
    size_t n;

    m->bootstrap = (struct bootstrap){.disk = &m->disk.disk,
                                .cluster_id = 1,
                                .member_id = m->id,
                                .ask = member_ask,
                                .ask_ctx = m,
                                .segment_bytes = m->s->segment_bytes,
                                .rng = &m->rng};
    if (datadir_open(&m->bootstrap.dir, m->dir, "") != 0 || m->bootstrap.dir.fresh)
        return -EUCLEAN;
    datadir_base_path(&m->bootstrap.dir, m->bootstrap.dir.base, m->base_path);
    m->wal_dir = m->bootstrap.dir.wal;
    n = (size_t)snprintf(prefix, sizeof prefix, "wal-%u", m->wal_dir);
    for (size_t i = 0; i < m->disk.n_names; i++) {
        struct fake_name *f = &m->disk.name[i];

        if (strncmp(f->path, "wal-", 4) != 0 ||
            (strncmp(f->path, prefix, n) == 0 && (f->path[n] == 0 || f->path[n] == '/')))
            continue;
        fake_unref(f->now); /* settled since the crash: one reference for both */
        f->now = f->durable = NULL;
        f->now_dir = f->durable_dir = false;
    }
    return 0;
}

static inline uint64_t member_hub_term(void *ctx)
{
    return ((struct sim_member *)ctx)->turn->status.term;
}

static inline void member_published(void *ctx)
{
    hub_nudge(ctx);
}

static inline void member_make_hub(struct sim_member *m)
{
    struct hub_options o = {.clock = &m->clock,
                            .rng = &m->rng,
                            .store = m->store,
                            .cluster_id = 1,
                            .member_id = m->id,
                            .term = member_hub_term,
                            .term_ctx = m,
                            .fragment_bytes = 100, /* an event or two */
                            .progress_interval_ms = 400};
    int err = hub_new(&o, &m->hub);

    assert(err == 0);
    apply_on_publish(m->apply, member_published, m->hub);
}

/* IndexMatchesStore: each row is whole, and the tables fit each other. */
static inline void member_check_base(struct sim_member *m, struct base *b)
{
    const char *what = "";

    if (base_check(b, &what) != 0)
        world_fail(m->w, "IndexMatchesStore", "member %" PRIu64 ": %s", m->id, what);
}

/* As a running member does that finds its store damaged. */
static inline void member_start_anew(struct sim_member *m)
{
    if (datadir_mark(&m->bootstrap.dir, m->bootstrap.fence_term, true) != 0)
        world_fail(m->w, "harness", "no mark");
    m->damaged = true;
    m->crash_soon = 1;
}

static inline void member_damaged_state(void *ctx, const char *what)
{
    struct sim_member *m = ctx;

    if (!m->judges && !m->condemned)
        world_fail(m->w, "SameOnAllMembers", "member %" PRIu64 " gives its state up, and no majority has told it: %s", m->id,
                   what);
    if (!m->s->o.planted[m->id]) /* a snapshot may have mended it meanwhile: it does not know */
        world_fail(m->w, "SameOnAllMembers", "member %" PRIu64 " gives its state up: %s", m->id, what);
    member_start_anew(m);
}

/* The comparison of the members' states; it also sees when a faulty member is sound again. */
static inline void member_make_snap(struct sim_member *m)
{
    struct snap_options o = {.clock = &m->clock,
                             .apply = m->apply,
                             .store = m->store,
                             .place = {.dir = &m->bootstrap.dir},
                             .cluster_id = 1,
                             .member_id = m->id,
                             .faulty = m->bootstrap.fence_term != 0,
                             .damaged = member_damaged_state,
                             .damaged_ctx = m};
    int err = snap_new(&o, &m->snap);

    assert(err == 0);
}

/* As the daemon does it: base, log, do they fit, the modules. False: it cannot, and the run has failed. */
static inline bool member_start(struct sim_member *m)
{
    struct base_options bo = member_base_options(m);
    struct turn_options to = {
        .clock = &m->clock,
        .rng = &m->rng,
        .member_id = m->id,
        .catchup_entries = m->s->catchup,
        .heartbeat_ms = m->s->heartbeat_ms,
        .election_ms = m->s->election_ms,
        .fatal = member_on_fatal,
        .nospace = member_on_nospace,
        .fatal_ctx = m,
    };
    struct apply_options ao;
    struct base *b = NULL;
    int err;

    assert(!m->up && m->exists);
    m->failed = m->crashing = false;
    m->boot++;
    memset(m->state_asked, 0, sizeof m->state_asked);
    m->judges = m->condemned = false;
    err = member_open_dir(m);
    if (err)
        world_fail(m->w, "RestartPreservesAcked", "member %" PRIu64 ": no data directory", m->id);
    if (err || member_open_parts(m, &bo, &b, &to.wal_state) != 0) {
        if (b)
            base_close(b);
        return false;
    }
    to.conf = m->bootstrap.conf;
    to.applied_index = m->bootstrap.applied_index;
    to.fence_term = m->bootstrap.fence_term;
    if (to.applied_index < to.wal_state.first_index || to.applied_index > to.wal_state.last_index)
        world_fail(m->w, "AppliedIndexInSameTxn",
                   "member %" PRIu64 ": base at %" PRIu64 ", log %" PRIu64 " to %" PRIu64, m->id,
                   to.applied_index, to.wal_state.first_index, to.wal_state.last_index);
    member_check_recovered(m, &to.wal_state);
    member_check_base(m, b);
    if (m->w->failed) {
        wal_close(m->wal);
        base_close(b);
        return false;
    }
    m->cache = entry_cache_new(64 << 10); /* small: old entries are read from the log */
    m->account = account_new(LIMIT_PROPOSALS, LIMIT_PROPOSAL_BYTES, member_boot_id(m));
    m->leases = lease_table_new(&m->clock, 1);
    err = store_new(b, &m->store);
    assert(err == 0);
    m->slot = slot_new(m->store);
    ao = (struct apply_options){.clock = &m->clock,
                                .store = m->store,
                                .cache = m->cache,
                                .wal = m->wal,
                                .account = m->account,
                                .leases = m->leases,
                                .cluster_id = 1,
                                .member_id = m->id,
                                .quota_bytes = -1,
                                .max_txn_ops = 128,
                                .datadir = &m->bootstrap.dir,
                                .base = bo,
                                .fatal = member_on_fatal,
                                .fatal_ctx = m};
    err = apply_new(&ao, &m->apply);
    if (err) {
        world_fail(m->w, "RestartPreservesAcked", "member %" PRIu64 ": apply does not start: %d", m->id, err);
        return false;
    }
    to.wal = m->wal;
    to.cache = m->cache;
    to.account = m->account;
    to.apply = m->apply;
    to.store = m->store;
    to.leases = m->leases;
    to.transport = &m->transport;
    member_snapshot_options(m, &to);
    member_make_snap(m);
    to.state_hash = snap_turn_hash;
    to.state_hash_ctx = m->snap;
    err = turn_new(&to, &m->turn);
    if (err) {
        world_fail(m->w, "RestartPreservesAcked", "member %" PRIu64 ": turn does not start: %d", m->id, err);
        return false;
    }
    apply_set_turn(m->apply, m->turn);
    snap_join(m->snap, m->turn, NULL);
    member_make_hub(m);
    m->up = true;
    m->w->did.restarts++;
    m->applied_seen = m->apply->applied;
    m->commit_seen = to.applied_index;
    m->term_seen = m->durable_term; /* what was not stored yet is forgotten */
    m->rev_seen = m->apply->rev;
    m->diverges &= m->applied_seen > m->diverges_at || /* else that was lost with the memory */
                   (m->applied_seen == m->diverges_at &&
                    m->apply->hash != m->s->o.log[m->applied_seen].state_hash);
    m->count_seen = 0;
    m->led = false;
    m->conf_seen = to.conf;
    member_note_durable(m); /* wal_open has cut and synced */
    for (int t = 0; t < THREADS; t++)
        m->at[t] = m->w->now_us + 1 + world_random(m->w, 1000);
    world_line(m->w, "m%" PRIu64 " starts: log %" PRIu64 "..%" PRIu64 " term %" PRIu64 " applied %" PRIu64,
               m->id, to.wal_state.first_index, to.wal_state.last_index, to.wal_state.term, to.applied_index);
    return true;
}

/* Who waits for apply will never hear; their memory goes all the same. */
static inline void member_drop_waits(struct sim_member *m)
{
    struct apply_wait *w = m->apply->waits, *next;

    m->apply->waits = NULL;
    for (; w; w = next) {
        next = (struct apply_wait *)w->mail.next;
        w->done(w);
    }
    for (w = (struct apply_wait *)mailbox_take(&m->apply->wait_box); w; w = next) {
        next = (struct apply_wait *)w->mail.next;
        w->done(w);
    }
}

static inline void member_throw_away(struct sim_member *m)
{
    m->crashing = true;
    watches_before_crash(m);
    transfers_before_crash(m);
    turn_stop(m->turn);
    flush_give_up(m->apply);
    for (struct mail *f = mailbox_take(&m->apply->flush_box), *next; f; f = next) {
        next = f->next;
        ((struct flush_wait *)f)->err = -ECANCELED;
        ((struct flush_wait *)f)->done((struct flush_wait *)f);
    }
    member_drop_waits(m);
    hub_free(m->hub); /* it asks the turn for its term */
    turn_free(m->turn);
    snap_free(m->snap);
    apply_free(m->apply);
    slot_free(m->store, m->slot);
    store_free(m->store);
    lease_table_free(m->leases);
    account_free(m->account);
    entry_cache_free(m->cache);
    m->disk.fail_call = 0;
    m->disk.fail_for_ever = false;
    wal_close(m->wal);
    datadir_close(&m->bootstrap.dir);
    m->up = m->crashing = false;
    m->paused = false;
    m->stall_until_us = 0;
    m->disk.capacity = 0;
    m->wal_crash_at = m->commit_crash_at = 0;
    m->excused = false;
    for (int t = 0; t < THREADS; t++)
        m->at[t] = NEVER;
}

/* ---- a cut between two commits of one flush ------------------------------------------------------------- */

static struct sim_member *flushing; /* whose flush thread has its moment */
static unsigned flush_commits;

static inline void member_base_file(const struct sim_member *m, const char *name, char path[96])
{
    (void)snprintf(path, 96, "%s/base-%u/%s", m->dir, m->bootstrap.dir.base, name);
}

static inline void copy_file(const char *from, const char *to)
{
    static char buf[1 << 16];
    FILE *a = fopen(from, "rb"), *b = fopen(to, "wb");
    size_t n;

    assert(a && b);
    while ((n = fread(buf, 1, sizeof buf, a)) > 0)
        (void)fwrite(buf, 1, n, b);
    (void)fclose(a);
    (void)fclose(b);
}

/* Stands before LMDB's: after the wanted commit, a picture of the file is taken, for the crash to come. */
int mdb_txn_commit(void *txn);
int mdb_txn_commit(void *txn)
{
    static int (*real)(void *);
    char from[96], to[96];
    int rc;

    if (real == NULL)
        *(void **)&real = dlsym(RTLD_NEXT, "mdb_txn_commit");
    rc = real(txn);
    if (flushing && rc == 0 && ++flush_commits == flushing->commit_crash_at) {
        member_base_file(flushing, "data.mdb", from);
        member_base_file(flushing, "picture", to);
        copy_file(from, to);
        flushing->crash_soon = 2;
        flushing->pictured = true;
    }
    return rc;
}

/* power: unsynced writes are at stake, else the page cache keeps them. */
static inline void member_crash(struct sim_member *m, bool power)
{
    bool clean = member_disk_clean(m);

    m->unsynced = !clean || m->excused;
    member_throw_away(m);
    if (power && m->pictured) { /* what the file was in the middle of the flush */
        char from[96], to[96];

        member_base_file(m, "picture", from);
        member_base_file(m, "data.mdb", to);
        (void)rename(from, to);
        m->w->did.cuts_in_flush++;
    }
    m->pictured = false;
    fakedisk_crash(&m->disk, power ? FAKE_RANDOM : FAKE_KEEP_ALL);
    m->w->did.crashes++;
    m->w->did.power_cuts += power;
    m->w->did.lost_writes += power && !clean;
    world_line(m->w, "m%" PRIu64 " %s", m->id, power ? "loses power" : "is killed");
}
