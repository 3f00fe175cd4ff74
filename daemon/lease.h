/* SPDX-License-Identifier: Apache-2.0 */
/* lease.h - leases: ids, granted and remaining TTL, who expires.
 *
 * Replicated state (id, granted TTL, remaining TTL at a checkpoint) is written by apply through its table rows;
 * this table is the cache of it with the leader's clock on top. Only a leader whose quorum is confirmed in the
 * current term proposes expiry; expiry of many leases is one entry, spread over time (LEASE_EXPIRE_MAX an entry).
 *
 * protected by a mutex inside: keep-alives are answered on rpc threads without a hop, apply changes the set.
 * Semantics: reference 02-semantics 2.4.
 */
#pragma once
#include "bytes.h"
#include "seam.h"

struct lease_table;

#define LEASE_TTL_MAX_S INT64_C(9000000000)
#define LEASE_EXPIRE_MAX 500               /* leases in one expiry entry */
#define LEASES_MAX 10000000                /* a Grant beyond: ERR_TOO_MANY_REQUESTS */

struct lease_info {
    int64_t id, granted_ttl_s;
    int64_t checkpoint_s;  /* remaining TTL when it was last checkpointed; 0: never */
    int64_t remaining_ms;  /* by this member's clock; may be negative: past expiry, not yet revoked */
    bool primary;          /* this member leads: its clock is the one that counts */
};

struct lease_table *lease_table_new(struct clock *clock, int64_t min_ttl_s);
void lease_table_free(struct lease_table *t);

/* apply's thread. remaining_s: the checkpointed one, 0: none. */
int lease_grant(struct lease_table *t, int64_t id, int64_t ttl_s, int64_t remaining_s); /* ERR_LEASE_EXISTS, -ENOMEM */
int lease_revoke(struct lease_table *t, int64_t id);                                    /* ERR_LEASE_NOT_FOUND */
int lease_checkpoint(struct lease_table *t, int64_t id, int64_t remaining_s);           /* ERR_LEASE_NOT_FOUND */
bool lease_exists(struct lease_table *t, int64_t id);
size_t lease_count(struct lease_table *t);

/* Any thread. */
int lease_get(struct lease_table *t, int64_t id, struct lease_info *ret_info);          /* ERR_LEASE_NOT_FOUND */
/* A keep-alive: full TTL again. ERR_LEASE_NOT_FOUND; ERR_NOT_PRIMARY_LESSOR; LEASE_PAST: past expiry, not yet revoked:
 * wait for its revocation with lease_wait. LEASE_MARKED: it has its full TTL here, but the log says less: say so to
 * nobody before an entry that takes its checkpoint back (0) is applied, and then ask again (turn_lease_ask does). */
#define LEASE_PAST (-1000000)
#define LEASE_MARKED (-1000001)
int lease_renew(struct lease_table *t, int64_t id, int64_t *ret_ttl_s);
/* Ids sorted by remaining time, in the arena. 0 or ERR_ARENA_FULL. */
int lease_list(struct lease_table *t, struct arena *a, int64_t **ret_ids, size_t *ret_n);
int64_t lease_effective_ttl(const struct lease_table *t, int64_t ttl_s); /* raised to the minimum */

/* Any thread: until the lease is revoked (err 0), or this member no longer leads (ERR_NOT_PRIMARY_LESSOR). */
struct lease_wait {
    struct lease_wait *next; /* the table's */
    int64_t id;
    int err;
    void (*done)(struct lease_wait *w); /* on the thread that revoked or demoted; must not block */
};
/* 0: it is gone already, w is not kept. 1: done will be called, unless lease_wait_cancel takes w back. */
int lease_wait(struct lease_table *t, struct lease_wait *w);
bool lease_wait_cancel(struct lease_table *t, struct lease_wait *w); /* false: done was, or is being, called */

/* The turn or a timer on the leader: up to max ids past expiry. Each is handed out once; again only when it has not
 * been revoked LEASE_RETRY_MS later. */
#define LEASE_RETRY_MS 3000
size_t lease_expired(struct lease_table *t, int64_t *ids, size_t max);
/* Became leader: every lease starts anew with its checkpointed or full TTL and extend_ms, spread when there are many.
 * Lost it: nothing expires. */
void lease_promote(struct lease_table *t, uint32_t extend_ms);
void lease_demote(struct lease_table *t);
/* When to call lease_expired; UINT64_MAX: nothing will expire. */
uint64_t lease_next_deadline_ms(struct lease_table *t);

/* ---- checkpoints: what is left of a lease, in the log, for the next leader ---------------------------
 * A lease whose holder keeps it alive in time has none: the first is due when half its TTL has gone, or at once when an
 * earlier leader has handed it down; then each time a tenth of its TTL is gone, but at least a second. */
struct lease_mark {
    int64_t id, remaining_s;
};
/* The turn on the leader: up to max leases whose checkpoint is due; it proposes them, or calls lease_unmark. all: every
 * one that has lost a tenth (before a handover). ret_next_ms: when to call again. Looks at a part of the table at a
 * time. */
size_t lease_marks(struct lease_table *t, struct lease_mark *marks, size_t max, bool all, uint64_t *ret_next_ms);
void lease_unmark(struct lease_table *t, const struct lease_mark *marks, size_t n);
