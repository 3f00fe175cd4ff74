/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: each bound of the hub that hub.c's test leaves alone can be filled, and what happens then: watchers and their
 * keys in all (a new one is canceled at once, and room comes back), bytes queued to all streams (whoever has a queue
 * catches up later), what is read of the past at a time (bytes, changes looked at).
 *
 * LIMIT_WATCHERS and LIMIT_WATCH_KEY_BYTES are made small: hub_request.c is compiled into this program with them. */
#include "daemon/limits.h"
#define LIMIT_WATCHERS        100
#define LIMIT_WATCH_KEY_BYTES 3000
#include "daemon/hub_request.c"
#include "hub_rig.h"

static struct client one;

static void begin(void)
{
    rig_begin(1, NULL);
    client_open(&one, NULL);
}

static void end(void)
{
    hub_stream_close(one.stream);
    rig_settle();
    CHECK(rig.hub->n_ids == 0 && rig.hub->key_bytes == 0);
    rig_end();
}

static void ask(struct watch_stream *s, int64_t id, struct slice key)
{
    Etcdserverpb__WatchCreateRequest c = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
    Etcdserverpb__WatchRequest r = ETCDSERVERPB__WATCH_REQUEST__INIT;

    c.key = (ProtobufCBinaryData){key.len, (uint8_t *)(uintptr_t)key.ptr};
    c.watch_id = id;
    r.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
    r.create_request = &c;
    REQUIRE(hub_stream_request(s, &r) == 0);
}

/* Takes all there is; how many were refused for being too many. */
static int refusals(struct watch_stream *s)
{
    struct hub_response r;
    int n = 0;

    rig_settle();
    while (hub_stream_take(s, &r, 1, SIZE_MAX) == 1) {
        static const char reason[] = "cairn: too many watchers";

        n += memmem(r.packet->bytes, r.packet->len, reason, strlen(reason)) != NULL;
        packet_unref(r.packet);
    }
    return n;
}

static void watchers(void)
{
    struct watch_stream *other;

    begin();
    other = hub_stream_new(rig.hub, client_wake, &one);
    for (int i = 1; i <= LIMIT_WATCHERS + 3; i++)
        ask(i % 2 ? one.stream : other, i, S("k"));
    CHECK(refusals(one.stream) + refusals(other) == 3);
    CHECK(rig.hub->n_ids == LIMIT_WATCHERS);
    client_send_cancel(&one, 1);
    ask(other, 1000, S("k"));
    ask(other, 1001, S("k"));
    CHECK(refusals(other) == 1); /* the room of one */
    hub_stream_close(other);
    for (int i = 0; i < LIMIT_WATCHERS / 2; i++)
        ask(one.stream, 2000 + i, S("k"));
    CHECK(refusals(one.stream) == 0); /* a stream that closes gives back all of its */
    end();
}

/* A single key counts twice: it is the range up to the next key there is. */
static void watch_keys(void)
{
    static uint8_t key[700];

    begin();
    memset(key, 'k', sizeof key);
    ask(one.stream, 1, slice_of(key, sizeof key));
    ask(one.stream, 2, slice_of(key, sizeof key - 1));
    CHECK(refusals(one.stream) == 0);
    ask(one.stream, 3, slice_of(key, sizeof key - 2));
    CHECK(refusals(one.stream) == 1);
    CHECK(rig.hub->key_bytes <= LIMIT_WATCH_KEY_BYTES);
    ask(one.stream, 4, S("small"));
    CHECK(refusals(one.stream) == 0);
    client_send_cancel(&one, 1);
    ask(one.stream, 3, slice_of(key, sizeof key - 2));
    CHECK(refusals(one.stream) == 0);
    end();
}

/* Each stream's queue stays below its own bound, but there are many of them. All queue the same bytes, held once. */
static void bytes_of_all_streams(void)
{
    enum { STREAMS = 90, VALUE = 1 << 20 };
    static struct client c[STREAMS];
    uint64_t queued;

    begin();
    rig.value_bytes = VALUE;
    for (int i = 0; i < STREAMS; i++) {
        client_open(&c[i], NULL);
        c[i].w[0] = (struct client_watcher){.from = 0, .end = 1};
        client_send_create(&c[i], 0);
    }
    rig_settle();
    for (int i = 0; i < STREAMS; i++)
        CHECK(client_take(&c[i], 10) == 1);
    for (int i = 0; i < 8; i++) { /* 8 MiB: every stream's queue would be full at 4 */
        rig_put(0);
        rig_settle();
    }
    queued = atomic_load(&rig.hub->queued_bytes);
    printf("# queued to %d streams: %" PRIu64 " MiB\n", STREAMS, queued >> 20);
    CHECK(queued >= LIMIT_WATCH_ALL_BYTES &&
          queued < LIMIT_WATCH_ALL_BYTES + (uint64_t)STREAMS * (VALUE + 4096));
    CHECK(queued < (uint64_t)STREAMS * LIMIT_WATCH_STREAM_BYTES); /* it was this bound, not each stream's */
    for (int i = 0; i < STREAMS; i++) {
        do
            rig_settle();
        while (client_take(&c[i], 100));
        CHECK(client_complete(&c[i]) && c[i].w[0].n_events == 8);
        client_close(&c[i]);
    }
    end();
}

/* Three megabytes of the past: a step reads one, and stops at a revision's end. */
static void bytes_read_at_a_time(void)
{
    begin();
    rig.value_bytes = 100 << 10;
    for (int i = 0; i < 30; i++)
        rig_put(0);
    (void)hub_step(rig.hub);
    one.w[0] = (struct client_watcher){.from = 0, .end = 1, .start = 2};
    client_send_create(&one, 0);
    (void)hub_step(rig.hub);
    CHECK(atomic_load(&rig.hub->queued_bytes) > 0);
    CHECK(atomic_load(&rig.hub->queued_bytes) < LIMIT_WATCH_BATCH_BYTES + (200 << 10));
    while (rig_settle(), client_take(&one, 100))
        ;
    CHECK(client_complete(&one) && one.w[0].n_events == 30);
    end();
}

/* Of a long past in which it wants nothing but the end, a step looks at a part. */
static void changes_looked_at(void)
{
    enum { EACH = 1000, REVS = 3 * LIMIT_WATCH_SCAN_CHANGES / EACH };

    begin();
    for (int i = 0; i < REVS; i++) { /* no key 23 in them */
        for (int k = 0; k < EACH; k++)
            rig_write_change(rig.rev + 1, (uint32_t)k, k % 20, false);
        rig.first[rig.rev + 2] = rig.n_log;
        atomic_fetch_add(&rig.rev, 1);
        rig_publish();
    }
    rig_put(23);
    (void)hub_step(rig.hub);
    one.w[0] = (struct client_watcher){.from = 23, .end = 24, .start = 2};
    client_send_create(&one, 0);
    (void)hub_step(rig.hub);
    CHECK(client_take(&one, 10) == 1); /* created, and nothing yet */
    CHECK(rig.hub->catch_pos > 2 && rig.hub->catch_pos <= 2 + LIMIT_WATCH_SCAN_CHANGES / EACH + 1);
    while (rig_settle(), client_take(&one, 100))
        ;
    CHECK(client_complete(&one) && one.w[0].n_events == 1);
    end();
}

int main(void)
{
    TEST(watchers);
    TEST(watch_keys);
    TEST(bytes_of_all_streams);
    TEST(bytes_read_at_a_time);
    TEST(changes_looked_at);
    return tap_done();
}
