/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: each refusal of etcd 3.7.1 that crosses the wire is in err.h once, with the very text and code etcd sends
 * (its clients know errors by the text), and err.h has no others but those named here.
 *
 * Source: etcd v3.7.1 api/v3rpc/rpctypes/error.go and server/etcdserver/api/v3rpc/util.go; typed from reference
 * 03-errors, not from err.h. */
#include <string.h>
#include "err.h"
#include "tap.h"

/* Codes are gRPC's numbers: 1 cancelled, 2 unknown, 3 invalid argument, 4 deadline, 5 not found, 7 permission denied,
 * 8 exhausted, 9 failed precondition, 11 out of range, 14 unavailable, 15 data loss, 16 unauthenticated. */
static const struct row {
    const char *text;
    int code;
} of_etcd[] = {
    {"etcdserver: key is not provided", 3},
    {"etcdserver: key not found", 3},
    {"etcdserver: value is provided", 3},
    {"etcdserver: lease is provided", 3},
    {"etcdserver: too many operations in txn request", 3},
    {"etcdserver: duplicate key given in txn request", 3},
    {"etcdserver: invalid client api version", 3},
    {"etcdserver: invalid sort option", 3},
    {"etcdserver: mvcc: required revision has been compacted", 11},
    {"etcdserver: mvcc: required revision is a future revision", 11},
    {"etcdserver: mvcc: database space exceeded", 8},
    {"etcdserver: requested lease not found", 5},
    {"etcdserver: lease already exists", 9},
    {"etcdserver: too large lease TTL", 11},
    {"etcdserver: watch canceled", 1},
    {"etcdserver: member ID already exist", 9},
    {"etcdserver: Peer URLs already exists", 9},
    {"etcdserver: re-configuration failed due to not enough started members", 2},
    {"etcdserver: given member URLs are invalid", 3},
    {"etcdserver: member not found", 5},
    {"etcdserver: can only promote a learner member", 9},
    {"etcdserver: can only promote a learner member which is in sync with leader", 9},
    {"etcdserver: too many learner members in cluster", 9},
    {"etcdserver: cluster ID mismatch", 9},
    {"etcdserver: request is too large", 3},
    {"etcdserver: too many requests", 2},
    {"etcdserver: root user does not exist", 9},
    {"etcdserver: root user does not have root role", 9},
    {"etcdserver: user name already exists", 9},
    {"etcdserver: user name is empty", 3},
    {"etcdserver: user name not found", 9},
    {"etcdserver: role name already exists", 9},
    {"etcdserver: role name not found", 9},
    {"etcdserver: role name is empty", 3},
    {"etcdserver: authentication failed, invalid user ID or password", 3},
    {"etcdserver: permission not given", 3},
    {"etcdserver: permission denied", 7},
    {"etcdserver: role is not granted to the user", 9},
    {"etcdserver: permission is not granted to the role", 9},
    {"etcdserver: authentication is not enabled", 9},
    {"etcdserver: invalid auth token", 16},
    {"etcdserver: invalid auth management", 3},
    {"etcdserver: revision of auth store is old", 3},
    {"etcdserver: no leader", 14},
    {"etcdserver: not leader", 9},
    {"etcdserver: leader changed", 14},
    {"etcdserver: not capable", 9},
    {"etcdserver: server stopped", 14},
    {"etcdserver: request timed out", 14},
    {"etcdserver: request timed out, possibly due to previous leader failure", 14},
    {"etcdserver: request timed out, possibly due to connection lost", 14},
    {"etcdserver: request timed out, waiting for the applied index took too long", 14},
    {"etcdserver: unhealthy cluster", 14},
    {"etcdserver: corrupt cluster", 15},
    {"etcdserver: rpc not supported for learner", 9},
    {"etcdserver: bad leader transferee", 9},
    {"etcdserver: wrong downgrade target version format", 3},
    {"etcdserver: invalid downgrade target version", 3},
    {"etcdserver: cluster version not found during downgrade", 9},
    {"etcdserver: cluster has a downgrade job in progress", 9},
    {"etcdserver: no inflight downgrade job", 9},
    {"etcdserver: request canceled", 1},
};

static const struct row others[] = {
    /* Go's own words, and errors of etcd that no table maps: UNKNOWN and the bare text. */
    {"context deadline exceeded", 4},
    {"context canceled", 1},
    {"raft proposal dropped", 2},
    {"etcdserver: unknown method", 2},
    {"not a primary lessor", 2},
    {"grpc: error unmarshalling request: proto: cannot parse invalid wire-format data", 13},
    /* Ours. */
    {"cairn: the request needs more memory than one request may use; split it", 8},
    {"cairn: the transaction is nested too deeply; at most 32 levels", 3},
    {"cairn: this change of members is not possible: a cluster has at least one voter, and at most 16 members", 9},
    {"cairn: the store on this member's disk is damaged at what was asked for; save what can still be read, then restore the "
     "member from a backup",
     15},
};

enum { N_ETCD = sizeof of_etcd / sizeof *of_etcd, N_OTHERS = sizeof others / sizeof *others };

/* How many errors of ours are this one. */
static int count_in_table(const struct row *r)
{
    int n = 0;

    for (int e = 1; e < ERR_COUNT; e++)
        n += strcmp(err_info(e).text, r->text) == 0 && (int)err_info(e).status == r->code;
    if (n != 1)
        printf("# %d times with code %d: %s\n", n, r->code, r->text);
    return n;
}

static void what_etcd_says_we_say(void)
{
    for (int i = 0; i < N_ETCD; i++)
        CHECK(count_in_table(&of_etcd[i]) == 1);
}

static void and_little_else(void)
{
    for (int i = 0; i < N_OTHERS; i++)
        CHECK(count_in_table(&others[i]) == 1);
    CHECK(ERR_COUNT - 1 == N_ETCD + N_OTHERS);
}

/* What is no error of the table is told as ours, never read beyond it. */
static void numbers_outside(void)
{
    static const int outside[] = {0, -1, -28, ERR_COUNT, 100000};

    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
        CHECK(err_info(outside[i]).status == STATUS_INTERNAL && err_info(outside[i]).text != NULL);
}

int main(void)
{
    TEST(what_etcd_says_we_say);
    TEST(and_little_else);
    TEST(numbers_outside);
    return tap_done();
}
