/* SPDX-License-Identifier: Apache-2.0 */
/* robust_logs.c - the checker's second witness, the members' logs (tests/robust/check_journal.c), is tried itself: it
 * says nothing against correct logs, whole or begun with a snapshot, and finds each of sixteen things that could be
 * wrong with them, while all that was answered is right. robust_journal.c tries the reader of logs.
 *
 *   SEED=n    CLEAN=n histories with correct logs (150)    EACH=n of each kind with wrong ones (30)
 */
#include "robust_store.inc"

enum { LOGS_MAX = 5 };

static int n_logs; /* members of the history at hand: three or five */

enum log_wrong {
    L_LOST,        /* from all of them */
    L_SWAPPED,
    L_TWICE,
    L_VALUE,
    L_OTHER_BYTES, /* in one of them */
    L_OTHER_TERM,
    L_GAP,
    L_CUT_OTHER,
    L_TWO_LEADERS,
    L_NOT_ON_MOST,
    L_ENDS_EARLY,
    L_LEASE_LIVES,
    L_DAMAGED,
    L_NOBODYS,
    L_NOT_MATCHING, /* what is not known to be committed */
    L_ONE_AHEAD,
    LOG_WRONGS
};
static const char *const log_wrong_names[] = {
    "an entry lost", "two entries swapped", "an entry twice", "another value", "one member has other bytes",
    "one member has another term", "one member lacks an entry", "other bytes had been cut off", "two leaders in a term",
    "committed on one member", "all end early", "a lease's end lost", "a log that is not sound", "asked for by nobody",
    "an entry shared, and not all before it", "one member is ahead in what is committed"};

/* The value of a put that was acknowledged and has no lease, in its entry's payload. */
static struct slice value_in(const struct history *h, struct slice payload)
{
    struct slice body, at = SLICE_NONE;
    Etcdserverpb__PutRequest *put;
    enum journal_kind kind;
    uint64_t t;

    if (!journal_parse(payload, &kind, &t, &body) || kind != JOURNAL_PUT)
        return SLICE_NONE;
    put = etcdserverpb__put_request__unpack(NULL, body.len, body.ptr);
    REQUIRE(put);
    for (size_t i = 0; put->lease == 0 && i < h->n; i++)
        if (h->recs[i].kind == REC_PUT && h->recs[i].outcome == DONE &&
            slice_eq(bytes_of(((const Etcdserverpb__PutRequest *)h->recs[i].req)->value), bytes_of(put->value)))
            at = slice_of(memmem(body.ptr, body.len, put->value.data, put->value.len), put->value.len);
    etcdserverpb__put_request__free_unpacked(put, NULL);
    return at;
}

/* two: the next entry is such a put too; to swap it with one that does nothing would be no wrong. */
static uint64_t pick_entry(const struct history *h, bool two)
{
    uint64_t from = below(whole.n), n = whole.n;

    for (uint64_t i = 0; i < n; i++) {
        uint64_t index = whole.base + 1 + (from + i) % n;

        if (index + 2 < journal_last(&whole) && value_in(h, journal_at(&whole, index)->payload).len &&
            (!two || value_in(h, journal_at(&whole, index + 1)->payload).len))
            return index;
    }
    return 0;
}

static struct slice changed(struct slice payload, size_t at)
{
    static uint8_t bytes[5000];

    REQUIRE(payload.len <= sizeof bytes);
    memcpy(bytes, payload.ptr, payload.len);
    bytes[at] ^= 1;
    return slice_of(bytes, payload.len);
}

/* A put of a lease that there never was: it is refused, so no revision tells of it. */
static struct slice odd_entry(void)
{
    static uint8_t entry[80] = {1, JOURNAL_PUT};
    Etcdserverpb__PutRequest put = ETCDSERVERPB__PUT_REQUEST__INIT;

    put.key = (ProtobufCBinaryData){3, (uint8_t *)"odd"};
    put.lease = 9999;
    return slice_of(entry, 40 + etcdserverpb__put_request__pack(&put, entry + 40));
}

/* The next entry; what lies at or before the base came with a snapshot. */
static void next_entry(struct journal *l, uint64_t *index, uint64_t entry_term, struct slice payload)
{
    if (*index > l->base)
        journal_add(l, *index, entry_term, payload);
    ++*index;
}

/* A member's log, wrong at the entry `at`. */
static void make_log(const struct history *h, struct journal *l, int member, enum log_wrong w, uint64_t at)
{
    uint64_t index = 2, end = journal_last(&whole);

    if (w == L_ENDS_EARLY || (w == L_NOT_ON_MOST && member > 0))
        end = at - 1;
    for (uint64_t i = 2; i <= end; i++) {
        const struct journal_entry *e = journal_at(&whole, i);
        bool here = i == at, mine = here && member == 1;
        struct slice value = here ? value_in(h, e->payload) : SLICE_NONE, payload = e->payload;

        if ((here && (w == L_LOST || w == L_LEASE_LIVES)) || (mine && w == L_GAP))
            continue;
        if (here && w == L_VALUE)
            payload = changed(payload, (size_t)(value.ptr - payload.ptr));
        if (mine && w == L_OTHER_BYTES)
            payload = changed(payload, 20);
        if (mine && (w == L_CUT_OTHER || w == L_TWO_LEADERS) && index > l->base) /* and cut at once */
            journal_add(l, index, e->term, w == L_CUT_OTHER ? S("x") : SLICE_NONE);
        if (here && w == L_SWAPPED) {
            next_entry(l, &index, e[1].term, e[1].payload);
            i++;
        }
        next_entry(l, &index, e->term + (mine && (w == L_OTHER_TERM || w == L_NOT_MATCHING)), payload);
        if (here && w == L_TWICE)
            next_entry(l, &index, e->term, payload);
        if (here && w == L_NOBODYS)
            next_entry(l, &index, e->term, odd_entry());
    }
    if (w == L_ONE_AHEAD && member == 0)
        next_entry(l, &index, term, odd_entry());
    l->commit = w == L_NOT_MATCHING ? 0 : journal_last(l) - (w == LOG_WRONGS);
    if (w == L_DAMAGED && member == 1)
        (void)snprintf(l->error, sizeof l->error, "damaged");
}

static uint64_t pick_end_of_lease(void)
{
    for (uint64_t i = 3; i <= journal_last(&whole); i++) {
        enum journal_kind kind;
        uint64_t t;
        struct slice body;
        int64_t id;

        if (!journal_parse(journal_at(&whole, i)->payload, &kind, &t, &body) || kind != JOURNAL_EXPIRE ||
            t != journal_at(&whole, i)->term)
            continue;
        id = (int64_t)get_u64le(body.ptr);
        for (size_t e = 0; e < n_events; e++) { /* it had keys to delete */
            char prefix[24];
            size_t n = (size_t)snprintf(prefix, sizeof prefix, "l/%lld/", (long long)id);

            if (events[e].deleted && events[e].kv.key.len > n && memcmp(events[e].kv.key.data, prefix, n) == 0)
                return i;
        }
    }
    return 0;
}

/* Some begin later than the cluster did, as after a snapshot; in one of four correct histories all do. */
static bool make_logs(const struct history *h, struct journal *logs, enum log_wrong w)
{
    uint64_t at = w == LOG_WRONGS      ? whole.n / 2
                  : w == L_LEASE_LIVES ? pick_end_of_lease()
                                       : pick_entry(h, w == L_SWAPPED);
    uint64_t base = 1 + below(at / 2 + 1);
    bool all = w == LOG_WRONGS && below(4) == 0;

    if (at == 0)
        return false;
    n_logs = below(2) ? 3 : 5;
    for (int m = 0; m < n_logs; m++) {
        logs[m] = (struct journal){.there = true, .base = all || (m > 0 && below(3) == 0) ? base : 1};
        make_log(h, &logs[m], m, w, at);
    }
    return true;
}

/* ---- the tests ------------------------------------------------------------------------------------ */

static void logs_free(struct journal *logs)
{
    for (int m = 0; m < n_logs; m++)
        journal_fini(&logs[m]);
}

static void correct_logs_pass(void)
{
    struct check_facts f;
    unsigned partly = 0;

    for (unsigned i = 0; i < setting("CLEAN", 150); i++) {
        struct journal logs[LOGS_MAX];
        struct history h;
        unsigned problems;

        bug = NO_BUG;
        make_history(&h);
        REQUIRE(make_logs(&h, logs, LOG_WRONGS));
        problems = history_check(&h, logs, n_logs, stdout, &f);
        CHECK(problems == 0);
        CHECK(f.entries_from > 2 || f.entries_revs == f.revisions);
        CHECK(f.entries_revs > f.revisions / 4);
        partly += f.entries_from > 2;
        logs_free(logs);
        history_fini(&h);
        if (problems)
            return;
    }
    CHECK(partly > 0);
}

static void wrong_logs_are_found(void)
{
    made_wrong = found = 0;
    for (int w = 0; w < LOG_WRONGS; w++) {
        unsigned before = made_wrong;

        for (unsigned i = 0; i < setting("EACH", 30); i++) {
            struct journal logs[LOGS_MAX];
            struct history h;

            bug = NO_BUG;
            make_history(&h);
            if (make_logs(&h, logs, (enum log_wrong)w)) {
                look(&h, logs, n_logs, log_wrong_names[w]);
                logs_free(logs);
            }
            history_fini(&h);
        }
        CHECK(made_wrong > before);
    }
    printf("# %u of %u found\n", found, made_wrong);
    CHECK(found == made_wrong);
}

static void all(void)
{
    TEST(correct_logs_pass);
    TEST(wrong_logs_are_found);
}

int main(void) { return robust_main(all); }
