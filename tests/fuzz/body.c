/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: body_decode touches no memory that is not its own, and what it accepts is what body_encode writes. */
#include "daemon/change.h"

#define FUZZ_NAME        "body"
#define FUZZ_SEED_INPUTS body_seed_input

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    uint8_t *own = malloc(n + 1), *again;
    Mvccpb__KeyValue kv;
    struct change c;
    struct slice value;

    if (own == NULL)
        return 0;
    memcpy(own + 1, bytes, n); /* its end is the end of an allocation: a sanitizer sees a step beyond */
    if (body_decode(slice_of(own + 1, n), &kv) == 0) {
        c = (struct change){.key = slice_of(kv.key.data, kv.key.len),
                            .rev = {kv.mod_revision, 0},
                            .create_revision = kv.create_revision,
                            .version = kv.version,
                            .lease = kv.lease};
        value = slice_of(kv.value.data, kv.value.len);
        assert(body_size(&c, value) == n);
        again = malloc(n);
        assert(again != NULL);
        body_encode(&c, value, again);
        assert(memcmp(again, bytes, n) == 0);
        free(again);
    }
    free(own);
    return 0;
}

static size_t body_seed_input(unsigned i, uint8_t *buf, size_t size)
{
    static const struct change good[] = {
        {.key = {(const uint8_t *)"k", 1}, .rev = {2, 0}, .create_revision = 2, .version = 1},
        {.key = {(const uint8_t *)"a/key", 5},
         .rev = {INT64_MAX, 0},
         .create_revision = 300,
         .version = 200,
         .lease = -1},
        {.key = {(const uint8_t *)"gone", 4}, .rev = {9, 1}, .tombstone = true},
        {.key = {(const uint8_t *)"odd", 3}, .lease = INT64_MIN},
    };
    struct slice value = i % 2 ? S("a value") : SLICE_NONE;
    size_t n;

    if (i >= 2 * sizeof good / sizeof good[0])
        return 0;
    n = body_size(&good[i / 2], value);
    assert(n <= size);
    body_encode(&good[i / 2], value, buf);
    return n;
}

#include "replay.inc"
