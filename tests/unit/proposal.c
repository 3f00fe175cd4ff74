/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: the account refuses beyond its entries and beyond its bytes and takes again after a give; a request id is
 * claimed by exactly one of many threads; an id of another boot, or used before, claims nothing; only proposals the
 * turn has taken expire, and only those are retaken that were sent by the message that is refused, or in an older
 * term. */
#include "daemon/limits.h"
#include "daemon/proposal.h"
#include "daemon/seam.h"
#include "err.h"
#include "tap.h"

static struct proposal p[LIMIT_PROPOSALS + 1];

static void bounds(void)
{
    struct account *a = account_new(LIMIT_PROPOSALS, LIMIT_PROPOSAL_BYTES, 42);

    REQUIRE(a != NULL);
    for (int i = 0; i < LIMIT_PROPOSALS; i++)
        REQUIRE(account_take(a, &p[i], 1) == 0);
    CHECK(account_pending(a) == LIMIT_PROPOSALS);
    CHECK(account_take(a, &p[LIMIT_PROPOSALS], 1) == ERR_TOO_MANY_REQUESTS);
    CHECK(proposal_claim(a, p[7].request_id) == &p[7]);
    CHECK(account_take(a, &p[LIMIT_PROPOSALS], 1) == ERR_TOO_MANY_REQUESTS); /* claimed is not yet answered */
    account_give(a, &p[7], 1);
    CHECK(account_take(a, &p[LIMIT_PROPOSALS], LIMIT_PROPOSAL_BYTES) == ERR_TOO_MANY_REQUESTS);
    CHECK(account_take(a, &p[LIMIT_PROPOSALS], LIMIT_PROPOSAL_BYTES - LIMIT_PROPOSALS + 1) == 0);
    CHECK(proposal_claim(a, p[7].request_id) == NULL); /* its slot is another's now */
    account_give(a, &p[LIMIT_PROPOSALS], LIMIT_PROPOSAL_BYTES - LIMIT_PROPOSALS + 1);
    for (int i = 0; i < LIMIT_PROPOSALS; i++) {
        if (i != 7) {
            CHECK(proposal_claim(a, p[i].request_id) == &p[i]);
            account_give(a, &p[i], 1);
        }
    }
    CHECK(account_pending(a) == 0);
    account_free(a);
}

static void ids(void)
{
    struct account *a = account_new(10, 1000, UINT64_MAX), *b = account_new(10, 1000, 1);
    uint64_t old;

    REQUIRE(a && b);
    for (int i = 0; i < 3; i++) { /* over the end of the sequence: never 0, never the same */
        REQUIRE(account_take(a, &p[i], 0) == 0);
        CHECK(p[i].request_id >> 13 != 0);
        CHECK(i == 0 || p[i].request_id != p[i - 1].request_id);
    }
    CHECK(proposal_claim(a, 0) == NULL);
    old = p[1].request_id;
    CHECK(proposal_claim(a, old) == &p[1]);
    CHECK(proposal_claim(a, old) == NULL);
    REQUIRE(account_take(b, &p[5], 0) == 0);
    CHECK(proposal_claim(a, p[5].request_id) == NULL);
    CHECK(proposal_claim(b, p[5].request_id) == &p[5]);
    account_give(b, &p[5], 0);
    CHECK(proposal_claim(a, p[0].request_id) && proposal_claim(a, p[2].request_id));
    for (int i = 0; i < 3; i++)
        account_give(a, &p[i], 0);
    account_free(a);
    account_free(b);
    account_free(NULL);
}

static int expired;
static void on_expire(void *ctx, struct proposal *q)
{
    account_give(ctx, q, 10); /* the lock is not held */
    expired++;
}

static void expiry(void)
{
    struct account *a = account_new(200, 10000, 7);

    REQUIRE(a != NULL);
    for (int i = 0; i < 200; i++) {
        REQUIRE(account_take(a, &p[i], 10) == 0);
        p[i].deadline_ms = i < 150 ? 100 : 101;
        if (i % 2)
            proposal_taken(&p[i], 1, 0);
    }
    account_expire(a, 99, on_expire, a);
    CHECK(expired == 0);
    account_expire(a, 100, on_expire, a);
    CHECK(expired == 75); /* the others still lie in a mailbox, or have time left */
    CHECK(proposal_claim(a, p[1].request_id) == NULL && proposal_claim(a, p[0].request_id) == &p[0]);
    account_give(a, &p[0], 10);
    for (int i = 0; i < 200; i++)
        proposal_taken(&p[i], 1, 0);
    account_expire(a, 101, on_expire, a);
    CHECK(expired == 199 && account_pending(a) == 0);
    account_free(a);
}

/* 0, 1: appended here in terms 5 and 6; 2, 3: sent in term 5 and 6 by messages 7 and 8; 4: waits. */
static void retaking(void)
{
    struct account *a = account_new(10, 100, 7);
    struct proposal *q;
    int n = 0;

    REQUIRE(a != NULL);
    for (int i = 0; i < 5; i++) {
        REQUIRE(account_take(a, &p[i], 1) == 0);
        if (i < 4)
            proposal_taken(&p[i], i % 2 ? 6 : 5, i < 2 ? 0 : (uint64_t)i + 5);
    }
    CHECK(account_retake(a, p[2].request_id, 8) == NULL);
    CHECK(account_retake(a, p[4].request_id, 0) == NULL);
    CHECK(account_retake(a, 0, 7) == NULL);
    CHECK(account_retake(a, p[2].request_id, 7) == &p[2]);
    CHECK(account_retake(a, p[2].request_id, 7) == NULL); /* said twice */
    proposal_taken(&p[2], 5, 9);
    CHECK(account_retake(a, p[2].request_id, 7) == NULL); /* sent anew meanwhile */
    CHECK(account_retake_older(a, 5) == NULL);
    for (q = account_retake_older(a, 6); q; q = (struct proposal *)q->mail.next, n++)
        CHECK(q == &p[0] || q == &p[2]);
    CHECK(n == 2);
    CHECK(account_retake_older(a, 6) == NULL);
    account_keep_unknown(a);
    CHECK(account_retake_older(a, UINT64_MAX) == NULL); /* a snapshot may hold them */
    for (int i = 0; i < 5; i++) {
        CHECK(proposal_claim(a, p[i].request_id) == &p[i]);
        account_give(a, &p[i], 1);
    }
    account_free(a);
}

/* Four threads claim the same ids: each is got once. */
static struct account *shared;
static _Atomic uint32_t claimed, ready;

static void *claimer(void *arg)
{
    (void)arg;
    atomic_fetch_add(&ready, 1);
    while (atomic_load(&ready) < 4)
        ;
    for (int i = 0; i < LIMIT_PROPOSALS; i++) {
        struct proposal *q = proposal_claim(shared, p[i].request_id);

        if (q) {
            REQUIRE(q == &p[i]);
            atomic_fetch_add(&claimed, 1);
            account_give(shared, q, 1);
        }
    }
    return NULL;
}

static void one_claims(void)
{
    pthread_t t[4];

    shared = account_new(LIMIT_PROPOSALS, LIMIT_PROPOSAL_BYTES, 99);
    REQUIRE(shared != NULL);
    for (int i = 0; i < LIMIT_PROPOSALS; i++)
        REQUIRE(account_take(shared, &p[i], 1) == 0);
    for (int i = 0; i < 4; i++)
        REQUIRE(thread_start(&t[i], "claimer", claimer, NULL) == 0);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    CHECK(claimed == LIMIT_PROPOSALS);
    CHECK(account_pending(shared) == 0);
    account_free(shared);
}

int main(void)
{
    TEST(bounds);
    TEST(ids);
    TEST(expiry);
    TEST(retaking);
    TEST(one_claims);
    return tap_done();
}
