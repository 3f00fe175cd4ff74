#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# tests/bench/cluster.sh, also the last part of make bench: three members of Cairn and three of etcd on this machine, in turn, by the same load generator, in one table.
# CPU is that of all three members together. Rows named -f are asked of a follower, the others of the leader. Speed is measured
# here and never asserted in a test. tests/bench/failover.sh measures what happens when a leader goes.
#
#   ETCD=path     another etcd than Debian's          QUICK=1    a tenth of the requests
#   ONLY=cairn    only these targets (space separated: cairn etcd)
set -u
cd "$(dirname "$0")/../.." || exit 1
O=${O:-build}
etcd=${ETCD:-$(command -v etcd)}
work=$(mktemp -d "${TMPDIR:-/var/tmp}/cairn-bench-XXXXXX")
port=${PORT:-23890}
load=$O/tests/bench/load
scale=1
[ -n "${QUICK:-}" ] && scale=10
declare -A result
declare -a rows pid
export ETCDCTL_API=3
target=

client() { echo $((port + 10 * $1)); }
peer() { echo "http://127.0.0.1:$((port + 10 * $1 + 1))"; }
endpoints="127.0.0.1:$(client 1),127.0.0.1:$(client 2),127.0.0.1:$(client 3)"
stop() { [ -n "${pid[$1]:-}" ] && { kill -9 "${pid[$1]}" 2>/dev/null; wait "${pid[$1]}" 2>/dev/null; }; pid[$1]=; }
stop_all() { for i in 1 2 3; do stop $i; done; }
trap 'stop_all; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
die() { echo "bench: $target: $*" >&2; tail -n 5 "$work"/*.log >&2; exit 1; }

start() { # member
    local server=$etcd
    [ "$target" = cairn ] && server=$O/cairnd
    ETCD_LOG_LEVEL=error "$server" --name "m$1" --data-dir "$work/$target$1" --listen-client-urls "http://127.0.0.1:$(client "$1")" \
        --advertise-client-urls "http://127.0.0.1:$(client "$1")" --listen-peer-urls "$(peer "$1")" \
        --initial-advertise-peer-urls "$(peer "$1")" --initial-cluster "m1=$(peer 1),m2=$(peer 2),m3=$(peer 3)" \
        --quota-backend-bytes 8589934592 >>"$work/$target$1.log" 2>&1 &
    pid[$1]=$!
}
answers() { "$load" range "$(client "$1")" 1 1 1 1 8 >/dev/null 2>&1; }
await() { # seconds what command...
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ $SECONDS -lt $end ] || die "$what did not happen in time"
        read -rt 0.01 <> <(:) || true
    done
}
status() { etcdctl --endpoints "127.0.0.1:$(client "$1")" --command-timeout 5s endpoint status -w fields 2>/dev/null | sed -n "s/^\"$2\" : \"*\([0-9]*\).*/\1/p"; }
leader() {
    for i in 1 2 3; do
        [ "$(status $i MemberID)" = "$(status $i Leader)" ] && { echo $i; return; }
    done
    return 1
}
cpu_us() { cat "/proc/${pid[1]}/stat" "/proc/${pid[2]}/stat" "/proc/${pid[3]}/stat" | awk -v hz="$(getconf CLK_TCK)" '{s += $14 + $15} END {print s * 1000000 / hz}'; }
anon_mb() { awk '/^Anonymous:/ {printf "%.0f", $2 / 1024}' "/proc/$1/smaps_rollup"; }
anon_max() { for i in 1 2 3; do anon_mb "${pid[$i]}"; echo; done | sort -n | tail -n 1; }
field() { tr ' ' '\n' <<<"$1" | sed -n "s/^$2=//p"; }
note() { # row value
    result["$1,$target"]=$2
    [[ " ${rows[*]/#/|} " == *"|$1 "* ]] || rows+=("$1")
}
calls() { # row member mode conns streams requests keys
    local row=$1 member=$2 out before
    shift 2
    before=$(cpu_us)
    out=$("$load" "$1" "$(client "$member")" "$2" "$3" "$4" "$5" 256) || { note "$row" failed; return; }
    [ "$2" = 1 ] || note "$row-per-s" "$(field "$out" rate)"
    [ "$2" = 1 ] || note "$row-cpu-us" "$(awk -v a="$before" -v b="$(cpu_us)" -v n="$4" 'BEGIN {printf "%.1f", (b - a) / n}')"
    [ "$2" = 1 ] && note "$row-mean-us" "$(field "$out" mean_us)"
    note "$row-p99-us" "$(field "$out" p99_us)"
}
level() { # follower, leader: both have applied the same
    local a
    a=$(status "$1" RaftAppliedIndex)
    [ -n "$a" ] && [ "$a" -ge "$(status "$2" RaftAppliedIndex)" ]
}

for target in ${ONLY:-cairn etcd}; do
    for i in 1 2 3; do start $i; done
    for i in 1 2 3; do await 30 "member $i answering" answers $i; done
    l=$(leader) || die "nobody leads"
    f=$((l % 3 + 1))
    "$load" put "$(client "$l")" 10 100 $((20000 / scale)) 1000 256 >/dev/null || die "warming up"
    calls put "$l" put 10 100 $((200000 / scale)) 1000
    note memory-after-puts-mb "$(anon_max)"
    calls range "$l" range 10 100 $((200000 / scale)) 1000
    calls put-f "$f" put 10 100 $((100000 / scale)) 1000
    calls range-f "$f" range 10 100 $((100000 / scale)) 1000
    calls put1 "$l" put 1 1 $((2000 / scale)) 1000
    calls range1 "$l" range 1 1 $((3000 / scale)) 1000
    # A follower that misses 200,000 puts, and the time until it is level again, from its start.
    stop "$f"
    "$load" put "$(client "$l")" 10 100 $((200000 / scale)) 10000 256 >/dev/null || die "puts without a follower"
    from=$(date +%s%N)
    start "$f"
    await 60 "the follower's answer" answers "$f"
    await 60 "the follower level again" level "$f" "$l"
    note caught-up-ms $((($(date +%s%N) - from) / 1000000))
    "$load" fill "$(client "$l")" 10 100 $((1000000 / scale)) $((1000000 / scale)) 112 >/dev/null || die "1M keys"
    note 1M-keys-memory-mb "$(anon_max)"
    read -rt 3 <> <(:) || true
    stop "$f"
    from=$(date +%s%N)
    start "$f"
    await 60 "the restarted member's answer" answers "$f"
    note 1M-keys-restart-ms $((($(date +%s%N) - from) / 1000000))
    stop_all
    rm -rf "${work:?}/$target"*
done

printf '\n%-24s' "3 members, 256 bytes"
for target in ${ONLY:-cairn etcd}; do printf '%12s' "$target"; done
echo
for row in "${rows[@]}"; do
    printf '%-24s' "$row"
    for target in ${ONLY:-cairn etcd}; do printf '%12s' "${result["$row,$target"]:--}"; done
    echo
done
echo "etcd: $("$etcd" --version | head -1)"
