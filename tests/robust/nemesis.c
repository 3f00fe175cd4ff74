/* SPDX-License-Identifier: Apache-2.0 */
/* nemesis.c - rounds of faults: begin one to three, keep each as long as it was meant to, end it, rest.
 *
 * A fault counts only if there is a proof: the process is gone, or stopped as /proc says; the kernel has dropped
 * packets; the link is down; syncs were held; no byte is free; another member leads.
 */
#include "nemesis.h"
#include <inttypes.h>
#include <signal.h>
#include <sys/wait.h>

enum { ROUND_FAULTS = 3, LOOK_MS = 5, STATUS_MS = 300, MORE_MS = 20000 };

struct fault {
    enum fault_kind kind;
    int member, other;
    int64_t end_ns;
    uint64_t before; /* drops or held syncs when it began */
    bool on, happened, all;
};

static const char *const names[FAULT_KINDS] = {
    [FAULT_KILL] = "kill",           [FAULT_KILL_MOST] = "kill-most",   [FAULT_PAUSE] = "pause",
    [FAULT_PARTITION] = "partition", [FAULT_DEAF] = "deaf",             [FAULT_MUTE] = "mute",
    [FAULT_PAIR] = "pair",           [FAULT_LINK_DOWN] = "link-down",   [FAULT_SLOW_DISK] = "slow-disk",
    [FAULT_STALL_DISK] = "stall-disk", [FAULT_FULL_DISK] = "full-disk", [FAULT_STOP] = "stop",
    [FAULT_MOVE] = "move-leader",
};

const char *fault_name(enum fault_kind kind) { return names[kind]; }

int fault_by_name(const char *name)
{
    for (int i = 0; i < FAULT_KINDS; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return -1;
}

static struct member *member_of(struct nemesis *n, int i) { return &n->cluster->members[i]; }

static void note(struct nemesis *n, const struct fault *f, const char *what)
{
    (void)fprintf(n->log, "%.6f %s %s member %d", (double)now_ns() / 1e9, names[f->kind], what, f->member);
    if (f->other)
        (void)fprintf(n->log, " and %d", f->other);
    (void)fputs("\n", n->log);
    (void)fflush(n->log);
}

/* ---- partitions ---------------------------------------------------------------------------------- */

/* Who does not hear whom, in a fault on m: deaf, mute or both; or the pair alone. */
static void cut(struct nemesis *n, const struct fault *f, bool (*act)(struct cluster *, int, int))
{
    for (int i = 1; i <= MEMBERS; i++) {
        if (i == f->member || (f->other && i != f->other))
            continue;
        if (f->kind != FAULT_MUTE)
            (void)act(n->cluster, i, f->member); /* that it worked is seen by the drops */
        if (f->kind != FAULT_DEAF)
            (void)act(n->cluster, f->member, i);
    }
}

static uint64_t drops(struct nemesis *n)
{
    uint64_t all = 0;

    for (int i = 1; i <= MEMBERS; i++)
        all += link_dropped(n->cluster, i);
    return all;
}

/* ---- one fault ----------------------------------------------------------------------------------- */

static void kill_most(struct nemesis *n, struct fault *f)
{
    f->all = below(&n->seed, 2);
    f->happened = true;
    for (int i = 1; i <= MEMBERS; i++)
        if (f->all || i != f->member)
            (void)member_kill(member_of(n, i), SIGKILL); /* always enough */
}

static void move_leader(struct nemesis *n, struct fault *f)
{
    Etcdserverpb__MoveLeaderRequest req = ETCDSERVERPB__MOVE_LEADER_REQUEST__INIT;
    Etcdserverpb__StatusResponse *s;
    ProtobufCMessage *resp = NULL;
    int from = cluster_leader(n->cluster, STATUS_MS), to = 1 + from % MEMBERS;

    if (from == 0 || !member_status(member_of(n, to), STATUS_MS, &s))
        return;
    req.targetid = s->header->member_id;
    protobuf_c_message_free_unpacked(&s->base, NULL);
    f->member = to;
    f->happened = caller_ask(&member_of(n, from)->admin, "/etcdserverpb.Maintenance/MoveLeader", &req.base,
                             &etcdserverpb__move_leader_response__descriptor, 3000, &resp, NULL) == 0;
    if (resp)
        protobuf_c_message_free_unpacked(resp, NULL);
}

static void begin(struct nemesis *n, struct fault *f)
{
    struct member *m = member_of(n, f->member);

    f->on = true;
    n->tried[f->kind]++;
    switch (f->kind) {
    case FAULT_KILL:
    case FAULT_STOP:
        f->happened = m->pid != 0;
        n->hung += !member_kill(m, f->kind == FAULT_KILL ? SIGKILL : SIGTERM);
        break;
    case FAULT_KILL_MOST:
        kill_most(n, f);
        break;
    case FAULT_PAUSE:
        member_pause(m);
        break;
    case FAULT_PAIR:
    case FAULT_PARTITION:
    case FAULT_DEAF:
    case FAULT_MUTE:
        f->before = drops(n);
        cut(n, f, link_cut);
        break;
    case FAULT_LINK_DOWN:
        (void)link_set(n->cluster, f->member, false); /* looked at while it lasts */
        break;
    case FAULT_SLOW_DISK:
    case FAULT_STALL_DISK:
        f->before = atomic_load(&m->syncs_delayed);
        disk_set(m, f->kind == FAULT_STALL_DISK ? INT64_MAX : 2000 + (int64_t)below(&n->seed, 200000));
        break;
    case FAULT_FULL_DISK:
        f->happened = disk_fill(m);
        break;
    case FAULT_MOVE:
        move_leader(n, f);
        break;
    case FAULT_KINDS:
        break;
    }
    note(n, f, "begins:");
}

/* Is there a proof by now? */
static void look(struct nemesis *n, struct fault *f)
{
    struct member *m = member_of(n, f->member);

    if (f->happened)
        return;
    if (f->kind == FAULT_PAUSE)
        f->happened = m->pid && member_is_paused(m);
    else if (f->kind >= FAULT_PARTITION && f->kind <= FAULT_PAIR)
        f->happened = drops(n) > f->before;
    else if (f->kind == FAULT_LINK_DOWN)
        f->happened = !link_is_up(f->member);
    else if (f->kind == FAULT_SLOW_DISK || f->kind == FAULT_STALL_DISK)
        f->happened = atomic_load(&m->syncs_delayed) > f->before;
}

static void note_end(struct nemesis *n, const struct member *m, bool excused)
{
    n->died += !excused;
    (void)fprintf(n->log, "%.6f member %d ended by itself, status %#x\n", (double)now_ns() / 1e9, m->number,
                  (unsigned)m->status);
}

static void start_again(struct nemesis *n, int i)
{
    if (member_of(n, i)->pid == 0)
        (void)member_start(n->cluster, member_of(n, i)); /* a member that does not start is missed at the end */
}

static void end(struct nemesis *n, struct fault *f)
{
    struct member *m = member_of(n, f->member);

    look(n, f);
    f->on = false;
    n->happened[f->kind] += f->happened;
    switch (f->kind) {
    case FAULT_KILL:
    case FAULT_STOP:
        start_again(n, f->member);
        break;
    case FAULT_KILL_MOST:
        for (int i = 1; i <= MEMBERS; i++)
            if (f->all || i != f->member)
                start_again(n, i);
        break;
    case FAULT_PAUSE:
        member_resume(m);
        break;
    case FAULT_PAIR:
    case FAULT_PARTITION:
    case FAULT_DEAF:
    case FAULT_MUTE:
        cut(n, f, link_heal);
        break;
    case FAULT_LINK_DOWN:
        (void)link_set(n->cluster, f->member, true); /* if it stayed down, no member comes back, and that is seen */
        break;
    case FAULT_SLOW_DISK:
    case FAULT_STALL_DISK:
        disk_set(m, 0);
        break;
    case FAULT_FULL_DISK:
        disk_empty(m);
        if (member_ended(m)) /* it may: a log that cannot be written ends a member, but no signal does */
            note_end(n, m, WIFEXITED(m->status));
        start_again(n, f->member);
        break;
    case FAULT_MOVE:
    case FAULT_KINDS:
        break;
    }
    note(n, f, f->happened ? "ends:" : "ends, without a proof that it happened:");
}

/* ---- rounds ---------------------------------------------------------------------------------------- */

/* Of one class at most one at a time, and of those that stop a process only one on a member. */
static int class_of(enum fault_kind k)
{
    switch (k) {
    case FAULT_KILL:
    case FAULT_KILL_MOST:
    case FAULT_PAUSE:
    case FAULT_STOP:
        return 1;
    case FAULT_PARTITION:
    case FAULT_DEAF:
    case FAULT_MUTE:
    case FAULT_PAIR:
        return 2;
    case FAULT_SLOW_DISK:
    case FAULT_STALL_DISK:
        return 3;
    default:
        return 10 + (int)k;
    }
}

/* No program ends before its disk does what it was told. */
static bool cannot_stop(const struct fault *a, const struct fault *b)
{
    return a->kind == FAULT_STOP && b->kind == FAULT_STALL_DISK;
}

static int64_t length_ms(struct nemesis *n, enum fault_kind kind)
{
    int64_t ms = 50;

    if (kind == FAULT_MOVE)
        return 50;
    if (kind != FAULT_PAUSE)
        return 300 + (int64_t)below(&n->seed, kind == FAULT_KILL || kind == FAULT_STOP ? 1200 : 2200);
    while (ms < n->longest_ms && below(&n->seed, 4)) /* 50 ms, 100 ms, ...: each length as likely as its half */
        ms *= 2;
    ms += (int64_t)below(&n->seed, (uint64_t)ms);
    return ms < n->longest_ms ? ms : n->longest_ms;
}

static void choose(struct nemesis *n, struct fault *f, enum fault_kind kind, int leader)
{
    *f = (struct fault){.kind = kind, .member = 1 + (int)below(&n->seed, MEMBERS)};
    if (leader && below(&n->seed, 2))
        f->member = leader;
    if (kind == FAULT_PAIR)
        f->other = 1 + f->member % MEMBERS;
    f->end_ns = now_ns() + length_ms(n, kind) * 1000000;
}

/* Members that ended without being told to are started again, and counted. */
static void look_after(struct nemesis *n, const struct fault *faults, int n_faults)
{
    for (int i = 1; i <= MEMBERS; i++) {
        bool may_end = false;

        for (int k = 0; k < n_faults; k++)
            may_end |= faults[k].on && faults[k].kind == FAULT_FULL_DISK && faults[k].member == i;
        if (may_end || !member_ended(member_of(n, i)))
            continue;
        note_end(n, member_of(n, i), false);
        start_again(n, i);
    }
}

static void run_round(struct nemesis *n, int leader)
{
    struct fault faults[ROUND_FAULTS];
    int n_faults = 1, on;

    choose(n, &faults[0], n->main, leader);
    while (!n->alone && n_faults < ROUND_FAULTS && below(&n->seed, 10) < 4) {
        bool clash = false;

        choose(n, &faults[n_faults], (enum fault_kind)below(&n->seed, FAULT_KINDS), leader);
        for (int i = 0; i < n_faults; i++)
            clash |= class_of(faults[i].kind) == class_of(faults[n_faults].kind) ||
                     cannot_stop(&faults[i], &faults[n_faults]) || cannot_stop(&faults[n_faults], &faults[i]);
        if (clash)
            break;
        n_faults++;
    }
    for (int i = 0; i < n_faults; i++)
        begin(n, &faults[i]);
    do {
        on = 0;
        pause_ms(LOOK_MS);
        for (int i = 0; i < n_faults; i++) {
            if (!faults[i].on)
                continue;
            look(n, &faults[i]);
            if (now_ns() >= faults[i].end_ns)
                end(n, &faults[i]);
            on += faults[i].on;
        }
        look_after(n, faults, n_faults);
    } while (on);
}

void nemesis_run(struct nemesis *n, int64_t until_ns)
{
    int leader = cluster_leader(n->cluster, STATUS_MS), next;

    do {
        pause_ms(100 + (int64_t)below(&n->seed, 700));
        run_round(n, leader);
        next = cluster_leader(n->cluster, STATUS_MS);
        n->leaders += next && next != leader;
        leader = next ? next : leader;
    } while (now_ns() < until_ns || (n->happened[n->main] == 0 && now_ns() < until_ns + MORE_MS * INT64_C(1000000)));
}
