/* SPDX-License-Identifier: Apache-2.0 */
/* keys.h - the keys of a simulation and their numbers, which have the same order.
 *
 * "k0" is the marker of a small directory, "k00", "k01" and "k02" are its files; two more of these; "k8" is the marker
 * of a heap, "k800000" and so on are its files; "k9" another. Most seeds never use a heap.
 */
#pragma once
#include <stdio.h>
#include "bytes.h"

enum {
    SIM_DIRS = 3, SIM_DIR_KEYS = 4, SIM_SMALL = SIM_DIRS * SIM_DIR_KEYS, /* a directory's first is its marker */
    SIM_HEAPS = 2, SIM_HEAP_KEYS = 10004, /* more than one rename may move */
    SIM_HEAP_LEAST = 30,                  /* keys without a lease of any that is filled */
    SIM_KEYS = SIM_SMALL + SIM_HEAPS * SIM_HEAP_KEYS,
};

static inline unsigned heap_first(unsigned heap)
{
    return SIM_SMALL + heap * SIM_HEAP_KEYS;
}

static inline void key_name(unsigned k, char name[8])
{
    bool small = k < SIM_SMALL;
    unsigned dir = small ? k / SIM_DIR_KEYS : 10 - SIM_HEAPS + (k - SIM_SMALL) / SIM_HEAP_KEYS,
             file = small ? k % SIM_DIR_KEYS : (k - SIM_SMALL) % SIM_HEAP_KEYS;

    name[0] = 'k';
    name[1] = (char)('0' + dir);
    name[2] = 0;
    if (file)
        (void)snprintf(name + 2, 6, small ? "%u" : "%05u", (file - 1) % 100000);
}

static inline int key_index(struct slice name)
{
    unsigned dir = name.len > 1 && name.ptr[0] == 'k' ? name.ptr[1] - (unsigned)'0' : 10, file = 0;
    bool small = dir < SIM_DIRS;

    if (dir > 9 || (!small && dir < 10 - SIM_HEAPS) || (name.len != 2 && name.len != (small ? 3 : 7)))
        return -1;
    for (size_t i = 2; i < name.len; i++)
        file = 10 * file + name.ptr[i] - (unsigned)'0';
    file += name.len > 2;
    if (file >= (small ? (unsigned)SIM_DIR_KEYS : (unsigned)SIM_HEAP_KEYS))
        return -1;
    return (int)(file + (small ? dir * SIM_DIR_KEYS : heap_first(dir - (10 - SIM_HEAPS))));
}

/* The first key whose name is not lower; SIM_KEYS: none. */
static inline unsigned key_lower(struct slice name)
{
    unsigned from = 0, to = SIM_KEYS;

    while (from < to) {
        unsigned k = (from + to) / 2;
        char text[8];

        key_name(k, text);
        if (slice_cmp(slice_str(text), name) < 0)
            from = k + 1;
        else
            to = k;
    }
    return from;
}
