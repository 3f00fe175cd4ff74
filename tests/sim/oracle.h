/* SPDX-License-Identifier: Apache-2.0 */
/* oracle.h - what everybody agrees on: the committed log, and a small model of the store that follows it.
 *
 * The first member that knows an index to be committed shows its entry; all later ones must show the same. The model
 * applies each such entry at once: puts, deletes, txns and renames of short keys, leases, compactions. It keeps every
 * version, so that a read at any revision can be judged.
 */
#pragma once
#include "daemon/entry.h"
#include "daemon/lease.h"
#include "daemon/turn.h"
#include "err.h"
#include "keys.h"
#include "rpc.pb-c.h"
#include "world.h"

enum { SIM_LEASES = 8, SIM_REQUEST_BITS = 14, SIM_SEEN_BITS = 15 };

struct version {
    int64_t mod, create, version, lease; /* version 0: a tombstone */
    uint64_t value;
};

struct history {
    struct version *v;
    uint32_t n, cap;
};

/* One change, in the order in which a watcher is told. */
struct oracle_event {
    int64_t rev;
    unsigned key;
    struct version v; /* version 0: it is deleted */
};

struct lease_model {
    bool alive;
    int64_t ttl_s;
    uint32_t grants, revoked; /* how often; the grant whose revocation was acknowledged */
    uint64_t promised_us;     /* the newest moment at which somebody was told that its full time begins */
};

struct agreed {
    uint64_t term, print, commit_us; /* term 0: not yet committed */
    uint64_t in; /* the term of who showed it: not lower than that in which it was committed */
    uint64_t origin, request_id;
    uint64_t state_hash;      /* 0: no member has shown it */
    int64_t rev, compact_rev; /* after it */
    int err;                  /* what its caller is told */
    unsigned outcomes;        /* a rename's: a bit for each that may be told */
    uint32_t moved;           /* keys */
    enum entry_kind kind;
};

struct seen_entry {
    uint64_t index, term, print, prev_term; /* term 0: free */
};

struct oracle {
    uint64_t committed;
    struct agreed log[SIM_LOG_MAX];
    uint64_t leader_of[SIM_TERMS_MAX];
    uint64_t vote_of[MEMBERS_SIM_MAX][SIM_TERMS_MAX];
    struct seen_entry seen[1 << SIM_SEEN_BITS];
    struct {
        uint64_t origin, id, index;
    } requests[1 << SIM_REQUEST_BITS];
    int64_t rev, compact_rev;
    struct history keys[SIM_KEYS];
    unsigned n_keys; /* no key from here on was ever there */
    struct oracle_event *events; /* by revision */
    size_t n_events, cap_events;
    struct lease_model leases[SIM_LEASES + 1];
    struct raft_conf conf;     /* in force once all that is committed is applied */
    uint64_t conf_index;       /* of the newest change */
    bool was[MEMBERS_SIM_MAX]; /* removed; never a member again */
    int64_t acked_rev;         /* the highest revision any caller has been told */
    uint64_t acked_index;      /* the highest index whose write was acknowledged */
    unsigned skew_ppm;         /* no two clocks differ by more */
    bool planted[MEMBERS_SIM_MAX]; /* its state has been changed behind its back, once */
    bool corrupt[MEMBERS_SIM_MAX]; /* its CORRUPT alarm is set */
};

static inline void oracle_init(struct oracle *o)
{
    for (int i = 0; i < SIM_KEYS; i++)
        free(o->keys[i].v);
    free(o->events);
    memset(o, 0, sizeof *o);
    o->rev = 1;
    o->n_keys = SIM_SMALL;
    o->compact_rev = -1;
    o->committed = 1; /* the founding configuration, in nobody's log */
    o->log[0] = (struct agreed){.rev = 1, .compact_rev = -1};
    o->log[1] = (struct agreed){.term = 1, .rev = 1, .compact_rev = -1};
}

/* Where a term's row is: a rebuilt member's fence raises terms by RAFT_FENCE_TERMS at a time. SIM_TERMS_MAX: too
 * many. */
static inline uint64_t term_row(uint64_t term)
{
    uint64_t jumps = term / RAFT_FENCE_TERMS, n = term % RAFT_FENCE_TERMS;

    return jumps < SIM_TERMS_MAX / SIM_TERMS_A_JUMP && n < SIM_TERMS_A_JUMP ? jumps * SIM_TERMS_A_JUMP + n
                                                                            : SIM_TERMS_MAX;
}

static inline uint64_t print_of(const uint8_t *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u ^ n;

    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h | 1;
}

/* ---- keys ----------------------------------------------------------------------------------------- */

/* The key's version as of rev; NULL: none. */
static inline const struct version *key_at(const struct oracle *o, unsigned k, int64_t rev)
{
    const struct history *h = &o->keys[k];

    for (uint32_t i = h->n; i > 0; i--)
        if (h->v[i - 1].mod <= rev)
            return h->v[i - 1].version ? &h->v[i - 1] : NULL;
    return NULL;
}

static inline void key_add(struct oracle *o, unsigned k, struct version v)
{
    struct history *h = &o->keys[k];

    if (h->n == h->cap) {
        h->cap = h->cap ? 2 * h->cap : k < SIM_SMALL ? 64 : 4;
        h->v = realloc(h->v, h->cap * sizeof *h->v);
        assert(h->v);
    }
    assert(h->n == 0 || h->v[h->n - 1].mod < v.mod); /* no client changes a key twice in one txn */
    h->v[h->n++] = v;
    if (k >= o->n_keys)
        o->n_keys = SIM_KEYS;
    if (o->n_events == o->cap_events) {
        o->cap_events = o->cap_events ? 2 * o->cap_events : 256;
        o->events = realloc(o->events, o->cap_events * sizeof *o->events);
        assert(o->events);
    }
    o->events[o->n_events++] = (struct oracle_event){.rev = v.mod, .key = k, .v = v};
}

static inline void model_put(struct oracle *o, unsigned k, uint64_t value, int64_t lease)
{
    const struct version *old = key_at(o, k, INT64_MAX);
    struct version v = {
        .mod = o->rev + 1, .create = o->rev + 1, .version = 1, .lease = lease, .value = value};

    if (old) {
        v.create = old->create;
        v.version = old->version + 1;
    }
    key_add(o, k, v);
}

/* True: it was there. */
static inline bool model_delete(struct oracle *o, unsigned k)
{
    if (key_at(o, k, INT64_MAX) == NULL)
        return false;
    key_add(o, k, (struct version){.mod = o->rev + 1});
    return true;
}

static inline bool model_has_lease(const struct oracle *o, int64_t id)
{
    return id > 0 && id <= SIM_LEASES && o->leases[id].alive;
}

static inline uint64_t value_of(ProtobufCBinaryData b)
{
    char text[24] = "";

    if (b.len < sizeof text)
        memcpy(text, b.data, b.len);
    return strtoull(text, NULL, 10);
}

/* ---- entries -------------------------------------------------------------------------------------- */

#define MODEL_UNPACK(kind, var, body)                                                                        \
    Etcdserverpb__##kind *var = (Etcdserverpb__##kind *)protobuf_c_message_unpack(                           \
        MODEL_DESCRIPTOR_##kind, NULL, (body).len, (body).ptr)
#define MODEL_DESCRIPTOR_PutRequest         &etcdserverpb__put_request__descriptor
#define MODEL_DESCRIPTOR_DeleteRangeRequest &etcdserverpb__delete_range_request__descriptor
#define MODEL_DESCRIPTOR_TxnRequest         &etcdserverpb__txn_request__descriptor
#define MODEL_DESCRIPTOR_CompactionRequest  &etcdserverpb__compaction_request__descriptor
#define MODEL_DESCRIPTOR_LeaseGrantRequest  &etcdserverpb__lease_grant_request__descriptor
#define MODEL_DESCRIPTOR_AlarmRequest       &etcdserverpb__alarm_request__descriptor
#define MODEL_DESCRIPTOR_LeaseRevokeRequest &etcdserverpb__lease_revoke_request__descriptor

/* rename.h */
static inline int model_rename(struct world *w, struct oracle *o, struct slice body, struct agreed *a);

static inline struct slice pb_slice(ProtobufCBinaryData b)
{
    return slice_of(b.data, b.len);
}

static inline int model_put_request(struct oracle *o, const Etcdserverpb__PutRequest *r, bool *ret_wrote)
{
    if (r->lease && !model_has_lease(o, r->lease))
        return ERR_LEASE_NOT_FOUND;
    model_put(o, (unsigned)key_index(pb_slice(r->key)), value_of(r->value), r->lease);
    *ret_wrote = true;
    return 0;
}

static inline void model_delete_request(struct oracle *o, const Etcdserverpb__DeleteRangeRequest *r,
                                        bool *ret_wrote)
{
    unsigned from = (unsigned)key_index(pb_slice(r->key)), to = from + 1;

    if (r->range_end.len)
        to = key_lower(pb_slice(r->range_end));
    for (unsigned k = from; k < to && k < o->n_keys; k++)
        *ret_wrote |= model_delete(o, k);
}

/* Of a mod revision; a key that is not there has 0. */
static inline bool model_compare(const struct oracle *o, const Etcdserverpb__Compare *c)
{
    const struct version *v = key_at(o, (unsigned)key_index(pb_slice(c->key)), INT64_MAX);

    return (v ? v->mod : 0) == c->mod_revision;
}

/* Of the form the clients send: no comparison, or one; a branch of puts and deletes. */
static inline int model_txn(struct oracle *o, const Etcdserverpb__TxnRequest *r, bool *ret_wrote)
{
    bool equal = r->n_compare == 0 || model_compare(o, r->compare[0]);
    size_t n = equal ? r->n_success : r->n_failure;
    Etcdserverpb__RequestOp **ops = equal ? r->success : r->failure;

    for (size_t i = 0; i < n; i++) /* all is checked before anything is done */
        if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT &&
            ops[i]->request_put->lease && !model_has_lease(o, ops[i]->request_put->lease))
            return ERR_LEASE_NOT_FOUND;
    for (size_t i = 0; i < n; i++) {
        if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT)
            (void)model_put_request(o, ops[i]->request_put, ret_wrote);
        else
            model_delete_request(o, ops[i]->request_delete_range, ret_wrote);
    }
    return 0;
}

static inline void model_revoke(struct oracle *o, int64_t id)
{
    bool wrote = false;

    for (unsigned k = 0; k < o->n_keys; k++) {
        const struct version *v = key_at(o, k, INT64_MAX);

        if (v && v->lease == id)
            wrote |= model_delete(o, k);
    }
    o->rev += wrote;
    o->leases[id].alive = false;
}

/* NeverExpiresEarly: its promised time, by the fastest clock, is over. */
static inline void model_expire(struct world *w, struct oracle *o, struct slice ids)
{
    for (size_t i = 0; i + 8 <= ids.len; i += 8) {
        int64_t id = (int64_t)get_u64le(ids.ptr + i);
        struct lease_model *l;

        if (!model_has_lease(o, id))
            continue;
        l = &o->leases[id];
        if (w->now_us < l->promised_us + (uint64_t)l->ttl_s * (1000000 - o->skew_ppm))
            world_fail(w, "NeverExpiresEarly", "lease %" PRId64 " of %" PRId64 " s, promised anew %.3f s ago",
                       id, l->ttl_s, (double)(w->now_us - l->promised_us) / 1e6);
        model_revoke(o, id);
        w->did.expiries++;
    }
}

static inline int model_compact(struct oracle *o, int64_t rev)
{
    if (rev <= o->compact_rev)
        return ERR_COMPACTED;
    if (rev > o->rev)
        return ERR_FUTURE_REV;
    o->compact_rev = rev;
    return 0;
}

static inline int model_grant(struct world *w, struct oracle *o, const Etcdserverpb__LeaseGrantRequest *r)
{
    if (r->id < 1 || r->id > SIM_LEASES)
        return ERR_LEASE_NOT_FOUND;
    if (o->leases[r->id].alive)
        return ERR_LEASE_EXISTS;
    o->leases[r->id].alive = true;
    o->leases[r->id].ttl_s = r->ttl;
    o->leases[r->id].promised_us = w->now_us;
    o->leases[r->id].grants++;
    return 0;
}

static inline bool set_has(const struct raft_set *s, uint64_t id)
{
    for (uint32_t i = 0; i < s->n; i++)
        if (s->ids[i] == id)
            return true;
    return false;
}

static inline bool model_is_member(const struct oracle *o, uint64_t id)
{
    return set_has(&o->conf.voters, id) || set_has(&o->conf.outgoing, id) || set_has(&o->conf.learners, id) ||
           set_has(&o->conf.learners_next, id);
}

static inline int model_conf_check(const struct oracle *o, enum raft_change_op op, uint64_t id, bool has_row)
{
    if (id == 0 || id >= MEMBERS_SIM_MAX || o->was[id])
        return ERR_MEMBER_NOT_FOUND;
    if (op == RAFT_REMOVE)
        return model_is_member(o, id) ? 0 : ERR_MEMBER_NOT_FOUND;
    if (!has_row && !model_is_member(o, id))
        return ERR_MEMBER_NOT_FOUND;
    if (!has_row)
        return op == RAFT_ADD_VOTER && set_has(&o->conf.learners, id) ? 0 : ERR_MEMBER_NOT_LEARNER;
    return model_is_member(o, id) ? ERR_MEMBER_EXISTS : 0;
}

static inline int model_conf(struct world *w, struct oracle *o, struct slice body)
{
    struct raft_conf_change c;
    struct raft_conf new;
    struct slice row;
    int err;

    if (turn_conf_decode(body, &c, &row) != 0 || raft_conf_apply(&o->conf, &c, &new) != 0)
        return ERR_CONF_IMPOSSIBLE;
    for (uint32_t i = 0; i < c.n; i++) {
        err = model_conf_check(o, c.changes[i].op, c.changes[i].id, row.len > 0);
        if (err)
            return err;
    }
    for (uint32_t i = 0; i < c.n; i++) {
        o->was[c.changes[i].id] |= c.changes[i].op == RAFT_REMOVE;
        w->did.removals += c.changes[i].op == RAFT_REMOVE;
        w->did.learners += c.changes[i].op == RAFT_ADD_LEARNER;
    }
    o->conf = new;
    o->conf_index = o->committed;
    w->did.confs++;
    w->did.joints += new.outgoing.n > 0;
    return 0;
}

/* No member is said to be corrupt that is not. */
static inline void model_alarm(struct world *w, struct oracle *o, const Etcdserverpb__AlarmRequest *r)
{
    if (r->alarm != ETCDSERVERPB__ALARM_TYPE__CORRUPT || r->action == ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__GET)
        return;
    if (r->memberid >= MEMBERS_SIM_MAX || !o->planted[r->memberid]) {
        world_fail(w, "SameOnAllMembers", "member %" PRIu64 " is said to be corrupt", r->memberid);
        return;
    }
    o->corrupt[r->memberid] = r->action == ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__ACTIVATE;
    w->did.corrupts += o->corrupt[r->memberid];
}

static inline bool model_is_corrupt(const struct oracle *o)
{
    for (unsigned i = 0; i < MEMBERS_SIM_MAX; i++)
        if (o->corrupt[i])
            return true;
    return false;
}

static inline bool model_refuses(const struct oracle *o, enum entry_kind kind)
{
    return model_is_corrupt(o) &&
           (kind == ENTRY_PUT || kind == ENTRY_DELETE_RANGE || kind == ENTRY_TXN || kind == ENTRY_COMPACT ||
            kind == ENTRY_RENAME || kind == ENTRY_LEASE_GRANT || kind == ENTRY_LEASE_REVOKE ||
            kind == ENTRY_LEASE_EXPIRE);
}

/* What the entry's caller is told; the model has moved along. */
static inline int model_apply(struct world *w, struct oracle *o, const struct entry_head *h, struct agreed *a)
{
    bool wrote = false;
    int err = 0;

    if (model_refuses(o, h->kind))
        return ERR_CORRUPT;
    switch (h->kind) {
    case ENTRY_PUT: {
        MODEL_UNPACK(PutRequest, r, h->body);
        err = model_put_request(o, r, &wrote);
        protobuf_c_message_free_unpacked(&r->base, NULL);
        break;
    }
    case ENTRY_DELETE_RANGE: {
        MODEL_UNPACK(DeleteRangeRequest, r, h->body);
        model_delete_request(o, r, &wrote);
        protobuf_c_message_free_unpacked(&r->base, NULL);
        break;
    }
    case ENTRY_TXN: {
        MODEL_UNPACK(TxnRequest, r, h->body);
        err = model_txn(o, r, &wrote);
        protobuf_c_message_free_unpacked(&r->base, NULL);
        break;
    }
    case ENTRY_RENAME:
        err = model_rename(w, o, h->body, a);
        wrote = a->moved > 0;
        break;
    case ENTRY_COMPACT: {
        MODEL_UNPACK(CompactionRequest, r, h->body);
        err = model_compact(o, r->revision);
        protobuf_c_message_free_unpacked(&r->base, NULL);
        break;
    }
    case ENTRY_LEASE_GRANT: {
        MODEL_UNPACK(LeaseGrantRequest, r, h->body);
        err = model_grant(w, o, r);
        protobuf_c_message_free_unpacked(&r->base, NULL);
        break;
    }
    case ENTRY_LEASE_REVOKE: {
        MODEL_UNPACK(LeaseRevokeRequest, r, h->body);
        if (model_has_lease(o, r->id))
            model_revoke(o, r->id);
        else
            err = ERR_LEASE_NOT_FOUND;
        protobuf_c_message_free_unpacked(&r->base, NULL);
        break;
    }
    case ENTRY_ALARM: {
        MODEL_UNPACK(AlarmRequest, r, h->body);
        model_alarm(w, o, r);
        protobuf_c_message_free_unpacked(&r->base, NULL);
        break;
    }
    case ENTRY_CONF:
        err = model_conf(w, o, h->body);
        break;
    case ENTRY_LEASE_EXPIRE:
        model_expire(w, o, h->body);
        break;
    default:
        break;
    }
    o->rev += wrote;
    return err;
}

/* ---- the log -------------------------------------------------------------------------------------- */

/* OneIndexPerEntry: whoever asks once is served once. */
static inline void oracle_note_request(struct world *w, struct oracle *o, const struct agreed *a,
                                       uint64_t index)
{
    uint32_t mask = (1u << SIM_REQUEST_BITS) - 1,
             h = (uint32_t)((a->request_id ^ a->origin << 40) * 0x9e3779b97f4a7c15u >> 40);

    if (a->request_id == 0)
        return;
    for (;; h++) {
        if (o->requests[h & mask].index == 0) {
            o->requests[h & mask].origin = a->origin;
            o->requests[h & mask].id = a->request_id;
            o->requests[h & mask].index = index;
            return;
        }
        if (o->requests[h & mask].origin == a->origin && o->requests[h & mask].id == a->request_id) {
            world_fail(w, "OneIndexPerEntry",
                       "request %" PRIx64 " of member %" PRIu64 " is at %" PRIu64 " and at %" PRIu64,
                       a->request_id, a->origin, o->requests[h & mask].index, index);
            return;
        }
    }
}

/* 0: not committed. */
static inline uint64_t oracle_find_request(const struct oracle *o, uint64_t origin, uint64_t id)
{
    uint32_t mask = (1u << SIM_REQUEST_BITS) - 1,
             h = (uint32_t)((id ^ origin << 40) * 0x9e3779b97f4a7c15u >> 40);

    for (; o->requests[h & mask].index; h++)
        if (o->requests[h & mask].origin == origin && o->requests[h & mask].id == id)
            return o->requests[h & mask].index;
    return 0;
}

/* A member knows this entry to be committed. True: it is the first. */
static inline bool oracle_commit(struct world *w, struct oracle *o, uint64_t member, uint64_t term,
                                 const struct entry *e)
{
    struct agreed *a = &o->log[e->index];
    struct entry_head h;

    assert(e->index < SIM_LOG_MAX);
    if (a->term) {
        if (a->term != e->term || a->print != print_of(e->payload, e->len))
            world_fail(w, "StateMachineSafety",
                       "member %" PRIu64 " commits another entry at %" PRIu64 "/%" PRIu64, member, e->index,
                       e->term);
        return false;
    }
    assert(e->index == o->committed + 1);
    *a = (struct agreed){
        .term = e->term, .in = term, .print = print_of(e->payload, e->len), .commit_us = w->now_us};
    if (entry_decode(slice_of(e->payload, e->len), &h) != 0) {
        world_fail(w, "LogMatching", "entry %" PRIu64 " is no entry", e->index);
        return true;
    }
    a->origin = h.origin;
    a->request_id = h.request_id;
    a->kind = h.kind;
    o->committed = e->index;
    w->did.commits++;
    oracle_note_request(w, o, a, e->index);
    if (h.proposal_term == 0 || h.proposal_term == e->term)
        a->err = model_apply(w, o, &h, a);
    a->rev = o->rev;
    a->compact_rev = o->compact_rev;
    return true;
}

/* LogMatching, by induction: an entry is made once, with one predecessor. */
static inline void oracle_see(struct world *w, struct oracle *o, uint64_t member, const struct entry *e,
                              uint64_t prev_term)
{
    uint32_t mask = (1u << SIM_SEEN_BITS) - 1;
    uint32_t h = (uint32_t)((e->index * 0x9e3779b97f4a7c15u ^ e->term * 0xc2b2ae3du) >> 20);
    uint64_t print = print_of(e->payload, e->len);

    for (;; h++) {
        struct seen_entry *s = &o->seen[h & mask];

        if (s->term == 0) {
            *s = (struct seen_entry){e->index, e->term, print, prev_term};
            return;
        }
        if (s->index != e->index || s->term != e->term)
            continue;
        if (s->print != print || s->prev_term != prev_term)
            world_fail(w, "LogMatching", "member %" PRIu64 " has another entry at %" PRIu64 "/%" PRIu64,
                       member, e->index, e->term);
        return;
    }
}
