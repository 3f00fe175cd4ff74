/* SPDX-License-Identifier: Apache-2.0 */
/* base.c - the store on disk: its tables, its opening, its meta rows.
 *
 * One LMDB environment. Every value ends in 4 bytes: u32le crc32c over the table's number (one byte), the key and
 * the value before them. Whoever reads a row checks it: a damaged row is -EUCLEAN, never an answer.
 * v: a varint (LEB128); rev: v main, v sub; main 0: none.
 *
 *  log          0 u64be main   8 u32be sub   12 u16be part
 *      part 0:  u8 flags: 1 tombstone, 2 lease     v n, the ordinal    [u64be lease]
 *               rev P[0] ... P[min(15, trailing zeros of n)]    v bytes of the body    the body's first bytes
 *      part i:  the body's next bytes. All parts but the last fill 2,000 bytes, crc included.
 *      body:    etcd's bytes of mvccpb.KeyValue; a tombstone's has the key only (change.h)
 *
 *  index        the key's first 500 bytes
 *  long         0 u64be child id   8 the key's next 500 bytes (at least 1)
 *               u8 flags: 1 has a row, 2 tombstone, 4 lease, 8 child    [u64be child id, greater than its parent's]
 *               of the key's newest change, if there is a row:
 *               rev   v n   [put: v create_revision, v version]   [u64be lease]   rev L[1] ... L[min(15, log2 n)]
 *      A key of up to 500 bytes has one row, in index. A longer one goes on under the child id of its first 500
 *      bytes, and so on. A row of fewer than 500 bytes has no child. A row's own key sorts before all in its child.
 *
 *  lease_keys   0 u64be lease   8 u64be main   16 u32be sub;  no value: the newest change of a live key with a lease
 *
 *  lease auth alarm member   id or name -> the row's bytes (small tables)
 *
 *  meta         "format"  u32le 1, u64le cluster id, u64le member id
 *               "seal"    u64le applied index, its term, R, C, key count, state hash; Raft's configuration
 *               "sweep"   u64le S.main, u32le S.sub, u64le C as of then
 *               "commit"  u64le LMDB's transaction id, u64le next child id, u64le rows of each table, meta excepted
 *
 * Reading the past. A key's changes, tombstones included, are numbered from 1 since its index row was made. L[j] is
 * the newest change whose number is a multiple of 2^j (L[0]: the newest of all, not stored). A record keeps, in
 * P[j], what L[j] was when it came, for each 2^j that divides its number. A lookup at r >= C whose newest change is
 * above r jumps to the record at the highest L[j] above r, from there by the highest P[j] above r, and so on; the
 * last one's P[0] is the answer: about log2 of the changes above r. Only records above r are stepped on, and the
 * sweep takes none above C: so a missing one is damage, but for a P[0] below C, which is an absent key.
 *
 * A row that is not found is only absent when both its neighbours are sound and on their sides of it: a damaged key
 * lies where the right one would, and a damaged separator above leads next to the right page.
 *
 * "commit" guards what LMDB does not: its meta pages and table roots have no checksum. A transaction id or a row
 * count that differs means a root that belongs to another commit: -EUCLEAN.
 *
 * Each page says its own number; a row on a page that lies elsewhere is -EUCLEAN (base_row_check).
 *
 * Promise: base_flush and base_sweep change everything or nothing, and are on disk when they return 0.
 * Not here: encodings (base_row.c), reading (base_read.c, base_cursor.c), long keys (base_path.c), writing
 *           (base_flush.c, base_sweep.c), copies (base_copy.c), the whole-store check (base_check.c, base_pages.c).
 * LMDB is used as plainly as it can be: no NOSYNC (but the tests'), no WRITEMAP, no DUPSORT, no nested transactions,
 * no MDB_CURRENT; of Debian's 0.9.24 those are where the later fixes are.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base_db.h"

static const char *const table_names[BASE_TABLES] = {
    [BASE_LOG] = "log",     [BASE_LEASE] = "lease", [BASE_AUTH] = "auth", [BASE_ALARM] = "alarm",
    [BASE_MEMBER] = "member", [BASE_INDEX] = "index", [BASE_LONG] = "long", [BASE_LEASE_KEYS] = "lease_keys",
    [BASE_META] = "meta",
};

int base_error(int rc)
{
    switch (rc) {
    case 0: return 0;
    case MDB_MAP_FULL: return -ENOSPC;
    case MDB_NOTFOUND:
    case MDB_CORRUPTED:
    case MDB_BAD_TXN: /* one of the above was met in it before */
    case MDB_PAGE_NOTFOUND:
    case MDB_INVALID:
    case MDB_VERSION_MISMATCH:
    case MDB_INCOMPATIBLE:
    case MDB_CURSOR_FULL:
    case MDB_PAGE_FULL:
    case MDB_KEYEXIST:
    case MDB_BAD_VALSIZE: return -EUCLEAN;
    case MDB_READERS_FULL: return -EAGAIN;
    default: return rc > 0 ? -rc : -EIO; /* MDB_PANIC: a failed write of LMDB's own meta page */
    }
}

/* ---- rows ---- */

/* A page says which one it is. One that does not was written in another's place, or another in its: its rows' own
 * checksums are right, and what it lacks would be absent. So would be what a leaf has no room for by its own head (its
 * flags, and where its entries' places end and its entries begin: base_pages.c). Pages that this transaction has
 * changed are not in the map. */
bool base_page_in_place(const struct base *b, const void *p)
{
    enum { FLAG_LEAF = 2 };
    uintptr_t at = (uintptr_t)p - b->map;
    const uint8_t *page;

    if (at >= b->map_bytes)
        return true;
    at &= ~(b->page_bytes - 1);
    page = (const uint8_t *)(b->map + at);
    return get_u64le(page) * b->page_bytes == at &&
           (!(page[10] & FLAG_LEAF) || get_u16le(page + 12) <= get_u16le(page + 14));
}

int base_row_check(const struct base *b, enum base_table t, struct slice key, struct slice v, struct slice *ret_value)
{
    return base_page_in_place(b, v.ptr) ? row_check(t, key, v, ret_value) : -EUCLEAN;
}

/* Whether the row at the cursor is sound and on its side of key. */
static bool neighbour_ok(const struct base *b, enum base_table t, struct slice key, MDB_val k, MDB_val v, int side)
{
    struct slice value;

    return base_row_check(b, t, val_slice(k), val_slice(v), &value) == 0 && slice_cmp(val_slice(k), key) * side > 0;
}

int base_row_absent(const struct base *b, enum base_table t, struct slice key, MDB_cursor *cur)
{
    MDB_val k = val(key), v;
    int rc = mdb_cursor_get(cur, &k, &v, MDB_SET_RANGE);

    if (rc == 0) {
        if (!neighbour_ok(b, t, key, k, v, 1))
            return -EUCLEAN;
        rc = mdb_cursor_get(cur, &k, &v, MDB_PREV);
    } else if (rc == MDB_NOTFOUND) {
        rc = mdb_cursor_get(cur, &k, &v, MDB_LAST);
    }
    if (rc == 0)
        return neighbour_ok(b, t, key, k, v, -1) ? -ENOENT : -EUCLEAN;
    return rc == MDB_NOTFOUND ? -ENOENT : base_error(rc);
}

static int row_absent(const struct base *b, MDB_txn *txn, enum base_table t, struct slice key)
{
    MDB_cursor *cur;
    int err = base_error(mdb_cursor_open(txn, b->dbi[t], &cur));

    if (err)
        return err;
    err = base_row_absent(b, t, key, cur);
    mdb_cursor_close(cur);
    return err;
}

int base_row_read(const struct base *b, MDB_txn *txn, enum base_table t, struct slice key, struct slice *ret_value)
{
    MDB_val k = val(key), v;
    int rc = mdb_get(txn, b->dbi[t], &k, &v);

    if (rc == MDB_NOTFOUND)
        return row_absent(b, txn, t, key);
    return rc ? base_error(rc) : base_row_check(b, t, key, val_slice(v), ret_value);
}

int base_row_write(const struct base *b, MDB_txn *txn, enum base_table t, struct slice key, uint8_t *value, size_t n,
                   unsigned flags)
{
    MDB_val k = val(key), v = {n + 4, value};

    put_u32le(value + n, row_crc(t, key, slice_of(value, n)));
    return base_error(mdb_put(txn, b->dbi[t], &k, &v, flags));
}

/* ---- meta ---- */

enum { SEAL_BYTES = 48, FORMAT_BYTES = 20, MARK_BYTES = 20 };

int base_seal_write(const struct base *b, MDB_txn *txn, const struct seal *s)
{
    uint8_t *p;
    int err;

    if (s->conf.len > BASE_CONF_MAX)
        return -EFBIG;
    p = malloc(SEAL_BYTES + s->conf.len + 4);
    if (p == NULL)
        return -ENOMEM;
    put_u64le(p, s->applied_index);
    put_u64le(p + 8, s->applied_term);
    put_u64le(p + 16, (uint64_t)s->revision);
    put_u64le(p + 24, (uint64_t)s->compact_revision);
    put_u64le(p + 32, (uint64_t)s->key_count);
    put_u64le(p + 40, s->state_hash);
    if (s->conf.len)
        memcpy(p + SEAL_BYTES, s->conf.ptr, s->conf.len);
    err = base_row_write(b, txn, BASE_META, S("seal"), p, SEAL_BYTES + s->conf.len, 0);
    free(p);
    return err;
}

int base_mark_write(const struct base *b, MDB_txn *txn, struct sweep_mark m)
{
    uint8_t buf[MARK_BYTES + 4];

    put_u64le(buf, (uint64_t)m.from.main);
    put_u32le(buf + 8, m.from.sub);
    put_u64le(buf + 12, (uint64_t)m.upto);
    return base_row_write(b, txn, BASE_META, S("sweep"), buf, MARK_BYTES, 0);
}

int base_count_rows(const struct base *b, MDB_txn *txn, uint8_t *dst)
{
    MDB_stat st;

    for (int t = 0; t < BASE_META; t++) {
        int rc = mdb_stat(txn, b->dbi[t], &st);

        if (rc)
            return base_error(rc);
        put_u64le(dst + 8 * t, st.ms_entries);
    }
    return 0;
}

int base_commit(struct base *b, MDB_txn *txn, uint64_t child_next)
{
    uint8_t buf[BASE_COMMIT_BYTES + 4];
    int err;

    put_u64le(buf, mdb_txn_id(txn));
    put_u64le(buf + 8, child_next);
    err = base_count_rows(b, txn, buf + 16);
    if (err == 0)
        err = base_row_write(b, txn, BASE_META, S("commit"), buf, BASE_COMMIT_BYTES, 0);
    if (err) {
        mdb_txn_abort(txn);
        return err;
    }
    err = base_error(mdb_txn_commit(txn));
    if (err == 0)
        b->child_next = child_next;
    return err;
}

int base_meta_row(const struct base *b, MDB_txn *txn, struct slice name, size_t n, struct slice *ret)
{
    int err = base_row_read(b, txn, BASE_META, name, ret);

    return err == -ENOENT || (err == 0 && ret->len < n) ? -EUCLEAN : err;
}

static int check_commit(const struct base *b, MDB_txn *txn, struct slice commit)
{
    uint8_t rows[8 * BASE_META];
    int err = base_count_rows(b, txn, rows);

    if (err)
        return err;
    if (get_u64le(commit.ptr) != mdb_txn_id(txn) || commit.len != BASE_COMMIT_BYTES)
        return -EUCLEAN;
    return memcmp(commit.ptr + 16, rows, sizeof rows) ? -EUCLEAN : 0;
}

int base_meta_read(const struct base *b, MDB_txn *txn, struct base_meta *ret_meta, struct sweep_mark *ret_mark,
                   uint64_t *ret_child_next)
{
    struct slice format, seal, mark, commit;
    int err;

    if ((err = base_meta_row(b, txn, S("format"), FORMAT_BYTES, &format)) ||
        (err = base_meta_row(b, txn, S("seal"), SEAL_BYTES, &seal)) ||
        (err = base_meta_row(b, txn, S("sweep"), MARK_BYTES, &mark)) ||
        (err = base_meta_row(b, txn, S("commit"), BASE_COMMIT_BYTES, &commit)) || (err = check_commit(b, txn, commit)))
        return err;
    if (get_u32le(format.ptr) != BASE_FORMAT)
        return -EPROTONOSUPPORT;
    *ret_mark = (struct sweep_mark){{(int64_t)get_u64le(mark.ptr), get_u32le(mark.ptr + 8)},
                                    (int64_t)get_u64le(mark.ptr + 12)};
    *ret_child_next = get_u64le(commit.ptr + 8);
    *ret_meta = (struct base_meta){
        .cluster_id = get_u64le(format.ptr + 4),
        .member_id = get_u64le(format.ptr + 12),
        .seal = {.applied_index = get_u64le(seal.ptr),
                 .applied_term = get_u64le(seal.ptr + 8),
                 .revision = (int64_t)get_u64le(seal.ptr + 16),
                 .compact_revision = (int64_t)get_u64le(seal.ptr + 24),
                 .key_count = (int64_t)get_u64le(seal.ptr + 32),
                 .state_hash = get_u64le(seal.ptr + 40),
                 .conf = slice_of(seal.ptr + SEAL_BYTES, seal.len - SEAL_BYTES)},
        .swept = ret_mark->from.main,
        .swept_sub = ret_mark->from.sub,
        .swept_upto = ret_mark->upto,
    };
    return 0;
}

/* ---- opening ---- */

enum { LOCK_HEAD_BYTES = 4096, LOCK_READER_BYTES = 64 }; /* at least what LMDB takes for its head and a reader */

/* LMDB writes its lock file through a mapping: on a full disk a hole in it is SIGBUS, not an error. So the file has
 * its blocks before LMDB sees it; one that is larger than LMDB asks for gives it more reader slots. */
static int lock_file_make(const struct base_options *o)
{
    char path[PATH_MAX];
    int fd, err;

    if (snprintf(path, sizeof path, "%s/lock.mdb", o->path) >= (int)sizeof path)
        return -ENAMETOOLONG;
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    err = posix_fallocate(fd, 0, LOCK_HEAD_BYTES + (off_t)o->readers_max * LOCK_READER_BYTES);
    (void)close(fd); /* nothing was written */
    return -err;
}

static int env_open_map(const struct base_options *o, uint64_t map_bytes, MDB_env **ret_env)
{
    unsigned flags = MDB_NOTLS | (o->no_sync ? MDB_NOSYNC : 0);
    MDB_env *env;
    int rc = lock_file_make(o);

    if (rc)
        return rc;
    rc = mdb_env_create(&env);
    if (rc)
        return base_error(rc);
    if ((rc = mdb_env_set_maxdbs(env, BASE_TABLES)) || (rc = mdb_env_set_mapsize(env, map_bytes)) ||
        (rc = mdb_env_set_maxreaders(env, o->readers_max)) || (rc = mdb_env_open(env, o->path, flags, 0600))) {
        mdb_env_close(env);
        return base_error(rc);
    }
    *ret_env = env;
    return 0;
}

/* Where addresses are short (ulimit -v, ThreadSanitizer) a smaller map has to do: what it then cannot hold is
 * ENOSPC, as with a full disk. */
int base_env_open(const struct base_options *o, MDB_env **ret_env)
{
    uint64_t map_bytes = o->map_bytes;
    int rc = env_open_map(o, map_bytes, ret_env);

    for (; rc == -ENOMEM && map_bytes / 2 >= BASE_MAP_MIN; map_bytes /= 2)
        rc = env_open_map(o, map_bytes / 2, ret_env);
    return rc;
}

int base_tables_open(struct base *b, MDB_txn *txn, unsigned flags)
{
    for (int t = 0; t < BASE_TABLES; t++) {
        int rc = mdb_dbi_open(txn, table_names[t], flags, &b->dbi[t]);

        if (rc)
            return base_error(rc);
    }
    return 0;
}

/* The file, and its name. */
int base_sync_dir(const char *path)
{
    static const char *const names[] = {"data.mdb", "."};
    int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), err = 0;

    if (dir < 0)
        return -errno;
    for (size_t i = 0; i < 2 && err == 0; i++) {
        int fd = openat(dir, names[i], O_RDONLY | O_CLOEXEC);

        if (fd < 0 || fsync(fd) < 0)
            err = -errno;
        if (fd >= 0)
            (void)close(fd); /* read only: nothing can be lost */
    }
    (void)close(dir);
    return err;
}

int base_create(const struct base_options *o, uint64_t cluster_id, uint64_t member_id, struct slice conf)
{
    struct seal seal = {.revision = 1, .compact_revision = -1, .conf = conf};
    uint8_t format[FORMAT_BYTES + 4];
    struct base b = {0};
    MDB_txn *txn = NULL;
    int err = base_env_open(o, &b.env);

    if (err)
        return err;
    if ((err = base_error(mdb_txn_begin(b.env, NULL, 0, &txn))) || (err = base_tables_open(&b, txn, MDB_CREATE)))
        goto out;
    put_u32le(format, BASE_FORMAT);
    put_u64le(format + 4, cluster_id);
    put_u64le(format + 12, member_id);
    if ((err = base_row_write(&b, txn, BASE_META, S("format"), format, FORMAT_BYTES, MDB_NOOVERWRITE)) ||
        (err = base_seal_write(&b, txn, &seal)) || (err = base_mark_write(&b, txn, (struct sweep_mark){.upto = -1})))
        goto out;
    err = base_commit(&b, txn, 1);
    txn = NULL;
    if (err == 0 && !o->no_sync)
        err = base_sync_dir(o->path);
out:
    if (txn)
        mdb_txn_abort(txn);
    mdb_env_close(b.env);
    return err;
}

/* LMDB reads through its map: a page that the file does not reach would be SIGBUS. A file may lack its last pages
 * rightly (allocated and given back unwritten in one commit), so it is filled up, and the caller looks closer. */
static int fill_file(struct base *b, bool *ret_was_short)
{
    MDB_envinfo info;
    MDB_stat st;
    struct stat file;
    uint64_t need;
    int fd, rc;

    if ((rc = mdb_env_info(b->env, &info)) || (rc = mdb_env_stat(b->env, &st)) ||
        (rc = mdb_env_get_fd(b->env, &fd)))
        return base_error(rc);
    if (fstat(fd, &file) < 0)
        return -errno;
    if (info.me_last_pgno >= info.me_mapsize / st.ms_psize)
        return -EUCLEAN;
    need = (info.me_last_pgno + 1) * st.ms_psize;
    *ret_was_short = (uint64_t)file.st_size < need;
    if (*ret_was_short && ftruncate(fd, (off_t)need) < 0)
        return -errno;
    return 0;
}

/* LMDB does not say where its map lies, but a row in it does: its page has a number. */
static int find_map(struct base *b, MDB_txn *txn)
{
    MDB_val k = val(S("format")), v;
    MDB_envinfo info;
    MDB_stat st;
    uintptr_t page;
    uint64_t number;
    int rc;

    if ((rc = mdb_env_info(b->env, &info)) || (rc = mdb_env_stat(b->env, &st)) ||
        (rc = mdb_get(txn, b->dbi[BASE_META], &k, &v)))
        return base_error(rc);
    page = (uintptr_t)v.mv_data & ~(uintptr_t)(st.ms_psize - 1);
    number = get_u64le((const uint8_t *)page);
    if (number > info.me_last_pgno)
        return -EUCLEAN;
    b->map = page - number * st.ms_psize;
    b->map_bytes = info.me_mapsize;
    b->page_bytes = st.ms_psize;
    return 0;
}

static int load(struct base *b, bool *ret_was_short)
{
    struct base_meta meta;
    MDB_txn *txn;
    int err = fill_file(b, ret_was_short);

    if (err || (err = base_error(mdb_txn_begin(b->env, NULL, MDB_RDONLY, &txn))))
        return err;
    err = base_tables_open(b, txn, 0);
    if (err == 0)
        err = find_map(b, txn);
    if (err == 0)
        err = base_meta_read(b, txn, &meta, &b->mark, &b->child_next);
    if (err == 0)
        err = base_pages_check(b, txn, false, NULL);
    if (err == 0)
        b->compact_rev = meta.seal.compact_revision;
    /* Committed, not aborted: the handles of the tables stay only so. */
    if (err)
        mdb_txn_abort(txn);
    else
        err = base_error(mdb_txn_commit(txn));
    return err;
}

enum { META_PAGE_SIZE_AT = 40 }; /* of either meta page: a head of 16 bytes, magic, version, address, map size, this */

/* mdb_env_open believes the page size it finds in the newer meta page and looks for the pages where that says they are:
 * a damaged one is SIGBUS. It is this machine's, in both, since base_create. */
static int check_file(const char *path)
{
    const off_t page = sysconf(_SC_PAGESIZE);
    uint32_t size[2] = {0};
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC), err = 0;

    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) < 0)
        err = -errno;
    else if (st.st_size < 2 * page) /* LMDB would make an empty file of it */
        err = -EUCLEAN;
    for (int i = 0; i < 2 && err == 0; i++) {
        if (pread(fd, &size[i], sizeof size[i], i * page + META_PAGE_SIZE_AT) != sizeof size[i])
            err = -EIO;
        else if (size[i] != (uint32_t)page)
            err = -EUCLEAN;
    }
    (void)close(fd); /* nothing was written */
    return err;
}

int base_open(const struct base_options *o, struct base **ret_base)
{
    struct base *b = calloc(1, sizeof *b);
    bool was_short = false;
    char path[4096];
    int err;

    if (b == NULL)
        return -ENOMEM;
    pthread_mutex_init(&b->copy_mu, NULL);
    b->copy_fd = b->copy_dir_fd = -1;
    b->sweep_max.pages = BASE_SWEEP_PAGES;
    b->sweep_max.records = BASE_SWEEP_RECORDS;
    b->sweep_max.victims = BASE_SWEEP_VICTIMS;
    if (snprintf(path, sizeof path, "%s/data.mdb", o->path) >= (int)sizeof path)
        err = -ENAMETOOLONG;
    else
        err = check_file(path);
    if (err == 0)
        err = base_env_open(o, &b->env);
    if (err) {
        free(b);
        return err;
    }
    err = load(b, &was_short);
    if (err == 0 && was_short)
        err = base_check(b, NULL);
    if (err) {
        base_close(b);
        return err;
    }
    *ret_base = b;
    return 0;
}

void base_close(struct base *b)
{
    if (b == NULL)
        return;
    mdb_env_close(b->env);
    pthread_mutex_destroy(&b->copy_mu);
    free(b->round.v);
    free(b);
}

/* ---- housekeeping ---- */

int base_sizes(struct base *b, uint64_t *ret_file_bytes, uint64_t *ret_in_use_bytes)
{
    uint64_t pages = 2; /* LMDB's two meta pages */
    MDB_envinfo info;
    MDB_stat st;
    MDB_txn *txn;
    int rc = mdb_txn_begin(b->env, NULL, MDB_RDONLY, &txn);

    if (rc)
        return base_error(rc);
    for (int t = -1; t < BASE_TABLES && rc == 0; t++) {
        /* -1: the table of tables. What is neither in it nor in a table is LMDB's free list or free. */
        rc = t < 0 ? mdb_env_stat(b->env, &st) : mdb_stat(txn, b->dbi[t], &st);
        if (rc == 0)
            pages += st.ms_branch_pages + st.ms_leaf_pages + st.ms_overflow_pages;
    }
    mdb_txn_abort(txn);
    if (rc || (rc = mdb_env_info(b->env, &info)))
        return base_error(rc);
    *ret_file_bytes = (info.me_last_pgno + 1) * st.ms_psize;
    *ret_in_use_bytes = pages * st.ms_psize;
    return 0;
}

int base_check_readers(struct base *b)
{
    int dead;

    return base_error(mdb_reader_check(b->env, &dead));
}

int base_room(void *array, size_t *cap, size_t need, size_t item)
{
    void **p = array, *q;
    size_t n = *cap ? *cap : 64;

    if (need <= *cap)
        return 0;
    while (n < need)
        n *= 2;
    q = realloc(*p, n * item);
    if (q == NULL)
        return -ENOMEM;
    *p = q;
    *cap = n;
    return 0;
}
