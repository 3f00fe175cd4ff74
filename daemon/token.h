/* SPDX-License-Identifier: Apache-2.0 */
/* token.h - the right to step a module: mostly its thread's, at times that of a thread which has just given it work.
 *
 * To wake a sleeping thread costs a system call, a switch, and where the other processor idles 20 us until it runs.
 * When a single small thing is to be done, who would wake the thread steps the module itself, if nobody does: a lone
 * put then goes through three threads fewer.
 *
 *      if (token_take(t)) {          who fails has left word: the holder's token_give fails, and it steps again
 *          do x_step(x); while (!token_give(t));
 *      }
 *
 * The work itself lies in a mailbox before token_take, without a nudge. The module's thread sleeps until its last
 * step's deadline; who steps instead of it nudges it when his step asks for an earlier one.
 */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct token {
    _Atomic uint32_t state;    /* 0 free, 1 held, 2 held and asked for */
    _Atomic uint64_t until_ms; /* the module's thread sleeps at most so long */
};

static inline bool token_take(struct token *t)
{
    uint32_t seen = 0;

    while (!atomic_compare_exchange_weak(&t->state, &seen, seen == 0 ? 1 : 2))
        ;
    return seen == 0;
}

/* False: step again. */
static inline bool token_give(struct token *t)
{
    uint32_t seen = 1;

    if (atomic_compare_exchange_strong(&t->state, &seen, 0))
        return true;
    atomic_store(&t->state, 1);
    return false;
}

/* The module's thread, around its sleep; UINT64_MAX before it takes the token. */
static inline void token_sleeps(struct token *t, uint64_t deadline_ms)
{
    atomic_store(&t->until_ms, deadline_ms);
}

/* After token_give: whether the module's thread must be nudged for this deadline. */
static inline bool token_oversleeps(struct token *t, uint64_t deadline_ms)
{
    return deadline_ms < atomic_load(&t->until_ms);
}
