/* SPDX-License-Identifier: Apache-2.0 */
/* cluster_disk.c - a slow disk, and a full one.
 *
 * A sync of a member (fsync, fdatasync, msync, sync_file_range) is held by the kernel until a thread of ours says that
 * it may go on: seccomp's user notification. So only the thread that syncs waits, as on a slow disk, and it works with
 * any program, also one that calls the kernel without libc. The system call itself is then done as asked.
 *
 * A full disk: a file takes all that is left of the member's tmpfs.
 */
#include "cluster_disk.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

enum { HELD_MAX = 256, LOOK_MS = 2 };

/* ---- in the child ---------------------------------------------------------------------------------- */

static int filter_syncs(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_fdatasync, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_fsync, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_msync, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_sync_file_range, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    unsigned long flags = SECCOMP_FILTER_FLAG_NEW_LISTENER;
    int fd;

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return -1;
    /* A signal must not start a held call anew; kernels before 5.19 do not know how. */
    fd = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &program);
    return fd >= 0 ? fd : (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

bool disk_watch_me(int sock)
{
    char control[CMSG_SPACE(sizeof(int))] = {0}, byte = 0;
    struct iovec iov = {&byte, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    int fd = filter_syncs();

    if (fd < 0)
        return false;
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    return sendmsg(sock, &m, MSG_NOSIGNAL) == 1;
}

bool disk_watch_works(void)
{
    pid_t pid = fork(); /* a filter cannot be taken off again, so a child tries it; no threads yet */
    int status;

    if (pid == 0)
        _exit(filter_syncs() < 0);
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

/* ---- in the harness -------------------------------------------------------------------------------- */

static int receive_fd(int sock)
{
    char control[CMSG_SPACE(sizeof(int))], byte;
    struct iovec iov = {&byte, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c;
    int fd = -1;

    if (recvmsg(sock, &m, MSG_CMSG_CLOEXEC) == 1 && (c = CMSG_FIRSTHDR(&m)) != NULL && c->cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(c), sizeof fd);
    return fd;
}

struct held {
    uint64_t id;
    int64_t since_ns;
};

static void let_go(int fd, uint64_t id)
{
    struct seccomp_notif_resp r = {.id = id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};

    (void)ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, &r); /* it fails if the caller is dead, and then nothing is left to do */
}

static void release_due(struct member *m, struct held *held, size_t *n)
{
    int64_t delay_us = atomic_load(&m->sync_delay_us), now = now_ns();
    size_t kept = 0;

    for (size_t i = 0; i < *n; i++) {
        if (delay_us == INT64_MAX || (now - held[i].since_ns) / 1000 < delay_us)
            held[kept++] = held[i];
        else
            let_go(m->notify, held[i].id);
    }
    *n = kept;
}

static void *disk_run(void *arg)
{
    struct member *m = arg;
    struct held held[HELD_MAX];
    size_t n = 0;

    for (;;) {
        struct pollfd p = {.fd = m->notify, .events = POLLIN};
        struct seccomp_notif call = {0};

        if (poll(&p, 1, n ? LOOK_MS : -1) < 0 && errno != EINTR)
            break;
        if ((p.revents & POLLIN) && ioctl(m->notify, SECCOMP_IOCTL_NOTIF_RECV, &call) == 0) {
            if (atomic_load(&m->sync_delay_us) == 0 || n == HELD_MAX) {
                let_go(m->notify, call.id);
            } else {
                held[n++] = (struct held){call.id, now_ns()};
                atomic_fetch_add(&m->syncs_delayed, 1);
            }
        } else if (p.revents & (POLLHUP | POLLERR)) {
            break; /* the process has ended */
        }
        release_due(m, held, &n);
    }
    return NULL;
}

void disk_watch(struct member *m, int sock)
{
    m->notify = receive_fd(sock);
    m->disk_runs = m->notify >= 0 && pthread_create(&m->disk, NULL, disk_run, m) == 0;
    if (!m->disk_runs)
        (void)fprintf(stderr, "robust: member %d did not start\n", m->number);
}

void disk_unwatch(struct member *m)
{
    if (m->disk_runs)
        (void)pthread_join(m->disk, NULL);
    if (m->notify >= 0)
        (void)close(m->notify);
    m->notify = -1;
    m->disk_runs = false;
}

void disk_set(struct member *m, int64_t delay_us)
{
    atomic_store(&m->sync_delay_us, delay_us);
}

static void balloon_path(const struct member *m, char *path, size_t size)
{
    (void)snprintf(path, size, "%s/balloon", m->dir);
}

bool disk_fill(struct member *m)
{
    static const char zero[1 << 16];
    char path[320];
    struct statvfs v;
    bool full;
    int fd;

    balloon_path(m, path, sizeof path);
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || statvfs(m->dir, &v) != 0)
        return false;
    (void)posix_fallocate(fd, 0, (off_t)(v.f_bavail * v.f_bsize)); /* the rest, if others write meanwhile, follows */
    (void)lseek(fd, 0, SEEK_END);
    for (size_t n = sizeof zero; n >= 4096;)
        if (write(fd, zero, n) != (ssize_t)n)
            n /= 2;
    (void)close(fd); /* what was written stays */
    full = disk_is_full(m);
    return full;
}

bool disk_is_full(const struct member *m)
{
    struct statvfs v;

    return statvfs(m->dir, &v) == 0 && v.f_bavail == 0;
}

void disk_empty(struct member *m)
{
    char path[320];

    balloon_path(m, path, sizeof path);
    (void)unlink(path); /* it may not be there */
}
