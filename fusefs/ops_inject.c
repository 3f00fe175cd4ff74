/* SPDX-License-Identifier: Apache-2.0 */
/* ops_inject.c - answers to an injector: its calls take effect in the kernel, never in the store.
 *
 * A request is an injection only if its caller is a registered injector and it is the operation announced
 * to that one. While it is under way the injector is shown the old world: a name about to appear is absent,
 * one about to go is the old node.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "ops.h"

static struct change_event *announced(fuse_req_t req)
{
    return injector_pool_match(req_fs(req)->injectors, fuse_req_ctx(req)->pid);
}

static bool is_name(const struct node *dir, const char *name, uint64_t dir_id, const char *wanted)
{
    return dir->nodeid == dir_id && wanted && strcmp(name, wanted) == 0;
}

/* A directory on the way to `to`, named from dir. It may be gone from the tree: several deletions of one
 * batch end with that of the directory, and each is injected in a directory that is still there for the
 * injector. */
static struct node *on_the_way(const struct node *dir, const char *name, struct node *to)
{
    for (; to && to->parent; to = to->parent)
        if (to->parent == dir && strcmp(to->name, name) == 0)
            return to;
    return NULL;
}

/* What an injected unlink or rmdir finds. The latter marks the inode dead, so it never gets one that is, or may
 * come to be, a directory in use. */
static struct node *removed_node(struct fs *fs, struct change_event *ev)
{
    struct node *twin = NULL;

    if (ev->node->kind != NODE_DIR)
        return ev->node;
    if (ev->node->present)
        twin = tree_twin(fs->tree, ev->node);
    else
        tree_retire(ev->node);
    return twin ? twin : ev->node;
}

bool inject_lookup(fuse_req_t req, struct node *dir, const char *name)
{
    struct change_event *ev = announced(req);

    if (ev == NULL || ev->flags & CHANGE_LOOK) /* the latter is to see the world as it is */
        return false;
    if (ev->kind == CHANGE_MOVE && is_name(dir, name, ev->from_dir_id, ev->from_name)) {
        (void)reply_entry(req, ev->from_node, 0);
        return true;
    }
    if (!is_name(dir, name, ev->dir_id, ev->name)) {
        struct node *way = on_the_way(dir, name, ev->dir);

        if (way == NULL)
            way = on_the_way(dir, name, ev->from_dir);
        if (way == NULL || way->present)
            return false;
        (void)reply_entry(req, way, 0);
        return true;
    }
    if (ev->kind == CHANGE_CREATE || ev->kind == CHANGE_MOVE)
        (void)fuse_reply_err(req, ENOENT);
    else if (ev->kind == CHANGE_DELETE)
        (void)reply_entry(req, removed_node(req_fs(req), ev), 0);
    else
        return false; /* the file as it is */
    return true;
}

bool inject_make(fuse_req_t req, struct node *dir, const char *name, struct fuse_file_info *fi)
{
    struct change_event *ev = announced(req);
    struct fs *fs = req_fs(req);
    struct fuse_entry_param e = {0};

    if (ev == NULL || ev->kind != CHANGE_CREATE || !is_name(dir, name, ev->dir_id, ev->name))
        return false;
    if (fi == NULL) {
        (void)reply_entry(req, ev->node, ev->node->present ? TIMEOUT_S : 0);
        return true;
    }
    e.ino = ev->node->nodeid;
    e.generation = ev->node->generation;
    e.attr_timeout = e.entry_timeout = ev->node->present ? TIMEOUT_S : 0;
    node_stat(fs->tree, ev->node, &e.attr);
    *fi = (struct fuse_file_info){.flags = fi->flags, .direct_io = 1, .noflush = 1};
    node_lookup(fs->tree, ev->node);
    if (fuse_reply_create(req, &e, fi) != 0)
        node_forget(fs->tree, ev->node, 1);
    return true;
}

bool inject_remove(fuse_req_t req, struct node *dir, const char *name)
{
    struct change_event *ev = announced(req);

    if (ev == NULL || ev->kind != CHANGE_DELETE || !is_name(dir, name, ev->dir_id, ev->name))
        return false;
    (void)fuse_reply_err(req, 0);
    return true;
}

bool inject_rename(fuse_req_t req, struct node *dir, const char *name, struct node *newdir,
                   const char *newname)
{
    struct change_event *ev = announced(req);

    if (ev == NULL || ev->kind != CHANGE_MOVE || !is_name(dir, name, ev->from_dir_id, ev->from_name) ||
        !is_name(newdir, newname, ev->dir_id, ev->name))
        return false;
    (void)fuse_reply_err(req, 0);
    return true;
}

bool inject_open(fuse_req_t req, struct node *n, struct fuse_file_info *fi)
{
    struct change_event *ev = announced(req);

    if (ev == NULL || ev->node != n)
        return false;
    *fi = (struct fuse_file_info){.flags = fi->flags, .direct_io = 1, .noflush = 1};
    (void)fuse_reply_open(req, fi);
    return true;
}

bool inject_setattr(fuse_req_t req, struct node *n)
{
    struct change_event *ev = announced(req);

    if (ev == NULL || ev->node != n)
        return false;
    reply_attr(req, req_fs(req), n, NULL);
    return true;
}
