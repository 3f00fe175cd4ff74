/* SPDX-License-Identifier: Apache-2.0 */
/* member.h - one running member: every module made, joined, started and stopped in order.
 *
 * Nothing is written before the ports are bound and the flags agree; nothing is served before the log is applied.
 * Owner: the main thread.
 */
#pragma once
#include "config.h"

struct member_process;

/* 0, or -1 after logging, in one sentence, what is wrong and what to do. */
int member_start(struct config *c, struct member_process **ret_member);
/* Everything acknowledged is on disk when it returns; within LIMIT_STOP_MS. */
void member_stop(struct member_process *m);
