/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: no bytes in a segment, as the only one or behind a good one, make wal_open or wal_read touch memory that is
 * not theirs or hit an assertion. To get past the checksums the target mends them in half of the inputs: the crcs of
 * heads, bodies and records are then those of the mutated bytes. */
#include "daemon/crc32c.h"
#include "daemon/wal_impl.h"
#include "fakedisk.h"

#define FUZZ_NAME "wal"
#define FUZZ_SEED_INPUTS wal_seed_input

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

static struct wal_options fuzz_options(struct fakedisk *d)
{
    return (struct wal_options){.disk = &d->disk, .dir = "w", .segment_bytes = 32 << 10, .cluster_id = 1, .member_id = 2};
}

static void mend_batch(uint8_t *p, size_t n, size_t at)
{
    uint32_t body = get_u32le(p + at + 36);

    if (body <= n - at - WAL_BATCH_HEAD_BYTES) {
        size_t from = at + WAL_BATCH_HEAD_BYTES, end = from + body;

        while (from + WAL_RECORD_HEAD_BYTES <= end) {
            uint32_t len = get_u32le(p + from);

            if (len > end - from - WAL_RECORD_HEAD_BYTES)
                break;
            put_u32le(p + from + 4, crc32c(crc32c(0, &len, 4), p + from + 8, WAL_RECORD_HEAD_BYTES - 8 + len));
            from += wal_record_bytes(len);
        }
        put_u32le(p + at + 40, crc32c(0, p + at + WAL_BATCH_HEAD_BYTES, body));
    }
    put_u32le(p + at + 4, crc32c(0, p + at + 8, WAL_BATCH_HEAD_BYTES - 8));
}

static void mend(uint8_t *p, size_t n)
{
    uint32_t prev = 0;

    if (n < WAL_SECTOR_BYTES)
        return;
    put_u64le(p + 32, n);
    put_u32le(p + 8, crc32c(0, p + 12, 108));
    for (size_t at = WAL_SECTOR_BYTES; at + WAL_SECTOR_BYTES <= n; at += WAL_SECTOR_BYTES) {
        if (memcmp(p + at, "BTCH", 4) == 0) {
            if (prev)
                put_u32le(p + at + 32, prev);
            mend_batch(p, n, at);
            prev = get_u32le(p + at + 4);
        }
    }
}

static void read_all(struct wal *w, const struct wal_state *st)
{
    for (uint64_t i = st->first_index; i <= st->last_index + 1; i++) {
        struct entry *e;

        if (wal_read(w, i, &e) == 0) {
            struct entry_head h;

            assert(e->index == i);
            (void)entry_decode(slice_of(e->payload, e->len), &h); /* either answer is fine */
            entry_unref(e);
        }
    }
}

/* What opened must go on: append, sync, open again. */
static void go_on(struct wal *w, const struct wal_state *st)
{
    struct entry *e = entry_new(10);

    assert(e != NULL);
    memset(e->payload, 7, 10);
    e->index = st->last_index + 1;
    e->term = st->term > st->last_term ? st->term : st->last_term;
    if (e->index != 0 && e->index <= UINT64_MAX - 10) {
        struct wal_state hard = {.term = e->term};

        assert(wal_append(w, &e, 1, &hard, st->commit) == 0);
        assert(wal_sync(w) == 0);
    }
    entry_unref(e);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    static struct fakedisk d;
    struct wal_options o = fuzz_options(&d);
    struct disk_file *f;
    struct wal_state st;
    struct wal *w;
    char text[400];
    uint8_t *p;

    if (n < 2)
        return 0;
    p = malloc(n);
    assert(p != NULL);
    memcpy(p, bytes, n);
    if (p[n - 1] & 1)
        mend(p, n - 1);
    fakedisk_init(&d, 1);
    assert(d.disk.mkdir(&d.disk, "w", 0700) == 0);
    assert(d.disk.open(&d.disk, "w/0000000000000001.wal", O_RDWR | O_CREAT, 0600, &f) == 0);
    assert(d.disk.pwrite(&d.disk, f, p, n - 1, 0) == 0);
    d.disk.close(&d.disk, f);
    if (wal_open(&o, &w, &st, text, sizeof text) == 0) {
        read_all(w, &st);
        go_on(w, &st);
        wal_close(w);
    }
    fakedisk_fini(&d);
    free(p);
    return 0;
}

/* A good segment of a few batches. */
static size_t wal_seed_input(unsigned i, uint8_t *buf, size_t size)
{
    static struct fakedisk d;
    struct wal_options o = fuzz_options(&d);
    struct fake_inode *file;
    struct wal_state st, hard = {.term = 1};
    struct wal *w;
    char text[400];
    size_t n;

    if (i == 4)
        return 0;
    fakedisk_init(&d, i + 1);
    assert(wal_create(&o, i * 5, i, &(struct wal_state){.term = i}) == 0);
    assert(wal_open(&o, &w, &st, text, sizeof text) == 0);
    for (unsigned k = 0; k < i * 2; k++) {
        struct entry *e = entry_new(k * 20);

        assert(e != NULL);
        memset(e->payload, (int)k, e->len);
        e->index = w->state.last_index + 1 - (k == 3);
        e->term = hard.term = i + k / 2;
        assert(wal_append(w, &e, 1, &hard, 0) == 0);
        assert(wal_sync(w) == 0);
        entry_unref(e);
    }
    wal_close(w);
    file = fakedisk_file(&d, "w/0000000000000001.wal");
    n = file->view_size;
    assert(n < size);
    memcpy(buf, file->view, n);
    buf[n] = 1; /* mend */
    fakedisk_fini(&d);
    return n + 1;
}

#include "replay.inc"
