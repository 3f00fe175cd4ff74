# SPDX-License-Identifier: Apache-2.0
"""keepalive.py PORT LEASE [TTL] - keep-alive streams by hand: see keepalive.sh for what they prove.

With TTL: LEASE has that many seconds, and its revocation will be slow."""
import struct, sys, time
from h2 import *

port, lease = int(sys.argv[1]), int(sys.argv[2], 16)
PATH = b"/etcdserverpb.Lease/LeaseKeepAlive"
failed = 0


def check(name, ok, note=""):
    global failed
    failed |= not ok
    print(("ok - " if ok else "not ok - ") + name + ("" if ok else " # " + str(note)))


def request(i):
    return message(b"\x08" + varint(i))


def fields(body):
    """The varint fields of a message; the header (field 1) is passed over."""
    out, i = {}, 0

    def take():
        nonlocal i
        v = shift = 0
        while True:
            b = body[i]
            i += 1
            v |= (b & 0x7F) << shift
            shift += 7
            if b < 0x80:
                return v

    while i < len(body):
        tag = take()
        if tag & 7 == 2:
            n = take()
            i += n
        else:
            out[tag >> 3] = take()
    return out


class Stream:
    def __init__(self, window=None, path=PATH):
        self.sock = connect_open(port)
        self.frames = Frames(self.sock)
        self.data, self.trailers, self.ended = b"", None, False
        self.may_send = {0: 65535, 1: 65535}  # a server that gives more says so by WINDOW
        if window is not None:
            self.sock.sendall(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, window)))
        self.sock.sendall(frame(HEADERS, END_HEADERS, 1, request_head(path)))

    def send(self, data, end=False):
        """As much as the server takes; False: it takes no more."""
        while data:
            n = min(len(data), 16000, self.may_send[0], self.may_send[1])
            if n > 0:
                self.sock.sendall(frame(DATA, 0, 1, data[:n]))
                self.may_send[0] -= n
                self.may_send[1] -= n
                data = data[n:]
                continue
            try:
                if not self.pump():
                    return False
            except TimeoutError:
                return False
        if end:
            self.sock.sendall(frame(DATA, END_STREAM, 1))
        return True

    def pump(self):
        """One frame; False when the stream has ended."""
        if self.ended:
            return False
        kind, flags, stream, payload = self.frames.next()
        if kind == DATA and payload:
            self.data += payload
            self.sock.sendall(frame(WINDOW, 0, 0, struct.pack(">I", len(payload))))
            self.sock.sendall(frame(WINDOW, 0, 1, struct.pack(">I", len(payload))))
        if kind == WINDOW and stream in self.may_send:
            self.may_send[stream] += struct.unpack(">I", payload)[0]
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            self.trailers = payload
        self.ended = kind == RST or self.trailers is not None
        return not self.ended

    def answers(self, n):
        """Waits for n of them."""
        got = []
        while len(got) < n:
            while len(self.data) >= 5 and len(self.data) >= 5 + struct.unpack(">I", self.data[1:5])[0]:
                size = struct.unpack(">I", self.data[1:5])[0]
                got.append(fields(self.data[5:5 + size]))
                self.data = self.data[5 + size:]
            if len(got) < n and not self.pump():
                break
        return got

    def end(self):
        while self.pump():
            pass
        return self.trailers or b""


def ttl_of(i):
    """-1: there is no such lease."""
    q = Stream(path=b"/etcdserverpb.Lease/LeaseTimeToLive")
    q.send(request(i), end=True)
    ttl = q.answers(1)[0].get(3, 0)
    return ttl - (1 << 64) if ttl >> 63 else ttl


# Past its expiry, not yet revoked: such a lease is never kept alive, but its end is awaited before that is said.
if len(sys.argv) > 3:
    ttl = int(sys.argv[3])
    s = Stream()
    s.send(request(lease))
    check("renewed in time", s.answers(1)[0].get(3) == ttl)
    end = time.monotonic() + ttl + 0.05
    while time.monotonic() < end:
        there = ttl_of(lease)
    check("past its expiry it is still there", there == 0 and ttl_of(lease) == 0, there)
    s.send(request(lease))
    a = s.answers(1)
    left = ttl_of(lease)
    check("a keep-alive past the expiry has TTL 0", a[0].get(2) == lease and a[0].get(3) is None, a)
    check("and is answered once the lease is revoked", left == -1, left)
    sys.exit(failed)

# Requests in one stream.
s = Stream()
s.send(request(lease) + request(4711) + request(lease))
a = s.answers(3)
check("each request is answered", len(a) == 3, a)
check("a lease has its full TTL again", [x.get(3) for x in a if x.get(2) == lease] == [500, 500], a)
check("an unknown one has none", [x.get(3) for x in a if x.get(2) == 4711] == [None], a)
s.send(b"", end=True)
check("a half-closed stream ends well", b"grpc-status\x010" in s.end(), s.trailers)

s = Stream()
s.send(request(lease) * 5000, end=True)
a = s.answers(5000)
check("a burst is answered to the last", len(a) == 5000 and all(x.get(3) == 500 for x in a), len(a))
check("and then the stream ends well", b"grpc-status\x010" in s.end(), s.trailers)

# A client that does not read: what waits for it is bounded, and it hears so when it reads at last.
s = Stream(window=0)
s.sock.settimeout(3)  # it takes no more once it has refused
s.send(request(lease) * 80000)
s.sock.settimeout(TIMEOUT_S)
s.sock.sendall(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 30)))
trailers = s.end()
check("a client that does not read is refused in the end", b"too many requests" in trailers, trailers)
sys.exit(failed)
