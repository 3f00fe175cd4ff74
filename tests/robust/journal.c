/* SPDX-License-Identifier: Apache-2.0 */
/* journal.c - reads a write-ahead log by the words at the top of daemon/wal.c, and finds fault with all that deviates.
 *
 * Besides each checksum, number and offset: the term and the commit watermark of a batch never go back, a vote is given
 * once in a term, terms of entries ascend and are none of the future, and nothing at or below the watermark is cut.
 */
#include "journal.h"
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

enum { SECTOR = 512, BATCH_HEAD = 96, RECORD_HEAD = 24, ENTRY_HEAD = 40, SEGMENTS_MAX = 64, PATH_BYTES = 512 };

/* ---- bytes ------------------------------------------------------------------------------------------ */

static uint32_t crc_of(uint32_t crc, const uint8_t *p, size_t n)
{
    static uint32_t table[256];

    if (table[1] == 0)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;

            for (int k = 0; k < 8; k++)
                c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
            table[i] = c;
        }
    crc = ~crc;
    for (size_t i = 0; i < n; i++)
        crc = table[(crc ^ p[i]) & 255] ^ crc >> 8;
    return ~crc;
}

static bool is_zero(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i])
            return false;
    return true;
}

__attribute__((format(printf, 2, 3))) static bool wrong(struct journal *l, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    (void)vsnprintf(l->error, sizeof l->error, format, ap);
    va_end(ap);
    return false;
}

/* All of a file; NULL: -errno in *ret_err. */
static uint8_t *file_bytes(const char *path, size_t *ret_n, int *ret_err)
{
    FILE *f = fopen(path, "re");
    uint8_t *p = NULL;
    long n = -1;

    if (f && fseek(f, 0, SEEK_END) == 0)
        n = ftell(f);
    if (n >= 0 && (p = malloc((size_t)n + 1)) != NULL) {
        rewind(f);
        *ret_n = fread(p, 1, (size_t)n, f);
        p[*ret_n] = 0;
    }
    *ret_err = p ? 0 : -errno;
    if (f)
        (void)fclose(f); /* only read from */
    return p;
}

/* ---- entries ------------------------------------------------------------------------------------------ */

static void push(struct journal_entry **list, size_t *n, size_t *room, struct journal_entry e)
{
    if (*n == *room) {
        *room = *room ? *room * 2 : 1024;
        *list = realloc(*list, *room * sizeof **list);
        assert(*list);
    }
    (*list)[(*n)++] = e;
}

void journal_add(struct journal *l, uint64_t index, uint64_t term, struct slice payload)
{
    uint8_t *copy = malloc(payload.len + 1);

    assert(copy);
    assert(index > l->base && index <= journal_last(l) + 1);
    if (payload.len)
        memcpy(copy, payload.ptr, payload.len);
    for (uint64_t i = index; i <= journal_last(l); i++)
        push(&l->cut, &l->n_cut, &l->room_cut, *journal_at(l, i));
    l->n = index - l->base - 1;
    push(&l->entries, &l->n, &l->room, (struct journal_entry){index, term, slice_of(copy, payload.len)});
}

static void cut_all(struct journal *l, uint64_t base)
{
    for (size_t i = 0; i < l->n; i++)
        push(&l->cut, &l->n_cut, &l->room_cut, l->entries[i]);
    l->n = 0;
    l->base = base;
}

void journal_fini(struct journal *l)
{
    for (size_t i = 0; i < l->n; i++)
        free((void *)(uintptr_t)l->entries[i].payload.ptr);
    for (size_t i = 0; i < l->n_cut; i++)
        free((void *)(uintptr_t)l->cut[i].payload.ptr);
    free(l->entries);
    free(l->cut);
    *l = (struct journal){0};
}

bool journal_parse(struct slice payload, enum journal_kind *ret_kind, uint64_t *ret_term, struct slice *ret_body)
{
    size_t user;

    *ret_kind = JOURNAL_NOOP;
    *ret_term = 0;
    *ret_body = SLICE_NONE;
    if (payload.len == 0)
        return true;
    if (payload.len < ENTRY_HEAD || payload.ptr[0] != 1 || payload.ptr[1] >= JOURNAL_KINDS ||
        get_u32le(payload.ptr + 4))
        return false;
    user = (size_t)payload.ptr[2] | (size_t)payload.ptr[3] << 8;
    if (user > payload.len - ENTRY_HEAD)
        return false;
    *ret_kind = payload.ptr[1];
    *ret_term = get_u64le(payload.ptr + 32);
    *ret_body = slice_of(payload.ptr + ENTRY_HEAD + user, payload.len - ENTRY_HEAD - user);
    return true;
}

/* ---- a segment ---------------------------------------------------------------------------------------- */

/* What goes on from segment to segment. */
struct chain {
    bool begun;
    uint64_t nonce, batch, last_term; /* last_term: of the log's last entry */
    uint32_t crc;
};

static bool read_head(struct journal *l, struct chain *c, const char *name, const uint8_t *p, size_t n)
{
    uint64_t base = get_u64le(p + 56), term = get_u64le(p + 72), vote = get_u64le(p + 80), commit = get_u64le(p + 88);

    if (get_u32le(p + 8) != crc_of(0, p + 12, 108) || memcmp(p, "CAIRNWAL", 8) != 0 || get_u32le(p + 12) != 1 ||
        get_u64le(p + 16) == 0 || get_u64le(p + 24) != strtoull(name, NULL, 16) || get_u64le(p + 32) != n ||
        get_u32le(p + 112) != 0x5a5aa5a5u || get_u32le(p + 116) != 0x5a5aa5a5u || !is_zero(p + 120, SECTOR - 120))
        return wrong(l, "%s: its head is wrong", name);
    if (!c->begun) {
        l->base = base;
        c->last_term = get_u64le(p + 64);
        l->term = term;
        l->vote = vote;
        l->commit = commit;
        c->batch = get_u64le(p + 96);
        c->crc = get_u32le(p + 104);
    } else if (base != journal_last(l) || get_u64le(p + 64) != c->last_term || term != l->term || vote != l->vote ||
               commit != l->commit || get_u64le(p + 96) != c->batch || get_u32le(p + 104) != c->crc) {
        return wrong(l, "%s: does not follow what lies before", name);
    }
    c->begun = true;
    c->nonce = get_u64le(p + 16);
    return true;
}

static bool read_records(struct journal *l, struct chain *c, const char *name, const uint8_t *b, size_t body)
{
    const uint8_t *p = b + BATCH_HEAD, *end = p + body;
    uint32_t n = get_u32le(b + 44);
    uint64_t index = get_u64le(b + 48);

    if ((n == 0) != (index == 0) || (n && (index <= l->commit || index > journal_last(l) + 1)))
        return wrong(l, "%s: a batch of %u from index %" PRIu64 "; the log ends at %" PRIu64 " and is committed up to "
                     "%" PRIu64, name, n, index, journal_last(l), l->commit);
    if (n) {
        const struct journal_entry *before = journal_at(l, index - 1); /* none: it is of the base */

        if (before && before->term != get_u64le(b + 56))
            return wrong(l, "%s: the batch from index %" PRIu64 " names a wrong term before it", name, index);
        c->last_term = get_u64le(b + 56);
        if (index <= l->base) /* what is cut lay in a segment that is no longer kept */
            cut_all(l, index - 1);
    }
    for (uint32_t i = 0; i < n; i++, index++) {
        size_t len = (size_t)(end - p) >= RECORD_HEAD ? get_u32le(p) : SIZE_MAX / 2;
        uint64_t term;

        if (len > (size_t)(end - p) - RECORD_HEAD ||
            get_u32le(p + 4) != crc_of(crc_of(0, p, 4), p + 8, RECORD_HEAD - 8 + len) || get_u64le(p + 8) != index)
            return wrong(l, "%s: the record of index %" PRIu64 " is wrong", name, index);
        term = get_u64le(p + 16);
        if (term < c->last_term || term > l->term)
            return wrong(l, "%s: index %" PRIu64 " of term %" PRIu64 " after %" PRIu64 ", in term %" PRIu64, name,
                         index, term, c->last_term, l->term);
        c->last_term = term;
        journal_add(l, index, term, slice_of(p + RECORD_HEAD, len));
        p += (RECORD_HEAD + len + 7) / 8 * 8;
    }
    return p == end || wrong(l, "%s: bytes behind the last record", name);
}

/* The batch at `at`, whose size goes to ret_size; 0: no more of them. */
static bool read_batch(struct journal *l, struct chain *c, const char *name, struct slice seg, size_t at,
                       size_t *ret_size)
{
    const uint8_t *b = seg.ptr + at;
    size_t body = get_u32le(b + 36), size = (BATCH_HEAD + body + 8 + SECTOR - 1) / SECTOR * SECTOR;
    uint64_t term = get_u64le(b + 64), vote = get_u64le(b + 72), commit = get_u64le(b + 80);

    *ret_size = 0;
    if (is_zero(b, SECTOR))
        return is_zero(b, seg.len - at) || wrong(l, "%s: something lies behind the end at byte %zu", name, at);
    if (memcmp(b, "BTCH", 4) != 0 || get_u32le(b + 4) != crc_of(0, b + 8, BATCH_HEAD - 8) ||
        get_u64le(b + 8) != c->nonce || get_u64le(b + 24) != at || get_u32le(b + 92) != 0x5a5aa5a5u || body % 8 ||
        size > seg.len - at)
        return wrong(l, "%s: the head of the batch at byte %zu is wrong", name, at);
    if (get_u64le(b + 16) != c->batch + 1 || get_u32le(b + 32) != c->crc)
        return wrong(l, "%s: the batch at byte %zu is not the next one", name, at);
    if (get_u32le(b + 40) != crc_of(0, b + BATCH_HEAD, body) || memcmp(b + BATCH_HEAD + body, "BTCHEND!", 8) != 0 ||
        !is_zero(b + BATCH_HEAD + body + 8, size - BATCH_HEAD - body - 8))
        return wrong(l, "%s: the batch at byte %zu is damaged", name, at);
    if (term < l->term || commit < l->commit || (term == l->term && l->vote && vote != l->vote))
        return wrong(l, "%s: the batch at byte %zu has term %" PRIu64 " vote %" PRIx64 " commit %" PRIu64
                     " after %" PRIu64 " %" PRIx64 " %" PRIu64, name, at, term, vote, commit, l->term, l->vote,
                     l->commit);
    l->term = term;
    l->vote = vote;
    if (!read_records(l, c, name, b, body))
        return false;
    if (commit > journal_last(l))
        return wrong(l, "%s: committed up to %" PRIu64 ", but the log ends at %" PRIu64, name, commit, journal_last(l));
    l->commit = commit;
    c->batch++;
    c->crc = get_u32le(b + 4);
    *ret_size = size;
    return true;
}

/* ret_empty: it was prepared, but never used. */
static bool read_segment(struct journal *l, struct chain *c, const char *name, struct slice seg, bool *ret_empty)
{
    size_t size;

    *ret_empty = is_zero(seg.ptr, seg.len);
    if (*ret_empty)
        return true;
    if (seg.len < SECTOR || seg.len % SECTOR)
        return wrong(l, "%s: %zu bytes", name, seg.len);
    if (!read_head(l, c, name, seg.ptr, seg.len))
        return false;
    for (size_t at = SECTOR; at < seg.len; at += size) {
        if (!read_batch(l, c, name, seg, at, &size))
            return false;
        if (size == 0)
            break;
    }
    return true;
}

/* ---- the log --------------------------------------------------------------------------------------------- */

static int is_segment(const struct dirent *e)
{
    return strlen(e->d_name) == 20 && strcmp(e->d_name + 16, ".wal") == 0;
}

static void read_all(struct journal *l, const char *dir)
{
    struct dirent **names = NULL;
    struct chain c = {0};
    bool empty = false;
    int n = scandir(dir, &names, is_segment, alphasort);

    if (n <= 0)
        (void)wrong(l, "%s: no log: %s", dir, n < 0 ? strerror(errno) : "no segments");
    for (int i = 0; i < n && l->error[0] == 0; i++) {
        char path[PATH_BYTES + 256];
        struct slice seg = SLICE_NONE;
        int err;

        (void)snprintf(path, sizeof path, "%s/%s", dir, names[i]->d_name);
        seg.ptr = file_bytes(path, &seg.len, &err);
        if (seg.ptr == NULL)
            (void)wrong(l, "%s: %s", names[i]->d_name, strerror(-err));
        else if (empty)
            (void)wrong(l, "%s: after a segment that holds nothing", names[i]->d_name);
        else
            (void)read_segment(l, &c, names[i]->d_name, seg, &empty);
        free((void *)(uintptr_t)seg.ptr);
    }
    for (int i = 0; i < n; i++)
        free(names[i]);
    free(names);
    l->there = c.begun;
    if (!c.begun && l->error[0] == 0)
        (void)wrong(l, "%s: a log without a head", dir);
}

void journal_read(struct journal *l, const char *data_dir)
{
    char path[PATH_BYTES], where[PATH_BYTES], *text;
    unsigned number;
    size_t n;
    int err;

    *l = (struct journal){0};
    (void)snprintf(path, sizeof path, "%s/CURRENT", data_dir);
    text = (char *)file_bytes(path, &n, &err);
    if (text == NULL)
        return;
    if (sscanf(text, "cairn 1\nbase %*u\nwal %u %255s", &number, where) == 2 && strcmp(where, "-") == 0) {
        (void)snprintf(path, sizeof path, "%s/wal-%u", data_dir, number);
        read_all(l, path);
    } else {
        (void)wrong(l, "CURRENT does not say where the log is");
    }
    l->there = true;
    free(text);
}
