/* SPDX-License-Identifier: Apache-2.0 */
/* peers_io.c - the peers' thread: waits for sockets and for what other threads want of it.
 *
 * Promise: it never waits for anything else; what arrives is given to the sink on it.
 *
 * Owner: itself.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "peers_impl.h"

enum { EVENTS = 64, LATE_CHECK_MS = 1000 };

static _Thread_local const struct peers *running; /* whose thread this is */

bool io_is_me(const struct peers *p)
{
    return running == p;
}

void io_wake(struct peers *p)
{
    mailbox_nudge(&p->tasks);
}

void io_post(struct peers *p, struct task *t)
{
    mailbox_post(&p->tasks, &t->mail);
}

static void run_tasks(struct peers *p)
{
    struct mail *m, *next;

    for (m = mailbox_take(&p->tasks); m; m = next) {
        struct task *t = (struct task *)m;

        next = m->next; /* first: fn may free t, or post it again */
        t->fn(t);
    }
}

/* What senders have left to this thread. Only this thread changes the list, so it may walk it without the lock. */
static void see_to_links(struct peers *p)
{
    for (struct peer *peer = p->all; peer; peer = peer->next)
        peer_tell_lost(peer); /* first: the sink may send */
    for (struct peer *peer = p->all; peer; peer = peer->next)
        for (enum lane lane = 0; lane < LANES; lane++)
            if (atomic_exchange(&peer->links[lane].wants_io, false))
                link_flush(&peer->links[lane]);
}

static void on_event(struct peers *p, struct end *e, uint32_t events)
{
    uint64_t n;

    switch (e->kind) {
    case END_WAKE:
        (void)!read(p->event_fd, &n, sizeof n);
        break;
    case END_LINK:
        link_events((struct link *)e, events);
        break;
    case END_INCOMING:
        incoming_events((struct incoming *)e, events);
        break;
    }
}

static void *io_main(void *arg)
{
    struct peers *p = arg;
    struct epoll_event events[EVENTS];

    running = p;
    while (!atomic_load(&p->stopping)) {
        int n = epoll_wait(p->epoll_fd, events, EVENTS, p->n_strangers ? LATE_CHECK_MS : -1);

        for (int i = 0; i < n; i++)
            on_event(p, events[i].data.ptr, events[i].events);
        run_tasks(p);
        see_to_links(p);
        incoming_drop_late(p);
        incoming_bury(p);
    }
    for (struct peer *peer = p->all; peer; peer = peer->next)
        for (enum lane lane = 0; lane < LANES; lane++)
            link_drop(&peer->links[lane]);
    run_tasks(p); /* each sees that all stops, and frees what it holds */
    incoming_drop_all(p);
    return NULL;
}

int io_start(struct peers *p)
{
    int err = thread_start(&p->thread, "peers", io_main, p);

    p->thread_started = err == 0;
    return err;
}

void io_stop(struct peers *p)
{
    if (!p->thread_started)
        return;
    atomic_store(&p->stopping, true);
    io_wake(p);
    pthread_join(p->thread, NULL);
    p->thread_started = false;
}

void io_end(struct peers *p)
{
    atomic_store(&p->stopping, true);
    run_tasks(p);
    incoming_drop_all(p);
}
