/* SPDX-License-Identifier: Apache-2.0 */
/* notify.h - from a change of the tree to the kernel's caches and to inotify (A.10).
 *
 *     feed (applied to the tree) --> notify threads: invalidate --> core: anybody watching? --> injector
 *
 * In this order, so a reader woken by the event sees that revision or a later one. Invalidations of names
 * wait for the directory's lock, hence for every unanswered LOOKUP, READDIR and CREATE in it: they are done
 * by threads, sharded by directory, and neither the core nor any reply ever waits for them.
 *
 * Owner: the core thread; the threads own the changes they were handed until they hand them back.
 */
#pragma once
#include "feed.h"
#include "injector_pool.h"
#include "session.h"

struct notify;

struct notify_config {
    struct session *session;
    struct tree *tree;
    struct injector_pool *injectors;
    bool watch_all; /* allow_other: processes whose fdinfo we cannot read may be watching */
};

/* Starts the threads. 0/-errno. */
int notify_open(const struct notify_config *cfg, struct notify **ret_notify);
/* Ends the threads; a thread inside the kernel is waited for, so unmount or abort first. */
void notify_close(struct notify *n);

/* The feed's sink->change: owns ev from here. */
void notify_change(struct notify *n, struct change_event *ev);

/* Invalidations on nobody's behalf: of a name (and its directory's listing), of a file's pages and
 * attributes. */
void notify_name(struct notify *n, struct node *dir, const char *name);
void notify_pages(struct notify *n, struct node *node);
/* By number, for what is not the tree's. dir_id 0: no name to invalidate; node_id 0: no inode. */
void notify_raw(struct notify *n, uint64_t dir_id, const char *name, uint64_t node_id);

/* Attributes only; takes no lock: done before it returns. */
void notify_attributes(struct notify *n, uint64_t nodeid);

/* For the pool's done: frees ev and what depends on it. */
void notify_injected(struct notify *n, struct change_event *ev, int err);

struct notify_stats {
    uint64_t invalidated, skipped_unknown, skipped_unwatched, scans, raced;
    uint32_t waiting;
};
void notify_get_stats(struct notify *n, struct notify_stats *ret_stats);
