/* SPDX-License-Identifier: Apache-2.0 */
/* overlay_publish.c - when a file of the overlay becomes a key after all (see overlay.h).
 *
 * The rename of a temporary file onto a key is an operation of the kernel and lives in ops_rename.c. Here
 * is what happens by itself: a temporary file that stays is published under its own name, a key renamed to
 * an editors' name for good takes that name in the store. No content lives only here for longer than that.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "handle.h"
#include "handle_txn.h"
#include "ops.h"
#include "overlay_private.h"

/* ---- temporary files that stay ------------------------------------------------------------------ */

static void published(struct txn *t, void *arg, int err)
{
    struct ofile *f = arg;
    struct overlay *o = f->overlay;
    struct node *dir = f->linked ? node_ref(f->dir) : NULL;
    char *name = f->linked ? strdup(f->name) : NULL;

    f->publishing = false;
    if (err == 0 || err == -1) { /* -1: a key appeared under the name; it wins */
        if (err == 0)
            o->stats.published++;
        else
            fs_error(o->fs, "publish", name ? name : "?", EEXIST,
                     "a key of that name exists by now: the file is dropped");
        if (f->linked)
            overlay_unlink(f);
        else
            ofile_maybe_free(f);
        if (dir && name)
            notify_name(o->fs->notify, dir, name); /* the kernel's name has the file of the overlay */
    } else {
        fs_error(o->fs, "publish", name ? name : "?", err, txn_text(t));
        if (f->linked && f->opens == 0)
            session_timer_set(&o->fs->session, &f->linger,
                              OVERLAY_LINGER_MS); /* again, until the store takes it */
        ofile_maybe_free(f);
    }
    node_unref(o->fs->tree, dir);
    free(name);
}

void overlay_publish(struct ofile *f)
{
    struct fs *fs = f->overlay->fs;
    struct value *v;
    struct txn *t;
    uint8_t *key = NULL;
    size_t len = 0;

    if (fs_is_moving(fs, f->dir)) {
        session_timer_set(&fs->session, &f->linger, RENAME_LOOK_MS);
        return;
    }
    v = value_new(ofile_content(f), &(struct key_meta){0});
    t = v ? txn_new(fs, published, f) : NULL;
    if (f->publishing || t == NULL ||
        node_child_key(fs->tree, f->dir, slice_str(f->name), false, &key, &len) != 0) {
        txn_cancel(t);
        value_unref(v);
        return;
    }
    f->publishing = true;
    txn_compare(t, slice_of(key, len), SLICE_NONE, TXN_CREATE_REV, TXN_EQUAL, 0);
    txn_put(t, slice_of(key, len), v, 0);
    keep_new_file(fs->keeper, f->dir, t);
    txn_run(t);
    value_unref(v);
    free(key);
}

/* ---- limbo ------------------------------------------------------------------------------------------ */

struct ofile *overlay_limbo(struct overlay *o, struct node *n, struct value *v, struct node *dir,
                            const char *name)
{
    struct ofile *f = overlay_by_name(o, dir, name);
    struct file_state *s = file_state(n);

    if (s == NULL)
        return NULL;
    if (f)
        overlay_unlink(f);
    f = overlay_create(o, dir, name, OFILE_EDITOR);
    if (f == NULL)
        return NULL;
    if (ofile_write(f, v->bytes, 0, v->meta.size) != 0) {
        overlay_unlink(f);
        return NULL;
    }
    f->mtime = n->mtime;
    f->limbo_node = node_ref(n);
    f->limbo_rev = v->meta.mod_rev;
    s->limbo = f;
    session_timer_set(&o->fs->session, &f->linger, OVERLAY_LINGER_MS);
    return f;
}

static void limbo_leave(struct ofile *f)
{
    struct node *n = f->limbo_node;
    struct file_state *s = file_state_if(n);

    session_timer_clear(&f->overlay->fs->session, &f->linger);
    f->limbo_node = NULL;
    if (s && s->limbo == f)
        s->limbo = NULL;
    file_state_drop(n);
    node_unref(f->overlay->fs->tree, n);
}

void overlay_limbo_end(struct node *n)
{
    struct file_state *s = file_state_if(n);

    if (s && s->limbo) {
        struct ofile *f = s->limbo;

        limbo_leave(f);
        ofile_maybe_free(f);
    }
}

static void limbo_committed(struct txn *t, void *arg, int err)
{
    struct ofile *f = arg;
    struct fs *fs = f->overlay->fs;
    struct node *src = node_ref(f->limbo_node), *src_dir = src ? node_ref(src->parent) : NULL;
    struct node *dir = f->linked ? node_ref(f->dir) : NULL;
    char *name = f->linked ? strdup(f->name) : NULL;

    f->publishing = false;
    if (f->limbo_node)
        limbo_leave(f);
    if (err) /* changed elsewhere meanwhile, or no quorum: the key keeps its name, the copy stays here */
        fs_error(fs, "rename", name ? name : "?", err == -1 ? ESTALE : err,
                 err == -1 ? "changed by others meanwhile" : txn_text(t));
    else if (f->linked)
        overlay_unlink(f); /* the key of that name shows itself */
    ofile_maybe_free(f);
    if (src_dir)
        notify_name(fs->notify, src_dir, src->name);
    if (dir && name)
        notify_name(fs->notify, dir, name);
    node_unref(fs->tree, src);
    node_unref(fs->tree, src_dir);
    node_unref(fs->tree, dir);
    free(name);
}

void overlay_limbo_commit(struct ofile *f)
{
    struct fs *fs = f->overlay->fs;
    struct txn *t;
    struct value *v;
    uint8_t *from = NULL, *to = NULL;
    size_t from_len, to_len;

    if (fs_is_moving(fs, f->limbo_node) || (f->linked && fs_is_moving(fs, f->dir))) {
        session_timer_set(&fs->session, &f->linger, RENAME_LOOK_MS);
        return;
    }
    t = f->publishing ? NULL : txn_new(fs, limbo_committed, f);
    v = value_new(ofile_content(f), &(struct key_meta){0});
    if (t == NULL || v == NULL || node_key(fs->tree, f->limbo_node, &from, &from_len) != 0 ||
        (f->linked && node_child_key(fs->tree, f->dir, slice_str(f->name), false, &to, &to_len) != 0)) {
        txn_cancel(t);
        goto out;
    }
    f->publishing = true;
    txn_compare(t, slice_of(from, from_len), SLICE_NONE, TXN_MOD_REV, TXN_EQUAL, f->limbo_rev);
    if (f->linked) {
        txn_compare(t, slice_of(to, to_len), SLICE_NONE, TXN_CREATE_REV, TXN_EQUAL, 0);
        txn_put(t, slice_of(to, to_len), v, f->limbo_node->meta.lease);
    }
    txn_delete(t, slice_of(from, from_len));
    txn_run(t);
out:
    value_unref(v);
    free(from);
    free(to);
}

void overlay_flush(struct overlay *o)
{
    for (struct ofile *f = o->files, *next; f; f = next) {
        next = f->next;
        if (f->limbo_node)
            overlay_limbo_commit(f);
        else if (f->class == OFILE_TEMPORARY && f->linked)
            overlay_publish(f);
    }
}

void overlay_key_appeared(struct overlay *o, const struct node *dir, const char *name)
{
    struct ofile *f = overlay_by_name(o, dir, name);

    if (f && !f->publishing) {
        o->stats.dropped++;
        overlay_unlink(f);
    }
}
