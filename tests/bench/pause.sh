#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# tests/bench/pause.sh: what a put waits while the store works: p50, p99 and max of puts (one connection, 8 at a time) at rest and
# while 1,000,000 keys are flushed, compacted and defragmented. Needs etcdctl. The p99 may grow by 10 ms at most (figures of
# the design); like all of bench, nothing is asserted.
#
#   KEYS=n       how many keys               SERVER=path    another server that takes etcd's flags
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/pause.sh
O=${O:-build}
server=${SERVER:-$O/cairnd}
keys=${KEYS:-1000000}
port=${PORT:-23790}
work=$(mktemp -d "${TMPDIR:-/var/tmp}/cairn-pause-XXXXXX")
load=$O/tests/bench/load
pid=
trap '[ -n "$pid" ] && { kill -9 "$pid"; wait "$pid" 2>/dev/null; }; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
export ETCDCTL_API=3
ctl() { timeout 600 etcdctl --endpoints "http://127.0.0.1:$port" --command-timeout=600s "$@"; }

"$server" --data-dir "$work/data" --listen-client-urls "http://127.0.0.1:$port" --advertise-client-urls "http://127.0.0.1:$port" \
    --listen-peer-urls "http://127.0.0.1:$((port + 1))" --quota-backend-bytes 8589934592 >"$work/log" 2>&1 &
pid=$!
for n in $(seq 1000); do
    "$load" range "$port" 1 1 1 1 8 >/dev/null 2>&1 && break
    pause 0.02
done

# Puts in runs of 4,000 until the command is done, at least 5 runs; the mean of the runs' p50 and p99, the worst p99 and max.
measure() { # name command...
    local name=$1 op out n=0
    shift
    "$@" >"$work/op.log" 2>&1 &
    op=$!
    : >"$work/runs"
    while [ $n -lt 5 ] || kill -0 "$op" 2>/dev/null; do
        SEED=$RANDOM "$load" put "$port" 1 8 4000 "$keys" 256 >>"$work/runs" || exit 1
        n=$((n + 1))
    done
    wait "$op" || echo "pause: $name failed: $(tail -n 1 "$work/op.log")" >&2
    tr ' ' '\n' <"$work/runs" | awk -F= -v name="$name" -v runs=$n '
        $1 == "p50_us" { p50 += $2; k++ } $1 == "p99_us" { sum += $2; if ($2 > p99) p99 = $2 } $1 == "max_us" { if ($2 > max) max = $2 }
        END { printf "%-22s%10d%10d%12d%12d%8d\n", name, p50 / k, sum / k, p99, max, runs }'
}
settle() { pause 4; } # the delta is flushed after two idle seconds
burst() { SEED=7 "$load" put "$port" 10 100 150000 "$keys" 256; } # more than one delta's worth
revision() { ctl endpoint status -w json | sed 's/.*"revision":\([0-9]*\).*/\1/'; }

"$load" fill "$port" 10 100 "$keys" "$keys" 256 >/dev/null || exit 1
"$load" put "$port" 10 100 "$keys" "$keys" 256 >/dev/null || exit 1
settle
printf '%-22s%10s%10s%12s%12s%8s\n' "us, $keys keys" p50 "p99 mean" "p99 worst" max runs
measure at-rest true
burst >/dev/null || exit 1
measure while-flushing true
settle
measure while-compacting ctl compact --physical "$(revision)"
settle
measure while-defragmenting ctl defrag
