/* SPDX-License-Identifier: Apache-2.0 */
/* wal_salvage.c - what a damaged log still says of its member: whose it was, and the highest term anywhere in it.
 *
 * For a member that is to be rebuilt from its peers (bootstrap_rebuild.c). Nothing is believed but heads under their
 * own crc, and nothing is concluded from what is missing: who asks adds RAFT_FENCE_TERMS for that.
 *
 * Owner: the main thread, at start.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include "wal_impl.h"

struct salvage {
    struct disk *disk;
    const char *dir;
    struct wal_identity *ret;
};

static void look(struct salvage *s, struct slice seg)
{
    struct wal_segment_head h;
    struct wal_batch b;

    if (wal_segment_head_parse(seg, &h) == WAL_GOOD) {
        s->ret->cluster_id = h.cluster_id;
        s->ret->member_id = h.member_id;
        if (h.term > s->ret->term)
            s->ret->term = h.term;
    }
    for (uint64_t at = wal_find_batch(seg, WAL_SECTOR_BYTES, 0); at;
         at = wal_find_batch(seg, at + WAL_SECTOR_BYTES, 0)) {
        if (!wal_batch_head_parse(seg, at, 0, &b))
            continue;
        if (b.term > s->ret->term)
            s->ret->term = b.term;
        if (at + 2 * WAL_SECTOR_BYTES > seg.len)
            break;
    }
}

static int each(void *ctx, const char *name)
{
    struct salvage *s = ctx;
    char path[WAL_PATH_MAX + 32];
    struct disk_file *f;
    uint8_t *p;
    ssize_t n;

    if (strlen(name) != 20 || strcmp(name + 16, ".wal") != 0 || strlen(s->dir) + 22 > sizeof path)
        return 0;
    (void)snprintf(path, sizeof path, "%s/%s", s->dir, name);
    if (s->disk->open(s->disk, path, O_RDONLY, 0, &f) != 0)
        return 0; /* as good as lost */
    n = s->disk->size(s->disk, f);
    p = n > WAL_SECTOR_BYTES && n <= (ssize_t)WAL_SEGMENT_MAX_BYTES ? malloc((size_t)n) : NULL;
    if (p && s->disk->pread(s->disk, f, p, (size_t)n, 0) == n)
        look(s, slice_of(p, (size_t)n / WAL_SECTOR_BYTES * WAL_SECTOR_BYTES));
    free(p);
    s->disk->close(s->disk, f);
    return 0;
}

void wal_salvage(struct disk *disk, const char *dir, struct wal_identity *ret)
{
    struct salvage s = {.disk = disk, .dir = dir, .ret = ret};

    *ret = (struct wal_identity){0};
    (void)disk->list(disk, dir, each, &s); /* no directory: nothing is known */
}
