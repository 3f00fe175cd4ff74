/* SPDX-License-Identifier: Apache-2.0 */
/* member_note.c - DIR/PEERS is kept up: who the members are and where, for a start that finds the store damaged and is
 * not told by the flags (bootstrap_ask.c).
 *
 *     a change is applied     apply's thread wakes the main one (member_members_changed)
 *     the next member_wait    the list is compared with the file, and written when it says something else
 *     it cannot be written    logged; again after a while
 *
 * The main thread writes it, since it waits for nothing else that is urgent; apply must not wait for a disk. Until this
 * member is published its state may be older than the file: then the file is written only when there is none that can
 * be used. A member that has no state yet notes what the others told it when it asked them.
 *
 * A change is applied before it is noted. A crash between leaves a file that is one change old, which is good enough
 * for whom to ask; the start after it notes the change.
 *
 * Owner: the main thread. */
#include <errno.h>
#include "datadir_peers.h"
#include "log.h"
#include "member_impl.h"

enum { NOTE_AGAIN_MS = 10000 };

/* What apply has. */
static bool from_state(struct member_process *m, struct arena *a, struct datadir_peers *ret)
{
    struct member *members = NULL;
    size_t n = apply_members(m->svc.apply, a, &members);
    struct roster_known *known = arena_alloc(a, (n + 1) * sizeof *known);

    for (size_t i = 0; i < n; i++) {
        const char **urls = arena_alloc(a, (members[i].n_peer_urls + 1) * sizeof *urls);

        for (size_t k = 0; k < members[i].n_peer_urls; k++) {
            struct slice from = members[i].peer_urls[k];
            char *to = arena_alloc(a, from.len + 1);

            if (known == NULL || urls == NULL || to == NULL)
                return false;
            if (from.len)
                memcpy(to, from.ptr, from.len);
            urls[k] = to;
        }
        if (known == NULL)
            return false;
        known[i] = (struct roster_known){members[i].id, urls, members[i].n_peer_urls};
    }
    ret->members = known;
    ret->n = n;
    return known != NULL;
}

/* There is a file of this member's in this cluster. */
static bool is_noted(const struct member_process *m, struct arena *a)
{
    struct datadir_peers p;

    return datadir_read_peers(&m->boot.dir, a, &p) == 0 && p.cluster_id == m->svc.cluster_id &&
           p.member_id == m->svc.member_id && p.n;
}

static int note(struct member_process *m, struct arena *a)
{
    struct datadir_peers p = {.cluster_id = m->svc.cluster_id, .member_id = m->svc.member_id};

    if (!m->published && is_noted(m, a))
        return 0;
    if (!from_state(m, a, &p))
        return -ENOMEM;
    if (p.n == 0) {
        p.members = m->boot.running.members;
        p.n = m->boot.running.n;
    }
    return p.n ? datadir_write_peers(&m->boot.dir, &p) : 0;
}

uint64_t member_note_peers(struct member_process *m)
{
    uint64_t now_ms = m->svc.clock->now_ms(m->svc.clock);
    struct arena a;
    int rc;

    m->note_due |= atomic_exchange(&m->members_changed, false);
    if (!m->note_due)
        return UINT64_MAX;
    if (now_ms < m->note_ms)
        return m->note_ms - now_ms;
    arena_init(&a, TABLE_BYTES, NULL, 0);
    rc = note(m, &a);
    arena_fini(&a);
    m->note_due = rc != 0;
    m->note_ms = rc ? now_ms + NOTE_AGAIN_MS : 0;
    if (rc == 0)
        return UINT64_MAX;
    log_warn("the members cannot be noted in DIR/PEERS; that is tried again", LOG_STR("error", strerror(-rc)));
    return NOTE_AGAIN_MS;
}
