/* SPDX-License-Identifier: Apache-2.0 */
/* main_options.c - the command line of cairnfs. Source of what mount(8) passes: mount(8), fstab(5). */
#include "main_options.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define VERSION           "0.1.0"
#define MAX_REQUEST_BYTES 1572864 /* etcd's default */
#define GRACE_MS          5000
#define PEM_MAX_BYTES     (1 << 20)

static const char usage[] =
    "usage: cairnfs [options] ENDPOINT[,ENDPOINT...][:PREFIX] MOUNTPOINT\n"
    "\n"
    "Shows the keys of an etcd v3 cluster as files. ENDPOINT is host:port or unix:/path; with :PREFIX only "
    "the keys\n"
    "below it are shown (%XX for bytes that need it).\n"
    "\n"
    "  -f                   stay in the foreground\n"
    "  -o OPTION[,...]      see below; also nosuid, nodev, ro and the like\n"
    "  -V, --version        say the version and exit\n"
    "  -h, --help           this text\n"
    "\n"
    "  cached               open without asking the cluster, keep pages in the kernel\n"
    "  linear               ask the cluster at each read\n"
    "  strict               never answer from memory while no quorum answers\n"
    "  meta=ignore          chmod, chown and utimes succeed and do nothing (default meta=fail)\n"
    "  events=modify        a new value gives MODIFY alone (default events=full: OPEN, MODIFY, CLOSE_WRITE)\n"
    "  commit=write         every write(2) is a revision (default commit=close)\n"
    "  conflict=fail        a whole rewrite of a value changed meanwhile fails with ESTALE (default "
    "conflict=last)\n"
    "  dirmarkers=off       mkdir makes no key (default dirmarkers=on: an empty key DIR/)\n"
    "  overlay=off          publish editors' and temporary files too (default overlay=on)\n"
    "  ro                   refuse every change with EROFS\n"
    "  allow_other          let other users in\n"
    "  uid=N gid=N umask=O  owner and permissions shown\n"
    "  grace=SECONDS        how long changes wait for a lost quorum before EROFS (5)\n"
    "  timeout=SECONDS      how long any one question or change may take (10)\n"
    "  max-request-bytes=N  the server's --max-request-bytes (1572864)\n"
    "  cacert=FILE          TLS: who signs the servers' certificates (PEM); also --cacert FILE\n"
    "  cert=FILE key=FILE   TLS: our certificate and its key; also --cert FILE, --key FILE. With any of these, or\n"
    "                       https:// before it, an ENDPOINT is spoken to over TLS\n";

static int hex(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

static const char *parse_prefix(struct options *o, const char *s)
{
    uint8_t *p = malloc(strlen(s) + 1);
    size_t len = 0;

    if (p == NULL)
        return "out of memory";
    for (; *s; s++) {
        if (*s == '%') {
            int hi = hex(s[1]), lo = hi < 0 ? -1 : hex(s[2]);

            if (lo < 0) {
                free(p);
                return "the PREFIX has a % that two hexadecimal digits do not follow; write % itself as %25";
            }
            p[len++] = (uint8_t)(hi * 16 + lo);
            s += 2;
        } else
            p[len++] = (uint8_t)*s;
    }
    o->prefix = slice_of(p, len);
    return NULL;
}

/* The length of the endpoint s begins with, or 0: it is none. */
static size_t endpoint_len(const char *s)
{
    const char *p = s;

    if (strncmp(p, "unix:", 5) == 0) {
        p += 5;
        p += strcspn(p, ":,");
        return p > s + 5 ? (size_t)(p - s) : 0;
    }
    if (strncmp(p, "http://", 7) == 0)
        p += 7;
    else if (strncmp(p, "https://", 8) == 0)
        p += 8;
    if (*p == '[') {
        p += strcspn(p, "]");
        p += *p == ']';
    } else
        p += strcspn(p, ":,/");
    if (*p++ != ':' || !isdigit((unsigned char)*p))
        return 0;
    while (isdigit((unsigned char)*p))
        p++;
    return *p == 0 || *p == ',' || *p == ':' ? (size_t)(p - s) : 0;
}

const char *options_parse_source(struct options *o, const char *source)
{
    for (const char *s = source;; s++) {
        size_t len = endpoint_len(s);

        if (len == 0)
            return "an ENDPOINT is host:port, [ipv6]:port or unix:/path; the port must be given";
        if (o->n_endpoints == CLIENT_ENDPOINTS_MAX)
            return "too many endpoints";
        o->endpoints[o->n_endpoints] = strndup(s, len);
        if (o->endpoints[o->n_endpoints++] == NULL)
            return "out of memory";
        s += len;
        if (*s == ':')
            return parse_prefix(o, s + 1);
        if (*s == 0)
            return NULL;
    }
}

/* ---- -o ------------------------------------------------------------------------- */

enum word_kind { WORD_TRUE, WORD_FALSE, WORD_UID, WORD_GID, WORD_UMASK, WORD_SECONDS, WORD_BYTES, WORD_PEM, WORD_DROP };

#define AT(field) offsetof(struct options, field)
static const struct word {
    const char *text; /* ending in '=': a value follows */
    enum word_kind kind;
    size_t at;
} words[] = {
    {"cached", WORD_TRUE, AT(cached)},
    {"linear", WORD_TRUE, AT(linear)},
    {"strict", WORD_TRUE, AT(strict)},
    {"meta=ignore", WORD_TRUE, AT(meta_ignore)},
    {"meta=fail", WORD_FALSE, AT(meta_ignore)},
    {"events=modify", WORD_TRUE, AT(events_modify)},
    {"events=full", WORD_FALSE, AT(events_modify)},
    {"commit=write", WORD_TRUE, AT(commit_write)},
    {"commit=close", WORD_FALSE, AT(commit_write)},
    {"conflict=fail", WORD_TRUE, AT(conflict_fail)},
    {"conflict=last", WORD_FALSE, AT(conflict_fail)},
    {"dirmarkers=off", WORD_FALSE, AT(dirmarkers)},
    {"dirmarkers=on", WORD_TRUE, AT(dirmarkers)},
    {"overlay=off", WORD_FALSE, AT(overlay)},
    {"overlay=on", WORD_TRUE, AT(overlay)},
    {"ro", WORD_TRUE, AT(read_only)},
    {"rw", WORD_FALSE, AT(read_only)},
    {"allow_other", WORD_TRUE, AT(allow_other)},
    {"uid=", WORD_UID, AT(uid)},
    {"gid=", WORD_GID, AT(gid)},
    {"umask=", WORD_UMASK, AT(umask)},
    {"grace=", WORD_SECONDS, AT(grace_ms)},
    {"timeout=", WORD_SECONDS, AT(timeout_ms)},
    {"max-request-bytes=", WORD_BYTES, AT(max_request_bytes)},
    {"cacert=", WORD_PEM, AT(ca_pem)},
    {"cert=", WORD_PEM, AT(cert_pem)},
    {"key=", WORD_PEM, AT(key_pem)},
    /* What fstab lines carry for mount(8) and systemd, not for us. */
    {"defaults", WORD_DROP, 0},
    {"auto", WORD_DROP, 0},
    {"noauto", WORD_DROP, 0},
    {"nofail", WORD_DROP, 0},
    {"_netdev", WORD_DROP, 0},
    {"user", WORD_DROP, 0},
    {"users", WORD_DROP, 0},
    {"nouser", WORD_DROP, 0},
};

static int set_number(struct options *o, const struct word *w, const char *text)
{
    void *at = (char *)o + w->at;
    char *end;
    unsigned long long n;

    errno = 0;
    n = strtoull(text, &end, w->kind == WORD_UMASK ? 8 : 10);
    if (!isdigit((unsigned char)*text) || *end || errno)
        return -EINVAL;
    if (w->kind == WORD_BYTES)
        *(uint64_t *)at = n;
    else if (w->kind == WORD_SECONDS && n <= 86400)
        *(int64_t *)at = (int64_t)n * 1000;
    else if (w->kind == WORD_UMASK && n <= 0777)
        *(mode_t *)at = (mode_t)n;
    else if ((w->kind == WORD_UID || w->kind == WORD_GID) && n < UINT32_MAX)
        *(uint32_t *)at = (uint32_t)n;
    else
        return -EINVAL;
    return 0;
}

/* The file's bytes into *at. */
static int read_pem(char **at, const char *path)
{
    FILE *f = fopen(path, "re");
    char *text = f ? malloc(PEM_MAX_BYTES) : NULL;
    size_t n = text ? fread(text, 1, PEM_MAX_BYTES, f) : 0;
    int rc = f == NULL ? -errno : text == NULL ? -ENOMEM : ferror(f) ? -EIO : n == PEM_MAX_BYTES ? -EFBIG : 0;

    if (f)
        (void)fclose(f); /* only read */
    if (rc) {
        fprintf(stderr, "cairnfs: %s: %s\n", path, strerror(-rc));
        free(text);
        return rc;
    }
    text[n] = '\0';
    free(*at);
    *at = text;
    return 0;
}

static int pass_to_fuse(struct options *o, const char *text)
{
    char *joined = NULL;

    if (asprintf(&joined, "%s,%s", o->fuse_options, text) < 0)
        return -ENOMEM;
    free(o->fuse_options);
    o->fuse_options = joined;
    return 0;
}

static int parse_word(struct options *o, const char *text)
{
    if (strncmp(text, "x-", 2) == 0 || strncmp(text, "comment=", 8) == 0)
        return 0; /* systemd's and the administrator's */
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        const struct word *w = &words[i];
        size_t len = strlen(w->text);

        if (w->text[len - 1] == '=' ? strncmp(text, w->text, len) != 0 : strcmp(text, w->text) != 0)
            continue;
        if (w->kind == WORD_TRUE || w->kind == WORD_FALSE)
            *(bool *)((char *)o + w->at) = w->kind == WORD_TRUE;
        else if (w->kind == WORD_PEM)
            return read_pem((char **)(void *)((char *)o + w->at), text + len);
        else if (w->kind != WORD_DROP)
            return set_number(o, w, text + len);
        return 0;
    }
    return pass_to_fuse(o, text); /* libfuse says so if it does not know it either */
}

static int parse_list(struct options *o, char *list)
{
    for (char *word; (word = strsep(&list, ",")) != NULL;)
        if (*word && parse_word(o, word) != 0) {
            fprintf(stderr, "cairnfs: -o %s: the value is not one this option takes; see cairnfs --help\n",
                    word);
            return -EINVAL;
        }
    return 0;
}

/* An absolute path without touching the mount point itself, which may be a dead mount. */
static char *resolve(const char *path)
{
    char *real = realpath(path, NULL), *joined = NULL, *cwd;

    if (real)
        return real;
    if (*path == '/')
        return strdup(path);
    cwd = getcwd(NULL, 0);
    if (cwd && asprintf(&joined, "%s/%s", cwd, path) < 0)
        joined = NULL;
    free(cwd);
    return joined;
}

static enum options_result parse_positional(struct options *o, int argc, char **argv)
{
    const char *wrong;

    if (argc != 2) {
        fprintf(
            stderr,
            "cairnfs: expected ENDPOINT[,ENDPOINT...][:PREFIX] and MOUNTPOINT, got %d arguments; see cairnfs "
            "--help\n",
            argc);
        return OPTIONS_BAD;
    }
    if ((o->cert_pem == NULL) != (o->key_pem == NULL)) {
        fprintf(stderr, "cairnfs: cert and key go together: give both\n");
        return OPTIONS_BAD;
    }
    wrong = options_parse_source(o, argv[0]);
    if (wrong) {
        fprintf(stderr, "cairnfs: %s: %s\n", argv[0], wrong);
        return OPTIONS_BAD;
    }
    o->source = strdup(argv[0]);
    o->mountpoint = resolve(argv[1]);
    return o->source && o->mountpoint ? OPTIONS_RUN : OPTIONS_BAD;
}

enum options_result options_parse(struct options *o, int argc, char **argv)
{
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'},        {"version", no_argument, NULL, 'V'}, {"cacert", required_argument, NULL, 'a'},
        {"cert", required_argument, NULL, 'c'}, {"key", required_argument, NULL, 'k'}, {0}};
    int c;

    *o = (struct options){.dirmarkers = true,
                          .overlay = true,
                          .uid = getuid(),
                          .gid = getgid(),
                          .umask = 022,
                          .grace_ms = GRACE_MS,
                          .timeout_ms = CLIENT_CALL_TIMEOUT_MS,
                          .max_request_bytes = MAX_REQUEST_BYTES,
                          .fuse_options = strdup("")};
    if (o->fuse_options == NULL)
        return OPTIONS_BAD;
    while ((c = getopt_long(argc, argv, "fho:V", longs, NULL)) != -1) {
        switch (c) {
        case 'f':
            o->foreground = true;
            break;
        case 'o':
            if (parse_list(o, optarg) != 0)
                return OPTIONS_BAD;
            break;
        case 'a':
        case 'c':
        case 'k':
            if (read_pem(c == 'a' ? &o->ca_pem : c == 'c' ? &o->cert_pem : &o->key_pem, optarg) != 0)
                return OPTIONS_BAD;
            break;
        case 'h':
            fputs(usage, stdout);
            return OPTIONS_DONE;
        case 'V':
            puts("cairnfs " VERSION);
            return OPTIONS_DONE;
        default:
            return OPTIONS_BAD; /* getopt has said it */
        }
    }
    return parse_positional(o, argc - optind, argv + optind);
}

void options_free(struct options *o)
{
    for (unsigned i = 0; i < o->n_endpoints; i++)
        free(o->endpoints[i]);
    free((void *)o->prefix.ptr);
    free(o->ca_pem);
    free(o->cert_pem);
    free(o->key_pem);
    free(o->source);
    free(o->mountpoint);
    free(o->fuse_options);
}
