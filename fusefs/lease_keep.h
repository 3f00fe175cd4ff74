/* SPDX-License-Identifier: Apache-2.0 */
/* lease_keep.h - leases that this mount keeps alive, and what a directory gives to new files (A.7).
 *
 *     user.etcd.keepalive of a file    mount   as long as this mount lives
 *                                      open    while the file is open here
 *                                      none    it expires by itself (the default)
 *     user.etcd.ttl, .keepalive of a directory: files created in it here get a lease of their own, so kept
 *
 * What is kept is the lease that the file has; without one there is nothing to keep. All of it is known to
 * this mount alone and ends with it: then the keys go when their time to live is over.
 *
 * Owner: the core thread.
 */
#pragma once
#include "client.h"
#include "session.h"
#include "tree.h"

struct fs;
struct keeper;
struct txn;

enum keep_mode { KEEP_NONE, KEEP_OPEN, KEEP_MOUNT };

/* NULL: no memory. */
struct keeper *keeper_new(struct fs *fs);

/* 0, ENOMEM, ENOSPC (KEEPS_MAX). */
int keep_set(struct keeper *k, struct node *n, enum keep_mode mode);
enum keep_mode keep_get(const struct keeper *k, const struct node *n);

/* The file has another node now: it was renamed. */
void keep_move(struct keeper *k, struct node *from, struct node *to);

/* What files created in dir get; ttl 0: no lease. */
struct keep_default {
    int64_t ttl;
    enum keep_mode mode;
};
int keep_default_set(struct keeper *k, struct node *dir, struct keep_default d);
struct keep_default keep_default_get(const struct keeper *k, const struct node *dir);
/* t is about to create a file in dir. */
void keep_new_file(struct keeper *k, const struct node *dir, struct txn *t);

const char *keep_mode_name(enum keep_mode mode);
bool keep_mode_of(const char *text, size_t len, enum keep_mode *ret_mode);
