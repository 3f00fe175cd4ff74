#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""mount_save.py - saves a file in many ways and looks at what the store and other readers saw.

usage: mount_save.py LABEL MOUNT SECOND-MOUNT ENDPOINT SCRATCH [CASE...]
Each case gets a key of its own, with a value and (unless it is about a new file) a lease. Exit 1: a case failed.
"""
import base64, json, os, pty, select, shutil, subprocess, sys, threading, time

label, mount, mount2, endpoint, scratch = sys.argv[1:6]
only = set(sys.argv[6:])
env = dict(os.environ, ETCDCTL_API="3", HOME=scratch, TERM="vt100", LC_ALL="C")

OLD = "".join("line %d of the old value\n" % i for i in range(20))
SRC = "".join("line %d, and it is new\n" % i for i in range(30))
BIG = "".join("%07d bytes in\n" % (i * 16) for i in range(300000 // 16))


def ctl(*args, data=None):
    r = subprocess.run(["etcdctl", "--endpoints", endpoint, *args], env=env, input=data, capture_output=True, timeout=20)
    assert r.returncode == 0, (args, r.stderr)
    return r.stdout


def get(key):
    kvs = json.loads(ctl("get", key, "-w", "json")).get("kvs")
    if not kvs:
        return None
    kv = kvs[0]
    return {"value": base64.b64decode(kv.get("value", "")).decode(), "lease": kv.get("lease", 0),
            "create": kv["create_revision"], "mod": kv["mod_revision"], "version": kv["version"]}


def revision():
    return json.loads(ctl("get", "sentinel", "-w", "json"))["header"]["revision"]


def history(first, last):
    """All events of revisions first..last as (type, key, value)."""
    if last < first:
        return []
    p = subprocess.Popen(["etcdctl", "--endpoints", endpoint, "watch", "", "--prefix", "--rev", str(first), "-w", "json"],
                         env=env, stdout=subprocess.PIPE)
    events = []
    try:
        while True:
            ready, _, _ = select.select([p.stdout], [], [], 15)
            assert ready, "the watch says nothing"
            msg = json.loads(p.stdout.readline())
            for e in msg.get("Events") or []:
                kv = e["kv"]
                events.append((("DELETE" if e.get("type") else "PUT"), base64.b64decode(kv["key"]).decode(),
                               base64.b64decode(kv.get("value", "")).decode()))
                if kv["mod_revision"] >= last:
                    done = True
                else:
                    done = False
            if events and done:
                return events
    finally:
        p.kill()
        p.wait()


class Reader(threading.Thread):
    """Reads the file over and over, on both mounts, and remembers what it saw."""

    def __init__(self, name):
        super().__init__()
        self.paths = [os.path.join(m, name) for m in (mount, mount2)]
        self.seen, self.stop = set(), False

    def run(self):
        while not self.stop:
            for path in self.paths:
                try:
                    with open(path, "rb", 0) as f:
                        self.seen.add(f.read().decode())
                except FileNotFoundError:
                    self.seen.add(None)
                except OSError as e:
                    self.seen.add("error %s" % e)
            time.sleep(0.002)  # leave the processor to the program under test


def at_terminal(argv, keys, cwd):
    """Runs an editor at a pseudo-terminal and types keys once it has drawn something."""
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execvpe(argv[0], argv, env)
    end = time.time() + 20
    typed = False
    while time.time() < end:
        ready, _, _ = select.select([fd], [], [], 0.3)
        if ready:
            try:
                if not os.read(fd, 65536):
                    break
            except OSError:
                break
        elif not typed and keys:
            os.write(fd, keys)
            typed = True
    else:
        os.kill(pid, 9)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def py(code):
    return "python3 - k <<'PY'\nimport sys, os\np = sys.argv[1]\n" + code + "\nPY\n"


def vim(settings):
    return lambda d: at_terminal(["vim", "-N", "-u", "NONE", "-i", "NONE"] + sum((["--cmd", "set " + s] for s in settings), []) +
                                 ["-c", "%s/old/NEW/", "-c", "wq", "k"], b"", d)


def nano(d):
    return at_terminal(["nano", "k"], b"typed\x0f\r\x18", d)


# name: (command or function, revisions, expected content or None (= whatever the file then holds), options)
#   new: the key does not exist before.  between: further values that readers may see.  keys: further names allowed in the store.
#   lease: whether lease and create_revision must be kept (default: unless new).
CASES = {
    "echo": ("echo new >k", 1, "new\n", {}),
    "echo to a new file": ("echo new >k", 1, "new\n", {"new": 1}),
    "printf": ("printf '%s' \"$(cat $SRC)\" >k", 1, SRC[:-1], {}),
    "dash echo": ("dash -c 'echo new >k'", 1, "new\n", {}),
    "here document": ("cat >k <<X\nnew\nX", 1, "new\n", {}),
    "truncation alone": (": >k", 1, "", {}),
    "cat": ("cat $SRC >k", 1, SRC, {}),
    "cat, 300 KB": ("cat $BIG >k", 1, BIG, {}),
    "awk": ("awk '{print}' $BIG >k", 1, BIG, {}),
    "jq": ("echo '{\"a\":1}' | jq . >k", 1, '{\n  "a": 1\n}\n', {}),
    "dd": ("dd if=$SRC of=k status=none", 1, SRC, {}),
    "dd bs=512": ("dd if=$SRC of=k bs=512 status=none", 1, SRC, {}),
    "dd notrunc bs=1": ("printf abc | dd of=k bs=1 conv=notrunc status=none", 1, "abc" + OLD[3:], {}),
    "head": ("head -c 100 $SRC >k", 1, SRC[:100], {}),
    "tr": ("tr a-z A-Z <$SRC >k", 1, SRC.upper(), {}),
    "sort -o itself": ("sort -o k k", 1, "".join(sorted(OLD.splitlines(True))), {}),
    "three echos in braces": ("{ echo a; echo b; echo c; } >k", 1, "a\nb\nc\n", {}),
    "two commands in a subshell": ("( echo a; /bin/echo b ) >k", 1, "a\nb\n", {}),
    "loop of ten commands": ("for i in 1 2 3 4 5 6 7 8 9 10; do /bin/echo $i; done >k", 1, None, {}),
    "slow pipe into cat": ("( echo a; sleep 0.2; echo b; sleep 0.2; echo c ) | cat >k", 1, "a\nb\nc\n", {}),
    "slow pipe into tee": ("( echo a; sleep 0.2; echo b; sleep 0.2; echo c ) | tee k >/dev/null", 1, "a\nb\nc\n", {}),
    "tee": ("tee k <$SRC >/dev/null", 1, SRC, {}),
    "tee, 300 KB": ("tee k <$BIG >/dev/null", 1, BIG, {}),
    "descriptor with one echo": ("exec 3>k; echo new >&3; exec 3>&-", 1, "new\n", {}),
    "descriptor with two echos": ("exec 3>k; echo a >&3; echo b >&3; exec 3>&-", 2, "a\nb\n", {"between": ["a\n"]}),
    "append": ("echo new >>k", 1, OLD + "new\n", {}),
    "append to a new file": ("echo new >>k", 1, "new\n", {"new": 1}),
    "three appends": ("echo a >>k; echo b >>k; echo c >>k", 3, OLD + "a\nb\nc\n",
                      {"between": [OLD + "a\n", OLD + "a\nb\n"]}),
    "truncate -s": ("truncate -s 5 k", 1, OLD[:5], {}),
    "python": (py("open(p, 'w').write(open(os.environ['SRC']).read())"), 1, SRC, {}),
    "python, five flushes": (py("f = open(p, 'w')\nfor i in range(5):\n    f.write('%d\\n' % i)\n    f.flush()\nf.close()"), 1,
                             "0\n1\n2\n3\n4\n", {}),
    "python, three os.write": (py("f = os.open(p, os.O_WRONLY | os.O_TRUNC)\nfor i in range(3):\n    os.write(f, b'%d\\n' % i)\n"
                                  "os.close(f)"), 1, "0\n1\n2\n", {}),
    "python with fsync": (py("f = open(p, 'w')\nf.write('new')\nf.flush()\nos.fsync(f.fileno())\nf.close()"), 1, "new", {}),
    "python in place": (py("f = open(p, 'r+b')\nf.seek(5)\nf.write(b'XY')\nf.close()"), 1, OLD[:5] + "XY" + OLD[7:], {}),
    "python through mmap": (py("import mmap\nf = open(p, 'r+b')\nm = mmap.mmap(f.fileno(), 0)\nm[0:4] = b'LINE'\nm.flush()\nm.close()\n"
                               "f.close()"), 1, "LINE" + OLD[4:], {}),
    "mkstemp and replace": (py("import tempfile\nfd, t = tempfile.mkstemp(dir='.')\nos.write(fd, b'new')\nos.fsync(fd)\n"
                               "os.close(fd)\nos.replace(t, p)"), 1, "new", {}),
    "NamedTemporaryFile and replace": (py("import tempfile\nwith tempfile.NamedTemporaryFile('w', dir='.', delete=False) as f:\n"
                                          "    f.write('new')\nos.replace(f.name, p)"), 1, "new", {}),
    "perl": ("perl -e 'open F, \">k\"; print F \"new\\n\"; close F'", 1, "new\n", {}),
    "perl -i": ("perl -i -pe s/old/NEW/ k", 1, OLD.replace("old", "NEW"), {}),
    "sed -i": ("sed -i s/old/NEW/ k", 1, OLD.replace("old", "NEW"), {}),
    "ed": ("printf '%s\\n' 1,\\$s/old/NEW/ w q | ed -s k", 1, OLD.replace("old", "NEW"), {}),
    "curl -o": ("curl -s -o k file://$SRC", 1, SRC, {}),
    "cp over a key": ("cp $SRC k", 1, SRC, {}),
    "cp --remove-destination": ("cp --remove-destination $SRC k", 3, SRC, {"lease": 0, "between": [None, ""]}),
    "rsync": ("rsync $SRC k", 1, SRC, {}),
    "rsync -W --checksum": ("rsync -W --checksum $SRC k", 1, SRC, {}),
    "rsync --inplace": ("rsync --inplace $SRC k", 1, SRC, {}),
    "rsync to a new file": ("rsync $SRC k", 1, SRC, {"new": 1}),
    "vim": (vim([]), 1, OLD.replace("old", "NEW"), {}),
    "vim backup": (vim(["backup", "writebackup"]), 1, OLD.replace("old", "NEW"), {"overlay": 1}),
    "vim nowritebackup": (vim(["nobackup", "nowritebackup"]), 1, OLD.replace("old", "NEW"), {}),
    "vim backupcopy=no": (vim(["backupcopy=no"]), 1, OLD.replace("old", "NEW"), {"between": [None]}),
    "nano": (nano, 1, None, {}),
    "sponge": ("sed s/old/NEW/ k | sponge k", 1, OLD.replace("old", "NEW"), {"needs": "sponge"}),
    "cp to a new file": ("cp $SRC k", 2, SRC, {"new": 1, "between": [""]}),
    "cp -p to a new file": ("cp -p $SRC k", 2, SRC, {"new": 1, "between": [""]}),
    "mv from elsewhere": ("cp $SRC $SRC.mv; mv $SRC.mv k", 2, SRC, {"new": 1, "between": [""]}),
    "tar x": ("tar c -C $(dirname $SRC) --transform 's/.*/k/' $(basename $SRC) | tar x --no-same-owner -m", 2, SRC,
              {"new": 1, "between": [""]}),
    "install over a key": ("install -m 644 $SRC k", 3, SRC, {"lease": 0, "between": [None, ""], "rc": 1}),  # it also sets a mode, which is refused
    "git config": ("git config -f k user.name me", 3, None, {"keys": ["k.lock"], "init": "[user]\n\tname = you\n"}),
    "patch": ("printf '%s\\n' '--- k' '+++ k' '@@ -1 +1 @@' '-line 0 of the old value' '+patched' | patch -s k", 3,
              None, {"loose": 1}),
}


def run_case(number, name):
    command, revisions, content, opt = CASES[name]
    if opt.get("needs") and not shutil.which(opt["needs"]):
        return None
    d = "save%d" % number
    key = d + "/k"
    old = None if opt.get("new") else opt.get("init", OLD)
    lease = ctl("lease", "grant", "3600").split()[1].decode()
    ctl("put", d + "/other", "1")
    if old is not None:
        ctl("put", key, old, "--lease", lease)
    before = get(key)
    os.listdir(os.path.join(mount, d)), os.listdir(os.path.join(mount2, d))
    reader = Reader(key)
    reader.start()
    first = revision() + 1
    try:
        cwd = os.path.join(mount, d)
        if callable(command):
            rc = command(cwd)
        else:
            e = dict(env, SRC=scratch + "/src", BIG=scratch + "/big")
            r = subprocess.run(["bash", "-c", command], cwd=cwd, env=e, capture_output=True, timeout=30)
            rc = (r.returncode, r.stderr) if r.returncode else 0
        with open(os.path.join(mount, key)) as f:
            local = f.read()
    finally:
        time.sleep(0.05)  # the reader's last look: it must see the end, too
        reader.stop = True
        reader.join()
    last = revision()
    after = get(key)
    events = history(first, last)
    problems = []
    if rc and opt.get("rc") != (rc if isinstance(rc, int) else rc[0]):
        problems.append("the command ended with %r" % (rc,))
    if last - first + 1 != revisions:
        problems.append("%d revisions, not %d: %r" % (last - first + 1, revisions, [(t, k, v[:30]) for t, k, v in events]))
    if after is None:
        return problems + ["no such key at the end"]
    if content is not None and after["value"] != content:
        problems.append("content %r, not %r" % (after["value"][:80], content[:80]))
    if local != after["value"]:
        problems.append("the mount shows %r, the store has %r" % (local[:60], after["value"][:60]))
    if before and opt.get("lease", 1) and (after["lease"], after["create"]) != (before["lease"], before["create"]):
        problems.append("lease or create_revision lost: %r, before %r" % (after, before))
    allowed = {key} | {d + "/" + k for k in opt.get("keys", [])}
    foreign = {k for _, k, _ in events} - allowed
    if foreign and not opt.get("loose"):
        problems.append("names in the store: %r" % foreign)
    values = {old, after["value"]} | set(opt.get("between", []))
    if not opt.get("loose"):
        odd = reader.seen - values
        if odd:
            problems.append("readers saw %r" % [None if v is None else v[:60] for v in odd])
        odd = {v for t, k, v in events if k == key and t == "PUT"} - values
        if odd:
            problems.append("the store had %r" % [v[:60] for v in odd])
    return problems


def main():
    os.makedirs(scratch, exist_ok=True)
    open(scratch + "/src", "w").write(SRC)
    open(scratch + "/big", "w").write(BIG)
    failed = 0
    for number, name in enumerate(CASES):
        if only and name not in only:
            continue
        try:
            problems = run_case(number, name)
        except Exception as e:  # one case that breaks must not hide the others
            problems = [repr(e)]
        if problems is None:
            print("# %s: %s: not installed" % (label, name))
        elif problems:
            failed += 1
            print("not ok - %s: %s" % (label, name))
            for p in problems:
                print("#   " + p)
        else:
            print("ok - %s: %s" % (label, name))
        sys.stdout.flush()
    return 1 if failed else 0


sys.exit(main())
