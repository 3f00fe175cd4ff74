/* SPDX-License-Identifier: Apache-2.0 */
/* injector_pool.c - the core's side of the injectors (see injector_pool.h). */
#include "injector_pool.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "inject_order.h"
#include "injector.h"
#include "spawner.h"

#define STUCK_MAX 32 /* killed injectors the kernel has not let go of; beyond it no new ones are made */

struct queue {
    struct change_event *first, **last;
    uint32_t n;
};

/* One injector process, or the place of one. */
struct slot {
    struct source source; /* its socket; fd -1: none yet */
    struct injector_pool *pool;
    struct timer deadline;
    pid_t pid; /* 0: none */
    struct change_event *current;
    uint64_t order_id;
    unsigned starved; /* how often the deadline passed while it waited for a processor */
    bool requested;   /* the spawner was asked for one */
    struct queue queue;
};

/* Killed, but perhaps still inside the kernel with a request to come. */
struct stuck {
    pid_t pid; /* 0: free */
    struct change_event *current;
};

struct injector_pool {
    struct injector_pool_config cfg;
    struct spawner spawner;
    struct source spawner_source;
    struct slot slots[INJECTORS];
    struct stuck stuck[STUCK_MAX];
    uint64_t next_order;
    bool running;
    bool advancing, again;
    struct injector_stats stats;
};

static void queue_push(struct queue *q, struct change_event *ev)
{
    ev->next = NULL;
    *q->last = ev;
    q->last = &ev->next;
    q->n++;
}

static struct change_event *queue_pop(struct queue *q)
{
    struct change_event *ev = q->first;

    if (ev) {
        q->first = ev->next;
        if (q->first == NULL)
            q->last = &q->first;
        q->n--;
        ev->next = NULL;
    }
    return ev;
}

/* ---- the order ------------------------------------------------------------------ */

static enum inject_type order_type(const struct injector_pool *p, const struct change_event *ev)
{
    bool dir = ev->flags & CHANGE_DIR;

    if (ev->flags & CHANGE_LOOK)
        return INJECT_LOOK;
    switch (ev->kind) {
    case CHANGE_CREATE:
        return dir ? INJECT_MKDIR : ev->size && !p->cfg.modify_only ? INJECT_CREATE_DATA : INJECT_CREATE;
    case CHANGE_MODIFY:
        return p->cfg.modify_only ? INJECT_TRUNCATE : INJECT_MODIFY;
    case CHANGE_DELETE:
        return dir ? INJECT_RMDIR : INJECT_UNLINK;
    case CHANGE_MOVE:
        return INJECT_RENAME;
    case CHANGE_ATTRIB:
        break;
    }
    return INJECT_ATTRIB;
}

static size_t put(char *buf, size_t at, const char *s, size_t len)
{
    if (len && at + len <= INJECT_ORDER_BYTES)
        memcpy(buf + at, s, len);
    return at + len;
}

/* The directory part of a path whose last component is name. */
static size_t dir_len(const char *path, const char *name)
{
    return name > path ? (size_t)(name - path) - 1 : 0;
}

/* Packs the order for ev; its length, or 0: too long. */
static size_t order_pack(const struct slot *s, const struct change_event *ev, char *buf)
{
    bool move = ev->kind == CHANGE_MOVE;
    const char *path = move ? ev->from_path : ev->path, *name = move ? ev->from_name : ev->name;
    struct stat st = {.st_mode = 0644};
    struct inject_order o = {.id = s->order_id,
                             .dev = s->pool->cfg.session->dev,
                             .size = ev->size,
                             .type = order_type(s->pool, ev),
                             .dir_len = (uint32_t)dir_len(path, name),
                             .name_len = (uint32_t)strlen(name)};
    size_t at = sizeof o;

    node_stat(s->pool->cfg.tree, ev->node, &st);
    o.mode = st.st_mode & 07777;
    if (move) {
        o.dir2_len = (uint32_t)dir_len(ev->path, ev->name);
        o.name2_len = (uint32_t)strlen(ev->name);
    }
    memcpy(buf, &o, sizeof o);
    at = put(buf, at, path, o.dir_len);
    at = put(buf, at, name, o.name_len);
    at = put(buf, at, ev->path, o.dir2_len);
    at = put(buf, at, ev->name, o.name2_len);
    return at <= INJECT_ORDER_BYTES ? at : 0;
}

static void slot_finish(struct slot *s, int err)
{
    struct change_event *ev = s->current;

    s->current = NULL;
    session_timer_clear(s->pool->cfg.session, &s->deadline);
    if (ev) {
        s->pool->stats.waiting--;
        if (err == 0)
            s->pool->stats.injected++;
        else
            s->pool->stats.failed++;
        s->pool->cfg.done(s->pool->cfg.ctx, ev, err);
    }
}

static void slot_request(struct slot *s)
{
    int stuck = 0;

    for (int i = 0; i < STUCK_MAX; i++)
        stuck += s->pool->stuck[i].pid != 0;
    if (s->pid || s->requested || !s->pool->running || stuck == STUCK_MAX)
        return;
    s->requested = spawner_request(&s->pool->spawner, (unsigned)(s - s->pool->slots)) == 0;
}

static void slot_next(struct slot *s)
{
    static char buf[INJECT_ORDER_BYTES]; /* the core thread's */

    while (s->pool->running && s->pid && s->current == NULL && s->queue.n > 0 &&
           inject_order_ready(s->queue.first)) {
        size_t len;

        s->current = queue_pop(&s->queue);
        s->starved = 0;
        s->order_id = ++s->pool->next_order;
        len = order_pack(s, s->current, buf);
        if (len && send(s->source.fd, buf, len, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)len)
            session_timer_set(s->pool->cfg.session, &s->deadline, INJECT_TIMEOUT_MS);
        else
            slot_finish(s, EMSGSIZE);
    }
}

/* The end of one injection may free another's way in any queue, and be the cause of this call. */
void injector_pool_advance(struct injector_pool *p)
{
    p->again = true;
    if (p->advancing)
        return;
    p->advancing = true;
    while (p->again) {
        p->again = false;
        for (int i = 0; i < INJECTORS; i++)
            slot_next(&p->slots[i]);
    }
    p->advancing = false;
}

/* ---- life and death of injectors --------------------------------------------------- */

/* Its pid stays an injector's until it is buried. */
static void slot_abandon(struct slot *s)
{
    struct injector_pool *p = s->pool;
    bool freed = s->current && inject_order_leave(s->current); /* nothing waits for what may take for ever */

    session_timer_clear(p->cfg.session, &s->deadline);
    session_unwatch(p->cfg.session, &s->source);
    if (s->source.fd >= 0)
        (void)close(s->source.fd); /* it ends when it reads that, if it can */
    s->source.fd = -1;
    spawner_kill(&p->spawner, s->pid);
    for (int i = 0; i < STUCK_MAX; i++)
        if (p->stuck[i].pid == 0) {
            p->stuck[i] = (struct stuck){s->pid, s->current};
            s->current = NULL;
            break;
        }
    p->stats.killed++;
    p->stats.alive--;
    s->pid = 0;
    if (s->current)
        slot_finish(s, ETIMEDOUT);
    slot_request(s);
    if (freed)
        injector_pool_advance(p);
}

/* It is not blocked in the kernel, but has not come to run: to kill it would lose what it was told to do. */
static bool is_runnable(pid_t pid)
{
    char path[64], line[256];
    const char *state;
    bool runnable = false;
    FILE *f;

    (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    f = fopen(path, "re");
    if (f && fgets(line, sizeof line, f) && (state = strrchr(line, ')')) && state[1] == ' ')
        runnable = state[2] == 'R';
    if (f)
        (void)fclose(f);
    return runnable;
}

static void deadline_fire(struct timer *t)
{
    struct slot *s = (struct slot *)((char *)t - offsetof(struct slot, deadline));

    if (s->pid && s->starved++ < INJECT_STARVED_MAX && is_runnable(s->pid))
        session_timer_set(s->pool->cfg.session, &s->deadline, INJECT_TIMEOUT_MS);
    else if (s->pid)
        slot_abandon(s);
}

static void slot_ready(struct source *src)
{
    struct slot *s = (struct slot *)((char *)src - offsetof(struct slot, source));
    struct inject_result r;
    ssize_t n = s->source.fd < 0 ? -1 : recv(s->source.fd, &r, sizeof r, MSG_DONTWAIT);

    if (n == sizeof r && s->current && r.id == s->order_id) {
        slot_finish(s, r.err);
        injector_pool_advance(s->pool);
    } else if (n == 0 || (n > 0 && n != sizeof r) ||
               (n < 0 && s->source.fd >= 0 && errno != EAGAIN && errno != EINTR))
        slot_abandon(s);
}

static void born(struct injector_pool *p, const struct spawner_event *e)
{
    struct slot *s = e->slot < INJECTORS ? &p->slots[e->slot] : NULL;

    if (s == NULL || s->pid || !p->running) {
        (void)close(e->fd); /* it ends */
        spawner_kill(&p->spawner, e->pid);
        return;
    }
    s->requested = false;
    s->pid = e->pid;
    s->source = (struct source){e->fd, slot_ready};
    p->stats.alive++;
    if (session_watch(p->cfg.session, &s->source) != 0)
        slot_abandon(s);
    injector_pool_advance(p);
}

static void dead(struct injector_pool *p, const struct spawner_event *e)
{
    struct slot *s = e->slot < INJECTORS ? &p->slots[e->slot] : NULL;

    if (s && s->pid == e->pid)
        slot_abandon(s);
    for (int i = 0; i < STUCK_MAX; i++)
        if (p->stuck[i].pid == e->pid) {
            struct change_event *ev = p->stuck[i].current;

            p->stuck[i] = (struct stuck){0};
            if (ev) {
                p->stats.waiting--;
                p->stats.failed++;
                p->cfg.done(p->cfg.ctx, ev, ETIMEDOUT);
            }
        }
    spawner_buried(&p->spawner, e->pid);
    if (s)
        slot_request(s);
}

static void spawner_ready(struct source *src)
{
    struct injector_pool *p =
        (struct injector_pool *)((char *)src - offsetof(struct injector_pool, spawner_source));

    for (;;) {
        struct spawner_event e;

        if (p->spawner.fd >= 0)
            src->fd = p->spawner.fd;
        e = spawner_next(
            &p->spawner); /* closes the descriptor when the spawner is lost; epoll forgets it then */
        if (e.type == SPAWNER_BORN)
            born(p, &e);
        else if (e.type == SPAWNER_DEAD)
            dead(p, &e);
        else
            return;
    }
}

/* ---- the pool ------------------------------------------------------------------------- */

int injector_pool_open(const struct injector_pool_config *cfg, struct injector_pool **ret_pool)
{
    struct injector_pool *p = calloc(1, sizeof *p);
    int rc;

    if (p == NULL)
        return -ENOMEM;
    p->cfg = *cfg;
    for (int i = 0; i < INJECTORS; i++) {
        p->slots[i] = (struct slot){.source = {-1, slot_ready}, .pool = p, .deadline.fire = deadline_fire};
        p->slots[i].queue.last = &p->slots[i].queue.first;
    }
    rc = spawner_start(&p->spawner, cfg->mountpoint);
    if (rc != 0) {
        free(p);
        return rc;
    }
    *ret_pool = p;
    return 0;
}

void injector_pool_set_tree(struct injector_pool *p, struct tree *t)
{
    p->cfg.tree = t;
}

void injector_pool_run(struct injector_pool *p)
{
    p->running = true;
    p->spawner_source = (struct source){p->spawner.fd, spawner_ready};
    if (p->spawner.fd < 0 || session_watch(p->cfg.session, &p->spawner_source) != 0)
        return; /* a mount without injected events is better than none; status shows it */
    spawner_guard(&p->spawner, minor(p->cfg.session->dev));
    for (int i = 0; i < INJECTORS; i++)
        slot_request(&p->slots[i]);
}

void injector_pool_stop(struct injector_pool *p)
{
    p->running = false;
    for (int i = 0; i < INJECTORS; i++) {
        struct slot *s = &p->slots[i];

        for (struct change_event *ev; (ev = queue_pop(&s->queue)) != NULL;) {
            p->stats.waiting--;
            p->stats.dropped++;
            p->cfg.done(p->cfg.ctx, ev, ECANCELED);
        }
        if (s->pid)
            slot_abandon(s);
    }
}

void injector_pool_close(struct injector_pool *p)
{
    if (p == NULL)
        return;
    injector_pool_stop(p);
    session_unwatch(p->cfg.session, &p->spawner_source);
    spawner_stop(&p->spawner, 1000);
    for (int i = 0; i < STUCK_MAX; i++)
        if (p->stuck[i].current)
            p->cfg.done(p->cfg.ctx, p->stuck[i].current, ECANCELED);
    free(p);
}

/* Under load, a new value replaces a waiting MODIFY of the same file: the watcher is told once, with the
 * newest size. */
static bool coalesce(struct slot *s, const struct change_event *ev)
{
    unsigned looked = 0;

    if (ev->kind != CHANGE_MODIFY || s->queue.n < INJECT_COALESCE)
        return false;
    for (struct change_event *w = s->queue.first; w && looked < INJECT_COALESCE; w = w->next, looked++)
        if (w->node == ev->node && w->kind == CHANGE_MODIFY) {
            w->size = ev->size;
            w->rev = ev->rev;
            return true;
        }
    return false;
}

void injector_pool_push(struct injector_pool *p, struct change_event *ev)
{
    struct slot *s = &p->slots[ev->dir_id % INJECTORS];

    if (!p->running || p->stats.waiting >= INJECT_QUEUE_MAX) {
        p->stats.dropped++;
        p->cfg.done(p->cfg.ctx, ev, ENOBUFS);
        return;
    }
    if (coalesce(s, ev)) {
        p->stats.coalesced++;
        p->cfg.done(p->cfg.ctx, ev, 0);
        return;
    }
    queue_push(&s->queue, ev);
    p->stats.waiting++;
    injector_pool_advance(p);
}

struct change_event *injector_pool_match(struct injector_pool *p, pid_t pid)
{
    for (int i = 0; i < INJECTORS; i++)
        if (p->slots[i].pid == pid && pid)
            return p->slots[i].current;
    for (int i = 0; i < STUCK_MAX; i++)
        if (p->stuck[i].pid == pid && pid)
            return p->stuck[i].current;
    return NULL;
}

bool injector_pool_pending(const struct injector_pool *p)
{
    return p->stats.waiting > 0;
}

void injector_pool_get_stats(const struct injector_pool *p, struct injector_stats *ret_stats)
{
    *ret_stats = p->stats;
}
