/* SPDX-License-Identifier: Apache-2.0 */
/* ops_rename.c - renaming is one transaction, or none (A.3, A.5).
 *
 *     overlay -> editors' name       stays in the overlay
 *     overlay -> other name          one put of its content onto the key: lease and create_revision stay
 *     key -> editors' name           limbo (overlay.h): nothing is published yet
 *     key -> key                     put there, delete here; compared with the revision read
 *     key <-> key (EXCHANGE)         two puts
 *     directory -> directory         ops_rename_dir.c
 *
 * The kernel now has the old inode under the new name, but that name's key has a node of its own: so the
 * name is invalidated after the reply. Until then OPEN of the old node answers ESTALE and the kernel looks
 * the name up afresh.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "ops_rename.h"
#include "overlay.h"

#define ATTEMPTS_MAX 8

void renaming_end(struct renaming *r, int err)
{
    struct op *op = r->op;
    bool unheard = op->req == NULL; /* interrupted: the kernel believes that nothing has happened */

    op_err(op, err);
    if (err == 0 && (!r->follows || unheard))
        notify_name(op->fs->notify, op->node2, op->name2);
    if (err == 0 && (r->flags & FLAG_EXCHANGE || unheard))
        notify_name(op->fs->notify, r->from_dir, op->name);
    node_unref(op->fs->tree, r->from_dir);
    value_unref(r->value);
    value_unref(r->other);
    op_free(op);
    free(r);
}

/* What the overlay has under the new name gives way. */
static void target_ofile_gone(const struct op *op)
{
    struct ofile *f = overlay_by_name(op->fs->overlay, op->node2, op->name2);

    if (f)
        overlay_unlink(f);
}

/* ---- overlay -> key ------------------------------------------------------------------------- */

static void publish_start(struct renaming *r, int64_t known_rev);

static void publish_done(struct txn *t, void *arg, int err)
{
    struct renaming *r = arg;
    struct fs *fs = r->op->fs;
    struct ofile *f = overlay_by_id(fs->overlay, r->ofile_id);
    struct node *n;

    if (err == -1 && !(r->flags & FLAG_NOREPLACE) && !r->expected_rev && ++r->attempts < ATTEMPTS_MAX) {
        publish_start(r, txn_now_rev(t));
        return;
    }
    if (err == 0) {
        n = renaming_target(r->op);
        if (f && n)
            handles_publish(fs, f, n, r->value);
        if (f) {
            ofile_reset_meta(f);
            overlay_unlink(f);
        }
    }
    if (f)
        f->publishing = false;
    renaming_end(r, err == -1 ? r->flags & FLAG_NOREPLACE ? EEXIST : ESTALE : err);
}

/* known_rev: the key's, 0: it is thought to be absent. What exists is replaced at that revision, as a save is
 * (handle_commit.c). */
static void publish_start(struct renaming *r, int64_t known_rev)
{
    struct txn *t = txn_new(r->op->fs, publish_done, r);
    uint8_t *key = NULL;
    size_t len = 0;

    if (t == NULL || renaming_target_key(r->op, false, &key, &len) != 0) {
        txn_cancel(t);
        renaming_end(r, ENOMEM);
        return;
    }
    txn_compare(t, slice_of(key, len), SLICE_NONE, TXN_CREATE_REV, known_rev ? TXN_GREATER : TXN_EQUAL, 0);
    if (r->expected_rev)
        txn_compare(t, slice_of(key, len), SLICE_NONE, TXN_MOD_REV, TXN_EQUAL, r->expected_rev);
    else if (known_rev && r->attempts < COMMIT_PINNED_TRIES)
        txn_compare(t, slice_of(key, len), SLICE_NONE, TXN_MOD_REV, TXN_EQUAL, known_rev);
    txn_put(t, slice_of(key, len), r->value, known_rev ? TXN_IGNORE_LEASE : 0);
    txn_look_on_failure(t, slice_of(key, len));
    if (r->flags & FLAG_NOREPLACE)
        txn_exclusive(t);
    if (!known_rev)
        keep_new_file(r->op->fs->keeper, r->op->node2, t);
    txn_run(t);
    free(key);
}

static void rename_ofile(struct op *op)
{
    struct renaming *r = (struct renaming *)(uintptr_t)op->arg;
    struct ofile *f = overlay_by_id(op->fs->overlay, r->ofile_id);
    struct node *there = renaming_target(op);
    int err = op_is_over(op);

    if (err == 0)
        err = f ? fs_check_name(op->fs, op->node2, op->name2, false) : ENOENT;
    if (err == 0 && there && there->kind == NODE_DIR)
        err = EISDIR;
    if (err || (there == NULL && overlay_is_editors(op->name2))) {
        renaming_end(r, err ? err : overlay_rename(f, op->node2, op->name2));
        return;
    }
    r->value = value_new(ofile_content(f), &(struct key_meta){0});
    if (r->value == NULL) {
        renaming_end(r, ENOMEM);
        return;
    }
    if (there)
        overlay_limbo_end(there);
    r->expected_rev = there ? seen_rev(op->fs, there, op->pid, 0) : 0;
    publish_start(r, there && there->present && !(r->flags & FLAG_NOREPLACE) ? there->meta.mod_rev : 0);
}

/* ---- key -> key --------------------------------------------------------------------------------- */

static void move_read(struct wait *w, int err);

static void move_done(struct txn *t, void *arg, int err)
{
    struct renaming *r = arg;
    struct op *op = r->op;
    struct node *n;

    (void)t;
    if (err == -1 && ++r->attempts < ATTEMPTS_MAX) { /* either key changed: look again */
        value_unref(r->value);
        value_unref(r->other);
        r->value = r->other = NULL;
        if (r->flags & FLAG_NOREPLACE && renaming_target(op)) {
            renaming_end(r, EEXIST);
            return;
        }
        op_read_for_change(op, move_read);
        return;
    }
    if (err == 0) {
        target_ofile_gone(op);
        n = renaming_target(op);
        if (n && !(r->flags & FLAG_EXCHANGE))
            handles_move(op->node, n);
        if (n && !(r->flags & FLAG_EXCHANGE))
            keep_move(op->fs->keeper, op->node, n);
        tree_retire(op->node);
    }
    renaming_end(r, err == -1 ? r->flags & FLAG_NOREPLACE ? EEXIST : ESTALE : err);
}

/* The lease goes with the value; onto a key that has one, a value without keeps that (a save by rename). */
static void move_put(struct txn *t, const struct renaming *r, struct slice key, struct value *copy,
                     const struct node *there)
{
    int64_t lease = r->value->meta.lease;

    if (r->flags & FLAG_NOREPLACE)
        txn_compare(t, key, SLICE_NONE, TXN_CREATE_REV, TXN_EQUAL, 0);
    else if (lease == 0 && there && there->meta.lease) {
        txn_compare(t, key, SLICE_NONE, TXN_CREATE_REV, TXN_GREATER, 0);
        lease = TXN_IGNORE_LEASE;
    }
    txn_put(t, key, copy, lease);
}

static void move_start(struct op *op)
{
    struct renaming *r = (struct renaming *)(uintptr_t)op->arg;
    struct txn *t = txn_new(op->fs, move_done, r);
    struct value *copy = value_new(slice_of(r->value->bytes, r->value->meta.size), &(struct key_meta){0});
    struct value *back =
        r->other ? value_new(slice_of(r->other->bytes, r->other->meta.size), &(struct key_meta){0}) : NULL;
    uint8_t *from = NULL, *to = NULL;
    size_t from_len = 0, to_len = 0;
    struct node *there = renaming_target(op);

    if (t == NULL || copy == NULL || (r->other && back == NULL) ||
        node_key(op->fs->tree, op->node, &from, &from_len) != 0 || renaming_target_key(op, false, &to, &to_len) != 0) {
        txn_cancel(t);
        t = NULL;
    } else {
        txn_compare(t, slice_of(from, from_len), SLICE_NONE, TXN_MOD_REV, TXN_EQUAL, r->value->meta.mod_rev);
        if (back) {
            txn_compare(t, slice_of(to, to_len), SLICE_NONE, TXN_MOD_REV, TXN_EQUAL, r->other->meta.mod_rev);
            txn_put(t, slice_of(to, to_len), copy, r->value->meta.lease);
            txn_put(t, slice_of(from, from_len), back, r->other->meta.lease);
        } else {
            move_put(t, r, slice_of(to, to_len), copy, there);
            txn_delete(t, slice_of(from, from_len));
        }
        if (r->flags & FLAG_NOREPLACE)
            txn_exclusive(t);
        txn_run(t);
    }
    value_unref(copy);
    value_unref(back);
    free(from);
    free(to);
    if (t == NULL)
        renaming_end(r, ENOMEM);
}

static void other_read(struct wait *w, int err)
{
    struct op *op = (struct op *)((char *)w - offsetof(struct op, wait));
    struct renaming *r = (struct renaming *)(uintptr_t)op->arg;

    if (err) {
        renaming_end(r, err);
        return;
    }
    r->other = w->value;
    op_after_move(op, move_start);
}

static void limbo_start(struct renaming *r)
{
    struct op *op = r->op;
    struct ofile *f = overlay_limbo(op->fs->overlay, op->node, r->value, op->node2, op->name2);

    renaming_end(r, f ? 0 : ENOSPC);
}

static void move_read(struct wait *w, int err)
{
    struct op *op = (struct op *)((char *)w - offsetof(struct op, wait));
    struct renaming *r = (struct renaming *)(uintptr_t)op->arg;
    struct node *there = renaming_target(op);

    if (err == 0)
        r->value = w->value;
    if (err) {
        renaming_end(r, err == ESTALE ? ENOENT : err);
    } else if (r->flags & FLAG_EXCHANGE) {
        op->wait = (struct wait){.done = other_read};
        tree_open_read(op->fs->tree, there, &op->wait);
    } else if (there == NULL && op->fs->opt.overlay && overlay_is_editors(op->name2))
        limbo_start(r);
    else
        op_after_move(op, move_start); /* once more: it may be the second time that it has been read */
}

static void move_resume(struct op *op)
{
    struct renaming *r = (struct renaming *)(uintptr_t)op->arg;
    int over = op_is_over(op);

    if (over) {
        renaming_end(r, over);
        return;
    }
    if (!op->node->present) { /* only being created here: its handles create the other one instead */
        struct node *to = tree_ghost(op->fs->tree, op->node2, slice_str(op->name2), NODE_FILE);

        if (node_visible(op->node) && to) {
            handles_move(op->node, to);
            tree_retire(op->node);
        }
        renaming_end(r, to ? 0 : ENOMEM);
        return;
    }
    op_read_for_change(op, move_read);
}

static void move_released(struct op *op)
{
    op_after_move(op, move_resume);
}

/* ---- the choice ---------------------------------------------------------------------------------------- */

static int check(const struct node *n, const struct ofile *f, const struct node *there,
                 const struct ofile *there_f, unsigned flags)
{
    if (n == NULL && f == NULL)
        return ENOENT;
    if (flags & ~(FLAG_NOREPLACE | FLAG_EXCHANGE))
        return EINVAL;
    if (flags & FLAG_EXCHANGE)
        return f || there_f                                     ? EINVAL
               : there == NULL                                  ? ENOENT
               : n->kind == NODE_DIR || there->kind == NODE_DIR ? EINVAL
                                                                : 0;
    if (flags & FLAG_NOREPLACE && (there || there_f))
        return EEXIST;
    if (n && n->kind != NODE_DIR && there && there->kind == NODE_DIR)
        return EISDIR;
    return 0;
}

void fs_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent, const char *newname,
               unsigned flags)
{
    struct fs *fs = req_fs(req);
    struct node *dir = req_dir(req, parent), *newdir = dir ? req_dir(req, newparent) : NULL, *n, *there;
    struct ofile *f, *there_f;
    struct renaming *r;
    int err;

    if (newdir == NULL || inject_rename(req, dir, name, newdir, newname))
        return;
    n = fs_child(fs, dir, name, &f);
    there = fs_child(fs, newdir, newname, &there_f);
    err = check(n, f, there, there_f, flags);
    if (err == 0)
        err = fs_may_change(fs);
    if (err == 0 && n && n->kind != NODE_DIR)
        err = fs_check_name(fs, newdir, newname, false);
    r = err ? NULL : calloc(1, sizeof *r);
    if (r)
        r->op = op_new(req, n ? n : dir, name);
    if (r == NULL || r->op == NULL) {
        if (r == NULL)
            (void)fuse_reply_err(req, err ? err : ENOMEM);
        free(r);
        return;
    }
    r->flags = flags;
    r->from_dir = node_ref(dir);
    r->op->node2 = node_ref(newdir);
    r->op->name2 = strdup(newname);
    r->op->arg = (uintptr_t)r;
    if (r->op->name2 == NULL)
        renaming_end(r, ENOMEM);
    else if (f) {
        r->ofile_id = f->nodeid;
        op_after_move(r->op, rename_ofile);
    } else if (n->kind == NODE_DIR)
        rename_dir(r);
    else {
        if (there == NULL && renaming_target(r->op))
            overlay_limbo_end(renaming_target(r->op)); /* what was hidden there is replaced */
        op_after_release(r->op, n, move_released);
    }
}
