/* SPDX-License-Identifier: Apache-2.0 */
/* ops_create.c - new files: in the overlay, as a key at once (O_EXCL), or once there is data (A.5). */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "ops.h"
#include "overlay.h"

static enum node_kind kind_of_name(const char *name)
{
    return strcmp(name, CODEC_VALUE_NAME) == 0 ? NODE_VALUE : NODE_FILE;
}

/* The error a name deserves that cannot become a key; 0: it can. */
int fs_check_name(const struct fs *fs, const struct node *dir, const char *name, bool is_dir)
{
    uint8_t *key = NULL;
    size_t len;
    int rc = node_child_key(fs->tree, dir, slice_str(name), is_dir, &key, &len);

    free(key);
    return rc == 0 && len == 0 ? EINVAL : -rc;
}

/* ---- in the overlay ------------------------------------------------------------------------ */

static void create_ofile(fuse_req_t req, struct node *dir, const char *name, enum ofile_class class,
                         struct fuse_file_info *fi)
{
    struct fs *fs = req_fs(req);
    struct ofile *f = overlay_create(fs->overlay, dir, name, class);
    struct handle *h = f ? handle_new(fs, NULL, f, fi->flags, fuse_req_ctx(req)->pid, NULL) : NULL;
    struct fuse_entry_param e = {.generation = 1, .entry_timeout = TIMEOUT_S};

    if (h == NULL) {
        if (f)
            overlay_unlink(f);
        (void)fuse_reply_err(req, f ? ENOMEM : ENOSPC);
        return;
    }
    e.ino = f->nodeid;
    ofile_stat(f, &e.attr);
    open_flags(fs, fi, h);
    ofile_lookup(f);
    if (fuse_reply_create(req, &e, fi) != 0) {
        ofile_forget(f, 1);
        handle_free(h);
    }
}

/* ---- in a directory that is there still ---------------------------------------------------------- */

/* It may be here only because a directory in it is just being listed: that one was told to be gone too. What this mount
 * has emptied itself stays without a key. */
static bool has_lost_marker(const struct dir *d)
{
    return d->marker.mod_rev == 0 && d->was_marked && !d->lingers;
}

void make_in_dir(struct op *op, struct txn *t, struct slice key)
{
    uint8_t *marker = NULL, *end = NULL;
    size_t len, end_len;

    if (!op->node->present || has_lost_marker(op->node->dir))
        op->by_any_key = true; /* it has gone, as far as is known here */
    op->dir_compared = op->node->parent && (op->node->dir->marker.mod_rev || op->by_any_key);
    if (!op->dir_compared || node_key(op->fs->tree, op->node, &marker, &len) != 0 ||
        (end = malloc(len + 1)) == NULL) {
        op->dir_compared = false;
    } else if (!op->by_any_key) {
        txn_compare(t, slice_of(marker, len), SLICE_NONE, TXN_CREATE_REV, TXN_GREATER, 0);
        txn_look_on_failure(t, slice_of(marker, len));
    } else {
        end_len = codec_prefix_end(slice_of(marker, len), end); /* of no key at all the server says 0 */
        txn_compare(t, slice_of(marker, len), slice_of(end, end_len), TXN_CREATE_REV, TXN_GREATER, 0);
        txn_look_on_failure(t, key);
    }
    free(marker);
    free(end);
}

/* A compare did not hold: the error, or -1: by any key it may be made yet. */
static int make_refused(struct op *op, const struct txn *t)
{
    if (!op->dir_compared || txn_now_rev(t))
        return EEXIST;
    if (op->by_any_key)
        return tree_child(op->fs->tree, op->node, slice_str(op->name)) ? EEXIST : ENOENT;
    op->by_any_key = true;
    return -1;
}

bool make_failed(struct op *op, const struct txn *t, int err, void (*again)(struct op *op))
{
    if (err == -1)
        err = make_refused(op, t);
    if (err == -1)
        again(op);
    else if (err)
        op_end(op, err);
    return err != 0;
}

void make_shown(struct op *op, void (*done)(struct wait *w, int err))
{
    op->wait = (struct wait){.done = done};
    if (tree_child(op->fs->tree, op->node, slice_str(op->name)) || !op->node->present)
        done(&op->wait, 0);
    else
        tree_enter(op->fs->tree, op->node, &op->wait);
}

/* ---- as a key at once --------------------------------------------------------------------------- */

static void create_exclusive(struct op *op);

static void born_shown(struct wait *w, int err)
{
    struct op *op = (struct op *)((char *)w - offsetof(struct op, wait));
    struct node *n = err == 0 ? tree_child(op->fs->tree, op->node, slice_str(op->name)) : NULL;
    struct handle *h;

    if (n == NULL || n->kind == NODE_DIR) {
        op_end(op, err ? err : ESTALE); /* made, and gone or moved by others since: the kernel looks again */
        return;
    }
    if (op->arg) { /* mknod */
        (void)op_entry(op, n);
        op_free(op);
        return;
    }
    h = handle_new(op->fs, n, NULL, op->fi.flags, op->pid, value_new(SLICE_NONE, &op->made));
    if (h == NULL) {
        op_err(op, ENOMEM);
    } else {
        h->now.whole = true; /* it is ours: what we write replaces the emptiness it was born with */
        h->expected_rev = op->made.mod_rev;
        open_flags(op->fs, &op->fi, h);
        if (!op_create(op, n, &op->fi))
            handle_free(h);
    }
    op_free(op);
}

static void born_done(struct txn *t, void *arg, int err)
{
    struct op *op = arg;

    if (make_failed(op, t, err, create_exclusive))
        return;
    op->made = txn_put_meta(t, 0) ? *txn_put_meta(t, 0) : (struct key_meta){.mod_rev = txn_rev(t)};
    make_shown(op, born_shown);
}

static void create_exclusive(struct op *op)
{
    struct fs *fs = op->fs;
    int over = op_is_over(op);
    struct txn *t = over ? NULL : txn_new(fs, born_done, op);
    struct value *empty = value_new(SLICE_NONE, &(struct key_meta){0});
    uint8_t *key = NULL;
    size_t len = 0;

    if (t == NULL || empty == NULL ||
        node_child_key(fs->tree, op->node, slice_str(op->name), false, &key, &len) != 0) {
        txn_cancel(t);
        op_end(op, over ? over : ENOMEM);
    } else {
        txn_compare(t, slice_of(key, len), SLICE_NONE, TXN_CREATE_REV, TXN_EQUAL, 0);
        txn_put(t, slice_of(key, len), empty, 0);
        make_in_dir(op, t, slice_of(key, len));
        txn_exclusive(t);
        keep_new_file(fs->keeper, op->node, t);
        txn_run(t);
    }
    value_unref(empty);
    free(key);
}

/* ---- once there is data ---------------------------------------------------------------------------- */

static void create_unborn(struct op *op)
{
    struct fs *fs = op->fs;
    struct node *n = tree_ghost(fs->tree, op->node, slice_str(op->name), kind_of_name(op->name));
    struct handle *h = n ? handle_new(fs, n, NULL, op->fi.flags, op->pid, NULL) : NULL;

    if (h == NULL) {
        op_end(op, ENOMEM);
        return;
    }
    h->expected_rev = seen_rev(fs, n, op->pid, n->present ? n->meta.mod_rev : 0);
    if (!n->present)
        handle_set_unborn(h);
    if (!(op->fi.flags & O_APPEND) || op->fi.flags & O_TRUNC)
        (void)handle_truncate(h, 0); /* needs no memory it has not got */
    else
        h->mark = true;
    open_flags(fs, &op->fi, h);
    if (!op_create(op, n, &op->fi)) {
        h->data = h->mark = false; /* the caller never had it */
        handle_free(h);
    }
    op_free(op);
}

static void create_passed(struct gate *g, int err)
{
    struct op *op = (struct op *)((char *)g - offsetof(struct op, gate));

    if (err)
        op_end(op, err);
    else
        create_unborn(op);
}

static void create_open_done(struct wait *w, int err)
{
    struct op *op = (struct op *)((char *)w - offsetof(struct op, wait));
    struct handle *h = err ? NULL : handle_new(op->fs, op->node2, NULL, op->fi.flags, op->pid, w->value);

    if (h == NULL) {
        op_err(op, err ? err : ENOMEM);
    } else {
        open_flags(op->fs, &op->fi, h);
        if (!op_create(op, op->node2, &op->fi))
            handle_free(h);
    }
    op_free(op);
}

/* The name exists after all (it appeared between the kernel's LOOKUP and this), and that is all right: an
 * open. */
static void create_existing(struct op *op, struct node *n)
{
    overlay_limbo_end(n); /* the editor saves under the old name: a modification, not a new file */
    if (op->fi.flags & O_TRUNC || !n->present) {
        create_unborn(op);
        return;
    }
    op->node2 = node_ref(n);
    op->wait.done = create_open_done;
    tree_open_read(op->fs->tree, n, &op->wait);
}

/* ---- the choice
 * ------------------------------------------------------------------------------------------ */

/* Which class of overlay file this creation is, if any. A key of that name is a key. */
static bool belongs_to_overlay(const struct fs *fs, const char *name, mode_t mode, int flags,
                               enum ofile_class *ret_class)
{
    if (!fs->opt.overlay)
        return false;
    *ret_class = OFILE_EDITOR;
    if (overlay_is_editors(name))
        return true;
    *ret_class = OFILE_TEMPORARY;
    /* rsync makes that of an executable with 0700. */
    return flags & O_EXCL && (mode & 0677) == 0600 && overlay_is_temporary_shape(name);
}

/* vim tries whether it may create files here; told no, it writes in place, which keeps the key. */
static bool is_vims_probe(const struct fs *fs, const char *name, int flags)
{
    return fs->opt.overlay && strcmp(name, "4913") == 0 && flags & O_EXCL && flags & O_NOFOLLOW;
}

void fs_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
    struct fs *fs = req_fs(req);
    struct client_health health;
    enum ofile_class class;
    struct node *dir, *there;
    struct ofile *f;
    struct op *op;
    int err;

    if (control_owns(parent)) {
        control_create(req, parent, name, fi);
        return;
    }
    dir = req_dir(req, parent);
    if (dir == NULL || inject_make(req, dir, name, fi))
        return;
    there = fs_child(fs, dir, name, &f);
    if (there == NULL && tree_child(fs->tree, dir, slice_str(name)))
        there = tree_child(fs->tree, dir, slice_str(name)); /* in limbo */
    err = is_vims_probe(fs, name, fi->flags) ? EACCES : fs_may_change(fs);
    if (err == 0)
        err = fs_check_name(fs, dir, name, false);
    if (err == 0 && there && fi->flags & O_EXCL && node_visible(there))
        err = EEXIST;
    if (err == 0 && there && there->kind == NODE_DIR)
        err = EISDIR;
    if (err == 0 && f)
        err = EEXIST; /* the kernel asks again and opens it */
    if (err) {
        (void)fuse_reply_err(req, err);
        return;
    }
    if (there == NULL && belongs_to_overlay(fs, name, mode, fi->flags, &class)) {
        create_ofile(req, dir, name, class, fi);
        return;
    }
    op = op_new(req, dir, name);
    if (op == NULL)
        return;
    op->fi = *fi;
    client_get_health(fs->client, &health);
    if (there) {
        create_existing(op, there);
    } else if (fi->flags & O_EXCL) {
        op_after_move(op, create_exclusive);
    } else if (health.in_doubt) {
        op->gate = (struct gate){.fs = fs, .done = create_passed};
        gate_pass(&op->gate, false);
    } else
        create_unborn(op);
}

void fs_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
    struct fs *fs = req_fs(req);
    struct node *dir;
    struct ofile *f;
    struct op *op;
    int err;

    (void)rdev;
    dir = req_dir(req, parent);
    if (dir == NULL || inject_make(req, dir, name, NULL))
        return;
    err = !S_ISREG(mode) ? EPERM : fs_may_change(fs);
    if (err == 0)
        err = fs_check_name(fs, dir, name, false);
    if (err == 0 && (fs_child(fs, dir, name, &f) || f))
        err = EEXIST;
    if (err) {
        (void)fuse_reply_err(req, err);
        return;
    }
    op = op_new(req, dir, name);
    if (op == NULL)
        return;
    op->arg = 1;
    op_after_move(op, create_exclusive);
}

void fs_symlink(fuse_req_t req, const char *link, fuse_ino_t parent, const char *name)
{
    (void)link, (void)parent, (void)name;
    (void)fuse_reply_err(req, EPERM); /* keys have no type */
}

void fs_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname)
{
    (void)ino, (void)newparent, (void)newname;
    (void)fuse_reply_err(req, EPERM);
}
