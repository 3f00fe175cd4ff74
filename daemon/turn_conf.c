/* SPDX-License-Identifier: Apache-2.0 */
/* turn_conf.c - a change of the raft configuration as bytes: the front of an ENTRY_CONF's body, drawn in turn.h.
 *
 * Owner: any thread; nothing is kept.
 */
#include <errno.h>
#include "turn.h"

size_t turn_conf_encode(const struct raft_conf_change *c, uint8_t dst[TURN_CONF_BYTES_MAX])
{
    assert(c->n <= RAFT_MEMBERS_MAX);
    dst[0] = (uint8_t)c->transition;
    dst[1] = (uint8_t)c->n;
    for (uint32_t i = 0; i < c->n; i++) {
        dst[2 + 9 * i] = (uint8_t)c->changes[i].op;
        put_u64le(dst + 3 + 9 * i, c->changes[i].id);
    }
    return 2 + 9 * (size_t)c->n;
}

int turn_conf_decode(struct slice body, struct raft_conf_change *ret_change, struct slice *ret_rest)
{
    struct raft_conf_change c = {0};

    if (body.len < 2 || body.ptr[0] > RAFT_TRANSITION_EXPLICIT || body.ptr[1] > RAFT_MEMBERS_MAX ||
        body.len < 2 + 9 * (size_t)body.ptr[1])
        return -EBADMSG;
    c.transition = (enum raft_transition)body.ptr[0];
    c.n = body.ptr[1];
    for (uint32_t i = 0; i < c.n; i++) {
        c.changes[i].op = (enum raft_change_op)body.ptr[2 + 9 * i]; /* an unknown one, raft_conf_apply refuses */
        c.changes[i].id = get_u64le(body.ptr + 3 + 9 * i);
    }
    *ret_change = c;
    if (ret_rest)
        *ret_rest = slice_of(body.ptr + 2 + 9 * (size_t)c.n, body.len - 2 - 9 * (size_t)c.n);
    return 0;
}
