/* SPDX-License-Identifier: Apache-2.0 */
/* fs_codec.c - fuzz target: any bytes as a name are refused or canonical, and any bytes as a key come
 * back. */
#include <errno.h>

#include "fusefs/codec.h"

#define INPUT_MAX 1024

static void as_name(struct slice name, bool in_root)
{
    uint8_t component[INPUT_MAX];
    char again[INPUT_MAX * CODEC_EXPANSION];
    size_t len;

    if (codec_decode(name, in_root, component, &len))
        return;
    int n = codec_encode(slice_of(component, len), in_root, again, sizeof again);

    assert(n == (int)name.len);
    assert(memcmp(again, name.ptr, name.len) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char name[INPUT_MAX * CODEC_EXPANSION];
    uint8_t key[INPUT_MAX * CODEC_EXPANSION];
    size_t len;

    if (size == 0 || size > INPUT_MAX)
        return 0;
    as_name(slice_of(data, size), false);
    as_name(slice_of(data, size), true);

    int n = codec_encode_key(slice_of(data, size), name, sizeof name);

    assert(n > 0);
    assert(codec_decode_key(slice_of(name, (size_t)n), key, &len) == 0);
    assert(len == size);
    assert(memcmp(key, data, size) == 0);
    return 0;
}

static size_t seed_input(unsigned i, uint8_t *buf, size_t size)
{
    static const char *const seeds[] = {"%", "%2E", "%2E%2E", "%2Evalue", "%2Eetcd", ".value", ".etcd",
                                        "%00%7F%25", "app%2Fdb%2Fhost", "h\xc3\xa9llo", "%2e", "a%2Fb%"};
    size_t n;

    if (i >= sizeof seeds / sizeof *seeds)
        return 0;
    n = strlen(seeds[i]);
    if (n > size)
        n = size;
    memcpy(buf, seeds[i], n);
    return n;
}

#define FUZZ_NAME "fs_codec"
#define FUZZ_SEED_INPUTS seed_input
#include "replay.inc"
