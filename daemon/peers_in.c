/* SPDX-License-Identifier: Apache-2.0 */
/* peers_in.c - connections of other members: who is let in, and what they say.
 *
 *      pump: bytes that are no HTTP/2 --incoming_add--> head, checked and answered --> messages --> sink
 *
 * A refusal is an answer with a status and words; the connection ends with it:
 *
 *      FAILED_PRECONDITION   another version, cluster or member than meant
 *      PERMISSION_DENIED     the sender was removed from the cluster
 *      INVALID_ARGUMENT      what came is no message
 *
 * A member that this one does not know (yet) is let in: it may have been added by an entry that it brings itself.
 * A stream replaces the one that the same member had in the same lane: the older is of a connection that it has given
 * up. Memory grows with what has arrived, never by what a length claims, and all of it together has a bound.
 *
 * Owner:    the peers' thread.
 * Not here: what a message says (peer.c).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include "log.h"
#include "peers_impl.h"

enum { REFUSALS_LOG_MS = 10000 }; /* the same refusal is logged again after this */

struct incoming {
    struct end end; /* first */
    struct task come;
    struct incoming *prev, *next;
    struct peers *peers;
    int fd;
    struct tls *tls; /* NULL: a plain connection */
    bool let_in;
    bool bulk;
    uint64_t from;
    uint64_t deadline_ms; /* for the head */
    struct peer_counters *counters;
    uint8_t *part; /* of a message (or the head) that is not whole yet; NULL: none */
    size_t n_part, room;
};

/* ---- the end ------------------------------------------------------------------------------------------ */

static void part_free(struct incoming *in)
{
    in->peers->incoming_bytes -= in->room;
    free(in->part);
    in->part = NULL;
    in->n_part = in->room = 0;
}

/* The row stays until the round is over: events of this round may still name it. */
static void incoming_end(struct incoming *in)
{
    struct peers *p = in->peers;

    part_free(in);
    *(in->prev ? &in->prev->next : &p->incoming) = in->next;
    if (in->next)
        in->next->prev = in->prev;
    p->n_incoming--;
    p->n_strangers -= !in->let_in;
    if (in->tls)
        tls_bye(in->tls);
    tls_free(in->tls);
    in->tls = NULL;
    (void)close(in->fd); /* what was answered is on its way */
    in->fd = -1;
    in->next = p->ended;
    p->ended = in;
}

void incoming_bury(struct peers *p)
{
    while (p->ended) {
        struct incoming *in = p->ended;

        p->ended = in->next;
        free(in);
    }
}

/* Whatever does not fit into the socket is lost: nobody waits for him. A broken connection is told by the next read. */
static void answer(struct incoming *in, const uint8_t *bytes, size_t n)
{
    if (in->tls)
        (void)tls_send(in->tls, bytes, n);
    else
        (void)!send(in->fd, bytes, n, MSG_NOSIGNAL);
}

/* One line for each kind of refusal, and again after a while: whoever is refused tries again for ever. */
static void refuse(struct incoming *in, enum status status, const char *text)
{
    struct peers *p = in->peers;
    uint64_t now = p->options.clock->now_ms(p->options.clock);
    uint8_t bytes[STREAM_ANSWER_BYTES + STREAM_ANSWER_TEXT_MAX] = {(uint8_t)status};
    size_t n = strlen(text);

    if (strcmp(text, p->refused_text) != 0 || now - p->refused_ms > REFUSALS_LOG_MS) {
        log_warn("peers: a stream is refused", LOG_STR("reason", text));
        (void)snprintf(p->refused_text, sizeof p->refused_text, "%s", text);
        p->refused_ms = now;
    }
    put_u16le(bytes + 2, (uint16_t)n);
    memcpy(bytes + STREAM_ANSWER_BYTES, text, n);
    answer(in, bytes, STREAM_ANSWER_BYTES + n);
    incoming_end(in);
}

/* ---- who is let in -------------------------------------------------------------------------------------- */

enum status peers_check(struct peers *p, struct slice version, uint64_t cluster, uint64_t from, uint64_t to,
                        char text[STREAM_ANSWER_TEXT_MAX])
{
    char ours[8];

    (void)snprintf(ours, sizeof ours, "%d", PEERS_VERSION);
    if (!slice_eq(version, slice_str(ours))) {
        (void)snprintf(text, STREAM_ANSWER_TEXT_MAX, "cairn: the protocol between members is version %s here, not %.*s", ours,
                       version.len > 16 ? 16 : (int)version.len, (const char *)version.ptr);
        return STATUS_FAILED_PRECONDITION;
    }
    if (cluster != p->options.cluster_id) {
        (void)snprintf(text, STREAM_ANSWER_TEXT_MAX,
                       "cairn: this is cluster %" PRIx64 ", not %" PRIx64 " (from member %" PRIx64 ")", p->options.cluster_id,
                       cluster, from);
        return STATUS_FAILED_PRECONDITION;
    }
    if (to != p->options.member_id || from == to || from == 0) {
        (void)snprintf(text, STREAM_ANSWER_TEXT_MAX,
                       "cairn: this is member %" PRIx64 ", not %" PRIx64 " (from member %" PRIx64 ")", p->options.member_id, to,
                       from);
        return STATUS_FAILED_PRECONDITION;
    }
    if (peers_is_removed(p, from)) {
        (void)snprintf(text, STREAM_ANSWER_TEXT_MAX, "cairn: member %" PRIx64 " was removed from the cluster", from);
        return STATUS_PERMISSION_DENIED;
    }
    return STATUS_OK;
}

static void replace_older(struct incoming *newer)
{
    struct incoming *in, *next;

    for (in = newer->peers->incoming; in; in = next) {
        next = in->next;
        if (in != newer && in->let_in && in->from == newer->from && in->bulk == newer->bulk)
            incoming_end(in);
    }
}

/* False: in is gone. */
static bool take_head(struct incoming *in, const uint8_t *head)
{
    struct peers *p = in->peers;
    const uint8_t accepted[STREAM_ANSWER_BYTES] = {0};
    char text[STREAM_ANSWER_TEXT_MAX], version[8];
    enum status status;
    struct peer *peer;

    if (memcmp(head, STREAM_MAGIC, 5) != 0) {
        incoming_end(in); /* some other protocol: it would not understand our answer */
        return false;
    }
    (void)snprintf(version, sizeof version, "%u", head[5]);
    in->from = get_u64le(head + 16);
    in->bulk = head[6] == LANE_BULK;
    status = peers_check(p, slice_str(version), get_u64le(head + 8), in->from, get_u64le(head + 24), text);
    if (status) {
        refuse(in, status, text);
        return false;
    }
    in->let_in = true;
    p->n_strangers--;
    replace_older(in);
    if (p->n_incoming - p->n_strangers > LIMIT_PEER_STREAMS) {
        refuse(in, STATUS_RESOURCE_EXHAUSTED, "cairn: too many streams from members");
        return false;
    }
    in->counters = peers_counters(p, in->from);
    answer(in, accepted, sizeof accepted);
    peer = peers_find(p, in->from);
    for (enum lane lane = 0; peer && lane < LANES; lane++)
        link_hurry(&peer->links[lane]);
    return true;
}

/* ---- messages --------------------------------------------------------------------------------------------- */

/* False: in is gone. */
static bool take_message(struct incoming *in, struct slice bytes)
{
    struct peers *p = in->peers;
    struct peer_msg *m;
    int err = peer_msg_decode(bytes, &m);

    if (err == -ENOMEM) {
        peers_add(&in->counters->received_failures, 1); /* as good as lost on the way */
        return true;
    }
    if (err) {
        peers_add(&in->counters->received_failures, 1);
        refuse(in, STATUS_INVALID_ARGUMENT, "cairn: what came is not a message of members");
        return false;
    }
    if (m->from != in->from || m->to != p->options.member_id) {
        peers_add(&in->counters->received_failures, 1);
        peer_msg_free(m);
        return true;
    }
    peers_add(&in->counters->received_messages, 1);
    p->sink.receive(p->sink.ctx, m);
    return true;
}

/* How many bytes the next piece has, head included, by what is there of it: too few say 1 more than there are. */
static size_t piece_bytes(const struct incoming *in, struct slice s)
{
    if (!in->let_in)
        return STREAM_HEAD_BYTES;
    return s.len < 4 ? s.len + 1 : 4 + (size_t)get_u32le(s.ptr);
}

/* Takes whole pieces off the front. False: in is gone. */
static bool take_pieces(struct incoming *in, struct slice *s)
{
    for (;;) {
        size_t n = piece_bytes(in, *s);

        if (in->let_in && n > LIMIT_PEER_MESSAGE_BYTES) {
            refuse(in, STATUS_INVALID_ARGUMENT, "cairn: a message of members is too large");
            return false;
        }
        if (s->len < n)
            return true;
        if (!(in->let_in ? take_message(in, slice_of(s->ptr + 4, n - 4)) : take_head(in, s->ptr)))
            return false;
        *s = slice_of(s->ptr + n, s->len - n);
    }
}

/* Room for the rest of the piece that begins with s, which becomes in->part: no more than twice what is there, so that
 * a length that is only claimed costs nothing. False: in is gone. */
static bool part_room(struct incoming *in, struct slice s)
{
    size_t want = piece_bytes(in, s), most = 2 * s.len + LIMIT_PEER_READ_BYTES;
    struct peers *p = in->peers;
    uint8_t *part;

    if (want > most)
        want = most;
    if (p->incoming_bytes - in->room + want > LIMIT_PEER_INCOMPLETE_BYTES) {
        refuse(in, STATUS_RESOURCE_EXHAUSTED, "cairn: too much of messages that are not whole");
        return false;
    }
    part = malloc(want);
    if (part == NULL) {
        incoming_end(in);
        return false;
    }
    memcpy(part, s.ptr, s.len);
    part_free(in);
    in->part = part;
    in->n_part = s.len;
    in->room = want;
    p->incoming_bytes += want;
    return true;
}

/* What was just read into the thread's buffer, or is gathered in in->part. False: in is gone. */
static bool take_bytes(struct incoming *in, struct slice s)
{
    if (!take_pieces(in, &s))
        return false;
    if (s.len == 0)
        part_free(in);
    else if (in->part == NULL || s.ptr != in->part || in->n_part == in->room)
        return part_room(in, s);
    return true;
}

/* One read of at most max bytes, and what follows from it. */
static void read_once(struct incoming *in, size_t max)
{
    uint8_t *to = in->part ? in->part + in->n_part : in->peers->buffer;
    size_t room = in->part ? in->room - in->n_part : LIMIT_PEER_READ_BYTES;
    ssize_t n;

    if (room > max)
        room = max;
    n = in->tls ? tls_recv(in->tls, to, room) : recv(in->fd, to, room, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        incoming_end(in);
        return;
    }
    if (in->counters)
        peers_add(&in->counters->received_bytes, (uint64_t)n);
    if (in->part)
        in->n_part += (size_t)n;
    (void)take_bytes(in, in->part ? slice_of(in->part, in->n_part) : slice_of(to, (size_t)n));
}

/* What TLS has of a record that did not fit, epoll knows nothing of: that is less than a record, and none is begun for
 * it. */
void incoming_events(struct incoming *in, uint32_t events)
{
    (void)events; /* what they mean is what recv says */
    if (in->fd >= 0) /* else ended by an event before this one */
        read_once(in, SIZE_MAX);
    while (in->fd >= 0 && in->tls) {
        size_t pending = tls_pending(in->tls);

        if (pending == 0 && !tls_more(in->tls))
            return;
        read_once(in, pending ? pending : 1); /* more: the end, or what is wrong */
    }
}

/* ---- the beginning, and who has to go ------------------------------------------------------------------------ */

/* Members say their head at once: whoever has said none for longest is none. */
static void drop_oldest_stranger(struct peers *p)
{
    struct incoming *oldest = NULL;

    for (struct incoming *in = p->incoming; in; in = in->next)
        if (!in->let_in)
            oldest = in; /* newest first */
    incoming_end(oldest);
}

static void come(struct task *t)
{
    struct incoming *in = (struct incoming *)((char *)t - offsetof(struct incoming, come));
    struct peers *p = in->peers;
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &in->end};

    in->next = p->incoming;
    if (in->next)
        in->next->prev = in;
    p->incoming = in;
    p->n_incoming++;
    p->n_strangers++;
    in->deadline_ms = p->options.clock->now_ms(p->options.clock) + LIMIT_SNIFF_MS;
    if (atomic_load(&p->stopping) || epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, in->fd, &ev))
        incoming_end(in);
    if (p->n_strangers > LIMIT_PEER_STRANGERS)
        drop_oldest_stranger(p);
    if (in->fd >= 0 && in->tls)
        incoming_events(in, 0); /* what was looked at is not on the socket any more */
}

void incoming_add(struct peers *p, int fd, struct tls *tls)
{
    struct incoming *in = calloc(1, sizeof *in);

    if (in == NULL) {
        (void)close(fd); /* nothing was said */
        tls_free(tls);
        return;
    }
    *in = (struct incoming){.end.kind = END_INCOMING, .come.fn = come, .peers = p, .fd = fd, .tls = tls};
    io_post(p, &in->come);
}

void incoming_drop_removed(struct peers *p)
{
    struct incoming *in, *next;

    for (in = p->incoming; in; in = next) {
        next = in->next;
        if (in->let_in && peers_is_removed(p, in->from))
            refuse(in, STATUS_PERMISSION_DENIED, "cairn: the member was removed from the cluster");
    }
}

void incoming_drop_late(struct peers *p)
{
    struct incoming *in, *next;
    uint64_t now = p->n_strangers ? p->options.clock->now_ms(p->options.clock) : 0;

    for (in = p->n_strangers ? p->incoming : NULL; in; in = next) {
        next = in->next;
        if (!in->let_in && now > in->deadline_ms)
            incoming_end(in);
    }
}

void incoming_drop_all(struct peers *p)
{
    while (p->incoming)
        incoming_end(p->incoming);
    incoming_bury(p);
}
