/* SPDX-License-Identifier: Apache-2.0 */
/* ops_dir.c - listing directories, making and removing names (A.3).
 *
 * The snapshot of a listing is taken at READDIR offset 0, never at OPENDIR: the kernel asks for the
 * directory's mtime in between and ties its own cache of the listing to it (B.3). But when the kernel has
 * served the beginning from that cache and lost the rest, the first READDIR of a handle has another offset;
 * then the snapshot is taken there.
 *
 * Hence offsets name entries, not positions: 1 ".", 2 "..", then nodeid + 2, in whose order a snapshot is.
 * They mean the same in every snapshot, so a listing that goes on in a later one misses no name that stayed
 * and has none twice.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "codec.h"
#include "ops.h"
#include "overlay.h"

struct shown {
    uint64_t ino;
    mode_t type;
    char *name; /* in the listing, or owned: see own */
    bool own;
    off_t off; /* its offset: where the listing goes on after it */
};

struct dir_handle {
    struct fs *fs;
    struct node *dir;
    struct listing listing;
    struct shown *shown;
    uint32_t n;
    bool taken;          /* there is a snapshot */
    bool busy, released; /* a READDIR waits; the kernel has let go */
};

/* ---- the snapshot ------------------------------------------------------------------------------ */

static void snapshot_drop(struct dir_handle *d)
{
    for (uint32_t i = 0; i < d->n; i++)
        if (d->shown[i].own)
            free(d->shown[i].name);
    free(d->shown);
    listing_fini(&d->listing);
    d->shown = NULL;
    d->listing = (struct listing){0};
    d->n = 0;
    d->taken = false;
}

static void dir_handle_free(struct dir_handle *d)
{
    snapshot_drop(d);
    node_unref(d->fs->tree, d->dir);
    free(d);
}

static off_t offset_of(uint64_t nodeid)
{
    return (off_t)nodeid +
           2; /* below 2^63: the overlay's ids are above the tree's, and .etcd is not listed */
}

static void snapshot_add(struct dir_handle *d, uint64_t nodeid, uint64_t ino, const char *name)
{
    char *copy = strdup(name);

    if (copy) /* without memory one name is missing from one listing of what only we see */
        d->shown[d->n++] = (struct shown){ino, S_IFREG, copy, true, offset_of(nodeid)};
}

/* How many names only this mount has in the directory, at most. */
static size_t count_local(const struct dir_handle *d)
{
    size_t n = d->fs->n_unborn;

    for (const struct ofile *f = overlay_first(d->fs->overlay); f; f = f->next)
        n += f->linked && f->dir == d->dir;
    return n;
}

static void add_local(struct dir_handle *d)
{
    struct ofile *there;

    for (const struct ofile *f = overlay_first(d->fs->overlay); f; f = f->next)
        if (f->linked && f->dir == d->dir && fs_child(d->fs, d->dir, f->name, &there) == NULL)
            snapshot_add(d, f->nodeid, f->ino, f->name);
    for (const struct handle *h = d->fs->n_unborn ? d->fs->handles : NULL; h; h = h->next)
        if (h->unborn && h->node->parent == d->dir && !h->node->present &&
            h == file_state_if(h->node)->handles)
            snapshot_add(d, h->node->nodeid, h->node->ino, h->node->name);
}

static int by_offset(const void *a, const void *b)
{
    off_t x = ((const struct shown *)a)->off, y = ((const struct shown *)b)->off;

    return (x > y) - (x < y);
}

static int snapshot_take(struct dir_handle *d)
{
    struct fs *fs = d->fs;
    int rc;

    snapshot_drop(d);
    rc = tree_list(fs->tree, d->dir, &d->listing);
    if (rc)
        return -rc;
    d->shown = calloc(d->listing.n + count_local(d) + 1, sizeof *d->shown);
    if (d->shown == NULL)
        return ENOMEM;
    for (uint32_t i = 0; i < d->listing.n; i++) {
        const struct list_entry *e = &d->listing.entries[i];
        const struct node *n = tree_node(fs->tree, e->nodeid);

        if (n == NULL || node_visible(n)) /* not in limbo */
            d->shown[d->n++] = (struct shown){e->ino, e->kind == NODE_DIR ? S_IFDIR : S_IFREG, e->name, false,
                                              offset_of(e->nodeid)};
    }
    add_local(d);
    qsort(d->shown, d->n, sizeof *d->shown, by_offset);
    d->taken = true;
    return 0;
}

/* ---- opendir, readdir, releasedir ------------------------------------------------------------------ */

void fs_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct dir_handle *d;
    struct node *n;

    if (control_owns(ino)) {
        control_opendir(req, ino, fi);
        return;
    }
    n = req_dir(req, ino);
    if (n == NULL)
        return;
    d = calloc(1, sizeof *d);
    if (d == NULL) {
        (void)fuse_reply_err(req, ENOMEM);
        return;
    }
    d->fs = req_fs(req);
    d->dir = node_ref(n);
    fi->fh = (uintptr_t)d;
    fi->cache_readdir = 1;
    fi->keep_cache = 1;
    if (fuse_reply_open(req, fi) != 0)
        dir_handle_free(d);
}

/* Where the listing goes on after off: 0 ".", 1 "..", then the snapshot's entries. */
static size_t place_after(const struct dir_handle *d, off_t off)
{
    size_t lo = 0, hi = d->n;

    if (off < 2)
        return (size_t)off;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;

        if (d->shown[mid].off <= off)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo + 2;
}

static void reply_listing(fuse_req_t req, const struct dir_handle *d, size_t size, off_t off)
{
    char *buf = malloc(size);
    size_t used = 0;

    if (buf == NULL) {
        (void)fuse_reply_err(req, ENOMEM);
        return;
    }
    for (size_t i = place_after(d, off); i < d->n + 2u; i++) {
        const struct shown *s = i < 2 ? NULL : &d->shown[i - 2];
        const struct node *dot = i == 1 && d->dir->parent ? d->dir->parent : d->dir;
        struct stat st = {.st_ino = s ? s->ino : dot->ino, .st_mode = s ? s->type : S_IFDIR};
        const char *name = s ? s->name : i == 0 ? "." : "..";
        off_t next = s ? s->off : (off_t)i + 1;
        size_t len = fuse_add_direntry(req, buf + used, size - used, name, &st, next);

        if (len > size - used)
            break;
        used += len;
    }
    (void)fuse_reply_buf(req, buf, used);
    free(buf);
}

static void entered(struct wait *w, int err)
{
    struct op *op = (struct op *)((char *)w - offsetof(struct op, wait));
    struct dir_handle *d = (struct dir_handle *)(uintptr_t)op->arg;
    fuse_req_t req;

    d->busy = false;
    if (d->released) { /* interrupted, and closed since */
        dir_handle_free(d);
        op_end(op, EINTR);
        return;
    }
    if (err == 0)
        err = snapshot_take(d);
    req = err ? NULL : op_take(op);
    if (req)
        reply_listing(req, d, op->size, op->off);
    else
        op_err(op, err);
    op_free(op);
}

void fs_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    struct dir_handle *d = (struct dir_handle *)(uintptr_t)fi->fh;
    struct op *op;

    if (control_owns(ino)) {
        control_readdir(req, ino, size, off, fi);
        return;
    }
    if (off != 0 && d->taken) {
        reply_listing(req, d, size, off);
        return;
    }
    op = op_new(req, d->dir, NULL);
    if (op == NULL)
        return;
    op->size = size;
    op->off = off;
    op->arg = (uintptr_t)d;
    op->wait.done = entered;
    d->busy = true;
    tree_enter(d->fs->tree, d->dir, &op->wait);
}

void fs_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct dir_handle *d = (struct dir_handle *)(uintptr_t)fi->fh;

    if (control_owns(ino)) {
        control_releasedir(req, ino, fi);
        return;
    }
    (void)fuse_reply_err(req, 0);
    d->released = true;
    if (!d->busy)
        dir_handle_free(d);
}

void fs_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    (void)ino, (void)datasync, (void)fi;
    (void)fuse_reply_err(req, 0); /* names are in the store before their call returns */
}

/* ---- mkdir ------------------------------------------------------------------------------------------- */

static void remember_made(struct fs *fs, const struct node *n, pid_t tid)
{
    fs->made[fs->n_made++ % DIRS_MADE] = (struct made_dir){n->nodeid, tid};
}

bool fs_made_dir(const struct fs *fs, const struct node *n, pid_t tid)
{
    for (size_t i = 0; i < DIRS_MADE; i++)
        if (fs->made[i].nodeid == n->nodeid && fs->made[i].tid == tid)
            return true;
    return false;
}

static void mkdir_start(struct op *op);

static void mkdir_shown(struct wait *w, int err)
{
    struct op *op = (struct op *)((char *)w - offsetof(struct op, wait));
    struct node *n = err == 0 ? tree_child(op->fs->tree, op->node, slice_str(op->name)) : NULL;

    if (n) {
        remember_made(op->fs, n, op->pid);
        (void)op_entry(op, n);
    } else
        op_err(op, err ? err : ESTALE); /* made, and gone or moved by others since: the kernel looks again */
    op_free(op);
}

static void mkdir_done(struct txn *t, void *arg, int err)
{
    struct op *op = arg;

    if (!make_failed(op, t, err, mkdir_start))
        make_shown(op, mkdir_shown);
}

/* Neither the file's key nor anything below the directory's may exist. */
static void mkdir_start(struct op *op)
{
    struct fs *fs = op->fs;
    int over = op_is_over(op);
    struct txn *t = over ? NULL : txn_new(fs, mkdir_done, op);
    struct value *empty = value_new(SLICE_NONE, &(struct key_meta){0});
    uint8_t *key = NULL, *end = NULL;
    size_t len = 0;

    if (t == NULL || empty == NULL || node_child_key(fs->tree, op->node, slice_str(op->name), true, &key, &len) != 0 ||
        (end = malloc(len + 1)) == NULL) {
        txn_cancel(t);
        op_end(op, over ? over : ENOMEM);
    } else {
        struct slice marker = slice_of(key, len);
        size_t end_len = codec_prefix_end(marker, end);

        txn_compare(t, slice_of(marker.ptr, marker.len - 1), SLICE_NONE, TXN_CREATE_REV, TXN_EQUAL, 0);
        txn_compare(t, marker, slice_of(end, end_len), TXN_CREATE_REV, TXN_EQUAL, 0);
        txn_put(t, marker, empty, 0);
        make_in_dir(op, t, marker);
        txn_exclusive(t);
        txn_run(t);
    }
    value_unref(empty);
    free(key);
    free(end);
}

void fs_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    struct fs *fs = req_fs(req);
    struct node *dir, *n;
    struct ofile *f;
    struct op *op;
    int err;

    (void)mode;
    dir = req_dir(req, parent);
    if (dir == NULL || inject_make(req, dir, name, NULL))
        return;
    err = fs_may_change(fs);
    if (err == 0)
        err = fs_check_name(fs, dir, name, true);
    if (err == 0 && strcmp(name, CODEC_VALUE_NAME) == 0)
        err = EPERM;
    if (err == 0 && (fs_child(fs, dir, name, &f) || f))
        err = EEXIST;
    if (err == 0 && !fs->opt.dirmarkers) {
        n = tree_mkdir_local(fs->tree, dir, slice_str(name));
        if (n) {
            remember_made(fs, n, fuse_req_ctx(req)->pid);
            (void)reply_entry(req, n, TIMEOUT_S);
        }
        err = n ? 0 : ENOMEM;
    } else if (err == 0) {
        op = op_new(req, dir, name);
        if (op)
            op_after_move(op, mkdir_start);
    }
    if (err)
        (void)fuse_reply_err(req, err);
}

/* ---- rmdir -------------------------------------------------------------------------------------------- */

static void rmdir_start(struct op *op, int64_t known_rev);

static void rmdir_done(struct txn *t, void *arg, int err)
{
    struct op *op = arg;

    if (err == -1 && op->off && txn_now_rev(t) != op->off) { /* the marker is not what it was: whatever it is now */
        rmdir_start(op, 0);
        return;
    }
    if (err == 0)
        tree_rmdir(op->fs->tree, op->node, txn_rev(t));
    op_end(op, err == -1 ? ENOTEMPTY : err);
}

/* Never recursive: the marker goes only if no key but it begins with the directory's name and a slash. known_rev: of
 * the marker, so that it can be sent again if its outcome stays unknown; 0: as it is. */
static void rmdir_start(struct op *op, int64_t known_rev)
{
    struct fs *fs = op->fs;
    struct txn *t = txn_new(fs, rmdir_done, op);
    uint8_t *key = NULL, *from = NULL, *end = NULL;
    size_t len = 0, end_len;

    if (t == NULL || node_key(fs->tree, op->node, &key, &len) != 0 || (from = malloc(len + 1)) == NULL ||
        (end = malloc(len + 1)) == NULL) {
        txn_cancel(t);
        op_end(op, ENOMEM);
    } else {
        memcpy(from, key, len);
        from[len] = 0;
        end_len = codec_prefix_end(slice_of(key, len), end);
        txn_compare(t, slice_of(from, len + 1), slice_of(end, end_len), TXN_CREATE_REV, TXN_EQUAL, 0);
        if (known_rev)
            txn_compare(t, slice_of(key, len), SLICE_NONE, TXN_MOD_REV, TXN_EQUAL, known_rev);
        txn_delete(t, slice_of(key, len));
        txn_look_on_failure(t, slice_of(key, len));
        op->off = known_rev;
        txn_run(t);
    }
    free(key);
    free(from);
    free(end);
}

static void rmdir_resume(struct op *op)
{
    int over = op_is_over(op);

    if (over)
        op_end(op, over);
    else
        rmdir_start(op, op->node->dir->marker.mod_rev);
}

void fs_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fs *fs = req_fs(req);
    struct node *dir, *n;
    struct op *op;
    int err;

    dir = req_dir(req, parent);
    if (dir == NULL || inject_remove(req, dir, name))
        return;
    n = tree_child(fs->tree, dir, slice_str(name));
    err = n == NULL ? ENOENT : n->kind != NODE_DIR ? ENOTDIR : fs_may_change(fs);
    if (err == 0 && overlay_in_dir(fs->overlay, n))
        err = ENOTEMPTY;
    if (err) {
        (void)fuse_reply_err(req, err);
        return;
    }
    op = op_new(req, n, NULL);
    if (op)
        op_after_move(op, rmdir_resume);
}

/* ---- unlink
 * ---------------------------------------------------------------------------------------------- */

static void unlink_run(struct op *op, int64_t known_rev);

static void unlink_done(struct txn *t, void *arg, int err)
{
    struct op *op = arg;

    (void)t;
    if (err == -1 && op->off == 0) { /* it is gone, or was changed: whatever it is now */
        op->off = 1;
        unlink_run(op, 0);
        return;
    }
    if (err == 0)
        handles_orphan(op->node);
    op_end(op, err == -1 ? ENOENT : err);
}

/* known_rev: so that it can be sent again if its outcome stays unknown; 0: it is deleted as it is. */
static void unlink_run(struct op *op, int64_t known_rev)
{
    struct fs *fs = op->fs;
    struct txn *t = txn_new(fs, unlink_done, op);
    uint8_t *key = NULL;
    size_t len = 0;

    if (t == NULL || node_key(fs->tree, op->node, &key, &len) != 0) {
        txn_cancel(t);
        op_end(op, ENOMEM);
        return;
    }
    if (known_rev)
        txn_compare(t, slice_of(key, len), SLICE_NONE, TXN_MOD_REV, TXN_EQUAL, known_rev);
    else
        txn_compare(t, slice_of(key, len), SLICE_NONE, TXN_CREATE_REV, TXN_GREATER, 0);
    txn_delete(t, slice_of(key, len));
    txn_run(t);
    free(key);
}

static void unlink_resume(struct op *op)
{
    int over = op_is_over(op);

    if (over) {
        op_end(op, over);
        return;
    }
    if (!op->node->present) { /* only being created, by handles here: they publish nothing any more */
        int err = node_visible(op->node) ? 0 : ENOENT;

        handles_orphan(op->node);
        op_end(op, err);
        return;
    }
    unlink_run(op, op->node->meta.mod_rev);
}

static void unlink_released(struct op *op)
{
    op_after_move(op, unlink_resume);
}

void fs_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fs *fs = req_fs(req);
    struct node *dir, *n;
    struct ofile *f;
    struct op *op;
    int err;

    if (control_owns(parent)) {
        control_unlink(req, parent, name);
        return;
    }
    dir = req_dir(req, parent);
    if (dir == NULL || inject_remove(req, dir, name))
        return;
    n = fs_child(fs, dir, name, &f);
    if (f) {
        overlay_unlink(f);
        (void)fuse_reply_err(req, 0);
        return;
    }
    err = n == NULL ? ENOENT : n->kind == NODE_DIR ? EISDIR : fs_may_change(fs);
    if (err) {
        (void)fuse_reply_err(req, err);
        return;
    }
    op = op_new(req, n, NULL);
    if (op)
        op_after_release(op, n, unlink_released);
}
