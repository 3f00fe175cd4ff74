/* SPDX-License-Identifier: Apache-2.0 */
/* config_value.c - values of flags: URL lists and Go's durations.
 *
 * Source: the forms of etcd v3.7.1's flags (reference 04-flags, 4 and 4.2); durations as Go's time.ParseDuration takes
 * them. */
#include "config.h"
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>

enum { URLS_MAX = 64, ERROR_BYTES = 512 };

const char *config_say(struct arena *a, const char *format, ...)
{
    char *text = arena_alloc(a, ERROR_BYTES);
    va_list ap;

    if (text == NULL)
        return "out of memory";
    va_start(ap, format);
    (void)vsnprintf(text, ERROR_BYTES, format, ap);
    va_end(ap);
    return text;
}

static const char *copy(struct arena *a, const char *s, size_t n)
{
    char *p = arena_alloc(a, n + 1);

    if (p)
        memcpy(p, s, n);
    return p;
}

static bool is_port(const char *s)
{
    char *end;
    unsigned long v;

    if (!isdigit((unsigned char)*s))
        return false;
    v = strtoul(s, &end, 10);
    return *end == '\0' && v <= 65535;
}

/* host:port, or [v6]:port. */
static const char *parse_host_port(struct arena *a, const char *rest, struct url *u)
{
    const char *colon = strrchr(rest, ':');
    const char *path = strpbrk(rest, "/?#");

    if (path != NULL)
        return config_say(a, "URL must not contain a path: %s", u->text);
    if (colon == NULL || !is_port(colon + 1))
        return config_say(a, "URL address does not have the form \"host:port\": %s", u->text);
    if (*rest == '[' && colon > rest && colon[-1] == ']')
        u->host = copy(a, rest + 1, (size_t)(colon - rest - 2));
    else
        u->host = copy(a, rest, (size_t)(colon - rest));
    u->port = copy(a, colon + 1, strlen(colon + 1));
    u->path = "";
    return u->host && u->port ? NULL : "out of memory";
}

static const char *parse_url(struct arena *a, const char *text, size_t len, struct url *u)
{
    static const struct {
        const char *prefix;
        enum url_scheme scheme;
    } schemes[] = {{"http://", URL_HTTP}, {"https://", URL_HTTPS}, {"unix://", URL_UNIX}, {"unixs://", URL_UNIXS}};

    *u = (struct url){.text = copy(a, text, len), .host = "", .port = "", .path = ""};
    if (u->text == NULL)
        return "out of memory";
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        size_t n = strlen(schemes[i].prefix);

        if (strncmp(u->text, schemes[i].prefix, n) != 0)
            continue;
        u->scheme = schemes[i].scheme;
        if (!url_is_unix(u))
            return parse_host_port(a, u->text + n, u);
        u->path = u->text + n;
        return *u->path ? NULL : config_say(a, "URL has no socket path: %s", u->text);
    }
    return config_say(a, "URL scheme must be http, https, unix, or unixs: %s", u->text);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(((const struct url *)a)->text, ((const struct url *)b)->text);
}

const char *config_parse_urls(struct arena *a, const char *text, struct url_list *ret_urls)
{
    struct url_list l = {.urls = arena_alloc(a, URLS_MAX * sizeof *l.urls)};
    size_t kept = 0;

    if (l.urls == NULL)
        return "out of memory";
    for (const char *p = text; *p; p += *p == ',') {
        const char *start = p + strspn(p, " ");
        size_t len;

        p = start + strcspn(start, ",");
        len = (size_t)(p - start);
        while (len && start[len - 1] == ' ')
            len--;
        if (l.n == URLS_MAX)
            return config_say(a, "too many URLs, at most %d", URLS_MAX);
        const char *bad = parse_url(a, start, len, &l.urls[l.n++]);
        if (bad)
            return bad;
    }
    if (l.n)
        qsort(l.urls, l.n, sizeof *l.urls, by_text);
    for (size_t i = 0; i < l.n; i++)
        if (i == 0 || strcmp(l.urls[i].text, l.urls[kept - 1].text) != 0)
            l.urls[kept++] = l.urls[i];
    l.n = kept;
    *ret_urls = l;
    return NULL;
}

/* One "1.5h" of a duration. */
static const char *duration_part(const char **p, double *ns)
{
    static const struct {
        const char *name;
        double ns;
    } units[] = {{"ns", 1},   {"us", 1e3},  {"\xc2\xb5s", 1e3}, {"\xce\xbcs", 1e3}, {"ms", 1e6},
                 {"s", 1e9}, {"m", 60e9}, {"h", 3600e9}};
    char number[32];
    size_t n = strspn(*p, "0123456789.");

    if (n == 0 || n >= sizeof number)
        return "parse error";
    memcpy(number, *p, n);
    number[n] = '\0';
    if (strchr(number, '.') != strrchr(number, '.') || strcmp(number, ".") == 0)
        return "parse error";
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        size_t u = strlen(units[i].name);

        if (strncmp(*p + n, units[i].name, u) == 0 && !isalpha((unsigned char)(*p)[n + u])) {
            *ns += strtod(number, NULL) * units[i].ns;
            *p += n + u;
            return NULL;
        }
    }
    return "parse error";
}

const char *config_parse_duration(struct arena *a, const char *text, int64_t *ret_ns)
{
    const char *p = text;
    double ns = 0;
    bool negative = *p == '-';

    (void)a;
    if (*p == '-' || *p == '+')
        p++;
    if (strcmp(p, "0") == 0) {
        *ret_ns = 0;
        return NULL;
    }
    if (*p == '\0')
        return "parse error";
    while (*p)
        if (duration_part(&p, &ns))
            return "parse error";
    if (ns > 9.2e18)
        return "parse error";
    *ret_ns = negative ? -(int64_t)ns : (int64_t)ns;
    return NULL;
}
