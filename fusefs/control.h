/* SPDX-License-Identifier: Apache-2.0 */
/* control.h - the tree .etcd/ in the mount's root: what the mount says of itself, and views that are no
 * files of keys.
 *
 *     status revision errors config        text, made at open; config may be written
 *     keys/NAME                            every key by its whole name, '/' as %2F
 *     events/PATH  events/DIR/.all         a line of JSON for each change, from open on; read blocks; poll()
 *     events@REV/PATH                      the same from that revision on; ENOENT: compacted
 *     wait/PATH    wait/DIR/.all           a read that returns with the next change
 *
 * Nodeids: bit 63. Hidden from readdir of the root; 0700, the mounter's. Owner: the core thread.
 */
#pragma once
#include <fuse_lowlevel.h>

#include "feed.h"

struct control;
struct fs;

static inline bool control_owns(uint64_t nodeid)
{
    return nodeid >> 63;
}

int control_new(struct fs *fs, struct control **ret_control);
void control_free(struct control *c);

/* A line for .etcd/errors. */
void control_error(struct control *c, const char *what, const char *path, int err, const char *text);
/* The feed's sink. */
void control_key_event(struct control *c, const struct key_event *ev);
void control_gap(struct control *c, int64_t from_rev, int64_t to_rev);
/* Ends every read that waits: the mount is going away. */
void control_stop(struct control *c);

/* True: it was about .etcd and is answered. */
bool control_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void control_forget(struct control *c, uint64_t nodeid, uint64_t nlookup);
void control_getattr(fuse_req_t req, fuse_ino_t ino);
void control_setattr(fuse_req_t req, fuse_ino_t ino, const struct stat *attr, int to_set,
                     struct fuse_file_info *fi);
void control_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void control_create(fuse_req_t req, fuse_ino_t parent, const char *name, struct fuse_file_info *fi);
void control_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void control_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void control_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
                   struct fuse_file_info *fi);
void control_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void control_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void control_poll(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct fuse_pollhandle *ph);
void control_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void control_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void control_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
