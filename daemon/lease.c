/* SPDX-License-Identifier: Apache-2.0 */
/* lease.c - the leases there are, and on the leader, when each is due.
 *
 * A hash table by id, and a heap by `due_ms`. A renewal only moves the expiry, always forward, so it leaves the heap
 * alone: what comes up too early is sorted in again at its real expiry. On a member that does not lead there is no
 * heap and nothing expires.
 *
 * Clocks show whole milliseconds, cut off, so a time that is to pass from now on is over one of them later (`after`): a
 * lease lives a little longer than it says, and never less.
 *
 * Owner: protected by t->mu; apply changes the set, rpc threads renew, the turn asks what has expired. A mailbox would
 *        not do: a lone member answers a keep-alive on its rpc thread without a hop.
 *
 * A checkpoint is "marked" from when the leader takes it for an entry until apply brings it back: a renewal in between
 * must know that the log will say less than what it promises.
 * Not here: rows (apply_lease.c), the keys of a lease (view_lease_keys), who proposes the expiry (turn.c).
 * Source: reference 02-semantics 2.4; etcd v3.7.1 server/lease/lessor.go for retry and spreading.
 */
#include "lease.h"
#include <errno.h>
#include <pthread.h>
#include "err.h"

#define EXPIRE_EACH_MS 100      /* at most one expiry entry in this time, */
#define EXPIRE_FULL_MS 500      /* in this time after a full one */
#define SPREAD_FROM 1000        /* leases; fewer start anew without spreading */
#define SPREAD_PER_SECOND 750   /* three quarters of what 500 each 500 ms can revoke */
#define MARK_LOOK_MS 500        /* the whole table is looked at for checkpoints in this time, */
#define MARK_BUCKETS 4096       /* so many buckets at a time, */
#define MARK_NEXT_MS 10         /* the next ones after this */

struct lease {
    struct lease *hash_next;
    int64_t id, ttl_s, checkpoint_s;
    int64_t marked_s;           /* the newest checkpoint taken for an entry, or handed down; 0: none */
    uint32_t marks_out;         /* taken and not yet applied */
    bool ours;                  /* granted or renewed under this leader */
    uint64_t expiry_ms, due_ms; /* due <= expiry, or a retry */
    size_t heap_at;
    struct lease_wait *waits;
};

struct lease_table {
    pthread_mutex_t mu;
    struct clock *clock;
    int64_t min_ttl_s;
    /* protected by mu: */
    struct lease **buckets;
    size_t n_buckets, n; /* n_buckets is a power of two */
    struct lease **heap; /* room for n at least; in use while primary */
    size_t heap_room;
    bool primary;
    uint64_t not_before_ms; /* of the next expiry entry */
    size_t mark_at;         /* the next bucket to look at for checkpoints */
};

struct lease_table *lease_table_new(struct clock *clock, int64_t min_ttl_s)
{
    struct lease_table *t = calloc(1, sizeof *t);

    if (t == NULL)
        return NULL;
    t->clock = clock;
    t->min_ttl_s = min_ttl_s;
    t->n_buckets = 64;
    t->buckets = calloc(t->n_buckets, sizeof *t->buckets);
    if (t->buckets == NULL) {
        free(t);
        return NULL;
    }
    pthread_mutex_init(&t->mu, NULL);
    return t;
}

void lease_table_free(struct lease_table *t)
{
    if (t == NULL)
        return;
    for (size_t i = 0; i < t->n_buckets; i++) {
        while (t->buckets[i]) {
            struct lease *next = t->buckets[i]->hash_next;

            free(t->buckets[i]);
            t->buckets[i] = next;
        }
    }
    pthread_mutex_destroy(&t->mu);
    free(t->buckets);
    free(t->heap);
    free(t);
}

static uint64_t after(uint64_t now_ms, int64_t s)
{
    return now_ms + (uint64_t)(s > 0 ? s : 0) * 1000 + 1;
}

/* At least so long will it live. */
static int64_t left_ms(const struct lease *l, uint64_t now_ms)
{
    return (int64_t)(l->expiry_ms - now_ms) - 1;
}

/* ---- the table (t->mu held) ------------------------------------------------------------- */

static struct lease **bucket(const struct lease_table *t, int64_t id)
{
    uint64_t h = (uint64_t)id * UINT64_C(0x9e3779b97f4a7c15);

    return &t->buckets[(h >> 32) & (t->n_buckets - 1)];
}

static struct lease *find(const struct lease_table *t, int64_t id)
{
    struct lease *l = *bucket(t, id);

    while (l && l->id != id)
        l = l->hash_next;
    return l;
}

/* Room for one more in both arrays. */
static int grow(struct lease_table *t)
{
    if (t->n == t->heap_room) {
        size_t room = t->heap_room ? t->heap_room * 2 : 64;
        struct lease **heap = realloc(t->heap, room * sizeof *heap);

        if (heap == NULL)
            return -ENOMEM;
        t->heap = heap;
        t->heap_room = room;
    }
    if (t->n == t->n_buckets) {
        struct lease_table bigger = {.n_buckets = t->n_buckets * 2};

        bigger.buckets = calloc(bigger.n_buckets, sizeof *bigger.buckets);
        if (bigger.buckets == NULL)
            return -ENOMEM;
        for (size_t i = 0; i < t->n_buckets; i++) {
            for (struct lease *l = t->buckets[i], *next; l; l = next) {
                struct lease **b = bucket(&bigger, l->id);

                next = l->hash_next;
                l->hash_next = *b;
                *b = l;
            }
        }
        free(t->buckets);
        t->buckets = bigger.buckets;
        t->n_buckets = bigger.n_buckets;
    }
    return 0;
}

/* ---- the heap (t->mu held; t->primary) ---------------------------------------------------- */

static void heap_place(struct lease_table *t, size_t at, struct lease *l)
{
    t->heap[at] = l;
    l->heap_at = at;
}

static void heap_up(struct lease_table *t, size_t at)
{
    struct lease *l = t->heap[at];

    for (size_t parent; at > 0 && t->heap[parent = (at - 1) / 2]->due_ms > l->due_ms; at = parent)
        heap_place(t, at, t->heap[parent]);
    heap_place(t, at, l);
}

/* n: leases in the heap. */
static void heap_down(struct lease_table *t, size_t at, size_t n)
{
    struct lease *l = t->heap[at];

    for (;;) {
        size_t child = 2 * at + 1;

        if (child >= n)
            break;
        if (child + 1 < n && t->heap[child + 1]->due_ms < t->heap[child]->due_ms)
            child++;
        if (t->heap[child]->due_ms >= l->due_ms)
            break;
        heap_place(t, at, t->heap[child]);
        at = child;
    }
    heap_place(t, at, l);
}

/* n: leases in the heap before. */
static void heap_remove(struct lease_table *t, struct lease *l, size_t n)
{
    struct lease *last = t->heap[n - 1];
    size_t at = l->heap_at;

    if (last == l)
        return;
    heap_place(t, at, last);
    heap_up(t, at);
    heap_down(t, last->heap_at, n - 1);
}

/* ---- apply's thread ------------------------------------------------------------------------- */

int lease_grant(struct lease_table *t, int64_t id, int64_t ttl_s, int64_t remaining_s)
{
    struct lease *l = malloc(sizeof *l), **b;
    int err = l ? 0 : -ENOMEM;

    pthread_mutex_lock(&t->mu);
    if (!err)
        err = find(t, id) ? ERR_LEASE_EXISTS : grow(t);
    if (!err) {
        *l = (struct lease){.id = id, .ttl_s = ttl_s, .checkpoint_s = remaining_s, .ours = true};
        b = bucket(t, id);
        l->hash_next = *b;
        *b = l;
        l->expiry_ms = l->due_ms = after(t->clock->now_ms(t->clock), ttl_s);
        if (t->primary) {
            heap_place(t, t->n, l);
            heap_up(t, t->n);
        }
        t->n++;
        l = NULL;
    }
    pthread_mutex_unlock(&t->mu);
    free(l);
    return err;
}

/* Outside the lock: done may take it. */
static void tell_waits(struct lease_wait *w, int err)
{
    while (w) {
        struct lease_wait *next = w->next;

        w->err = err;
        w->done(w);
        w = next;
    }
}

int lease_revoke(struct lease_table *t, int64_t id)
{
    struct lease_wait *waits = NULL;
    struct lease *l, **at;

    pthread_mutex_lock(&t->mu);
    for (at = bucket(t, id); *at && (*at)->id != id; at = &(*at)->hash_next)
        ;
    l = *at;
    if (l) {
        *at = l->hash_next;
        if (t->primary)
            heap_remove(t, l, t->n);
        t->n--;
        waits = l->waits;
    }
    pthread_mutex_unlock(&t->mu);
    if (l == NULL)
        return ERR_LEASE_NOT_FOUND;
    free(l);
    tell_waits(waits, 0);
    return 0;
}

int lease_checkpoint(struct lease_table *t, int64_t id, int64_t remaining_s)
{
    struct lease *l;

    pthread_mutex_lock(&t->mu);
    l = find(t, id);
    if (l) {
        l->checkpoint_s = remaining_s;
        if (remaining_s > 0 && l->marks_out > 0)
            l->marks_out--;
    }
    pthread_mutex_unlock(&t->mu);
    return l ? 0 : ERR_LEASE_NOT_FOUND;
}

bool lease_exists(struct lease_table *t, int64_t id)
{
    bool found;

    pthread_mutex_lock(&t->mu);
    found = find(t, id) != NULL;
    pthread_mutex_unlock(&t->mu);
    return found;
}

size_t lease_count(struct lease_table *t)
{
    size_t n;

    pthread_mutex_lock(&t->mu);
    n = t->n;
    pthread_mutex_unlock(&t->mu);
    return n;
}

/* ---- any thread -------------------------------------------------------------------------------- */

int lease_get(struct lease_table *t, int64_t id, struct lease_info *ret_info)
{
    struct lease *l;

    pthread_mutex_lock(&t->mu);
    l = find(t, id);
    if (l) {
        *ret_info = (struct lease_info){.id = id, .granted_ttl_s = l->ttl_s, .checkpoint_s = l->checkpoint_s};
        ret_info->primary = t->primary;
        ret_info->remaining_ms = t->primary ? left_ms(l, t->clock->now_ms(t->clock)) : l->ttl_s * 1000;
    }
    pthread_mutex_unlock(&t->mu);
    return l ? 0 : ERR_LEASE_NOT_FOUND;
}

int lease_renew(struct lease_table *t, int64_t id, int64_t *ret_ttl_s)
{
    struct lease *l;
    uint64_t now_ms;
    int err = 0;

    pthread_mutex_lock(&t->mu);
    now_ms = t->clock->now_ms(t->clock); /* not before: another leader may have promised more meanwhile */
    l = find(t, id);
    if (!t->primary) {
        err = ERR_NOT_PRIMARY_LESSOR;
    } else if (l == NULL) {
        err = ERR_LEASE_NOT_FOUND;
    } else if (l->expiry_ms <= now_ms) {
        err = LEASE_PAST;
    } else {
        if (l->expiry_ms < after(now_ms, l->ttl_s))
            l->expiry_ms = after(now_ms, l->ttl_s); /* a new leader may have given it more */
        l->ours = true;
        l->marked_s = 0;
        *ret_ttl_s = l->ttl_s;
        if (l->checkpoint_s > 0 || l->marks_out > 0)
            err = LEASE_MARKED;
    }
    pthread_mutex_unlock(&t->mu);
    return err;
}

struct lease_row {
    int64_t id;
    uint64_t expiry_ms;
};

static int row_order(const void *a, const void *b)
{
    const struct lease_row *x = a, *y = b;

    if (x->expiry_ms != y->expiry_ms)
        return x->expiry_ms < y->expiry_ms ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

int lease_list(struct lease_table *t, struct arena *a, int64_t **ret_ids, size_t *ret_n)
{
    struct lease_row *rows;
    int64_t *ids;
    size_t n = 0;

    pthread_mutex_lock(&t->mu);
    rows = malloc((t->n + 1) * sizeof *rows);
    for (size_t i = 0; rows && i < t->n_buckets; i++)
        for (const struct lease *l = t->buckets[i]; l; l = l->hash_next)
            rows[n++] = (struct lease_row){l->id, l->expiry_ms};
    pthread_mutex_unlock(&t->mu);
    if (rows == NULL)
        return -ENOMEM;
    qsort(rows, n, sizeof *rows, row_order);
    ids = arena_alloc(a, (n + 1) * sizeof *ids);
    for (size_t i = 0; ids && i < n; i++)
        ids[i] = rows[i].id;
    free(rows);
    if (ids == NULL)
        return ERR_ARENA_FULL;
    *ret_ids = ids;
    *ret_n = n;
    return 0;
}

int64_t lease_effective_ttl(const struct lease_table *t, int64_t ttl_s)
{
    return ttl_s < t->min_ttl_s ? t->min_ttl_s : ttl_s;
}

int lease_wait(struct lease_table *t, struct lease_wait *w)
{
    struct lease *l;

    pthread_mutex_lock(&t->mu);
    l = find(t, w->id);
    if (l) {
        w->next = l->waits;
        l->waits = w;
    }
    pthread_mutex_unlock(&t->mu);
    return l != NULL;
}

bool lease_wait_cancel(struct lease_table *t, struct lease_wait *w)
{
    bool found = false;
    struct lease *l;

    pthread_mutex_lock(&t->mu);
    l = find(t, w->id);
    for (struct lease_wait **at = l ? &l->waits : NULL; at && *at; at = &(*at)->next) {
        if (*at == w) {
            *at = w->next;
            found = true;
            break;
        }
    }
    pthread_mutex_unlock(&t->mu);
    return found;
}

/* ---- expiry --------------------------------------------------------------------------------------- */

size_t lease_expired(struct lease_table *t, int64_t *ids, size_t max)
{
    uint64_t now_ms = t->clock->now_ms(t->clock);
    size_t n = 0;

    pthread_mutex_lock(&t->mu);
    while (t->primary && now_ms >= t->not_before_ms && n < max && t->n > 0 && t->heap[0]->due_ms <= now_ms) {
        struct lease *l = t->heap[0];

        if (l->expiry_ms <= now_ms) {
            ids[n++] = l->id;
            l->due_ms = now_ms + LEASE_RETRY_MS;
        } else {
            l->due_ms = l->expiry_ms; /* renewed meanwhile */
        }
        heap_down(t, 0, t->n);
    }
    if (n > 0)
        t->not_before_ms = now_ms + (n == max ? EXPIRE_FULL_MS : EXPIRE_EACH_MS);
    pthread_mutex_unlock(&t->mu);
    return n;
}

uint64_t lease_next_deadline_ms(struct lease_table *t)
{
    uint64_t at = UINT64_MAX;

    pthread_mutex_lock(&t->mu);
    if (t->primary && t->n > 0)
        at = t->heap[0]->due_ms > t->not_before_ms ? t->heap[0]->due_ms : t->not_before_ms;
    pthread_mutex_unlock(&t->mu);
    return at;
}

static int due_order(const void *a, const void *b)
{
    const struct lease *x = *(struct lease *const *)a, *y = *(struct lease *const *)b;

    if (x->due_ms != y->due_ms)
        return x->due_ms < y->due_ms ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Sorted by due time the array is a heap. With many leases none is due before its turn at SPREAD_PER_SECOND, counted
 * from the one before it. */
static void spread(struct lease_table *t)
{
    uint64_t turn_us = 0;

    if (t->n > 1) /* there may be no heap at all yet */
        qsort(t->heap, t->n, sizeof *t->heap, due_order);
    for (size_t i = 0; i < t->n; i++) {
        struct lease *l = t->heap[i];

        l->heap_at = i;
        if (t->n < SPREAD_FROM)
            continue;
        turn_us += 1000000 / SPREAD_PER_SECOND;
        if (turn_us < l->due_ms * 1000)
            turn_us = l->due_ms * 1000;
        l->expiry_ms = l->due_ms = turn_us / 1000;
    }
}

void lease_promote(struct lease_table *t, uint32_t extend_ms)
{
    uint64_t now_ms = t->clock->now_ms(t->clock);
    size_t n = 0;

    pthread_mutex_lock(&t->mu);
    for (size_t i = 0; i < t->n_buckets; i++) {
        for (struct lease *l = t->buckets[i]; l; l = l->hash_next) {
            int64_t ttl_s = l->checkpoint_s > 0 ? l->checkpoint_s : l->ttl_s;

            l->expiry_ms = l->due_ms = after(now_ms, ttl_s) + extend_ms;
            l->marked_s = l->checkpoint_s;
            l->marks_out = 0; /* what an earlier term had under way is applied, or does nothing */
            l->ours = false;
            t->heap[n++] = l;
        }
    }
    assert(n == t->n);
    t->primary = true;
    t->not_before_ms = 0;
    spread(t);
    pthread_mutex_unlock(&t->mu);
}

void lease_demote(struct lease_table *t)
{
    struct lease_wait *waits = NULL;

    pthread_mutex_lock(&t->mu);
    t->primary = false;
    for (size_t i = 0; i < t->n_buckets; i++) {
        for (struct lease *l = t->buckets[i]; l; l = l->hash_next) {
            while (l->waits) {
                struct lease_wait *w = l->waits;

                l->waits = w->next;
                w->next = waits;
                waits = w;
            }
        }
    }
    pthread_mutex_unlock(&t->mu);
    tell_waits(waits, ERR_NOT_PRIMARY_LESSOR);
}

/* ---- checkpoints ------------------------------------------------------------------------------------ */

/* What is left, if the log should say so; 0: not now. */
static int64_t mark_due(const struct lease *l, uint64_t now_ms, bool all)
{
    int64_t left_s, step_s = l->ttl_s / 10 > 1 ? l->ttl_s / 10 : 1;
    int64_t said_s = l->marked_s ? l->marked_s : l->ttl_s;

    if (l->expiry_ms <= now_ms)
        return 0;
    left_s = (int64_t)((l->expiry_ms - now_ms + 999) / 1000);
    if (said_s - left_s < step_s || (!all && l->ours && l->marked_s == 0 && left_s > l->ttl_s / 2))
        return 0;
    return left_s;
}

size_t lease_marks(struct lease_table *t, struct lease_mark *marks, size_t max, bool all, uint64_t *ret_next_ms)
{
    uint64_t now_ms = t->clock->now_ms(t->clock);
    size_t n = 0, looked = 0;

    pthread_mutex_lock(&t->mu);
    if (t->mark_at >= t->n_buckets)
        t->mark_at = 0;
    while (t->primary && t->n && n < max && looked < (all ? t->n_buckets : MARK_BUCKETS)) {
        for (struct lease *l = t->buckets[t->mark_at]; l && n < max; l = l->hash_next) {
            int64_t left_s = mark_due(l, now_ms, all);

            if (left_s == 0)
                continue;
            marks[n++] = (struct lease_mark){l->id, left_s};
            l->marked_s = left_s;
            l->marks_out++;
        }
        if (n == max)
            break; /* the same bucket again: the rest of it is still due */
        looked++;
        if (++t->mark_at == t->n_buckets) {
            t->mark_at = 0;
            break;
        }
    }
    *ret_next_ms = now_ms + (n == max || t->mark_at ? MARK_NEXT_MS : MARK_LOOK_MS);
    pthread_mutex_unlock(&t->mu);
    return n;
}

void lease_unmark(struct lease_table *t, const struct lease_mark *marks, size_t n)
{
    pthread_mutex_lock(&t->mu);
    for (size_t i = 0; i < n; i++) {
        struct lease *l = find(t, marks[i].id);

        if (l == NULL)
            continue;
        l->marked_s = 0;
        if (l->marks_out > 0)
            l->marks_out--;
    }
    pthread_mutex_unlock(&t->mu);
}
