/* SPDX-License-Identifier: Apache-2.0 */
/* sniff.h - which protocol a client speaks, from its first bytes. */
#pragma once
#include "bytes.h"

/* The preface and the head of the SETTINGS frame that must follow it (RFC 9113, 3.4). */
enum { SNIFF_BYTES = 24 + 9 };

enum sniff { SNIFF_MORE, SNIFF_GRPC, SNIFF_HTTP, SNIFF_TLS, SNIFF_BAD };

/* bytes: all that has come so far, at most SNIFF_BYTES of it matter. MORE: cannot be told yet. */
enum sniff sniff(struct slice bytes);
