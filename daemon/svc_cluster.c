/* SPDX-License-Identifier: Apache-2.0 */
/* svc_cluster.c - etcdserverpb.Cluster: the members, listed and changed.
 *
 * Any member serves it: what is proposed goes to the leader. The checks here are of what this member sees; what they
 * must not miss is checked again when the entry is applied (apply_member.c), or by the leader before it is appended.
 *
 * Source: reference 02-semantics 2.5; etcd v3.7.1 server/etcdserver/api/v3rpc/member.go, server/etcdserver/server.go.
 *
 * Owner: the call's rpc thread.
 */
#include <stdio.h>
#include "log.h"
#include "msg.h"
#include "roster.h"
#include "svc.h"

enum { HEALTHY_MS = 5000 /* etcd's HealthInterval */, PEER_URLS_MAX = 64 };

static char *text(struct arena *a, struct slice s)
{
    char *p = arena_alloc(a, s.len + 1);

    if (p && s.len)
        memcpy(p, s.ptr, s.len);
    return p;
}

/* NULL: the arena is full. */
static char **texts(struct arena *a, const struct slice *s, size_t n)
{
    char **p = arena_alloc(a, (n + 1) * sizeof *p);

    for (size_t i = 0; p && i < n; i++)
        if ((p[i] = text(a, s[i])) == NULL)
            return NULL;
    return p;
}

static Etcdserverpb__Member *member_message(struct arena *a, const struct member *m)
{
    Etcdserverpb__Member *p = msg_new(a, &etcdserverpb__member__descriptor);

    if (p == NULL)
        return NULL;
    p->id = m->id;
    p->name = text(a, m->name);
    p->peerurls = texts(a, m->peer_urls, m->n_peer_urls);
    p->n_peerurls = m->n_peer_urls;
    p->clienturls = texts(a, m->client_urls, m->n_client_urls);
    p->n_clienturls = m->n_client_urls;
    p->islearner = m->is_learner;
    return p->name && p->peerurls && p->clienturls ? p : NULL;
}

static int by_id(const void *a, const void *b)
{
    uint64_t x = ((const struct member *)a)->id, y = ((const struct member *)b)->id;

    return (x > y) - (x < y);
}

/* Who is in the cluster now, by id. */
static int list_members(struct call *c, Etcdserverpb__Member ***ret_members, size_t *ret_n)
{
    struct svc *s = call_service(c);
    struct arena *a = call_arena(c);
    struct member *members = NULL;
    size_t n = apply_members(s->apply, a, &members);
    Etcdserverpb__Member **out = arena_alloc(a, (n + 1) * sizeof *out);

    if (out == NULL || members == NULL)
        return ERR_ARENA_FULL;
    if (n)
        qsort(members, n, sizeof *members, by_id);
    for (size_t i = 0; i < n; i++)
        if ((out[i] = member_message(a, &members[i])) == NULL)
            return ERR_ARENA_FULL;
    *ret_members = out;
    *ret_n = n;
    return 0;
}

/* The service of members knows no revision, as in etcd. */
static Etcdserverpb__ResponseHeader *header(struct call *c)
{
    Etcdserverpb__ResponseHeader *h = svc_header(c, 0);

    if (h)
        h->revision = 0;
    return h;
}

/* Ends the call with resp, whose header and list of the members, as they are now, are these fields of it. */
static void answer_members(struct call *c, const ProtobufCMessage *resp, Etcdserverpb__ResponseHeader **ret_header,
                           Etcdserverpb__Member ***ret_members, size_t *ret_n)
{
    int err = list_members(c, ret_members, ret_n);

    *ret_header = header(c);
    if (err || *ret_header == NULL)
        call_fail(c, ERR_ARENA_FULL);
    else
        call_answer(c, resp);
}

static void list_now(struct call *c)
{
    Etcdserverpb__MemberListResponse resp = ETCDSERVERPB__MEMBER_LIST_RESPONSE__INIT;

    answer_members(c, &resp.base, &resp.header, &resp.members, &resp.n_members);
}

static void list_start(struct call *c, const ProtobufCMessage *m)
{
    if (((const Etcdserverpb__MemberListRequest *)m)->linearizable)
        svc_read(c, list_now);
    else
        list_now(c);
}

/* ---- proposing a change ---------------------------------------------------------------------- */

/* What the member should be after it, behind the change (entry.h). row NULL: nothing. */
static void propose_change(struct call *c, enum raft_change_op op, uint64_t id, const Etcdserverpb__Member *row,
                           void (*answer)(struct call *c, struct proposal *p))
{
    struct raft_conf_change change = {.n = 1, .changes = {{op, id}}};
    size_t row_len = row ? etcdserverpb__member__get_packed_size(row) : 0, n;
    uint8_t *body = arena_alloc(call_arena(c), TURN_CONF_BYTES_MAX + row_len);

    if (body == NULL) {
        call_fail(c, ERR_ARENA_FULL);
        return;
    }
    n = turn_conf_encode(&change, body);
    if (row)
        n += etcdserverpb__member__pack(row, body + n);
    svc_propose(c, ENTRY_CONF, slice_of(body, n), answer);
}

/* ---- what a change would risk ------------------------------------------------------------------ */

/* etcd's strict reconfiguration check: the voters that there are, that have ever started (they have a name), and with
 * which this member has been connected long enough to rely on. */
struct voters {
    size_t n, started, connected;
    size_t learners;
    const struct member *found; /* the member asked for */
    bool found_connected;
};

static struct voters count_voters(struct call *c, uint64_t id)
{
    struct svc *s = call_service(c);
    struct member *members = NULL;
    size_t n = apply_members(s->apply, call_arena(c), &members);
    struct voters v = {0};

    for (size_t i = 0; i < n; i++) {
        const struct member *m = &members[i];
        bool self = m->id == s->member_id;
        uint64_t ms = self || s->connected_ms == NULL ? 0 : s->connected_ms(s->connected_ctx, m->id);

        if (m->id == id) {
            v.found = m;
            v.found_connected = self || ms > 0;
        }
        v.learners += m->is_learner;
        v.n += !m->is_learner;
        v.started += !m->is_learner && m->name.len > 0;
        v.connected += !m->is_learner && (self || ms >= HEALTHY_MS);
    }
    return v;
}

static size_t quorum_of(size_t n)
{
    return n / 2 + 1;
}

static int may_add(const struct svc *s, const struct voters *v, bool learner)
{
    if (s->strict_reconfig) {
        bool first_one = v->started == 1 && v->n == 1; /* how a cluster of one grows */

        if (!learner && !first_one && v->started < quorum_of(v->n + 1))
            return ERR_NOT_ENOUGH_STARTED;
        if (v->n > 1 && v->connected < quorum_of(v->n + 1))
            return ERR_UNHEALTHY;
    }
    return learner && v->learners >= s->max_learners ? ERR_TOO_MANY_LEARNERS : 0;
}

static int may_remove(const struct svc *s, const struct voters *v, uint64_t id)
{
    bool voter = v->found && !v->found->is_learner;
    size_t others = v->n - voter, started = v->started - (voter && v->found->name.len > 0);

    if (!s->strict_reconfig || (v->found && v->found->is_learner))
        return 0;
    if (started < quorum_of(others))
        return ERR_NOT_ENOUGH_STARTED;
    if (id != s->member_id && !v->found_connected)
        return 0; /* it is down: nobody relies on it */
    return v->connected - 1 < 1 + (v->n - 1) / 2 ? ERR_UNHEALTHY : 0;
}

static int may_promote(const struct svc *s, const struct voters *v)
{
    if (v->found == NULL)
        return ERR_MEMBER_NOT_FOUND;
    if (!v->found->is_learner)
        return ERR_MEMBER_NOT_LEARNER;
    return s->strict_reconfig && v->started + 1 < quorum_of(v->n + 1) ? ERR_NOT_ENOUGH_STARTED : 0;
}

static void log_refused(struct call *c, const char *what, uint64_t id, int err)
{
    struct svc *s = call_service(c);

    log_warn(what, LOG_HEX("local-member-id", s->member_id), LOG_HEX("requested-member-id", id),
             LOG_STR("error", err_info(err).text));
}

/* ---- MemberAdd ------------------------------------------------------------------------------------ */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The URLs as they will be kept: each checked, sorted. */
static int check_urls(struct call *c, char **urls, size_t n)
{
    struct url_list one;

    if (n == 0 || n > PEER_URLS_MAX)
        return ERR_MEMBER_BAD_URLS;
    for (size_t i = 0; i < n; i++) {
        if (config_parse_urls(call_arena(c), urls[i], &one) != NULL || one.n != 1)
            return ERR_MEMBER_BAD_URLS;
        urls[i] = (char *)one.urls[0].text;
    }
    qsort(urls, n, sizeof *urls, by_text);
    return 0;
}

/* Kept for the answer. */
struct adding {
    Etcdserverpb__Member row;
};

static void add_answer(struct call *c, struct proposal *p)
{
    Etcdserverpb__MemberAddResponse resp = ETCDSERVERPB__MEMBER_ADD_RESPONSE__INIT;

    (void)p;
    resp.member = &((struct adding *)call_state(c))->row;
    answer_members(c, &resp.base, &resp.header, &resp.members, &resp.n_members);
}

static void add_start(struct call *c, const ProtobufCMessage *m)
{
    const Etcdserverpb__MemberAddRequest *req = (const Etcdserverpb__MemberAddRequest *)m;
    struct svc *s = call_service(c);
    struct adding *ad = call_state(c);
    struct voters v;
    char now[32];
    int err = check_urls(c, req->peerurls, req->n_peerurls);

    static_assert(sizeof *ad <= CALL_STATE_BYTES, "fits");
    if (!err) {
        v = count_voters(c, 0);
        err = may_add(s, &v, req->islearner);
        if (err)
            log_refused(c, "rejecting member add request", 0, err);
    }
    if (err) {
        call_fail(c, err);
        return;
    }
    (void)snprintf(now, sizeof now, "%lld", (long long)(s->clock->wall_ms(s->clock) / 1000));
    etcdserverpb__member__init(&ad->row);
    ad->row.id = roster_member_id((const char *const *)req->peerurls, req->n_peerurls, now);
    ad->row.peerurls = req->peerurls;
    ad->row.n_peerurls = req->n_peerurls;
    ad->row.islearner = req->islearner;
    propose_change(c, req->islearner ? RAFT_ADD_LEARNER : RAFT_ADD_VOTER, ad->row.id, &ad->row, add_answer);
}

/* ---- MemberRemove, MemberPromote, MemberUpdate -------------------------------------------------------- */

static void remove_answer(struct call *c, struct proposal *p)
{
    Etcdserverpb__MemberRemoveResponse resp = ETCDSERVERPB__MEMBER_REMOVE_RESPONSE__INIT;

    (void)p;
    answer_members(c, &resp.base, &resp.header, &resp.members, &resp.n_members);
}

static void remove_start(struct call *c, const ProtobufCMessage *m)
{
    uint64_t id = ((const Etcdserverpb__MemberRemoveRequest *)m)->id;
    struct svc *s = call_service(c);
    struct voters v = count_voters(c, id);
    int err = may_remove(s, &v, id);

    if (err) {
        log_refused(c, "rejecting member remove request", id, err);
        call_fail(c, err);
        return;
    }
    propose_change(c, RAFT_REMOVE, id, NULL, remove_answer);
}

static void promote_answer(struct call *c, struct proposal *p)
{
    Etcdserverpb__MemberPromoteResponse resp = ETCDSERVERPB__MEMBER_PROMOTE_RESPONSE__INIT;

    (void)p;
    answer_members(c, &resp.base, &resp.header, &resp.members, &resp.n_members);
}

/* Whether the learner has what the leader has, only the leader knows: its turn refuses the proposal. */
static void promote_start(struct call *c, const ProtobufCMessage *m)
{
    uint64_t id = ((const Etcdserverpb__MemberPromoteRequest *)m)->id;
    struct svc *s = call_service(c);
    struct voters v = count_voters(c, id);
    int err = may_promote(s, &v);

    if (err) {
        log_refused(c, "rejecting member promote request", id, err);
        call_fail(c, err);
        return;
    }
    propose_change(c, RAFT_ADD_VOTER, id, NULL, promote_answer);
}

static void update_answer(struct call *c, struct proposal *p)
{
    Etcdserverpb__MemberUpdateResponse resp = ETCDSERVERPB__MEMBER_UPDATE_RESPONSE__INIT;

    (void)p;
    answer_members(c, &resp.base, &resp.header, &resp.members, &resp.n_members);
}

/* etcd takes any URLs here and dies of bad ones. */
static void update_start(struct call *c, const ProtobufCMessage *m)
{
    const Etcdserverpb__MemberUpdateRequest *req = (const Etcdserverpb__MemberUpdateRequest *)m;
    Etcdserverpb__Member row = ETCDSERVERPB__MEMBER__INIT;
    int err = check_urls(c, req->peerurls, req->n_peerurls);

    if (err) {
        call_fail(c, err);
        return;
    }
    row.id = req->id;
    row.peerurls = req->peerurls;
    row.n_peerurls = req->n_peerurls;
    svc_propose_message(c, ENTRY_MEMBER_PEERS, &row.base, update_answer);
}

#define CLUSTER "etcdserverpb.Cluster"

static const struct rpc_method methods[] = {
    {.service = CLUSTER, .name = "MemberList", .kind = RPC_UNARY, .access = ACCESS_USER,
     .request = &etcdserverpb__member_list_request__descriptor, .start = list_start},
    {.service = CLUSTER, .name = "MemberAdd", .kind = RPC_UNARY, .access = ACCESS_ROOT,
     .request = &etcdserverpb__member_add_request__descriptor, .start = add_start},
    {.service = CLUSTER, .name = "MemberRemove", .kind = RPC_UNARY, .access = ACCESS_ROOT,
     .request = &etcdserverpb__member_remove_request__descriptor, .start = remove_start},
    {.service = CLUSTER, .name = "MemberUpdate", .kind = RPC_UNARY, .access = ACCESS_ROOT,
     .request = &etcdserverpb__member_update_request__descriptor, .start = update_start},
    {.service = CLUSTER, .name = "MemberPromote", .kind = RPC_UNARY, .access = ACCESS_ROOT,
     .request = &etcdserverpb__member_promote_request__descriptor, .start = promote_start},
};

const struct svc_service svc_cluster = {methods, sizeof methods / sizeof methods[0]};
