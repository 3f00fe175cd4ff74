/* SPDX-License-Identifier: Apache-2.0 */
/* net.h - what travels between simulated members: packets of bytes that are lost, late, doubled and out of order.
 *
 * A message leaves its member a moment after it was sent: only then its entries are attached (peer_msg_fill) and it is
 * encoded, as the real transport does. It arrives as bytes and is decoded there. A link of its own time keeps order
 * mostly; a packet may straggle. A cut link eats; whoever sends may be told (turn_unreachable). A process that dies is
 * noticed by some (turn_suspect).
 *
 * Here too is what every message must be true to: a vote or a match that is said is on the platters of who says it; an
 * answer about the state was asked for.
 */
#pragma once
#include "daemon/peer.h"
#include "member.h"

struct datagram {
    struct datagram *next;
    uint64_t at_us, from, to, boot; /* boot: of the sender, for one that has not left yet */
    struct peer_msg *leaving;       /* not yet bytes */
    uint8_t *bytes;
    size_t n;
};

struct net_options {
    bool cut[MEMBERS_SIM_MAX][MEMBERS_SIM_MAX];
    uint64_t link_us[MEMBERS_SIM_MAX][MEMBERS_SIM_MAX]; /* when the newest packet of the link arrives */
    uint64_t slow_us[MEMBERS_SIM_MAX]; /* whatever goes to it is so much later */
    unsigned drop_pct, dup_pct, straggle_pct;
    uint64_t delay_us;
};

static inline void datagram_free(struct datagram *p)
{
    peer_msg_free(p->leaving);
    free(p->bytes);
    free(p);
}

static inline void net_put(struct sim *s, struct datagram *p)
{
    struct datagram **at = &s->net;

    while (*at && (*at)->at_us <= p->at_us)
        at = &(*at)->next;
    p->next = *at;
    *at = p;
}

static inline void net_clear(struct sim *s)
{
    for (struct datagram *p = s->net, *next; p; p = next) {
        next = p->next;
        datagram_free(p);
    }
    s->net = NULL;
}

/* What is said must be stored. */
static inline void net_check(struct sim_member *m, const struct peer_msg *msg)
{
    const struct raft_msg *r = &msg->raft;
    struct world *w = m->w;

    if (msg->kind == PEER_STATE_ANSWER && msg->to < MEMBERS_SIM_MAX && msg->index > m->state_asked[msg->to])
        world_fail(w, "AnswersAreAskedFor", "member %" PRIu64 " tells %" PRIu64 " its state at %" PRIu64, m->id, msg->to,
                   msg->index);
    m->judges |= msg->kind == PEER_STATE_HASH;
    if (msg->kind != PEER_RAFT)
        return;
    if (r->from != m->id)
        world_fail(w, "harness", "member %" PRIu64 " sends as %" PRIu64, m->id, r->from);
    if (r->type == RAFT_VOTE_REPLY && !r->reject && term_row(r->term) < SIM_TERMS_MAX) {
        uint64_t *vote = &m->s->o.vote_of[m->id][term_row(r->term)];

        if (*vote && *vote != r->to)
            world_fail(w, "VoteOncePerTermDurable", "member %" PRIu64 " votes twice in term %" PRIu64, m->id,
                       r->term);
        if (m->durable_term < r->term || (m->durable_term == r->term && m->durable_vote != r->to))
            world_fail(w, "VoteOncePerTermDurable",
                       "member %" PRIu64 " says its vote of term %" PRIu64 " before it is stored", m->id,
                       r->term);
        *vote = r->to;
    }
    if (m->turn->status.faulty && (r->type == RAFT_VOTE || r->type == RAFT_PRE_VOTE ||
                                   (!r->reject && (r->type == RAFT_VOTE_REPLY || r->type == RAFT_PRE_VOTE_REPLY))))
        world_fail(w, "NoSelfElectionWhileFaulty", "member %" PRIu64 " takes part in an election", m->id);
    if (r->type == RAFT_VOTE && (m->durable_term != r->term || m->durable_vote != m->id))
        world_fail(w, "VoteOncePerTermDurable",
                   "member %" PRIu64 " asks for votes of term %" PRIu64 " before its own is stored", m->id,
                   r->term);
    if (r->type == RAFT_APPEND_REPLY && !r->reject && r->index > m->durable_last &&
        r->term == m->turn->status.term)
        world_fail(w, "AckImpliesQuorumFsync",
                   "member %" PRIu64 " says match %" PRIu64 ", has stored %" PRIu64, m->id, r->index,
                   m->durable_last);
}

static const char *const sim_kinds[PEER_KINDS] = {
    [PEER_RAFT] = "raft",
    [PEER_PROPOSE] = "propose",
    [PEER_REFUSED] = "refused",
    [PEER_LEASE_RENEW] = "lease-renew",
    [PEER_LEASE_RENEWED] = "lease-renewed",
    [PEER_STATE_HASH] = "state-hash",
    [PEER_STATE_ANSWER] = "state-answer",
    [PEER_STATE_WRONG] = "state-wrong",
};
static const char *const sim_types[RAFT_MSG_TYPES] = {
    [RAFT_APPEND] = "append",       [RAFT_APPEND_REPLY] = "append-reply",
    [RAFT_HEARTBEAT] = "heartbeat", [RAFT_HEARTBEAT_REPLY] = "heartbeat-reply",
    [RAFT_VOTE] = "vote",           [RAFT_VOTE_REPLY] = "vote-reply",
    [RAFT_PRE_VOTE] = "pre-vote",   [RAFT_PRE_VOTE_REPLY] = "pre-vote-reply",
    [RAFT_SNAPSHOT] = "snapshot",   [RAFT_TIMEOUT_NOW] = "timeout-now",
    [RAFT_READ] = "read",           [RAFT_READ_REPLY] = "read-reply",
    [RAFT_COMMIT] = "commit",
};

static inline void net_line(struct sim *s, const char *what, const struct peer_msg *m)
{
    const struct raft_msg *r = &m->raft;

    if (!s->w.verbose)
        return;
    if (m->kind == PEER_RAFT)
        world_line(&s->w,
                   "%s %" PRIu64 ">%" PRIu64 " %s%s term %" PRIu64 " index %" PRIu64 " logterm %" PRIu64
                   " last %" PRIu64 " commit %" PRIu64 " hint %" PRIu64 " ctx %" PRIx64,
                   what, m->from, m->to, sim_types[r->type], r->reject ? " no" : "", r->term, r->index,
                   r->log_term, r->last, r->commit, r->hint, r->ctx);
    else
        world_line(&s->w, "%s %" PRIu64 ">%" PRIu64 " %s entries %u ids %u", what, m->from, m->to,
                   sim_kinds[m->kind], m->n_entries, m->n_ids);
}

static inline void member_send(struct transport *t, struct peer_msg *msg)
{
    struct sim_member *m = (struct sim_member *)((char *)t - offsetof(struct sim_member, transport));
    struct sim *s = m->s;
    struct datagram *p = calloc(1, sizeof *p);

    net_check(m, msg);
    net_line(s, "says", msg);
    if (msg->to == 0 || msg->to >= MEMBERS_SIM_MAX) {
        world_fail(m->w, "harness", "member %" PRIu64 " sends to %" PRIu64, m->id, msg->to);
        peer_msg_free(msg);
        free(p);
        return;
    }
    *p = (struct datagram){.from = m->id,
                         .to = msg->to,
                         .boot = m->boot,
                         .leaving = msg,
                         .at_us = s->w.now_us + world_random(&s->w, 20)};
    if (world_chance(&s->w, 5))
        p->at_us += world_delay(&s->w, 5000);
    net_put(s, p);
}

/* On its way: when does it arrive? */
static inline void net_fly(struct sim *s, struct datagram *p)
{
    struct net_options *o = s->net_options;
    struct world *w = &s->w;
    uint64_t *link = &o->link_us[p->from][p->to];

    p->at_us = w->now_us + 20 + world_delay(w, o->delay_us) + o->slow_us[p->to];
    if (world_chance(w, o->straggle_pct)) {
        p->at_us += world_random(w, 20 * s->heartbeat_ms * 1000);
    } else {
        if (p->at_us < *link)
            p->at_us = *link;
        *link = p->at_us;
    }
    net_put(s, p);
}

static inline struct datagram *net_copy(const struct datagram *p)
{
    struct datagram *d = calloc(1, sizeof *d);

    *d = *p;
    d->bytes = malloc(p->n);
    memcpy(d->bytes, p->bytes, p->n);
    return d;
}

static inline void net_unreachable(struct sim *s, uint64_t from, uint64_t to)
{
    if (s->m[from].up && !s->m[from].paused && world_chance(&s->w, 30))
        turn_unreachable(s->m[from].turn, to);
}

/* Its entries are attached, and it becomes bytes. What is more than fits follows as a message of its own. */
static inline void net_leave(struct sim *s, struct datagram *p)
{
    struct sim_member *m = &s->m[p->from];
    struct net_options *o = s->net_options;
    struct peer_msg *msg = p->leaving;

    if (!m->up || m->boot != p->boot) {
        datagram_free(p);
        return;
    }
    if (msg->kind == PEER_RAFT && msg->raft.type == RAFT_APPEND &&
        peer_msg_fill(msg, m->cache, m->wal, 1 + world_random(&s->w, 4096)) != 0) {
        datagram_free(p);
        return;
    }
    if (msg->rest) {
        struct datagram *q = calloc(1, sizeof *q);

        *q = (struct datagram){
            .from = p->from, .to = p->to, .boot = p->boot, .leaving = msg->rest, .at_us = s->w.now_us};
        msg->rest = NULL;
        net_put(s, q);
    }
    s->w.did.packets++;
    s->w.did.forwarded += msg->kind == PEER_PROPOSE;
    if (o->cut[p->from][p->to] || world_chance(&s->w, o->drop_pct)) {
        s->w.did.dropped++;
        net_unreachable(s, p->from, p->to);
        datagram_free(p);
        return;
    }
    p->n = peer_msg_size(msg);
    p->bytes = malloc(p->n);
    peer_msg_encode(msg, p->bytes);
    peer_msg_free(msg);
    p->leaving = NULL;
    if (world_chance(&s->w, o->dup_pct)) {
        net_fly(s, net_copy(p));
        s->w.did.doubled++;
    }
    net_fly(s, p);
}

static inline void net_arrive(struct sim *s, struct datagram *p)
{
    struct sim_member *m = &s->m[p->to];
    struct peer_msg *msg;

    if (m->up && m->paused) { /* it lies in the socket */
        p->at_us = s->w.now_us + 5000;
        net_put(s, p);
        return;
    }
    if (!m->up || s->net_options->cut[p->from][p->to]) {
        s->w.did.dropped++;
        net_unreachable(s, p->from, p->to);
        datagram_free(p);
        return;
    }
    if (peer_msg_decode(slice_of(p->bytes, p->n), &msg) != 0) {
        world_fail(&s->w, "codec", "a message of %" PRIu64 " cannot be decoded", p->from);
        datagram_free(p);
        return;
    }
    net_line(s, "hears", msg);
    if (msg->kind == PEER_STATE_HASH && msg->index > m->state_asked[p->from])
        m->state_asked[p->from] = msg->index;
    m->condemned |= msg->kind == PEER_STATE_WRONG;
    datagram_free(p);
    turn_receive(m->turn, msg);
}

/* The first packet that is due. */
static inline void net_step(struct sim *s)
{
    struct datagram *p = s->net;

    s->net = p->next;
    p->next = NULL;
    if (p->leaving)
        net_leave(s, p);
    else
        net_arrive(s, p);
}

/* A process has ended: its connections close, its port refuses; who can reach its machine sees it. */
static inline void net_death(struct sim *s, uint64_t id)
{
    for (unsigned i = 1; i <= s->n; i++) {
        struct sim_member *m = &s->m[i];

        if (m->up && !m->paused && i != id && !s->net_options->cut[i][id] && !s->net_options->cut[id][i] &&
            world_chance(&s->w, 60))
            turn_suspect(m->turn, id);
    }
}
