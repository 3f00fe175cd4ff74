/* SPDX-License-Identifier: Apache-2.0 */
/* bootstrap.c - from a configuration to an open store and log.
 *
 * Not here: what the flags name (roster.c), whom else a member asks (bootstrap_ask.c), --force-new-cluster (bootstrap_force.c). */
#include "bootstrap.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>
#include "limits.h"
#include "log.h"
#include "member_row.h"
#include "raftconf.h"

#define MAP_BYTES (UINT64_C(1) << 40)
enum { READERS_MAX = 256, FOUNDING_INDEX = 1, FOUNDING_TERM = 1 };

#define fail bootstrap_fail

int bootstrap_fail(struct bootstrap *b, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    (void)vsnprintf(b->error, sizeof b->error, format, ap);
    va_end(ap);
    return -1;
}

/* ---- who we are --------------------------------------------------------------------- */

static bool joins(const struct config *c)
{
    return strcmp(c->initial_cluster_state, "existing") == 0;
}

static const char *read_roster(struct config *c, struct roster *ret_roster)
{
    const char *bad = roster_read(c, ret_roster);

    return bad ? bad : joins(c) ? roster_check_existing(c, ret_roster) : roster_check_new(c, ret_roster);
}

const char *bootstrap_check(struct config *c)
{
    char path[DATADIR_PATH_BYTES];
    struct roster r;

    (void)snprintf(path, sizeof path, "%s/CURRENT", c->data_dir);
    return access(path, F_OK) == 0 ? NULL : read_roster(c, &r);
}

/* A founder whose data was lost would vote a second time: the others know that it has started before. */
static int check_not_started(struct bootstrap *b, struct config *c, const struct roster *r)
{
    struct bootstrap_cluster running;

    if (r->n == 1 || b->ask == NULL || b->ask(b->ask_ctx, &c->arena, r, &running) != NULL)
        return 0; /* nobody is there yet */
    for (size_t i = 0; i < running.n; i++)
        if (running.members[i].id == r->self->id && running.started[i])
            return fail(b, "member %llx has already been bootstrapped; if its data is lost, remove it from the cluster, add it "
                           "again, and start it with --initial-cluster-state existing",
                        (unsigned long long)r->self->id);
    return 0;
}

static int ask(struct bootstrap *b, struct config *c, const struct roster *r)
{
    const char *bad = b->ask ? b->ask(b->ask_ctx, &c->arena, r, &b->running) : "this member has no peer port";

    return bad ? fail(b, "cannot fetch cluster info from peer urls: %s", bad) : 0;
}

static int join(struct bootstrap *b, struct config *c, struct roster *r)
{
    const char *bad;

    if (ask(b, c, r) < 0)
        return -1;
    bad = roster_match(c, r, b->running.members, b->running.n);
    if (bad)
        return fail(b, "error validating peerURLs of cluster %llx: %s", (unsigned long long)b->running.id, bad);
    b->cluster_id = b->running.id;
    b->member_id = r->self->id;
    b->joining = true;
    return 0;
}

/* It was stopped before the others had told it anything, or it is being rebuilt: they are asked (again) who they are.
 * Whether this member is still one of them they tell it on each connection. One that is being rebuilt waits for them,
 * with nobody there to start it again. */
static int join_again(struct bootstrap *b, struct config *c)
{
    const char *why;
    int rc;

    if (b->applied_index > 0 || b->conf.voters.n > 0)
        return 0;
    b->joining = true;
    if (b->running.n)
        return 0; /* asked a moment ago */
    rc = bootstrap_ask_others(b, c, b->fence_term != 0, &why);
    return rc && rc != -ESRCH ? fail(b, "cannot fetch cluster info from peer urls: %s", why) : 0;
}

static int meet(struct bootstrap *b, struct config *c, struct roster *r)
{
    const char *bad = read_roster(c, r);

    if (bad)
        return fail(b, "%s", bad);
    if (joins(c))
        return join(b, c, r);
    b->cluster_id = r->cluster_id;
    b->member_id = r->self->id;
    return check_not_started(b, c, r);
}

/* ---- the parts ------------------------------------------------------------------------ */

struct base_options bootstrap_base_options(void)
{
    return (struct base_options){.map_bytes = MAP_BYTES, .readers_max = READERS_MAX};
}

struct wal_options bootstrap_wal_options(const struct bootstrap *b, const char *dir)
{
    return (struct wal_options){.disk = b->disk,
                                .dir = dir,
                                .segment_bytes = b->segment_bytes ? b->segment_bytes : LIMIT_WAL_SEGMENT_BYTES,
                                .cluster_id = b->cluster_id,
                                .member_id = b->member_id,
                                .rng = b->rng};
}

/* ---- making ----------------------------------------------------------------------------- */

static int founder_row(struct delta *d, const struct roster_member *from)
{
    Etcdserverpb__Member m = ETCDSERVERPB__MEMBER__INIT;
    char **urls = calloc(from->urls.n + 1, sizeof *urls);
    uint8_t key[8], *packed = NULL;
    int rc = -ENOMEM;

    if (urls == NULL)
        return rc;
    m.id = from->id;
    m.name = (char *)from->name;
    m.peerurls = urls;
    for (; m.n_peerurls < from->urls.n; m.n_peerurls++)
        urls[m.n_peerurls] = (char *)from->urls.urls[m.n_peerurls].text;
    packed = malloc(etcdserverpb__member__get_packed_size(&m));
    if (packed)
        rc = delta_row(d, TABLE_MEMBER, member_row_key(m.id, key),
                       slice_of(packed, etcdserverpb__member__pack(&m, packed)));
    free(packed);
    free(urls);
    return rc;
}

static int by_id(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* Every founder votes. */
static struct raft_conf founding_conf(const struct roster *r)
{
    struct raft_conf conf = {.voters = {.n = (uint32_t)r->n}};

    for (size_t i = 0; i < r->n; i++)
        conf.voters.ids[i] = r->members[i].id;
    qsort(conf.voters.ids, r->n, sizeof *conf.voters.ids, by_id);
    return conf;
}

/* Names are the flags' and may be written differently at each member, so no hash has these rows in it: each member
 * tells its own name once it has started. */
static int fill_founder(const struct base_options *bo, const struct roster *r, struct slice conf)
{
    struct seal seal = {.applied_index = FOUNDING_INDEX,
                        .applied_term = FOUNDING_TERM,
                        .revision = 1,
                        .compact_revision = -1,
                        .conf = conf};
    struct delta *d = delta_new();
    struct base *base = NULL;
    int rc = d ? base_open(bo, &base) : -ENOMEM;

    for (size_t i = 0; i < r->n && rc == 0; i++)
        rc = founder_row(d, &r->members[i]);
    if (rc == 0) {
        delta_seal(d, &seal);
        rc = base_flush(base, d);
    }
    if (base)
        base_close(base);
    if (d)
        delta_free(d);
    return rc;
}

static int make_base(struct bootstrap *b, const struct roster *r, char path[DATADIR_PATH_BYTES])
{
    uint8_t bytes[RAFTCONF_BYTES_MAX];
    struct raft_conf conf = b->joining ? (struct raft_conf){0} : founding_conf(r);
    struct slice encoded = raftconf_encode(&conf, bytes);
    struct base_options bo = bootstrap_base_options();
    int rc = datadir_make_base(&b->dir, 1, path);

    bo.path = path;
    rc = rc ? rc : base_create(&bo, b->cluster_id, b->member_id, encoded);
    return rc || b->joining ? rc : fill_founder(&bo, r, encoded);
}

static int create(struct bootstrap *b, struct config *c, const char *wal_dir)
{
    static const struct wal_state founding = {.term = FOUNDING_TERM, .commit = FOUNDING_INDEX}, joining;
    char path[DATADIR_PATH_BYTES];
    struct wal_options wo;
    struct roster r;
    int rc;

    if (meet(b, c, &r) < 0)
        return -1;
    rc = make_base(b, &r, path);
    if (rc)
        return fail(b, "%s: the store cannot be made: %s", b->dir.path, strerror(-rc));
    wo = bootstrap_wal_options(b, wal_dir);
    rc = b->joining ? wal_create(&wo, 0, 0, &joining) : wal_create(&wo, FOUNDING_INDEX, FOUNDING_TERM, &founding);
    if (rc)
        return fail(b, "%s/%s: the log cannot be made: %s", b->dir.wal_root, wal_dir, strerror(-rc));
    rc = b->joining ? 0 : datadir_note_token(&b->dir, c->initial_cluster_token);
    rc = rc ? rc : datadir_commit(&b->dir);
    return rc ? fail(b, "%s/CURRENT: cannot be written: %s", b->dir.path, strerror(-rc)) : 0;
}

/* ---- opening ---------------------------------------------------------------------------- */

/* What the flags say against what this directory holds. etcd ignores them all; but a token of another cluster, or the
 * name and the URLs of another member, are a wrong directory. */
static int check_flags(struct bootstrap *b, struct config *c, struct base_reader *r)
{
    char noted[256];
    uint8_t key[8];
    struct slice row;
    Etcdserverpb__Member *m;
    bool same = false;

    if (c->token_given && datadir_token_differs(&b->dir, c->initial_cluster_token, noted, sizeof noted))
        return fail(b, "%s: this member has founded its cluster with --initial-cluster-token %s, not %s; leave the flag out, or "
                       "give the new cluster a --data-dir of its own", b->dir.path, noted, c->initial_cluster_token);
    if (base_row_get(r, TABLE_MEMBER, member_row_key(b->member_id, key), &row) != 0)
        return 0; /* a joiner that has not yet been told */
    if (member_row_is_gone(row))
        return fail(b, "%s: member %llx has been permanently removed from its cluster; the data directory must be removed: then add "
                       "the member again and start it with --initial-cluster-state existing",
                    b->dir.path, (unsigned long long)b->member_id);
    m = etcdserverpb__member__unpack(NULL, row.len, row.ptr);
    if (m == NULL)
        return fail(b, "%s: the row of this member cannot be read; restore the data directory from a backup", b->dir.path);
    for (size_t i = 0; i < m->n_peerurls && !same; i++)
        for (size_t k = 0; k < c->advertise_peer.n && !same; k++)
            same = strcmp(m->peerurls[i], c->advertise_peer.urls[k].text) == 0;
    same |= !c->name_given || *m->name == '\0' || strcmp(m->name, c->name) == 0;
    if (!same)
        (void)fail(b, "%s: belongs to member %llx, whose name is \"%s\" and whose peer URL is %s, but the flags are of \"%s\" at %s; "
                      "give that member a --data-dir of its own",
                   b->dir.path, (unsigned long long)m->id, m->name, m->n_peerurls ? m->peerurls[0] : "unknown", c->name,
                   c->advertise_peer.n ? c->advertise_peer.urls[0].text : "");
    etcdserverpb__member__free_unpacked(m, NULL);
    return same ? 0 : -1;
}

/* After a crash inside LMDB all of the store is read, by a process that may crash too, before this one uses it. -1: it
 * is damaged, or not to be relied on: after a second crash something may be wrong that no row shows, and who has others
 * asks them. */
static int check_suspect(struct bootstrap *b)
{
    char path[DATADIR_PATH_BYTES], what[DATADIR_ERROR_BYTES / 4] = "";
    struct base_options bo = bootstrap_base_options();
    int rc;

    b->suspicions = datadir_suspicions(&b->dir);
    if (b->suspicions == 0)
        return 0;
    datadir_base_path(&b->dir, b->dir.base, path);
    bo.path = path;
    log_warn("an earlier run ended in a crash inside the store: all of it is read before it is used", LOG_STR("store", path));
    rc = base_check_apart(&bo, what, sizeof what);
    if (rc && rc != -EUCLEAN)
        (void)fail(b, "%s: a run ended in a crash inside the store, and it cannot be read whole since: %s", path, what);
    else if (rc)
        (void)fail(b, "%s: the store is damaged: a run ended in a crash inside it, and reading all of it found: %s; restore the data "
                      "directory from a backup, or, to save what can still be read, remove %s/SUSPECT and start",
                   path, what, b->dir.path);
    else
        log_info("the store is sound", LOG_STR("store", path));
    b->store_sound = rc == 0;
    b->store_damaged = rc == -EUCLEAN || (rc == 0 && b->suspicions > 1);
    if (rc == 0 && b->store_damaged)
        (void)fail(b, "%s: two runs ended in a crash inside it", path);
    return rc || b->store_damaged ? -1 : 0;
}

static int open_base(struct bootstrap *b, struct config *c)
{
    char path[DATADIR_PATH_BYTES];
    struct base_options bo = bootstrap_base_options();
    struct base_reader *r = NULL;
    struct base_meta meta = {0};
    int rc, flags = 0;

    datadir_base_path(&b->dir, b->dir.base, path);
    bo.path = path;
    rc = base_open(&bo, &b->base);
    b->store_damaged = rc == -EUCLEAN || rc == -ENOENT;
    if (rc)
        return fail(b, "%s: the store cannot be opened: %s; restore the data directory from a backup, or remove this member's",
                    path, strerror(-rc));
    rc = base_reader_new(b->base, &r);
    rc = rc ? rc : base_reader_renew(r);
    rc = rc ? rc : base_reader_meta(r, &meta);
    rc = rc ? rc : raftconf_decode(meta.seal.conf, &b->conf);
    b->cluster_id = meta.cluster_id;
    b->member_id = meta.member_id;
    b->applied_index = meta.seal.applied_index;
    b->applied_term = meta.seal.applied_term;
    b->store_damaged = rc == -EUCLEAN;
    if (rc)
        (void)fail(b, "%s: the store's head cannot be read: %s; restore the data directory from a backup", path, strerror(-rc));
    else
        flags = check_flags(b, c, r);
    if (r)
        base_reader_free(r);
    return rc ? -1 : flags;
}

int bootstrap_open_wal(struct bootstrap *b, const char *wal_dir)
{
    struct wal_options wo = bootstrap_wal_options(b, wal_dir);
    char why[DATADIR_ERROR_BYTES / 2] = "";
    int rc;

    if (b->wal)
        wal_close(b->wal);
    b->wal = NULL;
    rc = wal_open(&wo, &b->wal, &b->wal_state, why, sizeof why);
    b->log_damaged = rc == -EUCLEAN || rc == -ENOENT;
    if (rc)
        return fail(b, "%s/%s: the log cannot be opened: %s", b->dir.wal_root, wal_dir, *why ? why : strerror(-rc));
    b->log_damaged = b->applied_index < b->wal_state.first_index || b->applied_index > b->wal_state.last_index;
    if (b->log_damaged)
        return fail(b,
                    "%s: the store (applied index %llu) and the log (%llu to %llu) do not belong together: one of them was "
                    "replaced by another copy; restore both from the same backup",
                    b->dir.path, (unsigned long long)b->applied_index, (unsigned long long)b->wal_state.first_index,
                    (unsigned long long)b->wal_state.last_index);
    return 0;
}

static void name_wal(const struct bootstrap *b, char wal_dir[32])
{
    (void)snprintf(wal_dir, 32, "wal-%u", b->dir.wal);
}

/* Base, then the log; what is damaged is replaced by something empty, if the others can fill it (and are not said to be
 * gone). */
static int open_parts(struct bootstrap *b, struct config *c, bool store_damaged)
{
    bool others = !c->force_new_cluster;
    char wal_dir[32];
    int rc;

    name_wal(b, wal_dir);
    if (store_damaged) {
        b->store_damaged = true;
        rc = *b->error ? -1 : fail(b, "%s: a damaged row was found in the store", b->dir.path);
    } else {
        rc = check_suspect(b);
        rc = rc ? rc : open_base(b, c);
    }
    if (rc && b->store_damaged && ((others && bootstrap_rebuild_store(b, c) == 0) || b->store_sound)) {
        if (b->base)
            base_close(b->base);
        b->base = NULL;
        rc = open_base(b, c);
        name_wal(b, wal_dir);
    }
    rc = rc ? rc : bootstrap_open_wal(b, wal_dir);
    if (rc && b->log_damaged && others && bootstrap_rebuild_log(b) == 0) {
        name_wal(b, wal_dir);
        rc = bootstrap_open_wal(b, wal_dir);
    }
    return rc;
}

/* A lost CURRENT, or a FAULTY that cannot be read, leaves nothing that can be relied on: b->error says so, and whoever
 * has others begins anew from them. */
static int open_dir(struct bootstrap *b, struct config *c, bool *ret_store_damaged)
{
    b->dir = (struct datadir){.fd = -1, .wal_fd = -1};
    if (datadir_open(&b->dir, c->data_dir, c->wal_dir) < 0) {
        (void)fail(b, "%s", b->dir.error);
        if (!b->dir.lost || datadir_open_lost(&b->dir, c->data_dir, c->wal_dir) < 0)
            return -1;
    }
    if (datadir_read_mark(&b->dir, &b->fence_term, ret_store_damaged) < 0) {
        (void)fail(b, "%s", b->dir.error);
        if (b->dir.fresh) {
            datadir_close(&b->dir);
            return -1;
        }
    }
    *ret_store_damaged |= *b->error != '\0';
    return 0;
}

int bootstrap_open(struct bootstrap *b, struct config *c)
{
    char wal_dir[32];
    bool fresh, store_damaged = false;
    int rc;

    if (open_dir(b, c, &store_damaged) < 0)
        return -1;
    (void)snprintf(wal_dir, sizeof wal_dir, "wal-%u", b->dir.wal);
    fresh = b->dir.fresh;
    rc = disk_real_new(b->dir.wal_root, &b->disk);
    if (rc)
        (void)fail(b, "%s: %s", b->dir.wal_root, strerror(-rc));
    if (rc == 0 && fresh)
        rc = create(b, c, wal_dir);
    if (rc == 0 && b->guard)
        b->guard(b->ask_ctx);
    rc = rc ? rc : open_parts(b, c, store_damaged);
    if (rc == 0 && !fresh)
        rc = join_again(b, c);
    name_wal(b, wal_dir);
    if (rc == 0 && c->force_new_cluster && !fresh)
        rc = bootstrap_force(b, wal_dir);
    if (rc)
        bootstrap_close(b);
    return rc ? -1 : 0;
}

void bootstrap_close(struct bootstrap *b)
{
    if (b->wal)
        wal_close(b->wal);
    if (b->base)
        base_close(b->base);
    if (b->disk)
        disk_real_free(b->disk);
    b->wal = NULL;
    b->base = NULL;
    b->disk = NULL;
    datadir_close(&b->dir);
}
