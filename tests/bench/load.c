/* SPDX-License-Identifier: Apache-2.0 */
/* load.c - a small, cheap load generator: gRPC over cleartext HTTP/2 by hand, so that on two cores the server is what
 * is measured.
 *
 *     load put    PORT conns streams requests keys value_bytes [first_key]    puts, to random keys (keys = 1: always the same)
 *     load fill   PORT conns streams requests keys value_bytes [first_key]    puts, to the keys in order
 *     load range  PORT conns streams requests keys value_bytes                linearizable ranges of one random key
 *     load watch  PORT streams watchers puts                                  one put at a time to streams x watchers watchers
 *     load sync   FILE writes                                                 no server: 512 bytes and fdatasync, over and over
 *
 * Prints one line: rate, mean, p50, p99, p99.9 and max in microseconds, errors. A call counts as good when a message
 * came before its trailers (an error of gRPC's has none). From the environment: SEED; SPIN=1: looks for answers without
 * sleeping, so that what it costs to wake this client (30 us where the other processor idles) is not taken for the
 * server's. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "bytes.h"

enum { FRAME_HEAD = 9, BUFFER_BYTES = 1 << 20, STREAMS_MAX = 4096, CONNS_MAX = 1024, STALL_MS = 30000 };
enum { DATA = 0, HEADERS = 1, RST = 3, SETTINGS = 4, PING = 6, GOAWAY = 7, WINDOW_UPDATE = 8 };

struct stream {
    uint64_t start_ns;
    bool has_message;
};

struct conn {
    int fd;
    uint32_t next_id;
    int64_t send_window;
    uint64_t received; /* since the last window update */
    unsigned open;
    bool indexed;      /* the headers of a call stand in the peer's table */
    struct stream streams[STREAMS_MAX]; /* by (id / 2) % STREAMS_MAX */
    uint8_t in[BUFFER_BYTES];
    size_t in_len;
    uint8_t out[BUFFER_BYTES];
    size_t out_len;
};

static struct {
    const char *path;
    unsigned conns, streams, value_bytes;
    uint64_t requests, keys, first_key, sent, done, errors, messages;
    bool in_order, spin;
    uint64_t rng;
    uint32_t *took_us;
} load;

static uint64_t now_ns(void)
{
    struct timespec ts;

    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void die(const char *what)
{
    (void)fprintf(stderr, "load: %s: %s\n", what, errno ? strerror(errno) : "");
    exit(1);
}

static uint64_t random_next(void)
{
    load.rng ^= load.rng << 13;
    load.rng ^= load.rng >> 7;
    load.rng ^= load.rng << 17;
    return load.rng;
}

/* ---- writing -------------------------------------------------------------------- */

static void put_bytes(struct conn *c, const void *p, size_t n)
{
    assert(c->out_len + n <= BUFFER_BYTES);
    memcpy(c->out + c->out_len, p, n);
    c->out_len += n;
}

static void put_frame(struct conn *c, size_t len, int type, int flags, uint32_t id)
{
    uint8_t h[FRAME_HEAD] = {(uint8_t)(len >> 16), (uint8_t)(len >> 8), (uint8_t)len, (uint8_t)type, (uint8_t)flags};

    put_u32be(h + 5, id);
    put_bytes(c, h, sizeof h);
}

static size_t literal(uint8_t *p, const char *name_or_null, uint8_t index, const char *value)
{
    uint8_t *start = p;

    *p++ = 0x40 | index; /* with incremental indexing */
    if (name_or_null) {
        *p++ = (uint8_t)strlen(name_or_null);
        p = (uint8_t *)mempcpy(p, name_or_null, strlen(name_or_null));
    }
    *p++ = (uint8_t)strlen(value);
    p = (uint8_t *)mempcpy(p, value, strlen(value));
    return (size_t)(p - start);
}

/* The first call of a connection puts its headers into the peer's table; later calls name them by number. */
static void put_headers(struct conn *c, uint32_t id, const char *path)
{
    static const uint8_t again[] = {0x83, 0x86, 0xc1, 0xc0, 0xbf, 0xbe};
    uint8_t block[256], *p = block;

    if (c->indexed) {
        put_frame(c, sizeof again, HEADERS, 0x4, id);
        put_bytes(c, again, sizeof again);
        return;
    }
    *p++ = 0x83; /* POST */
    *p++ = 0x86; /* http */
    p += literal(p, NULL, 4, path);
    p += literal(p, NULL, 1, "localhost");
    p += literal(p, NULL, 31, "application/grpc");
    p += literal(p, "te", 0, "trailers");
    put_frame(c, (size_t)(p - block), HEADERS, 0x4, id);
    put_bytes(c, block, (size_t)(p - block));
    c->indexed = true;
}

static void put_message(struct conn *c, uint32_t id, const uint8_t *body, size_t len, bool last)
{
    uint8_t head[5] = {0};

    put_u32be(head + 1, (uint32_t)len);
    put_frame(c, len + sizeof head, DATA, last ? 1 : 0, id);
    put_bytes(c, head, sizeof head);
    put_bytes(c, body, len);
    c->send_window -= (int64_t)(len + sizeof head);
}

static uint8_t *put_varint(uint8_t *p, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        *p++ = (uint8_t)v | 0x80;
    *p++ = (uint8_t)v;
    return p;
}

static size_t request_body(uint8_t *body, bool with_value)
{
    uint64_t k = load.first_key + (load.in_order ? load.sent % load.keys : load.keys > 1 ? random_next() % load.keys : 0);
    uint8_t *p = body;

    *p++ = 0x0a;
    *p++ = 20;
    p += snprintf((char *)p, 32, "bench/key/%010" PRIu64, k);
    if (with_value && load.value_bytes) {
        *p++ = 0x12;
        p = put_varint(p, load.value_bytes);
        for (unsigned i = 0; i < load.value_bytes; i += 8)
            put_u64le(p + i, random_next());
        p += load.value_bytes;
    }
    return (size_t)(p - body);
}

static void start_calls(struct conn *c, bool with_value)
{
    uint8_t body[70000];

    while (load.sent < load.requests && c->open < load.streams && c->out_len < BUFFER_BYTES / 2) {
        struct stream *s = &c->streams[(c->next_id / 2) % STREAMS_MAX];
        size_t n;

        if (c->send_window < (int64_t)load.value_bytes + 64)
            return;
        n = request_body(body, with_value);
        put_headers(c, c->next_id, load.path);
        put_message(c, c->next_id, body, n, true);
        *s = (struct stream){.start_ns = now_ns()};
        c->next_id += 2;
        c->open++;
        load.sent++;
    }
}

static void flush(struct conn *c)
{
    size_t at = 0;

    while (at < c->out_len) {
        ssize_t n = send(c->fd, c->out + at, c->out_len - at, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0)
            die("send");
        at += (size_t)n;
    }
    memmove(c->out, c->out + at, c->out_len - at);
    c->out_len -= at;
}

/* ---- reading ---------------------------------------------------------------------- */

static void call_ended(struct conn *c, uint32_t id)
{
    struct stream *s = &c->streams[(id / 2) % STREAMS_MAX];

    c->open--;
    load.errors += !s->has_message;
    if (load.took_us)
        load.took_us[load.done] = (uint32_t)((now_ns() - s->start_ns) / 1000);
    load.done++;
}

/* gRPC messages inside a DATA frame of a watch: they are small and the server does not split them over frames unless
 * blocked, so a message's remainder is carried per connection. */
static size_t carry[CONNS_MAX];

static void count_messages(unsigned conn, const uint8_t *p, size_t n)
{
    static uint8_t head[CONNS_MAX][5];
    static unsigned head_len[CONNS_MAX];

    while (n) {
        if (carry[conn] >= n) {
            carry[conn] -= n;
            return;
        }
        p += carry[conn], n -= carry[conn], carry[conn] = 0;
        while (n && head_len[conn] < 5)
            head[conn][head_len[conn]++] = *p++, n--;
        if (head_len[conn] < 5)
            return;
        carry[conn] = get_u32be(head[conn] + 1);
        head_len[conn] = 0;
        load.messages++;
    }
}

static void on_frame(struct conn *c, unsigned conn, int type, int flags, uint32_t id, const uint8_t *p, size_t n)
{
    uint8_t b[8];

    switch (type) {
    case DATA:
        c->streams[(id / 2) % STREAMS_MAX].has_message = true;
        if (load.took_us == NULL)
            count_messages(conn, p, n);
        c->received += n;
        if (c->received > (64u << 20)) {
            put_frame(c, 4, WINDOW_UPDATE, 0, 0);
            put_u32be(b, (uint32_t)c->received);
            put_bytes(c, b, 4);
            c->received = 0;
        }
        if (flags & 1)
            call_ended(c, id);
        break;
    case HEADERS:
        if (flags & 1)
            call_ended(c, id);
        break;
    case RST:
        call_ended(c, id);
        break;
    case SETTINGS:
        if (!(flags & 1))
            put_frame(c, 0, SETTINGS, 1, 0);
        break;
    case PING:
        if (!(flags & 1)) {
            put_frame(c, 8, PING, 1, 0);
            put_bytes(c, p, 8);
        }
        break;
    case WINDOW_UPDATE:
        if (id == 0)
            c->send_window += get_u32be(p) & 0x7fffffff;
        break;
    case GOAWAY:
        errno = 0;
        die("the server sent GOAWAY");
    }
}

static void receive(struct conn *c, unsigned conn)
{
    ssize_t n = recv(c->fd, c->in + c->in_len, BUFFER_BYTES - c->in_len, MSG_DONTWAIT);
    size_t at = 0;

    if (n == 0 || (n < 0 && errno != EAGAIN)) {
        errno = n == 0 ? 0 : errno;
        die("the server closed the connection");
    }
    c->in_len += n > 0 ? (size_t)n : 0;
    while (c->in_len - at >= FRAME_HEAD) {
        const uint8_t *h = c->in + at;
        size_t len = (size_t)h[0] << 16 | (size_t)h[1] << 8 | h[2];

        if (c->in_len - at < FRAME_HEAD + len)
            break;
        on_frame(c, conn, h[3], h[4], get_u32be(h + 5) & 0x7fffffff, h + FRAME_HEAD, len);
        at += FRAME_HEAD + len;
    }
    memmove(c->in, c->in + at, c->in_len - at);
    c->in_len -= at;
}

static struct conn *conn_open(int port)
{
    static const uint8_t preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    static const uint8_t window[] = {0, 4, 0x7f, 0xff, 0xff, 0xff}; /* INITIAL_WINDOW_SIZE 2^31 - 1 */
    struct sockaddr_in sin = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct conn *c = calloc(1, sizeof *c);
    uint8_t grow[4];
    int one = 1;

    if (c == NULL || (c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) < 0 ||
        connect(c->fd, (struct sockaddr *)&sin, sizeof sin) < 0)
        die("connect");
    (void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->next_id = 1;
    c->send_window = 65535;
    put_bytes(c, preface, sizeof preface - 1);
    put_frame(c, sizeof window, SETTINGS, 0, 0);
    put_bytes(c, window, sizeof window);
    put_frame(c, 4, WINDOW_UPDATE, 0, 0);
    put_u32be(grow, 0x7fffffff - 65535);
    put_bytes(c, grow, 4);
    flush(c);
    return c;
}

static void conn_close(struct conn *c)
{
    (void)close(c->fd);
    free(c);
}

static void wait_conns(struct conn **conns, unsigned n)
{
    struct pollfd p[CONNS_MAX];

    for (unsigned i = 0; i < n; i++)
        p[i] = (struct pollfd){.fd = conns[i]->fd, .events = (short)(POLLIN | (conns[i]->out_len ? POLLOUT : 0))};
    while (load.spin && poll(p, n, 0) == 0)
        ;
    if (poll(p, n, STALL_MS) == 0) {
        errno = ETIMEDOUT;
        die("the server answers nothing");
    }
    for (unsigned i = 0; i < n; i++)
        if (p[i].revents & (POLLIN | POLLHUP | POLLERR))
            receive(conns[i], i);
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

static void report(uint64_t took_ns)
{
    double sum = 0;

    qsort(load.took_us, load.done, sizeof *load.took_us, by_value);
    for (uint64_t i = 0; i < load.done; i++)
        sum += load.took_us[i];
    (void)printf("rate=%.0f mean_us=%.0f p50_us=%u p99_us=%u p999_us=%u max_us=%u errors=%" PRIu64 "\n",
                 (double)load.done * 1e9 / (double)took_ns, sum / (double)load.done, load.took_us[load.done / 2],
                 load.took_us[load.done * 99 / 100], load.took_us[load.done * 999 / 1000], load.took_us[load.done - 1],
                 load.errors);
}

static int run_unary(int port, bool with_value)
{
    struct conn *conns[CONNS_MAX];
    uint64_t start;

    load.took_us = calloc(load.requests + 1, sizeof *load.took_us);
    if (load.took_us == NULL)
        die("memory");
    for (unsigned i = 0; i < load.conns; i++)
        conns[i] = conn_open(port);
    start = now_ns();
    while (load.done < load.requests) {
        for (unsigned i = 0; i < load.conns; i++) {
            start_calls(conns[i], with_value);
            flush(conns[i]);
        }
        wait_conns(conns, load.conns);
    }
    report(now_ns() - start);
    for (unsigned i = 0; i < load.conns; i++)
        conn_close(conns[i]);
    free(load.took_us);
    return load.errors ? 1 : 0;
}

static int run_watch(int port, unsigned streams, unsigned watchers, uint64_t puts)
{
    static const char key[] = "bench/watch";
    struct conn *conns[2] = {conn_open(port), conn_open(port)};
    uint64_t want = (uint64_t)streams * watchers, start, took = 0;
    uint8_t create[64], *p = create, *inner;

    *p++ = 0x0a; /* create_request */
    inner = ++p;
    *p++ = 0x0a;
    *p++ = sizeof key - 1;
    p = (uint8_t *)mempcpy(p, key, sizeof key - 1);
    inner[-1] = (uint8_t)(p - inner);
    for (unsigned s = 0; s < streams; s++) {
        put_headers(conns[0], conns[0]->next_id, "/etcdserverpb.Watch/Watch");
        for (unsigned w = 0; w < watchers; w++) {
            put_message(conns[0], conns[0]->next_id, create, (size_t)(p - create), false);
            while (conns[0]->send_window < 1000 || conns[0]->out_len > BUFFER_BYTES / 2) {
                flush(conns[0]);
                wait_conns(conns, 1);
            }
        }
        conns[0]->next_id += 2;
    }
    while (load.messages < want) {
        flush(conns[0]);
        wait_conns(conns, 1);
    }
    load.messages = 0;
    for (uint64_t n = 0; n < puts; n++) {
        uint8_t put[] = "\x0a\x0b" "bench/watch\x12\x01v";

        start = now_ns();
        put_headers(conns[1], conns[1]->next_id, "/etcdserverpb.KV/Put");
        put_message(conns[1], conns[1]->next_id, put, sizeof put - 1, true);
        conns[1]->next_id += 2;
        while (load.messages < want + 1) { /* every event, and the put's own answer */
            flush(conns[0]);
            flush(conns[1]);
            wait_conns(conns, 2);
        }
        load.messages = 0;
        took += now_ns() - start;
    }
    (void)printf("events=%" PRIu64 " us_per_event=%.3f\n", want * puts, (double)took / 1e3 / (double)(want * puts));
    conn_close(conns[0]);
    conn_close(conns[1]);
    return 0;
}

/* What a disk makes of a lone put: the floor below every server. */
static int run_sync(const char *path, uint64_t writes)
{
    static uint8_t zero[16 << 10];
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    uint64_t start;

    if (fd < 0)
        die(path);
    for (uint64_t at = 0; at < writes * 512; at += sizeof zero)
        if (pwrite(fd, zero, sizeof zero, (off_t)at) < 0)
            die(path);
    (void)fsync(fd);
    load.took_us = calloc(writes + 1, sizeof *load.took_us);
    if (load.took_us == NULL)
        die("memory");
    zero[0] = 1;
    start = now_ns();
    for (; load.done < writes; load.done++) {
        uint64_t from = now_ns();

        if (pwrite(fd, zero, 512, (off_t)load.done * 512) != 512 || fdatasync(fd))
            die(path);
        load.took_us[load.done] = (uint32_t)((now_ns() - from) / 1000);
    }
    report(now_ns() - start);
    free(load.took_us);
    (void)close(fd);
    return 0;
}

int main(int argc, char **argv)
{
    const char *seed = getenv("SEED"), *mode = argc > 1 ? argv[1] : "";
    int port = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 0;

    load.spin = getenv("SPIN") != NULL;
    load.rng = seed ? strtoull(seed, NULL, 10) | 1 : 88172645463325252u;
    if (strcmp(mode, "watch") == 0 && argc == 6)
        return run_watch(port, (unsigned)strtoul(argv[3], NULL, 10), (unsigned)strtoul(argv[4], NULL, 10),
                         strtoull(argv[5], NULL, 10));
    if (strcmp(mode, "sync") == 0 && argc == 4 && strtoull(argv[3], NULL, 10) > 0)
        return run_sync(argv[2], strtoull(argv[3], NULL, 10));
    if (argc < 8) {
        (void)fprintf(stderr, "usage: load put|fill|range PORT conns streams requests keys value_bytes [first_key]\n"
                              "       load watch PORT streams watchers puts\n"
                              "       load sync FILE writes\n");
        return 2;
    }
    load.conns = (unsigned)strtoul(argv[3], NULL, 10);
    load.streams = (unsigned)strtoul(argv[4], NULL, 10);
    load.requests = strtoull(argv[5], NULL, 10);
    load.keys = strtoull(argv[6], NULL, 10);
    load.value_bytes = (unsigned)strtoul(argv[7], NULL, 10) / 8 * 8;
    load.first_key = argc > 8 ? strtoull(argv[8], NULL, 10) : 0;
    load.in_order = strcmp(mode, "fill") == 0;
    if (load.conns == 0 || load.conns > CONNS_MAX || load.streams == 0 || load.streams > STREAMS_MAX || load.keys == 0 ||
        load.value_bytes > 65536 || load.requests == 0) {
        (void)fprintf(stderr, "load: a number is out of range\n");
        return 2;
    }
    load.path = strcmp(mode, "range") == 0 ? "/etcdserverpb.KV/Range" : "/etcdserverpb.KV/Put";
    return run_unary(port, strcmp(mode, "range") != 0);
}
