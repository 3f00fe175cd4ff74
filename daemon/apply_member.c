/* SPDX-License-Identifier: Apache-2.0 */
/* apply_member.c - who belongs to the cluster: configuration entries, and what members tell of themselves.
 *
 * A row of TABLE_MEMBER (member_row.h) for each member that there is, and for each that was removed. A configuration
 * entry holds the change of the raft configuration and, for a new member, its row: both are applied or neither. What is
 * checked before an entry is proposed (svc_cluster.c) is checked here again, because other entries may have come
 * between: every member of the cluster decides alike.
 *
 * Source: etcd v3.7.1 server/etcdserver/api/membership/cluster.go (ValidateConfigurationChange).
 * Owner: the apply thread writes, under a->mu; other threads copy under it.
 */
#include <errno.h>
#include "apply_state.h"
#include "member_row.h"
#include "pb.h"
#include "turn.h"

static void member_free(Etcdserverpb__Member *m)
{
    if (m)
        etcdserverpb__member__free_unpacked(m, NULL);
}

static size_t member_find(const struct apply *a, uint64_t id, bool *ret_found)
{
    size_t i = 0;

    while (i < a->n_members && a->members[i]->id < id)
        i++;
    *ret_found = i < a->n_members && a->members[i]->id == id;
    return i;
}

static bool was_removed(const struct apply *a, uint64_t id)
{
    for (size_t i = 0; i < a->n_removed; i++)
        if (a->removed[i] == id)
            return true;
    return false;
}

/* ---- keeping rows ------------------------------------------------------------------------------ */

/* Takes m. */
static int member_keep(struct apply *a, Etcdserverpb__Member *m)
{
    bool found;
    size_t at = member_find(a, m->id, &found);

    if (!found && a->n_members == MEMBERS_MAX) {
        member_free(m);
        return -ENOSPC;
    }
    pthread_mutex_lock(&a->mu);
    if (found) {
        member_free(a->members[at]);
    } else {
        memmove(&a->members[at + 1], &a->members[at], (a->n_members - at) * sizeof *a->members);
        a->n_members++;
    }
    a->members[at] = m;
    pthread_mutex_unlock(&a->mu);
    return 0;
}

static void member_drop(struct apply *a, uint64_t id)
{
    bool found;
    size_t at = member_find(a, id, &found);

    if (!found)
        return;
    pthread_mutex_lock(&a->mu);
    member_free(a->members[at]);
    a->n_members--;
    memmove(&a->members[at], &a->members[at + 1], (a->n_members - at) * sizeof *a->members);
    pthread_mutex_unlock(&a->mu);
}

static int removed_keep(struct apply *a, uint64_t id)
{
    uint64_t *grown;

    if (was_removed(a, id))
        return 0;
    pthread_mutex_lock(&a->mu);
    grown = realloc(a->removed, (a->n_removed + 1) * sizeof *grown);
    if (grown) {
        a->removed = grown;
        a->removed[a->n_removed++] = id;
    }
    pthread_mutex_unlock(&a->mu);
    return grown ? 0 : -ENOMEM;
}

/* The row and what is kept of it. */
static int member_write(struct apply *a, const Etcdserverpb__Member *m)
{
    size_t n = etcdserverpb__member__get_packed_size(m);
    uint8_t key[8], *packed = arena_alloc(&a->work, n + 1);
    Etcdserverpb__Member *kept;
    int err;

    if (packed == NULL)
        return -ENOMEM;
    (void)etcdserverpb__member__pack(m, packed);
    kept = etcdserverpb__member__unpack(NULL, n, packed);
    if (kept == NULL)
        return -ENOMEM;
    err = member_keep(a, kept);
    return err ? err : row_put(a, TABLE_MEMBER, member_row_key(m->id, key), slice_of(packed, n));
}

static int member_erase(struct apply *a, uint64_t id)
{
    uint8_t key[8];
    int err = removed_keep(a, id);

    member_drop(a, id);
    return err ? err : row_put(a, TABLE_MEMBER, member_row_key(id, key), member_row_gone());
}

static void tell(struct apply *a)
{
    if (a->on_members)
        a->on_members(a->on_members_ctx);
}

/* ---- what a member tells of itself ---------------------------------------------------------------- */

static bool in_conf(const struct apply *a, uint64_t id)
{
    struct raft_conf c;

    return raftconf_decode(a->conf, &c) == 0 && (raft_set_has(&c.voters, id) || raft_set_has(&c.learners, id) ||
                                                 raft_set_has(&c.outgoing, id));
}

/* Its name and client URLs, when it has started. Peer URLs only when it tells some: they come with the configuration.
 * One that was removed meanwhile is not asked any more. */
int apply_member_attr(struct apply *a, struct applying *x)
{
    Etcdserverpb__Member *req, merged;
    bool found;
    size_t at;
    int err = apply_decode(a, x, &etcdserverpb__member__descriptor, &req);

    if (err)
        return err;
    at = member_find(a, req->id, &found);
    if (was_removed(a, req->id) || (!found && !in_conf(a, req->id)))
        return ERR_MEMBER_NOT_FOUND;
    merged = *req;
    if (found && req->n_peerurls == 0) {
        merged.peerurls = a->members[at]->peerurls;
        merged.n_peerurls = a->members[at]->n_peerurls;
    }
    if (found)
        merged.islearner = a->members[at]->islearner;
    err = member_write(a, &merged);
    if (!err)
        tell(a);
    return err;
}

/* ---- changes ------------------------------------------------------------------------------------------ */

/* One of these URLs is another member's. */
static bool urls_taken(const struct apply *a, const Etcdserverpb__Member *m)
{
    for (size_t i = 0; i < a->n_members; i++)
        for (size_t k = 0; k < a->members[i]->n_peerurls && a->members[i]->id != m->id; k++)
            for (size_t n = 0; n < m->n_peerurls; n++)
                if (strcmp(a->members[i]->peerurls[k], m->peerurls[n]) == 0)
                    return true;
    return false;
}

/* MemberUpdate. */
int apply_member_peers(struct apply *a, struct applying *x)
{
    Etcdserverpb__Member *req, merged;
    bool found;
    size_t at;
    int err = apply_decode(a, x, &etcdserverpb__member__descriptor, &req);

    if (err)
        return err;
    at = member_find(a, req->id, &found);
    if (!found)
        return ERR_MEMBER_NOT_FOUND;
    if (urls_taken(a, req))
        return ERR_PEER_URL_EXISTS;
    merged = *a->members[at];
    merged.peerurls = req->peerurls;
    merged.n_peerurls = req->n_peerurls;
    err = member_write(a, &merged);
    if (!err)
        tell(a);
    return err;
}

/* row NULL: a learner is promoted, or somebody removed. */
static int change_check(const struct apply *a, enum raft_change_op op, uint64_t id, const Etcdserverpb__Member *row)
{
    bool found;
    size_t at = member_find(a, id, &found);

    if (was_removed(a, id))
        return ERR_MEMBER_NOT_FOUND;
    if (op == RAFT_REMOVE)
        return found || in_conf(a, id) ? 0 : ERR_MEMBER_NOT_FOUND;
    if (row == NULL && !found)
        return ERR_MEMBER_NOT_FOUND;
    if (row == NULL)
        return op == RAFT_ADD_VOTER && a->members[at]->islearner ? 0 : ERR_MEMBER_NOT_LEARNER;
    if (found)
        return ERR_MEMBER_EXISTS;
    if (urls_taken(a, row))
        return ERR_PEER_URL_EXISTS;
    return a->n_members + a->n_removed < MEMBER_IDS_MAX ? 0 : ERR_CONF_IMPOSSIBLE;
}

static int change_make(struct apply *a, enum raft_change_op op, uint64_t id, const Etcdserverpb__Member *row)
{
    Etcdserverpb__Member m;
    bool found;
    size_t at = member_find(a, id, &found);

    if (op == RAFT_REMOVE)
        return member_erase(a, id);
    m = row ? *row : *a->members[at];
    m.id = id;
    m.islearner = op == RAFT_ADD_LEARNER;
    return member_write(a, &m);
}

static int rest_decode(struct apply *a, struct slice rest, Etcdserverpb__Member **ret_row)
{
    ProtobufCMessage *m = NULL;
    int err = rest.len ? pb_unpack(&etcdserverpb__member__descriptor, &a->work, rest, &m) : 0;

    *ret_row = (Etcdserverpb__Member *)m;
    return err == ERR_ARENA_FULL ? -ENOMEM : err ? -EBADMSG : 0;
}

/* A change of the raft configuration: kept for the seal, told to the core. One that is refused is told to it as one
 * that changes nothing: outside a joint configuration, which no other change can be made from, leaving it is that. */
int apply_conf(struct apply *a, struct applying *x)
{
    static const struct raft_conf_change nothing;
    struct raft_conf_change change;
    struct raft_conf old, new;
    struct slice rest;
    Etcdserverpb__Member *row = NULL;
    int err = turn_conf_decode(x->head.body, &change, &rest), refused = 0, told;

    if (!err)
        err = rest_decode(a, rest, &row);
    if (!err)
        err = raftconf_decode(a->conf, &old);
    if (err)
        return err;
    if (raft_conf_apply(&old, &change, &new) != 0) {
        refused = ERR_CONF_IMPOSSIBLE;
    } else {
        for (uint32_t i = 0; i < change.n && !refused; i++)
            refused = change_check(a, change.changes[i].op, change.changes[i].id, row);
        if (refused)
            change = nothing;
    }
    for (uint32_t i = 0; i < change.n && !refused && !err; i++)
        err = change_make(a, change.changes[i].op, change.changes[i].id, row);
    if (err)
        return err;
    if (!refused) {
        a->conf = raftconf_encode(&new, a->conf_bytes);
        a->hash = state_hash_bytes(a->hash, 0x300, a->conf);
        tell(a);
    }
    told = a->turn ? turn_conf_applied(a->turn, x->entry->index, &change) : 0;
    return told ? told : refused;
}

/* ---- asked by others ------------------------------------------------------------------------------------ */

static struct slice *copy_strings(struct arena *ar, char **from, size_t n)
{
    struct slice *to = arena_alloc(ar, (n + 1) * sizeof *to);

    for (size_t i = 0; to && i < n; i++)
        to[i] = arena_copy(ar, slice_str(from[i]));
    return to;
}

size_t apply_members(struct apply *a, struct arena *ar, struct member **ret_members)
{
    struct member *out;
    size_t n = 0;

    pthread_mutex_lock(&a->mu);
    out = arena_alloc(ar, (a->n_members + 1) * sizeof *out);
    for (; out && n < a->n_members; n++) {
        const Etcdserverpb__Member *m = a->members[n];

        out[n].id = m->id;
        out[n].name = arena_copy(ar, slice_str(m->name));
        out[n].peer_urls = copy_strings(ar, m->peerurls, m->n_peerurls);
        out[n].client_urls = copy_strings(ar, m->clienturls, m->n_clienturls);
        out[n].n_peer_urls = out[n].peer_urls ? m->n_peerurls : 0;
        out[n].n_client_urls = out[n].client_urls ? m->n_clienturls : 0;
        out[n].is_learner = m->islearner;
    }
    pthread_mutex_unlock(&a->mu);
    *ret_members = out;
    return n;
}

size_t apply_removed(struct apply *a, struct arena *ar, uint64_t **ret_ids)
{
    size_t n;

    pthread_mutex_lock(&a->mu);
    n = a->n_removed;
    *ret_ids = arena_alloc(ar, (n + 1) * sizeof **ret_ids);
    if (*ret_ids && n)
        memcpy(*ret_ids, a->removed, n * sizeof **ret_ids);
    else
        n = 0;
    pthread_mutex_unlock(&a->mu);
    return n;
}

void apply_on_members(struct apply *a, void (*fn)(void *ctx), void *ctx)
{
    a->on_members = fn;
    a->on_members_ctx = ctx;
}

/* ---- at start ---------------------------------------------------------------------------------------------- */

static int load_member(void *ctx, struct slice id, struct slice value)
{
    struct apply *a = ctx;
    Etcdserverpb__Member *m;

    if (id.len != 8)
        return -EUCLEAN;
    if (member_row_is_gone(value))
        return removed_keep(a, get_u64be(id.ptr));
    m = etcdserverpb__member__unpack(NULL, value.len, value.ptr);
    if (m == NULL)
        return -EUCLEAN;
    if (get_u64be(id.ptr) != m->id) {
        member_free(m);
        return -EUCLEAN;
    }
    return member_keep(a, m);
}

int members_load(struct apply *a, struct view *v)
{
    return view_row_scan(v, TABLE_MEMBER, load_member, a);
}

void members_free(struct apply *a)
{
    for (size_t i = 0; i < a->n_members; i++)
        member_free(a->members[i]);
    free(a->removed);
    a->removed = NULL;
    a->n_members = a->n_removed = 0;
}
