/* SPDX-License-Identifier: Apache-2.0 */
/* tap.h - a unit test is a program that prints TAP and exits 0 when all is ok.
 *
 *     int main(void) { TEST(codec_roundtrip); return tap_done(); }
 *
 * CHECK notes a failure and goes on; REQUIRE ends the program. */
#pragma once
#include <stdio.h>
#include <stdlib.h>

static int tap_n, tap_failed, tap_bad; /* tests run, tests failed, checks failed in this test */

#define CHECK(cond) \
    do { \
        if (!(cond)) { \
            tap_bad++; \
            printf("# %s:%d: %s\n", __FILE__, __LINE__, #cond); \
        } \
    } while (0)
#define REQUIRE(cond) \
    do { \
        if (!(cond)) { \
            printf("# %s:%d: %s\nBail out!\n", __FILE__, __LINE__, #cond); \
            exit(1); \
        } \
    } while (0)
#define TEST(fn) \
    do { \
        tap_bad = 0; \
        fn(); \
        tap_failed += tap_bad != 0; \
        printf("%sok %d - %s\n", tap_bad ? "not " : "", ++tap_n, #fn); \
        fflush(stdout); \
    } while (0)

static inline int tap_done(void)
{
    printf("1..%d\n", tap_n);
    return tap_failed != 0;
}
