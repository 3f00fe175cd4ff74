/* SPDX-License-Identifier: Apache-2.0 */
/* turn.c - the turn thread: owns struct raft, steps it with all that waits, hands out what follows.
 *
 * Owner:    the turn thread.
 * Not here: writing (turn_wal.c), proposals (turn_propose.c), messages (turn_peer.c), reads (turn_read.c), leases
 *           (turn_lease.c), what an entry means (apply.c).
 */
#include <errno.h>
#include <sched.h>
#include "limits.h"
#include "log.h"
#include "store.h"
#include "turn_impl.h"

#define LEASE_LOOK_MS 500 /* after a commit: a lease granted by it lives longer than this */

/* ---- handing out -------------------------------------------------------------------------------- */

static void fatal(struct turn *t, int err, const char *what)
{
    t->o.fatal(t->o.fatal_ctx, err, what);
}

/* An entry the core itself wants: empty, or a configuration entry that leaves the joint one. */
static struct entry *own_entry(enum raft_entries kind, uint64_t member_id)
{
    uint8_t body[TURN_CONF_BYTES_MAX];
    struct entry_head head = {.kind = ENTRY_CONF, .origin = member_id};
    struct raft_conf_change leave = {.n = 0};
    struct entry *e;

    if (kind == RAFT_ENTRIES_EMPTY)
        return entry_new(0);
    head.body = slice_of(body, turn_conf_encode(&leave, body));
    e = entry_new(entry_size(&head));
    if (e)
        entry_encode(&head, e->payload);
    return e;
}

/* The entries of an output, references of the job's: with index and term, but for an APPEND's, which came with them. */
static struct store_job *job_of(struct turn *t, const struct raft_out *out)
{
    uint32_t n = out->entries == RAFT_ENTRIES_NONE ? 0 : (uint32_t)(out->last - out->first + 1);
    struct store_job *j = t->job;

    t->job = NULL;
    if (out->entries == RAFT_ENTRIES_PROPOSED) {
        assert(j->n == n);
        return j;
    }
    assert(j == NULL);
    j = store_job_new(n);
    if (j == NULL || n == 0)
        return j;
    if (out->entries == RAFT_ENTRIES_MSG) {
        struct entry **from = t->msg->entries + (out->first - t->msg->raft.index - 1);

        assert(out->last == t->msg->raft.last);
        for (uint32_t i = 0; i < n; i++)
            j->entries[i] = entry_ref(from[i]);
    } else if ((j->entries[0] = own_entry(out->entries, t->o.member_id)) == NULL) {
        store_job_free(j);
        return NULL;
    }
    return j;
}

/* Puts the step's entries into the cache, and mails them to the WAL thread; a snapshot goes with them. */
static int hand_to_wal(struct turn *t, const struct raft_out *out)
{
    struct store_job *j = job_of(t, out);

    if (j == NULL)
        return -ENOMEM;
    j->seq = out->store_seq;
    j->commit = out->commit;
    j->has_hard = out->flags & RAFT_OUT_STATE;
    j->term = out->term;
    j->vote = out->vote;
    turn_snap_job(t, out, j);
    for (uint32_t i = 0; i < j->n; i++) {
        struct entry *e = j->entries[i];

        if (out->entries != RAFT_ENTRIES_MSG) {
            e->index = out->first + i;
            e->term = out->entries_term;
        }
        assert(e->index == out->first + i);
        j->bytes += sizeof *e + e->len;
        entry_cache_put(t->o.cache, e);
    }
    if (out->flags & RAFT_OUT_SNAPSHOT) {
        t->conf_index = t->compacted = out->first - 1;
        account_keep_unknown(t->o.account); /* it may hold what we have sent, without our seeing it */
    }
    atomic_fetch_add(&t->unstored_bytes, j->bytes);
    mailbox_post(&t->wal_box, &j->mail);
    return 0;
}

static void led(struct turn *t)
{
    bool known = t->status.leader != 0;

    if (known && (t->status.leader != t->leader_seen || t->status.term != t->term_seen))
        atomic_fetch_add_explicit(&t->pub_changes, 1, memory_order_relaxed);
    if (known) {
        t->leader_seen = t->status.leader;
        t->term_seen = t->status.term;
    }
    t->forward_ms = 0;
    turn_peers_led(t);
    turn_leases_led(t);
}

static void note_role(struct turn *t)
{
    bool leads;

    raft_status(t->raft, &t->status);
    leads = t->status.role == RAFT_LEADER;
    t->may_stand = false;
    led(t);
    if (leads && t->own_index == 0) {
        t->own_index = t->status.last_index; /* the empty entry of this very step */
        t->led_since_ms = t->now_ms;
        log_info("raft: became leader", LOG_UINT("term", t->status.term), LOG_HEX("id", t->o.member_id));
    }
    if (leads || t->own_index == 0)
        return;
    log_info("raft: no longer leader", LOG_UINT("term", t->status.term), LOG_HEX("id", t->o.member_id));
    atomic_store(&t->reads_free, false);
    if (t->own_applied && t->o.leases)
        lease_demote(t->o.leases);
    t->own_index = 0;
    t->own_applied = false;
    turn_leases_demoted(t);
    turn_proposals_demoted(t);
}

int turn_raft(struct turn *t, struct raft_in in)
{
    struct raft_out out;
    int err;

    in.now_ms = t->now_ms;
    err = raft_step(t->raft, &in, &out);
    if (err)
        return err;
    t->raft_deadline_ms = out.deadline_ms;
    if (in.type == RAFT_IN_MSG)
        turn_snap_stepped(t, in.msg, &out);
    /* The log first: its thread works while we go on. */
    if (out.store_seq && (err = hand_to_wal(t, &out)) != 0) {
        fatal(t, err, "handing entries to the log");
        return 0;
    }
    if (out.apply_to > t->commit_told) {
        t->commit_told = out.apply_to;
        if (t->apply_waits)
            apply_commit_quietly(t->o.apply, out.apply_to);
        else
            apply_commit(t->o.apply, out.apply_to);
        if (t->lease_look_ms == UINT64_MAX)
            t->lease_look_ms = t->now_ms + LEASE_LOOK_MS;
    }
    if (out.n_msgs)
        turn_peers_send(t, out.msgs, out.n_msgs);
    if (out.read_started)
        t->round_ctx = out.read_started;
    if (out.n_reads)
        turn_reads_done(t, out.reads, out.n_reads);
    if (out.flags & RAFT_OUT_READS_LOST)
        turn_reads_lost(t);
    if (out.flags & RAFT_OUT_ROLE)
        note_role(t); /* last: who hears of it may step the core */
    return 0;
}

size_t turn_room_bytes(struct turn *t)
{
    size_t unstored = atomic_load(&t->unstored_bytes), max = 2 * (size_t)LIMIT_WAL_BATCH_BYTES;

    return unstored < max ? max - unstored : 0; /* one batch being written, one gathering */
}

bool turn_propose_own(struct turn *t, struct entry *e)
{
    if (turn_room_bytes(t) == 0 || (t->job = store_job_new(1)) == NULL)
        return false;
    t->job->entries[0] = entry_ref(e);
    if (turn_raft(t, (struct raft_in){.type = RAFT_IN_PROPOSE, .n_entries = 1}) == 0)
        return true;
    store_job_free(t->job);
    t->job = NULL;
    return false;
}

/* ---- the turn ----------------------------------------------------------------------------------- */

static void tick(struct turn *t)
{
    if (t->now_ms < t->tick_ms)
        return;
    t->tick_ms = t->now_ms + TICK_MS;
    turn_proposals_expire(t);
    turn_reads_expire(t);
    turn_snap_tick(t);
}

static void publish(struct turn *t)
{
    raft_status(t->raft, &t->status);
    atomic_store_explicit(&t->pub_term, t->status.term, memory_order_relaxed);
    atomic_store_explicit(&t->pub_leader, t->status.leader, memory_order_relaxed);
    atomic_store_explicit(&t->pub_commit, t->status.commit, memory_order_relaxed);
    atomic_store_explicit(&t->pub_last, t->status.last_index, memory_order_relaxed);
    atomic_store_explicit(&t->pub_is_leader, t->status.role == RAFT_LEADER, memory_order_relaxed);
    atomic_store_explicit(&t->pub_is_learner, t->status.is_learner, memory_order_relaxed);
    atomic_store_explicit(&t->pub_is_faulty, t->status.faulty, memory_order_relaxed);
    if (t->o.transport)
        turn_peers_publish(t);
}

static uint64_t wake_at(struct turn *t)
{
    uint64_t at = t->raft_deadline_ms, other;
    bool proposals = turn_proposals_wait(t);

    if ((proposals || t->reads.head || t->round.head || account_pending(t->o.account)) && t->tick_ms < at)
        at = t->tick_ms;
    if (proposals && t->forward_ms > t->now_ms && t->forward_ms < at)
        at = t->forward_ms;
    other = turn_leases_deadline_ms(t);
    if (other < at)
        at = other;
    other = turn_peers_deadline_ms(t);
    return other < at ? other : at;
}

uint64_t turn_step(struct turn *t)
{
    uint64_t applied = turn_look_applied(t), flushed = atomic_load(&t->flushed);

    t->now_ms = t->o.clock->now_ms(t->o.clock);
    turn_take_stored(t);     /* first: what is durable commits, and apply has work while we go on */
    turn_take_confs(t);      /* before the applied index that covers them */
    turn_take_applied(t, applied);
    turn_peers_step(t);      /* before the time: what has come may be the leader's */
    if (t->now_ms >= t->raft_deadline_ms)
        (void)turn_raft(t, (struct raft_in){.type = RAFT_IN_TIME}); /* refuses nothing */
    turn_proposals_step(t);
    turn_leases_step(t);
    turn_reads_step(t);      /* after proposals: a read never waits for them, a write does for the disk */
    tick(t);
    turn_take_flushed(t, flushed);
    publish(t);
    turn_peers_watch(t);
    turn_wait_for_apply(t);  /* last: it looks at what all the others changed */
    return wake_at(t);
}

static void *turn_main(void *arg)
{
    struct turn *t = arg;

    while (!atomic_load(&t->stopping)) {
        uint64_t deadline_ms = UINT64_MAX; /* whoever steps instead of us nudges us for an earlier one */

        token_sleeps(&t->token, deadline_ms);
        if (token_take(&t->token)) {
            do
                deadline_ms = turn_step(t);
            while (!token_give(&t->token));
            token_sleeps(&t->token, deadline_ms);
        }
        mailbox_wait(&t->box, deadline_ms);
    }
    return NULL;
}

bool turn_help(struct turn *t, bool by_wal)
{
    uint64_t deadline_ms;

    if (atomic_load(&t->stopping) || !token_take(&t->token))
        return false;
    do {
        t->apply_waits = by_wal;
        deadline_ms = turn_step(t);
        t->apply_waits = false;
    } while (!token_give(&t->token));
    if (token_oversleeps(&t->token, deadline_ms))
        mailbox_nudge(&t->box);
    return true;
}

static void *wal_main(void *arg)
{
    struct turn *t = arg;

    while (!atomic_load(&t->stopping))
        mailbox_wait(&t->wal_box, turn_wal_step(t));
    (void)turn_wal_step(t); /* what was handed over before the stop */
    return NULL;
}

/* ---- any thread --------------------------------------------------------------------------------- */

/* Everything that waits is answered. stop_mu is held and the threads are gone. */
static void answer_stopped(struct turn *t)
{
    turn_proposals_stop(t);
    turn_peers_stop(t);
    turn_leases_stop(t);
    turn_reads_stop(t);
}

/* Sequentially consistent with turn_stop: either it finds what was posted, or we find that it is over. */
void turn_answer_late(struct turn *t)
{
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&t->stopped)) {
        pthread_mutex_lock(&t->stop_mu);
        answer_stopped(t);
        pthread_mutex_unlock(&t->stop_mu);
    }
}

void turn_poke(struct turn *t)
{
    if (atomic_load_explicit(&t->shared, memory_order_relaxed))
        (void)turn_help(t, false); /* false: somebody looks again, or it is over */
    else
        mailbox_nudge(&t->box);
}

void turn_propose(struct turn *t, struct proposal *p)
{
    mailbox_post(&t->box, &p->mail);
    turn_answer_late(t);
}

void turn_propose_all(struct turn *t, struct proposal *newest, struct proposal *oldest)
{
    if (newest == oldest && atomic_load_explicit(&t->shared, memory_order_relaxed)) {
        mailbox_post_quietly(&t->box, &newest->mail, &oldest->mail);
        (void)turn_help(t, false); /* false: somebody looks again, or it is over */
    } else {
        mailbox_post_all(&t->box, &newest->mail, &oldest->mail);
    }
    turn_answer_late(t);
}

void turn_status(const struct turn *t, struct turn_status *ret_status)
{
    *ret_status = (struct turn_status){
        .term = atomic_load_explicit(&t->pub_term, memory_order_relaxed),
        .leader = atomic_load_explicit(&t->pub_leader, memory_order_relaxed),
        .commit = atomic_load_explicit(&t->pub_commit, memory_order_relaxed),
        .applied = store_applied(t->o.store),
        .last_index = atomic_load_explicit(&t->pub_last, memory_order_relaxed),
        .is_leader = atomic_load_explicit(&t->pub_is_leader, memory_order_relaxed),
        .is_learner = atomic_load_explicit(&t->pub_is_learner, memory_order_relaxed),
        .is_faulty = atomic_load_explicit(&t->pub_is_faulty, memory_order_relaxed),
        .sole_leader = atomic_load_explicit(&t->reads_free, memory_order_relaxed),
        .leader_changes = atomic_load_explicit(&t->pub_changes, memory_order_relaxed),
        .proposals_failed = atomic_load_explicit(&t->pub_failed, memory_order_relaxed),
        .wal_fsyncs = atomic_load_explicit(&t->pub_fsyncs, memory_order_relaxed),
        .wal_bytes = atomic_load_explicit(&t->pub_bytes, memory_order_relaxed),
    };
}

void turn_flushed(struct turn *t, uint64_t index)
{
    atomic_store(&t->flushed, index);
    mailbox_nudge(&t->box);
}

/* ---- configuration entries ---------------------------------------------------------------------- */

int turn_conf_applied(struct turn *t, uint64_t index, const struct raft_conf_change *c)
{
    struct conf_event *e = malloc(sizeof *e);

    if (e == NULL)
        return -ENOMEM;
    *e = (struct conf_event){.index = index, .change = *c};
    mailbox_post(&t->conf_box, &e->mail);
    mailbox_nudge(&t->box);
    return 0;
}

/* ---- life --------------------------------------------------------------------------------------- */

struct runs {
    struct raft_run *runs;
    uint32_t n;
};

static int add_run(void *ctx, uint64_t first, uint64_t term)
{
    struct runs *r = ctx;

    if (r->n == RAFT_RUNS_MAX)
        return -EUCLEAN;
    r->runs[r->n++] = (struct raft_run){first, term};
    return 0;
}

static int init_raft(struct turn *t, void *mem)
{
    struct runs runs = {.runs = malloc(RAFT_RUNS_MAX * sizeof(struct raft_run))};
    struct raft_params p = {
        .id = t->o.member_id,
        .seed = t->o.rng->next(t->o.rng),
        .now_ms = t->o.clock->now_ms(t->o.clock),
        .heartbeat_ms = t->o.heartbeat_ms,
        .election_ms = t->o.election_ms,
        .uncommitted_max = LIMIT_UNCOMMITTED,
        .term = t->o.wal_state.term,
        .vote = t->o.wal_state.vote,
        .commit = t->o.wal_state.commit,
        .first_index = t->o.wal_state.first_index,
        .first_term = t->o.wal_state.first_term,
        .last_index = t->o.wal_state.last_index,
        .runs = runs.runs,
        .applied = t->o.applied_index,
        .conf = t->o.conf,
        .fence_term = t->o.fence_term,
    };
    int err = runs.runs ? wal_runs(t->o.wal, add_run, &runs) : -ENOMEM;

    p.n_runs = runs.n;
    if (err == 0 && raft_init(mem, &p, &t->raft) != 0)
        err = -EUCLEAN;
    free(runs.runs);
    return err;
}

int turn_new(const struct turn_options *o, struct turn **ret_turn)
{
    size_t align = alignof(max_align_t), head = (sizeof(struct turn) + align - 1) / align * align;
    struct turn *t = calloc(1, head + raft_size());
    int err;

    if (t == NULL)
        return -ENOMEM;
    t->o = *o;
    err = init_raft(t, (char *)t + head);
    if (err) {
        free(t);
        return err;
    }
    mailbox_init(&t->box, -1);
    mailbox_init(&t->read_box, -1);
    mailbox_init(&t->conf_box, -1);
    mailbox_init(&t->transfer_box, -1);
    mailbox_init(&t->ask_box, -1);
    mailbox_init(&t->peer_box, -1);
    mailbox_init(&t->event_box, -1);
    mailbox_init(&t->wal_box, -1);
    (void)pthread_mutex_init(&t->stop_mu, NULL); /* cannot fail with default attributes on Linux */
    t->lease_look_ms = t->asks_ms = UINT64_MAX;
    t->boot = t->o.rng->next(t->o.rng) | 1;
    t->compacted = t->o.wal_state.first_index;
    atomic_store(&t->flushed, t->o.applied_index);
    raft_status(t->raft, &t->status);
    /* All that is committed and not in base: apply begins with it. */
    t->commit_told = t->status.applied;
    if (t->status.commit > t->commit_told) {
        t->commit_told = t->status.commit;
        apply_commit(t->o.apply, t->commit_told);
    }
    atomic_store(&t->pub_bytes, wal_bytes(t->o.wal));
    publish(t);
    *ret_turn = t;
    return 0;
}

int turn_start(struct turn *t)
{
    int err = thread_start(&t->wal_thread, "wal", wal_main, t);

    if (err)
        return err;
    err = thread_start(&t->thread, "turn", turn_main, t);
    if (err) {
        atomic_store(&t->stopping, true);
        mailbox_nudge(&t->wal_box);
        (void)pthread_join(t->wal_thread, NULL); /* it was started and nobody else joins it */
        return err;
    }
    t->started = true;
    atomic_store(&t->shared, true);
    return 0;
}

void turn_stop(struct turn *t)
{
    if (atomic_exchange(&t->stopping, true))
        return;
    mailbox_nudge(&t->box);
    mailbox_nudge(&t->wal_box);
    if (t->started) {
        (void)pthread_join(t->thread, NULL); /* both were started and nobody else joins them */
        (void)pthread_join(t->wal_thread, NULL);
    }
    while (!token_take(&t->token)) /* an rpc thread may be half way through a step; it is never given back */
        sched_yield();
    atomic_store(&t->reads_free, false);
    atomic_store(&t->stopped, true);
    atomic_thread_fence(memory_order_seq_cst); /* see turn_propose */
    pthread_mutex_lock(&t->stop_mu);
    answer_stopped(t);
    pthread_mutex_unlock(&t->stop_mu);
}

void turn_free(struct turn *t)
{
    struct mail *m, *next;

    if (t == NULL)
        return;
    turn_stop(t);
    turn_wal_fini(t);
    for (m = mailbox_take(&t->conf_box); m; m = next) {
        next = m->next;
        free(m);
    }
    turn_leases_fini(t);
    turn_peers_fini(t);
    (void)pthread_mutex_destroy(&t->stop_mu); /* nobody holds it any more */
    free(t);
}
