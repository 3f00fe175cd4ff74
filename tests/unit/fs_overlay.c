/* SPDX-License-Identifier: Apache-2.0 */
/* fs_overlay.c - proves which names are an editor's own and which have a temporary file's shape (A.5), and,
 * above all, which have not: a name wrongly taken would keep somebody's key out of the store. */
#include "fusefs/overlay.h"

#include "tap.h"

static void test_editors(void)
{
    static const char *const yes[] = {".k.swp",
                                      ".k.swo",
                                      ".k.swpx",
                                      "k~",
                                      "a b~",
                                      "#k#",
                                      ".#k",
                                      ".goutputstream-ABC123",
                                      ".~lock.book.ods#",
                                      ".nfs000001",
                                      ".fuse_hidden0001"};
    static const char *const no[] = {"k",   "swp", "k.swp", ".swp",  ".k.swap",         "~k",
                                     "#k",  "k#",  "lock",  ".lock", "goutputstream-1", ".profile",
                                     "4913"};

    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++)
        CHECK(overlay_is_editors(yes[i]));
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        CHECK(!overlay_is_editors(no[i]));
}

static void test_temporary(void)
{
    static const char *const yes[] = {"sedAb12_x",      "tmpabcdefgh", "tmp8g2_k0qz", ".k.Xa91bZ",
                                      ".passwd.aaaaaa", "k.A1b2C3",    "XyZ12345",    "abcdefg1"};
    static const char *const no[] = {
        "sed",   "sedabc",  "sedabcdefg",    "tmp",        "tmpfile",  "tmpabcdefghi",
        "k",     "passwd",  "config.backup", "app.config", "hostname", "password",
        "k.tmp", ".bashrc", "web-1234",      "a.b",        "",         "settings.jsonld"};

    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
        if (!overlay_is_temporary_shape(yes[i]))
            printf("# not taken: %s\n", yes[i]);
        CHECK(overlay_is_temporary_shape(yes[i]));
    }
    for (size_t i = 0; i < sizeof no / sizeof *no; i++) {
        if (overlay_is_temporary_shape(no[i]))
            printf("# taken: %s\n", no[i]);
        CHECK(!overlay_is_temporary_shape(no[i]));
    }
}

int main(void)
{
    TEST(test_editors);
    TEST(test_temporary);
    return tap_done();
}
