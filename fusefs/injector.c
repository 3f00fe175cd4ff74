/* SPDX-License-Identifier: Apache-2.0 */
/* injector.c - does system calls on the mount on the core's order (see injector.h).
 *
 * One order at a time: walk to the directory by name, check that it is still on our mount, do the call
 * relative to that descriptor, close it, answer. The directory is walked in pieces, so a path longer than
 * PATH_MAX works.
 */
#include "injector.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define WALK_PIECE_BYTES 3000 /* below PATH_MAX, with room for one more component */

static bool on_device(int fd, uint64_t dev)
{
    struct statx st;

    /* DONT_SYNC: the device number is the kernel's own; no request to the core. */
    return statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, 0, &st) == 0 &&
           makedev(st.stx_dev_major, st.stx_dev_minor) == dev;
}

/* Opens dir (relative to the mount point, '/'-separated; changed by the walk) with O_PATH. Descriptor or
 * -errno. */
static int walk(const char *mountpoint, char *dir, uint64_t dev)
{
    int fd = open(mountpoint, O_PATH | O_DIRECTORY | O_CLOEXEC);

    while (fd >= 0 && *dir) {
        size_t len = strlen(dir), cut = len;
        int next, rc;

        if (len > WALK_PIECE_BYTES) {
            for (cut = WALK_PIECE_BYTES; cut > 0 && dir[cut] != '/'; cut--)
                ;
            if (cut == 0) /* one component longer than a piece */
                cut = strcspn(dir, "/");
        }
        len = cut < len ? cut + 1 : cut; /* what to step over, with its slash */
        if (dir[cut] == '/')
            dir[cut] = 0;
        next = openat(fd, dir, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        rc = -errno;
        (void)close(fd); /* O_PATH: nothing to lose */
        fd = next < 0 ? rc : next;
        dir += len;
    }
    if (fd == -1)
        return -errno;
    if (fd >= 0 && !on_device(fd, dev)) {
        (void)close(fd);
        return -EXDEV;
    }
    return fd;
}

static int do_open_close(int dir, const char *name, int flags, bool resize, uint64_t size)
{
    int fd = openat(dir, name, flags | O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0644);
    int rc = 0;

    if (fd < 0)
        return errno;
    if (resize && ftruncate(fd, (off_t)size) != 0)
        rc = errno;
    if (close(fd) != 0 && rc == 0)
        rc = errno;
    return rc;
}

/* truncate(2) has no *at form; /proc/self/fd/N/name reaches the file relative to our descriptor. */
static int do_truncate(int dir, const char *name, uint64_t size)
{
    char *path = NULL;
    int rc = 0;

    if (asprintf(&path, "/proc/self/fd/%d/%s", dir, name) < 0)
        return ENOMEM;
    if (truncate(path, (off_t)size) != 0)
        rc = errno;
    free(path);
    return rc;
}

static int perform(const struct inject_order *o, int dir, const char *name, int dir2, const char *name2)
{
    struct stat st;
    int rc;

    switch ((enum inject_type)o->type) {
    case INJECT_CREATE:
        rc = mknodat(dir, name, S_IFREG | 0644, 0);
        break;
    case INJECT_CREATE_DATA:
        return do_open_close(dir, name, O_CREAT | O_EXCL, false, 0);
    case INJECT_MKDIR:
        rc = mkdirat(dir, name, 0755);
        break;
    case INJECT_MODIFY:
        return do_open_close(dir, name, 0, true, o->size);
    case INJECT_TRUNCATE:
        return do_truncate(dir, name, o->size);
    case INJECT_ATTRIB:
        rc = fchmodat(dir, name, o->mode & 07777, 0);
        break;
    case INJECT_UNLINK:
        rc = unlinkat(dir, name, 0);
        break;
    case INJECT_RMDIR:
        rc = unlinkat(dir, name, AT_REMOVEDIR);
        break;
    case INJECT_LOOK:
        rc = fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW);
        break;
    case INJECT_RENAME:
        rc = renameat(dir, name, dir2, name2);
        break;
    default:
        return EINVAL;
    }
    return rc == 0 ? 0 : errno;
}

static char *take(char **pos, uint32_t len)
{
    char *s = malloc(len + 1);

    if (s) {
        memcpy(s, *pos, len);
        s[len] = 0;
    }
    *pos += len;
    return s;
}

static int obey(const char *mountpoint, const struct inject_order *o, char *names)
{
    char *dir = take(&names, o->dir_len), *name = take(&names, o->name_len);
    char *dir2 = take(&names, o->dir2_len), *name2 = take(&names, o->name2_len);
    int fd = -1, fd2 = -1, rc = ENOMEM;

    if (dir == NULL || name == NULL || dir2 == NULL || name2 == NULL)
        goto out;
    fd = walk(mountpoint, dir, o->dev);
    if (fd >= 0 && o->type == INJECT_RENAME)
        fd2 = walk(mountpoint, dir2, o->dev);
    if (fd < 0)
        rc = -fd;
    else if (o->type == INJECT_RENAME && fd2 < 0)
        rc = -fd2;
    else
        rc = perform(o, fd, name, fd2, name2);
out:
    if (fd >= 0)
        (void)close(fd); /* O_PATH */
    if (fd2 >= 0)
        (void)close(fd2);
    free(dir);
    free(name);
    free(dir2);
    free(name2);
    return rc;
}

void injector_main(int sock, const char *mountpoint)
{
    static char buf[INJECT_ORDER_BYTES];

    (void)prctl(PR_SET_NAME, "cairnfs-inject"); /* for the reader of ps */
    (void)umask(0);                             /* the modes we pass are the modes we mean */
    (void)chdir("/");                           /* hold nothing */
    for (;;) {
        struct inject_order o;
        struct inject_result r = {0};
        ssize_t n = recv(sock, buf, sizeof buf, 0);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < (ssize_t)sizeof o)
            break; /* 0: the core is gone */
        memcpy(&o, buf, sizeof o);
        if ((uint64_t)n != sizeof o + (uint64_t)o.dir_len + o.name_len + o.dir2_len + o.name2_len)
            break;
        r.id = o.id;
        r.err = obey(mountpoint, &o, buf + sizeof o);
        if (send(sock, &r, sizeof r, MSG_NOSIGNAL) != sizeof r)
            break;
    }
    _exit(0);
}
