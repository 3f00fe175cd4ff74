/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: the same flags make the ids that etcd makes of them (recorded from etcd 3.7.1); what contradicts itself is
 * refused in etcd's words; the members of a running cluster are found by their URLs in any order, also by another name
 * of the same host. */
#include "daemon/roster.h"
#include "daemon/log.h"
#include "tap.h"

static struct config c;
static struct roster r;

static void flags(const char *name, const char *advertise, const char *cluster, const char *token)
{
    char *argv[] = {"cairnd",
                    "--name", (char *)name,
                    "--initial-advertise-peer-urls", (char *)advertise,
                    "--initial-cluster", (char *)cluster,
                    "--initial-cluster-token", (char *)token,
                    NULL};
    char *env[] = {NULL};

    REQUIRE(config_read(&c, 9, argv, env) == CONFIG_RUN);
}

static bool says(const char *bad, const char *want)
{
    if (bad && strstr(bad, want))
        return true;
    printf("# it says: %s\n", bad ? bad : "(nothing)");
    return false;
}

#define A "http://127.0.0.1:22210"
#define B1 "http://127.0.0.1:22211"
#define B2 "http://127.0.0.1:22221"
#define C "http://localhost:22212"

static void ids_are_etcds(void)
{
    flags("b", B1 "," B2, "a=" A ",b=" B2 ",b=" B1 ",c=" C, "tok-1");
    REQUIRE(roster_read(&c, &r) == NULL);
    CHECK(roster_check_new(&c, &r) == NULL);
    CHECK(r.n == 3 && r.self == &r.members[1] && r.self->urls.n == 2);
    CHECK(r.members[0].id == UINT64_C(2889560924707926427));
    CHECK(r.members[1].id == UINT64_C(7793667329515612286));
    CHECK(r.members[2].id == UINT64_C(17959408333934212919));
    CHECK(r.cluster_id == UINT64_C(16338965218618650833));
    config_fini(&c);

    flags("m", A, "", "etcd-cluster");
    REQUIRE(roster_read(&c, &r) == NULL);
    CHECK(roster_check_new(&c, &r) == NULL);
    CHECK(r.n == 1 && r.self->id == UINT64_C(0x71e199ffe1896660) && r.cluster_id == UINT64_C(0xfe0d7e4b37b6fc17));
    config_fini(&c);
}

static const char *check(bool existing)
{
    const char *bad = roster_read(&c, &r);

    return bad ? bad : existing ? roster_check_existing(&c, &r) : roster_check_new(&c, &r);
}

static void contradictions(void)
{
    static const struct {
        const char *name, *advertise, *cluster, *want;
    } cases[] = {
        {"x", A, "a=" A, "couldn't find local name \"x\" in the initial cluster configuration"},
        {"a", A, "a=" A ",b=" A, "member exists with identical ID"},
        {"a", A, "a=" A ",b=" B1 ",b=" A, "initial cluster a=" A ",b=" B1 ",b=" A " has duplicate url"},
        {"a", A, "a=" A ",a=" A, "has duplicate url"},
        {"a", A, "a=" B1, "--initial-cluster has a=" B1 " but missing from --initial-advertise-peer-urls=" A " (resolved urls: "},
        {"a", A "," B1, "a=" A, "--initial-advertise-peer-urls has " B1 " but missing from --initial-cluster=a=" A},
        {"a", A, "a=ftp://127.0.0.1:1", "URL scheme must be http, https, unix, or unixs: ftp://127.0.0.1:1"},
        {"a", A, "a", "URL scheme must be http, https, unix, or unixs: "},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        flags(cases[i].name, cases[i].advertise, cases[i].cluster, "t");
        CHECK(says(check(false), cases[i].want));
        config_fini(&c);
    }
    /* A joiner is known by what the cluster was told when it was added: what it advertises now does not count. */
    flags("a", A, "a=" B1, "t");
    CHECK(check(true) == NULL);
    config_fini(&c);
}

static void joining(void)
{
    static const char *const ua[] = {A}, *const ub[] = {B2, B1}, *const uc[] = {C}, *const other[] = {"http://127.0.0.2:1"},
                            *const name[] = {"http://127.1:22210"};
    const struct roster_known known[] = {{30, uc, 1}, {10, ua, 1}, {20, ub, 2}};
    const struct roster_known wrong[] = {{10, ua, 1}, {20, other, 1}, {30, uc, 1}},
                              twice[] = {{10, ua, 1}, {11, ua, 1}, {30, uc, 1}};
    const struct roster_known named[] = {{10, name, 1}, {20, ub, 2}, {30, uc, 1}};

    flags("b", A, "a=" A ",b=" B1 ",b=" B2 ",c=" C, "t");
    REQUIRE(check(true) == NULL);
    CHECK(roster_match(&c, &r, known, 3) == NULL);
    CHECK(r.members[0].id == 10 && r.self->id == 20 && r.members[2].id == 30);
    CHECK(says(roster_match(&c, &r, known, 2), "member count is unequal"));
    CHECK(says(roster_match(&c, &r, wrong, 3), "PeerURLs: no match found for existing member (14, [http://127.0.0.2:1])"));
    CHECK(says(roster_match(&c, &r, twice, 3), "PeerURLs: no match found for existing member (b, "));
    CHECK(roster_match(&c, &r, named, 3) == NULL && r.members[0].id == 10);
    config_fini(&c);
}

static void times(void)
{
    const char *const one[] = {A};

    /* With the time in it a member that comes again is another one. */
    CHECK(roster_member_id(one, 1, "1700000000") != roster_member_id(one, 1, "1700000001"));
    CHECK(roster_member_id(one, 1, "etcd-cluster") == UINT64_C(0x71e199ffe1896660));
}

int main(void)
{
    log_set_level(LOG_LEVEL_FATAL);
    TEST(ids_are_etcds);
    TEST(contradictions);
    TEST(joining);
    TEST(times);
    return tap_done();
}
