/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: of HTTP/1.1 connections LIMIT_HTTP_CONNECTIONS are served at a time; further ones are closed, those that are
 * there go on, and when one leaves there is room for another. PUMP_LISTENERS_MAX URLs are listened on, one more is
 * refused and named. A configuration of too many URLs, or of too long a list or name, is refused with the reason.
 *
 * LIMIT_HTTP_CONNECTIONS is made small: http.c is compiled into this program with it. (What connections, streams and
 * messages are bounded by: guard.c, front.c, e2e/abuse.sh.) */
#include "daemon/limits.h"
#define LIMIT_HTTP_CONNECTIONS 5
#include "daemon/http.c"
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include "daemon/config.h"
#include "daemon/front.h"
#include "daemon/pump_impl.h"
#include "tap.h"

enum { AWAIT_MS = 10000 };

static struct http *http;

/* A new connection that has asked for nothing yet. */
static int dial(void)
{
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd[2];

    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) == 0);
    REQUIRE(fcntl(fd[1], F_SETFL, O_NONBLOCK) == 0); /* as the pump gives it */
    http_add(http, fd[1], (struct sockaddr *)&from, sizeof from);
    return fd[0];
}

/* Asks for /version on it; false: it was closed instead. */
static bool answers(int fd)
{
    static const char ask[] = "GET /version HTTP/1.1\r\nHost: x\r\n\r\n";
    struct pollfd p = {fd, POLLIN, 0};
    char answer[4096];
    ssize_t n;

    if (send(fd, ask, sizeof ask - 1, MSG_NOSIGNAL) < 0)
        return false;
    if (poll(&p, 1, AWAIT_MS) != 1)
        return false;
    n = recv(fd, answer, sizeof answer - 1, 0);
    answer[n > 0 ? n : 0] = 0;
    return strstr(answer, "200 OK") != NULL;
}

static void connections(void)
{
    int fd[LIMIT_HTTP_CONNECTIONS + 2], again = -1;

    for (int i = 0; i < LIMIT_HTTP_CONNECTIONS + 2; i++)
        fd[i] = dial();
    for (int i = 0; i < LIMIT_HTTP_CONNECTIONS + 2; i++)
        CHECK(answers(fd[i]) == (i < LIMIT_HTTP_CONNECTIONS));
    for (int i = 0; i < LIMIT_HTTP_CONNECTIONS; i++)
        CHECK(answers(fd[i]));
    (void)close(fd[0]);
    for (int i = 0; i < AWAIT_MS / 10; i++) { /* once it has seen the end of that one */
        again = dial();
        if (answers(again))
            break;
        (void)close(again);
        again = -1;
        (void)poll(NULL, 0, 10);
    }
    CHECK(again >= 0);
    for (int i = 1; i < LIMIT_HTTP_CONNECTIONS + 2; i++)
        (void)close(fd[i]);
    (void)close(again);
}

static void listeners(void)
{
    static char paths[PUMP_LISTENERS_MAX + 1][64];
    struct url urls[PUMP_LISTENERS_MAX + 1];
    struct front_options o = {.rpc = {.threads = 1},
                              .http = {.version = "3.7.1", .cluster_version = "3.7.0"}};
    char dir[] = "/tmp/cairn-limits-XXXXXX";
    const struct url *bad;
    struct front *f;

    REQUIRE(mkdtemp(dir) != NULL);
    for (int i = 0; i <= PUMP_LISTENERS_MAX; i++) {
        (void)snprintf(paths[i], sizeof paths[i], "%s/%d", dir, i);
        urls[i] = (struct url){.scheme = URL_UNIX, .text = paths[i], .path = paths[i]};
    }
    o.listen = &(struct url_list){urls, PUMP_LISTENERS_MAX + 1};
    CHECK(front_new(&o, &f, &bad) == -E2BIG);
    CHECK(bad == &urls[PUMP_LISTENERS_MAX]);
    o.listen = &(struct url_list){urls, PUMP_LISTENERS_MAX};
    CHECK(front_new(&o, &f, &bad) == 0);
    front_free(f);
    for (int i = 0; i <= PUMP_LISTENERS_MAX; i++)
        (void)unlink(paths[i]);
    CHECK(rmdir(dir) == 0);
}

static const char *take_value(void *ctx, const char *key, const char *value)
{
    (void)ctx, (void)key, (void)value;
    return NULL;
}

static const char *yaml(struct arena *a, const char *before, size_t n, const char *after)
{
    char *text = arena_alloc(a, strlen(before) + n + strlen(after) + 1);
    size_t at = strlen(before);

    memcpy(text, before, at);
    memset(text + at, 'x', n);
    strcpy(text + at + n, after);
    return config_parse_yaml(a, slice_str(text), take_value, NULL);
}

static void configuration(void)
{
    enum { URLS = 64 }; /* URLS_MAX of config_value.c */
    char text[(URLS + 1) * 32];
    struct url_list l;
    const char *bad;
    struct arena a;
    size_t n = 0;

    arena_init(&a, 4 << 20, NULL, 0);
    for (int i = 0; i < URLS; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%shttp://127.0.0.1:%d", i ? "," : "", 1000 + i);
    CHECK(config_parse_urls(&a, text, &l) == NULL && l.n == URLS);
    (void)snprintf(text + n, sizeof text - n, ",http://127.0.0.1:1");
    bad = config_parse_urls(&a, text, &l);
    CHECK(bad && strstr(bad, "too many URLs, at most 64"));
    CHECK(yaml(&a, "", 200, ": v\n") == NULL);
    bad = yaml(&a, "", 300, ": v\n");
    CHECK(bad && strstr(bad, "the key is too long"));
    CHECK(yaml(&a, "k: [a, ", 8000, "]\n") == NULL);
    bad = yaml(&a, "k: [a, ", 8192, "]\n");
    CHECK(bad && strstr(bad, "the list is too long"));
    arena_fini(&a);
}

int main(void)
{
    struct http_options o = {.version = "3.7.1", .cluster_version = "3.7.0"};

    REQUIRE(http_new(&o, &http) == 0);
    REQUIRE(http_start(http) == 0);
    TEST(connections);
    TEST(listeners);
    TEST(configuration);
    http_stop(http);
    http_free(http);
    return tap_done();
}
