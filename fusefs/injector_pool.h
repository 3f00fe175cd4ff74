/* SPDX-License-Identifier: Apache-2.0 */
/* injector_pool.h - the core's side of the injectors: queues, one order at a time each, deadlines.
 *
 * Changes of one directory always go to the same injector, in their order. An injector that does not answer
 * within INJECT_TIMEOUT_MS (a directory's lock is held by a request that waits, say) is killed and
 * replaced; until the kernel lets go of it, what was announced to it is still answered as an injection.
 *
 * A directory's removal at the head of its queue waits until what lies below it has been injected.
 *
 * Owner: the core thread.
 */
#pragma once
#include <sys/types.h>

#include "feed.h"
#include "session.h"

struct injector_pool;

struct injector_pool_config {
    struct session *session;
    struct tree *tree;
    const char *mountpoint; /* borrowed */
    bool modify_only;       /* events=modify */
    void *ctx;
    void (*done)(void *ctx, struct change_event *ev, int err); /* an injection ended; owns ev from here */
};

/* Forks the spawner: before any thread exists. */
int injector_pool_open(const struct injector_pool_config *cfg, struct injector_pool **ret_pool);
void injector_pool_set_tree(struct injector_pool *p, struct tree *t);
/* Makes the injectors; call once the mount stands. */
void injector_pool_run(struct injector_pool *p);
/* No further injection; those under way are given up. */
void injector_pool_stop(struct injector_pool *p);
void injector_pool_close(struct injector_pool *p);

/* Queues the injection of ev; owns it. */
void injector_pool_push(struct injector_pool *p, struct change_event *ev);

/* A removal need not wait any longer (inject_order.h): hands out what can be done now. */
void injector_pool_advance(struct injector_pool *p);

/* What was announced to the injector with this thread id; NULL: it is none, or has nothing to do. */
struct change_event *injector_pool_match(struct injector_pool *p, pid_t pid);

/* Is an injection about this name waiting or under way? Then nobody may be told that the name's absence can
 * be cached. */
bool injector_pool_pending(const struct injector_pool *p);

struct injector_stats {
    uint64_t injected, failed, dropped, coalesced, killed;
    uint32_t waiting, alive;
};
void injector_pool_get_stats(const struct injector_pool *p, struct injector_stats *ret_stats);
