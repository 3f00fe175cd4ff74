/* SPDX-License-Identifier: Apache-2.0 */
/* overlay.h - files that exist in this mount only: editors' own, and temporary ones on their way to
 * becoming a key.
 *
 *   editors' own   never published: .*.sw? .*.swpx *~ #*# .#* .goutputstream-* .~lock.*# .nfs* .fuse_hidden*
 *   temporary      made with O_EXCL and for its owner only (0600, 0700) under a name of mkstemp's shape; published by a rename onto
 *                  a key, 2 s after the last close, or at unmount
 *
 * A key renamed to an editors' name (vim's backup) is in limbo for 2 s: copied here, hidden there, nothing
 * published. If its name is made again the save becomes a modification; else one transaction makes the
 * rename real.
 *
 * Nodeids: TREE_NODEID_END | n. Owner: the core thread.
 */
#pragma once
#include "session.h"
#include "tree.h"

struct fs;
struct overlay;
struct commit_wait;

enum ofile_class { OFILE_EDITOR, OFILE_TEMPORARY };

struct ofile {
    struct overlay *overlay;
    uint64_t nodeid, ino;
    enum ofile_class class;
    bool linked;      /* it has a name */
    bool publishing;  /* its commit is under way */
    struct node *dir; /* ref'd, while linked */
    char *name;       /* while linked */
    uint8_t *buf;
    size_t len, room;
    struct timespec mtime;
    /* As chmod and chown left them. A key has none of its own: they end with the file. */
    mode_t mode;
    uid_t uid;
    gid_t gid;
    uint64_t nlookup;
    unsigned opens;
    struct timer linger;     /* temporary: after its last close; limbo: until it becomes real */
    struct node *limbo_node; /* ref'd: the key this was renamed from, hidden meanwhile */
    int64_t limbo_rev;       /* its mod_rev then */
    struct ofile *hash_id, *hash_name;
    struct ofile *next, **prev;
};

int overlay_open(struct fs *fs, struct overlay **ret_overlay);
/* Publishes what is temporary, makes limbo real: commits are started, the caller runs the loop until they
 * ended. */
void overlay_flush(struct overlay *o);
void overlay_close(struct overlay *o);

/* Names, by the rules above. */
bool overlay_is_editors(const char *name);
bool overlay_is_temporary_shape(const char *name);
/* The list of patterns, separated by blanks. set: 0, E2BIG, ENOMEM. */
const char *overlay_names(enum ofile_class class);
int overlay_names_set(enum ofile_class class, const char *patterns);

static inline bool overlay_owns(uint64_t nodeid)
{
    return nodeid >> 62 == 1;
}
struct ofile *overlay_by_id(struct overlay *o, uint64_t nodeid);
struct ofile *overlay_by_name(struct overlay *o, const struct node *dir, const char *name);
/* All with a name, for listings. */
struct ofile *overlay_first(struct overlay *o);
/* Is anything of it in this directory? (rmdir) */
bool overlay_in_dir(struct overlay *o, const struct node *dir);

/* NULL: no memory, or OVERLAY_BYTES are used up. */
struct ofile *overlay_create(struct overlay *o, struct node *dir, const char *name, enum ofile_class class);
void overlay_unlink(struct ofile *f);
/* Moves it to another name; what is there in the overlay goes. */
int overlay_rename(struct ofile *f, struct node *dir, const char *name);
void ofile_lookup(struct ofile *f);
void ofile_forget(struct ofile *f, uint64_t n);
void ofile_opened(struct ofile *f);
void ofile_closed(struct ofile *f);

struct slice ofile_content(const struct ofile *f);
int ofile_write(struct ofile *f, const void *data, size_t off, size_t size); /* 0, ENOSPC, ENOMEM, EFBIG */
int ofile_truncate(struct ofile *f, size_t len);
/* chmod, chown, utimens: whatever is asked for. to_set: FUSE_SET_ATTR_*; the size is not looked at. */
void ofile_set_meta(struct ofile *f, const struct stat *attr, int to_set);
/* It has become a key: what the kernel still has of the file shows a key's mode and owner. */
void ofile_reset_meta(struct ofile *f);
void ofile_stat(const struct ofile *f, struct stat *ret_st);

/* rename(key -> editors' name): copies v's bytes, hides n. */
struct ofile *overlay_limbo(struct overlay *o, struct node *n, struct value *v, struct node *dir,
                            const char *name);
/* The name came back: n is itself again, the copy stays an editor's file. */
void overlay_limbo_end(struct node *n);
/* The copy is unlinked or the time is over: make the rename real (or, unlinked, the removal). */
void overlay_limbo_commit(struct ofile *f);
/* Somebody elsewhere made a key of that name: it wins. */
void overlay_key_appeared(struct overlay *o, const struct node *dir, const char *name);

/* Publishes a temporary file under its own name now. */
void overlay_publish(struct ofile *f);

struct overlay_stats {
    uint64_t files, bytes, published, dropped;
};
void overlay_get_stats(const struct overlay *o, struct overlay_stats *ret_stats);
