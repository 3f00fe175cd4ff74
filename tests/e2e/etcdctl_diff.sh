#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves: Debian's etcdctl prints the same, and exits with the same status, against cairnd and against Debian's etcd,
# for every kv, txn, watch, lease, lock, elect and maintenance command below, ids aside. Each command counts.
#
# Usage: tests/e2e/etcdctl_diff.sh [pattern]   only the commands whose name matches (they may need earlier ones)
# Both servers start empty and see the same commands, so revisions and versions must agree too.
set -u
cd "$(dirname "$0")/../.." || exit 1
O=${O:-build}
ETCD=${ETCD:-etcd}
command -v "$ETCD" >/dev/null && command -v etcdctl >/dev/null || { echo "no etcd or etcdctl to compare with"; exit 77; }
export ETCDCTL_API=3
port=${E2E_PORT:-21400}
only=${1:-*}
tmp=$(mktemp -d /tmp/cairn-ctl-XXXXXX)
pids=()
cleanup() {
    for p in "${pids[@]}"; do kill "$p" 2>/dev/null; done
    for p in "${pids[@]}"; do wait "$p" 2>/dev/null; done
    rm -rf "$tmp"
}
trap cleanup EXIT

start() { # name program client-port
    "$2" --name x --data-dir "$tmp/$1" --listen-client-urls "http://127.0.0.1:$3" \
        --advertise-client-urls "http://127.0.0.1:$3" --listen-peer-urls "http://127.0.0.1:$(($3 + 1))" \
        --initial-advertise-peer-urls "http://127.0.0.1:$(($3 + 1))" \
        --initial-cluster "x=http://127.0.0.1:$(($3 + 1))" >"$tmp/$1.log" 2>&1 &
    pids+=($!)
    for _ in $(seq 200); do
        timeout 2 etcdctl --endpoints "127.0.0.1:$3" get ready >/dev/null 2>&1 && return 0
        kill -0 $! 2>/dev/null || break
        sleep 0.05
    done
    echo "not ok - $1 starts"
    tail -n 5 "$tmp/$1.log" | sed 's/^/# /'
    exit 1
}
start cairnd "$O/cairnd" "$port"
start etcd "$ETCD" "$((port + 10))"

# Ids, ports and times are not the same; leases have 16 hex digits or a long number in JSON.
normalise() {
    sed -E -e "s/127\.0\.0\.1:($port|$((port + 10)))/SERVER/g" -e "s/127\.0\.0\.1:($((port + 1))|$((port + 11)))/PEER/g" \
        -e 's/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/UUID/g' \
        -e 's/"(cluster_id|member_id|ID|lease|id)":[0-9]+/"\1":N/g' -e 's/"raft_term":[0-9]+/"raft_term":T/g' \
        -e 's/"(ClusterID|MemberID|Lease|RaftTerm)" : [0-9]+/"\1" : N/g' -e 's/[0-9a-f]{14,16}/ID/g' \
        -e 's/[0-9]+(\.[0-9]+)?(µs|ms)/TIME/g' -e 's/"ts":"[^"]*"/TS/g' -e 's/0x[0-9a-f]+/PTR/g' \
        -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.]+Z?/DATE/g'
}

# The snippet runs with CTL (etcdctl of one server) and SELF, OTHER (addresses). Helpers below are for it.
both() { # name snippet
    # shellcheck disable=SC2254
    case $1 in $only) ;; *) return ;; esac
    local s
    for s in cairnd etcd; do
        SELF=127.0.0.1:$port OTHER=127.0.0.1:$((port + 10))
        [ $s = etcd ] && SELF=127.0.0.1:$((port + 10)) OTHER=127.0.0.1:$port
        CTL="timeout 20 etcdctl --endpoints $SELF"
        (eval "$2"; echo "status $?") >"$tmp/raw.$s" 2>&1 </dev/null
        normalise <"$tmp/raw.$s" >"$tmp/out.$s"
    done
    if diff -u "$tmp/out.etcd" "$tmp/out.cairnd" >"$tmp/diff"; then
        echo "ok - $1"
    else
        echo "not ok - $1"
        sed 's/^/# /' "$tmp/diff" | head -n 40
        failed=1
    fi
}
failed=0

# Runs a command that does not end by itself until it has printed n lines (to a file); prints them.
lines_in() { # file n command...
    local file=$1 n=$2 p
    shift 2
    : >"$file"
    "$@" >"$file" 2>&1 <&0 &
    p=$!
    for _ in $(seq 200); do
        [ "$(wc -l <"$file")" -ge "$n" ] && break
        kill -0 $p 2>/dev/null || break
        sleep 0.05
    done
    kill $p 2>/dev/null
    wait $p 2>/dev/null
    cat "$file"
}
lines() { lines_in "$(mktemp "$tmp/lines-XXXXXX")" "$@"; }
# Until the command succeeds.
await() {
    for _ in $(seq 200); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.05
    done
    echo "never: $*"
    return 1
}
lease_of() { $CTL lease grant "$1" | awk '{print $2}'; }

# ---- put, get ------------------------------------------------------------------------------------
both "put" '$CTL put foo bar'
both "put again, prev-kv" '$CTL put foo bar2 --prev-kv'
both "put, json" '$CTL put foo bar3 -w json'
both "put, fields" '$CTL put foo bar4 --prev-kv -w fields'
both "put from stdin" 'echo -n stdin | $CTL put foo'
both "put, empty value" '$CTL put empty ""'
both "put, empty key" '$CTL put "" v'
both "put, no such lease" '$CTL put k v --lease=1234abcd'
both "put, ignore-value" '$CTL put foo --ignore-value'
both "put, ignore-value, missing key" '$CTL put missing --ignore-value'
both "put, ignore-lease" '$CTL put foo v5 --ignore-lease'
both "put, ignore-lease, missing key" '$CTL put missing v --ignore-lease'
both "put, ignore-value and a value" '$CTL put foo v --ignore-value'
both "put, large value" 'head -c 1000000 /dev/zero | tr "\0" x | $CTL put large -w json'
both "put, too large" 'head -c 1600000 /dev/zero | tr "\0" x | $CTL put large 2>&1 | grep -o "desc.*"'
both "put, more than a message" 'head -c 3000000 /dev/zero | tr "\0" x | $CTL put large 2>&1 | grep -o "Error: [a-z:]*"'
both "put, some keys" 'for i in 1 2 3 4 5; do $CTL put key$i val$((9 - i)); done; $CTL put key3 val0; $CTL put kez x; $CTL put a first'
both "get" '$CTL get foo'
both "get, missing" '$CTL get missing'
both "get, empty key" '$CTL get ""'
both "get, json" '$CTL get foo -w json'
both "get, fields" '$CTL get foo -w fields'
both "get, table" '$CTL get foo -w table'
both "get, hex" '$CTL get foo --hex'
both "get, simple" '$CTL get foo -w simple'
both "get, protobuf" '$CTL get key1 -w protobuf | od -c | wc -l'
both "get, range" '$CTL get key1 key4'
both "get, range, json" '$CTL get key1 key4 -w json'
both "get, inverted range" '$CTL get key4 key1 -w json'
both "get, prefix" '$CTL get --prefix key'
both "get, prefix, fields" '$CTL get --prefix key -w fields'
both "get, all" '$CTL get --prefix "" --keys-only'
both "get, from-key" '$CTL get --from-key key4'
both "get, from-key, empty" '$CTL get --from-key "" --keys-only'
both "get, limit" '$CTL get --prefix key --limit 2'
both "get, limit, json" '$CTL get --prefix key --limit 2 -w json'
both "get, limit beyond" '$CTL get --prefix key --limit 99 -w json'
both "get, keys-only" '$CTL get --prefix key --keys-only'
both "get, count-only" '$CTL get --prefix key --count-only'
both "get, count-only, fields" '$CTL get --prefix key --count-only -w fields'
both "get, print-value-only" '$CTL get --prefix key --print-value-only'
both "get, serializable" '$CTL get key1 --consistency=s'
both "get, linearizable" '$CTL get key1 --consistency=l'
for by in CREATE KEY MODIFY VALUE VERSION; do
    for order in ASCEND DESCEND; do
        both "get, sort by $by, $order" "\$CTL get --prefix key --sort-by=$by --order=$order -w json"
        both "get, sort by $by, $order, limit" "\$CTL get --prefix key --sort-by=$by --order=$order --limit 2"
    done
    both "get, sort by $by" "\$CTL get --prefix key --sort-by=$by"
done
both "get, bad sort" '$CTL get --prefix key --sort-by=NAME'
both "get, at a revision" '$CTL get foo --rev=3'
both "get, prefix at a revision" '$CTL get --prefix key --rev=12 -w json'
both "get, future revision" '$CTL get foo --rev=1000'
both "get, negative revision" '$CTL get foo --rev=-1'

# ---- del -------------------------------------------------------------------------------------------
both "del" '$CTL del foo'
both "del, missing" '$CTL del foo'
both "del, json" '$CTL del key5 -w json'
both "del, missing, json" '$CTL del key5 -w json'
both "del, prev-kv" '$CTL del key4 --prev-kv'
both "del, prev-kv, fields" '$CTL del key3 --prev-kv -w fields'
both "del, empty key" '$CTL del ""'
both "del, range" '$CTL put d1 1; $CTL put d2 2; $CTL put d3 3; $CTL del d1 d3'
both "del, prefix, prev-kv" '$CTL del --prefix key --prev-kv'
both "del, from-key" '$CTL put zz1 1; $CTL put zz2 1; $CTL del --from-key zz'
both "get, what is left" '$CTL del large; $CTL get --prefix "" -w json'
both "get, before the deletions" '$CTL get --prefix key --rev=18 -w json'

# ---- txn ---------------------------------------------------------------------------------------------
txn() { printf "$1" | $CTL txn "${@:2}"; }
both "txn, success" '$CTL put t1 1; txn "value(\"t1\") = \"1\"\n\nput t2 then\nget t1\nget t2\n\nput t2 else\n\n"'
both "txn, failure" 'txn "value(\"t1\") = \"2\"\n\nput t2 then\n\ndel t1\nget t1\n\n"'
both "txn, interactive" 'txn "mod(\"t2\") > \"0\"\n\nput t3 x\n\n\n" -i'
both "txn, json" 'txn "create(\"t2\") > \"0\"\n\nget t2\nput t3 y\ndel t9\nget t3\n\n\n" -w json'
both "txn, fields" 'txn "ver(\"t3\") = \"2\"\n\nget t3\ndel t3 --prev-kv\n\n\n" -w fields'
both "txn, missing key" 'txn "ver(\"nope\") = \"0\"\ncreate(\"nope\") = \"0\"\nmod(\"nope\") = \"0\"\n\nput t4 absent\n\n\n"'
both "txn, value of a missing key" 'txn "value(\"nope\") < \"x\"\n\nput t4 then\n\nput t4 else\n\n"'
both "txn, lease compare" 'txn "lease(\"t4\") = \"0\"\n\nget t4\n\n\n"'
both "txn, empty" 'txn "\n\n\n"  -w json'
both "txn, read only" 'txn "ver(\"t4\") > \"0\"\n\nget --prefix t\n\nget nope\n\n" -w json'
both "txn, twice the same key" 'txn "\nput t5 a\nput t5 b\n\n\n"'
both "txn, put and del" 'txn "\nput t5 a\ndel t5\n\n\n"'
both "txn, empty key" 'txn "\nput \"\" a\n\n\n"'
both "txn, future revision" 'txn "\nput t6 a\nget t6 --rev=999\n\n\n"'
both "txn, no such lease" 'txn "\nput t6 a\nput t7 a --lease=77\n\n\n"'
both "txn, nothing done by those" '$CTL get --prefix t -w json'
both "txn, too many ops" 'txn "\n$(for i in $(seq 129); do echo -n "put many$i x\\n"; done)\n\n"'
both "txn, many ops" 'txn "\n$(for i in $(seq 128); do echo -n "put many$i x\\n"; done)\n\n"'
both "txn, bad compare" 'txn "bad(\"t1\") = \"1\"\n\n\n\n"'

# ---- watch ---------------------------------------------------------------------------------------------
# From the next revision on: what comes is the same whether the watcher or the writer is faster.
next_rev() { echo $(($($CTL get x -w json | grep -o '"revision":[0-9]*' | cut -d: -f2) + 1)); }
both "watch, past" '$CTL put w1 1; $CTL put w1 2; $CTL del w1; lines 9 $CTL watch w1 --rev=$(($(next_rev) - 3))'
both "watch, past, prev-kv" 'lines 13 $CTL watch w1 --rev=$(($(next_rev) - 3)) --prev-kv'
both "watch, json" 'lines 1 $CTL watch --prefix w --rev=$(($(next_rev) - 3)) -w json'
both "watch" 'R=$(next_rev); (for i in 1 2 3; do $CTL put wl $i; done >/dev/null) & lines 9 $CTL watch wl --rev=$R; wait'
both "watch, prefix" 'R=$(next_rev); ($CTL put wp/b 1; $CTL put wp/a 2; $CTL del --prefix wp/) >/dev/null & lines 12 $CTL watch --prefix wp/ --rev=$R; wait'
both "watch, range" 'R=$(next_rev); ($CTL put wr1 1; $CTL put wr3 3; $CTL put wr2 2) >/dev/null & lines 6 $CTL watch wr1 wr3 --rev=$R; wait'
both "watch, exec" 'R=$(next_rev); $CTL put we 1 >/dev/null & lines 4 $CTL watch we --rev=$R -- sh -c "echo \$ETCD_WATCH_KEY \$ETCD_WATCH_VALUE \$ETCD_WATCH_EVENT_TYPE"; wait'
both "watch, one txn" 'R=$(next_rev); (printf "\nput wt1 a\nput wt2 b\n\n\n" | $CTL txn) >/dev/null & lines 6 $CTL watch --prefix wt --rev=$R; wait'
both "watch, interactive" 'R=$(next_rev); rm -f $tmp/wi; { echo "watch wi --rev=$R"; $CTL put wi 1 >/dev/null; await grep -q "^1$" $tmp/wi; } | lines_in $tmp/wi 3 sh -c "exec $CTL watch -i 2>/dev/null"; wait'
both "watch, progress-notify" 'R=$(next_rev); $CTL put wn 1 >/dev/null; lines 3 $CTL watch wn --rev=$R --progress-notify'

# ---- compaction -------------------------------------------------------------------------------------------
both "compaction, future" '$CTL compaction 100000'
both "compaction" '$CTL compaction 20'
both "compaction, again" '$CTL compaction 20'
both "compaction, older" '$CTL compaction 10'
both "get, compacted" '$CTL get foo --rev=19'
both "get, at the compact revision" '$CTL get --prefix key --rev=20 -w json'
both "watch, compacted" 'lines 2 $CTL watch foo --rev=3'
both "compaction, physical" '$CTL compaction 25 --physical'
both "txn, compacted" 'txn "\nput t8 a\nget t8 --rev=3\n\n\n"'
both "get, after compaction" '$CTL get --prefix "" --keys-only'

# ---- lease ------------------------------------------------------------------------------------------------
both "lease grant" '$CTL lease grant 100'
both "lease grant, json" '$CTL lease grant 100 -w json'
both "lease grant, short" '$CTL lease grant 1'
both "lease grant, zero" '$CTL lease grant 0'
both "lease grant, too long" '$CTL lease grant 9000000001'
both "lease list" 'for l in $($CTL lease list | tail -n +2); do $CTL lease revoke $l; done; $CTL lease list'
both "lease put, timetolive" 'L=$(lease_of 500); $CTL put l1 v --lease=$L; $CTL put l0 v --lease=$L; $CTL lease timetolive $L | sed "s/remaining(49[0-9]s)/remaining/"; $CTL lease timetolive --keys $L | sed "s/remaining(49[0-9]s)/remaining/; s/l1 l0/l0 l1/"; $CTL get l1 -w json'
both "lease timetolive, json" 'L=$(lease_of 500); $CTL lease timetolive $L --keys -w json | sed "s/\"ttl\":49[0-9]/ttl/"'
both "lease timetolive, unknown" '$CTL lease timetolive 1234'
both "lease timetolive, unknown, json" '$CTL lease timetolive 1234 -w json'
both "lease keep-alive, once" 'L=$(lease_of 500); $CTL lease keep-alive --once $L'
both "lease keep-alive, once, json" 'L=$(lease_of 500); $CTL lease keep-alive --once $L -w json'
both "lease keep-alive, unknown" '$CTL lease keep-alive --once 1234'
both "lease keep-alive" 'L=$(lease_of 3); lines 2 $CTL lease keep-alive $L'
both "lease revoke" 'L=$(lease_of 500); $CTL put r2 v --lease=$L; $CTL put r1 v --lease=$L; $CTL lease revoke $L; $CTL get --prefix r -w json'
both "lease revoke, json" 'L=$(lease_of 500); $CTL lease revoke $L -w json'
both "lease revoke, unknown" '$CTL lease revoke 1234'
both "lease expiry" 'L=$(lease_of 2); $CTL put e1 v --lease=$L; $CTL put e2 v --lease=$L; await sh -c "! $CTL get --prefix e1 | grep -q v"; $CTL get --prefix e -w json; $CTL lease timetolive $L'
both "lease expiry, watched" 'L=$(lease_of 2); $CTL put ew1 v --lease=$L; $CTL put ew2 v --lease=$L; lines 4 $CTL watch --prefix ew'
both "lease, detached by put" 'L=$(lease_of 500); $CTL put det v --lease=$L; $CTL put det w; $CTL lease revoke $L; $CTL get det'

# ---- lock, elect ----------------------------------------------------------------------------------------------
both "lock" 'lines 1 $CTL lock mine'
both "lock, command" '$CTL lock mine2 -- echo held'
both "lock, environment" '$CTL lock mine3 -- sh -c "echo \$ETCD_LOCK_KEY | cut -d/ -f1"'
both "lock, two in turn" '$CTL lock turn -- sh -c "echo first; until [ \$(etcdctl --endpoints $SELF get --prefix turn/ --keys-only | grep -c turn) = 2 ]; do sleep 0.05; done; echo first done" & await sh -c "$CTL get --prefix turn/ | grep -q turn"; $CTL lock turn -- echo second; wait'
both "lock, status of the command" '$CTL lock mine4 -- false'
both "elect" 'lines 2 $CTL elect boss one'
both "elect, listen" '$CTL elect seat two >/dev/null & p=$!; await sh -c "$CTL get --prefix seat | grep -q two"; lines 2 $CTL elect --listen seat; kill $p; wait'

# ---- members, status ----------------------------------------------------------------------------------------------
both "member list" '$CTL member list'
both "member list, table" '$CTL member list -w table | grep -v -e "---"'
both "member list, json" '$CTL member list -w json'
both "endpoint health" '$CTL endpoint health'
both "endpoint health, cluster" '$CTL endpoint health --cluster'
both "endpoint status" '$CTL endpoint status | cut -d, -f1,5,6'
both "endpoint status, fields" '$CTL endpoint status -w json | grep -o "\"[A-Za-z_]*\":" | grep -v -e storageVersion -e dbSizeQuota -e downgradeInfo | sort -u'
both "endpoint hashkv" '$CTL endpoint hashkv | cut -d, -f1'
both "endpoint hashkv, of the same keys" '$CTL del l0 >/dev/null; $CTL del l1 >/dev/null; $CTL compaction $($CTL get x -w json | grep -o "\"revision\":[0-9]*" | cut -d: -f2) --physical >/dev/null; $CTL put after compaction >/dev/null; $CTL endpoint hashkv'
both "alarm list" '$CTL alarm list'
both "alarm disarm" '$CTL alarm disarm'
both "defrag" '$CTL defrag'
both "get, after defrag" '$CTL get --prefix t -w json'
both "auth status" '$CTL user list 2>&1 | head -n 0'
both "move-leader, to nobody" '$CTL move-leader 1234 2>&1 | grep -c Error'
both "version" '$CTL version'

# ---- make-mirror -----------------------------------------------------------------------------------------------------
both "make-mirror, to the other" '
    for i in 1 2 3; do $CTL put mirror/$i v$i; done
    $CTL make-mirror --prefix mirror/ --dest-prefix from-$([ $SELF \< $OTHER ] && echo a || echo b)/ $OTHER >$tmp/mirror 2>&1 & p=$!
    D=from-$([ $SELF \< $OTHER ] && echo a || echo b)/
    await sh -c "timeout 5 etcdctl --endpoints $OTHER get --prefix $D | grep -q v3"
    $CTL put mirror/4 live; $CTL del mirror/1
    await sh -c "timeout 5 etcdctl --endpoints $OTHER get --prefix $D | grep -q live"
    await sh -c "! timeout 5 etcdctl --endpoints $OTHER get --prefix $D | grep -q v1"
    kill $p; wait $p 2>/dev/null
    timeout 5 etcdctl --endpoints $OTHER get --prefix $D --print-value-only'

# ---- only that it runs -------------------------------------------------------------------------------------------------
case "check perf" in
$only)
    if timeout 100 etcdctl --endpoints "127.0.0.1:$port" check perf >"$tmp/perf" 2>&1 || grep -q -i -e throughput "$tmp/perf"; then
        echo "ok - check perf"
        tr '\r' '\n' <"$tmp/perf" | grep -e PASS -e FAIL | sed 's/^/# /'
    else
        echo "not ok - check perf"
        tail -n 5 "$tmp/perf" | sed 's/^/# /'
        failed=1
    fi
    ;;
esac
exit $failed
