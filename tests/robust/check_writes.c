/* SPDX-License-Identifier: Apache-2.0 */
/* check_writes.c - calls done again on the state before them, and every write compared with the committed order.
 *
 * Values are unique, so a put in the order names the call it came from. A delete has no value: one that was answered is
 * known by its revision, one that was not may be any delete without an owner, as often as it was asked for. A rename
 * moves values that stand already; it is known by its new name, which nobody used before.
 */
#include "check_impl.h"
#include <inttypes.h>

/* ---- whose value is it? -------------------------------------------------------------------------- */

struct value_owner *owner_slot(const struct check *c, struct slice value)
{
    uint64_t hash = 14695981039346656037u;
    size_t i;

    for (size_t k = 0; k < value.len; k++)
        hash = (hash ^ value.ptr[k]) * 1099511628211u;
    for (i = (hash ^ hash >> 29) & (c->owners_size - 1); c->owners[i].rec; i = (i + 1) & (c->owners_size - 1))
        if (slice_eq(c->owners[i].value, value))
            break;
    return &c->owners[i];
}

static void owner_add(struct check *c, const struct rec *r, const Etcdserverpb__PutRequest *put)
{
    struct value_owner *o = owner_slot(c, bytes_of(put->value));

    if (o->rec && o->rec != r)
        problem(c, r, "a client's mistake: the value is not unique");
    *o = (struct value_owner){bytes_of(put->value), r, 0};
}

static void owners_of_ops(struct check *c, const struct rec *r, Etcdserverpb__RequestOp **ops, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT)
            owner_add(c, r, ops[i]->request_put);
}

void owners_build(struct check *c)
{
    for (c->owners_size = 1024; c->owners_size < c->h->n * 8; c->owners_size *= 2)
        ;
    c->owners = array(c->owners_size, sizeof *c->owners);
    for (size_t i = 0; i < c->h->n; i++) {
        const struct rec *r = &c->h->recs[i];

        if (r->kind == REC_PUT)
            owner_add(c, r, (const void *)r->req);
        if (r->kind == REC_TXN) {
            const Etcdserverpb__TxnRequest *t = (const void *)r->req;

            owners_of_ops(c, r, t->success, t->n_success);
            owners_of_ops(c, r, t->failure, t->n_failure);
        }
    }
}

/* ---- doing again what a call did --------------------------------------------------------------- */

static const Mvccpb__KeyValue *replay_get(const struct replay *p, struct slice key)
{
    for (size_t i = p->n; i > 0; i--)
        if (slice_eq(bytes_of(p->effects[i - 1].kv.key), key))
            return p->effects[i - 1].deleted ? NULL : &p->effects[i - 1].kv;
    return state_at(p->c, key, p->base);
}

void replay_change(struct replay *p, const Mvccpb__KeyValue *kv, bool deleted)
{
    if (p->n == EFFECTS_MAX) {
        problem(p->c, p->rec, "too many changes in one call");
        return;
    }
    p->effects[p->n].kv = *kv;
    p->effects[p->n++].deleted = deleted;
}

static void expect_prev(struct replay *p, const char *what, const Mvccpb__KeyValue *got, const Mvccpb__KeyValue *want)
{
    if ((got == NULL) != (want == NULL) || (got && !kv_same(got, want)))
        problem(p->c, p->rec, "%s: prev_kv is not the state at revision %" PRId64, what, p->base);
}

static void replay_put(struct replay *p, const Etcdserverpb__PutRequest *put, const Etcdserverpb__PutResponse *resp)
{
    const Mvccpb__KeyValue *old = replay_get(p, bytes_of(put->key));
    Mvccpb__KeyValue kv = MVCCPB__KEY_VALUE__INIT;

    if (resp)
        expect_prev(p, "put", resp->prev_kv, put->prev_kv ? old : NULL);
    kv.key = put->key;
    kv.value = put->value;
    kv.lease = put->lease;
    kv.mod_revision = p->base + 1;
    kv.create_revision = old ? old->create_revision : p->base + 1;
    kv.version = old ? old->version + 1 : 1;
    replay_change(p, &kv, false);
}

static void replay_delete(struct replay *p, const Etcdserverpb__DeleteRangeRequest *del,
                          const Etcdserverpb__DeleteRangeResponse *resp)
{
    struct slice from = bytes_of(del->key), end = bytes_of(del->range_end);
    int64_t deleted = 0;

    for (size_t i = key_lower(p->c, from); i < p->c->n_keys && in_range(p->c->keys[i].name, from, end); i++) {
        const Mvccpb__KeyValue *old = replay_get(p, p->c->keys[i].name);

        if (old == NULL)
            continue;
        if (resp && del->prev_kv)
            expect_prev(p, "delete", (size_t)deleted < resp->n_prev_kvs ? resp->prev_kvs[deleted] : NULL, old);
        replay_change(p, old, true);
        deleted++;
    }
    if (resp && (resp->deleted != deleted || resp->n_prev_kvs != (del->prev_kv ? (size_t)deleted : 0)))
        problem(p->c, p->rec, "delete: says %" PRId64 " keys, %" PRId64 " were there", resp->deleted, deleted);
}

void replay_range(struct replay *p, const Etcdserverpb__RangeRequest *req, const Etcdserverpb__RangeResponse *resp)
{
    struct slice from = bytes_of(req->key), end = bytes_of(req->range_end);
    int64_t count = 0, limit = req->limit ? req->limit : INT64_MAX;

    for (size_t i = key_lower(p->c, from); i < p->c->n_keys && in_range(p->c->keys[i].name, from, end); i++) {
        const Mvccpb__KeyValue *kv = replay_get(p, p->c->keys[i].name);

        if (kv == NULL)
            continue;
        if (count < limit && !req->count_only && ((size_t)count >= resp->n_kvs || !kv_same(resp->kvs[count], kv)))
            problem(p->c, p->rec, "read: %.*s is not as it was at revision %" PRId64 " (%.*s at %" PRId64 ")",
                    (int)kv->key.len, kv->key.data, p->base, (int)kv->value.len, kv->value.data, kv->mod_revision);
        count++;
    }
    if (resp->count != count || (!req->count_only && resp->n_kvs != (size_t)(count < limit ? count : limit)) ||
        (!req->count_only && resp->more != (count > limit)))
        problem(p->c, p->rec, "read: count %" PRId64 " with %zu keys, at revision %" PRId64 " there were %" PRId64,
                resp->count, resp->n_kvs, p->base, count);
}

static int order_of(int64_t a, int64_t b) { return (a > b) - (a < b); }

static bool compare_holds(const Etcdserverpb__Compare *m, const Mvccpb__KeyValue *kv)
{
    int o = 0;

    switch (m->target) {
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__VERSION:
        o = order_of(kv->version, m->version);
        break;
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE:
        o = order_of(kv->create_revision, m->create_revision);
        break;
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD:
        o = order_of(kv->mod_revision, m->mod_revision);
        break;
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__LEASE:
        o = order_of(kv->lease, m->lease);
        break;
    default:
        o = slice_cmp(bytes_of(kv->value), bytes_of(m->value));
        break;
    }
    switch (m->result) {
    case ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL:
        return o == 0;
    case ETCDSERVERPB__COMPARE__COMPARE_RESULT__GREATER:
        return o > 0;
    case ETCDSERVERPB__COMPARE__COMPARE_RESULT__LESS:
        return o < 0;
    default:
        return o != 0;
    }
}

static bool compares_hold(const struct replay *p, const Etcdserverpb__TxnRequest *t)
{
    static const Mvccpb__KeyValue none = MVCCPB__KEY_VALUE__INIT;

    for (size_t i = 0; i < t->n_compare; i++) {
        const Mvccpb__KeyValue *kv = replay_get(p, bytes_of(t->compare[i]->key));

        if (kv == NULL && t->compare[i]->target == ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE)
            return false;
        if (!compare_holds(t->compare[i], kv ? kv : &none))
            return false;
    }
    return true;
}

static bool op_answered(const Etcdserverpb__RequestOp *op, const Etcdserverpb__ResponseOp *resp)
{
    return (int)op->request_case == (int)resp->response_case && resp->response_range; /* a union: any of them */
}

static void replay_txn(struct replay *p, const Etcdserverpb__TxnRequest *t, const Etcdserverpb__TxnResponse *resp)
{
    bool holds = compares_hold(p, t);
    size_t n = holds ? t->n_success : t->n_failure;

    if (resp && ((bool)resp->succeeded != holds || resp->n_responses != n)) {
        problem(p->c, p->rec, "txn: on the state at revision %" PRId64 " it %s", p->base,
                holds ? "holds" : "does not hold");
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const Etcdserverpb__RequestOp *op = holds ? t->success[i] : t->failure[i];
        const Etcdserverpb__ResponseOp *a = resp ? resp->responses[i] : NULL;

        if (a && !op_answered(op, a)) {
            problem(p->c, p->rec, "txn: answer %zu is of another kind", i);
            return;
        }
        if (op->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT)
            replay_put(p, op->request_put, a ? a->response_put : NULL);
        else if (op->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE)
            replay_delete(p, op->request_delete_range, a ? a->response_delete_range : NULL);
        else if (op->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE && a)
            replay_range(p, op->request_range, a->response_range);
    }
}

/* May all below `from` move, by the state? One bit for each answer that is true. */
static unsigned rename_outcomes(const struct replay *p, const Cairn__RenameRequest *r, int64_t *ret_keys)
{
    struct slice from = bytes_of(r->from), to = bytes_of(r->to);
    bool changed = false;

    *ret_keys = 0;
    for (size_t i = key_lower(p->c, from); i < p->c->n_keys && slice_has_prefix(p->c->keys[i].name, from); i++) {
        const Mvccpb__KeyValue *kv = replay_get(p, p->c->keys[i].name);

        changed |= kv && kv->mod_revision > r->revision;
        *ret_keys += kv != NULL;
    }
    for (size_t i = key_lower(p->c, to); i < p->c->n_keys && slice_has_prefix(p->c->keys[i].name, to); i++)
        changed |= replay_get(p, p->c->keys[i].name) != NULL;
    if (!changed && *ret_keys)
        return 1u << CAIRN__RENAME_RESPONSE__OUTCOME__DONE;
    return (changed ? 1u << CAIRN__RENAME_RESPONSE__OUTCOME__CHANGED : 0) |
           (*ret_keys == 0 ? 1u << CAIRN__RENAME_RESPONSE__OUTCOME__NOTHING : 0);
}

/* The name that a key below `from` has below `to`, as the order has it: nowhere else is it kept. NULL: nowhere. */
static const struct state_key *renamed(const struct replay *p, const Cairn__RenameRequest *r, struct slice name)
{
    struct slice to = bytes_of(r->to), rest = slice_of(name.ptr + r->from.len, name.len - r->from.len);

    for (size_t i = key_lower(p->c, to); i < p->c->n_keys && slice_has_prefix(p->c->keys[i].name, to); i++) {
        struct slice new = p->c->keys[i].name;

        if (slice_eq(slice_of(new.ptr + to.len, new.len - to.len), rest))
            return &p->c->keys[i];
    }
    return NULL;
}

static void rename_move(struct replay *p, const Cairn__RenameRequest *r)
{
    struct slice from = bytes_of(r->from);
    size_t first = key_lower(p->c, from), end = first;

    for (; end < p->c->n_keys && slice_has_prefix(p->c->keys[end].name, from); end++)
        if (state_at(p->c, p->c->keys[end].name, p->base))
            replay_change(p, state_at(p->c, p->c->keys[end].name, p->base), true);
    for (size_t i = first; i < end; i++) {
        const Mvccpb__KeyValue *old = state_at(p->c, p->c->keys[i].name, p->base);
        const struct state_key *new = old ? renamed(p, r, p->c->keys[i].name) : NULL;
        Mvccpb__KeyValue kv = MVCCPB__KEY_VALUE__INIT;

        if (old == NULL)
            continue;
        kv.key = new ? (ProtobufCBinaryData){new->name.len, (uint8_t *)(uintptr_t)new->name.ptr} : old->key;
        kv.value = old->value;
        kv.lease = old->lease;
        kv.mod_revision = kv.create_revision = p->base + 1;
        kv.version = 1;
        replay_change(p, &kv, false);
    }
}

static void replay_rename(struct replay *p, const Cairn__RenameRequest *r, const Cairn__RenameResponse *resp)
{
    int64_t keys;
    unsigned outcomes = rename_outcomes(p, r, &keys);
    bool done = outcomes == 1u << CAIRN__RENAME_RESPONSE__OUTCOME__DONE;

    if (resp && (!(outcomes >> resp->outcome & 1) || resp->keys != (done ? keys : 0)))
        problem(p->c, p->rec, "rename: of %" PRId64 " keys at revision %" PRId64 ", where %#x may be answered", keys,
                p->base, outcomes);
    if (done)
        rename_move(p, r);
}

void replay(struct replay *p, struct check *c, const struct rec *r, int64_t base)
{
    const void *resp = r->outcome == DONE ? r->resp : NULL;

    p->c = c;
    p->rec = r;
    p->base = base;
    p->n = 0;
    if (r->kind == REC_PUT)
        replay_put(p, (const void *)r->req, resp);
    else if (r->kind == REC_DELETE)
        replay_delete(p, (const void *)r->req, resp);
    else if (r->kind == REC_TXN)
        replay_txn(p, (const void *)r->req, resp);
    else if (r->kind == REC_RENAME)
        replay_rename(p, (const void *)r->req, resp);
}

bool replay_is(const struct replay *p, const struct commit *m)
{
    bool same = p->n == m->n;

    for (size_t i = 0; same && i < p->n; i++) {
        const Mvccpb__Event *e = m->events[i];
        bool deleted = e->type == MVCCPB__EVENT__EVENT_TYPE__DELETE;

        same = p->effects[i].deleted == deleted && slice_eq(bytes_of(p->effects[i].kv.key), bytes_of(e->kv->key)) &&
               (deleted || kv_same(&p->effects[i].kv, e->kv));
    }
    return same;
}

/* The commit must be what the call does to the state before it. */
static void check_effect(struct check *c, const struct rec *r, int64_t rev)
{
    struct commit *m = &c->commits[rev];
    struct replay p;

    m->writer = r;
    if (rev <= rev_seen_before(&c->seen, r->start_ns))
        problem(c, r, "real time: stands at revision %" PRId64 ", seen before it began", rev);
    replay(&p, c, r, rev - 1);
    if (!replay_is(&p, m))
        problem(c, r, "writes: revision %" PRId64 " is not what this does (%zu changes for %zu)", rev, m->n, p.n);
}

/* ---- writes -------------------------------------------------------------------------------------- */

bool is_write(enum rec_kind kind)
{
    return kind == REC_PUT || kind == REC_DELETE || kind == REC_TXN || kind == REC_RENAME;
}

bool has_effect(const struct rec *r)
{
    const Etcdserverpb__TxnResponse *t = (const void *)r->resp;

    if (r->kind == REC_PUT)
        return true;
    if (r->kind == REC_RENAME)
        return ((const Cairn__RenameResponse *)r->resp)->outcome == CAIRN__RENAME_RESPONSE__OUTCOME__DONE;
    if (r->kind == REC_DELETE)
        return ((const Etcdserverpb__DeleteRangeResponse *)r->resp)->deleted > 0;
    for (size_t i = 0; i < t->n_responses; i++) {
        const Etcdserverpb__ResponseOp *a = t->responses[i];

        if (a->response_case == ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_PUT)
            return true;
        if (a->response_case == ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_DELETE_RANGE &&
            a->response_delete_range && a->response_delete_range->deleted > 0)
            return true;
    }
    return false;
}

/* Notes each answered write at its revision; what changed nothing is compared with the state there. */
static void place_acked(struct check *c)
{
    struct replay p;

    for (size_t i = 0; i < c->h->n; i++) {
        const struct rec *r = &c->h->recs[i];
        int64_t rev;

        if (!is_write(r->kind) || r->outcome != DONE)
            continue;
        rev = revision_told(r);
        c->facts.writes++;
        c->facts.renames += r->kind == REC_RENAME && has_effect(r);
        c->facts.renames_none += r->kind == REC_RENAME && !has_effect(r);
        if (rev < 1 + has_effect(r) || rev > c->last) {
            problem(c, r, "writes: acknowledged at revision %" PRId64 ", the last is %" PRId64, rev, c->last);
        } else if (!has_effect(r)) {
            replay(&p, c, r, rev);
            if (p.n)
                problem(c, r, "writes: says that it changed nothing");
        } else if (c->acked[rev]) {
            problem(c, r, "writes: revision %" PRId64 " was given to two calls", rev);
        } else {
            c->acked[rev] = r;
        }
    }
}

static struct value_owner *commit_owner(const struct check *c, const struct commit *m)
{
    for (size_t i = 0; i < m->n; i++)
        if (m->events[i]->type == MVCCPB__EVENT__EVENT_TYPE__PUT)
            return owner_slot(c, bytes_of(m->events[i]->kv->value));
    return NULL;
}

/* What stands there is of this call: may it be, and is it what the call does? */
static void commit_of(struct check *c, int64_t rev, const struct rec *r)
{
    if (r->outcome == REFUSED)
        problem(c, r, "writes: was refused, and stands at revision %" PRId64, rev);
    if (r->outcome == DONE && c->acked[rev] != r)
        problem(c, r, "writes: stands at revision %" PRId64 ", which is not what it was answered", rev);
    c->facts.unknown_found += r->outcome == UNKNOWN;
    check_effect(c, r, rev);
}

static void commit_of_put(struct check *c, int64_t rev, struct value_owner *o)
{
    const struct rec *r = o->rec;

    if (r == NULL) {
        problem(c, NULL, "writes: nobody wrote what stands at revision %" PRId64, rev);
        return;
    }
    if (o->rev)
        problem(c, r, "writes: stands twice, at revisions %" PRId64 " and %" PRId64, o->rev, rev);
    o->rev = rev;
    commit_of(c, rev, r);
}

/* Deletes, then puts below a name that a rename was to make: the rename. NULL: it is another write. */
static const struct rec *commit_rename(const struct check *c, const struct commit *m)
{
    const Mvccpb__Event *last = m->n > 1 ? m->events[m->n - 1] : NULL;

    if (last == NULL || last->type != MVCCPB__EVENT__EVENT_TYPE__PUT ||
        m->events[0]->type != MVCCPB__EVENT__EVENT_TYPE__DELETE)
        return NULL;
    for (size_t i = 0; i < c->h->n; i++)
        if (c->h->recs[i].kind == REC_RENAME &&
            slice_has_prefix(bytes_of(last->kv->key), bytes_of(((const Cairn__RenameRequest *)c->h->recs[i].req)->to)))
            return &c->h->recs[i];
    return NULL;
}

static void commit_of_rename(struct check *c, int64_t rev, const struct rec *r)
{
    for (int64_t before = 2; before < rev; before++)
        if (c->commits[before].writer == r)
            problem(c, r, "writes: stands twice, at revisions %" PRId64 " and %" PRId64, before, rev);
    commit_of(c, rev, r);
}

static int by_start(const void *a, const void *b)
{
    const struct rec *x = *(const struct rec *const *)a, *y = *(const struct rec *const *)b;

    return (x->start_ns > y->start_ns) - (x->start_ns < y->start_ns);
}

/* A delete without an answer may be any delete of its key after it began, and each may be one. Those asked for first
 * are used first: what one of them may be, an earlier one may be too. */
static void commits_of_deletes(struct check *c, const int64_t *revs, size_t n)
{
    const struct rec **open = array(c->h->n, sizeof *open);
    size_t n_open = 0;

    for (size_t i = 0; i < c->h->n; i++)
        if (c->h->recs[i].kind == REC_DELETE && c->h->recs[i].outcome == UNKNOWN)
            open[n_open++] = &c->h->recs[i];
    qsort(open, n_open, sizeof *open, by_start);
    for (size_t i = 0; i < n; i++) {
        const struct commit *m = &c->commits[revs[i]];
        size_t k;

        for (k = 0; k < n_open; k++) {
            const struct rec *r = open[k];

            if (r && slice_eq(bytes_of(((const Etcdserverpb__DeleteRangeRequest *)r->req)->key),
                              bytes_of(m->events[0]->kv->key)) &&
                revs[i] > rev_seen_before(&c->seen, r->start_ns))
                break;
        }
        if (k == n_open || m->n != 1) {
            problem(c, NULL, "writes: nobody deleted %.*s at revision %" PRId64, (int)m->events[0]->kv->key.len,
                    m->events[0]->kv->key.data, revs[i]);
            continue;
        }
        c->facts.unknown_found++;
        check_effect(c, open[k], revs[i]);
        open[k] = NULL;
    }
    free(open);
}

void check_writes(struct check *c)
{
    int64_t *deletes = array((size_t)c->last, sizeof *deletes);
    size_t n = 0;

    place_acked(c);
    for (int64_t rev = 2; rev <= c->last; rev++) {
        const struct rec *rename = commit_rename(c, &c->commits[rev]);
        struct value_owner *o = commit_owner(c, &c->commits[rev]);

        if (rename)
            commit_of_rename(c, rev, rename);
        else if (o)
            commit_of_put(c, rev, o);
        else if (c->acked[rev] && c->acked[rev]->kind == REC_DELETE)
            check_effect(c, c->acked[rev], rev);
        else if (!lease_ended_here(c, rev))
            deletes[n++] = rev;
        if (c->acked[rev] && c->commits[rev].writer != c->acked[rev])
            problem(c, c->acked[rev], "writes: what was acknowledged at revision %" PRId64 " does not stand there",
                    rev);
    }
    commits_of_deletes(c, deletes, n);
    free(deletes);
    for (size_t i = 0; i < c->h->n; i++)
        if (is_write(c->h->recs[i].kind)) {
            c->facts.unknown += c->h->recs[i].outcome == UNKNOWN;
            c->facts.refused += c->h->recs[i].outcome == REFUSED;
        }
}
