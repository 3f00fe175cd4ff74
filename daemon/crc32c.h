/* SPDX-License-Identifier: Apache-2.0 */
/* crc32c.h - CRC-32C (Castagnoli), with SSE4.2 where the processor has it. RFC 3720 appendix B.4 has vectors. */
#pragma once
#include "bytes.h"

/* crc32c(0, ...) begins; crc32c(crc, ...) goes on. */
uint32_t crc32c(uint32_t crc, const void *p, size_t n);
