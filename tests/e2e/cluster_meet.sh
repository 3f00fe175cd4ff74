#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves, with real members: one that was down while another member was added, and is started (without --initial-cluster) when
# that one leads, becomes ready; so does one that runs and was cut off meanwhile. Where its leader is stands in entries that it has
# not got yet: without asking it could never answer it.
[ -n "${IN_NET:-}" ] || { unshare --net true 2>/dev/null || { echo "needs network namespaces"; exit 77; }; IN_NET=1 exec unshare --net "$0" "$@"; }
. "$(dirname "$0")/cluster_lib.sh"
command -v etcdctl >/dev/null || exit 77
BASE=$((32800 + $$ % 9 * 20))
ip link set lo up
declare -A N=([a]=1 [b]=2 [c]=3 [d]=4 [e]=5)
# The third is spoken to at an address of its own, which can be cut off.
peer() { echo "http://127.0.0.$(($1 == 3 ? 3 : 1)):$((BASE + 10 + $1))"; }
cut_off() { ip rule add pref 10 lookup local && ip rule del pref 0 && ip rule add pref 1 to 127.0.0.3 blackhole; }
healed() { ip rule del pref 1; }
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

# The same without a start.
check "another is to lead" await 20 ctl 4 move-leader "$(field 1 a 1)"
check "it does" await 20 leads 1 2 3 4
check "the third is not heard any more" cut_off
CLUSTER=
check "a fifth is added" await 20 ctl 1 member add e --peer-urls "$(peer 5)"
CLUSTER=$(cluster_of a:1 b:2 c:3 d:4 e:5) member_start e 5 --initial-cluster-state existing
check "it is ready" await 30 ready e
check "it is to lead" await 20 ctl 1 move-leader "$(field 1 e 1)"
check "it leads" await 20 leads 5 1 2 4
# Who led and might still have sent it something begins anew.
member_stop a TERM
CLUSTER= member_start a 1
check "who led is ready again" await 30 ready a
check "it leads still" await 20 leads 5 1 2 4
check "the others go on" await 20 ctl 1 put x without
check "who was cut off knows nothing of it" bash -c '! grep -q "$0" <<<"$1"' "$(peer 5)" "$(ctl 3 member list --consistency=s 2>&1)"
check "then it is heard again" healed
check "who runs and does not know it is level" await 40 level 3 5
check "it leads still" leads 5 1 2 3 4
exit "${FAILED:-0}"
