#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Many seeds on some cores: SEEDS=n [SEED=first] [JOBS=2] tests/sim/run.sh; the seeds that failed are printed, with why.
cd "$(dirname "$0")/../.." || exit 1
O=${O:-build} seeds=${SEEDS:-1000} first=${SEED:-}
first=${first:-$((RANDOM * 100000))} jobs=${JOBS:-2} rc=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
each=$(((seeds + jobs - 1) / jobs))
start=$SECONDS pids=()
for ((i = 0; i < jobs; i++)); do
    SEED=$((first + i * each)) SEEDS=$each "$O/tests/unit/sim" >"$tmp/$i" 2>&1 &
    pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || rc=1; done
grep -h '^#' "$tmp"/*
echo "sim: $((each * jobs)) seeds from $first in $((SECONDS - start)) s: $([ $rc = 0 ] && echo no failure || echo FAILED)"
exit $rc
