/* SPDX-License-Identifier: Apache-2.0 */
/* watch.c - clients that watch: now, from the past, from the future; quick ones and slow ones; and the witness.
 *
 * A watcher opens a stream with one to three watches, reads it for a while, asks for progress now and then, and begins
 * anew, mostly where it was. At the end it asks for progress until every watch on its stream has all there is.
 * Watcher 0 is the witness: one watch of everything, resumed until it has the whole order.
 */
#include "load.h"

enum { WATCHES = 3, RECEIVE_MS = 50, PROGRESS_MS = 200, LAME_MS = 1000 };

struct watch {
    uint32_t stream; /* its number in the history */
    int64_t id;      /* the server's; -1: not known yet */
    int64_t start;   /* as it was asked for */
    int64_t next;    /* all before this has been told; 0: not created */
    bool over;
    size_t rec;
};

struct watcher {
    struct load *load;
    struct caller callers[MEMBERS_END];
    uint64_t seed;
    int number, member;
    struct stream stream;
    struct watch watches[WATCHES];
    int n;
    int64_t resume; /* all before this is known; 0: nothing */
};

static bool is_witness(const struct watcher *w) { return w->number == 0; }

static void add_watch(struct watcher *w, struct watch *x, const Etcdserverpb__WatchCreateRequest *create)
{
    struct rec r = {.kind = REC_WATCH, .outcome = UNKNOWN, .member = (uint32_t)w->member, .start_ns = now_ns()};

    *x = (struct watch){.id = -1, .start = create->start_revision};
    x->stream = atomic_fetch_add(&w->load->streams, 1) + 1;
    r.client = is_witness(w) ? CLIENT_WITNESS : 1000 + (uint32_t)w->number;
    r.end_ns = r.start_ns;
    r.stream = x->stream;
    r.req = message_copy(&create->base);
    pthread_mutex_lock(&w->load->history->mu);
    x->rec = w->load->history->n; /* history_add below may only be later than another's */
    pthread_mutex_unlock(&w->load->history->mu);
    history_add(w->load->history, &r);
}

static void choose(struct watcher *w, Etcdserverpb__WatchCreateRequest *create, bool first)
{
    static Etcdserverpb__WatchCreateRequest__FilterType
        no_put[] = {ETCDSERVERPB__WATCH_CREATE_REQUEST__FILTER_TYPE__NOPUT},
        no_delete[] = {ETCDSERVERPB__WATCH_CREATE_REQUEST__FILTER_TYPE__NODELETE};
    static const struct {
        const char *key, *end;
    } ranges[] = {{"k/", "k0"}, {"k/03", ""}, {"k/04", "k/09"}, {"l/", "l0"}, {"a", "z"}};
    uint64_t range = below(&w->seed, 5), start = below(&w->seed, 10);
    int64_t seen = atomic_load(&w->load->rev_seen);

    create->key = (ProtobufCBinaryData){strlen(ranges[range].key), (uint8_t *)(uintptr_t)ranges[range].key};
    create->range_end = (ProtobufCBinaryData){strlen(ranges[range].end), (uint8_t *)(uintptr_t)ranges[range].end};
    create->prev_kv = below(&w->seed, 2);
    create->progress_notify = below(&w->seed, 2);
    if (below(&w->seed, 5) == 0) {
        create->n_filters = 1;
        create->filters = below(&w->seed, 2) ? no_put : no_delete;
    }
    if (first && w->resume && start < 5)
        create->start_revision = w->resume;
    else if (start < 7 && seen > 300)
        create->start_revision = seen - (int64_t)below(&w->seed, 300);
    else if (start == 7)
        create->start_revision = seen + (int64_t)below(&w->seed, 100);
    else if (start == 8)
        create->start_revision = 1 + (int64_t)below(&w->seed, 3);
}

static bool open_watches(struct watcher *w)
{
    if (!stream_open(&w->stream, &w->callers[w->member], rec_path(REC_WATCH)))
        return false;
    w->n = is_witness(w) ? 1 : 1 + (int)below(&w->seed, WATCHES);
    for (int i = 0; i < w->n; i++) {
        Etcdserverpb__WatchRequest req = ETCDSERVERPB__WATCH_REQUEST__INIT;
        Etcdserverpb__WatchCreateRequest create = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
        static uint8_t zero[1] = {0};

        if (is_witness(w)) {
            create.key = create.range_end = (ProtobufCBinaryData){1, zero};
            create.start_revision = w->resume ? w->resume : 1;
            create.prev_kv = true;
        } else {
            choose(w, &create, i == 0);
        }
        add_watch(w, &w->watches[i], &create);
        req.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
        req.create_request = &create;
        if (!stream_send(&w->stream, &req.base)) {
            w->n = i + 1;
            stream_close(&w->stream);
            return false;
        }
    }
    return true;
}

/* The watch that a notice is of; one just created is the first that has no id. */
static struct watch *watch_of(struct watcher *w, const Etcdserverpb__WatchResponse *m)
{
    for (int i = 0; i < w->n; i++) {
        if (m->created && w->watches[i].id < 0) {
            w->watches[i].id = m->watch_id;
            return &w->watches[i];
        }
        if (!m->created && w->watches[i].id == m->watch_id)
            return &w->watches[i];
    }
    return NULL;
}

static void note(struct watcher *w, struct watch *x, const Etcdserverpb__WatchResponse *m, int64_t at_ns)
{
    struct rec r = {
        .kind = REC_NOTICE, .outcome = DONE, .member = (uint32_t)w->member, .start_ns = at_ns, .end_ns = at_ns};
    int64_t told = m->header ? m->header->revision : 0;

    r.client = is_witness(w) ? CLIENT_WITNESS : 1000 + (uint32_t)w->number;
    r.stream = x->stream;
    r.resp = message_copy(&m->base);
    history_add(w->load->history, &r);
    if (m->created && x->next == 0)
        x->next = 1;
    x->over |= m->canceled != 0;
    if (m->n_events)
        x->next = m->events[m->n_events - 1]->kv->mod_revision + 1;
    else if (!m->created && !m->canceled && told + 1 > x->next)
        x->next = told + 1;
    if (x == &w->watches[0] && x->next > 1 && !x->over)
        w->resume = x->next;
    saw(w->load, told);
    if (is_witness(w) && x->next - 1 > atomic_load(&w->load->rev_witness))
        atomic_store(&w->load->rev_witness, x->next - 1);
}

/* One notice. False: the stream is over. */
static bool take(struct watcher *w, int timeout_ms)
{
    ProtobufCMessage *got = NULL;
    int r = stream_receive(&w->stream, &etcdserverpb__watch_response__descriptor, timeout_ms, &got);
    const Etcdserverpb__WatchResponse *m = (const void *)got;
    int64_t at_ns = now_ns();

    if (r <= 0)
        return r == 0;
    if (m->watch_id == -1 && !m->created && !m->canceled) {
        for (int i = 0; i < w->n; i++) /* progress of all watches of the stream */
            if (w->watches[i].id >= 0 && !w->watches[i].over)
                note(w, &w->watches[i], m, at_ns);
    } else {
        struct watch *x = watch_of(w, m);

        if (x)
            note(w, x, m, at_ns);
    }
    protobuf_c_message_free_unpacked(got, NULL);
    return true;
}

static bool ask_progress(struct watcher *w)
{
    Etcdserverpb__WatchRequest req = ETCDSERVERPB__WATCH_REQUEST__INIT;
    Etcdserverpb__WatchProgressRequest progress = ETCDSERVERPB__WATCH_PROGRESS_REQUEST__INIT;

    req.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_PROGRESS_REQUEST;
    req.progress_request = &progress;
    return stream_send(&w->stream, &req.base);
}

static bool has_all(const struct watcher *w, int64_t rev)
{
    for (int i = 0; i < w->n; i++)
        if (!w->watches[i].over && (w->watches[i].id < 0 || w->watches[i].next <= rev))
            return false;
    return true;
}

/* etcd tells no progress on a stream of which it has canceled a watch, or with one that waits for the future. */
static bool is_lame(const struct watcher *w, int64_t rev)
{
    for (int i = 0; i < w->n; i++)
        if (w->watches[i].over || w->watches[i].start > rev)
            return true;
    return false;
}

/* Everything rests: what is still watched must be told of all of it. */
static void finish(struct watcher *w)
{
    int64_t rev = atomic_load(&w->load->rev_final), asked = 0, until = w->load->final_ns;
    bool open = true, lame = false;

    while (open && !has_all(w, rev) && fair_ns() < until) {
        if (!lame && is_lame(w, rev)) {
            lame = true;
            until = fair_ns() + LAME_MS * INT64_C(1000000);
        }
        if (now_ns() - asked > PROGRESS_MS * INT64_C(1000000)) {
            open = ask_progress(w);
            asked = now_ns();
        }
        open = open && take(w, RECEIVE_MS);
    }
    open = open && (!lame || has_all(w, rev));
    pthread_mutex_lock(&w->load->history->mu);
    for (int i = 0; open && i < w->n; i++)
        for (size_t k = w->watches[i].rec; k < w->load->history->n; k++)
            if (w->load->history->recs[k].kind == REC_WATCH &&
                w->load->history->recs[k].stream == w->watches[i].stream) {
                w->load->history->recs[k].outcome = DONE;
                break;
            }
    pthread_mutex_unlock(&w->load->history->mu);
}

static bool at_end(const struct watcher *w) { return atomic_load(&w->load->rev_final) != 0; }

/* Until the stream breaks, or it has been long enough. True: it is still open. */
static bool watch_on(struct watcher *w)
{
    int64_t until = now_ns() + (int64_t)(is_witness(w) ? 3600000 : 300 + below(&w->seed, 4000)) * 1000000;
    bool slow = !is_witness(w) && below(&w->seed, 6) == 0;

    while (!at_end(w)) {
        if (!take(w, RECEIVE_MS))
            return false;
        if (atomic_load(&w->load->stop))
            continue; /* the end is near: what is open now is looked at then */
        if (now_ns() > until)
            return true;
        if (!is_witness(w) && below(&w->seed, 100) == 0 && !ask_progress(w))
            return false;
        if (slow && below(&w->seed, 20) == 0)
            pause_ms((int64_t)below(&w->seed, 400));
    }
    return true;
}

void *watcher_main(void *arg)
{
    struct worker *worker = arg;
    struct watcher w = {.load = worker->load, .number = worker->number};
    bool open = false;

    w.seed = w.load->seed * 69069 + (uint64_t)w.number * 104729 + 1;
    w.member = 1 + w.number % w.load->cluster->n;
    free(worker);
    for (int i = 1; i <= w.load->cluster->n; i++)
        caller_open(&w.callers[i], w.load->cluster->members[i].address);
    while (!at_end(&w) || (is_witness(&w) && !open && fair_ns() < w.load->final_ns)) {
        if (open)
            stream_close(&w.stream);
        open = open_watches(&w);
        if (open && !watch_on(&w)) {
            stream_close(&w.stream);
            open = false;
        }
        if (!open) {
            pause_ms(20);
            if (w.number % 2 == 0) /* even ones go to another member, odd ones stay with theirs */
                w.member = 1 + w.member % w.load->cluster->n;
        }
    }
    if (open) {
        finish(&w);
        stream_close(&w.stream);
    }
    for (int i = 1; i <= w.load->cluster->n; i++)
        caller_close(&w.callers[i]);
    return NULL;
}
