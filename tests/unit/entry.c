/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: crc32c equals the RFC 3720 vectors both ways it is computed; an entry decodes to what was encoded and no
 * other bytes decode beyond their end; the cache holds its limit, its order, cuts a replaced suffix, restarts after a
 * gap, and never drops what is not done yet. */
#include <errno.h>
#include "daemon/crc32c.c"
#include "daemon/entry.h"
#include "tap.h"

static void crc_vectors(void)
{
    uint8_t zero[32] = {0}, ones[32], up[32];

    memset(ones, 0xff, sizeof ones);
    for (int i = 0; i < 32; i++)
        up[i] = (uint8_t)i;
    CHECK(crc32c(0, zero, 32) == 0x8a9136aa);
    CHECK(crc32c(0, ones, 32) == 0x62a8ab43);
    CHECK(crc32c(0, up, 32) == 0x46dd794e);
    CHECK(crc32c(0, "123456789", 9) == 0xe3069283);
    CHECK(crc32c(crc32c(0, "1234", 4), "56789", 5) == 0xe3069283);
    CHECK(~by_table(~0u, up, 32) == 0x46dd794e);
    for (size_t n = 0; n <= 32; n++)
        CHECK(by_table(7, up, n) == (have_instruction ? by_instruction(7, up, n) : by_table(7, up, n)));
}

static void codec(void)
{
    struct entry_head h = {.kind = ENTRY_TXN, .origin = 1, .request_id = 2, .auth_revision = 3, .proposal_term = 4,
                           .user = S("root"), .body = S("b\0dy")}, got;
    uint8_t buf[64];

    REQUIRE(entry_size(&h) == 48);
    entry_encode(&h, buf);
    REQUIRE(entry_decode(slice_of(buf, 48), &got) == 0);
    CHECK(got.kind == ENTRY_TXN && got.origin == 1 && got.request_id == 2 && got.auth_revision == 3);
    CHECK(got.proposal_term == 4 && slice_eq(got.user, S("root")) && slice_eq(got.body, S("b\0dy")));
    CHECK(entry_decode(SLICE_NONE, &got) == 0 && got.kind == ENTRY_NOOP && got.body.len == 0);
    for (size_t n = 1; n < 44; n++) /* cut inside the head or the user's name */
        CHECK(entry_decode(slice_of(buf, n), &got) == -EBADMSG);
    for (int at = 0; at < 8; at++) { /* another version, an unknown kind, a name too long, bits we do not know */
        static const uint8_t wrong[8] = {2, ENTRY_KINDS, 9, 1, 1, 1, 1, 1};
        uint8_t keep = buf[at];

        buf[at] = wrong[at];
        CHECK(entry_decode(slice_of(buf, 48), &got) == -EBADMSG);
        buf[at] = keep;
    }
}

static void put(struct entry_cache *c, uint64_t index, uint64_t term, size_t len)
{
    struct entry *e = entry_new(len);

    REQUIRE(e != NULL);
    e->index = index;
    e->term = term;
    entry_cache_put(c, e);
    entry_unref(e);
}

static uint64_t term_at(struct entry_cache *c, uint64_t index)
{
    struct entry *e = entry_cache_get(c, index);
    uint64_t term = e ? e->term : 0;

    entry_unref(e);
    return term;
}

static void cache(void)
{
    struct entry_cache *c = entry_cache_new(100 * 1000);
    struct entry *held;

    REQUIRE(c != NULL);
    CHECK(entry_cache_get(c, 1) == NULL);
    for (uint64_t i = 1; i <= 3000; i++) /* beyond the first ring, beyond the limit: nothing is done yet */
        put(c, i, 1, 976);
    CHECK(term_at(c, 1) == 1 && term_at(c, 3000) == 1 && term_at(c, 3001) == 0 && term_at(c, 0) == 0);
    held = entry_cache_get(c, 5);
    entry_cache_done(c, 2990);
    CHECK(term_at(c, 2989) == 1 || term_at(c, 2990) == 1);
    CHECK(term_at(c, 2890) == 0 && term_at(c, 3000) == 1);
    CHECK(held->index == 5 && held->len == 976); /* dropped from the cache, alive while held */
    entry_unref(held);
    put(c, 2995, 2, 8); /* a later term replaces the suffix */
    CHECK(term_at(c, 2995) == 2 && term_at(c, 2996) == 0 && term_at(c, 2994) == 1);
    entry_cache_forget(c, 2993);
    CHECK(term_at(c, 2989) == 0 && term_at(c, 2990) == 1); /* what is not done stays */
    entry_cache_done(c, 2994);
    entry_cache_forget(c, 2993);
    CHECK(term_at(c, 2992) == 0 && term_at(c, 2993) == 1);
    put(c, 2990, 3, 60 * 1000); /* replaces what was done: not done itself, whatever the limit */
    put(c, 2991, 3, 60 * 1000);
    put(c, 2992, 3, 60 * 1000);
    CHECK(term_at(c, 2990) == 3 && term_at(c, 2991) == 3 && term_at(c, 2992) == 3);
    entry_cache_done(c, 2992);
    CHECK(term_at(c, 2990) == 0 && term_at(c, 2991) == 0 && term_at(c, 2992) == 3);
    put(c, 5000, 3, 8); /* a gap: the old ones go */
    CHECK(term_at(c, 2993) == 0 && term_at(c, 5000) == 3 && term_at(c, 4999) == 0);
    put(c, 10, 4, 8); /* a cut to below the oldest */
    CHECK(term_at(c, 10) == 4 && term_at(c, 5000) == 0 && term_at(c, 11) == 0);
    entry_cache_free(c);
    entry_cache_free(NULL);
}

int main(void)
{
    TEST(crc_vectors);
    TEST(codec);
    TEST(cache);
    return tap_done();
}
