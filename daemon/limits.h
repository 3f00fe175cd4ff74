/* SPDX-License-Identifier: Apache-2.0 */
/* limits.h - every bound between a client's socket and the disk, by name.
 *
 * A queue, buffer or cache without a line here is a bug. Each bound has a test that
 * fills it: ARCHITECTURE.md, "Bounds", names it. What happens when it is full stands
 * beside it. Where a test cannot fill the true bound, it compiles the one file that
 * enforces it with a smaller one (tests/unit/limits_*.c).
 */
#pragma once

enum {
    /* pump: bytes of incomplete messages. Past it, the connection is closed / only the
     * oldest connection is read. */
    LIMIT_CONN_INCOMPLETE_BYTES = 64 << 20,
    LIMIT_ALL_INCOMPLETE_BYTES = 256 << 20,
    LIMIT_HEADER_BLOCK_BYTES = 64 << 10,  /* one header block: GOAWAY, close */
    LIMIT_OPEN_STREAMS = 10000,           /* a connection, when the flag sets none */
    LIMIT_OPEN_STREAMS_SLACK = 1000,      /* open beyond the limit: GOAWAY, close */
    LIMIT_MUTE_STREAMS = 500,             /* open without a whole message, a connection: read at a walk */
    LIMIT_RST_PER_SECOND = 1000,          /* a connection: GOAWAY, close */
    LIMIT_CONTROL_PER_SECOND = 1000,      /* a connection, PING, SETTINGS and the like: GOAWAY, close */
    LIMIT_STALL_MS = 10000,               /* all incomplete bytes used up and the oldest sends nothing: close it */
    LIMIT_HTTP_CONNECTIONS = 1000,        /* HTTP/1.1: further ones are closed */
    LIMIT_SNIFF_MS = 10000,               /* to show a protocol, else close */
    LIMIT_HANDSHAKE_MS = 10000,           /* a TLS handshake: given up */
    LIMIT_HANDSHAKES = 1000,              /* of others with us, under way on one port: the oldest goes */
    LIMIT_PUMP_BUFFER_BYTES = 64 << 10,   /* one direction of a connection */

    /* rpc to apply: one account from decode to answer. Past it: `too many requests`. */
    LIMIT_PROPOSALS = 5000,
    LIMIT_PROPOSAL_BYTES = 64 << 20,
    LIMIT_READ_WAITS = 10000,             /* reads that wait for an index: the same */
    LIMIT_KEEPALIVES = 65536,             /* of one stream, not yet answered: `too many requests` */
    LIMIT_TXN_DEPTH = 32,                 /* nested txns: ERR_TOO_DEEP */
    LIMIT_REQUEST_SLACK_BYTES = 512 << 10,/* a gRPC message may exceed max-request-bytes by */

    /* turn to WAL: one batch being written, one gathering. Past it the turn takes no proposals. */
    LIMIT_WAL_BATCH_BYTES = 8 << 20,
    LIMIT_ENTRY_CACHE_BYTES = 64 << 20,   /* older entries are read again from the WAL */
    LIMIT_WAL_SEGMENT_BYTES = 64 << 20,
    LIMIT_CATCHUP_BYTES = 256 << 20,      /* of the log, kept for followers: who needs more is given a snapshot */

    /* between members. */
    LIMIT_PEER_CONNECT_MS = 500,          /* one address of a member: the next is tried */
    LIMIT_PEER_ANSWER_BYTES = 4 << 20,    /* what another member may answer to a call of ours: it fails */
    LIMIT_PEER_OUTBOX = 8192,             /* sent to one member, not yet in its lane: dropped beyond, and that is
                                           * told */
    LIMIT_PEER_URGENT = 1024,             /* of one member, not yet sent: the oldest is dropped, and that is told */
    LIMIT_PEER_BULK = 2048,               /* the same for entries: the newest is dropped, and that is told */
    LIMIT_PEER_BULK_BYTES = 64 << 20,     /* of its proposals' entries; an APPEND has none before it leaves */
    LIMIT_PEER_BATCH = 256,               /* messages, and */
    LIMIT_PEER_BATCH_BYTES = 512 << 10,   /* about so many bytes that leave together, or one message that is larger */
    LIMIT_PEER_MESSAGE_BYTES = 64 << 20,  /* what may come in one: the stream ends. As large as an entry may be. */
    LIMIT_PEER_READ_BYTES = 256 << 10,    /* taken from one connection before the next has its turn */
    LIMIT_PEER_INCOMPLETE_BYTES = 256 << 20, /* of messages that have not come whole, of all members: the stream ends */
    LIMIT_PEER_STREAMS = 64,              /* accepted from members: one more is refused */
    LIMIT_PEER_STRANGERS = 64,            /* connections that have not said who they are: the oldest is closed */
    LIMIT_PEER_INBOX = 4096,              /* messages that came and were not yet stepped: dropped beyond */
    LIMIT_PEER_INBOX_BYTES = 64 << 20,    /* the same, their entries' bytes */
    LIMIT_PEER_ENTRIES = 4096,            /* in one message; more is not decoded */
    LIMIT_PROPOSE_ENTRIES = 512,          /* forwarded in one message, */
    LIMIT_PROPOSE_BYTES = 1 << 20,        /* or when they are so many bytes; the rest is the next one's */
    LIMIT_FOREIGN_PROPOSALS = 20000,      /* of other members that wait on a leader: refused, they try again */
    LIMIT_FOREIGN_BYTES = 64 << 20,       /* the same, in bytes */
    LIMIT_LEASE_ASKS = 16384,             /* asked of a leader elsewhere: `too many requests` */
    LIMIT_LEASE_QUERIES = 65536,          /* on a leader, of all members: asked again */
    LIMIT_PEERS_FILE_BYTES = 64 << 10,    /* DIR/PEERS: further URLs are left out of it */
    LIMIT_UNCOMMITTED = 65536,            /* entries of a leader: then proposals wait */

    /* apply to flush: the live delta. At FREEZE it is sealed; at STALL apply waits for flush. */
    LIMIT_DELTA_FREEZE_BYTES = 32 << 20,
    LIMIT_DELTA_FREEZE_HOT_BYTES = 16 << 20, /* the same few keys again and again: waiting saves no page */
    LIMIT_DELTA_FREEZE_SHARED_BYTES = 4 << 20, /* the same, of several members: who flushes is slow to answer meanwhile,
                                                * so each flush is to be short */
    LIMIT_DELTA_STALL_BYTES = 64 << 20,
    LIMIT_DELTA_FREEZE_KEYS = 72 << 10,   /* distinct ones: each may dirty a page of 4 KiB while it is flushed */
    LIMIT_FREEZE_IDLE_MS = 2000,          /* sealed this long after the last entry */
    LIMIT_SCRUB_ROWS = 64,                /* read in one slice of the scrub: about 0.1 ms */
    LIMIT_SCRUB_RESTS = 50,               /* then it rests so many times as long */
    LIMIT_SCRUB_FIRST_MS = 60 * 1000,     /* after the start: what was damaged at rest is known soon */
    LIMIT_SCRUB_EVERY_MS = 24 * 3600 * 1000, /* from the end of one pass to the next */

    /* one rename of a directory (Tree.Rename): more is refused. Apply does nothing else meanwhile, which is 30 ms of
     * computing at the first two (tests/unit/rename.c): no put waits longer than about 50. On every member the same
     * for ever: txn_rename.c. */
    LIMIT_RENAME_KEYS = 10000,
    LIMIT_RENAME_BYTES = 16 << 20,        /* of its keys and values */
    LIMIT_RENAME_KEY_BYTES = 1 << 20,     /* of one new name */

    /* hub to a stream: past it the watcher catches up later. */
    LIMIT_WATCH_STREAM_BYTES = 4 << 20,
    LIMIT_WATCHERS = 1000000,             /* in all: a new one is cancelled at once */
    LIMIT_WATCH_KEY_BYTES = 256 << 20,    /* their keys, in all: the same */
    LIMIT_WATCH_BATCH_REVS = 1000,        /* distinct revisions in one catch-up response */
    LIMIT_WATCH_BATCH_BYTES = 1 << 20,    /* of events read at a time, or one revision's if that is more */
    LIMIT_WATCH_SCAN_CHANGES = 20000,     /* looked at in one view */
    LIMIT_WATCH_ALL_BYTES = 256 << 20,    /* queued to all streams: then each with a queue counts as full */

    /* reads on an rpc thread; past either the scan pool does it anew. */
    LIMIT_INLINE_ROWS = 1000,
    LIMIT_INLINE_US = 1000,
    LIMIT_SCAN_QUEUE = 10000,             /* waiting for the pool: `too many requests` */
    LIMIT_RESPONSE_BYTES = 256 << 20,     /* responses being built or sent, in all */
    LIMIT_CONN_RESPONSE_BYTES = 64 << 20, /* a connection's unary ones: ResourceExhausted, unless it is the only one */
    LIMIT_SEND_BURST_BYTES = 64 << 10,    /* queued on one stream: call_send_room says no */
    LIMIT_CALLS = 200000,                 /* alive in all: ResourceExhausted */
    LIMIT_DECODE_SLACK_BYTES = 32 << 20,  /* a request decodes into twice its limit and this: ERR_ARENA_FULL */

    /* snapshots to members that lag */
    LIMIT_SNAP_CHUNK_BYTES = 256 << 10,   /* rows or records in one chunk, or a single one that is larger */
    LIMIT_SNAP_RECORD_BYTES = 256 << 20,  /* one record read for a chunk: above any that base takes */
    LIMIT_SNAP_DELTA_BYTES = 16 << 20,    /* what a receiver gathers before it writes */
    LIMIT_SNAP_HOLD_MS = 600 * 1000,      /* a sender holds the sweep back so long; then its transfer fails */
    LIMIT_SNAP_SENDS = 2,                 /* given at a time: Raft asks again */
    LIMIT_SNAP_QUEUE_BYTES = 1 << 20,     /* received and not yet looked at: its sender waits */
    LIMIT_SNAP_CONNECT_MS = 5000,         /* to the receiver: the transfer fails, as by the next two */
    LIMIT_SNAP_STALL_MS = 30 * 1000,      /* without progress */
    LIMIT_SNAP_FINISH_MS = 120 * 1000,    /* the receiver has all of it: to sync and to install it */
    LIMIT_HASH_CHECK_MS = 1000,           /* the leader compares the members' states so often, */
    LIMIT_HASH_WAIT_MS = 5000,            /* and waits so long for who has not applied as far yet */
    LIMIT_SNAP_LOG_MS = 30 * 1000,        /* the log behind a snapshot is kept so long after it was taken, */
    LIMIT_SNAP_LOG_ENTRIES = 1000000,     /* but never more of it than this, */
    LIMIT_SNAP_LOG_BYTES = 1 << 30,       /* nor than this */

    LIMIT_SERVER_REQUEST_MS = 5000,       /* + 2 x election timeout: etcd's request timeout */
    LIMIT_STOP_MS = 1000,
};

/* Named beside what they bound, because they are the size of an array or of a format there:
 *
 *     STORE_SLOTS_MAX    store.h        reading threads             slot_new answers NULL
 *     SCAN_THREADS_MAX   scan.c         threads of the pool         no more are started
 *     RPC_THREADS_MAX    rpc.h          rpc threads                 no more are started
 *     RPC_POSTS          rpc_impl.h     calls posted a method       posted again as they arrive
 *     PUMP_LISTENERS_MAX pump_impl.h    URLs listened on            -E2BIG at the start
 *     PB_DEPTH_MAX       pb.h           nesting of a message        ERR_TOO_DEEP
 *     LEASES_MAX         lease.h        leases                      `too many requests`
 *     LEASE_EXPIRE_MAX   lease.h        leases in one expiry        the rest is the next one's
 *     ALARMS_MAX         apply_state.h  alarms                      one more is not taken
 *     MEMBERS_MAX        apply_state.h  members                     -ENOSPC (Raft's 16 come first)
 *     MEMBER_IDS_MAX     apply_state.h  members there are and were  no more are added
 *     HASHES_KEPT        apply_state.h  hashes of compactions       the oldest goes
 *     SAMPLES_MAX        compactor.c    an hour's revisions, tenfold  fewer are kept
 *     RAFT_*_MAX         raft.h         the core's arrays           ERR_TOO_MANY_REQUESTS, or messages in pieces
 *     URLS_MAX, KEY_BYTES, LIST_BYTES   config_value.c, yaml.c      refused, with the reason
 */
