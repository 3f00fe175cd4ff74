/* SPDX-License-Identifier: Apache-2.0 */
/* base_ask.h - asks a base everything there is to ask, and holds each answer against the model; and files, whole.
 *
 * An answer is right, refused (-EUCLEAN) or wrong. Used by tests/unit/base_torn.c and base_rot.c.
 */
#pragma once
#include <fcntl.h>
#include "base_model.h"

struct verdict { size_t right, refused, wrong; };

static inline void judge(struct verdict *v, int err, bool right)
{
    if (err == -EUCLEAN)
        v->refused++;
    else if (right)
        v->right++;
    else
        v->wrong++;
}

static inline int log_fn(void *ctx, const struct change *c)
{
    struct log_check *lc = ctx;
    bool ok = lc->at < lc->m->n && change_is(c, &lc->m->c[lc->at], lc->m->keys[lc->m->c[lc->at].key], true);

    lc->at++;
    return ok ? 0 : -EINVAL;
}

/* At each revision up to now, `every` apart. */
static inline void ask_each(struct model *m, int64_t every, struct verdict *v)
{
    struct log_check lc = {.m = m};
    struct base_reader *r;
    struct base_meta meta;
    struct slice row;
    struct arena a;
    int err;

    arena_init(&a, 16 << 20, NULL, 0);
    REQUIRE(base_reader_new(m->base, &r) == 0 && base_reader_renew(r) == 0);
    for (int64_t rev = m->rev; rev > 0; rev -= every) {
        for (size_t k = 0; k < m->n_keys; k++) {
            const struct mchange *x = model_find(m, k, rev);
            struct change c;

            err = base_get(r, m->keys[k], rev, -1, 0, &a, &c);
            judge(v, err, x && !x->tombstone ? err == 0 && change_is(&c, x, m->keys[k], true)
                                             : err == ERR_KEY_NOT_FOUND);
            arena_fini(&a);
        }
    }
    err = base_log_scan(r, (struct rev){0}, INT64_MAX, &a, log_fn, &lc);
    judge(v, err, err == 0 && lc.at == m->n);
    for (size_t i = 0; i < 4; i++) {
        struct lease_check le = {m, (int64_t[]){1, 7, INT64_MAX, 0x1234}[i], 0};

        err = base_lease_scan(r, le.lease, &a, lease_check_fn, &le);
        judge(v, err, err == 0);
    }
    err = base_row_get(r, TABLE_LEASE, S("id"), &row);
    judge(v, err, err == 0 && slice_eq(row, S("a lease")));
    err = base_reader_meta(r, &meta);
    judge(v, err, err == 0 && meta.seal.revision == m->rev && meta.seal.compact_revision == -1 &&
                      meta.cluster_id == 11);
    base_reader_free(r);
    arena_fini(&a);
}

/* Asks everything there is to ask. */
static inline void ask_all(struct model *m, struct verdict *v)
{
    ask_each(m, 1, v);
}

static inline uint8_t *file_read(const char *path, size_t *ret_len)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    uint8_t *p;

    REQUIRE(fd >= 0 && fstat(fd, &st) == 0);
    p = malloc((size_t)st.st_size);
    REQUIRE(p && pread(fd, p, (size_t)st.st_size, 0) == st.st_size);
    close(fd);
    *ret_len = (size_t)st.st_size;
    return p;
}

static inline void file_write(const char *path, const uint8_t *p, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    REQUIRE(fd >= 0 && write(fd, p, len) == (ssize_t)len);
    close(fd);
}
