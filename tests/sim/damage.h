/* SPDX-License-Identifier: Apache-2.0 */
/* damage.h - a member of several whose log or store is damaged, or whose state is another than that of the others.
 *
 * A damaged one is rebuilt at its next start by the daemon's own bootstrap_rebuild.c: it goes on faulty, neither votes
 * nor stands (NoSelfElectionWhileFaulty), and when all is healed it must be whole again, with nothing that was
 * acknowledged lost. One that diverges must be named by the CORRUPT alarm, mark itself and be rebuilt; nobody else may
 * be named (SameOnAllMembers).
 *
 * One at a time, of at least three voters who stay: what may be lost is a minority.
 */
#pragma once
#include "rot.h"

static inline bool may_damage(const struct sim *s)
{
    if (s->conf_pct || s->o.conf.voters.n < 3)
        return false;
    for (unsigned i = 1; i < MEMBERS_SIM_MAX; i++)
        if (s->m[i].damaged || s->m[i].faulty || s->m[i].diverges)
            return false;
    return true;
}

/* Such that it is noticed at the start; what is noticed later is fault_rot's. */
static inline bool damage_log(struct sim_member *m)
{
    for (int i = 0; i < 8; i++) {
        struct explore_units *none = calloc(1, sizeof *none);
        struct fakedisk copy;
        struct fake_inode *f;
        struct wal_options o;
        struct wal_state st;
        struct wal *wal = NULL;
        char why[256], dir[16];
        bool kept[1] = {false};
        int err = 0;

        explore_make(&m->disk, none, kept, SLICE_NONE, &copy);
        free(none);
        f = rot_file(m->w, &copy);
        o = member_wal_options(m, dir);
        o.disk = &copy.disk;
        if (f && rot_flip(m->w, f))
            err = wal_open(&o, &wal, &st, why, sizeof why);
        if (err == -EUCLEAN) {
            fakedisk_fini(&m->disk);
            m->disk = copy;
            return true;
        }
        if (wal)
            wal_close(wal);
        fakedisk_fini(&copy);
    }
    return false;
}

/* Both of LMDB's roots. */
static inline bool damage_store(struct sim_member *m)
{
    static const uint8_t zeros[8192];
    char path[96];
    FILE *f;

    member_base_file(m, "data.mdb", path);
    f = fopen(path, "r+b");
    assert(f);
    (void)fwrite(zeros, 1, sizeof zeros, f);
    (void)fclose(f);
    return true;
}

static inline void fault_damage(struct sim_member *m)
{
    if (m->up)
        member_crash(m, world_chance(m->w, 50));
    m->damaged = world_chance(m->w, 50) ? damage_log(m) : damage_store(m);
    m->w->did.damages += m->damaged;
    world_line(m->w, "fault: m%" PRIu64 " is %sdamaged", m->id, m->damaged ? "" : "not ");
}

/* As if an entry had done something else on it. */
static inline void fault_diverge(struct sim_member *m)
{
    /* Its hash is known to be right so far: then it is known after a restart whether this was lost with the memory. */
    if (!m->up || m->turn->status.faulty || m->apply->applied < 2 ||
        m->apply->hash != m->s->o.log[m->apply->applied].state_hash)
        return;
    m->apply->hash ^= 1 + world_random64(m->w) / 2;
    m->diverges = m->s->o.planted[m->id] = true;
    m->diverges_at = m->apply->applied;
    m->w->did.divergences++;
    world_line(m->w, "fault: m%" PRIu64 "'s state is another from %" PRIu64 " on", m->id, m->apply->applied);
}
