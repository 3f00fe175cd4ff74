/* SPDX-License-Identifier: Apache-2.0 */
/* snap_impl.h - what the files of snap_peer.h share. */
#pragma once
#include "limits.h"
#include "snap.h"
#include "snap_peer.h"

/* One sending thread. */
struct sender {
    struct snap *snap;
    unsigned number;
    pthread_t thread;
    struct mailbox box;    /* a struct peer_msg, the SNAPSHOT that is wanted; nudged */
    _Atomic bool busy;     /* from when one is posted until its end is told */
    struct flush_wait flush;
    _Atomic bool flushing; /* flush is apply's; also after a transfer that did not wait for it */
};

/* What became of the SNAPSHOT message that was stepped. */
enum verdict { VERDICT_NONE, VERDICT_REFUSED, VERDICT_TAKEN, VERDICT_INSTALLED };

struct receiving; /* snap_receive.c */

struct snap {
    struct snap_options o;
    struct turn *turn;
    struct peers *peers;
    _Atomic bool stopping;
    bool started;
    struct sender senders[LIMIT_SNAP_SENDS];

    pthread_t receiver;
    struct mailbox box;                 /* struct piece; nudged */
    _Atomic(struct receiving *) current; /* set by the peers' thread, cleared by the receiver: one at a time */
    _Atomic int verdict;

    _Atomic uint64_t sent, send_failures, received, receive_failures, sent_bytes, received_bytes; /* relaxed */
};

/* snap_send.c */
void *snap_sender_main(void *arg);

/* snap_receive.c */
void *snap_receiver_main(void *arg);
void snap_pieces_free(struct snap *s); /* what nobody has taken */
