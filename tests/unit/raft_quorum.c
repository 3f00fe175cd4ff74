/* SPDX-License-Identifier: Apache-2.0 */
/* raft_quorum.c - majorities: tables for what one knows, and every small case against counting by hand. */
#include "raftcore/quorum.h"
#include "tap.h"

static void reached_table(void)
{
    static const struct {
        uint32_t n;
        uint64_t vals[5], want;
    } t[] = {
        {0, {0}, UINT64_MAX}, /* an empty half agrees to anything */
        {1, {7}, 7},
        {2, {7, 9}, 7}, /* two of two */
        {3, {3, 9, 5}, 5},
        {4, {4, 1, 3, 2}, 2}, /* three of four */
        {5, {10, 1, 10, 1, 5}, 5},
        {5, {0, 0, 0, 9, 9}, 0},
        {3, {UINT64_MAX, 0, UINT64_MAX}, UINT64_MAX},
    };

    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
        uint64_t v[5];

        memcpy(v, t[i].vals, sizeof v);
        CHECK(quorum_reached(v, t[i].n) == t[i].want);
    }
}

/* All vectors of up to 5 members over 0..3: the highest value that more than half have reached. */
static void reached_by_counting(void)
{
    for (uint32_t n = 1; n <= 5; n++)
        for (uint32_t code = 0; code < 1u << (2 * n); code++) {
            uint64_t v[5], want = 0;

            for (uint32_t i = 0; i < n; i++)
                v[i] = code >> (2 * i) & 3;
            for (uint64_t x = 0; x <= 3; x++) {
                uint32_t have = 0;

                for (uint32_t i = 0; i < n; i++)
                    have += v[i] >= x;
                if (2 * have > n)
                    want = x;
            }
            CHECK(quorum_reached(v, n) == want);
        }
}

static void votes_by_counting(void)
{
    CHECK(quorum_vote(0, 0, 0) == QUORUM_WON);
    for (uint32_t n = 1; n <= 16; n++)
        for (uint32_t yes = 0; yes <= n; yes++)
            for (uint32_t no = 0; yes + no <= n; no++) {
                enum quorum_vote want = 2 * yes > n              ? QUORUM_WON
                                        : 2 * (n - no) <= n      ? QUORUM_LOST
                                                                 : QUORUM_PENDING;

                CHECK(quorum_vote(yes, no, n) == want);
            }
}

static void joint_table(void)
{
    static const enum quorum_vote P = QUORUM_PENDING, W = QUORUM_WON, L = QUORUM_LOST;

    CHECK(quorum_joint(W, W) == W);
    CHECK(quorum_joint(W, P) == P && quorum_joint(P, W) == P && quorum_joint(P, P) == P);
    CHECK(quorum_joint(L, W) == L && quorum_joint(W, L) == L && quorum_joint(L, P) == L && quorum_joint(P, L) == L);
    CHECK(quorum_joint(L, L) == L);
}

int main(void)
{
    TEST(reached_table);
    TEST(reached_by_counting);
    TEST(votes_by_counting);
    TEST(joint_table);
    return tap_done();
}
