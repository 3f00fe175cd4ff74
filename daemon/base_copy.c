/* SPDX-License-Identifier: Apache-2.0 */
/* base_copy.c - base written anew, compacted: a defragmentation; and the end of an import, which is such a file too.
 *
 * Owner: the flush thread; base_copy_give_up any. */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#include "base_db.h"

/* LMDB numbers the copy's transactions from 1 again: the "commit" row is written anew, in a commit of its own. */
static int copy_finish(const struct base_options *o)
{
    struct base b = {0};
    uint8_t rows[8 * BASE_META];
    struct slice commit;
    MDB_txn *txn = NULL;
    int err = base_env_open(o, &b.env);

    if (err)
        return err;
    if ((err = base_error(mdb_txn_begin(b.env, NULL, 0, &txn))) || (err = base_tables_open(&b, txn, 0)) ||
        (err = base_meta_row(&b, txn, S("commit"), BASE_COMMIT_BYTES, &commit)) || (err = base_count_rows(&b, txn, rows)))
        goto out;
    err = -EUCLEAN;
    if (memcmp(commit.ptr + 16, rows, sizeof rows))
        goto out;
    err = base_commit(&b, txn, get_u64le(commit.ptr + 8));
    txn = NULL;
out:
    if (txn)
        mdb_txn_abort(txn);
    mdb_env_close(b.env);
    return err;
}

/* Tells who may give the copy up where it is written; -1: nowhere any more. False: it has been given up. */
static bool copy_note(struct base *b, int fd, int dir_fd)
{
    bool go;

    pthread_mutex_lock(&b->copy_mu);
    b->copy_fd = fd;
    b->copy_dir_fd = dir_fd;
    go = !b->copy_given_up;
    pthread_mutex_unlock(&b->copy_mu);
    return go;
}

/* LMDB has no way to end a copy, but it ends at the first write that fails: its descriptor becomes one of the
 * directory, which nobody can write to. */
void base_copy_give_up(struct base *b)
{
    pthread_mutex_lock(&b->copy_mu);
    if (!b->copy_given_up && b->copy_fd >= 0)
        (void)dup3(b->copy_dir_fd, b->copy_fd, O_CLOEXEC); /* else the copy is made, and dropped then */
    b->copy_given_up = true;
    pthread_mutex_unlock(&b->copy_mu);
}

/* The pages in use, in order. */
static int copy_pages(struct base *b, const char *path)
{
    int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), fd, err = 0;

    if (dir < 0)
        return -errno;
    fd = openat(dir, "data.mdb", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        err = -errno;
        (void)close(dir); /* read only */
        return err;
    }
    /* Where it can be: nothing of it needs the page cache, and there is little left to sync at the end. */
    (void)fcntl(fd, F_SETFL, O_DIRECT);
    if (copy_note(b, fd, dir))
        err = base_error(mdb_env_copyfd2(b->env, fd, MDB_CP_COMPACT));
    if (!copy_note(b, -1, -1))
        err = -ECANCELED;
    if (close(fd) < 0 && err == 0)
        err = -errno;
    (void)close(dir);
    return err;
}

/* What was just copied is read once, piece by piece: else each of the first reads of the new base would wait for the
 * disk, apply's among them, and every put behind it. Best effort: an error is met again by who needs the page. */
static void copy_warm(const char *path)
{
    enum { PIECE_BYTES = 256 << 10 };
    int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = dir < 0 ? -1 : openat(dir, "data.mdb", O_RDONLY | O_CLOEXEC);
    void *piece = malloc(PIECE_BYTES);

    while (piece && fd >= 0 && read(fd, piece, PIECE_BYTES) > 0)
        ;
    free(piece);
    if (fd >= 0)
        (void)close(fd); /* read only, as the next */
    if (dir >= 0)
        (void)close(dir);
}

int base_copy(struct base *b, const char *path)
{
    struct base_options o = {.path = path, .readers_max = 2};
    MDB_envinfo info;
    int err;

    if ((err = base_error(mdb_env_info(b->env, &info))) || (err = copy_pages(b, path)))
        return err;
    o.map_bytes = info.me_mapsize;
    copy_warm(path);
    err = copy_finish(&o);
    return err ? err : base_sync_dir(path);
}

int base_import_end(struct base *b, const char *path, struct rev swept, int64_t swept_upto)
{
    MDB_txn *txn;
    int err = base_error(mdb_txn_begin(b->env, NULL, 0, &txn));

    if (err)
        return err;
    err = base_mark_write(b, txn, (struct sweep_mark){swept, swept_upto});
    if (err)
        mdb_txn_abort(txn);
    else
        err = base_commit(b, txn, b->child_next);
    if (err == 0)
        err = base_error(mdb_env_sync(b->env, 1));
    return err ? err : base_sync_dir(path);
}
