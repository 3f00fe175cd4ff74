/* SPDX-License-Identifier: Apache-2.0 */
/* svc_health.c - grpc.health.v1: Check, Watch, List.
 *
 * There is one service to ask for, the whole server: "". It serves as long as the process answers; the watches end with
 * the server. Words and codes as grpc-go's health service has them, which is etcd's.
 *
 * Owner: the call's rpc thread.
 */
#include "health.pb-c.h"
#include "msg.h"
#include "svc.h"

static void check_start(struct call *c, const ProtobufCMessage *m)
{
    const Grpc__Health__V1__HealthCheckRequest *req = (const Grpc__Health__V1__HealthCheckRequest *)m;
    Grpc__Health__V1__HealthCheckResponse resp = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

    if (req->service && req->service[0]) {
        call_fail_text(c, STATUS_NOT_FOUND, "unknown service");
        return;
    }
    resp.status = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
    call_answer(c, &resp.base);
}

/* One message now; another would only follow a change, and there is none. The stream stays until its client goes. */
static void watch_start(struct call *c, const ProtobufCMessage *m)
{
    const Grpc__Health__V1__HealthCheckRequest *req = (const Grpc__Health__V1__HealthCheckRequest *)m;
    Grpc__Health__V1__HealthCheckResponse resp = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

    resp.status = req->service && req->service[0]
                      ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN
                      : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
    call_send(c, &resp.base);
}

static void list_start(struct call *c, const ProtobufCMessage *m)
{
    Grpc__Health__V1__HealthListResponse resp = GRPC__HEALTH__V1__HEALTH_LIST_RESPONSE__INIT;
    Grpc__Health__V1__HealthListResponse__StatusesEntry entry =
        GRPC__HEALTH__V1__HEALTH_LIST_RESPONSE__STATUSES_ENTRY__INIT;
    Grpc__Health__V1__HealthListResponse__StatusesEntry *entries[] = {&entry};
    Grpc__Health__V1__HealthCheckResponse status = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

    (void)m;
    status.status = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
    entry.value = &status;
    resp.statuses = entries;
    resp.n_statuses = 1;
    call_answer(c, &resp.base);
}

#define HEALTH "grpc.health.v1.Health"

static const struct rpc_method methods[] = {
    {.service = HEALTH, .name = "Check", .kind = RPC_UNARY, .access = ACCESS_OPEN,
     .request = &grpc__health__v1__health_check_request__descriptor, .start = check_start},
    {.service = HEALTH, .name = "Watch", .kind = RPC_SERVER_STREAM, .access = ACCESS_OPEN,
     .request = &grpc__health__v1__health_check_request__descriptor, .start = watch_start},
    {.service = HEALTH, .name = "List", .kind = RPC_UNARY, .access = ACCESS_OPEN,
     .request = &grpc__health__v1__health_list_request__descriptor, .start = list_start},
};

const struct svc_service svc_health = {methods, sizeof methods / sizeof methods[0]};
