#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves that none of the small files of a data directory needs an operator, when it is damaged or gone and there are other members
# (started again without --initial-cluster): CURRENT, FAULTY, and the store together with the log's head, make the member be rebuilt from
# the others; FOUNDED, SUSPECT and PEERS cost nothing. Taken away while the member runs, none of them stops it. A sole member whose
# CURRENT or FAULTY is damaged refuses, and says which; so does one of which nothing but PEERS is left.
. "$(dirname "$0")/cluster_lib.sh"
command -v etcdctl >/dev/null || exit 77
BASE=$((32400 + $$ % 20 * 20))
CLUSTER=$(cluster_of a:1 b:2 c:3)
declare -A N=([a]=1 [b]=2 [c]=3)

noise() { head -c "$2" /dev/urandom | dd of="$1" bs=4096 conv=notrunc 2>/dev/null; } # file bytes
rebuilt() { grep -q 'this member is sound again' "$T/$1.log"; }
sound() { ! [ -e "$T/$1/FAULTY" ] && ! [ -e "$T/$1/incoming" ]; }
back() { # what rebuilt|kept
    check "$1: c is ready" await 60 ready c
    check "$1: level again" await 60 level 3 1
    check "$1: sound" await 30 sound c
    [ "$2" = kept ] || check "$1: it was rebuilt" await 30 rebuilt c
    [ "$2" = rebuilt ] || check "$1: nothing was rebuilt" bash -c '! grep -q "asked of the other members" "$0"' "$T/c.log"
    same "$1: hashes like the others" "$(hash 1)" "$(hash 3)"
    same "$1: is who it was" "$ID" "$(field 1 c 1)"
}
after() { # what rebuilt|kept command...: while c is down
    local what=$1 how=$2
    shift 2
    member_stop c TERM
    "$@"
    member_start c 3 --initial-cluster-token etcd-cluster
    back "$what" "$how"
}
both() {
    noise "$(current c base)/data.mdb" 8192
    noise "$(current c wal)/0000000000000001.wal" 512
}
running() { for f in CURRENT FOUNDED PEERS; do rm -f "$T/c/$f"; done; }

for m in a b c; do member_start $m "${N[$m]}"; done
check "three members start" await 30 all_ready a b c
await 20 leader_n 1 2 3 >/dev/null
for i in $(seq 20); do ctl 1 put "key$i" "value$i" >/dev/null; done
ID=$(field 1 c 1)
check "c: notes the members" await 10 test -s "$T/c/PEERS"
CLUSTER=

after "CURRENT is gone" rebuilt rm "$T/c/CURRENT"
after "CURRENT is noise" rebuilt noise "$T/c/CURRENT" 30
after "FAULTY is noise" rebuilt noise "$T/c/FAULTY" 30
after "store and log" rebuilt both
after "FOUNDED is noise" kept noise "$T/c/FOUNDED" 30
after "FOUNDED is gone" kept rm "$T/c/FOUNDED"
after "SUSPECT is there" kept touch "$T/c/SUSPECT"
after "PEERS is noise" kept noise "$T/c/PEERS" 30

running
check "they are taken away from a running member, and it goes on" await 20 ctl 3 put on and-on
check "it is level" await 20 level 3 1
member_stop c TERM
CLUSTER=$(cluster_of a:1 b:2 c:3) # nobody has noted them now
member_start c 3
back "all of them gone" rebuilt
same "nothing was lost" 20 "$(ctl 3 get --prefix key --keys-only --consistency=s | grep -c ^key)"
for m in a b c; do member_stop $m TERM; done

CLUSTER=
member_start s 7
check "a sole member" await 20 ready s
member_stop s TERM
cp "$T/s/CURRENT" "$T/kept"
for f in CURRENT FAULTY; do
    noise "$T/s/$f" 30
    member_start s 7
    check "alone, $f is noise: it ends" await 20 gone s
    member_wait s
    same "alone, $f is noise: with a status" 1 "$status"
    check "alone, $f is noise: and says so" grep -q "/s/$f: " "$T/s.log"
    cp "$T/kept" "$T/s/CURRENT"
    rm -f "$T/s/FAULTY"
done
member_start s 7
check "mended it starts" await 20 ready s
check "alone it notes that too" await 10 test -s "$T/s/PEERS"
member_stop s TERM
rm -rf "$T/s/base-"* "$T/s/wal-"* "$T/s/CURRENT"
member_start s 7
check "of all only PEERS is left: no other cluster is founded" await 20 gone s
member_wait s
check "and it says why" grep -q 'holds the PEERS of a member' "$T/s.log"
exit "${FAILED:-0}"
