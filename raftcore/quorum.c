/* SPDX-License-Identifier: Apache-2.0 */
/* quorum.c - majorities, alone and in pairs; see quorum.h. */
#include "quorum.h"

uint64_t quorum_reached(uint64_t *vals, uint32_t n)
{
    if (n == 0)
        return UINT64_MAX;
    for (uint32_t i = 1; i < n; i++) { /* insertion sort: n is at most 16 */
        uint64_t v = vals[i];
        uint32_t j = i;

        for (; j > 0 && vals[j - 1] > v; j--)
            vals[j] = vals[j - 1];
        vals[j] = v;
    }
    /* n/2 + 1 members stand at or to the right of here. */
    return vals[n - (n / 2 + 1)];
}

enum quorum_vote quorum_vote(uint32_t yes, uint32_t no, uint32_t n)
{
    uint32_t need = n / 2 + 1;

    assert(yes + no <= n);
    if (n == 0 || yes >= need)
        return QUORUM_WON;
    return n - no < need ? QUORUM_LOST : QUORUM_PENDING;
}

enum quorum_vote quorum_joint(enum quorum_vote a, enum quorum_vote b)
{
    if (a == QUORUM_LOST || b == QUORUM_LOST)
        return QUORUM_LOST;
    return a == QUORUM_WON && b == QUORUM_WON ? QUORUM_WON : QUORUM_PENDING;
}
