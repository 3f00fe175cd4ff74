/* SPDX-License-Identifier: Apache-2.0 */
/* http.c - the HTTP/1.1 endpoints.
 *
 * A request is told once its headers and body are here (the body is thrown away). A route either answers at once, or
 * runs checks; a check that needs a linearizable read suspends the connection, and the answer is made when it resumes.
 *
 * Owner:    libmicrohttpd's thread; struct http_read is shared with whoever reads, see its comment.
 * Not here: what the metrics are (metrics.c), how a read becomes linearizable.
 * Source:   etcd v3.7.1 as reference 05-http tells it, down to Go's words for 404 and 405.
 */
#include "http.h"
#include <errno.h>
#include <limits.h>
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>
#include "err.h"
#include "limits.h"

enum { IDLE_S = 30, CONNECTION_MEMORY_BYTES = 16 << 10, TEXT_BYTES = 2048 };

enum check { CHECK_CORRUPTION, CHECK_SERIALIZABLE, CHECK_LINEARIZABLE, CHECK_NON_LEARNER, CHECKS };

static const char *const check_names[CHECKS] = {"data_corruption", "serializable_read", "linearizable_read",
                                                "non_learner"};

enum route_kind { ROUTE_VERSION, ROUTE_METRICS, ROUTE_HEALTH, ROUTE_CHECKS };

struct route {
    const char *path;
    enum route_kind kind;
    unsigned checks; /* 1u << enum check; paths below name one of them */
};

static const struct route routes[] = {
    {"/version", ROUTE_VERSION, 0},
    {"/metrics", ROUTE_METRICS, 0},
    {"/health", ROUTE_HEALTH, 0},
    {"/livez", ROUTE_CHECKS, 1u << CHECK_SERIALIZABLE},
    {"/readyz", ROUTE_CHECKS,
     1u << CHECK_CORRUPTION | 1u << CHECK_SERIALIZABLE | 1u << CHECK_LINEARIZABLE | 1u << CHECK_NON_LEARNER},
};

/* One request. Freed when both sides are through with it. */
struct http_read {
    struct http *http;
    struct MHD_Connection *connection;
    struct http_read *prev, *next; /* in http->reads while outside */
    bool inside;                   /* libmicrohttpd may call for it. Protected by http->mu */
    bool outside;                  /* http_read_done is owed. Protected by http->mu */
    bool suspended;                /* Protected by http->mu */
    bool asked;                    /* a read was begun */
    int err;                       /* its result. Protected by http->mu until the connection resumes */
};

struct http {
    struct http_options options;
    struct MHD_Daemon *daemon;
    /* A read ends on a thread that must not wait and knows no mailbox of libmicrohttpd's, whose own lock does the
     * rest. */
    pthread_mutex_t mu;
    pthread_cond_t resumed;
    unsigned resuming; /* protected by mu */
    bool stopping;     /* protected by mu */
    struct http_read *reads;
    /* Counted here: libmicrohttpd 0.9.75's own limit leaves its thread waiting for a lock it holds, for ever. */
    _Atomic unsigned n_connections;
};

/* ---- answers --------------------------------------------------------------------- */

struct answer {
    unsigned status;
    const char *type, *allow;
    bool nosniff;
    const char *text; /* copied */
    size_t n;
};

#define TEXT_PLAIN "text/plain; charset=utf-8"

static void add(struct MHD_Response *r, const char *name, const char *value)
{
    if (value)
        (void)MHD_add_response_header(r, name, value); /* without it the answer is still an answer */
}

static enum MHD_Result answer(struct MHD_Connection *c, struct answer a)
{
    struct MHD_Response *r =
        MHD_create_response_from_buffer(a.n, (void *)(uintptr_t)a.text, MHD_RESPMEM_MUST_COPY);
    enum MHD_Result done;

    if (r == NULL)
        return MHD_NO;
    add(r, "Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE");
    add(r, "Access-Control-Allow-Origin", "*");
    add(r, "Access-Control-Allow-Headers", "accept, content-type, authorization");
    add(r, "Content-Type", a.type);
    add(r, "Allow", a.allow);
    add(r, "X-Content-Type-Options", a.nosniff ? "nosniff" : NULL);
    done = MHD_queue_response(c, a.status, r);
    MHD_destroy_response(r);
    return done;
}

/* As Go's http.Error says it. */
static enum MHD_Result answer_error(struct MHD_Connection *c, unsigned status, const char *allow, const char *text)
{
    return answer(c, (struct answer){.status = status, .type = TEXT_PLAIN, .allow = allow, .nosniff = true,
                                     .text = text, .n = strlen(text)});
}

static enum MHD_Result answer_version(const struct http *h, struct MHD_Connection *c)
{
    char text[TEXT_BYTES];
    int n = snprintf(text, sizeof text, "{\"etcdserver\":\"%s\",\"etcdcluster\":\"%s\",\"storage\":\"%s\"}",
                     h->options.version, h->options.cluster_version, h->options.cluster_version);

    return answer(c, (struct answer){.status = 200, .type = "application/json", .text = text, .n = (size_t)n});
}

static enum MHD_Result answer_metrics(const struct http *h, struct MHD_Connection *c)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    enum MHD_Result done = MHD_NO;

    if (f == NULL)
        return MHD_NO;
    h->options.metrics(h->options.ctx, f);
    if (fclose(f) == 0)
        done = answer(c, (struct answer){.status = 200, .type = "text/plain; version=0.0.4; charset=utf-8",
                                         .text = text, .n = n});
    free(text);
    return done;
}

/* ---- the state of the member, as checks see it -------------------------------------- */

static unsigned alarms(const struct http *h)
{
    return h->options.alarms ? h->options.alarms(h->options.ctx) : 0;
}

static bool has_leader(const struct http *h)
{
    return h->options.has_leader == NULL || h->options.has_leader(h->options.ctx);
}

static bool is_learner(const struct http *h)
{
    return h->options.is_learner && h->options.is_learner(h->options.ctx);
}

struct wanted {
    const char *key, *value;
    bool found;
};

static enum MHD_Result match(void *ctx, enum MHD_ValueKind kind, const char *key, const char *value)
{
    struct wanted *w = ctx;

    (void)kind;
    if (strcmp(key, w->key) == 0 && (w->value == NULL || (value && strcmp(value, w->value) == 0)))
        w->found = true;
    return w->found ? MHD_NO : MHD_YES;
}

/* Whether the query has key=value, value NULL: any. Keys may be repeated. */
static bool query_has(struct MHD_Connection *c, const char *key, const char *value)
{
    struct wanted w = {.key = key, .value = value};

    (void)MHD_get_connection_values(c, MHD_GET_ARGUMENT_KIND, match, &w);
    return w.found;
}

/* ---- /health --------------------------------------------------------------------------- */

static enum MHD_Result answer_health(struct MHD_Connection *c, const char *reason, const char *detail)
{
    char text[TEXT_BYTES];
    int n = snprintf(text, sizeof text, "{\"health\":\"%s\",\"reason\":\"%s%s\"}%s", reason ? "false" : "true",
                     reason ? reason : "", detail, reason ? "\n" : "");

    return answer(c, (struct answer){.status = reason ? 503 : 200, .type = TEXT_PLAIN, .nosniff = reason != NULL,
                                     .text = text, .n = (size_t)n});
}

/* What is wrong without a read; NULL: nothing. */
static const char *health_reason(const struct http *h, struct MHD_Connection *c)
{
    unsigned bad = alarms(h);

    if ((bad & HTTP_ALARM_NOSPACE) && !query_has(c, "exclude", "NOSPACE"))
        return "ALARM NOSPACE";
    if ((bad & HTTP_ALARM_CORRUPT) && !query_has(c, "exclude", "CORRUPT"))
        return "ALARM CORRUPT";
    if (!query_has(c, "serializable", "true") && !has_leader(h))
        return "RAFT NO LEADER";
    return NULL;
}

/* ---- /livez and /readyz ------------------------------------------------------------------ */

/* What is wrong with one check; NULL: nothing. */
static const char *check_reason(const struct http_read *r, enum check check)
{
    switch (check) {
    case CHECK_CORRUPTION:
        return alarms(r->http) & HTTP_ALARM_CORRUPT ? "alarm activated: CORRUPT" : NULL;
    case CHECK_LINEARIZABLE:
        return r->err ? err_info(r->err).text : NULL;
    case CHECK_NON_LEARNER:
        return is_learner(r->http) ? "not supported for learner" : NULL;
    case CHECK_SERIALIZABLE: /* a view of this member's own state can always be opened */
    case CHECKS:
        break;
    }
    return NULL;
}

static enum MHD_Result answer_checks(const struct http_read *r, unsigned checks)
{
    char text[TEXT_BYTES];
    size_t n = 0;
    bool failed = false;

    for (unsigned i = 0; i < CHECKS; i++) {
        const char *why = checks & 1u << i ? check_reason(r, i) : NULL;

        failed |= why != NULL;
        if (checks & 1u << i)
            n += (size_t)snprintf(text + n, sizeof text - n, "[%c]%s %s%s\n", why ? '-' : '+', check_names[i],
                                  why ? "failed: " : "ok", why ? why : "");
    }
    if (failed) {
        snprintf(text + n, sizeof text - n, "\n");
        return answer_error(r->connection, 503, NULL, text);
    }
    if (!query_has(r->connection, "verbose", NULL))
        n = 0;
    snprintf(text + n, sizeof text - n, "ok\n");
    return answer_error(r->connection, 200, NULL, text);
}

/* ---- requests -------------------------------------------------------------------------------- */

/* The checks that this path names, less what is excluded; 0 with *ret_known false: no such path. */
static unsigned checks_of(const struct route *route, struct MHD_Connection *c, const char *below, bool *ret_known)
{
    unsigned checks = 0;

    *ret_known = true;
    if (*below == '\0') {
        for (unsigned i = 0; i < CHECKS; i++)
            if ((route->checks & 1u << i) && !query_has(c, "exclude", check_names[i]))
                checks |= 1u << i;
        return checks;
    }
    for (unsigned i = 0; i < CHECKS; i++)
        if ((route->checks & 1u << i) && strcmp(below + 1, check_names[i]) == 0)
            return 1u << i;
    *ret_known = false;
    return 0;
}

static const struct route *route_of(const char *url, const char **ret_below)
{
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        size_t n = strlen(routes[i].path);

        if (strncmp(url, routes[i].path, n))
            continue;
        *ret_below = url + n;
        if (url[n] == '\0' || (url[n] == '/' && routes[i].kind == ROUTE_CHECKS))
            return &routes[i];
    }
    return NULL;
}

/* Suspends the connection and begins the read; the request comes back when it is done. */
static enum MHD_Result begin_read(struct http_read *r)
{
    struct http *h = r->http;
    bool stopping;

    r->asked = true;
    pthread_mutex_lock(&h->mu);
    stopping = h->stopping;
    r->outside = true;
    r->suspended = !stopping;
    r->next = h->reads;
    if (r->next)
        r->next->prev = r;
    h->reads = r;
    if (stopping)
        r->err = ERR_STOPPED;
    else
        MHD_suspend_connection(r->connection);
    pthread_mutex_unlock(&h->mu);
    if (stopping)
        http_read_done(r, ERR_STOPPED);
    else
        h->options.read(h->options.ctx, r); /* r may be gone when it returns */
    return MHD_YES;
}

static enum MHD_Result serve(struct http_read *r, const char *url, const char *method)
{
    struct http *h = r->http;
    struct MHD_Connection *c = r->connection;
    const char *below = "", *reason;
    const struct route *route = route_of(url, &below);
    bool known = true, get = strcmp(method, "GET") == 0;
    unsigned checks = 0;

    if (strcmp(method, "OPTIONS") == 0)
        return answer(c, (struct answer){.status = 200, .text = ""});
    if (route && route->kind == ROUTE_CHECKS)
        checks = checks_of(route, c, below, &known);
    if (route == NULL || !known || (route->kind == ROUTE_METRICS && h->options.metrics == NULL))
        return answer_error(c, 404, NULL, "404 page not found\n");
    if (!get && route->kind != ROUTE_METRICS)
        return answer_error(c, 405, "GET", "Method Not Allowed\n");
    switch (route->kind) {
    case ROUTE_VERSION:
        return answer_version(h, c);
    case ROUTE_METRICS:
        return answer_metrics(h, c);
    case ROUTE_HEALTH:
        reason = health_reason(h, c);
        if (reason)
            return answer_health(c, reason, "");
        if (!r->asked && h->options.read && !query_has(c, "serializable", "true"))
            return begin_read(r);
        return r->err ? answer_health(c, "RANGE ERROR:", err_info(r->err).text) : answer_health(c, NULL, "");
    case ROUTE_CHECKS:
        if ((checks & 1u << CHECK_LINEARIZABLE) && !r->asked && h->options.read)
            return begin_read(r);
        return answer_checks(r, checks);
    }
    return MHD_NO;
}

/* libmicrohttpd calls it with the headers, with each piece of the body, at its end, and after a resume. */
static enum MHD_Result on_request(void *ctx, struct MHD_Connection *c, const char *url, const char *method,
                                  const char *version, const char *body, size_t *n_body, void **request)
{
    struct http_read *r = *request;

    (void)version, (void)body;
    if (r == NULL) {
        r = calloc(1, sizeof *r);
        if (r == NULL)
            return MHD_NO;
        *r = (struct http_read){.http = ctx, .connection = c, .inside = true};
        *request = r;
        return MHD_YES;
    }
    if (*n_body) {
        *n_body = 0;
        return MHD_YES;
    }
    return serve(r, url, method);
}

static void on_completed(void *ctx, struct MHD_Connection *c, void **request, enum MHD_RequestTerminationCode why)
{
    struct http *h = ctx;
    struct http_read *r = *request;
    bool last;

    (void)c, (void)why;
    if (r == NULL)
        return;
    pthread_mutex_lock(&h->mu);
    r->inside = false;
    last = !r->outside;
    pthread_mutex_unlock(&h->mu);
    if (last)
        free(r);
}

/* ---- the outside --------------------------------------------------------------------------------- */

/* With mu held: the connection's resume is this caller's to do. */
static bool take_resume(struct http_read *r)
{
    bool mine = r->suspended;

    r->suspended = false;
    if (mine)
        r->http->resuming++;
    return mine;
}

static void resume(struct http *h, struct MHD_Connection *c)
{
    MHD_resume_connection(c);
    pthread_mutex_lock(&h->mu);
    h->resuming--;
    pthread_cond_broadcast(&h->resumed);
    pthread_mutex_unlock(&h->mu);
}

void http_read_done(struct http_read *r, int err)
{
    struct http *h = r->http;
    struct MHD_Connection *c = r->connection;
    bool mine, last;

    pthread_mutex_lock(&h->mu);
    assert(r->outside);
    r->outside = false;
    *(r->prev ? &r->prev->next : &h->reads) = r->next;
    if (r->next)
        r->next->prev = r->prev;
    mine = take_resume(r);
    if (mine)
        r->err = err;
    last = !r->inside;
    pthread_mutex_unlock(&h->mu);
    if (last)
        free(r);
    else if (mine)
        resume(h, c);
}

int http_new(const struct http_options *o, struct http **ret_http)
{
    struct http *h = calloc(1, sizeof *h);

    if (h == NULL)
        return -ENOMEM;
    h->options = *o;
    pthread_mutex_init(&h->mu, NULL);
    pthread_cond_init(&h->resumed, NULL);
    *ret_http = h;
    return 0;
}

static void on_connection(void *ctx, struct MHD_Connection *c, void **state, enum MHD_ConnectionNotificationCode what)
{
    struct http *h = ctx;

    (void)c, (void)state;
    if (what == MHD_CONNECTION_NOTIFY_CLOSED)
        atomic_fetch_sub(&h->n_connections, 1);
}

int http_start(struct http *h)
{
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME;

    h->daemon = MHD_start_daemon(flags, 0, NULL, NULL, on_request, h,                                   //
                                 MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,                          //
                                 MHD_OPTION_NOTIFY_CONNECTION, on_connection, h,                        //
                                 MHD_OPTION_CONNECTION_LIMIT, UINT_MAX,                                 //
                                 MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_S,                       //
                                 MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY_BYTES, //
                                 MHD_OPTION_END);
    return h->daemon ? 0 : -ENOMEM;
}

void http_add(struct http *h, int fd, const struct sockaddr *addr, socklen_t len)
{
    if (h->daemon == NULL) {
        (void)close(fd);
        return;
    }
    if (atomic_fetch_add(&h->n_connections, 1) >= LIMIT_HTTP_CONNECTIONS)
        (void)close(fd);
    else if (MHD_add_connection(h->daemon, fd, addr, len) == MHD_YES)
        return; /* on_connection will tell of its end */
    /* else it was refused, and libmicrohttpd has closed the socket */
    atomic_fetch_sub(&h->n_connections, 1);
}

void http_stop(struct http *h)
{
    struct http_read *r;

    if (h->daemon == NULL)
        return;
    pthread_mutex_lock(&h->mu);
    h->stopping = true;
    for (r = h->reads; r;) {
        struct MHD_Connection *c = r->connection;

        if (!take_resume(r)) {
            r = r->next;
            continue;
        }
        r->err = ERR_STOPPED;
        pthread_mutex_unlock(&h->mu);
        resume(h, c);
        pthread_mutex_lock(&h->mu);
        r = h->reads; /* the list may have changed */
    }
    while (h->resuming)
        pthread_cond_wait(&h->resumed, &h->mu);
    pthread_mutex_unlock(&h->mu);
    MHD_stop_daemon(h->daemon);
    h->daemon = NULL;
}

void http_free(struct http *h)
{
    if (h == NULL)
        return;
    http_stop(h);
    while (h->reads) {
        struct http_read *r = h->reads;

        h->reads = r->next;
        free(r);
    }
    pthread_cond_destroy(&h->resumed);
    pthread_mutex_destroy(&h->mu);
    free(h);
}
