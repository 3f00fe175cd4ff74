/* SPDX-License-Identifier: Apache-2.0 */
/* peer.c - a message between members: its life, its entries, its bytes.
 *
 * On the wire, all numbers little-endian:
 *
 *      0  u8     format, 1
 *      1  u8     kind (enum peer_kind)
 *      2  u8     RAFT: type (enum raft_msg_type)
 *      3  u8     flags: 1 reject, 2 transfer, 4 a configuration follows
 *      4  u32    entries
 *      8  u64    from
 *     16  u64    to
 *     24  ...    by kind:
 *
 *     RAFT           u64 term, index, log_term, last, commit, hint, ctx; u32 runs; runs x {u64 first, u64 term};
 *                    if flagged u32 length and the configuration (raftconf.h)
 *     PROPOSE        u64 id, u64 index, u64 hash
 *     REFUSED        u64 id, u32 err, u32 ids, ids x u64
 *     LEASE_RENEW    u64 id, i64 lease, i64 ttl
 *     LEASE_RENEWED  u64 id, i64 lease, i64 ttl, i64 left, u32 err
 *     STATE_HASH, STATE_ANSWER, STATE_WRONG
 *                    u64 index, u64 hash
 *
 *     and last each entry: u32 length, payload (entry.h). Index and term of an APPEND's follow from its index and runs.
 *
 * Decoding takes every byte for the world's: lengths are checked against what is there before memory is taken for them.
 *
 * Owner: whoever has the message; nothing here is shared.
 * Not here: what a message means (turn_peer.c, raftcore), streams and connections (peers.c).
 */
#include "peer.h"
#include <errno.h>
#include "limits.h"
#include "raftconf.h"

#define FORMAT 1
#define HEAD_BYTES 24
#define RAFT_BYTES (7 * 8 + 4)
#define RUN_BYTES 16

enum wire_flags { WIRE_REJECT = 1u << 0, WIRE_TRANSFER = 1u << 1, WIRE_CONF = 1u << 2 };

/* ---- life ---------------------------------------------------------------------------------------- */

struct peer_msg *peer_msg_new(enum peer_kind kind, uint64_t from, uint64_t to)
{
    struct peer_msg *m = calloc(1, sizeof *m);

    if (m) {
        m->kind = kind;
        m->from = from;
        m->to = to;
    }
    return m;
}

void peer_msg_free(struct peer_msg *m)
{
    while (m) {
        struct peer_msg *rest = m->rest;

        for (uint32_t i = 0; i < m->n_entries; i++)
            entry_unref(m->entries[i]);
        free(m->entries);
        free(m->ids);
        free(m);
        m = rest;
    }
}

struct peer_msg *peer_msg_of(const struct raft_msg *raft)
{
    struct peer_msg *m = peer_msg_new(PEER_RAFT, raft->from, raft->to);

    if (m == NULL)
        return NULL;
    m->raft = *raft;
    if (raft->conf) {
        m->conf = *raft->conf;
        m->raft.conf = &m->conf;
    }
    return m;
}

/* ---- entries -------------------------------------------------------------------------------------- */

/* Of an entry in the range of the runs. */
static uint64_t run_term(const struct raft_msg *m, uint64_t index)
{
    uint32_t i = m->n_runs - 1;

    while (i > 0 && m->runs[i].first > index)
        i--;
    return m->runs[i].term;
}

/* The message ends after `last`; what comes behind it is m->rest. */
static void cut(struct peer_msg *m, uint64_t last)
{
    struct raft_msg *r = &m->raft;
    struct peer_msg *rest = peer_msg_of(r);

    if (rest) {
        uint32_t skip = 0;

        rest->raft.index = last;
        rest->raft.log_term = run_term(r, last);
        while (skip + 1 < r->n_runs && r->runs[skip + 1].first <= last + 1)
            skip++;
        rest->raft.n_runs = r->n_runs - skip;
        memmove(rest->raft.runs, rest->raft.runs + skip, rest->raft.n_runs * sizeof rest->raft.runs[0]);
        rest->raft.runs[0].first = last + 1;
        m->rest = rest;
    }
    r->last = last;
    while (r->runs[r->n_runs - 1].first > last)
        r->n_runs--;
}

static int entry_find(uint64_t index, struct entry_cache *cache, struct wal *wal, struct entry **ret_entry)
{
    int err;

    *ret_entry = entry_cache_get(cache, index);
    if (*ret_entry)
        return 0;
    if (wal == NULL)
        return -EAGAIN;
    err = wal_read(wal, index, ret_entry);
    return err == -ENOMEM || err == -EUCLEAN ? err : err ? -ENOENT : 0;
}

int peer_msg_fill(struct peer_msg *m, struct entry_cache *cache, struct wal *wal, size_t max_bytes)
{
    struct raft_msg *r = &m->raft;
    size_t n = (size_t)(r->last - r->index), bytes = 0;
    int err = 0;

    assert(m->kind == PEER_RAFT);
    assert(r->type == RAFT_APPEND);
    assert(m->n_entries == 0);
    if (n == 0)
        return 0;
    m->entries = calloc(n, sizeof *m->entries);
    if (m->entries == NULL)
        return -ENOMEM;
    while (m->n_entries < n) {
        uint64_t index = r->index + 1 + m->n_entries;
        struct entry *e;

        err = entry_find(index, cache, wal, &e);
        if (err == 0 && e->term != run_term(r, index)) {
            entry_unref(e); /* of another leader's log by now */
            err = -ENOENT;
        }
        if (err)
            break;
        if (m->n_entries && bytes + e->len > max_bytes) {
            entry_unref(e);
            break;
        }
        bytes += e->len;
        m->entries[m->n_entries++] = e;
    }
    if (m->n_entries == 0) {
        free(m->entries);
        m->entries = NULL;
        return err;
    }
    if (m->n_entries < n)
        cut(m, r->index + m->n_entries);
    return 0;
}

/* ---- the wire, out --------------------------------------------------------------------------------- */

static size_t body_size(const struct peer_msg *m)
{
    uint8_t conf[RAFTCONF_BYTES_MAX];

    switch (m->kind) {
    case PEER_RAFT:
        return RAFT_BYTES + RUN_BYTES * (size_t)m->raft.n_runs +
               (m->raft.conf ? 4 + raftconf_encode(m->raft.conf, conf).len : 0);
    case PEER_PROPOSE:
        return 24;
    case PEER_REFUSED:
        return 16 + 8 * (size_t)m->n_ids;
    case PEER_LEASE_RENEW:
        return 24;
    case PEER_LEASE_RENEWED:
        return 36;
    case PEER_STATE_HASH:
    case PEER_STATE_ANSWER:
    case PEER_STATE_WRONG:
        return 16;
    case PEER_KINDS:
        break;
    }
    assert(!"a kind of ours");
    return 0;
}

size_t peer_msg_size(const struct peer_msg *m)
{
    size_t n = HEAD_BYTES + body_size(m);

    for (uint32_t i = 0; i < m->n_entries; i++)
        n += 4 + (size_t)m->entries[i]->len;
    return n;
}

static uint8_t *put32(uint8_t *p, uint32_t v)
{
    put_u32le(p, v);
    return p + 4;
}

static uint8_t *put64(uint8_t *p, uint64_t v)
{
    put_u64le(p, v);
    return p + 8;
}

static uint8_t *put_raft(uint8_t *p, const struct raft_msg *r)
{
    const uint64_t fields[] = {r->term, r->index, r->log_term, r->last, r->commit, r->hint, r->ctx};

    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        p = put64(p, fields[i]);
    p = put32(p, r->n_runs);
    for (uint32_t i = 0; i < r->n_runs; i++) {
        p = put64(p, r->runs[i].first);
        p = put64(p, r->runs[i].term);
    }
    if (r->conf) {
        struct slice conf = raftconf_encode(r->conf, p + 4);

        p = put32(p, (uint32_t)conf.len) + conf.len;
    }
    return p;
}

static uint8_t *put_body(uint8_t *p, const struct peer_msg *m)
{
    switch (m->kind) {
    case PEER_RAFT:
        return put_raft(p, &m->raft);
    case PEER_PROPOSE:
        return put64(put64(put64(p, m->id), m->index), m->hash);
    case PEER_REFUSED:
        p = put32(put64(p, m->id), (uint32_t)m->err);
        p = put32(p, m->n_ids);
        for (uint32_t i = 0; i < m->n_ids; i++)
            p = put64(p, m->ids[i]);
        return p;
    case PEER_LEASE_RENEW:
        return put64(put64(put64(p, m->id), (uint64_t)m->lease), (uint64_t)m->ttl);
    case PEER_LEASE_RENEWED:
        p = put64(put64(put64(p, m->id), (uint64_t)m->lease), (uint64_t)m->ttl);
        return put32(put64(p, (uint64_t)m->left), (uint32_t)m->err);
    case PEER_STATE_HASH:
    case PEER_STATE_ANSWER:
    case PEER_STATE_WRONG:
        return put64(put64(p, m->index), m->hash);
    case PEER_KINDS:
        break;
    }
    return p;
}

void peer_msg_encode(const struct peer_msg *m, uint8_t *dst)
{
    uint8_t *p = dst + HEAD_BYTES;

    dst[0] = FORMAT;
    dst[1] = (uint8_t)m->kind;
    dst[2] = m->kind == PEER_RAFT ? (uint8_t)m->raft.type : 0;
    dst[3] = (uint8_t)((m->raft.reject ? WIRE_REJECT : 0) | (m->raft.transfer ? WIRE_TRANSFER : 0) |
                       (m->raft.conf ? WIRE_CONF : 0));
    put_u32le(dst + 4, m->n_entries);
    put_u64le(dst + 8, m->from);
    put_u64le(dst + 16, m->to);
    p = put_body(p, m);
    for (uint32_t i = 0; i < m->n_entries; i++) {
        const struct entry *e = m->entries[i];

        p = put32(p, e->len);
        if (e->len)
            memcpy(p, e->payload, e->len);
        p += e->len;
    }
}

/* ---- the wire, in ---------------------------------------------------------------------------------- */

/* What is left of the bytes; bad once something was asked for that was not there. */
struct reader {
    const uint8_t *p;
    size_t n;
    bool bad;
};

static const uint8_t *take(struct reader *r, size_t n)
{
    const uint8_t *p = r->p;

    if (r->bad || n > r->n) {
        r->bad = true;
        return NULL;
    }
    r->p += n;
    r->n -= n;
    return p;
}

static uint32_t take32(struct reader *r)
{
    const uint8_t *p = take(r, 4);

    return p ? get_u32le(p) : 0;
}

static uint64_t take64(struct reader *r)
{
    const uint8_t *p = take(r, 8);

    return p ? get_u64le(p) : 0;
}

/* Each entry of an APPEND gets its term from the runs: they must cover the range, without holes, in order. */
static bool append_valid(const struct raft_msg *r, uint32_t n_entries)
{
    uint64_t next = r->index + 1;

    if (r->last < r->index || r->index >= UINT64_MAX / 2 || r->last - r->index != n_entries ||
        (n_entries > 0) != (r->n_runs > 0))
        return false;
    for (uint32_t i = 0; i < r->n_runs; i++) {
        if (i == 0 ? r->runs[i].first != next : r->runs[i].first < next)
            return false;
        if (r->runs[i].first > r->last || r->runs[i].term == 0)
            return false;
        next = r->runs[i].first + 1;
    }
    return true;
}

static void take_raft(struct reader *r, struct peer_msg *m, uint8_t type, uint8_t flags)
{
    struct raft_msg *raft = &m->raft;

    raft->type = (enum raft_msg_type)type;
    raft->reject = flags & WIRE_REJECT;
    raft->transfer = flags & WIRE_TRANSFER;
    raft->from = m->from;
    raft->to = m->to;
    raft->term = take64(r);
    raft->index = take64(r);
    raft->log_term = take64(r);
    raft->last = take64(r);
    raft->commit = take64(r);
    raft->hint = take64(r);
    raft->ctx = take64(r);
    raft->n_runs = take32(r);
    if (type < RAFT_APPEND || type >= RAFT_MSG_TYPES || raft->n_runs > RAFT_MSG_RUNS_MAX) {
        r->bad = true;
        return;
    }
    for (uint32_t i = 0; i < raft->n_runs; i++) {
        raft->runs[i].first = take64(r);
        raft->runs[i].term = take64(r);
    }
    if (flags & WIRE_CONF) {
        size_t n = take32(r);
        const uint8_t *conf = take(r, n);

        if (conf == NULL || raftconf_decode(slice_of(conf, n), &m->conf) != 0)
            r->bad = true;
        raft->conf = &m->conf;
    }
}

static int take_ids(struct reader *r, struct peer_msg *m)
{
    m->id = take64(r);
    m->err = (int)take32(r);
    m->n_ids = take32(r);
    if (r->bad || m->n_ids > r->n / 8)
        return -EBADMSG;
    m->ids = calloc(m->n_ids + (size_t)1, sizeof *m->ids);
    if (m->ids == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < m->n_ids; i++)
        m->ids[i] = take64(r);
    return 0;
}

static int take_body(struct reader *r, struct peer_msg *m, uint8_t type, uint8_t flags)
{
    switch (m->kind) {
    case PEER_RAFT:
        take_raft(r, m, type, flags);
        break;
    case PEER_PROPOSE:
        m->id = take64(r);
        m->index = take64(r);
        m->hash = take64(r);
        break;
    case PEER_REFUSED:
        return take_ids(r, m);
    case PEER_LEASE_RENEW:
        m->id = take64(r);
        m->lease = (int64_t)take64(r);
        m->ttl = (int64_t)take64(r);
        break;
    case PEER_LEASE_RENEWED:
        m->id = take64(r);
        m->lease = (int64_t)take64(r);
        m->ttl = (int64_t)take64(r);
        m->left = (int64_t)take64(r);
        m->err = (int)take32(r);
        break;
    case PEER_STATE_HASH:
    case PEER_STATE_ANSWER:
    case PEER_STATE_WRONG:
        m->index = take64(r);
        m->hash = take64(r);
        break;
    case PEER_KINDS:
        r->bad = true;
        break;
    }
    return r->bad ? -EBADMSG : 0;
}

static int take_entries(struct reader *r, struct peer_msg *m, uint32_t n)
{
    bool is_append = m->kind == PEER_RAFT && m->raft.type == RAFT_APPEND;

    if (is_append ? !append_valid(&m->raft, n) : n > 0 && m->kind != PEER_PROPOSE)
        return -EBADMSG;
    if (n > LIMIT_PEER_ENTRIES || n > r->n / 4)
        return -EBADMSG;
    m->entries = n ? calloc(n, sizeof *m->entries) : NULL;
    if (n && m->entries == NULL)
        return -ENOMEM;
    while (m->n_entries < n) {
        size_t len = take32(r);
        const uint8_t *payload = take(r, len);
        struct entry *e;

        if (payload == NULL)
            return -EBADMSG;
        e = entry_new(len);
        if (e == NULL)
            return -ENOMEM;
        if (len)
            memcpy(e->payload, payload, len);
        if (is_append) {
            e->index = m->raft.index + 1 + m->n_entries;
            e->term = run_term(&m->raft, e->index);
        }
        m->entries[m->n_entries++] = e;
    }
    return r->n ? -EBADMSG : 0;
}

int peer_msg_decode(struct slice bytes, struct peer_msg **ret_msg)
{
    struct reader r = {.p = bytes.ptr, .n = bytes.len};
    const uint8_t *head = take(&r, HEAD_BYTES);
    struct peer_msg *m;
    int err;

    if (head == NULL || head[0] != FORMAT || head[1] < PEER_RAFT || head[1] >= PEER_KINDS)
        return -EBADMSG;
    m = peer_msg_new((enum peer_kind)head[1], get_u64le(head + 8), get_u64le(head + 16));
    if (m == NULL)
        return -ENOMEM;
    err = take_body(&r, m, head[2], head[3]);
    if (!err)
        err = take_entries(&r, m, get_u32le(head + 4));
    if (err) {
        peer_msg_free(m);
        return err;
    }
    *ret_msg = m;
    return 0;
}
