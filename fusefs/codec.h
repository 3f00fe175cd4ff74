/* SPDX-License-Identifier: Apache-2.0 */
/* codec.h - between the components of a key and the names of files; bijective.
 *
 * The part of a key after the prefix is split on '/'. A component becomes a name:
 *
 *     the empty component                                   %
 *     .  and  ..                                            %2E  and  %2E%2E
 *     a reserved name (.value anywhere; .etcd in the root)  its first byte as %XX: %2Evalue
 *     bytes 00-1f, 7f and '%' in any other component        %XX, upper-case hex
 *     every other byte                                      itself (names are bytes; UTF-8 passes)
 *
 * Each name has at most one component and each component exactly one name: a spelling that codec_encode would
 * not have made (%41, %2f, a raw control byte, "%" among other bytes) is refused by codec_decode.
 *
 * No state, no allocation, any thread.   Source: MOUNT.md A.2.
 */
#pragma once
#include "bytes.h"

/* an encoded name is at most this many times its component, or 6 bytes */
#define CODEC_EXPANSION 3
#define CODEC_VALUE_NAME ".value"         /* in any directory but the root: the directory's own key */
#define CODEC_CONTROL_NAME ".etcd"        /* in the root */

/* Encodes one component (no '/' in it) into buf. in_root: the component lies directly in the mount's root,
 * where .etcd is reserved too. Returns the length of the name (not terminated; always > 0), or
 *   -ENAMETOOLONG  it does not fit in size; buf is then undefined. */
int codec_encode(struct slice component, bool in_root, char *buf, size_t size);

/* The component that `name` stands for. buf has room for name.len bytes; *ret_len may be 0 (the name "%").
 * Returns 0, or
 *   -EINVAL  the name is not canonical, holds '/' or NUL, is "." or "..", or is a reserved name. */
int codec_decode(struct slice name, bool in_root, uint8_t *buf, size_t *ret_len);

/* Flat names of whole keys for .etcd/keys: as above for the whole key, with '/' as %2F. No reserved names
 * there. */
int codec_encode_key(struct slice key, char *buf, size_t size);
int codec_decode_key(struct slice name, uint8_t *buf, size_t *ret_len);

/* The end of the range of all keys that begin with prefix, as etcd wants it: the prefix with its last byte
 * below 0xff counted up and the rest cut; "\0" (= no end) when there is no such byte or the prefix is empty.
 * buf has room for max(prefix.len, 1) bytes. Returns its length. */
size_t codec_prefix_end(struct slice prefix, uint8_t *buf);
