/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: of HTTP/1.1 connections LIMIT_HTTP_CONNECTIONS are served at a time; further ones are closed, those that are
 * there go on, and when one leaves there is room for another.
 *
 * The limit is made small: http.c is compiled into this program with it. */
#include "daemon/limits.h"
#define LIMIT_HTTP_CONNECTIONS 5
#include "daemon/http.c"
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
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

int main(void)
{
    struct http_options o = {.version = "3.7.1", .cluster_version = "3.7.0"};

    REQUIRE(http_new(&o, &http) == 0);
    REQUIRE(http_start(http) == 0);
    TEST(connections);
    http_stop(http);
    http_free(http);
    return tap_done();
}
