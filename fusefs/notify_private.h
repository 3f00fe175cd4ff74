/* SPDX-License-Identifier: Apache-2.0 */
/* notify_private.h - what notify.c and notify_tell.c share. */
#pragma once
#include <pthread.h>

#include "notify.h"
#include "notify_watchers.h"

struct job;

struct queue {
    struct job *first, **last;
};

/* One notify thread. */
struct worker {
    struct notify *notify;
    pthread_t thread;
    pthread_mutex_t mu;
    pthread_cond_t wake;
    struct queue queue; /* protected by mu: a mailbox */
    bool stop;          /* protected by mu */
};

/* The thread that looks who watches what, between two looks idle. */
struct scanner {
    pthread_t thread;
    pthread_mutex_t mu;
    pthread_cond_t wake;
    bool wanted, stop;     /* protected by mu */
    bool finished;         /* protected by mu: result is there */
    struct watched result; /* protected by mu */
};

struct notify {
    struct notify_config cfg;
    struct worker workers[NOTIFY_THREADS];
    struct scanner scanner;
    pthread_mutex_t done_mu;
    struct queue done; /* protected by done_mu: a mailbox to the core */
    uint64_t raced;    /* protected by done_mu */
    struct source done_source;
    /* The core's from here. */
    struct change_event *unsure, **unsure_last; /* wait for the look that is to come */
    struct change_event *looking;               /* wait for the look under way */
    struct change_event *parked;                /* for watchers that may come back, one for a node */
    struct timer parked_timer;
    bool parked_soon;                           /* it fires soon, for one of them was read a moment ago */
    bool scan_running;
    uint64_t scan_started_ms;
    struct timer scan_timer;
    uint64_t blind_second;
    unsigned blind_n;
    struct notify_stats stats;
};

/* Does the kernel know it? */
static inline bool notify_knows(const struct node *node)
{
    return node && node->nlookup > 0;
}

/* ev has been told, or will not be: what waited for that goes on. */
void notify_forget(struct notify *n, struct change_event *ev);

/* notify_tell.c. n->done_source is the core's wake-up for its thread too. */
int tell_start(struct notify *n); /* 0/-errno */
void tell_consider(struct notify *n, struct change_event *ev); /* what it invalidates is done: owns ev from here */
void tell_looked(struct notify *n); /* the core was woken: perhaps by a look that is finished */
void tell_stop(struct notify *n);   /* its thread has ended */
void tell_drop(struct notify *n);   /* what waited to be told will not be */
