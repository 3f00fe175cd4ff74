/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: the live delta is sealed when it holds LIMIT_DELTA_FREEZE_BYTES (LIMIT_DELTA_FREEZE_HOT_BYTES
 * when few keys change often, _SHARED_ when there are other members), when it has LIMIT_DELTA_FREEZE_KEYS distinct
 * keys, and LIMIT_FREEZE_IDLE_MS after the last entry, in each case not before; the tables of alarms and members take
 * as many as they are made for and say what becomes of one more. (LIMIT_DELTA_STALL_BYTES: apply.c.) */
#include <inttypes.h>
#include "apply_rig.h"

static struct rig r;

/* Commits a txn of n puts of `bytes` each at keys from `first` on. */
static void put_some(int first, int n, size_t bytes)
{
    static char keys[128][16], value[1 << 20];
    Etcdserverpb__TxnRequest t = ETCDSERVERPB__TXN_REQUEST__INIT;
    Etcdserverpb__RequestOp ops[128], *op[128];
    Etcdserverpb__PutRequest put[128];

    memset(value, 'v', bytes);
    for (int i = 0; i < n; i++) {
        (void)snprintf(keys[i], sizeof keys[i], "%08d", first + i);
        put[i] = (Etcdserverpb__PutRequest)ETCDSERVERPB__PUT_REQUEST__INIT;
        put[i].key = rig_bytes(keys[i]);
        put[i].value = (ProtobufCBinaryData){bytes, (uint8_t *)value};
        ops[i] = (Etcdserverpb__RequestOp)ETCDSERVERPB__REQUEST_OP__INIT;
        ops[i].request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
        ops[i].request_put = &put[i];
        op[i] = &ops[i];
    }
    t.success = op;
    t.n_success = (size_t)n;
    CHECK(rig_message(&r, ENTRY_TXN, &t, false) == 0);
}

/* Puts of 60 KiB, at as many keys as there are puts, or always at one. */
static void freeze_by_bytes_of(bool many, size_t members, size_t limit)
{
    size_t before = 0, n_members;

    rig_new(&r);
    n_members = r.apply->n_members;
    r.apply->n_members = members;
    r.apply->freeze_apart = true;
    while (store_frozen(r.store) == NULL && r.last < 2000) {
        before = delta_bytes(store_live(r.store));
        CHECK(before < limit);
        put_some(many ? (int)r.last : 0, 1, 60 << 10);
        (void)apply_step(r.apply);
    }
    printf("# sealed after %" PRIu64 " puts\n", r.last);
    CHECK(before + (1 << 20) >= limit);
    CHECK(delta_bytes(store_live(r.store)) < (1 << 20));
    r.apply->n_members = n_members;
    rig_free(&r);
}

static void freeze_by_bytes(void)
{
    freeze_by_bytes_of(true, 3, LIMIT_DELTA_FREEZE_BYTES);
}

static void freeze_by_bytes_of_hot_keys(void)
{
    freeze_by_bytes_of(false, 1, LIMIT_DELTA_FREEZE_HOT_BYTES);
}

static void freeze_by_bytes_of_hot_keys_of_several(void)
{
    freeze_by_bytes_of(false, 3, LIMIT_DELTA_FREEZE_SHARED_BYTES);
}

/* One of three members, by the order of their ids: each begins at its own part, then all take what they may. */
static void members_take_turns(void)
{
    Etcdserverpb__Member others[3];

    for (size_t rank = 0; rank < 3; rank++) {
        size_t limit = LIMIT_DELTA_FREEZE_SHARED_BYTES, n_members;
        Etcdserverpb__Member *members[3];

        rig_new(&r);
        n_members = r.apply->n_members;
        memcpy(members, r.apply->members, sizeof members);
        for (size_t i = 0; i < 3; i++) {
            others[i] = (Etcdserverpb__Member)ETCDSERVERPB__MEMBER__INIT;
            others[i].id = r.apply->o.member_id - rank + i;
            r.apply->members[i] = &others[i];
        }
        r.apply->n_members = 3;
        for (int round = 0; round < 4; round++) { /* the last comes after a rest */
            size_t want = round == 0 || round == 3 ? limit * (rank + 1) / 3 : limit, before = 0;

            for (int i = 0; store_frozen(r.store) == NULL && i < 2000; i++) {
                before = delta_bytes(store_live(r.store));
                CHECK(before < want);
                put_some(0, 1, 20 << 10);
                (void)apply_step(r.apply);
            }
            CHECK(before + (100 << 10) >= want);
            rig_flush(&r);
            if (round == 2) {
                CHECK(rig_put(&r, "k", "v", 0) == 0);
                r.clock.ms += LIMIT_FREEZE_IDLE_MS;
                (void)apply_step(r.apply);
                CHECK(store_frozen(r.store) != NULL);
                rig_flush(&r);
            }
        }
        memcpy(r.apply->members, members, sizeof members);
        r.apply->n_members = n_members;
        rig_free(&r);
    }
}

static void freeze_by_keys(void)
{
    rig_new(&r);
    for (int i = 0; i < LIMIT_DELTA_FREEZE_KEYS / 128; i++) {
        CHECK(store_frozen(r.store) == NULL);
        put_some(i * 128, 128, 1);
    }
    (void)apply_step(r.apply);
    REQUIRE(store_frozen(r.store) != NULL);
    CHECK(delta_bytes(store_frozen(r.store)) < LIMIT_DELTA_FREEZE_BYTES);
    rig_free(&r);
}

static void freeze_when_idle(void)
{
    rig_new(&r);
    CHECK(rig_put(&r, "k", "v", 0) == 0);
    r.clock.ms += LIMIT_FREEZE_IDLE_MS - 1;
    (void)apply_step(r.apply);
    CHECK(store_frozen(r.store) == NULL);
    r.clock.ms++;
    (void)apply_step(r.apply);
    CHECK(store_frozen(r.store) != NULL);
    rig_free(&r);
}

/* How many the answer shows. */
static size_t set_alarm(uint64_t member_id, int action)
{
    Etcdserverpb__AlarmRequest q = ETCDSERVERPB__ALARM_REQUEST__INIT;

    q.action = (Etcdserverpb__AlarmRequest__AlarmAction)action;
    q.memberid = member_id;
    q.alarm = ETCDSERVERPB__ALARM_TYPE__NOSPACE;
    CHECK(rig_message(&r, ENTRY_ALARM, &q, true) == 0);
    return ((Etcdserverpb__AlarmResponse *)r.p.response)->n_alarms;
}

static void alarms(void)
{
    enum { GET, ACTIVATE, DEACTIVATE };

    rig_new(&r);
    for (uint64_t i = 1; i <= ALARMS_MAX; i++)
        CHECK(set_alarm(i, ACTIVATE) == 1);
    CHECK(set_alarm(ALARMS_MAX + 1, ACTIVATE) == 0); /* not taken, and says so */
    CHECK(set_alarm(0, GET) == ALARMS_MAX);
    CHECK(set_alarm(1, DEACTIVATE) == 1);
    CHECK(set_alarm(ALARMS_MAX + 1, ACTIVATE) == 1);
    rig_flush(&r);
    rig_restart(&r);
    CHECK(set_alarm(0, GET) == ALARMS_MAX);
    rig_free(&r);
}

int main(void)
{
    TEST(freeze_by_bytes);
    TEST(freeze_by_bytes_of_hot_keys);
    TEST(freeze_by_bytes_of_hot_keys_of_several);
    TEST(members_take_turns);
    TEST(freeze_by_keys);
    TEST(freeze_when_idle);
    TEST(alarms);
    return tap_done();
}
