/* SPDX-License-Identifier: Apache-2.0 */
/* fs_const.c - a FUSE file system that answers everything from a constant: the least a mount can cost on this machine.
 *
 *     fs_const MOUNTPOINT      one file, k, of 256 bytes; writes are taken and forgotten; in the foreground, until unmounted
 *
 * Attributes and names are cached for a minute and pages are kept, as cairnfs -o cached does. */
#define FUSE_USE_VERSION 314
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <string.h>

enum { SIZE = 256, TIMEOUT_S = 60, FILE_INO = 2 };

static const char content[SIZE];

static struct stat attr_of(fuse_ino_t ino)
{
    return (struct stat){.st_ino = ino,
                         .st_mode = ino == FILE_INO ? S_IFREG | 0644 : S_IFDIR | 0755,
                         .st_nlink = 1,
                         .st_size = ino == FILE_INO ? SIZE : 0,
                         .st_blksize = 1 << 20};
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param e = {
        .ino = FILE_INO, .attr = attr_of(FILE_INO), .attr_timeout = TIMEOUT_S, .entry_timeout = TIMEOUT_S};

    if (parent == FUSE_ROOT_ID && strcmp(name, "k") == 0)
        (void)fuse_reply_entry(req, &e);
    else
        (void)fuse_reply_err(req, ENOENT);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct stat st = attr_of(ino);

    (void)fi;
    (void)fuse_reply_attr(req, &st, TIMEOUT_S);
}

static void do_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
    (void)attr, (void)to_set;
    do_getattr(req, ino, fi);
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    fi->keep_cache = 1;
    fi->noflush = (fi->flags & O_ACCMODE) == O_RDONLY;
    fi->direct_io = (fi->flags & O_ACCMODE) != O_RDONLY;
    (void)fuse_reply_open(req, fi);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    (void)ino, (void)fi;
    if (off >= SIZE)
        (void)fuse_reply_buf(req, NULL, 0);
    else
        (void)fuse_reply_buf(req, content + off, size < (size_t)(SIZE - off) ? size : (size_t)(SIZE - off));
}

static void do_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off, struct fuse_file_info *fi)
{
    (void)ino, (void)buf, (void)off, (void)fi;
    (void)fuse_reply_write(req, size);
}

static void do_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino, (void)fi;
    (void)fuse_reply_err(req, 0);
}

static void do_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    (void)ino, (void)name, (void)size;
    (void)fuse_reply_err(req, ENODATA);
}

static const struct fuse_lowlevel_ops ops = {.lookup = do_lookup, .getattr = do_getattr, .setattr = do_setattr,
                                             .open = do_open, .read = do_read, .write = do_write, .flush = do_flush,
                                             .release = do_flush, .getxattr = do_getxattr};

int main(int argc, char **argv)
{
    struct fuse_args args = FUSE_ARGS_INIT(1, argv);
    struct fuse_session *s;
    int rc = 1;

    if (argc != 2) {
        (void)fprintf(stderr, "usage: fs_const MOUNTPOINT\n");
        return 2;
    }
    s = fuse_session_new(&args, &ops, sizeof ops, NULL);
    if (s && fuse_set_signal_handlers(s) == 0 && fuse_session_mount(s, argv[1]) == 0) {
        rc = fuse_session_loop(s) != 0;
        fuse_session_unmount(s);
    }
    if (s)
        fuse_session_destroy(s);
    return rc;
}
