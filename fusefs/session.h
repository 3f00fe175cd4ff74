/* SPDX-License-Identifier: Apache-2.0 */
/* session.h - the core thread's loop, and the mount it serves.
 *
 * One thread, the core thread, owns everything mutable of cairnfs. Its loop waits on one epoll descriptor
 * for requests of the kernel, finished RPCs, injectors, notify threads and signals, and fires timers.
 * Nothing that runs on it waits: a handler replies at once or starts something and replies from its
 * completion.
 *
 * Owner: the core thread, except session_inval_*(), which any thread may call.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct fuse_lowlevel_ops;
struct fuse_session;

/* Something with a descriptor; ready() runs on the core thread when it can be read. Embedded in its owner. */
struct source {
    int fd;
    void (*ready)(struct source *src);
};

/* One shot; embedded in its owner, zeroed before first use. */
struct timer {
    void (*fire)(struct timer *t);
    uint64_t at_ms;
    size_t pos; /* in the heap, from 1; 0: not armed */
};

struct session {
    struct fuse_session *se; /* NULL: not mounted */
    void *owner;             /* what the operations work on */
    int epoll_fd;
    struct source signals, device;
    struct timer **heap; /* heap[1..heap_len], the soonest first */
    size_t heap_len, heap_room;
    uint64_t init_unique; /* the INIT request whose reply is amended; 0: none waits */
    uint32_t init_flags, init_flags2;
    bool initialised; /* INIT was answered */
    bool stop;        /* leave the loop */
    bool unmounted;   /* the kernel let the mount go */
    unsigned signals_seen;
    void (*on_signal)(struct session *s);    /* SIGINT, SIGTERM, SIGHUP; may be NULL */
    void (*on_ready)(struct session *s);     /* INIT was answered; may be NULL */
    void (*before_sleep)(struct session *s); /* each turn, before it waits; may set timers; may be NULL */
    dev_t dev;                               /* st_dev of the mount; 0: unknown */
    /* The kernel (6.15 and later) aborts the mount over an older request. Set before mounting; less
     * afterwards if the administrator's limit is. It is the last resort, should this process and its guard
     * be killed in one stroke. */
    unsigned request_timeout_s;
};

/* Time that counts on while the machine sleeps, in ms. */
uint64_t session_now_ms(void);

/* Blocks the signals that end us (so call it before threads exist) and makes the loop. 0/-errno. */
int session_init(struct session *s, void *owner);
void session_fini(struct session *s);

int session_watch(struct session *s, struct source *src); /* 0/-errno */
void session_unwatch(struct session *s, struct source *src);

/* Arms or re-arms. */
void session_timer_set(struct session *s, struct timer *t, uint64_t after_ms);
void session_timer_clear(struct session *s, struct timer *t);

/* Mounts: fuse_options as in -o, for libfuse and the kernel. 0/-errno; libfuse says on stderr what it
 * dislikes. */
int session_mount(struct session *s, const struct fuse_lowlevel_ops *ops, size_t ops_size,
                  const char *fuse_options, const char *mountpoint);
void session_unmount(struct session *s);

/* Runs until stop or until the mount is gone. */
void session_run(struct session *s);
/* One round of the loop that waits at most wait_ms. */
void session_turn(struct session *s, int wait_ms);

/* Kernel invalidations, 0/-errno (-ENOENT: the kernel has no such inode or name). Offset -1: attributes
 * only, takes no lock and may be called by the core thread. Any other waits: notify threads only. */
int session_inval_inode(struct session *s, uint64_t nodeid, int64_t offset);
int session_inval_entry(struct session *s, uint64_t parent, const char *name, size_t name_len);
/* The kernel asks again before it uses the name; what the name stands for stays attached until then. */
int session_expire_entry(struct session *s, uint64_t parent, const char *name, size_t name_len);

/* Detaches a dead mount (stat says ENOTCONN) from mountpoint. 0: nothing there or done; else -errno. */
int session_detach_dead(const char *mountpoint);
