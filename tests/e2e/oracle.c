/* SPDX-License-Identifier: Apache-2.0 */
/* oracle.c - two servers, one stream of random operations, in lockstep: every answer must be the same.
 *
 *     oracle ADDRESS ADDRESS [operations]
 *
 * From the environment: SEED (printed); LEAVE_OUT, words among keys_only (etcd 3.7 leaves the lease out of such
 * answers) and watch.
 *
 * Operations: Put, Range with every option, DeleteRange, Txn with nested ones, Compact, the lease calls, HashKV, and
 * watches, of the past and live. Answers are compared as text, without what may differ: cluster_id, member_id,
 * raft_term, a lease's remaining TTL, hash_revision (not in etcd 3.4). Where etcd leaves the order open (equal sort
 * keys, Leases) it is made the same first.
 *
 * Not asked, because etcd 3.4 differs from 3.7 or falls over: sort enums out of range; HashKV at or below the
 * compacted revision (of etcd 3.6 and later: of compactions made in this run); a compaction to 0, of which etcd 3.6
 * keeps a hash for HashKV(0); a from-key delete and an ignore_value put in one txn; a watch from the compacted
 * revision. */
#include "oracle_wire.inc"
#include "oracle_requests.inc"

static long n_errors, n_events, n_asked[32];
static bool ask_watches = true;

/* ---- what etcd leaves open, made the same ------------------------------------------------------ */

static int64_t sort_number(const Mvccpb__KeyValue *kv, int target)
{
    return target == ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VERSION  ? kv->version
           : target == ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__CREATE ? kv->create_revision
                                                                        : kv->mod_revision;
}

static bool ties(const Mvccpb__KeyValue *a, const Mvccpb__KeyValue *b, int target)
{
    if (target == ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__KEY)
        return false;
    if (target == ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VALUE)
        return slice_eq(slice_of(a->value.data, a->value.len), slice_of(b->value.data, b->value.len));
    return sort_number(a, target) == sort_number(b, target);
}

/* Equals by key; and of those that tie with the last of a cut answer, which of them came is open: dropped. */
static void settle_range(const Etcdserverpb__RangeRequest *q, Etcdserverpb__RangeResponse *r)
{
    bool hidden = q->keys_only && q->sort_target == ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VALUE;
    size_t keep = r->n_kvs;

    for (size_t i = 1; i < r->n_kvs; i++)
        for (size_t k = i; k > 0 && ties(r->kvs[k - 1], r->kvs[k], q->sort_target) &&
                           slice_cmp(slice_of(r->kvs[k]->key.data, r->kvs[k]->key.len),
                                     slice_of(r->kvs[k - 1]->key.data, r->kvs[k - 1]->key.len)) < 0;
             k--) {
            Mvccpb__KeyValue *swap = r->kvs[k];

            r->kvs[k] = r->kvs[k - 1];
            r->kvs[k - 1] = swap;
        }
    if (!r->more || q->sort_target == ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__KEY)
        return;
    while (keep > 0 && (hidden || ties(r->kvs[keep - 1], r->kvs[r->n_kvs - 1], q->sort_target)))
        keep--;
    for (; r->n_kvs > keep; r->n_kvs--)
        mvccpb__key_value__free_unpacked(r->kvs[r->n_kvs - 1], NULL);
}

static int by_lease(const void *a, const void *b)
{
    int64_t x = (*(Etcdserverpb__LeaseStatus *const *)a)->id,
            y = (*(Etcdserverpb__LeaseStatus *const *)b)->id;

    return (x > y) - (x < y);
}

static int by_bytes(const void *a, const void *b)
{
    const ProtobufCBinaryData *x = a, *y = b;

    return slice_cmp(slice_of(x->data, x->len), slice_of(y->data, y->len));
}

static void settle(const ProtobufCMessage *req, ProtobufCMessage *m)
{
    if (m->descriptor == &etcdserverpb__range_response__descriptor)
        settle_range((const Etcdserverpb__RangeRequest *)req, (Etcdserverpb__RangeResponse *)m);
    if (m->descriptor == &etcdserverpb__lease_leases_response__descriptor) {
        Etcdserverpb__LeaseLeasesResponse *r = (Etcdserverpb__LeaseLeasesResponse *)m;

        if (r->n_leases)
            qsort(r->leases, r->n_leases, sizeof *r->leases, by_lease);
    }
    if (m->descriptor == &etcdserverpb__lease_time_to_live_response__descriptor) {
        Etcdserverpb__LeaseTimeToLiveResponse *r = (Etcdserverpb__LeaseTimeToLiveResponse *)m;

        if (r->n_keys)
            qsort(r->keys, r->n_keys, sizeof *r->keys, by_bytes);
    }
}

/* ---- one operation ------------------------------------------------------------------------------- */

static void show(const char *method, const ProtobufCMessage *req)
{
    char *text = calloc(1, TEXT_BYTES);
    struct text t = {text, TEXT_BYTES};

    say_message(&t, req, 0);
    printf("# %s%s\n", method, text);
    free(text);
}

/* A txn with several things wrong is refused for one of them: for which differs between 3.4 and 3.7. */
static bool both_refuse_txn(const ProtobufCMessage *req)
{
    static const char ok[] = "status 0 ";

    return req->descriptor == &etcdserverpb__txn_request__descriptor &&
           strncmp(servers[0].text, ok, strlen(ok)) && strncmp(servers[1].text, ok, strlen(ok));
}

static void compare(const char *method, const ProtobufCMessage *req)
{
    if (strcmp(servers[0].text, servers[1].text) == 0 || both_refuse_txn(req))
        return;
    show(method, req);
    for (int i = 0; i < 2; i++)
        printf("# %s: %s\n", servers[i].address, servers[i].text);
    die("not ok - they differ (compacted %lld)", (long long)compacted);
}

/* Both answers; compared. Returns the first server's, to be freed with protobuf_c; NULL: an error. */
static ProtobufCMessage *ask(const char *method, const ProtobufCMessage *req,
                             const ProtobufCMessageDescriptor *rd)
{
    ProtobufCMessage *first = NULL;

    for (int i = 0; i < 2; i++)
        unary_start(&servers[i], method, req);
    for (int i = 0; i < 2; i++)
        (void)wait_one(CALL_S + 5);
    for (int i = 0; i < 2; i++) {
        struct answer a = take(&servers[i]);
        struct text t = {servers[i].text, TEXT_BYTES};
        ProtobufCMessage *m = a.bytes ? protobuf_c_message_unpack(rd, NULL, a.len, a.bytes) : NULL;

        if (a.bytes && m == NULL)
            die("not ok - %s answers %s with what is no message", servers[i].address, method);
        say(&t, "status %d \"%s\"", a.status, a.details);
        if (a.status == GRPC_STATUS_OK && m == NULL)
            die("not ok - %s answers %s with OK and nothing", servers[i].address, method);
        if (m) {
            settle(req, m);
            say_message(&t, m, 0);
        }
        n_errors += i == 0 && a.status != GRPC_STATUS_OK;
        answer_free(&a);
        call_close(&servers[i]);
        if (i == 0)
            first = m;
        else if (m)
            protobuf_c_message_free_unpacked(m, NULL);
    }
    compare(method, req);
    return first;
}

#define RESPONSE(type) &etcdserverpb__##type##_response__descriptor

/* Notes the revision an answer tells, if it came. */
static void note(ProtobufCMessage *m)
{
    const Etcdserverpb__ResponseHeader *h;

    if (m == NULL)
        return;
    /* Of every answer asked for here the header is the first field. */
    assert(strcmp(m->descriptor->fields[0].name, "header") == 0);
    h = *(Etcdserverpb__ResponseHeader **)((uint8_t *)m + m->descriptor->fields[0].offset);
    if (h && h->revision > revision)
        revision = h->revision;
    protobuf_c_message_free_unpacked(m, NULL);
}

/* ---- watches --------------------------------------------------------------------------------------------- */

/* A call on a queue of its own; what is under way is counted, so that the end waits for it. */
struct watch {
    struct server *server;
    grpc_completion_queue *cq;
    grpc_call *call;
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *received;
    grpc_slice details;
    grpc_status_code status;
    int n_under_way;
    struct text t;
};

enum { TAG_RECEIVED = 1, TAG_OTHER = 2 };

static void watch_post(struct watch *w, const grpc_op *ops, size_t n, intptr_t tag)
{
    if (grpc_call_start_batch(w->call, ops, n, (void *)tag, NULL) != GRPC_CALL_OK)
        die("watch: grpc_call_start_batch");
    w->n_under_way++;
}

static void watch_send(struct watch *w, const Etcdserverpb__WatchRequest *req)
{
    grpc_byte_buffer *b = pack(&req->base);
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = b};

    watch_post(w, &op, 1, TAG_OTHER);
    grpc_byte_buffer_destroy(b);
}

static void watch_receive(struct watch *w)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &w->received};

    watch_post(w, &op, 1, TAG_RECEIVED);
}

/* The next thing that is done; 0: none in that time. */
static intptr_t watch_wait(struct watch *w, int ms)
{
    gpr_timespec until = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(ms, GPR_TIMESPAN));
    grpc_event e = grpc_completion_queue_next(w->cq, until, NULL);

    if (e.type != GRPC_OP_COMPLETE)
        return 0;
    w->n_under_way--;
    return (intptr_t)e.tag;
}

/* text has TEXT_BYTES. */
static void watch_open(struct watch *w, struct server *sv, char *text)
{
    grpc_slice method = grpc_slice_from_static_string("/etcdserverpb.Watch/Watch");
    grpc_op start[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata.recv_initial_metadata = &w->initial},
    };
    grpc_op end = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                   .data.recv_status_on_client = {.trailing_metadata = &w->trailing,
                                                  .status = &w->status,
                                                  .status_details = &w->details}};

    *w = (struct watch){
        .server = sv, .cq = grpc_completion_queue_create_for_next(NULL), .t = {text, TEXT_BYTES}};
    *text = 0;
    w->call = grpc_channel_create_call(sv->channel, NULL, GRPC_PROPAGATE_DEFAULTS, w->cq, method, NULL,
                                       in_seconds(CALL_S), NULL);
    grpc_metadata_array_init(&w->initial);
    grpc_metadata_array_init(&w->trailing);
    watch_post(w, start, 2, TAG_OTHER);
    watch_post(w, &end, 1, TAG_OTHER);
    watch_receive(w);
}

static void watch_close(struct watch *w)
{
    grpc_call_cancel(w->call, NULL);
    while (w->n_under_way > 0)
        if (watch_wait(w, 1000 * CALL_S) == 0)
            die("watch: does not end");
    grpc_slice_unref(w->details);
    grpc_call_unref(w->call);
    grpc_metadata_array_destroy(&w->initial);
    grpc_metadata_array_destroy(&w->trailing);
    if (w->received)
        grpc_byte_buffer_destroy(w->received);
    grpc_completion_queue_shutdown(w->cq);
    grpc_completion_queue_destroy(w->cq);
}

/* One response: its events go into the text. True: the event of revision `last` has come, or the watch is over. */
static bool watch_take(struct watch *w, int64_t last)
{
    struct server *sv = w->server;
    grpc_byte_buffer_reader reader;
    Etcdserverpb__WatchResponse *r;
    grpc_slice all;
    bool done = false;

    if (w->received == NULL)
        die("not ok - %s ends a watch", sv->address);
    grpc_byte_buffer_reader_init(&reader, w->received);
    all = grpc_byte_buffer_reader_readall(&reader);
    r = etcdserverpb__watch_response__unpack(NULL, GRPC_SLICE_LENGTH(all), GRPC_SLICE_START_PTR(all));
    grpc_slice_unref(all);
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(w->received);
    w->received = NULL;
    if (r == NULL)
        die("not ok - %s: no watch response", sv->address);
    if (r->created || r->canceled)
        say(&w->t, "\n#   created %d canceled %d id %lld compacted %lld \"%s\"", r->created, r->canceled,
            (long long)r->watch_id, (long long)r->compact_revision, r->cancel_reason);
    for (size_t i = 0; i < r->n_events; i++) {
        say(&w->t, "\n#   ");
        say_message(&w->t, &r->events[i]->base, 0);
        done = done || r->events[i]->kv->mod_revision >= last;
        n_events++;
    }
    done = done || r->canceled;
    etcdserverpb__watch_response__free_unpacked(r, NULL);
    return done;
}

/* Takes responses until the event of revision `last` has come or the watch is over; with last 0, one response. */
static void watch_collect(struct watch *w, const Etcdserverpb__WatchRequest *create, int64_t last)
{
    gpr_timespec end = in_seconds(CALL_S - 5);

    for (;;) {
        if (watch_wait(w, 1000) == TAG_RECEIVED) {
            if (watch_take(w, last) || last == 0)
                break;
            watch_receive(w);
        }
        if (gpr_time_cmp(gpr_now(GPR_CLOCK_MONOTONIC), end) > 0) {
            show("watch", &create->base);
            die("not ok - %s: a watch that does not come to %lld:%s", w->server->address, (long long)last,
                w->server->text);
        }
    }
}

/* The last events of the range are made here, a put and a delete of its first key: when the last of them that the
 * filter lets through has come, all has. Progress would not say so: etcd 3.4 tells it of a watcher that is behind. */
static int64_t make_last_events(const Etcdserverpb__WatchCreateRequest *c)
{
    Etcdserverpb__PutRequest *put = message(&etcdserverpb__put_request__descriptor);
    Etcdserverpb__DeleteRangeRequest *delete = message(&etcdserverpb__delete_range_request__descriptor);
    int64_t of_put;

    put->key = delete->key = c->key;
    note(ask("/etcdserverpb.KV/Put", &put->base, RESPONSE(put)));
    of_put = revision;
    note(ask("/etcdserverpb.KV/DeleteRange", &delete->base, RESPONSE(delete_range)));
    return c->n_filters && c->filters[0] == ETCDSERVERPB__WATCH_CREATE_REQUEST__FILTER_TYPE__NODELETE
               ? of_put
               : revision;
}

static void write_some(void)
{
    for (size_t n = 1 + below(30); n > 0; n--) {
        if (one_in(3))
            note(ask("/etcdserverpb.KV/Txn", &some_txn(2, false)->base, RESPONSE(txn)));
        else if (one_in(3))
            note(ask("/etcdserverpb.KV/DeleteRange", &some_delete()->base, RESPONSE(delete_range)));
        else
            note(ask("/etcdserverpb.KV/Put", &some_put(true)->base, RESPONSE(put)));
    }
}

static Etcdserverpb__WatchRequest *some_watch(bool live)
{
    Etcdserverpb__WatchRequest *q = message(&etcdserverpb__watch_request__descriptor);
    Etcdserverpb__WatchCreateRequest *c = message(&etcdserverpb__watch_create_request__descriptor);
    int64_t first = compacted < 0 ? 1 : compacted + 1;

    q->request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
    q->create_request = c;
    c->key = one_in(2) ? bytes_copy("\0", 1) : some_key();
    c->range_end = one_in(2) ? bytes_copy("\0", 1) : some_end(c->key);
    if (!live && one_in(6) && compacted > 1)
        c->start_revision = 1 + (int64_t)below((size_t)compacted - 1); /* to be cancelled */
    else if (!live && first <= revision)
        c->start_revision = first + (int64_t)below((size_t)(revision - first) + 1);
    else if (live && one_in(3))
        c->start_revision = revision + 1 + (int64_t)below(3); /* of the future, and all the same in reach */
    c->prev_kv = one_in(2);
    c->n_filters = one_in(3);
    c->filters = arena_alloc(&arena, sizeof *c->filters);
    c->filters[0] = (int)below(2);
    c->watch_id = one_in(3) ? (int64_t)below(9) - 2 : 0; /* any but a counted-up one */
    return q;
}

/* Of the past: what is there already. Live: opened first, then written to. */
static void ask_watch(void)
{
    bool live = one_in(2);
    Etcdserverpb__WatchRequest *q = some_watch(live);
    int64_t last = live ? 0 : make_last_events(q->create_request);
    char *texts[2];
    struct watch w[2];

    for (int i = 0; i < 2; i++) {
        texts[i] = servers[i].text;
        servers[i].text = malloc(TEXT_BYTES); /* the other calls meanwhile have theirs */
        watch_open(&w[i], &servers[i], texts[i]);
        watch_send(&w[i], q);
        if (live) {
            watch_collect(&w[i], q, 0);
            watch_receive(&w[i]);
        }
    }
    if (live) {
        write_some();
        while (last == 0 || revision < q->create_request->start_revision)
            last = make_last_events(q->create_request);
        last = make_last_events(q->create_request);
    }
    for (int i = 0; i < 2; i++) {
        watch_collect(&w[i], q, last);
        watch_close(&w[i]);
        free(servers[i].text);
        servers[i].text = texts[i];
    }
    compare("watch", &q->base);
}

/* ---- the run ------------------------------------------------------------------------------------------------ */

/* What was compacted to in this run, and whether the etcd keeps hashes of that (3.6; 3.5.5 does, but does not show). */
static int64_t compactions[1000];
static size_t n_compactions;
static bool keeps_hashes;

static void ask_compact(void)
{
    Etcdserverpb__CompactionRequest *q = message(&etcdserverpb__compaction_request__descriptor);
    ProtobufCMessage *m;

    q->revision = some_revision();
    if (q->revision > revision - 50 && !one_in(4))
        q->revision = compacted + (revision - compacted) / 2; /* leave some past to read */
    if (keeps_hashes && q->revision == 0 && compacted < 0)
        q->revision = 1;
    q->physical = true;
    m = ask("/etcdserverpb.KV/Compact", &q->base, RESPONSE(compaction));
    if (m)
        compacted = q->revision;
    if (m && n_compactions < sizeof compactions / sizeof compactions[0])
        compactions[n_compactions++] = q->revision;
    note(m);
}

static void ask_lease(void)
{
    int64_t id = 1 + (int64_t)below(LEASES);
    size_t what = below(10);

    if (what < 4) {
        Etcdserverpb__LeaseGrantRequest *q = message(&etcdserverpb__lease_grant_request__descriptor);

        q->id = id;
        q->ttl = one_in(10) ? 9000000001 : 3600 + (int64_t)below(1000);
        note(ask("/etcdserverpb.Lease/LeaseGrant", &q->base, RESPONSE(lease_grant)));
    } else if (what < 6) {
        Etcdserverpb__LeaseRevokeRequest *q = message(&etcdserverpb__lease_revoke_request__descriptor);

        q->id = id;
        note(ask("/etcdserverpb.Lease/LeaseRevoke", &q->base, RESPONSE(lease_revoke)));
    } else if (what < 9) {
        Etcdserverpb__LeaseTimeToLiveRequest *q =
            message(&etcdserverpb__lease_time_to_live_request__descriptor);

        q->id = id;
        q->keys = !one_in(4);
        note(ask("/etcdserverpb.Lease/LeaseTimeToLive", &q->base, RESPONSE(lease_time_to_live)));
    } else {
        Etcdserverpb__LeaseLeasesRequest *q = message(&etcdserverpb__lease_leases_request__descriptor);

        note(ask("/etcdserverpb.Lease/LeaseLeases", &q->base, RESPONSE(lease_leases)));
    }
}

static void ask_hash(void)
{
    Etcdserverpb__HashKVRequest *q = message(&etcdserverpb__hash_kvrequest__descriptor);

    if (keeps_hashes && n_compactions && one_in(2))
        q->revision = compactions[below(n_compactions)];
    else if (revision <= compacted)
        return;
    else
        q->revision = one_in(2)   ? 0
                      : one_in(5) ? revision + 1
                                  : compacted + 1 + (int64_t)below((size_t)(revision - compacted));
    if (q->revision == 0 && compacted < 0 && one_in(2))
        q->revision = 1;
    note(ask("/etcdserverpb.Maintenance/HashKV", &q->base, &etcdserverpb__hash_kvresponse__descriptor));
}

enum { PUT, RANGE, DELETE, TXN, COMPACT, LEASE, HASH, WATCH, KINDS };

static void step(void)
{
    static const int of_a_thousand[KINDS] = {[PUT] = 250,   [RANGE] = 336, [DELETE] = 60, [TXN] = 270,
                                             [COMPACT] = 4, [LEASE] = 60,  [HASH] = 12,   [WATCH] = 8};
    int dice = (int)below(1000), kind = 0;

    while (dice >= of_a_thousand[kind])
        dice -= of_a_thousand[kind++];
    n_asked[kind]++;
    switch (kind) {
    case PUT:
        note(ask("/etcdserverpb.KV/Put", &some_put(true)->base, RESPONSE(put)));
        break;
    case RANGE:
        note(ask("/etcdserverpb.KV/Range", &some_range(false)->base, RESPONSE(range)));
        break;
    case DELETE:
        note(ask("/etcdserverpb.KV/DeleteRange", &some_delete()->base, RESPONSE(delete_range)));
        break;
    case TXN:
        note(ask("/etcdserverpb.KV/Txn", &some_txn(2, one_in(4))->base, RESPONSE(txn)));
        break;
    case COMPACT:
        ask_compact();
        break;
    case LEASE:
        ask_lease();
        break;
    case HASH:
        ask_hash();
        break;
    case WATCH:
        if (ask_watches)
            ask_watch();
        break;
    }
}

/* Until both answer. */
static void wait_ready(struct server *sv)
{
    Etcdserverpb__RangeRequest q = ETCDSERVERPB__RANGE_REQUEST__INIT;
    time_t end = time(NULL) + 30;

    q.key = (ProtobufCBinaryData){1, (uint8_t *)"k"};
    for (;;) {
        struct answer a;

        unary_start(sv, "/etcdserverpb.KV/Range", &q.base);
        (void)wait_one(CALL_S + 5);
        a = take(sv);
        call_close(sv);
        answer_free(&a);
        if (a.status == GRPC_STATUS_OK)
            return;
        if (time(NULL) > end)
            die("not ok - %s does not answer: status %d", sv->address, a.status);
    }
}

/* The servers may have a past already, the same one. */
static void learn(void)
{
    Etcdserverpb__PutRequest *put = message(&etcdserverpb__put_request__descriptor);
    Etcdserverpb__HashKVRequest *hash = message(&etcdserverpb__hash_kvrequest__descriptor);
    Etcdserverpb__HashKVResponse *m;

    put->key =
        bytes_copy("learn", 5); /* then the newest revision is above the compacted one: 3.4 hashes no other */
    note(ask("/etcdserverpb.KV/Put", &put->base, RESPONSE(put)));
    m = (Etcdserverpb__HashKVResponse *)ask("/etcdserverpb.Maintenance/HashKV", &hash->base,
                                            &etcdserverpb__hash_kvresponse__descriptor);
    if (m) {
        compacted = m->compact_revision;
        keeps_hashes = m->hash_revision != 0;
    }
    note((ProtobufCMessage *)m);
}

int main(int argc, char **argv)
{
    grpc_channel_credentials *plain;
    grpc_arg args[] = {
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_ENABLE_HTTP_PROXY, .value.integer = 0},
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, .value.integer = -1},
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS,
         .value.integer = 100},
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, .value.integer = 500},
    };
    grpc_channel_args channel_args = {sizeof args / sizeof args[0], args};
    int operations = argc > 3 ? atoi(argv[3]) : 10000;

    if (argc < 3)
        die("usage: oracle ADDRESS ADDRESS [operations]");
    setvbuf(stdout, NULL, _IOLBF, 0);
    seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 0)
                          : (uint64_t)time(NULL) * 2654435761u + (uint64_t)getpid();
    if (getenv("LEAVE_OUT")) {
        ask_keys_only = strstr(getenv("LEAVE_OUT"), "keys_only") == NULL;
        ask_watches = strstr(getenv("LEAVE_OUT"), "watch") == NULL;
    }
    printf("# SEED=%llu\n", (unsigned long long)seed);
    grpc_init();
    cq = grpc_completion_queue_create_for_next(NULL);
    plain = grpc_insecure_credentials_create();
    for (int i = 0; i < 2; i++) {
        servers[i].address = argv[1 + i];
        servers[i].channel = grpc_channel_create(argv[1 + i], plain, &channel_args);
        servers[i].text = malloc(TEXT_BYTES);
        wait_ready(&servers[i]);
    }
    arena_init(&arena, 64 << 20, NULL, 0);
    learn();
    for (int i = 0; i < operations; i++) {
        step();
        arena_fini(&arena);
    }
    printf("# revision %lld, compacted %lld; %ld puts, %ld ranges, %ld deletes, %ld txns, %ld compactions, "
           "%ld lease calls, "
           "%ld hashes, %ld watches (%ld events); %ld answers were errors\n",
           (long long)revision, (long long)compacted, n_asked[PUT], n_asked[RANGE], n_asked[DELETE],
           n_asked[TXN], n_asked[COMPACT], n_asked[LEASE], n_asked[HASH], n_asked[WATCH], n_events / 2,
           n_errors);
    printf("ok - %d operations, the same answers\n", operations);
    for (int i = 0; i < 2; i++) {
        grpc_channel_destroy(servers[i].channel);
        free(servers[i].text);
    }
    grpc_channel_credentials_release(plain);
    grpc_completion_queue_shutdown(cq);
    grpc_completion_queue_destroy(cq);
    grpc_shutdown();
    return 0;
}
