/* SPDX-License-Identifier: Apache-2.0 */
/* crashfs_cuts.h - which of the crash states of a record (crashfs.h) are tried.
 *
 * With few units that may be lost, every subset of them; with many: none, all, and as many more as wanted, drawn: the
 * newest or the oldest, all but one, one, file by file, data or names alone, a coin for each. States that are byte for
 * byte the same, and of which the same is promised, are tried once.
 */
#pragma once
#include "crashfs.h"

enum { CRASHFS_SEEN = 1 << 20, CRASHFS_ALL_UP_TO = 5 };

struct crashfs_cuts {
    bool (*check)(struct crashfs *f, const struct crashfs_tree *crashed); /* false: no more */
    uint64_t (*dice)(uint64_t below);
    uint64_t moments, n_seen;
    uint64_t *seen; /* [CRASHFS_SEEN] */
};

static inline void crashfs_cuts_init(struct crashfs_cuts *x,
                                     bool (*check)(struct crashfs *, const struct crashfs_tree *),
                                     uint64_t (*dice)(uint64_t below))
{
    *x = (struct crashfs_cuts){.check = check, .dice = dice, .seen = calloc(CRASHFS_SEEN, sizeof *x->seen)};
    REQUIRE(x->seen);
}

static inline void crashfs_cuts_forget(struct crashfs_cuts *x)
{
    memset(x->seen, 0, CRASHFS_SEEN * sizeof *x->seen);
    x->n_seen = 0;
}

static inline void crashfs_cuts_fini(struct crashfs_cuts *x)
{
    free(x->seen);
}

static inline void crashfs_collect(const struct crashfs *f, uint32_t k, struct crashfs_units *us)
{
    static bool synced[CRASHFS_INODES], through[CRASHFS_OPS];

    memset(synced, 0, sizeof synced);
    memset(through, 0, sizeof through);
    us->n = 0;
    for (uint32_t i = k; i > 0; i--) {
        const struct crashfs_op *o = &f->op[i - 1];
        bool durable;

        us->first[i - 1] = UINT32_MAX;
        if (o->kind == CRASHFS_SYNC)
            synced[o->inode] = true;
        if (o->kind == CRASHFS_THROUGH)
            through[o->write] = true;
        durable = o->kind >= CRASHFS_SYNC || through[i - 1] ||
                  synced[o->kind == CRASHFS_WRITE || o->kind == CRASHFS_SIZE ? o->inode : o->dir];
        if (durable)
            continue;
        us->first[i - 1] = us->n;
        for (uint64_t from = 0, n; from < o->n || from == 0; from += n) {
            n = o->kind == CRASHFS_WRITE ? CRASHFS_SECTOR - (o->at + from) % CRASHFS_SECTOR : UINT64_MAX / 2;
            if (o->kind == CRASHFS_WRITE && n > o->n - from)
                n = o->n - from;
            REQUIRE(us->n < CRASHFS_UNITS);
            us->u[us->n].op = i - 1;
            us->u[us->n].from = from;
            us->u[us->n++].n = n;
            if (o->kind != CRASHFS_WRITE || n == 0)
                break;
        }
    }
}

static inline bool crashfs_is_new(struct crashfs_cuts *x, uint64_t print)
{
    if (x->n_seen > CRASHFS_SEEN / 2)
        crashfs_cuts_forget(x);
    for (uint64_t h = print >> 40;; h++) {
        uint64_t *slot = &x->seen[h % CRASHFS_SEEN];

        if (*slot == print)
            return false;
        if (*slot == 0) {
            *slot = print;
            x->n_seen++;
            return true;
        }
    }
}

static inline bool crashfs_cut_one(struct crashfs_cuts *x, struct crashfs *f, uint32_t k,
                                   const struct crashfs_units *us, uint64_t salt)
{
    struct crashfs_tree *t = crashfs_after(f, k, us);
    uint64_t print = crashfs_print(t, 0, 1) + salt * 0x9e3779b97f4a7c15u;
    bool more = !crashfs_is_new(x, print * 0x9e3779b97f4a7c15u | 1) || x->check(f, t);

    crashfs_tree_free(t, CRASHFS_INODES);
    free(t);
    return more;
}

/* A subset of what is not synced, of many. Units stand in the order of their calls, the newest first. */
static inline void crashfs_draw(struct crashfs_cuts *x, const struct crashfs *f, struct crashfs_units *us)
{
    static const uint64_t odds[3] = {2, 8, 64};
    uint64_t how = x->dice(8), cut = x->dice(us->n + 1), odd = odds[x->dice(3)], coins = x->dice(UINT64_MAX);
    bool most = x->dice(2);

    for (uint32_t i = 0; i < us->n; i++) {
        const struct crashfs_op *o = &f->op[us->u[i].op];
        bool entry = o->kind >= CRASHFS_LINK;

        switch (how) {
        case 0: us->kept[i] = i < cut; break;
        case 1: us->kept[i] = i >= cut; break;
        case 2: us->kept[i] = (i == cut) != most; break;
        case 3: us->kept[i] = coins >> o->inode % 61 & 1; break; /* file by file */
        case 4: us->kept[i] = entry || (x->dice(odd) == 0) != most; break;
        case 5: us->kept[i] = entry ? x->dice(2) : most; break;
        default: us->kept[i] = (x->dice(odd) == 0) != most; break;
        }
    }
    us->keeps_sizes = x->dice(4) == 0;
}

/* States after the first k operations, up to `most` of them. salt: what else tells them from others. */
static inline void crashfs_cut(struct crashfs_cuts *x, struct crashfs *f, uint32_t k, unsigned most, uint64_t salt)
{
    struct crashfs_units *us = malloc(sizeof *us);
    bool all, more = true;

    REQUIRE(us);
    us->keeps_sizes = false;
    crashfs_collect(f, k, us);
    x->moments++;
    all = us->n <= CRASHFS_ALL_UP_TO && 1u << us->n <= most;
    for (unsigned i = 0; i < (all ? 1u << us->n : most) && more; i++) {
        for (uint32_t u = 0; u < us->n && (all || i < 2); u++)
            us->kept[u] = all ? i >> u & 1 : i == 0;
        if (!all && i >= 2)
            crashfs_draw(x, f, us);
        more = crashfs_cut_one(x, f, k, us, salt);
    }
    free(us);
}
