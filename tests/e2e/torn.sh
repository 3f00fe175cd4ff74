#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves that cairnd on a damaged store either answers exactly what it did before, or refuses: to start, with a sentence
# and a status that is not 0, or the reading of a spoilt row, with an error. LMDB's file cut short anywhere, each of its
# two meta pages spoilt, rows of the log spoilt, the file gone. Who asks for a spoilt row is told in one sentence, with
# DATA_LOSS, the log says it once, and a watch that would need the row is cancelled, not kept waiting. (Each page and each row of a small store: tests/unit/base_torn.c. The WAL: tests/unit/wal.c.)
#
#   SEED=n    repeat a run
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/pause.sh
O=${O:-build}
command -v etcdctl >/dev/null || { echo "no etcdctl"; exit 77; }
command -v curl >/dev/null || { echo "no curl"; exit 77; }
work=$(mktemp -d "${TMPDIR:-/tmp}/cairn-torn-XXXXXX")
port=${PORT:-$((21270 + $$ % 10 * 2))}
export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=127.0.0.1:$port
RANDOM=${SEED:-$$}
echo "# SEED=${SEED:-$$}"
pid= n=0 failed=0
trap 'exec 2>/dev/null; [ -n "$pid" ] && kill -9 "$pid"; wait; rm -rf "$work"' EXIT

result() { # ok what
    n=$((n + 1))
    if [ "$1" = 0 ]; then echo "ok $n - $2"; else failed=1; echo "not ok $n - $2"; tail -n 3 "$work/log" | sed 's/^/# /'; fi
}

# 0: it serves; else its exit status, above 128 for a signal.
start() {
    "$O/cairnd" --name m --data-dir "$work/data" --listen-client-urls "http://127.0.0.1:$port" \
        --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$((port + 1))" \
        --initial-advertise-peer-urls "http://127.0.0.1:$((port + 1))" \
        --initial-cluster "m=http://127.0.0.1:$((port + 1))" >"$work/log" 2>&1 &
    pid=$!
    for _ in $(seq 400); do
        grep -q 'ready to serve client requests' "$work/log" && return 0
        kill -0 "$pid" 2>/dev/null || break
        pause 0.02
    done
    { wait $pid; } 2>/dev/null
    return $?
}

stop() { # signal
    kill "-$1" $pid
    { wait $pid; } 2>/dev/null
    pid=
}

# All there is, and its hash; or "refused" for what is not answered.
all() {
    { timeout 20 etcdctl get --prefix '' -w json || echo refused; } 2>/dev/null | sed 's/"raft_term":[0-9]*/T/'
    timeout 20 etcdctl endpoint hashkv 2>/dev/null || echo refused
}

start || { result 1 "cairnd starts"; exit 1; }
for i in $(seq 60); do timeout 20 etcdctl put "key$i" "$(head -c $((RANDOM % 3000)) /dev/zero | tr '\0' "${i: -1}")" >/dev/null; done
timeout 20 etcdctl compaction 30 --physical >/dev/null
for i in 1 2 3; do timeout 20 etcdctl put "key$i" again >/dev/null; done
timeout 20 etcdctl put marked a-value-like-no-other >/dev/null
before=$(all)
stop TERM
mv "$work/data" "$work/good"
base=$(cd "$work/good" && ls -d base-*)
size=$(stat -c %s "$work/good/$base/data.mdb")

# Damages a copy, starts cairnd on it, and looks.
try() { # what command...
    local what=$1 status
    shift
    rm -rf "$work/data"
    cp -a "$work/good" "$work/data"
    "$@" "$work/data/$base/data.mdb"
    start
    status=$?
    if [ $status = 0 ]; then
        # Line by line: what it was, or refused.
        after=$(all)
        paste -d '\n' <(echo "$before") <(sed 's/^refused.*//' <<<"$after") |
            awk 'NR % 2 { was = $0; next } $0 != "" && $0 != was { bad = 1 } END { exit bad || NR != 4 }'
        result $? "$what: serves, $(grep -c refused <<<"$after") of 2 answers refused, and rightly"
        stop KILL
    else
        [ $status -lt 128 ] && grep -q '"level":"\(fatal\|error\)"\|cairnd: ' "$work/log"
        result $? "$what: refuses (status $status)"
        pid=
    fi
}
spoil() { # offset file
    printf '\xa5\x5a\x17' | dd of="$2" bs=1 seek="$1" conv=notrunc status=none
}
spoil_key() { # text file: where it first stands
    spoil "$(($(grep -abo "$1" "$2" | head -n 1 | cut -d: -f1) + 3))" "$2"
}

try "as it was" true
for cut in 0 1 4096 8192 $((size / 2)) $((size - 4096)) $((size - 1)) $((RANDOM * 32768 % size)); do
    try "cut to $cut of $size bytes" truncate -s "$cut"
done
for at in 8 24 40 100 130 136 4104 4120 4136 4196 4226 4232; do try "byte $at of LMDB's meta pages" spoil $at; done
try "a row" spoil_key key50
try "another row" spoil_key key7
try "the file gone" rm -f

# ---- what is said of a spoilt row
rm -rf "$work/data"
cp -a "$work/good" "$work/data"
for at in $(grep -abo a-value-like-no-other "$work/data/$base/data.mdb" | cut -d: -f1); do
    spoil $((at + 2)) "$work/data/$base/data.mdb"
done
start
result $? "a value spoilt: it starts"
says="rpc error: code = DataLoss desc = cairn: the store on this member's disk is damaged at what was asked for; save "
said=$(timeout 20 etcdctl get marked 2>&1)
grep -qF "$says" <<<"$said"
result $? "a value spoilt: the sentence"
for _ in 1 2 3; do timeout 20 etcdctl get --prefix '' >/dev/null 2>&1; done
[ "$(grep -c 'the store is damaged' "$work/log")" = 1 ]
result $? "a value spoilt: logged once"
[ "$(timeout 20 etcdctl get key5 --print-value-only | wc -c)" -gt 0 ]
result $? "a value spoilt: another is answered"
# A watch by hand (etcdctl does not show the reason): a request's bytes, in hex. Ends when the answer says the text.
watch() { # hex command...
    local hex=$1 curl i
    shift
    printf '\0\0\0\0'"\\x$(printf '%02x' $((${#hex} / 2)))$(sed 's/../\\x&/g' <<<"$hex")" >"$work/request"
    : >"$work/events"
    curl -sN --max-time 20 --http2-prior-knowledge -H 'content-type: application/grpc' -H 'te: trailers' \
        --data-binary "@$work/request" -o "$work/events" "http://127.0.0.1:$port/etcdserverpb.Watch/Watch" &
    curl=$!
    for i in $(seq 400); do
        [ -s "$work/events" ] && "$@" >/dev/null
        grep -qaF "damaged at what was asked for" "$work/events" && break
        pause
    done
    { kill $curl; wait $curl; } 2>/dev/null
    [ "$i" != 400 ]
}
watch 0a080a0100120100181f true # every key from revision 31
result $? "a value spoilt: a watch from before it is cancelled, with the reason"
watch 0a080a01001201003001 timeout 20 etcdctl put marked anew # every key, with previous values
result $? "a value spoilt: a live watch that wants it is cancelled, with the reason"
said=$(timeout 20 etcdctl get marked --print-value-only)
[ "$said" = anew ]
result $? "a value spoilt: it can be written anew"
stop KILL
exit $failed
