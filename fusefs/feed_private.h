/* SPDX-License-Identifier: Apache-2.0 */
/* feed_private.h - what feed.c and feed_batch.c share. Owner: the core thread. */
#pragma once
#include "feed.h"
#include "tree_private.h"

enum feed_state { START, OPENING, WATCHING, PAUSED };

#define OWN_SLOTS FEED_OWN_REVS
_Static_assert((OWN_SLOTS & (OWN_SLOTS - 1)) == 0, "own revisions are found by their low bits");

/* A key with commits of ours under way. */
struct inflight {
    struct inflight *next;
    unsigned count;
    size_t len;
    uint8_t key[];
};

/* A change not told yet, or (held) told without its injection. */
struct pending {
    struct pending *next;
    struct change_event *ev;
    struct key_meta meta;
    bool reshaped;
    struct inflight *inflight;
};

/* A message that came while the feed was held. */
struct kept {
    struct kept *next;
    Etcdserverpb__WatchResponse *batch;
};

struct feed {
    struct tree *tree;
    struct client *client;
    struct feed_sink sink;
    enum feed_state state;
    bool after_gap, was_ready, in_batch;
    int64_t next_rev, retry_ms, open_until_ms;
    int64_t created_ms; /* when the watch came to stand */
    struct client_call start_call;
    struct client_stream stream;
    struct pending *pending, **pending_end;
    struct pending *held, **held_end;
    struct inflight *inflight;
    bool holding;
    struct kept *kept, **kept_end;
    size_t kept_bytes;
    int64_t own[OWN_SLOTS];
    struct feed_stats stats;
};

/* feed_batch.c: the tree tells f what changes in it. */
void feed_attach(struct feed *f);
