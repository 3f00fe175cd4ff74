/* SPDX-License-Identifier: Apache-2.0 */
/* ops_wait.c - what an op waits for before it begins (see ops.h).
 *
 *     op_after_release()     the commits of handles that have been closed: who looks at the file sees them
 *     op_read_for_change()   a value that a quorum confirms
 *     op_after_move()        the end of a directory's rename, for what lies in it
 *
 * Each may go on at once. The op may be interrupted meanwhile, and what it is about may be renamed: op_is_over() tells.
 *
 * Owner: the core thread.
 */
#include "ops.h"

#include <errno.h>
#include <stdlib.h>

#include "handle.h"

/* ---- until what was closed is committed ----------------------------------------------------------- */

/* A commit of a handle that its closer did not wait for: an op that looks at the file waits for it. */
struct settle {
    struct commit_wait wait;
    struct op *op;
    void (*resume)(struct op *op);
};

static void settled(struct commit_wait *w, int err)
{
    struct settle *s = (struct settle *)((char *)w - offsetof(struct settle, wait));
    struct op *op = s->op;
    void (*resume)(struct op * op) = s->resume;

    (void)err; /* its own user was told, or .etcd/errors */
    free(s);
    resume(op);
}

void op_after_release(struct op *op, struct node *n, void (*resume)(struct op *op))
{
    struct settle *s = calloc(1, sizeof *s);

    if (s) {
        *s = (struct settle){.wait.done = settled, .op = op, .resume = resume};
        if (handle_wait_released(n, &s->wait))
            return;
    }
    free(s);
    resume(op);
}

/* ---- reading what is to be changed ---------------------------------------------------------------- */

static void change_read(struct wait *w, int err);

static void change_read_start(struct op *op)
{
    op->wait = (struct wait){.done = change_read};
    tree_open_read(op->fs->tree, op->node, &op->wait);
}

static void change_read_again(struct gate *g, int err)
{
    struct op *op = (struct op *)((char *)g - offsetof(struct op, gate));

    if (err)
        op->read_done(&op->wait, err);
    else
        change_read_start(op);
}

static void change_read(struct wait *w, int err)
{
    struct op *op = (struct op *)((char *)w - offsetof(struct op, wait));

    if ((err ? err != ETIMEDOUT : !w->stale) || client_now_ms() >= op->read_until_ms) {
        if (err == 0 && w->stale) {
            value_unref(w->value);
            err = EROFS;
        }
        op->read_done(w, err);
        return;
    }
    if (err == 0)
        value_unref(w->value);
    op->gate = (struct gate){.fs = op->fs, .done = change_read_again};
    gate_pass(&op->gate, false);
}

void op_read_for_change(struct op *op, void (*done)(struct wait *w, int err))
{
    op->read_done = done;
    op->read_until_ms = client_now_ms() + op->fs->opt.timeout_ms;
    change_read_start(op);
}

/* ---- while a directory is renamed ----------------------------------------------------------------- */

bool fs_is_moving(const struct fs *fs, const struct node *n)
{
    return fs->moving && n && node_is_below(n, fs->moving);
}

int op_is_over(const struct op *op)
{
    const struct node *dir = op->node->dir ? op->node : op->node->parent;

    return op->req == NULL                                 ? EINTR
           : dir && dir->dir->moved                        ? ESTALE
           : op->node2 && op->node2->dir && op->node2->dir->moved ? ESTALE
                                                           : 0;
}

static void after_move(struct timer *timer)
{
    struct op *op = (struct op *)((char *)timer - offsetof(struct op, timer));

    if (!fs_is_moving(op->fs, op->node) && !fs_is_moving(op->fs, op->node2)) {
        op->next(op);
        return;
    }
    op->timer.fire = after_move;
    session_timer_set(&op->fs->session, &op->timer, RENAME_LOOK_MS);
}

void op_after_move(struct op *op, void (*resume)(struct op *op))
{
    op->next = resume;
    after_move(&op->timer);
}
