#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: a large directory is listed whole, always: 20,000 files beside 500 subdirectories, cold, warm, with the
# kernel's cache dropped half way, and while names come and go; no name that stayed is ever missing or twice.
# shellcheck source=tests/e2e/mount_lib.sh
. "$(dirname "$0")/mount_lib.sh"

FILES=20000 DIRS=500

fill() {
    python3 - "$EP" $FILES $DIRS <<'P'
import subprocess, sys
ep, files, dirs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
keys = [f"big/f{i}" for i in range(files)] + [f"big/d{i % dirs}/x{i}" for i in range(dirs * 6)]
for i in range(0, len(keys), 128):
    text = "\n" + "".join(f'put {k} "v{k}"\n' for k in keys[i:i + 128]) + "\n\n"
    subprocess.run(["etcdctl", "--endpoints", ep, "txn"], input=text, text=True, check=True, stdout=subprocess.DEVNULL)
P
}
whole() { same "$(ls -f "$M/big" | grep -c '^[fd]')" $((FILES + DIRS)); }
cold_and_warm() { whole && whole && same "$(find "$M/big" -mindepth 1 -maxdepth 1 -type d | wc -l)" $DIRS; }
cache_dropped() {
    local i
    for i in 1 2 3; do
        echo 2 >/proc/sys/vm/drop_caches
        whole || return 1
    done
}
# getdents by hand, with everything dropped between two calls, and names coming and going in between.
while_it_changes() {
    timeout 100 python3 - "$M/big" "$EP" $((FILES + DIRS)) <<'P'
import ctypes, os, subprocess, sys
path, ep, want = sys.argv[1], sys.argv[2], int(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
buf = ctypes.create_string_buffer(32768)
for turn in range(2):
    fd, names, calls = os.open(path, os.O_RDONLY), [], 0
    while True:
        n = libc.syscall(217, fd, buf, len(buf))  # getdents64
        assert n >= 0, os.strerror(ctypes.get_errno())
        if n == 0:
            break
        at = 0
        while at < n:
            size = int.from_bytes(buf.raw[at + 16:at + 18], "little")
            names.append(buf.raw[at + 19:at + size].split(b"\0")[0])
            at += size
        calls += 1
        if calls % 8 == 0:
            open("/proc/sys/vm/drop_caches", "w").write("2")
            op = ["put", f"big/tmp{calls}", "x"] if turn == 0 else ["del", f"big/tmp{calls}"]
            subprocess.run(["etcdctl", "--endpoints", ep] + op, check=True, stdout=subprocess.DEVNULL)
    os.close(fd)
    stayed = [n for n in names if n[:1] in (b"f", b"d")]
    assert len(names) == len(set(names)), "a name came twice"
    assert len(stayed) == want, (len(stayed), want)
P
}
every_file() { same "$(cat "$M"/big/f1??? | tr v '\n' | grep -c big)" 1000; }

run() {
    check "fill" fill
    check "all names are there, cold and warm" cold_and_warm
    check "all names are there after the kernel dropped its cache" cache_dropped
    check "all names are there while names come and go" while_it_changes
    check "each file has its value" every_file
}
mount_main run
