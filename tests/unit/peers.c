/* SPDX-License-Identifier: Apache-2.0 */
/* peers.c - proves of the transport between members, two or three of them in one process on 127.0.0.1 with a receiver
 * that only notes: what is sent arrives, in order within its lane; a member that is killed and comes back is found
 * again, and while its port refuses it is suspected, once; a stream of another cluster, for another member, of another
 * version or of a removed member is refused; of heartbeats that wait only the newest leaves; a heartbeat overtakes 64
 * MB of entries; a member that reads nothing costs bounded memory; entries that are only in the log are fetched;
 * Members answers. What does not speak by hand is proved over TLS too.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include "daemon/dial.h"
#include "daemon/limits.h"
#include "daemon/peers.h"
#include "fakedisk.h"
#include "peer.pb-c.h"
#include "tap.h"

#ifdef __SANITIZE_THREAD__
enum { PATIENCE_MS = 120000 }; /* 60 MB through TLS take longer than 20 s on a loaded machine */
#else
enum { PATIENCE_MS = 20000 };
#endif
enum { CLUSTER = 0xc1, NOTES = 200000 };

static uint64_t now_ms(void)
{
    return clock_real()->now_ms(clock_real());
}

static void nap(void)
{
    (void)poll(NULL, 0, 1);
}

/* A condition is awaited, never a time. */
#define AWAIT(cond) \
    do { \
        uint64_t until_ = now_ms() + PATIENCE_MS; \
        while (!(cond) && now_ms() < until_) \
            nap(); \
        CHECK(cond); \
    } while (0)

/* ---- a member --------------------------------------------------------------------------------------- */

struct member {
    uint64_t id;
    unsigned port;
    struct arena arena;
    struct url_list listen;
    char url[64];
    struct entry_cache *cache;
    struct peers *peers;
    _Atomic int suspects, unreachables, removed, heartbeats, n;
    _Atomic uint64_t bytes, bytes_at_heartbeat;
    uint64_t notes[NOTES]; /* raft.index of an APPEND, id of a LEASE_RENEW, in the order of arrival */
};

static struct member members[3];
static struct tls_ctx *tls; /* of all members; NULL: a plain transport */
static unsigned ports[3];

static void receive(void *ctx, struct peer_msg *m)
{
    struct member *me = ctx;
    int n = atomic_load(&me->n);

    if (m->kind == PEER_RAFT && m->raft.type == RAFT_HEARTBEAT) {
        atomic_store(&me->bytes_at_heartbeat, atomic_load(&me->bytes));
        atomic_fetch_add(&me->heartbeats, 1);
    } else if (n < NOTES) {
        me->notes[n] = m->kind == PEER_RAFT ? m->raft.index : m->id;
        for (uint32_t i = 0; i < m->n_entries; i++)
            atomic_fetch_add(&me->bytes, m->entries[i]->len);
        atomic_store(&me->n, n + 1);
    }
    peer_msg_free(m);
}

static void suspect(void *ctx, uint64_t member)
{
    (void)member;
    atomic_fetch_add(&((struct member *)ctx)->suspects, 1);
}

static void unreachable(void *ctx, uint64_t member)
{
    (void)member;
    atomic_fetch_add(&((struct member *)ctx)->unreachables, 1);
}

static void told_removed(void *ctx)
{
    atomic_fetch_add(&((struct member *)ctx)->removed, 1);
}

/* A port that nobody has: bound once, and given back. */
static unsigned free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    REQUIRE(bind(fd, (struct sockaddr *)&a, sizeof a) == 0);
    REQUIRE(getsockname(fd, (struct sockaddr *)&a, &len) == 0);
    (void)close(fd);
    return ntohs(a.sin_port);
}

static void member_start_as(struct member *m, uint64_t id, uint64_t cluster, struct wal *wal)
{
    struct peers_sink sink = {receive, suspect, unreachable, told_removed, m};
    unsigned i = (unsigned)(m - members);
    const struct url *bad;

    if (ports[i] == 0)
        ports[i] = free_port();
    memset(m, 0, sizeof *m);
    m->id = id;
    m->port = ports[i];
    (void)snprintf(m->url, sizeof m->url, "%s://127.0.0.1:%u", tls ? "https" : "http", m->port);
    arena_init(&m->arena, 1 << 20, NULL, 0);
    REQUIRE(config_parse_urls(&m->arena, m->url, &m->listen) == NULL);
    m->cache = entry_cache_new(LIMIT_ENTRY_CACHE_BYTES);
    REQUIRE(peers_new(&(struct peers_options){.clock = clock_real(),
                                              .rng = rng_real(),
                                              .listen = &m->listen,
                                              .tls = tls,
                                              .cluster_id = cluster,
                                              .member_id = id,
                                              .cache = m->cache,
                                              .wal = wal},
                      &m->peers, &bad) == 0);
    REQUIRE(peers_start(m->peers, &sink) == 0);
}

static void member_start(struct member *m, uint64_t id)
{
    member_start_as(m, id, CLUSTER, NULL);
}

static void member_stop(struct member *m)
{
    peers_free(m->peers);
    entry_cache_free(m->cache);
    arena_fini(&m->arena);
    m->peers = NULL;
}

/* ids[i] is whom m takes to live at members[i]'s port. */
static void introduce_as(struct member *m, const uint64_t *ids, size_t n, uint64_t removed)
{
    struct peers_member rows[3];
    char urls[3][64];
    const char *list[3];

    for (size_t i = 0; i < n; i++) {
        (void)snprintf(urls[i], sizeof urls[i], "%s://127.0.0.1:%u", tls ? "https" : "http", ports[i]);
        list[i] = urls[i];
        rows[i] = (struct peers_member){.id = ids[i], .name = "m", .urls = &list[i], .n_urls = 1};
    }
    REQUIRE(peers_set_members(m->peers, rows, n, &removed, removed != 0) == 0);
}

static const uint64_t all_ids[3] = {1, 2, 3};

static void introduce(struct member *m, size_t n)
{
    introduce_as(m, all_ids, n, 0);
}

static void send_to(struct member *from, struct peer_msg *m)
{
    struct transport *t = peers_transport(from->peers);

    t->send(t, m);
}

static void send_renew(struct member *from, uint64_t to, uint64_t id)
{
    struct peer_msg *m = peer_msg_new(PEER_LEASE_RENEW, from->id, to);

    m->id = id;
    send_to(from, m);
}

static void send_heartbeat(struct member *from, uint64_t to, uint64_t ctx)
{
    struct peer_msg *m = peer_msg_new(PEER_RAFT, from->id, to);

    m->raft = (struct raft_msg){.type = RAFT_HEARTBEAT, .from = from->id, .to = to, .term = 1, .ctx = ctx};
    send_to(from, m);
}

static void send_append(struct member *from, uint64_t to, uint64_t index, uint64_t last)
{
    struct peer_msg *m = peer_msg_new(PEER_RAFT, from->id, to);

    m->raft = (struct raft_msg){.type = RAFT_APPEND,
                                .from = from->id,
                                .to = to,
                                .term = 1,
                                .index = index,
                                .log_term = index ? 1 : 0,
                                .last = last,
                                .n_runs = last > index,
                                .runs = {{.first = index + 1, .term = 1}}};
    send_to(from, m);
}

static void cache_fill(struct member *m, uint64_t first, uint64_t last, size_t bytes)
{
    for (uint64_t i = first; i <= last; i++) {
        struct entry *e = entry_new(bytes);

        memset(e->payload, (int)i, bytes);
        e->index = i;
        e->term = 1;
        entry_cache_put(m->cache, e);
        entry_unref(e);
    }
}

static bool active(struct member *m, uint64_t to)
{
    struct peers_stats s[PEERS_STATS_MAX];
    size_t n = peers_stats(m->peers, s);

    for (size_t i = 0; i < n; i++)
        if (s[i].member == to)
            return s[i].active;
    return false;
}

static void pair_start(void)
{
    member_start(&members[0], 1);
    member_start(&members[1], 2);
    introduce(&members[0], 2);
    introduce(&members[1], 2);
    AWAIT(active(&members[0], 2) && active(&members[1], 1));
}

static void pair_stop(void)
{
    member_stop(&members[0]);
    member_stop(&members[1]);
}

/* ---- tests --------------------------------------------------------------------------------------------- */

/* Each to each other: three members, six streams of each lane; every message once, in order. */
static void delivery_in_order(void)
{
    enum { N = 2000 };
    bool ordered = true;

    for (int i = 0; i < 3; i++)
        member_start(&members[i], (uint64_t)i + 1);
    for (int i = 0; i < 3; i++)
        introduce(&members[i], 3);
    for (int i = 0; i < 3; i++)
        AWAIT(active(&members[i], (uint64_t)(i + 1) % 3 + 1) && active(&members[i], (uint64_t)(i + 2) % 3 + 1));
    for (uint64_t k = 1; k <= N; k++)
        for (int i = 0; i < 3; i++) {
            send_renew(&members[i], (uint64_t)(i + 1) % 3 + 1, k);
            if (k % 200 == 0)
                nap();
        }
    for (int i = 0; i < 3; i++) {
        AWAIT(atomic_load(&members[i].n) == N);
        for (uint64_t k = 0; k < N; k++)
            ordered &= members[i].notes[k] == k + 1;
        CHECK(atomic_load(&members[i].suspects) == 0);
    }
    CHECK(ordered);
    for (int i = 0; i < 3; i++)
        member_stop(&members[i]);
}

static void appends_in_pieces(void)
{
    enum { ENTRIES = 3000, BYTES = 1000 };
    struct member *to = &members[1];
    uint64_t next = 0;
    bool consecutive = true;

    pair_start();
    cache_fill(&members[0], 1, ENTRIES, BYTES);
    for (uint64_t i = 0; i < ENTRIES; i += 1000)
        send_append(&members[0], 2, i, i + 1000);
    AWAIT(atomic_load(&to->bytes) == (uint64_t)ENTRIES * BYTES);
    CHECK(atomic_load(&to->n) > 3); /* cut */
    for (int i = 0; i < atomic_load(&to->n); i++) {
        consecutive &= to->notes[i] >= next;
        next = to->notes[i];
    }
    CHECK(consecutive);
    pair_stop();
}

/* Entries that the cache no longer has are read from the log, by a thread of its own; entries that nobody has any more
 * are told as lost. */
static void entries_from_the_log(void)
{
    enum { ENTRIES = 100, BYTES = 1000 };
    static struct fakedisk disk;
    struct wal_options o = {.disk = &disk.disk, .dir = "w", .segment_bytes = LIMIT_WAL_SEGMENT_BYTES, .cluster_id = CLUSTER,
                            .member_id = 1};
    struct entry *e[ENTRIES];
    struct wal_state st;
    struct wal *w;
    char why[256];

    fakedisk_init(&disk, 1);
    REQUIRE(wal_create(&o, 0, 0, &(struct wal_state){0}) == 0);
    REQUIRE(wal_open(&o, &w, &st, why, sizeof why) == 0);
    for (uint64_t i = 0; i < ENTRIES; i++) {
        e[i] = entry_new(BYTES);
        memset(e[i]->payload, (int)i, BYTES);
        e[i]->index = i + 1;
        e[i]->term = 1;
    }
    REQUIRE(wal_append(w, e, ENTRIES, &(struct wal_state){.term = 1}, 0) == 0);
    REQUIRE(wal_sync(w) == 0);
    member_start_as(&members[0], 1, CLUSTER, w);
    member_start(&members[1], 2);
    introduce(&members[0], 2);
    introduce(&members[1], 2);
    AWAIT(active(&members[0], 2));
    for (uint64_t i = 0; i < ENTRIES; i++)
        entry_unref(e[i]);
    send_append(&members[0], 2, 0, 50);
    send_append(&members[0], 2, 50, ENTRIES);
    AWAIT(atomic_load(&members[1].bytes) == (uint64_t)ENTRIES * BYTES);
    CHECK(atomic_load(&members[0].unreachables) == 0);
    send_append(&members[0], 2, ENTRIES, ENTRIES + 1);
    AWAIT(atomic_load(&members[0].unreachables) == 1);
    pair_stop();
    wal_close(w);
    fakedisk_fini(&disk);
}

static void killed_and_back(void)
{
    pair_start();
    member_stop(&members[1]);
    AWAIT(atomic_load(&members[0].suspects) == 1);
    AWAIT(atomic_load(&members[0].unreachables) >= 1);
    member_start(&members[1], 2);
    introduce(&members[1], 2);
    AWAIT(active(&members[0], 2));
    CHECK(atomic_load(&members[0].suspects) == 1);
    send_renew(&members[0], 2, 7);
    AWAIT(atomic_load(&members[1].n) == 1);
    CHECK(members[1].notes[0] == 7);
    pair_stop();
}

/* The other side takes 1 for another: as the stream's head says. */
static void refused_as(uint64_t my_id, uint64_t my_cluster, uint64_t your_id, uint64_t removed, bool tells_removed)
{
    struct member *me = &members[0], *you = &members[1];
    uint64_t ids[2] = {my_id, your_id};

    member_start(you, 2);
    introduce_as(you, all_ids + 1, 0, removed);
    member_start_as(me, my_id, my_cluster, NULL);
    introduce_as(me, ids, 2, 0);
    AWAIT(!tells_removed || atomic_load(&me->removed) > 0);
    for (int i = 0; i < 20; i++) {
        send_renew(me, your_id, 1);
        (void)poll(NULL, 0, 5);
    }
    AWAIT(atomic_load(&me->unreachables) >= 1);
    CHECK(!active(me, your_id));
    CHECK(atomic_load(&you->n) == 0);
    CHECK(atomic_load(&me->suspects) == 0);
    pair_stop();
}

static void strangers_are_refused(void)
{
    refused_as(1, CLUSTER + 1, 2, 0, false);
    refused_as(1, CLUSTER, 9, 0, false);
    refused_as(1, CLUSTER, 2, 1, true);
}

static void removed_while_connected(void)
{
    pair_start();
    introduce_as(&members[1], all_ids + 1, 0, 1);
    AWAIT(atomic_load(&members[0].removed) > 0);
    CHECK(!active(&members[1], 1));
    pair_stop();
}

/* Connects, says a head and these bytes; what is answered: 0 with "" for accepted, -1 for an end without an answer. */
static int by_hand(const char *magic, int version, uint64_t cluster, uint64_t from, uint64_t to, struct slice bytes,
                   char text[256])
{
    struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
    int fd = dial_blocking(&members[1].listen.urls[0], PATIENCE_MS), status = 0;
    uint8_t head[32] = {0}, answer[4];

    REQUIRE(fd >= 0);
    (void)fcntl(fd, F_SETFL, 0);
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    memcpy(head, magic, 5);
    head[5] = (uint8_t)version;
    put_u64le(head + 8, cluster);
    put_u64le(head + 16, from);
    put_u64le(head + 24, to);
    for (size_t i = 0; i < sizeof head; i++) /* in pieces */
        CHECK(send(fd, head + i, 1, MSG_NOSIGNAL) == 1);
    text[0] = '\0';
    for (int i = 0; i < 1 + (bytes.len > 0) && status == 0; i++) { /* to the head, then to the bytes */
        status = recv(fd, answer, 4, MSG_WAITALL) == 4 ? answer[0] : -1;
        if (status > 0)
            text[recv(fd, text, get_u16le(answer + 2), MSG_WAITALL)] = '\0';
        if (i == 0 && status == 0)
            for (size_t k = 0; k < bytes.len; k++)
                (void)!send(fd, bytes.ptr + k, 1, MSG_NOSIGNAL);
    }
    (void)close(fd);
    return status;
}

static void heads_by_hand(void)
{
    struct slice garbage = S("\4\0\0\0abcd"), huge = S("\377\377\377\377abcd");
    char text[256];
    struct rpc_ask *a;

    member_start(&members[1], 2);
    CHECK(by_hand("CAIRN", 1, CLUSTER, 1, 2, SLICE_NONE, text) == 0);
    CHECK(by_hand("CAIRN", 2, CLUSTER, 1, 2, SLICE_NONE, text) == STATUS_FAILED_PRECONDITION);
    CHECK(strcmp(text, "cairn: the protocol between members is version 1 here, not 2") == 0);
    CHECK(by_hand("CAIRN", 1, CLUSTER + 1, 1, 2, SLICE_NONE, text) == STATUS_FAILED_PRECONDITION);
    CHECK(strcmp(text, "cairn: this is cluster c1, not c2 (from member 1)") == 0);
    CHECK(by_hand("CAIRN", 1, CLUSTER, 1, 3, SLICE_NONE, text) == STATUS_FAILED_PRECONDITION);
    CHECK(by_hand("CAIRN", 1, CLUSTER, 2, 2, SLICE_NONE, text) == STATUS_FAILED_PRECONDITION);
    CHECK(by_hand("CAIRN", 1, CLUSTER, 0, 2, SLICE_NONE, text) == STATUS_FAILED_PRECONDITION);
    CHECK(by_hand("GET /", 1, CLUSTER, 1, 2, SLICE_NONE, text) == -1);
    CHECK(by_hand("CAIRN", 1, CLUSTER, 1, 2, garbage, text) == STATUS_INVALID_ARGUMENT);
    CHECK(by_hand("CAIRN", 1, CLUSTER, 1, 2, huge, text) == STATUS_INVALID_ARGUMENT);
    /* gRPC's calls are checked in the same way. */
    introduce_as(&members[1], all_ids, 2, 0);
    member_start_as(&members[0], 1, CLUSTER + 1, NULL);
    introduce_as(&members[0], all_ids, 2, 0);
    do
        nap();
    while (peers_call(members[0].peers, 2, "/cairn.Peer/Snapshot", PATIENCE_MS, &a) == -ENOENT);
    CHECK(rpc_ask_end(a, PATIENCE_MS, text, sizeof text) == STATUS_UNIMPLEMENTED);
    pair_stop();
}

/* One stream after the other of the same member and lane, all speaking at once: the newest is heard, the rest is
 * closed. */
static void newer_streams_replace_older(void)
{
    enum { N = 60 };
    struct peer_msg *m = peer_msg_new(PEER_LEASE_RENEW, 1, 2);
    uint8_t head[32] = "CAIRN\1", bytes[256];
    size_t n = 4 + peer_msg_size(m);
    int fds[N];

    put_u64le(head + 8, CLUSTER);
    put_u64le(head + 16, 1);
    put_u64le(head + 24, 2);
    REQUIRE(n <= sizeof bytes);
    put_u32le(bytes, (uint32_t)(n - 4));
    peer_msg_encode(m, bytes + 4);
    peer_msg_free(m);
    member_start(&members[1], 2);
    for (int i = 0; i < N; i++) {
        fds[i] = dial_blocking(&members[1].listen.urls[0], PATIENCE_MS);
        REQUIRE(fds[i] >= 0);
        (void)!send(fds[i], head, sizeof head, MSG_NOSIGNAL);
        for (int k = 0; k <= i; k++)
            (void)!send(fds[k], bytes, n, MSG_NOSIGNAL);
    }
    AWAIT(atomic_load(&members[1].n) > 0);
    for (int i = 0; i < N - 1; i++) {
        struct pollfd pf = {.fd = fds[i], .events = POLLRDHUP};

        CHECK(poll(&pf, 1, PATIENCE_MS) == 1);
        (void)close(fds[i]);
    }
    atomic_store(&members[1].n, 0);
    CHECK(send(fds[N - 1], bytes, n, MSG_NOSIGNAL) == (ssize_t)n);
    AWAIT(atomic_load(&members[1].n) > 0);
    (void)close(fds[N - 1]);
    member_stop(&members[1]);
}

/* A message whose sender is not the stream's member goes nowhere; the stream goes on. */
static void false_sender(void)
{
    struct peers_stats s[PEERS_STATS_MAX];
    struct peer_msg *m;

    pair_start();
    m = peer_msg_new(PEER_LEASE_RENEW, 3, 2);
    send_to(&members[0], m);
    send_renew(&members[0], 2, 5);
    AWAIT(atomic_load(&members[1].n) == 1);
    CHECK(members[1].notes[0] == 5);
    CHECK(peers_stats(members[1].peers, s) == 1 && s[0].received_failures == 1 && s[0].received_messages == 1);
    pair_stop();
}

/* A socket that listens at member 2's port, and nobody who reads. */
static int mute_listener(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    ports[1] = free_port();
    a.sin_port = htons((uint16_t)ports[1]);
    REQUIRE(bind(fd, (struct sockaddr *)&a, sizeof a) == 0 && listen(fd, 16) == 0);
    return fd;
}

static void read_all(int fd, void *to, size_t n)
{
    REQUIRE(recv(fd, to, n, MSG_WAITALL) == (ssize_t)n);
}

/* Whoever reads nothing for long gets one heartbeat of those that did not fit into the socket: the newest. */
static void newest_heartbeat_only(void)
{
    enum { N = 20000 };
    int listener = mute_listener(), fds[2], urgent = -1;
    uint64_t got = 0, ctx = 0;
    uint8_t bytes[4096];

    member_start(&members[0], 1);
    introduce(&members[0], 2);
    for (int i = 0; i < 2; i++) {
        fds[i] = accept(listener, NULL, NULL);
        REQUIRE(fds[i] >= 0);
        read_all(fds[i], bytes, 32);
        if (bytes[6] == 0)
            urgent = fds[i];
    }
    for (uint64_t i = 1; i <= N; i++)
        send_heartbeat(&members[0], 2, i);
    while (ctx < N) {
        struct peer_msg *m;

        read_all(urgent, bytes, 4);
        REQUIRE(get_u32le(bytes) <= sizeof bytes - 4);
        read_all(urgent, bytes + 4, get_u32le(bytes));
        REQUIRE(peer_msg_decode(slice_of(bytes + 4, get_u32le(bytes)), &m) == 0);
        CHECK(m->raft.ctx > ctx);
        ctx = m->raft.ctx;
        got++;
        peer_msg_free(m);
    }
    printf("# %lu of %d heartbeats\n", (unsigned long)got, N);
    CHECK(got < N);
    (void)close(listener);
    (void)close(fds[0]);
    (void)close(fds[1]);
    member_stop(&members[0]);
    ports[1] = 0;
}

/* 60 MB of entries are sent, then a heartbeat: how many bytes were there before it? */
static uint64_t bytes_before_a_heartbeat(void)
{
    enum { ENTRIES = 60000, BYTES = 1024, EACH = 1000 };
    struct member *to = &members[1];
    uint64_t before;

    pair_start();
    cache_fill(&members[0], 1, ENTRIES, BYTES);
    for (uint64_t i = 0; i < ENTRIES; i += EACH)
        send_append(&members[0], 2, i, i + EACH);
    send_heartbeat(&members[0], 2, 1);
    AWAIT(atomic_load(&to->heartbeats) == 1);
    before = atomic_load(&to->bytes_at_heartbeat);
    AWAIT(atomic_load(&to->bytes) == (uint64_t)ENTRIES * BYTES);
    pair_stop();
    return before;
}

/* A loaded machine may keep this thread from sending it in time: some attempts. */
static void heartbeats_overtake_entries(void)
{
    uint64_t before = UINT64_MAX;

    for (int i = 0; i < 10 && before > 20u << 20; i++)
        before = bytes_before_a_heartbeat();
    printf("# %lu bytes of entries came before\n", (unsigned long)before);
    CHECK(before <= 20u << 20);
}

static size_t rss_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    unsigned long total = 0, rss = 0;

    REQUIRE(f && fscanf(f, "%lu %lu", &total, &rss) == 2);
    (void)fclose(f);
    return rss * (size_t)sysconf(_SC_PAGESIZE);
}

/* Somebody who accepts and reads nothing: what waits for it stays bounded, what does not fit is told. */
static void mute_member(void)
{
    int mute = mute_listener();
    size_t before, after;

    member_start(&members[0], 1);
    introduce(&members[0], 2);
    before = rss_bytes();
    for (uint64_t i = 0; i < 20 * LIMIT_PEER_OUTBOX; i++) {
        send_renew(&members[0], 2, i);
        if (i % 256 == 0)
            nap();
    }
    AWAIT(atomic_load(&members[0].unreachables) > 0);
    after = rss_bytes();
    CHECK(after < before + (64u << 20));
    (void)close(mute);
    member_stop(&members[0]);
    ports[1] = 0;
}

static void members_are_told(void)
{
    struct Cairn__MembersResponse *r = NULL;
    char text[100], why[TLS_TEXT_BYTES];
    struct rpc_ask *a;

    pair_start();
    introduce_as(&members[1], all_ids, 2, 77);
    do {
        if (r)
            cairn__members_response__free_unpacked(r, NULL);
        REQUIRE(peers_ask_members(&members[1].listen.urls[0], tls, PATIENCE_MS, &r, why) == 0);
    } while (r->n_removed == 0);
    CHECK(r->cluster_id == CLUSTER && r->member_id == 2 && r->n_members == 2 && r->removed[0] == 77);
    CHECK(r->members[0]->id == 1 && strcmp(r->members[0]->peer_urls[0], members[0].url) == 0);
    cairn__members_response__free_unpacked(r, NULL);
    CHECK(peers_call(members[0].peers, 9, "/cairn.Peer/Nothing", PATIENCE_MS, &a) == -ENOENT);
    REQUIRE(peers_call(members[0].peers, 2, "/cairn.Peer/Nothing", PATIENCE_MS, &a) == 0);
    CHECK(rpc_ask_end(a, PATIENCE_MS, text, sizeof text) == STATUS_UNIMPLEMENTED);
    CHECK(strcmp(text, "unknown method Nothing for service cairn.Peer") == 0);
    pair_stop();
}

/* One certificate that all have and trust. */
static char tls_dir[] = "/tmp/cairn-peers-XXXXXX";

static void tls_begin(void)
{
    const char *hosts[] = {"127.0.0.1"};
    char cert[64], key[64], text[TLS_TEXT_BYTES];

    REQUIRE(mkdtemp(tls_dir) && tls_make_self(tls_dir, hosts, 1, 1, text) == 0);
    (void)snprintf(cert, sizeof cert, "%s/cert.pem", tls_dir);
    (void)snprintf(key, sizeof key, "%s/key.pem", tls_dir);
    REQUIRE(tls_ctx_new(&(struct tls_options){.cert = cert, .key = key, .trusted_ca = cert, .check_remote = true}, &tls,
                        text) == 0);
    (void)signal(SIGPIPE, SIG_IGN);
}

static void tls_end(void)
{
    char command[64];

    tls_ctx_free(tls);
    (void)snprintf(command, sizeof command, "rm -rf %s", tls_dir);
    CHECK(system(command) == 0);
}

int main(void)
{
    TEST(delivery_in_order);
    TEST(appends_in_pieces);
    TEST(entries_from_the_log);
    TEST(killed_and_back);
    TEST(strangers_are_refused);
    TEST(removed_while_connected);
    TEST(heads_by_hand);
    TEST(newer_streams_replace_older);
    TEST(false_sender);
    TEST(newest_heartbeat_only);
    TEST(heartbeats_overtake_entries);
    TEST(mute_member);
    TEST(members_are_told);
    printf("# over TLS\n");
    tls_begin();
    TEST(delivery_in_order);
    TEST(appends_in_pieces);
    TEST(entries_from_the_log);
    TEST(killed_and_back);
    TEST(strangers_are_refused);
    TEST(removed_while_connected);
    TEST(heartbeats_overtake_entries);
    TEST(members_are_told);
    tls_end();
    return tap_done();
}
