/* SPDX-License-Identifier: Apache-2.0 */
/* nemesis.c - rounds of faults: begin one to three, keep each as long as it was meant to, end it, rest. Two may be of
 * one kind, on two members.
 *
 * A fault counts only if there is a proof: the process is gone, or stopped as /proc says; the kernel has dropped
 * packets; the link is down; syncs were held; no byte is free; another member leads.
 */
#include "nemesis.h"
#include <inttypes.h>
#include <signal.h>
#include <sys/wait.h>

enum { ROUND_FAULTS = 3, LOOK_MS = 5, STATUS_MS = 300, MORE_MS = 20000, ROUNDS = 10, DRAWS = 20 };

struct fault {
    enum fault_kind kind;
    int member, other, ally; /* other: of a pair; ally: shares the lot, and hears and is heard; 0: none */
    int64_t begin_ns, end_ns;
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
    if (f->ally)
        (void)fprintf(n->log, " with %d", f->ally);
    (void)fputs("\n", n->log);
    (void)fflush(n->log);
}

/* ---- partitions ---------------------------------------------------------------------------------- */

/* Who does not hear whom, in a fault on m: deaf, mute or both; or the pair alone. */
static void cut_member(struct nemesis *n, const struct fault *f, int m, bool (*act)(struct cluster *, int, int))
{
    for (int i = 1; i <= n->cluster->n; i++) {
        if (i == f->member || i == f->ally || (f->other && i != f->other))
            continue;
        if (f->kind != FAULT_MUTE)
            (void)act(n->cluster, i, m); /* that it worked is seen by the drops */
        if (f->kind != FAULT_DEAF)
            (void)act(n->cluster, m, i);
    }
}

static void cut(struct nemesis *n, const struct fault *f, bool (*act)(struct cluster *, int, int))
{
    cut_member(n, f, f->member, act);
    if (f->ally)
        cut_member(n, f, f->ally, act);
}

static uint64_t drops(struct nemesis *n)
{
    uint64_t all = 0;

    for (int i = 1; i <= n->cluster->n; i++)
        all += link_dropped(n->cluster, i);
    return all;
}

/* ---- one fault ----------------------------------------------------------------------------------- */

/* All, or the majority that follows the member. */
static bool is_of_most(const struct nemesis *n, const struct fault *f, int i)
{
    int after = (i - f->member + n->cluster->n) % n->cluster->n;

    return f->all || (after > 0 && after <= n->cluster->n / 2 + 1);
}

static void kill_most(struct nemesis *n, struct fault *f)
{
    f->all = below(&n->seed, 2);
    f->happened = true;
    for (int i = 1; i <= n->cluster->n; i++)
        if (is_of_most(n, f, i))
            (void)member_kill(member_of(n, i), SIGKILL); /* always enough */
}

static void move_leader(struct nemesis *n, struct fault *f)
{
    Etcdserverpb__MoveLeaderRequest req = ETCDSERVERPB__MOVE_LEADER_REQUEST__INIT;
    Etcdserverpb__StatusResponse *s;
    ProtobufCMessage *resp = NULL;
    int from = cluster_leader(n->cluster, STATUS_MS), to = 1 + from % n->cluster->n;

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
    f->begin_ns = now_ns();
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
        for (int i = 1; i <= n->cluster->n; i++)
            if (is_of_most(n, f, i))
                start_again(n, i);
        break;
    case FAULT_PAUSE:
        member_resume(m);
        if (f->happened && (now_ns() - f->begin_ns) / 1000000 > n->paused_ms)
            n->paused_ms = (now_ns() - f->begin_ns) / 1000000;
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

enum fault_class { CLASS_PROCESS, CLASS_NETWORK, CLASS_LINK, CLASS_SYNC, CLASS_SPACE, CLASS_LEAD };

static enum fault_class class_of(enum fault_kind k)
{
    static const enum fault_class classes[FAULT_KINDS] = {
        [FAULT_PARTITION] = CLASS_NETWORK, [FAULT_DEAF] = CLASS_NETWORK,    [FAULT_MUTE] = CLASS_NETWORK,
        [FAULT_PAIR] = CLASS_NETWORK,      [FAULT_LINK_DOWN] = CLASS_LINK,  [FAULT_SLOW_DISK] = CLASS_SYNC,
        [FAULT_STALL_DISK] = CLASS_SYNC,   [FAULT_FULL_DISK] = CLASS_SPACE, [FAULT_MOVE] = CLASS_LEAD,
    };

    return classes[k]; /* the others are of processes */
}

/* Of one class only one on a member; kill-most is on all of them. No program ends before its disk does what it was
 * told, and one that is paused does not use it. */
static bool clash(const struct fault *a, const struct fault *b)
{
    bool same = a->member == b->member || (a->ally && (a->ally == b->member || a->ally == b->ally)) ||
                b->ally == a->member || a->kind == FAULT_KILL_MOST || b->kind == FAULT_KILL_MOST;

    if (class_of(a->kind) == class_of(b->kind))
        return same || a->kind == FAULT_MOVE;
    if (class_of(b->kind) == CLASS_PROCESS) {
        const struct fault *other = a;

        a = b;
        b = other;
    }
    return a->member == b->member && ((a->kind == FAULT_STOP && b->kind == FAULT_STALL_DISK) ||
                                      (a->kind == FAULT_PAUSE && class_of(b->kind) == CLASS_SYNC));
}

static int64_t length_ms(struct nemesis *n, enum fault_kind kind)
{
    int64_t ms = 50;

    if (kind == FAULT_MOVE)
        return 50;
    if (kind != FAULT_PAUSE)
        return 300 + (int64_t)below(&n->seed, kind == FAULT_KILL || kind == FAULT_STOP ? 1200 : 2200);
    if (n->longest_ms >= LONG_PAUSE_MS && n->paused_ms < n->longest_ms / 2)
        return n->longest_ms / 2 + (int64_t)below(&n->seed, (uint64_t)n->longest_ms / 2);
    while (ms < n->longest_ms && below(&n->seed, 4)) /* 50 ms, 100 ms, ...: each length as likely as its half */
        ms *= 2;
    ms += (int64_t)below(&n->seed, (uint64_t)ms);
    return ms < n->longest_ms ? ms : n->longest_ms;
}

static void choose(struct nemesis *n, struct fault *f, enum fault_kind kind, int leader)
{
    *f = (struct fault){.kind = kind, .member = 1 + (int)below(&n->seed, (uint64_t)n->cluster->n)};
    if (leader && below(&n->seed, 2))
        f->member = leader;
    if (kind == FAULT_PAIR)
        f->other = 1 + f->member % n->cluster->n;
    if (n->cluster->n > 4 && kind >= FAULT_PARTITION && kind <= FAULT_MUTE && below(&n->seed, 2))
        f->ally = 1 + (f->member + (int)below(&n->seed, 3)) % n->cluster->n;
    f->end_ns = now_ns() + length_ms(n, kind) * 1000000;
}

/* Members that ended without being told to are started again, and counted. */
static void look_after(struct nemesis *n, const struct fault *faults, int n_faults)
{
    for (int i = 1; i <= n->cluster->n; i++) {
        bool may_end = false;

        for (int k = 0; k < n_faults; k++)
            may_end |= faults[k].on && faults[k].kind == FAULT_FULL_DISK && faults[k].member == i;
        if (may_end || !member_ended(member_of(n, i)))
            continue;
        note_end(n, member_of(n, i), false);
        start_again(n, i);
    }
}

/* Where most members are dead hardly anything is sent or synced, so most faults cannot be seen. */
static enum fault_kind other_kind(struct nemesis *n)
{
    if (n->main == FAULT_KILL_MOST && below(&n->seed, 2))
        return below(&n->seed, 2) ? FAULT_LINK_DOWN : FAULT_FULL_DISK;
    return (enum fault_kind)below(&n->seed, FAULT_KINDS);
}

/* More of them, if the seed wants. Returns how many there are. */
static int choose_others(struct nemesis *n, struct fault *faults, int leader)
{
    int n_faults = 1;

    while (!n->alone && n_faults < ROUND_FAULTS && ((n->together && n_faults == 1) || below(&n->seed, 10) < 4)) {
        bool clashes = true;

        for (int i = 0; i < DRAWS && clashes; i++) {
            choose(n, &faults[n_faults], other_kind(n), leader);
            clashes = false;
            for (int k = 0; k < n_faults; k++)
                clashes |= clash(&faults[k], &faults[n_faults]);
        }
        if (clashes)
            break;
        n_faults++;
    }
    return n_faults;
}

static void run_round(struct nemesis *n, int leader)
{
    struct fault faults[ROUND_FAULTS];
    int n_faults, on, at_once, most = 0;

    choose(n, &faults[0], n->main, leader);
    n_faults = choose_others(n, faults, leader);
    for (int i = 0; i < n_faults; i++)
        begin(n, &faults[i]);
    do {
        on = at_once = 0;
        pause_ms(LOOK_MS);
        for (int i = 0; i < n_faults; i++) {
            if (!faults[i].on)
                continue;
            look(n, &faults[i]);
            at_once += faults[i].happened;
            if (now_ns() >= faults[i].end_ns)
                end(n, &faults[i]);
            on += faults[i].on;
        }
        if (at_once > most)
            most = at_once;
        look_after(n, faults, n_faults);
    } while (on);
    n->together_rounds += most > 1;
}

const char *nemesis_lacks(const struct nemesis *n)
{
    if (n->happened[n->main] == 0)
        return names[n->main];
    if (n->together && n->together_rounds == 0)
        return "two faults at once";
    if (n->main == FAULT_PAUSE && n->longest_ms >= LONG_PAUSE_MS && n->paused_ms < n->longest_ms / 2)
        return "a long pause";
    return NULL;
}

void nemesis_run(struct nemesis *n, int64_t until_ns)
{
    int leader = cluster_leader(n->cluster, STATUS_MS), next, rounds = 0;

    do {
        pause_ms(100 + (int64_t)below(&n->seed, 700));
        run_round(n, leader);
        next = cluster_leader(n->cluster, STATUS_MS);
        n->leaders += next && next != leader;
        leader = next ? next : leader;
        rounds++;
    } while (now_ns() < until_ns ||
             (nemesis_lacks(n) && (rounds < ROUNDS || now_ns() < until_ns + MORE_MS * INT64_C(1000000))));
}
