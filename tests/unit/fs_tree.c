/* SPDX-License-Identifier: Apache-2.0 */
/* fs_tree.c - proves that the tree is the store.
 *
 * A fake etcd (a history of puts and deletes, with revisions, compaction, a watch that lags and breaks,
 * answers that come late and out of order) stands behind client.h. Random keys collide on purpose: empty
 * parts, trailing slashes, markers, a key that is also a directory. Whenever all is quiet:
 *
 *   - what every directory lists is what the keys say, name by name, kind by kind, size by size;
 *   - a consumer that only saw the changes told (as inotify would) knows the same names and sizes; no CREATE
 *   came for a
 *     name that was there, no DELETE for one that was not.
 *
 * The fake defines the functions of client.c, so that the real one is not linked. */
#include <errno.h>
#include <stdio.h>

#include "fusefs/tree_private.h"
#include "tap.h"

static uint64_t rng;

static uint32_t dice(uint32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng >> 33) % n;
}

/* ---- the store ------------------------------------------------------------------------- */

#define KEY_MAX 40
#define HISTORY_MAX 20000

struct put {
    int64_t rev;
    bool is_delete;
    char key[KEY_MAX];
    size_t key_len, size;
    uint8_t fill; /* the value is `size` times this byte */
    int64_t create_rev, version, lease;
};

static struct put history[HISTORY_MAX];
static size_t n_history;
static int64_t store_rev, compact_rev;

static struct slice put_key(const struct put *p)
{
    return slice_of(p->key, p->key_len);
}

/* The newest change of the key at or below rev, or NULL when it is absent then. */
static const struct put *store_get(struct slice key, int64_t rev)
{
    for (size_t i = n_history; i-- > 0;)
        if (history[i].rev <= rev && slice_eq(put_key(&history[i]), key))
            return history[i].is_delete ? NULL : &history[i];
    return NULL;
}

static int cmp_put(const void *a, const void *b)
{
    return slice_cmp(put_key(*(const struct put *const *)a), put_key(*(const struct put *const *)b));
}

/* The keys in [from, end) at rev, sorted. */
static size_t store_range(struct slice from, struct slice end, int64_t rev, const struct put **out)
{
    size_t n = 0, kept = 0;

    for (size_t i = 0; i < n_history && history[i].rev <= rev; i++)
        if (slice_cmp(put_key(&history[i]), from) >= 0 &&
            (end.len == 1 && end.ptr[0] == 0 ? true : slice_cmp(put_key(&history[i]), end) < 0))
            out[n++] = &history[i];
    qsort(out, n, sizeof *out, cmp_put);
    for (size_t i = 0; i < n; i++) {
        const struct put *newest;

        if (i && slice_eq(put_key(out[i]), put_key(out[i - 1])))
            continue;
        newest = store_get(put_key(out[i]), rev);
        if (newest)
            out[kept++] = newest;
    }
    return kept;
}

static void store_change(struct slice key, bool is_delete, size_t size, uint8_t fill, int64_t lease)
{
    const struct put *old = store_get(key, store_rev);
    struct put *p = &history[n_history];

    if (is_delete && old == NULL)
        return;
    REQUIRE(n_history < HISTORY_MAX);
    n_history++;
    *p = (struct put){.rev = store_rev, .is_delete = is_delete, .key_len = key.len};
    memcpy(p->key, key.ptr, key.len);
    if (getenv("VERBOSE"))
        printf("#   %lld %s %s size %zu\n", (long long)store_rev, is_delete ? "delete" : "put", p->key, size);
    if (!is_delete) {
        p->size = size;
        p->fill = fill;
        p->lease = lease;
        p->create_rev = old ? old->create_rev : store_rev;
        p->version = old ? old->version + 1 : 1;
    }
}

/* ---- the fake client ----------------------------------------------------------------------- */

struct client_op {
    struct client_op *next;
    struct client_call *call;
    ProtobufCMessage *req;
};

static struct client_op *ops;
static struct client_stream *watch;
static int64_t now_ms = 1, watch_next;
static bool watch_new;

int64_t client_now_ms(void)
{
    return now_ms;
}

void client_start(struct client *c, struct client_call *call, enum client_method m,
                  const ProtobufCMessage *req, int64_t timeout_ms)
{
    struct client_op *op = calloc(1, sizeof *op);
    size_t n = protobuf_c_message_get_packed_size(req);
    uint8_t *buf = malloc(n + 1);

    (void)c, (void)m, (void)timeout_ms;
    protobuf_c_message_pack(req, buf);
    *op = (struct client_op){.next = ops, .call = call};
    op->req = protobuf_c_message_unpack(req->descriptor, NULL, n, buf);
    free(buf);
    ops = op;
    call->op = op;
}

void client_confirm(struct client *c, struct client_call *call, int64_t timeout_ms)
{
    Etcdserverpb__RangeRequest req = ETCDSERVERPB__RANGE_REQUEST__INIT;

    req.key = (ProtobufCBinaryData){1, (uint8_t *)"\0"};
    req.count_only = true;
    client_start(c, call, CLIENT_RANGE, &req.base, timeout_ms);
}

void client_abandon(struct client *c, struct client_call *call)
{
    (void)c;
    if (call->op)
        call->op->call = NULL;
    call->op = NULL;
}

void client_suspect(struct client *c)
{
    (void)c;
}

void client_get_health(const struct client *c, struct client_health *ret)
{
    (void)c;
    *ret = (struct client_health){.connected = true};
}

void client_stream_open(struct client *c, struct client_stream *s, enum client_method m,
                        const ProtobufCMessage *first, int64_t timeout_ms)
{
    const Etcdserverpb__WatchRequest *req = (const Etcdserverpb__WatchRequest *)first;

    (void)c, (void)m, (void)timeout_ms;
    watch = s;
    watch_next = req->create_request->start_revision;
    watch_new = true;
}

void client_stream_close(struct client *c, struct client_stream *s)
{
    (void)c;
    if (watch == s)
        watch = NULL;
}

static void fill_kv(const struct put *p, bool keys_only, Mvccpb__KeyValue *kv)
{
    static uint8_t bytes[256][64];

    *kv = (Mvccpb__KeyValue)MVCCPB__KEY_VALUE__INIT;
    memset(bytes[p->fill], p->fill, sizeof *bytes);
    kv->key = (ProtobufCBinaryData){p->key_len, (uint8_t *)p->key};
    kv->mod_revision = p->rev;
    if (p->is_delete)
        return;
    kv->create_revision = p->create_rev;
    kv->version = p->version;
    kv->lease = p->lease;
    if (!keys_only)
        kv->value = (ProtobufCBinaryData){p->size, bytes[p->fill]};
}

#define RANGE_MAX 2000
struct range_answer {
    Etcdserverpb__RangeResponse res;
    Etcdserverpb__ResponseHeader header;
    Mvccpb__KeyValue kvs[RANGE_MAX], *list[RANGE_MAX];
};

static enum err do_range(const Etcdserverpb__RangeRequest *req, struct range_answer *a)
{
    static const struct put *found[HISTORY_MAX];
    struct slice key = slice_of(req->key.data, req->key.len),
                 end = slice_of(req->range_end.data, req->range_end.len);
    int64_t rev = req->revision ? req->revision : store_rev;
    const struct put *one;
    size_t n;

    if (req->revision && req->revision < compact_rev)
        return ERR_COMPACTED;
    if (req->revision > store_rev)
        return ERR_FUTURE_REV;
    a->res = (Etcdserverpb__RangeResponse)ETCDSERVERPB__RANGE_RESPONSE__INIT;
    a->header = (Etcdserverpb__ResponseHeader)ETCDSERVERPB__RESPONSE_HEADER__INIT;
    a->header.revision = store_rev;
    a->res.header = &a->header;
    if (end.len) {
        n = store_range(key, end, rev, found);
    } else {
        one = store_get(key, rev);
        n = one != NULL;
        found[0] = one;
    }
    a->res.count = (int64_t)n;
    if (req->count_only)
        return ERR_NONE;
    for (size_t i = 0; i < n; i++) {
        if (req->min_mod_revision && found[i]->rev < req->min_mod_revision)
            continue;
        if (req->limit && a->res.n_kvs == (size_t)req->limit) {
            a->res.more = true;
            break;
        }
        REQUIRE(a->res.n_kvs < RANGE_MAX);
        fill_kv(found[i], req->keys_only, &a->kvs[a->res.n_kvs]);
        a->list[a->res.n_kvs] = &a->kvs[a->res.n_kvs];
        a->res.n_kvs++;
    }
    a->res.kvs = a->list;
    return ERR_NONE;
}

static void answer(struct client_op *op)
{
    static struct range_answer answers[2];
    Etcdserverpb__TxnResponse txn = ETCDSERVERPB__TXN_RESPONSE__INIT;
    Etcdserverpb__ResponseOp parts[2] = {ETCDSERVERPB__RESPONSE_OP__INIT, ETCDSERVERPB__RESPONSE_OP__INIT};
    Etcdserverpb__ResponseOp *list[2] = {&parts[0], &parts[1]};
    struct client_call *call = op->call;

    if (call == NULL)
        return;
    call->op = NULL;
    call->outcome = CLIENT_OK;
    call->err = ERR_NONE;
    if (op->req->descriptor == &etcdserverpb__range_request__descriptor) {
        call->err = do_range((const Etcdserverpb__RangeRequest *)op->req, &answers[0]);
        call->reply = &answers[0].res.base;
    } else {
        const Etcdserverpb__TxnRequest *req = (const Etcdserverpb__TxnRequest *)op->req;

        for (size_t i = 0; i < req->n_success; i++) {
            call->err = do_range(req->success[i]->request_range, &answers[i]);
            parts[i].response_case = ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE;
            parts[i].response_range = &answers[i].res;
        }
        txn.header = &answers[0].header;
        txn.responses = list;
        txn.n_responses = req->n_success;
        call->reply = &txn.base;
    }
    if (call->err != ERR_NONE) {
        call->outcome = CLIENT_REFUSED;
        call->code = STATUS_OUT_OF_RANGE;
        call->reply = NULL;
    }
    call->done(call);
}

/* Answers one of the calls under way, any of them. */
static bool answer_some(void)
{
    struct client_op **p = &ops, *op;
    unsigned n = 0, k;

    for (op = ops; op; op = op->next)
        n++;
    if (n == 0)
        return false;
    for (k = dice(n); k; k--)
        p = &(*p)->next;
    op = *p;
    *p = op->next;
    answer(op);
    protobuf_c_message_free_unpacked(op->req, NULL);
    free(op);
    return true;
}

/* Brings up to `revisions` revisions. */
static bool watch_some(int revisions)
{
    static Mvccpb__Event events[RANGE_MAX], *list[RANGE_MAX];
    static Mvccpb__KeyValue kvs[RANGE_MAX];
    Etcdserverpb__WatchResponse res = ETCDSERVERPB__WATCH_RESPONSE__INIT;
    struct client_stream *s = watch;

    if (s == NULL)
        return false;
    if (watch_new) {
        watch_new = false;
        res.created = true;
        s->message(s, &res.base);
        return true;
    }
    if (watch_next <= compact_rev && watch_next <= store_rev && compact_rev) {
        res.canceled = true;
        res.compact_revision = compact_rev;
        s->message(s, &res.base);
        return true;
    }
    for (size_t i = 0; i < n_history && res.n_events < RANGE_MAX; i++) {
        if (history[i].rev < watch_next || history[i].rev >= watch_next + revisions)
            continue;
        fill_kv(&history[i], false, &kvs[res.n_events]);
        events[res.n_events] = (Mvccpb__Event)MVCCPB__EVENT__INIT;
        events[res.n_events].type = history[i].is_delete ? MVCCPB__EVENT__EVENT_TYPE__DELETE
                                                         : MVCCPB__EVENT__EVENT_TYPE__PUT;
        events[res.n_events].kv = &kvs[res.n_events];
        list[res.n_events] = &events[res.n_events];
        res.n_events++;
    }
    if (watch_next > store_rev)
        return false;
    watch_next += revisions;
    if (watch_next > store_rev + 1)
        watch_next = store_rev + 1;
    res.events = list;
    if (res.n_events)
        s->message(s, &res.base);
    return true;
}

/* ---- the consumer ------------------------------------------------------------------------------ */

#define SHADOW_MAX 4096
static struct shadow {
    char path[200];
    bool is_dir, scanned; /* scanned: seen by listing; a CREATE may still come for it */
    uint64_t size;
} shadow[SHADOW_MAX];
static unsigned n_shadow;
static bool strict; /* what the consumer is told must fit what it knows */
static struct tree *t;
static struct feed *feed;

static struct shadow *shadow_find(const char *path)
{
    for (unsigned i = 0; i < n_shadow; i++)
        if (strcmp(shadow[i].path, path) == 0)
            return &shadow[i];
    return NULL;
}

static void shadow_add(const char *path, bool is_dir, uint64_t size, bool scanned)
{
    REQUIRE(n_shadow < SHADOW_MAX && strlen(path) < sizeof shadow->path);
    shadow[n_shadow] = (struct shadow){.is_dir = is_dir, .size = size, .scanned = scanned};
    strcpy(shadow[n_shadow++].path, path);
}

static void shadow_drop(struct shadow *s)
{
    *s = shadow[--n_shadow];
}

static void complain(const char *what, const struct change_event *ev)
{
    printf("# %s: kind %d %s%s rev %lld\n", what, ev->kind, ev->path, ev->flags & CHANGE_DIR ? "/" : "",
           (long long)ev->rev);
    CHECK(false);
}

static void shadow_put(const struct change_event *ev, bool created)
{
    bool is_dir = ev->flags & CHANGE_DIR;
    struct shadow *s = shadow_find(ev->path);

    if (s && (s->is_dir != is_dir || (created && strict && !s->scanned)))
        complain("created although there", ev);
    if (s == NULL && !created && strict)
        complain("modified although not there", ev);
    if (s == NULL) {
        shadow_add(ev->path, is_dir, ev->size, false);
    } else {
        s->size = ev->size;
        s->scanned = false;
    }
}

static void shadow_remove(const struct change_event *ev, const char *path)
{
    struct shadow *s = shadow_find(path);

    if (s == NULL && strict)
        complain("deleted although not there", ev);
    if (s)
        shadow_drop(s);
}

static void list_into_shadow(struct node *dir);

static void on_change(void *ctx, struct change_event *ev)
{
    (void)ctx;
    if (getenv("VERBOSE"))
        printf("#   change %d %s%s rev %lld size %llu flags %x\n", ev->kind, ev->path,
               ev->flags & CHANGE_DIR ? "/" : "", (long long)ev->rev, (unsigned long long)ev->size,
               ev->flags);
    CHECK(ev->dir == ev->node->parent);
    if (ev->kind == CHANGE_MOVE)
        shadow_remove(ev, ev->from_path);
    if (ev->kind == CHANGE_DELETE)
        shadow_remove(ev, ev->path);
    else
        shadow_put(ev,
                   ev->kind == CHANGE_CREATE || (ev->kind == CHANGE_MOVE && !(ev->flags & CHANGE_REPLACED)));
    change_free(t, ev);
}

/* ---- what the keys say --------------------------------------------------------------------------- */

struct truth {
    char path[200];
    bool is_dir;
    size_t size;
};

static void truth_add(struct truth *list, unsigned *n, const char *path, bool is_dir, size_t size)
{
    for (unsigned i = 0; i < *n; i++)
        if (strcmp(list[i].path, path) == 0)
            return;
    list[*n] = (struct truth){.is_dir = is_dir, .size = size};
    strcpy(list[(*n)++].path, path);
}

static bool has_below(struct slice key)
{
    for (size_t i = 0; i < n_history; i++) {
        struct slice k = put_key(&history[i]);

        if (k.len > key.len && slice_has_prefix(k, key) && k.ptr[key.len] == '/' && store_get(k, store_rev))
            return true;
    }
    return false;
}

/* One key: the directories on its way, then its file, .value or marker. */
static void truth_of_key(const struct put *p, struct slice prefix, struct truth *list, unsigned *n)
{
    struct slice key = put_key(p), rest = slice_of(key.ptr + prefix.len, key.len - prefix.len);
    char path[200] = "", name[200];
    bool first = true;

    for (;; first = false) {
        const uint8_t *slash = memchr(rest.ptr, '/', rest.len);
        struct slice part = slash ? slice_of(rest.ptr, (size_t)(slash - rest.ptr)) : rest;
        int m;

        if (!slash && part.len == 0 && p->size == 0)
            return; /* a marker; its directory is there by now */
        m = codec_encode(part, first, name, sizeof name - 1);
        REQUIRE(m > 0);
        name[m] = 0;
        if (!first)
            strcat(path, "/");
        strcat(path, name);
        if (!slash)
            break;
        truth_add(list, n, path, true, 0);
        rest = slice_of(slash + 1, rest.len - part.len - 1);
    }
    if (has_below(key))
        strcat(path, "/.value");
    truth_add(list, n, path, false, p->size);
}

static unsigned truth_build(struct slice prefix, struct truth *list)
{
    static const struct put *found[HISTORY_MAX];
    uint8_t end[KEY_MAX + 1];
    size_t end_len = codec_prefix_end(prefix, end);
    size_t n = store_range(prefix.len ? prefix : S("\0"), slice_of(end, end_len), store_rev, found);
    unsigned m = 0;

    for (size_t i = 0; i < n; i++)
        truth_of_key(found[i], prefix, list, &m);
    return m;
}

/* ---- the run ------------------------------------------------------------------------------------------ */

static void entered(struct wait *w, int err)
{
    (void)err;
    value_unref(w->value);
    free(w);
}

static void enter(struct node *dir)
{
    struct wait *w = calloc(1, sizeof *w);

    w->done = entered;
    tree_enter(t, dir, w);
}

static void list_into_shadow(struct node *dir)
{
    struct listing l;

    REQUIRE(tree_list(t, dir, &l) == 0);
    for (uint32_t i = 0; i < l.n; i++) {
        struct node *n = tree_node(t, l.entries[i].nodeid);
        char *path = node_path(n);

        if (shadow_find(path) == NULL)
            shadow_add(path, n->kind == NODE_DIR, n->meta.size, true);
        free(path);
    }
    listing_fini(&l);
}

static void settle(void)
{
    bool busy;

    do {
        tree_flush(t);
        now_ms += 1000;
        tree_tick(t, now_ms);
        feed_tick(feed, now_ms);
        busy = answer_some();
        busy = watch_some(3) || busy;
        busy = busy || watch == NULL || watch_new || watch_next <= store_rev;
    } while (busy);
}

/* Enters everything there is, until nothing new comes up. */
static void enter_all(void)
{
    bool again = true;

    while (again) {
        again = false;
        for (size_t i = 0; i < t->size; i++)
            for (struct node *n = t->by_id[i]; n; n = n->hash_id)
                if (n->kind == NODE_DIR && n->present && n->dir->state == DIR_UNLOADED) {
                    enter(n);
                    again = true;
                    goto settled;
                }
    settled:
        settle();
    }
}

static int cmp_truth(const void *a, const void *b)
{
    return strcmp(((const struct truth *)a)->path, ((const struct truth *)b)->path);
}

static unsigned tree_dump(struct node *dir, struct truth *out, unsigned n)
{
    struct listing l;

    REQUIRE(tree_list(t, dir, &l) == 0);
    for (uint32_t i = 0; i < l.n; i++) {
        struct node *c = tree_node(t, l.entries[i].nodeid);
        char *path = node_path(c);

        out[n] =
            (struct truth){.is_dir = c->kind == NODE_DIR, .size = c->kind == NODE_DIR ? 0 : c->meta.size};
        strcpy(out[n++].path, path);
        free(path);
        if (c->kind == NODE_DIR)
            n = tree_dump(c, out, n);
    }
    listing_fini(&l);
    return n;
}

static bool same(struct truth *a, unsigned n, struct truth *b, unsigned m, const char *what)
{
    bool ok = true;

    qsort(a, n, sizeof *a, cmp_truth);
    qsort(b, m, sizeof *b, cmp_truth);
    for (unsigned i = 0, k = 0; i < n || k < m;) {
        int c = i == n ? 1 : k == m ? -1 : strcmp(a[i].path, b[k].path);

        if (c < 0)
            printf("# %s: missing %s%s\n", what, a[i].path, a[i].is_dir ? "/" : "");
        else if (c > 0)
            printf("# %s: too much: %s%s\n", what, b[k].path, b[k].is_dir ? "/" : "");
        else if (a[i].is_dir != b[k].is_dir || a[i].size != b[k].size)
            printf("# %s: differs: %s\n", what, a[i].path);
        else {
            i++, k++;
            continue;
        }
        ok = false;
        i += c <= 0;
        k += c >= 0;
    }
    return ok;
}

static bool compare(struct slice prefix, bool with_shadow)
{
    static struct truth truth[SHADOW_MAX], got[SHADOW_MAX];
    unsigned n = truth_build(prefix, truth), m = tree_dump(tree_root(t), got, 0);
    bool ok = same(truth, n, got, m, "tree");

    if (!with_shadow)
        return ok;
    m = 0;
    for (unsigned i = 0; i < n_shadow; i++) {
        got[m] = (struct truth){.is_dir = shadow[i].is_dir, .size = shadow[i].is_dir ? 0 : shadow[i].size};
        strcpy(got[m++].path, shadow[i].path);
    }
    return same(truth, n, got, m, "consumer") && ok;
}

static size_t random_key(char *key, struct slice prefix)
{
    static const char *const parts[] = {"a", "b", "a", "b", "c", "a-x", "", ".value", ".etcd", "%", "."};
    unsigned depth = 1 + dice(4);
    size_t n = prefix.len;

    memcpy(key, prefix.ptr, prefix.len);
    for (unsigned i = 0; i < depth; i++) {
        const char *part = parts[dice(sizeof parts / sizeof *parts)];

        if (i)
            key[n++] = '/';
        memcpy(key + n, part, strlen(part));
        n += strlen(part);
    }
    if (n == 0)
        key[n++] = 'z';
    return n;
}

/* One transaction: mostly one put or delete; sometimes a rename, or a prefix deleted. */
static void mutate(struct slice prefix)
{
    char key[KEY_MAX], other[KEY_MAX];
    size_t len = random_key(key, prefix), before = n_history;
    const struct put *p = store_get(slice_of(key, len), store_rev);
    uint32_t kind = dice(10);

    store_rev++;
    if (kind < 5) {
        store_change(slice_of(key, len), false, dice(4) ? dice(60) : 0, (uint8_t)dice(256), dice(4) ? 0 : 7);
    } else if (kind < 8) {
        store_change(slice_of(key, len), true, 0, 0, 0);
    } else if (kind == 8 && p) {
        size_t other_len = random_key(other, prefix);
        struct put copy = *p;

        if (!slice_eq(slice_of(other, other_len), slice_of(key, len))) {
            store_change(slice_of(key, len), true, 0, 0, 0);
            store_change(slice_of(other, other_len), false, copy.size, copy.fill, copy.lease);
        }
    } else if (kind == 9) {
        static const struct put *found[HISTORY_MAX];
        uint8_t end[KEY_MAX + 1];
        size_t n, end_len;

        if (len < KEY_MAX)
            key[len++] = '/';
        end_len = codec_prefix_end(slice_of(key, len), end);
        n = store_range(slice_of(key, len), slice_of(end, end_len), store_rev, found);
        for (size_t i = 0; i < n; i++) {
            struct put copy = *found[i];

            store_change(put_key(&copy), true, 0, 0, 0);
        }
    }
    if (n_history == before)
        store_rev--;
}

static void know_all(void)
{
    for (size_t i = 0; i < t->size; i++)
        for (struct node *n = t->by_id[i]; n; n = n->hash_id)
            if (n->kind == NODE_DIR && n->present && n->nlookup == 0)
                node_lookup(t, n);
}

static void shadow_all(struct node *dir)
{
    list_into_shadow(dir);
    for (struct node *n = dir->dir->children; n; n = n->next)
        if (n->present && n->kind == NODE_DIR && n->dir->state == DIR_LOADED)
            shadow_all(n);
}

static void start(struct slice prefix, bool listening)
{
    const struct tree_config cfg = {.prefix = prefix, .file_mode = 0644, .dir_mode = 0755, .name_max = 200};
    const struct feed_sink sink = {.change = listening ? on_change : NULL};
    static int client; /* never looked into by the fake */

    n_history = n_shadow = 0;
    store_rev = 1;
    compact_rev = 0;
    watch = NULL;
    REQUIRE(tree_open(&cfg, (struct client *)&client, &t) == 0);
    REQUIRE(feed_open(t, (struct client *)&client, &sink, &feed) == 0);
}

static uint64_t t_unloads;

static void stop(void)
{
    t_unloads = t->stats.unloads;
    feed_close(feed);
    tree_close(t);
    while (answer_some())
        ;
}

/* Something that a user of the mount does. */
static void use(void)
{
    struct node *n = NULL;
    unsigned skip = dice((unsigned)t->n_nodes + 1);

    for (size_t i = 0; i < t->size && !n; i++)
        for (struct node *c = t->by_id[i]; c; c = c->hash_id)
            if (skip-- == 0) {
                n = c;
                break;
            }
    if (n == NULL)
        return;
    struct wait *w = calloc(1, sizeof *w);

    w->done = entered;
    if (n->kind == NODE_DIR && dice(2)) {
        tree_enter(t, n, w);
    } else if (n->kind == NODE_DIR) {
        tree_lookup(t, n, dice(2) ? S("a") : S("b"), w);
    } else {
        w->deadline_ms = now_ms + 1000000;
        tree_open_read(t, n, w);
    }
}

/* ---- a directory renamed by this mount --------------------------------------------------------------- */

static struct {
    struct node *node, *to_dir; /* NULL: none is on its way */
    char name[8], from[KEY_MAX], to[KEY_MAX];
    size_t from_len, to_len, n;
    struct put keys[200]; /* as read */
    int64_t rev;
} moving;
static unsigned n_moved, n_not_moved;

static struct node *random_dir(bool loaded)
{
    struct node *found = NULL;
    unsigned n = 0;

    for (size_t i = 0; i < t->size; i++)
        for (struct node *c = t->by_id[i]; c; c = c->hash_id)
            if (c->kind == NODE_DIR && c->present && (!loaded || c->dir->state == DIR_LOADED) && dice(++n) == 0)
                found = c;
    return found;
}

/* The server has done it; the answer is still on its way. */
static void rename_begin(struct slice prefix)
{
    static const struct put *found[HISTORY_MAX];
    static const char *const names[] = {"a", "b", "c", "new"};
    struct node *n = random_dir(false), *to_dir = random_dir(true), *there;
    uint8_t *key, *to, end[2 * KEY_MAX];
    size_t len, to_len, end_len, n_keys;

    (void)prefix;
    if (n == NULL || to_dir == NULL || n == t->root || node_is_below(to_dir, n))
        return;
    strcpy(moving.name, names[dice(4)]);
    there = tree_child(t, to_dir, slice_str(moving.name));
    if (there == n || (there && (there->kind != NODE_DIR || there->dir->n_present)))
        return;
    REQUIRE(node_key(t, n, &key, &len) == 0);
    REQUIRE(node_child_key(t, to_dir, slice_str(moving.name), true, &to, &to_len) == 0);
    if (len >= KEY_MAX || to_len >= KEY_MAX)
        goto out;
    end_len = codec_prefix_end(slice_of(to, to_len), end);
    n_keys = store_range(slice_of(to, to_len), slice_of(end, end_len), store_rev, found);
    if (n_keys > 1 || (n_keys == 1 && found[0]->key_len != to_len))
        goto out;
    end_len = codec_prefix_end(slice_of(key, len), end);
    n_keys = store_range(slice_of(key, len), slice_of(end, end_len), store_rev, found);
    if (n_keys == 0 || n_keys > 200)
        goto out;
    for (size_t i = 0; i < n_keys; i++) {
        moving.keys[i] = *found[i];
        if (found[i]->key_len - len + to_len >= KEY_MAX)
            goto out;
    }
    store_rev++;
    for (size_t i = 0; i < n_keys; i++)
        store_change(put_key(&moving.keys[i]), true, 0, 0, 0);
    for (size_t i = 0; i < n_keys; i++) {
        const struct put *p = &moving.keys[i];
        char moved[KEY_MAX];

        memcpy(moved, to, to_len);
        memcpy(moved + to_len, p->key + len, p->key_len - len);
        store_change(slice_of(moved, to_len + p->key_len - len), false, p->size, p->fill, p->lease);
    }
    memcpy(moving.from, key, len);
    moving.from_len = len;
    moving.n = n_keys;
    moving.rev = store_rev;
    moving.node = node_ref(n);
    moving.to_dir = node_ref(to_dir);
    feed_hold(feed);
out:
    free(key);
    free(to);
}

static void rename_end(void)
{
    struct node *n = moving.node, *there = tree_child(t, moving.to_dir, slice_str(moving.name));
    uint64_t serial = tree_serial(t), id = n->nodeid;

    feed_own_end(feed, slice_of(moving.from, moving.from_len), moving.rev);
    if (tree_move_dir(t, n, moving.to_dir, slice_str(moving.name), moving.rev) == 0) {
        n_moved++;
        CHECK(n->present && n->nodeid == id && n->parent == moving.to_dir && strcmp(n->name, moving.name) == 0);
        CHECK(tree_child(t, moving.to_dir, slice_str(moving.name)) == n);
        for (size_t i = 0; i < moving.n; i++)
            tree_moved_key(t, n,
                           slice_of(moving.keys[i].key + moving.from_len, moving.keys[i].key_len - moving.from_len),
                           moving.keys[i].rev, moving.rev, serial);
        tree_moved_all(t, n, moving.rev, serial);
        feed_release(feed);
    } else {
        n_not_moved++;
        tree_rmdir(t, n, moving.rev);
        if (there && there->kind == NODE_DIR)
            tree_dir_renew(t, there);
        feed_release(feed);
    }
    node_unref(t, n);
    node_unref(t, moving.to_dir);
    moving.node = NULL;
}

static bool unloading; /* listings are forgotten, too */
static bool renaming;

/* Reads of all kinds race with the watch, with compaction and with streams that break. */
static void run(struct slice prefix, int rounds, bool gaps)
{
    start(prefix, false);
    for (int round = 0; round < rounds && !tap_bad; round++) {
        for (unsigned i = dice(40); i; i--) {
            switch (dice(renaming ? 9 : 8)) {
            case 0:
            case 1:
            case 2: mutate(prefix); break;
            case 8:
                if (moving.node)
                    rename_end();
                else
                    rename_begin(prefix);
                break;
            case 3: answer_some(); break;
            case 4: watch_some(1 + (int)dice(4)); break;
            case 5: use(); break;
            case 6:
                tree_flush(t);
                if (unloading && dice(40) == 0)
                    know_all();
                if (unloading && dice(3) == 0) {
                    now_ms += TREE_UNLOAD_IDLE_MS * dice(2);
                    tree_unload(t, dice((unsigned)t->n_nodes + 1));
                }
                break;
            default:
                if (gaps && dice(20) == 0 && watch) {
                    struct client_stream *s = watch;

                    watch = NULL;
                    s->closed(s, ERR_NONE, STATUS_UNAVAILABLE, "broken");
                    compact_rev = store_rev > 3 && dice(2) ? store_rev - dice(3) : compact_rev;
                }
                now_ms += 60;
                tree_tick(t, now_ms);
                feed_tick(feed, now_ms);
            }
        }
        if (moving.node)
            rename_end();
        settle();
        enter_all();
        if (!compare(prefix, false)) {
            printf("# round %d\n", round);
            CHECK(false);
        }
    }
    stop();
}

static void tree_follows(void)
{
    run(S(""), 300, false);
}

static void tree_follows_below_a_prefix(void)
{
    run(S("/reg/"), 200, false);
    run(S("/re"), 100, false);
}

static void tree_survives_gaps(void)
{
    run(S("p/"), 300, true);
}

static void tree_follows_what_it_has_forgotten(void)
{
    unloading = true;
    run(S(""), 200, false);
    CHECK(t_unloads > 100);
    run(S("p/"), 100, true);
    unloading = false;
}

static void tree_moves_what_it_renames(void)
{
    renaming = true;
    run(S(""), 300, false);
    run(S("p/"), 200, true);
    renaming = false;
    printf("# %u moved, %u made anew\n", n_moved, n_not_moved);
    CHECK(n_moved > 200 && n_moved > 10 * n_not_moved);
}

/* The consumer knows every directory, as inotifywait -r does: it looks up and lists each new one. */
static void consumer(struct slice prefix, int rounds, bool gaps)
{
    start(prefix, true);
    settle();
    for (int round = 0; round < rounds && !tap_bad; round++) {
        enter_all();
        know_all();
        shadow_all(tree_root(t));
        strict = true;
        for (unsigned i = dice(12); i; i--)
            mutate(prefix);
        if (gaps && dice(4) == 0) {
            struct client_stream *s = watch;

            watch = NULL;
            s->closed(s, ERR_NONE, STATUS_UNAVAILABLE, "broken");
            compact_rev = store_rev;
        }
        settle();
        strict = false;
        enter_all();
        know_all();
        shadow_all(tree_root(t));
        if (!compare(prefix, true)) {
            printf("# round %d\n", round);
            CHECK(false);
        }
    }
    stop();
}

static void changes_tell_everything(void)
{
    consumer(S(""), 400, false);
}

static void changes_after_gaps(void)
{
    consumer(S("x/"), 300, true);
}

/* More than a page of names and of subdirectories, among them one that is large. */
static void large_directories(void)
{
    char key[KEY_MAX];

    start(S(""), false);
    for (int i = 0; i < 700; i++) {
        store_rev++;
        store_change(slice_str((snprintf(key, sizeof key, "f%d", i), key)), false, 3, 'x', 0);
        store_change(slice_str((snprintf(key, sizeof key, "d%d/x", i % 300), key)), false, 3, 'x', 0);
        store_change(slice_str((snprintf(key, sizeof key, "e/%d", i), key)), false, 3, 'x', 0);
        store_change(slice_str((snprintf(key, sizeof key, "e-%d", i), key)), false, 3, 'x', 0);
    }
    settle();
    enter_all();
    CHECK(compare(S(""), false));
    stop();
}

int main(void)
{
    const char *seed = getenv("SEED");

    rng = seed ? strtoull(seed, NULL, 0) : (uint64_t)time(NULL);
    printf("# SEED=%llu\n", (unsigned long long)rng);
    TEST(large_directories);
    TEST(tree_follows);
    TEST(tree_follows_below_a_prefix);
    TEST(tree_survives_gaps);
    TEST(tree_follows_what_it_has_forgotten);
    TEST(tree_moves_what_it_renames);
    TEST(changes_tell_everything);
    TEST(changes_after_gaps);
    return tap_done();
}
