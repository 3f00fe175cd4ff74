/* SPDX-License-Identifier: Apache-2.0 */
/* snap_send.c - one member is given a snapshot.
 *
 *     base is flushed, so that the snapshot's configuration has whoever was just added
 *     the log is kept from the snapshot's index on: its receiver will want what follows
 *     first message    the SNAPSHOT as Raft wanted it, with index, term and configuration of what is sent (peer.h)
 *     then             the chunks of snap_export.c
 *     the status       OK: the receiver has installed it, or does not need it
 *
 * Nobody waits for this thread: it waits for the receiver, for as long as that makes progress.
 *
 * Owner: each sending thread its own struct sender.
 */
#include <errno.h>
#include "log.h"
#include "raftconf.h"
#include "snap_impl.h"

static bool stopping(const struct sender *sd)
{
    return atomic_load(&sd->snap->stopping);
}

/* ---- the flush ------------------------------------------------------------------------------ */

static void flushed(struct flush_wait *w)
{
    struct sender *sd = (struct sender *)((char *)w - offsetof(struct sender, flush));

    atomic_store(&sd->flushing, false);
    mailbox_nudge(&sd->box);
}

static int flush(struct sender *sd)
{
    struct clock *clock = sd->snap->o.clock;
    uint64_t deadline_ms = clock->now_ms(clock) + LIMIT_SNAP_STALL_MS;

    if (!atomic_exchange(&sd->flushing, true)) { /* else one that came too late for an earlier transfer is still
                                                  * coming */
        sd->flush = (struct flush_wait){.done = flushed};
        apply_flush(sd->snap->o.apply, &sd->flush);
    }
    while (atomic_load(&sd->flushing)) {
        if (stopping(sd))
            return -ECANCELED;
        if (clock->now_ms(clock) >= deadline_ms)
            return -ETIMEDOUT;
        mailbox_wait(&sd->box, deadline_ms);
    }
    return sd->flush.err;
}

/* ---- the transfer ----------------------------------------------------------------------------- */

static int send_message(struct rpc_ask *ask, struct peer_msg *m, const struct snap_head *head)
{
    uint8_t *p;
    size_t n;
    int err = raftconf_decode(head->conf, &m->conf);

    if (err)
        return err;
    m->raft.index = head->index;
    m->raft.log_term = head->term;
    m->raft.conf = &m->conf;
    n = peer_msg_size(m);
    p = malloc(n);
    if (p == NULL)
        return -ENOMEM;
    peer_msg_encode(m, p);
    err = rpc_ask_send(ask, slice_of(p, n), LIMIT_SNAP_STALL_MS);
    free(p);
    return err;
}

static int send_chunks(struct sender *sd, struct rpc_ask *ask, struct snap_export *x)
{
    struct slice chunk;
    int err;

    while ((err = snap_export_next(x, &chunk)) == 0) {
        if (stopping(sd))
            return -ECANCELED;
        err = rpc_ask_send(ask, chunk, LIMIT_SNAP_STALL_MS);
        if (err)
            return err;
        atomic_fetch_add_explicit(&sd->snap->sent_bytes, chunk.len, memory_order_relaxed);
    }
    return err == 1 ? 0 : err;
}

/* Waits for the receiver to say how it went; it may take its time to sync. */
static int finish(struct rpc_ask *ask, char *text, size_t text_size)
{
    enum status status = rpc_ask_end(ask, LIMIT_SNAP_FINISH_MS, text, text_size);

    return status == STATUS_OK ? 0 : status == STATUS_DEADLINE_EXCEEDED ? -ETIMEDOUT : -EREMOTEIO;
}

static int transfer(struct sender *sd, struct peer_msg *m, uint64_t *ret_index, char *text, size_t text_size)
{
    struct snap *s = sd->snap;
    struct snap_export *x = NULL;
    struct rpc_ask *ask;
    int err = flush(sd);

    if (err == 0)
        err = snap_export_new(s->o.apply, s->o.store, s->o.clock, &x);
    if (err)
        return err;
    *ret_index = snap_export_head(x)->index;
    turn_keep_log(s->turn, sd->number, m->to, *ret_index);
    err = peers_call(s->peers, m->to, "/cairn.Peer/Snapshot", LIMIT_SNAP_CONNECT_MS, &ask);
    if (err)
        goto out;
    log_info("snap: sending a snapshot", LOG_HEX("to", m->to), LOG_UINT("index", *ret_index));
    err = send_message(ask, m, snap_export_head(x));
    if (err == 0)
        err = send_chunks(sd, ask, x);
    if (err == 0 || err == -EPIPE) {
        int ended = finish(ask, text, text_size);

        err = ended ? ended : err;
    } else {
        rpc_ask_cut(ask);
    }
out:
    snap_export_free(x);
    return err;
}

static void serve(struct sender *sd, struct peer_msg *m)
{
    struct snap *s = sd->snap;
    uint64_t to = m->to, index = 0, began_ms = s->o.clock->now_ms(s->o.clock);
    char text[200] = "";
    int err = transfer(sd, m, &index, text, sizeof text);

    if (err == -EUCLEAN)
        store_damaged(s->o.store, "read for a snapshot");
    atomic_fetch_add_explicit(err ? &s->send_failures : &s->sent, 1, memory_order_relaxed);
    if (err)
        log_warn("snap: sending a snapshot failed", LOG_HEX("to", to), LOG_STR("error", strerror(-err)),
                 LOG_STR("said", text));
    else
        log_info("snap: the member has taken the snapshot", LOG_HEX("to", to), LOG_UINT("index", index),
                 LOG_UINT("took-ms", s->o.clock->now_ms(s->o.clock) - began_ms));
    turn_keep_log_a_while(s->turn, sd->number);
    turn_snapshot_sent(s->turn, to, err == 0, index);
    peer_msg_free(m);
    atomic_store(&sd->busy, false);
}

void *snap_sender_main(void *arg)
{
    struct sender *sd = arg;

    while (!stopping(sd)) {
        struct mail *m = mailbox_take(&sd->box);

        if (m)
            serve(sd, (struct peer_msg *)m); /* busy: there is no second one */
        else
            mailbox_wait(&sd->box, UINT64_MAX);
    }
    /* apply answers every flush, at its stop at the latest; the struct outlives it. */
    return NULL;
}
