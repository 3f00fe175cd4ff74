/* SPDX-License-Identifier: Apache-2.0 */
/* change.c - proves that bodies are byte for byte what protobuf writes for mvccpb.KeyValue, that every body
 * decodes to what was encoded, and that nothing but such bytes decodes. */
#include <errno.h>
#include "daemon/change.h"
#include "tap.h"

static uint64_t seed;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static void equals_etcds_bytes(void)
{
    /* mvccpb.KeyValue{Key: "foo", CreateRevision: 2, ModRevision: 300, Version: 1, Value: "b", Lease: -1} */
    static const uint8_t want[] = {0x0a, 3,    'f',  'o',  'o',  0x10, 2,    0x18, 0xac,
                                   2,    0x20, 1,    0x2a, 1,    'b',  0x30, 255,  0xff,
                                   0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01};
    struct change c = {.key = S("foo"), .rev = {300, 4}, .create_revision = 2, .version = 1, .lease = -1};
    uint8_t got[64];

    REQUIRE(body_size(&c, S("b")) == sizeof want);
    body_encode(&c, S("b"), got);
    CHECK(memcmp(got, want, sizeof want) == 0);
}

static void tombstone_is_the_key_alone(void)
{
    struct change c = {.key = S("foo"), .rev = {300, 0}, .tombstone = true};
    Mvccpb__KeyValue kv;
    uint8_t got[8];

    REQUIRE(body_size(&c, SLICE_NONE) == 5);
    body_encode(&c, SLICE_NONE, got);
    CHECK(memcmp(got,
                 "\x0a\x03"
                 "foo",
                 5) == 0);
    CHECK(body_decode(slice_of(got, 5), &kv) == 0);
    CHECK(kv.key.len == 3 && kv.mod_revision == 0 && kv.value.len == 0);
}

static int64_t random_int(void)
{
    uint64_t v = rnd() >> (rnd() % 64);

    return rnd() % 4 ? (int64_t)v : rnd() % 2 ? 0 : -(int64_t)(v >> 1);
}

static void equals_protobuf_c_and_comes_back(void)
{
    static uint8_t key[400], value[70000], mine[80000], theirs[80000];

    for (int i = 0; i < 20000; i++) {
        struct change c = {.key = {key, 1 + rnd() % sizeof key},
                           .rev = {random_int(), 0},
                           .create_revision = random_int(),
                           .version = random_int(),
                           .lease = random_int()};
        struct slice v = {value, rnd() % 3 ? rnd() % 300 : i % 100 ? 0 : rnd() % sizeof value};
        Mvccpb__KeyValue kv = MVCCPB__KEY_VALUE__INIT, back;
        size_t n;

        key[rnd() % sizeof key] = (uint8_t)rnd();
        value[rnd() % sizeof value] = (uint8_t)rnd();
        kv.key = (ProtobufCBinaryData){c.key.len, key};
        kv.value = (ProtobufCBinaryData){v.len, value};
        kv.create_revision = c.create_revision;
        kv.mod_revision = c.rev.main;
        kv.version = c.version;
        kv.lease = c.lease;
        n = mvccpb__key_value__pack(&kv, theirs);
        REQUIRE(body_size(&c, v) == n);
        body_encode(&c, v, mine);
        REQUIRE(memcmp(mine, theirs, n) == 0);
        REQUIRE(body_decode(slice_of(mine, n), &back) == 0);
        REQUIRE(back.create_revision == c.create_revision && back.mod_revision == c.rev.main);
        REQUIRE(back.version == c.version && back.lease == c.lease);
        REQUIRE(slice_eq(slice_of(back.key.data, back.key.len), c.key));
        REQUIRE(slice_eq(slice_of(back.value.data, back.value.len), v));
        REQUIRE(back.value.len == 0 || (back.value.data > mine && back.value.data < mine + n));
    }
}

static void refuses_all_else(void)
{
    static const struct slice bad[] = {
        {(const uint8_t *)"", 0},
        S("\x0a"),
        S("\x0a\x00"), /* an empty key */
        S("\x0a\x04"
          "foo"), /* cut */
        S("\x0a\x83\x00"
          "foo"), /* a length in two bytes where one does */
        S("\x0a\x01"
          "k"
          "\x10\x00"), /* a zero that should be left out */
        S("\x0a\x01"
          "k"
          "\x18\x01\x10\x01"), /* out of order */
        S("\x0a\x01"
          "k"
          "\x10\x01\x10\x01"), /* twice */
        S("\x0a\x01"
          "k"
          "\x2a\x00"),
        S("\x0a\x01"
          "k"
          "\x38\x01"), /* no such field */
        S("\x0a\x01"
          "k"
          "\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"), /* 65 bits */
        S("\x0a\x01"
          "k"
          "\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        S("\x10\x01"), /* no key */
        S("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
          "k"), /* a length beyond any */
    };
    Mvccpb__KeyValue kv;

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        kv.version = 77;
        CHECK(body_decode(bad[i], &kv) == -EBADMSG);
        CHECK(kv.version == 77);
    }
}

/* Any bytes that decode are the very bytes we would write. */
static void what_decodes_is_canonical(void)
{
    struct change c = {
        .key = S("some/key"), .rev = {1000, 0}, .create_revision = 200, .version = 3, .lease = 5};
    uint8_t good[64], bytes[64], again[64];
    size_t n = body_size(&c, S("value")), decoded = 0;

    body_encode(&c, S("value"), good);
    for (int i = 0; i < 200000; i++) {
        Mvccpb__KeyValue kv;
        size_t len = rnd() % 8 ? n : rnd() % (n + 1);

        memcpy(bytes, good, n);
        for (uint64_t k = rnd() % 3; k > 0; k--)
            bytes[rnd() % n] = (uint8_t)rnd();
        if (body_decode(slice_of(bytes, len), &kv))
            continue;
        decoded++;
        c = (struct change){.key = slice_of(kv.key.data, kv.key.len),
                            .rev = {kv.mod_revision, 0},
                            .create_revision = kv.create_revision,
                            .version = kv.version,
                            .lease = kv.lease};
        REQUIRE(body_size(&c, slice_of(kv.value.data, kv.value.len)) == len);
        body_encode(&c, slice_of(kv.value.data, kv.value.len), again);
        REQUIRE(memcmp(again, bytes, len) == 0);
    }
    CHECK(decoded > 1000);
}

int main(void)
{
    seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 0) : 0x9e3779b97f4a7c15;
    printf("# SEED=%llu\n", (unsigned long long)seed);
    TEST(equals_etcds_bytes);
    TEST(tombstone_is_the_key_alone);
    TEST(equals_protobuf_c_and_comes_back);
    TEST(refuses_all_else);
    TEST(what_decodes_is_canonical);
    return tap_done();
}
