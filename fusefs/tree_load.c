/* SPDX-License-Identifier: Apache-2.0 */
/* tree_load.c - listing a directory from the server, in pages at one revision.
 *
 * The first page says at which revision; all others ask for that one. A page takes keys with their values,
 * since only so sizes are known. Where the last key of a page lies in a subdirectory the next page begins
 * behind that subdirectory (its name + "0", the byte after '/'): so a subdirectory costs a page, not its
 * contents. The page size follows what is found: smaller where nearly all keys of a page lay deeper, larger
 * while an answer stays under LOAD_PAGE_BYTES.
 *
 * Three kinds:
 *     FIRST  the directory is entered, or something happens in it while it may be watched (then as of
 *            just before)
 *     AGAIN  after a gap: what differs from the tree is told as changes
 *     COUNT  how many keys lie below a directory that is not listed, to know when the last one goes
 *
 * What the watch brings meanwhile waits in the backlog, and is applied after. A key that the tree knows to be
 * newer than the listing (an own commit) is left as it is.
 */
#include <errno.h>

#include "tree_private.h"

struct backlog {
    struct backlog *next;
    struct key_change kc; /* key in `bytes`, no value */
    uint8_t bytes[];
};

struct dir_load {
    struct dir_load *next, **prev; /* all loads */
    struct tree *tree;
    struct node *dir; /* ref'd */
    enum load_kind kind;
    int64_t at_rev; /* asked for; 0: whatever is current */
    int64_t rev;    /* of the listing; 0: the first page has not come */
    int64_t not_before_ms;
    uint64_t serial;
    uint8_t *base, *end, *cursor; /* base: the key of the directory */
    size_t base_len, end_len, cursor_len;
    int64_t limit;
    unsigned retries;
    bool marker_seen, restart;
    struct client_call call;
    struct backlog *backlog, **backlog_end;
    uint32_t n_backlog;
    struct wait *waits;
};

/* ---- life -------------------------------------------------------------------------- */

static void free_backlog(struct dir_load *l)
{
    while (l->backlog) {
        struct backlog *b = l->backlog;

        l->backlog = b->next;
        free(b);
    }
    l->backlog_end = &l->backlog;
    l->n_backlog = 0;
}

static bool load_running(const struct dir_load *l)
{
    return l->call.op != NULL;
}

/* Off the lists; waits and backlog stay with it. */
static void load_detach(struct tree *t, struct dir_load *l)
{
    if (load_running(l)) {
        client_abandon(t->client, &l->call);
        t->n_loads--;
    }
    *l->prev = l->next;
    if (l->next)
        l->next->prev = l->prev;
    l->dir->dir->load = NULL;
}

static void load_free(struct tree *t, struct dir_load *l)
{
    free_backlog(l);
    node_unref(t, l->dir);
    free(l->base);
    free(l->end);
    free(l->cursor);
    free(l);
}

static void answer_waits(struct dir_load *l, int err)
{
    struct wait *w;

    while ((w = l->waits))
        wait_finish(w, err);
}

/* The directory is gone. */
void load_cancel(struct tree *t, struct dir_load *l)
{
    load_detach(t, l);
    answer_waits(l, ENOENT);
    load_free(t, l);
}

/* ---- one page ------------------------------------------------------------------------ */

static void page_done(struct client_call *call);

static void set_cursor(struct dir_load *l, struct slice head, struct slice tail, uint8_t last)
{
    uint8_t *p = malloc(head.len + tail.len + 1);

    if (p == NULL)
        abort(); /* a listing cannot be continued from elsewhere */
    if (head.len)
        memcpy(p, head.ptr, head.len);
    if (tail.len)
        memcpy(p + head.len, tail.ptr, tail.len);
    p[head.len + tail.len] = last;
    free(l->cursor);
    l->cursor = p;
    l->cursor_len = head.len + tail.len + 1;
}

/* From the start: the directory's own first key, or of the whole key space the smallest key there is. */
static void rewind_load(struct dir_load *l)
{
    free(l->cursor);
    l->cursor = NULL;
    l->rev = 0;
    l->limit = LOAD_PAGE_FIRST;
    l->serial = l->tree->next_serial++;
    l->marker_seen = l->restart = false;
}

static void send_page(struct tree *t, struct dir_load *l)
{
    static const uint8_t zero[1] = {0};
    Etcdserverpb__RangeRequest req = ETCDSERVERPB__RANGE_REQUEST__INIT;

    req.key = (ProtobufCBinaryData){l->base_len, l->base};
    if (l->cursor)
        req.key = (ProtobufCBinaryData){l->cursor_len, l->cursor};
    else if (l->base_len == 0)
        req.key = (ProtobufCBinaryData){1, (uint8_t *)zero};
    req.range_end = (ProtobufCBinaryData){l->end_len, l->end};
    req.revision = l->rev ? l->rev : l->at_rev;
    req.limit = l->kind == LOAD_COUNT ? 0 : l->limit;
    req.count_only = l->kind == LOAD_COUNT;
    t->n_loads++;
    l->call.done = page_done;
    client_start(t->client, &l->call, CLIENT_RANGE, &req.base, 0);
}

/* Starts as many as may run; the others wait for one to end. */
static void pump(struct tree *t)
{
    int64_t now_ms = client_now_ms();

    for (struct dir_load *l = t->loads; l && t->n_loads < LOADS_MAX; l = l->next) {
        if (load_running(l) || l->not_before_ms > now_ms)
            continue;
        send_page(t, l);
    }
}

static void take_keys(struct tree *t, struct dir_load *l, const Etcdserverpb__RangeResponse *res,
                      size_t *ret_useful)
{
    enum origin origin = l->kind == LOAD_AGAIN ? FROM_GAP : FROM_LOAD;
    size_t useful = 0;

    for (size_t i = 0; i < res->n_kvs; i++) {
        const Mvccpb__KeyValue *kv = res->kvs[i];
        struct key_change kc = {.key = slice_of(kv->key.data, kv->key.len),
                                .bytes =
                                    slice_of(kv->value.data ? kv->value.data : (uint8_t *)"", kv->value.len)};
        struct slice rest = slice_of(kc.key.ptr + l->base_len, kc.key.len - l->base_len);
        struct node *n;

        meta_of(kv, &kc.meta);
        n = tree_apply_in(t, l->dir, rest, &kc, origin);
        if (n == l->dir) {
            l->marker_seen = true; /* `seen` of the directory itself belongs to its parent's listing */
        } else if (n) {
            useful += n->seen != l->serial;
            n->seen = l->serial;
        }
    }
    *ret_useful = useful;
}

/* Where the next page begins, and how large it is. */
static void advance(struct dir_load *l, const Etcdserverpb__RangeResponse *res, size_t useful, size_t bytes)
{
    const Mvccpb__KeyValue *last = res->kvs[res->n_kvs - 1];
    struct slice key = slice_of(last->key.data, last->key.len);
    struct slice rest = slice_of(key.ptr + l->base_len, key.len - l->base_len);
    const uint8_t *slash = memchr(rest.ptr, '/', rest.len);

    if (slash)
        set_cursor(l, slice_of(l->base, l->base_len), slice_of(rest.ptr, (size_t)(slash - rest.ptr)), '0');
    else
        set_cursor(l, key, SLICE_NONE, 0);
    /* A page costs the server a count of all that is left, so many small ones are worse than reading past
     * some keys that are not ours. */
    if (useful * 64 < res->n_kvs)
        l->limit /= 2;
    else if (bytes < LOAD_PAGE_BYTES / 2)
        l->limit *= 2;
    if (l->limit < LOAD_PAGE_MIN)
        l->limit = LOAD_PAGE_MIN;
    if (bytes > LOAD_PAGE_BYTES)
        l->limit = (int64_t)(res->n_kvs * LOAD_PAGE_BYTES / bytes);
    if (l->limit < 1)
        l->limit = 1;
    if (l->limit > LOAD_PAGE_MAX)
        l->limit = LOAD_PAGE_MAX;
}

/* ---- the end of a listing ---------------------------------------------------------------- */

static bool is_swept(const struct dir_load *l, const struct node *n)
{
    return n->present && n->seen != l->serial;
}

/* What the listing did not find is gone, unless the tree knows better. */
static void sweep(struct tree *t, struct dir_load *l, enum origin origin)
{
    struct dir *d = l->dir->dir;

    if (!l->marker_seen && d->marker.mod_rev <= l->rev)
        dir_unmark(d);
    for (struct node *n = d->children, *value; n; n = n->next) {
        if (n->kind == NODE_FILE && is_swept(l, n) && n->meta.mod_rev <= l->rev)
            node_delete(t, n, l->rev, origin);
        if (n->kind != NODE_DIR || !n->present)
            continue;
        value = node_find(t, n, S(CODEC_VALUE_NAME), NODE_VALUE);
        if (value && is_swept(l, value) && value->meta.mod_rev <= l->rev)
            node_delete(t, value, l->rev, origin);
        if (is_swept(l, n) && !n->dir->lingers && n->dir->announce_rev <= l->rev &&
            n->dir->placed_rev <= l->rev)
            dir_vanish(t, n, l->rev, origin);
    }
}

/* Applies what the watch told meanwhile. It may begin other listings, or this one anew. */
static void replay(struct tree *t, struct dir_load *l, bool skip_known)
{
    for (struct backlog *b = l->backlog; b; b = b->next)
        if (!skip_known || b->kc.meta.mod_rev > l->rev)
            (void)tree_apply(t, &b->kc, FROM_WATCH);
}

static void settled(struct tree *t)
{
    if (t->settled)
        t->settled(t->feed);
}

static void finish_listing(struct tree *t, struct dir_load *l)
{
    struct node *dir = l->dir;
    bool again = l->kind == LOAD_AGAIN;

    node_ref(dir);
    sweep(t, l, again ? FROM_GAP : FROM_LOAD);
    load_detach(t, l);
    dir->dir->state = DIR_LOADED;
    if (dir->dir->rev < l->rev)
        dir->dir->rev = l->rev;
    t->stats.loads++;
    replay(t, l, again);
    if (dir->dir->load == NULL)
        dir_check_empty(t, dir, l->rev, FROM_GAP);
    answer_waits(l, 0);
    load_free(t, l);
    node_unref(t, dir);
    settled(t);
}

static void finish_count(struct tree *t, struct dir_load *l, int64_t count)
{
    struct node *dir = l->dir;
    struct wait *waits = l->waits;
    int64_t rev = l->rev;

    node_ref(dir);
    for (struct backlog *b = l->backlog; b; b = b->next) {
        if (b->kc.meta.mod_rev <= l->rev)
            continue;
        rev = b->kc.meta.mod_rev;
        count += b->kc.is_delete ? -1 : b->kc.meta.version == 1;
    }
    load_detach(t, l);
    dir->dir->n_keys = count > 0 ? count : 0;
    if (waits) { /* somebody entered it in the meantime */
        load_start(t, dir, LOAD_FIRST, 0);
        dir->dir->load->waits = waits;
        waits->prev = &dir->dir->load->waits;
        l->waits = NULL;
    } else {
        dir_check_empty(t, dir, rev, FROM_WATCH);
    }
    load_free(t, l);
    node_unref(t, dir);
    settled(t);
}

/* No listing: those who wait are told why; a directory that was listed before stays as it was. */
static void fail(struct tree *t, struct dir_load *l, int err)
{
    struct dir *d = l->dir->dir;

    load_detach(t, l);
    if (d->state == DIR_LOADING)
        d->state = DIR_UNLOADED;
    if (d->state == DIR_UNLOADED)
        d->n_keys = -1;
    answer_waits(l, err);
    load_free(t, l);
}

/* The revision is gone: whatever is current will do. */
static void begin_anew(struct tree *t, struct dir_load *l)
{
    if (++l->retries > LOAD_RETRIES) {
        fail(t, l, EBUSY);
        return;
    }
    l->at_rev = 0;
    rewind_load(l);
    pump(t);
}

static void page_failed(struct tree *t, struct dir_load *l)
{
    if (l->call.err == ERR_COMPACTED || l->call.err == ERR_FUTURE_REV) {
        begin_anew(t, l);
    } else if (l->kind == LOAD_AGAIN && l->call.outcome != CLIENT_REFUSED) {
        l->not_before_ms = client_now_ms() + LOAD_RETRY_MS;
        rewind_load(l);
    } else {
        fail(t, l, client_errno(&l->call, CLIENT_USE_READ));
    }
}

static void page_done(struct client_call *call)
{
    struct dir_load *l = (struct dir_load *)((char *)call - offsetof(struct dir_load, call));
    const Etcdserverpb__RangeResponse *res = (const Etcdserverpb__RangeResponse *)call->reply;
    struct tree *t = l->tree;
    size_t useful, bytes = 0;

    t->n_loads--;
    if (l->restart) {
        begin_anew(t, l);
    } else if (call->outcome != CLIENT_OK || res->header == NULL) {
        page_failed(t, l);
    } else {
        if (l->rev == 0) {
            l->rev = l->at_rev ? l->at_rev : res->header->revision;
            tree_anchor(t, res->header->revision);
        }
        if (l->kind == LOAD_COUNT) {
            finish_count(t, l, res->count);
        } else {
            for (size_t i = 0; i < res->n_kvs; i++)
                bytes += res->kvs[i]->value.len + res->kvs[i]->key.len;
            take_keys(t, l, res, &useful);
            if (res->more && res->n_kvs) {
                advance(l, res, useful, bytes);
                send_page(t, l);
            } else {
                finish_listing(t, l);
            }
        }
    }
    pump(t);
}

/* ---- beginning ----------------------------------------------------------------------------- */

/* The directory must not have a load. at_rev 0: current. */
void load_start(struct tree *t, struct node *dir, enum load_kind kind, int64_t at_rev)
{
    struct dir_load *l = calloc(1, sizeof *l);

    assert(dir->dir->load == NULL);
    if (l == NULL || t->client == NULL || node_key(t, dir, &l->base, &l->base_len) < 0 ||
        (l->end = malloc(l->base_len + 1)) == NULL) {
        if (l)
            free(l->base);
        free(l);
        return;
    }
    l->end_len = codec_prefix_end(slice_of(l->base, l->base_len), l->end);
    l->tree = t;
    l->dir = node_ref(dir);
    l->kind = kind;
    l->at_rev = at_rev;
    l->backlog_end = &l->backlog;
    rewind_load(l);
    dir->dir->load = l;
    if (kind == LOAD_FIRST)
        dir->dir->state = DIR_LOADING;
    l->next = t->loads;
    if (l->next)
        l->next->prev = &l->next;
    l->prev = &t->loads;
    t->loads = l;
    pump(t);
}

void load_moved(struct tree *t, struct dir_load *l)
{
    uint8_t *base, *end;
    size_t len;

    if (node_key(t, l->dir, &base, &len) < 0 || (end = malloc(len + 1)) == NULL)
        abort(); /* it cannot go on under the old key */
    free(l->base);
    free(l->end);
    l->base = base;
    l->base_len = len;
    l->end = end;
    l->end_len = codec_prefix_end(slice_of(base, len), end);
    free_backlog(l);
    l->at_rev = 0;
    l->retries = 0;
    if (load_running(l))
        l->restart = true;
    else
        rewind_load(l);
}

bool load_is_count(const struct dir_load *l)
{
    return l->kind == LOAD_COUNT;
}

struct wait **load_waits(struct dir_load *l)
{
    return &l->waits;
}

/* Keeps an event until the listing is there. When too many wait, the listing begins anew at a revision that
 * has them. */
void load_backlog(struct tree *t, struct dir_load *l, const struct key_change *kc)
{
    struct backlog *b;

    (void)t;
    if (l->n_backlog >= LOAD_BACKLOG) {
        free_backlog(l);
        l->restart = true;
        l->at_rev = 0;
    }
    b = malloc(sizeof *b + kc->key.len);
    if (b == NULL) {
        l->restart = true;
        return;
    }
    b->next = NULL;
    b->kc = *kc;
    b->kc.value = NULL;
    b->kc.bytes = SLICE_NONE;
    memcpy(b->bytes, kc->key.ptr, kc->key.len);
    b->kc.key = slice_of(b->bytes, kc->key.len);
    *l->backlog_end = b;
    l->backlog_end = &b->next;
    l->n_backlog++;
}

/* After a gap, which ends at at_rev: counts are void, what is being listed begins anew, what was listed is
 * listed again. */
void tree_reload(struct tree *t, int64_t at_rev)
{
    for (struct dir_load *l = t->loads; l; l = l->next) {
        free_backlog(l);
        if (load_running(l))
            l->restart = true;
        else
            rewind_load(l);
        l->at_rev = 0;
    }
    for (size_t i = 0; i < t->size; i++)
        for (struct node *n = t->by_id[i]; n; n = n->hash_id) {
            if (n->kind != NODE_DIR || !n->present)
                continue;
            n->dir->n_keys = -1;
            if (n->dir->state == DIR_LOADED && n->dir->load == NULL && n->dir->rev < at_rev)
                load_start(t, n, LOAD_AGAIN, at_rev);
        }
    pump(t);
}

void load_tick(struct tree *t)
{
    pump(t);
}

/* When one that failed is to be tried again; 0: none is. */
int64_t loads_deadline_ms(const struct tree *t)
{
    int64_t at = 0;

    for (const struct dir_load *l = t->loads; l; l = l->next)
        if (!load_running(l) && l->not_before_ms && (at == 0 || l->not_before_ms < at))
            at = l->not_before_ms;
    return at;
}

/* The tree closes: nobody is told. */
void loads_close(struct tree *t)
{
    while (t->loads) {
        struct dir_load *l = t->loads;

        load_detach(t, l);
        load_free(t, l);
    }
}
