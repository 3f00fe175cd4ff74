/* SPDX-License-Identifier: Apache-2.0 */
/* read.c - read index: linearizable reads without a log entry (T 6.4).
 *
 * A round notes the commit index, then proves that this member still led when it did: a majority answers
 * a heartbeat that was sent after the round began. Rounds are numbered; heartbeats carry the newest number
 * and their replies echo it, so one reply confirms every round up to it, and a late one never confirms a
 * round that began after its heartbeat left. No number and no context is used twice: etcd's did repeat
 * when a read was tried again, and an old reply answered the new read (etcd issue 20418).
 *
 * Asked are as few voters as make a majority, those that were quickest the last time; all, when they take long, and now
 * and then, to see who is quickest. A follower's request is an answer, too: it left after its reads had come, in this
 * term, so nobody can have led in a later one by then with that follower's vote or with the leader's. Where the two are a
 * majority, as of three, the request is answered at once.
 *
 * A leader without a commit in its term does not know what its predecessors committed: rounds wait.
 *
 * With lease_reads every heartbeat is a round of that kind, and extends a lease: who confirmed it will not help to
 * elect another leader for an election timeout after it got it, so for a little less than one after it left nobody else
 * leads, and a read needs no round. That trusts the clocks of all members: see raft.h.
 */
#include "core.h"
#include "err.h"

#define ASK_ALL_EVERY 64u /* rounds */

static struct read_round *round_at(struct raft *r, uint32_t i)
{
    return &r->reads[(r->reads_head + i) % RAFT_READS_MAX];
}

static void push_round(struct raft *r, uint64_t ctx, uint64_t from)
{
    assert(r->reads_n < RAFT_READS_MAX);
    *round_at(r, r->reads_n++) = (struct read_round){.ctx = ctx, .from = from};
}

static void pop_round(struct raft *r)
{
    r->reads_head = (r->reads_head + 1) % RAFT_READS_MAX;
    r->reads_n--;
}

static void finish_round(struct raft *r, uint64_t ctx, uint64_t index)
{
    assert(r->out.n_reads < RAFT_READS_MAX);
    r->done_reads[r->out.n_reads++] = (struct raft_read){ctx, index};
}

/* ---- the lease ----------------------------------------------------------------------------------- */

void read_lease_probe(struct raft *r)
{
    if (!r->lease_reads || r->lease_seq)
        return; /* one on its way is confirmed by any later heartbeat's reply too */
    r->lease_seq = ++r->read_seq;
    r->lease_at = r->now;
}

static void lease_extend(struct raft *r, uint64_t reached)
{
    if (r->lease_seq == 0 || r->lease_seq > reached)
        return;
    r->lease_until = r->lease_at + r->election_ms - r->election_ms / 10; /* clocks may differ by a tenth */
    r->lease_seq = 0;
}

void read_lease_give_up(struct raft *r)
{
    r->lease_over = true;
}

static bool lease_holds(const struct raft *r)
{
    return r->lease_reads && !r->lease_over && r->now < r->lease_until;
}

/* ---- rounds -------------------------------------------------------------------------------------- */

static uint64_t read_ack_of(const struct progress *p)
{
    return p->read_ack;
}

static void reply(struct raft *r, uint64_t to, uint64_t ctx, uint64_t index)
{
    struct raft_msg *m = raft_send(r, RAFT_READ_REPLY, to);

    if (m) {
        m->ctx = ctx;
        m->index = index;
    }
}

/* The oldest round is done. */
static void answer_round(struct raft *r)
{
    const struct read_round *d = round_at(r, 0);

    if (d->from == r->id)
        finish_round(r, d->ctx, d->index);
    else
        reply(r, d->from, d->ctx, d->index);
    pop_round(r);
}

/* Every answer that had come when the round was confirmed: the last one made the majority. */
static void note_quick(struct raft *r, uint64_t seq)
{
    for (uint32_t i = 0; i < r->n_prs; i++)
        r->prs[i].read_quick = r->prs[i].read_ack >= seq && r->prs[i].id != r->id &&
                               raft_set_has(&r->conf.voters, r->prs[i].id);
}

void read_check(struct raft *r)
{
    uint64_t reached, done = 0;

    raft_progress_of(r, r->id)->read_ack = r->read_seq;
    reached = raft_quorum_reached(r, read_ack_of);
    lease_extend(r, reached);
    while (r->reads_n && round_at(r, 0)->seq && round_at(r, 0)->seq <= reached) {
        done = round_at(r, 0)->seq;
        answer_round(r);
    }
    if (done)
        note_quick(r, done);
    if (r->reads_n == 0)
        r->read_at = UINT64_MAX;
}

/* False: all are to be asked. */
static bool ask_few(struct raft *r)
{
    uint32_t need = r->conf.voters.n / 2, quick = 0; /* besides this member */

    if (r->lease_reads || r->conf.outgoing.n || !raft_set_has(&r->conf.voters, r->id) || r->read_seq % ASK_ALL_EVERY == 0)
        return false;
    for (uint32_t i = 0; i < r->n_prs; i++)
        quick += r->prs[i].read_quick;
    if (quick < need)
        return false;
    for (uint32_t i = 0; i < r->n_prs && need; i++)
        if (r->prs[i].read_quick) {
            leader_heartbeat_to(r, &r->prs[i]);
            need--;
        }
    r->read_at = r->now + (r->heartbeat_ms + 9) / 10;
    return true;
}

/* Rounds that have not begun begin now, all with one heartbeat. */
static void begin_rounds(struct raft *r)
{
    bool any = false;

    if (!leader_confirmed(r))
        return;
    for (uint32_t i = 0; i < r->reads_n; i++) {
        struct read_round *d = round_at(r, i);

        if (d->seq)
            continue;
        d->seq = any ? r->read_seq : ++r->read_seq;
        d->index = r->commit;
        any = true;
    }
    while (r->reads_n && lease_holds(r))
        answer_round(r);
    if (!any || r->reads_n == 0)
        return;
    if (!ask_few(r))
        leader_heartbeat(r);
    read_check(r);
}

void read_committed(struct raft *r)
{
    begin_rounds(r);
}

int read_begin(struct raft *r)
{
    struct raft_msg *m;

    if (r->role != RAFT_LEADER && (r->leader == 0 || r->leader == r->id))
        return ERR_NO_LEADER;
    if (r->reads_n == RAFT_READS_MAX) {
        if (r->role == RAFT_LEADER)
            return ERR_TOO_MANY_REQUESTS;
        pop_round(r); /* its request or reply was lost long ago */
    }
    r->out.read_started = ++r->read_ctx;
    push_round(r, r->read_ctx, r->id);
    if (r->role == RAFT_LEADER) {
        begin_rounds(r);
        return 0;
    }
    m = raft_send(r, RAFT_READ, r->leader);
    if (m)
        m->ctx = r->read_ctx;
    return 0;
}

/* This member and another one are a majority. */
static bool two_suffice(const struct raft *r, uint64_t other)
{
    const struct raft_set *halves[] = {&r->conf.voters, &r->conf.outgoing};

    for (int h = 0; h < 2; h++) {
        uint32_t yes = (uint32_t)raft_set_has(halves[h], r->id) + (uint32_t)raft_set_has(halves[h], other);

        if (quorum_vote(yes, 0, halves[h]->n) != QUORUM_WON)
            return false;
    }
    return true;
}

void read_on_request(struct raft *r, const struct raft_msg *m)
{
    if (leader_confirmed(r) && two_suffice(r, m->from)) {
        reply(r, m->from, m->ctx, r->commit);
        return;
    }
    if (r->role != RAFT_LEADER || r->reads_n == RAFT_READS_MAX) {
        raft_drop(r);
        return;
    }
    for (uint32_t i = 0; i < r->reads_n; i++)
        if (round_at(r, i)->ctx == m->ctx && round_at(r, i)->from == m->from)
            return; /* the network said it twice */
    push_round(r, m->ctx, m->from);
    begin_rounds(r);
}

void read_on_reply(struct raft *r, const struct raft_msg *m)
{
    uint32_t kept = 0;

    if (r->role == RAFT_LEADER)
        return;
    for (uint32_t i = 0; i < r->reads_n; i++) {
        struct read_round d = *round_at(r, i);

        if (d.ctx == m->ctx)
            finish_round(r, d.ctx, m->index);
        else
            *round_at(r, kept++) = d;
    }
    r->reads_n = kept;
}

void read_on_ack(struct raft *r, struct progress *p, uint64_t seq)
{
    if (seq <= p->read_ack)
        return;
    p->read_ack = seq;
    read_check(r);
}

void read_lose(struct raft *r)
{
    for (uint32_t i = 0; i < r->reads_n; i++)
        if (round_at(r, i)->from == r->id)
            r->out.flags |= RAFT_OUT_READS_LOST;
    r->reads_n = 0;
    r->read_at = UINT64_MAX;
}
