/* SPDX-License-Identifier: Apache-2.0 */
/* handle.c - open files and their buffers (see handle.h; publishing is in handle_commit.c). */
#include "handle.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ops.h"
#include "overlay.h"

#define BUF_ROOM_MIN 4096

/* ---- nodes' state --------------------------------------------------------------------- */

struct file_state *file_state(struct node *n)
{
    if (n->ext == NULL)
        n->ext = calloc(1, sizeof(struct file_state));
    return n->ext;
}

void file_state_drop(struct node *n)
{
    struct file_state *s = n->ext;

    if (s == NULL || s->handles || s->unborn || s->limbo)
        return;
    free(s->last_text);
    free(s);
    n->ext = NULL;
}

bool node_visible(const struct node *n)
{
    const struct file_state *s = file_state_if(n);

    return (n->present || (s && s->unborn)) && !(s && s->limbo);
}

pid_t thread_group(pid_t tid)
{
    char path[48], line[128];
    int tgid = 0;
    FILE *f;

    if (tid <= 0)
        return 0;
    (void)snprintf(path, sizeof path, "/proc/%d/status", tid);
    f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f) && sscanf(line, "Tgid: %d", &tgid) != 1)
        ;
    if (f)
        (void)fclose(f);
    return tgid;
}

/* ---- life -------------------------------------------------------------------------------- */

static void idle_fire(struct timer *t)
{
    struct handle *h = (struct handle *)((char *)t - offsetof(struct handle, idle));

    if (h->data)
        handle_commit_quietly(h);
}

struct handle *handle_new(struct fs *fs, struct node *node, struct ofile *ofile, int flags, pid_t tid,
                          struct value *pin)
{
    struct handle *h = calloc(1, sizeof *h);
    struct file_state *s = node ? file_state(node) : NULL;

    if (h == NULL || (node && s == NULL)) {
        free(h);
        value_unref(pin);
        return NULL;
    }
    *h = (struct handle){.fs = fs,
                         .node = node_ref(node),
                         .ofile = ofile,
                         .flags = flags,
                         .tid = tid,
                         .pin = pin,
                         .writable = (flags & O_ACCMODE) != O_RDONLY,
                         .expected_rev = pin ? pin->meta.mod_rev : 0,
                         .idle.fire = idle_fire,
                         .now.cut = SIZE_MAX};
    if (h->writable)
        h->tgid = thread_group(tid);
    if (s) {
        h->node_next = s->handles;
        s->handles = h;
    }
    if (ofile)
        ofile_opened(ofile);
    h->next = fs->handles;
    h->prev = &fs->handles;
    if (h->next)
        h->next->prev = &h->next;
    fs->handles = h;
    fs->n_handles++;
    return h;
}

void handle_set_unborn(struct handle *h)
{
    h->unborn = true;
    file_state_if(h->node)->unborn++;
    h->fs->n_unborn++;
}

void handle_clear_unborn(struct handle *h)
{
    if (!h->unborn)
        return;
    h->unborn = false;
    file_state_if(h->node)->unborn--;
    h->fs->n_unborn--;
}

static void unlink_from_node(struct handle *h)
{
    struct file_state *s = file_state_if(h->node);
    struct handle **p = &s->handles;

    while (*p != h)
        p = &(*p)->node_next;
    *p = h->node_next;
    handle_clear_unborn(h);
    file_state_drop(h->node);
}

void handle_free(struct handle *h)
{
    if (h == NULL)
        return;
    session_timer_clear(&h->fs->session, &h->idle);
    if (h->node) {
        bool was_unborn = h->unborn;
        struct node *n = h->node, *dir = node_ref(n->parent);

        unlink_from_node(h);
        if (was_unborn && !node_visible(n) && dir)
            notify_name(h->fs->notify, dir, n->name); /* its creation failed: the name must go */
        node_unref(h->fs->tree, n);
        node_unref(h->fs->tree, dir);
    }
    if (h->ofile)
        ofile_closed(h->ofile);
    *h->prev = h->next;
    if (h->next)
        h->next->prev = h->prev;
    h->fs->n_handles--;
    value_unref(h->pin);
    free(h->buf);
    free(h->now.extents);
    free(h->sent.extents);
    free(h);
}

void handle_release(struct handle *h)
{
    h->released = true;
    session_timer_clear(&h->fs->session, &h->idle);
    if (h->busy)
        return; /* its end looks again */
    if (handle_dirty(h) && !h->orphan && h->node && !h->refused)
        handle_start_commit(h); /* its end frees */
    else
        handle_free(h);
}

bool handle_wait_released(struct node *n, struct commit_wait *w)
{
    struct file_state *s = file_state_if(n);

    for (struct handle *h = s ? s->handles : NULL; h; h = h->node_next)
        if (h->released && h->busy) {
            handle_commit(h, w);
            return true;
        }
    return false;
}

void handles_orphan(struct node *n)
{
    struct file_state *s = file_state_if(n);

    for (struct handle *h = s ? s->handles : NULL; h; h = h->node_next) {
        h->orphan = true;
        handle_clear_unborn(h);
    }
    file_state_drop(n);
}

void handles_move(struct node *from, struct node *to)
{
    struct file_state *s = file_state_if(from), *d;

    if (s == NULL || s->handles == NULL || from == to)
        return;
    d = file_state(to);
    if (d == NULL) {
        handles_orphan(from); /* no memory for more: better unpublished than published under the old name */
        return;
    }
    for (struct handle *h; (h = s->handles) != NULL;) {
        bool unborn = h->unborn;

        handle_clear_unborn(h);
        s->handles = h->node_next;
        h->node_next = d->handles;
        d->handles = h;
        h->node = node_ref(to);
        if (unborn)
            handle_set_unborn(h);
        node_unref(h->fs->tree, from);
    }
    file_state_drop(from);
}

void handles_publish(struct fs *fs, struct ofile *of, struct node *to, struct value *v)
{
    for (struct handle *h = fs->handles; h; h = h->next) {
        struct file_state *s;

        if (h->ofile != of || (s = file_state(to)) == NULL)
            continue;
        h->ofile = NULL;
        ofile_closed(of);
        h->node = node_ref(to);
        h->node_next = s->handles;
        s->handles = h;
        h->pin = value_ref(v);
    }
}

struct handle *handle_of_writer(const struct node *n, pid_t tid)
{
    struct file_state *s = file_state_if(n);
    pid_t tgid = 0;

    for (struct handle *h = s ? s->handles : NULL; h; h = h->node_next) {
        if (!h->writable || !h->has_buf)
            continue;
        if (h->tid == tid)
            return h;
        if (tgid == 0)
            tgid = thread_group(tid);
        if (tgid && h->tgid == tgid)
            return h;
    }
    return NULL;
}

/* ---- reading -------------------------------------------------------------------------------- */

static struct slice handle_content(const struct handle *h)
{
    if (h->ofile)
        return ofile_content(h->ofile);
    if (h->has_buf)
        return slice_of(h->buf, h->len);
    if (h->cached && h->node->value && h->node->present)
        return slice_of(h->node->value->bytes, h->node->value->meta.size);
    return h->pin ? slice_of(h->pin->bytes, h->pin->meta.size) : SLICE_NONE;
}

size_t handle_size(const struct handle *h)
{
    return handle_content(h).len;
}

const uint8_t *handle_read(const struct handle *h, size_t off, size_t size, size_t *ret_len)
{
    struct slice s = handle_content(h);

    if (off >= s.len) {
        *ret_len = 0;
        return NULL;
    }
    *ret_len = size < s.len - off ? size : s.len - off;
    return s.ptr + off;
}

/* ---- the buffer -------------------------------------------------------------------------------- */

int handle_check_size(const struct handle *h, size_t len)
{
    size_t key_len =
        h->node ? strlen(h->node->name) : 0; /* the exact key costs a walk; the rest is in the overhead */

    for (const struct node *n = h->node ? h->node->parent : NULL; n; n = n->parent)
        key_len += n->name_len + 1u;
    return len + 2 * key_len + REQUEST_OVERHEAD_BYTES > h->fs->opt.max_request_bytes ? EFBIG : 0;
}

static bool appends(const struct handle *h)
{
    return h->flags & O_APPEND;
}

size_t handle_size_after(const struct handle *h, size_t off, size_t size)
{
    size_t now = handle_size(h);

    if (appends(h) && h->node)
        return now + size;
    return off + size > now ? off + size : now;
}

static int buf_reserve(struct handle *h, size_t len)
{
    size_t room = h->room ? h->room : BUF_ROOM_MIN;
    uint8_t *p;

    if (len <= h->room)
        return 0;
    while (room < len)
        room *= 2;
    p = realloc(h->buf, room);
    if (p == NULL)
        return ENOMEM;
    h->buf = p;
    h->room = room;
    return 0;
}

/* Gives the handle its buffer, with what the pin holds. */
static int buf_begin(struct handle *h)
{
    size_t len = h->pin ? h->pin->meta.size : 0;

    if (h->has_buf)
        return 0;
    if (buf_reserve(h, len) != 0)
        return ENOMEM;
    if (len)
        memcpy(h->buf, h->pin->bytes, len);
    h->len = h->now.append_from = len;
    h->has_buf = true;
    return 0;
}

/* Joins the two neighbours with the smallest gap; what lies between counts as written. */
static void extents_join(struct changes *c)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i + 1 < c->n_extents; i++)
        if (c->extents[i + 1].from - c->extents[i].to < c->extents[best + 1].from - c->extents[best].to)
            best = i;
    c->extents[best].to = c->extents[best + 1].to;
    memmove(&c->extents[best + 1], &c->extents[best + 2], (c->n_extents - best - 2) * sizeof *c->extents);
    c->n_extents--;
}

static int extent_add(struct changes *c, size_t from, size_t to)
{
    uint32_t i = 0, j;

    if (c->n_extents == HANDLE_EXTENTS_MAX)
        extents_join(c);
    if (c->n_extents == c->room) {
        uint32_t room = c->room ? c->room * 2 : 8;
        struct extent *e = realloc(c->extents, room * sizeof *e);

        if (e == NULL)
            return ENOMEM;
        c->extents = e;
        c->room = room;
    }
    while (i < c->n_extents && c->extents[i].to < from)
        i++;
    for (j = i; j < c->n_extents && c->extents[j].from <= to; j++) { /* all that touch it */
        from = c->extents[j].from < from ? c->extents[j].from : from;
        to = c->extents[j].to > to ? c->extents[j].to : to;
    }
    memmove(&c->extents[i + 1], &c->extents[j], (c->n_extents - j) * sizeof *c->extents);
    c->extents[i] = (struct extent){from, to};
    c->n_extents += 1 - (j - i);
    return 0;
}

static void extents_cut(struct changes *c, size_t len)
{
    while (c->n_extents && c->extents[c->n_extents - 1].to > len) {
        struct extent *e = &c->extents[c->n_extents - 1];

        if (e->from >= len)
            c->n_extents--;
        else
            e->to = len;
    }
}

static void touched(struct handle *h)
{
    h->writes++;
    session_timer_set(&h->fs->session, &h->idle,
                      appends(h) && h->appends >= HANDLE_APPEND_EAGER ? HANDLE_APPEND_IDLE_MS
                                                                      : HANDLE_IDLE_MS);
}

int handle_write(struct handle *h, const void *data, size_t off, size_t size)
{
    int rc;

    if (h->ofile)
        return ofile_write(h->ofile, data, appends(h) ? ofile_content(h->ofile).len : off, size);
    rc = buf_begin(h);
    if (rc == 0 && appends(h))
        off = h->len;
    if (rc == 0)
        rc = handle_check_size(h, off + size);
    if (rc == 0)
        rc = buf_reserve(h, off + size);
    if (rc == 0 && !h->now.whole && !appends(h))
        rc = extent_add(&h->now, off, off + size);
    if (rc)
        return rc;
    if (off > h->len)
        memset(h->buf + h->len, 0, off - h->len);
    memcpy(h->buf + off, data, size);
    if (off + size > h->len)
        h->len = off + size;
    h->data = true;
    h->appends += appends(h);
    touched(h);
    return 0;
}

int handle_truncate(struct handle *h, size_t len)
{
    int rc;

    if (h->ofile)
        return ofile_truncate(h->ofile, len);
    rc = handle_check_size(h, len);
    if (rc == 0)
        rc = buf_begin(h);
    if (rc == 0)
        rc = buf_reserve(h, len);
    if (rc)
        return rc;
    if (len > h->len)
        memset(h->buf + h->len, 0, len - h->len);
    h->len = len;
    if (len < h->now.append_from)
        h->now.append_from = len;
    if (len < h->now.cut)
        h->now.cut = len;
    extents_cut(&h->now, len);
    if (len == 0) { /* from here on it is all ours */
        h->now.whole = true;
        h->refused = 0;
    }
    h->now.resized = true;
    h->mark = true;
    touched(h);
    return 0;
}

void handle_refuse(struct handle *h, int err)
{
    if (h->node && !(appends(h) && !handle_dirty(h)))
        h->refused = err;
}

bool handle_append_eager(const struct handle *h)
{
    return appends(h) && h->appends <= HANDLE_APPEND_EAGER;
}
