/* SPDX-License-Identifier: Apache-2.0 */
/* confchange.c - from one configuration to the next: simple changes and joint consensus (T 4.1, 4.3).
 *
 * Promise: what comes out is valid, and its quorums overlap those of what went in: at most one voter
 * differs, or the old voters stay as `outgoing` until the joint configuration is left.
 *
 * Not here: when a change may be proposed (leader.c), when it takes effect (members.c).
 * Source: T 4; etcd-io/raft confchange for learners_next and the three transitions.
 */
#include <errno.h>
#include "raft.h"

static uint32_t set_find(const struct raft_set *s, uint64_t id)
{
    uint32_t i = 0;

    while (i < s->n && s->ids[i] < id)
        i++;
    return i;
}

bool raft_set_has(const struct raft_set *s, uint64_t id)
{
    uint32_t i = set_find(s, id);

    return i < s->n && s->ids[i] == id;
}

static int set_add(struct raft_set *s, uint64_t id)
{
    uint32_t i = set_find(s, id);

    if (i < s->n && s->ids[i] == id)
        return 0;
    if (s->n == RAFT_MEMBERS_MAX)
        return -EINVAL;
    memmove(&s->ids[i + 1], &s->ids[i], (s->n - i) * sizeof(s->ids[0]));
    s->ids[i] = id;
    s->n++;
    return 0;
}

static void set_remove(struct raft_set *s, uint64_t id)
{
    uint32_t i = set_find(s, id);

    if (i == s->n || s->ids[i] != id)
        return;
    s->n--;
    memmove(&s->ids[i], &s->ids[i + 1], (s->n - i) * sizeof(s->ids[0]));
}

static bool set_valid(const struct raft_set *s)
{
    if (s->n > RAFT_MEMBERS_MAX || (s->n && s->ids[0] == 0))
        return false;
    for (uint32_t i = 1; i < s->n; i++)
        if (s->ids[i - 1] >= s->ids[i])
            return false;
    return true;
}

bool raft_conf_valid(const struct raft_conf *c)
{
    struct raft_set all;

    if (!set_valid(&c->voters) || !set_valid(&c->outgoing) || !set_valid(&c->learners) ||
        !set_valid(&c->learners_next))
        return false;
    /* A joint configuration is the only one with outgoing, learners_next or auto_leave. */
    if (c->outgoing.n == 0 && (c->learners_next.n || c->auto_leave))
        return false;
    all = c->voters;
    for (uint32_t i = 0; i < c->outgoing.n; i++)
        if (set_add(&all, c->outgoing.ids[i]))
            return false;
    for (uint32_t i = 0; i < c->learners.n; i++)
        if (raft_set_has(&all, c->learners.ids[i]) || set_add(&all, c->learners.ids[i]))
            return false;
    for (uint32_t i = 0; i < c->learners_next.n; i++) {
        uint64_t id = c->learners_next.ids[i];

        if (!raft_set_has(&c->outgoing, id) || raft_set_has(&c->voters, id))
            return false;
    }
    return true;
}

static int apply_one(struct raft_conf *c, enum raft_change_op op, uint64_t id)
{
    if (id == 0)
        return -EINVAL;
    switch (op) {
    case RAFT_ADD_VOTER:
        set_remove(&c->learners, id);
        set_remove(&c->learners_next, id);
        return set_add(&c->voters, id);
    case RAFT_ADD_LEARNER:
        set_remove(&c->voters, id);
        /* It still votes in the outgoing half, so it can become a learner only afterwards. */
        return set_add(raft_set_has(&c->outgoing, id) ? &c->learners_next : &c->learners, id);
    case RAFT_REMOVE:
        set_remove(&c->voters, id);
        set_remove(&c->learners, id);
        set_remove(&c->learners_next, id);
        return 0;
    }
    return -EINVAL;
}

static uint32_t voters_changed(const struct raft_set *a, const struct raft_set *b)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < a->n; i++)
        n += !raft_set_has(b, a->ids[i]);
    for (uint32_t i = 0; i < b->n; i++)
        n += !raft_set_has(a, b->ids[i]);
    return n;
}

static int leave_joint(struct raft_conf *c)
{
    if (c->outgoing.n == 0)
        return -EINVAL;
    for (uint32_t i = 0; i < c->learners_next.n; i++)
        if (set_add(&c->learners, c->learners_next.ids[i]))
            return -EINVAL;
    c->outgoing = c->learners_next = (struct raft_set){0};
    c->auto_leave = false;
    return 0;
}

int raft_conf_apply(const struct raft_conf *conf, const struct raft_conf_change *change,
                    struct raft_conf *ret_conf)
{
    struct raft_conf c = *conf;
    bool joint = change->transition != RAFT_TRANSITION_AUTO || change->n > 1;
    int r;

    if (change->n == 0) {
        r = leave_joint(&c);
        if (r == 0)
            *ret_conf = c;
        return r;
    }
    if (change->n > RAFT_MEMBERS_MAX || conf->outgoing.n)
        return -EINVAL;
    if (joint) {
        c.outgoing = c.voters;
        c.auto_leave = change->transition != RAFT_TRANSITION_EXPLICIT;
    }
    for (uint32_t i = 0; i < change->n; i++) {
        r = apply_one(&c, change->changes[i].op, change->changes[i].id);
        if (r)
            return r;
    }
    /* T 4.1: majorities of two configurations that differ by one voter always share a member. */
    if (c.voters.n == 0 || (!joint && voters_changed(&conf->voters, &c.voters) > 1) || !raft_conf_valid(&c))
        return -EINVAL;
    *ret_conf = c;
    return 0;
}
