/* SPDX-License-Identifier: Apache-2.0 */
/* failover.h - measures; see failover.c. */
#pragma once
#include "cluster.h"

int failover_main(const char *program, const char *dir, const char *how, int rounds, char *const *flags);
