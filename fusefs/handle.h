/* SPDX-License-Identifier: Apache-2.0 */
/* handle.h - open files: what a reader is pinned to, what a writer has not published, and when it is (A.5).
 *
 * A handle reads one revision: its pin. The first write (or truncation) gives it a buffer, begun from the
 * pin; from then on it reads its buffer. The buffer is published
 *
 *     at fsync; at a FLUSH by the process that opened it, if data came; at release; 5 s after the last write;
 *     an appending one: at each write, after the third at FLUSH or 100 ms after the last.
 *
 * What is published, and against what:
 *     whole    truncated to nothing or created by this handle: replaces what is there
 *     pieces   written in place: compared with the pin's revision; if it moved, laid over the new value
 *     append   the bytes are put behind whatever is there
 *
 * struct file_state hangs at node->ext while a node has handles or waits in limbo.
 *
 * Owner: the core thread.
 */
#pragma once
#include <sys/types.h>

#include "session.h"
#include "tree.h"

struct fs;
struct ofile;
struct txn;

struct extent {
    size_t from, to;
};

/* What a buffer changes of its base. */
struct changes {
    bool whole;             /* nothing of the base is left */
    bool resized;           /* pieces: the length was set */
    size_t cut;             /* pieces: the smallest length it was truncated to */
    size_t append_from;     /* an appending handle: buf[append_from..len) is to be appended */
    size_t len;             /* sent: of the buffer then */
    struct extent *extents; /* pieces written, sorted, apart from each other */
    uint32_t n_extents, room;
};

/* Somebody who wants everything up to write number `want` published. Embedded in its owner. */
struct commit_wait {
    void (*done)(struct commit_wait *w, int err);
    struct commit_wait *next;
    uint64_t want;
};

struct handle {
    struct fs *fs;
    struct handle *next, **prev; /* of all */
    struct handle *node_next;    /* of its node */
    struct node *node;           /* ref'd; NULL: the overlay's */
    struct ofile *ofile;         /* counted; NULL: the tree's */
    int flags;                   /* of open(2) */
    pid_t tid, tgid;             /* of the opener */
    struct value *pin;           /* NULL: the key was absent */
    bool writable, cached;
    bool unborn;   /* this handle creates the key */
    bool orphan;   /* the name was unlinked here: nothing will be published */
    bool released; /* the kernel has let go of it */
    int refused;   /* a write was refused with this: what the buffer holds is not what was meant */
    /* From the first write on: */
    uint8_t *buf;
    size_t len, room;
    bool has_buf;
    bool data, mark;    /* unpublished: bytes written; a truncation or creation */
    unsigned appends;   /* writes with O_APPEND */
    struct changes now; /* since the last commit began */
    /* Publishing: */
    uint64_t writes, committing, committed; /* numbers of writes: made, in the commit under way, published */
    bool busy;                              /* a commit is under way, of: */
    bool deferred;                          /* one is due when its directory has been renamed */
    struct changes sent;
    unsigned retries;
    int64_t deadline_ms;
    struct commit_wait *waits;
    struct timer idle;
    int64_t expected_rev; /* conflict=fail: what a whole rewrite compares with */
};

struct file_state {
    struct handle *handles;
    unsigned unborn;     /* handles that are creating it: it is shown here although the key is absent */
    struct ofile *limbo; /* renamed to this editors' name: hidden here, nothing else yet */
    int last_err;        /* of the last failed commit: user.etcd.error */
    char *last_text;
};

/* The state of a node, made if missing; NULL: no memory. */
struct file_state *file_state(struct node *n);
static inline struct file_state *file_state_if(const struct node *n)
{
    return n->ext;
}
/* Frees it if nothing needs it. */
void file_state_drop(struct node *n);
/* Shown here: present, or being created; and not in limbo. */
bool node_visible(const struct node *n);

/* pin: one reference, taken over; NULL: absent. Exactly one of node and ofile. NULL: no memory (pin is
 * released). */
struct handle *handle_new(struct fs *fs, struct node *node, struct ofile *ofile, int flags, pid_t tid,
                          struct value *pin);
/* At once: for one that was never handed to the kernel, or has nothing to publish. */
void handle_free(struct handle *h);
/* Publishes what is left and frees it. */
void handle_release(struct handle *h);

size_t handle_size(const struct handle *h);
/* Bytes at off, borrowed; *ret_len may be less than size, 0 at the end. */
const uint8_t *handle_read(const struct handle *h, size_t off, size_t size, size_t *ret_len);

/* May a value of this length be sent for this key? 0 or EFBIG. */
int handle_check_size(const struct handle *h, size_t len);
/* The length the value would have after such a write. */
size_t handle_size_after(const struct handle *h, size_t off, size_t size);
/* Into the buffer. 0, ENOMEM, EFBIG. */
int handle_write(struct handle *h, const void *data, size_t off, size_t size);
int handle_truncate(struct handle *h, size_t len);

/* A write was refused: nothing of this handle is published any more until it is truncated to nothing, or a
 * part would stand for the whole. Appends stand for themselves. */
void handle_refuse(struct handle *h, int err);

static inline bool handle_dirty(const struct handle *h)
{
    return h->data || h->mark;
}
/* Does an appending handle publish this write by itself? */
bool handle_append_eager(const struct handle *h);

/* This handle creates the key: the file is shown here from now on, until that failed. */
void handle_set_unborn(struct handle *h);
void handle_clear_unborn(struct handle *h);

/* Publishes everything written so far, marks too; done follows, perhaps at once. */
void handle_commit(struct handle *h, struct commit_wait *w);
/* The same for nobody: errors go to .etcd/errors. */
void handle_commit_quietly(struct handle *h);

/* The handle of this node whose opener is the caller's process and which is dirty; NULL: none. */
struct handle *handle_of_writer(const struct node *n, pid_t tid);

/* A directory is being renamed: is a commit below it under way? Afterwards: what was to be committed meanwhile is. */
bool handles_busy(const struct fs *fs, const struct node *dir);
void handles_resume(struct fs *fs);

/* The name is gone here: handles of the node publish nothing any more. */
void handles_orphan(struct node *n);
/* The key has another name now: handles follow it. */
void handles_move(struct node *from, struct node *to);
/* An overlay file has become a key: its handles go on as the key's. */
void handles_publish(struct fs *fs, struct ofile *of, struct node *to, struct value *v);

/* The kernel has let go of a handle of this node whose commit is still under way: w waits for it. False:
 * there is none. */
bool handle_wait_released(struct node *n, struct commit_wait *w);

/* handle_seen.c: with conflict=fail, the revision of n that the caller's process last read or wrote. */
struct seen {
    uint64_t nodeid, start;
    pid_t tgid;
    int64_t rev;
};
void seen_note(struct fs *fs, const struct node *n, pid_t tid, int64_t rev);
int64_t seen_rev(struct fs *fs, const struct node *n, pid_t tid, int64_t otherwise);

/* handle_commit.c, for handle.c */
void handle_start_commit(struct handle *h);
