/* SPDX-License-Identifier: Apache-2.0 */
/* member.h - one running member: every module made, joined, started and stopped in order.
 *
 * Nothing is written before the ports are bound and the flags agree; nothing is served before the member is published
 * through the log, so that its state is no older than its start.
 * Owner: the main thread.
 */
#pragma once
#include "config.h"

struct member_process;

enum member_event {
    MEMBER_NOTHING,
    MEMBER_SIGNAL,  /* SIGTERM or SIGINT */
    MEMBER_REMOVED, /* from the cluster, for ever */
    MEMBER_FAILED,  /* logged, in one sentence: what is wrong and what to do */
};

/* Runs a member until one of the last three. signal_fd: a signalfd of the signals that end it, which are blocked.
 * Everything acknowledged is on disk when it returns, within LIMIT_STOP_MS of the event. */
enum member_event member_run(struct config *c, int signal_fd, int *ret_signal);
