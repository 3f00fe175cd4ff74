/* SPDX-License-Identifier: Apache-2.0 */
/* client.h - calls at any member, and what they may be told.
 *
 * A call is what a handler of the daemon makes of a request: a proposal with a deadline, a read that waits for its
 * index, a read at once, a lease's renewal. Its answer is judged when it comes: by the log all agree on (was it
 * committed, at which revision, with which outcome), and by what had been acknowledged to anybody when it began.
 *
 * A call whose member dies is over without an answer; what it asked for may still happen, once.
 */
#pragma once
#include "check.h"
#include "daemon/mvcc.h"

static inline void rename_judge(struct call_sim *c, const struct agreed *a); /* rename.h */
static inline void ask_rename(struct sim *s, struct sim_member *m);
static inline void ask_heap(struct sim *s, struct sim_member *m);

enum call_kind { CALL_WRITE, CALL_READ, CALL_RENEW, CALL_TRANSFER };

struct call_sim {
    struct call_sim *next, **at;
    union {
        struct proposal p;
        struct read_wait r;
        struct lease_ask l;
        struct transfer_wait t;
    };
    enum call_kind kind;
    enum entry_kind entry_kind;
    struct sim *s;
    struct sim_member *m;
    uint64_t boot, begun_us;
    int64_t acked_rev; /* when it began */
    uint64_t acked_index;
    size_t bytes;
    struct arena arena;    /* a rename's answer */
    int64_t lease;         /* a revocation's */
    uint32_t lease_grants; /* when it began */
    bool lease_revoked;
    bool stops;      /* a transfer's: then the member's process ends */
    bool *done, *ok; /* a probe's: where to say it */
};

#define CALL_OF(ptr, field) ((struct call_sim *)((char *)(ptr)-offsetof(struct call_sim, field)))

static inline struct call_sim *call_new(struct sim *s, struct sim_member *m, enum call_kind kind)
{
    struct call_sim *c = calloc(1, sizeof *c);

    *c = (struct call_sim){.s = s,
                           .m = m,
                           .kind = kind,
                           .boot = m->boot,
                           .begun_us = s->w.now_us,
                           .acked_rev = s->o.acked_rev,
                           .acked_index = s->o.acked_index};
    c->next = s->calls;
    c->at = &s->calls;
    if (c->next)
        c->next->at = &c->next;
    s->calls = c;
    return c;
}

static inline void call_free(struct call_sim *c)
{
    *c->at = c->next;
    if (c->next)
        c->next->at = c->at;
    arena_fini(&c->arena);
    free(c);
}

/* ---- writes ----------------------------------------------------------------------------------------- */

/* Refusals that promise that nothing happened, and never will. */
static inline bool never_happened(int err)
{
    return err == ERR_TOO_MANY_REQUESTS;
}

static inline void write_judge(struct call_sim *c)
{
    struct sim *s = c->s;
    struct world *w = &s->w;
    uint64_t index = oracle_find_request(&s->o, c->m->id, c->p.request_id);
    const struct agreed *a = &s->o.log[index];

    if (index == 0) {
        if (c->p.err == 0 || c->p.err == ERR_LEASE_NOT_FOUND || c->p.err == ERR_COMPACTED ||
            c->p.err == ERR_LEASE_EXISTS || c->p.err == ERR_KEY_EMPTY || c->p.err == ERR_DUPLICATE_KEY)
            world_fail(w, "AckImpliesQuorumFsync",
                       "member %" PRIu64 " answers a write that is not committed (%d)", c->m->id, c->p.err);
        w->did.failed_calls++;
        return;
    }
    if (never_happened(c->p.err))
        world_fail(w, "AckImpliesQuorumFsync",
                   "member %" PRIu64 " refuses a write that is committed at %" PRIu64, c->m->id, index);
    if (c->p.err == ERR_STOPPED || c->p.err == ERR_TIMEOUT || c->p.err == ERR_DEADLINE ||
        c->p.err != a->err) {
        if (c->p.err == 0 ||
            (c->p.err != ERR_STOPPED && c->p.err != ERR_TIMEOUT && c->p.err != ERR_DEADLINE &&
             c->p.err != ERR_TIMEOUT_LEADER_FAIL && c->p.err != ERR_TIMEOUT_CONN_LOST &&
             c->p.err != ERR_LEADER_CHANGED && c->p.err != ERR_NO_LEADER))
            world_fail(w, "ApplyDeterministic",
                       "member %" PRIu64 " answers %d to entry %" PRIu64 ", the model %d", c->m->id, c->p.err,
                       index, a->err);
        w->did.failed_calls++;
        return;
    }
    if (c->p.revision != a->rev && c->p.err == 0)
        world_fail(w, "RevisionStrictlyMonotone",
                   "member %" PRIu64 " answers revision %" PRId64 " to entry %" PRIu64 ", the model %" PRId64,
                   c->m->id, c->p.revision, index, a->rev);
    if (a->kind == ENTRY_RENAME && c->p.err == 0)
        rename_judge(c, a);
    if (a->rev < c->acked_rev)
        world_fail(w, "RevisionStrictlyMonotone",
                   "a write at %" PRId64 " began after revision %" PRId64 " was told", a->rev, c->acked_rev);
    if (a->rev > s->o.acked_rev)
        s->o.acked_rev = a->rev;
    if (index > s->o.acked_index)
        s->o.acked_index = index;
    if (a->kind == ENTRY_LEASE_REVOKE && a->err == 0 && s->o.leases[c->lease].grants == c->lease_grants)
        s->o.leases[c->lease].revoked = c->lease_grants; /* nobody has granted it again */
    w->did.acked_writes++;
    w->did.txns += a->kind == ENTRY_TXN;
    w->did.deletes += a->kind == ENTRY_DELETE_RANGE;
    w->did.compactions += a->kind == ENTRY_COMPACT && a->err == 0;
    w->did.grants += a->kind == ENTRY_LEASE_GRANT && a->err == 0;
    if (c->ok)
        *c->ok = true;
}

static inline void write_done(struct proposal *p)
{
    struct call_sim *c = CALL_OF(p, p);

    account_give(c->m->account, p, c->bytes);
    entry_unref(p->entry);
    world_line(&c->s->w, "m%" PRIu64 " answers write %" PRIx64 ": %d at %" PRId64, c->m->id, p->request_id,
               p->err, p->revision);
    if (!c->m->crashing)
        write_judge(c);
    if (c->done)
        *c->done = true;
    call_free(c);
}

static inline struct call_sim *write_bytes(struct sim *s, struct sim_member *m, enum entry_kind kind,
                                           struct slice body, uint64_t timeout_ms)
{
    struct call_sim *c = call_new(s, m, CALL_WRITE);
    struct entry_head h = {.kind = kind, .origin = m->id, .body = body};

    c->entry_kind = kind;
    c->bytes = entry_size(&h);
    c->p.done = write_done;
    if (kind == ENTRY_RENAME) {
        arena_init(&c->arena, 1 << 16, NULL, 0);
        c->p.arena = &c->arena;
    }
    c->p.deadline_ms = sim_now_ms(&m->clock) + timeout_ms;
    if (account_take(m->account, &c->p, c->bytes) != 0) {
        call_free(c);
        return NULL;
    }
    h.request_id = c->p.request_id;
    c->p.entry = entry_new(c->bytes);
    entry_encode(&h, c->p.entry->payload);
    world_line(&s->w, "m%" PRIu64 " is asked to write %" PRIx64 " kind %d", m->id, c->p.request_id,
               (int)kind);
    turn_propose(m->turn, &c->p);
    member_poll(m);
    return c;
}

/* message: the request's. NULL: not even begun. */
static inline struct call_sim *write_start(struct sim *s, struct sim_member *m, enum entry_kind kind,
                                           const void *message, uint64_t timeout_ms)
{
    size_t n = protobuf_c_message_get_packed_size(message);
    uint8_t *body = malloc(n + 1);
    struct call_sim *c;

    protobuf_c_message_pack(message, body);
    c = write_bytes(s, m, kind, slice_of(body, n), timeout_ms);
    free(body);
    return c;
}

/* ---- reads -------------------------------------------------------------------------------------------- */

static inline void read_compare(struct call_sim *c, unsigned k, int64_t rev, const struct version *v, int err,
                                const struct change *got)
{
    Mvccpb__KeyValue kv = MVCCPB__KEY_VALUE__INIT;

    if (err == ERR_KEY_NOT_FOUND && v == NULL)
        return;
    if (err == 0 && v && body_decode(got->body, &kv) == 0 && kv.mod_revision == v->mod &&
        kv.create_revision == v->create && kv.version == v->version && kv.lease == v->lease &&
        value_of(kv.value) == v->value)
        return;
    world_fail(&c->s->w, "ReadAtRevStable",
               "member %" PRIu64 ", key %u at %" PRId64 ": %d, mod %" PRId64 "; the model %" PRId64, c->m->id,
               k, rev, err, kv.mod_revision, v ? v->mod : 0);
}

static inline ProtobufCBinaryData pb_text(char *s)
{
    return (ProtobufCBinaryData){strlen(s), (uint8_t *)s};
}

/* CompactedAlwaysErrors. */
static inline void read_compacted(struct call_sim *c, struct view *v, int64_t rev, struct arena *a)
{
    Etcdserverpb__RangeRequest r = ETCDSERVERPB__RANGE_REQUEST__INIT;
    Etcdserverpb__RangeResponse answer = ETCDSERVERPB__RANGE_RESPONSE__INIT;
    int err;

    r.key = pb_text("k");
    r.range_end = pb_text("l");
    r.revision = rev;
    err = mvcc_range(v, v->rev, &r, NULL, a, &answer);
    c->s->w.did.compacted_reads++;
    if (err != ERR_COMPACTED)
        world_fail(&c->s->w, "CompactedAlwaysErrors", "member %" PRIu64 " answers %d at %" PRId64 ", compacted is %" PRId64,
                   c->m->id, err, rev, v->compact_rev);
}

/* Small ones, mostly. */
static inline unsigned key_to_read(struct sim *s)
{
    if (s->o.n_keys == SIM_SMALL || world_chance(&s->w, 70))
        return (unsigned)world_random(&s->w, SIM_SMALL);
    return heap_first((unsigned)world_random(&s->w, SIM_HEAPS)) + (unsigned)world_random(&s->w, s->heap_keys + 3);
}

/* What a range of some keys at some revision finds, against the model. */
static inline void read_now(struct call_sim *c, bool linearizable)
{
    struct sim *s = c->s;
    struct world *w = &s->w;
    struct view v;
    struct arena a;
    int64_t rev;

    if (view_open(c->m->store, c->m->slot, &v) != 0)
        return;
    arena_init(&a, 1 << 20, NULL, 0);
    if (v.rev > s->o.rev)
        world_fail(w, "NoReadOfUndurable", "member %" PRIu64 " reads at %" PRId64 ", committed is %" PRId64,
                   c->m->id, v.rev, s->o.rev);
    if (linearizable && v.rev < c->acked_rev)
        world_fail(w, "ReadIndexFresh",
                   "member %" PRIu64 " reads at %" PRId64 ", %" PRId64 " was acknowledged before", c->m->id,
                   v.rev, c->acked_rev);
    if (linearizable && v.rev > s->o.acked_rev)
        s->o.acked_rev = v.rev;
    rev = v.rev;
    if (world_chance(w, 30) && v.rev > 1) {
        rev = 1 + (int64_t)world_random(w, (uint64_t)v.rev);
        w->did.old_reads++;
    }
    if (rev < v.compact_rev) {
        read_compacted(c, &v, rev, &a);
        rev = v.compact_rev;
    }
    for (unsigned k = key_to_read(s), n = 1 + (unsigned)world_random(w, 4); n && k < s->o.n_keys; n--, k++) {
        char name[8];
        struct change got;
        int err;

        key_name(k, name);
        err = view_get(&v, slice_str(name), rev, 0, &a, &got);
        read_compare(c, k, rev, key_at(&s->o, k, rev), err, &got);
    }
    view_close(&v);
    arena_fini(&a);
    if (linearizable)
        w->did.lin_reads++;
    else
        w->did.serial_reads++;
}

static inline void read_done(struct read_wait *r)
{
    struct call_sim *c = CALL_OF(r, r);

    world_line(&c->s->w, "m%" PRIu64 " answers a read: %d at index %" PRIu64, c->m->id, r->err,
               r->read_index);
    if (!c->m->crashing && r->err == 0) {
        if (store_applied(c->m->store) < c->acked_index)
            world_fail(&c->s->w, "ReadIndexFresh",
                       "member %" PRIu64 " has applied %" PRIu64 ", %" PRIu64 " was acknowledged before",
                       c->m->id, store_applied(c->m->store), c->acked_index);
        read_now(c, true);
        if (c->ok)
            *c->ok = true;
    } else if (!c->m->crashing) {
        c->s->w.did.failed_calls++;
    }
    if (c->done)
        *c->done = true;
    call_free(c);
}

static inline struct call_sim *read_start(struct sim *s, struct sim_member *m, uint64_t timeout_ms,
                                          bool *done, bool *ok)
{
    struct call_sim *c = call_new(s, m, CALL_READ);

    c->done = done;
    c->ok = ok;
    c->r.deadline_ms = sim_now_ms(&m->clock) + timeout_ms;
    c->r.done = read_done;
    if (turn_read(m->turn, &c->r) == 0) {
        read_done(&c->r);
        return NULL;
    }
    member_poll(m);
    return c;
}

static inline void read_at_once(struct sim *s, struct sim_member *m)
{
    struct call_sim *c = call_new(s, m, CALL_READ);

    read_now(c, false);
    call_free(c);
}

/* ---- requests ------------------------------------------------------------------------------------------- */

#define CALL_TIMEOUT_MS 3000

static inline struct call_sim *ask_put(struct sim *s, struct sim_member *m, uint64_t timeout_ms)
{
    Etcdserverpb__PutRequest r = ETCDSERVERPB__PUT_REQUEST__INIT;
    char key[8], value[24];

    key_name((unsigned)world_random(&s->w, SIM_SMALL), key);
    (void)snprintf(value, sizeof value, "%" PRIu64, world_random64(&s->w) >> 1);
    r.key = pb_text(key);
    r.value = pb_text(value);
    if (world_chance(&s->w, 20))
        r.lease = 1 + (int64_t)world_random(&s->w, SIM_LEASES);
    return write_start(s, m, ENTRY_PUT, &r, timeout_ms);
}

static inline void ask_delete(struct sim *s, struct sim_member *m)
{
    Etcdserverpb__DeleteRangeRequest r = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
    unsigned k = (unsigned)world_random(&s->w, SIM_SMALL - 2);
    char key[8], end[8];

    key_name(k, key);
    key_name(k + 2, end);
    r.key = pb_text(key);
    if (world_chance(&s->w, 30))
        r.range_end = pb_text(end);
    (void)write_start(s, m, ENTRY_DELETE_RANGE, &r, CALL_TIMEOUT_MS);
}

/* if mod(a) == what it was lately: put b, delete c; else put d */
static inline void ask_txn(struct sim *s, struct sim_member *m)
{
    Etcdserverpb__TxnRequest r = ETCDSERVERPB__TXN_REQUEST__INIT;
    Etcdserverpb__Compare compare = ETCDSERVERPB__COMPARE__INIT, *compares[] = {&compare};
    Etcdserverpb__RequestOp ops[3] = {ETCDSERVERPB__REQUEST_OP__INIT, ETCDSERVERPB__REQUEST_OP__INIT,
                                      ETCDSERVERPB__REQUEST_OP__INIT};
    Etcdserverpb__RequestOp *success[] = {&ops[0], &ops[1]}, *failure[] = {&ops[2]};
    Etcdserverpb__PutRequest puts[2] = {ETCDSERVERPB__PUT_REQUEST__INIT, ETCDSERVERPB__PUT_REQUEST__INIT};
    Etcdserverpb__DeleteRangeRequest del = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
    unsigned k = (unsigned)world_random(&s->w, SIM_SMALL);
    const struct version *v = key_at(&s->o, k, INT64_MAX);
    char names[4][8], value[24];

    for (unsigned i = 0; i < 4; i++)
        key_name((k + i) % SIM_SMALL, names[i]);
    (void)snprintf(value, sizeof value, "%" PRIu64, world_random64(&s->w) >> 1);
    compare.result = ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL;
    compare.target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD;
    compare.key = pb_text(names[0]);
    compare.target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION;
    compare.mod_revision = v && world_chance(&s->w, 70) ? v->mod : 0;
    puts[0].key = pb_text(names[1]);
    puts[0].value = pb_text(value);
    puts[0].lease = world_chance(&s->w, 10) ? 1 + (int64_t)world_random(&s->w, SIM_LEASES) : 0;
    puts[1].key = pb_text(names[3]);
    puts[1].value = pb_text(value);
    del.key = pb_text(names[2]);
    ops[0].request_case = ops[2].request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
    ops[0].request_put = &puts[0];
    ops[2].request_put = &puts[1];
    ops[1].request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
    ops[1].request_delete_range = &del;
    r.compare = compares;
    r.n_compare = 1;
    r.success = success;
    r.n_success = 2;
    r.failure = failure;
    r.n_failure = 1;
    (void)write_start(s, m, ENTRY_TXN, &r, CALL_TIMEOUT_MS);
}

static inline void ask_compact(struct sim *s, struct sim_member *m)
{
    Etcdserverpb__CompactionRequest r = ETCDSERVERPB__COMPACTION_REQUEST__INIT;

    r.revision = s->o.rev - (int64_t)world_random(&s->w, 40);
    r.physical = world_chance(&s->w, 30);
    if (r.revision > 0)
        (void)write_start(s, m, ENTRY_COMPACT, &r, CALL_TIMEOUT_MS);
}

/* The operator's: the cluster may be written to again. */
static inline void ask_disarm(struct sim *s, struct sim_member *m)
{
    Etcdserverpb__AlarmRequest r = ETCDSERVERPB__ALARM_REQUEST__INIT;

    for (unsigned i = 1; i < MEMBERS_SIM_MAX; i++)
        if (s->o.corrupt[i])
            r.memberid = i;
    r.action = ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__DEACTIVATE;
    r.alarm = ETCDSERVERPB__ALARM_TYPE__CORRUPT;
    (void)write_start(s, m, ENTRY_ALARM, &r, CALL_TIMEOUT_MS);
}

static inline void ask_grant(struct sim *s, struct sim_member *m, int64_t id)
{
    Etcdserverpb__LeaseGrantRequest r = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;

    r.id = id;
    r.ttl = 1 + (int64_t)world_random(&s->w, 4);
    world_line(&s->w, "grant %" PRId64 " for %" PRId64 " s", r.id, r.ttl);
    (void)write_start(s, m, ENTRY_LEASE_GRANT, &r, CALL_TIMEOUT_MS);
}

static inline void ask_revoke(struct sim *s, struct sim_member *m, int64_t id)
{
    Etcdserverpb__LeaseRevokeRequest r = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;
    struct call_sim *c;

    r.id = id;
    world_line(&s->w, "revoke %" PRId64, r.id);
    c = write_start(s, m, ENTRY_LEASE_REVOKE, &r, CALL_TIMEOUT_MS);
    if (c) {
        c->lease = r.id;
        c->lease_grants = s->o.leases[r.id].grants;
    }
}

/* Members come, vote, and go. Joint changes too; and what must be refused: an id that was removed, a voter promoted. */
static inline void ask_conf(struct sim *s, struct sim_member *m)
{
    struct raft_conf_change c = {.n = 1, .transition = (enum raft_transition)world_random(&s->w, 2)};
    uint64_t id = 1 + world_random(&s->w, MEMBERS_SIM_MAX - 1);
    uint8_t body[TURN_CONF_BYTES_MAX + 64];
    struct member_row_bytes row = {.n = 0};
    size_t n;

    if (!model_is_member(&s->o, id)) {
        c.changes[0].op = world_chance(&s->w, 60) ? RAFT_ADD_LEARNER : RAFT_ADD_VOTER;
        row = member_row_of(id);
    } else if (set_has(&s->o.conf.learners, id) && world_chance(&s->w, 70)) {
        c.changes[0].op = RAFT_ADD_VOTER;
    } else {
        if (s->o.conf.voters.n <= 2 || world_chance(&s->w, 30))
            return;
        c.changes[0].op = RAFT_REMOVE;
    }
    c.changes[0].id = id;
    n = turn_conf_encode(&c, body);
    memcpy(body + n, row.bytes, row.n);
    (void)write_bytes(s, m, ENTRY_CONF, slice_of(body, n + row.n), CALL_TIMEOUT_MS);
}

static inline void renew_judge(struct call_sim *c)
{
    struct sim *s = c->s;
    struct lease_model *l = &s->o.leases[c->l.lease];

    if (c->l.err != 0) {
        s->w.did.failed_calls += c->l.err != ERR_LEASE_NOT_FOUND && c->l.err != LEASE_PAST;
        return;
    }
    if (c->lease_revoked && l->grants == c->lease_grants)
        world_fail(&s->w, "RenewAfterRevokeFails",
                   "member %" PRIu64 " renews lease %" PRId64 ", whose revocation was acknowledged before",
                   c->m->id, c->l.lease);
    if (!c->l.renew)
        return;
    s->w.did.renewals++;
    if (l->alive && l->grants == c->lease_grants && l->ttl_s == c->l.ttl_s && l->promised_us < c->begun_us)
        l->promised_us = c->begun_us;
}

static inline void renew_done(struct lease_ask *a)
{
    struct call_sim *c = CALL_OF(a, l);

    world_line(&c->s->w, "m%" PRIu64 " answers of lease %" PRId64 ": %d ttl %" PRId64 " left %" PRId64,
               c->m->id, a->lease, a->err, a->ttl_s, a->left_ms);
    if (!c->m->crashing)
        renew_judge(c);
    call_free(c);
}

/* A keep-alive, or the question what is left of a lease. */
static inline void ask_renew(struct sim *s, struct sim_member *m)
{
    struct call_sim *c = call_new(s, m, CALL_RENEW);
    const struct lease_model *l;

    c->l = (struct lease_ask){.lease = 1 + (int64_t)world_random(&s->w, SIM_LEASES),
                              .renew = world_chance(&s->w, 80),
                              .deadline_ms = sim_now_ms(&m->clock) + CALL_TIMEOUT_MS,
                              .done = renew_done};
    l = &s->o.leases[c->l.lease];
    c->lease_grants = l->grants;
    c->lease_revoked = l->revoked == l->grants;
    world_line(&s->w, "m%" PRIu64 " is asked %s lease %" PRId64, m->id, c->l.renew ? "to renew" : "of",
               c->l.lease);
    turn_lease_ask(m->turn, &c->l);
    member_poll(m);
}

/* Of a transfer, and of the process that wanted it before it ends. */
static inline void transfer_judge(struct call_sim *c)
{
    struct sim *s = c->s;
    const struct raft_status *st = &c->m->turn->status;
    uint64_t row = term_row(st->term);

    if (c->t.err != 0) {
        s->w.did.transfers_failed++;
        return;
    }
    if (c->t.member && row < SIM_TERMS_MAX && s->o.leader_of[row] != c->t.member)
        world_fail(&s->w, "ElectionSafety",
                   "member %" PRIu64 " says that %" PRIu64 " leads now, term %" PRIu64 " is %" PRIu64 "'s", c->m->id,
                   c->t.member, st->term, s->o.leader_of[row]);
    s->w.did.transfers += st->role != RAFT_LEADER;
    s->w.did.hand_overs += st->role != RAFT_LEADER && c->stops;
}

static inline void transfer_done(struct transfer_wait *t)
{
    struct call_sim *c = CALL_OF(t, t);

    world_line(&c->s->w, "m%" PRIu64 " answers the transfer to m%" PRIu64 ": %d", c->m->id, t->member, t->err);
    if (!c->m->crashing) {
        transfer_judge(c);
        if (c->stops)
            c->m->crash_soon = 1;
    }
    call_free(c);
}

/* MoveLeader; or SIGTERM, upon which a member that leads hands over, and ends however that went. */
static inline void ask_transfer(struct sim *s, struct sim_member *m, bool stops)
{
    struct call_sim *c = call_new(s, m, CALL_TRANSFER);
    const struct raft_set *voters = &raft_conf_of(m->turn->raft)->voters;

    c->t = (struct transfer_wait){.done = transfer_done};
    if (!stops && voters->n)
        c->t.member = voters->ids[world_random(&s->w, voters->n)];
    c->stops = stops;
    world_line(&s->w, "m%" PRIu64 " is asked to hand over to m%" PRIu64 "%s", m->id, c->t.member,
               stops ? " and to end" : "");
    turn_transfer(m->turn, &c->t);
    member_poll(m);
}

/* Leases that are just ending are revoked and granted again: an expiry under way must not end the new ones. */
static inline void ask_again(struct sim *s, struct sim_member *m)
{
    for (int64_t id = 1; id <= SIM_LEASES; id++) {
        const struct lease_model *l = &s->o.leases[id];
        uint64_t end_us = l->promised_us + (uint64_t)l->ttl_s * 1000000;

        if (!l->alive || s->w.now_us + 100000 < end_us || s->w.now_us > end_us + 300000)
            continue;
        ask_revoke(s, m, id);
        ask_grant(s, m, id);
        s->w.did.grants_again++;
    }
}

static inline void ask_something(struct sim *s, struct sim_member *m)
{
    if (world_chance(&s->w, s->conf_pct)) {
        ask_conf(s, m);
        return;
    }
    if (s->heap_keys && world_chance(&s->w, 4)) {
        ask_heap(s, m);
        return;
    }
    switch (world_random(&s->w, 24)) {
    case 0:
        ask_delete(s, m);
        break;
    case 1:
    case 2:
        ask_txn(s, m);
        break;
    case 3:
        if (world_chance(&s->w, 40))
            ask_compact(s, m);
        break;
    case 4:
        ask_grant(s, m, 1 + (int64_t)world_random(&s->w, SIM_LEASES));
        break;
    case 5:
        if (world_chance(&s->w, 40))
            ask_revoke(s, m, 1 + (int64_t)world_random(&s->w, SIM_LEASES));
        ask_again(s, m);
        break;
    case 6:
    case 7:
        ask_renew(s, m);
        break;
    case 8:
    case 9:
        read_at_once(s, m);
        break;
    case 10:
    case 11:
    case 12:
    case 13:
    case 14:
    case 15:
        (void)read_start(s, m, CALL_TIMEOUT_MS, NULL, NULL);
        break;
    case 16:
        ask_rename(s, m);
        break;
    default:
        (void)ask_put(s, m, CALL_TIMEOUT_MS);
        break;
    }
}
