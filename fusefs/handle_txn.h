/* SPDX-License-Identifier: Apache-2.0 */
/* handle_txn.h - one change of the store: a transaction, its doubts and what the tree learns from it.
 *
 * Every change the mount makes is a struct txn: compares, operations, keys whose present state to tell on
 * refusal. Running it means: wait for a confirmed quorum (at most the grace of A.12), tell the feed which
 * keys are about to change, send once, and, should the outcome be unknown, read the key that changes until it
 * shows the outcome or time is up. Sent again is only what cannot take effect twice (handle_doubt.c).
 *
 * Owner: the core thread. Memory: the txn copies keys and holds references to values; it frees itself after
 * done.
 */
#pragma once
#include "client.h"
#include "feed.h"
#include "lease_keep.h"
#include "tree.h"

struct fs;
struct txn;

#define TXN_IGNORE_LEASE (-1) /* as lease of txn_put: keep whatever lease the key has; the key must exist */

/* err: 0 carried out; -1 the compares failed; else a positive errno (nothing was done, or ETIMEDOUT: nobody
 * knows). During done the accessors below work. On 0 the tree has learned the puts and deletes, and the
 * kernel's attributes of them are dropped. */
typedef void txn_done_fn(struct txn *t, void *arg, int err);

struct txn *txn_new(struct fs *fs, txn_done_fn *done, void *arg); /* NULL: no memory */

enum txn_target { TXN_CREATE_REV, TXN_MOD_REV };
enum txn_test { TXN_EQUAL, TXN_GREATER, TXN_LESS };

/* Each of these remembers a failure of memory, which txn_run then answers with ENOMEM. end: SLICE_NONE for
 * one key. */
void txn_compare(struct txn *t, struct slice key, struct slice end, enum txn_target target,
                 enum txn_test test, int64_t rev);
void txn_put(struct txn *t, struct slice key, struct value *value, int64_t lease);
/* The compares make sure that the key is absent: what it will be is known, and not read back. */
void txn_put_new(struct txn *t, struct slice key, struct value *value, int64_t lease);
/* Only the lease changes (0: none): value is what the compares make sure is there, and is not sent. */
void txn_put_lease(struct txn *t, struct slice key, struct value *value, int64_t lease);
/* Puts that name no lease get one, granted when it runs: seconds to live, and how it is kept alive. */
void txn_new_lease(struct txn *t, int64_t ttl, enum keep_mode mode);
void txn_delete(struct txn *t, struct slice key);
/* A txn_delete_range will delete it: the feed and the tree are told. */
void txn_note_delete(struct txn *t, struct slice key);
/* A whole range; the tree is told nothing of it (the caller does that). */
void txn_delete_range(struct txn *t, struct slice key, struct slice end);
/* When the compares fail, tell what this key holds now (txn_current). */
void txn_read_on_failure(struct txn *t, struct slice key);

/* When the compares fail, tell which revision this key has now (txn_now_rev); instead of the above. */
void txn_look_on_failure(struct txn *t, struct slice key);

/* The caller tells the tree what it has done. */
void txn_teaches_nothing(struct txn *t);

/* Success means that it was this one that did it, not another one that wanted the same: when nobody can say which, it
 * ends with ETIMEDOUT. */
void txn_exclusive(struct txn *t);

/* Bytes of the request as it stands. */
size_t txn_size(const struct txn *t);
/* Frees one that was not run. */
void txn_cancel(struct txn *t);
/* Runs it; done follows, never before txn_run has returned. */
void txn_run(struct txn *t);

/* Is one under way that changes a key which begins with prefix? */
bool txns_below(const struct fs *fs, struct slice prefix);

/* ---- in done ---------------------------------------------------------------------- */

int64_t txn_rev(const struct txn *t);
/* What the i-th put made: its metadata now. NULL: not told (outcome found by reading). */
const struct key_meta *txn_put_meta(const struct txn *t, unsigned i);
/* After -1: what the i-th key of txn_read_on_failure holds: a new reference, or NULL: absent. */
struct value *txn_current(const struct txn *t, unsigned i);
/* After -1: the revision of the key of txn_look_on_failure, 0: it is absent. */
int64_t txn_now_rev(const struct txn *t);
/* The server's words, or "". */
const char *txn_text(const struct txn *t);

/* ---- a question before a change -------------------------------------------------------- */

/* Is there a quorum, and room? Embedded. done runs once, perhaps at once. err: 0, EROFS, ENOSPC. */
struct gate {
    struct fs *fs;
    void (*done)(struct gate *g, int err);
    struct client_call quorum, status;
    unsigned waiting;
    int err;
};
/* What a Status answer says of the store's space. */
void fs_take_status(struct fs *fs, const struct client_call *call);
/* space: also ask, once a second at most, whether the store is full. */
void gate_pass(struct gate *g, bool space);
