/* SPDX-License-Identifier: Apache-2.0 */
/* kv.h - the language of the traces of mvcc, txn and watch: words become a request, a response becomes words.
 *
 *     put KEY VALUE [lease N] [prev] [ignore_value] [ignore_lease]
 *     range KEYS [rev N] [limit N] [sort ORDER [TARGET]] [min_mod N] [max_mod N] [min_create N] [max_create N]
 *                [keys_only] [count_only] [serializable]
 *     delete KEYS [prev]
 *     txn [if CMP, ...] [then OP, ...] [else OP, ...]       compact N [physical]
 *     grant ID TTL      revoke ID      ttl ID [keys]        leases
 *     watch KEYS [rev N] [id N] [prev] [noput] [nodelete] [fragment] [notify]       cancel ID       progress
 *
 * KEYS   k          one key           a..d    a <= key < d           a..    from a on
 * CMP    TARGET KEYS = N, and != < >; TARGET is version, create, mod, lease or value
 * OP     a put, range or delete as above; "( if ... then ... else ... )" is a txn; "nothing" is an op with no request;
 *        "times N OP" is N of it
 *
 * Keys and values are bytes: \0 and \xHH are one, "" is none, x*300 is 300 of x.
 *
 * An answer begins with the revision of its header. Of a key all that is not zero is shown. A refusal is the gRPC
 * status and the text. What a server is, who runs the trace says: struct kv_server.
 */
#pragma once
#include <ctype.h>
#include <inttypes.h>
#include "daemon/msg.h"
#include "err.h"
#include "rpc.pb-c.h"
#include "trace.h"

enum kv_method {
    KV_RANGE,
    KV_PUT,
    KV_DELETE,
    KV_TXN,
    KV_COMPACT,
    LEASE_GRANT,
    LEASE_REVOKE,
    LEASE_TTL,
    LEASE_LIST
};

/* Of the last call: valid until the next. */
struct kv_answer {
    enum status status;
    const char *text;    /* of a refusal */
    ProtobufCMessage *m; /* of the method's response */
};

struct kv_server {
    void (*call)(struct kv_server *s, enum kv_method method, const ProtobufCMessage *req,
                 struct kv_answer *ret);
    /* NULL: no watches. send hands over; take gives what has come, one after the other, and NULL in the end; the
     * response lives until the next call. */
    void (*watch_send)(struct kv_server *s, const Etcdserverpb__WatchRequest *req);
    Etcdserverpb__WatchResponse *(*watch_take)(struct kv_server *s);
    /* A command that is none of the above: false if it does not know it either. */
    bool (*command)(struct kv_server *s, FILE *out, int n, char **words);
};

/* ---- words to requests -------------------------------------------------------------------- */

enum { KV_TOKENS_MAX = 400, KV_OPS_MAX = 200 };

struct kv_words {
    const char *w[KV_TOKENS_MAX];
    int n, at;
    const char *bad; /* the first that was not understood */
    struct arena a;  /* of one command */
};

static bool kv_take(struct kv_words *q, const char *word)
{
    if (q->at == q->n || strcmp(q->w[q->at], word) != 0)
        return false;
    q->at++;
    return true;
}

static const char *kv_word(struct kv_words *q)
{
    if (q->at < q->n)
        return q->w[q->at++];
    q->bad = q->bad ? q->bad : "the end";
    return "";
}

static int64_t kv_number(struct kv_words *q)
{
    const char *w = kv_word(q);
    char *end;
    int64_t v = strtoll(w, &end, 10);

    if (*end || end == w)
        q->bad = q->bad ? q->bad : w;
    return v;
}

/* "name N", if it is there. */
static bool kv_option(struct kv_words *q, const char *name, int64_t *ret_v)
{
    if (!kv_take(q, name))
        return false;
    *ret_v = kv_number(q);
    return true;
}

static ProtobufCBinaryData kv_bytes_of(struct kv_words *q, const char *w, size_t len)
{
    const char *star = memchr(w, '*', len);
    size_t times = star ? strtoul(star + 1, NULL, 10) : 1;
    ProtobufCBinaryData b = {0, arena_alloc(&q->a, len + times + 1)};

    if (len == 2 && memcmp(w, "\"\"", 2) == 0)
        return b;
    if (star && star == w + 1) {
        memset(b.data, *w, times);
        b.len = times;
        return b;
    }
    for (const char *end = w + len; w < end; b.len++) {
        unsigned hex;

        if (w + 1 < end && w[0] == '\\' && w[1] == '0') {
            b.data[b.len] = 0;
            w += 2;
        } else if (w + 3 < end && w[0] == '\\' && w[1] == 'x' && sscanf(w + 2, "%2x", &hex) == 1) {
            b.data[b.len] = (uint8_t)hex;
            w += 4;
        } else {
            b.data[b.len] = (uint8_t)*w++;
        }
    }
    return b;
}

static ProtobufCBinaryData kv_bytes(struct kv_words *q)
{
    const char *w = kv_word(q);

    return kv_bytes_of(q, w, strlen(w));
}

static void kv_keys(struct kv_words *q, ProtobufCBinaryData *ret_key, ProtobufCBinaryData *ret_end)
{
    const char *w = kv_word(q), *dots = strstr(w, "..");

    *ret_key = kv_bytes_of(q, w, dots ? (size_t)(dots - w) : strlen(w));
    if (dots)
        *ret_end = dots[2] ? kv_bytes_of(q, dots + 2, strlen(dots + 2)) : kv_bytes_of(q, "\\0", 2);
}

static int kv_choice(struct kv_words *q, const char *const *names)
{
    for (int i = 0; names[i]; i++)
        if (kv_take(q, names[i]))
            return i;
    return -1;
}

static Etcdserverpb__PutRequest *kv_parse_put(struct kv_words *q)
{
    Etcdserverpb__PutRequest *r = msg_new(&q->a, &etcdserverpb__put_request__descriptor);

    r->key = kv_bytes(q);
    r->value = kv_bytes(q);
    for (;;) {
        if (kv_option(q, "lease", &r->lease))
            continue;
        if (kv_take(q, "prev"))
            r->prev_kv = true;
        else if (kv_take(q, "ignore_value"))
            r->ignore_value = true;
        else if (kv_take(q, "ignore_lease"))
            r->ignore_lease = true;
        else
            return r;
    }
}

static void kv_parse_sort(struct kv_words *q, Etcdserverpb__RangeRequest *r)
{
    static const char *const orders[] = {"none", "ascend", "descend", NULL};
    static const char *const targets[] = {"key", "version", "create", "mod", "value", NULL};
    int order = kv_choice(q, orders), target;

    r->sort_order = order < 0 ? (int)kv_number(q) : order;
    target = kv_choice(q, targets);
    if (target >= 0)
        r->sort_target = target;
    else if (q->at < q->n && isdigit((unsigned char)*q->w[q->at]))
        r->sort_target = (int)kv_number(q);
}

static Etcdserverpb__RangeRequest *kv_parse_range(struct kv_words *q)
{
    Etcdserverpb__RangeRequest *r = msg_new(&q->a, &etcdserverpb__range_request__descriptor);

    kv_keys(q, &r->key, &r->range_end);
    for (;;) {
        if (kv_option(q, "rev", &r->revision) || kv_option(q, "limit", &r->limit) ||
            kv_option(q, "min_mod", &r->min_mod_revision) || kv_option(q, "max_mod", &r->max_mod_revision) ||
            kv_option(q, "min_create", &r->min_create_revision) ||
            kv_option(q, "max_create", &r->max_create_revision))
            continue;
        if (kv_take(q, "sort"))
            kv_parse_sort(q, r);
        else if (kv_take(q, "keys_only"))
            r->keys_only = true;
        else if (kv_take(q, "count_only"))
            r->count_only = true;
        else if (kv_take(q, "serializable"))
            r->serializable = true;
        else
            return r;
    }
}

static Etcdserverpb__DeleteRangeRequest *kv_parse_delete(struct kv_words *q)
{
    Etcdserverpb__DeleteRangeRequest *r = msg_new(&q->a, &etcdserverpb__delete_range_request__descriptor);

    kv_keys(q, &r->key, &r->range_end);
    r->prev_kv = kv_take(q, "prev");
    return r;
}

static Etcdserverpb__Compare *kv_parse_compare(struct kv_words *q)
{
    static const char *const targets[] = {"version", "create", "mod", "value", "lease", NULL};
    static const char *const results[] = {"=", ">", "<", "!=", NULL};
    Etcdserverpb__Compare *c = msg_new(&q->a, &etcdserverpb__compare__descriptor);
    int target = kv_choice(q, targets), result;

    kv_keys(q, &c->key, &c->range_end);
    result = kv_choice(q, results);
    if (target < 0 || result < 0)
        q->bad = q->bad ? q->bad : "compare";
    c->target = target < 0 ? 0 : target;
    c->result = result < 0 ? 0 : result;
    c->target_union_case =
        ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION + (unsigned)c->target; /* in the same order */
    if (c->target == ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE)
        c->value = kv_bytes(q);
    else
        c->version = kv_number(q); /* the numbers share one place */
    return c;
}

static Etcdserverpb__TxnRequest *kv_parse_txn(struct kv_words *q);

static Etcdserverpb__RequestOp *kv_parse_op(struct kv_words *q)
{
    Etcdserverpb__RequestOp *op = msg_new(&q->a, &etcdserverpb__request_op__descriptor);

    if (kv_take(q, "put")) {
        op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
        op->request_put = kv_parse_put(q);
    } else if (kv_take(q, "range")) {
        op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
        op->request_range = kv_parse_range(q);
    } else if (kv_take(q, "delete")) {
        op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
        op->request_delete_range = kv_parse_delete(q);
    } else if (kv_take(q, "(")) {
        op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN;
        op->request_txn = kv_parse_txn(q);
        if (!kv_take(q, ")"))
            q->bad = q->bad ? q->bad : "no )";
    } else if (!kv_take(q, "nothing")) {
        q->bad = q->bad ? q->bad : kv_word(q);
    }
    return op;
}

static size_t kv_parse_ops(struct kv_words *q, Etcdserverpb__RequestOp ***ret_ops)
{
    size_t n = 0;

    *ret_ops = arena_alloc(&q->a, KV_OPS_MAX * sizeof **ret_ops);
    if (q->at == q->n || strcmp(q->w[q->at], "else") == 0 || strcmp(q->w[q->at], ")") == 0)
        return 0;
    do {
        int64_t times = 1;
        Etcdserverpb__RequestOp *op;

        (void)kv_option(q, "times", &times);
        op = kv_parse_op(q);
        while (times-- > 0 && n < KV_OPS_MAX)
            (*ret_ops)[n++] = op;
    } while (kv_take(q, ",") && n < KV_OPS_MAX);
    return n;
}

static Etcdserverpb__TxnRequest *kv_parse_txn(struct kv_words *q)
{
    Etcdserverpb__TxnRequest *r = msg_new(&q->a, &etcdserverpb__txn_request__descriptor);

    if (kv_take(q, "if")) {
        r->compare = arena_alloc(&q->a, KV_OPS_MAX * sizeof *r->compare);
        do
            r->compare[r->n_compare++] = kv_parse_compare(q);
        while (kv_take(q, ",") && r->n_compare < KV_OPS_MAX);
    }
    if (kv_take(q, "then"))
        r->n_success = kv_parse_ops(q, &r->success);
    if (kv_take(q, "else"))
        r->n_failure = kv_parse_ops(q, &r->failure);
    return r;
}

static Etcdserverpb__WatchRequest *kv_parse_watch(struct kv_words *q)
{
    Etcdserverpb__WatchRequest *r = msg_new(&q->a, &etcdserverpb__watch_request__descriptor);
    Etcdserverpb__WatchCreateRequest *c = msg_new(&q->a, &etcdserverpb__watch_create_request__descriptor);

    r->request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
    r->create_request = c;
    c->filters = arena_alloc(&q->a, 4 * sizeof *c->filters);
    kv_keys(q, &c->key, &c->range_end);
    for (;;) {
        if (kv_option(q, "rev", &c->start_revision) || kv_option(q, "id", &c->watch_id))
            continue;
        if (kv_take(q, "prev"))
            c->prev_kv = true;
        else if (kv_take(q, "noput"))
            c->filters[c->n_filters++] = ETCDSERVERPB__WATCH_CREATE_REQUEST__FILTER_TYPE__NOPUT;
        else if (kv_take(q, "nodelete"))
            c->filters[c->n_filters++] = ETCDSERVERPB__WATCH_CREATE_REQUEST__FILTER_TYPE__NODELETE;
        else if (kv_take(q, "fragment"))
            c->fragment = true;
        else if (kv_take(q, "notify"))
            c->progress_notify = true;
        else
            return r;
    }
}

/* ---- responses to words ------------------------------------------------------------------- */

static void kv_say_bytes(FILE *out, ProtobufCBinaryData b)
{
    size_t same = 0;

    while (same < b.len && b.data[same] == b.data[0])
        same++;
    if (b.len > 8 && same == b.len) {
        fprintf(out, "%c*%zu", b.data[0], b.len);
        return;
    }
    if (b.len == 0)
        fputs("\"\"", out);
    for (size_t i = 0; i < b.len; i++)
        fprintf(out, b.data[i] == 0 ? "\\0" : isgraph(b.data[i]) ? "%c" : "\\x%02x", b.data[i]);
}

/* Values are shown unless there can be none: a deletion's kv. */
static void kv_say_kv(FILE *out, const Mvccpb__KeyValue *kv, bool value)
{
    kv_say_bytes(out, kv->key);
    if (value) {
        fputs(" = ", out);
        kv_say_bytes(out, kv->value);
    }
    fputs(" ", out);
    if (kv->create_revision)
        fprintf(out, " create %" PRId64, kv->create_revision);
    if (kv->mod_revision)
        fprintf(out, " mod %" PRId64, kv->mod_revision);
    if (kv->version)
        fprintf(out, " version %" PRId64, kv->version);
    if (kv->lease)
        fprintf(out, " lease %" PRId64, kv->lease);
    fputs("\n", out);
}

static void kv_say_revision(FILE *out, const Etcdserverpb__ResponseHeader *h)
{
    if (h == NULL)
        fputs("no header", out);
    else
        fprintf(out, "revision %" PRId64, h->revision);
}

static void kv_say_put(FILE *out, const Etcdserverpb__PutResponse *r, int indent)
{
    kv_say_revision(out, r->header);
    fputs("\n", out);
    if (r->prev_kv) {
        fprintf(out, "%*sprev ", indent + 2, "");
        kv_say_kv(out, r->prev_kv, true);
    }
}

static void kv_say_range(FILE *out, const Etcdserverpb__RangeResponse *r, int indent)
{
    kv_say_revision(out, r->header);
    fprintf(out, ", count %" PRId64 "%s\n", r->count, r->more ? ", more" : "");
    for (size_t i = 0; i < r->n_kvs; i++) {
        fprintf(out, "%*s", indent + 2, "");
        kv_say_kv(out, r->kvs[i], true);
    }
}

static void kv_say_delete(FILE *out, const Etcdserverpb__DeleteRangeResponse *r, int indent)
{
    kv_say_revision(out, r->header);
    fprintf(out, ", deleted %" PRId64 "\n", r->deleted);
    for (size_t i = 0; i < r->n_prev_kvs; i++) {
        fprintf(out, "%*sprev ", indent + 2, "");
        kv_say_kv(out, r->prev_kvs[i], true);
    }
}

static void kv_say_txn(FILE *out, const Etcdserverpb__TxnResponse *r, int indent)
{
    kv_say_revision(out, r->header);
    fprintf(out, ", %s\n", r->succeeded ? "then" : "else");
    indent += 2;
    for (size_t i = 0; i < r->n_responses; i++) {
        const Etcdserverpb__ResponseOp *op = r->responses[i];

        fprintf(out, "%*s", indent, "");
        switch (op->response_case) {
        case ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE:
            fputs("range: ", out);
            kv_say_range(out, op->response_range, indent);
            break;
        case ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_PUT:
            fputs("put: ", out);
            kv_say_put(out, op->response_put, indent);
            break;
        case ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_DELETE_RANGE:
            fputs("delete: ", out);
            kv_say_delete(out, op->response_delete_range, indent);
            break;
        case ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_TXN:
            fputs("txn: ", out);
            kv_say_txn(out, op->response_txn, indent);
            break;
        default:
            fputs("nothing\n", out);
        }
    }
}

static void kv_say_event(FILE *out, const Mvccpb__Event *e)
{
    bool put = e->type == MVCCPB__EVENT__EVENT_TYPE__PUT;

    fprintf(out, "     %s ", put ? "put" : "delete");
    kv_say_kv(out, e->kv, put);
    if (e->prev_kv) {
        fputs("       prev ", out);
        kv_say_kv(out, e->prev_kv, true);
    }
}

static void kv_say_watch(FILE *out, const Etcdserverpb__WatchResponse *r)
{
    fprintf(out, "  watch %" PRId64 ": ", r->watch_id);
    kv_say_revision(out, r->header);
    fprintf(out, "%s%s%s", r->created ? ", created" : "", r->canceled ? ", canceled" : "",
            r->fragment ? ", fragment" : "");
    if (r->compact_revision)
        fprintf(out, ", compacted %" PRId64, r->compact_revision);
    fprintf(out, "%s%s\n", *r->cancel_reason ? ", because: " : "", r->cancel_reason);
    for (size_t i = 0; i < r->n_events; i++)
        kv_say_event(out, r->events[i]);
}

static void kv_say_refusal(FILE *out, const struct kv_answer *a)
{
    static const char *const names[STATUS_COUNT] = {
        "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
        "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
        "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
        "DATA_LOSS", "UNAUTHENTICATED"};

    fprintf(out, "%s: %s\n", names[a->status], a->text);
}

static int kv_by_bytes(const void *a, const void *b)
{
    return slice_cmp(msg_slice(*(const ProtobufCBinaryData *)a), msg_slice(*(const ProtobufCBinaryData *)b));
}

/* ---- commands ------------------------------------------------------------------------------ */

static void kv_say_answer(FILE *out, enum kv_method method, const struct kv_answer *a)
{
    switch (method) {
    case KV_RANGE:
        kv_say_range(out, (const Etcdserverpb__RangeResponse *)a->m, 0);
        break;
    case KV_PUT:
        kv_say_put(out, (const Etcdserverpb__PutResponse *)a->m, 0);
        break;
    case KV_DELETE:
        kv_say_delete(out, (const Etcdserverpb__DeleteRangeResponse *)a->m, 0);
        break;
    case KV_TXN:
        kv_say_txn(out, (const Etcdserverpb__TxnResponse *)a->m, 0);
        break;
    case KV_COMPACT:
        kv_say_revision(out, ((const Etcdserverpb__CompactionResponse *)a->m)->header);
        fputs("\n", out);
        break;
    case LEASE_GRANT:
        fprintf(out, "lease %" PRId64 ", ttl %" PRId64 "\n",
                ((const Etcdserverpb__LeaseGrantResponse *)a->m)->id,
                ((const Etcdserverpb__LeaseGrantResponse *)a->m)->ttl);
        break;
    case LEASE_REVOKE:
        kv_say_revision(out, ((const Etcdserverpb__LeaseRevokeResponse *)a->m)->header);
        fputs("\n", out);
        break;
    case LEASE_TTL: {
        const Etcdserverpb__LeaseTimeToLiveResponse *r = (const Etcdserverpb__LeaseTimeToLiveResponse *)a->m;

        /* What remains of it depends on the clock; the keys come in any order. */
        if (r->n_keys)
            qsort(r->keys, r->n_keys, sizeof *r->keys, kv_by_bytes);
        fprintf(out, "%s, granted %" PRId64 "%s", r->ttl < 0 ? "ttl -1" : "alive", r->grantedttl,
                r->n_keys ? ", keys" : "");
        for (size_t i = 0; i < r->n_keys; i++) {
            fputs(" ", out);
            kv_say_bytes(out, r->keys[i]);
        }
        fputs("\n", out);
        break;
    }
    case LEASE_LIST: {
        const Etcdserverpb__LeaseLeasesResponse *r = (const Etcdserverpb__LeaseLeasesResponse *)a->m;

        fputs("leases", out);
        for (size_t i = 0; i < r->n_leases; i++)
            fprintf(out, " %" PRId64, r->leases[i]->id);
        fputs("\n", out);
    }
    }
}

/* The request of a unary command; NULL: it is none. */
static ProtobufCMessage *kv_parse(struct kv_words *q, enum kv_method *ret_method)
{
    static const char *const names[] = {"range", "put",    "delete", "txn",    "compact",
                                        "grant", "revoke", "ttl",    "leases", NULL};
    int method = kv_choice(q, names);

    *ret_method = method < 0 ? KV_RANGE : (enum kv_method)method;
    switch (method) {
    case KV_RANGE:
        return &kv_parse_range(q)->base;
    case KV_PUT:
        return &kv_parse_put(q)->base;
    case KV_DELETE:
        return &kv_parse_delete(q)->base;
    case KV_TXN:
        return &kv_parse_txn(q)->base;
    case KV_COMPACT: {
        Etcdserverpb__CompactionRequest *r = msg_new(&q->a, &etcdserverpb__compaction_request__descriptor);

        r->revision = kv_number(q);
        r->physical = kv_take(q, "physical");
        return &r->base;
    }
    case LEASE_GRANT: {
        Etcdserverpb__LeaseGrantRequest *r = msg_new(&q->a, &etcdserverpb__lease_grant_request__descriptor);

        r->id = kv_number(q);
        r->ttl = kv_number(q);
        return &r->base;
    }
    case LEASE_REVOKE: {
        Etcdserverpb__LeaseRevokeRequest *r = msg_new(&q->a, &etcdserverpb__lease_revoke_request__descriptor);

        r->id = kv_number(q);
        return &r->base;
    }
    case LEASE_TTL: {
        Etcdserverpb__LeaseTimeToLiveRequest *r =
            msg_new(&q->a, &etcdserverpb__lease_time_to_live_request__descriptor);

        r->id = kv_number(q);
        r->keys = kv_take(q, "keys");
        return &r->base;
    }
    case LEASE_LIST:
        return msg_new(&q->a, &etcdserverpb__lease_leases_request__descriptor);
    default:
        return NULL;
    }
}

static Etcdserverpb__WatchRequest *kv_parse_watch_command(struct kv_words *q)
{
    Etcdserverpb__WatchRequest *r;

    if (kv_take(q, "watch"))
        return kv_parse_watch(q);
    r = msg_new(&q->a, &etcdserverpb__watch_request__descriptor);
    if (kv_take(q, "cancel")) {
        r->request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CANCEL_REQUEST;
        r->cancel_request = msg_new(&q->a, &etcdserverpb__watch_cancel_request__descriptor);
        r->cancel_request->watch_id = kv_number(q);
        return r;
    }
    if (kv_take(q, "progress")) {
        r->request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_PROGRESS_REQUEST;
        r->progress_request = msg_new(&q->a, &etcdserverpb__watch_progress_request__descriptor);
        return r;
    }
    return NULL;
}

/* Commas and parentheses become words of their own. */
static void kv_split(struct kv_words *q, int n, char **words)
{
    for (int i = 0; i < n && q->n < KV_TOKENS_MAX - 20; i++) {
        char *w = words[i];
        size_t len = strlen(w), closing = 0;
        bool comma = len > 1 && w[len - 1] == ',';

        for (; *w == '('; w++, len--)
            q->w[q->n++] = "(";
        if (comma)
            w[--len] = 0;
        for (; len && w[len - 1] == ')'; closing++)
            w[--len] = 0;
        if (len)
            q->w[q->n++] = w;
        for (; closing && q->n < KV_TOKENS_MAX - 2; closing--)
            q->w[q->n++] = ")";
        if (comma)
            q->w[q->n++] = ",";
    }
}

/* What has come, watch by watch: between those of different watches there is no order. */
static void kv_say_watches(struct kv_server *s, FILE *out)
{
    struct said {
        int64_t id;
        char *text;
    } * all[256];
    Etcdserverpb__WatchResponse *r;
    size_t n = 0;

    while (n < 256 && (r = s->watch_take(s)) != NULL) {
        size_t len;
        FILE *f;

        all[n] = malloc(sizeof *all[n]);
        all[n]->id = r->watch_id;
        f = open_memstream(&all[n]->text, &len);
        kv_say_watch(f, r);
        fclose(f);
        n++;
    }
    for (size_t i = 1; i < n; i++) /* stable */
        for (size_t k = i; k > 0 && all[k - 1]->id > all[k]->id; k--) {
            struct said *swap = all[k];

            all[k] = all[k - 1];
            all[k - 1] = swap;
        }
    for (size_t i = 0; i < n; i++) {
        fputs(all[i]->text, out);
        free(all[i]->text);
        free(all[i]);
    }
}

/* A command line: the function for trace_run, with a struct kv_server as ctx. */
static void kv_command(void *ctx, FILE *out, int n, char **words)
{
    struct kv_server *s = ctx;
    struct kv_words q = {.n = 0};
    struct kv_answer a = {.status = STATUS_OK};
    Etcdserverpb__WatchRequest *watch = NULL;
    enum kv_method method;
    ProtobufCMessage *m;

    arena_init(&q.a, 64 << 20, NULL, 0);
    if (s->command && s->command(s, out, n, words)) {
        /* done */
    } else {
        kv_split(&q, n, words);
        m = kv_parse(&q, &method);
        if (m == NULL)
            watch = kv_parse_watch_command(&q);
        if (q.bad || q.at < q.n || (m == NULL && (watch == NULL || s->watch_send == NULL))) {
            fprintf(out, "not understood: %s\n", q.bad ? q.bad : q.at < q.n ? q.w[q.at] : words[0]);
        } else if (m) {
            s->call(s, method, m, &a);
            if (a.status)
                kv_say_refusal(out, &a);
            else
                kv_say_answer(out, method, &a);
        } else {
            s->watch_send(s, watch);
        }
    }
    if (s->watch_take)
        kv_say_watches(s, out);
    arena_fini(&q.a);
}
