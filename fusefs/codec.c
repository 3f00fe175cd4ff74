/* SPDX-License-Identifier: Apache-2.0 */
/* codec.c - between the components of a key and the names of files.
 *
 * Decoding checks by encoding again: what codec_encode would not have written is no name of anything, so the
 * mapping is one to one by construction.
 */
#include "codec.h"

#include <errno.h>

/* Which names may not be given to a component as they are. */
enum place { IN_DIR, IN_ROOT, WHOLE_KEY };

static bool is_name(struct slice s, const char *name)
{
    return slice_eq(s, slice_str(name));
}

/* How many of the first bytes must be escaped although they are ordinary bytes. */
static size_t escaped_head(struct slice s, enum place place)
{
    if (is_name(s, ".") || is_name(s, ".."))
        return s.len;
    if (place == WHOLE_KEY)
        return 0;
    if (is_name(s, CODEC_VALUE_NAME))
        return 1;
    return place == IN_ROOT && is_name(s, CODEC_CONTROL_NAME) ? 1 : 0;
}

static bool must_escape(uint8_t c, enum place place)
{
    return c < 0x20 || c == 0x7f || c == '%' || (place == WHOLE_KEY && c == '/');
}

static int encode(struct slice s, enum place place, char *buf, size_t size)
{
    static const char hex[] = "0123456789ABCDEF";
    size_t head = escaped_head(s, place), n = 0;

    if (s.len == 0) {
        if (size < 1)
            return -ENAMETOOLONG;
        buf[0] = '%';
        return 1;
    }
    for (size_t i = 0; i < s.len; i++) {
        uint8_t c = s.ptr[i];

        if (i >= head && !must_escape(c, place)) {
            if (n + 1 > size)
                return -ENAMETOOLONG;
            buf[n++] = (char)c;
            continue;
        }
        if (n + 3 > size)
            return -ENAMETOOLONG;
        buf[n++] = '%';
        buf[n++] = hex[c >> 4];
        buf[n++] = hex[c & 15];
    }
    return (int)n;
}

static int hex_value(uint8_t c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* True when encoding `component` gives exactly `name`. Compared byte by byte, so no second buffer is
 * needed. */
static bool encodes_to(struct slice component, enum place place, struct slice name)
{
    size_t head = escaped_head(component, place), n = 0;

    for (size_t i = 0; i < component.len; i++) {
        uint8_t c = component.ptr[i];
        bool escape = i < head || must_escape(c, place);

        if (n >= name.len || escape != (name.ptr[n] == '%'))
            return false;
        n += escape ? 3 : 1;
    }
    return n == name.len;
}

static int decode(struct slice name, enum place place, uint8_t *buf, size_t *ret_len)
{
    size_t n = 0;

    if (name.len == 0)
        return -EINVAL;
    if (name.len == 1 && name.ptr[0] == '%') {
        *ret_len = 0;
        return place == WHOLE_KEY ? -EINVAL : 0; /* a key is never empty */
    }
    for (size_t i = 0; i < name.len; i++) {
        uint8_t c = name.ptr[i];
        int hi, lo;

        if (c == '/' || c == 0)
            return -EINVAL;
        if (c != '%') {
            buf[n++] = c;
            continue;
        }
        if (name.len - i < 3)
            return -EINVAL;
        hi = hex_value(name.ptr[i + 1]);
        lo = hex_value(name.ptr[i + 2]);
        if (hi < 0 || lo < 0)
            return -EINVAL;
        buf[n++] = (uint8_t)(hi << 4 | lo);
        i += 2;
    }
    /* A component has no '/': %2F names nothing but in .etcd/keys. */
    if (place != WHOLE_KEY && memchr(buf, '/', n))
        return -EINVAL;
    if (!encodes_to(slice_of(buf, n), place, name))
        return -EINVAL;
    *ret_len = n;
    return 0;
}

int codec_encode(struct slice component, bool in_root, char *buf, size_t size)
{
    return encode(component, in_root ? IN_ROOT : IN_DIR, buf, size);
}

int codec_decode(struct slice name, bool in_root, uint8_t *buf, size_t *ret_len)
{
    return decode(name, in_root ? IN_ROOT : IN_DIR, buf, ret_len);
}

int codec_encode_key(struct slice key, char *buf, size_t size)
{
    return key.len ? encode(key, WHOLE_KEY, buf, size) : -EINVAL;
}

int codec_decode_key(struct slice name, uint8_t *buf, size_t *ret_len)
{
    return decode(name, WHOLE_KEY, buf, ret_len);
}

size_t codec_prefix_end(struct slice prefix, uint8_t *buf)
{
    size_t n = prefix.len;

    while (n && prefix.ptr[n - 1] == 0xff)
        n--;
    if (n == 0) {
        buf[0] = 0;
        return 1;
    }
    memcpy(buf, prefix.ptr, n);
    buf[n - 1]++;
    return n;
}
