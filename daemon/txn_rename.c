/* SPDX-License-Identifier: Apache-2.0 */
/* txn_rename.c - moving all keys under a prefix: the one operation whose size is not that of its request.
 *
 * What it does is what a txn of one range delete and a put for each key would do, so watchers, compaction and snapshots
 * know nothing new. All that can refuse it is looked at first, and all bodies are read, before the first change goes
 * into x->into; so it needs no scratch.
 *
 * What apply decides by must be the same on every member and at every replay: LIMIT_RENAME_* are part of what
 * ENTRY_RENAME means. Whoever changes one gives the entry another kind.
 *
 * Owner: as txn.h.
 */
#include <errno.h>
#include "limits.h"
#include "msg.h"
#include "txn.h"

#define DONE      CAIRN__RENAME_RESPONSE__OUTCOME__DONE
#define CHANGED   CAIRN__RENAME_RESPONSE__OUTCOME__CHANGED
#define NOTHING   CAIRN__RENAME_RESPONSE__OUTCOME__NOTHING
#define TOO_LARGE CAIRN__RENAME_RESPONSE__OUTCOME__TOO_LARGE

typedef Cairn__RenameRequest RenameRequest;
typedef Cairn__RenameResponse__Outcome outcome;

/* One key on its way; both slices live as long as the arena it was found with. */
struct found {
    struct slice key, value;
    int64_t lease;
};

struct finding {
    struct found *keys;
    size_t n, room;
    size_t bytes; /* of the new keys and values */
};

int txn_check_rename(const RenameRequest *req)
{
    struct slice from = msg_slice(req->from), to = msg_slice(req->to);

    if (from.len == 0 || to.len == 0)
        return ERR_KEY_EMPTY;
    return slice_has_prefix(from, to) || slice_has_prefix(to, from) ? ERR_DUPLICATE_KEY : 0;
}

/* The first key behind all that begin with the prefix; ptr NULL: there is none. -ENOMEM. */
static int prefix_end(struct arena *a, struct slice prefix, struct slice *ret_end)
{
    uint8_t *end;

    while (prefix.len && prefix.ptr[prefix.len - 1] == 0xff)
        prefix.len--;
    *ret_end = SLICE_NONE;
    if (prefix.len == 0)
        return 0;
    end = arena_alloc(a, prefix.len);
    if (end == NULL)
        return -ENOMEM;
    memcpy(end, prefix.ptr, prefix.len);
    end[prefix.len - 1]++;
    *ret_end = slice_of(end, prefix.len);
    return 0;
}

static int found_add(struct arena *a, struct finding *f, const struct change *c)
{
    Mvccpb__KeyValue kv = MVCCPB__KEY_VALUE__INIT;

    if (body_decode(c->body, &kv) != 0)
        return -EUCLEAN;
    if (f->n == f->room) {
        size_t room = f->room ? 2 * f->room : 64;
        struct found *more = arena_alloc(a, room * sizeof *more);

        if (more == NULL)
            return -ENOMEM;
        if (f->n)
            memcpy(more, f->keys, f->n * sizeof *more);
        f->keys = more;
        f->room = room;
    }
    /* The key is a copy of the body's, which stays where it is; the cursor's own does not. */
    f->keys[f->n++] = (struct found){msg_slice(kv.key), msg_slice(kv.value), kv.lease};
    return 0;
}

/* All keys under from, as long as they may be moved. */
static int find(struct view *v, int64_t rev, const RenameRequest *req, struct arena *a, struct finding *f,
                outcome *ret)
{
    struct slice from = msg_slice(req->from), end;
    struct view_cursor *cur = NULL;
    struct change c;
    int err = prefix_end(a, from, &end);

    *ret = DONE;
    if (!err)
        err = view_cursor_new(v, from, end, rev, 0, &cur);
    while (!err && *ret == DONE && (err = view_cursor_next(cur, a, &c)) == 0) {
        size_t key_bytes = c.key.len - from.len + req->to.len;

        err = found_add(a, f, &c);
        if (err)
            break;
        f->bytes += key_bytes + f->keys[f->n - 1].value.len;
        if (c.rev.main > req->revision)
            *ret = CHANGED;
        else if (f->n > LIMIT_RENAME_KEYS || f->bytes > LIMIT_RENAME_BYTES || key_bytes > LIMIT_RENAME_KEY_BYTES)
            *ret = TOO_LARGE;
    }
    view_cursor_free(cur);
    if (err && err != ERR_KEY_NOT_FOUND)
        return err;
    if (*ret == DONE && f->n == 0)
        *ret = NOTHING;
    return 0;
}

/* Nothing may be under to, but perhaps its marker. */
static int target_check(struct view *v, int64_t rev, const RenameRequest *req, struct arena *a, outcome *ret)
{
    bool marker = req->flags & CAIRN__RENAME_FLAG__RENAME_MARKER;
    struct slice to = msg_slice(req->to), end;
    struct view_cursor *cur = NULL;
    struct change c;
    int err = prefix_end(a, to, &end);

    if (!err)
        err = view_cursor_new(v, to, end, rev, BASE_NO_BODY, &cur);
    if (!err)
        err = view_cursor_next(cur, a, &c);
    if (!err && marker && slice_eq(c.key, to))
        err = view_cursor_next(cur, a, &c);
    view_cursor_free(cur);
    if (err == 0)
        *ret = CHANGED;
    return err == ERR_KEY_NOT_FOUND ? 0 : err;
}

int txn_cost_rename(struct view *v, const RenameRequest *req, struct arena *a, int64_t *ret_cost)
{
    struct finding f = {0};
    outcome o;
    int err = find(v, v->rev, req, a, &f, &o);

    *ret_cost = (int64_t)(f.n * TXN_COST_OF_PUT + f.bytes);
    return err;
}

static int put_found(struct txn_run *x, const RenameRequest *req, const struct found *k)
{
    size_t rest = k->key.len - req->from.len, n = req->to.len + rest;
    uint8_t *key = arena_alloc(x->work, n);
    struct change c = {.key = slice_of(key, n), .create_revision = x->rev + 1, .version = 1, .lease = k->lease}, prev;
    int err = ERR_KEY_NOT_FOUND;

    if (key == NULL)
        return -ENOMEM;
    memcpy(key, req->to.data, req->to.len);
    if (rest)
        memcpy(key + req->to.len, k->key.ptr + req->from.len, rest);
    else { /* the one name that may have been there */
        err = view_get(x->view, c.key, x->rev, BASE_NO_BODY, &x->row, &prev);
        arena_fini(&x->row);
    }
    if (err && err != ERR_KEY_NOT_FOUND)
        return err;
    if (err == 0) {
        c.create_revision = prev.create_revision;
        c.version = prev.version + 1;
    }
    x->keys_added += err != 0;
    x->n_puts++;
    x->put_bytes += (int64_t)(n + k->value.len);
    return txn_change(x, &c, k->value);
}

static int move(struct txn_run *x, const RenameRequest *req, const struct finding *f)
{
    int err = 0;

    for (size_t i = 0; !err && i < f->n; i++) {
        struct change c = {.key = f->keys[i].key, .tombstone = true};

        err = txn_change(x, &c, SLICE_NONE);
        x->n_deletes++;
        x->keys_added--;
    }
    for (size_t i = 0; !err && i < f->n; i++)
        err = put_found(x, req, &f->keys[i]);
    return err;
}

int txn_rename(struct txn_run *x, const RenameRequest *req, Cairn__RenameResponse **ret)
{
    struct finding f = {0};
    outcome o;
    int err = txn_check_rename(req);

    *ret = NULL;
    if (!err)
        err = find(x->view, x->rev, req, x->work, &f, &o);
    if (!err && o == DONE)
        err = target_check(x->view, x->rev, req, x->work, &o);
    if (!err && o == DONE)
        err = move(x, req, &f);
    if (err)
        return err;
    *ret = x->out ? msg_new(x->out, &cairn__rename_response__descriptor) : NULL;
    if (*ret) {
        (*ret)->header = msg_new(x->out, &etcdserverpb__response_header__descriptor);
        (*ret)->outcome = o;
        (*ret)->keys = o == DONE ? (int64_t)f.n : 0;
    }
    if (x->out && (*ret == NULL || (*ret)->header == NULL)) {
        *ret = NULL;
        x->out_err = ERR_ARENA_FULL;
    } else if (*ret) {
        (*ret)->header->revision = txn_rev_now(x);
    }
    return 0;
}
