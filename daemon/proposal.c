/* SPDX-License-Identifier: Apache-2.0 */
/* proposal.c - the account of writes under way, and the table from request id to whoever waits.
 *
 * A request id is (sequence << 13) | slot. The sequence starts at a random place at each boot, so an entry of an
 * earlier boot that is applied again meets nobody. A slot is free again once its proposal is claimed; the account's
 * count and bytes only come back with account_give, when the answer has left.
 *
 * Owner: any thread. protected by a mutex: a claim must be answered at once, by one of several threads.
 */
#include <pthread.h>
#include "err.h"
#include "proposal.h"

#define SLOT_BITS 13
#define SLOTS (1u << SLOT_BITS)
#define EXPIRE_CHUNK 64

struct account {
    pthread_mutex_t mu;
    uint32_t entries, entries_max; /* protected by mu, like all that follows, but read by account_pending */
    size_t bytes, bytes_max;
    uint64_t sequence;
    uint16_t free_slots[SLOTS];    /* a stack */
    uint32_t n_free;
    struct {
        uint64_t id;               /* 0: free */
        struct proposal *p;
    } slot[SLOTS];
    _Atomic uint32_t pending;      /* entries again, for metrics */
};

struct account *account_new(uint32_t entries_max, size_t bytes_max, uint64_t boot_id)
{
    struct account *a;

    assert(entries_max > 0 && entries_max <= SLOTS);
    a = calloc(1, sizeof *a);
    if (a == NULL)
        return NULL;
    (void)pthread_mutex_init(&a->mu, NULL); /* cannot fail with default attributes on Linux */
    a->entries_max = entries_max;
    a->bytes_max = bytes_max;
    a->sequence = boot_id & (UINT64_MAX >> SLOT_BITS);
    for (uint32_t i = 0; i < SLOTS; i++)
        a->free_slots[i] = (uint16_t)(SLOTS - 1 - i); /* low slots first: the table's warm end */
    a->n_free = SLOTS;
    return a;
}

void account_free(struct account *a)
{
    if (a == NULL)
        return;
    assert(a->entries == 0);
    (void)pthread_mutex_destroy(&a->mu); /* nobody holds it any more */
    free(a);
}

int account_take(struct account *a, struct proposal *p, size_t bytes)
{
    uint16_t slot;
    int err = ERR_TOO_MANY_REQUESTS;

    pthread_mutex_lock(&a->mu);
    if (a->entries == a->entries_max || bytes > a->bytes_max - a->bytes)
        goto out;
    assert(a->n_free > 0); /* a used slot is an entry of the account, and entries_max <= SLOTS */
    slot = a->free_slots[--a->n_free];
    a->sequence = (a->sequence + 1) & (UINT64_MAX >> SLOT_BITS);
    if (a->sequence == 0)
        a->sequence = 1; /* an id is never 0 */
    p->request_id = a->sequence << SLOT_BITS | slot;
    atomic_store_explicit(&p->with_turn, false, memory_order_relaxed);
    a->slot[slot].id = p->request_id;
    a->slot[slot].p = p;
    a->entries++;
    a->bytes += bytes;
    atomic_store_explicit(&a->pending, a->entries, memory_order_relaxed);
    err = 0;
out:
    pthread_mutex_unlock(&a->mu);
    return err;
}

/* mu is held. */
static struct proposal *claim(struct account *a, uint32_t slot)
{
    struct proposal *p = a->slot[slot].p;

    a->slot[slot].id = 0;
    a->slot[slot].p = NULL;
    a->free_slots[a->n_free++] = (uint16_t)slot;
    return p;
}

struct proposal *proposal_claim(struct account *a, uint64_t request_id)
{
    uint32_t slot = (uint32_t)(request_id & (SLOTS - 1));
    struct proposal *p = NULL;

    if (request_id == 0)
        return NULL;
    pthread_mutex_lock(&a->mu);
    if (a->slot[slot].id == request_id)
        p = claim(a, slot);
    pthread_mutex_unlock(&a->mu);
    return p;
}

void account_give(struct account *a, struct proposal *p, size_t bytes)
{
    (void)p;
    pthread_mutex_lock(&a->mu);
    assert(a->entries > 0);
    assert(bytes <= a->bytes);
    a->entries--;
    a->bytes -= bytes;
    atomic_store_explicit(&a->pending, a->entries, memory_order_relaxed);
    pthread_mutex_unlock(&a->mu);
}

void account_expire(struct account *a, uint64_t now_ms, void (*fn)(void *ctx, struct proposal *), void *ctx)
{
    uint32_t slot = 0;

    /* fn answers, which may take or give: it runs without the lock, a chunk at a time. */
    while (slot < SLOTS) {
        struct proposal *due[EXPIRE_CHUNK];
        size_t n = 0;

        pthread_mutex_lock(&a->mu);
        if (a->n_free == SLOTS)
            slot = SLOTS;
        for (; slot < SLOTS && n < EXPIRE_CHUNK; slot++) {
            struct proposal *p = a->slot[slot].p;

            if (p && atomic_load_explicit(&p->with_turn, memory_order_relaxed) && p->deadline_ms <= now_ms)
                due[n++] = claim(a, slot);
        }
        pthread_mutex_unlock(&a->mu);
        for (size_t i = 0; i < n; i++)
            fn(ctx, due[i]);
    }
}

struct proposal *account_retake(struct account *a, uint64_t request_id, uint64_t seq)
{
    uint32_t slot = (uint32_t)(request_id & (SLOTS - 1));
    struct proposal *p = NULL;

    pthread_mutex_lock(&a->mu);
    if (request_id && a->slot[slot].id == request_id)
        p = a->slot[slot].p;
    if (p && (!atomic_load_explicit(&p->with_turn, memory_order_relaxed) || p->sent_seq != seq))
        p = NULL;
    if (p)
        atomic_store_explicit(&p->with_turn, false, memory_order_relaxed);
    pthread_mutex_unlock(&a->mu);
    return p;
}

struct proposal *account_retake_older(struct account *a, uint64_t term)
{
    struct proposal *chain = NULL;

    pthread_mutex_lock(&a->mu);
    for (uint32_t slot = 0; slot < SLOTS && a->n_free < SLOTS; slot++) {
        struct proposal *p = a->slot[slot].p;

        if (p == NULL || !atomic_load_explicit(&p->with_turn, memory_order_relaxed) || p->sent_term >= term)
            continue;
        atomic_store_explicit(&p->with_turn, false, memory_order_relaxed);
        p->mail.next = chain ? &chain->mail : NULL;
        chain = p;
    }
    pthread_mutex_unlock(&a->mu);
    return chain;
}

void account_keep_unknown(struct account *a)
{
    pthread_mutex_lock(&a->mu);
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        if (a->slot[slot].p && atomic_load_explicit(&a->slot[slot].p->with_turn, memory_order_relaxed))
            a->slot[slot].p->sent_term = PROPOSAL_NEVER_AGAIN;
    pthread_mutex_unlock(&a->mu);
}

uint32_t account_pending(const struct account *a)
{
    return atomic_load_explicit(&a->pending, memory_order_relaxed);
}
