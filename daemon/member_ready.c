/* SPDX-License-Identifier: Apache-2.0 */
/* member_ready.c - what the main thread waits for: being published, a signal, having been removed.
 *
 * A member tells the cluster its name and client URLs through the log. Once that entry is applied here, everything that
 * was acknowledged before is, and the member is ready: before that, even a serializable read could go back in time.
 *
 * While it waits it notes who the members are (member_note.c).
 *
 * Owner: the main thread, but for publish_done and member_notify. */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include "log.h"
#include "member_impl.h"

enum { MEMBER_URLS_MAX = 64, LOG_MS = 5000, RETRY_MS = 1000, LEAVE_MS = 1000, JOIN_LOOK_MS = 50 };

/* ---- waiting --------------------------------------------------------------------------- */

void member_notify(struct member_process *m)
{
    static const uint64_t one = 1;
    ssize_t n = write(m->event_fd, &one, sizeof one);

    (void)n; /* full: it is readable then */
}

static enum member_event read_signal(struct member_process *m)
{
    struct signalfd_siginfo s;

    if (read(m->signal_fd, &s, sizeof s) != sizeof s)
        return MEMBER_NOTHING;
    m->signal = (int)s.ssi_signo;
    log_info("received signal; shutting down", LOG_STR("signal", m->signal == SIGTERM ? "terminated" : "interrupt"));
    return MEMBER_SIGNAL;
}

enum member_event member_wait(struct member_process *m, uint64_t timeout_ms)
{
    struct pollfd fds[] = {{.fd = m->signal_fd, .events = POLLIN}, {.fd = m->event_fd, .events = POLLIN}};
    uint64_t note_ms = member_note_peers(m), count;
    int n;

    timeout_ms = timeout_ms < note_ms ? timeout_ms : note_ms;
    n = poll(fds, 2, timeout_ms > INT_MAX ? -1 : (int)timeout_ms);

    if (n > 0 && fds[1].revents && read(m->event_fd, &count, sizeof count) < 0)
        count = 0; /* somebody else's wake-up: harmless */
    if (n > 0 && fds[0].revents)
        return read_signal(m);
    return atomic_load(&m->removed) ? MEMBER_REMOVED : MEMBER_NOTHING;
}

void member_wait_note(struct member_process *m, uint64_t timeout_ms)
{
    struct pollfd fd = {.fd = m->event_fd, .events = POLLIN};
    uint64_t count;

    if (poll(&fd, 1, (int)timeout_ms) > 0 && read(m->event_fd, &count, sizeof count) < 0)
        count = 0; /* somebody else's wake-up: harmless */
}

enum member_event member_leave(struct member_process *m)
{
    struct pollfd fd = {.fd = m->signal_fd, .events = POLLIN};

    log_warn("the member has been permanently removed from the cluster; its data directory must be removed before it is added again",
             LOG_HEX("local-member-id", m->svc.member_id), LOG_STR("data-dir", m->boot.dir.path));
    (void)poll(&fd, 1, LEAVE_MS); /* a signal only ends it sooner */
    return MEMBER_REMOVED;
}

/* ---- being published ------------------------------------------------------------------- */

static void publish_done(struct proposal *p)
{
    struct member_process *m = ((struct publishing *)p)->member;

    atomic_store(&m->publish_state, p->err ? PUBLISH_FAILED : PUBLISH_DONE);
    member_notify(m);
}

static int pack_self(struct member_process *m, uint8_t *dst, size_t size, size_t *ret_n)
{
    const struct config *c = m->config;
    char *urls[MEMBER_URLS_MAX];
    Etcdserverpb__Member row = ETCDSERVERPB__MEMBER__INIT;

    if (c->advertise_client.n > MEMBER_URLS_MAX)
        return -ENAMETOOLONG;
    row.id = m->svc.member_id;
    row.name = (char *)c->name;
    for (size_t i = 0; i < c->advertise_client.n; i++)
        urls[i] = (char *)c->advertise_client.urls[i].text;
    row.clienturls = urls;
    row.n_clienturls = c->advertise_client.n;
    if (etcdserverpb__member__get_packed_size(&row) > size)
        return -ENAMETOOLONG;
    *ret_n = etcdserverpb__member__pack(&row, dst);
    return 0;
}

static int publish_begin(struct member_process *m)
{
    struct svc *s = &m->svc;
    struct entry_head h = {.kind = ENTRY_MEMBER_ATTR, .origin = s->member_id};
    struct publishing *w = &m->publishing;
    uint8_t body[16384];
    size_t n;
    int rc = pack_self(m, body, sizeof body, &n);

    if (rc)
        return rc;
    h.body = slice_of(body, n);
    *w = (struct publishing){.member = m, .bytes = entry_size(&h)};
    w->p.done = publish_done;
    /* Telling it twice does no harm. */
    w->p.deadline_ms = s->clock->now_ms(s->clock) + m->config->election_ms + RETRY_MS;
    w->p.entry = entry_new(w->bytes);
    rc = w->p.entry ? account_take(s->account, &w->p, w->bytes) : -ENOMEM;
    if (rc) {
        entry_unref(w->p.entry);
        w->member = NULL;
        return rc;
    }
    h.request_id = w->p.request_id;
    entry_encode(&h, w->p.entry->payload);
    atomic_store(&m->publish_state, PUBLISH_WAITS);
    turn_propose(s->turn, &w->p);
    return 0;
}

/* After publish_done, or when nothing was begun. */
void member_publish_end(struct member_process *m)
{
    if (m->publishing.member == NULL)
        return;
    account_give(m->svc.account, &m->publishing.p, m->publishing.bytes);
    entry_unref(m->publishing.p.entry);
    m->publishing.member = NULL;
    atomic_store(&m->publish_state, PUBLISH_IDLE);
}

static void log_waiting(struct member_process *m)
{
    struct turn_status t;

    turn_status(m->svc.turn, &t);
    log_info(m->boot.joining ? "waiting for the cluster's data, or to be published through raft"
             : t.leader      ? "waiting to be published through raft"
                             : "waiting for a leader: a quorum of the members is needed",
             LOG_HEX("local-member-id", m->svc.member_id), LOG_UINT("term", t.term), LOG_HEX("leader", t.leader),
             LOG_UINT("applied-index", t.applied), LOG_UINT("committed-index", t.commit));
}

/* A joiner first waits to be told that it is a member: from then on it has the state. */
static bool may_publish(struct member_process *m)
{
    struct member *members = NULL;
    struct arena a;
    bool found = !m->boot.joining;
    size_t n;

    if (found)
        return true;
    arena_init(&a, TABLE_BYTES, NULL, 0);
    n = apply_members(m->svc.apply, &a, &members);
    for (size_t i = 0; i < n; i++)
        found |= members[i].id == m->svc.member_id;
    arena_fini(&a);
    return found;
}

enum member_event member_publish(struct member_process *m)
{
    uint64_t log_ms = m->svc.clock->now_ms(m->svc.clock) + LOG_MS;
    bool told = false;

    for (;;) {
        enum publish_state state = (enum publish_state)atomic_load(&m->publish_state);
        enum member_event e = MEMBER_NOTHING;

        if (state == PUBLISH_DONE || state == PUBLISH_FAILED)
            member_publish_end(m);
        if (state == PUBLISH_DONE) {
            m->published = m->note_due = true;
            return MEMBER_NOTHING;
        }
        told = told || may_publish(m);
        if (told && state != PUBLISH_WAITS && publish_begin(m) != 0)
            return MEMBER_FAILED;
        e = member_wait(m, told ? LOG_MS : JOIN_LOOK_MS);
        if (e != MEMBER_NOTHING)
            return e;
        if (m->svc.clock->now_ms(m->svc.clock) >= log_ms) {
            log_waiting(m);
            member_meet_leader(m);
            log_ms += LOG_MS;
        }
    }
}
