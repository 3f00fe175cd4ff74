/* SPDX-License-Identifier: Apache-2.0 */
/* member_row.h - a row of TABLE_MEMBER: key id u64be; value etcdserverpb.Member, or one zero byte when this id was
 * removed, which is remembered for ever: an id never comes again. */
#pragma once
#include "delta.h"
#include "rpc.pb-c.h"

static inline struct slice member_row_gone(void)
{
    return S("\0");
}

static inline bool member_row_is_gone(struct slice value)
{
    return value.len == 1 && value.ptr[0] == 0; /* a Member begins with the tag of its ID */
}

static inline struct slice member_row_key(uint64_t id, uint8_t dst[8])
{
    put_u64be(dst, id);
    return slice_of(dst, 8);
}
