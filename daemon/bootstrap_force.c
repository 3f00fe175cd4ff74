/* SPDX-License-Identifier: Apache-2.0 */
/* bootstrap_force.c - --force-new-cluster: this member goes on alone with what it has.
 *
 * As etcd does it, one entry for each other member removes it, in the term this member has reached; they count as
 * committed, since this member alone is the cluster that commits them. They are applied like any entries, so the others
 * are remembered as removed and are refused when they come back. Unlike etcd the tail of the log that is not known to
 * be committed is kept: what was acknowledged last is in it, because the watermark of a batch is written with the next
 * one.
 *
 * Source: etcd v3.7.1 server/etcdserver/bootstrap.go (createConfChangeEnts).
 * Owner: the main thread, at start. */
#include <errno.h>
#include "bootstrap.h"
#include "turn.h"

enum { ENTRIES_MAX = 2 * RAFT_MEMBERS_MAX + 2 };

struct forcing {
    struct bootstrap *b;
    struct raft_conf conf;
    struct entry *entries[ENTRIES_MAX];
    size_t n;
    uint64_t index; /* of the last one */
};

/* What the entries above base make of its configuration. */
static int replay(struct forcing *f)
{
    const struct wal_state *s = &f->b->wal_state;

    for (uint64_t i = f->b->applied_index + 1; i <= s->last_index; i++) {
        struct raft_conf_change change;
        struct entry_head head;
        struct raft_conf next;
        struct entry *e;
        int rc = wal_read(f->b->wal, i, &e);

        if (rc)
            return rc;
        if (e->len && entry_decode(slice_of(e->payload, e->len), &head) == 0 && head.kind == ENTRY_CONF &&
            turn_conf_decode(head.body, &change, NULL) == 0 && raft_conf_apply(&f->conf, &change, &next) == 0)
            f->conf = next;
        entry_unref(e);
    }
    return 0;
}

static int add(struct forcing *f, const struct raft_conf_change *change)
{
    uint8_t body[TURN_CONF_BYTES_MAX];
    struct entry_head head = {.kind = ENTRY_CONF};
    struct raft_conf next;
    struct entry *e;

    if (raft_conf_apply(&f->conf, change, &next) != 0)
        return 0;
    f->conf = next;
    head.body = slice_of(body, turn_conf_encode(change, body));
    e = entry_new(entry_size(&head));
    if (e == NULL)
        return -ENOMEM;
    entry_encode(&head, e->payload);
    e->index = ++f->index;
    e->term = f->b->wal_state.term;
    assert(f->n < ENTRIES_MAX);
    f->entries[f->n++] = e;
    return 0;
}

static int add_one(struct forcing *f, enum raft_change_op op, uint64_t id)
{
    struct raft_conf_change change = {.n = 1, .changes = {{op, id}}};

    return add(f, &change);
}

static int alone(struct forcing *f)
{
    static const struct raft_conf_change leave;
    uint64_t self = f->b->member_id;
    int rc = f->conf.outgoing.n ? add(f, &leave) : 0;
    struct raft_conf before = f->conf;

    if (rc == 0 && !raft_set_has(&f->conf.voters, self))
        rc = add_one(f, RAFT_ADD_VOTER, self);
    for (uint32_t i = 0; i < before.voters.n && rc == 0; i++)
        if (before.voters.ids[i] != self)
            rc = add_one(f, RAFT_REMOVE, before.voters.ids[i]);
    for (uint32_t i = 0; i < before.learners.n && rc == 0; i++)
        if (before.learners.ids[i] != self)
            rc = add_one(f, RAFT_REMOVE, before.learners.ids[i]);
    return rc;
}

int bootstrap_force(struct bootstrap *b, const char *wal_dir)
{
    struct forcing f = {.b = b, .conf = b->conf, .index = b->wal_state.last_index};
    int rc = replay(&f);

    if (rc == 0 && !raft_set_has(&f.conf.voters, b->member_id) && !raft_set_has(&f.conf.learners, b->member_id))
        return bootstrap_fail(b, "--force-new-cluster: %s: member %llx is in no cluster yet, or was removed from it", b->dir.path,
                              (unsigned long long)b->member_id);
    rc = rc ? rc : alone(&f);
    if (rc == 0 && f.n)
        rc = wal_append(b->wal, f.entries, f.n, NULL, f.index);
    if (rc == 0 && f.n)
        rc = wal_sync(b->wal);
    for (size_t i = 0; i < f.n; i++)
        entry_unref(f.entries[i]);
    if (rc)
        return bootstrap_fail(b, "--force-new-cluster: %s: the log cannot be changed: %s", b->dir.path, strerror(-rc));
    return f.n ? bootstrap_open_wal(b, wal_dir) : 0;
}
