/* SPDX-License-Identifier: Apache-2.0 */
/* spawner.c - the process that makes and replaces injectors.
 *
 * Wire: SOCK_SEQPACKET, one struct note per packet, both directions; a BORN note carries the injector's
 * socket as SCM_RIGHTS. The spawner polls its socket and a signalfd for SIGCHLD; dead children are looked
 * at with WNOWAIT and reaped when the core has buried them.
 */
#include "spawner.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "injector.h"

#define SPAWNER_CHILDREN_MAX 64 /* living and unburied injectors; a bound against a mad core */

enum note_type { NOTE_MAKE = 1, NOTE_KILL, NOTE_BURIED, NOTE_GUARD, NOTE_BORN, NOTE_DEAD };

struct note {
    uint32_t type, slot; /* GUARD: slot is the connection */
    int32_t pid;
};

/* ---- the core's side ------------------------------------------------------- */

static void child_main(int sock, pid_t core, const char *mountpoint) __attribute__((noreturn));

int spawner_start(struct spawner *s, const char *mountpoint)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return -errno;
    pid_t core = getpid();

    s->pid = fork();
    if (s->pid < 0) {
        int rc = -errno;

        (void)close(pair[0]); /* unused */
        (void)close(pair[1]);
        return rc;
    }
    if (s->pid == 0) {
        (void)close(pair[0]); /* the core's end: its closing is how we learn that the core is gone */
        child_main(pair[1], core, mountpoint);
    }
    (void)close(pair[1]); /* the child's end */
    s->fd = pair[0];
    return 0;
}

static int note_send(int fd, struct note n)
{
    return send(fd, &n, sizeof n, MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof n ? 0 : -errno;
}

int spawner_request(struct spawner *s, unsigned slot)
{
    return s->fd < 0 ? -EPIPE : note_send(s->fd, (struct note){.type = NOTE_MAKE, .slot = slot});
}

void spawner_kill(struct spawner *s, pid_t pid)
{
    if (s->fd >= 0)
        (void)note_send(s->fd, (struct note){.type = NOTE_KILL, .pid = pid}); /* the deadline asks again */
}

void spawner_buried(struct spawner *s, pid_t pid)
{
    if (s->fd >= 0)
        (void)note_send(
            s->fd, (struct note){.type = NOTE_BURIED, .pid = pid}); /* else it stays a zombie, harmless */
}

void spawner_guard(struct spawner *s, unsigned connection)
{
    if (s->fd >= 0)
        (void)note_send(s->fd,
                        (struct note){.type = NOTE_GUARD, .slot = connection}); /* lost: status shows it */
}

/* Reads one note; *ret_fd is the descriptor that came with it, or -1. 0: one; -EAGAIN: none; else the peer
 * is gone. */
static int note_receive(int fd, struct note *ret_note, int *ret_fd)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {ret_note, sizeof *ret_note};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *c;
    ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    *ret_fd = -1;
    if (n < 0)
        return errno == EINTR ? -EAGAIN : -errno;
    c = CMSG_FIRSTHDR(&msg);
    if (c && c->cmsg_type == SCM_RIGHTS)
        memcpy(ret_fd, CMSG_DATA(c), sizeof *ret_fd);
    return n == sizeof *ret_note ? 0 : -EPIPE;
}

struct spawner_event spawner_next(struct spawner *s)
{
    struct note n;
    int fd, rc;

    if (s->fd < 0)
        return (struct spawner_event){.type = SPAWNER_NONE};
    rc = note_receive(s->fd, &n, &fd);
    if (rc == -EAGAIN)
        return (struct spawner_event){.type = SPAWNER_NONE};
    if (rc == 0 && n.type == NOTE_BORN && fd >= 0)
        return (struct spawner_event){SPAWNER_BORN, n.slot, n.pid, fd};
    if (fd >= 0)
        (void)close(fd); /* unexpected */
    if (rc == 0 && n.type == NOTE_DEAD)
        return (struct spawner_event){SPAWNER_DEAD, n.slot, n.pid, -1};
    (void)close(s->fd); /* gone or mad: either way of no more use */
    s->fd = -1;
    return (struct spawner_event){.type = SPAWNER_LOST};
}

void spawner_stop(struct spawner *s, int timeout_ms)
{
    if (s->fd >= 0)
        (void)close(s->fd); /* the spawner sees it and ends */
    s->fd = -1;
    for (int waited = 0; s->pid > 0 && waited < timeout_ms; waited += 10) {
        if (waitpid(s->pid, NULL, WNOHANG) != 0)
            s->pid = 0;
        else
            (void)poll(NULL, 0, 10);
    }
}

/* ---- the spawner's side ---------------------------------------------------- */

struct child {
    pid_t pid; /* 0: free */
    uint32_t slot;
    bool told; /* the core knows that it is dead */
};

struct family {
    int sock, sigfd;
    int abort_fd; /* the connection's abort file; -1: none (yet) */
    const char *mountpoint;
    struct child children[SPAWNER_CHILDREN_MAX];
};

static struct child *family_find(struct family *f, pid_t pid)
{
    for (int i = 0; i < SPAWNER_CHILDREN_MAX; i++)
        if (f->children[i].pid == pid)
            return &f->children[i];
    return NULL;
}

static int send_born(int sock, uint32_t slot, pid_t pid, int fd)
{
    struct note n = {.type = NOTE_BORN, .slot = slot, .pid = pid};
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec iov = {&n, sizeof n};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    return sendmsg(sock, &msg, MSG_NOSIGNAL) == sizeof n ? 0 : -errno;
}

/* Forks an injector. On any failure nothing is said: the core asks again at its deadline. */
static void family_make(struct family *f, uint32_t slot)
{
    struct child *c = family_find(f, 0);
    int pair[2];
    pid_t pid;

    if (c == NULL || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return;
    pid = fork();
    if (pid == 0) {
        (void)close(pair[0]); /* the core's end */
        (void)close(f->sock); /* or our life would keep the spawner's socket open */
        (void)close(f->sigfd);
        injector_main(pair[1], f->mountpoint);
    }
    (void)close(pair[1]); /* the injector's end */
    if (pid > 0) {
        *c = (struct child){.pid = pid, .slot = slot};
        if (send_born(f->sock, slot, pid, pair[0]) != 0)
            (void)kill(pid, SIGKILL); /* nobody would ever talk to it */
    }
    (void)close(pair[0]); /* the core has its copy */
}

static void family_report_dead(struct family *f)
{
    for (int i = 0; i < SPAWNER_CHILDREN_MAX; i++) {
        struct child *c = &f->children[i];
        siginfo_t info = {0};

        if (c->pid == 0 || c->told || waitid(P_PID, (id_t)c->pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0)
            continue;
        if (info.si_pid == c->pid) {
            struct note n = {.type = NOTE_DEAD, .slot = c->slot, .pid = c->pid};

            c->told = send(f->sock, &n, sizeof n, MSG_NOSIGNAL) == sizeof n;
        }
    }
}

/* The abort file, opened while all is well. fusectl is mounted on most systems; where not, root can have it
 * for itself without attaching it anywhere. */
static int abort_open(unsigned connection)
{
    char path[80];
    int fs, root = -1, fd;

    (void)snprintf(path, sizeof path, "/sys/fs/fuse/connections/%u/abort", connection);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0)
        return fd;
    fs = fsopen("fusectl", FSOPEN_CLOEXEC);
    if (fs >= 0 && fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        root = fsmount(fs, FSMOUNT_CLOEXEC, 0);
    (void)snprintf(path, sizeof path, "%u/abort", connection);
    fd = root >= 0 ? openat(root, path, O_WRONLY | O_CLOEXEC) : -1;
    if (root >= 0)
        (void)close(root); /* the open file keeps what it needs */
    if (fs >= 0)
        (void)close(fs);
    return fd;
}

static void family_handle(struct family *f, struct note n)
{
    struct child *c = n.pid > 0 ? family_find(f, n.pid) : NULL;

    if (n.type == NOTE_GUARD && f->abort_fd < 0)
        f->abort_fd = abort_open(n.slot);
    else if (n.type == NOTE_MAKE)
        family_make(f, n.slot);
    else if (n.type == NOTE_KILL && c)
        (void)kill(c->pid, SIGKILL); /* it is our child and not reaped: the pid is still its own */
    else if (n.type == NOTE_BURIED && c && c->told) {
        (void)waitpid(c->pid, NULL, 0); /* a zombie: returns at once */
        *c = (struct child){0};
    }
}

static void child_main(int sock, pid_t core, const char *mountpoint)
{
    struct family f = {.sock = sock, .abort_fd = -1, .mountpoint = mountpoint};
    bool orphan = false;
    sigset_t all;

    (void)prctl(PR_SET_NAME, "cairnfs-spawn"); /* for the reader of ps */
    (void)sigfillset(&all);
    (void)sigprocmask(SIG_BLOCK, &all, NULL); /* a Ctrl-C is the core's business; we end with it */
    f.sigfd = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
    /* Comes with the end of the core's thread, even if its process cannot end and its sockets stay open. */
    if (f.sigfd < 0 || prctl(PR_SET_PDEATHSIG, SIGUSR1) != 0 || getppid() != core)
        _exit(1);
    while (!orphan) {
        struct pollfd p[2] = {{.fd = f.sock, .events = POLLIN}, {.fd = f.sigfd, .events = POLLIN}};
        struct signalfd_siginfo info;
        struct note n;
        int fd, rc;

        if (poll(p, 2, -1) < 0 && errno != EINTR)
            break;
        while (read(f.sigfd, &info, sizeof info) > 0)
            orphan =
                orphan || (info.ssi_signo == SIGUSR1 && info.ssi_pid == (uint32_t)core) || getppid() != core;
        while ((rc = note_receive(f.sock, &n, &fd)) == 0)
            family_handle(&f, n);
        if (rc != -EAGAIN)
            break;
        family_report_dead(&f);
    }
    if (f.abort_fd >= 0)
        (void)!write(f.abort_fd, "1", 1); /* gone already: so much the better */
    for (int i = 0; i < SPAWNER_CHILDREN_MAX; i++)
        if (f.children[i].pid > 0)
            (void)kill(f.children[i].pid, SIGKILL); /* init reaps them */
    _exit(0);
}
