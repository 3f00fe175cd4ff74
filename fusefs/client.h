/* SPDX-License-Identifier: Apache-2.0 */
/* client.h - the one door to gRPC: calls and streams to an etcd cluster, without waiting.
 *
 * A call is started on the core thread and its `done` runs on the core thread, inside client_dispatch(),
 * exactly once. Nothing here ever blocks. One thread of the client's own polls gRPC's completion queue,
 * unpacks answers and posts them to a mailbox with an eventfd.
 *
 * Endpoints: each has its own channel, kept connected. Calls go to the current one; a call is *started* only
 * on a channel that is connected, so that "not sent" is certain. A call for which none is connected waits
 * here until its deadline. When the current endpoint breaks, falls silent or has no leader, another one
 * becomes current (client_health.c). A call of a method that only reads is sent again there; one that may
 * change the store never is: its outcome is CLIENT_UNKNOWN. Streams end, and are opened anew by their owners.
 *
 * Owner:    the core thread, but for what client.c marks as the polling thread's.
 * Not here: what an error means to a user of the file system, beyond client_errno().
 */
#pragma once
#include <protobuf-c/protobuf-c.h>

#include "bytes.h"
#include "err.h"
#include "limits.h"

struct client;

enum client_method {
    CLIENT_RANGE,            /* Etcdserverpb__RangeRequest -> Etcdserverpb__RangeResponse, and so on */
    CLIENT_PUT,
    CLIENT_DELETE_RANGE,
    CLIENT_TXN,              /* counted as one that may change the store, unless call->reads_only */
    CLIENT_COMPACT,
    CLIENT_LEASE_GRANT,
    CLIENT_LEASE_REVOKE,
    CLIENT_LEASE_TTL,
    CLIENT_LEASE_LEASES,
    CLIENT_MEMBER_LIST,
    CLIENT_STATUS,
    CLIENT_ALARM,
    CLIENT_AUTHENTICATE,
    CLIENT_TREE_RENAME,      /* Cairn__RenameRequest; cairnd's alone */
    CLIENT_WATCH,            /* the two streams: client_stream_open only */
    CLIENT_LEASE_KEEPALIVE,
    CLIENT_METHODS
};

enum client_outcome {
    CLIENT_OK,       /* answered; `reply` is there */
    CLIENT_REFUSED,  /* the server answered with an error and did nothing; `err`, `code`, `text` */
    CLIENT_NOT_SENT, /* no byte of it left this process */
    CLIENT_UNKNOWN,  /* it may or may not have been carried out */
};

/* One call, embedded in what waits for it (container_of in done). Zero it, set `done`, and it is ready. It
 * must stay where it is until done has run or client_abandon() was called. */
struct client_call {
    void (*done)(struct client_call *call);
    bool reads_only;      /* set by the caller of a CLIENT_TXN that only holds ranges: it may be sent twice */
    bool serializable;    /* set by the caller: the answer says nothing about the quorum */
    /* Set by the caller of a change that can be found out about and sent again: when another leader is elected
     * meanwhile it ends at once as CLIENT_UNKNOWN, for the old one may have taken it along. */
    bool impatient;

    /* Filled before done. reply, text and err are valid until done returns (text: until the call is used
     * again). */
    enum client_outcome outcome;
    /* of the method's response type; freed after done unless client_take_reply() took it */
    ProtobufCMessage *reply;
    enum err err;         /* by etcd's text, ERR_NONE when the text is none that we know */
    enum status code;     /* gRPC's */
    char text[CLIENT_TEXT_BYTES];
    int64_t started_ms, answered_ms; /* client_now_ms(); started_ms 0: never sent */

    struct client_op *op;       /* private; NULL: not under way */
    struct client_op *answered; /* private; only within done */
};

/* A bidirectional stream (Watch, LeaseKeepAlive), embedded in its owner. */
struct client_stream {
    /* One message arrived; msg is freed when it returns. The next one is asked for after that, so a slow
     * owner slows the server down instead of filling memory. */
    void (*message)(struct client_stream *s, ProtobufCMessage *msg);
    /* The stream is over (never called after client_stream_close); `s` may be opened again or freed in it. */
    void (*closed)(struct client_stream *s, enum err err, enum status code, const char *text);

    struct client_op *op; /* private; NULL: not open */
};

struct client_config {
    /* "host:port", "http://host:port", "https://host:port", "unix:path" ("unix:///path") */
    const char *endpoints[CLIENT_ENDPOINTS_MAX];
    unsigned n_endpoints;
    /* TLS, as PEM: who is trusted (NULL: what the system trusts); our certificate and its key (NULL: none). With any of
     * them "host:port" means https:// too, as for etcdctl. */
    const char *ca_pem, *cert_pem, *key_pem;
    int64_t timeout_ms; /* of a call started with timeout_ms 0; 0: CLIENT_CALL_TIMEOUT_MS */
    int64_t grace_ms;   /* how long a change that was refused for want of a leader is offered again */
};

/* Starts gRPC and the polling thread, and begins to connect. No fork after this. The strings are copied.
 * Returns 0, or -EINVAL (an endpoint that cannot be), -EAGAIN, -ENOMEM, -EMFILE. */
int client_open(const struct client_config *cfg, struct client **ret_client);

/* Ends everything. Calls under way are given up without their done being run. Waits for the polling thread.
 */
void client_close(struct client *c);

/* A descriptor to poll for reading; then call client_dispatch(), which runs what is due (done, message,
 * closed). */
int client_fd(const struct client *c);
void client_dispatch(struct client *c);

/* Starts a call. The request is packed before it returns. timeout_ms 0: the default. If no endpoint is
 * connected it waits for one until the deadline. Never runs done itself, not even on failure. */
void client_start(struct client *c, struct client_call *call, enum client_method method,
                  const ProtobufCMessage *req, int64_t timeout_ms);

/* Forget a call: its done will not run. A request already sent is not undone. A call not under way: nothing.
 */
void client_abandon(struct client *c, struct client_call *call);

/* Inside done: the caller keeps the reply and frees it with protobuf_c_message_free_unpacked(reply, NULL). */
ProtobufCMessage *client_take_reply(struct client_call *call);

/* Opens a stream with its first message; `closed` follows if that fails. With no endpoint connected it waits
 * for timeout_ms (0: the default). */
void client_stream_open(struct client *c, struct client_stream *s, enum client_method method,
                        const ProtobufCMessage *first, int64_t timeout_ms);
void client_stream_send(struct client *c, struct client_stream *s, const ProtobufCMessage *msg);
void client_stream_close(struct client *c, struct client_stream *s);

/* ---- health ------------------------------------------------------------------ */

/* CLOCK_BOOTTIME in milliseconds: every deadline of the mount counts in it. */
int64_t client_now_ms(void);

struct client_health {
    bool connected;             /* the current endpoint is */
    /* not connected, or the newest linearizable call that ended did not succeed */
    bool in_doubt;
    int64_t quorum_ms;          /* client_now_ms() when a linearizable answer last arrived; 0: never */
    int64_t lost_ms;            /* when in_doubt began; 0: not in doubt. Grace (A.12) runs from here, once */
    int64_t last_revision;      /* highest header.revision seen */
    uint64_t cluster_id, member_id, raft_term; /* of the newest header */
    const char *endpoint;       /* current; borrowed */
    unsigned n_endpoints;
    uint32_t calls;             /* waiting or under way */
    uint64_t calls_total, failed_total, failovers_total;
};
void client_get_health(const struct client *c, struct client_health *ret_health);
/* In a few words how the i-th endpoint is, and its name; both borrowed. */
const char *client_endpoint_state(const struct client *c, unsigned i, const char **ret_name);

/* True when a quorum was confirmed within the last CLIENT_QUORUM_FRESH_MS (A.5: WRITE checks it) and nothing
 * has spoken against it since. */
bool client_quorum_fresh(const struct client *c);

/* Somebody has waited too long for a linearizable answer: the connection is in doubt until one comes (it is
 * asked for at once). */
void client_suspect(struct client *c);

/* Asks a quorum: the cheapest linearizable Range. `call->done` as always. */
void client_confirm(struct client *c, struct client_call *call, int64_t timeout_ms);

/* ---- errors ------------------------------------------------------------------ */

/* The error of etcd with exactly this text, or ERR_NONE. */
enum err client_err_of_text(const char *text);

enum client_use { CLIENT_USE_READ, CLIENT_USE_WRITE, CLIENT_USE_LEASE };

/* The errno of a call that did not end in CLIENT_OK: the one table of A.12, by etcd's text. Positive. What
 * needs more than the answer (EEXIST of a failed compare, ESTALE after rebasing) is decided by the caller.
 * CLIENT_UNKNOWN of a write is ETIMEDOUT: the caller re-reads first. NOT_SENT of a write is EROFS, of a read
 * ETIMEDOUT. */
int client_errno(const struct client_call *call, enum client_use use);
