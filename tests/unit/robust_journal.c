/* SPDX-License-Identifier: Apache-2.0 */
/* robust_journal.c - the reader of logs that the checker of histories uses (tests/robust/journal.c, shares nothing with
 * the daemon) is tried on logs that the daemon has written.
 *
 * Proves: it finds what was appended, what was cut off again, and the hard state, over segments, cuts, releases and
 * reopening; and any changed byte of a log makes it complain. SEED=n repeats a run.
 */
#include "../robust/journal.c"
#include <fcntl.h>
#include <unistd.h>
#include "daemon/wal.h"
#include "tap.h"

enum { SEGMENT = 16 << 10, BATCHES = 120 };

static char root[64], data[80];
static uint64_t seed;
static struct journal model;
static struct disk *disk;
static struct wal *wal;
static struct wal_state state;

static uint64_t below(uint64_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (seed >> 11) % n;
}

static struct wal_options options(void)
{
    return (struct wal_options){
        .disk = disk, .dir = "wal-7", .segment_bytes = SEGMENT, .cluster_id = 0xc1, .member_id = 0x11};
}

static void reopen(void)
{
    struct wal_options o = options();
    char error[300] = "";

    if (wal)
        wal_close(wal);
    REQUIRE(wal_open(&o, &wal, &state, error, sizeof error) == 0);
}

/* One batch: some entries, mostly at the end, at times in the place of what is not committed. */
static void append(void)
{
    struct entry *entries[6];
    size_t n = below(7);
    uint64_t first = journal_last(&model) + 1;

    if (below(6) == 0) {
        model.term += 1 + below(3);
        model.vote = below(4);
        if (n && first > model.commit + 1)
            first -= below(first - model.commit);
    }
    for (size_t i = 0; i < n; i++) {
        entries[i] = entry_new(below(5) ? below(300) : 0);
        REQUIRE(entries[i]);
        entries[i]->index = first + i;
        entries[i]->term = model.term;
        for (uint32_t k = 0; k < entries[i]->len; k++)
            entries[i]->payload[k] = (uint8_t)below(256);
        journal_add(&model, first + i, model.term, slice_of(entries[i]->payload, entries[i]->len));
    }
    model.commit += below(journal_last(&model) - model.commit + 1);
    state.term = model.term;
    state.vote = model.vote;
    REQUIRE(wal_append(wal, entries, n, &state, model.commit) == 0);
    REQUIRE(wal_sync(wal) == 0);
    REQUIRE(wal_idle(wal) == 0);
    for (size_t i = 0; i < n; i++)
        entry_unref(entries[i]);
}

static void make_log(unsigned batches)
{
    struct wal_state hard = {.term = 3, .vote = 2, .commit = 9};
    struct wal_options o;
    char path[120];
    FILE *f;

    (void)snprintf(root, sizeof root, "/tmp/robust-journal-XXXXXX");
    REQUIRE(mkdtemp(root));
    REQUIRE(chdir(root) == 0);
    REQUIRE(disk_real_new(root, &disk) == 0);
    (void)snprintf(data, sizeof data, "%s", root);
    (void)snprintf(path, sizeof path, "%s/CURRENT", data);
    f = fopen(path, "we");
    REQUIRE(f);
    (void)fputs("cairn 1\nbase 3\nwal 7 -\ncrc 00000000\n", f);
    REQUIRE(fclose(f) == 0);
    journal_fini(&model);
    model = (struct journal){.base = 9, .term = 3, .vote = 2, .commit = 9};
    o = options();
    REQUIRE(wal_create(&o, 9, 3, &hard) == 0);
    reopen();
    for (unsigned i = 0; i < batches; i++) {
        append();
        if (below(40) == 0)
            reopen();
    }
}

static void end_log(void)
{
    char command[100];

    wal_close(wal);
    wal = NULL;
    disk_real_free(disk);
    REQUIRE(chdir("/") == 0);
    (void)snprintf(command, sizeof command, "rm -r %s", root);
    REQUIRE(system(command) == 0);
}

static bool same(const struct journal_entry *a, const struct journal_entry *b)
{
    return a && b && a->index == b->index && a->term == b->term && slice_eq(a->payload, b->payload);
}

static void check_same(uint64_t base)
{
    struct journal l;

    journal_read(&l, data);
    if (l.error[0])
        printf("# %s\n", l.error);
    CHECK(l.there && l.error[0] == 0);
    CHECK(l.base >= model.base && l.base <= base);
    CHECK(journal_last(&l) == journal_last(&model));
    CHECK(l.term == model.term && l.vote == model.vote && l.commit == model.commit);
    for (uint64_t i = l.base + 1; i <= journal_last(&model); i++)
        CHECK(same(journal_at(&l, i), journal_at(&model, i)));
    for (size_t i = 0; i < l.n_cut && l.base == model.base; i++)
        CHECK(l.n_cut == model.n_cut && same(&l.cut[i], &model.cut[i]));
    journal_fini(&l);
}

static void what_was_written_is_read(void)
{
    unsigned cut = 0;

    for (int i = 0; i < 5; i++) {
        make_log(BATCHES);
        check_same(model.base);
        cut += model.n_cut > 0;
        REQUIRE(wal_release(wal, model.commit) == 0);
        check_same(model.commit);
        reopen();
        check_same(model.commit);
        end_log();
    }
    CHECK(cut > 0);
}

static void any_changed_byte_is_seen(void)
{
    unsigned changed = 0, seen = 0;
    struct dirent **names = NULL;
    int n;

    make_log(40);
    n = scandir("wal-7", &names, is_segment, alphasort);
    REQUIRE(n > 0);
    for (int i = 0; i < n; i++) {
        char path[300];
        uint8_t *bytes;
        size_t size;
        int fd, err;

        (void)snprintf(path, sizeof path, "wal-7/%s", names[i]->d_name);
        bytes = file_bytes(path, &size, &err);
        REQUIRE(bytes);
        fd = open(path, O_WRONLY | O_CLOEXEC);
        REQUIRE(fd >= 0);
        for (size_t at = below(5); at < size; at += 1 + below(11)) {
            uint8_t bit = (uint8_t)(bytes[at] ^ 1u << below(8));
            struct journal l;

            REQUIRE(pwrite(fd, &bit, 1, (off_t)at) == 1);
            journal_read(&l, data);
            changed++;
            seen += l.error[0] != 0;
            journal_fini(&l);
            REQUIRE(pwrite(fd, &bytes[at], 1, (off_t)at) == 1);
        }
        (void)close(fd);
        free(bytes);
        free(names[i]);
    }
    free(names);
    check_same(model.base);
    printf("# %u of %u seen\n", seen, changed);
    CHECK(seen == changed && changed > 1000);
    end_log();
}

static void another_programs_directory_has_none(void)
{
    struct journal l;

    journal_read(&l, "/nonexistent");
    CHECK(!l.there && l.error[0] == 0);
    make_log(1);
    REQUIRE(unlink("wal-7/0000000000000001.wal") == 0);
    journal_read(&l, data);
    CHECK(l.there && l.error[0] != 0);
    end_log();
}

int main(void)
{
    const char *s = getenv("SEED");

    seed = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL) << 20 ^ (uint64_t)getpid();
    seed |= 1;
    printf("# SEED=%llu\n", (unsigned long long)seed);
    TEST(what_was_written_is_read);
    TEST(any_changed_byte_is_seen);
    TEST(another_programs_directory_has_none);
    journal_fini(&model);
    return tap_done();
}
