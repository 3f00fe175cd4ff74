/* SPDX-License-Identifier: Apache-2.0 */
/* history.h - what clients of a cluster asked and were told, and when.
 *
 * A history is an array of records. Each is a call with its request and answer, in the messages of the API itself, or
 * one notice of a watch. Times are CLOCK_MONOTONIC of one machine: `start_ns` was taken before the call was made,
 * `end_ns` after the answer was there, so what they say about order is true.
 *
 * Owner: a record belongs to the thread that makes it until it is added; history_add may be called by any thread.
 */
#pragma once
#include <pthread.h>
#include <stdio.h>
#include "bytes.h"
#include "rpc.pb-c.h"
#include "tree.pb-c.h"

enum rec_kind {
    REC_PUT,
    REC_DELETE,
    REC_TXN,
    REC_RANGE,
    REC_COMPACT,
    REC_GRANT,
    REC_REVOKE,
    REC_KEEPALIVE,
    REC_LEASES,    /* LeaseLeases */
    REC_HASH,      /* HashKV, after everything has come to rest */
    REC_WATCH,     /* a watch was asked for: req is its WatchCreateRequest */
    REC_NOTICE,    /* resp: a WatchResponse of watch `stream`, arrived at end_ns; start_ns is the same */
    REC_RENAME,    /* cairn.Tree/Rename, which no etcd has */
    REC_KINDS
};

enum outcome {
    DONE,    /* answered; of a REC_WATCH: it was still there when all had come to rest and must have seen everything */
    REFUSED, /* an error that says it was not done */
    UNKNOWN, /* done or not, or yet to be done */
};

enum { CLIENT_WITNESS = 0, CLIENT_FINAL = 1, CLIENT_FIRST = 2 };

struct rec {
    enum rec_kind kind;
    enum outcome outcome;
    uint32_t client, member, stream; /* stream: number of the watch, from 1 */
    uint32_t incarnation;            /* starts of that member's process when the call began; 0: it changed meanwhile */
    int32_t status;                  /* gRPC's */
    bool compacted;                  /* the error was "has been compacted" */
    int64_t start_ns, end_ns;
    ProtobufCMessage *req, *resp;    /* owned; resp NULL: none */
};

struct history {
    pthread_mutex_t mu; /* calls end on many threads, and a record is two words to store */
    struct rec *recs;   /* protected by mu while threads add */
    size_t n, room;
};

void history_init(struct history *h);
void history_fini(struct history *h);
void history_add(struct history *h, const struct rec *r); /* takes req and resp */

const ProtobufCMessageDescriptor *rec_request(enum rec_kind kind);
const ProtobufCMessageDescriptor *rec_response(enum rec_kind kind);
const char *rec_name(enum rec_kind kind);
/* The header of a record's answer; NULL: it has none. */
const Etcdserverpb__ResponseHeader *rec_header(const struct rec *r);
/* A new message, equal to m. */
void *message_copy(const ProtobufCMessage *m);

/* A file of records: each a row of numbers, then the packed messages. 0 or -errno. */
int history_save(const struct history *h, const char *path);
int history_load(struct history *h, const char *path);
/* One record in words, for people. */
void rec_print(FILE *f, const struct rec *r);
