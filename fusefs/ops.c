/* SPDX-License-Identifier: Apache-2.0 */
/* ops.c - answers, names and attributes (see ops.h). What an op waits for before it begins: ops_wait.c.
 *
 * Who answers for a nodeid: the tree below 2^62, the overlay from there, the control tree from 2^63.
 */
#include "ops.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "handle.h"
#include "overlay.h"
#include "rpc.pb-c.h"

#define STATFS_BLOCK 4096u

/* ---- an op, and its one answer ------------------------------------------------------------ */

static void interrupted(fuse_req_t req, void *data)
{
    struct op *op = data;

    op->req = NULL;
    (void)fuse_reply_err(req, EINTR); /* a caller that is being killed waits for it in D state */
}

struct op *op_new(fuse_req_t req, struct node *node, const char *name)
{
    struct op *op = calloc(1, sizeof *op);

    if (op)
        op->name = name ? strdup(name) : NULL;
    if (op == NULL || (name && op->name == NULL)) {
        free(op);
        (void)fuse_reply_err(req, ENOMEM);
        return NULL;
    }
    op->fs = req_fs(req);
    op->req = req;
    op->pid = fuse_req_ctx(req)->pid;
    op->node = node_ref(node);
    fuse_req_interrupt_func(req, interrupted, op);
    if (op->req)
        return op;
    op_free(op); /* interrupted before it began: nothing is sent for it */
    return NULL;
}

void op_free(struct op *op)
{
    if (op->req)
        op_err(op, EIO); /* cannot be: every op is answered before; better a wrong answer than none */
    node_unref(op->fs->tree, op->node);
    node_unref(op->fs->tree, op->node2);
    free(op->name);
    free(op->name2);
    free(op->data);
    free(op);
}

fuse_req_t op_take(struct op *op)
{
    fuse_req_t req = op->req;

    op->req = NULL;
    if (req)
        fuse_req_interrupt_func(req, NULL, NULL);
    return req;
}

void op_err(struct op *op, int err)
{
    fuse_req_t req = op_take(op);

    if (req)
        (void)fuse_reply_err(req, err); /* ENOENT: the caller went away */
}

void op_end(struct op *op, int err)
{
    op_err(op, err);
    op_free(op);
}

void op_write(struct op *op, size_t size)
{
    fuse_req_t req = op_take(op);

    if (req)
        (void)fuse_reply_write(req, size);
}

void op_attr(struct op *op, struct node *n, const struct handle *h)
{
    fuse_req_t req = op_take(op);

    if (req)
        reply_attr(req, op->fs, n, h);
}

bool op_entry(struct op *op, struct node *n)
{
    fuse_req_t req = op_take(op);

    return req && reply_entry(req, n, TIMEOUT_S);
}

bool op_open(struct op *op, const struct fuse_file_info *fi)
{
    fuse_req_t req = op_take(op);

    return req && fuse_reply_open(req, fi) == 0;
}

static double attr_timeout(const struct node *n)
{
    struct file_state *s = file_state_if(n);

    for (struct handle *h = s ? s->handles : NULL; h; h = h->node_next)
        if (handle_dirty(h) || h->busy)
            return 0; /* the size depends on who asks, and is about to change */
    return TIMEOUT_S;
}

static struct fuse_entry_param entry_of(const struct fs *fs, struct node *n, double entry_timeout)
{
    struct fuse_entry_param e = {.ino = n->nodeid,
                                 .generation = n->generation,
                                 .entry_timeout = entry_timeout,
                                 .attr_timeout = attr_timeout(n)};

    node_stat(fs->tree, n, &e.attr);
    return e;
}

bool op_create(struct op *op, struct node *n, const struct fuse_file_info *fi)
{
    fuse_req_t req = op_take(op);
    struct fuse_entry_param e = entry_of(op->fs, n, TIMEOUT_S);

    if (req == NULL)
        return false;
    node_lookup(op->fs->tree, n);
    if (fuse_reply_create(req, &e, fi) == 0)
        return true;
    node_forget(op->fs->tree, n, 1);
    return false;
}

bool reply_entry(fuse_req_t req, struct node *n, double entry_timeout)
{
    struct fs *fs = req_fs(req);
    struct fuse_entry_param e = entry_of(fs, n, entry_timeout);

    node_lookup(fs->tree, n);
    if (fuse_reply_entry(req, &e) == 0)
        return true;
    node_forget(fs->tree, n, 1);
    return false;
}

void reply_attr(fuse_req_t req, struct fs *fs, struct node *n, const struct handle *h)
{
    struct stat st;

    node_stat(fs->tree, n, &st);
    if (h) {
        st.st_size = (off_t)handle_size(h);
        st.st_blocks = (blkcnt_t)((st.st_size + 511) / 512);
    }
    (void)fuse_reply_attr(req, &st, h ? 0 : attr_timeout(n));
}

/* ---- what the ops share ------------------------------------------------------------------ */

struct node *req_node(fuse_req_t req, fuse_ino_t ino)
{
    struct node *n = tree_node(req_fs(req)->tree, ino);

    if (n == NULL)
        (void)fuse_reply_err(req, ESTALE);
    return n;
}

struct node *req_dir(fuse_req_t req, fuse_ino_t ino)
{
    struct node *n = ino < TREE_NODEID_END ? tree_node(req_fs(req)->tree, ino) : NULL;

    if (n == NULL || n->kind != NODE_DIR) {
        (void)fuse_reply_err(req, n || control_owns(ino) ? (n ? ENOTDIR : EPERM) : ESTALE);
        return NULL;
    }
    if (n->dir->moved) { /* renamed away: the kernel looks the path up afresh */
        (void)fuse_reply_err(req, ESTALE);
        return NULL;
    }
    return n;
}

int fs_may_change(const struct fs *fs)
{
    return fs->opt.read_only ? EROFS : 0;
}

void fs_error(struct fs *fs, const char *what, const char *path, int err, const char *text)
{
    control_error(fs->control, what, path, err, text);
}

/* ---- names ----------------------------------------------------------------------------------- */

static bool reply_ofile(fuse_req_t req, struct ofile *f)
{
    struct fuse_entry_param e = {
        .ino = f->nodeid, .generation = 1, .entry_timeout = TIMEOUT_S, .attr_timeout = 0};

    ofile_stat(f, &e.attr);
    ofile_lookup(f);
    if (fuse_reply_entry(req, &e) == 0)
        return true;
    ofile_forget(f, 1);
    return false;
}

static void reply_absent(struct op *op)
{
    struct fuse_entry_param none = {.ino = 0, .entry_timeout = TIMEOUT_S};
    fuse_req_t req;

    /* Only with `cached` may the kernel answer a miss by itself, and not while an injector is about to
     * look. */
    if (!op->fs->opt.cached || injector_pool_pending(op->fs->injectors)) {
        op_err(op, ENOENT);
        return;
    }
    req = op_take(op);
    if (req)
        (void)fuse_reply_entry(req, &none);
}

static void lookup_done(struct wait *w, int err)
{
    struct op *op = (struct op *)((char *)w - offsetof(struct op, wait));

    if (err == 0 && !node_visible(w->node))
        err = ENOENT;
    if (err == 0)
        (void)op_entry(op, w->node);
    else if (err == ENOENT && w->authoritative)
        reply_absent(op);
    else
        op_err(op, err);
    op_free(op);
}

/* What is known here without asking: a visible node, or a file of the overlay. */
struct node *fs_child(struct fs *fs, struct node *dir, const char *name, struct ofile **ret_ofile)
{
    struct node *n = tree_child(fs->tree, dir, slice_str(name));

    *ret_ofile = NULL;
    if (n && node_visible(n))
        return n;
    *ret_ofile = overlay_by_name(fs->overlay, dir, name);
    if (*ret_ofile)
        return NULL;
    if (fs->n_unborn) { /* being created: not present yet */
        n = tree_ghost(fs->tree, dir, slice_str(name),
                       strcmp(name, CODEC_VALUE_NAME) == 0 ? NODE_VALUE : NODE_FILE);
        if (n && node_visible(n))
            return n;
    }
    return NULL;
}

static bool hidden_here(struct fs *fs, struct node *dir, const char *name)
{
    struct node *n = tree_child(fs->tree, dir, slice_str(name));
    const struct file_state *s = n ? file_state_if(n) : NULL;

    return s && s->limbo;
}

static void fs_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fs *fs = req_fs(req);
    struct ofile *f;
    struct node *dir, *n;
    struct op *op;

    if (control_lookup(req, parent, name))
        return;
    dir = req_dir(req, parent);
    if (dir == NULL || inject_lookup(req, dir, name))
        return;
    n = fs_child(fs, dir, name, &f);
    if (n) {
        (void)reply_entry(req, n, TIMEOUT_S);
        return;
    }
    if (f) {
        (void)reply_ofile(req, f);
        return;
    }
    if (hidden_here(fs, dir, name)) {
        (void)fuse_reply_err(req, ENOENT);
        return;
    }
    op = op_new(req, dir, NULL);
    if (op == NULL)
        return;
    op->wait.done = lookup_done;
    tree_lookup(fs->tree, dir, slice_str(name), &op->wait);
}

static void forget_one(struct fs *fs, uint64_t ino, uint64_t nlookup)
{
    if (ino < TREE_NODEID_END) {
        struct node *n = tree_node(fs->tree, ino);

        if (n)
            node_forget(fs->tree, n, nlookup);
    } else if (overlay_owns(ino)) {
        struct ofile *f = overlay_by_id(fs->overlay, ino);

        if (f)
            ofile_forget(f, nlookup);
    } else
        control_forget(fs->control, ino, nlookup);
}

static void fs_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
    forget_one(req_fs(req), ino, nlookup);
    fuse_reply_none(req);
}

static void fs_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
    for (size_t i = 0; i < count; i++)
        forget_one(req_fs(req), forgets[i].ino, forgets[i].nlookup);
    fuse_reply_none(req);
}

/* ---- attributes --------------------------------------------------------------------------------- */

static bool release_pending(const struct node *n)
{
    struct file_state *s = file_state_if(n);

    for (struct handle *h = s ? s->handles : NULL; h; h = h->node_next)
        if (h->released && h->busy)
            return true;
    return false;
}

static void getattr_resume(struct op *op)
{
    op_attr(op, op->node, handle_of_writer(op->node, op->pid));
    op_free(op);
}

static void fs_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fs *fs = req_fs(req);
    struct node *n;

    if (control_owns(ino)) {
        control_getattr(req, ino);
        return;
    }
    if (overlay_owns(ino)) {
        struct ofile *f = overlay_by_id(fs->overlay, ino);
        struct stat st;

        if (f) {
            ofile_stat(f, &st);
            (void)fuse_reply_attr(req, &st, 0);
        } else
            (void)fuse_reply_err(req, ESTALE);
        return;
    }
    n = req_node(req, ino);
    if (n == NULL)
        return;
    if (n->kind != NODE_DIR && n->meta.mod_rev == 0 && !node_visible(n)) {
        (void)fuse_reply_err(req, ESTALE); /* its creation failed: the kernel looks the name up afresh */
        return;
    }
    if (release_pending(n)) {
        struct op *op = op_new(req, n, NULL);

        if (op)
            op_after_release(op, n, getattr_resume);
        return;
    }
    reply_attr(req, fs, n,
               fi && fi->fh ? (struct handle *)(uintptr_t)fi->fh
                            : handle_of_writer(n, fuse_req_ctx(req)->pid));
}

/* One question about the store's size, and who asked. */
struct space {
    struct client_call call;
    struct op *op;
};

/* Used is what the keys take, available what the quota leaves to the file of the store: an etcd that was not
 * defragmented has both small. Never 0 blocks, or df hides the mount and installers refuse it. */
static void reply_statfs(fuse_req_t req, const struct fs *fs)
{
    uint64_t quota = (uint64_t)(fs->db_quota > 0 ? fs->db_quota : QUOTA_DEFAULT_BYTES) / STATFS_BLOCK;
    uint64_t used = (uint64_t)fs->db_in_use / STATFS_BLOCK, size = (uint64_t)fs->db_size / STATFS_BLOCK;
    struct statvfs st = {.f_bsize = STATFS_BLOCK,
                         .f_frsize = STATFS_BLOCK,
                         .f_blocks = quota ? quota : 1,
                         .f_bfree = fs->nospace || used > quota ? 0 : quota - used,
                         .f_bavail = fs->nospace || size > quota ? 0 : quota - size,
                         .f_files = 1 << 20,
                         .f_ffree = 1 << 20,
                         .f_favail = 1 << 20,
                         .f_namemax = CODEC_NAME_MAX_OLD};

    (void)fuse_reply_statfs(req, &st);
}

static void statfs_told(struct client_call *call)
{
    struct space *s = (struct space *)((char *)call - offsetof(struct space, call));
    fuse_req_t req = op_take(s->op);

    fs_take_status(s->op->fs, call);
    if (req)
        reply_statfs(req, s->op->fs);
    op_free(s->op);
    free(s);
}

static void fs_statfs(fuse_req_t req, fuse_ino_t ino)
{
    Etcdserverpb__StatusRequest status = ETCDSERVERPB__STATUS_REQUEST__INIT;
    struct fs *fs = req_fs(req);
    bool fresh = fs->status_ms && client_now_ms() < fs->status_ms + STATUS_FRESH_MS;
    struct space *s = fresh ? NULL : calloc(1, sizeof *s);

    (void)ino;
    if (s == NULL) {
        reply_statfs(req, fs);
        return;
    }
    s->op = op_new(req, NULL, NULL);
    if (s->op == NULL) {
        free(s);
        return;
    }
    s->call = (struct client_call){.done = statfs_told, .serializable = true};
    client_start(fs->client, &s->call, CLIENT_STATUS, &status.base, STATFS_WAIT_MS);
}

static void fs_init(void *userdata, struct fuse_conn_info *conn)
{
    (void)userdata;
    conn->max_write = 1 << 20; /* most values in one WRITE */
    conn->max_background = 128;
    conn->congestion_threshold = 96;
    conn->want &= ~(unsigned)(FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE |
                              FUSE_CAP_SPLICE_MOVE);
}

const struct fuse_lowlevel_ops ops_table = {
    .init = fs_init,
    .lookup = fs_lookup,
    .forget = fs_forget,
    .forget_multi = fs_forget_multi,
    .getattr = fs_getattr,
    .setattr = fs_setattr,
    .statfs = fs_statfs,
    .open = fs_open,
    .create = fs_create,
    .mknod = fs_mknod,
    .read = fs_read,
    .write = fs_write,
    .flush = fs_flush,
    .fsync = fs_fsync,
    .release = fs_release,
    .opendir = fs_opendir,
    .readdir = fs_readdir,
    .releasedir = fs_releasedir,
    .fsyncdir = fs_fsyncdir,
    .mkdir = fs_mkdir,
    .rmdir = fs_rmdir,
    .unlink = fs_unlink,
    .rename = fs_rename,
    .symlink = fs_symlink,
    .link = fs_link,
    .setxattr = fs_setxattr,
    .getxattr = fs_getxattr,
    .listxattr = fs_listxattr,
    .removexattr = fs_removexattr,
    .poll = fs_poll,
};
