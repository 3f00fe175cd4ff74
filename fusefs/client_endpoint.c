/* SPDX-License-Identifier: Apache-2.0 */
/* client_endpoint.c - the connections: one channel for each endpoint, always connected or being connected. */
#include "client_private.h"

#define TICK_MS            100
#define PROBE_TIMEOUT_MS   2000
#define HEALTHY_CONNECT_MS 3000 /* how long one attempt to connect may take */

bool endpoint_connected(const struct endpoint *e)
{
    return e->state == GRPC_CHANNEL_READY;
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
    watch_state(e);
    client_endpoint_changed(c, e);
    client_run_waiting(c);
}

/* ---- opening and closing ------------------------------------------------------------------ */

/* "host:2379" -> "dns:///host:2379", digits -> "ipv4:...", "[::1]:2379" -> "ipv6:...", "unix:path" as it
 * is. *tls: whether a name without a scheme means it; then, whether this one does. */
static int endpoint_target(const char *name, char **ret_target, bool *tls)
{
    const char *host = name, *colon;
    const char *scheme = "dns:///";
    int n;

    if (strncmp(name, "unix:", 5) == 0) {
        const char *path = name + 5;

        if (strncmp(path, "//", 2) == 0)
            path += 2;
        *tls = false;
        n = *path ? asprintf(ret_target, "unix:%s", path) : -2;
        return n == -2 ? -EINVAL : n < 0 ? -ENOMEM : 0;
    }
    if (strncmp(name, "http://", 7) == 0)
        host = name + 7;
    else if (strncmp(name, "https://", 8) == 0)
        host = name + 8;
    else if (strstr(name, "://"))
        return -EINVAL;
    if (host != name)
        *tls = name[4] == 's';
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

static grpc_channel_credentials *credentials(const struct client_config *cfg, bool tls)
{
    grpc_ssl_pem_key_cert_pair own = {.private_key = cfg->key_pem, .cert_chain = cfg->cert_pem};

    if (!tls)
        return grpc_insecure_credentials_create();
    return grpc_ssl_credentials_create(cfg->ca_pem, cfg->cert_pem ? &own : NULL, NULL, NULL);
}

static int endpoint_open(struct client *c, struct endpoint *e, const char *name, const struct client_config *cfg)
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
    bool tls = cfg->ca_pem || cfg->cert_pem;
    int r;

    r = endpoint_target(name, &e->target, &tls);
    if (r < 0)
        return r;
    e->name = strdup(name);
    if (e->name == NULL)
        return -ENOMEM;
    creds = credentials(cfg, tls);
    if (creds == NULL)
        return -EINVAL; /* core has said that the certificate is none */
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
        int r = endpoint_open(c, &c->endpoints[i], cfg->endpoints[i], cfg);

        if (r < 0)
            return r;
    }
    return 0;
}

void client_endpoints_connect(struct client *c)
{
    for (unsigned i = 0; i < c->n_endpoints; i++) {
        c->endpoints[i].state = grpc_channel_check_connectivity_state(c->endpoints[i].channel, 1);
        watch_state(&c->endpoints[i]);
    }
    client_health_init(c);
}

void client_endpoints_close(struct client *c)
{
    for (unsigned i = 0; i < c->n_endpoints; i++)
        endpoint_close(&c->endpoints[i]);
}
