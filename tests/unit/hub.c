/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: every kind of start revision, filter, range, id, cancel and progress request is answered as reference
 * 02-semantics 2.3 says; a slow reader loses nothing and holds a bounded queue; 100,000 watchers elsewhere cost a put
 * nothing; and, over thousands of random steps of writing, freezing, flushing, sweeping, compacting, watching, reading
 * and closing, each watcher gets exactly what the log of changes says. SEED=n repeats a random run. */
#include <time.h>
#include "hub_rig.h"

static uint64_t seed;
static struct client one;

static struct client_watcher *ask(struct client *c, int i, struct client_watcher w)
{
    c->w[i] = w;
    client_send_create(c, i);
    return &c->w[i];
}

#define ASK(c, i, ...) ask(c, i, (struct client_watcher){__VA_ARGS__})

static void take_all(struct client *c)
{
    rig_settle();
    while (client_take(c, 100))
        rig_settle();
}

static void begin(void)
{
    rig_begin(seed, NULL);
    client_open(&one, NULL);
}

static void end(void)
{
    if (one.stream)
        client_close(&one);
    rig_settle();
    CHECK(rig.hub->streams == NULL && rig.hub->root == NULL && rig.hub->n_ids == 0 && rig.hub->catching == NULL);
    CHECK(atomic_load(&rig.hub->queued_bytes) == 0);
    rig_end();
}

static void start_revisions(void)
{
    struct client_watcher *w;

    begin();
    for (int i = 0; i < 40; i++)
        rig_write(2); /* up to revision 41 */
    rig_compact(20);
    rig_freeze(), rig_flush(), rig_sweep();
    ASK(&one, 0, .from = 0, .end = RIG_KEYS, .start = -5);
    ASK(&one, 1, .from = 0, .end = RIG_KEYS, .start = 0);
    ASK(&one, 2, .from = 0, .end = RIG_KEYS, .start = 1);
    ASK(&one, 3, .from = 0, .end = RIG_KEYS, .start = 19);
    ASK(&one, 4, .from = 0, .end = RIG_KEYS, .start = 20);
    ASK(&one, 5, .from = 0, .end = RIG_KEYS, .start = 30, .prev_kv = true);
    ASK(&one, 6, .from = 0, .end = RIG_KEYS, .start = 41);
    ASK(&one, 7, .from = 0, .end = RIG_KEYS, .start = 42);
    ASK(&one, 8, .from = 0, .end = RIG_KEYS, .start = 50);
    take_all(&one);
    CHECK(one.n_refused == 1 && one.w[0].state == W_FREE);
    CHECK(one.w[1].state == W_CREATED && one.w[1].n_events == 0);
    CHECK(one.w[2].state == W_COMPACTED && one.w[2].compacted_at == 20 && one.w[2].n_events == 0);
    CHECK(one.w[3].state == W_COMPACTED && one.w[3].compacted_at == 20 && one.w[3].n_events == 0);
    CHECK(one.w[4].state == W_CREATED && one.w[4].n_events == 44);
    CHECK(one.w[5].n_events == 24 && one.w[6].n_events == 2 && one.w[7].n_events == 0 && one.w[8].n_events == 0);
    CHECK(client_complete(&one));
    for (int i = 0; i < 10; i++)
        rig_write(1);
    take_all(&one);
    CHECK(client_complete(&one));
    CHECK(one.w[1].n_events == 10 && one.w[7].n_events == 10 && one.w[8].n_events == 2);
    /* Cancelled by compaction: the id is taken until the client cancels it, too. */
    w = ASK(&one, 9, .from = 0, .end = 1, .id = one.w[2].id);
    take_all(&one);
    CHECK(one.n_refused == 2 && w->state == W_FREE);
    one.w[2].state = W_CANCELLING;
    client_send_cancel(&one, one.w[2].id);
    take_all(&one);
    CHECK(one.w[2].state == W_FREE);
    ASK(&one, 9, .from = 0, .end = 1, .id = one.w[2].id);
    take_all(&one);
    CHECK(one.w[9].state == W_CREATED);
    end();
}

static void ids_and_ranges(void)
{
    begin();
    ASK(&one, 0, .from = 3, .end = 4, .id = 1);
    ASK(&one, 1, .from = 3, .end = 4);
    ASK(&one, 2, .from = 3, .end = 4);
    ASK(&one, 3, .from = 3, .end = 4, .id = -1);
    ASK(&one, 4, .from = 3, .end = 4, .id = INT64_MAX);
    ASK(&one, 5, .from = 3, .end = 4, .id = 1); /* taken */
    ASK(&one, 6, .from = 5, .end = 3);          /* empty */
    take_all(&one);
    CHECK(one.w[1].id == 0 && one.w[2].id == 2); /* 1 is in use */
    CHECK(one.w[3].id == -1 && one.w[4].id == INT64_MAX);
    CHECK(one.n_refused == 2 && one.w[5].state == W_FREE && one.w[6].state == W_FREE);
    client_send_cancel(&one, 77); /* unknown: no answer */
    one.w[1].state = W_CANCELLING;
    client_send_cancel(&one, 0); /* closes 0 and no other (etcd 14563) */
    take_all(&one);
    CHECK(one.w[1].state == W_FREE && one.w[2].state == W_CREATED && one.w[0].state == W_CREATED);
    rig_put(3);
    rig_put(4);
    take_all(&one);
    CHECK(one.w[0].n_events == 1 && one.w[2].n_events == 1 && one.w[3].n_events == 1 && one.w[4].n_events == 1);
    ASK(&one, 1, .from = 0, .end = 1);
    take_all(&one);
    CHECK(one.w[1].id == 3); /* 0 was given before: never again by itself */
    end();
}

static void progress_requests(void)
{
    begin();
    client_send_progress(&one); /* before any watcher: nothing */
    take_all(&one);
    CHECK(one.n_progress_all == 0);
    ASK(&one, 0, .from = 0, .end = 5);
    client_send_progress(&one);
    take_all(&one);
    CHECK(one.n_progress_all == 1);
    ASK(&one, 1, .from = 0, .end = 5, .start = 10); /* in the future: not synced */
    client_send_progress(&one);
    take_all(&one);
    CHECK(one.n_progress_all == 1);
    for (int i = 0; i < 9; i++)
        rig_put(i);
    client_send_progress(&one);
    take_all(&one);
    CHECK(one.n_progress_all == 2);
    rig_compact(5);
    ASK(&one, 2, .from = 0, .end = 5, .start = 2); /* compacted: not synced until the client cancels it */
    take_all(&one);
    CHECK(one.w[2].state == W_COMPACTED);
    client_send_progress(&one);
    take_all(&one);
    CHECK(one.n_progress_all == 2);
    one.w[2].state = W_CANCELLING;
    client_send_cancel(&one, one.w[2].id);
    client_send_progress(&one);
    take_all(&one);
    CHECK(one.n_progress_all == 3);
    end();
}

static void progress_notices(void)
{
    begin();
    ASK(&one, 0, .from = 0, .end = 5, .progress = true);
    ASK(&one, 1, .from = 0, .end = 5);
    ASK(&one, 2, .from = 0, .end = 5, .progress = true, .start = 100);
    take_all(&one);
    for (int i = 0; i < 10; i++) {
        rig.clock.ms += 550;
        take_all(&one);
    }
    CHECK(one.w[0].n_progress >= 4 && one.w[0].n_progress <= 5); /* every 1000 to 1100 ms */
    CHECK(one.w[1].n_progress == 0 && one.w[2].n_progress == 0);
    one.w[0].n_progress = 0;
    for (int i = 0; i < 30; i++) { /* something is always sent meanwhile */
        rig_put(1);
        rig.clock.ms += 300;
        take_all(&one);
    }
    CHECK(one.w[0].n_progress == 0 && one.w[0].n_events == 30);
    end();
}

static void filters_and_prev(void)
{
    begin();
    for (int i = 0; i < 8; i++)
        ASK(&one, i, .from = 0, .end = RIG_KEYS, .no_put = i & 1, .no_delete = i & 2, .prev_kv = i & 4);
    for (int i = 0; i < 8; i++)
        ASK(&one, 8 + i, .from = 0, .end = RIG_KEYS, .no_put = i & 1, .no_delete = i & 2, .prev_kv = i & 4, .start = 1);
    take_all(&one);
    for (int i = 0; i < 200; i++) {
        rig_write(1 + i % 4);
        if (i % 3 == 0)
            take_all(&one);
    }
    take_all(&one);
    CHECK(client_complete(&one));
    for (int i = 0; i < 8; i++)
        CHECK(one.w[i].n_events == one.w[8 + i].n_events && (one.w[i].n_events == 0) == ((i & 3) == 3));
    end();
}

static void fragments(void)
{
    begin();
    rig.value_bytes = 60;
    ASK(&one, 0, .from = 0, .end = RIG_KEYS, .fragment = true); /* fragment_bytes of the rig is 400 */
    ASK(&one, 1, .from = 0, .end = RIG_KEYS, .prev_kv = true, .fragment = true, .no_delete = true);
    ASK(&one, 2, .from = 0, .end = RIG_KEYS);
    take_all(&one);
    for (int i = 0; i < 50; i++)
        rig_write(1 + i % 20);
    take_all(&one);
    ASK(&one, 3, .from = 0, .end = RIG_KEYS, .fragment = true, .start = 5);
    take_all(&one);
    CHECK(client_complete(&one));
    CHECK(one.w[0].n_events == rig.n_log && one.w[2].n_events == rig.n_log);
    rig.value_bytes = 1000; /* one event is never split */
    rig_write(3);
    take_all(&one);
    CHECK(client_complete(&one));
    end();
}

/* It reads nothing while 40 MB of events pass: its queue stays small, and then it gets them all. */
static void slow_reader(void)
{
    struct hub_stats st;

    begin();
    rig.value_bytes = 20000;
    ASK(&one, 0, .from = 0, .end = RIG_KEYS);
    ASK(&one, 1, .from = 0, .end = RIG_KEYS, .prev_kv = true);
    take_all(&one);
    for (int i = 0; i < 2000; i++) {
        rig_write(1);
        (void)hub_step(rig.hub);
        if (i % 100 == 99)
            rig_freeze(), rig_flush();
    }
    hub_stats(rig.hub, &st);
    CHECK(st.slow_watchers == 2);
    CHECK(atomic_load(&rig.hub->queued_bytes) < LIMIT_WATCH_STREAM_BYTES + (1 << 20));
    client_send_progress(&one);
    rig_settle();
    CHECK(one.n_progress_all == 0); /* not synced: no answer */
    take_all(&one);
    CHECK(client_complete(&one));
    CHECK(one.w[0].n_events == 2000 && one.w[1].n_events == 2000);
    hub_stats(rig.hub, &st);
    CHECK(st.slow_watchers == 0 && st.watchers == 2 && st.streams == 1);
    client_send_progress(&one);
    take_all(&one);
    CHECK(one.n_progress_all == 1);
    end();
}

/* The same, and a compaction passes it: told so, at a revision it had not received. */
static void slow_and_compacted(void)
{
    begin();
    rig.value_bytes = 20000;
    ASK(&one, 0, .from = 0, .end = RIG_KEYS);
    take_all(&one);
    for (int i = 0; i < 1000; i++) {
        rig_write(1);
        (void)hub_step(rig.hub);
    }
    rig_compact(rig.rev - 10);
    rig_freeze(), rig_flush(), rig_sweep();
    take_all(&one);
    CHECK(one.w[0].state == W_COMPACTED && one.w[0].n_events > 100 && one.w[0].n_events < 900);
    end();
}

/* Puts and a compaction in one burst, before the hub looks: a live watcher misses nothing while the changes are there,
 * and is told when they are not. */
static void compaction_overtakes(void)
{
    begin();
    ASK(&one, 0, .from = 0, .end = RIG_KEYS);
    take_all(&one);
    for (int i = 0; i < 20; i++)
        rig_write(2);
    rig_compact(rig.rev);
    take_all(&one);
    CHECK(one.w[0].state == W_CREATED && one.w[0].n_events == 40 && client_complete(&one));
    for (int i = 0; i < 20; i++)
        rig_write(2);
    rig_freeze(), rig_flush();
    rig_compact(rig.rev); /* base does not know it yet */
    take_all(&one);
    CHECK(one.w[0].state == W_CREATED && one.w[0].n_events == 80 && client_complete(&one));
    for (int i = 0; i < 20; i++)
        rig_write(2);
    rig_compact(rig.rev);
    rig_freeze(), rig_flush(), rig_sweep();
    take_all(&one);
    CHECK(one.w[0].state == W_COMPACTED && one.w[0].n_events == 80);
    end();
}

/* A batch of history that is full one revision before the present: its watcher is not live yet. */
static void batch_ends_one_short(void)
{
    begin();
    for (int i = 0; i < LIMIT_WATCH_BATCH_REVS + 1; i++)
        rig_put(i % RIG_KEYS);
    ASK(&one, 0, .from = 0, .end = RIG_KEYS, .start = 2);
    take_all(&one);
    CHECK(client_complete(&one) && one.w[0].n_events == LIMIT_WATCH_BATCH_REVS + 1);
    end();
}

static void put_unseen(void)
{
    rig_put(1);
}

/* A put published after the hub looked and before it listens to nudges: the hub looks again by itself. */
static void first_watcher_races_a_put(void)
{
    begin();
    ASK(&one, 0, .from = 0, .end = RIG_KEYS);
    rig_on_random = put_unseen; /* the index asks for one when the watcher is made */
    CHECK(hub_step(rig.hub) == 0);
    CHECK(rig_on_random == NULL);
    take_all(&one);
    CHECK(client_complete(&one) && one.w[0].n_events == 1);
    end();
}

static double cpu_us(void)
{
    struct timespec ts;

    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

/* One put, seen by nobody, beside n watchers on other ranges: how many of their groups are looked at. */
static double put_beside(int n)
{
    double start;
    int rounds = 2000;
    uint64_t before;

    rig_begin(seed, NULL);
    client_open(&one, NULL);
    for (int i = 0; i < n; i++) {
        Etcdserverpb__WatchCreateRequest cr = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
        Etcdserverpb__WatchRequest r = ETCDSERVERPB__WATCH_REQUEST__INIT;
        struct hub_response resp[16];
        char key[24], range_end[24];
        size_t got;

        cr.key.len = (size_t)snprintf(key, sizeof key, "%c%08d", i % 2 ? 'a' : 'z', i * 7919 % n);
        cr.key.data = (uint8_t *)key;
        if (i % 3) {
            cr.range_end.len = (size_t)snprintf(range_end, sizeof range_end, "%s0", key);
            cr.range_end.data = (uint8_t *)range_end;
        }
        r.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
        r.create_request = &cr;
        REQUIRE(hub_stream_request(one.stream, &r) == 0);
        if (i % 100 && i != n - 1)
            continue;
        rig_settle();
        while ((got = hub_stream_take(one.stream, resp, 16, SIZE_MAX)) > 0) {
            for (size_t k = 0; k < got; k++)
                packet_unref(resp[k].packet);
        }
    }
    before = rig.hub->looked_at;
    start = cpu_us();
    for (int i = 0; i < rounds; i++) {
        rig_put(i % RIG_KEYS);
        (void)hub_step(rig.hub);
    }
    printf("# a put and a step: %.2f us beside %d watchers\n", (cpu_us() - start) / rounds, n);
    before = rig.hub->looked_at - before;
    CHECK(atomic_load(&rig.hub->n_watchers) == (uint64_t)n && atomic_load(&rig.hub->events_sent) == 0);
    end();
    return (double)before / rounds;
}

static void watchers_elsewhere(void)
{
    double few = put_beside(10), many = put_beside(100000);

    printf("# looked at: %.1f beside 10 watchers, %.1f beside 100,000\n", few, many);
    CHECK(few >= 1 && many < 200); /* a descent */
}

/* What fan-out costs the hub, and that it is one packet. */
static void fan_out(void)
{
    enum { STREAMS = 10, EACH = 1000, PUTS = 20 };
    static struct client c[STREAMS];
    struct hub_response resp[64];
    double hub_us = 0, take_us = 0;
    size_t got, total = 0;

    rig_begin(seed, NULL);
    rig.value_bytes = 256;
    for (int s = 0; s < STREAMS; s++) {
        client_open(&c[s], NULL);
        for (int i = 0; i < EACH; i++) {
            c[s].w[0] = (struct client_watcher){.from = 3, .end = 4};
            c[s].n_asked = 0;
            client_send_create(&c[s], 0);
        }
        rig_settle();
        while ((got = hub_stream_take(c[s].stream, resp, 64, SIZE_MAX)) > 0) {
            for (size_t k = 0; k < got; k++)
                packet_unref(resp[k].packet);
        }
    }
    for (int i = 0; i < PUTS; i++) {
        double start = cpu_us();

        rig_put(3);
        (void)hub_step(rig.hub);
        hub_us += cpu_us() - start;
        start = cpu_us();
        for (int s = 0; s < STREAMS; s++) {
            struct packet *first = NULL;

            while ((got = hub_stream_take(c[s].stream, resp, 64, SIZE_MAX)) > 0) {
                for (size_t k = 0; k < got; k++) {
                    first = first ? first : resp[k].packet;
                    CHECK(resp[k].packet == first);
                    packet_unref(resp[k].packet);
                }
                total += got;
            }
        }
        take_us += cpu_us() - start;
    }
    CHECK(total == (size_t)STREAMS * EACH * PUTS);
    printf("# per event to 10,000 watchers: hub %.3f us, taking %.3f us\n", hub_us / (double)total,
           take_us / (double)total);
    for (int s = 0; s < STREAMS; s++)
        client_close(&c[s]);
    rig_settle();
    CHECK(rig.hub->root == NULL && rig.hub->n_ids == 0);
    rig_end();
}

/* A client that asks without end and never reads is cut off, not served. */
static void floods(void)
{
    Etcdserverpb__WatchCreateRequest cr = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
    Etcdserverpb__WatchRequest r = ETCDSERVERPB__WATCH_REQUEST__INIT;
    int err = 0;

    begin();
    cr.start_revision = -1;
    r.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
    r.create_request = &cr;
    for (int i = 0; i < 10000000 && err == 0; i++) {
        err = hub_stream_request(one.stream, &r);
        if (i % 1000 == 0)
            (void)hub_step(rig.hub);
    }
    CHECK(err == ERR_TOO_MANY_REQUESTS);
    CHECK(atomic_load(&rig.hub->queued_bytes) < 3 * LIMIT_WATCH_STREAM_BYTES);
    (void)hub_step(rig.hub);
    r.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION__NOT_SET;
    end();
}

/* ---- at random ------------------------------------------------------------------------------------- */

static void random_step(struct client *c, size_t n, uint64_t *s)
{
    uint64_t r = rig_random(s);
    struct client *k = &c[(r >> 8) % n];
    int64_t rev = rig.rev;

    switch (r % 32) {
    case 0:
        rig_freeze();
        break;
    case 1:
        rig_flush();
        break;
    case 2:
        rig_sweep();
        break;
    case 3:
        if (r >> 16 & 1)
            rig_compact(rig.compact + (int64_t)(r >> 20) % (rev - rig.compact + 1));
        break;
    case 4:
        if ((r >> 16 & 7) == 0) {
            client_close(k);
            client_open(k, NULL);
        }
        break;
    case 5: {
        struct client_watcher *w = &k->w[(r >> 20) % CLIENT_WATCHERS];

        if (w->state == W_CREATED || w->state == W_COMPACTED) {
            client_send_cancel(k, w->id);
            w->state = W_CANCELLING;
        }
        break;
    }
    case 6:
        client_send_progress(k);
        break;
    case 7:
    case 8:
    case 9:
        client_random_watcher(k, rig_random(s));
        break;
    case 10:
    case 11:
    case 12:
        (void)client_take(k, (r >> 20) % 50);
        break;
    case 13:
        rig.clock.ms += (r >> 20) % 300;
        break;
    case 14:
        for (uint64_t i = r >> 20 & 63; i; i--)
            rig_write(1 + (int)(rig_random(s) % 3));
        break;
    case 15:
    case 16:
    case 17:
    case 18:
    case 19:
    case 20:
        (void)hub_step(rig.hub);
        break;
    default:
        rig_write(1 + (int)((r >> 20) % 8 == 0 ? (r >> 24) % 12 : 0));
    }
}

static void at_random(void)
{
    enum { CLIENTS = 6 };
    static struct client c[CLIENTS];
    uint64_t events = 0, progress = 0, compacted = 0, refused = 0;

    for (uint64_t run = 0; run < 6; run++) {
        uint64_t s = seed * 100 + run;

        rig_begin(s, NULL);
        /* Large values fill queues (run 5: a few responses do). */
        rig.value_bytes = run == 5 ? 200000 : run % 3 == 2 ? 3000 : 0;
        for (int i = 0; i < CLIENTS; i++)
            client_open(&c[i], NULL);
        for (int step = 0; step < (run == 5 ? 1000 : 6000); step++)
            random_step(c, CLIENTS, &s);
        for (int i = 0; i < CLIENTS; i++)
            take_all(&c[i]);
        for (int i = 0; i < CLIENTS; i++) {
            CHECK(client_complete(&c[i]));
            for (int k = 0; k < CLIENT_WATCHERS; k++) {
                events += c[i].w[k].n_events;
                progress += c[i].w[k].n_progress;
                compacted += c[i].w[k].state == W_COMPACTED;
            }
            progress += c[i].n_progress_all;
            refused += c[i].n_refused;
            client_close(&c[i]);
        }
        rig_settle();
        CHECK(rig.hub->root == NULL && rig.hub->n_ids == 0 && atomic_load(&rig.hub->queued_bytes) == 0);
        rig_end();
    }
    printf("# %" PRIu64 " events, %" PRIu64 " progress notices, %" PRIu64 " compacted, %" PRIu64 " refused\n", events,
           progress, compacted, refused);
    CHECK(events > 20000 && progress > 5 && compacted > 20 && refused > 20); /* it all happened */
}

int main(void)
{
    const char *s = getenv("SEED");

    seed = s ? strtoull(s, NULL, 10) : 1;
    printf("# SEED=%" PRIu64 "\n", seed);
    TEST(start_revisions);
    TEST(ids_and_ranges);
    TEST(progress_requests);
    TEST(progress_notices);
    TEST(filters_and_prev);
    TEST(fragments);
    TEST(slow_reader);
    TEST(slow_and_compacted);
    TEST(compaction_overtakes);
    TEST(batch_ends_one_short);
    TEST(first_watcher_races_a_put);
    TEST(watchers_elsewhere);
    TEST(fan_out);
    TEST(floods);
    TEST(at_random);
    return tap_done();
}
