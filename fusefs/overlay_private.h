/* SPDX-License-Identifier: Apache-2.0 */
/* overlay_private.h - what overlay.c and overlay_publish.c share. */
#pragma once
#include "overlay.h"

#define OVERLAY_BUCKETS 1024

struct overlay {
    struct fs *fs;
    struct ofile *by_id[OVERLAY_BUCKETS], *by_name[OVERLAY_BUCKETS];
    struct ofile *files;
    uint64_t last_id;
    struct overlay_stats stats;
};

/* Frees it when nobody needs it any more. */
void ofile_maybe_free(struct ofile *f);
