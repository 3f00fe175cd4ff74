/* SPDX-License-Identifier: Apache-2.0 */
/* bootstrap.c - from a configuration to an open store and log.
 *
 * Ids are etcd's: a member's is the first 8 bytes of SHA-1 over its sorted peer URLs and the cluster token, a cluster's the same
 * over its members' ids, big endian, ascending. Source: reference 02-semantics 2.5, seen on etcd 3.4.23. */
#include "bootstrap.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include "limits.h"
#include "raftconf.h"
#include "sha1.h"

enum { URL_TEXT_BYTES = 8192 };
#define MAP_BYTES (UINT64_C(1) << 40)
enum { READERS_MAX = 256 };

static int fail(struct bootstrap *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int fail(struct bootstrap *b, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    (void)vsnprintf(b->error, sizeof b->error, format, ap);
    va_end(ap);
    return -1;
}

/* ---- who we are --------------------------------------------------------------------- */

static const char *say(struct config *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
static const char *say(struct config *c, const char *format, ...)
{
    char *text = arena_alloc(&c->arena, DATADIR_ERROR_BYTES);
    va_list ap;

    if (text == NULL)
        return "out of memory";
    va_start(ap, format);
    (void)vsnprintf(text, DATADIR_ERROR_BYTES, format, ap);
    va_end(ap);
    return text;
}

/* The URLs of our name in "a=url,b=url,a=url", as a comma list in dst; others counts the rest. */
static const char *own_urls(struct config *c, char *dst, size_t size, unsigned *ret_others)
{
    size_t used = 0, name_len = strlen(c->name);

    *ret_others = 0;
    dst[0] = '\0';
    for (const char *p = c->initial_cluster, *end; *p; p = end + (*end == ',')) {
        const char *equals = strchr(p, '=');

        end = p + strcspn(p, ",");
        if (equals == NULL || equals >= end)
            return say(c, "--initial-cluster: \"%.*s\" is not NAME=URL", (int)(end - p), p);
        if ((size_t)(equals - p) != name_len || memcmp(p, c->name, name_len) != 0) {
            ++*ret_others;
            continue;
        }
        used += (size_t)snprintf(dst + used, size - used, "%s%.*s", used ? "," : "", (int)(end - equals - 1), equals + 1);
        if (used >= size)
            return "--initial-cluster is too long";
    }
    return NULL;
}

static const char *check_initial_cluster(struct config *c)
{
    char text[URL_TEXT_BYTES];
    struct url_list urls;
    unsigned others;
    const char *bad;

    if (*c->initial_cluster == '\0')
        return NULL;
    bad = own_urls(c, text, sizeof text, &others);
    if (bad)
        return bad;
    if (*text == '\0')
        return say(c, "couldn't find local name \"%s\" in the initial cluster configuration", c->name);
    if (others)
        return say(c, "--initial-cluster names %u other members: this version of cairnd runs clusters of one member only", others);
    bad = config_parse_urls(&c->arena, text, &urls);
    if (bad)
        return say(c, "--initial-cluster: %s", bad);
    for (size_t i = 0; i < urls.n || i < c->advertise_peer.n; i++) {
        if (i >= c->advertise_peer.n || (i < urls.n && strcmp(urls.urls[i].text, c->advertise_peer.urls[i].text) != 0))
            return say(c, "--initial-cluster has %s=%s but missing from --initial-advertise-peer-urls=%s", c->name,
                       i < urls.n ? urls.urls[i].text : "", c->advertise_peer.n ? c->advertise_peer.urls[0].text : "");
        if (i >= urls.n)
            return say(c, "--initial-advertise-peer-urls has %s but missing from --initial-cluster=%s",
                       c->advertise_peer.urls[i].text, c->initial_cluster);
    }
    return NULL;
}

const char *bootstrap_check(struct config *c, uint64_t *ret_cluster_id, uint64_t *ret_member_id)
{
    char text[URL_TEXT_BYTES];
    uint8_t id[8];
    size_t used = 0;
    const char *bad = check_initial_cluster(c);

    if (bad)
        return bad;
    if (strcmp(c->initial_cluster_state, "existing") == 0)
        return "--initial-cluster-state=existing: this version of cairnd runs clusters of one member only; use new";
    for (size_t i = 0; i < c->advertise_peer.n; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s", c->advertise_peer.urls[i].text);
    used += (size_t)snprintf(text + used, sizeof text - used, "%s", c->initial_cluster_token);
    if (used >= sizeof text)
        return "--initial-advertise-peer-urls is too long";
    *ret_member_id = sha1_head(slice_of(text, used));
    put_u64be(id, *ret_member_id);
    *ret_cluster_id = sha1_head(slice_of(id, sizeof id));
    return NULL;
}

/* ---- the parts ------------------------------------------------------------------------ */

struct base_options bootstrap_base_options(void)
{
    return (struct base_options){.map_bytes = MAP_BYTES, .readers_max = READERS_MAX};
}

static struct wal_options wal_options_of(struct bootstrap *b, const char *dir)
{
    return (struct wal_options){.disk = b->disk,
                                .dir = dir,
                                .segment_bytes = LIMIT_WAL_SEGMENT_BYTES,
                                .cluster_id = b->cluster_id,
                                .member_id = b->member_id};
}

static int create(struct bootstrap *b, const char *wal_dir)
{
    /* The founding configuration counts as decided in term 1, as in etcd: the first election is for term 2. */
    struct wal_state hard = {.term = 1};
    uint8_t conf_bytes[RAFTCONF_BYTES_MAX];
    char path[DATADIR_PATH_BYTES];
    struct raft_conf conf = {.voters = {.n = 1, .ids = {b->member_id}}};
    struct base_options bo = bootstrap_base_options();
    struct wal_options wo = wal_options_of(b, wal_dir);
    int rc = datadir_make_base(&b->dir, 1, path);

    bo.path = path;
    if (rc == 0)
        rc = base_create(&bo, b->cluster_id, b->member_id, raftconf_encode(&conf, conf_bytes));
    if (rc)
        return fail(b, "%s: the store cannot be made: %s", b->dir.path, strerror(-rc));
    rc = wal_create(&wo, 0, 0, &hard);
    if (rc)
        return fail(b, "%s/%s: the log cannot be made: %s", b->dir.wal_root, wal_dir, strerror(-rc));
    rc = datadir_commit(&b->dir);
    return rc ? fail(b, "%s/CURRENT: cannot be written: %s", b->dir.path, strerror(-rc)) : 0;
}

static int open_base(struct bootstrap *b)
{
    char path[DATADIR_PATH_BYTES];
    struct base_options bo = bootstrap_base_options();
    struct base_reader *r = NULL;
    struct base_meta meta = {0};
    int rc;

    datadir_base_path(&b->dir, b->dir.base, path);
    bo.path = path;
    rc = base_open(&bo, &b->base);
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
    if (r)
        base_reader_free(r);
    return rc ? fail(b, "%s: the store's head cannot be read: %s; restore the data directory from a backup", path, strerror(-rc))
              : 0;
}

static int open_wal(struct bootstrap *b, const char *wal_dir)
{
    struct wal_options wo = wal_options_of(b, wal_dir);
    char why[DATADIR_ERROR_BYTES / 2] = "";
    int rc = wal_open(&wo, &b->wal, &b->wal_state, why, sizeof why);

    if (rc)
        return fail(b, "%s/%s: the log cannot be opened: %s", b->dir.wal_root, wal_dir, *why ? why : strerror(-rc));
    if (b->applied_index < b->wal_state.first_index || b->applied_index > b->wal_state.last_index)
        return fail(b,
                    "%s: the store (applied index %llu) and the log (%llu to %llu) do not belong together: one of them was "
                    "replaced by another copy; restore both from the same backup",
                    b->dir.path, (unsigned long long)b->applied_index, (unsigned long long)b->wal_state.first_index,
                    (unsigned long long)b->wal_state.last_index);
    return 0;
}

int bootstrap_open(struct bootstrap *b, struct config *c)
{
    char wal_dir[32];
    const char *bad;
    int rc;

    *b = (struct bootstrap){.dir = {.fd = -1, .wal_fd = -1}};
    bad = bootstrap_check(c, &b->cluster_id, &b->member_id);
    if (bad)
        return fail(b, "%s", bad);
    if (datadir_open(&b->dir, c->data_dir, c->wal_dir) < 0)
        return fail(b, "%s", b->dir.error);
    (void)snprintf(wal_dir, sizeof wal_dir, "wal-%u", b->dir.wal);
    rc = disk_real_new(b->dir.wal_root, &b->disk);
    if (rc)
        (void)fail(b, "%s: %s", b->dir.wal_root, strerror(-rc));
    if (rc == 0 && b->dir.fresh)
        rc = create(b, wal_dir);
    rc = rc ? rc : open_base(b);
    rc = rc ? rc : open_wal(b, wal_dir);
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
