/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: with a writer at full speed, a flush thread that flushes and sweeps, compactions, and clients on other
 * threads that create, cancel, read slowly, close and open streams at any moment, each watcher gets what the log of
 * changes says, and nothing is left over. Under TSan: without a race. SEED=n repeats the choices (not the timing). */
#include <sched.h>
#include "hub_rig.h"

enum { CLIENT_THREADS = 3, CLIENTS = 3, REVISIONS = 20000 };

static _Atomic bool writer_done;
static _Atomic int flush_state; /* 0: nothing to do, 1: flush it, 2: flushed */
static struct delta *flush_this;
static _Atomic bool flush_stop;
static struct mailbox flush_box;
static _Atomic int64_t client_steps;
static _Atomic uint64_t n_events, n_compacted, n_closed;
static uint64_t seed;

static void *flush_main(void *arg)
{
    (void)arg;
    while (!atomic_load(&flush_stop)) {
        mailbox_wait(&flush_box, UINT64_MAX);
        if (atomic_load(&flush_state) != 1)
            continue;
        REQUIRE(base_flush(rig.base, flush_this) == 0);
        atomic_store(&flush_state, 2);
        while (base_sweep(rig.base, NULL) == 1)
            ;
    }
    return NULL;
}

static void flush_some(bool freeze)
{
    if (atomic_load(&flush_state) == 2) {
        store_flushed(rig.store);
        atomic_store(&flush_state, 0);
    }
    (void)store_reclaim(rig.store);
    if (freeze && atomic_load(&flush_state) == 0) {
        rig_freeze();
        flush_this = store_frozen(rig.store);
        atomic_store(&flush_state, 1);
        mailbox_nudge(&flush_box);
    }
}

static void *writer_main(void *arg)
{
    uint64_t s = seed;

    (void)arg;
    while (rig.rev < REVISIONS) {
        uint64_t r = rig_random(&s);

        while (rig.rev > atomic_load(&client_steps) * 2 + 500) /* else it is over before they have begun */
            sched_yield();
        rig_write(1 + (int)(r % 8 == 0 ? (r >> 8) % 6 : 0));
        flush_some(r % 128 == 1);
        if (r % 256 == 2)
            rig_compact(rig.rev - (int64_t)((r >> 8) % 400));
    }
    atomic_store(&writer_done, true);
    return NULL;
}

static void client_step(struct client *c, struct mailbox *box, uint64_t *s)
{
    uint64_t r = rig_random(s);
    struct client_watcher *w = &c->w[(r >> 20) % CLIENT_WATCHERS];

    switch (r % 64) {
    case 0:
        if ((r >> 8) % 8 == 0 && !atomic_load(&writer_done)) {
            client_close(c); /* whatever is on its way */
            client_open(c, box);
            atomic_fetch_add(&n_closed, 1);
        }
        break;
    case 1:
    case 2:
    case 3:
        if (!atomic_load(&writer_done))
            client_random_watcher(c, rig_random(s));
        break;
    case 4:
        if (w->state == W_CREATED || w->state == W_COMPACTED) {
            client_send_cancel(c, w->id);
            w->state = W_CANCELLING;
        }
        break;
    case 5:
        client_send_progress(c);
        break;
    default:
        if (client_take(c, (r >> 8) % 64 + 1) == 0)
            mailbox_wait(box, rig.real->now_ms(rig.real) + 2);
    }
}

static void *client_main(void *arg)
{
    uint64_t s = seed * 31 + (uintptr_t)arg, deadline = UINT64_MAX;
    struct client *c = calloc(CLIENTS, sizeof *c);
    struct mailbox box;
    int complete = 0;

    REQUIRE(c != NULL);
    mailbox_init(&box, -1);
    for (int i = 0; i < CLIENTS; i++)
        client_open(&c[i], &box);
    while (complete < CLIENTS) {
        for (int i = 0; i < CLIENTS; i++, atomic_fetch_add(&client_steps, 1))
            client_step(&c[i], &box, &s);
        if (!atomic_load(&writer_done))
            continue;
        if (deadline == UINT64_MAX)
            deadline = rig.real->now_ms(rig.real) + 60000;
        REQUIRE(rig.real->now_ms(rig.real) < deadline);
        for (complete = 0; complete < CLIENTS && client_complete(&c[complete]); complete++)
            ;
    }
    for (int i = 0; i < CLIENTS; i++) {
        for (int k = 0; k < CLIENT_WATCHERS; k++) {
            atomic_fetch_add(&n_events, c[i].w[k].n_events);
            atomic_fetch_add(&n_compacted, c[i].w[k].state == W_COMPACTED);
        }
        client_close(&c[i]);
    }
    free(c);
    return NULL;
}

static void all_at_once(void)
{
    pthread_t clients[CLIENT_THREADS], writer, flusher;

    rig_begin(seed, clock_real());
    rig.real = clock_real();
    rig.value_bytes = 2000;
    mailbox_init(&flush_box, -1);
    REQUIRE(hub_start(rig.hub) == 0);
    REQUIRE(thread_start(&flusher, "flush", flush_main, NULL) == 0);
    for (uintptr_t i = 0; i < CLIENT_THREADS; i++)
        REQUIRE(thread_start(&clients[i], "client", client_main, (void *)i) == 0);
    REQUIRE(thread_start(&writer, "writer", writer_main, NULL) == 0);
    pthread_join(writer, NULL);
    for (int i = 0; i < CLIENT_THREADS; i++)
        pthread_join(clients[i], NULL);
    hub_stop(rig.hub);
    atomic_store(&flush_stop, true);
    mailbox_nudge(&flush_box);
    pthread_join(flusher, NULL);
    (void)hub_step(rig.hub);
    CHECK(rig.hub->root == NULL && rig.hub->n_ids == 0 && rig.hub->streams == NULL);
    CHECK(atomic_load(&rig.hub->queued_bytes) == 0 && atomic_load(&rig.hub->n_streams) == 0);
    printf("# %" PRIu64 " events, %" PRIu64 " watchers compacted, %" PRIu64 " streams closed in between\n",
           atomic_load(&n_events), atomic_load(&n_compacted), atomic_load(&n_closed));
    CHECK(n_events > 10000 && n_compacted > 10 && n_closed > 10);
    rig_end();
}

/* A queue filled to its limit, then only a reader: room alone must bring the rest. */
static void room_is_enough(void)
{
    static struct client c;
    struct mailbox box;
    struct hub_stats st;
    uint64_t deadline;

    rig_begin(seed, clock_real());
    rig.real = clock_real();
    rig.value_bytes = 100000;
    rig.hub->o.progress_interval_ms = 600000; /* no tick helps */
    deadline = rig.real->now_ms(rig.real) + 30000;
    mailbox_init(&box, -1);
    client_open(&c, &box);
    c.w[0] = (struct client_watcher){.from = 0, .end = RIG_KEYS, .start = 1};
    client_send_create(&c, 0);
    REQUIRE(hub_start(rig.hub) == 0);
    for (int i = 0; i < 150; i++)
        rig_put(i % RIG_KEYS);
    do { /* until the hub can do no more */
        sched_yield();
        hub_stats(rig.hub, &st);
        REQUIRE(rig.real->now_ms(rig.real) < deadline);
    } while (st.slow_watchers == 0 || atomic_load(&rig.hub->queued_bytes) < LIMIT_WATCH_STREAM_BYTES);
    while (c.w[0].n_events < 150) {
        if (client_take(&c, 1) == 0)
            mailbox_wait(&box, deadline);
        REQUIRE(rig.real->now_ms(rig.real) < deadline);
    }
    client_close(&c);
    hub_stop(rig.hub);
    (void)hub_step(rig.hub);
    rig_end();
}

int main(void)
{
    const char *s = getenv("SEED");

    seed = s ? strtoull(s, NULL, 10) : 1;
    printf("# SEED=%" PRIu64 "\n", seed);
    TEST(room_is_enough);
    TEST(all_at_once);
    return tap_done();
}
