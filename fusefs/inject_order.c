/* SPDX-License-Identifier: Apache-2.0 */
/* inject_order.c - which injection waits for which (see inject_order.h).
 *
 * The directories above a node never change, and a change holds its own: so the same directories are counted
 * up and down. A directory with several removals under way (deleted, made again, deleted) keeps them all;
 * each counts what was told before it.
 */
#include "inject_order.h"

static uint64_t last_turn; /* the core thread's */

static bool is_removal(const struct change_event *ev)
{
    return ev->kind == CHANGE_DELETE && ev->flags & CHANGE_DIR && ev->node->dir;
}

static void count_up(struct node *dir)
{
    for (; dir; dir = dir->parent)
        dir->dir->n_injections++;
}

static bool count_down(struct node *dir, uint64_t turn)
{
    bool freed = false;

    for (; dir; dir = dir->parent) {
        dir->dir->n_injections--;
        for (struct change_event *r = dir->dir->removals; r; r = r->removal_next)
            if (r->turn > turn && --r->below == 0)
                freed = true;
    }
    return freed;
}

void inject_order_enter(struct change_event *ev)
{
    ev->turn = ++last_turn;
    if (is_removal(ev)) {
        ev->below = ev->node->dir->n_injections;
        ev->removal_next = ev->node->dir->removals;
        ev->node->dir->removals = ev;
    }
    count_up(ev->dir);
    count_up(ev->from_dir);
}

bool inject_order_leave(struct change_event *ev)
{
    uint64_t turn = ev->turn;
    bool freed;

    if (turn == 0)
        return false;
    ev->turn = 0;
    ev->below = 0;
    if (is_removal(ev)) {
        struct change_event **p = &ev->node->dir->removals;

        while (*p != ev)
            p = &(*p)->removal_next;
        *p = ev->removal_next;
    }
    freed = count_down(ev->dir, turn);
    return count_down(ev->from_dir, turn) || freed;
}
