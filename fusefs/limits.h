/* SPDX-License-Identifier: Apache-2.0 */
/* limits.h - every bound of the mount, by name and unit. */
#pragma once

/* ---- client ------------------------------------------------------------------ */
#define CLIENT_ENDPOINTS_MAX 16
#define CLIENT_CALL_TIMEOUT_MS 10000        /* of a call that names no deadline */
#define CLIENT_BACKOFF_MIN_MS 100           /* reconnecting */
#define CLIENT_BACKOFF_MAX_MS 500
#define CLIENT_CALLS_MAX 4096               /* calls that wait or are under way; beyond it NOT_SENT */
#define CLIENT_RECV_BYTES (256u << 20)      /* one answer */
#define CLIENT_TEXT_BYTES 256               /* of an error text that is kept */
#define CLIENT_QUORUM_FRESH_MS 100          /* "a quorum confirmed within" (A.5) */
#define CLIENT_KEEPALIVE_MS 10000           /* HTTP/2 ping on an idle connection; etcd allows one each 5 s */
#define CLIENT_KEEPALIVE_TIMEOUT_MS 3000

/* ---- tree -------------------------------------------------------------------- */
#define CODEC_NAME_MAX 4095                 /* encoded component, kernel >= 6.15 */
#define CODEC_NAME_MAX_OLD 1024             /* before */
#define TREE_VALUES_BYTES (64u << 20)       /* values kept in memory beside those of open handles */
#define TREE_ANCHORS 1024                   /* pairs of revision and wall time, for mtime */
#define TREE_ANCHOR_GAP_MS 1000
#define LOADS_MAX 16                        /* listings under way at once */
#define LOAD_RETRY_MS 300                   /* before a listing after a gap is tried again */
#define LOAD_PAGE_FIRST 64                  /* keys in the first page of a listing */
#define LOAD_PAGE_MAX 4096
#define LOAD_PAGE_BYTES (2u << 20)          /* what a page is meant to weigh */
#define LOAD_RETRIES 5                      /* a listing begun anew because its revision was compacted */
/* events that wait for one listing; beyond it the listing starts anew */
#define LOAD_BACKLOG 65536
#define READ_LOOKUP_MS 50                   /* how long a LOOKUP may ask for a name the tree lacks */
#define READ_STALE_AFTER_MS 1000            /* without an answer for so long, a value in memory will do */
#define READ_CALLS_MAX 256                  /* Ranges of opens under way; the others wait, and share */

/* ---- feed -------------------------------------------------------------------- */
#define FEED_OWN_REVS 16384                 /* own commits remembered until the watch brings them */
#define FEED_RETRY_MS 100                   /* before a broken watch is opened anew */
#define FEED_WATCH_OPEN_MS 5000             /* a watch that is not created by then is opened anew */
