/* SPDX-License-Identifier: Apache-2.0 */
/* entry.h - what a log entry carries, and the cache from which WAL, peers and apply read it.
 *
 * An entry's payload as it stands in the WAL and on the wire:
 *
 *      0  u8     format version, 1
 *      1  u8     kind (enum entry_kind)
 *      2  u16le  bytes of the user name
 *      4  u32le  0
 *      8  u64le  origin: the member that proposed it
 *     16  u64le  request id, unique to that member and boot
 *     24  u64le  auth revision under which the request was checked
 *     32  u64le  proposal term: does nothing when it differs from the entry's term; 0 any
 *     40  ...    user name, then the body: the request's protobuf bytes
 *
 * An empty payload is the entry a new leader makes. Copied once, from the request into the cache;
 * everything later names an entry by its index.
 */
#pragma once
#include "bytes.h"

#define ENTRY_HEAD_BYTES 40
#define ENTRY_VERSION 1

/* Values are on disk: never renumber. The comment names the body. A member that does not know a kind stops at such an
 * entry, rather than to go on with another state: it needs this version first. */
enum entry_kind {
    ENTRY_NOOP = 0,
    ENTRY_PUT = 1,            /* etcdserverpb.PutRequest */
    ENTRY_DELETE_RANGE = 2,   /* DeleteRangeRequest */
    ENTRY_TXN = 3,            /* TxnRequest */
    ENTRY_COMPACT = 4,        /* CompactionRequest */
    ENTRY_LEASE_GRANT = 5,    /* LeaseGrantRequest, ID never 0 */
    ENTRY_LEASE_REVOKE = 6,   /* LeaseRevokeRequest */
    ENTRY_LEASE_EXPIRE = 7,   /* n x u64le lease ids; only by a leader (proposal term) */
    ENTRY_LEASE_CHECKPOINT = 8, /* LeaseCheckpointRequest; only by a leader */
    ENTRY_ALARM = 9,          /* AlarmRequest */
    ENTRY_MEMBER_ATTR = 10,   /* etcdserverpb.Member: ID, name, clientURLs of a member that started */
    ENTRY_CONF = 11,          /* a raft configuration change; drawn in turn.h */
    ENTRY_MEMBER_PEERS = 12,  /* etcdserverpb.Member: ID, peerURLs of a member that has moved */
    ENTRY_RENAME = 13,        /* cairn.RenameRequest */
    ENTRY_KINDS
};

struct entry_head {
    enum entry_kind kind;
    uint64_t origin, request_id, auth_revision, proposal_term;
    struct slice user;
    struct slice body;
};

/* Bytes entry_encode needs. */
size_t entry_size(const struct entry_head *h);
/* dst has entry_size(h) bytes. */
void entry_encode(const struct entry_head *h, uint8_t *dst);
/* Slices point into payload. 0, or -EBADMSG: not an entry of a version we know. */
int entry_decode(struct slice payload, struct entry_head *ret_head);

/* Of a payload that is not empty; what it says is checked by entry_decode. */
enum entry_kind entry_payload_kind(const uint8_t *payload);

/* ---- one entry's bytes, counted -------------------------------------------- */

/* Immutable once index and term are set by the turn. */
struct entry {
    _Atomic uint32_t refs;
    uint32_t len;
    uint64_t index, term; /* 0 until the turn has appended it */
    uint8_t payload[];
};

struct entry *entry_new(size_t payload_len); /* one reference; NULL: no memory */
struct entry *entry_ref(struct entry *e);
void entry_unref(struct entry *e); /* takes NULL */

/* ---- the cache --------------------------------------------------------------
 * Written by the turn; read by the WAL thread, apply and peers. protected by a mutex inside:
 * a mailbox would not do, readers need an answer at once. Keeps the newest entries up to
 * LIMIT_ENTRY_CACHE_BYTES, and never drops one above `keep_from` (not yet stored or applied). */
struct entry_cache;
struct entry_cache *entry_cache_new(size_t limit_bytes);
void entry_cache_free(struct entry_cache *c);
/* index follows the last one, or is <= it: then everything from index on is dropped first, and is not done any more.
 * Takes its own reference. */
void entry_cache_put(struct entry_cache *c, struct entry *e);
/* A new reference, or NULL: not cached (read the WAL). */
struct entry *entry_cache_get(struct entry_cache *c, uint64_t index);
/* Entries below index may be dropped to hold the limit. */
void entry_cache_done(struct entry_cache *c, uint64_t index);
/* Entries below index go at once, but for what is not yet done: nobody will ask for them. */
void entry_cache_forget(struct entry_cache *c, uint64_t index);
