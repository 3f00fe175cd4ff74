/* SPDX-License-Identifier: Apache-2.0 */
/* load.h - clients that write, read and watch, and note what they were told. */
#pragma once
#include <stdatomic.h>
#include "cluster.h"
#include "history.h"

enum { CLIENTS_MAX = 32, WATCHERS_MAX = 16 };

struct load {
    struct history *history;
    struct cluster *cluster;
    uint64_t seed;
    int clients, watchers, rest_us;   /* rest_us: a client's mean pause between two calls */
    _Atomic int64_t rev_seen;         /* by anybody */
    _Atomic int64_t rev_witness;      /* the witness has all up to here: may be compacted */
    _Atomic uint64_t done;            /* calls answered */
    _Atomic uint32_t streams;         /* watches so far */
    _Atomic bool stop;                /* clients end; watchers go on */
    _Atomic int64_t rev_final;        /* not 0: everything rests at this revision; watchers end once they have it */
    int64_t final_ns;                 /* ... or at this time of fair_ns(); set before rev_final */
    pthread_t client_threads[CLIENTS_MAX], watch_threads[WATCHERS_MAX];
};

uint64_t draw(uint64_t *seed); /* xorshift; a seed is not 0 */
uint64_t below(uint64_t *seed, uint64_t n);

void load_start(struct load *l);
void load_stop_clients(struct load *l);   /* and waits for them */
void load_stop_watchers(struct load *l);  /* after rev_final is set */

/* A call that goes into the history. Takes req; returns gRPC's status. */
int load_call(struct load *l, struct caller *caller, int client, int member, enum rec_kind kind, ProtobufCMessage *req,
              int timeout_ms, struct rec *ret_rec);
void *watcher_main(void *arg); /* arg: a struct worker */
struct worker {
    struct load *load;
    int number; /* a client's, from CLIENT_FIRST; a watcher's, from 0: the witness */
};
void saw(struct load *l, int64_t rev);
int64_t lease_id_new(int client, uint32_t n);
ProtobufCBinaryData bin(const void *p, size_t n); /* a copy */
