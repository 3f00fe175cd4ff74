/* SPDX-License-Identifier: Apache-2.0 */
/* main_options.h - the command line of cairnfs.
 *
 *     cairnfs [options] ENDPOINT[,ENDPOINT...][:PREFIX] MOUNTPOINT
 *
 * The form mount(8) uses for an fstab line (SOURCE MOUNTPOINT -o LIST) is the same with the options last.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "bytes.h"
#include "limits.h"

struct options {
    char *endpoints[CLIENT_ENDPOINTS_MAX];
    unsigned n_endpoints;
    struct slice prefix; /* decoded; owned */
    char *ca_pem, *cert_pem, *key_pem; /* what the files of cacert=, cert=, key= hold; NULL: not given */
    char *source;        /* as given: what mount(8) shows */
    char *mountpoint;    /* absolute, resolved */
    char *fuse_options;  /* of -o, what is the kernel's or libfuse's; "" or begins with ',' */
    bool foreground;
    bool cached;        /* no question at OPEN, pages kept */
    bool linear;        /* a question at each read */
    bool strict;        /* no stale answers */
    bool meta_ignore;   /* chmod, chown and utimens answer 0 and do nothing */
    bool events_modify; /* a new value is MODIFY alone */
    bool commit_write;  /* every WRITE is committed */
    bool conflict_fail; /* whole rewrites compare too */
    bool dirmarkers;    /* mkdir writes the key "dir/" */
    bool overlay;       /* editors' and temporary files stay here */
    bool read_only;     /* refuse all changes with EROFS */
    bool allow_other;
    uid_t uid;
    gid_t gid;
    mode_t umask;
    int64_t grace_ms;           /* A.12: how long a change waits for a lost quorum, counted from the loss */
    int64_t timeout_ms;         /* of one change or question */
    uint64_t max_request_bytes; /* the server's limit */
};

enum options_result { OPTIONS_RUN, OPTIONS_DONE /* --help, --version */, OPTIONS_BAD /* said on stderr */ };

enum options_result options_parse(struct options *o, int argc, char **argv);
void options_free(struct options *o);

/* ENDPOINT[,ENDPOINT...][:PREFIX] into o. NULL, or a sentence that says what is wrong (static). */
const char *options_parse_source(struct options *o, const char *source);
