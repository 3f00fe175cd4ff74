/* SPDX-License-Identifier: Apache-2.0 */
/* tls.c - proves of TLS over a socket, both sides in this process: bytes arrive as they were sent, however they are
 * cut; a certificate of a stranger, or one that does not name the host, is refused on either side, with the reason in
 * words; files that change are read again, ones that cannot be read leave the old in use, and are named; values are
 * checked; handshakes that stall are bounded in number and memory, and end when all stops.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
#include "daemon/handshake.h"
#include "daemon/limits.h"
#include "daemon/listen.h"
#include "daemon/seam.h"
#include "tap.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define RSS_MAX_BYTES (1024u << 20) /* most of it is the sanitizer's */
#else
#define RSS_MAX_BYTES (64u << 20)
#endif

enum { PATIENCE_MS = 20000, MEGABYTE = 1 << 20, PATH = 300 };

static char dir[] = "/tmp/cairn-tls-XXXXXX";

static uint64_t now_ms(void)
{
    return clock_real()->now_ms(clock_real());
}

/* ---- certificates: each is its own authority ------------------------------------------------------------- */

struct cert {
    char dir[PATH], cert[PATH + 16], key[PATH + 16];
};

static struct cert make_cert(const char *name, const char *host)
{
    const char *hosts[] = {host};
    char text[TLS_TEXT_BYTES];
    struct cert c;

    (void)snprintf(c.dir, sizeof c.dir, "%s/%s", dir, name);
    (void)snprintf(c.cert, sizeof c.cert, "%s/cert.pem", c.dir);
    (void)snprintf(c.key, sizeof c.key, "%s/key.pem", c.dir);
    REQUIRE(tls_make_self(c.dir, hosts, 1, 1, text) == 0);
    return c;
}

static struct tls_ctx *ctx_of(const struct cert *own, const struct cert *trusted)
{
    struct tls_options o = {.cert = own ? own->cert : NULL, .key = own ? own->key : NULL, .trusted_ca = trusted->cert};
    char text[TLS_TEXT_BYTES];
    struct tls_ctx *c = NULL;

    REQUIRE(tls_ctx_new(&o, &c, text) == 0);
    return c;
}

/* ---- a connection ------------------------------------------------------------------------------------------ */

struct pair {
    int fd[2];
    struct tls *client, *server;
    int client_rc, server_rc;
};

static struct pair shake(struct tls_ctx *client, struct tls_ctx *server, const char *host)
{
    struct pair p = {.client_rc = 1, .server_rc = 1};
    uint64_t until = now_ms() + PATIENCE_MS;
    char text[TLS_TEXT_BYTES], byte;

    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, p.fd) == 0);
    REQUIRE(tls_new(client, TLS_CLIENT, p.fd[0], host, &p.client, text) == 0);
    REQUIRE(tls_new(server, TLS_SERVER, p.fd[1], "", &p.server, text) == 0);
    while ((p.client_rc > 0 || p.server_rc > 0) && now_ms() < until) {
        if (p.client_rc > 0)
            p.client_rc = tls_handshake(p.client);
        if (p.server_rc > 0)
            p.server_rc = tls_handshake(p.server);
        if (p.client_rc < 0 || p.server_rc < 0)
            break;
    }
    /* In TLS 1.3 the server looks at a client's certificate last: the client learns of it when it reads. */
    if (p.server_rc < 0 && p.client_rc == 0 && tls_recv(p.client, &byte, 1) < 0 && errno == EPROTO)
        p.client_rc = -EPROTO;
    return p;
}

static void part(struct pair *p)
{
    tls_free(p->client);
    tls_free(p->server);
    (void)close(p->fd[0]);
    (void)close(p->fd[1]);
}

/* ---- the tests ----------------------------------------------------------------------------------------------- */

/* Sends all of from in pieces of any size while the other side reads into to. */
static size_t pour(struct tls *a, struct tls *b, const uint8_t *from, uint8_t *to, size_t n, size_t piece)
{
    size_t sent = 0, got = 0;
    uint64_t until = now_ms() + PATIENCE_MS;

    while (got < n && now_ms() < until) {
        size_t left = n - sent > piece ? piece : n - sent;
        ssize_t rc = left ? tls_send(a, from + sent, left) : 0;

        REQUIRE(rc >= 0 || errno == EAGAIN);
        sent += rc > 0 ? (size_t)rc : 0;
        rc = tls_recv(b, to + got, piece / 3 + 1 < n - got ? piece / 3 + 1 : n - got);
        REQUIRE(rc > 0 || (rc < 0 && errno == EAGAIN));
        got += rc > 0 ? (size_t)rc : 0;
    }
    return got;
}

static void bytes_arrive(void)
{
    struct cert a = make_cert("a", "localhost"), b = make_cert("b", "localhost");
    struct tls_ctx *client = ctx_of(&a, &b), *server = ctx_of(&b, &a);
    struct pair p = shake(client, server, "localhost");
    uint8_t *from = malloc(MEGABYTE), *to = malloc(MEGABYTE), peeked[8];

    REQUIRE(from && to && p.client_rc == 0 && p.server_rc == 0);
    for (size_t i = 0; i < MEGABYTE; i++)
        from[i] = (uint8_t)(i * 2654435761u >> 13);
    for (size_t piece = 7; piece < MEGABYTE; piece = piece * 11 + 3) {
        size_t n = piece < 1000 ? 20000 : MEGABYTE;

        if (piece > 5000)
            tls_read_ahead(p.server);
        CHECK(pour(p.client, p.server, from, to, n, piece) == n && memcmp(from, to, n) == 0);
        CHECK(pour(p.server, p.client, from, to, n, piece) == n && memcmp(from, to, n) == 0);
    }
    /* A look takes nothing, and what follows in another record joins it. */
    CHECK(tls_peek(p.server, peeked, sizeof peeked) < 0 && errno == EAGAIN);
    CHECK(tls_send(p.client, "abc", 3) == 3 && tls_peek(p.server, peeked, sizeof peeked) == 3);
    CHECK(tls_send(p.client, "def", 3) == 3 && tls_peek(p.server, peeked, sizeof peeked) == 6);
    CHECK(memcmp(peeked, "abcdef", 6) == 0 && tls_pending(p.server) == 6);
    CHECK(tls_send(p.client, "ghi", 3) == 3);
    tls_bye(p.client);
    CHECK(tls_recv(p.server, to, 100) == 9 && memcmp(to, "abcdefghi", 9) == 0 && tls_more(p.server));
    CHECK(tls_recv(p.server, to, 100) == 0);
    part(&p);
    tls_ctx_free(client);
    tls_ctx_free(server);
    free(from);
    free(to);
}

static bool says(const struct tls *t, const char *what)
{
    if (strstr(tls_text(t), what))
        return true;
    printf("# said: %s\n", tls_text(t));
    return false;
}

static void strangers_are_refused(void)
{
    struct cert a = make_cert("a", "localhost"), b = make_cert("b", "localhost"), other = make_cert("other", "localhost");
    struct tls_ctx *client = ctx_of(&a, &b), *server = ctx_of(&b, &a);
    struct tls_ctx *nobody = ctx_of(NULL, &b), *doubter = ctx_of(&a, &other), *wrong = ctx_of(&other, &b);
    struct pair p = shake(doubter, server, "localhost"); /* the server's certificate is not trusted */

    CHECK(p.client_rc == -EPROTO && says(p.client, "is refused: self-signed certificate"));
    part(&p);
    p = shake(wrong, server, "localhost"); /* nor the client's */
    CHECK(p.server_rc == -EPROTO && says(p.server, "is refused: self-signed certificate"));
    CHECK(p.client_rc == -EPROTO && says(p.client, "remote error: tls: "));
    part(&p);
    p = shake(nobody, server, "localhost"); /* which must show one */
    CHECK(p.server_rc == -EPROTO && says(p.server, "peer did not return a certificate"));
    part(&p);
    p = shake(client, server, "127.0.0.1"); /* it names another host */
    CHECK(p.client_rc == -EPROTO && says(p.client, "IP address mismatch"));
    part(&p);
    p = shake(client, server, "example.com");
    CHECK(p.client_rc == -EPROTO && says(p.client, "hostname mismatch"));
    part(&p);
    p = shake(client, server, "");
    CHECK(p.client_rc == 0 && p.server_rc == 0);
    part(&p);
    tls_ctx_free(client);
    tls_ctx_free(server);
    tls_ctx_free(nobody);
    tls_ctx_free(doubter);
    tls_ctx_free(wrong);
}

static void only_allowed_names(void)
{
    struct cert a = make_cert("a", "localhost"), b = make_cert("b", "localhost");
    struct tls_options o = {.cert = b.cert, .key = b.key, .trusted_ca = a.cert, .allowed_hostnames = "x.y,z"};
    struct tls_ctx *client = ctx_of(&a, &b), *server = NULL;
    char text[TLS_TEXT_BYTES];
    struct pair p;

    for (int allowed = 0; allowed < 2; allowed++) {
        if (allowed)
            o.allowed_hostnames = "x.y,localhost";
        REQUIRE(tls_ctx_new(&o, &server, text) == 0);
        p = shake(client, server, "localhost");
        CHECK(allowed ? p.server_rc == 0 : p.server_rc == -EPROTO && says(p.server, "client certificate authentication failed"));
        CHECK(allowed ? p.client_rc == 0 : says(p.client, "remote error: tls: bad certificate"));
        part(&p);
        tls_ctx_free(server);
    }
    o.allowed_hostnames = NULL;
    o.allowed_cns = "somebody";
    REQUIRE(tls_ctx_new(&o, &server, text) == 0);
    p = shake(client, server, "localhost");
    CHECK(p.server_rc == -EPROTO);
    part(&p);
    tls_ctx_free(server);
    tls_ctx_free(client);
}

static void copy_file(const char *from, const char *to)
{
    char buffer[8192], part_name[PATH + 32];
    int in = open(from, O_RDONLY), out;
    ssize_t n = read(in, buffer, sizeof buffer);

    (void)snprintf(part_name, sizeof part_name, "%s.new", to);
    out = open(part_name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    REQUIRE(n > 0 && out >= 0 && write(out, buffer, (size_t)n) == n && rename(part_name, to) == 0);
    (void)close(in);
    (void)close(out);
}

static int try(struct tls_ctx *client, struct tls_ctx *server)
{
    struct pair p = shake(client, server, "localhost");
    int rc = p.client_rc ? p.client_rc : p.server_rc;

    part(&p);
    return rc;
}

static void files_are_read_again(void)
{
    struct cert a = make_cert("a", "localhost"), one = make_cert("one", "localhost"), two = make_cert("two", "localhost"),
                used = make_cert("used", "localhost");
    struct tls_ctx *to_one, *to_two, *server;
    char text[TLS_TEXT_BYTES];
    FILE *f;

    copy_file(one.cert, used.cert);
    copy_file(one.key, used.key);
    server = ctx_of(&used, &a);
    to_one = ctx_of(&a, &one);
    to_two = ctx_of(&a, &two);
    CHECK(try(to_one, server) == 0 && try(to_two, server) == -EPROTO);
    copy_file(two.cert, used.cert); /* its key does not fit yet: what was read before stays in use */
    CHECK(try(to_one, server) == 0);
    copy_file(two.key, used.key);
    CHECK(try(to_two, server) == 0 && try(to_one, server) == -EPROTO);
    f = fopen(used.cert, "w");
    REQUIRE(f && fputs("nothing\n", f) >= 0 && fclose(f) == 0);
    CHECK(try(to_two, server) == 0);
    CHECK(tls_ctx_new(&(struct tls_options){.cert = used.cert, .key = used.key}, &to_one, text) == -EINVAL);
    CHECK(strstr(text, used.cert) && strstr(text, "no start line"));
    tls_ctx_free(to_one);
    tls_ctx_free(to_two);
    tls_ctx_free(server);
}

static void revoked_lists_must_be_read(void)
{
    struct cert a = make_cert("a", "localhost"), b = make_cert("b", "localhost");
    char crl[PATH + 16], text[TLS_TEXT_BYTES];
    struct tls_options o = {.cert = b.cert, .key = b.key, .trusted_ca = a.cert, .crl = crl};
    struct tls_ctx *c = NULL;

    (void)snprintf(crl, sizeof crl, "%s/none.crl", dir);
    CHECK(tls_ctx_new(&o, &c, text) == -EINVAL && c == NULL);
    CHECK(strstr(text, "certificate revocation list") && strstr(text, crl) && strstr(text, "No such file"));
}

static const char *refused(struct tls_options o)
{
    static char text[TLS_TEXT_BYTES];
    struct tls_ctx *c = NULL;

    if (tls_ctx_new(&o, &c, text) != 0)
        return text;
    tls_ctx_free(c);
    return "";
}

static void values_are_checked(void)
{
    struct cert a = make_cert("a", "localhost");

#define BAD(what, ...) CHECK(strstr(refused((struct tls_options){.cert = a.cert, .key = a.key, __VA_ARGS__}), what) != NULL)

    CHECK(*refused((struct tls_options){.cert = a.cert, .key = a.key, .cipher_suites = "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305,"
                                                                                     "TLS_AES_128_GCM_SHA256"}) == '\0');
    BAD("unexpected TLS cipher suite \"TLS_NONE\"", .cipher_suites = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_NONE");
    BAD("unexpected TLS version", .min_version = "TLS1.1");
    BAD("/nowhere", .trusted_ca = "/nowhere");
    BAD("must both be given", .client_cert = a.cert);
    BAD("exclude each other", .allowed_cns = "a", .allowed_hostnames = "b");
    CHECK(strstr(refused((struct tls_options){.cert = a.cert}), "must both be given"));
    CHECK(strstr(refused((struct tls_options){.cert = a.cert, .key = "/nowhere"}), "key /nowhere: "));
}

/* ---- the pool -------------------------------------------------------------------------------------------------- */

static _Atomic int n_done, n_late, n_cancelled, n_good;

static void count(struct handshake *h)
{
    atomic_fetch_add(h->err == 0            ? &n_good
                     : h->err == -ECANCELED ? &n_cancelled
                     : h->err == -ETIMEDOUT ? &n_late
                                            : &n_done,
                     1);
}

static size_t rss_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    unsigned long all, mine = 0;

    REQUIRE(f && fscanf(f, "%lu %lu", &all, &mine) == 2);
    (void)fclose(f);
    return mine * 4096;
}

static bool reaches(_Atomic int *n, int want)
{
    uint64_t until = now_ms() + PATIENCE_MS;

    while (atomic_load(n) < want && now_ms() < until)
        (void)poll(NULL, 0, 1);
    return atomic_load(n) == want;
}

static void stalled_handshakes_are_bounded(void)
{
    enum { MORE = 50, ALL = LIMIT_HANDSHAKES + MORE };
    struct cert a = make_cert("a", "localhost"), b = make_cert("b", "localhost");
    struct tls_ctx *client = ctx_of(&a, &b), *server = ctx_of(&b, &a);
    static struct handshake stalled[ALL], ours;
    static int fds[ALL + 1][2];
    struct handshakes *hs = NULL;
    struct tls *t = NULL;
    char text[TLS_TEXT_BYTES];
    size_t before;

    REQUIRE(handshakes_new(&hs) == 0 && handshakes_start(hs) == 0);
    before = rss_bytes();
    for (int i = 0; i < ALL; i++) {
        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds[i]) == 0);
        stalled[i] = (struct handshake){.ctx = server, .side = TLS_SERVER, .fd = fds[i][0], .done = count};
        REQUIRE(write(fds[i][1], "\x16\x03\x01\x02\x00\x01", 6) == 6); /* and then nothing */
        handshakes_begin(hs, &stalled[i]);
    }
    CHECK(reaches(&n_late, MORE)); /* the oldest had to go */
    CHECK(strstr(stalled[0].text, "too many handshakes") != NULL);
    printf("# %d stalled handshakes: %zu kB\n", LIMIT_HANDSHAKES, (rss_bytes() - before) >> 10);
    CHECK(rss_bytes() - before < RSS_MAX_BYTES);
    /* Whoever gets on is served meanwhile, and ours is not thrown out by strangers. */
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds[ALL]) == 0);
    ours = (struct handshake){.ctx = server, .side = TLS_SERVER, .fd = fds[ALL][0], .done = count};
    handshakes_begin(hs, &ours);
    CHECK(handshake_blocking(client, fds[ALL][1], "localhost", PATIENCE_MS, &t, text) == 0);
    CHECK(reaches(&n_good, 1));
    handshakes_stop(hs);
    CHECK(atomic_load(&n_cancelled) + atomic_load(&n_late) == ALL && atomic_load(&n_done) == 0);
    handshakes_free(hs);
    tls_free(t);
    tls_free(ours.tls);
    for (int i = 0; i <= ALL; i++) {
        (void)close(fds[i][0]);
        (void)close(fds[i][1]);
    }
    tls_ctx_free(client);
    tls_ctx_free(server);
}

static void blocking_has_an_end(void)
{
    struct cert a = make_cert("a", "localhost");
    struct tls_ctx *client = ctx_of(&a, &a);
    char text[TLS_TEXT_BYTES];
    struct tls *t = NULL;
    int fd[2];

    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fd) == 0);
    CHECK(handshake_blocking(client, fd[0], "localhost", 50, &t, text) == -ETIMEDOUT && t == NULL);
    REQUIRE(write(fd[1], "HTTP/1.1 400 no\r\n\r\n", 19) == 19);
    CHECK(handshake_blocking(client, fd[0], "localhost", PATIENCE_MS, &t, text) == -EPROTO && t == NULL);
    CHECK(strstr(text, "wrong version number") != NULL);
    (void)close(fd[0]);
    (void)close(fd[1]);
    tls_ctx_free(client);
}

int main(void)
{
    char command[64];

    (void)listen_raise_limit();
    REQUIRE(mkdtemp(dir) != NULL);
    TEST(bytes_arrive);
    TEST(strangers_are_refused);
    TEST(only_allowed_names);
    TEST(files_are_read_again);
    TEST(revoked_lists_must_be_read);
    TEST(values_are_checked);
    TEST(stalled_handshakes_are_bounded);
    TEST(blocking_has_an_end);
    (void)snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK(system(command) == 0);
    return tap_done();
}
