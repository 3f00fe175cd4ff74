/* SPDX-License-Identifier: Apache-2.0 */
/* member_impl.h - what the files of a running member share.
 *
 * member.c        every module made, started and stopped in order
 * member_ready.c  waiting: to be published, for a signal, for having been removed
 *
 * Owner: the main thread, but for what stands under "shared".
 */
#pragma once
#include <stdatomic.h>
#include "bootstrap.h"
#include "compactor.h"
#include "front.h"
#include "member.h"
#include "metrics.h"
#include "svc.h"

enum { SCAN_THREADS = 1, RPC_THREADS = 1 };

struct member_process;

/* The proposal by which this member tells its name. */
struct publishing {
    struct proposal p;
    struct member_process *member;
    size_t bytes;
};
enum publish_state { PUBLISH_IDLE, PUBLISH_WAITS, PUBLISH_DONE, PUBLISH_FAILED };

struct member_process {
    struct config *config;
    struct bootstrap boot;
    struct metrics_histograms histograms;
    struct entry_cache *cache;
    struct compactor *compactor;
    struct front *front;
    struct slot *slots[RPC_THREADS];
    struct svc svc; /* holds the other modules */
    struct metrics metrics;
    struct publishing publishing;
    int signal_fd, event_fd;
    int signal; /* that ended it */

    /* ---- shared ---- */
    _Atomic int publish_state; /* enum publish_state */
    _Atomic bool removed;      /* from the cluster */
};

/* member_ready.c */
/* Any thread: the main thread looks again at what is shared. */
void member_notify(struct member_process *m);
/* Waits for something to happen, at most so long. */
enum member_event member_wait(struct member_process *m, uint64_t timeout_ms);
/* Returns MEMBER_NOTHING once the member is published, however long that takes: the others may come later. */
enum member_event member_publish(struct member_process *m);
void member_publish_end(struct member_process *m); /* after the turn has stopped */
/* Removed: says so, and gives the others a moment to hear our last replies. */
enum member_event member_leave(struct member_process *m);
