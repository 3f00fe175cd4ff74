/* SPDX-License-Identifier: Apache-2.0 */
/* notify_tell.c - which changes are injected: those of what somebody watches.
 *
 * When the kernel's caches are right, a change waits for a look at who watches what (notify_watchers.c); a thread takes
 * it for all that wait. A few in a second go without. A new value that nobody watches waits a moment longer, parked, if
 * its file has just been read: its watcher may come back.
 *
 * Owner:    the core thread; the scanner's result has a lock.
 * Not here: how it is injected, and in which order (injector_pool.c, inject_order.c).
 */
#include <errno.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "inject_order.h"
#include "notify_private.h"

/* ---- the thread that looks ----------------------------------------------------------------- */

static void *scanner_main(void *arg)
{
    struct notify *n = arg;
    struct scanner *s = &n->scanner;
    uint64_t one = 1;

    (void)prctl(PR_SET_NAME, "watchers");
    pthread_mutex_lock(&s->mu);
    for (;;) {
        struct watched w;

        while (!s->wanted && !s->stop)
            pthread_cond_wait(&s->wake, &s->mu);
        if (s->stop)
            break;
        s->wanted = false;
        pthread_mutex_unlock(&s->mu);
        watched_scan(n->cfg.session->dev, n->cfg.watch_all, &w);
        pthread_mutex_lock(&s->mu);
        s->result = w;
        s->finished = true;
        (void)!write(n->done_source.fd, &one, sizeof one);
    }
    pthread_mutex_unlock(&s->mu);
    return NULL;
}

/* ---- the core: whom to tell ---------------------------------------------------------------- */

/* Under the number that it has, or had before a directory above was renamed: the kernel may not have asked again. */
static bool node_watched(const struct watched *w, const struct node *n)
{
    return n && (watched_has(w, n->ino) || (n->old_ino && watched_has(w, n->old_ino)));
}

static bool event_watched(const struct watched *w, const struct change_event *ev)
{
    return watched_has(w, ev->ino) || node_watched(w, ev->dir) || node_watched(w, ev->node) ||
           node_watched(w, ev->from_dir) || node_watched(w, ev->from_node);
}

static void scan_start(struct notify *n)
{
    uint64_t now = session_now_ms();

    if (n->scan_running || n->unsure == NULL)
        return;
    if (now < n->scan_started_ms + WATCHERS_SCAN_GAP_MS) {
        session_timer_set(n->cfg.session, &n->scan_timer, n->scan_started_ms + WATCHERS_SCAN_GAP_MS - now);
        return;
    }
    n->looking = n->unsure;
    n->unsure = NULL;
    n->unsure_last = &n->unsure;
    n->scan_running = true;
    n->scan_started_ms = now;
    n->stats.scans++;
    pthread_mutex_lock(&n->scanner.mu);
    n->scanner.wanted = true;
    pthread_cond_signal(&n->scanner.wake);
    pthread_mutex_unlock(&n->scanner.mu);
}

static void scan_timer_fire(struct timer *t)
{
    scan_start((struct notify *)((char *)t - offsetof(struct notify, scan_timer)));
}

/* Is there later news of the same node behind ev? */
static bool newer_waits(const struct change_event *ev, const struct change_event *later)
{
    for (; later; later = later->next)
        if (later->node == ev->node)
            return true;
    return false;
}

/* A new value that nobody watches just now, of a file read a moment ago: whoever runs
 * `while inotifywait f; do cat f; done` is between the two, and would never hear of it. Not if the read
 * showed this value already. */
static bool may_return(const struct change_event *ev)
{
    return ev->kind == CHANGE_MODIFY && ev->node->read_rev && ev->node->read_rev < ev->rev &&
           client_now_ms() - ev->node->read_ms < WATCHERS_RETURN_MS;
}

static void park(struct notify *n, struct change_event *ev)
{
    bool freed = inject_order_leave(ev); /* nothing waits for it */
    bool soon = client_now_ms() - ev->node->read_ms < WATCHERS_RETURN_SOON_MS;

    if (n->parked == NULL || (soon && !n->parked_soon)) {
        session_timer_set(n->cfg.session, &n->parked_timer, soon ? WATCHERS_RETURN_LOOK_MS : WATCHERS_RETURN_RARE_MS);
        n->parked_soon = soon;
    }
    ev->next = n->parked;
    n->parked = ev;
    if (freed)
        injector_pool_advance(n->cfg.injectors);
}

/* Newer news of the node: what nobody saw is past. */
static void parked_drop(struct notify *n, const struct node *node)
{
    for (struct change_event **p = &n->parked, *ev; (ev = *p) != NULL;)
        if (ev->node == node) {
            *p = ev->next;
            notify_forget(n, ev);
        } else {
            p = &ev->next;
        }
}

static void look_later(struct notify *n, struct change_event *ev)
{
    ev->next = NULL;
    *n->unsure_last = ev;
    n->unsure_last = &ev->next;
}

static void parked_timer_fire(struct timer *t)
{
    struct notify *n = (struct notify *)((char *)t - offsetof(struct notify, parked_timer));
    struct change_event *ev = n->parked;

    n->parked = NULL;
    for (struct change_event *next; ev; ev = next) {
        next = ev->next;
        inject_order_enter(ev);
        look_later(n, ev);
    }
    scan_start(n);
}

/* Its name was only expired: the kernel keeps it until somebody asks for it again, which nobody may. */
static bool is_gone_dir(const struct change_event *ev)
{
    return ev->kind == CHANGE_DELETE && ev->flags & CHANGE_DIR && notify_knows(ev->node) && !ev->node->present;
}

void tell_looked(struct notify *n)
{
    struct watched w = {0};
    bool finished;

    pthread_mutex_lock(&n->scanner.mu);
    finished = n->scanner.finished;
    if (finished)
        w = n->scanner.result;
    n->scanner.finished = false;
    n->scanner.result = (struct watched){0};
    pthread_mutex_unlock(&n->scanner.mu);
    if (!finished)
        return;
    n->scan_running = false;
    for (struct change_event *ev = n->looking, *next; ev; ev = next) {
        next = ev->next;
        if (event_watched(&w, ev))
            injector_pool_push(n->cfg.injectors, ev);
        else if (is_gone_dir(ev)) {
            n->stats.skipped_unwatched++;
            ev->flags |= CHANGE_LOOK;
            injector_pool_push(n->cfg.injectors, ev);
        } else if (may_return(ev) && !newer_waits(ev, next) && !newer_waits(ev, n->unsure))
            park(n, ev);
        else {
            n->stats.skipped_unwatched++;
            notify_forget(n, ev);
        }
    }
    n->looking = NULL;
    watched_fini(&w);
    scan_start(n);
}

/* A few a second without looking: the look takes longer than they do. The order of a directory's changes
 * holds: once one waits for a look, all that follow wait too. */
static bool may_go_blind(struct notify *n)
{
    uint64_t second = session_now_ms() / 1000;

    if (second != n->blind_second) {
        n->blind_second = second;
        n->blind_n = 0;
    }
    return n->unsure == NULL && n->looking == NULL && n->blind_n++ < INJECT_BLIND_PER_S;
}

/* To make the directory once more the injector has it absent for a moment, and whoever is in it cut off: only
 * where somebody is sure to be watching. */
static bool in_use(const struct change_event *ev)
{
    return ev->kind == CHANGE_CREATE && ev->flags & CHANGE_DIR && notify_knows(ev->node);
}

void tell_consider(struct notify *n, struct change_event *ev)
{
    parked_drop(n, ev->node);
    if (!(ev->flags & CHANGE_INJECT)) {
        notify_forget(n, ev);
    } else if (!notify_knows(ev->dir) && !notify_knows(ev->node) && !notify_knows(ev->from_dir) && !notify_knows(ev->from_node)) {
        n->stats.skipped_unknown++;
        notify_forget(n, ev);
    } else if (!may_return(ev) && !in_use(ev) && may_go_blind(n)) {
        injector_pool_push(n->cfg.injectors, ev);
    } else {
        look_later(n, ev);
        scan_start(n);
    }
}

void notify_injected(struct notify *n, struct change_event *ev, int err)
{
    if (err == 0 && ev->kind == CHANGE_MOVE)
        notify_name(n, ev->dir,
                    ev->name); /* the kernel moved the old inode there; the name has another node */
    notify_forget(n, ev);
}

/* ---- life ------------------------------------------------------------------------------------ */

int tell_start(struct notify *n)
{
    n->unsure_last = &n->unsure;
    n->scan_timer.fire = scan_timer_fire;
    n->parked_timer.fire = parked_timer_fire;
    pthread_mutex_init(&n->scanner.mu, NULL);
    pthread_cond_init(&n->scanner.wake, NULL);
    return -pthread_create(&n->scanner.thread, NULL, scanner_main, n);
}

void tell_stop(struct notify *n)
{
    pthread_mutex_lock(&n->scanner.mu);
    n->scanner.stop = true;
    pthread_cond_signal(&n->scanner.wake);
    pthread_mutex_unlock(&n->scanner.mu);
    pthread_join(n->scanner.thread, NULL);
}

static void drop_list(struct notify *n, struct change_event *ev)
{
    for (struct change_event *next; ev; ev = next) {
        next = ev->next;
        notify_forget(n, ev);
    }
}

void tell_drop(struct notify *n)
{
    drop_list(n, n->unsure);
    drop_list(n, n->looking);
    drop_list(n, n->parked);
    watched_fini(&n->scanner.result);
}
