/* SPDX-License-Identifier: Apache-2.0 */
/* notify.c - from a change of the tree to the kernel's caches and to inotify (see notify.h).
 *
 * A job is what one thread does for one change: at most two names and two inodes. Threads take jobs from
 * their queue, do them, and hand them back through one list and an eventfd; the core then decides about the
 * injection.
 *
 * A name is expired: the kernel asks again before it uses it, and what it asks is answered as the tree then
 * is, so a directory that is somebody's working directory, or has something mounted on it, stays where it is.
 * inval_entry would cut it off whatever it stands for by then (getcwd: ENOENT; mounts on it detached), and a
 * change of a name may be told when the next is made already: a mkdir whose event comes before its answer,
 * rmdir and mkdir. It is only for files that are gone, so that the kernel forgets them at once.
 *
 * inval_inode saying ENOENT for an inode that the kernel had been told of means that this reply is still on
 * its way and would install the old size for good: then the name is expired, which waits for that lookup, and
 * inval_inode sent again.
 */
#include "notify.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "inject_order.h"
#include "notify_watchers.h"

struct target {
    uint64_t dir_id;  /* 0: no name to invalidate */
    uint64_t node_id; /* 0: no inode */
    const char *name; /* in the job's change, or in the job */
    bool gone;        /* the name stands for nothing any more, as far as this change knows */
    int64_t offset;   /* of inval_inode: -1 attributes, 0 pages too */
};

struct job {
    struct job *next;
    struct change_event *ev; /* NULL: on nobody's behalf */
    struct target targets[2];
    char name[];
};

struct queue {
    struct job *first, **last;
};

/* One notify thread. */
struct worker {
    struct notify *notify;
    pthread_t thread;
    pthread_mutex_t mu;
    pthread_cond_t wake;
    struct queue queue; /* protected by mu: a mailbox */
    bool stop;          /* protected by mu */
};

/* The thread that looks who watches what, between two looks idle. */
struct scanner {
    pthread_t thread;
    pthread_mutex_t mu;
    pthread_cond_t wake;
    bool wanted, stop;     /* protected by mu */
    bool finished;         /* protected by mu: result is there */
    struct watched result; /* protected by mu */
};

struct notify {
    struct notify_config cfg;
    struct worker workers[NOTIFY_THREADS];
    struct scanner scanner;
    pthread_mutex_t done_mu;
    struct queue done; /* protected by done_mu: a mailbox to the core */
    uint64_t raced;    /* protected by done_mu */
    struct source done_source;
    /* The core's from here. */
    struct change_event *unsure, **unsure_last; /* wait for the look that is to come */
    struct change_event *looking;               /* wait for the look under way */
    struct change_event *parked;                /* for watchers that may come back, one for a node */
    struct timer parked_timer;
    bool parked_soon;                           /* it fires soon, for one of them was read a moment ago */
    bool scan_running;
    uint64_t scan_started_ms;
    struct timer scan_timer;
    uint64_t blind_second;
    unsigned blind_n;
    struct notify_stats stats;
};

static void queue_init(struct queue *q)
{
    q->first = NULL;
    q->last = &q->first;
}

static void queue_push(struct queue *q, struct job *j)
{
    j->next = NULL;
    *q->last = j;
    q->last = &j->next;
}

static struct job *queue_take(struct queue *q)
{
    struct job *all = q->first;

    queue_init(q);
    return all;
}

/* ---- the threads --------------------------------------------------------------------- */

static void name_do(struct session *s, uint64_t dir_id, const char *name, bool gone)
{
    if (gone)
        (void)session_inval_entry(s, dir_id, name, strlen(name)); /* ENOENT: not cached */
    else
        (void)session_expire_entry(s, dir_id, name, strlen(name));
}

static void job_do(struct notify *n, struct job *j)
{
    for (int i = 0; i < 2; i++) {
        struct target *t = &j->targets[i];
        int rc = 0;

        if (t->dir_id && t->name) {
            name_do(n->cfg.session, t->dir_id, t->name, t->gone);
            (void)session_inval_inode(n->cfg.session, t->dir_id, 0); /* its listing, its times */
        }
        if (t->node_id)
            rc = session_inval_inode(n->cfg.session, t->node_id, t->offset);
        if (rc == -ENOENT && t->dir_id == 0 && j->ev) {
            const struct change_event *ev = j->ev;

            name_do(n->cfg.session, ev->dir_id, ev->name, false);
            (void)session_inval_inode(n->cfg.session, t->node_id, t->offset);
            pthread_mutex_lock(&n->done_mu);
            n->raced++;
            pthread_mutex_unlock(&n->done_mu);
        }
    }
}

static void hand_back(struct notify *n, struct job *j)
{
    uint64_t one = 1;

    pthread_mutex_lock(&n->done_mu);
    queue_push(&n->done, j);
    pthread_mutex_unlock(&n->done_mu);
    (void)!write(n->done_source.fd, &one, sizeof one); /* full: it is readable anyway */
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;

    (void)prctl(PR_SET_NAME, "notify");
    for (;;) {
        struct job *j;
        bool stop;

        pthread_mutex_lock(&w->mu);
        while (w->queue.first == NULL && !w->stop)
            pthread_cond_wait(&w->wake, &w->mu);
        j = queue_take(&w->queue);
        stop = w->stop;
        pthread_mutex_unlock(&w->mu);
        for (struct job *next; j; j = next) {
            next = j->next;
            if (!stop)
                job_do(w->notify, j);
            hand_back(w->notify, j);
        }
        if (stop)
            return NULL;
    }
}

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

/* ---- the core: what to invalidate -------------------------------------------------------- */

static void job_start(struct notify *n, struct job *j, uint64_t shard)
{
    struct worker *w = &n->workers[shard % NOTIFY_THREADS];

    n->stats.waiting++;
    pthread_mutex_lock(&w->mu);
    queue_push(&w->queue, j);
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->mu);
}

static bool known(const struct node *node)
{
    return node && node->nlookup > 0;
}

/* The name of node in dir: its dentry, the directory's listing, and of the node what the kernel keeps. */
static struct target target_name(const struct node *dir, const char *name, const struct node *node)
{
    return (struct target){
        .dir_id = known(dir) ? dir->nodeid : 0, .name = name, .node_id = known(node) ? node->nodeid : 0};
}

/* Of a directory never: it is somebody's working directory, perhaps made again while the thread waits. */
static bool is_gone_file(const struct change_event *ev, const struct node *node)
{
    return !(ev->flags & (CHANGE_DIR | CHANGE_OWN)) && node && !node->present;
}

static void plan(struct job *j)
{
    struct change_event *ev = j->ev;
    bool own = ev->flags & CHANGE_OWN;

    switch (ev->kind) {
    case CHANGE_CREATE:
        j->targets[0] = target_name(ev->dir, ev->name, ev->node);
        if (own && known(ev->node))
            j->targets[0].dir_id = 0; /* made by a call of ours: the kernel has the right name already */
        break;
    case CHANGE_DELETE:
        j->targets[0] = target_name(ev->dir, ev->name, ev->node);
        j->targets[0].gone = is_gone_file(ev, ev->node);
        break;
    case CHANGE_MOVE:
        j->targets[0] = target_name(ev->dir, ev->name, ev->node);
        j->targets[1] = target_name(ev->from_dir, ev->from_name, ev->from_node);
        j->targets[1].gone = is_gone_file(ev, ev->from_node);
        break;
    case CHANGE_MODIFY:
    case CHANGE_ATTRIB:
        j->targets[0] = (struct target){.node_id = known(ev->node) ? ev->node->nodeid : 0,
                                        .offset = ev->kind == CHANGE_ATTRIB ? -1 : 0};
        break;
    }
}

/* ev has been told, or will not be: what waited for that goes on. */
static void forget(struct notify *n, struct change_event *ev)
{
    bool freed = inject_order_leave(ev);

    change_free(n->cfg.tree, ev);
    if (freed)
        injector_pool_advance(n->cfg.injectors);
}

/* What is only to be injected goes the same way as the rest, for the sake of the order. */
void notify_change(struct notify *n, struct change_event *ev)
{
    struct job *j = calloc(1, sizeof *j);

    if (j == NULL) { /* the kernel's timeouts heal it */
        change_free(n->cfg.tree, ev);
        return;
    }
    j->ev = ev;
    if (ev->flags & CHANGE_INJECT)
        inject_order_enter(ev);
    if (ev->flags & CHANGE_INVALIDATE) {
        if (known(ev->node))
            notify_attributes(n, ev->node->nodeid); /* at once: what fstat says next is true */
        plan(j);
    }
    job_start(n, j, ev->dir_id);
}

void notify_raw(struct notify *n, uint64_t dir_id, const char *name, uint64_t node_id)
{
    size_t len = name ? strlen(name) : 0;
    struct job *j = calloc(1, sizeof *j + len + 1);

    if (j == NULL)
        return; /* the kernel's timeouts heal it */
    if (name)
        memcpy(j->name, name, len + 1);
    j->targets[0] = (struct target){.dir_id = name ? dir_id : 0, .name = j->name, .node_id = node_id};
    job_start(n, j, dir_id);
}

void notify_name(struct notify *n, struct node *dir, const char *name)
{
    if (known(dir))
        notify_raw(n, dir->nodeid, name, 0);
}

void notify_pages(struct notify *n, struct node *node)
{
    if (known(node))
        notify_raw(n, node->parent ? node->parent->nodeid : 0, NULL, node->nodeid);
}

void notify_attributes(struct notify *n, uint64_t nodeid)
{
    (void)session_inval_inode(n->cfg.session, nodeid, -1); /* ENOENT: nothing is cached */
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
            forget(n, ev);
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
    return ev->kind == CHANGE_DELETE && ev->flags & CHANGE_DIR && known(ev->node) && !ev->node->present;
}

static void scan_finish(struct notify *n)
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
            forget(n, ev);
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
    return ev->kind == CHANGE_CREATE && ev->flags & CHANGE_DIR && known(ev->node);
}

static void inject(struct notify *n, struct change_event *ev)
{
    parked_drop(n, ev->node);
    if (!(ev->flags & CHANGE_INJECT)) {
        forget(n, ev);
    } else if (!known(ev->dir) && !known(ev->node) && !known(ev->from_dir) && !known(ev->from_node)) {
        n->stats.skipped_unknown++;
        forget(n, ev);
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
    forget(n, ev);
}

static void done_ready(struct source *src)
{
    struct notify *n = (struct notify *)((char *)src - offsetof(struct notify, done_source));
    struct job *j;
    uint64_t count;

    (void)!read(src->fd, &count, sizeof count); /* only wakes */
    pthread_mutex_lock(&n->done_mu);
    j = queue_take(&n->done);
    n->stats.raced = n->raced;
    pthread_mutex_unlock(&n->done_mu);
    for (struct job *next; j; j = next) {
        next = j->next;
        n->stats.waiting--;
        n->stats.invalidated++;
        if (j->ev)
            inject(n, j->ev);
        free(j);
    }
    scan_finish(n);
}

/* ---- life ------------------------------------------------------------------------------------ */

int notify_open(const struct notify_config *cfg, struct notify **ret_notify)
{
    struct notify *n = calloc(1, sizeof *n);
    int rc = 0;

    if (n == NULL)
        return -ENOMEM;
    n->cfg = *cfg;
    n->unsure_last = &n->unsure;
    n->scan_timer.fire = scan_timer_fire;
    n->parked_timer.fire = parked_timer_fire;
    queue_init(&n->done);
    pthread_mutex_init(&n->done_mu, NULL);
    n->done_source = (struct source){eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), done_ready};
    if (n->done_source.fd < 0 || (rc = session_watch(cfg->session, &n->done_source)) != 0) {
        free(n);
        return rc ? rc : -EMFILE;
    }
    for (int i = 0; i < NOTIFY_THREADS; i++) {
        struct worker *w = &n->workers[i];

        w->notify = n;
        queue_init(&w->queue);
        pthread_mutex_init(&w->mu, NULL);
        pthread_cond_init(&w->wake, NULL);
        rc = rc ? rc : -pthread_create(&w->thread, NULL, worker_main, w);
    }
    pthread_mutex_init(&n->scanner.mu, NULL);
    pthread_cond_init(&n->scanner.wake, NULL);
    rc = rc ? rc : -pthread_create(&n->scanner.thread, NULL, scanner_main, n);
    if (rc)
        return rc; /* the program ends: nothing to take back */
    *ret_notify = n;
    return 0;
}

static void drop_list(struct notify *n, struct change_event *ev)
{
    for (struct change_event *next; ev; ev = next) {
        next = ev->next;
        forget(n, ev);
    }
}

void notify_close(struct notify *n)
{
    if (n == NULL)
        return;
    for (int i = 0; i < NOTIFY_THREADS; i++) {
        struct worker *w = &n->workers[i];

        pthread_mutex_lock(&w->mu);
        w->stop = true;
        pthread_cond_signal(&w->wake);
        pthread_mutex_unlock(&w->mu);
        pthread_join(w->thread, NULL);
    }
    pthread_mutex_lock(&n->scanner.mu);
    n->scanner.stop = true;
    pthread_cond_signal(&n->scanner.wake);
    pthread_mutex_unlock(&n->scanner.mu);
    pthread_join(n->scanner.thread, NULL);
    for (struct job *j = queue_take(&n->done), *next; j; j = next) {
        next = j->next;
        if (j->ev)
            forget(n, j->ev);
        free(j);
    }
    drop_list(n, n->unsure);
    drop_list(n, n->looking);
    drop_list(n, n->parked);
    watched_fini(&n->scanner.result);
    session_unwatch(n->cfg.session, &n->done_source);
    (void)close(n->done_source.fd);
    free(n);
}

void notify_get_stats(struct notify *n, struct notify_stats *ret_stats)
{
    *ret_stats = n->stats;
}
