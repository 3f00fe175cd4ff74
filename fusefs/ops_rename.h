/* SPDX-License-Identifier: Apache-2.0 */
/* ops_rename.h - what ops_rename.c and ops_rename_dir.c share. Owner: the core thread. */
#pragma once
#include "ops.h"

#define FLAG_NOREPLACE 1u
#define FLAG_EXCHANGE  2u

/* One rename on its way; op->node is what is renamed, op->node2 the directory it goes to, op->name2 the new
 * name. */
struct renaming {
    struct op *op;
    unsigned flags, attempts;
    struct node *from_dir;    /* ref'd */
    uint64_t ofile_id;        /* the overlay's file; 0: a key */
    struct value *value;      /* of the source */
    struct value *other;      /* EXCHANGE: of the target */
    int64_t expected_rev;     /* conflict=fail: of the target, as the caller read it; 0: it did not */
    bool follows;             /* the new name has the node of the old one */
    struct dir_renaming *dir; /* ops_rename_dir.c's */
};

/* Answers, and frees it. */
void renaming_end(struct renaming *r, int err);

/* The key and node the new name has. The key: 0 or an errno. */
static inline int renaming_target_key(const struct op *op, bool dir, uint8_t **ret_key, size_t *ret_len)
{
    return -node_child_key(op->fs->tree, op->node2, slice_str(op->name2), dir, ret_key, ret_len);
}

static inline struct node *renaming_target(const struct op *op)
{
    return tree_child(op->fs->tree, op->node2, slice_str(op->name2));
}

/* A directory. */
void rename_dir(struct renaming *r);
