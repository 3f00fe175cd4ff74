/* SPDX-License-Identifier: Apache-2.0 */
/* notify_watchers.h - who watches what: the inotify and fanotify marks of all processes, from
 * /proc/PID/fdinfo. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct watched {
    uint64_t *inos; /* sorted; st_ino values on our device */
    size_t n, room;
    bool everything; /* somebody may be watching anything: fanotify, or a process that cannot be read */
};

/* Reads them all; takes milliseconds, so not on the core thread. unreadable_counts: a process whose
 * descriptors cannot be read may be watching. Without memory: everything. */
void watched_scan(dev_t dev, bool unreadable_counts, struct watched *ret_watched);
bool watched_has(const struct watched *w, uint64_t ino);
void watched_fini(struct watched *w);
