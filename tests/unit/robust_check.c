/* SPDX-License-Identifier: Apache-2.0 */
/* robust_check.c - the checker of histories (tests/robust/check.c) is tried itself: it says nothing against histories
 * of a correct store (robust_store.inc), and finds nearly everything that a broken one could have done. One thing is
 * made wrong, of 27 kinds: in what was answered, or in what the store does. robust_logs.c does the same to logs.
 *
 *   SEED=n    CLEAN=n histories without a fault (150)    EACH=n of each kind with one (30)
 */
#include "robust_store.inc"

/* ---- what is made wrong in a finished history ---------------------------------------------------- */

static struct rec *pick(struct history *h, bool (*fits)(struct history *, struct rec *))
{
    size_t from = below(h->n);

    for (size_t i = 0; i < h->n; i++)
        if (fits(h, &h->recs[(from + i) % h->n]))
            return &h->recs[(from + i) % h->n];
    return NULL;
}

static Etcdserverpb__WatchResponse *notice_of(struct rec *r) { return (void *)r->resp; }
static Etcdserverpb__RangeResponse *range_of(struct rec *r) { return (void *)r->resp; }

static bool is_told(struct history *h, struct rec *r)
{
    (void)h;
    return r->kind == REC_NOTICE && notice_of(r)->n_events;
}
static bool is_watched(struct history *h, struct rec *r) { return is_told(h, r) && r->client != CLIENT_WITNESS; }
static bool is_witnessed(struct history *h, struct rec *r) { return is_told(h, r) && r->client == CLIENT_WITNESS; }

static struct rec *next_told(struct history *h, struct rec *r)
{
    for (struct rec *n = r + 1; n < h->recs + h->n; n++)
        if (n->stream == r->stream && is_told(h, n))
            return n;
    return NULL;
}
static bool has_next(struct history *h, struct rec *r) { return is_watched(h, r) && next_told(h, r); }
static bool is_two(struct history *h, struct rec *r)
{
    return is_watched(h, r) && notice_of(r)->n_events > 1 &&
           notice_of(r)->events[0]->kv->mod_revision == notice_of(r)->events[1]->kv->mod_revision;
}
static bool has_prev(struct history *h, struct rec *r) { return is_told(h, r) && notice_of(r)->events[0]->prev_kv; }
static bool is_put_told(struct history *h, struct rec *r)
{
    return is_watched(h, r) && notice_of(r)->events[0]->type == MVCCPB__EVENT__EVENT_TYPE__PUT;
}
static bool is_read(struct history *h, struct rec *r)
{
    (void)h;
    return r->kind == REC_RANGE && r->outcome == DONE && range_of(r)->n_kvs;
}
static bool is_late_read(struct history *h, struct rec *r)
{
    return is_read(h, r) && !((const Etcdserverpb__RangeRequest *)r->req)->serializable && r->start_ns > 300 * MS &&
           range_of(r)->header->revision > 5;
}
static bool is_late_local_read(struct history *h, struct rec *r)
{
    return is_read(h, r) && ((const Etcdserverpb__RangeRequest *)r->req)->serializable && r->start_ns > 700 * MS;
}
static bool is_acked(struct history *h, struct rec *r)
{
    (void)h;
    return (r->kind == REC_PUT || r->kind == REC_TXN) && r->outcome == DONE && rec_header(r)->revision > 3;
}
static bool is_early_acked(struct history *h, struct rec *r) { return is_acked(h, r) && r->end_ns < now - 500 * MS; }
static bool is_txn(struct history *h, struct rec *r) { (void)h; return r->kind == REC_TXN && r->outcome == DONE; }
static bool is_deleted(struct history *h, struct rec *r)
{
    (void)h;
    return r->kind == REC_DELETE && r->outcome == DONE;
}
static bool is_hash(struct history *h, struct rec *r) { (void)h; return r->kind == REC_HASH; }
static bool is_renamed(struct history *h, struct rec *r)
{
    (void)h;
    return r->kind == REC_RENAME && r->outcome == DONE;
}
static bool put_prev(struct history *h, struct rec *r)
{
    (void)h;
    return r->kind == REC_PUT && r->outcome == DONE && ((Etcdserverpb__PutResponse *)r->resp)->prev_kv;
}

static void drop_event(Etcdserverpb__WatchResponse *m, size_t i)
{
    protobuf_c_message_free_unpacked(&m->events[i]->base, NULL);
    memmove(m->events + i, m->events + i + 1, (m->n_events - i - 1) * sizeof *m->events);
    m->n_events--;
}

static void read_at(struct rec *r, int64_t at)
{
    Etcdserverpb__RangeResponse *old = range_of(r), *resp = range((const void *)r->req, at);

    resp->header = header();
    resp->header->revision = at;
    protobuf_c_message_free_unpacked(&old->base, NULL);
    r->resp = &resp->base;
}

/* The revision of everything that had been answered when r began is at least this. */
static int64_t known_before(struct history *h, const struct rec *r, bool member)
{
    int64_t known = 0;

    for (size_t i = 0; i < h->n; i++) {
        const struct rec *o = &h->recs[i];
        bool counts = member ? o->kind == REC_RANGE && o->member == r->member : o->kind != REC_HASH;

        if (counts && o->outcome == DONE && rec_header(o) && o->end_ns < r->start_ns && rec_header(o)->revision > known)
            known = rec_header(o)->revision;
    }
    return known;
}

enum wrong {
    W_DROP_COMMIT,
    W_DROP_EVENT,
    W_DOUBLE_NOTICE,
    W_SWAP_NOTICES,
    W_SPLIT,
    W_WATCH_PREV,
    W_WATCH_VALUE,
    W_READ_VALUE,
    W_READ_KEY,
    W_READ_COUNT,
    W_STALE_READ,
    W_MEMBER_BACK,
    W_ACK_REV,
    W_ACK_LATE,
    W_TXN_BRANCH,
    W_DELETE_COUNT,
    W_PUT_PREV,
    W_HASH,
    W_RENAME_KEYS,
    W_RENAME_OUTCOME,
    WRONGS
};
static const char *const wrong_names[] = {"commit lost",
                                          "event lost",
                                          "notice doubled",
                                          "notices swapped",
                                          "revision split",
                                          "prev_kv of a watch",
                                          "value of an event",
                                          "value read",
                                          "key not read",
                                          "count read",
                                          "stale read",
                                          "member goes back",
                                          "acknowledged at another revision",
                                          "written before it began",
                                          "other branch",
                                          "deletes counted",
                                          "prev_kv of a put",
                                          "hash",
                                          "keys renamed",
                                          "outcome of a rename"};

static bool make_wrong(struct history *h, enum wrong w)
{
    static bool (*const fits[WRONGS])(struct history *, struct rec *) = {[W_DROP_COMMIT] = is_witnessed,
                                                                         [W_DROP_EVENT] = is_watched,
                                                                         [W_DOUBLE_NOTICE] = is_watched,
                                                                         [W_SWAP_NOTICES] = has_next,
                                                                         [W_SPLIT] = is_two,
                                                                         [W_WATCH_PREV] = has_prev,
                                                                         [W_WATCH_VALUE] = is_put_told,
                                                                         [W_READ_VALUE] = is_read,
                                                                         [W_READ_KEY] = is_read,
                                                                         [W_READ_COUNT] = is_read,
                                                                         [W_STALE_READ] = is_late_read,
                                                                         [W_MEMBER_BACK] = is_late_local_read,
                                                                         [W_ACK_REV] = is_acked,
                                                                         [W_ACK_LATE] = is_early_acked,
                                                                         [W_TXN_BRANCH] = is_txn,
                                                                         [W_DELETE_COUNT] = is_deleted,
                                                                         [W_PUT_PREV] = put_prev,
                                                                         [W_HASH] = is_hash,
                                                                         [W_RENAME_KEYS] = is_renamed,
                                                                         [W_RENAME_OUTCOME] = is_renamed};
    struct rec *r = pick(h, fits[w]);
    int64_t at;

    if (r == NULL)
        return false;
    switch (w) {
    case W_DROP_COMMIT:
        for (at = notice_of(r)->events[0]->kv->mod_revision;
             notice_of(r)->n_events && notice_of(r)->events[0]->kv->mod_revision == at;)
            drop_event(notice_of(r), 0);
        break;
    case W_DROP_EVENT:
        drop_event(notice_of(r), below(notice_of(r)->n_events));
        break;
    case W_DOUBLE_NOTICE: {
        struct rec again = *r;

        again.resp = message_copy(r->resp);
        history_add(h, &again);
        break;
    }
    case W_SWAP_NOTICES: {
        struct rec *n = next_told(h, r);
        ProtobufCMessage *m = r->resp;

        r->resp = n->resp;
        n->resp = m;
        break;
    }
    case W_SPLIT: {
        struct rec rest = *r;

        rest.resp = message_copy(r->resp);
        drop_event(notice_of(&rest), 0);
        while (notice_of(r)->n_events > 1)
            drop_event(notice_of(r), 1);
        history_add(h, &rest); /* at the end of its stream's records, so its order is wrong too, if others follow */
        break;
    }
    case W_WATCH_PREV:
        notice_of(r)->events[0]->prev_kv->value.data[0] ^= 1;
        break;
    case W_WATCH_VALUE:
        notice_of(r)->events[0]->kv->value.data[0] ^= 1;
        break;
    case W_READ_VALUE:
        range_of(r)->kvs[below(range_of(r)->n_kvs)]->value.data[0] ^= 1;
        break;
    case W_READ_KEY:
        protobuf_c_message_free_unpacked(&range_of(r)->kvs[--range_of(r)->n_kvs]->base, NULL);
        range_of(r)->count--;
        break;
    case W_READ_COUNT:
        range_of(r)->count++;
        break;
    case W_STALE_READ:
        at = known_before(h, r, false);
        if (at < 2)
            return false;
        read_at(r, at - 1);
        break;
    case W_MEMBER_BACK:
        at = known_before(h, r, true);
        if (at < 2)
            return false;
        read_at(r, at - 1);
        break;
    case W_ACK_REV:
        ((Etcdserverpb__ResponseHeader *)(uintptr_t)rec_header(r))->revision -= 1;
        break;
    case W_ACK_LATE:
        r->start_ns = now + 100 * MS;
        r->end_ns = r->start_ns + MS;
        break;
    case W_TXN_BRANCH:
        ((Etcdserverpb__TxnResponse *)r->resp)->succeeded ^= 1;
        break;
    case W_DELETE_COUNT:
        ((Etcdserverpb__DeleteRangeResponse *)r->resp)->deleted ^= 1;
        break;
    case W_PUT_PREV:
        ((Etcdserverpb__PutResponse *)r->resp)->prev_kv->mod_revision--;
        break;
    case W_HASH:
        ((Etcdserverpb__HashKVResponse *)r->resp)->hash++;
        break;
    case W_RENAME_KEYS:
        ((Cairn__RenameResponse *)r->resp)->keys++;
        break;
    case W_RENAME_OUTCOME:
        ((Cairn__RenameResponse *)r->resp)->outcome ^= 1;
        break;
    case WRONGS:
        break;
    }
    return true;
}

/* ---- the tests ------------------------------------------------------------------------------------ */

static void correct_histories_pass(void)
{
    struct check_facts all = {0}, f;

    for (unsigned i = 0; i < setting("CLEAN", 150); i++) {
        struct history h;
        unsigned problems;

        bug = NO_BUG;
        make_history(&h);
        problems = history_check(&h, NULL, 0, stdout, &f);
        CHECK(problems == 0);
        all.writes += f.writes;
        all.reads += f.reads;
        all.events += f.events;
        all.unknown_found += f.unknown_found;
        all.renames += f.renames;
        all.renames_none += f.renames_none;
        all.leases_expired += f.leases_expired;
        all.leases_revoked += f.leases_revoked;
        history_fini(&h);
        if (problems)
            return;
    }
    /* Else they would have been of nothing. */
    CHECK(all.renames && all.renames_none);
    CHECK(all.writes && all.reads && all.events && all.unknown_found && all.leases_expired && all.leases_revoked);
}

static void wrong_answers_are_found(void)
{
    made_wrong = found = 0;
    for (int w = 0; w < WRONGS; w++) {
        unsigned before = made_wrong;

        for (unsigned i = 0; i < setting("EACH", 30); i++) {
            struct history h;

            bug = NO_BUG;
            make_history(&h);
            if (make_wrong(&h, (enum wrong)w))
                look(&h, NULL, 0, wrong_names[w]);
            history_fini(&h);
        }
        CHECK(made_wrong > before);
    }
    printf("# %u of %u found\n", found, made_wrong);
    CHECK((double)found >= 0.999 * made_wrong);
}

static void broken_stores_are_found(void)
{
    static const char *const bug_names[] = {
        "",           "lease ends early",  "key outlives its lease",  "acknowledged, never done",
        "done twice", "refused, and done", "renewed when it was gone", "renamed but for one key"};

    made_wrong = found = 0;
    for (int b = NO_BUG + 1; b < BUGS; b++) {
        unsigned before = made_wrong;

        for (unsigned i = 0; i < setting("EACH", 30); i++) {
            struct history h;

            bug = (enum bug)b;
            make_history(&h);
            if (bug_done)
                look(&h, NULL, 0, bug_names[b]);
            history_fini(&h);
        }
        CHECK(made_wrong > before);
    }
    printf("# %u of %u found\n", found, made_wrong);
    CHECK((double)found >= 0.999 * made_wrong);
}

static void a_saved_history_is_the_same(void)
{
    char path[] = "/tmp/robust-check-XXXXXX";
    struct history h, again;
    int fd = mkstemp(path);

    REQUIRE(fd >= 0);
    (void)close(fd);
    bug = NO_BUG;
    make_history(&h);
    history_init(&again);
    CHECK(history_save(&h, path) == 0);
    CHECK(history_load(&again, path) == 0);
    CHECK(again.n == h.n);
    CHECK(history_check(&again, NULL, 0, stdout, NULL) == 0);
    history_fini(&h);
    history_fini(&again);
    (void)unlink(path);
}

static void all(void)
{
    TEST(correct_histories_pass);
    TEST(wrong_answers_are_found);
    TEST(broken_stores_are_found);
    TEST(a_saved_history_is_the_same);
}

int main(void) { return robust_main(all); }
