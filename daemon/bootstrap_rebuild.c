/* SPDX-License-Identifier: Apache-2.0 */
/* bootstrap_rebuild.c - a member of several whose log or store is damaged is rebuilt from the others, without an
 * operator.
 *
 *     the log is damaged      the store is kept, it is committed; a new, empty log follows it
 *     the store is damaged    nothing is kept but who this member is: an empty store, an empty log
 *     CURRENT or FAULTY is    the same, for then it is not known what of the rest could be relied on
 *
 * Either way it may have lost what it promised: votes, acknowledgements. So it goes on FAULTY: with its old identity,
 * in a term above every one it can have promised anything in (raft_params.fence_term), without a vote and without
 * standing, until the others have given it a state as of a term after that. The fence is written down (datadir_mark)
 * before CURRENT names what is new, and given to Raft at every start until it says that the member is sound again.
 *
 * A store that was met damaged while it was in use is marked, or suspect, and the next start finds that
 * (member_again.c, member_suspect.c).
 *
 * A sole member is never rebuilt: what it has is all there is. It refuses to start, and says why. Nor is one that is
 * started with --force-new-cluster: who does that says that the others are gone.
 *
 * Not here: whom it asks (bootstrap_ask.c).
 *
 * Owner: the main thread, at start. Source: RELIABILITY A.4, rule 4; why a fence is enough stands in raft.h.
 */
#include <errno.h>
#include <stdio.h>
#include "bootstrap.h"
#include "datadir_peers.h"
#include "log.h"
#include "raftconf.h"

static uint64_t fence_above(const struct bootstrap *b, uint64_t a, uint64_t c)
{
    uint64_t top = a > c ? a : c;

    return (top > b->fence_term ? top : b->fence_term) + RAFT_FENCE_TERMS;
}

/* What all logs there are still say: an older one stays while this member is faulty, and which one was current may not
 * be known. */
static struct wal_identity salvage(const struct bootstrap *b)
{
    struct wal_identity all = {0}, one;
    char wal_dir[32];

    for (unsigned n = 1; n < b->dir.wal_found; n++) {
        (void)snprintf(wal_dir, sizeof wal_dir, "wal-%u", n);
        wal_salvage(b->disk, wal_dir, &one);
        if (one.member_id) {
            all.cluster_id = one.cluster_id;
            all.member_id = one.member_id;
        }
        all.term = one.term > all.term ? one.term : all.term;
    }
    return all;
}

/* An empty log after (index, term), and CURRENT names it and base. In the term after the fence: who leads in the
 * fence's own must make way, or nothing of a later one would come. */
static int new_parts(struct bootstrap *b, unsigned base, uint64_t index, uint64_t term)
{
    struct wal_state hard = {.term = b->fence_term + 1, .commit = index};
    unsigned wal = datadir_new_wal(&b->dir);
    char wal_dir[32];
    struct wal_options o = bootstrap_wal_options(b, wal_dir);
    int rc;

    (void)snprintf(wal_dir, sizeof wal_dir, "wal-%u", wal);
    rc = wal_create(&o, index, term, &hard);
    return rc ? rc : datadir_switch_both(&b->dir, base, wal);
}

static int failed(struct bootstrap *b, int rc)
{
    return bootstrap_fail(b, "%s: this member cannot be rebuilt: %s", b->dir.path, strerror(-rc));
}

int bootstrap_rebuild_log(struct bootstrap *b)
{
    struct wal_identity id;
    int rc;

    if (b->conf.voters.n + b->conf.learners.n < 2)
        return -1;
    id = salvage(b);
    log_error("the log is damaged; the store is kept, the rest is asked of the other members. Until then this member neither "
              "votes nor stands", LOG_STR("found", b->error), LOG_UINT("kept", b->applied_index));
    b->fence_term = fence_above(b, id.term, b->applied_term);
    rc = datadir_mark(&b->dir, b->fence_term, false);
    rc = rc ? rc : new_parts(b, b->dir.base, b->applied_index, b->applied_term);
    return rc ? failed(b, rc) : 0;
}

static int empty_base(struct bootstrap *b, unsigned *ret_base)
{
    uint8_t bytes[RAFTCONF_BYTES_MAX];
    struct raft_conf none = {0};
    struct base_options o = bootstrap_base_options();
    char path[DATADIR_PATH_BYTES];
    unsigned n = datadir_new_base(&b->dir);
    int rc = datadir_make_base(&b->dir, n, path);

    o.path = path;
    rc = rc ? rc : base_create(&o, b->cluster_id, b->member_id, raftconf_encode(&none, bytes));
    if (rc == 0)
        *ret_base = n;
    return rc;
}

/* Who they are, say the others; they may start later than this one, with nobody there to start it again. But a store
 * that was found sound is rather used than that. */
static bool ask_others(struct bootstrap *b, struct config *c)
{
    const char *why;
    int rc = b->member_id ? bootstrap_ask_others(b, c, !b->store_sound, &why) : -ENOENT;

    if (rc == -ESRCH)
        (void)bootstrap_fail(b, "%s: the store is damaged, and the other members do not list member %llx (any more): if it was "
                                "permanently removed, the data directory must be removed; then add the member again and start it "
                                "with --initial-cluster-state existing",
                             b->dir.path, (unsigned long long)b->member_id);
    return rc == 0;
}

/* Who this member is, when the store does not say it any more. A log that has lost its heads still has terms to make a
 * fence of; one that has nothing at all leaves no fence, and so nobody. */
static void identify(struct bootstrap *b, struct config *c, const struct wal_identity *id)
{
    struct datadir_peers p;

    if (b->member_id)
        return;
    b->cluster_id = id->cluster_id;
    b->member_id = id->member_id;
    if (b->member_id || id->term == 0 || datadir_read_peers(&b->dir, &c->arena, &p) != 0)
        return;
    b->cluster_id = p.cluster_id;
    b->member_id = p.member_id;
}

int bootstrap_rebuild_store(struct bootstrap *b, struct config *c)
{
    struct wal_identity id;
    unsigned base;
    int rc;

    id = salvage(b);
    identify(b, c, &id);
    if (!ask_others(b, c))
        return -1; /* alone, or they do not know it: the error says why */
    log_error("the store is damaged; all of it is asked of the other members. Until then this member neither votes nor stands",
              LOG_STR("found", b->error));
    b->fence_term = fence_above(b, id.term, b->applied_term);
    rc = datadir_mark(&b->dir, b->fence_term, true); /* should it end here, it begins anew here */
    rc = rc ? rc : empty_base(b, &base);
    rc = rc ? rc : new_parts(b, base, 0, 0);
    rc = rc ? rc : datadir_mark(&b->dir, b->fence_term, false);
    rc = rc ? rc : datadir_trust(&b->dir); /* what was suspect is not used any more */
    b->suspicions = 0;
    return rc ? failed(b, rc) : 0;
}
