/* SPDX-License-Identifier: Apache-2.0 */
/* control_keys.c - .etcd/keys: every key by its whole name, whatever the tree makes of it.
 *
 * A file here is read by one linearizable Range at open and written by one put at FLUSH, if it was written
 * to, or at truncation. Nothing is cached: this view is for the few keys that the tree cannot show, and for
 * scripts that want bytes.
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
    char *name; /* encoded */
    struct chandle *h;
    struct fuse_file_info fi;
    bool create, guess;
    unsigned attempts;
    struct value *value; /* to be put */
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
    struct slice key = SLICE_NONE;
    uint8_t *buf = NULL;

    if (t == NULL || decode(k->control, k->name, &buf, &key) != 0) {
        txn_cancel(t);
        op_err(k->op, ENOMEM);
        keys_op_free(k);
        return;
    }
    txn_compare(t, key, SLICE_NONE, TXN_CREATE_REV, k->guess ? TXN_GREATER : TXN_EQUAL, 0);
    txn_put(t, key, k->value, k->guess ? TXN_IGNORE_LEASE : 0);
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

/* An open listing: one page of names, and where the next begins. It is read from front to back, or anew
 * from offset 0. */
struct keys_dir {
    struct control *control;
    struct client_call call;
    struct op *op; /* the READDIR that waits; NULL: none */
    uint8_t *next; /* the key the next page begins with; malloc'd */
    size_t next_len;
    bool end, released;
    char **names;
    size_t n, at;
    off_t off; /* of names[at] */
};

static void names_free(struct keys_dir *d)
{
    for (size_t i = 0; i < d->n; i++)
        free(d->names[i]);
    free(d->names);
    d->names = NULL;
    d->n = d->at = 0;
}

static void keys_dir_free(struct keys_dir *d)
{
    names_free(d);
    free(d->next);
    free(d);
}

static bool rewind_to_start(struct keys_dir *d)
{
    struct slice prefix = tree_prefix(d->control->fs->tree);

    names_free(d);
    free(d->next);
    d->next = malloc(prefix.len + 1);
    if (d->next == NULL)
        return false;
    if (prefix.len)
        memcpy(d->next, prefix.ptr, prefix.len);
    d->next_len = prefix.len;
    if (prefix.len == 0)
        d->next[d->next_len++] = 0; /* the first of all keys */
    d->end = false;
    d->off = 2;
    return true;
}

/* The page's names, and the key after its last. False: no memory. */
static bool take_page(struct keys_dir *d, const Etcdserverpb__RangeResponse *r)
{
    const Mvccpb__KeyValue *last = r->n_kvs ? r->kvs[r->n_kvs - 1] : NULL;
    uint8_t *next = last ? realloc(d->next, last->key.len + 1) : d->next;

    names_free(d);
    d->end = !r->more;
    d->names = calloc(r->n_kvs + 1, sizeof *d->names);
    if (next == NULL || d->names == NULL)
        return false;
    d->next = next;
    if (last) {
        memcpy(d->next, last->key.data, last->key.len);
        d->next[last->key.len] = 0;
        d->next_len = last->key.len + 1;
    }
    for (size_t i = 0; i < r->n_kvs; i++) {
        size_t room = r->kvs[i]->key.len * CODEC_EXPANSION + 8;
        char *name = malloc(room);
        int len = name ? codec_encode_key(slice_of(r->kvs[i]->key.data, r->kvs[i]->key.len), name, room - 1)
                       : -ENOMEM;

        if (len <= 0 || len > CODEC_NAME_MAX) { /* too long for the kernel: not here either */
            free(name);
            continue;
        }
        name[len] = 0;
        d->names[d->n++] = name;
    }
    return true;
}

static void reply_page(fuse_req_t req, struct keys_dir *d, size_t size)
{
    char *buf = malloc(size);
    size_t used = 0;

    if (buf == NULL) {
        (void)fuse_reply_err(req, ENOMEM);
        return;
    }
    for (; d->at < d->n; d->at++, d->off++) {
        struct stat st = {.st_ino = (ino_t)d->off + 1, .st_mode = S_IFREG};
        size_t len = fuse_add_direntry(req, buf + used, size - used, d->names[d->at], &st, d->off + 1);

        if (len > size - used)
            break;
        used += len;
    }
    (void)fuse_reply_buf(req, buf, used);
    free(buf);
}

static void page_ask(struct keys_dir *d);

static void page_done(struct client_call *call)
{
    struct keys_dir *d = (struct keys_dir *)((char *)call - offsetof(struct keys_dir, call));
    struct op *op = d->op;
    bool ok = call->outcome == CLIENT_OK && take_page(d, (const Etcdserverpb__RangeResponse *)call->reply);
    fuse_req_t req;

    if (ok && d->n == 0 && !d->end && !d->released) {
        page_ask(d); /* nothing in it that has a name here */
        return;
    }
    d->op = NULL;
    req = ok ? op_take(op) : NULL;
    if (req)
        reply_page(req, d, op->size);
    else
        op_err(op, call->outcome == CLIENT_OK ? ENOMEM : client_errno(call, CLIENT_USE_READ));
    op_free(op);
    if (d->released)
        keys_dir_free(d);
}

static void page_ask(struct keys_dir *d)
{
    Etcdserverpb__RangeRequest r = ETCDSERVERPB__RANGE_REQUEST__INIT;
    struct slice prefix = tree_prefix(d->control->fs->tree);
    uint8_t *end = malloc(prefix.len + 1);

    r.key = (ProtobufCBinaryData){d->next_len, d->next};
    if (end)
        r.range_end = (ProtobufCBinaryData){codec_prefix_end(prefix, end), end};
    r.limit = LIST_PAGE;
    r.keys_only = true;
    d->call = (struct client_call){.done = page_done};
    client_start(d->control->fs->client, &d->call, CLIENT_RANGE, &r.base, 0);
    free(end);
}

void keys_opendir(fuse_req_t req, struct control *c, struct fuse_file_info *fi)
{
    struct keys_dir *d = calloc(1, sizeof *d);

    if (d == NULL) {
        (void)fuse_reply_err(req, ENOMEM);
        return;
    }
    d->control = c;
    fi->fh = (uintptr_t)d;
    if (!rewind_to_start(d))
        (void)fuse_reply_err(req, ENOMEM);
    else if (fuse_reply_open(req, fi) == 0)
        return;
    keys_dir_free(d);
}

void keys_readdir(fuse_req_t req, struct fuse_file_info *fi, size_t size, off_t off)
{
    struct keys_dir *d = (struct keys_dir *)(uintptr_t)fi->fh;

    if (d->op || (off == 0 && !rewind_to_start(d))) {
        (void)fuse_reply_err(req, d->op ? EBUSY : ENOMEM);
        return;
    }
    if (d->at < d->n || d->end) {
        reply_page(req, d, size);
        return;
    }
    d->op = op_new(req, NULL, NULL);
    if (d->op == NULL)
        return;
    d->op->size = size;
    page_ask(d);
}

void keys_releasedir(struct fuse_file_info *fi)
{
    struct keys_dir *d = (struct keys_dir *)(uintptr_t)fi->fh;

    d->released = true;
    if (d->op == NULL)
        keys_dir_free(d);
}
