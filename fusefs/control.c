/* SPDX-License-Identifier: Apache-2.0 */
/* control.c - the nodes of .etcd/ and who answers for them (see control.h). */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "control_private.h"

static const struct fixed {
    const char *name;
    enum cnode_kind kind;
} fixed[] = {
    {"status", CNODE_STATUS}, {"revision", CNODE_REVISION}, {"errors", CNODE_ERRORS},
    {"config", CNODE_CONFIG}, {"keys", CNODE_KEYS},         {"events", CNODE_EVENTS},
    {"wait", CNODE_WAIT},
};
#define N_FIXED (sizeof fixed / sizeof *fixed)

static struct control *control_of(fuse_req_t req)
{
    return req_fs(req)->control;
}

/* ---- nodes ------------------------------------------------------------------------------------ */

struct cnode *cnode_find(struct control *c, uint64_t nodeid)
{
    struct cnode *n = c->nodes;

    while (n && n->nodeid != nodeid)
        n = n->next;
    return n;
}

struct cnode *cnode_get(struct control *c, enum cnode_kind kind, const char *path)
{
    return cnode_get_since(c, kind, path, 0);
}

struct cnode *cnode_get_since(struct control *c, enum cnode_kind kind, const char *path, int64_t since)
{
    struct cnode *n = c->nodes;

    while (n && (n->kind != kind || n->since != since || strcmp(n->path ? n->path : "", path) != 0))
        n = n->next;
    if (n)
        return n;
    n = calloc(1, sizeof *n);
    if (n == NULL || (n->path = strdup(path)) == NULL) {
        free(n);
        return NULL;
    }
    n->kind = kind;
    n->since = since;
    n->nodeid = 1ull << 63 | ++c->last_id;
    n->next = c->nodes;
    c->nodes = n;
    return n;
}

void cnode_maybe_free(struct control *c, struct cnode *n)
{
    struct cnode **p = &c->nodes;

    if (n->path == NULL || n->nlookup || n->opens)
        return;
    while (*p != n)
        p = &(*p)->next;
    *p = n->next;
    free(n->path);
    free(n);
}

bool cnode_is_dir(const struct cnode *n)
{
    return n->kind == CNODE_ROOT || n->kind == CNODE_KEYS || n->kind == CNODE_EVENTS || n->kind == CNODE_WAIT;
}

static bool is_writable(const struct cnode *n)
{
    return n->kind == CNODE_KEY || n->kind == CNODE_CONFIG;
}

void cnode_stat(const struct control *c, const struct cnode *n, struct stat *ret_st)
{
    const struct options *o = &c->fs->opt;
    mode_t mode = cnode_is_dir(n) ? S_IFDIR | 0700 : is_writable(n) ? S_IFREG | 0600 : S_IFREG | 0400;

    *ret_st = (struct stat){.st_ino = n->nodeid,
                            .st_mode = mode,
                            .st_nlink = 1,
                            .st_uid = o->uid,
                            .st_gid = o->gid,
                            .st_size = (off_t)n->size,
                            .st_blocks = (blkcnt_t)((n->size + 511) / 512),
                            .st_blksize = 1 << 20};
    (void)clock_gettime(CLOCK_REALTIME, &ret_st->st_mtim); /* its text is made when it is read */
    ret_st->st_ctim = ret_st->st_atim = ret_st->st_mtim;
}

static bool fixed_add(struct control *c, enum cnode_kind kind)
{
    struct cnode *n = cnode_get(c, kind, "");

    if (n == NULL)
        return false;
    if (kind != CNODE_EVENTS && kind != CNODE_WAIT) {
        free(n->path);
        n->path = NULL;
    } else
        n->opens = 1; /* never freed, but its path counts */
    return true;
}

int control_new(struct fs *fs, struct control **ret_control)
{
    struct control *c = calloc(1, sizeof *c);
    bool ok;

    if (c == NULL)
        return -ENOMEM;
    c->fs = fs;
    ok = fixed_add(c, CNODE_ROOT);
    for (size_t i = 0; i < N_FIXED; i++)
        ok = ok && fixed_add(c, fixed[i].kind);
    *ret_control = c;
    return ok ? 0 : -ENOMEM;
}

void control_free(struct control *c)
{
    if (c == NULL)
        return;
    for (struct cnode *n = c->nodes, *next; n; n = next) {
        next = n->next;
        free(n->path);
        free(n);
    }
    for (size_t i = 0; i < ERRORS_MAX; i++)
        free(c->errors[i]);
    free(c);
}

void control_error(struct control *c, const char *what, const char *path, int err, const char *text)
{
    char when[32] = "", *line = NULL;
    time_t now = time(NULL);
    struct tm tm;

    if (gmtime_r(&now, &tm))
        (void)strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    if (asprintf(&line, "%s %s %s: %s%s%s\n", when, what, path, strerror(err), text && *text ? ": " : "",
                 text ? text : "") < 0)
        return;
    free(c->errors[c->n_errors % ERRORS_MAX]);
    c->errors[c->n_errors++ % ERRORS_MAX] = line;
}

/* ---- names --------------------------------------------------------------------------------------- */

static void reply_cnode(fuse_req_t req, struct control *c, struct cnode *n)
{
    struct fuse_entry_param e = {.generation = 1};

    if (n == NULL) {
        (void)fuse_reply_err(req, ENOMEM);
        return;
    }
    e.ino = n->nodeid;
    cnode_stat(c, n, &e.attr);
    n->nlookup++;
    if (fuse_reply_entry(req, &e) != 0)
        control_forget(c, n->nodeid, 1);
}

/* A lookup in events/ or wait/, which mirror the directories; every other name is a key's, whether it
 * exists or not. */
struct mirror {
    struct op *op;
    enum cnode_kind kind; /* of the directory it is in */
    char *path;           /* of that directory */
    int64_t since;        /* of events@REV */
};

static void mirror_reply(struct mirror *m, bool is_dir)
{
    struct op *op = m->op;
    enum cnode_kind kind = is_dir ? m->kind : m->kind == CNODE_EVENTS ? CNODE_EVENT_FILE : CNODE_WAIT_FILE;
    fuse_req_t req = op_take(op);
    char *path = NULL;

    if (req && asprintf(&path, "%s%s%s", m->path, op->name, is_dir ? "/" : "") < 0)
        (void)fuse_reply_err(req, ENOMEM);
    else if (req)
        reply_cnode(req, op->fs->control, cnode_get_since(op->fs->control, kind, path, m->since));
    free(path);
    free(m->path);
    free(m);
    op_free(op);
}

static void mirror_done(struct wait *w, int err)
{
    struct op *op = (struct op *)((char *)w - offsetof(struct op, wait));

    mirror_reply((struct mirror *)(uintptr_t)op->arg, err == 0 && w->node->kind == NODE_DIR);
}

static void mirror_lookup(fuse_req_t req, struct control *c, const struct cnode *dir, const char *name)
{
    struct node *at = tree_root(c->fs->tree);
    char *rest = dir->path;
    struct mirror *m;

    if (strcmp(name, ".all") == 0) {
        reply_cnode(req, c,
                    cnode_get_since(c, dir->kind == CNODE_EVENTS ? CNODE_EVENT_FILE : CNODE_WAIT_FILE,
                                    dir->path, dir->since));
        return;
    }
    m = calloc(1, sizeof *m);
    if (m == NULL || (m->path = strdup(dir->path)) == NULL) {
        free(m);
        (void)fuse_reply_err(req, ENOMEM);
        return;
    }
    m->kind = dir->kind;
    m->since = dir->since;
    m->op = op_new(req, NULL, name);
    if (m->op == NULL) {
        free(m->path);
        free(m);
        return;
    }
    m->op->arg = (uintptr_t)m;
    for (char *slash; at && (slash = strchr(rest, '/')) != NULL; rest = slash + 1)
        at = tree_child(c->fs->tree, at, slice_of(rest, (size_t)(slash - rest)));
    if (at == NULL || at->kind != NODE_DIR) {
        mirror_reply(m, false);
        return;
    }
    m->op->wait.done = mirror_done;
    tree_lookup(c->fs->tree, at, slice_str(name), &m->op->wait);
}

/* events@REV */
static void root_lookup_since(fuse_req_t req, struct control *c, const char *name)
{
    static const char start[] = "events@";
    const char *digits = name + sizeof start - 1;
    char canonical[32];
    int64_t rev;

    if (strncmp(name, start, sizeof start - 1) != 0 || (rev = strtol(digits, NULL, 10)) < 1 ||
        snprintf(canonical, sizeof canonical, "%ld", rev) < 0 || strcmp(canonical, digits) != 0)
        (void)fuse_reply_err(req, ENOENT);
    else
        reply_cnode(req, c, cnode_get_since(c, CNODE_EVENTS, "", rev));
}

bool control_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct control *c = control_of(req);
    struct cnode *dir;

    if (parent == TREE_ROOT_ID && strcmp(name, CODEC_CONTROL_NAME) == 0) {
        reply_cnode(req, c, cnode_get(c, CNODE_ROOT, ""));
        return true;
    }
    if (!control_owns(parent))
        return false;
    dir = cnode_find(c, parent);
    if (dir == NULL) {
        (void)fuse_reply_err(req, ESTALE);
    } else if (dir->kind == CNODE_KEYS) {
        keys_lookup(req, c, name);
    } else if (dir->kind == CNODE_EVENTS || dir->kind == CNODE_WAIT) {
        mirror_lookup(req, c, dir, name);
    } else {
        for (size_t i = 0; i < N_FIXED; i++)
            if (strcmp(fixed[i].name, name) == 0) {
                reply_cnode(req, c, cnode_get(c, fixed[i].kind, ""));
                return true;
            }
        root_lookup_since(req, c, name);
    }
    return true;
}

void control_forget(struct control *c, uint64_t nodeid, uint64_t nlookup)
{
    struct cnode *n = cnode_find(c, nodeid);

    if (n == NULL)
        return;
    n->nlookup -= nlookup < n->nlookup ? nlookup : n->nlookup;
    cnode_maybe_free(c, n);
}

void control_getattr(fuse_req_t req, fuse_ino_t ino)
{
    struct control *c = control_of(req);
    struct cnode *n = cnode_find(c, ino);
    struct stat st;

    if (n == NULL) {
        (void)fuse_reply_err(req, ESTALE);
        return;
    }
    cnode_stat(c, n, &st);
    (void)fuse_reply_attr(req, &st, 0);
}

/* ---- open files --------------------------------------------------------------------------------------- */

bool chandle_append(struct chandle *h, const void *p, size_t n)
{
    if (h->len + n > h->room) {
        size_t room = h->room ? h->room : 4096;
        uint8_t *buf;

        while (room < h->len + n)
            room *= 2;
        buf = realloc(h->buf, room);
        if (buf == NULL)
            return false;
        h->buf = buf;
        h->room = room;
    }
    if (n)
        memcpy(h->buf + h->len, p, n);
    h->len += n;
    return true;
}

static bool is_stream(const struct cnode *n)
{
    return n->kind == CNODE_EVENT_FILE || n->kind == CNODE_WAIT_FILE;
}

static struct chandle *chandle_of(const struct fuse_file_info *fi)
{
    return (struct chandle *)(uintptr_t)fi->fh;
}

void chandle_free(struct chandle *h)
{
    if (is_stream(h->node))
        stream_close(h);
    h->node->opens--;
    cnode_maybe_free(h->control, h->node);
    free(h->buf);
    free(h);
}

void control_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct control *c = control_of(req);
    struct cnode *n = cnode_find(c, ino);
    struct chandle *h;
    size_t len = 0;

    if (n == NULL || ((fi->flags & O_ACCMODE) != O_RDONLY && !is_writable(n))) {
        (void)fuse_reply_err(req, n ? EACCES : ESTALE);
        return;
    }
    if (n->kind == CNODE_KEY) {
        keys_open(req, c, n, fi);
        return;
    }
    h = calloc(1, sizeof *h);
    if (h == NULL) {
        (void)fuse_reply_err(req, ENOMEM);
        return;
    }
    *h = (struct chandle){.control = c, .node = n, .flags = fi->flags};
    n->opens++;
    if (is_stream(n)) {
        stream_open(h);
        fi->nonseekable = 1;
    } else {
        h->buf = (uint8_t *)control_text(c, n->kind, &len);
        h->len = len;
    }
    fi->fh = (uintptr_t)h;
    fi->direct_io = 1;
    fi->noflush = 1;
    if (n->since)
        history_open(h, req, fi);
    else if (fuse_reply_open(req, fi) != 0)
        chandle_free(h);
}

void control_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    struct chandle *h = chandle_of(fi);

    (void)ino;
    if (is_stream(h->node))
        stream_read(h, req, size);
    else if ((size_t)off >= h->len)
        (void)fuse_reply_buf(req, NULL, 0);
    else
        (void)fuse_reply_buf(req, (const char *)h->buf + off,
                             size < h->len - (size_t)off ? size : h->len - (size_t)off);
}

void control_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
                   struct fuse_file_info *fi)
{
    struct chandle *h = chandle_of(fi);
    struct fs *fs = req_fs(req);
    size_t end;

    (void)ino;
    if (h->node->kind == CNODE_CONFIG) { /* taken at once: the shells' builtins look at what write says */
        int err = config_write(h->control, buf, size);

        if (err)
            (void)fuse_reply_err(req, err);
        else
            (void)fuse_reply_write(req, size);
        return;
    }
    if (h->flags & O_APPEND)
        off = (off_t)h->len;
    end = (size_t)off + size;
    if (end + REQUEST_OVERHEAD_BYTES > fs->opt.max_request_bytes) {
        (void)fuse_reply_err(req, EFBIG);
        return;
    }
    while (h->len < end)
        if (!chandle_append(h, "", 1)) {
            (void)fuse_reply_err(req, ENOMEM);
            return;
        }
    memcpy(h->buf + off, buf, size);
    h->dirty = true;
    (void)fuse_reply_write(req, size);
}

void control_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct chandle *h = chandle_of(fi);

    (void)ino;
    if (h->node->kind == CNODE_KEY && h->dirty)
        keys_commit(req, h);
    else
        (void)fuse_reply_err(req, 0);
}

void control_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct chandle *h = chandle_of(fi);

    (void)ino;
    (void)fuse_reply_err(req, 0);
    chandle_free(h);
}

void control_setattr(fuse_req_t req, fuse_ino_t ino, const struct stat *attr, int to_set,
                     struct fuse_file_info *fi)
{
    struct chandle *h = fi ? chandle_of(fi) : NULL;

    if (to_set & FUSE_SET_ATTR_SIZE && h && h->node->kind == CNODE_KEY) {
        while (h->len < (size_t)attr->st_size)
            if (!chandle_append(h, "", 1)) {
                (void)fuse_reply_err(req, ENOMEM);
                return;
            }
        h->len = (size_t)attr->st_size;
        h->dirty = true;
    }
    control_getattr(req, ino);
}

void control_poll(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct fuse_pollhandle *ph)
{
    struct chandle *h = chandle_of(fi);

    (void)ino;
    if (is_stream(h->node)) {
        stream_poll(h, req, ph);
        return;
    }
    if (ph)
        fuse_pollhandle_destroy(ph);
    (void)fuse_reply_poll(req, POLLIN | POLLOUT);
}

void control_create(fuse_req_t req, fuse_ino_t parent, const char *name, struct fuse_file_info *fi)
{
    struct control *c = control_of(req);
    struct cnode *dir = cnode_find(c, parent);

    if (dir && dir->kind == CNODE_KEYS)
        keys_create(req, c, name, fi);
    else
        (void)fuse_reply_err(req, EPERM);
}

void control_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct control *c = control_of(req);
    struct cnode *dir = cnode_find(c, parent);

    if (dir && dir->kind == CNODE_KEYS)
        keys_unlink(req, c, name);
    else
        (void)fuse_reply_err(req, EPERM);
}

/* ---- directories -------------------------------------------------------------------------------------- */

void control_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct cnode *n = cnode_find(control_of(req), ino);

    if (n && n->kind == CNODE_KEYS)
        keys_opendir(req, control_of(req), fi);
    else if (n)
        (void)fuse_reply_open(req, fi);
    else
        (void)fuse_reply_err(req, ESTALE);
}

static size_t add_name(fuse_req_t req, char *buf, size_t size, const char *name, mode_t type, off_t next)
{
    struct stat st = {.st_ino = (ino_t)next + 1, .st_mode = type};

    return fuse_add_direntry(req, buf, size, name, &st, next);
}

void control_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    struct control *c = control_of(req);
    struct cnode *n = cnode_find(c, ino);
    char buf[4096];
    size_t used = 0, room = size < sizeof buf ? size : sizeof buf;
    const char *name;

    if (n && n->kind == CNODE_KEYS) {
        keys_readdir(req, fi, size, off);
        return;
    }
    for (size_t i = (size_t)off; n; i++) {
        bool root = n->kind == CNODE_ROOT, is_dir = i < 2;
        size_t len;

        name = i == 0                    ? "."
               : i == 1                  ? ".."
               : root && i - 2 < N_FIXED ? fixed[i - 2].name
               : !root && i == 2         ? ".all"
                                         : NULL;
        if (name == NULL)
            break;
        is_dir = is_dir || (root && fixed[i - 2].kind >= CNODE_KEYS);
        len = add_name(req, buf + used, room - used, name, is_dir ? S_IFDIR : S_IFREG, (off_t)i + 1);
        if (len > room - used)
            break;
        used += len;
    }
    (void)fuse_reply_buf(req, buf, used);
}

void control_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct cnode *n = cnode_find(control_of(req), ino);

    if (n && n->kind == CNODE_KEYS)
        keys_releasedir(fi);
    (void)fuse_reply_err(req, 0);
}
