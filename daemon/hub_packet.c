/* SPDX-License-Identifier: Apache-2.0 */
/* hub_packet.c - the bytes of a WatchResponse, written once for all who get the same.
 *
 * Written by hand instead of by protobuf-c: a message of 10,000 events would be 10,000 structs first. A WatchResponse
 * is, in the order used here (field numbers of rpc.proto; a parser takes any order):
 *
 *   [10 watch_id] 0a header [18 created] [20 canceled] [28 compact_revision] [32 cancel_reason] [38 fragment] {5a event}
 *
 *   header: 08 cluster_id 10 member_id 18 revision 20 raft_term     zero values are left out
 *   event:  [08 type: 1 = DELETE] 12 kv [1a prev_kv]
 *
 * kv is a change's body as the log has it; a tombstone's gets its mod_revision (18) appended.
 * Stateless: any thread.
 */
#include "hub_impl.h"

static size_t varint_size(uint64_t v)
{
    size_t n = 1;

    while (v >>= 7)
        n++;
    return n;
}

static uint8_t *varint(uint8_t *p, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        *p++ = (uint8_t)(v | 0x80);
    *p++ = (uint8_t)v;
    return p;
}

/* A number; left out when zero. */
static size_t field_size(uint64_t v)
{
    return v ? 1 + varint_size(v) : 0;
}

static uint8_t *field(uint8_t *p, uint8_t tag, uint64_t v)
{
    if (v == 0)
        return p;
    *p++ = tag;
    return varint(p, v);
}

/* Bytes with their length. */
static size_t block_size(size_t len)
{
    return 1 + varint_size(len) + len;
}

static uint8_t *block_head(uint8_t *p, uint8_t tag, size_t len)
{
    *p++ = tag;
    return varint(p, len);
}

static uint8_t *block(uint8_t *p, uint8_t tag, const void *bytes, size_t len)
{
    p = block_head(p, tag, len);
    if (len)
        memcpy(p, bytes, len);
    return p + len;
}

/* ---- packets ------------------------------------------------------------------- */

struct packet *packet_new(size_t len)
{
    struct packet *p = len <= UINT32_MAX ? malloc(sizeof *p + len) : NULL;

    if (p == NULL)
        return NULL;
    atomic_init(&p->refs, 1);
    p->len = (uint32_t)len;
    return p;
}

void packet_ref(struct packet *p, uint32_t n)
{
    atomic_fetch_add_explicit(&p->refs, n, memory_order_relaxed);
}

void packet_unref_n(struct packet *p, uint32_t n)
{
    if (p && n && atomic_fetch_sub_explicit(&p->refs, n, memory_order_acq_rel) == n)
        free(p);
}

void packet_unref(struct packet *p)
{
    packet_unref_n(p, 1);
}

struct packet *packet_response(const struct response_head *h, size_t event_bytes, uint8_t **ret_events)
{
    size_t header = field_size(h->cluster_id) + field_size(h->member_id) + field_size((uint64_t)h->revision) +
                    field_size(h->term);
    size_t reason = h->cancel_reason ? strlen(h->cancel_reason) : 0;
    size_t total = block_size(header) + field_size(h->created) + field_size(h->canceled) +
                   field_size((uint64_t)h->compact_revision) + (reason ? block_size(reason) : 0) +
                   field_size(h->fragment) + event_bytes;
    struct packet *pkt = packet_new(total);
    uint8_t *p;

    if (pkt == NULL)
        return NULL;
    p = block_head(pkt->bytes, 0x0a, header);
    p = field(p, 0x08, h->cluster_id);
    p = field(p, 0x10, h->member_id);
    p = field(p, 0x18, (uint64_t)h->revision);
    p = field(p, 0x20, h->term);
    p = field(p, 0x18, h->created);
    p = field(p, 0x20, h->canceled);
    p = field(p, 0x28, (uint64_t)h->compact_revision);
    if (reason)
        p = block(p, 0x32, h->cancel_reason, reason);
    p = field(p, 0x38, h->fragment);
    assert(p + event_bytes == pkt->bytes + total);
    *ret_events = p;
    return pkt;
}

size_t watch_id_encode(int64_t id, uint8_t dst[HUB_HEAD_BYTES])
{
    return (size_t)(field(dst, 0x10, (uint64_t)id) - dst);
}

/* ---- events ----------------------------------------------------------------------- */

static size_t kv_size(const struct change *c)
{
    return c->body.len + (c->tombstone ? field_size((uint64_t)c->rev.main) : 0);
}

static size_t event_inner(const struct change *c)
{
    return (c->tombstone ? 2 : 0) + block_size(kv_size(c));
}

size_t event_size(const struct change *c)
{
    return block_size(event_inner(c));
}

void event_encode(const struct change *c, uint8_t *dst)
{
    uint8_t *p = block_head(dst, 0x5a, event_inner(c));

    if (c->tombstone)
        p = field(p, 0x08, 1);
    p = block_head(p, 0x12, kv_size(c));
    memcpy(p, c->body.ptr, c->body.len);
    p += c->body.len;
    if (c->tombstone)
        p = field(p, 0x18, (uint64_t)c->rev.main);
    assert(p == dst + event_size(c));
}

/* What stands behind the tag and the length. */
static struct slice event_content(struct slice event)
{
    size_t n = 1;

    while (event.ptr[n++] & 0x80)
        ;
    return slice_of(event.ptr + n, event.len - n);
}

size_t event_prev_size(struct slice event, struct slice prev_body)
{
    return block_size(event_content(event).len + block_size(prev_body.len));
}

void event_prev_encode(struct slice event, struct slice prev_body, uint8_t *dst)
{
    struct slice content = event_content(event);
    uint8_t *p = block_head(dst, 0x5a, content.len + block_size(prev_body.len));

    memcpy(p, content.ptr, content.len);
    p = block(p + content.len, 0x1a, prev_body.ptr, prev_body.len);
    assert(p == dst + event_prev_size(event, prev_body));
}
