/* SPDX-License-Identifier: Apache-2.0 */
/* bootstrap.h - from a configuration to an open store and log: made when new, checked when not.
 *
 * Order at a fresh start: base-1 made and synced, wal-1 made and synced, CURRENT renamed into place; a crash before that
 * rename leaves nothing that counts. At a restart the parts must fit each other (the log's range holds base's applied
 * index; cluster and member ids agree), else the member refuses and says why.
 * Owner: the main thread.
 */
#pragma once
#include "base.h"
#include "config.h"
#include "datadir.h"
#include "raft.h"
#include "wal.h"

struct bootstrap {
    struct datadir dir;
    struct disk *disk;         /* the log's */
    struct base *base;
    struct wal *wal;
    struct wal_state wal_state;
    struct raft_conf conf;     /* as of applied_index */
    uint64_t cluster_id, member_id, applied_index;
    char error[DATADIR_ERROR_BYTES];
};

/* What the flags say of the cluster, without touching a disk. NULL, or what is wrong. */
const char *bootstrap_check(struct config *c, uint64_t *ret_cluster_id, uint64_t *ret_member_id);

/* How a base of this member is opened; the path is the caller's. */
struct base_options bootstrap_base_options(void);

/* 0, or -1 with b->error and nothing left open. */
int bootstrap_open(struct bootstrap *b, struct config *c);
/* Closes what is still set (base goes to the store: set it to NULL then). */
void bootstrap_close(struct bootstrap *b);
