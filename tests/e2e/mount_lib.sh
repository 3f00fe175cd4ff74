# SPDX-License-Identifier: Apache-2.0
# mount_lib.sh - what the mount's tests share: a server, a mount, waiting and counting. Sourced, not run.
#
#   mount_main FUNCTION      runs FUNCTION once for each backend that is there: cairnd (build/cairnd) and etcd (Debian's).
#                            BACKEND=etcd|cairnd in the environment picks one.
#   In FUNCTION: $M the mount point, $T a directory of its own outside it, $EP the endpoint; mounted already, with
#   MOUNT_OPTIONS. Whatever happens, it is unmounted and the processes it started are ended, by their pids.
#   check NAME COMMAND...    "ok - NAME" or "not ok - NAME"
set -u
cd "$(dirname "$0")/../.." || exit 1
O=${O:-build}
CAIRNFS=$PWD/$O/cairnfs CAIRND=$PWD/$O/cairnd
export ETCDCTL_API=3
FAILED=0
SERVER_PID='' FS_PIDS='' M='' T='' EP='' B=''

say_ok() { echo "ok - $B: $1"; }
say_bad() { echo "not ok - $B: $1"; FAILED=1; }
# check NAME COMMAND...: the command's status decides; its output is shown when it fails. No subshell: it may set variables.
check() {
    local name=$1
    shift
    { set -x; "$@"; local rc=$?; set +x; } >"$T/check.out" 2>&1
    if [ $rc = 0 ]; then say_ok "$name"; else say_bad "$name"; sed 's/^/#   /' "$T/check.out" | tail -n 30 | cut -c1-300; fi
}
same() { [ "$1" = "$2" ] || { printf 'expected: %s\ngot:      %s\n' "$2" "$1"; return 1; }; }
# await SECONDS COMMAND...: until it succeeds. The interval is short and inside a condition's wait.
await() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt "$end" ] || return 1
        sleep 0.05
    done
}
ctl() { timeout 20 etcdctl --endpoints="$EP" "$@"; }
revision() { ctl endpoint status -w json | grep -o '"revision":[0-9]*' | head -n 1 | cut -d: -f2; }
# field KEY NAME: of etcdctl get -w fields: Value, Lease, CreateRevision, ModRevision, Version
field() { ctl get "$1" -w fields | sed -n "s/^\"$2\" : //p" | tail -n 1; }
value() { ctl get "$1" --print-value-only; }

# Takes ten free ports from $PORT on. The lock is held as long as this script, or a server that it started, lives: two tests
# that begin together would otherwise find the same port free, and one of them would talk to the other's server.
take_ports() {
    local i
    for ((PORT = ${MOUNT_TEST_PORT:-21710}; ; PORT += 10)); do
        exec {PORT_LOCK}>"${TMPDIR:-/tmp}/cairn-mount-test.$PORT" || exit 1
        if flock -n "$PORT_LOCK"; then
            for i in 0 1 2 3 4 5 6 7 8 9; do (exec 3<>"/dev/tcp/127.0.0.1/$((PORT + i))") 2>/dev/null && continue 2; done
            return
        fi
        exec {PORT_LOCK}>&-
    done
}

server_up() { timeout 2 etcdctl --endpoints="$EP" endpoint health >/dev/null 2>&1; }
# (Re)starts the server on its data directory.
server_start() {
    local program=$CAIRND
    [ "$B" = etcd ] && program=$(command -v etcd)
    "$program" --name default --data-dir "$T/data" --listen-client-urls "http://127.0.0.1:$PORT" \
        --advertise-client-urls "http://127.0.0.1:$PORT" --listen-peer-urls "http://127.0.0.1:$((PORT + 1))" \
        --initial-advertise-peer-urls "http://127.0.0.1:$((PORT + 1))" \
        --initial-cluster "default=http://127.0.0.1:$((PORT + 1))" ${SERVER_OPTIONS:-} >>"$T/server.log" 2>&1 &
    SERVER_PID=$!
    disown "$SERVER_PID"
    await 20 server_up && kill -0 "$SERVER_PID" # whoever answers is ours
}
server_kill() { kill -9 "$SERVER_PID" 2>/dev/null; await 5 not_running "$SERVER_PID"; SERVER_PID=''; }
not_running() { ! kill -0 "$1" 2>/dev/null; }

# mount_at DIRECTORY OPTIONS [SOURCE]: mounts; the daemon's pid is in $FS_PID.
mount_at() {
    mkdir -p "$1" 2>/dev/null
    "$CAIRNFS" -f ${2:+-o "$2"} "${3:-$EP}" "$1" >>"$T/cairnfs.log" 2>&1 &
    FS_PID=$!
    disown "$FS_PID"
    FS_PIDS="$FS_PIDS $FS_PID"
    await 20 is_mounted "$1"
}
is_mounted() { timeout 5 test -d "$1/.etcd"; }
# Ends a mount as an administrator would, and waits for its daemon.
unmount_at() {
    timeout 20 umount "$1" 2>/dev/null || umount -l "$1" 2>/dev/null
}

cleanup() {
    local p
    trap - EXIT
    for p in $FS_PIDS; do kill "$p" 2>/dev/null; done
    for p in $FS_PIDS; do await 12 not_running "$p" || { echo "# cairnfs $p had to be killed"; kill -9 "$p"; }; done
    [ -n "$M" ] && for p in "$M" "$M".*; do umount -l "$p" 2>/dev/null; done
    [ -n "$SERVER_PID" ] && kill -9 "$SERVER_PID" 2>/dev/null
    [ -n "$T" ] && { rmdir "$M" "$M".* 2>/dev/null; rm -rf --one-file-system "$T"; }
    FS_PIDS='' SERVER_PID='' M='' T=''
}

mount_main() {
    local list=${BACKEND:-}
    [ -c /dev/fuse ] && [ "$(id -u)" = 0 ] || { echo "needs root and /dev/fuse"; exit 77; }
    command -v etcdctl >/dev/null || { echo "needs etcdctl"; exit 77; }
    if [ -z "$list" ]; then
        [ -x "$CAIRND" ] && list=cairnd
        command -v etcd >/dev/null && list="$list etcd"
    fi
    [ -n "$list" ] || { echo "no server to test against"; exit 77; }
    trap cleanup EXIT
    trap 'exit 1' INT TERM
    for B in $list; do
        T=$(mktemp -d "$PWD/$O/mount-test.XXXXXX")
        M=$T.mnt
        take_ports
        EP=127.0.0.1:$PORT
        mkdir -p "$M"
        if server_start && mount_at "$M" "${MOUNT_OPTIONS:-}"; then
            "$1"
        else
            say_bad "starting"
            tail -n 5 "$T/server.log" "$T/cairnfs.log"
        fi
        cleanup
        trap cleanup EXIT
    done
    exit $FAILED
}
