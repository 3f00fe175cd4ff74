#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves, with real members: one that was down while another member was added, and is started (without --initial-cluster) when that
# one leads, becomes ready. Where its leader is stands in entries that it has not got yet; without asking it could never answer it.
. "$(dirname "$0")/cluster_lib.sh"
command -v etcdctl >/dev/null || exit 77
BASE=$((32800 + $$ % 9 * 20))
declare -A N=([a]=1 [b]=2 [c]=3 [d]=4)
CLUSTER=$(cluster_of a:1 b:2 c:3)

leads() { [ "$(leader_n "$@")" = "$1" ]; }
for m in a b c; do member_start $m "${N[$m]}" --strict-reconfig-check=false; done
check "three members start" await 30 all_ready a b c
await 20 leader_n 1 2 3 >/dev/null
check "all are level" await 20 ctl 1 put x y
member_stop c TERM
check "two go on" await 20 ctl 1 put x z
check "a fourth is added" await 20 ctl 1 member add d --peer-urls "$(peer 4)"
CLUSTER=$(cluster_of a:1 b:2 c:3 d:4) member_start d 4 --initial-cluster-state existing
check "it is ready" await 30 ready d
L=$(leader_n 1 2 4)
[ "$L" = 4 ] || check "it is to lead" await 10 ctl "$L" move-leader "$(field 1 d 1)"
check "it leads" await 20 leads 4 1 2
: >"$T/c.log"
CLUSTER= member_start c 3
check "who does not know it is ready" await 40 ready c
check "and level" await 20 level 3 4
check "it leads still" leads 4 1 2 3
exit "${FAILED:-0}"
