/* SPDX-License-Identifier: Apache-2.0 */
/* fs_handle.c - proves that what a handle publishes is what its writer wrote: random writes, truncations
 * and appends against a plain buffer as the model, and laid over news of others, where only the bytes
 * written here may differ from theirs. SEED=n picks the random numbers. */
#include "../../fusefs/handle_commit.c"

#include <stdio.h>

#include "fusefs/overlay.h"
#include "tap.h"

static struct fs fs;
static uint64_t state;

static uint32_t dice(uint32_t n)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % n;
}

static struct value *random_value(size_t len, int64_t rev)
{
    uint8_t bytes[4096];

    for (size_t i = 0; i < len; i++)
        bytes[i] = (uint8_t)('a' + dice(26));
    return value_new(slice_of(bytes, len), &(struct key_meta){.mod_rev = rev, .create_rev = 1});
}

static struct handle *open_handle(int flags, struct value *pin)
{
    struct node *n = tree_ghost(fs.tree, tree_root(fs.tree), S("k"), NODE_FILE);

    REQUIRE(n != NULL);
    return handle_new(&fs, n, NULL, flags, 0, value_ref(pin));
}

/* The model: the file as its writer sees it, which bytes are the writer's, and how short it was cut. */
struct model {
    uint8_t bytes[8192];
    bool mine[8192];
    size_t len, cut;
    bool resized;
};

static void model_write(struct model *m, const uint8_t *p, size_t off, size_t n)
{
    if (off > m->len)
        memset(m->bytes + m->len, 0, off - m->len);
    memcpy(m->bytes + off, p, n);
    memset(m->mine + off, 1, n);
    m->len = off + n > m->len ? off + n : m->len;
}

static void model_truncate(struct model *m, size_t len)
{
    if (len > m->len)
        memset(m->bytes + m->len, 0, len - m->len);
    else
        memset(m->mine + len, 0, sizeof m->mine - len);
    m->len = len;
    m->cut = len < m->cut ? len : m->cut;
    m->resized = true;
}

static void random_steps(struct handle *h, struct model *m)
{
    for (uint32_t i = 0, n = 1 + dice(12); i < n; i++) {
        uint8_t bytes[300];
        size_t len = 1 + dice(sizeof bytes), off = dice(2000);

        for (size_t k = 0; k < len; k++)
            bytes[k] = (uint8_t)('A' + dice(26));
        if (dice(4) == 0) {
            CHECK(handle_truncate(h, off) == 0);
            model_truncate(m, off);
        } else {
            CHECK(handle_write(h, bytes, off, len) == 0);
            model_write(m, bytes, off, len);
        }
    }
}

static void one_round(bool over_news)
{
    struct value *base = random_value(dice(2000), 5), *news = random_value(dice(3000), 6);
    struct handle *h = open_handle(O_RDWR, base);
    struct model m = {.cut = SIZE_MAX};
    struct value *v;

    model_write(&m, base->bytes, 0, base->meta.size);
    memset(m.mine, 0, sizeof m.mine);
    random_steps(h, &m);
    CHECK(handle_size(h) == m.len);
    v = compose(h, &h->now, h->len, over_news ? news : base);
    REQUIRE(v != NULL);
    if (!over_news || h->now.whole) {
        CHECK(slice_eq(slice_of(v->bytes, v->meta.size), slice_of(m.bytes, m.len)));
    } else {
        size_t kept = news->meta.size < m.cut ? news->meta.size : m.cut;

        CHECK(!m.resized || v->meta.size == m.len);
        for (size_t i = 0; i < v->meta.size; i++) {
            uint8_t want = i < m.len && m.mine[i] ? m.bytes[i] : i < kept ? news->bytes[i] : 0;

            if (v->bytes[i] != want) {
                printf("# at %zu: %d, not %d\n", i, v->bytes[i], want);
                CHECK(false);
                break;
            }
        }
    }
    value_unref(v);
    value_unref(base);
    value_unref(news);
    h->data = h->mark = false;
    handle_free(h);
}

static void test_alone(void)
{
    for (int i = 0; i < 3000; i++)
        one_round(false);
}

static void test_over_news(void)
{
    for (int i = 0; i < 3000; i++)
        one_round(true);
}

static void test_append(void)
{
    struct value *base = random_value(100, 5), *news = random_value(300, 6), *v;
    struct handle *h = open_handle(O_WRONLY | O_APPEND, base);

    CHECK(handle_write(h, "one", 0, 3) == 0); /* the kernel's offset does not count */
    CHECK(handle_write(h, "two", 7, 3) == 0);
    CHECK(handle_size(h) == 106);
    v = compose(h, &h->now, h->len, news);
    REQUIRE(v != NULL);
    CHECK(v->meta.size == 306);
    CHECK(memcmp(v->bytes, news->bytes, 300) == 0);
    CHECK(memcmp(v->bytes + 300, "onetwo", 6) == 0);
    value_unref(v);
    value_unref(base);
    value_unref(news);
    h->data = false;
    handle_free(h);
}

/* What is written while a commit is under way is laid over what that commit published. */
static void test_written_meanwhile(void)
{
    struct value *base = random_value(10, 5), *published;
    struct handle *h = open_handle(O_RDWR, base);

    CHECK(handle_write(h, "AA", 0, 2) == 0);
    changes_send(h);
    CHECK(!handle_dirty(h));
    CHECK(handle_write(h, "BB", 4, 2) == 0);
    published = compose(h, &h->sent, h->sent.len, h->pin);
    REQUIRE(published != NULL);
    settle(h, published);
    CHECK(handle_dirty(h));
    CHECK(h->pin == published);
    CHECK(h->len == 10);
    CHECK(memcmp(h->buf, "AA", 2) == 0);
    CHECK(memcmp(h->buf + 4, "BB", 2) == 0);
    CHECK(h->now.n_extents == 1);
    value_unref(published);
    value_unref(base);
    h->busy = h->data = false;
    handle_free(h);
}

static void test_too_large(void)
{
    struct value *base = random_value(10, 5);
    struct handle *h = open_handle(O_WRONLY, base);
    char byte = 'x';

    CHECK(handle_write(h, &byte, fs.opt.max_request_bytes, 1) == EFBIG);
    CHECK(handle_truncate(h, fs.opt.max_request_bytes) == EFBIG);
    CHECK(!handle_dirty(h));
    value_unref(base);
    handle_free(h);
}

int main(void)
{
    struct tree_config tc = {.file_mode = 0644, .dir_mode = 0755, .name_max = CODEC_NAME_MAX};
    const char *seed = getenv("SEED");

    state = seed ? strtoull(seed, NULL, 10) : (uint64_t)client_now_ms();
    printf("# SEED=%llu\n", (unsigned long long)state);
    fs.opt.max_request_bytes = 1 << 20;
    REQUIRE(session_init(&fs.session, &fs) == 0);
    REQUIRE(tree_open(&tc, NULL, &fs.tree) == 0);
    TEST(test_alone);
    TEST(test_over_news);
    TEST(test_append);
    TEST(test_written_meanwhile);
    TEST(test_too_large);
    tree_close(fs.tree);
    session_fini(&fs.session);
    return tap_done();
}
