/* SPDX-License-Identifier: Apache-2.0 */
/* check_watch.c - each watch compared with the committed order: nine properties, one walk.
 *
 * A watch that has been told everything up to a revision is at `next`. A notice with events of revision r says that
 * nothing it watches happened from next to r - 1, and that its events are all of r; a progress notice, that nothing
 * happened up to its header. So a lost, doubled, split or reordered event shows at the next notice.
 */
#include "check_impl.h"
#include <inttypes.h>

struct watch {
    const struct rec *asked;
    const Etcdserverpb__WatchCreateRequest *req;
    int64_t next; /* 0: not created yet */
    bool over;
};

static bool wants(const struct watch *w, const Mvccpb__Event *e)
{
    for (size_t i = 0; i < w->req->n_filters; i++)
        if ((int)w->req->filters[i] == (int)e->type) /* NOPUT is 0 as PUT is, NODELETE 1 */
            return false;
    return in_range(bytes_of(e->kv->key), bytes_of(w->req->key), bytes_of(w->req->range_end));
}

/* Nothing that it wants happened from next to the revision before `rev`. */
static void skip_to(struct check *c, struct watch *w, const struct rec *r, int64_t rev, const char *what)
{
    for (; w->next < rev && w->next <= c->last; w->next++) {
        const struct commit *m = &c->commits[w->next];

        if (w->next < 2)
            continue;
        for (size_t i = 0; i < m->n; i++)
            if (wants(w, m->events[i])) {
                problem(c, r, "watch #%u: %s revision %" PRId64 ", and was never told of %.*s at %" PRId64,
                        w->asked->stream, what, rev, (int)m->events[i]->kv->key.len, m->events[i]->kv->key.data,
                        w->next);
                w->next = rev; /* one loss, one problem */
                return;
            }
    }
    if (w->next < rev)
        w->next = rev;
}

static void check_prev(struct check *c, const struct watch *w, const struct rec *r, const Mvccpb__Event *e)
{
    int64_t rev = e->kv->mod_revision;
    const Mvccpb__KeyValue *want = w->req->prev_kv ? state_at(c, bytes_of(e->kv->key), rev - 1) : NULL;

    if (e->prev_kv == NULL && want && compaction_asked(c, rev, r->end_ns))
        return; /* what it was is gone */
    if ((e->prev_kv == NULL) != (want == NULL) || (want && !kv_same(e->prev_kv, want)))
        problem(c, r, "watch #%u: prev_kv at revision %" PRId64 " is not what was before", w->asked->stream, rev);
}

/* The events of one revision, from events[at]; returns the index after them. */
static size_t take_revision(struct check *c, struct watch *w, const struct rec *r, size_t at)
{
    const Etcdserverpb__WatchResponse *m = (const void *)r->resp;
    int64_t rev = m->events[at]->kv ? m->events[at]->kv->mod_revision : 0;
    const struct commit *commit;

    if (rev < w->next || rev < 2) {
        problem(c, r, "watch #%u: revision %" PRId64 " after it was told of all before %" PRId64, w->asked->stream, rev,
                w->next);
        return m->n_events;
    }
    if (rev > c->last) {
        problem(c, r, "watch #%u: revision %" PRId64 ", the last is %" PRId64, w->asked->stream, rev, c->last);
        return m->n_events;
    }
    skip_to(c, w, r, rev, "told of");
    commit = &c->commits[rev];
    for (size_t i = 0; i < commit->n; i++) {
        if (!wants(w, commit->events[i]))
            continue;
        if (at == m->n_events || m->events[at]->kv == NULL || m->events[at]->type != commit->events[i]->type ||
            !kv_same(m->events[at]->kv, commit->events[i]->kv)) {
            problem(c, r, "watch #%u: revision %" PRId64 " is not as it was committed", w->asked->stream, rev);
            return m->n_events;
        }
        check_prev(c, w, r, m->events[at++]);
        c->facts.events++;
    }
    w->next = rev + 1;
    if (at < m->n_events && m->events[at]->kv && m->events[at]->kv->mod_revision == rev) {
        problem(c, r, "watch #%u: more at revision %" PRId64 " than it watches", w->asked->stream, rev);
        return m->n_events;
    }
    return at;
}

static void take_cancel(struct check *c, struct watch *w, const struct rec *r)
{
    const Etcdserverpb__WatchResponse *m = (const void *)r->resp;

    w->over = true;
    if (m->compact_revision && (m->compact_revision < w->next || !compaction_asked(c, m->compact_revision, r->end_ns)))
        problem(c, r, "watch #%u: at revision %" PRId64 " it was canceled as compacted", w->asked->stream, w->next);
}

static void take_notice(struct check *c, struct watch *w, const struct rec *r)
{
    const Etcdserverpb__WatchResponse *m = (const void *)r->resp;
    int64_t told = m->header ? m->header->revision : 0;

    if (w->over) {
        problem(c, r, "watch #%u: a notice after its end", w->asked->stream);
        return;
    }
    if (m->created) {
        if (w->next)
            problem(c, r, "watch #%u: created twice", w->asked->stream);
        w->next = w->req->start_revision > 0 ? w->req->start_revision : told + 1;
    }
    if (w->next == 0) {
        problem(c, r, "watch #%u: a notice before it was created", w->asked->stream);
        return;
    }
    if (m->canceled) {
        take_cancel(c, w, r);
        return;
    }
    for (size_t i = 0; i < m->n_events;)
        i = take_revision(c, w, r, i);
    if (m->n_events && told < w->next - 1)
        problem(c, r, "watch #%u: its header is behind its events", w->asked->stream);
    if (m->n_events == 0 && !m->created) {
        c->facts.progress++;
        skip_to(c, w, r, told + 1, "has progress to");
    }
}

static void check_end(struct check *c, struct watch *w)
{
    if (w->asked->outcome != DONE || w->over)
        return;
    if (w->next == 0)
        problem(c, w->asked, "watch #%u: was never created", w->asked->stream);
    else
        skip_to(c, w, w->asked, c->last + 1, "is still there after");
}

/* The records of a watch that was canceled or broken off go on in no other: who resumes asks anew. */
void check_watches(struct check *c)
{
    struct watch *watches;
    uint32_t n = 0;

    for (size_t i = 0; i < c->h->n; i++)
        if (c->h->recs[i].stream > n)
            n = c->h->recs[i].stream;
    watches = calloc((size_t)n + 1, sizeof *watches);
    assert(watches);
    for (size_t i = 0; i < c->h->n; i++) {
        const struct rec *r = &c->h->recs[i];

        if (r->kind == REC_WATCH)
            watches[r->stream] = (struct watch){.asked = r, .req = (const void *)r->req};
    }
    for (size_t i = 0; i < c->h->n; i++) {
        const struct rec *r = &c->h->recs[i];

        if (r->kind == REC_NOTICE && watches[r->stream].asked)
            take_notice(c, &watches[r->stream], r);
        else if (r->kind == REC_NOTICE)
            problem(c, r, "watch #%u: nobody asked for it", r->stream);
    }
    for (uint32_t i = 1; i <= n; i++)
        if (watches[i].asked) {
            c->facts.watches++;
            check_end(c, &watches[i]);
        }
    free(watches);
}
