/* SPDX-License-Identifier: Apache-2.0 */
/* store.c - proves what store_stress does not reach: rows of the small tables over three layers, the limit of slots,
 * another state in place of all there is, a base that is closed only when its last reader has gone, and the scan
 * pool: every job runs once, one too many is refused, stopping runs what waits. */
#include <errno.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/limits.h"
#include "daemon/scan.h"
#include "daemon/store.h"
#include "err.h"
#include "tap.h"

static char dir[64];
static int n_bases;

static struct base *base_fresh(void)
{
    char path[96];
    struct base_options o = {
        .path = path, .map_bytes = 64 << 20, .readers_max = STORE_SLOTS_MAX + 6, .no_sync = true};
    struct base *b;

    snprintf(path, sizeof path, "%s/base-%d", dir, n_bases++);
    REQUIRE(mkdir(path, 0700) == 0);
    REQUIRE(base_create(&o, 1, 2, S("conf")) == 0);
    REQUIRE(base_open(&o, &b) == 0);
    return b;
}

static struct store *store_fresh(void)
{
    struct store *s;

    REQUIRE(store_new(base_fresh(), &s) == 0);
    return s;
}

static void put(struct store *s, const char *key, int64_t rev)
{
    uint8_t body[64];
    struct change c = {.key = slice_str(key), .rev = {rev, 0}, .create_revision = rev, .version = 1};

    c.body = slice_of(body, body_size(&c, S("v")));
    body_encode(&c, S("v"), body);
    REQUIRE(delta_put(store_live(s), &c) == 0);
    store_publish(s, (uint64_t)rev, -1, rev);
}

static void freeze(struct store *s, int64_t keys)
{
    struct seal seal = {.applied_index = store_applied(s),
                        .revision = store_revision(s),
                        .compact_revision = -1,
                        .key_count = keys,
                        .conf = S("conf")};
    struct delta *frozen;

    REQUIRE(store_freeze(s, &seal, &frozen) == 0);
    CHECK(frozen == store_frozen(s));
}

static int note_row(void *ctx, struct slice id, struct slice value)
{
    char *text = ctx;
    size_t n = strlen(text);

    snprintf(text + n, 100 - n, "%.*s=%.*s ", (int)id.len, (const char *)id.ptr, (int)value.len,
             (const char *)value.ptr);
    return 0;
}

static void rows_of_three_layers(void)
{
    struct store *s = store_fresh();
    struct slot *sl = slot_new(s);
    char text[100] = "";
    struct view v;

    REQUIRE(delta_row(store_live(s), TABLE_ALARM, S("a"), S("base")) == 0);
    REQUIRE(delta_row(store_live(s), TABLE_ALARM, S("b"), S("base")) == 0);
    REQUIRE(delta_row(store_live(s), TABLE_ALARM, S("c"), S("base")) == 0);
    REQUIRE(delta_row(store_live(s), TABLE_MEMBER, S("a"), S("other")) == 0);
    freeze(s, 0);
    REQUIRE(base_flush(store_base(s), store_frozen(s)) == 0);
    store_flushed(s);
    REQUIRE(delta_row(store_live(s), TABLE_ALARM, S("b"), S("frozen")) == 0);
    REQUIRE(delta_row(store_live(s), TABLE_ALARM, S("d"), S("frozen")) == 0);
    freeze(s, 0);
    REQUIRE(delta_row(store_live(s), TABLE_ALARM, S("d"), SLICE_NONE) == 0);
    REQUIRE(delta_row(store_live(s), TABLE_ALARM, S("c"), SLICE_NONE) == 0);
    REQUIRE(delta_row(store_live(s), TABLE_ALARM, S("e"), S("")) == 0);
    REQUIRE(view_open(s, sl, &v) == 0);
    CHECK(view_row_scan(&v, TABLE_ALARM, note_row, text) == 0);
    CHECK(strcmp(text, "e= b=frozen a=base ") == 0);
    view_close(&v);
    view_close(&v);
    slot_free(s, sl);
    store_free(s);
}

static void slots_have_a_limit(void)
{
    struct store *s = store_fresh();
    struct slot *sl[STORE_SLOTS_MAX];
    struct view v[STORE_SLOTS_MAX];

    for (int i = 0; i < STORE_SLOTS_MAX; i++)
        REQUIRE((sl[i] = slot_new(s)) != NULL);
    CHECK(slot_new(s) == NULL);
    for (int i = 0; i < STORE_SLOTS_MAX; i++)
        CHECK(view_open(s, sl[i], &v[i]) == 0); /* and LMDB has a reader for each */
    put(s, "k", 2);
    freeze(s, 1);
    CHECK(store_reclaim(s) == 1); /* the old layers, pinned by all of them */
    for (int i = 0; i < STORE_SLOTS_MAX; i++)
        view_close(&v[i]);
    CHECK(store_reclaim(s) == 0);
    slot_free(s, sl[7]);
    CHECK((sl[7] = slot_new(s)) != NULL);
    for (int i = 0; i < STORE_SLOTS_MAX; i++)
        slot_free(s, sl[i]);
    slot_free(s, NULL);
    store_free(s);
}

static int get(struct view *v, const char *key)
{
    struct arena a;
    struct change c;
    int rc;

    arena_init(&a, 4096, NULL, 0);
    rc = view_get(v, slice_str(key), v->rev, 0, &a, &c);
    arena_fini(&a);
    return rc;
}

static void another_state(void)
{
    struct store *s = store_fresh();
    struct slot *old = slot_new(s), *idle = slot_new(s), *fresh = slot_new(s);
    struct view vo, v;
    struct base *b;

    put(s, "k", 2);
    REQUIRE(view_open(s, idle, &v) == 0);
    view_close(&v);
    REQUIRE(view_open(s, old, &vo) == 0);
    b = base_fresh();
    REQUIRE(store_replace_base(s, b, -1, 1, 77) == 0);
    CHECK(store_base(s) == b && store_revision(s) == 1 && store_applied(s) == 77);
    CHECK(store_reclaim(s) == 2); /* the layers and their base: both are being read */
    b = base_fresh();
    CHECK(store_replace_base(s, b, -1, 1, 78) == -EBUSY);
    CHECK(store_swap_base(s, b) == -EBUSY);
    CHECK(get(&vo, "k") == 0); /* who reads the old state reads it to the end */
    REQUIRE(view_open(s, fresh, &v) == 0);
    CHECK(v.rev == 1 && get(&v, "k") == ERR_KEY_NOT_FOUND);
    view_close(&v);
    view_close(&vo);
    CHECK(store_reclaim(s) == 0);
    CHECK(store_swap_base(s, b) == 0);
    CHECK(store_reclaim(s) == 0);
    REQUIRE(view_open(s, old, &v) == 0); /* whose txn was of the first base */
    CHECK(v.rev == 1 && get(&v, "k") == ERR_KEY_NOT_FOUND);
    view_close(&v);
    slot_free(s, old);
    slot_free(s, idle);
    slot_free(s, fresh);
    store_free(s);
}

/* ---- the scan pool ---- */

struct job {
    struct scan_job job;
    _Atomic int ran;
    _Atomic bool *gate; /* waits until it is open */
    struct store *store;
};

static void run(struct scan_job *j, struct slot *sl)
{
    struct job *job = (struct job *)((uint8_t *)j - offsetof(struct job, job));
    struct view v;

    while (!atomic_load(job->gate))
        (void)sched_yield();
    if (view_open(job->store, sl, &v) == 0) {
        view_close(&v);
        atomic_fetch_add(&job->ran, 1);
    }
}

static void jobs_run_once(void)
{
    static struct job jobs[LIMIT_SCAN_QUEUE + 3];
    struct store *s = store_fresh();
    struct scan_pool *p;
    _Atomic bool gate = false;
    int refused = 0, ran = 0, n = LIMIT_SCAN_QUEUE + 3;

    REQUIRE(scan_pool_new(s, 2, &p) == 0);
    for (int i = 0; i < n; i++) {
        jobs[i] = (struct job){.job.run = run, .gate = &gate, .store = s};
        refused += scan_pool_post(p, &jobs[i].job) == ERR_TOO_MANY_REQUESTS;
    }
    CHECK(refused >= 1 && refused <= 3); /* two may be with the threads by then */
    atomic_store(&gate, true);
    scan_pool_stop(p);
    for (int i = 0; i < n; i++)
        ran += jobs[i].ran;
    CHECK(ran == n - refused);
    CHECK(scan_pool_post(p, &jobs[0].job) == ERR_STOPPED);
    scan_pool_free(p);
    scan_pool_free(NULL);
    store_free(s);
}

int main(void)
{
    char command[128];

    snprintf(dir, sizeof dir, "%s/cairn-store-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    REQUIRE(mkdtemp(dir) != NULL);
    TEST(rows_of_three_layers);
    TEST(slots_have_a_limit);
    TEST(another_state);
    TEST(jobs_run_once);
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    CHECK(system(command) == 0);
    return tap_done();
}
