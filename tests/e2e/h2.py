# SPDX-License-Identifier: Apache-2.0
"""h2.py - just enough HTTP/2 and gRPC by hand, for tests that must be able to do what no library lets them."""
import socket, struct

TIMEOUT_S = 20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name, value):  # HPACK, without indexing, no Huffman
    def text(s):
        return (bytes([len(s)]) if len(s) < 127 else b"\x7f" + varint(len(s) - 127)) + s
    return b"\x00" + text(name) + text(value)


def varint(n):
    out = b""
    while n >= 0x80:
        out += bytes([n & 0x7f | 0x80])
        n >>= 7
    return out + bytes([n])


def request_head(path=b"/etcdserverpb.KV/Range", *more):
    h = b"\x83\x86" + literal(b":path", path) + literal(b":authority", b"x") + literal(b"te", b"trailers")
    h += literal(b"content-type", b"application/grpc")
    return h + b"".join(literal(n, v) for n, v in more)


def message(body, compressed=0):
    return bytes([compressed]) + struct.pack(">I", len(body)) + body


def connect(port, greet=True):
    s = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if greet:
        s.sendall(PREFACE + frame(SETTINGS, 0, 0) + frame(WINDOW, 0, 0, struct.pack(">I", 1 << 30)))
    return s


def connect_open(port):
    """A connection whose SETTINGS are exchanged: nobody else writes on it from now on."""
    s = connect(port)
    frames = Frames(s)
    while frames.next()[0] != SETTINGS:
        pass
    return s


class Frames:
    """Reads whole frames; answers SETTINGS and PING as one must."""

    def __init__(self, sock):
        self.sock, self.buf = sock, b""

    def want(self, n):
        """At least n bytes in the buffer; a timeout loses none of them."""
        while len(self.buf) < n:
            more = self.sock.recv(65536)
            if not more:
                raise ConnectionError("closed")
            self.buf += more

    def next(self):
        self.want(9)
        kind, flags, stream = self.buf[3], self.buf[4], struct.unpack(">I", self.buf[5:9])[0] & 0x7fffffff
        end = 9 + struct.unpack(">I", b"\0" + self.buf[:3])[0]
        self.want(end)
        body, self.buf = self.buf[9:end], self.buf[end:]
        if kind == SETTINGS and not flags & 1:
            self.sock.sendall(frame(SETTINGS, 1, 0))
        if kind == PING and not flags & 1:
            self.sock.sendall(frame(PING, 1, 0, body))
        return kind, flags, stream, body
