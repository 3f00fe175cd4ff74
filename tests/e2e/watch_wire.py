# SPDX-License-Identifier: Apache-2.0
"""watch_wire.py PORT - plays a fixed script of watches on an empty server and prints every response, field by field.

Ids, terms and members are left out. A step says how many responses it awaits; one too many shows in the next step.
Responses of one step are sorted by watch id: between watchers etcd promises no order."""
import struct
import sys
from h2 import *

PUT, RANGE, DELETE, TXN, COMPACT = "Put", "Range", "DeleteRange", "Txn", "Compact"


def field(n, v):
    if v is None or v == 0 or v == b"" or v is False:
        return b""
    if isinstance(v, bytes):
        return varint(n << 3 | 2) + varint(len(v)) + v
    return varint(n << 3) + varint(int(v) & 0xffffffffffffffff)


def sub(n, body):  # a message, also when it is empty
    return varint(n << 3 | 2) + varint(len(body)) + body


def fields(b):
    out, i = [], 0

    def num():
        nonlocal i
        v = s = 0
        while True:
            c = b[i]
            i += 1
            v |= (c & 0x7f) << s
            s += 7
            if c < 0x80:
                return v
    while i < len(b):
        tag = num()
        if tag & 7 == 0:
            v = num()
            out.append((tag >> 3, v - (1 << 64) if v >> 63 else v))
        else:
            n = num()
            out.append((tag >> 3, b[i:i + n]))
            i += n
    return out


def kv_text(b):
    names = {1: "key", 2: "create", 3: "mod", 4: "version", 5: "value", 6: "lease"}
    return " ".join(f"{names[n]}={v.decode('latin1') if isinstance(v, bytes) and len(v) < 40 else len(v) if isinstance(v, bytes) else v}"
                    for n, v in sorted(fields(b)))


def event_text(b):
    f = dict(fields(b))
    kind = {0: "PUT", 1: "DELETE"}[f.get(1, 0)]
    return f"{kind} [{kv_text(f[2])}]" + (f" prev [{kv_text(f[3])}]" if 3 in f else "")


def response_text(b):
    f, events = {}, []
    for n, v in fields(b):
        if n == 11:
            events.append(event_text(v))
        else:
            f[n] = v
    head = dict(fields(f.get(1, b"")))
    words = [f"id={f.get(2, 0)} rev={head.get(3, 0)}"]
    words += [w for n, w in ((3, "created"), (4, "canceled")) if f.get(n)]
    words += [f"compacted={f[5]}"] if 5 in f else []
    words += [f"reason={f[6].decode()!r}"] if 6 in f else []
    words += ["fragment"] if f.get(7) else []
    return f.get(2, 0), " ".join(words) + "".join("\n      " + e for e in events)


class Connection:
    def __init__(self, port):
        self.sock = connect(port)
        self.frames, self.next_id = Frames(self.sock), 1
        self.data, self.ended = {}, {}
        self.initial, self.room = 65535, {0: 65535}  # what we may send: the connection, each stream

    def open(self, path):
        i, self.next_id = self.next_id, self.next_id + 2
        self.data[i], self.room[i] = b"", self.initial
        self.sock.sendall(frame(HEADERS, END_HEADERS, i, request_head(path)))
        return i

    def send(self, i, body, end=False):
        b = message(body)
        while b:
            n = min(len(b), 16384, self.room[0], self.room[i])
            if n <= 0:
                self.read()
                continue
            self.room[0] -= n
            self.room[i] -= n
            self.sock.sendall(frame(DATA, END_STREAM if end and n == len(b) else 0, i, b[:n]))
            b = b[n:]

    def read(self):
        kind, flags, stream, body = self.frames.next()
        if kind == WINDOW:
            self.room[stream] = self.room.get(stream, self.initial) + struct.unpack(">I", body)[0]
        if kind == SETTINGS and not flags & 1:
            for at in range(0, len(body), 6):
                name, value = struct.unpack(">HI", body[at:at + 6])
                if name == 4:
                    for k in self.room:
                        self.room[k] += value - self.initial if k else 0
                    self.initial = value
        if kind == DATA and stream in self.data:
            self.data[stream] += body
            if body:
                self.sock.sendall(frame(WINDOW, 0, stream, struct.pack(">I", len(body))))
        if kind == RST or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self.ended[stream] = True

    def take(self, i):
        """The next message of stream i, or None when it has ended."""
        while True:
            d = self.data[i]
            if len(d) >= 5 and len(d) >= 5 + struct.unpack(">I", d[1:5])[0]:
                n = struct.unpack(">I", d[1:5])[0]
                self.data[i] = d[5 + n:]
                return d[5:5 + n]
            if i in self.ended:
                return None
            self.read()

    def call(self, method, body):
        i = self.open(b"/etcdserverpb.KV/" + method.encode())
        self.send(i, body, True)
        return self.take(i)


class Watch:
    def __init__(self, c, name):
        self.c, self.name = c, name
        self.i = c.open(b"/etcdserverpb.Watch/Watch")

    def say(self, what, body, n):
        print(f"{self.name}: {what}")
        self.c.send(self.i, body)
        self.expect(n)

    def expect(self, n):
        got = sorted((response_text(self.c.take(self.i)) for _ in range(n)), key=lambda r: r[0])
        for _, text in got:
            print("    " + text)

    def create(self, n=1, key=b"", end=b"", start=0, progress=False, filters=(), prev=False, id=0, fragment=False):
        args = {k: v for k, v in locals().items() if k not in ("self", "n") and v}
        body = field(1, key) + field(2, end) + field(3, start) + field(4, progress)
        body += b"".join(varint(5 << 3) + varint(f) for f in filters)
        body += field(6, prev) + field(7, id) + field(8, fragment)
        self.say(f"create {args}", sub(1, body), n)

    def cancel(self, id, n=1):
        self.say(f"cancel {id}", sub(2, field(1, id)), n)

    def progress(self, n=1):
        self.say("progress", sub(3, b""), n)


c = Connection(int(sys.argv[1]))


def put(key, value, **k):
    print(f"put {key.decode()} {value[:20].decode()}")
    c.call(PUT, field(1, key) + field(2, value))


def delete(key, end=b""):
    print(f"delete {key.decode()} {end.decode('latin1')!r}")
    c.call(DELETE, field(1, key) + field(2, end))


def txn(*ops):
    print(f"txn of {len(ops)}")
    c.call(TXN, b"".join(sub(2, o) for o in ops))


def op_put(key, value):
    return sub(2, field(1, key) + field(2, value))


def op_delete(key, end=b""):
    return sub(3, field(1, key) + field(2, end))


def compact(rev):
    print(f"compact {rev}")
    c.call(COMPACT, field(1, rev))


w = Watch(c, "a")
w.progress(0)
w.create(key=b"k")
w.progress()
w.create(key=b"k", end=b"l", prev=True)
w.create(key=b"", end=b"\0")
w.create(key=b"m", end=b"k")          # empty range
w.create(key=b"m", end=b"m")
w.create(key=b"k", start=-1)
w.create(key=b"m", end=b"k", start=-1)
w.create(key=b"k", id=2)              # taken
w.create(key=b"k", id=5)
w.create(key=b"k", id=-1)
w.create(key=b"k", filters=(0,))
w.create(key=b"k", filters=(1,))
w.create(key=b"k", filters=(0, 1))
w.create(key=b"k", filters=(7,))
w.create(key=b"k", start=4)
w.progress(0)                         # one starts in the future
put(b"k", b"1")
w.expect(7)
put(b"k", b"2")
w.expect(7)
delete(b"k")
w.expect(8)
w.progress()
delete(b"k")                          # nothing there: no revision
put(b"j", b"x")
w.expect(1)
txn(op_put(b"k", b"a"), op_put(b"k2", b"b"), op_put(b"zz", b"c"))
w.expect(8)
txn(op_delete(b"k", b"l"), op_put(b"q", b"1"))
w.expect(8)
w.cancel(77, 0)
w.cancel(0)
w.cancel(0, 0)
w.cancel(-1)
w.create(key=b"j")
put(b"j", b"y")
w.expect(2)
for i in range(1, 10):
    w.cancel(i)
w.create(key=b"j")                    # no id is given twice

# History.
h = Watch(c, "h")
h.create(2, key=b"k", end=b"l", start=1)
h.create(2, key=b"k", end=b"l", start=2, prev=True)
h.create(2, key=b"\0", end=b"\0", start=4)
h.create(1, key=b"nothing", start=2)
h.create(1, key=b"k", start=100)
h.create(2, key=b"k", start=2, filters=(1,))
h.create(2, key=b"k", start=2, filters=(0,), prev=True)
h.progress(0)

# Compaction.
compact(5)
o = Watch(c, "o")
o.create(2, key=b"k", end=b"l", start=4, prev=True)
o.create(2, key=b"k", end=b"l", start=1)
o.create(2, key=b"\0", end=b"\0", start=5, prev=True)
o.create(2, key=b"k", end=b"l", start=6, prev=True)
o.progress(0)
o.create(1, key=b"k", id=0)
o.cancel(0)
o.cancel(1)
o.progress()
o.create(1, key=b"k", start=1000)
o.progress(0)
put(b"k", b"now")
o.expect(3)
h.expect(4)
compact(8)
put(b"k", b"after")
o.expect(3)
h.expect(4)

# A response of 1.5 MiB + 512 KiB or more is split when asked for: values and previous values make 3 MB.
f = Watch(c, "f")
f.create(key=b"f", end=b"g", prev=True, fragment=True)
f.create(key=b"f", end=b"g", prev=True)
f.create(key=b"f", end=b"g", fragment=True)
txn(*(op_put(b"f%d" % i, b"v" * 380000) for i in range(4)))
f.expect(3)
txn(*(op_put(b"f%d" % i, b"v" * 380000) for i in range(4)))
f.expect(4)
g = Watch(c, "g")
g.create(key=b"k", start=2000)
put(b"end", b"1")
print("an empty request")
g.say("nothing", b"", 0)
g.create(1, key=b"k", id=-9223372036854775808)
