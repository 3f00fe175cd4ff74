/* SPDX-License-Identifier: Apache-2.0 */
/* lease_keep.c - one stream of keep-alives for all that is kept (see lease_keep.h).
 *
 * Each lease is told of every third of its time to live, which the answer to the last time said; without an
 * answer every second. A broken stream is opened anew when the next one is due.
 */
#include "lease_keep.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"
#include "rpc.pb-c.h"

struct keep {
    struct keep *next;
    struct node *node; /* ref'd */
    enum keep_mode mode;
    int64_t lease; /* last told of */
    int64_t due_ms;
};

/* A directory that gives a lease to new files. */
struct giver {
    struct giver *next;
    struct node *dir; /* ref'd */
    struct keep_default d;
};

struct keeper {
    struct fs *fs;
    struct keep *keeps;
    struct giver *givers;
    unsigned n, n_givers;
    struct client_stream stream;
    struct timer timer;
};

static const char *const names[] = {[KEEP_NONE] = "none", [KEEP_OPEN] = "open", [KEEP_MOUNT] = "mount"};

const char *keep_mode_name(enum keep_mode mode)
{
    return names[mode];
}

bool keep_mode_of(const char *text, size_t len, enum keep_mode *ret_mode)
{
    while (len && (text[len - 1] == '\n' || text[len - 1] == 0))
        len--;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strlen(names[i]) == len && memcmp(names[i], text, len) == 0) {
            *ret_mode = (enum keep_mode)i;
            return true;
        }
    return false;
}

static void keep_free(struct keeper *k, struct keep *e)
{
    node_unref(k->fs->tree, e->node);
    free(e);
    k->n--;
}

static void told(struct client_stream *s, ProtobufCMessage *msg)
{
    struct keeper *k = (struct keeper *)((char *)s - offsetof(struct keeper, stream));
    const Etcdserverpb__LeaseKeepAliveResponse *r = (const Etcdserverpb__LeaseKeepAliveResponse *)msg;

    /* 0: the lease is gone; the key goes with it, and the watch will tell. */
    for (struct keep *e = k->keeps; e; e = e->next)
        if (e->lease == r->id && r->ttl > 0)
            e->due_ms = client_now_ms() + r->ttl * 1000 / 3;
}

static void stream_closed(struct client_stream *s, enum err err, enum status code, const char *text)
{
    (void)s, (void)err, (void)code, (void)text; /* opened anew when the next keep-alive is due */
}

static void tell(struct keeper *k, struct keep *e)
{
    Etcdserverpb__LeaseKeepAliveRequest r = ETCDSERVERPB__LEASE_KEEP_ALIVE_REQUEST__INIT;

    r.id = e->lease = e->node->meta.lease;
    e->due_ms = client_now_ms() + KEEP_RETRY_MS;
    if (k->stream.op) {
        client_stream_send(k->fs->client, &k->stream, &r.base);
        return;
    }
    k->stream.message = told;
    k->stream.closed = stream_closed;
    client_stream_open(k->fs->client, &k->stream, CLIENT_LEASE_KEEPALIVE, &r.base, 0);
}

static bool is_wanted(const struct keep *e)
{
    const struct file_state *s = file_state_if(e->node);

    return e->node->present && e->node->meta.lease && (e->mode == KEEP_MOUNT || (s && s->handles));
}

static void look(struct keeper *k)
{
    int64_t now = client_now_ms();

    for (struct keep **p = &k->keeps, *e; (e = *p) != NULL;) {
        if (!e->node->present && !node_visible(e->node)) {
            *p = e->next;
            keep_free(k, e);
            continue;
        }
        if (is_wanted(e) && (now >= e->due_ms || e->lease != e->node->meta.lease))
            tell(k, e);
        p = &e->next;
    }
    if (k->keeps)
        session_timer_set(&k->fs->session, &k->timer, KEEP_LOOK_MS);
}

static void timer_fire(struct timer *t)
{
    look((struct keeper *)((char *)t - offsetof(struct keeper, timer)));
}

static struct keep *keep_find(const struct keeper *k, const struct node *n)
{
    struct keep *e = k->keeps;

    while (e && e->node != n)
        e = e->next;
    return e;
}

enum keep_mode keep_get(const struct keeper *k, const struct node *n)
{
    const struct keep *e = keep_find(k, n);

    return e ? e->mode : KEEP_NONE;
}

int keep_set(struct keeper *k, struct node *n, enum keep_mode mode)
{
    struct keep *e = keep_find(k, n), **p = &k->keeps;

    if (e && mode == KEEP_NONE) {
        while (*p != e)
            p = &(*p)->next;
        *p = e->next;
        keep_free(k, e);
        return 0;
    }
    if (e == NULL && mode != KEEP_NONE) {
        if (k->n == KEEPS_MAX)
            return ENOSPC;
        e = calloc(1, sizeof *e);
        if (e == NULL)
            return ENOMEM;
        e->node = node_ref(n);
        e->next = k->keeps;
        k->keeps = e;
        k->n++;
    }
    if (e)
        e->mode = mode;
    look(k);
    return 0;
}

void keep_move(struct keeper *k, struct node *from, struct node *to)
{
    enum keep_mode mode = keep_get(k, from);

    if (mode == KEEP_NONE)
        return;
    (void)keep_set(k, from, KEEP_NONE);
    (void)keep_set(k, to, mode); /* room was just made */
}

/* ---- directories ------------------------------------------------------------------------- */

static struct giver **giver_find(struct keeper *k, const struct node *dir)
{
    struct giver **p = &k->givers;

    while (*p && (*p)->dir != dir)
        p = &(*p)->next;
    return p;
}

static void giver_free(struct keeper *k, struct giver **p)
{
    struct giver *g = *p;

    *p = g->next;
    node_unref(k->fs->tree, g->dir);
    free(g);
    k->n_givers--;
}

/* Those whose directory is gone. */
static void givers_sweep(struct keeper *k)
{
    for (struct giver **p = &k->givers; *p;)
        if ((*p)->dir->present)
            p = &(*p)->next;
        else
            giver_free(k, p);
}

int keep_default_set(struct keeper *k, struct node *dir, struct keep_default d)
{
    struct giver **p, *g;

    givers_sweep(k);
    p = giver_find(k, dir);
    if (*p == NULL && (d.ttl || d.mode)) {
        if (k->n_givers == KEEPS_MAX)
            return ENOSPC;
        g = calloc(1, sizeof *g);
        if (g == NULL)
            return ENOMEM;
        g->dir = node_ref(dir);
        *p = g;
        k->n_givers++;
    }
    if (*p)
        (*p)->d = d;
    if (*p && d.ttl == 0 && d.mode == KEEP_NONE)
        giver_free(k, p);
    return 0;
}

struct keep_default keep_default_get(const struct keeper *k, const struct node *dir)
{
    const struct giver *g = k->givers;

    while (g && g->dir != dir)
        g = g->next;
    return g ? g->d : (struct keep_default){0};
}

void keep_new_file(struct keeper *k, const struct node *dir, struct txn *t)
{
    struct keep_default d = keep_default_get(k, dir);

    if (d.ttl)
        txn_new_lease(t, d.ttl, d.mode);
}

struct keeper *keeper_new(struct fs *fs)
{
    struct keeper *k = calloc(1, sizeof *k);

    if (k) {
        k->fs = fs;
        k->timer.fire = timer_fire;
    }
    return k;
}
