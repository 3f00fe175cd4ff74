/* SPDX-License-Identifier: Apache-2.0 */
/* peers_impl.h - what the parts of the transport share. Nobody else's.
 *
 *     peers.c        made, started, stopped; who is a member
 *     peers_io.c     the thread: epoll, what others ask of it
 *     peers_link.c   one connection to a member: its head, its end
 *     peers_lane.c   what waits for a member, and how it leaves
 *     peers_dial.c   how it comes to be: dialed, shaken hands, again
 *     peers_in.c     connections of others: who is let in, what they say
 *     peers_rpc.c    the service cairn.Peer, by gRPC on the same port
 *     peers_fetch.c  entries that are only on the disk
 *     peers_ask.c    calls whose caller waits
 *
 * The head of a connection's stream, and the answer to it; numbers are little-endian:
 *
 *      0  "CAIRN"                              0  u8     0: accepted, or the status of a refusal
 *      5  u8     version                       1  u8     0
 *      6  u8     lane: 0 urgent, 1 bulk        2  u16    bytes of text
 *      7  u8     0                             4  ...    the refusal in words
 *      8  u64    cluster
 *     16  u64    from
 *     24  u64    to
 *
 * and then only the one who dialed speaks: u32 bytes, a peer_msg (peer.c), again and again.
 */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include "dial.h"
#include "handshake.h"
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
enum {
    STREAM_HEAD_BYTES = 32,
    STREAM_ANSWER_BYTES = 4,      /* of its head */
    STREAM_ANSWER_TEXT_MAX = 200,
};
#define STREAM_MAGIC "CAIRN"

/* What epoll names. */
struct end {
    enum { END_WAKE, END_LINK, END_INCOMING } kind;
};

/* Something for the peers' thread to do, once. */
struct task {
    struct mail mail;
    void (*fn)(struct task *t);
};

struct link {
    struct end end; /* first */
    struct peer *peer;
    enum lane lane;
    struct mailbox box;         /* any thread: messages that are sent */
    _Atomic uint32_t n_box;
    _Atomic bool wants_io;      /* the peers' thread shall send what waits */

    /* protected by mu: whoever sends a message writes it to the socket at once, unless another one is just at it (who
     * then takes it along). A mailbox would not do: waking a thread for each costs more than the message. */
    pthread_mutex_t mu;
    struct msg_queue queue;
    struct peer_msg *heartbeat; /* urgent: the newest one only, before the queue */
    int fd;                     /* -1: not connected */
    struct tls *tls;            /* NULL: a plain connection */
    uint8_t *left;              /* what the socket has not taken; NULL: nothing */
    size_t left_at, left_n;
    bool blocked;               /* EPOLLOUT is asked for */
    bool fetching;              /* bulk: an APPEND whose entries are being read from the log */
    struct fetch {
        struct mail mail;
        struct link *link;
        struct peer_msg *msg;
        int err;
        struct task task;
    } fetch;

    /* The peers' thread. */
    struct dial *dial;
    bool dialing;               /* the dialer has it until dialed has run */
    struct task dialed;
    int dialed_fd;              /* of the dialer's thread until dialed runs */
    const struct url *dialed_url; /* the peer's; NULL: none was reached */
    struct handshake shake;     /* dialing goes on until it is done */
    struct task shook;
    uint8_t answer[STREAM_ANSWER_BYTES + STREAM_ANSWER_TEXT_MAX];
    size_t n_answer;
    bool up;                    /* the stream was accepted */
    bool was_up;                /* since the last suspect() */
    uint32_t backoff_ms;
};

/* Counters, never freed and never given to another member: any thread reads them. */
struct peer_counters {
    _Atomic uint64_t member, sent_bytes, sent_messages, sent_failures, received_bytes, received_messages,
        received_failures, disconnects;
    _Atomic bool active;
    _Atomic uint64_t since_ms; /* of active */
};

/* Owner: the peers' thread. A member that was dropped stays in p->gone: its dial, its fetch and senders may still name
 * it. */
struct peer {
    struct peer *next;         /* protected by p->all_mu, as is whatever leads here */
    struct peers *peers;
    uint64_t id;
    char *urls_text;           /* joined by commas: a change means another peer */
    struct arena arena;        /* of urls */
    struct url_list urls;
    const char *url;           /* the first, for the log */
    _Atomic bool gone;
    _Atomic bool lost;         /* messages were dropped, and the sink has not been told */
    struct link links[LANES];
    struct peer_counters *counters;
    enum { SAID_NOTHING, SAID_CONNECTED, SAID_LOST, SAID_UNREACHABLE, SAID_REFUSED } said;
};

/* Who is who: replaced whole. */
struct roster {
    struct task task;
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
    struct handshakes *handshakes; /* NULL: no TLS */
    struct rpc_method methods[2];
    bool started, stopped;
    _Atomic bool stopping;

    /* protected by all_mu: the list; what is in it stays valid until peers_free. Held for a look. */
    pthread_mutex_t all_mu;
    struct peer *all;

    /* The peers' thread. */
    pthread_t thread;
    bool thread_started;
    int epoll_fd, event_fd;
    struct end wake;
    struct mailbox tasks;       /* any thread posts */
    struct peer *gone;
    struct incoming *incoming, *ended;
    unsigned n_incoming, n_strangers; /* strangers: no head has come yet */
    size_t incoming_bytes;      /* of messages that are not whole yet */
    uint64_t refused_ms;        /* of the last line in the log about a stream refused */
    char refused_text[STREAM_ANSWER_TEXT_MAX];
    uint8_t *buffer;            /* LIMIT_PEER_READ_BYTES: what was just read */

    /* protected by roster_mu: written by the peers' thread, read by whoever calls, admits or answers. */
    pthread_mutex_t roster_mu;
    struct roster *roster;

    struct mailbox fetch_box;
    pthread_t fetch_thread;
    bool fetch_started;
    _Atomic bool fetch_stop;

    struct peer_counters counters[PEERS_STATS_MAX], other; /* other: of whoever has no row */
};

static inline void peers_add(_Atomic uint64_t *n, uint64_t add)
{
    atomic_fetch_add_explicit(n, add, memory_order_relaxed);
}

struct peer *peers_find(struct peers *p, uint64_t id); /* any thread */
struct peer_counters *peers_counters(struct peers *p, uint64_t id);
bool peers_is_removed(struct peers *p, uint64_t id);   /* any thread */
char *peers_join_urls(const struct peers_member *m, struct arena *a); /* by commas; NULL: no memory */

/* ---- peers_io.c ---- */
int io_start(struct peers *p);
void io_stop(struct peers *p); /* nothing is connected any more when it returns */
void io_end(struct peers *p);  /* what has been posted since has nobody to do it: it is freed */
void io_post(struct peers *p, struct task *t);
bool io_is_me(const struct peers *p); /* any thread: it is the peers' one */
void io_wake(struct peers *p); /* any thread: there is something to see to */

/* ---- peers_link.c ---- */
int link_init(struct link *l, struct peer *peer, enum lane lane);
void link_events(struct link *l, uint32_t events);
void link_drop(struct link *l);  /* the member is gone, or all stops */
void link_fini(struct link *l);  /* nothing runs any more */
void link_open(struct link *l, int fd, struct tls *tls); /* connected; tls: NULL, or its connection. Both are given
                                                          * away */
void link_close(struct link *l); /* nothing is connected any more; what waits is lost */
bool link_stops(const struct link *l);
uint32_t link_backoff(struct link *l); /* how long until the next attempt, longer each time */
void peer_say_unreachable(struct peer *peer, struct slice text);

/* ---- peers_lane.c ---- */
void link_send(struct link *l, struct peer_msg *m); /* any thread */
void link_flush(struct link *l);    /* the peers' thread: all that can leave now */
void link_lose_all(struct link *l); /* what waits is dropped; mu is held */
/* Tells the sink of what was dropped. */
void peer_tell_lost(struct peer *peer);
/* What goes to one member, by kind. */
enum lane msg_lane(const struct peer_msg *m);

/* ---- peers_dial.c ---- */
enum { LINK_TLS_AGAIN_MS = 1000 }; /* after TLS was refused: files do not change in milliseconds, and handshakes cost
                                    * CPU */
void link_dial(struct link *l, uint32_t delay_ms);
void link_dialed(void *ctx, int fd, int err, size_t url); /* the dialer's thread says so of the link ctx */
void link_hurry(struct link *l); /* the member is there: what waits before the next attempt does not */

/* ---- peers_in.c ---- */
/* tls: NULL, or its connection, given away. */
void incoming_add(struct peers *p, int fd, struct tls *tls); /* a connection on the peer port that does not speak
                                                              * HTTP/2; any thread */
void incoming_events(struct incoming *in, uint32_t events);
void incoming_drop_removed(struct peers *p);
void incoming_drop_late(struct peers *p);
void incoming_drop_all(struct peers *p);
void incoming_bury(struct peers *p); /* after each round */
/* Whether this head is let in: 0, or the status of the refusal with its text. Any thread. */
enum status peers_check(struct peers *p, struct slice version, uint64_t cluster, uint64_t from, uint64_t to,
                        char text[STREAM_ANSWER_TEXT_MAX]);

/* ---- peers_rpc.c ---- */
int peers_rpc_new(struct peers *p);

/* ---- peers_fetch.c ---- */
int fetch_start(struct peers *p);
void fetch_stop(struct peers *p);
void fetch_ask(struct link *l, struct peer_msg *m); /* link_fetched(l) comes later, on the peers' thread */
void link_fetched(struct link *l);

/* ---- peers_ask.c ---- */
struct peers_ids {
    char version[8], cluster[17], from[17], to[17]; /* ids: hexadecimal */
};
/* Connected and, for https://, having shaken hands, with bytes moved by pump: a plain descriptor, or -errno and why. */
int ask_connect(const struct url *u, struct tls_ctx *tls, struct pump *pump, uint32_t timeout_ms,
                char why[TLS_TEXT_BYTES]);
/* The head of each gRPC call but Members; ids holds the texts. */
void peers_head(const struct peers *p, uint64_t to, struct peers_ids *ids, struct rpc_ask_target *t);
