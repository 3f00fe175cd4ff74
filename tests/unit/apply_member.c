/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: a configuration entry changes the raft configuration and the member's row together or neither; what etcd
 * refuses is refused at apply with its errors; an id that was removed never comes back, also after a restart; whoever
 * asks is told of each change. */
#include "apply_rig.h"
#include "daemon/member_row.h"
#include "daemon/turn.h"
#include "tap.h"

static struct rig r;
static unsigned told;


static void on_members(void *ctx)
{
    (void)ctx;
    told++;
}

static int change(enum raft_change_op op, uint64_t id, const char *url)
{
    struct raft_conf_change c = {.n = 1, .changes = {{op, id}}};
    uint8_t body[TURN_CONF_BYTES_MAX + 512];
    size_t n = turn_conf_encode(&c, body);
    Etcdserverpb__Member m = ETCDSERVERPB__MEMBER__INIT;
    char *urls[] = {(char *)url};

    if (url) {
        m.id = id;
        m.peerurls = urls;
        m.n_peerurls = 1;
        m.islearner = op == RAFT_ADD_LEARNER;
        n += etcdserverpb__member__pack(&m, body + n);
    }
    return rig_entry(&r, ENTRY_CONF, slice_of(body, n), 0, true);
}

static int tell(enum entry_kind kind, uint64_t id, const char *name, const char *peer)
{
    Etcdserverpb__Member m = ETCDSERVERPB__MEMBER__INIT;
    char *urls[] = {(char *)peer};

    m.id = id;
    m.name = (char *)name;
    m.peerurls = urls;
    m.n_peerurls = peer != NULL;
    return rig_message(&r, kind, &m, true);
}

/* "1v 5l -7": members with v or l, the configuration's, and removed ids. */
static bool is(const char *want)
{
    static char got[512];
    struct raft_conf conf;
    struct member *list;
    uint64_t *removed;
    struct arena a;
    size_t n, used = 0, k;

    arena_init(&a, 1 << 20, NULL, 0);
    REQUIRE(raftconf_decode(r.apply->conf, &conf) == 0);
    n = apply_members(r.apply, &a, &list);
    for (size_t i = 0; i < n; i++) {
        bool learner = raft_set_has(&conf.learners, list[i].id), voter = raft_set_has(&conf.voters, list[i].id);

        used += (size_t)snprintf(got + used, sizeof got - used, "%s%llu%s%s%s%s", used ? " " : "",
                                 (unsigned long long)list[i].id, voter ? "v" : "", learner ? "l" : "",
                                 learner == list[i].is_learner ? "" : "?", list[i].n_peer_urls ? "" : "!");
        if (list[i].name.len)
            used += (size_t)snprintf(got + used, sizeof got - used, ":%.*s", (int)list[i].name.len, (const char *)list[i].name.ptr);
    }
    k = apply_removed(r.apply, &a, &removed);
    for (size_t i = 0; i < k; i++)
        used += (size_t)snprintf(got + used, sizeof got - used, " -%llu", (unsigned long long)removed[i]);
    got[used] = '\0';
    arena_fini(&a);
    if (strcmp(got, want) == 0)
        return true;
    printf("# got \"%s\", want \"%s\"\n", got, want);
    return false;
}

static void changes(void)
{
    rig_new(&r);
    apply_on_members(r.apply, on_members, NULL);
    CHECK(tell(ENTRY_MEMBER_ATTR, RIG_MEMBER, "one", "http://one") == 0);
    CHECK(told == 1);
    CHECK(change(RAFT_ADD_LEARNER, 200, "http://two") == 0 && told == 2);
    CHECK(change(RAFT_ADD_LEARNER, 200, "http://three") == ERR_MEMBER_EXISTS);
    CHECK(change(RAFT_ADD_VOTER, 300, "http://two") == ERR_PEER_URL_EXISTS);
    CHECK(change(RAFT_ADD_VOTER, 300, NULL) == ERR_MEMBER_NOT_FOUND);
    CHECK(change(RAFT_REMOVE, 300, NULL) == ERR_MEMBER_NOT_FOUND);
    CHECK(told == 2);
    CHECK(change(RAFT_ADD_VOTER, 200, NULL) == 0 && told == 3);
    CHECK(change(RAFT_ADD_VOTER, 200, NULL) == ERR_MEMBER_NOT_LEARNER);
    CHECK(tell(ENTRY_MEMBER_PEERS, 300, "", "http://x") == ERR_MEMBER_NOT_FOUND);
    CHECK(tell(ENTRY_MEMBER_PEERS, 200, "", "http://one") == ERR_PEER_URL_EXISTS);
    CHECK(tell(ENTRY_MEMBER_PEERS, 200, "", "http://moved") == 0 && told == 4);
    CHECK(tell(ENTRY_MEMBER_ATTR, 200, "two", NULL) == 0 && told == 5);
    CHECK(tell(ENTRY_MEMBER_ATTR, 999, "nobody", NULL) == ERR_MEMBER_NOT_FOUND && told == 5);
    CHECK(change(RAFT_ADD_VOTER, 300, "http://two") == 0); /* that URL is free again */
    CHECK(change(RAFT_REMOVE, 200, NULL) == 0);
    CHECK(change(RAFT_REMOVE, 200, NULL) == ERR_MEMBER_NOT_FOUND);
    CHECK(change(RAFT_ADD_VOTER, 200, "http://again") == ERR_MEMBER_NOT_FOUND);
    CHECK(tell(ENTRY_MEMBER_ATTR, 200, "two", NULL) == ERR_MEMBER_NOT_FOUND);
    rig_free(&r);
}

static void survive_a_restart(void)
{
    char id[16], want[64];

    rig_new(&r);
    CHECK(tell(ENTRY_MEMBER_ATTR, RIG_MEMBER, "one", "http://one") == 0);
    snprintf(id, sizeof id, "%llu", (unsigned long long)RIG_MEMBER);
    REQUIRE(RIG_MEMBER < 200);
    CHECK(change(RAFT_ADD_LEARNER, 200, "http://two") == 0);
    CHECK(change(RAFT_ADD_VOTER, 300, "http://three") == 0);
    CHECK(change(RAFT_REMOVE, 300, NULL) == 0);
    snprintf(want, sizeof want, "%sv:one 200l -300", id);
    CHECK(is(want));
    rig_restart(&r); /* replays the log */
    CHECK(is(want));
    rig_flush(&r);
    rig_restart(&r); /* reads base */
    CHECK(is(want));
    CHECK(change(RAFT_ADD_VOTER, 300, "http://three") == ERR_MEMBER_NOT_FOUND);
    CHECK(change(RAFT_ADD_VOTER, 200, NULL) == 0);
    snprintf(want, sizeof want, "%sv:one 200v -300", id);
    CHECK(is(want));
    rig_free(&r);
}

static void not_the_last_one(void)
{
    rig_new(&r);
    CHECK(change(RAFT_REMOVE, RIG_MEMBER, NULL) == ERR_CONF_IMPOSSIBLE);
    for (uint64_t id = 1000; id < 1000 + RAFT_MEMBERS_MAX - 1; id++) {
        char url[32];

        snprintf(url, sizeof url, "http://%llu", (unsigned long long)id);
        CHECK(change(RAFT_ADD_VOTER, id, url) == 0);
    }
    CHECK(change(RAFT_ADD_VOTER, 2000, "http://more") == ERR_CONF_IMPOSSIBLE);
    rig_free(&r);
}

int main(void)
{
    TEST(changes);
    TEST(survive_a_restart);
    TEST(not_the_last_one);
    return tap_done();
}
