/* SPDX-License-Identifier: Apache-2.0 */
/* fs_errno.c - proves the errno table of A.12: each text of etcd gives the errno the table names, whatever gRPC's code,
 * and is known to be carried out, refused or in doubt; codes decide only where the text says nothing. */
#include <errno.h>
#include <stdio.h>

#include "fusefs/client_private.h"
#include "tap.h"

static int errno_of(const char *text, enum status code, enum client_use use)
{
    struct client_call call = {.err = client_err_of_text(text), .code = code};

    call.outcome = client_outcome_of(call.err, code);
    return client_errno(&call, use);
}

static const struct row {
    const char *text;
    enum status code;
    int read, write, lease;
    enum client_outcome outcome;
} rows[] = {
    {"etcdserver: request is too large", STATUS_INVALID_ARGUMENT, EFBIG, EFBIG, EFBIG, CLIENT_REFUSED},
    {"etcdserver: authentication failed, invalid user ID or password", STATUS_INVALID_ARGUMENT, EACCES,
     EACCES, EACCES, CLIENT_REFUSED},
    {"etcdserver: invalid auth token", STATUS_UNAUTHENTICATED, EACCES, EACCES, EACCES, CLIENT_REFUSED},
    {"etcdserver: permission denied", STATUS_PERMISSION_DENIED, EACCES, EACCES, EACCES, CLIENT_REFUSED},
    {"etcdserver: mvcc: database space exceeded", STATUS_RESOURCE_EXHAUSTED, ENOSPC, ENOSPC, ENOSPC,
     CLIENT_REFUSED},
    {"etcdserver: too many operations in txn request", STATUS_INVALID_ARGUMENT, EXDEV, EXDEV, EXDEV,
     CLIENT_REFUSED},
    {"etcdserver: no leader", STATUS_UNAVAILABLE, ETIMEDOUT, EROFS, EROFS, CLIENT_REFUSED},
    {"etcdserver: request timed out", STATUS_UNAVAILABLE, ETIMEDOUT, ETIMEDOUT, ETIMEDOUT, CLIENT_UNKNOWN},
    {"etcdserver: request timed out, possibly due to previous leader failure", STATUS_UNAVAILABLE, ETIMEDOUT,
     ETIMEDOUT, ETIMEDOUT, CLIENT_UNKNOWN},
    {"etcdserver: leader changed", STATUS_UNAVAILABLE, ETIMEDOUT, ETIMEDOUT, ETIMEDOUT, CLIENT_UNKNOWN},
    {"etcdserver: server stopped", STATUS_UNAVAILABLE, ETIMEDOUT, ETIMEDOUT, ETIMEDOUT, CLIENT_UNKNOWN},
    {"raft proposal dropped", STATUS_UNKNOWN, ETIMEDOUT, EROFS, EROFS, CLIENT_REFUSED},
    {"etcdserver: too many requests", STATUS_UNKNOWN, EBUSY, EBUSY, EBUSY, CLIENT_REFUSED},
    {"etcdserver: corrupt cluster", STATUS_DATA_LOSS, EIO, EIO, EIO, CLIENT_REFUSED},
    {"etcdserver: mvcc: required revision has been compacted", STATUS_OUT_OF_RANGE, ENOENT, ENOENT, ENOENT,
     CLIENT_REFUSED},
    {"etcdserver: mvcc: required revision is a future revision", STATUS_OUT_OF_RANGE, ENOENT, ENOENT, ENOENT,
     CLIENT_REFUSED},
    {"etcdserver: requested lease not found", STATUS_NOT_FOUND, EINVAL, EINVAL, EINVAL, CLIENT_REFUSED},
    {"etcdserver: too large lease TTL", STATUS_OUT_OF_RANGE, EINVAL, EINVAL, EINVAL, CLIENT_REFUSED},
    {"etcdserver: rpc not supported for learner", STATUS_FAILED_PRECONDITION, EROFS, EROFS, EROFS,
     CLIENT_REFUSED},
    {"etcdserver: not capable", STATUS_FAILED_PRECONDITION, EROFS, EROFS, EROFS, CLIENT_REFUSED},
    {"etcdserver: key not found", STATUS_INVALID_ARGUMENT, ENOENT, ENOENT, ENOENT, CLIENT_REFUSED},
    /* gRPC's own words */
    {"Deadline Exceeded", STATUS_DEADLINE_EXCEEDED, ETIMEDOUT, ETIMEDOUT, ETIMEDOUT, CLIENT_UNKNOWN},
    {"Socket closed", STATUS_UNAVAILABLE, ETIMEDOUT, ETIMEDOUT, ETIMEDOUT, CLIENT_UNKNOWN},
    {"grpc: received message larger than max (2 vs. 1)", STATUS_RESOURCE_EXHAUSTED, EFBIG, EFBIG, EFBIG,
     CLIENT_REFUSED},
    {"anything else", STATUS_INTERNAL, EIO, EIO, EIO, CLIENT_UNKNOWN},
};

static void check_use(const struct row *r, enum client_use use, int want)
{
    int got = errno_of(r->text, r->code, use);

    if (got != want)
        printf("# %s, use %d: %d, not %d\n", r->text, use, got, want);
    CHECK(got == want);
}

static void texts(void)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_use(&rows[i], CLIENT_USE_READ, rows[i].read);
        check_use(&rows[i], CLIENT_USE_WRITE, rows[i].write);
        check_use(&rows[i], CLIENT_USE_LEASE, rows[i].lease);
        CHECK(client_outcome_of(client_err_of_text(rows[i].text), rows[i].code) == rows[i].outcome);
    }
}

/* Every error of the table gives some errno, and none is mistaken for success. */
static void every_error(void)
{
    for (int e = 1; e < ERR_COUNT; e++) {
        struct err_info info = err_info(e);

        CHECK(client_err_of_text(info.text) == (enum err)e);
        for (int use = CLIENT_USE_READ; use <= CLIENT_USE_LEASE; use++)
            CHECK(errno_of(info.text, info.status, (enum client_use)use) > 0);
    }
    CHECK(client_err_of_text("") == ERR_NONE);
}

static void not_sent(void)
{
    const struct client_call call = {.outcome = CLIENT_NOT_SENT, .code = STATUS_UNAVAILABLE};
    const struct client_call ok = {.outcome = CLIENT_OK};

    CHECK(client_errno(&call, CLIENT_USE_READ) == ETIMEDOUT);
    CHECK(client_errno(&call, CLIENT_USE_WRITE) == EROFS);
    CHECK(client_errno(&ok, CLIENT_USE_WRITE) == 0);
}

int main(void)
{
    TEST(texts);
    TEST(every_error);
    TEST(not_sent);
    return tap_done();
}
