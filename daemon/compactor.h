/* SPDX-License-Identifier: Apache-2.0 */
/* compactor.h - --auto-compaction-mode: old revisions are given up without being asked.
 *
 * periodic: what is older than the retention time. revision: all but the newest so many. Only the leader proposes; a
 * follower keeps its samples, so that it can go on when it becomes leader.
 *
 * Owner: a thread of its own.
 */
#pragma once
#include "apply.h"
#include "seam.h"
#include "store.h"
#include "turn.h"

struct compactor;

enum compactor_mode { COMPACTOR_PERIODIC, COMPACTOR_REVISION };

struct compactor_options {
    struct clock *clock;
    struct store *store;
    struct apply *apply;
    bool (*leads)(void *ctx);     /* this member is the leader */
    void *leads_ctx;
    enum compactor_mode mode;
    uint64_t retention_ms;        /* PERIODIC */
    int64_t retention_revisions;  /* REVISION */
};

int compactor_new(const struct compactor_options *o, struct compactor **ret_compactor);
int compactor_start(struct compactor *c);
void compactor_stop(struct compactor *c);
void compactor_free(struct compactor *c); /* takes NULL */
uint64_t compactor_step(struct compactor *c); /* for a simulator; the next deadline in ms */

/* A leads() for a turn: ctx is the struct turn. */
bool compactor_turn_leads(void *turn);
