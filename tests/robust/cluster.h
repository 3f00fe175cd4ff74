/* SPDX-License-Identifier: Apache-2.0 */
/* cluster.h - three to five members on this machine, each behind a link of its own, and what can go wrong with them.
 *
 *     harness, 10.77.0.254 --- bridge --+-- veth --- member 1, 10.77.0.1, in a network namespace, data on a tmpfs
 *                                       +-- veth --- member 2, 10.77.0.2
 *                                       +-- veth --- member 3, 10.77.0.3, and so on
 *
 * All of it, mounts too, lives in namespaces without a name that end with the process: nothing is left behind.
 *
 * Owner: the main thread, but for what is atomic and the thread that keeps a member's disk slow.
 */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>
#include "calls.h"

enum { MEMBERS_MAX = 5, MEMBERS_END = MEMBERS_MAX + 1 };

struct member {
    int number;                     /* from 1 */
    int netns;                      /* fd */
    pid_t pid;                      /* 0: it does not run */
    char address[32], dir[300], log[300];
    _Atomic uint32_t incarnation;   /* odd: it runs; grows with each start and each end */
    struct caller admin;            /* for status and the like */
    int notify;                     /* where its syncs are seen */
    pthread_t disk;
    bool disk_runs;
    _Atomic int64_t sync_delay_us;  /* each sync takes this much longer; INT64_MAX: until it is less */
    _Atomic uint64_t syncs_delayed;
    bool stopped;                   /* SIGSTOP */
    int status;                     /* how it ended by itself, as wait(2) says */
};

struct cluster {
    const char *program;
    char dir[256];
    char *const *flags;             /* further ones for each member, NULL at the end */
    uint64_t token;
    int n;                          /* members */
    unsigned cuts[MEMBERS_END][MEMBERS_END]; /* [from][to]: how many faults want that one not to hear the first */
    struct member members[MEMBERS_END]; /* [0] is not used */
};

/* Of as many members as MEMBERS in the environment says, or three. 0, or -errno with a word on what this machine lacks
 * in ret_what. Before any thread starts. */
int cluster_make(struct cluster *c, const char *program, const char *dir, const char **ret_what);
/* Has all that clients have sent arrived? A call that was given up may still be on its way: after a link was down the
 * kernel sends again as late as the link was down for, also of a connection that is closed. */
bool clients_are_quiet(void);
bool member_start(struct cluster *c, struct member *m); /* false: no process; says why on stderr */
bool member_kill(struct member *m, int sig);            /* and waits; false: SIGTERM was not enough within 20 s */
bool member_ended(struct member *m);                    /* did it end by itself? then it is noted as not running */
void cluster_end(struct cluster *c);
void disk_set(struct member *m, int64_t delay_us);
bool disk_fill(struct member *m);  /* no byte is free */
bool disk_is_full(const struct member *m);
void disk_empty(struct member *m);
void member_pause(struct member *m);
bool member_is_paused(const struct member *m);
void member_resume(struct member *m);
/* `to` no longer hears `from`, either side's connections stay. */
bool link_cut(struct cluster *c, int from, int to);
bool link_heal(struct cluster *c, int from, int to);
uint64_t link_dropped(struct cluster *c, int to); /* packets so dropped until now */
bool link_set(struct cluster *c, int member, bool up);
bool link_is_up(int member);

/* Who says that it leads; 0: nobody. */
int cluster_leader(struct cluster *c, int timeout_ms);
bool member_status(struct member *m, int timeout_ms, Etcdserverpb__StatusResponse **ret_status);

/* A child of ours runs only this: in the namespace of its parent's thread, with its syncs reported. */
int member_main(int argc, char **argv);
