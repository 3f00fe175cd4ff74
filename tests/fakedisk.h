/* SPDX-License-Identifier: Apache-2.0 */
/* fakedisk.h - a disk in memory that forgets, tears, fills up and fails, by seed.
 *
 * Every write goes to the view (what a running process reads) and waits in a list; fdatasync moves the list into the
 * durable bytes. fakedisk_crash decides for each sector of each waiting write: written, lost, or (tear) only its first
 * bytes; and for each directory entry not covered by fsync_dir: the old or the new. fail_call makes the n-th call
 * return fail_err, once or from then on; capacity bounds the sum of all sizes with -ENOSPC. A failed fdatasync leaves
 * the view as it is and the medium as it was, and the pages count as clean: only drop_cache shows the truth, as on
 * Linux. One thread only. After the idea of SQLite's test6.c.
 */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include "daemon/seam.h"
#include "splitmix.h"

#define FAKE_UNUSED __attribute__((unused)) static
enum { FAKE_SECTOR = 512, FAKE_NAMES = 256 };

struct fake_write {
    struct fake_write *next;
    uint64_t offset;
    size_t n;
    uint8_t data[];
};

struct fake_inode {
    uint32_t refs;
    uint8_t *view, *durable;
    size_t view_size, durable_size;
    struct fake_write *waiting, **last; /* oldest first */
};

struct disk_file {
    struct fake_inode *inode;
};

struct fake_name {
    char path[96];
    bool dir;
    bool now_dir, durable_dir;
    struct fake_inode *now, *durable;
    uint32_t op; /* entries changed by one rename share a fate */
};

struct fakedisk {
    struct disk disk;
    struct fake_name name[FAKE_NAMES];
    size_t n_names;
    uint64_t seed;
    uint64_t calls;     /* counted so far, of those that may fail */
    uint64_t fail_call; /* 0: none */
    int fail_err;
    bool fail_for_ever;
    bool tear;          /* a crash may write part of a sector */
    uint64_t capacity;  /* 0: none */
    uint32_t ops;
};

FAKE_UNUSED uint64_t fake_random(struct fakedisk *d)
{
    return splitmix64(&d->seed);
}

static int fake_fails(struct fakedisk *d)
{
    d->calls++;
    if (d->fail_call && (d->calls == d->fail_call || (d->fail_for_ever && d->calls > d->fail_call)))
        return d->fail_err;
    return 0;
}

static void fake_unref(struct fake_inode *i)
{
    if (i == NULL || --i->refs > 0)
        return;
    while (i->waiting) {
        struct fake_write *w = i->waiting;

        i->waiting = w->next;
        free(w);
    }
    free(i->view);
    free(i->durable);
    free(i);
}

static struct fake_name *fake_find(struct fakedisk *d, const char *path)
{
    for (size_t i = 0; i < d->n_names; i++) {
        if (strcmp(d->name[i].path, path) == 0)
            return &d->name[i];
    }
    return NULL;
}

static struct fake_name *fake_name(struct fakedisk *d, const char *path)
{
    struct fake_name *n = fake_find(d, path);

    if (n)
        return n;
    /* Names that stand for nothing any more are used again. */
    for (size_t i = 0; i < d->n_names && n == NULL; i++) {
        struct fake_name *o = &d->name[i];

        if (!o->now && !o->durable && !o->now_dir && !o->durable_dir)
            n = o;
    }
    if (n == NULL) {
        assert(d->n_names < FAKE_NAMES);
        n = &d->name[d->n_names++];
    }
    *n = (struct fake_name){.op = ++d->ops};
    assert(strlen(path) < sizeof n->path);
    strcpy(n->path, path); /* fits: asserted */
    return n;
}

static bool fake_in_dir(const char *path, const char *dir)
{
    const char *slash = strrchr(path, '/');
    size_t n = strlen(dir);

    if (strcmp(dir, ".") == 0)
        return slash == NULL;
    return slash && (size_t)(slash - path) == n && memcmp(path, dir, n) == 0;
}

static void fake_bytes(uint8_t **bytes, size_t *size, uint64_t offset, const uint8_t *data, size_t n)
{
    if (offset + n > *size) {
        *bytes = realloc(*bytes, offset + n);
        assert(*bytes);
        memset(*bytes + *size, 0, offset + n - *size);
        *size = offset + n;
    }
    memcpy(*bytes + offset, data, n);
}

static int fake_open(struct disk *disk, const char *path, int flags, mode_t mode, struct disk_file **ret_file)
{
    struct fakedisk *d = (struct fakedisk *)disk;
    struct fake_name *n = fake_find(d, path);
    struct disk_file *f;
    int err = fake_fails(d);

    (void)mode;
    if (err)
        return err;
    if ((n == NULL || n->now == NULL) && !(flags & O_CREAT))
        return -ENOENT;
    if (n && n->now && (flags & O_EXCL))
        return -EEXIST;
    if (n == NULL || n->now == NULL) {
        n = fake_name(d, path);
        n->now = calloc(1, sizeof *n->now);
        assert(n->now);
        n->now->refs = 1;
        n->now->last = &n->now->waiting;
        n->op = ++d->ops;
    }
    f = malloc(sizeof *f);
    assert(f);
    f->inode = n->now;
    f->inode->refs++;
    *ret_file = f;
    return 0;
}

static void fake_close(struct disk *disk, struct disk_file *f)
{
    (void)disk;
    if (f)
        fake_unref(f->inode);
    free(f);
}

static ssize_t fake_pread(struct disk *disk, struct disk_file *f, void *buf, size_t n, uint64_t offset)
{
    int err = fake_fails((struct fakedisk *)disk);
    struct fake_inode *i = f->inode;

    if (err)
        return err;
    if (offset >= i->view_size)
        return 0;
    if (n > i->view_size - offset)
        n = i->view_size - offset;
    memcpy(buf, i->view + offset, n);
    return (ssize_t)n;
}

static uint64_t fake_total(const struct fakedisk *d)
{
    uint64_t total = 0;

    for (size_t i = 0; i < d->n_names; i++)
        total += d->name[i].now ? d->name[i].now->view_size : 0;
    return total;
}

static void fake_write(struct fake_inode *i, const uint8_t *data, size_t n, uint64_t offset)
{
    struct fake_write *w = malloc(sizeof *w + n);

    assert(w);
    w->next = NULL;
    w->offset = offset;
    w->n = n;
    memcpy(w->data, data, n);
    *i->last = w;
    i->last = &w->next;
    fake_bytes(&i->view, &i->view_size, offset, data, n);
}

static int fake_pwrite(struct disk *disk, struct disk_file *f, const void *buf, size_t n, uint64_t offset)
{
    struct fakedisk *d = (struct fakedisk *)disk;
    struct fake_inode *i = f->inode;
    int err = fake_fails(d);

    if (err == 0 && d->capacity && offset + n > i->view_size &&
        fake_total(d) + (offset + n - i->view_size) > d->capacity)
        return -ENOSPC;
    if (err) { /* some of it got through */
        n = fake_random(d) % (n + 1);
        if (!d->tear && n && (offset + n) % FAKE_SECTOR)
            n -= n < (offset + n) % FAKE_SECTOR ? n : (offset + n) % FAKE_SECTOR;
    }
    if (n)
        fake_write(i, buf, n, offset);
    return err;
}

static int fake_fdatasync(struct disk *disk, struct disk_file *f)
{
    struct fakedisk *d = (struct fakedisk *)disk;
    struct fake_inode *i = f->inode;
    int err = fake_fails(d);

    while (i->waiting) {
        struct fake_write *w = i->waiting;

        i->waiting = w->next;
        if (err == 0 || fake_random(d) % 2)
            fake_bytes(&i->durable, &i->durable_size, w->offset, w->data, w->n);
        free(w);
    }
    i->last = &i->waiting;
    return err;
}

static ssize_t fake_size(struct disk *disk, struct disk_file *f)
{
    int err = fake_fails((struct fakedisk *)disk);

    return err ? err : (ssize_t)f->inode->view_size;
}

static int fake_fallocate(struct disk *disk, struct disk_file *f, uint64_t size)
{
    size_t have = f->inode->view_size;
    uint8_t *zero;
    int err;

    if (have >= size)
        return 0;
    zero = calloc(1, size - have);
    assert(zero);
    err = fake_pwrite(disk, f, zero, size - have, have);
    free(zero);
    return err;
}

static int fake_truncate(struct disk *disk, struct disk_file *f, uint64_t size)
{
    int err = fake_fails((struct fakedisk *)disk);
    struct fake_inode *i = f->inode;

    if (err)
        return err;
    if (size > i->view_size)
        return fake_fallocate(disk, f, size);
    i->view_size = size;
    if (i->durable_size > size)
        i->durable_size = size;
    return 0;
}

static void fake_drop_cache(struct disk *disk, struct disk_file *f, uint64_t offset, uint64_t n)
{
    struct fake_inode *i = f->inode;

    (void)disk;
    assert(i->waiting == NULL); /* sync first */
    for (uint64_t at = offset; at < offset + n && at < i->view_size; at++)
        i->view[at] = at < i->durable_size ? i->durable[at] : 0;
}

static int fake_rename(struct disk *disk, const char *from, const char *to)
{
    struct fakedisk *d = (struct fakedisk *)disk;
    struct fake_name *a = fake_find(d, from), *b;
    int err = fake_fails(d);

    if (err)
        return err;
    if (a == NULL || a->now == NULL)
        return -ENOENT;
    b = fake_name(d, to);
    if (b->now && b->now != b->durable)
        fake_unref(b->now);
    b->now = a->now;
    if (a->now == a->durable) /* the durable entry keeps its reference */
        a->now->refs++;
    a->now = NULL;
    a->op = b->op = ++d->ops;
    return 0;
}

static int fake_unlink(struct disk *disk, const char *path)
{
    struct fakedisk *d = (struct fakedisk *)disk;
    struct fake_name *n = fake_find(d, path);
    int err = fake_fails(d);

    if (err)
        return err;
    if (n == NULL || n->now == NULL)
        return -ENOENT;
    if (n->now != n->durable)
        fake_unref(n->now);
    n->now = NULL;
    n->op = ++d->ops;
    return 0;
}

static int fake_mkdir(struct disk *disk, const char *path, mode_t mode)
{
    struct fakedisk *d = (struct fakedisk *)disk;
    struct fake_name *n = fake_find(d, path);
    int err = fake_fails(d);

    (void)mode;
    if (err)
        return err;
    if (n && n->now_dir)
        return -EEXIST;
    n = fake_name(d, path);
    n->now_dir = true;
    n->op = ++d->ops;
    return 0;
}

/* The entry becomes what it is now (or, after a crash, what it was). */
static void fake_settle(struct fake_name *n, bool now)
{
    if (now) {
        if (n->durable != n->now)
            fake_unref(n->durable);
        n->durable = n->now;
        n->durable_dir = n->now_dir;
    } else {
        if (n->now != n->durable)
            fake_unref(n->now);
        n->now = n->durable;
        n->now_dir = n->durable_dir;
    }
}

static int fake_fsync_dir(struct disk *disk, const char *path)
{
    struct fakedisk *d = (struct fakedisk *)disk;
    struct fake_name *n = fake_find(d, path);
    int err = fake_fails(d);

    if (err)
        return err;
    if (strcmp(path, ".") != 0 && (n == NULL || !n->now_dir))
        return -ENOENT;
    for (size_t i = 0; i < d->n_names; i++) {
        if (fake_in_dir(d->name[i].path, path))
            fake_settle(&d->name[i], true);
    }
    return 0;
}

static int fake_list(struct disk *disk, const char *path, int (*fn)(void *ctx, const char *name), void *ctx)
{
    struct fakedisk *d = (struct fakedisk *)disk;
    struct fake_name *n = fake_find(d, path);
    int err = fake_fails(d);

    if (err == 0 && strcmp(path, ".") != 0 && (n == NULL || !n->now_dir))
        err = -ENOENT;
    for (size_t i = 0; i < d->n_names && err == 0; i++) {
        const char *p = d->name[i].path, *slash = strrchr(p, '/');

        if (fake_in_dir(p, path) && (d->name[i].now || d->name[i].now_dir))
            err = fn(ctx, slash ? slash + 1 : p);
    }
    return err;
}

/* ---- for tests ------------------------------------------------------------------ */

FAKE_UNUSED void fakedisk_init(struct fakedisk *d, uint64_t seed)
{
    *d = (struct fakedisk){
        .disk = {.open = fake_open, .close = fake_close, .pread = fake_pread, .pwrite = fake_pwrite,
                 .fdatasync = fake_fdatasync, .fallocate = fake_fallocate, .truncate = fake_truncate,
                 .drop_cache = fake_drop_cache, .size = fake_size, .rename = fake_rename, .unlink = fake_unlink,
                 .mkdir = fake_mkdir, .fsync_dir = fake_fsync_dir, .list = fake_list},
        .seed = seed,
    };
}

FAKE_UNUSED void fakedisk_fini(struct fakedisk *d)
{
    for (size_t i = 0; i < d->n_names; i++) {
        fake_settle(&d->name[i], true);
        fake_unref(d->name[i].now);
    }
}

/* Sector by sector: written, lost, or written in part. */
static void fake_crash_write(struct fakedisk *d, struct fake_inode *i, const struct fake_write *w)
{
    for (size_t at = 0; at < w->n;) {
        size_t n = FAKE_SECTOR - (w->offset + at) % FAKE_SECTOR, keep;

        if (n > w->n - at)
            n = w->n - at;
        keep = fake_random(d) % 2 ? n : 0;
        if (d->tear && fake_random(d) % 8 == 0)
            keep = fake_random(d) % (n + 1);
        if (keep)
            fake_bytes(&i->durable, &i->durable_size, w->offset + at, w->data + at, keep);
        at += n;
    }
}

enum fake_fate { FAKE_RANDOM, FAKE_LOSE_ALL, FAKE_KEEP_ALL };

/* A directory that is gone took its files with it. */
static void fake_drop_orphans(struct fakedisk *d)
{
    for (size_t k = 0; k < d->n_names; k++) {
        const char *slash = strrchr(d->name[k].path, '/');
        char dir[sizeof d->name[k].path];
        struct fake_name *parent;

        if (slash == NULL || d->name[k].now == NULL)
            continue;
        (void)snprintf(dir, sizeof dir, "%.*s", (int)(slash - d->name[k].path), d->name[k].path);
        parent = fake_find(d, dir);
        if (parent == NULL || !parent->now_dir) {
            d->name[k].durable = NULL; /* settled: one reference for both */
            fake_unref(d->name[k].now);
            d->name[k].now = NULL;
        }
    }
}

/* No file may be open any more. */
FAKE_UNUSED void fakedisk_crash(struct fakedisk *d, enum fake_fate fate)
{
    uint64_t coin = fake_random(d);

    for (size_t k = 0; k < d->n_names; k++) {
        struct fake_name *n = &d->name[k];
        /* the same coin for both names of a rename */
        bool now = fate == FAKE_KEEP_ALL || (fate == FAKE_RANDOM && ((coin >> n->op % 61) & 1));

        if (n->now != n->durable || n->now_dir != n->durable_dir)
            fake_settle(n, now);
    }
    fake_drop_orphans(d);
    for (size_t k = 0; k < d->n_names; k++) {
        struct fake_inode *i = d->name[k].now;

        if (i == NULL)
            continue;
        while (i->waiting) {
            struct fake_write *w = i->waiting;

            i->waiting = w->next;
            if (fate == FAKE_RANDOM)
                fake_crash_write(d, i, w);
            else if (fate == FAKE_KEEP_ALL)
                fake_bytes(&i->durable, &i->durable_size, w->offset, w->data, w->n);
            free(w);
        }
        i->last = &i->waiting;
        free(i->view);
        i->view = malloc(i->durable_size + 1);
        assert(i->view);
        if (i->durable_size)
            memcpy(i->view, i->durable, i->durable_size);
        i->view_size = i->durable_size;
    }
}

/* The bytes of a file, to damage: both what is read and what is durable. NULL: no such file. */
FAKE_UNUSED struct fake_inode *fakedisk_file(struct fakedisk *d, const char *path)
{
    struct fake_name *n = fake_find(d, path);

    return n ? n->now : NULL;
}

FAKE_UNUSED void fakedisk_poke(struct fake_inode *i, uint64_t offset, const void *bytes, size_t n)
{
    fake_bytes(&i->view, &i->view_size, offset, bytes, n);
    fake_bytes(&i->durable, &i->durable_size, offset, bytes, n);
}
