/* SPDX-License-Identifier: Apache-2.0 */
/* Proves, over a fake disk: a log gives back what was synced, through reopening, cutting, releasing and rolling over
 * segments; the last batch cut at every byte, or missing any sectors, is recovered, cut or refused and never changes
 * what was synced; any changed byte is refused or harmless; a full disk refuses before it writes; after any failed
 * call nothing is promised and nothing promised is lost; a failed fsync is not believed later; wal_read is safe beside
 * appending. SEED=n repeats a random run.
 */
#include <inttypes.h>
#include <stdatomic.h>
#include "daemon/wal_impl.h"
#include "fakedisk.h"
#include "tap.h"

enum { SEGMENT = 64 << 10, ENTRIES_MAX = 4096 };

static struct fakedisk disk;
static char err_text[512];
static uint64_t seed;

static struct wal_options options(void)
{
    return (struct wal_options){.disk = &disk.disk, .dir = "wal-1", .segment_bytes = SEGMENT,
                                .cluster_id = 0xc1, .member_id = 0x11};
}

static int open_wal(struct wal **ret_w, struct wal_state *ret_st)
{
    struct wal_options o = options();

    return wal_open(&o, ret_w, ret_st, err_text, sizeof err_text);
}

static int create_wal(uint64_t index, uint64_t term)
{
    struct wal_options o = options();
    struct wal_state hard = {.term = term};

    return wal_create(&o, index, term, &hard);
}

/* An entry whose bytes follow from (index, term, salt); some hold whole sectors of zeros. */
static struct entry *make(uint64_t index, uint64_t term, uint64_t salt)
{
    size_t len = (index * 31 + term * 7 + salt * 13) % 5 == 0 ? 3000 : (index + salt) % 400;
    struct entry *e = entry_new(len);

    REQUIRE(e != NULL);
    e->index = index;
    e->term = term;
    for (size_t i = 0; i < len; i++)
        e->payload[i] = i > 100 && i < 2000 ? 0 : (uint8_t)(index * 3 + term * 5 + salt * 11 + i);
    return e;
}

static bool same(const struct entry *a, const struct entry *b)
{
    return a->index == b->index && a->term == b->term && a->len == b->len &&
           memcmp(a->payload, b->payload, a->len) == 0;
}

/* What the log should hold. */
struct model {
    struct wal_state st;
    struct entry *e[ENTRIES_MAX]; /* by index */
};
static struct model now, synced, tried; /* tried: with a batch whose write failed */

static void model_copy(struct model *to, const struct model *from)
{
    for (size_t i = 0; i < ENTRIES_MAX; i++) {
        entry_unref(to->e[i]);
        to->e[i] = from->e[i] ? entry_ref(from->e[i]) : NULL;
    }
    to->st = from->st;
}

static void model_init(uint64_t index, uint64_t term)
{
    static const struct model nothing;

    model_copy(&now, &nothing);
    model_copy(&tried, &nothing);
    now.st = (struct wal_state){.term = term, .first_index = index, .first_term = term, .last_index = index,
                                .last_term = term};
    model_copy(&synced, &now);
}

/* Appends entries [first, first + n) of the term to the log and to now. */
static int append(struct wal *w, uint64_t first, size_t n, uint64_t term, uint64_t commit, uint64_t salt)
{
    struct wal_state hard = {.term = term, .vote = term * 10};
    bool was_dirty = w->dirty;
    struct entry *e[64] = {0};
    int err;

    REQUIRE(n <= 64);
    REQUIRE(first + n <= ENTRIES_MAX);
    if (w->failed)
        return wal_append(w, NULL, 0, &hard, commit);
    model_copy(&tried, &now);
    for (size_t i = 0; i < n; i++)
        e[i] = make(first + i, term, salt);
    err = wal_append(w, e, n, &hard, commit);
    if (was_dirty && !w->failed) /* it synced what came before */
        model_copy(&synced, &now);
    if (n) {
        for (uint64_t i = first; i <= tried.st.last_index; i++) {
            entry_unref(tried.e[i]);
            tried.e[i] = NULL;
        }
        for (size_t i = 0; i < n; i++)
            tried.e[first + i] = e[i];
        tried.st.last_index = first + n - 1;
        tried.st.last_term = term;
    }
    tried.st.term = term;
    tried.st.vote = term * 10;
    if (commit > tried.st.last_index)
        commit = tried.st.last_index;
    if (commit > tried.st.commit)
        tried.st.commit = commit;
    if (err == 0)
        model_copy(&now, &tried);
    return err;
}

static int sync_both(struct wal *w)
{
    int err = wal_sync(w);

    if (err == 0)
        model_copy(&synced, &now);
    return err;
}

/* Appends n entries at *next, synced, and moves it on. */
static void add(struct wal *w, uint64_t *next, size_t n, uint64_t term, uint64_t commit, uint64_t salt)
{
    REQUIRE(append(w, *next, n, term, commit, salt) == 0);
    REQUIRE(sync_both(w) == 0);
    *next += n;
}

/* The log holds exactly what m says (it may begin later than m remembers: segments were released). */
static bool matches(struct wal *w, const struct wal_state *st, const struct model *m)
{
    if (st->term != m->st.term || st->vote != m->st.vote || st->commit != m->st.commit ||
        st->last_index != m->st.last_index || st->last_term != m->st.last_term || st->first_index < m->st.first_index)
        return false;
    for (uint64_t i = st->first_index + 1; i <= st->last_index; i++) {
        struct entry *e;
        bool ok;

        if (wal_read(w, i, &e) != 0)
            return false;
        ok = same(e, m->e[i]);
        entry_unref(e);
        if (!ok)
            return false;
    }
    return true;
}

static bool holds(struct wal *w, const struct model *m)
{
    struct entry *e;

    return matches(w, &w->state, m) && wal_read(w, w->state.last_index + 1, &e) == -ENOENT &&
           wal_read(w, w->state.first_index, &e) == -ENOENT;
}

static void begin(void)
{
    fakedisk_init(&disk, seed);
    model_init(0, 0);
    REQUIRE(create_wal(0, 0) == 0);
}

static void end(void)
{
    fakedisk_fini(&disk);
    model_init(0, 0);
}

static int note_run(void *ctx, uint64_t first, uint64_t term)
{
    uint64_t *runs = ctx;

    runs[0]++;
    runs[runs[0] * 2 - 1] = first;
    runs[runs[0] * 2] = term;
    return 0;
}

static void keeps_what_was_synced(void)
{
    struct wal_state st;
    struct wal *w;
    uint64_t runs[9] = {0};

    begin();
    REQUIRE(open_wal(&w, &st) == 0);
    CHECK(st.first_index == 0 && st.last_index == 0 && st.cut_bytes == 0);
    REQUIRE(append(w, 1, 10, 1, 0, 0) == 0 && sync_both(w) == 0);
    REQUIRE(append(w, 11, 5, 2, 99, 0) == 0 && sync_both(w) == 0); /* the watermark ends where the log does */
    CHECK(w->state.commit == 15);
    REQUIRE(append(w, 16, 10, 2, 15, 0) == 0 && sync_both(w) == 0);
    REQUIRE(append(w, 20, 3, 5, 15, 1) == 0 && sync_both(w) == 0); /* a later term replaces 20..25 */
    REQUIRE(append(w, 0, 0, 6, 20, 0) == 0 && sync_both(w) == 0);  /* hard state alone */
    CHECK(holds(w, &synced));
    wal_close(w);
    fakedisk_crash(&disk, FAKE_LOSE_ALL);
    REQUIRE(open_wal(&w, &st) == 0);
    CHECK(holds(w, &synced));
    CHECK(st.cut_bytes == 0 && st.term == 6 && st.vote == 60 && st.commit == 20 && st.last_index == 22);
    CHECK(wal_runs(w, note_run, runs) == 0);
    CHECK(runs[0] == 3 && runs[1] == 1 && runs[2] == 1 && runs[3] == 11 && runs[4] == 2 && runs[5] == 20 &&
          runs[6] == 5);
    wal_close(w);
    end();
}

static void begins_where_told(void)
{
    struct wal_options o = options();
    struct wal_state st;
    struct wal *w;

    fakedisk_init(&disk, seed);
    model_init(100, 7);
    CHECK(open_wal(&w, &st) == -ENOENT);
    REQUIRE(create_wal(100, 7) == 0);
    REQUIRE(create_wal(100, 7) == 0); /* as after a crash: nothing has used it */
    REQUIRE(open_wal(&w, &st) == 0);
    CHECK(st.first_index == 100 && st.first_term == 7 && st.last_index == 100 && st.last_term == 7 && st.term == 7);
    REQUIRE(append(w, 101, 3, 8, 101, 0) == 0 && sync_both(w) == 0);
    CHECK(holds(w, &synced));
    wal_close(w);
    CHECK(create_wal(100, 7) == -EEXIST);
    o.member_id = 0x12;
    CHECK(wal_open(&o, &w, &st, err_text, sizeof err_text) == -EUCLEAN && strstr(err_text, "belongs to"));
    end();
}

/* Rolls over many segments, releases, cuts across segments. */
static void segments(void)
{
    struct wal_state st;
    struct wal *w;
    uint64_t next = 1, bytes;

    begin();
    REQUIRE(open_wal(&w, &st) == 0);
    for (int i = 0; i < 100; i++) {
        add(w, &next, 8, 1, 100, 0);
        REQUIRE(wal_idle(w) == 0);
    }
    CHECK(w->n_segments > 5);
    REQUIRE(append(w, 110, 4, 2, 100, 5) == 0 && sync_both(w) == 0); /* cuts back over several segments */
    CHECK(holds(w, &synced));
    wal_close(w);
    REQUIRE(open_wal(&w, &st) == 0);
    CHECK(holds(w, &synced));
    next = 114;
    for (int i = 0; i < 120; i++, next += 8)
        REQUIRE(append(w, next, 8, 2, next - 1, 0) == 0 && sync_both(w) == 0 && wal_idle(w) == 0);
    bytes = wal_bytes(w);
    CHECK(wal_release(w, 105) == 0);
    CHECK(w->state.first_index <= 105);
    CHECK(wal_release(w, 900) == 0);
    CHECK(w->state.first_index > 105 && w->state.first_index <= 900 && wal_bytes(w) < bytes);
    CHECK(holds(w, &synced));
    wal_close(w);
    fakedisk_crash(&disk, FAKE_LOSE_ALL);
    REQUIRE(open_wal(&w, &st) == 0);
    CHECK(st.first_index > 105 && st.first_index <= 900 && holds(w, &synced));
    wal_close(w);
    end();
}

/* A cut to below the first segment that is left: the log begins where the cut says. */
static void cut_across_a_released_segment(void)
{
    struct wal_state st;
    struct wal *w;
    uint64_t next = 1, base;

    begin();
    REQUIRE(open_wal(&w, &st) == 0);
    while (w->n_segments < 2 || w->segments[1]->n == 0)
        add(w, &next, 2, 1, 1, 0);
    base = w->segments[1]->base_index;
    REQUIRE(append(w, base - 3, 2, 2, 1, 0) == 0 && sync_both(w) == 0);
    for (next = base - 1; next < base + 20; next += 2)
        REQUIRE(append(w, next, 2, 2, next - 1, 0) == 0 && sync_both(w) == 0);
    CHECK(wal_release(w, base) == 0);
    CHECK(w->state.first_index == base - 4 && w->state.first_term == 1);
    CHECK(holds(w, &synced));
    wal_close(w);
    REQUIRE(open_wal(&w, &st) == 0);
    CHECK(st.first_index == base - 4 && st.first_term == 1 && holds(w, &synced));
    wal_close(w);
    end();
}

/* The path, offset and length of the last batch written. */
static struct fake_inode *last_batch(struct wal *w, uint64_t *ret_from, uint64_t *ret_to)
{
    struct wal_segment *s = w->segments[w->n_segments - 1];
    struct slice bytes = {.len = s->size};
    struct wal_batch b;
    char path[WAL_PATH_MAX + 32];
    struct fake_inode *i;

    wal_segment_path(w, s->number, path);
    i = fakedisk_file(&disk, path);
    bytes.ptr = i->view;
    for (uint64_t at = WAL_SECTOR_BYTES; at < s->used; at += wal_batch_bytes(b.body_bytes)) {
        REQUIRE(wal_batch_head_parse(bytes, at, s->nonce, &b));
        *ret_from = at;
    }
    *ret_to = s->used;
    return i;
}

/* Opens what is there: as m, or as other, or refused. Counts each. */
static void tally(const struct model *m, const struct model *other, int count[3])
{
    struct wal_state st;
    struct wal *w;
    int err = open_wal(&w, &st);

    if (err) {
        CHECK(err == -EUCLEAN);
        count[2]++;
        return;
    }
    if (matches(w, &st, m))
        count[0]++;
    else if (matches(w, &st, other))
        count[1]++;
    else
        CHECK(!"the log holds neither");
    /* It must go on from there, too. */
    st.last_index++;
    CHECK(w->state.last_index + 1 == st.last_index);
    wal_close(w);
}

/* head: the segment has just been begun, so its head is part of the last write. */
static void torn(bool head)
{
    int cut[3] = {0}, lost[3] = {0}, shorter[3] = {0};
    struct fake_inode *file;
    uint64_t from, to, next = 10;
    size_t segments_before, size;
    struct disk_file *again;
    char name[WAL_PATH_MAX + 32];
    uint8_t *whole;
    struct wal_state st;
    struct wal *w;

    begin();
    REQUIRE(open_wal(&w, &st) == 0);
    REQUIRE(append(w, 1, 9, 1, 0, 0) == 0 && sync_both(w) == 0);
    while (w->n_segments < 2)
        add(w, &next, 1, 1, 5, 2);
    while (head && w->segments[w->n_segments - 1]->size - w->segments[w->n_segments - 1]->used > 6000)
        add(w, &next, 1, 1, 5, 2);
    segments_before = w->n_segments;
    REQUIRE(append(w, next, head ? 20 : 6, 1, 5, 0) == 0);
    REQUIRE(w->n_segments == segments_before + head); /* too large for the rest: it begins a segment */
    REQUIRE(wal_sync(w) == 0); /* synced is the model without it, now the one with it */
    file = last_batch(w, &from, &to);
    wal_segment_path(w, w->segments[w->n_segments - 1]->number, name);
    wal_close(w);
    if (head)
        from = 0;
    size = file->view_size;
    whole = malloc(size);
    REQUIRE(whole != NULL);
    memcpy(whole, file->view, size);

    for (uint64_t at = from; at < to; at++) {
        size_t rest = size - at;
        uint8_t *zero = calloc(1, rest);

        REQUIRE(zero != NULL);
        fakedisk_poke(file, at, zero, rest);
        tally(&synced, &now, cut);
        if (head && fakedisk_file(&disk, name) == NULL) { /* removed as never begun: put it back */
            REQUIRE(disk.disk.open(&disk.disk, name, O_RDWR | O_CREAT, 0600, &again) == 0);
            disk.disk.close(&disk.disk, again);
            REQUIRE(disk.disk.fsync_dir(&disk.disk, "wal-1") == 0);
            file = fakedisk_file(&disk, name);
        }
        fakedisk_poke(file, 0, whole, size);
        free(zero);
    }
    printf("# cut at every byte: %d without the batch, %d with it, %d refused\n", cut[0], cut[1], cut[2]);
    CHECK(cut[0] > 0);
    CHECK(cut[1] > 0);

    for (int n = 0; n < 2000 && !head; n++) {
        static const uint8_t none[FAKE_SECTOR];
        uint64_t sectors = (to - from) / FAKE_SECTOR, missing = 0;

        for (uint64_t k = 0; k < sectors; k++) {
            if (fake_random(&disk) % 3 == 0) {
                fakedisk_poke(file, from + k * FAKE_SECTOR, none, FAKE_SECTOR);
                missing++;
            }
        }
        tally(&synced, &now, lost);
        fakedisk_poke(file, 0, whole, size);
    }
    if (!head) {
        printf("# sectors missing: %d without the batch, %d with it, %d refused\n", lost[0], lost[1], lost[2]);
        CHECK(lost[0] > 1500 && lost[2] == 0); /* a torn write is told from rot */
    }
    for (uint64_t at = to; at > from && !head; at -= 64) { /* the file itself cut: not what a crash does */
        file->view_size = file->durable_size = at - 1;
        tally(&synced, &now, shorter);
        fakedisk_poke(file, 0, whole, size);
    }
    CHECK(shorter[0] == 0 && shorter[1] == 0);
    free(whole);
    end();
}

static void torn_batch(void)
{
    torn(false);
}

static void torn_segment(void)
{
    torn(true);
}

/* Every byte of a log of several synced batches, changed in three ways. */
static void changed_byte(void)
{
    static const uint8_t change[] = {0x01, 0x80, 0xff};
    int count[3] = {0}, harmless_outside = 0;
    struct fake_inode *file;
    uint64_t from, to;
    struct wal_state st;
    struct wal *w;

    begin();
    REQUIRE(open_wal(&w, &st) == 0);
    REQUIRE(append(w, 1, 3, 1, 0, 1) == 0 && sync_both(w) == 0);
    REQUIRE(append(w, 4, 1, 1, 3, 1) == 0 && sync_both(w) == 0);
    REQUIRE(append(w, 5, 2, 2, 4, 0) == 0 && sync_both(w) == 0);
    file = last_batch(w, &from, &to);
    wal_close(w);
    for (uint64_t at = 0; at < to; at++) {
        for (size_t k = 0; k < sizeof change; k++) {
            uint8_t keep = file->view[at], wrong = keep ^ change[k];

            fakedisk_poke(file, at, &wrong, 1);
            tally(&synced, &synced, count);
            REQUIRE(file->view[at] == wrong || (harmless_outside++, true));
            fakedisk_poke(file, at, &keep, 1);
        }
        if (file->view[at]) { /* and a byte gone to zero */
            uint8_t keep = file->view[at];

            fakedisk_poke(file, at, "", 1);
            tally(&synced, &synced, count);
            fakedisk_poke(file, at, &keep, 1);
        }
    }
    printf("# changed bytes: %d harmless (padding), %d refused\n", count[0], count[2]);
    CHECK(count[2] > 1000);
    end();
}

/* Synced sectors that read as zeros again, with intact batches behind them: not a torn write. */
static void hole_in_the_middle(void)
{
    static const uint8_t none[FAKE_SECTOR];
    struct fake_inode *file;
    uint64_t from, to, last;
    uint8_t keep[FAKE_SECTOR];
    struct wal_state st;
    struct wal *w;

    begin();
    REQUIRE(open_wal(&w, &st) == 0);
    REQUIRE(append(w, 1, 3, 1, 0, 1) == 0 && sync_both(w) == 0);
    REQUIRE(append(w, 4, 1, 1, 0, 1) == 0 && sync_both(w) == 0);
    file = last_batch(w, &last, &to);
    from = WAL_SECTOR_BYTES;
    wal_close(w);
    CHECK(last > from + FAKE_SECTOR);
    for (uint64_t at = from; at < last; at += FAKE_SECTOR) {
        memcpy(keep, file->view + at, FAKE_SECTOR);
        fakedisk_poke(file, at, none, FAKE_SECTOR);
        CHECK(open_wal(&w, &st) == -EUCLEAN || (wal_is_zero(keep, FAKE_SECTOR) && (wal_close(w), true)));
        fakedisk_poke(file, at, keep, FAKE_SECTOR);
    }
    REQUIRE(open_wal(&w, &st) == 0);
    CHECK(holds(w, &synced));
    wal_close(w);
    end();
}

/* A batch that once stood at a place and was lost comes back in place of the one written there later: it is good in
 * itself, and the next one does not follow from it. */
static void stale_batch(void)
{
    struct fake_inode *file;
    uint64_t from, to, from2, to2;
    uint8_t *stale;
    struct wal_state st;
    struct wal *w;

    begin();
    REQUIRE(open_wal(&w, &st) == 0);
    REQUIRE(append(w, 1, 2, 1, 0, 1) == 0 && sync_both(w) == 0);
    REQUIRE(append(w, 3, 1, 1, 0, 1) == 0); /* never synced */
    file = last_batch(w, &from, &to);
    stale = malloc(to - from);
    REQUIRE(stale != NULL);
    memcpy(stale, file->view + from, to - from);
    wal_close(w);
    fakedisk_crash(&disk, FAKE_LOSE_ALL);
    model_copy(&now, &synced);
    REQUIRE(open_wal(&w, &st) == 0);
    REQUIRE(append(w, 3, 1, 2, 0, 2) == 0 && sync_both(w) == 0);
    file = last_batch(w, &from2, &to2);
    REQUIRE(from2 == from && to2 == to);
    REQUIRE(append(w, 4, 1, 2, 0, 2) == 0 && sync_both(w) == 0);
    wal_close(w);
    fakedisk_poke(file, from, stale, to - from);
    CHECK(open_wal(&w, &st) == -EUCLEAN && strstr(err_text, "does not follow"));
    free(stale);
    end();
}

static void damage_in_use(void)
{
    struct fake_inode *file;
    uint64_t from, to;
    struct wal_state st;
    struct entry *e;
    struct wal *w;

    begin();
    REQUIRE(open_wal(&w, &st) == 0);
    REQUIRE(append(w, 1, 3, 1, 0, 1) == 0 && sync_both(w) == 0);
    file = last_batch(w, &from, &to);
    fakedisk_poke(file, from + WAL_BATCH_HEAD_BYTES + 25, "\xee", 1);
    CHECK(wal_read(w, 1, &e) == -EUCLEAN);
    CHECK(wal_read(w, 2, &e) == 0);
    entry_unref(e);
    fakedisk_poke(file, from + WAL_BATCH_HEAD_BYTES, "\xff\xff\xff\xff", 4); /* a length of 4 GiB */
    CHECK(wal_read(w, 1, &e) == -EUCLEAN);
    wal_close(w);
    CHECK(open_wal(&w, &st) == -EUCLEAN);
    end();
}

static void missing_segment(void)
{
    struct wal_state st;
    uint64_t next = 1;
    struct wal *w;

    begin();
    REQUIRE(open_wal(&w, &st) == 0);
    while (w->n_segments < 4)
        add(w, &next, 4, 1, 0, 0);
    wal_close(w);
    REQUIRE(disk.disk.rename(&disk.disk, "wal-1/0000000000000003.wal", "wal-1/x") == 0);
    CHECK(open_wal(&w, &st) == -EUCLEAN && strstr(err_text, "0000000000000003.wal: this segment is missing"));
    REQUIRE(disk.disk.rename(&disk.disk, "wal-1/0000000000000002.wal", "wal-1/0000000000000003.wal") == 0);
    CHECK(open_wal(&w, &st) == -EUCLEAN);
    end();
}

static void full_disk(void)
{
    struct wal_state st;
    uint64_t next = 1;
    struct wal *w;
    int err = 0, refused = 0;

    begin();
    REQUIRE(open_wal(&w, &st) == 0);
    disk.capacity = SEGMENT / 8 + SEGMENT / 4 + SEGMENT / 3; /* two segments and a part of the third */
    while (err == 0) {
        err = append(w, next, 2, 1, 0, 0);
        if (err)
            break;
        REQUIRE(sync_both(w) == 0);
        next += 2;
        refused += wal_idle(w) == -ENOSPC;
    }
    CHECK(err == -ENOSPC && refused > 0); /* told early, by wal_idle */
    CHECK(holds(w, &synced));
    CHECK(append(w, next, 2, 1, 0, 0) == -ENOSPC);
    CHECK(append(w, 0, 0, 2, 0, 0) == 0 || true); /* a small one may still fit */
    CHECK(sync_both(w) == 0);
    disk.capacity = 0;
    REQUIRE(append(w, next, 2, 3, 0, 0) == 0 && sync_both(w) == 0);
    wal_close(w);
    fakedisk_crash(&disk, FAKE_LOSE_ALL);
    REQUIRE(open_wal(&w, &st) == 0);
    CHECK(holds(w, &synced));
    wal_close(w);
    end();
}

/* A fixed script; stops at the first error. Returns whether it came to its end. */
static bool script(struct wal *w)
{
    for (uint64_t next = 1; next < 200; next += 4) {
        if (append(w, next, 4, 1 + next / 90, next / 2, 0) || sync_both(w) || wal_idle(w) || wal_release(w, next / 4))
            return false;
    }
    return append(w, 180, 2, 9, 0, 3) == 0 && sync_both(w) == 0;
}

/* Each call of the script fails in turn, once; then the power goes, or only the process. */
static void every_call_fails(void)
{
    uint64_t calls = 0;
    bool done = false;

    for (uint64_t n = 1; !done; n++) {
        struct wal_state st;
        struct wal *w;
        int err;

        begin();
        REQUIRE(open_wal(&w, &st) == 0);
        disk.calls = 0;
        disk.fail_call = n;
        disk.fail_err = n % 2 ? -EIO : -ENOSPC;
        done = script(w);
        disk.fail_call = 0;
        /* A refusal for lack of space leaves it able to go on; anything else never again. */
        if (!done && w->failed) {
            CHECK(append(w, now.st.last_index + 1, 1, 9, 0, 0) == -EIO);
            CHECK(wal_sync(w) == -EIO && wal_idle(w) == -EIO && wal_release(w, 1) == -EIO);
        }
        calls = n;
        wal_close(w);
        if (n % 3)
            fakedisk_crash(&disk, n % 3 == 1 ? FAKE_RANDOM : FAKE_LOSE_ALL);
        err = open_wal(&w, &st);
        CHECK(err == 0 || err == -EUCLEAN);
        if (err == -EUCLEAN) /* only when the failed call was of the unsynced batch itself */
            printf("# call %" PRIu64 ": %s\n", n, err_text);
        if (err == 0) {
            CHECK(matches(w, &st, &synced) || matches(w, &st, &now) || matches(w, &st, &tried));
            wal_close(w);
        }
        end();
    }
    printf("# %" PRIu64 " calls\n", calls);
    CHECK(calls > 100);
}

static void create_fails(void)
{
    for (uint64_t n = 1, done = 0; !done; n++) {
        struct wal_state st;
        struct wal *w;

        fakedisk_init(&disk, seed + n);
        model_init(5, 2);
        disk.fail_call = n;
        disk.fail_err = -EIO;
        done = create_wal(5, 2) == 0;
        disk.fail_call = 0;
        fakedisk_crash(&disk, FAKE_RANDOM);
        if (!done && open_wal(&w, &st) != 0)
            CHECK(create_wal(5, 2) == 0);
        else if (!done)
            wal_close(w);
        REQUIRE(open_wal(&w, &st) == 0);
        CHECK(st.first_index == 5 && st.first_term == 2);
        wal_close(w);
        end();
    }
}

/* The kernel says an fsync failed and keeps the pages: what they show after a restart must not be believed. */
static void failed_fsync(void)
{
    for (uint64_t n = 0; n < 50; n++) {
        struct wal_state st;
        struct wal *w;
        int err;

        begin();
        disk.seed = seed + n;
        REQUIRE(open_wal(&w, &st) == 0);
        REQUIRE(append(w, 1, 4, 1, 0, 0) == 0 && sync_both(w) == 0);
        REQUIRE(append(w, 5, 4, 1, 3, 0) == 0);
        disk.fail_call = disk.calls + 1;
        disk.fail_err = -EIO;
        CHECK(wal_sync(w) == -EIO);
        CHECK(wal_sync(w) == -EIO);
        wal_close(w);
        REQUIRE(open_wal(&w, &st) == 0); /* no crash: the process alone began again */
        err = matches(w, &st, &now) ? 1 : matches(w, &st, &synced) ? 0 : -1;
        CHECK(err >= 0);
        wal_close(w);
        fakedisk_crash(&disk, FAKE_LOSE_ALL); /* and what it then believed must survive the power */
        REQUIRE(open_wal(&w, &st) == 0);
        CHECK(matches(w, &st, err == 1 ? &now : &synced));
        wal_close(w);
        end();
    }
}

/* Random work, random crashes: after each the log is as it was synced, or with the batch that was not. */
static void random_life(void)
{
    int crashes = 0, with = 0, refused = 0;

    for (int life = 0; life < 40; life++) {
        struct wal_state st;
        struct wal *w;

        fakedisk_init(&disk, seed * 1000 + (uint64_t)life);
        disk.tear = life % 4 == 3;
        model_init(0, 0);
        REQUIRE(create_wal(0, 0) == 0);
        REQUIRE(open_wal(&w, &st) == 0);
        for (int step = 0; step < 400 && now.st.last_index < ENTRIES_MAX - 100; step++) {
            uint64_t r = fake_random(&disk), first = now.st.last_index + 1;
            size_t n = r % 12;

            switch (r >> 8 & 15) {
            case 0: /* a new leader cuts the tail */
                first -= (r >> 16) % (now.st.last_index - now.st.commit + 1);
                REQUIRE(append(w, first, n + 1, now.st.term + 1, now.st.commit, r) == 0);
                break;
            case 1:
                REQUIRE(wal_release(w, now.st.commit) == 0);
                break;
            case 2: {
                int err;

                wal_close(w);
                fakedisk_crash(&disk, FAKE_RANDOM);
                crashes++;
                err = open_wal(&w, &st);
                if (err == -EUCLEAN && disk.tear) { /* half a sector cannot be told from rot: refusing is right */
                    refused++;
                    goto over;
                }
                if (err)
                    printf("# life %d: %s\n", life, err_text);
                REQUIRE(err == 0);
                if (matches(w, &st, &synced)) {
                    model_copy(&now, &synced);
                } else {
                    REQUIRE(matches(w, &st, &now));
                    model_copy(&synced, &now);
                    with++;
                }
                break;
            }
            default:
                REQUIRE(append(w, first, n, now.st.term + (r >> 20 & 31) / 31, now.st.commit + (r >> 30) % 20, r) == 0);
                REQUIRE(wal_idle(w) == 0);
            }
            if (r >> 40 & 3)
                REQUIRE(sync_both(w) == 0);
        }
        CHECK(holds(w, &now));
        wal_close(w);
    over:
        end();
    }
    printf("# %d crashes, %d kept an unsynced batch, %d refused (part of a sector written)\n", crashes, with, refused);
    CHECK(crashes > 300 && with > 10);
}

/* Readers of old entries beside the WAL thread, on a real disk. */
static struct wal *shared;
static _Atomic uint64_t readable;
static _Atomic bool stop;

static void *reader(void *arg)
{
    uint64_t i = 1, *reads = arg;

    while (!atomic_load(&stop)) {
        uint64_t last = atomic_load(&readable);
        struct entry *e, *want;

        if (last == 0)
            continue;
        i = i * 7919 % last + 1;
        if (wal_read(shared, i, &e) == 0) {
            want = make(i, 1, 0);
            REQUIRE(same(e, want));
            entry_unref(want);
            entry_unref(e);
            ++*reads;
        }
    }
    return NULL;
}

static void readers_beside_writer(void)
{
    char dir[] = "/tmp/cairn-wal-XXXXXX", command[64];
    struct wal_options o = options();
    uint64_t reads[2] = {0}, next = 1;
    struct wal_state st;
    struct disk *real;
    pthread_t t[2];

    REQUIRE(mkdtemp(dir) != NULL);
    REQUIRE(disk_real_new(dir, &real) == 0);
    o.disk = real;
    REQUIRE(wal_create(&o, 0, 0, NULL) == 0);
    REQUIRE(wal_open(&o, &shared, &st, err_text, sizeof err_text) == 0);
    for (int i = 0; i < 2; i++)
        REQUIRE(thread_start(&t[i], "reader", reader, &reads[i]) == 0);
    model_init(0, 0);
    for (int i = 0; i < 300; i++, next += 8) {
        REQUIRE(append(shared, next, 8, 1, next - 1, 0) == 0 && wal_sync(shared) == 0 && wal_idle(shared) == 0);
        atomic_store(&readable, next + 7);
        if (i % 50 == 49)
            REQUIRE(wal_release(shared, next - 200) == 0);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], NULL);
    CHECK(reads[0] + reads[1] > 100);
    wal_close(shared);
    REQUIRE(wal_open(&o, &shared, &st, err_text, sizeof err_text) == 0);
    CHECK(holds(shared, &now));
    wal_close(shared);
    disk_real_free(real);
    (void)snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK(system(command) == 0);
    model_init(0, 0);
}

int main(void)
{
    const char *s = getenv("SEED");

    seed = s ? strtoull(s, NULL, 10) : 1;
    printf("# SEED=%" PRIu64 "\n", seed);
    TEST(keeps_what_was_synced);
    TEST(begins_where_told);
    TEST(segments);
    TEST(cut_across_a_released_segment);
    TEST(torn_batch);
    TEST(torn_segment);
    TEST(changed_byte);
    TEST(hole_in_the_middle);
    TEST(stale_batch);
    TEST(damage_in_use);
    TEST(missing_segment);
    TEST(full_disk);
    TEST(every_call_fails);
    TEST(create_fails);
    TEST(failed_fsync);
    TEST(random_life);
    TEST(readers_beside_writer);
    return tap_done();
}
