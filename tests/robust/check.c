/* SPDX-License-Identifier: Apache-2.0 */
/* check.c - the committed order as the witness was told it; time, reads and the end compared with it. check.h says what
 * is checked. */
#include "check_impl.h"
#include <inttypes.h>
#include <stdarg.h>

void problem(struct check *c, const struct rec *r, const char *format, ...)
{
    va_list ap;

    if (c->problems++ >= PROBLEMS_TOLD)
        return;
    (void)fputs("problem: ", c->out);
    va_start(ap, format);
    (void)vfprintf(c->out, format, ap);
    va_end(ap);
    (void)fputs("\n", c->out);
    if (r) {
        (void)fputs("    ", c->out);
        rec_print(c->out, r);
    }
}

/* ---- time -------------------------------------------------------------------------------------- */

static int by_time(const void *a, const void *b)
{
    const int64_t *x = a, *y = b; /* at_ns is a mark's first field */

    return (*x > *y) - (*x < *y);
}

int64_t revision_told(const struct rec *r)
{
    const Etcdserverpb__ResponseHeader *header = rec_header(r);

    return header && r->kind != REC_HASH ? header->revision : 0;
}

static void tide_sort(struct tide *t)
{
    qsort(t->marks, t->n, sizeof *t->marks, by_time);
    for (size_t i = 1; i < t->n; i++)
        if (t->marks[i].rev < t->marks[i - 1].rev)
            t->marks[i].rev = t->marks[i - 1].rev;
}

static void tide_all(struct check *c)
{
    c->seen.marks = array(c->h->n, sizeof *c->seen.marks);
    for (size_t i = 0; i < c->h->n; i++) {
        const struct rec *r = &c->h->recs[i];

        if (revision_told(r)) {
            c->seen.marks[c->seen.n].at_ns = r->end_ns;
            c->seen.marks[c->seen.n++].rev = revision_told(r);
        }
    }
    tide_sort(&c->seen);
}

int64_t rev_seen_before(const struct tide *t, int64_t ns)
{
    size_t lo = 0, hi = t->n;

    while (lo < hi) {
        size_t mid = (lo + hi) / 2;

        if (t->marks[mid].at_ns < ns)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo ? t->marks[lo - 1].rev : 0;
}

int64_t time_seen(const struct tide *t, int64_t rev)
{
    size_t lo = 0, hi = t->n;

    while (lo < hi) {
        size_t mid = (lo + hi) / 2;

        if (t->marks[mid].rev < rev)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < t->n ? t->marks[lo].at_ns : INT64_MAX;
}

/* Does its answer mark a moment after everything it follows? Keep-alives and lists of leases are answered by what one
 * member knows. */
static bool is_linearizable(const struct rec *r)
{
    switch (r->kind) {
    case REC_RANGE:
        return !((const Etcdserverpb__RangeRequest *)r->req)->serializable;
    case REC_PUT:
    case REC_DELETE:
    case REC_TXN:
    case REC_RENAME:
    case REC_GRANT:
    case REC_REVOKE:
        return true;
    default:
        return false;
    }
}

static void check_real_time(struct check *c)
{
    for (size_t i = 0; i < c->h->n; i++) {
        const struct rec *r = &c->h->recs[i];
        int64_t rev = revision_told(r), seen;

        if (r->outcome != DONE || r->resp == NULL || !is_linearizable(r))
            continue;
        seen = rev_seen_before(&c->seen, r->start_ns);
        if (rev < seen)
            problem(c, r, "real time: answered at revision %" PRId64 ", but %" PRId64 " had been seen before it began",
                    rev, seen);
    }
}

static int by_member(const void *a, const void *b)
{
    const struct rec *x = *(const struct rec *const *)a, *y = *(const struct rec *const *)b;

    if (x->member != y->member)
        return x->member < y->member ? -1 : 1;
    if (x->incarnation != y->incarnation)
        return x->incarnation < y->incarnation ? -1 : 1;
    return (x->start_ns > y->start_ns) - (x->start_ns < y->start_ns);
}

/* What one process of a member answers never goes back, whoever asks. */
static void check_member_order(struct check *c)
{
    const struct rec **recs = array(c->h->n, sizeof *recs);
    struct tide tide = {.marks = array(c->h->n, sizeof *tide.marks)};
    size_t n = 0;

    for (size_t i = 0; i < c->h->n; i++) {
        const struct rec *r = &c->h->recs[i];

        if (r->incarnation && r->outcome == DONE && r->kind == REC_RANGE && revision_told(r))
            recs[n++] = r;
    }
    qsort(recs, n, sizeof *recs, by_member);
    for (size_t first = 0, end; first < n; first = end) {
        tide.n = 0;
        for (end = first; end < n && recs[end]->member == recs[first]->member &&
                          recs[end]->incarnation == recs[first]->incarnation; end++) {
            tide.marks[tide.n].at_ns = recs[end]->end_ns;
            tide.marks[tide.n++].rev = revision_told(recs[end]);
        }
        tide_sort(&tide);
        for (size_t i = first; i < end; i++)
            if (revision_told(recs[i]) < rev_seen_before(&tide, recs[i]->start_ns))
                problem(c, recs[i], "member order: revision %" PRId64 " after this member had shown %" PRId64,
                        revision_told(recs[i]), rev_seen_before(&tide, recs[i]->start_ns));
    }
    free(recs);
    free(tide.marks);
}

/* ---- the committed order ----------------------------------------------------------------------- */

bool kv_same(const Mvccpb__KeyValue *a, const Mvccpb__KeyValue *b)
{
    return slice_eq(bytes_of(a->key), bytes_of(b->key)) && slice_eq(bytes_of(a->value), bytes_of(b->value)) &&
           a->create_revision == b->create_revision && a->mod_revision == b->mod_revision && a->version == b->version &&
           a->lease == b->lease;
}

bool in_range(struct slice key, struct slice from, struct slice end)
{
    if (end.len == 0)
        return slice_eq(key, from);
    if (slice_cmp(key, from) < 0)
        return false;
    return slice_eq(end, S("\0")) || slice_cmp(key, end) < 0;
}

static void witness_events(struct check *c, const struct rec *r, size_t *room)
{
    const Etcdserverpb__WatchResponse *w = (const void *)r->resp;
    int64_t before = c->last;

    for (size_t i = 0; i < w->n_events; i++) {
        const Mvccpb__Event *e = w->events[i];
        int64_t rev = e->kv ? e->kv->mod_revision : 0;

        if (rev < c->last || rev <= before) {
            problem(c, r, "order: the witness is told of revision %" PRId64 " after %" PRId64, rev, c->last);
            return;
        }
        if (rev > c->last + 1) {
            problem(c, r, "order: no revision %" PRId64 ", next is %" PRId64, c->last + 1, rev);
            return;
        }
        if (c->n_events == *room) {
            *room = *room ? *room * 2 : 4096;
            c->events = realloc(c->events, *room * sizeof *c->events);
            assert(c->events);
        }
        c->events[c->n_events++] = e;
        c->last = rev;
    }
}

static void order_build(struct check *c)
{
    size_t room = 0, at = 0;

    c->last = 1;
    for (size_t i = 0; i < c->h->n; i++)
        if (c->h->recs[i].kind == REC_NOTICE && c->h->recs[i].client == CLIENT_WITNESS)
            witness_events(c, &c->h->recs[i], &room);
    c->commits = array((size_t)c->last + 1, sizeof *c->commits);
    c->acked = array((size_t)c->last + 1, sizeof *c->acked);
    for (int64_t rev = 2; rev <= c->last; rev++) {
        c->commits[rev].events = c->events + at;
        for (; at < c->n_events && c->events[at]->kv->mod_revision == rev; at++)
            c->commits[rev].n++;
    }
    c->facts.revisions = (uint64_t)c->last - 1;
}

static int by_key(const void *a, const void *b)
{
    const struct version *x = a, *y = b;
    int o = slice_cmp(bytes_of(x->event->kv->key), bytes_of(y->event->kv->key));

    return o ? o : (x->order > y->order) - (x->order < y->order);
}

static void state_build(struct check *c)
{
    c->versions = array(c->n_events, sizeof *c->versions);
    c->keys = array(c->n_events, sizeof *c->keys);
    for (size_t i = 0; i < c->n_events; i++)
        c->versions[i] = (struct version){c->events[i], c->events[i]->kv->mod_revision, i};
    qsort(c->versions, c->n_events, sizeof *c->versions, by_key);
    for (size_t i = 0; i < c->n_events; i++) {
        struct slice name = bytes_of(c->versions[i].event->kv->key);

        if (i == 0 || !slice_eq(name, c->keys[c->n_keys - 1].name))
            c->keys[c->n_keys++] = (struct state_key){.name = name, .versions = &c->versions[i]};
        c->keys[c->n_keys - 1].n++;
    }
}

size_t key_lower(const struct check *c, struct slice name)
{
    size_t lo = 0, hi = c->n_keys;

    while (lo < hi) {
        size_t mid = (lo + hi) / 2;

        if (slice_cmp(c->keys[mid].name, name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static const struct version *key_at(const struct state_key *k, int64_t rev)
{
    size_t lo = 0, hi = k->n;

    while (lo < hi) {
        size_t mid = (lo + hi) / 2;

        if (k->versions[mid].rev <= rev)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo ? &k->versions[lo - 1] : NULL;
}

const struct version *version_at(const struct check *c, struct slice key, int64_t rev)
{
    size_t i = key_lower(c, key);

    return i < c->n_keys && slice_eq(c->keys[i].name, key) ? key_at(&c->keys[i], rev) : NULL;
}

static const Mvccpb__KeyValue *kv_of(const struct version *v)
{
    return v && v->event->type == MVCCPB__EVENT__EVENT_TYPE__PUT ? v->event->kv : NULL;
}

const Mvccpb__KeyValue *state_at(const struct check *c, struct slice key, int64_t rev)
{
    return kv_of(version_at(c, key, rev));
}

/* create_revision and version follow from the order. */
static void check_versions(struct check *c)
{
    for (size_t k = 0; k < c->n_keys; k++)
        for (size_t i = 0; i < c->keys[k].n; i++) {
            const struct version *v = &c->keys[k].versions[i];
            const Mvccpb__KeyValue *kv = v->event->kv, *old = i ? kv_of(v - 1) : NULL;

            if (i && v[-1].rev == v->rev)
                problem(c, NULL, "order: %.*s changes twice in revision %" PRId64, (int)kv->key.len, kv->key.data,
                        v->rev);
            if (v->event->type == MVCCPB__EVENT__EVENT_TYPE__DELETE) {
                if (old == NULL || kv->value.len)
                    problem(c, NULL, "order: delete of %.*s at %" PRId64 ", which was not there", (int)kv->key.len,
                            kv->key.data, v->rev);
            } else if (kv->create_revision != (old ? old->create_revision : v->rev) ||
                       kv->version != (old ? old->version + 1 : 1)) {
                problem(c, NULL, "order: %.*s at %" PRId64 " has create %" PRId64 " version %" PRId64, (int)kv->key.len,
                        kv->key.data, v->rev, kv->create_revision, kv->version);
            }
        }
}

/* ---- reads --------------------------------------------------------------------------------------- */

bool compaction_asked(const struct check *c, int64_t rev, int64_t ns)
{
    for (size_t i = 0; i < c->h->n; i++) {
        const struct rec *r = &c->h->recs[i];

        if (r->kind == REC_COMPACT && r->start_ns < ns &&
            ((const Etcdserverpb__CompactionRequest *)r->req)->revision >= rev)
            return true;
    }
    return false;
}

/* The highest revision whose compaction was acknowledged before then. */
static int64_t compacted_before(const struct tide *t, int64_t ns) { return rev_seen_before(t, ns); }

static void check_read(struct check *c, const struct rec *r, const struct tide *compacted)
{
    const Etcdserverpb__RangeRequest *req = (const void *)r->req;
    struct replay p = {.c = c, .rec = r};

    if (r->outcome == REFUSED && r->compacted && !compaction_asked(c, req->revision + 1, r->end_ns))
        problem(c, r, "read: compacted, which nobody asked for");
    if (r->outcome != DONE)
        return;
    p.base = req->revision ? req->revision : revision_told(r);
    c->facts.reads++;
    c->facts.serializable += req->serializable != 0;
    if (revision_told(r) > c->last || p.base > revision_told(r) || p.base < 1)
        problem(c, r, "read: at revision %" PRId64 ", the last is %" PRId64, revision_told(r), c->last);
    else
        replay_range(&p, req, (const void *)r->resp);
    if (req->revision && !req->serializable && req->revision < compacted_before(compacted, r->start_ns))
        problem(c, r, "read: at a revision that had been compacted");
}

static void check_reads(struct check *c)
{
    struct tide compacted = {.marks = array(c->h->n, sizeof *compacted.marks)};

    for (size_t i = 0; i < c->h->n; i++) {
        const struct rec *r = &c->h->recs[i];

        if (r->kind == REC_COMPACT && r->outcome == DONE) {
            compacted.marks[compacted.n].at_ns = r->end_ns;
            compacted.marks[compacted.n++].rev = ((const Etcdserverpb__CompactionRequest *)r->req)->revision;
        }
    }
    c->facts.compactions = compacted.n;
    tide_sort(&compacted);
    for (size_t i = 0; i < c->h->n; i++)
        if (c->h->recs[i].kind == REC_RANGE)
            check_read(c, &c->h->recs[i], &compacted);
    free(compacted.marks);
}

/* ---- the end ------------------------------------------------------------------------------------- */

static void check_hashes(struct check *c)
{
    const Etcdserverpb__HashKVResponse *first = NULL;

    for (size_t i = 0; i < c->h->n; i++) {
        const struct rec *r = &c->h->recs[i];
        const Etcdserverpb__HashKVResponse *resp = (const void *)r->resp;

        if (r->kind != REC_HASH || r->outcome != DONE)
            continue;
        if (first == NULL)
            first = resp;
        else if (resp->hash != first->hash || resp->compact_revision != first->compact_revision)
            problem(c, r, "the end: members differ: hash %u, compacted to %" PRId64 "; hash %u, compacted to %" PRId64,
                    first->hash, first->compact_revision, resp->hash, resp->compact_revision);
    }
}

unsigned history_check(const struct history *h, const struct journal *logs, int n_logs, FILE *out,
                       struct check_facts *ret_facts)
{
    struct check c = {.h = h, .out = out, .n_logs = n_logs};

    tide_all(&c);
    order_build(&c);
    state_build(&c);
    owners_build(&c);
    check_versions(&c);
    check_writes(&c);
    check_real_time(&c);
    check_member_order(&c);
    check_reads(&c);
    check_watches(&c);
    check_leases(&c);
    if (logs)
        check_journals(&c, logs);
    check_hashes(&c);
    if (c.problems > PROBLEMS_TOLD)
        (void)fprintf(out, "problem: and %u more\n", c.problems - PROBLEMS_TOLD);
    if (ret_facts)
        *ret_facts = c.facts;
    free(c.seen.marks);
    free(c.commits);
    free(c.events);
    free(c.versions);
    free(c.keys);
    free(c.acked);
    free(c.owners);
    return c.problems;
}
