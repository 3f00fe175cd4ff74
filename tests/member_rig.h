/* SPDX-License-Identifier: Apache-2.0 */
/* member_rig.h - a member's data directory, its log and an apply without threads over it, opened as the daemon opens
 * them; and a sender whose snapshot it takes. Before the include: enum { OLD, STORED, SNAP, LAST, SEGMENT_BYTES }.
 *
 * One history of LAST random entries (SEED) is everybody's. The member's base holds the first OLD of them, its log the
 * first STORED; the snapshot is as of SNAP. What the state is after each entry is noted. */
#pragma once
#include "apply_entries.h"
#include "daemon/bootstrap.h"
#include "daemon/log.h"
#include "daemon/snap.h"
#include "daemon/snap_install.h"

static uint64_t seed;

/* SEED and STATES, from the environment, and an own directory, in memory where there is such a place:
 * no sync means anything here. Returns how many states are wanted. */
static inline uint64_t member_begin(uint64_t states, char *root, size_t cap)
{
    const char *text = getenv("SEED"), *want = getenv("STATES");

    seed = text ? strtoull(text, NULL, 0) : (uint64_t)getpid() * UINT64_C(0x9e3779b97f4a7c15) + 1;
    printf("# SEED=%llu\n", (unsigned long long)seed);
    fflush(stdout);
    arena_init(&ar, 64 << 20, NULL, 0);
    log_set_level(LOG_LEVEL_FATAL);
    snprintf(root, cap, "%s/cairn-cut-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    REQUIRE(mkdtemp(root) != NULL);
    return want ? strtoull(want, NULL, 0) : states;
}

/* ---- the sender -------------------------------------------------------------------------------------------- */

/* The state after an entry. */
struct mark {
    uint64_t dump, hash;
    int64_t rev, keys;
    size_t leases;
};

static struct rig sender;
static struct mark marks[LAST + 1];
static struct slice chunks[1024];
static size_t n_chunks;
static struct snap_head head;

static inline uint64_t text_print(const char *s)
{
    uint64_t h = 14695981039346656037u;

    for (; *s; s++)
        h = (h ^ (uint8_t)*s) * 1099511628211u;
    return h;
}

static inline struct mark mark_of(struct rig *r)
{
    return (struct mark){text_print(rig_dump(r, 0)), r->apply->hash, r->apply->rev, r->apply->key_count,
                         lease_count(r->leases)};
}

static inline bool mark_same(const struct mark *a, const struct mark *b)
{
    return a->dump == b->dump && a->hash == b->hash && a->rev == b->rev && a->keys == b->keys && a->leases == b->leases;
}

static inline void sender_export(void)
{
    struct snap_export *x;
    struct slice c;
    int err;

    rig_flush(&sender);
    REQUIRE(snap_export_new(sender.apply, sender.store, &sender.clock.clock, &x) == 0);
    head = *snap_export_head(x);
    while ((err = snap_export_next(x, &c)) == 0) {
        uint8_t *p = malloc(c.len);

        REQUIRE(p && n_chunks < 1024);
        memcpy(p, c.ptr, c.len);
        chunks[n_chunks++] = slice_of(p, c.len);
    }
    REQUIRE(err == 1);
    snap_export_free(x);
}

static inline void sender_new(void)
{
    uint64_t s = seed;

    rig_new(&sender);
    for (int i = 1; i <= LAST; i++) {
        entry(&sender, &s, false);
        REQUIRE(sender.last == (uint64_t)i);
        marks[i] = mark_of(&sender);
        if (i == SNAP)
            sender_export();
    }
}

static inline void sender_free(void)
{
    for (size_t i = 0; i < n_chunks; i++)
        free((void *)(uintptr_t)chunks[i].ptr);
    rig_free(&sender);
}

/* ---- a member ---------------------------------------------------------------------------------------------- */

struct member_rig {
    struct rig rig;
    struct bootstrap boot;
    struct config config;
};

static inline struct wal_options wal_options(struct member_rig *m, const char *name)
{
    return (struct wal_options){.disk = m->boot.disk, .dir = name, .segment_bytes = SEGMENT_BYTES, .cluster_id = 1,
                                .member_id = RIG_MEMBER};
}

/* What the daemon does at its start; log: --wal-dir, or "". apply_log: and what it does then. 0, or -1: m->boot.error
 * says why. */
static inline int member_try_open(struct member_rig *m, const char *path, const char *log, bool apply_log)
{
    char base[DATADIR_PATH_BYTES];

    *m = (struct member_rig){.config = {.data_dir = path, .wal_dir = log}};
    if (bootstrap_open(&m->boot, &m->config) != 0)
        return -1;
    datadir_base_path(&m->boot.dir, m->boot.dir.base, base);
    m->rig = (struct rig){.clock = {{rig_now_ms, rig_now_us, rig_wall_ms}, 1000000}, .quota = -1};
    REQUIRE(strlen(base) < sizeof m->rig.dir);
    memcpy(m->rig.dir, base, strlen(base) + 1);
    rig_open_base(&m->rig, m->boot.base);
    m->boot.base = NULL; /* the store's */
    m->rig.apply->o.datadir = &m->boot.dir;
    m->rig.apply->o.base = bootstrap_base_options();
    m->rig.apply->o.base.path = m->rig.dir;
    m->rig.apply->o.wal = m->boot.wal;
    m->rig.last = m->rig.apply->applied;
    if (apply_log && m->boot.wal_state.commit > m->rig.last) {
        m->rig.last = m->boot.wal_state.commit;
        apply_commit(m->rig.apply, m->rig.last);
        rig_run(&m->rig);
    }
    return 0;
}

static inline void member_open(struct member_rig *m, const char *path, const char *log, bool apply_log)
{
    if (member_try_open(m, path, log, apply_log) != 0)
        printf("# %s\n", m->boot.error);
    REQUIRE(*m->boot.error == '\0');
}

static inline void member_close(struct member_rig *m)
{
    rig_close(&m->rig);
    bootstrap_close(&m->boot);
}

static inline void member_append(struct member_rig *m, uint64_t last, uint64_t commit)
{
    uint64_t first = m->boot.wal_state.last_index + 1;

    REQUIRE(wal_append(m->boot.wal, &sender.log[first], last + 1 - first, NULL, commit) == 0);
    REQUIRE(wal_sync(m->boot.wal) == 0);
    m->boot.wal_state.last_index = last;
    m->boot.wal_state.commit = commit;
}

static inline void member_apply(struct member_rig *m, uint64_t index)
{
    m->rig.last = index;
    apply_commit(m->rig.apply, index);
    rig_run(&m->rig);
}

static inline void member_make(const char *path, const char *log)
{
    uint8_t bytes[RAFTCONF_BYTES_MAX];
    struct raft_conf conf = {.voters = {.n = 1, .ids = {RIG_MEMBER}}};
    struct member_rig m = {0};
    struct wal_options o;
    char base[DATADIR_PATH_BYTES];
    struct base_options bo = bootstrap_base_options();

    REQUIRE(datadir_open(&m.boot.dir, path, log) == 0);
    REQUIRE(disk_real_new(m.boot.dir.wal_root, &m.boot.disk) == 0);
    REQUIRE(datadir_make_base(&m.boot.dir, 1, base) == 0);
    bo.path = base;
    REQUIRE(base_create(&bo, 1, RIG_MEMBER, raftconf_encode(&conf, bytes)) == 0);
    o = wal_options(&m, "wal-1");
    REQUIRE(wal_create(&o, 0, 0, &(struct wal_state){.term = 1}) == 0);
    REQUIRE(datadir_commit(&m.boot.dir) == 0);
    bootstrap_close(&m.boot);
    member_open(&m, path, log, true);
    member_append(&m, STORED, OLD);
    member_apply(&m, OLD);
    rig_flush(&m.rig);
    member_close(&m);
}

/* Whether the state is what it was at the sender after as many entries. */
static inline bool member_is_right(struct member_rig *m)
{
    struct mark now = mark_of(&m->rig);

    return m->rig.apply->applied <= LAST && mark_same(&now, &marks[m->rig.apply->applied]);
}

/* ---- installing ---------------------------------------------------------------------------------------------- */

/* between: called before each chunk. */
static inline void member_receive(struct member_rig *m, void (*between)(struct member_rig *m))
{
    char path[DATADIR_PATH_BYTES];
    struct snap_import_options o = {.path = path, .base = bootstrap_base_options(), .cluster_id = 1,
                                    .member_id = RIG_MEMBER};
    struct snap_import *im;
    int err = 0;

    REQUIRE(datadir_make_incoming(&m->boot.dir, path) == 0);
    REQUIRE(snap_import_new(&o, &im) == 0);
    for (size_t i = 0; i < n_chunks && err == 0; i++) {
        if (between)
            between(m);
        err = snap_import_feed(im, chunks[i]);
    }
    REQUIRE(err == 1);
    snap_import_free(im);
}

enum { NEW_TERM = 9, NEW_VOTE = 4 };

static inline int member_install(struct member_rig *m)
{
    struct snap_place place = {.dir = &m->boot.dir, .disk = m->boot.disk, .wal = m->boot.wal,
                               .base = bootstrap_base_options(), .wal_options = wal_options(m, NULL)};
    struct wal_state hard = {.term = NEW_TERM, .vote = NEW_VOTE, .commit = head.index};
    int err = snap_install(&place, m->rig.apply, head.index, head.term, &hard);

    if (err == 0)
        m->boot.wal_state = (struct wal_state){.term = NEW_TERM, .vote = NEW_VOTE, .commit = head.index,
                                               .first_index = head.index, .last_index = head.index};
    return err;
}

/* Apply takes it over. */
static inline void member_settle(struct member_rig *m)
{
    for (int i = 0; i < 1000 && atomic_load(&m->rig.apply->installing); i++) {
        (void)apply_step(m->rig.apply);
        (void)apply_flush_step(m->rig.apply);
        m->rig.clock.ms += 10;
    }
    REQUIRE(!atomic_load(&m->rig.apply->installing));
}

/* What lies idle is flushed, and what is over removed. */
static inline void member_tidy(struct member_rig *m)
{
    for (int i = 0; i < 20; i++) {
        m->rig.clock.ms += 1000;
        (void)apply_step(m->rig.apply);
        (void)apply_flush_step(m->rig.apply);
    }
}
