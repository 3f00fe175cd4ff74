/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: installing a snapshot is one step. A member is cut off at each call by which the installation changes the
 * disk (write, sync, rename, mkdir, unlink; LMDB's too), by a kill and by a power cut that takes what was not synced:
 * bytes of files, and names. What a restart then finds is the old state whole or the new state whole, base and log of
 * it fit each other, and the installation then succeeds. Also: in the running member the new state takes the place of
 * the old one, entries after it are applied, readers and a copy of base under way do no harm, leases, alarms and counts
 * are the sender's, and an older snapshot is never put in. SEED picks the entries. */
#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum { OLD = 50, STORED = 60, SNAP = 300, LAST = 330, SEGMENT_BYTES = 256 << 10 };
#include "member_rig.h"

/* ---- the disk, seen from outside: calls are counted, one of them is the last ---------------------------- */

enum { FDS = 256 };
/* A descriptor that is closed and used again for another file would carry its unsynced range along: nothing here closes
 * a file it has written to without a sync. */
static struct {
    long calls, cut_at;      /* 0: never */
    bool power;              /* what is not synced goes */
    off_t from_at[FDS], to_at[FDS]; /* written through this descriptor since the last sync of its file; 0, 0: nothing */
    char from[512], to[512]; /* a rename that no sync of a directory covers yet */
    char old_current[512];   /* what it replaced, if it was CURRENT */
    ssize_t old_current_n;
} world;

static void name_of(int fd, char path[512])
{
    char link[64];
    ssize_t n;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, 511);
    path[n < 0 ? 0 : n] = 0;
}

static void lose(void)
{
    for (int fd = 0; fd < FDS; fd++) {
        for (off_t at = world.from_at[fd]; at < world.to_at[fd]; at++)
            (void)syscall(SYS_pwrite64, fd, "", 1, at);
    }
    if (world.to[0] && world.old_current_n >= 0) {
        int fd = open(world.to, O_WRONLY | O_TRUNC | O_CREAT, 0600);

        (void)!syscall(SYS_write, fd, world.old_current, (size_t)world.old_current_n);
        close(fd);
    } else if (world.to[0]) {
        (void)syscall(SYS_rename, world.to, world.from);
    }
}

static void step(void)
{
    if (world.cut_at == 0 || ++world.calls != world.cut_at)
        return;
    if (world.power)
        lose();
    _exit(99);
}

static void wrote(int fd, off_t at, size_t n)
{
    int flags = fcntl(fd, F_GETFL);

    if (fd < 0 || fd >= FDS || (flags & O_DSYNC)) /* LMDB's meta pages go out so */
        return;
    if (world.to_at[fd] == 0 || at < world.from_at[fd])
        world.from_at[fd] = at;
    if (at + (off_t)n > world.to_at[fd])
        world.to_at[fd] = at + (off_t)n;
}

/* A sync is of the file, not of the descriptor. */
static void synced(int fd)
{
    struct stat st, other;

    if (fstat(fd, &st) < 0)
        return;
    for (int i = 0; i < FDS; i++)
        if (world.to_at[i] && fstat(i, &other) == 0 && other.st_ino == st.st_ino && other.st_dev == st.st_dev)
            world.from_at[i] = world.to_at[i] = 0;
    if (S_ISDIR(st.st_mode))
        world.to[0] = 0;
}

int fsync(int fd);
int fdatasync(int fd);
ssize_t pwrite(int fd, const void *p, size_t n, off_t at);
ssize_t pwrite64(int fd, const void *p, size_t n, off_t at);
ssize_t write(int fd, const void *p, size_t n);
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at);
int renameat(int from_fd, const char *from, int to_fd, const char *to);
int mkdir(const char *path, mode_t mode);
int mkdirat(int fd, const char *path, mode_t mode);
int unlinkat(int fd, const char *path, int flags);

int fsync(int fd)
{
    int rc;

    step();
    rc = (int)syscall(SYS_fsync, fd);
    synced(fd);
    return rc;
}

int fdatasync(int fd)
{
    int rc;

    step();
    rc = (int)syscall(SYS_fdatasync, fd);
    synced(fd);
    return rc;
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t at)
{
    step();
    wrote(fd, at, n);
    return syscall(SYS_pwrite64, fd, p, n, at);
}

ssize_t pwrite64(int fd, const void *p, size_t n, off_t at)
{
    return pwrite(fd, p, n, at);
}

ssize_t write(int fd, const void *p, size_t n)
{
    if (fd > 2) {
        step();
        wrote(fd, lseek(fd, 0, SEEK_CUR), n);
    }
    return syscall(SYS_write, fd, p, n);
}

ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at)
{
    size_t bytes = 0;

    step();
    for (int i = 0; i < n; i++)
        bytes += v[i].iov_len;
    wrote(fd, at, bytes);
    return syscall(SYS_pwritev, fd, v, n, at, 0);
}

int renameat(int from_fd, const char *from, int to_fd, const char *to)
{
    char dir[512];
    int fd;

    step();
    world.to[0] = 0; /* an older one was covered, or this test would have to keep both */
    name_of(to_fd, dir);
    fd = openat(to_fd, to, O_RDONLY);
    world.old_current_n = fd < 0 ? -1 : read(fd, world.old_current, sizeof world.old_current);
    if (fd >= 0)
        close(fd);
    snprintf(world.from, sizeof world.from, "%.250s/%.250s", dir, from);
    snprintf(world.to, sizeof world.to, "%.250s/%.250s", dir, to);
    return (int)syscall(SYS_renameat, from_fd, from, to_fd, to);
}

int mkdir(const char *path, mode_t mode)
{
    step();
    return (int)syscall(SYS_mkdir, path, mode);
}

int mkdirat(int fd, const char *path, mode_t mode)
{
    step();
    return (int)syscall(SYS_mkdirat, fd, path, mode);
}

int unlinkat(int fd, const char *path, int flags)
{
    step();
    return (int)syscall(SYS_unlinkat, fd, path, flags);
}

/* ---- tests ------------------------------------------------------------------------------------------------------ */

/* The entries after the snapshot: appended, then applied from the log. */
static void go_on(struct member_rig *m)
{
    member_append(m, LAST, LAST);
    member_apply(m, LAST);
}

static bool is_at(struct member_rig *m, uint64_t index)
{
    return m->rig.apply->applied == index && member_is_right(m);
}

static void check_new(struct member_rig *m)
{
    CHECK(m->boot.wal_state.first_index == SNAP && m->boot.wal_state.term == NEW_TERM &&
          m->boot.wal_state.vote == NEW_VOTE);
    CHECK(m->rig.apply->compact_rev <= sender.apply->compact_rev);
}

static void remove_tree(const char *path)
{
    char cmd[300];

    snprintf(cmd, sizeof cmd, "rm -rf %s", path);
    REQUIRE(system(cmd) == 0);
}

static void copy_tree(const char *from, const char *to)
{
    char cmd[600];

    remove_tree(to);
    snprintf(cmd, sizeof cmd, "cp -a %s %s", from, to);
    REQUIRE(system(cmd) == 0);
}

static char root[64], template[96], work[96];

/* What a restart finds; true: the new state. */
static bool restart(long cut)
{
    struct member_rig m;
    bool is_new;

    member_open(&m, work, "", true);
    is_new = m.rig.apply->applied >= SNAP;
    if (is_new) {
        check_new(&m);
        CHECK(member_is_right(&m));
    } else {
        CHECK(is_at(&m, OLD) && m.boot.wal_state.last_index == STORED && m.boot.wal_state.term == 1);
        (void)apply_flush_step(m.rig.apply); /* tidies up */
        member_receive(&m, NULL);
        CHECK(member_install(&m) == 0);
        member_settle(&m);
        CHECK(is_at(&m, SNAP));
    }
    if (tap_bad)
        printf("# cut at call %ld\n", cut);
    member_close(&m);
    return is_new;
}

static void cut_everywhere(bool power)
{
    long cut = 1, found_new = 0;
    int status = 0;

    do {
        pid_t pid;

        copy_tree(template, work);
        fflush(stdout);
        pid = fork();
        if (pid == 0) {
            struct member_rig m;

            member_open(&m, work, "", true);
            world.power = power;
            world.cut_at = cut;
            member_receive(&m, NULL);
            if (member_install(&m) != 0)
                _exit(1);
            member_settle(&m);
            go_on(&m);
            member_tidy(&m); /* the old state is removed */
            _exit(0);
        }
        REQUIRE(waitpid(pid, &status, 0) == pid);
        REQUIRE(WIFEXITED(status) && (WEXITSTATUS(status) == 99 || WEXITSTATUS(status) == 0));
        found_new += restart(cut);
        cut++;
    } while (WEXITSTATUS(status) == 99 && tap_bad == 0);
    printf("# %ld places, %ld after the commit\n", cut - 1, found_new);
    CHECK(found_new > 3 && cut - found_new > 10);
}

static void killed_anywhere(void)
{
    cut_everywhere(false);
}

static void power_cut_anywhere(void)
{
    cut_everywhere(true);
}

static void running_member(void)
{
    struct member_rig m;
    struct slot *sl;
    struct view v;
    char path[300];

    copy_tree(template, work);
    member_open(&m, work, "", true);
    sl = slot_new(m.rig.store);
    REQUIRE(view_open(m.rig.store, sl, &v) == 0); /* somebody reads the old state all the while */
    m.rig.clock.ms += 10000;
    member_receive(&m, NULL);
    REQUIRE(member_install(&m) == 0);
    CHECK(m.rig.apply->applied == OLD);
    member_settle(&m);
    CHECK(v.rev < m.rig.apply->rev && m.rig.apply->applied == SNAP && store_applied(m.rig.store) == SNAP);
    CHECK(m.rig.apply->hash == head.state_hash && m.rig.apply->key_count == head.key_count);
    CHECK(is_at(&m, SNAP));
    CHECK(m.rig.fatal == 0);
    view_close(&v);
    slot_free(m.rig.store, sl);
    go_on(&m);
    CHECK(is_at(&m, LAST));
    CHECK(m.rig.apply->hash == sender.apply->hash && lease_count(m.rig.leases) == lease_count(sender.leases));
    member_tidy(&m);
    snprintf(path, sizeof path, "%s/base-1", work);
    CHECK(access(path, F_OK) < 0);
    snprintf(path, sizeof path, "%s/wal-1", work);
    CHECK(access(path, F_OK) < 0);
    snprintf(path, sizeof path, "%s/base-%u", work, m.boot.dir.base);
    CHECK(access(path, F_OK) == 0);
    /* The same again is an older state now. */
    member_receive(&m, NULL);
    REQUIRE(member_install(&m) == 0);
    for (int i = 0; i < 50 && m.rig.fatal == 0; i++) {
        (void)apply_step(m.rig.apply);
        (void)apply_flush_step(m.rig.apply);
    }
    CHECK(m.rig.fatal == 1 && is_at(&m, LAST));
    member_close(&m);
}

/* A frozen delta that is just to be flushed, and a copy that was asked for: both are of a state that is over. */
static void flush_under_way(void)
{
    struct member_rig m;

    copy_tree(template, work);
    member_open(&m, work, "", true);
    REQUIRE(wal_append(m.boot.wal, NULL, 0, NULL, STORED) == 0 && wal_sync(m.boot.wal) == 0);
    m.rig.last = STORED;
    apply_commit(m.rig.apply, STORED);
    rig_run(&m.rig);
    m.rig.apply->freeze_now = true;
    (void)apply_step(m.rig.apply); /* frozen, handed over */
    CHECK(store_frozen(m.rig.store) != NULL);
    member_receive(&m, NULL);
    REQUIRE(member_install(&m) == 0);
    member_settle(&m);
    CHECK(store_frozen(m.rig.store) == NULL);
    CHECK(is_at(&m, SNAP));
    go_on(&m);
    rig_flush(&m.rig);
    CHECK(is_at(&m, LAST));
    member_close(&m);
    member_open(&m, work, "", true);
    CHECK(is_at(&m, LAST));
    member_close(&m);
}

int main(void)
{
    const char *text = getenv("SEED");

    seed = text ? strtoull(text, NULL, 0) : (uint64_t)getpid() * UINT64_C(0x9e3779b97f4a7c15) + 1;
    printf("# SEED=%llu\n", (unsigned long long)seed);
    arena_init(&ar, 64 << 20, NULL, 0);
    log_set_level(LOG_LEVEL_WARN);
    snprintf(root, sizeof root, "/tmp/cairn-inst-XXXXXX");
    REQUIRE(mkdtemp(root) != NULL);
    snprintf(template, sizeof template, "%s/t", root);
    snprintf(work, sizeof work, "%s/w", root);
    sender_new();
    member_make(template, "");
    TEST(running_member);
    TEST(flush_under_way);
    TEST(killed_anywhere);
    TEST(power_cut_anywhere);
    sender_free();
    remove_tree(root);
    return tap_done();
}
