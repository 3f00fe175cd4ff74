/* SPDX-License-Identifier: Apache-2.0 */
/* control_stream.c - .etcd/events and .etcd/wait: reads that return when something changes.
 *
 * A stream holds what its reader has not read, up to STREAM_BACKLOG_BYTES; beyond it a gap line says that
 * lines are missing. A read that waits is answered by the next line, by an interrupt, or, where the kernel
 * limits how old a request may become, by a line of progress before that.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control_private.h"

static void reader_interrupted(fuse_req_t req, void *data)
{
    struct chandle *h = data;

    h->reader = NULL;
    (void)fuse_reply_err(req, EINTR);
}

static fuse_req_t reader_take(struct chandle *h)
{
    fuse_req_t req = h->reader;

    h->reader = NULL;
    session_timer_clear(&h->control->fs->session, &h->keepalive);
    if (req)
        fuse_req_interrupt_func(req, NULL, NULL);
    return req;
}

static void give(struct chandle *h, fuse_req_t req, size_t size)
{
    size_t n = h->len - h->taken < size ? h->len - h->taken : size;

    (void)fuse_reply_buf(req, (const char *)h->buf + h->taken, n);
    h->taken += n;
    if (h->taken == h->len)
        h->taken = h->len = 0;
    if (h->history)
        history_read(h);
}

static void wake(struct chandle *h)
{
    fuse_req_t req = h->len > h->taken || h->woken ? reader_take(h) : NULL;

    if (req)
        give(h, req, h->reader_size);
    if (h->poll) {
        (void)fuse_lowlevel_notify_poll(h->poll);
        fuse_pollhandle_destroy(h->poll);
        h->poll = NULL;
    }
}

static void add_line(struct chandle *h, const char *line, size_t len)
{
    if (h->taken > h->len / 2 && h->taken > 65536) { /* what was read makes room */
        memmove(h->buf, h->buf + h->taken, h->len - h->taken);
        h->len -= h->taken;
        h->taken = 0;
    }
    if (h->len - h->taken + len > STREAM_BACKLOG_BYTES || !chandle_append(h, line, len))
        h->lost = true;
}

static void keepalive_fire(struct timer *t)
{
    struct chandle *h = (struct chandle *)((char *)t - offsetof(struct chandle, keepalive));
    struct client_health health;
    char line[80];
    int n;

    client_get_health(h->control->fs->client, &health);
    n = snprintf(line, sizeof line, "{\"revision\":%ld,\"type\":\"PROGRESS\"}\n", health.last_revision);
    add_line(h, line, (size_t)n);
    wake(h);
}

void stream_open(struct chandle *h)
{
    struct control *c = h->control;

    h->keepalive.fire = keepalive_fire;
    h->next = c->streams;
    h->prev = &c->streams;
    if (h->next)
        h->next->prev = &h->next;
    c->streams = h;
}

void stream_close(struct chandle *h)
{
    fuse_req_t req = reader_take(h);

    history_close(h);
    if (req)
        (void)fuse_reply_err(req, EINTR);
    if (h->poll)
        fuse_pollhandle_destroy(h->poll);
    *h->prev = h->next;
    if (h->next)
        h->next->prev = h->prev;
}

void stream_read(struct chandle *h, fuse_req_t req, size_t size)
{
    unsigned limit_s = h->control->fs->session.request_timeout_s;

    if (h->len > h->taken) {
        give(h, req, size);
    } else if (h->woken) {
        (void)fuse_reply_buf(req, NULL, 0); /* the end: what was waited for has come */
    } else if (h->flags & O_NONBLOCK) {
        (void)fuse_reply_err(req, EAGAIN);
    } else if (h->reader) {
        (void)fuse_reply_err(req, EBUSY); /* two reads at once on one descriptor cannot share lines */
    } else {
        h->reader = req;
        h->reader_size = size;
        if (limit_s)
            session_timer_set(&h->control->fs->session, &h->keepalive, limit_s * 500ull);
        fuse_req_interrupt_func(req, reader_interrupted, h);
    }
}

void stream_poll(struct chandle *h, fuse_req_t req, struct fuse_pollhandle *ph)
{
    if (h->poll)
        fuse_pollhandle_destroy(h->poll);
    h->poll = ph;
    (void)fuse_reply_poll(req, h->len > h->taken || h->woken ? POLLIN : 0);
}

static char *event_line(const struct key_event *ev, size_t *ret_len)
{
    char *line = NULL;
    FILE *f = open_memstream(&line, ret_len);

    if (f == NULL)
        return NULL;
    fprintf(f, "{\"revision\":%ld,\"type\":\"%s\",", ev->meta.mod_rev, ev->is_delete ? "DELETE" : "PUT");
    json_field(f, "key", ev->key);
    if (!ev->is_delete) {
        fprintf(f, ",\"create_revision\":%ld,\"version\":%ld,\"lease\":\"%lx\",", ev->meta.create_rev,
                ev->meta.version, (unsigned long)ev->meta.lease);
        json_field(f, "value", ev->value);
    }
    fputs("}\n", f);
    return fclose(f) == 0 ? line : NULL;
}

void stream_event(struct chandle *h, const struct key_event *ev)
{
    size_t len = 0;
    char *line = event_line(ev, &len);

    if (line)
        add_line(h, line, len);
    free(line);
    wake(h);
}

void stream_gap(struct chandle *h, int64_t from_rev, int64_t to_rev)
{
    char line[128];
    int n =
        snprintf(line, sizeof line, "{\"type\":\"GAP\",\"from\":%ld,\"to\":%ld,\"reason\":\"compacted\"}\n",
                 from_rev, to_rev);

    add_line(h, line, (size_t)n);
    wake(h);
}

/* Does the stream of this path (from the mount's root, encoded) want that key? a/.value is the key a, which
 * has no other path here, since no part of a key is shown as .value. */
static bool wants(const struct chandle *h, const char *path)
{
    static const char value[] = "/" CODEC_VALUE_NAME;
    const char *mine = h->node->path;
    size_t len = strlen(mine), cut = len < sizeof value - 1 ? 0 : len - (sizeof value - 1);

    if (cut && strcmp(mine + cut, value) == 0)
        return strlen(path) == cut && memcmp(path, mine, cut) == 0;
    return len == 0 || mine[len - 1] == '/' ? strncmp(path, mine, len) == 0 : strcmp(path, mine) == 0;
}

/* The path a key has in the mount; NULL: no memory. */
static char *path_of_key(const struct tree *t, struct slice key)
{
    struct slice prefix = tree_prefix(t);
    size_t room = (key.len + 1) * CODEC_EXPANSION + 8, used = 0, from = prefix.len;
    char *path = malloc(room);

    if (path == NULL || !slice_has_prefix(key, prefix)) {
        free(path);
        return NULL;
    }
    for (size_t i = from; i <= key.len; i++) {
        int n;

        if (i < key.len && key.ptr[i] != '/')
            continue;
        n = codec_encode(slice_of(key.ptr + from, i - from), used == 0, path + used, room - used - 1);
        if (n < 0) {
            free(path);
            return NULL;
        }
        used += (size_t)n;
        if (i < key.len)
            path[used++] = '/';
        from = i + 1;
    }
    path[used] = 0;
    return path;
}

void control_key_event(struct control *c, const struct key_event *ev)
{
    char *path, *line;
    size_t len = 0;

    if (c->streams == NULL)
        return;
    path = path_of_key(c->fs->tree, ev->key);
    line = path ? event_line(ev, &len) : NULL;
    for (struct chandle *h = line ? c->streams : NULL; h; h = h->next) {
        if (h->history || !wants(h, path) || h->woken)
            continue;
        if (h->lost) {
            static const char gap[] = "{\"type\":\"GAP\",\"reason\":\"the reader was too slow\"}\n";

            h->lost = false;
            add_line(h, gap, sizeof gap - 1);
        }
        add_line(h, line, len);
        h->woken = h->node->kind == CNODE_WAIT_FILE;
        wake(h);
    }
    free(path);
    free(line);
}

void control_gap(struct control *c, int64_t from_rev, int64_t to_rev)
{
    for (struct chandle *h = c->streams; h; h = h->next)
        if (h->history == NULL) /* those see to it themselves */
            stream_gap(h, from_rev, to_rev);
}

void control_stop(struct control *c)
{
    for (struct chandle *h = c->streams; h; h = h->next) {
        fuse_req_t req = reader_take(h);

        if (req)
            (void)fuse_reply_err(req, ENOTCONN);
    }
}
