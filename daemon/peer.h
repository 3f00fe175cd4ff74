/* SPDX-License-Identifier: Apache-2.0 */
/* peer.h - what members say to each other, and the seam through which they say it.
 *
 *     turn --send()--> transport ==> the other's transport --turn_receive()--> its turn
 *
 * The transport may lose, delay, duplicate and reorder; it never invents: a message that arrives was sent by that
 * member of this cluster. The real one is peers.c (gRPC streams on the peer port), a simulator brings its own.
 *
 * Entries travel by their bytes but are named by index until the last moment: the turn sends an APPEND without them,
 * and the transport attaches them (peer_msg_fill) when the message is about to leave, from the entry cache or the log.
 *
 * Owner: a peer_msg belongs to whoever it was handed to, last.
 */
#pragma once
#include "entry.h"
#include "mailbox.h"
#include "raft.h"
#include "wal.h"

/* Numbers are on the wire: never renumber. The comment names the fields that count besides from and to. */
enum peer_kind {
    PEER_RAFT = 1,              /* raft; APPEND: entries */
    PEER_PROPOSE = 2,           /* entries: payloads that the sender wants this leader to propose; index: the term in
                                 * which it leads, and in no other they are taken; hash: the sender's boot, id: its
                                 * number of this message: a leader takes none twice */
    PEER_REFUSED = 3,           /* id: of the PROPOSE; ids: its request ids that were not appended, and will not be;
                                 * err: 0, try again, or the ERR_x to answer them with */
    PEER_LEASE_RENEW = 4,       /* id: the asker's; lease: renew it, or (ttl -1) only tell what is left */
    PEER_LEASE_RENEWED = 5,     /* id echoed, lease; err (0, ERR_x or LEASE_PAST), ttl: granted s, left: remaining ms */
    PEER_STATE_HASH = 6,        /* index, hash: the leader's state after that entry is applied; what is yours? */
    PEER_STATE_ANSWER = 7,      /* index echoed, hash: what from has there */
    PEER_STATE_WRONG = 8,       /* index, hash: what more than half of the members have there, and to has another */
    PEER_KINDS
};

struct peer_msg {
    struct mail mail;
    enum peer_kind kind;
    uint64_t from, to;
    struct raft_msg raft;
    struct raft_conf conf;      /* of a SNAPSHOT: raft.conf points here */
    bool is_here;               /* of a SNAPSHOT: what it names is on this member's disk. Never on the wire */
    uint64_t id, index, hash;
    int64_t lease, ttl, left;
    int err;
    uint32_t n_ids;
    uint64_t *ids;              /* heap, the message's */
    uint32_t n_entries;
    struct entry **entries;     /* heap array, the message's, with a reference each */
    struct peer_msg *rest;      /* what peer_msg_fill cut off: an APPEND to be filled and sent next; the message's */
};

struct peer_msg *peer_msg_new(enum peer_kind kind, uint64_t from, uint64_t to); /* zeroed; NULL: no memory */
void peer_msg_free(struct peer_msg *m);                                         /* takes NULL; frees rest too */
/* A message for what raft_step has put out: copies m, and its configuration. NULL: no memory. */
struct peer_msg *peer_msg_of(const struct raft_msg *m);

/* Attaches the entries of an APPEND, (raft.index, raft.last], of the terms its runs say, at most max_bytes of them but
 * at least one: what does not fit is cut off the message (last and runs say so) and is m->rest then, which should be
 * sent behind it (without memory for it there is none: the core probes).
 * 0; -EAGAIN: some are only in the log, and wal is NULL (with a log it is read, which may wait for the disk: not on a
 * thread that heartbeats need); -ENOENT: they are gone, or replaced by others: drop the message. -EUCLEAN: one is
 * damaged. -ENOMEM. */
int peer_msg_fill(struct peer_msg *m, struct entry_cache *cache, struct wal *wal, size_t max_bytes);

/* ---- the wire ---------------------------------------------------------------------------------
 * One message of a stream is one peer_msg; the bytes are drawn at the top of peer.c. */
size_t peer_msg_size(const struct peer_msg *m);
void peer_msg_encode(const struct peer_msg *m, uint8_t *dst); /* dst has peer_msg_size(m) bytes */
/* From the network: 0; -EBADMSG or -ENOMEM with nothing kept. Copies what it needs: an entry's bytes once, into the
 * entry that the log will hold. */
int peer_msg_decode(struct slice bytes, struct peer_msg **ret_msg);

/* ---- the seam ----------------------------------------------------------------------------------- */

struct transport {
    /* The turn thread (whoever holds its token). Never waits; m is the transport's from here. What it drops for want of
     * room or of a connection it tells by turn_unreachable, once per loss and member is enough. */
    void (*send)(struct transport *t, struct peer_msg *m);
};
