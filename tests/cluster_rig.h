/* SPDX-License-Identifier: Apache-2.0 */
/* cluster_rig.h - whole members (turn, WAL, apply, store, leases) in one process, stepped by hand, over a network and a
 * clock of the test's.
 *
 * The network is a queue that can lose what crosses a cut link; a message crosses it as bytes, as on the real one. A
 * member that is killed loses what its disk had not synced; its base is on tmp, and as of its last flush. */
#pragma once
#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>
#include "daemon/apply_state.h"
#include "daemon/limits.h"
#include "daemon/log.h"
#include "daemon/raftconf.h"
#include "daemon/turn_impl.h"
#include "fakedisk.h"
#include "splitmix.h"
#include "tap.h"

enum { CR_MEMBERS = 5, CR_HEARTBEAT_MS = 100, CR_ELECTION_MS = 1000 };

struct cr_clock {
    struct clock clock;
    uint64_t ms;
};

struct cr_rng {
    struct rng rng;
    uint64_t state;
};

struct cr_transport {
    struct transport transport;
    struct cr_member *member;
};

struct cr_member {
    uint64_t id;
    bool up;
    bool disk_hangs;              /* the WAL thread does not get on */
    char dir[64];
    struct fakedisk disk;
    struct wal *wal;
    struct store *store;
    struct apply *apply;
    struct entry_cache *cache;
    struct account *account;
    struct lease_table *leases;
    struct turn *turn;
    struct cr_transport transport;
};

/* A message on its way. */
struct cr_wire {
    struct cr_wire *next;
    uint64_t from, to;
    size_t n;
    uint8_t bytes[];
};

static struct cr {
    struct cr_clock clock;
    struct cr_rng rng;
    int n;
    struct cr_member member[CR_MEMBERS + 1]; /* by id, from 1 */
    bool cut[CR_MEMBERS + 1][CR_MEMBERS + 1]; /* from, to: lost */
    bool held[CR_MEMBERS + 1][CR_MEMBERS + 1]; /* the same: on its way until the link is whole again */
    struct cr_wire *wire, **wire_end;
    uint64_t sent;                /* messages in all */
    unsigned twice;               /* every so manieth message arrives twice; 0: none */
    int fatal;
} cr;

static uint64_t cr_now_ms(struct clock *c)
{
    return ((struct cr_clock *)c)->ms;
}

static uint64_t cr_now_us(struct clock *c)
{
    return ((struct cr_clock *)c)->ms * 1000;
}

static int64_t cr_wall_ms(struct clock *c)
{
    return (int64_t)((struct cr_clock *)c)->ms;
}

static uint64_t cr_dice(struct rng *r)
{
    return splitmix64(&((struct cr_rng *)r)->state);
}

static inline void cr_fatal(void *ctx, int err, const char *what)
{
    printf("# member %d: fatal: %s (%d)\n", (int)((struct cr_member *)ctx)->id, what, err);
    cr.fatal++;
}

/* ---- the network -------------------------------------------------------------------------------------- */

static inline void cr_put(uint64_t from, uint64_t to, const uint8_t *bytes, size_t n)
{
    struct cr_wire *w = malloc(sizeof *w + n);

    REQUIRE(w != NULL);
    *w = (struct cr_wire){.from = from, .to = to, .n = n};
    memcpy(w->bytes, bytes, n);
    *cr.wire_end = w;
    cr.wire_end = &w->next;
}

static void cr_send(struct transport *t, struct peer_msg *m)
{
    struct cr_member *from = ((struct cr_transport *)t)->member;

    for (struct peer_msg *rest; m; m = rest) {
        int err = 0;

        if (m->kind == PEER_RAFT && m->raft.type == RAFT_APPEND)
            err = peer_msg_fill(m, from->cache, from->wal, 1 << 20);
        if (err == 0) {
            size_t n = peer_msg_size(m);
            uint8_t *bytes = malloc(n);

            REQUIRE(bytes != NULL);
            peer_msg_encode(m, bytes);
            cr_put(m->from, m->to, bytes, n);
            cr.sent++;
            if (cr.twice && cr.sent % cr.twice == 0)
                cr_put(m->from, m->to, bytes, n);
            free(bytes);
        }
        rest = m->rest;
        m->rest = NULL;
        peer_msg_free(m);
    }
}

/* Everything that is on its way now arrives, or is lost. False: nothing moved. */
static inline bool cr_deliver(void)
{
    struct cr_wire *w = cr.wire, *next;
    bool moved = false;

    cr.wire = NULL;
    cr.wire_end = &cr.wire;
    for (; w; w = next) {
        struct peer_msg *m;

        next = w->next;
        if (cr.held[w->from][w->to]) {
            w->next = NULL;
            *cr.wire_end = w;
            cr.wire_end = &w->next;
            continue;
        }
        moved = true;
        REQUIRE(w->to >= 1 && w->to <= CR_MEMBERS);
        if (!cr.cut[w->from][w->to] && cr.member[w->to].up) {
            REQUIRE(peer_msg_decode(slice_of(w->bytes, w->n), &m) == 0);
            turn_receive(cr.member[w->to].turn, m);
        } else if (cr.member[w->from].up) {
            turn_unreachable(cr.member[w->from].turn, w->to);
        }
        free(w);
    }
    return moved;
}

/* ---- members ------------------------------------------------------------------------------------------- */

static inline struct wal_options cr_wal_options(struct cr_member *m)
{
    return (struct wal_options){.disk = &m->disk.disk, .dir = "wal", .segment_bytes = LIMIT_WAL_SEGMENT_BYTES,
                                .cluster_id = 1, .member_id = m->id, .rng = &cr.rng.rng};
}

static inline struct base_options cr_base_options(const struct cr_member *m)
{
    return (struct base_options){.path = m->dir, .map_bytes = UINT64_C(1) << 32, .readers_max = 126, .no_sync = true};
}

/* The member on what its log and base hold; clock and random numbers are those of to. */
static inline void cr_assemble(struct cr_member *m, const struct wal_options *wo, struct turn_options to,
                               void (*send)(struct transport *, struct peer_msg *))
{
    struct base_options bo = cr_base_options(m);
    struct apply_options ao;
    struct base *b;
    char why[256];

    REQUIRE(wal_open(wo, &m->wal, &to.wal_state, why, sizeof why) == 0);
    REQUIRE(base_open(&bo, &b) == 0);
    REQUIRE(store_new(b, &m->store) == 0);
    m->cache = entry_cache_new(64 << 20);
    m->account = account_new(LIMIT_PROPOSALS, LIMIT_PROPOSAL_BYTES, to.rng->next(to.rng));
    m->leases = lease_table_new(to.clock, 2);
    ao = (struct apply_options){.clock = to.clock, .store = m->store, .cache = m->cache, .wal = m->wal,
                                .account = m->account, .leases = m->leases, .cluster_id = 1, .member_id = m->id,
                                .quota_bytes = -1, .max_txn_ops = 128, .fatal = cr_fatal, .fatal_ctx = m};
    REQUIRE(apply_new(&ao, &m->apply) == 0);
    m->transport = (struct cr_transport){{send}, m};
    to.member_id = m->id;
    to.catchup_entries = 5000;
    to.heartbeat_ms = CR_HEARTBEAT_MS;
    to.election_ms = CR_ELECTION_MS;
    to.fatal = cr_fatal;
    to.fatal_ctx = m;
    to.transport = &m->transport.transport;
    to.wal = m->wal;
    to.cache = m->cache;
    to.account = m->account;
    to.apply = m->apply;
    to.store = m->store;
    to.leases = m->leases;
    to.applied_index = m->apply->applied;
    REQUIRE(raftconf_decode(m->apply->conf, &to.conf) == 0);
    REQUIRE(turn_new(&to, &m->turn) == 0);
    apply_set_turn(m->apply, m->turn);
    m->up = true;
}

static inline void cr_start(int id)
{
    struct cr_member *m = &cr.member[id];
    struct wal_options wo = cr_wal_options(m);

    cr_assemble(m, &wo, (struct turn_options){.clock = &cr.clock.clock, .rng = &cr.rng.rng}, cr_send);
}

/* Whoever still waits for it is answered ERR_STOPPED: nobody knows what came of that. */
static inline void cr_close(struct cr_member *m)
{
    turn_stop(m->turn);
    apply_free(m->apply);
    turn_free(m->turn);
    store_free(m->store);
    wal_close(m->wal);
    entry_cache_free(m->cache);
    account_free(m->account);
    lease_table_free(m->leases);
    m->up = m->disk_hangs = false;
}

static inline void cr_kill(int id)
{
    cr_close(&cr.member[id]);
    fakedisk_crash(&cr.member[id].disk, FAKE_RANDOM);
}

static inline void cr_new(int n, uint64_t seed)
{
    struct raft_conf conf = {.voters = {.n = (uint32_t)n}};
    uint8_t bytes[RAFTCONF_BYTES_MAX];

    cr = (struct cr){.clock = {{cr_now_ms, cr_now_us, cr_wall_ms}, 1000000}, .rng = {{cr_dice}, seed}, .n = n,
                     .wire_end = &cr.wire};
    for (int i = 0; i < n; i++)
        conf.voters.ids[i] = (uint64_t)i + 1;
    for (int i = 1; i <= n; i++) {
        struct cr_member *m = &cr.member[i];
        struct wal_options wo;
        struct base_options bo;

        m->id = (uint64_t)i;
        fakedisk_init(&m->disk, seed + (uint64_t)i);
        snprintf(m->dir, sizeof m->dir, "/tmp/cairn-cluster-XXXXXX");
        REQUIRE(mkdtemp(m->dir) != NULL);
        wo = cr_wal_options(m);
        bo = cr_base_options(m);
        REQUIRE(wal_create(&wo, 0, 0, &(struct wal_state){0}) == 0);
        REQUIRE(base_create(&bo, 1, m->id, raftconf_encode(&conf, bytes)) == 0);
        cr_start(i);
    }
}

static inline void cr_free(void)
{
    for (int i = 1; i <= cr.n; i++) {
        struct cr_member *m = &cr.member[i];
        struct dirent *e;
        DIR *d;

        if (m->up)
            cr_close(m);
        fakedisk_fini(&m->disk);
        d = opendir(m->dir);
        while (d && (e = readdir(d)) != NULL)
            (void)unlinkat(dirfd(d), e->d_name, 0); /* . and .. refuse */
        if (d)
            closedir(d);
        (void)rmdir(m->dir); /* tmp */
    }
    for (struct cr_wire *w = cr.wire, *next; w; w = next) {
        next = w->next;
        free(w);
    }
}

/* ---- time ------------------------------------------------------------------------------------------------ */

/* Everybody steps until nothing is under way at this moment. */
static inline void cr_settle(void)
{
    for (int quiet = 0, rounds = 0; quiet < 3; rounds++) {
        REQUIRE(rounds < 10000);
        for (int i = 1; i <= cr.n; i++) {
            struct cr_member *m = &cr.member[i];

            if (!m->up)
                continue;
            (void)turn_step(m->turn);
            if (!m->disk_hangs)
                (void)turn_wal_step(m->turn);
            while (apply_step(m->apply) == 0)
                ;
            (void)apply_flush_step(m->apply);
        }
        quiet = cr_deliver() ? 0 : quiet + 1;
    }
    REQUIRE(cr.fatal == 0);
}

static inline void cr_run(uint64_t ms)
{
    for (uint64_t end = cr.clock.ms + ms; cr.clock.ms < end; cr.clock.ms += 10)
        cr_settle();
    cr_settle();
}

/* The leader that most follow; 0: none. */
static inline int cr_leader(void)
{
    int votes[CR_MEMBERS + 1] = {0};

    for (int i = 1; i <= cr.n; i++) {
        struct turn_status s;

        if (!cr.member[i].up)
            continue;
        turn_status(cr.member[i].turn, &s);
        if (s.leader)
            votes[s.leader]++;
    }
    for (int i = 1; i <= cr.n; i++)
        if (votes[i] * 2 > cr.n)
            return i;
    return 0;
}

/* Until there is a leader; it must come within three election timeouts. */
static inline int cr_await_leader(void)
{
    for (int i = 0; i < 500; i++) {
        cr_run(10);
        if (cr_leader())
            return cr_leader();
    }
    REQUIRE(!"somebody leads");
    return 0;
}

static inline int cr_follower(void)
{
    int leader = cr_leader();

    for (int i = 1; i <= cr.n; i++)
        if (i != leader && cr.member[i].up && !cr.cut[i][leader])
            return i;
    REQUIRE(!"there is a follower");
    return 0;
}

/* No message between the members of the mask and the others. 0: all links are whole again. */
static inline void cr_partition(unsigned mask)
{
    for (int i = 1; i <= cr.n; i++)
        for (int k = 1; k <= cr.n; k++)
            cr.cut[i][k] = mask && (mask >> i & 1) != (mask >> k & 1);
}

/* ---- calls ------------------------------------------------------------------------------------------------- */

struct cr_call {
    struct proposal p;
    struct arena out;
    struct cr_member *m;
    int answers;
};

static void cr_done(struct proposal *p)
{
    struct cr_call *c = (struct cr_call *)p;

    c->answers++;
    account_give(c->m->account, p, 1);
    entry_unref(p->entry);
    p->entry = NULL;
}

static inline void cr_propose(int id, struct cr_call *c, enum entry_kind kind, struct slice body)
{
    struct entry_head h = {.kind = kind, .origin = (uint64_t)id, .body = body};

    *c = (struct cr_call){.m = &cr.member[id]};
    arena_init(&c->out, 1 << 20, NULL, 0);
    c->p.arena = &c->out;
    c->p.done = cr_done;
    c->p.deadline_ms = cr.clock.ms + 7000;
    REQUIRE(account_take(c->m->account, &c->p, 1) == 0);
    h.request_id = c->p.request_id;
    c->p.entry = entry_new(entry_size(&h));
    REQUIRE(c->p.entry != NULL);
    entry_encode(&h, c->p.entry->payload);
    turn_propose(c->m->turn, &c->p);
}

static inline void cr_propose_message(int id, struct cr_call *c, enum entry_kind kind, const void *m)
{
    size_t n = protobuf_c_message_get_packed_size(m);
    uint8_t *packed = malloc(n + 1);

    REQUIRE(packed != NULL);
    protobuf_c_message_pack(m, packed);
    cr_propose(id, c, kind, slice_of(packed, n));
    free(packed);
}

/* Makes a key and its value of a number. */
static inline void cr_put_key(int id, struct cr_call *c, int number)
{
    Etcdserverpb__PutRequest req = ETCDSERVERPB__PUT_REQUEST__INIT;
    char key[32], value[32];

    req.key.len = (size_t)snprintf(key, sizeof key, "key-%d", number);
    req.key.data = (uint8_t *)key;
    req.value.len = (size_t)snprintf(value, sizeof value, "value-%d", number);
    req.value.data = (uint8_t *)value;
    cr_propose_message(id, c, ENTRY_PUT, &req);
}

static inline void cr_call_fini(struct cr_call *c)
{
    arena_fini(&c->out);
}

/* How often the key of this number was written, on this member; 0: not there. */
static inline int64_t cr_versions(int id, int number)
{
    struct cr_member *m = &cr.member[id];
    struct slot *sl = slot_new(m->store);
    struct view_cursor *cur;
    struct arena a;
    struct view v;
    struct change c;
    char key[32], end[32];
    int64_t version = 0;
    size_t n = (size_t)snprintf(key, sizeof key, "key-%d", number);

    memcpy(end, key, n);
    end[n] = 0;
    arena_init(&a, 1 << 20, NULL, 0);
    REQUIRE(view_open(m->store, sl, &v) == 0);
    REQUIRE(view_cursor_new(&v, slice_of(key, n), slice_of(end, n + 1), v.rev, 0, &cur) == 0);
    if (view_cursor_next(cur, &a, &c) == 0) {
        Mvccpb__KeyValue kv = MVCCPB__KEY_VALUE__INIT;

        REQUIRE(body_decode(c.body, &kv) == 0);
        version = kv.version;
    }
    view_cursor_free(cur);
    view_close(&v);
    arena_fini(&a);
    slot_free(m->store, sl);
    return version;
}

/* All that are up have applied the same, to the same state. */
static inline void cr_check_equal(void)
{
    const struct apply *first = NULL;

    for (int i = 1; i <= cr.n; i++) {
        const struct apply *a = cr.member[i].apply;

        if (!cr.member[i].up)
            continue;
        if (first == NULL)
            first = a;
        CHECK(a->applied == first->applied);
        CHECK(a->rev == first->rev);
        CHECK(a->hash == first->hash);
    }
}
