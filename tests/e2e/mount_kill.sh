#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: whoever dies - cairnfs, the server, an injector, a user's program - at whatever moment, no process stays in D state, no
# call on the mount hangs, everything answers within its deadline; the server's return heals the mount; a new cairnfs takes
# over a dead mount point; what was written but not published is committed by an orderly end.
# shellcheck source=tests/e2e/mount_lib.sh
. "$(dirname "$0")/mount_lib.sh"
MOUNT_OPTIONS=grace=2,timeout=4
ROUNDS=${ROUNDS:-8}

# Pids (of ours: they have $M in their arguments or are children of the load) in D state.
in_d_state() {
    local p s
    for p in $LOAD; do
        s=$(sed 's/.*) //' "/proc/$p/stat" 2>/dev/null | cut -c1)
        [ "$s" = D ] && echo "$p $(cat "/proc/$p/wchan")"
    done
}
load_start() { # readers, writers, listers, appenders, a watch: until they fail or are told
    LOAD=''
    (while echo "$RANDOM" >"$M/load/w"; do :; done) >/dev/null 2>&1 & LOAD="$LOAD $!"
    (while echo "$RANDOM" >>"$M/load/a" && : >"$M/load/a"; do :; done) >/dev/null 2>&1 & LOAD="$LOAD $!"
    (while cat "$M/load/w" >/dev/null && ls -l "$M/load" >/dev/null; do :; done) >/dev/null 2>&1 & LOAD="$LOAD $!"
    (while mkdir "$M/load/d" && touch "$M/load/d/x" && mv "$M/load/d/x" "$M/load/d/y" && rm -r "$M/load/d"; do :; done) >/dev/null 2>&1 & LOAD="$LOAD $!"
    (while ctl put load/remote "$RANDOM" && ctl del load/remote; do :; done) >/dev/null 2>&1 & LOAD="$LOAD $!"
    inotifywait -q -m -r "$M/load" >/dev/null 2>&1 & LOAD="$LOAD $!"
    # shellcheck disable=SC2086
    disown $LOAD
}
load_gone() { local p; for p in $LOAD; do kill -0 "$p" 2>/dev/null && return 1; done; return 0; }
load_kill() { local p; for p in $LOAD; do pkill -9 -P "$p"; kill -9 "$p"; done 2>/dev/null; await 10 load_gone; }
family() { echo "$1 $(pgrep -P "$1" | tr '\n' ' ') $(for p in $(pgrep -P "$1"); do pgrep -P "$p" | tr '\n' ' '; done)"; }
all_gone() { local p; for p in $1; do kill -0 "$p" 2>/dev/null && return 1; done; return 0; }

kill_cairnfs() {
    local i kin
    mkdir -p "$M/load"
    for i in $(seq "$ROUNDS"); do
        load_start
        await 5 test -s "$M/load/w" || { echo "no load"; load_kill; return 1; }
        await 5 eval 'cat "$M/load/a" >/dev/null 2>&1'
        kin=$(family "$FS_PID")
        timeout 2 tail -f /dev/null & # a moment of load that differs each round
        kill -9 "$FS_PID"
        await 5 not_running "$FS_PID" || { echo "round $i: cairnfs itself hangs"; return 1; }
        await 5 all_gone "$kin" || { echo "round $i: its processes stay: $kin"; return 1; }
        timeout 3 stat "$M" >/dev/null 2>"$T/err"
        grep -q "not connected\|endpoint is not" "$T/err" || { echo "round $i: stat: $(cat "$T/err")"; return 1; }
        same "$(in_d_state)" "" || return 1
        load_kill || { echo "round $i: the load cannot be killed: $(in_d_state)"; return 1; }
        mount_at "$M" "$MOUNT_OPTIONS" || { echo "round $i: no new mount"; return 1; }
        same "$(grep -c " $M " /proc/mounts)" 1 || return 1
    done
}
kill_injector() {
    local p
    ctl put in/x 1 >/dev/null && cat "$M/in/x" >/dev/null
    for p in $(for q in $(pgrep -P "$FS_PID"); do pgrep -P "$q"; done); do kill -9 "$p"; done
    await 5 grep -q '"alive": 4' "$M/.etcd/status" || return 1
    (timeout 10 inotifywait -q -e close_write "$M/in/x" >"$T/iw") &
    p=$!
    await 15 eval 'ctl put in/x "$RANDOM" >/dev/null; grep -q CLOSE "$T/iw"'
    wait "$p"
    grep -q CLOSE "$T/iw"
}
# What took longer than it may, in seconds.
within() { local limit=$1 start=$SECONDS; shift; timeout "$((limit + 10))" "$@"; local rc=$?; [ $((SECONDS - start)) -le "$limit" ] || { echo "took $((SECONDS - start)) s: $*"; return 99; }; return $rc; }
server_away() {
    echo before >"$M/away" && ls "$M" >/dev/null && same "$(cat "$M/away")" before || return 1
    server_kill
    await 5 grep -q '"quorum": false' "$M/.etcd/status" || return 1
    within 6 cat "$M/away" >"$T/out" || { echo "known value not read"; return 1; }
    same "$(cat "$T/out")" before || return 1
    within 2 ls -l "$M" >/dev/null || return 1
    ! within 6 bash -c 'echo x >"$1/away"' _ "$M" 2>"$T/err" && grep -qi "read-only" "$T/err" || { cat "$T/err"; return 1; }
    ! within 6 touch "$M/never" 2>"$T/err" || return 1
    ! within 6 rm "$M/away" 2>"$T/err" || return 1
    same "$(getfattr --only-values -n user.etcd.stale "$M/away" 2>/dev/null)" 1 || return 1
    server_start || return 1
    await 10 bash -c 'echo after >"$1/away"' _ "$M" && same "$(value away)" after && same "$(cat "$M/away")" after && ! test -e "$M/never"
}
server_killed_under_load() {
    local i rc=0
    for i in $(seq 4); do
        load_start
        await 5 test -s "$M/load/w"
        server_kill
        server_start || return 1
        load_kill || { echo "round $i: $(in_d_state)"; return 1; }
        await 10 bash -c 'echo "$2" >"$1/alive"' _ "$M" "$i" && same "$(value alive)" "$i" || rc=1
    done
    return $rc
}
# A server that does not answer at all: callers can be killed, and what is not killed gets an error in time.
server_stopped() {
    local p rc=0
    echo 1 >"$M/st" && cat "$M/st" >/dev/null
    kill -STOP "$SERVER_PID"
    (cat "$M/absent" >/dev/null 2>&1; cat "$M/st" >/dev/null 2>&1; echo 2 >"$M/st") >/dev/null 2>&1 &
    p=$!
    disown "$p"
    await 2 eval 'pgrep -P '"$p"
    pkill -9 -P "$p"
    kill -9 "$p"
    await 3 not_running "$p" || { echo "a killed caller stays"; rc=1; }
    # What was confirmed within the last 100 ms still counts; after a read that got no answer nothing does.
    within 12 cat "$M/st" >/dev/null 2>&1
    within 12 bash -c 'echo 3 >"$1/st"' _ "$M" 2>/dev/null && rc=1
    [ $? = 99 ] && rc=1
    kill -CONT "$SERVER_PID"
    await 15 bash -c 'echo 4 >"$1/st"' _ "$M" && same "$(value st)" 4 && return $rc
}
orderly_end() {
    python3 - "$M" <<'P' &
import os, sys, time
m = sys.argv[1]
f = open(m + "/dirty", "w"); f.write("kept"); f.flush()
t = os.open(m + "/tmpabcDEF12", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600); os.write(t, b"temp")
open(m + "/python-ready", "w").write("1")
time.sleep(20)
P
    local p=$!
    await 10 test -s "$M/python-ready" && kill "$FS_PID" && await 12 not_running "$FS_PID" && same "$(value dirty)" kept && same "$(value tmpabcDEF12)" temp
    local rc=$?
    kill "$p"
    ! grep -q " $M " /proc/mounts || { echo "still mounted"; rc=1; }
    mount_at "$M" "$MOUNT_OPTIONS" && return $rc
}
umount_by_hand() { # with a file open nobody can umount; without, all processes end
    local kin
    kin=$(family "$FS_PID")
    exec 7<"$M/st"
    ! umount "$M" 2>/dev/null || return 1
    exec 7<&-
    ctl put in/x 5 >/dev/null
    await 5 umount "$M" && await 10 all_gone "$kin" && mount_at "$M" "$MOUNT_OPTIONS"
}

run() {
    check "SIGKILL of cairnfs under load, $ROUNDS times" kill_cairnfs
    check "SIGKILL of every injector" kill_injector
    check "the server goes and comes back" server_away
    check "SIGKILL of the server under load" server_killed_under_load
    check "a server that does not answer" server_stopped
    check "umount" umount_by_hand
    check "an orderly end publishes what is left" orderly_end
}
mount_main run
