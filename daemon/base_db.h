/* SPDX-License-Identifier: Apache-2.0 */
/* base_db.h - what the base_*.c files share: LMDB's handles and the rows' encodings.
 *
 * The one file that includes lmdb.h, and included by base_*.c alone: LMDB's types and codes stop there.
 * The rows are drawn at the top of base.c.
 */
#pragma once
#include <lmdb.h>
#include <pthread.h>
#include "base.h"
#include "err.h"

/* Numbers are part of each row's crc: never renumber. */
enum base_table {
    BASE_LOG,
    BASE_LEASE = TABLE_LEASE, /* 1..4: the small tables */
    BASE_AUTH = TABLE_AUTH,
    BASE_ALARM = TABLE_ALARM,
    BASE_MEMBER = TABLE_MEMBER,
    BASE_INDEX,
    BASE_LONG,
    BASE_LEASE_KEYS,
    BASE_META,
    BASE_TABLES,
};

enum {
    BASE_FORMAT = 1,
    BASE_CHUNK_BYTES = 500,                /* of a key in one row of index or long */
    BASE_PART_BYTES = 2000,                /* of a log value, crc included: two fit a page, none overflows */
    BASE_PART_BODY = BASE_PART_BYTES - 4,  /* of the body, in a part after the first */
    BASE_PARTS_MAX = 65536,
    BASE_LEVELS = 16,
    BASE_LOG_KEY_BYTES = 14,
    BASE_LEASE_KEY_BYTES = 20,
    BASE_LONG_KEY_BYTES = 8 + BASE_CHUNK_BYTES,
    BASE_ROW_MAX = 300,                    /* an index row, crc included */
    BASE_HEAD_MAX = 280,                   /* the head of a log record */
    BASE_CONF_MAX = 64 << 10,              /* the Raft configuration in the meta table */
    BASE_MAP_MIN = 1 << 30,                /* less than this of addresses is not worth a start */
    BASE_COMMIT_BYTES = 16 + 8 * (BASE_TABLES - 1), /* the meta row "commit" */
    BASE_SWEEP_PAGES = 2048,               /* one batch of the sweep dirties about so many */
    BASE_SWEEP_RECORDS = 8192,             /* one step of the sweep looks at so many records */
    BASE_SWEEP_VICTIMS = 512 << 10,        /* of one round, kept in memory: 16 bytes each */
};

/* One record to be swept; a flag says that its index row goes too, if it is that key's newest. */
struct victim {
    int64_t main;
    uint32_t sub;
    bool tombstone;
};

/* The sweep's mark: records before `from` have had their victims removed, as of compaction `upto`. */
struct sweep_mark {
    struct rev from;
    int64_t upto;
};

struct base {
    MDB_env *env;
    MDB_dbi dbi[BASE_TABLES];
    uintptr_t map;            /* where page 0 of the file lies in memory; 0 until base_open has found out */
    uintptr_t map_bytes, page_bytes;
    /* Protected by copy_mu: whoever gives a copy up does so in the middle of LMDB's writing it. */
    pthread_mutex_t copy_mu;
    int copy_fd, copy_dir_fd; /* what is being written, and where; -1: nothing */
    bool copy_given_up;       /* for good */
    /* Below: the flush thread's alone. */
    uint64_t child_next;
    int64_t compact_rev; /* as last committed */
    struct sweep_mark mark;
    struct {
        unsigned pages, records; /* of a step */
        size_t victims;          /* of a round */
    } sweep_max; /* BASE_SWEEP_...; less in tests */
    struct {
        struct victim *v; /* owned */
        size_t n, cap, at;
        struct sweep_mark next; /* committed with the last victim */
        bool active, gathered;
    } round;
};

struct base_reader {
    struct base *base;
    MDB_txn *txn;
    bool reading;
};

/* ---- base.c ---- */
int base_error(int rc); /* LMDB's code as ours; MDB_NOTFOUND is -EUCLEAN: who expects it asks before */

/* Whether p, of a row as LMDB gives it, lies on a page that says it is that page. */
bool base_page_in_place(const struct base *b, const void *p);
/* A row as LMDB gives it: on a page that lies where it belongs, and with its crc, which is cut off. -EUCLEAN. */
int base_row_check(const struct base *b, enum base_table t, struct slice key, struct slice v, struct slice *ret_value);
/* LMDB does not find this key: -ENOENT, or -EUCLEAN when what lies where it would be is damaged. Moves cur. */
int base_row_absent(const struct base *b, enum base_table t, struct slice key, MDB_cursor *cur);
/* Reads a row and checks its crc; ret_value is without it, in the map. -ENOENT. */
int base_row_read(const struct base *b, MDB_txn *txn, enum base_table t, struct slice key, struct slice *ret_value);
/* Adds the crc and writes; n bytes at value, which has room for 4 more. */
int base_row_write(const struct base *b, MDB_txn *txn, enum base_table t, struct slice key, uint8_t *value, size_t n,
                   unsigned flags);
int base_meta_read(const struct base *b, MDB_txn *txn, struct base_meta *ret_meta, struct sweep_mark *ret_mark,
                   uint64_t *ret_child_next);
/* A meta row of at least n bytes; a missing one is damage. */
int base_meta_row(const struct base *b, MDB_txn *txn, struct slice name, size_t n, struct slice *ret);
/* Rows of each table but meta, into dst (8 bytes each). */
int base_count_rows(const struct base *b, MDB_txn *txn, uint8_t *dst);
int base_sync_dir(const char *path); /* of a base: its file and the file's name */
int base_env_open(const struct base_options *o, MDB_env **ret_env);
int base_tables_open(struct base *b, MDB_txn *txn, unsigned flags);
int base_seal_write(const struct base *b, MDB_txn *txn, const struct seal *s);
int base_mark_write(const struct base *b, MDB_txn *txn, struct sweep_mark m);
/* Notes the child ids given out and what the commit looks like, then commits. txn is gone after it. */
int base_commit(struct base *b, MDB_txn *txn, uint64_t child_next);

static inline MDB_val val(struct slice s)
{
    return (MDB_val){s.len, (void *)s.ptr};
}

static inline struct slice val_slice(MDB_val v)
{
    return slice_of(v.mv_data, v.mv_size);
}

/* ---- base_row.c: encodings; nothing here touches LMDB ---- */
uint32_t row_crc(enum base_table t, struct slice key, struct slice value);
/* v with its crc: checks and cuts it off. -EUCLEAN. */
int row_check(enum base_table t, struct slice key, struct slice v, struct slice *ret_value);

/* A row of index or long. */
struct index_row {
    uint64_t child;  /* where longer keys go on; 0: nowhere */
    bool has;        /* there is such a key; false: only a child, what follows is zero */
    bool tombstone;
    struct rev newest;
    uint64_t n;      /* the newest change's ordinal, from 1 */
    int64_t create_revision, version, lease;
    struct rev level[BASE_LEVELS]; /* L; level[0] is newest; main 0: none */
};
size_t index_row_encode(const struct index_row *r, uint8_t *dst /* BASE_ROW_MAX */); /* without crc */
int index_row_decode(struct slice v, struct index_row *ret_r);

/* The head of a log record's part 0. */
struct log_head {
    bool tombstone;
    int64_t lease;
    uint64_t n;
    unsigned n_pointers;
    struct rev pointer[BASE_LEVELS]; /* P; main 0: none */
    size_t body_len;
    struct slice first; /* the body's bytes in part 0 */
};
size_t log_head_encode(const struct log_head *h, uint8_t *dst /* BASE_HEAD_MAX */);
int log_head_decode(struct slice v, struct log_head *ret_h);

void log_key(struct rev rev, unsigned part, uint8_t dst[static BASE_LOG_KEY_BYTES]);
struct rev log_key_rev(const uint8_t *p);
void lease_key(int64_t lease, struct rev rev, uint8_t dst[static BASE_LEASE_KEY_BYTES]);

enum { BODY_NUMBERS_MAX = 33 }; /* create_revision, mod_revision and version fit in so many bytes */
/* Where in a body its key lies; first: at least the body's first 11 bytes, or all of it. -EUCLEAN. */
int body_key_at(struct slice first, size_t *ret_offset, size_t *ret_len);
/* create_revision and version from the bytes behind the key: BODY_NUMBERS_MAX of them, or all that follow.
 * -EUCLEAN, also when mod_revision is not c->rev.main. */
int body_numbers(struct slice after_key, struct change *c);

/* ---- base_read.c ---- */
int index_find(const struct base *b, MDB_txn *txn, struct slice key, struct index_row *ret_row); /* ERR_KEY_NOT_FOUND */
int log_head_read(const struct base *b, MDB_txn *txn, struct rev rev, struct log_head *ret_h);   /* -ENOENT */
int row_lookup(struct base_reader *r, const struct index_row *row, struct slice key, int64_t rev_max,
               int64_t compact_rev, unsigned flags, struct arena *a, struct change *ret);
/* The record's key: in the map, or in a. */
int log_record_key(const struct base *b, MDB_txn *txn, struct rev rev, const struct log_head *h, struct arena *a,
                   struct slice *ret_key);

/* ---- base_pages.c ---- */
/* LMDB's own trees and its list of free pages, as of this reading transaction; leaves: those of all tables too. 0,
 * -ENOMEM, or -EUCLEAN with a word in ret_what (may be NULL). */
int base_pages_check(const struct base *b, MDB_txn *txn, bool leaves, const char **ret_what);

/* ---- base_path.c: keys over many rows ---- */
/* Where a key's row is: index, or long under the last child id. */
struct path {
    enum base_table table;
    uint8_t key[BASE_LONG_KEY_BYTES];
    size_t key_len;
};
static inline struct slice path_key(const struct path *p)
{
    return slice_of(p->key, p->key_len);
}
void path_at(struct path *p, uint64_t id, struct slice rest); /* id 0: index; rest: what of the key is left */
/* Walks to the key's row, reading each; makes children that are missing when child_next is not NULL. ret_row is
 * zero when the row is not there. ERR_KEY_NOT_FOUND: no way to it (child_next NULL only). */
int path_walk(const struct base *b, MDB_txn *txn, struct slice key, uint64_t *child_next, struct path *ret_p,
              struct index_row *ret_row);
int path_write(const struct base *b, MDB_txn *txn, const struct path *p, const struct index_row *row);
/* Takes away the key's row, and what of the way to it nobody else needs. */
int path_remove(const struct base *b, MDB_txn *txn, struct slice key);

/* Grows the array *(void **)array of items to at least `need` of them, doubling. -ENOMEM: as it was. */
int base_room(void *array, size_t *cap, size_t need, size_t item);
