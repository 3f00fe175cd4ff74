/* SPDX-License-Identifier: Apache-2.0 */
/* rpc.h - the one door to gRPC core: calls in, answers out.
 *
 * One completion queue a thread, one thread a queue; all of a call's tags come on its own rpc thread, so its state
 * needs no lock. A service is a row of struct rpc_method; a handler never waits: it answers, or keeps the call and
 * is resumed on the call's thread by call_resume (from any thread).
 *
 * Owner: each call belongs to its rpc thread. Foreign types stop here: services see slices and messages.
 */
#pragma once
#include <protobuf-c/protobuf-c.h>
#include "bytes.h"
#include "err.h"
#include "mailbox.h"

struct rpc;
struct call;

enum rpc_kind { RPC_UNARY, RPC_SERVER_STREAM, RPC_BIDI };

/* Who may call (checked by auth later; every method has a row, or it does not compile). */
enum rpc_access { ACCESS_OPEN, ACCESS_USER, ACCESS_ROOT, ACCESS_KEYS /* checked by key range */ };

struct rpc_method {
    const char *service, *name;        /* "etcdserverpb.KV", "Range" */
    enum rpc_kind kind;
    enum rpc_access access;
    const ProtobufCMessageDescriptor *request; /* NULL: req is NULL, the bytes are call_request()'s */
    /* UNARY, SERVER_STREAM: once, with the request decoded into the call's arena. BIDI: once at the start, req NULL. */
    void (*start)(struct call *c, const ProtobufCMessage *req);
    /* BIDI only: each message; next one is read when it returns. req lives until then. */
    void (*message)(struct call *c, const ProtobufCMessage *req);
    /* BIDI only: no further message will come: the client has half-closed, or is gone (then gone follows). */
    void (*half_closed)(struct call *c);
    /* Streams, and unary calls that may wait for long (Lock): the client is gone (cancelled, lost, past its deadline).
     * call_fail is harmless after it; resume functions that arrive later see call_gone(). A unary method without it
     * never hears: its answer goes nowhere. A stream always hears, once, also when its status was sent by whomever (the
     * stop, a bad message): then it lets go of the call. */
    void (*gone)(struct call *c);
    /* Streams: all that was queued has left; call_send_room() is true. */
    void (*drained)(struct call *c);
    /* Before the call's memory goes: release what call_state holds. Once, always, on its rpc thread. */
    void (*release)(struct call *c);
};

/* ---- what a handler may do, on the call's own thread ---- */
void *call_state(struct call *c);            /* CALL_STATE_BYTES zeroed, max-aligned, for the service */
#define CALL_STATE_BYTES 512
void *call_service(struct call *c);          /* the service context given to rpc_new */
struct arena *call_arena(struct call *c);
/* The request as it came, within start (unary and server stream) and message only: what req was decoded from. */
struct slice call_request(struct call *c);
const struct rpc_method *call_method(struct call *c);
struct slot *call_slot(struct call *c);      /* the rpc thread's reading slot */
unsigned call_thread(const struct call *c);  /* the number of its rpc thread, from 0 */
/* A handler has gathered something for another thread: options.hand_on is called here before this thread waits. */
void call_gathered(struct call *c);
bool call_gone(const struct call *c);
/* BIDI, within message: the next one is not read (its sender waits) before call_go_on. */
void call_hold(struct call *c);
void call_go_on(struct call *c);
uint64_t call_deadline_ms(const struct call *c);   /* monotonic; UINT64_MAX: none. min(client's, server's request
                                                    * timeout) for unary */
/* First value of a metadata key, or SLICE_NONE. Borrowed until the call ends. */
struct slice call_metadata(struct call *c, const char *key);

void call_answer(struct call *c, const ProtobufCMessage *m);  /* unary: packs at once, sends, ends OK */
/* The same, already packed: not copied, done(owner) is called once, on any thread, when nobody reads it any more. */
void call_answer_shared(struct call *c, struct slice bytes, void (*done)(void *owner), void *owner);
void call_fail(struct call *c, int err);                      /* ERR_x, or -errno: INTERNAL */
void call_fail_text(struct call *c, enum status status, const char *text);

/* Streams: queue one message for sending. What one handler queues leaves together when it returns, in one write.
 * A message is queued whatever the room: ask before, and wait for drained when there is none. */
bool call_send_room(const struct call *c);          /* false: LIMIT_SEND_BURST_BYTES wait, or too much in all */
void call_send(struct call *c, const ProtobufCMessage *m);
void call_send_packed(struct call *c, struct slice bytes);   /* already packed; copied */
/* Already packed and shared: not copied, done(owner) is called once, on any thread, when gRPC has let go of it. */
void call_send_shared(struct call *c, struct slice bytes, void (*done)(void *owner), void *owner);
/* The same with a few bytes of its own in front, copied: one message. */
void call_send_joined(struct call *c, struct slice head, struct slice bytes, void (*done)(void *owner), void *owner);
void call_end(struct call *c);                      /* OK after what is queued */

/* Any thread: run fn(c) on the call's thread. The call must be kept alive by call_ref from the handler. Chained: one
 * wake-up of an rpc thread serves all that were resumed meanwhile. r must not be posted again before fn runs. */
struct call_resume {
    struct mail mail;
    struct call *call;
    void (*fn)(struct call *c, struct call_resume *r);
};
void call_resume(struct call_resume *r);
void call_ref(struct call *c);   /* its own thread */
void call_unref(struct call *c); /* its own thread */

/* ---- the whole ---- */
#define RPC_THREADS_MAX 8
struct rpc_options {
    const struct rpc_method *methods;
    size_t n_methods;
    void *service;                 /* call_service() */
    const char *name;              /* the threads' is this and a number; NULL: "rpc" */
    unsigned threads;              /* 1 by default on two cores; at most RPC_THREADS_MAX */
    struct slot **slots;           /* call_slot(): one for each thread, the caller's, read by rpc_start; NULL: none */
    size_t max_request_bytes;      /* message limit is this + LIMIT_REQUEST_SLACK_BYTES */
    uint32_t max_concurrent_streams;
    uint32_t keepalive_min_ms, keepalive_interval_ms, keepalive_timeout_ms;
    uint32_t request_timeout_ms;
    uint32_t lookahead_bytes;      /* a stream's window; 0: 64 KiB */
    /* What etcd's interceptors check before the handler: 0, or the error that answers the call. May be NULL. */
    int (*admit)(struct call *c, const ProtobufCMessage *req);
    /* A call is being answered -EUCLEAN: what was read is damaged. Its thread; may not return. NULL: nobody to tell. */
    void (*damaged)(void *service, const char *method);
    /* On the rpc thread of that number, after call_gathered: nothing more is there at once, or enough has been
     * gathered; so one wake-up of another thread serves many calls. NULL if no handler gathers. */
    void (*hand_on)(void *service, unsigned thread);
    /* True: no connection is there. Its thread then sleeps outside of core until the next comes: in core it would take
     * turns with other servers' threads in waiting for all sockets of the process, and hand them what is theirs (a
     * quarter of what a client's read costs). One thread only. NULL: it is always ready. */
    bool (*deserted)(void *deserted_ctx);
    void *deserted_ctx;
    /* During rpc_stop: close our ends of the connections, a blocked write holds gRPC for ever. May be NULL. */
    void (*cut)(void *cut_ctx);
    void *cut_ctx;
};
int rpc_new(const struct rpc_options *o, struct rpc **ret_rpc);
int rpc_start(struct rpc *r);
/* The pump's: gives gRPC one end of a socketpair, non-blocking; gRPC closes it. */
void rpc_add_fd(struct rpc *r, int fd);
/* GOAWAY; ends streams and waiting calls with Unavailable; cuts what is left at 300 ms; returns within 600 ms whatever
 * is left then. Afterwards the rpc threads still run what is resumed, until rpc_free. */
void rpc_stop(struct rpc *r);
/* Takes NULL. Whoever resumes calls must have stopped; a call still referenced then is given up with its memory. When
 * core has not let go of every connection, the rpc threads end between two events and the rest is left as it is. */
void rpc_free(struct rpc *r);

struct rpc_method_stats { uint64_t started, received, sent, handled[STATUS_COUNT]; };
/* Summed over threads, as of this call; any thread. Valid as long as r, changed by the next call for the method. */
const struct rpc_method_stats *rpc_stats(const struct rpc *r, size_t method);
