/* SPDX-License-Identifier: Apache-2.0 */
/* front.c - proves, over real sockets, that one port serves gRPC and HTTP/1.1 and nothing else; that several URLs and
 * unix sockets are served, a port in use is reported and a dead socket file replaced; that a client which does not read
 * is not read either and gets every byte in the end; that what the guard forbids is answered by GOAWAY; that clients
 * wait when no descriptors are left; that /health, /livez and /readyz say what they are asked; and that a stop ends
 * them while a read still waits.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "daemon/front.h"
#include "rpc.pb-c.h"
#include "tap.h"

enum { AWAIT_MS = 10000, ANSWER_BYTES = 100000, FRAME_HEAD = 9 };
enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION };
enum { END_STREAM = 1, END_HEADERS = 4 };
#define PREFACE "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

static struct front *front;
static unsigned tcp_port, second_port;
static char unix_path[100];

/* ---- the member behind it ------------------------------------------------------------ */

static _Atomic unsigned alarms;
static _Atomic bool leader = true, hold_reads;
static _Atomic int read_err;
static struct http_read *_Atomic held;

static unsigned get_alarms(void *ctx)
{
    (void)ctx;
    return atomic_load(&alarms);
}

static bool has_leader(void *ctx)
{
    (void)ctx;
    return atomic_load(&leader);
}

static void *finish_read(void *r)
{
    http_read_done(r, atomic_load(&read_err));
    return NULL;
}

static void begin_read(void *ctx, struct http_read *r)
{
    pthread_t t;

    (void)ctx;
    if (atomic_load(&hold_reads)) {
        atomic_store(&held, r);
        return;
    }
    REQUIRE(pthread_create(&t, NULL, finish_read, r) == 0);
    pthread_detach(t);
}

static void metrics(void *ctx, FILE *f)
{
    (void)ctx;
    fputs("etcd_server_has_leader 1\n", f);
}

static void range(struct call *c, const ProtobufCMessage *req)
{
    static uint8_t value[ANSWER_BYTES];
    Mvccpb__KeyValue kv = MVCCPB__KEY_VALUE__INIT, *kvs = &kv;
    Etcdserverpb__RangeResponse m = ETCDSERVERPB__RANGE_RESPONSE__INIT;

    (void)req;
    kv.value = (ProtobufCBinaryData){sizeof value, value};
    m.kvs = &kvs;
    m.n_kvs = 1;
    call_answer(c, &m.base);
}

static const struct rpc_method methods[] = {
    {"etcdserverpb.KV", "Range", RPC_UNARY, ACCESS_OPEN, &etcdserverpb__range_request__descriptor, .start = range},
};

static int make_front(const struct url *urls, size_t n, struct front **ret_front, const struct url **ret_bad)
{
    struct front_options o = {
        .listen = &(struct url_list){(struct url *)(uintptr_t)urls, n},
        .rpc =
            {.methods = methods, .n_methods = 1, .threads = 1, .max_request_bytes = 1 << 20, .keepalive_min_ms = 5000},
        .http = {.version = "3.7.1",
                 .cluster_version = "3.7.0",
                 .metrics = metrics,
                 .alarms = get_alarms,
                 .has_leader = has_leader,
                 .read = begin_read},
    };

    return front_new(&o, ret_front, ret_bad);
}

/* ---- clients ------------------------------------------------------------------------------ */

static unsigned free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    REQUIRE(bind(fd, (struct sockaddr *)&a, sizeof a) == 0);
    REQUIRE(getsockname(fd, (struct sockaddr *)&a, &len) == 0);
    close(fd);
    return ntohs(a.sin_port);
}

static int dial(unsigned port, int rcvbuf)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (rcvbuf)
        REQUIRE(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &rcvbuf, sizeof rcvbuf) == 0);
    REQUIRE(connect(fd, (struct sockaddr *)&a, sizeof a) == 0);
    return fd;
}

static int dial_unix(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    REQUIRE(connect(fd, (struct sockaddr *)&a, sizeof a) == 0);
    return fd;
}

static void say(int fd, struct slice s)
{
    while (s.len) {
        ssize_t n = send(fd, s.ptr, s.len, MSG_NOSIGNAL);

        REQUIRE(n > 0);
        s = slice_of(s.ptr + n, s.len - (size_t)n);
    }
}

static bool readable(int fd, int timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, timeout_ms) == 1;
}

/* Everything until the other side closes; into buf, terminated. */
static size_t hear_all(int fd, char *buf, size_t size)
{
    size_t n = 0;

    for (;;) {
        ssize_t got;

        REQUIRE(readable(fd, AWAIT_MS));
        got = recv(fd, buf + n, size - 1 - n, 0);
        if (got <= 0)
            break;
        n += (size_t)got;
        REQUIRE(n < size - 1);
    }
    buf[n] = '\0';
    return n;
}

static const char *get_on(int fd, const char *method, const char *target)
{
    static char answer[65536];
    char request[512];

    snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", method, target);
    say(fd, slice_str(request));
    hear_all(fd, answer, sizeof answer);
    close(fd);
    return answer;
}

static const char *get(const char *target)
{
    return get_on(dial(tcp_port, 0), "GET", target);
}

static bool has(const char *answer, const char *status, const char *body)
{
    char line[64];
    const char *at = strstr(answer, "\r\n\r\n");
    bool same;

    snprintf(line, sizeof line, "HTTP/1.1 %s", status);
    same = strncmp(answer, line, strlen(line)) == 0 && at && strcmp(at + 4, body) == 0;
    if (!same)
        printf("# got: %s\n", answer);
    return same;
}

static void frame(int fd, int type, int flags, uint32_t stream, struct slice body)
{
    uint8_t head[FRAME_HEAD];

    put_u32be(head, (uint32_t)body.len << 8 | (uint32_t)type);
    head[4] = (uint8_t)flags;
    put_u32be(head + 5, stream);
    say(fd, slice_of(head, sizeof head));
    say(fd, body);
}

static void hear(int fd, uint8_t *p, size_t n)
{
    while (n) {
        ssize_t got;

        REQUIRE(readable(fd, AWAIT_MS));
        got = recv(fd, p, n, 0);
        REQUIRE(got > 0);
        p += got;
        n -= (size_t)got;
    }
}

/* The next frame; its payload in body (cut to size). */
static int next_frame(int fd, uint8_t *ret_flags, uint32_t *ret_stream, uint8_t *body, size_t size, size_t *ret_len)
{
    uint8_t head[FRAME_HEAD];
    size_t len;

    hear(fd, head, sizeof head);
    len = get_u32be(head) >> 8;
    REQUIRE(len <= size);
    hear(fd, body, len);
    *ret_flags = head[4];
    *ret_stream = get_u32be(head + 5) & 0x7fffffff;
    *ret_len = len;
    return head[3];
}

/* Literal header fields without indexing, no Huffman: POST, http, and what gRPC wants. */
#define RANGE_HEAD \
    "\x83\x86\x00\x05:path\x16/etcdserverpb.KV/Range\x00\x0a:authority\x01x\x00\x02te\x08trailers" \
    "\x00\x0c" "content-type\x10" "application/grpc"

static void ask_range(int fd, uint32_t stream)
{
    frame(fd, HEADERS, END_HEADERS, stream, S(RANGE_HEAD));
    frame(fd, DATA, END_STREAM, stream, S("\0\0\0\0\x03\x0a\x01k"));
}

static void greet(int fd)
{
    uint8_t window[4];

    put_u32be(window, 0x3fffffff);
    say(fd, S(PREFACE));
    frame(fd, SETTINGS, 0, 0, S("\0\4\x3f\xff\xff\xff")); /* INITIAL_WINDOW_SIZE */
    frame(fd, WINDOW_UPDATE, 0, 0, slice_of(window, 4));
}

/* Reads until so many streams have ended; how many bytes of DATA came. */
static size_t hear_streams(int fd, int streams)
{
    static uint8_t body[1 << 20];
    size_t bytes = 0;

    while (streams) {
        uint32_t stream;
        uint8_t flags;
        size_t len;
        int type = next_frame(fd, &flags, &stream, body, sizeof body, &len);

        REQUIRE(type != GOAWAY && type != RST_STREAM);
        if (type == DATA)
            bytes += len;
        streams -= (type == HEADERS || type == DATA) && (flags & END_STREAM);
    }
    return bytes;
}

/* ---- tests --------------------------------------------------------------------------------- */

static void endpoints(void)
{
    CHECK(has(get("/version"), "200", "{\"etcdserver\":\"3.7.1\",\"etcdcluster\":\"3.7.0\",\"storage\":\"3.7.0\"}"));
    CHECK(has(get("/metrics"), "200", "etcd_server_has_leader 1\n"));
    CHECK(has(get("/nope"), "404", "404 page not found\n"));
    CHECK(has(get("/version/"), "404", "404 page not found\n"));
    CHECK(has(get_on(dial(tcp_port, 0), "POST", "/version"), "405", "Method Not Allowed\n"));
    CHECK(strstr(get_on(dial(tcp_port, 0), "HEAD", "/health"), "Allow: GET") != NULL);
    CHECK(has(get_on(dial(tcp_port, 0), "OPTIONS", "/any/where"), "200", ""));
    CHECK(strstr(get("/version"), "Access-Control-Allow-Origin: *") != NULL);
}

static void health(void)
{
    CHECK(has(get("/health"), "200", "{\"health\":\"true\",\"reason\":\"\"}"));
    atomic_store(&alarms, HTTP_ALARM_NOSPACE);
    CHECK(has(get("/health"), "503", "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n"));
    CHECK(has(get("/health?exclude=CORRUPT&exclude=NOSPACE"), "200", "{\"health\":\"true\",\"reason\":\"\"}"));
    atomic_store(&alarms, 0);
    atomic_store(&leader, false);
    CHECK(has(get("/health"), "503", "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n"));
    CHECK(has(get("/health?serializable=true"), "200", "{\"health\":\"true\",\"reason\":\"\"}"));
    atomic_store(&leader, true);
    atomic_store(&read_err, ERR_TIMEOUT);
    CHECK(has(get("/health"), "503", "{\"health\":\"false\",\"reason\":\"RANGE ERROR:etcdserver: request timed out\"}\n"));
    CHECK(has(get("/health?serializable=true"), "200", "{\"health\":\"true\",\"reason\":\"\"}"));
    atomic_store(&read_err, 0);
}

static void live_and_ready(void)
{
    CHECK(has(get("/livez"), "200", "ok\n"));
    CHECK(has(get("/livez?verbose"), "200", "[+]serializable_read ok\nok\n"));
    CHECK(has(get("/livez/serializable_read"), "200", "ok\n"));
    CHECK(has(get("/livez/linearizable_read"), "404", "404 page not found\n"));
    CHECK(has(get("/readyz"), "200", "ok\n"));
    atomic_store(&read_err, ERR_TIMEOUT);
    atomic_store(&alarms, HTTP_ALARM_CORRUPT);
    CHECK(has(get("/readyz"), "503",
              "[-]data_corruption failed: alarm activated: CORRUPT\n[+]serializable_read ok\n"
              "[-]linearizable_read failed: etcdserver: request timed out\n[+]non_learner ok\n\n"));
    CHECK(has(get("/readyz?exclude=data_corruption&exclude=linearizable_read"), "200", "ok\n"));
    CHECK(has(get("/readyz/non_learner"), "200", "ok\n"));
    atomic_store(&read_err, 0);
    atomic_store(&alarms, 0);
}

static void grpc_and_http_on_every_url(void)
{
    int fds[3] = {dial(tcp_port, 0), dial(second_port, 0), dial_unix(unix_path)};

    for (int i = 0; i < 3; i++) {
        greet(fds[i]);
        ask_range(fds[i], 1);
        CHECK(hear_streams(fds[i], 1) > ANSWER_BYTES);
        close(fds[i]);
    }
    CHECK(has(get_on(dial(second_port, 0), "GET", "/livez"), "200", "ok\n"));
    CHECK(has(get_on(dial_unix(unix_path), "GET", "/livez"), "200", "ok\n"));
}

/* What is neither is closed, at once and without a word; a client that dribbles its preface is served. */
static void other_protocols(void)
{
    char buf[64];
    int fd = dial(tcp_port, 0);

    say(fd, S("\x16\x03\x01\x00\x05hello")); /* TLS on an http:// port */
    CHECK(hear_all(fd, buf, sizeof buf) == 0);
    close(fd);
    fd = dial(tcp_port, 0);
    say(fd, S(PREFACE "\0\0\x08\x06\0\0\0\0\0" "12345678")); /* PING, where SETTINGS must come first */
    CHECK(hear_all(fd, buf, sizeof buf) == 0);
    close(fd);
    fd = dial(tcp_port, 0);
    for (const char *p = PREFACE; *p; p++) {
        say(fd, slice_of(p, 1));
        usleep(500);
    }
    frame(fd, SETTINGS, 0, 0, S("\0\4\x3f\xff\xff\xff"));
    frame(fd, WINDOW_UPDATE, 0, 0, S("\x3f\xff\xff\xff"));
    ask_range(fd, 1);
    CHECK(hear_streams(fd, 1) > ANSWER_BYTES);
    close(fd);
}

static void a_slow_reader_gets_everything(void)
{
    enum { CALLS = 300 };
    int fd = dial(tcp_port, 4096);
    uint64_t start = front_pump_stats(front)->server_bytes, before, now;

    greet(fd);
    for (uint32_t i = 0; i < CALLS; i++)
        ask_range(fd, 2 * i + 1);
    /* The pump moves until both sides are full, and no further: 30 MB stay where they are. */
    for (before = UINT64_MAX; (now = front_pump_stats(front)->server_bytes - start) != before; before = now)
        usleep(100000);
    CHECK(before < (uint64_t)CALLS * ANSWER_BYTES / 2);
    CHECK(hear_streams(fd, CALLS) > (size_t)CALLS * ANSWER_BYTES);
    close(fd);
}

static void the_guard_says_why(void)
{
    uint8_t body[16384] = {0}, flags, settings;
    int fd = dial(tcp_port, 0), type;
    uint32_t stream;
    size_t len;

    greet(fd);
    do
        type = next_frame(fd, &flags, &stream, body, sizeof body, &len);
    while (type != SETTINGS);
    settings = flags;
    CHECK(settings == 0);
    frame(fd, HEADERS, END_HEADERS, 1, S(RANGE_HEAD));
    frame(fd, DATA, 0, 1, S("\0\x7f\xff\xff\xff")); /* a message of 2 GiB */
    do
        type = next_frame(fd, &flags, &stream, body, sizeof body, &len);
    while (type != GOAWAY);
    CHECK(get_u32be(body) == 1);
    CHECK(get_u32be(body + 4) == 0xb); /* ENHANCE_YOUR_CALM */
    CHECK(len == 8 + strlen(guard_text(GUARD_MESSAGE)) && memcmp(body + 8, guard_text(GUARD_MESSAGE), len - 8) == 0);
    CHECK(front_pump_stats(front)->guarded[GUARD_MESSAGE] == 1);
    close(fd);
}

static void addresses_in_use(void)
{
    char port[8];
    struct url u = {.scheme = URL_HTTP, .text = "x", .host = "127.0.0.1", .port = port};
    struct url sock = {.scheme = URL_UNIX, .text = "x", .path = unix_path};
    struct url far = {.scheme = URL_HTTP, .text = "x", .host = "203.0.113.7", .port = "1"}; /* RFC 5737: nobody's */
    const struct url *bad = NULL;
    struct front *f = NULL;

    snprintf(port, sizeof port, "%u", tcp_port);
    CHECK(make_front(&u, 1, &f, &bad) == -EADDRINUSE);
    CHECK(bad == &u && f == NULL);
    CHECK(make_front(&sock, 1, &f, &bad) == -EADDRINUSE);
    CHECK(bad == &sock);
    CHECK(make_front(&far, 1, &f, &bad) == -EADDRNOTAVAIL);
}

/* Last but one: a health check is waiting while the stop comes. */
static void stop_ends_what_waits(void)
{
    int fd = dial(tcp_port, 0);
    char buf[1024];
    struct stat st;

    atomic_store(&hold_reads, true);
    say(fd, S("GET /health HTTP/1.1\r\nHost: x\r\n\r\n"));
    for (int i = 0; i < AWAIT_MS && atomic_load(&held) == NULL; i++)
        usleep(1000);
    REQUIRE(atomic_load(&held) != NULL);
    front_stop(front);
    CHECK(hear_all(fd, buf, sizeof buf) == 0 || strstr(buf, "503") != NULL);
    close(fd);
    http_read_done(atomic_load(&held), 0); /* too late, and harmless */
    CHECK(stat(unix_path, &st) == -1 && errno == ENOENT);
    front_free(front);
}

/* What kill -9 leaves behind: a socket file that nobody listens on. */
static void a_dead_socket_is_replaced(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct url u = {.scheme = URL_UNIX, .text = "x", .path = unix_path};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const struct url *bad;
    struct front *f;

    snprintf(a.sun_path, sizeof a.sun_path, "%s", unix_path);
    REQUIRE(bind(fd, (struct sockaddr *)&a, sizeof a) == 0);
    close(fd);
    REQUIRE(make_front(&u, 1, &f, &bad) == 0);
    REQUIRE(front_start(f) == 0);
    atomic_store(&hold_reads, false);
    CHECK(has(get_on(dial_unix(unix_path), "GET", "/health"), "200", "{\"health\":\"true\",\"reason\":\"\"}"));
    front_free(f);
}

/* Very last: the process may have few descriptors from here on. The listener then waits, it does not spin or fail. */
static void more_clients_than_descriptors_wait(void)
{
    enum { FDS = 340, SERVED = (FDS - 256) / 3, CLIENTS = SERVED + 10 };
    struct rlimit few = {FDS, FDS};
    char port[8];
    struct url u = {.scheme = URL_HTTP, .text = "x", .host = "127.0.0.1", .port = port};
    unsigned number = free_port();
    const struct url *bad;
    struct front *f;
    int fds[CLIENTS];

    snprintf(port, sizeof port, "%u", number);
    REQUIRE(setrlimit(RLIMIT_NOFILE, &few) == 0);
    REQUIRE(make_front(&u, 1, &f, &bad) == 0);
    REQUIRE(front_start(f) == 0);
    for (int i = 0; i < CLIENTS; i++) {
        fds[i] = dial(number, 0);
        greet(fds[i]);
    }
    for (int i = 0; i < SERVED; i++)
        CHECK(readable(fds[i], AWAIT_MS)); /* the server's SETTINGS */
    for (int i = SERVED; i < CLIENTS; i++)
        CHECK(!readable(fds[i], 0));
    CHECK(front_pump_stats(f)->open == SERVED);
    for (int i = 0; i < SERVED; i++)
        close(fds[i]);
    for (int i = SERVED; i < CLIENTS; i++) {
        CHECK(readable(fds[i], AWAIT_MS));
        close(fds[i]);
    }
    front_free(f);
}

int main(void)
{
    char dir[] = "/tmp/cairn-front-XXXXXX", ports[2][8];
    struct url urls[3] = {{.scheme = URL_HTTP, .text = "first", .host = "127.0.0.1", .port = ports[0]},
                          {.scheme = URL_HTTP, .text = "second", .host = "localhost", .port = ports[1]},
                          {.scheme = URL_UNIX, .text = "third", .path = unix_path}};
    const struct url *bad;

    REQUIRE(mkdtemp(dir) != NULL);
    snprintf(unix_path, sizeof unix_path, "%s/sock", dir);
    tcp_port = free_port();
    second_port = free_port();
    snprintf(ports[0], sizeof ports[0], "%u", tcp_port);
    snprintf(ports[1], sizeof ports[1], "%u", second_port);
    REQUIRE(make_front(urls, 3, &front, &bad) == 0);
    REQUIRE(front_start(front) == 0);
    TEST(endpoints);
    TEST(health);
    TEST(live_and_ready);
    TEST(grpc_and_http_on_every_url);
    TEST(other_protocols);
    TEST(a_slow_reader_gets_everything);
    TEST(the_guard_says_why);
    TEST(addresses_in_use);
    TEST(stop_ends_what_waits);
    TEST(a_dead_socket_is_replaced);
    TEST(more_clients_than_descriptors_wait);
    rmdir(dir);
    return tap_done();
}
