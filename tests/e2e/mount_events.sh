#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: what changes in the store elsewhere reaches inotify in the mount, one for one, in order, never before a read shows
# it; what is changed through the mount itself is not told twice; a watch on one file sees its saves; a stream misses nothing.
# shellcheck source=tests/e2e/mount_lib.sh
. "$(dirname "$0")/mount_lib.sh"

watch_start() { # DIRECTORY [OPTIONS]: a recursive watch; its lines are "EVENTS path" in $T/seen
    : >"$T/seen"
    inotifywait -q -m -r --format '%e %w%f' ${2:-} "$1" >>"$T/seen" 2>"$T/watch.err" &
    WATCH=$!
    disown "$WATCH"
    await 10 eval 'grep -qs "^inotify" /proc/$WATCH/fdinfo/* && [ "$(grep -h "^inotify" /proc/$WATCH/fdinfo/* | wc -l)" -ge '"${3:-1}"' ]'
}
watch_stop() { kill "$WATCH" 2>/dev/null; await 5 not_running "$WATCH"; }
# What was seen, without the mount's own path, reads and opens left out.
seen() { sed "s|$M/||" "$T/seen" | grep -vE '^(OPEN|ACCESS|CLOSE_NOWRITE)' | tr '\n' ';'; }
# expect_seen LINE;LINE;...: waits until exactly these have come, in this order; then, that a sentinel's are the next.
expect_seen() {
    local want=$1
    await 8 eval '[ "$(seen)" = "$want" ]' || true
    ctl put in/sentinel 1 >/dev/null
    await 8 grep -q sentinel "$T/seen"
    same "$(sed "s|$M/||" "$T/seen" | sed '/sentinel/,$d' | grep -vE '^(OPEN|ACCESS|CLOSE_NOWRITE)' | tr '\n' ';')" "$1"
    local rc=$?
    # Its own end is waited for: else it comes late, under load, and is the first that the next test's watch sees.
    ctl del in/sentinel >/dev/null && await 8 grep -q "DELETE.*sentinel" "$T/seen" || rc=1
    [ $rc = 0 ] || { cat "$T/seen" "$M/.etcd/status"; }
    return $rc
}
prepare() { ctl put in/old v1 >/dev/null && ctl put in/sub/deep 1 >/dev/null && ctl put in/gone 1 >/dev/null && ls -R "$M/in" >/dev/null; }

create() { watch_start "$M/in" "" 2 && ctl put in/new v >/dev/null && expect_seen "CREATE in/new;CLOSE_WRITE,CLOSE in/new;"; local rc=$?; watch_stop; return $rc; }
create_empty() { watch_start "$M/in" "" 2 && ctl put in/empty "" >/dev/null && expect_seen "CREATE in/empty;"; local rc=$?; watch_stop; return $rc; }
modify() { watch_start "$M/in" "" 2 && ctl put in/old v2 >/dev/null && expect_seen "MODIFY in/old;CLOSE_WRITE,CLOSE in/old;"; local rc=$?; watch_stop; return $rc; }
delete() { watch_start "$M/in" "" 2 && ctl del in/gone >/dev/null && expect_seen "DELETE in/gone;"; local rc=$?; watch_stop; return $rc; }
new_directory() { watch_start "$M/in" "" 2 && ctl put in/dir/x 1 >/dev/null && await 8 grep -q "CREATE,ISDIR $M/in/dir" "$T/seen" && ctl del in/dir/x >/dev/null && await 8 grep -q "DELETE,ISDIR $M/in/dir" "$T/seen"; local rc=$?; watch_stop; return $rc; }
move() {
    watch_start "$M/in" "" 2
    ctl put in/from same >/dev/null && await 8 grep -q "CLOSE_WRITE.*in/from" "$T/seen" && cat "$M/in/from" >/dev/null
    : >"$T/seen"
    mv "$M.2/in/from" "$M.2/in/to" && expect_seen "MOVED_FROM in/from;MOVED_TO in/to;"
    local rc=$?
    watch_stop
    return $rc
}
attrib() {
    local lease rc
    lease=$(ctl lease grant 1000 | cut -d' ' -f2)
    watch_start "$M/in" "" 2 && ctl put in/old v2 --lease="$lease" >/dev/null && expect_seen "ATTRIB in/old;"
    rc=$?
    watch_stop
    return $rc
}
expiry() {
    local lease rc
    lease=$(ctl lease grant 1 | cut -d' ' -f2)
    ctl put in/leased v --lease="$lease" >/dev/null && await 5 test -e "$M/in/leased"
    watch_start "$M/in" "" 2 && await 12 grep -q "DELETE $M/in/leased" "$T/seen"
    rc=$?
    watch_stop
    return $rc
}
own_once() { # the kernel tells of local calls by itself; nothing is added
    watch_start "$M/in" "" 2
    echo a >"$M/in/own" && rm "$M/in/own" && expect_seen "CREATE in/own;MODIFY in/own;CLOSE_WRITE,CLOSE in/own;DELETE in/own;"
    local rc=$?
    watch_stop
    return $rc
}
many() { # 200 keys: each created once, deleted once
    local i rc
    watch_start "$M/in" "" 2
    for i in $(seq 200); do printf 'put in/many%s v\n' "$i"; done | timeout 60 xargs -L 40 -P 1 bash -c 'while [ $# -gt 0 ]; do etcdctl --endpoints="'"$EP"'" put "$2" "$3" >/dev/null; shift 3; done' _
    ctl del in/many --prefix >/dev/null
    await 20 eval '[ "$(grep -c "DELETE $M/in/many" "$T/seen")" = 200 ]'
    same "$(grep -c "CREATE $M/in/many" "$T/seen") $(grep -c "DELETE $M/in/many" "$T/seen")" "200 200"
    rc=$?
    watch_stop
    return $rc
}
# A whole tree deleted at once: every name in it once, what is in a directory before the directory itself.
deep_removal() {
    local i d rc round
    for round in 1 2 3; do
        { echo; for d in 1 2 3 4; do for i in $(seq 6); do echo "put in/t/d$d/x/y/z/f$i v"; echo "put in/t/d$d/g$i v"; done; done; echo; echo; } |
            timeout 30 etcdctl --endpoints="$EP" txn >/dev/null
        await 10 test -e "$M/in/t/d4/x/y/z/f6" && ls -R "$M/in" >/dev/null
        watch_start "$M/in" "" 19 || return 1
        ctl del in/t/ --prefix >/dev/null
        await 15 grep -q "DELETE,ISDIR $M/in/t\$" "$T/seen"
        sed -n "s|^DELETE\(,ISDIR\)* $M/||p" "$T/seen" >"$T/gone"
        watch_stop
        same "$(sort "$T/gone" | uniq -c | awk '$1 != 1' | wc -l) $(wc -l <"$T/gone")" "0 65" || return 1
        awk '{ gone[$0] = 1; p = $0; while (sub("/[^/]*$", "", p)) if (p in gone) { print $0 " after " p; bad = 1 } } END { exit bad }' "$T/gone" || return 1
    done
}
# An event never comes before the read that follows would show what it tells.
never_early() {
    timeout 60 python3 - "$M/in/race" "$EP" <<'P'
import ctypes, os, struct, subprocess, sys, select
path, ep = sys.argv[1:]
ctl = lambda *a: subprocess.run(["etcdctl", "--endpoints", ep, *a], check=True, capture_output=True, env=dict(os.environ, ETCDCTL_API="3"))
ctl("put", "in/race", "0")
open(path).read()
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init1(os.O_NONBLOCK)
assert libc.inotify_add_watch(fd, path.encode(), 0x8) >= 0  # IN_CLOSE_WRITE
for i in range(1, 60):
    ctl("put", "in/race", str(i))
    ready, _, _ = select.select([fd], [], [], 10)
    assert ready, ("no event for", i)
    os.read(fd, 65536)
    got, size = open(path).read(), os.stat(path).st_size
    assert got == str(i) and size == len(got), (got, size, i)
P
}
# The loop prints each value that stands, also one that comes while it is busy (50 ms) between its read and its next watch.
settled_values() {
    ctl put in/conf 0 >/dev/null && cat "$M/in/conf" >/dev/null
    timeout 120 python3 - "$M/in/conf" "$EP" <<'P'
import os, signal, subprocess, sys, time
path, ep = sys.argv[1:]
def put(v): subprocess.run(["etcdctl", "--endpoints", ep, "put", "in/conf", v], check=True, capture_output=True, env=dict(os.environ, ETCDCTL_API="3"))
loop = subprocess.Popen(["bash", "-c", 'while inotifywait -q -e close_write "$0" >/dev/null; do cat "$0"; echo; sleep 0.05; done', path],
                        stdout=subprocess.PIPE, start_new_session=True)
os.set_blocking(loop.stdout.fileno(), False)
seen = b""
def printed(v, seconds):
    global seen
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        seen += loop.stdout.read() or b""
        if v.encode() in seen.split(b"\n"): return True
        time.sleep(0.001)
    return False
try:
    end = time.monotonic() + 10
    while True:
        put("start")
        if printed("start", 0.3): break
        assert time.monotonic() < end, "the loop does not start"
    missed = []
    for i in range(25):
        put("fast%d" % i)
        printed("fast%d" % i, 0.3)  # from here to its next watch it hears of nothing
        put("settled%d" % i)
        if not printed("settled%d" % i, 3): missed.append(i)
    assert not missed, missed
finally:
    os.killpg(loop.pid, signal.SIGTERM)
P
}
stream_misses_nothing() { # 10,000 puts as fast as the server takes them: each key once, in the order of revisions
    local n=10000 pid rc
    ctl put bench/key/first 1 >/dev/null && await 5 test -d "$M/.etcd/events/bench" || return 1
    cat "$M/.etcd/events/bench/.all" >"$T/stream" &
    pid=$!
    await 10 eval 'ctl put bench/key/first 1 >/dev/null; grep -q key/first "$T/stream"'
    timeout 60 "$O/tests/bench/load" fill "$PORT" 4 32 $n $n 64 || return 1
    await 30 eval '[ "$(grep -vc key/first "$T/stream")" -ge '"$n"' ]'
    kill "$pid"
    sed -n '/key\/first/d; s/.*"key":"\([^"]*\)".*/\1/p' "$T/stream" | sort -u >"$T/keys"
    same "$(grep -vc key/first "$T/stream") $(wc -l <"$T/keys") $(head -n 1 "$T/keys") $(tail -n 1 "$T/keys")" \
        "$n $n bench/key/0000000000 bench/key/0000009999" || return 1
    sed 's/^{"revision":\([0-9]*\),.*/\1/' "$T/stream" | sort -nc
}

run() {
    mount_at "$M.2" ""
    check "prepare" prepare
    check "a new key: CREATE, CLOSE_WRITE" create
    check "a new empty key: CREATE" create_empty
    check "a new value: MODIFY, CLOSE_WRITE" modify
    check "a key deleted: DELETE" delete
    check "a directory that appears and goes" new_directory
    check "a key renamed on another mount: MOVED_FROM, MOVED_TO" move
    check "only the lease changes: ATTRIB" attrib
    check "a lease expires: DELETE" expiry
    check "own changes are told once" own_once
    check "200 keys: each told once" many
    check "a deep tree deleted at once: each name once, inner ones first" deep_removal
    check "no event before its value can be read" never_early
    check "every settled value is printed" settled_values
    check "10,000 puts: a stream misses none" stream_misses_nothing
}
command -v inotifywait >/dev/null || { echo "needs inotifywait"; exit 77; }
mount_main run
