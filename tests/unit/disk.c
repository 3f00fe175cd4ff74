/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: the real disk, clock and dice do what seam.h says: paths below the root, whole writes, zero-filled growth,
 * names listed, errors as -errno, a file that is written past the page cache reads as it was written; a clock that does not go back, dice that differ. */
#include <errno.h>
#include <fcntl.h>
#include <stdalign.h>
#include <sys/mman.h>
#include <unistd.h>
#include "daemon/seam.h"
#include "tap.h"

static int count(void *ctx, const char *name)
{
    (void)name;
    ++*(int *)ctx;
    return 0;
}

static int stop(void *ctx, const char *name)
{
    (void)ctx, (void)name;
    return 7;
}

static void disk(void)
{
    char dir[] = "/tmp/cairn-disk-XXXXXX", buf[10] = {0};
    struct disk_file *f;
    struct disk *d;
    int n = 0;

    REQUIRE(mkdtemp(dir) != NULL);
    REQUIRE(disk_real_new(dir, &d) == 0);
    CHECK(d->mkdir(d, "a", 0700) == 0);
    CHECK(d->mkdir(d, "a", 0700) == -EEXIST);
    CHECK(d->open(d, "a/none", O_RDWR, 0, &f) == -ENOENT);
    REQUIRE(d->open(d, "a/x", O_RDWR | O_CREAT | O_EXCL, 0600, &f) == 0);
    CHECK(d->fallocate(d, f, 3000000) == 0 && d->size(d, f) == 3000000);
    CHECK(d->pread(d, f, buf, 10, 2999995) == 5 && memcmp(buf, "\0\0\0\0\0", 5) == 0);
    CHECK(d->pwrite(d, f, "hello", 5, 100) == 0);
    CHECK(d->fallocate(d, f, 200) == 0 && d->size(d, f) == 3000000); /* never shrinks */
    CHECK(d->fdatasync(d, f) == 0);
    d->drop_cache(d, f, 100, 5);
    CHECK(d->pread(d, f, buf, 5, 100) == 5 && memcmp(buf, "hello", 5) == 0);
    CHECK(d->truncate(d, f, 102) == 0 && d->pread(d, f, buf, 5, 100) == 2);
    d->close(d, f);
    d->close(d, NULL);
    CHECK(d->rename(d, "a/x", "a/y") == 0 && d->rename(d, "a/x", "a/z") == -ENOENT);
    CHECK(d->list(d, "a", count, &n) == 0 && n == 1);
    CHECK(d->list(d, "a", stop, NULL) == 7 && d->list(d, "b", count, &n) == -ENOENT);
    CHECK(d->fsync_dir(d, "a") == 0 && d->fsync_dir(d, ".") == 0 && d->fsync_dir(d, "b") == -ENOENT);
    CHECK(d->unlink(d, "a/y") == 0 && d->unlink(d, "a/y") == -ENOENT);
    disk_real_free(d);
    disk_real_free(NULL);
    CHECK(disk_real_new("/nonexistent-cairn", &d) == -ENOENT);
    if (chdir(dir) == 0)
        (void)rmdir("a");
    (void)rmdir(dir);
}

/* Pages of the file that lie in the page cache. */
static size_t cached_pages(const char *path, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    unsigned char in[64] = {0};
    size_t n = 0;
    void *p;

    REQUIRE(fd >= 0 && size <= sizeof in * DISK_ALIGN);
    p = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    REQUIRE(p != MAP_FAILED && mincore(p, size, in) == 0);
    for (size_t i = 0; i < sizeof in; i++)
        n += in[i] & 1;
    (void)munmap(p, size);
    (void)close(fd);
    return n;
}

static void past_the_cache(void)
{
    enum { SIZE = 16 * DISK_ALIGN };
    static alignas(DISK_ALIGN) char block[DISK_ALIGN];
    char dir[] = "/var/tmp/cairn-disk-XXXXXX", path[64], buf[DISK_ALIGN];
    struct disk_file *f, *reader;
    bool direct;
    struct disk *d;
    int fd;

    REQUIRE(mkdtemp(dir) != NULL);
    (void)snprintf(path, sizeof path, "%s/x", dir);
    REQUIRE(disk_real_new(dir, &d) == 0);
    REQUIRE(d->open(d, "x", O_RDWR | O_CREAT | O_EXCL | O_DIRECT, 0600, &f) == 0);
    CHECK(d->open(d, "x", O_RDWR | O_CREAT | O_EXCL | O_DIRECT, 0600, &reader) == -EEXIST);
    REQUIRE(d->open(d, "x", O_RDONLY, 0, &reader) == 0);
    fd = open(path, O_WRONLY | O_DIRECT | O_CLOEXEC);
    direct = fd >= 0;
    if (direct)
        (void)close(fd);
    printf("# this file system %s\n", direct ? "writes past its cache" : "has no O_DIRECT: only what is read is looked at");
    CHECK(d->fallocate(d, f, SIZE) == 0 && d->fdatasync(d, f) == 0);
    CHECK(!direct || cached_pages(path, SIZE) == 0);
    CHECK(d->pread(d, reader, buf, sizeof buf, 0) == sizeof buf && buf[0] == 0 && buf[1024] == 0); /* it is cached */
    for (int i = 1; i <= 5; i++) {
        memset(block, i, sizeof block);
        CHECK(d->pwrite(d, f, block, 512, (uint64_t)i * 512) == 0);
        if (i == 3)
            CHECK(d->pwrite(d, f, "odd", 3, 1) == 0); /* not a sector: through the cache, which then has the page */
        CHECK(d->pread(d, reader, buf, sizeof buf, 0) == sizeof buf);
        for (int k = 1; k <= 5; k++)
            CHECK(buf[k * 512] == (k <= i ? k : 0) && buf[k * 512 + 511] == buf[k * 512]);
        CHECK(memcmp(buf + 1, i < 3 ? "\0\0\0" : "odd", 3) == 0);
    }
    CHECK(d->pwrite(d, f, block + 1, 512, 3 * 512) == 0); /* a buffer that does not fit */
    CHECK(d->pread(d, reader, buf, 512, 3 * 512) == 512 && buf[0] == 5);
    CHECK(d->fdatasync(d, f) == 0);
    d->close(d, reader);
    d->close(d, f);
    CHECK(d->unlink(d, "x") == 0);
    disk_real_free(d);
    (void)rmdir(dir);
}

static void clock_and_dice(void)
{
    struct clock *c = clock_real();
    struct rng *r = rng_real();
    uint64_t a = c->now_us(c), b = c->now_us(c);

    CHECK(b >= a && c->now_ms(c) >= a / 1000);
    CHECK(c->wall_ms(c) > 1600000000000);
    CHECK(r->next(r) != r->next(r));
}

int main(void)
{
    TEST(past_the_cache);
    TEST(disk); /* its last step leaves the working directory */
    TEST(clock_and_dice);
    return tap_done();
}
