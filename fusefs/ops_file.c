/* SPDX-License-Identifier: Apache-2.0 */
/* ops_file.c - open, read, write, close (A.4, A.5). Creating is in ops_create.c. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "ops.h"
#include "overlay.h"

static struct op *op_of_wait(struct wait *w)
{
    return (struct op *)((char *)w - offsetof(struct op, wait));
}

static struct op *op_of_gate(struct gate *g)
{
    return (struct op *)((char *)g - offsetof(struct op, gate));
}

static struct op *op_of_commit(struct commit_wait *w)
{
    return (struct op *)((char *)w - offsetof(struct op, commit));
}

static struct handle *handle_of(const struct fuse_file_info *fi)
{
    return (struct handle *)(uintptr_t)fi->fh;
}

/* ---- open ---------------------------------------------------------------------------------- */

/* Pages and size belong to the inode, not to the handle, and a handle pinned to an old revision would fill
 * the cache for every later reader: so all I/O is direct, but for the option that gives up pinning. */
void open_flags(const struct fs *fs, struct fuse_file_info *fi, const struct handle *h)
{
    fi->fh = (uintptr_t)h;
    fi->direct_io = !fs->opt.cached || h->writable;
    fi->noflush = !h->writable;
    fi->keep_cache = 0;
}

/* With `cached`: pages of the revision the kernel was last given may stay. */
static void open_cached(struct fuse_file_info *fi, struct handle *h)
{
    int64_t rev = h->pin ? h->pin->meta.mod_rev : 0;

    h->cached = true;
    fi->keep_cache = h->node->notified_rev == (uint64_t)rev;
    h->node->notified_rev = (uint64_t)rev;
}

static void open_resume(struct op *op);

static void open_finish(struct op *op, struct handle *h)
{
    if (h == NULL) {
        op_end(op, ENOMEM);
        return;
    }
    open_flags(op->fs, &op->fi, h);
    if (op->fs->opt.cached && !h->writable && h->node)
        open_cached(&op->fi, h);
    if (!op_open(op, &op->fi))
        handle_free(h);
    op_free(op);
}

static void open_read_done(struct wait *w, int err)
{
    struct op *op = op_of_wait(w);
    struct fs *fs = op->fs;
    bool writable = (op->fi.flags & O_ACCMODE) != O_RDONLY;
    struct handle *h;

    if (err) {
        op_end(op, err == ETIMEDOUT && writable ? EROFS : err);
        return;
    }
    if (w->moved)
        notify_attributes(fs->notify, op->node->nodeid); /* before the answer: fstat must fit what is read */
    if ((op->fi.flags & O_ACCMODE) != O_WRONLY && w->value)
        seen_note(fs, op->node, op->pid, w->value->meta.mod_rev);
    h = handle_new(fs, op->node, NULL, op->fi.flags, op->pid, w->value);
    if (h && writable)
        h->expected_rev = seen_rev(fs, op->node, op->pid, h->expected_rev);
    open_finish(op, h);
}

/* The old value is of no interest; nothing is published before there is new data, or the handle is
 * released. */
static void open_truncated(struct op *op)
{
    struct handle *h = handle_new(op->fs, op->node, NULL, op->fi.flags, op->pid, NULL);

    if (h) {
        h->expected_rev =
            seen_rev(op->fs, op->node, op->pid, op->node->present ? op->node->meta.mod_rev : 0);
        if (!op->node->present)
            handle_set_unborn(h);
        (void)handle_truncate(h, 0); /* needs no memory it has not got */
    }
    open_finish(op, h);
}

static void open_truncated_gate(struct gate *g, int err)
{
    struct op *op = op_of_gate(g);

    if (err == 0) {
        open_truncated(op);
        return;
    }
    op_end(op, err);
}

/* A file that another handle here is creating: empty so far. */
static void open_unborn(struct op *op)
{
    struct value *empty = value_new(SLICE_NONE, &(struct key_meta){0});
    bool writable = (op->fi.flags & O_ACCMODE) != O_RDONLY;
    struct handle *h;

    if (writable) {
        value_unref(empty);
        h = handle_new(op->fs, op->node, NULL, op->fi.flags, op->pid, NULL);
        if (h)
            handle_set_unborn(h);
    } else
        h = handle_new(op->fs, op->node, NULL, op->fi.flags, op->pid, empty);
    open_finish(op, h);
}

static void unborn_fire(struct timer *t)
{
    open_resume((struct op *)((char *)t - offsetof(struct op, timer)));
}

/* A reader in another process than the one that is creating the file: most likely its value comes in a
 * moment, and is the first that anybody should see. A file that is merely kept open for long is shown
 * empty, as anywhere. */
static bool open_waits_for_birth(struct op *op)
{
    if ((op->fi.flags & O_ACCMODE) != O_RDONLY || handle_of_writer(op->node, op->pid))
        return false;
    if (op->arg == 0)
        op->arg = session_now_ms() + UNBORN_WAIT_MS;
    if (session_now_ms() >= op->arg)
        return false;
    op->timer.fire = unborn_fire;
    session_timer_set(&op->fs->session, &op->timer, UNBORN_LOOK_MS);
    return true;
}

static void open_resume(struct op *op)
{
    struct fs *fs = op->fs;
    bool writable = (op->fi.flags & O_ACCMODE) != O_RDONLY;
    struct client_health health;

    if (!op->node->present && node_visible(op->node) && open_waits_for_birth(op))
        return;
    if (!op->node->present && node_visible(op->node) && !(op->fi.flags & O_TRUNC)) {
        open_unborn(op);
    } else if (writable && (op->fi.flags & O_TRUNC) && node_visible(op->node)) {
        client_get_health(fs->client, &health);
        op->gate = (struct gate){.fs = fs, .done = open_truncated_gate};
        if (health.in_doubt)
            gate_pass(&op->gate, false);
        else
            open_truncated(op);
    } else {
        op->wait.done = open_read_done;
        if (writable)
            op_read_for_change(op, open_read_done);
        else if (fs->opt.cached)
            tree_open_cached(fs->tree, op->node, &op->wait);
        else
            tree_open_read(fs->tree, op->node, &op->wait);
    }
}

static void open_ofile(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fs *fs = req_fs(req);
    struct ofile *f = overlay_by_id(fs->overlay, ino);
    struct handle *h;

    if (f == NULL || !f->linked) { /* it has become a key, or is gone: the kernel looks the name up afresh */
        (void)fuse_reply_err(req, ESTALE);
        return;
    }
    h = handle_new(fs, NULL, f, fi->flags, fuse_req_ctx(req)->pid, NULL);
    if (h == NULL) {
        (void)fuse_reply_err(req, ENOMEM);
        return;
    }
    if (fi->flags & O_TRUNC)
        (void)ofile_truncate(f, 0); /* shrinking needs no memory */
    open_flags(fs, fi, h);
    if (fuse_reply_open(req, fi) != 0)
        handle_free(h);
}

void fs_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fs *fs = req_fs(req);
    struct node *n;
    struct op *op;

    if (control_owns(ino)) {
        control_open(req, ino, fi);
        return;
    }
    if (overlay_owns(ino)) {
        open_ofile(req, ino, fi);
        return;
    }
    n = req_node(req, ino);
    if (n == NULL || inject_open(req, n, fi))
        return;
    if ((fi->flags & O_ACCMODE) != O_RDONLY && fs_may_change(fs)) {
        (void)fuse_reply_err(req, EROFS);
        return;
    }
    op = op_new(req, n, NULL);
    if (op == NULL)
        return;
    op->fi = *fi;
    op_after_release(op, n, open_resume);
}

/* ---- read ------------------------------------------------------------------------------------ */

static void reply_bytes(fuse_req_t req, const struct handle *h, off_t off, size_t size)
{
    size_t len;
    const uint8_t *p = handle_read(h, (size_t)off, size, &len);

    (void)fuse_reply_buf(req, (const char *)p, len);
}

static void linear_done(struct wait *w, int err)
{
    struct op *op = op_of_wait(w);
    struct handle *h = op->handle;
    fuse_req_t req = err ? NULL : op_take(op);

    if (req) {
        value_unref(h->pin);
        h->pin = w->value;
        if (w->value)
            seen_note(op->fs, op->node, op->pid, w->value->meta.mod_rev);
        if (w->moved)
            notify_attributes(op->fs->notify, op->node->nodeid);
        reply_bytes(req, h, op->off, op->size);
    } else if (err == 0)
        value_unref(w->value); /* interrupted: the handle may be gone */
    else
        op_err(op, err);
    op_free(op);
}

void fs_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    struct fs *fs = req_fs(req);
    struct handle *h = handle_of(fi);
    struct op *op;

    if (control_owns(ino)) {
        control_read(req, ino, size, off, fi);
        return;
    }
    if (h == NULL) {
        (void)fuse_reply_err(req, EBADF); /* an injector's dummy */
        return;
    }
    if (!fs->opt.linear || h->node == NULL || h->has_buf || !h->node->present) {
        reply_bytes(req, h, off, size);
        return;
    }
    op = op_new(req, h->node, NULL);
    if (op == NULL)
        return;
    op->handle = h;
    op->size = size;
    op->off = off;
    op->wait.done = linear_done;
    tree_open_read(fs->tree, h->node, &op->wait);
}

/* ---- write ------------------------------------------------------------------------------------- */

static void write_committed(struct commit_wait *w, int err)
{
    struct op *op = op_of_commit(w);

    if (err)
        op_err(op, err);
    else
        op_write(op, op->size);
    op_free(op);
}

static void write_apply(struct op *op, const void *data)
{
    struct handle *h = op->handle;
    int err = handle_write(h, data, (size_t)op->off, op->size);

    if (err) {
        op_end(op, err);
    } else if (h->node && (handle_append_eager(h) || h->fs->opt.commit_write)) {
        op->commit.done = write_committed;
        handle_commit(h, &op->commit);
    } else {
        op_write(op, op->size);
        op_free(op);
    }
}

static void write_passed(struct gate *g, int err)
{
    struct op *op = op_of_gate(g);

    if (op->req == NULL) { /* interrupted: nothing was written, and the handle may be gone */
        op_free(op);
        return;
    }
    if (err == 0) {
        write_apply(op, op->data);
        return;
    }
    fs_error(op->fs, "write", op->node ? op->node->name : "?", err, "");
    handle_refuse(op->handle, err);
    op_end(op, err);
}

/* Nothing speaks against a commit, as far as was known a moment ago. */
static bool all_is_well(const struct fs *fs)
{
    struct client_health h;

    client_get_health(fs->client, &h);
    return client_quorum_fresh(fs->client) && h.connected && !h.in_doubt && !fs->nospace &&
           client_now_ms() < fs->status_ms + STATUS_FRESH_MS;
}

/* What can be refused is refused here, because some programs (the shells' builtins) do not look at what
 * close says. */
void fs_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
              struct fuse_file_info *fi)
{
    struct fs *fs = req_fs(req);
    struct handle *h = handle_of(fi);
    struct op *op;
    int err;

    if (control_owns(ino)) {
        control_write(req, ino, buf, size, off, fi);
        return;
    }
    err = h == NULL ? EBADF : h->refused ? h->refused : h->node ? fs_may_change(fs) : 0;
    if (err == 0 && h->node)
        err = handle_check_size(h, handle_size_after(h, (size_t)off, size));
    if (err) {
        if (h)
            handle_refuse(h, err);
        (void)fuse_reply_err(req, err);
        return;
    }
    op = op_new(req, h->node, NULL);
    if (op == NULL)
        return;
    op->handle = h;
    op->size = size;
    op->off = off;
    if (h->node == NULL || h->orphan || all_is_well(fs)) {
        write_apply(op, buf);
        return;
    }
    op->data = malloc(size + 1); /* the request's buffer is the next request's soon */
    if (op->data == NULL) {
        op_end(op, ENOMEM);
        return;
    }
    memcpy(op->data, buf, size);
    op->gate = (struct gate){.fs = fs, .done = write_passed};
    gate_pass(&op->gate, true);
}

/* ---- flush, fsync, release ------------------------------------------------------------------------ */

static void sync_done(struct commit_wait *w, int err)
{
    struct op *op = op_of_commit(w);

    op_end(op, err);
}

static void commit_for(fuse_req_t req, struct handle *h)
{
    struct op *op = op_new(req, h->node, NULL);

    if (op == NULL)
        return;
    op->commit.done = sync_done;
    handle_commit(h, &op->commit);
}

/* Is it the process that opened the file which closes (a descriptor of) it? A child that inherited it is
 * not. */
static bool by_opener(const struct handle *h, pid_t tid)
{
    return tid == 0 || tid == h->tid || h->tgid == 0 || thread_group(tid) == h->tgid;
}

void fs_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct handle *h = handle_of(fi);

    if (control_owns(ino) || h == NULL || h->node == NULL || h->orphan || !(h->data || h->busy)) {
        if (control_owns(ino))
            control_flush(req, ino, fi);
        else
            (void)fuse_reply_err(req, 0); /* nothing to publish; a truncation alone waits for its data */
        return;
    }
    if (by_opener(h, fuse_req_ctx(req)->pid))
        commit_for(req, h);
    else
        (void)fuse_reply_err(req, 0);
}

void fs_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    struct handle *h = handle_of(fi);

    (void)datasync;
    if (control_owns(ino) || h == NULL || h->node == NULL || h->orphan || !(handle_dirty(h) || h->busy))
        (void)fuse_reply_err(req, 0);
    else
        commit_for(req, h);
}

void fs_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (control_owns(ino)) {
        control_release(req, ino, fi);
        return;
    }
    (void)fuse_reply_err(req, 0);
    if (handle_of(fi))
        handle_release(handle_of(fi));
}

void fs_poll(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct fuse_pollhandle *ph)
{
    if (control_owns(ino)) {
        control_poll(req, ino, fi, ph);
        return;
    }
    if (ph)
        fuse_pollhandle_destroy(ph);
    (void)fuse_reply_poll(req, POLLIN | POLLOUT);
}

/* ---- setattr ------------------------------------------------------------------------------------------ */

static void truncate_committed(struct commit_wait *w, int err)
{
    struct op *op = op_of_commit(w);
    struct handle *h = op->handle;

    if (err)
        op_err(op, err);
    else
        op_attr(op, op->node, NULL);
    op->handle = NULL;
    handle_free(h);
    op_free(op);
}

/* truncate(2): there is no handle, so there is nothing to wait for. */
static void truncate_read(struct wait *w, int err)
{
    struct op *op = op_of_wait(w);
    struct handle *h = NULL;

    if (err == 0) {
        h = handle_new(op->fs, op->node, NULL, O_WRONLY, op->pid, w->value);
        err = h ? handle_truncate(h, op->size) : ENOMEM;
    }
    if (err) {
        handle_free(h);
        op_end(op, err);
        return;
    }
    op->handle = h;
    op->commit.done = truncate_committed;
    handle_commit(h, &op->commit);
}

static void truncate_resume(struct op *op)
{
    op_read_for_change(op, truncate_read);
}

/* A key has no mode and no owner: only what they are anyway can be set. The mode given to mkdir is ignored
 * as every mode of a creation is; so is what the one who made a directory says about it a moment later
 * (rsync, mkdir -m). */
static int check_meta(const struct fs *fs, const struct node *n, pid_t tid, const struct stat *now,
                      const struct stat *attr, int to_set)
{
    if (fs->opt.meta_ignore || (n->kind == NODE_DIR && fs_made_dir(fs, n, tid)))
        return 0;
    if ((to_set & FUSE_SET_ATTR_MODE && (attr->st_mode & 07777) != (now->st_mode & 07777)) ||
        (to_set & FUSE_SET_ATTR_UID && attr->st_uid != now->st_uid) ||
        (to_set & FUSE_SET_ATTR_GID && attr->st_gid != now->st_gid))
        return EPERM;
    return 0;
}

static void setattr_ofile(fuse_req_t req, fuse_ino_t ino, const struct stat *attr, int to_set)
{
    struct ofile *f = overlay_by_id(req_fs(req)->overlay, ino);
    struct stat st;
    int err = f == NULL ? ESTALE : to_set & FUSE_SET_ATTR_SIZE ? ofile_truncate(f, (size_t)attr->st_size) : 0;

    if (err) {
        (void)fuse_reply_err(req, err);
        return;
    }
    ofile_set_meta(f, attr, to_set); /* kept while it is a file; what becomes a key loses them */
    ofile_stat(f, &st);
    (void)fuse_reply_attr(req, &st, 0);
}

void fs_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
    struct fs *fs = req_fs(req);
    struct handle *h = fi && !control_owns(ino) ? handle_of(fi) : NULL;
    struct stat now;
    struct node *n;
    struct op *op;
    int err;

    if (control_owns(ino)) {
        control_setattr(req, ino, attr, to_set, fi);
        return;
    }
    if (overlay_owns(ino)) {
        setattr_ofile(req, ino, attr, to_set);
        return;
    }
    n = req_node(req, ino);
    if (n == NULL || inject_setattr(req, n))
        return;
    node_stat(fs->tree, n, &now);
    err = check_meta(fs, n, fuse_req_ctx(req)->pid, &now, attr, to_set);
    if (err == 0 && to_set & FUSE_SET_ATTR_SIZE) {
        err = n->kind == NODE_DIR ? EISDIR : fs_may_change(fs);
        if (err == 0 && h)
            err = handle_truncate(h, (size_t)attr->st_size);
    }
    if (err || h || !(to_set & FUSE_SET_ATTR_SIZE)) {
        if (err)
            (void)fuse_reply_err(req, err);
        else
            reply_attr(req, fs, n, h);
        return;
    }
    op = op_new(req, n, NULL);
    if (op == NULL)
        return;
    op->size = (size_t)attr->st_size;
    op_after_release(op, n, truncate_resume);
}
