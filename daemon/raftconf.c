/* SPDX-License-Identifier: Apache-2.0 */
/* raftconf.c - a raft configuration as bytes. */
#include "raftconf.h"
#include <errno.h>

static uint8_t *put_set(uint8_t *p, const struct raft_set *s)
{
    assert(s->n <= RAFT_MEMBERS_MAX);
    *p++ = (uint8_t)s->n;
    for (uint32_t i = 0; i < s->n; i++, p += 8)
        put_u64le(p, s->ids[i]);
    return p;
}

struct slice raftconf_encode(const struct raft_conf *conf, uint8_t *dst)
{
    uint8_t *p = dst;

    *p++ = 1;
    *p++ = conf->auto_leave;
    p = put_set(p, &conf->voters);
    p = put_set(p, &conf->outgoing);
    p = put_set(p, &conf->learners);
    p = put_set(p, &conf->learners_next);
    return slice_of(dst, (size_t)(p - dst));
}

static bool get_set(struct slice *s, struct raft_set *ret)
{
    if (s->len < 1 || s->ptr[0] > RAFT_MEMBERS_MAX || s->len < 1 + (size_t)s->ptr[0] * 8)
        return false;
    ret->n = s->ptr[0];
    for (uint32_t i = 0; i < ret->n; i++)
        ret->ids[i] = get_u64le(s->ptr + 1 + (size_t)i * 8);
    *s = slice_of(s->ptr + 1 + (size_t)ret->n * 8, s->len - 1 - (size_t)ret->n * 8);
    return true;
}

int raftconf_decode(struct slice s, struct raft_conf *ret_conf)
{
    struct raft_conf c = {0};

    if (s.len < 2 || s.ptr[0] != 1)
        return -EBADMSG;
    c.auto_leave = s.ptr[1] != 0;
    s = slice_of(s.ptr + 2, s.len - 2);
    if (!get_set(&s, &c.voters) || !get_set(&s, &c.outgoing) || !get_set(&s, &c.learners) ||
        !get_set(&s, &c.learners_next) || s.len != 0 || !raft_conf_valid(&c))
        return -EBADMSG;
    *ret_conf = c;
    return 0;
}
