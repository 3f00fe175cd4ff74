/* SPDX-License-Identifier: Apache-2.0 */
/* clock.c - the real clock and the real dice behind seam.h. Stateless: any thread. */
#include <errno.h>
#include <sys/random.h>
#include <time.h>
#include "seam.h"

static uint64_t monotonic_us(struct clock *c)
{
    struct timespec ts;

    (void)c;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts); /* cannot fail: the clock exists and ts is ours */
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static uint64_t monotonic_ms(struct clock *c)
{
    return monotonic_us(c) / 1000;
}

static int64_t wall_ms(struct clock *c)
{
    struct timespec ts;

    (void)c;
    (void)clock_gettime(CLOCK_REALTIME, &ts); /* as above */
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

struct clock *clock_real(void)
{
    static struct clock real = {.now_ms = monotonic_ms, .now_us = monotonic_us, .wall_ms = wall_ms};

    return &real;
}

static uint64_t random_next(struct rng *r)
{
    uint64_t v = 0;
    ssize_t n;

    (void)r;
    /* 8 bytes come whole or not at all; EINTR only before the pool is first seeded. */
    do
        n = getrandom(&v, sizeof v, 0);
    while (n < 0 && errno == EINTR);
    assert(n == (ssize_t)sizeof v);
    return v;
}

struct rng *rng_real(void)
{
    static struct rng real = {.next = random_next};

    return &real;
}
