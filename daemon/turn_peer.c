/* SPDX-License-Identifier: Apache-2.0 */
/* turn_peer.c - the turn and the other members: messages in and out, what the transport knows of a member, transfers.
 *
 *     transport --turn_receive()--> peer_box --> raft_step --> transport->send()
 *
 * What arrives may be stepped on the thread that brings it (token.h): a heartbeat, a reply or a small APPEND wakes
 * nobody. Of what waits, messages without entries go first: the reply that commits is not behind a megabyte.
 *
 * A leader whose log does not move for an election timeout hands leadership to the follower that has most: its
 * heartbeats go on, so nobody else would take it from it.
 *
 * Owner: the turn thread, but for what turn.h marks "any thread".
 * Not here: bytes and streams (peer.c, peers.c), snapshots (turn_snap.c), proposals of others (turn_propose.c).
 */
#include "err.h"
#include "limits.h"
#include "log.h"
#include "turn_impl.h"

/* ---- out -------------------------------------------------------------------------------------------- */

void turn_send(struct turn *t, struct peer_msg *m)
{
    if (m && t->o.transport)
        t->o.transport->send(t->o.transport, m);
    else
        peer_msg_free(m);
}

void turn_peers_send(struct turn *t, const struct raft_msg *msgs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (msgs[i].type != RAFT_SNAPSHOT) {
            turn_send(t, peer_msg_of(&msgs[i]));
        } else {
            struct peer_msg *m = t->o.snapshot_send ? peer_msg_of(&msgs[i]) : NULL;

            if (m)
                t->o.snapshot_send(t->o.snapshot_ctx, m);
            else
                turn_snapshot_sent(t, msgs[i].to, false, 0); /* asked for again, with the next heartbeat */
        }
    }
}

/* ---- in ---------------------------------------------------------------------------------------------- */

static size_t bytes_of(const struct peer_msg *m)
{
    size_t n = 0;

    for (uint32_t i = 0; i < m->n_entries; i++)
        n += m->entries[i]->len;
    return n;
}

void turn_receive(struct turn *t, struct peer_msg *m)
{
    size_t bytes = bytes_of(m);
    bool room = atomic_fetch_add_explicit(&t->inbox, 1, memory_order_relaxed) < LIMIT_PEER_INBOX;

    if (bytes && atomic_fetch_add_explicit(&t->inbox_bytes, bytes, memory_order_relaxed) >= LIMIT_PEER_INBOX_BYTES)
        room = false;
    if (!room && m->raft.type != RAFT_SNAPSHOT) { /* of which there is one at most: who has brought it waits for a
                                                   * verdict */
        atomic_fetch_sub_explicit(&t->inbox, 1, memory_order_relaxed);
        atomic_fetch_sub_explicit(&t->inbox_bytes, bytes, memory_order_relaxed);
        atomic_fetch_add_explicit(&t->pub_dropped, 1, memory_order_relaxed);
        peer_msg_free(m);
        return;
    }
    mailbox_post_quietly(&t->peer_box, &m->mail, &m->mail);
    turn_poke(t);
}

/* Takes m. */
static void step_raft(struct turn *t, struct peer_msg *m)
{
    const struct raft_msg *r = &m->raft;
    bool whole = true;

    if (r->type == RAFT_APPEND)
        whole = r->last - r->index == m->n_entries;
    else if (r->type == RAFT_SNAPSHOT)
        whole = r->conf && t->o.snap_install && m->is_here;
    else if (r->type == RAFT_TIMEOUT_NOW)
        t->may_stand = true;
    if (whole) {
        t->msg = m;
        (void)turn_raft(t, (struct raft_in){.type = RAFT_IN_MSG, .msg = r}); /* never refused */
        t->msg = NULL;
    }
    peer_msg_free(m);
}

static void step(struct turn *t, struct peer_msg *m)
{
    switch (m->kind) {
    case PEER_RAFT:
        step_raft(t, m);
        return;
    case PEER_PROPOSE:
        turn_proposals_foreign(t, m);
        return;
    case PEER_REFUSED:
        turn_proposals_refused(t, m);
        break;
    case PEER_LEASE_RENEW:
    case PEER_LEASE_RENEWED:
        turn_leases_message(t, m);
        break;
    case PEER_STATE_HASH:
    case PEER_STATE_ANSWER:
    case PEER_STATE_WRONG:
        if (t->o.state_hash)
            t->o.state_hash(t->o.state_hash_ctx, m);
        break;
    case PEER_KINDS:
        break;
    }
    peer_msg_free(m);
}

static void take_messages(struct turn *t)
{
    struct mail_list bulk = {0};
    struct mail *m = mailbox_take(&t->peer_box), *next;
    uint32_t n = 0;
    size_t bytes = 0;

    if (m == NULL)
        return;
    for (; m; m = next) {
        struct peer_msg *msg = (struct peer_msg *)m;

        next = m->next;
        n++;
        if (msg->n_entries) {
            bytes += bytes_of(msg);
            mail_push(&bulk, m);
        } else {
            step(t, msg);
        }
    }
    while (bulk.head)
        step(t, (struct peer_msg *)mail_pop(&bulk));
    atomic_fetch_sub_explicit(&t->inbox, n, memory_order_relaxed);
    atomic_fetch_sub_explicit(&t->inbox_bytes, bytes, memory_order_relaxed);
    raft_status(t->raft, &t->status);
}

/* ---- what the transport knows ---------------------------------------------------------------------------- */

static void give_event(struct turn *t, struct peer_event *e)
{
    mailbox_post(&t->event_box, &e->mail);
    mailbox_nudge(&t->box);
}

static void post_event(struct turn *t, struct raft_in in, struct peer_msg *msg)
{
    struct peer_event *e = malloc(sizeof *e);

    if (e == NULL) {
        peer_msg_free(msg); /* all of these only save time */
        return;
    }
    *e = (struct peer_event){.in = in, .msg = msg};
    give_event(t, e);
}

static void event_free(struct turn *t, struct peer_event *e)
{
    if (e >= t->sent_events && e < t->sent_events + RAFT_MEMBERS_MAX)
        atomic_store(&t->sent_taken[e - t->sent_events], false);
    else
        free(e);
}

void turn_suspect(struct turn *t, uint64_t member)
{
    post_event(t, (struct raft_in){.type = RAFT_IN_SUSPECT, .member = member}, NULL);
}

void turn_unreachable(struct turn *t, uint64_t member)
{
    post_event(t, (struct raft_in){.type = RAFT_IN_UNREACHABLE, .member = member}, NULL);
}

/* The core sends a member nothing until it hears how its snapshot went, so this may not be lost for want of memory; as
 * it waits for one at a time of each, there is room for all. */
void turn_snapshot_sent(struct turn *t, uint64_t member, bool ok, uint64_t index)
{
    struct raft_in in = {.type = RAFT_IN_SNAPSHOT_SENT, .member = member, .ok = ok, .index = index};

    for (size_t i = 0; i < RAFT_MEMBERS_MAX; i++) {
        if (atomic_exchange(&t->sent_taken[i], true))
            continue;
        t->sent_events[i] = (struct peer_event){.in = in};
        give_event(t, &t->sent_events[i]);
        return;
    }
    post_event(t, in, NULL);
}

void turn_campaign(struct turn *t)
{
    post_event(t, (struct raft_in){.type = RAFT_IN_CAMPAIGN}, NULL);
}

void turn_post(struct turn *t, struct peer_msg *m)
{
    post_event(t, (struct raft_in){0}, m);
}

static void take_events(struct turn *t)
{
    struct mail *m = mailbox_take(&t->event_box), *next;

    if (m == NULL)
        return;
    for (; m; m = next) {
        struct peer_event *e = (struct peer_event *)m;

        next = m->next;
        if (e->msg) {
            turn_send(t, e->msg);
        } else {
            t->may_stand |= e->in.type == RAFT_IN_CAMPAIGN;
            (void)turn_raft(t, e->in); /* none of them is refused */
        }
        event_free(t, e);
    }
    raft_status(t->raft, &t->status);
}

/* ---- transfers -------------------------------------------------------------------------------------------- */

/* The voter that has most of our log, of those that were heard of lately if there are any; 0: no other voter. */
static uint64_t best_follower(struct turn *t)
{
    const struct raft_set *voters = &raft_conf_of(t->raft)->voters;
    struct raft_peer best = {0};

    for (uint32_t i = 0; i < voters->n; i++) {
        struct raft_peer p;

        if (voters->ids[i] == t->o.member_id || !raft_peer(t->raft, voters->ids[i], &p))
            continue;
        if (best.id == 0 || (p.recent_active && !best.recent_active) ||
            (p.recent_active == best.recent_active && p.match > best.match))
            best = p;
    }
    return best.id;
}

static void transfer_done(struct transfer_wait *w, int err)
{
    w->err = err;
    w->done(w);
}

static void transfer_begin(struct turn *t, struct transfer_wait *w)
{
    uint64_t to = w->member ? w->member : best_follower(t);
    int err;

    if (t->status.role != RAFT_LEADER) {
        transfer_done(w, w->member && w->member == t->status.leader ? 0 : ERR_NOT_LEADER);
        return;
    }
    if (to == t->o.member_id) {
        transfer_done(w, 0);
        return;
    }
    if (to && t->status.transferee == 0)
        turn_leases_hand_over(t);
    err = to ? turn_raft(t, (struct raft_in){.type = RAFT_IN_TRANSFER, .member = to}) : ERR_BAD_TRANSFEREE;
    if (err) {
        transfer_done(w, err);
        return;
    }
    raft_status(t->raft, &t->status);
    w->deadline_ms = t->now_ms + t->o.election_ms;
    mail_push(&t->transfers, &w->mail);
}

static void take_transfers(struct turn *t)
{
    struct mail *m = mailbox_take(&t->transfer_box), *next;

    for (; m; m = next) {
        next = m->next;
        transfer_begin(t, (struct transfer_wait *)m);
    }
}

void turn_transfer(struct turn *t, struct transfer_wait *w)
{
    mailbox_post(&t->transfer_box, &w->mail);
    mailbox_nudge(&t->box);
    turn_answer_late(t);
}

void turn_peers_led(struct turn *t)
{
    if (t->status.leader == 0 || t->status.leader == t->o.member_id)
        return;
    while (t->transfers.head) {
        struct transfer_wait *w = (struct transfer_wait *)mail_pop(&t->transfers);

        transfer_done(w, w->member == 0 || w->member == t->status.leader ? 0 : ERR_LEADER_CHANGED);
    }
}

static void expire_transfers(struct turn *t)
{
    struct mail *m = t->transfers.head, *next;
    bool late = false;

    t->transfers = (struct mail_list){0};
    for (; m; m = next) {
        struct transfer_wait *w = (struct transfer_wait *)m;

        next = m->next;
        if (w->deadline_ms > t->now_ms) {
            mail_push(&t->transfers, m);
        } else {
            late = true;
            transfer_done(w, ERR_TIMEOUT);
        }
    }
    if (late && t->transfers.head == NULL && t->status.role == RAFT_LEADER)
        (void)turn_raft(t, (struct raft_in){.type = RAFT_IN_TRANSFER, .member = t->o.member_id}); /* gives up */
}

/* ---- a log that stalls ------------------------------------------------------------------------------------- */

static void watch_log(struct turn *t)
{
    uint64_t to;

    if (t->status.role != RAFT_LEADER || t->status.sole_voter || t->status.stored_seq == t->status.last_seq) {
        t->stall_ms = 0;
        return;
    }
    if (t->stall_ms == 0 || t->stall_seq != t->status.stored_seq) {
        t->stall_seq = t->status.stored_seq;
        t->stall_ms = t->now_ms + t->o.election_ms;
        return;
    }
    if (t->now_ms < t->stall_ms)
        return;
    t->stall_ms = t->now_ms + t->o.election_ms; /* the core gives a transfer up after as long */
    to = best_follower(t);
    if (to == 0 || t->status.transferee)
        return;
    log_warn("raft: the log's disk does not answer, leadership is handed on", LOG_HEX("to", to),
             LOG_UINT("election-timeout-ms", t->o.election_ms));
    (void)turn_raft(t, (struct raft_in){.type = RAFT_IN_TRANSFER, .member = to}); /* refused: tried again */
}

void turn_peers_watch(struct turn *t)
{
    if (t->transfers.head)
        expire_transfers(t);
    watch_log(t);
}

uint64_t turn_peers_deadline_ms(const struct turn *t)
{
    uint64_t at = t->stall_ms ? t->stall_ms : UINT64_MAX;

    for (struct mail *m = t->transfers.head; m; m = m->next)
        if (((struct transfer_wait *)m)->deadline_ms < at)
            at = ((struct transfer_wait *)m)->deadline_ms;
    return at;
}

/* ---- the step, the status, the end ---------------------------------------------------------------------------- */

void turn_peers_step(struct turn *t)
{
    take_events(t);
    take_messages(t);
    take_transfers(t);
}

void turn_peers_publish(struct turn *t)
{
    const struct raft_conf *c = raft_conf_of(t->raft);
    const struct raft_set *sets[] = {&c->voters, &c->outgoing, &c->learners};
    uint32_t n = 0;

    for (int s = 0; s < 3 && t->status.role == RAFT_LEADER; s++) {
        for (uint32_t i = 0; i < sets[s]->n && n < RAFT_MEMBERS_MAX; i++) {
            struct raft_peer p;

            if ((s == 1 && raft_set_has(&c->voters, sets[s]->ids[i])) || !raft_peer(t->raft, sets[s]->ids[i], &p))
                continue;
            atomic_store_explicit(&t->pub_peers[n].match, p.match, memory_order_relaxed);
            atomic_store_explicit(&t->pub_peers[n].next, p.next, memory_order_relaxed);
            atomic_store_explicit(&t->pub_peers[n].state, p.state, memory_order_relaxed);
            atomic_store_explicit(&t->pub_peers[n].active, p.recent_active, memory_order_relaxed);
            atomic_store_explicit(&t->pub_peers[n].paused, p.paused, memory_order_relaxed);
            atomic_store_explicit(&t->pub_peers[n++].id, p.id, memory_order_release);
        }
    }
    for (; n < RAFT_MEMBERS_MAX && atomic_load_explicit(&t->pub_peers[n].id, memory_order_relaxed); n++)
        atomic_store_explicit(&t->pub_peers[n].id, 0, memory_order_relaxed);
}

bool turn_peer(const struct turn *t, uint64_t member, struct raft_peer *ret_peer)
{
    for (uint32_t i = 0; i < RAFT_MEMBERS_MAX; i++) {
        if (atomic_load_explicit(&t->pub_peers[i].id, memory_order_acquire) != member)
            continue;
        *ret_peer = (struct raft_peer){
            .id = member,
            .match = atomic_load_explicit(&t->pub_peers[i].match, memory_order_relaxed),
            .next = atomic_load_explicit(&t->pub_peers[i].next, memory_order_relaxed),
            .state = (enum raft_peer_state)atomic_load_explicit(&t->pub_peers[i].state, memory_order_relaxed),
            .recent_active = atomic_load_explicit(&t->pub_peers[i].active, memory_order_relaxed),
            .paused = atomic_load_explicit(&t->pub_peers[i].paused, memory_order_relaxed),
        };
        return member != 0;
    }
    return false;
}

void turn_peers_stop(struct turn *t)
{
    struct mail *m = mailbox_take(&t->transfer_box), *next;

    for (; m; m = next) {
        next = m->next;
        mail_push(&t->transfers, m);
    }
    while (t->transfers.head)
        transfer_done((struct transfer_wait *)mail_pop(&t->transfers), ERR_STOPPED);
}

void turn_peers_fini(struct turn *t)
{
    struct mail *m, *next;

    for (m = mailbox_take(&t->peer_box); m; m = next) {
        next = m->next;
        peer_msg_free((struct peer_msg *)m);
    }
    for (m = mailbox_take(&t->event_box); m; m = next) {
        next = m->next;
        peer_msg_free(((struct peer_event *)m)->msg);
        event_free(t, (struct peer_event *)m);
    }
}
