# SPDX-License-Identifier: Apache-2.0
"""stop.py PORT PID - 10,000 open watches and a reader that never reads; then SIGTERM. Prints how long PID took to end."""
import os, resource, signal, socket, struct, sys, time
from h2 import *

PORT, PID = int(sys.argv[1]), int(sys.argv[2])
CONNECTIONS, STREAMS = 10, 1000
GIVE_UP_S = 60


def watches():
    """A connection with STREAMS watches, each created and told so."""
    s = connect_open(PORT)
    head = request_head(b"/etcdserverpb.Watch/Watch")
    create = message(b"\x0a\x03\x0a\x01k")  # create_request { key: "k" }
    for i in range(STREAMS):
        s.sendall(frame(HEADERS, END_HEADERS, 2 * i + 1, head) + frame(DATA, 0, 2 * i + 1, create))
    frames, created = Frames(s), set()
    while len(created) < STREAMS:
        kind, _, stream, _ = frames.next()
        if kind == DATA:
            created.add(stream)
    return s


def never_reads():
    """Asks for far more than fits into any socket buffer, allows all of it, and reads nothing."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.settimeout(1)
    s.connect(("127.0.0.1", PORT))
    window = struct.pack(">I", 1 << 30)
    s.sendall(PREFACE + frame(SETTINGS, 0, 0, b"\0\4" + window) + frame(WINDOW, 0, 0, window))
    head, body = request_head(), message(b"\x0a\x03big")
    try:
        for i in range(9000):
            s.sendall(frame(HEADERS, END_HEADERS, 2 * i + 1, head) + frame(DATA, END_STREAM, 2 * i + 1, body))
    except socket.timeout:
        pass
    return s


hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
kept = [watches() for _ in range(CONNECTIONS)] + [never_reads()]
start = time.monotonic()
os.kill(PID, signal.SIGTERM)
while os.path.exists(f"/proc/{PID}/exe") and time.monotonic() - start < GIVE_UP_S:
    # A zombie has no exe: it has ended, whoever its parent is.
    try:
        os.readlink(f"/proc/{PID}/exe")
    except OSError:
        break
    time.sleep(0.005)
print(int((time.monotonic() - start) * 1000))
