/* SPDX-License-Identifier: Apache-2.0 */
/* notify_watchers.c - who watches what, from /proc (see notify_watchers.h).
 *
 * An inotify descriptor is a link to anon_inode:inotify; its fdinfo has one line for each watch:
 *     inotify wd:1 ino:31337 sdev:2a mask:...          (hexadecimal; sdev is major << 20 | minor)
 * and a fanotify one "fanotify ino:.. sdev:.. mflags:..", "fanotify mnt_id:.." or "fanotify sdev:..".
 * Source: linux fs/notify/fdinfo.c; verified on 6.18.
 */
#include "notify_watchers.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static void add(struct watched *w, uint64_t ino)
{
    if (w->n == w->room) {
        size_t room = w->room ? w->room * 2 : 32;
        uint64_t *inos = realloc(w->inos, room * sizeof *inos);

        if (inos == NULL) {
            w->everything = true;
            return;
        }
        w->inos = inos;
        w->room = room;
    }
    w->inos[w->n++] = ino;
}

static void read_fdinfo(const char *path, uint64_t sdev, struct watched *w)
{
    FILE *f = fopen(path, "re");
    char line[512];

    while (f && fgets(line, sizeof line, f)) {
        unsigned long long ino, dev;

        if (sscanf(line, "inotify wd:%*x ino:%llx sdev:%llx", &ino, &dev) == 2) {
            if (dev == sdev)
                add(w, ino);
        } else if (strncmp(line, "fanotify ", 9) == 0 && strncmp(line, "fanotify flags", 14) != 0)
            w->everything = true; /* marks of mounts and file systems cover more than inodes */
    }
    if (f)
        (void)fclose(f);
}

/* False: the process's descriptors cannot be read. */
static bool read_process(const char *pid, uint64_t sdev, struct watched *w)
{
    char path[64], target[32];
    struct dirent *d;
    DIR *dir;

    (void)snprintf(path, sizeof path, "/proc/%s/fd", pid);
    dir = opendir(path);
    if (dir == NULL)
        return errno != EACCES && errno != EPERM;
    while ((d = readdir(dir)) != NULL) {
        ssize_t len;

        if (!isdigit((unsigned char)d->d_name[0]))
            continue;
        len = readlinkat(dirfd(dir), d->d_name, target, sizeof target - 1);
        if (len < 0)
            continue;
        target[len] = 0;
        if (strcmp(target, "anon_inode:inotify") != 0 && strcmp(target, "anon_inode:[fanotify]") != 0)
            continue;
        (void)snprintf(path, sizeof path, "/proc/%s/fdinfo/%.16s", pid, d->d_name);
        read_fdinfo(path, sdev, w);
    }
    (void)closedir(dir);
    return true;
}

static int by_ino(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

void watched_scan(dev_t dev, bool unreadable_counts, struct watched *ret_watched)
{
    struct watched w = {0};
    uint64_t sdev = (uint64_t)major(dev) << 20 | minor(dev);
    DIR *proc = opendir("/proc");
    struct dirent *d;

    if (proc == NULL)
        w.everything = true;
    while (proc && (d = readdir(proc)) != NULL)
        if (isdigit((unsigned char)d->d_name[0]) && !read_process(d->d_name, sdev, &w) && unreadable_counts)
            w.everything = true;
    if (proc)
        (void)closedir(proc);
    if (w.n)
        qsort(w.inos, w.n, sizeof *w.inos, by_ino);
    *ret_watched = w;
}

bool watched_has(const struct watched *w, uint64_t ino)
{
    return w->everything || (w->n && bsearch(&ino, w->inos, w->n, sizeof ino, by_ino) != NULL);
}

void watched_fini(struct watched *w)
{
    free(w->inos);
    *w = (struct watched){0};
}
