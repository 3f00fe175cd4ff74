/* SPDX-License-Identifier: Apache-2.0 */
/* peers_fetch.c - reads entries that are only in the log, on a thread of its own: a slow disk delays the one member
 * that is far behind, and no heartbeat.
 *
 * One APPEND of each member at a time at most; what waits behind it in its lane waits.
 *
 * Owner: the fetch thread, from fetch_ask until link_fetched.
 */
#include <errno.h>
#include "peers_impl.h"

static void fetched(struct task *t)
{
    struct fetch *f = (struct fetch *)((char *)t - offsetof(struct fetch, task));

    link_fetched(f->link);
}

void fetch_ask(struct link *l, struct peer_msg *m)
{
    assert(!l->fetching);
    l->fetching = true;
    l->fetch = (struct fetch){.link = l, .msg = m, .task.fn = fetched};
    mailbox_post(&l->peer->peers->fetch_box, &l->fetch.mail);
}

static void *fetch_main(void *arg)
{
    struct peers *p = arg;

    while (!atomic_load(&p->fetch_stop)) {
        struct mail *m, *next;

        mailbox_wait(&p->fetch_box, UINT64_MAX);
        for (m = mailbox_take(&p->fetch_box); m; m = next) {
            struct fetch *f = (struct fetch *)m;

            next = m->next; /* first: f is the peers' thread's again once it is posted */
            f->err = peer_msg_fill(f->msg, p->options.cache, p->options.wal, LIMIT_PEER_BATCH_BYTES);
            if (f->err == -EUCLEAN && p->options.damaged)
                p->options.damaged(p->options.damaged_ctx, "a record of the log, wanted by another member");
            io_post(p, &f->task);
        }
    }
    return NULL;
}

int fetch_start(struct peers *p)
{
    int err = thread_start(&p->fetch_thread, "peers-fetch", fetch_main, p);

    p->fetch_started = err == 0;
    return err;
}

void fetch_stop(struct peers *p)
{
    if (!p->fetch_started)
        return;
    atomic_store(&p->fetch_stop, true);
    mailbox_nudge(&p->fetch_box);
    pthread_join(p->fetch_thread, NULL);
    p->fetch_started = false;
}
