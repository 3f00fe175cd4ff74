#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves, with three real members: one whose log is damaged while it is down, one whose store is damaged while it is down, and
# one that meets a damaged row while it runs are rebuilt from the others without an operator, keep their ids, neither vote nor
# lead before that, and hash like the others after it; writes go on meanwhile. A sole member with the same damage refuses.
. "$(dirname "$0")/cluster_lib.sh"
command -v etcdctl >/dev/null && command -v perl >/dev/null || exit 77
BASE=$((22304 + $$ % 3 * 20))
CLUSTER=$(cluster_of a:1 b:2 c:3)
declare -A N=([a]=1 [b]=2 [c]=3)

puts() { # n kind: over the same keys again and again
    timeout 300 "$O/tests/bench/load" "$2" $((BASE + $1)) 2 20 20000 5000 100 >"$T/out" 2>&1
}
follower() {
    local lead m
    lead=$(leader_n 1 2 3)
    [ -n "$lead" ] && for m in a b c; do [ "${N[$m]}" != "$lead" ] && echo "$m" && return 0; done
    return 1
}
damage() { # file offset bytes
    head -c "$3" /dev/urandom | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null
}
sound() { ! [ -e "$T/$1/FAULTY" ] && ! [ -e "$T/$1/incoming" ]; }
back() { # name what-its-log-says lead
    check "$1: says so" await 20 grep -q "$2" "$T/$1.log"
    check "$1: writes go on" await 20 ctl "$3" put while "$1"
    check "$1: is level again" await 60 level "${N[$1]}" "$3"
    check "$1: is sound again" await 30 sound "$1"
    same "$1: hashes like the others" "$(hash "$3")" "$(hash "${N[$1]}")"
    same "$1: is who it was" "$ID" "$(field "$3" "$1" 1)"
}

for m in a b c; do member_start $m "${N[$m]}"; done
check "three members start" await 30 all_ready a b c
await 20 leader_n 1 2 3 >/dev/null
check "puts" puts 1 fill
check "puts over them" puts 1 put

# ---- the log ----
F=$(follower)
LEAD=$(leader_n 1 2 3)
ID=$(field "$LEAD" "$F" 1)
member_stop "$F" KILL
damage "$(current "$F" wal)/0000000000000001.wal" 100000 1024 # more than a sector: padding is in no crc
member_start "$F" "${N[$F]}"
back "$F" 'the log is damaged' "$LEAD"

# ---- the store, at the start ----
F=$(follower)
LEAD=$(leader_n 1 2 3)
ID=$(field "$LEAD" "$F" 1)
member_stop "$F" KILL
damage "$(current "$F" base)/data.mdb" 0 8192
member_start "$F" "${N[$F]}"
back "$F" 'the store is damaged' "$LEAD"

# ---- rows, while it runs ----
F=$(follower)
LEAD=$(leader_n 1 2 3)
ID=$(field "$LEAD" "$F" 1)
member_stop "$F" TERM
D="$(current "$F" base)/data.mdb"
perl -0777 -pi -e 's{bench/key/(\d{8})5(\d)}{bench/key/${1}X$2}g' "$D" # every tenth key; the pages stay sound
member_start "$F" "${N[$F]}"
check "puts over keys whose rows are damaged there" puts "$LEAD" put
back "$F" 'the store is damaged' "$LEAD"

for m in a b c; do member_stop $m TERM; done

# ---- alone ----
CLUSTER=
member_start s 7
check "a sole member" await 20 ready s
check "a put" ctl 7 put x y
member_stop s KILL
damage "$(current s wal)/0000000000000001.wal" 600 64
member_start s 7
member_wait s
check "alone it refuses, and says why" grep -q 'the log cannot be opened' "$T/s.log"
exit "${FAILED:-0}"
