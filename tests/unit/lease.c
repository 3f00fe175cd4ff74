/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: a lease is due when its time is up and not before, be it by the part of a millisecond that clocks do not
 * show; renewals move it, it is handed out once and again after LEASE_RETRY_MS, a renewal past the expiry waits for the
 * revocation, and a new leader starts all anew, spread when there are many; against a model for random operations
 * (SEED). */
#include <unistd.h>
#include "daemon/lease.h"
#include "err.h"
#include "tap.h"

static uint64_t now;

static uint64_t fake_ms(struct clock *c)
{
    (void)c;
    return now;
}

static struct clock fake = {.now_ms = fake_ms};

static void grant_renew_expire(void)
{
    struct lease_table *t = lease_table_new(&fake, 2);
    struct lease_info info;
    int64_t ids[4], ttl;

    now = 5000;
    CHECK(lease_effective_ttl(t, 1) == 2 && lease_effective_ttl(t, -5) == 2 && lease_effective_ttl(t, 3) == 3);
    CHECK(lease_next_deadline_ms(t) == UINT64_MAX);
    CHECK(lease_grant(t, 1, 10, 0) == 0);
    CHECK(lease_grant(t, 1, 10, 0) == ERR_LEASE_EXISTS);
    CHECK(lease_renew(t, 1, &ttl) == ERR_NOT_PRIMARY_LESSOR);
    CHECK(lease_next_deadline_ms(t) == UINT64_MAX); /* only a leader expires */
    now += 100000;
    CHECK(lease_expired(t, ids, 4) == 0);
    CHECK(lease_get(t, 1, &info) == 0 && info.remaining_ms == 10000);
    lease_promote(t, 1000);
    CHECK(lease_next_deadline_ms(t) == now + 11001); /* the clock may be about to show the next one */
    now += 4000;
    CHECK(lease_get(t, 1, &info) == 0 && info.remaining_ms == 7000 && info.granted_ttl_s == 10);
    CHECK(lease_renew(t, 1, &ttl) == 0 && ttl == 10);
    CHECK(lease_renew(t, 2, &ttl) == ERR_LEASE_NOT_FOUND);
    now += 10000; /* of which the first may have been nearly over */
    CHECK(lease_get(t, 1, &info) == 0 && info.remaining_ms == 0);
    CHECK(lease_expired(t, ids, 4) == 0);
    now += 1;
    CHECK(lease_renew(t, 1, &ttl) == LEASE_PAST); /* expired, whether asked for or not */
    CHECK(lease_expired(t, ids, 4) == 1 && ids[0] == 1);
    CHECK(lease_expired(t, ids, 4) == 0);
    CHECK(lease_renew(t, 1, &ttl) == LEASE_PAST);
    now += LEASE_RETRY_MS;
    CHECK(lease_expired(t, ids, 4) == 1); /* its entry was lost */
    CHECK(lease_revoke(t, 1) == 0 && lease_revoke(t, 1) == ERR_LEASE_NOT_FOUND);
    CHECK(lease_count(t) == 0 && lease_next_deadline_ms(t) == UINT64_MAX);
    lease_table_free(t);
}

static int waits_done, wait_err;

static void on_wait(struct lease_wait *w)
{
    waits_done++;
    wait_err = w->err;
}

static void waiting(void)
{
    struct lease_table *t = lease_table_new(&fake, 2);
    struct lease_wait a = {.id = 1, .done = on_wait}, b = a, c = a, none = {.id = 2, .done = on_wait};

    lease_promote(t, 0);
    lease_grant(t, 1, 10, 0);
    CHECK(lease_wait(t, &none) == 0);
    CHECK(lease_wait(t, &a) == 1 && lease_wait(t, &b) == 1 && lease_wait(t, &c) == 1);
    CHECK(lease_wait_cancel(t, &b));
    CHECK(!lease_wait_cancel(t, &b));
    CHECK(lease_revoke(t, 1) == 0);
    CHECK(waits_done == 2 && wait_err == 0);
    lease_grant(t, 1, 10, 0);
    CHECK(lease_wait(t, &a) == 1);
    lease_demote(t);
    CHECK(waits_done == 3 && wait_err == ERR_NOT_PRIMARY_LESSOR);
    CHECK(!lease_wait_cancel(t, &a));
    lease_table_free(t);
}

static void promotion(void)
{
    enum { N = 3000 };
    struct lease_table *t = lease_table_new(&fake, 2);
    static int64_t ids[LEASE_EXPIRE_MAX];
    struct lease_info info;
    size_t n = 0, in_second = 0, most = 0;

    now = 0;
    lease_grant(t, -1, 100, 30); /* checkpointed */
    lease_promote(t, 0);
    CHECK(lease_get(t, -1, &info) == 0 && info.remaining_ms == 30000 && info.checkpoint_s == 30);
    for (int i = 0; i < N; i++)
        lease_grant(t, 1 + i, 60, 0);
    lease_demote(t);
    lease_promote(t, 0);
    for (now = 0; now < 200000 && lease_count(t) > 0; now += 10) {
        size_t k = lease_expired(t, ids, LEASE_EXPIRE_MAX);

        for (size_t i = 0; i < k; i++)
            CHECK(lease_revoke(t, ids[i]) == 0);
        n += k;
        in_second += k;
        if (now % 1000 == 990) {
            most = in_second > most ? in_second : most;
            in_second = 0;
        }
        CHECK(k == 0 || now >= 30000);
    }
    CHECK(n == N + 1);
    CHECK(most <= 900); /* all were due at 60 s */
    lease_table_free(t);
}

static void listing(void)
{
    struct lease_table *t = lease_table_new(&fake, 2);
    struct arena a;
    int64_t *ids;
    size_t n;

    arena_init(&a, 1 << 20, NULL, 0);
    lease_promote(t, 0);
    lease_grant(t, 3, 30, 0);
    lease_grant(t, 1, 10, 0);
    lease_grant(t, 2, 20, 0);
    CHECK(lease_list(t, &a, &ids, &n) == 0 && n == 3 && ids[0] == 1 && ids[1] == 2 && ids[2] == 3);
    arena_fini(&a);
    lease_table_free(t);
}

/* ---- against a model ------------------------------------------------------------------------- */

enum { IDS = 64 };
static struct model {
    bool there;
    uint64_t ttl_ms, expiry, handed_out; /* handed_out: not again before; 0: never */
} model[IDS];

static uint64_t draw(uint64_t *s, uint64_t n)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s % n;
}

static void model_expire(struct lease_table *t)
{
    int64_t ids[IDS];
    size_t n = lease_expired(t, ids, IDS);
    bool out[IDS] = {false};

    for (size_t i = 0; i < n; i++) {
        struct model *m = &model[ids[i]];

        CHECK(m->there && m->expiry <= now && !out[ids[i]] && (m->handed_out == 0 || m->handed_out <= now));
        out[ids[i]] = true;
        m->handed_out = now + LEASE_RETRY_MS;
    }
    for (int i = 0; n > 0 && i < IDS; i++) /* none was forgotten */
        CHECK(!model[i].there || model[i].expiry > now || model[i].handed_out > now);
}

static void random_operations(void)
{
    const char *env = getenv("SEED");
    uint64_t seed = env ? strtoull(env, NULL, 0) : (uint64_t)getpid() * 2654435761u + 1, s = seed;
    struct lease_table *t = lease_table_new(&fake, 2);

    printf("# SEED=%llu\n", (unsigned long long)seed);
    memset(model, 0, sizeof model);
    now = 1000;
    lease_promote(t, 0);
    for (int i = 0; i < 200000; i++) {
        int64_t id = (int64_t)draw(&s, IDS), ttl;
        struct model *m = &model[id];
        int err;

        switch (draw(&s, 5)) {
        case 0:
            ttl = (int64_t)draw(&s, 20) + 1;
            err = lease_grant(t, id, ttl, 0);
            CHECK(err == (m->there ? ERR_LEASE_EXISTS : 0));
            if (!m->there)
                *m = (struct model){true, (uint64_t)ttl * 1000, now + (uint64_t)ttl * 1000 + 1, 0};
            break;
        case 1:
            if (draw(&s, 3) == 0) {
                CHECK(lease_revoke(t, id) == (m->there ? 0 : ERR_LEASE_NOT_FOUND));
                m->there = false;
            }
            break;
        case 2:
            err = lease_renew(t, id, &ttl);
            CHECK(err == (!m->there ? ERR_LEASE_NOT_FOUND : m->expiry <= now ? LEASE_PAST : 0));
            if (!err)
                m->expiry = now + m->ttl_ms + 1;
            break;
        case 3:
            now += draw(&s, 300);
            break;
        default:
            model_expire(t);
        }
    }
    lease_table_free(t);
}

int main(void)
{
    TEST(grant_renew_expire);
    TEST(waiting);
    TEST(promotion);
    TEST(listing);
    TEST(random_operations);
    return tap_done();
}
