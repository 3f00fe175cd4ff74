#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves, with three real members: a follower that missed 200,000 puts is level again within 10 s of its start, by a
# snapshot; kill -9 of the receiver or of the sender in the middle of a transfer harms nothing, and the transfer is made
# again; a new member of a cluster with that many keys gets all of them; members hash the same after all of it; and a
# member whose state differs is named by the CORRUPT alarm within 60 s, after which requests are refused until it is
# disarmed, and is rebuilt meanwhile.
. "$(dirname "$0")/cluster_lib.sh"
command -v etcdctl >/dev/null && [ -x "$O/tests/e2e/diverge" ] || exit 77
BASE=$((22300 + $$ % 4 * 20))
PUTS=${PUTS:-200000}
[ -n "${SAN:-}${TSAN:-}" ] && PUTS=20000
CLUSTER=$(cluster_of a:1 b:2 c:3)
# The log behind a flush goes every so many entries: with fewer than are put in each step here, who missed them needs a snapshot.
start() { member_start "$1" "${N[$1]}" --snapshot-count 10000 "${@:2}"; }

put_some() { # n count first
    timeout 300 "$O/tests/bench/load" fill $((BASE + $1)) 4 50 "$2" "$2" 50 "$3" >"$T/out" 2>&1
}
# Names, ports.
declare -A N=([a]=1 [b]=2 [c]=3 [d]=4)
followers() { # of a b c, those that do not lead
    local lead m
    lead=$(leader_n 1 2 3)
    [ -n "$lead" ] && for m in a b c; do [ "${N[$m]}" != "$lead" ] && echo "$m"; done
}
name_of_leader() {
    local lead m
    lead=$(leader_n "$@")
    for m in a b c; do [ "${N[$m]}" = "$lead" ] && echo "$m"; done
    [ -n "$lead" ]
}

for m in a b c; do start $m; done
check "three members start" await 30 all_ready a b c
await 20 leader_n 1 2 3 >/dev/null
read -r LAG OTHER < <(followers | tr '\n' ' ')
LEAD=$(name_of_leader 1 2 3)

# ---- 200,000 puts missed ----
member_stop "$LAG" KILL
check "$PUTS puts without $LAG" put_some "${N[$LEAD]}" "$PUTS" 0
pause 3 # the log is let go with a flush, 2 s after the last entry
from=$(date +%s%N)
start "$LAG"
check "the follower is level within 10 s" await 10 level "${N[$LEAD]}" "${N[$LAG]}"
echo "# level after $((($(date +%s%N) - from) / 1000000)) ms"
check "by a snapshot" grep -q 'a snapshot has been received' "$T/$LAG.log"
same "it hashes the same" "$(hash "${N[$LEAD]}")" "$(hash "${N[$LAG]}")"

# The log behind a snapshot is kept for 30 s, or until the leader, which looks each half second, sees its receiver level.
one_more() { ctl "${N[$LEAD]}" put more "$1" >/dev/null && await 10 level "${N[$LEAD]}" "${N[$LAG]}" && pause 2; }

# ---- the receiver dies in the middle of it ----
check "it follows by the log" one_more 1
member_stop "$LAG" KILL
check "more puts without it" put_some "${N[$LEAD]}" 40000 "$PUTS"
pause 3 # the log is let go with a flush, 2 s after the last entry
receiving() { # at once, not every tenth of a second: a transfer is short
    local i
    for ((i = 0; i < 2000; i++)); do [ -s "$T/$1/incoming/data.mdb" ] && return 0; done
    return 1
}
for i in 1 2; do
    start "$LAG"
    check "a transfer has begun ($i)" await 20 receiving "$LAG"
    member_stop "$LAG" KILL
done
start "$LAG"
check "the receiver was killed twice, and is level" await 30 level "${N[$LEAD]}" "${N[$LAG]}"
same "it hashes the same after that" "$(hash "${N[$LEAD]}")" "$(hash "${N[$LAG]}")"

# ---- the sender dies in the middle of it ----
check "it follows by the log again" one_more 2
member_stop "$LAG" KILL
check "more puts again" put_some "${N[$LEAD]}" 40000 $((PUTS + 40000))
pause 3
start "$LAG"
check "a transfer has begun again" await 20 receiving "$LAG"
member_stop "$LEAD" KILL
check "the other one leads, and the follower is level" await 40 level "${N[$OTHER]}" "${N[$LAG]}"
start "$LEAD"
check "the old leader is level too" await 40 level "${N[$OTHER]}" "${N[$LEAD]}"
check "writes go on" ctl "${N[$LEAD]}" put after kills
check "all are level" await 20 level "${N[$OTHER]}" "${N[$LAG]}"
same "all hash the same" "$(hash 1) $(hash 1)" "$(hash 2) $(hash 3)"

# ---- a new member ----
check "a member is added" await 20 ctl 1 member add d --peer-urls="$(peer 4)"
CLUSTER=$(cluster_of a:1 b:2 c:3 d:4)
member_start d 4 --initial-cluster-state existing
check "the new member is ready" await 40 ready d
check "the new member is level" await 40 level 1 4
same "the new member hashes the same" "$(hash 1)" "$(hash 4)"
ID=$(field 1 d 1)
check "and goes again" ctl 1 member remove "$ID"
member_stop d KILL

# ---- a member whose state differs ----
LEAD=$(name_of_leader 1 2 3)
LAG=$(followers | head -n 1)
ID=$(field "${N[$LEAD]}" "$LAG" 1)
alarmed() { ctl "${N[$LEAD]}" alarm list | grep -q "memberID:$(printf %u "0x$ID") alarm:CORRUPT"; }
same "no alarm before" "" "$(ctl "${N[$LEAD]}" alarm list)"
member_stop "$LAG" TERM
check "a divergence is planted" "$O/tests/e2e/diverge" "$T/$LAG/base-$(sed -n 's/^base //p' "$T/$LAG/CURRENT")"
start "$LAG"
await 20 ready "$LAG"
ctl "${N[$LEAD]}" put one more >/dev/null 2>&1
from=$(date +%s%N)
check "the CORRUPT alarm names it within 60 s" await 60 alarmed
echo "# named after $((($(date +%s%N) - from) / 1000000)) ms"
refused() { ctl "${N[$LEAD]}" put x y 2>&1 | grep -q 'corrupt cluster'; }
check "requests are refused as etcd does" await 10 refused
check "who differs is rebuilt" await 60 grep -q 'this member is sound again' "$T/$LAG.log"
LEAD=$(await 20 name_of_leader 1 2 3; name_of_leader 1 2 3)
check "the alarm is disarmed" await 20 ctl "${N[$LEAD]}" alarm disarm
check "writes go on" await 20 ctl "${N[$LEAD]}" put after alarm
check "all are level" await 30 level "${N[$LEAD]}" "${N[$LAG]}"
pause 3 # rounds of the comparison
same "no alarm comes again" "" "$(ctl "${N[$LEAD]}" alarm list)"
same "all hash the same at the end" "$(hash 1) $(hash 1)" "$(hash 2) $(hash 3)"

for m in a b c; do member_stop $m TERM; done
exit "${FAILED:-0}"
