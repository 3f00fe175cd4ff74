/* SPDX-License-Identifier: Apache-2.0 */
/* sha1.h - SHA-1, for etcd's member and cluster ids only. */
#pragma once
#include "bytes.h"

/* The first 8 bytes of SHA-1, big endian. */
uint64_t sha1_head(struct slice s);
