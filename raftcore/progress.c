/* SPDX-License-Identifier: Apache-2.0 */
/* progress.c - what a leader knows of one follower; see progress.h. */
#include "progress.h"

void progress_init(struct progress *p, uint64_t id, uint64_t next, uint32_t window_max)
{
    assert(window_max > 0);
    assert(window_max <= RAFT_INFLIGHT_MAX);
    memset(p, 0, sizeof(*p));
    p->window_max = window_max;
    p->id = id;
    p->next = next;
    assert(p->match < p->next);
}

static void enter(struct progress *p, enum raft_peer_state state)
{
    p->state = state;
    p->paused = false;
    p->window_head = p->window_n = 0;
}

void progress_probe(struct progress *p)
{
    enter(p, RAFT_PROBE);
    p->next = p->match + 1;
}

void progress_replicate(struct progress *p)
{
    enter(p, RAFT_REPLICATE);
    p->next = p->match + 1;
}

void progress_snapshot(struct progress *p)
{
    enter(p, RAFT_SNAPSHOTTING);
}

void progress_snapshot_ended(struct progress *p, bool ok, uint64_t index)
{
    if (p->state != RAFT_SNAPSHOTTING)
        return;
    progress_probe(p);
    if (ok && index >= p->next)
        p->next = index + 1;
    /* The reply that says the snapshot is stored, or a heartbeat's, starts the probe: sent now, it
     * would be refused. */
    p->paused = true;
}

bool progress_may_send(const struct progress *p)
{
    return p->state != RAFT_SNAPSHOTTING && !p->paused;
}

bool progress_window_full(const struct progress *p)
{
    return p->state == RAFT_REPLICATE && p->window_n >= p->window_max;
}

void progress_sent(struct progress *p, uint64_t n)
{
    if (p->state == RAFT_PROBE) {
        p->paused = true;
        return;
    }
    if (n) {
        assert(p->window_n < RAFT_INFLIGHT_MAX);
        p->next += n;
        p->window[(p->window_head + p->window_n++) % RAFT_INFLIGHT_MAX] = p->next - 1;
    }
    p->paused = progress_window_full(p);
}

bool progress_accepted(struct progress *p, uint64_t index)
{
    /* Not news: index 0, the answer to a message of a term gone by, while we probe further up. */
    bool news = index > p->match || (p->state == RAFT_PROBE && index == p->match && index + 1 >= p->next);

    if (index > p->match)
        p->match = index;
    if (p->next <= index)
        p->next = index + 1;
    p->paused = p->paused && !news;
    while (p->window_n && p->window[p->window_head] <= index) {
        p->window_head = (p->window_head + 1) % RAFT_INFLIGHT_MAX;
        p->window_n--;
        p->paused = false;
    }
    return news;
}

bool progress_refused(struct progress *p, uint64_t refused, uint64_t hint)
{
    if (p->state == RAFT_REPLICATE) {
        /* Messages overtake each other: what is at or below match has been accepted meanwhile. */
        if (refused <= p->match)
            return false;
        progress_probe(p);
        return true;
    }
    /* A probe is refused once; its duplicates and those of older probes say nothing new. */
    if (p->state != RAFT_PROBE || p->next - 1 != refused)
        return false;
    p->next = refused < hint + 1 ? refused : hint + 1;
    if (p->next <= p->match)
        p->next = p->match + 1;
    p->paused = false;
    return true;
}
