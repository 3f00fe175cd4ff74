/* SPDX-License-Identifier: Apache-2.0 */
/* termlog.c - which index has which term, as runs; see termlog.h.
 *
 * A run begins where a leader's entries begin, so a log of a million entries is a handful of runs.
 */
#include <errno.h>
#include "termlog.h"

int termlog_init(struct termlog *l, uint64_t base, uint64_t base_term, uint64_t last,
                 const struct raft_run *runs, uint32_t n_runs)
{
    if (last < base || n_runs > RAFT_RUNS_MAX || (last > base) != (n_runs > 0) || (base > 0) != (base_term > 0))
        return -EINVAL;
    for (uint32_t i = 0; i < n_runs; i++) {
        uint64_t first_min = i ? runs[i - 1].first + 1 : base + 1;
        uint64_t term_min = i ? runs[i - 1].term : base_term;

        if (runs[i].first < first_min || (i == 0 && runs[i].first != first_min) || runs[i].first > last ||
            runs[i].term < term_min || runs[i].term == 0)
            return -EINVAL;
    }
    l->base = base;
    l->base_term = base_term;
    l->last = last;
    l->n_runs = n_runs;
    if (n_runs)
        memcpy(l->runs, runs, n_runs * sizeof(runs[0]));
    return 0;
}

/* The run that holds index, which is in base + 1 ... last. */
static uint32_t run_of(const struct termlog *l, uint64_t index)
{
    uint32_t lo = 0, hi = l->n_runs; /* runs[lo].first <= index < runs[hi].first */

    assert(index > l->base);
    assert(index <= l->last);
    if (l->runs[hi - 1].first <= index) /* nearly always */
        return hi - 1;
    while (hi - lo > 1) {
        uint32_t mid = lo + (hi - lo) / 2;

        if (l->runs[mid].first <= index)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

uint64_t termlog_term(const struct termlog *l, uint64_t index)
{
    if (index == l->base)
        return l->base_term;
    if (index < l->base || index > l->last)
        return 0;
    return l->runs[run_of(l, index)].term;
}

uint64_t termlog_last_term(const struct termlog *l)
{
    return l->n_runs ? l->runs[l->n_runs - 1].term : l->base_term;
}

bool termlog_has_room(const struct termlog *l, uint64_t first, uint64_t term, uint32_t new_runs)
{
    uint32_t kept = first > l->last ? l->n_runs : first <= l->base + 1 ? 0 : run_of(l, first - 1) + 1;

    if (kept && l->runs[kept - 1].term == term)
        new_runs--;
    return kept + new_runs <= RAFT_RUNS_MAX;
}

void termlog_cut(struct termlog *l, uint64_t first)
{
    assert(first > l->base);
    if (first > l->last)
        return;
    l->last = first - 1;
    while (l->n_runs && l->runs[l->n_runs - 1].first >= first)
        l->n_runs--;
}

void termlog_append(struct termlog *l, uint64_t n, uint64_t term)
{
    assert(n > 0);
    assert(term >= termlog_last_term(l));
    if (l->n_runs == 0 || l->runs[l->n_runs - 1].term != term) {
        assert(l->n_runs < RAFT_RUNS_MAX);
        l->runs[l->n_runs++] = (struct raft_run){l->last + 1, term};
    }
    l->last += n;
}

void termlog_compact(struct termlog *l, uint64_t index)
{
    uint64_t term = termlog_term(l, index);
    uint32_t drop;

    assert(index >= l->base);
    assert(index <= l->last);
    if (index == l->base)
        return;
    drop = index == l->last ? l->n_runs : run_of(l, index + 1);
    memmove(l->runs, l->runs + drop, (l->n_runs - drop) * sizeof(l->runs[0]));
    l->n_runs -= drop;
    if (l->n_runs)
        l->runs[0].first = index + 1;
    l->base = index;
    l->base_term = term;
}

void termlog_reset(struct termlog *l, uint64_t base, uint64_t base_term)
{
    l->base = l->last = base;
    l->base_term = base_term;
    l->n_runs = 0;
}

uint64_t termlog_at_or_below(const struct termlog *l, uint64_t index, uint64_t term, uint64_t *ret_term)
{
    if (index > l->last)
        index = l->last;
    while (index > l->base) {
        const struct raft_run *r = &l->runs[run_of(l, index)];

        if (r->term <= term) {
            *ret_term = r->term;
            return index;
        }
        index = r->first - 1; /* a whole run at once */
    }
    *ret_term = index == l->base && l->base_term <= term ? l->base_term : 0;
    return index;
}

uint64_t termlog_runs(const struct termlog *l, uint64_t index, uint64_t last, struct raft_run *ret_runs,
                      uint32_t max, uint32_t *ret_n)
{
    uint32_t n = 0;

    assert(index >= l->base);
    assert(last <= l->last);
    if (last > index) {
        for (uint32_t i = run_of(l, index + 1); i < l->n_runs && l->runs[i].first <= last; i++) {
            if (n == max) {
                last = l->runs[i].first - 1;
                break;
            }
            ret_runs[n] = l->runs[i];
            if (n == 0)
                ret_runs[0].first = index + 1;
            n++;
        }
    }
    *ret_n = n;
    return last;
}
