/* SPDX-License-Identifier: Apache-2.0 */
/* watch.h - clients that watch: streams of the real hubs, which end with their member and are resumed at another one.
 *
 * What a watcher must be told is known from the history of all changes: those of its range and of its filters, from the
 * revision it asked for on, each once, in order, with the values before if it wants them. Each response is compared
 * with what comes next of that; so Filter, Ordered, Unique, Reliable and PrevKV hold or a response differs. A client
 * that comes back asks for the revision after the last one it was told of, by an event or by a progress notice
 * (Resumable, Bookmarkable). When all is healed every watcher has been told all (watches_settled).
 *
 * Not here: a reader so slow that its queue is full (tests/unit/hub.c: a megabyte of events is no matter for a
 * simulation).
 */
#pragma once
#include "check.h"

enum { SIM_WATCHERS = 3, SIM_TAKE = 8 };

struct sim_watch {
    unsigned from, to; /* keys; to SIM_KEYS: without an end */
    bool no_put, no_delete, prev_kv, progress, fragment;
    int64_t next;      /* the lowest revision it has not been told of; 0: it wants what comes from now on */
    int64_t asked;     /* with which it was created */
    size_t pos;        /* no event of the history before this one is owed to it */
    int64_t id;        /* of this creation; 0: to be created */
    bool created, must_cancel;
};

struct watch_client {
    struct sim_member *m; /* NULL: not connected */
    struct watch_stream *stream;
    bool woken;
    int64_t last_id;
    struct sim_watch w[SIM_WATCHERS];
};

static struct watch_client watch_clients[WATCH_CLIENTS];

/* ---- what is owed ------------------------------------------------------------------------------------ */

static inline bool watch_wants(const struct sim_watch *w, const struct oracle_event *e)
{
    return e->rev >= w->next && e->key >= w->from && e->key < w->to && !(e->v.version ? w->no_put : w->no_delete);
}

/* The next event it must be told; NULL: none so far. */
static inline const struct oracle_event *watch_owed(struct sim *s, struct sim_watch *w)
{
    while (w->pos < s->o.n_events && !watch_wants(w, &s->o.events[w->pos]))
        w->pos++;
    return w->pos < s->o.n_events ? &s->o.events[w->pos] : NULL;
}

static inline void watch_rewind(struct sim *s, struct sim_watch *w, int64_t next)
{
    w->next = next;
    w->pos = s->o.n_events;
    while (w->pos && s->o.events[w->pos - 1].rev >= next)
        w->pos--;
}

/* ---- what is told -------------------------------------------------------------------------------------- */

static inline bool kv_is(const Mvccpb__KeyValue *kv, unsigned k, const struct version *v)
{
    return kv && key_index(slice_of(kv->key.data, kv->key.len)) == (int)k && kv->mod_revision == v->mod &&
           kv->create_revision == v->create && kv->version == v->version && kv->lease == v->lease &&
           value_of(kv->value) == v->value;
}

static inline void prev_judge(struct watch_client *c, const struct sim_watch *w, const struct oracle_event *e,
                              const Mvccpb__KeyValue *prev)
{
    struct oracle *o = &c->m->s->o;
    const struct version *v = key_at(o, e->key, e->rev - 1);

    if (prev == NULL && (v == NULL || !w->prev_kv || e->rev - 1 < o->compact_rev))
        return;
    if (!w->prev_kv || v == NULL || !kv_is(prev, e->key, v))
        world_fail(c->m->w, "PrevKV",
                   "member %" PRIu64 " tells of key %u at %" PRId64 " with %s value before", c->m->id, e->key, e->rev,
                   prev ? "another" : "no");
    c->m->w->did.watch_prevs += prev != NULL;
}

static inline void event_judge(struct watch_client *c, struct sim_watch *w, const Mvccpb__Event *got)
{
    struct sim *s = c->m->s;
    const struct oracle_event *e = watch_owed(s, w);
    const Mvccpb__KeyValue *kv = got->kv;
    bool put = got->type == MVCCPB__EVENT__EVENT_TYPE__PUT;

    if (kv == NULL || e == NULL || kv->mod_revision != e->rev ||
        key_index(slice_of(kv->key.data, kv->key.len)) != (int)e->key) {
        world_fail(&s->w,
                   e == NULL || kv == NULL                ? "Filter"
                   : kv->mod_revision < w->next           ? "Unique"
                   : kv->mod_revision == e->rev           ? "Ordered"
                                                          : "Reliable",
                   "member %" PRIu64 " tells a watcher from %" PRId64 " of %" PRId64 ", owed is key %d of %" PRId64,
                   c->m->id, w->asked, kv ? kv->mod_revision : 0, e ? (int)e->key : -1, e ? e->rev : 0);
        return;
    }
    if (put != (e->v.version > 0) || (put && !kv_is(kv, e->key, &e->v)))
        world_fail(&s->w, e->v.create == e->rev ? "IsCreate" : "Filter",
                   "member %" PRIu64 " tells of key %u at %" PRId64 ": created %" PRId64 ", version %" PRId64, c->m->id,
                   e->key, e->rev, kv->create_revision, kv->version);
    prev_judge(c, w, e, got->prev_kv);
    w->pos++;
    s->w.did.watch_events++;
}

static inline void events_judge(struct watch_client *c, struct sim_watch *w, const Etcdserverpb__WatchResponse *r)
{
    struct world *wd = c->m->w;
    const struct oracle_event *e;
    int64_t last;

    if (w->must_cancel)
        world_fail(wd, "CompactedAlwaysErrors",
                   "member %" PRIu64 " feeds a watcher from %" PRId64 ", which it knew to be compacted", c->m->id,
                   w->asked);
    for (size_t i = 0; i < r->n_events && !wd->failed; i++)
        event_judge(c, w, r->events[i]);
    if (wd->failed)
        return;
    last = r->events[r->n_events - 1]->kv->mod_revision;
    if (r->header->revision < last)
        world_fail(wd, "Ordered", "member %" PRIu64 " says it is at %" PRId64 " and tells of %" PRId64, c->m->id,
                   r->header->revision, last);
    wd->did.watch_fragments += r->fragment;
    w->next = last; /* it comes whole, or is asked for anew */
    if (r->fragment)
        return;
    e = watch_owed(c->m->s, w);
    if (e && e->rev == last)
        world_fail(wd, "Atomic", "member %" PRIu64 " tells of %" PRId64 " in part", c->m->id, last);
    w->next = last + 1;
}

/* All before this revision has been told. */
static inline void progress_judge(struct watch_client *c, struct sim_watch *w, int64_t rev)
{
    const struct oracle_event *e = watch_owed(c->m->s, w);

    if (e && e->rev <= rev)
        world_fail(c->m->w, "Bookmarkable",
                   "member %" PRIu64 " has told all up to %" PRId64 ", it says, but not of %" PRId64, c->m->id, rev,
                   e->rev);
    if (rev < w->asked)
        world_fail(c->m->w, "FutureRevSilent",
                   "member %" PRIu64 " tells a watcher from %" PRId64 " that it is at %" PRId64, c->m->id, w->asked,
                   rev);
    if (rev >= w->next)
        w->next = rev + 1;
    c->m->w->did.watch_progress++;
}

/* Below a compaction: the watcher goes on where that begins. */
static inline void canceled_judge(struct watch_client *c, struct sim_watch *w, const Etcdserverpb__WatchResponse *r)
{
    struct sim *s = c->m->s;

    if (r->compact_revision == 0 || w->next >= r->compact_revision || r->compact_revision > s->o.compact_rev)
        world_fail(&s->w, "Reliable",
                   "member %" PRIu64 " cancels a watcher at %" PRId64 ": compacted %" PRId64 ", truly %" PRId64 " %s",
                   c->m->id, w->next, r->compact_revision, s->o.compact_rev, r->cancel_reason);
    s->w.did.watch_compacted++;
    watch_rewind(s, w, r->compact_revision);
    w->id = 0;
}

static inline void created_judge(struct watch_client *c, struct sim_watch *w, const Etcdserverpb__WatchResponse *r)
{
    struct sim *s = c->m->s;

    if (r->header->revision > s->o.rev)
        world_fail(&s->w, "NoReadOfUndurable", "member %" PRIu64 " watches at %" PRId64 ", committed is %" PRId64,
                   c->m->id, r->header->revision, s->o.rev);
    w->created = true;
    if (w->next == 0)
        watch_rewind(s, w, r->header->revision + 1);
}

static inline void response_judge(struct watch_client *c, const Etcdserverpb__WatchResponse *r)
{
    for (unsigned i = 0; i < SIM_WATCHERS && !c->m->w->failed; i++) {
        struct sim_watch *w = &c->w[i];

        if (r->watch_id == -1 && w->id && w->created && !r->canceled)
            progress_judge(c, w, r->header->revision);
        if (w->id == 0 || w->id != r->watch_id)
            continue; /* of one that the client gave up */
        if (r->created && !r->canceled)
            created_judge(c, w, r);
        else if (r->canceled)
            canceled_judge(c, w, r);
        else if (!w->created)
            world_fail(c->m->w, "Ordered", "member %" PRIu64 " feeds a watcher before it says so", c->m->id);
        else if (r->n_events)
            events_judge(c, w, r);
        else
            progress_judge(c, w, r->header->revision);
    }
}

/* All that waits. */
static inline void watch_take(struct watch_client *c)
{
    struct hub_response r[SIM_TAKE];
    size_t n;

    c->woken = false;
    while ((n = hub_stream_take(c->stream, r, SIM_TAKE, SIZE_MAX)) > 0)
        for (size_t i = 0; i < n; i++) {
            size_t len = r[i].head_len + r[i].packet->len;
            uint8_t *bytes = malloc(len);
            Etcdserverpb__WatchResponse *m;

            memcpy(bytes, r[i].head, r[i].head_len);
            memcpy(bytes + r[i].head_len, r[i].packet->bytes, r[i].packet->len);
            packet_unref(r[i].packet);
            m = etcdserverpb__watch_response__unpack(NULL, len, bytes);
            if (m == NULL)
                world_fail(c->m->w, "codec", "a WatchResponse cannot be decoded");
            else if (!c->m->w->failed)
                response_judge(c, m);
            if (m)
                etcdserverpb__watch_response__free_unpacked(m, NULL);
            free(bytes);
        }
}

static inline void watch_wake(void *ctx)
{
    ((struct watch_client *)ctx)->woken = true;
}

/* ---- what is asked -------------------------------------------------------------------------------------- */

static inline void watch_draw(struct sim *s, struct sim_watch *w)
{
    struct world *wd = &s->w;
    unsigned a = (unsigned)world_random(wd, SIM_SMALL), filters = (unsigned)world_random(wd, 6);

    *w = (struct sim_watch){.from = a,
                            .to = a + 1,
                            .no_put = filters == 0,
                            .no_delete = filters == 1,
                            .prev_kv = world_chance(wd, 50),
                            .progress = world_chance(wd, 40),
                            .fragment = world_chance(wd, 30)};
    if (world_chance(wd, 40))
        w->to = SIM_KEYS;
    else if (world_chance(wd, 50))
        w->to = a + 1 + (unsigned)world_random(wd, SIM_SMALL - a);
    if (world_chance(wd, 60)) /* the past, which may be gone, or the future */
        watch_rewind(s, w, 1 + (int64_t)world_random(wd, (uint64_t)s->o.rev + 10));
}

static inline void watch_send(struct watch_client *c, int kind, void *body)
{
    Etcdserverpb__WatchRequest r = ETCDSERVERPB__WATCH_REQUEST__INIT;

    r.request_union_case = (Etcdserverpb__WatchRequest__RequestUnionCase)kind;
    r.create_request = body; /* a union of pointers */
    if (hub_stream_request(c->stream, &r) != 0)
        world_fail(c->m->w, "harness", "a watch request is refused");
    member_poll(c->m);
}

static inline void watch_create(struct watch_client *c, struct sim_watch *w)
{
    Etcdserverpb__WatchCreateRequest r = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
    Etcdserverpb__WatchCreateRequest__FilterType filters[2];
    char key[8], end[8] = "";

    key_name(w->from, key);
    r.key = (ProtobufCBinaryData){strlen(key), (uint8_t *)key};
    if (w->to == SIM_KEYS) {
        r.range_end = (ProtobufCBinaryData){1, (uint8_t *)end};
    } else if (w->to > w->from + 1) {
        key_name(w->to, end);
        r.range_end = (ProtobufCBinaryData){strlen(end), (uint8_t *)end};
    }
    r.filters = filters;
    if (w->no_put)
        filters[r.n_filters++] = ETCDSERVERPB__WATCH_CREATE_REQUEST__FILTER_TYPE__NOPUT;
    if (w->no_delete)
        filters[r.n_filters++] = ETCDSERVERPB__WATCH_CREATE_REQUEST__FILTER_TYPE__NODELETE;
    r.start_revision = w->next;
    r.progress_notify = w->progress;
    r.prev_kv = w->prev_kv;
    r.fragment = w->fragment;
    r.watch_id = w->id = ++c->last_id;
    w->created = false;
    w->asked = w->next;
    w->must_cancel = w->next && w->next < c->m->apply->compact_rev && c->m->hub->seen >= c->m->apply->rev;
    if (w->next) /* of a revision told in part all comes again */
        watch_rewind(c->m->s, w, w->next);
    watch_send(c, ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST, &r);
}

static inline void watch_leave(struct watch_client *c)
{
    if (c->m == NULL)
        return;
    hub_stream_close(c->stream);
    c->stream = NULL;
    c->m = NULL;
    c->woken = false;
    for (unsigned i = 0; i < SIM_WATCHERS; i++)
        c->w[i].id = 0;
}

/* A member's memory goes, and with it all streams; what was not taken yet never comes. */
static inline void watches_before_crash(struct sim_member *m)
{
    for (unsigned i = 0; i < WATCH_CLIENTS; i++)
        if (watch_clients[i].m == m)
            watch_leave(&watch_clients[i]);
}

static inline void watch_connect(struct watch_client *c, struct sim_member *m)
{
    c->m = m;
    c->last_id = 0;
    c->stream = hub_stream_new(m->hub, watch_wake, c);
    assert(c->stream);
    for (unsigned i = 0; i < SIM_WATCHERS && !m->w->failed; i++)
        watch_create(c, &c->w[i]);
    m->w->did.watch_moves++;
}

/* Watchers that were cancelled are created anew. */
static inline void watch_mend(struct watch_client *c)
{
    for (unsigned i = 0; i < SIM_WATCHERS && !c->m->w->failed; i++)
        if (c->w[i].id == 0)
            watch_create(c, &c->w[i]);
}

static inline void watch_another(struct sim *s, struct watch_client *c)
{
    Etcdserverpb__WatchCancelRequest r = ETCDSERVERPB__WATCH_CANCEL_REQUEST__INIT;
    struct sim_watch *w = &c->w[world_random(&s->w, SIM_WATCHERS)];

    if (w->id) {
        r.watch_id = w->id;
        watch_send(c, ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CANCEL_REQUEST, &r);
    }
    watch_draw(s, w);
    watch_create(c, w);
}

/* Now and then a client does something; m: a member that is up. */
static inline void watch_something(struct sim *s, struct sim_member *m)
{
    struct watch_client *c = &watch_clients[world_random(&s->w, WATCH_CLIENTS)];
    Etcdserverpb__WatchProgressRequest progress = ETCDSERVERPB__WATCH_PROGRESS_REQUEST__INIT;

    if (c->m == NULL) {
        watch_connect(c, m);
        return;
    }
    if (c->woken)
        watch_take(c);
    if (s->w.failed)
        return;
    watch_mend(c);
    switch (world_random(&s->w, 10)) {
    case 0:
        watch_leave(c);
        break;
    case 1:
        watch_another(s, c);
        break;
    case 2:
    case 3:
        watch_send(c, ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_PROGRESS_REQUEST, &progress);
        break;
    default:
        break;
    }
}

/* The hub has had its moment: who was woken takes, mostly. */
static inline void watches_taken(struct sim_member *m, unsigned pct)
{
    for (unsigned i = 0; i < WATCH_CLIENTS && !m->w->failed; i++)
        if (watch_clients[i].m == m && watch_clients[i].woken && world_chance(m->w, pct))
            watch_take(&watch_clients[i]);
}

static inline void watches_init(struct sim *s)
{
    for (unsigned i = 0; i < WATCH_CLIENTS; i++) {
        watch_clients[i] = (struct watch_client){.m = NULL};
        for (unsigned k = 0; k < SIM_WATCHERS; k++)
            watch_draw(s, &watch_clients[i].w[k]);
    }
}

/* Everything is healed: every watcher is served by a member, and has been told all. */
static inline bool watches_settled(struct sim *s)
{
    bool settled = true;

    for (unsigned i = 0; i < WATCH_CLIENTS && !s->w.failed; i++) {
        struct watch_client *c = &watch_clients[i];
        struct sim_member *m = &s->m[1 + world_random(&s->w, MEMBERS_SIM_MAX - 1)];

        if (c->m && !model_is_member(&s->o, c->m->id))
            watch_leave(c);
        if (c->m == NULL && m->exists && m->up && model_is_member(&s->o, m->id))
            watch_connect(c, m);
        if (c->m) {
            watch_take(c);
            watch_mend(c);
        }
        for (unsigned k = 0; k < SIM_WATCHERS; k++)
            settled &= c->m && c->w[k].created && c->w[k].id && watch_owed(s, &c->w[k]) == NULL;
    }
    return settled;
}
