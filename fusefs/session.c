/* SPDX-License-Identifier: Apache-2.0 */
/* session.c - the core thread's loop, and the mount it serves.
 *
 * libfuse 3.14 offers no way to say FUSE_PARALLEL_DIROPS, without which one LOOKUP that waits holds all
 * others of its directory in D state; nor DIRECT_IO_ALLOW_MMAP, nor HANDLE_KILLPRIV_V2. So the INIT reply
 * is amended on its way out, in the writev of a custom I/O (the flags the kernel offered are noted when
 * INIT comes in).
 */
#include "session.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_PER_TURN   16
#define REQUESTS_PER_TURN 64   /* then the other sources have their turn */
#define TIMER_WAIT_MAX_MS 1000 /* epoll counts no suspended time; look at the clock at least so often */

#ifndef FUSE_DIRECT_IO_ALLOW_MMAP
#define FUSE_DIRECT_IO_ALLOW_MMAP (1ULL << 36) /* linux 6.6 */
#endif
#ifndef FUSE_REQUEST_TIMEOUT
#define FUSE_REQUEST_TIMEOUT (1ULL << 42) /* linux 6.15; init_out then has request_timeout */
#endif

uint64_t session_now_ms(void)
{
    struct timespec ts;

    (void)clock_gettime(CLOCK_BOOTTIME, &ts); /* cannot fail on Linux */
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* ---- timers: a binary heap ---------------------------------------------------- */

static void heap_put(struct session *s, size_t pos, struct timer *t)
{
    s->heap[pos] = t;
    t->pos = pos;
}

static void heap_settle(struct session *s, size_t pos)
{
    struct timer *t = s->heap[pos];
    size_t child;

    for (; pos > 1 && s->heap[pos / 2]->at_ms > t->at_ms; pos /= 2)
        heap_put(s, pos, s->heap[pos / 2]);
    for (; (child = pos * 2) <= s->heap_len; pos = child) {
        if (child < s->heap_len && s->heap[child + 1]->at_ms < s->heap[child]->at_ms)
            child++;
        if (s->heap[child]->at_ms >= t->at_ms)
            break;
        heap_put(s, pos, s->heap[child]);
    }
    heap_put(s, pos, t);
}

void session_timer_clear(struct session *s, struct timer *t)
{
    size_t pos = t->pos;
    struct timer *last;

    if (pos == 0)
        return;
    assert(s->heap[pos] == t);
    last = s->heap[s->heap_len--];
    t->pos = 0;
    if (last != t) {
        s->heap[pos] = last;
        heap_settle(s, pos);
    }
}

void session_timer_set(struct session *s, struct timer *t, uint64_t after_ms)
{
    session_timer_clear(s, t);
    if (s->heap_len + 2 > s->heap_room) {
        size_t room = s->heap_room ? s->heap_room * 2 : 64;
        struct timer **heap = realloc(s->heap, room * sizeof(struct timer *));

        if (heap == NULL)
            abort(); /* a few bytes a timer: without them no deadline would hold */
        s->heap = heap;
        s->heap_room = room;
    }
    t->at_ms = session_now_ms() + after_ms;
    s->heap[++s->heap_len] = t;
    heap_settle(s, s->heap_len);
}

static void timers_fire(struct session *s)
{
    uint64_t now = session_now_ms();

    while (s->heap_len > 0 && s->heap[1]->at_ms <= now) {
        struct timer *t = s->heap[1];

        session_timer_clear(s, t);
        t->fire(t);
    }
}

static int timers_wait_ms(const struct session *s, int wait_ms)
{
    uint64_t now;

    if (s->heap_len == 0)
        return wait_ms;
    now = session_now_ms();
    if (s->heap[1]->at_ms <= now)
        return 0;
    if (wait_ms < 0 || wait_ms > TIMER_WAIT_MAX_MS)
        wait_ms = TIMER_WAIT_MAX_MS;
    return s->heap[1]->at_ms - now < (uint64_t)wait_ms ? (int)(s->heap[1]->at_ms - now) : wait_ms;
}

/* ---- sources -------------------------------------------------------------------- */

int session_watch(struct session *s, struct source *src)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = src};

    return epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, src->fd, &ev) == 0 ? 0 : -errno;
}

void session_unwatch(struct session *s, struct source *src)
{
    if (src->fd >= 0)
        (void)epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, src->fd, NULL); /* not watched: nothing to undo */
}

static void signals_ready(struct source *src)
{
    struct session *s = (struct session *)((char *)src - offsetof(struct session, signals));
    struct signalfd_siginfo info;

    while (read(src->fd, &info, sizeof info) == sizeof info) {
        s->signals_seen++;
        if (s->on_signal)
            s->on_signal(s);
        else
            s->stop = true;
    }
}

int session_init(struct session *s, void *owner)
{
    sigset_t set;
    int rc;

    *s = (struct session){.owner = owner, .epoll_fd = -1, .signals.fd = -1, .device.fd = -1};
    (void)signal(SIGPIPE, SIG_IGN); /* a lost peer is an errno */
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGHUP);
    if (sigprocmask(SIG_BLOCK, &set, NULL) != 0)
        return -errno;
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    s->signals = (struct source){signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), signals_ready};
    if (s->epoll_fd < 0 || s->signals.fd < 0)
        return -errno;
    rc = session_watch(s, &s->signals);
    return rc;
}

void session_fini(struct session *s)
{
    if (s->se) {
        session_unmount(s);
        fuse_session_destroy(s->se);
    }
    if (s->signals.fd >= 0)
        (void)close(s->signals.fd);
    if (s->epoll_fd >= 0)
        (void)close(s->epoll_fd);
    free(s->heap);
    s->se = NULL;
    s->heap = NULL;
}

/* ---- the device ------------------------------------------------------------------ */

static ssize_t device_read(int fd, void *buf, size_t buf_len, void *userdata)
{
    struct session *s = userdata;
    ssize_t n = read(fd, buf, buf_len);
    const struct fuse_in_header *h = buf;

    if (!s->initialised && n >= (ssize_t)(sizeof *h + offsetof(struct fuse_init_in, flags2)) &&
        h->opcode == FUSE_INIT) {
        const struct fuse_init_in *in = (const struct fuse_init_in *)(h + 1);

        s->init_unique = h->unique;
        s->init_flags = in->flags;
        s->init_flags2 = in->flags & FUSE_INIT_EXT && n >= (ssize_t)(sizeof *h + sizeof *in) ? in->flags2 : 0;
    }
    return n;
}

static void init_amend(const struct session *s, struct fuse_init_out *out)
{
    const uint32_t allow_mmap = (uint32_t)(FUSE_DIRECT_IO_ALLOW_MMAP >> 32);
    const uint32_t timeout = (uint32_t)(FUSE_REQUEST_TIMEOUT >> 32);

    out->flags |= s->init_flags & (FUSE_PARALLEL_DIROPS | FUSE_HANDLE_KILLPRIV_V2);
    if (s->init_flags2 & allow_mmap) {
        out->flags |= FUSE_INIT_EXT;
        out->flags2 |= allow_mmap;
    }
    if (s->init_flags2 & timeout && s->request_timeout_s) {
        uint16_t seconds = s->request_timeout_s < UINT16_MAX ? (uint16_t)s->request_timeout_s : UINT16_MAX;

        out->flags |= FUSE_INIT_EXT;
        out->flags2 |= timeout;
        memcpy(&out->unused[1], &seconds,
               sizeof seconds); /* behind max_stack_depth; unknown to older headers */
    }
}

/* Any thread: notify threads send invalidations through it. Only the core thread sees init_unique set. */
static ssize_t device_writev(int fd, struct iovec *iov, int count, void *userdata)
{
    struct session *s = userdata;
    const struct fuse_out_header *h = iov[0].iov_base;

    if (!s->initialised && h->unique != 0 && h->unique == s->init_unique && count == 2 && h->error == 0 &&
        iov[1].iov_len >= offsetof(struct fuse_init_out, unused)) {
        init_amend(s, iov[1].iov_base);
        s->initialised = true;
    }
    return writev(fd, iov, count);
}

static void device_ready(struct source *src)
{
    static struct fuse_buf buf; /* libfuse allocates it once; one device a process */
    struct session *s = (struct session *)((char *)src - offsetof(struct session, device));
    bool was_ready = s->initialised;

    for (int i = 0; i < REQUESTS_PER_TURN && !fuse_session_exited(s->se); i++) {
        int n = fuse_session_receive_buf(s->se, &buf);

        if (n <= 0)
            break; /* -EAGAIN, -EINTR; 0 with exited: unmounted */
        fuse_session_process_buf(s->se, &buf);
    }
    if (!was_ready && s->initialised && s->on_ready)
        s->on_ready(s);
    if (fuse_session_exited(s->se)) {
        session_unwatch(s, &s->device);
        s->unmounted = true;
        s->stop = true;
    }
}

static unsigned sysctl_read(const char *path)
{
    char text[32] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return 0; /* before 6.15 there is no such limit */
    if (read(fd, text, sizeof text - 1) < 0)
        text[0] = 0;
    (void)close(fd);
    return (unsigned)strtoul(text, NULL, 10);
}

/* The mount's st_dev as the kernel lists it: stat() would be a request to ourselves. */
static dev_t mount_dev(const char *mountpoint)
{
    FILE *f = fopen("/proc/self/mountinfo", "re");
    char *line = NULL, *path = NULL;
    size_t room = 0;
    dev_t dev = 0;

    while (f && getline(&line, &room, f) > 0) {
        unsigned major_no, minor_no;
        char type[64];

        free(path);
        path = NULL;
        if (sscanf(line, "%*d %*d %u:%u %*s %ms", &major_no, &minor_no, &path) != 3)
            continue;
        for (char *p = path, *q = path;; p++, q++) { /* \040 and friends */
            if (p[0] == '\\' && p[1] && p[2] && p[3]) {
                *q = (char)((p[1] - '0') * 64 + (p[2] - '0') * 8 + (p[3] - '0'));
                p += 3;
            } else
                *q = *p;
            if (*p == 0)
                break;
        }
        const char *dash = strstr(line, " - ");

        if (dash && sscanf(dash, " - %63s", type) == 1 && strncmp(type, "fuse", 4) == 0 &&
            strcmp(path, mountpoint) == 0)
            dev = makedev(major_no, minor_no); /* the last one is on top */
    }
    free(path);
    free(line);
    if (f)
        (void)fclose(f);
    return dev;
}

int session_mount(struct session *s, const struct fuse_lowlevel_ops *ops, size_t ops_size,
                  const char *fuse_options, const char *mountpoint)
{
    static const struct fuse_custom_io io = {.writev = device_writev, .read = device_read};
    char *argv[] = {(char *)"cairnfs", (char *)"-o", (char *)fuse_options, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, argv);
    int fd, rc;

    s->se = fuse_session_new(&args, ops, ops_size, s);
    if (s->se == NULL)
        return -EINVAL;
    if (fuse_session_mount(s->se, mountpoint) != 0) {
        fuse_session_destroy(s->se);
        s->se = NULL;
        return -EPERM;
    }
    fd = fuse_session_fd(s->se);
    rc = fuse_session_custom_io(s->se, &io,
                                fd); /* same descriptor: only the way to read and write it changes */
    if (rc == 0 && (fcntl(fd, F_SETFL, O_NONBLOCK) != 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) != 0))
        rc = -errno;
    s->device = (struct source){fd, device_ready};
    if (rc == 0)
        rc = session_watch(s, &s->device);
    s->dev = mount_dev(mountpoint);
    unsigned limit = sysctl_read("/proc/sys/fs/fuse/default_request_timeout");
    unsigned max = sysctl_read("/proc/sys/fs/fuse/max_request_timeout");

    if (limit && limit < s->request_timeout_s)
        s->request_timeout_s = limit;
    if (max && max < s->request_timeout_s)
        s->request_timeout_s = max;
    return rc;
}

void session_unmount(struct session *s)
{
    if (s->se && !s->unmounted) {
        s->unmounted = true;
        fuse_session_unmount(s->se);
    }
}

void session_turn(struct session *s, int wait_ms)
{
    struct epoll_event events[EVENTS_PER_TURN];
    int n;

    if (s->before_sleep)
        s->before_sleep(s);
    n = epoll_wait(s->epoll_fd, events, EVENTS_PER_TURN, timers_wait_ms(s, wait_ms));
    for (int i = 0; i < n; i++) {
        struct source *src = events[i].data.ptr;

        src->ready(src);
    }
    timers_fire(s);
}

void session_run(struct session *s)
{
    while (!s->stop)
        session_turn(s, -1);
}

/* ---- notifications ----------------------------------------------------------------- */

int session_inval_inode(struct session *s, uint64_t nodeid, int64_t offset)
{
    return fuse_lowlevel_notify_inval_inode(s->se, nodeid, offset, 0);
}

int session_inval_entry(struct session *s, uint64_t parent, const char *name, size_t name_len)
{
    return fuse_lowlevel_notify_inval_entry(s->se, parent, name, name_len);
}

int session_expire_entry(struct session *s, uint64_t parent, const char *name, size_t name_len)
{
    int rc = fuse_lowlevel_notify_expire_entry(s->se, parent, name, name_len, FUSE_LL_EXPIRE_ONLY);

    return rc == -ENOSYS ? session_inval_entry(s, parent, name, name_len) : rc; /* before Linux 6.2 */
}

/* Who may not unmount has fusermount3 do it, which made the mount for him. */
static int detach_by_helper(const char *mountpoint)
{
    char *argv[] = {(char *)"fusermount3", (char *)"-u",       (char *)"-z", (char *)"-q",
                    (char *)"--",          (char *)mountpoint, NULL};
    int status, rc;
    pid_t pid;

    rc = posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ);
    if (rc)
        return -rc;
    if (waitpid(pid, &status, 0) != pid)
        return -errno;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EPERM;
}

int session_detach_dead(const char *mountpoint)
{
    struct stat st;

    if (stat(mountpoint, &st) == 0 || errno != ENOTCONN)
        return 0;
    if (umount2(mountpoint, MNT_DETACH) == 0)
        return 0;
    return errno == EPERM ? detach_by_helper(mountpoint) : -errno;
}
