/* SPDX-License-Identifier: Apache-2.0 */
/* handle_txn_private.h - what handle_txn.c and handle_doubt.c share. Owner: the core thread. */
#pragma once
#include "handle_txn.h"
#include "ops.h"
#include "rpc.pb-c.h"

#define TXN_ARENA_BYTES (4u << 20) /* keys and messages of one transaction; values are elsewhere */

struct put {
    struct slice key;
    struct value *value;
    bool fresh; /* not read back: it did not exist before */
    int64_t lease;
    struct key_meta meta; /* mod_rev 0: not told */
};

/* What is looked at to find out what became of a transaction. */
enum doubt_look {
    LOOK_NOW,    /* the pinned key as it is */
    LOOK_BEFORE, /* before others changed it */
    LOOK_BIRTH,  /* as it was made */
    LOOK_WENT,   /* of a move: was the old name still there at this revision? */
    LOOK_TARGET, /* ... and what did the new one hold when it was not any more? */
};

struct txn {
    struct fs *fs;
    struct txn *next, **prev; /* of all that run */
    txn_done_fn *done;
    void *arg;
    struct arena arena;
    Etcdserverpb__TxnRequest req;
    Etcdserverpb__Compare *compares[TXN_OPS_MAX + 2];
    Etcdserverpb__RequestOp *success[2 * TXN_OPS_MAX + 2], *failure[TXN_OPS_MAX];
    struct put puts[TXN_OPS_MAX];
    struct slice deletes[TXN_OPS_MAX];
    unsigned n_puts, n_deletes;
    struct value *current[4];
    unsigned n_current;
    int64_t rev, now_rev;
    int64_t new_ttl, new_lease; /* 0: no lease of its own; not granted yet */
    int64_t lease_asked;        /* its number */
    unsigned grants;            /* how often it was asked for */
    enum keep_mode keep;
    bool no_memory, told_feed, teaches_nothing, exclusive;
    int64_t deadline_ms;
    struct gate gate;
    struct client_call call;
    struct timer timer;
    char text[CLIENT_TEXT_BYTES];
    /* Should its outcome be unknown (handle_doubt.c): */
    int64_t before_rev;   /* the newest revision known when it was sent first: what it does is newer */
    struct slice pin_key; /* ptr NULL: no pin */
    int64_t pin_rev;      /* 0: it is to be absent */
    bool sent_again;      /* a refusal may be due to the first one */
    int verdict;          /* of the one sent again: -1 or an errno, unless the first one happened */
    enum doubt_look look;
    int64_t look_rev;             /* 0: the newest */
    int64_t there_rev, went_rev; /* of a move: the old name was there, was not any more */
};

static inline ProtobufCBinaryData pb_of(struct slice s)
{
    return (ProtobufCBinaryData){s.len, (uint8_t *)s.ptr};
}

static inline struct key_meta meta_of(const Mvccpb__KeyValue *kv)
{
    return (struct key_meta){.create_rev = kv->create_revision,
                             .mod_rev = kv->mod_revision,
                             .version = kv->version,
                             .lease = kv->lease,
                             .size = kv->value.len};
}

/* handle_txn.c: sends it, once more too; ends it. */
void txn_post(struct txn *t);
void txn_finish(struct txn *t, int err);

/* handle_doubt.c */
void doubt_find_pin(struct txn *t);
/* Nobody knows what became of it: finds out, and ends it or sends it again. */
void doubt_settle(struct txn *t);
/* One that was sent again was not carried out: err as for done. That holds unless it is due to the first one. */
void doubt_refused(struct txn *t, int err);
/* One that was sent again did not leave. */
void doubt_wait(struct txn *t);
