/* SPDX-License-Identifier: Apache-2.0 */
/* crashfs.h - the calls by which this program changes one directory tree, recorded; and what a power cut may leave.
 *
 * Includes the calls themselves (open, write, pwrite, pwritev, ftruncate, fsync, fdatasync, rename, mkdir, unlink,
 * rmdir and their kin): this program's come before the C library's, also for the LMDB library. While crashfs_recording
 * is set, what they do below its root is noted as operations on inodes, so that renames and open files are followed. No
 * sync reaches a disk: what is durable is this file's to say.
 *
 * After the first k operations a crash may have left: whatever a sync of that file or directory covers, and of the
 * rest any subset: each 512-byte sector of each write, each change of a size, each directory entry made, removed or
 * renamed (both names of a rename are one) by itself; writes of one sector in their order. A file that has lost its
 * last sectors is shorter, or as long as it was and zero there. A write through O_DSYNC is durable when it returns, by
 * itself only. This is more than a journaling file system loses, and all that POSIX allows it to.
 *
 * Not followed: the bytes of lock.mdb, which LMDB writes through a mapping and makes anew for its first user.
 * crashfs_is_true compares the record with the tree: a call that was not seen would show.
 * Not here: which of all the crash states are tried (crashfs_cuts.h).
 */
#pragma once
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include "tap.h"

enum {
    CRASHFS_INODES = 128,
    CRASHFS_OPS = 4096,
    CRASHFS_NAMES = 16,    /* in one directory */
    CRASHFS_NAME = 32,
    CRASHFS_SECTOR = 512,
    CRASHFS_UNITS = 8192,
};

enum crashfs_kind {
    CRASHFS_WRITE,
    CRASHFS_SIZE,
    CRASHFS_LINK,
    CRASHFS_UNLINK,
    CRASHFS_RENAME,
    CRASHFS_SYNC,
    CRASHFS_THROUGH,
};

struct crashfs_op {
    enum crashfs_kind kind;
    uint32_t inode;               /* written, linked, moved, synced */
    uint32_t dir;                 /* whose entries change */
    uint32_t write;               /* THROUGH: which operation is durable now */
    char name[CRASHFS_NAME], to[CRASHFS_NAME];
    uint64_t at, n;
    const uint8_t *data;          /* never freed before crashfs_fini of the record that noted it */
};

/* A tree: files and directories by inode. 0 is the root. */
struct crashfs_tree {
    struct {
        bool dir;
        uint8_t *bytes;
        uint64_t n;
        uint32_t n_names;
        struct { char name[CRASHFS_NAME]; uint32_t inode; } names[CRASHFS_NAMES];
    } i[CRASHFS_INODES];
};

struct crashfs {
    const char *root;
    struct crashfs_tree start;    /* durable when the record begins */
    struct crashfs_op op[CRASHFS_OPS];
    uint32_t n_ops, own_from;     /* the data of operations before own_from is another record's */
    uint32_t n_inodes;
    bool is_dir[CRASHFS_INODES];
    struct { dev_t dev; ino_t ino; } now[CRASHFS_INODES]; /* ino 0: gone */
};

static struct crashfs *crashfs_recording;

/* ---- the record ---------------------------------------------------------------------------------- */

static inline uint32_t crashfs_inode_new(struct crashfs *f, const struct stat *st)
{
    REQUIRE(f->n_inodes < CRASHFS_INODES);
    f->is_dir[f->n_inodes] = S_ISDIR(st->st_mode);
    f->now[f->n_inodes].dev = st->st_dev;
    f->now[f->n_inodes].ino = st->st_ino;
    return f->n_inodes++;
}

/* UINT32_MAX: not in the tree. */
static inline uint32_t crashfs_inode(const struct crashfs *f, const struct stat *st)
{
    for (uint32_t i = f->n_inodes; i > 0; i--)
        if (f->now[i - 1].ino == st->st_ino && f->now[i - 1].dev == st->st_dev)
            return i - 1;
    return UINT32_MAX;
}

static inline struct crashfs_op *crashfs_op_new(struct crashfs *f, enum crashfs_kind kind, uint32_t inode)
{
    struct crashfs_op *o = &f->op[f->n_ops];

    REQUIRE(f->n_ops < CRASHFS_OPS);
    f->n_ops++;
    *o = (struct crashfs_op){.kind = kind, .inode = inode};
    return o;
}

static inline void crashfs_note_write(int fd, const struct iovec *v, int n_v, uint64_t at)
{
    struct crashfs *f = crashfs_recording;
    struct crashfs_op *o;
    struct stat st;
    uint32_t inode, op;
    uint8_t *p;
    size_t n = 0;

    if (f == NULL || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || (inode = crashfs_inode(f, &st)) == UINT32_MAX)
        return;
    for (int i = 0; i < n_v; i++)
        n += v[i].iov_len;
    p = malloc(n + 1);
    REQUIRE(p);
    op = f->n_ops;
    o = crashfs_op_new(f, CRASHFS_WRITE, inode);
    o->at = at;
    o->n = n;
    o->data = p;
    for (int i = 0; i < n_v; i++) {
        memcpy(p, v[i].iov_base, v[i].iov_len);
        p += v[i].iov_len;
    }
    if (fcntl(fd, F_GETFL) & O_DSYNC)
        crashfs_op_new(f, CRASHFS_THROUGH, inode)->write = op;
}

static inline void crashfs_note_size(int fd, uint64_t n)
{
    struct crashfs *f = crashfs_recording;
    struct stat st;
    uint32_t inode;

    if (f && fstat(fd, &st) == 0 && (inode = crashfs_inode(f, &st)) != UINT32_MAX)
        crashfs_op_new(f, CRASHFS_SIZE, inode)->n = n;
}

static inline void crashfs_note_sync(int fd)
{
    struct crashfs *f = crashfs_recording;
    struct stat st;
    uint32_t inode;

    if (f && fstat(fd, &st) == 0 && (inode = crashfs_inode(f, &st)) != UINT32_MAX)
        (void)crashfs_op_new(f, CRASHFS_SYNC, inode);
}

/* The directory that holds path, and path's last part in it; UINT32_MAX: not ours. */
static inline uint32_t crashfs_parent(int at, const char *path, char name[CRASHFS_NAME])
{
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    struct stat st;
    uint32_t inode;

    if (slash == NULL)
        (void)snprintf(dir, sizeof dir, ".");
    else
        (void)snprintf(dir, sizeof dir, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    if (crashfs_recording == NULL || fstatat(at, dir, &st, 0) < 0)
        return UINT32_MAX;
    inode = crashfs_inode(crashfs_recording, &st);
    if (inode != UINT32_MAX) {
        REQUIRE(strlen(slash ? slash + 1 : path) < CRASHFS_NAME);
        (void)snprintf(name, CRASHFS_NAME, "%.31s", slash ? slash + 1 : path);
    }
    return inode;
}

static inline void crashfs_note_link(int at, const char *path)
{
    struct crashfs *f = crashfs_recording;
    char name[CRASHFS_NAME];
    uint32_t dir = crashfs_parent(at, path, name);
    struct crashfs_op *o;
    struct stat st;

    if (dir == UINT32_MAX || fstatat(at, path, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return;
    o = crashfs_op_new(f, CRASHFS_LINK, crashfs_inode_new(f, &st));
    o->dir = dir;
    memcpy(o->name, name, sizeof o->name);
}

static inline void crashfs_note_unlink(const struct stat *st, uint32_t dir, const char *name)
{
    struct crashfs *f = crashfs_recording;
    uint32_t inode = crashfs_inode(f, st);
    struct crashfs_op *o;

    REQUIRE(inode != UINT32_MAX);
    o = crashfs_op_new(f, CRASHFS_UNLINK, inode);
    o->dir = dir;
    memcpy(o->name, name, sizeof o->name);
    f->now[inode].ino = 0; /* another file may get its number; who still has it open writes to nothing that counts */
}

/* ---- the calls ----------------------------------------------------------------------------------- */

int open(const char *path, int flags, ...);
int open64(const char *path, int flags, ...);
int openat(int at, const char *path, int flags, ...);
int openat64(int at, const char *path, int flags, ...);
int fsync(int fd);
int fdatasync(int fd);
ssize_t write(int fd, const void *p, size_t n);
ssize_t pwrite(int fd, const void *p, size_t n, off_t at);
ssize_t pwrite64(int fd, const void *p, size_t n, off_t at);
ssize_t writev(int fd, const struct iovec *v, int n);
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at);
ssize_t pwritev64(int fd, const struct iovec *v, int n, off_t at);
int ftruncate(int fd, off_t n);
int ftruncate64(int fd, off_t n);
int rename(const char *from, const char *to);
int renameat(int from_at, const char *from, int to_at, const char *to);
int mkdir(const char *path, mode_t mode);
int mkdirat(int at, const char *path, mode_t mode);
int unlink(const char *path);
int unlinkat(int at, const char *path, int flags);
int rmdir(const char *path);

static inline int crashfs_open(int at, const char *path, int flags, mode_t mode)
{
    bool made = false;
    struct stat st;
    int fd;

    if (crashfs_recording && (flags & O_CREAT))
        made = fstatat(at, path, &st, 0) < 0;
    fd = (int)syscall(SYS_openat, at, path, flags, mode);
    if (fd >= 0 && made)
        crashfs_note_link(at, path);
    else if (fd >= 0 && (flags & O_TRUNC))
        crashfs_note_size(fd, 0);
    return fd;
}

#define CRASHFS_OPEN(call, params, at)                                                                       \
    int call params                                                                                          \
    {                                                                                                        \
        mode_t mode = 0;                                                                                     \
        va_list ap;                                                                                          \
                                                                                                             \
        va_start(ap, flags);                                                                                 \
        if (flags & (O_CREAT | __O_TMPFILE))                                                                 \
            mode = va_arg(ap, mode_t);                                                                       \
        va_end(ap);                                                                                          \
        return crashfs_open(at, path, flags, mode);                                                          \
    }
CRASHFS_OPEN(open, (const char *path, int flags, ...), AT_FDCWD)
CRASHFS_OPEN(open64, (const char *path, int flags, ...), AT_FDCWD)
CRASHFS_OPEN(openat, (int at, const char *path, int flags, ...), at)
CRASHFS_OPEN(openat64, (int at, const char *path, int flags, ...), at)

int fsync(int fd)
{
    crashfs_note_sync(fd);
    return 0;
}

int fdatasync(int fd)
{
    return fsync(fd);
}

ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at)
{
    ssize_t rc = syscall(SYS_pwritev, fd, v, n, at, 0);

    if (rc > 0)
        crashfs_note_write(fd, v, n, (uint64_t)at);
    return rc;
}

ssize_t pwritev64(int fd, const struct iovec *v, int n, off_t at)
{
    return pwritev(fd, v, n, at);
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t at)
{
    struct iovec v = {(void *)(uintptr_t)p, n};

    return pwritev(fd, &v, 1, at);
}

ssize_t pwrite64(int fd, const void *p, size_t n, off_t at)
{
    return pwrite(fd, p, n, at);
}

ssize_t writev(int fd, const struct iovec *v, int n)
{
    off_t at = crashfs_recording ? lseek(fd, 0, SEEK_CUR) : -1;
    ssize_t rc = syscall(SYS_writev, fd, v, n);

    if (rc > 0 && at >= 0)
        crashfs_note_write(fd, v, n, (uint64_t)at);
    return rc;
}

ssize_t write(int fd, const void *p, size_t n)
{
    struct iovec v = {(void *)(uintptr_t)p, n};

    return writev(fd, &v, 1);
}

int ftruncate(int fd, off_t n)
{
    int rc = (int)syscall(SYS_ftruncate, fd, n);

    if (rc == 0)
        crashfs_note_size(fd, (uint64_t)n);
    return rc;
}

int ftruncate64(int fd, off_t n)
{
    return ftruncate(fd, n);
}

int renameat(int from_at, const char *from, int to_at, const char *to)
{
    char from_name[CRASHFS_NAME], to_name[CRASHFS_NAME];
    uint32_t dir = crashfs_parent(from_at, from, from_name);
    struct stat st, old;
    bool replaces;
    struct crashfs_op *o;
    uint32_t inode;
    int rc;

    if (dir == UINT32_MAX)
        return (int)syscall(SYS_renameat, from_at, from, to_at, to);
    REQUIRE(crashfs_parent(to_at, to, to_name) == dir); /* within one directory */
    replaces = fstatat(to_at, to, &old, 0) == 0;
    rc = fstatat(from_at, from, &st, 0);
    if (rc == 0)
        rc = (int)syscall(SYS_renameat, from_at, from, to_at, to);
    if (rc < 0)
        return rc;
    inode = crashfs_inode(crashfs_recording, &st);
    REQUIRE(inode != UINT32_MAX);
    o = crashfs_op_new(crashfs_recording, CRASHFS_RENAME, inode);
    o->dir = dir;
    memcpy(o->name, from_name, sizeof o->name);
    memcpy(o->to, to_name, sizeof o->to);
    inode = replaces ? crashfs_inode(crashfs_recording, &old) : UINT32_MAX;
    if (inode != UINT32_MAX)
        crashfs_recording->now[inode].ino = 0;
    return 0;
}

int rename(const char *from, const char *to)
{
    return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

int mkdirat(int at, const char *path, mode_t mode)
{
    int rc = (int)syscall(SYS_mkdirat, at, path, mode);

    if (rc == 0)
        crashfs_note_link(at, path);
    return rc;
}

int mkdir(const char *path, mode_t mode)
{
    return mkdirat(AT_FDCWD, path, mode);
}

int unlinkat(int at, const char *path, int flags)
{
    char name[CRASHFS_NAME] = "";
    uint32_t dir = crashfs_parent(at, path, name);
    struct stat st;
    int rc = dir == UINT32_MAX ? 0 : fstatat(at, path, &st, AT_SYMLINK_NOFOLLOW);

    if (rc == 0)
        rc = (int)syscall(SYS_unlinkat, at, path, flags);
    if (rc == 0 && dir != UINT32_MAX)
        crashfs_note_unlink(&st, dir, name);
    return rc;
}

int unlink(const char *path)
{
    return unlinkat(AT_FDCWD, path, 0);
}

int rmdir(const char *path)
{
    return unlinkat(AT_FDCWD, path, AT_REMOVEDIR);
}

/* ---- trees ------------------------------------------------------------------------------------------ */

static inline void crashfs_tree_free(struct crashfs_tree *t, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        free(t->i[i].bytes);
}

static inline void crashfs_set(struct crashfs_tree *t, uint32_t dir, const char *name, uint32_t inode)
{
    uint32_t k = 0;

    while (k < t->i[dir].n_names && strcmp(t->i[dir].names[k].name, name) != 0)
        k++;
    if (inode == UINT32_MAX) {
        if (k < t->i[dir].n_names)
            t->i[dir].names[k] = t->i[dir].names[--t->i[dir].n_names];
        return;
    }
    REQUIRE(k < CRASHFS_NAMES);
    if (k == t->i[dir].n_names)
        t->i[dir].n_names++;
    memcpy(t->i[dir].names[k].name, name, CRASHFS_NAME);
    t->i[dir].names[k].inode = inode;
}

static inline void crashfs_resize(struct crashfs_tree *t, uint32_t inode, uint64_t n)
{
    uint8_t *p = realloc(t->i[inode].bytes, n + 1);

    REQUIRE(p);
    if (n > t->i[inode].n)
        memset(p + t->i[inode].n, 0, n - t->i[inode].n);
    t->i[inode].bytes = p;
    t->i[inode].n = n;
}

static inline void crashfs_put(struct crashfs_tree *t, uint32_t inode, uint64_t at, const uint8_t *data, uint64_t n)
{
    if (at + n > t->i[inode].n)
        crashfs_resize(t, inode, at + n);
    if (n)
        memcpy(t->i[inode].bytes + at, data, n);
}

/* Whatever lies at path goes; no error if there is nothing. */
static inline void crashfs_remove(const char *path)
{
    DIR *d = opendir(path);
    char child[PATH_MAX];
    struct dirent *e;

    while (d && (e = readdir(d)) != NULL) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        REQUIRE(snprintf(child, sizeof child, "%s/%s", path, e->d_name) < (int)sizeof child);
        if (unlink(child) < 0)
            crashfs_remove(child);
    }
    if (d)
        closedir(d);
    (void)rmdir(path);
}

static inline void crashfs_write_out(const struct crashfs_tree *t, uint32_t inode, const char *path,
                                     struct crashfs *at_home)
{
    char child[PATH_MAX];
    struct stat st;

    if (t->i[inode].dir) {
        REQUIRE(mkdir(path, 0700) == 0);
        for (uint32_t k = 0; k < t->i[inode].n_names; k++) {
            (void)snprintf(child, sizeof child, "%s/%s", path, t->i[inode].names[k].name);
            crashfs_write_out(t, t->i[inode].names[k].inode, child, at_home);
        }
    } else {
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

        REQUIRE(fd >= 0);
        REQUIRE(t->i[inode].n == 0 || write(fd, t->i[inode].bytes, t->i[inode].n) == (ssize_t)t->i[inode].n);
        close(fd);
    }
    if (at_home && stat(path, &st) == 0) {
        at_home->now[inode].dev = st.st_dev;
        at_home->now[inode].ino = st.st_ino;
    }
}

/* The tree at f->root is t now. follow: and f goes on from there. */
static inline void crashfs_place(struct crashfs *f, const struct crashfs_tree *t, bool follow)
{
    REQUIRE(crashfs_recording == NULL);
    crashfs_remove(f->root);
    for (uint32_t i = 0; follow && i < f->n_inodes; i++)
        f->now[i].ino = 0;
    crashfs_write_out(t, 0, f->root, follow ? f : NULL);
}

static inline uint32_t crashfs_scan_one(struct crashfs *f, const char *path)
{
    char child[PATH_MAX], name[CRASHFS_NAME];
    struct stat st;
    uint32_t inode;

    REQUIRE(stat(path, &st) == 0);
    inode = crashfs_inode_new(f, &st);
    f->start.i[inode].dir = S_ISDIR(st.st_mode);
    if (S_ISDIR(st.st_mode)) {
        DIR *d = opendir(path);
        struct dirent *e;

        while (d && (e = readdir(d)) != NULL) {
            if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
                continue;
            REQUIRE(strlen(e->d_name) < CRASHFS_NAME);
            (void)snprintf(name, sizeof name, "%.31s", e->d_name);
            (void)snprintf(child, sizeof child, "%s/%s", path, name);
            crashfs_set(&f->start, inode, name, crashfs_scan_one(f, child));
        }
        if (d)
            closedir(d);
    } else if (strstr(path, "lock.mdb") == NULL) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);

        crashfs_resize(&f->start, inode, (uint64_t)st.st_size);
        REQUIRE(fd >= 0 && read(fd, f->start.i[inode].bytes, (size_t)st.st_size) == st.st_size);
        close(fd);
    }
    return inode;
}

/* A new record; what lies at root is durable. Heap, zeroed by the caller. */
static inline void crashfs_init(struct crashfs *f, const char *root)
{
    f->root = root;
    (void)crashfs_scan_one(f, root);
}

/* Another record that begins as the first k operations of `from`. */
static inline void crashfs_branch(struct crashfs *f, const struct crashfs *from, uint32_t k)
{
    *f = *from;
    for (uint32_t i = 0; i < f->n_inodes; i++)
        if (from->start.i[i].bytes) {
            f->start.i[i].bytes = NULL;
            f->start.i[i].n = 0;
            crashfs_put(&f->start, i, 0, from->start.i[i].bytes, from->start.i[i].n);
        }
    f->n_ops = f->own_from = k;
}

static inline void crashfs_fini(struct crashfs *f)
{
    for (uint32_t i = f->own_from; i < f->n_ops; i++)
        free((void *)(uintptr_t)f->op[i].data);
    crashfs_tree_free(&f->start, CRASHFS_INODES);
}

/* ---- crash states --------------------------------------------------------------------------------------- */

/* What of the first k operations no sync covers; each may be lost. */
struct crashfs_units {
    struct { uint32_t op; uint64_t from, n; } u[CRASHFS_UNITS]; /* n: of a write's bytes from here */
    uint32_t n, first[CRASHFS_OPS];  /* of each operation: its first unit, UINT32_MAX when it is durable */
    bool kept[CRASHFS_UNITS];
    bool keeps_sizes;                /* a file that lost its last sectors is as long as it was */
};

/* The tree after the first k operations, of which us->kept says what is not lost; us NULL: all there.
 * The caller frees. */
static inline struct crashfs_tree *crashfs_after(const struct crashfs *f, uint32_t k, const struct crashfs_units *us)
{
    struct crashfs_tree *t = calloc(1, sizeof *t);

    REQUIRE(t);
    *t = f->start;
    for (uint32_t i = 0; i < f->n_inodes; i++) {
        t->i[i].dir = f->is_dir[i];
        t->i[i].bytes = NULL;
        t->i[i].n = 0;
        if (f->start.i[i].bytes)
            crashfs_put(t, i, 0, f->start.i[i].bytes, f->start.i[i].n);
    }
    for (uint32_t i = 0; i < k; i++) {
        const struct crashfs_op *o = &f->op[i];
        uint32_t u = us ? us->first[i] : UINT32_MAX;

        if (o->kind == CRASHFS_WRITE && u == UINT32_MAX) {
            crashfs_put(t, o->inode, o->at, o->data, o->n);
        } else if (o->kind == CRASHFS_WRITE) {
            for (; u < us->n && us->u[u].op == i; u++)
                if (us->kept[u])
                    crashfs_put(t, o->inode, o->at + us->u[u].from, o->data + us->u[u].from, us->u[u].n);
            if (us->keeps_sizes && o->at + o->n > t->i[o->inode].n)
                crashfs_resize(t, o->inode, o->at + o->n);
        } else if (u != UINT32_MAX && !us->kept[u]) {
            continue;
        } else if (o->kind == CRASHFS_SIZE) {
            crashfs_resize(t, o->inode, o->n);
        } else if (o->kind == CRASHFS_LINK) {
            crashfs_set(t, o->dir, o->name, o->inode);
        } else if (o->kind == CRASHFS_UNLINK) {
            crashfs_set(t, o->dir, o->name, UINT32_MAX);
        } else if (o->kind == CRASHFS_RENAME) {
            crashfs_set(t, o->dir, o->name, UINT32_MAX);
            crashfs_set(t, o->dir, o->to, o->inode);
        }
    }
    return t;
}

static inline uint64_t crashfs_print(const struct crashfs_tree *t, uint32_t inode, uint64_t h)
{
    const uint8_t *p = t->i[inode].bytes;
    uint64_t word = 0;

    for (uint32_t k = 0; k < t->i[inode].n_names; k++) {
        uint64_t name = 0; /* in no order */

        for (const char *c = t->i[inode].names[k].name; *c; c++)
            name = (name ^ (uint8_t)*c) * 1099511628211u;
        h += crashfs_print(t, t->i[inode].names[k].inode, name) * 0x9e3779b97f4a7c15u;
    }
    for (uint64_t at = 0; at + 8 <= t->i[inode].n; at += 8) {
        memcpy(&word, p + at, 8);
        h = (h ^ word ^ h >> 29) * 0x9e3779b97f4a7c15u;
    }
    return (h ^ t->i[inode].n ^ (uint64_t)t->i[inode].dir << 63) * 1099511628211u;
}

/* Whether the record says of the tree at its root what is there. */
static inline bool crashfs_is_true(const struct crashfs *f)
{
    struct crashfs *seen = calloc(1, sizeof *seen);
    struct crashfs_tree *t = crashfs_after(f, f->n_ops, NULL);
    bool same;

    REQUIRE(seen);
    crashfs_init(seen, f->root);
    same = crashfs_print(t, 0, 1) == crashfs_print(&seen->start, 0, 1);
    crashfs_tree_free(t, CRASHFS_INODES);
    free(t);
    for (uint32_t i = 0; i < seen->n_inodes; i++)
        seen->start.i[i].dir = seen->is_dir[i];
    crashfs_fini(seen);
    free(seen);
    return same;
}
