/* SPDX-License-Identifier: Apache-2.0 */
/* scan.c - threads that do long reads, first come, first served.
 *
 * One queue under a mutex: a mailbox has one taker, here whoever is idle takes the next job, so that a long one
 * delays nobody while another thread is free.
 *
 * Owner: the pool's fields are protected by pool->mu; a job belongs to the pool from post until run is called.
 */
#include <errno.h>
#include <pthread.h>
#include "err.h"
#include "limits.h"
#include "scan.h"
#include "seam.h"

enum { SCAN_THREADS_MAX = 16 };

struct scan_thread {
    struct scan_pool *pool;
    struct slot *slot;
    pthread_t thread;
};

struct scan_pool {
    struct store *store;
    pthread_mutex_t mu;
    pthread_cond_t more;       /* a job was posted, or stopping was set */
    struct mail *first, *last; /* protected by mu; the oldest first */
    unsigned n_waiting;        /* protected by mu */
    bool stopping;             /* protected by mu */
    unsigned n_threads;        /* started */
    struct scan_thread threads[SCAN_THREADS_MAX];
};

static struct scan_job *take(struct scan_pool *p)
{
    struct mail *m;

    pthread_mutex_lock(&p->mu);
    while (p->first == NULL && !p->stopping)
        pthread_cond_wait(&p->more, &p->mu);
    m = p->first;
    if (m) {
        p->first = m->next;
        if (p->first == NULL)
            p->last = NULL;
        p->n_waiting--;
    }
    pthread_mutex_unlock(&p->mu);
    return m ? (struct scan_job *)((uint8_t *)m - offsetof(struct scan_job, mail)) : NULL;
}

static void *work(void *arg)
{
    struct scan_thread *t = arg;
    struct scan_job *j;

    while ((j = take(t->pool)) != NULL)
        j->run(j, t->slot);
    return NULL;
}

int scan_pool_new(struct store *s, unsigned threads, struct scan_pool **ret_pool)
{
    struct scan_pool *p = calloc(1, sizeof *p);
    int rc = 0;

    assert(threads > 0);
    if (p == NULL)
        return -ENOMEM;
    p->store = s;
    pthread_mutex_init(&p->mu, NULL);
    pthread_cond_init(&p->more, NULL);
    for (unsigned i = 0; i < threads && i < SCAN_THREADS_MAX && rc == 0; i++) {
        struct scan_thread *t = &p->threads[i];

        t->pool = p;
        t->slot = slot_new(s);
        rc = t->slot ? thread_start(&t->thread, "scan", work, t) : -ENOMEM;
        if (rc)
            slot_free(s, t->slot);
        else
            p->n_threads++;
    }
    if (rc) {
        scan_pool_stop(p);
        scan_pool_free(p);
        return rc;
    }
    *ret_pool = p;
    return 0;
}

int scan_pool_post(struct scan_pool *p, struct scan_job *j)
{
    int rc = 0;

    j->mail.next = NULL;
    pthread_mutex_lock(&p->mu);
    if (p->stopping) {
        rc = ERR_STOPPED;
    } else if (p->n_waiting >= LIMIT_SCAN_QUEUE) {
        rc = ERR_TOO_MANY_REQUESTS;
    } else {
        if (p->last)
            p->last->next = &j->mail;
        else
            p->first = &j->mail;
        p->last = &j->mail;
        p->n_waiting++;
        pthread_cond_signal(&p->more);
    }
    pthread_mutex_unlock(&p->mu);
    return rc;
}

void scan_pool_stop(struct scan_pool *p)
{
    pthread_mutex_lock(&p->mu);
    p->stopping = true;
    pthread_cond_broadcast(&p->more);
    pthread_mutex_unlock(&p->mu);
    for (; p->n_threads > 0; p->n_threads--) {
        struct scan_thread *t = &p->threads[p->n_threads - 1];

        pthread_join(t->thread, NULL);
        slot_free(p->store, t->slot);
    }
}

void scan_pool_free(struct scan_pool *p)
{
    if (p == NULL)
        return;
    assert(p->n_threads == 0);
    pthread_mutex_destroy(&p->mu);
    pthread_cond_destroy(&p->more);
    free(p);
}
