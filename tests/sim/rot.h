/* SPDX-License-Identifier: Apache-2.0 */
/* rot.h - a member's log that has changed while nobody looked: a bit flipped, or a sector of elsewhere in its place.
 *
 * Tried on a copy of its disk: it is refused, or opened with all that was stored and nothing that was not.
 */
#pragma once
#include "check.h"
#include "explore.h"

/* A segment of the log with something in it; NULL: none found by some tries. */
static inline struct fake_inode *rot_file(struct world *w, struct fakedisk *d)
{
    for (int i = 0; i < 40; i++) {
        struct fake_name *n = &d->name[world_random(w, d->n_names)];

        if (n->now && strstr(n->path, ".wal") && n->now->durable_size >= 2 * FAKE_SECTOR)
            return n->now;
    }
    return NULL;
}

/* A byte that says something. */
static inline bool rot_flip(struct world *w, struct fake_inode *f)
{
    for (int i = 0; i < 200; i++) {
        uint64_t at = world_random(w, f->durable_size);
        uint8_t b = f->durable[at];

        if (b == 0)
            continue;
        b ^= (uint8_t)(1u << world_random(w, 8));
        fakedisk_poke(f, at, &b, 1);
        world_line(w, "rot: a bit at %" PRIu64, at);
        return true;
    }
    return false;
}

/* The sector of the newest batch's head; 0: none. */
static inline uint64_t rot_last_batch(const struct fake_inode *f)
{
    for (uint64_t at = f->durable_size / FAKE_SECTOR; at > 0; at--)
        if (memcmp(f->durable + (at - 1) * FAKE_SECTOR, "BTCH", 4) == 0)
            return at - 1;
    return 0;
}

/* Not over the newest batch: what replaces it may look as if it had never been written whole. */
static inline bool rot_misdirect(struct world *w, struct fake_inode *from, struct fake_inode *to)
{
    uint64_t sectors = from->durable_size / FAKE_SECTOR, n = 1 + world_random(w, 4), at, whence;
    uint8_t bytes[4 * FAKE_SECTOR];

    if (sectors <= n || to->durable_size <= n * FAKE_SECTOR)
        return false;
    whence = world_random(w, sectors - n);
    at = from == to || world_chance(w, 50) ? world_random(w, to->durable_size / FAKE_SECTOR - n) : whence;
    if ((at + n) * FAKE_SECTOR > to->durable_size || at + n > rot_last_batch(to))
        return false;
    for (uint64_t i = 0; i < n; i++) /* zeros: the loss of its last sectors is what no log can see */
        if (wal_is_zero(from->durable + (whence + i) * FAKE_SECTOR, FAKE_SECTOR))
            return false;
    memcpy(bytes, from->durable + whence * FAKE_SECTOR, n * FAKE_SECTOR);
    fakedisk_poke(to, at * FAKE_SECTOR, bytes, n * FAKE_SECTOR);
    world_line(w, "rot: %" PRIu64 " sectors from %" PRIu64 " to %" PRIu64 "%s", n, whence, at,
               from == to ? "" : " of another segment");
    return true;
}

static inline void rot_judge(struct sim_member *m, struct wal *wal, const struct wal_state *st)
{
    struct wal *mine = m->wal;

    m->wal = wal;
    if (st->last_index < m->durable_last &&
        st->last_term <= (m->durable_last ? m->durable_terms[m->durable_last] : 0))
        world_fail(m->w, "RotIsNoticed",
                   "member %" PRIu64 " opens a damaged log at %" PRIu64 ", had stored %" PRIu64, m->id,
                   st->last_index, m->durable_last);
    for (uint64_t i = st->first_index + 1; i <= st->last_index; i++) {
        struct entry *e;

        if (wal_read(wal, i, &e) != 0)
            continue; /* refused when it is asked for */
        if (i <= m->durable_last && (e->term < m->durable_terms[i]))
            world_fail(m->w, "RotIsNoticed",
                       "member %" PRIu64 " opens a damaged log with an old entry at %" PRIu64, m->id, i);
        oracle_see(m->w, &m->s->o, m->id, e, wal_run_term(wal, i - 1));
        entry_unref(e);
    }
    m->wal = mine;
}

/* The member is down. */
static inline void fault_rot(struct sim_member *m)
{
    struct explore_units *none = calloc(1, sizeof *none);
    struct wal_state st;
    struct fakedisk copy;
    struct fake_inode *a, *b;
    struct wal_options o;
    struct wal *wal;
    char why[256], dir[16];
    bool kept[1] = {false}, done;

    explore_make(&m->disk, none, kept, SLICE_NONE, &copy);
    free(none);
    a = rot_file(m->w, &copy);
    b = rot_file(m->w, &copy);
    done = a && b && (world_chance(m->w, 60) ? rot_flip(m->w, a) : rot_misdirect(m->w, a, b));
    o = member_wal_options(m, dir);
    o.disk = &copy.disk;
    if (done && wal_open(&o, &wal, &st, why, sizeof why) == 0) {
        rot_judge(m, wal, &st);
        wal_close(wal);
    }
    m->w->did.rots += done;
    fakedisk_fini(&copy);
}
