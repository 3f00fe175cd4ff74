/* SPDX-License-Identifier: Apache-2.0 */
/* cluster.h - cores over a fake disk, clock and network, in one thread; what must always hold is checked at
 * every step.
 *
 * A node is a host as include/raft.h asks for one, in its smallest form: its log is an array, its state machine
 * remembers nothing but how far it is. A disk is a queue of writes: a crash keeps the stored ones, any first part
 * of the others, and loses the rest. Used by the simulation (tests/unit/raft_sim.c) and by the traces
 * (tests/unit/raft_trace.c).
 *
 * The names of the properties are RELIABILITY's; a property that does not hold calls cluster_fail().
 */
#pragma once
#include <stdarg.h>
#include <stdio.h>
#include "err.h"
#include "raft.h"

enum {
    NODES_MAX = 8,        /* ids 1 ... NODES_MAX - 1 */
    LOG_MAX = 20000,      /* entries of one run */
    TERMS_MAX = 20000,
    WRITES_MAX = 8192,
    CARRY_MAX = RAFT_APPEND_MAX,
    READS_WAIT_MAX = 64,
    SEEN_BITS = 17,
};

enum value_kind { VALUE_EMPTY, VALUE_DATA, VALUE_CONF };

struct value {
    uint64_t term, id;
    enum value_kind kind;
    struct raft_conf_change change;
};

/* One output's worth of storing. */
struct write {
    uint64_t seq;
    bool hard, snapshot;
    uint64_t term, vote, commit;
    uint64_t first; /* entries [first, last]; SNAPSHOT: first - 1 is its index */
    uint64_t last;
    uint64_t snapshot_term;
    struct raft_conf conf;
    struct value *values; /* owned */
};

/* What is on the platter. */
struct disk_state {
    uint64_t term, vote, commit;
    uint64_t base, base_term, last;
    struct value *log; /* [LOG_MAX], by index */
    uint64_t applied;  /* of the flushed state machine */
    struct raft_conf conf;
};

struct read_waiting {
    uint64_t ctx, floor; /* the highest commit anybody knew when it began */
};

struct node {
    uint64_t id;
    bool up, paused;
    struct raft *raft;
    void *mem;
    uint64_t deadline;
    struct disk_state disk;
    uint64_t fence; /* beside the disk: it was lost, see raft_params.fence_term */
    struct write writes[WRITES_MAX]; /* a ring: what the disk has not done yet */
    uint32_t writes_head, writes_n;
    uint64_t disk_at; /* when the first of them is done */
    struct value *log; /* as the host holds it: [LOG_MAX], by index */
    uint64_t last;
    uint64_t applied, apply_to;
    uint64_t commit_seen, term_seen;
    struct read_waiting reads[READS_WAIT_MAX];
    uint32_t n_reads;
    struct raft_status st;
};

struct packet {
    struct packet *next;
    uint64_t at;
    struct raft_msg msg;
    struct raft_conf conf;
    struct value *values; /* owned: of (index, last] */
    bool lost;            /* a transfer that will fail: its sender hears of it */
};

struct seen_entry {
    uint64_t index, term, id, prev_term; /* term 0: free */
};

struct cluster {
    uint64_t now, seed, rng;
    int n;
    struct node nodes[NODES_MAX];
    struct packet *net; /* by time */
    bool cut[NODES_MAX][NODES_MAX];
    uint32_t heartbeat_ms;
    unsigned drop_pct, dup_pct, delay_min, delay_max, disk_min, disk_max, compact_pct, split_pct, straggle_pct;
    uint64_t next_value;
    FILE *trace; /* what every step said, a line each; NULL: nobody reads it */
    bool hold;  /* packets wait for cluster_deliver by hand */
    bool lease_reads;
    uint32_t inflight_max;
    const char *failed;

    /* What everybody agrees on. */
    uint64_t committed; /* the highest anybody has known */
    struct value *agreed; /* [LOG_MAX] */
    uint64_t *agreed_in;  /* [LOG_MAX]: the term of the leader that committed it */
    uint64_t leader_of[TERMS_MAX];
    uint64_t vote_of[NODES_MAX][TERMS_MAX];
    struct seen_entry *seen; /* [1 << SEEN_BITS] */

    /* Did anything happen at all? */
    uint64_t steps, elections, leader_changes, commits, reads_done, reads_lost, snapshots, crashes, lost_writes,
        dropped, cuts, conf_changes, transfers, compactions, losses, repaired;
    uint64_t last_leader;
};

static uint32_t cluster_random(struct cluster *c, uint32_t below)
{
    c->rng ^= c->rng << 13;
    c->rng ^= c->rng >> 7;
    c->rng ^= c->rng << 17;
    return (uint32_t)((c->rng >> 11) % below);
}

static bool cluster_chance(struct cluster *c, unsigned pct)
{
    return cluster_random(c, 100) < pct;
}

static void cluster_fail(struct cluster *c, const char *property, const char *fmt, ...)
{
    va_list ap;

    if (c->failed)
        return;
    c->failed = property;
    printf("# %s broken at %llu ms, SEED=%llu: ", property, (unsigned long long)c->now, (unsigned long long)c->seed);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
}

#define U(x) ((unsigned long long)(x))

/* ---- properties -------------------------------------------------------------------------------- */

static uint64_t term_at(const struct node *n, uint64_t index)
{
    return index == 0 ? 0 : raft_term_of(n->raft, index);
}

/* LogMatching, by induction: an entry is made once, with one predecessor. */
static void check_entry(struct cluster *c, const struct node *n, uint64_t index, const struct value *v,
                        uint64_t prev_term)
{
    uint32_t mask = (1u << SEEN_BITS) - 1, h = (uint32_t)((index * 0x9e3779b97f4a7c15u ^ v->term * 0xc2b2ae3du) >> 20);

    for (;; h++) {
        struct seen_entry *s = &c->seen[h & mask];

        if (s->term == 0) {
            *s = (struct seen_entry){index, v->term, v->id, prev_term};
            return;
        }
        if (s->index != index || s->term != v->term)
            continue;
        if (s->id != v->id || s->prev_term != prev_term)
            cluster_fail(c, "LogMatching", "node %llu has another entry at %llu/%llu", U(n->id), U(index), U(v->term));
        return;
    }
}

static bool on_disk(const struct node *n, uint64_t index, const struct value *v)
{
    if (index <= n->disk.base)
        return true;
    return index <= n->disk.last && n->disk.log[index].term == v->term && n->disk.log[index].id == v->id;
}

/* A disk that was lost since had what it acknowledged; to a leader of after the fence it has to be there again. */
static bool had(const struct node *n, uint64_t leaders_term)
{
    return n->fence && leaders_term < n->fence;
}

/* AckImpliesQuorumFsync: what becomes known as committed is on a majority's platters, in both halves. */
static void check_durable(struct cluster *c, const struct node *n, uint64_t index, const struct value *v)
{
    const struct raft_conf *conf = raft_conf_of(n->raft);
    const struct raft_set *halves[] = {&conf->voters, &conf->outgoing};

    for (int h = 0; h < 2; h++) {
        uint32_t have = 0;

        for (uint32_t i = 0; i < halves[h]->n; i++)
            have += on_disk(&c->nodes[halves[h]->ids[i]], index, v) || had(&c->nodes[halves[h]->ids[i]], n->st.term);
        if (halves[h]->n && have < halves[h]->n / 2 + 1)
            cluster_fail(c, "AckImpliesQuorumFsync", "node %llu commits %llu/%llu with %u of %u stored", U(n->id),
                         U(index), U(v->term), have, halves[h]->n);
    }
}

static void check_commit(struct cluster *c, struct node *n, uint64_t commit)
{
    if (commit < n->commit_seen)
        cluster_fail(c, "CommitMonotone", "node %llu: %llu after %llu", U(n->id), U(commit), U(n->commit_seen));
    for (uint64_t i = n->commit_seen + 1; i <= commit; i++) {
        struct value v = n->log[i];

        if (i <= n->st.first_index)
            continue; /* came by a snapshot: checked where it was applied */
        if (i <= c->committed) {
            if (c->agreed[i].term != v.term || c->agreed[i].id != v.id)
                cluster_fail(c, "StateMachineSafety", "node %llu commits another entry at %llu", U(n->id), U(i));
            continue;
        }
        if (n->st.role != RAFT_LEADER)
            cluster_fail(c, "LeaderCommitsFirst", "node %llu, %llu", U(n->id), U(i));
        if (i == commit)
            check_durable(c, n, i, &v);
        c->agreed[i] = v;
        c->agreed_in[i] = n->st.term;
    }
    if (commit > c->committed) {
        c->commits += commit - c->committed;
        c->committed = commit;
    }
    n->commit_seen = commit;
}

static void check_leader(struct cluster *c, struct node *n)
{
    uint64_t term = n->st.term;

    if (n->st.role != RAFT_LEADER)
        return;
    if (!n->st.is_voter)
        cluster_fail(c, "NonVoterNeverElected", "node %llu", U(n->id));
    if (c->leader_of[term] == n->id)
        return;
    if (c->leader_of[term])
        cluster_fail(c, "ElectionSafety", "nodes %llu and %llu lead in term %llu", U(c->leader_of[term]), U(n->id),
                     U(term));
    c->leader_of[term] = n->id;
    c->elections++;
    c->leader_changes += c->last_leader != n->id;
    c->last_leader = n->id;
    /* One elected late, by votes that lay in a socket while later terms went by, owes nothing to those. */
    for (uint64_t i = n->st.first_index + 1; i <= c->committed && c->agreed_in[i] < term; i++)
        if (i > n->last || n->log[i].term != c->agreed[i].term || n->log[i].id != c->agreed[i].id) {
            cluster_fail(c, "LeaderCompleteness", "node %llu leads term %llu without entry %llu", U(n->id), U(term),
                         U(i));
            return;
        }
}

static void check_msg(struct cluster *c, const struct node *n, const struct raft_msg *m)
{
    if (m->type == RAFT_VOTE_REPLY && !m->reject) {
        uint64_t *vote = &c->vote_of[n->id][m->term];

        if (*vote && *vote != m->to)
            cluster_fail(c, "VoteOncePerTermDurable", "node %llu in term %llu", U(n->id), U(m->term));
        if (n->disk.term < m->term || (n->disk.term == m->term && n->disk.vote != m->to))
            cluster_fail(c, "VoteOncePerTermDurable", "node %llu: said before stored", U(n->id));
        *vote = m->to;
    }
    if (m->type == RAFT_VOTE && (n->disk.term != m->term || n->disk.vote != n->id))
        cluster_fail(c, "VoteOncePerTermDurable", "node %llu: asks for votes before its own is stored", U(n->id));
    if (m->type == RAFT_APPEND_REPLY && !m->reject && m->term == n->disk.term && m->index > n->disk.last)
        cluster_fail(c, "AckImpliesQuorumFsync", "node %llu acknowledges %llu, has %llu", U(n->id), U(m->index),
                     U(n->disk.last));
}

/* ---- network ----------------------------------------------------------------------------------- */

static void packet_free(struct packet *p)
{
    if (p)
        free(p->values);
    free(p);
}

static void net_put(struct cluster *c, struct packet *p)
{
    struct packet **at = &c->net;

    while (*at && (*at)->at <= p->at)
        at = &(*at)->next;
    p->next = *at;
    *at = p;
}

static struct packet *packet_new(const struct node *n, const struct raft_msg *m)
{
    struct packet *p = calloc(1, sizeof *p);

    p->msg = *m;
    if (m->type == RAFT_APPEND && m->last > m->index) {
        size_t bytes = (m->last - m->index) * sizeof(struct value);

        p->values = malloc(bytes);
        memcpy(p->values, &n->log[m->index + 1], bytes);
    }
    return p;
}

static const char *const msg_names[RAFT_MSG_TYPES] = {
    [RAFT_APPEND] = "append",         [RAFT_APPEND_REPLY] = "append-reply", [RAFT_HEARTBEAT] = "heartbeat",
    [RAFT_HEARTBEAT_REPLY] = "heartbeat-reply", [RAFT_VOTE] = "vote",       [RAFT_VOTE_REPLY] = "vote-reply",
    [RAFT_PRE_VOTE] = "pre-vote",     [RAFT_PRE_VOTE_REPLY] = "pre-vote-reply", [RAFT_SNAPSHOT] = "snapshot",
    [RAFT_TIMEOUT_NOW] = "timeout-now", [RAFT_READ] = "read",               [RAFT_READ_REPLY] = "read-reply",
    [RAFT_COMMIT] = "commit",
};

static void msg_print(FILE *f, const struct raft_msg *m)
{
    fprintf(f, "%llu->%llu %s term=%llu", U(m->from), U(m->to), msg_names[m->type], U(m->term));
    switch (m->type) {
    case RAFT_APPEND:
        fprintf(f, " prev=%llu/%llu", U(m->index), U(m->log_term));
        if (m->last > m->index) {
            fprintf(f, " entries=%llu..%llu", U(m->index + 1), U(m->last));
            for (uint32_t i = 0; i < m->n_runs; i++)
                fprintf(f, "%s%llu", i ? "," : " terms=", U(m->runs[i].term));
        }
        fprintf(f, " commit=%llu", U(m->commit));
        break;
    case RAFT_APPEND_REPLY:
        if (m->reject)
            fprintf(f, " refused=%llu hint=%llu/%llu", U(m->index), U(m->hint), U(m->log_term));
        else
            fprintf(f, " match=%llu", U(m->index));
        break;
    case RAFT_COMMIT:
        fprintf(f, " commit=%llu", U(m->commit));
        break;
    case RAFT_HEARTBEAT:
        fprintf(f, " commit=%llu", U(m->commit));
        if (m->index != m->commit)
            fprintf(f, " of %llu", U(m->index));
        if (m->ctx)
            fprintf(f, " round=%llu", U(m->ctx));
        break;
    case RAFT_HEARTBEAT_REPLY:
        if (m->ctx)
            fprintf(f, " round=%llu", U(m->ctx));
        break;
    case RAFT_VOTE:
    case RAFT_PRE_VOTE:
        fprintf(f, " last=%llu/%llu%s", U(m->index), U(m->log_term), m->transfer ? " transfer" : "");
        break;
    case RAFT_VOTE_REPLY:
    case RAFT_PRE_VOTE_REPLY:
        if (m->reject)
            fprintf(f, " refused commit=%llu/%llu", U(m->index), U(m->log_term));
        else
            fprintf(f, " granted");
        break;
    case RAFT_SNAPSHOT:
        fprintf(f, " last=%llu/%llu", U(m->index), U(m->log_term));
        break;
    case RAFT_READ_REPLY:
        fprintf(f, " index=%llu", U(m->index));
        break;
    default:
        break;
    }
    fprintf(f, "\n");
}

static void node_raft(struct cluster *c, struct node *n, struct raft_in in);

/* The host's part of a snapshot: what it has applied, and the configuration as of then. */
static void fill_snapshot(struct node *n, struct packet *p)
{
    p->msg.index = n->applied;
    p->msg.log_term = raft_term_of(n->raft, n->applied);
    p->conf = *raft_conf_of(n->raft);
}

static void net_send_one(struct cluster *c, struct node *n, const struct raft_msg *m)
{
    bool dup = cluster_chance(c, c->dup_pct);

    for (int i = 0; i < 1 + dup; i++) {
        bool lost = !c->hold && (c->cut[m->from][m->to] || cluster_chance(c, c->drop_pct));
        struct packet *p;

        c->dropped += lost;
        if (lost && m->type != RAFT_SNAPSHOT)
            continue;
        p = packet_new(n, m);
        p->lost = lost;
        p->at = c->now + c->delay_min + cluster_random(c, c->delay_max - c->delay_min + 1);
        if (c->straggle_pct && cluster_chance(c, c->straggle_pct))
            p->at += cluster_random(c, 20 * c->heartbeat_ms); /* long after what was sent later */
        if (m->type == RAFT_SNAPSHOT) {
            fill_snapshot(n, p);
            p->at += c->delay_max;
        }
        net_put(c, p);
    }
}

/* The first entries of an APPEND, up to index, in a message of their own; m keeps the rest. */
static struct raft_msg split_append(struct raft_msg *m, uint64_t index)
{
    struct raft_msg head = *m;
    uint32_t in_head = 0, drop;

    while (in_head < m->n_runs && m->runs[in_head].first <= index)
        in_head++;
    head.n_runs = in_head;
    head.last = index;
    m->log_term = m->runs[in_head - 1].term;
    m->index = index;
    drop = in_head < m->n_runs && m->runs[in_head].first == index + 1 ? in_head : in_head - 1;
    memmove(m->runs, m->runs + drop, (m->n_runs - drop) * sizeof m->runs[0]);
    m->n_runs -= drop;
    m->runs[0].first = index + 1;
    return head;
}

/* A host may send a range in pieces: each travels alone. */
static void net_send(struct cluster *c, struct node *n, const struct raft_msg *whole)
{
    struct raft_msg m = *whole, head;

    check_msg(c, n, whole);
    while (c->split_pct && m.type == RAFT_APPEND && m.last > m.index + 1 && cluster_chance(c, c->split_pct)) {
        head = split_append(&m, m.index + 1 + cluster_random(c, (uint32_t)(m.last - m.index - 1)));
        net_send_one(c, n, &head);
    }
    net_send_one(c, n, &m);
}

/* ---- a node ------------------------------------------------------------------------------------ */

static void push_write(struct cluster *c, struct node *n, const struct raft_out *out, const struct packet *p)
{
    struct write *w;

    assert(n->writes_n < WRITES_MAX);
    w = &n->writes[(n->writes_head + n->writes_n++) % WRITES_MAX];
    *w = (struct write){.seq = out->store_seq, .term = out->term, .vote = out->vote, .commit = out->commit};
    w->hard = out->flags & RAFT_OUT_STATE;
    w->first = out->first;
    w->last = out->last;
    if (out->flags & RAFT_OUT_SNAPSHOT) {
        w->snapshot = true;
        w->snapshot_term = p->msg.log_term;
        w->conf = p->conf;
    }
    if (out->entries != RAFT_ENTRIES_NONE) {
        w->values = malloc((w->last - w->first + 1) * sizeof(struct value));
        memcpy(w->values, &n->log[w->first], (w->last - w->first + 1) * sizeof(struct value));
    }
    if (n->writes_n == 1)
        n->disk_at = c->now + c->disk_min + cluster_random(c, c->disk_max - c->disk_min + 1);
}

/* Entries get their bytes. */
static void fill_log(struct cluster *c, struct node *n, const struct raft_out *out, const struct packet *p,
                     const struct raft_conf_change *change)
{
    if (out->first && out->first <= n->last)
        c->cuts += !(out->flags & RAFT_OUT_SNAPSHOT);
    if (out->flags & RAFT_OUT_SNAPSHOT) {
        n->last = out->first - 1;
        n->log[n->last].term = p->msg.log_term;
        return;
    }
    for (uint64_t i = out->first; out->entries != RAFT_ENTRIES_NONE && i <= out->last; i++) {
        struct value *v = &n->log[i];

        assert(i < LOG_MAX);
        if (out->entries == RAFT_ENTRIES_MSG) {
            *v = p->values[i - p->msg.index - 1];
            if (raft_term_of(n->raft, i) != v->term)
                cluster_fail(c, "LogMatching", "node %llu: term of %llu", U(n->id), U(i));
        } else {
            *v = (struct value){.term = out->entries_term, .id = ++c->next_value};
            if (out->entries == RAFT_ENTRIES_PROPOSED)
                v->kind = change ? VALUE_CONF : VALUE_DATA;
            if (out->entries == RAFT_ENTRIES_LEAVE)
                v->kind = VALUE_CONF;
            if (change)
                v->change = *change;
        }
        n->last = i;
        check_entry(c, n, i, v, term_at(n, i - 1));
    }
}

static void done_reads(struct cluster *c, struct node *n, const struct raft_out *out)
{
    for (uint32_t i = 0; i < out->n_reads; i++)
        for (uint32_t k = 0; k < n->n_reads; k++) {
            if (n->reads[k].ctx != out->reads[i].ctx)
                continue;
            if (out->reads[i].index < n->reads[k].floor)
                cluster_fail(c, "ReadIndexFresh", "node %llu reads at %llu, %llu was committed", U(n->id),
                             U(out->reads[i].index), U(n->reads[k].floor));
            c->reads_done++;
            n->reads[k] = n->reads[--n->n_reads];
            break;
        }
    if (out->flags & RAFT_OUT_READS_LOST) {
        c->reads_lost += n->n_reads;
        n->n_reads = 0;
    }
}

static void set_print(FILE *f, const char *name, const struct raft_set *s)
{
    for (uint32_t i = 0; i < s->n; i++)
        fprintf(f, "%s%s%llu", i ? "," : " ", i ? "" : name, U(s->ids[i]));
}

static void conf_print(FILE *f, const struct raft_conf *conf)
{
    set_print(f, "voters=", &conf->voters);
    set_print(f, "outgoing=", &conf->outgoing);
    set_print(f, "learners=", &conf->learners);
    set_print(f, "learners-next=", &conf->learners_next);
    fprintf(f, "%s\n", conf->auto_leave ? " auto-leave" : "");
}

static const char *const role_names[] = {"follower", "pre-candidate", "candidate", "leader"};

/* What a step said, for people. */
static void trace_out(FILE *f, const struct node *n, const struct raft_status *was, const struct raft_out *out)
{
    if (was->role != n->st.role || was->term != n->st.term)
        fprintf(f, "%llu: %s, term %llu\n", U(n->id), role_names[n->st.role], U(n->st.term));
    if (was->faulty && !n->st.faulty)
        fprintf(f, "%llu: faulty no more\n", U(n->id));
    if (out->flags & RAFT_OUT_SNAPSHOT)
        fprintf(f, "%llu: store snapshot %llu\n", U(n->id), U(out->first - 1));
    if (out->flags & RAFT_OUT_STATE)
        fprintf(f, "%llu: store term=%llu vote=%llu\n", U(n->id), U(out->term), U(out->vote));
    if (out->entries != RAFT_ENTRIES_NONE)
        fprintf(f, "%llu: store entries %llu..%llu\n", U(n->id), U(out->first), U(out->last));
    if (out->apply_to != n->apply_to)
        fprintf(f, "%llu: may apply %llu\n", U(n->id), U(out->apply_to));
    for (uint32_t i = 0; i < out->n_reads; i++)
        fprintf(f, "%llu: read index %llu\n", U(n->id), U(out->reads[i].index));
    if (out->flags & RAFT_OUT_READS_LOST)
        fprintf(f, "%llu: reads lost\n", U(n->id));
    if (out->flags & RAFT_OUT_CONF) {
        fprintf(f, "%llu: conf", U(n->id));
        conf_print(f, raft_conf_of(n->raft));
    }
    for (uint32_t i = 0; i < out->n_msgs; i++)
        msg_print(f, &out->msgs[i]);
}

static void node_out(struct cluster *c, struct node *n, const struct raft_out *out, const struct packet *p,
                     const struct raft_in *in)
{
    struct raft_status was = n->st;
    uint64_t floor = c->committed;

    raft_status(n->raft, &n->st);
    if (n->fence && !n->st.faulty) {
        n->fence = 0;
        c->repaired++;
    }
    if (n->st.faulty && n->st.role != RAFT_FOLLOWER)
        cluster_fail(c, "NoSelfElectionWhileFaulty", "node %llu", U(n->id));
    if (c->trace)
        trace_out(c->trace, n, &was, out);
    if (out->term < n->term_seen)
        cluster_fail(c, "TermMonotone", "node %llu", U(n->id));
    n->term_seen = out->term;
    fill_log(c, n, out, p, in->change);
    if (n->last != n->st.last_index)
        cluster_fail(c, "HostAgrees", "node %llu: last %llu, the core says %llu", U(n->id), U(n->last),
                     U(n->st.last_index));
    if (out->store_seq)
        push_write(c, n, out, p);
    else if (out->first || (out->flags & (RAFT_OUT_STATE | RAFT_OUT_SNAPSHOT)))
        cluster_fail(c, "HostAgrees", "node %llu: something to store without a store_seq", U(n->id));
    check_leader(c, n);
    check_commit(c, n, out->commit);
    if (out->apply_to < n->apply_to)
        cluster_fail(c, "CommitMonotone", "node %llu: apply_to goes back", U(n->id));
    n->apply_to = out->apply_to;
    n->deadline = out->deadline_ms;
    if (out->read_started && n->n_reads < READS_WAIT_MAX)
        n->reads[n->n_reads++] = (struct read_waiting){out->read_started, floor};
    done_reads(c, n, out);
    for (uint32_t i = 0; i < out->n_msgs; i++)
        net_send(c, n, &out->msgs[i]);
}

static int node_step(struct cluster *c, struct node *n, struct raft_in in, const struct packet *p)
{
    struct raft_out out;
    int err;

    if (c->failed)
        return 0;
    in.now_ms = c->now;
    c->steps++;
    err = raft_step(n->raft, &in, &out);
    if (err == 0)
        node_out(c, n, &out, p, &in);
    return err;
}

static void node_raft(struct cluster *c, struct node *n, struct raft_in in)
{
    (void)node_step(c, n, in, NULL); /* a refusal is an answer too */
}

/* What the platter holds after one write. */
static void disk_do(struct node *n, const struct write *w)
{
    if (w->hard) {
        n->disk.term = w->term;
        n->disk.vote = w->vote;
    }
    if (w->commit > n->disk.commit)
        n->disk.commit = w->commit;
    if (w->snapshot) {
        n->disk.base = n->disk.last = n->disk.applied = w->first - 1;
        n->disk.base_term = w->snapshot_term;
        n->disk.conf = w->conf;
        return;
    }
    for (uint64_t i = w->first; w->values && i <= w->last; i++)
        n->disk.log[i] = w->values[i - w->first];
    if (w->values)
        n->disk.last = w->last;
}

static struct write pop_write(struct node *n)
{
    struct write w = n->writes[n->writes_head];

    n->writes_head = (n->writes_head + 1) % WRITES_MAX;
    n->writes_n--;
    return w;
}

/* The disk has done the first `count` writes: they are durable, and the core hears the newest number. */
static void node_stored(struct cluster *c, struct node *n, uint32_t count)
{
    uint64_t seq = 0;

    for (; count && n->writes_n; count--) {
        struct write w = pop_write(n);

        disk_do(n, &w);
        if (w.snapshot) {
            c->snapshots++;
            if (n->applied < w.first - 1)
                n->applied = w.first - 1;
        }
        seq = w.seq;
        free(w.values);
    }
    if (n->writes_n)
        n->disk_at = c->now + c->disk_min + cluster_random(c, c->disk_max - c->disk_min + 1);
    if (seq)
        node_raft(c, n, (struct raft_in){.type = RAFT_IN_STORED, .store_seq = seq});
}

/* Applies up to `count` entries. */
static void node_apply(struct cluster *c, struct node *n, uint64_t count)
{
    bool any = false;

    for (; count && n->applied < n->apply_to; count--) {
        uint64_t i = ++n->applied;
        struct value v = n->log[i];

        any = true;
        if (i > c->committed || v.term != c->agreed[i].term || v.id != c->agreed[i].id)
            cluster_fail(c, "StateMachineSafety", "node %llu applies %llu/%llu", U(n->id), U(i), U(v.term));
        if (!on_disk(n, i, &v))
            cluster_fail(c, "NoReadOfUndurable", "node %llu applies %llu", U(n->id), U(i));
        if (v.kind != VALUE_CONF)
            continue;
        c->conf_changes++;
        node_raft(c, n, (struct raft_in){.type = RAFT_IN_CONF, .index = i, .change = &v.change});
    }
    if (any)
        node_raft(c, n, (struct raft_in){.type = RAFT_IN_APPLIED, .index = n->applied});
}

/* The state machine becomes durable, and the log forgets all but `keep` entries of what it holds. */
static void node_flush(struct cluster *c, struct node *n, uint64_t keep)
{
    uint64_t to;

    if (n->st.stable < n->applied || n->writes_n) /* keeps the fake disk simple */
        return;
    n->disk.applied = n->applied;
    n->disk.conf = *raft_conf_of(n->raft);
    if (n->disk.commit < n->applied)
        n->disk.commit = n->applied;
    to = n->applied > keep ? n->applied - keep : 0;
    if (to <= n->disk.base)
        return;
    n->disk.base_term = raft_term_of(n->raft, to);
    n->disk.base = to;
    c->compactions++;
    node_raft(c, n, (struct raft_in){.type = RAFT_IN_COMPACT, .index = to});
}

static void node_start(struct cluster *c, struct node *n)
{
    struct raft_run *runs = malloc(RAFT_RUNS_MAX * sizeof *runs);
    struct raft_params p = {
        .id = n->id,
        .seed = ((uint64_t)cluster_random(c, 1u << 30) << 32) | cluster_random(c, 1u << 30),
        .now_ms = c->now,
        .heartbeat_ms = c->heartbeat_ms,
        .election_ms = 10 * c->heartbeat_ms,
        .uncommitted_max = 2000,
        .inflight_max = c->inflight_max,
        .term = n->disk.term,
        .vote = n->disk.vote,
        .commit = n->disk.commit < n->disk.last ? n->disk.commit : n->disk.last,
        .first_index = n->disk.base,
        .first_term = n->disk.base_term,
        .last_index = n->disk.last,
        .runs = runs,
        .applied = n->disk.applied,
        .conf = n->disk.conf,
        .fence_term = n->fence,
        .lease_reads = c->lease_reads,
    };

    for (uint64_t i = n->disk.base + 1; i <= n->disk.last; i++)
        if (p.n_runs == 0 || runs[p.n_runs - 1].term != n->disk.log[i].term)
            runs[p.n_runs++] = (struct raft_run){i, n->disk.log[i].term};
    if (raft_init(n->mem, &p, &n->raft) != 0)
        cluster_fail(c, "RestartPreservesAcked", "node %llu does not start from its disk", U(n->id));
    free(runs);
    memcpy(n->log, n->disk.log, (n->disk.last + 1) * sizeof(n->log[0]));
    n->last = n->disk.last;
    n->applied = n->disk.applied;
    n->commit_seen = n->apply_to = p.commit > n->applied ? p.commit : n->applied;
    n->term_seen = n->disk.term;
    n->deadline = c->now;
    n->n_reads = 0;
    n->up = true;
    raft_status(n->raft, &n->st);
}

/* Of what the disk has not done, the first part survives and the rest is lost. */
static void node_crash(struct cluster *c, struct node *n)
{
    uint32_t survive = n->writes_n ? cluster_random(c, n->writes_n + 1) : 0;

    c->crashes++;
    for (; n->writes_n; survive -= survive > 0) {
        struct write w = pop_write(n);

        if (survive)
            disk_do(n, &w);
        else
            c->lost_writes++;
        free(w.values);
    }
    n->up = n->paused = false;
    n->st = (struct raft_status){0};
}

/* A crash after which nothing of the disk can be trusted but that no term above `seen` was promised. */
static inline void node_lose(struct cluster *c, struct node *n)
{
    uint64_t seen = n->disk.term > n->fence ? n->disk.term : n->fence;

    node_crash(c, n);
    if (n->disk.term > seen)
        seen = n->disk.term; /* a write that was under way */
    c->losses++;
    n->fence = seen + 1 + cluster_random(c, 3);
    n->disk = (struct disk_state){.log = n->disk.log, .term = n->fence + 1};
}

/* ---- the cluster ------------------------------------------------------------------------------- */

/* n nodes, of which the first `voters` are the configuration and the next `learners` learn, with an empty state machine
 * as of entry 1. An election timeout is ten heartbeats. */
struct cluster_shape {
    int n, voters, learners;
    uint32_t heartbeat_ms, inflight_max;
    bool lease_reads;
};

static void cluster_init(struct cluster *c, uint64_t seed, const struct cluster_shape *shape)
{
    struct raft_conf conf = {0};
    int n = shape->n, voters = shape->voters;

    memset(c, 0, sizeof *c);
    c->seed = seed;
    c->rng = seed * 0x9e3779b97f4a7c15u | 1;
    for (int i = 0; i < 8; i++)
        (void)cluster_random(c, 2); /* small seeds begin alike */
    c->now = 1000;
    c->heartbeat_ms = shape->heartbeat_ms;
    c->inflight_max = shape->inflight_max;
    c->lease_reads = shape->lease_reads;
    c->n = n;
    c->delay_min = 1;
    c->delay_max = 5;
    c->disk_min = 1;
    c->disk_max = 5;
    c->agreed = calloc(LOG_MAX, sizeof(struct value));
    c->agreed_in = calloc(LOG_MAX, sizeof(uint64_t));
    c->seen = calloc(1u << SEEN_BITS, sizeof(struct seen_entry));
    c->committed = 1;
    c->agreed[1] = (struct value){.term = 1};
    for (int i = 1; i <= voters; i++)
        conf.voters.ids[conf.voters.n++] = (uint64_t)i;
    for (int i = voters + 1; i <= voters + shape->learners; i++)
        conf.learners.ids[conf.learners.n++] = (uint64_t)i;
    for (int i = 1; i <= n; i++) {
        struct node *d = &c->nodes[i];

        d->id = (uint64_t)i;
        d->mem = malloc(raft_size());
        d->log = calloc(LOG_MAX, sizeof(struct value));
        d->disk.log = calloc(LOG_MAX, sizeof(struct value));
        if (i <= voters + shape->learners) {
            d->disk.term = d->disk.commit = d->disk.base = d->disk.base_term = d->disk.last = d->disk.applied = 1;
            d->disk.log[1].term = 1;
            d->disk.conf = conf;
        }
        node_start(c, d);
    }
}

static void cluster_fini(struct cluster *c)
{
    while (c->net) {
        struct packet *p = c->net;

        c->net = p->next;
        packet_free(p);
    }
    for (int i = 1; i <= c->n; i++) {
        while (c->nodes[i].writes_n)
            free(pop_write(&c->nodes[i]).values);
        free(c->nodes[i].mem);
        free(c->nodes[i].log);
        free(c->nodes[i].disk.log);
    }
    free(c->agreed);
    free(c->agreed_in);
    free(c->seen);
}

/* Steps the receiver with the packet, and frees it. */
static void cluster_deliver(struct cluster *c, struct packet *p)
{
    struct node *n = &c->nodes[p->msg.to], *from = &c->nodes[p->msg.from];
    bool arrives = n->up && !p->lost; /* what was under way before a cut still arrives */

    if (arrives) {
        p->msg.conf = p->msg.type == RAFT_SNAPSHOT ? &p->conf : NULL;
        (void)node_step(c, n, (struct raft_in){.type = RAFT_IN_MSG, .msg = &p->msg}, p);
    }
    /* The sender's transport notices how a transfer ends. */
    if (p->msg.type == RAFT_SNAPSHOT && from->up)
        node_raft(c, from, (struct raft_in){.type = RAFT_IN_SNAPSHOT_SENT,
                                            .member = n->id, .ok = arrives, .index = p->msg.index});
    packet_free(p);
}

static inline struct node *cluster_leader(struct cluster *c)
{
    struct node *best = NULL;

    for (int i = 1; i <= c->n; i++) {
        struct node *n = &c->nodes[i];

        if (n->up && n->st.role == RAFT_LEADER && (best == NULL || n->st.term > best->st.term))
            best = n;
    }
    return best;
}

/* A millisecond passes: packets, disks, state machines, deadlines, in that order but from a random node on. */
static inline void cluster_tick(struct cluster *c)
{
    struct packet *later = NULL;
    int first = 1 + (int)cluster_random(c, (uint32_t)c->n);

    c->now++;
    while (c->net && c->net->at <= c->now && !c->failed) {
        struct packet *p = c->net;

        c->net = p->next;
        if (c->nodes[p->msg.to].paused) {
            p->next = later; /* lies in its socket */
            later = p;
            continue;
        }
        cluster_deliver(c, p);
    }
    while (later) {
        struct packet *p = later;

        later = p->next;
        p->at = c->now + 1;
        net_put(c, p);
    }
    for (int k = 0; k < c->n && !c->failed; k++) {
        struct node *n = &c->nodes[1 + (first + k) % c->n];

        if (!n->up || n->paused)
            continue;
        if (n->writes_n && c->now >= n->disk_at)
            node_stored(c, n, 1 + cluster_random(c, n->writes_n));
        if (n->applied < n->apply_to)
            node_apply(c, n, 1 + cluster_random(c, 50));
        if (c->now >= n->deadline)
            node_raft(c, n, (struct raft_in){.type = RAFT_IN_TIME});
        if (c->compact_pct && cluster_random(c, 10000) < c->compact_pct)
            node_flush(c, n, cluster_random(c, 20));
    }
}
