/* SPDX-License-Identifier: Apache-2.0 */
/* quorum.h - majorities, alone and in pairs (T 4.3). Knows numbers, not members. */
#pragma once
#include "bytes.h"

/* The highest value that a majority of n members has reached. vals is sorted in place. An empty set
 * agrees to anything: UINT64_MAX, so that min() of the two halves of a joint configuration is right
 * when there is only one. */
uint64_t quorum_reached(uint64_t *vals, uint32_t n);

enum quorum_vote { QUORUM_PENDING, QUORUM_WON, QUORUM_LOST };

/* The outcome when `yes` and `no` of n have answered; an empty set is won. */
enum quorum_vote quorum_vote(uint32_t yes, uint32_t no, uint32_t n);

/* Both halves must be won; one lost half loses. */
enum quorum_vote quorum_joint(enum quorum_vote a, enum quorum_vote b);
