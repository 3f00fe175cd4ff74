#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# mount_failover.py - how long a mount of three members' endpoints answers nothing when the endpoint in use is lost.
#
#   tests/bench/mount_failover.py HOW ROLE ROUNDS [SERVER]     in a network namespace of its own (unshare --net), as root
#   HOW     kill    SIGKILL                           stop   SIGSTOP
#           silent  its link to the clients is cut    gone   both its links are
#           pause   SIGSTOP for PAUSE_MS (250) only: the mount should stay
#   ROLE    follower | leader: what the endpoint in use is; other: the leader is lost, a follower in use
#   SERVER  cairnd (default) or the path of an etcd
#   KEEP=ms the members' logs of a round that took longer are kept
#   IDLE=1  the mount itself reads and saves nothing: what is lost is seen by its watch alone
#
# Each round prints, in ms, the longest time without: read  a linearizable read (option strict); save  a save of one file, opened, written
# and closed; new  a file that was not there, written and closed; excl  one that is made by O_EXCL; event  an event of a key that another mount saves, by another endpoint; other  one of its saves.
# terms says how many terms went by: more than one are elections that failed, which no mount can shorten.
# Links are cut on the bridge's side, so that nobody is told. Then the distribution: p50, p90, p99, max; and what failed.
import errno, json, os, random, shutil, signal, subprocess, sys, tempfile, threading, time, traceback

HOW, ROLE, ROUNDS = sys.argv[1], sys.argv[2], int(sys.argv[3])
PROGRAM = sys.argv[4] if len(sys.argv) > 4 else "cairnd"
IDLE = os.environ.get("IDLE") == "1"
PAUSE_MS = int(os.environ.get("PAUSE_MS", "250"))
O = os.path.abspath(os.environ.get("O", "build"))
ETCDCTL = "etcdctl"
MEMBERS = 1, 2, 3
T = tempfile.mkdtemp(prefix="cairn-mount-failover-", dir=os.environ.get("TMPDIR", "/var/tmp"))
M = T + "/mnt"
net, member, mounts = {}, {}, []
os.environ["ETCDCTL_API"] = "3"

def run(*a, check=True, timeout=20, **k): return subprocess.run(a, check=check, timeout=timeout, **k)
def client_at(i): return f"10.77.0.{i}:2379"
def peer_at(i): return f"http://10.78.0.{i}:2380"
def inside(i): return ["nsenter", f"--net=/proc/{net[i].pid}/ns/net"]

def net_up():
    run("ip", "link", "set", "lo", "up")
    for n in 77, 78: run("ip", "link", "add", f"br{n}", "type", "bridge"), run("ip", "link", "set", f"br{n}", "up")
    run("ip", "addr", "add", "10.77.0.254/24", "dev", "br77")
    for i in MEMBERS:
        net[i] = subprocess.Popen(["unshare", "--net", "sleep", "7200"])
        while os.readlink(f"/proc/{net[i].pid}/ns/net") == os.readlink("/proc/self/ns/net"): time.sleep(0.01)
        run(*inside(i), "ip", "link", "set", "lo", "up")
        for n in 77, 78:
            run("ip", "link", "add", f"v{n}.{i}", "type", "veth", "peer", "name", f"e{n}", "netns", str(net[i].pid))
            run("ip", "link", "set", f"v{n}.{i}", "master", f"br{n}", "up")
            run(*inside(i), "ip", "addr", "add", f"10.{n}.0.{i}/24", "dev", f"e{n}")
            run(*inside(i), "ip", "link", "set", f"e{n}", "up")

def member_start(i):
    program = O + "/cairnd" if PROGRAM == "cairnd" else PROGRAM
    c = "http://" + client_at(i)
    member[i] = subprocess.Popen(inside(i) + [program, "--name", f"m{i}", "--data-dir", f"{T}/m{i}", "--listen-client-urls", c,
        "--advertise-client-urls", c, "--listen-peer-urls", peer_at(i), "--initial-advertise-peer-urls", peer_at(i),
        "--initial-cluster", ",".join(f"m{k}={peer_at(k)}" for k in MEMBERS)], stdout=open(f"{T}/m{i}.log", "a"), stderr=subprocess.STDOUT)

def mount_start(at, options, endpoints):
    os.makedirs(at, exist_ok=True)
    mounts.append((at, subprocess.Popen([O + "/cairnfs", "-f", "-o", options, endpoints, at], stdout=open(T + "/cairnfs.log", "a"),
        stderr=subprocess.STDOUT)))
    end = time.monotonic() + 20
    while not os.path.isdir(at + "/.etcd"):
        assert time.monotonic() < end, "no mount"
        time.sleep(0.05)

def status(at=M): return json.load(open(at + "/.etcd/status"))
def roles():  # member id -> number, and the leader's number
    ids, leader = {}, None
    for i in MEMBERS:
        try: out = run(ETCDCTL, "--command-timeout=3s", "--endpoints", client_at(i), "endpoint", "status", "-w", "json",
                       capture_output=True, check=False, timeout=5).stdout
        except subprocess.TimeoutExpired: continue
        try: s = json.loads(out)[0]["Status"]
        except (ValueError, IndexError): continue
        ids[s["header"]["member_id"]] = i
        leader = s.get("leader", leader)
    return ids, ids.get(leader)
def term(): return find(status(), "raft_term")
def in_use():
    at = status()["connection"]["endpoint"] if "connection" in status() else find(status(), "endpoint")
    return next(i for i in MEMBERS if client_at(i) == at)
def find(d, key):
    for k, v in d.items():
        if k == key: return v
        if isinstance(v, dict):
            r = find(v, key)
            if r is not None: return r
def calm(seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        s, text = status(), open(M + "/.etcd/status").read()
        ids, leader = roles()
        if len(ids) == 3 and leader and find(s, "quorum") and find(s, "standing") and text.count('":"connected"') + text.count('":"without a leader"') == 3: return ids, leader
        time.sleep(0.1)
    raise SystemExit("not calm: " + open(M + "/.etcd/status").read())

# ---- the work: when each kind last went well --------------------------------------------------------------------------------
done = {"read": [], "save": [], "new": [], "excl": [], "event": [], "other": []}
OURS = "read", "save", "new", "excl"  # what the mount itself does
failed = {}
other_at = None
def worker(kind, pause, what):
    def loop():
        n = 0
        while True:
            n += 1
            try:
                what(n)
                done[kind].append(time.monotonic())
            except OSError as e:
                name = kind + " " + errno.errorcode.get(e.errno, str(e.errno))
                failed[name] = failed.get(name, 0) + 1
            time.sleep(pause)
    threading.Thread(target=loop, daemon=True).start()
def read(n):
    with open(M + "/c/read") as f: assert f.read() == "still here"
def put(path, n):
    f = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try: os.write(f, str(n).encode())
    finally: os.close(f)
def save(n): put(M + "/c/save", n)
def make(path, flags):
    f = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    try: os.write(f, b"new")
    finally: os.close(f)
    made.append(path)
made = []
def new_file(n): make(f"{M}/c/new{n}", os.O_TRUNC)
def excl(n): make(f"{M}/c/excl{n}", os.O_EXCL)
def sweep():  # what was made, between the rounds
    while made: os.unlink(made.pop())
def other(n): put(f"{T}/mnt{other_at}/c/other", n)
def events():
    f, rest = os.open(M + "/.etcd/events/c/.all", os.O_RDONLY), b""
    while True:
        try: rest += os.read(f, 65536)
        except OSError: return  # unmounted: the end
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if json.loads(line).get("key") == "c/other": done["event"].append(time.monotonic())

def gap(kind, t0, t1):
    times = [t for t in list(done[kind]) if t0 - 0.3 < t < t1]
    return max(b - a for a, b in zip(times, times[1:] + [t1])) * 1000 if times else (t1 - t0) * 1000

def lose(i):
    if HOW == "kill": member[i].kill()
    elif HOW in ("stop", "pause"): member[i].send_signal(signal.SIGSTOP)
    else:
        for n in (77,) if HOW == "silent" else (77, 78): run("ip", "link", "set", f"v{n}.{i}", "nomaster")
    if HOW == "pause":
        time.sleep(PAUSE_MS / 1000)
        member[i].send_signal(signal.SIGCONT)
def heal(i):
    if HOW == "kill": member[i].wait(), member_start(i)
    elif HOW == "stop": member[i].send_signal(signal.SIGCONT)
    elif HOW != "pause":
        for n in (77,) if HOW == "silent" else (77, 78): run("ip", "link", "set", f"v{n}.{i}", "master", f"br{n}")

def one_round():
    global other_at
    ids, leader = calm()
    sweep()
    i = in_use()
    if (leader == i) != (ROLE == "leader"):
        to = i if ROLE == "leader" else next(k for k in MEMBERS if k != i)
        run(ETCDCTL, "--endpoints", ",".join(client_at(k) for k in MEMBERS), "move-leader",
            next(f"{k:x}" for k, v in ids.items() if v == to), check=False, stdout=subprocess.DEVNULL)
        ids, leader = calm()
        if in_use() != i or (leader == i) != (ROLE == "leader"): return None
    lost = leader if ROLE == "other" else i
    other_at = next(k for k in MEMBERS if k not in (i, leader))
    time.sleep(0.5 + random.random())
    t0, term0 = time.monotonic(), term()
    lose(lost)
    time.sleep(0.2)
    while time.monotonic() < t0 + 15:
        recent = [bool(d) and d[-1] > t0 + 0.2 for k, d in done.items() if not (IDLE and k in OURS)]
        if all(recent) and time.monotonic() > t0 + 2.5: break
        time.sleep(0.05)
    t1 = time.monotonic()
    row = {k: gap(k, t0, t1) for k in done if not (IDLE and k in OURS)}
    row["terms"], row["moved"] = term() - term0, in_use() != i
    heal(lost)
    return row

def main():
    global other_at
    net_up()
    for i in MEMBERS: member_start(i)
    for k in range(100):
        if roles()[1]: break
        time.sleep(0.2)
    mount_start(M, "strict", ",".join(client_at(i) for i in MEMBERS))
    for i in MEMBERS: mount_start(f"{T}/mnt{i}", "strict", client_at(i))
    os.makedirs(M + "/c", exist_ok=True)
    for name in "read", "save", "other": open(f"{M}/c/{name}", "w").write("still here")
    other_at = 2
    threading.Thread(target=events, daemon=True).start()
    if not IDLE: worker("read", 0.01, read), worker("save", 0.02, save), worker("new", 0.02, new_file), worker("excl", 0.02, excl)
    worker("other", 0.02, other)
    rows = []
    while len(rows) < ROUNDS:
        before, row_start = dict(failed), time.monotonic()
        row = one_round()
        if row is None: continue
        rows.append(row)
        new = {k: v - before.get(k, 0) for k, v in failed.items() if v != before.get(k, 0)}
        if new: new["errors"] = open(M + "/.etcd/errors").read().splitlines()[-3:]
        print(len(rows), " ".join(f"{k} {v:.0f}" if k != "moved" else f"moved {v}" for k, v in row.items()), new or "", flush=True)
        if os.environ.get("KEEP") and max(v for k, v in row.items() if k in done) > int(os.environ["KEEP"]):
            at = tempfile.mkdtemp(prefix="mount-failover-log-", dir=os.environ.get("TMPDIR", "/var/tmp"))
            for i in MEMBERS: shutil.copy(f"{T}/m{i}.log", at)
            print("   logs:", at, "lost at", time.strftime("%H:%M:%S", time.gmtime(time.time() - time.monotonic() + row_start)))
        for d in done.values(): del d[:-5]
    for k in rows[0]:
        if k in ("moved", "terms"): continue
        v = sorted(r[k] for r in rows)
        at = lambda q: v[min(len(v) - 1, int(len(v) * q))]
        print(f"{HOW} {ROLE}{' idle' if IDLE else ''} {PROGRAM} {k}: p50 {at(.5):.0f} p90 {at(.9):.0f} p99 {at(.99):.0f} max {v[-1]:.0f} ms")
    print(f"moved in {sum(r['moved'] for r in rows)} of {len(rows)} rounds; failed: {failed or 'nothing'}")

status_code = 1
try:
    main()
    status_code = 0
except BaseException: traceback.print_exc()
finally:
    for at, p in mounts: subprocess.run(["umount", "-l", at], stderr=subprocess.DEVNULL), p.terminate()
    for p in list(member.values()) + list(net.values()): p.send_signal(signal.SIGCONT), p.kill()
    for at, p in mounts:
        try: p.wait(10)
        except subprocess.TimeoutExpired: p.kill()
    shutil.rmtree(T, ignore_errors=True)
    sys.stdout.flush()
    os._exit(status_code)
