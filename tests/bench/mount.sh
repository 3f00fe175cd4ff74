#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The mount's part of make bench: stat, read and save of one warm file, in microseconds (the fastest of 25 batches: fs_load.c says why),
# beside a FUSE file system that answers
# from a constant; cairnfs with -o cached and by default, on cairnd and on etcd.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/pause.sh
O=${O:-build}
etcd=${ETCD:-$(command -v etcd)}
times=${TIMES:-5000}
work=$(mktemp -d /var/tmp/cairn-bench-XXXXXX)
mnt=$work/mnt
port=${PORT:-23794}
pids=()
mkdir "$mnt"

stop_all() {
    mountpoint -q "$mnt" && fusermount3 -u "$mnt"
    for p in "${pids[@]}"; do kill "$p" 2>/dev/null; wait "$p" 2>/dev/null; done
    pids=()
}
trap 'stop_all; rm -rf "$work"' EXIT
await() { # command, within 20 s
    local n
    for n in $(seq 400); do
        "$@" >/dev/null 2>&1 && return 0
        pause
    done
    echo "bench: $* did not come true; see $work" >&2
    trap - EXIT
    exit 1
}
export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=127.0.0.1:$port
server() {
    case $1 in cairn) set -- "$O/cairnd" ;; *) set -- "$etcd" ;; esac
    ETCD_LOG_LEVEL=error "$1" --data-dir "$work/data-$RANDOM" --listen-client-urls "http://127.0.0.1:$port" \
        --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$((port + 1))" >"$work/server.log" 2>&1 &
    pids+=($!)
    await etcdctl endpoint health
    etcdctl put k "$(head -c 255 /dev/zero | tr '\0' v)" >/dev/null
}
row() { # name
    printf '%-28s' "$1"
    for what in stat read save; do printf '%12s' "$("$O/tests/bench/fs_load" $what "$mnt/k" "$times" 2>&1)"; done
    echo
    stop_all
}

printf '\n%-28s%12s%12s%12s\n' "mount, us" stat read save
"$O/tests/bench/fs_const" "$mnt" & pids+=($!)
await test -e "$mnt/k"
row "constant"
for on in cairn etcd; do
    for how in cached default; do
        server $on
        if [ $how = cached ]; then "$O/cairnfs" -f -o cached "127.0.0.1:$port" "$mnt" 2>"$work/fs.log" &
        else "$O/cairnfs" -f "127.0.0.1:$port" "$mnt" 2>"$work/fs.log" & fi
        pids=($! "${pids[@]}")
        await test -e "$mnt/k"
        row "cairnfs on $on, $how"
    done
done
