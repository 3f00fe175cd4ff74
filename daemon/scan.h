/* SPDX-License-Identifier: Apache-2.0 */
/* scan.h - a small pool of threads for reads too long for an rpc thread, so that one large range never delays
 * keep-alives.
 *
 * A job runs whole, in views of its own, on a thread with a slot; its threads never wait inside a view.
 * Bound: LIMIT_SCAN_QUEUE jobs waiting.
 */
#pragma once
#include "mailbox.h"
#include "store.h"

struct scan_pool;
struct scan_job {
    struct mail mail;
    void (*run)(struct scan_job *j, struct slot *sl); /* on a pool thread; ends by call_resume or its like */
};
int scan_pool_new(struct store *s, unsigned threads, struct scan_pool **ret_pool);
int scan_pool_post(struct scan_pool *p,
                   struct scan_job *j);   /* any thread; ERR_TOO_MANY_REQUESTS, ERR_STOPPED */
void scan_pool_stop(struct scan_pool *p); /* runs what waits, joins */
void scan_pool_free(struct scan_pool *p);
