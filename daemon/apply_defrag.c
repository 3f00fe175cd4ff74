/* SPDX-License-Identifier: Apache-2.0 */
/* apply_defrag.c - defragmentation: a compacted copy of base takes its place while everything goes on.
 *
 *     apply    no frozen delta is under way and none is made from here on (the live one grows, at most to
 *              LIMIT_DELTA_STALL_BYTES); defrag_wanted
 *     flush    base-N+1 = copy of base-N, opened; CURRENT renamed to it: the commit point. Both hold the very same, so
 *              a crash before or after it loses nothing
 *     apply    store_swap_base, who asked is answered; when no reader has the old base any more and it is closed:
 *     flush    base-N is removed. Not earlier: freeing the blocks of a large file takes long, and whoever closes it last
 *              pays for that
 *
 * A stop gives a copy up: it would wait for it, because nothing is frozen meanwhile. What a crash leaves of a copy, or
 * of the base before, the flush thread removes when it begins.
 *
 * Owner: defrag_copy is the flush thread's, the rest the apply thread's.
 */
#include <errno.h>
#include "apply_state.h"
#include "log.h"

void apply_defragment(struct apply *a, struct flush_wait *w)
{
    mailbox_post(&a->defrag_box, &w->mail);
    mailbox_nudge(&a->box);
}

static void answer(struct apply *a, int err)
{
    while (a->defrag_waits) {
        struct flush_wait *w = a->defrag_waits;

        a->defrag_waits = (struct flush_wait *)w->mail.next;
        w->err = err;
        w->done(w);
    }
}

void defrags_take(struct apply *a)
{
    for (struct mail *m = mailbox_take(&a->defrag_box), *next; m; m = next) {
        next = m->next;
        m->next = (struct mail *)a->defrag_waits;
        a->defrag_waits = (struct flush_wait *)m;
    }
    if (a->defrag_waits == NULL || a->defragmenting)
        return;
    if (a->o.datadir == NULL || a->failed || atomic_load(&a->stopping) || apply_installing(a)) {
        answer(a, a->o.datadir == NULL ? -EOPNOTSUPP : a->failed ? -EIO : -ECANCELED);
    } else if (store_frozen(a->o.store) == NULL) { /* else the flush thread nudges when it is done */
        a->defragmenting = true;
        atomic_store_explicit(&a->defrag_wanted, true, memory_order_release);
        mailbox_nudge(&a->flusher);
    }
}

void defrag_copy(struct apply *a)
{
    struct datadir *d = a->o.datadir;
    char path[DATADIR_PATH_BYTES];
    struct base_options o = a->o.base;
    unsigned old = datadir_base(d), new = datadir_new_base(d);
    struct base *b = NULL;
    /* When a snapshot is being installed CURRENT may name its base already, and the store not yet hold it. Asked after
     * `old` was read: one that begins later makes the switch below stale. */
    int err = apply_installing(a) ? -ECANCELED : datadir_make_base(d, new, path);

    if (!err)
        err = base_copy(store_base(a->o.store), path);
    o.path = path;
    if (!err)
        err = base_open(&o, &b);
    if (!err)
        err = datadir_switch(d, old, new);
    if (err == -EUCLEAN)
        store_damaged(a->o.store, "the store cannot be copied");
    if (err) {
        base_close(b);
        (void)datadir_remove_base(d, new); /* the next start removes what is left */
        b = NULL;
    }
    a->defrag_base = b;
    a->defrag_err = err;
    atomic_store_explicit(&a->defrag_done, true, memory_order_release);
    mailbox_nudge(&a->box);
}

void defrag_stop(struct apply *a)
{
    if (a->defragmenting)
        base_copy_give_up(store_base(a->o.store));
}

void defrag_give_up(struct apply *a)
{
    answer(a, -ECANCELED);
}

/* The old base is closed. */
void defrag_closed(struct apply *a)
{
    if (!a->retired_dir)
        return;
    atomic_store_explicit(&a->remove_dirs, true, memory_order_release);
    a->retired_dir = false;
    mailbox_nudge(&a->flusher);
}

void defrag_remove(struct apply *a)
{
    bool closed = atomic_exchange_explicit(&a->remove_dirs, false, memory_order_acquire);

    if ((closed || !a->tidied) && a->o.datadir)
        (void)datadir_remove_others(a->o.datadir); /* the next start tries again */
    a->tidied = true;
}

void defrag_collect(struct apply *a)
{
    int err;

    if (!atomic_load_explicit(&a->defrag_done, memory_order_acquire))
        return;
    err = a->defrag_err;
    if (!err) {
        apply_view_close(a);
        err = store_swap_base(a->o.store, a->defrag_base);
        if (err == -EBUSY || err == -ENOMEM)
            return; /* the base before the present one is still being read; the step comes again */
    }
    if (err)
        log_warn("apply: defragmentation failed", LOG_STR("error", strerror(-err)));
    else
        a->retired_dir = true;
    a->defrag_base = NULL;
    a->defragmenting = false;
    note_sizes(a);
    atomic_store(&a->defrag_done, false);
    atomic_store_explicit(&a->defrag_wanted, false, memory_order_release);
    mailbox_nudge(&a->flusher); /* the sweep goes on */
    answer(a, err);
}
