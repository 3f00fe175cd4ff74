/* SPDX-License-Identifier: Apache-2.0 */
/* datadir_peers.c - DIR/PEERS: who the members are and where, as this member knew it last.
 *
 * Lines of text, each ended by \n, ids in hex without leading zeros:
 *
 *     peers 1                          format
 *     cluster 14e2fbbbf0ccf6ea
 *     self 8211f1d0f64f3269            the member whose directory this is
 *     member 8211f1d0f64f3269          each member, this one too,
 *     url http://10.0.0.1:2380         and its peer URLs, to the end of the line
 *     member 91bc3c398fb3c146
 *     url http://10.0.0.2:2380
 *     crc 1a2b3c4d                     crc32c of all lines above; nothing follows
 *
 * Replaced as a whole (datadir_replace), so a crash leaves the former one or the new one. */
#include "datadir_peers.h"
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>
#include "crc32c.h"
#include "limits.h"

enum { FORMAT = 1, CRC_BYTES = 13 /* "crc ", eight digits, \n */, FILE_BYTES = LIMIT_PEERS_FILE_BYTES };

/* ---- writing ------------------------------------------------------------------------------- */

struct text {
    char *bytes; /* FILE_BYTES and one more */
    size_t n;
};

/* A line or none of it; the crc has its room kept. */
static void put(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(struct text *t, const char *format, ...)
{
    size_t room = FILE_BYTES - CRC_BYTES - t->n;
    va_list ap;
    int n;

    va_start(ap, format);
    n = vsnprintf(t->bytes + t->n, room + 1, format, ap);
    va_end(ap);
    if (n > 0 && (size_t)n <= room)
        t->n += (size_t)n;
}

static bool fits_a_line(const char *url)
{
    for (; *url; url++)
        if ((unsigned char)*url < ' ')
            return false;
    return true;
}

static void encode(struct text *t, const struct datadir_peers *p)
{
    put(t, "peers %d\ncluster %llx\nself %llx\n", FORMAT, (unsigned long long)p->cluster_id, (unsigned long long)p->member_id);
    for (size_t i = 0; i < p->n; i++) {
        const struct roster_known *m = &p->members[i];

        put(t, "member %llx\n", (unsigned long long)m->id);
        for (size_t k = 0; k < m->n_urls; k++)
            if (fits_a_line(m->urls[k]))
                put(t, "url %s\n", m->urls[k]);
    }
    t->n += (size_t)snprintf(t->bytes + t->n, CRC_BYTES + 1, "crc %08x\n", crc32c(0, t->bytes, t->n));
}

/* Room for FILE_BYTES and one more. -errno, or how many bytes. */
static ssize_t read_all(const struct datadir *d, char *to)
{
    int fd = openat(d->fd, "PEERS", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, to, FILE_BYTES + 1);
    int err = n < 0 ? errno : 0;

    if (fd >= 0)
        (void)close(fd); /* only read */
    return n < 0 ? -err : n;
}

int datadir_write_peers(const struct datadir *d, const struct datadir_peers *p)
{
    struct text t = {.bytes = malloc(FILE_BYTES + 1)};
    char *old = malloc(FILE_BYTES + 1);
    int rc = -ENOMEM;
    ssize_t n;

    if (t.bytes == NULL || old == NULL)
        goto out;
    encode(&t, p);
    n = read_all(d, old);
    rc = n == (ssize_t)t.n && memcmp(old, t.bytes, t.n) == 0 ? 0 : datadir_replace(d, "PEERS", t.bytes, t.n);
out:
    free(old);
    free(t.bytes);
    return rc;
}

/* ---- reading ------------------------------------------------------------------------------- */

/* The next line is `word` and a number; false: it is not, nothing was taken. */
static bool take_id(const char **at, const char *word, uint64_t *ret)
{
    size_t n = strlen(word);
    unsigned long long v;
    char *end;

    if (strncmp(*at, word, n) != 0 || (*at)[n] == '\n')
        return false;
    v = strtoull(*at + n, &end, 16);
    if (*end != '\n')
        return false;
    *ret = v;
    *at = end + 1;
    return true;
}

/* The same of a URL, which is ended by a 0 then. */
static bool take_url(char **at, const char **ret)
{
    char *end = strchr(*at, '\n');

    if (strncmp(*at, "url ", 4) != 0 || end == NULL)
        return false;
    *end = '\0';
    *ret = *at + 4;
    *at = end + 1;
    return true;
}

/* How many lines begin with the word. */
static size_t count(const char *text, const char *word)
{
    size_t found = 0;

    for (const char *at = text; at && *at; at = strchr(at, '\n'), at += at != NULL)
        found += strncmp(at, word, strlen(word)) == 0;
    return found;
}

/* The lines between the head and the crc. */
static int take_members(struct arena *a, char *at, struct datadir_peers *p)
{
    struct roster_known *members = arena_alloc(a, (count(at, "member ") + 1) * sizeof *members);
    const char **urls = arena_alloc(a, (count(at, "url ") + 1) * sizeof *urls);

    if (members == NULL || urls == NULL)
        return -ENOMEM;
    p->members = members;
    for (; take_id((const char **)&at, "member ", &members->id); members++, p->n++) {
        members->urls = urls;
        for (; take_url(&at, urls); urls++)
            members->n_urls++;
    }
    return *at == '\0' ? 0 : -EUCLEAN;
}

/* n bytes and a 0 after them. */
static int decode(struct arena *a, char *text, size_t n, struct datadir_peers *ret)
{
    struct datadir_peers p = {0};
    const char *at = text;
    char crc[CRC_BYTES + 1];
    unsigned format;
    int used = 0, rc;

    if (n < CRC_BYTES || strlen(text) != n)
        return -EUCLEAN;
    n -= CRC_BYTES;
    (void)snprintf(crc, sizeof crc, "crc %08x\n", crc32c(0, text, n));
    if (strcmp(text + n, crc) != 0)
        return -EUCLEAN;
    text[n] = '\0';
    if (sscanf(text, "peers %u\n%n", &format, &used) != 1 || used == 0)
        return -EUCLEAN;
    if (format != FORMAT)
        return -EPROTONOSUPPORT;
    at += used;
    if (!take_id(&at, "cluster ", &p.cluster_id) || !take_id(&at, "self ", &p.member_id))
        return -EUCLEAN;
    rc = take_members(a, text + (at - text), &p);
    if (rc == 0)
        *ret = p;
    return rc;
}

int datadir_read_peers(const struct datadir *d, struct arena *a, struct datadir_peers *ret_peers)
{
    char *text = arena_alloc(a, FILE_BYTES + 2); /* zeroed: what is read ends with a 0 */
    ssize_t n = text ? read_all(d, text) : -ENOMEM;

    if (n < 0)
        return (int)n;
    return n > FILE_BYTES ? -EUCLEAN : decode(a, text, (size_t)n, ret_peers);
}
