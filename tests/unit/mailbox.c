/* SPDX-License-Identifier: Apache-2.0 */
/* Proves: a mailbox loses nothing, keeps each sender's order, hands all over in one take oldest first, wakes a taker
 * that sleeps (by message or nudge), keeps its deadline, and wakes an epoll owner through its eventfd. */
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "daemon/mailbox.h"
#include "daemon/seam.h"
#include "tap.h"

enum { SENDERS = 4, EACH = 50000 };

struct numbered {
    struct mail mail;
    uint32_t sender, number;
};

static struct mailbox box;
static struct numbered messages[SENDERS][EACH];

static void keeps_order(void)
{
    struct numbered *m = messages[0];
    struct mail *got;

    mailbox_init(&box, -1);
    CHECK(mailbox_take(&box) == NULL);
    for (int i = 0; i < 3; i++)
        mailbox_post(&box, &m[i].mail);
    got = mailbox_take(&box);
    for (int i = 0; i < 3; i++, got = got->next)
        REQUIRE(got == &m[i].mail);
    CHECK(got == NULL);
    CHECK(mailbox_take(&box) == NULL);
}

/* One by one, or (odd senders) in chains of up to seven. */
static void *sender(void *arg)
{
    struct numbered *m = arg;

    for (uint32_t i = 0, n; i < EACH; i += n) {
        n = m->sender % 2 ? 1 + i % 7 : 1;
        if (n > EACH - i)
            n = EACH - i;
        for (uint32_t k = 1; k < n; k++)
            m[i + k].mail.next = &m[i + k - 1].mail;
        if (n == 1)
            mailbox_post(&box, &m[i].mail);
        else
            mailbox_post_all(&box, &m[i + n - 1].mail, &m[i].mail);
    }
    return NULL;
}

static void many_senders(void)
{
    uint32_t next[SENDERS] = {0}, total = 0;
    pthread_t t[SENDERS];

    mailbox_init(&box, -1);
    for (uint32_t s = 0; s < SENDERS; s++) {
        for (uint32_t i = 0; i < EACH; i++)
            messages[s][i] = (struct numbered){.sender = s, .number = i};
        REQUIRE(thread_start(&t[s], "sender", sender, messages[s]) == 0);
    }
    while (total < SENDERS * EACH) {
        struct mail *got;

        mailbox_wait(&box, UINT64_MAX); /* a lost wake-up would hang here, and the runner ends us */
        for (got = mailbox_take(&box); got; total++) {
            struct numbered *m = (struct numbered *)got;

            got = got->next;
            REQUIRE(m->number == next[m->sender]);
            next[m->sender]++;
        }
    }
    for (int s = 0; s < SENDERS; s++)
        pthread_join(t[s], NULL);
    CHECK(mailbox_take(&box) == NULL);
}

/* One message at a time there and back: each post finds the box empty and, mostly, its taker asleep. */
static struct mailbox there, back;

static void *echo(void *arg)
{
    uint32_t *n = arg;

    while (*n < 20000) {
        struct mail *m;

        mailbox_wait(&there, UINT64_MAX);
        while ((m = mailbox_take(&there)) != NULL) {
            ++*n;
            mailbox_post(&back, m);
        }
    }
    return NULL;
}

static void ping_pong(void)
{
    struct numbered m = {.number = 0};
    uint32_t n = 0;
    pthread_t t;

    mailbox_init(&there, -1);
    mailbox_init(&back, -1);
    REQUIRE(thread_start(&t, "echo", echo, &n) == 0);
    for (int i = 0; i < 20000; i++) {
        struct mail *got;

        mailbox_post(&there, &m.mail);
        while ((got = mailbox_take(&back)) == NULL)
            mailbox_wait(&back, UINT64_MAX);
        REQUIRE(got == &m.mail && got->next == NULL);
    }
    pthread_join(t, NULL);
    CHECK(n == 20000);
}

static void deadline_and_nudge(void)
{
    struct clock *c = clock_real();
    uint64_t start = c->now_ms(c);

    mailbox_init(&box, -1);
    mailbox_wait(&box, start + 30);
    CHECK(c->now_ms(c) >= start + 30);
    mailbox_wait(&box, 0); /* long past: at once */
    mailbox_nudge(&box);
    mailbox_wait(&box, UINT64_MAX);
    mailbox_nudge(&box);
    mailbox_nudge(&box); /* two count as one */
    mailbox_wait(&box, UINT64_MAX);
    start = c->now_ms(c);
    mailbox_wait(&box, start + 5);
    CHECK(c->now_ms(c) >= start + 5);
}

static void eventfd_owner(void)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    struct numbered m[2];
    uint64_t count;

    REQUIRE(fd >= 0);
    mailbox_init(&box, fd);
    CHECK(poll(&p, 1, 0) == 0);
    mailbox_post(&box, &m[0].mail);
    mailbox_post(&box, &m[1].mail);
    CHECK(poll(&p, 1, 0) == 1);
    CHECK(read(fd, &count, sizeof count) == sizeof count && count == 1); /* the second post cost nothing */
    CHECK(mailbox_take(&box) == &m[0].mail);
    mailbox_nudge(&box);
    CHECK(poll(&p, 1, 0) == 1);
    close(fd);
}

int main(void)
{
    TEST(keeps_order);
    TEST(many_senders);
    TEST(ping_pong);
    TEST(deadline_and_nudge);
    TEST(eventfd_owner);
    return tap_done();
}
