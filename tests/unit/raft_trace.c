/* SPDX-License-Identifier: Apache-2.0 */
/* raft_trace.c - the core's conversations as text: tests/trace/raft_*.trace, each the story of one rule.
 *
 * Proves that what is sent, stored, refused and allowed to be applied, and in which step, is as the traces say.
 * Nothing moves but by a command; each prints what the steps it caused said. The commands:
 *
 *     cluster N [voters V] [learners L] [inflight I] [lease-reads]
 *                                N nodes, of which the first V (all) vote and L more learn; log and state begin after
 *                                entry 1; I APPENDs may be on their way to a follower
 *     wait NODE [MS]             MS (2000: past any election timeout) pass, and the node looks at its deadlines
 *     stored NODE [COUNT]        its disk has done everything, or only the oldest COUNT writes
 *     applied NODE               its state machine has applied all it may
 *     propose NODE N             read NODE     transfer NODE TO     campaign NODE     suspect NODE WHOM
 *     forget NODE                unreachable NODE WHOM              flush NODE KEEP
 *     conf NODE [implicit|explicit] +ID|=ID|-ID...      voter, learner, remove; no ids: leave
 *     deliver [A->B] [TYPE]      packets under way that match arrive, in the order they were sent
 *     drop [A->B] [TYPE]         the same, lost             one ...   as deliver, but only the first that matches
 *     arrive A->B                A's snapshot arrives at B, but A's host does not say so until   sent A B [lost]
 *     split                      from now on ranges travel one entry a message, as a host may send them
 *     settle [NODE...]           disks, state machines and packets (of these nodes, between them) until nothing moves;
 *                                prints nothing                    quiet COMMAND...   the same of any other
 *     crash NODE                 loses what is not stored           restart NODE
 *     lose NODE                  loses all of its disk but the highest term, and will be faulty
 *     status [NODE]
 *
 * UPDATE=1 rewrites the traces: then read the diff.
 */
#include "../sim/cluster.h"
#include "../trace/trace.h"
#include "tap.h"

static struct cluster c;
static bool live;
static FILE *nowhere;

static struct node *node(const char *w)
{
    int i = atoi(w);

    REQUIRE(i >= 1 && i <= c.n);
    return &c.nodes[i];
}

static void step(const char *w, struct raft_in in)
{
    static const struct { int err; const char *name; } names[] = {
        {ERR_NOT_LEADER, "not leader"},           {ERR_NO_LEADER, "no leader"},
        {ERR_PROPOSAL_DROPPED, "dropped"},        {ERR_BAD_TRANSFEREE, "bad transferee"},
        {ERR_TOO_MANY_REQUESTS, "too many requests"},
    };
    int err = node_step(&c, node(w), in, NULL);
    const char *name = "not possible";

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (names[i].err == err)
            name = names[i].name;
    if (err)
        fprintf(c.trace, "%s: refused: %s\n", w, name);
}

static void status(const struct node *n)
{
    static const char *const states[] = {"probe", "replicate", "snapshot"};
    struct raft_peer p;

    if (!n->up) {
        fprintf(c.trace, "%llu: down\n", U(n->id));
        return;
    }
    fprintf(c.trace, "%llu: %s term=%llu vote=%llu leader=%llu commit=%llu applied=%llu stable=%llu log=(%llu, %llu]%s\n",
            U(n->id), role_names[n->st.role], U(n->st.term), U(n->st.vote), U(n->st.leader), U(n->st.commit),
            U(n->applied), U(n->st.stable), U(n->st.first_index), U(n->st.last_index),
            n->st.faulty ? " faulty" : n->st.confirmed ? " confirmed" : "");
    for (uint64_t i = 1; i <= (uint64_t)c.n; i++)
        if (i != n->id && raft_peer(n->raft, i, &p))
            fprintf(c.trace, "   %llu: %s match=%llu next=%llu%s\n", U(i), states[p.state], U(p.match), U(p.next),
                    p.paused ? " paused" : "");
}

static bool matches(const struct packet *p, int n, char **words)
{
    for (int i = 0; i < n; i++) {
        unsigned from, to;

        if (sscanf(words[i], "%u->%u", &from, &to) == 2) {
            if (p->msg.from != from || p->msg.to != to)
                return false;
        } else if (strcmp(words[i], msg_names[p->msg.type]) != 0) {
            return false;
        }
    }
    return true;
}

/* Packets that are there now; those they cause wait for the next command. */
static void deliver(int n, char **words, bool lose, bool one)
{
    struct packet *take = NULL, **take_end = &take, **at = &c.net;

    while (*at) {
        struct packet *p = *at;

        if (!matches(p, n, words)) {
            at = &p->next;
            continue;
        }
        *at = p->next;
        p->next = NULL;
        *take_end = p;
        take_end = &p->next;
        if (one)
            break;
    }
    while (take) {
        struct packet *p = take;

        take = p->next;
        if (lose)
            packet_free(p);
        else
            cluster_deliver(&c, p);
    }
}

/* The first half of a transfer's end. */
static void arrive(char *pair)
{
    char *words[] = {pair, "snapshot"};

    for (struct packet **at = &c.net, *p = c.net; p; at = &p->next, p = p->next) {
        if (!matches(p, 2, words))
            continue;
        *at = p->next;
        p->msg.conf = &p->conf;
        (void)node_step(&c, &c.nodes[p->msg.to], (struct raft_in){.type = RAFT_IN_MSG, .msg = &p->msg}, p);
        packet_free(p);
        return;
    }
}

static bool among(int n, char **words, uint64_t id)
{
    for (int i = 0; i < n; i++)
        if (strtoull(words[i], NULL, 10) == id)
            return true;
    return n == 0;
}

static void settle(int n, char **words)
{
    FILE *f = c.trace;

    c.trace = NULL;
    for (int i = 0; i < 50; i++) {
        for (int k = 1; k <= c.n; k++) {
            if (!c.nodes[k].up || !among(n, words, (uint64_t)k))
                continue;
            node_stored(&c, &c.nodes[k], c.nodes[k].writes_n);
            node_apply(&c, &c.nodes[k], UINT64_MAX);
        }
        for (int a = 1; a <= c.n; a++)
            for (int b = 1; b <= c.n; b++) {
                char pair[32], *word = pair;

                snprintf(pair, sizeof pair, "%d->%d", a, b);
                if (among(n, words, (uint64_t)a) && among(n, words, (uint64_t)b))
                    deliver(1, &word, false, false);
            }
    }
    c.trace = f;
}

static void conf(char *w, int n, char **words)
{
    struct raft_conf_change ch = {0};

    for (int i = 0; i < n; i++) {
        char sign = words[i][0];

        if (strcmp(words[i], "implicit") == 0) {
            ch.transition = RAFT_TRANSITION_IMPLICIT;
        } else if (strcmp(words[i], "explicit") == 0) {
            ch.transition = RAFT_TRANSITION_EXPLICIT;
        } else {
            ch.changes[ch.n].op = sign == '+' ? RAFT_ADD_VOTER : sign == '=' ? RAFT_ADD_LEARNER : RAFT_REMOVE;
            ch.changes[ch.n++].id = strtoull(words[i] + 1, NULL, 10);
        }
    }
    step(w, (struct raft_in){.type = RAFT_IN_PROPOSE_CONF, .change = &ch});
}

static void new_cluster(int n, char **w)
{
    struct cluster_shape shape = {.n = atoi(w[1]), .voters = atoi(w[1]), .heartbeat_ms = 100};

    for (int i = 2; i < n; i++) {
        int arg = i + 1 < n ? atoi(w[i + 1]) : 0;

        if (strcmp(w[i], "voters") == 0)
            shape.voters = arg;
        else if (strcmp(w[i], "learners") == 0)
            shape.learners = arg;
        else if (strcmp(w[i], "inflight") == 0)
            shape.inflight_max = (uint32_t)arg;
        else if (strcmp(w[i], "lease-reads") == 0)
            shape.lease_reads = true;
    }
    if (live)
        cluster_fini(&c);
    cluster_init(&c, 1, &shape);
    c.hold = live = true;
    c.delay_min = c.delay_max = 0;
}

/* Commands that are one input. */
static bool simple(int n, char **w)
{
    static const struct { const char *name; enum raft_in_type type; } inputs[] = {
        {"read", RAFT_IN_READ},         {"transfer", RAFT_IN_TRANSFER}, {"campaign", RAFT_IN_CAMPAIGN},
        {"suspect", RAFT_IN_SUSPECT},   {"forget", RAFT_IN_FORGET},     {"unreachable", RAFT_IN_UNREACHABLE},
        {"propose", RAFT_IN_PROPOSE},
    };

    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        uint64_t arg = n > 2 ? strtoull(w[2], NULL, 10) : 0;

        if (strcmp(w[0], inputs[i].name) != 0)
            continue;
        step(w[1], (struct raft_in){.type = inputs[i].type, .member = arg, .n_entries = (uint32_t)arg});
        return true;
    }
    return false;
}

static void command(void *ctx, FILE *to, int n, char **w)
{
    (void)ctx;
    if (strcmp(w[0], "cluster") == 0) {
        new_cluster(n, w);
        return;
    }
    if (strcmp(w[0], "quiet") == 0) {
        command(ctx, nowhere, n - 1, w + 1);
        return;
    }
    c.trace = to;
    if (strcmp(w[0], "wait") == 0) {
        c.now += n > 2 ? strtoull(w[2], NULL, 10) : 2000;
        step(w[1], (struct raft_in){.type = RAFT_IN_TIME});
    } else if (strcmp(w[0], "stored") == 0)
        node_stored(&c, node(w[1]), n > 2 ? (uint32_t)atoi(w[2]) : node(w[1])->writes_n);
    else if (strcmp(w[0], "applied") == 0)
        node_apply(&c, node(w[1]), UINT64_MAX);
    else if (strcmp(w[0], "flush") == 0)
        node_flush(&c, node(w[1]), strtoull(w[2], NULL, 10));
    else if (strcmp(w[0], "conf") == 0)
        conf(w[1], n - 2, w + 2);
    else if (strcmp(w[0], "deliver") == 0 || strcmp(w[0], "drop") == 0)
        deliver(n - 1, w + 1, w[0][1] == 'r', false);
    else if (strcmp(w[0], "one") == 0)
        deliver(n - 1, w + 1, false, true);
    else if (strcmp(w[0], "arrive") == 0)
        arrive(w[1]);
    else if (strcmp(w[0], "sent") == 0)
        step(w[1], (struct raft_in){.type = RAFT_IN_SNAPSHOT_SENT, .member = node(w[2])->id, .ok = n == 3,
                                    .index = n == 3 ? node(w[2])->last : 0});
    else if (strcmp(w[0], "split") == 0)
        c.split_pct = 100;
    else if (strcmp(w[0], "settle") == 0)
        settle(n - 1, w + 1);
    else if (strcmp(w[0], "crash") == 0)
        node_crash(&c, node(w[1]));
    else if (strcmp(w[0], "lose") == 0)
        node_lose(&c, node(w[1]));
    else if (strcmp(w[0], "restart") == 0)
        node_start(&c, node(w[1]));
    else if (strcmp(w[0], "status") == 0) {
        for (int i = 1; i <= c.n; i++)
            if (n == 1 || atoi(w[1]) == i)
                status(&c.nodes[i]);
    } else if (!simple(n, w))
        fprintf(to, "no such command: %s\n", w[0]);
    if (c.failed)
        fprintf(to, "BROKEN: %s\n", c.failed);
    c.trace = NULL;
}

static void traces_are_as_written(void)
{
    char **paths;
    int n = trace_paths("raft_", &paths);

    nowhere = fopen("/dev/null", "w");
    REQUIRE(n > 0 && nowhere);
    for (int i = 0; i < n; i++) {
        int ran = 0;

        CHECK(trace_run(paths[i], command, NULL, &ran) == 0);
        printf("# %s: %d commands\n", paths[i], ran);
        CHECK(ran > 3);
    }
    trace_paths_free(paths, n);
    cluster_fini(&c);
    fclose(nowhere);
}

int main(void)
{
    TEST(traces_are_as_written);
    return tap_done();
}
