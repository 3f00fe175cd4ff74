/* SPDX-License-Identifier: Apache-2.0 */
/* snap.h - the state as a stream: what a member that missed too much of the log is given instead.
 *
 *     snap_export   base, as of its applied index --> chunks          (any thread, while writes go on)
 *     snap_import   chunks --> a new base in a directory of its own    (any thread; nothing else sees it)
 *
 * A stream says everything a receiver needs to answer as its sender does: applied index, term, configuration, R, C,
 * key count, state hash, the small tables, and each record of the log up to R that the sender has. What is local is
 * not in it: ordinals, pointers, child ids are made anew by the receiver. How far the sender's sweep was goes along,
 * since the receiver has exactly the records the sender had; no answer depends on it.
 *
 * The bytes are drawn at the top of snap_export.c.
 */
#pragma once
#include "apply.h"
#include "base.h"
#include "store.h"

/* What a stream begins with. conf points into memory of whoever gave the head. */
struct snap_head {
    uint64_t cluster_id, index, term;
    int64_t revision, compact_revision, key_count;
    uint64_t state_hash;
    struct rev swept;
    int64_t swept_upto;
    struct slice conf;
};

/* ---- giving ---- */
struct snap_export;

/* Begins: fixes the head as of base now, and holds the sweep back until snap_export_free. -ENOMEM, -EUCLEAN. */
int snap_export_new(struct apply *a, struct store *s, struct clock *clock, struct snap_export **ret_x);
void snap_export_free(struct snap_export *x); /* takes NULL */
const struct snap_head *snap_export_head(const struct snap_export *x);
/* The next chunk, x's until the next call; 1: that was all. -ETIMEDOUT: the sweep was held for LIMIT_SNAP_HOLD_MS;
 * -ESTALE: this member has itself got another state meanwhile; -EUCLEAN: a damaged row, nobody gets it; -ENOMEM. */
int snap_export_next(struct snap_export *x, struct slice *ret_chunk);

/* ---- taking ---- */
struct snap_import;

struct snap_import_options {
    const char *path;               /* an empty directory; what is in it afterwards is the caller's to remove */
    struct base_options base;       /* path and no_sync are not read */
    uint64_t cluster_id, member_id; /* ours; a stream of another cluster is refused */
};

int snap_import_new(const struct snap_import_options *o, struct snap_import **ret_im);
void snap_import_free(struct snap_import *im); /* takes NULL; closes the base */
/* One chunk, in order. 0; 1: it was the last, all agrees and is on disk; -EBADMSG: damaged, out of order or not for
 * us; -ENOSPC; -errno. After an error nothing more may be fed. */
int snap_import_feed(struct snap_import *im, struct slice chunk);
/* After the first chunk. Lives as long as im. */
const struct snap_head *snap_import_head(const struct snap_import *im);

/* ---- what both sides know ---- */
enum {
    SNAP_CHUNK_HEAD = 16, /* bytes before a chunk's body */
    SNAP_HEAD_BYTES = 96, /* of the first chunk's body, before the configuration */
    SNAP_ROW_BYTES = 9,   /* before a row's id and value */
    SNAP_RECORD_BYTES = 17, /* before a record's body */
    SNAP_END_BYTES = 24,
    SNAP_FORMAT = 1,
};
enum snap_kind { SNAP_HEAD = 1, SNAP_ROWS = 2, SNAP_LOG = 3, SNAP_END = 4 };
#define SNAP_MAGIC "CAIRNSNP"
