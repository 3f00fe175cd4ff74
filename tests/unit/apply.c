/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: entries do to the state what reference 02-semantics says (puts, deletes, txns, compactions, leases, alarms);
 * a refused entry leaves no trace but its index; the scrub finds damage nobody asks for; answers say what was there;
 * all of it the same after a flush and after a restart that replays. */
#include <errno.h>
#include "apply_rig.h"

#define CHECK_DUMP(r, rev, want) \
    do { \
        const char *have_ = rig_dump(r, rev); \
        if (strcmp(have_, want) != 0) { \
            tap_bad++; \
            printf("# %s:%d: have %s\n#            want %s\n", __FILE__, __LINE__, have_, want); \
        } \
    } while (0)

/* ---- a txn in a few words ------------------------------------------------------------------ */

typedef Etcdserverpb__TxnRequest TxnRequest;
typedef Etcdserverpb__RequestOp RequestOp;

static struct arena ar;

static RequestOp *op_new(int op_case)
{
    RequestOp *op = msg_new(&ar, &etcdserverpb__request_op__descriptor);

    op->request_case = (Etcdserverpb__RequestOp__RequestCase)op_case;
    return op;
}

static RequestOp *put(const char *key, const char *value)
{
    RequestOp *op = op_new(ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT);

    op->request_put = msg_new(&ar, &etcdserverpb__put_request__descriptor);
    op->request_put->key = rig_bytes(key);
    op->request_put->value = rig_bytes(value);
    return op;
}

static RequestOp *del(const char *key, ProtobufCBinaryData end)
{
    RequestOp *op = op_new(ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE);

    op->request_delete_range = msg_new(&ar, &etcdserverpb__delete_range_request__descriptor);
    op->request_delete_range->key = rig_bytes(key);
    op->request_delete_range->range_end = end;
    return op;
}

static RequestOp *get(const char *key, const char *end, int64_t rev)
{
    RequestOp *op = op_new(ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE);

    op->request_range = msg_new(&ar, &etcdserverpb__range_request__descriptor);
    op->request_range->key = rig_bytes(key);
    op->request_range->range_end = rig_bytes(end);
    op->request_range->revision = rev;
    return op;
}

static RequestOp *nested(TxnRequest *txn)
{
    RequestOp *op = op_new(ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN);

    op->request_txn = txn;
    return op;
}

/* Compares version(key) = version; NULL: no compare. Ops up to a NULL. */
static TxnRequest *txn(const char *key, int64_t version, RequestOp *const *then, RequestOp *const *other)
{
    TxnRequest *t = msg_new(&ar, &etcdserverpb__txn_request__descriptor);

    if (key) {
        t->compare = arena_alloc(&ar, sizeof *t->compare);
        t->compare[0] = msg_new(&ar, &etcdserverpb__compare__descriptor);
        t->compare[0]->key = rig_bytes(key);
        t->compare[0]->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__VERSION;
        t->compare[0]->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION;
        t->compare[0]->version = version;
        t->n_compare = 1;
    }
    for (t->n_success = 0; then[t->n_success]; t->n_success++)
        ;
    for (t->n_failure = 0; other && other[t->n_failure]; t->n_failure++)
        ;
    t->success = arena_alloc(&ar, (t->n_success + 1) * sizeof *t->success);
    t->failure = arena_alloc(&ar, (t->n_failure + 1) * sizeof *t->failure);
    memcpy(t->success, then, t->n_success * sizeof *then);
    if (other)
        memcpy(t->failure, other, t->n_failure * sizeof *other);
    return t;
}
#define OPS(...) ((RequestOp *const[]){__VA_ARGS__, NULL})
#define NO_END ((ProtobufCBinaryData){0})

static int run_txn(struct rig *r, TxnRequest *t)
{
    return rig_message(r, ENTRY_TXN, t, true);
}

/* ---- tests ------------------------------------------------------------------------------------ */

static void puts_and_deletes(void)
{
    struct rig r;
    Etcdserverpb__PutResponse *put_resp;
    Etcdserverpb__DeleteRangeResponse *del_resp;

    rig_new(&r);
    CHECK(rig_put(&r, "a", "1", 0) == 0);
    put_resp = r.p.response;
    CHECK(r.p.revision == 2 && put_resp->header->revision == 2 && put_resp->prev_kv == NULL);
    CHECK(rig_put(&r, "a", "2", 0) == 0);
    put_resp = r.p.response;
    CHECK(put_resp->prev_kv && put_resp->prev_kv->value.data[0] == '1' && put_resp->prev_kv->version == 1);
    CHECK(rig_put(&r, "b", "3", 0) == 0);
    CHECK(rig_put(&r, "c", "4", 0) == 0);
    CHECK_DUMP(&r, 0, "a=2@2.3.2.0 b=3@4.4.1.0 c=4@5.5.1.0");
    CHECK(r.apply->key_count == 3);

    CHECK(rig_delete(&r, "x", "") == 0);
    del_resp = r.p.response;
    CHECK(del_resp->deleted == 0 && del_resp->header->revision == 5 && r.p.revision == 5);
    CHECK(rig_delete(&r, "a", "c") == 0);
    del_resp = r.p.response;
    CHECK(del_resp->deleted == 2 && del_resp->n_prev_kvs == 2 && del_resp->header->revision == 6);
    CHECK(del_resp->n_prev_kvs == 2 && del_resp->prev_kvs[0]->key.data[0] == 'a' &&
          del_resp->prev_kvs[1]->key.data[0] == 'b');
    CHECK_DUMP(&r, 0, "c=4@5.5.1.0");
    CHECK_DUMP(&r, 5, "a=2@2.3.2.0 b=3@4.4.1.0 c=4@5.5.1.0");
    CHECK(r.apply->key_count == 1);

    CHECK(rig_put(&r, "a", "5", 0) == 0); /* a new generation */
    CHECK_DUMP(&r, 0, "a=5@7.7.1.0 c=4@5.5.1.0");
    rig_flush(&r);
    CHECK_DUMP(&r, 0, "a=5@7.7.1.0 c=4@5.5.1.0");
    CHECK_DUMP(&r, 5, "a=2@2.3.2.0 b=3@4.4.1.0 c=4@5.5.1.0");
    rig_restart(&r);
    CHECK(r.apply->rev == 7 && r.apply->key_count == 2);
    CHECK_DUMP(&r, 0, "a=5@7.7.1.0 c=4@5.5.1.0");
    rig_free(&r);
}

static void put_flags(void)
{
    struct rig r;
    Etcdserverpb__PutRequest req = ETCDSERVERPB__PUT_REQUEST__INIT;

    rig_new(&r);
    CHECK(rig_grant(&r, 5, 100) == 0);
    req.key = rig_bytes("k");
    req.ignore_value = true;
    CHECK(rig_message(&r, ENTRY_PUT, &req, true) == ERR_KEY_NOT_FOUND);
    CHECK(rig_put(&r, "k", "v", 6) == ERR_LEASE_NOT_FOUND);
    CHECK(r.p.revision == 1); /* refused: nothing but the index moves */
    CHECK(rig_put(&r, "k", "v", 5) == 0);
    CHECK(rig_message(&r, ENTRY_PUT, &req, true) == 0); /* keeps the value, drops the lease */
    CHECK_DUMP(&r, 0, "k=v@2.3.2.0");
    CHECK(rig_put(&r, "k", "w", 5) == 0);
    req.ignore_value = false;
    req.ignore_lease = true;
    req.value = rig_bytes("x");
    CHECK(rig_message(&r, ENTRY_PUT, &req, true) == 0);
    CHECK_DUMP(&r, 0, "k=x@2.5.4.5");
    rig_free(&r);
}

static void txn_order_and_headers(void)
{
    struct rig r;
    Etcdserverpb__TxnResponse *resp;

    rig_new(&r);
    CHECK(rig_put(&r, "a", "1", 0) == 0); /* revision 2 */
    CHECK(run_txn(&r, txn("a", 1, OPS(get("a", "", 0), put("a", "2"), get("a", "", 0), put("b", "3"), del("b", NO_END),
                                      nested(txn("a", 1, OPS(put("c", "4")), OPS(put("d", "5"))))),
                          NULL)) == 0);
    resp = r.p.response;
    CHECK(resp->succeeded && resp->n_responses == 6 && resp->header->revision == 3);
    CHECK(resp->responses[0]->response_range->header->revision == 2); /* before the first change */
    CHECK(resp->responses[0]->response_range->kvs[0]->value.data[0] == '1');
    CHECK(resp->responses[1]->response_put->header->revision == 3);
    CHECK(resp->responses[2]->response_range->kvs[0]->value.data[0] == '2'); /* sees the put before it */
    CHECK(resp->responses[2]->response_range->header->revision == 3);
    CHECK(resp->responses[4]->response_delete_range->deleted == 1);
    CHECK(resp->responses[4]->response_delete_range->n_prev_kvs == 0); /* not asked for */
    CHECK(resp->responses[5]->response_txn->succeeded); /* compared with the state before the txn */
    CHECK(resp->responses[5]->response_txn->header && resp->responses[5]->response_txn->header->revision == 0);
    CHECK_DUMP(&r, 0, "a=2@2.3.2.0 c=4@3.3.1.0");
    rig_flush(&r);
    CHECK_DUMP(&r, 0, "a=2@2.3.2.0 c=4@3.3.1.0");

    CHECK(run_txn(&r, txn("a", 7, OPS(put("a", "3")), OPS(del("zz", NO_END)))) == 0);
    resp = r.p.response;
    CHECK(!resp->succeeded && resp->header->revision == 3 && r.p.revision == 3); /* nothing changed */
    CHECK(run_txn(&r, txn(NULL, 0, OPS(get("a", "z", 2)), NULL)) == 0);
    resp = r.p.response;
    CHECK(resp->responses[0]->response_range->n_kvs == 1 && resp->responses[0]->response_range->header->revision == 3);
    arena_fini(&ar);
    rig_free(&r);
}

static void txn_atomic(void)
{
    struct rig r;
    RequestOp *bad_lease = put("b", "2"), *ignore = put("a", "");

    rig_new(&r);
    CHECK(rig_put(&r, "a", "1", 0) == 0);
    bad_lease->request_put->lease = 99;
    CHECK(run_txn(&r, txn(NULL, 0, OPS(put("a", "9"), del("a", NO_END), bad_lease), NULL)) == ERR_LEASE_NOT_FOUND);
    CHECK(run_txn(&r, txn(NULL, 0, OPS(put("x", "9"), get("a", "", 3)), NULL)) == ERR_FUTURE_REV);
    CHECK(run_txn(&r, txn(NULL, 0, OPS(put("x", "9"), get("a", "", 1)), NULL)) == 0);
    CHECK(rig_compact(&r, 3, false) == 0);
    CHECK(run_txn(&r, txn(NULL, 0, OPS(put("y", "9"), get("a", "", 2)), NULL)) == ERR_COMPACTED);
    CHECK(run_txn(&r, txn(NULL, 0, OPS(put("y", "9"), get("a", "", -1)), NULL)) == ERR_COMPACTED);
    /* where etcd dies: the key is there before the txn, and gone when its turn comes */
    ignore->request_put->ignore_value = true;
    CHECK(run_txn(&r, txn(NULL, 0, OPS(put("y", "9"), del("a", (ProtobufCBinaryData){1, (uint8_t *)"\0"}), ignore), NULL)) ==
          ERR_KEY_NOT_FOUND);
    CHECK(r.apply->rev == 3 && r.apply->key_count == 2);
    CHECK_DUMP(&r, 0, "a=1@2.2.1.0 x=9@3.3.1.0");
    CHECK(r.fatal == 0);
    rig_restart(&r);
    CHECK_DUMP(&r, 0, "a=1@2.2.1.0 x=9@3.3.1.0");
    arena_fini(&ar);
    rig_free(&r);
}

static void compaction(void)
{
    struct rig r;
    struct apply_stats st;

    rig_new(&r);
    CHECK(rig_compact(&r, 2, false) == ERR_FUTURE_REV);
    CHECK(rig_compact(&r, 0, false) == 0); /* once, on a fresh store */
    CHECK(rig_compact(&r, 0, false) == ERR_COMPACTED);
    for (int i = 0; i < 9; i++)
        CHECK(rig_put(&r, i & 1 ? "a" : "b", "v", 0) == 0);
    CHECK(rig_delete(&r, "b", "") == 0); /* revision 11 */
    CHECK(rig_compact(&r, 12, false) == ERR_FUTURE_REV);
    CHECK(rig_compact(&r, 11, true) == 0);
    CHECK(store_compact_revision(r.store) == 11);
    CHECK(rig_compact(&r, 11, true) == ERR_COMPACTED); /* waits, then says so */
    CHECK(rig_compact(&r, 5, false) == ERR_COMPACTED);
    apply_stats(r.apply, &st);
    CHECK(st.compacted_records == 8);
    CHECK_DUMP(&r, 11, "a=v@3.9.4.0");
    rig_restart(&r);
    CHECK(r.apply->compact_rev == 11);
    CHECK_DUMP(&r, 0, "a=v@3.9.4.0");
    rig_free(&r);
}

static void leases_and_keys(void)
{
    struct rig r;
    Etcdserverpb__LeaseGrantResponse *resp;
    int64_t rev;

    rig_new(&r);
    CHECK(rig_grant(&r, 5, 100) == 0);
    resp = r.p.response;
    CHECK(resp->id == 5 && resp->ttl == 100 && r.p.revision == 1);
    CHECK(rig_grant(&r, 5, 100) == ERR_LEASE_EXISTS);
    CHECK(rig_grant(&r, 6, LEASE_TTL_MAX_S + 1) == ERR_LEASE_TTL_TOO_LARGE);
    CHECK(rig_grant(&r, -6, 60) == 0);
    CHECK(rig_revoke(&r, 7) == ERR_LEASE_NOT_FOUND);
    CHECK(rig_put(&r, "c", "1", 5) == 0);
    CHECK(rig_put(&r, "a", "1", 5) == 0);
    CHECK(rig_put(&r, "b", "1", 5) == 0);
    CHECK(rig_put(&r, "moved", "1", 5) == 0);
    rig_flush(&r);
    CHECK(rig_put(&r, "moved", "1", -6) == 0);
    CHECK(rig_put(&r, "b", "2", 0) == 0); /* detaches */
    rig_restart(&r);                      /* leases come back from base and log */
    CHECK(lease_count(r.leases) == 2);
    rev = r.apply->rev;
    CHECK(rig_revoke(&r, 5) == 0);
    CHECK(r.apply->rev == rev + 1); /* both keys in one revision */
    CHECK_DUMP(&r, 0, "b=2@4.7.2.0 moved=1@5.6.2.-6");
    rig_flush(&r);
    CHECK(rig_revoke(&r, -6) == 0);
    CHECK_DUMP(&r, 0, "b=2@4.7.2.0");
    CHECK(rig_grant(&r, 8, 10) == 0);
    rev = r.apply->rev;
    CHECK(rig_revoke(&r, 8) == 0);
    CHECK(r.apply->rev == rev); /* without keys: no revision */
    rig_restart(&r);
    CHECK(lease_count(r.leases) == 0);
    rig_free(&r);
}

static void lease_expiry(void)
{
    struct rig r;
    uint8_t body[24];
    int64_t ids[4], rev;

    rig_new(&r);
    CHECK(rig_grant(&r, 1, 10) == 0);
    CHECK(rig_grant(&r, 2, 20) == 0);
    CHECK(rig_put(&r, "a", "1", 1) == 0);
    CHECK(rig_put(&r, "b", "1", 2) == 0);
    CHECK(lease_expired(r.leases, ids, 4) == 0);
    r.clock.ms += 25000;
    CHECK(lease_expired(r.leases, ids, 4) == 2 && ids[0] == 1 && ids[1] == 2);
    CHECK(lease_expired(r.leases, ids, 4) == 0); /* handed out once */
    put_u64le(body, 1);
    put_u64le(body + 8, 9); /* gone meanwhile */
    put_u64le(body + 16, 2);
    rev = r.apply->rev;
    (void)rig_entry(&r, ENTRY_LEASE_EXPIRE, slice_of(body, 24), 2, false); /* of another term: nothing */
    CHECK(lease_count(r.leases) == 2);
    (void)rig_entry(&r, ENTRY_LEASE_EXPIRE, slice_of(body, 24), 1, false);
    CHECK(lease_count(r.leases) == 0 && r.apply->rev == rev + 2); /* a revision for each lease */
    CHECK_DUMP(&r, 0, "");
    CHECK_DUMP(&r, rev + 1, "b=1@3.3.1.2");
    rig_free(&r);
}

static int alarm_entry(struct rig *r, int action, uint64_t member, int type)
{
    Etcdserverpb__AlarmRequest req = ETCDSERVERPB__ALARM_REQUEST__INIT;

    req.action = (Etcdserverpb__AlarmRequest__AlarmAction)action;
    req.memberid = member;
    req.alarm = (Etcdserverpb__AlarmType)type;
    return rig_message(r, ENTRY_ALARM, &req, true);
}

static size_t alarms_answered(struct rig *r)
{
    return ((Etcdserverpb__AlarmResponse *)r->p.response)->n_alarms;
}

static void alarms(void)
{
    enum { GET, ACTIVATE, DEACTIVATE };
    struct rig r;
    RequestOp *in_branch;

    rig_new(&r);
    CHECK(rig_put(&r, "a", "1", 0) == 0);
    CHECK(alarm_entry(&r, ACTIVATE, 3, ETCDSERVERPB__ALARM_TYPE__NOSPACE) == 0 && alarms_answered(&r) == 1);
    CHECK(alarm_entry(&r, ACTIVATE, 3, ETCDSERVERPB__ALARM_TYPE__NOSPACE) == 0 && alarms_answered(&r) == 1);
    CHECK(alarm_entry(&r, ACTIVATE, 3, ETCDSERVERPB__ALARM_TYPE__NONE) == 0 && alarms_answered(&r) == 0);
    rig_restart(&r);
    CHECK(rig_put(&r, "a", "2", 0) == ERR_NOSPACE);
    CHECK(rig_put(&r, "a", "2", 77) == ERR_NOSPACE); /* before the lease */
    CHECK(rig_grant(&r, 1, 10) == ERR_NOSPACE);
    in_branch = put("z", "1");
    CHECK(run_txn(&r, txn(NULL, 0, OPS(get("a", "", 0)), OPS(in_branch))) == ERR_NOSPACE); /* in the branch not taken */
    CHECK(run_txn(&r, txn(NULL, 0, OPS(del("a", NO_END)), NULL)) == 0);
    CHECK(rig_delete(&r, "a", "") == 0);
    CHECK(alarm_entry(&r, ACTIVATE, 4, ETCDSERVERPB__ALARM_TYPE__CORRUPT) == 0);
    CHECK(alarm_entry(&r, GET, 0, ETCDSERVERPB__ALARM_TYPE__NONE) == 0 && alarms_answered(&r) == 2);
    CHECK(alarm_entry(&r, GET, 0, ETCDSERVERPB__ALARM_TYPE__CORRUPT) == 0 && alarms_answered(&r) == 1);
    CHECK(rig_delete(&r, "a", "") == ERR_CORRUPT);
    CHECK(rig_compact(&r, 1, false) == ERR_CORRUPT);
    rig_flush(&r);
    rig_restart(&r);
    CHECK(rig_put(&r, "a", "2", 0) == ERR_CORRUPT);
    CHECK(alarm_entry(&r, DEACTIVATE, 4, ETCDSERVERPB__ALARM_TYPE__CORRUPT) == 0 && alarms_answered(&r) == 1);
    CHECK(alarm_entry(&r, DEACTIVATE, 4, ETCDSERVERPB__ALARM_TYPE__CORRUPT) == 0 && alarms_answered(&r) == 0);
    CHECK(alarm_entry(&r, DEACTIVATE, 3, ETCDSERVERPB__ALARM_TYPE__NOSPACE) == 0);
    CHECK(rig_put(&r, "a", "2", 0) == 0);
    arena_fini(&ar);
    rig_free(&r);
}

static void quota(void)
{
    struct rig r;

    rig_new(&r);
    r.quota = (int64_t)atomic_load(&r.apply->db_bytes) + 2000;
    rig_restart(&r);
    CHECK(rig_put(&r, "a", "1", 0) == 0);
    r.apply->o.quota_bytes = 1000;
    CHECK(!apply_quota_admits(r.apply, 300));
    CHECK(apply_quota_admits(r.apply, 0));
    CHECK(rig_put(&r, "b", "1", 0) == ERR_NOSPACE); /* as in etcd: done all the same */
    CHECK_DUMP(&r, 0, "a=1@2.2.1.0 b=1@3.3.1.0");
    rig_free(&r);
}

static void members(void)
{
    struct rig r;
    Etcdserverpb__Member m = ETCDSERVERPB__MEMBER__INIT;
    char *peers[] = {"http://p"}, *clients[] = {"http://c1", "http://c2"};
    struct member *list;
    struct arena a;

    rig_new(&r);
    arena_init(&a, 1 << 20, NULL, 0);
    m.id = RIG_MEMBER;
    m.name = "one";
    m.peerurls = peers;
    m.n_peerurls = 1;
    (void)rig_message(&r, ENTRY_MEMBER_ATTR, &m, false);
    m.n_peerurls = 0; /* started: keeps them */
    m.clienturls = clients;
    m.n_clienturls = 2;
    (void)rig_message(&r, ENTRY_MEMBER_ATTR, &m, false);
    rig_flush(&r);
    rig_restart(&r);
    CHECK(apply_members(r.apply, &a, &list) == 1);
    CHECK(list[0].id == RIG_MEMBER && slice_eq(list[0].name, S("one")) && list[0].n_peer_urls == 1);
    CHECK(list[0].n_client_urls == 2 && slice_eq(list[0].client_urls[1], S("http://c2")));
    arena_fini(&a);
    rig_free(&r);
}

static void stall(void)
{
    struct rig r;
    static char big[1000001];

    rig_new(&r);
    memset(big, 'x', sizeof big - 1);
    for (int i = 0; i < 30; i++)
        CHECK(rig_put(&r, "k", big, 0) == 0);
    r.apply->freeze_now = true;
    (void)apply_step(r.apply); /* frozen, and nobody flushes */
    CHECK(store_frozen(r.store) != NULL);
    for (int i = 0; i < 70; i++) {
        Etcdserverpb__PutRequest req = ETCDSERVERPB__PUT_REQUEST__INIT;
        struct entry_head h = {.kind = ENTRY_PUT};
        struct entry *e;
        uint8_t *packed;
        size_t n;

        req.key = rig_bytes("k");
        req.value = rig_bytes(big);
        n = etcdserverpb__put_request__get_packed_size(&req);
        packed = malloc(n);
        h.body = slice_of(packed, etcdserverpb__put_request__pack(&req, packed));
        e = entry_new(entry_size(&h));
        entry_encode(&h, e->payload);
        free(packed);
        e->index = ++r.last;
        e->term = 1;
        r.log[e->index] = e;
        entry_cache_put(r.cache, e);
    }
    apply_commit(r.apply, r.last);
    for (int i = 0; i < 10; i++)
        (void)apply_step(r.apply);
    CHECK(apply_stalled(r.apply)); /* takes no entry: the account fills behind it */
    CHECK(r.apply->applied < r.last);
    CHECK(delta_bytes(store_live(r.store)) < LIMIT_DELTA_STALL_BYTES + (4 << 20));
    rig_run(&r); /* with a flush thread again */
    CHECK(r.apply->applied == r.last && r.apply->rev == 101);
    rig_free(&r);
}

static int flushed;

static void on_flushed(struct flush_wait *w)
{
    (void)w;
    flushed++;
}

/* As datadir_open makes it, without what it checks. */
static void open_datadir(struct datadir *d)
{
    *d = (struct datadir){.wal_fd = -1, .base_next = 1, .mu = PTHREAD_MUTEX_INITIALIZER};
    snprintf(d->path, sizeof d->path, "/tmp/cairn-defrag-XXXXXX");
    REQUIRE(mkdtemp(d->path) != NULL);
    snprintf(d->wal_root, sizeof d->wal_root, "%s", d->path);
    d->fd = open(d->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    REQUIRE(d->fd >= 0);
}

static void close_datadir(struct datadir *d)
{
    (void)datadir_remove_base(d, d->base);
    (void)unlinkat(d->fd, "CURRENT", 0);
    close(d->fd);
    (void)rmdir(d->path);
}

/* No room for a flush: nothing is lost, entries go on, the flush is tried again each second and succeeds once there
 * is room; a stop does not wait for it, and a restart replays. */
static void no_room(void)
{
    struct rig r;
    static char big[100001];
    char key[16];

    rig_new(&r);
    memset(big, 'x', sizeof big - 1);
    r.map_bytes = 1 << 20;
    rig_restart(&r);
    for (int i = 0; i < 20; i++) {
        snprintf(key, sizeof key, "k%d", i);
        CHECK(rig_put(&r, key, big, 0) == 0);
    }
    r.apply->freeze_now = true;
    (void)apply_step(r.apply);
    CHECK(apply_flush_step(r.apply) == r.clock.ms + 1000);
    (void)apply_step(r.apply);
    CHECK(r.apply->flush_blocked && r.fatal == 0);
    CHECK(apply_flush_step(r.apply) == r.clock.ms + 1000); /* not before */
    CHECK(rig_put(&r, "more", "v", 0) == 0);
    CHECK(store_frozen(r.store) != NULL);
    atomic_store(&r.apply->stopping, true);
    (void)apply_step(r.apply);
    CHECK(atomic_load(&r.apply->stopped));
    r.map_bytes = 1 << 30;
    rig_restart(&r);
    CHECK(r.apply->key_count == 21);
    rig_flush(&r);
    CHECK(!r.apply->flush_blocked && r.apply->key_count == 21);
    rig_restart(&r);
    CHECK(r.apply->key_count == 21 && r.apply->frozen_index == r.last);
    rig_free(&r);
}

/* A stop leaves nobody waiting: not who compacts physically while the disk is full, not who asked for a flush. */
static void stop_answers(void)
{
    Etcdserverpb__CompactionRequest req = ETCDSERVERPB__COMPACTION_REQUEST__INIT;
    struct entry_head h = {.kind = ENTRY_COMPACT, .origin = RIG_MEMBER};
    struct flush_wait w = {.done = on_flushed};
    static char big[900001];
    uint8_t packed[16];
    struct entry *e;
    struct rig r;

    rig_new(&r);
    memset(big, 'x', sizeof big - 1);
    r.map_bytes = 1 << 20;
    rig_restart(&r);
    for (int i = 0; i < 3; i++)
        CHECK(rig_put(&r, i & 1 ? "a" : "b", big, 0) == 0);
    r.p = (struct proposal){.arena = &r.out, .done = rig_done};
    r.answered = false;
    CHECK(account_take(r.account, &r.p, 1) == 0);
    req.revision = 3;
    req.physical = true;
    h.request_id = r.p.request_id;
    h.body = slice_of(packed, etcdserverpb__compaction_request__pack(&req, packed));
    e = entry_new(entry_size(&h));
    entry_encode(&h, e->payload);
    e->index = ++r.last;
    e->term = 1;
    r.log[r.last] = e;
    entry_cache_put(r.cache, e);
    flushed = 0;
    apply_flush(r.apply, &w);
    apply_commit(r.apply, r.last);
    for (int i = 0; i < 5; i++) {
        (void)apply_step(r.apply);
        (void)apply_flush_step(r.apply);
    }
    CHECK(!r.answered && !flushed && store_compact_revision(r.store) == 3);
    atomic_store(&r.apply->stopping, true);
    (void)apply_step(r.apply);
    CHECK(r.answered && r.p.err == ERR_STOPPED && flushed == 1 && w.err == -ECANCELED);
    account_give(r.account, &r.p, 1);
    r.map_bytes = 1 << 30;
    rig_restart(&r);
    CHECK(r.apply->compact_rev == 3);
    rig_free(&r);
}

/* A copy takes the place of base between entries; what came meanwhile is flushed into it. */
static void defragmentation(void)
{
    struct datadir d;
    struct rig r;
    struct flush_wait w = {.done = on_flushed}, again = w;

    flushed = 0;
    rig_new(&r);
    for (int i = 0; i < 50; i++)
        CHECK(rig_put(&r, "a", "v", 0) == 0);
    rig_flush(&r);
    apply_defragment(r.apply, &w);
    (void)apply_step(r.apply);
    CHECK(flushed == 1 && w.err == -EOPNOTSUPP);
    open_datadir(&d);
    r.apply->o.datadir = &d;
    r.apply->o.base = rig_base_options(&r);
    apply_defragment(r.apply, &again);
    (void)apply_step(r.apply);
    CHECK(rig_put(&r, "b", "w", 0) == 0); /* while the copy is under way */
    CHECK(flushed == 1);
    (void)apply_flush_step(r.apply);
    (void)apply_step(r.apply);
    CHECK(flushed == 2 && again.err == 0 && d.base == 1);
    rig_flush(&r);
    CHECK_DUMP(&r, 0, "a=v@2.51.50.0 b=w@52.52.1.0");
    CHECK(rig_compact(&r, 52, true) == 0);
    CHECK_DUMP(&r, 52, "a=v@2.51.50.0 b=w@52.52.1.0");
    (void)apply_step(r.apply);
    close_datadir(&d);
    rig_free(&r);
}

/* ---- the scrub ---- */

/* Flush steps, each when it is due, until nothing is for an hour. */
static int scrub_pass(struct rig *r)
{
    for (int n = 1; n < 10000; n++) {
        uint64_t deadline_ms = apply_flush_step(r->apply);

        if (deadline_ms > r->clock.ms + 3600 * 1000)
            return n;
        r->clock.ms = deadline_ms;
    }
    return 0;
}

static void spoil(const struct rig *r, const char *text)
{
    static uint8_t file[8 << 20];
    char path[100];
    ssize_t n;
    int fd;

    snprintf(path, sizeof path, "%s/data.mdb", r->dir);
    fd = open(path, O_RDWR | O_CLOEXEC);
    REQUIRE(fd >= 0 && (n = read(fd, file, sizeof file)) > 0);
    for (uint8_t *at = file; (at = memmem(at, (size_t)(file + n - at), text, strlen(text))) != NULL; at++)
        REQUIRE(pwrite(fd, "#", 1, at - file) == 1);
    close(fd);
}

/* A minute after the start and then once a day all is read, in slices; damage is noticed without anybody asking for
 * it, and the member goes on. */
static void scrub(void)
{
    struct apply_stats st;
    struct rig r;
    char key[16];

    rig_new(&r);
    for (int i = 0; i < 500; i++) {
        snprintf(key, sizeof key, "k%d", i);
        REQUIRE(rig_put(&r, key, i == 300 ? "nobody reads this" : "v", 0) == 0);
    }
    rig_flush(&r);
    CHECK(apply_flush_step(r.apply) > r.clock.ms + 50 * 1000);
    CHECK(scrub_pass(&r) > 1000 / LIMIT_SCRUB_ROWS);
    CHECK(apply_flush_step(r.apply) > r.clock.ms + 23 * 3600 * 1000);
    spoil(&r, "nobody reads this");
    apply_stats(r.apply, &st);
    CHECK(!st.damaged);
    r.clock.ms += 24 * 3600 * 1000;
    (void)scrub_pass(&r);
    apply_stats(r.apply, &st);
    CHECK(st.damaged && r.fatal == 0);
    CHECK(apply_flush_step(r.apply) == UINT64_MAX);
    CHECK(rig_put(&r, "k1", "w", 0) == 0);
    rig_flush(&r);
    rig_free(&r);
}

int main(void)
{
    arena_init(&ar, 64 << 20, NULL, 0);
    TEST(puts_and_deletes);
    TEST(put_flags);
    TEST(txn_order_and_headers);
    TEST(txn_atomic);
    TEST(compaction);
    TEST(leases_and_keys);
    TEST(lease_expiry);
    TEST(alarms);
    TEST(quota);
    TEST(members);
    TEST(stall);
    TEST(no_room);
    TEST(stop_answers);
    TEST(defragmentation);
    TEST(scrub);
    return tap_done();
}
