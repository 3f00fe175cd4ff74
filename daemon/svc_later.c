/* SPDX-License-Identifier: Apache-2.0 */
/* svc_later.c - services that are not there yet: Auth, Lock, Election. Each method says so.
 *
 * Two of Auth's have a true answer already, since authentication is never enabled: AuthStatus and Authenticate (a
 * client that was given a user asks for a token first, and goes on without one when told that none is needed).
 *
 * Owner: the call's rpc thread.
 */
#include "election.pb-c.h"
#include "lock.pb-c.h"
#include "msg.h"
#include "svc.h"

static void auth_later(struct call *c, const ProtobufCMessage *m)
{
    (void)m;
    call_fail_text(c, STATUS_UNIMPLEMENTED, "cairn: users, roles and authentication are not there yet");
}

static void lock_later(struct call *c, const ProtobufCMessage *m)
{
    (void)m;
    call_fail_text(c, STATUS_UNIMPLEMENTED,
                   "cairn: the Lock service is not there yet; lock by a lease and a transaction, as etcdctl lock does");
}

static void election_later(struct call *c, const ProtobufCMessage *m)
{
    (void)m;
    call_fail_text(c, STATUS_UNIMPLEMENTED,
                   "cairn: the Election service is not there yet; elect by a lease and a transaction, as etcdctl elect does");
}

static void authenticate(struct call *c, const ProtobufCMessage *m)
{
    (void)m;
    call_fail(c, ERR_AUTH_NOT_ENABLED);
}

static void auth_status(struct call *c, const ProtobufCMessage *m)
{
    Etcdserverpb__AuthStatusResponse resp = ETCDSERVERPB__AUTH_STATUS_RESPONSE__INIT;

    (void)m;
    resp.header = svc_header(c, 0);
    resp.enabled = false;
    resp.authrevision = 1; /* of a store of users that was never changed */
    call_answer(c, &resp.base);
}

#define ROW(service_, name_, kind_, access_, request_, start_) \
    {.service = service_, .name = name_, .kind = kind_, .access = access_, \
     .request = &request_##__descriptor, .start = start_}
#define AUTH(name_, request_) ROW("etcdserverpb.Auth", name_, RPC_UNARY, ACCESS_ROOT, etcdserverpb__auth_##request_##_request, auth_later)
#define LOCK(name_, request_) ROW("v3lockpb.Lock", name_, RPC_UNARY, ACCESS_KEYS, v3lockpb__##request_##_request, lock_later)
#define ELECT(name_, kind_, request_) \
    ROW("v3electionpb.Election", name_, kind_, ACCESS_KEYS, v3electionpb__##request_##_request, election_later)

static const struct rpc_method methods[] = {
    AUTH("AuthEnable", enable),
    AUTH("AuthDisable", disable),
    ROW("etcdserverpb.Auth", "AuthStatus", RPC_UNARY, ACCESS_OPEN, etcdserverpb__auth_status_request, auth_status),
    ROW("etcdserverpb.Auth", "Authenticate", RPC_UNARY, ACCESS_OPEN, etcdserverpb__authenticate_request, authenticate),
    AUTH("UserAdd", user_add),
    AUTH("UserGet", user_get),
    AUTH("UserList", user_list),
    AUTH("UserDelete", user_delete),
    AUTH("UserChangePassword", user_change_password),
    AUTH("UserGrantRole", user_grant_role),
    AUTH("UserRevokeRole", user_revoke_role),
    AUTH("RoleAdd", role_add),
    AUTH("RoleGet", role_get),
    AUTH("RoleList", role_list),
    AUTH("RoleDelete", role_delete),
    AUTH("RoleGrantPermission", role_grant_permission),
    AUTH("RoleRevokePermission", role_revoke_permission),
    LOCK("Lock", lock),
    LOCK("Unlock", unlock),
    ELECT("Campaign", RPC_UNARY, campaign),
    ELECT("Proclaim", RPC_UNARY, proclaim),
    ELECT("Leader", RPC_UNARY, leader),
    ELECT("Observe", RPC_SERVER_STREAM, leader),
    ELECT("Resign", RPC_UNARY, resign),
};

const struct svc_service svc_later = {methods, sizeof methods / sizeof methods[0]};
