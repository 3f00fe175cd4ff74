/* SPDX-License-Identifier: Apache-2.0 */
/* client_health.c - which endpoint calls go to, and whether a quorum stands behind it.
 *
 * One endpoint is current: calls and streams go to it. With several, it is watched over:
 *
 *     its connection breaks ................................. left at once for a usable one
 *     what was asked is unanswered for CLIENT_ASK_MS ........ \
 *     it knows no leader, or calls fail ....................... } in question: all are asked to prove a quorum
 *     somebody waited too long (client_suspect) ............. /
 *     it says nothing at all for CLIENT_SILENCE_MS .......... left for one that proved a quorum meanwhile
 *     it talks, and another proved a quorum CLIENT_LEAD_MS
 *     ago while it has not .................................. the same
 *     none proves one for CLIENT_DOUBT_MS ................... in doubt: reads are marked, changes wait (A.12)
 *
 * So an endpoint that pauses for less than CLIENT_SILENCE_MS is not left, and neither is one that waits out
 * an election with all others: it has CLIENT_LEAD_MS to prove a quorum when the first of them does. A slow
 * line is no silent endpoint: while a large request is on its way, and when moving has not helped, as the next
 * one is as slow, more patience is called for. And time in which this process itself did not run is nobody's silence.
 *
 * The current endpoint, and one that has said that it knows no leader, is asked for its Status (a beat) when
 * nothing came from it for CLIENT_BEAT_MS; any one is whose next word is overdue. An endpoint is usable when
 * it has answered one since it was connected, is of the cluster that the first one was of, and no learner.
 * Whoever is left loses its streams (the watch is opened anew elsewhere, from the revision it had come to)
 * and its calls: those that only read are sent again at once, the outcome of others is unknown.
 *
 * With one endpoint there is no beat and no choice: what speaks against it is doubt.
 */
#include <sys/timerfd.h>
#include <unistd.h>

#include "client_private.h"

#define TICK_MS         100 /* while the current endpoint is in question */
#define LATE_MS         30  /* the timer came so late: so long this process did not run */
#define BEAT_TIMEOUT_MS 2000
#define PROBE_ONE_MS    2000 /* the only endpoint may take longer */
#define PROBE_MS        500
#define FIRST_WAIT_MS   300

int64_t client_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

struct endpoint *client_current(struct client *c)
{
    return &c->endpoints[c->current];
}

bool endpoint_usable(const struct endpoint *e)
{
    if (e->client->n_endpoints == 1)
        return endpoint_connected(e);
    return endpoint_connected(e) && e->verified && !e->foreign && !e->learner;
}

/* ---- the timer ------------------------------------------------------------------------ */

static void timer_set(struct client *c, int64_t at_ms)
{
    const struct itimerspec spec = {.it_value = {at_ms / 1000, at_ms % 1000 * 1000000}};

    timerfd_settime(c->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
    c->due_ms = at_ms;
}

void client_timer_by(struct client *c, int64_t at_ms)
{
    if (at_ms < 1)
        at_ms = 1; /* 0 would be never; this is at once */
    if (c->due_ms == 0 || at_ms < c->due_ms)
        timer_set(c, at_ms);
}

/* The soonest moment, not before `now`, of those it is told. */
static void sooner(int64_t *due_ms, int64_t now, int64_t at_ms)
{
    if (at_ms < now)
        at_ms = now;
    if (*due_ms == 0 || at_ms < *due_ms)
        *due_ms = at_ms;
}

/* How long it may say nothing, as things are. */
static int64_t patience_ms(const struct endpoint *e)
{
    return e->client->silence_ms + (int64_t)(e->n_bytes / CLIENT_LINE_BYTES_PER_MS);
}

/* When it will have said nothing for too long. It owes us a word. */
static int64_t silent_at_ms(const struct endpoint *e)
{
    return e->owing_ms + patience_ms(e);
}

/* The beat that is to be sent to it, or the silence that is to be noticed. */
static void endpoint_due(const struct client *c, const struct endpoint *e, int64_t now, int64_t *due_ms)
{
    bool is_current = e == &c->endpoints[c->current];

    if (is_current && !endpoint_usable(e))
        sooner(due_ms, now, now + TICK_MS);
    if (!endpoint_connected(e))
        return;
    if (!e->verified)
        sooner(due_ms, now, now + TICK_MS);
    else if (e->beat.op == NULL && e->owing_ms)
        sooner(due_ms, now, e->owing_ms + CLIENT_ASK_MS);
    else if (e->beat.op == NULL && (is_current || e->no_leader))
        sooner(due_ms, now, e->heard_ms + CLIENT_BEAT_MS);
    if (is_current && e->owing_ms && now < silent_at_ms(e))
        sooner(due_ms, now, silent_at_ms(e));
}

/* When there is something to do next; 0: nothing to wait for. */
static int64_t next_due_ms(const struct client *c)
{
    int64_t now = client_now_ms(), due_ms = 0;

    for (const struct client_op *op = c->waiting; op; op = op->next) {
        const struct endpoint *e = op->only ? op->only : &c->endpoints[c->current];
        bool ready = endpoint_usable(e) && op->not_before_ms < op->deadline_ms;

        sooner(&due_ms, now, ready ? op->not_before_ms : op->deadline_ms);
    }
    if (c->check_since_ms)
        sooner(&due_ms, now, now + TICK_MS);
    else if (c->unproved_ms)
        sooner(&due_ms, now, c->unproved_ms + CLIENT_ASK_MS);
    for (unsigned i = 0; i < c->n_endpoints && c->n_endpoints > 1; i++) {
        const struct endpoint *e = &c->endpoints[i];

        endpoint_due(c, e, now, &due_ms);
        if (c->check_since_ms && now < e->proved_ms + CLIENT_LEAD_MS)
            sooner(&due_ms, now, e->proved_ms + CLIENT_LEAD_MS);
    }
    return due_ms;
}

/* ---- what is known ------------------------------------------------------------------------ */

/* Every response's first field is the header, but for the few without one. */
static const Etcdserverpb__ResponseHeader *header_of(const ProtobufCMessage *msg)
{
    if (msg == NULL || msg->descriptor->n_fields == 0 ||
        msg->descriptor->fields[0].descriptor != &etcdserverpb__response_header__descriptor)
        return NULL;
    return *(Etcdserverpb__ResponseHeader *const *)((const char *)msg + msg->descriptor->fields[0].offset);
}

static void op_give_up(struct client_op *op)
{
    op->moved = true;
    grpc_call_cancel(op->gcall, NULL);
}

/* Another leader was elected since they were sent. */
static void end_impatient(struct client *c)
{
    for (struct client_op *op = c->running; op; op = op->next)
        if (op->call && op->call->impatient && !op->moved)
            op_give_up(op);
}

void client_note_header(struct client *c, const ProtobufCMessage *msg)
{
    const Etcdserverpb__ResponseHeader *h = header_of(msg);

    if (h == NULL)
        return;
    if (h->raft_term > c->term) {
        if (c->term)
            end_impatient(c);
        c->term = h->raft_term;
    }
    c->health.cluster_id = h->cluster_id;
    c->health.member_id = h->member_id;
    c->health.raft_term = h->raft_term;
    if (h->revision > c->health.last_revision)
        c->health.last_revision = h->revision;
}

/* In question, and has been since then. */
static void check_start(struct client *c, int64_t since_ms)
{
    if (c->check_since_ms == 0)
        c->check_since_ms = since_ms;
    client_timer_by(c, client_now_ms() + 1); /* there all are asked */
}

void client_note_doubt(struct client *c)
{
    check_start(c, client_now_ms());
    if (!c->health.in_doubt) {
        c->health.in_doubt = true;
        c->health.lost_ms = c->check_since_ms;
    }
}

void client_note_quorum(struct client *c)
{
    c->health.quorum_ms = client_now_ms();
    c->health.in_doubt = false;
    c->health.lost_ms = 0;
    c->check_since_ms = 0;
    c->unproved_ms = c->n_proving && c->n_endpoints > 1 ? c->health.quorum_ms : 0;
}

void client_question(struct client *c, struct endpoint *e)
{
    if (e != client_current(c))
        return;
    if (c->n_endpoints == 1)
        client_note_doubt(c);
    else
        check_start(c, client_now_ms());
}

void client_suspect(struct client *c)
{
    client_note_doubt(c);
}

void client_note_back(struct client *c, const struct client_op *op)
{
    op->endpoint->n_calls--;
    op->endpoint->n_bytes -= op->n_bytes;
    c->n_proving -= client_op_proves(op);
}

void client_note_asked(struct client *c, const struct client_op *op)
{
    struct endpoint *e = op->endpoint;
    int64_t now = client_now_ms();
    bool proves = client_op_proves(op);

    e->n_calls++;
    e->n_bytes += op->n_bytes;
    c->n_proving += proves;
    if (c->n_endpoints == 1)
        return;
    if (proves && c->unproved_ms == 0)
        c->unproved_ms = now;
    if (e->owing_ms == 0)
        e->owing_ms = now;
    client_timer_by(c, now + CLIENT_ASK_MS);
}

void client_heard(struct endpoint *e)
{
    e->heard_ms = client_now_ms();
    e->owing_ms = e->n_calls && e->client->n_endpoints > 1 ? e->heard_ms : 0;
}

/* ---- choosing ----------------------------------------------------------------------------- */

static bool is_silent(const struct endpoint *e)
{
    return e->owing_ms && client_now_ms() >= silent_at_ms(e);
}

static bool is_sound(const struct endpoint *e)
{
    return endpoint_usable(e) && !e->no_leader && !is_silent(e);
}

/* What is under way at the endpoint that was left is to be asked again elsewhere, or to be found out. */
static void leave(struct client *c, const struct endpoint *e)
{
    for (struct client_op *op = c->running; op; op = op->next)
        if (op->endpoint == e && op->only == NULL && !op->moved)
            op_give_up(op);
}

static void switch_to(struct client *c, struct endpoint *e)
{
    struct endpoint *old = client_current(c);

    if (e == old)
        return;
    if (endpoint_usable(old)) { /* for what it did not say, or not soon enough */
        int64_t now = client_now_ms(), before_ms = c->left_silent_ms;

        c->left_silent_ms = now;
        if (before_ms && now - before_ms < 2 * patience_ms(old) + CLIENT_SILENCE_MS &&
            c->silence_ms < CLIENT_SILENCE_MAX_MS)
            c->silence_ms *= 2;
    }
    c->current = (unsigned)(e - c->endpoints);
    c->unproved_ms = 0;
    c->health.failovers_total++;
    leave(c, old);
}

/* A usable endpoint other than the current one: a sound one if there is, else any. */
static struct endpoint *other_usable(struct client *c)
{
    struct endpoint *found = NULL;

    for (unsigned i = 1; i < c->n_endpoints; i++) {
        struct endpoint *e = &c->endpoints[(c->current + i) % c->n_endpoints];

        if (is_sound(e))
            return e;
        if (found == NULL && endpoint_usable(e))
            found = e;
    }
    return found;
}

/* The current endpoint cannot be used: the next one, unproven; it has to prove itself. At the start the first
 * named is given a moment. */
static void replace_current(struct client *c)
{
    bool connecting = client_current(c)->state != GRPC_CHANNEL_TRANSIENT_FAILURE &&
                      client_now_ms() < c->opened_ms + FIRST_WAIT_MS;
    struct endpoint *e = connecting ? NULL : other_usable(c);

    if (e) {
        switch_to(c, e);
        check_start(c, client_now_ms());
    } else
        client_note_doubt(c);
}

/* While the current endpoint is in question: has another one proved what it has not? */
static void decide(struct client *c)
{
    const struct endpoint *current = client_current(c);
    int64_t now = client_now_ms();
    bool gone = is_silent(current) || !endpoint_usable(current);
    bool talks = current->heard_ms > c->check_since_ms;
    int64_t lead_ms = gone ? 0 : CLIENT_LEAD_MS + patience_ms(current) - CLIENT_SILENCE_MS;

    if (c->check_since_ms == 0)
        return;
    for (unsigned i = 1; i < c->n_endpoints && (gone || talks); i++) {
        struct endpoint *e = &c->endpoints[(c->current + i) % c->n_endpoints];

        if (endpoint_usable(e) && !is_silent(e) && e->proved_ms >= c->check_since_ms &&
            now >= e->proved_ms + lead_ms) {
            switch_to(c, e);
            client_note_quorum(c);
            client_run_waiting(c);
            return;
        }
    }
    if (now - c->check_since_ms >= CLIENT_DOUBT_MS)
        client_note_doubt(c);
}

/* ---- probes --------------------------------------------------------------------------------- */

static void confirm_request(Etcdserverpb__RangeRequest *req)
{
    static const uint8_t key[1] = {0};

    etcdserverpb__range_request__init(req);
    req->key = (ProtobufCBinaryData){1, (uint8_t *)key};
    req->count_only = true;
}

void client_confirm(struct client *c, struct client_call *call, int64_t timeout_ms)
{
    Etcdserverpb__RangeRequest req;

    confirm_request(&req);
    client_start(c, call, CLIENT_RANGE, &req.base, timeout_ms);
}

static void probe_done(struct client_call *call)
{
    struct endpoint *e = (struct endpoint *)((char *)call - offsetof(struct endpoint, probe));
    struct client *c = e->client;

    if (call->outcome != CLIENT_OK &&
        client_errno(call, CLIENT_USE_READ) != EACCES) /* which it read to say so */
        return;
    e->no_leader = false;
    if (e == client_current(c)) {
        client_note_quorum(c);
        return;
    }
    if (c->check_since_ms == 0 || e->proved_ms < c->check_since_ms)
        e->proved_ms = client_now_ms();
    decide(c);
    client_timer_by(c, e->proved_ms + CLIENT_LEAD_MS);
}

static void probe_all(struct client *c)
{
    Etcdserverpb__RangeRequest req;

    confirm_request(&req);
    for (unsigned i = 0; i < c->n_endpoints; i++) {
        struct endpoint *e = &c->endpoints[i];

        if (endpoint_usable(e) && e->probe.op == NULL) {
            e->probe.done = probe_done;
            client_start_only(c, &e->probe, CLIENT_RANGE, &req.base,
                              c->n_endpoints > 1 ? PROBE_MS : PROBE_ONE_MS, e);
        }
    }
}

/* ---- beats ------------------------------------------------------------------------------------ */

static void beat_done(struct client_call *call)
{
    struct endpoint *e = (struct endpoint *)((char *)call - offsetof(struct endpoint, beat));
    const Etcdserverpb__StatusResponse *r = (const Etcdserverpb__StatusResponse *)call->reply;
    struct client *c = e->client;

    if (call->outcome == CLIENT_UNKNOWN || call->outcome == CLIENT_NOT_SENT)
        return;
    e->verified = endpoint_connected(e);
    if (call->outcome == CLIENT_OK && r->header) {
        if (c->cluster_id == 0)
            c->cluster_id = r->header->cluster_id;
        e->foreign = r->header->cluster_id != c->cluster_id;
        e->no_leader = r->leader == 0;
        e->learner = r->islearner;
    }
    if (!endpoint_usable(client_current(c)))
        replace_current(c);
    else if (!is_sound(client_current(c)))
        check_start(c, client_now_ms());
    client_run_waiting(c);
    client_timer_by(c, client_now_ms() + CLIENT_BEAT_MS);
}

static void beat_send(struct endpoint *e)
{
    Etcdserverpb__StatusRequest req = ETCDSERVERPB__STATUS_REQUEST__INIT;

    e->beat.done = beat_done;
    client_start_only(e->client, &e->beat, CLIENT_STATUS, &req.base, BEAT_TIMEOUT_MS, e);
}

static bool is_overdue(int64_t since_ms)
{
    return since_ms && client_now_ms() >= since_ms + CLIENT_ASK_MS;
}

/* Those that are not known yet or owe us a word, and the current one when it has been quiet. */
static void beats(struct client *c)
{
    for (unsigned i = 0; i < c->n_endpoints; i++) {
        struct endpoint *e = &c->endpoints[i];
        bool quiet = (i == c->current || e->no_leader) && client_now_ms() >= e->heard_ms + CLIENT_BEAT_MS;

        if (endpoint_connected(e) && e->beat.op == NULL &&
            (!e->verified || c->check_since_ms || quiet || is_overdue(e->owing_ms)))
            beat_send(e);
    }
}

/* What is to be said of the current endpoint when nothing comes from it. */
static void judge(struct client *c)
{
    const struct endpoint *e = client_current(c);

    if (c->silence_ms > CLIENT_SILENCE_MS && client_now_ms() >= c->left_silent_ms + CLIENT_SILENCE_CALM_MS)
        c->silence_ms = CLIENT_SILENCE_MS;
    if (!endpoint_usable(e))
        replace_current(c);
    else if (is_overdue(e->owing_ms))
        check_start(c, e->owing_ms);
    else if (is_overdue(c->unproved_ms))
        check_start(c, c->unproved_ms);
}

/* What the timer came too late is time in which nobody could have been heard. */
static void forgive(struct client *c, int64_t late_ms)
{
    if (late_ms < LATE_MS)
        return;
    for (unsigned i = 0; i < c->n_endpoints; i++)
        if (c->endpoints[i].owing_ms)
            c->endpoints[i].owing_ms += late_ms;
    if (c->unproved_ms)
        c->unproved_ms += late_ms;
}

/* ---- what happens --------------------------------------------------------------------------------- */

void client_endpoint_changed(struct client *c, struct endpoint *e)
{
    e->verified = false;
    e->owing_ms = 0;
    if (endpoint_connected(e) && c->n_endpoints > 1 && e->beat.op == NULL)
        beat_send(e);
    if (e != client_current(c) || endpoint_usable(e))
        return;
    if (c->n_endpoints > 1)
        replace_current(c);
    else
        client_note_doubt(c);
}

void client_health_init(struct client *c)
{
    c->opened_ms = client_now_ms();
    c->silence_ms = CLIENT_SILENCE_MS;
    client_note_doubt(c);
}

void client_tick(struct client *c)
{
    uint64_t times;

    (void)!read(c->timer_fd, &times, sizeof times); /* nothing to read: fine */
    forgive(c, client_now_ms() - c->due_ms);
    c->due_ms = 0;
    client_run_waiting(c);
    if (c->n_endpoints > 1) {
        judge(c);
        beats(c);
    }
    if (c->check_since_ms)
        probe_all(c);
    if (c->n_endpoints > 1)
        decide(c);
    timer_set(c, next_due_ms(c));
}

/* ---- for the owner ---------------------------------------------------------------------------------- */

void client_get_health(const struct client *c, struct client_health *ret_health)
{
    *ret_health = c->health;
    ret_health->connected = endpoint_usable(&c->endpoints[c->current]);
    ret_health->in_doubt = c->health.in_doubt || !ret_health->connected;
    ret_health->endpoint = c->endpoints[c->current].name;
    ret_health->n_endpoints = c->n_endpoints;
    ret_health->calls = c->n_ops;
}

const char *client_endpoint_state(const struct client *c, unsigned i, const char **ret_name)
{
    const struct endpoint *e = &c->endpoints[i];

    *ret_name = e->name;
    return !endpoint_connected(e) ? "not connected"
           : c->n_endpoints == 1  ? "connected"
           : !e->verified         ? "not heard of"
           : e->foreign           ? "of another cluster"
           : e->learner           ? "a learner"
           : is_silent(e)         ? "silent"
           : e->no_leader         ? "without a leader"
                                  : "connected";
}

bool client_quorum_fresh(const struct client *c)
{
    return !c->health.in_doubt && c->health.quorum_ms &&
           client_now_ms() - c->health.quorum_ms <= CLIENT_QUORUM_FRESH_MS;
}
