#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# make bench: the limit (a gRPC core server that answers a constant, behind the same pump), Cairn and etcd, measured in turn in
# one run by the same load generator (tests/bench/load.c), in one table. Speed is measured here and never asserted in a test.
#
# Rows named -spin: one client that does not sleep while it waits, so that waking it is no part of the figure. A lone put cannot
# take less than the limit and one fdatasync.
#
#   ETCD=path     another etcd than Debian's          QUICK=1    a tenth of the requests
#   ONLY=cairn    only these targets (space separated: limit cairn etcd)
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/pause.sh
O=${O:-build}
etcd=${ETCD:-$(command -v etcd)}
work=$(mktemp -d "${TMPDIR:-/var/tmp}/cairn-bench-XXXXXX")
port=${PORT:-23790}
pid=
scale=1
[ -n "${QUICK:-}" ] && scale=10
declare -A result
rows=()

stop() { [ -n "$pid" ] && { kill -9 "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; }; pid=; }
trap 'stop; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

start() { # target
    case $1 in
    limit) "$O/tests/bench/limit" "$port" >"$work/limit.log" 2>&1 & ;;
    cairn) "$O/cairnd" --data-dir "$work/cairn" --listen-client-urls "http://127.0.0.1:$port" \
        --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$((port + 1))" \
        --quota-backend-bytes 8589934592 >"$work/cairn.log" 2>&1 & ;;
    etcd) ETCD_LOG_LEVEL=error "$etcd" --data-dir "$work/etcd" --listen-client-urls "http://127.0.0.1:$port" \
        --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$((port + 1))" \
        --quota-backend-bytes 8589934592 >"$work/etcd.log" 2>&1 & ;;
    esac
    pid=$!
    answers || { echo "bench: $1 does not answer; its log:" >&2; tail "$work/$1.log" >&2; exit 1; }
}
answers() { # within 20 s
    local n
    for n in $(seq 2000); do
        "$O/tests/bench/load" range "$port" 1 1 1 1 8 >/dev/null 2>&1 && return 0
        kill -0 "$pid" 2>/dev/null || return 1
        pause 0.01
    done
    return 1
}
cpu_us() { awk -v hz="$(getconf CLK_TCK)" '{print ($14 + $15) * 1000000 / hz}' "/proc/$pid/stat"; }
written() { awk '/^write_bytes/ {print $2}' "/proc/$pid/io"; }
anon_mb() { awk '/^Anonymous:/ {printf "%.0f", $2 / 1024}' "/proc/$pid/smaps_rollup"; }
field() { tr ' ' '\n' <<<"$1" | sed -n "s/^$2=//p"; }
note() { # row target value
    result["$1,$2"]=$3
    [[ " ${rows[*]/#/|} " == *"|$1 "* ]] || rows+=("$1")
}
calls() { # row mode conns streams requests keys
    local row=$1 out before after
    shift
    before=$(cpu_us)
    out=$("$O/tests/bench/load" "$1" "$port" "$2" "$3" "$4" "$5" 256) || { note "$row" "$target" "failed"; return; }
    after=$(cpu_us)
    if [ "$2" = 1 ]; then
        note "$row-mean-us" "$target" "$(field "$out" mean_us)"
        note "$row-p99-us" "$target" "$(field "$out" p99_us)"
    else
        note "$row-per-s" "$target" "$(field "$out" rate)"
        note "$row-cpu-us" "$target" "$(awk -v a="$before" -v b="$after" -v n="$4" 'BEGIN {printf "%.1f", (b - a) / n}')"
    fi
}

for target in ${ONLY:-limit cairn etcd}; do
    start "$target"
    "$O/tests/bench/load" put "$port" 10 100 $((20000 / scale)) 1000 256 >/dev/null || exit 1
    calls put put 10 100 $((200000 / scale)) 1000
    [ "$target" != limit ] && note "memory-after-puts-mb" "$target" "$(anon_mb)"
    calls range range 10 100 $((200000 / scale)) 1000
    calls put1 put 1 1 $((3000 / scale)) 1000
    calls range1 range 1 1 $((5000 / scale)) 1000
    SPIN=1 calls put1-spin put 1 1 $((3000 / scale)) 1000
    SPIN=1 calls range1-spin range 1 1 $((5000 / scale)) 1000
    [ "$target" = limit ] && note fdatasync-mean-us limit "$(field "$("$O/tests/bench/load" sync "$work/sync" $((3000 / scale)))" mean_us)"
    if [ "$target" != limit ]; then
        before=$(cpu_us)
        "$O/tests/bench/load" watch "$port" 10 1000 $((200 / scale)) >/dev/null || note watch-cpu-us-per-event "$target" failed
        note watch-cpu-us-per-event "$target" "$(awk -v a="$before" -v b="$(cpu_us)" -v n=$((2000000 / scale)) 'BEGIN {printf "%.2f", (b - a) / n}')"
        stop
        rm -rf "${work:?}/$target"
        start "$target"
        "$O/tests/bench/load" fill "$port" 10 100 $((1000000 / scale)) $((1000000 / scale)) 112 >/dev/null || exit 1
        sync -f "$work"
        note "1M-keys-memory-mb" "$target" "$(anon_mb)"
        note "1M-keys-disk-mb" "$target" "$(du -sm "$work/$target" | cut -f1)"
        # Two idle seconds, then kill -9 and the time to the first answered read.
        pause 3
        note "1M-keys-idle-memory-mb" "$target" "$(anon_mb)"
        stop
        from=$(date +%s%N)
        start "$target"
        note "restart-ms" "$target" $((($(date +%s%N) - from) / 1000000))
        before=$(cpu_us) wrote=$(written)
        out=$("$O/tests/bench/load" put "$port" 10 100 $((500000 / scale)) $((1000000 / scale)) 256) || exit 1
        note "update-per-s" "$target" "$(field "$out" rate)"
        note "update-p99-us" "$target" "$(field "$out" p99_us)"
        note "update-memory-mb" "$target" "$(anon_mb)"
        pause 3
        note "update-cpu-us" "$target" "$(awk -v a="$before" -v b="$(cpu_us)" -v n=$((500000 / scale)) 'BEGIN {printf "%.1f", (b - a) / n}')"
        note "update-bytes-per-put" "$target" $((($(written) - wrote) / (500000 / scale)))
        note "update-disk-mb" "$target" "$(du -sm "$work/$target" | cut -f1)"
    fi
    stop
    rm -rf "${work:?}/$target"
done

printf '\n%-24s' "256-byte values"
for target in ${ONLY:-limit cairn etcd}; do printf '%12s' "$target"; done
echo
for row in "${rows[@]}"; do
    printf '%-24s' "$row"
    for target in ${ONLY:-limit cairn etcd}; do printf '%12s' "${result["$row,$target"]:--}"; done
    echo
done
echo "etcd: $("$etcd" --version | head -1); memory is anonymous (heap, deltas), the store's map apart"
[ -n "${ONLY:-}" ] || { tests/bench/mount.sh; tests/bench/cluster.sh; }
