#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves that a cluster of three real members, each behind a link of its own, answers its clients as one correct etcd
# would while members are killed, paused, cut off and their disks are slow or full: tests/robust/robust.c makes a
# history of each of the thirteen main faults, and the checker compares all that was answered with the committed order. Then
# the same with five members, twice. Needs root, for network namespaces; skipped where there are none.
#
#   N=50    more of them (13)      FIRST=n    from this seed      J=1    one at a time (3)
set -u
cd "$(dirname "$0")/../.." || exit 1
[ -z "${SAN:-}${TSAN:-}" ] || { echo "only without sanitizers: they change what is fast and slow"; exit 77; }
first=${FIRST:-$((RANDOM * 13))}
echo "# FIRST=$first"
export FAULT_S=${FAULT_S:-5}
FIRST=$first J=${J:-3} tests/robust/run.sh "${N:-13}" || exit
MEMBERS=5 FIRST=$((first + 100000)) J=1 tests/robust/run.sh 2
