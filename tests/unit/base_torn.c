/* SPDX-License-Identifier: Apache-2.0 */
/* base_torn.c - proves that a damaged file is refused or read rightly, never answered from wrongly.
 *
 * Rows: one byte of each row's value in turn is changed; every answer is then right or -EUCLEAN, and at least one is
 * -EUCLEAN; a pass of the scrub finds it, in slices of any size. A power cut within a commit: any part of its pages
 * written, but not LMDB's meta page: the state before. A truncated file, a torn meta page: refused, or the state before
 * or after the commit. A byte changed in any page: the same, or base_check finds it.
 */
#include <sys/wait.h>
#include "base_ask.h"

static void some_store(struct model *m)
{
    static const char *const names[] = {"a", "b", "c/d", "c/e", "f"};
    uint8_t *p = calloc(1, 1700);

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        model_add_key(m, names[i], strlen(names[i]));
    for (size_t len = 400; len < 1700; len += 300)
        model_add_key(m, p, len);
    free(p);
    model_sort_keys(m);
    model_new(m);
    for (int i = 0; i < 6; i++) {
        for (int j = 0; j < 12; j++)
            model_step(m);
        CHECK(delta_row(m->delta, TABLE_LEASE, S("id"), S("a lease")) == 0);
        model_flush(m);
    }
}

/* ---- rows ---- */

/* Changes one byte of the value of the i-th row of t where it lies in the file. False: no such row. */
static bool damage(struct model *m, enum base_table t, size_t i, int fd, off_t *ret_at, uint8_t *ret_byte)
{
    struct stat st;
    MDB_cursor *cur;
    MDB_val k, v;
    MDB_txn *txn;
    uint8_t *map;
    bool found = false;

    REQUIRE(fstat(fd, &st) == 0);
    map = malloc((size_t)st.st_size);
    REQUIRE(map && pread(fd, map, (size_t)st.st_size, 0) == st.st_size);
    REQUIRE(mdb_txn_begin(m->base->env, NULL, MDB_RDONLY, &txn) == 0);
    REQUIRE(mdb_cursor_open(txn, m->base->dbi[t], &cur) == 0);
    for (size_t j = 0; mdb_cursor_get(cur, &k, &v, MDB_NEXT) == 0; j++) {
        /* LMDB's map is not ours to know: the page, and so its place, is found by its content. */
        uintptr_t page = (uintptr_t)v.mv_data & ~(uintptr_t)4095;
        uint64_t pgno;

        if (j != i)
            continue;
        memcpy(&pgno, (void *)page, 8);
        REQUIRE((off_t)pgno * 4096 < st.st_size && memcmp(map + pgno * 4096, (void *)page, 4096) == 0);
        *ret_at = (off_t)(pgno * 4096 + ((uintptr_t)v.mv_data - page) + below(v.mv_size));
        *ret_byte = map[*ret_at];
        found = true;
        break;
    }
    mdb_cursor_close(cur);
    mdb_txn_abort(txn);
    free(map);
    if (found) {
        uint8_t byte = *ret_byte ^ (uint8_t)(1 + below(255));

        REQUIRE(pwrite(fd, &byte, 1, *ret_at) == 1);
    }
    return found;
}

/* One whole pass. */
static int scrub_all(struct model *m)
{
    struct base_scrub *s = base_scrub_new();
    int rc;

    while ((rc = base_scrub(m->base, s, 1 + (unsigned)below(20), NULL)) == 1)
        ;
    base_scrub_free(s);
    return rc;
}

static void each_row(void)
{
    struct model m = {.value_max = 5000};
    size_t rows = 0;
    char path[100];
    int fd;

    some_store(&m);
    snprintf(path, sizeof path, "%s/data.mdb", m.dir);
    fd = open(path, O_RDWR | O_CLOEXEC);
    REQUIRE(fd >= 0);
    for (int t = 0; t < BASE_TABLES; t++) {
        struct verdict v = {0};
        uint8_t byte;
        off_t at;

        for (size_t i = 0; damage(&m, (enum base_table)t, i, fd, &at, &byte); i++) {
            size_t refused = v.refused;

            ask_all(&m, &v);
            if (v.refused == refused) {
                printf("# table %d row %zu: nobody noticed\n", t, i);
                CHECK(!"noticed");
            }
            if (scrub_all(&m) != -EUCLEAN) {
                printf("# table %d row %zu: the scrub has not seen it\n", t, i);
                CHECK(!"scrubbed");
            }
            REQUIRE(pwrite(fd, &byte, 1, at) == 1);
            rows++;
        }
        CHECK(v.wrong == 0);
    }
    printf("# %zu rows\n", rows);
    CHECK(rows > 100);
    close(fd);
    CHECK(base_check(m.base, NULL) == 0 && scrub_all(&m) == 0);
    model_free(&m);
}

/* ---- the file ---- */

struct files {
    struct model m;
    char path[100];
    uint8_t *before, *after, *work; /* the file before and after the last flush */
    size_t before_len, after_len;
    int64_t rev_before;
    size_t n_before;
    uint64_t applied_before, hash_before;
};

static void files_init(struct files *f)
{
    memset(f, 0, sizeof *f);
    f->m.value_max = 3000;
    some_store(&f->m);
    snprintf(f->path, sizeof f->path, "%s/data.mdb", f->m.dir);
    f->before = file_read(f->path, &f->before_len);
    f->rev_before = f->m.rev;
    f->n_before = f->m.n;
    f->applied_before = f->m.applied;
    f->hash_before = f->m.hash;
    for (int i = 0; i < 20; i++)
        model_step(&f->m);
    model_flush(&f->m);
    f->after = file_read(f->path, &f->after_len);
    f->work = malloc(f->after_len);
    REQUIRE(f->work && f->after_len >= f->before_len);
    base_close(f->m.base);
    f->m.base = NULL;
}

static void files_fini(struct files *f)
{
    free(f->before);
    free(f->after);
    free(f->work);
    model_free(&f->m);
}

/* In a child, because LMDB may assert on a page that makes no sense: 0 the state before, 1 after, 2 refused,
 * 3 ended by a signal, 4 wrong, 5 wrong but base_check sees it. */
static int outcome(struct files *f)
{
    int status;
    pid_t pid = fork();

    REQUIRE(pid >= 0);
    if (pid == 0) {
        struct base_options o = model_options(&f->m);
        struct base_meta meta = {0};
        struct verdict v = {0};
        struct base_reader *r;
        int null = open("/dev/null", O_WRONLY);

        dup2(null, 2);
        if (base_open(&o, &f->m.base))
            _exit(2);
        if (base_reader_new(f->m.base, &r) || base_reader_renew(r) || base_reader_meta(r, &meta))
            _exit(2);
        base_reader_free(r);
        if (meta.seal.revision == f->rev_before) {
            f->m.rev = f->rev_before;
            f->m.n = f->n_before;
        } else if (meta.seal.revision != f->m.rev) {
            _exit(4);
        }
        ask_all(&f->m, &v);
        if (v.wrong)
            _exit(base_check(f->m.base, NULL) ? 5 : 4);
        _exit(v.refused ? 2 : meta.seal.revision == f->rev_before ? 0 : 1);
    }
    REQUIRE(waitpid(pid, &status, 0) == pid);
    return WIFSIGNALED(status) ? 3 : WEXITSTATUS(status);
}

/* The commit's pages but LMDB's meta page, any of them: nothing of it is seen. */
static void power_cut(void)
{
    struct files f;

    files_init(&f);
    for (int i = 0; i < 60 && tap_bad == 0; i++) {
        size_t len = f.before_len + (below(2) ? 0 : below((f.after_len - f.before_len) / 4096 + 1) * 4096);

        memset(f.work, 0, f.after_len);
        memcpy(f.work, f.before, f.before_len);
        for (size_t at = 2 * 4096; at + 4096 <= len; at += 4096) {
            if (memcmp(f.work + at, f.after + at, 4096) == 0 || below(3) == 0)
                continue;
            memcpy(f.work + at, f.after + at, below(4) ? 4096 : 512 * below(8)); /* or torn within */
        }
        file_write(f.path, f.work, len);
        CHECK(outcome(&f) == 0);
    }
    files_fini(&f);
}

static void truncated(void)
{
    size_t count[6] = {0};
    struct files f;

    files_init(&f);
    for (size_t len = 0; len < f.after_len; len += len < 16384 ? 1024 : 4096) {
        int what;

        file_write(f.path, f.after, len);
        what = outcome(&f);
        count[what]++;
        CHECK(what != 3 && what != 4 && what != 0);
    }
    printf("# right %zu, refused %zu\n", count[1], count[2]);
    files_fini(&f);
}

static void meta_pages(void)
{
    size_t count[6] = {0};
    struct files f;

    files_init(&f);
    for (size_t at = 0; at < 2 * 4096; at += at % 4096 < 200 ? 1 : 512) {
        int what;

        memcpy(f.work, f.after, f.after_len);
        f.work[at] ^= (uint8_t)(1 + below(255));
        file_write(f.path, f.work, f.after_len);
        what = outcome(&f);
        count[what]++;
        if (what == 4)
            printf("# byte %zu: wrong\n", at);
        CHECK(what != 4);
    }
    printf("# before %zu, after %zu, refused %zu, signal %zu\n", count[0], count[1], count[2], count[3]);
    files_fini(&f);
}

/* LMDB's own pages carry no checksum: a damaged branch page or a damaged key can hide rows whose own are right.
 * base_check is what finds that; nothing that gives a wrong answer may pass it. */
static void any_page(void)
{
    size_t count[6] = {0};
    struct files f;

    files_init(&f);
    for (size_t at = 2 * 4096; at + 4096 <= f.after_len; at += 4096) {
        for (int i = 0; i < 8; i++) {
            int what;

            memcpy(f.work, f.after, f.after_len);
            f.work[at + (i < 4 ? below(80) : below(4096))] ^= (uint8_t)(1 + below(255));
            file_write(f.path, f.work, f.after_len);
            what = outcome(&f);
            count[what]++;
            if (what == 4)
                printf("# page %zu: wrong, and the check passes it\n", at / 4096);
            CHECK(what != 4);
        }
    }
    printf("# before %zu, after %zu, refused %zu, signal %zu, found by the check %zu\n", count[0], count[1], count[2],
           count[3], count[5]);
    files_fini(&f);
}

int main(void)
{
    dice_seed();
    TEST(each_row);
    TEST(power_cut);
    TEST(truncated);
    TEST(meta_pages);
    TEST(any_page);
    return tap_done();
}
