/* SPDX-License-Identifier: Apache-2.0 */
/* bootstrap_ask.c - whom a member asks who the members are, when its store does not say it (any more).
 *
 *     first    DIR/PEERS: the members as this one knew them last, at their last URLs
 *     then     the members that --initial-cluster names, at URLs that are not among those
 *
 * Both, and in this order, because etcd lets a restart leave the flag out or keep the founders' list for ever: a flag
 * that is years old must not hide who came since, and a file that is old (a directory restored from a copy) must not
 * hide whom the operator names. To ask one too many costs a connection: what counts is what is answered, and only an
 * answer of this member's own cluster is taken. Whoever answers is no authority either: it says where the members are,
 * and they check both ids on each connection.
 *
 * When DIR/PEERS says that there is nobody else, this member is alone: whom an old flag may name is asked, but not
 * waited for.
 *
 * Owner: the main thread, at start. */
#include <errno.h>
#include <stdio.h>
#include "bootstrap.h"
#include "datadir_peers.h"
#include "limits.h"
#include "log.h"

enum { SAY_EVERY = 10, ANSWER_BYTES = 16 << 20 };

struct others {
    struct roster r; /* whoever is not this member */
    bool alone;      /* by DIR/PEERS there is nobody */
};

/* ---- whom ------------------------------------------------------------------------------------ */

static bool has_url(const struct url_list *l, const char *text)
{
    for (size_t i = 0; i < l->n; i++)
        if (strcmp(l->urls[i].text, text) == 0)
            return true;
    return false;
}

static bool is_named(const struct others *o, const struct url_list *self, const char *url)
{
    for (size_t i = 0; i < o->r.n; i++)
        if (has_url(&o->r.members[i].urls, url))
            return true;
    return has_url(self, url);
}

/* The URLs that can be read. */
static int read_urls(struct config *c, const struct roster_known *m, struct url_list *ret)
{
    struct url_list l = {.urls = arena_alloc(&c->arena, (m->n_urls + 1) * sizeof *l.urls)}, one;

    if (l.urls == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < m->n_urls; i++)
        if (config_parse_urls(&c->arena, m->urls[i], &one) == NULL && one.n == 1)
            l.urls[l.n++] = one.urls[0];
    *ret = l;
    return 0;
}

static int add_known(const struct bootstrap *b, struct config *c, const struct datadir_peers *p, struct others *o,
                     struct url_list *ret_self)
{
    o->alone = true;
    for (size_t i = 0; i < p->n; i++) {
        struct url_list urls;

        if (read_urls(c, &p->members[i], &urls) != 0)
            return -ENOMEM;
        if (p->members[i].id == b->member_id) {
            *ret_self = urls;
            continue;
        }
        o->r.members[o->r.n++] = (struct roster_member){.id = p->members[i].id, .name = "", .urls = urls};
        o->alone = false;
    }
    return 0;
}

static int add_named(struct config *c, const struct roster *flags, const struct url_list *self, struct others *o)
{
    for (size_t i = 0; i < flags->n; i++) {
        const struct roster_member *m = &flags->members[i];
        struct roster_member *more = &o->r.members[o->r.n];

        if (m == flags->self)
            continue;
        *more = (struct roster_member){.name = m->name, .urls.urls = arena_alloc(&c->arena, (m->urls.n + 1) * sizeof(struct url))};
        if (more->urls.urls == NULL)
            return -ENOMEM;
        for (size_t k = 0; k < m->urls.n; k++)
            if (!is_named(o, self, m->urls.urls[k].text))
                more->urls.urls[more->urls.n++] = m->urls.urls[k];
        o->r.n += more->urls.n > 0;
    }
    return 0;
}

/* NULL, or why nobody is known. */
static const char *find_others(const struct bootstrap *b, struct config *c, struct others *ret)
{
    struct datadir_peers p = {0};
    struct url_list self = {0};
    struct roster flags = {0};
    struct others o = {0};
    const char *bad = roster_read(c, &flags);
    int rc = datadir_read_peers(&b->dir, &c->arena, &p), err = 0;

    if (rc && rc != -ENOENT)
        log_warn("DIR/PEERS, which names the other members, cannot be read; the flags are asked for them",
                 LOG_STR("error", rc == -EUCLEAN           ? "it is damaged"
                                  : rc == -EPROTONOSUPPORT ? "its format is not known to this version"
                                                           : strerror(-rc)));
    if (rc || p.cluster_id != b->cluster_id || p.member_id != b->member_id)
        p.n = 0; /* none, or another member's */
    o.r.members = arena_alloc(&c->arena, (p.n + flags.n + 1) * sizeof *o.r.members);
    if (o.r.members == NULL)
        return "out of memory";
    if (p.n)
        err = add_known(b, c, &p, &o, &self);
    if (err == 0 && bad == NULL)
        err = add_named(c, &flags, &self, &o);
    *ret = o;
    if (err)
        return "out of memory";
    return o.r.n ? NULL : bad ? bad : "neither DIR/PEERS nor --initial-cluster names another member";
}

/* ---- asking ------------------------------------------------------------------------------------ */

/* It has this member, and others. */
static bool lists(const struct bootstrap_cluster *k, uint64_t id)
{
    for (size_t i = 0; i < k->n; i++)
        if (k->members[i].id == id)
            return k->n > 1;
    return false;
}

/* What was answered, in the configuration's arena. */
static int keep(struct config *c, const struct bootstrap_cluster *from, struct bootstrap_cluster *ret)
{
    struct bootstrap_cluster k = {.id = from->id,
                                  .members = arena_alloc(&c->arena, (from->n + 1) * sizeof *k.members),
                                  .started = arena_alloc(&c->arena, (from->n + 1) * sizeof *k.started)};

    if (k.members == NULL || k.started == NULL)
        return -ENOMEM;
    for (; k.n < from->n; k.n++) {
        const struct roster_known *m = &from->members[k.n];
        const char **urls = arena_alloc(&c->arena, (m->n_urls + 1) * sizeof *urls);

        for (size_t i = 0; i < m->n_urls; i++) {
            struct slice text = slice_of(m->urls[i], strlen(m->urls[i]) + 1);

            if (urls == NULL || (urls[i] = (const char *)arena_copy(&c->arena, text).ptr) == NULL)
                return -ENOMEM;
        }
        k.members[k.n] = (struct roster_known){m->id, urls, m->n_urls};
        k.started[k.n] = from->started && from->started[k.n];
    }
    *ret = k;
    return 0;
}

/* One of them. Answers that are not taken cost no memory, however long they come. */
static int ask_one(struct bootstrap *b, struct config *c, const struct roster_member *m, const char **ret_why)
{
    struct roster_member copy = *m;
    struct roster one = {.members = &copy, .n = 1};
    struct bootstrap_cluster k;
    struct arena a;
    const char *bad;
    int rc = -EHOSTUNREACH;

    arena_init(&a, ANSWER_BYTES, NULL, 0);
    bad = b->ask(b->ask_ctx, &a, &one, &k);
    if (bad)
        (void)snprintf(b->said, sizeof b->said, "%s", bad);
    else if (k.id != b->cluster_id)
        (void)snprintf(b->said, sizeof b->said, "%s is of cluster %llx, not of %llx", m->urls.n ? m->urls.urls[0].text : m->name,
                       (unsigned long long)k.id, (unsigned long long)b->cluster_id);
    else if ((rc = keep(c, &k, &b->running)) != 0)
        (void)snprintf(b->said, sizeof b->said, "%s", strerror(-rc));
    else if (!lists(&k, b->member_id))
        rc = -ESRCH;
    *ret_why = b->said;
    arena_fini(&a);
    return rc;
}

/* One after the other, until one lists this member. One that does not may be behind. */
static int ask_all(struct bootstrap *b, struct config *c, const struct roster *r, const char **ret_why)
{
    int ret = -EHOSTUNREACH;

    for (size_t i = 0; i < r->n; i++) {
        int rc = ask_one(b, c, &r->members[i], ret_why);

        if (rc == 0)
            return 0;
        if (rc == -ESRCH)
            ret = rc;
    }
    return ret;
}

int bootstrap_ask_others(struct bootstrap *b, struct config *c, bool wait, const char **ret_why)
{
    struct others o;
    int rc;

    *ret_why = "this member has no peer port";
    if (b->ask == NULL)
        return -ENOENT;
    *ret_why = find_others(b, c, &o);
    if (*ret_why)
        return -ENOENT;
    for (unsigned n = 0; (rc = ask_all(b, c, &o.r, ret_why)) == -EHOSTUNREACH; n++) {
        if (!wait || o.alone || b->wait == NULL || !b->wait(b->ask_ctx))
            return rc;
        if (n % SAY_EVERY == 0)
            log_warn("waiting for the other members, to ask all of the store of them",
                     LOG_STR("found", *b->error ? b->error : "it is being rebuilt"), LOG_STR("said", *ret_why));
    }
    return rc;
}
