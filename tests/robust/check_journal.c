/* SPDX-License-Identifier: Apache-2.0 */
/* check_journal.c - the second witness: what the members' logs say was committed, entry by entry.
 *
 *   log        of two entries with one index and term, kept or cut, the bytes are the same; logs that share an entry
 *              share all before it; a term has one leader; what is committed stands on a majority and nowhere differs
 *   order      each entry done again on the state before it makes the next revision of the witness' order, or none,
 *              and that revision was acknowledged to who asked for it and to nobody else
 *   counts     what was acknowledged is in the log, and nothing is oftener in it than it was asked for
 *
 * Of a member that was given a snapshot the log begins behind it; another mostly has what is missing. If none has it,
 * the order begins at the first put that the witness knows, and nothing is said about what came before.
 */
#include "check_impl.h"
#include <inttypes.h>
#include <stdarg.h>

/* FOUNDED: of the founding itself, the members' configuration; it is in no log. */
enum { ALARMS = 16, FOUNDED = 1 };

/* A request, in a record or in an entry of the log. */
struct asked {
    enum rec_kind kind;
    struct slice bytes;    /* owned */
    const struct rec *rec; /* NULL: in the log ... */
    uint64_t index;        /* ... here, ... */
    int64_t rev;           /* ... and after it the store was at this revision; 0: not known */
};

struct replayed_lease { int64_t id; bool alive; };

struct order {
    struct check *c;
    int64_t rev; /* 0: not known yet */
    bool over;   /* it went wrong: what follows would only say it again */
    uint64_t index;
    struct asked *asked;
    size_t n_asked, room_asked;
    struct replayed_lease *leases;
    size_t n_leases, room_leases;
    struct { uint64_t member; int type; } alarms[ALARMS];
    size_t n_alarms;
};

static void grown(void **array, size_t n, size_t *room, size_t size)
{
    if (n < *room)
        return;
    *room = *room ? *room * 2 : 256;
    *array = realloc(*array, *room * size);
    assert(*array);
}

/* ---- the logs beside each other --------------------------------------------------------------------- */

struct written {
    const struct journal_entry *e;
    int log;
};

static int by_index_and_term(const void *a, const void *b)
{
    const struct journal_entry *x = ((const struct written *)a)->e, *y = ((const struct written *)b)->e;

    if (x->index != y->index)
        return x->index < y->index ? -1 : 1;
    return (x->term > y->term) - (x->term < y->term);
}

static int by_term_and_index(const void *a, const void *b)
{
    const struct journal_entry *x = ((const struct written *)a)->e, *y = ((const struct written *)b)->e;

    if (x->term != y->term)
        return x->term < y->term ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

/* All that was ever written, also what was cut off again. */
static void check_all_written(struct check *c, const struct journal *logs)
{
    struct written *all;
    size_t n = 0, room = 1;

    for (int l = 0; l < c->n_logs; l++)
        room += logs[l].n + logs[l].n_cut;
    all = malloc(room * sizeof *all);
    assert(all);
    for (int l = 0; l < c->n_logs; l++) {
        for (size_t i = 0; i < logs[l].n; i++)
            all[n++] = (struct written){&logs[l].entries[i], l};
        for (size_t i = 0; i < logs[l].n_cut; i++)
            all[n++] = (struct written){&logs[l].cut[i], l};
        c->facts.entries_cut += logs[l].n_cut;
    }
    qsort(all, n, sizeof *all, by_index_and_term);
    for (size_t i = 1; i < n; i++)
        if (by_index_and_term(&all[i - 1], &all[i]) == 0 && !slice_eq(all[i - 1].e->payload, all[i].e->payload))
            problem(c, NULL, "log: members %d and %d have different entries of index %" PRIu64 " and term %" PRIu64,
                    all[i - 1].log + 1, all[i].log + 1, all[i].e->index, all[i].e->term);
    qsort(all, n, sizeof *all, by_term_and_index);
    for (size_t i = 0, leader = n; i < n; i++) { /* who has been elected begins with an empty entry */
        if (all[i].e->payload.len)
            continue;
        if (leader < n && all[leader].e->term == all[i].e->term && all[leader].e->index != all[i].e->index)
            problem(c, NULL, "log: term %" PRIu64 " has leaders at index %" PRIu64 " and %" PRIu64, all[i].e->term,
                    all[leader].e->index, all[i].e->index);
        leader = i;
    }
    free(all);
}

/* If two share an entry, they share all that they have before it. */
static void check_matching(struct check *c, const struct journal *a, const struct journal *b, int x, int y)
{
    uint64_t last = journal_last(a) < journal_last(b) ? journal_last(a) : journal_last(b);
    uint64_t base = a->base > b->base ? a->base : b->base;
    bool shared = false;

    for (uint64_t i = last; i > base; i--) {
        bool same = journal_at(a, i)->term == journal_at(b, i)->term;

        if (shared && !same) {
            problem(c, NULL, "log: members %d and %d share an entry after index %" PRIu64 ", and differ there", x, y,
                    i);
            return;
        }
        shared = same;
    }
}

static int majority(const struct check *c)
{
    return c->n_logs / 2 + 1;
}

static void check_committed(struct check *c, const struct journal *logs)
{
    uint64_t commit = 0;

    for (int l = 0; l < c->n_logs; l++)
        if (logs[l].commit > commit)
            commit = logs[l].commit;
    for (uint64_t i = FOUNDED + 1; i <= commit; i++) {
        uint64_t term = 0;
        int has = 0;

        for (int l = 0; l < c->n_logs; l++) {
            const struct journal_entry *e = journal_at(&logs[l], i);

            has += e != NULL || i <= logs[l].base;
            if (e && term && e->term != term)
                problem(c, NULL, "log: index %" PRIu64 " is committed, and has the terms %" PRIu64 " and %" PRIu64, i,
                        term, e->term);
            if (e)
                term = e->term;
        }
        if (has < majority(c))
            problem(c, NULL, "log: index %" PRIu64 " is committed, and on %d members", i, has);
    }
}

static const struct journal_entry *entry_of_any(const struct check *c, const struct journal *logs, uint64_t index)
{
    for (int l = 0; l < c->n_logs; l++)
        if (journal_at(&logs[l], index))
            return journal_at(&logs[l], index);
    return NULL;
}

/* How many have the entry that member `l` has there. */
static int sharers(const struct check *c, const struct journal *logs, int l, uint64_t index)
{
    const struct journal_entry *x = journal_at(&logs[l], index);
    int n = 0;

    for (int k = 0; x && k < c->n_logs; k++) {
        const struct journal_entry *y = journal_at(&logs[k], index);

        n += y && x->term == y->term;
    }
    return n;
}

/* The last index that is the same on a majority: all has come to rest, so there is nothing to be committed after it. */
static uint64_t last_of_most(const struct check *c, const struct journal *logs)
{
    uint64_t end = 0;

    for (int l = 0; l < c->n_logs; l++)
        for (uint64_t i = journal_last(&logs[l]); i > end; i--)
            if (sharers(c, logs, l, i) >= majority(c))
                end = i;
    return end;
}

/* ---- the order, once more ------------------------------------------------------------------------------ */

__attribute__((format(printf, 2, 3))) static void order_problem(struct order *o, const char *format, ...)
{
    char text[300];
    va_list ap;

    va_start(ap, format);
    (void)vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    problem(o->c, NULL, "log: index %" PRIu64 ": %s", o->index, text);
    o->over = true;
}

/* Takes bytes. */
static void note_asked(struct order *o, enum rec_kind kind, struct slice bytes, const struct rec *rec)
{
    grown((void **)&o->asked, o->n_asked, &o->room_asked, sizeof *o->asked);
    o->asked[o->n_asked++] = (struct asked){kind, bytes, rec, o->index, rec ? 0 : o->rev};
}

/* What a request is known by: of a grant the id, for a member may raise the TTL; else all of it. */
static struct slice asked_bytes(enum rec_kind kind, const ProtobufCMessage *req)
{
    size_t n = kind == REC_GRANT ? 8 : protobuf_c_message_get_packed_size(req);
    uint8_t *bytes = malloc(n + 1);

    assert(bytes);
    if (kind == REC_GRANT)
        put_u64le(bytes, (uint64_t)((const Etcdserverpb__LeaseGrantRequest *)req)->id);
    else
        protobuf_c_message_pack(req, bytes);
    return slice_of(bytes, n);
}

static bool nospace(const struct order *o)
{
    for (size_t i = 0; i < o->n_alarms; i++)
        if (o->alarms[i].type == ETCDSERVERPB__ALARM_TYPE__NOSPACE)
            return true;
    return false;
}

static struct replayed_lease *lease_known(const struct order *o, int64_t id)
{
    for (size_t i = o->n_leases; i > 0; i--)
        if (o->leases[i - 1].id == id)
            return &o->leases[i - 1];
    return NULL;
}

static void lease_set(struct order *o, int64_t id, bool alive)
{
    struct replayed_lease *l = lease_known(o, id);

    if (l == NULL) {
        grown((void **)&o->leases, o->n_leases, &o->room_leases, sizeof *o->leases);
        l = &o->leases[o->n_leases++];
    }
    *l = (struct replayed_lease){id, alive};
}

/* If what has been done again changed something, that is the next revision. */
static void commit_next(struct order *o, const struct replay *p, enum rec_kind kind, struct slice bytes)
{
    int64_t rev = o->rev + 1;
    const struct rec *acked;
    struct slice said;
    bool same;

    if (p->n == 0)
        return;
    if (rev > o->c->last) {
        order_problem(o, "makes revision %" PRId64 ", the witness' last is %" PRId64, rev, o->c->last);
        return;
    }
    if (!replay_is(p, &o->c->commits[rev])) {
        order_problem(o, "%s, %zu changes, is not what the witness has at revision %" PRId64 " (%zu changes)",
                      rec_name(kind), p->n, rev, o->c->commits[rev].n);
        return;
    }
    acked = o->c->acked[rev];
    if (acked) {
        said = asked_bytes(acked->kind, acked->req);
        same = acked->kind == kind && slice_eq(said, bytes);
        free((void *)(uintptr_t)said.ptr);
        if (!same)
            order_problem(o, "revision %" PRId64 " was acknowledged to another call", rev);
    }
    o->rev = rev;
    o->c->facts.entries_revs++;
}

/* Not all of the log is there: a put of which the witness knows the revision says where we are. */
static void find_place(struct order *o, const Etcdserverpb__PutRequest *put)
{
    const struct value_owner *owner = owner_slot(o->c, bytes_of(put->value));

    if (o->rev == 0 && owner->rec && owner->rev)
        o->rev = owner->rev - 1;
}

static bool put_is_refused(const struct order *o, const Etcdserverpb__PutRequest *put)
{
    const struct replayed_lease *l = put->lease ? lease_known(o, put->lease) : NULL;

    if (l || put->lease == 0)
        return l && !l->alive;
    return owner_slot(o->c, bytes_of(put->value))->rev != o->rev + 1; /* its grant lies before what we have */
}

static bool has_puts(Etcdserverpb__RequestOp *const *ops, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT)
            return true;
    return false;
}

static bool is_refused(const struct order *o, const struct rec *r)
{
    const Etcdserverpb__TxnRequest *t = (const void *)r->req;

    if (r->kind == REC_PUT)
        return nospace(o) || put_is_refused(o, (const void *)r->req);
    if (r->kind == REC_RENAME)
        return nospace(o);
    return r->kind == REC_TXN && nospace(o) &&
           (has_puts(t->success, t->n_success) || has_puts(t->failure, t->n_failure));
}

static void do_write(struct order *o, enum rec_kind kind, const ProtobufCMessage *req, struct slice bytes)
{
    struct rec r = {.kind = kind, .outcome = UNKNOWN, .req = (ProtobufCMessage *)(uintptr_t)req};
    struct replay p;

    if (kind == REC_PUT)
        find_place(o, (const void *)req);
    if (o->rev == 0 || is_refused(o, &r))
        return;
    replay(&p, o->c, &r, o->rev);
    commit_next(o, &p, kind, bytes);
}

/* All keys of a lease go at once; one that is gone already has none. */
static void end_of_lease(struct order *o, int64_t id)
{
    struct replay p = {.c = o->c, .base = o->rev};

    lease_set(o, id, false);
    for (size_t k = 0; o->rev && k < o->c->n_keys; k++) {
        const Mvccpb__KeyValue *kv = state_at(o->c, o->c->keys[k].name, o->rev);

        if (kv && kv->lease == id)
            replay_change(&p, kv, true);
    }
    if (o->rev)
        commit_next(o, &p, REC_REVOKE, SLICE_NONE);
}

static void do_alarm(struct order *o, const Etcdserverpb__AlarmRequest *a)
{
    size_t i = 0;

    while (i < o->n_alarms && (o->alarms[i].member != a->memberid || o->alarms[i].type != (int)a->alarm))
        i++;
    if (a->action == ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__DEACTIVATE && i < o->n_alarms) {
        o->alarms[i] = o->alarms[--o->n_alarms];
    } else if (a->action == ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__ACTIVATE && i == o->n_alarms && i < ALARMS) {
        o->alarms[i].member = a->memberid;
        o->alarms[o->n_alarms++].type = (int)a->alarm;
        if (a->alarm == ETCDSERVERPB__ALARM_TYPE__CORRUPT)
            order_problem(o, "member %" PRIx64 " is said to be corrupt", a->memberid);
    }
}

static void do_request(struct order *o, enum rec_kind kind, struct slice body)
{
    ProtobufCMessage *req = protobuf_c_message_unpack(rec_request(kind), NULL, body.len, body.ptr);
    struct slice bytes;

    if (req == NULL) {
        order_problem(o, "a %s that cannot be read", rec_name(kind));
        return;
    }
    bytes = asked_bytes(kind, req);
    if (is_write(kind))
        do_write(o, kind, req, bytes);
    else if (kind == REC_REVOKE)
        end_of_lease(o, ((const Etcdserverpb__LeaseRevokeRequest *)req)->id);
    else if (kind == REC_GRANT && !nospace(o))
        lease_set(o, ((const Etcdserverpb__LeaseGrantRequest *)req)->id, true);
    note_asked(o, kind, bytes, NULL);
    protobuf_c_message_free_unpacked(req, NULL);
}

static void do_entry(struct order *o, const struct journal_entry *e)
{
    static const enum rec_kind kinds[JOURNAL_KINDS] = {
        [JOURNAL_PUT] = REC_PUT,         [JOURNAL_DELETE] = REC_DELETE, [JOURNAL_TXN] = REC_TXN,
        [JOURNAL_COMPACT] = REC_COMPACT, [JOURNAL_GRANT] = REC_GRANT,   [JOURNAL_REVOKE] = REC_REVOKE,
        [JOURNAL_RENAME] = REC_RENAME,
    };
    enum journal_kind kind;
    uint64_t term;
    struct slice body;
    Etcdserverpb__AlarmRequest *alarm;

    o->index = e->index;
    if (!journal_parse(e->payload, &kind, &term, &body)) {
        order_problem(o, "an entry that cannot be read");
        return;
    }
    if (term && term != e->term)
        return; /* it means nothing in another term than its own */
    if ((kind >= JOURNAL_PUT && kind <= JOURNAL_REVOKE) || kind == JOURNAL_RENAME) {
        do_request(o, kinds[kind], body);
    } else if (kind == JOURNAL_EXPIRE) {
        for (size_t i = 0; i + 8 <= body.len && !o->over; i += 8)
            end_of_lease(o, (int64_t)get_u64le(body.ptr + i));
    } else if (kind == JOURNAL_ALARM) {
        alarm = etcdserverpb__alarm_request__unpack(NULL, body.len, body.ptr);
        if (alarm)
            do_alarm(o, alarm);
        else
            order_problem(o, "an alarm that cannot be read");
        etcdserverpb__alarm_request__free_unpacked(alarm, NULL);
    }
}

/* ---- how often? ------------------------------------------------------------------------------------------ */

static int by_request(const void *a, const void *b)
{
    const struct asked *x = a, *y = b;

    return x->kind != y->kind ? (x->kind > y->kind) - (x->kind < y->kind) : slice_cmp(x->bytes, y->bytes);
}

/* All that are equal: in the log as often as it may be? */
static void check_count(struct order *o, const struct asked *a, size_t n, bool whole)
{
    const struct rec *any = NULL;
    const struct asked *stands = NULL;
    unsigned in_log = 0, acked = 0;

    for (size_t i = 0; i < n; i++) {
        if (a[i].rec)
            any = a[i].rec;
        else
            stands = &a[i];
        in_log += a[i].rec == NULL;
        acked += a[i].rec && a[i].rec->outcome == DONE;
    }
    if (in_log > n - in_log)
        problem(o->c, any, "log: a %s asked for %zu times stands in it %u times, last at index %" PRIu64,
                rec_name(a[0].kind), n - in_log, in_log, stands->index);
    if (whole && acked > in_log)
        problem(o->c, any, "log: a %s acknowledged %u times stands in it %u times", rec_name(a[0].kind), acked, in_log);
    if (n == 2 && in_log == 1 && acked == 1 && is_write(any->kind) && !has_effect(any) && stands->rev &&
        rec_header(any)->revision != stands->rev)
        problem(o->c, any, "log: answered at revision %" PRId64 ", and changed nothing at %" PRId64 ", index %" PRIu64,
                rec_header(any)->revision, stands->rev, stands->index);
}

static void check_counts(struct order *o, bool whole)
{
    const struct history *h = o->c->h;

    for (size_t i = 0; i < h->n; i++) {
        const struct rec *r = &h->recs[i];

        if (is_write(r->kind) || r->kind == REC_COMPACT || r->kind == REC_GRANT || r->kind == REC_REVOKE)
            note_asked(o, r->kind, asked_bytes(r->kind, r->req), r);
    }
    qsort(o->asked, o->n_asked, sizeof *o->asked, by_request);
    for (size_t i = 0, n; i < o->n_asked; i += n) {
        for (n = 1; i + n < o->n_asked && by_request(&o->asked[i], &o->asked[i + n]) == 0; n++)
            ;
        check_count(o, &o->asked[i], n, whole);
    }
}

void check_journals(struct check *c, const struct journal *logs)
{
    struct order o = {.c = c};
    uint64_t end = last_of_most(c, logs), first = end + 1;
    bool sound = true;

    for (int l = 0; l < c->n_logs; l++) {
        if (logs[l].error[0])
            problem(c, NULL, "log: of member %d: %s", l + 1, logs[l].error);
        sound &= logs[l].error[0] == 0;
    }
    if (!sound)
        return; /* the rest of that one was not read */
    check_all_written(c, logs);
    for (int a = 0; a < c->n_logs; a++)
        for (int b = a + 1; b < c->n_logs; b++)
            check_matching(c, &logs[a], &logs[b], a + 1, b + 1);
    check_committed(c, logs);
    while (first > FOUNDED + 1 && entry_of_any(c, logs, first - 1))
        first--;
    c->facts.entries = end + 1 - first;
    c->facts.entries_from = first;
    o.rev = first == FOUNDED + 1;
    for (uint64_t i = first; i <= end && !o.over; i++)
        do_entry(&o, entry_of_any(c, logs, i));
    if (!o.over) {
        if (o.rev != c->last)
            problem(c, NULL, "log: it ends at revision %" PRId64 ", the witness at %" PRId64, o.rev, c->last);
        check_counts(&o, first == FOUNDED + 1);
    }
    for (size_t i = 0; i < o.n_asked; i++)
        free((void *)(uintptr_t)o.asked[i].bytes.ptr);
    free(o.asked);
    free(o.leases);
}
