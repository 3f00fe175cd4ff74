/* SPDX-License-Identifier: Apache-2.0 */
/* turn_lease.c - leases, as the leader's clock has them: expiry and checkpoints go into the log, renewals come from
 * every member.
 *
 * Only a leader that has applied an entry of its own term, which a quorum has stored, knows the leases (the table is
 * "primary" then). It alone proposes their expiry, and what is left of them (checkpoints: the next leader begins
 * there); both entries carry its term and do nothing in another.
 *
 *     turn_lease_ask() --> asks --PEER_LEASE_RENEW--> the leader: query --> a read, one for all that wait --> table
 *                                <-PEER_LEASE_RENEWED--               checkpointed: that is taken back first <--/
 *
 * A promise holds if every later leader counts from later than the question came: whoever answers must have led after
 * that. To have heard of followers lately does not prove it, for this process may have stood still meanwhile. So a
 * quorum confirms it for each question, by a linearizable read that begins after the question came; questions that come
 * while one is under way share the next. Only a sole voter knows by itself.
 *
 * A renewal may be said twice, so a question whose answer is late, or whose leader is gone, is asked again. A lease
 * with a checkpoint in the log is only renewed once an entry that takes it back is applied: else the next leader would
 * let it run out early.
 *
 * Owner: the turn thread.
 * Source: etcd v3.7.1 server/lease/lessor.go for what a checkpoint is.
 */
#include <errno.h>
#include "err.h"
#include "limits.h"
#include "rpc.pb-c.h"
#include "turn_impl.h"

#define LOOK_MS 500        /* after a commit: a lease granted by it lives longer than this */
#define ASK_AGAIN_MS 1000  /* without an answer */
#define ASK_PAST_MS 100    /* the lease is past its expiry, or the leader not yet sure of itself */
#define HAND_OVER_ENTRIES 20 /* of checkpoints, before a transfer; the leases beyond start anew */

/* ---- entries of our own --------------------------------------------------------------------------- */

static struct entry *leader_entry(struct turn *t, enum entry_kind kind, struct slice body)
{
    struct entry_head head = {
        .kind = kind, .origin = t->o.member_id, .proposal_term = t->status.term, .body = body};
    struct entry *e = entry_new(entry_size(&head));

    if (e)
        entry_encode(&head, e->payload);
    return e;
}

static struct entry *expire_entry(struct turn *t, const int64_t *ids, size_t n)
{
    uint8_t body[LEASE_EXPIRE_MAX * 8];

    for (size_t i = 0; i < n; i++)
        put_u64le(body + 8 * i, (uint64_t)ids[i]);
    return leader_entry(t, ENTRY_LEASE_EXPIRE, slice_of(body, 8 * n));
}

/* Each takes at most 2 + 11 + 11 bytes. */
#define CHECKPOINT_BYTES_MAX (LEASE_EXPIRE_MAX * 24)

static struct entry *checkpoint_entry(struct turn *t, const struct lease_mark *marks, size_t n)
{
    Etcdserverpb__LeaseCheckpointRequest req = ETCDSERVERPB__LEASE_CHECKPOINT_REQUEST__INIT;
    Etcdserverpb__LeaseCheckpoint points[LEASE_EXPIRE_MAX], *at[LEASE_EXPIRE_MAX];
    uint8_t body[CHECKPOINT_BYTES_MAX];

    for (size_t i = 0; i < n; i++) {
        points[i] = (Etcdserverpb__LeaseCheckpoint)ETCDSERVERPB__LEASE_CHECKPOINT__INIT;
        points[i].id = marks[i].id;
        points[i].remaining_ttl = marks[i].remaining_s;
        at[i] = &points[i];
    }
    req.checkpoints = at;
    req.n_checkpoints = n;
    assert(etcdserverpb__lease_checkpoint_request__get_packed_size(&req) <= sizeof body);
    return leader_entry(t, ENTRY_LEASE_CHECKPOINT,
                        slice_of(body, etcdserverpb__lease_checkpoint_request__pack(&req, body)));
}

/* The ids of leases that entries not yet applied here grant anew: the table still has the old ones, and what is
 * proposed of those now would meet the new ones. False: an entry is not at hand, so nobody knows. */
static bool grants_under_way(struct turn *t, struct lease_mark *marks, size_t n)
{
    raft_status(t->raft, &t->status);
    for (uint64_t i = store_applied(t->o.store) + 1; i <= t->status.last_index; i++) {
        struct entry *e = entry_cache_get(t->o.cache, i);
        Etcdserverpb__LeaseGrantRequest *req;
        struct entry_head h;

        if (e == NULL)
            return false;
        if (e->len && entry_payload_kind(e->payload) == ENTRY_LEASE_GRANT &&
            entry_decode(slice_of(e->payload, e->len), &h) == 0) {
            req = etcdserverpb__lease_grant_request__unpack(NULL, h.body.len, h.body.ptr);
            for (size_t k = 0; req && k < n; k++)
                if (marks[k].id == req->id)
                    marks[k].id = 0; /* not now */
            if (req)
                etcdserverpb__lease_grant_request__free_unpacked(req, NULL);
        }
        entry_unref(e);
    }
    return true;
}

/* Without those that were struck out; returns how many are left. */
static size_t squeeze(struct lease_mark *marks, size_t n)
{
    size_t kept = 0;

    for (size_t i = 0; i < n; i++)
        if (marks[i].id)
            marks[kept++] = marks[i];
    return kept;
}

/* False: an entry of ours would not be taken, so none is begun. */
static bool may_propose(struct turn *t)
{
    return t->own_applied && t->status.transferee == 0 && turn_room_bytes(t) > 0;
}

static bool propose_and_free(struct turn *t, struct entry *e)
{
    bool ok = e && turn_propose_own(t, e);

    entry_unref(e);
    return ok;
}

/* One entry at a turn, and only of the term in which a quorum has confirmed us: apply ignores it in any other. One that
 * is not taken is forgotten: the table hands its leases out again. */
static void expire_leases(struct turn *t)
{
    struct lease_mark marks[LEASE_EXPIRE_MAX];
    int64_t ids[LEASE_EXPIRE_MAX];
    size_t n;

    if (lease_next_deadline_ms(t->o.leases) > t->now_ms || !may_propose(t))
        return;
    n = lease_expired(t->o.leases, ids, LEASE_EXPIRE_MAX);
    for (size_t i = 0; i < n; i++)
        marks[i] = (struct lease_mark){.id = ids[i]};
    if (n == 0 || !grants_under_way(t, marks, n))
        return;
    n = squeeze(marks, n);
    for (size_t i = 0; i < n; i++)
        ids[i] = marks[i].id;
    if (n)
        (void)propose_and_free(t, expire_entry(t, ids, n)); /* else later */
}

/* The next entry of checkpoints. False: there was none, or it was not taken. */
static bool checkpoint_some(struct turn *t, bool all)
{
    struct lease_mark due[LEASE_EXPIRE_MAX], marks[LEASE_EXPIRE_MAX];
    size_t n = lease_marks(t->o.leases, due, LEASE_EXPIRE_MAX, all, &t->checkpoint_ms), kept = 0;

    memcpy(marks, due, n * sizeof marks[0]);
    if (n && grants_under_way(t, marks, n))
        kept = squeeze(marks, n);
    if (kept && propose_and_free(t, checkpoint_entry(t, marks, kept))) {
        for (size_t i = 0, at = 0; i < n; i++) { /* those left out are due again */
            if (at < kept && due[i].id == marks[at].id)
                at++;
            else
                lease_unmark(t->o.leases, &due[i], 1);
        }
        return true;
    }
    lease_unmark(t->o.leases, due, n);
    return false;
}

static void checkpoint_leases(struct turn *t)
{
    if (t->status.sole_voter || t->now_ms < t->checkpoint_ms)
        return; /* nobody will take over, or nothing is due */
    if (may_propose(t))
        (void)checkpoint_some(t, false); /* or none, which is as well */
    else
        t->checkpoint_ms = t->now_ms + TICK_MS;
}

void turn_leases_hand_over(struct turn *t)
{
    for (int i = 0; t->o.leases && may_propose(t) && i < HAND_OVER_ENTRIES; i++)
        if (!checkpoint_some(t, true))
            return;
}

/* ---- the leader's side: queries ----------------------------------------------------------------------- */

/* Somebody wants to know of a lease; heap. */
struct lease_query {
    struct mail mail;
    struct turn *t;
    uint64_t from, id; /* the asker and its number of this */
    int64_t lease;
    bool renew, certain; /* certain: a read has been answered since it came: we led, and what is unknown is unknown */
};

static void ask_answered(struct turn *t, uint64_t id, int err, int64_t ttl_s, int64_t left_ms);

static void query_end(struct turn *t, struct lease_query *q, int err, int64_t ttl_s, int64_t left_ms)
{
    struct peer_msg *m;

    t->n_queries--;
    if (q->from == t->o.member_id) {
        ask_answered(t, q->id, err, ttl_s, left_ms);
    } else if ((m = peer_msg_new(PEER_LEASE_RENEWED, t->o.member_id, q->from)) != NULL) {
        m->id = q->id;
        m->lease = q->lease;
        m->err = err;
        m->ttl = ttl_s;
        m->left = left_ms;
        turn_send(t, m);
    }
    free(q);
}

static void query_run(struct turn *t, struct lease_query *q)
{
    struct lease_info info = {0};
    int64_t ttl_s = 0;
    int err;

    if (t->status.role == RAFT_LEADER && !t->own_applied) {
        mail_push(&t->queries, &q->mail);
        return;
    }
    if (t->own_applied && !q->certain && !turn_reads_free(t)) {
        mail_push(&t->unsure, &q->mail);
        return;
    }
    err = t->own_applied ? lease_get(t->o.leases, q->lease, &info) : ERR_NOT_PRIMARY_LESSOR;
    if (!err && q->renew)
        err = lease_renew(t->o.leases, q->lease, &ttl_s);
    if (err == LEASE_MARKED)
        mail_push(&t->clears, &q->mail);
    else
        query_end(t, q, err, info.granted_ttl_s, q->renew ? ttl_s * 1000 : info.remaining_ms);
}

static void query_new(struct turn *t, uint64_t from, uint64_t id, int64_t lease, bool renew)
{
    struct lease_query *q = t->n_queries < LIMIT_LEASE_QUERIES ? malloc(sizeof *q) : NULL;

    if (q == NULL)
        return; /* it is asked again */
    *q = (struct lease_query){.t = t, .from = from, .id = id, .lease = lease, .renew = renew};
    t->n_queries++;
    query_run(t, q);
}

static void run_list(struct turn *t, struct mail_list *l)
{
    struct mail *m = l->head, *next;

    *l = (struct mail_list){0};
    for (; m; m = next) {
        next = m->next;
        query_run(t, (struct lease_query *)m);
    }
}

static void sure_done(struct read_wait *w)
{
    struct turn *t = (struct turn *)((uint8_t *)w - offsetof(struct turn, sure_read));

    atomic_store(&t->sure_waits, false);
    mailbox_nudge(&t->box);
}

/* One read makes all certain that came before it began. */
static void make_sure(struct turn *t)
{
    struct mail *m = t->sure.head, *next;

    if (atomic_load(&t->sure_waits))
        return;
    t->sure = (struct mail_list){0};
    for (; m; m = next) {
        struct lease_query *q = (struct lease_query *)m;

        next = m->next;
        q->certain = t->sure_read.err == 0;
        if (q->certain)
            query_run(t, q);
        else
            query_end(t, q, t->sure_read.err == ERR_STOPPED ? ERR_STOPPED : ERR_NOT_PRIMARY_LESSOR, 0, 0);
    }
    if (t->unsure.head == NULL)
        return;
    t->sure = t->unsure;
    t->unsure = (struct mail_list){0};
    t->sure_read = (struct read_wait){.deadline_ms = t->now_ms + t->o.election_ms, .done = sure_done};
    atomic_store(&t->sure_waits, true);
    turn_reads_add(t, &t->sure_read);
}

static void take_queries(struct turn *t)
{
    if (t->own_applied || t->status.role != RAFT_LEADER)
        run_list(t, &t->queries);
    make_sure(t);
}

/* One entry takes back the checkpoints of all leases that wait to be renewed; the next ones wait for it. */
static void clear_checkpoints(struct turn *t)
{
    struct lease_mark marks[LEASE_EXPIRE_MAX];
    size_t n = 0;

    if (t->clearing.head && t->status.applied >= t->clear_index)
        run_list(t, &t->clearing); /* renewed now, or once more: a checkpoint may have been under way */
    if (t->clears.head == NULL || t->clearing.head)
        return;
    for (struct mail *m = t->clears.head; m && n < LEASE_EXPIRE_MAX; m = m->next)
        marks[n++] = (struct lease_mark){.id = ((struct lease_query *)m)->lease};
    if (propose_and_free(t, checkpoint_entry(t, marks, n))) {
        raft_status(t->raft, &t->status);
        t->clear_index = t->status.last_index;
        for (; n; n--)
            mail_push(&t->clearing, mail_pop(&t->clears));
    }
}

/* ---- the asker's side -------------------------------------------------------------------------------------- */

#define SLOT_BITS 14
#define SLOTS (1u << SLOT_BITS)
_Static_assert(LIMIT_LEASE_ASKS <= SLOTS, "each has a slot");

/* An ask's id is (sequence << SLOT_BITS) | slot. */
struct ask_table {
    uint64_t sequence;
    uint32_t n, n_free;
    uint16_t free[SLOTS];
    struct {
        struct lease_ask *ask; /* NULL: free */
        uint64_t sent_ms;      /* 0: not yet, or it is to be sent again */
    } slot[SLOTS];
};

static struct ask_table *ask_table_new(uint64_t sequence)
{
    struct ask_table *a = calloc(1, sizeof *a);

    if (a == NULL)
        return NULL;
    a->sequence = sequence & (UINT64_MAX >> SLOT_BITS);
    for (uint32_t i = 0; i < LIMIT_LEASE_ASKS; i++)
        a->free[i] = (uint16_t)(LIMIT_LEASE_ASKS - 1 - i);
    a->n_free = LIMIT_LEASE_ASKS;
    return a;
}

static void ask_end(struct turn *t, uint32_t slot, int err)
{
    struct lease_ask *k = t->asks->slot[slot].ask;

    t->asks->slot[slot].ask = NULL;
    t->asks->free[t->asks->n_free++] = (uint16_t)slot;
    t->asks->n--;
    k->err = err;
    k->done(k);
}

static void look_at_asks(struct turn *t, uint64_t at_ms)
{
    if (at_ms < t->asks_ms)
        t->asks_ms = at_ms;
}

/* To the leader, if one is known; this member may be it. */
static void ask_send(struct turn *t, uint32_t slot)
{
    struct lease_ask *k = t->asks->slot[slot].ask;
    struct peer_msg *m;

    if (t->status.leader == 0)
        return;
    t->asks->slot[slot].sent_ms = t->now_ms;
    look_at_asks(t, t->now_ms + ASK_AGAIN_MS);
    if (t->status.leader == t->o.member_id) {
        query_new(t, t->o.member_id, k->id, k->lease, k->renew);
        return;
    }
    m = peer_msg_new(PEER_LEASE_RENEW, t->o.member_id, t->status.leader);
    if (m) {
        m->id = k->id;
        m->lease = k->lease;
        m->ttl = k->renew ? 0 : -1;
    }
    turn_send(t, m);
}

static void ask_answered(struct turn *t, uint64_t id, int err, int64_t ttl_s, int64_t left_ms)
{
    uint32_t slot = (uint32_t)(id & (SLOTS - 1));
    struct lease_ask *k = t->asks ? t->asks->slot[slot].ask : NULL;

    if (k == NULL || k->id != id)
        return; /* answered before */
    if (err == LEASE_PAST || err == ERR_NOT_PRIMARY_LESSOR) {
        t->asks->slot[slot].sent_ms = 0;
        look_at_asks(t, t->now_ms + ASK_PAST_MS);
        return;
    }
    k->ttl_s = ttl_s;
    k->left_ms = left_ms;
    ask_end(t, slot, err >= 0 && err < ERR_COUNT ? err : ERR_TIMEOUT);
}

static void take_asks(struct turn *t)
{
    struct mail *m = mailbox_take(&t->ask_box), *next;

    for (; m; m = next) {
        struct lease_ask *k = (struct lease_ask *)m;
        uint32_t slot;

        next = m->next;
        if (t->asks == NULL)
            t->asks = ask_table_new(t->boot);
        if (t->asks == NULL || t->asks->n_free == 0) {
            k->err = t->asks ? ERR_TOO_MANY_REQUESTS : -ENOMEM;
            k->done(k);
            continue;
        }
        slot = t->asks->free[--t->asks->n_free];
        t->asks->n++;
        t->asks->sequence = (t->asks->sequence + 1) & (UINT64_MAX >> SLOT_BITS);
        k->id = t->asks->sequence << SLOT_BITS | slot;
        t->asks->slot[slot].ask = k;
        t->asks->slot[slot].sent_ms = 0;
        look_at_asks(t, k->deadline_ms);
        ask_send(t, slot);
    }
}

/* Those that are due are sent again; all: whoever was asked before leads no more. */
static void resend_asks(struct turn *t, bool all)
{
    t->asks_ms = UINT64_MAX;
    for (uint32_t slot = 0; t->asks && t->asks->n && slot < LIMIT_LEASE_ASKS; slot++) {
        struct lease_ask *k = t->asks->slot[slot].ask;
        uint64_t sent_ms = t->asks->slot[slot].sent_ms;

        if (k == NULL)
            continue;
        if (k->deadline_ms <= t->now_ms) {
            ask_end(t, slot, t->status.leader ? ERR_TIMEOUT : ERR_NO_LEADER);
            continue;
        }
        look_at_asks(t, k->deadline_ms);
        if (all || sent_ms == 0 || sent_ms + ASK_AGAIN_MS <= t->now_ms)
            ask_send(t, slot);
        else
            look_at_asks(t, sent_ms + ASK_AGAIN_MS);
    }
}

void turn_lease_ask(struct turn *t, struct lease_ask *k)
{
    mailbox_post_quietly(&t->ask_box, &k->mail, &k->mail);
    turn_poke(t);
    turn_answer_late(t);
}

void turn_leases_message(struct turn *t, const struct peer_msg *m)
{
    if (m->kind == PEER_LEASE_RENEWED)
        ask_answered(t, m->id, m->err, m->ttl, m->left);
    else if (t->o.leases)
        query_new(t, m->from, m->id, m->lease, m->ttl != -1);
}

/* ---- the step ------------------------------------------------------------------------------------------------- */

void turn_leases_led(struct turn *t)
{
    if (t->asks && t->asks->n)
        t->asks_ms = 0; /* not here: the core is in the middle of a step */
}

void turn_leases_demoted(struct turn *t)
{
    /* Who waits for a checkpoint to be taken back is told to ask another. */
    while (t->clearing.head)
        mail_push(&t->queries, mail_pop(&t->clearing));
    while (t->clears.head)
        mail_push(&t->queries, mail_pop(&t->clears));
}

uint64_t turn_leases_goal(const struct turn *t)
{
    return t->clearing.head ? t->clear_index : 0;
}

void turn_leases_step(struct turn *t)
{
    bool all = t->asks_ms == 0;

    if (t->lease_look_ms <= t->now_ms)
        t->lease_look_ms = UINT64_MAX;
    if (t->o.leases == NULL)
        return;
    take_asks(t);
    if (t->asks_ms <= t->now_ms)
        resend_asks(t, all);
    take_queries(t);
    if (!t->own_applied)
        return;
    expire_leases(t);
    checkpoint_leases(t);
    if (t->clears.head || t->clearing.head)
        clear_checkpoints(t);
}

uint64_t turn_leases_deadline_ms(struct turn *t)
{
    uint64_t at = t->asks_ms;

    if (!t->own_applied || t->o.leases == NULL)
        return at;
    if (t->clears.head || !may_propose(t)) {
        at = t->now_ms + TICK_MS < at ? t->now_ms + TICK_MS : at; /* raft would not take it just now */
    } else {
        uint64_t lease_ms = lease_next_deadline_ms(t->o.leases);

        if (lease_ms <= t->now_ms)
            lease_ms = t->now_ms + 1; /* more than one entry's worth */
        if (lease_ms < at)
            at = lease_ms;
        if (!t->status.sole_voter && lease_ms != UINT64_MAX && t->checkpoint_ms < at)
            at = t->checkpoint_ms > t->now_ms ? t->checkpoint_ms : t->now_ms + 1;
    }
    return t->lease_look_ms < at ? t->lease_look_ms : at;
}

void turn_leases_stop(struct turn *t)
{
    struct mail *m = mailbox_take(&t->ask_box), *next;

    for (; m; m = next) {
        struct lease_ask *k = (struct lease_ask *)m;

        next = m->next;
        k->err = ERR_STOPPED;
        k->done(k);
    }
    for (uint32_t slot = 0; t->asks && t->asks->n && slot < LIMIT_LEASE_ASKS; slot++)
        if (t->asks->slot[slot].ask)
            ask_end(t, slot, ERR_STOPPED);
}

static void free_queries(struct mail *m)
{
    for (struct mail *next; m; m = next) {
        next = m->next;
        free(m);
    }
}

void turn_leases_fini(struct turn *t)
{
    free_queries(t->queries.head);
    free_queries(t->unsure.head);
    free_queries(t->sure.head);
    free_queries(t->clears.head);
    free_queries(t->clearing.head);
    free(t->asks);
}
