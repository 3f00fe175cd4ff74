/* SPDX-License-Identifier: Apache-2.0 */
/* snap_install.h - a received base and a new log become this member's data, at one point in time.
 *
 * Owner: the WAL thread.
 */
#pragma once
#include "apply.h"
#include "base.h"
#include "datadir.h"
#include "wal.h"

struct snap_place {
    struct datadir *dir;
    struct disk *disk;        /* the log's, rooted at dir->wal_root */
    struct wal *wal;          /* in use; afterwards it is the new log */
    struct wal_options wal_options; /* dir is not read */
    struct base_options base; /* path is not read */
};

/* DIR/incoming is a whole base as of (index, term); with hard as the hard state of a new, empty log after index it
 * takes the place of all there is. 0: a restart would find exactly that, place->wal is the new log, and apply has the
 * new base. -ENOSPC: nothing has changed, to be tried again. Anything else: the member stops; a restart finds the old
 * state or the new. */
int snap_install(const struct snap_place *place, struct apply *a, uint64_t index, uint64_t term,
                 const struct wal_state *hard);
