/* SPDX-License-Identifier: Apache-2.0 */
/* mvcc_hash.c - HashKV: one number for the history, the same as etcd's.
 *
 * crc32c over "key", then for each record hashed, in order of rev: its key in etcd's file and its body.
 *
 *      0  u64be  main          16  u8  't', only of a tombstone
 *      8  u8     '_'
 *      9  u64be  sub
 *
 * Which records, for HashKV(r) on a store compacted at c:
 *   main > r           no
 *   c < main <= r      all
 *   main <= c          a put that is its key's value at r; no tombstone. But when no key at all is alive at r,
 *                      etcd leaves its list of what to keep aside: then the puts that are their key's value at c,
 *                      which is what a compaction leaves.
 * Whether any key is alive is known only after a while, so both sums are kept until one is found.
 *
 * The hash of a compaction to C is the same with r = C and c = the compact revision before, over what is there before
 * its sweep. One thing differs: a tombstone exactly at C counts as a key alive, because a compaction keeps it.
 *
 * The log is read in chunks, a view each, so that a long hash holds no memory of LMDB's: at or below r nothing
 * is added, and what a sweep to c removes is not hashed. When c moves on meanwhile the hash starts anew, and after
 * ATTEMPTS such starts it is done in one view, however long.
 *
 * Owner:  the thread it runs on: a scan thread, or flush for a compaction's.
 * Source: etcd v3.7.1 server/storage/mvcc/hash.go (kvHasher.WriteKeyValue), kvstore.go (hashByRev),
 *         kvstore_compaction.go (scheduleCompaction).
 */
#include <errno.h>
#include "crc32c.h"
#include "err.h"
#include "mvcc.h"

enum {
    CHUNK_RECORDS = 2000,
    ATTEMPTS = 5,
    CHUNK_ARENA_BYTES = 64 << 20, /* one body of several parts at a time */
};

static uint32_t hash_record(uint32_t crc, const struct change *c)
{
    uint8_t key[18];

    put_u64be(key, (uint64_t)c->rev.main);
    key[8] = '_';
    put_u64be(key + 9, c->rev.sub);
    key[17] = 't';
    crc = crc32c(crc, key, c->tombstone ? 18 : 17);
    return crc32c(crc, c->body.ptr, c->body.len);
}

/* 1: this change is its key's value at rev, 0: it is not, or -errno. */
static int is_value_at(struct mvcc_hash *h, const struct change *c, int64_t rev)
{
    struct arena none;
    struct change now;
    int rc;

    if (c->tombstone)
        return 0;
    arena_init(&none, 0, NULL, 0);
    rc = view_get(h->view, c->key, rev, BASE_NO_BODY, &none, &now);
    if (rc == ERR_KEY_NOT_FOUND)
        return 0;
    return rc ? rc : rev_cmp(now.rev, c->rev) == 0;
}

static int hash_change(void *ctx, const struct change *c)
{
    struct mvcc_hash *h = ctx;
    bool above = c->rev.main > h->compact_rev;
    int alive = 0, kept = 0;

    /* A chunk ends between two revisions. */
    if (h->n_records_max && h->n_records >= h->n_records_max && c->rev.main != h->next_main - 1) {
        h->next_main = c->rev.main;
        return MVCC_HASH_MORE;
    }
    h->n_records++;
    h->next_main = c->rev.main + 1;
    if (!above || !h->any_alive)
        alive = is_value_at(h, c, h->rev);
    if (!above && !h->any_alive)
        kept = is_value_at(h, c, h->compact_rev);
    if (alive < 0 || kept < 0)
        return alive < 0 ? alive : kept;
    if (above || alive)
        h->sum = hash_record(h->sum, c);
    if (!h->any_alive && (above || kept))
        h->sum_if_none = hash_record(h->sum_if_none, c);
    h->any_alive = h->any_alive || alive || (h->of_compaction && c->tombstone && c->rev.main == h->rev);
    return 0;
}

static void hash_begin(struct mvcc_hash *h, int64_t rev, int64_t compact_rev)
{
    *h = (struct mvcc_hash){.rev = rev, .compact_rev = compact_rev, .n_records_max = CHUNK_RECORDS};
    h->sum = h->sum_if_none = crc32c(0, "key", 3);
}

/* As of this view. 0: all done; MVCC_HASH_MORE: more to do; or an error. */
static int hash_chunk(struct mvcc_hash *h, struct view *v)
{
    struct arena a;
    int rc;

    arena_init(&a, CHUNK_ARENA_BYTES, NULL, 0);
    h->view = v;
    h->n_records = 0;
    rc = view_log_scan(v, h->next_main, h->rev, &a, hash_change, h);
    arena_fini(&a);
    return rc;
}

void mvcc_hash_compaction(struct mvcc_hash *h, int64_t prev_compact_rev, int64_t compact_rev)
{
    hash_begin(h, compact_rev, prev_compact_rev);
    h->of_compaction = true;
}

int mvcc_hash_step(struct store *s, struct slot *sl, struct mvcc_hash *h)
{
    struct view v;
    int rc = view_open(s, sl, &v);

    if (rc)
        return rc;
    v.compact_rev = h->compact_rev; /* nothing above it has been swept yet: the caller sees to that */
    rc = hash_chunk(h, &v);
    view_close(&v);
    return rc;
}

uint32_t mvcc_hash_sum(const struct mvcc_hash *h)
{
    return h->any_alive ? h->sum : h->sum_if_none;
}

/* What the request asks for, as of this view. */
static int hashkv_begin(struct mvcc_hash *h, const struct view *v, int64_t rev)
{
    if (rev > 0 && rev < v->compact_rev)
        return ERR_COMPACTED;
    if (rev > v->rev)
        return ERR_FUTURE_REV;
    hash_begin(h, rev ? rev : v->rev, v->compact_rev);
    return 0;
}

/* One view's worth. As hash_chunk; -EAGAIN: compacted meanwhile. */
static int hashkv_chunk(struct store *s, struct slot *sl, struct mvcc_hash *h, int64_t rev, bool first, bool whole)
{
    struct view v;
    int rc = view_open(s, sl, &v);

    if (rc)
        return rc;
    if (first)
        rc = hashkv_begin(h, &v, rev);
    else if (v.compact_rev != h->compact_rev)
        rc = -EAGAIN;
    if (whole)
        h->n_records_max = 0;
    if (rc == 0)
        rc = hash_chunk(h, &v);
    view_close(&v);
    return rc;
}

int mvcc_hashkv(struct store *s, struct slot *sl, int64_t rev, uint32_t *ret_hash, int64_t *ret_compact_rev,
                int64_t *ret_hash_rev)
{
    struct mvcc_hash h = {0};
    int rc = -EAGAIN;

    for (int i = 1; i <= ATTEMPTS && rc == -EAGAIN; i++) {
        rc = hashkv_chunk(s, sl, &h, rev, true, i == ATTEMPTS);
        while (rc == MVCC_HASH_MORE)
            rc = hashkv_chunk(s, sl, &h, rev, false, false);
    }
    if (rc)
        return rc;
    *ret_hash = mvcc_hash_sum(&h);
    *ret_compact_rev = h.compact_rev;
    *ret_hash_rev = h.rev;
    return 0;
}
