/* SPDX-License-Identifier: Apache-2.0 */
/* overlay.c - files that exist in this mount only (see overlay.h; publishing: overlay_publish.c). */
#include "overlay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "handle.h"
#include "ops.h"
#include "overlay_private.h"

/* ---- the tables ------------------------------------------------------------------------------ */

int overlay_open(struct fs *fs, struct overlay **ret_overlay)
{
    struct overlay *o = calloc(1, sizeof *o);

    if (o == NULL)
        return -ENOMEM;
    o->fs = fs;
    *ret_overlay = o;
    return 0;
}

static size_t name_bucket(const struct node *dir, const char *name)
{
    return (size_t)(value_hash(slice_str(name)) ^ dir->nodeid * 0x9e3779b97f4a7c15u) % OVERLAY_BUCKETS;
}

struct ofile *overlay_by_id(struct overlay *o, uint64_t nodeid)
{
    struct ofile *f = o->by_id[nodeid % OVERLAY_BUCKETS];

    while (f && f->nodeid != nodeid)
        f = f->hash_id;
    return f;
}

struct ofile *overlay_by_name(struct overlay *o, const struct node *dir, const char *name)
{
    struct ofile *f = o->by_name[name_bucket(dir, name)];

    while (f && (f->dir != dir || strcmp(f->name, name) != 0))
        f = f->hash_name;
    return f;
}

struct ofile *overlay_first(struct overlay *o)
{
    return o->files;
}

bool overlay_in_dir(struct overlay *o, const struct node *dir)
{
    for (const struct ofile *f = o->files; f; f = f->next)
        if (f->linked && f->dir == dir)
            return true;
    return false;
}

static void name_remove(struct ofile *f)
{
    struct ofile **p = &f->overlay->by_name[name_bucket(f->dir, f->name)];

    while (*p != f)
        p = &(*p)->hash_name;
    *p = f->hash_name;
    f->linked = false;
    node_unref(f->overlay->fs->tree, f->dir);
    f->dir = NULL;
    free(f->name);
    f->name = NULL;
}

static int name_add(struct ofile *f, struct node *dir, const char *name)
{
    struct ofile **bucket = &f->overlay->by_name[name_bucket(dir, name)];
    char *copy = strdup(name);

    if (copy == NULL)
        return ENOMEM;
    f->dir = node_ref(dir);
    f->name = copy;
    f->linked = true;
    f->hash_name = *bucket;
    *bucket = f;
    return 0;
}

static void ofile_free(struct ofile *f)
{
    struct overlay *o = f->overlay;
    struct ofile **p = &o->by_id[f->nodeid % OVERLAY_BUCKETS];

    session_timer_clear(&o->fs->session, &f->linger);
    if (f->linked)
        name_remove(f);
    while (*p != f)
        p = &(*p)->hash_id;
    *p = f->hash_id;
    *f->prev = f->next;
    if (f->next)
        f->next->prev = f->prev;
    o->stats.files--;
    o->stats.bytes -= f->room;
    free(f->buf);
    free(f);
}

void ofile_maybe_free(struct ofile *f)
{
    if (!f->linked && f->nlookup == 0 && f->opens == 0 && !f->publishing && f->limbo_node == NULL)
        ofile_free(f);
}

static void linger_fire(struct timer *t)
{
    struct ofile *f = (struct ofile *)((char *)t - offsetof(struct ofile, linger));

    if (f->limbo_node)
        overlay_limbo_commit(f);
    else if (f->class == OFILE_TEMPORARY && f->linked && f->opens == 0)
        overlay_publish(f);
}

struct ofile *overlay_create(struct overlay *o, struct node *dir, const char *name, enum ofile_class class)
{
    struct ofile *f = o->stats.bytes < OVERLAY_BYTES ? calloc(1, sizeof *f) : NULL;
    struct ofile **bucket;

    if (f == NULL)
        return NULL;
    f->overlay = o;
    f->nodeid = TREE_NODEID_END | ++o->last_id;
    f->ino = value_hash(slice_of(&f->nodeid, sizeof f->nodeid)) | 1;
    f->class = class;
    ofile_reset_meta(f);
    f->linger.fire = linger_fire;
    (void)clock_gettime(CLOCK_REALTIME, &f->mtime);
    if (name_add(f, dir, name) != 0) {
        free(f);
        return NULL;
    }
    bucket = &o->by_id[f->nodeid % OVERLAY_BUCKETS];
    f->hash_id = *bucket;
    *bucket = f;
    f->next = o->files;
    f->prev = &o->files;
    if (f->next)
        f->next->prev = &f->next;
    o->files = f;
    o->stats.files++;
    return f;
}

void overlay_unlink(struct ofile *f)
{
    if (f->linked)
        name_remove(f);
    session_timer_clear(&f->overlay->fs->session, &f->linger);
    if (f->limbo_node)
        overlay_limbo_commit(f); /* the key went with it */
    ofile_maybe_free(f);
}

int overlay_rename(struct ofile *f, struct node *dir, const char *name)
{
    struct ofile *there = overlay_by_name(f->overlay, dir, name);
    struct node *old_dir = node_ref(f->dir);
    char *old_name = strdup(f->name);
    int err = ENOMEM;

    if (old_name == NULL)
        goto out;
    if (there == f) {
        err = 0;
        goto out;
    }
    if (there)
        overlay_unlink(there);
    name_remove(f);
    err = name_add(f, dir, name);
    if (err)
        (void)name_add(f, old_dir,
                       old_name); /* a second failure leaves it nameless: gone with its last close */
    else if (overlay_is_editors(name))
        f->class = OFILE_EDITOR;
out:
    free(old_name);
    node_unref(f->overlay->fs->tree, old_dir);
    return err;
}

void ofile_lookup(struct ofile *f)
{
    f->nlookup++;
}

void ofile_forget(struct ofile *f, uint64_t n)
{
    f->nlookup -= n < f->nlookup ? n : f->nlookup;
    ofile_maybe_free(f);
}

void ofile_opened(struct ofile *f)
{
    f->opens++;
    if (f->limbo_node == NULL)
        session_timer_clear(&f->overlay->fs->session, &f->linger);
}

void ofile_closed(struct ofile *f)
{
    f->opens--;
    if (f->opens == 0 && f->class == OFILE_TEMPORARY && f->linked)
        session_timer_set(&f->overlay->fs->session, &f->linger, OVERLAY_LINGER_MS);
    ofile_maybe_free(f);
}

/* ---- contents ------------------------------------------------------------------------------------ */

struct slice ofile_content(const struct ofile *f)
{
    return slice_of(f->buf, f->len);
}

static int ofile_reserve(struct ofile *f, size_t len)
{
    struct overlay *o = f->overlay;
    size_t room = f->room ? f->room : 4096;
    uint8_t *p;

    if (len <= f->room)
        return 0;
    while (room < len)
        room *= 2;
    if (o->stats.bytes - f->room + room > OVERLAY_BYTES)
        return ENOSPC;
    p = realloc(f->buf, room);
    if (p == NULL)
        return ENOMEM;
    o->stats.bytes += room - f->room;
    f->buf = p;
    f->room = room;
    return 0;
}

int ofile_write(struct ofile *f, const void *data, size_t off, size_t size)
{
    int rc = off + size < off || off + size > OVERLAY_BYTES ? EFBIG : ofile_reserve(f, off + size);

    /* What will become a key must fit into one. */
    if (rc == 0 && f->class == OFILE_TEMPORARY &&
        off + size + REQUEST_OVERHEAD_BYTES > f->overlay->fs->opt.max_request_bytes)
        rc = EFBIG;
    if (rc)
        return rc;
    if (off > f->len)
        memset(f->buf + f->len, 0, off - f->len);
    memcpy(f->buf + off, data, size);
    if (off + size > f->len)
        f->len = off + size;
    (void)clock_gettime(CLOCK_REALTIME, &f->mtime);
    return 0;
}

int ofile_truncate(struct ofile *f, size_t len)
{
    int rc = len > OVERLAY_BYTES ? EFBIG : ofile_reserve(f, len);

    if (rc)
        return rc;
    if (len > f->len)
        memset(f->buf + f->len, 0, len - f->len);
    f->len = len;
    (void)clock_gettime(CLOCK_REALTIME, &f->mtime);
    return 0;
}

void ofile_set_meta(struct ofile *f, const struct stat *attr, int to_set)
{
    if (to_set & FUSE_SET_ATTR_MODE)
        f->mode = attr->st_mode & 07777;
    if (to_set & FUSE_SET_ATTR_UID)
        f->uid = attr->st_uid;
    if (to_set & FUSE_SET_ATTR_GID)
        f->gid = attr->st_gid;
    if (to_set & FUSE_SET_ATTR_MTIME_NOW)
        (void)clock_gettime(CLOCK_REALTIME, &f->mtime);
    else if (to_set & FUSE_SET_ATTR_MTIME)
        f->mtime = attr->st_mtim;
}

void ofile_reset_meta(struct ofile *f)
{
    const struct options *opt = &f->overlay->fs->opt;

    f->mode = 0666 & ~opt->umask;
    f->uid = opt->uid;
    f->gid = opt->gid;
}

void ofile_stat(const struct ofile *f, struct stat *ret_st)
{
    *ret_st = (struct stat){.st_ino = f->ino,
                            .st_mode = S_IFREG | f->mode,
                            .st_nlink = f->linked,
                            .st_uid = f->uid,
                            .st_gid = f->gid,
                            .st_size = (off_t)f->len,
                            .st_blksize = 1 << 20,
                            .st_blocks = (blkcnt_t)((f->len + 511) / 512),
                            .st_mtim = f->mtime,
                            .st_ctim = f->mtime,
                            .st_atim = f->mtime};
}

void overlay_get_stats(const struct overlay *o, struct overlay_stats *ret_stats)
{
    *ret_stats = o->stats;
}

void overlay_close(struct overlay *o)
{
    if (o == NULL)
        return;
    while (o->files) {
        struct ofile *f = o->files;

        if (f->limbo_node) {
            struct file_state *s = file_state_if(f->limbo_node);

            if (s)
                s->limbo = NULL;
            file_state_drop(f->limbo_node);
            node_unref(o->fs->tree, f->limbo_node);
            f->limbo_node = NULL;
        }
        ofile_free(f);
    }
    free(o);
}
