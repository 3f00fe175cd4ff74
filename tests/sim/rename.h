/* SPDX-License-Identifier: Apache-2.0 */
/* rename.h - directories that are renamed: what that means to the oracle, and the clients that ask for it.
 *
 * The meaning is that of include/proto/tree.proto, on the model's own keys, with the daemon's limits said again. Where
 * more than one reason to refuse is true, each may be answered. The events that follow, deletes before puts, are what
 * watchers are owed, and the versions what reads must find.
 *
 * Small directories come and go under everything else the clients do. A heap is about as large as one rename may move,
 * so few seeds have one: it is filled by one transaction, moved, refused by its size, and deleted.
 */
#pragma once
#include "client.h"
#include "tree.pb-c.h"

enum { RENAME_KEYS_MOST = 10000, RENAME_BYTES_MOST = 16 << 20, RENAME_NAME_MOST = 1 << 20 };

/* ---- what it means ----------------------------------------------------------------------------------- */

struct model_renaming {
    struct slice from, to;
    unsigned keys[SIM_KEYS]; /* that are moved, in order */
    uint32_t n;
    size_t bytes, longest; /* of the new names and their values; of one new name */
    bool newer, taken;     /* than what the caller read; by keys under the new name */
};

static inline size_t value_len(uint64_t value)
{
    return (size_t)snprintf(NULL, 0, "%" PRIu64, value);
}

static inline void model_renaming_add(struct model_renaming *g, unsigned k, size_t len, const struct version *v,
                                      int64_t revision)
{
    size_t name = g->to.len + len - g->from.len;

    g->keys[g->n++] = k;
    g->bytes += name + value_len(v->value);
    g->longest = name > g->longest ? name : g->longest;
    g->newer |= v->mod > revision;
}

static inline void model_renaming_find(const struct oracle *o, const Cairn__RenameRequest *r, struct model_renaming *g)
{
    bool marker = r->flags & CAIRN__RENAME_FLAG__RENAME_MARKER;

    for (unsigned k = 0; k < o->n_keys; k++) {
        const struct version *v = key_at(o, k, INT64_MAX);
        struct slice name;
        char text[8];

        if (v == NULL)
            continue;
        key_name(k, text);
        name = slice_str(text);
        if (slice_has_prefix(name, g->from))
            model_renaming_add(g, k, name.len, v, r->revision);
        else if (slice_has_prefix(name, g->to))
            g->taken |= !marker || name.len > g->to.len;
    }
}

/* All old names go, then all new ones come, at one revision. */
static inline void model_renaming_move(struct world *w, struct oracle *o, const struct model_renaming *g)
{
    for (uint32_t i = 0; i < g->n; i++)
        (void)model_delete(o, g->keys[i]);
    for (uint32_t i = 0; i < g->n; i++) {
        const struct version was = *key_at(o, g->keys[i], o->rev);
        char old[8], name[16];
        int k;

        key_name(g->keys[i], old);
        (void)snprintf(name, sizeof name, "%.*s%s", (int)g->to.len, (const char *)g->to.ptr, old + g->from.len);
        k = key_index(slice_str(name));
        if (k < 0 || (unsigned)k >= o->n_keys) {
            world_fail(w, "harness", "a rename to %s, which the model does not know", name);
            return;
        }
        model_put(o, (unsigned)k, was.value, was.lease);
    }
}

/* Which answers are true, and how many keys are moved. */
static inline int model_rename(struct world *w, struct oracle *o, struct slice body, struct agreed *a)
{
    static struct model_renaming g; /* large: not for the stack */
    Cairn__RenameRequest *r = cairn__rename_request__unpack(NULL, body.len, body.ptr);
    int err = 0;

    g.from = pb_slice(r->from);
    g.to = pb_slice(r->to);
    g.n = 0;
    g.bytes = g.longest = 0;
    g.newer = g.taken = false;
    if (g.from.len == 0 || g.to.len == 0)
        err = ERR_KEY_EMPTY;
    else if (slice_has_prefix(g.from, g.to) || slice_has_prefix(g.to, g.from))
        err = ERR_DUPLICATE_KEY;
    if (!err) {
        model_renaming_find(o, r, &g);
        a->outcomes = (g.newer || g.taken ? 1u << CAIRN__RENAME_RESPONSE__OUTCOME__CHANGED : 0) |
                      (g.n == 0 ? 1u << CAIRN__RENAME_RESPONSE__OUTCOME__NOTHING : 0);
        if (g.n > RENAME_KEYS_MOST || g.bytes > RENAME_BYTES_MOST || g.longest > RENAME_NAME_MOST)
            a->outcomes |= 1u << CAIRN__RENAME_RESPONSE__OUTCOME__TOO_LARGE;
        if (a->outcomes == 0) {
            a->outcomes = 1u << CAIRN__RENAME_RESPONSE__OUTCOME__DONE;
            a->moved = g.n;
            model_renaming_move(w, o, &g);
        }
    }
    cairn__rename_request__free_unpacked(r, NULL);
    return err;
}

/* Of one that is committed, and answered without an error. */
static inline void rename_judge(struct call_sim *c, const struct agreed *a)
{
    const Cairn__RenameResponse *r = c->p.response;
    struct world *w = &c->s->w;

    if (r == NULL || r->header == NULL) {
        world_fail(w, "ApplyDeterministic", "member %" PRIu64 " answers a rename with nothing", c->m->id);
        return;
    }
    if (!(a->outcomes >> r->outcome & 1) || r->keys != a->moved || r->header->revision != a->rev)
        world_fail(w, "ApplyDeterministic",
                   "member %" PRIu64 " answers a rename: %d, %" PRId64 " keys at %" PRId64
                   "; the model any of %#x, %u at %" PRId64,
                   c->m->id, (int)r->outcome, r->keys, r->header->revision, a->outcomes, a->moved, a->rev);
    w->did.renames += a->moved > 0;
    w->did.renames_refused += a->moved == 0;
    w->did.renames_large += a->moved > RENAME_KEYS_MOST / 2;
    w->did.renames_too_large += r->outcome == CAIRN__RENAME_RESPONSE__OUTCOME__TOO_LARGE;
}

/* ---- who asks ---------------------------------------------------------------------------------------- */

static inline void rename_start(struct sim *s, struct sim_member *m, struct slice from, struct slice to,
                                int64_t revision, bool marker)
{
    Cairn__RenameRequest r = CAIRN__RENAME_REQUEST__INIT;

    r.from = (ProtobufCBinaryData){from.len, (uint8_t *)from.ptr};
    r.to = (ProtobufCBinaryData){to.len, (uint8_t *)to.ptr};
    r.revision = revision;
    r.flags = marker ? CAIRN__RENAME_FLAG__RENAME_MARKER : CAIRN__RENAME_FLAG__RENAME_NONE;
    world_line(&s->w, "rename %.*s to %.*s as of %" PRId64 "%s", (int)from.len, (const char *)from.ptr,
               to.len > 8 ? 8 : (int)to.len, (const char *)to.ptr, revision, marker ? ", its marker may be there" : "");
    (void)write_start(s, m, ENTRY_RENAME, &r, CALL_TIMEOUT_MS);
}

/* All keys of a directory, or all but its marker. */
static inline void ask_empty(struct sim *s, struct sim_member *m, unsigned first, unsigned end)
{
    Etcdserverpb__DeleteRangeRequest r = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
    char from[8], to[8] = "l";

    key_name(first, from);
    if (end < SIM_KEYS)
        key_name(end, to);
    r.key = pb_text(from);
    r.range_end = pb_text(to);
    (void)write_start(s, m, ENTRY_DELETE_RANGE, &r, CALL_TIMEOUT_MS);
}

/* A directory to another one, which is emptied first, mostly; or one file; or what makes no sense. */
static inline void ask_rename(struct sim *s, struct sim_member *m)
{
    unsigned d = (unsigned)world_random(&s->w, SIM_DIRS),
             e = (d + 1 + (unsigned)world_random(&s->w, SIM_DIRS - 1)) % SIM_DIRS,
             how = (unsigned)world_random(&s->w, 20);
    bool marker = world_chance(&s->w, 50);
    char from[8], to[8] = "";

    key_name(d * SIM_DIR_KEYS + (how < 3 ? 1 : 0), from);
    if (how == 0)
        key_name(e * SIM_DIR_KEYS + 2, to);
    else if (how == 1)
        key_name(d * SIM_DIR_KEYS, to); /* its own directory */
    else if (how > 2)
        key_name(e * SIM_DIR_KEYS, to);
    if (how > 2 && world_chance(&s->w, 80))
        ask_empty(s, m, e * SIM_DIR_KEYS + marker, (e + 1) * SIM_DIR_KEYS);
    rename_start(s, m, slice_str(from), slice_str(to),
                 world_chance(&s->w, 80) ? s->o.rev + (int64_t)world_random(&s->w, 10)
                                         : s->o.rev - (int64_t)world_random(&s->w, 20), marker);
}

/* Is there something in the heap, as far as is known? */
static inline bool heap_is_used(const struct sim *s, unsigned heap)
{
    for (unsigned k = heap_first(heap); k < heap_first(heap) + SIM_HEAP_KEYS; k++)
        if (key_at(&s->o, k, INT64_MAX))
            return true;
    return false;
}

/* As many keys as the seed's heap has, and up to three more, in one transaction; some of them with a lease. */
static inline void ask_fill(struct sim *s, struct sim_member *m, unsigned heap)
{
    Etcdserverpb__TxnRequest r = ETCDSERVERPB__TXN_REQUEST__INIT;
    unsigned n = s->heap_keys + (unsigned)world_random(&s->w, 4);
    int64_t lease = 1 + (int64_t)world_random(&s->w, SIM_LEASES);
    struct fill {
        Etcdserverpb__RequestOp op, *ptr;
        Etcdserverpb__PutRequest put;
        char key[8], value[16];
    } *fill = calloc(n, sizeof *fill);
    Etcdserverpb__RequestOp **ops = calloc(n, sizeof *ops);

    for (unsigned i = 0; i < n; i++) {
        ops[i] = &fill[i].op;
        etcdserverpb__request_op__init(&fill[i].op);
        etcdserverpb__put_request__init(&fill[i].put);
        key_name(heap_first(heap) + i, fill[i].key);
        (void)snprintf(fill[i].value, sizeof fill[i].value, "%u", i + 1);
        fill[i].put.key = pb_text(fill[i].key);
        fill[i].put.value = pb_text(fill[i].value);
        fill[i].put.lease = i % 8 == 5 && model_has_lease(&s->o, lease) ? lease : 0;
        fill[i].op.request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
        fill[i].op.request_put = &fill[i].put;
    }
    r.success = ops;
    r.n_success = n;
    s->filled_us = s->w.now_us;
    world_line(&s->w, "fill heap %u with %u keys", heap, n);
    (void)write_start(s, m, ENTRY_TXN, &r, CALL_TIMEOUT_MS);
    free(ops);
    free(fill);
}

/* To a name so long that one is too long, or that all together are too many bytes. */
static inline void ask_too_large(struct sim *s, struct sim_member *m, struct slice from)
{
    size_t n = world_chance(&s->w, 50) ? RENAME_NAME_MOST + 1 : RENAME_BYTES_MOST / SIM_HEAP_LEAST;
    char *to = malloc(n);

    memset(to, 'z', n);
    rename_start(s, m, from, slice_of(to, n), s->o.rev, false);
    free(to);
}

static inline void ask_heap(struct sim *s, struct sim_member *m)
{
    unsigned heap = heap_is_used(s, 1), other = 1 - heap;
    bool both = heap && heap_is_used(s, 0);
    char from[8], to[8];

    if (!heap_is_used(s, heap)) {
        if (s->w.now_us > s->filled_us + 1000000)
            ask_fill(s, m, heap);
        return;
    }
    key_name(heap_first(heap), from);
    key_name(heap_first(other), to);
    if (both && world_chance(&s->w, 60))
        ask_empty(s, m, heap_first(other), heap_first(other) + SIM_HEAP_KEYS);
    else if (world_chance(&s->w, 15))
        ask_too_large(s, m, slice_str(from));
    else if (world_chance(&s->w, 15))
        ask_empty(s, m, heap_first(heap), heap_first(heap) + SIM_HEAP_KEYS);
    else if (world_chance(&s->w, 10))
        ask_fill(s, m, other);
    else
        rename_start(s, m, slice_str(from), slice_str(to), s->o.rev, world_chance(&s->w, 50));
}
