/* SPDX-License-Identifier: Apache-2.0 */
/* fs_options.c - proves that cairnfs takes its command line as documented: endpoints, prefix, -o lists, and
 * that what is wrong is refused. */
#include "fusefs/main_options.h"

#include <getopt.h>

#include "tap.h"

static struct options source(const char *text, const char **ret_wrong)
{
    struct options o = {0};

    *ret_wrong = options_parse_source(&o, text);
    return o;
}

static void check_source(const char *text, unsigned n, const char *first, const char *prefix)
{
    const char *wrong;
    struct options o = source(text, &wrong);

    CHECK(wrong == NULL);
    CHECK(o.n_endpoints == n);
    CHECK(n && strcmp(o.endpoints[0], first) == 0);
    CHECK(slice_eq(o.prefix, slice_str(prefix)));
    options_free(&o);
}

static void test_sources(void)
{
    check_source("host:2379", 1, "host:2379", "");
    check_source("http://host:2379", 1, "http://host:2379", "");
    check_source("a:1,b:2,c:3", 3, "a:1", "");
    check_source("[::1]:2379", 1, "[::1]:2379", "");
    check_source("[::1]:2379:/registry/", 1, "[::1]:2379", "/registry/");
    check_source("unix:/run/etcd.sock", 1, "unix:/run/etcd.sock", "");
    check_source("unix:/run/etcd.sock:app/", 1, "unix:/run/etcd.sock", "app/");
    check_source("unix:/a,host:1:p", 2, "unix:/a", "p");
    check_source("host:2379:with:colons,and,commas", 1, "host:2379", "with:colons,and,commas");
    check_source("host:2379:%2Fa%25b%FF", 1, "host:2379", "/a%b\xff");
    check_source("host:2379:", 1, "host:2379", "");
}

static void check_refused(const char *text)
{
    const char *wrong;
    struct options o = source(text, &wrong);

    if (wrong == NULL)
        printf("# accepted: %s\n", text);
    CHECK(wrong != NULL);
    options_free(&o);
}

static void test_sources_refused(void)
{
    check_refused("");
    check_refused("host");
    check_refused("host:");
    check_refused("host:port");
    check_refused("host:1,");
    check_refused("host:1,other");
    check_refused("unix:");
    check_refused("host:1:%4");
    check_refused("host:1:%zz");
    check_refused("http://host:1/path");
    check_refused("a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1");
}

static enum options_result parse(struct options *o, const char *list)
{
    char copy[256];
    char *argv[] = {(char *)"cairnfs", (char *)"h:1", (char *)"/", (char *)"-o", copy, NULL};

    (void)snprintf(copy, sizeof copy, "%s", list);
    optind = 0; /* getopt begins anew */
    return options_parse(o, 5, argv);
}

static void test_lists(void)
{
    struct options o;

    CHECK(parse(&o, "defaults") == OPTIONS_RUN);
    CHECK(o.dirmarkers);
    CHECK(o.overlay);
    CHECK(!o.cached);
    CHECK(o.grace_ms == 5000);
    CHECK(strcmp(o.fuse_options, "") == 0);
    options_free(&o);

    CHECK(
        parse(&o, "cached,meta=ignore,events=modify,commit=write,conflict=fail,dirmarkers=off,overlay=off") ==
        OPTIONS_RUN);
    CHECK(o.cached && o.meta_ignore && o.events_modify && o.commit_write && o.conflict_fail &&
          !o.dirmarkers && !o.overlay);
    options_free(&o);

    CHECK(parse(&o, "uid=7,gid=8,umask=077,grace=1,timeout=2,max-request-bytes=99") == OPTIONS_RUN);
    CHECK(o.uid == 7);
    CHECK(o.gid == 8);
    CHECK(o.umask == 077);
    CHECK(o.grace_ms == 1000);
    CHECK(o.timeout_ms == 2000);
    CHECK(o.max_request_bytes == 99);
    options_free(&o);

    /* What fstab lines hold for others is dropped; what libfuse knows goes there. */
    CHECK(parse(&o, "noauto,_netdev,x-systemd.automount,comment=x,nofail,nosuid,noatime") == OPTIONS_RUN);
    CHECK(strcmp(o.fuse_options, ",nosuid,noatime") == 0);
    options_free(&o);
}

static void test_lists_refused(void)
{
    static const char *const bad[] = {"uid=",       "uid=x",          "uid=-1",    "umask=8",
                                      "umask=7777", "grace=99999999", "timeout=1s"};

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct options o;

        CHECK(parse(&o, bad[i]) == OPTIONS_BAD);
        options_free(&o);
    }
}

int main(void)
{
    TEST(test_sources);
    TEST(test_sources_refused);
    TEST(test_lists);
    TEST(test_lists_refused);
    return tap_done();
}
