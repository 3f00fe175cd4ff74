/* SPDX-License-Identifier: Apache-2.0 */
/* robust.c - one history: three to five real members, clients, faults, and at the end the checker's word.
 *
 *     robust run PROGRAM DIRECTORY [FLAG...]     PROGRAM is cairnd or etcd; the flags go to each member
 *     robust check FILE                          checks a saved history again, with the logs in kept/ beside it
 *     robust show FILE                           the same in words
 *     robust failover PROGRAM DIRECTORY HOW ROUNDS [FLAG...]     measures (failover.c)
 *     robust probe                               exit 0: this machine can; 77: it cannot, and why
 *
 * From the environment: SEED; MEMBERS (3); FAULT_S, seconds of faults (6); FAULT, its main fault (by the seed);
 * ALONE=1: no other; TOGETHER=1: never one alone (every other seed); LEAST, calls that must have been answered (2000);
 * LONGEST, milliseconds of a pause (3000, and 30000 for one of four whose main fault it is).
 * Prints one line: "ok" or "not ok", the seed, what happened. DIRECTORY then holds history, faults and logs; the
 * members' data is copied there when something was wrong, for it lies on file systems that end with this process.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "check.h"
#include "failover.h"
#include "nemesis.h"

enum { SKIP = 77, START_MS = 60000, HEAL_MS = 30000, LEASES_MS = 25000, REST_MS = 20000, WATCH_MS = 15000 };
enum { ASK_MS = 2000, MORE_MS = 60000 };

struct run {
    struct history history;
    struct cluster cluster;
    struct load load;
    struct nemesis nemesis;
    struct caller finals[MEMBERS_END];
    struct journal logs[MEMBERS_MAX];
    bool has_logs;
    unsigned problems;
    int64_t healed_ms;
    FILE *report;
};

__attribute__((format(printf, 2, 3))) static void fault(struct run *r, const char *format, ...)
{
    va_list ap;

    r->problems++;
    va_start(ap, format);
    (void)fputs("problem: ", r->report);
    (void)vfprintf(r->report, format, ap);
    (void)fputs("\n", r->report);
    va_end(ap);
}

static void phase(struct run *r, const char *name)
{
    (void)fprintf(r->nemesis.log, "%.6f %s\n", (double)now_ns() / 1e9, name);
}

static int64_t number_of(const char *name, int64_t otherwise)
{
    const char *s = getenv(name);

    return s && *s ? strtoll(s, NULL, 0) : otherwise;
}

/* A call of ours to one member, into the history. */
static bool ask_member(struct run *r, int member, enum rec_kind kind, const void *req, struct rec *ret_rec)
{
    int ms = kind == REC_HASH ? ASK_MS * 5 : ASK_MS;

    return load_call(&r->load, &r->finals[member], CLIENT_FINAL, member, kind, message_copy(req), ms, ret_rec) == 0;
}

/* ---- waiting for what must come -------------------------------------------------------------------- */

static bool await(struct run *r, bool (*holds)(struct run *), int64_t ms)
{
    int64_t end = fair_ns() + ms * 1000000;

    while (!holds(r)) {
        if (fair_ns() > end)
            return false;
        for (int i = 1; i <= r->cluster.n; i++)
            if (member_ended(&r->cluster.members[i])) {
                fault(r, "member %d ended by itself, status %#x", i, (unsigned)r->cluster.members[i].status);
                return false;
            }
        pause_ms(20);
    }
    return true;
}

static bool read_all(struct run *r, int member, bool serializable, struct rec *ret_rec)
{
    Etcdserverpb__RangeRequest req = ETCDSERVERPB__RANGE_REQUEST__INIT;

    req.key = req.range_end = (ProtobufCBinaryData){1, (uint8_t *)""};
    req.serializable = serializable;
    return ask_member(r, member, REC_RANGE, &req, ret_rec);
}

static bool reads_everywhere(struct run *r)
{
    for (int i = 1; i <= r->cluster.n; i++)
        if (!read_all(r, i, false, NULL))
            return false;
    return true;
}

static bool writes_everywhere(struct run *r)
{
    static int n;

    for (int i = 1; i <= r->cluster.n; i++) {
        Etcdserverpb__PutRequest req = ETCDSERVERPB__PUT_REQUEST__INIT;
        char value[24];
        int len = snprintf(value, sizeof value, "%d.%d.", CLIENT_FINAL, n++);

        req.key = (ProtobufCBinaryData){5, (uint8_t *)"final"};
        req.value = (ProtobufCBinaryData){(size_t)len, (uint8_t *)value};
        if (!ask_member(r, i, REC_PUT, &req, NULL))
            return false;
    }
    return true;
}

static bool is_quiet(struct run *r)
{
    (void)r;
    return clients_are_quiet();
}

static bool leases_are_gone(struct run *r)
{
    Etcdserverpb__LeaseLeasesRequest req = ETCDSERVERPB__LEASE_LEASES_REQUEST__INIT;
    struct rec rec;

    return ask_member(r, 1, REC_LEASES, &req, &rec) &&
           ((const Etcdserverpb__LeaseLeasesResponse *)rec.resp)->n_leases == 0;
}

/* All members show the revision that a linearizable read shows. */
static bool is_at_rest(struct run *r)
{
    int64_t rev = 0;
    struct rec rec;

    for (int i = 1; i <= r->cluster.n; i++) {
        if (!read_all(r, i, i > 1, &rec) || (rev && rec_header(&rec)->revision != rev))
            return false;
        rev = rec_header(&rec)->revision;
    }
    return rev == atomic_load(&r->load.rev_seen);
}

static bool witness_has_all(struct run *r)
{
    return atomic_load(&r->load.rev_witness) >= atomic_load(&r->load.rev_seen);
}

static Etcdserverpb__AlarmResponse *ask_alarm(struct run *r, Etcdserverpb__AlarmRequest__AlarmAction action,
                                              uint64_t member)
{
    Etcdserverpb__AlarmRequest req = ETCDSERVERPB__ALARM_REQUEST__INIT;
    ProtobufCMessage *resp = NULL;

    req.action = action;
    req.memberid = member;
    req.alarm = ETCDSERVERPB__ALARM_TYPE__NOSPACE;
    (void)caller_ask(&r->finals[1], "/etcdserverpb.Maintenance/Alarm", &req.base,
                     &etcdserverpb__alarm_response__descriptor, ASK_MS, &resp, NULL); /* no answer is told by NULL */
    return (void *)resp;
}

/* A member that had a full disk may have raised an alarm: an operator would take it off. Puts will tell if that did not
 * do. */
static void alarms_off(struct run *r)
{
    Etcdserverpb__AlarmResponse *all = ask_alarm(r, ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__GET, 0);

    for (size_t i = 0; all && i < all->n_alarms; i++)
        etcdserverpb__alarm_response__free_unpacked(
            ask_alarm(r, ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__DEACTIVATE, all->alarms[i]->memberid), NULL);
    etcdserverpb__alarm_response__free_unpacked(all, NULL);
}

static bool writes_without_alarms(struct run *r)
{
    alarms_off(r);
    return writes_everywhere(r);
}

/* ---- one history ----------------------------------------------------------------------------------- */

static bool begin(struct run *r)
{
    for (int i = 1; i <= r->cluster.n; i++) {
        caller_open(&r->cluster.members[i].admin, r->cluster.members[i].address);
        caller_open(&r->finals[i], r->cluster.members[i].address);
        if (!member_start(&r->cluster, &r->cluster.members[i]))
            return false;
    }
    if (await(r, reads_everywhere, START_MS))
        return true;
    fault(r, "the cluster does not serve %d s after its start", START_MS / 1000);
    return false;
}

static void hashes(struct run *r)
{
    int64_t rev = atomic_load(&r->load.rev_seen);

    for (int i = 1; i <= r->cluster.n; i++) {
        Etcdserverpb__HashKVRequest hash = ETCDSERVERPB__HASH_KVREQUEST__INIT;
        Etcdserverpb__LeaseLeasesRequest leases = ETCDSERVERPB__LEASE_LEASES_REQUEST__INIT;

        hash.revision = rev;
        if (!ask_member(r, i, REC_HASH, &hash, NULL) || !ask_member(r, i, REC_LEASES, &leases, NULL) ||
            !read_all(r, i, true, NULL))
            fault(r, "member %d does not say its hash, leases and keys at the end", i);
    }
}

/* All faults are over: now it must serve, everywhere, and come to rest. */
static void settle(struct run *r)
{
    int64_t since = now_ns();

    phase(r, "healed");
    if (!await(r, reads_everywhere, HEAL_MS))
        fault(r, "not all members read %d s after the last fault", HEAL_MS / 1000);
    if (!await(r, writes_without_alarms, HEAL_MS))
        fault(r, "not all members write %d s after the last fault", HEAL_MS / 1000);
    r->healed_ms = (now_ns() - since) / 1000000;
    phase(r, "all members serve");
    load_stop_clients(&r->load);
    if (!await(r, is_quiet, HEAL_MS))
        fault(r, "what clients have sent is still on its way %d s after the last fault", HEAL_MS / 1000);
    phase(r, "clients are quiet");
    if (!await(r, leases_are_gone, LEASES_MS))
        fault(r, "there are leases %d s after the last renewal", LEASES_MS / 1000);
    if (!await(r, is_at_rest, REST_MS))
        fault(r, "the members do not come to one revision");
    if (!await(r, witness_has_all, REST_MS))
        fault(r, "the witness has revision %" PRId64 " of %" PRId64, atomic_load(&r->load.rev_witness),
              atomic_load(&r->load.rev_seen));
    phase(r, "at rest");
    hashes(r);
    r->load.final_ns = fair_ns() + WATCH_MS * INT64_C(1000000);
    atomic_store(&r->load.rev_final, atomic_load(&r->load.rev_seen));
    load_stop_watchers(&r->load);
    phase(r, "watched to the end");
}

/* Of members that have ended. None of them has one: it is another program than cairnd. */
static void read_logs(struct run *r)
{
    int n = 0;

    for (int i = 0; i < r->cluster.n; i++) {
        char path[320];

        (void)snprintf(path, sizeof path, "%s/data", r->cluster.members[i + 1].dir);
        journal_read(&r->logs[i], path);
        n += r->logs[i].there;
    }
    r->has_logs = n > 0;
    if (n > 0 && n < r->cluster.n)
        fault(r, "only %d members have a log", n);
}

static bool enough_calls(struct run *r)
{
    return atomic_load(&r->load.done) >= (uint64_t)number_of("LEAST", 2000);
}

static void check_vacuity(struct run *r)
{
    uint64_t least = (uint64_t)number_of("LEAST", 2000);

    if (atomic_load(&r->load.done) < least)
        fault(r, "vacuous: %" PRIu64 " calls were answered, not %" PRIu64, atomic_load(&r->load.done), least);
    if (nemesis_lacks(&r->nemesis))
        fault(r, "vacuous: %s was meant to happen, and never did", nemesis_lacks(&r->nemesis));
    if (r->nemesis.died)
        fault(r, "members ended by themselves, %u times", r->nemesis.died);
    if (r->nemesis.hung)
        fault(r, "members did not end when told to, %u times", r->nemesis.hung);
}

static void keep_everything(struct run *r)
{
    char command[1200];

    (void)snprintf(command, sizeof command, "for m in $(seq %d); do mkdir -p '%s/kept' && rm -f '%s/m'$m/balloon && "
                   "cp -a --sparse=always '%s/m'$m '%s/kept/'; done", r->cluster.n, r->cluster.dir, r->cluster.dir,
                   r->cluster.dir, r->cluster.dir);
    if (system(command) != 0)
        (void)fprintf(r->report, "problem: the data could not be kept\n");
}

static void tell(struct run *r, const struct check_facts *f, double check_s)
{
    printf("%s - seed %" PRIu64 " %s:", r->problems ? "not ok" : "ok", r->load.seed, fault_name(r->nemesis.main));
    for (int k = 0; k < FAULT_KINDS; k++)
        if (r->nemesis.tried[k])
            printf(" %s %u/%u", fault_name((enum fault_kind)k), r->nemesis.happened[k], r->nemesis.tried[k]);
    printf("; %u rounds of several at once, longest pause %" PRId64 " ms, %u leader changes",
           r->nemesis.together_rounds, r->nemesis.paused_ms, r->nemesis.leaders);
    printf("; %" PRIu64 " calls answered, %" PRIu64 " revisions, %" PRIu64 " writes, %" PRIu64 " refused, %" PRIu64
           " unknown (%" PRIu64 " found), %" PRIu64 " reads (%" PRIu64 " serializable), %" PRIu64 " watches (%" PRIu64
           " events, %" PRIu64 " progress), leases %" PRIu64 " expired %" PRIu64 " revoked, %" PRIu64
           " renewals, %" PRIu64 " compactions, %" PRIu64 " renames and %" PRIu64 " not done",
           atomic_load(&r->load.done), f->revisions, f->writes, f->refused, f->unknown, f->unknown_found, f->reads,
           f->serializable, f->watches, f->events, f->progress, f->leases_expired, f->leases_revoked, f->keepalives,
           f->compactions, f->renames, f->renames_none);
    printf("; logs: %" PRIu64 " entries from index %" PRIu64 ", %" PRIu64 " cut, %" PRIu64 " revisions; healed in %"
           PRId64 " ms, checked in %.2f s\n", f->entries, f->entries_from, f->entries_cut, f->entries_revs,
           r->healed_ms, check_s);
}

static void history_of_run(struct run *r, const char *dir)
{
    struct check_facts facts = {0};
    char path[300];
    double check_s = 0;

    phase(r, "start");
    if (begin(r)) {
        phase(r, "serves");
        load_start(&r->load);
        nemesis_run(&r->nemesis, now_ns() + number_of("FAULT_S", 6) * 1000000000);
        (void)await(r, enough_calls, MORE_MS); /* else it is vacuous, below */
        settle(r);
        check_vacuity(r);
        cluster_end(&r->cluster);
        read_logs(r);
        check_s = (double)now_ns() / 1e9;
        r->problems += history_check(&r->history, r->has_logs ? r->logs : NULL, r->cluster.n, r->report, &facts);
        check_s = (double)now_ns() / 1e9 - check_s;
    }
    (void)snprintf(path, sizeof path, "%s/history", dir);
    if (history_save(&r->history, path) < 0)
        (void)fprintf(r->report, "problem: the history could not be saved\n");
    tell(r, &facts, check_s);
}

static int run_main(int argc, char **argv)
{
    static struct run r;
    const char *what = NULL, *fault = getenv("FAULT");
    uint64_t spread; /* of the seed; neighbours differ */
    char path[300];
    int e;

    if (argc < 4)
        return 2;
    r.load.seed = (uint64_t)number_of("SEED", 0);
    if (r.load.seed == 0)
        r.load.seed = (uint64_t)(now_ns() ^ getpid()) % 1000000000 + 1;
    r.report = stdout;
    setvbuf(stdout, NULL, _IOLBF, 0);
    (void)signal(SIGPIPE, SIG_IGN); /* it cannot fail for a valid signal */
    if (mkdir(argv[3], 0700) != 0 && errno != EEXIST) {
        perror(argv[3]);
        return 1;
    }
    e = cluster_make(&r.cluster, argv[2], argv[3], &what);
    if (e < 0) {
        printf("this machine lacks: %s (%s)\n", what, strerror(-e));
        return SKIP;
    }
    spread = (r.load.seed * UINT64_C(11400714819323198485)) >> 40;
    history_init(&r.history);
    r.cluster.flags = argv + 4;
    r.cluster.token = r.load.seed;
    r.load.history = &r.history;
    r.load.cluster = &r.cluster;
    r.load.clients = (int)number_of("CLIENTS", r.cluster.n == 3 ? 9 : 10);
    r.load.watchers = (int)number_of("WATCHERS", 6);
    r.load.rest_us = (int)number_of("REST_US", 4000);
    (void)snprintf(path, sizeof path, "%s/faults", argv[3]);
    r.nemesis = (struct nemesis){.cluster = &r.cluster, .load = &r.load, .seed = r.load.seed * 2654435761u + 1,
                                 .alone = number_of("ALONE", 0) != 0, .log = fopen(path, "we")};
    r.nemesis.main = (enum fault_kind)(fault && fault_by_name(fault) >= 0 ? fault_by_name(fault)
                                                                         : (int)(r.load.seed % FAULT_KINDS));
    r.nemesis.together = number_of("TOGETHER", !r.nemesis.alone && spread % 2) != 0;
    r.nemesis.longest_ms = number_of("LONGEST", r.nemesis.main == FAULT_PAUSE && spread / 2 % 4 == 0 ? 30000 : 3000);
    assert(r.nemesis.log);
    calls_init();
    history_of_run(&r, argv[3]);
    if (r.problems)
        keep_everything(&r);
    cluster_end(&r.cluster);
    return r.problems ? 1 : 0;
}

static int file_main(const char *path, bool show)
{
    struct journal logs[MEMBERS_MAX];
    struct check_facts facts;
    struct history h;
    unsigned problems = 0;
    int r, n = 0;

    history_init(&h);
    r = history_load(&h, path);
    for (int i = 0; i < MEMBERS_MAX; i++) {
        const char *slash = strrchr(path, '/');
        char data[400];

        (void)snprintf(data, sizeof data, "%.*skept/m%d/data", slash ? (int)(slash + 1 - path) : 0, path, i + 1);
        journal_read(&logs[i], data);
        if (n == i && logs[i].there)
            n++;
    }
    if (r < 0) {
        (void)fprintf(stderr, "robust: %s: %s\n", path, strerror(-r));
        return 1;
    }
    for (size_t i = 0; show && i < h.n; i++)
        rec_print(stdout, &h.recs[i]);
    if (!show) {
        problems = history_check(&h, n > 2 ? logs : NULL, n, stdout, &facts);
        printf("%zu records, %" PRIu64 " revisions, %s, %u problems\n", h.n, facts.revisions,
               n > 2 ? "with the logs" : "without logs", problems);
    }
    history_fini(&h);
    for (int i = 0; i < MEMBERS_MAX; i++)
        journal_fini(&logs[i]);
    return problems != 0;
}

static int probe_main(void)
{
    static struct cluster c;
    const char *what;
    char dir[] = "/tmp/cairn-robust-XXXXXX";
    int e = mkdtemp(dir) ? cluster_make(&c, "", dir, &what) : -errno;

    if (e < 0)
        printf("this machine lacks: %s (%s)\n", what, strerror(-e));
    return e < 0 ? SKIP : 0;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";

    if (strcmp(what, "member") == 0 && argc > 4)
        return member_main(argc, argv);
    if (strcmp(what, "run") == 0)
        return run_main(argc, argv);
    if ((strcmp(what, "check") == 0 || strcmp(what, "show") == 0) && argc == 3)
        return file_main(argv[2], what[0] == 's');
    if (strcmp(what, "failover") == 0 && argc > 5)
        return failover_main(argv[2], argv[3], argv[4], atoi(argv[5]), argv + 6);
    if (strcmp(what, "probe") == 0)
        return probe_main();
    (void)fprintf(stderr, "usage: robust run PROGRAM DIRECTORY [FLAG...] | failover PROGRAM DIRECTORY HOW ROUNDS "
                          "[FLAG...] | check FILE | show FILE | probe\n");
    return 2;
}
