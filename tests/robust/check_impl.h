/* SPDX-License-Identifier: Apache-2.0 */
/* check_impl.h - what the checker's files share. Not for others. */
#pragma once
#include "check.h"

enum { PROBLEMS_TOLD = 20, EFFECTS_MAX = 64 };

/* One change of a key, in the committed order. */
struct version {
    const Mvccpb__Event *event;
    int64_t rev;
    size_t order;
};

struct state_key {
    struct slice name;
    struct version *versions; /* by revision */
    size_t n;
};

struct commit {
    const Mvccpb__Event **events;
    size_t n;
    const struct rec *writer; /* NULL: not known, or a lease's end */
};

/* What had been seen by a time: the highest revision in any answer that was there before it. */
struct tide {
    struct { int64_t at_ns, rev; } *marks; /* both ascend */
    size_t n;
};

struct value_owner {
    struct slice value;
    const struct rec *rec;
    int64_t rev; /* where it stands; 0: nowhere yet */
};

struct check {
    const struct history *h;
    FILE *out;
    int n_logs; /* members, if their logs are there */
    unsigned problems;
    struct check_facts facts;
    int64_t last;                 /* the highest revision */
    struct commit *commits;       /* [rev], from 2 */
    const Mvccpb__Event **events; /* all, in order */
    size_t n_events;
    struct version *versions;
    struct state_key *keys; /* by name */
    size_t n_keys;
    struct tide seen;
    const struct rec **acked; /* [rev] */
    struct value_owner *owners;
    size_t owners_size; /* a power of two */
};

__attribute__((format(printf, 3, 4))) void problem(struct check *c, const struct rec *r, const char *format, ...);

static inline void *array(size_t n, size_t size)
{
    void *p = calloc(n + 1, size);

    assert(p);
    return p;
}

int64_t revision_told(const struct rec *r); /* by its answer; 0: none */

static inline struct slice bytes_of(ProtobufCBinaryData b) { return slice_of(b.data, b.len); }

/* The key as it was at a revision; NULL: absent. Its last change: NULL, if there was none. */
const Mvccpb__KeyValue *state_at(const struct check *c, struct slice key, int64_t rev);
const struct version *version_at(const struct check *c, struct slice key, int64_t rev);
size_t key_lower(const struct check *c, struct slice name); /* the first key >= name */
bool in_range(struct slice key, struct slice from, struct slice end);
bool kv_same(const Mvccpb__KeyValue *a, const Mvccpb__KeyValue *b);

int64_t rev_seen_before(const struct tide *t, int64_t ns); /* highest revision seen before then */
int64_t time_seen(const struct tide *t, int64_t rev);      /* when a revision as high was first seen; INT64_MAX never */

/* Was a compaction to `rev` or later asked for before `ns`? */
bool compaction_asked(const struct check *c, int64_t rev, int64_t ns);

/* A call that is done again on the state at `base`; what it has changed so far comes first. */
struct replay {
    struct check *c;
    const struct rec *rec;
    int64_t base;
    struct { Mvccpb__KeyValue kv; bool deleted; } effects[EFFECTS_MAX];
    size_t n;
};

/* Does a put, delete or txn again on the state at `base`; its answer, if it had one, must be what comes out. */
void replay(struct replay *p, struct check *c, const struct rec *r, int64_t base);
void replay_change(struct replay *p, const Mvccpb__KeyValue *kv, bool deleted);
void replay_range(struct replay *p, const Etcdserverpb__RangeRequest *req, const Etcdserverpb__RangeResponse *resp);
bool replay_is(const struct replay *p, const struct commit *m); /* has it changed just what the commit did? */

bool is_write(enum rec_kind kind);
bool has_effect(const struct rec *r); /* does the answer say that something was changed? */
struct value_owner *owner_slot(const struct check *c, struct slice value); /* whose value is it? rec NULL: nobody's */
void owners_build(struct check *c);

void check_writes(struct check *c);
void check_watches(struct check *c);
void check_leases(struct check *c);
void check_journals(struct check *c, const struct journal *logs);
bool lease_ended_here(struct check *c, int64_t rev); /* all changes of the commit are the end of one lease */
