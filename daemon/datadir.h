/* SPDX-License-Identifier: Apache-2.0 */
/* datadir.h - the data directory: who may use it, and which base and log in it are current.
 *
 *     DIR/CURRENT     names base and log; renaming it is the commit point of a switch
 *     DIR/base-N/     the store (base.c)
 *     DIR/wal-M/      the log (wal.c), or in --wal-dir
 *     DIR/FOUNDED     the cluster token of a founding member: a restart with another one is a mistake; damaged, it
 *                     says nothing
 *     DIR/PEERS       who the members are, to be asked when nothing else says it (datadir_peers.h)
 *     DIR/FAULTY      this member's fence, while it is being rebuilt from the others
 *     DIR/SUSPECT     a byte for each crash inside LMDB; the store is read whole before it is used again (member_suspect.c)
 *     DIR/incoming/   a base being received from another member; nothing until it is renamed to base-N
 *
 * Owner: the main thread at start. Then the flush thread (a copy of base) and the WAL thread (a snapshot) switch, each
 * under mu: both rename CURRENT, and neither may write down what the other has replaced.
 */
#pragma once
#include <pthread.h>
#include "bytes.h"

enum { DATADIR_PATH_BYTES = 4096, DATADIR_ERROR_BYTES = 1024 };

struct datadir {
    char path[DATADIR_PATH_BYTES];     /* absolute */
    char wal_root[DATADIR_PATH_BYTES]; /* where wal-M lies: path, or --wal-dir, absolute */
    int fd, wal_fd;                    /* both flock'ed; wal_fd is -1 when wal_root is path */
    bool fresh;                        /* no CURRENT yet: base-1 and wal-1 are to be made, then datadir_commit */
    unsigned base, wal;                /* N and M; under mu */
    unsigned base_next, wal_next;      /* numbers nobody has used yet; under mu */
    unsigned base_found, wal_found;    /* the same as of the start: whatever else lies below, a crash has left */
    pthread_mutex_t mu;
    bool lost;                         /* after a failure of datadir_open: CURRENT is damaged, or not there any more */
    char error[DATADIR_ERROR_BYTES];   /* one sentence, after a failure */
};

/* Makes and locks the directory, reads CURRENT. Writes nothing but what a fresh directory needs (CREATING). 0, or -1
 * with d->error: locked by another process, foreign, unreadable, open to others, on a file system that cannot hold
 * it. */
int datadir_open(struct datadir *d, const char *path, const char *wal_path);
/* The same of a directory whose CURRENT is lost: nothing in it is known to be current, base and wal are the highest
 * numbers there are. For a member that is rebuilt from the others, or for nobody. */
int datadir_open_lost(struct datadir *d, const char *path, const char *wal_path);
/* CURRENT now names d->base and d->wal; durable when it returns 0. -errno. */
int datadir_commit(struct datadir *d);
/* A small file of the directory, whole: written to NAME.new, synced, renamed, the directory synced. -errno. */
int datadir_replace(const struct datadir *d, const char *name, const char *text, size_t n);
unsigned datadir_base(struct datadir *d); /* the current one's number */
/* A number for a base or a log to be made, given out once. */
unsigned datadir_new_base(struct datadir *d);
unsigned datadir_new_wal(struct datadir *d);
/* Another base in place of base `from`; -ESTALE: that one is no longer current, nothing was changed. The old one's
 * directory is removed afterwards by datadir_remove_others. */
int datadir_switch(struct datadir *d, unsigned from, unsigned base);
/* Another base and another log, at once. */
int datadir_switch_both(struct datadir *d, unsigned base, unsigned wal);
/* DIR/incoming, empty; whatever was in it goes. */
int datadir_make_incoming(struct datadir *d, char *ret_path);
int datadir_remove_incoming(struct datadir *d); /* -ENOENT */
/* It becomes base-N, durably, and nothing more: CURRENT names another still. */
int datadir_adopt_incoming(struct datadir *d, unsigned base);
int datadir_give_back(struct datadir *d, unsigned base); /* the other way round */
/* Removes base-N with its files. -errno. */
int datadir_remove_base(struct datadir *d, unsigned base);
/* Removes every base and log that is not current nor being made: what a crash has left, or a switch. None while this
 * member is marked faulty. -errno. */
int datadir_remove_others(struct datadir *d);
/* Makes base-N; path of it in ret_path (DATADIR_PATH_BYTES). -errno. */
int datadir_make_base(struct datadir *d, unsigned base, char *ret_path);
void datadir_base_path(const struct datadir *d, unsigned base, char *ret_path);
/* Before the first commit: the token with which this member founds a cluster. -errno. */
int datadir_note_token(struct datadir *d, const char *token);
/* One was noted, and it is another: then it is in ret_noted, cut to size. */
bool datadir_token_differs(const struct datadir *d, const char *token, char *ret_noted, size_t size);
/* ---- DIR/FAULTY: this member may have lost what it promised (bootstrap_rebuild.c) ---- */
/* Durable when it returns 0. store_damaged: base is not to be used at the next start. Any thread. */
int datadir_mark(struct datadir *d, uint64_t fence_term, bool store_damaged);
/* 0: there is none, both are zero; 1: read; -1 with d->error: it cannot be read, so nothing here can be relied on. */
int datadir_read_mark(struct datadir *d, uint64_t *ret_fence_term, bool *ret_store_damaged);
int datadir_unmark(struct datadir *d);
/* ---- DIR/SUSPECT: this process crashed while it used the store ---- */
/* One crash more; durable when it returns 0. Async-signal-safe. */
int datadir_suspect(struct datadir *d);
unsigned datadir_suspicions(struct datadir *d); /* how many crashes; 0: no file */
int datadir_trust(struct datadir *d);           /* no more; 0 also when there was no file */
void datadir_close(struct datadir *d);
