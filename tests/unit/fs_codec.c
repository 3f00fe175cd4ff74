/* SPDX-License-Identifier: Apache-2.0 */
/* fs_codec.c - proves that names and components are one to one: 100,000 random keys come back as
 * they were, no name but the canonical one is taken, and the examples of the specification hold. */
#include "fusefs/codec.h"

#include <errno.h>
#include <stdio.h>

#include "fusefs/limits.h"
#include "tap.h"

static uint64_t rng;

static uint32_t dice(uint32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng >> 33) % n;
}

static bool encodes(const char *component, size_t len, bool in_root, const char *want)
{
    char name[256];
    int n = codec_encode(slice_of(component, len), in_root, name, sizeof name);

    return n == (int)strlen(want) && memcmp(name, want, (size_t)n) == 0;
}

static bool refused(const char *name, bool in_root)
{
    uint8_t buf[256];
    size_t n;

    return codec_decode(slice_str(name), in_root, buf, &n) == -EINVAL;
}

static void examples(void)
{
    CHECK(encodes("", 0, false, "%"));
    CHECK(encodes("a", 1, false, "a"));
    CHECK(encodes("%", 1, false, "%25"));
    CHECK(encodes(".", 1, false, "%2E"));
    CHECK(encodes("..", 2, true, "%2E%2E"));
    CHECK(encodes("...", 3, true, "..."));
    CHECK(encodes(".value", 6, false, "%2Evalue"));
    CHECK(encodes(".value", 6, true, "%2Evalue"));
    CHECK(encodes(".etcd", 5, true, "%2Eetcd"));
    CHECK(encodes(".etcd", 5, false, ".etcd"));
    CHECK(encodes(".values", 7, false, ".values"));
    CHECK(encodes("\0\x1f\x7f\xff\n", 5, false, "%00%1F%7F\xff%0A"));
    CHECK(encodes("h\xc3\xa9", 3, false, "h\xc3\xa9"));
}

static void not_canonical(void)
{
    static const char *const bad[] = {"",     "%%",   "%2",        "%2e",    "%41",      "%2F",  "a%",
                                      "a%2",  "%GG",  ".",         "..",     ".value",   "a/b",  "%2Ea",
                                      "%2E.", ".%2E", "\x01",      "a\x7f",  "%2E%76alue", "%25%", "%2Fa"};

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (!refused(bad[i], false)) {
            printf("# taken: %s\n", bad[i]);
            CHECK(false);
        }
    CHECK(refused(".etcd", true));
    CHECK(!refused(".etcd", false));
    CHECK(!refused("%2Eetcd", true));
    CHECK(refused("%2Eetcd", false));
    CHECK(!refused("%2Evalue", false));
}

static void too_long(void)
{
    char buf[8];

    CHECK(codec_encode(S("12345678"), false, buf, sizeof buf) == 8);
    CHECK(codec_encode(S("123456789"), false, buf, sizeof buf) == -ENAMETOOLONG);
    CHECK(codec_encode(S("123456%"), false, buf, sizeof buf) == -ENAMETOOLONG);
    CHECK(codec_encode(S(""), false, buf, 0) == -ENAMETOOLONG);
}

/* Bytes that matter come often: '/', '.', '%', digits, control bytes; now and then a reserved word. */
static size_t random_key(uint8_t *key, size_t max, bool slashes)
{
    static const char *const words[] = {".value", ".etcd", ".", "..", "%", "%2E", "%2F"};
    size_t n = 0, want = dice(5) ? dice(12) : dice((uint32_t)max);

    while (n < want) {
        uint32_t kind = dice(8);

        if (kind == 0) {
            const char *w = words[dice(sizeof words / sizeof *words)];

            for (; *w && n < max; w++)
                key[n++] = (uint8_t)*w;
        } else if (kind == 1 && slashes) {
            key[n++] = '/';
        } else if (kind == 2) {
            key[n++] = (uint8_t)"./%\x7f\x1f 0aF"[dice(9)];
        } else {
            key[n++] = (uint8_t)dice(256);
        }
    }
    if (!slashes)
        for (size_t i = 0; i < n; i++)
            key[i] = key[i] == '/' ? '_' : key[i];
    return n;
}

/* key -> path -> key, component by component, as the tree does it; each name is one the kernel passes on. */
static void keys_there_and_back(void)
{
    uint8_t key[300], back[1200];
    char name[1200];

    for (int round = 0; round < 100000; round++) {
        size_t n = random_key(key, 256, true), from = 0, got = 0;
        bool ok = true;

        for (bool first = true;; first = false) {
            const uint8_t *slash = memchr(key + from, '/', n - from);
            size_t len = slash ? (size_t)(slash - key) - from : n - from, out = 0;
            int m = codec_encode(slice_of(key + from, len), first, name, sizeof name);

            ok = ok && m > 0 && !memchr(name, '/', (size_t)m) && !memchr(name, 0, (size_t)m);
            ok = ok && !(m == 1 && name[0] == '.') && !(m == 2 && name[0] == '.' && name[1] == '.');
            ok = ok && codec_decode(slice_of(name, (size_t)m), first, back + got, &out) == 0;
            got += out;
            if (!ok || slash == NULL)
                break;
            back[got++] = '/';
            from += len + 1;
        }
        if (!ok || got != n || memcmp(back, key, n) != 0) {
            printf("# round %d\n", round);
            CHECK(false);
            return;
        }
    }
}

static void flat_names(void)
{
    uint8_t key[300], back[1200];
    char name[1200];

    for (int round = 0; round < 100000; round++) {
        size_t n = random_key(key, 256, true), got = 0;
        int m = codec_encode_key(slice_of(key, n), name, sizeof name);

        if (n == 0) {
            CHECK(m == -EINVAL);
            continue;
        }
        if (m <= 0 || memchr(name, '/', (size_t)m) ||
            codec_decode_key(slice_of(name, (size_t)m), back, &got) || got != n ||
            memcmp(key, back, n) != 0) {
            printf("# round %d\n", round);
            CHECK(false);
            return;
        }
    }
}

/* Any bytes as a name: refused, or the very name that its component gets. */
static void names_are_unique(void)
{
    uint8_t name[64], component[64];
    char again[256];
    int taken = 0;

    for (int round = 0; round < 300000; round++) {
        size_t n = random_key(name, 40, false), len;
        bool in_root = dice(2);

        if (codec_decode(slice_of(name, n), in_root, component, &len))
            continue;
        taken++;
        int m = codec_encode(slice_of(component, len), in_root, again, sizeof again);

        CHECK(m == (int)n && memcmp(again, name, n) == 0);
    }
    CHECK(taken > 1000);
}

static void prefix_ends(void)
{
    uint8_t end[8];

    CHECK(codec_prefix_end(S("a/"), end) == 2 && memcmp(end, "a0", 2) == 0);
    CHECK(codec_prefix_end(S("a\xff\xff"), end) == 1 && end[0] == 'b');
    CHECK(codec_prefix_end(S(""), end) == 1 && end[0] == 0);
    CHECK(codec_prefix_end(S("\xff"), end) == 1 && end[0] == 0);
}

int main(void)
{
    const char *seed = getenv("SEED");

    rng = seed ? strtoull(seed, NULL, 0) : 20260101;
    printf("# SEED=%llu\n", (unsigned long long)rng);
    TEST(examples);
    TEST(not_canonical);
    TEST(too_long);
    TEST(keys_there_and_back);
    TEST(flat_names);
    TEST(names_are_unique);
    TEST(prefix_ends);
    return tap_done();
}
