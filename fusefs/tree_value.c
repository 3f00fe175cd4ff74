/* SPDX-License-Identifier: Apache-2.0 */
/* tree_value.c - values and their bounded memory, and the times of revisions.
 *
 * Times: the store has no clock. An anchor says at which wall time we saw which revision. The time of a
 * revision is that of the first anchor at or after it, less a nanosecond for each revision in between: so
 * times order files as their revisions do, and a later revision is never given an earlier time.
 */
#include "tree.h"

#include "tree_private.h"

#define FNV_PRIME 0x100000001b3ull
#define NS_PER_S  1000000000ll

/* ---- hashes ------------------------------------------------------------------------ */

uint64_t hash_bytes(uint64_t h, struct slice s)
{
    for (size_t i = 0; i < s.len; i++)
        h = (h ^ s.ptr[i]) * FNV_PRIME;
    return h;
}

/* Spreads the bits: FNV's low ones are weak. */
uint64_t hash_mix(uint64_t h)
{
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdull;
    h ^= h >> 33;
    h *= 0xc4ceb9fe1a85ec53ull;
    return h ^ h >> 33;
}

/* Eight bytes at a time: values are long. Only ever compared within this process. */
uint64_t value_hash(struct slice s)
{
    uint64_t h = FNV_BASIS ^ s.len;
    size_t i = 0;

    for (; i + 8 <= s.len; i += 8)
        h = hash_mix(h ^ get_u64le(s.ptr + i));
    return hash_mix(hash_bytes(h, slice_of(s.ptr + i, s.len - i)));
}

/* ---- times ------------------------------------------------------------------------ */

static int64_t wall_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

static int64_t timespec_ns(struct timespec ts)
{
    return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

static struct timespec ns_timespec(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S};
}

/* Now, but later than `old`: a time that moved must be seen to move. */
struct timespec tree_now_after(struct timespec old)
{
    int64_t now = wall_ns(), before = timespec_ns(old);

    return ns_timespec(now > before ? now : before + 1);
}

/* The store stands at rev now. Anchors are thinned to one a second; when full, every second one of the older
 * half goes. */
void tree_anchor(struct tree *t, int64_t rev)
{
    struct anchor *last = t->n_anchors ? &t->anchors[t->n_anchors - 1] : NULL;
    int64_t ns = wall_ns();

    if (last && (rev <= last->rev || ns - last->ns < TREE_ANCHOR_GAP_MS * 1000000ll))
        return;
    if (t->n_anchors == TREE_ANCHORS) {
        unsigned kept = 1;

        for (unsigned i = 2; i < TREE_ANCHORS; i += i < TREE_ANCHORS / 2 ? 2 : 1)
            t->anchors[kept++] = t->anchors[i];
        t->n_anchors = kept;
    }
    t->anchors[t->n_anchors++] = (struct anchor){rev, ns};
}

struct timespec tree_time(struct tree *t, int64_t rev)
{
    unsigned lo = 0, hi = t->n_anchors;
    int64_t now = wall_ns();

    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;

        if (t->anchors[mid].rev < rev)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo < t->n_anchors)
        return ns_timespec(t->anchors[lo].ns - (t->anchors[lo].rev - rev));
    if (t->n_anchors == 0)
        return ns_timespec(now);

    const struct anchor *last = &t->anchors[t->n_anchors - 1];
    int64_t floor = last->ns + (rev - last->rev);

    return ns_timespec(now > floor ? now : floor);
}

/* ---- values -------------------------------------------------------------------------------------- */

struct value *value_new(struct slice bytes, const struct key_meta *meta)
{
    struct value *v = malloc(sizeof *v + bytes.len);

    if (v == NULL)
        return NULL;
    v->refs = 1;
    v->meta = *meta;
    v->meta.size = bytes.len;
    v->meta.hash = value_hash(bytes);
    if (bytes.len)
        memcpy(v->bytes, bytes.ptr, bytes.len);
    return v;
}

struct value *value_ref(struct value *v)
{
    if (v)
        v->refs++;
    return v;
}

void value_unref(struct value *v)
{
    if (v && --v->refs == 0)
        free(v);
}

static void lru_remove(struct tree *t, struct node *n)
{
    *(n->lru_prev ? &n->lru_prev->lru_next : &t->lru_first) = n->lru_next;
    *(n->lru_next ? &n->lru_next->lru_prev : &t->lru_last) = n->lru_prev;
    n->lru_next = n->lru_prev = NULL;
}

static void lru_push(struct tree *t, struct node *n)
{
    n->lru_next = t->lru_first;
    n->lru_prev = NULL;
    *(t->lru_first ? &t->lru_first->lru_prev : &t->lru_last) = n;
    t->lru_first = n;
}

/* v: borrowed, or NULL to drop what is there. */
void node_set_value(struct tree *t, struct node *n, struct value *v)
{
    if (n->value) {
        lru_remove(t, n);
        t->lru_bytes -= n->value->meta.size + sizeof *n->value;
        value_unref(n->value);
        n->value = NULL;
    }
    if (v == NULL)
        return;
    n->value = value_ref(v);
    t->lru_bytes += v->meta.size + sizeof *v;
    lru_push(t, n);
    while (t->lru_bytes > TREE_VALUES_BYTES && t->lru_last != n)
        node_set_value(t, t->lru_last, NULL);
}

/* It was just used. */
void node_touch_value(struct tree *t, struct node *n)
{
    if (n->value == NULL || t->lru_first == n)
        return;
    lru_remove(t, n);
    lru_push(t, n);
}
