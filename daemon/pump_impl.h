/* SPDX-License-Identifier: Apache-2.0 */
/* pump_impl.h - what pump.c (accepting, sniffing, the thread) and pump_conn.c (one connection) share. Nobody else's. */
#pragma once
#include <semaphore.h>
#include <stdatomic.h>
#include "limits.h"
#include "pump.h"
#include "seam.h"

enum { PUMP_LISTENERS_MAX = 16, PUMP_HEADROOM = 16 };

struct end {
    enum { END_WAKE, END_LISTENER, END_CLIENT, END_GRPC } kind;
    int fd;
    bool readable, writable, hung_up;
    bool blocked; /* EPOLLOUT is asked for */
};

/* One direction. */
struct flow {
    struct end *from, *to;
    uint8_t *left; /* what `to` did not take; NULL: none */
    size_t left_at, left_n;
    bool ended; /* nothing more comes, or nothing more is wanted */
};

struct conn {
    struct conn *prev, *next;
    struct conn_list *list;
    struct conn *ready_next;
    bool in_ready, held, dead;
    struct end client, grpc;
    struct flow up, down; /* client to gRPC, gRPC to client */
    struct guard *guard;
    uint32_t *unwind_ids; /* the streams still to be reset are [unwind_at, n_unwind) */
    uint32_t n_unwind, unwind_at;
    bool between_frames; /* what gRPC has got ends between two frames of the client */
    size_t incomplete_bytes; /* its part of stats.incomplete_bytes */
    uint64_t deadline_ms;    /* while sniffing or closing */
    uint64_t read_ms;        /* when its client last sent something */
};

struct conn_list {
    struct conn *first, *last; /* oldest first */
};

struct pump {
    struct pump_options options;
    int epoll_fd;
    struct end wake, listeners[PUMP_LISTENERS_MAX];
    unsigned n_listeners;
    uint64_t conns_max;
    pthread_t thread;
    bool started;
    uint64_t now_ms;
    uint64_t paused_until_ms; /* accepting; 0: not paused */
    bool accepting;
    unsigned n_held;
    struct conn_list sniffing, open, unwinding, closing, dead;
    uint64_t unwound_ms;
    struct conn *ready; /* more to do without an event: at once (hurry) or in a millisecond */
    bool hurry;
    _Atomic bool want_stop, want_cut, want_no_accept;
    sem_t accept_stopped;
    /* Load that memory was used for, by a rough measure in bytes; malloc's leftovers go back when it is over. */
    uint64_t load, load_trimmed, load_checked, trim_check_ms;
    struct pump_stats stats;
    uint8_t headroom[PUMP_HEADROOM]; /* the begin of a frame's head goes before what is read */
    uint8_t buffer[LIMIT_PUMP_BUFFER_BYTES];
};

static inline void pump_count(_Atomic uint64_t *n, uint64_t add)
{
    atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + add, memory_order_relaxed);
}

/* Puts the connection behind the last of a list, out of the one it is in. */
void conn_list_move(struct conn *c, struct conn_list *to);
/* Both ends are there: moves what can be moved; may close the connection. Does nothing with one that is not open. */
void conn_move(struct pump *p, struct conn *c);
/* The gRPC end is told of EPOLLOUT only while it is blocked: a unix socket makes an edge of it whenever its peer has
 * read, which would wake the pump for each message. */
void conn_watch_out(struct pump *p, struct conn *c, bool blocked);
/* A client is gone whose many streams are being taken from core a few at a time: the next few. */
void conn_unwind(struct pump *p, struct conn *c);
/* At once; the row stays until the round is over, for events of this round may still name it. */
void conn_close(struct pump *p, struct conn *c);
void conn_free(struct conn *c); /* a closed one's row */
/* All incomplete bytes are used up, and the connection that is first in line sends nothing: it goes. */
void conn_check_stall(struct pump *p);
