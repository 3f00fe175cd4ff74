/* SPDX-License-Identifier: Apache-2.0 */
/* sniff.c - tells gRPC, HTTP/1.1 and TLS apart. Pure.
 *
 * gRPC needs the preface and the head of SETTINGS: until then a connection costs no more than a row in the pump.
 */
#include "sniff.h"

enum sniff sniff(struct slice b)
{
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const size_t n_preface = sizeof preface - 1;
    size_t n = b.len < n_preface ? b.len : n_preface;

    if (b.len == 0)
        return SNIFF_MORE;
    if (b.ptr[0] == 0x16)
        return SNIFF_TLS;
    if (memcmp(b.ptr, preface, n) != 0)
        return SNIFF_HTTP;
    /* The head: u24 length, type SETTINGS (4), no ACK, stream 0. */
    if (b.len > n_preface + 3 && b.ptr[n_preface + 3] != 4)
        return SNIFF_BAD;
    if (b.len > n_preface + 4 && (b.ptr[n_preface + 4] & 1))
        return SNIFF_BAD;
    return b.len >= SNIFF_BYTES ? SNIFF_GRPC : SNIFF_MORE;
}
