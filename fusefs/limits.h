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
/* With several endpoints: */
#define CLIENT_BEAT_MS 300                  /* quiet for so long, the current one is asked */
#define CLIENT_ASK_MS 200                   /* what was asked is unanswered for so long: ask the others as well */
#define CLIENT_SILENCE_MS 400               /* not a word for so long: another one that answers is used */
#define CLIENT_LINE_BYTES_PER_MS 1000       /* a line may be as slow: it is no silence while a request takes so long */
#define CLIENT_SILENCE_MAX_MS 3200          /* doubled up to here each time that moving did not help ... */
#define CLIENT_SILENCE_CALM_MS 5000         /* ... until nobody was left for so long */
#define CLIENT_LEAD_MS 250                  /* another one proved a quorum so much sooner than one that still talks */
#define CLIENT_DOUBT_MS 1000                /* none has proved a quorum for so long: in doubt */
#define CLIENT_QUORUM_FRESH_MS 100          /* "a quorum confirmed within" (A.5) */
#define CLIENT_KEEPALIVE_MS 10000           /* HTTP/2 ping on an idle connection; etcd allows one each 5 s */
#define CLIENT_KEEPALIVE_TIMEOUT_MS 3000

/* ---- tree -------------------------------------------------------------------- */
#define CODEC_NAME_MAX 4095                 /* encoded component, kernel >= 6.15 */
#define CODEC_NAME_MAX_OLD 1024             /* before */
#define TREE_VALUES_BYTES (64u << 20)       /* values kept in memory beside those of open handles */
#define TREE_NODES_MAX 1000000              /* names in memory; beyond it listings are forgotten, as tree_unload.c
                                             * may */
#define TREE_UNLOAD_IDLE_MS 600000          /* of a directory that the kernel knows: not entered for so long */
#define TREE_UNLOAD_LOOK_MS 5000            /* between two looks for such */
#define TREE_ANCHORS 1024                   /* pairs of revision and wall time, for mtime */
#define TREE_ANCHOR_GAP_MS 1000
#define LOADS_MAX 16                        /* listings under way at once */
#define LOAD_RETRY_MS 300                   /* before a listing after a gap is tried again */
#define LOAD_PAGE_FIRST 32                  /* keys in the first page of a listing */
#define LOAD_PAGE_MIN 256
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
#define FEED_STOOD_MS 1000                  /* one that stood for so long is opened anew at once */
#define FEED_KEPT_BYTES (64u << 20)         /* of events that wait for the end of a rename; then the watch is opened
                                             * anew */
#define FEED_WATCH_OPEN_MS 5000             /* a watch that is not created by then is opened anew */

/* ---- injections and invalidations ------------------------------------------- */
#define INJECTORS 4                         /* processes; directories are spread over them */
#define INJECT_TIMEOUT_MS 2000              /* then its injector is killed and replaced ... */
#define INJECT_STARVED_MAX 5                /* ... unless it waits for a processor, so many times */
#define INJECT_QUEUE_MAX 32768              /* injections that wait, in all; beyond it they are dropped and counted */
#define INJECT_COALESCE 256                 /* above so many waiting in a shard, a MODIFY merges with a waiting one */
#define INJECT_BLIND_PER_S 200              /* so many a second without looking whether anybody watches */
#define WATCHERS_SCAN_GAP_MS 10             /* between two looks at who watches what */
#define WATCHERS_RETURN_MS 2000             /* after a read, so long a change waits for its watcher to come back */
#define WATCHERS_RETURN_LOOK_MS 20          /* and is looked for so often; */
#define WATCHERS_RETURN_SOON_MS 300         /* after so long, rarely: on a busy machine a shell takes its time */
#define WATCHERS_RETURN_RARE_MS 100
#define NOTIFY_THREADS 4                    /* directories are spread over them */

/* ---- handles and commits ------------------------------------------------------ */
#define HANDLE_IDLE_MS 5000                 /* without a write: what is dirty is committed */
#define HANDLE_APPEND_EAGER 3               /* appends of a handle that are committed each; then in groups */
#define HANDLE_APPEND_IDLE_MS 100           /* of such a group */
#define UNBORN_WAIT_MS 250                  /* a reader of a file whose first value is being written */
#define UNBORN_LOOK_MS 3
#define HANDLE_EXTENTS_MAX 1024             /* pieces written in place that are kept apart; then they are joined */
#define COMMIT_RETRIES 64                   /* rebasing on a value that others keep changing */
#define COMMIT_ATTEMPT_MS 2000              /* then the outcome of one that can be sent again is looked at ... */
#define COMMIT_BYTES_PER_MS 128             /* ... later if it is so large that a slow line takes longer */
#define COMMIT_PINNED_TRIES 3               /* a save that others keep overtaking is then made unconditionally */
#define COMMIT_REREAD_MS 200                /* between two looks whether a commit of unknown outcome arrived */
#define CODEC_KEY_MAX (1u << 20)              /* of a key that a renamed directory makes */
#define RENAME_KEYS_MAX 10000               /* of a directory renamed by cairnd's own call, as cairnd has it */
#define RENAME_LOOK_MS 2                    /* between two looks whether commits below a directory have ended */
#define RENAME_UNKNOWN_MS 60000             /* a member that does not know the call is not asked for so long */
#define REQUEST_OVERHEAD_BYTES 512          /* of a save's Txn beside its key (twice) and value */
#define TXN_OPS_MAX 128                     /* the server's default --max-txn-ops */
#define SEEN_MAX 4096                       /* conflict=fail: who has read what (handle_seen.c) */
#define KEEPS_MAX 4096                      /* leases kept alive; directories with a time to live for new files */
#define KEEP_LOOK_MS 200                    /* between two looks which is due */
#define KEEP_RETRY_MS 1000                  /* a keep-alive without an answer */
#define DIRS_MADE 512                       /* directories made here whose maker may still chmod them */
#define ERRORS_MAX 256                      /* lines of .etcd/errors */

/* ---- overlay ------------------------------------------------------------------- */
#define OVERLAY_BYTES (64u << 20)           /* contents of all files that are only here */
#define OVERLAY_NAMES_BYTES 1024            /* of a list of patterns in .etcd/config */
#define OVERLAY_LINGER_MS 2000              /* a temporary file after its last close; a key renamed to an editor's
                                             * name */

#define QUOTA_DEFAULT_BYTES (2ll << 30)     /* etcd's, for servers older than 3.6, which do not tell theirs */
#define STATFS_WAIT_MS 300                  /* how long df waits for the server's figures; then the last ones do */
#define STATUS_FRESH_MS 1000                /* how long such an answer counts */

#define REQUEST_TIMEOUT_S 120               /* and thrice the timeout: older requests abort the mount (session.h) */

/* ---- control ------------------------------------------------------------------- */
#define STREAM_BACKLOG_BYTES (64u << 20)    /* of one reader of .etcd/events; beyond it a gap line */
#define HISTORY_AHEAD_BYTES (4u << 20)      /* read ahead for a reader of .etcd/events@REV */
