/* SPDX-License-Identifier: Apache-2.0 */
/* svc_tree.c - cairn.Tree: what a mount asks of this server beyond etcd's API.
 *
 * Rename is a write like others: arguments, quota, proposal; apply looks at the rest. But what it costs is not in the
 * request: a scan thread reads what is to be moved first. That may be out of date when it is applied, as the quota
 * itself may.
 *
 * Owner: the call's rpc thread, but for the scan job.
 */
#include <errno.h>
#include "limits.h"
#include "svc.h"
#include "tree.pb-c.h"
#include "txn.h"

struct renaming {
    struct scan_job job;
    struct call_resume resume;
    const Cairn__RenameRequest *req; /* in the call's arena */
    int64_t cost;
    int err;
};

static void rename_answer(struct call *c, struct proposal *p)
{
    Cairn__RenameResponse *resp = p->response;

    resp->header = svc_header(c, resp->header->revision);
    call_answer(c, &resp->base);
}

static void rename_costed(struct call *c, struct call_resume *resume)
{
    struct renaming *r = (struct renaming *)((uint8_t *)resume - offsetof(struct renaming, resume));
    struct svc *s = call_service(c);

    if (!r->err && !apply_quota_admits(s->apply, r->cost))
        r->err = ERR_NOSPACE;
    if (r->err)
        call_fail(c, r->err);
    else if (!call_gone(c))
        svc_propose_message(c, ENTRY_RENAME, &r->req->base, rename_answer);
    call_unref(c);
}

/* On a scan thread. */
static void rename_cost(struct scan_job *j, struct slot *sl)
{
    struct renaming *r = (struct renaming *)j;
    struct svc *s = call_service(r->resume.call);
    struct arena a;
    struct view v;

    r->err = view_open(s->store, sl, &v);
    if (!r->err) {
        arena_init(&a, LIMIT_RESPONSE_BYTES, NULL, 0);
        r->err = txn_cost_rename(&v, r->req, &a, &r->cost);
        view_close(&v);
        arena_fini(&a);
    }
    call_resume(&r->resume);
}

static void rename_start(struct call *c, const ProtobufCMessage *m)
{
    struct svc *s = call_service(c);
    struct renaming *r = call_state(c);
    int err;

    *r = (struct renaming){.job.run = rename_cost,
                           .resume = {.call = c, .fn = rename_costed},
                           .req = (const Cairn__RenameRequest *)m};
    err = txn_check_rename(r->req);
    if (err) {
        call_fail(c, err);
        return;
    }
    call_ref(c);
    err = scan_pool_post(s->scan, &r->job);
    if (err) {
        call_unref(c);
        call_fail(c, err);
    }
}

static const struct rpc_method methods[] = {
    {.service = "cairn.Tree", .name = "Rename", .kind = RPC_UNARY, .access = ACCESS_KEYS,
     .request = &cairn__rename_request__descriptor, .start = rename_start},
};

const struct svc_service svc_tree = {methods, sizeof methods / sizeof methods[0]};
