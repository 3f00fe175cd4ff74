/* SPDX-License-Identifier: Apache-2.0 */
/* svc_cluster.c - etcdserverpb.Cluster: the members, listed; a cluster does not change yet.
 *
 * Source: reference 02-semantics 2.5; etcd v3.7.1 server/etcdserver/api/v3rpc/member.go.
 *
 * Owner: the call's rpc thread.
 */
#include "msg.h"
#include "svc.h"

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

static void list_now(struct call *c)
{
    Etcdserverpb__MemberListResponse resp = ETCDSERVERPB__MEMBER_LIST_RESPONSE__INIT;
    struct svc *s = call_service(c);
    struct arena *a = call_arena(c);
    struct member *members = NULL;
    size_t n = apply_members(s->apply, a, &members);

    resp.header = svc_header(c, 0);
    resp.members = arena_alloc(a, (n + 1) * sizeof *resp.members);
    if (resp.header == NULL || resp.members == NULL) {
        call_fail(c, ERR_ARENA_FULL);
        return;
    }
    resp.header->revision = 0; /* the service of members knows none, as in etcd */
    if (n)
        qsort(members, n, sizeof *members, by_id);
    for (; resp.n_members < n; resp.n_members++) {
        resp.members[resp.n_members] = member_message(a, &members[resp.n_members]);
        if (resp.members[resp.n_members] == NULL) {
            call_fail(c, ERR_ARENA_FULL);
            return;
        }
    }
    call_answer(c, &resp.base);
}

static void list_start(struct call *c, const ProtobufCMessage *m)
{
    if (((const Etcdserverpb__MemberListRequest *)m)->linearizable)
        svc_read(c, list_now);
    else
        list_now(c);
}

static void change_later(struct call *c, const ProtobufCMessage *m)
{
    (void)m;
    call_fail_text(c, STATUS_UNIMPLEMENTED, "cairn: a cluster has one member yet; adding, removing, updating and "
                                            "promoting members is not there yet");
}

#define CLUSTER "etcdserverpb.Cluster"

static const struct rpc_method methods[] = {
    {.service = CLUSTER, .name = "MemberList", .kind = RPC_UNARY, .access = ACCESS_USER,
     .request = &etcdserverpb__member_list_request__descriptor, .start = list_start},
    {.service = CLUSTER, .name = "MemberAdd", .kind = RPC_UNARY, .access = ACCESS_ROOT,
     .request = &etcdserverpb__member_add_request__descriptor, .start = change_later},
    {.service = CLUSTER, .name = "MemberRemove", .kind = RPC_UNARY, .access = ACCESS_ROOT,
     .request = &etcdserverpb__member_remove_request__descriptor, .start = change_later},
    {.service = CLUSTER, .name = "MemberUpdate", .kind = RPC_UNARY, .access = ACCESS_ROOT,
     .request = &etcdserverpb__member_update_request__descriptor, .start = change_later},
    {.service = CLUSTER, .name = "MemberPromote", .kind = RPC_UNARY, .access = ACCESS_ROOT,
     .request = &etcdserverpb__member_promote_request__descriptor, .start = change_later},
};

const struct svc_service svc_cluster = {methods, sizeof methods / sizeof methods[0]};
