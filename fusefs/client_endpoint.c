/* SPDX-License-Identifier: Apache-2.0 */
/* client_endpoint.c - whom to talk to: connections, what is known of the quorum, failing over.
 *
 * A timer (100 ms) runs only while something waits or the quorum is in doubt.
 */
#include <sys/timerfd.h>
#include <unistd.h>

#include "client_private.h"

#define TICK_MS            100
#define PROBE_TIMEOUT_MS   2000
#define HEALTHY_CONNECT_MS 3000 /* how long one attempt to connect may take */

int64_t client_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* ---- health ----------------------------------------------------------------------- */

struct endpoint *client_current(struct client *c)
{
    return &c->endpoints[c->current];
}

bool endpoint_connected(const struct endpoint *e)
{
    return e->state == GRPC_CHANNEL_READY;
}

void client_timer_set(struct client *c, bool on)
{
    struct itimerspec spec = {.it_value.tv_nsec = TICK_MS * 1000000,
                              .it_interval.tv_nsec = TICK_MS * 1000000};

    if (on == c->timer_on)
        return;
    if (!on)
        memset(&spec, 0, sizeof spec);
    timerfd_settime(c->timer_fd, 0, &spec, NULL);
    c->timer_on = on;
}

void client_note_doubt(struct client *c)
{
    if (!c->health.in_doubt) {
        c->health.in_doubt = true;
        c->health.lost_ms = client_now_ms();
    }
    client_timer_set(c, true);
}

void client_note_quorum(struct client *c)
{
    c->health.quorum_ms = client_now_ms();
    c->health.in_doubt = false;
    c->health.lost_ms = 0;
}

/* Another connected endpoint, if there is one. */
void client_fail_over(struct client *c)
{
    for (unsigned i = 1; i < c->n_endpoints; i++) {
        unsigned k = (c->current + i) % c->n_endpoints;

        if (endpoint_connected(&c->endpoints[k])) {
            c->current = k;
            c->health.failovers_total++;
            return;
        }
    }
}

/* Every response's first field is the header, but for the few without one. */
void client_note_header(struct client *c, const ProtobufCMessage *msg)
{
    const Etcdserverpb__ResponseHeader *h;

    if (msg == NULL || msg->descriptor->n_fields == 0 ||
        msg->descriptor->fields[0].descriptor != &etcdserverpb__response_header__descriptor)
        return;
    h = *(Etcdserverpb__ResponseHeader *const *)((const char *)msg + msg->descriptor->fields[0].offset);
    if (h == NULL)
        return;
    c->health.cluster_id = h->cluster_id;
    c->health.member_id = h->member_id;
    c->health.raft_term = h->raft_term;
    if (h->revision > c->health.last_revision)
        c->health.last_revision = h->revision;
}

/* ---- connections ------------------------------------------------------------------------ */

static void watch_state(struct endpoint *e)
{
    e->watching = true;
    atomic_store_explicit(&e->state_tag.lent, true, memory_order_release);
    grpc_channel_watch_connectivity_state(e->channel, e->state, gpr_inf_future(GPR_CLOCK_REALTIME),
                                          e->client->cq, &e->state_tag);
}

static void state_changed(struct client *c, struct tag *t)
{
    struct endpoint *e = (struct endpoint *)((char *)t - offsetof(struct endpoint, state_tag));

    e->watching = false;
    /* 1: an idle channel connects at once, so that a connection that is lost is always being made again. */
    e->state = grpc_channel_check_connectivity_state(e->channel, 1);
    if (e == client_current(c) && !endpoint_connected(e)) {
        client_note_doubt(c);
        client_fail_over(c);
    }
    watch_state(e);
    client_run_waiting(c);
}

void client_suspect(struct client *c)
{
    client_note_doubt(c);
}

static void probe_done(struct client_call *call)
{
    (void)call; /* call_arrived has noted what it shows */
}

void client_confirm(struct client *c, struct client_call *call, int64_t timeout_ms)
{
    static const uint8_t key[1] = {0};
    Etcdserverpb__RangeRequest req = ETCDSERVERPB__RANGE_REQUEST__INIT;

    req.key = (ProtobufCBinaryData){1, (uint8_t *)key};
    req.count_only = true;
    client_start(c, call, CLIENT_RANGE, &req.base, timeout_ms);
}

void client_tick(struct client *c)
{
    uint64_t times;

    (void)!read(c->timer_fd, &times, sizeof times); /* nothing to read: fine */
    client_run_waiting(c);
    if (c->health.in_doubt && endpoint_connected(client_current(c)) && c->probe.op == NULL)
        client_confirm(c, &c->probe, PROBE_TIMEOUT_MS);
    if (c->waiting == NULL && !c->health.in_doubt)
        client_timer_set(c, false);
}

void client_get_health(const struct client *c, struct client_health *ret_health)
{
    *ret_health = c->health;
    ret_health->connected = endpoint_connected(&c->endpoints[c->current]);
    ret_health->in_doubt = c->health.in_doubt || !ret_health->connected;
    ret_health->endpoint = c->endpoints[c->current].name;
    ret_health->calls = c->n_ops;
}

bool client_quorum_fresh(const struct client *c)
{
    return !c->health.in_doubt && c->health.quorum_ms &&
           client_now_ms() - c->health.quorum_ms <= CLIENT_QUORUM_FRESH_MS;
}

/* ---- opening and closing ------------------------------------------------------------------ */

/* "host:2379" -> "dns:///host:2379", digits -> "ipv4:...", "[::1]:2379" -> "ipv6:...", "unix:path" as it
 * is. */
static int endpoint_target(const char *name, char **ret_target)
{
    const char *host = name, *colon;
    const char *scheme = "dns:///";
    int n;

    if (strncmp(name, "unix:", 5) == 0) {
        const char *path = name + 5;

        if (strncmp(path, "//", 2) == 0)
            path += 2;
        n = *path ? asprintf(ret_target, "unix:%s", path) : -2;
        return n == -2 ? -EINVAL : n < 0 ? -ENOMEM : 0;
    }
    if (strncmp(name, "http://", 7) == 0)
        host = name + 7;
    else if (strstr(name, "://"))
        return -EINVAL;
    colon = strrchr(host, ':');
    if (colon == NULL || colon == host || colon[1] == 0 ||
        strspn(colon + 1, "0123456789") != strlen(colon + 1))
        return -EINVAL;
    if (host[0] == '[')
        scheme = "ipv6:";
    else if (strspn(host, "0123456789.:") == strlen(host))
        scheme = "ipv4:";
    return asprintf(ret_target, "%s%s", scheme, host) < 0 ? -ENOMEM : 0;
}

static int endpoint_open(struct client *c, struct endpoint *e, const char *name)
{
    grpc_arg args[] = {
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_ENABLE_HTTP_PROXY, {.integer = 0}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_ENABLE_RETRIES, {.integer = 0}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, {.integer = CLIENT_BACKOFF_MIN_MS}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, {.integer = CLIENT_BACKOFF_MAX_MS}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, {.integer = HEALTHY_CONNECT_MS}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, {.integer = CLIENT_RECV_BYTES}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, {.integer = -1}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_KEEPALIVE_TIME_MS, {.integer = CLIENT_KEEPALIVE_MS}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_KEEPALIVE_TIMEOUT_MS, {.integer = CLIENT_KEEPALIVE_TIMEOUT_MS}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, {.integer = 0}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, {.integer = 1}},
    };
    const grpc_channel_args channel_args = {sizeof args / sizeof *args, args};
    grpc_channel_credentials *creds;
    int r;

    r = endpoint_target(name, &e->target);
    if (r < 0)
        return r;
    e->name = strdup(name);
    if (e->name == NULL)
        return -ENOMEM;
    creds = grpc_insecure_credentials_create();
    e->channel = grpc_channel_create(e->target, creds, &channel_args);
    grpc_channel_credentials_release(creds);
    if (e->channel == NULL)
        return -EINVAL;
    e->client = c;
    e->state_tag = (struct tag){.arrived = state_changed};
    return 0;
}

static void endpoint_close(struct endpoint *e)
{
    if (e->channel)
        grpc_channel_destroy(e->channel);
    free(e->target);
    free(e->name);
}

int client_endpoints_open(struct client *c, const struct client_config *cfg)
{
    if (cfg->n_endpoints == 0 || cfg->n_endpoints > CLIENT_ENDPOINTS_MAX)
        return -EINVAL;
    while (c->n_endpoints < cfg->n_endpoints) {
        unsigned i = c->n_endpoints++;
        int r = endpoint_open(c, &c->endpoints[i], cfg->endpoints[i]);

        if (r < 0)
            return r;
    }
    return 0;
}

void client_endpoints_connect(struct client *c)
{
    c->probe.done = probe_done;
    for (unsigned i = 0; i < c->n_endpoints; i++) {
        c->endpoints[i].state = grpc_channel_check_connectivity_state(c->endpoints[i].channel, 1);
        watch_state(&c->endpoints[i]);
    }
    client_note_doubt(c);
}

void client_endpoints_close(struct client *c)
{
    for (unsigned i = 0; i < c->n_endpoints; i++)
        endpoint_close(&c->endpoints[i]);
}
