/* SPDX-License-Identifier: Apache-2.0 */
/* Proves, best under TSan: three members with all their threads, stepped by whichever thread has something for them,
 * take writes and linearizable reads of many threads at once while leadership is handed around; each write happens
 * once, each call is answered once, a read never misses what was acknowledged before it, and all end with the same
 * state. */
#include <sched.h>
#include "cluster_rig.h"
#include "err.h"

enum { WRITERS = 3, WRITES = 400, OUTSTANDING = 32, TRANSFERS = 8 };

static struct disk *disks[CR_MEMBERS + 1];
static struct mailbox net;
static _Atomic bool net_stop;

struct net_mail {
    struct mail mail;
    struct peer_msg *msg;
};

/* ---- the network: one thread ------------------------------------------------------------------------- */

/* Whoever holds the sender's token. */
static void post(struct transport *t, struct peer_msg *m)
{
    struct cr_member *from = ((struct cr_transport *)t)->member;

    for (struct peer_msg *rest; m; m = rest) {
        struct net_mail *n = malloc(sizeof *n);
        struct peer_msg *copy = NULL;
        int err = 0;

        REQUIRE(n != NULL);
        if (m->kind == PEER_RAFT && m->raft.type == RAFT_APPEND)
            err = peer_msg_fill(m, from->cache, from->wal, 1 << 20);
        rest = m->rest;
        m->rest = NULL;
        if (err == 0) { /* as bytes: the entries of each member are its own */
            size_t size = peer_msg_size(m);
            uint8_t *bytes = malloc(size);

            REQUIRE(bytes != NULL);
            peer_msg_encode(m, bytes);
            REQUIRE(peer_msg_decode(slice_of(bytes, size), &copy) == 0);
            free(bytes);
        }
        peer_msg_free(m);
        n->msg = copy;
        if (copy)
            mailbox_post(&net, &n->mail);
        else
            free(n);
    }
}

static void *net_main(void *arg)
{
    while (!atomic_load(&net_stop)) {
        struct mail *m = mailbox_take(&net), *next;

        for (; m; m = next) {
            struct net_mail *n = (struct net_mail *)m;

            next = m->next;
            turn_receive(cr.member[n->msg->to].turn, n->msg);
            free(n);
        }
        mailbox_wait(&net, UINT64_MAX);
    }
    return arg;
}

/* ---- members -------------------------------------------------------------------------------------------- */

static void start(int id)
{
    struct cr_member *m = &cr.member[id];
    struct wal_options wo = cr_wal_options(m);
    struct base_options bo = cr_base_options(m);
    struct raft_conf conf = {.voters = {.n = 3, .ids = {1, 2, 3}}};
    uint8_t bytes[RAFTCONF_BYTES_MAX];

    m->id = (uint64_t)id;
    snprintf(m->dir, sizeof m->dir, "/tmp/cairn-cluster-XXXXXX");
    REQUIRE(mkdtemp(m->dir) != NULL);
    REQUIRE(disk_real_new(m->dir, &disks[id]) == 0);
    wo.member_id = m->id;
    wo.disk = disks[id];
    wo.rng = rng_real();
    wo.segment_bytes = 8 << 20;
    REQUIRE(wal_create(&wo, 0, 0, &(struct wal_state){0}) == 0);
    REQUIRE(base_create(&bo, 1, m->id, raftconf_encode(&conf, bytes)) == 0);
    cr_assemble(m, &wo, (struct turn_options){.clock = clock_real(), .rng = rng_real()}, post);
}

static void stop(struct cr_member *m)
{
    struct dirent *e;
    DIR *d;

    apply_stop(m->apply);
    cr_close(m);
    for (int k = 0; k < 2; k++) {
        char path[128];

        (void)snprintf(path, sizeof path, "%s%s", m->dir, k ? "" : "/wal");
        d = opendir(path);
        while (d && (e = readdir(d)) != NULL)
            (void)unlinkat(dirfd(d), e->d_name, 0); /* . and .. refuse */
        if (d)
            closedir(d);
        (void)rmdir(path); /* tmp */
    }
    disk_real_free(disks[m->id]);
}

static int leader(void)
{
    for (int i = 1; i <= 3; i++) {
        struct turn_status s;

        turn_status(cr.member[i].turn, &s);
        if (s.is_leader)
            return i;
    }
    return 0;
}

/* ---- calls ------------------------------------------------------------------------------------------------- */

struct write {
    struct cr_call call; /* first: cr_done's */
    struct writer *w;
};

struct writer {
    int member;
    pthread_t thread;
    _Atomic int under_way, good, failed;
};

static struct writer writers[WRITERS];
static _Atomic int64_t acked_rev;   /* the highest acknowledged */
static _Atomic int stale, reads, transfers;

static void write_done(struct proposal *p)
{
    struct write *x = (struct write *)p;
    int64_t rev = p->revision, seen = atomic_load(&acked_rev);

    if (p->err)
        atomic_fetch_add(&x->w->failed, 1);
    else
        atomic_fetch_add(&x->w->good, 1);
    while (p->err == 0 && rev > seen && !atomic_compare_exchange_weak(&acked_rev, &seen, rev))
        ;
    account_give(x->call.m->account, p, 1);
    entry_unref(p->entry);
    arena_fini(&x->call.out);
    atomic_fetch_sub(&x->w->under_way, 1);
    free(x);
}

struct reader {
    struct read_wait wait;
    int64_t floor;
    struct cr_member *m;
};

static void read_done(struct read_wait *w)
{
    struct reader *r = (struct reader *)w;

    if (w->err == 0 && store_revision(r->m->store) < r->floor)
        atomic_fetch_add(&stale, 1);
    atomic_fetch_add(&reads, 1);
    free(r);
}

static void read_one(struct cr_member *m)
{
    struct reader *r = calloc(1, sizeof *r);

    REQUIRE(r != NULL);
    r->m = m;
    r->floor = atomic_load(&acked_rev);
    r->wait.deadline_ms = UINT64_MAX;
    r->wait.done = read_done;
    if (turn_read(m->turn, &r->wait) == 0)
        read_done(&r->wait);
}

static void *writer_main(void *arg)
{
    struct writer *w = arg;
    struct cr_member *m = &cr.member[w->member];

    for (int i = 0; i < WRITES; i++) {
        Etcdserverpb__PutRequest req = ETCDSERVERPB__PUT_REQUEST__INIT;
        struct write *x = calloc(1, sizeof *x);
        struct entry_head h = {.kind = ENTRY_PUT, .origin = m->id};
        uint8_t body[64];
        char key[32];

        while (atomic_load(&w->under_way) >= OUTSTANDING)
            sched_yield();
        REQUIRE(x != NULL);
        req.key.len = (size_t)snprintf(key, sizeof key, "key-%d", w->member * WRITES + i);
        req.key.data = (uint8_t *)key;
        h.body = slice_of(body, etcdserverpb__put_request__pack(&req, body));
        x->w = w;
        x->call.m = m;
        arena_init(&x->call.out, 1 << 20, NULL, 0);
        x->call.p.arena = &x->call.out;
        x->call.p.done = write_done;
        x->call.p.deadline_ms = UINT64_MAX;
        REQUIRE(account_take(m->account, &x->call.p, 1) == 0);
        h.request_id = x->call.p.request_id;
        x->call.p.entry = entry_new(entry_size(&h));
        REQUIRE(x->call.p.entry != NULL);
        entry_encode(&h, x->call.p.entry->payload);
        atomic_fetch_add(&w->under_way, 1);
        turn_propose_all(m->turn, &x->call.p, &x->call.p);
        if (i % 8 == 0)
            read_one(m);
    }
    return NULL;
}

static void transfer_done(struct transfer_wait *w)
{
    free(w);
    atomic_fetch_add(&transfers, 1);
}

static bool await_int(_Atomic int *what, int least)
{
    for (int i = 0; i < 120000 && atomic_load(what) < least; i++)
        usleep(1000); /* a deadline, not a delay */
    return atomic_load(what) >= least;
}

static void all_at_once(void)
{
    pthread_t net_thread;
    uint64_t last = 0;

    cr = (struct cr){.n = 3, .wire_end = &cr.wire};
    mailbox_init(&net, -1);
    for (int i = 1; i <= 3; i++)
        start(i);
    REQUIRE(thread_start(&net_thread, "net", net_main, NULL) == 0);
    for (int i = 1; i <= 3; i++) {
        REQUIRE(apply_start(cr.member[i].apply) == 0);
        REQUIRE(turn_start(cr.member[i].turn) == 0);
    }
    for (int i = 0; i < WRITERS; i++) {
        writers[i].member = i % 3 + 1;
        REQUIRE(thread_start(&writers[i].thread, "writer", writer_main, &writers[i]) == 0);
    }
    for (int i = 0; i < TRANSFERS; i++) {
        struct transfer_wait *w = calloc(1, sizeof *w);
        int l = leader();

        REQUIRE(w != NULL);
        w->done = transfer_done;
        turn_transfer(cr.member[l ? l : 1].turn, w);
        CHECK(await_int(&transfers, i + 1));
        CHECK(await_int(&writers[0].good, (i + 1) * WRITES / (TRANSFERS + 1)));
    }
    for (int i = 0; i < WRITERS; i++) {
        pthread_join(writers[i].thread, NULL);
        CHECK(await_int(&writers[i].good, WRITES) && writers[i].failed == 0);
    }
    CHECK(await_int(&reads, WRITERS * (WRITES / 8)));
    CHECK(stale == 0);
    for (int i = 1; i <= 3; i++) { /* the followers hear of the last commit with the next heartbeat */
        struct turn_status s;

        turn_status(cr.member[i].turn, &s);
        if (s.commit > last)
            last = s.commit;
    }
    for (int i = 1; i <= 3; i++)
        for (int k = 0; k < 60000 && store_applied(cr.member[i].store) < last; k++)
            usleep(1000); /* a deadline again */
    for (int i = 1; i <= 3; i++)
        turn_stop(cr.member[i].turn);
    atomic_store(&net_stop, true);
    mailbox_nudge(&net);
    pthread_join(net_thread, NULL);
    for (int i = 1; i <= 3; i++)
        for (int k = 0; k < WRITERS * WRITES; k += 7)
            CHECK(cr_versions(i, WRITES + k) == 1);
    for (int i = 1; i <= 3; i++)
        apply_stop(cr.member[i].apply);
    CHECK(cr.member[1].apply->rev == cr.member[2].apply->rev && cr.member[2].apply->rev == cr.member[3].apply->rev);
    printf("# %d writes, %d reads, %d handovers\n", WRITERS * WRITES, (int)reads, (int)transfers);
    for (struct mail *m = mailbox_take(&net), *next; m; m = next) {
        next = m->next;
        peer_msg_free(((struct net_mail *)m)->msg);
        free(m);
    }
    for (int i = 1; i <= 3; i++)
        stop(&cr.member[i]);
    CHECK(cr.fatal == 0);
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TEST(all_at_once);
    return tap_done();
}
