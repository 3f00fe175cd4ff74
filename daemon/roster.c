/* SPDX-License-Identifier: Apache-2.0 */
/* roster.c - the members of a cluster as the flags name them.
 *
 * Source: etcd v3.7.1 server/etcdserver/api/membership (member.go, cluster.go), server/config/config.go, pkg/netutil,
 * whose sentences these are. Two lists of URLs are the same when their texts are, or when their hosts have the same
 * address.
 *
 * Owner: the main thread, at start; roster_member_id: any thread.
 */
#include "roster.h"
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include "raft.h"
#include "sha1.h"

enum { SENTENCE_BYTES = 2048, URLS_OF_ALL_MAX = 64, ID_TEXT_BYTES = 8192, ADDRESS_BYTES = 320 };

static const char *say(struct config *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
static const char *say(struct config *c, const char *format, ...)
{
    char *text = arena_alloc(&c->arena, SENTENCE_BYTES);
    va_list ap;

    if (text == NULL)
        return "out of memory";
    va_start(ap, format);
    (void)vsnprintf(text, SENTENCE_BYTES, format, ap);
    va_end(ap);
    return text;
}

/* ---- ids ------------------------------------------------------------------------------------------ */

uint64_t roster_member_id(const char *const *sorted_urls, size_t n, const char *token_and_time)
{
    char text[ID_TEXT_BYTES];
    size_t used = 0;

    for (size_t i = 0; i <= n; i++) {
        const char *s = i < n ? sorted_urls[i] : token_and_time;
        size_t len = strlen(s), room = sizeof text - used;

        memcpy(text + used, s, len < room ? len : room); /* longer ones differ in what is left, or are refused
                                                          * elsewhere */
        used += len < room ? len : room;
    }
    return sha1_head(slice_of(text, used));
}

static int by_id(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

uint64_t roster_cluster_id(const uint64_t *ids, size_t n)
{
    uint64_t sorted[RAFT_MEMBERS_MAX];
    uint8_t bytes[8 * RAFT_MEMBERS_MAX];

    assert(n <= RAFT_MEMBERS_MAX);
    memcpy(sorted, ids, n * sizeof *ids);
    qsort(sorted, n, sizeof *sorted, by_id);
    for (size_t i = 0; i < n; i++)
        put_u64be(bytes + 8 * i, sorted[i]);
    return sha1_head(slice_of(bytes, 8 * n));
}

static uint64_t id_of(const struct roster_member *m, const char *token)
{
    const char *urls[URLS_OF_ALL_MAX];

    for (size_t i = 0; i < m->urls.n; i++)
        urls[i] = m->urls.urls[i].text;
    return roster_member_id(urls, m->urls.n, token);
}

/* ---- reading ---------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct roster_member *)a)->name, ((const struct roster_member *)b)->name);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(((const struct url *)a)->text, ((const struct url *)b)->text);
}

static const char *member_of(struct config *c, struct roster *r, struct slice name, struct roster_member **ret)
{
    char *copy;

    for (size_t i = 0; i < r->n; i++) {
        if (slice_eq(slice_str(r->members[i].name), name)) {
            *ret = &r->members[i];
            return NULL;
        }
    }
    if (r->n == RAFT_MEMBERS_MAX)
        return say(c, "--initial-cluster names more than %d members", RAFT_MEMBERS_MAX);
    *ret = &r->members[r->n++];
    copy = arena_alloc(&c->arena, name.len + 1);
    (*ret)->name = copy;
    (*ret)->urls.urls = arena_alloc(&c->arena, URLS_OF_ALL_MAX * sizeof(struct url));
    if (copy == NULL || (*ret)->urls.urls == NULL)
        return "out of memory";
    if (name.len)
        memcpy(copy, name.ptr, name.len);
    return NULL;
}

/* One NAME=URL. */
static const char *read_pair(struct config *c, struct roster *r, const char *p, size_t len, size_t *urls_of_all)
{
    const char *equals = memchr(p, '=', len), *bad;
    size_t name_len = equals ? (size_t)(equals - p) : len;
    struct roster_member *m = NULL;
    struct url_list one;
    char *text;

    if (++*urls_of_all > URLS_OF_ALL_MAX)
        return say(c, "--initial-cluster names more than %d URLs", URLS_OF_ALL_MAX);
    bad = member_of(c, r, slice_of(p, name_len), &m);
    if (bad)
        return bad;
    len -= equals ? name_len + 1 : name_len;
    text = arena_alloc(&c->arena, len + 1);
    if (text == NULL)
        return "out of memory";
    memcpy(text, equals ? equals + 1 : "", len);
    bad = len ? config_parse_urls(&c->arena, text, &one) : "URL scheme must be http, https, unix, or unixs: ";
    if (bad)
        return say(c, "error setting up initial cluster: %s", bad);
    if (one.n != 1)
        return say(c, "error setting up initial cluster: \"%s\" is not one URL", text);
    m->urls.urls[m->urls.n++] = one.urls[0];
    return NULL;
}

static const char *read_pairs(struct config *c, struct roster *r)
{
    size_t urls_of_all = 0;

    for (const char *p = c->initial_cluster; *p; p += *p == ',') {
        size_t len = strcspn(p, ",");
        const char *bad = len ? read_pair(c, r, p, len, &urls_of_all) : NULL;

        if (bad)
            return bad;
        p += len;
    }
    return NULL;
}

/* What --initial-cluster is when it is not given. */
static const char *alone(struct config *c, struct roster *r)
{
    r->members[0] = (struct roster_member){.name = c->name, .urls = c->advertise_peer};
    r->n = 1;
    return c->advertise_peer.n > URLS_OF_ALL_MAX ? "--initial-advertise-peer-urls is too long" : NULL;
}

const char *roster_read(struct config *c, struct roster *ret_roster)
{
    struct roster r = {.members = arena_alloc(&c->arena, RAFT_MEMBERS_MAX * sizeof *r.members)};
    uint64_t ids[RAFT_MEMBERS_MAX];
    const char *bad;

    if (r.members == NULL)
        return "out of memory";
    bad = *c->initial_cluster ? read_pairs(c, &r) : alone(c, &r);
    if (bad)
        return bad;
    if (r.n)
        qsort(r.members, r.n, sizeof *r.members, by_name);
    for (size_t i = 0; i < r.n; i++) {
        struct roster_member *m = &r.members[i];

        qsort(m->urls.urls, m->urls.n, sizeof *m->urls.urls, by_text);
        m->id = ids[i] = id_of(m, c->initial_cluster_token);
        if (strcmp(m->name, c->name) == 0)
            r.self = m;
        for (size_t k = 0; k < i; k++)
            if (ids[k] == ids[i])
                return say(c, "member exists with identical ID %llx: two names of --initial-cluster have the same URLs",
                           (unsigned long long)ids[i]);
    }
    r.cluster_id = roster_cluster_id(ids, r.n);
    *ret_roster = r;
    return NULL;
}

/* ---- the same URLs ------------------------------------------------------------------------------------- */

/* The URL with its host as a number. localhost stays as it is, as in etcd. False: it has no address. */
static bool resolved(const struct url *u, char ret[ADDRESS_BYTES])
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    char host[256];
    int err;

    if (url_is_unix(u) || strcmp(u->host, "localhost") == 0) {
        (void)snprintf(ret, ADDRESS_BYTES, "%s", u->text);
        return true;
    }
    if (getaddrinfo(u->host, u->port, &hints, &found) != 0)
        return false;
    err = getnameinfo(found->ai_addr, found->ai_addrlen, host, sizeof host, NULL, 0, NI_NUMERICHOST);
    freeaddrinfo(found);
    (void)snprintf(ret, ADDRESS_BYTES, "%s %s %s", u->scheme == URL_HTTPS ? "https" : "http", host, u->port);
    return err == 0;
}

static int by_address(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* Both lists are sorted by text. *ret_why: how they differ, when they do. */
static bool same_urls(struct config *c, const struct url_list *a, const struct url_list *b, const char **ret_why)
{
    char addresses[2][URLS_OF_ALL_MAX][ADDRESS_BYTES];
    bool same = a->n == b->n;

    if (!same || a->n > URLS_OF_ALL_MAX) {
        *ret_why = say(c, "they have %zu and %zu URLs", a->n, b->n);
        return false;
    }
    for (size_t i = 0; i < a->n && same; i++)
        same = strcmp(a->urls[i].text, b->urls[i].text) == 0;
    if (same)
        return true;
    for (size_t i = 0; i < 2 * a->n; i++) {
        const struct url *u = i < a->n ? &a->urls[i] : &b->urls[i - a->n];

        if (!resolved(u, addresses[i >= a->n][i % a->n])) {
            *ret_why = say(c, "failed to resolve \"%s\"", u->text);
            return false;
        }
    }
    for (int i = 0; i < 2; i++)
        qsort(addresses[i], a->n, ADDRESS_BYTES, by_address);
    for (size_t i = 0; i < a->n; i++) {
        if (strcmp(addresses[0][i], addresses[1][i]) != 0) {
            *ret_why = say(c, "resolved urls: \"%s\" != \"%s\"", addresses[0][i], addresses[1][i]);
            return false;
        }
    }
    return true;
}

/* ---- checks --------------------------------------------------------------------------------------------- */

static bool has_url(const struct url_list *l, const char *text)
{
    for (size_t i = 0; i < l->n; i++)
        if (strcmp(l->urls[i].text, text) == 0)
            return true;
    return false;
}

/* The URLs of a that b has not, each after `name=` when there is a name, with commas. */
static const char *missing(struct config *c, const struct url_list *a, const struct url_list *b, const char *name)
{
    char *text = arena_alloc(&c->arena, SENTENCE_BYTES);
    size_t used = 0;

    if (text == NULL)
        return "";
    *text = '\0';
    for (size_t i = 0; i < a->n && used < SENTENCE_BYTES; i++)
        if (b == NULL || !has_url(b, a->urls[i].text))
            used += (size_t)snprintf(text + used, SENTENCE_BYTES - used, "%s%s%s%s", used ? "," : "", name, *name ? "=" : "",
                                     a->urls[i].text);
    return text;
}

static const char *check_self_and_duplicates(struct config *c, const struct roster *r)
{
    if (r->self == NULL)
        return say(c, "couldn't find local name \"%s\" in the initial cluster configuration", c->name);
    for (size_t i = 0; i < r->n; i++)
        for (size_t u = 0; u < r->members[i].urls.n; u++)
            for (size_t k = 0; k <= i; k++)
                for (size_t v = 0; v < (k == i ? u : r->members[k].urls.n); v++)
                    if (strcmp(r->members[i].urls.urls[u].text, r->members[k].urls.urls[v].text) == 0)
                        return say(c, "initial cluster %s has duplicate url", c->initial_cluster);
    return NULL;
}

const char *roster_check_new(struct config *c, const struct roster *r)
{
    const char *bad = check_self_and_duplicates(c, r), *why, *list;

    if (bad || same_urls(c, &c->advertise_peer, &r->self->urls, &why))
        return bad;
    list = missing(c, &r->self->urls, &c->advertise_peer, c->name);
    if (*list)
        return say(c, "--initial-cluster has %s but missing from --initial-advertise-peer-urls=%s (%s)", list,
                   missing(c, &c->advertise_peer, NULL, ""), why);
    list = missing(c, &c->advertise_peer, &r->self->urls, "");
    return say(c, "--initial-advertise-peer-urls has %s but missing from --initial-cluster=%s", list, c->initial_cluster);
}

const char *roster_check_existing(struct config *c, const struct roster *r)
{
    return check_self_and_duplicates(c, r);
}

/* ---- a running cluster ------------------------------------------------------------------------------------ */

static const char *urls_of(struct config *c, const struct roster_known *k, struct url_list *ret)
{
    struct url_list l = {.urls = arena_alloc(&c->arena, URLS_OF_ALL_MAX * sizeof *l.urls)}, one;

    if (l.urls == NULL)
        return "out of memory";
    for (size_t i = 0; i < k->n_urls && i < URLS_OF_ALL_MAX; i++) {
        const char *bad = config_parse_urls(&c->arena, k->urls[i], &one);

        if (bad || one.n != 1)
            return say(c, "member %llx has a peer URL that is none: %s", (unsigned long long)k->id, k->urls[i]);
        l.urls[l.n++] = one.urls[0];
    }
    if (l.n)
        qsort(l.urls, l.n, sizeof *l.urls, by_text);
    *ret = l;
    return NULL;
}

const char *roster_match(struct config *c, struct roster *r, const struct roster_known *known, size_t n)
{
    const char *bad, *why = "";

    if (n != r->n)
        return say(c, "member count is unequal: the cluster has %zu members, --initial-cluster names %zu", n, r->n);
    for (size_t i = 0; i < r->n; i++)
        r->members[i].id = 0;
    for (size_t i = 0; i < n; i++) {
        struct roster_member *match = NULL;
        struct url_list urls;

        bad = urls_of(c, &known[i], &urls);
        if (bad)
            return bad;
        for (size_t k = 0; k < r->n && match == NULL; k++)
            if (r->members[k].id == 0 && same_urls(c, &urls, &r->members[k].urls, &why))
                match = &r->members[k];
        if (match == NULL)
            return say(c, "PeerURLs: no match found for existing member (%llx, [%s]), last resolver error (%s)",
                       (unsigned long long)known[i].id, missing(c, &urls, NULL, ""), why);
        match->id = known[i].id;
    }
    return NULL;
}
