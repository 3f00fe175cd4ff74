/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_impl.h - what rpc.c (server, queues, stop), rpc_call.c (a call's life) and rpc_answer.c (what it sends) share.
 *
 * A tag of gRPC's is always a struct op inside its owner; while it is in flight it holds a reference on its call.
 */
#pragma once
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/slice.h>
#include <grpc/status.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <pthread.h>
#include <stdatomic.h>
#include "limits.h"
#include "rpc.h"

struct rpc_thread;

struct op {
    void (*done)(struct op *op, bool ok);
};

#define CALL_OF(op, member) ((struct call *)((char *)(op) - offsetof(struct call, member)))

/* One posted call: core fills it when a client calls. Owner: its rpc thread. */
struct post {
    struct op op;
    struct rpc_thread *thread;
    const struct rpc_method *method; /* NULL: any method that is not registered */
    void *registered;
    grpc_call *gcall;
    gpr_timespec deadline;
    grpc_call_details details; /* when method is NULL */
    grpc_metadata_array metadata;
    grpc_byte_buffer *payload;
};

/* A message that waits for its turn on a stream. */
struct outgoing {
    struct outgoing *next;
    grpc_byte_buffer *buffer;
    size_t bytes;
};

enum {
    /* Calls posted for each method and queue. Few, since Debian's core keeps its assertions: each completion is looked
     * for among all tags of the queue that are out, one after the other, and every posted call is such a tag. */
    RPC_POSTS = 4,
    RPC_POSTS_UNREGISTERED = 4,
    RPC_CALL_FIRST_BYTES = 2048,  /* a unary call's arena before its first chunk */
    RPC_SCRATCH_BYTES = 4096,     /* a thread's arena for stream messages before its first chunk */
    RPC_SMALL_ANSWER_BYTES = 16 << 10,
    RPC_CONN_ROWS = 4096,
    RPC_FREE_CALLS = 512,         /* kept for reuse by a thread */
};

/* Owner: its rpc thread, but for what rpc->... counts. */
struct call {
    struct call *prev, *next; /* in thread->calls, or (next) in thread->free_calls */
    struct call *dirty_next;
    struct rpc_thread *thread;
    const struct rpc_method *method;
    grpc_call *gcall;              /* NULL once no operation is in flight and none will be */
    grpc_metadata_array metadata;  /* elements are gcall's */
    uint64_t deadline_ms;
    uint32_t refs;        /* the call's own until it is finished, one an op in flight, the service's */
    uint32_t ops;         /* in flight */
    bool started;         /* the handler has seen it: release is owed */
    bool answered;        /* a status was sent, or is in the send queue's tail */
    bool ended;           /* the call's own reference is gone */
    bool gone;            /* the client is */
    bool held;            /* the next message is not asked for */
    bool dirty;           /* in thread->dirty */
    bool listening;       /* RECV_CLOSE is in flight or done: it may be asked for once */
    int cancelled;        /* RECV_CLOSE writes it */
    struct op op_answer, op_close, op_initial, op_send, op_recv;
    grpc_byte_buffer *sending, *receiving;
    size_t sending_bytes;           /* as counted in response_bytes */
    _Atomic uint64_t *conn_bytes;   /* and here: its connection's row, once it has a large answer */
    struct outgoing *out_first, **out_last;
    size_t out_bytes;
    bool status_waits;          /* send status once the queue is empty */
    enum status status;
    char *status_text;          /* heap or NULL */
    struct arena arena;
    alignas(max_align_t) uint8_t state[CALL_STATE_BYTES];
    alignas(max_align_t) uint8_t first[]; /* RPC_CALL_FIRST_BYTES for unary calls */
};

struct rpc_thread {
    struct rpc *rpc;
    unsigned number;
    pthread_t thread;
    bool running;
    grpc_completion_queue *cq;
    struct slot *slot;
    /* Calls resumed from elsewhere, newest first; who finds it empty wakes the thread by an empty batch on
     * wake_call, a call that goes nowhere. */
    _Atomic(struct mail *) resumed;
    grpc_call *wake_call;
    struct op op_wake;
    struct mail stop; /* posted once, by rpc_stop, among the resumed */
    struct post *posts;
    size_t n_posts;
    struct call *calls;      /* all alive, doubly linked */
    unsigned n_gathered;     /* call_gathered since the last hand_on */
    struct slice request;    /* the bytes being served, */
    grpc_slice joined;       /* here if gRPC had them in pieces */
    struct call *free_calls; /* unary ones */
    unsigned n_free_calls;
    struct call *dirty;
    struct arena scratch;
    bool stopping;
    struct rpc_method_stats *stats; /* one a method; written by the thread, read by any: relaxed */
    alignas(max_align_t) uint8_t scratch_first[RPC_SCRATCH_BYTES];
};

struct rpc {
    struct rpc_options options;
    grpc_server *server;
    grpc_channel *nowhere; /* of the wake calls */
    void **registered;     /* one a method */
    struct rpc_method_stats *sums; /* of rpc_stats, one a method */
    size_t message_max_bytes;
    _Atomic uint32_t n_calls;
    _Atomic bool abandoned; /* rpc threads end at once */
    _Atomic uint64_t response_bytes; /* of answers that gRPC still holds */
    _Atomic uint64_t conn_bytes[RPC_CONN_ROWS]; /* of large unary ones, by connection */
    struct op op_shutdown;
    /* Protected by mu: rpc_stop waits for what an rpc thread learns, once in a process's life; a deserted server's
     * thread for a connection. */
    pthread_mutex_t mu;
    pthread_cond_t cond;
    bool started, stopped, shut_down;
    bool stirred; /* there is, or was a moment ago, something to wait for in core */
    struct rpc_thread *threads[RPC_THREADS_MAX];
    unsigned n_threads;
};

static inline void count_up(uint64_t *counter)
{
    __atomic_store_n(counter, *counter + 1, __ATOMIC_RELAXED);
}

uint64_t rpc_now_ms(void);
void rpc_core_init(void); /* grpc_init, and what has to be before; a grpc_shutdown for each */

/* A call that core has delivered; takes over gcall, the metadata and the payload (NULL: none). */
void call_arrived(struct rpc_thread *t, const struct rpc_method *m, grpc_call *gcall, gpr_timespec deadline,
                  grpc_metadata_array *metadata, grpc_byte_buffer *payload);
/* After each event: starts what handlers have queued for sending. */
void calls_flush(struct rpc_thread *t);
/* The server stops: ends the call with Unavailable. */
void call_stop(struct call *c);
void call_memory_free(struct call *c);
/* Answers a call of an unknown method. */
void call_refuse(struct rpc_thread *t, grpc_call *gcall, grpc_metadata_array *metadata, enum status status,
                 const char *text);

/* ---- rpc_call.c for rpc_answer.c ---- */

/* Starts a batch whose tag is op; the call lives, and counts it, until call_op_back. */
void call_batch(struct call *c, const grpc_op *ops, size_t n, struct op *op);
void call_op_back(struct call *c); /* ends every op's done() */
/* Lets the call's own reference go once it is answered or its client is gone, and nothing is in flight. */
void call_settle(struct call *c);

/* ---- rpc_answer.c for rpc_call.c ---- */

struct rpc_method_stats *call_stats(const struct call *c);
grpc_op call_op_close(struct call *c); /* RECV_CLOSE: once a call */
/* Starts the next send, when none is in flight; or the status, when nothing waits before it. */
void call_send_next(struct call *c);
void call_answer_done(struct op *op, bool ok);
void call_send_done(struct op *op, bool ok);
