# SPDX-License-Identifier: Apache-2.0
# mount_cluster.py MOUNT STOP: works on the mount until the file STOP exists, then says in one line of JSON what happened:
#   reads, saves   how many went well, which errors (errno: count), and the slowest in ms
#   gap_ms         the longest time between two saves that went well
#   events, twice, backwards   of c/save in .etcd/events: how many, told twice, out of order
import errno, json, os, sys, threading, time

mount, stop = sys.argv[1:]
stopped = lambda: os.path.exists(stop)
done = {"reads": 0, "read_errors": {}, "slowest_read": 0.0, "saves": 0, "save_errors": {}, "slowest_save": 0.0, "gap": 0.0,
        "events": 0, "twice": 0, "backwards": 0, "last": 0}

def count(table, e):
    name = errno.errorcode.get(e.errno, str(e.errno))
    table[name] = table.get(name, 0) + 1

def reads():
    while not stopped():
        t = time.monotonic()
        try:
            with open(mount + "/c/read") as f: assert f.read() == "still here", "another value"
            done["reads"] += 1
        except OSError as e: count(done["read_errors"], e)
        done["slowest_read"] = max(done["slowest_read"], time.monotonic() - t)
        time.sleep(0.01)

def saves():
    n, last = 0, time.monotonic()
    while not stopped():
        n += 1
        t = time.monotonic()
        try:
            f = os.open(mount + "/c/save", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                os.write(f, str(n).encode())
            finally:
                os.close(f)
            now = time.monotonic()
            done["saves"] += 1
            done["gap"] = max(done["gap"], now - last)
            last = now
        except OSError as e: count(done["save_errors"], e)
        done["slowest_save"] = max(done["slowest_save"], time.monotonic() - t)
        time.sleep(0.02)
    done["gap"] = max(done["gap"], time.monotonic() - last)

def events():
    seen, last = set(), 0
    f = os.open(mount + "/.etcd/events/c/.all", os.O_RDONLY)
    rest = b""
    while True:
        rest += os.read(f, 65536)
        *lines, rest = rest.split(b"\n")
        for line in lines:
            e = json.loads(line)
            if e.get("key") != "c/save": continue
            rev = e["revision"]
            done["events"] += 1
            done["twice"] += rev in seen
            done["backwards"] += rev < last
            seen.add(rev)
            last = done["last"] = rev

threading.Thread(target=events, daemon=True).start()
time.sleep(0.3)  # the stream has begun before the first save: its own check is the count, which would differ
workers = [threading.Thread(target=f) for f in (reads, saves)]
for w in workers: w.start()
for w in workers: w.join()
end = time.monotonic() + 10
version = int(os.environ.get("VERSION", "0"))
quiet = 0
while quiet < 5 and time.monotonic() < end:  # the last events are on their way
    before = done["events"]
    time.sleep(0.1)
    quiet = quiet + 1 if done["events"] == before else 0
for k in "slowest_read", "slowest_save", "gap": done[k + "_ms"] = round(done.pop(k) * 1000)
print(json.dumps(done))
os._exit(0)
