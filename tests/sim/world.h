/* SPDX-License-Identifier: Apache-2.0 */
/* world.h - the simulated world of whole members: one seed, one clock in microseconds, one line per event.
 *
 * A simulation is single-threaded: it picks the earliest of all that is due (a member's thread, a packet, a client, a
 * fault), moves the clock there and lets it happen. Everything random comes from world_random, so a seed names a run.
 * A property that does not hold calls world_fail with its name (RELIABILITY A.3); the run then ends.
 *
 *     world.h    seed, clock, lines, failures           member.h   a member: WAL, store, apply, turn over these seams
 *     oracle.h   the log all agree on, and a model      net.h      what travels between members
 *     check.h    what must hold at every step             client.h   calls and what they may answer
 *     rename.h   directories that are renamed
 *     snapshot.h a member is given another's state        faults.h   what goes wrong, and the healing
 *     rot.h      a log that has changed by itself          watch.h    watchers that move between members
 *     damage.h   a member that must be rebuilt from the others
 */
#pragma once
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>
#include "bytes.h"
#include "splitmix.h"

enum {
    MEMBERS_SIM_MAX = 8,     /* ids 1 ... 7, and spare ones */
    SIM_LOG_MAX = 1 << 13,   /* entries of one run */
    SIM_TERMS_MAX = 1 << 13,
    SIM_TERMS_A_JUMP = 1 << 9,
    WATCH_CLIENTS = 3,
};

#define NEVER UINT64_MAX

/* What is rare, and must have happened somewhere in a long run. */
#define SIM_COUNTERS(X) \
    X(steps) X(commits) X(elections) X(acked_writes) X(failed_calls) X(lin_reads) X(serial_reads) X(old_reads) X(compacted_reads) \
    X(grants) X(grants_again) X(renewals) X(expiries) X(compactions) X(txns) X(deletes) \
    X(renames) X(renames_refused) X(renames_large) X(renames_too_large) \
    X(crashes) X(power_cuts) X(cuts_in_write) X(cuts_in_flush) X(lost_writes) X(torn_tails) X(restarts) X(pauses) \
    X(stalls) X(disks_full) X(eio_stops) X(packets) X(dropped) X(doubled) X(partitions) X(one_way) X(slanders) X(late_leaders) \
    X(forwarded) X(log_cuts) X(flushes) X(rots) \
    X(confs) X(joints) X(learners) X(removals) X(joins) X(log_releases) X(snapshots) X(snapshots_failed) X(snapshots_unwanted) \
    X(watch_events) X(watch_moves) X(watch_prevs) X(watch_progress) X(watch_compacted) X(watch_fragments) \
    X(transfers) X(transfers_failed) X(hand_overs) \
    X(damages) X(rebuilds) X(sound_again) X(divergences) X(corrupts)

struct counters {
#define X(name) uint64_t name;
    SIM_COUNTERS(X)
#undef X
};

struct world {
    uint64_t seed, rng, now_us;
    bool verbose;
    const char *failed;
    char why[512];
    struct counters did;
};

static inline uint64_t world_random64(struct world *w)
{
    return splitmix64(&w->rng);
}

static inline uint64_t world_random(struct world *w, uint64_t below)
{
    return world_random64(w) % below;
}

static inline bool world_chance(struct world *w, unsigned pct)
{
    return world_random(w, 100) < pct;
}

/* Mostly short, seldom long: up to max. */
static inline uint64_t world_delay(struct world *w, uint64_t max)
{
    uint64_t top = max >> world_random(w, 6);

    return 1 + world_random(w, top + 1);
}

__attribute__((format(printf, 2, 3))) static inline void world_line(struct world *w, const char *format, ...)
{
    va_list ap;

    if (!w->verbose)
        return;
    printf("%10.3f ", (double)w->now_us / 1000);
    va_start(ap, format);
    vprintf(format, ap);
    va_end(ap);
    putchar('\n');
}

__attribute__((format(printf, 3, 4))) static inline void world_fail(struct world *w, const char *property,
                                                                     const char *format, ...)
{
    va_list ap;

    if (w->failed)
        return;
    w->failed = property;
    va_start(ap, format);
    (void)vsnprintf(w->why, sizeof w->why, format, ap);
    va_end(ap);
    world_line(w, "%s broken: %s", property, w->why);
}
