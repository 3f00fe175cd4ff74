#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: SIGTERM in the middle of a defragmentation ends cairnd within a second, and leaves one base; what SIGKILL leaves
# of a copy is removed by the next start; nothing is lost either way, and defragmenting works afterwards.
# Under a loaded machine a figure can be an accident: the best of three counts.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/pause.sh
O=${O:-build}
command -v etcdctl >/dev/null || { echo "no etcdctl"; exit 77; }
work=$(mktemp -d "${TMPDIR:-/tmp}/cairn-defrag-XXXXXX")
port=${PORT:-$((21480 + $$ % 10 * 2))}
export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=127.0.0.1:$port
pid= n=0 failed=0
trap 'exec 2>/dev/null; [ -n "$pid" ] && kill -9 "$pid"; wait; rm -rf "$work"' EXIT

result() { # ok what
    n=$((n + 1))
    if [ "$1" = 0 ]; then echo "ok $n - $2"; else failed=1; echo "not ok $n - $2"; tail -n 3 "$work/log" | sed 's/^/# /'; fi
}
await() { # command...
    for _ in $(seq 2000); do
        "$@" && return
        pause 0.005
    done
    return 1
}
start() {
    "$O/cairnd" --name m --data-dir "$work/data" --listen-client-urls "http://127.0.0.1:$port" \
        --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$((port + 1))" \
        --initial-advertise-peer-urls "http://127.0.0.1:$((port + 1))" \
        --initial-cluster "m=http://127.0.0.1:$((port + 1))" >"$work/log" 2>&1 &
    pid=$!
    await grep -q 'ready to serve client requests' "$work/log" || { echo "not ok - cairnd starts"; exit 1; }
}
stop() { # signal
    kill "-$1" $pid
    { wait $pid; } 2>/dev/null
    pid=
}
ctl() { timeout 60 etcdctl --command-timeout 50s "$@"; }
copying() { [ -s "$work/data/base-$((base + 1))/data.mdb" ] || ! kill -0 $defrag 2>/dev/null; }
one_base() { [ "$(ls -d "$work"/data/base-* | wc -l)" = 1 ]; }
all_there() { [ "$(ctl get --prefix big --keys-only | grep -c big)" = $count ]; }
defrag() { # until some of the copy is written
    base=$(ls -d "$work"/data/base-* | sed 's/.*base-//')
    ctl defrag >"$work/defrag" 2>&1 &
    defrag=$!
    await copying
}

count=120
head -c 1000000 /dev/urandom | base64 -w 0 | head -c 1000000 >"$work/big"
start
for i in $(seq $count); do ctl put "big$i" <"$work/big" >/dev/null; done

best=
for _ in 1 2 3; do
    defrag
    from=$(date +%s%N)
    stop TERM
    took=$((($(date +%s%N) - from) / 1000000))
    wait $defrag
    echo "# stopped in $took ms; $(tail -n 1 "$work/defrag"); $(ls "$work/data" | tr '\n' ' ')"
    one_base || failed_bases=1
    start
    [ -z "$best" ] || [ "$took" -lt "$best" ] && best=$took
    grep -q 'server stopped' "$work/defrag" && given_up=1
    [ "$best" -lt 1000 ] && [ -n "${given_up:-}" ] && break
done
[ "$best" -lt 1000 ] || [ -n "${SAN:-}${TSAN:-}" ]
result $? "a stop within a second"
[ -n "${given_up:-}" ]
result $? "it does not wait for the copy"
[ -z "${failed_bases:-}" ]
result $? "it leaves one base"
all_there
result $? "all is there after it"

defrag
stop KILL
wait $defrag
mkdir -p "$work/data/base-77"
: >"$work/data/base-77/data.mdb"
start
await one_base
result $? "what SIGKILL leaves is removed"
all_there
result $? "all is there after SIGKILL"
ctl defrag >/dev/null
result $? "it can be defragmented"
await one_base
result $? "the base before is removed"
all_there
result $? "all is there after defragmenting"
stop TERM
exit $failed
