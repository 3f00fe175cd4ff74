# SPDX-License-Identifier: Apache-2.0
# mount_create.py DIR DIR STOP: makes and renames files in one new directory by two mounts of it until the file STOP exists, one of each
# kind and mount at a time; then looks at what is there. The last line is JSON: of each kind how many went well (ok), how many
# somebody else was faster with (lost), in doubt (ETIMEDOUT), other errors, and the slowest in ms. The lines before it each
# say something that must not be: two winners, a file that nobody made, one that is not there, another's value. A kind that
# begins with "both" is one where both mounts want the same name at once. A directory of few files, and one of so many that
# only cairnd's own call moves it, get one name after the other; where that call is not known "lost" counts them.
import errno, json, os, sys, tempfile, threading, time

mounts, stop = sys.argv[1:3], sys.argv[3]  # "mount" is the directory as each of them has it
stopped = lambda: os.path.exists(stop)
results = {}  # results[kind][name][mount] = what came of it: ok, EEXIST, ...
slowest = {}

def attempt(kind, name, i, what):
    t = time.monotonic()
    try:
        what()
        r = "ok"
    except OSError as e: r = errno.errorcode.get(e.errno, str(e.errno))
    slowest[kind] = max(slowest.get(kind, 0), time.monotonic() - t)
    results.setdefault(kind, {}).setdefault(name, {})[i] = r
    return r

def write(path, flags, value):
    f = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    try:
        if value: os.write(f, value.encode())
    finally: os.close(f)

def alone(kind, what):  # what(mount's directory, a name of its own)
    def loop(i):
        n = 0
        while not stopped():
            n += 1
            name = f"{kind}/{i}-{n}"
            attempt(kind, name, i, lambda: what(mounts[i], name))
            time.sleep(0.01)
    return [threading.Thread(target=loop, args=(i,)) for i in (0, 1)]

def both(kind, what, prepare=lambda name: True):
    state = {"go": True, "n": 0}
    def next_one():
        state["n"] += 1
        state["go"] = not stopped() and prepare(f"{kind}/{state['n']}")
    barrier = threading.Barrier(2, action=next_one)
    def loop(i):
        while True:
            barrier.wait()
            if not state["go"]: return
            name = f"{kind}/{state['n']}"
            attempt(kind, name, i, lambda: what(mounts[i], name, i))
    return [threading.Thread(target=loop, args=(i,)) for i in (0, 1)]

def saved_by_rename(m, name):
    f, tmp = tempfile.mkstemp(dir=m + "/" + os.path.dirname(name))
    os.write(f, name.encode())
    os.close(f)
    os.replace(tmp, m + "/" + name)
def source(kind):  # a file to be renamed, made in time; what cannot be made is not counted
    def make(name):
        while not stopped():
            try:
                write(mounts[1] + "/" + name, os.O_TRUNC, name)
                return True
            except OSError: time.sleep(0.1)
        return False
    return make
def renamed(m, name):
    write(m + "/" + name + ".new", os.O_TRUNC, name)
    os.rename(m + "/" + name + ".new", m + "/" + name)

def directory(kind, n_files):  # a directory that the first mount renames; where it is when nobody knows is looked up
    os.makedirs(f"{mounts[0]}/{kind}/0")
    for i in range(n_files): write(f"{mounts[0]}/{kind}/0/{i}", 0, str(i))
    def loop():
        n = at = 0
        while not stopped():
            n += 1
            path = f"{mounts[0]}/{kind}/"
            if attempt(kind, str(n), 0, lambda: os.rename(path + str(at), path + str(n))) != "ok":
                time.sleep(0.3)
                if not os.path.exists(path + str(n)): continue
            at = n
            time.sleep(0.02)
    return [threading.Thread(target=loop)]
directories = {"few": 5, "many": 130}

kinds = ["new", "excl", "mkdir", "replace", "rename", "both_excl", "both_mkdir", "both_claim"]
for k in kinds: os.makedirs(mounts[1] + "/" + k, exist_ok=True)
for m in mounts:
    for k in kinds: os.listdir(m + "/" + k)
threads = (alone("new", lambda m, name: write(m + "/" + name, os.O_TRUNC, name)) +
           alone("excl", lambda m, name: write(m + "/" + name, os.O_EXCL, name)) +
           alone("mkdir", lambda m, name: os.mkdir(m + "/" + name)) +
           alone("replace", saved_by_rename) + alone("rename", renamed) +
           both("both_excl", lambda m, name, i: write(m + "/" + name, os.O_EXCL, None)) +
           both("both_mkdir", lambda m, name, i: os.mkdir(m + "/" + name)) +
           both("both_claim", lambda m, name, i: os.rename(m + "/" + name, m + "/" + name + "." + str(i)), source("both_claim")))
for kind, n in directories.items(): threads += directory(kind, n)
for t in threads: t.start()
for t in threads: t.join()

# ---- what is there --------------------------------------------------------------------------------------------------------
m = mounts[1]
def value(name):
    try:
        with open(m + "/" + name) as f: return f.read()
    except FileNotFoundError: return None
def look():
    wrong = []
    for kind, n in directories.items():
        names = os.listdir(f"{m}/{kind}")
        held = {name: len(os.listdir(f"{m}/{kind}/{name}")) for name in names}
        if list(held.values()) != [n]: wrong.append(f"{kind}: {held}, not {n} files in one directory")
    there = {k: set(os.listdir(m + "/" + k)) for k in kinds}
    for kind in kinds:
        for name, by in results.get(kind, {}).items():
            won, doubts = [i for i in by if by[i] == "ok"], [i for i in by if by[i] == "ETIMEDOUT"]
            exists = os.path.basename(name) in there[kind]
            if kind == "both_claim":
                taken = [i for i in (0, 1) if value(f"{name}.{i}") == name]
                if len(won) > 1 or len(taken) != 1 or exists or (won and taken != won) or (not won and taken[0] not in doubts):
                    wrong.append(f"{name}: {by}, taken by {taken}, the source {'there' if exists else 'gone'}")
            elif len(won) > 1 or (won and not exists) or (exists and not won and not doubts):
                wrong.append(f"{name}: {by}, {'there' if exists else 'not there'}")
            if not kind.startswith("both") and kind != "mkdir" and won and value(name) != name:
                wrong.append(f"{name}: {by}, holds {value(name)!r}")
    return wrong
# What one mount did last comes to the other one's listings by its watch: a moment later.
until, first = time.monotonic() + 10, look()
while (wrong := look()) and time.monotonic() < until: time.sleep(0.1)
for w in first[:20]: print("AT FIRST", w)
for w in wrong[:20]: print("WRONG", w)
table = {}
for kind in kinds + list(directories):
    all_of = [r for by in results.get(kind, {}).values() for r in by.values()]
    usual = {"both_excl": "EEXIST", "both_mkdir": "EEXIST", "both_claim": "ENOENT", "many": "EXDEV"}.get(kind, "")
    table[kind] = {"ok": all_of.count("ok"), "lost": all_of.count(usual), "doubt": all_of.count("ETIMEDOUT"),
                   "errors": sorted({r for r in all_of if r not in ("ok", usual, "ETIMEDOUT")}), "ms": round(slowest.get(kind, 0) * 1000)}
print(json.dumps({"wrong": len(wrong), "slowest": max(k["ms"] for k in table.values()), **table}))
