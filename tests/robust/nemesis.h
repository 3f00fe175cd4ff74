/* SPDX-License-Identifier: Apache-2.0 */
/* nemesis.h - faults, chosen by the seed, each with a proof that it happened. */
#pragma once
#include "load.h"

enum fault_kind {
    FAULT_KILL,       /* SIGKILL; started again after a while */
    FAULT_KILL_MOST,  /* a majority or all at once */
    FAULT_PAUSE,      /* SIGSTOP, 50 ms to 30 s */
    FAULT_PARTITION,  /* one member is alone, or of five two; clients reach them */
    FAULT_DEAF,       /* it does not hear the others, or two of five do not */
    FAULT_MUTE,       /* they do not hear it, or the two */
    FAULT_PAIR,       /* two do not hear each other, the others hear both */
    FAULT_LINK_DOWN,  /* neither members nor clients reach it */
    FAULT_SLOW_DISK,  /* each sync takes long */
    FAULT_STALL_DISK, /* no sync ends */
    FAULT_FULL_DISK,
    FAULT_STOP,       /* SIGTERM; started again */
    FAULT_MOVE,       /* the leader is asked to hand over */
    FAULT_KINDS
};

enum { LONG_PAUSE_MS = 10000 };

struct nemesis {
    struct cluster *cluster;
    struct load *load;
    uint64_t seed;
    enum fault_kind main;             /* in every round */
    bool alone;                       /* only that one, one at a time */
    bool together;                    /* never alone */
    int64_t longest_ms;               /* of a pause; from LONG_PAUSE_MS on one of at least half of it must happen */
    int64_t paused_ms;                /* the longest that did */
    unsigned together_rounds;         /* rounds in which two or more faults were there at the same time */
    unsigned tried[FAULT_KINDS], happened[FAULT_KINDS];
    unsigned leaders;                 /* changes of leader seen */
    unsigned died;                    /* members that ended by themselves, without a reason to */
    unsigned hung;                    /* ... that did not when told to */
    FILE *log;                        /* a line for each fault, with its time */
};

const char *fault_name(enum fault_kind kind);
int fault_by_name(const char *name); /* -1: none */
/* What was meant to happen, and never did; NULL: nothing. */
const char *nemesis_lacks(const struct nemesis *n);
void nemesis_run(struct nemesis *n, int64_t until_ns); /* all is healed when it returns */
