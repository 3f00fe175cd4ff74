#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: three members do what etcd's tutorial asks of them with etcd's own etcdctl, and say it in the same words as Debian's etcd
# in the same places: lists, status and health, writes through each member, move-leader, remove, add, learner, promote, and what is
# refused. A member killed with kill -9 is not missed and comes back; a removed one stops by itself; SIGTERM hands leadership over.
set -u
cd "$(dirname "$0")/../.." || exit 1
# shellcheck source=tests/e2e/cluster_lib.sh
. tests/e2e/cluster_lib.sh
command -v etcdctl >/dev/null || { echo "1..0 # SKIP no etcdctl"; exit 77; }

# Ids, ports and figures are what may differ.
plain() {
    # An id is printed %16x: a short one has more blanks before it.
    sed -E -e 's/ *\b[0-9a-f]{12,16}\b/ ID/g' -e 's/took = [0-9.]+(ms|µs|s)/took = TIME/' -e 's/ +\|/ |/g' -e 's/\| +/| /g' -e 's/-{2,}/-/g' \
        -e 's/[0-9.]+ [kM]B/SIZE/' -e 's/\| [34]\.[0-9]+\.[0-9]+ \|/| VERSION |/' \
        -e 's/^(ETCD_INITIAL_CLUSTER=).*/\1.../' -e 's/^\{"level":"warn".*\}$/WARNING/' | grep -v '^WARNING$'
}
say() { # step command...: into the transcript
    local step=$1
    shift
    { echo "== $step"; "$@" 2>&1 | plain; } >>"$script"
}
say_list() { # step n: the members, in the order of their names
    { echo "== $1"; ctl "$2" member list -w table 2>&1 | plain | sort; } >>"$script"
}
# The strict check wants members that have been connected for a while: asks until it is content.
settled() {
    local end=$((SECONDS + 20 * SLOW)) out
    while out=$(ctl "$@" 2>&1); grep -q 'unhealthy cluster' <<<"$out" && [ $SECONDS -lt $end ]; do pause 0.2; done
    echo "$out"
}
# The status table without the columns that count; leaders and followers sorted.
status_table() { ctl 1 endpoint status --cluster -w table | sed -E 's/(true|false) \| +(true|false) \|.*/\1 | \2/' | sort; }
health() { ctl 1 endpoint health --cluster 2>&1 | sort; }

all="a:1 b:2 c:3"
# shellcheck disable=SC2086
begin() {
    CLUSTER=$(cluster_of $all)
    for m in $all; do member_start "${m%:*}" "${m#*:}"; done
    for m in 1 2 3; do await 30 ctl $m put ready "$m" >>"$T/out" || return 1; done
    await 20 lead_from_2
}
# The same one leads in both, so that the same ones are asked and removed.
lead_from_2() {
    local lead
    lead=$(leader_n 1 2 3) || return 1
    [ "$lead" = 2 ] && return 0
    ctl "$lead" move-leader "$(field 1 b 1)"
    return 1
}
end() {
    for m in "${!PID[@]}"; do kill -9 "${PID[$m]}" 2>/dev/null; member_wait "$m"; done
    for m in "$T"/*/; do rm -rf "$m"; done
}
listed() { # words: the list has a line like this
    ctl 1 member list | grep -q "$1"
}
not_leader() { # n of 1 2 3
    local n
    for n in 1 2 3; do [ "$n" != "$1" ] && echo "$n" && return; done
}
name_of() { echo abc | cut -c"$1"; }

# Three members, nothing removed yet.
walk_basic() {
    local lead other
    say_list "list" 1
    { echo "== list, simple"; ctl 2 member list | plain | sort; } >>"$script"
    say "status" status_table
    say "health" health
    say "put 1" ctl 1 put k one
    say "get 2" ctl 2 get k
    say "put 2" ctl 2 put k two
    say "get 3" ctl 3 get k
    say "put 3" ctl 3 put k three
    say "get 1" ctl 1 get k
    say "get 1 serializable" ctl 1 get k --consistency=s
    lead=$(leader_n 1 2 3)
    other=$(not_leader "$lead")
    say "move-leader elsewhere" ctl "$other" move-leader "$(field 1 "$(name_of "$other")" 1)"
    say "move-leader" ctl "$lead" move-leader "$(field 1 "$(name_of "$other")" 1)"
    await 10 ctl "$other" put after move >>"$T/out"
    say "who leads" leader_is "$other"
    say "move-leader to nobody" ctl "$other" move-leader 1234567890
}
leader_is() { [ "$(leader_n 1 2 3)" = "$1" ] && echo "as asked"; }

walk_refusals() {
    say "remove nobody" ctl 1 member remove 1234567890abcdef
    say "add a URL that is there" settled 1 member add x --peer-urls "$(peer 2)"
    say "add no URL" ctl 1 member add x --peer-urls nonsense
    say "promote a voter" ctl 1 member promote "$(field 1 b 1)"
    say "promote nobody" ctl 1 member promote 1234567890abcdef
    say "update nobody" ctl 1 member update 1234567890abcdef --peer-urls http://127.0.0.1:1
    say "update to another's" ctl 1 member update "$(field 1 b 1)" --peer-urls "$(peer 3)"
}

# The leader goes; one comes as a voter, goes, and comes again as a learner.
walk_changes() {
    local lead name id at
    await 20 lead_from_2
    lead=2
    name=$(name_of "$lead")
    at="$lead"
    id=$(field 1 "$name" 1)
    say "remove the leader" settled 1 member remove "$id"
    await 15 gone "$name" || { echo "$name runs on" >>"$script"; kill -9 "${PID[$name]}"; }
    member_wait "$name"
    say "its status" echo "$status"
    await 15 ctl 1 put after remove >>"$T/out"
    say_list "list of two" 1
    say "start it again" refused_old "$name" "$at"
    rm -rf "${T:?}/$name"
    added "$name" "$at"
    { echo "== add"; plain <"$T/added"; } >>"$script"
    say_list "list with one unstarted" 1
    CLUSTER=$(sed -n 's/^ETCD_INITIAL_CLUSTER="\(.*\)"/\1/p' "$T/added") member_start "$name" "$at" --initial-cluster-state existing
    await 30 listed ", started, $name"
    await 15 ctl "$at" get k >>"$T/out"
    say "get of the new one" ctl "$at" get k
    say "put to the new one" ctl "$at" put k four
    say_list "list with the new one" 1
    say "remove it again" settled 1 member remove "$(field 1 "$name" 1)"
    await 15 gone "$name" || { echo "$name runs on" >>"$script"; kill -9 "${PID[$name]}"; }
    member_wait "$name"
    rm -rf "${T:?}/$name"
    added "$name" "$at" --learner
    { echo "== add a learner"; plain <"$T/added"; } >>"$script"
    say "another learner" settled 1 member add y --learner --peer-urls http://127.0.0.1:9
    say "promote one that never came" ctl 1 member promote "$(sed -n 's/^Member *\([0-9a-f]*\) added.*/\1/p' "$T/added")"
    CLUSTER=$(sed -n 's/^ETCD_INITIAL_CLUSTER="\(.*\)"/\1/p' "$T/added") member_start "$name" "$at" --initial-cluster-state existing
    await 30 listed ", started, $name"
    say_list "list with a learner" 1
    say "get of a learner" ctl "$at" get k
    say "serializable get of a learner" await 15 serializable_is "$at" four
    say "put to a learner" ctl "$at" put k five
    await 20 ctl 1 member promote "$(field 1 "$name" 1)"
    say "promote" cat "$T/await"
    say_list "list with it promoted" 1
    await 15 ctl "$at" put k six >>"$T/out"
    say "get of the promoted" ctl "$at" get k
}
serializable_is() { [ "$(ctl "$1" get k --consistency=s --print-value-only)" = "$2" ]; }
refused_old() { # name n: with the old data a removed member ends by itself
    CLUSTER='' member_start "$1" "$2"
    await 15 gone "$1" || { echo "it runs on"; kill -9 "${PID[$1]}"; }
    member_wait "$1"
    grep -o 'permanently removed' "$T/$1.log" | head -n 1
}
added() { # name n flags...
    local name=$1 n=$2
    shift 2
    settled 1 member add "$name" --peer-urls "$(peer "$n")" "$@" >"$T/added"
}

# ---- the same with both -----------------------------------------------------------------------------------------
etcd=$(command -v etcd || true)
walk() { # transcript
    script=$1
    : >"$script"
    walk_basic
    walk_refusals
    walk_changes
}
if [ -n "$etcd" ]; then
    SERVER=$etcd begin && SERVER=$etcd walk "$T/etcd.said"
    end
fi
check "three members serve" begin
walk "$T/cairn.said"
compare() { diff "$T/etcd.said" "$T/cairn.said"; }
if [ -n "$etcd" ]; then check "all of it in etcd's words" compare; else echo "ok - etcd's words # SKIP no etcd"; fi
for step in "put 3" "get 1" "move-leader" "remove the leader" "add" "put to the new one" "promote" "get of the promoted"; do
    said=$(awk -v s="== $step" '$0 == s { on = 1; next } /^== / { on = 0 } on' "$T/cairn.said")
    if [ -n "$said" ] && ! grep -q '^Error' <<<"$said"; then ok "$step"; else echo "$said" >"$T/out"; not_ok "$step"; fi
done

# ---- kill -9, restart, SIGTERM --------------------------------------------------------------------------------------
lead=$(leader_n 1 2 3)
other=$(not_leader "$lead")
name=$(name_of "$lead")
from=$(date +%s%N)
member_stop "$name" KILL
check "a put after kill -9 of the leader" await 10 ctl "$other" put k seven
echo "# the next put was acknowledged $((($(date +%s%N) - from) / 1000000)) ms after kill -9 (etcdctl's start in it)"
check "health says who is gone" grep -q "$(client "$lead") is unhealthy" <(ctl "$other" endpoint health --cluster 2>&1)
CLUSTER='' member_start "$name" "$lead"
check "it comes back with its data alone" await 20 ready "$name"
check "it has what it missed" await 10 serializable_is "$lead" seven
lead=$(leader_n 1 2 3)
term=$(status_of "$lead" raftTerm)
name=$(name_of "$lead")
other=$(not_leader "$lead")
member_stop "$name" TERM
same "SIGTERM ends the leader by that signal" 143 "$status"
check "it handed leadership over" grep -q 'leadership transfer finished' "$T/$name.log"
check "a put goes on" await 5 ctl "$other" put k eight
same "one term later" $((term + 1)) "$(status_of "$other" raftTerm)"

# ---- without a quorum everything has an end --------------------------------------------------------------------------
two=$(for n in 1 2 3; do [ "$n" != "$lead" ] && [ "$n" != "$other" ] && echo "$n"; done)
member_stop "$(name_of "$two")" KILL
no_leader() { curl -s "$(client "$other")/health" | grep -q '"health":"false"'; }
check "health over HTTP without a quorum" await 10 no_leader
check "endpoint health says unhealthy" grep -q unhealthy <(ctl "$other" endpoint health 2>&1)
check "a serializable get goes on" serializable_is "$other" eight
listed_at_other() { ctl "$other" member list | grep -q started; }
check "the list goes on" listed_at_other
check "a put ends with an error" grep -q 'deadline exceeded\|timed out\|no leader' <(ctl "$other" put k nine 2>&1)
check "metrics say that there is no leader" grep -q '^etcd_server_has_leader 0' <(curl -s "$(client "$other")/metrics")
member_stop "$(name_of "$other")" TERM
check "SIGTERM ends it within a second and a half ($took ms)" [ "$took" -le $((1500 * SLOW)) ]
exit "${FAILED:-0}"
