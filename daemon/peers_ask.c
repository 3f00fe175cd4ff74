/* SPDX-License-Identifier: Apache-2.0 */
/* peers_ask.c - calls to other members whose caller waits: the question of a member that is to join, and whatever
 * another service sends on a connection of its own.
 *
 * Owner: the caller's thread; of the transport only what is constant or locked is touched.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>
#include "peer.pb-c.h"
#include "peers_impl.h"

void peers_head(const struct peers *p, uint64_t to, struct peers_ids *ids, struct rpc_ask_target *t)
{
    (void)snprintf(ids->version, sizeof ids->version, "%d", PEERS_VERSION);
    (void)snprintf(ids->cluster, sizeof ids->cluster, "%" PRIx64, p->options.cluster_id);
    (void)snprintf(ids->from, sizeof ids->from, "%" PRIx64, p->options.member_id);
    (void)snprintf(ids->to, sizeof ids->to, "%" PRIx64, to);
    t->metadata[0] = (struct rpc_ask_pair){"cairn-version", ids->version};
    t->metadata[1] = (struct rpc_ask_pair){"cairn-cluster", ids->cluster};
    t->metadata[2] = (struct rpc_ask_pair){"cairn-from", ids->from};
    t->metadata[3] = (struct rpc_ask_pair){"cairn-to", ids->to};
    t->metadata[4] = (struct rpc_ask_pair){NULL, NULL};
}

/* The member's URLs, in the arena; none: not a member. */
static int urls_of(struct peers *p, uint64_t member, struct arena *a, struct url_list *ret_urls)
{
    int err = -ENOENT;

    pthread_mutex_lock(&p->roster_mu);
    for (size_t i = 0; p->roster && i < p->roster->n; i++)
        if (p->roster->members[i].id == member) {
            char *text = peers_join_urls(&p->roster->members[i], a);

            err = text && config_parse_urls(a, text, ret_urls) == NULL ? 0 : -EINVAL;
        }
    pthread_mutex_unlock(&p->roster_mu);
    return err;
}

/* The socket is ours until the pump has it. */
static int over_tls(const struct url *u, int fd, struct tls_ctx *tls, struct pump *pump, uint32_t timeout_ms,
                    char why[TLS_TEXT_BYTES])
{
    struct tls *t;
    int err = handshake_blocking(tls, fd, u->host, timeout_ms, &t, why), plain;

    if (err) {
        (void)close(fd); /* nothing was said */
        return err;
    }
    err = pump_relay(pump, fd, t, &plain);
    if (err)
        (void)snprintf(why, TLS_TEXT_BYTES, "%s", strerror(-err));
    return err ? err : plain;
}

int ask_connect(const struct url *u, struct tls_ctx *tls, struct pump *pump, uint32_t timeout_ms,
                char why[TLS_TEXT_BYTES])
{
    bool unusable = u->scheme == URL_UNIXS || (u->scheme == URL_HTTPS && tls == NULL);
    int fd = unusable ? -EPROTONOSUPPORT : dial_blocking(u, timeout_ms);

    if (fd < 0)
        (void)snprintf(why, TLS_TEXT_BYTES, "%s", unusable ? "TLS is not set up here" : strerror(-fd));
    else if (u->scheme == URL_HTTPS)
        fd = over_tls(u, fd, tls, pump, timeout_ms, why);
    return fd;
}

int peers_call(struct peers *p, uint64_t member, const char *path, uint32_t timeout_ms, struct rpc_ask **ret_ask)
{
    uint64_t deadline = p->options.clock->now_ms(p->options.clock) + timeout_ms, now;
    struct url_list urls = {0};
    struct arena a;
    int err;

    arena_init(&a, 1 << 20, NULL, 0);
    err = urls_of(p, member, &a, &urls);
    for (size_t i = 0; i < urls.n && (i == 0 || err); i++) {
        struct rpc_ask_target t = {.path = path};
        struct peers_ids ids;
        char authority[300], why[TLS_TEXT_BYTES] = "";

        now = p->options.clock->now_ms(p->options.clock);
        t.fd = -ETIMEDOUT;
        if (now < deadline)
            t.fd = ask_connect(&urls.urls[i], p->options.tls, p->pump, (uint32_t)(deadline - now), why);
        err = t.fd < 0 ? t.fd : 0;
        if (err)
            continue;
        dial_authority(&urls.urls[i], authority, sizeof authority);
        t.authority = authority;
        peers_head(p, member, &ids, &t);
        err = rpc_ask_open(&t, ret_ask);
    }
    arena_fini(&a);
    return err;
}

static int ask_members(int fd, const struct url *u, uint32_t timeout_ms, struct Cairn__MembersResponse **ret_members)
{
    char authority[300];
    struct rpc_ask_target t = {.fd = fd, .authority = authority, .path = "/cairn.Peer/Members"};
    struct rpc_ask *ask;
    struct slice bytes;
    int err;

    dial_authority(u, authority, sizeof authority);
    err = rpc_ask_open(&t, &ask);
    if (err)
        return err;
    err = rpc_ask_send(ask, SLICE_NONE, timeout_ms);
    if (err == 0)
        err = rpc_ask_receive(ask, timeout_ms, &bytes);
    if (err) {
        rpc_ask_cut(ask);
        return err;
    }
    *ret_members = cairn__members_response__unpack(NULL, bytes.len, bytes.ptr);
    free((void *)(uintptr_t)bytes.ptr);
    rpc_ask_cut(ask);
    return *ret_members ? 0 : -EBADMSG;
}

/* A pump of its own moves the bytes of TLS: there is no transport yet. */
int peers_ask_members(const struct url *u, struct tls_ctx *tls, uint32_t timeout_ms,
                      struct Cairn__MembersResponse **ret_members, char why[TLS_TEXT_BYTES])
{
    struct pump *pump = NULL;
    int fd, err = 0;

    why[0] = '\0';
    if (u->scheme == URL_HTTPS)
        err = pump_new(&(struct pump_options){.ctx = NULL}, &pump);
    if (err == 0 && pump)
        err = pump_start(pump);
    if (err == 0) {
        fd = ask_connect(u, tls, pump, timeout_ms, why);
        err = fd < 0 ? fd : ask_members(fd, u, timeout_ms, ret_members);
    }
    if (err && *why == '\0')
        (void)snprintf(why, TLS_TEXT_BYTES, "%s", strerror(-err));
    if (pump)
        pump_stop(pump);
    pump_free(pump);
    return err;
}
