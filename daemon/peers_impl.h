/* SPDX-License-Identifier: Apache-2.0 */
/* peers_impl.h - what the parts of the transport share. Nobody else's.
 *
 *     peers.c        made, started, stopped; who is a member; the way in from the turn
 *     peers_link.c   one connection to a member: dialed, lost, dialed again; its lane
 *     peers_in.c     the service cairn.Peer
 *     peers_fetch.c  entries that are only on the disk
 *     peers_ask.c    calls whose caller waits
 */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include "dial.h"
#include "limits.h"
#include "listen.h"
#include "mailbox.h"
#include "peers.h"
#include "pump.h"

enum lane { LANE_URGENT, LANE_BULK, LANES };

/* Messages that wait, oldest first. */
struct msg_queue {
    struct peer_msg *first, *last;
    size_t n, bytes; /* bytes: of what is not an APPEND */
};
void queue_push(struct msg_queue *q, struct peer_msg *m);
void queue_push_front(struct msg_queue *q, struct peer_msg *m);
struct peer_msg *queue_pop(struct msg_queue *q); /* NULL: empty */

/* Owner: the peers' thread, but for what says otherwise. */
struct link {
    struct peer *peer;
    enum lane lane;
    struct msg_queue queue;
    struct peer_msg *heartbeat; /* urgent: the newest one only, before the queue */
    struct dial *dial;
    bool dialing;               /* the dialer has it until dialed has run */
    struct call_resume dialed;
    int dialed_fd;              /* of the dialer's thread until dialed runs */
    struct rpc_out *out;        /* the stream; NULL: none */
    bool up;                    /* it was accepted */
    bool was_up;                /* since the last suspect() */
    uint32_t backoff_ms;
    /* Bulk: an APPEND whose entries are being read from the log. */
    bool fetching;
    struct fetch {
        struct mail mail;
        struct link *link;
        struct peer_msg *msg;
        int err;
        struct call_resume resume;
    } fetch;
};

/* Counters, never freed and never given to another member: any thread reads them. */
struct peer_counters {
    _Atomic uint64_t member, sent_bytes, sent_messages, sent_failures, received_bytes, received_messages,
        received_failures, disconnects;
    _Atomic bool active;
    _Atomic uint64_t since_ms; /* of active */
};

/* Owner: the peers' thread. A member that was dropped stays in p->gone: its dial and its fetch may still name it. */
struct peer {
    struct peer *next;
    struct peers *peers;
    uint64_t id;
    char *urls_text;           /* joined by commas: a change means another peer */
    struct arena arena;        /* of urls */
    struct url_list urls;
    struct url first;          /* for the authority */
    bool gone;
    bool lost;                 /* messages were dropped, and it has not been told */
    struct link links[LANES];
    struct peer_counters *counters;
    enum { SAID_NOTHING, SAID_CONNECTED, SAID_LOST, SAID_UNREACHABLE, SAID_REFUSED } said;
};

/* Who is who: replaced whole. */
struct roster {
    struct call_resume task;
    struct peers *peers;
    struct arena arena;
    struct peers_member *members;
    size_t n;
    uint64_t *removed;
    size_t n_removed;
};

struct peers {
    struct transport transport; /* first */
    struct peers_options options;
    struct peers_sink sink;
    struct rpc *rpc;
    struct pump *pump;
    struct listener *listeners;
    size_t n_listeners;
    struct dialer *dialer;
    struct rpc_method methods[3];

    /* From the turn: any thread. */
    struct mailbox outbox;
    _Atomic uint32_t n_outbox;
    _Atomic bool woken, overflown, stopping;
    struct call_resume drain;

    /* The peers' thread. */
    struct peer *all, *gone;
    struct incoming *incoming;
    unsigned n_incoming;
    unsigned n_out; /* streams of ours that are not yet over */
    uint64_t refused_ms;        /* of the last line in the log about a stream refused */
    char refused_text[160];

    /* protected by roster_mu: peers_call reads it on its caller's thread. Written by the peers' thread. */
    pthread_mutex_t roster_mu;
    struct roster *roster;

    /* The fetch thread, and protected by wal_mu: the log, which peers_set_wal replaces. */
    struct mailbox fetch_box;
    pthread_t fetch_thread;
    bool fetch_started;
    _Atomic bool fetch_stop;
    pthread_mutex_t wal_mu;
    struct wal *wal;

    /* protected by mu: peers_stop waits for what the peers' thread does. */
    pthread_mutex_t mu;
    pthread_cond_t cond;
    bool started, stopped, cut_done;
    struct call_resume stop;

    struct peer_counters counters[PEERS_STATS_MAX], other; /* other: of whoever has no row */
};

enum { PEERS_THREAD = 0 }; /* rpc.h's only one */

static inline void peers_count(_Atomic uint64_t *n, uint64_t add)
{
    atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + add, memory_order_relaxed);
}

struct peer *peers_find(struct peers *p, uint64_t id);
struct peer_counters *peers_counters(struct peers *p, uint64_t id);
bool peers_is_removed(const struct peers *p, uint64_t id);

char *peers_join_urls(const struct peers_member *m, struct arena *a); /* by commas; NULL: no memory */
void peers_out_over(struct peers *p); /* n_out went down */

/* ---- peers_link.c ---- */
int link_init(struct link *l, struct peer *peer, enum lane lane);
void link_dial(struct link *l, uint32_t delay_ms);
void link_hurry(struct link *l); /* the member is there: what waits before the next attempt does not */
void link_put(struct link *l, struct peer_msg *m);
void link_flush(struct link *l);
void link_drop(struct link *l);  /* the member is gone, or all stops */
void link_fini(struct link *l);  /* nothing runs any more */
/* What goes to one member, by kind. */
enum lane msg_lane(const struct peer_msg *m);

/* ---- peers_in.c ---- */
extern const struct rpc_method peers_messages_method, peers_members_method;
void peers_drop_incoming(struct peers *p); /* of members that were removed */

/* ---- peers_fetch.c ---- */
int fetch_start(struct peers *p);
void fetch_stop(struct peers *p);
void fetch_ask(struct link *l, struct peer_msg *m); /* link_fetched(l) comes later, on the peers' thread */
void link_fetched(struct link *l);

/* ---- peers_ask.c ---- */
struct peers_ids {
    char cluster[17], from[17], to[17]; /* hexadecimal */
};
/* The head of each call but Members; ids holds the texts. */
void peers_head(const struct peers *p, uint64_t to, const char *lane, struct peers_ids *ids, struct rpc_out_target *t);
