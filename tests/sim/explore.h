/* SPDX-License-Identifier: Apache-2.0 */
/* explore.h - all that a power cut may leave of a fakedisk.
 *
 * What is not synced is a set of units: each sector of each waiting write, each directory operation (both names of a
 * rename are one). A crash state is what is durable plus any subset of the units, the writes of one sector in their
 * order. With few units every subset is made; with many: none, all, every prefix and suffix, each one alone, all but
 * each one, and some at random. States that are byte for byte the same are made once.
 *
 * A file that has lost its newest sectors is shorter, or zero there. With `stale` some have grown all the same, and
 * what is lost reads as whatever the blocks held before: the bytes of a file that is gone, for one.
 */
#pragma once
#include "fakedisk.h"
#include "splitmix.h"

enum { EXPLORE_UNITS_MAX = 512, EXPLORE_ALL_UP_TO = 6, EXPLORE_RANDOM = 12, EXPLORE_SEEN = 1 << 20 };
enum { EXPLORE_STALE_IN = 8 }; /* of as many states one has stale blocks */

struct explore_units {
    struct {
        uint32_t op; /* a directory operation, or 0: */
        size_t name; /* of this file */
        struct fake_write *write;
        size_t from, n; /* these bytes of it */
    } u[EXPLORE_UNITS_MAX];
    size_t n;
    bool too_many;
};

struct explorer {
    void (*check)(void *ctx, struct fakedisk *crashed); /* the disk is the callee's to change, not to keep */
    /* What blocks never written hold, from the beginning of a file on. NULL: nothing is ever stale. */
    struct slice (*stale)(void *ctx, const struct fakedisk *d, uint64_t random);
    void *ctx;
    uint64_t states, points, seed, with_stale;
    uint64_t *seen; /* [EXPLORE_SEEN] */
};

static inline uint64_t explore_random(struct explorer *x)
{
    return splitmix64(&x->seed);
}

static inline void explore_add_op(struct explore_units *us, uint32_t op)
{
    for (size_t i = 0; i < us->n; i++)
        if (us->u[i].op == op)
            return;
    if (us->n < EXPLORE_UNITS_MAX)
        us->u[us->n++].op = op;
    else
        us->too_many = true;
}

static inline void explore_collect(const struct fakedisk *d, struct explore_units *us)
{
    memset(us, 0, sizeof *us);
    for (size_t k = 0; k < d->n_names; k++) {
        const struct fake_name *n = &d->name[k];

        if (n->now != n->durable || n->now_dir != n->durable_dir)
            explore_add_op(us, n->op);
        for (struct fake_write *w = n->now ? n->now->waiting : NULL; w; w = w->next)
            for (size_t at = 0, part; at < w->n; at += part) {
                part = FAKE_SECTOR - (w->offset + at) % FAKE_SECTOR;
                if (part > w->n - at)
                    part = w->n - at;
                if (us->n == EXPLORE_UNITS_MAX) {
                    us->too_many = true;
                    return;
                }
                us->u[us->n].name = k;
                us->u[us->n].write = w;
                us->u[us->n].from = at;
                us->u[us->n++].n = part;
            }
    }
}

/* What of the file's new sectors was not written: it holds what is stale. */
static inline void explore_uncover(const struct fake_inode *from, const struct explore_units *us, const bool *kept,
                                   struct slice stale, struct fake_inode *i)
{
    size_t end = from->view_size < stale.len ? from->view_size : stale.len;

    for (size_t at = from->durable_size; at < end; at += FAKE_SECTOR) {
        size_t n = end - at < FAKE_SECTOR ? end - at : FAKE_SECTOR;
        bool written = false;

        for (size_t u = 0; u < us->n && !written; u++) {
            const struct fake_write *w = us->u[u].write;

            for (const struct fake_write *own = kept[u] && us->u[u].op == 0 ? from->waiting : NULL; own;
                 own = own->next)
                written |= own == w && w->offset + us->u[u].from <= at && at < w->offset + us->u[u].from + us->u[u].n;
        }
        if (!written)
            fake_bytes(&i->durable, &i->durable_size, at, stale.ptr + at, n);
    }
}

static inline struct fake_inode *explore_inode(const struct fake_inode *from, const struct explore_units *us,
                                               const bool *kept, struct slice stale)
{
    struct fake_inode *i = calloc(1, sizeof *i);

    assert(i);
    i->refs = 1;
    i->last = &i->waiting;
    if (from->durable_size)
        fake_bytes(&i->durable, &i->durable_size, 0, from->durable, from->durable_size);
    for (struct fake_write *w = from->waiting; w; w = w->next)
        for (size_t u = 0; u < us->n; u++)
            if (kept[u] && us->u[u].op == 0 && us->u[u].write == w)
                fake_bytes(&i->durable, &i->durable_size, w->offset + us->u[u].from, w->data + us->u[u].from,
                           us->u[u].n);
    explore_uncover(from, us, kept, stale, i);
    i->view = malloc(i->durable_size + 1);
    assert(i->view);
    if (i->durable_size)
        memcpy(i->view, i->durable, i->durable_size);
    i->view_size = i->durable_size;
    return i;
}

static inline bool explore_keeps_op(const struct explore_units *us, const bool *kept, uint32_t op)
{
    for (size_t u = 0; u < us->n; u++)
        if (us->u[u].op == op)
            return kept[u];
    return false;
}

/* One crash state, as a disk of its own. */
static inline void explore_make(const struct fakedisk *d, const struct explore_units *us, const bool *kept,
                                struct slice stale, struct fakedisk *ret)
{
    fakedisk_init(ret, d->seed);
    ret->n_names = d->n_names;
    for (size_t k = 0; k < d->n_names; k++) {
        const struct fake_name *n = &d->name[k];
        bool changed = n->now != n->durable || n->now_dir != n->durable_dir;
        bool now = !changed || explore_keeps_op(us, kept, n->op);
        const struct fake_inode *from = now ? n->now : n->durable;
        struct fake_name *to = &ret->name[k];

        *to = *n;
        to->now_dir = to->durable_dir = now ? n->now_dir : n->durable_dir;
        to->now = to->durable = from ? explore_inode(from, us, kept, stale) : NULL;
    }
    fake_drop_orphans(ret);
}

static inline uint64_t explore_print(const struct fakedisk *d)
{
    uint64_t h = 14695981039346656037u;

    for (size_t k = 0; k < d->n_names; k++) {
        const struct fake_inode *i = d->name[k].now;

        h = (h ^ k ^ (uint64_t)d->name[k].now_dir << 32) * 1099511628211u;
        for (size_t at = 0; i && at + 8 <= i->durable_size; at += 8)
            h = (h ^ get_u64le(i->durable + at) ^ h >> 29) * 1099511628211u;
        h = (h ^ (i ? i->durable_size + 1 : 0)) * 1099511628211u;
    }
    return h | 1;
}

static inline bool explore_is_new(struct explorer *x, uint64_t print)
{
    for (uint64_t h = print * 0x9e3779b97f4a7c15u >> 40;; h++) {
        uint64_t *slot = &x->seen[h % EXPLORE_SEEN];

        if (*slot == print)
            return false;
        if (*slot == 0) {
            *slot = print;
            return true;
        }
    }
}

static inline void explore_one(struct explorer *x, const struct fakedisk *d, const struct explore_units *us,
                               const bool *kept, uint64_t salt)
{
    struct slice stale = SLICE_NONE;
    struct fakedisk crashed;

    if (x->stale && explore_random(x) % EXPLORE_STALE_IN == 0)
        stale = x->stale(x->ctx, d, explore_random(x));
    explore_make(d, us, kept, stale, &crashed);
    if (x->states < EXPLORE_SEEN / 2 &&
        explore_is_new(x, (explore_print(&crashed) ^ salt * 0x9e3779b97f4a7c15u) | 1)) {
        x->states++;
        x->with_stale += stale.len > 0;
        x->check(x->ctx, &crashed);
    }
    fakedisk_fini(&crashed);
}

/* Every state, or the telling ones, that a power cut at this moment may leave. salt: what else tells moments apart. */
static inline void explore(struct explorer *x, const struct fakedisk *d, uint64_t salt)
{
    struct explore_units *mine = malloc(sizeof *mine);
    bool kept[EXPLORE_UNITS_MAX] = {false};
    size_t n;

    assert(mine);
    explore_collect(d, mine);
    x->points++;
    n = mine->n;
    if (n <= EXPLORE_ALL_UP_TO) {
        for (uint32_t set = 0; set < 1u << n; set++) {
            for (size_t i = 0; i < n; i++)
                kept[i] = set >> i & 1;
            explore_one(x, d, mine, kept, salt);
        }
        free(mine);
        return;
    }
    for (size_t cut = 0; cut <= n; cut++) {
        for (size_t i = 0; i < n; i++)
            kept[i] = i < cut;
        explore_one(x, d, mine, kept, salt); /* a prefix */
        for (size_t i = 0; i < n; i++)
            kept[i] = i >= cut;
        explore_one(x, d, mine, kept, salt); /* a suffix */
        for (size_t i = 0; i < n; i++)
            kept[i] = i == cut;
        explore_one(x, d, mine, kept, salt); /* one */
        for (size_t i = 0; i < n; i++)
            kept[i] = i != cut;
        explore_one(x, d, mine, kept, salt); /* all but one */
    }
    for (int r = 0; r < EXPLORE_RANDOM; r++) {
        for (size_t i = 0; i < n; i++)
            kept[i] = explore_random(x) & 1;
        explore_one(x, d, mine, kept, salt);
    }
    free(mine);
}
