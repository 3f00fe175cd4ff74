/* SPDX-License-Identifier: Apache-2.0 */
/* snap_peer.c - the life of snapshot transfers, and what the turn asks of them.
 *
 * Owner:    stated at each function.
 * Not here: giving (snap_send.c), taking (snap_receive.c), the stream (snap_export.c, snap_import.c), the switch
 *           (snap_install.c).
 */
#include <errno.h>
#include "log.h"
#include "snap_impl.h"

/* ---- the turn and the WAL thread ------------------------------------------------------------ */

void snap_turn_send(void *ctx, struct peer_msg *m)
{
    struct snap *s = ctx;
    uint64_t to = m->to;

    for (size_t i = 0; i < LIMIT_SNAP_SENDS && s->started && !atomic_load(&s->stopping); i++) {
        if (atomic_exchange(&s->senders[i].busy, true))
            continue;
        mailbox_post(&s->senders[i].box, &m->mail);
        return;
    }
    peer_msg_free(m);
    turn_snapshot_sent(s->turn, to, false, 0); /* the core asks again */
}

void snap_turn_stepped(void *ctx, uint64_t index, bool taken)
{
    struct snap *s = ctx;

    (void)index; /* there is one at a time */
    atomic_store(&s->verdict, taken ? VERDICT_TAKEN : VERDICT_REFUSED);
    mailbox_nudge(&s->box);
}

int snap_turn_install(void *ctx, uint64_t index, uint64_t term, const struct wal_state *hard)
{
    struct snap *s = ctx;
    int err = snap_install(&s->o.place, s->o.apply, index, term, hard);

    if (err == 0) {
        atomic_store(&s->verdict, VERDICT_INSTALLED);
        mailbox_nudge(&s->box);
    }
    return err;
}

/* ---- life ---------------------------------------------------------------------------------------- */

int snap_new(const struct snap_options *o, struct snap **ret_snap)
{
    struct snap *s = calloc(1, sizeof *s);

    if (s == NULL)
        return -ENOMEM;
    s->o = *o;
    mailbox_init(&s->box, -1);
    mailbox_init(&s->hash_box, -1);
    atomic_init(&s->members_changed, true);
    for (unsigned i = 0; i < LIMIT_SNAP_SENDS; i++) {
        s->senders[i].snap = s;
        s->senders[i].number = i;
        mailbox_init(&s->senders[i].box, -1);
    }
    *ret_snap = s;
    return 0;
}

void snap_join(struct snap *s, struct turn *t, struct peers *p)
{
    s->turn = t;
    s->peers = p;
}

static void join(struct snap *s, unsigned n_senders, bool receiver)
{
    atomic_store(&s->stopping, true);
    for (unsigned i = 0; i < n_senders; i++) {
        mailbox_nudge(&s->senders[i].box);
        (void)pthread_join(s->senders[i].thread, NULL); /* it was started and nobody else joins it */
    }
    mailbox_nudge(&s->box);
    if (receiver)
        (void)pthread_join(s->receiver, NULL);
}

int snap_start(struct snap *s)
{
    int err = thread_start(&s->receiver, "snap-in", snap_receiver_main, s);
    unsigned n = 0;

    if (err)
        return err;
    for (; n < LIMIT_SNAP_SENDS && err == 0; n += err == 0)
        err = thread_start(&s->senders[n].thread, "snap-out", snap_sender_main, &s->senders[n]);
    if (err)
        join(s, n, true);
    s->started = err == 0;
    return err;
}

void snap_stop(struct snap *s)
{
    if (s->started && !atomic_load(&s->stopping))
        join(s, LIMIT_SNAP_SENDS, true);
}

void snap_free(struct snap *s)
{
    if (s == NULL)
        return;
    snap_stop(s);
    snap_pieces_free(s);
    snap_check_fini(s);
    for (unsigned i = 0; i < LIMIT_SNAP_SENDS; i++)
        for (struct mail *m = mailbox_take(&s->senders[i].box), *next; m; m = next) {
            next = m->next;
            peer_msg_free((struct peer_msg *)m);
        }
    free(s);
}

void snap_stats(const struct snap *s, struct snap_stats *ret)
{
    *ret = (struct snap_stats){
        .sent = atomic_load_explicit(&s->sent, memory_order_relaxed),
        .send_failures = atomic_load_explicit(&s->send_failures, memory_order_relaxed),
        .received = atomic_load_explicit(&s->received, memory_order_relaxed),
        .receive_failures = atomic_load_explicit(&s->receive_failures, memory_order_relaxed),
        .sent_bytes = atomic_load_explicit(&s->sent_bytes, memory_order_relaxed),
        .received_bytes = atomic_load_explicit(&s->received_bytes, memory_order_relaxed),
    };
}
