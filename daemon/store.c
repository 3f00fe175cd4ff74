/* SPDX-License-Identifier: Apache-2.0 */
/* store.c - layers, slots and views: who may read what, and when it may be freed.
 *
 * layers = {base, frozen delta or none, live delta}: immutable, behind one atomic pointer that only apply
 * stores. Every reading thread owns a slot {pin, LMDB read txn, the base that txn belongs to}.
 *
 * Opening a view (view_open), on the thread that owns the slot:
 *
 *  1. do { l = layers; pin = l, by CAS from NULL } while (layers != l or l == NULL). All seq_cst. Either apply,
 *     which stores layers and then looks at the pins, sees this pin, or this thread sees the new layers: both
 *     missing each other has no place in the total order. So what a pin holds is never freed. The CAS also takes
 *     the slot back from apply (acquire), see 8.
 *  2. The LMDB txn is renewed: it shows the newest commit. Fence, seq_cst: what the txn shows was read before what
 *     follows. C is loaded, then R, both acquire. C <= R held whenever C was stored, and R only grows: c <= r.
 *     A sweep uses a C that was published before the flush that told base of it, so c is no older than any sweep
 *     the txn shows: a record that is gone is below c.
 *  3. layers is loaded again (seq_cst). The same pointer (it is pinned: no other object can have got its address)
 *     means: no freeze lies between 1 and here, so every change <= r is in base + frozen + live: a change made
 *     after a freeze is published after the new layers were stored, and who loads such an r (acquire) loads the new
 *     pointer. And base shows nothing above r: what is committed was published before it was frozen. Another
 *     pointer: the txn is reset, the pin dropped, back to 1.
 *  4. By key: live, then frozen, then base; the first with a change of the key <= the asked revision wins. frozen
 *     may already be in base: the same changes, no harm (store_view.c).
 *  5. By rev: base's log up to the R in this txn's own meta, then the deltas above it (store_view.c).
 *  6. Closing: the txn is reset, then pin = NULL, with release: everything read came before. Before any wait.
 *
 * Changing layers, on the apply thread:
 *
 *  7. Freeze: {base, live as frozen, new}. Flushed, on the flush thread's message, which comes after the commit:
 *     {base, none, live}; a reader that loads it renews to that commit or a later one. Another state (a
 *     snapshot): layers = NULL, C and R are stored, then {new base, none, new}: between, readers wait in step 1, so
 *     none pairs an old layer with a new revision; R may go back here and nowhere else. A copy of base:
 *     {copy, frozen, live}.
 *  8. Reclaim: a replaced layers object that no slot pins is freed, and with it each delta that no other object
 *     holds. The load of a pin is seq_cst, so it comes after the store of layers (see 1) and acquires what the last
 *     view released (see 6). A replaced base: apply takes each idle slot (CAS pin from NULL to TAKEN, acquire),
 *     frees its txn if it is of that base, gives the slot back (release). When no slot had one, the base is
 *     closed. A thread that opens a view frees a txn of another base than l's by itself.
 *
 * Published: C, then R, then the applied index, all with release (store_publish). Who has seen an applied index
 * (acquire) and opens a view then, reads at the R that belongs to it or a later one.
 *
 * Owner:    apply, but for slots and views. References are not counted: there are never more than a few
 *           layers objects, so who else holds a delta is looked up.
 * Not here: reading through a view (store_view.c), when to freeze and flush (apply.c).
 */
#include <errno.h>
#include <sched.h>
#include "store.h"

struct layers {
    struct base *base;
    struct delta *frozen, *live; /* frozen may be NULL */
    struct layers *next;         /* among the replaced, newest first */
};

/* On a cache line of its own: a pin is stored by each read. */
struct slot {
    alignas(64) _Atomic(struct layers *) pin; /* NULL: no view is open */
    struct base *base;                        /* of reader; with it, of who holds the pin */
    struct base_reader *reader;
    _Atomic bool is_used;
};

struct store {
    _Atomic(struct layers *) layers;
    _Atomic(struct base *) base;           /* the base of layers, for the flush thread, which pins nothing */
    _Atomic int64_t compact_rev, revision; /* C, R */
    _Atomic uint64_t applied;
    _Atomic uint64_t epoch;
    void (*on_damage)(void *ctx, const char *where); /* or NULL; set before other threads are there */
    void *on_damage_ctx;
    _Atomic bool damage_told;
    struct layers *replaced;        /* apply's; may still be pinned */
    struct layers *spare;           /* apply's; for store_flushed, which must not fail */
    struct base *retired;           /* apply's; replaced, not yet closed */
    bool is_clear[STORE_SLOTS_MAX]; /* apply's; this slot has no txn of retired, nor will it have one again */
    struct slot slots[STORE_SLOTS_MAX];
};

/* What a pin holds while apply has the slot. */
static struct layers slot_taken;
#define TAKEN (&slot_taken)

/* ---- slots --------------------------------------------------------------------- */

struct slot *slot_new(struct store *s)
{
    for (int i = 0; i < STORE_SLOTS_MAX; i++)
        if (!atomic_exchange(&s->slots[i].is_used, true))
            return &s->slots[i];
    return NULL;
}

/* The slot is the caller's: it is pinned by it, or TAKEN. */
static void slot_drop_reader(struct slot *sl)
{
    base_reader_free(sl->reader);
    sl->reader = NULL;
    sl->base = NULL;
}

static bool slot_take(struct slot *sl)
{
    struct layers *idle = NULL;

    return atomic_compare_exchange_strong(&sl->pin, &idle, TAKEN);
}

static void slot_give(struct slot *sl)
{
    atomic_store_explicit(&sl->pin, NULL, memory_order_release);
}

void slot_free(struct store *s, struct slot *sl)
{
    if (sl == NULL)
        return;
    assert(sl >= s->slots && sl < s->slots + STORE_SLOTS_MAX);
    while (!slot_take(sl)) {
        assert(atomic_load(&sl->pin) == NULL || atomic_load(&sl->pin) == TAKEN); /* no view is open */
        sched_yield();
    }
    slot_drop_reader(sl);
    slot_give(sl);
    atomic_store(&sl->is_used, false);
}

/* ---- views ---------------------------------------------------------------------- */

/* Step 1. */
static struct layers *slot_pin(struct store *s, struct slot *sl)
{
    for (;;) {
        struct layers *l = atomic_load(&s->layers), *idle = NULL;

        if (l && atomic_compare_exchange_strong(&sl->pin, &idle, l)) {
            if (atomic_load(&s->layers) == l)
                return l;
            slot_give(sl);
            continue;
        }
        /* Apply holds the slot or is between two states: both last a few of its instructions. */
        assert(idle == NULL || idle == TAKEN); /* a second view in one slot */
        sched_yield();
    }
}

/* Step 2, the first half: a txn of l's base, showing the newest commit. */
static int slot_renew(struct slot *sl, const struct layers *l)
{
    int rc;

    if (sl->base != l->base) {
        slot_drop_reader(sl);
        rc = base_reader_new(l->base, &sl->reader);
        if (rc)
            return rc;
        sl->base = l->base;
    }
    return base_reader_renew(sl->reader);
}

int view_open(struct store *s, struct slot *sl, struct view *ret_view)
{
    for (;;) {
        struct layers *l = slot_pin(s, sl);
        int rc = slot_renew(sl, l);
        int64_t c, r;

        if (rc) {
            slot_give(sl);
            return rc;
        }
        atomic_thread_fence(memory_order_seq_cst);
        c = atomic_load_explicit(&s->compact_rev, memory_order_acquire);
        r = atomic_load_explicit(&s->revision, memory_order_acquire);
        if (atomic_load(&s->layers) == l) {
            assert(c <= r);
            *ret_view = (struct view){.store = s,
                                      .slot = sl,
                                      .reader = sl->reader,
                                      .frozen = l->frozen,
                                      .live = l->live,
                                      .compact_rev = c,
                                      .rev = r};
            return 0;
        }
        base_reader_reset(sl->reader);
        slot_give(sl);
    }
}

void view_close(struct view *v)
{
    if (v->slot == NULL)
        return;
    base_reader_reset(v->reader);
    slot_give(v->slot);
    *v = (struct view){.store = v->store};
}

void store_on_damage(struct store *s, void (*fn)(void *ctx, const char *where), void *ctx)
{
    s->on_damage = fn;
    s->on_damage_ctx = ctx;
}

void store_damaged(struct store *s, const char *where)
{
    if (s->on_damage && !atomic_exchange(&s->damage_told, true))
        s->on_damage(s->on_damage_ctx, where);
}

int64_t store_revision(const struct store *s)
{
    return atomic_load_explicit(&s->revision, memory_order_acquire);
}

int64_t store_compact_revision(const struct store *s)
{
    return atomic_load_explicit(&s->compact_rev, memory_order_acquire);
}

uint64_t store_applied(const struct store *s)
{
    return atomic_load_explicit(&s->applied, memory_order_acquire);
}

uint64_t store_epoch(const struct store *s)
{
    return atomic_load(&s->epoch);
}

/* ---- apply: life ------------------------------------------------------------------ */

/* What apply itself stored last. */
static struct layers *current(const struct store *s)
{
    return atomic_load_explicit(&s->layers, memory_order_relaxed);
}

static int read_meta(struct base *b, struct base_meta *ret_meta)
{
    struct base_reader *r;
    int rc = base_reader_new(b, &r);

    if (rc)
        return rc;
    rc = base_reader_renew(r);
    if (rc == 0)
        rc = base_reader_meta(r, ret_meta);
    base_reader_free(r);
    return rc;
}

void store_publish(struct store *s, uint64_t applied_index, int64_t compact_rev, int64_t revision)
{
    assert(compact_rev <= revision);
    atomic_store_explicit(&s->compact_rev, compact_rev, memory_order_release);
    atomic_store_explicit(&s->revision, revision, memory_order_release);
    atomic_store_explicit(&s->applied, applied_index, memory_order_release);
}

int store_new(struct base *b, struct store **ret_store)
{
    struct store *s;
    struct layers *l;
    struct base_meta meta;
    int rc = read_meta(b, &meta);

    if (rc)
        return rc;
    s = aligned_alloc(alignof(struct store), sizeof *s);
    l = calloc(1, sizeof *l);
    if (l)
        *l = (struct layers){.base = b, .live = delta_new()};
    if (s == NULL || l == NULL || l->live == NULL) {
        if (l)
            delta_free(l->live);
        free(l);
        free(s);
        return -ENOMEM;
    }
    memset(s, 0, sizeof *s);
    store_publish(s, meta.seal.applied_index, meta.seal.compact_revision, meta.seal.revision);
    atomic_store(&s->base, b);
    atomic_store(&s->layers, l);
    *ret_store = s;
    return 0;
}

struct delta *store_live(struct store *s)
{
    return current(s)->live;
}

struct delta *store_frozen(struct store *s)
{
    return current(s)->frozen;
}

struct base *store_base(struct store *s)
{
    return atomic_load_explicit(&s->base, memory_order_acquire);
}

/* ---- apply: changing layers (7) ------------------------------------------------------ */

/* b takes the place of the base there is, which is closed when no slot has a txn of it any more. */
static void base_replace(struct store *s, struct base *b)
{
    s->retired = current(s)->base;
    memset(s->is_clear, 0, sizeof s->is_clear);
    atomic_store_explicit(&s->base, b, memory_order_release);
}

/* Stores fresh in place of the current layers, which wait among the replaced until nobody pins them. */
static void layers_replace(struct store *s, struct layers *fresh)
{
    struct layers *old = current(s);

    atomic_store(&s->layers, fresh);
    old->next = s->replaced;
    s->replaced = old;
}

int store_freeze(struct store *s, const struct seal *seal, struct delta **ret_frozen)
{
    struct layers *l = current(s), *fresh = calloc(1, sizeof *fresh);
    struct delta *live = delta_new();

    assert(l->frozen == NULL);
    if (s->spare == NULL)
        s->spare = calloc(1, sizeof *s->spare);
    if (fresh == NULL || live == NULL || s->spare == NULL) {
        delta_free(live);
        free(fresh);
        return -ENOMEM;
    }
    delta_seal(l->live, seal);
    *fresh = (struct layers){.base = l->base, .frozen = l->live, .live = live};
    layers_replace(s, fresh);
    *ret_frozen = fresh->frozen;
    return 0;
}

void store_flushed(struct store *s)
{
    struct layers *l = current(s), *fresh = s->spare;

    assert(l->frozen != NULL);
    assert(fresh != NULL);
    s->spare = NULL;
    *fresh = (struct layers){.base = l->base, .live = l->live};
    layers_replace(s, fresh);
}

int store_swap_base(struct store *s, struct base *b)
{
    struct layers *l = current(s), *fresh;

    (void)store_reclaim(s);
    if (s->retired)
        return -EBUSY;
    fresh = calloc(1, sizeof *fresh);
    if (fresh == NULL)
        return -ENOMEM;
    *fresh = (struct layers){.base = b, .frozen = l->frozen, .live = l->live};
    base_replace(s, b);
    layers_replace(s, fresh);
    return 0;
}

int store_replace_base(struct store *s, struct base *b, int64_t compact_rev, int64_t revision,
                       uint64_t applied_index)
{
    struct layers *l = current(s), *fresh;
    struct delta *live;

    (void)store_reclaim(s);
    if (s->retired)
        return -EBUSY;
    fresh = calloc(1, sizeof *fresh);
    live = delta_new();
    if (fresh == NULL || live == NULL) {
        delta_free(live);
        free(fresh);
        return -ENOMEM;
    }
    *fresh = (struct layers){.base = b, .live = live};
    atomic_fetch_add(&s->epoch, 1);
    base_replace(s, b);
    atomic_store(&s->damage_told, false);
    atomic_store(&s->layers, NULL);
    store_publish(s, applied_index, compact_rev, revision);
    atomic_store(&s->layers, fresh);
    l->next = s->replaced;
    s->replaced = l;
    return 0;
}

/* ---- apply: reclaim (8) ---------------------------------------------------------------- */

static bool is_pinned(struct store *s, const struct layers *l)
{
    for (int i = 0; i < STORE_SLOTS_MAX; i++)
        if (atomic_load(&s->slots[i].pin) == l)
            return true;
    return false;
}

static void delta_drop(struct store *s, struct delta *d)
{
    const struct layers *l = current(s);

    if (d == NULL || d == l->frozen || d == l->live)
        return;
    for (l = s->replaced; l; l = l->next)
        if (d == l->frozen || d == l->live)
            return;
    delta_free(d);
}

/* True: the retired base is closed. */
static bool base_retire(struct store *s)
{
    int n_busy = 0;

    for (const struct layers *l = s->replaced; l; l = l->next)
        if (l->base == s->retired)
            return false;
    for (int i = 0; i < STORE_SLOTS_MAX; i++) {
        struct slot *sl = &s->slots[i];

        if (s->is_clear[i])
            continue;
        if (!slot_take(sl)) {
            n_busy++;
            continue;
        }
        if (sl->base == s->retired)
            slot_drop_reader(sl);
        slot_give(sl);
        s->is_clear[i] = true;
    }
    if (n_busy)
        return false;
    base_close(s->retired);
    s->retired = NULL;
    return true;
}

size_t store_reclaim(struct store *s)
{
    size_t n_waiting = 0;

    for (struct layers **at = &s->replaced; *at;) {
        struct layers *l = *at;

        if (is_pinned(s, l)) {
            n_waiting++;
            at = &l->next;
            continue;
        }
        *at = l->next;
        delta_drop(s, l->frozen);
        delta_drop(s, l->live);
        free(l);
    }
    if (s->retired && !base_retire(s))
        n_waiting++;
    return n_waiting;
}

void store_free(struct store *s)
{
    struct layers *l;
    size_t n_waiting;

    if (s == NULL)
        return;
    l = current(s);
    for (int i = 0; i < STORE_SLOTS_MAX; i++) {
        assert(atomic_load(&s->slots[i].pin) == NULL);
        slot_drop_reader(&s->slots[i]);
    }
    n_waiting = store_reclaim(s);
    assert(n_waiting == 0);
    delta_free(l->frozen);
    delta_free(l->live);
    base_close(l->base);
    free(s->spare);
    free(l);
    free(s);
}
