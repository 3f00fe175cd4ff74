/* SPDX-License-Identifier: Apache-2.0 */
/* raftconf.h - a raft configuration as bytes: in base's meta, in snapshots.
 *
 *      0  u8   format, 1
 *      1  u8   auto_leave
 *      2  ...  voters, outgoing, learners, learners_next: each u8 n, then n x u64le ids
 */
#pragma once
#include "raft.h"

#define RAFTCONF_BYTES_MAX (2 + 4 * (1 + 8 * RAFT_MEMBERS_MAX))

/* dst has RAFTCONF_BYTES_MAX bytes; the slice is in dst. */
struct slice raftconf_encode(const struct raft_conf *conf, uint8_t *dst);
/* 0, or -EBADMSG. */
int raftconf_decode(struct slice s, struct raft_conf *ret_conf);
