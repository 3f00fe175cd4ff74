/* SPDX-License-Identifier: Apache-2.0 */
/* bootstrap_ask.c - proves whom a member asks that lost its store: the members that DIR/PEERS names first, then whom
 * --initial-cluster names besides, itself never, nobody twice; that only an answer of its own cluster which lists it is
 * taken, and one that does not list it is told apart; that it waits for them, but for nobody whom it would only know by
 * an old flag; that a file of another member or cluster, or a damaged one, is as good as none. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
#include "daemon/bootstrap.h"
#include "daemon/datadir_peers.h"
#include "daemon/log.h"
#include "tap.h"

enum { CLUSTER = 100, SELF = 1, OTHER_CLUSTER = 200 };

#define A "http://127.0.0.1:1"
#define B "http://127.0.0.1:2"
#define C "http://127.0.0.1:3"
#define D "http://127.0.0.1:4"
#define E "http://127.0.0.1:5"

static char root[] = "/tmp/cairn-ask-XXXXXX";
static struct bootstrap b;
static struct config c;
static char asked[1024]; /* the last digits of the ports, in order; a wait is '.' */
static struct {
    uint64_t cluster; /* 0: nobody is there */
    bool unlisted;
    unsigned after; /* waits */
} at[10]; /* by port */
static unsigned waits, patience;

static const char *ask(void *ctx, struct arena *a, const struct roster *r, struct bootstrap_cluster *ret)
{
    static const char *const url[] = {A};
    static const struct roster_known two[] = {{SELF, url, 1}, {2, url, 1}};
    static bool started[] = {true, false};

    (void)ctx;
    REQUIRE(arena_alloc(a, 8000) != NULL && strlen(asked) + 3 < sizeof asked);
    for (size_t i = 0; i < r->n; i++) {
        for (size_t k = 0; k < r->members[i].urls.n; k++) {
            unsigned port = (unsigned)atoi(r->members[i].urls.urls[k].port);

            (void)snprintf(asked + strlen(asked), 2, "%u", port % 10);
            if (at[port % 10].cluster == 0 || waits < at[port % 10].after)
                continue;
            *ret = (struct bootstrap_cluster){.id = at[port % 10].cluster, .members = (struct roster_known *)(uintptr_t)two,
                                              .started = started, .n = 2};
            if (at[port % 10].unlisted)
                ret->members++, ret->started++, ret->n--;
            return NULL;
        }
    }
    return "nobody";
}

static bool wait_a_while(void *ctx)
{
    (void)ctx;
    (void)strncat(asked, ".", sizeof asked - strlen(asked) - 1);
    return waits++ < patience;
}

static void note(uint64_t cluster, uint64_t self, const struct roster_known *members, size_t n)
{
    struct datadir_peers p = {cluster, self, members, n};

    REQUIRE(datadir_write_peers(&b.dir, &p) == 0);
}

/* What it says; the flags are those of a member whose name is a. */
static int ask_with(const char *initial_cluster, bool wait)
{
    const char *why;
    int rc;

    arena_fini(&c.arena);
    c = (struct config){.name = "a", .initial_cluster = initial_cluster, .initial_cluster_token = ""};
    arena_init(&c.arena, 1 << 20, NULL, 0);
    REQUIRE(config_parse_urls(&c.arena, A, &c.advertise_peer) == NULL);
    *asked = '\0';
    waits = 0;
    b.running = (struct bootstrap_cluster){0};
    rc = bootstrap_ask_others(&b, &c, wait, &why);
    CHECK(rc == 0 || why);
    CHECK((rc == 0 || rc == -ESRCH) == (b.running.n > 0));
    return rc;
}

static void nobody_is_there(void)
{
    memset(at, 0, sizeof at);
}

static const char *const a_url[] = {A}, *const b_url[] = {B}, *const bd_urls[] = {B, D}, *const odd[] = {"what is this", C};

static void the_file_then_the_flag(void)
{
    const struct roster_known known[] = {{SELF, a_url, 1}, {2, bd_urls, 2}, {3, odd, 2}};

    nobody_is_there();
    CHECK(ask_with("", false) == -ENOENT && strcmp(asked, "") == 0);
    CHECK(ask_with("a=" A ",c=" C ",b=" B, false) == -EHOSTUNREACH && strcmp(asked, "23") == 0);
    note(CLUSTER, SELF, known, 3);
    CHECK(ask_with("", false) == -EHOSTUNREACH && strcmp(asked, "243") == 0);
    CHECK(ask_with("a=" A ",b=" B ",e=" E, false) == -EHOSTUNREACH && strcmp(asked, "2435") == 0);
    CHECK(ask_with("a=" E ",x=" A ",b=" B, false) == -EHOSTUNREACH && strcmp(asked, "243") == 0);
    CHECK(ask_with("nonsense", false) == -EHOSTUNREACH && strcmp(asked, "243") == 0);
    at[5].cluster = CLUSTER;
    CHECK(ask_with("a=" A ",b=" B ",e=" E, false) == 0 && b.running.id == CLUSTER && b.running.n == 2);
    CHECK(b.running.members[0].id == SELF && strcmp(b.running.members[1].urls[0], A) == 0 && b.running.started[0] &&
          !b.running.started[1]);
    at[2].cluster = CLUSTER;
    CHECK(ask_with("a=" A ",b=" B ",e=" E, true) == 0 && strcmp(asked, "2") == 0);
}

static void whose_answer_is_taken(void)
{
    nobody_is_there();
    at[2].cluster = OTHER_CLUSTER;
    CHECK(ask_with("", false) == -EHOSTUNREACH && strcmp(asked, "23") == 0);
    at[3].cluster = CLUSTER;
    CHECK(ask_with("", false) == 0 && b.running.id == CLUSTER);
    at[3].unlisted = true;
    CHECK(ask_with("", true) == -ESRCH && strcmp(asked, "23") == 0);
    at[5].cluster = CLUSTER;
    CHECK(ask_with("e=" E, true) == 0 && strcmp(asked, "235") == 0);
}

static void waiting(void)
{
    const struct roster_known alone = {SELF, a_url, 1};

    nobody_is_there();
    patience = 3;
    CHECK(ask_with("", true) == -EHOSTUNREACH && strcmp(asked, "243.243.243.243.") == 0);
    at[3].cluster = CLUSTER;
    at[3].after = 2;
    CHECK(ask_with("", true) == 0 && strcmp(asked, "243.243.243") == 0);
    at[3].cluster = OTHER_CLUSTER;
    at[3].after = 0;
    patience = 200; /* however often that answers, it costs no memory of the configuration's */
    CHECK(ask_with("", true) == -EHOSTUNREACH && waits == patience + 1);
    note(CLUSTER, SELF, &alone, 1);
    CHECK(ask_with("", true) == -ENOENT && strcmp(asked, "") == 0);
    CHECK(ask_with("a=" A ",b=" B, true) == -EHOSTUNREACH && strcmp(asked, "2") == 0);
    at[2].cluster = CLUSTER;
    CHECK(ask_with("a=" A ",b=" B, true) == 0);
}

static void files_that_say_nothing(void)
{
    const struct roster_known known[] = {{SELF, a_url, 1}, {2, b_url, 1}};
    int fd;

    nobody_is_there();
    note(CLUSTER, SELF + 1, known, 2);
    CHECK(ask_with("", false) == -ENOENT && ask_with("c=" C, false) == -EHOSTUNREACH && strcmp(asked, "3") == 0);
    note(OTHER_CLUSTER, SELF, known, 2);
    CHECK(ask_with("", false) == -ENOENT && ask_with("c=" C, false) == -EHOSTUNREACH && strcmp(asked, "3") == 0);
    note(CLUSTER, SELF, known, 2);
    CHECK(ask_with("", false) == -EHOSTUNREACH && strcmp(asked, "2") == 0);
    fd = openat(b.dir.fd, "PEERS", O_WRONLY);
    REQUIRE(fd >= 0 && pwrite(fd, "x", 1, 20) == 1);
    (void)close(fd);
    CHECK(ask_with("", false) == -ENOENT && ask_with("c=" C, false) == -EHOSTUNREACH && strcmp(asked, "3") == 0);
}

int main(void)
{
    b = (struct bootstrap){.cluster_id = CLUSTER, .member_id = SELF, .ask = ask, .wait = wait_a_while};
    log_set_level(LOG_LEVEL_FATAL);
    REQUIRE(mkdtemp(root) != NULL && datadir_open(&b.dir, root, "") == 0 && datadir_commit(&b.dir) == 0);
    TEST(the_file_then_the_flag);
    TEST(whose_answer_is_taken);
    TEST(waiting);
    TEST(files_that_say_nothing);
    arena_fini(&c.arena);
    (void)unlinkat(b.dir.fd, "PEERS", 0);
    (void)unlinkat(b.dir.fd, "CURRENT", 0);
    datadir_close(&b.dir);
    (void)rmdir(root);
    return tap_done();
}
