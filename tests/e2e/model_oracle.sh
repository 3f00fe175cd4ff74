#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves that cairnd answers 10,000 random operations (Range with every option, nested txns, compactions, leases, HashKV,
# watches of the past and live ones) exactly as Debian's etcd does: tests/e2e/oracle.c asks both the same and compares.
# Half way cairnd is killed (-9) and started again, and must go on as if nothing had been.
#
#   SEED=n OPS=n     repeat a run, or a longer one        ETCD=path     another etcd (3.7: with LEAVE_OUT=keys_only)
set -u
cd "$(dirname "$0")/../.." || exit 1
O=${O:-build}
etcd=${ETCD:-$(command -v etcd)} || { echo "there is no etcd to compare with"; exit 77; }
# In memory where possible: etcd's fsyncs are not what is tested.
work=$(mktemp -d -p /dev/shm cairn-oracle-XXXXXX 2>/dev/null || mktemp -d "${TMPDIR:-/tmp}/cairn-oracle-XXXXXX")
port=${PORT:-$((25000 + $$ % 1000 * 4))}
pids=
trap 'exec 2>/dev/null; for p in $pids; do kill -9 "$p"; done; wait; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
ops=${OPS:-10000}
[ -n "${SAN:-}${TSAN:-}" ] && ops=$((ops / 5))

start() { # name program client-port
    "$2" --name m --data-dir "$work/$1" \
        --listen-client-urls "http://127.0.0.1:$3" --advertise-client-urls "http://127.0.0.1:$3" \
        --listen-peer-urls "http://127.0.0.1:$(($3 + 1))" --initial-advertise-peer-urls "http://127.0.0.1:$(($3 + 1))" \
        --initial-cluster "m=http://127.0.0.1:$(($3 + 1))" >"$work/$1.log" 2>&1 &
    pids="$pids $!"
}

ask() { # operations
    timeout 300 "$O/tests/e2e/oracle" "127.0.0.1:$port" "127.0.0.1:$((port + 2))" "$1" && return
    echo "# the end of cairnd's log:"
    tail -n 5 "$work/cairnd.log" | sed 's/^/# /'
    exit 1
}

start etcd "$etcd" "$port"
start cairnd "$O/cairnd" $((port + 2))
ask $((ops / 2))
{ kill -9 ${pids##* }; wait ${pids##* }; } 2>/dev/null
pids=${pids% *}
start cairnd "$O/cairnd" $((port + 2))
[ -n "${SEED:-}" ] && export SEED=$((SEED + 1))
ask $((ops - ops / 2))
