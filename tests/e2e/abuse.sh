#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Hostile clients (abuse.py says which): the offender alone is cut off, another client is answered all the while, the
# server stays under 200 MB. Afterwards the server still answers etcdctl and stops in time.
#
# SERVER=path   another server that takes a port as its argument, e.g. build/tests/bench/limit
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/pause.sh
O=${O:-build}
[ -z "${SAN:-}${TSAN:-}" ] || { echo "memory is not measured under a sanitizer"; exit 77; }
command -v python3 >/dev/null || { echo "no python3"; exit 77; }
port=${PORT:-21510}
work=$(mktemp -d "${TMPDIR:-/tmp}/cairn-abuse-XXXXXX")
ulimit -n "$(ulimit -Hn)"
pid=
trap '[ -n "$pid" ] && kill -9 "$pid" 2>/dev/null; rm -rf "$work"' EXIT

if [ -n "${SERVER:-}" ]; then
    "$SERVER" "$port" >"$work/log" 2>&1 &
else
    "$O/cairnd" --data-dir "$work/data" --listen-client-urls "http://127.0.0.1:$port" \
        --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$((port + 1))" \
        --initial-advertise-peer-urls "http://127.0.0.1:$((port + 1))" \
        --initial-cluster "default=http://127.0.0.1:$((port + 1))" >"$work/log" 2>&1 &
fi
pid=$!
for _ in $(seq 200); do
    curl -sf --max-time 5 "http://127.0.0.1:$port/health" >/dev/null && break
    kill -0 "$pid" 2>/dev/null || { cat "$work/log"; echo "not ok 1 - the server starts"; exit 1; }
    pause
done
head -c 1000000 /dev/zero | tr '\0' x | ETCDCTL_API=3 timeout 20 etcdctl --endpoints "127.0.0.1:$port" put big >/dev/null ||
    { echo "not ok 1 - a put"; exit 1; }
python3 tests/e2e/abuse.py "$port" "$pid" "$@"
rc=$?
out=$(ETCDCTL_API=3 timeout 10 etcdctl --endpoints "127.0.0.1:$port" get after-the-abuse -w json 2>&1) || { rc=1; echo "not ok 90 - etcdctl afterwards: $out"; }
start=$(date +%s%N)
kill -TERM "$pid"
wait "$pid"
status=$?
took=$((($(date +%s%N) - start) / 1000000))
echo "# stopped in $took ms, status $status"
if [ $took -lt 2000 ]; then echo "ok 91 - stops in time"; else echo "not ok 91 - stops in time"; rc=1; fi
pid=
[ $rc = 0 ] || tail -n 20 "$work/log"
exit $rc
