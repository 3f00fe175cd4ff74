/* SPDX-License-Identifier: Apache-2.0 */
/* handle_gate.c - what a change waits for before it is sent (see handle_txn.h): a confirmed quorum, at most for the
 * grace of A.12, which runs once from the loss and not for each caller; and, where it adds bytes, that there is room.
 */
#include <errno.h>
#include <string.h>

#include "handle_txn.h"
#include "ops.h"
#include "rpc.pb-c.h"

static void gate_part(struct gate *g)
{
    if (--g->waiting == 0)
        g->done(g, g->err ? g->err : g->fs->nospace && g->status.done ? ENOSPC : 0);
}

static void gate_quorum(struct client_call *call)
{
    struct gate *g = (struct gate *)((char *)call - offsetof(struct gate, quorum));

    if (call->outcome != CLIENT_OK) {
        int err = client_errno(call, CLIENT_USE_WRITE);

        g->err = call->outcome == CLIENT_REFUSED && err == EACCES
                     ? 0
                     : EROFS; /* a refused read is an answer, too */
    }
    gate_part(g);
}

void fs_take_status(struct fs *fs, const struct client_call *call)
{
    const Etcdserverpb__StatusResponse *r = (const void *)call->reply;

    if (call->outcome != CLIENT_OK)
        return;
    fs->nospace = false;
    for (size_t i = 0; i < r->n_errors; i++)
        fs->nospace |= strstr(r->errors[i], "NOSPACE") != NULL;
    fs->db_quota = r->dbsizequota;
    fs->db_size = r->dbsize;
    fs->db_in_use = r->dbsizeinuse;
    fs->status_ms = client_now_ms();
}

static void gate_status(struct client_call *call)
{
    struct gate *g = (struct gate *)((char *)call - offsetof(struct gate, status));

    fs_take_status(g->fs, call);
    gate_part(g);
}

void gate_pass(struct gate *g, bool space)
{
    Etcdserverpb__StatusRequest status = ETCDSERVERPB__STATUS_REQUEST__INIT;
    int64_t now = client_now_ms(), timeout = g->fs->opt.grace_ms;
    struct client_health h;

    g->waiting = 1;
    g->err = 0;
    client_get_health(g->fs->client, &h);
    if (h.in_doubt && h.lost_ms) { /* grace runs once, from the loss */
        timeout = h.lost_ms + g->fs->opt.grace_ms - now;
        if (timeout < CLIENT_QUORUM_FRESH_MS)
            timeout = CLIENT_QUORUM_FRESH_MS;
    }
    if (space && now > g->fs->status_ms + STATUS_FRESH_MS) {
        g->waiting++;
        g->status = (struct client_call){.done = gate_status};
        client_start(g->fs->client, &g->status, CLIENT_STATUS, &status.base, timeout);
    } else if (space)
        g->status.done = gate_status; /* what the last answer said counts */
    if (h.in_doubt || !h.connected || !client_quorum_fresh(g->fs->client)) {
        g->waiting++;
        g->quorum = (struct client_call){.done = gate_quorum};
        client_confirm(g->fs->client, &g->quorum, timeout);
    }
    gate_part(g);
}
