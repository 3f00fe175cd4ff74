#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: a fixed script of watches (every form of create, ids, ranges, filters, previous values, history, compaction,
# progress, fragments, txns) is answered on the wire as etcd 3.7.1 answers it. The expected text was recorded from it:
#     UPDATE=/path/to/etcd tests/e2e/watch_wire.sh
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/pause.sh
O=${O:-build}
command -v python3 >/dev/null || { echo "no python3"; exit 77; }
port=${PORT:-21140}
server=${UPDATE:-$O/cairnd}
want=tests/trace/watch_wire.txt
work=$(mktemp -d "${TMPDIR:-/tmp}/cairn-watch-XXXXXX")
trap '[ -n "${pid:-}" ] && kill -9 "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; rm -rf "$work"' EXIT
"$server" --data-dir "$work/data" --listen-client-urls "http://127.0.0.1:$port" \
    --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$((port + 1))" \
    --initial-advertise-peer-urls "http://127.0.0.1:$((port + 1))" \
    --initial-cluster "default=http://127.0.0.1:$((port + 1))" >"$work/log" 2>&1 &
pid=$!
for _ in $(seq 200); do
    curl -sf --max-time 5 "http://127.0.0.1:$port/health" >/dev/null && break
    kill -0 "$pid" 2>/dev/null || { cat "$work/log"; exit 1; }
    pause
done
timeout 120 python3 tests/e2e/watch_wire.py "$port" >"$work/out" 2>"$work/err"
rc=$?
cat "$work/err"
[ -n "${UPDATE:-}" ] && [ $rc = 0 ] && cp "$work/out" "$want"
if diff -u "$want" "$work/out" && [ $rc = 0 ]; then
    echo "ok 1 - watches on the wire are those of etcd 3.7.1"
else
    tail -n 5 "$work/log"
    echo "not ok 1 - watches on the wire are those of etcd 3.7.1"
    exit 1
fi
