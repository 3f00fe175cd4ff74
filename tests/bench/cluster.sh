#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# tests/bench/cluster.sh, also the last part of make bench: three members of Cairn and three of etcd on this machine, by the same load generator, in one table.
# CPU is that of all three members together. Rows named -f are asked of a follower, the others of the leader. What is
# measured by calls is measured in turn, a round of the one and a round of the other, since a machine is not as fast in one minute as in
# the next: the table shows the median of the rounds, and in a second one what each round gave. Speed is measured here and never asserted
# in a test. tests/bench/failover.sh measures what happens when a leader goes.
#
#   ETCD=path     another etcd than Debian's          QUICK=1    a tenth of the requests
#   ROUNDS=n      of the calls, 5                     CALLS=1    only the calls
#   ONLY=cairn    only these targets (space separated: cairn etcd)
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/pause.sh
O=${O:-build}
etcd=${ETCD:-$(command -v etcd)}
work=$(mktemp -d "${TMPDIR:-/var/tmp}/cairn-bench-XXXXXX")
port=${PORT:-23890}
load=$O/tests/bench/load
scale=1
[ -n "${QUICK:-}" ] && scale=10
targets=${ONLY:-cairn etcd}
declare -A pid values base=([cairn]=0 [etcd]=100) # values: of a row and a target, one a round
declare -a rows
export ETCDCTL_API=3
target=

# All of these are about the members of $target.
client() { echo $((port + base[$target] + 10 * $1)); }
peer() { echo "http://127.0.0.1:$((port + base[$target] + 10 * $1 + 1))"; }
stop() { [ -n "${pid[$target$1]:-}" ] && { kill -9 "${pid[$target$1]}" 2>/dev/null; wait "${pid[$target$1]}" 2>/dev/null; }; pid[$target$1]=; }
stop_all() { for i in 1 2 3; do stop $i; done; }
trap 'for target in $targets; do stop_all; done; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
die() { echo "bench: $target: $*" >&2; tail -n 5 "$work"/*.log >&2; exit 1; }

start() { # member
    local server=$etcd
    [ "$target" = cairn ] && server=$O/cairnd
    ETCD_LOG_LEVEL=error "$server" --name "m$1" --data-dir "$work/$target$1" --listen-client-urls "http://127.0.0.1:$(client "$1")" \
        --advertise-client-urls "http://127.0.0.1:$(client "$1")" --listen-peer-urls "$(peer "$1")" \
        --initial-advertise-peer-urls "$(peer "$1")" --initial-cluster "m1=$(peer 1),m2=$(peer 2),m3=$(peer 3)" \
        --quota-backend-bytes 8589934592 >>"$work/$target$1.log" 2>&1 &
    pid[$target$1]=$!
}
answers() { "$load" range "$(client "$1")" 1 1 1 1 8 >/dev/null 2>&1; }
await() { # seconds what command...
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ $SECONDS -lt $end ] || die "$what did not happen in time"
        pause 0.01
    done
}
status() { etcdctl --endpoints "127.0.0.1:$(client "$1")" --command-timeout 5s endpoint status -w fields 2>/dev/null | sed -n "s/^\"$2\" : \"*\([0-9]*\).*/\1/p"; }
leader() {
    for i in 1 2 3; do
        [ "$(status $i MemberID)" = "$(status $i Leader)" ] && { echo $i; return; }
    done
    return 1
}
cpu_us() { cat "/proc/${pid[${target}1]}/stat" "/proc/${pid[${target}2]}/stat" "/proc/${pid[${target}3]}/stat" | awk -v hz="$(getconf CLK_TCK)" '{s += $14 + $15} END {print s * 1000000 / hz}'; }
anon_mb() { awk '/^Anonymous:/ {printf "%.0f", $2 / 1024}' "/proc/$1/smaps_rollup"; }
anon_max() { for i in 1 2 3; do anon_mb "${pid[$target$i]}"; echo; done | sort -n | tail -n 1; }
field() { tr ' ' '\n' <<<"$1" | sed -n "s/^$2=//p"; }
note() { # row value
    values["$1,$target"]+="$2 "
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
median() { tr ' ' '\n' <<<"$1" | grep . | sort -n | awk '{v[NR] = $1} END {print NR ? v[int((NR + 1) / 2)] : "-"}'; }
level() { # follower, leader: both have applied the same
    local a
    a=$(status "$1" RaftAppliedIndex)
    [ -n "$a" ] && [ "$a" -ge "$(status "$2" RaftAppliedIndex)" ]
}

# What is asked of a leader follows it, should it change.
leads() { leader >"$work/leader"; }
find_members() {
    await 30 "a leader" leads
    l=$(<"$work/leader")
    f=$((l % 3 + 1))
}
round() {
    find_members
    calls put "$l" put 10 100 $((60000 / scale)) 1000
    calls range "$l" range 10 100 $((60000 / scale)) 1000
    calls put-f "$f" put 10 100 $((40000 / scale)) 1000
    calls range-f "$f" range 10 100 $((40000 / scale)) 1000
    calls put1 "$l" put 1 1 $((1000 / scale)) 1000
    calls range1 "$l" range 1 1 $((1500 / scale)) 1000
}
# A follower that misses 200,000 puts, and the time until it is level again, from its start; a member with 1,000,000 keys.
large() {
    local from
    find_members
    stop "$f"
    "$load" put "$(client "$l")" 10 100 $((200000 / scale)) 10000 256 >/dev/null || die "puts without a follower"
    from=$(date +%s%N)
    start "$f"
    await 60 "the follower's answer" answers "$f"
    await 60 "the follower level again" level "$f" "$l"
    note caught-up-ms $((($(date +%s%N) - from) / 1000000))
    "$load" fill "$(client "$l")" 10 100 $((1000000 / scale)) $((1000000 / scale)) 112 >/dev/null || die "1M keys"
    note 1M-keys-memory-mb "$(anon_max)"
    pause 3
    stop "$f"
    from=$(date +%s%N)
    start "$f"
    await 60 "the restarted member's answer" answers "$f"
    note 1M-keys-restart-ms $((($(date +%s%N) - from) / 1000000))
}

for target in $targets; do
    for i in 1 2 3; do start $i; done
    for i in 1 2 3; do await 30 "member $i answering" answers $i; done
    find_members
    "$load" put "$(client "$l")" 10 100 $((20000 / scale)) 1000 256 >/dev/null || die "warming up"
done
for _ in $(seq "${ROUNDS:-5}"); do
    for target in $targets; do round; done
done
for target in $targets; do
    note memory-after-puts-mb "$(anon_max)"
    [ -n "${CALLS:-}" ] || large
    stop_all
    rm -rf "${work:?}/$target"*
done

header() {
    printf '\n%-24s' "$1"
    for target in $targets; do printf "%$2s" "$target"; done
    echo
}
header "3 members, 256 bytes" 12
for row in "${rows[@]}"; do
    printf '%-24s' "$row"
    for target in $targets; do printf '%12s' "$(median "${values["$row,$target"]:-}")"; done
    echo
done
header "the rounds" 42
for row in "${rows[@]}"; do
    [ "$(wc -w <<<"${values["$row,${targets%% *}"]:-}")" -gt 1 ] || continue
    printf '%-24s' "$row"
    for target in $targets; do printf '%42s' "${values["$row,$target"]:-}"; done
    echo
done
echo "etcd: $("$etcd" --version | head -1)"
