/* SPDX-License-Identifier: Apache-2.0 */
/* datadir_peers.c - proves that DIR/PEERS says what was written, whole or not at all: cut anywhere, or changed in any
 * byte, it is "not known", and so is one of another format; that it is written only when it says something else; that
 * more than fits, and what would break a line, is left out and the rest stays readable. */
#include "daemon/datadir_peers.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/crc32c.h"
#include "daemon/limits.h"
#include "tap.h"

static char root[] = "/tmp/cairn-peers-XXXXXX";
static char file[256], text[LIMIT_PEERS_FILE_BYTES + 256];
static struct datadir d;
static struct arena a;
static struct datadir_peers got;

static const char *const one[] = {"http://127.0.0.1:2380"};
static const char *const two[] = {"http://10.0.0.2:2380", "unix:///a path/with spaces"};
static const struct roster_known members[] = {
    {UINT64_C(0x8211f1d0f64f3269), one, 1}, {UINT64_C(0xfffffffffffffff1), two, 2}, {7, NULL, 0}};
static const struct datadir_peers three = {UINT64_C(0x14e2fbbbf0ccf6ea), UINT64_C(0x8211f1d0f64f3269), members, 3};

static size_t get_text(void)
{
    int fd = open(file, O_RDONLY);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);

    REQUIRE(fd >= 0 && n > 0);
    (void)close(fd);
    text[n] = '\0';
    return (size_t)n;
}

static void set_text(const char *bytes, size_t n)
{
    int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    REQUIRE(fd >= 0 && write(fd, bytes, n) == (ssize_t)n);
    (void)close(fd);
}

static int again(void)
{
    arena_fini(&a);
    got = (struct datadir_peers){0};
    return datadir_read_peers(&d, &a, &got);
}

static bool same(const struct datadir_peers *x, const struct datadir_peers *y)
{
    if (x->cluster_id != y->cluster_id || x->member_id != y->member_id || x->n != y->n)
        return false;
    for (size_t i = 0; i < x->n; i++) {
        if (x->members[i].id != y->members[i].id || x->members[i].n_urls != y->members[i].n_urls)
            return false;
        for (size_t k = 0; k < x->members[i].n_urls; k++)
            if (strcmp(x->members[i].urls[k], y->members[i].urls[k]) != 0)
                return false;
    }
    return true;
}

static void round_trip(void)
{
    static const struct datadir_peers nobody = {1, 2, NULL, 0};

    CHECK(again() == -ENOENT);
    CHECK(datadir_write_peers(&d, &three) == 0 && again() == 0 && same(&got, &three));
    CHECK(datadir_write_peers(&d, &nobody) == 0 && again() == 0 && same(&got, &nobody));
    CHECK(datadir_write_peers(&d, &three) == 0);
    (void)get_text();
    CHECK(strcmp(text, "peers 1\ncluster 14e2fbbbf0ccf6ea\nself 8211f1d0f64f3269\nmember 8211f1d0f64f3269\n"
                       "url http://127.0.0.1:2380\nmember fffffffffffffff1\nurl http://10.0.0.2:2380\n"
                       "url unix:///a path/with spaces\nmember 7\ncrc 6094ebd8\n") == 0);
}

static void is_written_when_it_differs(void)
{
    struct datadir_peers less = three;
    struct stat before, after;

    REQUIRE(datadir_write_peers(&d, &three) == 0 && stat(file, &before) == 0);
    CHECK(datadir_write_peers(&d, &three) == 0 && stat(file, &after) == 0 && before.st_ino == after.st_ino &&
          before.st_ctim.tv_nsec == after.st_ctim.tv_nsec);
    less.n = 1;
    CHECK(datadir_write_peers(&d, &less) == 0 && again() == 0 && same(&got, &less));
    set_text("x", 1);
    CHECK(again() == -EUCLEAN && datadir_write_peers(&d, &less) == 0 && again() == 0 && same(&got, &less));
    CHECK(datadir_write_peers(&d, &three) == 0);
}

static void each_cut(void)
{
    size_t n = get_text();

    for (size_t i = 0; i < n; i++) {
        set_text(text, i);
        CHECK(again() == -EUCLEAN);
    }
    text[n] = '\n';
    set_text(text, n + 1);
    CHECK(again() == -EUCLEAN);
    set_text(text, n);
    CHECK(again() == 0 && same(&got, &three));
}

static void each_byte(void)
{
    size_t n = get_text();

    for (size_t i = 0; i < n; i++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            text[i] = (char)(text[i] ^ (1 << bit));
            set_text(text, n);
            CHECK(again() == -EUCLEAN);
            text[i] = (char)(text[i] ^ (1 << bit));
        }
    }
    set_text(text, n);
    CHECK(again() == 0 && same(&got, &three));
}

/* Lines of ours under a crc of ours. */
static int read_lines(const char *lines)
{
    char whole[512];
    int n = snprintf(whole, sizeof whole, "%scrc %08x\n", lines, crc32c(0, lines, strlen(lines)));

    set_text(whole, (size_t)n);
    return again();
}

static void formats(void)
{
    CHECK(read_lines("peers 1\ncluster 1\nself 2\n") == 0 && got.cluster_id == 1 && got.member_id == 2 && got.n == 0);
    CHECK(read_lines("peers 2\ncluster 1\nself 2\n") == -EPROTONOSUPPORT);
    CHECK(read_lines("peers 2\nwhatever it is\n") == -EPROTONOSUPPORT);
    CHECK(read_lines("") == -EUCLEAN);
    CHECK(read_lines("cairn 1\nbase 1\nwal 1 -\n") == -EUCLEAN);
    CHECK(read_lines("peers 1\ncluster 1\n") == -EUCLEAN);
    CHECK(read_lines("peers 1\ncluster \nself 2\n") == -EUCLEAN);
    CHECK(read_lines("peers 1\ncluster 1\nself 2\nurl http://a:1\n") == -EUCLEAN);
    CHECK(read_lines("peers 1\ncluster 1\nself 2\nmember 3\nurl http://a:1") == -EUCLEAN);
    CHECK(read_lines("peers 1\ncluster 1\nself 2\nmember 3x\n") == -EUCLEAN);
    CHECK(read_lines("peers 1\ncluster 1\nself 2\nmember 3\nshoe 4\n") == -EUCLEAN);
    CHECK(read_lines("peers 1\ncluster 1\nself 2\nmember 3\nurl http://a:1\nurl \nmember 4\n") == 0 && got.n == 2 &&
          got.members[0].n_urls == 2 && got.members[1].id == 4);
}

/* What of this many URLs is found again. */
static void more_than_fits(void)
{
    enum { URLS = 4000 };
    static const char *urls[URLS];
    static const char *const lines[] = {"http://a:1\nmember 9", "http://b:1"};
    struct roster_known many[] = {{1, one, 1}, {2, urls, URLS}, {3, lines, 2}};
    struct datadir_peers p = {5, 1, many, 3};

    for (int i = 0; i < URLS; i++)
        urls[i] = "http://a-host.example.org:2380";
    CHECK(datadir_write_peers(&d, &p) == 0 && again() == 0 && got.n >= 2 && got.members[0].n_urls == 1);
    CHECK(got.members[1].n_urls > 1000 && got.members[1].n_urls < URLS && get_text() <= LIMIT_PEERS_FILE_BYTES);
    many[1].n_urls = 1;
    CHECK(datadir_write_peers(&d, &p) == 0 && again() == 0 && got.n == 3 && got.members[2].n_urls == 1);
    CHECK(strcmp(got.members[2].urls[0], "http://b:1") == 0);
    memset(text, 'x', sizeof text);
    set_text(text, sizeof text);
    CHECK(again() == -EUCLEAN);
}

int main(void)
{
    REQUIRE(mkdtemp(root) != NULL && datadir_open(&d, root, "") == 0 && datadir_commit(&d) == 0);
    (void)snprintf(file, sizeof file, "%s/PEERS", root);
    arena_init(&a, 1 << 20, NULL, 0);
    TEST(round_trip);
    TEST(is_written_when_it_differs);
    TEST(each_cut);
    TEST(each_byte);
    TEST(formats);
    TEST(more_than_fits);
    arena_fini(&a);
    datadir_close(&d);
    (void)unlink(file);
    (void)snprintf(file, sizeof file, "%s/CURRENT", root);
    (void)unlink(file);
    (void)rmdir(root);
    return tap_done();
}
