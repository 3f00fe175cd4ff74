/* SPDX-License-Identifier: Apache-2.0 */
/* snap_install.c - the steps of an installation, and why a crash between any two of them is harmless.
 *
 *      on disk                                       a crash now finds
 *   1  incoming/ is whole and synced                 the old state; incoming/ is made anew by the next transfer
 *   2  incoming/ renamed to base-N+1, DIR synced     the old state; base-N+1 is removed at the start
 *   3  wal-M+1 made, synced, its directory too       the old state; both are removed
 *   4  CURRENT.new written, synced, renamed          the old state or the new: the commit point
 *   5  DIR synced                                    the new state
 *   6  base-N and wal-M removed (later, by flush)    the new state; what is left is removed at the start
 *
 * N and M are never used twice, so nothing half made is ever mistaken for something whole. The old state stays sound
 * through all of it: its log is not touched, and flushes into base-N go on to mean what they meant.
 *
 * The base is opened before step 3, so that one that cannot be read never gets to be current.
 */
#include "snap_install.h"
#include <errno.h>
#include <stdio.h>

/* Checks that base is what the message said. */
static int check_base(struct base *b, uint64_t index, uint64_t term)
{
    struct base_reader *r;
    struct base_meta m;
    int err = base_reader_new(b, &r);

    if (err)
        return err;
    err = base_reader_renew(r);
    if (err == 0)
        err = base_reader_meta(r, &m);
    if (err == 0 && (m.seal.applied_index != index || m.seal.applied_term != term))
        err = -EUCLEAN;
    base_reader_free(r);
    return err;
}

static int adopt_base(const struct snap_place *p, unsigned n, uint64_t index, uint64_t term, struct base **ret_base)
{
    struct base_options o = p->base;
    char path[DATADIR_PATH_BYTES];
    struct base *b;
    int err = datadir_adopt_incoming(p->dir, n);

    if (err)
        return err;
    datadir_base_path(p->dir, n, path);
    o.path = path;
    err = base_open(&o, &b);
    if (err)
        return err;
    err = check_base(b, index, term);
    if (err)
        base_close(b);
    else
        *ret_base = b;
    return err;
}

static int adopt_wal(const struct snap_place *p, const struct wal_options *o)
{
    struct wal_state state;
    struct wal *fresh;
    char why[DATADIR_ERROR_BYTES];
    int err = wal_open(o, &fresh, &state, why, sizeof why);

    if (err == 0)
        wal_adopt(p->wal, fresh);
    return err;
}

int snap_install(const struct snap_place *p, struct apply *a, uint64_t index, uint64_t term,
                 const struct wal_state *hard)
{
    unsigned base_n = datadir_new_base(p->dir), wal_n = datadir_new_wal(p->dir);
    struct wal_options o = p->wal_options;
    struct base *b = NULL;
    char wal_dir[32];
    int err;

    (void)snprintf(wal_dir, sizeof wal_dir, "wal-%u", wal_n);
    o.dir = wal_dir;
    o.disk = p->disk;
    err = adopt_base(p, base_n, index, term, &b);
    if (err)
        return err;
    apply_install_begin(a);
    err = wal_create(&o, index, term, hard);
    if (err == 0)
        err = datadir_switch_both(p->dir, base_n, wal_n);
    if (err == -ENOSPC) { /* as before, for the next try; the log that was begun is removed at the next start */
        base_close(b);
        apply_install_end(a);
        return datadir_give_back(p->dir, base_n) == 0 ? -ENOSPC : -EIO;
    }
    if (err == 0)
        err = adopt_wal(p, &o);
    if (err) {
        base_close(b);
        return err;
    }
    apply_install(a, b);
    return 0;
}
