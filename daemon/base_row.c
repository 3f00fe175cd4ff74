/* SPDX-License-Identifier: Apache-2.0 */
/* base_row.c - the rows of base as bytes, as base.c draws them.
 *
 * Encoders are given what we have made ourselves: they assert. Decoders are given bytes from disk whose
 * crc was right: what they still cannot read is -EUCLEAN.
 */
#include <errno.h>
#include "base_db.h"
#include "crc32c.h"

enum { ROW_HAS = 1, ROW_TOMBSTONE = 2, ROW_LEASE = 4, ROW_CHILD = 8 };
enum { HEAD_TOMBSTONE = 1, HEAD_LEASE = 2 };

uint32_t row_crc(enum base_table t, struct slice key, struct slice value)
{
    uint8_t id = (uint8_t)t;
    uint32_t crc = crc32c(0, &id, 1);

    crc = crc32c(crc, key.ptr, key.len);
    return value.len ? crc32c(crc, value.ptr, value.len) : crc;
}

int row_check(enum base_table t, struct slice key, struct slice v, struct slice *ret_value)
{
    struct slice value;

    if (v.len < 4)
        return -EUCLEAN;
    value = slice_of(v.ptr, v.len - 4);
    if (row_crc(t, key, value) != get_u32le(v.ptr + value.len))
        return -EUCLEAN;
    *ret_value = value;
    return 0;
}

/* ---- varints ---- */

static uint8_t *put_varint(uint8_t *p, uint64_t v)
{
    while (v >= 0x80) {
        *p++ = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    *p++ = (uint8_t)v;
    return p;
}

static uint8_t *put_rev(uint8_t *p, struct rev r)
{
    return put_varint(put_varint(p, (uint64_t)r.main), r.sub);
}

/* A reader of bytes that notes when they end too early, so that a decoder asks once, at its end. */
struct in {
    const uint8_t *p, *end;
    bool bad;
};

static struct in in_of(struct slice s)
{
    return (struct in){s.ptr, s.ptr + s.len, false};
}

static uint64_t get_varint(struct in *in)
{
    uint64_t v = 0;

    for (unsigned shift = 0; shift < 64 && in->p < in->end; shift += 7) {
        uint8_t c = *in->p++;

        v |= (uint64_t)(c & 0x7f) << shift;
        if (!(c & 0x80))
            return v;
    }
    in->bad = true;
    return 0;
}

static uint64_t get_fixed64(struct in *in)
{
    if (in->end - in->p < 8) {
        in->bad = true;
        return 0;
    }
    in->p += 8;
    return get_u64be(in->p - 8);
}

static int64_t get_number(struct in *in)
{
    uint64_t v = get_varint(in);

    in->bad |= v > INT64_MAX;
    return (int64_t)v;
}

static struct rev get_rev(struct in *in)
{
    int64_t main = get_number(in);
    uint64_t sub = get_varint(in);

    in->bad |= sub > UINT32_MAX;
    return (struct rev){main, (uint32_t)sub};
}

/* ---- index and long ---- */

/* L[j] exists once some ordinal was a multiple of 2^j. */
static unsigned levels_of(uint64_t n)
{
    unsigned top = 63 - (unsigned)__builtin_clzll(n);

    return top < BASE_LEVELS ? top + 1 : BASE_LEVELS;
}

size_t index_row_encode(const struct index_row *r, uint8_t *dst)
{
    uint8_t *p = dst;

    assert(r->has || r->child);
    *p++ = (uint8_t)((r->has ? ROW_HAS : 0) | (r->has && r->tombstone ? ROW_TOMBSTONE : 0) |
                     (r->has && r->lease ? ROW_LEASE : 0) | (r->child ? ROW_CHILD : 0));
    if (r->child) {
        put_u64be(p, r->child);
        p += 8;
    }
    if (!r->has)
        return (size_t)(p - dst);
    assert(r->n > 0 && r->newest.main > 0);
    p = put_varint(put_rev(p, r->newest), r->n);
    if (!r->tombstone)
        p = put_varint(put_varint(p, (uint64_t)r->create_revision), (uint64_t)r->version);
    if (r->lease) {
        put_u64be(p, (uint64_t)r->lease);
        p += 8;
    }
    for (unsigned j = 1, n = levels_of(r->n); j < n; j++)
        p = put_rev(p, r->level[j]);
    assert(p - dst <= BASE_ROW_MAX - 4);
    return (size_t)(p - dst);
}

int index_row_decode(struct slice v, struct index_row *ret_r)
{
    struct in in = in_of(v);
    struct index_row r = {0};
    unsigned flags;

    if (v.len == 0)
        return -EUCLEAN;
    flags = *in.p++;
    if (flags & ROW_CHILD)
        r.child = get_fixed64(&in);
    r.has = flags & ROW_HAS;
    if (r.has) {
        r.tombstone = flags & ROW_TOMBSTONE;
        r.newest = get_rev(&in);
        r.n = get_varint(&in);
        if (!r.tombstone) {
            r.create_revision = get_number(&in);
            r.version = get_number(&in);
        }
        if (flags & ROW_LEASE)
            r.lease = (int64_t)get_fixed64(&in);
        if (in.bad || r.n == 0)
            return -EUCLEAN;
        r.level[0] = r.newest;
        for (unsigned j = 1, n = levels_of(r.n); j < n; j++)
            r.level[j] = get_rev(&in);
    }
    if (in.bad || in.p != in.end || (!r.has && !r.child))
        return -EUCLEAN;
    *ret_r = r;
    return 0;
}

/* ---- log ---- */

void log_key(struct rev rev, unsigned part, uint8_t dst[static BASE_LOG_KEY_BYTES])
{
    put_u64be(dst, (uint64_t)rev.main);
    put_u32be(dst + 8, rev.sub);
    put_u16be(dst + 12, (uint16_t)part);
}

struct rev log_key_rev(const uint8_t *p)
{
    return (struct rev){(int64_t)get_u64be(p), get_u32be(p + 8)};
}

void lease_key(int64_t lease, struct rev rev, uint8_t dst[static BASE_LEASE_KEY_BYTES])
{
    put_u64be(dst, (uint64_t)lease);
    put_u64be(dst + 8, (uint64_t)rev.main);
    put_u32be(dst + 16, rev.sub);
}

/* Change n has a pointer for each power of two that divides n, up to 2^15. */
static unsigned pointers_of(uint64_t n)
{
    unsigned zeros = (unsigned)__builtin_ctzll(n);

    return zeros < BASE_LEVELS ? zeros + 1 : BASE_LEVELS;
}

size_t log_head_encode(const struct log_head *h, uint8_t *dst)
{
    uint8_t *p = dst;

    assert(h->n > 0);
    assert(h->n_pointers == pointers_of(h->n));
    *p++ = (uint8_t)((h->tombstone ? HEAD_TOMBSTONE : 0) | (h->lease ? HEAD_LEASE : 0));
    p = put_varint(p, h->n);
    if (h->lease) {
        put_u64be(p, (uint64_t)h->lease);
        p += 8;
    }
    for (unsigned j = 0; j < h->n_pointers; j++)
        p = put_rev(p, h->pointer[j]);
    p = put_varint(p, h->body_len);
    assert(p - dst <= BASE_HEAD_MAX);
    return (size_t)(p - dst);
}

int log_head_decode(struct slice v, struct log_head *ret_h)
{
    struct in in = in_of(v);
    struct log_head h = {0};
    unsigned flags;

    if (v.len == 0)
        return -EUCLEAN;
    flags = *in.p++;
    h.tombstone = flags & HEAD_TOMBSTONE;
    h.n = get_varint(&in);
    if (flags & HEAD_LEASE)
        h.lease = (int64_t)get_fixed64(&in);
    if (in.bad || h.n == 0)
        return -EUCLEAN;
    h.n_pointers = pointers_of(h.n);
    for (unsigned j = 0; j < h.n_pointers; j++)
        h.pointer[j] = get_rev(&in);
    h.body_len = get_varint(&in);
    if (in.bad || h.body_len == 0 || h.body_len > (size_t)BASE_PARTS_MAX * BASE_PART_BODY)
        return -EUCLEAN;
    h.first = slice_of(in.p, (size_t)(in.end - in.p));
    /* Part 0 is filled before there is a part 1. */
    if (h.first.len > h.body_len || (h.first.len < h.body_len && v.len != BASE_PART_BODY))
        return -EUCLEAN;
    *ret_h = h;
    return 0;
}

/* ---- the beginning of a body ---- */

int body_key_at(struct slice first, size_t *ret_offset, size_t *ret_len)
{
    struct in in = in_of(first);
    uint64_t len;

    if (first.len == 0 || *in.p++ != 0x0a) /* field 1, bytes */
        return -EUCLEAN;
    len = get_varint(&in);
    if (in.bad || len == 0)
        return -EUCLEAN;
    *ret_offset = (size_t)(in.p - first.ptr);
    *ret_len = len;
    return 0;
}

int body_numbers(struct slice after_key, struct change *c)
{
    struct in in = in_of(after_key);

    while (in.p < in.end && !in.bad) {
        switch (*in.p++) {
        case 0x10: c->create_revision = get_number(&in); break;          /* field 2 */
        case 0x18: in.bad |= get_number(&in) != c->rev.main; break;      /* field 3 */
        case 0x20: c->version = get_number(&in); break;                  /* field 4 */
        default: return 0;
        }
    }
    return in.bad ? -EUCLEAN : 0;
}
