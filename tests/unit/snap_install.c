/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: installing a snapshot is one step. A member is cut off at each call by which the installation changes the disk
 * (write, sync, rename, mkdir, unlink; LMDB's too), by a kill and by a power cut that takes what was not synced: bytes
 * of files, and names. What a restart then finds is the old state whole or the new state whole, base and log of it
 * fit each other, and the installation then succeeds. Also: in the running member the new state takes the place of the
 * old one, entries after it are applied, readers and a copy of base under way do no harm, leases, alarms and counts are
 * the sender's, and an older snapshot is never put in. SEED picks the entries. */
#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include "apply_entries.h"
#include "daemon/log.h"
#include "daemon/snap.h"
#include "daemon/snap_install.h"

enum { OLD = 50, STORED = 60, SNAP = 300, LAST = 330, SEGMENT_BYTES = 256 << 10 };

static uint64_t seed;

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

/* ---- the stream ------------------------------------------------------------------------------------------ */

static struct rig sender;
static struct slice chunks[1024];
static size_t n_chunks;
static struct snap_head head;
static char *old_dump, *new_dump, *last_dump;

static void sender_new(void)
{
    uint64_t s = seed;
    struct snap_export *x;
    struct slice c;
    int err;

    rig_new(&sender);
    for (int i = 1; i <= LAST; i++) {
        entry(&sender, &s, false);
        if (i == OLD)
            old_dump = strdup(rig_dump(&sender, 0));
        if (i != SNAP)
            continue;
        new_dump = strdup(rig_dump(&sender, 0));
        rig_flush(&sender);
        REQUIRE(snap_export_new(sender.apply, sender.store, &sender.clock.clock, &x) == 0);
        head = *snap_export_head(x);
        while ((err = snap_export_next(x, &c)) == 0) {
            uint8_t *p = malloc(c.len);

            REQUIRE(n_chunks < 1024);
            memcpy(p, c.ptr, c.len);
            chunks[n_chunks++] = slice_of(p, c.len);
        }
        REQUIRE(err == 1);
        snap_export_free(x);
    }
    last_dump = strdup(rig_dump(&sender, 0));
}

/* ---- a member ---------------------------------------------------------------------------------------------- */

struct member_rig {
    struct rig rig;
    struct datadir dir;
    struct disk *disk;
    struct wal *wal;
    struct wal_state state;
};

static struct wal_options wal_options(struct member_rig *m, const char *name)
{
    return (struct wal_options){.disk = m->disk, .dir = name, .segment_bytes = SEGMENT_BYTES, .cluster_id = 1,
                                .member_id = RIG_MEMBER};
}

static void member_open(struct member_rig *m, const char *path, bool apply_log)
{
    char base[DATADIR_PATH_BYTES], name[32], why[512];
    struct wal_options o;

    REQUIRE(datadir_open(&m->dir, path, "") == 0);
    REQUIRE(disk_real_new(m->dir.wal_root, &m->disk) == 0);
    datadir_base_path(&m->dir, m->dir.base, base);
    m->rig = (struct rig){.clock = {{rig_now_ms, rig_now_us, rig_wall_ms}, 1000000}, .quota = -1, .map_bytes = UINT64_C(1) << 32};
    REQUIRE(strlen(base) < sizeof m->rig.dir);
    memcpy(m->rig.dir, base, strlen(base) + 1);
    snprintf(name, sizeof name, "wal-%u", m->dir.wal);
    o = wal_options(m, name);
    REQUIRE(wal_open(&o, &m->wal, &m->state, why, sizeof why) == 0);
    rig_open(&m->rig);
    m->rig.apply->o.datadir = &m->dir;
    m->rig.apply->o.base = rig_base_options(&m->rig);
    m->rig.apply->o.wal = m->wal;
    m->rig.last = m->rig.apply->applied;
    if (apply_log) {
        m->rig.last = m->state.commit;
        apply_commit(m->rig.apply, m->rig.last);
        rig_run(&m->rig);
    }
}

static void member_close(struct member_rig *m)
{
    rig_close(&m->rig);
    wal_close(m->wal);
    disk_real_free(m->disk);
    datadir_close(&m->dir);
}

/* The log holds STORED entries, base the first OLD. */
static void member_make(const char *path)
{
    uint8_t bytes[RAFTCONF_BYTES_MAX];
    struct raft_conf conf = {.voters = {.n = 1, .ids = {RIG_MEMBER}}};
    struct member_rig m;
    struct wal_options o;
    char base[DATADIR_PATH_BYTES], why[512];
    struct base_options bo = {.map_bytes = UINT64_C(1) << 32, .readers_max = 126, .path = base};

    REQUIRE(datadir_open(&m.dir, path, "") == 0);
    REQUIRE(disk_real_new(m.dir.wal_root, &m.disk) == 0);
    REQUIRE(datadir_make_base(&m.dir, 1, base) == 0);
    REQUIRE(base_create(&bo, 1, RIG_MEMBER, raftconf_encode(&conf, bytes)) == 0);
    o = wal_options(&m, "wal-1");
    REQUIRE(wal_create(&o, 0, 0, &(struct wal_state){.term = 1}) == 0);
    REQUIRE(datadir_commit(&m.dir) == 0);
    REQUIRE(wal_open(&o, &m.wal, &m.state, why, sizeof why) == 0);
    REQUIRE(wal_append(m.wal, &sender.log[1], STORED, NULL, OLD) == 0 && wal_sync(m.wal) == 0);
    wal_close(m.wal);
    disk_real_free(m.disk);
    datadir_close(&m.dir);
    member_open(&m, path, true);
    rig_flush(&m.rig);
    CHECK(strcmp(rig_dump(&m.rig, 0), old_dump) == 0);
    member_close(&m);
}

/* ---- installing ---------------------------------------------------------------------------------------------- */

static void receive(struct member_rig *m)
{
    char path[DATADIR_PATH_BYTES];
    struct snap_import_options o = {.path = path, .base = rig_base_options(&m->rig), .cluster_id = 1,
                                    .member_id = RIG_MEMBER};
    struct snap_import *im;
    int err = 0;

    REQUIRE(datadir_make_incoming(&m->dir, path) == 0);
    REQUIRE(snap_import_new(&o, &im) == 0);
    for (size_t i = 0; i < n_chunks && err == 0; i++)
        err = snap_import_feed(im, chunks[i]);
    REQUIRE(err == 1);
    snap_import_free(im);
}

static int install(struct member_rig *m)
{
    struct snap_place place = {.dir = &m->dir, .disk = m->disk, .wal = m->wal, .base = rig_base_options(&m->rig),
                               .wal_options = wal_options(m, NULL)};

    place.base.no_sync = false;
    return snap_install(&place, m->rig.apply, head.index, head.term, &(struct wal_state){.term = 9, .vote = 4, .commit = head.index});
}

static void settle(struct member_rig *m)
{
    for (int i = 0; i < 1000 && atomic_load(&m->rig.apply->installing); i++) {
        (void)apply_step(m->rig.apply);
        (void)apply_flush_step(m->rig.apply);
        m->rig.clock.ms += 10;
    }
    CHECK(!atomic_load(&m->rig.apply->installing));
}

/* The entries after the snapshot: appended, then applied from the log. */
static void go_on(struct member_rig *m)
{
    struct rig *r = &m->rig;

    REQUIRE(wal_append(m->wal, &sender.log[SNAP + 1], LAST - SNAP, NULL, LAST) == 0 && wal_sync(m->wal) == 0);
    r->last = LAST;
    apply_commit(r->apply, LAST);
    rig_run(r);
}

static void check_new(struct member_rig *m)
{
    CHECK(m->state.first_index == SNAP && m->state.term == 9 && m->state.vote == 4);
    CHECK(m->rig.apply->compact_rev <= sender.apply->compact_rev);
}

/* ---- tests ------------------------------------------------------------------------------------------------------ */

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

    member_open(&m, work, true);
    is_new = m.rig.apply->applied >= SNAP;
    if (is_new) {
        check_new(&m);
        CHECK(strcmp(rig_dump(&m.rig, 0), m.rig.apply->applied == LAST ? last_dump : new_dump) == 0);
    } else {
        CHECK(m.rig.apply->applied == OLD && m.state.last_index == STORED && m.state.term == 1);
        CHECK(strcmp(rig_dump(&m.rig, 0), old_dump) == 0);
        (void)apply_flush_step(m.rig.apply); /* tidies up */
        receive(&m);
        CHECK(install(&m) == 0);
        settle(&m);
        CHECK(strcmp(rig_dump(&m.rig, 0), new_dump) == 0);
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

            member_open(&m, work, true);
            world.power = power;
            world.cut_at = cut;
            receive(&m);
            if (install(&m) != 0)
                _exit(1);
            settle(&m);
            go_on(&m);
            for (int i = 0; i < 20; i++) { /* the old state is removed */
                m.rig.clock.ms += 1000;
                (void)apply_step(m.rig.apply);
                (void)apply_flush_step(m.rig.apply);
            }
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
    member_open(&m, work, true);
    sl = slot_new(m.rig.store);
    REQUIRE(view_open(m.rig.store, sl, &v) == 0); /* somebody reads the old state all the while */
    m.rig.clock.ms += 10000;
    receive(&m);
    REQUIRE(install(&m) == 0);
    CHECK(m.rig.apply->applied == OLD);
    settle(&m);
    CHECK(v.rev < m.rig.apply->rev && m.rig.apply->applied == SNAP && store_applied(m.rig.store) == SNAP);
    CHECK(m.rig.apply->hash == head.state_hash && m.rig.apply->key_count == head.key_count);
    CHECK(strcmp(rig_dump(&m.rig, 0), new_dump) == 0);
    CHECK(m.rig.fatal == 0);
    view_close(&v);
    slot_free(m.rig.store, sl);
    go_on(&m);
    CHECK(strcmp(rig_dump(&m.rig, 0), last_dump) == 0);
    CHECK(m.rig.apply->hash == sender.apply->hash && lease_count(m.rig.leases) == lease_count(sender.leases));
    for (int i = 0; i < 20; i++) {
        m.rig.clock.ms += 1000;
        (void)apply_step(m.rig.apply);
        (void)apply_flush_step(m.rig.apply);
    }
    snprintf(path, sizeof path, "%s/base-1", work);
    CHECK(access(path, F_OK) < 0);
    snprintf(path, sizeof path, "%s/wal-1", work);
    CHECK(access(path, F_OK) < 0);
    snprintf(path, sizeof path, "%s/base-%u", work, m.dir.base);
    CHECK(access(path, F_OK) == 0);
    /* The same again is an older state now. */
    receive(&m);
    REQUIRE(install(&m) == 0);
    for (int i = 0; i < 50 && m.rig.fatal == 0; i++) {
        (void)apply_step(m.rig.apply);
        (void)apply_flush_step(m.rig.apply);
    }
    CHECK(m.rig.fatal == 1 && strcmp(rig_dump(&m.rig, 0), last_dump) == 0);
    member_close(&m);
}

/* A frozen delta that is just to be flushed, and a copy that was asked for: both are of a state that is over. */
static void flush_under_way(void)
{
    struct member_rig m;

    copy_tree(template, work);
    member_open(&m, work, true);
    REQUIRE(wal_append(m.wal, NULL, 0, NULL, STORED) == 0 && wal_sync(m.wal) == 0);
    m.rig.last = STORED;
    apply_commit(m.rig.apply, STORED);
    rig_run(&m.rig);
    m.rig.apply->freeze_now = true;
    (void)apply_step(m.rig.apply); /* frozen, handed over */
    CHECK(store_frozen(m.rig.store) != NULL);
    receive(&m);
    REQUIRE(install(&m) == 0);
    settle(&m);
    CHECK(store_frozen(m.rig.store) == NULL);
    CHECK(strcmp(rig_dump(&m.rig, 0), new_dump) == 0);
    go_on(&m);
    rig_flush(&m.rig);
    CHECK(strcmp(rig_dump(&m.rig, 0), last_dump) == 0);
    member_close(&m);
    member_open(&m, work, true);
    CHECK(strcmp(rig_dump(&m.rig, 0), last_dump) == 0);
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
    member_make(template);
    TEST(running_member);
    TEST(flush_under_way);
    TEST(killed_anywhere);
    TEST(power_cut_anywhere);
    for (size_t i = 0; i < n_chunks; i++)
        free((void *)(uintptr_t)chunks[i].ptr);
    free(old_dump);
    free(new_dump);
    free(last_dump);
    rig_free(&sender);
    remove_tree(root);
    return tap_done();
}
