#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# make demo: one member with its data under ./demo/, its keys mounted at ./demo/mnt, and a tour that runs real commands
# and shows what they print. Stays until Ctrl-C (ONCE=1: ends after the tour). The data stays for the next time.
set -u
cd "$(dirname "$0")/.." || exit 1
exec {never}<> <(:) # opened once, and never written to: a read from it with a timeout is a pause
O=${O:-build}
port=${PORT:-12379}
dir=$PWD/demo
mnt=$dir/mnt
endpoint=127.0.0.1:$port
export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=$endpoint
daemon= fs= watcher= failed=0

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' off=$'\e[0m'; else bold= dim= off=; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$off"; }
run() { # shows a command, then runs it; a failure ends the tour
    printf '  %s$ %s%s\n' "$dim" "$1" "$off"
    bash -c "$1" 2>&1 | awk '{print "    " $0}'
    [ "${PIPESTATUS[0]}" = 0 ] || { failed=1; echo "demo: this command failed: $1" >&2; exit 1; }
}
await() { # what command...
    local what=$1 n
    shift
    for n in $(seq 200); do
        "$@" >/dev/null 2>&1 && return 0
        [ -n "$daemon" ] && ! kill -0 "$daemon" 2>/dev/null && break
        read -rt 0.05 -u "$never" || true
    done
    echo "demo: $what did not come up within 10 s; its log:" >&2
    tail -n 20 "$dir"/cairnd.log "$dir"/cairnfs.log >&2
    exit 1
}
clean_up() {
    trap - EXIT INT TERM
    [ -n "$watcher" ] && kill "$watcher" 2>/dev/null
    mountpoint -q "$mnt" && fusermount3 -u "$mnt" 2>/dev/null
    [ -n "$fs" ] && { kill "$fs" 2>/dev/null; wait "$fs" 2>/dev/null; }
    [ -n "$daemon" ] && { kill "$daemon" 2>/dev/null; wait "$daemon" 2>/dev/null; }
    mountpoint -q "$mnt" && fusermount3 -uz "$mnt" 2>/dev/null
    exit $failed
}
trap clean_up EXIT
trap 'failed=0; exit' INT TERM

mkdir -p "$dir"
mountpoint -q "$mnt" 2>/dev/null && fusermount3 -uz "$mnt"
mkdir -p "$mnt" 2>/dev/null || { fusermount3 -uz "$mnt" && mkdir -p "$mnt"; }

say "A member of one, its data in demo/data"
printf '  %s$ %s/cairnd --data-dir demo/data --listen-client-urls http://%s ...%s\n' "$dim" "$O" "$endpoint" "$off"
"$O/cairnd" --name demo --data-dir "$dir/data" --listen-client-urls "http://$endpoint" \
    --advertise-client-urls "http://$endpoint" --listen-peer-urls "http://127.0.0.1:$((port + 1))" \
    --initial-advertise-peer-urls "http://127.0.0.1:$((port + 1))" \
    --initial-cluster "demo=http://127.0.0.1:$((port + 1))" >"$dir/cairnd.log" 2>&1 &
daemon=$!
await cairnd etcdctl endpoint health
run "etcdctl endpoint status -w table"

say "Its keys, mounted at demo/mnt"
printf '  %s$ %s/cairnfs %s demo/mnt%s\n' "$dim" "$O" "$endpoint" "$off"
"$O/cairnfs" -f "$endpoint" "$mnt" >"$dir/cairnfs.log" 2>&1 &
fs=$!
await cairnfs mountpoint -q "$mnt"
cd "$dir" || exit 1

say "A key put by etcdctl is a file"
run "etcdctl put app/greeting 'hello from etcdctl'"
run "cat mnt/app/greeting"
run "ls -l mnt/app"

say "A file written by the shell is a key"
run "echo 'hello from the shell' > mnt/app/reply"
run "etcdctl get app/reply"

say "sed -i and a vim-style save: one revision each, and no temporary key is ever seen"
run "sed -i 's/shell/editor/' mnt/app/reply"
run "etcdctl get --prefix app/ --keys-only | grep ."
run "vim -es -c 's/hello/good morning/' -c 'wq' mnt/app/reply </dev/null; cat mnt/app/reply"
run "etcdctl get app/reply -w fields | grep -E 'Revision|Version|Value'"

say "A time to live is an extended attribute"
run "echo 'gone soon' > mnt/app/session; setfattr -n user.etcd.ttl -v 3600 mnt/app/session"
run "getfattr -d mnt/app/session | grep ."
run "etcdctl lease list"
run "setfattr -n user.etcd.ttl -v 0 mnt/app/session; rm mnt/app/session"

say "A put made elsewhere is an inotify event here"
printf '  %s$ inotifywait -q -e close_write mnt/app/greeting &%s\n' "$dim" "$off"
inotifywait -q -e close_write mnt/app/greeting >watch.out 2>watch.err &
watcher=$!
ready() { grep -qs "inotify wd" /proc/$watcher/fdinfo/*; }
await inotifywait ready
run "etcdctl put app/greeting 'hello again'"
seen() { ! kill -0 $watcher 2>/dev/null; }
await "the event" seen
sed 's/^/    /' watch.out
watcher=
run "cat mnt/app/greeting"
rm -f watch.out watch.err

say "The store as the mount sees it"
run "cat mnt/.etcd/status"

if [ -n "${ONCE:-}" ]; then
    say "That was the tour."
    exit 0
fi
say "Yours now, until Ctrl-C: files in demo/mnt, and export ETCDCTL_ENDPOINTS=$endpoint"
wait $daemon
failed=1
echo "demo: cairnd ended; its log: demo/cairnd.log" >&2
