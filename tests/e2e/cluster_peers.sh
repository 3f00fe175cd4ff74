#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves, with real members that are started again without --initial-cluster (a restart takes its membership from the data directory),
# or with the founders' list when two of the three founders have been replaced: one whose store is damaged while it is down, one that
# meets the damage while it runs, and one that starts before the others are rebuilt without an operator, from those whom DIR/PEERS
# names; one that is stopped while it is being rebuilt goes on. DIR/PEERS follows the members there are, and is made anew when it is
# damaged. A member that was removed learns it; one whose members were all removed, and a sole one, refuse at once as ever.
. "$(dirname "$0")/cluster_lib.sh"
command -v etcdctl >/dev/null && command -v python3 >/dev/null || exit 77
BASE=$((32000 + $$ % 20 * 20))
declare -A N=([a]=1 [b]=2 [c]=3 [d]=4 [e]=5)

base() { echo "$(current "$1" base)/data.mdb"; }
spoil() { # file text: changed where it stands, through a map of it the member sees this at once
    python3 - "$1" "$2" <<'P'
import sys
path, text = sys.argv[1], sys.argv[2].encode()
b = open(path, "rb").read()
at = b.find(text)
with open(path, "r+b") as f:
    f.seek(at + 3)
    f.write(bytes([b[at + 3] ^ 1]))
sys.exit(at < 0)
P
}
damage() { head -c 8192 /dev/urandom | dd of="$(base "$1")" conv=notrunc 2>/dev/null; }
in_store() { grep -qa "$2" "$(base "$1")"; }
sound() { ! [ -e "$T/$1/FAULTY" ] && ! [ -e "$T/$1/incoming" ]; }
rebuilt() { [ "$(grep -c 'this member is sound again' "$T/$1.log")" = "$2" ]; } # name times
noted() { # name names...: DIR/PEERS of the first has these and no others
    local name=$1 m want
    shift
    want=$(for m; do echo "url $(peer "${N[$m]}")"; done | sort)
    [ "$(grep ^url "$T/$name/PEERS" | sort)" = "$want" ]
}
start() { # name flags...
    local name=$1
    shift
    member_start "$name" "${N[$name]}" "$@"
}
back() { # name other times
    check "$1: is rebuilt" await 60 rebuilt "$1" "${3:-1}"
    check "$1: is sound again" await 30 sound "$1"
    check "$1: is level again" await 60 level "${N[$1]}" "${N[$2]}"
    same "$1: hashes like the others" "$(hash "${N[$2]}")" "$(hash "${N[$1]}")"
    same "$1: is who it was" "$ID" "$(field "${N[$2]}" "$1" 1)"
}
follower_of() { # names...
    local m lead
    lead=$(leader_n $(for m; do echo "${N[$m]}"; done)) || return 1
    for m; do [ "${N[$m]}" != "$lead" ] && echo "$m" && return 0; done
}
ends() { # name: by itself
    check "$1: ends" await 30 gone "$1"
    kill -9 "${PID[$1]}" 2>/dev/null
    member_wait "$1"
}
id() { field "${N[$2]}" "$1" 1; } # name at
another() { [ "$1" = a ] && echo b || echo a; }
puts() { for i in $(seq "$2" "$3"); do ctl "$1" put "key$i" "value-of-$i-like-no-other" >/dev/null || return 1; done; }

CLUSTER=$(cluster_of a:1 b:2 c:3)
FOUNDERS=$CLUSTER
for m in a b c; do start $m; done
check "three members start" await 30 all_ready a b c
await 20 leader_n 1 2 3 >/dev/null
for m in a b c; do check "$m: notes the members" await 10 noted $m a b c; done
check "puts" puts 1 1 30
CLUSTER=

# ---- while it is down; then while it runs ----
F=$(follower_of a b c)
U=$(another "$F")
ID=$(id "$F" "$U")
member_stop "$F" KILL
damage "$F"
start "$F"
check "$F: says so" await 20 grep -q 'the store is damaged; all of it is asked' "$T/$F.log"
back "$F" "$U"
check "$F: is ready" await 30 ready "$F"
check "all is in its store" await 30 in_store "$F" value-of-30-like
check "a value is spoilt there" spoil "$(base "$F")" value-of-9-like
ctl "${N[$F]}" get key9 --consistency=s >"$T/read" 2>&1
check "no wrong value is read" bash -c '! grep -a value "$0" | grep -av value-of-9-like-no-other' "$T/read"
back "$F" "$U" 2
check "$F: is the same process" kill -0 "${PID[$F]}"
same "it is answered rightly then" value-of-9-like-no-other "$(ctl "${N[$F]}" get key9 --print-value-only --consistency=s)"

# ---- who is damaged starts before the others, and is killed while it waits, and while it is being rebuilt ----
waits() { grep -q 'waiting for the other members' "$T/$1.log"; }
member_stop a TERM
member_stop b TERM
member_stop c TERM
ID=$(sed -n 's/^self //p' "$T/a/PEERS")
damage a
start a
check "a: waits for the others" await 20 waits a
member_stop a KILL
start b # which knows them, and is no quorum
start a
check "a: begins anew with nothing" await 20 grep -q 'all of it is asked of the other members' "$T/a.log"
check "a: has a store" await 20 grep -q 'store sound' "$T/a/FAULTY"
member_stop a KILL
member_stop b KILL
start a
check "a: waits for them again" await 20 waits a
start b
start c
back a b
check "all are ready" await 30 all_ready a b c

# ---- DIR/PEERS itself ----
member_stop a TERM
printf x | dd of="$T/a/PEERS" bs=1 seek=20 conv=notrunc 2>/dev/null
start a
check "a: notes the members anew" await 20 noted a a b c
check "a: is ready" await 20 ready a
member_stop a TERM
rm "$T/a/PEERS"
start a
check "a: and when there is no file" await 20 noted a a b c
check "a: is ready again" await 20 ready a

# ---- two of three founders are replaced ----
replace() { # old new: by a's word
    check "$1 is removed" await 20 ctl 1 member remove "$(id "$1" a)"
    member_wait "$1"
    check "$1: has learnt it" grep -q 'permanently removed from the cluster' "$T/$1.log"
    check "$2 is added" await 20 ctl 1 member add "$2" --peer-urls "$(peer "${N[$2]}")"
    CLUSTER=$3 start "$2" --initial-cluster-state existing
    check "$2: is ready" await 60 ready "$2"
}
replace b d "$(cluster_of a:1 c:3 d:4)"
replace c e "$(cluster_of a:1 d:4 e:5)"
for m in a d e; do check "$m: notes the members there are" await 10 noted $m a d e; done
ID=$(id a d)
for flags in "$FOUNDERS" ''; do
    member_stop a KILL
    damage a
    CLUSTER=$flags start a
    back a d
    check "a: is ready" await 30 ready a
    check "a: knows them still" await 10 noted a a d e
done
ID=$(id e a) # a joiner, with the flags that it joined by
member_stop e KILL
damage e
CLUSTER=$(cluster_of a:1 d:4 e:5) start e --initial-cluster-state existing
back e a
check "e: is ready" await 30 ready e
member_stop e TERM
start e # without flags, and another URL of its own
check "e: is ready without flags" await 30 ready e
ID=$(id d a)
check "e moves" await 20 ctl 1 member update "$(id e a)" --peer-urls "$(peer 6)"
N[x]=6
check "a: notes it" await 10 noted a a d x
check "e moves back" await 20 ctl 1 member update "$(id e a)" --peer-urls "$(peer 5)"
check "a: notes it again" await 10 noted a a d e

# ---- removed while it is down, and damaged ----
member_stop e KILL
check "e is removed" await 20 ctl 1 member remove "$(id e a)"
damage e
start e
ends e
check "e: is told" grep -q 'if it was permanently removed, the data directory must be removed' "$T/e.log"
same "e: does not run" 1 "$status"

# ---- the last of them ----
check "a and d go on" await 20 ctl 1 put x y
member_stop d KILL
check "a: notes that" await 20 noted a a d
member_stop a TERM
start a --force-new-cluster
check "a: goes on alone" await 30 ready a
check "a: notes that it is alone" await 10 noted a a
member_stop a KILL
damage a
CLUSTER=$FOUNDERS start a
ends a
check "a: alone it refuses, whatever an old flag says" grep -q 'the store is damaged\|the store cannot be opened' "$T/a.log"
check "a: it did not wait" bash -c '! grep -q waiting "$0"' "$T/a.log"
same "a: with a status" 1 "$status"

# ---- never among others ----
N[s]=7
start s
check "a sole member" await 20 ready s
check "s: notes itself" await 10 noted s s
member_stop s KILL
damage s
start s
ends s
check "s: it refuses" grep -q 'the store cannot be opened' "$T/s.log"
same "s: with a status" 1 "$status"
exit "${FAILED:-0}"
