#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves what etcdctl_diff.sh does not see: the health service on the wire; that what is not there yet says so, with a
# sentence; the life of the NOSPACE alarm (full, delete, compact, defragment, disarm, write again); that Hash and HashKV
# change with the data alone, not with flush, defragmentation or a restart.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/pause.sh
O=${O:-build}
command -v etcdctl >/dev/null || { echo "no etcdctl"; exit 77; }
command -v curl >/dev/null || { echo "no curl"; exit 77; }
work=$(mktemp -d "${TMPDIR:-/tmp}/cairn-maint-XXXXXX")
port=${PORT:-$((21206 + $$ % 20 * 2))}
export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=127.0.0.1:$port
pid= n=0 failed=0
trap 'exec 2>/dev/null; [ -n "$pid" ] && kill -9 "$pid"; wait; rm -rf "$work"' EXIT

check() { # what expected got
    n=$((n + 1))
    if [ "$2" = "$3" ]; then
        echo "ok $n - $1"
    else
        failed=1
        echo "not ok $n - $1"
        printf '%s\n' "expected: $2" "got:      $3" | sed 's/^/# /'
    fi
}

ctl() { timeout 20 etcdctl "$@" 2>&1; }

start() {
    "$O/cairnd" --name m --data-dir "$work/data" --listen-client-urls "http://127.0.0.1:$port" \
        --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$((port + 1))" \
        --initial-advertise-peer-urls "http://127.0.0.1:$((port + 1))" \
        --initial-cluster "m=http://127.0.0.1:$((port + 1))" --quota-backend-bytes $((8 << 20)) >>"$work/log" 2>&1 &
    pid=$!
    for _ in $(seq 200); do
        curl -sf --max-time 5 "http://127.0.0.1:$port/health" >/dev/null && return
        kill -0 "$pid" 2>/dev/null || break
        pause
    done
    tail -n 5 "$work/log" | sed 's/^/# /'
    echo "not ok - cairnd starts"
    exit 1
}

# One call by hand: a message in hex, its answer's frames in hex, then "status message" of the trailers.
grpc() { # method [message in hex [curl options]]
    local method=$1 hex=${2:-}
    shift $(($# < 2 ? $# : 2))
    printf '\0'"$(printf '%08x' $((${#hex} / 2)) | sed 's/../\\x&/g')$(sed 's/../\\x&/g' <<<"$hex")" >"$work/request"
    curl -s --max-time 10 "$@" --http2-prior-knowledge -H 'content-type: application/grpc' -H 'te: trailers' \
        --data-binary "@$work/request" -D "$work/head" -o "$work/body" "http://127.0.0.1:$port/$method"
    od -An -v -tx1 "$work/body" 2>/dev/null | tr -d ' \n'
    : >"$work/body"
    tr -d '\r' <"$work/head" | sed -n -e 's/^grpc-status: / /p' -e 's/^grpc-message: / /p' | tr -d '\n'
}

start

# ---- health
check "health: Check" "00000000020801 0" "$(grpc grpc.health.v1.Health/Check)"
check "health: Check of no service we know" " 5 unknown service" "$(grpc grpc.health.v1.Health/Check 0a0161)"
check "health: Watch says it at once and stays" "00000000020801" "$(grpc grpc.health.v1.Health/Watch '' --max-time 1)"
check "health: Watch of no service we know" "00000000020803" "$(grpc grpc.health.v1.Health/Watch 0a0161 --max-time 1)"
check "health: List" "00000000060a0412020801 0" "$(grpc grpc.health.v1.Health/List)"

# ---- not there yet: UNIMPLEMENTED (12) and a sentence of ours
for method in Maintenance/Snapshot Maintenance/Downgrade Auth/AuthEnable Auth/UserAdd Auth/RoleGrantPermission; do
    check "not there yet: $method" " 12 cairn: " "$(grpc etcdserverpb.$method | sed 's/cairn: .*/cairn: /')"
done
for method in v3lockpb.Lock/Lock v3lockpb.Lock/Unlock v3electionpb.Election/Campaign v3electionpb.Election/Observe; do
    check "not there yet: $method" " 12 cairn: " "$(grpc $method | sed 's/cairn: .*/cairn: /')"
done
check "Authenticate: nothing to" " 9 etcdserver: authentication is not enabled" "$(grpc etcdserverpb.Auth/Authenticate)"
check "AuthStatus: off" "1801 0" "$(grpc etcdserverpb.Auth/AuthStatus | sed 's/.*\(1801 0\)$/\1/')"
check "Alarm: an action there is not" " 3 cairn: an alarm's action is GET, ACTIVATE or DEACTIVATE" \
    "$(grpc etcdserverpb.Maintenance/Alarm 0807)"

# ---- hashes
hash_all() { grpc etcdserverpb.Maintenance/Hash | sed 's/.*\(10[0-9a-f]*\) 0$/\1/'; }
hashes() { echo "$(ctl endpoint hashkv | cut -d, -f2)$(hash_all | tail -c 13)"; }
for i in 1 2 3; do ctl put "h$i" "v$i" >/dev/null; done
before=$(hashes)
ctl defrag >/dev/null
check "hashes: the same after defragmentation" "$before" "$(hashes)"
kill -9 $pid
{ wait $pid; } 2>/dev/null
start
check "hashes: the same after SIGKILL" "$before" "$(hashes)"
ctl put h1 v1 >/dev/null
if [ "$before" = "$(hashes)" ]; then check "hashes: others after a put" "other than $before" "$before"; else check "hashes: others after a put" "" ""; fi

# ---- full
value=$(head -c 100000 /dev/zero | tr '\0' x)
for i in $(seq 400); do
    out=$(ctl put "big$i" "$value") || break
done
check "full: a put is refused" "Error: etcdserver: mvcc: database space exceeded" "$(tail -n 1 <<<"$out")"
alarm=$(ctl alarm list)
check "full: the alarm" "NOSPACE" "$(echo ${alarm##*:})"
check "full: status says so" 1 "$(ctl endpoint status -w json | grep -c '"errors":\["memberID:[0-9]* alarm:NOSPACE "\]')"
check "full: reads go on" "v1" "$(ctl get h1 --print-value-only)"
check "full: deletes go on" "$i" "$(($(ctl del --prefix big) + 1))"
rev=$(ctl get x -w json | grep -o '"revision":[0-9]*' | cut -d: -f2)
check "full: compaction goes on" "compacted revision $rev" "$(ctl compaction --physical "$rev")"
size=$(ctl endpoint status -w json | grep -o '"dbSize":[0-9]*' | cut -d: -f2)
check "full: defragmentation goes on" "Finished defragmenting etcd member[127.0.0.1:$port]" "$(ctl defrag)"
smaller=$(ctl endpoint status -w json | grep -o '"dbSize":[0-9]*' | cut -d: -f2)
check "full: and shrinks the store" 1 "$((smaller * 4 < size))"
check "full: disarm" "$alarm" "$(ctl alarm disarm)"
check "full: no alarm left" "" "$(ctl alarm list)"
check "full: puts go on" "OK" "$(ctl put after full)"
exit $failed
