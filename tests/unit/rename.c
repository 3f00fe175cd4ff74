/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: an entry that renames a directory comes to the very state, events and hash that a txn of one range delete and
 * a put for each key comes to, whatever lies in base and what in the deltas; it is refused, with nothing changed, when
 * a key is newer than what the caller read, when the target has keys, when there is nothing to move and when it is more
 * than the limits allow, and at the limits it is not; the alarms' say; a replay after a restart. SEED picks the
 * keys. */
#include <time.h>
#include "apply_rig.h"
#include "daemon/msg.h"
#include "tree.pb-c.h"

enum { MODEL_KEYS = 60, ROUNDS = 40 };

static uint64_t seed;

static uint64_t draw(uint64_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % n;
}

static int rename_flags(struct rig *r, const char *from, const char *to, int64_t revision, uint32_t flags, bool wait)
{
    Cairn__RenameRequest req = CAIRN__RENAME_REQUEST__INIT;
    int err;

    req.from = rig_bytes(from);
    req.to = rig_bytes(to);
    req.revision = revision;
    req.flags = flags;
    err = rig_message(r, ENTRY_RENAME, &req, wait);
    if (err || !wait)
        return err;
    return -100 - (int)((const Cairn__RenameResponse *)r->p.response)->outcome;
}

#define DONE      (-100)
#define CHANGED   (-101)
#define NOTHING   (-102)
#define TOO_LARGE (-103)

static int rename_at(struct rig *r, const char *from, const char *to, int64_t revision)
{
    return rename_flags(r, from, to, revision, 0, true);
}

static const Cairn__RenameResponse *answer(const struct rig *r)
{
    return r->p.response;
}

/* ---- the events, as a watcher sees them --------------------------------------------------------------- */

struct events {
    char text[1 << 16];
    size_t n;
};

static int event_add(void *ctx, const struct change *c)
{
    struct events *e = ctx;

    e->n += (size_t)snprintf(e->text + e->n, sizeof e->text - e->n, "%s%.*s@%ld.%u:%ld.%ld.%ld ", c->tombstone ? "-" : "+",
                             (int)c->key.len, (const char *)c->key.ptr, (long)c->rev.main, c->rev.sub,
                             (long)c->create_revision, (long)c->version, (long)c->lease);
    REQUIRE(e->n < sizeof e->text);
    return 0;
}

static void events_at(struct rig *r, int64_t rev, struct events *e)
{
    struct slot *sl = slot_new(r->store);
    struct arena a;
    struct view v;

    e->n = 0;
    e->text[0] = 0;
    arena_init(&a, 64 << 20, NULL, 0);
    REQUIRE(view_open(r->store, sl, &v) == 0);
    REQUIRE(view_log_scan(&v, rev, rev, &a, event_add, e) == 0);
    view_close(&v);
    arena_fini(&a);
    slot_free(r->store, sl);
}

/* ---- beside a txn --------------------------------------------------------------------------------------- */

static char keys[MODEL_KEYS][700], values[MODEL_KEYS][6000];
static int64_t leases[MODEL_KEYS];
static bool there[MODEL_KEYS];

/* Names of which some are longer than an index row, one is the directory's marker and one is beside the directory. */
static void model_names(void)
{
    for (int i = 0; i < MODEL_KEYS; i++)
        if (i == 0)
            snprintf(keys[i], sizeof *keys, "a/");
        else if (i % 10 == 9)
            snprintf(keys[i], sizeof *keys, "a/%0600d", i);
        else if (i % 10 == 8)
            snprintf(keys[i], sizeof *keys, "a%c%02d", i % 20 == 8 ? '.' : '0', i);
        else
            snprintf(keys[i], sizeof *keys, "a/%c/%02d", 'x' + i % 3, i);
}

static void model_put(struct rig r[2], int i)
{
    size_t n = draw(20) == 0 ? 5000 : draw(60);

    memset(values[i], (int)('a' + draw(26)), n);
    values[i][n] = 0;
    leases[i] = draw(3) == 0 ? 1 + (int64_t)draw(3) : 0;
    there[i] = true;
    for (int k = 0; k < 2; k++)
        CHECK(rig_put(&r[k], keys[i], values[i], leases[i]) == 0);
}

/* The same as a txn, of the operations in the order of the keys, from the model alone. */
static int by_name(const void *a, const void *b)
{
    return strcmp(keys[*(const int *)a], keys[*(const int *)b]);
}

static void rename_by_txn(struct rig *r, const char *to)
{
    static char names[MODEL_KEYS][800];
    Etcdserverpb__TxnRequest req = ETCDSERVERPB__TXN_REQUEST__INIT;
    Etcdserverpb__RequestOp ops[MODEL_KEYS + 1], *list[MODEL_KEYS + 1];
    Etcdserverpb__PutRequest puts[MODEL_KEYS];
    Etcdserverpb__DeleteRangeRequest del = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
    int order[MODEL_KEYS], n = 0;

    for (int i = 0; i < MODEL_KEYS; i++)
        if (there[i] && strncmp(keys[i], "a/", 2) == 0)
            order[n++] = i;
    qsort(order, (size_t)n, sizeof *order, by_name);
    for (int i = 0; i <= n; i++) {
        etcdserverpb__request_op__init(&ops[i]);
        list[i] = &ops[i];
    }
    del.key = rig_bytes("a/");
    del.range_end = rig_bytes("a0");
    ops[0].request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
    ops[0].request_delete_range = &del;
    for (int i = 0; i < n; i++) {
        etcdserverpb__put_request__init(&puts[i]);
        snprintf(names[i], sizeof *names, "%s%s", to, keys[order[i]] + 2);
        puts[i].key = rig_bytes(names[i]);
        puts[i].value = rig_bytes(values[order[i]]);
        puts[i].lease = leases[order[i]];
        ops[i + 1].request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
        ops[i + 1].request_put = &puts[i];
    }
    req.success = list;
    req.n_success = (size_t)n + 1;
    CHECK(rig_message(r, ENTRY_TXN, &req, draw(2)) == 0);
}

static void same(struct rig r[2])
{
    static struct events e[2];
    char *dump = strdup(rig_dump(&r[0], 0));

    for (int k = 0; k < 2; k++)
        events_at(&r[k], r[k].apply->rev, &e[k]);
    CHECK(strcmp(rig_dump(&r[1], 0), dump) == 0);
    CHECK(strcmp(e[1].text, e[0].text) == 0);
    CHECK(r[0].apply->hash == r[1].apply->hash);
    CHECK(r[0].apply->rev == r[1].apply->rev);
    CHECK(r[0].apply->key_count == r[1].apply->key_count);
    free(dump);
}

static void as_a_txn(void)
{
    static struct rig r[2];

    model_names();
    for (int round = 0; round < ROUNDS; round++) {
        bool marker = false;

        memset(there, 0, sizeof there);
        for (int k = 0; k < 2; k++) {
            rig_new(&r[k]);
            for (int64_t id = 1; id <= 3; id++)
                CHECK(rig_grant(&r[k], id, 100) == 0);
        }
        for (int i = 0; i < 80; i++) {
            int at = (int)draw(MODEL_KEYS);

            if (draw(5) > 0) {
                model_put(r, at);
            } else {
                there[at] = false;
                for (int k = 0; k < 2; k++)
                    CHECK(rig_delete(&r[k], keys[at], "") == 0);
            }
            if (draw(30) == 0)
                for (int k = 0; k < 2; k++)
                    rig_flush(&r[k]);
        }
        if (draw(2)) { /* an empty directory is there already */
            marker = true;
            for (int k = 0; k < 2; k++)
                CHECK(rig_put(&r[k], "b/", "", 0) == 0);
        }
        CHECK(rename_flags(&r[0], "a/", "b/", r[0].apply->rev, marker, true) == DONE);
        rename_by_txn(&r[1], "b/");
        same(r);
        CHECK(rig_revoke(&r[0], 2) == 0); /* the leases hold the new names */
        CHECK(rig_revoke(&r[1], 2) == 0);
        same(r);
        rig_restart(&r[0]); /* replays it */
        same(r);
        rig_free(&r[0]);
        rig_free(&r[1]);
    }
}

/* ---- refusals --------------------------------------------------------------------------------------------- */

static void refusals(void)
{
    static struct rig r;
    int64_t rev;

    rig_new(&r);
    CHECK(rename_at(&r, "a/", "b/", 100) == NOTHING);
    CHECK(rig_put(&r, "a/1", "x", 0) == 0);
    CHECK(rig_put(&r, "a/2", "x", 0) == 0);
    rev = r.apply->rev;
    CHECK(rename_at(&r, "a/", "b/", rev - 1) == CHANGED);
    CHECK(rig_put(&r, "b/1", "x", 0) == 0);
    CHECK(rename_at(&r, "a/", "b/", rev) == CHANGED);
    CHECK(rename_flags(&r, "a/", "b/", rev, CAIRN__RENAME_FLAG__RENAME_MARKER, true) == CHANGED);
    CHECK(rig_delete(&r, "b/1", "") == 0);
    CHECK(rig_put(&r, "b/", "", 0) == 0);
    CHECK(rename_at(&r, "a/", "b/", rev) == CHANGED);
    CHECK(r.apply->rev == rev + 3); /* none of them made a revision */
    CHECK(rename_at(&r, "", "b/", rev) == ERR_KEY_EMPTY);
    CHECK(rename_at(&r, "a/", "", rev) == ERR_KEY_EMPTY);
    CHECK(rename_at(&r, "a/", "a/b/", rev) == ERR_DUPLICATE_KEY);
    CHECK(rename_at(&r, "a/b/", "a/", rev) == ERR_DUPLICATE_KEY);
    CHECK(rename_at(&r, "a/", "a/", rev) == ERR_DUPLICATE_KEY);
    CHECK(rename_flags(&r, "a/", "b/", rev, CAIRN__RENAME_FLAG__RENAME_MARKER, true) == DONE);
    CHECK(answer(&r)->keys == 2 && answer(&r)->header->revision == rev + 4);
    CHECK(r.apply->rev == rev + 4);
    CHECK(strncmp(rig_dump(&r, 0), "b/=@", 4) == 0 && strstr(rig_dump(&r, 0), " b/1=x@") && strstr(rig_dump(&r, 0), " b/2=x@"));
    CHECK(rename_at(&r, "b/", "\xff", 100) == DONE); /* a prefix without an end */
    CHECK(rename_at(&r, "\xff", "c", 100) == DONE);
    CHECK(strstr(rig_dump(&r, 0), " c2=x@") != NULL);
    rig_free(&r);
}

static void alarms(void)
{
    static struct rig r;
    Etcdserverpb__AlarmRequest req = ETCDSERVERPB__ALARM_REQUEST__INIT;

    rig_new(&r);
    CHECK(rig_put(&r, "a/1", "x", 0) == 0);
    req.action = ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__ACTIVATE;
    req.memberid = RIG_MEMBER;
    req.alarm = ETCDSERVERPB__ALARM_TYPE__NOSPACE;
    CHECK(rig_message(&r, ENTRY_ALARM, &req, true) == 0);
    CHECK(rename_at(&r, "a/", "b/", 100) == ERR_NOSPACE);
    req.action = ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__DEACTIVATE;
    CHECK(rig_message(&r, ENTRY_ALARM, &req, true) == 0);
    CHECK(rename_at(&r, "a/", "b/", 100) == DONE);
    rig_free(&r);
}

/* ---- the limits ------------------------------------------------------------------------------------------------ */

static void fill(struct rig *r, const char *dir, size_t n, size_t value_bytes)
{
    char *value = malloc(value_bytes + 1);
    char name[64];

    memset(value, 'v', value_bytes);
    value[value_bytes] = 0;
    for (size_t i = 0; i < n; i++) {
        snprintf(name, sizeof name, "%sfile-%06zu", dir, i);
        CHECK(rig_put(r, name, value, 0) == 0);
    }
    free(value);
}

static double now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* From base and from the delta. Printed, not checked: the computing time for which one rename holds apply up. */
static void many_keys(void)
{
    static struct rig r;
    double at;

    rig_new(&r);
    fill(&r, "a/", LIMIT_RENAME_KEYS, 1500); /* a little below the bytes' limit */
    for (int round = 0; round < 2; round++) {
        rig_flush(&r);
        at = now_ms();
        CHECK(rename_at(&r, round ? "b/" : "a/", round ? "a/" : "b/", 1 << 20) == DONE);
        printf("# %d keys of 1500 bytes out of base: %.1f ms\n", LIMIT_RENAME_KEYS, now_ms() - at);
    }
    at = now_ms();
    CHECK(rename_at(&r, "a/", "b/", 1 << 20) == DONE && answer(&r)->keys == LIMIT_RENAME_KEYS);
    printf("# out of the delta: %.1f ms\n", now_ms() - at);
    CHECK(r.apply->key_count == LIMIT_RENAME_KEYS);
    fill(&r, "b/more/", 1, 0);
    CHECK(rename_at(&r, "b/", "a/", 1 << 20) == TOO_LARGE);
    CHECK(rig_delete(&r, "b/more/file-000000", "") == 0);
    CHECK(rename_at(&r, "b/", "a/", 1 << 20) == DONE);
    rig_free(&r);
}

static void many_bytes(void)
{
    enum { VALUES = 16, ROOM = LIMIT_RENAME_BYTES / VALUES - 13 };
    static struct rig r;
    char *name = malloc(LIMIT_RENAME_KEY_BYTES + 3);
    double at;

    rig_new(&r);
    fill(&r, "a/", VALUES, ROOM);
    rig_flush(&r);
    CHECK(rename_at(&r, "a/", "b/b", 1 << 20) == TOO_LARGE); /* longer names, by a byte each */
    at = now_ms();
    CHECK(rename_at(&r, "a/", "b/", 1 << 20) == DONE);
    printf("# %d values, %d MiB in all: %.1f ms\n", VALUES, LIMIT_RENAME_BYTES >> 20, now_ms() - at);
    memset(name, 'n', LIMIT_RENAME_KEY_BYTES + 2);
    CHECK(rig_delete(&r, "b/", "c") == 0);
    CHECK(rig_put(&r, "a/x", "", 0) == 0);
    name[LIMIT_RENAME_KEY_BYTES] = 0;
    CHECK(rename_at(&r, "a/", name, 1 << 20) == TOO_LARGE);
    name[LIMIT_RENAME_KEY_BYTES - 1] = 0;
    CHECK(rename_at(&r, "a/", name, 1 << 20) == DONE);
    free(name);
    rig_free(&r);
}

int main(void)
{
    const char *s = getenv("SEED");

    seed = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL);
    seed += seed == 0;
    printf("# SEED=%llu\n", (unsigned long long)seed);
    TEST(as_a_txn);
    TEST(refusals);
    TEST(alarms);
    TEST(many_keys);
    TEST(many_bytes);
    return tap_done();
}
