/* SPDX-License-Identifier: Apache-2.0 */
/* disk.c - the real disk behind seam.h: paths below one directory, held open.
 *
 * EINTR and short transfers are dealt with here; nothing else is ever tried again. The struct is
 * immutable after disk_real_new: any thread; a disk_file belongs to whoever opened it.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdalign.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "seam.h"

/* Written at a time by fallocate. Through the page cache less: that makes one piece of what one call writes, and with
 * 1 MiB a call filling cost five times the CPU (Linux 6.18, ext4), and a batch that dirtied a part of such a piece
 * counted as 1 MiB in /proc/PID/io. */
#define ZERO_DIRECT_BYTES (256 << 10)
#define ZERO_CACHED_BYTES (16 << 10)
#define SECTOR_BYTES 512 /* the least that a disk takes without the page cache; one of larger sectors refuses it */

/* Never written, so all its pages are the kernel's one page of zeros. */
static alignas(DISK_ALIGN) uint8_t zeros[ZERO_DIRECT_BYTES];

struct disk_real {
    struct disk disk;
    int root_fd;
};

struct disk_file {
    int fd;
    int direct; /* the same file, opened past the page cache; -1: not asked for, or the file system cannot */
};

static int root_of(struct disk *d)
{
    return ((struct disk_real *)d)->root_fd;
}

static int real_open(struct disk *d, const char *path, int flags, mode_t mode, struct disk_file **ret_file)
{
    struct disk_file *f = malloc(sizeof *f);

    if (f == NULL)
        return -ENOMEM;
    f->fd = openat(root_of(d), path, (flags & ~O_DIRECT) | O_CLOEXEC, mode);
    if (f->fd < 0) {
        int err = -errno;

        free(f);
        return err;
    }
    f->direct = flags & O_DIRECT ? openat(root_of(d), path, O_WRONLY | O_DIRECT | O_CLOEXEC) : -1;
    *ret_file = f;
    return 0;
}

static void real_close(struct disk *d, struct disk_file *f)
{
    (void)d;
    if (f == NULL)
        return;
    if (f->direct >= 0)
        (void)close(f->direct); /* as the next line */
    (void)close(f->fd); /* what mattered was synced before; what was not makes no promise */
    free(f);
}

static ssize_t real_pread(struct disk *d, struct disk_file *f, void *buf, size_t n, uint64_t offset)
{
    size_t done = 0;

    (void)d;
    while (done < n) {
        ssize_t k = pread(f->fd, (char *)buf + done, n - done, (off_t)(offset + done));

        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return -errno;
        if (k == 0)
            break;
        done += (size_t)k;
    }
    return (ssize_t)done;
}

/* Past the page cache when that can be: a log is written once and hardly ever read, and each new page of the cache costs
 * more than the copy (in a virtual machine 10 us and more). */
static int real_pwrite(struct disk *d, struct disk_file *f, const void *buf, size_t n, uint64_t offset)
{
    size_t done = 0;

    (void)d;
    while (done < n) {
        const char *from = (const char *)buf + done;
        bool direct = f->direct >= 0 && ((uintptr_t)from | (n - done) | (offset + done)) % SECTOR_BYTES == 0;
        ssize_t k = pwrite(direct ? f->direct : f->fd, from, n - done, (off_t)(offset + done));

        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0 && errno == EINVAL && direct) { /* larger sectors */
            (void)close(f->direct);               /* nothing was written through it */
            f->direct = -1;
            continue;
        }
        if (k < 0)
            return -errno;
        done += (size_t)k;
    }
    return 0;
}

static int real_fdatasync(struct disk *d, struct disk_file *f)
{
    (void)d;
    return fdatasync(f->fd) ? -errno : 0;
}

static ssize_t real_size(struct disk *d, struct disk_file *f)
{
    struct stat st;

    (void)d;
    return fstat(f->fd, &st) ? -errno : (ssize_t)st.st_size;
}

/* fallocate(2) alone would leave unwritten extents, whose first write changes metadata. */
static int real_fallocate(struct disk *d, struct disk_file *f, uint64_t size)
{
    ssize_t have = real_size(d, f);
    uint64_t at = (uint64_t)have;
    int err = 0;

    if (have < 0)
        return (int)have;
    while (at < size && err == 0) {
        size_t most = f->direct >= 0 ? ZERO_DIRECT_BYTES : ZERO_CACHED_BYTES;
        size_t n = size - at < most ? (size_t)(size - at) : most;

        err = real_pwrite(d, f, zeros, n, at);
        at += n;
    }
    if (err == 0 && f->direct < 0) /* so that the fdatasync at the end finds little; what fails here it will tell */
        (void)sync_file_range(f->fd, have, (off_t)size - have,
                              SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    return err;
}

static int real_truncate(struct disk *d, struct disk_file *f, uint64_t size)
{
    (void)d;
    return ftruncate(f->fd, (off_t)size) ? -errno : 0;
}

static void real_drop_cache(struct disk *d, struct disk_file *f, uint64_t offset, uint64_t n)
{
    const uint64_t page = 4096;
    uint64_t from = offset / page * page, to = (offset + n + page - 1) / page * page; /* part pages are not dropped */

    (void)d;
    (void)posix_fadvise(f->fd, (off_t)from, (off_t)(to - from), POSIX_FADV_DONTNEED); /* advice; readers check anyway */
}

static int real_rename(struct disk *d, const char *from, const char *to)
{
    return renameat(root_of(d), from, root_of(d), to) ? -errno : 0;
}

static int real_unlink(struct disk *d, const char *path)
{
    return unlinkat(root_of(d), path, 0) ? -errno : 0;
}

static int real_mkdir(struct disk *d, const char *path, mode_t mode)
{
    return mkdirat(root_of(d), path, mode) ? -errno : 0;
}

static int real_fsync_dir(struct disk *d, const char *path)
{
    int fd = openat(root_of(d), path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), err;

    if (fd < 0)
        return -errno;
    err = fsync(fd) ? -errno : 0;
    (void)close(fd); /* nothing was written through it */
    return err;
}

static int real_list(struct disk *d, const char *path, int (*fn)(void *ctx, const char *name), void *ctx)
{
    int fd = openat(root_of(d), path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), err = 0;
    struct dirent *e;
    DIR *dir;

    if (fd < 0)
        return -errno;
    dir = fdopendir(fd);
    if (dir == NULL) {
        err = -errno;
        (void)close(fd); /* nothing was written through it */
        return err;
    }
    while (err == 0 && (errno = 0, e = readdir(dir)) != NULL) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            err = fn(ctx, e->d_name);
    }
    if (err == 0 && errno)
        err = -errno;
    (void)closedir(dir); /* as above */
    return err;
}

int disk_real_new(const char *dir, struct disk **ret_disk)
{
    static const struct disk functions = {
        .open = real_open, .close = real_close, .pread = real_pread, .pwrite = real_pwrite,
        .fdatasync = real_fdatasync, .fallocate = real_fallocate, .truncate = real_truncate,
        .drop_cache = real_drop_cache, .size = real_size, .rename = real_rename, .unlink = real_unlink,
        .mkdir = real_mkdir, .fsync_dir = real_fsync_dir, .list = real_list,
    };
    struct disk_real *r = malloc(sizeof *r);

    if (r == NULL)
        return -ENOMEM;
    r->disk = functions;
    r->root_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (r->root_fd < 0) {
        int err = -errno;

        free(r);
        return err;
    }
    *ret_disk = &r->disk;
    return 0;
}

void disk_real_free(struct disk *d)
{
    if (d == NULL)
        return;
    (void)close(root_of(d)); /* a directory: nothing to lose */
    free(d);
}
