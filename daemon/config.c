/* SPDX-License-Identifier: Apache-2.0 */
/* config.c - etcd's flags, environment and configuration file, into struct config.
 *
 * Syntax and precedence are Go's flag package and etcd's pkg/flags. Source: reference 04-flags, checked on etcd 3.7.1.
 *
 * Not here: the flags themselves (config_flags.c), what the values of TLS must be together (config_tls.c), what needs
 * the network or the disk (listen.c, datadir.c). */
#include "config_flags.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/utsname.h>
#include <unistd.h>
#include "log.h"

enum { ARENA_LIMIT = 4 << 20, FILE_LIMIT = 1 << 20, ERROR_BYTES = 768 };

struct reading {
    struct config *c;
    const char *set[FLAGS_MAX]; /* the text given; NULL: the default stands */
    char error[ERROR_BYTES];
};

static const char usage[] = "Usage:\n\n"
                            "  cairnd [flags]\n    Start a member.\n\n"
                            "  cairnd --version\n    Show the version.\n\n"
                            "  cairnd -h | --help\n    Show the flags.\n\n"
                            "  cairnd --config-file PATH\n"
                            "    Read the configuration from a YAML file; other flags and the environment are then ignored.\n"
                            "    Durations in it are integers, in nanoseconds.\n";

static int fail(struct reading *r, int result, const char *format, ...) __attribute__((format(printf, 3, 4)));
static int fail(struct reading *r, int result, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    (void)vsnprintf(r->error, sizeof r->error, format, ap);
    va_end(ap);
    return result;
}

/* It asks for something to be shown, and sets nothing. */
static bool is_action(size_t i)
{
    return config_flags[i].kind == ACTION_HELP || config_flags[i].kind == ACTION_VERSION;
}

/* etcd's own flags that do nothing here yet: only the default is honest. */
static int check_later(struct reading *r, const struct flag *f, const char *text, int result)
{
    bool same = *text == '\0' || strcmp(text, f->initial) == 0;

    if (f->kind == LATER_BOOL)
        same = flag_parse_bool(text) == flag_parse_bool(f->initial);
    if (same)
        return 0;
    return fail(r, result,
                "--%s=%s: this version of cairnd does not have this setting of etcd's yet; remove it, or leave it at \"%s\"",
                f->name, text, f->initial);
}

static int take(struct reading *r, int i, const char *text, const char *where, int result, bool ns)
{
    const struct flag *f = &config_flags[i];
    const char *bad;

    if (f->kind == IGNORED)
        return 0;
    if ((f->kind == LATER_BOOL || f->kind == BOOL) && flag_parse_bool(text) < 0)
        return fail(r, result, "invalid boolean value \"%s\" for %s: parse error", text, where);
    if (f->kind == LATER || f->kind == LATER_BOOL)
        return check_later(r, f, text, CONFIG_BAD);
    bad = flag_store(r->c, f, text, ns);
    if (bad)
        return fail(r, result, "invalid value \"%s\" for %s%s: %s", text, *where == '-' ? "flag " : "", where, bad);
    r->set[i] = text;
    return 0;
}

/* ---- command line -------------------------------------------------------------- */

static int read_args(struct reading *r, int argc, char **argv)
{
    for (int n = 1; n < argc; n++) {
        const char *arg = argv[n], *name = arg, *equals, *text;
        char where[128];
        int i, rc;

        if (arg[0] != '-' || arg[1] == '\0')
            return fail(r, CONFIG_BAD, "\"%s\" is not a valid flag", arg);
        if (strcmp(arg, "--") == 0) {
            if (n + 1 < argc)
                return fail(r, CONFIG_BAD, "\"%s\" is not a valid flag", argv[n + 1]);
            return 0;
        }
        name += name[1] == '-' ? 2 : 1;
        equals = strchr(name, '=');
        i = flag_find(name, equals ? (size_t)(equals - name) : strlen(name));
        if (i < 0)
            return fail(r, CONFIG_USAGE, "flag provided but not defined: -%.*s",
                        (int)(equals ? equals - name : (int)strlen(name)), name);
        if (is_action((size_t)i)) {
            r->set[i] = "true";
            continue;
        }
        if (equals)
            text = equals + 1;
        else if (flag_is_switch(&config_flags[i]))
            text = "true";
        else if (n + 1 < argc)
            text = argv[++n];
        else
            return fail(r, CONFIG_USAGE, "flag needs an argument: -%s", name);
        (void)snprintf(where, sizeof where, "-%s", config_flags[i].name);
        rc = take(r, i, text, where, CONFIG_USAGE, false);
        if (rc)
            return rc;
        r->set[i] = text;
    }
    return 0;
}

/* ---- environment ---------------------------------------------------------------- */

static void env_name(const char *flag, char *dst, size_t size)
{
    size_t n = (size_t)snprintf(dst, size, "ETCD_%s", flag);

    for (size_t i = 0; i < n && i < size; i++)
        dst[i] = dst[i] == '-' ? '_' : (char)toupper((unsigned char)dst[i]);
}

static int read_env_one(struct reading *r, const char *name, size_t len, const char *text)
{
    char want[128];

    for (size_t i = 0; i < config_n_flags; i++) {
        env_name(config_flags[i].name, want, sizeof want);
        if (strlen(want) != len || memcmp(want, name, len) != 0)
            continue;
        if (is_action(i) || config_flags[i].kind == IGNORED)
            return 0;
        if (r->set[i])
            return fail(r, CONFIG_BAD,
                        "conflicting environment variable is shadowed by corresponding command-line flag (either unset "
                        "environment variable or disable flag)): %s",
                        want);
        return *text ? take(r, i, text, want, CONFIG_BAD, false) : 0;
    }
    log_warn("config: unrecognized environment variable", LOG_SLICE("environment-variable", slice_of(name, len)));
    return 0;
}

static int read_env(struct reading *r, char **env)
{
    for (; *env; env++) {
        const char *equals = strchr(*env, '=');
        int rc;

        if (strncmp(*env, "ETCD_", 5) != 0 || equals == NULL)
            continue;
        rc = read_env_one(r, *env, (size_t)(equals - *env), equals + 1);
        if (rc)
            return rc;
    }
    return 0;
}

/* ---- file ------------------------------------------------------------------------ */

static const char *from_file(void *ctx, const char *key, const char *value)
{
    struct reading *r = ctx;
    const char *dot = strchr(key, '.'), *name, **field = NULL;
    struct slice copied = arena_copy(&r->c->arena, slice_of(value, strlen(value) + 1));
    int i = flag_find(key, strlen(key));

    if (copied.ptr == NULL)
        return "out of memory";
    if (dot && (name = config_tls_key(r->c, key, &field)) != NULL) {
        i = flag_find(name, strlen(name));
        dot = NULL;
    } else if (field) {
        *field = (const char *)copied.ptr;
        return NULL;
    }
    if (dot) {
        if (*value == '\0' || flag_parse_bool(value) == 0)
            return NULL;
        (void)fail(r, 0, "%s: this version of cairnd does not have this setting of etcd's yet; remove it", key);
        return r->error;
    }
    if (i < 0) {
        log_warn("config: unknown key in the configuration file is ignored", LOG_STR("key", key));
        return NULL;
    }
    if (is_action((size_t)i) || strcmp(key, "config-file") == 0)
        return NULL;
    return take(r, i, (const char *)copied.ptr, key, CONFIG_BAD, true) ? r->error : NULL;
}

static int read_file(struct reading *r, const char *path)
{
    uint8_t *text = arena_alloc(&r->c->arena, FILE_LIMIT);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    const char *bad;
    ssize_t n;

    if (fd < 0)
        return fail(r, CONFIG_BAD, "open %s: %s", path, strerror(errno));
    n = text ? read(fd, text, FILE_LIMIT) : -1;
    (void)close(fd); /* only read */
    if (n < 0 || n == FILE_LIMIT)
        return fail(r, CONFIG_BAD, "%s: %s", path, n < 0 ? "cannot be read" : "larger than 1 MiB");
    bad = config_parse_yaml(&r->c->arena, slice_of(text, (size_t)n), from_file, r);
    if (bad == r->error)
        return CONFIG_BAD;
    return bad ? fail(r, CONFIG_BAD, "%s: %s", path, bad) : 0;
}

/* ---- what the values must be together -------------------------------------------- */

static bool is_set(const struct reading *r, size_t offset)
{
    for (size_t i = 0; i < config_n_flags; i++)
        if (config_flags[i].offset == offset && config_flags[i].kind <= BOOL)
            return r->set[i] != NULL;
    return false;
}

/* etcd: a number is hours (periodic) or revisions (revision); anything else is a duration. */
static int finish_retention(struct reading *r)
{
    struct config *c = r->c;
    bool periodic = strcmp(c->compaction_mode, "periodic") == 0;
    const char *text = "0";
    uint64_t n;
    int64_t ns;

    for (size_t i = 0; i < config_n_flags; i++)
        if (config_flags[i].offset == AT(compaction_retention) && r->set[i])
            text = r->set[i];
    if (*text == '\0')
        text = "0";
    if (flag_parse_integer(text, true, &n) == NULL) {
        if ((int64_t)n < 0)
            return fail(r, CONFIG_BAD, "--auto-compaction-retention must not be negative (set to %s)", text);
        c->compaction_retention = periodic ? (int64_t)(n > INT64_MAX / 3600000 ? INT64_MAX : n * 3600000) : (int64_t)n;
        return 0;
    }
    if (config_parse_duration(&c->arena, text, &ns) || ns < 0)
        return fail(r, CONFIG_BAD, "error parsing CompactionRetention: time: invalid duration \"%s\"", text);
    c->compaction_retention = periodic ? ns / 1000000 : ns;
    return 0;
}

static int check_listen_urls(struct reading *r, const struct url_list *l)
{
    for (size_t i = 0; i < l->n; i++) {
        const struct url *u = &l->urls[i];
        bool ip = strspn(u->host, "0123456789.") == strlen(u->host) || strchr(u->host, ':');

        if (!url_is_unix(u) && strcmp(u->host, "localhost") != 0 && (!ip || *u->host == '\0'))
            return fail(r, CONFIG_BAD, "expected IP in URL for binding (%s)", u->text);
    }
    return 0;
}

static int check_times(struct reading *r)
{
    const struct config *c = r->c;

    if (c->heartbeat_ms == 0)
        return fail(r, CONFIG_BAD, "--heartbeat-interval must be >0 (set to 0ms)");
    if (c->election_ms == 0)
        return fail(r, CONFIG_BAD, "--election-timeout must be >0 (set to 0ms)");
    if ((uint64_t)c->heartbeat_ms * 5 > c->election_ms)
        return fail(r, CONFIG_BAD, "--election-timeout[%ums] should be at least as 5 times as --heartbeat-interval[%ums]",
                    c->election_ms, c->heartbeat_ms);
    if (c->election_ms > 50000)
        return fail(r, CONFIG_BAD, "--election-timeout[%ums] is too long, and should be set less than 50000ms",
                    c->election_ms);
    return 0;
}

static int finish_defaults(struct reading *r)
{
    struct config *c = r->c;
    char *dir;

    if (*c->name == '\0')
        return fail(r, CONFIG_BAD, "--name must not be empty");
    if (*c->data_dir == '\0') {
        size_t n = strlen(c->name) + sizeof ".etcd";

        dir = arena_alloc(&c->arena, n);
        if (dir == NULL)
            return fail(r, CONFIG_BAD, "out of memory");
        (void)snprintf(dir, n, "%s.etcd", c->name);
        c->data_dir = dir;
    }
    if (c->quota_bytes == 0)
        c->quota_bytes = INT64_C(2) << 30;
    if (c->progress_interval_ms < 100)
        c->progress_interval_ms = 100;
    c->token_given = is_set(r, AT(initial_cluster_token));
    c->name_given = is_set(r, AT(name));
    return 0;
}

static int finish(struct reading *r)
{
    struct config *c = r->c;
    const char *bad;
    int rc = finish_defaults(r);

    rc = rc ? rc : finish_retention(r);
    rc = rc ? rc : check_times(r);
    rc = rc ? rc : check_listen_urls(r, &c->listen_client);
    rc = rc ? rc : check_listen_urls(r, &c->listen_peer);
    if (rc)
        return rc;
    if ((bad = config_tls_check(c)) != NULL)
        return fail(r, CONFIG_BAD, "%s", bad);
    if (is_set(r, AT(listen_client)) && !is_set(r, AT(advertise_client)))
        return fail(r, CONFIG_BAD, "--advertise-client-urls is required when --listen-client-urls is set explicitly");
    for (size_t i = 0; i < c->advertise_client.n; i++)
        if (!url_is_unix(&c->advertise_client.urls[i]) && *c->advertise_client.urls[i].host == '\0')
            return fail(r, CONFIG_BAD,
                        "--advertise-client-urls \"%s\" must be in the format \"host:port\", \"unix:/path/to/socket\" or "
                        "\"unixs:/path/to/socket\" (unexpected empty host (%s))",
                        c->advertise_client.urls[i].text, c->advertise_client.urls[i].text);
    if (c->max_request_bytes == 0 || c->max_request_bytes > (64u << 20))
        return fail(r, CONFIG_BAD, "--max-request-bytes must be from 1 to 67108864 (set to %llu)",
                    (unsigned long long)c->max_request_bytes);
    return 0;
}

static void print_help(void)
{
    (void)fputs(usage, stderr);
    for (size_t i = 0; i < config_n_flags; i++) {
        const struct flag *f = &config_flags[i];

        if (f->help)
            (void)printf("  --%s%s%s%s\n    %s\n", f->name, f->initial ? " '" : "", f->initial ? f->initial : "",
                         f->initial ? "'" : "", f->help);
    }
}

static void print_version(void)
{
    struct utsname u;

    (void)uname(&u);
    (void)printf("etcd Version: %s\nGit SHA: cairn\nGo Version: none (C11)\nGo OS/Arch: linux/%s\n", CAIRN_ETCD_VERSION,
                 strcmp(u.machine, "x86_64") == 0 ? "amd64" : u.machine);
}

enum config_result config_read(struct config *c, int argc, char **argv, char **env)
{
    struct reading r = {.c = c};
    int rc = 0;

    *c = (struct config){0};
    arena_init(&c->arena, ARENA_LIMIT, NULL, 0);
    for (size_t i = 0; i < config_n_flags; i++)
        if (config_flags[i].initial && config_flags[i].kind <= BOOL)
            (void)flag_store(c, &config_flags[i], config_flags[i].initial, false);
    rc = read_args(&r, argc, argv);
    for (size_t i = 0; rc == 0 && i < config_n_flags; i++) {
        if (r.set[i] == NULL || !is_action(i))
            continue;
        if (config_flags[i].kind == ACTION_HELP)
            print_help();
        else
            print_version();
        config_fini(c);
        return CONFIG_DONE;
    }
    if (rc == 0 && getenv("ETCD_CONFIG_FILE") && *c->config_file == '\0')
        c->config_file = getenv("ETCD_CONFIG_FILE");
    if (rc == 0 && *c->config_file) {
        const char *path = c->config_file;

        config_fini(c);
        *c = (struct config){.config_file = path};
        arena_init(&c->arena, ARENA_LIMIT, NULL, 0);
        memset(r.set, 0, sizeof r.set);
        for (size_t i = 0; i < config_n_flags; i++)
            if (config_flags[i].initial && config_flags[i].kind <= BOOL && config_flags[i].offset != AT(config_file))
                (void)flag_store(c, &config_flags[i], config_flags[i].initial, false);
        rc = read_file(&r, path);
    } else if (rc == 0) {
        rc = read_env(&r, env);
    }
    rc = rc ? rc : finish(&r);
    if (rc == CONFIG_USAGE)
        (void)fprintf(stderr, "%s\n%s", r.error, usage);
    else if (rc)
        log_write(LOG_LEVEL_WARN, __FILE__, __LINE__, "failed to verify flags",
                  (const struct log_field[]){{.key = ""}, LOG_STR("error", r.error), {.key = NULL}});
    if (rc)
        config_fini(c);
    return (enum config_result)rc;
}

void config_fini(struct config *c)
{
    arena_fini(&c->arena);
}
