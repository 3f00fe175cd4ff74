/* SPDX-License-Identifier: Apache-2.0 */
/* apply_lease.c - grants, revocations and expiries of leases, as entries.
 *
 * A row of the lease table: key id u64be; value granted TTL i64le, remaining TTL at the last checkpoint i64le (0:
 * none), both in seconds. The TTL in an entry is the effective one: the minimum depends on a member's flags, so it is
 * raised before the entry is proposed.
 *
 * The table in memory loses a lease only after the revision that deleted its keys is published: who waits for the
 * revocation must find the keys gone.
 *
 * Owner: the apply thread.
 */
#include <errno.h>
#include "apply_state.h"

enum { LEASE_ROW_BYTES = 16 };

static int lease_row(struct apply *a, int64_t id, int64_t ttl_s, int64_t remaining_s)
{
    uint8_t key[8], value[LEASE_ROW_BYTES];

    put_u64be(key, (uint64_t)id);
    put_u64le(value, (uint64_t)ttl_s);
    put_u64le(value + 8, (uint64_t)remaining_s);
    return row_put(a, TABLE_LEASE, slice_of(key, sizeof key), slice_of(value, sizeof value));
}

static int load_row(void *ctx, struct slice id, struct slice value)
{
    struct apply *a = ctx;

    if (id.len != 8 || value.len != LEASE_ROW_BYTES)
        return -EUCLEAN;
    return lease_grant(a->o.leases, (int64_t)get_u64be(id.ptr), (int64_t)get_u64le(value.ptr),
                       (int64_t)get_u64le(value.ptr + 8));
}

int leases_load(struct apply *a, struct view *v)
{
    int err = view_row_scan(v, TABLE_LEASE, load_row, a);

    return err > 0 ? -EUCLEAN : err; /* the same id twice */
}

int apply_lease_grant(struct apply *a, struct applying *x)
{
    Etcdserverpb__LeaseGrantRequest *req;
    Etcdserverpb__LeaseGrantResponse *resp;
    int err;

    if (a->corrupt || a->nospace)
        return a->corrupt ? ERR_CORRUPT : ERR_NOSPACE;
    err = apply_decode(a, x, &etcdserverpb__lease_grant_request__descriptor, &req);
    if (err)
        return err;
    if (req->id == 0)
        return ERR_LEASE_NOT_FOUND;
    if (req->ttl > LEASE_TTL_MAX_S)
        return ERR_LEASE_TTL_TOO_LARGE;
    err = lease_grant(a->o.leases, req->id, req->ttl, 0);
    if (!err)
        err = lease_row(a, req->id, req->ttl, 0);
    if (err)
        return err;
    resp = answer_new(x, &etcdserverpb__lease_grant_response__descriptor);
    if (resp) {
        resp->id = req->id;
        resp->ttl = req->ttl;
    }
    x->response = resp;
    if (!apply_quota_admits(a, 64)) /* what etcd counts for a lease */
        x->err = ERR_NOSPACE;
    return 0;
}

/* The keys of a lease go in one revision, in order; then its row. */
static int revoke(struct apply *a, struct applying *x, int64_t id)
{
    uint8_t row[8];
    struct slice *keys;
    struct view *v;
    size_t n;
    int err = apply_view(a, &v);

    if (!err)
        err = view_lease_keys(v, id, &a->work, &keys, &n);
    if (err)
        return err > 0 ? -ENOMEM : err;
    txn_run_begin(&a->run, v, store_live(a->o.store), a->rev, &a->work, NULL);
    a->run.hash = a->hash;
    for (size_t i = 0; !err && i < n; i++)
        err = txn_delete_key(&a->run, keys[i]);
    if (err)
        return err;
    apply_ran(a);
    put_u64be(row, (uint64_t)id);
    x->revoked[x->n_revoked++] = id;
    return row_put(a, TABLE_LEASE, slice_of(row, sizeof row), SLICE_NONE);
}

static int revoked_room(struct apply *a, struct applying *x, size_t n)
{
    x->revoked = arena_alloc(&a->work, n * sizeof *x->revoked);
    return x->revoked ? 0 : -ENOMEM;
}

int apply_lease_revoke(struct apply *a, struct applying *x)
{
    Etcdserverpb__LeaseRevokeRequest *req;
    int err;

    if (a->corrupt)
        return ERR_CORRUPT;
    err = apply_decode(a, x, &etcdserverpb__lease_revoke_request__descriptor, &req);
    if (!err && !lease_exists(a->o.leases, req->id))
        err = ERR_LEASE_NOT_FOUND;
    if (!err)
        err = revoked_room(a, x, 1);
    if (!err)
        err = revoke(a, x, req->id);
    if (!err)
        x->response = answer_new(x, &etcdserverpb__lease_revoke_response__descriptor);
    return err;
}

static bool revoked_already(const struct applying *x, int64_t id)
{
    for (size_t i = 0; i < x->n_revoked; i++)
        if (x->revoked[i] == id)
            return true;
    return false;
}

/* Each lease's keys go in a revision of their own, as if it had been revoked alone. An id that is gone (revoked
 * meanwhile) is passed over. */
int apply_lease_expire(struct apply *a, struct applying *x)
{
    size_t n = x->head.body.len / 8;
    int err = a->corrupt ? ERR_CORRUPT : revoked_room(a, x, n + 1);

    if (!err && (x->head.body.len % 8 || n > LEASE_EXPIRE_MAX))
        err = -EBADMSG;
    for (size_t i = 0; !err && i < n; i++) {
        int64_t id = (int64_t)get_u64le(x->head.body.ptr + 8 * i);

        if (lease_exists(a->o.leases, id) && !revoked_already(x, id))
            err = revoke(a, x, id);
    }
    return err;
}

int apply_lease_checkpoint(struct apply *a, struct applying *x)
{
    Etcdserverpb__LeaseCheckpointRequest *req;
    int err = apply_decode(a, x, &etcdserverpb__lease_checkpoint_request__descriptor, &req);

    for (size_t i = 0; !err && i < req->n_checkpoints; i++) {
        const Etcdserverpb__LeaseCheckpoint *c = req->checkpoints[i];
        struct lease_info info;

        if (lease_get(a->o.leases, c->id, &info) != 0)
            continue;
        (void)lease_checkpoint(a->o.leases, c->id, c->remaining_ttl); /* it is there: only apply removes */
        err = lease_row(a, c->id, info.granted_ttl_s, c->remaining_ttl);
    }
    return err;
}
