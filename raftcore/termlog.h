/* SPDX-License-Identifier: Apache-2.0 */
/* termlog.h - the log without its entries: which index has which term, kept as runs. */
#pragma once
#include "raft.h"

struct termlog {
    uint64_t base, base_term; /* the entry before the first one; its term */
    uint64_t last;            /* >= base */
    uint32_t n_runs;          /* 0 when last == base */
    struct raft_run runs[RAFT_RUNS_MAX]; /* ascending in first and in term; runs[0].first == base + 1 */
};

/* 0; or -EINVAL: runs do not describe (base, last]. */
int termlog_init(struct termlog *l, uint64_t base, uint64_t base_term, uint64_t last,
                 const struct raft_run *runs, uint32_t n_runs);
/* The term of an entry of base..last; 0: not there. */
uint64_t termlog_term(const struct termlog *l, uint64_t index);
uint64_t termlog_last_term(const struct termlog *l);
/* Is there room for an entry of this term at `first`? */
bool termlog_has_room(const struct termlog *l, uint64_t first, uint64_t term, uint32_t new_runs);
/* Forget everything from `first` on. */
void termlog_cut(struct termlog *l, uint64_t first);
/* n entries of one term after the last. The caller has asked termlog_has_room. */
void termlog_append(struct termlog *l, uint64_t n, uint64_t term);
/* Forget everything up to index, which is in base..last. */
void termlog_compact(struct termlog *l, uint64_t index);
/* Empty, after a snapshot. */
void termlog_reset(struct termlog *l, uint64_t base, uint64_t base_term);
/* The highest entry <= index whose term is <= term; its term, 0 when it lies before the log. */
uint64_t termlog_at_or_below(const struct termlog *l, uint64_t index, uint64_t term, uint64_t *ret_term);
/* The runs of (index, last], clipped to max runs; returns the last index they cover. */
uint64_t termlog_runs(const struct termlog *l, uint64_t index, uint64_t last, struct raft_run *ret_runs,
                      uint32_t max, uint32_t *ret_n);
