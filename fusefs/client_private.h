/* SPDX-License-Identifier: Apache-2.0 */
/* client_private.h - the client's insides, and the one door to gRPC.
 *
 *     core thread                               polling thread (client_poll.c)
 *     client_start -> op, waiting               grpc_completion_queue_next
 *     a channel is connected: start_batch  ---> a tag completes: unpack the answer
 *     client_dispatch <--- mailbox, eventfd <-- post the tag
 *     tag->arrived: done, message, closed
 *
 * A gRPC tag is always a struct tag inside an op or an endpoint. The polling thread touches a tag only
 * between the start of its batch and the post; everything else is the core thread's. An op lives until its
 * last tag came back, however long ago its owner lost interest.
 *
 *     client.c           calls and streams; opening and closing
 *     client_op.c        one op: its messages, its batches
 *     client_poll.c      the polling thread and its mailbox
 *     client_endpoint.c  the connections
 *     client_health.c    which of them to use: beats, probes, failing over
 *     client_error.c     what an error means
 */
#pragma once
#include <errno.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "client.h"
#include "rpc.pb-c.h"
#include "tree.pb-c.h"

_Static_assert((int)STATUS_UNAUTHENTICATED == (int)GRPC_STATUS_UNAUTHENTICATED, "one numbering");

struct tag {
    void (*arrived)(struct client *c, struct tag *t); /* core thread */
    void (*polled)(struct tag *t);                    /* polling thread, before the post; may be NULL */
    struct client_op *op;                             /* NULL: an endpoint's */
    bool ok;
    struct tag *next;
    /* Stored (release) before the tag goes to gRPC, loaded (acquire) when it comes back: gRPC orders the two
     * threads as well, but inside a library that thread sanitizers do not see. */
    atomic_bool lent;
};

struct endpoint {
    char *target; /* as gRPC wants it */
    char *name;   /* as the user gave it */
    grpc_channel *channel;
    grpc_connectivity_state state;
    bool watching; /* state_tag is with gRPC */
    struct tag state_tag;
    struct client *client;
    /* What is known of the member behind it, client_health.c's. */
    bool verified;               /* it has answered since it was connected, and is of our cluster */
    bool foreign;                /* it is of another */
    bool learner, no_leader;     /* as it said itself, at the last beat */
    int64_t heard_ms;            /* when it last said anything */
    int64_t owing_ms;            /* since when it owes us a word; 0: nothing was asked since it last said one */
    uint32_t n_calls;            /* under way at it */
    size_t n_bytes;              /* of their requests: they may still be on a slow line */
    int64_t proved_ms;           /* when it proved a quorum to a probe, for the first time in this check */
    struct client_call beat, probe;
};

struct message {
    struct message *next;
    grpc_byte_buffer *bytes;
};

/* A call or a stream. */
struct client_op {
    struct client_op *next, **prev; /* in c->waiting or c->running */
    struct client *client;
    enum client_method method;
    struct client_call *call;       /* NULL: abandoned, or a stream */
    struct client_stream *stream;   /* NULL: closed, or a call */
    struct endpoint *only;          /* it asks this one, wherever calls go; NULL: the current one */
    bool is_stream, closing;
    bool serializable;              /* the call's word */
    size_t n_bytes;                 /* of a call's request */
    struct message *out, **out_end; /* to be sent; of a call the one request, kept for a retry */
    int64_t deadline_ms, not_before_ms;
    int64_t first_ms, started_ms; /* made; last sent, 0: never */
    uint32_t tries;
    uint32_t n_tags; /* with gRPC or in the mailbox */

    /* Lent to gRPC while running. */
    grpc_call *gcall;
    struct endpoint *endpoint;
    bool moved; /* cancelled because its endpoint was left for another, or its leader is another */
    struct tag open_tag, recv_tag, send_tag, status_tag;
    grpc_byte_buffer *sending, *received;
    grpc_metadata_array initial, trailing;
    grpc_status_code status;
    grpc_slice details;

    /* Made by the polling thread from `received`. */
    ProtobufCMessage *reply;
};

struct client {
    struct endpoint endpoints[CLIENT_ENDPOINTS_MAX];
    unsigned n_endpoints, current;
    int64_t timeout_ms, grace_ms;
    grpc_completion_queue *cq;
    pthread_t poller;
    int epoll_fd, event_fd, timer_fd;
    bool dispatching;
    int64_t due_ms; /* the timer's; 0: off */
    struct client_op *waiting, **waiting_end, *running;
    uint32_t n_ops;
    struct client_health health;
    int64_t opened_ms;
    uint64_t cluster_id;    /* the first endpoint's; 0: not known yet */
    uint64_t term;          /* the highest told of */
    int64_t check_since_ms; /* the current endpoint is in question from here; 0: it is not */
    int64_t unproved_ms;    /* since when it owes an answer that proves a quorum; 0: it owes none */
    uint32_t n_proving;     /* calls under way whose answers would */
    int64_t silence_ms;     /* what counts as silence: CLIENT_SILENCE_MS, more after moving in vain */
    int64_t left_silent_ms; /* when one was last left for its silence; 0: never */

    pthread_mutex_t mu; /* the mailbox: gRPC has one consumer thread, so a plain locked list does */
    struct tag *mail, **mail_end; /* protected by mu */
};

struct method {
    const char *path;
    const ProtobufCMessageDescriptor *reply;
    bool reads;  /* may be sent twice */
    bool quorum; /* an answer proves a quorum */
};
extern const struct method client_methods[CLIENT_METHODS];

/* ---- client_op.c ------------------------------------------------------------------- */

/* An answer to it proves a quorum, of the current endpoint. */
bool client_op_proves(const struct client_op *op);

struct client_op *client_op_new(struct client *c, enum client_method m, const ProtobufCMessage *msg,
                                int64_t timeout_ms);
void client_op_wait(struct client *c, struct client_op *op); /* into c->waiting */
/* The current endpoint is connected: from here on the request counts as sent. */
void client_op_start(struct client *c, struct client_op *op);
void client_op_unlink(struct client *c, struct client_op *op);
/* Gives back what one attempt borrowed, so that the op can be freed or tried again. */
void client_op_reset(struct client_op *op);
void client_op_free(struct client *c, struct client_op *op);
struct slice client_op_text(const struct client_op *op);
enum err client_op_err(const struct client_op *op);
struct message *client_message_pack(const ProtobufCMessage *msg);
void client_message_free(struct message *m);
void client_stream_receive(struct client_op *op);
/* One message at a time is with gRPC: the first of op->out. */
void client_stream_transmit(struct client_op *op);

/* ---- client.c: a tag arrived --------------------------------------------------------- */

void client_call_arrived(struct client *c, struct tag *t);
void client_stream_opened(struct client *c, struct tag *t);
void client_stream_received(struct client *c, struct tag *t);
void client_stream_sent(struct client *c, struct tag *t);
void client_stream_ended(struct client *c, struct tag *t);
/* Starts what waits, if there is somebody to talk to, and ends what has waited too long. */
void client_run_waiting(struct client *c);

/* ---- client_poll.c --------------------------------------------------------------------- */

void client_unpack_reply(struct tag *t); /* a tag's polled */
int client_poll_open(struct client *c);  /* the descriptors and the completion queue */
int client_poll_start(struct client *c); /* the thread; all signals must be blocked */
/* Waits until gRPC has given everything back; `polling`: the thread was started. */
void client_poll_close(struct client *c, bool polling);
struct tag *client_mail_take(struct client *c);

/* ---- client_endpoint.c: connections ------------------------------------------------------- */

int client_endpoints_open(struct client *c, const struct client_config *cfg);
void client_endpoints_connect(struct client *c);
void client_endpoints_close(struct client *c);
bool endpoint_connected(const struct endpoint *e);

/* ---- client_health.c: whom to talk to ------------------------------------------------------- */

struct endpoint *client_current(struct client *c);
/* Calls may be sent to it. */
bool endpoint_usable(const struct endpoint *e);
void client_health_init(struct client *c);
/* It was connected, or is no more. */
void client_endpoint_changed(struct client *c, struct endpoint *e);
/* The server behind it said something. */
void client_heard(struct endpoint *e);
void client_note_header(struct client *c, const ProtobufCMessage *msg);
void client_note_quorum(struct client *c);
void client_note_doubt(struct client *c);
/* A call failed in a way that speaks against its endpoint. */
void client_question(struct client *c, struct endpoint *e);
/* A call goes to its endpoint; it has come back from there. */
void client_note_asked(struct client *c, const struct client_op *op);
void client_note_back(struct client *c, const struct client_op *op);
void client_timer_by(struct client *c, int64_t at_ms); /* client_tick() then, or sooner */
void client_tick(struct client *c);

/* ---- client.c --------------------------------------------------------------------------------- */

/* A call to one endpoint, never sent to another and never twice; nothing is concluded from its outcome. */
void client_start_only(struct client *c, struct client_call *call, enum client_method method,
                       const ProtobufCMessage *req, int64_t timeout_ms, struct endpoint *e);

/* ---- client_error.c ----------------------------------------------------------------------- */

enum client_outcome client_outcome_of(enum err err, enum status code);
