#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: what the mount shows is what the store holds, whatever happened in between. Random changes made elsewhere (keys
# that are also directories, empty parts, markers, prefixes deleted) leave the same tree as a mount made afterwards
# would show; times move with every revision; the kernel never keeps an old size or value; a server that is
# away leaves reads working and is found again by itself; a watch that fell behind a compaction is made good,
# with the events of the difference.
# shellcheck source=tests/e2e/mount_lib.sh
. "$(dirname "$0")/mount_lib.sh"

# The tree as a list: kind, path, size, content.
picture() {
    (cd "$1" && find . -mindepth 1 -printf '%y %P\n' | LC_ALL=C sort && find . -type f -print0 | LC_ALL=C sort -z |
        xargs -0r sha256sum)
}
same_picture() { [ "$(picture "$M")" = "$(picture "$M.fresh")" ]; }

# random_changes N SEED: N transactions of random puts and deletes, as etcdctl's input on one line each.
random_changes() {
    python3 - "$1" "$2" "$EP" <<'P'
import random, subprocess, sys
n, seed, ep = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
r = random.Random(seed)
parts = ["a", "b", "a-x", "", ".value", ".etcd", "%", "deep", "a.y"]
def key():
    k = "/".join(r.choice(parts) for _ in range(r.randint(1, 4)))
    return "w/" + k
for _ in range(n):
    if r.random() < 0.08:
        subprocess.run(["etcdctl", "--endpoints", ep, "del", "--prefix", key() + "/"], check=True, stdout=subprocess.DEVNULL)
        continue
    ops = {}
    for _ in range(r.randint(1, 30)):
        k = key()
        ops[k] = f'del {k}' if r.random() < 0.35 else f'put {k} "{"" if r.random() < 0.2 else "v" * r.randint(1, 50)}"'
    text = "\n" + "\n".join(ops.values()) + "\n\n\n"
    subprocess.run(["etcdctl", "--endpoints", ep, "txn"], input=text, text=True, check=True, stdout=subprocess.DEVNULL)
P
}
follows_random_changes() {
    local seed=${SEED:-$RANDOM}
    echo "# SEED=$seed" >&2
    random_changes 40 "$seed" || return 1
    find "$M" >/dev/null
    for round in 1 2 3; do
        random_changes 40 "$((seed + round))" || return 1
        mount_at "$M.fresh" '' || return 1
        await 10 same_picture
        local ok=$?
        [ $ok = 0 ] || diff <(picture "$M") <(picture "$M.fresh") | head -n 20
        unmount_at "$M.fresh"
        [ $ok = 0 ] || return 1
    done
}

mtime_ns() { stat -c %.9Y "$1"; }
times_move() {
    local old new i
    ctl put t/k 0 >/dev/null && old=$(mtime_ns "$M/t/k") || return 1
    for i in 1 2 3 4 5; do
        ctl put t/k "$((i % 2))" >/dev/null
        cat "$M/t/k" >/dev/null
        new=$(mtime_ns "$M/t/k")
        [[ $new > $old ]] || { echo "mtime stood still: $old $new"; return 1; }
        old=$new
    done
}

# Many changes of few keys; after the last one no stat and no read is old, with the kernel's caches warm.
nothing_stale() {
    local i k
    for k in 1 2 3 4; do ctl put "n/k$k" x >/dev/null; done
    for i in $(seq 25); do
        for k in 1 2 3 4; do
            ctl put "n/k$k" "$(head -c "$i" /dev/zero | tr '\0' "$k")" >/dev/null &
        done
        cat "$M"/n/* >/dev/null
        stat "$M"/n/* >/dev/null
        wait
    done
    for k in 1 2 3 4; do
        same "$(cat "$M/n/k$k" | wc -c)" 25 || return 1
        await 5 eval '[ "$(stat -c %s "$M/n/k'$k'")" = 25 ]' || { stat "$M/n/k$k"; return 1; }
    done
}
fstat_fits() { # what fstat says of an open file is the size of what is read from it
    ctl put ff/k 1 >/dev/null && cat "$M/ff/k" >/dev/null || return 1
    python3 - "$M/ff/k" "$EP" <<'P'
import os, subprocess, sys
for i in range(1, 30):
    subprocess.run(["etcdctl", "--endpoints", sys.argv[2], "put", "ff/k", "x" * i], check=True, stdout=subprocess.DEVNULL)
    f = os.open(sys.argv[1], os.O_RDONLY)
    size = os.fstat(f).st_size
    data = os.read(f, 1000)
    os.close(f)
    assert size == len(data) == i, (size, len(data), i)
P
}

server_away() {
    ctl put away/a 1 >/dev/null && ctl put away/b 2 >/dev/null && ls "$M/away" >/dev/null && cat "$M"/away/* >/dev/null || return 1
    server_kill
    same "$(timeout 5 cat "$M/away/a")" 1 && same "$(timeout 5 ls "$M/away" | tr '\n' ' ')" "a b " || return 1
    if timeout 15 sh -c "echo 3 >$M/away/a"; then
        echo "a write succeeded without a server"
        cat "$M/.etcd/errors" "$M/.etcd/status"
        return 1
    fi
    server_start || return 1
    ctl put away/a 9 >/dev/null
    await 10 eval '[ "$(cat "$M/away/a")" = 9 ]' && echo 5 >"$M/away/b" && same "$(value away/b)" 5
}
# A stopped server is worse than a dead one: nothing says that it is gone.
server_stopped() {
    ctl put st/a 1 >/dev/null && cat "$M/st/a" >/dev/null || return 1
    kill -STOP "$SERVER_PID"
    timeout 8 cat "$M/st/a" >"$T/out"
    timeout 8 cat "$M/st/a" >>"$T/out"
    kill -CONT "$SERVER_PID"
    same "$(tr '\n' ' ' <"$T/out")" "11" || return 1
    ctl put st/a 22 >/dev/null
    await 10 eval '[ "$(cat "$M/st/a")" = 22 ]'
}

gap_is_made_good() {
    local port=$PORT ep=$EP
    command -v inotifywait >/dev/null || return 0
    ctl put g/kept 1 >/dev/null && ctl put g/changed 1 >/dev/null && ctl put g/gone 1 >/dev/null && ctl put g/dir/x 1 >/dev/null
    find "$M/g" -type f -exec cat {} + >/dev/null
    timeout 60 inotifywait -q -m -r --format '%e %w%f' "$M/g" >"$T/events" 2>/dev/null &
    local watcher=$!
    await 10 eval 'grep -qs "^inotify.*" /proc/'$watcher'/fdinfo/* && ls -d "$M/g/dir" >/dev/null'
    server_kill
    PORT=$((PORT + 2)) EP=127.0.0.1:$((port + 2)) # where the mount does not look
    server_start || return 1
    ctl put g/changed 22 >/dev/null && ctl del g/gone >/dev/null && ctl put g/new 1 >/dev/null && ctl del g/dir/x >/dev/null
    ctl compact "$(revision)" >/dev/null || return 1
    server_kill
    PORT=$port EP=$ep
    server_start || return 1
    await 15 eval '[ "$(ls "$M/g" | tr "\n" " ")" = "changed kept new " ]' || { ls "$M/g"; return 1; }
    same "$(cat "$M/g/changed")" 22 && same "$(stat -c %s "$M/g/changed")" 2 || return 1
    grep -q '"gaps": 1' "$M/.etcd/status" || { cat "$M/.etcd/status"; return 1; }
    await 10 eval 'grep -q "^DELETE $M/g/gone$" "$T/events" && grep -q "^CREATE $M/g/new$" "$T/events" &&
        grep -q "^MODIFY $M/g/changed$" "$T/events" && grep -q "^DELETE,ISDIR $M/g/dir$" "$T/events"'
    local ok=$?
    kill "$watcher"
    grep -q kept "$T/events" && { echo "an event for what did not change"; ok=1; }
    [ $ok = 0 ] || cat "$T/events"
    return $ok
}

# As check, but in this shell: these restart the server, and its pid must not be lost with a subshell.
check_here() {
    local name=$1
    shift
    if "$@" >"$T/here" 2>&1; then say_ok "$name"; else say_bad "$name"; sed 's/^/#   /' "$T/here" | tail -n 20; fi
}

run() {
    check "a mount that followed random changes shows what a fresh one shows" follows_random_changes
    check "times move with every revision" times_move
    check "no stat and no read is old" nothing_stale
    check "fstat fits what is read" fstat_fits
    check_here "a dead server: reads go on, and all recovers" server_away
    check_here "a stopped server: reads go on, and all recovers" server_stopped
    check_here "a watch that fell behind a compaction is made good" gap_is_made_good
}
mount_main run
