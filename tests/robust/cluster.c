/* SPDX-License-Identifier: Apache-2.0 */
/* cluster.c - namespaces, links, processes. cluster.h draws them. The disks are in cluster_disk.c.
 *
 * A one-way partition is a routing rule of the receiver: packets from that address are not delivered. It needs no
 * packet filter, is silent, and the kernel counts what it drops (InAddrErrors). Early demux would pass packets of open
 * connections by the rules, so it is off.
 */
#include "cluster.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <mntent.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "cluster_disk.h"

extern char **environ;

enum { DISK_MB = 400, STOP_MS = 20000 };

/* ---- commands ------------------------------------------------------------------------------------ */

static bool write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

    if (fd >= 0)
        (void)close(fd); /* only written to */
    return done;
}

/* Runs `ip` with these words, in the network namespace of the calling thread. */
__attribute__((format(printf, 1, 2))) static bool ip(const char *format, ...)
{
    posix_spawn_file_actions_t quiet;
    char words[300], *argv[40] = {"ip"}, *save = NULL;
    int n = 1, status = -1;
    va_list ap;
    pid_t pid;

    va_start(ap, format);
    (void)vsnprintf(words, sizeof words, format, ap);
    va_end(ap);
    for (char *w = strtok_r(words, " ", &save); w && n < 39; w = strtok_r(NULL, " ", &save))
        argv[n++] = w;
    posix_spawn_file_actions_init(&quiet);
    posix_spawn_file_actions_addopen(&quiet, 2, "/dev/null", O_WRONLY, 0);
    if (posix_spawnp(&pid, "ip", &quiet, NULL, argv, environ) == 0)
        (void)waitpid(pid, &status, 0); /* a failure leaves the status at -1 */
    posix_spawn_file_actions_destroy(&quiet);
    return status == 0;
}

static int hub = -1;

static void enter(int netns)
{
    int r = setns(netns, CLONE_NEWNET);

    assert(r == 0);
    (void)r;
}

/* ---- the network --------------------------------------------------------------------------------- */

static int new_netns(void)
{
    int fd = -1;

    if (unshare(CLONE_NEWNET) == 0)
        fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* Inside the member's namespace, after its link was put there. */
static bool member_net(int n)
{
    return ip("link set lo up") && ip("addr add 10.77.0.%d/24 dev eth0", n) && ip("link set eth0 up") &&
           ip("rule add pref 100 table local") && ip("rule del pref 0") &&
           write_file("/proc/sys/net/ipv4/ip_early_demux", "0");
}

static int net_make(struct cluster *c, const char **ret_what)
{
    *ret_what = "network namespaces";
    hub = new_netns();
    if (hub < 0)
        return hub;
    for (int i = 1; i <= c->n; i++) {
        c->members[i].netns = new_netns();
        if (c->members[i].netns < 0)
            return c->members[i].netns;
    }
    enter(hub);
    *ret_what = "bridges and veth pairs (iproute2)";
    if (!ip("link set lo up") || !ip("link add br0 type bridge") || !ip("addr add 10.77.0.254/24 dev br0") ||
        !ip("link set br0 up"))
        return -ENOTSUP;
    for (int i = 1; i <= c->n; i++) {
        bool done;

        if (!ip("link add v%d type veth peer name eth0 netns /proc/%d/fd/%d", i, (int)getpid(), c->members[i].netns) ||
            !ip("link set v%d master br0", i) || !ip("link set v%d up", i))
            return -ENOTSUP;
        *ret_what = "routing rules";
        enter(c->members[i].netns);
        done = member_net(i);
        enter(hub);
        if (!done)
            return -ENOTSUP;
    }
    return 0;
}

bool link_cut(struct cluster *c, int from, int to)
{
    bool done;

    if (c->cuts[from][to]++ > 0)
        return true;
    enter(c->members[to].netns);
    done = ip("rule add pref %d from 10.77.0.%d blackhole", 10 + from, from);
    enter(hub);
    return done;
}

bool link_heal(struct cluster *c, int from, int to)
{
    bool done;

    if (--c->cuts[from][to] > 0)
        return true;
    enter(c->members[to].netns);
    done = ip("rule del pref %d", 10 + from);
    enter(hub);
    return done;
}

uint64_t link_dropped(struct cluster *c, int to)
{
    unsigned long long dropped = 0;
    char line[600];
    FILE *f;

    enter(c->members[to].netns);
    f = fopen("/proc/thread-self/net/snmp", "re");
    enter(hub);
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "Ip: %*u %*u %*u %*u %llu", &dropped) == 1)
            break;
    if (f)
        (void)fclose(f); /* only read from */
    return dropped;
}

static bool has_unsent(const char *path)
{
    unsigned state, unsent, most = 0;
    char line[300];
    FILE *f = fopen(path, "re");

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, " %*u: %*s %*s %x %x:", &state, &unsent) == 2 && state != 10 && unsent > most)
            most = unsent; /* 10: it listens */
    if (f)
        (void)fclose(f); /* only read from */
    return most > 0;
}

bool clients_are_quiet(void)
{
    return !has_unsent("/proc/thread-self/net/tcp") && !has_unsent("/proc/thread-self/net/tcp6");
}

bool link_set(struct cluster *c, int member, bool up)
{
    (void)c;
    return ip("link set v%d %s", member, up ? "up" : "down");
}

bool link_is_up(int member)
{
    struct ifreq req = {0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), r;

    (void)snprintf(req.ifr_name, sizeof req.ifr_name, "v%d", member);
    r = ioctl(fd, SIOCGIFFLAGS, &req);
    (void)close(fd); /* nothing was sent */
    return r == 0 && (req.ifr_flags & IFF_UP) && (req.ifr_flags & IFF_RUNNING);
}

/* ---- processes ----------------------------------------------------------------------------------- */

/* Our mount namespace has a copy of each mount there was. A server of one of these files would not notice that its
 * users have let go of it, so we do. */
static void mounts_of_others_off(void)
{
    enum { MOST = 64 };
    char *paths[MOST];
    FILE *f = setmntent("/proc/self/mounts", "re");
    struct mntent *m;
    int n = 0;

    while (f && n < MOST && (m = getmntent(f)) != NULL)
        if (strncmp(m->mnt_type, "fuse", 4) == 0)
            paths[n++] = strdup(m->mnt_dir);
    if (f)
        (void)endmntent(f); /* only read from */
    while (n > 0) {
        (void)umount2(paths[--n], MNT_DETACH); /* it may have gone with one above it */
        free(paths[n]);
    }
}

int cluster_make(struct cluster *c, const char *program, const char *dir, const char **ret_what)
{
    const char *members = getenv("MEMBERS");
    char size[32];
    int r;

    c->n = members && *members ? atoi(members) : 3;
    *ret_what = "MEMBERS between 3 and 5";
    if (c->n < 3 || c->n > MEMBERS_MAX)
        return -EINVAL;
    *ret_what = "root";
    if (geteuid() != 0)
        return -EPERM;
    *ret_what = "mount namespaces";
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        return -errno;
    mounts_of_others_off();
    r = net_make(c, ret_what);
    if (r < 0)
        return r;
    c->program = program;
    (void)snprintf(c->dir, sizeof c->dir, "%s", dir);
    (void)snprintf(size, sizeof size, "size=%dm,mode=0700", DISK_MB);
    *ret_what = "tmpfs";
    for (int i = 1; i <= c->n; i++) {
        struct member *m = &c->members[i];

        m->number = i;
        m->notify = -1;
        (void)snprintf(m->address, sizeof m->address, "10.77.0.%d:2379", i);
        (void)snprintf(m->dir, sizeof m->dir, "%s/m%d", dir, i);
        (void)snprintf(m->log, sizeof m->log, "%s/m%d.log", dir, i);
        if ((mkdir(m->dir, 0700) != 0 && errno != EEXIST) || mount("cairn-robust", m->dir, "tmpfs", 0, size) != 0)
            return -errno;
    }
    *ret_what = "seccomp user notification";
    return disk_watch_works() ? 0 : -ENOTSUP;
}

enum { FLAGS_MAX = 40 };

bool member_start(struct cluster *c, struct member *m)
{
    char name[8], data[320], client[48], peer[48], all[200], token[32], fd[12];
    char *argv[FLAGS_MAX + 30] = {"robust", "member", fd, m->log, (char *)c->program, "--name", name,
                                  "--data-dir", data, "--listen-client-urls", client, "--advertise-client-urls", client,
                                  "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                                  "--initial-cluster", all, "--initial-cluster-token", token,
                                  "--initial-cluster-state", "new"};
    int n = 0, used = 0, pair[2], r;
    posix_spawn_file_actions_t close_ours;

    assert(m->pid == 0);
    while (argv[n])
        n++;
    for (int i = 0; c->flags && c->flags[i] && i < FLAGS_MAX; i++)
        argv[n++] = c->flags[i];
    (void)snprintf(name, sizeof name, "m%d", m->number);
    (void)snprintf(data, sizeof data, "%s/data", m->dir);
    (void)snprintf(client, sizeof client, "http://10.77.0.%d:2379", m->number);
    (void)snprintf(peer, sizeof peer, "http://10.77.0.%d:2380", m->number);
    for (int i = 1; i <= c->n; i++)
        used += snprintf(all + used, sizeof all - (size_t)used, "%sm%d=http://10.77.0.%d:2380", i > 1 ? "," : "", i, i);
    (void)snprintf(token, sizeof token, "robust-%llu", (unsigned long long)c->token);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return false;
    (void)snprintf(fd, sizeof fd, "%d", 3);
    posix_spawn_file_actions_init(&close_ours);
    posix_spawn_file_actions_adddup2(&close_ours, pair[1], 3);
    enter(m->netns);
    r = posix_spawn(&m->pid, "/proc/self/exe", &close_ours, NULL, argv, environ);
    enter(hub);
    posix_spawn_file_actions_destroy(&close_ours);
    (void)close(pair[1]); /* the child has its own */
    if (r == 0)
        disk_watch(m, pair[0]);
    else
        m->pid = 0;
    (void)close(pair[0]); /* nothing more comes from it */
    if (r != 0)
        (void)fprintf(stderr, "robust: cannot start %s: %s\n", c->program, strerror(r));
    else
        atomic_fetch_add(&m->incarnation, 1);
    return r == 0;
}

int member_main(int argc, char **argv)
{
    int sock = atoi(argv[2]), log = open(argv[3], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    static char *const none[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GOMAXPROCS=2", NULL};
    struct rlimit core = {RLIM_INFINITY, RLIM_INFINITY};
    char *program = argv[4];

    (void)argc;
    (void)setrlimit(RLIMIT_CORE, &core); /* what it did last is welcome, but not needed */
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* the cluster ends with its harness, however that ends */
    if (log < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0 || !disk_watch_me(sock))
        return 99;
    (void)close(sock);
    (void)execve(program, argv + 4, none);
    perror(program);
    return 98;
}

static void member_gone(struct member *m)
{
    m->pid = 0;
    m->stopped = false;
    atomic_fetch_add(&m->incarnation, 1);
    disk_unwatch(m);
}

bool member_kill(struct member *m, int sig)
{
    int64_t end = fair_ns() + STOP_MS * INT64_C(1000000);
    bool stopped = true;

    if (m->pid == 0)
        return true;
    (void)kill(m->pid, sig); /* it is our child and not reaped: it exists */
    if (m->stopped)
        (void)kill(m->pid, SIGCONT);
    while (sig != SIGKILL && waitpid(m->pid, NULL, WNOHANG) == 0) {
        if (fair_ns() > end) {
            stopped = false;
            (void)kill(m->pid, SIGKILL);
            (void)waitpid(m->pid, NULL, 0);
            break;
        }
        pause_ms(1);
    }
    if (sig == SIGKILL)
        (void)waitpid(m->pid, NULL, 0);
    member_gone(m);
    return stopped;
}

bool member_ended(struct member *m)
{
    if (m->pid == 0 || waitpid(m->pid, &m->status, WNOHANG) == 0)
        return false;
    member_gone(m);
    return true;
}

void member_pause(struct member *m)
{
    if (m->pid)
        (void)kill(m->pid, SIGSTOP); /* as in member_kill */
    m->stopped = m->pid != 0;
}

bool member_is_paused(const struct member *m)
{
    char path[40], line[300], *state = NULL;
    FILE *f;

    (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)m->pid);
    f = fopen(path, "re");
    if (f && fgets(line, sizeof line, f))
        state = strrchr(line, ')');
    if (f)
        (void)fclose(f); /* only read from */
    return state && state[1] == ' ' && state[2] == 'T';
}

void member_resume(struct member *m)
{
    if (m->pid && m->stopped)
        (void)kill(m->pid, SIGCONT); /* as in member_kill */
    m->stopped = false;
}

void cluster_end(struct cluster *c)
{
    for (int i = 1; i <= c->n; i++)
        (void)member_kill(&c->members[i], SIGKILL); /* always enough */
}

/* ---- who leads ------------------------------------------------------------------------------------- */

bool member_status(struct member *m, int timeout_ms, Etcdserverpb__StatusResponse **ret_status)
{
    Etcdserverpb__StatusRequest req = ETCDSERVERPB__STATUS_REQUEST__INIT;
    ProtobufCMessage *resp = NULL;

    if (m->pid == 0 || m->stopped ||
        caller_ask(&m->admin, "/etcdserverpb.Maintenance/Status", &req.base, &etcdserverpb__status_response__descriptor,
                   timeout_ms, &resp, NULL) != 0)
        return false;
    *ret_status = (void *)resp;
    return true;
}

int cluster_leader(struct cluster *c, int timeout_ms)
{
    uint64_t term = 0;
    int leader = 0;

    for (int i = 1; i <= c->n; i++) {
        Etcdserverpb__StatusResponse *s;

        if (!member_status(&c->members[i], timeout_ms, &s))
            continue;
        if (s->leader && s->leader == s->header->member_id && s->raftterm > term) {
            term = s->raftterm;
            leader = i;
        }
        protobuf_c_message_free_unpacked(&s->base, NULL);
    }
    return leader;
}
