/* SPDX-License-Identifier: Apache-2.0 */
/* dial.c - proves of connecting: one attempt tries every address and ends once, with a socket or the reason; a port
 * that refuses, a unix socket that is gone and a name nobody knows are told apart; a silent address holds up nobody
 * else; a delay is kept, and dropped by hurry; what is given up says nothing.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
#include "daemon/dial.h"
#include "daemon/limits.h"
#include "daemon/seam.h"
#include "tap.h"

enum { PATIENCE_MS = 20000 };

struct told {
    _Atomic int n, result; /* a descriptor or -errno */
};

static struct dialer *dialer;
static struct arena arena;

static uint64_t now_ms(void)
{
    return clock_real()->now_ms(clock_real());
}

static void done(void *ctx, int fd, int err, size_t url)
{
    struct told *t = ctx;

    (void)url;
    atomic_store(&t->result, err ? err : fd);
    atomic_fetch_add(&t->n, 1);
}

static int await(struct told *t, int n)
{
    uint64_t until = now_ms() + PATIENCE_MS;

    while (atomic_load(&t->n) < n && now_ms() < until)
        (void)poll(NULL, 0, 1);
    CHECK(atomic_load(&t->n) == n);
    return atomic_load(&t->result);
}

static struct dial *dial_to(const char *urls, struct told *t)
{
    struct url_list l;
    struct dial *d;

    *t = (struct told){0};
    REQUIRE(config_parse_urls(&arena, urls, &l) == NULL);
    REQUIRE(dial_new(dialer, &(struct dial_options){.urls = l.urls, .n_urls = l.n, .done = done, .ctx = t}, &d) == 0);
    return d;
}

/* Listening, or (backlog -1) only bound, which refuses, on 127.0.0.1; *ret_port its port. */
static int bound(int backlog, unsigned *ret_port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    REQUIRE(bind(fd, (struct sockaddr *)&a, sizeof a) == 0);
    REQUIRE(backlog < 0 || listen(fd, backlog) == 0);
    REQUIRE(getsockname(fd, (struct sockaddr *)&a, &len) == 0);
    *ret_port = ntohs(a.sin_port);
    return fd;
}

/* Both orders of the URLs: the list is sorted by text, so the host says which comes first. */
static void connected_by_any_address(void)
{
    unsigned open_port, shut_port;
    int open_fd = bound(16, &open_port), shut_fd = bound(-1, &shut_port), fd;
    char urls[200];
    struct told t;
    struct dial *d;

    (void)snprintf(urls, sizeof urls, "http://127.0.0.1:%u,http://localhost:%u", shut_port, open_port);
    d = dial_to(urls, &t);
    dial_ask(d, 0);
    fd = await(&t, 1);
    CHECK(fd >= 0 && send(fd, "x", 1, MSG_NOSIGNAL) == 1);
    (void)close(fd);
    dial_free(d);
    (void)snprintf(urls, sizeof urls, "http://127.0.0.1:%u,http://localhost:%u", open_port, shut_port);
    d = dial_to(urls, &t);
    for (int i = 1; i <= 3; i++) {
        dial_ask(d, 0);
        fd = await(&t, i);
        CHECK(fd >= 0);
        (void)close(fd);
    }
    dial_free(d);
    (void)close(open_fd);
    (void)close(shut_fd);
}

static void reasons(void)
{
    unsigned port;
    int shut_fd = bound(-1, &port);
    char urls[200];
    struct told t;
    struct dial *d;

    (void)snprintf(urls, sizeof urls, "http://127.0.0.1:%u,unix:///tmp/cairn-no-such-socket-%d", port, (int)getpid());
    d = dial_to(urls, &t);
    dial_ask(d, 0);
    CHECK(await(&t, 1) == -ECONNREFUSED);
    dial_free(d);
    (void)snprintf(urls, sizeof urls, "http://127.0.0.1:%u,http://no-such-host.invalid:%u", port, port);
    d = dial_to(urls, &t);
    dial_ask(d, 0);
    CHECK(await(&t, 1) != -ECONNREFUSED); /* one of them did not refuse: it may well live */
    dial_free(d);
    (void)close(shut_fd);
}

/* A listener whose queue is full lets a connection wait for ever: the attempt ends by itself, others go on
 * meanwhile. */
static void a_silent_address(void)
{
    unsigned port, open_port;
    int silent_fd = bound(0, &port), open_fd = bound(16, &open_port), fd;
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
    int fill[8];
    char urls[64];
    struct told t, other_t;
    struct dial *d, *other;

    for (int i = 0; i < 8; i++) {
        fill[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        (void)connect(fill[i], (struct sockaddr *)&a, sizeof a);
    }
    (void)snprintf(urls, sizeof urls, "http://127.0.0.1:%u", port);
    d = dial_to(urls, &t);
    dial_ask(d, 0);
    (void)snprintf(urls, sizeof urls, "http://127.0.0.1:%u", open_port);
    other = dial_to(urls, &other_t);
    dial_ask(other, 0);
    fd = await(&other_t, 1);
    CHECK(fd >= 0);
    CHECK(atomic_load(&t.n) == 0);
    CHECK(await(&t, 1) == -ETIMEDOUT);
    (void)close(fd);
    for (int i = 0; i < 8; i++)
        (void)close(fill[i]);
    (void)close(silent_fd);
    (void)close(open_fd);
    dial_free(d);
    dial_free(other);
}

static void delays(void)
{
    unsigned port;
    int shut_fd = bound(-1, &port);
    uint64_t start = now_ms();
    char urls[64];
    struct told t;
    struct dial *d;

    (void)snprintf(urls, sizeof urls, "http://127.0.0.1:%u", port);
    d = dial_to(urls, &t);
    dial_ask(d, 50);
    CHECK(await(&t, 1) == -ECONNREFUSED);
    CHECK(now_ms() - start >= 50);
    dial_ask(d, 3600 * 1000);
    dial_hurry(d);
    CHECK(await(&t, 2) == -ECONNREFUSED);
    dial_ask(d, 100);
    dial_free(d); /* given up */
    d = dial_to(urls, &t);
    dial_ask(d, 200);
    CHECK(await(&t, 1) == -ECONNREFUSED);
    dial_free(d);
    (void)close(shut_fd);
}

static void blocking(void)
{
    unsigned port, shut_port;
    int open_fd = bound(16, &port), shut_fd = bound(-1, &shut_port), fd;
    struct url_list l;
    char urls[64], authority[64];

    (void)snprintf(urls, sizeof urls, "http://localhost:%u", port);
    REQUIRE(config_parse_urls(&arena, urls, &l) == NULL);
    fd = dial_blocking(&l.urls[0], PATIENCE_MS);
    CHECK(fd >= 0);
    (void)close(fd);
    dial_authority(&l.urls[0], authority, sizeof authority);
    CHECK(strcmp(authority, urls + 7) == 0);
    (void)snprintf(urls, sizeof urls, "http://127.0.0.1:%u", shut_port);
    REQUIRE(config_parse_urls(&arena, urls, &l) == NULL);
    CHECK(dial_blocking(&l.urls[0], PATIENCE_MS) == -ECONNREFUSED);
    REQUIRE(config_parse_urls(&arena, "http://[::1]:2380", &l) == NULL);
    dial_authority(&l.urls[0], authority, sizeof authority);
    CHECK(strcmp(authority, "[::1]:2380") == 0);
    (void)close(open_fd);
    (void)close(shut_fd);
}

int main(void)
{
    arena_init(&arena, 1 << 20, NULL, 0);
    REQUIRE(dialer_new(&dialer) == 0 && dialer_start(dialer) == 0);
    TEST(connected_by_any_address);
    TEST(reasons);
    TEST(a_silent_address);
    TEST(delays);
    TEST(blocking);
    dialer_free(dialer);
    arena_fini(&arena);
    return tap_done();
}
