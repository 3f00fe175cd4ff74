/* SPDX-License-Identifier: Apache-2.0 */
/* roster.h - the members of a cluster as the flags of one of them name them, and the ids that follow from them.
 *
 * Ids are etcd's: a member's is the first 8 bytes of SHA-1 over its sorted peer URLs and the cluster token, and for one
 * that is added later the seconds since 1970 as text (its token is empty); a cluster's the same over its founders' ids,
 * big endian, ascending. The same flags make the same ids with etcd and here.
 *
 * Not here: what the members have decided since (apply_rows.c).
 */
#pragma once
#include "config.h"

struct roster_member {
    uint64_t id;            /* 0: not yet known (a joiner's, before it has asked) */
    const char *name;
    struct url_list urls;   /* sorted, as given, duplicates kept */
};

struct roster {
    struct roster_member *members; /* by name; in the configuration's arena */
    size_t n;
    struct roster_member *self;    /* NULL: our name is not among them */
    uint64_t cluster_id;           /* as founders; ids of members too */
};

uint64_t roster_member_id(const char *const *sorted_urls, size_t n, const char *token_and_time);
uint64_t roster_cluster_id(const uint64_t *ids, size_t n); /* ids in any order */

/* Reads --initial-cluster (or what stands for it: this member alone). NULL, or what is wrong, in c's arena. */
const char *roster_read(struct config *c, struct roster *ret_roster);
/* Of a member that is to found a cluster with the others, or to join one: NULL, or what is wrong, in etcd's words. */
const char *roster_check_new(struct config *c, const struct roster *r);
const char *roster_check_existing(struct config *c, const struct roster *r);

/* A member as a running cluster tells it. */
struct roster_known {
    uint64_t id;
    const char *const *urls;
    size_t n_urls;
};
/* Gives the members of r the ids of the running cluster's members, who are told apart by their peer URLs. NULL, or what
 * does not fit. */
const char *roster_match(struct config *c, struct roster *r, const struct roster_known *known, size_t n);
