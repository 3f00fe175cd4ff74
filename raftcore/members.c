/* SPDX-License-Identifier: Apache-2.0 */
/* members.c - the configuration in force, what is kept of each member, and counting majorities among them.
 *
 * Not here: how one configuration becomes the next (confchange.c), when that may happen (leader.c).
 */
#include "core.h"

struct progress *raft_progress_of(struct raft *r, uint64_t id)
{
    for (uint32_t i = 0; i < r->n_prs; i++)
        if (r->prs[i].id == id)
            return &r->prs[i];
    return NULL;
}

bool raft_is_voter(const struct raft *r, uint64_t id)
{
    return raft_set_has(&r->conf.voters, id) || raft_set_has(&r->conf.outgoing, id);
}

bool raft_is_sole_voter(const struct raft *r)
{
    return r->conf.voters.n == 1 && r->conf.voters.ids[0] == r->id &&
           (r->conf.outgoing.n == 0 || (r->conf.outgoing.n == 1 && r->conf.outgoing.ids[0] == r->id));
}

static const struct progress *const_progress_of(const struct raft *r, uint64_t id)
{
    for (uint32_t i = 0; i < r->n_prs; i++)
        if (r->prs[i].id == id)
            return &r->prs[i];
    assert(!"every voter has a progress");
    return NULL;
}

static uint64_t half_reached(const struct raft *r, const struct raft_set *s,
                             uint64_t (*of)(const struct progress *))
{
    uint64_t vals[RAFT_MEMBERS_MAX];

    for (uint32_t i = 0; i < s->n; i++)
        vals[i] = of(const_progress_of(r, s->ids[i]));
    return quorum_reached(vals, s->n);
}

uint64_t raft_quorum_reached(const struct raft *r, uint64_t (*of)(const struct progress *))
{
    uint64_t a = half_reached(r, &r->conf.voters, of), b = half_reached(r, &r->conf.outgoing, of);

    return a < b ? a : b;
}

bool raft_quorum_of(const struct raft *r, bool (*of)(const struct progress *))
{
    const struct raft_set *halves[] = {&r->conf.voters, &r->conf.outgoing};

    for (int h = 0; h < 2; h++) {
        uint32_t yes = 0;

        for (uint32_t i = 0; i < halves[h]->n; i++)
            yes += of(const_progress_of(r, halves[h]->ids[i]));
        if (quorum_vote(yes, 0, halves[h]->n) != QUORUM_WON)
            return false;
    }
    return true;
}

/* Keep what is known of members that stay; new ones are probed from the end of the log. */
void raft_set_conf(struct raft *r, const struct raft_conf *conf)
{
    const struct raft_set *sets[] = {&conf->voters, &conf->outgoing, &conf->learners};
    bool voted[RAFT_MEMBERS_MAX] = {0}, granted[RAFT_MEMBERS_MAX] = {0};
    uint32_t n = 0;

    assert(raft_conf_valid(conf));
    for (uint32_t i = 0; i < r->n_prs; i++) { /* who left makes room */
        bool stays = false;

        for (int s = 0; s < 3; s++)
            stays |= raft_set_has(sets[s], r->prs[i].id);
        if (!stays)
            continue;
        voted[n] = r->voted[i];
        granted[n] = r->granted[i];
        if (n != i)
            r->prs[n] = r->prs[i];
        n++;
    }
    r->n_prs = n;
    for (int s = 0; s < 3; s++)
        for (uint32_t i = 0; i < sets[s]->n; i++) {
            if (raft_progress_of(r, sets[s]->ids[i]))
                continue;
            assert(r->n_prs < RAFT_MEMBERS_MAX);
            progress_init(&r->prs[r->n_prs], sets[s]->ids[i], r->log.last + 1, r->inflight_max);
            r->prs[r->n_prs++].recent_active = true; /* no quorum check before it had its chance to speak */
        }
    memcpy(r->voted, voted, sizeof(voted));
    memcpy(r->granted, granted, sizeof(granted));
    r->conf = *conf;
    r->out.flags |= RAFT_OUT_CONF;
}

void raft_conf_entry(struct raft *r, uint64_t index, const struct raft_conf_change *change)
{
    struct raft_conf next;

    if (index <= r->conf_index)
        return; /* a snapshot's configuration had it */
    r->conf_index = index;
    if (raft_conf_apply(&r->conf, change, &next))
        return; /* every member refuses it alike */
    raft_set_conf(r, &next);
    if (r->role == RAFT_LEADER)
        leader_conf_changed(r);
    else if (!raft_is_voter(r, r->id) && r->role != RAFT_FOLLOWER)
        raft_become_follower(r, r->term, 0);
}
