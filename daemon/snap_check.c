/* SPDX-License-Identifier: Apache-2.0 */
/* snap_check.c - whether all members have the same state.
 *
 * Apply keeps a chain: what the state hashes to after each entry. Equal members have equal chains; a member on which an
 * entry did something else differs from there on for ever, so it is enough to look now and then.
 *
 *     leader, each LIMIT_HASH_CHECK_MS   STATE_HASH {index, hash} of what it has applied  --> every member
 *     each member                        when it has applied that index: STATE_ANSWER {index, hash} of its own  --> it
 *     leader                             a hash that more than half of the members have is right; the CORRUPT alarm is
 *                                        raised for each member that has another one, for itself too, and that member
 *                                        is told: STATE_WRONG {index, the right hash}. When all have answered and no
 *                                        hash has a majority, nobody can be believed: the alarm names member 0, as
 *                                        etcd's does
 *
 * A member that has been told so of a hash it has said itself, and that the alarm names (so that somebody hears of it),
 * is rebuilt from the others (bootstrap_rebuild.c). The alarm alone says nothing: it may be old, and the leader from
 * which this member differs may be the one that is wrong. Nor does the difference alone.
 * The alarm does what etcd's does: requests are refused with `etcdserver: corrupt cluster` until it is disarmed. A
 * member that is behind is waited for; one that does not answer in LIMIT_HASH_WAIT_MS is asked again with the next
 * round.
 *
 * Owner: the receiving thread of snap_receive.c, which mostly sleeps; alone in its cluster, always.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include "log.h"
#include "rpc.pb-c.h"
#include "snap_impl.h"

enum { BEHIND_MS = 20, TABLE_BYTES = 16 << 20 };

/* What a member has said; heap. */
struct hash_mail {
    struct mail mail;
    uint64_t member, index, hash;
    enum peer_kind kind;
};

/* The turn thread. */
void snap_turn_hash(void *ctx, const struct peer_msg *m)
{
    struct snap *s = ctx;
    struct hash_mail *h = malloc(sizeof *h);

    if (h == NULL)
        return; /* the next round */
    *h = (struct hash_mail){.kind = m->kind, .member = m->from, .index = m->index, .hash = m->hash};
    mailbox_post(&s->hash_box, &h->mail);
    mailbox_nudge(&s->box);
}

void snap_members_changed(struct snap *s)
{
    atomic_store(&s->members_changed, true);
    mailbox_nudge(&s->box);
}

size_t snap_members(const struct snap *s)
{
    return atomic_load(&s->n_members);
}

static void say(struct snap *s, enum peer_kind kind, uint64_t to, uint64_t index, uint64_t hash)
{
    struct peer_msg *m = peer_msg_new(kind, s->o.member_id, to);

    if (m == NULL)
        return; /* the next round */
    m->index = index;
    m->hash = hash;
    turn_post(s->turn, m);
}

/* ---- a follower ------------------------------------------------------------------------------- */

static void answer(struct snap *s, uint64_t now_ms)
{
    uint64_t hash;

    if (s->asked.member == 0)
        return;
    if (!apply_state_hash(s->o.apply, s->asked.index, &hash)) {
        if (now_ms >= s->asked.until_ms || store_applied(s->o.store) > s->asked.index)
            s->asked.member = 0; /* too late for this one */
        return;
    }
    if (hash == s->asked.hash) {
        s->differs = s->is_wrong = false; /* a snapshot may have mended it */
    } else if (!s->differs) {
        s->differs = true;
        log_error("corruption: this member's state is not the leader's", LOG_UINT("index", s->asked.index),
                  LOG_HEX("leader", s->asked.member));
    }
    s->said.index = s->asked.index;
    s->said.hash = hash;
    say(s, PEER_STATE_ANSWER, s->asked.member, s->asked.index, hash);
    s->asked.member = 0;
}

/* ---- the leader -------------------------------------------------------------------------------- */

/* By the CORRUPT alarm. */
static bool is_named(struct snap *s, uint64_t member)
{
    struct alarm *alarms = NULL;
    struct arena a;
    bool set = false;
    size_t n;

    arena_init(&a, TABLE_BYTES, NULL, 0);
    n = apply_alarms(s->o.apply, &a, &alarms);
    for (size_t i = 0; i < n; i++)
        set |= alarms[i].member_id == member && alarms[i].type == ETCDSERVERPB__ALARM_TYPE__CORRUPT;
    arena_fini(&a);
    return set;
}

static void raise(struct snap *s, uint64_t member)
{
    Etcdserverpb__AlarmRequest req = ETCDSERVERPB__ALARM_REQUEST__INIT;
    uint8_t packed[64];

    if (is_named(s, member))
        return;
    log_error("corruption: a member's state is not that of the others; its alarm is raised", LOG_HEX("member", member),
              LOG_UINT("index", s->round.index));
    req.action = ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__ACTIVATE;
    req.memberid = member;
    req.alarm = ETCDSERVERPB__ALARM_TYPE__CORRUPT;
    assert(etcdserverpb__alarm_request__get_packed_size(&req) <= sizeof packed);
    /* Refused: the next round tries again. */
    (void)apply_propose(s->o.apply, ENTRY_ALARM, slice_of(packed, etcdserverpb__alarm_request__pack(&req, packed)));
}

/* How many members have this hash. */
static size_t count(const struct hash_round *r, uint64_t hash)
{
    size_t n = 0;

    for (size_t i = 0; i < r->n; i++)
        n += r->members[i].known && r->members[i].hash == hash;
    return n;
}

/* More than half have the hash that is right at the round's index, and this member has not. */
static void condemn(struct snap *s, uint64_t member, uint64_t right)
{
    raise(s, member);
    if (member == s->o.member_id)
        s->is_wrong = true;
    else
        say(s, PEER_STATE_WRONG, member, s->round.index, right);
}

static void judge(struct snap *s)
{
    const struct hash_round *r = &s->round;
    size_t known = 0, right = r->n;

    for (size_t i = 0; i < r->n; i++) {
        known += r->members[i].known;
        if (r->members[i].known && 2 * count(r, r->members[i].hash) > r->n)
            right = i;
    }
    if (count(r, r->hash) == r->n)
        s->equal_index = r->index;
    for (size_t i = 0; i < r->n && right < r->n; i++)
        if (r->members[i].known && r->members[i].hash != r->members[right].hash)
            condemn(s, r->members[i].id, r->members[right].hash);
    if (right == r->n && known == r->n)
        raise(s, 0);
    s->round.index = 0;
}

static void note(struct snap *s, const struct hash_mail *h)
{
    for (size_t i = 0; i < s->round.n; i++)
        if (s->round.members[i].id == h->member) {
            s->round.members[i].known = true;
            s->round.members[i].hash = h->hash;
        }
}

static bool all_known(const struct hash_round *r)
{
    for (size_t i = 0; i < r->n; i++)
        if (!r->members[i].known)
            return false;
    return true;
}

/* Who is in the cluster; how many. */
static size_t load_members(struct snap *s, uint64_t ids[RAFT_MEMBERS_MAX])
{
    struct member *members = NULL;
    struct arena a;
    size_t n;

    arena_init(&a, TABLE_BYTES, NULL, 0);
    n = apply_members(s->o.apply, &a, &members);
    if (n > RAFT_MEMBERS_MAX)
        n = RAFT_MEMBERS_MAX;
    for (size_t i = 0; i < n && ids; i++)
        ids[i] = members[i].id;
    arena_fini(&a);
    return n;
}

static void begin(struct snap *s, uint64_t now_ms)
{
    struct hash_round r = {.index = store_applied(s->o.store), .began_ms = now_ms};
    uint64_t ids[RAFT_MEMBERS_MAX];

    s->round_ms = now_ms + LIMIT_HASH_CHECK_MS;
    if (r.index == s->equal_index || !apply_state_hash(s->o.apply, r.index, &r.hash))
        return;
    r.n = load_members(s, ids);
    for (size_t i = 0; i < r.n; i++) {
        r.members[i].id = ids[i];
        if (ids[i] == s->o.member_id) {
            r.members[i].known = true;
            r.members[i].hash = r.hash;
        } else {
            say(s, PEER_STATE_HASH, ids[i], r.index, r.hash);
        }
    }
    s->round = r;
}

/* ---- both ---------------------------------------------------------------------------------------- */

static void take(struct snap *s, bool leads, uint64_t now_ms)
{
    for (struct mail *m = mailbox_take(&s->hash_box), *next; m; m = next) {
        struct hash_mail *h = (struct hash_mail *)m;

        next = m->next;
        if (h->kind == PEER_STATE_HASH && !leads) {
            s->asked.member = h->member;
            s->asked.index = h->index;
            s->asked.hash = h->hash;
            s->asked.until_ms = now_ms + LIMIT_HASH_WAIT_MS;
        } else if (h->kind == PEER_STATE_ANSWER && leads && s->round.index == h->index) {
            note(s, h);
        } else if (h->kind == PEER_STATE_WRONG) {
            s->is_wrong |= s->said.index == h->index && s->said.hash != h->hash;
        }
        free(h);
    }
}

static void give_up_state(struct snap *s)
{
    if (s->is_wrong && is_named(s, s->o.member_id) && s->o.damaged)
        s->o.damaged(s->o.damaged_ctx, "its state is not that of the others");
}

static void sound_again(struct snap *s)
{
    int err = datadir_unmark(s->o.place.dir);

    if (err)
        log_warn("this member is sound again, but its mark cannot be removed", LOG_STR("error", strerror(-err)));
    else
        log_info("this member is sound again: it votes, and may lead");
    (void)datadir_remove_others(s->o.place.dir); /* what was damaged; the next start removes what is left */
    s->o.faulty = false;
}

uint64_t snap_check(struct snap *s)
{
    uint64_t now_ms = s->o.clock->now_ms(s->o.clock);
    struct turn_status t;

    if (atomic_exchange(&s->members_changed, false))
        s->n_members = load_members(s, NULL);
    if (s->n_members < 2)
        return UINT64_MAX;
    turn_status(s->turn, &t);
    if (s->o.faulty && !t.is_faulty)
        sound_again(s);
    give_up_state(s);
    take(s, t.is_leader, now_ms);
    if (!t.is_leader) {
        s->round.index = 0;
        answer(s, now_ms);
        return s->asked.member ? now_ms + BEHIND_MS : now_ms + LIMIT_HASH_CHECK_MS;
    }
    if (s->round.index && (all_known(&s->round) || now_ms >= s->round.began_ms + LIMIT_HASH_WAIT_MS))
        judge(s);
    if (s->round.index == 0 && now_ms >= s->round_ms)
        begin(s, now_ms);
    return s->round_ms > now_ms ? s->round_ms : now_ms + LIMIT_HASH_CHECK_MS;
}

void snap_check_fini(struct snap *s)
{
    for (struct mail *m = mailbox_take(&s->hash_box), *next; m; m = next) {
        next = m->next;
        free(m);
    }
}
