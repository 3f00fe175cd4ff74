/* SPDX-License-Identifier: Apache-2.0 */
/* datadir_marks.c - the small files of the data directory that say what this member is, or suspects of itself.
 *
 *     FOUNDED   the cluster token with which it founded its cluster; three lines, replaced as a whole:
 *                   founded 1           format
 *                   token etcd-cluster
 *                   crc 1a2b3c4d        crc32c of the two lines above
 *               once it was the token alone, without a newline: read still
 *     FAULTY    three lines of text, replaced as a whole:
 *                   fence 12            the term above all that it may have promised
 *                   store damaged       or sound: whether base is to be given up
 *                   crc 1a2b3c4d        crc32c of the two lines above
 *     SUSPECT   one x for each crash inside LMDB; an empty file is one too
 *
 * What each means is said in datadir.h. */
#include "datadir.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "crc32c.h"

/* ---- FOUNDED ---- */

enum { FOUNDED_BYTES = 8192 };

int datadir_note_token(struct datadir *d, const char *token)
{
    char text[FOUNDED_BYTES];
    int n = snprintf(text, sizeof text - 32, "founded 1\ntoken %s\n", token);

    if (n < 0 || (size_t)n >= sizeof text - 32)
        return -ENAMETOOLONG;
    n += snprintf(text + n, sizeof text - (size_t)n, "crc %08x\n", crc32c(0, text, (size_t)n));
    return datadir_replace(d, "FOUNDED", text, (size_t)n);
}

/* The token in the text of n bytes, which is cut there; NULL: damaged. */
static const char *founding_token(char *text, size_t n)
{
    static const char head[] = "founded 1\ntoken ";
    enum { CRC_BYTES = 13 };
    char crc[CRC_BYTES + 1];

    text[n] = '\0';
    if (memchr(text, '\n', n) == NULL)
        return text;
    if (n < sizeof head + CRC_BYTES || strncmp(text, head, sizeof head - 1) != 0)
        return NULL;
    n -= CRC_BYTES;
    (void)snprintf(crc, sizeof crc, "crc %08x\n", crc32c(0, text, n));
    if (strcmp(text + n, crc) != 0)
        return NULL;
    text[n - 1] = '\0';
    return text + sizeof head - 1;
}

bool datadir_token_differs(const struct datadir *d, const char *token, char *ret_noted, size_t size)
{
    int fd = openat(d->fd, "FOUNDED", O_RDONLY | O_CLOEXEC);
    char text[FOUNDED_BYTES + 1];
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    const char *noted = n <= 0 ? NULL : founding_token(text, (size_t)n);

    if (fd >= 0)
        (void)close(fd); /* only read */
    if (noted == NULL || strcmp(noted, token) == 0)
        return false;
    (void)snprintf(ret_noted, size, "%s", noted);
    return true;
}

/* ---- FAULTY ---- */

enum { MARK_BYTES = 96 };

int datadir_mark(struct datadir *d, uint64_t fence_term, bool store_damaged)
{
    char text[MARK_BYTES];
    int n = snprintf(text, sizeof text, "fence %llu\nstore %s\n", (unsigned long long)fence_term,
                     store_damaged ? "damaged" : "sound");

    n += snprintf(text + n, sizeof text - (size_t)n, "crc %08x\n", crc32c(0, text, (size_t)n));
    return datadir_replace(d, "FAULTY", text, (size_t)n);
}

int datadir_read_mark(struct datadir *d, uint64_t *ret_fence_term, bool *ret_store_damaged)
{
    int fd = openat(d->fd, "FAULTY", O_RDONLY | O_CLOEXEC);
    unsigned long long fence = 0;
    char text[MARK_BYTES], store[16];
    const char *last;
    unsigned crc = 0;
    ssize_t n;

    *ret_fence_term = 0;
    *ret_store_damaged = false;
    if (fd < 0 && errno == ENOENT)
        return 0;
    n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        (void)close(fd); /* only read */
    if (n >= 0)
        text[n] = '\0';
    last = n < 0 ? NULL : strstr(text, "\ncrc ");
    if (last == NULL || sscanf(last + 1, "crc %x", &crc) != 1 || crc32c(0, text, (size_t)(last + 1 - text)) != crc ||
        sscanf(text, "fence %llu\nstore %15s\n", &fence, store) != 2) {
        (void)snprintf(d->error, sizeof d->error,
                       "%.*s/FAULTY: cannot be read; remove this member from its cluster and add it anew",
                       DATADIR_ERROR_BYTES - 100, d->path);
        return -1;
    }
    *ret_fence_term = fence;
    *ret_store_damaged = strcmp(store, "damaged") == 0;
    return 1;
}

int datadir_unmark(struct datadir *d)
{
    return unlinkat(d->fd, "FAULTY", 0) < 0 || fsync(d->fd) < 0 ? -errno : 0;
}

/* ---- SUSPECT ---- */

int datadir_suspect(struct datadir *d)
{
    int fd = openat(d->fd, "SUSPECT", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600), rc = 0;

    if (fd < 0)
        return -errno;
    if (write(fd, "x", 1) != 1 || fsync(fd) < 0 || fsync(d->fd) < 0)
        rc = -errno; /* that there is a file says enough, should it be empty */
    (void)close(fd); /* it was synced */
    return rc;
}

unsigned datadir_suspicions(struct datadir *d)
{
    struct stat st;

    if (fstatat(d->fd, "SUSPECT", &st, 0) < 0)
        return 0;
    return st.st_size < 1 ? 1 : st.st_size > INT_MAX ? INT_MAX : (unsigned)st.st_size;
}

int datadir_trust(struct datadir *d)
{
    if (unlinkat(d->fd, "SUSPECT", 0) < 0)
        return errno == ENOENT ? 0 : -errno;
    return fsync(d->fd) < 0 ? -errno : 0;
}
