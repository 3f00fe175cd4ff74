/* SPDX-License-Identifier: Apache-2.0 */
/* fs_feed.c - proves what the feed tells of each event, once: the kind, whether it is to be injected, and what becomes
 * of own commits when the watch comes before or after the answer. No server: events are fed by hand to a listed
 * root. */
#include <stdio.h>

#include "fusefs/tree_private.h"
#include "tap.h"

static struct tree *t;
static struct feed *feed;
static char told[2000]; /* what the sink was told since the last look: "CREATE a i+;" */
static int64_t rev;

/* i: invalidate, +: inject, o: own, /: directory */
static void on_change(void *ctx, struct change_event *ev)
{
    static const char *const kinds[] = {"CREATE", "MODIFY", "ATTRIB", "DELETE", "MOVE"};
    size_t n = strlen(told);

    (void)ctx;
    snprintf(told + n, sizeof told - n, "%s %s%s%s%s %s%s%s%s;", kinds[ev->kind],
             ev->from_path ? ev->from_path : "", ev->from_path ? ">" : "", ev->path,
             ev->flags & CHANGE_DIR ? "/" : "", ev->flags & CHANGE_INVALIDATE ? "i" : "",
             ev->flags & CHANGE_INJECT ? "+" : "", ev->flags & CHANGE_OWN ? "o" : "",
             ev->flags & CHANGE_REPLACED ? "r" : "");
    CHECK(strcmp(ev->name, strrchr(ev->path, '/') ? strrchr(ev->path, '/') + 1 : ev->path) == 0);
    CHECK(!(ev->flags & CHANGE_OWN) || !(ev->flags & CHANGE_INJECT));
    change_free(t, ev);
}

static void start(void)
{
    const struct tree_config cfg = {.prefix = S("p/"), .file_mode = 0644, .dir_mode = 0755, .name_max = 255};
    const struct feed_sink sink = {.change = on_change};

    REQUIRE(tree_open(&cfg, NULL, &t) == 0);
    REQUIRE(feed_open(t, NULL, &sink, &feed) == 0);
    tree_root(t)->dir->state = DIR_LOADED;
    told[0] = 0;
    rev = 10;
}

static void stop(void)
{
    feed_close(feed);
    tree_close(t);
}

static bool was_told(const char *want)
{
    bool same = strcmp(told, want) == 0;

    if (!same)
        printf("# told %s\n# want %s\n", told, want);
    told[0] = 0;
    return same;
}

struct event {
    const char *key, *value; /* value NULL: a delete */
    int64_t version, lease;
};

static struct slice key_of(const char *key)
{
    return slice_str(key);
}

/* One batch of one revision. */
static void watch(int64_t at, const struct event *list, size_t n)
{
    Mvccpb__Event events[8], *ptrs[8];
    Mvccpb__KeyValue kvs[8];
    Etcdserverpb__WatchResponse res = ETCDSERVERPB__WATCH_RESPONSE__INIT;

    REQUIRE(n <= 8);
    for (size_t i = 0; i < n; i++) {
        kvs[i] = (Mvccpb__KeyValue)MVCCPB__KEY_VALUE__INIT;
        events[i] = (Mvccpb__Event)MVCCPB__EVENT__INIT;
        events[i].kv = &kvs[i];
        ptrs[i] = &events[i];
        kvs[i].key = (ProtobufCBinaryData){strlen(list[i].key), (uint8_t *)list[i].key};
        kvs[i].mod_revision = at;
        if (list[i].value == NULL) {
            events[i].type = MVCCPB__EVENT__EVENT_TYPE__DELETE;
            continue;
        }
        kvs[i].value = (ProtobufCBinaryData){strlen(list[i].value), (uint8_t *)list[i].value};
        kvs[i].version = list[i].version;
        kvs[i].create_revision = at;
        kvs[i].lease = list[i].lease;
    }
    res.events = ptrs;
    res.n_events = n;
    feed_apply(feed, &res);
}

static void put(const char *key, const char *value, int64_t version)
{
    watch(++rev, &(struct event){key, value, version, 0}, 1);
}

static void del(const char *key)
{
    watch(++rev, &(struct event){key, NULL, 0, 0}, 1);
}

/* An own commit's answer: the tree learns it. */
static struct node *learn(const char *key, const char *value, int64_t at, int64_t version, bool own)
{
    struct key_meta meta = {.create_rev = at, .mod_rev = at, .version = version};
    struct value *v = value_new(slice_str(value), &meta);
    struct node *n = tree_learn_put(t, key_of(key), &meta, v, own);

    value_unref(v);
    return n;
}

static void kinds(void)
{
    start();
    put("p/a", "1", 1);
    CHECK(was_told("CREATE a i+;"));
    put("p/a", "2", 2);
    CHECK(was_told("MODIFY a i+;"));
    put("p/a", "2", 3);
    CHECK(was_told("MODIFY a i+;"));
    watch(++rev, &(struct event){"p/a", "2", 4, 77}, 1);
    CHECK(was_told("ATTRIB a i+;"));
    del("p/a");
    CHECK(was_told("DELETE a i+;"));
    put("other", "1", 1);
    CHECK(was_told(""));
    stop();
}

static void directories(void)
{
    start();
    put("p/d/x/y", "1", 1);
    CHECK(was_told("CREATE d/ i+;")); /* below it nothing is listed, and nobody can be watching */
    del("p/d/x/y");
    CHECK(was_told("DELETE d/ i+;"));
    put("p/e/", "", 1);
    CHECK(was_told("CREATE e/ i+;"));
    put("p/e", "v", 1);
    CHECK(was_told("CREATE e/.value i+;"));
    del("p/e/");
    CHECK(was_told("DELETE e/.value i+;DELETE e/ i+;CREATE e i+;"));
    put("p/e/z", "v", 1);
    CHECK(was_told("DELETE e i+;CREATE e/ i+;CREATE e/.value i+;"));
    stop();
}

static void moves(void)
{
    start();
    put("p/a", "same", 1);
    put("p/c", "old", 1);
    told[0] = 0;
    watch(++rev, (struct event[]){{"p/a", NULL, 0, 0}, {"p/b", "same", 1, 0}}, 2);
    CHECK(was_told("MOVE a>b i+;"));
    watch(++rev, (struct event[]){{"p/b", NULL, 0, 0}, {"p/c", "same", 2, 0}}, 2);
    CHECK(was_told("MOVE b>c i+r;"));
    watch(++rev, (struct event[]){{"p/c", NULL, 0, 0}, {"p/d", "not the same", 1, 0}}, 2);
    CHECK(was_told("CREATE d i+;DELETE c i+;"));
    watch(++rev, (struct event[]){{"p/d", NULL, 0, 0}, {"p/e", "not the same", 1, 5}}, 2);
    CHECK(was_told("CREATE e i+;DELETE d i+;")); /* another lease */
    stop();
}

static void own_answer_first(void)
{
    struct node *n;

    start();
    feed_own_begin(feed, key_of("p/a"));
    n = learn("p/a", "1", ++rev, 1, true);
    feed_own_end(feed, key_of("p/a"), rev);
    CHECK(n && n->present && n->meta.size == 1);
    CHECK(was_told(""));
    watch(rev, &(struct event){"p/a", "1", 1, 0}, 1);
    CHECK(was_told("CREATE a io;"));
    put("p/a", "2", 2);
    CHECK(was_told("MODIFY a i+;"));
    stop();
}

static void own_watch_first(void)
{
    start();
    feed_own_begin(feed, key_of("p/a"));
    put("p/a", "1", 1);
    CHECK(was_told("CREATE a i;")); /* at once, but the injection waits */
    put("p/b", "1", 1);
    CHECK(was_told("CREATE b i+;")); /* of another key it does not */
    feed_own_end(feed, key_of("p/a"), rev - 1);
    CHECK(was_told("")); /* it was ours */
    stop();
}

static void other_during_own(void)
{
    start();
    feed_own_begin(feed, key_of("p/a"));
    feed_own_begin(feed, key_of("p/a"));
    put("p/a", "theirs", 1);
    put("p/a", "ours", 2);
    CHECK(was_told("CREATE a i;MODIFY a i;"));
    feed_own_end(feed, key_of("p/a"), rev);
    CHECK(was_told("")); /* another one is under way */
    feed_own_end(feed, key_of("p/a"), 0);
    CHECK(was_told("CREATE a +;"));
    stop();
}

/* rm -r: a directory emptied here stays until rmdir, whichever comes first, the answer or the watch. */
static void own_delete_lingers(bool watch_first)
{
    struct node *dir, *file;

    start();
    put("p/d/x", "1", 1);
    dir = tree_child(t, tree_root(t), S("d"));
    REQUIRE(dir);
    node_lookup(t, dir);
    dir->dir->state = DIR_LOADED;
    put("p/d/x", "2", 2);
    file = tree_child(t, dir, S("x"));
    REQUIRE(file);
    node_lookup(t, file);
    told[0] = 0;
    feed_own_begin(feed, key_of("p/d/x"));
    rev++;
    if (watch_first)
        watch(rev, &(struct event){"p/d/x", NULL, 0, 0}, 1);
    tree_learn_delete(t, key_of("p/d/x"), rev, true);
    feed_own_end(feed, key_of("p/d/x"), rev);
    if (!watch_first)
        watch(rev, &(struct event){"p/d/x", NULL, 0, 0}, 1);
    CHECK(was_told(watch_first ? "DELETE d/x i;" : "DELETE d/x io;"));
    CHECK(dir->present && !file->present);
    tree_flush(t);
    CHECK(tree_node(t, file->nodeid) == file); /* the kernel knows it */
    node_forget(t, file, 1);
    told[0] = 0;
    node_forget(t, dir, 1); /* nobody is in it any more */
    tree_flush(t);
    CHECK(tree_child(t, tree_root(t), S("d")) == NULL);
    stop();
}

static void own_delete_answer_first(void)
{
    own_delete_lingers(false);
}

static void own_delete_watch_first(void)
{
    own_delete_lingers(true);
}

/* An answer told the tree before the watch did: the event is told all the same, once. */
static void learned_ahead(void)
{
    struct node *n;

    start();
    n = learn("p/a", "1", rev + 1, 1, false);
    CHECK(n && n->present);
    CHECK(was_told(""));
    put("p/a", "1", 1);
    CHECK(was_told("CREATE a i+;"));
    CHECK(n->meta.mod_rev == rev);
    tree_learn_delete(t, key_of("p/a"), rev + 1, false);
    CHECK(tree_child(t, tree_root(t), S("a")) == NULL);
    tree_flush(t);
    watch(rev, &(struct event){"p/a", "1", 1, 0}, 1); /* old news */
    CHECK(tree_child(t, tree_root(t), S("a")) == NULL);
    told[0] = 0;
    del("p/a");
    CHECK(was_told("DELETE a i+;"));
    learn("p/d/x", "1", rev + 1, 1, true); /* .etcd/keys made the directory on the way */
    feed_own_end(feed, key_of("p/d/x"), rev + 1);
    CHECK(was_told(""));
    put("p/d/x", "1", 1);
    CHECK(was_told("CREATE d/ io;"));
    stop();
}

/* The node stands for its key: deleted and made again, and as another kind. */
static void nodeids(void)
{
    struct node *a, *dir;
    uint64_t id;

    start();
    put("p/a", "1", 1);
    a = tree_child(t, tree_root(t), S("a"));
    REQUIRE(a);
    node_lookup(t, a);
    id = a->nodeid;
    del("p/a");
    tree_flush(t);
    CHECK(tree_node(t, id) == a && !a->present);
    put("p/a", "2", 1);
    CHECK(tree_child(t, tree_root(t), S("a")) == a);
    put("p/a/b", "3", 1);
    dir = tree_child(t, tree_root(t), S("a"));
    CHECK(dir && dir != a && dir->nodeid != id && dir->kind == NODE_DIR && !a->present);
    CHECK(dir->ino != a->ino);
    del("p/a/b");
    CHECK(tree_child(t, tree_root(t), S("a")) == a);
    node_forget(t, a, 1);
    del("p/a");
    tree_flush(t);
    CHECK(tree_node(t, id) == NULL);
    put("p/a", "4", 1);
    CHECK(tree_child(t, tree_root(t), S("a"))->nodeid != id);
    stop();
}

static int64_t mtime_ns(const struct node *n)
{
    struct stat st;

    node_stat(t, n, &st);
    return st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec;
}

/* Times of a file and of its directory move with each revision, however fast they follow; size and blocks
 * fit. */
static void times(void)
{
    int64_t file = 0, dir;
    struct stat st;

    start();
    dir = mtime_ns(tree_root(t));
    put("p/a", "1", 1);
    CHECK(mtime_ns(tree_root(t)) > dir);
    for (int i = 2; i < 200; i++) {
        const struct node *n = tree_child(t, tree_root(t), S("a"));

        CHECK(mtime_ns(n) > file);
        file = mtime_ns(n);
        put("p/a", "12345", i);
    }
    node_stat(t, tree_child(t, tree_root(t), S("a")), &st);
    CHECK(st.st_size == 5 && st.st_blocks == 1 && st.st_nlink == 1 && S_ISREG(st.st_mode));
    dir = mtime_ns(tree_root(t));
    del("p/a");
    CHECK(mtime_ns(tree_root(t)) > dir);
    stop();
}

int main(void)
{
    TEST(kinds);
    TEST(directories);
    TEST(moves);
    TEST(own_answer_first);
    TEST(own_watch_first);
    TEST(other_during_own);
    TEST(own_delete_answer_first);
    TEST(own_delete_watch_first);
    TEST(learned_ahead);
    TEST(nodeids);
    TEST(times);
    return tap_done();
}
