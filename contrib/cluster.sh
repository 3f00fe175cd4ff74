#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# contrib/cluster.sh [N]: N members (3) and N mounts on one machine, under ./cluster/: m1, m2, ... are the mounts, each with all
# members as its endpoints, its own first. Stays until Ctrl-C; the data stays for the next time.
#
#   ONCE=1        a tour instead: a file saved on one mount raises inotify on the others; each member is killed once while files
#                 are read and saved. Ends with status 0 when all of it was seen.
#   PORT=n        the first port (13790): clients at n, n+10, ...; peers one above
#   CAIRND=path   another server that takes etcd's flags
set -u
cd "$(dirname "$0")/.." || exit 1
exec {never}<> <(:) # opened once, and never written to: a read from it with a timeout is a pause
O=${O:-build}
members=${1:-3}
port=${PORT:-13790}
server=${CAIRND:-$O/cairnd}
dir=$PWD/cluster
failed=0
declare -a pid fs
case $members in [1-7]) ;; *) echo "usage: contrib/cluster.sh [1-7]" >&2; exit 2 ;; esac
[ -x "$server" ] && [ -x "$O/cairnfs" ] || { echo "cluster: no programs in $O: run make first" >&2; exit 1; }
export ETCDCTL_API=3

client() { echo "127.0.0.1:$((port + 10 * ($1 - 1)))"; }
peer() { echo "http://127.0.0.1:$((port + 10 * ($1 - 1) + 1))"; }
everyone=$(for i in $(seq "$members"); do client "$i"; done | paste -sd,)
initial=$(for i in $(seq "$members"); do echo "m$i=$(peer "$i")"; done | paste -sd,)
export ETCDCTL_ENDPOINTS=$everyone

say() { printf '\n%s\n' "$*"; }
fail() { failed=1; echo "cluster: $*; logs are in $dir" >&2; exit 1; }
await() { # seconds what command...
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "$what did not happen in time"
        read -rt 0.05 -u "$never" || true
    done
}
start_member() {
    "$server" --name "m$1" --data-dir "$dir/data$1" --listen-client-urls "http://$(client "$1")" \
        --advertise-client-urls "http://$(client "$1")" --listen-peer-urls "$(peer "$1")" \
        --initial-advertise-peer-urls "$(peer "$1")" --initial-cluster "$initial" --initial-cluster-token cairn-contrib \
        >>"$dir/member$1.log" 2>&1 &
    pid[$1]=$!
}
start_mount() {
    mountpoint -q "$dir/m$1" 2>/dev/null && fusermount3 -uz "$dir/m$1"
    mkdir -p "$dir/m$1" 2>/dev/null || { fusermount3 -uz "$dir/m$1" && mkdir -p "$dir/m$1"; }
    # Its own member first, then the others.
    "$O/cairnfs" -f "$(client "$1"),$(tr , '\n' <<<"$everyone" | grep -vxF "$(client "$1")" | paste -sd,)" "$dir/m$1" \
        >>"$dir/mount$1.log" 2>&1 &
    fs[$1]=$!
    await 15 "mount $1" mountpoint -q "$dir/m$1"
}
clean_up() {
    trap - EXIT INT TERM
    for i in $(seq "$members"); do
        mountpoint -q "$dir/m$i" 2>/dev/null && fusermount3 -uz "$dir/m$i"
        [ -n "${fs[$i]:-}" ] && kill "${fs[$i]}" 2>/dev/null
    done
    for i in $(seq "$members"); do [ -n "${pid[$i]:-}" ] && kill "${pid[$i]}" 2>/dev/null; done
    wait 2>/dev/null
    exit $failed
}
trap clean_up EXIT
trap 'failed=0; exit' INT TERM

mkdir -p "$dir"
for i in $(seq "$members"); do start_member "$i"; done
healthy() { etcdctl endpoint health --command-timeout 2s; }
await 30 "a healthy cluster" healthy
etcdctl endpoint status -w table
for i in $(seq "$members"); do start_mount "$i"; done

if [ -z "${ONCE:-}" ]; then
    say "$members members and $members mounts: files in $dir/m1 ... m$members; export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=$everyone"
    say "Try: kill -9 ${pid[1]}   (member m1) and go on reading and saving. Ctrl-C ends it all."
    wait "${pid[@]}"
    exit
fi

# ---- the tour ---------------------------------------------------------------------------------
others() { seq "$members" | grep -vx "$1"; }
watch_ready() { grep -qs "inotify wd" /proc/"$1"/fdinfo/*; }
gone() { ! kill -0 "$1" 2>/dev/null; }
reads() { [ "$(timeout 5 cat "$dir/m$1/tour/config")" = "$2" ]; }

say "A file saved on one mount raises inotify on the others"
mkdir -p "$dir/m1/tour" && echo first >"$dir/m1/tour/config" || fail "the first save"
for i in $(seq "$members"); do
    watchers=()
    for j in $(others "$i"); do
        await 10 "m$j has the file" test -e "$dir/m$j/tour/config"
        inotifywait -t 30 -q -e close_write "$dir/m$j/tour/config" >"$dir/event$j" 2>&1 &
        watchers+=($!)
    done
    for w in "${watchers[@]}"; do await 10 "inotifywait is there" watch_ready "$w"; done
    echo "saved on m$i" >"$dir/m$i/tour/config" || fail "the save on m$i"
    for w in "${watchers[@]}"; do await 10 "the event of m$i's save" gone "$w"; done
    for j in $(others "$i"); do
        grep -q CLOSE_WRITE "$dir/event$j" || fail "m$j saw no event of m$i's save"
        reads "$j" "saved on m$i" || fail "m$j does not read what m$i saved"
    done
    echo "    saved on m$i, seen on $(others "$i" | sed 's/^/m/' | paste -sd' ')"
done

if [ "$members" -ge 3 ]; then
    say "kill -9 of any one member: reads and saves go on"
    for i in $(seq "$members"); do
        kill -9 "${pid[$i]}"
        wait "${pid[$i]}" 2>/dev/null
        from=$(date +%s%N)
        for j in $(seq "$members"); do
            timeout 10 sh -c "echo 'after m$i was killed, on m$j' >'$dir/m$j/tour/config'" || fail "a save on m$j without m$i"
            reads "$j" "after m$i was killed, on m$j" || fail "a read on m$j without m$i"
        done
        echo "    m$i is dead, $members saves and reads on all mounts took $((($(date +%s%N) - from) / 1000000)) ms"
        start_member "$i"
        await 30 "m$i is healthy again" healthy
    done
fi
say "That was the tour."
