/* SPDX-License-Identifier: Apache-2.0 */
/* rpc.c - the gRPC server: completion queues, threads, posted calls, start and stop.
 *
 * Promise: for every method and queue calls stay posted, re-posted before anything else is done, so core never queues
 * what nobody waits for; a call of an unknown method is answered. rpc_stop returns within LIMIT_STOP_MS.
 *
 * Owner:    each struct rpc_thread its thread; struct rpc is constant after rpc_start but for what says otherwise.
 * Not here: a call's life (rpc_call.c), sockets (pump.c).
 * Source:   gRPC core 1.51 headers (grpc.h, grpc_posix.h); grpc-go's server.go for the words of unknown methods.
 */
#include <errno.h>
#include <fcntl.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <grpc/support/log.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <limits.h>
#include "log.h"
#include "rpc_impl.h"
#include "seam.h"

_Static_assert((int)STATUS_UNAUTHENTICATED == (int)GRPC_STATUS_UNAUTHENTICATED, "err.h has gRPC's numbers");
_Static_assert((int)STATUS_UNIMPLEMENTED == (int)GRPC_STATUS_UNIMPLEMENTED, "err.h has gRPC's numbers");

enum {
    QUOTA_BYTES = 1 << 30,  /* core's own; beyond it core kills streams at random, so it is the last resort */
    STOP_CUT_MS = 300,
    STOP_GIVE_UP_MS = 600,
    DESERTED_MS = 200,      /* without an event, before a deserted server's thread leaves core */
    GATHER_MAX = 64,        /* calls; on two cores the turn and the log work while the next ones are decoded */
};

uint64_t rpc_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* ---- posted calls ---------------------------------------------------------- */

static void post_again(struct post *p)
{
    struct rpc_thread *t = p->thread;
    grpc_server *server = t->rpc->server;
    grpc_call_error err;

    p->gcall = NULL;
    p->payload = NULL;
    if (p->method)
        err = grpc_server_request_registered_call(
            server, p->registered, &p->gcall, &p->deadline, &p->metadata,
            p->method->kind == RPC_BIDI ? NULL : &p->payload, t->cq, t->cq, &p->op);
    else
        err = grpc_server_request_call(server, &p->gcall, &p->details, &p->metadata, t->cq, t->cq, &p->op);
    assert(err == GRPC_CALL_OK);
}

/* grpc-go's words for a path that no service answers to. */
static void unknown_method_text(const struct rpc *r, grpc_slice path, char *text, size_t size)
{
    const char *p = (const char *)GRPC_SLICE_START_PTR(path);
    int len = (int)GRPC_SLICE_LENGTH(path), slash;
    bool known = false;

    if (len > 512)
        len = 512; /* the rest says nothing more, and the answer travels as a header */
    for (slash = len - 1; slash > 0 && p[slash] != '/'; slash--)
        ;
    if (slash <= 0) {
        snprintf(text, size, "malformed method name: \"%.*s\"", len, p);
        return;
    }
    for (size_t i = 0; i < r->options.n_methods && !known; i++)
        known = slice_eq(slice_str(r->options.methods[i].service), slice_of(p + 1, (size_t)slash - 1));
    if (known)
        snprintf(text, size, "unknown method %.*s for service %.*s", len - slash - 1, p + slash + 1, slash - 1, p + 1);
    else
        snprintf(text, size, "unknown service %.*s", slash - 1, p + 1);
}

static void post_done(struct op *op, bool ok)
{
    struct post *p = (struct post *)op;
    struct rpc_thread *t = p->thread;
    grpc_metadata_array metadata = p->metadata;
    grpc_call *gcall = p->gcall;
    grpc_byte_buffer *payload = p->payload;
    gpr_timespec deadline = p->deadline;
    char text[1200];

    if (!ok)
        return; /* the server shuts down */
    if (p->method == NULL) {
        unknown_method_text(t->rpc, p->details.method, text, sizeof text);
        grpc_call_details_destroy(&p->details);
        grpc_call_details_init(&p->details);
    }
    grpc_metadata_array_init(&p->metadata);
    post_again(p);
    if (p->method)
        call_arrived(t, p->method, gcall, deadline, &metadata, payload);
    else
        call_refuse(t, gcall, &metadata, STATUS_UNIMPLEMENTED, text);
}

static int posts_new(struct rpc_thread *t)
{
    const struct rpc *r = t->rpc;
    struct post *p;

    t->n_posts = r->options.n_methods * RPC_POSTS + RPC_POSTS_UNREGISTERED;
    t->posts = p = calloc(t->n_posts, sizeof *t->posts);
    if (p == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < t->n_posts; i++, p++) {
        size_t method = i / RPC_POSTS;

        p->op.done = post_done;
        p->thread = t;
        if (method < r->options.n_methods) {
            p->method = &r->options.methods[method];
            p->registered = r->registered[method];
        }
        grpc_metadata_array_init(&p->metadata);
        grpc_call_details_init(&p->details);
    }
    return 0;
}

/* ---- the thread ------------------------------------------------------------ */

/* A deserted server's thread goes back to core. */
static void stir(struct rpc *r)
{
    if (r->options.deserted == NULL)
        return;
    pthread_mutex_lock(&r->mu);
    r->stirred = true;
    pthread_cond_broadcast(&r->cond);
    pthread_mutex_unlock(&r->mu);
}

static void thread_post(struct rpc_thread *t, struct mail *m)
{
    struct mail *head = atomic_load_explicit(&t->resumed, memory_order_relaxed);

    do
        m->next = head;
    while (!atomic_compare_exchange_weak_explicit(&t->resumed, &head, m, memory_order_release,
                                                  memory_order_relaxed));
    if (head == NULL)
        grpc_call_start_batch(t->wake_call, NULL, 0, &t->op_wake, NULL);
    stir(t->rpc);
}

void call_resume(struct call_resume *cr)
{
    thread_post(cr->call->thread, &cr->mail);
}

static void stop_calls(struct rpc_thread *t)
{
    struct call *c, *next;

    t->stopping = true;
    for (c = t->calls; c && !atomic_load_explicit(&t->rpc->abandoned, memory_order_relaxed); c = next) {
        next = c->next;
        call_stop(c);
    }
}

static void woken(struct op *op, bool ok)
{
    struct rpc_thread *t = (struct rpc_thread *)((char *)op - offsetof(struct rpc_thread, op_wake));
    struct mail *m = atomic_exchange_explicit(&t->resumed, NULL, memory_order_acquire), *in_order = NULL;

    (void)ok;
    while (m) {
        struct mail *next = m->next;

        m->next = in_order;
        in_order = m;
        m = next;
    }
    while (in_order) {
        struct call_resume *cr = (struct call_resume *)((char *)in_order - offsetof(struct call_resume, mail));

        in_order = in_order->next; /* first: fn may free cr */
        if (&cr->mail == &t->stop)
            stop_calls(t);
        else
            cr->fn(cr->call, cr);
    }
}

static void hand_on(struct rpc_thread *t)
{
    if (t->n_gathered)
        t->rpc->options.hand_on(t->rpc->options.service, t->number);
    t->n_gathered = 0;
}

/* A call that is alone is not kept waiting for company; with others, a glance at the queue before the wait. */
static bool gathered_enough(const struct rpc_thread *t)
{
    return t->n_gathered >= GATHER_MAX || (t->calls && t->calls->next == NULL);
}

/* How long to wait in core for the next event. */
static gpr_timespec wait_until(const struct rpc_thread *t)
{
    if (t->n_gathered)
        return gpr_inf_past(GPR_CLOCK_MONOTONIC);
    if (t->rpc->options.deserted == NULL)
        return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(DESERTED_MS, GPR_TIMESPAN));
}

/* Nothing has come for a while: if nobody is there, sleeps until somebody is. */
static void sleep_deserted(struct rpc *r)
{
    if (r->options.deserted == NULL)
        return;
    pthread_mutex_lock(&r->mu);
    if (!r->stopped && r->options.deserted(r->options.deserted_ctx))
        r->stirred = false;
    while (!r->stirred && !r->stopped)
        pthread_cond_wait(&r->cond, &r->mu);
    pthread_mutex_unlock(&r->mu);
}

static void *thread_main(void *arg)
{
    struct rpc_thread *t = arg;

    for (;;) {
        gpr_timespec until = wait_until(t);
        grpc_event ev = grpc_completion_queue_next(t->cq, until, NULL);
        struct op *op = ev.tag;
        bool over = ev.type == GRPC_QUEUE_SHUTDOWN || atomic_load_explicit(&t->rpc->abandoned, memory_order_relaxed);

        if (ev.type == GRPC_OP_COMPLETE && !over) {
            op->done(op, ev.success != 0);
            calls_flush(t);
        }
        if (ev.type != GRPC_OP_COMPLETE || over || gathered_enough(t))
            hand_on(t);
        if (over)
            return NULL;
        if (ev.type == GRPC_QUEUE_TIMEOUT && !t->n_gathered)
            sleep_deserted(t->rpc);
    }
}

/* Its completion queue, its posted calls, and the call that wakes it. */
static int thread_new(struct rpc *r, unsigned number)
{
    struct rpc_thread *t = calloc(1, sizeof *t);

    if (t == NULL)
        return -ENOMEM;
    r->threads[r->n_threads++] = t;
    t->rpc = r;
    t->number = number;
    t->op_wake.done = woken;
    t->cq = grpc_completion_queue_create_for_next(NULL);
    grpc_server_register_completion_queue(r->server, t->cq, NULL);
    t->stats = calloc(r->options.n_methods + 1, sizeof *t->stats);
    if (t->stats == NULL)
        return -ENOMEM;
    arena_init(&t->scratch, 2 * r->message_max_bytes + LIMIT_DECODE_SLACK_BYTES, t->scratch_first,
               sizeof t->scratch_first);
    t->wake_call = grpc_channel_create_call(r->nowhere, NULL, 0, t->cq, grpc_slice_from_static_string("/wake"), NULL,
                                            gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    return posts_new(t);
}

static void thread_free(struct rpc_thread *t)
{
    struct call *c, *next;

    for (c = t->calls; c; c = next) { /* still referenced by a service: nobody will come for it now */
        next = c->next;
        call_memory_free(c);
    }
    for (c = t->free_calls; c; c = next) {
        next = c->next;
        call_memory_free(c);
    }
    for (size_t i = 0; i < t->n_posts && t->posts; i++) {
        grpc_metadata_array_destroy(&t->posts[i].metadata);
        grpc_call_details_destroy(&t->posts[i].details);
    }
    if (t->cq)
        grpc_completion_queue_destroy(t->cq);
    arena_fini(&t->scratch);
    free(t->posts);
    free(t->stats);
    free(t);
}

/* ---- the server ------------------------------------------------------------ */

static grpc_arg arg_int(const char *key, int value)
{
    return (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key, .value.integer = value};
}

static int int_of(uint64_t v)
{
    return v > INT_MAX ? INT_MAX : (int)v;
}

static grpc_server *server_new(const struct rpc_options *o)
{
    grpc_resource_quota *quota = grpc_resource_quota_create("cairn");
    uint32_t streams = o->max_concurrent_streams;
    grpc_server *server;
    grpc_arg args[] = {
        arg_int(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, -1), /* ours is checked here, with grpc-go's words */
        arg_int(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, -1),
        arg_int(GRPC_ARG_HTTP2_BDP_PROBE, 0), /* else a stream's window grows to 4 MiB */
        arg_int(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, o->lookahead_bytes ? int_of(o->lookahead_bytes) : 65535),
        arg_int(GRPC_ARG_MAX_METADATA_SIZE, LIMIT_HEADER_BLOCK_BYTES),
        arg_int(GRPC_ARG_MAX_CONCURRENT_STREAMS, streams && streams < INT_MAX ? (int)streams : LIMIT_OPEN_STREAMS),
        arg_int(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                int_of(o->keepalive_min_ms - o->keepalive_min_ms / 10)),
        arg_int(GRPC_ARG_KEEPALIVE_TIME_MS, o->keepalive_interval_ms ? int_of(o->keepalive_interval_ms) : INT_MAX),
        arg_int(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, o->keepalive_timeout_ms ? int_of(o->keepalive_timeout_ms) : INT_MAX),
        arg_int(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        arg_int(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1), /* identity: core inflates without bound */
        arg_int(GRPC_ARG_ENABLE_CHANNELZ, 0),
        {.type = GRPC_ARG_POINTER,
         .key = (char *)(uintptr_t)GRPC_ARG_RESOURCE_QUOTA,
         .value.pointer = {quota, grpc_resource_quota_arg_vtable()}},
    };
    grpc_channel_args channel_args = {.num_args = sizeof args / sizeof *args, .args = args};

    grpc_resource_quota_resize(quota, QUOTA_BYTES);
    server = grpc_server_create(&channel_args, NULL);
    grpc_resource_quota_unref(quota);
    return server;
}

static int register_methods(struct rpc *r)
{
    const struct rpc_options *o = &r->options;
    char path[256];

    r->registered = calloc(o->n_methods + 1, sizeof *r->registered);
    r->sums = calloc(o->n_methods + 1, sizeof *r->sums);
    if (r->registered == NULL || r->sums == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < o->n_methods; i++) {
        const struct rpc_method *m = &o->methods[i];

        snprintf(path, sizeof path, "/%s/%s", m->service, m->name);
        r->registered[i] = grpc_server_register_method(
            r->server, path, NULL,
            m->kind == RPC_BIDI ? GRPC_SRM_PAYLOAD_NONE : GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER, 0);
        if (r->registered[i] == NULL)
            return -EEXIST;
    }
    return 0;
}

static void shutdown_done(struct op *op, bool ok)
{
    struct rpc *r = (struct rpc *)((char *)op - offsetof(struct rpc, op_shutdown));

    (void)ok;
    pthread_mutex_lock(&r->mu);
    r->shut_down = true;
    pthread_cond_broadcast(&r->cond);
    pthread_mutex_unlock(&r->mu);
}

/* Core writes a line on stderr for much that a client can do wrong: clients do not write our log. */
static void say_nothing(gpr_log_func_args *args)
{
    if (args->severity == GPR_LOG_SEVERITY_ERROR)
        log_debug("rpc: core says", LOG_STR("text", args->message));
}

void rpc_core_init(void)
{
    signal(SIGPIPE, SIG_IGN); /* core writes to sockets whose reader is gone */
    unsetenv("GRPC_TRACE");
    unsetenv("GRPC_VERBOSITY");
    gpr_set_log_function(say_nothing);
    grpc_init();
}

int rpc_new(const struct rpc_options *o, struct rpc **ret_rpc)
{
    unsigned threads = o->threads ? o->threads : 1;
    pthread_condattr_t attr;
    struct rpc *r;
    int err;

    if (threads > RPC_THREADS_MAX)
        return -EINVAL;
    r = calloc(1, sizeof *r);
    if (r == NULL)
        return -ENOMEM;
    r->options = *o;
    r->message_max_bytes = o->max_request_bytes + LIMIT_REQUEST_SLACK_BYTES;
    r->stirred = true;
    r->op_shutdown.done = shutdown_done;
    pthread_mutex_init(&r->mu, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&r->cond, &attr);
    pthread_condattr_destroy(&attr);

    rpc_core_init();
    r->server = server_new(o);
    r->nowhere = grpc_lame_client_channel_create("nowhere", GRPC_STATUS_UNAVAILABLE, "only wakes a thread");
    err = register_methods(r);
    for (unsigned i = 0; i < threads && err == 0; i++)
        err = thread_new(r, i);
    if (err) {
        rpc_free(r);
        return err;
    }
    *ret_rpc = r;
    return 0;
}

int rpc_start(struct rpc *r)
{
    grpc_server_start(r->server);
    r->started = true;
    for (unsigned i = 0; i < r->n_threads; i++) {
        struct rpc_thread *t = r->threads[i];
        char name[16];
        int err;

        t->slot = r->options.slots ? r->options.slots[i] : NULL;
        for (size_t k = 0; k < t->n_posts; k++)
            post_again(&t->posts[k]);
        snprintf(name, sizeof name, "%s-%u", r->options.name ? r->options.name : "rpc", i);
        err = thread_start(&t->thread, name, thread_main, t);
        if (err)
            return err;
        t->running = true;
    }
    return 0;
}

void rpc_add_fd(struct rpc *r, int fd)
{
    grpc_server_credentials *creds = grpc_insecure_server_credentials_create();

    grpc_server_add_channel_from_fd(r->server, fd, creds);
    grpc_server_credentials_release(creds);
    stir(r);
}

/* ---- stop ------------------------------------------------------------------ */

/* True once every connection is gone. */
static bool wait_shut_down(struct rpc *r, uint64_t until_ms)
{
    struct timespec until = {.tv_sec = (time_t)(until_ms / 1000), .tv_nsec = (long)(until_ms % 1000) * 1000000};
    bool down;

    pthread_mutex_lock(&r->mu);
    while (!r->shut_down && pthread_cond_timedwait(&r->cond, &r->mu, &until) != ETIMEDOUT)
        ;
    down = r->shut_down;
    pthread_mutex_unlock(&r->mu);
    return down;
}

void rpc_stop(struct rpc *r)
{
    uint64_t start_ms = rpc_now_ms();

    if (!r->started || r->stopped)
        return;
    pthread_mutex_lock(&r->mu);
    r->stopped = true;
    pthread_mutex_unlock(&r->mu);
    grpc_server_shutdown_and_notify(r->server, r->threads[0]->cq, &r->op_shutdown);
    for (unsigned i = 0; i < r->n_threads; i++)
        thread_post(r->threads[i], &r->threads[i]->stop);
    if (wait_shut_down(r, start_ms + STOP_CUT_MS))
        return;
    /* The cut ends every call on its rpc thread; cancelling them all would do the same work on this one. */
    if (r->options.cut)
        r->options.cut(r->options.cut_ctx);
    else
        grpc_server_cancel_all_calls(r->server);
    wait_shut_down(r, start_ms + STOP_GIVE_UP_MS);
}

/* Shuts the queues down and joins the threads. Needs the server to be down, else core still uses the queues. */
static void threads_join(struct rpc *r)
{
    for (unsigned i = 0; i < r->n_threads; i++) {
        struct rpc_thread *t = r->threads[i];

        if (t->wake_call)
            grpc_call_unref(t->wake_call);
        grpc_completion_queue_shutdown(t->cq);
        if (t->running)
            pthread_join(t->thread, NULL);
        else
            while (grpc_completion_queue_next(t->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
                   GRPC_QUEUE_SHUTDOWN)
                ;
    }
}

/* Core did not let go of everything in time: the threads end between two events, what they had is the process's. */
static void threads_abandon(struct rpc *r)
{
    atomic_store(&r->abandoned, true);
    for (unsigned i = 0; i < r->n_threads; i++) {
        grpc_call_start_batch(r->threads[i]->wake_call, NULL, 0, &r->threads[i]->op_wake, NULL);
        if (r->threads[i]->running)
            pthread_join(r->threads[i]->thread, NULL);
    }
}

void rpc_free(struct rpc *r)
{
    if (r == NULL)
        return;
    rpc_stop(r);
    if (r->started && !wait_shut_down(r, rpc_now_ms())) {
        threads_abandon(r);
        return;
    }
    threads_join(r);
    grpc_server_destroy(r->server);
    for (unsigned i = 0; i < r->n_threads; i++)
        thread_free(r->threads[i]);
    grpc_channel_destroy(r->nowhere);
    grpc_shutdown();
    pthread_cond_destroy(&r->cond);
    pthread_mutex_destroy(&r->mu);
    free(r->registered);
    free(r->sums);
    free(r);
}

const struct rpc_method_stats *rpc_stats(const struct rpc *r, size_t method)
{
    uint64_t *to = (uint64_t *)&r->sums[method];
    const size_t n = sizeof(struct rpc_method_stats) / sizeof *to;

    assert(method < r->options.n_methods);
    for (size_t k = 0; k < n; k++) {
        uint64_t sum = 0;

        for (unsigned i = 0; i < r->n_threads; i++)
            sum += __atomic_load_n((const uint64_t *)&r->threads[i]->stats[method] + k, __ATOMIC_RELAXED);
        __atomic_store_n(&to[k], sum, __ATOMIC_RELAXED);
    }
    return &r->sums[method];
}
