/* SPDX-License-Identifier: Apache-2.0 */
/* err.h - what we refuse, and the words that say so.
 *
 * Functions return int:  0 done,  -Exxx the system refused,  ERR_x we refuse and
 * may tell the client why. One table gives the enum, the gRPC status and the text;
 * clients of etcd map errors by the exact text, so a test compares ours with etcd's.
 *
 * Source: etcd v3.7.1 api/v3rpc/rpctypes/error.go; NOT_ENOUGH_STARTED and
 * TOO_MANY_REQUESTS leave etcd as UNKNOWN (seen on the wire), so they do here.
 */
#pragma once

/* gRPC status codes (grpc/status.h has the same numbers; rpc.c asserts it). */
enum status {
    STATUS_OK = 0,
    STATUS_CANCELLED = 1,
    STATUS_UNKNOWN = 2,
    STATUS_INVALID_ARGUMENT = 3,
    STATUS_DEADLINE_EXCEEDED = 4,
    STATUS_NOT_FOUND = 5,
    STATUS_ALREADY_EXISTS = 6,
    STATUS_PERMISSION_DENIED = 7,
    STATUS_RESOURCE_EXHAUSTED = 8,
    STATUS_FAILED_PRECONDITION = 9,
    STATUS_ABORTED = 10,
    STATUS_OUT_OF_RANGE = 11,
    STATUS_UNIMPLEMENTED = 12,
    STATUS_INTERNAL = 13,
    STATUS_UNAVAILABLE = 14,
    STATUS_DATA_LOSS = 15,
    STATUS_UNAUTHENTICATED = 16,
    STATUS_COUNT
};

/* clang-format off */
/*    name                        gRPC status          text */
#define ERR_TABLE(X) \
    X(KEY_EMPTY,                   INVALID_ARGUMENT,    "etcdserver: key is not provided") \
    X(KEY_NOT_FOUND,               INVALID_ARGUMENT,    "etcdserver: key not found") \
    X(VALUE_PROVIDED,              INVALID_ARGUMENT,    "etcdserver: value is provided") \
    X(LEASE_PROVIDED,              INVALID_ARGUMENT,    "etcdserver: lease is provided") \
    X(TOO_MANY_OPS,                INVALID_ARGUMENT,    "etcdserver: too many operations in txn request") \
    X(DUPLICATE_KEY,               INVALID_ARGUMENT,    "etcdserver: duplicate key given in txn request") \
    X(CLIENT_API_VERSION,          INVALID_ARGUMENT,    "etcdserver: invalid client api version") \
    X(SORT_OPTION,                 INVALID_ARGUMENT,    "etcdserver: invalid sort option") \
    X(COMPACTED,                   OUT_OF_RANGE,        "etcdserver: mvcc: required revision has been compacted") \
    X(FUTURE_REV,                  OUT_OF_RANGE,        "etcdserver: mvcc: required revision is a future revision") \
    X(NOSPACE,                     RESOURCE_EXHAUSTED,  "etcdserver: mvcc: database space exceeded") \
    X(LEASE_NOT_FOUND,             NOT_FOUND,           "etcdserver: requested lease not found") \
    X(LEASE_EXISTS,                FAILED_PRECONDITION, "etcdserver: lease already exists") \
    X(LEASE_TTL_TOO_LARGE,         OUT_OF_RANGE,        "etcdserver: too large lease TTL") \
    X(WATCH_CANCELLED,             CANCELLED,           "etcdserver: watch canceled") \
    X(MEMBER_EXISTS,               FAILED_PRECONDITION, "etcdserver: member ID already exist") \
    X(PEER_URL_EXISTS,             FAILED_PRECONDITION, "etcdserver: Peer URLs already exists") \
    X(NOT_ENOUGH_STARTED,          UNKNOWN,             "etcdserver: re-configuration failed due to not enough started members") \
    X(MEMBER_BAD_URLS,             INVALID_ARGUMENT,    "etcdserver: given member URLs are invalid") \
    X(MEMBER_NOT_FOUND,            NOT_FOUND,           "etcdserver: member not found") \
    X(MEMBER_NOT_LEARNER,          FAILED_PRECONDITION, "etcdserver: can only promote a learner member") \
    X(LEARNER_NOT_READY,           FAILED_PRECONDITION, "etcdserver: can only promote a learner member which is in sync with leader") \
    X(TOO_MANY_LEARNERS,           FAILED_PRECONDITION, "etcdserver: too many learner members in cluster") \
    X(CLUSTER_ID_MISMATCH,         FAILED_PRECONDITION, "etcdserver: cluster ID mismatch") \
    X(REQUEST_TOO_LARGE,           INVALID_ARGUMENT,    "etcdserver: request is too large") \
    X(TOO_MANY_REQUESTS,           UNKNOWN,             "etcdserver: too many requests") \
    X(ROOT_USER_NOT_EXIST,         FAILED_PRECONDITION, "etcdserver: root user does not exist") \
    X(ROOT_ROLE_NOT_EXIST,         FAILED_PRECONDITION, "etcdserver: root user does not have root role") \
    X(USER_EXISTS,                 FAILED_PRECONDITION, "etcdserver: user name already exists") \
    X(USER_EMPTY,                  INVALID_ARGUMENT,    "etcdserver: user name is empty") \
    X(USER_NOT_FOUND,              FAILED_PRECONDITION, "etcdserver: user name not found") \
    X(ROLE_EXISTS,                 FAILED_PRECONDITION, "etcdserver: role name already exists") \
    X(ROLE_NOT_FOUND,              FAILED_PRECONDITION, "etcdserver: role name not found") \
    X(ROLE_EMPTY,                  INVALID_ARGUMENT,    "etcdserver: role name is empty") \
    X(AUTH_FAILED,                 INVALID_ARGUMENT,    "etcdserver: authentication failed, invalid user ID or password") \
    X(PERMISSION_NOT_GIVEN,        INVALID_ARGUMENT,    "etcdserver: permission not given") \
    X(PERMISSION_DENIED,           PERMISSION_DENIED,   "etcdserver: permission denied") \
    X(ROLE_NOT_GRANTED,            FAILED_PRECONDITION, "etcdserver: role is not granted to the user") \
    X(PERMISSION_NOT_GRANTED,      FAILED_PRECONDITION, "etcdserver: permission is not granted to the role") \
    X(AUTH_NOT_ENABLED,            FAILED_PRECONDITION, "etcdserver: authentication is not enabled") \
    X(INVALID_AUTH_TOKEN,          UNAUTHENTICATED,     "etcdserver: invalid auth token") \
    X(INVALID_AUTH_MGMT,           INVALID_ARGUMENT,    "etcdserver: invalid auth management") \
    X(AUTH_OLD_REVISION,           INVALID_ARGUMENT,    "etcdserver: revision of auth store is old") \
    X(NO_LEADER,                   UNAVAILABLE,         "etcdserver: no leader") \
    X(NOT_LEADER,                  FAILED_PRECONDITION, "etcdserver: not leader") \
    X(LEADER_CHANGED,              UNAVAILABLE,         "etcdserver: leader changed") \
    X(NOT_CAPABLE,                 FAILED_PRECONDITION, "etcdserver: not capable") \
    X(STOPPED,                     UNAVAILABLE,         "etcdserver: server stopped") \
    X(TIMEOUT,                     UNAVAILABLE,         "etcdserver: request timed out") \
    X(TIMEOUT_LEADER_FAIL,         UNAVAILABLE,         "etcdserver: request timed out, possibly due to previous leader failure") \
    X(TIMEOUT_CONN_LOST,           UNAVAILABLE,         "etcdserver: request timed out, possibly due to connection lost") \
    X(TIMEOUT_WAIT_APPLIED,        UNAVAILABLE,         "etcdserver: request timed out, waiting for the applied index took too long") \
    X(UNHEALTHY,                   UNAVAILABLE,         "etcdserver: unhealthy cluster") \
    X(CORRUPT,                     DATA_LOSS,           "etcdserver: corrupt cluster") \
    X(NOT_SUPPORTED_LEARNER,       FAILED_PRECONDITION, "etcdserver: rpc not supported for learner") \
    X(BAD_TRANSFEREE,              FAILED_PRECONDITION, "etcdserver: bad leader transferee") \
    X(DOWNGRADE_FORMAT,            INVALID_ARGUMENT,    "etcdserver: wrong downgrade target version format") \
    X(DOWNGRADE_VERSION,           INVALID_ARGUMENT,    "etcdserver: invalid downgrade target version") \
    X(CLUSTER_VERSION_UNAVAILABLE, FAILED_PRECONDITION, "etcdserver: cluster version not found during downgrade") \
    X(DOWNGRADE_IN_PROGRESS,       FAILED_PRECONDITION, "etcdserver: cluster has a downgrade job in progress") \
    X(NO_DOWNGRADE,                FAILED_PRECONDITION, "etcdserver: no inflight downgrade job") \
    X(REQUEST_CANCELLED,           CANCELLED,           "etcdserver: request canceled") \
    X(DEADLINE,                    DEADLINE_EXCEEDED,   "context deadline exceeded") \
    X(PROPOSAL_DROPPED,            UNKNOWN,             "raft proposal dropped") \
    X(UNKNOWN_METHOD,              UNKNOWN,             "etcdserver: unknown method") \
    X(NOT_PRIMARY_LESSOR,          UNKNOWN,             "not a primary lessor") \
    X(CANCELLED,                   CANCELLED,           "context canceled") \
    X(BAD_REQUEST,                 INTERNAL,            "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data") \
    X(ARENA_FULL,                  RESOURCE_EXHAUSTED,  "cairn: the request needs more memory than one request may use; split it") \
    X(TOO_DEEP,                    INVALID_ARGUMENT,    "cairn: the transaction is nested too deeply; at most 32 levels") \
    X(CONF_IMPOSSIBLE,             FAILED_PRECONDITION, "cairn: this change of members is not possible: a cluster has at least one voter, and at most 16 members") \
    X(DAMAGED,                     DATA_LOSS,           "cairn: the store on this member's disk is damaged at what was asked for; save what can still be read, then restore the member from a backup")
/* clang-format on */

#define X(name, status, text) ERR_##name,
enum err { ERR_NONE, ERR_TABLE(X) ERR_COUNT };
#undef X

struct err_info {
    enum status status;
    const char *text;
};

/* err is 1..ERR_COUNT-1. A negative errno is STATUS_INTERNAL with strerror's words:
 * the caller says which; -EUCLEAN is ERR_DAMAGED to a client. */
static inline struct err_info err_info(int err)
{
#define X(name, status, text) [ERR_##name] = {STATUS_##status, text},
    static const struct err_info table[ERR_COUNT] = {ERR_TABLE(X)};
#undef X

    return err > 0 && err < ERR_COUNT ? table[err]
                                      : (struct err_info){STATUS_INTERNAL, "cairn: internal error"};
}
