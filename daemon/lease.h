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
#define LEASES_MAX 10000000                /* ERR_TOO_MANY_REQUESTS beyond */

struct lease_info {
    int64_t id, granted_ttl_s;
    int64_t remaining_ms; /* by this member's clock; may be negative: past expiry, not yet revoked */
};

struct lease_table *lease_table_new(struct clock *clock, int64_t min_ttl_s);
void lease_table_free(struct lease_table *t);

/* apply's thread. */
int lease_grant(struct lease_table *t, int64_t id, int64_t ttl_s, int64_t remaining_s); /* ERR_LEASE_EXISTS */
int lease_revoke(struct lease_table *t, int64_t id);                                    /* ERR_LEASE_NOT_FOUND */
bool lease_exists(struct lease_table *t, int64_t id);
size_t lease_count(struct lease_table *t);

/* Any thread. */
int lease_get(struct lease_table *t, int64_t id, struct lease_info *ret_info);          /* ERR_LEASE_NOT_FOUND */
/* A keep-alive: full TTL again. ERR_LEASE_NOT_FOUND; 1: past expiry, not yet revoked: wait for its revocation. */
int lease_renew(struct lease_table *t, int64_t id, int64_t *ret_ttl_s);
/* Ids sorted by remaining time, in the arena. */
int lease_list(struct lease_table *t, struct arena *a, int64_t **ret_ids, size_t *ret_n);
int64_t lease_effective_ttl(const struct lease_table *t, int64_t ttl_s); /* raised to the minimum */

/* The turn or a timer on the leader: up to max ids past expiry, each handed out once until it is revoked or
 * lease_retry() is called. */
size_t lease_expired(struct lease_table *t, int64_t *ids, size_t max);
/* Became leader: every lease starts anew with its remaining TTL, spread when there are many. Lost it: nothing expires. */
void lease_promote(struct lease_table *t, uint32_t extend_ms);
void lease_demote(struct lease_table *t);
uint64_t lease_next_deadline_ms(struct lease_table *t); /* UINT64_MAX: nothing will expire */
