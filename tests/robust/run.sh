#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Histories of a cluster under faults, each checked: tests/robust/robust.c makes one, this makes many.
#
#   tests/robust/run.sh N [PROGRAM [FLAG...]]     N histories of seeds FIRST, FIRST + 1, ... (FIRST=1)
#
# From the environment: J, how many at a time (2); what robust.c reads, MEMBERS=5 among it. Each has a line; at the end
# there are sums, and "N ok, N failed". A failed one leaves history, faults, logs and data in build/robust/SEED. Exit 77:
# this machine cannot, and why.
set -u
cd "$(dirname "$0")/../.." || exit 1
O=${O:-build}
n=${1:-10} program=${2:-$O/cairnd} jobs=${J:-2} first=${FIRST:-1}
shift $(($# < 2 ? $# : 2))
flags=("$@")
robust=$O/tests/robust/robust
program=$(command -v "$program") || { echo "robust: there is no such program"; exit 1; }
why=$("$robust" probe) || { status=$?; echo "$why"; exit $status; }
mkdir -p "$O/robust" || exit 1

help=$("$program" --help 2>&1)

# What a seed decides besides the faults: how often there is a snapshot and what a member may lag behind without needing
# one, how soon an election.
one() { # seed
    local seed=$1 dir=$O/robust/$1 counts=(100 1000 100000) lags=(10 200 5000) timers=() start=$SECONDS
    rm -rf "$dir"
    [[ $help == *snapshot-catchup-entries* ]] && timers+=(--snapshot-catchup-entries "${lags[seed / 39 % 3]}")
    [ $((seed / 13 % 3)) = 0 ] && timers+=(--heartbeat-interval 50 --election-timeout 500)
    timers+=(--snapshot-count "${counts[seed / 39 % 3]}")
    SEED=$seed timeout -k 5 "${LIMIT_S:-240}" "$robust" run "$program" "$dir" "${timers[@]}" "${flags[@]}" \
        >"$O/robust/$seed.out" 2>&1
    local status=$?
    grep -q '^ok\|^not ok' "$O/robust/$seed.out" || echo "not ok - seed $seed: status $status" >>"$O/robust/$seed.out"
    local snaps
    snaps=$(cat "$dir"/m?.log 2>/dev/null | grep -c 'a snapshot has been received\|applied snapshot"')
    sed -i "s/; healed in/; $snaps snapshots&/" "$O/robust/$seed.out"
    sed "s/^ok - \|^not ok - /&$((SECONDS - start)) s, /" "$O/robust/$seed.out" | tee -a "$lines"
    [ $status = 0 ] && rm -rf "$dir"
    [ $status = 0 ] || echo "$seed" >>"$failed"
    rm -f "$O/robust/$seed.out"
}

# A fault is summed as "happened/tried", another number under the word behind it, the first of each in a line.
sums() {
    awk '/^ok|^not ok/ {
        gsub(/[;:,()]/, "")
        split("", seen)
        for (i = 1; i <= NF; i++) {
            if ($i ~ /^[0-9]+\/[0-9]+$/) { split($i, of, "/"); happened[$(i - 1)] += of[1]; tried[$(i - 1)] += of[2] }
            if ($i ~ /^[0-9]+$/ && !seen[$(i + 1)]++) sum[$(i + 1)] += $i
        }
    } END {
        printf "in all:"
        for (k in tried) printf " %s %d/%d", k, happened[k], tried[k]
        printf "; %d rounds of several at once; %d leader changes; %d calls answered, %d revisions; %d snapshots\n",
            sum["rounds"], sum["leader"], sum["calls"], sum["revisions"], sum["snapshots"]
    }' "$lines"
}

failed=$(mktemp) lines=$(mktemp)
trap 'rm -f "$failed" "$lines"' EXIT
for ((seed = first; seed < first + n; seed++)); do
    while [ "$(jobs -pr | wc -l)" -ge "$jobs" ]; do wait -n; done
    one "$seed" &
done
wait
sums
bad=$(wc -l <"$failed")
echo "robust: $((n - bad)) ok, $bad failed${bad:+ }$(sort -n "$failed" | tr '\n' ' ')"
[ "$bad" = 0 ]
