/* SPDX-License-Identifier: Apache-2.0 */
/* fs_load.c - what a file of a mount costs its user, one operation at a time.
 *
 *     fs_load stat|read|save FILE times
 *
 * read is open+read+close, save is open(O_TRUNC)+write of 256 bytes+close. Prints microseconds: the mean of the fastest
 * of BATCHES batches. On a machine that does other things as well the mean of all measures those: of two file systems
 * that do the same with the same system calls it made one 1.1 and another time 1.8 times as slow as the other. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int do_stat(const char *path)
{
    struct stat st;

    return stat(path, &st);
}

static int do_read(const char *path)
{
    char buf[4096];
    int fd = open(path, O_RDONLY), rc;

    if (fd < 0)
        return -1;
    rc = read(fd, buf, sizeof buf) < 0 ? -1 : 0;
    return close(fd) < 0 ? -1 : rc;
}

static int do_save(const char *path)
{
    char buf[256] = {'v'};
    int fd = open(path, O_WRONLY | O_TRUNC), rc;

    if (fd < 0)
        return -1;
    rc = write(fd, buf, sizeof buf) == sizeof buf ? 0 : -1;
    return close(fd) < 0 ? -1 : rc;
}

#define BATCHES 25

static double now_us(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

int main(int argc, char **argv)
{
    int (*act)(const char *) = argc != 4                      ? NULL
                               : strcmp(argv[1], "stat") == 0 ? do_stat
                               : strcmp(argv[1], "read") == 0 ? do_read
                               : strcmp(argv[1], "save") == 0 ? do_save
                                                              : NULL;
    long times = argc == 4 ? strtol(argv[3], NULL, 10) : 0;
    double best = 0;

    if (act == NULL || times <= 0) {
        (void)fprintf(stderr, "usage: fs_load stat|read|save FILE times\n");
        return 2;
    }
    for (long i = 0; i < times / 10 + 1; i++) /* warm */
        if (act(argv[2]) < 0)
            goto bad;
    for (int k = 0; k < BATCHES; k++) {
        long n = times / BATCHES + 1;
        double from = now_us(), each;

        for (long i = 0; i < n; i++)
            if (act(argv[2]) < 0)
                goto bad;
        each = (now_us() - from) / (double)n;
        if (k == 0 || each < best)
            best = each;
    }
    (void)printf("%.1f\n", best);
    return 0;
bad:
    (void)fprintf(stderr, "fs_load: %s: %s\n", argv[2], strerror(errno));
    return 1;
}
