/* SPDX-License-Identifier: Apache-2.0 */
/* seam.h - where the world comes in: clock, random numbers, disk, threads.
 *
 * WAL, turn, apply, leases and the hub reach the world only through these small structs of
 * functions, so that a test can lose, tear and reorder writes, and stop or jump the clock, and a
 * whole member can run single-threaded from one seed.
 */
#pragma once
#include <pthread.h>
#include <sys/types.h>
#include "bytes.h"

struct clock {
    uint64_t (*now_ms)(struct clock *);   /* monotonic, any origin */
    uint64_t (*now_us)(struct clock *);   /* the same clock, finer */
    int64_t (*wall_ms)(struct clock *);   /* since 1970; for logs and file names only */
};
struct clock *clock_real(void);

struct rng {
    uint64_t (*next)(struct rng *);
};
struct rng *rng_real(void); /* getrandom(2) */

/* A file of struct disk. */
struct disk_file;

enum { DISK_ALIGN = 4096 }; /* where a buffer begins that is to go past the page cache */

/* Each returns 0 (or a count where it says so) or -errno. Paths are relative to the disk's root
 * directory. A file opened with O_DIRECT (a wish: not all file systems can) is written past the page cache where buffer,
 * count and offset fit, and read through it. */
struct disk {
    int (*open)(struct disk *, const char *path, int flags, mode_t mode, struct disk_file **ret_file);
    void (*close)(struct disk *, struct disk_file *);
    ssize_t (*pread)(struct disk *, struct disk_file *, void *buf, size_t n, uint64_t offset);
    int (*pwrite)(struct disk *, struct disk_file *, const void *buf, size_t n, uint64_t offset); /* all of it */
    int (*fdatasync)(struct disk *, struct disk_file *);
    /* Zero-filled up to there and written: fdatasync has little to wait for, and after it that of a later write into
     * these bytes writes no metadata. */
    int (*fallocate)(struct disk *, struct disk_file *, uint64_t size);
    int (*truncate)(struct disk *, struct disk_file *, uint64_t size);
    /* Reads of these bytes (rounded to pages) now come from the medium, not from a page cache that a failed fsync may
     * have made a liar. Only what has been synced can be dropped: sync first. */
    void (*drop_cache)(struct disk *, struct disk_file *, uint64_t offset, uint64_t n);
    ssize_t (*size)(struct disk *, struct disk_file *);
    int (*rename)(struct disk *, const char *from, const char *to);
    int (*unlink)(struct disk *, const char *path);
    int (*mkdir)(struct disk *, const char *path, mode_t mode);
    int (*fsync_dir)(struct disk *, const char *path);
    /* Calls fn for each name in the directory, in no order; stops at the first non-zero and returns it. */
    int (*list)(struct disk *, const char *path, int (*fn)(void *ctx, const char *name), void *ctx);
};

/* The real one, rooted at dir (which must exist). Heap; freed by disk_real_free. */
int disk_real_new(const char *dir, struct disk **ret_disk);
void disk_real_free(struct disk *);

/* Start a thread named name (15 bytes shown by ps) running fn(arg), all signals blocked.
 * Returns 0 or -errno. */
int thread_start(pthread_t *ret_thread, const char *name, void *(*fn)(void *), void *arg);
