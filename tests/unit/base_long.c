/* SPDX-License-Identifier: Apache-2.0 */
/* base_long.c - proves that keys of any length sort, range and come and go correctly.
 *
 * Keys that are prefixes of each other at every border of a row (499..501, 999..1001, ...), that part at every
 * level, with 0x00 and 0xff at their ends, and one of 1.4 MiB with two of its prefixes, live through random histories
 * with compaction; after everything is deleted and swept, no row of index or long is left.
 */
#include "base_model.h"

static void add(struct model *m, size_t len, size_t differ_at, int byte)
{
    uint8_t *key = malloc(len);

    REQUIRE(key != NULL);
    memset(key, 'a', len);
    if (differ_at < len)
        key[differ_at] = (uint8_t)byte;
    model_add_key(m, key, len);
    free(key);
}

static void border_keys(struct model *m)
{
    static const size_t lens[] = {1, 499, 500, 501, 502, 999, 1000, 1001, 1499, 1500, 1501, 2000, 2001, 3333};

    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
        add(m, lens[i], SIZE_MAX, 0);
        add(m, lens[i], lens[i] - 1, 0x00);
        add(m, lens[i], lens[i] - 1, 0xff);
        for (int j = 0; j < 2; j++)
            add(m, lens[i], below(lens[i]), below(2) ? 0 : 0xff);
    }
    model_sort_keys(m);
}

static uint64_t rows(struct model *m, enum base_table t)
{
    MDB_txn *txn;
    MDB_stat st;

    REQUIRE(mdb_txn_begin(m->base->env, NULL, MDB_RDONLY, &txn) == 0);
    REQUIRE(mdb_stat(txn, m->base->dbi[t], &st) == 0);
    mdb_txn_abort(txn);
    return st.ms_entries;
}

static void step(struct model *m, size_t changes)
{
    const char *what = "";

    for (; changes > 0; changes--)
        model_step(m);
    if (below(4) == 0) {
        int64_t low = m->compact > 1 ? m->compact : 1;

        m->compact = low + (int64_t)below((size_t)(m->rev - low) + 1);
    }
    model_flush(m);
    for (size_t n = below(5); n-- > 0;)
        CHECK(base_sweep(m->base, NULL) >= 0);
    model_compare(m, 2);
    if (base_check(m->base, &what)) {
        printf("# check: %s\n", what);
        CHECK(!"base_check");
    }
}

/* Deletes all, compacts above it, sweeps: nothing is left but the log's last tombstones, and not even they. */
static void empty(struct model *m)
{
    int err;

    m->rev++;
    for (size_t k = 0, sub = 0; k < m->n_keys; k++) {
        const struct mchange *x = model_find(m, k, INT64_MAX);

        if (x && !x->tombstone)
            model_change(m, k, (uint32_t)sub++, true);
    }
    m->rev++;
    model_change(m, 0, 0, false);
    m->rev++;
    model_change(m, 0, 0, true);
    m->rev++;
    m->compact = m->rev;
    model_flush(m);
    while ((err = base_sweep(m->base, NULL)) == 1)
        ;
    CHECK(err == 0);
    CHECK(rows(m, BASE_INDEX) == 0);
    CHECK(rows(m, BASE_LONG) == 0);
    CHECK(rows(m, BASE_LOG) == 0);
    CHECK(rows(m, BASE_LEASE_KEYS) == 0);
    model_compare(m, 1);
}

static void borders(void)
{
    for (int i = 0; i < 3 && tap_bad == 0; i++) {
        struct model m = {0};

        border_keys(&m);
        model_new(&m);
        for (int j = 0; j < 20 && tap_bad == 0; j++)
            step(&m, below(60));
        empty(&m);
        for (int j = 0; j < 5 && tap_bad == 0; j++) /* and again, from nothing */
            step(&m, below(60));
        model_free(&m);
    }
}

static void huge(void)
{
    enum { HUGE_KEY = 1400 << 10 };
    struct model m = {0};

    add(&m, HUGE_KEY, SIZE_MAX, 0);
    add(&m, HUGE_KEY, HUGE_KEY - 1, 0xff);
    add(&m, HUGE_KEY / 2, SIZE_MAX, 0);
    add(&m, HUGE_KEY, HUGE_KEY / 2, 0);
    add(&m, 500, SIZE_MAX, 0);
    model_add_key(&m, "b", 1);
    model_sort_keys(&m);
    model_new(&m);
    for (int j = 0; j < 4 && tap_bad == 0; j++)
        step(&m, 1 + below(4));
    empty(&m);
    model_free(&m);
}

int main(void)
{
    dice_seed();
    TEST(borders);
    TEST(huge);
    return tap_done();
}
