/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: the real disk, clock and dice do what seam.h says: paths below the root, whole writes, zero-filled growth,
 * names listed, errors as -errno, a clock that does not go back, dice that differ. */
#include <errno.h>
#include <fcntl.h>
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
    TEST(disk);
    TEST(clock_and_dice);
    return tap_done();
}
