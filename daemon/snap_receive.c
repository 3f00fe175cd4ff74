/* SPDX-License-Identifier: Apache-2.0 */
/* snap_receive.c - a snapshot is taken from another member.
 *
 *     peers' thread    copies each message and hands it over; reads no more while LIMIT_SNAP_QUEUE_BYTES wait
 *     this thread      feeds them into DIR/incoming; when all is there and synced, hands the SNAPSHOT message to the turn
 *     turn             the core wants it, or does not: a snapshot never takes the place of a newer state
 *     WAL thread       installs it (snap_install.c)
 *     this thread      answers the sender
 *
 * One at a time. From when the message is handed to the turn until its verdict nothing else is taken, whatever becomes
 * of the call: DIR/incoming is the WAL thread's then.
 *
 * Owner: struct receiving is shared as its fields say; the rest is the receiving thread's.
 */
#include <errno.h>
#include <stdio.h>
#include "log.h"
#include "snap_impl.h"

enum { TEXT_BYTES = 160 };

struct receiving {
    struct snap *snap;
    uint64_t from;
    _Atomic unsigned refs;      /* the call's, the thread's */
    struct call *call;          /* of the peers' thread; a reference until `finish` has run */
    struct call_resume go_on, finish;
    /* shared */
    _Atomic size_t queued_bytes;
    _Atomic bool held;          /* the peers' thread reads no more, until told to */
    _Atomic bool gone;          /* the sender is */
    /* written by the receiving thread before `finish` is posted */
    bool ok;
    char text[TEXT_BYTES];
    /* the receiving thread's own */
    struct peer_msg *message;   /* the first one */
    struct snap_import *import;
    uint64_t progress_ms, bytes;
    bool stepping;              /* the turn has the message, */
    uint64_t index;             /* whose index this is */
    bool answered;
};

/* What the peers' thread hands over; heap. */
struct piece {
    struct mail mail;
    struct receiving *r; /* a reference */
    size_t n;            /* 0: the sender has said all, or is gone */
    uint8_t bytes[];
};

static void unref(struct receiving *r)
{
    if (atomic_fetch_sub(&r->refs, 1) > 1)
        return;
    peer_msg_free(r->message);
    snap_import_free(r->import);
    free(r);
}

/* ---- the peers' thread ------------------------------------------------------------------------- */

struct receiving_call {
    struct receiving *r;
};

static bool hand_over(struct receiving *r, struct slice bytes)
{
    struct piece *p = malloc(sizeof *p + bytes.len);

    if (p == NULL)
        return false;
    p->r = r;
    p->n = bytes.len;
    if (bytes.len)
        memcpy(p->bytes, bytes.ptr, bytes.len); /* the border: gRPC's memory ends with the handler */
    atomic_fetch_add(&r->refs, 1);
    mailbox_post(&r->snap->box, &p->mail);
    return true;
}

static void start(struct call *c, const ProtobufCMessage *req)
{
    struct receiving_call *rc = call_state(c);
    struct snap *s = peers_snapshot_ctx(call_service(c));
    struct receiving *r, *none = NULL;
    uint64_t from;

    (void)req;
    if (!peers_admit(c, &from))
        return;
    r = calloc(1, sizeof *r);
    if (r == NULL || atomic_load(&s->stopping)) {
        free(r);
        call_fail_text(c, STATUS_UNAVAILABLE, "cairn: no snapshot can be taken now");
        return;
    }
    *r = (struct receiving){.snap = s, .from = from, .refs = 2, .call = c};
    if (!atomic_compare_exchange_strong(&s->current, &none, r)) {
        free(r);
        call_fail_text(c, STATUS_RESOURCE_EXHAUSTED, "cairn: another snapshot is being taken");
        return;
    }
    rc->r = r;
    call_ref(c);
    mailbox_nudge(&s->box);
}

static void message(struct call *c, const ProtobufCMessage *req)
{
    struct receiving_call *rc = call_state(c);
    struct slice bytes = call_request(c);

    (void)req;
    if (rc->r == NULL || bytes.len == 0)
        return;
    /* Held before it is handed over: the thread that takes this piece looks at held, and lets go. */
    if (atomic_fetch_add(&rc->r->queued_bytes, bytes.len) + bytes.len > LIMIT_SNAP_QUEUE_BYTES) {
        atomic_store(&rc->r->held, true);
        call_hold(c);
    }
    if (!hand_over(rc->r, bytes))
        call_fail_text(c, STATUS_UNAVAILABLE, "cairn: out of memory"); /* gone follows */
}

static void half_closed(struct call *c)
{
    (void)c; /* the answer comes when the receiving thread has one; a stream cut short makes no progress, or is gone */
}

static void gone(struct call *c)
{
    struct receiving_call *rc = call_state(c);

    if (rc->r == NULL)
        return;
    atomic_store(&rc->r->gone, true);
    mailbox_nudge(&rc->r->snap->box);
}

static void release(struct call *c)
{
    struct receiving_call *rc = call_state(c);

    if (rc->r)
        unref(rc->r);
    rc->r = NULL;
}

const struct rpc_method snap_method = {
    .service = "cairn.Peer", .name = "Snapshot", .kind = RPC_BIDI, .access = ACCESS_OPEN,
    .start = start, .message = message, .half_closed = half_closed, .gone = gone, .release = release,
};

static void do_go_on(struct call *c, struct call_resume *r)
{
    (void)r;
    if (!call_gone(c))
        call_go_on(c);
}

static void do_finish(struct call *c, struct call_resume *resume)
{
    struct receiving *r = (struct receiving *)((char *)resume - offsetof(struct receiving, finish));

    if (r->ok)
        call_end(c);
    else
        call_fail_text(c, STATUS_ABORTED, r->text);
    call_unref(c);
}

/* ---- the receiving thread --------------------------------------------------------------------------- */

static uint64_t now_ms(const struct snap *s)
{
    return s->o.clock->now_ms(s->o.clock);
}

/* The sender is told; why NULL: all is well. */
static void answer(struct receiving *r, const char *why)
{
    if (r->answered)
        return;
    r->answered = true;
    r->ok = why == NULL;
    (void)snprintf(r->text, sizeof r->text, "cairn: %s", why ? why : "");
    r->finish = (struct call_resume){.call = r->call, .fn = do_finish};
    call_resume(&r->finish);
}

/* The transfer is over for this thread. */
static void done(struct receiving *r, const char *why)
{
    struct snap *s = r->snap;

    if (why)
        log_warn("snap: receiving a snapshot failed", LOG_HEX("from", r->from), LOG_STR("error", why));
    atomic_fetch_add_explicit(why ? &s->receive_failures : &s->received, 1, memory_order_relaxed);
    answer(r, why);
    snap_import_free(r->import);
    r->import = NULL;
    if (why)
        (void)datadir_remove_incoming(s->o.place.dir); /* else the next transfer does */
    atomic_store(&s->verdict, VERDICT_NONE);
    atomic_store(&s->current, NULL);
    unref(r);
}

/* All is there: it is Raft's to say whether it is wanted. */
static void step(struct receiving *r)
{
    struct snap *s = r->snap;
    struct peer_msg *m = r->message;

    snap_import_free(r->import);
    r->import = NULL;
    r->message = NULL;
    m->is_here = true;
    r->stepping = true;
    r->index = m->raft.index;
    log_info("snap: a snapshot has been received", LOG_HEX("from", r->from), LOG_UINT("index", m->raft.index),
             LOG_UINT("bytes", r->bytes));
    atomic_store(&s->verdict, VERDICT_NONE);
    turn_receive(s->turn, m);
}

/* NULL or what is wrong. */
static const char *take_message(struct receiving *r, struct slice bytes)
{
    struct snap *s = r->snap;
    struct snap_import_options o = {
        .base = s->o.place.base, .cluster_id = s->o.cluster_id, .member_id = s->o.member_id};
    char path[DATADIR_PATH_BYTES];

    if (peer_msg_decode(bytes, &r->message) != 0)
        return "the first message of a snapshot is none";
    if (r->message->kind != PEER_RAFT || r->message->raft.type != RAFT_SNAPSHOT || r->message->raft.conf == NULL ||
        r->message->from != r->from || r->message->to != s->o.member_id)
        return "the first message of a snapshot is another one";
    if (datadir_make_incoming(s->o.place.dir, path) != 0)
        return "there is no place for it";
    o.path = path;
    return snap_import_new(&o, &r->import) == 0 ? NULL : "out of memory";
}

static const char *take_chunk(struct receiving *r, struct slice bytes)
{
    int rc = snap_import_feed(r->import, bytes);
    const struct snap_head *h = snap_import_head(r->import);

    if (rc < 0)
        return rc == -EBADMSG ? "the stream is damaged" : rc == -ENOSPC ? "no space left" : strerror(-rc);
    if (h->index != r->message->raft.index || h->term != r->message->raft.log_term)
        return "the stream is not what its message says";
    if (rc == 1)
        step(r);
    return NULL;
}

static void take_piece(struct piece *p)
{
    struct receiving *r = p->r;
    struct snap *s = r->snap;
    struct slice bytes = slice_of(p->bytes, p->n);
    size_t queued = atomic_fetch_sub(&r->queued_bytes, p->n) - p->n;
    const char *why = NULL;

    if (atomic_load(&s->current) == r && !r->stepping) {
        r->progress_ms = now_ms(s);
        r->bytes += p->n;
        atomic_fetch_add_explicit(&s->received_bytes, p->n, memory_order_relaxed);
        why = r->message == NULL ? take_message(r, bytes) : take_chunk(r, bytes);
        if (why)
            done(r, why);
    }
    if (!r->answered && queued <= LIMIT_SNAP_QUEUE_BYTES / 2 && atomic_exchange(&r->held, false)) {
        r->go_on = (struct call_resume){.call = r->call, .fn = do_go_on};
        call_resume(&r->go_on);
    }
    unref(r);
    free(p);
}

/* The turn has said what it thinks of it, or the WAL thread that it is done. */
static void take_verdict(struct snap *s, struct receiving *r)
{
    struct turn_status t;

    switch ((enum verdict)atomic_load(&s->verdict)) {
    case VERDICT_INSTALLED:
        done(r, NULL);
        return;
    case VERDICT_REFUSED:
        turn_status(s->turn, &t);
        (void)datadir_remove_incoming(s->o.place.dir);
        done(r, t.commit >= r->index ? NULL : "the snapshot is not for this member");
        return;
    case VERDICT_NONE:
    case VERDICT_TAKEN:
        return;
    }
}

/* When to look again. */
static uint64_t watch(struct snap *s)
{
    struct receiving *r = atomic_load(&s->current);

    if (r == NULL)
        return UINT64_MAX;
    if (r->stepping) {
        take_verdict(s, r);
        return UINT64_MAX;
    }
    if (r->progress_ms == 0)
        r->progress_ms = now_ms(s);
    if (atomic_load(&r->gone))
        done(r, "the sender is gone");
    else if (now_ms(s) >= r->progress_ms + LIMIT_SNAP_STALL_MS)
        done(r, "the sender sends nothing");
    else
        return r->progress_ms + LIMIT_SNAP_STALL_MS;
    return UINT64_MAX;
}

void *snap_receiver_main(void *arg)
{
    struct snap *s = arg;
    uint64_t deadline_ms, check_ms;
    struct receiving *r;

    (void)datadir_remove_incoming(s->o.place.dir); /* what a crash has left */
    while (!atomic_load(&s->stopping)) {
        for (struct mail *m = mailbox_take(&s->box), *next; m; m = next) {
            next = m->next;
            take_piece((struct piece *)m);
        }
        deadline_ms = watch(s);
        check_ms = snap_check(s);
        mailbox_wait(&s->box, check_ms < deadline_ms ? check_ms : deadline_ms);
    }
    r = atomic_load(&s->current);
    if (r && r->stepping)
        answer(r, "this member is being stopped"); /* the WAL thread may still install it; freed with the call */
    else if (r)
        done(r, "this member is being stopped");
    return NULL;
}

void snap_pieces_free(struct snap *s)
{
    struct receiving *r = atomic_exchange(&s->current, NULL);

    for (struct mail *m = mailbox_take(&s->box), *next; m; m = next) {
        next = m->next;
        unref(((struct piece *)m)->r);
        free(m);
    }
    if (r)
        unref(r);
}
