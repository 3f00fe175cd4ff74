/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: no bytes of a client's make the decoding of a request touch memory that is not theirs, recurse without bound
 * or take more than the arena's limit; and what was decoded can be packed, and decodes again to the same bytes.
 *
 * The input is a byte that picks a message type, then the message.
 */
#include "daemon/pb.h"
#include "err.h"
#include "health.pb-c.h"
#include "rpc.pb-c.h"
#include "tree.pb-c.h"

#define FUZZ_NAME "request"
#define FUZZ_SEED_INPUTS request_seed_input

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

static const ProtobufCMessageDescriptor *const types[] = {
    &etcdserverpb__txn_request__descriptor,     &etcdserverpb__range_request__descriptor,
    &etcdserverpb__put_request__descriptor,     &etcdserverpb__delete_range_request__descriptor,
    &etcdserverpb__watch_request__descriptor,   &etcdserverpb__compaction_request__descriptor,
    &etcdserverpb__alarm_request__descriptor,   &etcdserverpb__lease_grant_request__descriptor,
    &etcdserverpb__member_add_request__descriptor, &grpc__health__v1__health_check_request__descriptor,
    &cairn__rename_request__descriptor,
};
enum { N_TYPES = sizeof types / sizeof *types, ARENA_BYTES = 1 << 20 };

static struct slice packed(struct arena *a, const ProtobufCMessage *m)
{
    size_t n = protobuf_c_message_get_packed_size(m);
    uint8_t *p = arena_alloc(a, n + 1);

    if (p == NULL)
        return SLICE_NONE;
    return slice_of(p, protobuf_c_message_pack(m, p));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const ProtobufCMessageDescriptor *d;
    ProtobufCMessage *m, *again;
    struct slice first, second;
    struct arena a, tiny;
    int err;

    if (size == 0)
        return 0;
    d = types[data[0] % N_TYPES];
    arena_init(&a, ARENA_BYTES, NULL, 0);
    arena_init(&tiny, 256, NULL, 0);
    err = pb_unpack(d, &a, slice_of(data + 1, size - 1), &m);
    assert(err == 0 || err == ERR_BAD_REQUEST || err == ERR_ARENA_FULL || err == ERR_TOO_DEEP);
    assert(a.used_bytes <= ARENA_BYTES);
    if (err == 0) {
        first = packed(&a, m);
        if (first.ptr && pb_unpack(d, &a, first, &again) == 0) {
            second = packed(&a, again);
            assert(second.ptr == NULL || slice_eq(first, second));
        }
    }
    (void)pb_unpack(d, &tiny, slice_of(data + 1, size - 1), &m);
    assert(tiny.used_bytes <= 256);
    arena_fini(&a);
    arena_fini(&tiny);
    return 0;
}

/* Each type once: a txn in a txn, and small ones made by hand. */
static size_t request_seed_input(unsigned i, uint8_t *buf, size_t size)
{
    static const uint8_t txn[] = {0, 0x0a, 7,    0x10, 1, 0x1a, 1, 'k', 0x20, 3,            /* compare */
                                  0x12, 8, 0x12, 6,    0x0a, 1, 'k', 0x12, 1,   'v',        /* put */
                                  0x1a, 9, 0x22, 7,    0x12, 5, 0x0a, 3, 0x0a, 1, 'k'};     /* txn { range } */
    static const uint8_t range[] = {1, 0x0a, 1, 'a', 0x12, 1, 'b', 0x18, 10, 0x20, 7, 0x28, 1, 0x30, 2, 0x38, 1};
    static const uint8_t watch[] = {4, 0x0a, 10, 0x0a, 1, 'a', 0x12, 1, 'b', 0x2a, 2, 0, 1};
    static const uint8_t member[] = {8, 0x0a, 3, 'u', 'r', 'l', 0x10, 1};
    static const struct slice all[] = {{txn, sizeof txn}, {range, sizeof range}, {watch, sizeof watch},
                                       {member, sizeof member}};

    if (i >= sizeof all / sizeof *all || size < all[i].len)
        return 0;
    memcpy(buf, all[i].ptr, all[i].len);
    return all[i].len;
}

#include "replay.inc"
