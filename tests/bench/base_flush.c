/* SPDX-License-Identifier: Apache-2.0 */
/* base_flush.c - what a put costs base: CPU and bytes written, by flush and by sweep.
 *
 *     build/tests/bench/base_flush [keys] [updates] [changes a flush] [lease every n-th key]
 *
 * Loads the keys, then updates random ones of them with 256-byte values; compacts to one flush ago after each flush
 * and sweeps. Prints one line for each phase: microseconds of CPU, of time, and bytes written, per put.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "daemon/base.h"

static uint64_t state = 42;

static uint64_t dice(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void must(int err, const char *what)
{
    if (err == 0)
        return;
    fprintf(stderr, "%s: %d\n", what, err);
    exit(1);
}

struct cost { double cpu_us, wall_us; uint64_t bytes; };

/* What LMDB hands to write(2). Not write_bytes: that counts a whole large folio for each page dirtied in it. */
static uint64_t bytes_written(void)
{
    unsigned long long n = 0;
    char line[100];
    FILE *f = fopen("/proc/self/io", "r");

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "wchar: %llu", &n) == 1)
            break;
    if (f)
        fclose(f);
    return n;
}

static double now_us(clockid_t id)
{
    struct timespec t;

    clock_gettime(id, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void cost_add(struct cost *c, int sign)
{
    c->cpu_us += sign * now_us(CLOCK_PROCESS_CPUTIME_ID);
    c->wall_us += sign * now_us(CLOCK_MONOTONIC);
    c->bytes += (uint64_t)sign * bytes_written();
}

static void cost_print(const char *what, const struct cost *c, size_t puts)
{
    printf("%-22s %8.2f us CPU %8.2f us %8.2f kB written, per put\n", what, c->cpu_us / (double)puts,
           c->wall_us / (double)puts, (double)c->bytes / (double)puts / 1000);
}

struct bench {
    struct base *base;
    int64_t rev, compact;
    size_t keys, lease_every;
    int64_t *created, *versions;
    struct cost flush, sweep;
};

static void put(struct bench *b, struct delta *d, size_t i)
{
    uint8_t key[40], value[256], body[512];
    struct change c = {.key = {key, 0}, .rev = {++b->rev, 0}};
    int n = snprintf((char *)key, sizeof key, "/registry/bench/%015zu", i * 7919 % b->keys);

    c.key.len = (size_t)n;
    if (b->created[i] == 0)
        b->created[i] = b->rev;
    c.create_revision = b->created[i];
    c.version = ++b->versions[i];
    c.lease = b->lease_every && i % b->lease_every == 0 ? (int64_t)(1 + i % 1000) << 32 : 0;
    for (size_t j = 0; j < sizeof value; j += 8)
        put_u64le(value + j, dice());
    c.body = slice_of(body, body_size(&c, slice_of(value, sizeof value)));
    body_encode(&c, slice_of(value, sizeof value), body);
    must(delta_put(d, &c), "delta_put");
}

static void flush(struct bench *b, struct delta *d)
{
    struct seal s = {.applied_index = (uint64_t)b->rev, .revision = b->rev, .compact_revision = b->compact,
                     .key_count = (int64_t)b->keys};

    delta_seal(d, &s);
    cost_add(&b->flush, -1);
    must(base_flush(b->base, d), "base_flush");
    cost_add(&b->flush, 1);
    delta_free(d);
}

static void sweep(struct bench *b)
{
    int more;

    cost_add(&b->sweep, -1);
    while ((more = base_sweep(b->base, NULL)) == 1)
        ;
    must(more, "base_sweep");
    cost_add(&b->sweep, 1);
}

static size_t arg(int argc, char **argv, int i, size_t otherwise)
{
    return argc > i ? strtoull(argv[i], NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
    size_t updates = arg(argc, argv, 2, 500000), batch = arg(argc, argv, 3, 100000);
    struct bench b = {
        .rev = 1, .compact = -1, .keys = arg(argc, argv, 1, 1000000), .lease_every = arg(argc, argv, 4, 0)};
    char dir[] = "./bench-base-XXXXXX", path[64];
    struct base_options o = {.path = dir, .map_bytes = 1ull << 40, .readers_max = 8};
    uint64_t file, in_use;
    struct rusage ru;

    b.created = calloc(b.keys, sizeof *b.created);
    b.versions = calloc(b.keys, sizeof *b.versions);
    if (!b.created || !b.versions || !mkdtemp(dir))
        return 1;
    must(base_create(&o, 1, 1, SLICE_NONE), "base_create");
    must(base_open(&o, &b.base), "base_open");
    for (size_t i = 0; i < b.keys;) {
        struct delta *d = delta_new();

        for (size_t n = 0; n < batch && i < b.keys; n++)
            put(&b, d, i++);
        flush(&b, d);
    }
    cost_print("load, flush", &b.flush, b.keys);
    b.flush = (struct cost){0};
    for (size_t done = 0; done < updates; done += batch) {
        struct delta *d = delta_new();

        for (size_t n = 0; n < batch; n++)
            put(&b, d, dice() % b.keys);
        flush(&b, d);
        sweep(&b);
        b.compact = b.rev;
    }
    cost_print("update, flush", &b.flush, updates);
    cost_print("update, sweep", &b.sweep, updates);
    must(base_sizes(b.base, &file, &in_use), "base_sizes");
    getrusage(RUSAGE_SELF, &ru);
    printf("file %.0f MB, in use %.0f MB, peak RSS %.0f MB (the map's pages included)\n", (double)file / 1e6,
           (double)in_use / 1e6, (double)ru.ru_maxrss / 1e3);
    base_close(b.base);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, i ? "lock.mdb" : "data.mdb");
        unlink(path);
    }
    rmdir(dir);
    return 0;
}
