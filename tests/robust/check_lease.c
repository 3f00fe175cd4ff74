/* SPDX-License-Identifier: Apache-2.0 */
/* check_lease.c - keys go with their lease, all at once, never before its time; and none outlives it.
 *
 * The end of a lease is a commit that deletes all its keys and nothing else. It is a revocation if one was asked for in
 * time, else the lease ran out: then every renewal that succeeded lies at least the TTL before the moment at which the
 * end was first seen. A renewal counts from before it was asked for, the end from after it was seen: the only slack is
 * that servers count whole milliseconds.
 */
#include "check_impl.h"
#include <inttypes.h>

enum { CLOCK_NS = 1000000 };

struct lease {
    int64_t id;
    int64_t end_rev;             /* 0: its keys have not been deleted with it */
    int64_t gone_ns;             /* when it was first known to be gone; INT64_MAX: never */
    bool revoke_asked;
};

static int64_t lease_of(const struct rec *r)
{
    switch (r->kind) {
    case REC_GRANT:
        return ((const Etcdserverpb__LeaseGrantRequest *)r->req)->id;
    case REC_REVOKE:
        return ((const Etcdserverpb__LeaseRevokeRequest *)r->req)->id;
    case REC_KEEPALIVE:
        return ((const Etcdserverpb__LeaseKeepAliveRequest *)r->req)->id;
    default:
        return 0;
    }
}

bool lease_ended_here(struct check *c, int64_t rev)
{
    const struct commit *m = &c->commits[rev];
    int64_t lease = 0;
    size_t attached = 0;

    for (size_t i = 0; i < m->n; i++) {
        const Mvccpb__KeyValue *old = state_at(c, bytes_of(m->events[i]->kv->key), rev - 1);

        if (m->events[i]->type != MVCCPB__EVENT__EVENT_TYPE__DELETE || old == NULL || old->lease == 0 ||
            (lease && old->lease != lease))
            return false;
        lease = old->lease;
    }
    for (size_t k = key_lower(c, S("l/")); k < c->n_keys && slice_has_prefix(c->keys[k].name, S("l/")); k++) {
        const Mvccpb__KeyValue *kv = state_at(c, c->keys[k].name, rev - 1);

        attached += kv && kv->lease == lease;
    }
    if (attached != m->n)
        problem(c, NULL, "lease: revision %" PRId64 " deletes %zu of the %zu keys of lease %" PRIx64, rev, m->n,
                attached, (uint64_t)lease);
    return true;
}

static int by_id(const void *a, const void *b)
{
    int64_t x = ((const struct lease *)a)->id, y = ((const struct lease *)b)->id;

    return (x > y) - (x < y);
}

static struct lease *lease_find(struct lease *leases, size_t n, int64_t id)
{
    struct lease key = {.id = id};

    return bsearch(&key, leases, n, sizeof *leases, by_id);
}

static size_t leases_collect(struct check *c, struct lease *leases)
{
    size_t n = 0, kept = 0;

    for (size_t i = 0; i < c->h->n; i++)
        if (lease_of(&c->h->recs[i]))
            leases[n++] = (struct lease){.id = lease_of(&c->h->recs[i]), .gone_ns = INT64_MAX};
    qsort(leases, n, sizeof *leases, by_id);
    for (size_t i = 0; i < n; i++)
        if (kept == 0 || leases[kept - 1].id != leases[i].id)
            leases[kept++] = leases[i];
    return kept;
}

/* What the order says: a commit without a writer is the end of the lease of its keys. */
static void ends_find(struct check *c, struct lease *leases, size_t n)
{
    for (int64_t rev = 2; rev <= c->last; rev++) {
        const struct commit *m = &c->commits[rev];
        const Mvccpb__KeyValue *old;
        struct lease *l;

        for (size_t i = 0; i < m->n; i++) {
            l = m->events[i]->kv->lease ? lease_find(leases, n, m->events[i]->kv->lease) : NULL;
            if (l && l->end_rev)
                problem(c, m->writer, "lease: %" PRIx64 " ended at revision %" PRId64 ", and a key has it at %" PRId64,
                        (uint64_t)l->id, l->end_rev, rev);
        }
        if (m->writer || m->n == 0)
            continue;
        old = state_at(c, bytes_of(m->events[0]->kv->key), rev - 1);
        l = old ? lease_find(leases, n, old->lease) : NULL;
        if (l && l->end_rev == 0) {
            l->end_rev = rev;
            l->gone_ns = time_seen(&c->seen, rev);
        }
    }
}

static void revokes_find(struct check *c, struct lease *leases, size_t n)
{
    for (size_t i = 0; i < c->h->n; i++) {
        const struct rec *r = &c->h->recs[i];
        struct lease *l;

        if (r->kind != REC_REVOKE)
            continue;
        l = lease_find(leases, n, lease_of(r));
        if (l->end_rev == 0 || r->start_ns < time_seen(&c->seen, l->end_rev))
            l->revoke_asked = true;
        if (r->outcome == DONE && r->end_ns < l->gone_ns)
            l->gone_ns = r->end_ns;
        if (r->outcome == DONE && l->end_rev > rec_header(r)->revision)
            problem(c, r, "lease: revoked, and its keys were deleted later, at revision %" PRId64, l->end_rev);
    }
}

static void check_renewal(struct check *c, const struct rec *r, const struct lease *l)
{
    int64_t ttl = r->kind == REC_GRANT ? ((const Etcdserverpb__LeaseGrantResponse *)r->resp)->ttl
                                       : ((const Etcdserverpb__LeaseKeepAliveResponse *)r->resp)->ttl;

    if (ttl <= 0)
        return;
    c->facts.keepalives += r->kind == REC_KEEPALIVE;
    if (r->start_ns > l->gone_ns)
        problem(c, r, "lease: %" PRIx64 " was renewed after it had been seen gone", (uint64_t)l->id);
    if (l->end_rev && !l->revoke_asked && l->gone_ns < r->start_ns + ttl * 1000000000 - CLOCK_NS)
        problem(c, r, "lease: %" PRIx64 " ended (revision %" PRId64 ") %.3f s after this gave it %" PRId64 " s",
                (uint64_t)l->id, l->end_rev, (double)(l->gone_ns - r->start_ns) / 1e9, ttl);
}

/* When all has come to rest, a lease is known as long as it has keys, and no key has a lease that is not known. */
static void check_lists(struct check *c, const struct rec *r)
{
    const Etcdserverpb__LeaseLeasesResponse *resp = (const void *)r->resp;
    int64_t rev = c->last;

    for (size_t k = key_lower(c, S("l/")); k < c->n_keys && slice_has_prefix(c->keys[k].name, S("l/")); k++) {
        const Mvccpb__KeyValue *kv = state_at(c, c->keys[k].name, rev);
        bool found = kv == NULL || kv->lease == 0;

        for (size_t i = 0; i < resp->n_leases && !found; i++)
            found = resp->leases[i]->id == kv->lease;
        if (!found)
            problem(c, r, "lease: %.*s has lease %" PRIx64 ", which this member does not know", (int)kv->key.len,
                    kv->key.data, (uint64_t)kv->lease);
    }
}

void check_leases(struct check *c)
{
    struct lease *leases = calloc(c->h->n + 1, sizeof *leases);
    size_t n;

    assert(leases);
    n = leases_collect(c, leases);
    ends_find(c, leases, n);
    revokes_find(c, leases, n);
    for (size_t i = 0; i < c->h->n; i++) {
        const struct rec *r = &c->h->recs[i];

        if (r->outcome == DONE && r->resp && (r->kind == REC_GRANT || r->kind == REC_KEEPALIVE))
            check_renewal(c, r, lease_find(leases, n, lease_of(r)));
        if (r->outcome == DONE && r->resp && r->kind == REC_LEASES)
            check_lists(c, r);
    }
    for (size_t i = 0; i < n; i++) {
        c->facts.leases_expired += leases[i].end_rev && !leases[i].revoke_asked;
        c->facts.leases_revoked += leases[i].end_rev && leases[i].revoke_asked;
    }
    free(leases);
}
