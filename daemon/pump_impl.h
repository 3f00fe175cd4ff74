/* SPDX-License-Identifier: Apache-2.0 */
/* pump_impl.h - what pump.c (accepting, sniffing, the thread), pump_conn.c (one connection), pump_relay.c (one
 * that is not gRPC's) and pump_tls.c (its handshake) share. Nobody else's. */
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
    bool may_plain, may_tls; /* a listener, and whom it accepts: what may be spoken */
    struct tls *tls;         /* of a client that has shaken hands */
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
    struct guard *guard;     /* NULL once open: what is relayed is not gRPC's */
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
    struct mailbox arrivals; /* connections that have shaken hands */
    unsigned n_shaking;      /* connections that are with the handshakes now */
    uint64_t shook_log_ms;   /* of the last line about a handshake that failed, */
    char shook_text[TLS_TEXT_BYTES]; /* and what it said */
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

/* A row for a socket, among those that are sniffed; NULL: closed. tls: given away, or NULL. */
struct conn *conn_new(struct pump *p, int fd, struct tls *tls);
void conn_sniff(struct pump *p, struct conn *c);
/* Another end that epoll shall tell of. 0 or -errno. */
int conn_watch(struct pump *p, struct end *e);
/* "address:port" of the client, or "unix". */
void client_name(int fd, char *name, size_t size);
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
/* ---- the flows' parts, for pump_relay.c ---- */
bool flow_flush(struct flow *f, bool *ret_lost); /* true when nothing is left over. *ret_lost: the other side is gone */
bool flow_put(struct flow *f, const uint8_t *b, size_t n); /* keeps what is not taken. False: gone, or no memory */
ssize_t flow_get(struct pump *p, struct flow *f, size_t max); /* into p->buffer: > 0 bytes, 0 nothing now, -1 the end */
void conn_wants_more(struct pump *p, struct conn *c, bool hurry);
void conn_finish(struct pump *p, struct conn *c); /* lets the client read what was said, then closes */
/* ---- pump_relay.c ---- */
/* Its other side is grpc_fd, given away. False: the connection is closed. */
bool relay_open(struct pump *p, struct conn *c, int grpc_fd);
void relay_move(struct pump *p, struct conn *c);
/* ---- pump_tls.c ---- */
void shake_begin(struct pump *p, struct conn *c); /* c is gone; its client comes back by arrivals_take */
void arrivals_take(struct pump *p);
void arrivals_drop(struct pump *p); /* nothing runs any more */
/* All incomplete bytes are used up, and the connection that is first in line sends nothing: it goes. */
void conn_check_stall(struct pump *p);
