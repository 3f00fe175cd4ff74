/* SPDX-License-Identifier: Apache-2.0 */
/* control_private.h - what the files of the control tree share. */
#pragma once
#include <stdio.h>

#include "control.h"
#include "ops.h"

enum cnode_kind {
    CNODE_ROOT,
    CNODE_STATUS,
    CNODE_REVISION,
    CNODE_ERRORS,
    CNODE_CONFIG,
    CNODE_KEYS,       /* directory */
    CNODE_KEY,        /* path: the encoded whole key */
    CNODE_EVENTS,     /* directory; path: from the mount's root, "" or ending in '/' */
    CNODE_EVENT_FILE, /* path: of the key, or of all below when it is "" or ends in '/' */
    CNODE_WAIT,
    CNODE_WAIT_FILE,
};

/* One node of .etcd. The fixed ones live for ever, the others while the kernel knows them. */
struct cnode {
    uint64_t nodeid;
    enum cnode_kind kind;
    char *path; /* owned; NULL: fixed */
    int64_t since; /* CNODE_EVENTS, CNODE_EVENT_FILE: of events@REV; 0: from now on */
    uint64_t nlookup;
    uint32_t opens;
    size_t size; /* CNODE_KEY: of its value when last looked at */
    struct cnode *next;
};

/* An open file of .etcd. */
struct chandle {
    struct control *control;
    struct cnode *node;
    int flags;
    uint8_t *buf; /* text made at open, a key's value, or the lines of a stream not yet read */
    size_t len, room, taken;
    bool dirty;
    /* Streams: */
    fuse_req_t reader; /* a read that waits; NULL: none */
    size_t reader_size;
    struct fuse_pollhandle *poll;
    struct history *history; /* of events@REV */
    bool lost;  /* lines were dropped */
    bool woken; /* wait/: the change has come */
    struct timer keepalive;
    struct chandle *next, **prev;
};

struct control {
    struct fs *fs;
    struct cnode *nodes;
    uint64_t last_id;
    char *errors[ERRORS_MAX];
    uint64_t n_errors;
    struct chandle *streams;
};

struct cnode *cnode_find(struct control *c, uint64_t nodeid);
/* The node of that kind and path, made if missing; NULL: no memory. */
struct cnode *cnode_get(struct control *c, enum cnode_kind kind, const char *path);
struct cnode *cnode_get_since(struct control *c, enum cnode_kind kind, const char *path, int64_t since);
void cnode_maybe_free(struct control *c, struct cnode *n);
bool cnode_is_dir(const struct cnode *n);
void cnode_stat(const struct control *c, const struct cnode *n, struct stat *ret_st);

void chandle_free(struct chandle *h);
bool chandle_append(struct chandle *h, const void *p, size_t n); /* false: no memory */

/* control_text.c: the text of a file, malloc'd through open_memstream. */
char *control_text(struct control *c, enum cnode_kind kind, size_t *ret_len);
/* JSON: a string with its quotes, or, if it is not UTF-8, as base64 under NAME_base64. */
void json_field(FILE *f, const char *name, struct slice s);

/* control_config.c */
void config_print(const struct control *c, FILE *f);
int config_write(struct control *c, const char *buf, size_t size); /* 0 or an errno, told in .etcd/errors */

/* control_stream.c */
void stream_open(struct chandle *h);
void stream_read(struct chandle *h, fuse_req_t req, size_t size);
void stream_close(struct chandle *h);
void stream_poll(struct chandle *h, fuse_req_t req, struct fuse_pollhandle *ph);

void stream_event(struct chandle *h, const struct key_event *ev); /* the line of one event, for this reader */
void stream_gap(struct chandle *h, int64_t from_rev, int64_t to_rev);

/* control_history.c: events@REV */
void history_open(struct chandle *h, fuse_req_t req, const struct fuse_file_info *fi); /* answers */
void history_read(struct chandle *h); /* the reader has taken something */
void history_close(struct chandle *h);

/* control_keys.c */
bool keys_lookup(fuse_req_t req, struct control *c, const char *name);
void keys_open(fuse_req_t req, struct control *c, struct cnode *n, struct fuse_file_info *fi);
void keys_create(fuse_req_t req, struct control *c, const char *name, struct fuse_file_info *fi);
void keys_unlink(fuse_req_t req, struct control *c, const char *name);
void keys_commit(fuse_req_t req, struct chandle *h); /* req NULL: released; frees h when done */
void keys_opendir(fuse_req_t req, struct control *c, struct fuse_file_info *fi);
void keys_readdir(fuse_req_t req, struct fuse_file_info *fi, size_t size, off_t off);
void keys_releasedir(struct fuse_file_info *fi);
