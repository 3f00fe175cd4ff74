/* SPDX-License-Identifier: Apache-2.0 */
/* notify.c - from a change of the tree to the kernel's caches (see notify.h), and on to who watches (notify_tell.c).
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
 *
 * Owner: the core thread; a notify thread's queue, and the list of what is done, have locks.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "inject_order.h"
#include "notify_private.h"

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

/* The name of node in dir: its dentry, the directory's listing, and of the node what the kernel keeps. */
static struct target target_name(const struct node *dir, const char *name, const struct node *node)
{
    return (struct target){
        .dir_id = notify_knows(dir) ? dir->nodeid : 0, .name = name, .node_id = notify_knows(node) ? node->nodeid : 0};
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
        if (own && notify_knows(ev->node))
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
        j->targets[0] = (struct target){.node_id = notify_knows(ev->node) ? ev->node->nodeid : 0,
                                        .offset = ev->kind == CHANGE_ATTRIB ? -1 : 0};
        break;
    }
}

/* ev has been told, or will not be: what waited for that goes on. */
void notify_forget(struct notify *n, struct change_event *ev)
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
        if (notify_knows(ev->node))
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
    if (notify_knows(dir))
        notify_raw(n, dir->nodeid, name, 0);
}

void notify_pages(struct notify *n, struct node *node)
{
    if (notify_knows(node))
        notify_raw(n, node->parent ? node->parent->nodeid : 0, NULL, node->nodeid);
}

void notify_attributes(struct notify *n, uint64_t nodeid)
{
    (void)session_inval_inode(n->cfg.session, nodeid, -1); /* ENOENT: nothing is cached */
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
            tell_consider(n, j->ev);
        free(j);
    }
    tell_looked(n);
}

/* ---- life ------------------------------------------------------------------------------------ */

int notify_open(const struct notify_config *cfg, struct notify **ret_notify)
{
    struct notify *n = calloc(1, sizeof *n);
    int rc = 0;

    if (n == NULL)
        return -ENOMEM;
    n->cfg = *cfg;
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
    rc = rc ? rc : tell_start(n);
    if (rc)
        return rc; /* the program ends: nothing to take back */
    *ret_notify = n;
    return 0;
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
    tell_stop(n);
    for (struct job *j = queue_take(&n->done), *next; j; j = next) {
        next = j->next;
        if (j->ev)
            notify_forget(n, j->ev);
        free(j);
    }
    tell_drop(n);
    session_unwatch(n->cfg.session, &n->done_source);
    (void)close(n->done_source.fd);
    free(n);
}

void notify_get_stats(struct notify *n, struct notify_stats *ret_stats)
{
    *ret_stats = n->stats;
}
