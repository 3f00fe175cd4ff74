/* SPDX-License-Identifier: Apache-2.0 */
/* member_impl.h - what the files of a running member share.
 *
 * member.c        every module made, started and stopped in order
 * member_ready.c  waiting: to be published, for a signal, for having been removed
 * member_peers.c  the other members
 * member_note.c   DIR/PEERS, where they are noted
 *
 * Owner: the main thread, but for what stands under "shared".
 */
#pragma once
#include <stdatomic.h>
#include "bootstrap.h"
#include "compactor.h"
#include "front.h"
#include "member.h"
#include "metrics.h"
#include "peers.h"
#include "snap_peer.h"
#include "svc.h"

enum { SUSPECT_MS = 10 * 60 * 1000 }; /* a store that was read whole, and then was in use for so long, is not suspect
                                       * any more */
enum { MEET_MS = 5000 };                 /* so often it looks whether the leader is one that it knows */
enum { SCAN_THREADS = 1, RPC_THREADS = 1, HANDOVER_MS = 500, TABLE_BYTES = 64 << 20 };

struct member_process;

/* The proposal by which this member tells its name. */
struct publishing {
    struct proposal p;
    struct member_process *member;
    size_t bytes;
};
enum publish_state { PUBLISH_IDLE, PUBLISH_WAITS, PUBLISH_DONE, PUBLISH_FAILED };

struct member_process {
    struct config *config;
    struct bootstrap boot;
    struct metrics_histograms histograms;
    struct entry_cache *cache;
    struct compactor *compactor;
    struct front *front;
    struct slot *slots[RPC_THREADS];
    struct svc svc; /* holds the other modules */
    struct metrics metrics;
    struct peers *peers;
    struct snap *snap;
    struct tls_ctx *client_tls, *peer_tls; /* NULL: none */
    struct publishing publishing;
    struct transfer_wait handover;
    int signal_fd, event_fd;
    int signal; /* that ended it */
    bool published;     /* its state is as new as what it was told before it started */
    bool note_due;      /* the members are to be noted, */
    uint64_t note_ms;   /* not before this */

    /* ---- shared ---- */
    _Atomic int publish_state; /* enum publish_state */
    _Atomic bool removed;      /* from the cluster */
    _Atomic bool members_changed; /* since they were noted */
    _Atomic bool handover_done;
    _Atomic bool suspected;    /* DIR/SUSPECT was there at the start, and still is */
};

/* member_ready.c */
/* Any thread: the main thread looks again at what is shared. */
void member_notify(struct member_process *m);
/* Waits for something to happen, at most so long. */
enum member_event member_wait(struct member_process *m, uint64_t timeout_ms);
/* Returns MEMBER_NOTHING once the member is published, however long that takes: the others may come later. */
enum member_event member_publish(struct member_process *m);
void member_publish_end(struct member_process *m); /* after the turn has stopped */
/* Waits only for member_notify, at most so long. */
void member_wait_note(struct member_process *m, uint64_t timeout_ms);
/* Removed: says so, and gives the others a moment to hear our last replies. */
enum member_event member_leave(struct member_process *m);

/* member_note.c: what member_wait does besides: notes the members when that is due. UINT64_MAX, or in how many ms it
 * wants to be called again. */
uint64_t member_note_peers(struct member_process *m);

/* member.c: a promise that can no longer be kept; does not return. */
void member_fatal(void *ctx, int err, const char *what);

/* member_again.c: any thread. This member's state cannot be trusted. When there are others it is marked and starts
 * itself anew, to be rebuilt from them; returns when it is alone: what is sound of it is all there is. */
void member_damaged(void *m, const char *what);
void member_start_anew(void); /* another image of this process, with the same arguments; returns when it fails;
                               * async-signal-safe */

/* member_suspect.c. bootstrap.guard: from now on a crash inside LMDB is written down. */
void member_guard_store(void *m);
void member_unguard_store(void); /* before the data directory is closed; also when nothing was guarded */
void member_trust_store(struct member_process *m); /* it has run well since it was suspected */

/* member_tls.c */
int member_tls_new(struct member_process *m); /* logs why not */
void member_tls_free(struct member_process *m);

/* member_peers.c */
/* struct bootstrap.ask. */
const char *member_ask(void *ctx, struct arena *a, const struct roster *r, struct bootstrap_cluster *ret_cluster);
bool member_wait_others(void *m); /* struct bootstrap.wait */
int member_snap_new(struct member_process *m);  /* before the peers and the turn */
int member_peers_new(struct member_process *m); /* logs why not */
int member_peers_start(struct member_process *m);
void member_meet_leader(struct member_process *m); /* one that the state does not have: asks where it is */
bool member_is_alone(struct member_process *m);    /* by its state */
void member_members_changed(void *m);           /* apply's thread */
void member_removed(void *m);                   /* any thread */
void member_hand_over(struct member_process *m);
