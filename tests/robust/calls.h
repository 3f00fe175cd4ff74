/* SPDX-License-Identifier: Apache-2.0 */
/* calls.h - calls to one member, one at a time, from the thread that makes them; a connection each. */
#pragma once
#include <grpc/grpc.h>
#include "history.h"

struct caller {
    grpc_completion_queue *cq;
    grpc_channel *channel;
};

void calls_init(void); /* once, before the first caller */
void caller_open(struct caller *c, const char *address);
void caller_close(struct caller *c);

enum { CALL_TEXT = 160 };

/* One call. Returns gRPC's status; ret_resp is NULL unless it is 0. ret_text: the error's words; may be NULL. */
int caller_ask(struct caller *c, const char *path, const ProtobufCMessage *req, const ProtobufCMessageDescriptor *d,
               int timeout_ms, ProtobufCMessage **ret_resp, char *ret_text);
const char *rec_path(enum rec_kind kind);

/* A stream of watches. */
struct stream {
    struct caller *caller;
    grpc_call *call;
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *got;
    grpc_status_code status;
    grpc_slice details;
    bool receiving;
    char recv_tag, send_tag, end_tag;
};

bool stream_open(struct stream *s, struct caller *c, const char *path); /* false: no connection */
bool stream_send(struct stream *s, const ProtobufCMessage *m);          /* false: it is broken */
/* 1 a message, 0 none in time, -1 the stream has ended. */
int stream_receive(struct stream *s, const ProtobufCMessageDescriptor *d, int timeout_ms, ProtobufCMessage **ret_m);
void stream_close(struct stream *s);

int64_t now_ns(void);
/* Nanoseconds that this process was given: a clock that stands still while the machine does not let it run. For limits
 * on how long others may take, which are no more lucky than we are. */
int64_t fair_ns(void);
void pause_ms(int64_t ms); /* for what lasts by itself: a fault, a client's rest. Not for awaiting. */
