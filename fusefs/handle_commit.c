/* SPDX-License-Identifier: Apache-2.0 */
/* handle_commit.c - publishing what a handle holds (A.5): one transaction at a time for each handle.
 *
 *     whole    exists? put, lease kept : put              the other way round if that changed. What exists is
 *              replaced at the revision that is known of it, so that it can be sent again when the outcome is
 *              unknown (handle_txn.c); overtaken by others some times, it is replaced whatever it is.
 *     pieces   mod_revision = base's ? put, lease kept    : lay the pieces over what is there and try again
 *     append   the same, with the new bytes behind what is there
 *
 * A value is sent once: "put with its lease kept" needs an existing key, so which of the two puts applies
 * is guessed from the tree and corrected by the compare, instead of carrying the bytes in both branches.
 *
 * What is written while a commit is under way counts from that commit's value on: h->sent is what the
 * commit publishes, h->now begins anew.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "handle.h"
#include "handle_txn.h"
#include "ops.h"

static void commit_done(struct txn *t, void *arg, int err);

static bool appending(const struct handle *h, const struct changes *c)
{
    return (h->flags & O_APPEND) && !c->whole;
}

/* The changes c, made in a buffer buf that is `len` long, laid over base. NULL: no memory. */
static struct value *compose(const struct handle *h, const struct changes *c, size_t len,
                             const struct value *base)
{
    size_t base_len = base ? base->meta.size : 0, kept = base_len < c->cut ? base_len : c->cut;
    size_t end = c->n_extents ? c->extents[c->n_extents - 1].to : 0, total;
    struct value *v = NULL;
    uint8_t *bytes;

    if (c->whole)
        return value_new(slice_of(h->buf, len), &(struct key_meta){0});
    if (appending(h, c))
        total = base_len + len - c->append_from;
    else if (c->resized)
        total = len;
    else
        total = base_len > end ? base_len : end; /* what others put behind ours stays */
    bytes = calloc(1, total + 1);
    if (bytes == NULL)
        return NULL;
    if (appending(h, c)) {
        kept = base_len;
        memcpy(bytes + base_len, h->buf + c->append_from, len - c->append_from);
    }
    if (kept)
        memcpy(bytes, base->bytes, kept < total ? kept : total);
    for (uint32_t i = 0; i < c->n_extents; i++) {
        size_t from = c->extents[i].from, to = c->extents[i].to < total ? c->extents[i].to : total;

        if (from < to)
            memcpy(bytes + from, h->buf + from, to - from);
    }
    v = value_new(slice_of(bytes, total), &(struct key_meta){0});
    free(bytes);
    return v;
}

/* ---- one attempt -------------------------------------------------------------------------- */

/* Travels with one transaction: the handle and what it publishes. */
struct attempt {
    struct handle *h;
    struct value *value;
    bool guessed_present; /* whole: the key was thought to exist */
    int64_t known_rev;    /* whole: at this revision; 0: at any */
};

static void attempt_free(struct attempt *a)
{
    value_unref(a->value);
    free(a);
}

static void attempt_build(const struct attempt *a, struct txn *t, struct slice key)
{
    const struct handle *h = a->h;
    int64_t pin_rev = h->pin ? h->pin->meta.mod_rev : 0;

    if (!h->sent.whole) {
        txn_compare(t, key, SLICE_NONE, TXN_MOD_REV, TXN_EQUAL, pin_rev);
        txn_put(t, key, a->value, pin_rev ? TXN_IGNORE_LEASE : 0);
        txn_read_on_failure(t, key);
        return;
    }
    txn_compare(t, key, SLICE_NONE, TXN_CREATE_REV, a->guessed_present ? TXN_GREATER : TXN_EQUAL, 0);
    if (h->fs->opt.conflict_fail)
        txn_compare(t, key, SLICE_NONE, TXN_MOD_REV, TXN_EQUAL, h->expected_rev);
    else if (a->known_rev)
        txn_compare(t, key, SLICE_NONE, TXN_MOD_REV, TXN_EQUAL, a->known_rev);
    txn_put(t, key, a->value, a->guessed_present ? TXN_IGNORE_LEASE : 0);
    txn_look_on_failure(t, key);
}

/* guess: whole: whether the key is thought to exist, and known_rev at which revision (0: any). 0 or an errno;
 * then nothing was started. */
static int attempt_start(struct handle *h, bool guess, int64_t known_rev)
{
    struct attempt *a = calloc(1, sizeof *a);
    struct txn *t = a ? txn_new(h->fs, commit_done, a) : NULL;
    uint8_t *key = NULL;
    size_t key_len = 0;
    int err = ENOMEM;

    if (t == NULL || node_key(h->fs->tree, h->node, &key, &key_len) != 0)
        goto out;
    a->h = h;
    a->guessed_present = guess;
    a->known_rev = guess ? known_rev : 0;
    a->value = compose(h, &h->sent, h->sent.len, h->pin);
    if (a->value == NULL)
        goto out;
    err = handle_check_size(h, a->value->meta.size);
    if (err)
        goto out;
    attempt_build(a, t, slice_of(key, key_len));
    if (!guess && h->node->kind == NODE_FILE)
        keep_new_file(h->fs->keeper, h->node->parent, t);
    txn_run(t);
    free(key);
    return 0;
out:
    txn_cancel(t);
    free(key);
    if (a)
        attempt_free(a);
    return err;
}

/* ---- the end of one ------------------------------------------------------------------------- */

static void waits_finish(struct handle *h, uint64_t upto, int err)
{
    struct commit_wait **p = &h->waits, *due = NULL, **last = &due;

    while (*p) {
        struct commit_wait *w = *p;

        if (w->want <= upto) {
            *p = w->next;
            w->next = NULL;
            *last = w;
            last = &w->next;
        } else
            p = &w->next;
    }
    for (struct commit_wait *next; due; due = next) {
        next = due->next;
        due->done(due, err);
    }
}

/* The base is v from now on, and the buffer is v with what was written meanwhile laid over it. */
static void settle(struct handle *h, struct value *v)
{
    struct value *both = h->writes == h->committing ? value_ref(v) : compose(h, &h->now, h->len, v);
    size_t size = both ? both->meta.size : 0;

    if (both && size > h->room) {
        uint8_t *p = realloc(h->buf, size);

        if (p) {
            h->buf = p;
            h->room = size;
        }
    }
    if (both && size <= h->room) { /* else the reader sees its own writes; the next commit compares again */
        if (size)
            memcpy(h->buf, both->bytes, size);
        h->len = size;
        h->now.append_from = v->meta.size < size ? v->meta.size : size;
    }
    value_unref(both);
    value_unref(h->pin);
    h->pin = value_ref(v);
}

static void commit_end(struct handle *h, int err)
{
    bool newer = h->writes != h->committing;

    h->busy = false;
    h->committed = h->committing;
    if (err && !newer) /* refused: not tried again behind the caller's back */
        h->data = h->mark = false;
    waits_finish(h, h->committed, err);
    if (h->busy)
        return;
    if ((h->waits || h->released) && handle_dirty(h) && !h->orphan && !h->refused) {
        handle_start_commit(h); /* its end comes here again */
        return;
    }
    waits_finish(h, h->writes, handle_dirty(h) && !h->orphan ? h->refused : 0);
    if (h->released)
        handle_free(h);
}

static void commit_failed(struct handle *h, int err, const char *text)
{
    struct file_state *s = file_state(h->node);
    char *path = node_path(h->node);

    fs_error(h->fs, "save", path ? path : "?", err, text);
    free(path);
    if (s) {
        free(s->last_text);
        s->last_err = err;
        s->last_text = strdup(text && *text ? text : strerror(err));
    }
    commit_end(h, err);
}

/* The compare failed: somebody else was faster. 0: tried again; else an errno. */
static int try_again(const struct attempt *a, struct txn *t)
{
    struct handle *h = a->h;
    struct value *now;

    if (++h->retries > COMMIT_RETRIES || client_now_ms() > h->deadline_ms)
        return ESTALE;
    if (h->sent.whole && h->fs->opt.conflict_fail)
        return ESTALE;
    if (h->sent.whole)
        return attempt_start(h, txn_now_rev(t) > 0, h->retries < COMMIT_PINNED_TRIES ? txn_now_rev(t) : 0);
    now = txn_current(t, 0);
    if (now == NULL && h->pin)
        return ESTALE; /* deleted by others: what was to be changed is no more */
    value_unref(h->pin);
    h->pin = now;
    return attempt_start(h, true, 0);
}

static void commit_done(struct txn *t, void *arg, int err)
{
    struct attempt *a = arg;
    struct handle *h = a->h;

    if (err == -1) {
        err = try_again(a, t);
        if (err)
            commit_failed(h, err, "the value was changed by others meanwhile");
    } else if (err)
        commit_failed(h, err, txn_text(t));
    else {
        handle_clear_unborn(h);
        h->expected_rev = txn_rev(t);
        seen_note(h->fs, h->node, h->tid, h->expected_rev);
        settle(h, a->value);
        commit_end(h, 0);
    }
    attempt_free(a);
}

/* ---- asking for one ------------------------------------------------------------------------------ */

/* From here on what is written counts as news over what is being sent. */
static void changes_send(struct handle *h)
{
    struct extent *spare = h->sent.extents;
    uint32_t room = h->sent.room;

    h->sent = h->now;
    h->sent.len = h->len;
    h->now = (struct changes){.cut = SIZE_MAX, .append_from = h->len, .extents = spare, .room = room};
    h->data = h->mark = false;
    h->committing = h->writes;
    h->busy = true;
}

void handle_start_commit(struct handle *h)
{
    int err;

    if (h->busy)
        return;
    session_timer_clear(&h->fs->session, &h->idle);
    if (!handle_dirty(h) || h->orphan || h->node == NULL || h->refused) {
        err = handle_dirty(h) && !h->orphan ? h->refused : 0;
        h->data = h->mark = false;
        h->committed = h->writes;
        waits_finish(h, h->committed, err);
        return;
    }
    if (h->fs->moving && node_is_below(h->node, h->fs->moving)) {
        h->deferred = true; /* it would go to the old key */
        return;
    }
    changes_send(h);
    h->retries = 0;
    h->deadline_ms = client_now_ms() + h->fs->opt.timeout_ms;
    err = attempt_start(h, h->fs->opt.conflict_fail && h->sent.whole ? h->expected_rev > 0 : h->node->present,
                        h->node->meta.mod_rev);
    if (err)
        commit_failed(h, err, "");
}

void handle_commit(struct handle *h, struct commit_wait *w)
{
    struct commit_wait **p = &h->waits;

    w->want = h->writes;
    w->next = NULL;
    while (*p)
        p = &(*p)->next;
    *p = w;
    handle_start_commit(h); /* busy: its end looks at who still waits */
}

void handle_commit_quietly(struct handle *h)
{
    handle_start_commit(h);
}

/* ---- while a directory is renamed ------------------------------------------------------------------ */

bool handles_busy(const struct fs *fs, const struct node *dir)
{
    for (const struct handle *h = fs->handles; h; h = h->next)
        if (h->busy && h->node && node_is_below(h->node, dir))
            return true;
    return false;
}

void handles_resume(struct fs *fs)
{
    struct handle *h = fs->handles;

    while (h) {
        if (!h->deferred) {
            h = h->next;
            continue;
        }
        h->deferred = false;
        handle_start_commit(h); /* it may be the end of the handle, and of others */
        h = fs->handles;
    }
}
