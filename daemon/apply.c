/* SPDX-License-Identifier: Apache-2.0 */
/* apply.c - the loop: take an entry, dispatch it by kind, publish, answer.
 *
 * The order for each entry: check all that can fail, execute, insert into the live delta, publish {applied, C, R}, and
 * only then answer. An entry that is refused publishes its applied index and nothing else. Responses are built only
 * when somebody waits: not during replay.
 *
 * Apply reads through a view of its own. It stays open from entry to entry; its R and C are moved along by hand, which
 * is right because the layers only change here (freeze_if_due, flush_collect), and both close it first. It is closed
 * at the end of each step, so that it pins no old page of base while nothing happens.
 *
 * Owner: the apply thread, but for what apply.h marks "any thread".
 */
#include <errno.h>
#include "apply_state.h"
#include "limits.h"
#include "log.h"
#include "pb.h"
#include "turn.h"

#define RECLAIM_MS 100
#define SLOW_APPLY_US 100000 /* etcd's --warning-apply-duration */

/* ---- reading ------------------------------------------------------------------------------ */

int apply_view(struct apply *a, struct view **ret_view)
{
    if (!a->view_open) {
        int err = view_open(a->o.store, a->slot, &a->view);

        if (err)
            return err;
        a->view_open = true;
    }
    a->view.rev = a->rev;
    a->view.compact_rev = a->compact_rev;
    a->view.scratch = NULL;
    *ret_view = &a->view;
    return 0;
}

void apply_view_close(struct apply *a)
{
    if (a->view_open)
        view_close(&a->view);
    a->view_open = false;
}

int apply_decode(struct apply *a, const struct applying *x, const ProtobufCMessageDescriptor *d, void *ret_msg)
{
    ProtobufCMessage *m;
    int err = pb_unpack(d, &a->work, x->head.body, &m);

    if (err) /* its proposer has decoded the same bytes */
        return err == ERR_ARENA_FULL ? -ENOMEM : -EBADMSG;
    *(void **)ret_msg = m;
    return 0;
}

void apply_fail(struct apply *a, int err, const char *what)
{
    if (a->failed)
        return;
    a->failed = true;
    a->o.fatal(a->o.fatal_ctx, err, what);
}

/* ---- one entry ------------------------------------------------------------------------------ */

static int apply_nothing(struct apply *a, struct applying *x)
{
    (void)a, (void)x;
    return 0;
}

static int (*const appliers[ENTRY_KINDS])(struct apply *, struct applying *) = {
    [ENTRY_NOOP] = apply_nothing,
    [ENTRY_PUT] = apply_put,
    [ENTRY_DELETE_RANGE] = apply_delete_range,
    [ENTRY_TXN] = apply_txn,
    [ENTRY_COMPACT] = apply_compact,
    [ENTRY_LEASE_GRANT] = apply_lease_grant,
    [ENTRY_LEASE_REVOKE] = apply_lease_revoke,
    [ENTRY_LEASE_EXPIRE] = apply_lease_expire,
    [ENTRY_LEASE_CHECKPOINT] = apply_lease_checkpoint,
    [ENTRY_ALARM] = apply_alarm,
    [ENTRY_MEMBER_ATTR] = apply_member_attr,
    [ENTRY_CONF] = apply_conf,
    [ENTRY_MEMBER_PEERS] = apply_member_peers,
    [ENTRY_RENAME] = apply_rename,
};

/* 0, ERR_x or -errno, as of an applier. */
static int dispatch(struct apply *a, struct applying *x)
{
    struct entry_head *h = &x->head;
    int err;

    *h = (struct entry_head){0};
    if (x->entry->len == 0)
        return 0; /* of a new leader */
    err = entry_decode(slice_of(x->entry->payload, x->entry->len), h);
    if (err)
        return err;
    if (h->origin == a->o.member_id)
        x->p = proposal_claim(a->o.account, h->request_id);
    x->out = x->p ? x->p->arena : NULL;
    if (h->proposal_term && h->proposal_term != x->entry->term)
        return 0; /* only the leader that proposed it may mean it */
    if (h->kind >= ENTRY_KINDS || appliers[h->kind] == NULL)
        return -EBADMSG;
    return appliers[h->kind](a, x);
}

/* After the state has changed: what everybody sees, then who waited. */
static void publish(struct apply *a, struct applying *x, int err)
{
    struct proposal *p = x->p;

    store_publish(a->o.store, a->applied, a->compact_rev, a->rev);
    for (size_t i = 0; i < x->n_revoked; i++)
        (void)lease_revoke(a->o.leases, x->revoked[i]); /* it was there: only apply removes */
    if (p == NULL)
        return;
    p->err = err ? err : x->err;
    p->revision = a->rev;
    p->response = p->err ? NULL : x->response;
    if (!x->hold)
        p->done(p);
}

static void apply_entry(struct apply *a, const struct entry *e)
{
    struct applying x = {.entry = e};
    int err;

    a->hash = state_hash_begin(a->hash, e->index);
    err = dispatch(a, &x);
    if (err < 0) {
        if (x.p) {
            x.p->err = err;
            x.p->done(x.p);
        }
        apply_fail(a, err, "an entry of the log cannot be applied");
        return;
    }
    a->applied = e->index;
    a->applied_term = e->term;
    state_hash_note(a);
    publish(a, &x, err);
    arena_fini(&a->work);
}

static struct entry *entry_at(struct apply *a, uint64_t index)
{
    struct entry *e = entry_cache_get(a->o.cache, index);
    int err;

    if (e)
        return e;
    err = wal_read(a->o.wal, index, &e);
    if (err == 0)
        return e;
    if (apply_installing(a)) /* it is part of what comes */
        return NULL;
    apply_fail(a, err, "a committed entry cannot be read from the log");
    return NULL;
}

/* Entries that wait, up to APPLY_ENTRIES_A_STEP. Returns how many were applied. */
static size_t apply_entries(struct apply *a)
{
    uint64_t commit = atomic_load_explicit(&a->commit, memory_order_acquire);
    struct clock *clock = a->o.clock;
    uint64_t at_us = a->applied < commit ? clock->now_us(clock) : 0, now_us;
    size_t n = 0;

    while (a->applied < commit && n < APPLY_ENTRIES_A_STEP && !a->failed && !apply_stalled(a) && !apply_installing(a)) {
        struct entry *e = entry_at(a, a->applied + 1);

        if (e == NULL)
            break;
        apply_entry(a, e);
        entry_unref(e);
        n++;
        now_us = clock->now_us(clock);
        if (now_us - at_us > SLOW_APPLY_US)
            atomic_fetch_add_explicit(&a->slow_applies, 1, memory_order_relaxed);
        at_us = now_us;
        a->last_entry_ms = now_us / 1000;
        freeze_if_due(a, a->last_entry_ms);
    }
    return n;
}

/* ---- who waits --------------------------------------------------------------------------------- */

static void waits_take(struct apply *a)
{
    for (struct mail *m = mailbox_take(&a->wait_box), *next; m; m = next) {
        struct apply_wait *w = (struct apply_wait *)m;

        next = m->next;
        w->mail.next = (struct mail *)a->waits;
        if (a->waits == NULL || w->index < a->waits_min)
            a->waits_min = w->index;
        a->waits = w;
    }
}

static void waits_answer(struct apply *a)
{
    struct apply_wait *w = a->waits;

    if (w == NULL || a->applied < a->waits_min)
        return;
    a->waits = NULL;
    a->waits_min = UINT64_MAX;
    while (w) {
        struct apply_wait *next = (struct apply_wait *)w->mail.next;

        if (w->index <= a->applied) {
            w->done(w);
        } else {
            w->mail.next = (struct mail *)a->waits;
            a->waits = w;
            if (w->index < a->waits_min)
                a->waits_min = w->index;
        }
        w = next;
    }
}

static void flushes_take(struct apply *a)
{
    for (struct mail *m = mailbox_take(&a->flush_box), *next; m; m = next) {
        struct flush_wait *w = (struct flush_wait *)m;

        next = m->next;
        w->mail.next = (struct mail *)a->flush_waits;
        a->flush_waits = w;
        a->flush_goal = a->applied;
        a->freeze_now = true;
    }
}

/* ---- the step ------------------------------------------------------------------------------------ */

/* All that is known to be committed applied (reads may wait for it), frozen and flushed; or no hope of it. */
static bool stop_done(const struct apply *a)
{
    if (atomic_load(&a->install_base) && !a->failed)
        return false;
    return a->failed || atomic_load(&a->flush_stop) || a->flush_blocked ||
           (a->applied >= atomic_load(&a->commit) && a->applied <= a->frozen_index &&
            store_frozen(a->o.store) == NULL);
}

uint64_t apply_step(struct apply *a)
{
    struct clock *clock = a->o.clock;
    uint64_t deadline_ms;
    bool stopping = atomic_load(&a->stopping), install_waits;
    size_t n;

    flush_collect(a);
    if (stopping)
        defrag_stop(a);
    defrag_collect(a);
    install_waits = install_collect(a);
    waits_take(a);
    flushes_take(a);
    defrags_take(a);
    n = a->failed ? 0 : apply_entries(a);
    waits_answer(a);
    a->freeze_now |= stopping;
    freeze_if_due(a, clock->now_ms(clock));
    flush_answer(a);
    apply_view_close(a);
    atomic_store_explicit(&a->coming_bytes, (uint64_t)(a->live_bytes + a->frozen_bytes), memory_order_relaxed);
    if (n > 0 && a->on_publish)
        a->on_publish(a->on_publish_ctx);
    if (stopping && stop_done(a)) {
        flush_give_up(a);
        defrag_give_up(a);
        atomic_store(&a->stopped, true);
    }

    deadline_ms = UINT64_MAX;
    if (store_reclaim(a->o.store))
        deadline_ms = clock->now_ms(clock) + RECLAIM_MS;
    else
        defrag_closed(a);
    if (atomic_load(&a->defrag_done) || install_waits) /* the copy could not be taken yet */
        deadline_ms = clock->now_ms(clock) + RECLAIM_MS;
    if (freeze_deadline_ms(a) < deadline_ms)
        deadline_ms = freeze_deadline_ms(a);
    if (!a->failed && !apply_stalled(a) && !apply_installing(a) && a->applied < atomic_load(&a->commit))
        deadline_ms = 0;
    return deadline_ms;
}

static void *apply_main(void *arg)
{
    struct apply *a = arg;

    for (;;) {
        uint64_t deadline_ms = UINT64_MAX; /* whoever steps instead of us nudges us for an earlier one */

        token_sleeps(&a->token, deadline_ms);
        if (token_take(&a->token)) {
            do
                deadline_ms = apply_step(a);
            while (!token_give(&a->token));
            token_sleeps(&a->token, deadline_ms);
        }
        if (atomic_load(&a->stopped))
            return NULL;
        if (deadline_ms > 0)
            mailbox_wait(&a->box, deadline_ms);
    }
}

/* ---- any thread ------------------------------------------------------------------------------------ */

void apply_commit_quietly(struct apply *a, uint64_t index)
{
    atomic_store_explicit(&a->commit, index, memory_order_release);
}

void apply_commit(struct apply *a, uint64_t index)
{
    apply_commit_quietly(a, index);
    mailbox_nudge(&a->box);
}

void apply_help(struct apply *a)
{
    uint64_t deadline_ms;

    if (!token_take(&a->token))
        return;
    do
        deadline_ms = apply_step(a);
    while (!token_give(&a->token));
    if (token_oversleeps(&a->token, deadline_ms) || atomic_load(&a->stopped))
        mailbox_nudge(&a->box);
}

int apply_wait(struct apply *a, struct apply_wait *w)
{
    if (store_applied(a->o.store) >= w->index)
        return 0;
    mailbox_post(&a->wait_box, &w->mail);
    mailbox_nudge(&a->box);
    return 1;
}

void apply_flush(struct apply *a, struct flush_wait *w)
{
    mailbox_post(&a->flush_box, &w->mail);
    mailbox_nudge(&a->box);
}

void apply_stats(const struct apply *a, struct apply_stats *ret)
{
    *ret = (struct apply_stats){
        .puts = atomic_load_explicit(&a->puts, memory_order_relaxed),
        .deletes = atomic_load_explicit(&a->deletes, memory_order_relaxed),
        .ranges = atomic_load_explicit(&a->ranges, memory_order_relaxed),
        .txns = atomic_load_explicit(&a->txns, memory_order_relaxed),
        .compacted_records = atomic_load_explicit(&a->compacted_records, memory_order_relaxed),
        .slow_applies = atomic_load_explicit(&a->slow_applies, memory_order_relaxed),
        .put_bytes = atomic_load_explicit(&a->put_bytes, memory_order_relaxed),
        .keys = atomic_load_explicit(&a->keys, memory_order_relaxed),
        .db_bytes = atomic_load_explicit(&a->db_bytes, memory_order_relaxed),
        .db_in_use_bytes = atomic_load_explicit(&a->db_in_use_bytes, memory_order_relaxed),
        .nospace = atomic_load_explicit(&a->nospace_seen, memory_order_relaxed),
        .damaged = atomic_load_explicit(&a->damaged, memory_order_relaxed),
    };
}

/* A proposal nobody waits for: frees itself. */
struct own_proposal {
    struct proposal p;
    struct apply *apply;
    size_t bytes;
    bool is_alarm;
};

static void own_done(struct proposal *p)
{
    struct own_proposal *own = (struct own_proposal *)p;

    if (own->is_alarm && p->err)
        atomic_store(&own->apply->alarm_proposed, false); /* dropped: whoever meets the limit next tries again */
    account_give(own->apply->o.account, p, own->bytes);
    entry_unref(p->entry);
    free(own);
}

int apply_propose(struct apply *a, enum entry_kind kind, struct slice body)
{
    struct entry_head h = {.kind = kind, .origin = a->o.member_id, .body = body};
    struct own_proposal *own = calloc(1, sizeof *own);
    int err;

    if (own == NULL)
        return -ENOMEM;
    *own = (struct own_proposal){.apply = a, .bytes = entry_size(&h), .is_alarm = kind == ENTRY_ALARM};
    own->p.done = own_done;
    own->p.deadline_ms = a->o.clock->now_ms(a->o.clock) + LIMIT_SERVER_REQUEST_MS;
    own->p.entry = entry_new(own->bytes);
    err = own->p.entry ? account_take(a->o.account, &own->p, own->bytes) : -ENOMEM;
    if (err) {
        entry_unref(own->p.entry);
        free(own);
        return err;
    }
    h.request_id = own->p.request_id;
    entry_encode(&h, own->p.entry->payload);
    turn_propose(a->turn, &own->p);
    return 0;
}

/* The file grows with a flush, not with a put: what the deltas hold will come on top of what is in use. */
static int64_t quota_used(const struct apply *a)
{
    int64_t file = (int64_t)atomic_load_explicit(&a->db_bytes, memory_order_relaxed);
    int64_t in_use = (int64_t)atomic_load_explicit(&a->db_in_use_bytes, memory_order_relaxed);
    int64_t coming = in_use + (int64_t)atomic_load_explicit(&a->coming_bytes, memory_order_relaxed);

    return file > coming ? file : coming;
}

bool apply_quota_admits(struct apply *a, int64_t cost)
{
    if (cost == 0 || a->o.quota_bytes < 0 || quota_used(a) + cost < a->o.quota_bytes)
        return true;
    apply_raise_nospace(a);
    return false;
}

void apply_raise_nospace(struct apply *a)
{
    Etcdserverpb__AlarmRequest req = ETCDSERVERPB__ALARM_REQUEST__INIT;
    uint8_t packed[64];

    if (a->turn == NULL || atomic_load(&a->nospace_seen) || atomic_exchange(&a->alarm_proposed, true))
        return;
    req.action = ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__ACTIVATE;
    req.memberid = a->o.member_id;
    req.alarm = ETCDSERVERPB__ALARM_TYPE__NOSPACE;
    assert(etcdserverpb__alarm_request__get_packed_size(&req) <= sizeof packed);
    if (apply_propose(a, ENTRY_ALARM, slice_of(packed, etcdserverpb__alarm_request__pack(&req, packed))) != 0)
        atomic_store(&a->alarm_proposed, false); /* whoever meets the limit next tries again */
}

void apply_on_publish(struct apply *a, void (*fn)(void *ctx), void *ctx)
{
    a->on_publish = fn;
    a->on_publish_ctx = ctx;
}

void apply_set_turn(struct apply *a, struct turn *t)
{
    a->turn = t;
}

/* ---- life ---------------------------------------------------------------------------------------------- */

int state_load(struct apply *a)
{
    struct base_reader *r = NULL;
    struct base_meta m;
    int err = base_reader_new(store_base(a->o.store), &r);

    if (!err)
        err = base_reader_renew(r);
    if (!err)
        err = base_reader_meta(r, &m);
    if (!err)
        err = m.seal.conf.len <= sizeof a->conf_bytes ? 0 : -EUCLEAN;
    if (!err) {
        if (m.seal.conf.len)
            memcpy(a->conf_bytes, m.seal.conf.ptr, m.seal.conf.len);
        a->conf = slice_of(a->conf_bytes, m.seal.conf.len);
        a->applied = a->frozen_index = m.seal.applied_index;
        a->applied_term = m.seal.applied_term;
        a->rev = m.seal.revision;
        a->compact_rev = a->sweep_goal = m.seal.compact_revision;
        a->key_count = m.seal.key_count;
        a->hash = m.seal.state_hash;
        state_hash_note(a);
        atomic_store(&a->keys, a->key_count);
        /* Whether the last sweep was finished is not known: it goes on, and finds out. */
        atomic_store(&a->swept_to, INT64_MIN);
        base_reader_reset(r);
        store_publish(a->o.store, a->applied, a->compact_rev, a->rev);
    }
    base_reader_free(r);
    return err ? err : rows_load(a);
}

int apply_new(const struct apply_options *o, struct apply **ret_apply)
{
    struct apply *a = calloc(1, sizeof *a);
    uint64_t file = 0, in_use = 0;
    int err;

    if (a == NULL)
        return -ENOMEM;
    a->o = *o;
    pthread_mutex_init(&a->mu, NULL);
    pthread_mutex_init(&a->hash_mu, NULL);
    pthread_mutex_init(&a->sweep_mu, NULL);
    mailbox_init(&a->box, -1);
    mailbox_init(&a->wait_box, -1);
    mailbox_init(&a->flush_box, -1);
    mailbox_init(&a->defrag_box, -1);
    mailbox_init(&a->flusher, -1);
    /* Bounded by the size of an entry, or of what it deletes. */
    arena_init(&a->work, SIZE_MAX / 2, a->work_first, sizeof a->work_first);
    txn_run_init(&a->run);
    a->run.leases = o->leases;
    a->waits_min = UINT64_MAX;
    a->slot = slot_new(o->store);
    a->flush_slot = slot_new(o->store);
    a->scratch = delta_new();
    a->scrub = base_scrub_new();
    a->scrub_at_us = o->clock->now_us(o->clock) + LIMIT_SCRUB_FIRST_MS * UINT64_C(1000);
    err = a->slot && a->flush_slot && a->scratch && a->scrub ? state_load(a) : -ENOMEM;
    if (!err)
        err = base_sizes(store_base(o->store), &file, &in_use);
    if (err) {
        apply_free(a);
        return err;
    }
    store_on_damage(o->store, apply_damaged, a);
    atomic_init(&a->commit, a->applied);
    atomic_init(&a->db_bytes, file);
    atomic_init(&a->db_in_use_bytes, in_use);
    *ret_apply = a;
    return 0;
}

int apply_start(struct apply *a)
{
    int err = thread_start(&a->flush_thread, "flush", flush_main, a);

    if (err)
        return err;
    err = thread_start(&a->thread, "apply", apply_main, a);
    if (err) {
        atomic_store(&a->flush_stop, true);
        mailbox_nudge(&a->flusher);
        pthread_join(a->flush_thread, NULL);
        return err;
    }
    a->started = true;
    return 0;
}

void apply_stop(struct apply *a)
{
    if (!a->started)
        return;
    atomic_store(&a->stopping, true);
    mailbox_nudge(&a->box);
    pthread_join(a->thread, NULL);
    atomic_store(&a->flush_stop, true);
    mailbox_nudge(&a->flusher);
    pthread_join(a->flush_thread, NULL);
    a->started = false;
}

void apply_free(struct apply *a)
{
    if (a == NULL)
        return;
    assert(!a->started);
    apply_view_close(a);
    if (a->slot)
        slot_free(a->o.store, a->slot);
    if (a->flush_slot)
        slot_free(a->o.store, a->flush_slot);
    if (a->scratch)
        delta_free(a->scratch);
    base_scrub_free(a->scrub);
    base_close(atomic_load(&a->install_base)); /* handed over too late */
    rows_free(a);
    txn_run_fini(&a->run);
    arena_fini(&a->work);
    pthread_mutex_destroy(&a->mu);
    pthread_mutex_destroy(&a->hash_mu);
    pthread_mutex_destroy(&a->sweep_mu);
    free(a);
}
