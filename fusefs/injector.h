/* SPDX-License-Identifier: Apache-2.0 */
/* injector.h - a process that does system calls on the mount, so that inotify tells others about them.
 *
 * The kernel makes inotify events only for system calls. When the store changes elsewhere, the core lets an
 * injector do the equivalent call inside the mount (mknod, truncate, unlink, ...); the core recognises the
 * request by the injector's pid and by the operation it announced to it, and answers it without touching
 * the store.
 *
 * It is a process of its own, without /dev/fuse: killed at any moment it leaves no request behind that only
 * it could answer, and the core's death frees it (ECONNABORTED). Between two orders it holds no descriptor
 * inside the mount, which would make umount fail with EBUSY. It ends when its socket closes.
 */
#pragma once
#include <stdint.h>

enum inject_type {
    INJECT_CREATE = 1,  /* mknod: CREATE */
    INJECT_CREATE_DATA, /* open(O_CREAT), close: CREATE, OPEN, CLOSE_WRITE */
    INJECT_MKDIR,       /* CREATE,ISDIR */
    INJECT_MODIFY,      /* open, ftruncate(size), close: OPEN, MODIFY, CLOSE_WRITE */
    INJECT_TRUNCATE,    /* truncate(size): MODIFY alone */
    INJECT_ATTRIB,      /* chmod(mode): ATTRIB */
    INJECT_UNLINK,      /* DELETE, DELETE_SELF */
    INJECT_RMDIR,       /* DELETE,ISDIR */
    INJECT_LOOK,        /* stat: no event, but the kernel finds out that the name is gone */
    INJECT_RENAME,      /* MOVED_FROM, MOVED_TO; name2 is the new name, in dir2 */
};

#define INJECT_ORDER_BYTES 65536 /* a whole order; longer paths get no injection */

/* One packet: this, then dir, name, dir2, name2 without terminators. Directories are relative to the mount
 * point, "" is its root. dev: st_dev the directory must have, else something else is mounted there. */
struct inject_order {
    uint64_t id, dev, size;
    uint32_t type, mode;
    uint32_t dir_len, name_len, dir2_len, name2_len;
};

/* The answer: id and 0 or an errno. */
struct inject_result {
    uint64_t id;
    int32_t err;
    uint32_t reserved;
};

/* The injector's whole life. */
void injector_main(int sock, const char *mountpoint) __attribute__((noreturn));
