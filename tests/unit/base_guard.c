/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: a fatal signal inside LMDB, or in what LMDB has called, is told from one in our own code; and a base is read
 * whole by a child process, which says sound, says what is damaged, or crashes on it, which counts as damage. */
#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../../daemon/base.h"
#include "../tap.h"

enum { INSIDE = 10, OUTSIDE = 11, PAGE = 4096 };

static void on_fatal(int sig, siginfo_t *info, void *uc)
{
    (void)info;
    _exit(base_guard_struck(sig, uc) ? INSIDE : OUTSIDE);
}

/* In a child: what the handler says of what crash() does. */
static int verdict(void (*crash)(void))
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGABRT};
    struct sigaction sa = {.sa_sigaction = on_fatal, .sa_flags = SA_SIGINFO | SA_NODEFER};
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        base_guard_init();
        for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
            sigaction(signals[i], &sa, NULL);
        crash();
        _exit(0);
    }
    REQUIRE(pid > 0 && waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void *volatile nowhere = (void *)16;

static void crash_in_lmdb(void)
{
    (void)mdb_env_get_maxkeysize(nowhere);
    (void)mdb_env_info(nowhere, nowhere); /* the one of the two that looks */
}

static void abort_below_lmdb(MDB_env *env, const char *text)
{
    (void)env, (void)text;
    abort();
}

static int compare(const MDB_val *a, const MDB_val *b)
{
    (void)a, (void)b;
    abort_below_lmdb(NULL, NULL);
    return 0;
}

static char dir[64];

/* LMDB calls us, and we abort: the program counter is in libc, LMDB stands on the stack. */
static void crash_below_lmdb(void)
{
    MDB_val a = {1, "a"}, b = {1, "b"};
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi dbi;

    if (mdb_env_create(&env) || mdb_env_open(env, dir, 0, 0600) || mdb_txn_begin(env, NULL, 0, &txn) ||
        mdb_dbi_open(txn, NULL, 0, &dbi))
        return;
    (void)mdb_set_compare(txn, dbi, compare);
    (void)mdb_put(txn, dbi, &a, &a, 0);
    (void)mdb_put(txn, dbi, &b, &b, 0);
}

static void crash_of_ours(void)
{
    *(volatile int *)nowhere = 1;
}

static void assertion_of_ours(void)
{
    abort();
}

static void where(void)
{
    snprintf(dir, sizeof dir, "/var/tmp/cairn-guard-XXXXXX");
    REQUIRE(mkdtemp(dir) != NULL);
    CHECK(verdict(crash_in_lmdb) == INSIDE);
    CHECK(verdict(crash_below_lmdb) == INSIDE);
    CHECK(verdict(crash_of_ours) == OUTSIDE);
    CHECK(verdict(assertion_of_ours) == OUTSIDE);
}

static struct base_options options(void)
{
    return (struct base_options){.path = dir, .map_bytes = 1 << 30, .readers_max = 8, .no_sync = true};
}

static void spoil(off_t at, const void *bytes, size_t n)
{
    char path[100];
    int fd;

    snprintf(path, sizeof path, "%s/data.mdb", dir);
    fd = open(path, O_RDWR | O_CLOEXEC);
    REQUIRE(fd >= 0 && pwrite(fd, bytes, n, at) == (ssize_t)n);
    close(fd);
}

static void apart(void)
{
    struct base_options o;
    char what[100] = "", path[100];
    uint16_t lower = 65534; /* a page with more entries than it can have */

    snprintf(dir, sizeof dir, "/var/tmp/cairn-apart-XXXXXX");
    REQUIRE(mkdtemp(dir) != NULL);
    o = options();
    REQUIRE(base_create(&o, 1, 2, SLICE_NONE) == 0);
    CHECK(base_check_apart(&o, what, sizeof what) == 0);
    for (off_t page = 2; page < 8; page++) {
        uint16_t was, flags;
        int fd;

        snprintf(path, sizeof path, "%s/data.mdb", dir);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        REQUIRE(fd >= 0);
        if (pread(fd, &was, 2, page * PAGE + 12) == 2 && pread(fd, &flags, 2, page * PAGE + 10) == 2 && (flags & 2)) {
            int err;

            spoil(page * PAGE + 12, &lower, 2);
            err = base_check_apart(&o, what, sizeof what);
            CHECK(err == 0 || (err == -EUCLEAN && *what)); /* 0: a page nobody uses */
            spoil(page * PAGE + 12, &was, 2);
            CHECK(base_check_apart(&o, what, sizeof what) == 0);
        }
        close(fd);
    }
    spoil(40, &lower, 2);
    CHECK(base_check_apart(&o, what, sizeof what) == -EUCLEAN);
    snprintf(path, sizeof path, "%s/data.mdb", dir);
    REQUIRE(unlink(path) == 0);
    CHECK(base_check_apart(&o, what, sizeof what) == -EUCLEAN);
}

int main(void)
{
    TEST(where);
    TEST(apart);
    return tap_done();
}
