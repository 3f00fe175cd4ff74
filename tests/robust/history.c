/* SPDX-License-Identifier: Apache-2.0 */
/* history.c - records of calls: kept, saved, shown.
 *
 * A file is the line "robust-history 1\n", then records:
 *
 *      0  u32le x 8  kind, outcome, client, member, stream, incarnation, status, compacted
 *     32  u64le x 2  start_ns, end_ns
 *     48  u32le x 2  bytes of the request, bytes of the response; 0xffffffff: none
 *     56  ...        both, as the API packs them
 */
#include "history.h"
#include <errno.h>
#include <inttypes.h>

enum { HEAD = 56 };
#define NO_MESSAGE UINT32_MAX
static const char magic[] = "robust-history 1\n";

static const struct {
    const char *name;
    const ProtobufCMessageDescriptor *req, *resp;
} kinds[REC_KINDS] = {
    [REC_PUT] = {"put", &etcdserverpb__put_request__descriptor, &etcdserverpb__put_response__descriptor},
    [REC_DELETE] = {"delete", &etcdserverpb__delete_range_request__descriptor,
                    &etcdserverpb__delete_range_response__descriptor},
    [REC_TXN] = {"txn", &etcdserverpb__txn_request__descriptor, &etcdserverpb__txn_response__descriptor},
    [REC_RANGE] = {"range", &etcdserverpb__range_request__descriptor, &etcdserverpb__range_response__descriptor},
    [REC_COMPACT] = {"compact", &etcdserverpb__compaction_request__descriptor,
                     &etcdserverpb__compaction_response__descriptor},
    [REC_GRANT] = {"grant", &etcdserverpb__lease_grant_request__descriptor,
                   &etcdserverpb__lease_grant_response__descriptor},
    [REC_REVOKE] = {"revoke", &etcdserverpb__lease_revoke_request__descriptor,
                    &etcdserverpb__lease_revoke_response__descriptor},
    [REC_KEEPALIVE] = {"keepalive", &etcdserverpb__lease_keep_alive_request__descriptor,
                       &etcdserverpb__lease_keep_alive_response__descriptor},
    [REC_LEASES] = {"leases", &etcdserverpb__lease_leases_request__descriptor,
                    &etcdserverpb__lease_leases_response__descriptor},
    [REC_HASH] = {"hash", &etcdserverpb__hash_kvrequest__descriptor, &etcdserverpb__hash_kvresponse__descriptor},
    [REC_WATCH] = {"watch", &etcdserverpb__watch_create_request__descriptor,
                   &etcdserverpb__watch_response__descriptor},
    [REC_NOTICE] = {"notice", &etcdserverpb__watch_create_request__descriptor,
                    &etcdserverpb__watch_response__descriptor},
    [REC_RENAME] = {"rename", &cairn__rename_request__descriptor, &cairn__rename_response__descriptor},
};

const ProtobufCMessageDescriptor *rec_request(enum rec_kind kind) { return kinds[kind].req; }
const ProtobufCMessageDescriptor *rec_response(enum rec_kind kind) { return kinds[kind].resp; }
const char *rec_name(enum rec_kind kind) { return kinds[kind].name; }

const Etcdserverpb__ResponseHeader *rec_header(const struct rec *r)
{
    /* Every answer of the API begins with its header. */
    const struct { ProtobufCMessage base; Etcdserverpb__ResponseHeader *header; } *m = (const void *)r->resp;

    return m ? m->header : NULL;
}

void history_init(struct history *h)
{
    *h = (struct history){0};
    pthread_mutex_init(&h->mu, NULL);
}

void history_fini(struct history *h)
{
    for (size_t i = 0; i < h->n; i++) {
        if (h->recs[i].req)
            protobuf_c_message_free_unpacked(h->recs[i].req, NULL);
        if (h->recs[i].resp)
            protobuf_c_message_free_unpacked(h->recs[i].resp, NULL);
    }
    free(h->recs);
    pthread_mutex_destroy(&h->mu);
}

void history_add(struct history *h, const struct rec *r)
{
    pthread_mutex_lock(&h->mu);
    if (h->n == h->room) {
        h->room = h->room ? h->room * 2 : 4096;
        h->recs = realloc(h->recs, h->room * sizeof *h->recs);
        assert(h->recs);
    }
    h->recs[h->n++] = *r;
    pthread_mutex_unlock(&h->mu);
}

void *message_copy(const ProtobufCMessage *m)
{
    size_t n = protobuf_c_message_get_packed_size(m);
    uint8_t *bytes = malloc(n + 1);
    void *copy;

    assert(bytes);
    protobuf_c_message_pack(m, bytes);
    copy = protobuf_c_message_unpack(m->descriptor, NULL, n, bytes);
    assert(copy);
    free(bytes);
    return copy;
}

/* ---- files ------------------------------------------------------------------------------------- */

static size_t packed(const ProtobufCMessage *m, uint8_t **ret_bytes)
{
    size_t n = m ? protobuf_c_message_get_packed_size(m) : 0;

    *ret_bytes = malloc(n + 1);
    assert(*ret_bytes);
    if (m)
        protobuf_c_message_pack(m, *ret_bytes);
    return n;
}

static void save_rec(FILE *f, const struct rec *r)
{
    uint8_t head[HEAD], *req, *resp;
    size_t n_req = packed(r->req, &req), n_resp = packed(r->resp, &resp);
    uint32_t words[8] = {r->kind, r->outcome, r->client, r->member, r->stream, r->incarnation, (uint32_t)r->status,
                         r->compacted};

    for (int i = 0; i < 8; i++)
        put_u32le(head + 4 * i, words[i]);
    put_u64le(head + 32, (uint64_t)r->start_ns);
    put_u64le(head + 40, (uint64_t)r->end_ns);
    put_u32le(head + 48, r->req ? (uint32_t)n_req : NO_MESSAGE);
    put_u32le(head + 52, r->resp ? (uint32_t)n_resp : NO_MESSAGE);
    (void)fwrite(head, 1, HEAD, f); /* history_save looks at the stream's error at the end */
    (void)fwrite(req, 1, n_req, f);
    (void)fwrite(resp, 1, n_resp, f);
    free(req);
    free(resp);
}

int history_save(const struct history *h, const char *path)
{
    FILE *f = fopen(path, "we");
    int r = 0;

    if (f == NULL)
        return -errno;
    (void)fputs(magic, f);
    for (size_t i = 0; i < h->n; i++)
        save_rec(f, &h->recs[i]);
    if (ferror(f))
        r = -EIO;
    if (fclose(f) != 0 && r == 0)
        r = -errno;
    return r;
}

static int load_message(FILE *f, const ProtobufCMessageDescriptor *d, uint32_t n, ProtobufCMessage **ret_m)
{
    uint8_t *bytes;

    *ret_m = NULL;
    if (n == NO_MESSAGE)
        return 0;
    if (n > (64u << 20))
        return -EBADMSG;
    bytes = malloc(n + 1);
    if (bytes == NULL)
        return -ENOMEM;
    if (fread(bytes, 1, n, f) == n)
        *ret_m = protobuf_c_message_unpack(d, NULL, n, bytes);
    free(bytes);
    return *ret_m ? 0 : -EBADMSG;
}

int history_load(struct history *h, const char *path)
{
    FILE *f = fopen(path, "re");
    char line[sizeof magic];
    uint8_t head[HEAD];
    int r = 0;

    if (f == NULL)
        return -errno;
    if (fgets(line, sizeof line, f) == NULL || strcmp(line, magic) != 0)
        r = -EBADMSG;
    while (r == 0 && fread(head, 1, HEAD, f) == HEAD) {
        struct rec c = {.kind = get_u32le(head), .outcome = get_u32le(head + 4), .client = get_u32le(head + 8),
                        .member = get_u32le(head + 12), .stream = get_u32le(head + 16),
                        .incarnation = get_u32le(head + 20), .status = (int32_t)get_u32le(head + 24),
                        .compacted = get_u32le(head + 28), .start_ns = (int64_t)get_u64le(head + 32),
                        .end_ns = (int64_t)get_u64le(head + 40)};

        r = c.kind < REC_KINDS ? load_message(f, kinds[c.kind].req, get_u32le(head + 48), &c.req) : -EBADMSG;
        if (r == 0)
            r = load_message(f, kinds[c.kind].resp, get_u32le(head + 52), &c.resp);
        if (r == 0)
            history_add(h, &c);
    }
    (void)fclose(f); /* only read from */
    return r;
}

/* ---- words ------------------------------------------------------------------------------------- */

static void print_field(FILE *f, const ProtobufCFieldDescriptor *d, const void *at);

/* The fields of a message that are set, as in a text dump of protobuf. */
static void print_message(FILE *f, const ProtobufCMessage *m)
{
    (void)fputs("{", f);
    for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *d = &m->descriptor->fields[i];
        const uint8_t *at = (const uint8_t *)m + d->offset;

        if (d->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
            if (*(const uint32_t *)((const uint8_t *)m + d->quantifier_offset) == d->id)
                print_field(f, d, at);
        } else if (d->label == PROTOBUF_C_LABEL_REPEATED) {
            size_t n = *(const size_t *)((const uint8_t *)m + d->quantifier_offset);
            size_t size = d->type == PROTOBUF_C_TYPE_BYTES ? sizeof(ProtobufCBinaryData)
                        : d->type == PROTOBUF_C_TYPE_ENUM  ? sizeof(int)
                                                           : sizeof(void *);

            for (size_t k = 0; k < n; k++)
                print_field(f, d, *(const uint8_t *const *)at + k * size);
        } else {
            print_field(f, d, at);
        }
    }
    (void)fputs("}", f);
}

static void print_field(FILE *f, const ProtobufCFieldDescriptor *d, const void *at)
{
    switch (d->type) {
    case PROTOBUF_C_TYPE_MESSAGE:
        if (*(ProtobufCMessage *const *)at) {
            (void)fprintf(f, " %s", d->name);
            print_message(f, *(ProtobufCMessage *const *)at);
        }
        break;
    case PROTOBUF_C_TYPE_BYTES: {
        const ProtobufCBinaryData *b = at;

        if (b->len)
            (void)fprintf(f, " %s:%.*s", d->name, (int)(b->len > 40 ? 40 : b->len), (const char *)b->data);
        break;
    }
    case PROTOBUF_C_TYPE_STRING:
        if (*(char *const *)at && **(char *const *)at)
            (void)fprintf(f, " %s:\"%s\"", d->name, *(char *const *)at);
        break;
    case PROTOBUF_C_TYPE_INT64:
        if (*(const int64_t *)at)
            (void)fprintf(f, " %s:%" PRId64, d->name, *(const int64_t *)at);
        break;
    case PROTOBUF_C_TYPE_UINT64:
        if (*(const uint64_t *)at)
            (void)fprintf(f, " %s:%" PRIu64, d->name, *(const uint64_t *)at);
        break;
    default: /* bool, enum, uint32 */
        if (*(const int *)at)
            (void)fprintf(f, " %s:%d", d->name, *(const int *)at);
        break;
    }
}

void rec_print(FILE *f, const struct rec *r)
{
    static const char *const outcomes[] = {"done", "refused", "unknown"};

    (void)fprintf(f, "%12.6f %12.6f c%u m%u.%u %s", (double)r->start_ns / 1e9, (double)r->end_ns / 1e9, r->client,
                  r->member, r->incarnation, kinds[r->kind].name);
    if (r->stream)
        (void)fprintf(f, " #%u", r->stream);
    if (r->req)
        print_message(f, r->req);
    (void)fprintf(f, " -> %s", outcomes[r->outcome]);
    if (r->status)
        (void)fprintf(f, " status=%d%s", r->status, r->compacted ? " compacted" : "");
    if (r->resp)
        print_message(f, r->resp);
    (void)fputs("\n", f);
}
