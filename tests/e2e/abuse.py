# SPDX-License-Identifier: Apache-2.0
"""abuse.py - hostile clients against a running server, HTTP/2 by hand.

    abuse.py PORT PID [ATTACK...]

For every attack: the offender is cut off (or bounded, where that is what should happen), a well-behaved client on a
connection of its own is answered all the while, and the server's memory stays under 200 MB. Prints TAP lines, and the
good client's latencies as a comment: they are a figure, not an assertion.
"""
import multiprocessing, resource, socket, struct, sys, threading, time, zlib
from h2 import *

PORT, PID = int(sys.argv[1]), int(sys.argv[2])
MEMORY_MAX_KB = 200 * 1024
ANSWER_MAX_S = 10      # the good client's worst answer
CUT_S = 20             # an offender is gone within this


def rss_kb():
    with open(f"/proc/{PID}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))


def good_client(ending, report):
    """One range after the other on a connection of its own; reports latencies, the server's peak memory, an error."""
    times, error, peak_kb = [], None, 0
    try:
        s = connect(PORT)
        s.settimeout(ANSWER_MAX_S)
        frames, stream = Frames(s), 1
        head, body = request_head(), message(b"\x0a\x01k")
        while not ending.is_set():
            start, got, done = time.monotonic(), False, False
            s.sendall(frame(HEADERS, END_HEADERS, stream, head) + frame(DATA, END_STREAM, stream, body))
            while not done:
                kind, flags, on, _ = frames.next()
                if kind == GOAWAY or (kind == RST and on == stream):
                    raise ConnectionError(f"refused (frame {kind})")
                got |= kind == DATA and on == stream
                done = kind == HEADERS and on == stream and flags & END_STREAM
            if not got:
                raise ConnectionError("an answer without a message")
            times.append(time.monotonic() - start)
            if len(times) % 64 == 0:
                s.sendall(frame(WINDOW, 0, 0, struct.pack(">I", 1 << 20)))
            peak_kb = max(peak_kb, rss_kb())
            stream += 2
            time.sleep(0.001)
    except Exception as e:  # told by the test
        error = repr(e)
    report.send((times, error, peak_kb))


class Good:
    """The other client, in a process of its own: the attacker's work must not count as the server's."""

    def __init__(self):
        self.ending = multiprocessing.Event()
        self.report, theirs = multiprocessing.Pipe(False)
        self.process = multiprocessing.Process(target=good_client, args=(self.ending, theirs), daemon=True)
        self.process.start()

    def finish(self):
        self.ending.set()
        times, error, peak_kb = self.report.recv() if self.report.poll(2 * ANSWER_MAX_S) else ([], "no report", 0)
        self.process.join(1)
        times.sort()
        figures = [times[int(len(times) * q)] * 1000 for q in (0.5, 0.99)] + [times[-1] * 1000] if times else [0, 0, 0]
        return len(times), figures, error, peak_kb


def send_until_cut(s, pieces):
    """Sends until the server closes; its GOAWAY's text. Raises AssertionError when it takes everything."""
    got = []

    def read():
        frames = Frames(s)
        try:
            while True:
                kind, _, _, body = frames.next()
                if kind == GOAWAY:
                    got.append(body[8:].decode("latin1"))
        except OSError:
            got.append(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    end = time.monotonic() + CUT_S
    try:
        for p in pieces:
            if None in got:
                break
            assert time.monotonic() < end, "was not cut off in time"
            s.sendall(p)
    except OSError:
        pass
    reader.join(max(0.1, end - time.monotonic()))
    assert None in got, "was not cut off"
    return next((g for g in got if g), "(closed)")


# ---- the attacks: each returns a word on how it ended ---------------------------------------

def huge_message():
    """One message of 600 MB: cut off by its claim."""
    s = connect_open(PORT)
    def pieces():
        yield frame(HEADERS, END_HEADERS, 1, request_head(b"/etcdserverpb.KV/Put"))
        yield frame(DATA, 0, 1, b"\0" + struct.pack(">I", 600 << 20))
        block = frame(DATA, 0, 1, bytes(16384))
        for _ in range(600 << 20 >> 14):
            yield block
    return send_until_cut(s, pieces())


def headers_flood():
    """HEADERS without end, each a new stream that never goes on."""
    s = connect_open(PORT)
    head = request_head()
    return send_until_cut(s, (b"".join(frame(HEADERS, END_HEADERS, i * 200 + 2 * k + 1, head) for k in range(100))
                              for i in range(10000)))


def rapid_reset():
    """HEADERS and RST_STREAM at once, over and over."""
    s = connect_open(PORT)
    head = request_head()
    return send_until_cut(s, (b"".join(frame(HEADERS, END_HEADERS, i * 200 + 2 * k + 1, head) +
                                       frame(RST, 0, i * 200 + 2 * k + 1, b"\0\0\0\x08") for k in range(100))
                              for i in range(100000)))


def endless_continuation():
    """A header block that never ends."""
    s = connect_open(PORT)
    def pieces():
        yield frame(HEADERS, 0, 1, request_head())
        block = frame(CONTINUATION, 0, 1, literal(b"x", bytes(b"a" * 8000)))
        while True:
            yield block
    return send_until_cut(s, pieces())


def empty_continuation():
    """The same, with empty frames."""
    s = connect_open(PORT)
    def pieces():
        yield frame(HEADERS, 0, 1, request_head())
        block = frame(CONTINUATION, 0, 1) * 500
        while True:
            yield block
    return send_until_cut(s, pieces())


def ping_flood():
    """PINGs whose answers nobody reads."""
    s = connect_open(PORT)
    return send_until_cut(s, (frame(PING, 0, 0, b"12345678") * 200 for _ in range(100000)))


def gzip_bomb():
    """A message that would inflate a thousandfold: UNIMPLEMENTED, nothing is inflated, the connection lives."""
    z = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = message(z.compress(bytes(40 << 20)) + z.flush(), 1)
    s = connect_open(PORT)
    frames = Frames(s)
    head = request_head(b"/etcdserverpb.KV/Put", (b"grpc-encoding", b"gzip"))
    s.sendall(frame(HEADERS, END_HEADERS, 1, head))
    assert len(bomb) < 65535, "the bomb must fit into a stream's window"
    for at in range(0, len(bomb), 16384):
        s.sendall(frame(DATA, END_STREAM if at + 16384 >= len(bomb) else 0, 1, bomb[at:at + 16384]))
    while True:
        kind, flags, on, body = frames.next()
        if kind == HEADERS and on == 1 and flags & END_STREAM:
            assert b"Compression algorithm" in body or b"not supported" in body, repr(body)
            break
    s.sendall(frame(HEADERS, END_HEADERS, 3, request_head()) + frame(DATA, END_STREAM, 3, message(b"\x0a\x01k")))
    while True:
        kind, flags, on, body = frames.next()
        if kind == DATA and on == 3:
            return "refused, and the connection lives"


def slow_loris():
    """2,000 clients that send a byte of nothing or of the preface each second: all cut off after 10 s."""
    socks = []
    for i in range(2000):
        s = connect(PORT, greet=False)
        s.setblocking(False)
        socks.append(s)
    sent, gone, end = 0, 0, time.monotonic() + CUT_S
    while socks and time.monotonic() < end:
        time.sleep(0.5)
        left = []
        for i, s in enumerate(socks):
            try:
                if i % 2 and sent < len(PREFACE):
                    s.send(PREFACE[sent:sent + 1])
                if s.recv(1) == b"":
                    raise ConnectionError
            except BlockingIOError:
                left.append(s)
                continue
            except OSError:
                pass
            s.close()
            gone += 1
        socks, sent = left, sent + 1
    assert not socks, f"{len(socks)} are still there"
    return f"{gone} cut off"


def idle_connections():
    """10,000 connections that say nothing; a thousand of them have shown the preface and stay."""
    socks = [connect(PORT, greet=i % 10 == 0) for i in range(10000)]
    time.sleep(0.5)
    kb = rss_kb()
    for s in socks:
        s.close()
    return f"{kb // 1024} MB with them"


def reads_nothing():
    """Asks 3,000 times for a value of 1 MB, allows all of it to be sent, and reads nothing: what waits is bounded."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.settimeout(1)
    s.connect(("127.0.0.1", PORT))
    window = struct.pack(">I", 1 << 30)
    s.sendall(PREFACE + frame(SETTINGS, 0, 0, b"\0\4" + window) + frame(WINDOW, 0, 0, window))
    head, body, asked = request_head(), message(b"\x0a\x03big"), 0
    try:
        for asked in range(3000):
            s.sendall(frame(HEADERS, END_HEADERS, 2 * asked + 1, head) +
                      frame(DATA, END_STREAM, 2 * asked + 1, body))
    except OSError:
        pass
    before = -1
    while before != rss_kb():  # until nothing moves any more
        before = rss_kb()
        time.sleep(0.5)
    s.close()
    return f"asked {asked + 1} times"


def unfinished_messages():
    """Six clients with 60 MB each of a message that never ends: above 256 MiB in all only the oldest is read, and when
    that one stalls it goes. Core holds what was let through, so memory is allowed for here and nowhere else."""
    def fill(s, sent, cut):
        window = {0: 65535, 1: 65535}
        s.settimeout(0.2)
        frames, left = Frames(s), 60 << 20
        s.sendall(frame(HEADERS, END_HEADERS, 1, request_head(b"/etcdserverpb.KV/Put")))
        s.sendall(frame(DATA, 0, 1, b"\0" + struct.pack(">I", 61 << 20)))
        window = {k: v - 5 for k, v in window.items()}
        try:
            while not over.is_set():
                n = min(16384, left, window[0], window[1])
                if n > 0:
                    piece = frame(DATA, 0, 1, bytes(n))
                    while piece and not over.is_set():
                        try:
                            piece = piece[s.send(piece):]
                        except TimeoutError:
                            pass
                    window, left = {k: v - n for k, v in window.items()}, left - n
                    sent[0] += n
                    if n == 16384 and window[0] > 65536 and window[1] > 65536:
                        continue
                try:
                    kind, _, on, body = frames.next()
                except TimeoutError:
                    continue
                if kind == WINDOW and on in window:
                    window[on] += struct.unpack(">I", body)[0]
                elif kind == SETTINGS and len(body) >= 6:
                    for at in range(0, len(body), 6):
                        key, value = struct.unpack(">HI", body[at:at + 6])
                        window[1] += value - 65535 if key == 4 else 0
                elif kind == GOAWAY:
                    cut.append(body[8:].decode("latin1"))
        except OSError:
            cut.append("closed")

    over, socks, sent, cuts, threads = threading.Event(), [], [], [], []
    for _ in range(6):
        socks.append(connect(PORT))
        sent.append([0])
        cuts.append([])
        threads.append(threading.Thread(target=fill, args=(socks[-1], sent[-1], cuts[-1]), daemon=True))
        threads[-1].start()
    end = time.monotonic() + 3 * CUT_S
    while not any(cuts) and time.monotonic() < end:
        time.sleep(0.1)
    over.set()
    for t in threads:
        t.join(5)
    for s in socks:
        s.close()
    assert cuts[0], f"the oldest was not cut off; sent {[n[0] >> 20 for n in sent]} MB"
    assert not any(cuts[1:]), f"others were cut off too: {cuts}"
    return f"{sum(n[0] for n in sent) >> 20} MB of 360 taken, the oldest cut off: {cuts[0][0]}"


ATTACKS = [huge_message, headers_flood, rapid_reset, endless_continuation, empty_continuation, ping_flood, gzip_bomb,
           slow_loris, idle_connections, reads_nothing, unfinished_messages]
MEMORY_ALLOWED_KB = {unfinished_messages: 450 * 1024}


def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    failed, n = 0, 0
    for attack in ATTACKS:
        name = attack.__name__
        if sys.argv[3:] and name not in sys.argv[3:]:
            continue
        n += 1
        if attack is idle_connections and hard < 12000:
            print(f"ok {n} - {name} # SKIP {hard} descriptors are not enough")
            continue
        good = Good()
        why, start = None, time.monotonic()
        try:
            how = attack()
        except (AssertionError, OSError) as e:
            how, why = "", str(e)
        took = time.monotonic() - start
        time.sleep(0.3)  # the good client sees the time after, too
        calls, (p50, p99, worst), error, peak = good.finish()
        peak = max(peak, rss_kb())
        if error or not calls:
            why = f"the other client: {error or 'no answer'}"
        elif peak > MEMORY_ALLOWED_KB.get(attack, MEMORY_MAX_KB):
            why = f"memory: {peak // 1024} MB"
        print(f"# {name}: {how} after {took:.2f} s; peak {peak // 1024} MB; the other client: {calls} calls, "
              f"p50 {p50:.2f} p99 {p99:.2f} max {worst:.2f} ms")
        print(f"{'not ok' if why else 'ok'} {n} - {name}{': ' + why if why else ''}", flush=True)
        failed += bool(why)
    print(f"1..{n}")
    return failed != 0


sys.exit(main())
