/* SPDX-License-Identifier: Apache-2.0 */
/* compactor.c - samples of the revision over time, and now and then a compaction to the oldest.
 *
 * Periodic: with a retention of P, the first compaction is due after P, each further one P (at most an hour) after the
 * last; a tenth of that apart the revision is noted, P / tenth + 1 notes are kept, and the oldest before this moment's
 * own is what is compacted to. Revision mode: every five minutes, to the newest minus the retention. Neither proposes
 * the same revision twice: with nothing new to give up, the next look is a tenth later.
 *
 * Owner: the compactor's thread.
 * Source: etcd v3.7.1 server/etcdserver/api/v3compactor/{periodic,revision}.go for the intervals.
 */
#include "compactor.h"
#include <errno.h>
#include "log.h"
#include "mailbox.h"
#include "rpc.pb-c.h"

#define HOUR_MS UINT64_C(3600000)
#define REVISION_EVERY_MS UINT64_C(300000)
#define SAMPLES_MAX 100000 /* of ten an hour: more than a year */

struct compactor {
    struct compactor_options o;
    struct mailbox box;        /* nudged to stop */
    _Atomic bool stopping;
    pthread_t thread;
    bool started;
    uint64_t every_ms;         /* between two samples, or two compactions in revision mode */
    uint64_t due_every_ms;     /* between two compactions */
    uint64_t next_ms, due_ms;
    int64_t *samples;          /* oldest first, a ring */
    size_t first, n, room;
    int64_t proposed;          /* the newest revision proposed */
};

int compactor_new(const struct compactor_options *o, struct compactor **ret_compactor)
{
    struct compactor *c = calloc(1, sizeof *c);
    uint64_t now_ms = o->clock->now_ms(o->clock);

    if (c == NULL)
        return -ENOMEM;
    c->o = *o;
    mailbox_init(&c->box, -1);
    if (o->mode == COMPACTOR_PERIODIC) {
        c->due_every_ms = o->retention_ms < HOUR_MS ? o->retention_ms : HOUR_MS;
        c->every_ms = c->due_every_ms / 10 ? c->due_every_ms / 10 : 1;
        c->room = (size_t)(o->retention_ms / c->every_ms) + 1;
        if (c->room > SAMPLES_MAX)
            c->room = SAMPLES_MAX;
        c->samples = malloc(c->room * sizeof *c->samples);
        if (c->samples == NULL) {
            free(c);
            return -ENOMEM;
        }
    } else {
        c->every_ms = c->due_every_ms = REVISION_EVERY_MS;
    }
    c->next_ms = now_ms + (o->mode == COMPACTOR_PERIODIC ? 0 : c->every_ms);
    c->due_ms = now_ms + (o->mode == COMPACTOR_PERIODIC ? o->retention_ms : c->every_ms);
    *ret_compactor = c;
    return 0;
}

static void sample(struct compactor *c)
{
    if (c->n == c->room) {
        c->first = (c->first + 1) % c->room;
        c->n--;
    }
    c->samples[(c->first + c->n++) % c->room] = store_revision(c->o.store);
}

/* 0: proposed, or somebody else has compacted already; anything else: not now. */
static int propose(struct compactor *c, int64_t revision)
{
    Etcdserverpb__CompactionRequest req = ETCDSERVERPB__COMPACTION_REQUEST__INIT;
    uint8_t packed[32];
    int err;

    if (revision <= 0 || revision == c->proposed)
        return -EAGAIN;
    c->proposed = revision;
    if (revision <= store_compact_revision(c->o.store))
        return 0;
    req.revision = revision;
    assert(etcdserverpb__compaction_request__get_packed_size(&req) <= sizeof packed);
    err = apply_propose(c->o.apply, ENTRY_COMPACT,
                        slice_of(packed, etcdserverpb__compaction_request__pack(&req, packed)));
    if (err) {
        c->proposed = 0;
        return err;
    }
    log_info("compactor: compacting", LOG_INT("revision", revision));
    return 0;
}

uint64_t compactor_step(struct compactor *c)
{
    uint64_t now_ms = c->o.clock->now_ms(c->o.clock);
    int64_t revision;

    if (now_ms < c->next_ms)
        return c->next_ms;
    c->next_ms = now_ms + c->every_ms;
    if (c->o.mode == COMPACTOR_REVISION)
        revision = store_revision(c->o.store) - c->o.retention_revisions;
    else
        revision = c->n ? c->samples[c->first] : 0;
    if (now_ms >= c->due_ms && c->o.leads(c->o.leads_ctx) && propose(c, revision) == 0)
        c->due_ms = now_ms + c->due_every_ms;
    if (c->o.mode == COMPACTOR_PERIODIC)
        sample(c);
    return c->next_ms;
}

static void *compactor_main(void *arg)
{
    struct compactor *c = arg;

    while (!atomic_load(&c->stopping))
        mailbox_wait(&c->box, compactor_step(c));
    return NULL;
}

int compactor_start(struct compactor *c)
{
    int err = thread_start(&c->thread, "compactor", compactor_main, c);

    c->started = err == 0;
    return err;
}

void compactor_stop(struct compactor *c)
{
    if (c == NULL || !c->started)
        return;
    atomic_store(&c->stopping, true);
    mailbox_nudge(&c->box);
    pthread_join(c->thread, NULL);
    c->started = false;
}

void compactor_free(struct compactor *c)
{
    if (c == NULL)
        return;
    free(c->samples);
    free(c);
}

bool compactor_turn_leads(void *turn)
{
    struct turn_status st;

    turn_status(turn, &st);
    return st.is_leader;
}
