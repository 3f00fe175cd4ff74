/* SPDX-License-Identifier: Apache-2.0 */
/* handle_seen.c - conflict=fail: which revision of a file a process last read (see handle.h).
 *
 * A table of fixed size that forgets: an entry that was overwritten makes the next rewrite compare with the
 * revision at its open, as for a process that never read the file. A process is its id and the time it
 * started, so that the id's next owner does not inherit what the last one read.
 */
#include <stdio.h>
#include <string.h>

#include "handle.h"
#include "ops.h"

/* In clock ticks since boot; 0: it is gone, or in another pid namespace. */
static uint64_t process_start(pid_t pid)
{
    char path[48], line[512], *p;
    unsigned long long start = 0;
    FILE *f;

    (void)snprintf(path, sizeof path, "/proc/%d/stat", pid);
    f = fopen(path, "re");
    if (f == NULL)
        return 0;
    if (fgets(line, sizeof line, f) && (p = strrchr(line, ')')) != NULL) /* the name may hold anything */
        (void)sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
                     &start);
    (void)fclose(f);
    return start;
}

static struct seen *slot(struct fs *fs, const struct node *n, pid_t tgid)
{
    uint64_t at[2] = {n->nodeid, (uint64_t)tgid};

    return &fs->seen[value_hash(slice_of(at, sizeof at)) % SEEN_MAX];
}

void seen_note(struct fs *fs, const struct node *n, pid_t tid, int64_t rev)
{
    pid_t tgid = fs->opt.conflict_fail ? thread_group(tid) : 0;

    if (tgid)
        *slot(fs, n, tgid) = (struct seen){n->nodeid, process_start(tgid), tgid, rev};
}

int64_t seen_rev(struct fs *fs, const struct node *n, pid_t tid, int64_t otherwise)
{
    pid_t tgid = fs->opt.conflict_fail ? thread_group(tid) : 0;
    const struct seen *s = tgid ? slot(fs, n, tgid) : NULL;

    return s && s->nodeid == n->nodeid && s->tgid == tgid && s->start == process_start(tgid) ? s->rev
                                                                                           : otherwise;
}
