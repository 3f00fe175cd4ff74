/* SPDX-License-Identifier: Apache-2.0 */
/* Proves of what may come in on the peer port: LIMIT_PEER_STREAMS streams are accepted, one more is refused; whoever
 * floods it with connections that say nothing keeps no member out, LIMIT_PEER_STRANGERS of them stay; one that says no
 * head within LIMIT_SNIFF_MS is closed; a message of LIMIT_PEER_MESSAGE_BYTES is taken and a larger one refused by its
 * head alone; messages that are not whole hold LIMIT_PEER_INCOMPLETE_BYTES together and no more; a length that is only
 * claimed costs no memory. And of what goes out: a lane takes LIMIT_PEER_BULK messages and LIMIT_PEER_BULK_BYTES of
 * proposals and drops what comes then, LIMIT_PEER_URGENT and drops what came first; what is dropped is told.
 *
 * peers_in.c and peers_lane.c are compiled into this program with smaller bounds. */
#include "daemon/limits.h"
#define LIMIT_PEER_STREAMS 8
#define LIMIT_PEER_STRANGERS 5
#define LIMIT_SNIFF_MS 4000
#define LIMIT_PEER_MESSAGE_BYTES 100000
#define LIMIT_PEER_READ_BYTES 16384
#define LIMIT_PEER_INCOMPLETE_BYTES 150000
#define LIMIT_PEER_BULK 20
#define LIMIT_PEER_BULK_BYTES 50000
#define LIMIT_PEER_URGENT 10
#include "daemon/peers_in.c"
#include "daemon/peers_lane.c"
#include <fcntl.h>
#include <poll.h>
#include "tap.h"

enum { AWAIT_MS = 20000, CLUSTER = 7 };

static uint64_t now_ms(void)
{
    return clock_real()->now_ms(clock_real());
}

static struct peers *peers;
static struct entry_cache *cache;
static struct arena arena;
static struct url_list listen_urls;
static _Atomic int received, unreachables;

static void receive(void *ctx, struct peer_msg *m)
{
    (void)ctx;
    atomic_fetch_add(&received, 1);
    peer_msg_free(m);
}

static void nobody(void *ctx, uint64_t member)
{
    (void)ctx, (void)member;
    atomic_fetch_add(&unreachables, 1);
}

static void start(void)
{
    struct peers_sink sink = {receive, nobody, nobody, NULL, NULL};
    const struct url *bad;
    char url[100];

    (void)snprintf(url, sizeof url, "unix:///tmp/cairn-limits-peers-%d", (int)getpid());
    arena_init(&arena, 1 << 20, NULL, 0);
    REQUIRE(config_parse_urls(&arena, url, &listen_urls) == NULL);
    cache = entry_cache_new(1 << 20);
    REQUIRE(peers_new(&(struct peers_options){.clock = clock_real(),
                                              .rng = rng_real(),
                                              .listen = &listen_urls,
                                              .cluster_id = CLUSTER,
                                              .member_id = 2,
                                              .cache = cache},
                      &peers, &bad) == 0);
    REQUIRE(peers_start(peers, &sink) == 0);
    atomic_store(&received, 0);
    atomic_store(&unreachables, 0);
}

static void stop(void)
{
    peers_free(peers);
    entry_cache_free(cache);
    arena_fini(&arena);
}

static int connected(void)
{
    int fd = dial_blocking(&listen_urls.urls[0], AWAIT_MS);

    REQUIRE(fd >= 0);
    (void)fcntl(fd, F_SETFL, 0);
    return fd;
}

/* A stream of this member, accepted. */
static int stream_of(uint64_t from)
{
    uint8_t head[STREAM_HEAD_BYTES] = "CAIRN\1", answer[STREAM_ANSWER_BYTES];
    int fd = connected();

    put_u64le(head + 8, CLUSTER);
    put_u64le(head + 16, from);
    put_u64le(head + 24, 2);
    REQUIRE(send(fd, head, sizeof head, MSG_NOSIGNAL) == (ssize_t)sizeof head);
    if (recv(fd, answer, sizeof answer, MSG_WAITALL) == (ssize_t)sizeof answer && answer[0] == 0)
        return fd;
    (void)close(fd);
    return -1;
}

static bool ends(int fd)
{
    struct pollfd pf = {.fd = fd, .events = POLLRDHUP};

    return poll(&pf, 1, AWAIT_MS) == 1 && pf.revents & (POLLRDHUP | POLLHUP);
}

static void streams(void)
{
    int fds[LIMIT_PEER_STREAMS], more;

    start();
    for (int i = 0; i < LIMIT_PEER_STREAMS; i++) {
        fds[i] = stream_of(10 + (uint64_t)i);
        CHECK(fds[i] >= 0);
    }
    CHECK(stream_of(99) < 0);
    (void)close(fds[0]);
    do
        more = stream_of(99);
    while (more < 0); /* once the end of the first is noticed */
    (void)close(more);
    for (int i = 1; i < LIMIT_PEER_STREAMS; i++)
        (void)close(fds[i]);
    stop();
}

/* Each of them says the beginning of a head and no more. */
static void strangers(void)
{
    enum { N = 4 * LIMIT_PEER_STRANGERS };
    int fds[N], member = -1;
    uint64_t began_ms = now_ms();

    start();
    for (int i = 0; i < N; i++) {
        fds[i] = connected();
        CHECK(send(fds[i], "CAIRN", 5, MSG_NOSIGNAL) == 5);
        if (i == N / 2) {
            member = stream_of(1);
            CHECK(member >= 0);
        }
    }
    for (int i = 0; i < N - LIMIT_PEER_STRANGERS - 1; i++)
        CHECK(ends(fds[i]));
    CHECK(now_ms() - began_ms < LIMIT_SNIFF_MS); /* they did not go for being late */
    CHECK(send(member, "\0", 1, MSG_NOSIGNAL) == 1);
    CHECK(poll(&(struct pollfd){.fd = member, .events = POLLIN}, 1, 50) == 0); /* it is still there */
    for (int i = 0; i < N; i++)
        (void)close(fds[i]);
    (void)close(member);
    stop();
}

static void late_head(void)
{
    int fd;

    start();
    fd = connected();
    CHECK(send(fd, "CAIRN", 5, MSG_NOSIGNAL) == 5);
    CHECK(ends(fd));
    (void)close(fd);
    stop();
}

/* A message that is one proposal: what comes is taken when it is whole. n: its bytes on the wire, with the length. */
static uint8_t *message_of(uint64_t from, size_t n)
{
    struct peer_msg *m = peer_msg_new(PEER_PROPOSE, from, 2);
    uint8_t *bytes = malloc(n);
    struct entry *e;

    REQUIRE(bytes && m);
    e = entry_new(n - 4 - peer_msg_size(m) - 4);
    memset(e->payload, 1, e->len);
    m->n_entries = 1;
    m->entries = malloc(sizeof *m->entries);
    m->entries[0] = e;
    REQUIRE(peer_msg_size(m) == n - 4);
    put_u32le(bytes, (uint32_t)(n - 4));
    peer_msg_encode(m, bytes + 4);
    peer_msg_free(m);
    return bytes;
}

static void send_all(int fd, const uint8_t *b, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t done = send(fd, b + at, n - at, MSG_NOSIGNAL);

        if (done <= 0)
            return; /* closed: what is looked for */
        at += (size_t)done;
    }
}

static void messages(void)
{
    uint8_t *largest, claim[4];
    uint64_t until;
    int fd;

    start();
    fd = stream_of(1);
    largest = message_of(1, LIMIT_PEER_MESSAGE_BYTES);
    send_all(fd, largest, LIMIT_PEER_MESSAGE_BYTES);
    for (until = now_ms() + AWAIT_MS; atomic_load(&received) < 1 && now_ms() < until;)
        (void)poll(NULL, 0, 1);
    CHECK(atomic_load(&received) == 1);
    put_u32le(claim, LIMIT_PEER_MESSAGE_BYTES - 3);
    send_all(fd, claim, 4);
    CHECK(ends(fd));
    (void)close(fd);
    free(largest);
    stop();
}

static void incomplete(void)
{
    enum { N = 3 };
    uint8_t *part = message_of(1, LIMIT_PEER_MESSAGE_BYTES), claim[4];
    int fds[N], ended = 0, claims[N];

    start();
    put_u32le(claim, LIMIT_PEER_MESSAGE_BYTES - 4);
    for (int i = 0; i < N; i++) {
        claims[i] = stream_of(20 + (uint64_t)i);
        send_all(claims[i], claim, 4); /* costs next to nothing */
    }
    for (int i = 0; i < N; i++) {
        fds[i] = stream_of(10 + (uint64_t)i);
        REQUIRE(fds[i] >= 0);
        send_all(fds[i], part, 60000);
    }
    /* 3 x 60000 is too much: one of them has to go, the others are taken when their rest comes (from is not theirs). */
    for (uint64_t until = now_ms() + AWAIT_MS; ended == 0 && now_ms() < until;) {
        struct pollfd pf[N];

        for (int i = 0; i < N; i++)
            pf[i] = (struct pollfd){.fd = fds[i], .events = POLLRDHUP};
        (void)poll(pf, N, 100);
        for (int i = 0; i < N; i++)
            ended += (pf[i].revents & (POLLRDHUP | POLLHUP)) != 0;
    }
    CHECK(ended >= 1);
    CHECK(ended < N);
    for (int i = 0; i < N; i++) {
        (void)close(fds[i]);
        (void)close(claims[i]);
    }
    free(part);
    stop();
}

/* ---- out: a link that is not connected, by hand ---------------------------------------------------------- */

static struct peer *a_peer(void)
{
    static struct peer_counters counters;
    struct peer *peer = calloc(1, sizeof *peer);

    *peer = (struct peer){.peers = peers, .id = 5, .counters = &counters};
    memset(&counters, 0, sizeof counters);
    REQUIRE(link_init(&peer->links[LANE_URGENT], peer, LANE_URGENT) == 0);
    REQUIRE(link_init(&peer->links[LANE_BULK], peer, LANE_BULK) == 0);
    return peer;
}

static void peer_end(struct peer *peer)
{
    link_fini(&peer->links[LANE_URGENT]);
    link_fini(&peer->links[LANE_BULK]);
    free(peer);
}

static struct peer_msg *numbered(enum peer_kind kind, enum raft_msg_type type, uint64_t index)
{
    struct peer_msg *m = peer_msg_new(kind, 2, 5);

    m->raft = (struct raft_msg){.type = type, .from = 2, .to = 5, .index = index, .last = index};
    m->index = index;
    return m;
}

static void lanes(void)
{
    struct peer *peer;
    struct link *l;

    start();
    peer = a_peer();
    l = &peer->links[LANE_URGENT];
    for (uint64_t i = 0; i < LIMIT_PEER_URGENT + 3; i++)
        link_send(l, numbered(PEER_STATE_HASH, 0, i));
    CHECK(l->queue.n == LIMIT_PEER_URGENT && l->queue.first->index == 3 &&
          l->queue.last->index == LIMIT_PEER_URGENT + 2);
    CHECK(atomic_load(&peer->lost) && atomic_load(&peer->counters->sent_failures) == 3);
    l = &peer->links[LANE_BULK];
    for (uint64_t i = 0; i < LIMIT_PEER_BULK + 3; i++)
        link_send(l, numbered(PEER_RAFT, RAFT_APPEND, i));
    CHECK(l->queue.n == LIMIT_PEER_BULK && l->queue.first->raft.index == 0);
    CHECK(l->queue.last->raft.index == LIMIT_PEER_BULK - 1);
    CHECK(atomic_load(&peer->counters->sent_failures) == 6);
    peer_end(peer);
    peer = a_peer();
    l = &peer->links[LANE_BULK];
    for (int i = 0; i < 10; i++) {
        struct peer_msg *m = numbered(PEER_PROPOSE, 0, 0);

        m->n_entries = 1;
        m->entries = malloc(sizeof *m->entries);
        m->entries[0] = entry_new(10000);
        link_send(l, m);
    }
    CHECK(l->queue.n == 5); /* the last one may go beyond */
    peer_tell_lost(peer);
    CHECK(atomic_load(&unreachables) == 1);
    peer_tell_lost(peer);
    CHECK(atomic_load(&unreachables) == 1);
    peer_end(peer);
    stop();
}

int main(void)
{
    TEST(streams);
    TEST(strangers);
    TEST(late_head);
    TEST(messages);
    TEST(incomplete);
    TEST(lanes);
    return tap_done();
}
