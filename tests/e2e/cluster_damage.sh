#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves, with three real members whose files are damaged while they run: who first meets the damage makes its member faulty at
# once, and it is rebuilt from the others without an operator and hashes like them. Met by a client's read on the leader, by a
# watch, by the sending of a snapshot, by LMDB itself, which crashes on it (the member is suspect, starts anew under the same
# process id, and a child process that reads all of the store finds the damage). No answer is ever another than the right one.
# A record of the leader's log that a follower wants is such damage too. A damaged member that finds nobody waits for the others.
# Alone: a crash inside LMDB on a sound store costs a scrub, and a second one is not followed by another start of its own; a suspect
# store that is damaged is refused with a sentence that says why.
. "$(dirname "$0")/cluster_lib.sh"
command -v etcdctl >/dev/null && command -v python3 >/dev/null || exit 77
BASE=$((22364 + $$ % 3 * 20))
CLUSTER=$(cluster_of a:1 b:2 c:3)
declare -A N=([a]=1 [b]=2 [c]=3)
rot="$(dirname "$0")/rot.py"

name_of() { for m in a b c; do [ "${N[$m]}" = "$1" ] && echo "$m"; done; }
another() { for m in a b c; do [ "$m" != "$1" ] && echo "${N[$m]}" && return; done; }
base() { echo "$(current "$1" base)/data.mdb"; }
# Changed where it stands: the member reads the file through a map of it, so it sees this at once.
spoil() { # file text
    python3 - "$1" "$2" <<'P'
import sys
path, text = sys.argv[1], sys.argv[2].encode()
b = open(path, "rb").read()
at, n = b.find(text), 0
with open(path, "r+b") as f:
    while at >= 0:
        f.seek(at + 3)
        f.write(bytes([b[at + 3] ^ 1]))
        at, n = b.find(text, at + 1), n + 1
sys.exit(n == 0)
P
}
in_store() { grep -qa "$2" "$(base "$1")"; }
flushed() { for m in a b c; do in_store "$m" "$1" || return 1; done; }
sound() { ! [ -e "$T/$1/FAULTY" ] && ! [ -e "$T/$1/SUSPECT" ] && ! [ -e "$T/$1/incoming" ]; }
rebuilt() { grep -q 'this member is sound again' "$T/$1.log"; }
all_level() { level 1 2 && level 1 3; }
back() { # name
    check "$1: is rebuilt" await 60 rebuilt "$1"
    check "$1: is sound again" await 30 sound "$1"
    check "$1: is level again" await 30 all_level
    same "$1: hashes like the others" "$(hash "$(another "$1")")" "$(hash "${N[$1]}")"
    check "$1: is the same process" kill -0 "${PID[$1]}"
    : >"$T/$1.log"
}
start() { # name flags...
    local name=$1
    shift
    member_start "$name" "${N[$name]}" "$@"
}

# Logs are emptied between the parts, so they are written at their end.
member_start() {
    local name=$1 n=$2
    shift 2
    : >"$T/$name.log"
    "$SERVER" --name "$name" --data-dir "$T/$name" --listen-client-urls "$(client "$n")" --advertise-client-urls "$(client "$n")" \
        --listen-peer-urls "$(peer "$n")" --initial-advertise-peer-urls "$(peer "$n")" ${CLUSTER:+--initial-cluster "$CLUSTER"} \
        "$@" >>"$T/$name.log" 2>&1 &
    PID[$name]=$!
}

for m in a b c; do start $m; done
check "three members start" await 30 all_ready a b c
await 20 leader_n 1 2 3 >/dev/null
for i in $(seq 30); do ctl 1 put "key$i" "value-of-$i-like-no-other" >/dev/null; done
# Enough for branch pages.
check "puts" timeout 100 "$O/tests/bench/load" fill $((BASE + 1)) 2 20 3000 3000 200
ctl 1 put last the-very-last-value >/dev/null
check "all is in the stores" await 30 flushed the-very-last-value

# ---- a client's read, at the leader ----
L=$(name_of "$(leader_n 1 2 3)")
check "a value is spoilt at the leader" spoil "$(base "$L")" value-of-7-like-no-other
said=$(ctl "${N[$L]}" get key7 --print-value-only 2>&1)
check "the leader does not answer it wrongly" test "$said" = "" -o "$said" = value-of-7-like-no-other -o "${said/ode = /}" != "$said"
back "$L"
same "it is answered rightly then" value-of-7-like-no-other "$(ctl "${N[$L]}" get key7 --print-value-only --consistency=s)"

# ---- a watch's past, at a follower ----
F=$(name_of "$(another "$(name_of "$(leader_n 1 2 3)")")")
check "a value is spoilt at a follower" spoil "$(base "$F")" value-of-9-like-no-other
{ timeout 20 etcdctl --endpoints "$(client "${N[$F]}")" watch --rev 2 key9 >"$T/watch" 2>&1 & }
back "$F"
check "the watch said nothing wrong" bash -c '! grep -a value "$0" | grep -av value-of-9-like-no-other' "$T/watch"

# ---- LMDB crashes on a page: an assertion of its own, and a number of entries that cannot be ----
for kind in branch:log leaf:index; do
    F=$(name_of "$(another "$(name_of "$(leader_n 1 2 3)")")")
    check "$kind: a page goes astray" python3 "$rot" "$(base "$F")" $kind astray
    timeout 20 etcdctl --endpoints "$(client "${N[$F]}")" get --prefix '' --consistency=s >"$T/read" 2>&1
    grep -q 'crash inside the store' "$T/$F.log" && echo "# $kind: LMDB crashed"
    [ $kind = branch:log ] && check "$kind: the crash is noted" grep -q 'it is suspect now, and this member starts anew' "$T/$F.log"
    back "$F"
done
check "nothing was lost" test "$(ctl 1 get --prefix key --keys-only | grep -c "^key[0-9]")" = 30

# ---- a record of the log, wanted by a follower ----
F=$(name_of "$(another "$(name_of "$(leader_n 1 2 3)")")")
mapfile -t UP < <(for m in a b c; do [ "$m" != "$F" ] && echo "$m"; done)
member_stop "$F" TERM
lead_of_two() { leader_n "${N[${UP[0]}]}" "${N[${UP[1]}]}"; }
check "two go on" await 20 lead_of_two
for i in $(seq 20); do ctl "${N[${UP[0]}]}" put "log$i" "record-$i-in-the-log" >/dev/null; done
both_flushed() { in_store "${UP[0]}" record-20-in-the-log && in_store "${UP[1]}" record-20-in-the-log; }
check "all is in their stores" await 30 both_flushed
for m in "${UP[@]}"; do member_stop "$m" TERM; done
for m in "${UP[@]}"; do start "$m"; done # nothing of it is in memory now
check "they start again" await 30 all_ready "${UP[@]}"
check "one leads" await 20 lead_of_two
L=$(name_of "$(lead_of_two)")
for w in "$T/$L"/wal-*/*.wal; do grep -qa record-10-in-the-log "$w" && check "a record is spoilt" spoil "$w" record-10-in-the-log; done
start "$F"
back "$L"
check "$F: is ready" await 30 ready "$F"
check "nobody lacks the record" test "$(for m in 1 2 3; do ctl $m get log10 --print-value-only --consistency=s; done | sort -u)" = record-10-in-the-log

# ---- a snapshot's sender ----
for m in a b c; do member_stop $m TERM; done
for m in a b c; do start $m --snapshot-count 50 --snapshot-catchup-entries 20; done
check "they start, and keep little of the log" await 30 all_ready a b c
await 20 leader_n 1 2 3 >/dev/null
F=$(name_of "$(another "$(name_of "$(leader_n 1 2 3)")")")
mapfile -t UP < <(for m in a b c; do [ "$m" != "$F" ] && echo "$m"; done)
member_stop "$F" KILL
check "puts" timeout 100 "$O/tests/bench/load" put $((BASE + ${N[${UP[0]}]})) 2 20 1000 3000 200
ctl "${N[${UP[0]}]}" put log20 after-all-the-puts >/dev/null
both_have() { in_store "${UP[0]}" after-all-the-puts && in_store "${UP[1]}" after-all-the-puts; }
check "all is in their stores" await 30 both_have
L=$(name_of "$(lead_of_two)")
check "a value is spoilt at the leader" spoil "$(base "$L")" value-of-11-like-no-other
start "$F" --snapshot-count 50 --snapshot-catchup-entries 20
check "$L: its sending meets it" await 30 grep -q 'read for a snapshot' "$T/$L.log"
back "$L"
check "$F: is ready" await 60 ready "$F"
check "nobody lacks the value" test "$(for m in 1 2 3; do ctl $m get key11 --print-value-only --consistency=s; done | sort -u)" = value-of-11-like-no-other

# ---- who is damaged starts before the others ----
for m in a b c; do member_stop $m TERM; done
head -c 8192 /dev/urandom | dd of="$(base a)" conv=notrunc 2>/dev/null
start a
check "a: waits for the others" await 20 grep -q 'waiting for the other members' "$T/a.log"
start b
start c
back a

for m in a b c; do member_stop $m TERM; done

# ---- alone ----
CLUSTER=
N[s]=7
start s
check "a sole member" await 20 ready s
check "puts" timeout 100 "$O/tests/bench/load" fill $((BASE + 7)) 2 20 3000 3000 200
ctl 7 put last the-very-last-value >/dev/null
check "all is in its store" await 30 in_store s the-very-last-value
# SIGBUS is taken for LMDB's: nothing else maps a file.
kill -BUS "${PID[s]}"
check "a crash on a sound store: it is read whole" await 20 grep -q '"the store is sound"' "$T/s.log"
serves() { [ "$(ctl 7 get last --print-value-only 2>/dev/null)" = the-very-last-value ]; }
check "and used again" await 20 serves
check "it stays marked a while" test -s "$T/s/SUSPECT"
kill -BUS "${PID[s]}"
member_wait s
if [ -n "${SAN:-}${TSAN:-}" ]; then # which have a say of their own in signals
    check "a second crash ends it" test "$status" != 0
else
    same "a second crash ends it" $((128 + 7)) "$status"
fi
same "it is counted" 2 "$(stat -c %s "$T/s/SUSPECT")"
start s
check "started once more it serves what is sound" await 20 serves
member_stop s TERM
check "an orderly stop removes the mark" test ! -e "$T/s/SUSPECT"
start s
check "a sole member again" await 20 ready s
check "a page goes astray" python3 "$rot" "$(base s)" branch:log astray
timeout 20 etcdctl --endpoints "$(client 7)" get --prefix '' >/dev/null 2>&1
member_wait s
check "alone it is suspect, and refuses" grep -q 'the store is damaged: a run ended in a crash inside it' "$T/s.log"
same "with a status" 1 "$status"
exit "${FAILED:-0}"
