/* SPDX-License-Identifier: Apache-2.0 */
/* control_history.c - .etcd/events@REV/PATH: what happened from that revision on, then what happens.
 *
 * Each open file has a watch of its own on the keys of its path. Opening asks first whether the revision is
 * still there: compacted is ENOENT. A reader who is slow is waited for: with HISTORY_AHEAD_BYTES unread the
 * watch is closed, and opened anew from the next revision once they are read. So it is after a broken
 * connection. What was compacted in between is a gap line, as in events/.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control_private.h"
#include "rpc.pb-c.h"

struct history {
    struct chandle *handle;
    struct op *op; /* the OPEN; NULL: answered */
    struct client_call check;
    struct client_stream watch;
    struct timer retry;
    uint8_t *key, *end;
    size_t key_len, end_len;
    int64_t next_rev;
    bool paused; /* until the reader has taken what there is */
};

/* The keys of a path: one, or all below it when it is "" or ends in '/'. EINVAL: no key has that name. */
static int keys_of_path(struct history *h, struct slice prefix, const char *path)
{
    size_t len = strlen(path), used = prefix.len, part, got;
    bool below = len == 0 || path[len - 1] == '/';

    h->key = malloc(prefix.len + len + 1);
    h->end = malloc(prefix.len + len + 2);
    if (h->key == NULL || h->end == NULL)
        return ENOMEM;
    if (prefix.len)
        memcpy(h->key, prefix.ptr, prefix.len);
    for (const char *at = path; *at; at += part + (at[part] == '/')) {
        part = strcspn(at, "/");
        if (at != path && at[part] == 0 && strcmp(at, CODEC_VALUE_NAME) == 0) {
            used--; /* the directory's own key: without the slash */
            break;
        }
        if (codec_decode(slice_of(at, part), at == path, h->key + used, &got) != 0)
            return EINVAL;
        used += got;
        if (at[part] == '/')
            h->key[used++] = '/';
    }
    h->key_len = used;
    if (below)
        h->end_len = codec_prefix_end(slice_of(h->key, used), h->end);
    if (used == 0) { /* all keys there are */
        h->key[0] = 0;
        h->key_len = 1;
    }
    return 0;
}

static void watch_open(struct history *h)
{
    Etcdserverpb__WatchRequest req = ETCDSERVERPB__WATCH_REQUEST__INIT;
    Etcdserverpb__WatchCreateRequest create = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;

    create.key = (ProtobufCBinaryData){h->key_len, h->key};
    create.range_end = (ProtobufCBinaryData){h->end_len, h->end};
    create.start_revision = h->next_rev;
    req.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
    req.create_request = &create;
    client_stream_open(h->handle->control->fs->client, &h->watch, CLIENT_WATCH, &req.base, 0);
}

static void retry_fire(struct timer *t)
{
    watch_open((struct history *)((char *)t - offsetof(struct history, retry)));
}

static void watch_retry(struct history *h)
{
    session_timer_set(&h->handle->control->fs->session, &h->retry, FEED_RETRY_MS);
}

static void watch_closed(struct client_stream *s, enum err err, enum status code, const char *text)
{
    (void)err;
    (void)code;
    (void)text;
    watch_retry((struct history *)((char *)s - offsetof(struct history, watch)));
}

static void watch_canceled(struct history *h, const Etcdserverpb__WatchResponse *res)
{
    client_stream_close(h->handle->control->fs->client, &h->watch);
    if (res->compact_revision > h->next_rev) {
        stream_gap(h->handle, h->next_rev, res->compact_revision);
        h->next_rev = res->compact_revision;
    }
    watch_retry(h);
}

static void watch_message(struct client_stream *s, ProtobufCMessage *msg)
{
    struct history *h = (struct history *)((char *)s - offsetof(struct history, watch));
    const Etcdserverpb__WatchResponse *res = (const Etcdserverpb__WatchResponse *)msg;

    if (res->canceled) {
        watch_canceled(h, res);
        return;
    }
    for (size_t i = 0; i < res->n_events; i++) {
        const Mvccpb__KeyValue *kv = res->events[i]->kv;
        struct key_event ev;

        if (kv == NULL)
            continue;
        ev = (struct key_event){.is_delete = res->events[i]->type == MVCCPB__EVENT__EVENT_TYPE__DELETE,
                                .key = slice_of(kv->key.data, kv->key.len),
                                .value = slice_of(kv->value.data, kv->value.len),
                                .meta = {.create_rev = kv->create_revision,
                                         .mod_rev = kv->mod_revision,
                                         .version = kv->version,
                                         .lease = kv->lease,
                                         .size = kv->value.len}};
        stream_event(h->handle, &ev);
        if (kv->mod_revision >= h->next_rev)
            h->next_rev = kv->mod_revision + 1;
    }
    if (h->handle->len - h->handle->taken > HISTORY_AHEAD_BYTES) {
        client_stream_close(h->handle->control->fs->client, &h->watch);
        h->paused = true;
    }
}

void history_read(struct chandle *handle)
{
    struct history *h = handle->history;

    if (h->paused && handle->len == handle->taken) {
        h->paused = false;
        watch_open(h);
    }
}

/* ---- opening ------------------------------------------------------------------------------------ */

static void history_free(struct history *h)
{
    struct fs *fs = h->handle->control->fs;

    session_timer_clear(&fs->session, &h->retry);
    client_abandon(fs->client, &h->check);
    client_stream_close(fs->client, &h->watch);
    free(h->key);
    free(h->end);
    free(h);
}

void history_close(struct chandle *handle)
{
    if (handle->history)
        history_free(handle->history);
    handle->history = NULL;
}

static void checked(struct client_call *call)
{
    struct history *h = (struct history *)((char *)call - offsetof(struct history, check));
    struct chandle *handle = h->handle;
    struct op *op = h->op;
    int err = 0;

    if (call->outcome != CLIENT_OK && call->err == ERR_COMPACTED)
        err = ENOENT;
    else if (call->outcome != CLIENT_OK && call->code != STATUS_OUT_OF_RANGE) /* yet to come: it waits */
        err = client_errno(call, CLIENT_USE_READ);
    h->op = NULL;
    if (err == 0)
        watch_open(h);
    if (err || !op_open(op, &op->fi)) {
        op_err(op, err);
        chandle_free(handle);
    }
    op_free(op);
}

void history_open(struct chandle *handle, fuse_req_t req, const struct fuse_file_info *fi)
{
    struct fs *fs = handle->control->fs;
    struct history *h = calloc(1, sizeof *h);
    Etcdserverpb__RangeRequest range = ETCDSERVERPB__RANGE_REQUEST__INIT;
    int err = ENOMEM;

    if (h) {
        *h = (struct history){.handle = handle,
                              .check.done = checked,
                              .watch = {.message = watch_message, .closed = watch_closed},
                              .retry.fire = retry_fire,
                              .next_rev = handle->node->since};
        handle->history = h;
        err = keys_of_path(h, tree_prefix(fs->tree), handle->node->path);
    }
    if (err) {
        (void)fuse_reply_err(req, err == EINVAL ? ENOENT : err);
        chandle_free(handle);
        return;
    }
    h->op = op_new(req, NULL, NULL);
    if (h->op == NULL) {
        chandle_free(handle);
        return;
    }
    h->op->fi = *fi;
    range.key = (ProtobufCBinaryData){h->key_len, h->key};
    range.revision = h->next_rev;
    range.keys_only = true;
    client_start(fs->client, &h->check, CLIENT_RANGE, &range.base, 0);
}
