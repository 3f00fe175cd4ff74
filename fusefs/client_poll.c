/* SPDX-License-Identifier: Apache-2.0 */
/* client_poll.c - the polling thread, and the mailbox by which what it finds reaches the core thread. */
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "client_private.h"

static void post(struct client *c, struct tag *t)
{
    const uint64_t one = 1;
    bool was_empty;

    t->next = NULL;
    pthread_mutex_lock(&c->mu);
    was_empty = c->mail == NULL;
    *c->mail_end = t;
    c->mail_end = &t->next;
    pthread_mutex_unlock(&c->mu);
    if (was_empty)
        (void)!write(c->event_fd, &one, sizeof one); /* fails only when the count is full: it is readable */
}

static void *poll_main(void *arg)
{
    struct client *c = arg;

    for (;;) {
        grpc_event ev = grpc_completion_queue_next(c->cq, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        struct tag *t = ev.tag;

        if (ev.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (ev.type != GRPC_OP_COMPLETE)
            continue;
        (void)atomic_load_explicit(&t->lent, memory_order_acquire);
        t->ok = ev.success != 0;
        if (t->polled)
            t->polled(t);
        post(c, t);
    }
}

/* Here bytes become a message: the one copy of an answer's values is protobuf-c's. */
void client_unpack_reply(struct tag *t)
{
    struct client_op *op = t->op;
    grpc_byte_buffer_reader reader;
    grpc_slice slice;

    if (op->received == NULL)
        return;
    if (grpc_byte_buffer_reader_init(&reader, op->received)) {
        slice = grpc_byte_buffer_reader_readall(&reader);
        op->reply = protobuf_c_message_unpack(client_methods[op->method].reply, NULL,
                                              GRPC_SLICE_LENGTH(slice), GRPC_SLICE_START_PTR(slice));
        grpc_slice_unref(slice);
        grpc_byte_buffer_reader_destroy(&reader);
    }
    grpc_byte_buffer_destroy(op->received);
    op->received = NULL;
}

struct tag *client_mail_take(struct client *c)
{
    uint64_t count;
    struct tag *t;

    (void)!read(c->event_fd, &count, sizeof count);
    pthread_mutex_lock(&c->mu);
    t = c->mail;
    c->mail = NULL;
    c->mail_end = &c->mail;
    pthread_mutex_unlock(&c->mu);
    return t;
}

int client_fd(const struct client *c)
{
    return c->epoll_fd;
}

/* ---- opening and closing ------------------------------------------------------------------ */

static int fds_open(struct client *c)
{
    struct epoll_event ev = {.events = EPOLLIN};

    c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    c->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    c->timer_fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    if (c->epoll_fd < 0 || c->event_fd < 0 || c->timer_fd < 0)
        return -errno;
    if (epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, c->event_fd, &ev) < 0 ||
        epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, c->timer_fd, &ev) < 0)
        return -errno;
    return 0;
}

static void fds_close(struct client *c)
{
    if (c->epoll_fd >= 0)
        close(c->epoll_fd);
    if (c->event_fd >= 0)
        close(c->event_fd);
    if (c->timer_fd >= 0)
        close(c->timer_fd);
}

int client_poll_open(struct client *c)
{
    c->mail_end = &c->mail;
    pthread_mutex_init(&c->mu, NULL);
    c->cq = grpc_completion_queue_create_for_next(NULL);
    return fds_open(c);
}

int client_poll_start(struct client *c)
{
    return -pthread_create(&c->poller, NULL, poll_main, c);
}

/* Tags that came back and whose owners no longer care. */
static void drop_mail(struct client *c)
{
    struct tag *t = c->mail, *next;

    for (; t; t = next) {
        struct client_op *op = t->op;

        next = t->next;
        if (op && --op->n_tags == 0)
            client_op_free(c, op);
    }
    c->mail = NULL;
}

void client_poll_close(struct client *c, bool polling)
{
    grpc_completion_queue_shutdown(c->cq);
    if (polling)
        pthread_join(c->poller, NULL);
    else
        poll_main(c);
    drop_mail(c);
    assert(c->n_ops == 0);
    grpc_completion_queue_destroy(c->cq);
    fds_close(c);
    pthread_mutex_destroy(&c->mu);
}
