/* SPDX-License-Identifier: Apache-2.0 */
/* spawner.h - the process that makes and replaces injectors.
 *
 * A process with gRPC threads or with /dev/fuse open must not fork. So the spawner is forked first of all;
 * it has one thread, knows nothing of the store or the mount, and forks an injector whenever the core asks.
 * The core receives the injector's pid and its end of a socketpair. The spawner ends, and kills its
 * injectors, when the core's thread ends: nothing outlives the mount.
 *
 * It is also the mount's guard. A notify thread may be inside the kernel, waiting for a directory's lock
 * that a user's request holds; killed then, the core never answers that request, the thread never comes
 * out, /dev/fuse never closes, and users of the mount hang in D state for good. So when the core's thread
 * dies, however that happens, the spawner aborts the connection (fusectl): every request ends with an
 * error, the thread comes out, the process is gone.
 *
 * A dead injector is reaped only after the core has said that it no longer counts its pid as an injector's:
 * from then on the kernel may give the number to a user's process, whose unlink must not be answered
 * without effect.
 *
 * Owner: the core thread holds struct spawner; the process behind it owns nothing shared.
 */
#pragma once
#include <sys/types.h>

enum spawner_event_type {
    SPAWNER_NONE, /* nothing waits */
    SPAWNER_BORN, /* slot, pid, fd: an injector is ready; fd is the caller's now */
    SPAWNER_DEAD, /* slot, pid: it has ended; strike it off, then spawner_buried() */
    SPAWNER_LOST, /* the spawner itself is gone: no injector will come any more */
};

struct spawner_event {
    enum spawner_event_type type;
    unsigned slot;
    pid_t pid;
    int fd;
};

struct spawner {
    int fd; /* to watch for readability; -1: not started or lost */
    pid_t pid;
};

/* Forks the spawner; call it before any thread exists. mountpoint: absolute, where its injectors will work.
 * 0/-errno. */
int spawner_start(struct spawner *s, const char *mountpoint);
/* Asks for an injector for this slot; SPAWNER_BORN follows. 0/-errno. */
int spawner_request(struct spawner *s, unsigned slot);
/* Asks that the injector be killed; SPAWNER_DEAD follows when the kernel lets go of it. */
void spawner_kill(struct spawner *s, pid_t pid);
/* The mount stands: guard this connection, which is named by the minor number of its st_dev. */
void spawner_guard(struct spawner *s, unsigned connection);
/* The core has struck pid off: it may be reaped. */
void spawner_buried(struct spawner *s, pid_t pid);
/* Takes one event without waiting. */
struct spawner_event spawner_next(struct spawner *s);
/* Closes the socket; the spawner kills what it made and ends. Waits for it at most timeout_ms. */
void spawner_stop(struct spawner *s, int timeout_ms);
