/* SPDX-License-Identifier: Apache-2.0 */
/* histogram.h - counts of durations in exponential buckets, for /metrics. Any thread may observe or read. */
#pragma once
#include <stdatomic.h>
#include "bytes.h"

#define HISTOGRAM_BUCKETS_MAX 24

struct histogram {
    double first, factor;  /* upper bounds: first, first * factor, ... n of them, then +Inf */
    unsigned n;
    _Atomic uint64_t counts[HISTOGRAM_BUCKETS_MAX + 1];
    _Atomic uint64_t sum_us;
};

/* exp(0.001, 2, 14) of etcd's tables is HISTOGRAM(0.001, 2, 14). */
#define HISTOGRAM(first_, factor_, n_) {.first = (first_), .factor = (factor_), .n = (n_)}

static inline void histogram_observe_us(struct histogram *h, uint64_t us)
{
    double bound_us = h->first * 1e6;
    unsigned i = 0;

    while (i < h->n && (double)us > bound_us) {
        bound_us *= h->factor;
        i++;
    }
    atomic_fetch_add_explicit(&h->counts[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_us, us, memory_order_relaxed);
}
