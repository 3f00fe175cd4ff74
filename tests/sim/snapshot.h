/* SPDX-License-Identifier: Apache-2.0 */
/* snapshot.h - snapshots between simulated members: the real export, import and installation, chunk by chunk.
 *
 * As snap_send.c and snap_receive.c do it with threads and a connection: base is flushed, its head goes first in the
 * message, then chunks; either side may die in between, a partition ends it, a chunk may arrive damaged (and must be
 * noticed). When all is there the receiver's turn is given the message, its WAL thread installs it, and the sender is
 * told. A member takes one at a time.
 */
#pragma once
#include "daemon/snap.h"
#include "daemon/snap_install.h"
#include "net.h"

enum transfer_state { TRANSFER_NONE, TRANSFER_FLUSH, TRANSFER_CHUNKS, TRANSFER_STEPPED };

/* The sender's flush; heap: it outlives a transfer that breaks. */
struct transfer_flush {
    struct flush_wait wait;
    struct transfer *t; /* NULL: nobody waits any more */
};

struct transfer {
    enum transfer_state state;
    struct transfer_flush *flush; /* under way */
    bool refused, installed;
    uint64_t from, to, from_boot, to_boot, at_us, index;
    unsigned slot, damage; /* damage: the chunk that arrives damaged; 0: none */
    struct peer_msg *msg;
    struct snap_export *x;
    struct snap_import *im;
};

static struct transfer transfers[MEMBERS_SIM_MAX]; /* by receiver */

static inline bool transfer_sender_lives(struct sim *s, const struct transfer *t)
{
    return s->m[t->from].up && s->m[t->from].boot == t->from_boot;
}

static inline bool transfer_receiver_lives(struct sim *s, const struct transfer *t)
{
    return s->m[t->to].up && s->m[t->to].boot == t->to_boot;
}

/* Both hold on to their member's store. */
static inline void transfer_let_go(struct transfer *t)
{
    snap_export_free(t->x);
    snap_import_free(t->im);
    t->x = NULL;
    t->im = NULL;
}

static inline void transfer_end(struct sim *s, struct transfer *t, bool ok, const char *why)
{
    bool unheard = world_chance(&s->w, 15); /* the answer is lost: its sender gives another */

    transfer_let_go(t);
    peer_msg_free(t->msg);
    if (t->flush)
        t->flush->t = NULL;
    world_line(&s->w, "snapshot %" PRIu64 ">%" PRIu64 " at %" PRIu64 ": %s", t->from, t->to, t->index, why);
    if (transfer_receiver_lives(s, t) && !ok)
        (void)datadir_remove_incoming(&s->m[t->to].bootstrap.dir);
    if (transfer_sender_lives(s, t)) {
        turn_keep_log_a_while(s->m[t->from].turn, t->slot);
        turn_snapshot_sent(s->m[t->from].turn, t->to, ok && !unheard, t->index);
    }
    if (ok)
        s->w.did.snapshots++;
    else
        s->w.did.snapshots_failed++;
    *t = (struct transfer){.state = TRANSFER_NONE};
}

/* A member is about to lose its memory. */
static inline void transfers_before_crash(struct sim_member *m)
{
    for (unsigned i = 1; i < MEMBERS_SIM_MAX; i++) {
        struct transfer *t = &transfers[i];

        if (t->state == TRANSFER_NONE || (t->from != m->id && t->to != m->id))
            continue;
        if (t->from == m->id)
            transfer_let_go(t);
        if (t->to == m->id) {
            snap_import_free(t->im);
            t->im = NULL;
        }
    }
}

static inline void transfer_flushed(struct flush_wait *w)
{
    struct transfer_flush *f = (struct transfer_flush *)w;

    if (f->t)
        f->t->flush = NULL; /* when its member crashes, the transfer ends all the same */
    free(f);
}

static inline unsigned transfer_slot(uint64_t from)
{
    unsigned n = 0;

    for (unsigned i = 1; i < MEMBERS_SIM_MAX; i++)
        n += transfers[i].state != TRANSFER_NONE && transfers[i].from == from &&
             transfers[i].state != TRANSFER_STEPPED;
    return n;
}

/* turn_options.snapshot_send */
static inline void sim_snapshot_send(void *ctx, struct peer_msg *msg)
{
    struct sim_member *m = ctx;
    struct sim *s = m->s;
    struct transfer *t = &transfers[msg->to];
    unsigned slot = transfer_slot(m->id);

    if (t->state != TRANSFER_NONE || slot >= LIMIT_SNAP_SENDS || !s->m[msg->to].up ||
        s->net_options->cut[m->id][msg->to] || m->diverges) {
        if (m->diverges) /* it would spread, and then be the majority's: it is found in time */
            member_start_anew(m);
        turn_snapshot_sent(m->turn, msg->to, false, 0);
        peer_msg_free(msg);
        s->w.did.snapshots_failed++;
        return;
    }
    *t = (struct transfer){.state = TRANSFER_FLUSH,
                           .from = m->id,
                           .to = msg->to,
                           .from_boot = m->boot,
                           .to_boot = s->m[msg->to].boot,
                           .msg = msg,
                           .slot = slot,
                           .damage = world_chance(&s->w, 10) ? 1 + (unsigned)world_random(&s->w, 4) : 0,
                           .at_us = s->w.now_us + 1000,
                           .flush = malloc(sizeof *t->flush)};
    *t->flush = (struct transfer_flush){.wait = {.done = transfer_flushed}, .t = t};
    apply_flush(m->apply, &t->flush->wait);
}

static inline void sim_snap_stepped(void *ctx, uint64_t index, bool taken)
{
    struct transfer *t = &transfers[((struct sim_member *)ctx)->id];

    (void)index;
    t->refused = !taken;
}

/* turn_options.snap_install: the real one, over this member's directory and disk. */
static inline int sim_snap_install(void *ctx, uint64_t index, uint64_t term, const struct wal_state *hard)
{
    struct sim_member *m = ctx;
    char dir[16];
    struct snap_place place = {.dir = &m->bootstrap.dir,
                               .disk = &m->disk.disk,
                               .wal = m->wal,
                               .base = member_base_options(m),
                               .wal_options = member_wal_options(m, dir)};
    int err = snap_install(&place, m->apply, index, term, hard);

    world_line(m->w, "m%" PRIu64 " installs a snapshot at %" PRIu64 "/%" PRIu64 ": %d", m->id, index, term,
               err);
    m->wal_dir = m->bootstrap.dir.wal;
    if (err == 0) {
        transfers[m->id].installed = true;
        m->diverges = false;
    }
    return err;
}

static inline void member_snapshot_options(struct sim_member *m, struct turn_options *o)
{
    o->snapshot_send = sim_snapshot_send;
    o->snapshot_ctx = m;
    o->snap_stepped = sim_snap_stepped;
    o->snap_install = sim_snap_install;
    o->snap_ctx = m;
}

/* The message as it arrives, and the first of what it announces. False: it has ended. */
static inline bool transfer_begin(struct sim *s, struct transfer *t)
{
    struct sim_member *from = &s->m[t->from], *to = &s->m[t->to];
    struct snap_import_options o = {.base = member_base_options(to), .cluster_id = 1, .member_id = to->id};
    char path[DATADIR_PATH_BYTES];
    const struct snap_head *head;
    struct peer_msg *arrived;
    uint8_t *bytes;
    size_t n;

    if (snap_export_new(from->apply, from->store, &from->clock, &t->x) != 0) {
        transfer_end(s, t, false, "cannot be exported");
        return false;
    }
    head = snap_export_head(t->x);
    t->index = head->index;
    if (head->index < t->msg->raft.index) { /* a base that is about to be replaced by a snapshot itself */
        transfer_end(s, t, false, "is older than what was asked for");
        return false;
    }
    turn_keep_log(from->turn, t->slot, t->to, head->index);
    t->msg->raft.index = head->index;
    t->msg->raft.log_term = head->term;
    if (raftconf_decode(head->conf, &t->msg->conf) != 0)
        world_fail(&s->w, "harness", "a snapshot without a configuration");
    t->msg->raft.conf = &t->msg->conf;
    n = peer_msg_size(t->msg);
    bytes = malloc(n);
    peer_msg_encode(t->msg, bytes);
    if (peer_msg_decode(slice_of(bytes, n), &arrived) != 0)
        world_fail(&s->w, "codec", "a SNAPSHOT cannot be decoded");
    else {
        peer_msg_free(t->msg);
        t->msg = arrived;
    }
    free(bytes);
    if (datadir_make_incoming(&to->bootstrap.dir, path) != 0) {
        transfer_end(s, t, false, "has no place to go");
        return false;
    }
    o.path = path;
    if (snap_import_new(&o, &t->im) != 0)
        world_fail(&s->w, "harness", "no import");
    t->state = TRANSFER_CHUNKS;
    world_line(&s->w, "snapshot %" PRIu64 ">%" PRIu64 " begins at %" PRIu64, t->from, t->to, t->index);
    return true;
}

static inline void transfer_chunk(struct sim *s, struct transfer *t)
{
    struct slice chunk;
    uint8_t *copy;
    bool damaged = false;
    int err = snap_export_next(t->x, &chunk);

    if (err != 0) { /* 1 too: the receiver should have known by the last chunk */
        transfer_end(s, t, false, "the sender gives up");
        return;
    }
    copy = malloc(chunk.len);
    memcpy(copy, chunk.ptr, chunk.len);
    if (t->damage && --t->damage == 0) {
        copy[world_random(&s->w, chunk.len)] ^= (uint8_t)(1u << world_random(&s->w, 8));
        damaged = true;
    }
    err = snap_import_feed(t->im, slice_of(copy, chunk.len));
    free(copy);
    if (damaged && err >= 0)
        world_fail(&s->w, "RotIsNoticed", "a damaged chunk of a snapshot is taken (%d)", err);
    if (err < 0) {
        transfer_end(s, t, false, damaged ? "a damaged chunk was refused" : "refused by the import");
        if (!damaged)
            world_fail(&s->w, "SameOnAllMembers", "a sound chunk of a snapshot is refused: %d", err);
        return;
    }
    if (err == 0)
        return;
    transfer_let_go(t);
    t->state = TRANSFER_STEPPED;
    t->msg->is_here = true;
    turn_receive(s->m[t->to].turn, t->msg);
    t->msg = NULL;
    member_poll(&s->m[t->to]);
}

static inline void transfer_step(struct sim *s, struct transfer *t)
{
    struct sim_member *from = &s->m[t->from], *to = &s->m[t->to];

    t->at_us = s->w.now_us + 200 + world_delay(&s->w, world_chance(&s->w, 10) ? 500000 : 20000);
    if (!transfer_receiver_lives(s, t)) {
        transfer_end(s, t, false, "the receiver is gone");
        return;
    }
    if (t->state == TRANSFER_STEPPED) {
        s->w.did.snapshots_unwanted += t->refused;
        if (t->installed || t->refused)
            transfer_end(s, t, t->installed || to->turn->status.commit >= t->index,
                         t->installed ? "installed" : "not wanted");
        return;
    }
    if (!transfer_sender_lives(s, t) || s->net_options->cut[t->from][t->to] || world_chance(&s->w, 2)) {
        transfer_end(s, t, false, "the connection breaks");
        return;
    }
    if (from->paused || to->paused)
        return;
    if (t->state == TRANSFER_FLUSH && t->flush)
        return;
    if (t->state == TRANSFER_FLUSH && !transfer_begin(s, t))
        return;
    transfer_chunk(s, t);
    if (from->up)
        member_poll(from);
}

/* The first that is due; NULL: none before at_us. */
static inline struct transfer *transfer_due(uint64_t at_us)
{
    struct transfer *first = NULL;

    for (unsigned i = 1; i < MEMBERS_SIM_MAX; i++)
        if (transfers[i].state != TRANSFER_NONE && transfers[i].at_us < at_us) {
            first = &transfers[i];
            at_us = first->at_us;
        }
    return first;
}

static inline void transfers_clear(void)
{
    for (unsigned i = 1; i < MEMBERS_SIM_MAX; i++) {
        transfer_let_go(&transfers[i]);
        if (transfers[i].flush)
            transfers[i].flush->t = NULL;
        peer_msg_free(transfers[i].msg);
        transfers[i] = (struct transfer){.state = TRANSFER_NONE};
    }
}
