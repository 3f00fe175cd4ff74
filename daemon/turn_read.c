/* SPDX-License-Identifier: Apache-2.0 */
/* turn_read.c - linearizable reads: one round of the core's read index serves all that had arrived when it
 * began; whoever comes later joins the next one, for the round might miss a write acknowledged meanwhile.
 *
 *     read_box -> reads -> round -> (index) -> apply_wait -> done
 *
 * A round without an answer is begun anew, with a context of its own; the old one's answer is then ignored.
 *
 * A turn for each read would cost more than the read: while a round is under way what comes stays in read_box, and
 * wakes nobody. A reader who is alone begins its round on its own thread (token.h).
 *
 * Owner: the turn thread; what has its index is finished on the turn or the apply thread.
 */
#include <errno.h>
#include "err.h"
#include "limits.h"
#include "turn_impl.h"

#define ROUND_RETRY_MS 500

/* A round that has its index and waits for apply. */
struct round_wait {
    struct apply_wait wait;
    struct turn *t;
    struct read_list list;
};

static void list_push(struct read_list *l, struct read_wait *w)
{
    w->mail.next = NULL;
    if (l->tail)
        l->tail->mail.next = &w->mail;
    else
        l->head = w;
    l->tail = w;
}

static void answer(struct turn *t, struct read_wait *w, int err)
{
    w->err = err;
    atomic_fetch_sub_explicit(&t->read_waits, 1, memory_order_relaxed);
    w->done(w);
}

static void answer_list(struct turn *t, struct read_list *l, int err, uint64_t index)
{
    struct read_wait *w = l->head, *next;

    *l = (struct read_list){0};
    for (; w; w = next) {
        next = (struct read_wait *)w->mail.next;
        w->read_index = index;
        answer(t, w, err);
    }
}

static void round_applied(struct apply_wait *wait)
{
    struct round_wait *r = (struct round_wait *)wait;

    answer_list(r->t, &r->list, 0, wait->index);
    free(r);
}

bool turn_reads_free(const struct turn *t)
{
    return atomic_load_explicit(&t->reads_free, memory_order_acquire);
}

/* Whoever ends a round clears round_open and then looks into the box; we post and then look at round_open: one of the
 * two sees the other. */
static void wake_for_read(struct turn *t, bool first)
{
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&t->round_open, memory_order_relaxed))
        return;
    if (first && atomic_load_explicit(&t->reads_alone, memory_order_relaxed))
        turn_poke(t);
    else
        mailbox_nudge(&t->box);
}

int turn_read(struct turn *t, struct read_wait *w)
{
    uint32_t others;

    if (turn_reads_free(t))
        return 0;
    others = atomic_fetch_add_explicit(&t->read_waits, 1, memory_order_relaxed);
    w->err = others < LIMIT_READ_WAITS ? 0 : ERR_TOO_MANY_REQUESTS;
    mailbox_post_quietly(&t->read_box, &w->mail, &w->mail);
    wake_for_read(t, others == 0);
    if (atomic_load(&t->stopped)) {
        pthread_mutex_lock(&t->stop_mu);
        turn_reads_stop(t);
        pthread_mutex_unlock(&t->stop_mu);
    }
    return 1;
}

static void take(struct turn *t)
{
    struct read_wait *w = (struct read_wait *)mailbox_take(&t->read_box), *next;

    for (; w; w = next) {
        next = (struct read_wait *)w->mail.next;
        if (w->err)
            answer(t, w, w->err);
        else
            list_push(&t->reads, w);
    }
}

void turn_reads_add(struct turn *t, struct read_wait *w)
{
    atomic_fetch_add_explicit(&t->read_waits, 1, memory_order_relaxed);
    list_push(&t->reads, w);
}

/* False: the core has no leader to ask. */
static bool begin_round(struct turn *t)
{
    t->round_ms = t->now_ms;
    t->round_ctx = 0;
    return turn_raft(t, (struct raft_in){.type = RAFT_IN_READ}) == 0;
}

/* Open: posts wake nobody. Whoever closes it takes what has been posted, or nudges. */
static void set_open(struct turn *t, bool open)
{
    atomic_store_explicit(&t->round_open, open, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
}

/* Not by an answer that has come: the next one looks for what was posted meanwhile. */
static void round_over(struct turn *t)
{
    t->round = (struct read_list){0};
    set_open(t, false);
    mailbox_nudge(&t->box);
}

void turn_reads_step(struct turn *t)
{
    if (t->round.head) {
        if (t->now_ms >= t->round_ms + ROUND_RETRY_MS)
            (void)begin_round(t); /* refused: the readers' deadline decides */
        if (t->round.head)
            return;
    }
    set_open(t, false);
    take(t);
    if (turn_reads_free(t))
        answer_list(t, &t->reads, 0, t->commit_told); /* they came before we led */
    if (t->reads.head == NULL)
        return;
    t->round = t->reads;
    t->reads = (struct read_list){0};
    atomic_store_explicit(&t->reads_alone, t->round.head == t->round.tail, memory_order_relaxed);
    set_open(t, true);
    if (!begin_round(t)) {
        t->reads = t->round; /* nobody joined meanwhile: this is the one thread that takes them */
        t->round = (struct read_list){0};
        set_open(t, false);
        take(t);
    } else if (t->round.head == NULL) { /* nobody had to be asked */
        round_over(t);
    }
}

void turn_reads_done(struct turn *t, const struct raft_read *done, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct round_wait *r;

        if (t->round.head == NULL || done[i].ctx != t->round_ctx)
            continue;
        r = malloc(sizeof *r);
        if (r == NULL) {
            answer_list(t, &t->round, -ENOMEM, 0);
            continue;
        }
        *r = (struct round_wait){.t = t, .list = t->round, .wait = {.index = done[i].index, .done = round_applied}};
        t->round = (struct read_list){0};
        if (apply_wait(t->o.apply, &r->wait) == 0)
            round_applied(&r->wait);
    }
}

/* The leader has changed: the next one is asked, in a round that those join who came meanwhile. */
void turn_reads_lost(struct turn *t)
{
    if (t->round.head == NULL)
        return;
    t->round.tail->mail.next = t->reads.head ? &t->reads.head->mail : NULL;
    if (t->reads.tail == NULL)
        t->reads.tail = t->round.tail;
    t->reads.head = t->round.head;
    round_over(t);
}

static void expire_list(struct turn *t, struct read_list *l)
{
    struct read_wait *w = l->head, *next;

    *l = (struct read_list){0};
    for (; w; w = next) {
        next = (struct read_wait *)w->mail.next;
        if (w->deadline_ms <= t->now_ms)
            answer(t, w, ERR_TIMEOUT);
        else
            list_push(l, w);
    }
}

void turn_reads_expire(struct turn *t)
{
    bool open = t->round.head != NULL;

    take(t);
    expire_list(t, &t->reads);
    expire_list(t, &t->round);
    if (open && t->round.head == NULL)
        round_over(t);
}

void turn_reads_stop(struct turn *t)
{
    take(t);
    answer_list(t, &t->reads, ERR_STOPPED, 0);
    answer_list(t, &t->round, ERR_STOPPED, 0);
}
