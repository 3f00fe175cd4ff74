/* SPDX-License-Identifier: Apache-2.0 */
/* change.c - the bytes of mvccpb.KeyValue, written and read by hand.
 *
 * A body is what etcd's gogo-protobuf marshals, so that hashes over bodies agree with etcd's:
 *
 *      0x0a  varint length, bytes    key
 *      0x10  varint                  create_revision
 *      0x18  varint                  mod_revision
 *      0x20  varint                  version
 *      0x2a  varint length, bytes    value
 *      0x30  varint                  lease (two's complement: a negative one takes ten bytes)
 *
 * in this order, a field of value zero (or no bytes) left out. A tombstone has the key alone.
 *
 * Promise: body_decode accepts exactly what body_encode can write (a key is never empty), so that a body
 * that decodes is the only body with that meaning. It allocates nothing.
 * Source: etcd v3.7.1 api/mvccpb/kv.pb.go, MarshalToSizedBuffer.
 */
#include <errno.h>
#include "change.h"

enum tag {
    TAG_KEY = 0x0a,
    TAG_CREATE = 0x10,
    TAG_MOD = 0x18,
    TAG_VERSION = 0x20,
    TAG_VALUE = 0x2a,
    TAG_LEASE = 0x30,
};

static size_t varint_size(uint64_t v)
{
    /* Seven bits a byte; v | 1 because zero takes a byte too. */
    return (size_t)(63 - __builtin_clzll(v | 1)) / 7 + 1;
}

static uint8_t *varint_put(uint8_t *p, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        *p++ = (uint8_t)(v | 0x80);
    *p++ = (uint8_t)v;
    return p;
}

static size_t bytes_size(struct slice s)
{
    return s.len ? 1 + varint_size(s.len) + s.len : 0;
}

static size_t int_size(int64_t v)
{
    return v ? 1 + varint_size((uint64_t)v) : 0;
}

static uint8_t *bytes_put(uint8_t *p, enum tag tag, struct slice s)
{
    if (s.len == 0)
        return p;
    *p++ = (uint8_t)tag;
    p = varint_put(p, s.len);
    memcpy(p, s.ptr, s.len);
    return p + s.len;
}

static uint8_t *int_put(uint8_t *p, enum tag tag, int64_t v)
{
    if (v == 0)
        return p;
    *p++ = (uint8_t)tag;
    return varint_put(p, (uint64_t)v);
}

size_t body_size(const struct change *c, struct slice value)
{
    if (c->tombstone)
        return bytes_size(c->key);
    return bytes_size(c->key) + int_size(c->create_revision) + int_size(c->rev.main) + int_size(c->version) +
           bytes_size(value) + int_size(c->lease);
}

void body_encode(const struct change *c, struct slice value, uint8_t *dst)
{
    uint8_t *p = bytes_put(dst, TAG_KEY, c->key);

    if (!c->tombstone) {
        p = int_put(p, TAG_CREATE, c->create_revision);
        p = int_put(p, TAG_MOD, c->rev.main);
        p = int_put(p, TAG_VERSION, c->version);
        p = bytes_put(p, TAG_VALUE, value);
        p = int_put(p, TAG_LEASE, c->lease);
    }
    assert((size_t)(p - dst) == body_size(c, value));
}

/* ---- reading ---------------------------------------------------------------- */

/* The shortest form only. Moves *s past it; false: not a varint. */
static bool varint_take(struct slice *s, uint64_t *ret)
{
    uint64_t v = 0;

    for (size_t i = 0; i < s->len && i < 10; i++) {
        uint8_t b = s->ptr[i];

        if (i == 9 && b > 1)
            return false;
        v |= (uint64_t)(b & 0x7f) << (7 * i);
        if (b & 0x80)
            continue;
        if (b == 0 && i > 0)
            return false;
        *s = slice_of(s->ptr + i + 1, s->len - i - 1);
        *ret = v;
        return true;
    }
    return false;
}

/* A field that is not there is zero; one that is there must not be. */
static bool int_take(struct slice *s, enum tag tag, int64_t *ret)
{
    uint64_t v;

    if (s->len == 0 || s->ptr[0] != tag)
        return true;
    *s = slice_of(s->ptr + 1, s->len - 1);
    if (!varint_take(s, &v) || v == 0)
        return false;
    *ret = (int64_t)v;
    return true;
}

static bool bytes_take(struct slice *s, enum tag tag, ProtobufCBinaryData *ret)
{
    uint64_t n;

    if (s->len == 0 || s->ptr[0] != tag)
        return true;
    *s = slice_of(s->ptr + 1, s->len - 1);
    if (!varint_take(s, &n) || n == 0 || n > s->len)
        return false;
    /* protobuf-c has no const; nobody writes through it. */
    *ret = (ProtobufCBinaryData){.len = n, .data = (uint8_t *)(uintptr_t)s->ptr};
    *s = slice_of(s->ptr + n, s->len - n);
    return true;
}

int body_decode(struct slice body, Mvccpb__KeyValue *ret_kv)
{
    Mvccpb__KeyValue kv;

    mvccpb__key_value__init(&kv);
    if (!bytes_take(&body, TAG_KEY, &kv.key) || kv.key.len == 0 ||
        !int_take(&body, TAG_CREATE, &kv.create_revision) || !int_take(&body, TAG_MOD, &kv.mod_revision) ||
        !int_take(&body, TAG_VERSION, &kv.version) || !bytes_take(&body, TAG_VALUE, &kv.value) ||
        !int_take(&body, TAG_LEASE, &kv.lease) || body.len != 0)
        return -EBADMSG;
    *ret_kv = kv;
    return 0;
}
