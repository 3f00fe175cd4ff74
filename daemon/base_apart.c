/* SPDX-License-Identifier: Apache-2.0 */
/* base_apart.c - base_check in a process of its own.
 *
 * LMDB may crash on a damaged page, or run astray on it; so may our own reading of what it hands out. A child process
 * pays for that: what ends it in any way but with its answer is damage. It shares nothing with the parent but the file:
 * it opens the environment itself, and has no thread but its own.
 *
 *     child's answer, one write to a pipe:   u8 0 sound, 1 damaged, 2 could not look    the rest: a word on it
 *
 * Owner: the main thread, at start, before this process has opened that base.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base_db.h"

enum { APART_SOUND, APART_DAMAGED, APART_FAILED, APART_BYTES = 200 };

static void answer(int fd, int err, const char *what)
{
    char text[APART_BYTES];
    int n;

    text[0] = err == 0 ? APART_SOUND : err == -EUCLEAN || err == -ENOENT ? APART_DAMAGED : APART_FAILED;
    n = 1 + snprintf(text + 1, sizeof text - 1, "%s", what);
    if (n > (int)sizeof text)
        n = (int)sizeof text;
    n = (int)write(fd, text, (size_t)n);
    _exit(n > 0 ? 0 : 1); /* an answer that is not heard is none */
}

static void look(const struct base_options *o, int fd)
{
    const char *what = "its head";
    struct base *b = NULL;
    int err;

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* it holds the data directory's lock: it does not outlive who waits for
                                             * it */
    (void)prctl(PR_SET_DUMPABLE, 0);        /* its crash is an answer: no core */
    err = base_open(o, &b);
    if (err == 0)
        err = base_check(b, &what);
    answer(fd, err, err == -EUCLEAN || err == 0 ? what : strerror(-err));
}

/* All that comes until the other end is closed, cut to size. */
static size_t hear(int fd, char *text, size_t size)
{
    size_t n = 0;
    ssize_t got;

    while (n < size && ((got = read(fd, text + n, size - n)) > 0 || (got < 0 && errno == EINTR)))
        n += got > 0 ? (size_t)got : 0;
    return n;
}

int base_check_apart(const struct base_options *o, char *ret_what, size_t size)
{
    char text[APART_BYTES + 1] = "";
    int fds[2], status = 0;
    pid_t pid;
    size_t n;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return -errno;
    pid = fork();
    if (pid == 0) {
        (void)close(fds[0]); /* the parent's */
        look(o, fds[1]);
    }
    (void)close(fds[1]); /* the child's */
    n = pid < 0 ? 0 : hear(fds[0], text, APART_BYTES);
    (void)close(fds[0]); /* only read */
    if (pid < 0)
        return -errno;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (n == 0) {
        bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL; /* by somebody, or for want of memory */

        (void)snprintf(ret_what, size, "reading it ends with: %s", WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "no answer");
        return killed ? -EIO : -EUCLEAN;
    }
    (void)snprintf(ret_what, size, "%s", text + 1);
    return text[0] == APART_SOUND ? 0 : text[0] == APART_DAMAGED ? -EUCLEAN : -EIO;
}
