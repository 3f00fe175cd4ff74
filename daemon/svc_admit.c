/* SPDX-License-Identifier: Apache-2.0 */
/* svc_admit.c - what is checked of every call before its handler sees it.
 *
 * Source: reference 02-semantics 2.1; etcd v3.7.1 server/etcdserver/api/v3rpc/interceptor.go. */
#include "svc.h"

/* RFC 3629: no overlong forms, no surrogates, nothing past U+10FFFF. */
static bool is_utf8(struct slice s)
{
    for (size_t i = 0; i < s.len;) {
        uint8_t c = s.ptr[i];
        size_t n = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;

        if (n == 0 || n > s.len - i)
            return false;
        for (size_t k = 1; k < n; k++)
            if ((s.ptr[i + k] & 0xc0) != 0x80)
                return false;
        if ((c == 0xe0 && s.ptr[i + 1] < 0xa0) || (c == 0xed && s.ptr[i + 1] >= 0xa0) ||
            (c == 0xf0 && s.ptr[i + 1] < 0x90) || (c == 0xf4 && s.ptr[i + 1] >= 0x90))
            return false;
        i += n;
    }
    return true;
}

/* A learner may be far behind: only what says so, or asks for no more. */
static bool learner_serves(const struct rpc_method *m, const ProtobufCMessage *req)
{
    if (m->kind != RPC_UNARY)
        return strcmp(m->name, "Snapshot") == 0;
    if (req && req->descriptor == &etcdserverpb__range_request__descriptor)
        return ((const Etcdserverpb__RangeRequest *)req)->serializable;
    return req && req->descriptor == &etcdserverpb__status_request__descriptor;
}

int svc_admit(struct call *c, const ProtobufCMessage *req)
{
    const struct svc *s = call_service(c);
    struct turn_status t;

    turn_status(s->turn, &t);
    if (t.is_learner && !learner_serves(call_method(c), req))
        return ERR_NOT_SUPPORTED_LEARNER;
    if (!is_utf8(call_metadata(c, "client-api-version")))
        return ERR_CLIENT_API_VERSION;
    return t.leader == 0 && slice_eq(call_metadata(c, "hasleader"), S("true")) ? ERR_NO_LEADER : 0;
}
