/* SPDX-License-Identifier: Apache-2.0 */
/* failover.c - how long a cluster takes no put when its leader goes.
 *
 *     robust failover PROGRAM DIRECTORY HOW ROUNDS [FLAG...]
 *
 * HOW: kill (SIGKILL), pause (SIGSTOP), cut (its link goes down), stop (SIGTERM: it hands over), move (MoveLeader),
 * none (nothing: what the machine itself does to the figure).
 * Clients put through the two other members all the time, a few at once, so that one call that waits for something
 * lost does not hide that others are served. Of a leader that is lost, the time from its end to the first answer to a
 * put that began after it; of one that hands over, the longest time without an answer, from then on for 1.5 seconds.
 * Prints p50, p99 and max in milliseconds. The data is on tmpfs: what is measured is the election, not a disk.
 */
#include "failover.h"
#include <signal.h>

enum { PUTTERS = 3, PUT_MS = 3000, REST_MS = 3, LOOK_MS = 1500, GIVE_UP_MS = 30000, ROUNDS_MAX = 1000 };
enum { SERVE_MS = 60000 };

struct putter {
    struct failover *f;
    int member, number;
    pthread_t thread;
};

struct failover {
    struct cluster cluster;
    _Atomic bool stop;
    _Atomic int lost;              /* the member that goes: nobody asks it */
    _Atomic int64_t since_ns;      /* when it went; 0: it has not */
    _Atomic int64_t answered_ns;   /* first answer to what began since then; 0: none */
    _Atomic int64_t last_ns;       /* newest answer to anything */
    _Atomic int64_t gap_ns;        /* longest time between two answers since then */
    struct putter putters[MEMBERS_END][PUTTERS];
};

static void answered(struct failover *f, int64_t began_ns)
{
    int64_t now = now_ns(), since = atomic_load(&f->since_ns), none = 0, last = atomic_exchange(&f->last_ns, now), gap;

    if (since == 0)
        return;
    if (began_ns > since)
        (void)atomic_compare_exchange_strong(&f->answered_ns, &none, now); /* another was first */
    gap = now - (last > since ? last : since);
    for (int64_t old = atomic_load(&f->gap_ns); gap > old && !atomic_compare_exchange_weak(&f->gap_ns, &old, gap);)
        ;
}

static void *put_on(void *arg)
{
    struct putter *p = arg;
    Etcdserverpb__PutRequest req = ETCDSERVERPB__PUT_REQUEST__INIT;
    struct caller caller;
    uint8_t key[] = {'p', (uint8_t)('0' + p->member), (uint8_t)('0' + p->number)};

    req.key = req.value = (ProtobufCBinaryData){sizeof key, key};
    caller_open(&caller, p->f->cluster.members[p->member].address);
    while (!atomic_load(&p->f->stop)) {
        int64_t began = now_ns();
        ProtobufCMessage *resp = NULL;

        if (atomic_load(&p->f->lost) != p->member &&
            caller_ask(&caller, rec_path(REC_PUT), &req.base, rec_response(REC_PUT), PUT_MS, &resp, NULL) == 0 &&
            atomic_load(&p->f->lost) != p->member)
            answered(p->f, began);
        if (resp)
            protobuf_c_message_free_unpacked(resp, NULL);
        pause_ms(REST_MS);
    }
    caller_close(&caller);
    return NULL;
}

static bool put_once(struct failover *f, int member)
{
    Etcdserverpb__PutRequest req = ETCDSERVERPB__PUT_REQUEST__INIT;
    ProtobufCMessage *resp = NULL;

    req.key = req.value = (ProtobufCBinaryData){1, (uint8_t *)"x"};
    if (caller_ask(&f->cluster.members[member].admin, rec_path(REC_PUT), &req.base, rec_response(REC_PUT), PUT_MS,
                   &resp, NULL) != 0)
        return false;
    protobuf_c_message_free_unpacked(resp, NULL);
    return true;
}

static bool put_everywhere(struct failover *f)
{
    for (int i = 1; i <= f->cluster.n; i++)
        if (!put_once(f, i))
            return false;
    return true;
}

/* All members serve, and one leads. Its number; 0: not within the time. */
static int steady(struct failover *f)
{
    int64_t end = now_ns() + SERVE_MS * INT64_C(1000000);

    while (now_ns() < end) {
        if (put_everywhere(f)) {
            int leader = cluster_leader(&f->cluster, 1000);

            pause_ms(300); /* what begins an election late begins it now */
            if (leader && leader == cluster_leader(&f->cluster, 1000))
                return leader;
        }
        pause_ms(20);
    }
    return 0;
}

static bool move(struct failover *f, int leader)
{
    Etcdserverpb__MoveLeaderRequest req = ETCDSERVERPB__MOVE_LEADER_REQUEST__INIT;
    Etcdserverpb__StatusResponse *s;
    ProtobufCMessage *resp = NULL;

    if (!member_status(&f->cluster.members[1 + leader % f->cluster.n], 1000, &s))
        return false;
    req.targetid = s->header->member_id;
    protobuf_c_message_free_unpacked(&s->base, NULL);
    if (caller_ask(&f->cluster.members[leader].admin, "/etcdserverpb.Maintenance/MoveLeader", &req.base,
                   &etcdserverpb__move_leader_response__descriptor, 5000, &resp, NULL) != 0)
        return false;
    protobuf_c_message_free_unpacked(resp, NULL);
    return true;
}

enum how { KILL, PAUSE, CUT, STOP, MOVE, NOTHING, HOWS };

/* One round: milliseconds, or less than 0: no answer. */
static double one_round(struct failover *f, enum how how)
{
    int leader = steady(f);
    struct member *m = &f->cluster.members[leader];
    int64_t began;
    double ms;

    if (leader == 0)
        return -1;
    atomic_store(&f->lost, leader);
    pause_ms(50); /* what was asked of it has been answered */
    atomic_store(&f->answered_ns, 0);
    atomic_store(&f->gap_ns, 0);
    began = now_ns();
    if (how == PAUSE)
        member_pause(m);
    else if (how == CUT)
        (void)link_set(&f->cluster, leader, false); /* the time would show it */
    else if (how == KILL)
        (void)kill(m->pid, SIGKILL); /* waited for below */
    else
        atomic_store(&f->since_ns, began);
    if (how == STOP)
        (void)kill(m->pid, SIGTERM); /* as above */
    if (how == MOVE && !move(f, leader))
        return -1;
    atomic_store(&f->since_ns, began);
    while (how >= STOP ? now_ns() < began + LOOK_MS * INT64_C(1000000)
                       : atomic_load(&f->answered_ns) == 0 && now_ns() < began + GIVE_UP_MS * INT64_C(1000000))
        pause_ms(1);
    ms = how >= STOP ? (double)atomic_load(&f->gap_ns) / 1e6 : (double)(atomic_load(&f->answered_ns) - began) / 1e6;
    atomic_store(&f->since_ns, 0);
    if (how == PAUSE)
        member_resume(m);
    else if (how == CUT)
        (void)link_set(&f->cluster, leader, true); /* steady() would not come */
    else if (how == KILL || how == STOP) {
        (void)member_kill(m, how == KILL ? SIGKILL : SIGTERM); /* it is late by now */
        (void)member_start(&f->cluster, m); /* the same */
    }
    atomic_store(&f->lost, 0);
    return ms;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static bool start(struct failover *f)
{
    for (int i = 1; i <= f->cluster.n; i++) {
        caller_open(&f->cluster.members[i].admin, f->cluster.members[i].address);
        if (!member_start(&f->cluster, &f->cluster.members[i]))
            return false;
    }
    if (steady(f) == 0)
        return false;
    for (int i = 1; i <= f->cluster.n; i++)
        for (int k = 0; k < PUTTERS; k++) {
            f->putters[i][k] = (struct putter){.f = f, .member = i, .number = k};
            if (pthread_create(&f->putters[i][k].thread, NULL, put_on, &f->putters[i][k]) != 0)
                return false;
        }
    return true;
}

int failover_main(const char *program, const char *dir, const char *how, int rounds, char *const *flags)
{
    static const char *const names[HOWS] = {"kill", "pause", "cut", "stop", "move", "none"};
    static struct failover f;
    static double took[ROUNDS_MAX];
    const char *what;
    int e, h = 0, n = 0;

    while (h < HOWS && strcmp(names[h], how) != 0)
        h++;
    if (h == HOWS || rounds < 1 || rounds > ROUNDS_MAX)
        return 2;
    e = cluster_make(&f.cluster, program, dir, &what);
    if (e < 0) {
        printf("this machine lacks: %s (%s)\n", what, strerror(-e));
        return 77;
    }
    f.cluster.flags = flags;
    f.cluster.token = (uint64_t)now_ns();
    calls_init();
    if (!start(&f)) {
        (void)fprintf(stderr, "failover: the cluster does not serve\n");
        return 1;
    }
    while (n < rounds) {
        double ms = one_round(&f, (enum how)h);

        if (ms < 0) {
            (void)fprintf(stderr, "failover: round %d: no put was answered\n", n);
            cluster_end(&f.cluster);
            return 1;
        }
        took[n++] = ms;
    }
    atomic_store(&f.stop, true);
    qsort(took, (size_t)n, sizeof took[0], by_size);
    printf("rounds=%d p50_ms=%.0f p99_ms=%.0f max_ms=%.0f\n", n, took[n / 2], took[n * 99 / 100], took[n - 1]);
    cluster_end(&f.cluster);
    return 0;
}
