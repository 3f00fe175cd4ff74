/* SPDX-License-Identifier: Apache-2.0 */
/* turn_propose.c - writes on their way into the log: this member's own, and those that others send it while it leads.
 *
 *     box -> waiting -> leads: appended (RAFT_IN_PROPOSE)            -> apply answers
 *                    -> else:  sent to the leader (PEER_PROPOSE)     -> apply answers
 *                    -> no leader: waits
 *
 * A write must not happen twice. It is tried again only when it is certain that the first try is not in the log and
 * never will be, which is known in two ways:
 *   - The leader says so: PEER_REFUSED.
 *   - An entry of a later term has been applied here, and it was not before it. A PROPOSE is taken only in the term that
 *     it names, and terms in a log only grow: what was appended in an older term and is not before the first entry of
 *     the newer one has been cut, or will be. (A snapshot skips entries without showing them: then nothing is known.)
 * Everything else waits for its deadline, and its caller hears that nobody knows. A leader takes no PROPOSE twice,
 * whatever the transport does (struct heard).
 *
 * Configuration entries are proposed one at a time, as the core demands; the next one waits until the last is applied.
 *
 * Owner: the turn thread.
 * Source: etcd v3.7.1 server/etcdserver/v3_server.go (parseProposeCtxErr) for which error a deadline has.
 */
#include <errno.h>
#include "err.h"
#include "limits.h"
#include "turn_impl.h"

#define JOB_ENTRIES_MAX LIMIT_PROPOSALS
#define FORWARD_AGAIN_MS 20 /* after a refusal, unless another leader is known before */
#define FOREIGN_CONFS_MAX 16

static struct proposal *of_mail(struct mail *m)
{
    return (struct proposal *)m; /* mail comes first */
}

static struct peer_msg *msg_of_mail(struct mail *m)
{
    return (struct peer_msg *)m; /* here too */
}

static void refuse(struct turn *t, struct proposal *p, int err)
{
    p->err = err;
    atomic_fetch_add_explicit(&t->pub_failed, 1, memory_order_relaxed);
    p->done(p);
}

static bool is_conf(const struct entry *e)
{
    return e->len > 0 && entry_payload_kind(e->payload) == ENTRY_CONF;
}

static void wait_again(struct turn *t, struct proposal *p)
{
    mail_push(is_conf(p->entry) ? &t->confs : &t->waiting, &p->mail);
}

static void take(struct turn *t)
{
    struct mail *m = mailbox_take(&t->box), *next;

    for (; m; m = next) {
        next = m->next;
        of_mail(m)->since_ms = t->now_ms;
        wait_again(t, of_mail(m));
    }
}

bool turn_proposals_wait(const struct turn *t)
{
    return t->waiting.head || t->confs.head || t->foreign.head || t->foreign_confs.head;
}

/* ---- what others send ----------------------------------------------------------------------------- */

/* Whether this PROPOSE has come before. One that is too old to be remembered counts as known. */
static bool heard_before(struct turn *t, const struct peer_msg *m)
{
    struct heard *h = NULL;
    uint64_t back;
    bool known;

    for (uint32_t i = 0; i < HEARD_MAX && h == NULL; i++)
        if (t->heard[i].member == m->from && t->heard[i].boot == m->hash)
            h = &t->heard[i];
    if (h == NULL) {
        h = &t->heard[t->heard_next++ % HEARD_MAX];
        *h = (struct heard){.member = m->from, .boot = m->hash};
    }
    if (m->id > h->high) {
        back = m->id - h->high;
        h->before = back > 64 ? 0 : back == 64 ? 1ull << 63 : h->before << back | 1ull << (back - 1);
        if (h->high == 0)
            h->before = 0; /* there was none before the first */
        h->high = m->id;
        return false;
    }
    back = h->high - m->id;
    if (back == 0 || back > 64)
        return true;
    known = h->before >> (back - 1) & 1;
    h->before |= 1ull << (back - 1);
    return known;
}

/* All that is left of m goes back to where it came from; m is freed. */
static void send_back(struct turn *t, struct peer_msg *m, uint32_t from, int err)
{
    struct peer_msg *r = peer_msg_new(PEER_REFUSED, t->o.member_id, m->from);

    if (r)
        r->ids = calloc(m->n_entries + (size_t)1, sizeof *r->ids);
    if (r && r->ids) {
        r->id = m->id;
        r->err = err;
        for (uint32_t i = from; i < m->n_entries; i++) {
            struct entry_head h;

            if (entry_decode(slice_of(m->entries[i]->payload, m->entries[i]->len), &h) == 0)
                r->ids[r->n_ids++] = h.request_id;
        }
        turn_send(t, r);
    } else {
        peer_msg_free(r); /* without memory they wait for their deadline */
    }
    peer_msg_free(m);
}

/* What a member may ask a leader to propose: an entry of its own, of a kind that is not the leader's alone. */
static bool may_ask(const struct peer_msg *m, const struct entry *e)
{
    struct raft_conf_change change;
    struct entry_head h;

    if (e->len == 0 || entry_decode(slice_of(e->payload, e->len), &h) != 0 || h.origin != m->from || h.proposal_term)
        return false;
    switch (h.kind) {
    case ENTRY_PUT:
    case ENTRY_DELETE_RANGE:
    case ENTRY_TXN:
    case ENTRY_COMPACT:
    case ENTRY_LEASE_GRANT:
    case ENTRY_LEASE_REVOKE:
    case ENTRY_ALARM:
    case ENTRY_MEMBER_ATTR:
    case ENTRY_MEMBER_PEERS:
    case ENTRY_RENAME:
        return true;
    case ENTRY_CONF:
        return turn_conf_decode(h.body, &change, NULL) == 0;
    default:
        return false;
    }
}

/* A message of its own for a configuration entry. */
static void take_foreign_conf(struct turn *t, const struct peer_msg *m, struct entry *e)
{
    struct peer_msg *one = peer_msg_new(PEER_PROPOSE, m->from, m->to);

    if (one)
        one->entries = calloc(1, sizeof *one->entries);
    if (one == NULL || one->entries == NULL) {
        peer_msg_free(one);
        return; /* it waits for its deadline */
    }
    one->id = m->id;
    one->entries[one->n_entries++] = entry_ref(e);
    if (t->n_foreign_confs == FOREIGN_CONFS_MAX) {
        send_back(t, one, 0, ERR_TOO_MANY_REQUESTS);
        return;
    }
    t->n_foreign_confs++;
    mail_push(&t->foreign_confs, &one->mail);
}

void turn_proposals_foreign(struct turn *t, struct peer_msg *m)
{
    size_t bytes = 0;
    uint32_t kept = 0;

    /* Of a term that this member may have led before it was started again: it does not know what it took then. */
    if (heard_before(t, m) || m->index <= t->o.wal_state.term) {
        peer_msg_free(m);
        return;
    }
    if (t->status.role != RAFT_LEADER || m->index != t->status.term) {
        send_back(t, m, 0, 0);
        return;
    }
    for (uint32_t i = 0; i < m->n_entries; i++) {
        struct entry *e = m->entries[i];
        bool keep = may_ask(m, e);

        if (keep && is_conf(e)) {
            take_foreign_conf(t, m, e);
            keep = false;
        }
        if (keep) {
            bytes += e->len;
            m->entries[kept++] = e;
        } else {
            entry_unref(e);
        }
    }
    m->n_entries = kept;
    if (kept == 0) {
        peer_msg_free(m);
    } else if (t->n_foreign + kept > LIMIT_FOREIGN_PROPOSALS || t->foreign_bytes + bytes > LIMIT_FOREIGN_BYTES) {
        send_back(t, m, 0, 0);
    } else {
        t->n_foreign += kept;
        t->foreign_bytes += bytes;
        mail_push(&t->foreign, &m->mail);
    }
}

void turn_proposals_demoted(struct turn *t)
{
    while (t->foreign.head) {
        send_back(t, msg_of_mail(mail_pop(&t->foreign)), t->foreign_at, 0);
        t->foreign_at = 0;
    }
    t->n_foreign = 0;
    t->foreign_bytes = 0;
    while (t->foreign_confs.head)
        send_back(t, msg_of_mail(mail_pop(&t->foreign_confs)), 0, 0);
    t->n_foreign_confs = 0;
}

/* ---- appending ------------------------------------------------------------------------------------ */

/* How many of each fit into one PROPOSE. */
static void count(struct turn *t, uint32_t *ret_own, uint32_t *ret_foreign)
{
    size_t room = turn_room_bytes(t), bytes = 0;
    uint32_t own = 0, foreign = 0, at = t->foreign_at;

    for (struct mail *m = t->waiting.head; m && own < JOB_ENTRIES_MAX && bytes < room; m = m->next, own++)
        bytes += of_mail(m)->entry->len;
    for (struct mail *m = t->foreign.head; m; m = m->next, at = 0)
        for (; at < msg_of_mail(m)->n_entries && own + foreign < JOB_ENTRIES_MAX && bytes < room; at++, foreign++)
            bytes += msg_of_mail(m)->entries[at]->len;
    *ret_own = own;
    *ret_foreign = foreign;
}

static void fill_job(struct turn *t, uint32_t own, uint32_t foreign)
{
    struct mail *m = t->waiting.head;
    uint32_t n = 0, at = t->foreign_at;

    for (; n < own; m = m->next)
        t->job->entries[n++] = entry_ref(of_mail(m)->entry);
    for (m = t->foreign.head; n < own + foreign; m = m->next, at = 0)
        for (; at < msg_of_mail(m)->n_entries && n < own + foreign; at++)
            t->job->entries[n++] = entry_ref(msg_of_mail(m)->entries[at]);
}

static void drop_foreign(struct turn *t, uint32_t n)
{
    t->n_foreign -= n;
    for (; n; n--) {
        struct peer_msg *m = msg_of_mail(t->foreign.head);

        t->foreign_bytes -= m->entries[t->foreign_at]->len;
        if (++t->foreign_at == m->n_entries) {
            t->foreign_at = 0;
            (void)mail_pop(&t->foreign); /* m */
            peer_msg_free(m);
        }
    }
}

/* One PROPOSE for all that wait and fit. What the core refuses waits on: it will lead, or take them, later, or
 * their deadline comes. */
static bool propose_some(struct turn *t)
{
    uint32_t own, foreign;

    count(t, &own, &foreign);
    if (own + foreign == 0)
        return false;
    t->job = store_job_new(own + foreign);
    if (t->job == NULL)
        return false; /* tried again by the next turn */
    fill_job(t, own, foreign);
    if (turn_raft(t, (struct raft_in){.type = RAFT_IN_PROPOSE, .n_entries = own + foreign}) != 0) {
        store_job_free(t->job);
        t->job = NULL;
        return false;
    }
    for (; own; own--) /* from here on apply or account_expire answers it */
        proposal_taken(of_mail(mail_pop(&t->waiting)), t->status.term, 0);
    drop_foreign(t, foreign);
    return true;
}

/* A learner that is to vote must have nearly all that the leader has: as in etcd, nine tenths. */
static int check_promotion(struct turn *t, const struct raft_conf_change *change)
{
    const struct raft_conf *conf = raft_conf_of(t->raft);

    for (uint32_t i = 0; i < change->n; i++) {
        uint64_t id = change->changes[i].id;
        struct raft_peer p;

        if (change->changes[i].op == RAFT_ADD_VOTER && raft_set_has(&conf->learners, id) &&
            raft_peer(t->raft, id, &p) && p.match / 9 < t->status.last_index / 10)
            return ERR_LEARNER_NOT_READY;
    }
    return 0;
}

/* 0: appended; ERR_PROPOSAL_DROPPED and the like: later; ERR_LEARNER_NOT_READY, -EINVAL, -EBADMSG: never. */
static int propose_conf(struct turn *t, struct entry *e)
{
    struct raft_conf_change change;
    struct entry_head h;
    int err = entry_decode(slice_of(e->payload, e->len), &h);

    if (!err)
        err = turn_conf_decode(h.body, &change, NULL);
    if (!err && t->status.role == RAFT_LEADER)
        err = check_promotion(t, &change);
    if (err)
        return err;
    t->job = store_job_new(1);
    if (t->job == NULL)
        return -ENOMEM;
    t->job->entries[0] = entry_ref(e);
    err = turn_raft(t, (struct raft_in){.type = RAFT_IN_PROPOSE_CONF, .change = &change});
    if (err) {
        store_job_free(t->job);
        t->job = NULL;
    }
    return err;
}

static bool is_final(int err)
{
    return err == 0 || err == -EINVAL || err == -EBADMSG || err == ERR_LEARNER_NOT_READY;
}

/* What its proposer is told. */
static int conf_err(int err)
{
    return err == ERR_LEARNER_NOT_READY ? err : ERR_CONF_IMPOSSIBLE;
}

static void propose_confs(struct turn *t)
{
    while (t->confs.head && turn_room_bytes(t) > 0) {
        struct proposal *p = of_mail(t->confs.head);
        int err = propose_conf(t, p->entry);

        if (!is_final(err))
            break;
        (void)mail_pop(&t->confs); /* p */
        if (err == 0)
            proposal_taken(p, t->status.term, 0);
        else if (proposal_claim(t->o.account, p->request_id))
            refuse(t, p, conf_err(err));
    }
    while (t->foreign_confs.head && turn_room_bytes(t) > 0) {
        struct peer_msg *m = msg_of_mail(t->foreign_confs.head);
        int err = propose_conf(t, m->entries[0]);

        if (!is_final(err))
            break;
        (void)mail_pop(&t->foreign_confs); /* m */
        t->n_foreign_confs--;
        if (err)
            send_back(t, m, 0, conf_err(err));
        else
            peer_msg_free(m);
    }
}

/* ---- sending to the leader -------------------------------------------------------------------------- */

/* One PROPOSE message of the list's first ones. False: no memory, they wait. */
static bool forward_some(struct turn *t, struct mail_list *l)
{
    struct peer_msg *m = peer_msg_new(PEER_PROPOSE, t->o.member_id, t->status.leader);
    uint32_t n = 0;
    size_t bytes = 0;

    for (struct mail *w = l->head; w && n < LIMIT_PROPOSE_ENTRIES && bytes < LIMIT_PROPOSE_BYTES; w = w->next, n++)
        bytes += of_mail(w)->entry->len;
    if (m)
        m->entries = calloc(n, sizeof *m->entries);
    if (m == NULL || m->entries == NULL) {
        peer_msg_free(m);
        return false;
    }
    m->id = ++t->send_seq;
    m->index = t->status.term;
    m->hash = t->boot;
    while (m->n_entries < n) {
        struct proposal *p = of_mail(mail_pop(l));

        m->entries[m->n_entries++] = entry_ref(p->entry);
        proposal_taken(p, t->status.term, m->id);
    }
    turn_send(t, m);
    return true;
}

static void forward(struct turn *t)
{
    if (t->o.transport == NULL || t->status.leader == 0 || t->status.leader == t->o.member_id ||
        t->now_ms < t->forward_ms)
        return;
    while (t->waiting.head && forward_some(t, &t->waiting))
        ;
    while (t->confs.head && forward_some(t, &t->confs))
        ;
}

void turn_proposals_refused(struct turn *t, const struct peer_msg *m)
{
    for (uint32_t i = 0; i < m->n_ids; i++) {
        struct proposal *p = account_retake(t->o.account, m->ids[i], m->id);

        if (p == NULL)
            continue; /* answered, or sent by another PROPOSE meanwhile */
        if (m->err <= 0 || m->err >= ERR_COUNT)
            wait_again(t, p);
        else if (proposal_claim(t->o.account, p->request_id))
            refuse(t, p, m->err);
    }
    if (t->status.leader == m->from)
        t->forward_ms = t->now_ms + FORWARD_AGAIN_MS;
}

/* The log, and messages that are still on their way, may hold the first entry: the next try has bytes of its own. */
static struct entry *copy_of(const struct entry *e)
{
    struct entry *copy = entry_new(e->len);

    if (copy)
        memcpy(copy->payload, e->payload, e->len);
    return copy;
}

/* See the top: what was handed out in terms before that of what is applied now, and was not met, is free again. */
void turn_proposals_settle(struct turn *t)
{
    uint64_t term = raft_term_of(t->raft, t->status.applied);
    struct proposal *p, *next;

    if (term <= t->settled_term)
        return;
    t->settled_term = term;
    for (p = account_retake_older(t->o.account, term); p; p = next) {
        struct entry *e = copy_of(p->entry);

        next = of_mail(p->mail.next);
        if (e) {
            entry_unref(p->entry);
            p->entry = e;
            wait_again(t, p);
        } else {
            proposal_taken(p, PROPOSAL_NEVER_AGAIN, 0); /* until its deadline */
        }
    }
}

/* ---- the step -------------------------------------------------------------------------------------- */

void turn_proposals_step(struct turn *t)
{
    take(t);
    if (t->status.role != RAFT_LEADER) {
        if (t->waiting.head || t->confs.head)
            forward(t);
        return;
    }
    while ((t->waiting.head || t->foreign.head) && propose_some(t)) /* the WAL thread works from the first one on */
        ;
    if (t->confs.head || t->foreign_confs.head)
        propose_confs(t);
}

/* ---- deadlines --------------------------------------------------------------------------------------- */

/* Appended or sent, and nobody knows what became of it. */
static void expired(void *ctx, struct proposal *p)
{
    struct turn *t = ctx;
    uint64_t lost_ms = t->led_since_ms > 2ull * t->o.election_ms ? t->led_since_ms - 2ull * t->o.election_ms : 0;

    if (t->status.role == RAFT_LEADER && !t->status.sole_voter && p->since_ms > lost_ms &&
        p->since_ms < t->led_since_ms)
        refuse(t, p, ERR_TIMEOUT_LEADER_FAIL);
    else
        refuse(t, p, ERR_TIMEOUT);
}

static void expire_list(struct turn *t, struct mail_list *l)
{
    struct mail *m = l->head, *next;

    *l = (struct mail_list){0};
    for (; m; m = next) {
        struct proposal *p = of_mail(m);

        next = m->next;
        if (p->deadline_ms > t->now_ms)
            mail_push(l, m);
        else if (proposal_claim(t->o.account, p->request_id))
            refuse(t, p, t->status.leader ? ERR_TIMEOUT : ERR_DEADLINE);
    }
}

void turn_proposals_expire(struct turn *t)
{
    expire_list(t, &t->waiting);
    expire_list(t, &t->confs);
    account_expire(t->o.account, t->now_ms, expired, t);
}

static void stopped(void *ctx, struct proposal *p)
{
    refuse(ctx, p, ERR_STOPPED);
}

static void stop_list(struct turn *t, struct mail_list *l)
{
    while (l->head) {
        struct proposal *p = of_mail(mail_pop(l));

        if (proposal_claim(t->o.account, p->request_id))
            stopped(t, p);
    }
}

void turn_proposals_stop(struct turn *t)
{
    take(t);
    stop_list(t, &t->waiting);
    stop_list(t, &t->confs);
    while (t->foreign.head)
        peer_msg_free(msg_of_mail(mail_pop(&t->foreign)));
    while (t->foreign_confs.head)
        peer_msg_free(msg_of_mail(mail_pop(&t->foreign_confs)));
    account_expire(t->o.account, UINT64_MAX, stopped, t);
}
