/* SPDX-License-Identifier: Apache-2.0 */
/* base_sweep.c - proves that a process killed anywhere within flushes and sweeps leaves the state of the last commit.
 *
 * A child flushes prepared deltas and sweeps between them; it is killed with SIGKILL after a random number of its
 * steps, at whatever it is doing then. The parent opens the store, learns from the applied index which delta was the
 * last, and compares everything with the model of that moment. Then the next child goes on from there.
 */
#include <signal.h>
#include <sys/wait.h>
#include "base_model.h"

enum { STEPS = 60 };

struct moment {
    struct delta *delta;
    size_t n;
    int64_t rev, compact;
    uint64_t applied, hash;
};

static void prepare(struct model *m, struct moment *t)
{
    for (int i = 0; i < STEPS; i++) {
        for (size_t n = 1 + below(80); n-- > 0;)
            model_step(m);
        if (below(3) == 0) {
            int64_t low = m->compact > 1 ? m->compact : 1;

            m->compact = low + (int64_t)below((size_t)(m->rev - low) + 1);
        }
        model_seal(m);
        t[i] = (struct moment){m->delta, m->n, m->rev, m->compact, m->applied, 0x5ea1 ^ m->applied};
        m->delta = delta_new();
        REQUIRE(m->delta != NULL);
    }
}

/* The child: one byte for each step begun. */
static void child(struct model *m, const struct moment *t, int from, int fd)
{
    model_open(m);
    for (int i = from; i < STEPS; i++) {
        if (write(fd, "f", 1) != 1 || base_flush(m->base, t[i].delta))
            _exit(1);
        for (int j = 0, more = 1; j < 3 && more > 0; j++) {
            if (write(fd, "s", 1) != 1 || (more = base_sweep(m->base, NULL)) < 0)
                _exit(1);
        }
    }
    _exit(0);
}

/* Kills a child after some of its steps and whatever the scheduler gave it beyond. */
static void run_and_kill(struct model *m, const struct moment *t, int from)
{
    size_t steps = 1 + below(12);
    int fd[2], status;
    uint64_t spin = dice() % 3000;
    char c;
    pid_t pid;

    REQUIRE(pipe(fd) == 0);
    pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        close(fd[0]);
        child(m, t, from, fd[1]);
    }
    close(fd[1]);
    while (steps-- > 0 && read(fd[0], &c, 1) == 1)
        ;
    for (volatile uint64_t i = 0; i < spin * 100; i++)
        ;
    kill(pid, SIGKILL);
    REQUIRE(waitpid(pid, &status, 0) == pid);
    CHECK(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
    close(fd[0]);
}

/* The model as of a moment; its later changes are put out of sight. */
static void look(struct model *m, const struct moment *t)
{
    size_t all = m->n;

    m->n = m->flushed = t->n;
    m->rev = t->rev;
    m->compact = t->compact;
    m->applied = t->applied;
    m->hash = t->hash;
    model_compare(m, 6);
    CHECK(base_check(m->base, NULL) == 0);
    m->n = all;
}

static int find_moment(struct model *m, const struct moment *t)
{
    struct base_reader *r;
    struct base_meta meta = {0};
    int at = -1;

    REQUIRE(base_reader_new(m->base, &r) == 0 && base_reader_renew(r) == 0);
    REQUIRE(base_reader_meta(r, &meta) == 0);
    for (int i = 0; i < STEPS; i++)
        if (t[i].applied == meta.seal.applied_index)
            at = i;
    base_reader_free(r);
    return at;
}

static void killed(void)
{
    for (int round = 0; round < 3 && tap_bad == 0; round++) {
        struct model m = {.value_max = 300};
        struct moment t[STEPS];
        uint8_t key[4] = "k";
        int done = -1, kills = 0;

        for (int i = 0; i < 60; i++) {
            key[1] = (uint8_t)dice();
            key[2] = (uint8_t)dice();
            model_add_key(&m, key, 3);
        }
        for (size_t len = 400; len < 1600; len += 100) {
            uint8_t *p = calloc(1, len);

            model_add_key(&m, p, len);
            free(p);
        }
        model_sort_keys(&m);
        model_new(&m);
        base_close(m.base);
        m.base = NULL;
        prepare(&m, t);
        while (done < STEPS - 1 && tap_bad == 0) {
            int before = done;

            run_and_kill(&m, t, done + 1);
            kills++;
            model_open(&m);
            done = find_moment(&m, t);
            CHECK(done >= before);
            if (done >= 0)
                look(&m, &t[done]);
            base_close(m.base);
            m.base = NULL;
        }
        printf("# %d kills\n", kills);
        for (int i = 0; i < STEPS; i++)
            delta_free(t[i].delta);
        model_free(&m);
    }
}

int main(void)
{
    dice_seed();
    signal(SIGPIPE, SIG_IGN);
    TEST(killed);
    return tap_done();
}
