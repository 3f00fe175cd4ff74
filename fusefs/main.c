/* SPDX-License-Identifier: Apache-2.0 */
/* main.c - cairnfs: mounts the keys of an etcd v3 cluster.
 *
 * Order of start: options; a dead mount of ours is detached; the daemon forks, its parent waits on a pipe
 * for one line; the spawner is forked; only then gRPC and its threads; when the first watch stands, the
 * mount. What fails before the mount stands is said on the caller's stderr, with exit status 1.
 *
 * Order of stop (signal, or umount): what is dirty or temporary is committed, within a deadline; injections
 * end; the mount goes; threads end.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "control.h"
#include "ops.h"
#include "overlay.h"

#define STOP_TIMEOUT_MS 10000

/* What the parent of the daemon is told: nothing (it died), "+" (mounted), or a sentence. */
static int parent_fd = -1;

static void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void fail(const char *format, ...)
{
    char text[1024];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "cairnfs: %s\n", text);
}

/* ---- becoming a daemon -------------------------------------------------------------------- */

/* Returns in the child only; the parent leaves with the child's word. */
static void daemonize(void)
{
    int fds[2];
    pid_t pid;
    char word = 0;

    if (pipe2(fds, O_CLOEXEC) != 0 || (pid = fork()) < 0) {
        fail("cannot start: %s", strerror(errno));
        exit(1);
    }
    if (pid != 0) {
        (void)close(fds[1]); /* the child's end: its death is then an end of file */
        exit(read(fds[0], &word, 1) == 1 && word == '+' ? 0 : 1); /* why not has been said on stderr */
    }
    (void)close(fds[0]); /* the parent's */
    parent_fd = fds[1];
    (void)setsid();   /* cannot fail: a child leads no group */
    (void)chdir("/"); /* hold no directory */
}

static void tell_ready(struct session *s)
{
    int null;

    (void)s;
    if (parent_fd < 0)
        return;
    (void)!write(parent_fd, "+", 1); /* a parent that was killed does not care */
    (void)close(parent_fd);
    parent_fd = -1;
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; null >= 0 && fd < 3; fd++)
        (void)dup2(null, fd); /* from here on errors go to .etcd/errors */
}

/* ---- the parts, joined ------------------------------------------------------------------------ */

static void client_ready(struct source *src)
{
    client_dispatch(((struct fs *)((char *)src - offsetof(struct fs, client_source)))->client);
}

static void tree_fire(struct timer *t)
{
    tree_tick(((struct fs *)((char *)t - offsetof(struct fs, tree_timer)))->tree, client_now_ms());
}

static void feed_fire(struct timer *t)
{
    feed_tick(((struct fs *)((char *)t - offsetof(struct fs, feed_timer)))->feed, client_now_ms());
}

static void arm(struct session *s, struct timer *t, int64_t deadline_ms)
{
    int64_t left = deadline_ms - client_now_ms();

    if (deadline_ms)
        session_timer_set(s, t, left > 0 ? (uint64_t)left : 0);
    else
        session_timer_clear(s, t);
}

static void before_sleep(struct session *s)
{
    struct fs *fs = s->owner;

    if (fs->feed == NULL)
        return;
    tree_flush(fs->tree);
    arm(s, &fs->tree_timer, tree_deadline_ms(fs->tree));
    arm(s, &fs->feed_timer, feed_deadline_ms(fs->feed));
}

static void on_key_event(void *ctx, const struct key_event *ev)
{
    control_key_event(((struct fs *)ctx)->control, ev);
}

static void on_change(void *ctx, struct change_event *ev)
{
    struct fs *fs = ctx;

    if (ev->kind == CHANGE_CREATE && !(ev->flags & CHANGE_OWN) && ev->dir)
        overlay_key_appeared(fs->overlay, ev->dir, ev->name);
    notify_change(fs->notify, ev);
}

static void on_gap(void *ctx, int64_t from_rev, int64_t to_rev)
{
    control_gap(((struct fs *)ctx)->control, from_rev, to_rev);
}

static void on_feed_ready(void *ctx)
{
    ((struct fs *)ctx)->feed_ready = true;
}

static void on_injected(void *ctx, struct change_event *ev, int err)
{
    struct fs *fs = ctx;

    notify_injected(fs->notify, ev, err);
}

static void on_signal(struct session *s)
{
    if (s->signals_seen > 1)
        _exit(1); /* told twice: at once. The kernel lets go of the mount's users */
    s->stop = true;
}

/* ---- start ----------------------------------------------------------------------------------------- */

static int open_store(struct fs *fs)
{
    struct client_config cc = {
        .n_endpoints = fs->opt.n_endpoints,
        .ca_pem = fs->opt.ca_pem,
        .cert_pem = fs->opt.cert_pem,
        .key_pem = fs->opt.key_pem,
        .timeout_ms = fs->opt.timeout_ms,
        .grace_ms = fs->opt.grace_ms};
    struct tree_config tc = {.prefix = fs->opt.prefix,
                             .file_mode = 0666 & ~fs->opt.umask,
                             .dir_mode = 0777 & ~fs->opt.umask,
                             .uid = fs->opt.uid,
                             .gid = fs->opt.gid};
    const struct feed_sink sink = {fs, on_key_event, on_change, NULL, on_gap, on_feed_ready};
    int rc;

    for (unsigned i = 0; i < cc.n_endpoints; i++)
        cc.endpoints[i] = fs->opt.endpoints[i];
    rc = client_open(&cc, &fs->client);
    if (rc) {
        fail("%s: %s", fs->opt.source,
             rc == -EINVAL ? "an endpoint is not one that can be connected to" : strerror(-rc));
        return rc;
    }
    fs->client_source = (struct source){client_fd(fs->client), client_ready};
    rc = session_watch(&fs->session, &fs->client_source);
    if (rc == 0)
        rc = tree_open(&tc, fs->client, &fs->tree);
    if (rc == 0) {
        struct notify_config nc = {&fs->session, fs->tree, fs->injectors, fs->opt.allow_other};

        injector_pool_set_tree(fs->injectors, fs->tree);
        tree_set_mode(fs->tree, fs->opt.strict ? READ_STRICT : READ_LINEARIZABLE);
        rc = notify_open(&nc, &fs->notify);
    }
    if (rc == 0)
        rc = overlay_open(fs, &fs->overlay);
    if (rc == 0 && (fs->keeper = keeper_new(fs)) == NULL)
        rc = -ENOMEM;
    if (rc == 0)
        rc = control_new(fs, &fs->control);
    if (rc == 0)
        rc = feed_open(fs->tree, fs->client, &sink, &fs->feed);
    if (rc)
        fail("cannot start: %s", strerror(-rc));
    return rc;
}

static int await_store(struct fs *fs)
{
    int64_t deadline = client_now_ms() + fs->opt.timeout_ms;

    while (!fs->feed_ready && !fs->session.stop && client_now_ms() < deadline)
        session_turn(&fs->session, 100);
    if (fs->feed_ready)
        return 0;
    if (!fs->session.stop)
        fail("%s: no endpoint answered within %ld s. Is the server running, and is this its client address? "
             "Nothing was "
             "mounted",
             fs->opt.source, (long)(fs->opt.timeout_ms / 1000));
    return -ETIMEDOUT;
}

static int mount_it(struct fs *fs)
{
    char *options = NULL, *source = strdup(fs->opt.source);
    int rc = -ENOMEM;

    for (char *p = source; p && *p; p++)
        if (*p == ',')
            *p = ';'; /* -o has no way to quote it; only what df shows */
    if (source &&
        asprintf(&options, "fsname=%s,subtype=cairnfs%s%s", source,
                 fs->opt.allow_other ? ",allow_other,default_permissions" : "", fs->opt.fuse_options) >= 0) {
        rc = session_mount(&fs->session, &ops_table, sizeof ops_table, options, fs->opt.mountpoint);
        if (rc)
            fail("%s: cannot mount there (%s)", fs->opt.mountpoint,
                 rc == -EINVAL ? "an option is wrong" : "see above");
    }
    free(options);
    free(source);
    return rc;
}

static int check_mountpoint(const char *path)
{
    struct stat st;
    int rc = session_detach_dead(path);

    if (rc) {
        fail("%s: a dead mount is there and cannot be detached: %s", path, strerror(-rc));
        return rc;
    }
    if (stat(path, &st) != 0) {
        rc = -errno;
        fail("%s: %s", path, strerror(errno));
    } else if (!S_ISDIR(st.st_mode)) {
        rc = -ENOTDIR;
        fail("%s: not a directory", path);
    }
    return rc;
}

/* ---- stop -------------------------------------------------------------------------------------------- */

static void commit_all(struct fs *fs)
{
    int64_t deadline =
        client_now_ms() + (fs->opt.timeout_ms < STOP_TIMEOUT_MS ? fs->opt.timeout_ms : STOP_TIMEOUT_MS);

    overlay_flush(fs->overlay);
    for (struct handle *h = fs->handles; h; h = h->next)
        if (handle_dirty(h) && h->node && !h->orphan)
            handle_commit_quietly(h);
    while (fs->commits_in_flight && client_now_ms() < deadline)
        session_turn(&fs->session, 50);
}

static void stop(struct fs *fs)
{
    if (fs->control && fs->session.se) {
        control_stop(fs->control);
        commit_all(fs);
    }
    injector_pool_stop(fs->injectors);
    session_unmount(&fs->session);
    /* What waits in the kernel for us (users, a notify thread) is released by the end of this process. */
    fflush(NULL);
    _exit(0);
}

int main(int argc, char **argv)
{
    static struct fs fs;
    struct injector_pool_config pc = {.session = &fs.session, .ctx = &fs, .done = on_injected};
    enum options_result parsed = options_parse(&fs.opt, argc, argv);

    if (parsed != OPTIONS_RUN)
        return parsed == OPTIONS_DONE ? 0 : 1;
    if (check_mountpoint(fs.opt.mountpoint) != 0)
        return 1;
    if (!fs.opt.foreground)
        daemonize();
    if (session_init(&fs.session, &fs) != 0)
        return 1;
    fs.session.before_sleep = before_sleep;
    fs.session.on_signal = on_signal;
    fs.session.on_ready = tell_ready;
    fs.tree_timer.fire = tree_fire;
    fs.feed_timer.fire = feed_fire;
    fs.started_ms = client_now_ms();
    fs.session.request_timeout_s = REQUEST_TIMEOUT_S + 3 * (unsigned)(fs.opt.timeout_ms / 1000);
    pc.mountpoint = fs.opt.mountpoint;
    pc.modify_only = fs.opt.events_modify;
    if (injector_pool_open(&pc, &fs.injectors) != 0) {
        fail("cannot start the process that tells inotify: %s", strerror(errno));
        return 1;
    }
    if (open_store(&fs) != 0 || await_store(&fs) != 0 || mount_it(&fs) != 0)
        _exit(1); /* threads are running: no destructors */
    injector_pool_run(fs.injectors);
    session_run(&fs.session);
    stop(&fs);
}
