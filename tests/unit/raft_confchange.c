/* SPDX-License-Identifier: Apache-2.0 */
/* raft_confchange.c - a table of changes, and on random ones: what comes out is valid, its quorums overlap those of
 * what went in (every majority of one meets every majority of the other), and what is refused changes nothing. */
#include <errno.h>
#include "raft.h"
#include "tap.h"

/* "1 2 (3 4) =5 ~6 a": voters 1 2, outgoing 3 4, learner 5, learner next 6, auto leave. */
static struct raft_conf conf_of(const char *s)
{
    struct raft_conf c = {0};
    bool outgoing = false;

    for (; *s; s++) {
        struct raft_set *set = outgoing ? &c.outgoing : &c.voters;
        char kind = *s;

        if (kind == ' ')
            continue;
        if (kind == '(' || kind == ')') {
            outgoing = kind == '(';
            continue;
        }
        if (kind == 'a') {
            c.auto_leave = true;
            continue;
        }
        if (kind == '=' || kind == '~') {
            set = kind == '=' ? &c.learners : &c.learners_next;
            s++;
        }
        set->ids[set->n++] = (uint64_t)(*s - '0');
    }
    return c;
}

static struct raft_conf_change change_of(const char *s)
{
    struct raft_conf_change c = {0};

    for (; *s; s++) {
        if (*s == ' ')
            continue;
        if (*s == 'i' || *s == 'e') {
            c.transition = *s == 'i' ? RAFT_TRANSITION_IMPLICIT : RAFT_TRANSITION_EXPLICIT;
            continue;
        }
        c.changes[c.n].op = *s == '+' ? RAFT_ADD_VOTER : *s == '=' ? RAFT_ADD_LEARNER : RAFT_REMOVE;
        c.changes[c.n++].id = (uint64_t)(*++s - '0');
    }
    return c;
}

static bool sets_equal(const struct raft_set *a, const struct raft_set *b)
{
    return a->n == b->n && memcmp(a->ids, b->ids, a->n * sizeof a->ids[0]) == 0;
}

static bool confs_equal(const struct raft_conf *a, const struct raft_conf *b)
{
    return sets_equal(&a->voters, &b->voters) && sets_equal(&a->outgoing, &b->outgoing) &&
           sets_equal(&a->learners, &b->learners) && sets_equal(&a->learners_next, &b->learners_next) &&
           a->auto_leave == b->auto_leave;
}

static void table(void)
{
    static const struct {
        const char *from, *change, *to; /* to NULL: not possible */
    } t[] = {
        {"1", "+2", "1 2"},
        {"1 2 3", "-2", "1 3"},
        {"1 2 3", "=4", "1 2 3 =4"},
        {"1 2 3 =4", "+4", "1 2 3 4"},
        {"1 2 3", "=3", "1 2 =3"},       /* a voter becomes a learner: one voter differs */
        {"1 2 3", "-9", "1 2 3"},        /* nobody: no change, no error */
        {"1 2 3", "+2", "1 2 3"},
        {"1", "-1", NULL},               /* nobody would be left to decide */
        {"1", "=1", NULL},
        {"1 2 3", "", NULL},             /* not joint: nothing to leave */
        {"1 2 3", "+4 -1", "2 3 4 (1 2 3) a"},
        {"1 2 3", "i +4", "1 2 3 4 (1 2 3) a"},
        {"1 2 3", "e +4", "1 2 3 4 (1 2 3)"},
        {"1 2 3", "e =3", "1 2 (1 2 3) ~3"},    /* votes in the old half, so it is a learner only afterwards */
        {"1 2 (1 2 3) ~3", "", "1 2 =3"},
        {"2 3 4 (1 2 3) a", "", "2 3 4"},
        {"1 2 (1 2 3)", "+5", NULL},     /* one at a time */
        {"1 2 (1 2 3)", "e +5", NULL},
        {"1 2 3", "+4 +5 -1 -2 -3", "4 5 (1 2 3) a"},
        {"1 2 3", "e =3 +3", "1 2 3 (1 2 3)"},
        {"1 2 3", "+0", NULL},
    };

    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
        struct raft_conf from = conf_of(t[i].from), to = {.auto_leave = true}, want = conf_of(t[i].to ? t[i].to : "");
        struct raft_conf_change ch = change_of(t[i].change);
        int err = raft_conf_apply(&from, &ch, &to);
        bool as_wanted = t[i].to ? err == 0 && confs_equal(&to, &want) : err == -EINVAL && to.auto_leave;

        if (!as_wanted)
            printf("# %s, %s: not %s\n", t[i].from, t[i].change, t[i].to ? t[i].to : "refused");
        CHECK(as_wanted);
    }
}

static void invalid_confs(void)
{
    static const char *const bad[] = {"2 1", "1 1", "0", "1 =1", "1 (2) =2", "1 ~2", "1 a", "1 2 (1 2) ~2", "1 (2) ~3"};
    static const char *const good[] = {"1", "", "1 2 3 (3 4 5) =6 ~4 a", "1 =2"};
    struct raft_conf c;

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        c = conf_of(bad[i]);
        CHECK(!raft_conf_valid(&c));
    }
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        c = conf_of(good[i]);
        CHECK(raft_conf_valid(&c));
    }
    c = (struct raft_conf){.voters = {.n = RAFT_MEMBERS_MAX + 1}};
    CHECK(!raft_conf_valid(&c));
    for (c.voters.n = 0; c.voters.n < RAFT_MEMBERS_MAX; c.voters.n++)
        c.voters.ids[c.voters.n] = c.voters.n + 1;
    CHECK(raft_conf_valid(&c));
    c.learners = (struct raft_set){.n = 1, .ids = {99}}; /* one too many in all */
    CHECK(!raft_conf_valid(&c));
}

static bool majority(const struct raft_set *s, unsigned members)
{
    uint32_t have = 0;

    for (uint32_t i = 0; i < s->n; i++)
        have += members >> s->ids[i] & 1;
    return s->n == 0 || 2 * have > s->n;
}

static bool quorum(const struct raft_conf *c, unsigned members)
{
    return majority(&c->voters, members) && majority(&c->outgoing, members);
}

/* No two disjoint sets of members could decide, one by the old and one by the new configuration. */
static bool overlap(const struct raft_conf *a, const struct raft_conf *b)
{
    for (unsigned m = 0; m < 1u << 8; m++)
        if (quorum(a, m) && quorum(b, ~m))
            return false;
    return true;
}

static void random_changes(void)
{
    const char *env = getenv("SEED");
    uint64_t rng = env ? strtoull(env, NULL, 10) : 1;
    struct raft_conf c = conf_of("1 2 3");
    int taken = 0, refused = 0, joint = 0;

    printf("# SEED=%llu\n", (unsigned long long)rng);
    rng = rng * 0x9e3779b97f4a7c15u | 1;
    for (int i = 0; i < 30000; i++) {
        struct raft_conf_change ch = {0};
        struct raft_conf next, before = c;

        rng ^= rng << 13, rng ^= rng >> 7, rng ^= rng << 17;
        ch.n = rng >> 60 & 3;
        ch.transition = (enum raft_transition)(rng >> 40 & 0xff) % 3;
        for (uint32_t k = 0; k < ch.n; k++) {
            ch.changes[k].id = rng >> (3 * k) & 7; /* 0 is nobody */
            ch.changes[k].op = (enum raft_change_op)((rng >> (20 + 2 * k) & 3));
        }
        if (raft_conf_apply(&c, &ch, &next)) {
            CHECK(confs_equal(&c, &before));
            refused++;
            continue;
        }
        CHECK(raft_conf_valid(&next));
        CHECK(overlap(&c, &next));
        joint += next.outgoing.n > 0;
        taken++;
        c = next;
    }
    CHECK(taken > 1000 && refused > 1000 && joint > 100);
}

int main(void)
{
    TEST(table);
    TEST(invalid_confs);
    TEST(random_changes);
    return tap_done();
}
