/* SPDX-License-Identifier: Apache-2.0 */
/* change.h - one put or delete of one key, and the body bytes that stand for it everywhere.
 *
 * body: etcd's own bytes of mvccpb.KeyValue (fields in the order key, create_revision, mod_revision,
 * version, value, lease; zero values left out), so that HashKV, snapshots and watch events need no
 * re-encoding. A tombstone's body holds the key only, as in etcd.
 * Source: etcd v3.7.1 server/storage/mvcc/kvstore_txn.go (put, delete).
 */
#pragma once
#include "bytes.h"
#include "kv.pb-c.h"

/* rev: main is the revision, sub numbers the changes inside it from 0. */
struct rev {
    int64_t main;
    uint32_t sub;
};

static inline int rev_cmp(struct rev a, struct rev b)
{
    if (a.main != b.main)
        return a.main < b.main ? -1 : 1;
    return (a.sub > b.sub) - (a.sub < b.sub);
}

/* Borrowed slices: the comment of who gives it says how long they live. */
struct change {
    struct slice key;
    struct rev rev;
    bool tombstone;
    int64_t create_revision, version, lease; /* 0 for a tombstone */
    struct slice body; /* ptr NULL when the asker wanted none */
};

/* Bytes of the body for these values. */
size_t body_size(const struct change *c, struct slice value);
/* dst has body_size bytes. c->body is not read. */
void body_encode(const struct change *c, struct slice value, uint8_t *dst);

/* Fills a protobuf-c message whose bytes point into body: no copy, no allocation; usable for packing.
 * -EBADMSG: not such a body. */
int body_decode(struct slice body, Mvccpb__KeyValue *ret_kv);
