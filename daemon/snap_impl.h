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

/* A comparison of states; snap_check.c. */
struct hash_round {
    uint64_t index, hash, began_ms; /* index 0: none under way */
    size_t n;
    struct {
        uint64_t id, hash;
        bool known;
    } members[RAFT_MEMBERS_MAX]; /* this one too */
};

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

    /* snap_check.c: the receiving thread's own, but for the box and the flag */
    struct mailbox hash_box;            /* what members say */
    _Atomic bool members_changed;
    _Atomic size_t n_members;
    struct hash_round round;
    uint64_t round_ms;                  /* when to begin the next one */
    uint64_t equal_index;               /* all were equal there */
    struct {
        uint64_t member, index, hash, until_ms; /* what the leader asks, before it is applied here; member 0: nothing */
    } asked;
    struct {
        uint64_t index, hash;
    } said;                             /* to a leader that asked, last */
    bool differs;                       /* this member from the leader; logged once */
    bool is_wrong;                      /* most members have another state than this one */

    _Atomic uint64_t sent, send_failures, received, receive_failures, sent_bytes, received_bytes; /* relaxed */
};

/* snap_send.c */
void *snap_sender_main(void *arg);

/* snap_check.c */
uint64_t snap_check(struct snap *s); /* the receiving thread; when to come again */
void snap_check_fini(struct snap *s);

/* snap_receive.c */
void *snap_receiver_main(void *arg);
void snap_pieces_free(struct snap *s); /* what nobody has taken */
