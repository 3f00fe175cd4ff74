/* SPDX-License-Identifier: Apache-2.0 */
/* cluster_disk.h - a member's syncs, seen and delayed. For cluster.c. */
#pragma once
#include "cluster.h"

bool disk_watch_works(void);            /* does this kernel do it? */
bool disk_watch_me(int sock);           /* in the child: from here on its syncs are reported; sends the way to `sock` */
void disk_watch(struct member *m, int sock); /* takes what the child sent, and starts answering */
void disk_unwatch(struct member *m);    /* after the process has ended */
