/* SPDX-License-Identifier: Apache-2.0 */
/* splitmix.h - the random numbers of the tests: a seed says all of them. Source: Steele, Lea, Flood, "Fast splittable
 * pseudorandom number generators", 2014 (splitmix64). */
#pragma once
#include <stdint.h>

static inline uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}
