/* SPDX-License-Identifier: Apache-2.0 */
/* svc.c - what every service needs: a header, a proposal, a linearizable read, an answer out of a view.
 *
 * A call that waits is kept by a reference and comes back to its own thread by call_resume; what waits (a proposal, a
 * read) lies in the call's arena and lives as long.
 *
 * Owner: the call's thread, but for the two functions the turn and apply call (proposal_done, read_done) and the scan
 *        job.
 */
#include "svc.h"
#include <errno.h>
#include "limits.h"
#include "msg.h"

/* ---- the table --------------------------------------------------------------------------- */

static const struct svc_service *const services[] = {
    &svc_kv,
    &svc_watch,
    &svc_lease,
    &svc_cluster,
    &svc_maint,
    &svc_later,
    &svc_health,
    &svc_tree,
};

const struct rpc_method *svc_methods(size_t *ret_n)
{
    static struct rpc_method *all; /* made once, by the main thread */
    static size_t n;

    if (all == NULL) {
        for (size_t i = 0; i < sizeof services / sizeof services[0]; i++)
            n += services[i]->n;
        all = calloc(n, sizeof *all);
        for (size_t i = 0, at = 0; all && i < sizeof services / sizeof services[0]; at += services[i++]->n)
            memcpy(&all[at], services[i]->methods, services[i]->n * sizeof *all);
    }
    *ret_n = all ? n : 0;
    return all;
}

/* ---- headers ------------------------------------------------------------------------------- */

Etcdserverpb__ResponseHeader *svc_header_in(struct call *c, struct arena *a, int64_t revision)
{
    const struct svc *s = call_service(c);
    Etcdserverpb__ResponseHeader *h = msg_new(a, &etcdserverpb__response_header__descriptor);
    struct turn_status st;

    if (h == NULL)
        return NULL;
    turn_status(s->turn, &st);
    h->cluster_id = s->cluster_id;
    h->member_id = s->member_id;
    h->raft_term = st.term;
    h->revision = revision ? revision : store_revision(s->store);
    return h;
}

Etcdserverpb__ResponseHeader *svc_header(struct call *c, int64_t revision)
{
    return svc_header_in(c, call_arena(c), revision);
}

/* ---- proposing -------------------------------------------------------------------------------- */

/* etcd measures its own envelope, which is about this much around the request. */
#define ENVELOPE_BYTES 20
#define OUT_FIRST_BYTES 512

struct proposing {
    struct proposal p;
    struct call_resume resume;
    void (*answer)(struct call *c, struct proposal *p);
    size_t bytes;       /* of the account */
    struct arena out;   /* the response; larger than a call's arena may be, as a delete may return all it deletes */
    alignas(max_align_t) uint8_t first[OUT_FIRST_BYTES];
};

static void proposing_end(struct proposing *w)
{
    arena_fini(&w->out);
    entry_unref(w->p.entry);
    w->p.entry = NULL;
}

/* On the call's thread. */
static void proposal_resumed(struct call *c, struct call_resume *r)
{
    struct proposing *w = (struct proposing *)((uint8_t *)r - offsetof(struct proposing, resume));
    struct svc *s = call_service(c);

    account_give(s->account, &w->p, w->bytes);
    if (w->p.err)
        call_fail(c, w->p.err);
    else
        w->answer(c, &w->p);
    proposing_end(w);
    call_unref(c);
}

/* On the turn's or apply's thread. */
static void proposal_done(struct proposal *p)
{
    call_resume(&((struct proposing *)p)->resume);
}

static void gather(struct call *c, struct proposal *p)
{
    struct svc *s = call_service(c);
    struct svc_gathered *g = &s->gathered[call_thread(c)];

    p->mail.next = g->newest ? &g->newest->mail : NULL;
    g->newest = p;
    if (g->oldest == NULL)
        g->oldest = p;
    call_gathered(c);
}

void svc_damaged(void *service, const char *method)
{
    store_damaged(((struct svc *)service)->store, method);
}

void svc_hand_on(void *service, unsigned thread)
{
    struct svc *s = service;
    struct svc_gathered g = s->gathered[thread];

    s->gathered[thread] = (struct svc_gathered){0};
    if (g.newest)
        turn_propose_all(s->turn, g.newest, g.oldest);
}

/* The entry's bytes are written once, straight into what the log and apply read. Body or m. */
static void propose(struct call *c, int kind, struct slice body, const ProtobufCMessage *m,
                    void (*answer)(struct call *c, struct proposal *p))
{
    struct svc *s = call_service(c);
    struct entry_head h = {.kind = (enum entry_kind)kind, .origin = s->member_id};
    struct proposing *w = arena_alloc(call_arena(c), sizeof *w);
    size_t body_len = m ? protobuf_c_message_get_packed_size(m) : body.len;
    uint8_t *dst;
    int err;

    if (body_len + ENVELOPE_BYTES > s->max_request_bytes) {
        call_fail(c, ERR_REQUEST_TOO_LARGE);
        return;
    }
    if (w == NULL) {
        call_fail(c, ERR_ARENA_FULL);
        return;
    }
    w->bytes = entry_size(&h) + body_len;
    w->answer = answer;
    w->resume = (struct call_resume){.call = c, .fn = proposal_resumed};
    arena_init(&w->out, LIMIT_RESPONSE_BYTES, w->first, sizeof w->first);
    w->p.arena = &w->out;
    w->p.done = proposal_done;
    w->p.deadline_ms = call_deadline_ms(c);
    w->p.entry = entry_new(w->bytes);
    err = w->p.entry ? account_take(s->account, &w->p, w->bytes) : -ENOMEM;
    if (err) {
        proposing_end(w);
        call_fail(c, err);
        return;
    }
    h.request_id = w->p.request_id;
    entry_encode(&h, w->p.entry->payload);
    dst = w->p.entry->payload + w->bytes - body_len;
    if (m)
        (void)protobuf_c_message_pack(m, dst);
    else if (body_len)
        memcpy(dst, body.ptr, body_len);
    call_ref(c);
    gather(c, &w->p);
}

void svc_propose(struct call *c, int kind, struct slice body, void (*answer)(struct call *c, struct proposal *p))
{
    propose(c, kind, body, NULL, answer);
}

void svc_propose_message(struct call *c, int kind, const ProtobufCMessage *m,
                         void (*answer)(struct call *c, struct proposal *p))
{
    propose(c, kind, SLICE_NONE, m, answer);
}

/* ---- reading what is linearizable ----------------------------------------------------------------- */

struct reading {
    struct read_wait w;
    struct call_resume resume;
    void (*fn)(struct call *c);
};

static void read_resumed(struct call *c, struct call_resume *r)
{
    struct reading *rd = (struct reading *)((uint8_t *)r - offsetof(struct reading, resume));

    if (rd->w.err)
        call_fail(c, rd->w.err);
    else if (!call_gone(c))
        rd->fn(c);
    call_unref(c);
}

static void read_done(struct read_wait *w)
{
    call_resume(&((struct reading *)w)->resume);
}

void svc_read(struct call *c, void (*fn)(struct call *c))
{
    struct svc *s = call_service(c);
    struct reading *rd = arena_alloc(call_arena(c), sizeof *rd);

    if (rd == NULL) {
        call_fail(c, ERR_ARENA_FULL);
        return;
    }
    rd->fn = fn;
    rd->resume = (struct call_resume){.call = c, .fn = read_resumed};
    rd->w.deadline_ms = call_deadline_ms(c);
    rd->w.done = read_done;
    call_ref(c);
    if (turn_read(s->turn, &rd->w) == 0) {
        fn(c);
        call_unref(c);
    }
}

/* ---- answering out of a view ------------------------------------------------------------------------ */

/* A read on the pool. */
struct scanning {
    struct scan_job job;
    struct call_resume resume;
    svc_build *build;
    int err;
    uint8_t *packed;
    size_t n;
};

static void scan_resumed(struct call *c, struct call_resume *r)
{
    struct scanning *sc = (struct scanning *)((uint8_t *)r - offsetof(struct scanning, resume));

    if (sc->err)
        call_fail(c, sc->err);
    else
        call_answer_shared(c, slice_of(sc->packed, sc->n), free, sc->packed);
    call_unref(c);
}

/* On a scan thread; the call's thread leaves the call alone meanwhile. */
static void scan_run(struct scan_job *j, struct slot *sl)
{
    static const struct mvcc_limits none;
    struct scanning *sc = (struct scanning *)j;
    struct call *c = sc->resume.call;
    struct svc *s = call_service(c);
    ProtobufCMessage *m = NULL;
    struct arena a;
    struct view v;

    arena_init(&a, LIMIT_RESPONSE_BYTES, NULL, 0);
    sc->err = view_open(s->store, sl, &v);
    if (!sc->err) {
        sc->err = sc->build(c, &v, &none, &a, &m);
        if (!sc->err) {
            sc->n = protobuf_c_message_get_packed_size(m);
            sc->packed = malloc(sc->n + 1);
            if (sc->packed)
                (void)protobuf_c_message_pack(m, sc->packed);
            else
                sc->err = -ENOMEM;
        }
        view_close(&v);
    }
    arena_fini(&a);
    call_resume(&sc->resume);
}

static void scan_start(struct call *c, svc_build *build)
{
    struct svc *s = call_service(c);
    struct scanning *sc = arena_alloc(call_arena(c), sizeof *sc);
    int err = sc ? 0 : ERR_ARENA_FULL;

    if (!err) {
        sc->job.run = scan_run;
        sc->build = build;
        sc->resume = (struct call_resume){.call = c, .fn = scan_resumed};
        call_ref(c);
        err = scan_pool_post(s->scan, &sc->job);
        if (err)
            call_unref(c);
    }
    if (err)
        call_fail(c, err);
}

void svc_answer_view(struct call *c, svc_build *build)
{
    static const struct mvcc_limits limits = {LIMIT_INLINE_ROWS, LIMIT_INLINE_US};
    enum { INLINE_ARENA_BYTES = 1 << 20, FIRST_BYTES = 4096 };
    struct svc *s = call_service(c);
    alignas(max_align_t) uint8_t first[FIRST_BYTES];
    ProtobufCMessage *m = NULL;
    struct arena a;
    struct view v;
    int err = view_open(s->store, call_slot(c), &v);

    if (err) {
        call_fail(c, err);
        return;
    }
    arena_init(&a, INLINE_ARENA_BYTES, first, sizeof first);
    err = build(c, &v, &limits, &a, &m);
    if (!err)
        call_answer(c, m);
    view_close(&v);
    arena_fini(&a);
    if (err == MVCC_TOO_LONG || err == ERR_ARENA_FULL)
        scan_start(c, build);
    else if (err)
        call_fail(c, err);
}
