/* SPDX-License-Identifier: Apache-2.0 */
/* faults.h - what goes wrong in a run, one or more at a time, and how it is healed. */
#pragma once
#include "client.h"
#include "damage.h"

static inline struct sim_member *any_member(struct sim *s)
{
    struct sim_member *m;

    do
        m = &s->m[1 + world_random(&s->w, s->n)];
    while (!m->exists);
    return m;
}

static inline struct sim_member *sim_leader(struct sim *s)
{
    struct sim_member *best = NULL;

    for (unsigned i = 1; i <= s->n; i++) {
        struct sim_member *m = &s->m[i];

        if (m->up && m->turn->status.role == RAFT_LEADER &&
            (best == NULL || m->turn->status.term > best->turn->status.term))
            best = m;
    }
    return best;
}

/* The leader as often as not: that is where it hurts. */
static inline struct sim_member *victim(struct sim *s)
{
    struct sim_member *leader = sim_leader(s);

    return leader && world_chance(&s->w, 50) ? leader : any_member(s);
}

static inline void net_heal(struct sim *s)
{
    memset(s->net_options->cut, 0, sizeof s->net_options->cut);
    memset(s->net_options->slow_us, 0, sizeof s->net_options->slow_us);
}

static inline void fault_partition(struct sim *s)
{
    uint64_t side = world_random(&s->w, UINT64_C(1) << s->n);
    bool one_way = world_chance(&s->w, 30);

    for (unsigned a = 1; a <= s->n; a++)
        for (unsigned b = 1; b <= s->n; b++) {
            bool apart = ((side >> (a - 1)) & 1) != ((side >> (b - 1)) & 1);

            s->net_options->cut[a][b] = apart && (!one_way || ((side >> (a - 1)) & 1));
        }
    s->w.did.partitions++;
    s->w.did.one_way += one_way;
    world_line(&s->w, "fault: partition %" PRIx64 "%s", side, one_way ? " one way" : "");
}

static inline void fault_alone(struct sim *s, struct sim_member *m)
{
    for (unsigned i = 1; i <= s->n; i++)
        s->net_options->cut[i][m->id] = s->net_options->cut[m->id][i] = i != m->id;
    s->w.did.partitions++;
    world_line(&s->w, "fault: m%" PRIu64 " alone", m->id);
}

static inline void crash_now(struct sim *s, struct sim_member *m, bool power)
{
    member_crash(m, power);
    net_death(s, m->id);
}

static inline void fault_flush(struct sim_member *m)
{
    if (!m->up)
        return;
    m->apply->freeze_now = true; /* as when a delta is full */
    mailbox_nudge(&m->apply->box);
    member_poll(m);
}

static inline void fault_crash(struct sim *s, struct sim_member *m)
{
    if (!m->up)
        return;
    switch (world_random(&s->w, 5)) {
    case 1: /* in the middle of its next flush: after the n-th commit of it */
        m->commit_crash_at = 1 + (unsigned)world_random(&s->w, 2);
        fault_flush(m);
        world_line(&s->w, "fault: m%" PRIu64 " will lose power in a flush", m->id);
        break;
    case 0: /* in the middle of its next write */
        m->excused = true;
        m->wal_crash_at = 1 + world_random(&s->w, 6);
        s->w.did.cuts_in_write++;
        world_line(&s->w, "fault: m%" PRIu64 " will lose power in a write", m->id);
        break;
    default:
        crash_now(s, m, world_chance(&s->w, 60));
        break;
    }
}

/* All of them, at once: what was acknowledged is on the platters or nowhere. */
static inline void fault_blackout(struct sim *s)
{
    world_line(&s->w, "fault: power cut for all");
    for (unsigned i = 1; i <= s->n; i++)
        if (s->m[i].up)
            member_crash(&s->m[i], true);
}

static inline void fault_disk(struct sim *s, struct sim_member *m)
{
    if (!m->up)
        return;
    switch (world_random(&s->w, 4)) {
    case 0:
        m->stall_until_us = s->w.now_us + world_random(&s->w, 4 * s->election_ms * 1000);
        s->w.did.stalls++;
        world_line(&s->w, "fault: m%" PRIu64 "'s disk stalls until %.3f", m->id,
                   (double)m->stall_until_us / 1000);
        break;
    case 3: /* a failed write or sync, once: the member stops, whatever the disk says afterwards */
        if (m->disk.fail_call == 0 && world_chance(&s->w, 50)) {
            m->disk.fail_call = m->disk.calls + 1 + world_random(&s->w, 4);
            m->disk.fail_err = -EIO;
            m->excused = true;
            s->w.did.eio_stops++;
            world_line(&s->w, "fault: m%" PRIu64 "'s disk will fail once", m->id);
        }
        break;
    case 1:
        m->disk.capacity = m->disk.capacity ? 0 : 1; /* what is there stays, nothing is added */
        world_line(&s->w, "fault: m%" PRIu64 "'s disk is %s", m->id,
                   m->disk.capacity ? "full" : "empty again");
        break;
    default:
        m->disk_us = 50 + world_random(&s->w, world_chance(&s->w, 20) ? 200000 : 5000);
        break;
    }
}

static inline void fault_pause(struct sim *s, struct sim_member *m)
{
    if (!m->up)
        return;
    m->paused = !m->paused;
    s->w.did.pauses += m->paused;
    world_line(&s->w, "fault: m%" PRIu64 " %s", m->id, m->paused ? "is paused" : "goes on");
}

/* True: somebody who was down or paused is back. */
static inline bool fault_revive(struct sim *s)
{
    for (int i = 0; i < 3; i++) {
        struct sim_member *m = any_member(s);

        if (m->paused) {
            fault_pause(s, m);
            return true;
        }
        if (!m->up && m->exists) {
            if (world_chance(&s->w, 20))
                fault_rot(m);
            (void)member_start(m);
            return true;
        }
    }
    return false;
}

static inline void fault_net(struct sim *s)
{
    struct net_options *o = s->net_options;

    o->drop_pct = world_chance(&s->w, 50) ? 0 : (unsigned)world_random(&s->w, 25);
    o->dup_pct = world_chance(&s->w, 50) ? 0 : (unsigned)world_random(&s->w, 15);
    o->straggle_pct = world_chance(&s->w, 60) ? 0 : (unsigned)world_random(&s->w, 15);
    o->delay_us = 100 + world_random(&s->w, world_chance(&s->w, 20) ? 3000 * s->heartbeat_ms : 2000);
}

/* A leader may be heard and hears late: what it is told of itself is of a time when it did lead. */
static inline void fault_slander(struct sim *s)
{
    struct sim_member *leader = sim_leader(s);

    if (leader == NULL)
        return;
    s->w.did.slanders++;
    if (world_chance(&s->w, 60)) {
        s->net_options->slow_us[leader->id] = (1 + world_random(&s->w, 10)) * s->heartbeat_ms * 1000;
        s->w.did.late_leaders++;
    }
    for (unsigned i = 1; i <= s->n; i++)
        if (s->m[i].up && !s->m[i].paused && i != leader->id && world_chance(&s->w, 70))
            turn_suspect(s->m[i].turn, leader->id);
    world_line(&s->w, "fault: m%" PRIu64 " is said to be dead, and hears %" PRIu64 " us late", leader->id,
               s->net_options->slow_us[leader->id]);
}

static inline void disturb(struct sim *s)
{
    struct sim_member *m = victim(s);

    if (world_chance(&s->w, 40) && fault_revive(s))
        return;
    switch (world_random(&s->w, 22)) {
    case 0:
    case 1:
    case 2:
        fault_crash(s, m);
        break;
    case 3:
        if (world_chance(&s->w, 40))
            fault_blackout(s);
        break;
    case 4:
    case 5:
        fault_disk(s, m);
        break;
    case 6:
        fault_pause(s, m);
        break;
    case 7:
    case 8:
        if (s->n > 1)
            fault_partition(s);
        break;
    case 9:
        if (s->n > 1)
            fault_alone(s, m);
        break;
    case 10:
    case 11:
        net_heal(s);
        world_line(&s->w, "fault: network healed");
        break;
    case 12:
        fault_net(s);
        break;
    case 13:
    case 19:
        if (s->n > 1)
            fault_slander(s);
        break;
    case 14:
    case 15:
        m = sim_leader(s);
        if (m && !m->paused)
            ask_transfer(s, m, false);
        break;
    case 16:
        if (m->up && !m->paused)
            ask_transfer(s, m, true);
        break;
    case 17:
        if (may_damage(s))
            fault_damage(m);
        break;
    case 18:
        if (may_damage(s) && world_chance(&s->w, 50))
            fault_diverge(m);
        break;
    default:
        fault_flush(m);
        break;
    }
}

static inline void heal_all(struct sim *s)
{
    world_line(&s->w, "everything is healed");
    net_heal(s);
    s->net_options->drop_pct = s->net_options->dup_pct = s->net_options->straggle_pct = 0;
    s->net_options->delay_us = 500;
    for (unsigned i = 1; i <= s->n && !s->w.failed; i++) {
        struct sim_member *m = &s->m[i];

        m->paused = false;
        m->stall_until_us = 0;
        m->disk_us = 300;
        m->disk.capacity = 0;
        m->wal_crash_at = m->commit_crash_at = m->disk.fail_call = 0;
        m->disk.fail_for_ever = false;
        if (!m->up && m->exists)
            (void)member_start(m);
        for (int t = 0; t < THREADS && m->up; t++)
            member_call(m, (enum thread)t, s->w.now_us + 1 + world_random(&s->w, 1000));
    }
}
