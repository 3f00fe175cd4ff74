#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: a directory of 1,000 keys is renamed (cairn.Tree/Rename) in one entry, asked for at a member that does not lead: all
# members have the same state afterwards, leases included; a watcher at another member gets every event, deletes before puts, at
# one revision; a member that was away replays it; what has changed since, is too large or has no prefix is refused with nothing
# changed.
set -u
cd "$(dirname "$0")/../.." || exit 1
# shellcheck source=tests/e2e/cluster_lib.sh
. tests/e2e/cluster_lib.sh
command -v etcdctl >/dev/null || { echo "1..0 # SKIP no etcdctl"; exit 77; }
command -v curl >/dev/null || { echo "1..0 # SKIP no curl"; exit 77; }

hex() { printf %s "$1" | od -An -v -tx1 | tr -d ' \n'; }
varint() { # number: its bytes in hex
    local v=$1
    while ((v >= 128)); do printf %02x $((v & 127 | 128)); v=$((v >> 7)); done
    printf %02x "$v"
}
# The answer's outcome and count as "outcome keys" (a field that is 0 is not sent), or the status and its words.
rename() { # n from to revision
    local h
    h=0a$(printf %02x ${#2})$(hex "$2")12$(printf %02x ${#3})$(hex "$3")18$(varint "$4")
    printf '\0'"$(printf '%08x' $((${#h} / 2)) | sed 's/../\\x&/g')$(sed 's/../\\x&/g' <<<"$h")" >"$T/request"
    curl -s --max-time 20 --http2-prior-knowledge -H 'content-type: application/grpc' -H 'te: trailers' \
        --data-binary "@$T/request" -D "$T/head" -o "$T/body" "$(client "$1")/cairn.Tree/Rename"
    tr -d '\r' <"$T/head" | sed -n -e 's/^grpc-status: //p' -e 's/^grpc-message: //p' | tr '\n' ' '
    # Behind the frame's 5 bytes and the header (field 1, its length below 128): what is left of the message.
    h=$(od -An -v -tx1 "$T/body" 2>/dev/null | tr -d ' \n')
    echo "${h:14 + 2 * 16#0${h:12:2}}"
    : >"$T/body"
}
revision() { ctl "$1" get / -w json | sed 's/.*"revision":\([0-9]*\).*/\1/'; }
hashes() { for n in 1 2 3; do ctl $n endpoint hashkv | cut -d, -f2; done | sort -u | wc -l; }
count() { ctl "$1" get --prefix "$2" --keys-only | grep -c .; }
fill() { # n directory count
    for ((i = 0; i < $3; i += 100)); do
        { echo; for ((k = i; k < i + 100; k++)); do printf 'put %s%05d value-%d\n' "$2" $k $k; done; echo; echo; } |
            ctl "$1" txn >/dev/null || return 1
    done
}

CLUSTER=$(cluster_of a:1 b:2 c:3)
for m in a:1 b:2 c:3; do member_start "${m%:*}" "${m#*:}"; done
for m in 1 2 3; do await 30 ctl $m put ready "$m" >/dev/null || { not_ok "three members start"; exit 1; }; done
lead=$(await 20 leader_n 1 2 3; leader_n 1 2 3)
asked=$((lead % 3 + 1)) watched=$((asked % 3 + 1))
[ $watched = "$lead" ] && watched=$asked
check "a directory of 1,000 keys" fill "$asked" d/ 1000
lease=$(ctl "$asked" lease grant 600 | cut -d' ' -f2)
ctl "$asked" put d/leased x --lease "$lease" >/dev/null
rev=$(revision "$asked")

ctl $watched watch --prefix '' --rev $((rev + 1)) -w json >"$T/events" 2>/dev/null & watcher=$!
disown $watcher
trap 'kill $watcher 2>/dev/null; cleanup' EXIT
# 10 0 (DONE) is not sent; 18 e9 07: 1,001 keys
same "renamed at a follower" "0 18e907" "$(rename "$asked" d/ e/ "$rev")"
same "one revision" $((rev + 1)) "$(revision $watched)"
same "nothing is left" "0 1001" "$(count $watched d/) $(count $watched e/)"
same "a value and its versions" "$((rev + 1)) $((rev + 1)) 1 value-77" "$(ctl "$lead" get e/00077 -w fields |
    sed -nE 's/"(CreateRevision|ModRevision|Version|Value)" : "?([^"]*)"?/\2/p' | paste -sd' ')"
same "the lease holds the new name" "[e/leased]" "$(ctl "$asked" lease timetolive "$lease" --keys | sed -n 's/.*attached keys(\(.*\))/\1/p')"
check "the members have the same state" test "$(hashes)" = 1

all_events() { [ "$(grep -o '"mod_revision":'$((rev + 1)) "$T/events" | wc -l)" = 2002 ]; }
check "a watcher gets every event" await 20 all_events
same "deletes first, then puts" "1001 DELETE 1001 PUT" "$(grep -oE '\{"(type":1,"kv|kv)"' "$T/events" |
    sed 's/.*type.*/DELETE/; s/.*kv.*/PUT/' | uniq -c | awk '{ printf "%s%s %s", s, $1, $2; s = " " }')"
kill $watcher

# CHANGED: 10 01; NOTHING: 10 02
ctl "$asked" put e/00001 newer >/dev/null
same "refused: a key is newer" "0 1001" "$(rename "$asked" e/ f/ $((rev + 1)))"
same "refused: the target has keys" "0 1001" "$(rename "$asked" e/0000 e/0001 $((rev + 2)))"
same "refused: nothing there" "0 1002" "$(rename "$asked" d/ f/ $((rev + 2)))"
same "refused: below itself" "3 etcdserver: duplicate key given in txn request " "$(rename "$asked" e/ e/e/ $((rev + 2)))"
same "refused: no prefix" "3 etcdserver: key is not provided " "$(rename "$asked" '' e/ $((rev + 2)))"
same "and nothing has changed" $((rev + 2)) "$(revision "$asked")"

away=$(echo a b c | cut -d' ' -f$watched)
member_stop "$away" KILL
same "renamed while one is away" "0 18e907" "$(rename "$asked" e/ d/ $((rev + 2)))"
member_start "$away" $watched
check "it comes back" await 30 ctl $watched get x
check "and has the same state" test "$(hashes)" = 1
for m in a b c; do member_stop $m KILL; done
for m in a:1 b:2 c:3; do member_start "${m%:*}" "${m#*:}"; done
check "all of them replay it" await 30 ctl 1 get x
check "to the same state" test "$(hashes)" = 1
same "with all keys" 1001 "$(count 1 d/)"

exit ${FAILED:-0}
