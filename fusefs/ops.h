/* SPDX-License-Identifier: Apache-2.0 */
/* ops.h - the mount as a whole, and the requests of the kernel.
 *
 * struct fs   everything of one mount. Owner: the core thread.
 * struct op   one request that waits for something. It is answered exactly once: by op_reply_*(), or with
 * EINTR when
 *             the caller is interrupted; what it started then goes on and its later reply goes nowhere.
 *
 * Each FUSE operation is one function here or in ops_*.c. It answers at once, or makes an op and answers
 * from a completion. A reply the kernel does not take (the caller was interrupted at that moment) is taken
 * back: lookup counts, handles.
 */
#pragma once
#include <fuse_lowlevel.h>

#include "client.h"
#include "codec.h"
#include "feed.h"
#include "handle.h"
#include "handle_txn.h"
#include "injector_pool.h"
#include "lease_keep.h"
#include "main_options.h"
#include "notify.h"
#include "session.h"
#include "tree.h"
#include "tree_read.h"

#define TIMEOUT_S                                                                                            \
    60.0 /* of attributes and names in the kernel: finite, so that a race nobody thought of heals */

struct handle;
struct ofile;
struct overlay;
struct control;
struct fuse_lowlevel_ops;

/* A directory made here, and by which thread. */
struct made_dir {
    uint64_t nodeid;
    pid_t tid;
};

struct fs {
    struct session session;
    struct options opt;
    struct client *client;
    struct tree *tree;
    struct feed *feed;
    struct source client_source;
    struct timer tree_timer, feed_timer;
    struct notify *notify;
    struct injector_pool *injectors;
    struct overlay *overlay;
    struct keeper *keeper;
    struct control *control;
    struct txn *txns;       /* all that run */
    struct handle *handles; /* all open ones of files */
    struct node *moving;    /* the directory that is being renamed: changes below it wait. NULL: none is */
    uint64_t no_rename_member; /* that does not know cairnd's call, as it said at no_rename_ms; 0: none */
    int64_t no_rename_ms;
    uint64_t n_unborn;      /* handles that are creating their key */
    uint64_t n_handles, n_commits, n_commits_failed, commits_in_flight;
    bool nospace;      /* the last change was refused for the quota, or the server said so */
    int64_t status_ms; /* when the server last told that, and: */
    int64_t db_quota, db_size, db_in_use; /* bytes; 0: not known */
    bool feed_ready;   /* the first watch stands */
    int64_t started_ms;
    struct made_dir made[DIRS_MADE]; /* the last ones; a ring */
    size_t n_made;
    struct seen seen[SEEN_MAX]; /* conflict=fail */
};

extern const struct fuse_lowlevel_ops ops_table;

static inline struct fs *req_fs(fuse_req_t req)
{
    return ((struct session *)fuse_req_userdata(req))->owner;
}

/* ---- requests that wait ------------------------------------------------------------ */

struct op {
    struct fs *fs;
    fuse_req_t req; /* NULL: answered */
    pid_t pid;      /* of the caller: its thread id */
    struct wait wait;
    struct node *node;  /* ref'd: what it is about */
    struct node *node2; /* ref'd */
    char *name, *name2; /* owned */
    struct fuse_file_info fi;
    struct handle *handle; /* the kernel's to release once it has been told; else ours to free */
    struct gate gate;
    struct key_meta made; /* of the key made at once */
    void (*read_done)(struct wait *w, int err); /* of op_read_for_change(), and until when it asks again */
    int64_t read_until_ms;
    struct commit_wait commit;
    struct timer timer;
    uint8_t *data; /* owned: what a WRITE that waits brought */
    size_t size;
    off_t off;
    bool dir_compared, by_any_key; /* make_in_dir(): is the directory compared too, and how? */
    void (*next)(struct op *op); /* what comes after a common step */
    uint64_t arg;
};

/* NULL: the request has been answered (no memory, or interrupted already). name may be NULL. */
struct op *op_new(fuse_req_t req, struct node *node, const char *name);
/* The op must have been answered. */
void op_free(struct op *op);

/* The request, to be answered now by the caller; NULL: it has been. */
fuse_req_t op_take(struct op *op);
/* Each answers, unless that has been done already. Those that hand something to the kernel return whether
 * the kernel took it. */
void op_err(struct op *op, int err);
void op_end(struct op *op, int err); /* op_err(), and the op is freed */
bool op_entry(struct op *op, struct node *n);
bool op_create(struct op *op, struct node *n, const struct fuse_file_info *fi);
bool op_open(struct op *op, const struct fuse_file_info *fi);
void op_write(struct op *op, size_t size);
void op_attr(struct op *op, struct node *n,
             const struct handle *h); /* h: the size is its buffer's; may be NULL */

/* The same for requests that were never made an op. */
bool reply_entry(fuse_req_t req, struct node *n, double entry_timeout);
void reply_attr(fuse_req_t req, struct fs *fs, struct node *n, const struct handle *h);

/* ---- shared by the ops ---------------------------------------------------------------- */

/* The node of a nodeid that the kernel must know; NULL: answered with ESTALE. */
struct node *req_node(fuse_req_t req, fuse_ino_t ino);
struct node *req_dir(fuse_req_t req, fuse_ino_t ino); /* also ENOTDIR */

/* 0, or what a change answers right away: EROFS on a read-only mount, or once the quorum is lost longer
 * than grace. */
int fs_may_change(const struct fs *fs);
/* A line for .etcd/errors. */
void fs_error(struct fs *fs, const char *what, const char *path, int err, const char *text);

pid_t thread_group(pid_t tid); /* 0: unknown (another pid namespace, or it is gone) */

/* ops.c */
struct node *fs_child(struct fs *fs, struct node *dir, const char *name, struct ofile **ret_ofile);
/* ops_wait.c */
/* Runs resume once no commit of a released handle of n is under way. */
void op_after_release(struct op *op, struct node *n, void (*resume)(struct op *op));
/* What a change begins with: the value of op->node, as tree_open_read(). What no quorum confirms is waited for, at most
 * for the grace (EROFS), as any change is. Uses op->wait and op->gate. */
void op_read_for_change(struct op *op, void (*done)(struct wait *w, int err));
/* Is it in the directory that is being renamed? What is to be changed there would be so under the old name. */
bool fs_is_moving(const struct fs *fs, const struct node *n);
/* Runs resume once neither the op's node nor node2 is; perhaps at once. */
void op_after_move(struct op *op, void (*resume)(struct op *op));
/* What an op that has waited ends with instead of beginning: 0, EINTR (answered already), ESTALE (what it is about was
 * renamed, and the kernel looks again). */
int op_is_over(const struct op *op);
/* ops_file.c */
void fs_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi);
void fs_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev);
void fs_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void fs_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
              struct fuse_file_info *fi);
void fs_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void fs_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_poll(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct fuse_pollhandle *ph);
void fs_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi);
void open_flags(const struct fs *fs, struct fuse_file_info *fi, const struct handle *h);
/* ops_create.c */
int fs_check_name(const struct fs *fs, const struct node *dir, const char *name, bool is_dir);
/* What is made at once in op->node, as key, is made only if the directory is there still: others may have renamed or
 * removed it. That can be told of one that has a marker: by the marker, and if that has gone (it is looked at on
 * failure), or the watch has said that the marker or the directory has, by any key below. */
void make_in_dir(struct op *op, struct txn *t, struct slice key);
/* How such a txn ended. True: it made nothing; the op has ended with the error, or has begun anew (again), by any key
 * this time. */
bool make_failed(struct op *op, const struct txn *t, int err, void (*again)(struct op *op));
/* It was made. Runs done once its directory is listed here, or else (gone since) with an error, perhaps at once. */
void make_shown(struct op *op, void (*done)(struct wait *w, int err));
/* ops_dir.c */
void fs_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void fs_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void fs_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
/* Was it this thread that made the directory, not long ago? */
bool fs_made_dir(const struct fs *fs, const struct node *n, pid_t tid);
void fs_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void fs_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void fs_symlink(fuse_req_t req, const char *link, fuse_ino_t parent, const char *name);
void fs_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname);
/* ops_rename.c */
void fs_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent, const char *newname,
               unsigned flags);
/* ops_inject.c: answers to an injector's request for what was announced to it. True: answered. */
bool inject_lookup(fuse_req_t req, struct node *dir, const char *name);
bool inject_make(fuse_req_t req, struct node *dir, const char *name, struct fuse_file_info *fi);
bool inject_remove(fuse_req_t req, struct node *dir, const char *name);
bool inject_rename(fuse_req_t req, struct node *dir, const char *name, struct node *newdir,
                   const char *newname);
bool inject_open(fuse_req_t req, struct node *n, struct fuse_file_info *fi);
bool inject_setattr(fuse_req_t req, struct node *n);
/* xattr.c */
void fs_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size, int flags);
void fs_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size);
void fs_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size);
void fs_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name);
