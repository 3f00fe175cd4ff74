/* SPDX-License-Identifier: Apache-2.0 */
/* listen.c - binds and listens.
 *
 * Owner:    the caller's struct listener.
 * Not here: accept (pump.c), what a URL is (config_value.c).
 * Source:   Go's net.Listen for names: the first IPv4 address, else the first; an empty host is every address.
 */
#include "listen.h"
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { SOCKET_FLAGS = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC };

uint64_t listen_raise_limit(void)
{
    struct rlimit r;

    if (getrlimit(RLIMIT_NOFILE, &r))
        return 1024; /* what POSIX systems start with */
    if (r.rlim_cur < r.rlim_max) {
        rlim_t before = r.rlim_cur;

        r.rlim_cur = r.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &r))
            r.rlim_cur = before;
    }
    return r.rlim_cur == RLIM_INFINITY ? UINT64_MAX : r.rlim_cur;
}

static int bind_and_listen(int fd, const struct sockaddr *addr, socklen_t len)
{
    if (bind(fd, addr, len) || listen(fd, SOMAXCONN))
        return -errno;
    return 0;
}

static int resolve(const struct url *u, struct addrinfo **ret_list, const struct addrinfo **ret_best)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list;
    const struct addrinfo *a;
    bool any = u->host == NULL || u->host[0] == '\0';
    int rc = getaddrinfo(any ? "::" : u->host, u->port, &hints, &list);

    if (rc == EAI_SYSTEM)
        return -errno;
    if (rc == EAI_MEMORY)
        return -ENOMEM;
    if (rc)
        return -EHOSTUNREACH;
    for (a = list; a && a->ai_family != AF_INET; a = a->ai_next)
        ;
    *ret_list = list;
    *ret_best = a ? a : list;
    return 0;
}

static int open_tcp(const struct url *u, struct listener *l)
{
    struct addrinfo *list = NULL;
    const struct addrinfo *a = NULL;
    int err = resolve(u, &list, &a), one = 1;

    if (err || a == NULL)
        return err ? err : -EHOSTUNREACH;
    l->fd = socket(a->ai_family, SOCKET_FLAGS, 0);
    if (l->fd < 0) {
        err = -errno;
    } else {
        (void)setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one); /* a restart need not wait for TIME_WAIT */
        err = bind_and_listen(l->fd, a->ai_addr, a->ai_addrlen);
    }
    freeaddrinfo(list);
    return err;
}

/* True when the file is a socket that nobody listens on: left by a process that was killed. */
static bool abandoned(const struct sockaddr_un *addr)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct stat st;
    bool dead;

    if (fd < 0)
        return false;
    dead = lstat(addr->sun_path, &st) == 0 && S_ISSOCK(st.st_mode) &&
           connect(fd, (const struct sockaddr *)addr, sizeof *addr) && errno == ECONNREFUSED;
    (void)close(fd); /* nothing was sent */
    return dead;
}

static int open_unix(const struct url *u, struct listener *l)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    size_t n = strlen(u->path);
    int err;

    if (n >= sizeof addr.sun_path)
        return -ENAMETOOLONG;
    memcpy(addr.sun_path, u->path, n + 1);
    l->fd = socket(AF_UNIX, SOCKET_FLAGS, 0);
    if (l->fd < 0)
        return -errno;
    err = bind_and_listen(l->fd, (const struct sockaddr *)&addr, sizeof addr);
    if (err == -EADDRINUSE && abandoned(&addr) && unlink(addr.sun_path) == 0)
        err = bind_and_listen(l->fd, (const struct sockaddr *)&addr, sizeof addr);
    if (err == 0)
        memcpy(l->path, u->path, n + 1);
    return err;
}

int listener_open(const struct url *u, struct listener *ret_listener)
{
    struct listener l = {.fd = -1, .url = u};
    int err;

    l.tls = url_is_tls(u);
    l.plain = !l.tls;
    err = url_is_unix(u) ? open_unix(u, &l) : open_tcp(u, &l);
    if (err) {
        listener_close(&l);
        return err;
    }
    *ret_listener = l;
    return 0;
}

static bool same(const char *a, const char *b)
{
    return strcmp(a ? a : "", b ? b : "") == 0;
}

/* Port 0 is another one each time. */
static bool same_address(const struct url *a, const struct url *b)
{
    return url_is_unix(a) == url_is_unix(b) && same(a->host, b->host) && same(a->port, b->port) &&
           same(a->path, b->path) && !same(a->port, "0");
}

int listeners_open(const struct url_list *urls, struct listener **ret_listeners, size_t *ret_n,
                   const struct url **ret_bad)
{
    struct listener *list = calloc(urls->n + 1, sizeof *list);
    size_t n = 0, *at = calloc(urls->n + 1, sizeof *at); /* which listener each URL has */
    int err = list && at ? 0 : -ENOMEM;

    for (size_t i = 0; i < urls->n && err == 0; i++) {
        const struct url *u = &urls->urls[i];
        size_t k = 0;

        while (k < i && !same_address(u, &urls->urls[k]))
            k++;
        at[i] = k < i ? at[k] : n;
        if (k < i) {
            list[at[i]].tls |= url_is_tls(u);
            list[at[i]].plain |= !url_is_tls(u);
            continue;
        }
        err = listener_open(u, &list[n]);
        if (err)
            *ret_bad = u;
        n += err == 0;
    }
    free(at);
    *ret_listeners = list;
    *ret_n = list ? n : 0;
    return err;
}

void listener_close(struct listener *l)
{
    if (l->fd >= 0)
        (void)close(l->fd); /* a listening socket holds nothing that could be lost */
    l->fd = -1;
    if (l->path[0])
        (void)unlink(l->path); /* somebody else may have removed it */
    l->path[0] = '\0';
}

unsigned listener_port(const struct listener *l)
{
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        struct sockaddr_un un;
    } addr;
    socklen_t len = sizeof addr;

    if (getsockname(l->fd, &addr.any, &len))
        return 0;
    if (addr.any.sa_family == AF_INET)
        return ntohs(addr.in.sin_port);
    return addr.any.sa_family == AF_INET6 ? ntohs(addr.in6.sin6_port) : 0;
}
