/* SPDX-License-Identifier: Apache-2.0 */
/* datadir.c - proves that a directory is made, locked, switched and refused as datadir.h says, and that a refusal
 * leaves what was there as it was. */
#include "daemon/datadir.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "tap.h"

static char root[] = "/tmp/cairn-datadir-XXXXXX";
static char path[256];
static struct datadir d;

static void in_dir(const char *name)
{
    (void)snprintf(path, sizeof path, "%s/%s", root, name);
}

static void touch(const char *file)
{
    char p[512];
    int fd;

    (void)snprintf(p, sizeof p, "%s/%s", path, file);
    fd = open(p, O_WRONLY | O_CREAT, 0600);
    REQUIRE(fd >= 0);
    (void)close(fd);
}

static bool exists(const char *file)
{
    char p[512];

    (void)snprintf(p, sizeof p, "%s/%s", path, file);
    return access(p, F_OK) == 0;
}

static void fresh_then_again(void)
{
    char base[DATADIR_PATH_BYTES];

    in_dir("deep/fresh");
    REQUIRE(datadir_open(&d, path, "") == 0);
    CHECK(d.fresh && d.base == 1 && d.wal == 1 && exists("CREATING"));
    CHECK(datadir_make_base(&d, 1, base) == 0);
    CHECK(datadir_commit(&d) == 0);
    CHECK(!exists("CREATING") && exists("CURRENT"));
    datadir_close(&d);
    REQUIRE(datadir_open(&d, path, "") == 0);
    CHECK(!d.fresh && d.base == 1);
    CHECK(datadir_make_base(&d, 2, base) == 0 && datadir_switch(&d, 7, 2) == -ESTALE && datadir_switch(&d, 1, 2) == 0 &&
          datadir_remove_base(&d, 1) == 0);
    datadir_close(&d);
    REQUIRE(datadir_open(&d, path, "") == 0);
    CHECK(d.base == 2 && !exists("base-1"));
    CHECK(datadir_make_base(&d, 1, base) == 0 && datadir_make_base(&d, 3, base) == 0 &&
          datadir_make_base(&d, 30, base) == 0);
    touch("base-30/data.mdb");
    touch("base-4x");
    CHECK(mkdir(strcat(strcpy(base, path), "/wal-9"), 0700) == 0);
    datadir_close(&d);
    REQUIRE(datadir_open(&d, path, "") == 0);
    CHECK(datadir_new_base(&d) == 31 && datadir_new_base(&d) == 32 && datadir_new_wal(&d) == 10);
    CHECK(datadir_make_base(&d, 31, base) == 0); /* being made: it stays */
    CHECK(datadir_remove_others(&d) == 0);
    CHECK(exists("base-2") && exists("base-4x") && !exists("base-1") && !exists("base-3") && !exists("base-30"));
    CHECK(exists("base-31") && !exists("wal-9"));
    datadir_close(&d);
}

/* A base that was received: nothing until it is adopted, and current only with its log. */
static void incoming(void)
{
    char base[DATADIR_PATH_BYTES];

    in_dir("incoming");
    REQUIRE(datadir_open(&d, path, "") == 0 && datadir_commit(&d) == 0);
    CHECK(datadir_remove_incoming(&d) == -ENOENT);
    CHECK(datadir_make_incoming(&d, base) == 0);
    touch("incoming/data.mdb");
    CHECK(datadir_make_incoming(&d, base) == 0 && !exists("incoming/data.mdb"));
    touch("incoming/data.mdb");
    datadir_close(&d);
    REQUIRE(datadir_open(&d, path, "") == 0); /* a crash may leave it */
    CHECK(d.base == 1 && d.wal == 1);
    CHECK(datadir_adopt_incoming(&d, 5) == 0 && exists("base-5/data.mdb") && !exists("incoming"));
    CHECK(datadir_switch_both(&d, 5, 6) == 0);
    datadir_close(&d);
    REQUIRE(datadir_open(&d, path, "") == 0);
    CHECK(d.base == 5 && d.wal == 6);
    datadir_close(&d);
}

static void unfinished_creation(void)
{
    char base[DATADIR_PATH_BYTES];

    in_dir("unfinished");
    REQUIRE(datadir_open(&d, path, "") == 0);
    CHECK(datadir_make_base(&d, 1, base) == 0);
    datadir_close(&d);
    CHECK(datadir_open(&d, path, "") == 0 && d.fresh); /* made anew */
    CHECK(datadir_make_base(&d, 1, base) == 0);
    datadir_close(&d);
}

static void locked(void)
{
    struct datadir other;

    in_dir("locked");
    REQUIRE(datadir_open(&d, path, "") == 0);
    CHECK(datadir_open(&other, path, "") < 0 && strstr(other.error, "in use by another cairnd"));
    datadir_close(&d);
}

static void refused(const char *word)
{
    CHECK(datadir_open(&d, path, "") < 0);
    CHECK(strstr(d.error, word) != NULL);
    if (strstr(d.error, word) == NULL)
        printf("# said: %s\n", d.error);
    CHECK(!exists("CREATING") && !exists("CURRENT.new"));
}

static void foreign(void)
{
    in_dir("foreign");
    (void)mkdir(path, 0700);
    touch("precious");
    refused("not Cairn's (it holds precious)");
    in_dir("etcd");
    (void)mkdir(path, 0700);
    touch("member");
    refused("data directory of etcd");
    in_dir("lostcurrent");
    (void)mkdir(path, 0700);
    touch("base-1");
    refused("CURRENT is missing");
    in_dir("onlypeers");
    (void)mkdir(path, 0700);
    touch("PEERS");
    refused("CURRENT is missing");
    in_dir("open");
    (void)mkdir(path, 0755);
    refused("chmod 700");
    in_dir(".");
    touch("file");
    in_dir("file");
    refused("ot a directory");
}

static void damaged_current(void)
{
    char current[300];
    int fd;
    uint8_t byte;

    in_dir("damaged");
    REQUIRE(datadir_open(&d, path, "") == 0 && datadir_commit(&d) == 0);
    datadir_close(&d);
    (void)snprintf(current, sizeof current, "%s/CURRENT", path);
    fd = open(current, O_RDWR);
    REQUIRE(fd >= 0);
    for (off_t at = 0; pread(fd, &byte, 1, at) == 1; at++) {
        uint8_t flipped = byte ^ 0x10;

        CHECK(pwrite(fd, &flipped, 1, at) == 1);
        if (datadir_open(&d, path, "") == 0) {
            /* Only the line's end of crc may differ without harm. */
            CHECK(d.base == 1 && d.wal == 1);
            datadir_close(&d);
        } else {
            CHECK(strstr(d.error, "CURRENT") != NULL && d.lost);
        }
        CHECK(pwrite(fd, &byte, 1, at) == 1);
    }
    (void)close(fd);
}

/* What is there is numbered, none of it is current. */
static void lost_current(void)
{
    char base[DATADIR_PATH_BYTES];

    in_dir("lost");
    REQUIRE(datadir_open(&d, path, "") == 0 && datadir_make_base(&d, 1, base) == 0 && datadir_commit(&d) == 0);
    CHECK(datadir_make_base(&d, 4, base) == 0 && mkdir(strcat(strcpy(base, path), "/wal-6"), 0700) == 0);
    datadir_close(&d);
    (void)unlink(strcat(strcpy(base, path), "/CURRENT"));
    CHECK(datadir_open(&d, path, "") < 0 && d.lost && strstr(d.error, "CURRENT is missing"));
    CHECK(datadir_open_lost(&d, path, "") == 0 && !d.fresh && d.base == 4 && d.wal == 6 && d.wal_found == 7);
    CHECK(datadir_new_base(&d) == 5 && datadir_new_wal(&d) == 7 && datadir_switch_both(&d, 5, 7) == 0);
    datadir_close(&d);
    CHECK(datadir_open(&d, path, "") == 0 && d.base == 5 && d.wal == 7);
    datadir_close(&d);
    in_dir("not-lost");
    REQUIRE(mkdir(path, 0700) == 0);
    touch("what");
    CHECK(datadir_open(&d, path, "") < 0 && !d.lost);
}

/* The token, or nothing, but never another one. */
static void founded(void)
{
    char file[300], noted[256];
    uint8_t byte;
    int fd;

    in_dir("founded");
    REQUIRE(datadir_open(&d, path, "") == 0 && datadir_note_token(&d, "a token") == 0);
    CHECK(!datadir_token_differs(&d, "a token", noted, sizeof noted));
    CHECK(datadir_token_differs(&d, "another", noted, sizeof noted) && strcmp(noted, "a token") == 0);
    (void)snprintf(file, sizeof file, "%s/FOUNDED", path);
    fd = open(file, O_RDWR);
    REQUIRE(fd >= 0);
    for (off_t at = 0; pread(fd, &byte, 1, at) == 1; at++) {
        uint8_t flipped = byte ^ 0x10;

        CHECK(pwrite(fd, &flipped, 1, at) == 1 && !datadir_token_differs(&d, "a token", noted, sizeof noted));
        CHECK(pwrite(fd, &byte, 1, at) == 1);
    }
    for (off_t at = lseek(fd, 0, SEEK_END) - 1; at > 9; at--)
        CHECK(ftruncate(fd, at) == 0 && !datadir_token_differs(&d, "a token", noted, sizeof noted));
    CHECK(ftruncate(fd, 0) == 0 && !datadir_token_differs(&d, "a token", noted, sizeof noted));
    CHECK(pwrite(fd, "as it was once", 14, 0) == 14 && datadir_token_differs(&d, "a token", noted, sizeof noted) &&
          strcmp(noted, "as it was once") == 0 && !datadir_token_differs(&d, noted, noted, sizeof noted));
    (void)close(fd);
    datadir_close(&d);
}

static void wal_elsewhere(void)
{
    char wal[300];

    in_dir("split");
    (void)snprintf(wal, sizeof wal, "%s/split-wal", root);
    REQUIRE(datadir_open(&d, path, wal) == 0 && datadir_commit(&d) == 0);
    CHECK(strcmp(d.wal_root, wal) == 0);
    datadir_close(&d);
    CHECK(datadir_open(&d, path, "") < 0 && strstr(d.error, "start with --wal-dir") && strstr(d.error, wal));
    CHECK(datadir_open(&d, path, wal) == 0);
    datadir_close(&d);
}

/* Damaged parts stay as long as the mark does. */
static bool change_byte(const char *name, off_t at)
{
    int fd = openat(d.fd, name, O_RDWR | O_CLOEXEC);
    char byte;
    bool ok = fd >= 0 && pread(fd, &byte, 1, at) == 1;

    byte ^= 1;
    ok = ok && pwrite(fd, &byte, 1, at) == 1;
    close(fd);
    return ok;
}

static void suspect(void)
{
    in_dir("suspect");
    REQUIRE(datadir_open(&d, path, "") == 0 && datadir_commit(&d) == 0);
    CHECK(datadir_suspicions(&d) == 0 && datadir_trust(&d) == 0);
    CHECK(datadir_suspect(&d) == 0 && datadir_suspicions(&d) == 1);
    CHECK(datadir_suspect(&d) == 0);
    datadir_close(&d);
    REQUIRE(datadir_open(&d, path, "") == 0);
    CHECK(datadir_suspicions(&d) == 2 && datadir_trust(&d) == 0 && datadir_suspicions(&d) == 0);
    touch("SUSPECT"); /* the crash came before its byte */
    CHECK(datadir_suspicions(&d) == 1);
    datadir_close(&d);
}

static void faulty(void)
{
    char base[DATADIR_PATH_BYTES];
    uint64_t fence;
    bool damaged;

    in_dir("faulty");
    REQUIRE(datadir_open(&d, path, "") == 0 && datadir_make_base(&d, 1, base) == 0 && datadir_commit(&d) == 0);
    CHECK(datadir_read_mark(&d, &fence, &damaged) == 0 && fence == 0 && !damaged);
    CHECK(datadir_mark(&d, UINT64_MAX / 2, true) == 0);
    CHECK(datadir_read_mark(&d, &fence, &damaged) == 1 && fence == UINT64_MAX / 2 && damaged);
    CHECK(datadir_mark(&d, 7, false) == 0);
    CHECK(datadir_switch_both(&d, datadir_new_base(&d), 1) == 0);
    CHECK(datadir_remove_others(&d) == 0 && exists("base-1"));
    datadir_close(&d);
    REQUIRE(datadir_open(&d, path, "") == 0);
    CHECK(datadir_read_mark(&d, &fence, &damaged) == 1 && fence == 7 && !damaged);
    CHECK(datadir_unmark(&d) == 0 && datadir_read_mark(&d, &fence, &damaged) == 0);
    CHECK(datadir_remove_others(&d) == 0 && !exists("base-1"));
    /* A bit of the fence: a lower one would let it vote again. */
    CHECK(datadir_mark(&d, 7, false) == 0 && change_byte("FAULTY", 6));
    CHECK(datadir_read_mark(&d, &fence, &damaged) < 0 && strstr(d.error, "FAULTY"));
    touch("FAULTY");
    CHECK(datadir_read_mark(&d, &fence, &damaged) < 0 && strstr(d.error, "FAULTY"));
    datadir_close(&d);
}

int main(void)
{
    char rm[64];

    REQUIRE(mkdtemp(root) != NULL);
    TEST(fresh_then_again);
    TEST(incoming);
    TEST(faulty);
    TEST(suspect);
    TEST(unfinished_creation);
    TEST(locked);
    TEST(foreign);
    TEST(damaged_current);
    TEST(lost_current);
    TEST(founded);
    TEST(wal_elsewhere);
    (void)snprintf(rm, sizeof rm, "rm -rf %s", root);
    (void)!system(rm);
    return tap_done();
}
