/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: no configuration file, duration, list of URLs or command line makes config_*.c or yaml.c touch memory that is
 * not theirs, grow without bound or hit an assertion; what was refused says why; what was accepted is well formed. The
 * first byte of an input says which of them reads the rest. */
#include "daemon/config.h"
#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define FUZZ_NAME "config"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

enum { ARENA_BYTES = 4 << 20, ARGS_MAX = 20 };

/* The calls of one file. */
struct seen {
    size_t n;
};

static const char *see(void *ctx, const char *key, const char *value)
{
    struct seen *s = ctx;

    s->n += strlen(key) + strlen(value) + 1;
    return strcmp(value, "refuse") == 0 ? "refused" : NULL;
}

static void yaml(struct arena *a, struct slice text)
{
    struct seen s = {0};
    const char *bad = config_parse_yaml(a, text, see, &s);

    assert(bad == NULL || *bad);
}

static void durations(struct arena *a, const char *text)
{
    int64_t ns = 42;
    const char *bad = config_parse_duration(a, text, &ns);

    assert(bad == NULL || *bad);
    assert(bad == NULL || ns == 42); /* untouched on failure */
}

static void urls(struct arena *a, const char *text)
{
    struct url_list l = {0};
    const char *bad = config_parse_urls(a, text, &l);

    if (bad) {
        assert(*bad);
        return;
    }
    for (size_t i = 0; i < l.n; i++) {
        const struct url *u = &l.urls[i];
        bool is_unix = u->scheme == URL_UNIX || u->scheme == URL_UNIXS;

        assert(u->text != NULL && u->host != NULL && (is_unix ? u->path != NULL : u->port != NULL));
        assert(i == 0 || strcmp(l.urls[i - 1].text, u->text) <= 0);
    }
}

/* What it says of each is nobody's news. */
static enum config_result read_quietly(struct config *c, int argc, char **argv, char **env)
{
    static int saved[3], null = -1;
    enum config_result rc;

    if (null < 0) {
        null = open("/dev/null", O_WRONLY | O_CLOEXEC);
        saved[1] = dup(STDOUT_FILENO);
        saved[2] = dup(STDERR_FILENO);
        assert(null >= 0 && saved[1] >= 0 && saved[2] >= 0);
    }
    (void)fflush(stdout);
    for (int fd = 1; fd <= 2; fd++)
        assert(dup2(null, fd) == fd);
    rc = config_read(c, argc, argv, env);
    (void)fflush(stdout);
    for (int fd = 1; fd <= 2; fd++)
        assert(dup2(saved[fd], fd) == fd);
    return rc;
}

/* Arguments end at a newline each; those before "--env" are flags, those behind it the environment. */
static void command_line(char *text)
{
    char *args[ARGS_MAX + 2] = {"cairnd"}, *env[ARGS_MAX + 2] = {NULL};
    size_t n_args = 1, n_env = 0;
    struct config c;
    bool in_env = false;

    for (char *save, *w = strtok_r(text, "\n", &save); w; w = strtok_r(NULL, "\n", &save)) {
        if (strcmp(w, "--env") == 0)
            in_env = true;
        else if (in_env && n_env < ARGS_MAX)
            env[n_env++] = w;
        else if (!in_env && n_args < ARGS_MAX && strstr(w, "config-file") == NULL)
            args[n_args++] = w; /* no file of this machine is read */
    }
    for (size_t i = 0; i < n_env; i++)
        if (strncmp(env[i], "ETCD_CONFIG_FILE", 16) == 0)
            return;
    if (read_quietly(&c, (int)n_args, args, env) == CONFIG_RUN) {
        assert(c.listen_client.n > 0 && c.advertise_client.n > 0 && c.listen_peer.n > 0);
        assert(c.election_ms >= 5 * c.heartbeat_ms && c.heartbeat_ms > 0);
        assert(*c.name && *c.data_dir && c.max_txn_ops > 0 && c.max_request_bytes > 0);
        config_fini(&c);
    }
}

/* As main reads it: from a file, which may say anything. */
static void file(const uint8_t *bytes, size_t n)
{
    char path[] = "/tmp/cairn-fuzz-config-XXXXXX";
    char *args[] = {"cairnd", "--config-file", path, NULL}, *env[] = {NULL};
    int fd = mkstemp(path);
    struct config c;

    assert(fd >= 0);
    assert(write(fd, bytes, n) == (ssize_t)n);
    (void)close(fd);
    if (read_quietly(&c, 3, args, env) == CONFIG_RUN)
        config_fini(&c);
    (void)unlink(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    struct arena a;
    char *text;

    if (n == 0)
        return 0;
    text = malloc(n);
    assert(text != NULL);
    memcpy(text, bytes + 1, n - 1);
    text[n - 1] = 0;
    arena_init(&a, ARENA_BYTES, NULL, 0);
    switch (*bytes % 5) {
    case 0:
        yaml(&a, slice_of(text, n - 1));
        break;
    case 1:
        durations(&a, text);
        break;
    case 2:
        urls(&a, text);
        break;
    case 3:
        command_line(text);
        break;
    default:
        file(bytes + 1, n - 1);
    }
    arena_fini(&a);
    free(text);
    return 0;
}

#include "replay.inc"
