#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: over gRPC cairnd answers the traces of mvcc, txn and watch as apply and hub do by hand in the unit tests; each
# trace is a test, with a new server.
#
#   ETCD37=path     etcd 3.7.1 or later: it is asked too, and must answer the same (not what is named *_ours)
#
# Left out: what needs a clock or a hub that is told to be slow.
set -u
cd "$(dirname "$0")/../.." || exit 1
O=${O:-build}
port=${PORT:-$((21900 + $$ % 20 * 2))}
work=$(mktemp -d -p /dev/shm cairn-trace-XXXXXX 2>/dev/null || mktemp -d "${TMPDIR:-/tmp}/cairn-trace-XXXXXX")
pid=
trap 'exec 2>/dev/null; [ -n "$pid" ] && kill -9 "$pid"; wait; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
failed=0

ask() { # name program trace
    local d=$work/${3##*/}.$1
    "$2" --name m --data-dir "$d" \
        --listen-client-urls "http://127.0.0.1:$port" --advertise-client-urls "http://127.0.0.1:$port" \
        --listen-peer-urls "http://127.0.0.1:$((port + 1))" \
        --initial-advertise-peer-urls "http://127.0.0.1:$((port + 1))" \
        --initial-cluster "m=http://127.0.0.1:$((port + 1))" >"$d.log" 2>&1 &
    pid=$!
    if timeout 120 "$O/tests/e2e/trace_server" "127.0.0.1:$port" "$3"; then
        echo "ok - $1: ${3##*/}"
    else
        echo "not ok - $1: ${3##*/}"
        tail -n 3 "$d.log" | sed 's/^/# /'
        failed=1
    fi
    { kill -9 "$pid"; wait "$pid"; } 2>/dev/null
    pid=
    rm -rf "$d"
}

for t in tests/trace/{mvcc,txn,watch}_*.trace; do
    case $t in *_slow.trace | *_fragment.trace | *_notify.trace) continue ;; esac
    ask cairnd "$O/cairnd" "$t"
    case $t in *_ours.trace) continue ;; esac
    [ -n "${ETCD37:-}" ] && ask etcd "$ETCD37" "$t"
done
exit $failed
