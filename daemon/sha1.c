/* SPDX-License-Identifier: Apache-2.0 */
/* sha1.c - the door to OpenSSL's digest. */
#include "sha1.h"
#include <openssl/evp.h>

uint64_t sha1_head(struct slice s)
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    int ok = EVP_Digest(s.ptr ? s.ptr : (const uint8_t *)"", s.len, digest, &n, EVP_sha1(), NULL);

    assert(ok == 1); /* fails only without memory or without SHA-1 in the library: we cannot go on */
    assert(n >= 8);
    return get_u64be(digest);
}
