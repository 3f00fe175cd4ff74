/* SPDX-License-Identifier: Apache-2.0 */
/* svc_maint.c - etcdserverpb.Maintenance: Status, Alarm, Hash, HashKV, Defragment, MoveLeader.
 *
 * Source: reference 02-semantics 2.6; etcd v3.7.1 server/etcdserver/api/v3rpc/maintenance.go.
 *
 * Owner: the call's rpc thread, but for hash_run (a scan thread), defragment_done (apply) and move_done (the turn).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include "crc32c.h"
#include "log.h"
#include "msg.h"
#include "svc.h"

/* ---- Status ---------------------------------------------------------------------------------- */

static const char *alarm_name(int type)
{
    const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(&etcdserverpb__alarm_type__descriptor, type);

    return v ? v->name : NULL;
}

/* The words etcd 3.4 to 3.6 have for an alarm, with their space at the end. */
static char *alarm_text(struct arena *a, const struct alarm *al)
{
    enum { TEXT_BYTES = 80 };
    const char *name = alarm_name(al->type);
    char *p = arena_alloc(a, TEXT_BYTES);

    if (p && name)
        snprintf(p, TEXT_BYTES, "memberID:%" PRIu64 " alarm:%s ", al->member_id, name);
    else if (p)
        snprintf(p, TEXT_BYTES, "memberID:%" PRIu64 " alarm:%d ", al->member_id, al->type);
    return p;
}

/* What is wrong with this member, in words. */
static int status_errors(struct call *c, const struct turn_status *st, bool damaged,
                         Etcdserverpb__StatusResponse *resp)
{
    struct svc *s = call_service(c);
    struct arena *a = call_arena(c);
    struct alarm *alarms = NULL;
    size_t n = apply_alarms(s->apply, a, &alarms);

    resp->errors = arena_alloc(a, (n + 2) * sizeof *resp->errors);
    if (resp->errors == NULL)
        return ERR_ARENA_FULL;
    if (st->leader == 0)
        resp->errors[resp->n_errors++] = (char *)err_info(ERR_NO_LEADER).text;
    if (damaged)
        resp->errors[resp->n_errors++] = (char *)"cairn: the store on this member's disk is damaged; see its log";
    for (size_t i = 0; i < n; i++) {
        char *p = alarm_text(a, &alarms[i]);

        if (p == NULL)
            return ERR_ARENA_FULL;
        resp->errors[resp->n_errors++] = p;
    }
    return 0;
}

/* "3.7.1" is stored as "3.7.0": etcd's storage version has no patch. */
static char *storage_version(struct arena *a, const char *version)
{
    enum { TEXT_BYTES = 32 };
    char *p = arena_alloc(a, TEXT_BYTES);
    unsigned major, minor;

    if (p && sscanf(version, "%u.%u", &major, &minor) == 2)
        snprintf(p, TEXT_BYTES, "%u.%u.0", major, minor);
    return p;
}

static void status_start(struct call *c, const ProtobufCMessage *m)
{
    Etcdserverpb__StatusResponse resp = ETCDSERVERPB__STATUS_RESPONSE__INIT;
    Etcdserverpb__DowngradeInfo downgrade = ETCDSERVERPB__DOWNGRADE_INFO__INIT;
    struct svc *s = call_service(c);
    struct apply_stats stats;
    struct turn_status st;
    int err;

    (void)m;
    turn_status(s->turn, &st);
    apply_stats(s->apply, &stats);
    resp.header = svc_header(c, 0);
    resp.version = (char *)s->version;
    resp.dbsize = (int64_t)stats.db_bytes;
    resp.dbsizeinuse = (int64_t)stats.db_in_use_bytes;
    resp.leader = st.leader;
    resp.raftindex = st.commit;
    resp.raftterm = st.term;
    resp.raftappliedindex = store_applied(s->store);
    resp.islearner = st.is_learner;
    resp.storageversion = storage_version(call_arena(c), s->version);
    resp.dbsizequota = s->quota_bytes;
    resp.downgradeinfo = &downgrade;
    err = resp.header && resp.storageversion ? status_errors(c, &st, stats.damaged, &resp) : ERR_ARENA_FULL;
    if (err)
        call_fail(c, err);
    else
        call_answer(c, &resp.base);
}

/* ---- Alarm ----------------------------------------------------------------------------------- */

static void alarm_answer(struct call *c, struct proposal *p)
{
    Etcdserverpb__AlarmResponse *resp = p->response;

    resp->header = svc_header(c, 0);
    call_answer(c, &resp->base);
}

static void alarm_start(struct call *c, const ProtobufCMessage *m)
{
    const Etcdserverpb__AlarmRequest *req = (const Etcdserverpb__AlarmRequest *)m;

    /* etcd's process dies of it. */
    if ((unsigned)req->action > ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__DEACTIVATE)
        call_fail_text(c, STATUS_INVALID_ARGUMENT, "cairn: an alarm's action is GET, ACTIVATE or DEACTIVATE");
    else
        svc_propose_message(c, ENTRY_ALARM, m, alarm_answer);
}

/* ---- Hash, HashKV ---------------------------------------------------------------------------- */

/* On the scan pool: both read the whole store. */
struct hashing {
    struct scan_job job;
    struct call_resume resume;
    int64_t rev, compact_rev, hash_rev;
    uint32_t hash;
    bool rows; /* Hash: the small tables too */
    int err;
};

/* Rows come in no order: their crcs are added. */
static int hash_row(void *ctx, struct slice id, struct slice value)
{
    *(uint32_t *)ctx += crc32c(crc32c(0, id.ptr, id.len), value.ptr, value.len);
    return 0;
}

/* Hash is this store's own sum of all there is, as etcd's is of its file: two members that hold the same agree. */
static int hash_rows(struct store *s, struct slot *sl, uint32_t *hash)
{
    uint32_t sums[TABLE_MEMBER + 1] = {*hash};
    struct view v;
    int err = view_open(s, sl, &v);

    if (err)
        return err;
    for (int t = TABLE_LEASE; t <= TABLE_MEMBER && !err; t++)
        err = view_row_scan(&v, (enum table)t, hash_row, &sums[t]);
    view_close(&v);
    *hash = crc32c(0, sums, sizeof sums);
    return err;
}

static void hash_run(struct scan_job *j, struct slot *sl)
{
    struct hashing *h = (struct hashing *)j;
    struct svc *s = call_service(h->resume.call);

    h->err = apply_hashkv(s->apply, sl, h->rev, &h->hash, &h->compact_rev, &h->hash_rev);
    if (!h->err && h->rows)
        h->err = hash_rows(s->store, sl, &h->hash);
    call_resume(&h->resume);
}

static void hash_resumed(struct call *c, struct call_resume *r)
{
    struct hashing *h = (struct hashing *)((uint8_t *)r - offsetof(struct hashing, resume));
    Etcdserverpb__HashKVResponse kv = ETCDSERVERPB__HASH_KVRESPONSE__INIT;
    Etcdserverpb__HashResponse all = ETCDSERVERPB__HASH_RESPONSE__INIT;

    kv.header = all.header = svc_header(c, 0);
    kv.hash = all.hash = h->hash;
    kv.compact_revision = h->compact_rev;
    kv.hash_revision = h->hash_rev;
    if (h->err)
        call_fail(c, h->err);
    else
        call_answer(c, h->rows ? &all.base : &kv.base);
    call_unref(c);
}

static void hash(struct call *c, int64_t rev, bool rows)
{
    struct svc *s = call_service(c);
    struct hashing *h = arena_alloc(call_arena(c), sizeof *h);
    int err;

    if (h == NULL) {
        call_fail(c, ERR_ARENA_FULL);
        return;
    }
    h->job.run = hash_run;
    h->resume = (struct call_resume){.call = c, .fn = hash_resumed};
    h->rev = rev;
    h->rows = rows;
    call_ref(c);
    err = scan_pool_post(s->scan, &h->job);
    if (err) {
        call_fail(c, err);
        call_unref(c);
    }
}

static void hash_start(struct call *c, const ProtobufCMessage *m)
{
    (void)m;
    hash(c, 0, true);
}

static void hashkv_start(struct call *c, const ProtobufCMessage *m)
{
    hash(c, ((const Etcdserverpb__HashKVRequest *)m)->revision, false);
}

/* ---- Defragment ------------------------------------------------------------------------------- */

struct defragmenting {
    struct flush_wait wait;
    struct call_resume resume;
};

static void defragment_done(struct flush_wait *w)
{
    call_resume(&((struct defragmenting *)w)->resume);
}

static void defragment_resumed(struct call *c, struct call_resume *r)
{
    struct defragmenting *d = (struct defragmenting *)((uint8_t *)r - offsetof(struct defragmenting, resume));
    Etcdserverpb__DefragmentResponse resp = ETCDSERVERPB__DEFRAGMENT_RESPONSE__INIT;

    if (d->wait.err == -ENOSPC)
        call_fail_text(c, STATUS_RESOURCE_EXHAUSTED, "cairn: defragmenting needs room for a copy of the store");
    else if (d->wait.err)
        call_fail(c, d->wait.err == -ECANCELED ? ERR_STOPPED : d->wait.err);
    else
        call_answer(c, &resp.base); /* no header, as in etcd */
    call_unref(c);
}

static void defragment_start(struct call *c, const ProtobufCMessage *m)
{
    struct svc *s = call_service(c);
    struct defragmenting *d = arena_alloc(call_arena(c), sizeof *d);

    (void)m;
    if (d == NULL) {
        call_fail(c, ERR_ARENA_FULL);
        return;
    }
    d->wait.done = defragment_done;
    d->resume = (struct call_resume){.call = c, .fn = defragment_resumed};
    call_ref(c);
    apply_defragment(s->apply, &d->wait);
}

/* ---- MoveLeader ------------------------------------------------------------------------------- */

struct moving {
    struct transfer_wait wait;
    struct call_resume resume;
};

static void move_done(struct transfer_wait *w)
{
    call_resume(&((struct moving *)w)->resume);
}

static void move_resumed(struct call *c, struct call_resume *r)
{
    struct moving *mv = (struct moving *)((uint8_t *)r - offsetof(struct moving, resume));
    struct svc *s = call_service(c);
    Etcdserverpb__MoveLeaderResponse resp = ETCDSERVERPB__MOVE_LEADER_RESPONSE__INIT;

    log_info(mv->wait.err ? "leadership transfer failed" : "leadership transfer finished", LOG_HEX("local-member-id", s->member_id),
             LOG_HEX("transferee-member-id", mv->wait.member), LOG_STR("error", mv->wait.err ? err_info(mv->wait.err).text : ""));
    if (mv->wait.err == ERR_TIMEOUT)
        call_fail_text(c, STATUS_UNKNOWN, "etcdserver: request timed out, leader transfer took too long");
    else if (mv->wait.err)
        call_fail(c, mv->wait.err);
    else
        call_answer(c, &resp.base); /* no header, as in etcd */
    call_unref(c);
}

static bool is_voter(struct call *c, uint64_t id)
{
    struct svc *s = call_service(c);
    struct member *members = NULL;
    size_t n = apply_members(s->apply, call_arena(c), &members);

    for (size_t i = 0; i < n; i++)
        if (members[i].id == id)
            return !members[i].is_learner;
    return false;
}

static void move_leader_start(struct call *c, const ProtobufCMessage *m)
{
    uint64_t to = ((const Etcdserverpb__MoveLeaderRequest *)m)->targetid;
    Etcdserverpb__MoveLeaderResponse resp = ETCDSERVERPB__MOVE_LEADER_RESPONSE__INIT;
    struct moving *mv = arena_alloc(call_arena(c), sizeof *mv);
    struct svc *s = call_service(c);
    struct turn_status st;

    turn_status(s->turn, &st);
    if (mv == NULL || !st.is_leader || !is_voter(c, to)) {
        call_fail(c, mv == NULL ? ERR_ARENA_FULL : st.is_leader ? ERR_BAD_TRANSFEREE : ERR_NOT_LEADER);
        return;
    }
    if (to == s->member_id) {
        call_answer(c, &resp.base);
        return;
    }
    log_info("leadership transfer starting", LOG_HEX("local-member-id", s->member_id), LOG_HEX("transferee-member-id", to));
    mv->wait = (struct transfer_wait){.member = to, .done = move_done};
    mv->resume = (struct call_resume){.call = c, .fn = move_resumed};
    call_ref(c);
    turn_transfer(s->turn, &mv->wait);
}

/* ---- not there yet ------------------------------------------------------------------------------ */

static void snapshot_later(struct call *c, const ProtobufCMessage *m)
{
    (void)m;
    call_fail_text(c, STATUS_UNIMPLEMENTED, "cairn: Snapshot is not there yet; copy the data directory of a stopped "
                                            "member, or use etcdctl make-mirror");
}

static void downgrade_later(struct call *c, const ProtobufCMessage *m)
{
    (void)m;
    call_fail_text(c, STATUS_UNIMPLEMENTED, "cairn: there is no version to downgrade to");
}

#define MAINT "etcdserverpb.Maintenance"

static const struct rpc_method methods[] = {
    {.service = MAINT, .name = "Alarm", .kind = RPC_UNARY, .access = ACCESS_ROOT,
     .request = &etcdserverpb__alarm_request__descriptor, .start = alarm_start},
    {.service = MAINT, .name = "Status", .kind = RPC_UNARY, .access = ACCESS_USER,
     .request = &etcdserverpb__status_request__descriptor, .start = status_start},
    {.service = MAINT, .name = "Defragment", .kind = RPC_UNARY, .access = ACCESS_ROOT,
     .request = &etcdserverpb__defragment_request__descriptor, .start = defragment_start},
    {.service = MAINT, .name = "Hash", .kind = RPC_UNARY, .access = ACCESS_ROOT,
     .request = &etcdserverpb__hash_request__descriptor, .start = hash_start},
    {.service = MAINT, .name = "HashKV", .kind = RPC_UNARY, .access = ACCESS_ROOT,
     .request = &etcdserverpb__hash_kvrequest__descriptor, .start = hashkv_start},
    {.service = MAINT, .name = "Snapshot", .kind = RPC_SERVER_STREAM, .access = ACCESS_ROOT,
     .request = &etcdserverpb__snapshot_request__descriptor, .start = snapshot_later},
    {.service = MAINT, .name = "MoveLeader", .kind = RPC_UNARY, .access = ACCESS_ROOT,
     .request = &etcdserverpb__move_leader_request__descriptor, .start = move_leader_start},
    {.service = MAINT, .name = "Downgrade", .kind = RPC_UNARY, .access = ACCESS_ROOT,
     .request = &etcdserverpb__downgrade_request__descriptor, .start = downgrade_later},
};

const struct svc_service svc_maint = {methods, sizeof methods / sizeof methods[0]};
