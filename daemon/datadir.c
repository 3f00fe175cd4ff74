/* SPDX-License-Identifier: Apache-2.0 */
/* datadir.c - the data directory.
 *
 * CURRENT is four lines of text, written whole to CURRENT.new, synced, renamed, the directory synced:
 *
 *     cairn 1                   format
 *     base 1                    base-1/
 *     wal 1 /abs/path or -      wal-1/ in that directory, - for the data directory itself
 *     crc 1a2b3c4d              crc32c of the three lines above
 *
 * A directory being made holds CREATING until CURRENT is there: what a crash leaves then is made anew. A base-N or
 * wal-M without CURRENT and without CREATING is somebody's data that lost its CURRENT: refused, never made anew, unless
 * other members can give it again (bootstrap_rebuild.c).
 *
 * FOUNDED, FAULTY and SUSPECT are datadir_marks.c's, PEERS is datadir_peers.c's. incoming/ is a base that another
 * member is sending: it means nothing until it has been renamed to base-N (snap_install.c). */
#include "datadir.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#include "crc32c.h"

enum { CURRENT_BYTES = 2 * DATADIR_PATH_BYTES };

/* statfs(2) f_type; <linux/magic.h> names them. */
enum { MAGIC_NFS = 0x6969, MAGIC_SMB = 0x517B, MAGIC_FUSE = 0x65735546 };
#define MAGIC_CIFS 0xFF534D42u
#define MAGIC_SMB2 0xFE534D42u

static int fail(struct datadir *d, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int fail(struct datadir *d, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    (void)vsnprintf(d->error, sizeof d->error, format, ap);
    va_end(ap);
    return -1;
}

/* Makes every missing directory of path, the last ones 0700, and leaves its absolute form in ret. */
static int make_path(struct datadir *d, const char *path, char *ret)
{
    char part[DATADIR_PATH_BYTES], real[DATADIR_PATH_BYTES];
    size_t n = strlen(path);

    if (n == 0 || n >= sizeof part - 64)
        return fail(d, "%s: the path of the data directory is too long", path);
    for (size_t i = 1; i <= n; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, 0700) < 0 && errno != EEXIST)
            return fail(d, "%s: cannot make the directory: %s", part, strerror(errno));
    }
    if (realpath(path, real) == NULL)
        return fail(d, "%s: %s", path, strerror(errno));
    if (strlen(real) >= DATADIR_PATH_BYTES - 64)
        return fail(d, "%s: the path of the data directory is too long", real);
    memcpy(ret, real, strlen(real) + 1);
    return 0;
}

/* The names of path and of the directories above it, whoever made them (this process, or one that was killed then). One
 * that cannot be read was not made by us. */
static int sync_path(struct datadir *d, const char *path)
{
    char part[DATADIR_PATH_BYTES];
    int fd, rc = 0;

    for (size_t i = strlen(path); i > 0 && rc == 0; i--) {
        if (path[i] != '/')
            continue;
        memcpy(part, path, i);
        part[i] = '\0';
        fd = open(part, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
            continue;
        if (fsync(fd) < 0 && errno == EIO)
            rc = fail(d, "%s: cannot be synced: %s", part, strerror(errno));
        (void)close(fd); /* only read */
    }
    return rc;
}

static int check_type(struct datadir *d, const char *path)
{
    struct statfs fs;
    struct stat st;

    if (stat(path, &st) < 0 || statfs(path, &fs) < 0)
        return fail(d, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return fail(d, "%s: is not a directory; give another --data-dir", path);
    if (st.st_mode & 077)
        return fail(d, "%s: is open to other users (mode %03o); run chmod 700 on it, it holds every key", path,
                    (unsigned)st.st_mode & 0777);
    if (access(path, R_OK | W_OK | X_OK) < 0)
        return fail(d, "%s: cannot be used: %s; run cairnd as its owner", path, strerror(errno));
    if (fs.f_type == MAGIC_NFS || fs.f_type == MAGIC_SMB || (uint32_t)fs.f_type == MAGIC_CIFS ||
        (uint32_t)fs.f_type == MAGIC_SMB2)
        return fail(d, "%s: lies on a network file system, whose locks and syncs cannot be relied on; use a local disk", path);
    if (fs.f_type == MAGIC_FUSE && faccessat(d->fd, "../.etcd/status", F_OK, 0) == 0)
        return fail(d, "%s: lies inside a mount of cairnfs; use a local disk", path);
    return 0;
}

/* The lock is on the directory itself: a refused one stays as it was, without even a lock file. */
static int lock(struct datadir *d)
{
    bool split = strcmp(d->wal_root, d->path) != 0;

    if (flock(d->fd, LOCK_EX | LOCK_NB) < 0)
        return fail(d, errno == EWOULDBLOCK ? "%s: is in use by another cairnd; stop that one, or give another --data-dir"
                                            : "%s: cannot be locked", d->path);
    if (!split)
        return 0;
    d->wal_fd = open(d->wal_root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (d->wal_fd < 0 || flock(d->wal_fd, LOCK_EX | LOCK_NB) < 0)
        return fail(d, "%s: is in use by another cairnd, or cannot be locked; give another --wal-dir", d->wal_root);
    return 0;
}

/* What stands in a directory without CURRENT. */
struct names {
    bool creating, ours, etcd;
    bool noted; /* PEERS: a member was here */
    char foreign[256];
};

static int list_names(struct datadir *d, struct names *ret)
{
    DIR *dir = fdopendir(openat(d->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    struct dirent *e;

    *ret = (struct names){0};
    if (dir == NULL)
        return fail(d, "%s: %s", d->path, strerror(errno));
    while ((e = readdir(dir)) != NULL) {
        const char *n = e->d_name;

        if (strcmp(n, ".") == 0 || strcmp(n, "..") == 0 || strcmp(n, "CURRENT.new") == 0 ||
            strcmp(n, "FOUNDED") == 0 || strcmp(n, "FOUNDED.new") == 0 || strcmp(n, "FAULTY") == 0 ||
            strcmp(n, "FAULTY.new") == 0 || strcmp(n, "SUSPECT") == 0 ||
            strcmp(n, "PEERS.new") == 0 || strcmp(n, "lost+found") == 0 || strcmp(n, "fixtures") == 0 /* --auto-tls */)
            continue;
        if (strcmp(n, "CREATING") == 0)
            ret->creating = true;
        else if (strcmp(n, "PEERS") == 0)
            ret->noted = true;
        else if (strncmp(n, "base-", 5) == 0 || strncmp(n, "wal-", 4) == 0)
            ret->ours = true;
        else if (strcmp(n, "member") == 0 || strcmp(n, "proxy") == 0)
            ret->etcd = true;
        else
            (void)snprintf(ret->foreign, sizeof ret->foreign, "%s", n);
    }
    (void)closedir(dir);
    return 0;
}

static int check_fresh(struct datadir *d)
{
    struct names n;
    int fd;

    if (list_names(d, &n) < 0)
        return -1;
    if (n.etcd)
        return fail(d, "%s: is a data directory of etcd; cairnd has a format of its own: give another --data-dir and copy the "
                       "keys with etcdctl make-mirror", d->path);
    if (*n.foreign)
        return fail(d, "%s: is not empty and not Cairn's (it holds %s); give another --data-dir", d->path, n.foreign);
    d->lost = (n.ours || n.noted) && !n.creating;
    if (d->lost)
        return fail(d, "%s: holds %s, but CURRENT is missing; restore CURRENT, or move the directory away", d->path,
                    n.ours ? "a store or a log" : "the PEERS of a member");
    fd = openat(d->fd, "CREATING", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || fsync(d->fd) < 0)
        return fail(d, "%s/CREATING: %s", d->path, strerror(errno));
    (void)close(fd); /* an empty file */
    if (sync_path(d, d->path) < 0 || sync_path(d, d->wal_root) < 0)
        return -1;
    d->fresh = true;
    d->base = d->wal = 1;
    return 0;
}

static int read_current(struct datadir *d, const char *wal_path)
{
    char text[CURRENT_BYTES + 1], wal_root[DATADIR_PATH_BYTES];
    int fd = openat(d->fd, "CURRENT", O_RDONLY | O_CLOEXEC), used = 0;
    unsigned format = 0, crc = 0;
    ssize_t n;
    char *last;

    if (fd < 0 && errno == ENOENT)
        return check_fresh(d);
    n = fd < 0 ? -1 : read(fd, text, CURRENT_BYTES);
    if (fd >= 0)
        (void)close(fd); /* only read */
    if (n < 0)
        return fail(d, "%s/CURRENT: %s", d->path, strerror(errno));
    text[n] = '\0';
    last = strstr(text, "\ncrc ");
    d->lost = last == NULL || sscanf(last + 1, "crc %x", &crc) != 1 || crc32c(0, text, (size_t)(last + 1 - text)) != crc;
    if (d->lost)
        return fail(d, "%s/CURRENT: is damaged; restore it, or move the directory away", d->path);
    if (sscanf(text, "cairn %u\nbase %u\nwal %u %n", &format, &d->base, &d->wal, &used) != 3 || format != 1)
        return fail(d, "%s/CURRENT: format %u is not known to this version of cairnd (it knows 1)", d->path, format);
    *last = '\0';
    (void)snprintf(wal_root, sizeof wal_root, "%s", text + used);
    if (strcmp(wal_root, "-") == 0)
        (void)snprintf(wal_root, sizeof wal_root, "%s", d->path);
    if (strcmp(wal_root, d->wal_root) != 0)
        return fail(d, "%s: its log lies in %s, not in %s; start with --wal-dir %s", d->path, wal_root, d->wal_root,
                    *wal_path || strcmp(wal_root, d->path) != 0 ? wal_root : "''");
    (void)unlinkat(d->fd, "CREATING", 0); /* left by a crash right after the commit; harmless */
    return 0;
}

/* NULL with errno. */
static DIR *dir_open(int at, const char *name)
{
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);

    if (dir == NULL && fd >= 0)
        (void)close(fd); /* only read */
    return dir;
}

/* The highest N of the directories PREFIX-N, or 0. */
static unsigned highest(int fd, const char *prefix)
{
    DIR *dir = dir_open(fd, ".");
    size_t len = strlen(prefix);
    unsigned top = 0, n;
    struct dirent *e;
    char more;

    while (dir && (e = readdir(dir)) != NULL)
        if (strncmp(e->d_name, prefix, len) == 0 && sscanf(e->d_name + len, "%u%c", &n, &more) == 1 && n > top)
            top = n;
    if (dir)
        (void)closedir(dir);
    return top;
}

static void number(struct datadir *d)
{
    unsigned base = highest(d->fd, "base-"), wal = highest(d->wal_fd >= 0 ? d->wal_fd : d->fd, "wal-");

    d->base_next = d->base_found = (base > d->base ? base : d->base) + 1;
    d->wal_next = d->wal_found = (wal > d->wal ? wal : d->wal) + 1;
}

/* A process that was killed right after a rename has left a CURRENT that nothing has synced. What is promised from here
 * on stands on it: it may not go with a power cut. */
static int sync_names(struct datadir *d)
{
    return fsync(d->fd) < 0 ? fail(d, "%s: cannot be synced: %s", d->path, strerror(errno)) : 0;
}

static int open_dir(struct datadir *d, const char *path, const char *wal_path, bool lost)
{
    *d = (struct datadir){.fd = -1, .wal_fd = -1, .mu = PTHREAD_MUTEX_INITIALIZER};
    if (make_path(d, path, d->path) < 0)
        return -1;
    d->fd = open(d->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (d->fd < 0) {
        fail(d, "%s: %s", d->path, strerror(errno));
        return -1;
    }
    if (check_type(d, d->path) < 0)
        goto bad;
    if (*wal_path == '\0')
        memcpy(d->wal_root, d->path, sizeof d->wal_root);
    else if (make_path(d, wal_path, d->wal_root) < 0 || check_type(d, d->wal_root) < 0)
        goto bad;
    if (lock(d) < 0 || sync_names(d) < 0 || (!lost && read_current(d, wal_path) < 0))
        goto bad;
    number(d);
    if (lost) {
        d->base = d->base_found - 1;
        d->wal = d->wal_found - 1;
    }
    return 0;
bad:
    datadir_close(d);
    return -1;
}

int datadir_open(struct datadir *d, const char *path, const char *wal_path)
{
    return open_dir(d, path, wal_path, false);
}

int datadir_open_lost(struct datadir *d, const char *path, const char *wal_path)
{
    return open_dir(d, path, wal_path, true);
}

int datadir_replace(const struct datadir *d, const char *name, const char *text, size_t n)
{
    char fresh[32];
    int fd, rc = 0;

    (void)snprintf(fresh, sizeof fresh, "%s.new", name);
    fd = openat(d->fd, fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    errno = 0; /* a short write has none */
    if (write(fd, text, n) != (ssize_t)n || fsync(fd) < 0)
        rc = errno ? -errno : -EIO;
    if (close(fd) < 0 && rc == 0)
        rc = -errno;
    if (rc == 0 && renameat(d->fd, fresh, d->fd, name) < 0)
        rc = -errno;
    if (rc == 0 && fsync(d->fd) < 0)
        rc = -EIO; /* whatever it says: which of the two a restart finds is not known now */
    return rc;
}

int datadir_commit(struct datadir *d)
{
    char text[CURRENT_BYTES];
    bool inside = strcmp(d->wal_root, d->path) == 0;
    int n = snprintf(text, sizeof text, "cairn 1\nbase %u\nwal %u %s\n", d->base, d->wal, inside ? "-" : d->wal_root), rc;

    n += snprintf(text + n, sizeof text - (size_t)n, "crc %08x\n", crc32c(0, text, (size_t)n));
    rc = datadir_replace(d, "CURRENT", text, (size_t)n);
    if (rc)
        return rc;
    if (d->fresh && unlinkat(d->fd, "CREATING", 0) < 0)
        return -errno;
    d->fresh = false;
    return 0;
}

void datadir_base_path(const struct datadir *d, unsigned base, char *ret_path)
{
    (void)snprintf(ret_path, DATADIR_PATH_BYTES, "%.*s/base-%u", DATADIR_PATH_BYTES - 32, d->path, base);
}

int datadir_make_base(struct datadir *d, unsigned base, char *ret_path)
{
    int rc = datadir_remove_base(d, base); /* what a crash may have left of an earlier try */

    datadir_base_path(d, base, ret_path);
    if (rc && rc != -ENOENT)
        return rc;
    if (mkdir(ret_path, 0700) < 0 || fsync(d->fd) < 0)
        return -errno;
    return 0;
}

unsigned datadir_base(struct datadir *d)
{
    unsigned n;

    pthread_mutex_lock(&d->mu);
    n = d->base;
    pthread_mutex_unlock(&d->mu);
    return n;
}

unsigned datadir_new_base(struct datadir *d)
{
    unsigned n;

    pthread_mutex_lock(&d->mu);
    n = d->base_next++;
    pthread_mutex_unlock(&d->mu);
    return n;
}

unsigned datadir_new_wal(struct datadir *d)
{
    unsigned n;

    pthread_mutex_lock(&d->mu);
    n = d->wal_next++;
    pthread_mutex_unlock(&d->mu);
    return n;
}

/* mu is held. */
static int switch_to(struct datadir *d, unsigned base, unsigned wal)
{
    unsigned old_base = d->base, old_wal = d->wal;
    int rc;

    d->base = base;
    d->wal = wal;
    rc = datadir_commit(d);
    if (rc) {
        d->base = old_base;
        d->wal = old_wal;
    }
    return rc;
}

int datadir_switch(struct datadir *d, unsigned from, unsigned base)
{
    int rc;

    pthread_mutex_lock(&d->mu);
    rc = d->base == from ? switch_to(d, base, d->wal) : -ESTALE;
    pthread_mutex_unlock(&d->mu);
    return rc;
}

int datadir_switch_both(struct datadir *d, unsigned base, unsigned wal)
{
    int rc;

    pthread_mutex_lock(&d->mu);
    rc = switch_to(d, base, wal);
    pthread_mutex_unlock(&d->mu);
    return rc;
}

/* Removes the directory with its files. */
static int remove_dir(int at, const char *name)
{
    DIR *dir = dir_open(at, name);
    struct dirent *e;
    int rc = 0;

    if (dir == NULL)
        return -errno;
    while ((e = readdir(dir)) != NULL)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && unlinkat(dirfd(dir), e->d_name, 0) < 0)
            rc = -errno;
    (void)closedir(dir);
    if (unlinkat(at, name, AT_REMOVEDIR) < 0 && rc == 0)
        rc = -errno;
    return rc;
}

int datadir_remove_base(struct datadir *d, unsigned base)
{
    char name[32];

    (void)snprintf(name, sizeof name, "base-%u", base);
    return remove_dir(d->fd, name);
}

/* PREFIX-N in dir for each N below current, or above it and below found. Numbers ascend: what is below the current one
 * is over, what is above and was there at the start never came to be; the rest is being made. */
static int remove_numbered(int fd, const char *prefix, unsigned current, unsigned found)
{
    DIR *dir = dir_open(fd, ".");
    size_t len = strlen(prefix);
    struct dirent *e;
    unsigned n;
    char more;
    int rc = 0, err;

    if (dir == NULL)
        return -errno;
    while ((e = readdir(dir)) != NULL)
        if (strncmp(e->d_name, prefix, len) == 0 && sscanf(e->d_name + len, "%u%c", &n, &more) == 1 &&
            (n < current || (n > current && n < found)) && (err = remove_dir(fd, e->d_name)) != 0)
            rc = err;
    (void)closedir(dir);
    return rc;
}

int datadir_remove_others(struct datadir *d)
{
    unsigned base, wal;
    int rc, err;

    /* What is damaged stays until the others have given back what it held: more than one of them may be so. */
    if (faccessat(d->fd, "FAULTY", F_OK, 0) == 0)
        return 0;
    pthread_mutex_lock(&d->mu);
    base = d->base;
    wal = d->wal;
    pthread_mutex_unlock(&d->mu);
    rc = remove_numbered(d->fd, "base-", base, d->base_found);
    err = remove_numbered(d->wal_fd >= 0 ? d->wal_fd : d->fd, "wal-", wal, d->wal_found);
    return rc ? rc : err;
}

int datadir_make_incoming(struct datadir *d, char *ret_path)
{
    int rc = datadir_remove_incoming(d);

    if (rc && rc != -ENOENT)
        return rc;
    (void)snprintf(ret_path, DATADIR_PATH_BYTES, "%.*s/incoming", DATADIR_PATH_BYTES - 32, d->path);
    return mkdir(ret_path, 0700) < 0 ? -errno : 0;
}

int datadir_remove_incoming(struct datadir *d)
{
    return remove_dir(d->fd, "incoming");
}

int datadir_adopt_incoming(struct datadir *d, unsigned base)
{
    char name[32];

    (void)snprintf(name, sizeof name, "base-%u", base);
    return renameat(d->fd, "incoming", d->fd, name) < 0 || fsync(d->fd) < 0 ? -errno : 0;
}

int datadir_give_back(struct datadir *d, unsigned base)
{
    char name[32];

    (void)snprintf(name, sizeof name, "base-%u", base);
    return renameat(d->fd, name, d->fd, "incoming") < 0 ? -errno : 0;
}

void datadir_close(struct datadir *d)
{
    if (d->wal_fd >= 0)
        (void)close(d->wal_fd); /* gives up the lock */
    if (d->fd >= 0)
        (void)close(d->fd); /* the same */
    d->fd = d->wal_fd = -1;
}
