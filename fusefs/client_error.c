/* SPDX-License-Identifier: Apache-2.0 */
/* client_error.c - what the server's words mean.
 *
 * By etcd's text, because gRPC's codes are ambiguous (a failed login and a request too large are both
 * InvalidArgument; no leader and a timeout both Unavailable).
 *
 * Two tables. The first says of an error whether the request was certainly not carried out; the second is
 * A.12.
 */
#include <errno.h>

#include "client_private.h"

enum err client_err_of_text(const char *text)
{
    for (int e = 1; e < ERR_COUNT; e++)
        if (strcmp(err_info(e).text, text) == 0)
            return (enum err)e;
    return ERR_NONE;
}

/* The server gave up on a request that it may have proposed: the entry can still be committed. */
static bool leaves_doubt(enum err err)
{
    switch (err) {
    case ERR_TIMEOUT:
    case ERR_TIMEOUT_LEADER_FAIL:
    case ERR_TIMEOUT_CONN_LOST:
    case ERR_TIMEOUT_WAIT_APPLIED:
    case ERR_LEADER_CHANGED:
    case ERR_STOPPED:
    case ERR_DEADLINE:
    case ERR_CANCELLED:
    case ERR_REQUEST_CANCELLED:
    case ERR_DAMAGED: /* met while applying: the entry is in the log */
        return true;
    default:
        return false;
    }
}

enum client_outcome client_outcome_of(enum err err, enum status code)
{
    if (code == STATUS_OK)
        return CLIENT_OK;
    if (err != ERR_NONE)
        return leaves_doubt(err) ? CLIENT_UNKNOWN : CLIENT_REFUSED;
    switch (code) {
    case STATUS_INVALID_ARGUMENT:
    case STATUS_NOT_FOUND:
    case STATUS_ALREADY_EXISTS:
    case STATUS_PERMISSION_DENIED:
    case STATUS_FAILED_PRECONDITION:
    case STATUS_OUT_OF_RANGE:
    case STATUS_UNIMPLEMENTED:
    case STATUS_UNAUTHENTICATED:
    case STATUS_RESOURCE_EXHAUSTED:
        return CLIENT_REFUSED;
    default:
        return CLIENT_UNKNOWN;
    }
}

/* One row for each error that has an errno of its own; 0: not decided by the text. */
static int errno_of_err(enum err err, enum client_use use)
{
    switch (err) {
    case ERR_KEY_NOT_FOUND:
        return ENOENT;
    case ERR_REQUEST_TOO_LARGE:
        return EFBIG;
    case ERR_NOSPACE:
        return ENOSPC;
    case ERR_TOO_MANY_OPS:
        return EXDEV;
    case ERR_PERMISSION_DENIED:
    case ERR_AUTH_FAILED:
    case ERR_INVALID_AUTH_TOKEN:
    case ERR_AUTH_OLD_REVISION:
    case ERR_USER_EMPTY:
    case ERR_USER_NOT_FOUND:
        return EACCES;
    case ERR_NO_LEADER:
    case ERR_NOT_LEADER:
    case ERR_PROPOSAL_DROPPED:
    case ERR_UNHEALTHY:
        return use == CLIENT_USE_READ ? ETIMEDOUT : EROFS;
    case ERR_NOT_SUPPORTED_LEARNER:
    case ERR_NOT_CAPABLE:
        return EROFS;
    case ERR_TOO_MANY_REQUESTS:
        return EBUSY;
    case ERR_CORRUPT:
    case ERR_DAMAGED:
        return EIO;
    case ERR_COMPACTED:
    case ERR_FUTURE_REV:
        return ENOENT;
    case ERR_LEASE_NOT_FOUND:
    case ERR_LEASE_TTL_TOO_LARGE:
    case ERR_LEASE_EXISTS:
        return EINVAL;
    default:
        return leaves_doubt(err) ? ETIMEDOUT : 0;
    }
}

static int errno_of_code(enum status code)
{
    switch (code) {
    case STATUS_UNAVAILABLE:
    case STATUS_DEADLINE_EXCEEDED:
    case STATUS_CANCELLED:
        return ETIMEDOUT;
    case STATUS_PERMISSION_DENIED:
    case STATUS_UNAUTHENTICATED:
        return EACCES;
    case STATUS_RESOURCE_EXHAUSTED:
        return EFBIG;
    case STATUS_INVALID_ARGUMENT:
        return EINVAL;
    case STATUS_UNIMPLEMENTED:
        return EROFS;
    default:
        return EIO;
    }
}

int client_errno(const struct client_call *call, enum client_use use)
{
    int e;

    if (call->outcome == CLIENT_OK)
        return 0;
    if (call->outcome == CLIENT_NOT_SENT)
        return use == CLIENT_USE_READ ? ETIMEDOUT : EROFS;
    e = errno_of_err(call->err, use);
    return e ? e : errno_of_code(call->code);
}
