/* SPDX-License-Identifier: Apache-2.0 */
/* xattr.c - what etcd knows of a key beside its value, as user.etcd.* (A.7).
 *
 *     ttl        rw  seconds, of the lease: setting grants one and attaches it; 0 or removal detaches
 *                    of a directory: what files created in it here get (lease_keep.h)
 *     lease      rw  hexadecimal id; 0 detaches
 *     keepalive  rw  mount, open or none; of a directory as with ttl
 *     ttl_left rev create_rev version key error stale      read only
 *
 * listxattr names ttl alone, when set: what is copied by cp -a and rsync -X must be settable elsewhere.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include "control.h"
#include "ops.h"
#include "overlay.h"
#include "rpc.pb-c.h"

#define OURS    "user.etcd."
#define TTL_MAX 9000000000 /* etcd's */

/* One question or change about a file's lease. */
struct lease_op {
    struct op *op;
    struct client_call call;
    int64_t ttl, lease; /* wanted */
    size_t size;        /* getxattr: room of the caller */
    bool left;          /* ttl_left rather than ttl */
    unsigned attempts;
};

static void lease_op_end(struct lease_op *l, int err)
{
    op_end(l->op, err);
    free(l);
}

static struct lease_op *lease_op_new(fuse_req_t req, struct node *n)
{
    struct lease_op *l = calloc(1, sizeof *l);

    if (l == NULL) {
        (void)fuse_reply_err(req, ENOMEM);
        return NULL;
    }
    l->op = op_new(req, n, NULL);
    if (l->op == NULL) {
        free(l);
        return NULL;
    }
    l->op->arg = (uintptr_t)l;
    return l;
}

static void reply_text(fuse_req_t req, const void *text, size_t len, size_t size)
{
    if (size == 0)
        (void)fuse_reply_xattr(req, len);
    else if (len > size)
        (void)fuse_reply_err(req, ERANGE);
    else
        (void)fuse_reply_buf(req, text, len);
}

/* ---- get -------------------------------------------------------------------------------------- */

static void ttl_done(struct client_call *call)
{
    struct lease_op *l = (struct lease_op *)((char *)call - offsetof(struct lease_op, call));
    const Etcdserverpb__LeaseTimeToLiveResponse *r =
        call->outcome == CLIENT_OK ? (const void *)call->reply : NULL;
    fuse_req_t req;
    char text[32];
    int n;

    if (r == NULL || r->ttl < 0) { /* -1: the lease is gone, and the key with it in a moment */
        lease_op_end(l, r ? ENODATA : client_errno(call, CLIENT_USE_LEASE));
        return;
    }
    n = snprintf(text, sizeof text, "%" PRId64, l->left ? r->ttl : r->grantedttl);
    req = op_take(l->op);
    if (req)
        reply_text(req, text, (size_t)n, l->size);
    lease_op_end(l, 0);
}

static void get_ttl(fuse_req_t req, struct node *n, bool left, size_t size)
{
    Etcdserverpb__LeaseTimeToLiveRequest r = ETCDSERVERPB__LEASE_TIME_TO_LIVE_REQUEST__INIT;
    struct lease_op *l = lease_op_new(req, n);

    if (l == NULL)
        return;
    l->left = left;
    l->size = size;
    r.id = n->meta.lease;
    l->call = (struct client_call){.done = ttl_done};
    client_start(l->op->fs->client, &l->call, CLIENT_LEASE_TTL, &r.base, 0);
}

static void get_number(fuse_req_t req, int64_t v, bool hex, size_t size)
{
    char text[32];
    int n = hex ? snprintf(text, sizeof text, "%" PRIx64, (uint64_t)v)
                : snprintf(text, sizeof text, "%" PRId64, v);

    reply_text(req, text, (size_t)n, size);
}

static void get_key(fuse_req_t req, struct node *n, size_t size)
{
    uint8_t *key = NULL;
    size_t len = 0;

    if (node_key(req_fs(req)->tree, n, &key, &len) != 0)
        (void)fuse_reply_err(req, ENOMEM);
    else
        reply_text(req, key, len, size);
    free(key);
}

static void get_keepalive(fuse_req_t req, const struct node *n, size_t size)
{
    const struct keeper *k = req_fs(req)->keeper;
    const char *name = keep_mode_name(n->kind == NODE_DIR ? keep_default_get(k, n).mode : keep_get(k, n));

    reply_text(req, name, strlen(name), size);
}

static void get_of_key(fuse_req_t req, struct node *n, const char *name, size_t size)
{
    const struct key_meta *m = n->kind == NODE_DIR ? &n->dir->marker : &n->meta;
    const struct file_state *s = file_state_if(n);
    struct client_health h;

    client_get_health(req_fs(req)->client, &h);
    if (strcmp(name, "key") == 0)
        get_key(req, n, size);
    else if (strcmp(name, "keepalive") == 0)
        get_keepalive(req, n, size);
    else if (strcmp(name, "ttl") == 0 && n->kind == NODE_DIR && keep_default_get(req_fs(req)->keeper, n).ttl)
        get_number(req, keep_default_get(req_fs(req)->keeper, n).ttl, false, size);
    else if (strcmp(name, "stale") == 0)
        get_number(req, h.in_doubt, false, size);
    else if (strcmp(name, "error") == 0 && s && s->last_text)
        reply_text(req, s->last_text, strlen(s->last_text), size);
    else if (m->mod_rev == 0)
        (void)fuse_reply_err(req, ENODATA);
    else if (strcmp(name, "rev") == 0)
        get_number(req, m->mod_rev, false, size);
    else if (strcmp(name, "create_rev") == 0)
        get_number(req, m->create_rev, false, size);
    else if (strcmp(name, "version") == 0)
        get_number(req, m->version, false, size);
    else if (strcmp(name, "lease") == 0 && m->lease)
        get_number(req, m->lease, true, size);
    else if ((strcmp(name, "ttl") == 0 || strcmp(name, "ttl_left") == 0) && m->lease && n->kind != NODE_DIR)
        get_ttl(req, n, name[3] != 0, size);
    else
        (void)fuse_reply_err(req, ENODATA);
}

void fs_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    struct node *n;

    /* security.capability is asked for before every write: answered right here. */
    if (ino >= TREE_NODEID_END || strncmp(name, OURS, sizeof OURS - 1) != 0) {
        (void)fuse_reply_err(req, ENODATA);
        return;
    }
    n = req_node(req, ino);
    if (n)
        get_of_key(req, n, name + sizeof OURS - 1, size);
}

void fs_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    static const char name[] = OURS "ttl";
    struct node *n = ino < TREE_NODEID_END ? tree_node(req_fs(req)->tree, ino) : NULL;

    if (n && n->present &&
        (n->kind == NODE_DIR ? keep_default_get(req_fs(req)->keeper, n).ttl : n->meta.lease) != 0)
        reply_text(req, name, sizeof name, size);
    else
        reply_text(req, NULL, 0, size);
}

/* ---- set ----------------------------------------------------------------------------------------- */

static void attach_read(struct wait *w, int err);

static void attached(struct txn *t, void *arg, int err)
{
    struct lease_op *l = arg;

    (void)t;
    if (err == -1 &&
        ++l->attempts < COMMIT_RETRIES) { /* the value changed meanwhile: the lease goes to the new one */
        l->op->wait = (struct wait){.done = attach_read};
        tree_open_read(l->op->fs->tree, l->op->node, &l->op->wait);
        return;
    }
    lease_op_end(l, err == -1 ? ESTALE : err == ENOENT ? EINVAL : err);
}

static void attach_read(struct wait *w, int err)
{
    struct op *op = (struct op *)((char *)w - offsetof(struct op, wait));
    struct lease_op *l = (struct lease_op *)(uintptr_t)op->arg;
    struct value *copy =
        err ? NULL : value_new(slice_of(w->value->bytes, w->value->meta.size), &(struct key_meta){0});
    struct txn *t = copy ? txn_new(op->fs, attached, l) : NULL;
    uint8_t *key = NULL;
    size_t len = 0;

    if (t == NULL || node_key(op->fs->tree, op->node, &key, &len) != 0) {
        txn_cancel(t);
        lease_op_end(l, err ? err : ENOMEM);
    } else {
        txn_compare(t, slice_of(key, len), SLICE_NONE, TXN_MOD_REV, TXN_EQUAL, w->value->meta.mod_rev);
        txn_put_lease(t, slice_of(key, len), copy, l->lease);
        txn_run(t);
    }
    if (err == 0)
        value_unref(w->value);
    value_unref(copy);
    free(key);
}

static void attach(struct lease_op *l)
{
    l->op->wait = (struct wait){.done = attach_read};
    tree_open_read(l->op->fs->tree, l->op->node, &l->op->wait);
}

static void granted(struct client_call *call)
{
    struct lease_op *l = (struct lease_op *)((char *)call - offsetof(struct lease_op, call));

    if (call->outcome != CLIENT_OK) {
        lease_op_end(l, client_errno(call, CLIENT_USE_LEASE));
        return;
    }
    l->lease = ((const Etcdserverpb__LeaseGrantResponse *)call->reply)->id;
    attach(l);
}

static void set_ttl(struct lease_op *l)
{
    Etcdserverpb__LeaseGrantRequest r = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;

    r.ttl = l->ttl;
    l->call = (struct client_call){.done = granted};
    client_start(l->op->fs->client, &l->call, CLIENT_LEASE_GRANT, &r.base, 0);
}

/* The whole value is one number in this base. */
static bool number(const char *value, size_t size, int base, int64_t *ret_n)
{
    char text[32], *end;
    unsigned long long n;

    while (size && (value[size - 1] == '\n' || value[size - 1] == 0))
        size--;
    if (size == 0 || size >= sizeof text)
        return false;
    memcpy(text, value, size);
    text[size] = 0;
    errno = 0;
    n = strtoull(text, &end, base);
    *ret_n = (int64_t)n;
    return errno == 0 && *end == 0 && *text != '-' && (base == 16 || n <= INT64_MAX);
}

static void set_default(fuse_req_t req, struct node *n, struct keep_default d)
{
    (void)fuse_reply_err(req, n->present ? keep_default_set(req_fs(req)->keeper, n, d) : ENOENT);
}

static void set_keepalive(fuse_req_t req, struct node *n, const char *value, size_t size)
{
    struct keeper *k = req_fs(req)->keeper;
    enum keep_mode mode;

    if (!keep_mode_of(value, size, &mode) ||
        (n->kind != NODE_DIR && mode != KEEP_NONE && n->meta.lease == 0)) /* nothing to keep */
        (void)fuse_reply_err(req, EINVAL);
    else if (n->kind == NODE_DIR)
        set_default(req, n, (struct keep_default){keep_default_get(k, n).ttl, mode});
    else
        (void)fuse_reply_err(req, keep_set(k, n, mode));
}

static void change_lease(fuse_req_t req, struct node *n, int64_t ttl, int64_t lease)
{
    struct lease_op *l;
    int err = n->kind == NODE_DIR || !n->present ? ENOTSUP : fs_may_change(req_fs(req));

    if (err) {
        (void)fuse_reply_err(req, err);
        return;
    }
    l = lease_op_new(req, n);
    if (l == NULL)
        return;
    l->ttl = ttl;
    l->lease = lease;
    if (ttl)
        set_ttl(l);
    else
        attach(l);
}

void fs_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size, int flags)
{
    struct node *n;
    int64_t v;

    (void)flags;
    if (ino >= TREE_NODEID_END || strncmp(name, OURS, sizeof OURS - 1) != 0) {
        (void)fuse_reply_err(req, ENOTSUP);
        return;
    }
    n = req_node(req, ino);
    if (n == NULL)
        return;
    name += sizeof OURS - 1;
    if (strcmp(name, "keepalive") == 0)
        set_keepalive(req, n, value, size);
    else if (strcmp(name, "ttl") == 0)
        if (!number(value, size, 10, &v) || v > TTL_MAX)
            (void)fuse_reply_err(req, EINVAL);
        else if (n->kind == NODE_DIR)
            set_default(req, n, (struct keep_default){v, keep_default_get(req_fs(req)->keeper, n).mode});
        else
            change_lease(req, n, v, 0);
    else if (strcmp(name, "lease") == 0)
        if (number(value, size, 16, &v))
            change_lease(req, n, 0, v);
        else
            (void)fuse_reply_err(req, EINVAL);
    else
        (void)fuse_reply_err(req, ENOTSUP);
}

void fs_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
    struct node *n;

    if (ino >= TREE_NODEID_END || (strcmp(name, OURS "ttl") != 0 && strcmp(name, OURS "lease") != 0)) {
        (void)fuse_reply_err(req, ENODATA);
        return;
    }
    n = req_node(req, ino);
    if (n == NULL)
        return;
    if (n->kind == NODE_DIR ? keep_default_get(req_fs(req)->keeper, n).ttl == 0 : n->meta.lease == 0)
        (void)fuse_reply_err(req, ENODATA);
    else if (n->kind == NODE_DIR)
        set_default(req, n, (struct keep_default){0, keep_default_get(req_fs(req)->keeper, n).mode});
    else
        change_lease(req, n, 0, 0);
}
