#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: a mount of three members' endpoints goes on when the one in use is killed, stopped or removed, and through the election
# after the leader's end: reads never fail, saves fail at most for the few that were under way, each event comes once and in order,
# files are made and renamed by one only.
# Without a quorum reads go on and are marked, saves end with EROFS after the grace, and nothing hangs; all of it heals by itself.
# The times that it takes are printed; on an idle machine moving takes some milliseconds after a kill, half a second after a stop.
# shellcheck source=tests/e2e/mount_lib.sh
. "$(dirname "$0")/mount_lib.sh"

MEMBERS="1 2 3"
declare -A MEMBER_PID
STOPPED=''
GRACE=4 MADE=0

# Where a member is, and how to run it there: mount_partition.sh has others.
client_at() { echo "127.0.0.1:$((PORT + 2 * $1))"; }
peer_at() { echo "127.0.0.1:$((PORT + 2 * $1 + 1))"; }
member_run() { shift; exec "$@"; } # in the background, so in a process of its own
initial() { local i s=; for i in $MEMBERS; do s=$s${s:+,}m$i=http://$(peer_at "$i"); done; echo "$s"; }
endpoints() { local i s=; for i in ${*:-$MEMBERS}; do s=$s${s:+,}$(client_at "$i"); done; echo "$s"; }

member_start() { # MEMBER [new|existing]
    local program=$CAIRND c p
    c=http://$(client_at "$1") p=http://$(peer_at "$1")
    [ "$B" = etcd ] && program=$(command -v etcd)
    member_run "$1" "$program" --name "m$1" --data-dir "$T/m$1" --listen-client-urls "$c" --advertise-client-urls "$c" \
        --listen-peer-urls "$p" --initial-advertise-peer-urls "$p" \
        --initial-cluster "$(initial)" --initial-cluster-token mount --initial-cluster-state "${2:-new}" >>"$T/m$1.log" 2>&1 &
    MEMBER_PID[$1]=$!
    disown "${MEMBER_PID[$1]}"
}
member_kill() { kill -9 "${MEMBER_PID[$1]}"; await 5 not_running "${MEMBER_PID[$1]}"; unset "MEMBER_PID[$1]"; }
member_stop() { kill -STOP "${MEMBER_PID[$1]}"; STOPPED="$STOPPED ${MEMBER_PID[$1]}"; }
member_cont() { kill -CONT "${MEMBER_PID[$1]}"; }
healthy() { timeout 5 etcdctl --endpoints="$(endpoints "$1")" endpoint health >/dev/null 2>&1; }
all_healthy() { local i; for i in $MEMBERS; do await "${1:-30}" healthy "$i" || { echo "member $i is not well"; tail -n 5 "$T/m$i.log"; return 1; }; done; }
# leader: which member it is, asked of those that answer
leader() {
    local i
    for i in $MEMBERS; do
        timeout 3 etcdctl --endpoints="$(endpoints "$i")" endpoint status -w fields 2>/dev/null |
            awk -F' : ' '$1 == "\"MemberID\"" { m = $2 } $1 == "\"Leader\"" { l = $2 } END { exit !(m == l && l != 0 && l != "") }' && { echo "$i"; return; }
    done
    return 1
}
in_use() { # which member the mount talks to
    local i at
    at=$(sed -n 's/^  "endpoint":"\(.*\)",$/\1/p' "$M/.etcd/status")
    for i in $MEMBERS; do if [ "$(client_at "$i")" = "$at" ]; then echo "$i"; fi; done
}
is_in_use() { [ "$(in_use)" = "$1" ] && grep -q "\"quorum\": true" "$M/.etcd/status" && grep -q "\"standing\": true" "$M/.etcd/status"; }
moved_from() { [ "$(in_use)" != "$1" ] && is_in_use "$(in_use)"; }
now_ms() { echo $(($(date +%s%N) / 1000000)); }
other_than() { local i; for i in $MEMBERS; do [ "$i" != "$1" ] && [ "$i" != "${2:-}" ] && { echo "$i"; return; }; done; }
version() { # asked of one after the other: some may be down, or cut off
    local i v
    for i in $MEMBERS; do
        v=$(timeout 10 etcdctl --command-timeout=3s --endpoints="$(endpoints "$i")" get c/save -w fields 2>/dev/null | sed -n 's/^"Version" : //p')
        [ -n "$v" ] && { echo "$v"; return; }
    done
    return 1
}

# The mount uses member N: a new mount with N's endpoint first. A machine that is slow enough makes it take another all the same:
# the first is given a moment to connect, no more.
use() {
    local i
    for i in 1 2 3 4 5; do
        [ "$(in_use)" = "$1" ] && { await 10 is_in_use "$1"; cat "$M/c/read" >/dev/null; return; }
        umount "$M" || umount -l "$M"
        mount_at "$M" "grace=$GRACE" "$(endpoints "$1" "$(other_than "$1")" "$(other_than "$1" "$(other_than "$1")")")" || return 1
    done
    cat "$M/.etcd/status"
    return 1
}
work_start() {
    rm -f "$T/stop"
    VERSION=$(version)
    timeout 120 python3 tests/e2e/mount_cluster.py "$M" "$T/stop" >"$T/work" 2>"$T/work.err" &
    WORK=$!
    await 10 eval '[ "$(version)" -gt "${VERSION:-0}" ]'
}
work_field() { sed -n "s/.*\"$1\": \([0-9]*\|{[^}]*}\)[,}].*/\1/p" "$T/work"; }
# work_ends FAILURES: the work stops; at most so many saves failed, none as if the store were read-only.
work_ends() {
    touch "$T/stop"
    wait $WORK || { cat "$T/work.err"; return 1; }
    echo "#   $CHECK: $(cat "$T/work")" >&3
    same "$(work_field read_errors)" "{}" || return 1
    case "$(work_field save_errors)" in
    "{}") ;;
    *ETIMEDOUT*) [ "$(work_field save_errors | grep -o '[0-9]*' | tail -n 1)" -le "$1" ] && ! work_field save_errors | grep -q "EROFS\|EIO" || return 1 ;;
    *) return 1 ;;
    esac
    same "$(work_field twice) $(work_field backwards)" "0 0" && same "$(work_field events)" "$(($(version) - ${VERSION:-0}))"
}
# moves_away MEMBER SECONDS: until the mount uses another; prints how long that took.
moves_away() {
    local t
    t=$(now_ms)
    await "$2" moved_from "$1" || { cat "$M/.etcd/status"; return 1; }
    echo "#   $CHECK: moved to another within $(($(now_ms) - t)) ms" >&3
}

follower() { local l i; l=$(leader) && i=$(other_than "$l") && echo "$i"; }
killed_in_use() {
    local n
    n=$(follower) && use "$n" && work_start || return 1
    member_kill "$n" && moves_away "$n" 10 && await 10 eval 'timeout 5 sh -c "echo 1 >$M/c/after"' && work_ends 1
    local rc=$?
    member_start "$n" && all_healthy && return $rc
}
killed_leader() { # not the one in use
    local l n
    l=$(leader) && n=$(other_than "$l") && use "$n" && work_start || return 1
    member_kill "$l" && await 20 eval 'timeout 15 sh -c "echo 2 >$M/c/after"' && work_ends 2
    local rc=$?
    member_start "$l" && all_healthy && return $rc
}
killed_leader_in_use() {
    local l
    l=$(leader) && use "$l" && work_start || return 1
    member_kill "$l" && moves_away "$l" 20 && await 20 eval 'timeout 15 sh -c "echo 3 >$M/c/after"' && work_ends 2
    local rc=$?
    member_start "$l" && all_healthy && return $rc
}
stopped_in_use() {
    local n
    n=$(follower) && use "$n" && work_start || return 1
    member_stop "$n"
    moves_away "$n" 10 && await 10 eval 'timeout 15 sh -c "echo 4 >$M/c/after"' && work_ends 1
    local rc=$?
    member_cont "$n" && all_healthy && return $rc
}
stopped_leader_in_use() {
    local l
    l=$(leader) && use "$l" && work_start || return 1
    member_stop "$l"
    moves_away "$l" 20 && await 20 eval 'timeout 15 sh -c "echo 5 >$M/c/after"' && work_ends 2
    local rc=$?
    member_cont "$l" && all_healthy && return $rc
}
# Two mounts append to one file while the endpoint in use is stopped: what was acknowledged is there once, and none is in doubt.
appends_stopped() {
    local n a b rc
    n=$(follower) && use "$n" && mount_at "$M.2" "grace=$GRACE" "$(endpoints "$n" "$(other_than "$n")")" && rm -f "$T/stop" "$M/c/append" || return 1
    for a in a b; do
        b=$M; [ $a = b ] && b=$M.2
        timeout 60 python3 - "$b/c/append" $a "$T/stop" >"$T/append.$a" <<'PY' &
import os, sys
path, name, stop = sys.argv[1:]
n = 0
while not os.path.exists(stop):
    n += 1
    try:
        f = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try: os.write(f, b"%s%d\n" % (name.encode(), n))
        finally: os.close(f)
        print("ok %s%d" % (name, n))
    except OSError as e: print("%s %s%d" % (e.strerror, name, n))
    sys.stdout.flush()
PY
        eval "local pid_$a=$!"
    done
    await 10 eval '[ "$(wc -l <"$T/append.a")" -gt 20 ] && [ "$(wc -l <"$T/append.b")" -gt 20 ]' && member_stop "$n" && moves_away "$n" 10
    rc=$?
    a=$(wc -l <"$T/append.a") b=$(wc -l <"$T/append.b")
    await 20 eval '[ "$(wc -l <"$T/append.a")" -gt '$((a + 20))' ] && [ "$(wc -l <"$T/append.b")" -gt '$((b + 20))' ]' || rc=1
    touch "$T/stop"
    wait $pid_a $pid_b
    echo "#   $CHECK: $(cat "$T"/append.? | wc -l) appends, in doubt: $(cat "$T"/append.? | grep -vc ^ok)" >&3
    sed -n 's/^ok //p' "$T"/append.? | sort >"$T/acknowledged"
    sort "$M/c/append" >"$T/there"
    same "$(comm -23 "$T/acknowledged" "$T/there")" "" && same "$(uniq -d "$T/there")" "" && ! grep -v ^ok "$T"/append.? || rc=1
    umount "$M.2" || umount -l "$M.2"
    member_cont "$n" && all_healthy && return $rc
}
# creations LOSE HEAL MEMBER: two mounts make and rename files, some of them the same, while the endpoint that one of them uses is
# lost: all go on soon, nobody is told that he won what another one has, what was acknowledged is there. In doubt may be only
# who had to be the first, once for each loss.
creations() {
    local lose=$1 heal=$2 n=$3 rc=0 work slowest dir
    dir=made$((MADE += 1))
    use "$n" && mount_at "$M.2" "grace=$GRACE" "$(endpoints "$(other_than "$n")" "$(other_than "$n" "$(other_than "$n")")")" && rm -f "$T/stop" || return 1
    timeout 60 python3 tests/e2e/mount_create.py "$M/$dir" "$M.2/$dir" "$T/stop" >"$T/create" 2>&1 &
    work=$!
    await 10 eval '[ "$(ls "$M.2/$dir/both_excl" | wc -l)" -gt 5 ]' && $lose "$n" && moves_away "$n" 20 || rc=1
    await 20 eval 'timeout 15 sh -c "echo 9 >$M/c/after"' || rc=1
    touch "$T/stop"
    wait $work || rc=1
    echo "#   $CHECK: $(tail -n 1 "$T/create")" >&3
    sed -n '/^WRONG\|^AT FIRST/s/^/#   /p' "$T/create" >&3
    grep -q '"wrong": 0,' "$T/create" && ! grep -q '"errors": \["' "$T/create" || rc=1
    slowest=$(sed -n 's/.*"slowest": \([0-9]*\),.*/\1/p' "$T/create")
    [ "${slowest:-9999}" -lt "${4:-4000}" ] || rc=1
    grep -o '"new": {[^}]*}\|"replace": {[^}]*}\|"rename": {[^}]*}' "$T/create" | grep -v '"doubt": 0' && rc=1
    umount "$M.2" || umount -l "$M.2"
    $heal "$n" && all_healthy && return $rc
}
creations_stopped() { creations member_stop member_cont "$(follower)"; }
creations_killed() { creations member_kill member_start "$(follower)"; }
creations_leader_killed() { creations member_kill member_start "$(leader)" 8000; }
# What was left comes back and is used again, when the other one in use goes.
used_again() {
    local a b c
    a=$(follower) && use "$a" && member_kill "$a" && await 10 moved_from "$a" && b=$(in_use) && c=$(other_than "$a" "$b") || return 1
    member_start "$a" && all_healthy && member_stop "$c" || return 1
    await 15 eval 'grep -q "$(client_at '"$a"')\":\"connected" "$M/.etcd/status"' && member_kill "$b"
    member_cont "$c"
    await 20 moved_from "$b" && await 20 eval 'timeout 15 sh -c "echo 6 >$M/c/after"'
    local rc=$?
    member_start "$b" && all_healthy && return $rc
}
no_quorum() {
    local n t a b rc=0
    n=$(follower) && use "$n" && a=$(other_than "$n") && b=$(other_than "$n" "$a") && cat "$M"/c/* >/dev/null || return 1
    member_kill "$a" && member_kill "$b"
    await 20 grep -q '"quorum": false' "$M/.etcd/status" || rc=1
    t=$(now_ms)
    for i in 1 2 3 4 5; do same "$(timeout 5 cat "$M/c/read")" "still here" || rc=1; done
    [ $(($(now_ms) - t)) -lt 4000 ] || { echo "five reads took $(($(now_ms) - t)) ms"; rc=1; }
    same "$(getfattr --only-values -n user.etcd.stale "$M/c/read")" 1 || rc=1
    timeout 5 ls -l "$M/c" | grep -q read || rc=1
    t=$(now_ms)
    timeout $((GRACE + 15)) python3 -c 'import errno, sys
try:
    open(sys.argv[1], "w").write("x")
except OSError as e: sys.exit(e.errno != errno.EROFS)
sys.exit(2)' "$M/c/nobody" || { echo "a save did not end with EROFS: $?"; rc=1; }
    echo "#   $CHECK: a save was refused after $(($(now_ms) - t)) ms (grace $GRACE s)" >&3
    timeout 10 mkdir "$M/c/none" && { echo "mkdir without a quorum"; rc=1; }
    member_start "$a"
    await 30 eval 'timeout 15 sh -c "echo 7 >$M/c/after"' && await 10 grep -q '"quorum": true' "$M/.etcd/status" || rc=1
    same "$(getfattr --only-values -n user.etcd.stale "$M/c/read")" 0 || rc=1
    member_start "$b" && all_healthy && return $rc
}
removed() { # the one in use is no member any more
    local n id
    n=$(follower) && use "$n" || return 1
    id=$(timeout 5 etcdctl --endpoints="$(endpoints)" member list | sed -n "s/^\([0-9a-f]*\), .*, m$n, .*/\1/p")
    # etcd wants to have seen all members for some seconds first.
    work_start && await 30 timeout 10 etcdctl --endpoints="$(endpoints "$(leader)")" member remove "$id" || return 1
    moves_away "$n" 20 && await 10 eval 'timeout 15 sh -c "echo 8 >$M/c/after"' && work_ends 1
}

check() { CHECK=$1; shift; { set -x; "$@"; local rc=$?; set +x; } 3>&1 >"$T/check.out" 2>&1; if [ $rc = 0 ]; then say_ok "$CHECK"; else say_bad "$CHECK"; sed 's/^/#   /' "$T/check.out" | grep -v '+ await\|+ local\|+ shift\|+ sleep\|+ is_in_use\|+ moved_from\|+ .\[. [0-9]* -lt' | tail -n 40 | cut -c1-300; fi; }

cluster_cleanup() {
    local i
    for i in $STOPPED; do kill -CONT "$i" 2>/dev/null; done
    for i in "${MEMBER_PID[@]}"; do kill -9 "$i" 2>/dev/null; done
    MEMBER_PID=() STOPPED=''
    cleanup
}

begin() { # three members and a mount of all three
    local i
    for i in $MEMBERS; do member_start "$i"; done
    all_healthy && timeout 10 etcdctl --endpoints="$(endpoints)" put c/read "still here" >/dev/null && mount_at "$M" "grace=$GRACE" "$(endpoints)" ||
        { say_bad "starting"; return 1; }
    printf 'still here' >"$M/c/read" && same "$(cat "$M/c/read")" "still here" || { say_bad "a first save"; return 1; }
}
run() {
    begin || return
    check "the endpoint in use is killed" killed_in_use
    check "the leader is killed" killed_leader
    check "the leader is killed, and is the endpoint in use" killed_leader_in_use
    check "the endpoint in use is stopped" stopped_in_use
    check "the leader is stopped, and is the endpoint in use" stopped_leader_in_use
    check "two mounts append while the endpoint in use is stopped" appends_stopped
    check "files are made while the endpoint in use is stopped" creations_stopped
    check "files are made while the endpoint in use is killed" creations_killed
    check "files are made while the leader is killed, and is the endpoint in use" creations_leader_killed
    check "what came back is used again" used_again
    check "no quorum: reads go on, saves are refused after the grace, and it heals" no_quorum
    check "the member in use is removed" removed
}
cluster_main() { # FUNCTION: once for each backend
    [ -c /dev/fuse ] && [ "$(id -u)" = 0 ] || { echo "needs root and /dev/fuse"; exit 77; }
    command -v etcdctl >/dev/null || { echo "needs etcdctl"; exit 77; }
    trap cluster_cleanup EXIT
    trap 'exit 1' INT TERM
    for B in ${BACKEND:-$([ -x "$CAIRND" ] && echo cairnd) $(command -v etcd >/dev/null && echo etcd)}; do
        T=$(mktemp -d "$PWD/$O/mount-test.XXXXXX")
        M=$T.mnt
        take_ports
        mkdir -p "$M"
        "$1"
        cluster_cleanup
    done
    exit $FAILED
}
[ -n "${CLUSTER_LIB:-}" ] || cluster_main run
