/* SPDX-License-Identifier: Apache-2.0 */
/* base_rot.c - a grid of damage to the store's file, each cell many times: what is answered is right or refused, also
 * after more has been written to it. The one thing that no read can tell is a leaf as an older commit left it; the
 * check does.
 *
 *     page    LMDB's newer and older meta page, branch pages, leaf pages, its list of free pages
 *     how     a bit, a sector of zeros, the page as an older commit left it (a write that was lost), another page in its place (a write
 *             that went astray), a number of entries that cannot be (LMDB runs off or asserts)
 *
 * Each case is a child process: open, ask all; write four commits, ask all after each. Of what is wrong the check is
 * asked. What a crash inside LMDB leads to: tests/e2e/cluster_damage.sh.
 *
 *     ROT=n    n cases a cell (default 6)
 */
#include <sys/wait.h>
#include "base_ask.h"

enum { PAGE = 4096, SECTOR = 512, FREE_ROOT_AT = 40 + 40, FILES_MAX_PAGES = 4096, ASK_EVERY = 37, END = 100 };
enum page { META_NEW, META_OLD, BRANCH, LEAF, FREE_LIST, PAGES };
enum how { BIT, ZERO, STALE, SWAPPED, ASTRAY, HOWS };
enum outcome { RIGHT, OLDER, REFUSED, CRASHED, FOUND, WRONG, OUTCOMES };

static const char *const page_names[] = {"meta, newer", "meta, older", "branch", "leaf", "free list"};
static const char *const how_names[] = {"bit", "zero", "stale", "swapped", "astray"};

struct rot {
    struct model m;
    char path[100];
    uint8_t *older, *before, *after, *work; /* the file some commits ago, one ago, and now */
    size_t older_len, before_len, len;
    int64_t rev_before;
    size_t n_before;
};

static void many_keys(struct model *m)
{
    char key[40];

    for (int i = 0; i < 150; i++) {
        int n = snprintf(key, sizeof key, "key/%03d/%.*s", i, i % 20, "abcdefghijklmnopqrstuvwxyz");

        model_add_key(m, key, (size_t)n);
    }
    model_sort_keys(m);
}

static void steps_flush(struct model *m, int n)
{
    for (int i = 0; i < n; i++)
        model_step(m);
    model_flush(m);
}

static void rot_init(struct rot *r)
{
    *r = (struct rot){.m = {.value_max = 900}};
    many_keys(&r->m);
    model_new(&r->m);
    CHECK(delta_row(r->m.delta, TABLE_LEASE, S("id"), S("a lease")) == 0);
    for (int i = 0; i < 8; i++)
        steps_flush(&r->m, 30);
    snprintf(r->path, sizeof r->path, "%s/data.mdb", r->m.dir);
    r->older = file_read(r->path, &r->older_len);
    for (int i = 0; i < 4; i++)
        steps_flush(&r->m, 8);
    r->before = file_read(r->path, &r->before_len);
    r->rev_before = r->m.rev;
    r->n_before = r->m.n;
    steps_flush(&r->m, 8);
    r->after = file_read(r->path, &r->len);
    r->work = malloc(r->len);
    REQUIRE(r->work != NULL);
    base_close(r->m.base);
    r->m.base = NULL;
}

static void rot_fini(struct rot *r)
{
    free(r->older);
    free(r->before);
    free(r->after);
    free(r->work);
    model_free(&r->m);
}

/* ---- which page, and what becomes of it ---- */

static unsigned get16(const uint8_t *p)
{
    return p[0] | (unsigned)p[1] << 8;
}

static size_t newer_meta(const struct rot *r)
{
    return get_u64le(r->after + PAGE + 144) > get_u64le(r->after + 144);
}

/* A page of that kind; SIZE_MAX: there is none. Some of the leaves are free: damage to those does nothing. */
static size_t find_page(const struct rot *r, enum page kind, size_t but)
{
    size_t fit[FILES_MAX_PAGES], n = 0, meta = newer_meta(r);

    if (kind == META_NEW || kind == META_OLD)
        return kind == META_NEW ? meta : 1 - meta;
    if (kind == FREE_LIST)
        return (size_t)get_u64le(r->after + meta * PAGE + FREE_ROOT_AT);
    for (size_t i = 2; i < r->len / PAGE && n < FILES_MAX_PAGES; i++)
        if (i != but && get_u64le(r->after + i * PAGE) == i && (get16(r->after + i * PAGE + 10) & 3) == (kind == BRANCH ? 1 : 2))
            fit[n++] = i;
    return n ? fit[below(n)] : SIZE_MAX;
}

/* False: it cannot be done to this page. */
static bool rot_page(struct rot *r, size_t page, enum page kind, enum how how)
{
    uint8_t *p = r->work + page * PAGE;
    size_t at, other;

    switch (how) {
    case BIT:
        do
            at = below(3) ? below(PAGE) : below(100);
        while (p[at] == 0); /* a hole means nothing */
        p[at] ^= (uint8_t)(1 << below(8));
        return true;
    case ZERO:
        memset(p + below(PAGE / SECTOR) * SECTOR, 0, SECTOR);
        return true;
    case STALE: {
        bool long_ago = below(2);
        const uint8_t *was = long_ago ? r->older : r->before;

        if ((page + 1) * PAGE > (long_ago ? r->older_len : r->before_len))
            return false;
        memcpy(p, was + page * PAGE, PAGE);
        return true;
    }
    case SWAPPED:
        other = kind == META_NEW ? 1 - page : kind == META_OLD ? 1 - page : find_page(r, kind == FREE_LIST ? LEAF : kind, page);
        if (other == SIZE_MAX)
            return false;
        memcpy(p, r->after + other * PAGE, PAGE);
        return true;
    case ASTRAY:
        if (kind == META_NEW || kind == META_OLD)
            return false;
        put_u16le(p + 12, get16(p + 10) & 1 ? 18 : 65534);
        return true;
    case HOWS:
        break;
    }
    return false;
}

/* ---- what comes of it ---- */

/* In the child. Any other status is a crash that a sanitizer has reported. */
static _Noreturn void end(enum outcome o)
{
    _exit(END + (int)o);
}

static void look(struct rot *r)
{
    struct verdict v = {0};

    ask_each(&r->m, ASK_EVERY, &v);
    if (v.wrong)
        end(base_check(r->m.base, NULL) ? FOUND : WRONG);
    if (v.refused)
        end(REFUSED);
}

static void live(struct rot *r)
{
    struct base_options o = model_options(&r->m);
    struct base_meta meta = {0};
    struct base_reader *br;
    bool older;

    if (base_open(&o, &r->m.base) || base_reader_new(r->m.base, &br))
        end(REFUSED);
    if (base_reader_renew(br) || base_reader_meta(br, &meta))
        end(REFUSED);
    base_reader_free(br);
    older = meta.seal.revision == r->rev_before;
    if (older) {
        r->m.rev = r->rev_before;
        r->m.n = r->n_before;
    }
    look(r);
    if (older)
        end(OLDER); /* the log holds the rest */
    for (int i = 0; i < 4; i++) {
        int err;

        for (int k = 0; k < 5; k++)
            model_step(&r->m);
        model_seal(&r->m);
        err = base_flush(r->m.base, r->m.delta);
        if (err)
            end(REFUSED);
        delta_free(r->m.delta);
        r->m.delta = delta_new();
        look(r);
    }
    end(RIGHT);
}

static enum outcome outcome(struct rot *r)
{
    int status;
    pid_t pid = fork();

    REQUIRE(pid >= 0);
    if (pid == 0) {
        int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

        dup2(null, 2); /* LMDB says what it asserts */
        alarm(30);
        live(r);
    }
    REQUIRE(waitpid(pid, &status, 0) == pid);
    status = WIFEXITED(status) ? WEXITSTATUS(status) - END : CRASHED;
    return status >= 0 && status < OUTCOMES ? (enum outcome)status : CRASHED;
}

static void grid(void)
{
    const char *s = getenv("ROT");
    int cases = s ? atoi(s) : 6;
    struct rot r;

    rot_init(&r);
    printf("# %zu pages, %zu changes\n", r.len / PAGE, r.m.n);
    memcpy(r.work, r.after, r.len);
    CHECK(outcome(&r) == RIGHT);
    for (int kind = 0; kind < PAGES; kind++)
        for (int how = 0; how < HOWS; how++) {
            size_t n[OUTCOMES] = {0};

            for (int i = 0; i < (kind < BRANCH || kind == FREE_LIST ? cases : 3 * cases); i++) {
                size_t page = find_page(&r, (enum page)kind, 0);
                enum outcome was;

                memcpy(r.work, r.after, r.len);
                if (page == SIZE_MAX || !rot_page(&r, page, (enum page)kind, (enum how)how))
                    continue;
                file_write(r.path, r.work, r.len);
                was = outcome(&r);
                n[was]++;
                if (was == WRONG)
                    printf("# page %zu: wrong, and the check passes it\n", page);
                CHECK(was != WRONG && (was != FOUND || (kind == LEAF && how == STALE)));
            }
            printf("# %-11s %-7s right %zu, of the commit before %zu, refused %zu, crashed %zu, wrong but found %zu, WRONG %zu\n", page_names[kind],
                   how_names[how], n[RIGHT], n[OLDER], n[REFUSED], n[CRASHED], n[FOUND], n[WRONG]);
        }
    rot_fini(&r);
}

int main(void)
{
    dice_seed();
    TEST(grid);
    return tap_done();
}
