/* SPDX-License-Identifier: Apache-2.0 */
/* ops_rename_dir.c - renaming a directory: all keys below it, at one revision, or none (A.3).
 *
 *     up to 126 keys, in one request     a transaction: one range delete and a put for each key
 *     up to RENAME_KEYS_MAX keys         cairnd's own call (include/proto/tree.proto), one entry of its log
 *     more, or another server            EXDEV: mv copies
 *
 * Both are refused when a key is newer than what was read, or the new name has keys by now: read again, and after some
 * times EXDEV, since somebody works in it. Each can take effect once only, so one with an unknown outcome can be sent
 * again while the first key is still what it was.
 *
 * The nodes go along (tree_move.c), and with them handles, working directories and files of the overlay. So commits
 * below the directory wait, and so does whatever makes or removes a name there: those under way before it begins, new
 * ones until it has ended and they have their new key; the watch is held until the answer is there. One at a time.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "ops_rename.h"
#include "overlay.h"
#include "rpc.pb-c.h"
#include "tree.pb-c.h"

#define ATTEMPTS_MAX 4

struct dir_renaming {
    struct renaming *r;
    struct client_call call;
    Etcdserverpb__RangeResponse *keys; /* as read; with their values unless large */
    uint8_t *from, *to;
    size_t from_len, to_len;
    int64_t deadline_ms;
    unsigned sent; /* how often, since it was read */
    int verdict;   /* of the one sent again: -1 or an errno, unless the first one happened */
    int64_t found; /* the first key has its new name since this revision: is it since then that the old one is gone? */
    bool mine;     /* fs->moving */
    bool large;    /* by cairnd's call */
    bool onto_dir; /* a directory, whose inode dies with it */
};

static void dir_ask(struct dir_renaming *d);

static struct slice kv_key(const Mvccpb__KeyValue *kv)
{
    return slice_of(kv->key.data, kv->key.len);
}

static void keys_drop(struct dir_renaming *d)
{
    if (d->keys)
        protobuf_c_message_free_unpacked(&d->keys->base, NULL);
    d->keys = NULL;
}

static void dir_end(struct dir_renaming *d, int err)
{
    struct renaming *r = d->r;
    struct fs *fs = r->op->fs;

    if (d->mine) {
        fs->moving = NULL;
        handles_resume(fs);
    }
    keys_drop(d);
    free(d->from);
    free(d->to);
    free(d);
    renaming_end(r, err);
}

/* ---- it has happened ------------------------------------------------------------------------------ */

/* The kernel has old times, inode numbers and listings, and names that did not come along. */
static void tell_kernel(struct fs *fs, struct node *n)
{
    if (n->nlookup && !node_visible(n)) {
        notify_name(fs->notify, n->parent, n->name);
    } else if (n->nlookup) {
        notify_attributes(fs->notify, n->nodeid);
        if (n->dir)
            notify_pages(fs->notify, n);
    }
    for (struct node *c = n->dir ? n->dir->children : NULL; c; c = c->next)
        tell_kernel(fs, c);
}

/* The key as read of which a node below the directory is now the new one. NULL: it was not there. */
static const Mvccpb__KeyValue *key_of(const struct dir_renaming *d, const struct node *n)
{
    const Mvccpb__KeyValue *found = NULL;
    uint8_t *key;
    size_t len;

    if (node_key(d->r->op->fs->tree, n, &key, &len) != 0)
        return NULL;
    for (size_t i = 0; i < d->keys->n_kvs && found == NULL && len >= d->to_len; i++) {
        const Mvccpb__KeyValue *kv = d->keys->kvs[i];

        if (kv->key.len - d->from_len == len - d->to_len &&
            memcmp(kv->key.data + d->from_len, key + d->to_len, len - d->to_len) == 0)
            found = kv;
    }
    free(key);
    return found;
}

/* What was read of a key is what its new name holds: nobody has changed it meanwhile. */
static void revisions_move(struct dir_renaming *d, int64_t rev)
{
    struct fs *fs = d->r->op->fs;
    const Mvccpb__KeyValue *kv;

    for (struct handle *h = fs->handles; h; h = h->next) {
        if (h->node == NULL || !node_is_below(h->node, d->r->op->node) || (kv = key_of(d, h->node)) == NULL)
            continue;
        if (h->expected_rev == kv->mod_revision)
            h->expected_rev = rev;
        if (h->pin && h->pin->meta.mod_rev == kv->mod_revision) {
            h->pin->meta.create_rev = h->pin->meta.mod_rev = rev;
            h->pin->meta.version = 1;
        }
    }
    for (size_t i = 0; fs->opt.conflict_fail && i < SEEN_MAX; i++) {
        struct seen *s = &fs->seen[i];
        const struct node *n = s->nodeid ? tree_node(fs->tree, s->nodeid) : NULL;

        if (n && node_is_below(n, d->r->op->node) && (kv = key_of(d, n)) != NULL && s->rev == kv->mod_revision)
            s->rev = rev;
    }
}

/* The nodes cannot move: the directory vanishes here and the watch makes another one. */
static void move_by_watch(struct dir_renaming *d, int64_t rev)
{
    struct op *op = d->r->op;
    struct node *there;

    tree_rmdir(op->fs->tree, op->node, rev);
    op->node->dir->moved = true;
    there = d->onto_dir ? renaming_target(op) : NULL;
    if (there && there->kind == NODE_DIR)
        tree_dir_renew(op->fs->tree, there);
}

static void dir_moved(struct dir_renaming *d, int64_t rev)
{
    struct op *op = d->r->op;
    struct tree *t = op->fs->tree;
    struct node *there = renaming_target(op), *values[2], *shown;
    uint64_t serial = tree_serial(t);

    if (d->keys->n_kvs)
        feed_own_end(op->fs->feed, slice_of(d->from, d->from_len), rev);
    values[0] = node_ref(tree_child(t, op->node, S(CODEC_VALUE_NAME)));
    values[1] = node_ref(there && there->dir ? tree_child(t, there, S(CODEC_VALUE_NAME)) : NULL);
    if (tree_move_dir(t, op->node, op->node2, slice_str(op->name2), rev) != 0) {
        node_unref(t, values[0]);
        node_unref(t, values[1]);
        move_by_watch(d, rev);
        return;
    }
    for (int i = 0; i < 2; i++) { /* the open files of a directory's own key, which has another node now */
        shown = i ? tree_child(t, op->node, S(CODEC_VALUE_NAME)) : tree_child(t, d->r->from_dir, slice_str(op->name));
        if (values[i] && shown)
            handles_move(values[i], shown);
        node_unref(t, values[i]);
    }
    for (size_t i = 0; i < d->keys->n_kvs; i++) {
        const Mvccpb__KeyValue *kv = d->keys->kvs[i];

        tree_moved_key(t, op->node, slice_of(kv->key.data + d->from_len, kv->key.len - d->from_len), kv->mod_revision,
                       rev, serial);
    }
    tree_moved_all(t, op->node, rev, serial);
    revisions_move(d, rev);
    tell_kernel(op->fs, op->node);
    d->r->follows = true;
}

/* err: 0, -1: it has changed since it was read, or an errno. */
static void dir_done(struct dir_renaming *d, int err, int64_t rev)
{
    if (err == 0)
        dir_moved(d, rev);
    feed_release(d->r->op->fs->feed);
    if (err == -1 && ++d->r->attempts < ATTEMPTS_MAX) {
        dir_ask(d);
        return;
    }
    /* Somebody works in it, or it is more than the server takes at once: mv copies instead. */
    dir_end(d, err == -1 || err == EFBIG ? EXDEV : err);
}

/* ---- by cairnd's call ------------------------------------------------------------------------------- */

static void dir_call(struct dir_renaming *d);

static bool call_unknown_here(const struct fs *fs)
{
    struct client_health h;

    client_get_health(fs->client, &h);
    return fs->no_rename_ms && fs->no_rename_member == h.member_id &&
           client_now_ms() < fs->no_rename_ms + RENAME_UNKNOWN_MS;
}

static void note_call_unknown(struct fs *fs)
{
    struct client_health h;

    client_get_health(fs->client, &h);
    fs->no_rename_member = h.member_id;
    fs->no_rename_ms = client_now_ms();
}

static struct dir_renaming *of_call(struct client_call *call)
{
    return (struct dir_renaming *)((char *)call - offsetof(struct dir_renaming, call));
}

static struct dir_renaming *of_timer(struct timer *timer)
{
    struct op *op = (struct op *)((char *)timer - offsetof(struct op, timer));

    return ((struct renaming *)(uintptr_t)op->arg)->dir;
}

static void look(struct timer *timer);

static void look_in(struct dir_renaming *d, uint64_t ms)
{
    struct op *op = d->r->op;

    if (client_now_ms() >= d->deadline_ms) {
        dir_done(d, ETIMEDOUT, 0);
        return;
    }
    op->timer.fire = look;
    session_timer_set(&op->fs->session, &op->timer, ms);
}

/* The first of the keys under its old name, and under its new one. It can take effect once only, so while the old one
 * is as it was it is sent again. */
static void looked_now(struct dir_renaming *d, const Mvccpb__KeyValue *from, const Mvccpb__KeyValue *to)
{
    const Mvccpb__KeyValue *first = d->keys->kvs[0];

    if (from && from->mod_revision == first->mod_revision) {
        if (d->verdict)
            dir_done(d, d->verdict, 0);
        else
            dir_call(d);
    } else if (from && from->create_revision <= first->mod_revision) {
        dir_done(d, -1, 0); /* changed, and not gone since */
    } else if (to && to->create_revision > d->keys->header->revision) {
        d->found = to->create_revision;
        look_in(d, 0);
    } else
        dir_done(d, ETIMEDOUT, 0); /* deleted here or there: nobody knows */
}

static void looked(struct client_call *call)
{
    struct dir_renaming *d = of_call(call);
    const Etcdserverpb__TxnResponse *res = call->outcome == CLIENT_OK ? (const void *)call->reply : NULL;
    const Mvccpb__KeyValue *kv[2] = {NULL, NULL};

    if (res == NULL && (d->found == 0 || call->outcome != CLIENT_REFUSED)) {
        look_in(d, COMMIT_REREAD_MS);
        return;
    }
    for (size_t i = 0; res && i < 2 && i < res->n_responses; i++)
        if (res->responses[i]->response_case == ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE &&
            res->responses[i]->response_range->n_kvs)
            kv[i] = res->responses[i]->response_range->kvs[0];
    if (d->found == 0)
        looked_now(d, kv[0], kv[1]);
    else if (kv[0] == NULL && kv[1] && kv[1]->mod_revision == d->keys->kvs[0]->mod_revision)
        dir_done(d, 0, d->found);
    else
        dir_done(d, ETIMEDOUT, 0); /* compacted since, or it was not from here that the new name came */
}

/* Two keys now, or the old one at two revisions. */
static void look(struct timer *timer)
{
    struct dir_renaming *d = of_timer(timer);
    const Mvccpb__KeyValue *first = d->keys->kvs[0];
    size_t rest = first->key.len - d->from_len;
    uint8_t *to = malloc(d->to_len + rest);
    Etcdserverpb__RangeRequest ranges[2] = {ETCDSERVERPB__RANGE_REQUEST__INIT, ETCDSERVERPB__RANGE_REQUEST__INIT};
    Etcdserverpb__RequestOp ops[2] = {ETCDSERVERPB__REQUEST_OP__INIT, ETCDSERVERPB__REQUEST_OP__INIT};
    Etcdserverpb__RequestOp *list[2] = {&ops[0], &ops[1]};
    Etcdserverpb__TxnRequest req = ETCDSERVERPB__TXN_REQUEST__INIT;

    if (to == NULL) {
        dir_done(d, ETIMEDOUT, 0);
        return;
    }
    memcpy(to, d->to, d->to_len);
    memcpy(to + d->to_len, first->key.data + d->from_len, rest);
    for (int i = 0; i < 2; i++) {
        ranges[i].key = i == 0 || d->found ? first->key : (ProtobufCBinaryData){d->to_len + rest, to};
        ranges[i].revision = d->found ? d->found - i : 0;
        ranges[i].keys_only = true;
        ops[i].request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
        ops[i].request_range = &ranges[i];
    }
    req.success = list;
    req.n_success = 2;
    d->call = (struct client_call){.done = looked, .reads_only = true};
    client_start(d->r->op->fs->client, &d->call, CLIENT_TXN, &req.base, COMMIT_ATTEMPT_MS);
    free(to);
}

/* It was not carried out: err as for dir_done, unless an earlier one was. */
static void dir_refused(struct dir_renaming *d, int err)
{
    if (d->sent == 1) {
        dir_done(d, err, 0);
        return;
    }
    d->verdict = err;
    look_in(d, 0);
}

static void dir_called(struct client_call *call)
{
    struct dir_renaming *d = of_call(call);
    struct fs *fs = d->r->op->fs;
    const Cairn__RenameResponse *res = (const void *)call->reply;

    if (call->outcome == CLIENT_UNKNOWN || (call->outcome == CLIENT_NOT_SENT && d->sent > 1)) {
        look_in(d, d->sent > 1 ? COMMIT_REREAD_MS : 0);
        return;
    }
    if (call->outcome != CLIENT_OK) {
        bool unknown = call->code == STATUS_UNIMPLEMENTED;

        if (unknown)
            note_call_unknown(fs);
        fs->nospace |= call->err == ERR_NOSPACE;
        dir_refused(d, unknown ? EXDEV : client_errno(call, CLIENT_USE_WRITE));
        return;
    }
    switch ((int)res->outcome) {
    case CAIRN__RENAME_RESPONSE__OUTCOME__DONE:
        fs->n_commits++;
        fs->nospace = false;
        dir_done(d, 0, res->header->revision);
        return;
    case CAIRN__RENAME_RESPONSE__OUTCOME__TOO_LARGE:
        dir_refused(d, EXDEV);
        return;
    default:
        dir_refused(d, -1);
    }
}

static void dir_call(struct dir_renaming *d)
{
    Cairn__RenameRequest req = CAIRN__RENAME_REQUEST__INIT;
    int64_t left = d->deadline_ms - client_now_ms();

    req.from = (ProtobufCBinaryData){d->from_len, d->from};
    req.to = (ProtobufCBinaryData){d->to_len, d->to};
    req.revision = d->keys->header->revision;
    req.flags = CAIRN__RENAME_FLAG__RENAME_MARKER;
    d->sent++;
    d->verdict = 0;
    d->call = (struct client_call){.done = dir_called};
    client_start(d->r->op->fs->client, &d->call, CLIENT_TREE_RENAME, &req.base, left > 0 ? left : 1);
}

/* ---- by a transaction --------------------------------------------------------------------------------- */

static void dir_larger(struct dir_renaming *d);

static void txn_ended(struct txn *t, void *arg, int err)
{
    dir_done(arg, err, txn_rev(t));
}

static int txn_build(const struct dir_renaming *d, struct txn *t)
{
    const Etcdserverpb__RangeResponse *keys = d->keys;
    struct slice from = slice_of(d->from, d->from_len), to = slice_of(d->to, d->to_len);
    uint8_t *end = malloc(from.len + to.len + 2), *name = malloc(CODEC_KEY_MAX);
    size_t end_len;
    int err = ENOMEM;

    if (end == NULL || name == NULL || to.len >= CODEC_KEY_MAX)
        goto out;
    end_len = codec_prefix_end(from, end);
    txn_compare(t, from, slice_of(end, end_len), TXN_MOD_REV, TXN_LESS, keys->header->revision + 1);
    txn_delete_range(t, from, slice_of(end, end_len));
    end_len = codec_prefix_end(to, end);
    memcpy(name, to.ptr, to.len);
    name[to.len] = 0;
    /* Nothing below the new name but perhaps its marker, which is put anew. */
    txn_compare(t, slice_of(name, to.len + 1), slice_of(end, end_len), TXN_CREATE_REV, TXN_EQUAL, 0);
    for (size_t i = 0; i < keys->n_kvs; i++) {
        const Mvccpb__KeyValue *kv = keys->kvs[i];
        struct value *v = value_new(slice_of(kv->value.data, kv->value.len), &(struct key_meta){0});

        if (v == NULL || to.len + kv->key.len - from.len > CODEC_KEY_MAX) {
            value_unref(v);
            goto out;
        }
        txn_compare(t, kv_key(kv), SLICE_NONE, TXN_MOD_REV, TXN_EQUAL, kv->mod_revision);
        txn_note_delete(t, kv_key(kv));
        memcpy(name + to.len, kv->key.data + from.len, kv->key.len - from.len);
        txn_put_new(t, slice_of(name, to.len + kv->key.len - from.len), v, kv->lease);
        value_unref(v);
    }
    err = txn_size(t) + REQUEST_OVERHEAD_BYTES > d->r->op->fs->opt.max_request_bytes ? EFBIG : 0;
out:
    free(end);
    free(name);
    return err;
}

static void dir_txn(struct dir_renaming *d)
{
    struct txn *t = txn_new(d->r->op->fs, txn_ended, d);
    int err = t ? txn_build(d, t) : ENOMEM;

    if (err == 0) {
        txn_teaches_nothing(t);
        feed_hold(d->r->op->fs->feed);
        txn_run(t);
        return;
    }
    txn_cancel(t);
    if (err == EFBIG)
        dir_larger(d);
    else
        dir_end(d, err);
}

/* ---- what there is to move ---------------------------------------------------------------------------------- */

static void dir_read(struct client_call *call)
{
    struct dir_renaming *d = of_call(call);
    size_t n;

    if (call->outcome != CLIENT_OK) {
        dir_end(d, client_errno(call, CLIENT_USE_WRITE));
        return;
    }
    d->keys = (Etcdserverpb__RangeResponse *)client_take_reply(call);
    n = d->keys->n_kvs;
    if (!d->large && (d->keys->more || n > TXN_OPS_MAX - 2))
        dir_larger(d);
    else if (!d->large)
        dir_txn(d);
    else if (n == 0 || d->keys->more)
        dir_end(d, EXDEV);
    else {
        feed_hold(d->r->op->fs->feed);
        dir_call(d);
    }
}

static void dir_ask(struct dir_renaming *d)
{
    Etcdserverpb__RangeRequest req = ETCDSERVERPB__RANGE_REQUEST__INIT;
    uint8_t *end = malloc(d->from_len + 1);

    keys_drop(d);
    if (end == NULL) {
        dir_end(d, ENOMEM);
        return;
    }
    req.key = (ProtobufCBinaryData){d->from_len, d->from};
    req.range_end = (ProtobufCBinaryData){codec_prefix_end(slice_of(d->from, d->from_len), end), end};
    req.limit = d->large ? RENAME_KEYS_MAX : TXN_OPS_MAX;
    req.keys_only = d->large;
    d->sent = 0;
    d->found = 0;
    d->deadline_ms = client_now_ms() + d->r->op->fs->opt.timeout_ms;
    d->call = (struct client_call){.done = dir_read};
    client_start(d->r->op->fs->client, &d->call, CLIENT_RANGE, &req.base, 0);
    free(end);
}

/* More than a transaction takes. */
static void dir_larger(struct dir_renaming *d)
{
    d->large = true;
    if (call_unknown_here(d->r->op->fs))
        dir_end(d, EXDEV);
    else
        dir_ask(d);
}

/* ---- beginning ------------------------------------------------------------------------------------------------ */

static void to_dir_entered(struct wait *w, int err)
{
    struct op *op = (struct op *)((char *)w - offsetof(struct op, wait));
    struct dir_renaming *d = ((struct renaming *)(uintptr_t)op->arg)->dir;
    struct tree *t = op->fs->tree;

    /* It has waited: is it still what the kernel means? */
    if (err == 0 && (!op->node->present || op->node->parent != d->r->from_dir || strcmp(op->node->name, op->name) != 0))
        err = ENOENT;
    if (err == 0 && node_is_below(op->node2, op->node))
        err = EINVAL;
    if (err == 0 && (node_key(t, op->node, &d->from, &d->from_len) != 0 ||
                     renaming_target_key(op, true, &d->to, &d->to_len) != 0))
        err = ENOMEM;
    if (err)
        dir_end(d, err);
    else
        dir_ask(d);
}

/* Is a change below it under way? It would come to lie under the old name. */
static bool changes_below(const struct fs *fs, const struct node *dir)
{
    uint8_t *key;
    size_t len;
    bool yes;

    if (handles_busy(fs, dir))
        return true;
    if (fs->txns == NULL || node_key(fs->tree, dir, &key, &len) != 0)
        return false;
    yes = txns_below(fs, slice_of(key, len));
    free(key);
    return yes;
}

/* Until no other directory is being renamed, and nothing is being changed in this one. */
static void dir_wait(struct timer *timer)
{
    struct dir_renaming *d = of_timer(timer);
    struct op *op = d->r->op;
    struct fs *fs = op->fs;

    if (!d->mine && fs->moving == NULL) {
        fs->moving = op->node;
        d->mine = true;
    }
    if (!d->mine || changes_below(fs, op->node)) {
        op->timer.fire = dir_wait;
        session_timer_set(&fs->session, &op->timer, RENAME_LOOK_MS);
        return;
    }
    op->wait = (struct wait){.done = to_dir_entered};
    tree_enter(fs->tree, op->node2, &op->wait);
}

void rename_dir(struct renaming *r)
{
    struct op *op = r->op;
    struct node *there = renaming_target(op);
    int err = r->flags & FLAG_EXCHANGE ? EINVAL : fs_check_name(op->fs, op->node2, op->name2, true);

    if (err == 0 && there && there->kind != NODE_DIR)
        err = ENOTDIR;
    if (err == 0 && there && r->flags & FLAG_NOREPLACE)
        err = EEXIST;
    if (err == 0 && there && (there->dir->n_present || overlay_in_dir(op->fs->overlay, there)))
        err = ENOTEMPTY;
    if (err == 0 && (r->dir = calloc(1, sizeof *r->dir)) == NULL)
        err = ENOMEM;
    if (err) {
        renaming_end(r, err);
        return;
    }
    r->dir->r = r;
    r->dir->onto_dir = there != NULL;
    dir_wait(&op->timer);
}
