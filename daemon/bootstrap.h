/* SPDX-License-Identifier: Apache-2.0 */
/* bootstrap.h - from a configuration to an open store and log: made when new, checked when not.
 *
 * Order at a fresh start: base-1 made and synced, wal-1 made and synced, CURRENT renamed into place; a crash before
 * that rename leaves nothing that counts. At a restart the parts must fit each other (the log's range holds base's
 * applied index; cluster and member ids agree), else the member refuses and says why.
 *
 * A founding member starts as if the configuration of all founders had been entry 1, applied and gone from the log: so
 * a log never begins before it, and who joins later is given a snapshot. A joiner starts with nothing at index 0, in no
 * configuration.
 *
 * Owner: the main thread.
 */
#pragma once
#include "base.h"
#include "config.h"
#include "datadir.h"
#include "raft.h"
#include "roster.h"
#include "wal.h"

/* What a running cluster says of itself. */
struct bootstrap_cluster {
    uint64_t id;
    struct roster_known *members;
    bool *started;             /* of each: it has told its client URLs */
    size_t n;
};

struct bootstrap {
    struct datadir dir;
    struct disk *disk;         /* the log's */
    struct base *base;
    struct wal *wal;
    struct wal_state wal_state;
    struct raft_conf conf;     /* as of applied_index */
    uint64_t cluster_id, member_id, applied_index;
    uint64_t applied_term;     /* of applied_index */
    uint64_t fence_term;       /* not 0: this member is faulty, see raft_params */
    unsigned suspicions;       /* crashes inside LMDB before this start; the store was read whole since, and is sound */
    bool store_damaged, log_damaged; /* why opening failed */
    bool store_sound;          /* it was read whole, and may be used if the others cannot give it anew */
    bool joining;              /* it has nothing yet, and is to be told everything by the others */
    struct bootstrap_cluster running; /* joining: who they are; in the configuration's arena */
    char error[DATADIR_ERROR_BYTES];
    char said[DATADIR_ERROR_BYTES / 2]; /* the last answer that was none */
    /* The rest is set by the caller. ask: asks the other members of the roster, one after the other, until one answers;
     * what it tells lies in the arena. NULL, or why there is no answer. NULL: nobody can be asked. */
    const char *(*ask)(void *ctx, struct arena *a, const struct roster *r, struct bootstrap_cluster *ret_cluster);
    /* The data directory is open, nothing in it is in use yet: from here on a crash inside LMDB can be written down.
     * NULL: it is not. */
    void (*guard)(void *ctx);
    /* Waits a while; false: this process is to end. NULL: nobody is waited for. */
    bool (*wait)(void *ctx);
    void *ask_ctx;             /* of all */
    uint64_t segment_bytes;    /* of the log; 0: LIMIT_WAL_SEGMENT_BYTES */
    struct rng *rng;           /* the log's; NULL: its own */
};

/* What the flags of a member without data say of the cluster. NULL, or what is wrong. Touches no disk; of a directory
 * that has data already the flags are not asked. */
const char *bootstrap_check(struct config *c);

/* How a base of this member is opened; the path is the caller's. */
struct base_options bootstrap_base_options(void);

/* 0, or -1 with b->error and nothing left open. b: what is said to be set by the caller is, the rest is zero. */
int bootstrap_open(struct bootstrap *b, struct config *c);
/* Closes what is still set (base goes to the store: set it to NULL then). */
void bootstrap_close(struct bootstrap *b);

/* bootstrap_force.c: --force-new-cluster. Entries that remove every other member are appended to the log, committed. 0,
 * or -1 with b->error. */
int bootstrap_force(struct bootstrap *b, const char *wal_dir);
/* bootstrap_ask.c: of a member that has its ids and not its cluster's members. Who they are goes to b->running. wait:
 * until one of them answers, as long as b->wait says. 0; -ENOENT: there is nobody to ask; -EHOSTUNREACH: nobody of this
 * cluster answers; -ESRCH: b->running is what they say, but this member is not among them. *ret_why: a sentence then. */
int bootstrap_ask_others(struct bootstrap *b, struct config *c, bool wait, const char **ret_why);
/* bootstrap_rebuild.c: b->log_damaged, or b->store_damaged, and b->error says how. 0: CURRENT names parts that can be
 * opened; -1: it cannot be done, b->error stands. */
int bootstrap_rebuild_log(struct bootstrap *b);
int bootstrap_rebuild_store(struct bootstrap *b, struct config *c);
/* How the log in dir is opened or made. */
struct wal_options bootstrap_wal_options(const struct bootstrap *b, const char *dir);
/* (Re)opens b->wal and reads b->wal_state; 0, or -1 with b->error. */
int bootstrap_open_wal(struct bootstrap *b, const char *wal_dir);
int bootstrap_fail(struct bootstrap *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
